/*
 * Signals: an action, with its own mask and flags, for every signal; blocked masks and alternate stacks
 * that differ by thread; private and shared pending signals with their values, in order.
 *
 * The actions are set and read by system call, so that those of libc's two own signals count as well.
 */
#include "victim.h"

#define N 3

struct kernel_action {
	uintptr_t handler;
	unsigned long flags;
	uintptr_t restorer;
	uint64_t mask;
};

#define SA_RESTORER_FLAG 0x04000000ul
#define BIT(n) (1ull << ((n) - 1))

static struct kernel_action actions[65];
static atomic_int handled_signal;
static atomic_uintptr_t handled_at, handled_value;

static void handler(int number, siginfo_t *info, void *context)
{
	(void)context;
	handled_at = (uintptr_t)__builtin_frame_address(0);
	handled_value = (uintptr_t)info->si_value.sival_ptr;
	handled_signal = number;
}
static void handler_b(int number, siginfo_t *info, void *context)
{
	handler(number + 1000, info, context);
}

static int raw_action(int number, const struct kernel_action *set, struct kernel_action *old)
{
	return syscall(SYS_rt_sigaction, number, set, old, 8);
}

/* libc knows the restorer; it is learned from an action set by it. */
static uintptr_t libc_restorer(void)
{
	struct sigaction plain = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	struct kernel_action got;
	must(sigaction(SIGUSR1, &plain, NULL));
	must(raw_action(SIGUSR1, NULL, &got));
	return got.restorer;
}

static void set_actions(void)
{
	static const unsigned long flags[] = { SA_SIGINFO, SA_SIGINFO | SA_RESTART, SA_SIGINFO | SA_ONSTACK,
					       SA_SIGINFO | SA_NODEFER, SA_SIGINFO | SA_RESETHAND | SA_ONSTACK };
	uintptr_t restorer = libc_restorer();
	for (int n = 1; n <= 64; n++) {
		if (n == SIGKILL || n == SIGSTOP)
			continue;
		struct kernel_action *a = &actions[n];
		a->handler = (uintptr_t)(n % 2 ? handler : handler_b);
		a->flags = flags[n % 5] | SA_RESTORER_FLAG;
		a->restorer = restorer;
		a->mask = mix(n) & ~(BIT(SIGKILL) | BIT(SIGSTOP));
		if (n == SIGPIPE || n == SIGWINCH)
			*a = (struct kernel_action){ .handler = (uintptr_t)SIG_IGN };
		if (n == SIGURG)
			*a = (struct kernel_action){ 0 };
		if (n == SIGCHLD)
			a->flags |= SA_NOCLDSTOP | SA_NOCLDWAIT;
		must(raw_action(n, a, NULL));
	}
}

static void check_actions(void)
{
	for (int n = 1; n <= 64; n++) {
		struct kernel_action got = { 0 };
		if (n == SIGKILL || n == SIGSTOP)
			continue;
		must(raw_action(n, NULL, &got));
		expect_at("handler", n, actions[n].handler, got.handler);
		expect_at("action flags", n, actions[n].flags, got.flags);
		expect_at("action mask", n, actions[n].mask, got.mask);
		expect_at("restorer", n, actions[n].restorer, got.restorer);
	}
}

struct task {
	pthread_t thread;
	pid_t tid;
	uint64_t mask;
	stack_t stack;
	int index;
};
static struct task tasks[N + 1];
static atomic_int set_up, phase, turn;

static void queue_private(pid_t tid, int number, uintptr_t value)
{
	siginfo_t info = { .si_signo = number, .si_code = SI_QUEUE };
	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_value.sival_ptr = (void *)value;
	must(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, number, &info));
}

