/*
 * Changes its memory and its memory map from several threads, at random and from a seed, while it runs: everything
 * that mutator does, and besides: parts of areas with other protections, mappings replaced in the middle, whole page
 * tables moved, huge pages collapsed, split and given back, memory handed to the kernel to free or to swap out, the
 * program break up and down, stacks used and dropped, holes punched into a mapped file.
 *
 * churn SEED [THREADS [PAUSE_US]]
 *
 * Every thread has areas of its own and keeps what each of their pages must hold. The first lines of the log name
 * the memory that the kernel itself writes into: "RSEQ ADDRESS", one for each thread.
 */
#include "victim.h"

#ifdef __GLIBC__
#include <sys/rseq.h>
#endif

#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define THREADS 8
#define AREAS 10
/* Two page tables' worth. Most areas are smaller. */
#define PAGES 1024
#define SMALL 160
#define HUGE (2ul << 20)
#define BREAK_PAGES 96
#define RW (PROT_READ | PROT_WRITE)

/* A page's seed is 0 where it was never written, or dropped: it holds zeros, or what the file has there. */
struct area {
	char *at;
	int pages, file_page;
	bool of_file, is_huge;
	/* Shared anonymous memory: what is given back stays, unless a hole is punched. */
	bool is_shared;
	uint64_t seed[PAGES];
	/* The kernel may have freed the page: it holds its seed's pattern, or what it would without one. */
	bool lazy[PAGES];
};

struct thread {
	pthread_t id;
	int index;
	uint64_t state, operations;
	struct area areas[AREAS];
	int file_fd;
	/* 0 where a hole was punched. */
	uint64_t file_seed[PAGES];
	char *break_start;
	int break_pages;
	uint64_t break_seed[BREAK_PAGES];
};
static struct thread *threads;
static int thread_count = 3;
static long pause_us = 300;
static atomic_int are_set_up;
/* Held by whoever asks the kernel for addresses: a move that fails leaves a hole that nobody else may be given. */
static pthread_mutex_t places = PTHREAD_MUTEX_INITIALIZER;

static uint64_t dice(struct thread *t, uint64_t sides)
{
	t->state = mix(t->state);
	return (t->state >> 11) % sides;
}

static uint64_t new_seed(struct thread *t)
{
	t->state = mix(t->state);
	return t->state | 1;
}

static bool is_page(const void *page, uint64_t seed)
{
	const uint64_t *word = page;
	for (size_t i = 0; i < PAGE / 8; i++)
		if (word[i] != (seed ? mix(seed * 1024 + i) : 0))
			return false;
	return true;
}

static void check_page(struct thread *t, struct area *a, int i)
{
	char field[80], *page = a->at + i * PAGE;
	uint64_t below = a->of_file ? t->file_seed[a->file_page + i] : 0;
	uint64_t expected = a->seed[i] ? a->seed[i] : below;
	if (a->lazy[i] && is_page(page, below))
		return;
	snprintf(field, sizeof field, "thread %d area %d%s after %" PRIu64 " operations", t->index, (int)(a - t->areas),
		 a->of_file ? " of a file" : "", t->operations);
	if (expected)
		expect_page(field, i, page, expected);
	else
		expect_zero_page(field, i, page);
}

static void unprotect(struct area *a)
{
	must(mprotect(a->at, a->pages * PAGE, RW));
}

static void check_area(struct thread *t, struct area *a)
{
	if (!a->at)
		return;
	unprotect(a);
	for (int i = 0; i < a->pages; i++)
		check_page(t, a, i);
}

