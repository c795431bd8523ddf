/*
 * What victims of several processes share.
 *
 * The root is the victim of victim.h. Every other task is made by tree_fork with a name, sets itself up, says
 * task_ready, waits for "check" like the root, checks itself, and ends with the exit code that its parent expects of it,
 * or with 1 when a check failed. FAIL lines are written by the task that found the fault and begin with its name; the
 * parent adds one for each child that did not end as it shall. So the exit status is the report, the root reaps last,
 * and nothing but the log is shared by tasks unless a victim is about what is shared.
 *
 * READY is printed once every task has said that it is ready: each has inherited the writing end of one pipe, writes a
 * byte and closes it; the root reads to the end. Nothing of that pipe is left afterwards.
 */
#ifndef GODWIT_TREE_H
#define GODWIT_TREE_H
#include "victim.h"

/* How long one task waits for another before it is said to be lost. */
#define TREE_PATIENCE_MS 20000

static int tree_pipe[2] = { -1, -1 };

/* The root begins. `expected` of tree_ready counts the tasks that are forked from here on. */
static void tree_start(void)
{
	char here[PATH_MAX - 16];
	int fds[2];
	victim_start();
	if (!getcwd(here, sizeof here))
		broken("getcwd");
	snprintf(victim_check, sizeof victim_check, "%s/check", here);
	strcpy(victim_task, "root: ");
	must(pipe(fds));
	/* Out of the way of the numbers that victims choose. */
	tree_pipe[0] = must(fcntl(fds[0], F_DUPFD, 200));
	tree_pipe[1] = must(fcntl(fds[1], F_DUPFD, 201));
	close(fds[0]);
	close(fds[1]);
}

/* What a new task does first. */
static void task_begin(const char *name)
{
	snprintf(victim_task, sizeof victim_task, "%s: ", name);
	atomic_store(&victim_failures, 0);
	must(prctl(PR_SET_NAME, name));
	close(tree_pipe[0]);
}

/* How a task ends: with `code`, or with 1 when a check failed. */
__attribute__((unused)) __attribute__((noreturn)) static void task_end(int code)
{
	_exit(victim_failures ? 1 : code);
}

/* A child that runs `run(argument)` and ends with what it answers. */
__attribute__((unused)) static pid_t tree_fork(const char *name, int (*run)(void *), void *argument)
{
	pid_t pid = must(fork());
	if (pid == 0) {
		task_begin(name);
		task_end(run(argument));
	}
	return pid;
}

/* This task is set up. */
__attribute__((unused)) static void task_ready(void)
{
	if (victim_failures)
		broken("%schecks before READY", victim_task);
	if (write(tree_pipe[1], "r", 1) != 1)
		broken("%sready", victim_task);
	close(tree_pipe[1]);
}

/* Waits until `expected` tasks besides the root are ready, and no other holds the pipe. */
__attribute__((unused)) static void tree_all_set(int expected)
{
	char bytes[256];
	int ready = 0;
	ssize_t n;
	close(tree_pipe[1]);
	while ((n = read(tree_pipe[0], bytes, sizeof bytes)) != 0)
		if (n > 0)
			ready += n;
		else if (errno != EINTR)
			broken("reading who is ready");
	close(tree_pipe[0]);
	errno = 0;
	if (ready != expected)
		broken("%d tasks of %d are ready", ready, expected);
}

__attribute__((unused)) static void tree_ready(int expected)
{
	tree_all_set(expected);
	victim_ready();
}

/* Waits for a condition for as long as a task may take; false when it never came. */
#define tree_eventually(condition)                                                                           \
	({                                                                                                   \
		bool tree_held = false;                                                                      \
		for (int tree_ms = 0; tree_ms < TREE_PATIENCE_MS && !(tree_held = (condition)); tree_ms++)   \
			nap_ms(1);                                                                           \
		tree_held;                                                                                   \
	})

/* The wait status of a child, or -1 with a FAIL line when there is none. */
__attribute__((unused)) static int tree_reap(const char *who, pid_t pid)
{
	int status = -1;
	pid_t got = 0;
	if (!tree_eventually((got = waitpid(pid, &status, WNOHANG)) != 0)) {
		fail("%s (pid %d) did not end", who, pid);
		return -1;
	}
	if (got != pid) {
		fail("%s (pid %d) cannot be waited for: %s", who, pid, strerror(errno));
		return -1;
	}
	return status;
}

/* That a child ends with this exit code. */
__attribute__((unused)) static void tree_expect_exit(const char *who, pid_t pid, int code)
{
	int status = tree_reap(who, pid);
	if (status != -1 && status != code << 8)
		fail("%s wait status expected 0x%x got 0x%x", who, code << 8, status);
}

