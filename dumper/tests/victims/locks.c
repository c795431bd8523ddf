/*
 * File locks: POSIX ranges for reading and writing, flock, shared and exclusive. A child process, made only
 * at the check, sees which ranges are taken and by whom.
 */
#include "victim.h"
#include <sys/file.h>

static int posix_fd, exclusive_fd, shared_fd, free_fd;

static void take(int fd, short type, off_t start, off_t length)
{
	struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length };
	must(fcntl(fd, F_SETLK, &lock));
}

/* What F_GETLK tells a stranger about a range. */
static void probe(off_t start, off_t length, short type, short expected_type, off_t expected_start, off_t expected_length)
{
	struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length };
	must(fcntl(posix_fd, F_GETLK, &lock));
	expect_at("posix lock type at", start, expected_type, lock.l_type);
	if (expected_type == F_UNLCK || lock.l_type == F_UNLCK)
		return;
	expect_at("posix lock start at", start, expected_start, lock.l_start);
	expect_at("posix lock length at", start, expected_length, lock.l_len);
	expect_at("posix lock owner at", start, victim_pid, lock.l_pid);
}

static int stranger(void)
{
	probe(0, 1, F_WRLCK, F_UNLCK, 0, 0);
	probe(10, 1, F_WRLCK, F_WRLCK, 10, 20);
	probe(100, 5, F_WRLCK, F_RDLCK, 100, 50);
	probe(100, 5, F_RDLCK, F_UNLCK, 0, 0);
	probe(5000, 1, F_RDLCK, F_WRLCK, 1000, 0);
	int fd = must(open("exclusive", O_RDWR));
	expect("flock exclusive is held", -1, flock(fd, LOCK_SH | LOCK_NB));
	fd = must(open("shared", O_RDWR));
	expect("flock shared may be shared", 0, flock(fd, LOCK_SH | LOCK_NB));
	expect("flock shared is held", -1, flock(fd, LOCK_EX | LOCK_NB));
	fd = must(open("free", O_RDWR));
	expect("flock free is free", 0, flock(fd, LOCK_EX | LOCK_NB));
	return victim_failures ? 1 : 0;
}

int main(void)
{
	int status;
	victim_start();
	posix_fd = must(open("ranges", O_CREAT | O_RDWR, 0644));
	must(ftruncate(posix_fd, 8192));
	exclusive_fd = must(open("exclusive", O_CREAT | O_RDWR, 0644));
	shared_fd = must(open("shared", O_CREAT | O_RDWR, 0644));
	free_fd = must(open("free", O_CREAT | O_RDWR, 0644));
	take(posix_fd, F_WRLCK, 10, 20);
	take(posix_fd, F_RDLCK, 100, 50);
	take(posix_fd, F_WRLCK, 1000, 0); /* to the end, wherever that is */
	must(flock(exclusive_fd, LOCK_EX));
	must(flock(shared_fd, LOCK_SH));
	must(flock(free_fd, LOCK_EX));
	must(flock(free_fd, LOCK_UN));

	victim_ready();
	victim_wait();

	pid_t child = must(fork());
	if (child == 0)
		_exit(stranger());
	must(waitpid(child, &status, 0));
	expect("what a stranger sees", 0, status);
	victim_end();
}
