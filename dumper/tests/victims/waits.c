/*
 * 64 threads, each blocked in one kind of wait, four of each. At the check every wait is ended in its own
 * way, and each thread tells how its call returned. EINTR is accepted from the calls that the kernel
 * restarts through a restart block (a relative time; poll, which has one even without a time), and from
 * rt_sigtimedwait, which any stop by a tracer ends. It never is from the others; and with the argument `strict`
 * it is from rt_sigtimedwait with a time limit alone.
 */
#include "victim.h"
#include <poll.h>
#include <semaphore.h>
#include <sys/select.h>
#include <sys/syscall.h>

/* linux/futex.h, which a musl compiler does not find. */
#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
#define FUTEX_WAIT_PRIVATE 128
#define FUTEX_WAKE_PRIVATE 129

#define KINDS 16
#define EACH 4
#define THREADS (KINDS * EACH)
#define LONG_SECONDS 2000
/* What the two sleeps last: they end by themselves, before or after the check. */
#define SLEEP_MS 3000
/* Signals used to end waits, each blocked except where its waiter opens it. */
#define WAKE 50
#define TAKE 51

struct waiter {
	pthread_t thread;
	int kind, index;
	pid_t tid;
	atomic_int entered, done;
	int result, error, interrupts;
	int fds[2];
	int word;
	int64_t entered_at;
	sem_t semaphore;
	pthread_mutex_t mutex;
	pthread_cond_t condition;
};
static struct waiter waiters[THREADS];
static atomic_int asked, woken;
static sigset_t all_signals;

static const char *names[KINDS] = { "futex", "futex with timeout", "condition", "mutex", "semaphore with timeout",
	"nanosleep", "clock_nanosleep absolute", "ppoll", "poll", "select", "read", "write",
	"sigwait", "sigtimedwait", "pause", "sigsuspend" };
static bool may_interrupt[KINDS] = { [1] = true, [4] = true, [5] = true, [8] = true, [12] = true, [13] = true };

static void on_wake(int number)
{
	(void)number;
	woken++;
}

static struct timespec in_future(clockid_t clock, long ms)
{
	int64_t ns = now_ns(clock) + ms * 1000000ll;
	return (struct timespec){ ns / 1000000000, ns % 1000000000 };
}

/* One blocking call; 0 or the positive result, -1 with errno. */
static int block(struct waiter *w)
{
	struct timespec t = { LONG_SECONDS, 0 };
	struct pollfd ready = { w->fds[0], POLLIN, 0 };
	char byte = 'x';
	fd_set set;
	sigset_t signals;
	switch (w->kind) {
	case 0:
		return syscall(SYS_futex, &w->word, FUTEX_WAIT, 0, NULL, NULL, 0);
	case 1:
		return syscall(SYS_futex, &w->word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0);
	case 2:
		pthread_mutex_lock(&w->mutex);
		while (!w->word)
			pthread_cond_wait(&w->condition, &w->mutex);
		pthread_mutex_unlock(&w->mutex);
		return 0;
	case 3:
		errno = pthread_mutex_lock(&w->mutex);
		return errno ? -1 : 0;
	case 4:
		t = in_future(CLOCK_REALTIME, LONG_SECONDS * 1000l);
		return sem_timedwait(&w->semaphore, &t);
	case 5:
		t = (struct timespec){ SLEEP_MS / 1000, 0 };
		return syscall(SYS_nanosleep, &t, &t);
	case 6:
		t = in_future(CLOCK_MONOTONIC, SLEEP_MS);
		return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
	case 7:
		return syscall(SYS_ppoll, &ready, 1, NULL, NULL, 8);
	case 8:
		return syscall(SYS_poll, &ready, 1, w->index & 16 ? -1 : LONG_SECONDS * 1000);
	case 9:
		FD_ZERO(&set);
		FD_SET(w->fds[0], &set);
		return syscall(SYS_select, w->fds[0] + 1, &set, NULL, NULL, NULL);
	case 10:
		return read(w->fds[0], &byte, 1);
	case 11:
		return write(w->fds[1], &byte, 1);
	case 12:
	case 13:
		sigemptyset(&signals);
		sigaddset(&signals, TAKE);
		/* The raw call: libc's sigwait would hide an EINTR. */
		return syscall(SYS_rt_sigtimedwait, &signals, NULL, w->kind == 12 ? NULL : &t, 8);
	case 14:
		signals = all_signals;
		sigdelset(&signals, WAKE);
		pthread_sigmask(SIG_SETMASK, &signals, NULL);
		return pause();
	default:
		signals = all_signals;
		sigdelset(&signals, WAKE);
		return sigsuspend(&signals);
	}
}

