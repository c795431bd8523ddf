# Private roots: packages of a named Debian suite, with everything they depend on, unpacked into a
# directory. The machine's own apt gives the mirror, the proxy settings and the archive keys, and
# is not touched. Sourced by `lab`.
# shellcheck shell=bash disable=SC2154,SC2016

libdir=usr/lib/x86_64-linux-gnu

# criu_root VERSION: prints the root that holds CRIU of that version, built when missing.
criu_root() {
    case "$1" in
        4.1) cached criu4.1 build_criu_4_1 "$here/root.sh" ;;
        4.2) cached criu4.2 build_criu_4_2 "$here/root.sh" ;;
        *) die "CRIU version must be 4.1 or 4.2, not $1" ;;
    esac
}

# The words that start CRIU from a root, one a line.
criu_prefix() {
    printf '%s\n' "$1/lib64/ld-linux-x86-64.so.2" --library-path "$1/$libdir" "$1/usr/sbin/criu"
}

build_criu_4_1() {
    private_apt "$1/apt" trixie
    wants_criu "$1/apt" 4.1 || die "trixie has no CRIU 4.1"
    unpack_packages "$1/apt" "$1/result" criu
    write_wrapper "$1/result/criu" "$2" usr/sbin/criu
}

# CRIU 4.2 is in forky once it has migrated from sid. crit comes along: this version's
# also decodes what 4.1 wrote.
build_criu_4_2() {
    local suite
    for suite in forky sid; do
        private_apt "$1/$suite" "$suite"
        if wants_criu "$1/$suite" 4.2; then break; fi
    done
    wants_criu "$1/$suite" 4.2 || die "neither forky nor sid has CRIU 4.2"
    unpack_packages "$1/$suite" "$1/result" criu python3-pycriu
    write_wrapper "$1/result/criu" "$2" usr/sbin/criu
    local python
    python=$(find "$1/result/usr/bin" -name 'python3.[0-9]*' -printf '%f\n' | head -n 1)
    write_wrapper "$1/result/crit" "$2" "usr/bin/$python" "$2/usr/bin/crit" \
        PYTHONHOME="$2/usr" PYTHONPATH="$2/usr/lib/python3/dist-packages" PYTHONDONTWRITEBYTECODE=1
    # One import with its bytecode kept: later runs start in half the time.
    (
        cd "$1/result" || exit
        env -u PYTHONDONTWRITEBYTECODE PYTHONHOME="$PWD/usr" PYTHONPATH="$PWD/usr/lib/python3/dist-packages" \
            lib64/ld-linux-x86-64.so.2 --library-path "$libdir" "usr/bin/$python" -c 'import crit.__main__, pycriu'
    )
}

# write_wrapper FILE ROOT PROGRAM [FIRST_ARG] [VAR=VALUE...]: an executable that starts a program of
# the root with the root's own loader and libraries, and needs nothing from its environment.
write_wrapper() {
    local file=$1 root=$2 program=$3 first=${4:-} setting
    shift 3
    [ $# -eq 0 ] || shift
    {
        echo '#!/bin/sh'
        for setting in "$@"; do
            printf 'export %s=%q\n' "${setting%%=*}" "${setting#*=}"
        done
        printf 'exec %q --library-path %q %q %s"$@"\n' "$root/lib64/ld-linux-x86-64.so.2" \
            "$root/$libdir" "$root/$program" "${first:+$(printf '%q ' "$first")}"
    } >"$file"
    chmod 755 "$file"
}

# private_apt DIR SUITE: an apt of our own in DIR. Its status file is empty, so the solver returns
# the whole closure of a package. Hooks and preferences of the machine are left out.
private_apt() {
    local dir=$1 suite=$2 keyring
    [ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 is supported"
    for keyring in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp} ''; do
        [ ! -e "$keyring" ] || break
    done
    [ -n "$keyring" ] || die "the package debian-archive-keyring is missing"
    mkdir -p "$dir"/{state/lists/partial,cache/archives/partial,log,none}
    : >"$dir/status"
    {
        apt-config dump Acquire | grep -vE '^Acquire::(IndexTargets|Languages|Changelogs)'
        cat <<CONF
Dir::Etc::main "/dev/null";
Dir::Etc::parts "$dir/none";
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "$dir/none";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$dir/none";
Dir::State "$dir/state";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
Dir::Log "$dir/log";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
CONF
    } >"$dir/apt.conf"
    local uri
    uri=$(mirror "$dir")
    echo "deb [signed-by=$keyring] $uri $suite main" >"$dir/sources.list"
    with_apt "$dir" apt-get -q -o Dpkg::Use-Pty=0 update
}

with_apt() {
    local dir=$1
    shift
    APT_CONFIG=$dir/apt.conf DEBIAN_FRONTEND=noninteractive "$@"
}

# mirror DIR: the mirror that the machine's apt uses for the main archive (not the security one).
# apt tells it from its package lists; where it has none, a copy of them is fetched into DIR.
mirror() {
    local lists=() uri
    for _ in 1 2; do
        uri=$(apt-get "${lists[@]}" indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
            awk '!/security/ && !seen { print $1; seen = 1 }')
        if [ -n "$uri" ]; then
            echo "$uri"
            return
        fi
        lists=(-o "Dir::State::lists=$1/machine-lists" -o Acquire::Languages=none)
        mkdir -p "$1/machine-lists/partial"
        apt-get "${lists[@]}" -q update >&2
    done
    die "apt knows no mirror of the Debian archive (apt-get indextargets is empty)"
}

# wants_criu APT VERSION: whether the suite's criu is of that version.
wants_criu() {
    local candidate
    candidate=$(with_apt "$1" apt-cache policy criu | awk '$1 == "Candidate:" { print $2 }')
    [[ $candidate == "$2".* || $candidate == "$2"-* ]]
}

# unpack_packages APT ROOT PACKAGE...: the packages and their closure, without maintainer scripts.
unpack_packages() {
    local apt=$1 root=$2 deb dir
    shift 2
    with_apt "$apt" apt-get -q -y -o Dpkg::Use-Pty=0 --download-only install "$@" >"$apt/log/install" ||
        { tail -n 20 "$apt/log/install"; return 1; }
    # `work` is where restore-init mounts its scratch space.
    mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root/work"
    for dir in bin sbin lib lib64; do
        [ -e "$root/$dir" ] || ln -s "usr/$dir" "$root/$dir"
    done
    for deb in "$apt"/cache/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$root"
        rm "$deb"
    done
    rm -rf "$root"/usr/share/{doc,man,locale,info,lintian,bug}
}
