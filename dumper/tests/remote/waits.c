/*
 * usage: waits KIND: waits once, for WAIT_MS, and says how that ended: "DONE result errno milliseconds".
 * A wait without a limit of its own is ended from outside by a child, after WAIT_MS.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WAIT_MS 400

static int ends[2], word;
static pid_t ender;

static struct timespec after(clockid_t clock, int ms)
{
	struct timespec t;
	clock_gettime(clock, &t);
	int64_t ns = t.tv_sec * 1000000000ll + t.tv_nsec + ms * 1000000ll;
	return (struct timespec){ ns / 1000000000, ns % 1000000000 };
}

static int64_t now_ms(void)
{
	struct timespec t = after(CLOCK_MONOTONIC, 0);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void handler(int number)
{
	(void)number;
}

/* A child that ends the wait: by a byte in the pipe, by a signal (then signal is not 0), or by a semaphore. */
static void end_later(int signal, int semaphore)
{
	pid_t parent = getpid();
	ender = fork();
	if (ender)
		return;
	usleep(WAIT_MS * 1000);
	if (signal)
		kill(parent, signal);
	else if (semaphore >= 0)
		semop(semaphore, &(struct sembuf){ 0, 1, 0 }, 1);
	else if (write(ends[1], "x", 1) != 1)
		_exit(1);
	_exit(0);
}

static long wait_once(const char *kind)
{
	struct timespec rest = { WAIT_MS / 1000, WAIT_MS % 1000 * 1000000 }, until;
	struct pollfd none = { ends[0], POLLIN, 0 };
	struct epoll_event event = { .events = EPOLLIN };
	char byte;
	sigset_t set;

	if (!strcmp(kind, "nanosleep"))
		return syscall(SYS_nanosleep, &rest, NULL);
	if (!strcmp(kind, "sleep-rest"))
		return syscall(SYS_nanosleep, &rest, &rest);
	if (!strcmp(kind, "clock_nanosleep"))
		return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &rest, NULL);
	if (!strcmp(kind, "clock_nanosleep-absolute")) {
		until = after(CLOCK_MONOTONIC, WAIT_MS);
		return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
	}
	if (!strcmp(kind, "poll"))
		return syscall(SYS_poll, &none, 1, WAIT_MS);
	if (!strcmp(kind, "ppoll"))
		return ppoll(&none, 1, &rest, NULL);
	if (!strcmp(kind, "select")) {
		struct timeval limit = { WAIT_MS / 1000, WAIT_MS % 1000 * 1000 };
		return select(0, NULL, NULL, NULL, &limit);
	}
	if (!strcmp(kind, "futex"))
		return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &rest, NULL, 0);
	if (!strcmp(kind, "futex-absolute")) {
		until = after(CLOCK_MONOTONIC, WAIT_MS);
		return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &until, NULL, FUTEX_BITSET_MATCH_ANY);
	}
	if (!strcmp(kind, "read")) {
		end_later(0, -1);
		return read(ends[0], &byte, 1);
	}
	if (!strcmp(kind, "epoll-endless")) {
		int epoll = epoll_create1(0);
		epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event);
		end_later(0, -1);
		return epoll_wait(epoll, &event, 1, -1);
	}
	if (!strcmp(kind, "epoll-signal")) {
		/* It must still end with EINTR when a handler runs. */
		int epoll = epoll_create1(0);
		signal(SIGUSR1, handler);
		end_later(SIGUSR1, -1);
		return epoll_wait(epoll, &event, 1, -1);
	}
	if (!strcmp(kind, "epoll-limited"))
		return epoll_wait(epoll_create1(0), &event, 1, WAIT_MS);
	if (!strcmp(kind, "sigwait-endless")) {
		sigemptyset(&set);
		sigaddset(&set, SIGUSR1);
		sigprocmask(SIG_BLOCK, &set, NULL);
		end_later(SIGUSR1, -1);
		return syscall(SYS_rt_sigtimedwait, &set, NULL, NULL, 8) == SIGUSR1 ? 0 : -1;
	}
	if (!strcmp(kind, "semop")) {
		int semaphore = semget(IPC_PRIVATE, 1, 0600);
		end_later(0, semaphore);
		long result = semop(semaphore, &(struct sembuf){ 0, -1, 0 }, 1);
		int error = errno;
		semctl(semaphore, 0, IPC_RMID);
		errno = error;
		return result;
	}
	if (!strcmp(kind, "pause")) {
		signal(SIGUSR1, handler);
		end_later(SIGUSR1, -1);
		return pause();
	}
	if (!strcmp(kind, "sigsuspend")) {
		sigemptyset(&set);
		sigaddset(&set, SIGUSR1);
		sigprocmask(SIG_BLOCK, &set, NULL);
		signal(SIGUSR1, handler);
		end_later(SIGUSR1, -1);
		sigemptyset(&set);
		return sigsuspend(&set);
	}
	if (!strcmp(kind, "wait")) {
		end_later(0, -1);
		return waitpid(ender, NULL, 0) == ender ? 0 : -1;
	}
	_exit(2);
}

int main(int argc, char **argv)
{
	if (argc != 2 || pipe(ends))
		return 2;
	dprintf(1, "READY\n");
	int64_t begun = now_ms();
	errno = 0;
	long result = wait_once(argv[1]);
	int error = errno;
	dprintf(1, "DONE %ld %d %lld\n", result, result < 0 ? error : 0, (long long)(now_ms() - begun));
	if (ender)
		kill(ender, SIGKILL);
	return 0;
}
