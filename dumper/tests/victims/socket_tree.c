/*
 * Unix sockets between tasks: pairs whose ends two siblings have, with what waits in them, one that waits in a read, a server
 * with a child for each connection, one end that several share, an end whose task is gone.
 */
#include "tree.h"
#include <sys/socket.h>
#include <sys/un.h>

enum { DOWN = 10, UP, LEFT, RIGHT, LISTENER, CLIENT, SERVER, INBOX, SENDER, ORPHANED, ENDED, LAST };

static void put(int made, int number)
{
	must(dup2(must(made), number));
	close(made);
}

static void pair_at(int type, int one, int other)
{
	int fds[2];
	must(socketpair(AF_UNIX, type, 0, fds));
	int first = must(fcntl(fds[0], F_DUPFD, 100)), second = must(fcntl(fds[1], F_DUPFD, 100));
	close(fds[0]);
	close(fds[1]);
	put(first, one);
	put(second, other);
}

static struct sockaddr_un at(const char *name, socklen_t *size)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int length = snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "%s of %d", name, victim_pid);
	*size = offsetof(struct sockaddr_un, sun_path) + 1 + length;
	return address;
}

static void keep(const int *fds, int count)
{
	for (int fd = DOWN; fd < LAST; fd++) {
		bool kept = false;
		for (int i = 0; i < count; i++)
			kept |= fds[i] == fd;
		if (!kept)
			close(fd);
	}
}
#define KEEP(...) keep((const int[]){ __VA_ARGS__ }, sizeof(int[]){ __VA_ARGS__ } / sizeof(int))

static void give(const char *field, int fd, const char *text)
{
	if (send(fd, text, strlen(text), MSG_NOSIGNAL) != (ssize_t)strlen(text))
		fail("%s: send: %s", field, strerror(errno));
}

static void take(const char *field, int fd, const char *expected)
{
	char text[100] = "";
	ssize_t got;
	do
		got = recv(fd, text, sizeof text - 1, 0);
	while (got == -1 && errno == EINTR);
	if (got < 0)
		fail("%s: receive: %s", field, strerror(errno));
	expect_string(field, expected, text);
}

/* Answers the root and the other sibling. */
static int left(void *unused)
{
	(void)unused;
	KEEP(DOWN, LEFT, CLIENT, SENDER);
	give("left", LEFT, "from the left");
	task_ready();
	victim_wait();
	/* Before the other takes from it. */
	take("shared end", DOWN, "down");
	take("from the right", LEFT, "from the right");
	give("sender", SENDER, "late");
	give("client", CLIENT, "request");
	take("client", CLIENT, "answer");
	take("shared end, once more", DOWN, "go");
	return 31;
}

static int right(void *unused)
{
	(void)unused;
	KEEP(RIGHT, SERVER, INBOX, DOWN);
	give("right", RIGHT, "from the right");
	task_ready();
	victim_wait();
	take("from the left", RIGHT, "from the left");
	take("inbox, early", INBOX, "early");
	take("inbox", INBOX, "late");
	take("server", SERVER, "request");
	give("server", SERVER, "answer");
	take("shared end, by the right", DOWN, "go");
	return 32;
}

/* Waits in a read since before READY. */
static int waits(void *unused)
{
	(void)unused;
	KEEP(ENDED);
	task_ready();
	take("waited", ENDED, "woken");
	expect("received before it was asked", true, victim_asked());
	return 33;
}

int main(void)
{
	socklen_t size;
	tree_start();
	pair_at(SOCK_SEQPACKET, UP, DOWN);
	pair_at(SOCK_STREAM, LEFT, RIGHT);
	pair_at(SOCK_STREAM, ORPHANED, ENDED);
	struct sockaddr_un address = at("listener", &size);
	put(socket(AF_UNIX, SOCK_STREAM, 0), LISTENER);
	must(bind(LISTENER, (struct sockaddr *)&address, size));
	must(listen(LISTENER, 3));
	put(socket(AF_UNIX, SOCK_STREAM, 0), CLIENT);
	must(connect(CLIENT, (struct sockaddr *)&address, size));
	put(accept(LISTENER, NULL, NULL), SERVER);
	address = at("inbox", &size);
	put(socket(AF_UNIX, SOCK_DGRAM, 0), INBOX);
	must(bind(INBOX, (struct sockaddr *)&address, size));
	put(socket(AF_UNIX, SOCK_DGRAM, 0), SENDER);
	must(connect(SENDER, (struct sockaddr *)&address, size));
	give("sender", SENDER, "early");
	give("up", UP, "down");
	pid_t one = tree_fork("left", left, NULL), two = tree_fork("right", right, NULL);
	pid_t three = tree_fork("waits", waits, NULL);
	KEEP(UP, LISTENER, ORPHANED);
	tree_all_set(3);
	nap_ms(50);
	victim_ready();
	victim_wait();

	expect("one shared end", true, same_file(one, DOWN, two, DOWN));
	expect("inbox and sender", false, same_file(one, SENDER, two, INBOX));
	/* Both have waited for this, so that they could be asked. */
	give("up", UP, "go");
	give("up", UP, "go");
	give("orphaned", ORPHANED, "woken");
	tree_expect_exit("waits", three, 33);
	tree_expect_exit("left", one, 31);
	tree_expect_exit("right", two, 32);
	expect("nobody is at the other end", EPIPE, send(UP, "x", 1, MSG_NOSIGNAL) == -1 ? errno : 0);
	tree_expect_no_child();
	victim_end();
}
