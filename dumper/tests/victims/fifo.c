/*
 * Named pipes: both ends, one end, one deleted, what lies in them, their sizes, flags and owners, and a thread that waits.
 */
#include "victim.h"
#include <sys/ioctl.h>

/* The kernel's own O_LARGEFILE; the library calls it 0. */
#define LARGE_FILE 0100000

enum { READ = 10, WRITE, BOTH, LONE_READ, GONE_READ, GONE_WRITE, WAIT_READ, WAIT_WRITE, SECOND_READ, EMPTY_READ, EMPTY_WRITE };

static void open_at(int fd, const char *path, int flags)
{
	int made = must(open(path, flags));
	must(dup2(made, fd));
	close(made);
}

static void send(int fd, int n, uint64_t seed)
{
	for (int i = 0; i < n; i++) {
		unsigned char byte = mix(seed * 100000 + i);
		must(write(fd, &byte, 1));
	}
}

static void expect_bytes(const char *field, int fd, int n, uint64_t seed)
{
	int waiting = 0;
	must(ioctl(fd, FIONREAD, &waiting));
	expect(field, n, waiting);
	for (int i = 0; i < n && i < waiting; i++) {
		unsigned char byte = 0, wanted = mix(seed * 100000 + i);
		expect(field, 1, read(fd, &byte, 1));
		if (byte != wanted) {
			fail("%s: byte %d expected %u got %u", field, i, wanted, byte);
			return;
		}
	}
}

static char waited;

static atomic_int waits;

static void *wait_for_it(void *unused)
{
	atomic_store(&waits, 1);
	if (read(WAIT_READ, &waited, 1) != 1)
		waited = '?';
	return unused;
}

static void *open_reader(void *unused)
{
	open_at(WAIT_READ, "waited", O_RDONLY);
	return unused;
}

int main(void)
{
	pthread_t opener, waiter;
	struct stat st;
	char byte;
	victim_start();
	must(mkfifo("both ends", 0640));
	must(mkfifo("one", 0600));
	must(mkfifo("lone", 0600));
	must(mkfifo("gone", 0604));
	must(mkfifo("waited", 0600));
	must(mkfifo("empty", 0600));
	open_at(BOTH, "one", O_RDWR | O_NONBLOCK);
	send(BOTH, 777, 1);
	open_at(READ, "both ends", O_RDONLY | O_NONBLOCK);
	open_at(WRITE, "both ends", O_WRONLY);
	open_at(SECOND_READ, "both ends", O_RDONLY | O_NONBLOCK);
	must(fcntl(WRITE, F_SETPIPE_SZ, 16384));
	send(WRITE, 5000, 2);
	must(fcntl(SECOND_READ, F_SETFD, FD_CLOEXEC));
	struct f_owner_ex owner = { F_OWNER_PID, victim_pid };
	must(fcntl(READ, F_SETOWN_EX, &owner));
	must(fcntl(READ, F_SETSIG, SIGRTMIN + 5));
	open_at(LONE_READ, "lone", O_RDONLY | O_NONBLOCK);
	open_at(GONE_READ, "gone", O_RDONLY | O_NONBLOCK);
	open_at(GONE_WRITE, "gone", O_WRONLY | O_NONBLOCK);
	send(GONE_WRITE, 50, 3);
	must(unlink("gone"));
	must0(pthread_create(&opener, NULL, open_reader, NULL));
	open_at(WAIT_WRITE, "waited", O_WRONLY);
	must0(pthread_join(opener, NULL));
	must0(pthread_create(&waiter, NULL, wait_for_it, NULL));
	while (!atomic_load(&waits))
		nap_ms(1);
	open_at(EMPTY_READ, "empty", O_RDONLY | O_NONBLOCK);
	open_at(EMPTY_WRITE, "empty", O_WRONLY | O_NONBLOCK);
	victim_ready();
	victim_wait();

	expect("flags", O_RDONLY | O_NONBLOCK, fcntl(READ, F_GETFL) & ~LARGE_FILE);
	expect("flags of the writer", O_WRONLY, fcntl(WRITE, F_GETFL) & ~LARGE_FILE);
	expect("flags of both", O_RDWR | O_NONBLOCK, fcntl(BOTH, F_GETFL) & ~LARGE_FILE);
	expect("close-on-exec", FD_CLOEXEC, fcntl(SECOND_READ, F_GETFD));
	memset(&owner, 0, sizeof owner);
	must(fcntl(READ, F_GETOWN_EX, &owner));
	expect("owner", victim_pid, owner.pid);
	expect("owner signal", SIGRTMIN + 5, fcntl(READ, F_GETSIG));
	expect("size", 16384, fcntl(READ, F_GETPIPE_SZ));
	expect_bytes("read end", READ, 4000 + 1000, 2);
	must(write(WRITE, "x", 1));
	expect("second read end", 1, read(SECOND_READ, &byte, 1));
	expect_bytes("one descriptor for both", BOTH, 777, 1);
	expect("a reader alone sees the end", 0, read(LONE_READ, &byte, 1));
	expect_bytes("deleted", GONE_READ, 50, 3);
	must(write(GONE_WRITE, "y", 1));
	expect("deleted, written", 1, read(GONE_READ, &byte, 1));
	must(fstat(GONE_READ, &st));
	expect("deleted, mode", S_IFIFO | 0604, st.st_mode);
	expect("deleted, links", 0, st.st_nlink);
	expect("deleted, path", -1, access("gone", F_OK));
	must(fstat(READ, &st));
	ino_t inode = st.st_ino;
	must(stat("both ends", &st));
	expect("inode", st.st_ino, inode);
	expect("empty", -1, read(EMPTY_READ, &byte, 1));
	expect("empty, errno", EAGAIN, errno);
	must(write(WAIT_WRITE, "w", 1));
	must0(pthread_join(waiter, NULL));
	expect("the waiting thread", 'w', waited);
	victim_end();
}
