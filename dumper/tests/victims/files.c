/*
 * Descriptors: regular files in all modes with offsets, shared open file descriptions, directories,
 * character devices, pipes with content, close-on-exec, status flags, owners for SIGIO.
 */
#include "victim.h"
#include <dirent.h>
#include <sys/ioctl.h>

/* Numbers are chosen, with gaps, since a descriptor's number is what the program knows. */
enum {
	READER = 10, WRITER, APPENDER, READ_WRITE, DUPLICATE, DUPLICATE_CLOEXEC, OTHER_OPEN, DIRECTORY,
	DEV_NULL, DEV_ZERO, DEV_URANDOM, PIPE_READ, PIPE_WRITE, PIPE_WRITE_TOO, SMALL_READ, SMALL_WRITE,
	FULL_READ, FULL_WRITE, ORPHAN_READ, EMPTY_READ, EMPTY_WRITE, SELF_EXE, FAR = 200
};

static struct {
	int fd, flags, cloexec;
	off_t offset;
	dev_t device, special;
	ino_t inode;
	mode_t mode;
	char path[PATH_MAX];
} table[256];

static void put(int fd, int number)
{
	must(fd);
	if (fd == number)
		return;
	must(dup2(fd, number));
	close(fd);
}

static void put_cloexec(int fd, int number)
{
	must(dup3(fd, number, O_CLOEXEC));
}

static void make(const char *path, int bytes)
{
	int fd = must(open(path, O_CREAT | O_TRUNC | O_WRONLY, 0640));
	for (int i = 0; i < bytes; i++) {
		char c = 'a' + i % 26;
		if (write(fd, &c, 1) != 1)
			broken("write");
	}
	close(fd);
}

static void pipe_at(int reader, int writer, int flags)
{
	int fds[2];
	must(pipe2(fds, flags));
	int r = must(fcntl(fds[0], F_DUPFD, 230)), w = must(fcntl(fds[1], F_DUPFD, 240));
	close(fds[0]);
	close(fds[1]);
	put(r, reader);
	put(w, writer);
}

static void send_pattern(int fd, int bytes, int seed)
{
	for (int i = 0; i < bytes; i++) {
		uint8_t c = mix(seed + i);
		if (write(fd, &c, 1) != 1)
			broken("pipe write %d", i);
	}
}

static void expect_pattern(const char *field, int fd, int bytes, int seed)
{
	for (int i = 0; i < bytes; i++) {
		uint8_t c;
		if (read(fd, &c, 1) != 1) {
			fail("%s ended after %d of %d bytes", field, i, bytes);
			return;
		}
		if (c != (uint8_t)mix(seed + i)) {
			fail("%s byte %d expected %d got %d", field, i, (uint8_t)mix(seed + i), c);
			return;
		}
	}
}

static void record(int fd)
{
	struct stat st;
	char link[64];
	table[fd].fd = fd;
	table[fd].flags = must(fcntl(fd, F_GETFL));
	table[fd].cloexec = must(fcntl(fd, F_GETFD));
	table[fd].offset = lseek(fd, 0, SEEK_CUR);
	must(fstat(fd, &st));
	table[fd].mode = st.st_mode;
	table[fd].special = st.st_rdev;
	/* Pipes get new numbers at restore; files must be the same ones. */
	if (!S_ISFIFO(st.st_mode)) {
		table[fd].device = st.st_dev;
		table[fd].inode = st.st_ino;
		snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
		must(readlink(link, table[fd].path, PATH_MAX - 1));
	}
}

