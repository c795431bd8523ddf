/*
 * Receivers of signals: their masks, and pending signals that are read through them.
 */
#include "victim.h"
#include <sys/signalfd.h>

enum { ONE = 10, TWO, DUPLICATE, NONE };

static void make(int fd, int flags, const int *signals)
{
	sigset_t set;
	sigemptyset(&set);
	for (; *signals; signals++)
		sigaddset(&set, *signals);
	int made = must(signalfd(-1, &set, flags));
	must(dup2(made, fd));
	close(made);
}

static void take(const char *field, int fd, int signal, int value)
{
	struct signalfd_siginfo info = { 0 };
	expect(field, sizeof info, read(fd, &info, sizeof info));
	expect(field, signal, info.ssi_signo);
	expect(field, value, info.ssi_int);
}

static void nothing(const char *field, int fd)
{
	struct signalfd_siginfo info;
	errno = 0;
	expect(field, -1, read(fd, &info, sizeof info));
	expect(field, EAGAIN, errno);
}

int main(void)
{
	sigset_t set;
	victim_start();
	int low = SIGRTMIN + 2, high = SIGRTMAX;
	sigemptyset(&set);
	for (int signal = 1; signal <= SIGRTMAX; signal++)
		if (signal == SIGUSR1 || signal == SIGUSR2 || signal == low || signal == high || signal == SIGHUP)
			sigaddset(&set, signal);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
	make(ONE, SFD_NONBLOCK, (int[]){ SIGHUP, SIGUSR1, high, 0 });
	make(TWO, SFD_NONBLOCK | SFD_CLOEXEC, (int[]){ SIGUSR2, low, 0 });
	must(fcntl(TWO, F_SETFD, FD_CLOEXEC));
	must(dup2(ONE, DUPLICATE));
	make(NONE, SFD_NONBLOCK, (int[]){ 0 });
	must(sigqueue(victim_pid, SIGUSR1, (union sigval){ .sival_int = 11 }));
	must(sigqueue(victim_pid, low, (union sigval){ .sival_int = 12 }));
	must(sigqueue(victim_pid, high, (union sigval){ .sival_int = 13 }));
	must(sigqueue(victim_pid, low, (union sigval){ .sival_int = 14 }));
	victim_ready();
	victim_wait();

	expect("nonblocking", O_NONBLOCK, fcntl(ONE, F_GETFL) & O_NONBLOCK);
	expect("close-on-exec", FD_CLOEXEC, fcntl(TWO, F_GETFD));
	take("SIGUSR1", ONE, SIGUSR1, 11);
	take("highest", DUPLICATE, high, 13);
	nothing("one is empty", ONE);
	take("first of two", TWO, low, 12);
	take("second of two", TWO, low, 14);
	nothing("two is empty", TWO);
	must(sigqueue(victim_pid, SIGHUP, (union sigval){ .sival_int = 15 }));
	nothing("SIGHUP is not for two", TWO);
	take("SIGHUP", ONE, SIGHUP, 15);
	/* A receiver of no signal takes one once it is told to. */
	must(sigqueue(victim_pid, SIGUSR2, (union sigval){ .sival_int = 16 }));
	nothing("none", NONE);
	must(signalfd(NONE, &set, 0));
	take("none with a new mask", NONE, SIGUSR2, 16);
	victim_end();
}
