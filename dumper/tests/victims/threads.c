/*
 * Threads: thread-local storage, names, ids, restartable sequences, robust mutexes, join.
 */
#include "victim.h"
#include <sys/rseq.h>

#define N 8

static __thread uint64_t local_value;
static __thread uint64_t local_page[512];
static pthread_mutex_t robust[N];
static pthread_barrier_t set_up;
static atomic_int phase;

struct worker {
	pthread_t thread;
	pid_t tid;
	char name[16];
	uint64_t *local_at;
	int index;
};
static struct worker workers[N + 1];

static struct rseq *thread_rseq(void)
{
	return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

/* rseq(2) with the registered address answers EBUSY; anything else means that it is not registered. */
static void check_rseq(int index)
{
	if (__rseq_size == 0)
		return;
	/* Old enough to be what glibc registers: the kernel wants the size that was given then. */
	int rc = syscall(SYS_rseq, thread_rseq(), 32, 0, RSEQ_SIG);
	expect_at("rseq registered", index, EBUSY, rc == 0 ? 0 : errno);
	cpu_set_t one;
	for (int cpu = 0; cpu < 2; cpu++) {
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		if (sched_setaffinity(0, sizeof one, &one) == 0)
			expect_at("rseq cpu_id", index, cpu, ((volatile struct rseq *)thread_rseq())->cpu_id);
	}
}

static void check_self(struct worker *w)
{
	char name[16] = "", path[64];
	expect_at("tid", w->index, w->tid, thread_id());
	expect_at("local value", w->index, mix(w->index), local_value);
	expect_at("local address", w->index, (uintptr_t)w->local_at, (uintptr_t)&local_value);
	expect_page("local page", w->index, local_page, 0x71500000 + w->index);
	must(prctl(PR_GET_NAME, name));
	expect_string("thread name", w->name, name);
	snprintf(path, sizeof path, "/proc/self/task/%d/comm", w->tid);
	char *comm = slurp(path);
	comm[strcspn(comm, "\n")] = 0;
	expect_string("comm", w->name, comm);
	free(comm);
	check_rseq(w->index);
}

static void set_self(struct worker *w, int index)
{
	w->index = index;
	w->tid = thread_id();
	snprintf(w->name, sizeof w->name, "worker:%d()", index);
	must(prctl(PR_SET_NAME, w->name));
	local_value = mix(index);
	w->local_at = &local_value;
	fill_page(local_page, 0x71500000 + index);
}

static void *work(void *argument)
{
	struct worker *w = argument;
	set_self(w, w - workers);
	int n = w->index;
	must0(pthread_mutex_lock(&robust[n]));
	pthread_barrier_wait(&set_up);
	while (phase == 0)
		nap_ms(5);
	check_self(w);
	while (phase == 1)
		nap_ms(5);
	/* Ends with the mutex held: the kernel walks the robust list and wakes the waiter. */
	return (void *)(mix(n) | 1);
}

static void *nothing(void *argument)
{
	return argument;
}

int main(void)
{
	pthread_mutexattr_t attr;
	victim_start();
	must0(pthread_mutexattr_init(&attr));
	must0(pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST));
	must0(pthread_barrier_init(&set_up, NULL, N + 1));
	for (int i = 0; i < N; i++)
		must0(pthread_mutex_init(&robust[i], &attr));
	set_self(&workers[N], N);
	for (int i = 0; i < N; i++)
		must0(pthread_create(&workers[i].thread, NULL, work, &workers[i]));
	pthread_barrier_wait(&set_up);
	nap_ms(20);
	victim_ready();
	victim_wait();

	check_self(&workers[N]);
	phase = 1;
	nap_ms(100);
	phase = 2;
	for (int i = 0; i < N; i++) {
		struct timespec until;
		void *result = NULL;
		must(clock_gettime(CLOCK_REALTIME, &until));
		until.tv_sec += 3;
		expect_at("robust mutex", i, EOWNERDEAD, pthread_mutex_timedlock(&robust[i], &until));
		must(clock_gettime(CLOCK_REALTIME, &until));
		until.tv_sec += 3;
		expect_at("join", i, 0, pthread_timedjoin_np(workers[i].thread, &result, &until));
		expect_at("thread result", i, mix(i) | 1, (uintptr_t)result);
	}
	/* A new thread still works: libc's own lists are whole. */
	pthread_t last;
	must0(pthread_create(&last, NULL, nothing, NULL));
	must0(pthread_join(last, NULL));
	victim_end();
}
