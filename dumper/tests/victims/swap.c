/*
 * Memory that was swapped out (MADV_PAGEOUT, on a machine with swap): most of it still is when the process is dumped.
 * Some of it is swapped out anew while the process runs, some written again, some given back.
 */
#include "victim.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#define PAGES 1024

static char *area;
static uint64_t seeds[PAGES];

static void fill(int first, int count, uint64_t seed)
{
	for (int i = first; i < first + count; i++) {
		seeds[i] = seed + i;
		fill_page(area + i * PAGE, seeds[i]);
	}
}

/* The kernel may leave a page that it finds in use: it is asked again. */
static void swap_out(int first, int count)
{
	for (int turn = 0; turn < 3; turn++)
		must(madvise(area + first * PAGE, count * PAGE, MADV_PAGEOUT));
}

static int swapped(void)
{
	uint64_t words[PAGES];
	int count = 0, fd = must(open("/proc/self/pagemap", O_RDONLY));
	if (pread(fd, words, sizeof words, (uintptr_t)area / PAGE * 8) != sizeof words)
		broken("pagemap");
	close(fd);
	for (int i = 0; i < PAGES; i++)
		count += words[i] >> 62 & 1;
	return count;
}

int main(void)
{
	victim_start();
	area = must(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	must(madvise(area, PAGES * PAGE, MADV_NOHUGEPAGE));
	fill(0, PAGES, 0x5a9000);
	swap_out(0, PAGES);
	if (swapped() < PAGES / 2)
		broken("only %d of %d pages are swapped out", swapped(), PAGES);
	say("SWAPPED %d", swapped());
	victim_ready();
	for (int turn = 0; turn < LIFE_SECONDS * 10 && !victim_asked(); turn++) {
		int first = turn * 37 % (PAGES - 24);
		fill(first, 8, 0x100000ull * (turn + 2));
		must(madvise(area + (first + 8) * PAGE, 4 * PAGE, MADV_DONTNEED));
		memset(seeds + first + 8, 0, 4 * sizeof *seeds);
		swap_out(first, 24);
		nap_ms(100);
	}
	for (int i = 0; i < PAGES; i++)
		if (seeds[i])
			expect_page("page", i, area + i * PAGE, seeds[i]);
		else
			expect_zero_page("page", i, area + i * PAGE);
	victim_end();
}
