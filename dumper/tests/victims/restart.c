/*
 * Threads in calls that a stop interrupts, two of each kind, and a signal of its own for each: the first of a
 * kind handles it with SA_RESTART, the second without. The signals are open to one thread only, so that whoever sends one
 * to the process sends it to that thread.
 *
 * restart [strict] [signalled]
 *
 * Without `signalled` nobody sends any: each call must still wait when the victim is asked, and end in its own way.
 * With it, every signal was sent while the process was stopped: each handler must have run once, and each call must
 * have ended with EINTR or gone on as the kernel does it by itself (man 7 signal). `strict` also forbids EINTR
 * without a handler, which CRIU's restore gives to calls with a restart block.
 */
#include "victim.h"
#include <poll.h>
#include <sys/select.h>
#include <sys/syscall.h>

#define KINDS 15
#define THREADS (2 * KINDS)
/* 34 to 63; libc keeps 32 and 33. */
#define FIRST_SIGNAL 34
#define LONG_SECONDS 2000

enum after_handler { ENDS, GOES_ON, AS_ASKED };

struct waiter {
	pthread_t thread;
	int kind, index;
	pid_t tid;
	atomic_int entered, done, handled;
	int result, error, eintr;
	int fds[2];
	uint32_t word;
	/* Of the kinds that sleep: none may be shorter. */
	struct timespec rest;
	/* Where `splice` puts what it takes from the other. */
	int out[2];
};
static struct waiter waiters[THREADS];
static bool strict, signalled;

static const char *names[KINDS] = { "pause", "read", "nanosleep", "nanosleep with rest", "clock_nanosleep absolute", "futex",
	"futex with timeout", "poll", "select", "sigsuspend", "ppoll", "splice", "write", "futex pi", "futex_waitv" };
static const enum after_handler after[KINDS] = { ENDS, AS_ASKED, ENDS, ENDS, ENDS, AS_ASKED, ENDS, ENDS, ENDS, ENDS, ENDS,
	AS_ASKED, AS_ASKED, GOES_ON, AS_ASKED };
/* What the call answers when it is ended in its own way; sleeps and waits for a signal are ended by the signal. */
static const int answers[KINDS] = { [1] = 1, [7] = 1, [8] = 1, [10] = 1, [11] = 1, [12] = 1 };
static const bool by_signal_only[KINDS] = { [0] = true, [2] = true, [3] = true, [4] = true, [9] = true };

static void on_signal(int number)
{
	waiters[number - FIRST_SIGNAL].handled++;
}

static bool restarts(const struct waiter *w)
{
	return after[w->kind] == GOES_ON || (after[w->kind] == AS_ASKED && w->index % 2 == 0);
}

struct waitv {
	uint64_t val, uaddr;
	uint32_t flags, reserved;
};

static int block(struct waiter *w)
{
	struct timespec t = { LONG_SECONDS, 0 };
	struct pollfd ready = { w->fds[0], POLLIN, 0 };
	struct waitv one = { w->word, (uintptr_t)&w->word, 2 | 128, 0 };
	fd_set set;
	sigset_t others;
	char byte = 'x';
	switch (w->kind) {
	case 0:
		return pause();
	case 1:
		return read(w->fds[0], &byte, 1);
	case 2:
		return syscall(SYS_nanosleep, &t, NULL);
	case 3:
		return syscall(SYS_nanosleep, &t, &w->rest);
	case 4:
		t.tv_sec += now_ns(CLOCK_MONOTONIC) / 1000000000;
		return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
	case 5:
		return syscall(SYS_futex, &w->word, 128, w->word, NULL, NULL, 0);
	case 6:
		return syscall(SYS_futex, &w->word, 128, w->word, &t, NULL, 0);
	case 7:
		return syscall(SYS_poll, &ready, 1, LONG_SECONDS * 1000);
	case 8:
		FD_ZERO(&set);
		FD_SET(w->fds[0], &set);
		return syscall(SYS_select, w->fds[0] + 1, &set, NULL, NULL, &(struct timeval){ LONG_SECONDS, 0 });
	case 9:
	case 10:
		/* Blocked outside, and open in the call alone. */
		sigfillset(&others);
		sigdelset(&others, FIRST_SIGNAL + w->index);
		if (w->kind == 9)
			return sigsuspend(&others);
		return syscall(SYS_ppoll, &ready, 1, NULL, &others, 8);
	case 11:
		return splice(w->fds[0], NULL, w->out[1], NULL, 1, 0);
	case 12:
		return write(w->fds[1], &byte, 1);
	case 13:
		return syscall(SYS_futex, &w->word, 6 | 128, 0, NULL, NULL, 0);
	default:
		return syscall(449, &one, 1, 0, NULL, 0);
	}
}

