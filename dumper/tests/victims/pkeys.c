/*
 * Protection keys (man 7 pkeys), on processors that have them: two threads with different rights in their PKRU registers,
 * a mapping with a key, and memory that can only be executed, which the kernel gives a key of its own. Restored, the
 * registers are as they were; the key of the mapping is lost, by name.
 *
 * pkeys [lost]: with `lost`, the mapping is known to have come back without its key.
 */
#include "smaps.h"

#define NO_ACCESS 1
#define NO_WRITE 2

static char *keyed, *executable;
static int key;
static atomic_int ready;

static uint32_t rights(void)
{
	uint32_t low, high;
	__asm__ volatile("rdpkru" : "=a"(low), "=d"(high) : "c"(0));
	return low;
}

static void set_rights(uint32_t value)
{
	__asm__ volatile("wrpkru" : : "a"(value), "d"(0), "c"(0) : "memory");
}

/* Answers with an error where a touch would be a signal. */
static bool can_read(const void *at)
{
	int pipes[2];
	must(pipe2(pipes, O_CLOEXEC));
	bool readable = write(pipes[1], at, 1) == 1;
	close(pipes[0]);
	close(pipes[1]);
	return readable;
}

static long key_of(const void *at)
{
	FILE *file = fopen("/proc/self/smaps", "re");
	char line[PATH_MAX + 256];
	bool inside = false;
	long found = -1;
	if (!file)
		broken("smaps");
	while (fgets(line, sizeof line, file)) {
		unsigned long start, end;
		char mode[8];
		if (sscanf(line, "%lx-%lx %7s", &start, &end, mode) == 3)
			inside = start <= (unsigned long)at && (unsigned long)at < end;
		else if (inside)
			sscanf(line, "ProtectionKey: %ld", &found);
	}
	fclose(file);
	return found;
}

static uint32_t other_rights;

static void *other(void *unused)
{
	(void)unused;
	other_rights = (rights() & ~(3u << 2 * key)) | NO_WRITE << 2 * key;
	set_rights(other_rights);
	atomic_store(&ready, 1);
	while (!victim_asked())
		nap_ms(10);
	expect("rights of the second thread", other_rights, rights());
	return NULL;
}

int main(int argc, char **argv)
{
	bool lost = argc > 1 && !strcmp(argv[1], "lost");
	pthread_t thread;
	victim_start();
	key = syscall(SYS_pkey_alloc, 0, 0);
	if (key == -1) {
		say("UNSUPPORTED protection keys: %s", strerror(errno));
		victim_ready();
		victim_wait();
		victim_end();
	}
	keyed = must(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (int i = 0; i < 4; i++)
		fill_page(keyed + i * PAGE, 0x9ce40 + i);
	must(syscall(SYS_pkey_mprotect, keyed, 4 * PAGE, PROT_READ | PROT_WRITE, key));
	executable = must(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	fill_page(executable, 0xe8ec);
	must(mprotect(executable, PAGE, PROT_EXEC));
	must0(pthread_create(&thread, NULL, other, NULL));
	while (!atomic_load(&ready))
		nap_ms(1);
	uint32_t own = (rights() & ~(3u << 2 * key)) | NO_ACCESS << 2 * key;
	set_rights(own);
	if (can_read(keyed))
		broken("the key does not bar");
	long of_executable = key_of(executable);
	victim_ready();
	victim_wait();

	expect("rights", own, rights());
	expect("key of the mapping", lost ? 0 : key, key_of(keyed));
	expect("barred", !lost, !can_read(keyed));
	/* The kernel may take another key for it, and takes one where it did before. */
	expect("key of executable memory", of_executable > 0, key_of(executable) > 0);
	expect("executable memory is barred", of_executable > 0, !can_read(executable));
	set_rights(0);
	must0(pthread_join(thread, NULL));
	for (int i = 0; i < 4; i++)
		expect_page("content", i, keyed + i * PAGE, 0x9ce40 + i);
	must(mprotect(executable, PAGE, PROT_READ));
	expect_page("executable content", 0, executable, 0xe8ec);
	victim_end();
}
