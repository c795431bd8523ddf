/*
 * Seccomp filters that all threads share (SECCOMP_FILTER_FLAG_TSYNC), and one more of one thread's own. A filter that
 * this one puts on all threads afterwards must go through: it does only while theirs are the very ones it has.
 *
 * tsync [other] [apart]: the one is the leader, with `other` another thread. With `apart` the last is not tried, for
 * images which keep the threads' filters apart.
 */
#include "filter.h"

#define THREADS 4

static pthread_t threads[THREADS];
static pid_t tids[THREADS];
static atomic_int phase, done;
static bool together;
static int one;

static void reach(int next)
{
	while (phase < next)
		nap_ms(2);
}

static void live(int index)
{
	tids[index] = thread_id();
	done++;
	reach(1);
	if (index == one)
		must_filter(TRIED, ERRNO(73), 0);
	done++;
	reach(2);
	expect_at("answer", index, index == one ? 73 : 71, answer(TRIED));
	expect_at("other answer", index, 72, answer(TRIED_TOO));
	expect_at("filters", index, index == one ? 3 : 2, thread_status(thread_id(), "Seccomp_filters"));
	done++;
	reach(3);
	struct rule rule = { TRIED, ERRNO(74) };
	if (index == one && together)
		expect("later filter for all", 0,
		       add_filter(&rule, 1, SECCOMP_RET_ALLOW, SECCOMP_FILTER_FLAG_TSYNC));
	done++;
	reach(4);
	if (together)
		expect_at("later answer", index, 74, answer(TRIED));
}

static void *work(void *argument)
{
	live((intptr_t)argument);
	return NULL;
}

/* The leader takes part as number 0, and says when all go on. */
static void *lead(void *argument)
{
	while (done != THREADS)
		nap_ms(1);
	must_filter(TRIED, ERRNO(71), SECCOMP_FILTER_FLAG_TSYNC);
	must_filter(TRIED_TOO, ERRNO(72), SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_LOG);
	phase = 1;
	while (done != 2 * THREADS)
		nap_ms(1);
	victim_ready();
	victim_wait();
	for (int i = 2; i <= 4; i++) {
		phase = i;
		while (i < 4 && done != (i + 1) * THREADS)
			nap_ms(1);
	}
	return argument;
}

int main(int argc, char **argv)
{
	together = true;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "other"))
			one = 2;
		if (!strcmp(argv[i], "apart"))
			together = false;
	}
	victim_start();
	/* Number 0 is the leader, which the others wait for: the conductor is a thread like them. */
	for (intptr_t i = 1; i < THREADS; i++)
		must0(pthread_create(&threads[i], NULL, work, (void *)i));
	pthread_t conductor;
	must0(pthread_create(&conductor, NULL, lead, NULL));
	live(0);
	must0(pthread_join(conductor, NULL));
	for (int i = 1; i < THREADS; i++)
		must0(pthread_join(threads[i], NULL));
	victim_end();
}
