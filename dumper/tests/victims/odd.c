/*
 * A process with one thing that cannot be moved yet, which godwit must refuse by name, leaving the process
 * as it was. Where it is a descriptor it has the number 77, so that a message can be checked for it.
 *
 * odd WHAT
 */
#include "victim.h"
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/timerfd.h>
#include <sys/signalfd.h>
#include <linux/netlink.h>
#include <linux/vm_sockets.h>
#include <sys/fanotify.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <mqueue.h>

/* For what not every machine or user may do. */
#define can(call)                                                                                            \
	({                                                                                                   \
		long can_result = (call);                                                                    \
		if (can_result == -1) {                                                                      \
			say("CANNOT %s", strerror(errno));                                                   \
			say("READY %d", victim_pid);                                                         \
			return 0;                                                                            \
		}                                                                                            \
		can_result;                                                                                  \
	})

static void *open_late(void *unused)
{
	while (access("open", F_OK))
		nap_ms(2);
	int pair[2];
	must(pipe2(pair, O_DIRECT));
	must(dup2(pair[1], 77));
	close(pair[0]);
	close(pair[1]);
	close(must(open("opened", O_CREAT | O_WRONLY, 0644)));
	while (access("close", F_OK))
		nap_ms(2);
	close(77);
	return unused;
}

/* A daemon, no child, which keeps what it has inherited, and opens a file if it is told one, until the victim ends. */
static void outsider(const char *path)
{
	int ready[2];
	char byte;
	must(pipe(ready));
	pid_t pid = must(fork());
	if (pid == 0) {
		if (fork())
			_exit(0);
		setsid();
		if (path)
			must(open(path, O_RDWR));
		must(write(ready[1], "r", 1));
		close(ready[0]);
		close(ready[1]);
		for (int i = 0; i < LIFE_SECONDS * 100 && !kill(victim_pid, 0) && access("check", F_OK); i++)
			nap_ms(10);
		_exit(0);
	}
	must(waitpid(pid, NULL, 0));
	must(read(ready[0], &byte, 1));
	close(ready[0]);
	close(ready[1]);
}

/* A set that watches what cannot be added anew: a file that only others have, or one that has fewer numbers than watches. */
static int odd_epoll(const char *how)
{
	struct epoll_event event = { EPOLLIN, { .u64 = 1 } };
	int set = must(epoll_create1(0)), counter = must(eventfd(7, 0));
	must(dup2(counter, 79));
	close(counter);
	must(epoll_ctl(set, EPOLL_CTL_ADD, 79, &event));
	if (!strcmp(how, "twice")) {
		must(dup2(79, 78));
		must(epoll_ctl(set, EPOLL_CTL_ADD, 78, &event));
	} else if (!strcmp(how, "foreign")) {
		if (must(fork()) == 0) {
			while (access("check", F_OK) && getppid() == victim_pid)
				nap_ms(10);
			_exit(0);
		}
	} else
		outsider(NULL);
	close(79);
	return set;
}

/* A unix socket that leads out of the tree, or with something in its queue that cannot be read or made anew. */
static int odd_unix(const char *how)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	socklen_t size = offsetof(struct sockaddr_un, sun_path) +
			 snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "odd %d", getpid()) + 1;
	int pair[2];
	if (!strcmp(how, "shared")) {
		int one = must(socket(AF_UNIX, SOCK_DGRAM, 0));
		outsider(NULL);
		return one;
	}
	if (!strcmp(how, "rights")) {
		char byte = 'x', control[CMSG_SPACE(sizeof(int))] = "";
		struct iovec part = { &byte, 1 };
		struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
		struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
		must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(rights), &pair[1], sizeof(int));
		must(sendmsg(pair[1], &message, 0));
		return pair[0];
	}
	int client = must(socket(AF_UNIX, SOCK_STREAM, 0));
	if (!strcmp(how, "outside") || !strcmp(how, "waiting"))
		outsider(NULL);
	int listener = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(bind(listener, (struct sockaddr *)&address, size));
	must(listen(listener, 3));
	must(connect(client, (struct sockaddr *)&address, size));
	if (!strcmp(how, "sent")) {
		must(send(client, "early", 5, 0));
		must(dup2(listener, 78));
		return client;
	}
	if (!strcmp(how, "outside")) {
		int server = must(accept(listener, NULL, NULL));
		close(listener);
		close(client);
		return server;
	}
	close(client);
	return listener;
}

static atomic_int unshared; /* 1, or the negative errno */

