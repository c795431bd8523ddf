/*
 * Timer descriptors: each clock, what is left of their time, intervals, ticks that were not read, absolute times, and a
 * thread that waits for one.
 *
 * timerfd [by-criu]: without what CRIU's own dump loses, a periodic timer with ticks that were not read.
 */
#include "victim.h"
#include <poll.h>
#include <sys/timerfd.h>

#define SECOND 1000000000ll
/* What a restore by CRIU alone may be off: of an absolute time it forgets the parts of a second. */
#define SLACK (3 * SECOND)

enum { FIRST = 10 };
enum { RELATIVE, REAL, BOOT, ABSOLUTE, ABSOLUTE_REAL, INTERVAL, TICKED, UNREAD, DISARMED, USED_UP, WAITED, COUNT };

static const struct {
	clockid_t clock;
	int flags, set_flags;
	int64_t value, interval;
} table[COUNT] = {
	[RELATIVE] = { CLOCK_MONOTONIC, 0, 0, 5000 * SECOND, 0 },
	[REAL] = { CLOCK_REALTIME, TFD_NONBLOCK, 0, 6000 * SECOND, 0 },
	[BOOT] = { CLOCK_BOOTTIME, TFD_NONBLOCK, 0, 7000 * SECOND + 500, 0 },
	[ABSOLUTE] = { CLOCK_MONOTONIC, TFD_NONBLOCK, TFD_TIMER_ABSTIME, 8000 * SECOND, 77 * SECOND },
	[ABSOLUTE_REAL] = { CLOCK_REALTIME, TFD_NONBLOCK, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, 9000 * SECOND, 0 },
	[INTERVAL] = { CLOCK_MONOTONIC, TFD_NONBLOCK, 0, 400 * SECOND, 123 * SECOND + 456 },
	[TICKED] = { CLOCK_MONOTONIC, TFD_NONBLOCK, 0, 1000, 1000 * SECOND },
	[UNREAD] = { CLOCK_REALTIME, TFD_NONBLOCK, 0, 1000, 0 },
	[DISARMED] = { CLOCK_BOOTTIME, TFD_NONBLOCK, 0, 0, 0 },
	[USED_UP] = { CLOCK_BOOTTIME, TFD_NONBLOCK, 0, 1000, 0 },
	[WAITED] = { CLOCK_MONOTONIC, 0, 0, 0, 0 },
};

static struct timespec of(int64_t ns)
{
	return (struct timespec){ ns / SECOND, ns % SECOND };
}

static int64_t ns_of(struct timespec t)
{
	return t.tv_sec * SECOND + t.tv_nsec;
}

static uint64_t waited;

static atomic_int waits;

static void *wait_for_it(void *unused)
{
	atomic_store(&waits, 1);
	if (read(FIRST + WAITED, &waited, sizeof waited) != sizeof waited)
		waited = -1;
	return unused;
}

/* When each was set. */
static int64_t since[COUNT];

static void set(int i)
{
	int fd = must(timerfd_create(table[i].clock, table[i].flags));
	must(dup2(fd, FIRST + i));
	close(fd);
	since[i] = now_ns(table[i].clock);
	int64_t begin = table[i].set_flags & TFD_TIMER_ABSTIME ? since[i] : 0;
	struct itimerspec value = { of(table[i].interval), of(table[i].value ? begin + table[i].value : 0) };
	must(timerfd_settime(FIRST + i, table[i].set_flags, &value, NULL));
}

int main(int argc, char **argv)
{
	pthread_t waiter;
	uint64_t ticks;
	bool by_criu = argc > 1 && !strcmp(argv[1], "by-criu");
	victim_start();
	for (int i = 0; i < COUNT; i++)
		set(i);
	if (by_criu) /* Read, it is armed for its interval. */
		must(read(FIRST + TICKED, &ticks, sizeof ticks));
	must(fcntl(FIRST + BOOT, F_SETFD, FD_CLOEXEC));
	nap_ms(20);
	must(read(FIRST + USED_UP, &ticks, sizeof ticks));
	must0(pthread_create(&waiter, NULL, wait_for_it, NULL));
	while (!atomic_load(&waits))
		nap_ms(1);
	victim_ready();
	victim_wait();

	expect("close-on-exec", FD_CLOEXEC, fcntl(FIRST + BOOT, F_GETFD));
	for (int i = 0; i < COUNT; i++) {
		struct itimerspec got;
		struct pollfd ready = { .fd = FIRST + i, .events = POLLIN };
		bool ended = (i == TICKED && !by_criu) || i == UNREAD;
		must(timerfd_gettime(FIRST + i, &got));
		expect_at("status flags", i, table[i].flags, fcntl(FIRST + i, F_GETFL) & O_NONBLOCK);
		expect_at("interval", i, table[i].interval, ns_of(got.it_interval));
		/* The clock of a restored process goes on where it stood, but for the time of day. */
		int64_t passed = now_ns(table[i].clock) - since[i];
		int64_t left = i == TICKED ? table[i].interval - passed : table[i].value - passed;
		int64_t lost = table[i].clock == CLOCK_REALTIME ? 120 * SECOND : SLACK;
		bool armed = table[i].value && i != UNREAD && i != USED_UP;
		if (armed)
			expect_range("left", left - SLACK, left + lost, ns_of(got.it_value));
		else
			expect_at("not armed", i, 0, ns_of(got.it_value));
		must(poll(&ready, 1, 0));
		expect_at("ended", i, ended ? POLLIN : 0, ready.revents);
		if (ended) {
			expect_at("read", i, sizeof ticks, read(FIRST + i, &ticks, sizeof ticks));
			expect_at("ticks", i, 1, ticks);
		}
	}
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", FIRST + ABSOLUTE_REAL);
	char *text = slurp(path);
	expect("settime flags", true, strstr(text, "\nsettime flags: 03\n") != NULL);
	free(text);
	/* Each is still a timer of its clock. */
	for (int i = 0; i < COUNT; i++) {
		struct itimerspec soon = { { 0, 0 }, of(now_ns(table[i].clock) + 5000000) };
		struct pollfd ready = { .fd = FIRST + i, .events = POLLIN };
		must(timerfd_settime(FIRST + i, TFD_TIMER_ABSTIME, &soon, NULL));
		if (i == WAITED)
			continue;
		expect_at("ends by its own clock", i, 1, poll(&ready, 1, 3000));
	}
	must0(pthread_join(waiter, NULL));
	expect("the waiting thread", 1, waited);
	victim_end();
}
