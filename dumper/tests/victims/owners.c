/*
 * Descriptors whose signals go to others of the tree (F_SETOWN): to a child, to a parent, to a sibling that is younger, to
 * a process by the number of its first thread, to a group, to a group whose leader is gone. After a restore each has its
 * owner, and each owner is told when something can be read, and nobody else.
 */
#include "tree.h"

#include <poll.h>

/* Numbers of descriptors; the writing end is the next one. */
enum { TO_FIRST = 10, TO_GROUP = 12, TO_SECOND = 14, TO_ORPHANS = 16, TO_ROOT = 18, TO_YOUNGER = 20, FILE_TO_GROUP = 22 };

/* The signal of each. */
#define SIGNAL_OF(fd) (SIGRTMIN + 1 + ((fd) - TO_FIRST) / 2)
#define SIGNALS 7

static int gate[2];
/* Of all tasks: filled by the root before they set themselves up. */
static struct who {
	pid_t first, second, third, old_group;
	atomic_bool complete;
} *who;

static void block_all(void)
{
	for (int i = 0; i < SIGNALS; i++)
		block(SIGRTMIN + 1 + i);
}

static void own(int fd, int kind, pid_t pid)
{
	struct f_owner_ex owner = { kind, pid };
	must(fcntl(fd, F_SETOWN_EX, &owner));
	must(fcntl(fd, F_SETSIG, SIGNAL_OF(fd)));
	must(fcntl(fd, F_SETFL, must(fcntl(fd, F_GETFL)) | O_ASYNC));
}

static void pipe_for(int fd, int kind, pid_t pid)
{
	int fds[2];
	must(pipe(fds));
	int reader = must(fcntl(fds[0], F_DUPFD, 120)), writer = must(fcntl(fds[1], F_DUPFD, 120));
	close(fds[0]);
	close(fds[1]);
	must(dup2(reader, fd));
	must(dup2(writer, fd + 1));
	close(reader);
	close(writer);
	own(fd, kind, pid);
}

static void expect_owner(int fd, int kind, pid_t pid)
{
	struct f_owner_ex owner = { -1, -1 };
	must(fcntl(fd, F_GETOWN_EX, &owner));
	expect_at("owner's kind", fd, kind, owner.type);
	expect_at("owner", fd, pid, owner.pid);
	expect_at("owner's signal", fd, SIGNAL_OF(fd), fcntl(fd, F_GETSIG));
	expect_at("O_ASYNC", fd, O_ASYNC, must(fcntl(fd, F_GETFL)) & O_ASYNC);
}

/* Something can be read. */
static void fill(int fd)
{
	if (write(fd + 1, "x", 1) != 1)
		fail("write to %d: %s", fd + 1, strerror(errno));
}

/* Its end is no news: a pipe's reader is told when the writer's end is closed. */
static void hush(int fd)
{
	must(fcntl(fd, F_SETFL, must(fcntl(fd, F_GETFL)) & ~O_ASYNC));
}

/* That this task is told of these descriptors, and of no other once all have been filled. */
static void expect_told(int one, int two)
{
	siginfo_t info;
	char byte;
	for (int i = 0; i < 2; i++) {
		int fd = i ? two : one;
		if (fd == 0)
			continue;
		if (!take_signal(SIGNAL_OF(fd), &info, TREE_PATIENCE_MS))
			fail("it is not told of fd %d", fd);
		else
			expect_at("si_band", fd, POLLIN | POLLRDNORM, info.si_band); /* si_fd is one that CRIU had */
	}
	while (read(gate[0], &byte, 1) == -1 && errno == EINTR)
		;
	for (int i = 0; i < SIGNALS; i++)
		expect_no_signal("that is another's", SIGRTMIN + 1 + i);
}

static int first(void *unused)
{
	(void)unused;
	close(gate[1]);
	if (!tree_eventually(who->complete))
		broken("nobody says who is who");
	pipe_for(TO_YOUNGER, F_OWNER_PID, who->third);
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	expect_owner(TO_YOUNGER, F_OWNER_PID, who->third);
	fill(TO_YOUNGER);
	expect_told(TO_FIRST, TO_GROUP);
	hush(TO_YOUNGER);
	return 11;
}

static int second(void *unused)
{
	(void)unused;
	close(gate[1]);
	if (!tree_eventually(who->complete))
		broken("nobody says who is who");
	pipe_for(TO_ROOT, F_OWNER_PID, victim_pid);
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	expect_owner(TO_ROOT, F_OWNER_PID, victim_pid);
	fill(TO_ROOT);
	expect_told(TO_SECOND, TO_GROUP);
	hush(TO_ROOT);
	return 12;
}

static int third(void *unused)
{
	(void)unused;
	close(gate[1]);
	if (!tree_eventually(who->complete))
		broken("nobody says who is who");
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	expect_told(TO_ORPHANS, TO_YOUNGER);
	return 13;
}

int main(void)
{
	tree_start();
	block_all();
	who = tree_shared(sizeof *who);
	must(pipe(gate));
	who->first = tree_fork("first", first, NULL);
	who->second = tree_fork("second", second, NULL);
	must(setpgid(who->first, 0));
	must(setpgid(who->second, who->first));
	pid_t leader = must(fork());
	if (leader == 0) {
		close(tree_pipe[1]);
		pause();
		_exit(0);
	}
	must(setpgid(leader, 0));
	who->third = tree_fork("third", third, NULL);
	must(setpgid(who->third, leader));
	must(kill(leader, SIGKILL));
	must(waitpid(leader, NULL, 0));
	who->old_group = leader;
	who->complete = true;

	pipe_for(TO_FIRST, F_OWNER_PID, who->first);
	pipe_for(TO_GROUP, F_OWNER_PGRP, who->first);
	pipe_for(TO_SECOND, F_OWNER_TID, who->second);
	pipe_for(TO_ORPHANS, F_OWNER_PGRP, who->old_group);
	int file = pattern_file("file", 100);
	must(dup2(file, FILE_TO_GROUP));
	close(file);
	struct f_owner_ex group = { F_OWNER_PGRP, getpgrp() };
	must(fcntl(FILE_TO_GROUP, F_SETOWN_EX, &group));
	tree_ready(3);
	victim_wait();

	expect_owner(TO_FIRST, F_OWNER_PID, who->first);
	expect_owner(TO_GROUP, F_OWNER_PGRP, who->first);
	expect_owner(TO_SECOND, F_OWNER_TID, who->second);
	expect_owner(TO_ORPHANS, F_OWNER_PGRP, who->old_group);
	must(fcntl(FILE_TO_GROUP, F_GETOWN_EX, &group));
	expect("file's owner", getpgrp(), group.pid);
	expect("its kind", F_OWNER_PGRP, group.type);
	fill(TO_FIRST);
	fill(TO_GROUP);
	fill(TO_SECOND);
	fill(TO_ORPHANS);
	siginfo_t info;
	if (!take_signal(SIGNAL_OF(TO_ROOT), &info, TREE_PATIENCE_MS))
		fail("it is not told of fd %d", TO_ROOT);
	close(gate[1]);
	tree_expect_exit("first", who->first, 11);
	tree_expect_exit("second", who->second, 12);
	tree_expect_exit("third", who->third, 13);
	for (int i = 0; i < SIGNALS; i++)
		expect_no_signal("that is another's", SIGRTMIN + 1 + i);
	victim_end();
}