static void compare(int fd)
{
	struct stat st;
	char link[64], path[PATH_MAX] = "";
	int flags = fcntl(fd, F_GETFL);
	if (flags == -1) {
		fail("fd %d is gone", fd);
		return;
	}
	/* CRIU opens a directory without the flag; nothing but F_GETFL tells the difference. */
	expect_at("status flags", fd, table[fd].flags & ~O_DIRECTORY, flags & ~O_DIRECTORY);
	expect_at("close-on-exec", fd, table[fd].cloexec, fcntl(fd, F_GETFD));
	/* A FAIL line itself moves the offset of the log. */
	if (table[fd].offset >= 0 && !(fd < 3 && victim_failures))
		expect_at("offset", fd, table[fd].offset, lseek(fd, 0, SEEK_CUR));
	must(fstat(fd, &st));
	expect_at("mode", fd, table[fd].mode, st.st_mode);
	expect_at("device number", fd, table[fd].special, st.st_rdev);
	if (!S_ISFIFO(st.st_mode)) {
		expect_at("file device", fd, table[fd].device, st.st_dev);
		expect_at("file inode", fd, table[fd].inode, st.st_ino);
		snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
		must(readlink(link, path, sizeof path - 1));
		expect_string("fd path", table[fd].path, path);
	}
}

static int same_description(int a, int b)
{
	return syscall(SYS_kcmp, victim_pid, victim_pid, 0 /* KCMP_FILE */, a, b) == 0;
}

static void set_up(void)
{
	char path[PATH_MAX];
	make("regular", 1000);
	make("appended", 100);
	make("written", 500);
	must(mkdir("some dir", 0750));
	for (int i = 0; i < 40; i++) {
		snprintf(path, sizeof path, "some dir/entry-%d", i);
		make(path, 1);
	}
	put(open("regular", O_RDONLY), READER);
	must(lseek(READER, 321, SEEK_SET));
	put(open("written", O_WRONLY | O_SYNC), WRITER);
	must(lseek(WRITER, 123, SEEK_SET));
	put(open("appended", O_WRONLY | O_APPEND | O_NONBLOCK), APPENDER);
	put(open("regular", O_RDWR | O_NOATIME), READ_WRITE);
	must(lseek(READ_WRITE, 77, SEEK_SET));
	must(dup2(READ_WRITE, DUPLICATE));
	put_cloexec(READ_WRITE, DUPLICATE_CLOEXEC);
	must(dup2(READ_WRITE, FAR));
	put(open("regular", O_RDWR), OTHER_OPEN);
	/* An offset past the end is legal. */
	must(lseek(OTHER_OPEN, 5000, SEEK_SET));
	put(open("some dir", O_RDONLY | O_DIRECTORY), DIRECTORY);
	put(open("/dev/null", O_RDWR), DEV_NULL);
	put(open("/dev/zero", O_RDONLY), DEV_ZERO);
	put(open("/dev/urandom", O_RDONLY | O_NONBLOCK), DEV_URANDOM);
	put(open("/proc/self/exe", O_RDONLY), SELF_EXE);

	pipe_at(PIPE_READ, PIPE_WRITE, 0);
	must(dup2(PIPE_WRITE, PIPE_WRITE_TOO));
	send_pattern(PIPE_WRITE, 3000, 1);
	must(fcntl(PIPE_READ, F_SETFL, O_NONBLOCK));
	must(fcntl(PIPE_READ, F_SETFD, FD_CLOEXEC));
	struct f_owner_ex owner = { F_OWNER_PID, victim_pid };
	must(fcntl(PIPE_READ, F_SETOWN_EX, &owner));
	must(fcntl(PIPE_READ, F_SETSIG, SIGRTMIN + 3));

	pipe_at(SMALL_READ, SMALL_WRITE, O_NONBLOCK);
	must(fcntl(SMALL_WRITE, F_SETPIPE_SZ, 8192));
	send_pattern(SMALL_WRITE, 100, 2);

	/* Full to the last byte: a write must block (here: EAGAIN) after restore too. */
	pipe_at(FULL_READ, FULL_WRITE, O_NONBLOCK);
	must(fcntl(FULL_WRITE, F_SETPIPE_SZ, 4096));
	send_pattern(FULL_WRITE, 4096, 3);

	/* A reader without a writer: the rest, then end of file. */
	pipe_at(ORPHAN_READ, 250, 0);
	send_pattern(250, 50, 4);
	close(250);
	pipe_at(EMPTY_READ, EMPTY_WRITE, O_NONBLOCK);
}

