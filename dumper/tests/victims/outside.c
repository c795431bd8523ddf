/*
 * A pipe whose other end is somebody else's, and a file that lies elsewhere after a restore.
 *
 * outside PIPE FILE MODE: PIPE is a path that leads to a pipe, of which it opens the end to read or, with MODE `write`, to
 * write. The check wants "given" in each.
 */
#include "victim.h"

enum { PIPE = 10, FILE_FD };

static void open_at(int fd, const char *path, int flags)
{
	int made = must(open(path, flags));
	must(dup2(made, fd));
	close(made);
}

int main(int argc, char **argv)
{
	char got[16] = { 0 };
	victim_start();
	if (argc != 4)
		broken("outside PIPE FILE MODE");
	bool writes = !strcmp(argv[3], "write");
	open_at(PIPE, argv[1], (writes ? O_WRONLY : O_RDONLY) | O_NONBLOCK);
	open_at(FILE_FD, argv[2], O_RDONLY);
	must(lseek(FILE_FD, 2, SEEK_SET));
	victim_ready();
	victim_wait();

	expect("flags", (writes ? O_WRONLY : O_RDONLY) | O_NONBLOCK, fcntl(PIPE, F_GETFL) & ~0100000);
	expect("position", 2, lseek(FILE_FD, 0, SEEK_CUR));
	must(lseek(FILE_FD, 0, SEEK_SET));
	expect("file", 5, read(FILE_FD, got, sizeof got - 1));
	expect_string("file", "given", got);
	if (writes)
		expect("writing", 5, write(PIPE, "taken", 5));
	else {
		memset(got, 0, sizeof got);
		expect("pipe", 5, read(PIPE, got, sizeof got - 1));
		expect_string("pipe", "given", got);
	}
	victim_end();
}
