/*
 * Every kind of mapping an ordinary process has, each with a pattern of its own in some pages and
 * nothing in others, with its protection and advice.
 *
 * mem [shared]: with `shared`, also anonymous shared memory.
 */
#include "victim.h"

#define N 64

struct area {
	const char *name;
	char *at;
	size_t pages;
	/* Page i is filled when i % stride == 0. */
	size_t stride;
	int prot;
	const char *vm_flag;
};
static struct area areas[16];
static int area_count;
static char *file_at, *shared_file_at, *text_at;
static char *brk_end;
static char *auxv;
static size_t auxv_size;

static struct area *add(const char *name, char *at, size_t pages, size_t stride, int prot, const char *vm_flag)
{
	struct area *area = &areas[area_count++];
	*area = (struct area){ name, at, pages, stride, prot, vm_flag };
	for (size_t i = 0; i < pages; i += stride)
		fill_page(at + i * PAGE, (uint64_t)area_count << 32 | i);
	if (prot != (PROT_READ | PROT_WRITE))
		must(mprotect(at, pages * PAGE, prot));
	return area;
}

static char *anon(size_t pages)
{
	return must(mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static char *huge(size_t bytes)
{
	char *at = anon(bytes / PAGE + 512);
	at = (char *)(((uintptr_t)at + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
	must(madvise(at, bytes, MADV_HUGEPAGE));
	return at;
}

static void make_file(const char *path)
{
	char page[PAGE];
	int fd = must(open(path, O_CREAT | O_TRUNC | O_RDWR, 0644));
	for (int i = 0; i < N; i++) {
		fill_page(page, 0xf11e0000 + i);
		if (write(fd, page, PAGE) != PAGE)
			broken("write");
	}
	close(fd);
}

static char *map_file(const char *path, int open_flags, int prot, int flags)
{
	int fd = must(open(path, open_flags));
	char *at = must(mmap(NULL, N * PAGE, prot, flags, fd, 0));
	close(fd);
	return at;
}

static int maps_prot(const char *smaps, const void *at, char *vm_flags, size_t size)
{
	const char *line = smaps;
	bool inside = false;
	int prot = -1;
	vm_flags[0] = 0;
	while (line && *line) {
		unsigned long start, end;
		char mode[8];
		if (sscanf(line, "%lx-%lx %7s", &start, &end, mode) == 3 && strchr(line, '-') - line < 17) {
			inside = start <= (unsigned long)at && (unsigned long)at < end;
			if (inside)
				prot = (mode[0] == 'r' ? PROT_READ : 0) | (mode[1] == 'w' ? PROT_WRITE : 0) |
				       (mode[2] == 'x' ? PROT_EXEC : 0);
		} else if (inside && !strncmp(line, "VmFlags:", 8)) {
			snprintf(vm_flags, size, "%.*s", (int)strcspn(line + 8, "\n"), line + 8);
			return prot;
		}
		line = strchr(line, '\n');
		if (line)
			line++;
	}
	return prot;
}

static void check_areas(void)
{
	/* smaps of a process with few mappings; read once, before anything is unprotected. */
	char *smaps = slurp("/proc/self/smaps"), flags[256];
	for (int n = 0; n < area_count; n++) {
		struct area *area = &areas[n];
		expect(area->name, area->prot, maps_prot(smaps, area->at, flags, sizeof flags));
		if (area->vm_flag && !strstr(flags, area->vm_flag))
			fail("%s VmFlags expected \"%s\" got \"%s\"", area->name, area->vm_flag, flags);
		if (!(area->prot & PROT_READ))
			must(mprotect(area->at, area->pages * PAGE, PROT_READ));
		for (size_t i = 0; i < area->pages; i++)
			if (i % area->stride == 0)
				expect_page(area->name, i, area->at + i * PAGE, (uint64_t)(n + 1) << 32 | i);
			else
				expect_zero_page(area->name, i, area->at + i * PAGE);
	}
	free(smaps);
}

static void check_files(void)
{
	char page[PAGE];
	int fd = must(open("shared.map", O_RDONLY));
	for (int i = 0; i < N; i++) {
		bool changed = i % 5 == 1;
		expect_page("private_file", i, file_at + i * PAGE, (changed ? 0xc0e00000 : 0xf11e0000) + i);
		expect_page("readonly_file", i, text_at + i * PAGE, 0xf11e0000 + i);
		if (changed)
			fill_page(shared_file_at + i * PAGE, 0x5a7e0000 + i);
		expect_page("shared_file", i, shared_file_at + i * PAGE, (changed ? 0x5a7e0000 : 0xf11e0000) + i);
		/* What is written to the mapping must be in the file: it is the same mapping kind. */
		if (pread(fd, page, PAGE, i * PAGE) != PAGE)
			fail("shared_file read");
		expect_page("shared_file_on_disk", i, page, (changed ? 0x5a7e0000 : 0xf11e0000) + i);
	}
	close(fd);
}

static void expect_file(const char *field, const char *path, const char *expected, size_t size)
{
	char *got = malloc(size + 1);
	int fd = must(open(path, O_RDONLY));
	ssize_t n = read(fd, got, size + 1);
	if (n != (ssize_t)size || memcmp(got, expected, size))
		fail("%s differs: %zd bytes, expected %zu", field, n, size);
	close(fd);
	free(got);
}

static char cmdline[256], exe[PATH_MAX], environment[65536];
static size_t cmdline_size, environment_size;

static size_t load(const char *path, char *into, size_t size)
{
	int fd = must(open(path, O_RDONLY));
	ssize_t n = must(read(fd, into, size));
	close(fd);
	return n;
}

int main(int argc, char **argv)
{
	char stack[16 * PAGE];
	char *stack_page = (char *)(((uintptr_t)stack + PAGE - 1) & ~(PAGE - 1));
	victim_start();
	for (int i = 0; i < 14; i++)
		fill_page(stack_page + i * PAGE, 0x57ac0000 + i);

	grow_break(0x180000 - ((uintptr_t)the_break() & (PAGE - 1)));
	brk_end = the_break();
	add("heap", brk_end - N * PAGE, N, 3, PROT_READ | PROT_WRITE, NULL);
	char *big = malloc(1 << 20);
	add("malloc", (char *)(((uintptr_t)big + PAGE) & ~(PAGE - 1)), N, 2, PROT_READ | PROT_WRITE, NULL);
	add("anon", anon(1024), 1024, 7, PROT_READ | PROT_WRITE, NULL);
	add("prot_none", anon(N), N, 2, PROT_NONE, NULL);
	add("readonly", anon(N), N, 2, PROT_READ, NULL);
	add("executable", anon(N), N, 4, PROT_READ | PROT_EXEC, NULL);
	add("huge", huge(4 << 20), 1024, 1, PROT_READ | PROT_WRITE, " hg");
	char *at = anon(N);
	must(madvise(at, N * PAGE, MADV_DONTFORK));
	add("dont_fork", at, N, 3, PROT_READ | PROT_WRITE, " dc");
	at = anon(N);
	must(madvise(at, N * PAGE, MADV_DONTDUMP));
	add("dont_dump", at, N, 3, PROT_READ | PROT_WRITE, " dd");
	at = anon(8);
	if (mlock(at, 8 * PAGE) == 0)
		add("locked", at, 8, 1, PROT_READ | PROT_WRITE, " lo");
	at = must(mmap(NULL, 1ul << 34, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	add("sparse", at + (1ul << 33), N, 9, PROT_READ | PROT_WRITE, " nr");
	if (argc > 1 && !strcmp(argv[1], "shared"))
		add("shared_anon",
		    must(mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)), N, 3,
		    PROT_READ | PROT_WRITE, NULL);

	make_file("private.map");
	make_file("shared.map");
	file_at = map_file("private.map", O_RDONLY, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	text_at = map_file("private.map", O_RDONLY, PROT_READ | PROT_EXEC, MAP_PRIVATE);
	shared_file_at = map_file("shared.map", O_RDWR, PROT_READ | PROT_WRITE, MAP_SHARED);
	for (int i = 1; i < N; i += 5)
		fill_page(file_at + i * PAGE, 0xc0e00000 + i);

	auxv = malloc(4096);
	auxv_size = load("/proc/self/auxv", auxv, 4096);
	cmdline_size = load("/proc/self/cmdline", cmdline, sizeof cmdline - 1);
	environment_size = load("/proc/self/environ", environment, sizeof environment - 1);
	must(readlink("/proc/self/exe", exe, sizeof exe - 1));

	brk_end = the_break();
	victim_ready();
	victim_wait();

	char now_exe[PATH_MAX] = "";
	expect("brk", (uintptr_t)brk_end, (uintptr_t)the_break());
	check_areas();
	check_files();
	for (int i = 0; i < 14; i++)
		expect_page("stack", i, stack_page + i * PAGE, 0x57ac0000 + i);
	expect_file("auxv", "/proc/self/auxv", auxv, auxv_size);
	expect_file("cmdline", "/proc/self/cmdline", cmdline, cmdline_size);
	expect_file("environ", "/proc/self/environ", environment, environment_size);
	must(readlink("/proc/self/exe", now_exe, sizeof now_exe - 1));
	expect_string("exe", exe, now_exe);
	/* Memory can still grow: the break and the stack's growth direction survived. */
	memset(grow_break(16 * PAGE), 1, 16 * PAGE);
	victim_end();
}
