/*
 * Unix sockets without addresses: pairs of every kind with what waits in both directions, options, owners, shared
 * descriptions, directions that are shut, peers that are gone, sockets that are connected to nobody.
 *
 * sockets [empty]: with empty packets, which CRIU's own dump takes for the end of a queue.
 */
#include "victim.h"
#include <sys/socket.h>
#include <linux/filter.h>

enum {
	ONE = 10, OTHER, PACKET_ONE, PACKET_OTHER, SEQ_ONE, SEQ_OTHER, SHUT_ONE, SHUT_OTHER, SEQ_SHUT_ONE, SEQ_SHUT_OTHER,
	LEFT, LEFT_DATAGRAM, LEFT_SEQ, FRESH_STREAM, FRESH_DATAGRAM, TWIN, CLOSED, LAST
};

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

/* A packet or piece of `size` bytes, which `seed` tells from others. */
static void give(int fd, int seed, size_t size)
{
	uint8_t bytes[8192];
	for (size_t i = 0; i < size; i++)
		bytes[i] = mix(seed * 100000 + i);
	ssize_t done = send(fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (done != (ssize_t)size)
		fail("send of %zu bytes by %d: %s", size, fd, done < 0 ? strerror(errno) : "cut");
}

static void take(const char *field, int fd, int seed, size_t size)
{
	uint8_t bytes[8192];
	ssize_t got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
	if (got != (ssize_t)size) {
		fail("%s: %zd bytes of %zu: %s", field, got, size, got < 0 ? strerror(errno) : "");
		return;
	}
	for (size_t i = 0; i < size; i++)
		if (bytes[i] != (uint8_t)mix(seed * 100000 + i)) {
			fail("%s byte %zu", field, i);
			return;
		}
}

static void take_nothing(const char *field, int fd)
{
	char byte;
	if (recv(fd, &byte, 1, MSG_DONTWAIT) != -1 || errno != EAGAIN)
		fail("%s: something is left", field);
}

static void take_end(const char *field, int fd)
{
	char byte;
	ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT);
	if (got != 0)
		fail("%s does not end: %zd %s", field, got, got < 0 ? strerror(errno) : "");
}

static const struct {
	const char *name;
	int option;
} OPTIONS[] = {
	{ "SO_SNDBUF", SO_SNDBUF }, { "SO_RCVBUF", SO_RCVBUF }, { "SO_PRIORITY", SO_PRIORITY },
	{ "SO_RCVLOWAT", SO_RCVLOWAT }, { "SO_MARK", SO_MARK }, { "SO_PASSCRED", SO_PASSCRED },
	{ "SO_BROADCAST", SO_BROADCAST }, { "SO_KEEPALIVE", SO_KEEPALIVE }, { "SO_OOBINLINE", SO_OOBINLINE },
	{ "SO_DONTROUTE", SO_DONTROUTE }, { "SO_NO_CHECK", SO_NO_CHECK }, { "SO_TYPE", SO_TYPE },
	{ "SO_ACCEPTCONN", SO_ACCEPTCONN }, { "SO_ERROR", SO_ERROR },
};
enum { COUNT = sizeof OPTIONS / sizeof *OPTIONS };

struct facts {
	int options[COUNT], flags, owner, signal;
	struct timeval send, receive;
	struct linger linger;
	socklen_t filter;
};

static struct facts facts_of(int fd)
{
	struct facts facts = { 0 };
	for (int i = 0; i < COUNT; i++) {
		socklen_t size = sizeof(int);
		must(getsockopt(fd, SOL_SOCKET, OPTIONS[i].option, &facts.options[i], &size));
	}
	socklen_t size = sizeof facts.send;
	must(getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &facts.send, &size));
	must(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &facts.receive, &size));
	size = sizeof facts.linger;
	must(getsockopt(fd, SOL_SOCKET, SO_LINGER, &facts.linger, &size));
	must(getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &facts.filter));
	facts.flags = must(fcntl(fd, F_GETFL));
	facts.owner = fcntl(fd, F_GETOWN);
	facts.signal = must(fcntl(fd, F_GETSIG));
	return facts;
}

