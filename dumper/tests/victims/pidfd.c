/*
 * Handles on processes: on the task itself, its parent, child and grandchild, a zombie, and on processes that are gone.
 */
#include "tree.h"
#include <poll.h>
#include <sys/ioctl.h>

enum { SELF = 20, CHILD, GRANDCHILD, ZOMBIE, GONE, GONE_TOO, GONE_DUP, OTHER_GONE, PARENT, NONBLOCK, COUNT_END };
#define PIDFD_NONBLOCK_FLAG O_NONBLOCK

static int open_at(int fd, pid_t pid, int flags)
{
	int made = must(syscall(434, pid, flags));
	must(dup2(made, fd));
	close(made);
	return fd;
}

static int signal_to(int fd)
{
	return syscall(424, fd, 0, NULL, 0);
}

static pid_t pid_of(int fd)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	char *text = slurp(path), *line = strstr(text, "\nPid:");
	pid_t pid = line ? atoi(line + 5) : -2;
	free(text);
	return pid;
}

static bool has_ended(int fd)
{
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	must(poll(&ready, 1, 0));
	return ready.revents & POLLIN;
}

static void expect_alive(const char *who, int fd, pid_t pid)
{
	if (pid_of(fd) != pid)
		fail("%s is %d, not %d", who, pid_of(fd), pid);
	expect(who, 0, signal_to(fd));
	expect(who, false, has_ended(fd));
}

static void expect_gone(const char *who, int fd)
{
	if (pid_of(fd) != -1)
		fail("%s is %d, not gone", who, pid_of(fd));
	expect(who, -1, signal_to(fd));
	expect(who, ESRCH, errno);
	expect(who, true, has_ended(fd));
}

/* Two handles are on one process where the kernel gives them one inode. */
static bool same_process(int one, int other)
{
	struct stat a, b;
	must(fstat(one, &a));
	must(fstat(other, &b));
	return a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

static int below(void *unused)
{
	(void)unused;
	task_ready();
	victim_wait();
	return 8;
}

static int child(void *shared)
{
	pid_t *grandchild = shared;
	pid_t parent = getppid();
	open_at(PARENT, parent, 0);
	*grandchild = tree_fork("grandchild", below, NULL);
	task_ready();
	victim_wait();
	expect_alive("parent", PARENT, parent);
	tree_expect_exit("grandchild", *grandchild, 8);
	return 7;
}

static pid_t ended_child(int fd, int other)
{
	pid_t pid = must(fork());
	if (pid == 0) {
		pause();
		_exit(0);
	}
	open_at(fd, pid, 0);
	if (other)
		open_at(other, pid, PIDFD_NONBLOCK_FLAG);
	must(kill(pid, SIGKILL));
	return pid;
}

int main(void)
{
	siginfo_t info = { 0 };
	tree_start();
	pid_t *grandchild = tree_shared(PAGE);
	open_at(SELF, victim_pid, 0);
	must(waitpid(ended_child(GONE, GONE_TOO), NULL, 0));
	must(waitpid(ended_child(OTHER_GONE, 0), NULL, 0));
	must(dup2(GONE, GONE_DUP));
	pid_t zombie = ended_child(ZOMBIE, 0);
	must(waitid(P_PID, zombie, &info, WEXITED | WNOWAIT));
	pid_t pid = tree_fork("child", child, grandchild);
	open_at(CHILD, pid, 0);
	open_at(NONBLOCK, pid, PIDFD_NONBLOCK_FLAG);
	must(fcntl(CHILD, F_SETFD, 0));
	must(fcntl(NONBLOCK, F_SETFD, FD_CLOEXEC));
	tree_all_set(2);
	open_at(GRANDCHILD, *grandchild, 0);
	victim_ready();
	victim_wait();

	expect_alive("self", SELF, victim_pid);
	/* It may have ended by now, and is waited for below. */
	expect("the child's", pid, pid_of(CHILD));
	expect("flags of the child's", 0, fcntl(CHILD, F_GETFL) & O_NONBLOCK);
	expect("flags of the other of the child's", O_NONBLOCK, fcntl(NONBLOCK, F_GETFL) & O_NONBLOCK);
	expect("close-on-exec", FD_CLOEXEC, fcntl(NONBLOCK, F_GETFD));
	expect("flags of one that is gone", O_NONBLOCK, fcntl(GONE_TOO, F_GETFL) & O_NONBLOCK);
	expect_gone("gone", GONE);
	expect_gone("gone, too", GONE_TOO);
	expect_gone("gone, duplicate", GONE_DUP);
	expect_gone("other gone", OTHER_GONE);
	expect("one process", true, same_process(GONE, GONE_TOO));
	expect("two processes", false, same_process(GONE, OTHER_GONE));
	expect("a duplicate", true, same_file(victim_pid, GONE, victim_pid, GONE_DUP));
	expect("no duplicate", false, same_file(victim_pid, GONE, victim_pid, GONE_TOO));
	expect("zombie", zombie, pid_of(ZOMBIE));
	expect("zombie has ended", true, has_ended(ZOMBIE));
	memset(&info, 0, sizeof info);
	expect("wait by the zombie's handle", 0, waitid(3 /* P_PIDFD */, ZOMBIE, &info, WEXITED));
	expect("who that was", zombie, info.si_pid);
	expect("how it ended", SIGKILL, info.si_status);
	tree_expect_exit("child", pid, 7);
	expect("the child has ended", true, has_ended(NONBLOCK));
	expect_gone("child", CHILD);
	expect_gone("grandchild", GRANDCHILD);
	tree_expect_no_child();
	victim_end();
}
