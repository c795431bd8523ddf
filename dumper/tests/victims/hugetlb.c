/*
 * Memory of huge pages (2 MiB) that were reserved for it: private and shared, anonymous, of memfds and of a file on
 * hugetlbfs, each page with a pattern or untouched. It takes 10 huge pages.
 *
 * hugetlb DIR: a directory on hugetlbfs.
 */
#include "smaps.h"

#define HUGE (2ul << 20)
#ifndef MFD_HUGETLB
#define MFD_HUGETLB 4u
#endif

struct area {
	const char *name;
	char *at;
	size_t huge_pages;
	int prot;
	bool shared;
	/* Which huge pages hold a pattern, as bits. */
	unsigned filled;
};
static struct area areas[10];
static int count;

static void *map(size_t huge_pages, int flags, int fd)
{
	return must(mmap(NULL, huge_pages * HUGE, PROT_READ | PROT_WRITE, flags, fd, 0));
}

static void fill(char *at, size_t huge_pages, unsigned filled, uint64_t seed)
{
	/* Two pages in each huge page: the first and one further in. */
	for (size_t n = 0; n < huge_pages; n++)
		if (filled & 1u << n) {
			fill_page(at + n * HUGE, seed << 32 | n);
			fill_page(at + n * HUGE + 77 * PAGE, seed << 32 | n | 1u << 20);
		}
}

static void add(const char *name, char *at, size_t huge_pages, int prot, bool shared, unsigned filled)
{
	areas[count++] = (struct area){ name, at, huge_pages, prot, shared, filled };
	fill(at, huge_pages, filled, count);
	if (prot != (PROT_READ | PROT_WRITE))
		must(mprotect(at, huge_pages * HUGE, prot));
}

int main(int argc, char **argv)
{
	const int both = PROT_READ | PROT_WRITE, anonymous = MAP_ANONYMOUS | MAP_HUGETLB;
	char path[PATH_MAX];
	victim_start();
	if (argc < 2)
		broken("hugetlb DIR");
	add("private", map(2, MAP_PRIVATE | anonymous, -1), 2, both, false, 1);
	add("private_read_only", map(1, MAP_PRIVATE | anonymous, -1), 1, PROT_READ, false, 1);
	add("shared", map(1, MAP_SHARED | anonymous, -1), 1, both, true, 1);
	int memfd = must(memfd_create("huge memory", MFD_HUGETLB | MFD_CLOEXEC));
	must(ftruncate(memfd, 2 * HUGE));
	add("memfd_shared", map(2, MAP_SHARED, memfd), 2, both, true, 3);
	/* The second of its pages is its own, the first is the file's. */
	char *copy = map(2, MAP_PRIVATE, memfd);
	fill_page(copy + HUGE, 0xc0b1);
	snprintf(path, sizeof path, "%s/file", argv[1]);
	int fd = must(open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0644));
	must(ftruncate(fd, 2 * HUGE));
	add("file_shared", map(1, MAP_SHARED, fd), 1, both, true, 1);
	char *file_copy = map(1, MAP_PRIVATE, fd);
	fill_page(file_copy, 0xf11e);
	close(fd);
	victim_ready();
	victim_wait();

	for (int n = 0; n < count; n++) {
		struct area *area = &areas[n];
		struct mapping_line mapping;
		if (!mapping_of(area->at, &mapping)) {
			fail("%s is not mapped", area->name);
			continue;
		}
		expect(area->name, area->prot, mapping.prot);
		expect(area->name, area->shared, mapping.shared);
		expect(area->name, 2048, mapping.page_kib);
		if (!has_flag(&mapping, "ht"))
			fail("%s is not of huge pages", area->name);
		for (size_t page = 0; page < area->huge_pages; page++) {
			/* A page that holds nothing is not touched: there may be none left. */
			if (!(area->filled & 1u << page))
				continue;
			char *at = area->at + page * HUGE;
			expect_page(area->name, page, at, (uint64_t)(n + 1) << 32 | page);
			expect_page(area->name, page, at + 77 * PAGE, (uint64_t)(n + 1) << 32 | page | 1u << 20);
			expect_zero_page(area->name, page, at + 78 * PAGE);
		}
	}
	expect_page("private copy of the memfd", 1, copy + HUGE, 0xc0b1);
	expect_page("private copy of the memfd", 0, copy, 4ull << 32);
	expect_page("private copy of the file", 0, file_copy, 0xf11e);
	char *again = map(2, MAP_SHARED, memfd);
	again[5] = 'x';
	expect("memfd and its mapping are one", 'x', areas[3].at[5]);
	victim_end();
}
