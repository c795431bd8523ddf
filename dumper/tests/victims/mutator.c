/*
 * Changes its own memory map at random, from a seed, while it runs: maps, unmaps, moves, grows and shrinks,
 * protects, drops, uses stack. It keeps, outside the areas, what each page must hold.
 *
 * mutator SEED [PAUSE_US]
 */
#include "victim.h"

#define AREAS 24
#define AREA_PAGES 256

struct area {
	char *at;
	int pages, prot;
	bool of_file;
	/* 0 = never written or dropped: zeros, or the file's page. */
	uint64_t seed[AREA_PAGES];
	/* Which page of the file the first page shows. */
	int file_page;
};
static struct area areas[AREAS];
static uint64_t state, operations;
static int file_fd;

static uint64_t dice(uint64_t sides)
{
	state = mix(state);
	return (state >> 11) % sides;
}

static void make_file(void)
{
	char page[PAGE];
	file_fd = must(open("mutator.file", O_CREAT | O_TRUNC | O_RDWR, 0644));
	for (int i = 0; i < AREA_PAGES; i++) {
		fill_page(page, 0xf11e + i);
		if (write(file_fd, page, PAGE) != PAGE)
			broken("write");
	}
}

static void map(struct area *a)
{
	int pages = 1 + dice(AREA_PAGES - 1);
	memset(a, 0, sizeof *a);
	a->of_file = dice(4) == 0;
	a->pages = pages;
	a->prot = PROT_READ | PROT_WRITE;
	a->file_page = a->of_file ? dice(AREA_PAGES - pages + 1) : 0;
	a->at = must(mmap(NULL, pages * PAGE, a->prot, a->of_file ? MAP_PRIVATE : MAP_PRIVATE | MAP_ANONYMOUS,
			  a->of_file ? file_fd : -1, a->file_page * PAGE));
	if (!a->of_file && dice(4) == 0)
		must(madvise(a->at, pages * PAGE, MADV_HUGEPAGE));
}

static void unprotect(struct area *a)
{
	a->prot = PROT_READ | PROT_WRITE;
	must(mprotect(a->at, a->pages * PAGE, a->prot));
}

static void check_page(struct area *a, int i)
{
	char field[48];
	snprintf(field, sizeof field, "area %d after %" PRIu64 " operations", (int)(a - areas), operations);
	if (a->seed[i])
		expect_page(field, i, a->at + i * PAGE, a->seed[i]);
	else if (a->of_file)
		expect_page(field, i, a->at + i * PAGE, 0xf11e + a->file_page + i);
	else
		expect_zero_page(field, i, a->at + i * PAGE);
}

static void check_area(struct area *a)
{
	if (!a->at)
		return;
	if (!(a->prot & PROT_READ))
		unprotect(a);
	for (int i = 0; i < a->pages; i++)
		check_page(a, i);
}

static void write_some(struct area *a)
{
	int first = dice(a->pages), count = 1 + dice(a->pages - first);
	unprotect(a);
	for (int i = first; i < first + count; i++) {
		check_page(a, i);
		a->seed[i] = mix(state + i) | 1;
		fill_page(a->at + i * PAGE, a->seed[i]);
	}
}

static void drop_some(struct area *a)
{
	int first = dice(a->pages), count = 1 + dice(a->pages - first);
	must(madvise(a->at + first * PAGE, count * PAGE, MADV_DONTNEED));
	memset(a->seed + first, 0, count * sizeof *a->seed);
}

static void move(struct area *a)
{
	int pages = a->of_file ? a->pages : 1 + (int)dice(AREA_PAGES - 1);
	/* A target of its own makes the move certain. */
	char *target = must(mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	unprotect(a);
	a->at = must(mremap(a->at, a->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target));
	for (int i = a->pages; i < pages; i++)
		a->seed[i] = 0;
	a->pages = pages;
}

/* Half of an area goes; it becomes smaller at its end. */
static void shrink(struct area *a)
{
	if (a->pages < 2)
		return;
	int keep = 1 + dice(a->pages - 1);
	must(munmap(a->at + keep * PAGE, (a->pages - keep) * PAGE));
	a->pages = keep;
}

static __attribute__((noinline)) uint64_t use_stack(int depth)
{
	uint64_t room[512];
	for (int i = 0; i < 512; i += 64)
		room[i] = mix(depth + i);
	uint64_t below = depth > 0 ? use_stack(depth - 1) : 0;
	for (int i = 0; i < 512; i += 64)
		if (room[i] != mix(depth + i))
			fail("stack at depth %d", depth);
	return below + room[64];
}

static void operate(void)
{
	struct area *a = &areas[dice(AREAS)];
	if (!a->at) {
		map(a);
		return;
	}
	switch (dice(10)) {
	case 0:
		check_area(a);
		must(munmap(a->at, a->pages * PAGE));
		a->at = NULL;
		break;
	case 1:
		move(a);
		break;
	case 2:
		shrink(a);
		break;
	case 3:
		a->prot = dice(2) ? PROT_READ : PROT_NONE;
		must(mprotect(a->at, a->pages * PAGE, a->prot));
		break;
	case 4:
		drop_some(a);
		break;
	case 5:
		check_area(a);
		break;
	case 6:
		use_stack(dice(200));
		break;
	default:
		write_some(a);
	}
}

int main(int argc, char **argv)
{
	long pause_us = argc > 2 ? atol(argv[2]) : 200;
	victim_start();
	state = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
	make_file();
	for (int i = 0; i < 500; i++, operations++)
		operate();
	victim_ready();
	for (long left = LIFE_SECONDS * 1000000l / (pause_us + 60); left && !victim_asked(); left--, operations++) {
		operate();
		if (pause_us) {
			struct timespec pause = { 0, pause_us * 1000 };
			nanosleep(&pause, NULL);
		}
	}
	for (int i = 0; i < AREAS; i++)
		check_area(&areas[i]);
	say("OPERATIONS %" PRIu64, operations);
	victim_end();
}
