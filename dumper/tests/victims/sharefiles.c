/*
 * Tasks with one table of descriptors (CLONE_FILES), two such groups, and a plain child beside them: afterwards what one
 * opens, duplicates or closes is so in the others of its group, and only there.
 */
#include "tree.h"

/* Marks in the table by which the tasks take turns. */
enum { KEPT = 10, PIPE_READ, PIPE_WRITE, BY_ROOT = 20, BY_CHILD, BY_GRANDCHILD, CLOSED, GROUP_TWO = 30, BY_SECOND };

static bool has(int fd)
{
	return fcntl(fd, F_GETFD) != -1;
}

/* As fork, but with one table. No libc call that keeps the thread's id is used in such a child. */
static pid_t share(const char *name, int (*run)(void *), void *argument)
{
	pid_t pid = must(syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0));
	if (pid == 0) {
		snprintf(victim_task, sizeof victim_task, "%s: ", name);
		atomic_store(&victim_failures, 0);
		must(prctl(PR_SET_NAME, name));
		task_end(run(argument));
	}
	return pid;
}

static bool one_table(pid_t one, pid_t other)
{
	return syscall(SYS_kcmp, one, other, 2 /* KCMP_FILES */, 0, 0) == 0;
}

/* Ready marks: files are no use where all share the pipe's end, so each makes a directory. */
static void mark(const char *name)
{
	must(mkdir(name, 0755) == -1 && errno != EEXIST ? -1 : 0);
}

static bool marked(const char *name)
{
	return access(name, F_OK) == 0;
}

static int grandchild(void *unused)
{
	(void)unused;
	struct place place = place_of_self();
	mark("grandchild");
	victim_wait();
	expect_place(place);
	if (!tree_eventually(has(BY_CHILD)))
		fail("what the child opened is not here");
	must(dup2(KEPT, BY_GRANDCHILD));
	return 13;
}

static int child(void *unused)
{
	(void)unused;
	pid_t pid = share("grandchild", grandchild, NULL);
	struct place place = place_of_self();
	mark("child");
	victim_wait();
	expect_place(place);
	if (!tree_eventually(has(BY_ROOT)))
		fail("what the root opened is not here");
	int fd = open("kept", O_RDONLY);
	must(dup2(fd, BY_CHILD));
	close(fd);
	if (!tree_eventually(!has(CLOSED)))
		fail("what the root closed is still here");
	tree_expect_exit("grandchild", pid, 13);
	return 12;
}

static int other(void *leader)
{
	pid_t table = (intptr_t)leader;
	struct place place = place_of_self();
	mark("other");
	victim_wait();
	expect_place(place);
	expect("one table with its leader", true, one_table(getpid(), table));
	must(dup2(KEPT, BY_SECOND));
	return 15;
}

/* Leads a second group: a table of its own, that its child shares. */
static int second(void *unused)
{
	(void)unused;
	close(KEPT);
	must(dup2(must(open("/dev/zero", O_RDONLY)), KEPT));
	must(dup2(KEPT, GROUP_TWO));
	pid_t pid = share("other", other, (void *)(intptr_t)getpid());
	struct place place = place_of_self();
	mark("second");
	victim_wait();
	expect_place(place);
	tree_expect_exit("other", pid, 15);
	expect("what its child opened", true, has(BY_SECOND));
	expect("what the first group opened", false, has(BY_ROOT));
	return 14;
}

static int plain(void *unused)
{
	(void)unused;
	struct place place = place_of_self();
	mark("plain");
	victim_wait();
	expect_place(place);
	nap_ms(100);
	expect("what the first group opened", false, has(BY_ROOT));
	expect("what it has itself", true, has(CLOSED));
	return 16;
}

/* Removes the marks, so that a second copy may make its own. */
static void unmark(void)
{
	static const char *const marks[] = { "child", "grandchild", "second", "other", "plain" };
	for (int i = 0; i < 5; i++)
		rmdir(marks[i]);
}

int main(void)
{
	int fds[2];
	char byte;
	tree_start();
	close(tree_pipe[0]);
	close(tree_pipe[1]);
	must(dup2(must(pattern_file("kept", 500)), KEPT));
	must(dup2(KEPT, CLOSED));
	must(pipe(fds));
	must(dup2(fds[0], 40));
	must(dup2(fds[1], 41));
	for (int fd = 3; fd < KEPT; fd++)
		close(fd);
	must(dup2(40, PIPE_READ));
	must(dup2(41, PIPE_WRITE));
	close(40);
	close(41);
	must(lseek(KEPT, 123, SEEK_SET));
	must(fcntl(PIPE_WRITE, F_SETFD, FD_CLOEXEC));
	if (write(PIPE_WRITE, "shared", 6) != 6)
		broken("pipe");
	pid_t one = share("child", child, NULL);
	pid_t two = tree_fork("second", second, NULL), apart = tree_fork("plain", plain, NULL);
	if (!tree_eventually(marked("child") && marked("grandchild") && marked("second") && marked("other") &&
			     marked("plain")))
		broken("not all are ready");
	unmark();
	victim_ready();
	victim_wait();

	expect("one table with the child", true, one_table(getpid(), one));
	expect("one table with the second group", false, one_table(getpid(), two));
	expect("one table with the plain child", false, one_table(getpid(), apart));
	expect("offset", 123, lseek(KEPT, 0, SEEK_CUR));
	expect("close-on-exec", FD_CLOEXEC, fcntl(PIPE_WRITE, F_GETFD));
	for (int i = 0; i < 6; i++)
		expect_at("pipe", i, "shared"[i], read(PIPE_READ, &byte, 1) == 1 ? byte : 0);
	must(dup2(KEPT, BY_ROOT));
	close(CLOSED);
	if (!tree_eventually(has(BY_GRANDCHILD)))
		fail("what the grandchild opened is not here");
	tree_expect_exit("child", one, 12);
	tree_expect_exit("second", two, 14);
	tree_expect_exit("plain", apart, 16);
	expect("what the second group opened", false, has(GROUP_TWO) || has(BY_SECOND));
	tree_expect_no_child();
	victim_end();
}
