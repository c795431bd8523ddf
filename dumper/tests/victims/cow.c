/*
 * Private memory that is shared until it is written: a parent, its children and a grandchild, each of which changed,
 * dropped or protected some of it. Each holds what it held.
 *
 * cow [MIB] (16)
 */
#include "tree.h"

enum { ROOT, FIRST, SECOND, BELOW, TASKS };
static const char *const names[TASKS] = { "root", "first", "second", "below" };
static const int strides[TASKS] = { 13, 7, 11, 5 };
static char *memory;
static long pages;
/* The last who changed a page, by the order of forks; private as well, so that each task has its own list. */
static unsigned char *owner;
/* Dropped by the second task. */
#define DROPPED 255

static void change(int who)
{
	for (long i = who; i < pages; i += strides[who])
		if (owner[i] != DROPPED) {
			fill_page(memory + i * PAGE, ((uint64_t)(who + 1) << 40) + i);
			owner[i] = who + 1;
		}
}

static void check(void)
{
	for (long i = 0; i < pages; i++)
		if (owner[i] == DROPPED)
			expect_zero_page("dropped", i, memory + i * PAGE);
		else
			expect_page("memory", i, memory + i * PAGE, ((uint64_t)owner[i] << 40) + i);
}

/* What was read-only in the one is not in the other. */
static void check_protection(int who)
{
	char *text = slurp("/proc/self/maps"), wanted[64], *line;
	snprintf(wanted, sizeof wanted, "%lx-", (long)memory);
	line = strstr(text, wanted);
	if (!line)
		fail("the memory is not where it was");
	else
		expect("write access to its begin", who == FIRST ? '-' : 'w', *(strchr(line, ' ') + 2));
	free(text);
}

static int below(void *unused)
{
	(void)unused;
	change(BELOW);
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	check();
	return 33;
}

static int second(void *unused)
{
	(void)unused;
	change(SECOND);
	for (long i = 100; i < pages; i += 200) {
		must(madvise(memory + i * PAGE, PAGE, MADV_DONTNEED));
		owner[i] = DROPPED;
	}
	pid_t pid = tree_fork(names[BELOW], below, NULL);
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	check_protection(SECOND);
	check();
	tree_expect_exit(names[BELOW], pid, 33);
	return 32;
}

static int first(void *unused)
{
	(void)unused;
	change(FIRST);
	must(mprotect(memory, PAGE, PROT_READ));
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	check_protection(FIRST);
	check();
	return 31;
}

int main(int argc, char **argv)
{
	pages = (argc > 1 ? atol(argv[1]) : 16) * 256;
	tree_start();
	/* Between guards, so that no other mapping becomes one with it. */
	memory = must(mmap(NULL, (pages + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) + PAGE;
	must(mprotect(memory, pages * PAGE, PROT_READ | PROT_WRITE));
	owner = calloc(1, pages);
	fill_pages(memory, pages, 0);
	pid_t one = tree_fork(names[FIRST], first, NULL), two = tree_fork(names[SECOND], second, NULL);
	tree_all_set(3);
	/* After the forks: the children still have what was there before. */
	change(ROOT);
	victim_ready();
	victim_wait();
	check_protection(ROOT);
	check();
	tree_expect_exit(names[FIRST], one, 31);
	tree_expect_exit(names[SECOND], two, 32);
	tree_expect_no_child();
	victim_end();
}
