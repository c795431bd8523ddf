/*
 * Very many threads, each with a value of its own in every place that is asked thread by thread.
 *
 * crowd COUNT
 */
#include "victim.h"

static int count;
static atomic_int ready, phase;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t told = PTHREAD_COND_INITIALIZER;
static char stacks[4096][2048];
static __thread int number;

static void signal_of(int index, sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGRTMIN + index % 20);
	sigaddset(set, index % 2 ? SIGUSR1 : SIGUSR2);
}

static void *work(void *argument)
{
	int index = number = (intptr_t)argument;
	stack_t stack = { .ss_sp = stacks[index], .ss_size = sizeof stacks[index] }, now;
	sigset_t mask, blocked;
	char name[16];
	snprintf(name, sizeof name, "crowd-%d", index);
	must(prctl(PR_SET_NAME, name));
	must(sigaltstack(&stack, NULL));
	must(setpriority(PRIO_PROCESS, thread_id(), index % 10));
	signal_of(index, &mask);
	must0(pthread_sigmask(SIG_SETMASK, &mask, NULL));
	pid_t tid = thread_id();
	must0(pthread_mutex_lock(&mutex));
	ready++;
	while (phase == 0)
		must0(pthread_cond_wait(&told, &mutex));
	must0(pthread_mutex_unlock(&mutex));

	char got[16] = "";
	expect_at("thread-local number", index, index, number);
	expect_at("tid", index, tid, thread_id());
	must(prctl(PR_GET_NAME, got));
	expect_string("name", name, got);
	must(sigaltstack(NULL, &now));
	expect_at("altstack", index, (uintptr_t)stack.ss_sp, (uintptr_t)now.ss_sp);
	expect_at("nice", index, index % 10, getpriority(PRIO_PROCESS, tid));
	must0(pthread_sigmask(SIG_SETMASK, NULL, &blocked));
	for (int signal = 1; signal < 64; signal++)
		if (signal != 32 && signal != 33)
			expect_at("blocked", signal, sigismember(&mask, signal), sigismember(&blocked, signal));
	return NULL;
}

int main(int argc, char **argv)
{
	static pthread_t threads[4096];
	pthread_attr_t attr;
	count = argc > 1 ? atoi(argv[1]) : 100;
	victim_start();
	must0(pthread_attr_init(&attr));
	must0(pthread_attr_setstacksize(&attr, 65536));
	for (intptr_t i = 0; i < count; i++)
		must0(pthread_create(&threads[i], &attr, work, (void *)i));
	while (ready != count)
		nap_ms(1);

	victim_ready();
	victim_wait();

	must0(pthread_mutex_lock(&mutex));
	phase = 1;
	must0(pthread_cond_broadcast(&told));
	must0(pthread_mutex_unlock(&mutex));
	for (int i = 0; i < count; i++)
		must0(pthread_join(threads[i], NULL));
	victim_end();
}
