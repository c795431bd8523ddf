/*
 * Shared memory of one process: anonymous and of /dev/zero, mapped once, twice, in part, with a hole, read-only, and
 * coherent between its mappings; memfds that are written, mapped, sealed, reopened, closed behind a mapping.
 */
#include "victim.h"

#include <linux/memfd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

#define SHARED (PROT_READ | PROT_WRITE), MAP_SHARED

static void fill(char *at, int pages, uint64_t seed)
{
	for (int i = 0; i < pages; i++)
		fill_page(at + i * PAGE, seed + i);
}

static void check(const char *field, char *at, int pages, uint64_t seed)
{
	for (int i = 0; i < pages; i++)
		expect_page(field, i, at + i * PAGE, seed + i);
}

/* What is written through one mapping is read through the other. */
static void coherent(const char *field, char *one, char *other)
{
	one[17]++;
	expect(field, (unsigned char)one[17], (unsigned char)other[17]);
	one[17]--;
}

static int memfd(const char *name, unsigned flags)
{
	return must(syscall(SYS_memfd_create, name, flags));
}

static void write_all(int fd, int pages, uint64_t seed)
{
	char page[PAGE];
	for (int i = 0; i < pages; i++) {
		fill_page(page, seed + i);
		if (write(fd, page, PAGE) != (ssize_t)PAGE)
			broken("write");
	}
}

static void expect_link(const char *field, int fd, const char *expected)
{
	char path[64], target[256] = "";
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	if (readlink(path, target, sizeof target - 1) == -1)
		fail("%s readlink %s", field, strerror(errno));
	expect_string(field, expected, target);
}

static int reopen(int fd, int flags)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return must(open(path, flags));
}

