/*
 * Files whose path is gone while they have another link: one, one opened twice, and one of which the directory is kept open.
 */
#include "victim.h"

enum { ONE = 10, DUPLICATE, SECOND, SECOND_TOO, COUNT_END };

static void make(int fd, const char *path, const char *other, const char *text)
{
	int made = must(open(path, O_CREAT | O_RDWR, 0640));
	must(write(made, text, strlen(text)));
	must(link(path, other));
	must(dup2(made, fd));
	close(made);
}

int main(void)
{
	struct stat st[COUNT_END], now;
	char byte, path[PATH_MAX] = { 0 }, wanted[PATH_MAX];
	victim_start();
	must(mkdir("kept", 0755));
	make(ONE, "one", "kept/one", "first");
	must(dup2(ONE, DUPLICATE));
	make(SECOND, "two", "kept/two", "second");
	int fd = must(open("two", O_RDONLY));
	must(dup2(fd, SECOND_TOO));
	close(fd);
	must(unlink("one"));
	must(unlink("two"));
	must(lseek(ONE, 2, SEEK_SET));
	for (fd = ONE; fd < COUNT_END; fd++)
		must(fstat(fd, &st[fd]));
	if (!getcwd(wanted, sizeof wanted - 32))
		broken("getcwd");
	strcat(wanted, "/one (deleted)");
	victim_ready();
	victim_wait();

	for (fd = ONE; fd < COUNT_END; fd++) {
		if (fstat(fd, &now)) {
			fail("fd %d is gone", fd);
			continue;
		}
		expect_at("inode", fd, st[fd].st_ino, now.st_ino);
		expect_at("links", fd, 1, now.st_nlink);
	}
	must(readlink("/proc/self/fd/10", path, sizeof path - 1));
	expect_string("path", wanted, path);
	expect("position", 2, lseek(DUPLICATE, 0, SEEK_CUR));
	expect("read", 1, read(ONE, &byte, 1));
	expect("byte", 'r', byte);
	expect("write", 1, pwrite(SECOND, "S", 1, 0));
	expect("read what was written", 1, pread(SECOND_TOO, &byte, 1, 0));
	expect("byte of the second", 'S', byte);
	fd = must(open("kept/two", O_RDONLY));
	expect("read by its other name", 1, read(fd, &byte, 1));
	expect("byte by its other name", 'S', byte);
	expect("it has no old name", -1, access("one", F_OK));
	expect("nor the second", -1, access("two", F_OK));
	victim_end();
}
