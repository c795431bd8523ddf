/*
 * Event counters: values, flags, duplicates, owners, and a thread that waits for one.
 */
#include "victim.h"
#include <poll.h>
#include <sys/eventfd.h>

enum { COUNTER = 10, NONBLOCKING, DUPLICATE, LARGE, EMPTY, WAITED };

static const struct {
	int fd;
	uint64_t value;
	int flags, fd_flags;
} table[] = {
	{ COUNTER, 7, O_RDWR, 0 },
	{ NONBLOCKING, 4711, O_RDWR | O_NONBLOCK, FD_CLOEXEC },
	{ LARGE, 0xfffffffe, O_RDWR | O_NONBLOCK, 0 },
	{ EMPTY, 0, O_RDWR | O_NONBLOCK, 0 },
};
enum { COUNT = sizeof table / sizeof *table };

static void make(int fd, uint64_t value, int flags)
{
	int made = must(eventfd(0, flags & O_NONBLOCK ? EFD_NONBLOCK : 0));
	must(dup2(made, fd));
	close(made);
	if (value)
		must(write(fd, &value, sizeof value));
}

static uint64_t waited;

static atomic_int waits;

static void *wait_for_it(void *unused)
{
	atomic_store(&waits, 1);
	if (read(WAITED, &waited, sizeof waited) != sizeof waited)
		waited = -1;
	return unused;
}

int main(void)
{
	pthread_t waiter;
	victim_start();
	for (int i = 0; i < COUNT; i++) {
		make(table[i].fd, table[i].value, table[i].flags);
		must(fcntl(table[i].fd, F_SETFD, table[i].fd_flags));
	}
	must(dup2(COUNTER, DUPLICATE));
	struct f_owner_ex owner = { F_OWNER_PID, victim_pid };
	must(fcntl(NONBLOCKING, F_SETOWN_EX, &owner));
	must(fcntl(NONBLOCKING, F_SETSIG, SIGRTMIN + 4));
	make(WAITED, 0, O_RDWR);
	must0(pthread_create(&waiter, NULL, wait_for_it, NULL));
	while (!atomic_load(&waits))
		nap_ms(1);
	victim_ready();
	victim_wait();

	memset(&owner, 0, sizeof owner);
	must(fcntl(NONBLOCKING, F_GETOWN_EX, &owner));
	expect("owner", victim_pid, owner.pid);
	expect("owner signal", SIGRTMIN + 4, fcntl(NONBLOCKING, F_GETSIG));
	for (int i = 0; i < COUNT; i++) {
		struct pollfd ready = { .fd = table[i].fd, .events = POLLIN };
		uint64_t value = 0;
		expect_at("status flags", i, table[i].flags, fcntl(table[i].fd, F_GETFL));
		expect_at("descriptor flags", i, table[i].fd_flags, fcntl(table[i].fd, F_GETFD));
		must(poll(&ready, 1, 0));
		expect_at("readable", i, table[i].value ? POLLIN : 0, ready.revents);
		if (!table[i].value)
			continue;
		expect_at("read", i, sizeof value, read(table[i].fd == COUNTER ? DUPLICATE : table[i].fd, &value, 8));
		expect_at("value", i, table[i].value, value);
	}
	/* The duplicate has taken what stood there. */
	must(fcntl(COUNTER, F_SETFL, O_NONBLOCK));
	uint64_t value = 5;
	expect("counter is one with its duplicate", -1, read(COUNTER, &value, sizeof value));
	expect("nonblocking duplicate", O_NONBLOCK, fcntl(DUPLICATE, F_GETFL) & O_NONBLOCK);
	value = 99;
	must(write(WAITED, &value, sizeof value));
	must0(pthread_join(waiter, NULL));
	expect("the waiting thread", 99, waited);
	victim_end();
}
