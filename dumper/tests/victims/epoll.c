/*
 * Epoll sets: events, data, edge-triggered, one-shot and exclusive watches, sets in sets, targets whose number was closed or
 * taken by another file since, and a thread that waits.
 *
 * epoll [by-criu]
 */
#include "victim.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

enum { SET = 10, SET_TOO, OUTER, LONELY, EMPTY };
enum { LEVEL = 20, EDGE, ONCE, SPENT, EXCLUSIVE, CLOSED, REUSED, KEPT_CLOSED, KEPT_REUSED, TWICE, TWICE_TOO, WAITED };

static void counter_at(int fd)
{
	int made = must(eventfd(0, EFD_NONBLOCK));
	must(dup2(made, fd));
	close(made);
}

static void set_at(int fd)
{
	int made = must(epoll_create1(0));
	must(dup2(made, fd));
	close(made);
}

static uint64_t data_of(int fd)
{
	return 0xabcd000000000000ull | mix(fd) >> 32 << 8 | fd;
}

static void add(int set, int fd, uint32_t events)
{
	struct epoll_event event = { events, { .u64 = data_of(fd) } };
	must(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
}

static void raise_at(int fd)
{
	uint64_t one = 1;
	must(write(fd, &one, sizeof one));
}

static void lower_at(int fd)
{
	uint64_t value;
	must(read(fd, &value, sizeof value));
}

/* That the set tells exactly one event, which was added as `fd`. */
static void only_event(const char *field, int set, int fd, uint32_t events)
{
	struct epoll_event got[8];
	int n = epoll_wait(set, got, 8, 0);
	expect(field, 1, n);
	if (n < 1)
		return;
	expect(field, data_of(fd), got[0].data.u64);
	expect(field, events, got[0].events);
}

static void no_event(const char *field, int set)
{
	struct epoll_event got[8];
	expect(field, 0, epoll_wait(set, got, 8, 0));
}

/* How many watches /proc shows, and that their events are these. */
static void expect_watches(const char *field, int set, int count)
{
	char path[64];
	int found = 0;
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", set);
	char *text = slurp(path);
	for (char *line = text; (line = strstr(line, "tfd:")); line += 4)
		found++;
	expect(field, count, found);
	free(text);
}

static struct epoll_event told;
static int told_count;

/* CRIU's own dump ends the wait. */
static bool by_criu;

static atomic_int waits;

static void *wait_for_it(void *unused)
{
	atomic_store(&waits, 1);
	do
		told_count = epoll_wait(LONELY, &told, 1, -1);
	while (by_criu && told_count == -1 && errno == EINTR);
	return unused;
}

int main(int argc, char **argv)
{
	/* CRIU's own dump takes the first number of a file for all that are watched, once one of the set's was closed. */
	by_criu = argc > 1 && !strcmp(argv[1], "by-criu");
	pthread_t waiter;
	victim_start();
	set_at(SET);
	must(dup2(SET, SET_TOO));
	must(fcntl(SET_TOO, F_SETFD, FD_CLOEXEC));
	set_at(OUTER);
	set_at(LONELY);
	set_at(EMPTY);
	for (int fd = LEVEL; fd <= TWICE; fd++)
		if (fd != KEPT_CLOSED && fd != KEPT_REUSED)
			counter_at(fd);
	counter_at(WAITED);
	must(dup2(CLOSED, KEPT_CLOSED));
	must(dup2(REUSED, KEPT_REUSED));
	must(dup2(TWICE, TWICE_TOO));
	add(SET, LEVEL, EPOLLIN);
	add(SET, EDGE, EPOLLIN | EPOLLET | EPOLLRDHUP);
	add(SET, ONCE, EPOLLIN | EPOLLONESHOT);
	add(SET, SPENT, EPOLLIN | EPOLLONESHOT);
	add(SET, EXCLUSIVE, EPOLLIN | EPOLLEXCLUSIVE);
	add(SET, CLOSED, EPOLLIN);
	add(SET, REUSED, EPOLLIN);
	add(SET, TWICE, EPOLLIN);
	if (!by_criu)
		add(SET, TWICE_TOO, EPOLLIN);
	add(OUTER, SET, EPOLLIN);
	add(LONELY, WAITED, EPOLLIN);
	close(CLOSED);
	/* What has its number now is watched as well, under the same number. */
	counter_at(REUSED);
	struct epoll_event event = { EPOLLIN, { .u64 = 77 } };
	must(epoll_ctl(SET, EPOLL_CTL_ADD, REUSED, &event));
	raise_at(SPENT);
	only_event("spent", SET, SPENT, EPOLLIN);
	no_event("spent for good", SET);
	must0(pthread_create(&waiter, NULL, wait_for_it, NULL));
	while (!atomic_load(&waits))
		nap_ms(1);
	victim_ready();
	victim_wait();

	expect("close-on-exec", FD_CLOEXEC, fcntl(SET_TOO, F_GETFD));
	expect_watches("watches", SET, 10 - by_criu);
	expect_watches("watches of the duplicate", SET_TOO, 10 - by_criu);
	expect_watches("watches of the outer set", OUTER, 1);
	expect_watches("watches of an empty set", EMPTY, 0);
	no_event("nothing yet", SET);
	no_event("nothing in the outer set", OUTER);
	raise_at(LEVEL);
	only_event("level", SET, LEVEL, EPOLLIN);
	only_event("level again, by the duplicate", SET_TOO, LEVEL, EPOLLIN);
	only_event("the set in a set", OUTER, SET, EPOLLIN);
	lower_at(LEVEL);
	raise_at(EDGE);
	only_event("edge", SET, EDGE, EPOLLIN);
	no_event("edge is told once", SET);
	lower_at(EDGE);
	raise_at(ONCE);
	only_event("one-shot", SET, ONCE, EPOLLIN);
	raise_at(ONCE);
	no_event("one-shot is told once", SET);
	lower_at(ONCE);
	raise_at(EXCLUSIVE);
	only_event("exclusive", SET, EXCLUSIVE, EPOLLIN);
	event.events = EPOLLIN;
	expect("exclusive watches cannot be changed", -1, epoll_ctl(SET, EPOLL_CTL_MOD, EXCLUSIVE, &event));
	lower_at(EXCLUSIVE);
	raise_at(KEPT_CLOSED);
	only_event("closed", SET, CLOSED, EPOLLIN);
	lower_at(KEPT_CLOSED);
	raise_at(KEPT_REUSED);
	only_event("reused", SET, REUSED, EPOLLIN);
	lower_at(KEPT_REUSED);
	struct epoll_event got[8];
	raise_at(REUSED);
	expect("what has the number now", 1, epoll_wait(SET, got, 8, 0));
	expect("its data", 77, got[0].data.u64);
	lower_at(REUSED);
	raise_at(TWICE);
	expect("twice", 2 - by_criu, epoll_wait(SET, got, 8, 0));
	lower_at(TWICE_TOO);
	/* Its own number still is what it was added under. */
	if (!by_criu)
		must(epoll_ctl(SET, EPOLL_CTL_DEL, TWICE_TOO, NULL));
	raise_at(TWICE);
	only_event("the other one", SET, TWICE, EPOLLIN);
	event.data.u64 = data_of(SPENT);
	must(epoll_ctl(SET, EPOLL_CTL_MOD, SPENT, &event));
	lower_at(TWICE);
	only_event("one that was spent, once it is told to", SET, SPENT, EPOLLIN);
	raise_at(WAITED);
	must0(pthread_join(waiter, NULL));
	expect("the waiting thread", 1, told_count);
	expect("what it was told", data_of(WAITED), told.data.u64);
	victim_end();
}
