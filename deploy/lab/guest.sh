# The guest: Debian trixie's cloud kernel (6.12, CONFIG_MEM_SOFT_DIRTY=y) and an initramfs of
# Debian packages, in qemu without KVM. No disk image, no loop device, no network.
# Sourced by `lab`.
# shellcheck shell=bash disable=SC2154

guest_packages=(criu iproute2 python3-minimal busybox-static nftables dash bash coreutils kmod procps strace tar util-linux
    perl-base apparmor)
guest_modules='drivers/(block/(zram|brd|loop)|net/(veth|tun|dummy|ifb|macvlan|virtio_net)|char/virtio_console|virtio/)|net/(sched|netfilter|ipv4|ipv6|unix|packet|netlink|bridge|core|8021q|sctp)/|fs/(overlayfs|squashfs|fuse|autofs)/|mm/|lib/'

# guest_dir: prints the directory that holds `vmlinux` and `base.cpio`, built when missing.
guest_dir() {
    cached guest build_guest "$here/root.sh" "$here/guest.sh" "$here/guest-init"
}

build_guest() {
    local apt=$1/apt root=$1/root result=$1/result criu42
    private_apt "$apt" trixie
    unpack_packages "$apt" "$root" "${guest_packages[@]}"
    criu42=$(criu_root 4.2)
    place_criu_4_2 "$criu42" "$root"
    place_kernel "$apt" "$1/kernel" "$root" "$result/vmlinux"
    mkdir -p "$root"/{proc,sys,dev,run,tmp,root,job}
    install -m 755 "$here/guest-init" "$root/init"
    place_busybox_links "$root"
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
    pack "$root" >"$result/base.cpio"
}

# /criu42, `criu42` on the guest's PATH: the program and only the libraries that it loads.
place_criu_4_2() {
    local from=$1 into=$2/criu42 library
    mkdir -p "$into/lib" "$2/usr/local/bin"
    cp "$from/usr/sbin/criu" "$into/criu.bin"
    cp -L "$from/lib64/ld-linux-x86-64.so.2" "$into/lib/"
    "$from/lib64/ld-linux-x86-64.so.2" --library-path "$from/$libdir" --list "$from/usr/sbin/criu" |
        awk '$2 == "=>" { print $3 }' | while read -r library; do cp -L "$library" "$into/lib/"; done
    printf '#!/bin/sh\nexec /criu42/lib/ld-linux-x86-64.so.2 --library-path /criu42/lib /criu42/criu.bin "$@"\n' >"$into/criu"
    chmod 755 "$into/criu"
    ln -s /criu42/criu "$2/usr/local/bin/criu42"
}

