/*
 * Locks of several processes in shared memory: a robust mutex whose holder dies afterwards, by its end and by SIGKILL, in
 * its main thread and in another; tasks that wait for a mutex, a condition, a semaphore and a plain futex since before
 * READY, and are woken after it.
 */
#include "tree.h"
#include <linux/futex.h>
#include <semaphore.h>

enum { ENDS, IS_KILLED, IN_A_THREAD, HOLDERS };

struct board {
	pthread_mutex_t robust[HOLDERS];
	pthread_mutex_t held, guard;
	pthread_cond_t told;
	sem_t semaphore;
	atomic_uint word;
	int go;
	atomic_int held_count, waiting, woken[4];
};
static struct board *board;
static const char *const holders[HOLDERS] = { "ends", "is-killed", "in-a-thread" };
static const char *const waiters[4] = { "for-mutex", "for-cond", "for-sem", "for-futex" };

static long futex(atomic_uint *word, int call, unsigned value)
{
	return syscall(SYS_futex, word, call, value, NULL, NULL, 0);
}

static void *hold_in_thread(void *unused)
{
	must0(pthread_mutex_lock(&board->robust[IN_A_THREAD]));
	board->held_count++;
	victim_wait();
	return unused;
}

/* Ends, or waits to be killed, with the mutex held: the kernel walks the list that the task has told it. */
static int holder(void *argument)
{
	int which = (intptr_t)argument;
	pthread_t thread;
	if (which == IN_A_THREAD) {
		must0(pthread_create(&thread, NULL, hold_in_thread, NULL));
		if (!tree_eventually(board->held_count > which))
			broken("it is not held");
	} else {
		must0(pthread_mutex_lock(&board->robust[which]));
		board->held_count++;
	}
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	if (which == IN_A_THREAD)
		must0(pthread_join(thread, NULL));
	if (which == IS_KILLED)
		while (true)
			pause();
	return 80 + which;
}

static int waiter(void *argument)
{
	int which = (intptr_t)argument;
	struct place place = place_of_self();
	board->waiting++;
	task_ready();
	switch (which) {
	case 0:
		must0(pthread_mutex_lock(&board->held));
		board->woken[0]++;
		must0(pthread_mutex_unlock(&board->held));
		break;
	case 1:
		must0(pthread_mutex_lock(&board->guard));
		while (!board->go)
			must0(pthread_cond_wait(&board->told, &board->guard));
		must0(pthread_mutex_unlock(&board->guard));
		board->woken[1]++;
		break;
	case 2:
		while (sem_wait(&board->semaphore) == -1 && errno == EINTR)
			;
		board->woken[2]++;
		break;
	case 3:
		while (board->word == 7)
			if (futex(&board->word, FUTEX_WAIT, 7) == -1 && errno != EAGAIN && errno != EINTR)
				broken("futex");
		board->woken[3]++;
		break;
	}
	expect("woken before it was asked", true, victim_asked());
	expect_place(place);
	return 90 + which;
}

int main(void)
{
	pthread_mutexattr_t robust, shared;
	pthread_condattr_t cond;
	pid_t held[HOLDERS], waiting[4];
	tree_start();
	board = tree_shared(sizeof *board);
	must0(pthread_mutexattr_init(&robust));
	must0(pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST));
	must0(pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED));
	must0(pthread_mutexattr_init(&shared));
	must0(pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED));
	must0(pthread_condattr_init(&cond));
	must0(pthread_condattr_setpshared(&cond, PTHREAD_PROCESS_SHARED));
	for (int i = 0; i < HOLDERS; i++)
		must0(pthread_mutex_init(&board->robust[i], &robust));
	must0(pthread_mutex_init(&board->held, &shared));
	must0(pthread_mutex_init(&board->guard, &shared));
	must0(pthread_cond_init(&board->told, &cond));
	must(sem_init(&board->semaphore, 1, 0));
	board->word = 7;
	must0(pthread_mutex_lock(&board->held));
	for (intptr_t i = 0; i < HOLDERS; i++) {
		held[i] = tree_fork(holders[i], holder, (void *)i);
		if (!tree_eventually(board->held_count == i + 1))
			broken("%s holds nothing", holders[i]);
	}
	for (intptr_t i = 0; i < 4; i++)
		waiting[i] = tree_fork(waiters[i], waiter, (void *)i);
	tree_all_set(HOLDERS + 4);
	/* All four are in their calls. */
	nap_ms(50);
	victim_ready();
	victim_wait();

	for (int i = 0; i < 4; i++)
		expect_at("woken before", i, 0, board->woken[i]);
	/* Waits for a mutex whose holder lives. */
	expect("robust mutex of one that lives", EBUSY, pthread_mutex_trylock(&board->robust[IS_KILLED]));
	if (kill(held[IS_KILLED], SIGKILL) == -1)
		fail("%s cannot be killed: %s", holders[IS_KILLED], strerror(errno));
	for (int i = 0; i < HOLDERS; i++) {
		struct timespec until;
		must(clock_gettime(CLOCK_REALTIME, &until));
		until.tv_sec += 5;
		expect_at("robust mutex", i, EOWNERDEAD, pthread_mutex_timedlock(&board->robust[i], &until));
		expect_at("robust mutex made whole", i, 0, pthread_mutex_consistent(&board->robust[i]));
		expect_at("robust mutex let go", i, 0, pthread_mutex_unlock(&board->robust[i]));
	}
	expect("wait status of the killed", SIGKILL, tree_reap(holders[IS_KILLED], held[IS_KILLED]));
	tree_expect_exit(holders[ENDS], held[ENDS], 80 + ENDS);
	tree_expect_exit(holders[IN_A_THREAD], held[IN_A_THREAD], 80 + IN_A_THREAD);

	must0(pthread_mutex_unlock(&board->held));
	must0(pthread_mutex_lock(&board->guard));
	board->go = 1;
	must0(pthread_cond_broadcast(&board->told));
	must0(pthread_mutex_unlock(&board->guard));
	must(sem_post(&board->semaphore));
	/* The word is as it was: it waits again, once it was seen to wait. */
	if (!tree_eventually(futex(&board->word, FUTEX_WAKE, 10) == 1))
		fail("nobody waits for the futex");
	board->word = 8;
	futex(&board->word, FUTEX_WAKE, 10);
	for (int i = 0; i < 4; i++)
		tree_expect_exit(waiters[i], waiting[i], 90 + i);
	for (int i = 0; i < 4; i++)
		expect_at("woken", i, 1, board->woken[i]);
	tree_expect_no_child();
	victim_end();
}
