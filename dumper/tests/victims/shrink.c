/*
 * Private mappings of a file and of a memfd whose files are cut below pages that were changed, and grown again, all the
 * time: what lies behind the end is gone and ends the program that touches it; what was changed before it stays.
 */
#include "victim.h"

#include <setjmp.h>

#define PAGES 24
#define KEPT 6

static sigjmp_buf back;

static void gone(int sig)
{
	(void)sig;
	siglongjmp(back, 1);
}

/* Whether touching the page is answered by SIGBUS. */
static bool ends(volatile char *at)
{
	if (sigsetjmp(back, 1))
		return true;
	(void)*at;
	return false;
}

static void change(char *at, int from, int to, uint64_t seed)
{
	for (int i = from; i < to; i++)
		fill_page(at + i * PAGE, seed + i);
}

int main(void)
{
	victim_start();
	struct sigaction action = { .sa_handler = gone };
	must(sigaction(SIGBUS, &action, NULL));
	int files[2] = { must(open("file", O_RDWR | O_CREAT | O_EXCL, 0600)), must(syscall(SYS_memfd_create, "file", 0)) };
	char *maps[2];
	for (int f = 0; f < 2; f++) {
		must(ftruncate(files[f], PAGES * PAGE));
		maps[f] = must(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, files[f], 0));
		change(maps[f], 0, KEPT, 100 * f);
	}
	victim_ready();
	for (int ms = 0; !victim_asked(); ms += 4) {
		if (ms > LIFE_SECONDS * 1000)
			broken("nobody asked");
		for (int f = 0; f < 2; f++) {
			must(ftruncate(files[f], PAGES * PAGE));
			change(maps[f], KEPT, PAGES, 1000 + 100 * f);
		}
		nap_ms(2);
		for (int f = 0; f < 2; f++)
			must(ftruncate(files[f], KEPT * PAGE));
		nap_ms(30);
	}
	for (int f = 0; f < 2; f++) {
		must(ftruncate(files[f], KEPT * PAGE));
		for (int i = 0; i < KEPT; i++)
			expect_page("kept", 100 * f + i, maps[f] + i * PAGE, 100 * f + i);
		for (int i = KEPT; i < PAGES; i++)
			expect_at("ends", 100 * f + i, 1, ends(maps[f] + i * PAGE));
		must(ftruncate(files[f], PAGES * PAGE));
		for (int i = KEPT; i < PAGES; i++)
			expect_zero_page("grown", 100 * f + i, maps[f] + i * PAGE);
	}
	victim_end();
}
