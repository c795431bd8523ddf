/*
 * Queues of pending signals: every kind of siginfo, more than one queue can hold of a standard signal, hundreds of a
 * real-time signal, stop signals that are blocked; to the process and to a thread. Each must come back once, in order,
 * byte by byte.
 */
#include "victim.h"

#define MANY 300
#define BURST 50

/* A siginfo as the kernel keeps it: the rest of the 128 bytes is zero. */
union info {
	siginfo_t si;
	uint8_t bytes[128];
};
#define KEPT 48

struct sent {
	int number, code;
};
/* The codes that name each member of the union: man 2 sigaction. Not SIGTRAP, which no restore can give back. */
static const struct sent to_process[] = {
	{ SIGUSR1, SI_USER },	  { SIGUSR2, SI_QUEUE }, { SIGALRM, SI_KERNEL }, { SIGIO, POLL_IN },
	{ SIGCHLD, CLD_EXITED },  { SIGSEGV, SEGV_MAPERR }, { SIGBUS, BUS_ADRERR }, { SIGFPE, FPE_INTDIV },
	{ SIGILL, ILL_ILLOPC },	  { SIGSYS, 1 /* SYS_SECCOMP */ }, { SIGTSTP, SI_USER }, { SIGTTIN, SI_KERNEL },
	{ SIGPIPE, SI_USER },	  { SIGHUP, SI_TKILL }, { 35, SI_TIMER }, { 36, SI_MESGQ },
	{ 37, SI_ASYNCIO },	  { 38, SI_SIGIO }, { 39, SI_QUEUE }, { 64, SI_QUEUE },
};
static const struct sent to_thread[] = {
	{ SIGUSR1, SI_TKILL }, { SIGTERM, SI_QUEUE }, { SIGTTOU, SI_USER }, { SIGXCPU, SI_KERNEL },
	{ 40, SI_TIMER },      { 41, SI_MESGQ }, { 42, SI_QUEUE }, { 64, SI_TKILL },
};
#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

static atomic_int ready, go;
static atomic_int worker_tid;

/* Every byte behind number, errno and code differs from record to record. */
static void make(union info *info, struct sent sent, uint64_t seed)
{
	memset(info, 0, sizeof *info);
	for (size_t i = 16; i < KEPT; i++)
		info->bytes[i] = mix(seed * 64 + i);
	info->si.si_signo = sent.number;
	info->si.si_errno = (int)(seed % 97);
	info->si.si_code = sent.code;
	/* A sender's pid is translated for readers in other namespaces; the kernel takes any. */
	if (sent.code <= 0 && sent.code != SI_TIMER)
		info->si.si_pid = victim_pid;
}

static void send_process(struct sent sent, uint64_t seed)
{
	union info info;
	make(&info, sent, seed);
	must(syscall(SYS_rt_sigqueueinfo, victim_pid, sent.number, &info));
}

static void send_thread(struct sent sent, uint64_t seed)
{
	union info info;
	make(&info, sent, seed);
	must(syscall(SYS_rt_tgsigqueueinfo, victim_pid, worker_tid, sent.number, &info));
}

static int take(int number, union info *got)
{
	uint64_t set = 1ull << (number - 1);
	struct timespec none = { 0, 0 };
	memset(got, 0, sizeof *got);
	return syscall(SYS_rt_sigtimedwait, &set, got, &none, 8);
}

static void expect_sent(const char *what, struct sent sent, uint64_t seed)
{
	union info expected, got;
	make(&expected, sent, seed);
	expect_at(what, sent.number, sent.number, take(sent.number, &got));
	for (size_t i = 0; i < sizeof got; i++)
		if (got.bytes[i] != expected.bytes[i]) {
			fail("%s[%d] siginfo byte %zu expected 0x%x got 0x%x", what, sent.number, i, expected.bytes[i],
			     got.bytes[i]);
			return;
		}
}

static void expect_none(const char *what, int number)
{
	union info got;
	int taken = take(number, &got);
	if (taken != -1)
		fail("%s: one more of signal %d", what, number);
}

static void *work(void *argument)
{
	(void)argument;
	worker_tid = thread_id();
	/* Only a thread itself may send itself the codes of the kernel. */
	for (size_t i = 0; i < COUNT(to_thread); i++)
		send_thread(to_thread[i], 1000 + i);
	for (int i = 0; i < BURST; i++)
		send_thread((struct sent){ 43, SI_QUEUE }, 5000 + i);
	ready = 1;
	while (!go)
		nap_ms(5);
	for (size_t i = 0; i < COUNT(to_thread); i++)
		expect_sent("private", to_thread[i], 1000 + i);
	for (int i = 0; i < BURST; i++)
		expect_sent("private burst", (struct sent){ 43, SI_QUEUE }, 5000 + i);
	go = 2;
	return NULL;
}

int main(void)
{
	pthread_t thread;
	uint64_t all = ~0ull;
	victim_start();
	must(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, 8));
	must0(pthread_create(&thread, NULL, work, NULL));
	must(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, 8));
	while (!ready)
		nap_ms(1);
	/* A standard signal is queued once, the first one's record is kept; real-time signals all are, in order. */
	for (size_t i = 0; i < COUNT(to_process); i++) {
		send_process(to_process[i], i);
		if (to_process[i].number < 32)
			send_process(to_process[i], 500 + i);
	}
	for (int i = 0; i < MANY; i++)
		send_process((struct sent){ 50, SI_QUEUE }, 2000 + i);
	victim_ready();
	victim_wait();

	/* The worker takes its own first: a thread's queue is asked before that of the process. */
	go = 1;
	while (go == 1)
		nap_ms(1);
	for (size_t i = 0; i < COUNT(to_process); i++) {
		expect_sent("shared", to_process[i], i);
		expect_none("shared", to_process[i].number);
	}
	for (int i = 0; i < MANY; i++)
		expect_sent("shared burst", (struct sent){ 50, SI_QUEUE }, 2000 + i);
	expect_none("shared burst", 50);
	must0(pthread_join(thread, NULL));
	victim_end();
}
