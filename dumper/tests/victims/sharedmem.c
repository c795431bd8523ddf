/*
 * Memory that several tasks share: anonymous, of which each maps another part; a segment that nobody has whole and whose
 * maker has none of; memfds with seals, by descriptor here and by mapping there; a regular file. Afterwards a write by one
 * is read by the others, and what each holds is what it was.
 *
 * sharedmem               all lies still until it is asked
 * sharedmem live [TASKS]  workers write all the time: by store, by write(2), and punch holes; each keeps what its pages
 *                         must hold in memory of its own
 */
#include "tree.h"

#define SHARED (PROT_READ | PROT_WRITE), MAP_SHARED

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10
#endif

static int memfd(const char *name, unsigned flags)
{
	return must(syscall(SYS_memfd_create, name, flags));
}

/* ---- lying still ---- */

/* One turn of a ball that root, child and grandchild pass on: each adds what is its own. */
#define TURNS 50
struct ball {
	atomic_uint turn;
	uint64_t value;
};

/* Plays as player `who` of three. */
static void play(const char *where, struct ball *ball, unsigned who)
{
	for (unsigned turn = who; turn < TURNS * 3; turn += 3) {
		if (!tree_eventually(atomic_load(&ball->turn) == turn)) {
			fail("%s: turn %u never came, it is turn %u", where, turn, atomic_load(&ball->turn));
			return;
		}
		ball->value = mix(ball->value + who + 1);
		atomic_store(&ball->turn, turn + 1);
	}
}

static uint64_t ball_at_end(void)
{
	uint64_t value = 0;
	for (unsigned turn = 0; turn < TURNS * 3; turn++)
		value = mix(value + turn % 3 + 1);
	return value;
}

/* The last page of each of these is the ball; the pages before it hold a pattern. */
static struct {
	/* 64 pages; the child has no 16 to 31, the grandchild has 32 to 63 at another place. */
	char *anonymous;
	/* 32 pages, made by the root, which has none of it. */
	char *orphaned;
	/* 16 pages of a sealed memfd: the root has the descriptor, the child the mapping, the grandchild both. */
	char *sealed;
	int sealed_fd;
	/* 24 pages of a regular file. */
	char *file;
	/* 8 pages of /dev/zero. */
	char *zero;
	/* 16 pages, made by the child: the root never had it. */
	char *lower;
	/* 8 pages, private in the child and shared in the others. */
	char *mixed;
} m;

#define BALL(segment, pages) ((struct ball *)((segment) + ((pages) - 1) * PAGE))

