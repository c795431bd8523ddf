/*
 * Shared memory that changes all the time, in the ways that no page table shows: written by write(2), through one of
 * several mappings, punched, cut and grown, behind the end of every mapping, made and closed. What each page must hold
 * is kept beside.
 *
 * Arguments: seed, and the pause between two changes in microseconds.
 */
#include "victim.h"

#include <linux/memfd.h>

#define TWICE 64
#define FILE_PAGES 96
#define MAPPED 48
#define STILL 700
#define SHARED (PROT_READ | PROT_WRITE), MAP_SHARED

static uint64_t state, twice_holds[TWICE], file_holds[FILE_PAGES], late_holds;
static char *one, *other, *window;
static int file, still, late = -1;
static unsigned size = FILE_PAGES;

static uint64_t next(uint64_t below)
{
	state = mix(state);
	return state % below;
}

static uint64_t seed(void)
{
	return 1 + next(1ull << 40);
}

static void put(int fd, unsigned page, uint64_t holds)
{
	char bytes[PAGE];
	fill_page(bytes, holds);
	if (pwrite(fd, bytes, PAGE, page * PAGE) != (ssize_t)PAGE)
		broken("pwrite");
}

static void change_twice(void)
{
	unsigned page = next(TWICE);
	if (next(8) == 0) {
		must(madvise(one + page * PAGE, PAGE, MADV_REMOVE));
		twice_holds[page] = 0;
		return;
	}
	twice_holds[page] = seed();
	fill_page((next(2) ? one : other) + page * PAGE, twice_holds[page]);
}

static void change_file(void)
{
	unsigned page = next(size);
	switch (next(16)) {
	case 0:
		must(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PAGE, PAGE));
		file_holds[page] = 0;
		break;
	case 1:
		size = MAPPED / 2 + next(FILE_PAGES - MAPPED / 2) + 1;
		must(ftruncate(file, size * PAGE));
		for (unsigned i = size; i < FILE_PAGES; i++)
			file_holds[i] = 0;
		break;
	default:
		file_holds[page] = seed();
		if (page < MAPPED && next(2))
			fill_page(window + page * PAGE, file_holds[page]);
		else
			put(file, page, file_holds[page]);
	}
}

static void change_late(void)
{
	if (late != -1 && next(4) == 0) {
		must(close(late));
		late = -1;
		return;
	}
	if (late == -1)
		late = must(syscall(SYS_memfd_create, "late", 0));
	late_holds = seed();
	put(late, 3, late_holds);
}

static void expect_held(const char *field, long index, const char *page, uint64_t holds)
{
	if (holds)
		expect_page(field, index, page, holds);
	else
		expect_zero_page(field, index, page);
}

static void expect_in(const char *field, int fd, unsigned page, uint64_t holds)
{
	char bytes[PAGE];
	if (pread(fd, bytes, PAGE, page * PAGE) != (ssize_t)PAGE)
		fail("%s page %u cannot be read", field, page);
	else
		expect_held(field, page, bytes, holds);
}

static uint64_t blocks(int fd)
{
	struct stat now;
	must(fstat(fd, &now));
	return now.st_blocks;
}

static void check_all(bool by_blocks)
{
	struct stat now;
	uint64_t held = 0;
	for (unsigned i = 0; i < TWICE; i++) {
		expect_held("one", i, one + i * PAGE, twice_holds[i]);
		expect_held("other", i, other + i * PAGE, twice_holds[i]);
	}
	must(fstat(file, &now));
	expect("size", size * PAGE, now.st_size);
	for (unsigned i = 0; i < size; i++) {
		held += file_holds[i] != 0;
		expect_in("file", file, i, file_holds[i]);
	}
	if (by_blocks)
		expect("blocks", held * PAGE / 512, now.st_blocks);
	/* To read a hole through a mapping would fill it. */
	for (unsigned i = 0; i < size && i < MAPPED; i++)
		if (file_holds[i])
			expect_page("window", i, window + i * PAGE, file_holds[i]);
	for (unsigned i = 0; i < STILL; i++)
		expect_in("still", still, i, i % 3 == 1 ? 0 : 10000 + i);
	if (late != -1) {
		expect_in("late", late, 3, late_holds);
		expect_in("late, its hole", late, 0, 0);
	}
}

int main(int argc, char **argv)
{
	victim_start();
	state = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
	long pause_us = argc > 2 ? atol(argv[2]) : 100;
	one = must(mmap(NULL, TWICE * PAGE, SHARED | MAP_ANONYMOUS, -1, 0));
	other = must(mremap(one, 0, TWICE * PAGE, MREMAP_MAYMOVE));
	file = must(syscall(SYS_memfd_create, "changing", 0));
	must(ftruncate(file, size * PAGE));
	window = must(mmap(NULL, MAPPED * PAGE, SHARED, file, 0));
	still = must(syscall(SYS_memfd_create, "still", 0));
	must(ftruncate(still, STILL * PAGE));
	for (unsigned i = 0; i < STILL; i++)
		if (i % 3 != 1)
			put(still, i, 10000 + i);
	for (unsigned i = 0; i < 200; i++) {
		change_twice();
		change_file();
	}
	bool by_blocks = blocks(still) == (uint64_t)(STILL - STILL / 3) * PAGE / 512;
	check_all(by_blocks);

	victim_ready();
	for (int64_t until = now_ns(CLOCK_MONOTONIC) + LIFE_SECONDS * 1000000000ll; !victim_asked();) {
		change_twice();
		change_file();
		if (next(16) == 0)
			change_late();
		if (next(64) == 0)
			check_all(by_blocks);
		struct timespec pause = { 0, pause_us * 1000 };
		nanosleep(&pause, NULL);
		if (now_ns(CLOCK_MONOTONIC) > until)
			broken("nobody asked");
	}
	check_all(by_blocks);
	victim_end();
}
