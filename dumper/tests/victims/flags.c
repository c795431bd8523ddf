/*
 * Mappings with every flag and advice that images keep, alone and together, and mappings that can be written and not
 * read, only executed, or not touched at all: each with a pattern in some pages and nothing in others.
 */
#include "smaps.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define MAP_DROPPABLE_ 8
#define N 32
#define HUGE (2ul << 20)
#define GROWING 0x100010000000ul

struct area {
	const char *name;
	char *at;
	size_t pages;
	/* Page i is filled when i % stride == 0; 0: none. */
	size_t stride;
	int prot;
	/* Flags of smaps that restore keeps. */
	char kept[64];
	/* The kernel may have dropped any page. */
	bool may_be_gone;
};
static struct area areas[32];
static int count;

static const char *const KEPT[] = { "gd", "lo", "nr", "ht", "sr", "rr", "dc", "dd",
				    "wf", "mg", "hg", "nh", "dp", "sh" };

static void kept_flags(const struct mapping_line *mapping, char *into, size_t size)
{
	into[0] = 0;
	for (size_t i = 0; i < sizeof KEPT / sizeof *KEPT; i++)
		if (has_flag(mapping, KEPT[i])) {
			strncat(into, KEPT[i], size - strlen(into) - 1);
			strncat(into, " ", size - strlen(into) - 1);
		}
}

static struct area *add(const char *name, char *at, size_t pages, size_t stride, int prot)
{
	struct area *area = &areas[count++];
	*area = (struct area){ .name = name, .at = at, .pages = pages, .stride = stride, .prot = prot };
	for (size_t i = 0; stride && i < pages; i += stride)
		fill_page(at + i * PAGE, (uint64_t)count << 32 | i);
	if (prot != (PROT_READ | PROT_WRITE))
		must(mprotect(at, pages * PAGE, prot));
	return area;
}

static char *map(size_t pages, int flags)
{
	return must(mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0));
}

/* Kernels without the feature refuse the advice; the mapping is then an ordinary one. */
static char *advised(size_t pages, const int *advice)
{
	char *at = map(pages, 0);
	for (; *advice >= 0; advice++)
		if (madvise(at, pages * PAGE, *advice) == -1 && errno != EINVAL)
			broken("madvise %d", *advice);
	return at;
}
#define ADVISED(pages, ...) advised(pages, (const int[]){ __VA_ARGS__, -1 })

