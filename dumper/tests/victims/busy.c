/*
 * The witness of a live migration: threads that rewrite memory without a pause, and a clerk that stamps a
 * shared log. What the log and the memory must look like afterwards is checked by another program.
 *
 * busy MIB [THREADS [RECORD_US [PAGES_PER_SECOND [CHILDREN]]]]
 *
 * Memory: every page carries (page number, generation, checksum). A writer thread owns every page whose
 * number is its own modulo the number of threads; it visits them in an order that depends on the round and
 * gives each the generation of the round. So at any instant a thread's pages have at most two generations,
 * and which has which is known: a page that is stale by even one round is found.
 *
 * Log ("busy.log", append only): one line a record,
 *   count realtime_ns boottime_ns pid_namespace generations pages_wrong
 * where `count` goes up by one, kept in memory only, so that a copy that was started from an old state or
 * ran twice repeats or skips a number.
 *
 * Children, each with a child of its own in a group of theirs, keep quiet and check themselves when the root does.
 */
#include "tree.h"

static uint64_t (*memory)[512];
static uint64_t page_count;
static int thread_count = 2;
static long pages_per_second;

struct writer {
	pthread_t thread;
	int index;
	/* Where this writer is: pages before `step` of this round's order have `generation`. */
	_Atomic uint64_t generation, step;
	uint64_t pages, visited;
};
static struct writer *writers;
static atomic_int stop;
static _Atomic uint64_t pages_wrong;

static uint64_t checksum(uint64_t number, uint64_t generation)
{
	return mix(number * 0x1000003 ^ mix(generation));
}

static void write_page(uint64_t number, uint64_t generation)
{
	uint64_t *page = memory[number], sum = checksum(number, generation);
	page[0] = number;
	page[1] = generation;
	for (int i = 2; i < 512; i += 51)
		page[i] = sum + i;
	page[511] = sum;
}

static bool page_is(uint64_t number, uint64_t generation)
{
	uint64_t *page = memory[number], sum = checksum(number, generation);
	bool right = page[0] == number && page[1] == generation && page[511] == sum;
	for (int i = 2; right && i < 512; i += 51)
		right = page[i] == sum + i;
	return right;
}

/* The k-th page of a round: a walk that meets each page once (the stride is odd and the count even). */
static uint64_t place(const struct writer *w, uint64_t generation, uint64_t step)
{
	uint64_t stride = mix(generation) | 1;
	return ((step * stride + mix(generation + 77)) & (w->pages - 1)) * thread_count + w->index;
}

static void expect_generation(uint64_t number, uint64_t expected)
{
	if (!page_is(number, expected) && atomic_fetch_add(&pages_wrong, 1) < 8)
		fail("page %" PRIu64 " expected generation %" PRIu64 " got number %" PRIu64 " generation %" PRIu64, number,
		     expected, memory[number][0], memory[number][1]);
}

static void *write_memory(void *argument)
{
	struct writer *w = argument;
	int64_t started = now_ns(CLOCK_MONOTONIC);
	while (!stop) {
		uint64_t number = place(w, w->generation, w->step);
		expect_generation(number, w->generation - 1);
		write_page(number, w->generation);
		w->visited++;
		if (++w->step == w->pages) {
			/* The next round begins with none of its pages written. */
			w->step = 0;
			w->generation++;
		}
		if (pages_per_second && w->visited % 64 == 0)
			while (!stop && (int64_t)w->visited * 1000000000 / pages_per_second > now_ns(CLOCK_MONOTONIC) - started)
				nap_ms(1);
	}
	return NULL;
}

/* All pages of all writers, which must stand still. */
static void verify(void)
{
	for (int t = 0; t < thread_count; t++) {
		struct writer *w = &writers[t];
		for (uint64_t i = 0; i < w->pages; i++)
			/* Not visited in this round: it has the generation of the last. */
			expect_generation(place(w, w->generation, i), i < w->step ? w->generation : w->generation - 1);
	}
}

