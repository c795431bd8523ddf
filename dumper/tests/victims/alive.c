/*
 * Memory that is given back between rounds: without a look at which pages are alive at the last stop, a page
 * that an earlier round sent would come back after restore although the program had dropped it.
 *
 * alive: works in steps and waits for a file "step-N" before each, so that a test can
 * put a round between two steps. After the last it says STEPS DONE.
 *
 * A dropped anonymous page must read as zeros, a dropped page of a private file mapping as the file's.
 */
#include "victim.h"

#define N 512
#define STEPS 3

enum { UNTOUCHED, FILLED, DROPPED };

struct area {
	const char *name;
	char *at;
	bool of_file;
	uint8_t state[N];
	uint32_t generation[N];
};
static struct area areas[4];

static void fill(struct area *area, int i, uint32_t generation)
{
	fill_page(area->at + i * PAGE, ((uint64_t)(area - areas + 1) << 48) + ((uint64_t)generation << 16) + i);
	area->state[i] = FILLED;
	area->generation[i] = generation;
}

static void drop(struct area *area, int first, int count)
{
	must(madvise(area->at + first * PAGE, count * PAGE, MADV_DONTNEED));
	for (int i = first; i < first + count; i++)
		area->state[i] = DROPPED;
}

static void set_up(void)
{
	char page[PAGE];
	int fd = must(open("backing", O_CREAT | O_TRUNC | O_RDWR, 0644));
	for (int i = 0; i < N; i++) {
		fill_page(page, 0xbac0000 + i);
		if (write(fd, page, PAGE) != PAGE)
			broken("write");
	}
	int rw = PROT_READ | PROT_WRITE;
	areas[0] = (struct area){ .name = "anonymous", .at = must(mmap(NULL, N * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) };
	char *huge = must(mmap(NULL, (N + 512) * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	huge = (char *)(((uintptr_t)huge + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
	must(madvise(huge, N * PAGE, MADV_HUGEPAGE));
	areas[1] = (struct area){ .name = "huge", .at = huge };
	areas[2] = (struct area){ .name = "private file", .at = must(mmap(NULL, N * PAGE, rw, MAP_PRIVATE, fd, 0)), .of_file = true };
	char *heap = grow_break((N + 1) * PAGE);
	areas[3] = (struct area){ .name = "heap", .at = (char *)(((uintptr_t)heap + PAGE - 1) & ~(PAGE - 1)) };
	close(fd);
	for (int a = 0; a < 4; a++)
		for (int i = 0; i < N; i++)
			if (i % 8 != 7)
				fill(&areas[a], i, 1);
}

static void step(int number)
{
	for (int a = 0; a < 4; a++) {
		struct area *area = &areas[a];
		/* Runs and single pages; some of what was dropped is filled again, some only read. */
		for (int i = number; i < N; i += 29)
			drop(area, i, 1);
		drop(area, 100 + number * 60, 40);
		for (int i = number * 5; i < N; i += 37)
			fill(area, i, number + 10);
		volatile char seen = 0;
		for (int i = 0; i < N; i += 3)
			if (area->state[i] == DROPPED && i % 2)
				seen += area->at[i * PAGE];
		(void)seen;
	}
}

static void check(void)
{
	char field[64];
	for (int a = 0; a < 4; a++) {
		struct area *area = &areas[a];
		for (int i = 0; i < N; i++) {
			static const char *states[] = { "untouched", "filled", "dropped" };
			char *page = area->at + i * PAGE;
			snprintf(field, sizeof field, "%s %s", area->name, states[area->state[i]]);
			if (area->state[i] == FILLED)
				expect_page(field, i, page,
					    ((uint64_t)(a + 1) << 48) + ((uint64_t)area->generation[i] << 16) + i);
			else if (area->of_file)
				expect_page(field, i, page, 0xbac0000 + i);
			else
				expect_zero_page(field, i, page);
		}
	}
}

int main(void)
{
	victim_start();
	set_up();
	victim_ready();
	for (int n = 1; n <= STEPS; n++) {
		char name[32];
		snprintf(name, sizeof name, "step-%d", n);
		for (int ms = 0; access(name, F_OK) && !victim_asked(); ms += 5) {
			if (ms > LIFE_SECONDS * 1000)
				broken("nobody made %s", name);
			nap_ms(5);
		}
		step(n);
		say("STEP %d", n);
	}
	victim_wait();
	check();
	victim_end();
}
