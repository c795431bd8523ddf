/*
 * usage: kinds DIR: changes page N of its areas in the way that a line on standard input names ("WAY N"), each in the
 * only way of its kind, and answers "DONE". "none" where the machine cannot do it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define PAGES 64
#define AREA(i) ((char *)0x300000000000 + ((uintptr_t)(i) << 32))
#define RW (PROT_READ | PROT_WRITE)

static char *anonymous, *of_file, *shared, *of_memfd, *shared_file;
static int file, memfd, direct;
/* Of no page at the start. */
static char value = 70;
static aio_context_t in_flight;

static int read_at(int fd, char *page)
{
	return pread(fd, page, PAGE, ((page - anonymous) & (PAGES * PAGE - 1))) == PAGE;
}

/* A request to the disk itself, which "aio-end" waits for. */
static int start_aio(char *page)
{
	static struct iocb request, *requests = &request;
	request = (struct iocb){ .aio_fildes = direct, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_buf = (uintptr_t)page,
		.aio_nbytes = PAGE };
	return !syscall(SYS_io_setup, 1, &in_flight) && syscall(SYS_io_submit, in_flight, 1, &requests) == 1;
}

static int end_aio(void)
{
	struct io_event event = { 0 };
	return syscall(SYS_io_getevents, in_flight, 1, 1, &event, NULL) == 1 && event.res == PAGE;
}

static int read_aio(int fd, char *page)
{
	aio_context_t context = 0;
	struct io_event event = { 0 };
	struct iocb request = { .aio_fildes = fd, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_buf = (uintptr_t)page,
		.aio_nbytes = PAGE, .aio_offset = 0 }, *requests = &request;
	if (syscall(SYS_io_setup, 1, &context))
		return 0;
	int done = syscall(SYS_io_submit, context, 1, &requests) == 1 &&
		   syscall(SYS_io_getevents, context, 1, 1, &event, NULL) == 1 && event.res == PAGE;
	syscall(SYS_io_destroy, context);
	return done;
}

/* The page goes into a pipe as it is, and is written while it lies there. */
static int splice_out(char *page, int flags)
{
	int ends[2];
	char taken[PAGE];
	struct iovec piece = { page, PAGE };
	if (pipe(ends) || vmsplice(ends[1], &piece, 1, flags) != PAGE)
		return 0;
	memset(page, value, PAGE);
	int done = read(ends[0], taken, PAGE) == PAGE;
	close(ends[0]);
	close(ends[1]);
	return done;
}

static int splice_in(char *page)
{
	int ends[2];
	char bytes[PAGE];
	struct iovec piece = { page, PAGE };
	memset(bytes, value, PAGE);
	if (pipe(ends) || write(ends[1], bytes, PAGE) != PAGE)
		return 0;
	int done = vmsplice(ends[0], &piece, 1, 0) == PAGE;
	close(ends[0]);
	close(ends[1]);
	return done;
}

