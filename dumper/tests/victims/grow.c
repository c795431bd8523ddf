/*
 * A mapping that grows down and the main thread's stack, both growing all the time until the victim is asked: each page
 * that comes gets a pattern, and none of them may be lost or changed.
 */
#include "smaps.h"

/* The growth is bounded by the limit of stacks, 8 MiB by default, and by the gap that the kernel keeps below. */
#define PAGES_MAX 1200
#define GROWING 0x100010000000ul

static char *top;
static atomic_long pages;
static atomic_bool over;

static void *grow(void *unused)
{
	(void)unused;
	for (long n = 0; n < PAGES_MAX && !atomic_load(&over); n++) {
		fill_page(top - (n + 1) * PAGE, 0x9209000 + n);
		atomic_store(&pages, n + 1);
		nap_ms(2);
	}
	return NULL;
}

/* One frame deeper each time, a page and a bit a frame, until asked; then checks its own on the way back. */
__attribute__((noinline)) static void deeper(long depth)
{
	_Alignas(64) char frame[PAGE];
	fill_page(frame, 0xdee9000 + depth);
	for (int ms = 0; ms < 6 && !victim_asked(); ms += 2)
		nap_ms(2);
	if (depth < PAGES_MAX && !victim_asked())
		deeper(depth + 1);
	else
		victim_wait();
	expect_page("frame", depth, frame, 0xdee9000 + depth);
}

int main(void)
{
	pthread_t thread;
	struct mapping_line mapping;
	victim_start();
	/* Far from where the kernel puts other mappings. */
	char *at = must(mmap((void *)GROWING, PAGE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0));
	top = at + PAGE;
	must0(pthread_create(&thread, NULL, grow, NULL));
	victim_ready();
	deeper(0);
	atomic_store(&over, true);
	must0(pthread_join(thread, NULL));
	long n = atomic_load(&pages);
	for (long i = 0; i < n; i++)
		expect_page("grown", i, top - (i + 1) * PAGE, 0x9209000 + i);
	if (!mapping_of(top - PAGE, &mapping) || !has_flag(&mapping, "gd"))
		fail("the mapping no longer grows down");
	/* It goes on growing, and so does the stack. */
	fill_page(top - (n + 1) * PAGE, 1);
	fill_page(top - (n + 2) * PAGE, 2);
	expect_page("grown later", 1, top - (n + 1) * PAGE, 1);
	expect_page("grown later", 2, top - (n + 2) * PAGE, 2);
	if (!mapping_of(__builtin_frame_address(0), &mapping) || !has_flag(&mapping, "gd"))
		fail("the stack no longer grows down");
	victim_end();
}
