/*
 * Descriptors that only name something (O_PATH): a file, a directory, a symbolic link, a deleted file; and files and
 * directories that were renamed or removed while they were open.
 */
#include "victim.h"

enum { NAME = 10, NAME_DIR, NAME_LINK, NAME_GONE, RENAMED, RENAMED_DIR, GONE_DIR, NAME_DUP, COUNT_END };

static struct {
	int flags;
	mode_t mode;
	ino_t inode;
	char path[PATH_MAX];
} table[COUNT_END];

static void put(int fd, int made)
{
	must(dup2(must(made), fd));
	close(made);
}

static void make(const char *path, const char *text)
{
	int fd = must(open(path, O_CREAT | O_WRONLY | O_TRUNC, 0640));
	must(write(fd, text, strlen(text)));
	close(fd);
}

static void path_of(int fd, char *path)
{
	char link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = must(readlink(link, path, PATH_MAX - 1));
	path[n] = 0;
}

static void expect_text(const char *field, int dir, const char *name, const char *text)
{
	char got[64] = { 0 };
	int fd = openat(dir, name, O_RDONLY);
	if (fd == -1 || read(fd, got, sizeof got - 1) < 0)
		fail("%s cannot be read: %s", field, strerror(errno));
	expect_string(field, text, got);
	close(fd);
}

int main(void)
{
	struct stat st;
	char path[PATH_MAX], link[64];
	victim_start();
	make("named", "by its name");
	make("gone", "without a name");
	make("before", "renamed");
	must(mkdir("dir", 0750));
	make("dir/inside", "in a directory");
	must(mkdir("dir before", 0710));
	make("dir before/inside", "in a renamed one");
	must(mkdir("dir gone", 0701));
	must(symlink("named", "link"));
	put(NAME, open("named", O_PATH));
	put(NAME_DIR, open("dir", O_PATH | O_DIRECTORY));
	put(NAME_LINK, open("link", O_PATH | O_NOFOLLOW));
	put(NAME_GONE, open("gone", O_PATH));
	must(fcntl(NAME_GONE, F_SETFD, FD_CLOEXEC));
	put(RENAMED, open("before", O_RDWR));
	put(RENAMED_DIR, open("dir before", O_RDONLY | O_DIRECTORY));
	put(GONE_DIR, open("dir gone", O_RDONLY | O_DIRECTORY));
	must(lseek(RENAMED, 3, SEEK_SET));
	must(dup2(NAME, NAME_DUP));
	must(unlink("gone"));
	must(rename("before", "after"));
	must(rename("dir before", "dir after"));
	must(rmdir("dir gone"));
	for (int fd = NAME; fd < COUNT_END; fd++) {
		must(fstat(fd, &st));
		table[fd].flags = must(fcntl(fd, F_GETFL));
		table[fd].mode = st.st_mode;
		table[fd].inode = st.st_ino;
		path_of(fd, table[fd].path);
	}
	victim_ready();
	victim_wait();

	for (int fd = NAME; fd < COUNT_END; fd++) {
		/* What is deleted is made anew, a directory under another name. */
		bool gone = fd == NAME_GONE || fd == GONE_DIR;
		if (fstat(fd, &st)) {
			fail("fd %d is gone", fd);
			continue;
		}
		/* CRIU's restore opens directories without it. */
		expect_at("flags", fd, table[fd].flags & ~O_DIRECTORY, fcntl(fd, F_GETFL) & ~O_DIRECTORY);
		expect_at("mode", fd, table[fd].mode, st.st_mode);
		if (!gone)
			expect_at("inode", fd, table[fd].inode, st.st_ino);
		expect_at("links", fd, gone, st.st_nlink == 0);
		path_of(fd, path);
		if (fd != GONE_DIR)
			expect_string("path", table[fd].path, path);
	}
	char byte;
	expect("it only names", -1, read(NAME, &byte, 1));
	expect("errno", EBADF, errno);
	expect("close-on-exec", FD_CLOEXEC, fcntl(NAME_GONE, F_GETFD));
	snprintf(link, sizeof link, "/proc/self/fd/%d", NAME);
	expect_text("named", AT_FDCWD, link, "by its name");
	snprintf(link, sizeof link, "/proc/self/fd/%d", NAME_GONE);
	expect_text("gone", AT_FDCWD, link, "without a name");
	expect_text("in a directory", NAME_DIR, "inside", "in a directory");
	expect_text("in a renamed one", RENAMED_DIR, "inside", "in a renamed one");
	ssize_t n = readlinkat(NAME_LINK, "", path, sizeof path - 1);
	expect("length of the link", 5, n);
	expect("position", 3, lseek(RENAMED, 0, SEEK_CUR));
	expect("renamed", 1, read(RENAMED, &byte, 1));
	expect("renamed, byte", 'a', byte);
	expect("one with its duplicate", 0, syscall(SYS_kcmp, victim_pid, victim_pid, 0, NAME, NAME_DUP));
	victim_end();
}