static void *wait_for_it(void *argument)
{
	struct waiter *w = argument;
	w->tid = thread_id();
	w->entered_at = now_ns(CLOCK_MONOTONIC);
	w->entered = 1;
	do {
		errno = 0;
		w->result = block(w);
		w->error = errno;
		/* Kinds 14 and 15 always end with EINTR: after their handler ran. */
	} while (w->result == -1 && w->error == EINTR && may_interrupt[w->kind] && ++w->interrupts < 100);
	if (w->kind == 5 || w->kind == 6)
		expect_range(names[w->kind], SLEEP_MS - 10, SLEEP_MS + 60000,
			     (now_ns(CLOCK_MONOTONIC) - w->entered_at) / 1000000);
	else if (!asked)
		fail("%s %d returned %d (%s) before it was ended", names[w->kind], w->index, w->result, strerror(w->error));
	w->done = 1;
	return NULL;
}

static void prepare(struct waiter *w)
{
	must(pipe(w->fds));
	must0(pthread_mutex_init(&w->mutex, NULL));
	must0(pthread_cond_init(&w->condition, NULL));
	must(sem_init(&w->semaphore, 0, 0));
	if (w->kind == 3)
		must0(pthread_mutex_lock(&w->mutex));
	if (w->kind == 11) {
		char page[PAGE] = { 0 };
		must(fcntl(w->fds[1], F_SETPIPE_SZ, PAGE));
		must(fcntl(w->fds[1], F_SETFL, O_NONBLOCK));
		while (write(w->fds[1], page, sizeof page) > 0)
			;
		must(fcntl(w->fds[1], F_SETFL, 0));
	}
}

static void end_wait(struct waiter *w)
{
	char page[PAGE];
	switch (w->kind) {
	case 0:
		syscall(SYS_futex, &w->word, FUTEX_WAKE, 1, NULL, NULL, 0);
		break;
	case 1:
		syscall(SYS_futex, &w->word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
		break;
	case 2:
		pthread_mutex_lock(&w->mutex);
		w->word = 1;
		pthread_cond_signal(&w->condition);
		pthread_mutex_unlock(&w->mutex);
		break;
	case 3:
		pthread_mutex_unlock(&w->mutex);
		break;
	case 4:
		sem_post(&w->semaphore);
		break;
	case 7:
	case 8:
	case 9:
	case 10:
		if (write(w->fds[1], "y", 1) != 1)
			fail("%s %d: write", names[w->kind], w->index);
		break;
	case 11:
		if (read(w->fds[0], page, sizeof page) <= 0)
			fail("%s %d: read", names[w->kind], w->index);
		break;
	case 12:
	case 13:
		must(syscall(SYS_tgkill, victim_pid, w->tid, TAKE));
		break;
	case 14:
	case 15:
		must(syscall(SYS_tgkill, victim_pid, w->tid, WAKE));
		break;
	}
}

static void check_result(struct waiter *w)
{
	static const int expected[KINDS] = { [7] = 1, [8] = 1, [9] = 1, [10] = 1, [11] = 1, [12] = TAKE, [13] = TAKE, [14] = -1, [15] = -1 };
	if (w->result != expected[w->kind])
		fail("%s %d expected %d got %d (%s)", names[w->kind], w->index, expected[w->kind], w->result,
		     strerror(w->error));
	if (w->kind >= 14)
		expect_at("errno after handler", w->index, EINTR, w->error);
}

int main(int argc, char **argv)
{
	struct sigaction wake = { .sa_handler = on_wake };
	pthread_attr_t small;
	victim_start();
	if (argc > 1 && !strcmp(argv[1], "strict"))
		for (int kind = 0; kind < KINDS; kind++)
			may_interrupt[kind] &= kind == 13;
	sigfillset(&all_signals);
	must(sigprocmask(SIG_SETMASK, &all_signals, NULL));
	must(sigaction(WAKE, &wake, NULL));
	must0(pthread_attr_init(&small));
	must0(pthread_attr_setstacksize(&small, 65536));
	for (int i = 0; i < THREADS; i++) {
		waiters[i].kind = i % KINDS;
		waiters[i].index = i;
		prepare(&waiters[i]);
	}
	for (int i = 0; i < THREADS; i++) {
		must0(pthread_create(&waiters[i].thread, &small, wait_for_it, &waiters[i]));
		while (!waiters[i].entered)
			nap_ms(1);
	}
	nap_ms(100);
	victim_ready();
	victim_wait();

	asked = 1;
	int again = 0;
	for (int i = 0; i < THREADS; i++)
		end_wait(&waiters[i]);
	for (int i = 0; i < THREADS; i++) {
		struct waiter *w = &waiters[i];
		int ms = 0;
		while (!w->done && ms < 15000) {
			nap_ms(5);
			ms += 5;
			/* These leave no trace for a waiter that has just been let go and is about to wait again. */
			if (ms % 250 == 0 && (w->kind <= 1 || w->kind == 14)) {
				end_wait(w);
				again++;
			}
		}
		if (!w->done)
			fail("%s %d never returned", names[w->kind], i);
		else
			check_result(w);
	}
	/* On a slow machine the first signal may come just behind the second. */
	if (woken < 2 * EACH || woken > 2 * EACH + again)
		fail("handlers that ran: %d, not %d (and %d more at most)", woken, 2 * EACH, again);
	victim_end();
}
