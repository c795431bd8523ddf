/*
 * What every victim shares: how it starts, how it is told to check itself, and how it reports.
 *
 * A victim is started as `victim [ARG...]` with its working directory in a folder of its own and
 * stdout (append-only) on its log. It becomes a session leader, sets everything up, prints READY, and
 * waits for a file named "check" in its working directory. Then it compares what it finds with what it
 * set, prints one line `FAIL field expected got` for each difference, then `OK` or `BAD n`, and exits
 * with 0 or 1. The wait is a file and not a signal because signals are one of the things tested.
 */
#ifndef GODWIT_VICTIM_H
#define GODWIT_VICTIM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
/* A victim that nobody asks ends by itself after this many seconds of its own waiting. */
#define LIFE_SECONDS 300

static atomic_int victim_failures;
/* Kept since a restored process must have the pid it was dumped with. */
static pid_t victim_pid;
/* Begins every FAIL line of a task that is not alone: see tree.h. */
static char victim_task[48];
/* Where the request to check itself is looked for: absolute where a task changes its directory. */
static char victim_check[PATH_MAX] = "check";

/* One write(2) a line, so that lines of several threads never mix. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	char line[1024];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line - 1, format, args);
	va_end(args);
	if (n > (int)sizeof line - 2)
		n = sizeof line - 2;
	line[n++] = '\n';
	if (write(1, line, n) != n)
		_exit(4);
}

__attribute__((format(printf, 1, 2))) __attribute__((noreturn)) static void broken(const char *format, ...)
{
	char line[512];
	int error = errno;
	va_list args;
	va_start(args, format);
	vsnprintf(line, sizeof line, format, args);
	va_end(args);
	say("BROKEN %s: %s", line, strerror(error));
	_exit(2);
}

/* For set-up calls: -1 ends the victim before READY. */
#define must(call)                                                                                           \
	({                                                                                                   \
		__typeof__(call) must_result = (call);                                                       \
		if ((long)must_result == -1)                                                                 \
			broken("%s:%d %s", __FILE__, __LINE__, #call);                                       \
		must_result;                                                                                 \
	})
/* For pthread calls, which return the error. */
#define must0(call)                                                                                          \
	do {                                                                                                 \
		errno = (call);                                                                              \
		if (errno)                                                                                   \
			broken("%s:%d %s", __FILE__, __LINE__, #call);                                       \
	} while (0)

__attribute__((format(printf, 1, 2))) static void fail(const char *format, ...)
{
	char line[768];
	va_list args;
	va_start(args, format);
	vsnprintf(line, sizeof line, format, args);
	va_end(args);
	if (atomic_fetch_add(&victim_failures, 1) < 100)
		say("FAIL %s%s", victim_task, line);
}

__attribute__((unused)) static void expect(const char *field, uint64_t expected, uint64_t got)
{
	if (expected != got)
		fail("%s expected 0x%" PRIx64 " got 0x%" PRIx64, field, expected, got);
}

__attribute__((unused)) static void expect_at(const char *field, long index, uint64_t expected, uint64_t got)
{
	if (expected != got)
		fail("%s[%ld] expected 0x%" PRIx64 " got 0x%" PRIx64, field, index, expected, got);
}

__attribute__((unused)) static void expect_range(const char *field, int64_t low, int64_t high, int64_t got)
{
	if (got < low || got > high)
		fail("%s expected %" PRId64 "..%" PRId64 " got %" PRId64, field, low, high, got);
}

__attribute__((unused)) static void expect_string(const char *field, const char *expected, const char *got)
{
	if (strcmp(expected, got))
		fail("%s expected \"%s\" got \"%s\"", field, expected, got);
}

/* splitmix64: one number from another, for patterns that no two places share. */
__attribute__((unused)) static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

__attribute__((unused)) static void fill_page(void *page, uint64_t seed)
{
	uint64_t *word = page;
	for (size_t i = 0; i < PAGE / 8; i++)
		word[i] = mix(seed * 1024 + i);
}

/* Whether a page holds the pattern of `seed`; otherwise names the first wrong word. */
__attribute__((unused)) static void expect_page(const char *field, long index, const void *page, uint64_t seed)
{
	const uint64_t *word = page;
	for (size_t i = 0; i < PAGE / 8; i++)
		if (word[i] != mix(seed * 1024 + i)) {
			fail("%s page %ld word %zu expected 0x%" PRIx64 " got 0x%" PRIx64, field, index, i,
			     mix(seed * 1024 + i), word[i]);
			return;
		}
}

__attribute__((unused)) static void expect_zero_page(const char *field, long index, const void *page)
{
	const uint64_t *word = page;
	for (size_t i = 0; i < PAGE / 8; i++)
		if (word[i]) {
			fail("%s page %ld word %zu expected zero got 0x%" PRIx64, field, index, i, word[i]);
			return;
		}
}

__attribute__((unused)) static int64_t now_ns(clockid_t clock)
{
	struct timespec t;
	must(clock_gettime(clock, &t));
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* The whole of a small file as a string; "" when it cannot be read. */
__attribute__((unused)) static char *slurp(const char *path)
{
	size_t room = 1 << 20, n = 0;
	char *text = malloc(room + 1);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got;
	if (!text)
		broken("malloc");
	while (fd >= 0 && n < room && (got = read(fd, text + n, room - n)) > 0)
		n += got;
	if (fd >= 0)
		close(fd);
	text[n] = 0;
	return text;
}

/* The value after `name` on its line of /proc/thread-self/status. */
__attribute__((unused)) static void status_field(const char *name, char *value, size_t size)
{
	char *text = slurp("/proc/thread-self/status"), *line = strstr(text, name);
	value[0] = 0;
	if (line && (line == text || line[-1] == '\n')) {
		line += strlen(name);
		line += strspn(line, ":\t ");
		snprintf(value, size, "%.*s", (int)strcspn(line, "\n"), line);
	}
	free(text);
}

/* Moves the program break up. musl's sbrk(3) only tells where it is. */
__attribute__((unused)) static char *grow_break(size_t bytes)
{
#ifdef __GLIBC__
	return must(sbrk(bytes));
#else
	char *old = (char *)syscall(SYS_brk, 0);
	if ((char *)syscall(SYS_brk, old + bytes) != old + bytes)
		broken("brk");
	return old;
#endif
}

__attribute__((unused)) static char *the_break(void)
{
	return (char *)syscall(SYS_brk, 0);
}

static void nap_ms(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };
	while (syscall(SYS_nanosleep, &t, &t) == -1 && errno == EINTR)
		;
}

__attribute__((unused)) static pid_t thread_id(void)
{
	return syscall(SYS_gettid);
}

/* A session of its own, and no descriptor but stdin, stdout and stderr. */
static void victim_start(void)
{
	if (getsid(0) != getpid() && setsid() == -1)
		broken("setsid");
	for (int fd = 3; fd < 256; fd++)
		close(fd);
	victim_pid = getpid();
}

__attribute__((unused)) static void victim_ready(void)
{
	if (victim_failures)
		broken("checks before READY");
	say("READY %d", victim_pid);
}

__attribute__((unused)) static bool victim_asked(void)
{
	return access(victim_check, F_OK) == 0;
}

/* Returns when the victim shall check itself. */
__attribute__((unused)) static void victim_wait(void)
{
	for (int ms = 0; ms < LIFE_SECONDS * 1000; ms += 10) {
		if (victim_asked())
			return;
		nap_ms(10);
	}
	say("BROKEN nobody asked");
	_exit(3);
}

__attribute__((unused)) __attribute__((noreturn)) static void victim_end(void)
{
	expect("pid", victim_pid, getpid());
	expect("sid", victim_pid, getsid(0));
	if (victim_failures) {
		say("BAD %d", victim_failures);
		_exit(1);
	}
	say("OK");
	_exit(0);
}
#endif