static void *wait_for_it(void *argument)
{
	struct waiter *w = argument;
	sigset_t open;
	w->tid = thread_id();
	sigfillset(&open);
	if (w->kind != 9 && w->kind != 10)
		sigdelset(&open, FIRST_SIGNAL + w->index);
	must0(pthread_sigmask(SIG_SETMASK, &open, NULL));
	w->entered = 1;
	for (;;) {
		errno = 0;
		w->result = block(w);
		w->error = errno;
		if (w->result != -1 || w->error != EINTR)
			break;
		w->eintr++;
		/* The signal has ended it, or shall have. */
		if (w->handled || strict || w->eintr > 100)
			break;
	}
	w->done = 1;
	return NULL;
}

static void prepare(struct waiter *w)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = w->index % 2 ? 0 : SA_RESTART };
	must(sigaction(FIRST_SIGNAL + w->index, &action, NULL));
	must(pipe(w->fds));
	if (w->kind == 11)
		must(pipe(w->out));
	if (w->kind == 12) {
		char page[PAGE] = { 0 };
		must(fcntl(w->fds[1], F_SETPIPE_SZ, PAGE));
		must(fcntl(w->fds[1], F_SETFL, O_NONBLOCK));
		while (write(w->fds[1], page, sizeof page) > 0)
			;
		must(fcntl(w->fds[1], F_SETFL, 0));
	}
	/* Held by the leader, which gives it up at the check. */
	if (w->kind == 13)
		w->word = thread_id();
}

/* Ends a call in its own way: what the program itself would do. */
static void end(struct waiter *w)
{
	char page[PAGE];
	switch (w->kind) {
	case 1:
	case 7:
	case 8:
	case 10:
	case 11:
		must(write(w->fds[1], "x", 1));
		break;
	case 5:
	case 6:
	case 14:
		w->word++;
		must(syscall(SYS_futex, &w->word, 129, 1, NULL, NULL, 0));
		break;
	case 12:
		must(read(w->fds[0], page, sizeof page));
		break;
	case 13:
		must(syscall(SYS_futex, &w->word, 7 | 128, 0, NULL, NULL, 0));
		break;
	default:
		must(syscall(SYS_tgkill, victim_pid, w->tid, FIRST_SIGNAL + w->index));
	}
}

static bool ended_within(struct waiter *w, long ms)
{
	for (; !w->done && ms > 0; ms -= 5)
		nap_ms(5);
	return w->done;
}

static void expect_eintr(struct waiter *w)
{
	if (!ended_within(w, 5000))
		fail("%s[%d] still waits after its signal", names[w->kind], w->index);
	else if (w->result != -1 || w->error != EINTR)
		fail("%s[%d] ended with %d (%s) and not by its signal", names[w->kind], w->index, w->result, strerror(w->error));
	expect_at(names[w->kind], w->index, 1, w->handled);
}

/* After a restore the thread may be just before its call: the signal is sent until it has met the call. */
static void end_by_signal(struct waiter *w)
{
	for (int tries = 0; tries < 25 && !w->done; tries++) {
		end(w);
		ended_within(w, 200);
	}
	if (w->result != -1 || w->error != EINTR)
		fail("%s[%d] ended with %d (%s) and not by its signal", names[w->kind], w->index, w->result, strerror(w->error));
}

static void expect_own_end(struct waiter *w)
{
	expect_at("EINTR", w->index, strict ? 0 : w->eintr, w->eintr);
	if (w->done)
		fail("%s[%d] ended with %d (%s) before its time", names[w->kind], w->index, w->result, strerror(w->error));
	if (by_signal_only[w->kind]) {
		end_by_signal(w);
		return;
	}
	end(w);
	if (!ended_within(w, 5000))
		fail("%s[%d] does not end", names[w->kind], w->index);
	else
		expect_at(names[w->kind], w->index, answers[w->kind], w->result);
}

int main(int argc, char **argv)
{
	victim_start();
	for (int i = 1; i < argc; i++) {
		strict |= !strcmp(argv[i], "strict");
		signalled |= !strcmp(argv[i], "signalled");
	}
	sigset_t all;
	sigfillset(&all);
	must(sigprocmask(SIG_SETMASK, &all, NULL));
	for (int i = 0; i < THREADS; i++) {
		waiters[i].index = i;
		waiters[i].kind = i / 2;
		prepare(&waiters[i]);
	}
	for (int i = 0; i < THREADS; i++)
		must0(pthread_create(&waiters[i].thread, NULL, wait_for_it, &waiters[i]));
	for (int i = 0; i < THREADS; i++)
		while (!waiters[i].entered)
			nap_ms(1);
	nap_ms(50);
	victim_ready();
	victim_wait();

	for (int i = 0; i < THREADS; i++) {
		struct waiter *w = &waiters[i];
		if (signalled && !restarts(w)) {
			expect_eintr(w);
			continue;
		}
		if (signalled)
			expect_at("handled", i, 1, w->handled);
		expect_own_end(w);
	}
	victim_end();
}
