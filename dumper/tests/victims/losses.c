/*
 * A process with one property of its memory that CRIU's restore drops in silence, so that godwit must name it. Asked, it
 * checks only that it still has it: that is what a dump that was refused must leave.
 *
 * losses WHAT
 */
#include "smaps.h"
#include <linux/mempolicy.h>

#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#define GUARD_INSTALL 102
#define SYS_mseal_ 462
#define N 16

static char *at;

static char *map(void)
{
	return must(mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static bool unsupported;

/* What a kernel or processor lacks cannot be lost. */
static bool tried(long result)
{
	if (result == -1 && !unsupported) {
		say("UNSUPPORTED %s", strerror(errno));
		unsupported = true;
	}
	return result != -1;
}

/* The whole auxiliary vector that the kernel keeps, filled to its end, at the bounds that the process has. */
static void long_auxv(void)
{
	static uint64_t words[50];
	char *stat = strrchr(slurp("/proc/self/stat"), ')') + 2;
	unsigned long long field[53] = { 0 };
	char state;
	int used = 0, length = 0;
	sscanf(stat, "%c%n", &state, &used);
	for (int n = 4; n <= 52 && sscanf(stat + used, "%llu%n", &field[n], &length) == 1; n++)
		used += length;
	int fd = must(open("/proc/self/auxv", O_RDONLY));
	ssize_t had = must(read(fd, words, sizeof words));
	close(fd);
	for (size_t n = had / 8 - 2; n < 48; n += 2) {
		words[n] = 1000 + n;
		words[n + 1] = n;
	}
	struct prctl_mm_map bounds = {
		.start_code = field[26], .end_code = field[27], .start_data = field[45], .end_data = field[46],
		.start_brk = field[47], .brk = (uintptr_t)the_break(), .start_stack = field[28],
		.arg_start = field[48], .arg_end = field[49], .env_start = field[50], .env_end = field[51],
		.auxv = (void *)words, .auxv_size = sizeof words, .exe_fd = (uint32_t)-1,
	};
	tried(prctl(PR_SET_MM, PR_SET_MM_MAP, &bounds, sizeof bounds, 0));
}

__attribute__((noinline, used)) static int never_called(int n)
{
	return n * 3;
}

static void expect_flag(const char *flag)
{
	struct mapping_line mapping;
	if (!mapping_of(at, &mapping) || !has_flag(&mapping, flag))
		fail("the mapping has no flag %s", flag);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	const char *flag = NULL;
	victim_start();
	at = map();
	at[0] = 1;
	if (!strcmp(what, "sealed")) {
		tried(syscall(SYS_mseal_, at, N * PAGE, 0));
		flag = "sl";
	} else if (!strcmp(what, "locked-on-fault")) {
		tried(syscall(SYS_mlock2, at, N * PAGE, MLOCK_ONFAULT));
		flag = "lf";
	} else if (!strcmp(what, "locked-for-ever")) {
		tried(mlockall(MCL_CURRENT | MCL_FUTURE));
		flag = "lo";
	} else if (!strcmp(what, "named")) {
		tried(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at, N * PAGE, "a name"));
	} else if (!strcmp(what, "merged")) {
		tried(prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0));
	} else if (!strcmp(what, "long-auxv")) {
		long_auxv();
	} else if (!strcmp(what, "placed")) {
		unsigned long nodes = 1;
		tried(syscall(SYS_mbind, at, N * PAGE, MPOL_BIND, &nodes, 64, 0));
	} else if (!strcmp(what, "guarded")) {
		tried(madvise(at + PAGE, 2 * PAGE, GUARD_INSTALL));
	} else if (!strcmp(what, "guarded-and-locked")) {
		tried(madvise(at + PAGE, 2 * PAGE, GUARD_INSTALL));
		/* It fails at the guards, and the mapping is locked nevertheless. */
		mlock(at, N * PAGE);
		flag = "lo";
	} else if (!strcmp(what, "pkey")) {
		int key = syscall(SYS_pkey_alloc, 0, 0);
		if (tried(key))
			tried(syscall(SYS_pkey_mprotect, at, N * PAGE, PROT_READ | PROT_WRITE, key));
	} else if (!strcmp(what, "breakpoint")) {
		/* As a probe leaves the text of a program that it watches; nobody comes by. */
		unsigned char *text = (unsigned char *)never_called;
		char *page = (char *)((uintptr_t)text & ~(PAGE - 1));
		must(mprotect(page, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC));
		text[0] = 0xcc;
		must(mprotect(page, 2 * PAGE, PROT_READ | PROT_EXEC));
	} else if (!strcmp(what, "aio")) {
		unsigned long ring = 0;
		tried(syscall(SYS_io_setup, 8, &ring));
	} else
		broken("losses %s", what);
	victim_ready();
	victim_wait();
	if (flag && !unsupported)
		expect_flag(flag);
	if (!strcmp(what, "merged") && !unsupported)
		expect("memory merge", 1, prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
	expect("memory", 1, at[0]);
	victim_end();
}
