"""Starts a Redis server, fills it with keys, and writes its heap to a file.

Arguments: the file, and the words that start the server. Only anonymous, writable memory is taken, and of it only pages
that are there. The first 4 KiB of the file are a header: the magic "GDWREDIS", the number of address ranges, and of each
its first and its last address, all in eight bytes, little-endian; the pages follow, range by range.
"""
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time

PAGE = 4096
HEADER = PAGE
MAGIC = b"GDWREDIS"
# Of the server's own count (used_memory), before the file is cut.
WANTED = 192 << 20
WORDS = (
    "home login search cart checkout product review profile order invoice payment shipping return wishlist coupon "
    "newsletter category filter brand size color price stock store contact help about terms privacy cookie session "
    "mobile tablet desktop spring summer autumn winter sale new popular rating comment image video article author "
    "published updated deleted active blocked pending admin editor viewer guest premium basic trial monthly yearly"
).split()


class Server:
    def __init__(self, words, directory):
        path = os.path.join(directory, "socket")
        options = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--daemonize", "no"]
        self.process = subprocess.Popen(
            words + options, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.socket.connect(path)
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the Redis server does not start")
                time.sleep(0.05)
        self.answers = self.socket.makefile("rb")

    def stop(self):
        self.process.kill()
        self.process.wait()

    def send(self, commands):
        """Sends commands together, and takes an answer for each; all but the last may only be short ones."""
        self.socket.sendall(b"".join(encode(command) for command in commands))
        last = b""
        for _ in commands:
            last = self.answers.readline()
            if last[:1] == b"-":
                raise SystemExit(f"Redis refuses: {last!r}")
            if last[:1] == b"$":
                last = self.answers.read(int(last[1:]) + 2)
        return last

    def used_memory(self):
        lines = self.send([("INFO", "memory")]).decode().splitlines()
        return int(dict(line.split(":", 1) for line in lines if ":" in line)["used_memory"])


def encode(command):
    parts = [str(part).encode() for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def batch(rng, first):
    """Commands that make the keys of a web shop: sessions, pages in cache, counters, queues, rankings, sets."""
    commands = []
    for number in range(first, first + 500):
        token = f"{rng.getrandbits(128):032x}"
        user = rng.randrange(1 << 20)
        session = (
            f'{{"user":{user},"role":"{rng.choice(WORDS)}","csrf":"{rng.getrandbits(64):016x}",'
            f'"cart":[{",".join(str(rng.randrange(1 << 17)) for _ in range(number % 7))}],"at":{1767225600 + number}}}'
        )
        commands.append(("SET", f"session:{token}", session, "EX", 86400 + number % 3600))
        fields = [part for word in rng.sample(WORDS, 6) for part in (word, rng.randrange(100000))]
        commands.append(("HSET", f"user:{user}", "name", " ".join(rng.sample(WORDS, 2)), *fields))
        if number % 4 == 0:
            body = " ".join(rng.choices(WORDS, k=20 + number % 200))
            commands.append(("SET", f"page:/{rng.choice(WORDS)}/{number}", f"<html><body><p>{body}</p></body></html>"))
        commands.append(("ZADD", f"ranking:{rng.choice(WORDS)}", rng.randrange(1 << 16), f"product:{number % 50000}"))
        commands.append(("SADD", f"tag:{rng.choice(WORDS)}", user))
        commands.append(("INCRBY", f"hits:{number % 2000}", rng.randrange(10)))
        commands.append(("RPUSH", f"queue:{number % 40}", f"mail:{user}:{token[:8]}"))
        if number % 9 == 0:
            # What has gone again leaves gaps in the heap.
            commands.append(("DEL", f"page:/{rng.choice(WORDS)}/{rng.randrange(number + 1)}"))
    return commands


def heap_ranges(pid):
    """Ranges of pages that are there, in memory that is anonymous and writable."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/pagemap", "rb") as pagemap:
        for line in maps:
            fields = line.split()
            if not fields[1].startswith("rw-p") or fields[4] != "0" or (len(fields) > 5 and fields[5] != "[heap]"):
                continue
            start, end = (int(part, 16) for part in fields[0].split("-"))
            pagemap.seek(start // PAGE * 8)
            entries = struct.unpack(f"<{(end - start) // PAGE}Q", pagemap.read((end - start) // PAGE * 8))
            begun = None
            for at, entry in enumerate(entries + (0,)):
                is_there = entry >> 63
                if is_there and begun is None:
                    begun = at
                elif not is_there and begun is not None:
                    yield start + begun * PAGE, start + at * PAGE
                    begun = None


def save(pid, path):
    # Small ranges are stacks and tables of libraries; the header has room for 250.
    ranges = sorted(sorted(heap_ranges(pid), key=lambda one: one[0] - one[1])[:250])
    header = MAGIC + struct.pack("<Q", len(ranges)) + b"".join(struct.pack("<QQ", *one) for one in ranges)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory, open(path, "wb") as heap:
        heap.write(header.ljust(HEADER, b"\0"))
        for start, end in ranges:
            memory.seek(start)
            while start < end:
                piece = memory.read(min(end - start, 1 << 20))
                heap.write(piece)
                start += len(piece)


def main():
    path, words = sys.argv[1], sys.argv[2:]
    rng = random.Random(20260103)
    with tempfile.TemporaryDirectory() as directory:
        server = Server(words, directory)
        try:
            first = 0
            while server.used_memory() < WANTED:
                server.send(batch(rng, first))
                first += 500
            save(server.process.pid, path)
        finally:
            server.stop()


main()