/* With an argument: without what CRIU's own images do not bring back, a mapping of a file that is sealed. */
int main(int argc, char **argv)
{
	(void)argv;
	victim_start();
	/* 1: anonymous, mapped twice; 2: in part, behind a hole in its middle. */
	char *twice = must(mmap(NULL, 64 * PAGE, SHARED | MAP_ANONYMOUS, -1, 0));
	fill(twice, 32, 1000);
	fill(twice + 60 * PAGE, 4, 1060);
	char *again = must(mremap(twice, 0, 64 * PAGE, MREMAP_MAYMOVE));
	must(mprotect(again, 16 * PAGE, PROT_READ));
	char *part = must(mmap(NULL, 48 * PAGE, SHARED | MAP_ANONYMOUS, -1, 0));
	fill(part, 48, 2000);
	must(munmap(part, 8 * PAGE));
	must(munmap(part + 16 * PAGE, 16 * PAGE));
	must(madvise(part + 40 * PAGE, 4 * PAGE, MADV_REMOVE));
	/* 3: of /dev/zero, without any right. */
	int zero = must(open("/dev/zero", O_RDWR));
	char *device = must(mmap(NULL, 8 * PAGE, SHARED, zero, 0));
	fill(device, 8, 3000);
	must(mprotect(device, 8 * PAGE, PROT_NONE));
	must(close(zero));
	char *untouched = must(mmap(NULL, 8 * PAGE, SHARED | MAP_ANONYMOUS, -1, 0));

	/* 4: a memfd with an odd size and a hole; read, appended to, and a duplicate. */
	int plain = memfd("plain memfd (deleted)", MFD_CLOEXEC);
	write_all(plain, 20, 4000);
	must(ftruncate(plain, 40 * PAGE + 123));
	must(fallocate(plain, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4 * PAGE, 4 * PAGE));
	/* Behind its end only mappings reach, and nothing cuts it away. */
	char *tail = must(mmap(NULL, PAGE, SHARED, plain, 40 * PAGE));
	memcpy(tail + 3, "tail", 5);
	memcpy(tail + 200, "behind the end", 15);
	must(munmap(tail, PAGE));
	must(lseek(plain, 777, SEEK_SET));
	must(fchmod(plain, 0640));
	must(fchown(plain, 11, 12));
	int twin = must(dup(plain)), reader = reopen(plain, O_RDONLY), appender = reopen(plain, O_WRONLY | O_APPEND | O_NONBLOCK);
	must(lseek(reader, 5, SEEK_SET));
	/* 5: mapped shared and private, the descriptor closed. */
	int closed = memfd("closed", 0);
	write_all(closed, 16, 5000);
	char *file = must(mmap(NULL, 16 * PAGE, SHARED, closed, 0));
	char *behind = must(mmap(NULL, 8 * PAGE, SHARED, closed, 8 * PAGE));
	char *own = must(mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, closed, 0));
	fill(own + 3 * PAGE, 2, 5500);
	must(close(closed));
	/* 6: sealed; 7: sealed against future writes, with a mapping that may; 8: that seals nothing more. */
	int sealed = memfd("sealed", MFD_ALLOW_SEALING);
	write_all(sealed, 4, 6000);
	must(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
	char *look = argc > 1 ? NULL : must(mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, sealed, 0));
	int future = memfd("future", MFD_ALLOW_SEALING);
	must(ftruncate(future, 4 * PAGE));
	char *writable = must(mmap(NULL, 4 * PAGE, SHARED, future, 0));
	fill(writable, 4, 7000);
	must(fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL));
	int empty = memfd("", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct stat plain_stat;
	must(fstat(plain, &plain_stat));

	victim_ready();
	victim_wait();

	check("twice", twice, 32, 1000);
	check("twice, its end", twice + 60 * PAGE, 4, 1060);
	for (int i = 32; i < 60; i++)
		expect_zero_page("twice, its hole", i, twice + i * PAGE);
	check("again", again, 32, 1000);
	coherent("twice and again", twice + 20 * PAGE, again + 20 * PAGE);
	check("part", part + 8 * PAGE, 8, 2008);
	check("part, behind the hole", part + 32 * PAGE, 8, 2032);
	for (int i = 40; i < 44; i++)
		expect_zero_page("part, removed", i, part + i * PAGE);
	check("part, its end", part + 44 * PAGE, 4, 2044);
	must(mprotect(device, 8 * PAGE, PROT_READ));
	check("device", device, 8, 3000);
	expect_zero_page("untouched", 0, untouched);

	struct stat now;
	must(fstat(plain, &now));
	expect("memfd size", plain_stat.st_size, now.st_size);
	expect("memfd mode", plain_stat.st_mode, now.st_mode);
	expect("memfd uid", 11, now.st_uid);
	expect("memfd gid", 12, now.st_gid);
	expect("memfd blocks", plain_stat.st_blocks, now.st_blocks);
	expect_link("memfd name", plain, "/memfd:plain memfd (deleted) (deleted)");
	expect("memfd offset", 777, lseek(plain, 0, SEEK_CUR));
	must(lseek(twin, 99, SEEK_SET));
	expect("memfd dup shares its description", 99, lseek(plain, 0, SEEK_CUR));
	expect("memfd reader offset", 5, lseek(reader, 0, SEEK_CUR));
	expect("memfd reader flags", O_RDONLY, fcntl(reader, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK));
	expect("memfd appender flags", O_WRONLY | O_APPEND | O_NONBLOCK,
	       fcntl(appender, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK));
	expect("memfd close-on-exec", FD_CLOEXEC, fcntl(plain, F_GETFD));
	expect("memfd dup close-on-exec", 0, fcntl(twin, F_GETFD));
	char page[PAGE];
	for (int i = 0; i < 20; i++) {
		if (pread(reader, page, PAGE, i * PAGE) != (ssize_t)PAGE)
			fail("memfd page %d cannot be read", i);
		else if (i >= 4 && i < 8)
			expect_zero_page("memfd hole", i, page);
		else
			expect_page("memfd", i, page, 4000 + i);
	}
	expect("memfd is one file", 1, pwrite(twin, "x", 1, 10) == 1 && pread(reader, page, 1, 10) == 1 && *page == 'x');
	tail = must(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, plain, 40 * PAGE));
	expect_string("memfd tail", "tail", tail + 3);
	expect_string("memfd behind its end", "behind the end", tail + 200);
	expect("memfd behind its end, zero", 0, tail[199] | tail[215] | tail[PAGE - 1]);
	expect("memfd seals", F_SEAL_SEAL, fcntl(plain, F_GET_SEALS));

	check("closed", file, 16, 5000);
	check("closed, by its offset", behind, 8, 5008);
	coherent("closed", file + 9 * PAGE, behind + PAGE);
	check("own", own, 3, 5000);
	check("own, changed", own + 3 * PAGE, 2, 5500);
	check("own, its end", own + 5 * PAGE, 11, 5005);
	expect("sealed seals", F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE, fcntl(sealed, F_GET_SEALS));
	expect("sealed write", EPERM, write(sealed, "x", 1) == -1 ? errno : 0);
	if (look)
		check("sealed", look, 4, 6000);
	for (int i = 0; i < 4; i++)
		if (pread(sealed, page, PAGE, i * PAGE) == (ssize_t)PAGE)
			expect_page("sealed memfd", i, page, 6000 + i);
		else
			fail("sealed page %d cannot be read", i);
	expect("future seals", F_SEAL_FUTURE_WRITE | F_SEAL_SEAL, fcntl(future, F_GET_SEALS));
	check("future", writable, 4, 7000);
	writable[0]++;
	expect("future write", EPERM, write(future, "x", 1) == -1 ? errno : 0);
	expect("empty seals", 0, fcntl(empty, F_GET_SEALS));
	expect_link("empty name", empty, "/memfd: (deleted)");
	expect("empty size", 0, lseek(empty, 0, SEEK_END));
	victim_end();
}
