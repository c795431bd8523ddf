/*
 * A controlling terminal, as a terminal emulator gives one to a shell: the root holds the master; its child leads a
 * session that has the slave, with one process group in the foreground and one behind it. Afterwards keys and a new window
 * size reach the foreground, and a hang-up the leader.
 *
 * terminal [members]: the terminal is that of the leader's children as well
 */
#include "tree.h"
#include <sys/ioctl.h>
#include <termios.h>

enum { MASTER = 10, SLAVE };

static bool members;

static void expect_terminal(pid_t session, pid_t foreground)
{
	expect("session by stat", session, atoi(stat_field(getpid(), 6)));
	expect("terminal by stat", session ? 1 : 0, atoi(stat_field(getpid(), 7)) != 0);
	expect("session of the terminal", session, tcgetsid(SLAVE));
	expect("foreground", foreground, tcgetpgrp(SLAVE));
	int fd = open("/dev/tty", O_RDWR);
	if (fd < 0)
		fail("/dev/tty: %s", strerror(errno));
	close(fd);
}

static void block_all(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGWINCH);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGCONT);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
}

static bool comes(int signal, long ms)
{
	sigset_t set;
	struct timespec time = { ms / 1000, ms % 1000 * 1000000 };
	sigemptyset(&set);
	sigaddset(&set, signal);
	return sigtimedwait(&set, NULL, &time) == signal;
}

static int fore(void *unused)
{
	(void)unused;
	block_all();
	must(setpgid(0, 0));
	struct place place = place_of_self();
	/* The leader puts it there. */
	if (!tree_eventually(tcgetpgrp(SLAVE) == getpid()))
		broken("%sit is not in the foreground", victim_task);
	task_ready();
	victim_wait();
	expect_place(place);
	if (members)
		expect_terminal(getsid(0), getpid());
	if (!comes(SIGINT, 5000))
		fail("the key did not interrupt it");
	if (!comes(SIGWINCH, 5000))
		fail("it was not told of the window");
	return 0;
}

static int behind(void *unused)
{
	(void)unused;
	block_all();
	must(setpgid(0, 0));
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	if (comes(SIGINT, 500))
		fail("the key interrupted it");
	return 0;
}

static int leader(void *path)
{
	block_all();
	must(setsid());
	close(MASTER);
	int fd = must(open(path, O_RDWR));
	must(dup2(fd, SLAVE));
	if (fd != SLAVE)
		close(fd);
	must(fcntl(SLAVE, F_SETFD, FD_CLOEXEC));
	pid_t front = tree_fork("fore", fore, NULL);
	pid_t back = tree_fork("behind", behind, NULL);
	if (!tree_eventually(getpgid(front) == front))
		broken("no group");
	must(tcsetpgrp(SLAVE, front));
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	expect_terminal(getpid(), front);
	tree_expect_exit("fore", front, 0);
	tree_expect_exit("behind", back, 0);
	int done = open("done", O_CREAT | O_WRONLY, 0600);
	close(done);
	if (!comes(SIGHUP, 10000))
		fail("it was not told of the end of the terminal");
	return 7;
}

int main(int argc, char **argv)
{
	members = argc > 1 && !strcmp(argv[1], "members");
	char path[64], rest[256];
	int index, zero = 0;
	tree_start();
	int fd = must(open("/dev/ptmx", O_RDWR | O_NOCTTY));
	must(dup2(fd, MASTER));
	if (fd != MASTER)
		close(fd);
	must(ioctl(MASTER, TIOCSPTLCK, &zero));
	must(ioctl(MASTER, TIOCGPTN, &index));
	snprintf(path, sizeof path, "/dev/pts/%d", index);
	unlink("done");
	pid_t child = tree_fork("leader", leader, path);
	tree_ready(3);
	victim_wait();
	pid_t session = 0;
	ioctl(MASTER, TIOCGSID, &session);
	expect("session by the master", child, session);
	if (write(MASTER, "\003", 1) != 1)
		fail("no key can be pressed");
	struct winsize size = { 33, 44, 0, 0 };
	must(ioctl(MASTER, TIOCSWINSZ, &size));
	if (read(MASTER, rest, sizeof rest) < 2 || memcmp(rest, "^C", 2))
		fail("the key is not shown");
	if (!tree_eventually(access("done", F_OK) == 0))
		fail("the leader is not done");
	unlink("done");
	close(MASTER);
	tree_expect_exit("leader", child, 7);
	victim_end();
}
