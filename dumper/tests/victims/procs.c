/*
 * Files of processes in /proc: of the task itself, its parent, a child and a zombie, and of one that is gone.
 *
 * procs [by-criu]
 */
#include "tree.h"

enum { SELF = 20, SELF_DIR, CHILD, ZOMBIE, GONE, GONE_TOO, GONE_DIR, PROC, MEMINFO, PARENT, NAME };

static void open_at(int fd, int flags, const char *format, pid_t pid)
{
	char path[64];
	snprintf(path, sizeof path, format, pid);
	int made = must(open(path, flags));
	must(dup2(made, fd));
	close(made);
}

static void expect_line(const char *field, int fd, const char *wanted)
{
	char text[8192] = { 0 };
	must(lseek(fd, 0, SEEK_SET));
	if (read(fd, text, sizeof text - 1) <= 0)
		fail("%s cannot be read: %s", field, strerror(errno));
	if (!strstr(text, wanted))
		fail("%s has no %s", field, wanted);
}

static void expect_path(const char *field, int fd, const char *wanted)
{
	char link[64], path[PATH_MAX] = { 0 };
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	must(readlink(link, path, sizeof path - 1));
	expect_string(field, wanted, path);
}

static int child(void *unused)
{
	char wanted[32];
	(void)unused;
	pid_t parent = getppid();
	open_at(PARENT, O_RDONLY, "/proc/%d/status", parent);
	task_ready();
	victim_wait();
	snprintf(wanted, sizeof wanted, "\nPid:\t%d\n", parent);
	expect_line("the parent's", PARENT, wanted);
	nap_ms(300);
	return 4;
}

static pid_t ended(void)
{
	pid_t pid = must(fork());
	if (pid == 0) {
		pause();
		_exit(0);
	}
	return pid;
}

int main(int argc, char **argv)
{
	/* Of an open /proc/PID CRIU's own dump writes the path with a slash behind it. */
	bool by_criu = argc > 1 && !strcmp(argv[1], "by-criu");
	char wanted[64], byte;
	struct stat st;
	siginfo_t info;
	tree_start();
	pid_t gone = ended(), zombie = ended();
	open_at(GONE, O_RDONLY, "/proc/%d/status", gone);
	open_at(GONE_TOO, O_RDONLY | O_NONBLOCK, "/proc/%d/mounts", gone);
	open_at(GONE_DIR, O_RDONLY | O_DIRECTORY, "/proc/%d", gone);
	open_at(ZOMBIE, O_RDONLY, "/proc/%d/stat", zombie);
	must(kill(gone, SIGKILL));
	must(kill(zombie, SIGKILL));
	must(waitpid(gone, NULL, 0));
	must(waitid(P_PID, zombie, &info, WEXITED | WNOWAIT));
	open_at(SELF, O_RDONLY, "/proc/%d/status", victim_pid);
	open_at(SELF_DIR, O_RDONLY | O_DIRECTORY, by_criu ? "/proc/%d/net" : "/proc/%d", victim_pid);
	open_at(NAME, O_PATH, "/proc/%d/comm", victim_pid);
	open_at(PROC, O_RDONLY | O_DIRECTORY, "/proc", 0);
	open_at(MEMINFO, O_RDONLY, "/proc/meminfo", 0);
	must(read(SELF, &byte, 1));
	pid_t pid = tree_fork("child", child, NULL);
	open_at(CHILD, O_RDONLY, "/proc/%d/status", pid);
	must(fcntl(CHILD, F_SETFD, FD_CLOEXEC));
	tree_ready(1);
	victim_wait();

	expect("position", 1, lseek(SELF, 0, SEEK_CUR));
	snprintf(wanted, sizeof wanted, "\nPid:\t%d\n", victim_pid);
	expect_line("own status", SELF, wanted);
	int fd = openat(SELF_DIR, by_criu ? "../status" : "status", O_RDONLY);
	expect_line("own directory", fd, wanted);
	close(fd);
	snprintf(wanted, sizeof wanted, "\nPid:\t%d\n", pid);
	expect_line("the child's", CHILD, wanted);
	expect("close-on-exec", FD_CLOEXEC, fcntl(CHILD, F_GETFD));
	snprintf(wanted, sizeof wanted, "%d (", zombie);
	expect_line("the zombie's", ZOMBIE, wanted);
	expect_line("meminfo", MEMINFO, "MemTotal:");
	expect("the directory of all", 0, fstatat(PROC, "meminfo", &st, 0));
	snprintf(wanted, sizeof wanted, "/proc/%d/comm", victim_pid);
	expect_path("a name only", NAME, wanted);
	/* Of one that is gone nothing can be read. */
	snprintf(wanted, sizeof wanted, "/proc/%d/status", gone);
	expect_path("gone", GONE, wanted);
	must(lseek(GONE, 0, SEEK_SET));
	expect("reading what is gone", -1, read(GONE, &byte, 1));
	expect("errno", ESRCH, errno);
	snprintf(wanted, sizeof wanted, "/proc/%d/mounts", gone);
	expect_path("gone, too", GONE_TOO, wanted);
	snprintf(wanted, sizeof wanted, "/proc/%d (deleted)", gone);
	expect_path("directory of one that is gone", GONE_DIR, wanted);
	expect("looking into it", -1, openat(GONE_DIR, "status", O_RDONLY));
	expect("nobody has its number", -1, kill(gone, 0));
	tree_expect_exit("child", pid, 4);
	must(waitpid(zombie, NULL, 0));
	tree_expect_no_child();
	victim_end();
}
