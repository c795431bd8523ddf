/*
 * Both ends of pseudoterminals in one process: settings, locked ones too, window sizes, packet mode, the lock, owner and
 * mode of the slave, descriptors that are duplicates and that are open apart, masters without a slave. Afterwards bytes go
 * through each as its settings say.
 *
 * pty [by-criu]: without what CRIU cannot dump: locked settings other than the default, a slave that is only written to
 */
#include "victim.h"
#include <sys/ioctl.h>
#include <termios.h>

enum { RAW = 10, RAW_SLAVE, RAW_APART, RAW_TWIN, COOKED, COOKED_SLAVE, ALONE, FIXED, FIXED_SLAVE, OPEN, LAST };

static const struct {
	int fd, flags, fd_flags;
} table[] = {
	{ RAW, O_RDWR | O_NONBLOCK, FD_CLOEXEC },
	{ RAW_SLAVE, O_RDWR, 0 },
	{ RAW_APART, O_RDONLY | O_NONBLOCK, FD_CLOEXEC },
	{ RAW_TWIN, O_RDWR | O_NONBLOCK, 0 },
	{ COOKED, O_RDWR, 0 },
	{ COOKED_SLAVE, O_RDWR, 0 },
	{ ALONE, O_RDWR, 0 },
	{ FIXED, O_RDWR, 0 },
	{ FIXED_SLAVE, 0, 0 },
	{ OPEN, O_RDWR, 0 },
};
enum { COUNT = sizeof table / sizeof *table };

/* What a terminal is like. */
struct seen {
	struct termios set, locked;
	struct winsize size;
	int index, packets, lock;
	struct stat stat;
};
static struct seen before[LAST];

static void put(int made, int fd)
{
	must(made);
	must(dup2(made, fd));
	close(made);
}

static void master(int fd, int flags, bool unlock)
{
	int zero = 0;
	put(open("/dev/ptmx", flags | O_NOCTTY), fd);
	if (unlock)
		must(ioctl(fd, TIOCSPTLCK, &zero));
}

static void slave(int of, int fd, int flags)
{
	char path[64];
	int index;
	must(ioctl(of, TIOCGPTN, &index));
	snprintf(path, sizeof path, "/dev/pts/%d", index);
	put(open(path, flags | O_NOCTTY), fd);
}

static void size(int fd, int rows)
{
	struct winsize size = { rows, rows * 3, rows * 16, rows * 24 };
	must(ioctl(fd, TIOCSWINSZ, &size));
}

static struct seen look(int fd)
{
	struct seen seen;
	memset(&seen, 0, sizeof seen);
	must(tcgetattr(fd, &seen.set));
	must(ioctl(fd, TIOCGLCKTRMIOS, &seen.locked));
	must(ioctl(fd, TIOCGWINSZ, &seen.size));
	must(fstat(fd, &seen.stat));
	seen.index = seen.packets = seen.lock = -1;
	ioctl(fd, TIOCGPTN, &seen.index);
	ioctl(fd, TIOCGPKT, &seen.packets);
	ioctl(fd, TIOCGPTLCK, &seen.lock);
	return seen;
}

static void compare(int fd, const struct seen *was)
{
	struct seen is = look(fd);
	expect_at("input modes", fd, was->set.c_iflag, is.set.c_iflag);
	expect_at("output modes", fd, was->set.c_oflag, is.set.c_oflag);
	expect_at("control modes", fd, was->set.c_cflag, is.set.c_cflag);
	expect_at("local modes", fd, was->set.c_lflag, is.set.c_lflag);
	expect_at("locked input modes", fd, was->locked.c_iflag, is.locked.c_iflag);
	expect_at("locked local modes", fd, was->locked.c_lflag, is.locked.c_lflag);
	for (int i = 0; i < 19; i++) {
		if (was->set.c_cc[i] != is.set.c_cc[i])
			fail("character %d[%d] expected %d got %d", i, fd, was->set.c_cc[i], is.set.c_cc[i]);
		if (was->locked.c_cc[i] != is.locked.c_cc[i])
			fail("locked character %d[%d]", i, fd);
	}
	expect_at("rows", fd, was->size.ws_row, is.size.ws_row);
	expect_at("columns", fd, was->size.ws_col, is.size.ws_col);
	expect_at("width", fd, was->size.ws_xpixel, is.size.ws_xpixel);
	expect_at("height", fd, was->size.ws_ypixel, is.size.ws_ypixel);
	expect_at("index", fd, was->index, is.index);
	expect_at("packet mode", fd, was->packets, is.packets);
	expect_at("lock", fd, was->lock, is.lock);
	expect_at("device", fd, was->stat.st_rdev, is.stat.st_rdev);
	expect_at("owner", fd, was->stat.st_uid, is.stat.st_uid);
	expect_at("group", fd, was->stat.st_gid, is.stat.st_gid);
	expect_at("mode", fd, was->stat.st_mode, is.stat.st_mode);
}