static void check_shared(void)
{
	expect("dup shares description", 1, same_description(READ_WRITE, DUPLICATE));
	expect("dup with close-on-exec shares description", 1, same_description(READ_WRITE, DUPLICATE_CLOEXEC));
	expect("far dup shares description", 1, same_description(READ_WRITE, FAR));
	expect("second open is apart", 0, same_description(READ_WRITE, OTHER_OPEN));
	expect("pipe dup shares description", 1, same_description(PIPE_WRITE, PIPE_WRITE_TOO));
	must(lseek(FAR, 99, SEEK_SET));
	expect("shared offset", 99, lseek(DUPLICATE, 0, SEEK_CUR));
	expect("separate offset", 5000, lseek(OTHER_OPEN, 0, SEEK_CUR));
}

static void check_content(void)
{
	char byte = 0;
	expect("read at offset", 1, read(READER, &byte, 1));
	expect("byte at offset", 'a' + 321 % 26, byte);
	expect("append", 3, write(APPENDER, "xyz", 3));
	struct stat st;
	must(stat("appended", &st));
	expect("appended size", 103, st.st_size);
	expect("write at offset", 1, write(WRITER, "!", 1));
	expect("offset after write", 124, lseek(WRITER, 0, SEEK_CUR));
	expect("/dev/zero", 1, read(DEV_ZERO, &byte, 1));
	expect("zero", 0, byte);
	expect("/dev/urandom", 1, read(DEV_URANDOM, &byte, 1));
	expect("/dev/null", 1, write(DEV_NULL, &byte, 1));
	DIR *dir = fdopendir(dup(DIRECTORY));
	int entries = 0;
	for (struct dirent *entry; dir && (entry = readdir(dir));)
		entries += strncmp(entry->d_name, "entry-", 6) == 0;
	expect("directory entries", 40, entries);
}

static void check_pipes(void)
{
	char byte;
	struct f_owner_ex owner = { 0 };
	must(fcntl(PIPE_READ, F_GETOWN_EX, &owner));
	expect("owner type", F_OWNER_PID, owner.type);
	expect("owner", victim_pid, owner.pid);
	expect("owner signal", SIGRTMIN + 3, fcntl(PIPE_READ, F_GETSIG));
	int waiting = 0;
	must(ioctl(PIPE_READ, FIONREAD, &waiting));
	expect("pipe bytes", 3000, waiting);
	expect_pattern("pipe", PIPE_READ, 3000, 1);
	expect("pipe is empty then", -1, read(PIPE_READ, &byte, 1));
	expect("write through dup", 1, write(PIPE_WRITE_TOO, "w", 1));
	expect("read what was written", 1, read(PIPE_READ, &byte, 1));
	expect("small pipe size", 8192, fcntl(SMALL_READ, F_GETPIPE_SZ));
	expect_pattern("small pipe", SMALL_READ, 100, 2);
	expect("full pipe size", 4096, fcntl(FULL_READ, F_GETPIPE_SZ));
	expect("full pipe takes no more", -1, write(FULL_WRITE, "x", 1));
	expect_pattern("full pipe", FULL_READ, 4096, 3);
	expect_pattern("orphan pipe", ORPHAN_READ, 50, 4);
	expect("orphan pipe ends", 0, read(ORPHAN_READ, &byte, 1));
	expect("empty pipe", -1, read(EMPTY_READ, &byte, 1));
	expect("empty pipe errno", EAGAIN, errno);
}

int main(void)
{
	int count = 0, now = 0;
	victim_start();
	set_up();
	for (int fd = 0; fd < 256; fd++)
		if (fcntl(fd, F_GETFD) != -1) {
			record(fd);
			count++;
		}

	/* What READY writes moves the offset of the log, which is why it is recorded after it. */
	victim_ready();
	record(1);
	record(2);
	victim_wait();

	for (int fd = 0; fd < 256; fd++)
		if (fcntl(fd, F_GETFD) != -1) {
			now++;
			if (!table[fd].mode)
				fail("fd %d was not there before", fd);
		}
	expect("open descriptors", count, now);
	for (int fd = 0; fd < 256; fd++)
		if (table[fd].mode)
			compare(fd);
	check_shared();
	check_content();
	check_pipes();
	victim_end();
}