static void set_task(struct task *t, int index)
{
	t->index = index;
	t->tid = thread_id();
	/* Only signals that nobody sends are left open. */
	t->mask = ~(BIT(SIGKILL) | BIT(SIGSTOP) | BIT(20 + index) | BIT(50 + index)) & ~BIT(SIGHUP);
	must(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &t->mask, NULL, 8));
	t->stack.ss_size = 32768 + index * 8192;
	t->stack.ss_sp = must(mmap(NULL, t->stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	must(sigaltstack(&t->stack, NULL));
	for (int i = 0; i < 5; i++)
		queue_private(t->tid, 40 + index, 0x1000 * index + i);
	queue_private(t->tid, SIGUSR1, 0x77000 + index);
}

static void expect_pending(const char *field, int number, uintptr_t value)
{
	siginfo_t info;
	/* A raw set: libc hides its two signals. */
	uint64_t set = BIT(number);
	struct timespec none = { 0, 0 };
	int got = syscall(SYS_rt_sigtimedwait, &set, &info, &none, 8);
	expect(field, number, got);
	if (got == number) {
		expect(field, value, (uintptr_t)info.si_value.sival_ptr);
		expect("si_code", (unsigned)SI_QUEUE, (unsigned)info.si_code);
		expect("si_pid", victim_pid, info.si_pid);
	}
}

static void check_task(struct task *t)
{
	uint64_t mask = 0;
	stack_t stack;
	must(syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &mask, 8));
	expect_at("blocked mask", t->index, t->mask, mask);
	must(sigaltstack(NULL, &stack));
	expect_at("altstack address", t->index, (uintptr_t)t->stack.ss_sp, (uintptr_t)stack.ss_sp);
	expect_at("altstack size", t->index, t->stack.ss_size, stack.ss_size);
	expect_at("altstack flags", t->index, 0, stack.ss_flags);
	for (int i = 0; i < 5; i++)
		expect_pending("private real-time signal", 40 + t->index, 0x1000 * t->index + i);
	expect_pending("private SIGUSR1", SIGUSR1, 0x77000 + t->index);
	/* A signal with SA_ONSTACK arrives on this thread's own alternate stack. */
	uint64_t open = ~BIT(62);
	handled_signal = 0;
	must(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &open, NULL, 8));
	queue_private(t->tid, 62, 0xabcd00 + t->index);
	expect_at("delivered", t->index, 1062, handled_signal);
	expect_at("delivered value", t->index, 0xabcd00 + t->index, handled_value);
	if (handled_at < (uintptr_t)t->stack.ss_sp || handled_at >= (uintptr_t)t->stack.ss_sp + t->stack.ss_size)
		fail("alternate stack of thread %d is not used: frame 0x%" PRIxPTR, t->index, handled_at);
}

static void *work(void *argument)
{
	struct task *t = argument;
	set_task(t, t - tasks);
	set_up++;
	while (phase == 0)
		nap_ms(5);
	while (turn != t->index)
		nap_ms(1);
	check_task(t);
	turn++;
	return NULL;
}

int main(void)
{
	victim_start();
	/* All are blocked before the threads start, so that no shared signal is taken early. */
	set_task(&tasks[N], N);
	for (int i = 0; i < N; i++)
		must0(pthread_create(&tasks[i].thread, NULL, work, &tasks[i]));
	while (set_up != N)
		nap_ms(1);
	/* Starting threads also opens libc's own two signals in the caller's mask. */
	must(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &tasks[N].mask, NULL, 8));
	/* After the threads, since starting the first one makes libc set an action of its own. */
	set_actions();
	for (int i = 0; i < 7; i++) {
		union sigval value = { .sival_ptr = (void *)(0x5000ul + i) };
		must(sigqueue(getpid(), 60, value));
	}
	must(sigqueue(getpid(), SIGTERM, (union sigval){ .sival_ptr = (void *)0x9999 }));
	must(kill(getpid(), SIGALRM));

	victim_ready();
	victim_wait();

	check_actions();
	for (int i = 0; i < 7; i++)
		expect_pending("shared real-time signal", 60, 0x5000 + i);
	expect_pending("shared SIGTERM", SIGTERM, 0x9999);
	siginfo_t info;
	uint64_t set = BIT(SIGALRM);
	struct timespec none = { 0, 0 };
	expect("shared SIGALRM", SIGALRM, syscall(SYS_rt_sigtimedwait, &set, &info, &none, 8));
	expect("SIGALRM si_code", SI_USER, info.si_code);
	phase = 1;
	for (int i = 0; i < N; i++)
		must0(pthread_join(tasks[i].thread, NULL));
	check_task(&tasks[N]);
	victim_end();
}
