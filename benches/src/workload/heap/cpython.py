"""Fills this interpreter with objects as a service holds them, until its memory is as large as asked for, and waits.

Arguments: MiB of memory, and the file that appears once it is filled. The same objects every time.
"""
import gc
import os
import random
import sys
import time

WORDS = (
    "account active address amount archive balance batch billing branch cache cancel channel city client column "
    "config contact count country created currency customer daily default delivery deposit device discount email "
    "error event export failed filter first folder group handler history import index invoice item journal label "
    "language last level limit locale manager message method minute model month network notice number offer office "
    "order owner page parent partner pending period phone price product profile project quantity query queue rate "
    "reason record region report request result retry role route sales schema search section segment series server "
    "session shipping source state status stock street subject supplier table target task template ticket title "
    "token total transfer type unit update user value vendor version warehouse week worker year zone"
).split()


class Address:
    __slots__ = ("street", "zip", "city", "country")

    def __init__(self, rng):
        self.street = f"{rng.choice(WORDS).title()} street {rng.randrange(1, 300)}"
        self.zip = f"{rng.randrange(10000, 99999)}"
        self.city = sys.intern(rng.choice(WORDS).title())
        self.country = sys.intern(rng.choice(("DE", "FR", "NL", "PL", "US", "JP")))


class Order:
    def __init__(self, rng, number):
        self.number = number
        self.items = [(rng.getrandbits(20), 1 + at, rng.random() * 100) for at in range(1 + number % 5)]
        self.status = rng.choice(("new", "paid", "shipped", "returned"))
        self.note = " ".join(rng.choices(WORDS, k=3 + number % 17))


class Customer:
    def __init__(self, rng, number):
        first, last = rng.choice(WORDS), rng.choice(WORDS)
        self.number = number
        self.name = f"{first.title()} {last.title()}"
        self.email = f"{first}.{last}{rng.randrange(1000)}@{rng.choice(WORDS)}.example"
        self.address = Address(rng)
        self.tags = set(rng.choices(WORDS, k=3))
        self.settings = dict.fromkeys(rng.choices(WORDS, k=2 + number % 7), number % 1000)
        self.orders = [Order(rng, number * 100 + at) for at in range(number % 5)]
        self.session = f"{rng.getrandbits(128):032x}"
        self.scores = [rng.random() for _ in range(number % 12)]


def memory_bytes():
    """Resident memory that no file stands behind (man 5 proc_pid_statm)."""
    with open("/proc/self/statm") as statm:
        fields = statm.read().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def main():
    wanted, ready = int(sys.argv[1]) << 20, sys.argv[2]
    # Collections would walk over everything again and again; the objects have no cycles.
    gc.disable()
    rng = random.Random(20260101)
    by_number, by_email, log = {}, {}, []
    number = 0
    while memory_bytes() < wanted:
        for _ in range(200):
            number += 1
            customer = Customer(rng, number)
            by_number[number] = customer
            by_email[customer.email] = customer
            log.append({"at": 1767225600 + number, "who": customer.name, "what": rng.choice(WORDS)})
            # Some go again, as in any program that has run for a while: the heap has gaps.
            if number % 5 == 0:
                gone = by_number.pop(rng.randrange(1, number), None)
                if gone is not None:
                    by_email.pop(gone.email, None)
    with open(ready + ".part", "w"):
        pass
    os.rename(ready + ".part", ready)
    while by_number and by_email and log:
        time.sleep(1)


main()
