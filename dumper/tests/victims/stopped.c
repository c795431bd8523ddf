/*
 * Stopped tasks: by SIGSTOP and by SIGTSTP, with threads, in a call, below a task that runs, above one that runs; of one
 * the parent has taken the news, of one it has not. Afterwards they lie still until SIGCONT, and then check themselves.
 */
#include "tree.h"

#define THREADS 3
#define N 6
/* Lets one end whose going on was seen. */
#define GO (SIGRTMIN + 1)

enum kind { BY_STOP, BY_TSTP, IN_A_CALL, WITH_THREADS, OVER_A_RUNNER, BELOW_A_RUNNER };
static const char *const names[N] = { "by-stop", "by-tstp", "in-a-call", "threads", "over", "below" };

static void *turn(void *argument)
{
	while (!victim_asked())
		nap_ms(1);
	return argument;
}

static int runner(void *unused)
{
	(void)unused;
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	return 17;
}

/* What a stopped task does once it goes on: it may not have run a step before. */
static void expect_asked(void)
{
	if (!victim_asked())
		fail("it ran before it was continued");
}

static int stops(void *argument)
{
	enum kind kind = (intptr_t)argument;
	pthread_t threads[THREADS];
	char *memory = must(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	pid_t child = 0;
	/* SIGTSTP stops nobody whose group has no parent outside it in the session: a group of its own does. */
	must(setpgid(0, 0));
	fill_pages(memory, 4, 0x570900 + kind * 16);
	if (kind == OVER_A_RUNNER)
		child = tree_fork("under", runner, NULL);
	if (kind == WITH_THREADS)
		for (intptr_t i = 0; i < THREADS; i++)
			must0(pthread_create(&threads[i], NULL, turn, (void *)(i + 1)));
	struct place place = place_of_self();
	task_ready();
	if (kind == IN_A_CALL) {
		/* Its parent stops it in there. The rest of the time is slept after it went on. */
		int64_t begun = now_ns(CLOCK_MONOTONIC);
		nap_ms(1500);
		expect_range("slept ms", 1500, 1000 * LIFE_SECONDS, (now_ns(CLOCK_MONOTONIC) - begun) / 1000000);
	} else {
		must(kill(getpid(), kind == BY_TSTP ? SIGTSTP : SIGSTOP));
	}
	expect_asked();
	expect_place(place);
	expect_pages("memory", memory, 4, 0x570900 + kind * 16);
	if (kind == WITH_THREADS)
		for (intptr_t i = 0; i < THREADS; i++) {
			void *result;
			must0(pthread_join(threads[i], &result));
			expect_at("thread result", i, i + 1, (intptr_t)result);
		}
	if (child)
		tree_expect_exit("under", child, 17);
	siginfo_t info;
	if (!take_signal(GO, &info, TREE_PATIENCE_MS))
		fail("it was never let go");
	return 40 + kind;
}

static bool is_stopped(pid_t pid)
{
	return state_of(pid) == 'T';
}

/* Whether it lies still: state, and no time in user or system mode meanwhile. */
static void expect_still(const char *who, pid_t pid)
{
	char field[64], before[64];
	snprintf(field, sizeof field, "%s state", who);
	expect(field, 'T', state_of(pid));
	snprintf(before, sizeof before, "%s", stat_field(pid, 14));
	nap_ms(30);
	expect_string(field, before, stat_field(pid, 14));
}

/* Stopped, then continued, then ended: each is said, in this order. */
static void check_stopped(const char *who, pid_t pid, int signal, int code)
{
	siginfo_t info = { 0 };
	char field[64];
	expect_still(who, pid);
	/* The stop is said at most once more: a restore stops it anew. */
	if (waitid(P_PID, pid, &info, WSTOPPED | WNOHANG) == 0 && info.si_pid) {
		snprintf(field, sizeof field, "%s stopped by", who);
		expect(field, signal, info.si_status);
		expect("si_code of a stop", CLD_STOPPED, info.si_code);
		info.si_pid = 0;
		if (waitid(P_PID, pid, &info, WSTOPPED | WNOHANG) == 0 && info.si_pid)
			fail("%s: its stop is said twice", who);
	}
	info.si_pid = 0;
	if (waitid(P_PID, pid, &info, WCONTINUED | WEXITED | WNOHANG) == 0 && info.si_pid)
		fail("%s: code %d is said while it is stopped", who, info.si_code);
	if (kill(pid, SIGCONT) == -1)
		fail("%s cannot be continued: %s", who, strerror(errno));
	info.si_pid = 0;
	if (!tree_eventually(waitid(P_PID, pid, &info, WCONTINUED | WNOHANG) != 0 || info.si_pid))
		fail("%s: no word that it goes on", who);
	else
		expect("si_code of going on", CLD_CONTINUED, info.si_code);
	if (kill(pid, GO) == -1)
		fail("%s cannot be let go: %s", who, strerror(errno));
	tree_expect_exit(who, pid, code);
}

/* Runs, with a stopped child. */
static int above(void *unused)
{
	(void)unused;
	pid_t child = tree_fork(names[BELOW_A_RUNNER], stops, (void *)(intptr_t)BELOW_A_RUNNER);
	struct place place = place_of_self();
	if (!tree_eventually(is_stopped(child)))
		broken("below does not stop");
	task_ready();
	victim_wait();
	expect_place(place);
	check_stopped(names[BELOW_A_RUNNER], child, SIGSTOP, 40 + BELOW_A_RUNNER);
	return 18;
}

int main(void)
{
	pid_t pids[BELOW_A_RUNNER], upper;
	siginfo_t info;
	tree_start();
	block(GO);
	for (intptr_t i = 0; i < BELOW_A_RUNNER; i++)
		pids[i] = tree_fork(names[i], stops, (void *)i);
	upper = tree_fork("above", above, NULL);
	/* "under", "above", "below". */
	tree_all_set(BELOW_A_RUNNER + 3);
	nap_ms(50);
	must(kill(pids[IN_A_CALL], SIGSTOP));
	for (int i = 0; i < BELOW_A_RUNNER; i++)
		if (!tree_eventually(is_stopped(pids[i])))
			broken("%s does not stop", names[i]);
	/* The news of all but two is taken. */
	for (int i = 0; i < BELOW_A_RUNNER; i++)
		if (i != BY_STOP && i != WITH_THREADS)
			must(waitid(P_PID, pids[i], &info, WSTOPPED));
	victim_ready();
	victim_wait();

	for (int i = 0; i < BELOW_A_RUNNER; i++)
		check_stopped(names[i], pids[i], i == BY_TSTP ? SIGTSTP : SIGSTOP, 40 + i);
	tree_expect_exit("above", upper, 18);
	tree_expect_no_child();
	victim_end();
}
