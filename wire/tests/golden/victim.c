/*
 * The process whose images lie beside this file: a tree of three tasks and a thread that holds one of each
 * kind of descriptor, mapping, timer and signal state. Written by CRIU 4.2.1 and 4.1.1:
 *
 *     mkdir -p /tmp/gold/img && cc -O1 -static -o /tmp/gold/gw victim.c -lutil -lpthread && cd /tmp/gold
 *     setsid ./gw </dev/null >/dev/null 2>&1 & sleep 1
 *     lab criu --v 4.2 dump -t $(pgrep -f -x ./gw | head -1) -D /tmp/gold/img --file-locks
 *
 * Page contents and logs were left out.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static void on_signal(int signal) { (void)signal; }

static void *worker(void *arg)
{
	(void)arg;
	for (;;)
		pause();
}

static void child(void)
{
	struct sock_filter allow[] = { { BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW } };
	struct sock_fprog program = { 1, allow };

	if (fork() == 0)
		_exit(3);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
	for (;;)
		pause();
}

static void descriptors(const struct itimerspec *timer)
{
	int ends[2], master, slave;
	sigset_t blocked;
	union sigval value = { .sival_int = 42 };
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 0x1122334455667788 };

	pipe(ends);
	write(ends[1], "hello pipe", 10);
	int counter = eventfd(7, EFD_NONBLOCK);
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event);
	epoll_ctl(epoll, EPOLL_CTL_ADD, counter, &event);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR2);
	sigprocmask(SIG_BLOCK, &blocked, 0);
	signalfd(-1, &blocked, SFD_CLOEXEC);
	sigqueue(getpid(), SIGUSR2, value);
	timerfd_settime(timerfd_create(CLOCK_MONOTONIC, 0), 0, timer, 0);
	inotify_add_watch(inotify_init1(IN_NONBLOCK), "/tmp", IN_CREATE);
	int ghost = open("/tmp/gold/ghost", O_CREAT | O_RDWR, 0600);
	write(ghost, "ghost bytes", 11);
	unlink("/tmp/gold/ghost");
	int locked = open("/tmp/gold/locked", O_CREAT | O_RDWR, 0600);
	flock(locked, LOCK_EX);
	fcntl(locked, F_SETOWN, getpid());
	fcntl(locked, F_SETSIG, SIGUSR1);
	mkfifo("/tmp/gold/fifo", 0600);
	write(open("/tmp/gold/fifo", O_RDWR), "fifo", 4);
	openpty(&master, &slave, 0, 0, 0);
	write(slave, "tty out", 7);
}

static void memory(void)
{
	int memfd = memfd_create("gold", MFD_ALLOW_SEALING);

	ftruncate(memfd, 8192);
	write(memfd, "memory", 6);
	mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	char *shared = mmap(0, 16384, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	shared[0] = 1;
	shared[8192] = 2;
	char *private = mmap(0, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	private[0] = 1;
	madvise(private, 16384, MADV_DONTFORK);
}

int main(void)
{
	struct itimerspec timer = { { 100, 5 }, { 5000, 7 } };
	struct itimerval interval = { { 3000, 1 }, { 4000, 2 } };
	struct sigevent notify = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM };
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_ONSTACK | SA_RESTART };
	stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 };
	timer_t posix;
	pthread_t thread;

	chdir("/");
	descriptors(&timer);
	memory();
	setitimer(ITIMER_VIRTUAL, &interval, 0);
	timer_create(CLOCK_MONOTONIC, &notify, &posix);
	timer_settime(posix, 0, &timer, 0);
	sigaltstack(&stack, 0);
	sigaddset(&action.sa_mask, SIGINT);
	sigaction(SIGUSR1, &action, 0);
	pthread_create(&thread, 0, worker, 0);
	pthread_setname_np(thread, "worker");
	if (fork() == 0)
		child();
	for (;;)
		pause();
}