static uint64_t pid_namespace(void)
{
	struct stat st;
	return stat("/proc/self/ns/pid", &st) ? 0 : st.st_ino;
}

static uint64_t generations(void)
{
	uint64_t sum = 0;
	for (int i = 0; i < thread_count; i++)
		sum += writers[i].generation * writers[i].pages + writers[i].step;
	return sum;
}

static uint64_t record(int log, uint64_t count)
{
	char line[160];
	int n = snprintf(line, sizeof line, "%" PRIu64 " %" PRId64 " %" PRId64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", count,
			 now_ns(CLOCK_REALTIME), now_ns(CLOCK_BOOTTIME), pid_namespace(), generations(), pages_wrong);
	if (write(log, line, n) != n)
		broken("busy.log");
	return count + 1;
}

#define CHILDREN_MAX 16

/* Waits to be asked, and is then what it was. */
static void keep_quiet(uint64_t seed)
{
	char *page = must(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	struct place place = place_of_self();
	fill_page(page, seed);
	task_ready();
	victim_wait();
	expect_place(place);
	expect_page("page", 0, page, seed);
}

static int grandchild(void *argument)
{
	keep_quiet(1000 + (intptr_t)argument);
	return 60 + (intptr_t)argument;
}

static int child(void *argument)
{
	must(setpgid(0, 0));
	pid_t below = tree_fork("grandchild", grandchild, argument);
	keep_quiet(2000 + (intptr_t)argument);
	tree_expect_exit("grandchild", below, 60 + (intptr_t)argument);
	return 30 + (intptr_t)argument;
}

int main(int argc, char **argv)
{
	pid_t children[CHILDREN_MAX];
	intptr_t child_count = argc > 5 ? atoi(argv[5]) : 0;
	uint64_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 32, count = 0;
	long record_us = argc > 3 ? atol(argv[3]) : 1000;
	if (child_count > CHILDREN_MAX)
		broken("at most %d children", CHILDREN_MAX);
	tree_start();
	for (intptr_t i = 0; i < child_count; i++)
		children[i] = tree_fork("child", child, (void *)i);
	if (argc > 2)
		thread_count = atoi(argv[2]);
	/* Each writer's share is a power of two, so that odd strides meet every page. */
	uint64_t share = 1;
	while (share * 2 * thread_count <= mib * 256)
		share *= 2;
	page_count = share * thread_count;
	if (argc > 4)
		pages_per_second = atol(argv[4]) / thread_count + 1;
	memory = must(mmap(NULL, page_count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	writers = calloc(thread_count, sizeof *writers);
	for (uint64_t i = 0; i < page_count; i++)
		write_page(i, 0);
	int log = must(open("busy.log", O_CREAT | O_WRONLY | O_APPEND, 0666));
	for (int i = 0; i < thread_count; i++) {
		writers[i].index = i;
		writers[i].pages = share;
		writers[i].generation = 1;
		must0(pthread_create(&writers[i].thread, NULL, write_memory, &writers[i]));
	}
	tree_ready(2 * child_count);
	/* By number of records and not by the clock: a frozen victim does not age. */
	for (uint64_t left = LIFE_SECONDS * 1000000ull / (record_us + 100); left && !victim_asked(); left--) {
		count = record(log, count);
		struct timespec pause = { record_us / 1000000, record_us % 1000000 * 1000 };
		nanosleep(&pause, NULL);
	}
	stop = 1;
	for (int i = 0; i < thread_count; i++)
		must0(pthread_join(writers[i].thread, NULL));
	verify();
	record(log, count);
	for (intptr_t i = 0; i < child_count; i++)
		tree_expect_exit("child", children[i], 30 + i);
	say("COUNT %" PRIu64 " PAGES %" PRIu64 " WRITTEN %" PRIu64, count, page_count, generations());
	victim_end();
}
