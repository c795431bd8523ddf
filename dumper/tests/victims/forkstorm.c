/*
 * Forks as fast as it can: spreaders that each fork a child, which forks one in turn and ends, so that who is whose child
 * changes all the time; at most so many live at once. When it is asked the storm ends and every fork is accounted for.
 *
 * forkstorm [LIVE_MAX [YIELD_US]] (12, 0): the largest count of processes at once beside the root, in threes
 */
#include "tree.h"

#define SPREADERS_MAX 128

/* A child, and a grandchild that it waits for; both end at once. */
static void spread(uint64_t number)
{
	int status = -1;
	pid_t pid = fork();
	if (pid == 0) {
		pid_t inner = fork();
		if (inner == 0)
			_exit(number % 120 + 2);
		_exit(inner > 0 && waitpid(inner, &status, 0) == inner && status == (int)(number % 120 + 2) << 8 ? 77 : 1);
	}
	if (pid == -1 && errno == EAGAIN) {
		nap_ms(1);
		return;
	}
	if (pid == -1 || waitpid(pid, &status, 0) != pid || status != 77 << 8)
		fail("fork %" PRIu64 " wait status 0x%x", number, status);
}

static int spreader(void *argument)
{
	long pause_us = (intptr_t)argument;
	struct place place = place_of_self();
	int64_t until = now_ns(CLOCK_MONOTONIC) + LIFE_SECONDS * 1000000000ll;
	task_ready();
	for (uint64_t number = 0; !victim_asked(); number++) {
		spread(number);
		if (pause_us)
			usleep(pause_us);
		if (now_ns(CLOCK_MONOTONIC) > until)
			return 3;
	}
	expect_place(place);
	tree_expect_no_child();
	return 42;
}

int main(int argc, char **argv)
{
	int count = (argc > 1 ? atoi(argv[1]) : 12) / 3;
	intptr_t pause_us = argc > 2 ? atol(argv[2]) : 0;
	pid_t pids[SPREADERS_MAX];
	char name[16];
	tree_start();
	if (count < 1 || count > SPREADERS_MAX)
		broken("3 to %d processes", SPREADERS_MAX * 3);
	for (int i = 0; i < count; i++) {
		snprintf(name, sizeof name, "spreader-%d", i);
		pids[i] = tree_fork(name, spreader, (void *)pause_us);
	}
	tree_ready(count);
	victim_wait();
	for (int i = 0; i < count; i++)
		tree_expect_exit("spreader", pids[i], 42);
	tree_expect_no_child();
	victim_end();
}
