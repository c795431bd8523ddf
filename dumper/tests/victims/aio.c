/*
 * Rings of io_setup: events that completed and were not fetched, one ring that went round once and one that is empty.
 * After a restore the events are fetched, in order, and both rings take requests as before.
 *
 * aio [waiting]: with `waiting`, one ring with a request that completes when somebody writes to the fifo `bell`.
 */
#include "victim.h"
#include <linux/aio_abi.h>

#define UNREAD 7

static aio_context_t context(unsigned requests)
{
	aio_context_t ring = 0;
	must(syscall(SYS_io_setup, requests, &ring));
	return ring;
}

/* Room of a ring, as the header says (fs/aio.c). */
static unsigned room(aio_context_t ring)
{
	return ((unsigned *)ring)[1];
}

static int file;
static char bytes[64];

/* A buffered request is complete when the call returns. */
static long submit(aio_context_t ring, uint64_t data, int length)
{
	struct iocb request = { .aio_data = data, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = file,
				.aio_buf = (uintptr_t)bytes, .aio_nbytes = length, .aio_offset = 0 };
	struct iocb *list[] = { &request };
	return syscall(SYS_io_submit, ring, 1, list);
}

static long fetch(aio_context_t ring, long most, struct io_event *events)
{
	struct timespec now = { 0, 0 };
	return syscall(SYS_io_getevents, ring, 0, most, events, &now);
}

static void fetch_and_expect(const char *name, aio_context_t ring, uint64_t first, int events)
{
	struct io_event found[64];
	expect(name, events, fetch(ring, 64, found));
	for (int i = 0; i < events; i++) {
		expect_at("data", i, first + i, found[i].data);
		expect_at("result", i, (first + i) % 32 + 1, found[i].res);
	}
}

/* A request that waits until somebody writes to the fifo `bell`; the fifo is closed again, the request keeps it. */
static void wait_for_the_bell(aio_context_t ring)
{
	must(mkfifo("bell", 0600));
	int bell = must(open("bell", O_RDONLY | O_NONBLOCK | O_CLOEXEC));
	struct iocb request = { .aio_data = 77, .aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = bell,
				.aio_buf = 1 /* POLLIN */ };
	struct iocb *list[] = { &request };
	if (syscall(SYS_io_submit, ring, 1, list) != 1)
		broken("io_submit of a poll");
}

int main(int argc, char **argv)
{
	struct io_event events[64];
	victim_start();
	if (argc > 1 && !strcmp(argv[1], "waiting")) {
		aio_context_t waiting = context(5);
		wait_for_the_bell(waiting);
		victim_ready();
		victim_wait();
		expect("events after the bell", 1, fetch(waiting, 64, events));
		victim_end();
	}
	file = must(open("aio.data", O_CREAT | O_TRUNC | O_RDWR, 0644));
	if (write(file, bytes, sizeof bytes) != sizeof bytes)
		broken("write");
	aio_context_t ring = context(5), big = context(1000), empty = context(1);
	/* Once round and a bit, fetched as they come; then some that nobody fetches. */
	uint64_t next = 1;
	for (; next <= room(ring) + 20; next++) {
		if (submit(ring, next, next % 32 + 1) != 1)
			broken("io_submit");
		if (fetch(ring, 64, events) != 1)
			broken("io_getevents");
	}
	uint64_t unread = next;
	for (int i = 0; i < UNREAD; i++, next++)
		if (submit(ring, next, next % 32 + 1) != 1)
			broken("io_submit");
	for (int i = 0; i < 3; i++)
		if (submit(big, 1000 + i, (1000 + i) % 32 + 1) != 1)
			broken("io_submit");
	victim_ready();
	victim_wait();

	fetch_and_expect("unread events", ring, unread, UNREAD);
	fetch_and_expect("unread events of the big one", big, 1000, 3);
	fetch_and_expect("events of the empty one", empty, 0, 0);
	/* Twice round, so that every slot is given back. */
	for (unsigned i = 0; i < 2 * room(ring); i++, next++) {
		if (submit(ring, next, next % 32 + 1) != 1) {
			fail("request %u: %s", i, strerror(errno));
			break;
		}
		fetch_and_expect("later events", ring, next, 1);
	}
	if (submit(empty, 5, 6) != 1)
		fail("the empty ring takes nothing: %s", strerror(errno));
	else
		fetch_and_expect("events of the empty one", empty, 5, 1);
	aio_context_t rings[] = { ring, big, empty };
	for (int i = 0; i < 3; i++)
		expect_at("io_destroy", i, 0, syscall(SYS_io_destroy, rings[i]));
	victim_end();
}
