/*
 * usage: changer SEED FILE: changes its memory and its memory map at random and as fast as it can, until it is
 * killed: maps anonymous memory, private mappings of FILE and of a memfd, writes, reads, unmaps wholes and parts,
 * maps anew at the same address, moves, grows and shrinks, gives back, protects, forks, uses the heap. It keeps no
 * account: the test compares every byte.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define AREAS 24
#define PAGES 192
#define STEADY_PAGES 2048
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103

static struct area {
	char *at;
	unsigned long pages;
} areas[AREAS];
static uint64_t seed;
static int file, memfd;
static char *steady;

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static unsigned long dice(unsigned long sides)
{
	return (next_random(&seed) >> 16) % sides;
}

static void write_some(struct area *a, int count)
{
	while (count--) {
		uint64_t *word = (uint64_t *)(a->at + dice(a->pages) * PAGE) + dice(512);
		*word = next_random(&seed);
	}
}

static void map(struct area *a, char *where)
{
	int fixed = where ? MAP_FIXED : 0;
	unsigned kind = dice(8);
	if (!where)
		a->pages = 1 + dice(PAGES - 1);
	int fd = kind == 0 ? file : kind == 1 ? memfd : -1;
	a->at = mmap(where, a->pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | fixed | (fd < 0 ? MAP_ANONYMOUS : 0), fd,
		     fd < 0 ? 0 : dice(16) * PAGE);
	if (a->at == MAP_FAILED)
		_exit(2);
	if (kind == 2)
		madvise(a->at, a->pages * PAGE, MADV_HUGEPAGE);
	write_some(a, 1 + dice(32));
}

/* Takes pages out of the middle: what is left is two mappings, of which the area keeps the first. */
static void punch(struct area *a)
{
	unsigned long from = dice(a->pages), left = a->pages - from;
	if (!from)
		return;
	munmap(a->at + from * PAGE, left * PAGE);
	a->pages = from;
}

/* Maps anew in the middle of an area. */
static void replace_middle(struct area *a)
{
	unsigned long from = dice(a->pages), count = 1 + dice(a->pages - from);
	if (mmap(a->at + from * PAGE, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	    MAP_FAILED)
		_exit(2);
	for (unsigned long i = from; i < from + count; i++)
		if (dice(2))
			*(uint64_t *)(a->at + i * PAGE) = next_random(&seed);
}

static void move(struct area *a)
{
	unsigned long pages = 1 + dice(PAGES - 1);
	void *to = mremap(a->at, a->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
	/* An area may have become several mappings, which do not move together. */
	if (to == MAP_FAILED)
		return;
	a->at = to;
	a->pages = pages;
}

static void step(void)
{
	struct area *a = &areas[dice(AREAS)];
	volatile uint64_t sum = 0;
	if (!a->at) {
		map(a, NULL);
		return;
	}
	unsigned long from = dice(a->pages), count = 1 + dice(a->pages - from);
	switch (dice(14)) {
	case 0:
		munmap(a->at, a->pages * PAGE);
		a->at = NULL;
		break;
	case 1:
		punch(a);
		break;
	case 2:
		replace_middle(a);
		break;
	case 3:
		map(a, a->at);
		break;
	case 4:
		move(a);
		break;
	case 5:
		madvise(a->at + from * PAGE, count * PAGE, MADV_DONTNEED);
		break;
	case 6:
		mprotect(a->at + from * PAGE, count * PAGE, PROT_READ);
		mprotect(a->at + from * PAGE, count * PAGE, PROT_READ | PROT_WRITE);
		break;
	case 7:
		for (unsigned long i = from; i < from + count; i++)
			sum += *(uint64_t *)(a->at + i * PAGE);
		break;
	case 8:
		if (dice(16) == 0) {
			pid_t child = vfork();
			if (!child)
				_exit(0);
			waitpid(child, NULL, 0);
		}
		break;
	case 9:
		if (dice(2))
			free(malloc(dice(400000)));
		else
			memset(malloc(dice(64)), 7, 1);
		break;
	case 10:
		madvise(a->at + from * PAGE, count * PAGE, GUARD_INSTALL);
		if (dice(2))
			madvise(a->at + from * PAGE, count * PAGE, GUARD_REMOVE);
		else
			madvise(a->at, a->pages * PAGE, GUARD_REMOVE);
		break;
	default:
		write_some(a, 1 + dice(16));
	}
}

static void *write_steadily(void *argument)
{
	uint64_t state = (uintptr_t)argument;
	for (;;) {
		uint64_t *word = (uint64_t *)(steady + (next_random(&state) >> 16) % STEADY_PAGES * PAGE);
		word[(state >> 40) % 512] = state;
		if (state % 64 == 0)
			madvise(steady + (state >> 16) % STEADY_PAGES * PAGE, PAGE, MADV_DONTNEED);
		if (state % 16 == 0)
			usleep(1);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	char page[PAGE];
	pthread_t thread;
	if (argc != 3)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	seed = strtoull(argv[1], NULL, 0) * 2 + 88172645463325252ull;
	file = open(argv[2], O_RDWR | O_CREAT, 0600);
	memfd = memfd_create("changer", 0);
	for (int i = 0; i < PAGES + 16 + 64; i++) {
		memset(page, i + 1, PAGE);
		if (write(file, page, PAGE) != PAGE || write(memfd, page, PAGE) != PAGE)
			return 2;
	}
	steady = mmap(NULL, STEADY_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (uintptr_t i = 1; i <= 2; i++)
		if (pthread_create(&thread, NULL, write_steadily, (void *)(seed + i)))
			return 2;
	/* Guards that stay, as the newest C libraries put them below their stacks. */
	char *guarded = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(guarded, 1, 16 * PAGE);
	madvise(guarded + 4 * PAGE, 4 * PAGE, GUARD_INSTALL);
	dprintf(1, "READY\n");
	for (;;)
		step();
}