/* Through a mapping of another process's own. */
static int by_child(char *page)
{
	pid_t child = fork();
	if (child == 0) {
		char *own = mmap(NULL, PAGES * PAGE, RW, MAP_SHARED, memfd, 0);
		memset(own + (page - shared), value, PAGE);
		_exit(own == MAP_FAILED);
	}
	int status = 1;
	return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

/* A child that holds the same page: the parent's write gives it another. */
static int after_fork(char *page)
{
	pid_t child = fork();
	if (child == 0) {
		memset(page, 99, PAGE);
		pause();
		_exit(0);
	}
	memset(page, value, PAGE);
	kill(child, SIGKILL);
	return waitpid(child, NULL, 0) == child;
}

/* A userfaultfd of its own, for pages that are there: it has nothing to do. */
static int own_userfaultfd(char *page)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .range = { (uintptr_t)page, 8 * PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	return fd >= 0 && !ioctl(fd, UFFDIO_API, &api) && !ioctl(fd, UFFDIO_REGISTER, &range);
}

static int change(const char *way, unsigned long n)
{
	char *page = anonymous + n * PAGE;
	char bytes[PAGE];
	memset(bytes, value, PAGE);
#define IS(name) (!strcmp(way, name))
	if (IS("write"))
		return memset(page, value, PAGE) != NULL;
	if (IS("read"))
		return read_at(file, page);
	if (IS("direct"))
		return direct >= 0 && read_at(direct, page);
	if (IS("aio"))
		return read_aio(file, page);
	if (IS("aio-start"))
		return start_aio(page);
	if (IS("aio-end"))
		return end_aio();
	if (IS("splice-out"))
		return splice_out(page, 0);
	if (IS("splice-gift"))
		return splice_out(page, SPLICE_F_GIFT);
	if (IS("splice-in"))
		return splice_in(page);
	if (IS("fork"))
		return after_fork(page);
	if (IS("dontneed"))
		return !madvise(page, PAGE, MADV_DONTNEED);
	if (IS("dontneed-file"))
		return !madvise(of_file + n * PAGE, PAGE, MADV_DONTNEED);
	if (IS("write-file"))
		return pwrite(file, bytes, PAGE, (PAGES + n) * PAGE) == PAGE;
	if (IS("guard-file")) {
		/* It may never end. */
		alarm(10);
		int done = !madvise(of_file + n * PAGE, PAGE, 102 /* GUARD_INSTALL */);
		alarm(0);
		return done;
	}
	if (IS("own-userfaultfd"))
		return own_userfaultfd(page);
	if (IS("write-shared"))
		return memset(shared + n * PAGE, value, PAGE) != NULL;
	if (IS("write-memfd"))
		return pwrite(memfd, bytes, PAGE, n * PAGE) == PAGE;
	if (IS("other-mapping"))
		return by_child(shared + n * PAGE);
	if (IS("remove"))
		return !madvise(shared + n * PAGE, PAGE, MADV_REMOVE);
	if (IS("hole"))
		return !fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, n * PAGE, PAGE);
	if (IS("write-shared-file"))
		return memset(shared_file + n * PAGE, value, PAGE) != NULL;
	return 0;
}

static char *map(int area, int flags, int fd, off_t offset)
{
	char *at = mmap(AREA(area), PAGES * PAGE, RW, flags | MAP_FIXED_NOREPLACE, fd, offset);
	if (at == MAP_FAILED)
		_exit(3);
	return at;
}

int main(int argc, char **argv)
{
	static char line[64], way[64];
	unsigned long n;
	char bytes[PAGE];
	if (argc != 2 || chdir(argv[1]))
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	file = open("kinds.file", O_RDWR | O_CREAT | O_TRUNC, 0600);
	memfd = memfd_create("kinds", 0);
	for (int i = 0; i < 3 * PAGES; i++) {
		memset(bytes, 100 + i, PAGE);
		if (write(file, bytes, PAGE) != PAGE || (i < PAGES && write(memfd, bytes, PAGE) != PAGE))
			return 2;
	}
	fsync(file);
	anonymous = map(0, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	of_file = map(1, MAP_PRIVATE, file, PAGES * PAGE);
	shared = map(2, MAP_SHARED, memfd, 0);
	of_memfd = map(3, MAP_PRIVATE, memfd, 0);
	shared_file = map(4, MAP_SHARED, file, 2 * PAGES * PAGE);
	for (int i = 0; i < PAGES; i++) {
		memset(anonymous + i * PAGE, 1 + i, PAGE);
		/* The first half of the private mapping of the file is the process's own. */
		if (i < PAGES / 2)
			of_file[i * PAGE] = 1;
		*(volatile char *)(of_memfd + i * PAGE);
	}
	setvbuf(stdout, NULL, _IONBF, 0);
	printf("READY\n");
	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "%63s %lu", way, &n) != 2)
			return 2;
		value++;
		/* Only while it is needed: a file that is open so changes how it is asked. */
		direct = IS("direct") || IS("aio-start") ? open("kinds.file", O_RDONLY | O_DIRECT) : -1;
		printf(change(way, n) ? "DONE\n" : "none\n");
		if (direct >= 0 && !IS("aio-start"))
			close(direct);
	}
	return 0;
}
