/*
 * One setting that a restore drops, or one thing that no image holds.
 *
 * unkept SETTING: prints UNSUPPORTED where this kernel does not have it, or where it may not be set here.
 */
#include "filter.h"
#include <asm/prctl.h>
#include <linux/audit.h>
#include <sys/personality.h>

static void unsupported(void)
{
	say("UNSUPPORTED %s", strerror(errno));
	victim_ready();
	victim_wait();
	say("OK");
	_exit(0);
}
#define want(call)                                                                                           \
	do {                                                                                                 \
		if ((long)(call) == -1)                                                                      \
			unsupported();                                                                       \
	} while (0)

static void write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		unsupported();
	close(fd);
}

struct attributes {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t util_min, util_max;
};

static volatile int leave;
static void *sleep_long(void *argument)
{
	while (!leave)
		nap_ms(10);
	return argument;
}

static pid_t second;
static void *note(void *argument)
{
	second = thread_id();
	return argument ? sleep_long(argument) : NULL;
}

static pid_t make_thread(bool lives)
{
	pthread_t thread;
	must0(pthread_create(&thread, NULL, note, lives ? &second : NULL));
	if (!lives)
		must0(pthread_join(thread, NULL));
	while (!*(volatile pid_t *)&second)
		nap_ms(1);
	return second;
}

static int sleeper(void *argument)
{
	sleep_long(argument);
	return 0;
}

static char selector;

/* A process beside this one, of the same parent, with something of it. */
static void share(unsigned long flags)
{
	static char stack[65536];
	pid_t child = clone(sleeper, stack + sizeof stack, (int)(flags | CLONE_PARENT), NULL);
	must(child);
	say("SHARES %d", child);
}

static void own_by(int kind, pid_t pid)
{
	struct f_owner_ex owner = { kind, pid };
	int fd = must(open("owned", O_RDWR | O_CREAT, 0600));
	must(fcntl(fd, F_SETOWN_EX, &owner));
}

/* A group whose leader has ended and whose other member lives. */
static pid_t orphaned_group(void)
{
	int words[2];
	must(pipe2(words, O_CLOEXEC));
	pid_t leader = must(fork());
	if (!leader) {
		setpgid(0, 0);
		pid_t member = fork();
		if (!member) {
			close(words[0]);
			close(words[1]);
			sleep_long(NULL);
		}
		if (write(words[1], &member, sizeof member) != sizeof member)
			_exit(1);
		_exit(0);
	}
	pid_t member = 0;
	if (read(words[0], &member, sizeof member) != sizeof member)
		broken("member");
	must(waitpid(leader, NULL, 0));
	close(words[0]);
	close(words[1]);
	say("SHARES %d", member);
	return leader;
}

/* A pipe whose reader's signals tell the descriptor's number. */
#define ASYNC_READ 40
#define ASYNC_WRITE 41

static void set_async(void)
{
	int fds[2];
	sigset_t wanted;
	must(pipe(fds));
	must(dup2(fds[0], ASYNC_READ));
	must(dup2(fds[1], ASYNC_WRITE));
	close(fds[0]);
	close(fds[1]);
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGRTMIN + 3);
	must(sigprocmask(SIG_BLOCK, &wanted, NULL));
	must(fcntl(ASYNC_READ, F_SETOWN, getpid()));
	must(fcntl(ASYNC_READ, F_SETSIG, SIGRTMIN + 3));
	must(fcntl(ASYNC_READ, F_SETFL, O_ASYNC));
}

static bool async_tells_number(void)
{
	struct timespec limit = { 5, 0 };
	siginfo_t info;
	sigset_t wanted;
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGRTMIN + 3);
	if (write(ASYNC_WRITE, "x", 1) != 1 || sigtimedwait(&wanted, &info, &limit) == -1)
		broken("no signal of the pipe");
	return info.si_fd == ASYNC_READ;
}