/* That what is written to `from` is read at `to`. */
static void through(const char *field, int from, const char *text, int to, const char *expected)
{
	char got[64] = "";
	size_t n = 0;
	if (write(from, text, strlen(text)) != (ssize_t)strlen(text))
		fail("%s write: %s", field, strerror(errno));
	must(fcntl(to, F_SETFL, fcntl(to, F_GETFL) | O_NONBLOCK));
	for (int ms = 0; ms < 2000 && n < strlen(expected); ms++) {
		ssize_t more = read(to, got + n, sizeof got - 1 - n);
		if (more > 0)
			n += more;
		else
			nap_ms(1);
	}
	got[n] = 0;
	expect_string(field, expected, got);
}

int main(int argc, char **argv)
{
	bool by_criu = argc > 1 && !strcmp(argv[1], "by-criu");
	int fixed = by_criu ? O_RDWR : O_WRONLY;
	struct termios set;
	victim_start();
	must(setvbuf(stdout, NULL, _IONBF, 0));
	master(RAW, O_RDWR | O_NONBLOCK, true);
	slave(RAW, RAW_SLAVE, O_RDWR);
	slave(RAW, RAW_APART, O_RDONLY | O_NONBLOCK);
	must(dup2(RAW, RAW_TWIN));
	must(tcgetattr(RAW_SLAVE, &set));
	cfmakeraw(&set);
	set.c_cc[VMIN] = 3;
	cfsetspeed(&set, B9600);
	must(tcsetattr(RAW_SLAVE, TCSANOW, &set));
	size(RAW, 40);
	must(fchown(RAW_SLAVE, 1234, 4321));
	must(fchmod(RAW_SLAVE, 0640));

	master(COOKED, O_RDWR, true);
	slave(COOKED, COOKED_SLAVE, O_RDWR);
	int on = 1;
	must(ioctl(COOKED, TIOCPKT, &on));
	must(ioctl(COOKED, TIOCSPTLCK, &on));
	must(tcgetattr(COOKED_SLAVE, &set));
	set.c_lflag &= ~ECHO;
	set.c_cc[VEOF] = 'Q';
	must(tcsetattr(COOKED_SLAVE, TCSANOW, &set));
	size(COOKED, 50);

	master(ALONE, O_RDWR, false);
	size(ALONE, 60);

	/* Locked to what is not the default. */
	master(FIXED, O_RDWR, true);
	slave(FIXED, FIXED_SLAVE, fixed);
	must(tcgetattr(FIXED_SLAVE, &set));
	set.c_lflag &= ~ECHO;
	set.c_iflag |= IXANY;
	set.c_cc[VINTR] = 'Z';
	must(tcsetattr(FIXED_SLAVE, TCSANOW, &set));
	memset(&set, 0, sizeof set);
	set.c_lflag = ECHO;
	set.c_iflag = IXANY;
	set.c_cc[VINTR] = 1;
	if (!by_criu)
		must(ioctl(FIXED_SLAVE, TIOCSLCKTRMIOS, &set));

	master(OPEN, O_RDWR, true);
	for (int i = 0; i < COUNT; i++)
		must(fcntl(table[i].fd, F_SETFD, table[i].fd_flags));
	/* Packet mode tells first of what has changed. */
	char told;
	while (ioctl(COOKED, FIONREAD, &on) == 0 && on > 0)
		must(read(COOKED, &told, 1));
	for (int fd = RAW; fd < LAST; fd++)
		before[fd] = look(fd);
	victim_ready();
	victim_wait();

	for (int fd = RAW; fd < LAST; fd++)
		compare(fd, &before[fd]);
	for (int i = 0; i < COUNT; i++) {
		int flags = table[i].fd == FIXED_SLAVE ? fixed : table[i].flags;
		expect_at("status flags", table[i].fd, flags, fcntl(table[i].fd, F_GETFL) & ~(O_NOCTTY | 0100000));
		expect_at("descriptor flags", table[i].fd, table[i].fd_flags, fcntl(table[i].fd, F_GETFD));
	}
	through("raw to the slave", RAW, "a\rb\n", RAW_SLAVE, "a\rb\n");
	through("raw to the slave that is open apart", RAW_TWIN, "cd\n", RAW_APART, "cd\n");
	through("raw to the master", RAW_SLAVE, "e\nf", RAW_TWIN, "e\nf");
	through("a line", COOKED, "line\rQ", COOKED_SLAVE, "line\n");
	slave(OPEN, LAST, O_RDWR);
	must(ioctl(OPEN, TIOCSPTLCK, (on = 1, &on)));
	through("a slave opened afterwards", LAST, "x\n", OPEN, "x\r\n");
	through("fixed", FIXED_SLAVE, "y\n", FIXED, "y\r\n");
	must(fcntl(RAW_TWIN, F_SETFL, O_NONBLOCK | O_APPEND));
	expect("a duplicate is one with it", O_APPEND, fcntl(RAW, F_GETFL) & O_APPEND);
	victim_end();
}