static void *unshare_alone(void *flag)
{
	atomic_store(&unshared, unshare((long)flag) ? -errno : 1);
	while (true)
		pause();
	return NULL;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int fd = -1, pair[2];
	bool keep = false;
	sigset_t none;
	victim_start();
	sigemptyset(&none);
	if (!strcmp(what, "terminal")) {
		int master = must(posix_openpt(O_RDWR | O_NOCTTY));
		must(unlockpt(master));
		fd = must(open(ptsname(master), O_RDWR | O_NOCTTY));
		close(master);
	} else if (!strncmp(what, "unix-", 5))
		fd = odd_unix(what + 5);
	else if (!strcmp(what, "tcp-socket"))
		fd = must(socket(AF_INET, SOCK_STREAM, 0));
	else if (!strncmp(what, "epoll-", 6))
		fd = odd_epoll(what + 6);
	else if (!strcmp(what, "alarm-timer"))
		fd = can(timerfd_create(CLOCK_BOOTTIME_ALARM, 0));
	else if (!strcmp(what, "packets")) {
		/* Only the end that writes is told it. */
		must(pipe2(pair, O_DIRECT));
		fd = pair[1];
	} else if (!strcmp(what, "inotify-gone")) {
		/* The watch goes with the file, which is kept by whoever has it open. */
		int gone = must(open("gone", O_CREAT | O_RDWR, 0600));
		fd = must(inotify_init());
		must(inotify_add_watch(fd, "gone", IN_MODIFY));
		must(unlink("gone"));
		must(dup2(gone, 70));
		close(gone);
	} else if (!strcmp(what, "io_uring")) {
		char params[120] = { 0 };
		fd = can(syscall(425, 4, params));
	} else if (!strcmp(what, "deleted-file")) {
		fd = must(open("gone", O_CREAT | O_RDWR, 0644));
		must(unlink("gone"));
	} else if (!strcmp(what, "linked-elsewhere") || !strcmp(what, "replaced")) {
		fd = must(open("gone", O_CREAT | O_RDWR, 0644));
		must(link("gone", "elsewhere"));
		must(unlink("gone"));
		if (!strcmp(what, "replaced"))
			must(close(must(open("gone", O_CREAT | O_RDWR, 0644))));
	} else if (!strcmp(what, "long-memfd")) {
		fd = must(syscall(SYS_memfd_create, "long", 0));
		must(ftruncate(fd, 1ll << 48));
	} else if (!strcmp(what, "udp-socket"))
		fd = must(socket(AF_INET6, SOCK_DGRAM, 0));
	else if (!strcmp(what, "netlink-socket"))
		fd = must(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	else if (!strcmp(what, "vsock"))
		fd = can(socket(AF_VSOCK, SOCK_STREAM, 0));
	else if (!strcmp(what, "fanotify-decides"))
		fd = can(fanotify_init(FAN_CLASS_CONTENT, O_RDONLY));
	else if (!strcmp(what, "fanotify-all")) {
		fd = can(fanotify_init(FAN_CLASS_NOTIF, O_RDONLY));
		must(fanotify_mark(fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_CLOSE_WRITE, AT_FDCWD, "/dev/shm"));
	}
	else if (!strcmp(what, "perf")) {
		/* struct perf_event_attr: a software counter of the processor's clock. */
		uint32_t attr[32] = { 1, sizeof attr, 0 };
		fd = can(syscall(SYS_perf_event_open, attr, 0, -1, -1, 0));
	} else if (!strcmp(what, "userfaultfd")) {
		uint64_t api[3] = { 0xaa, 0, 0 };
		fd = can(syscall(SYS_userfaultfd, 0));
		must(ioctl(fd, 0xc018aa3f, api));
		/* An own one is in use: with features, or it is taken for what a killed dumper left. */
	} else if (!strcmp(what, "pidfd-outside"))
		fd = must(syscall(434, getppid(), 0));
	else if (!strcmp(what, "pidfd-thread"))
		fd = can(syscall(434, getpid(), O_EXCL));
	else if (!strcmp(what, "bpf")) {
		/* BPF_MAP_CREATE: an array of one word. */
		uint32_t attr[32] = { 2, 4, 4, 1 };
		fd = can(syscall(SYS_bpf, 0, attr, sizeof attr));
	} else if (!strcmp(what, "mqueue")) {
		fd = can(mq_open("/godwit-odd", O_CREAT | O_RDWR, 0600, NULL));
		mq_unlink("/godwit-odd");
	} else if (!strcmp(what, "namespace"))
		fd = must(open("/proc/self/ns/net", O_RDONLY));
	else if (!strcmp(what, "path-only")) {
		must(mkfifo("fifo", 0600));
		fd = must(open("fifo", O_PATH));
	}
	else if (!strcmp(what, "named-pipe-outside")) {
		must(mkfifo("fifo", 0600));
		outsider("fifo");
		fd = must(open("fifo", O_RDWR));
	} else if (!strcmp(what, "device"))
		fd = can(open("/dev/net/tun", O_RDWR));
	else if (!strcmp(what, "proc-outside")) {
		char path[64];
		snprintf(path, sizeof path, "/proc/%d/status", getppid());
		fd = must(open(path, O_RDONLY));
	} else if (!strcmp(what, "proc-thread"))
		fd = must(open("/proc/thread-self/status", O_RDONLY));
	else if (!strncmp(what, "lease-", 6)) {
		signal(SIGIO, SIG_IGN);
		fd = must(open("leased", O_CREAT | O_RDWR, 0600));
		close(fd);
		fd = must(open("leased", O_RDONLY));
		can(fcntl(fd, F_SETLEASE, F_RDLCK));
		keep = true;
		if (!strcmp(what, "lease-deleted"))
			must(unlink("leased"));
		else if (open("leased", O_WRONLY | O_NONBLOCK) != -1)
			broken("the lease was not broken");
	} else if (!strcmp(what, "sysv-shm")) {
		int id = must(shmget(IPC_PRIVATE, PAGE, 0600));
		void *at = shmat(id, NULL, 0);
		must(shmctl(id, IPC_RMID, NULL));
		if (at == (void *)-1)
			broken("shmat");
		say("AT %lx", (unsigned long)at);
	} else if (!strcmp(what, "secret")) {
		fd = can(syscall(447, 0));
		must(ftruncate(fd, PAGE));
		char *at = must(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
		*at = 1;
	} else if (!strcmp(what, "pending-trap")) {
		sigaddset(&none, SIGTRAP);
		must(sigprocmask(SIG_BLOCK, &none, NULL));
		must(raise(SIGTRAP));
	} else if (!strcmp(what, "deadline")) {
		/* struct sched_attr: 1 of 100 ms. */
		uint64_t attr[7] = { 48 | 6ull << 32, 0, 0, 1000000, 100000000, 100000000, 0 };
		can(syscall(SYS_sched_setattr, 0, attr, 0));
	} else if (!strcmp(what, "traced")) {
		pid_t pid = must(fork());
		if (pid == 0) {
			/* A daemon, since a child would be a part of the tree. */
			if (fork())
				_exit(0);
			setsid();
			must(ptrace(PTRACE_SEIZE, victim_pid, NULL, NULL));
			close(open("traced", O_CREAT | O_WRONLY, 0600));
			for (int i = 0; i < LIFE_SECONDS * 100 && !kill(victim_pid, 0) && access("check", F_OK); i++)
				nap_ms(10);
			_exit(0);
		}
		must(waitpid(pid, NULL, 0));
		while (access("traced", F_OK))
			nap_ms(5);
	} else if (!strncmp(what, "unshare-", 8)) {
		static const struct { const char *name; int flag; } kinds[] = {
			{ "net", 0x40000000 }, { "mnt", 0x20000 }, { "ipc", 0x8000000 }, { "uts", 0x4000000 },
			{ "user", 0x10000000 }, { "cgroup", 0x2000000 } };
		bool known = false;
		for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
			if (!strcmp(what + 8, kinds[i].name)) {
				can(unshare(kinds[i].flag));
				known = true;
			}
		if (!known)
			broken("odd %s", what);
	} else if (!strncmp(what, "thread-", 7)) {
		/* What a thread of its own has unshared alone. */
		long flag = !strcmp(what, "thread-files") ? CLONE_FILES
			  : !strcmp(what, "thread-fs")    ? CLONE_FS
			  : !strcmp(what, "thread-net")   ? CLONE_NEWNET
			  : !strcmp(what, "thread-mnt")   ? CLONE_NEWNS
							  : 0;
		pthread_t thread;
		int done;
		if (!flag)
			broken("odd %s", what);
		must0(pthread_create(&thread, NULL, unshare_alone, (void *)flag));
		while (!(done = atomic_load(&unshared)))
			nap_ms(2);
		errno = -done;
		can(done < 0 ? -1 : 0);
	} else if (!strcmp(what, "late-packets")) {
		/* Opened by a thread of its own as soon as a file `open` is there. */
		pthread_t opener;
		must0(pthread_create(&opener, NULL, open_late, NULL));
	} else
		broken("odd %s", what);
	if (fd >= 0) {
		must(dup2(fd, 77));
		if (!keep)
			close(fd);
	}
	victim_ready();
	victim_wait();
	if (fd >= 0 && fcntl(77, F_GETFD) == -1)
		fail("fd 77 is gone");
	victim_end();
}
