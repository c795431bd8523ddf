/*
 * Writes the same pages over and over: some with what they hold, some but for a few bytes, some anew, some with zeros
 * in turn. It keeps, outside them, what each must hold. The first line of the log names the memory that the kernel
 * itself writes into: "RSEQ ADDRESS".
 *
 * hot [SEED]
 */
#include "victim.h"

#ifdef __GLIBC__
#include <sys/rseq.h>
#endif

#define PAGES 512

enum { SAME, NEAR, OTHER, IN_TURN, KINDS };

static char *areas[KINDS];
static uint64_t seeds[KINDS][PAGES];
/* What the counters within the pages that change a little hold. */
static uint64_t counters[PAGES];

static uint64_t *counter(int i)
{
	return (uint64_t *)(areas[NEAR] + i * PAGE) + i % (PAGE / 8);
}

static void write_all(uint64_t turn)
{
	for (int i = 0; i < PAGES; i++) {
		volatile uint64_t *word = (uint64_t *)(areas[SAME] + i * PAGE);
		*word = *word;
		*counter(i) = ++counters[i];
		seeds[OTHER][i] = mix(turn * PAGES + i) | 1;
		fill_page(areas[OTHER] + i * PAGE, seeds[OTHER][i]);
		seeds[IN_TURN][i] = (turn + i) % 3 ? mix(i) | 1 : 0;
		if (seeds[IN_TURN][i])
			fill_page(areas[IN_TURN] + i * PAGE, seeds[IN_TURN][i]);
		else
			memset(areas[IN_TURN] + i * PAGE, 0, PAGE);
	}
}

static void check_all(void)
{
	for (int i = 0; i < PAGES; i++) {
		expect_page("same", i, areas[SAME] + i * PAGE, seeds[SAME][i]);
		expect_at("counter", i, counters[i], *counter(i));
		*counter(i) = mix(seeds[NEAR][i] * 1024 + i % (PAGE / 8));
		expect_page("near", i, areas[NEAR] + i * PAGE, seeds[NEAR][i]);
		*counter(i) = counters[i];
		expect_page("other", i, areas[OTHER] + i * PAGE, seeds[OTHER][i]);
		if (seeds[IN_TURN][i])
			expect_page("in turn", i, areas[IN_TURN] + i * PAGE, seeds[IN_TURN][i]);
		else
			expect_zero_page("in turn", i, areas[IN_TURN] + i * PAGE);
	}
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
	victim_start();
	for (int kind = 0; kind < KINDS; kind++) {
		areas[kind] = must(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		for (int i = 0; i < PAGES; i++) {
			seeds[kind][i] = mix(seed * KINDS + kind) + i;
			fill_page(areas[kind] + i * PAGE, seeds[kind][i]);
		}
	}
#if defined(__GLIBC__) && defined(RSEQ_SIG)
	if (__rseq_size)
		say("RSEQ %lx", (unsigned long)__builtin_thread_pointer() + __rseq_offset);
#endif
	victim_ready();
	for (uint64_t turn = 0; !victim_asked(); turn++)
		write_all(turn);
	check_all();
	victim_end();
}
