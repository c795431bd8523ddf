/*
 * A process with one thing that cannot be moved yet, which godwit must refuse by name, leaving the process
 * as it was. Where it is a descriptor it has the number 77, so that a message can be checked for it.
 *
 * odd WHAT
 */
#include "victim.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/signalfd.h>

static int child_exists(void)
{
	return waitpid(-1, NULL, WNOHANG) == 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int fd = -1, pair[2];
	bool child = false;
	sigset_t none;
	victim_start();
	sigemptyset(&none);
	if (!strcmp(what, "terminal"))
		fd = must(open("/dev/ptmx", O_RDWR | O_NOCTTY));
	else if (!strcmp(what, "unix-socket")) {
		must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
		fd = pair[0];
	} else if (!strcmp(what, "tcp-socket"))
		fd = must(socket(AF_INET, SOCK_STREAM, 0));
	else if (!strcmp(what, "eventfd"))
		fd = must(eventfd(7, 0));
	else if (!strcmp(what, "epoll"))
		fd = must(epoll_create1(0));
	else if (!strcmp(what, "timerfd"))
		fd = must(timerfd_create(CLOCK_MONOTONIC, 0));
	else if (!strcmp(what, "signalfd"))
		fd = must(signalfd(-1, &none, 0));
	else if (!strcmp(what, "inotify"))
		fd = must(inotify_init());
	else if (!strcmp(what, "io_uring")) {
		char params[120] = { 0 };
		fd = syscall(425, 4, params);
		if (fd == -1) {
			say("CANNOT %s", strerror(errno));
			return 0;
		}
	} else if (!strcmp(what, "deleted-file")) {
		fd = must(open("gone", O_CREAT | O_RDWR, 0644));
		must(unlink("gone"));
	} else if (!strcmp(what, "child")) {
		pid_t pid = must(fork());
		if (pid == 0) {
			for (int i = 0; i < LIFE_SECONDS * 100 && getppid() == victim_pid; i++)
				nap_ms(10);
			_exit(0);
		}
		say("CHILD %d", pid);
		child = true;
	} else
		broken("odd %s", what);
	if (fd >= 0) {
		must(dup2(fd, 77));
		close(fd);
	}
	victim_ready();
	victim_wait();
	if (fd >= 0 && fcntl(77, F_GETFD) == -1)
		fail("fd 77 is gone");
	if (child && !child_exists())
		fail("the child is gone");
	victim_end();
}
