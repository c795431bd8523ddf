/*
 * The dead that nobody has waited for: ended by themselves and by signals, at three depths, leading a group and a session.
 * Afterwards they are still there, each with its name, group and session, and whoever waits gets the exact status once.
 *
 * zombies [COUNT]: so many more, each with a code of its own
 * zombies high:    with exit codes, too, that need the eighth bit
 */
#include "tree.h"

#define MAX 512

struct dead {
	char name[16];
	struct place place;
	/* The wait status. */
	int status;
};
struct hall {
	struct dead dead[MAX];
	int count;
};
/* Of this task alone. */
static struct hall hall;

enum how { EXITS, KILLED, CRASHES, ABORTS };

static int die(enum how how, int number)
{
	/* No core: the status then says none, whatever this machine does with cores. */
	must(prctl(PR_SET_DUMPABLE, 0));
	must(signal(SIGSEGV, SIG_DFL) == SIG_ERR ? -1 : 0);
	switch (how) {
	case EXITS:
		_exit(number);
	case KILLED:
		kill(getpid(), number);
		break;
	case CRASHES:
		*(volatile int *)16 = 1;
		break;
	case ABORTS:
		abort();
	}
	_exit(99);
}

/* A child that is dead when this returns, and not waited for. `joined` leads what it belongs to itself. */
static struct dead *bury(const char *name, enum how how, int number, bool group, bool session)
{
	struct dead *d = &hall.dead[hall.count++];
	siginfo_t info;
	snprintf(d->name, sizeof d->name, "%s", name);
	pid_t pid = must(fork());
	if (pid == 0) {
		task_begin(name);
		close(tree_pipe[1]);
		if (group)
			must(setpgid(0, 0));
		if (session)
			must(setsid());
		die(how, number);
	}
	must(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
	d->place = (struct place){ pid, getpid(), getpgid(pid), getsid(pid) };
	d->status = how == EXITS ? number << 8 : how == KILLED ? number : how == CRASHES ? SIGSEGV : SIGABRT;
	return d;
}

static void check_dead(void)
{
	for (int i = 0; i < hall.count; i++) {
		struct dead *d = &hall.dead[i];
		char name[32] = "", field[64];
		siginfo_t info = { 0 };
		snprintf(field, sizeof field, "%s state", d->name);
		expect(field, 'Z', state_of(d->place.pid));
		expect_place_of(d->name, d->place);
		name_of(d->place.pid, name);
		snprintf(field, sizeof field, "%s name", d->name);
		expect_string(field, d->name, name);
		/* Looked at first, then taken. */
		if (waitid(P_PID, d->place.pid, &info, WEXITED | WNOHANG | WNOWAIT) == -1)
			fail("%s cannot be looked at: %s", d->name, strerror(errno));
		snprintf(field, sizeof field, "%s si_code", d->name);
		expect(field, WIFEXITED(d->status) ? CLD_EXITED : CLD_KILLED, info.si_code);
		int status = tree_reap(d->name, d->place.pid);
		snprintf(field, sizeof field, "%s wait status", d->name);
		expect(field, d->status, status);
		if (waitpid(d->place.pid, &status, WNOHANG) != -1 || errno != ECHILD)
			fail("%s can be waited for twice", d->name);
	}
}

static void bury_some(int depth)
{
	const struct {
		const char *name;
		enum how how;
		int number;
	} all[] = {
		{ "exit", EXITS, 7 + depth },	 { "zero", EXITS, 0 },	    { "127", EXITS, 127 },
		{ "kill", KILLED, SIGKILL },	 { "rt", KILLED, SIGRTMIN + depth },
		{ "segv", CRASHES, 0 },		 { "abrt", ABORTS, 0 },
	};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		char name[16];
		snprintf(name, sizeof name, "d%d-%s", depth % 10, all[i].name);
		bury(name, all[i].how, all[i].number, false, false);
	}
}

static int deeper(void *argument)
{
	int depth = (intptr_t)argument;
	char child_name[16];
	pid_t child = 0;
	hall.count = 0;
	bury_some(depth);
	snprintf(child_name, sizeof child_name, "deep-%d", (depth + 1) % 10);
	if (depth < 3)
		child = tree_fork(child_name, deeper, (void *)(intptr_t)(depth + 1));
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	check_dead();
	if (child)
		tree_expect_exit(child_name, child, 20 + depth + 1);
	tree_expect_no_child();
	return 20 + depth;
}

/* In the group of a zombie. */
static int follower(void *argument)
{
	must(setpgid(0, (intptr_t)argument));
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	return 31;
}

int main(int argc, char **argv)
{
	bool high = argc > 1 && !strcmp(argv[1], "high");
	int many = argc > 1 ? atoi(argv[1]) : 0;
	char name[16];
	tree_start();
	bury_some(1);
	struct dead *leader = bury("leads-group", EXITS, 3, true, false);
	pid_t member = tree_fork("follower", follower, (void *)(intptr_t)leader->place.pid);
	bury("leads-session", KILLED, SIGTERM, false, true);
	for (int i = 0; i < many && hall.count < MAX; i++) {
		snprintf(name, sizeof name, "many-%d", i % 1000);
		bury(name, i % 5 ? EXITS : KILLED, i % 5 ? i % 128 : SIGRTMIN + i % 30, false, false);
	}
	if (high) {
		bury("high-128", EXITS, 128, false, false);
		bury("high-255", EXITS, 255, false, false);
	}
	struct hall kept = hall;
	pid_t deep = tree_fork("deep-2", deeper, (void *)2);
	hall = kept;
	tree_ready(1 + 2);
	victim_wait();

	check_dead();
	tree_expect_exit("deep-2", deep, 22);
	tree_expect_exit("follower", member, 31);
	tree_expect_no_child();
	victim_end();
}
