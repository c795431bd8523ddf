/*
 * What tasks share by inheriting descriptors: a pipeline with data in flight, pipes between siblings, tasks that wait in
 * read and in write, ends that are nonblocking, ends that are gone; open file descriptions with one offset in several
 * tasks, duplicates, close-on-exec by task, files that are opened twice and share nothing.
 */
#include "tree.h"

/* Numbers, the same in all tasks that have them. */
enum {
	/* root to first to second to root. */
	IN_READ = 10, IN_WRITE, MID_READ, MID_WRITE, OUT_READ, OUT_WRITE,
	/* Full when the writer waits; empty when the reader does. */
	FULL_READ, FULL_WRITE, EMPTY_READ, EMPTY_WRITE,
	/* Both ends in two siblings only, the root has none. */
	BROTHER_READ, BROTHER_WRITE,
	/* The writers are gone; the readers are gone. */
	ENDED_READ, BROKEN_WRITE,
	SHARED_FILE, SHARED_TWIN, SEPARATE_FILE, APPENDED, GHOST, MEMFD, DEV_NULL, ORDER_READ, ORDER_WRITE,
	/* Where the second keeps its duplicate of the shared file. */
	FAR = 90
};

#define FIRST_SEED 100
#define IN_BYTES 3000
#define MID_BYTES 4000
#define OUT_BYTES 1111
#define MORE_BYTES 20000
#define LATE_BYTES 9000

static void put(int fd, int number)
{
	must(fd);
	must(dup2(fd, number));
	close(fd);
}

static void pipe_at(int reader, int writer, int bytes)
{
	int fds[2];
	must(pipe(fds));
	int r = must(fcntl(fds[0], F_DUPFD, 120)), w = must(fcntl(fds[1], F_DUPFD, 120));
	close(fds[0]);
	close(fds[1]);
	put(r, reader);
	put(w, writer);
	if (bytes)
		must(fcntl(writer, F_SETPIPE_SZ, bytes));
}

static uint8_t pattern(int seed, int at)
{
	return mix((uint64_t)seed * 1000003 + at);
}

/* Bytes `from` to `to` of a sequence, whole. */
static void send(const char *field, int fd, int seed, int from, int to)
{
	uint8_t bytes[512];
	while (from < to) {
		int n = to - from < (int)sizeof bytes ? to - from : (int)sizeof bytes;
		for (int i = 0; i < n; i++)
			bytes[i] = pattern(seed, from + i);
		ssize_t done = write(fd, bytes, n);
		if (done == -1 && errno == EINTR)
			continue;
		if (done <= 0) {
			fail("%s write at %d: %s", field, from, strerror(errno));
			return;
		}
		from += done;
	}
}

/* The same bytes, received; false at the first that is wrong. */
static bool receive(const char *field, int fd, int seed, int from, int to)
{
	uint8_t bytes[512];
	while (from < to) {
		int n = to - from < (int)sizeof bytes ? to - from : (int)sizeof bytes;
		ssize_t got = read(fd, bytes, n);
		if (got == -1 && errno == EINTR)
			continue;
		if (got <= 0) {
			fail("%s read at %d of %d: %s", field, from, to, got ? strerror(errno) : "end of file");
			return false;
		}
		for (int i = 0; i < got; i++)
			if (bytes[i] != pattern(seed, from + i)) {
				fail("%s byte %d expected %d got %d", field, from + i, pattern(seed, from + i),
				     bytes[i]);
				return false;
			}
		from += got;
	}
	return true;
}

static void expect_end(const char *field, int fd)
{
	uint8_t byte;
	ssize_t got;
	do
		got = read(fd, &byte, 1);
	while (got == -1 && errno == EINTR);
	if (got != 0)
		fail("%s does not end: read %zd %s", field, got, got < 0 ? strerror(errno) : "");
}

static void close_all_but(const int *keep, int count)
{
	for (int fd = IN_READ; fd <= ORDER_WRITE; fd++) {
		bool kept = false;
		for (int i = 0; i < count; i++)
			kept |= keep[i] == fd;
		if (!kept)
			close(fd);
	}
}
#define KEEP(...) close_all_but((const int[]){ __VA_ARGS__ }, sizeof(int[]){ __VA_ARGS__ } / sizeof(int))

