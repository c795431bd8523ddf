/*
 * seccomp [twins]: with `twins` two threads have the same filters.
 *
 * Seccomp that differs from thread to thread: filters in a given order, none, strict mode, a filter that kills.
 */
#include "filter.h"

#define THREADS 6

enum { LEADER, LESS, OTHERS, NONE, STRICT, TWIN };
/* Mode, number of filters, and what they answer. */
static const struct {
	int mode, filters, tried, tried_too;
} wanted[THREADS] = {
	[LEADER] = { 2, 2, 102, 103 },
	[LESS] = { 2, 1, 101, 0 },
	[OTHERS] = { 2, 3, 105, 106 },
	[NONE] = { 0, 0, 0, 0 },
	[STRICT] = { 1, 0, 0, 0 },
	[TWIN] = { 2, 1, 101, 0 },
};
static pid_t tids[THREADS];
static pthread_t threads[THREADS];
static atomic_int phase, set_up;
static volatile int survived[THREADS];
static int wake[2], words[2];

static void check_self(int index)
{
	expect_at("answer", index, wanted[index].tried, answer(TRIED));
	expect_at("other answer", index, wanted[index].tried_too, answer(TRIED_TOO));
}

static void *work(void *argument)
{
	int index = (intptr_t)argument;
	tids[index] = thread_id();
	if (index == OTHERS) {
		must_filter(TRIED, ERRNO(104), 0);
		must_filter(TRIED, ERRNO(105), SECCOMP_FILTER_FLAG_LOG);
		struct rule rules[] = { { TRIED_TOO, ERRNO(106) }, { SYS_getpgid, SECCOMP_RET_KILL_THREAD } };
		must(add_filter(rules, 2, SECCOMP_RET_ALLOW, SECCOMP_FILTER_FLAG_SPEC_ALLOW));
	}
	check_self(index);
	set_up++;
	while (phase == 0)
		nap_ms(5);
	check_self(index);
	if (index == OTHERS) {
		/* The end of this thread alone. */
		syscall(SYS_getpgid, 0);
		survived[index] = 1;
	}
	return NULL;
}

/* All that is left to it is read, write, exit and sigreturn. */
static void *live_strictly(void *argument)
{
	char word = 0;
	(void)argument;
	tids[STRICT] = thread_id();
	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
	set_up++;
	if (read(wake[0], &word, 1) == 1 && word == 'w')
		word = 'a';
	if (write(words[1], &word, 1) != 1)
		syscall(SYS_exit, 0);
	/* The end of this thread alone. */
	syscall(SYS_getppid);
	survived[STRICT] = 1;
	syscall(SYS_exit, 0);
	return NULL;
}

int main(int argc, char **argv)
{
	int count = argc > 1 && !strcmp(argv[1], "twins") ? THREADS : THREADS - 1;
	victim_start();
	must(pipe2(wake, O_CLOEXEC));
	must(pipe2(words, O_CLOEXEC));
	tids[LEADER] = thread_id();
	must0(pthread_create(&threads[NONE], NULL, work, (void *)NONE));
	must0(pthread_create(&threads[OTHERS], NULL, work, (void *)OTHERS));
	must0(pthread_create(&threads[STRICT], NULL, live_strictly, NULL));
	must_filter(TRIED, ERRNO(101), 0);
	must0(pthread_create(&threads[LESS], NULL, work, (void *)LESS));
	if (count == THREADS)
		must0(pthread_create(&threads[TWIN], NULL, work, (void *)TWIN));
	struct rule rules[] = { { TRIED, ERRNO(102) }, { TRIED_TOO, ERRNO(103) } };
	must(add_filter(rules, 2, SECCOMP_RET_ALLOW, 0));
	while (set_up != count - 1)
		nap_ms(1);
	check_self(LEADER);

	victim_ready();
	victim_wait();

	check_self(LEADER);
	for (int i = 0; i < count; i++) {
		expect_at("seccomp mode", i, wanted[i].mode, thread_status(tids[i], "Seccomp"));
		expect_at("filters", i, wanted[i].filters, thread_status(tids[i], "Seccomp_filters"));
	}
	phase = 1;
	char word = 'w';
	expect("wake", 1, write(wake[1], &word, 1));
	expect("word", 1, read(words[0], &word, 1));
	expect("strict word", 'a', word);
	for (int i = 1; i < count; i++)
		must0(pthread_join(threads[i], NULL));
	expect("killed by its filter", 0, survived[OTHERS]);
	expect("killed by strict mode", 0, survived[STRICT]);
	victim_end();
}