static void set(const char *name)
{
	struct attributes attributes = { .size = sizeof attributes };
	cpu_set_t one;
	if (!strcmp(name, "nothing"))
		return;
	if (!strcmp(name, "ioprio"))
		want(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 7));
	else if (!strcmp(name, "async"))
		set_async();
	else if (!strcmp(name, "affinity")) {
		CPU_ZERO(&one);
		CPU_SET(1, &one);
		want(sched_setaffinity(0, sizeof one, &one));
	} else if (!strcmp(name, "slack"))
		want(prctl(PR_SET_TIMERSLACK, 12345));
	else if (!strcmp(name, "clamp")) {
		attributes.flags = 0x60; /* SCHED_FLAG_UTIL_CLAMP */
		attributes.util_min = 100, attributes.util_max = 500;
		want(syscall(SYS_sched_setattr, 0, &attributes, 0));
	} else if (!strcmp(name, "deadline")) {
		attributes.policy = 6;
		attributes.runtime = 1000000, attributes.deadline = attributes.period = 100000000;
		want(syscall(SYS_sched_setattr, 0, &attributes, 0));
	} else if (!strcmp(name, "core"))
		want(prctl(62, 1, 0, 0, 0)); /* PR_SCHED_CORE, PR_SCHED_CORE_CREATE */
	else if (!strcmp(name, "speculation"))
		want(prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0));
	else if (!strcmp(name, "coredump"))
		write_to("/proc/self/coredump_filter", "0x7");
	else if (!strcmp(name, "autogroup"))
		write_to("/proc/self/autogroup", "5");
	else if (!strcmp(name, "flusher"))
		want(prctl(57, 1, 0, 0, 0)); /* PR_SET_IO_FLUSHER */
	else if (!strcmp(name, "mce"))
		want(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
	else if (!strcmp(name, "tsc"))
		want(prctl(PR_SET_TSC, PR_TSC_SIGSEGV));
	else if (!strcmp(name, "cpuid"))
		want(syscall(SYS_arch_prctl, 0x1012, 0)); /* ARCH_SET_CPUID */
	else if (!strcmp(name, "mdwe"))
		want(prctl(65, 1, 0, 0, 0)); /* PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN */
	else if (!strcmp(name, "merge"))
		want(prctl(67, 1, 0, 0, 0)); /* PR_SET_MEMORY_MERGE */
	else if (!strcmp(name, "thp"))
		want(prctl(PR_SET_THP_DISABLE, 1, 2, 0, 0)); /* PR_THP_DISABLE_EXCEPT_ADVISED */
	else if (!strcmp(name, "policy")) {
		unsigned long nodes = 1;
		want(syscall(SYS_set_mempolicy, 2, &nodes, 8)); /* MPOL_BIND */
	} else if (!strcmp(name, "keyring"))
		want(syscall(SYS_add_key, "keyring", "godwit", NULL, 0, -1)); /* KEY_SPEC_THREAD_KEYRING */
	else if (!strcmp(name, "death-signal"))
		want(prctl(PR_SET_PDEATHSIG, SIGURG));
	else if (!strcmp(name, "personality"))
		want(personality(ADDR_NO_RANDOMIZE));
	else if (!strcmp(name, "tsync")) {
		must_filter(TRIED, ERRNO(1), 0);
		make_thread(true);
		must_filter(TRIED, ERRNO(2), 0);
		second = 0;
		make_thread(true);
		must_filter(TRIED, ERRNO(3), 0);
	} else if (!strcmp(name, "strict")) {
		say("READY %d", victim_pid);
		must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
		for (char byte; read(0, &byte, 1) == 1;)
			;
		while (true)
			;
	} else if (!strcmp(name, "dispatch"))
		/* From the C library's text on; the selector lets all pass that comes from elsewhere. */
		want(prctl(59, 1, 0, 0, &selector)); /* PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON */
	else if (!strcmp(name, "notify")) {
		struct rule rule = { TRIED, SECCOMP_RET_USER_NOTIF };
		close(must(add_filter(&rule, 1, SECCOMP_RET_ALLOW, SECCOMP_FILTER_FLAG_NEW_LISTENER)));
	} else if (!strcmp(name, "timer")) {
		timer_t timer;
		struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1 };
		pthread_t thread;
		must0(pthread_create(&thread, NULL, note, &second));
		while (!*(volatile pid_t *)&second)
			nap_ms(1);
		event._sigev_un._tid = second;
		must(timer_create(CLOCK_MONOTONIC, &event, &timer));
		leave = 1;
		must0(pthread_join(thread, NULL));
	} else if (!strcmp(name, "owner-thread"))
		own_by(F_OWNER_TID, make_thread(true));
	else if (!strcmp(name, "owner-group"))
		own_by(F_OWNER_PGRP, orphaned_group());
	else if (!strcmp(name, "owner-process"))
		own_by(F_OWNER_PID, getppid());
	else if (!strcmp(name, "share-vm"))
		share(CLONE_VM);
	else if (!strcmp(name, "share-files"))
		share(CLONE_FILES);
	else if (!strcmp(name, "share-fs"))
		share(CLONE_FS);
	else if (!strcmp(name, "share-sighand"))
		share(CLONE_VM | CLONE_SIGHAND);
	else
		broken("no such setting: %s", name);
}

