/*
 * usage: places KIND, where KIND says what kind of stack the program sits on, for how long it is asked to.
 *   plain      nothing special
 *   coroutine  on a small piece of heap with other data right below, which is checked all the time
 *   full       in an address space that has no room for another page (RLIMIT_AS)
 *   seccomp    under a filter that kills for anything but a few calls
 *   bare       never installs a signal handler; linked without one it has no restorer
 *   threads    20 threads more, that come and go
 *   counter    takes 20000 queued signals that a child sends, each once and in order
 *   vfork      waits in the kernel for a child made by vfork, for 1.5 seconds
 * It prints READY, and ends with code 0 when its standard input is closed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifndef BARE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <ucontext.h>
#endif

static int asked(int ms)
{
	struct pollfd end = { 0, POLLIN | POLLHUP, 0 };
	return poll(&end, 1, ms) > 0;
}

/* Without buffers, which want more system calls than one. */
static void say(const char *text)
{
	if (write(1, text, strlen(text)) < 0)
		_exit(3);
}

static void serve(void)
{
	say("READY\n");
	while (!asked(1))
		;
}

#ifndef BARE
#define BELOW 16384
#define STACK 8192

static unsigned char *piece;
static ucontext_t home, away;

static void check_below(void)
{
	for (int i = 0; i < BELOW; i++)
		if (piece[i] != (unsigned char)(i * 7)) {
			dprintf(1, "FAIL byte %d below the stack\n", i);
			_exit(1);
		}
}

static void in_coroutine(void)
{
	say("READY\n");
	while (!asked(0))
		check_below();
	swapcontext(&away, &home);
}

static void coroutine(void)
{
	piece = malloc(BELOW + STACK);
	for (int i = 0; i < BELOW; i++)
		piece[i] = i * 7;
	getcontext(&away);
	/* Barely more than the calls need, so that a frame below the stack pointer would hit the data. */
	away.uc_stack.ss_sp = piece + BELOW;
	away.uc_stack.ss_size = STACK / 2;
	away.uc_link = &home;
	makecontext(&away, in_coroutine, 0);
	swapcontext(&home, &away);
	check_below();
}

static void full(void)
{
	char line[128];
	unsigned long pages = 0;
	FILE *statm = fopen("/proc/self/statm", "r");
	if (!statm || !fgets(line, sizeof line, statm))
		_exit(2);
	fclose(statm);
	pages = strtoul(line, NULL, 10);
	struct rlimit limit = { pages * 4096, pages * 4096 };
	if (setrlimit(RLIMIT_AS, &limit) || mmap(NULL, 65536, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
		_exit(2);
	serve();
}

#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void under_seccomp(void)
{
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), ALLOW(SYS_write), ALLOW(SYS_poll), ALLOW(SYS_restart_syscall),
		ALLOW(SYS_rt_sigreturn), ALLOW(SYS_exit_group), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog filter = { sizeof program / sizeof program[0], program };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
		_exit(2);
	serve();
}

static void *short_lived(void *unused)
{
	return unused;
}

static void *long_lived(void *unused)
{
	for (;;) {
		pthread_t thread;
		if (!pthread_create(&thread, NULL, short_lived, NULL))
			pthread_join(thread, NULL);
	}
	return unused;
}

static void threads(void)
{
	pthread_t thread;
	for (int i = 0; i < 20; i++)
		if (pthread_create(&thread, NULL, long_lived, NULL))
			_exit(2);
	serve();
}

#define SIGNALS 20000

static volatile int count;

static void on_signal(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	if (info->si_value.sival_int != count) {
		dprintf(1, "FAIL signal %d came as number %d\n", info->si_value.sival_int, count);
		_exit(1);
	}
	++count;
}

static void counter(void)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART };
	sigaction(SIGRTMIN, &action, NULL);
	pid_t parent = getpid();
	if (!fork()) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (int i = 0; i < SIGNALS; i++) {
			while (sigqueue(parent, SIGRTMIN, (union sigval){ .sival_int = i }))
				usleep(100);
			if (i % 16 == 0)
				usleep(50);
		}
		_exit(0);
	}
	say("READY\n");
	for (int i = 0; i < 10 * SIGNALS && count < SIGNALS; i++)
		poll(NULL, 0, 1);
	dprintf(1, "COUNT %d\n", count);
}

static void wait_for_vfork(void)
{
	say("READY\n");
	if (!vfork()) {
		struct timespec t = { 1, 500000000 };
		syscall(SYS_nanosleep, &t, NULL);
		_exit(0);
	}
}
#endif

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)argv;
#ifndef BARE
	if (!strcmp(argv[1], "coroutine"))
		coroutine();
	else if (!strcmp(argv[1], "full"))
		full();
	else if (!strcmp(argv[1], "seccomp"))
		under_seccomp();
	else if (!strcmp(argv[1], "threads"))
		threads();
	else if (!strcmp(argv[1], "vfork"))
		wait_for_vfork();
	else if (!strcmp(argv[1], "counter"))
		counter(), serve();
	else
#endif
		serve();
	say("END\n");
	_exit(0);
}