# The metapackage names the kernel of the day, and would bring an initramfs generator along.
place_kernel() {
    local apt=$1 tree=$2 root=$3 vmlinux=$4 package version
    package=$(with_apt "$apt" apt-cache depends linux-image-cloud-amd64 |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
    mkdir -p "$tree"
    (cd "$tree" && with_apt "$apt" apt-get -q -o Dpkg::Use-Pty=0 download "$package")
    dpkg-deb --fsys-tarfile "$tree"/*.deb | tar -x -C "$tree"
    version=$(cd "$tree"/boot && echo vmlinuz-*)
    version=${version#vmlinuz-}
    local modules=lib/modules/$version
    [ -d "$tree/$modules" ] || modules=usr/lib/modules/$version
    (cd "$tree/$modules" && find . -name '*.ko*' | grep -E "^\./kernel/($guest_modules)") >"$tree/list"
    mkdir -p "$root/usr/lib/modules/$version"
    tar -C "$tree/$modules" -cf - -T "$tree/list" | tar -C "$root/usr/lib/modules/$version" -xf -
    cp "$tree/$modules"/modules.{builtin,order}* "$root/usr/lib/modules/$version/"
    find "$root/usr/lib/modules" -name '*.ko.xz' -print0 | xargs -0 -r xz -d
    depmod -b "$root" "$version"
    extract_vmlinux "$tree/boot/vmlinuz-$version" "$vmlinux"
    mkdir -p "$root/boot"
    cp "$tree/boot/config-$version" "$root/boot/"
}

# The uncompressed kernel boots two seconds earlier, since the emulator need not unpack it.
extract_vmlinux() {
    local at
    at=$(LC_ALL=C grep -abo -m 1 -P '\x28\xb5\x2f\xfd' "$1" | head -n 1 | cut -d: -f1) || true
    if [ -n "$at" ]; then
        # zstd reports what follows the stream in the image as an error.
        tail -c +$((at + 1)) "$1" | zstd -dcq >"$2" 2>/dev/null || true
    fi
    if [ "$(head -c 4 "$2" 2>/dev/null | tail -c 3)" != ELF ]; then cp "$1" "$2"; fi
}

place_busybox_links() {
    local applet
    while read -r applet; do
        [ -e "$1/usr/bin/$applet" ] || [ -e "$1/usr/sbin/$applet" ] || ln -s busybox "$1/usr/bin/$applet"
    done < <("$1/usr/bin/busybox" --list)
}

# pack DIR: DIR as an initramfs archive on stdout.
pack() {
    (cd "$1" && find . -print0 | cpio --quiet -0 -o -H newc -R 0:0)
}

run_guest() {
    local mem=1024 timeout_s=300 out='' dir
    local -a files=()
    while [ $# -gt 0 ]; do
        case "$1" in
            --mem) mem=$2; shift 2 ;;
            --timeout) timeout_s=$2; shift 2 ;;
            --in) files+=("$2"); shift 2 ;;
            --out) out=$2; shift 2 ;;
            --) shift; break ;;
            *) die "vm: unknown option $1 (the command goes after --)" ;;
        esac
    done
    [ $# -gt 0 ] || die "vm: which command?"
    command -v qemu-system-x86_64 >/dev/null || die "vm: qemu-system-x86_64 is missing (package qemu-system-x86)"
    dir=$(guest_dir)
    guest_tmp=$(mktemp -d "$cache/tmp/vm.XXXXXX")
    qemu=''
    trap end_guest EXIT
    trap 'exit 124' TERM INT HUP

    local job=$guest_tmp/root/job file name
    mkdir -p "$job/out"
    for file in "${files[@]}"; do
        name=$(basename "$file")
        if [ ! -e "$file" ] && [[ $file == *:* ]]; then
            name=${file##*:}
            file=${file%:*}
        fi
        [ -e "$file" ] || die "vm: no file $file"
        mkdir -p "$(dirname "$job/$name")"
        cp -aL "$file" "$job/$name"
    done
    { printf '#!/bin/bash\nexec'; printf ' %q' "$@"; echo; } >"$job/run"
    chmod 755 "$job/run"
    # Archives in one initramfs start on four-byte boundaries; cpio pads to 512.
    { cat "$dir/base.cpio"; pack "$guest_tmp/root"; } >"$guest_tmp/initrd"
    rm -rf "$guest_tmp/root"

    : >"$guest_tmp/out.tar"
    # One host thread for both virtual CPUs: qemu before 8.1 may keep the translation of an instruction that the other
    # one is just replacing, and the guest's kernel, which patches its own code, then dies of a stale breakpoint
    # ("Oops: int3"), about once in ten busy minutes.
    # Killed with this script, even by SIGKILL.
    setpriv --pdeathsig TERM timeout --kill-after=5 "$timeout_s" qemu-system-x86_64 \
        -accel tcg,thread=single -smp 2 -m "$mem" -cpu max -nodefaults -no-reboot -display none \
        -kernel "$dir/vmlinux" -initrd "$guest_tmp/initrd" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off" -serial stdio \
        -device virtio-serial-pci -chardev "file,id=out,path=$guest_tmp/out.tar" \
        -device virtserialport,chardev=out,name=out </dev/null &
    qemu=$!
    local status=0
    wait "$qemu" || status=$?
    qemu=''
    [ "$status" -ne 124 ] || { say "vm: the time limit of $timeout_s s is over"; exit 124; }
    status=$(tar -xOf "$guest_tmp/out.tar" rc 2>/dev/null) || die "vm: the guest ended before the command did"
    if [ -n "$out" ]; then
        mkdir -p "$out"
        tar -C "$out" --strip-components=1 -xf "$guest_tmp/out.tar" out
    fi
    exit "$status"
}

end_guest() {
    [ -z "$qemu" ] || kill "$qemu" 2>/dev/null || true
    rm -rf "$guest_tmp"
}
