/*
 * Very many threads that wait, each with values of its own, beside some that make threads and join them as fast as they
 * can, so that there are others at every moment. When it is asked the storm ends and every thread is accounted for.
 *
 * threadstorm [WAITING [SPREADERS]] (300, 4)
 */
#include "victim.h"

#define WAITING_MAX 4096
#define SPREADERS_MAX 64
#define AT_ONCE 4

static atomic_int ready, is_over;
static char stacks[WAITING_MAX][2048];
static __thread uint64_t number;

static void *short_life(void *argument)
{
	number = mix((uintptr_t)argument);
	/* Long enough to be met by who looks for threads after those have stopped that make them. */
	usleep(number % 16384);
	return (void *)(uintptr_t)(number == mix((uintptr_t)argument) ? number | 1 : 0);
}

static void *spread(void *argument)
{
	uint64_t made = (uintptr_t)argument << 40;
	pthread_attr_t attr;
	must0(pthread_attr_init(&attr));
	must0(pthread_attr_setstacksize(&attr, 65536));
	ready++;
	while (!is_over) {
		pthread_t threads[AT_ONCE];
		for (int i = 0; i < AT_ONCE; i++)
			must0(pthread_create(&threads[i], &attr, short_life, (void *)(uintptr_t)(made + i)));
		for (int i = 0; i < AT_ONCE; i++) {
			void *answer = NULL;
			must0(pthread_join(threads[i], &answer));
			expect_at("thread", (intptr_t)argument, mix(made + i) | 1, (uintptr_t)answer);
		}
		made += AT_ONCE;
	}
	return NULL;
}

static void *wait_long(void *argument)
{
	int index = (intptr_t)argument;
	stack_t stack = { .ss_sp = stacks[index], .ss_size = sizeof stacks[index] }, now;
	pid_t tid = thread_id();
	struct timespec pause = { 0, 20000000 };
	must(sigaltstack(&stack, NULL));
	number = mix(index);
	ready++;
	while (!is_over)
		must(nanosleep(&pause, NULL));
	must(sigaltstack(NULL, &now));
	expect_at("altstack", index, (uintptr_t)stack.ss_sp, (uintptr_t)now.ss_sp);
	expect_at("thread-local number", index, mix(index), number);
	expect_at("tid", index, tid, thread_id());
	return NULL;
}

int main(int argc, char **argv)
{
	static pthread_t threads[WAITING_MAX + SPREADERS_MAX];
	intptr_t waiting = argc > 1 ? atoi(argv[1]) : 300, spreaders = argc > 2 ? atoi(argv[2]) : 4;
	pthread_attr_t attr;
	victim_start();
	if (waiting < 1 || waiting > WAITING_MAX || spreaders < 1 || spreaders > SPREADERS_MAX)
		broken("1 to %d threads and 1 to %d spreaders", WAITING_MAX, SPREADERS_MAX);
	must0(pthread_attr_init(&attr));
	must0(pthread_attr_setstacksize(&attr, 65536));
	for (intptr_t i = 0; i < waiting + spreaders; i++)
		must0(pthread_create(&threads[i], &attr, i < waiting ? wait_long : spread, (void *)i));
	while (ready != waiting + spreaders)
		nap_ms(1);

	victim_ready();
	victim_wait();
	is_over = 1;
	for (intptr_t i = 0; i < waiting + spreaders; i++)
		must0(pthread_join(threads[i], NULL));
	victim_end();
}
