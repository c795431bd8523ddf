/*
 * Deleted files: open for reading and writing, at two descriptors, behind a duplicate, without a name from the start,
 * sparse; mapped private and shared; a deleted working directory.
 */
#include "victim.h"

static int file(const char *name, int pages, uint64_t seed)
{
	char page[PAGE];
	int fd = must(open(name, O_RDWR | O_CREAT | O_EXCL, 0604));
	for (int i = 0; i < pages; i++) {
		fill_page(page, seed + i);
		if (write(fd, page, PAGE) != (ssize_t)PAGE)
			broken("write");
	}
	return fd;
}

static void check_file(const char *field, int fd, int pages, uint64_t seed)
{
	char page[PAGE];
	for (int i = 0; i < pages; i++)
		if (pread(fd, page, PAGE, i * PAGE) != (ssize_t)PAGE)
			fail("%s page %d cannot be read", field, i);
		else
			expect_page(field, i, page, seed + i);
}

int main(void)
{
	victim_start();
	struct stat small_stat, now;
	int small = file("small (deleted)", 2, 1000);
	must(fchown(small, 21, 22));
	must(fchmod(small, 0604));
	struct timespec times[2] = { { 1000000000, 5000 }, { 1100000000, 7000 } };
	must(lseek(small, 100, SEEK_SET));
	int other = must(open("small (deleted)", O_RDONLY | O_NONBLOCK)), twin = must(dup(other));
	must(lseek(other, 200, SEEK_SET));
	must(unlink("small (deleted)"));
	must(futimens(small, times));
	must(fstat(small, &small_stat));
	int empty = file("empty", 0, 0);
	must(unlink("empty"));
	/* 64 MiB, of which a few pages hold something. */
	int sparse = file("sparse", 3, 2000);
	char page[PAGE];
	fill_page(page, 2999);
	if (pwrite(sparse, page, PAGE, 64 << 20) != (ssize_t)PAGE)
		broken("pwrite");
	must(ftruncate(sparse, (64 << 20) + PAGE + 17));
	must(unlink("sparse"));
	int nameless = must(open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
	if (write(nameless, "without a name", 14) != 14)
		broken("write");

	int mapped = file("mapped", 16, 3000);
	char *own = must(mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, mapped, 0));
	char *shared = must(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 8 * PAGE));
	fill_page(own + 3 * PAGE, 3500);
	fill_page(shared + 2 * PAGE, 3010);
	must(close(mapped));
	must(unlink("mapped"));

	victim_ready();
	victim_wait();

	check_file("small", small, 2, 1000);
	expect("small offset", 100, lseek(small, 0, SEEK_CUR));
	expect("other offset", 200, lseek(other, 0, SEEK_CUR));
	must(lseek(twin, 300, SEEK_SET));
	expect("twin shares its description", 300, lseek(other, 0, SEEK_CUR));
	expect("other flags", O_RDONLY | O_NONBLOCK, fcntl(other, F_GETFL) & (O_ACCMODE | O_NONBLOCK));
	must(fstat(small, &now));
	expect("small mode", small_stat.st_mode, now.st_mode);
	expect("small uid", 21, now.st_uid);
	expect("small gid", 22, now.st_gid);
	expect("small size", 2 * PAGE, now.st_size);
	expect("small links", 0, now.st_nlink);
	expect("small mtime", 1100000000, now.st_mtime);
	expect("it is one file", 1, pwrite(small, "x", 1, 10) == 1 && pread(other, page, 1, 10) == 1 && *page == 'x');
	must(fstat(empty, &now));
	expect("empty size", 0, now.st_size);
	check_file("sparse", sparse, 3, 2000);
	must(fstat(sparse, &now));
	expect("sparse size", (64 << 20) + PAGE + 17, now.st_size);
	expect("sparse has its holes", 1, now.st_blocks < 2048);
	if (pread(sparse, page, PAGE, 64 << 20) == (ssize_t)PAGE)
		expect_page("sparse, its end", 0, page, 2999);
	else
		fail("sparse end cannot be read");
	char text[15] = "";
	expect("nameless length", 14, pread(nameless, text, sizeof text, 0));
	expect_string("nameless", "without a name", text);
	expect("nameless close-on-exec", FD_CLOEXEC, fcntl(nameless, F_GETFD));

	for (int i = 0; i < 16; i++)
		expect_page("own", i, own + i * PAGE, i == 3 ? 3500 : 3000 + i);
	for (int i = 0; i < 8; i++)
		expect_page("shared", i, shared + i * PAGE, 3008 + i);
	shared[5]++;
	expect("shared reaches own", (unsigned char)shared[5], (unsigned char)own[8 * PAGE + 5]);
	/* Nothing of it has a name. */
	for (const char **name = (const char *[]){ "small (deleted)", "sparse", "mapped", "empty", NULL }; *name; name++)
		expect_string(*name, "gone", access(*name, F_OK) ? "gone" : "there");
	victim_end();
}