/* Passes on what flows in, after the 3000 bytes that lie there; the next stage's pipe is nearly full meanwhile. */
static int first(void *unused)
{
	(void)unused;
	KEEP(IN_READ, MID_WRITE, SHARED_FILE, SHARED_TWIN, APPENDED, GHOST, MEMFD, DEV_NULL, BROTHER_READ, BROTHER_WRITE);
	must(fcntl(SHARED_FILE, F_SETFD, FD_CLOEXEC));
	must(fcntl(MID_WRITE, F_SETFD, FD_CLOEXEC));
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	expect("close-on-exec in the first", FD_CLOEXEC, fcntl(SHARED_FILE, F_GETFD));
	expect("close-on-exec of its pipe", FD_CLOEXEC, fcntl(MID_WRITE, F_GETFD));
	expect("close-on-exec of the twin", 0, fcntl(SHARED_TWIN, F_GETFD));
	send("between brothers", BROTHER_WRITE, 300, 0, 200);
	receive("in", IN_READ, FIRST_SEED, 0, IN_BYTES + MORE_BYTES);
	expect_end("in", IN_READ);
	send("mid", MID_WRITE, 101, MID_BYTES, MID_BYTES + MORE_BYTES);
	return 21;
}

static int second(void *unused)
{
	(void)unused;
	KEEP(MID_READ, OUT_WRITE, SHARED_FILE, SHARED_TWIN, SEPARATE_FILE, BROTHER_READ, BROTHER_WRITE);
	must(dup3(SHARED_FILE, FAR, O_CLOEXEC));
	struct place place = place_of_self();
	task_ready();
	victim_wait();
	expect_place(place);
	expect("close-on-exec in the second", 0, fcntl(SHARED_FILE, F_GETFD));
	expect("close-on-exec of the duplicate", FD_CLOEXEC, fcntl(FAR, F_GETFD));
	expect("duplicate of the shared file", true, same_file(getpid(), SHARED_FILE, getpid(), FAR));
	expect("what the second has not", -1, fcntl(APPENDED, F_GETFD));
	/* 100 bytes of before lie there, then what the brother sends. */
	receive("brothers' pipe", BROTHER_READ, 301, 0, 100);
	receive("between brothers", BROTHER_READ, 300, 0, 200);
	receive("mid", MID_READ, 101, 0, MID_BYTES + MORE_BYTES);
	expect_end("mid", MID_READ);
	send("out", OUT_WRITE, 102, OUT_BYTES, OUT_BYTES + MORE_BYTES);
	return 22;
}

/* Waits in write since before READY: its pipe is full. */
static int late_writer(void *unused)
{
	(void)unused;
	KEEP(FULL_WRITE, BROKEN_WRITE);
	struct place place = place_of_self();
	must(signal(SIGPIPE, SIG_IGN) == SIG_ERR ? -1 : 0);
	task_ready();
	send("full", FULL_WRITE, 200, 4096, 4096 + LATE_BYTES);
	expect("written before it was asked", true, victim_asked());
	expect_place(place);
	expect("write without readers", EPIPE, write(BROKEN_WRITE, "x", 1) == -1 ? errno : 0);
	return 23;
}

/* Waits in read since before READY: its pipe is empty. */
static int late_reader(void *unused)
{
	(void)unused;
	KEEP(EMPTY_READ, ENDED_READ);
	struct place place = place_of_self();
	task_ready();
	receive("empty", EMPTY_READ, 201, 0, LATE_BYTES);
	expect("read before it was asked", true, victim_asked());
	expect_end("empty", EMPTY_READ);
	expect_place(place);
	receive("ended", ENDED_READ, 202, 0, 60);
	expect_end("ended", ENDED_READ);
	return 24;
}