static void expect_facts(int fd, struct facts was)
{
	struct facts is = facts_of(fd);
	for (int i = 0; i < COUNT; i++)
		expect_at(OPTIONS[i].name, fd, was.options[i], is.options[i]);
	expect_at("SO_SNDTIMEO", fd, was.send.tv_sec * 1000000 + was.send.tv_usec, is.send.tv_sec * 1000000 + is.send.tv_usec);
	expect_at("SO_RCVTIMEO", fd, was.receive.tv_sec * 1000000 + was.receive.tv_usec,
		  is.receive.tv_sec * 1000000 + is.receive.tv_usec);
	expect_at("SO_LINGER", fd, was.linger.l_onoff * 1000 + was.linger.l_linger, is.linger.l_onoff * 1000 + is.linger.l_linger);
	expect_at("filter", fd, was.filter, is.filter);
	expect_at("flags", fd, was.flags, is.flags);
	expect_at("owner", fd, was.owner, is.owner);
	expect_at("owner's signal", fd, was.signal, is.signal);
}

static void set(int fd, int option, int value)
{
	must(setsockopt(fd, SOL_SOCKET, option, &value, sizeof value));
}

static void set_options(void)
{
	struct timeval send = { 3, 500000 }, receive = { 7, 250000 };
	struct linger linger = { 1, 9 };
	/* Takes all: `ret #65535`. */
	struct sock_filter all[] = { { 0x06, 0, 0, 0xffff } };
	struct sock_fprog program = { 1, all };
	set(ONE, SO_SNDBUF, 50000);
	set(ONE, SO_RCVBUF, 60000);
	set(ONE, SO_PRIORITY, 5);
	set(ONE, SO_RCVLOWAT, 2);
	set(ONE, SO_MARK, 77);
	set(PACKET_ONE, SO_BROADCAST, 1);
	set(PACKET_ONE, SO_NO_CHECK, 1);
	set(ONE, SO_KEEPALIVE, 1);
	set(ONE, SO_OOBINLINE, 1);
	set(ONE, SO_DONTROUTE, 1);
	set(FRESH_DATAGRAM, SO_PASSCRED, 1);
	must(setsockopt(ONE, SOL_SOCKET, SO_SNDTIMEO, &send, sizeof send));
	must(setsockopt(ONE, SOL_SOCKET, SO_RCVTIMEO, &receive, sizeof receive));
	must(setsockopt(ONE, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
	must(setsockopt(FRESH_DATAGRAM, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
	must(fcntl(OTHER, F_SETFL, O_NONBLOCK));
	must(fcntl(SEQ_ONE, F_SETOWN, getpid()));
	must(fcntl(SEQ_ONE, F_SETSIG, SIGUSR1));
	must(fcntl(PACKET_OTHER, F_SETFD, FD_CLOEXEC));
}

int main(int argc, char **argv)
{
	bool empty = argc > 1 && !strcmp(argv[1], "empty");
	struct facts facts[LAST];
	victim_start();
	pair_at(SOCK_STREAM, ONE, OTHER);
	pair_at(SOCK_DGRAM, PACKET_ONE, PACKET_OTHER);
	pair_at(SOCK_SEQPACKET, SEQ_ONE, SEQ_OTHER);
	pair_at(SOCK_STREAM, SHUT_ONE, SHUT_OTHER);
	pair_at(SOCK_SEQPACKET, SEQ_SHUT_ONE, SEQ_SHUT_OTHER);
	put(socket(AF_UNIX, SOCK_STREAM, 0), FRESH_STREAM);
	put(socket(AF_UNIX, SOCK_DGRAM, 0), FRESH_DATAGRAM);
	must(dup2(ONE, TWIN));
	set_options();
	give(ONE, 1, 3000);
	give(ONE, 2, 1000);
	give(OTHER, 3, 77);
	give(PACKET_ONE, 4, 5);
	if (empty)
		give(PACKET_ONE, 0, 0);
	give(PACKET_ONE, 5, 700);
	if (empty)
		give(PACKET_OTHER, 0, 0);
	give(PACKET_OTHER, 6, 8000);
	give(SEQ_ONE, 7, 10);
	give(SEQ_ONE, 8, 20);
	give(SHUT_ONE, 9, 40);
	must(shutdown(SHUT_ONE, SHUT_WR));
	give(SEQ_SHUT_ONE, 10, 41);
	give(SEQ_SHUT_ONE, 11, 42);
	must(shutdown(SEQ_SHUT_ONE, SHUT_WR));
	pair_at(SOCK_STREAM, LEFT, CLOSED);
	give(CLOSED, 12, 60);
	close(CLOSED);
	pair_at(SOCK_DGRAM, LEFT_DATAGRAM, CLOSED);
	give(CLOSED, 13, 61);
	give(CLOSED, 14, 62);
	close(CLOSED);
	pair_at(SOCK_SEQPACKET, LEFT_SEQ, CLOSED);
	give(CLOSED, 15, 63);
	give(CLOSED, 16, 64);
	close(CLOSED);
	for (int fd = ONE; fd < CLOSED; fd++)
		facts[fd] = facts_of(fd);
	victim_ready();
	victim_wait();

	for (int fd = ONE; fd < CLOSED; fd++)
		expect_facts(fd, facts[fd]);
	expect("close-on-exec", FD_CLOEXEC, fcntl(PACKET_OTHER, F_GETFD));
	expect("no close-on-exec", 0, fcntl(PACKET_ONE, F_GETFD));
	uint8_t bytes[4096];
	expect("stream", 4000, recv(OTHER, bytes, sizeof bytes, MSG_DONTWAIT));
	for (int i = 0; i < 4000; i++)
		if (bytes[i] != (uint8_t)(i < 3000 ? mix(100000 + i) : mix(200000 + i - 3000))) {
			fail("stream byte %d", i);
			break;
		}
	take("stream back", ONE, 3, 77);
	take("datagram 1", PACKET_OTHER, 4, 5);
	if (empty)
		take("empty datagram", PACKET_OTHER, 0, 0);
	take("datagram 2", PACKET_OTHER, 5, 700);
	take_nothing("datagrams", PACKET_OTHER);
	if (empty)
		take("empty datagram back", PACKET_ONE, 0, 0);
	take("datagram back", PACKET_ONE, 6, 8000);
	take("packet 1", SEQ_OTHER, 7, 10);
	take("packet 2", SEQ_OTHER, 8, 20);
	take("shut", SHUT_OTHER, 9, 40);
	take_end("shut", SHUT_OTHER);
	expect("write where it is shut", EPIPE, send(SHUT_ONE, "x", 1, MSG_NOSIGNAL) == -1 ? errno : 0);
	give(SHUT_OTHER, 20, 30);
	take("against the shut direction", SHUT_ONE, 20, 30);
	take("shut packet 1", SEQ_SHUT_OTHER, 10, 41);
	take("shut packet 2", SEQ_SHUT_OTHER, 11, 42);
	take_end("shut packets", SEQ_SHUT_OTHER);
	take("left", LEFT, 12, 60);
	take_end("left", LEFT);
	expect("write to nobody", EPIPE, send(LEFT, "x", 1, MSG_NOSIGNAL) == -1 ? errno : 0);
	take("left datagram 1", LEFT_DATAGRAM, 13, 61);
	take("left datagram 2", LEFT_DATAGRAM, 14, 62);
	take("left packet 1", LEFT_SEQ, 15, 63);
	take("left packet 2", LEFT_SEQ, 16, 64);
	take_end("left packets", LEFT_SEQ);
	/* Both ends still work, and the twin is one description with the first. */
	give(TWIN, 30, 50);
	take("by the twin", OTHER, 30, 50);
	must(fcntl(TWIN, F_SETFL, O_NONBLOCK));
	expect("the twin's flags", O_NONBLOCK, fcntl(ONE, F_GETFL) & O_NONBLOCK);
	give(PACKET_OTHER, 31, 5);
	take("a new datagram", PACKET_ONE, 31, 5);
	expect("a socket that is not connected", ENOTCONN, send(FRESH_STREAM, "x", 1, MSG_NOSIGNAL) == -1 ? errno : 0);
	victim_end();
}
