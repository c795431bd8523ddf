/*
 * usage: driven DIR: does to its memory what it is told on standard input, a line each: a letter and numbers. "!" is
 * answered with a line when all before it was done. Between the lines two threads of its own write, read and give back.
 * It keeps no account: the test compares every byte. What cannot be done is not: the place may be gone or protected.
 *
 * Numbers: A area, F first page, N pages, V a value that gives the bytes. Areas lie at fixed places.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define AREA(i) ((char *)0x200000000000 + ((i) << 26))
#define RW (PROT_READ | PROT_WRITE)
#define FILE_PAGES 1024
#define STEADY_PAGES 1024
#define BREAK_PAGES 256
#define STACK_PAGES 64

#ifndef MAP_HUGE_2MB
#define MAP_HUGE_2MB (21 << 26)
#endif

static __thread sigjmp_buf back;
static __thread volatile sig_atomic_t may_fault;
static int file, memfd, huge = -1;
static char *steady, *break_start;
static pid_t child;

static void on_fault(int signal)
{
	if (!may_fault)
		_exit(100 + signal);
	siglongjmp(back, 1);
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9u;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

/* Some words of every STRIDE-th page. */
static void write_pages(char *at, unsigned long pages, unsigned long stride, uint64_t value)
{
	may_fault = 1;
	/* A page that cannot be written ends it. */
	if (!sigsetjmp(back, 1))
		for (unsigned long i = 0; i < pages; i += stride) {
			uint64_t *page = (uint64_t *)(at + i * PAGE), word = mix(value + i);
			page[word % 512] = word;
			page[word / 512 % 512] = value % 5 ? word + 1 : 0;
		}
	may_fault = 0;
}

static void read_pages(char *at, unsigned long pages)
{
	volatile char sum = 0;
	may_fault = 1;
	if (!sigsetjmp(back, 1))
		for (unsigned long i = 0; i < pages; i++)
			sum += at[i * PAGE];
	may_fault = 0;
}

static void map(int area, unsigned long first, unsigned long pages, int kind, unsigned long offset)
{
	static const struct { int flags, *fd; } kinds[] = {
		{ MAP_PRIVATE | MAP_ANONYMOUS, NULL }, /* 0: the usual */
		{ MAP_PRIVATE | MAP_ANONYMOUS, NULL }, /* 1: huge pages wanted */
		{ MAP_SHARED | MAP_ANONYMOUS, NULL },
		{ MAP_PRIVATE, &file },
		{ MAP_PRIVATE, &memfd },
		{ MAP_SHARED, &memfd },
		{ MAP_SHARED, &file },
		{ MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, NULL }, /* 7 */
		{ MAP_SHARED, &huge },
		{ MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, NULL }, /* 9: nothing is written into it for now */
	};
	int *fd = kinds[kind].fd;
	if (kind == 8 && huge < 0)
		return;
	char *at = AREA(area) + first * PAGE;
	at = mmap(at, pages * PAGE, RW, kinds[kind].flags | MAP_FIXED, fd ? *fd : -1, fd ? (off_t)(offset * PAGE) : 0);
	if (at == MAP_FAILED)
		return;
	if (kind == 1)
		madvise(at, pages * PAGE, MADV_HUGEPAGE);
}

/* MODE 0: in place, 1: may move, 2: to a fixed place, over what is there, 3: the pages only (MREMAP_DONTUNMAP). */
static void remap(char *at, unsigned long pages, unsigned long new_pages, char *to, int mode)
{
	static const int flags[] = { 0, MREMAP_MAYMOVE, MREMAP_MAYMOVE | MREMAP_FIXED, MREMAP_MAYMOVE | MREMAP_FIXED | 4 };
	mremap(at, pages * PAGE, new_pages * PAGE, flags[mode], to);
}

/* The file has other bytes at each place, so that what lands is new. */
static void read_into(char *at, unsigned long pages, uint64_t value)
{
	struct iovec pieces[2] = { { at, pages * PAGE / 2 }, { at + pages * PAGE / 2 + 64, pages * PAGE / 4 } };
	if (preadv(file, pieces, 2, value % (FILE_PAGES * PAGE / 2)) < 0)
		return;
}

static void write_file(int fd, unsigned long first, unsigned long pages, uint64_t value)
{
	char bytes[PAGE];
	for (unsigned long i = 0; i < pages; i++) {
		memset(bytes, mix(value + i) % (value % 3 ? 256 : 2), sizeof bytes);
		if (pwrite(fd, bytes, sizeof bytes, (first + i) * PAGE) < 0)
			return;
	}
}

static void move_break(unsigned long pages, uint64_t value)
{
	if (brk(break_start + pages * PAGE))
		return;
	write_pages(break_start, pages, 1 + value % 7, value);
}

