/*
 * Trees that CRIU cannot restore, each with what is shared: for refusals by name. Each passes when nobody touches it.
 *
 * sharevm vm       a child with its parent's memory (CLONE_VM without CLONE_THREAD)
 * sharevm fs       a child with its parent's directory and umask (CLONE_FS)
 * sharevm sighand  a child with its parent's memory and signal actions
 * sharevm vfork    a parent that waits in vfork for a child that sleeps
 * sharevm init     a child that is pid 1 of a pid namespace of its own; INNER and its pid are printed before READY
 */
#include "tree.h"

static char stack[65536] __attribute__((aligned(64)));
/* Written by the child; seen by the parent where they share memory. */
static atomic_int seen;

static int sleeper(void *unused)
{
	(void)unused;
	seen = 1;
	/* No libc: one that shares the parent's memory has the parent's thread-local storage. */
	for (int turn = 0; turn < LIFE_SECONDS * 100 && syscall(SYS_access, victim_check, F_OK) == -1; turn++) {
		struct timespec t = { 0, 10000000 };
		syscall(SYS_nanosleep, &t, NULL);
	}
	syscall(SYS_exit, 60);
	return 0;
}

static int changes_umask(void *unused)
{
	umask(0123);
	return sleeper(unused);
}

static void expect_code(pid_t pid, int code)
{
	tree_expect_exit("child", pid, code);
	tree_expect_no_child();
	victim_end();
}

static void start(int (*run)(void *), int flags, bool memory)
{
	pid_t pid = must(clone(run, stack + sizeof stack, flags | SIGCHLD, NULL));
	if (memory && !tree_eventually(seen))
		broken("the child shares no memory");
	nap_ms(30);
	victim_ready();
	victim_wait();
	if (flags & CLONE_FS)
		expect("umask that the child set", 0123, umask(0));
	expect_code(pid, 60);
}

static void *vforks(void *unused)
{
	(void)unused;
	pid_t pid = vfork();
	if (pid == 0)
		sleeper(NULL);
	tree_expect_exit("child", pid, 60);
	return NULL;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	tree_start();
	close(tree_pipe[0]);
	close(tree_pipe[1]);
	if (!strcmp(mode, "vm"))
		start(sleeper, CLONE_VM, true);
	if (!strcmp(mode, "fs"))
		start(changes_umask, CLONE_FS, false);
	if (!strcmp(mode, "sighand"))
		start(sleeper, CLONE_VM | CLONE_SIGHAND, true);
	if (!strcmp(mode, "vfork")) {
		pthread_t thread;
		must0(pthread_create(&thread, NULL, vforks, NULL));
		if (!tree_eventually(seen))
			broken("the child does not run");
		victim_ready();
		victim_wait();
		must0(pthread_join(thread, NULL));
		tree_expect_no_child();
		victim_end();
	}
	if (!strcmp(mode, "init")) {
		pid_t pid = must(syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0));
		if (pid == 0) {
			if (getpid() != 1)
				_exit(1);
			victim_wait();
			_exit(getpid() == 1 ? 61 : 1);
		}
		say("INNER %d", pid);
		victim_ready();
		victim_wait();
		expect_code(pid, 61);
	}
	broken("sharevm vm|fs|sighand|vfork|init");
}
