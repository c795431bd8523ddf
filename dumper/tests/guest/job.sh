#!/bin/bash
# Runs in the guest, in /job: keys, two page servers (CRIU 4.1 and 4.2) and a third one far away, swap, a security
# profile; then the file `cases`, whose lines call the functions below. Everything that a check needs goes to out/NAME/.
exec 2>out/stderr
set -x
export GODWIT_STATE_DIR=/tmp/source PATH=$PATH:/job/bin

# The programs under the paths that the tests were built with.
mkdir -p "$(dirname "$GODWIT_AT")"
ln -s /job/bin/godwit "$GODWIT_AT"
ln -s /job/bin/godwit-page-server "$(dirname "$GODWIT_AT")/godwit-page-server"
for version in 4.1:/usr/sbin/criu 4.2:/criu42/criu; do
    mkdir -p "/job/criu-${version%%:*}/work"
    printf '#!/bin/sh\nexec %s "$@"\n' "${version#*:}" >"/job/criu-${version%%:*}/criu"
    chmod 755 "/job/criu-${version%%:*}/criu"
done
export GODWIT_CRIU_41=/job/criu-4.1/criu GODWIT_CRIU_42=/job/criu-4.2/criu GODWIT_LAB_CMD=/job/bin/lab
export GODWIT_VICTIMS=/job/victims GODWIT_REQUIRE=all RUST_BACKTRACE=0

godwit keys init /tmp/keys --san 10.9.0.2 || exit 90
for version in 4.1:7441 4.2:7442; do
    godwit-page-server serve --listen "127.0.0.1:${version#*:}" --images-dir "/tmp/images-${version%%:*}" \
        --keys /tmp/keys --restore --criu "/job/criu-${version%%:*}/criu" \
        --state-dir "/tmp/destination-${version%%:*}" >"out/server-${version%%:*}.out" 2>"out/server-${version%%:*}.err" &
done
# Another host: 20 ms there and back, one packet of five overtakes others, one of a hundred does not arrive.
ip netns add far
ip link add near type veth peer name far netns far
ip address add 10.9.0.1/24 dev near
ip link set near up
ip -n far address add 10.9.0.2/24 dev far
ip -n far link set far up
# CRIU asks the kernel what it can by sockets of its own.
ip -n far link set lo up
for end in "tc qdisc add dev near" "tc -n far qdisc add dev far"; do
    $end root netem delay 10ms reorder 20% 50% loss 1%
done
# `ip netns exec` would take the mounts of /sys away.
nsenter --net=/run/netns/far godwit-page-server serve --listen 10.9.0.2:7443 --images-dir /tmp/images-far \
    --keys /tmp/keys --restore --criu /job/criu-4.2/criu --state-dir /tmp/destination-far \
    >out/server-far.out 2>out/server-far.err &
for i in $(seq 300); do
    grep -q 'listening on' out/server-4.1.out && grep -q 'listening on' out/server-4.2.out &&
        grep -q 'listening on' out/server-far.out && break
    sleep 0.1
done

modprobe zram && echo 192M >/sys/block/zram0/disksize && mkswap /dev/zram0 && swapon /dev/zram0
# As on most servers; with `always`, a write to memory of any size makes 2 MiB of it soft-dirty.
echo madvise >/sys/kernel/mm/transparent_hugepage/enabled
mount -t securityfs securityfs /sys/kernel/security
printf 'profile godwit-test flags=(attach_disconnected) {\n  file, capability, network, ptrace, signal, mount, unix,\n}\n' |
    apparmor_parser -K -r

# start NAME PROGRAM ARGS...: in out/NAME; sets pid.
start() {
    mkdir -p "/job/out/$1"
    cd "/job/out/$1" || exit 91
    shift
    setsid "/job/victims/$@" >>log 2>&1 </dev/null &
    for i in $(seq 600); do grep -qE '^(READY|BROKEN)' log && break; sleep 0.1; done
    pid=$(sed -n 's/^READY //p' log)
}

# verdict: asks the victim, and waits for what it says.
verdict() {
    touch check
    for i in $(seq 900); do grep -qE '^(OK|BAD|BROKEN)' log && break; sleep 0.1; done
    cut -d' ' -f1 /proc/uptime >uptime
    cd /job || exit 91
}

# moved NAME CRIU TRACKER ROUNDS PROGRAM ARGS...; CRIU `far`: by the third server.
moved() {
    local name=$1 criu=$2 tracker=$3 rounds=$4 to
    shift 4
    case $criu in
        far) to=10.9.0.2:7443 ;;
        *) to=127.0.0.1:744${criu#4.} ;;
    esac
    start "$name" "$@"
    godwit migrate --pid "$pid" --to "$to" --keys /tmp/keys --name "$name" \
        --tracker "$tracker" --rounds "$rounds" --json >report.json 2>godwit.err
    echo $? >status
    tc -s qdisc show dev near >qdisc
    sleep 0.5
    verdict
    rm -rf "/tmp/images-$criu/$name"
}

# confined NAME PROGRAM: under the security profile; looked at by doctor, not migrated, and unharmed.
confined() {
    local name=$1
    shift
    printf '#!/bin/sh\necho "exec godwit-test" >/proc/self/attr/exec; exec /job/victims/%s\n' "$1" >/job/victims/confined
    chmod 755 /job/victims/confined
    start "$name" confined
    cat "/proc/$pid/attr/current" >label
    godwit doctor --pid "$pid" --json >doctor.json 2>doctor.err
    godwit migrate --pid "$pid" --to 127.0.0.1:7442 --keys /tmp/keys --name "$name" --json >report.json 2>godwit.err
    echo $? >status
    verdict
}

# tested NAME VARIABLES... -- TEST ARGS...: a test program of the host's.
tested() {
    mkdir -p "/job/out/$1"
    local name=$1 variables=()
    shift
    while [ "$1" != -- ]; do variables+=("$1"); shift; done
    shift
    env "${variables[@]}" "/job/tests/$1" "${@:2}" --test-threads=1 --include-ignored >"out/$name/log" 2>&1
    echo $? >"out/$name/status"
    cut -d' ' -f1 /proc/uptime >"out/$name/uptime"
}

. ./cases
kill $(jobs -p)
exit 0
