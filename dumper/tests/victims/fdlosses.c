/*
 * One descriptor with something that a restore drops: after it, the check fails and says what.
 *
 * fdlosses WHAT
 */
#include "victim.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>

static int fd, other;

static void put(int made)
{
	fd = must(dup2(must(made), 77));
	close(made);
}

/* Since it was set a second must not pass before the timer is there anew. */
static int64_t due;

static int at_abstract(int type, const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int length = snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "%s %d", name, getpid());
	int made = must(socket(AF_UNIX, type, 0));
	must(bind(made, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + 1 + length));
	return made;
}

static void reach(int from, int to)
{
	struct sockaddr_un address;
	socklen_t size = sizeof address;
	must(getsockname(to, (struct sockaddr *)&address, &size));
	must(connect(from, (struct sockaddr *)&address, size));
}

static int unix_socket(const char *what)
{
	int pair[2], on = 1, two = 2;
	bool packets = !strcmp(what, "sender") || !strcmp(what, "left");
	must(socketpair(AF_UNIX, packets ? SOCK_DGRAM : SOCK_STREAM, 0, pair));
	other = must(dup2(pair[1], 78));
	if (!strcmp(what, "reuse"))
		must(setsockopt(pair[0], SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
	else if (!strcmp(what, "peek"))
		must(setsockopt(pair[0], SOL_SOCKET, SO_PEEK_OFF, &two, sizeof two));
	else if (!strcmp(what, "error")) {
		/* Closed with something unread: the other end is told ECONNRESET. */
		must(write(pair[0], "x", 1));
		close(other);
	} else if (!strcmp(what, "credentials")) {
		must(setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
		must(setresuid(-1, 5, 0));
		must(write(other, "x", 1));
		must(setresuid(-1, 0, 0));
	} else if (!strcmp(what, "sender")) {
		other = at_abstract(SOCK_DGRAM, "sender");
		close(pair[0]);
		pair[0] = at_abstract(SOCK_DGRAM, "receiver");
		/* Not connected: what a connected one has sent is sent by it again. */
		struct sockaddr_un address;
		socklen_t size = sizeof address;
		must(getsockname(pair[0], (struct sockaddr *)&address, &size));
		must(sendto(other, "x", 1, 0, (struct sockaddr *)&address, size));
	} else if (!strcmp(what, "left"))
		close(other);
	else if (!strcmp(what, "address")) {
		int listener = at_abstract(SOCK_STREAM, "listener");
		must(listen(listener, 1));
		close(pair[0]);
		pair[0] = must(socket(AF_UNIX, SOCK_STREAM, 0));
		reach(pair[0], listener);
		must(dup2(pair[0], 79));
		close(pair[0]);
		pair[0] = must(accept(listener, NULL, NULL));
	} else if (!strcmp(what, "peer")) {
		must(setresuid(-1, 5, 0));
		must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
		must(setresuid(-1, 0, 0));
		other = pair[1];
	} else
		broken("fdlosses unix-%s", what);
	close(pair[1]);
	return pair[0];
}

static void check_unix(const char *what)
{
	int value = 0;
	socklen_t size = sizeof value;
	char byte, control[CMSG_SPACE(sizeof(struct ucred))] = "";
	struct sockaddr_un address;
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control,
				  .msg_name = &address, .msg_namelen = sizeof address };
	if (!strcmp(what, "reuse") || !strcmp(what, "peek")) {
		must(getsockopt(fd, SOL_SOCKET, *what == 'r' ? SO_REUSEADDR : SO_PEEK_OFF, &value, &size));
		expect(what, *what == 'r' ? 1 : 2, value);
	} else if (!strcmp(what, "error")) {
		must(getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &size));
		expect(what, ECONNRESET, value);
	} else if (!strcmp(what, "credentials")) {
		expect("a byte", 1, recvmsg(fd, &message, MSG_DONTWAIT));
		struct cmsghdr *told = CMSG_FIRSTHDR(&message);
		expect(what, getpid(), told ? ((struct ucred *)CMSG_DATA(told))->pid : 0);
	} else if (!strcmp(what, "sender")) {
		expect("a byte", 1, recvmsg(fd, &message, MSG_DONTWAIT));
		expect(what, true, message.msg_namelen > sizeof(sa_family_t));
	} else if (!strcmp(what, "left"))
		expect(what, ECONNREFUSED, send(fd, "x", 1, MSG_NOSIGNAL) == -1 ? errno : 0);
	else if (!strcmp(what, "address")) {
		size = sizeof address;
		must(getsockname(fd, (struct sockaddr *)&address, &size));
		expect(what, true, size > sizeof(sa_family_t));
	} else {
		struct ucred peer;
		size = sizeof peer;
		must(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size));
		expect(what, 5, peer.uid);
	}
}

