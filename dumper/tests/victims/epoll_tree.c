/*
 * An epoll set that parent and child have together: what the child has closed of it is watched all the same, and both
 * take events of it. A second child has a set of its own, of pipes that the parent writes to.
 */
#include "tree.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

enum { SET = 20, COUNTER, CLOSED_BY_CHILD, OWN_SET, PIPE, WRITE, GO = 40 };

static void move_to(int from, int to)
{
	must(dup2(from, to));
	close(from);
}

static void add(int set, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = { events, { .u64 = data } };
	must(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
}

static void wait_one(const char *field, int set, uint64_t data)
{
	struct epoll_event got = { 0 };
	int n = epoll_wait(set, &got, 1, 5000);
	expect(field, 1, n);
	expect(field, data, got.data.u64);
}

static int sharer(void *unused)
{
	uint64_t value;
	(void)unused;
	close(CLOSED_BY_CHILD);
	close(PIPE);
	close(WRITE);
	task_ready();
	victim_wait();
	/* The parent raises it; taken here, it is taken there. */
	wait_one("the shared set", SET, 1);
	expect("read", sizeof value, read(COUNTER, &value, sizeof value));
	return 5;
}

static int reader(void *unused)
{
	char byte = 0;
	(void)unused;
	move_to(must(epoll_create1(EPOLL_CLOEXEC)), OWN_SET);
	add(OWN_SET, PIPE, EPOLLIN | EPOLLET, 3);
	close(WRITE);
	close(SET);
	task_ready();
	victim_wait();
	wait_one("a pipe of the parent's", OWN_SET, 3);
	expect("read", 1, read(PIPE, &byte, 1));
	expect("byte", 'p', byte);
	return 6;
}

int main(void)
{
	uint64_t one = 1;
	int fds[2];
	tree_start();
	move_to(must(epoll_create1(0)), SET);
	move_to(must(eventfd(0, EFD_NONBLOCK)), COUNTER);
	move_to(must(eventfd(0, EFD_NONBLOCK)), CLOSED_BY_CHILD);
	must(pipe(fds));
	move_to(fds[0], PIPE);
	move_to(fds[1], WRITE);
	add(SET, COUNTER, EPOLLIN, 1);
	add(SET, CLOSED_BY_CHILD, EPOLLIN, 2);
	pid_t first = tree_fork("sharer", sharer, NULL);
	pid_t second = tree_fork("reader", reader, NULL);
	close(PIPE);
	tree_ready(2);
	victim_wait();

	expect("one set", 1, same_file(victim_pid, SET, first, SET));
	must(write(COUNTER, &one, sizeof one));
	must(write(WRITE, "p", 1));
	tree_expect_exit("sharer", first, 5);
	tree_expect_exit("reader", second, 6);
	must(write(CLOSED_BY_CHILD, &one, sizeof one));
	wait_one("what the child had closed", SET, 2);
	tree_expect_no_child();
	victim_end();
}