/* Moves the shared offset when it is ordered to, and answers where it found it. */
static int mover(void *unused)
{
	(void)unused;
	char order;
	KEEP(SHARED_FILE, SEPARATE_FILE, APPENDED, GHOST, MEMFD, DEV_NULL, ORDER_READ);
	struct place place = place_of_self();
	task_ready();
	if (read(ORDER_READ, &order, 1) != 1 || order != 'm')
		fail("no order: %s", strerror(errno));
	expect_place(place);
	expect("offset that the root set", 444, lseek(SHARED_FILE, 0, SEEK_CUR));
	expect("offset of its own opening", 55, lseek(SEPARATE_FILE, 0, SEEK_CUR));
	expect("offset of the deleted file", 22, lseek(GHOST, 0, SEEK_CUR));
	expect("offset of the memfd", 33, lseek(MEMFD, 0, SEEK_CUR));
	must(lseek(SHARED_FILE, 555, SEEK_SET));
	must(lseek(GHOST, 66, SEEK_SET));
	must(lseek(MEMFD, 77, SEEK_SET));
	if (write(APPENDED, "mover", 5) != 5)
		fail("append: %s", strerror(errno));
	if (write(MEMFD, "moved", 5) != 5)
		fail("write to the memfd: %s", strerror(errno));
	expect("/dev/null", 1, write(DEV_NULL, "x", 1));
	return 25;
}

