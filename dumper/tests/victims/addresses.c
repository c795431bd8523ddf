/*
 * Unix sockets with addresses: listeners at absolute, relative and abstract ones, and one whose file is deleted; connections
 * to them, accepted and waiting; datagram sockets that are sent to by their address, with what waits at them.
 */
#include "victim.h"
#include <sys/socket.h>
#include <sys/un.h>

enum {
	LISTENER = 10, CLIENT, SERVER, WAITING, RELATIVE, RELATIVE_CLIENT, ABSTRACT, ABSTRACT_CLIENT, ABSTRACT_SERVER, INBOX, SENDER,
	LONELY, GONE, GONE_CLIENT, GONE_SERVER, SEQ, SEQ_CLIENT, SEQ_SERVER, ITSELF, LAST
};

static char directory[96];

static struct sockaddr_un at(const char *path, socklen_t *size)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	if (*path == '@') {
		snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "%s %d", path + 1, getpid());
		*size = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(address.sun_path + 1);
	} else {
		snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
		*size = sizeof address;
	}
	return address;
}

static const char *absolute(const char *name)
{
	static char path[108];
	snprintf(path, sizeof path, "%s/%s", directory, name);
	return path;
}

static void put(int made, int number)
{
	must(dup2(must(made), number));
	close(made);
}

static void bind_at(int type, int number, const char *path)
{
	socklen_t size;
	struct sockaddr_un address = at(path, &size);
	put(socket(AF_UNIX, type, 0), number);
	must(bind(number, (struct sockaddr *)&address, size));
}

static int connect_to(int number, const char *path)
{
	socklen_t size;
	struct sockaddr_un address = at(path, &size);
	return connect(number, (struct sockaddr *)&address, size);
}

static void client_of(int type, int number, const char *path)
{
	put(socket(AF_UNIX, type, 0), number);
	must(connect_to(number, path));
}

static void give(const char *field, int fd, const char *text)
{
	if (send(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)strlen(text))
		fail("%s: send of %s: %s", field, text, strerror(errno));
}

static void take(const char *field, int fd, const char *expected)
{
	char text[100] = "";
	if (recv(fd, text, sizeof text - 1, MSG_DONTWAIT) < 0)
		fail("%s: receive: %s", field, strerror(errno));
	expect_string(field, expected, text);
}

static void expect_name(const char *field, int fd, const char *path)
{
	struct sockaddr_un is = { 0 }, expected;
	socklen_t size = sizeof is, expected_size;
	expected = at(path, &expected_size);
	must(getsockname(fd, (struct sockaddr *)&is, &size));
	if (*path != '@')
		expected_size = offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1;
	if (size != expected_size || memcmp(&is, &expected, size))
		fail("%s address expected %s got %s (%u)", field, path, is.sun_path, size);
}

static void expect_file(const char *field, const char *path, mode_t mode)
{
	struct stat is;
	if (stat(path, &is))
		fail("%s file: %s", field, strerror(errno));
	else
		expect(field, mode | S_IFSOCK, is.st_mode);
}

static int backlog(int listener_type, const char *path)
{
	int made[20], count = 0;
	for (; count < 20; count++) {
		made[count] = must(socket(AF_UNIX, listener_type | SOCK_NONBLOCK, 0));
		if (connect_to(made[count], path))
			break;
	}
	for (int i = 0; i <= count && i < 20; i++)
		close(made[i]);
	return count;
}