static int grandchild(void *unused)
{
	(void)unused;
	struct place place = place_of_self();
	char *moved = must(mmap(NULL, 32 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	moved = must(mremap(m.anonymous + 32 * PAGE, 32 * PAGE, 32 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	must(mprotect(moved, 8 * PAGE, PROT_READ));
	must(munmap(m.orphaned, 16 * PAGE));
	task_ready();
	victim_wait();
	expect_place(place);
	expect_pages("anonymous, its begin", m.anonymous, 32, 1000);
	expect_pages("anonymous, moved", moved, 31, 1032);
	expect_pages("orphaned, its end", m.orphaned + 16 * PAGE, 15, 2016);
	expect_pages("sealed", m.sealed, 15, 3000);
	expect("seals in the grandchild", F_SEAL_SHRINK | F_SEAL_GROW, fcntl(m.sealed_fd, F_GET_SEALS));
	expect_pages("file", m.file, 23, 4000);
	expect_pages("lower", m.lower, 15, 6000);
	expect_pages("mixed", m.mixed, 7, 7000);
	play("anonymous", BALL(moved, 32), 2);
	play("orphaned", BALL(m.orphaned, 32), 2);
	play("sealed", BALL(m.sealed, 16), 2);
	play("file", BALL(m.file, 24), 2);
	play("zero", BALL(m.zero, 8), 2);
	/* Through the descriptor as through the mapping. */
	uint64_t value = 0;
	expect("read of the memfd", 8, pread(m.sealed_fd, &value, 8, 15 * PAGE + offsetof(struct ball, value)));
	expect("value by the descriptor", ball_at_end(), value);
	return 62;
}

static int child(void *unused)
{
	(void)unused;
	m.sealed = must(mmap(NULL, 16 * PAGE, SHARED, m.sealed_fd, 0));
	m.lower = must(mmap(NULL, 16 * PAGE, SHARED | MAP_ANONYMOUS, -1, 0));
	fill_pages(m.lower, 15, 6000);
	pid_t pid = tree_fork("grandchild", grandchild, NULL);
	must(munmap(m.anonymous + 16 * PAGE, 16 * PAGE));
	must(close(m.sealed_fd));
	int own = must(open("mixed", O_RDWR));
	must(munmap(m.mixed, 8 * PAGE));
	m.mixed = must(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, own, 0));
	fill_pages(m.mixed + 2 * PAGE, 2, 7500);
	close(own);
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	expect_pages("anonymous, its begin", m.anonymous, 16, 1000);
	expect_pages("anonymous, behind the hole", m.anonymous + 32 * PAGE, 31, 1032);
	expect_pages("orphaned", m.orphaned, 31, 2000);
	expect_pages("sealed", m.sealed, 15, 3000);
	expect_pages("file", m.file, 23, 4000);
	expect_pages("lower", m.lower, 15, 6000);
	expect_pages("mixed, as it is in the file", m.mixed, 2, 7000);
	expect_pages("mixed, its own", m.mixed + 2 * PAGE, 2, 7500);
	expect_pages("mixed, behind its own", m.mixed + 4 * PAGE, 3, 7004);
	play("anonymous", BALL(m.anonymous, 64), 1);
	play("orphaned", BALL(m.orphaned, 32), 1);
	play("sealed", BALL(m.sealed, 16), 1);
	play("file", BALL(m.file, 24), 1);
	play("zero", BALL(m.zero, 8), 1);
	tree_expect_exit("grandchild", pid, 62);
	return 61;
}

/* The root has no mapping of two of the five: it plays through one that it makes when it is asked. */
static int lie_still(void)
{
	m.anonymous = tree_shared(64 * PAGE);
	fill_pages(m.anonymous, 63, 1000);
	m.orphaned = tree_shared(32 * PAGE);
	fill_pages(m.orphaned, 31, 2000);
	m.sealed_fd = memfd("sealed by three", MFD_ALLOW_SEALING);
	must(ftruncate(m.sealed_fd, 16 * PAGE));
	char *sealed = must(mmap(NULL, 16 * PAGE, SHARED, m.sealed_fd, 0));
	fill_pages(sealed, 15, 3000);
	must(munmap(sealed, 16 * PAGE));
	must(fcntl(m.sealed_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
	int fd = must(open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0644));
	must(ftruncate(fd, 24 * PAGE));
	m.file = must(mmap(NULL, 24 * PAGE, SHARED, fd, 0));
	fill_pages(m.file, 23, 4000);
	memset(BALL(m.file, 24), 0, PAGE);
	close(fd);
	fd = must(open("/dev/zero", O_RDWR));
	m.zero = must(mmap(NULL, 8 * PAGE, SHARED, fd, 0));
	fill_pages(m.zero, 7, 5000);
	close(fd);
	fd = must(open("mixed", O_RDWR | O_CREAT | O_TRUNC, 0644));
	must(ftruncate(fd, 8 * PAGE));
	m.mixed = must(mmap(NULL, 8 * PAGE, SHARED, fd, 0));
	fill_pages(m.mixed, 7, 7000);
	close(fd);
	pid_t pid = tree_fork("child", child, NULL);
	/* What the child is forked with is the child's: the root has none of it. */
	must(munmap(m.orphaned, 32 * PAGE));
	tree_all_set(2);
	struct stat before, now;
	must(fstat(m.sealed_fd, &before));
	victim_ready();
	victim_wait();

	must(fstat(m.sealed_fd, &now));
	expect("memfd size", before.st_size, now.st_size);
	expect("seals in the root", F_SEAL_SHRINK | F_SEAL_GROW, fcntl(m.sealed_fd, F_GET_SEALS));
	expect("shrinking", EPERM, ftruncate(m.sealed_fd, PAGE) ? errno : 0);
	expect_pages("anonymous", m.anonymous, 63, 1000);
	expect_pages("file", m.file, 23, 4000);
	expect_pages("zero", m.zero, 7, 5000);
	expect_pages("mixed", m.mixed, 7, 7000);
	play("anonymous", BALL(m.anonymous, 64), 0);
	/* The root's turn in memory that it has not is played by hand of the others: it reaches it through /proc. */
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/map_files/%lx-%lx", pid, (long)m.orphaned, (long)m.orphaned + 32 * PAGE);
	fd = open(path, O_RDWR);
	char *orphaned = fd == -1 ? MAP_FAILED : mmap(NULL, 32 * PAGE, SHARED, fd, 0);
	if (orphaned == MAP_FAILED)
		fail("orphaned segment cannot be reached by %s: %s", path, strerror(errno));
	else
		play("orphaned", BALL(orphaned, 32), 0);
	sealed = must(mmap(NULL, 16 * PAGE, SHARED, m.sealed_fd, 0));
	play("sealed", BALL(sealed, 16), 0);
	play("file", BALL(m.file, 24), 0);
	play("zero", BALL(m.zero, 8), 0);
	tree_expect_exit("child", pid, 61);
	expect("anonymous ball", ball_at_end(), BALL(m.anonymous, 64)->value);
	expect("sealed ball", ball_at_end(), BALL(sealed, 16)->value);
	expect("file ball", ball_at_end(), BALL(m.file, 24)->value);
	expect("zero ball", ball_at_end(), BALL(m.zero, 8)->value);
	unlink("mapped");
	unlink("mixed");
	tree_expect_no_child();
	victim_end();
}

/* ---- live ---- */

#define PAGES 512
#define TASKS_MAX 8

enum { ANONYMOUS, MEMFD, FILE_MAPPED, KINDS };
static const char *const kinds[KINDS] = { "anonymous", "memfd", "file" };
static char *segment[KINDS];
static int fds[KINDS] = { -1, -1, -1 };
static int tasks = 3;
/* Of this task alone: how often it wrote each of its pages; 0 where it has punched a hole. */
static uint32_t written[KINDS][PAGES];

/* What a page holds when it was written `count` times. */
static uint64_t seed_of(int kind, int page, uint32_t count)
{
	return ((uint64_t)kind << 52) | ((uint64_t)page << 32) | count;
}

static void change(int task, uint64_t random)
{
	int kind = random % KINDS, page = (random >> 8) % (PAGES / tasks) * tasks + task;
	char *at = segment[kind] + page * PAGE, content[PAGE];
	unsigned how = random >> 40 & 15;
	if (how == 0 && fds[kind] >= 0) {
		must(fallocate(fds[kind], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PAGE, PAGE));
		written[kind][page] = 0;
		return;
	}
	if (how == 1) {
		must(madvise(at, PAGE, MADV_REMOVE));
		written[kind][page] = 0;
		return;
	}
	uint32_t count = ++written[kind][page];
	if (how < 8 && fds[kind] >= 0) {
		fill_page(content, seed_of(kind, page, count));
		if (pwrite(fds[kind], content, PAGE, page * PAGE) != (ssize_t)PAGE)
			fail("%s page %d: pwrite %s", kinds[kind], page, strerror(errno));
	} else {
		fill_page(at, seed_of(kind, page, count));
	}
}

static int worker(void *argument)
{
	int task = (intptr_t)argument;
	uint64_t random = mix(task + 77);
	struct place place = place_of_self();
	for (int i = 0; i < 200; i++)
		change(task, random = mix(random));
	task_ready();
	for (long i = 0; !victim_asked(); i++) {
		for (int k = 0; k < 10; k++)
			change(task, random = mix(random));
		nap_ms(1);
		if (i > LIFE_SECONDS * 1000)
			return 3;
	}
	expect_place(place);
	for (int kind = 0; kind < KINDS; kind++)
		for (int page = task; page < PAGES / tasks * tasks; page += tasks) {
			uint32_t count = written[kind][page];
			char *at = segment[kind] + page * PAGE;
			if (count)
				expect_page(kinds[kind], page, at, seed_of(kind, page, count));
			else
				expect_zero_page(kinds[kind], page, at);
		}
	return 70 + task;
}

static int live(void)
{
	pid_t pids[TASKS_MAX];
	char name[16];
	segment[ANONYMOUS] = tree_shared(PAGES * PAGE);
	fds[MEMFD] = memfd("live", 0);
	must(ftruncate(fds[MEMFD], PAGES * PAGE));
	segment[MEMFD] = must(mmap(NULL, PAGES * PAGE, SHARED, fds[MEMFD], 0));
	fds[FILE_MAPPED] = must(open("live-file", O_RDWR | O_CREAT | O_TRUNC, 0644));
	must(ftruncate(fds[FILE_MAPPED], PAGES * PAGE));
	segment[FILE_MAPPED] = must(mmap(NULL, PAGES * PAGE, SHARED, fds[FILE_MAPPED], 0));
	for (int i = 0; i < tasks; i++) {
		snprintf(name, sizeof name, "worker-%d", i);
		pids[i] = tree_fork(name, worker, (void *)(intptr_t)i);
	}
	tree_ready(tasks);
	victim_wait();
	for (int i = 0; i < tasks; i++)
		tree_expect_exit("worker", pids[i], 70 + i);
	/* What a worker wrote is what the root reads by the other way. */
	char content[PAGE];
	for (int kind = 0; kind < KINDS; kind++)
		for (int page = 0; page < PAGES && fds[kind] >= 0; page++)
			if (pread(fds[kind], content, PAGE, page * PAGE) != (ssize_t)PAGE ||
			    memcmp(content, segment[kind] + page * PAGE, PAGE))
				fail("%s page %d: file and mapping differ", kinds[kind], page);
	tree_expect_no_child();
	victim_end();
}

int main(int argc, char **argv)
{
	tree_start();
	if (argc > 1 && !strcmp(argv[1], "live")) {
		tasks = argc > 2 ? atoi(argv[2]) : 3;
		if (tasks < 1 || tasks > TASKS_MAX)
			broken("1 to %d tasks", TASKS_MAX);
		return live();
	}
	return lie_still();
}
