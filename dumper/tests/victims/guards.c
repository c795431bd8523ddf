/*
 * Guard regions (MADV_GUARD_INSTALL, Linux 6.13): the pages around them hold patterns, and a touch of a guard must
 * still fault after a restore.
 *
 * guards [lost]: with `lost`, the restore is known to make them ordinary memory.
 */
#include "victim.h"
#include <sys/uio.h>

#define GUARD_INSTALL 102
#define GUARD_REMOVE 103
#define N 64

struct area {
	const char *name;
	char *at;
	bool is_guard[N];
	/* Where a guard is lost, the file's page is there. */
	bool is_shared;
};
static struct area areas[8];
static int count;

static bool filled(int page)
{
	return page % 3 != 1;
}

static struct area *add(const char *name, char *at)
{
	struct area *area = &areas[count++];
	area->name = name;
	area->at = at;
	for (int i = 0; i < N; i++)
		if (filled(i))
			fill_page(at + i * PAGE, (uint64_t)count << 32 | i);
	return area;
}

static void guard(struct area *area, int first, int pages)
{
	if (madvise(area->at + first * PAGE, pages * PAGE, GUARD_INSTALL) == -1) {
		/* Kernels before 6.13 have none; before 6.15, only in private writable memory. */
		say("NOTE no guards in %s: %s", area->name, strerror(errno));
		return;
	}
	memset(area->is_guard + first, true, pages);
}

static char *map(int prot)
{
	return must(mmap(NULL, N * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

/* By a system call, which answers EFAULT where a touch would be a signal. */
static bool can_touch(const void *at)
{
	char byte;
	struct iovec here = { &byte, 1 }, there = { (void *)at, 1 };
	return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == 1;
}

int main(int argc, char **argv)
{
	bool lost = argc > 1 && !strcmp(argv[1], "lost");
	char page[PAGE] = { 0 };
	victim_start();
	struct area *area = add("anonymous", map(PROT_READ | PROT_WRITE));
	guard(area, 0, 1);
	guard(area, 5, 2);
	guard(area, 7, 1);
	guard(area, 40, 20);
	area = add("all of it", map(PROT_READ | PROT_WRITE));
	guard(area, 0, N);
	/* A guard that reaches over two mappings. */
	area = add("two mappings", map(PROT_READ | PROT_WRITE));
	must(mprotect(area->at, N / 2 * PAGE, PROT_READ));
	must(madvise(area->at + N / 2 * PAGE, N / 2 * PAGE, MADV_DONTDUMP));
	guard(area, N / 2 - 2, 4);
	area = add("read only", map(PROT_READ | PROT_WRITE));
	must(mprotect(area->at, N * PAGE, PROT_READ));
	guard(area, 3, 3);
	int fd = must(open("guarded.map", O_CREAT | O_TRUNC | O_RDWR, 0644));
	for (int i = 0; i < N; i++)
		if (write(fd, page, PAGE) != PAGE)
			broken("write");
	area = add("private file", must(mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0)));
	guard(area, 9, 4);
	close(fd);
	fd = must(open("shared.map", O_CREAT | O_TRUNC | O_RDWR, 0644));
	must(ftruncate(fd, N * PAGE));
	area = add("shared file", must(mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)));
	area->is_shared = true;
	guard(area, 30, 5);
	close(fd);
	victim_ready();
	victim_wait();

	for (int n = 0; n < count; n++) {
		area = &areas[n];
		for (int i = 0; i < N; i++) {
			char *at = area->at + i * PAGE;
			bool is_guard = area->is_guard[i] && !lost;
			if (can_touch(at) == is_guard)
				fail("%s page %d %s", area->name, i, is_guard ? "is no guard" : "is a guard");
			if (is_guard)
				continue;
			if (filled(i) && (!area->is_guard[i] || area->is_shared))
				expect_page(area->name, i, at, (uint64_t)(n + 1) << 32 | i);
			else
				expect_zero_page(area->name, i, at);
		}
	}
	/* A guard that is taken away leaves empty memory. */
	if (areas[0].is_guard[5] && !lost) {
		must(madvise(areas[0].at + 5 * PAGE, PAGE, GUARD_REMOVE));
		expect_zero_page("guard taken away", 5, areas[0].at + 5 * PAGE);
	}
	victim_end();
}