/* Whether the setting is as it was set. */
static bool still(const char *name)
{
	unsigned value = 0;
	if (!strcmp(name, "ioprio"))
		return syscall(SYS_ioprio_get, 1, 0) == (2 << 13 | 7);
	if (!strcmp(name, "async"))
		return async_tells_number();
	if (!strcmp(name, "affinity")) {
		cpu_set_t now;
		return sched_getaffinity(0, sizeof now, &now) == 0 && CPU_COUNT(&now) == 1;
	}
	if (!strcmp(name, "slack"))
		return prctl(PR_GET_TIMERSLACK) == 12345;
	if (!strcmp(name, "clamp")) {
		struct attributes attributes;
		return syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) == 0 && attributes.util_min == 100;
	}
	if (!strcmp(name, "speculation"))
		return prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0) & PR_SPEC_DISABLE;
	if (!strcmp(name, "coredump"))
		return strtoul(slurp("/proc/self/coredump_filter"), NULL, 16) == 7;
	if (!strcmp(name, "autogroup"))
		return strstr(slurp("/proc/self/autogroup"), "nice 5") != NULL;
	if (!strcmp(name, "flusher"))
		return prctl(58, 0, 0, 0, 0) == 1;
	if (!strcmp(name, "mce"))
		return prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY;
	if (!strcmp(name, "tsc"))
		return prctl(PR_GET_TSC, &value) == 0 && value == PR_TSC_SIGSEGV;
	if (!strcmp(name, "cpuid"))
		return syscall(SYS_arch_prctl, 0x1011, 0) == 0;
	if (!strcmp(name, "mdwe"))
		return prctl(66, 0, 0, 0, 0) == 1;
	if (!strcmp(name, "merge"))
		return prctl(68, 0, 0, 0, 0) == 1;
	if (!strcmp(name, "thp"))
		return prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 3;
	if (!strcmp(name, "policy"))
		return syscall(SYS_get_mempolicy, &value, NULL, 0, NULL, 0) == 0 && value == 2;
	if (!strcmp(name, "keyring"))
		return syscall(SYS_keyctl, 0, -1, 0) > 0;
	if (!strcmp(name, "personality"))
		return personality(0xffffffff) == ADDR_NO_RANDOMIZE;
	if (!strcmp(name, "tsync"))
		return add_filter(&(struct rule){ TRIED, ERRNO(4) }, 1, SECCOMP_RET_ALLOW, SECCOMP_FILTER_FLAG_TSYNC) == 0;
	/* The others are not looked at. */
	return true;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "nothing";
	victim_start();
	set(name);
	victim_ready();
	victim_wait();
	say("%s", still(name) ? "KEPT" : "DROPPED");
	say("OK");
	_exit(0);
}
