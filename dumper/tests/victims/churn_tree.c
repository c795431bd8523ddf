/*
 * Children that come and go all the time, and leave grandchildren that do: when it is asked, every one that was ever
 * forked has ended once with the code it was to end with.
 *
 * churn_tree [A_SECOND [LIVE_MAX]] (200, 16)
 */
#include "tree.h"

#define LIVE_MAX 256

static struct {
	pid_t pid;
	int code;
} live[LIVE_MAX];
static int live_count;
static uint64_t forked, reaped;

static int code_of(uint64_t number)
{
	/* Below 128: a restore keeps seven bits of a zombie's code. */
	return 2 + mix(number) % 120;
}

/* One in four has a child of its own, whose end it waits for. */
static __attribute__((noreturn)) void short_life(uint64_t number)
{
	uint64_t random = mix(number ^ 0xc4c4);
	int status = 0;
	if (random % 4 == 0) {
		pid_t pid = fork();
		if (pid == 0) {
			nap_ms(random >> 8 & 7);
			_exit(code_of(number + 1));
		}
		if (pid == -1 || waitpid(pid, &status, 0) != pid || status != code_of(number + 1) << 8) {
			say("FAIL child %" PRIu64 ": its child %d ended with 0x%x", number, pid, status);
			_exit(1);
		}
	}
	nap_ms(random >> 16 & 31);
	_exit(code_of(number));
}

static void reap(int flags)
{
	int status;
	pid_t pid;
	while (live_count && (pid = waitpid(-1, &status, flags)) > 0) {
		int at = 0;
		while (at < live_count && live[at].pid != pid)
			at++;
		if (at == live_count) {
			fail("pid %d ended, which is no child, or ended before", pid);
			continue;
		}
		if (status != live[at].code << 8)
			fail("pid %d wait status expected 0x%x got 0x%x", pid, live[at].code << 8, status);
		live[at] = live[--live_count];
		reaped++;
	}
}

int main(int argc, char **argv)
{
	long rate = argc > 1 ? atol(argv[1]) : 200;
	int most = argc > 2 ? atoi(argv[2]) : 16;
	tree_start();
	close(tree_pipe[0]);
	close(tree_pipe[1]);
	if (most < 1 || most > LIVE_MAX || rate < 1)
		broken("1 to %d children", LIVE_MAX);
	int64_t begun = now_ns(CLOCK_MONOTONIC);
	bool ready = false;
	while (!victim_asked()) {
		int64_t now = now_ns(CLOCK_MONOTONIC);
		if (now - begun > LIFE_SECONDS * 1000000000ll)
			return 3;
		while (live_count < most && (now - begun) / 1000000 * rate / 1000 > (int64_t)forked) {
			pid_t pid = must(fork());
			if (pid == 0)
				short_life(forked);
			live[live_count].pid = pid;
			live[live_count++].code = code_of(forked++);
		}
		/* What could not be forked in time is not made up for later. */
		if ((now - begun) / 1000000 * rate / 1000 > (int64_t)forked + most)
			begun = now - (int64_t)forked * 1000 / rate * 1000000;
		reap(WNOHANG);
		if (!ready && forked >= 20) {
			ready = true;
			victim_ready();
		}
		nap_ms(1);
	}
	int64_t until = now_ns(CLOCK_MONOTONIC) + TREE_PATIENCE_MS * 1000000ll;
	while (live_count && now_ns(CLOCK_MONOTONIC) < until) {
		reap(WNOHANG);
		nap_ms(1);
	}
	expect("children that never ended", 0, live_count);
	expect("children that ended", forked, reaped);
	tree_expect_no_child();
	victim_end();
}
