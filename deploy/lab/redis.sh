# The heap of a Redis server: a real server of Debian's, in a private root, is filled with keys as sites keep them, and
# its memory is read out. Benchmarks map it again. Sourced by `lab`.
# shellcheck shell=bash disable=SC2154

# redis_heap: prints the file, made when missing.
redis_heap() {
    local dir
    dir=$(cached redis build_redis_heap "$here/redis.sh" "$here/redis_heap.py")
    echo "$dir/heap"
}

build_redis_heap() {
    private_apt "$1/apt" trixie
    unpack_packages "$1/apt" "$1/root" redis-server
    python3 "$here/redis_heap.py" "$1/result/heap" "$1/root/lib64/ld-linux-x86-64.so.2" \
        --library-path "$1/root/$libdir" "$(redis_program "$1/root")"
}

redis_program() {
    local program
    for program in "$1"/usr/bin/redis-check-rdb "$1"/usr/bin/redis-server; do
        if [ -f "$program" ] && [ ! -L "$program" ]; then
            # Debian's redis-server is a link to the tool that shares its code; its own name decides what it does.
            cp "$program" "$1/redis-server"
            echo "$1/redis-server"
            return
        fi
    done
    die "the package has no redis-server"
}
