"""Fills a sqlite database in memory with rows of text and numbers, until it is as large as asked for, and waits.

Arguments: MiB of memory, and the file that appears once it is filled. The same rows every time.
"""
import os
import random
import sqlite3
import sys
import time

WORDS = (
    "access action agent alarm alert answer audit backup battery block bridge buffer cable call camera carrier case "
    "center change charge check circuit class cluster code command connect contract control copy core cycle data date "
    "delay detail door drive edge engine entry factory failure fault feed field file flow frame gate gateway grid "
    "guard host hour image input inside install job key lamp layer lease line link load lock loop machine main map "
    "master match measure memory meter mode module monitor motor name node normal open option output packet panel "
    "part path phase plan plant point pool port power pressure print probe process pump range reader ready relay "
    "remote repair reset restart ring room rule safety sample scan screen sensor service shift signal site size slot "
    "space speed stage start station step stop storage stream switch system tank test time tool track trigger tube "
    "valve view voltage wait warning watch water wheel wire"
).split()

ROWS_FIRST = 20000
SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = MEMORY;
CREATE TABLE reading (
    id INTEGER PRIMARY KEY, device TEXT, taken_at INTEGER, level REAL, state TEXT, place TEXT, note TEXT, body BLOB
);
CREATE INDEX reading_by_device ON reading (device, taken_at);
CREATE INDEX reading_by_place ON reading (place);
"""
# Each lap adds as many rows as there were first, made from them, with other numbers and other words at each end.
LAP = """
INSERT INTO reading SELECT
    id + :base,
    'dev-' || printf('%06x', (id * 2654435761 + :lap * 40503) % 16777216),
    taken_at + :lap * 86400 + (id * 1103515245 + :lap * 12345) % 3600,
    level * 1.001 + :lap,
    state,
    place || '/' || :lap % 50,
    :word || ' ' || note || ' ' || printf('%x', (id * 6364136223846793 + :lap * 1442695040888963) & 0xffffffffffff),
    body
FROM reading WHERE id <= :first
"""


def rows(rng):
    for number in range(1, ROWS_FIRST + 1):
        yield (
            number,
            f"dev-{rng.randrange(1 << 24):06x}",
            1767225600 + number * 7,
            rng.gauss(20, 5),
            rng.choice(("ok", "ok", "ok", "warning", "fault")),
            f"{rng.choice(WORDS)}/{rng.choice(WORDS)}/{rng.randrange(200)}",
            " ".join(rng.choices(WORDS, k=rng.randrange(10, 80))),
            rng.randbytes(16) if number % 3 == 0 else None,
        )


def memory_bytes():
    """Resident memory that no file stands behind (man 5 proc_pid_statm)."""
    with open("/proc/self/statm") as statm:
        fields = statm.read().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def main():
    wanted, ready = int(sys.argv[1]) << 20, sys.argv[2]
    rng = random.Random(20260102)
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.executescript(SCHEMA)
    database.executemany("INSERT INTO reading VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows(rng))
    lap = 0
    while memory_bytes() < wanted:
        lap += 1
        word = rng.choice(WORDS)
        values = {"base": lap * ROWS_FIRST, "lap": lap, "first": ROWS_FIRST, "word": word}
        database.execute(LAP, values)
    # Rows that are gone leave free pages and gaps.
    database.execute("DELETE FROM reading WHERE id % 17 = 3")
    with open(ready + ".part", "w"):
        pass
    os.rename(ready + ".part", ready)
    while True:
        time.sleep(1)


main()