/* That there is no child, not even a dead one. */
__attribute__((unused)) static void tree_expect_no_child(void)
{
	siginfo_t info = { 0 };
	if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != -1)
		fail("children left, pid %d among them", info.si_pid);
	else
		expect("no child is left", ECHILD, errno);
}

/* A field of /proc/PID/stat by the number that proc(5) gives it, from 3 on; "" when there is none. */
__attribute__((unused)) static const char *stat_field(pid_t pid, int number)
{
	static __thread char value[64];
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	char *text = slurp(path), *at = strrchr(text, ')');
	value[0] = 0;
	for (int i = 2; at && i < number; i++)
		at = strchr(at + 1, ' ');
	if (at)
		snprintf(value, sizeof value, "%.*s", (int)strcspn(at + 1, " \n"), at + 1);
	free(text);
	return value;
}

/* R, S, D, T, Z and so on; 0 when there is no such process. */
__attribute__((unused)) static char state_of(pid_t pid)
{
	return stat_field(pid, 3)[0];
}

/* The name in /proc/PID/comm. */
__attribute__((unused)) static void name_of(pid_t pid, char name[32])
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/comm", pid);
	char *text = slurp(path);
	snprintf(name, 32, "%.*s", (int)strcspn(text, "\n"), text);
	free(text);
}

/* Who a task is among the others. */
struct place {
	pid_t pid, parent, group, session;
};

__attribute__((unused)) static struct place place_of_self(void)
{
	return (struct place){ getpid(), getppid(), getpgrp(), getsid(0) };
}

/* That a task is where it was. */
__attribute__((unused)) static void expect_place(struct place before)
{
	expect("pid", before.pid, getpid());
	expect("ppid", before.parent, getppid());
	expect("pgid", before.group, getpgrp());
	expect("sid", before.session, getsid(0));
}

/* The same, asked from outside: of a task that cannot say so itself. */
__attribute__((unused)) static void expect_place_of(const char *who, struct place before)
{
	char field[64];
	snprintf(field, sizeof field, "%s ppid", who);
	expect(field, before.parent, atoi(stat_field(before.pid, 4)));
	snprintf(field, sizeof field, "%s pgid", who);
	expect(field, before.group, getpgid(before.pid));
	snprintf(field, sizeof field, "%s sid", who);
	expect(field, before.session, getsid(before.pid));
}

/* A signal set of one. */
__attribute__((unused)) static sigset_t only(int signal)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signal);
	return set;
}

__attribute__((unused)) static void block(int signal)
{
	sigset_t set = only(signal);
	must0(pthread_sigmask(SIG_BLOCK, &set, NULL));
}

/* Takes one blocked signal, waiting `ms` for it; false when none came. */
__attribute__((unused)) static bool take_signal(int signal, siginfo_t *info, long ms)
{
	sigset_t set = only(signal);
	struct timespec limit;
	int64_t until = now_ns(CLOCK_MONOTONIC) + ms * 1000000ll, left;
	do {
		left = until - now_ns(CLOCK_MONOTONIC);
		if (left < 0)
			left = 0;
		limit = (struct timespec){ left / 1000000000, left % 1000000000 };
		if (sigtimedwait(&set, info, &limit) == signal)
			return true;
	} while (errno == EINTR && left > 0);
	return false;
}

/* That a blocked signal is not pending. */
__attribute__((unused)) static void expect_no_signal(const char *when, int signal)
{
	siginfo_t info;
	if (take_signal(signal, &info, 0))
		fail("signal %d came %s, code %d of pid %d status 0x%x", signal, when, info.si_code, info.si_pid,
		     info.si_status);
}

/* Memory that every task forked later shares. */
__attribute__((unused)) static void *tree_shared(size_t bytes)
{
	return must(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

__attribute__((unused)) static void fill_pages(char *at, long pages, uint64_t seed)
{
	for (long i = 0; i < pages; i++)
		fill_page(at + i * PAGE, seed + i);
}

__attribute__((unused)) static void expect_pages(const char *field, const char *at, long pages, uint64_t seed)
{
	for (long i = 0; i < pages; i++)
		expect_page(field, i, at + i * PAGE, seed + i);
}

/* A small regular file with a pattern, opened for reading and writing. */
__attribute__((unused)) static int pattern_file(const char *path, int bytes)
{
	int fd = must(open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
	for (int i = 0; i < bytes; i++) {
		char c = 'a' + i % 26;
		if (write(fd, &c, 1) != 1)
			broken("write");
	}
	must(lseek(fd, 0, SEEK_SET));
	return fd;
}

/* One and the same open file description in two tasks. */
__attribute__((unused)) static bool same_file(pid_t one, int fd, pid_t other, int other_fd)
{
	return syscall(SYS_kcmp, one, other, 0 /* KCMP_FILE */, fd, other_fd) == 0;
}
#endif
