/*
 * Process groups and sessions: groups with their leaders, a group whose leader is dead, a member that is another branch's
 * nephew, sessions within the session, each with groups of its own. Afterwards each task is where it was, and a signal to
 * a group reaches its members and nobody else.
 *
 * sessions [orphaned]: with a session, too, whose leader is dead, and whose members came to the root, a subreaper
 */
#include "tree.h"

/* Sent to whole groups by the root. */
#define ROLL (SIGRTMIN + 1)
/* Ends a task. */
#define GO (SIGRTMIN + 2)
#define MAX 32

/* What the root knows of the others; written before READY only, and read from each task's own copy of it afterwards. */
struct member {
	char name[16];
	struct place place;
};
static struct member *board;
static atomic_int *count;

/* A task enters itself, says that it is ready, and checks that it is still there. */
static int stay(const char *name)
{
	siginfo_t info;
	struct place place = place_of_self();
	struct member *me = &board[atomic_fetch_add(count, 1)];
	snprintf(me->name, sizeof me->name, "%s", name);
	me->place = place;
	/* The shared board is none of what is tested: it is gone before READY. */
	munmap(board, MAX * sizeof *board);
	munmap(count, sizeof *count);
	task_ready();
	victim_wait();
	expect_place(place);
	if (!take_signal(ROLL, &info, TREE_PATIENCE_MS))
		fail("its group was called and it heard nothing");
	else
		expect("the call's sender", victim_pid, info.si_pid);
	if (!take_signal(GO, &info, TREE_PATIENCE_MS))
		fail("it was never let go");
	expect_no_signal("for another group", ROLL);
	return 0;
}

static int simple(void *name)
{
	return stay(name);
}

/* Leads a group of its own, with a child in it. */
static int group_leader(void *name)
{
	char child[16];
	must(setpgid(0, 0));
	snprintf(child, sizeof child, "%s-in", (char *)name);
	pid_t pid = tree_fork(child, simple, child);
	int code = stay(name);
	tree_expect_exit(child, pid, 0);
	return code;
}

/* Not before its parent is gone and it is the root's. */
static void await_orphanage(void)
{
	if (!tree_eventually(getppid() == victim_pid))
		broken("%sit is no orphan", victim_task);
}

static int orphan(void *name)
{
	await_orphanage();
	return stay(name);
}

static int orphaned_leader(void *name)
{
	await_orphanage();
	return group_leader(name);
}

/* Leads a session with a second group, one of whose members is a grandchild. */
static int session_leader(void *name)
{
	char first[16], second[16], nested[16];
	must(setsid());
	snprintf(first, sizeof first, "%s-bg", (char *)name);
	pid_t background = tree_fork(first, group_leader, first);
	snprintf(second, sizeof second, "%s-fg", (char *)name);
	pid_t foreground = tree_fork(second, simple, second), inner = 0;
	snprintf(nested, sizeof nested, "%s.s", (char *)name);
	if (!strchr(name, '.'))
		inner = tree_fork(nested, session_leader, nested);
	int code = stay(name);
	tree_expect_exit(first, background, 0);
	tree_expect_exit(second, foreground, 0);
	if (inner)
		tree_expect_exit(nested, inner, 0);
	return code;
}

/* Waits for its group to be there, joins it, and tells. */
static int joiner(void *name)
{
	pid_t group = atoi(strchr(name, '@') + 1);
	char own[16];
	snprintf(own, sizeof own, "%.*s", (int)strcspn(name, "@"), (char *)name);
	must(prctl(PR_SET_NAME, own));
	must(setpgid(0, group));
	return stay(own);
}

/* A session leader that leaves members behind: one in its group, one in a group of its own. */
static int leaver(void *name)
{
	char member[16];
	must(setsid());
	snprintf(member, sizeof member, "%s-left", (char *)name);
	tree_fork(member, orphan, member);
	snprintf(member, sizeof member, "%s-own", (char *)name);
	tree_fork(member, orphaned_leader, member);
	close(tree_pipe[1]);
	return 0;
}

/* Ends before READY; the group that it leads stays. */
static int dying(void *unused)
{
	siginfo_t info;
	(void)unused;
	close(tree_pipe[1]);
	return !take_signal(GO, &info, TREE_PATIENCE_MS);
}

/* Whether a call went to this group before. */
static bool is_called(const struct member *members, int before, pid_t group)
{
	for (int i = 0; i < before; i++)
		if (members[i].place.group == group)
			return true;
	return false;
}

int main(int argc, char **argv)
{
	struct member members[MAX];
	bool orphaned = argc > 1 && !strcmp(argv[1], "orphaned");
	pid_t children[16], started = 0;
	char joined[32], left[32];
	tree_start();
	board = tree_shared(MAX * sizeof *board);
	count = tree_shared(sizeof *count);
	must(prctl(PR_SET_CHILD_SUBREAPER, 1));
	block(ROLL);
	block(GO);

	children[started++] = tree_fork("same", simple, "same");
	children[started++] = tree_fork("group", group_leader, "group");
	children[started++] = tree_fork("group2", group_leader, "group2");
	children[started++] = tree_fork("session", session_leader, "session");
	/* Into the group of a brother. */
	if (!tree_eventually(getpgid(children[1]) == children[1]))
		broken("the group is not there");
	snprintf(joined, sizeof joined, "joined@%d", children[1]);
	children[started++] = tree_fork("joined", joiner, joined);
	int expected = 1 + 2 + 2 + 2 * (1 + 2 + 1) + 1;
	/* A group without its leader. */
	pid_t leader = tree_fork("dying", dying, NULL);
	must(setpgid(leader, leader));
	snprintf(left, sizeof left, "left@%d", leader);
	children[started++] = tree_fork("left", joiner, left);
	if (!tree_eventually(getpgid(children[started - 1]) == leader))
		broken("the group is not joined");
	must(kill(leader, GO));
	tree_expect_exit("dying", leader, 0);
	expected++;
	if (orphaned) {
		/* A session without its leader. */
		pid_t gone = tree_fork("gone", leaver, "gone");
		tree_expect_exit("gone", gone, 0);
		expected += 3;
	}
	tree_all_set(expected);
	int members_count = atomic_load(count);
	memcpy(members, board, sizeof members);
	munmap(board, MAX * sizeof *board);
	munmap(count, sizeof *count);
	for (int i = 0; i < members_count; i++)
		expect_place_of(members[i].name, members[i].place);
	victim_ready();
	victim_wait();

	for (int i = 0; i < members_count; i++)
		expect_place_of(members[i].name, members[i].place);
	for (int i = 0; i < members_count; i++)
		if (!is_called(members, i, members[i].place.group) && kill(-members[i].place.group, ROLL) == -1)
			fail("group %d of %s cannot be called: %s", members[i].place.group, members[i].name,
			     strerror(errno));
	siginfo_t info;
	/* Its own group was called too. */
	if (!take_signal(ROLL, &info, TREE_PATIENCE_MS))
		fail("the root's group was called and it heard nothing");
	for (int i = 0; i < members_count; i++)
		if (kill(members[i].place.pid, GO) == -1)
			fail("%s cannot be let go: %s", members[i].name, strerror(errno));
	for (int i = 0; i < started; i++)
		tree_expect_exit("child", children[i], 0);
	/* Those whose parent is gone came to the root. */
	for (int i = 0; i < members_count; i++)
		if (!strcmp(members[i].name, "gone-left") || !strcmp(members[i].name, "gone-own"))
			tree_expect_exit(members[i].name, members[i].place.pid, 0);
	tree_expect_no_child();
	victim_end();
}
