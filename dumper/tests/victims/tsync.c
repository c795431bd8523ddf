/*
 * Seccomp filters that all threads share (SECCOMP_FILTER_FLAG_TSYNC), and one more of the leader's own. A filter that
 * is put on all threads afterwards must go through: it does only while theirs are the very ones of the leader.
 *
 * tsync [apart]: with `apart` that is not tried, for images which keep the threads' filters apart.
 */
#include "filter.h"

#define THREADS 3

static pthread_t threads[THREADS];
static pid_t tids[THREADS];
static atomic_int phase, set_up;
static bool together;

static void *work(void *argument)
{
	int index = (intptr_t)argument;
	tids[index] = thread_id();
	set_up++;
	while (phase == 0)
		nap_ms(5);
	expect_at("answer", index, 71, answer(TRIED));
	expect_at("other answer", index, 72, answer(TRIED_TOO));
	set_up++;
	while (phase == 1)
		nap_ms(5);
	if (together)
		expect_at("later answer", index, 74, answer(TRIED));
	return NULL;
}

int main(int argc, char **argv)
{
	together = argc < 2 || strcmp(argv[1], "apart");
	victim_start();
	for (intptr_t i = 0; i < THREADS; i++)
		must0(pthread_create(&threads[i], NULL, work, (void *)i));
	while (set_up != THREADS)
		nap_ms(1);
	must_filter(TRIED, ERRNO(71), SECCOMP_FILTER_FLAG_TSYNC);
	must_filter(TRIED_TOO, ERRNO(72), SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_LOG);
	must_filter(TRIED, ERRNO(73), 0);

	victim_ready();
	victim_wait();

	expect("leader's answer", 73, answer(TRIED));
	expect("leader's other answer", 72, answer(TRIED_TOO));
	expect("leader's filters", 3, thread_status(victim_pid, "Seccomp_filters"));
	for (int i = 0; i < THREADS; i++)
		expect_at("filters", i, 2, thread_status(tids[i], "Seccomp_filters"));
	phase = 1;
	while (set_up != 2 * THREADS)
		nap_ms(1);
	struct rule rule = { TRIED, ERRNO(74) };
	if (together)
		expect("later filter for all", 0, add_filter(&rule, 1, SECCOMP_RET_ALLOW, SECCOMP_FILTER_FLAG_TSYNC));
	phase = 2;
	for (int i = 0; i < THREADS; i++)
		must0(pthread_join(threads[i], NULL));
	victim_end();
}
