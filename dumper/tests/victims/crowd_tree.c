/*
 * Very many idle processes, each with a value of its own, in generations of at most 32 siblings; with threads if asked.
 * They wait in read(2) of one pipe, whose writing end only the root has: they cost nothing until it is closed.
 *
 * crowd_tree [COUNT [THREADS]] (100, 0): threads a process beside its first
 */
#include "tree.h"

#define SIBLINGS 32
#define THREADS_MAX 16

static int gate[2], threads;
static __thread int number;

struct range {
	/* This task's number, and those of its descendants. */
	int first, count;
};

static void wait_for_gate(void)
{
	char byte;
	ssize_t n;
	while ((n = read(gate[0], &byte, 1)) == -1 && errno == EINTR)
		;
	if (n != 0)
		fail("the gate gave %zd %s", n, n < 0 ? strerror(errno) : "");
	if (!victim_asked())
		fail("it was let go before it was asked");
}

static void *idle(void *argument)
{
	pid_t tid = thread_id();
	number = (intptr_t)argument;
	wait_for_gate();
	expect("thread's number", (intptr_t)argument, number);
	expect("thread's id", tid, thread_id());
	return argument;
}

static int code_of(int task)
{
	return 2 + task % 250;
}

static int live(void *argument);

/* The next generation: the numbers of `range` in parts as equal as can be. */
static int fork_all(struct range range, pid_t pids[SIBLINGS], struct range parts[SIBLINGS])
{
	int n = range.count < SIBLINGS ? range.count : SIBLINGS;
	for (int i = 0; i < n; i++) {
		char name[16];
		int from = range.first + (long)range.count * i / n, to = range.first + (long)range.count * (i + 1) / n;
		parts[i] = (struct range){ from, to - from };
		snprintf(name, sizeof name, "task-%d", from);
		pids[i] = tree_fork(name, live, &parts[i]);
	}
	return n;
}

static void reap_all(int n, const pid_t pids[SIBLINGS], const struct range parts[SIBLINGS])
{
	char name[16];
	for (int i = 0; i < n; i++) {
		snprintf(name, sizeof name, "task-%d", parts[i].first);
		tree_expect_exit(name, pids[i], code_of(parts[i].first));
	}
	tree_expect_no_child();
}

static int live(void *argument)
{
	struct range own = *(struct range *)argument, parts[SIBLINGS];
	pid_t pids[SIBLINGS];
	pthread_t others[THREADS_MAX];
	pthread_attr_t attr;
	char name[32], wanted[32];
	close(gate[1]);
	number = own.first;
	int n = fork_all((struct range){ own.first + 1, own.count - 1 }, pids, parts);
	must0(pthread_attr_init(&attr));
	must0(pthread_attr_setstacksize(&attr, 65536));
	for (int i = 0; i < threads; i++)
		must0(pthread_create(&others[i], &attr, idle, (void *)(intptr_t)(own.first * 100 + i)));
	must(setpriority(PRIO_PROCESS, 0, own.first % 10));
	struct place place = place_of_self();
	task_ready();
	wait_for_gate();
	expect_place(place);
	expect("number", own.first, number);
	expect("nice", own.first % 10, getpriority(PRIO_PROCESS, 0));
	snprintf(wanted, sizeof wanted, "task-%d", own.first);
	name_of(getpid(), name);
	expect_string("name", wanted, name);
	for (int i = 0; i < threads; i++)
		must0(pthread_join(others[i], NULL));
	reap_all(n, pids, parts);
	return code_of(own.first);
}

int main(int argc, char **argv)
{
	struct range all = { 1, argc > 1 ? atoi(argv[1]) : 100 }, parts[SIBLINGS];
	pid_t pids[SIBLINGS];
	threads = argc > 2 ? atoi(argv[2]) : 0;
	tree_start();
	if (all.count < 1 || threads < 0 || threads > THREADS_MAX)
		broken("at least one process, at most %d threads", THREADS_MAX);
	must(pipe(gate));
	int n = fork_all(all, pids, parts);
	close(gate[0]);
	tree_ready(all.count);
	victim_wait();
	close(gate[1]);
	reap_all(n, pids, parts);
	victim_end();
}
