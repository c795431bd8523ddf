/*
 * Orphans: the root is a child subreaper, and so is one of its children; what their children leave behind is theirs,
 * though. Afterwards the orphans are still whose they were, new orphans come to the same place, and their new parents get
 * their exit codes.
 *
 * reparented [daemon]: with a daemon, too, started in the usual way: its session's leader ended at once
 */
#include "tree.h"

#define LATE_CODE 77

/* Stays until it is asked. It says that it is ready when its parent is the one it shall have. */
static int orphan(void *adopter)
{
	pid_t expected = (intptr_t)adopter;
	if (!tree_eventually(getppid() == expected))
		broken("%sits parent is %d and not %d", victim_task, getppid(), expected);
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	return 50;
}

struct plan {
	const char *names[3];
	pid_t adopter;
	bool session;
};

/* Forks orphans, and ends. */
static int middle(void *argument)
{
	struct plan *plan = argument;
	if (plan->session)
		must(setsid());
	for (int i = 0; i < 3 && plan->names[i]; i++)
		tree_fork(plan->names[i], orphan, (void *)(intptr_t)plan->adopter);
	close(tree_pipe[1]);
	return 0;
}

/* The children of the calling process, as the kernel lists them. */
static int children(pid_t pids[], int room)
{
	char path[64], *save = NULL;
	int n = 0;
	snprintf(path, sizeof path, "/proc/self/task/%d/children", thread_id());
	char *text = slurp(path);
	for (char *word = strtok_r(text, " \n", &save); word && n < room; word = strtok_r(NULL, " \n", &save))
		pids[n++] = atoi(word);
	free(text);
	return n;
}

/* Leaves an orphan when it is asked, whose adopter must be told its code. */
static int leaves_late(void *unused)
{
	(void)unused;
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	pid_t pid = fork();
	if (pid == 0) {
		nap_ms(100);
		_exit(LATE_CODE);
	}
	return 51;
}

/* Waits for everybody: `codes` says how often each code must come. */
static void reap_all(const char *who, int orphans, int leavers, int own)
{
	int codes[256] = { 0 }, status;
	int64_t until = now_ns(CLOCK_MONOTONIC) + TREE_PATIENCE_MS * 1000000ll;
	while (now_ns(CLOCK_MONOTONIC) < until) {
		pid_t pid = waitpid(-1, &status, WNOHANG);
		if (pid == -1 && errno == ECHILD)
			break;
		if (pid > 0 && WIFEXITED(status))
			codes[WEXITSTATUS(status)]++;
		else if (pid > 0)
			fail("%s: child %d ended with status 0x%x", who, pid, status);
		else
			nap_ms(1);
	}
	expect("orphans that ended well", orphans, codes[50]);
	expect("late leavers", leavers, codes[51]);
	expect("late orphans", leavers, codes[LATE_CODE]);
	expect("subreapers", own, codes[52]);
	expect("tasks that found a fault", 0, codes[1]);
}


/* A subreaper below the root. */
static int adopts(void *unused)
{
	(void)unused;
	pid_t before[64];
	int flag = 0;
	must(prctl(PR_SET_CHILD_SUBREAPER, 1));
	struct plan plan = { { "inner-a", "inner-b", NULL }, getpid(), false };
	pid_t pid = tree_fork("inner-mid", middle, &plan);
	tree_expect_exit("inner-mid", pid, 0);
	tree_fork("inner-late", leaves_late, NULL);
	int count = children(before, 64);
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	must(prctl(PR_GET_CHILD_SUBREAPER, &flag));
	expect("subreaper", 1, flag);
	/* Those that were asked at the same moment may have ended, but are not taken. */
	pid_t now[64];
	int n = children(now, 64);
	expect_range("children", count, count + 1, n);
	reap_all("adopts", 2, 1, 0);
	return 52;
}

int main(int argc, char **argv)
{
	bool daemon = argc > 1 && !strcmp(argv[1], "daemon");
	pid_t before[64];
	int flag = 0, expected = 0, orphans = 0;
	tree_start();
	must(prctl(PR_SET_CHILD_SUBREAPER, 1));
	struct plan plans[] = {
		{ { "outer-a", "outer-b", "outer-c" }, getpid(), false },
		{ { "single", NULL, NULL }, getpid(), false },
		{ { "daemon", NULL, NULL }, getpid(), true },
	};
	for (int i = 0; i < (daemon ? 3 : 2); i++) {
		pid_t pid = tree_fork("middle", middle, &plans[i]);
		tree_expect_exit("middle", pid, 0);
	}
	orphans = daemon ? 5 : 4;
	tree_fork("late", leaves_late, NULL);
	tree_fork("adopts", adopts, NULL);
	expected = orphans + 1 + 1 + 2 + 1;
	tree_all_set(expected);
	int count = children(before, 64);
	expect("children", orphans + 2, count);
	victim_ready();
	/* It looks before the others are asked to end. */
	while (!victim_asked())
		nap_ms(1);

	must(prctl(PR_GET_CHILD_SUBREAPER, &flag));
	expect("subreaper", 1, flag);
	for (int i = 0; i < count; i++)
		expect_at("parent of child", i, getpid(), atoi(stat_field(before[i], 4)));
	reap_all("root", orphans, 1, 1);
	victim_end();
}