/* Some addresses that are free now, and were taken by this thread only. */
static char *reserve(size_t pages, size_t align)
{
	size_t bytes = pages * PAGE + (align > PAGE ? align : 0);
	char *at = must(mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	char *start = (char *)(((uintptr_t)at + align - 1) & ~(uintptr_t)(align - 1)), *end = start + pages * PAGE;
	if (start > at)
		must(munmap(at, start - at));
	if (at + bytes > end)
		must(munmap(end, at + bytes - end));
	return start;
}

static void map_at(struct thread *t, struct area *a)
{
	int flags = MAP_FIXED | (a->is_shared ? MAP_SHARED : MAP_PRIVATE) | (a->of_file ? 0 : MAP_ANONYMOUS);
	must(mmap(a->at, a->pages * PAGE, RW, flags, a->of_file ? t->file_fd : -1, a->file_page * PAGE));
}

static void map(struct thread *t, struct area *a)
{
	memset(a, 0, sizeof *a);
	a->is_huge = a == t->areas;
	a->is_shared = a == t->areas + 1;
	a->of_file = !a->is_huge && !a->is_shared && dice(t, 4) == 0;
	a->pages = a->is_huge ? PAGES : 1 + (int)dice(t, SMALL - 1);
	a->file_page = a->of_file ? dice(t, SMALL - a->pages + 1) : 0;
	pthread_mutex_lock(&places);
	a->at = reserve(a->pages, a->is_huge ? HUGE : PAGE);
	map_at(t, a);
	pthread_mutex_unlock(&places);
	if (a->is_huge && dice(t, 2))
		must(madvise(a->at, a->pages * PAGE, MADV_HUGEPAGE));
}

/* A random part of an area. */
static int part(struct thread *t, const struct area *a, int *count)
{
	int most = a->pages < SMALL ? a->pages : SMALL, first = dice(t, a->pages);
	*count = 1 + (int)dice(t, most);
	if (*count > a->pages - first)
		*count = a->pages - first;
	return first;
}

static void write_page(struct thread *t, struct area *a, int i)
{
	check_page(t, a, i);
	a->seed[i] = new_seed(t);
	a->lazy[i] = false;
	fill_page(a->at + i * PAGE, a->seed[i]);
}

static void write_some(struct thread *t, struct area *a)
{
	int count, first = part(t, a, &count), stride = 1 + (int)dice(t, 4);
	unprotect(a);
	for (int i = first; i < first + count; i += stride)
		write_page(t, a, i);
}

static void drop(struct thread *t, struct area *a)
{
	int count, first = part(t, a, &count);
	if (a->is_shared) {
		must(madvise(a->at + first * PAGE, count * PAGE, MADV_DONTNEED));
		if (dice(t, 2))
			return;
		/* It takes a mapping that may be written. */
		unprotect(a);
		must(madvise(a->at + first * PAGE, count * PAGE, MADV_REMOVE));
	} else {
		must(madvise(a->at + first * PAGE, count * PAGE, MADV_DONTNEED));
	}
	memset(a->seed + first, 0, count * sizeof *a->seed);
	memset(a->lazy + first, 0, count * sizeof *a->lazy);
}

/* MADV_FREE: the kernel may take the pages until they are written again. */
static void release(struct thread *t, struct area *a)
{
	int count, first = part(t, a, &count);
	if (a->of_file || a->is_shared)
		return;
	must(madvise(a->at + first * PAGE, count * PAGE, MADV_FREE));
	for (int i = first; i < first + count; i++)
		a->lazy[i] = true;
}

/* What the kernel may do with pages without changing what they hold. */
static void advise(struct thread *t, struct area *a)
{
	static const int advice[] = { MADV_PAGEOUT, MADV_COLD, MADV_POPULATE_READ, MADV_WILLNEED };
	int count, first = part(t, a, &count);
	(void)!madvise(a->at + first * PAGE, count * PAGE, advice[dice(t, 4)]);
}

static void protect(struct thread *t, struct area *a)
{
	static const int prots[] = { PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC, RW };
	int count, first = part(t, a, &count);
	must(mprotect(a->at + first * PAGE, count * PAGE, prots[dice(t, 4)]));
}

static void move(struct thread *t, struct area *a)
{
	int pages = a->of_file || a->is_shared || a->is_huge ? a->pages : 1 + (int)dice(t, SMALL - 1);
	unprotect(a);
	pthread_mutex_lock(&places);
	char *target = reserve(pages, a->is_huge ? HUGE : PAGE);
	char *moved = mremap(a->at, a->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	if (moved == MAP_FAILED) {
		/* Parts that were replaced need not be one mapping any more. Some may have moved, or been cut off. */
		must(munmap(target, pages * PAGE));
		map_at(t, a);
		memset(a->seed, 0, sizeof a->seed);
		memset(a->lazy, 0, sizeof a->lazy);
		pthread_mutex_unlock(&places);
		return;
	}
	pthread_mutex_unlock(&places);
	a->at = moved;
	for (int i = a->pages; i < pages; i++) {
		a->seed[i] = 0;
		a->lazy[i] = false;
	}
	a->pages = pages;
}

/* The pages move, the mapping stays and is empty: it is the area from now on, or the other is. */
static void move_pages(struct thread *t, struct area *a)
{
	if (a->of_file)
		return;
	unprotect(a);
	size_t bytes = a->pages * PAGE;
	pthread_mutex_lock(&places);
	char *moved = mremap(a->at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	pthread_mutex_unlock(&places);
	if (moved == MAP_FAILED)
		return;
	if (dice(t, 2) && !a->is_huge) {
		must(munmap(a->at, bytes));
		a->at = moved;
		return;
	}
	/* And back, which takes the place of what was left. */
	char *back = mremap(moved, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, a->at);
	if (back == MAP_FAILED)
		broken("moving back");
}

static void replace_middle(struct thread *t, struct area *a)
{
	int count, first = part(t, a, &count);
	if (a->of_file || a->is_shared)
		return;
	must(mmap(a->at + first * PAGE, count * PAGE, RW, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	memset(a->seed + first, 0, count * sizeof *a->seed);
	memset(a->lazy + first, 0, count * sizeof *a->lazy);
	for (int i = first; i < first + count; i++)
		if (dice(t, 3) == 0)
			write_page(t, a, i);
}

/* What lies behind a point goes. */
static void shrink(struct thread *t, struct area *a)
{
	if (a->pages < 2 || a->is_huge)
		return;
	int keep = 1 + (int)dice(t, a->pages - 1);
	must(munmap(a->at + keep * PAGE, (a->pages - keep) * PAGE));
	a->pages = keep;
}

static void collapse(struct thread *t)
{
	struct area *a = &t->areas[0];
	if (!a->at)
		return;
	unprotect(a);
	/* It may have no huge page left, or refuse an empty range. */
	(void)!madvise(a->at + dice(t, 2) * HUGE, HUGE, MADV_COLLAPSE);
}

/* Pages that were copied on a write stay. */
static void punch_file(struct thread *t)
{
	int first = dice(t, SMALL - 8), count = 1 + (int)dice(t, 8);
	must(fallocate(t->file_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first * PAGE, count * PAGE));
	memset(t->file_seed + first, 0, count * sizeof *t->file_seed);
}

static void write_file(struct thread *t)
{
	char page[PAGE];
	int at = dice(t, SMALL);
	uint64_t seed = new_seed(t);
	fill_page(page, seed);
	if (pwrite(t->file_fd, page, PAGE, at * PAGE) != PAGE)
		broken("pwrite");
	t->file_seed[at] = seed;
}

/* One thread has the program break. What it gives back is gone. */
static void move_break(struct thread *t)
{
	if (!t->break_start)
		return;
	int pages = dice(t, BREAK_PAGES);
	char *end = t->break_start + pages * PAGE;
	if ((char *)syscall(SYS_brk, end) != end)
		broken("brk");
	for (int i = t->break_pages; i < pages; i++)
		t->break_seed[i] = 0;
	t->break_pages = pages;
	for (int i = 0; i < pages; i++) {
		char *page = t->break_start + i * PAGE;
		if (t->break_seed[i])
			expect_page("break", i, page, t->break_seed[i]);
		else
			expect_zero_page("break", i, page);
		if (dice(t, 4) == 0) {
			t->break_seed[i] = new_seed(t);
			fill_page(page, t->break_seed[i]);
		}
	}
}

static __attribute__((noinline)) uint64_t use_stack(int depth)
{
	uint64_t room[512];
	for (int i = 0; i < 512; i += 64)
		room[i] = mix(depth + i);
	uint64_t below = depth > 0 ? use_stack(depth - 1) : 0;
	for (int i = 0; i < 512; i += 64)
		if (room[i] != mix(depth + i))
			fail("stack at depth %d", depth);
	return below + room[64];
}

/* The pages below what is in use may go: nothing reads them before it writes them. */
static __attribute__((noinline)) void drop_stack(void)
{
	uintptr_t here = (uintptr_t)__builtin_frame_address(0) & ~(PAGE - 1);
	(void)!madvise((void *)(here - 24 * PAGE), 20 * PAGE, MADV_DONTNEED);
}

static void operate(struct thread *t)
{
	struct area *a = &t->areas[dice(t, AREAS)];
	t->operations++;
	if (!a->at) {
		map(t, a);
		return;
	}
	switch (dice(t, 24)) {
	case 0:
		check_area(t, a);
		must(munmap(a->at, a->pages * PAGE));
		a->at = NULL;
		break;
	case 1:
		move(t, a);
		break;
	case 2:
		shrink(t, a);
		break;
	case 3:
	case 4:
		protect(t, a);
		break;
	case 5:
	case 6:
		drop(t, a);
		break;
	case 7:
		release(t, a);
		break;
	case 8:
		advise(t, a);
		break;
	case 9:
		move_pages(t, a);
		break;
	case 10:
		replace_middle(t, a);
		break;
	case 11:
		collapse(t);
		break;
	case 12:
		use_stack(dice(t, 100));
		break;
	case 13:
		drop_stack();
		break;
	case 14:
		move_break(t);
		break;
	case 15:
		punch_file(t);
		break;
	case 16:
		write_file(t);
		break;
	case 17:
		check_area(t, a);
		break;
	default:
		write_some(t, a);
	}
}

static void tell_rseq(void)
{
#if defined(__GLIBC__) && defined(RSEQ_SIG)
	if (__rseq_size)
		say("RSEQ %lx", (unsigned long)__builtin_thread_pointer() + __rseq_offset);
#endif
}

static void set_up(struct thread *t)
{
	char page[PAGE], name[32];
	tell_rseq();
	snprintf(name, sizeof name, "churn-%d.file", t->index);
	t->file_fd = must(open(name, O_CREAT | O_TRUNC | O_RDWR, 0644));
	for (int i = 0; i < SMALL; i++) {
		t->file_seed[i] = new_seed(t);
		fill_page(page, t->file_seed[i]);
		if (write(t->file_fd, page, PAGE) != PAGE)
			broken("write");
	}
	for (int i = 0; i < 300; i++)
		operate(t);
}

/* Bursts, calm times, and an even pace between them. */
static void rest(struct thread *t)
{
	long us = pause_us;
	if (dice(t, 64) == 0)
		us *= 100;
	else if (dice(t, 3))
		us = 0;
	if (us) {
		struct timespec pause = { us / 1000000, us % 1000000 * 1000 };
		nanosleep(&pause, NULL);
	}
}

static void work(struct thread *t)
{
	for (long left = LIFE_SECONDS * 1000000l / (pause_us + 100); left && !victim_asked(); left--) {
		operate(t);
		rest(t);
	}
	for (int i = 0; i < AREAS; i++)
		check_area(t, &t->areas[i]);
}

static void *run(void *argument)
{
	set_up(argument);
	are_set_up++;
	work(argument);
	return NULL;
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1, operations = 0;
	victim_start();
	if (argc > 2)
		thread_count = atoi(argv[2]);
	if (argc > 3)
		pause_us = atol(argv[3]);
	if (thread_count < 1 || thread_count > THREADS)
		thread_count = 1;
	size_t bytes = (thread_count * sizeof *threads + PAGE - 1) & ~(PAGE - 1);
	threads = must(mmap(NULL, bytes, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (int i = 0; i < thread_count; i++) {
		threads[i].index = i;
		threads[i].state = mix(seed * 64 + i);
	}
	for (int i = 1; i < thread_count; i++)
		must0(pthread_create(&threads[i].id, NULL, run, &threads[i]));
	/* From here on nobody uses malloc, whose heap would be in the way of the break. */
	while (are_set_up < thread_count - 1)
		nap_ms(1);
	uintptr_t end = ((uintptr_t)the_break() + PAGE - 1) & ~(PAGE - 1);
	if ((uintptr_t)syscall(SYS_brk, end) != end)
		broken("brk");
	threads[0].break_start = (char *)end;
	set_up(&threads[0]);
	victim_ready();
	work(&threads[0]);
	for (int i = 1; i < thread_count; i++)
		must0(pthread_join(threads[i].id, NULL));
	for (int i = 0; i < thread_count; i++)
		operations += threads[i].operations;
	say("OPERATIONS %" PRIu64, operations);
	victim_end();
}
