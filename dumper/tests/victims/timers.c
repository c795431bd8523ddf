/*
 * Interval timers and POSIX timers: their clocks, ways of notification, remaining times, ticking ones that
 * must go on ticking, and one whose signal is pending with an overrun.
 */
#include "victim.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif
#define SECOND 1000000000ll

struct timer {
	const char *name;
	clockid_t clock;
	int notify, number;
	int64_t value_ns, interval_ns;
	bool absolute;
	timer_t id;
	int64_t set_at, due;
};

/* Long ones never fire in a test; their remaining time is what is checked. */
static struct timer timers[] = {
	{ .name = "realtime signal", .clock = CLOCK_REALTIME, .notify = SIGEV_SIGNAL, .number = 40, .value_ns = 1000 * SECOND },
	{ .name = "monotonic interval", .clock = CLOCK_MONOTONIC, .notify = SIGEV_SIGNAL, .number = 41, .value_ns = 2000 * SECOND, .interval_ns = 3000 * SECOND + 7 },
	{ .name = "boottime none", .clock = CLOCK_BOOTTIME, .notify = SIGEV_NONE, .value_ns = 1500 * SECOND, .interval_ns = 77 * SECOND },
	{ .name = "disarmed", .clock = CLOCK_MONOTONIC, .notify = SIGEV_SIGNAL, .number = 42 },
	{ .name = "process cpu", .clock = CLOCK_PROCESS_CPUTIME_ID, .notify = SIGEV_SIGNAL, .number = 43, .value_ns = 900 * SECOND, .interval_ns = 5 * SECOND },
	{ .name = "monotonic absolute", .clock = CLOCK_MONOTONIC, .notify = SIGEV_NONE, .value_ns = 1234 * SECOND, .absolute = true },
	{ .name = "to a thread", .clock = CLOCK_MONOTONIC, .notify = SIGEV_THREAD_ID, .number = 44, .value_ns = 20000000, .interval_ns = 20000000 },
	{ .name = "overrunning", .clock = CLOCK_MONOTONIC, .notify = SIGEV_SIGNAL, .number = 45, .value_ns = 10000000, .interval_ns = 10000000 },
	{ .name = "realtime tick", .clock = CLOCK_REALTIME, .notify = SIGEV_SIGNAL, .number = 46, .value_ns = 30000000, .interval_ns = 30000000 },
};
#define TIMERS (int)(sizeof timers / sizeof *timers)

static const struct {
	int which;
	const char *name;
	struct itimerval set;
} itimers[] = {
	{ ITIMER_REAL, "ITIMER_REAL", { { 700, 11 }, { 800, 0 } } },
	{ ITIMER_VIRTUAL, "ITIMER_VIRTUAL", { { 500, 222 }, { 600, 0 } } },
	{ ITIMER_PROF, "ITIMER_PROF", { { 300, 333 }, { 400, 0 } } },
};
static int64_t started_at;
static atomic_long ticks, tick_tid, tick_value;
static atomic_int stop;
static pid_t ticker_tid;
static atomic_int ticker_ready;

/* Takes the signals of the timer that is aimed at this thread, and looks who got them. */
static void *ticker(void *argument)
{
	(void)argument;
	sigset_t set;
	struct timespec wait = { 0, 50000000 };
	ticker_tid = thread_id();
	ticker_ready = 1;
	sigemptyset(&set);
	sigaddset(&set, 44);
	while (!stop) {
		siginfo_t info;
		if (sigtimedwait(&set, &info, &wait) == 44) {
			tick_tid = thread_id();
			tick_value = (intptr_t)info.si_value.sival_ptr;
			ticks++;
		}
	}
	return NULL;
}

static void start(struct timer *t, int index)
{
	struct sigevent event = { .sigev_notify = t->notify, .sigev_signo = t->number };
	event.sigev_value.sival_ptr = (void *)(0xbeef000l + index);
	if (t->notify == SIGEV_THREAD_ID)
		event.sigev_notify_thread_id = ticker_tid;
	must(timer_create(t->clock, &event, &t->id));
	t->set_at = now_ns(t->clock);
	int64_t first = t->value_ns + (t->absolute ? t->set_at : 0);
	struct itimerspec spec = { { t->interval_ns / SECOND, t->interval_ns % SECOND }, { first / SECOND, first % SECOND } };
	t->due = t->set_at + t->value_ns;
	must(timer_settime(t->id, t->absolute ? TIMER_ABSTIME : 0, &spec, NULL));
}