int main(void)
{
	victim_start();
	umask(0);
	/* Must be short enough for an address. */
	must(getcwd(directory, sizeof directory) ? 0 : -1);
	must(mkdir("below", 0700));
	bind_at(SOCK_STREAM, LISTENER, absolute("listener"));
	must(chmod(absolute("listener"), 0640));
	must(listen(LISTENER, 7));
	client_of(SOCK_STREAM, CLIENT, absolute("listener"));
	put(accept(LISTENER, NULL, NULL), SERVER);
	give("client", CLIENT, "before, to the server");
	give("server", SERVER, "before, to the client");
	client_of(SOCK_STREAM, WAITING, absolute("listener"));
	bind_at(SOCK_STREAM, RELATIVE, "below/relative");
	must(listen(RELATIVE, 3));
	client_of(SOCK_STREAM, RELATIVE_CLIENT, "below/relative");
	bind_at(SOCK_STREAM, ABSTRACT, "@godwit abstract");
	must(listen(ABSTRACT, 5));
	client_of(SOCK_STREAM, ABSTRACT_CLIENT, "@godwit abstract");
	put(accept(ABSTRACT, NULL, NULL), ABSTRACT_SERVER);
	bind_at(SOCK_DGRAM, INBOX, absolute("inbox"));
	client_of(SOCK_DGRAM, SENDER, absolute("inbox"));
	give("sender", SENDER, "first");
	give("sender", SENDER, "second");
	bind_at(SOCK_DGRAM, LONELY, "@lonely");
	bind_at(SOCK_STREAM, GONE, absolute("gone"));
	must(listen(GONE, 2));
	client_of(SOCK_STREAM, GONE_CLIENT, absolute("gone"));
	put(accept(GONE, NULL, NULL), GONE_SERVER);
	must(unlink(absolute("gone")));
	bind_at(SOCK_SEQPACKET, SEQ, "@packets");
	must(listen(SEQ, 4));
	client_of(SOCK_SEQPACKET, SEQ_CLIENT, "@packets");
	put(accept(SEQ, NULL, NULL), SEQ_SERVER);
	bind_at(SOCK_DGRAM, ITSELF, "@itself");
	must(connect_to(ITSELF, "@itself"));
	give("itself", ITSELF, "to myself");
	victim_ready();
	victim_wait();

	expect_name("listener", LISTENER, absolute("listener"));
	expect_name("relative", RELATIVE, "below/relative");
	expect_name("abstract", ABSTRACT, "@godwit abstract");
	expect_name("inbox", INBOX, absolute("inbox"));
	expect_name("lonely", LONELY, "@lonely");
	expect_name("gone", GONE, absolute("gone"));
	expect_name("packets", SEQ, "@packets");
	expect_file("listener's mode", absolute("listener"), 0640);
	expect_file("relative's mode", "below/relative", 0777);
	expect_file("inbox's mode", absolute("inbox"), 0777);
	expect("file of gone", -1, access(absolute("gone"), F_OK));
	take("server", SERVER, "before, to the server");
	take("client", CLIENT, "before, to the client");
	give("client", CLIENT, "after");
	take("server after", SERVER, "after");
	/* Those that waited are accepted. */
	int accepted = accept(LISTENER, NULL, NULL);
	if (accepted < 0)
		fail("accept: %s", strerror(errno));
	give("waiting", WAITING, "waited");
	take("accepted", accepted, "waited");
	accepted = accept(RELATIVE, NULL, NULL);
	give("relative client", RELATIVE_CLIENT, "relative");
	take("accepted at a relative address", accepted, "relative");
	give("abstract client", ABSTRACT_CLIENT, "abstract");
	take("abstract server", ABSTRACT_SERVER, "abstract");
	take("inbox 1", INBOX, "first");
	take("inbox 2", INBOX, "second");
	give("sender", SENDER, "third");
	take("inbox 3", INBOX, "third");
	give("gone client", GONE_CLIENT, "gone");
	take("gone server", GONE_SERVER, "gone");
	give("packet client", SEQ_CLIENT, "packet");
	take("packet server", SEQ_SERVER, "packet");
	take("itself", ITSELF, "to myself");
	give("itself", ITSELF, "again");
	take("itself again", ITSELF, "again");
	/* The kernel lets one more wait than it was told. */
	expect("backlog", 8, backlog(SOCK_STREAM, absolute("listener")));
	expect("backlog of abstract", 6, backlog(SOCK_STREAM, "@godwit abstract"));
	victim_end();
}
