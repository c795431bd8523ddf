/*
 * Five thousand mappings: single pages whose protection differs from their neighbours', every seventh with content.
 */
#include "victim.h"

#define PAGES 5000

static int prot_of(long page)
{
	static const int prots[] = { PROT_READ | PROT_WRITE, PROT_NONE, PROT_READ };
	return prots[page % 3];
}

int main(void)
{
	victim_start();
	char *at = must(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (long n = 0; n < PAGES; n++) {
		if (n % 7 == 0)
			fill_page(at + n * PAGE, n);
		must(mprotect(at + n * PAGE, PAGE, prot_of(n)));
	}
	victim_ready();
	victim_wait();

	FILE *maps = fopen("/proc/self/maps", "re");
	char line[PATH_MAX + 256];
	long mapped = 0;
	if (!maps)
		broken("maps");
	while (fgets(line, sizeof line, maps)) {
		unsigned long start, end;
		char mode[8];
		if (sscanf(line, "%lx-%lx %7s", &start, &end, mode) != 3)
			broken("maps line");
		if (start < (unsigned long)at || start >= (unsigned long)at + PAGES * PAGE)
			continue;
		for (; start < end; start += PAGE, mapped++) {
			long n = (start - (unsigned long)at) / PAGE;
			int prot = (mode[0] == 'r' ? PROT_READ : 0) | (mode[1] == 'w' ? PROT_WRITE : 0) |
				   (mode[2] == 'x' ? PROT_EXEC : 0);
			if (n < PAGES)
				expect_at("protection", n, prot_of(n), prot);
		}
	}
	fclose(maps);
	expect("mapped pages", PAGES, mapped);
	must(mprotect(at, PAGES * PAGE, PROT_READ));
	for (long n = 0; n < PAGES; n++)
		if (n % 7 == 0)
			expect_page("content", n, at + n * PAGE, n);
		else
			expect_zero_page("content", n, at + n * PAGE);
	victim_end();
}