/* A mapping that grows down right above another one. */
static char *above_another(void)
{
	char *at = must(mmap(NULL, 16 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	return must(mmap(at + 8 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0));
}

/* A mapping that grows down, far from where the kernel puts others. */
static char *growing(void)
{
	return must(mmap((void *)GROWING, 8 * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0));
}

static char *private_file(int advice)
{
	int fd = must(open("file.map", O_CREAT | O_RDWR, 0644));
	must(ftruncate(fd, N * PAGE));
	char *at = must(mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	close(fd);
	must(madvise(at, N * PAGE, advice));
	return at;
}

/* Anonymous memory that keeps a file. */
static char *zero_device(void)
{
	int fd = must(open("/dev/zero", O_RDWR));
	char *at = must(mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	close(fd);
	return at;
}

static char *collapsed(void)
{
	char *at = map(2 * HUGE / PAGE, 0);
	at = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
	for (size_t i = 0; i < HUGE / PAGE; i++)
		at[i * PAGE] = 1;
	if (madvise(at, HUGE, MADV_COLLAPSE) == -1)
		say("NOTE no collapse: %s", strerror(errno));
	return at;
}

static bool byte_is_readable(const void *at)
{
	int pipes[2];
	must(pipe2(pipes, O_CLOEXEC));
	bool readable = write(pipes[1], at, 1) == 1;
	close(pipes[0]);
	close(pipes[1]);
	return readable;
}

/* What a child finds, as bits: memory wiped, memory there at all. */
static int seen_by_a_child(const volatile char *wiped, const char *kept_away)
{
	int status;
	pid_t pid = must(fork());
	if (pid == 0)
		_exit((wiped[0] == 0 ? 1 : 0) | (byte_is_readable(kept_away) ? 0 : 2));
	must(waitpid(pid, &status, 0));
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int main(void)
{
	const int all = PROT_READ | PROT_WRITE;
	victim_start();
	add("growsdown", growing(), 8, 3, all);
	add("growsdown_above_another", above_another(), 8, 1, all);
	add("map_locked", map(N, MAP_LOCKED), N, 3, all);
	char *at = map(N, 0);
	must(mlock(at, N * PAGE));
	add("mlock", at, N, 1, PROT_READ);
	add("noreserve", map(N, MAP_NORESERVE), N, 3, all);
	char *dont_fork = ADVISED(N, MADV_DONTFORK);
	add("dont_fork", dont_fork, N, 3, all);
	add("dont_dump", ADVISED(N, MADV_DONTDUMP), N, 3, all);
	char *wiped = ADVISED(N, MADV_WIPEONFORK);
	add("wipe_on_fork", wiped, N, 3, all);
	add("mergeable", ADVISED(N, MADV_MERGEABLE), N, 3, all);
	add("huge_page", ADVISED(N, MADV_HUGEPAGE), N, 3, all);
	add("no_huge_page", ADVISED(N, MADV_NOHUGEPAGE), N, 3, all);
	add("sequential", ADVISED(N, MADV_SEQUENTIAL), N, 3, all);
	add("random", ADVISED(N, MADV_RANDOM), N, 3, all);
	add("all_advice",
	    ADVISED(N, MADV_DONTFORK, MADV_DONTDUMP, MADV_WIPEONFORK, MADV_MERGEABLE, MADV_NOHUGEPAGE, MADV_RANDOM), N,
	    3, all);
	at = ADVISED(N, MADV_DONTDUMP, MADV_SEQUENTIAL);
	must(mlock(at, N * PAGE));
	add("locked_and_advised", at, N, 5, PROT_READ);
	add("file_sequential", private_file(MADV_SEQUENTIAL), N, 3, all);
	add("file_random", private_file(MADV_RANDOM), N, 4, PROT_READ);
	add("file_dont_dump", private_file(MADV_DONTDUMP), N, 5, PROT_NONE);
	add("zero_device", zero_device(), N, 3, all);
	add("write_only", map(N, 0), N, 2, PROT_WRITE);
	add("execute_only", map(N, 0), N, 2, PROT_EXEC);
	add("none", map(N, 0), N, 3, PROT_NONE);
	add("empty", map(N, 0), N, 0, all);
	add("empty_read_only", map(N, 0), N, 0, PROT_READ);
	add("empty_none", map(N, 0), N, 0, PROT_NONE);
	add("collapsed", collapsed(), HUGE / PAGE, 1, all);
	at = mmap(NULL, N * PAGE, all, MAP_DROPPABLE_ | MAP_ANONYMOUS, -1, 0);
	if (at != MAP_FAILED)
		add("droppable", at, N, 3, all)->may_be_gone = true;
	for (int n = 0; n < count; n++) {
		struct mapping_line mapping;
		if (!mapping_of(areas[n].at, &mapping))
			broken("%s is not mapped", areas[n].name);
		kept_flags(&mapping, areas[n].kept, sizeof areas[n].kept);
	}
	victim_ready();
	victim_wait();

	for (int n = 0; n < count; n++) {
		struct area *area = &areas[n];
		struct mapping_line mapping;
		char kept[sizeof area->kept];
		if (!mapping_of(area->at, &mapping)) {
			fail("%s is not mapped", area->name);
			continue;
		}
		kept_flags(&mapping, kept, sizeof kept);
		expect(area->name, area->prot, mapping.prot);
		expect_string(area->name, area->kept, kept);
		if (has_flag(&mapping, "lo"))
			expect(area->name, (mapping.end - mapping.start) / 1024, mapping.locked_kib);
	}
	expect("seen by a child", 3, seen_by_a_child(wiped, dont_fork));
	for (int n = 0; n < count; n++) {
		struct area *area = &areas[n];
		if (!(area->prot & PROT_READ))
			must(mprotect(area->at, area->pages * PAGE, PROT_READ));
		for (size_t i = 0; i < area->pages; i++) {
			char *page = area->at + i * PAGE;
			bool filled = area->stride && i % area->stride == 0;
			if (area->may_be_gone && page[0] == 0)
				filled = false;
			if (filled)
				expect_page(area->name, i, page, (uint64_t)(n + 1) << 32 | i);
			else
				expect_zero_page(area->name, i, page);
		}
	}
	/* What grows down still does, where there is room. */
	fill_page(areas[0].at - PAGE, 7);
	expect_page("grown", 0, areas[0].at - PAGE, 7);
	victim_end();
}
