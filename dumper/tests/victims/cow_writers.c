/*
 * Private memory that a fork left shared, written all the time: a parent and its children write to their own copies, over
 * and over, one of a few contents, which differ in the last word of a page only. So pages of several tasks are equal at
 * one moment and are not at the next. Each holds what it wrote last.
 *
 * cow_writers [CHILDREN [MIB [WRITES_A_MS]]] (3, 8, 4)
 */
#include "tree.h"

#define CONTENTS 3

static char *memory;
/* Which content a page has; private as well, so that each task has its own list. */
static unsigned char *content;
static long pages, writes;

static uint64_t last_word(long page)
{
	return mix((uint64_t)page * CONTENTS + content[page]);
}

static void write_page(long page, unsigned char which)
{
	content[page] = which;
	*(uint64_t *)(memory + (page + 1) * PAGE - 8) = last_word(page);
}

static void check(void)
{
	for (long i = 0; i < pages; i++) {
		const uint64_t *word = (uint64_t *)(memory + i * PAGE);
		for (size_t at = 0; at < PAGE / 8 - 1; at++)
			if (word[at] != mix((uint64_t)i << 16 | at)) {
				fail("page %ld word %zu got 0x%" PRIx64, i, at, word[at]);
				break;
			}
		if (word[PAGE / 8 - 1] != last_word(i))
			fail("page %ld is not of content %d", i, content[i]);
	}
}

/* Writes until the check is asked for. */
static void run(uint64_t random)
{
	int64_t until = now_ns(CLOCK_MONOTONIC) + LIFE_SECONDS * 1000000000ll;
	while (!victim_asked()) {
		for (long i = 0; i < writes; i++) {
			random = mix(random);
			write_page(random % pages, (random >> 40) % CONTENTS);
		}
		if (now_ns(CLOCK_MONOTONIC) > until)
			broken("nobody asked");
		nap_ms(1);
	}
}

static int child(void *argument)
{
	long me = (intptr_t)argument;
	struct place place = place_of_self();
	task_ready();
	run(me);
	expect_place(place);
	check();
	return 40 + me;
}

int main(int argc, char **argv)
{
	long children = argc > 1 ? atol(argv[1]) : 3;
	pid_t pids[64];
	char name[32];
	pages = (argc > 2 ? atol(argv[2]) : 8) * 256;
	writes = argc > 3 ? atol(argv[3]) : 4;
	if (children < 1 || children > 64)
		broken("1 to 64 children");
	tree_start();
	/* Between guards, so that no other mapping becomes one with it. */
	memory = must(mmap(NULL, (pages + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) + PAGE;
	must(mprotect(memory, pages * PAGE, PROT_READ | PROT_WRITE));
	content = calloc(1, pages);
	for (long i = 0; i < pages; i++) {
		uint64_t *word = (uint64_t *)(memory + i * PAGE);
		for (size_t at = 0; at < PAGE / 8 - 1; at++)
			word[at] = mix((uint64_t)i << 16 | at);
		write_page(i, i % CONTENTS);
	}
	for (long i = 0; i < children; i++) {
		snprintf(name, sizeof name, "child-%ld", i);
		pids[i] = tree_fork(name, child, (void *)i);
	}
	tree_ready(children);
	run(0xc0de);
	check();
	for (long i = 0; i < children; i++) {
		snprintf(name, sizeof name, "child-%ld", i);
		tree_expect_exit(name, pids[i], 40 + i);
	}
	tree_expect_no_child();
	victim_end();
}
