# The cache: one directory per thing built, named KIND-KEY, where KEY is a hash of the files
# that decide its content. A directory with its final name is whole: it is built under tmp/ and
# renamed. Sourced by `lab`.
# shellcheck shell=bash disable=SC2154

cache=$(realpath -m "${GODWIT_LAB:-${HOME:-/root}/.cache/godwit-lab}")
stale_after_days=7

# cached KIND BUILDER INPUT...: prints the directory of KIND, which `BUILDER TMPDIR FINALDIR` fills
# when it is missing. INPUT are the files whose content is the key.
cached() {
    local kind=$1 builder=$2 key final started
    shift 2
    key=$(cat "$@" | sha256sum | cut -c1-12)
    final=$cache/$kind-$key
    if [ -d "$final" ]; then
        touch -c "$final"
        echo "$final"
        return
    fi
    mkdir -p "$cache/tmp"
    (
        flock 9
        if [ -d "$final" ]; then exit 0; fi
        started=$(date +%s)
        say "building $kind in $cache (once)"
        tmp=$(mktemp -d "$cache/tmp/$kind.XXXXXX")
        trap 'rm -rf "$tmp"' EXIT
        mkdir "$tmp/result"
        # A shell of its own: in a command substitution and left of `||`, `set -e` is off.
        "$here/lab" _build "$builder" "$tmp" "$final" >&2 9>&- || { say "building $kind failed"; exit 125; }
        prune "$kind"
        mv -T "$tmp/result" "$final"
        say "built $kind in $(($(date +%s) - started)) s"
    ) 9>"$cache/$kind.lock" || exit 125
    echo "$final"
}

# Removes other keys of a kind that nobody used for a while, and what killed builds left.
prune() {
    find "$cache" -maxdepth 1 -type d -name "$1-*" -mtime +"$stale_after_days" -exec rm -rf {} +
    find "$cache/tmp" -mindepth 1 -maxdepth 1 -mmin +600 -exec rm -rf {} +
}

clean_cache() {
    case "$cache" in / | "${HOME:-/root}") die "clean: refusing $cache" ;; esac
    local kind
    for kind in criu4.1 criu4.2 guest redis; do
        find "$cache" -maxdepth 1 -name "$kind-*" -exec rm -rf {} + 2>/dev/null || true
    done
    rm -rf "$cache/tmp" "$cache"/*.lock
    rmdir "$cache" 2>/dev/null || true
}