static void set_up(const char *what)
{
	uint64_t large = 0x100000007ull;
	struct epoll_event event = { EPOLLIN | EPOLLONESHOT, { .u64 = 1 } };
	int pair[2];
	if (!strcmp(what, "semaphore"))
		put(eventfd(3, EFD_SEMAPHORE));
	else if (!strcmp(what, "large-counter")) {
		put(eventfd(0, 0));
		must(write(fd, &large, sizeof large));
	} else if (!strcmp(what, "calendar")) {
		struct itimerspec at = { { 0, 0 }, { 0, 0 } };
		put(timerfd_create(CLOCK_REALTIME, 0));
		must(clock_gettime(CLOCK_REALTIME, &at.it_value));
		at.it_value.tv_sec += 30;
		due = now_ns(CLOCK_REALTIME) + 30000000000ll;
		must(timerfd_settime(fd, TFD_TIMER_ABSTIME, &at, NULL));
	} else if (!strcmp(what, "spent")) {
		must(pipe(pair));
		put(epoll_create1(0));
		must(epoll_ctl(fd, EPOLL_CTL_ADD, pair[0], &event));
		close(pair[1]);
		must(epoll_wait(fd, &event, 1, 1000) == 1 ? 0 : -1);
	} else if (!strcmp(what, "inotify-unread") || !strcmp(what, "inotify-once") || !strcmp(what, "inotify-unlinked")) {
		uint32_t more = what[8] == 'o' ? IN_ONESHOT : what[10] == 'l' ? IN_EXCL_UNLINK : 0;
		put(inotify_init1(IN_NONBLOCK));
		other = must(open("file", O_CREAT | O_RDWR, 0600));
		must(inotify_add_watch(fd, ".", (more == IN_EXCL_UNLINK ? IN_MODIFY : IN_ATTRIB) | more));
		if (!more)
			must(fchmod(other, 0640));
	} else if (!strcmp(what, "fanotify-unread")) {
		put(fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK, O_RDONLY));
		close(must(open("file", O_CREAT | O_RDWR, 0600)));
		must(fanotify_mark(fd, FAN_MARK_ADD, FAN_CLOSE_WRITE, AT_FDCWD, "file"));
		close(must(open("file", O_RDWR)));
	} else if (!strncmp(what, "terminal-", 9)) {
		other = must(posix_openpt(O_RDWR | O_NOCTTY));
		must(unlockpt(other));
		put(open(ptsname(other), O_RDWR | O_NOCTTY));
		if (what[9] == 'e')
			must(ioctl(fd, TIOCEXCL));
		else
			must(write(other, "abc\n", 4));
	} else if (!strcmp(what, "fifo-unread")) {
		must(mkfifo("fifo", 0600));
		int both = must(open("fifo", O_RDWR));
		put(open("fifo", O_WRONLY));
		must(write(fd, "unread", 6));
		close(both);
	} else if (!strncmp(what, "unix-", 5))
		put(unix_socket(what + 5));
	else
		broken("fdlosses %s", what);
}

static void check(const char *what)
{
	uint64_t value = 0;
	struct epoll_event event;
	struct fanotify_event_metadata told;
	char buffer[4096];
	if (!strcmp(what, "semaphore")) {
		must(read(fd, &value, sizeof value));
		expect("one is taken at a time", 1, value);
	} else if (!strcmp(what, "large-counter")) {
		must(fcntl(fd, F_SETFL, O_NONBLOCK));
		must(read(fd, &value, sizeof value));
		expect("counter", 0x100000007ull, value);
	} else if (!strcmp(what, "calendar")) {
		struct itimerspec left;
		must(timerfd_gettime(fd, &left));
		int64_t ns = left.it_value.tv_sec * 1000000000ll + left.it_value.tv_nsec;
		expect_range("time left", due - now_ns(CLOCK_REALTIME) - 1000000, due - now_ns(CLOCK_REALTIME) + 1000000, ns);
	} else if (!strcmp(what, "spent"))
		expect("events", 0, epoll_wait(fd, &event, 1, 0));
	else if (!strcmp(what, "inotify-unread"))
		expect("an event", true, read(fd, buffer, sizeof buffer) > 0);
	else if (!strcmp(what, "inotify-once")) {
		close(must(open("second", O_CREAT | O_RDWR, 0600)));
		must(chmod("file", 0604));
		expect("an event", true, read(fd, buffer, sizeof buffer) > 0);
		must(chmod("second", 0604));
		expect("one event only", -1, read(fd, buffer, sizeof buffer));
	} else if (!strcmp(what, "inotify-unlinked")) {
		/* What happens to a file without a name is not told. */
		must(unlink("file"));
		while (read(fd, buffer, sizeof buffer) > 0)
			;
		must(write(other, "x", 1));
		expect("no event", -1, read(fd, buffer, sizeof buffer));
	} else if (!strcmp(what, "fanotify-unread"))
		expect("an event", true, read(fd, &told, sizeof told) > 0);
	else if (!strncmp(what, "unix-", 5))
		check_unix(what + 5);
	else if (!strcmp(what, "terminal-unread")) {
		must(fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK));
		expect("a line", 4, read(fd, buffer, sizeof buffer));
	} else if (!strcmp(what, "terminal-exclusive")) {
		int exclusive = 0;
		must(ioctl(fd, 0x80045440 /* TIOCGEXCL */, &exclusive));
		expect("exclusive", 1, exclusive);
	} else {
		int reader = must(open("fifo", O_RDONLY | O_NONBLOCK));
		expect("what lies in it", 6, read(reader, buffer, sizeof buffer));
	}
}

int main(int argc, char **argv)
{
	victim_start();
	if (argc != 2)
		broken("fdlosses WHAT");
	set_up(argv[1]);
	victim_ready();
	victim_wait();
	check(argv[1]);
	victim_end();
}