int main(void)
{
	tree_start();
	pipe_at(IN_READ, IN_WRITE, 0);
	pipe_at(MID_READ, MID_WRITE, MID_BYTES);
	pipe_at(OUT_READ, OUT_WRITE, 0);
	pipe_at(FULL_READ, FULL_WRITE, 4096);
	pipe_at(EMPTY_READ, EMPTY_WRITE, 0);
	pipe_at(BROTHER_READ, BROTHER_WRITE, 8192);
	pipe_at(ORDER_READ, ORDER_WRITE, 0);
	pipe_at(ENDED_READ, 118, 0);
	send("ended", 118, 202, 0, 60);
	close(118);
	pipe_at(119, BROKEN_WRITE, 0);
	close(119);
	send("in", IN_WRITE, FIRST_SEED, 0, IN_BYTES);
	send("mid", MID_WRITE, 101, 0, MID_BYTES);
	send("out", OUT_WRITE, 102, 0, OUT_BYTES);
	send("full", FULL_WRITE, 200, 0, 4096);
	send("brothers'", BROTHER_WRITE, 301, 0, 100);
	put(pattern_file("shared", 2000), SHARED_FILE);
	put(open("shared", O_RDWR), SHARED_TWIN);
	put(open("shared", O_RDONLY), SEPARATE_FILE);
	put(pattern_file("appended", 10), APPENDED);
	must(fcntl(APPENDED, F_SETFL, O_APPEND));
	put(pattern_file("ghost", 300), GHOST);
	must(unlink("ghost"));
	put(syscall(SYS_memfd_create, "kept by two", 0), MEMFD);
	put(open("/dev/null", O_RDWR), DEV_NULL);
	must(ftruncate(MEMFD, 5000));
	must(lseek(SHARED_FILE, 321, SEEK_SET));
	must(lseek(SHARED_TWIN, 11, SEEK_SET));
	must(lseek(SEPARATE_FILE, 55, SEEK_SET));
	must(lseek(GHOST, 22, SEEK_SET));
	must(lseek(MEMFD, 33, SEEK_SET));

	pid_t one = tree_fork("first", first, NULL), two = tree_fork("second", second, NULL);
	pid_t writer = tree_fork("late-writer", late_writer, NULL);
	pid_t reader = tree_fork("late-reader", late_reader, NULL);
	pid_t moves = tree_fork("mover", mover, NULL);
	/* The flag belongs to the description: no task but the root has this end. */
	must(fcntl(OUT_READ, F_SETFL, O_NONBLOCK));
	KEEP(IN_WRITE, OUT_READ, FULL_READ, EMPTY_WRITE, SHARED_FILE, SHARED_TWIN, APPENDED, GHOST, MEMFD, DEV_NULL,
	     ORDER_WRITE);
	tree_all_set(5);
	/* The two that wait are in their calls. */
	nap_ms(50);
	victim_ready();
	victim_wait();

	expect("nonblocking end", O_NONBLOCK, fcntl(OUT_READ, F_GETFL) & O_NONBLOCK);
	expect("blocking end", 0, fcntl(IN_WRITE, F_GETFL) & O_NONBLOCK);
	must(fcntl(OUT_READ, F_SETFL, 0));
	const struct {
		const char *what;
		pid_t a;
		int fd;
		pid_t b;
		int other;
		bool same;
	} pairs[] = {
		{ "shared file, root and first", getpid(), SHARED_FILE, one, SHARED_FILE, true },
		{ "shared file, first and second", one, SHARED_FILE, two, FAR, true },
		{ "shared file, root and mover", getpid(), SHARED_FILE, moves, SHARED_FILE, true },
		{ "twin, root and second", getpid(), SHARED_TWIN, two, SHARED_TWIN, true },
		{ "twin and shared file", getpid(), SHARED_FILE, one, SHARED_TWIN, false },
		{ "separate file, second and mover", two, SEPARATE_FILE, moves, SEPARATE_FILE, true },
		{ "brothers' pipe", one, BROTHER_READ, two, BROTHER_READ, true },
		{ "brothers' pipe, its ends", one, BROTHER_READ, one, BROTHER_WRITE, false },
		{ "ghost, root and first", getpid(), GHOST, one, GHOST, true },
		{ "memfd, root and mover", getpid(), MEMFD, moves, MEMFD, true },
		{ "/dev/null, root and mover", getpid(), DEV_NULL, moves, DEV_NULL, true },
		{ "stdout, root and first", getpid(), 1, one, 1, true },
		{ "stdout and stderr of the first and second", one, 1, two, 2, same_file(getpid(), 1, getpid(), 2) },
	};
	/* Tasks that have ended by now cannot be asked: these wait for the root, all but the brothers' own pipe. */
	for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
		if (same_file(pairs[i].a, pairs[i].fd, pairs[i].b, pairs[i].other) != pairs[i].same)
			fail("descriptors are %s one: %s", pairs[i].same ? "not" : "now", pairs[i].what);

	expect("shared offset", 321, lseek(SHARED_FILE, 0, SEEK_CUR));
	expect("twin's offset", 11, lseek(SHARED_TWIN, 0, SEEK_CUR));
	must(lseek(SHARED_FILE, 444, SEEK_SET));
	if (write(APPENDED, "root", 4) != 4 || write(ORDER_WRITE, "m", 1) != 1)
		fail("order: %s", strerror(errno));
	tree_expect_exit("mover", moves, 25);
	expect("offset that the mover set", 555, lseek(SHARED_FILE, 0, SEEK_CUR));
	expect("offset in the deleted file", 66, lseek(GHOST, 0, SEEK_CUR));
	expect("offset in the memfd", 82, lseek(MEMFD, 0, SEEK_CUR));
	char text[16] = "";
	expect("read from the memfd", 5, pread(MEMFD, text, 5, 77));
	expect_string("memfd content", "moved", text);
	struct stat appended;
	must(fstat(APPENDED, &appended));
	expect("appended by two", 10 + 4 + 5, appended.st_size);
	expect("deleted file has no name", 0, fstat(GHOST, &appended) ? 1 : appended.st_nlink);

	send("empty", EMPTY_WRITE, 201, 0, LATE_BYTES);
	close(EMPTY_WRITE);
	tree_expect_exit("late-reader", reader, 24);
	receive("full", FULL_READ, 200, 0, 4096 + LATE_BYTES);
	expect_end("full", FULL_READ);
	tree_expect_exit("late-writer", writer, 23);
	send("in", IN_WRITE, FIRST_SEED, IN_BYTES, IN_BYTES + MORE_BYTES);
	close(IN_WRITE);
	receive("out", OUT_READ, 102, 0, OUT_BYTES + MORE_BYTES);
	expect_end("out", OUT_READ);
	tree_expect_exit("first", one, 21);
	tree_expect_exit("second", two, 22);
	tree_expect_no_child();
	victim_end();
}
