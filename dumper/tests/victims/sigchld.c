/*
 * The signal that tells of a dead child: pending in one parent, taken already in another, ignored in the third, without
 * zombies in the fourth, handled in the fifth. After a restore it is pending where it was, with what it said, and comes
 * nowhere a second time.
 */
#include "tree.h"

static atomic_int handled;
static siginfo_t last;

static void count(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	last = *info;
	handled++;
}

static void expect_child_signal(const char *what, const siginfo_t *info, pid_t pid, int code, int status)
{
	char field[64];
	snprintf(field, sizeof field, "%s si_pid", what);
	expect(field, pid, info->si_pid);
	snprintf(field, sizeof field, "%s si_code", what);
	expect(field, code, info->si_code);
	snprintf(field, sizeof field, "%s si_status", what);
	expect(field, status, info->si_status);
}

static pid_t dead(int code)
{
	siginfo_t info;
	pid_t pid = must(fork());
	if (pid == 0)
		_exit(code);
	must(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
	return pid;
}

/* A child that ends with `code` once it is asked. */
static pid_t living(int code)
{
	pid_t pid = must(fork());
	if (pid == 0) {
		close(tree_pipe[1]);
		victim_wait();
		nap_ms(150);
		_exit(code);
	}
	return pid;
}

/* SIGCHLD is blocked and pending, its child a zombie. */
static int pending(void *unused)
{
	(void)unused;
	siginfo_t info;
	block(SIGCHLD);
	pid_t pid = dead(33);
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	if (!take_signal(SIGCHLD, &info, 0))
		fail("the pending SIGCHLD is gone");
	else {
		expect_child_signal("pending", &info, pid, CLD_EXITED, 33);
		expect("pending si_uid", getuid(), info.si_uid);
	}
	expect_no_signal("a second time", SIGCHLD);
	tree_expect_exit("zombie", pid, 33);
	expect_no_signal("after it was waited for", SIGCHLD);
	nap_ms(150);
	return 21;
}

/* As above, but the zombie is killed by a signal, and was waited for: only its signal is left. */
static int reaped(void *unused)
{
	(void)unused;
	siginfo_t info;
	block(SIGCHLD);
	pid_t pid = must(fork());
	if (pid == 0) {
		pause();
		_exit(0);
	}
	must(kill(pid, SIGKILL));
	expect("wait status", SIGKILL, tree_reap("killed", pid));
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	if (!take_signal(SIGCHLD, &info, 0))
		fail("the SIGCHLD of a reaped child is gone");
	else
		expect_child_signal("reaped", &info, pid, CLD_KILLED, SIGKILL);
	expect_no_signal("a second time", SIGCHLD);
	tree_expect_no_child();
	nap_ms(150);
	return 22;
}

/* The signal was taken, the zombie was not: nothing may be pending afterwards. */
static int taken(void *unused)
{
	(void)unused;
	siginfo_t info;
	block(SIGCHLD);
	pid_t pid = dead(44), alive = living(45);
	if (!take_signal(SIGCHLD, &info, TREE_PATIENCE_MS))
		broken("no SIGCHLD");
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_no_signal("that was taken before", SIGCHLD);
	expect_place(place);
	if (!take_signal(SIGCHLD, &info, TREE_PATIENCE_MS))
		fail("no SIGCHLD of the child that lived");
	else
		expect_child_signal("lived", &info, alive, CLD_EXITED, 45);
	tree_expect_exit("zombie", pid, 44);
	tree_expect_exit("lived", alive, 45);
	expect_no_signal("that was taken before", SIGCHLD);
	return 23;
}

/* Ignored: children leave nothing. */
static int ignored(void *unused)
{
	(void)unused;
	struct sigaction now;
	must(sigaction(SIGCHLD, &(struct sigaction){ .sa_handler = SIG_IGN }, NULL));
	pid_t pid = living(46);
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	must(sigaction(SIGCHLD, NULL, &now));
	expect("ignored action", (uintptr_t)SIG_IGN, (uintptr_t)now.sa_handler);
	expect("wait for what leaves nothing", ECHILD, waitpid(pid, NULL, 0) == -1 ? errno : 0);
	return 24;
}

/* A handler, but no zombies. */
static int no_wait(void *unused)
{
	(void)unused;
	struct sigaction now;
	struct sigaction action = { .sa_sigaction = count, .sa_flags = SA_SIGINFO | SA_RESTART | SA_NOCLDWAIT };
	must(sigaction(SIGCHLD, &action, NULL));
	pid_t pid = living(47);
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	must(sigaction(SIGCHLD, NULL, &now));
	expect("SA_NOCLDWAIT", SA_NOCLDWAIT, now.sa_flags & SA_NOCLDWAIT);
	expect("SIGCHLD before a child ended", 0, handled);
	if (!tree_eventually(handled == 1))
		fail("SIGCHLD expected once, came %d times", handled);
	else
		expect_child_signal("without a zombie", &last, pid, CLD_EXITED, 47);
	expect("wait for what leaves nothing", ECHILD, waitpid(pid, NULL, 0) == -1 ? errno : 0);
	return 25;
}

/* A handler with SA_NOCLDSTOP, that ran once before: it runs once more, for the child that ends. */
static int handles(void *unused)
{
	(void)unused;
	struct sigaction action = { .sa_sigaction = count, .sa_flags = SA_SIGINFO | SA_RESTART | SA_NOCLDSTOP };
	must(sigaction(SIGCHLD, &action, NULL));
	pid_t early = dead(48), pid = living(49);
	if (!tree_eventually(handled == 1))
		broken("no SIGCHLD");
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	expect("SIGCHLD before a child ended", 1, handled);
	must(kill(pid, SIGSTOP));
	tree_eventually(state_of(pid) == 'T');
	must(kill(pid, SIGCONT));
	if (!tree_eventually(handled >= 2))
		fail("no SIGCHLD of the child that ended");
	else
		expect_child_signal("handled", &last, pid, CLD_EXITED, 49);
	tree_expect_exit("early", early, 48);
	tree_expect_exit("lived", pid, 49);
	expect("SIGCHLD in all", 2, handled);
	return 26;
}

int main(void)
{
	static const struct {
		const char *name;
		int (*run)(void *);
	} kinds[] = {
		{ "pending", pending }, { "reaped", reaped },	{ "taken", taken },
		{ "ignored", ignored }, { "no-wait", no_wait }, { "handles", handles },
	};
	enum { N = sizeof kinds / sizeof *kinds };
	pid_t pids[N];
	siginfo_t info;
	tree_start();
	for (int i = 0; i < N; i++)
		pids[i] = tree_fork(kinds[i].name, kinds[i].run, NULL);
	/* The root has children in plenty, and none has died. */
	block(SIGCHLD);
	tree_all_set(N);
	expect_no_signal("before READY", SIGCHLD);
	victim_ready();
	while (!victim_asked())
		nap_ms(1);
	/* The living ones take longer than this. */
	expect_no_signal("before a child ended", SIGCHLD);
	for (int i = 0; i < N; i++)
		tree_expect_exit(kinds[i].name, pids[i], 21 + i);
	if (!take_signal(SIGCHLD, &info, 0))
		fail("no SIGCHLD of six children");
	tree_expect_no_child();
	victim_end();
}