static void check_timer(struct timer *t, int64_t elapsed)
{
	struct itimerspec got = { 0 };
	char field[96];
	if (timer_gettime(t->id, &got)) {
		fail("timer \"%s\": %s", t->name, strerror(errno));
		return;
	}
	int64_t left = got.it_value.tv_sec * SECOND + got.it_value.tv_nsec;
	int64_t interval = got.it_interval.tv_sec * SECOND + got.it_interval.tv_nsec;
	snprintf(field, sizeof field, "timer \"%s\" interval", t->name);
	expect(field, t->interval_ns, interval);
	snprintf(field, sizeof field, "timer \"%s\" remaining", t->name);
	if (t->value_ns == 0)
		expect(field, 0, left);
	else if (t->value_ns < SECOND)
		expect_range(field, 1, t->interval_ns, left);
	else /* The time between dump and restore need not count; all time that passed may. */
		expect_range(field, t->value_ns - elapsed - SECOND, t->value_ns, left);
}

/* The next signal `number` says that the timer still has its value and its target. */
static void check_tick(int index)
{
	struct timer *t = &timers[index];
	sigset_t set;
	siginfo_t info;
	struct timespec wait = { 5, 0 };
	sigemptyset(&set);
	sigaddset(&set, t->number);
	for (int i = 0; i < 3; i++) {
		int got = sigtimedwait(&set, &info, &wait);
		expect(t->name, t->number, got);
		if (got != t->number)
			return;
		expect(t->name, 0xbeef000l + index, (uintptr_t)info.si_value.sival_ptr);
		expect("si_code", SI_TIMER & 0xffffffffu, info.si_code & 0xffffffffu);
	}
}

int main(void)
{
	sigset_t all;
	pthread_t thread;
	victim_start();
	sigfillset(&all);
	must(sigprocmask(SIG_BLOCK, &all, NULL));
	must0(pthread_create(&thread, NULL, ticker, NULL));
	while (!ticker_ready)
		nap_ms(1);
	/* A timer made and deleted leaves a gap in the ids. */
	timer_t gap;
	must(timer_create(CLOCK_MONOTONIC, NULL, &gap));
	started_at = now_ns(CLOCK_MONOTONIC);
	for (int i = 0; i < TIMERS; i++)
		start(&timers[i], i);
	must(timer_delete(gap));
	for (int i = 0; i < 3; i++)
		must(setitimer(itimers[i].which, &itimers[i].set, NULL));
	nap_ms(150);
	if (ticks == 0)
		broken("the ticker does not tick");

	victim_ready();
	victim_wait();

	/* CLOCK_REALTIME, which goes on while the process does not exist. */
	int64_t elapsed = now_ns(CLOCK_MONOTONIC) - started_at;
	for (int i = 0; i < 3; i++) {
		struct itimerval got;
		const struct itimerval *set = &itimers[i].set;
		must(getitimer(itimers[i].which, &got));
		expect(itimers[i].name, set->it_interval.tv_sec * 1000000ull + set->it_interval.tv_usec,
		       got.it_interval.tv_sec * 1000000ull + got.it_interval.tv_usec);
		int64_t full = set->it_value.tv_sec * 1000000ll;
		expect_range(itimers[i].name, full - elapsed / 1000 - 1000000, full + 100000,
			     got.it_value.tv_sec * 1000000ll + got.it_value.tv_usec);
	}
	for (int i = 0; i < TIMERS; i++)
		check_timer(&timers[i], elapsed);
	check_tick(7);
	check_tick(8);
	long before = ticks;
	tick_tid = 0;
	int64_t since = now_ns(CLOCK_MONOTONIC);
	/* A slow machine may take longer, and then it ticks more often. */
	for (int i = 0; i < 20 && (i == 0 || ticks - before < 3); i++)
		nap_ms(300);
	expect_range("ticks", 3, (now_ns(CLOCK_MONOTONIC) - since) / 20000000 + 2, ticks - before);
	expect("tick target", ticker_tid, tick_tid);
	expect("tick value", 0xbeef006, tick_value);
	stop = 1;
	must0(pthread_join(thread, NULL));
	/* The timers can be deleted, and new ids are free. */
	for (int i = 0; i < TIMERS; i++)
		expect_at("timer_delete", i, 0, timer_delete(timers[i].id));
	victim_end();
}