static __attribute__((noinline)) uint64_t use_stack(unsigned long pages, uint64_t value)
{
	volatile uint64_t room[512];
	room[value % 512] = value;
	return pages ? use_stack(pages - 1, mix(value)) + room[value % 512] : value;
}

/* The child writes into the parent's pages, and holds those that the parent writes, until it is told to end. */
static void with_child(int area, unsigned long first, unsigned long pages, uint64_t value)
{
	if (child > 0) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		write_pages(AREA(area) + first * PAGE, pages, 2, value);
		for (;;)
			pause();
	}
}

static void *write_steadily(void *argument)
{
	uint64_t state = (uintptr_t)argument;
	for (;;) {
		state = mix(state + 0x9e3779b97f4a7c15u);
		char *page = steady + state % STEADY_PAGES * PAGE;
		((uint64_t *)page)[state >> 32 & 511] = state;
		if (state >> 50 == 0)
			madvise(page, PAGE, MADV_DONTNEED);
		if (state >> 61 == 0)
			usleep(20);
	}
	return NULL;
}

static void obey(char what, const uint64_t *n)
{
	static const int advice[] = { MADV_DONTNEED, MADV_FREE, MADV_REMOVE, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
		25 /* COLLAPSE */, 21 /* PAGEOUT */, MADV_COLD, 102 /* GUARD_INSTALL */, 103 /* GUARD_REMOVE */,
		22 /* POPULATE_READ */, 23 /* POPULATE_WRITE */ };
	static const int prots[] = { RW, PROT_READ, PROT_NONE, PROT_WRITE, PROT_READ | PROT_EXEC };
	char *at = AREA(n[0]) + n[1] * PAGE;
	size_t bytes = n[2] * PAGE;
	int fds[] = { file, memfd };
	switch (what) {
	case 'm': /* A F N kind offset */
		map(n[0], n[1], n[2], n[3], n[4]);
		break;
	case 'u': /* A F N */
		munmap(at, bytes);
		break;
	case 'w': /* A F N stride V */
		write_pages(at, n[2], n[3], n[4]);
		break;
	case 'r': /* A F N */
		read_pages(at, n[2]);
		break;
	case 'R': /* A F N V */
		read_into(at, n[2], n[3]);
		break;
	case 'p': /* A F N protection */
		mprotect(at, bytes, prots[n[3]]);
		break;
	case 'a': /* A F N advice */
		if (madvise(at, bytes, advice[n[3]])) {
		}
		break;
	case 'M': /* A F N new mode to-area to-first */
		remap(at, n[2], n[3], AREA(n[5]) + n[6] * PAGE, n[4]);
		break;
	case 'k': /* A F N V */
		with_child(n[0], n[1], n[2], n[3]);
		break;
	case 'b': /* pages V */
		move_break(n[0], n[1]);
		break;
	case 's': /* pages V */
		use_stack(n[0], n[1]);
		break;
	case 'f': /* which F N V */
		write_file(fds[n[0]], n[1], n[2], n[3]);
		break;
	case 't': /* which pages: cut, and long again with a hole */
		if (ftruncate(fds[n[0]], n[1] * PAGE) == 0 && ftruncate(fds[n[0]], FILE_PAGES * PAGE))
			_exit(3);
		break;
	default:
		_exit(4);
	}
}

int main(int argc, char **argv)
{
	static char line[256], input[4096];
	pthread_t thread;
	struct sigaction action = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
	if (argc != 2 || chdir(argv[1]))
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	file = open("driven.file", O_RDWR | O_CREAT | O_TRUNC, 0600);
	memfd = memfd_create("driven", 0);
	huge = memfd_create("huge", MFD_HUGETLB);
	if (huge >= 0 && ftruncate(huge, 4ul << 20)) {
		close(huge);
		huge = -1;
	}
	write_file(file, 0, FILE_PAGES, 7);
	write_file(memfd, 0, FILE_PAGES, 11);
	steady = mmap(NULL, STEADY_PAGES * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	setvbuf(stdout, NULL, _IONBF, 0);
	setvbuf(stdin, input, _IOFBF, sizeof input);
	for (uintptr_t i = 1; i <= 2; i++)
		if (pthread_create(&thread, NULL, write_steadily, (void *)i))
			return 2;
	/* From here on nothing is allocated, whose heap would be in the way of the break. */
	break_start = (char *)(((uintptr_t)sbrk(0) + PAGE - 1) & -PAGE);
	printf("READY\n");
	while (fgets(line, sizeof line, stdin)) {
		uint64_t n[8] = { 0 };
		char *rest = line + 1;
		if (*line == '!') {
			printf("DONE\n");
			continue;
		}
		for (int i = 0; i < 8; i++)
			n[i] = strtoull(rest, &rest, 10);
		obey(*line, n);
	}
	return 0;
}
