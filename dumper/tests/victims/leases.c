/*
 * Leases (F_SETLEASE): for reading, for writing, with a signal of its own, and one that a duplicate shares; each is seen
 * to be broken by whoever opens the file.
 */
#include "victim.h"

enum { READ = 10, WRITE, SIGNAL, DUPLICATE };

static volatile sig_atomic_t broken_by, broken_fd;

static void on_break(int signal, siginfo_t *info, void *unused)
{
	(void)unused;
	broken_by = signal;
	broken_fd = info->si_fd;
}

static void lease(int fd, const char *path, int flags, int type)
{
	close(must(open(path, O_CREAT | O_RDWR, 0600)));
	int made = must(open(path, flags));
	must(dup2(made, fd));
	close(made);
	must(fcntl(fd, F_SETSIG, fd == SIGNAL ? SIGRTMIN + 7 : SIGUSR1));
	must(fcntl(fd, F_SETLEASE, type));
}

/* Opens the file so that the lease stands in the way: its holder is signalled, and gives it back. */
static void expect_break(const char *field, int fd, const char *path, int flags, int signal)
{
	broken_by = broken_fd = 0;
	int opened = open(path, flags | O_NONBLOCK);
	expect(field, -1, opened);
	expect(field, EWOULDBLOCK, errno);
	for (int i = 0; i < 1000 && !broken_by; i++)
		nap_ms(1);
	expect(field, signal, broken_by);
	expect(field, fd, broken_fd);
	must(fcntl(fd, F_SETLEASE, F_UNLCK));
	opened = open(path, flags | O_NONBLOCK);
	if (opened == -1)
		fail("%s: it cannot be opened without the lease", field);
	close(opened);
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = on_break, .sa_flags = SA_SIGINFO | SA_RESTART };
	victim_start();
	must(sigaction(SIGUSR1, &action, NULL));
	must(sigaction(SIGRTMIN + 7, &action, NULL));
	lease(READ, "read", O_RDONLY, F_RDLCK);
	lease(WRITE, "write", O_RDWR, F_WRLCK);
	lease(SIGNAL, "signal", O_RDWR, F_WRLCK);
	must(dup2(WRITE, DUPLICATE));
	victim_ready();
	victim_wait();

	expect("read lease", F_RDLCK, fcntl(READ, F_GETLEASE));
	expect("write lease", F_WRLCK, fcntl(WRITE, F_GETLEASE));
	expect("lease of the duplicate", F_WRLCK, fcntl(DUPLICATE, F_GETLEASE));
	expect("lease with a signal", F_WRLCK, fcntl(SIGNAL, F_GETLEASE));
	expect_break("writing", READ, "read", O_WRONLY, SIGUSR1);
	expect_break("reading", WRITE, "write", O_RDONLY, SIGUSR1);
	expect_break("reading, with a signal", SIGNAL, "signal", O_RDONLY, SIGRTMIN + 7);
	expect("none is left", F_UNLCK, fcntl(DUPLICATE, F_GETLEASE));
	victim_end();
}
