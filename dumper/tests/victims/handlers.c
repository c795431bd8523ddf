/*
 * Threads that are inside signal handlers: one on its alternate stack, one in a handler within the same handler, one in
 * three handlers on both kinds of stack, one whose handler interrupted a call. They go on from there, see the masks and flags of where they are, and
 * come back to what they did before.
 */
#include "victim.h"

#define N 4
#define BIT(n) (1ull << ((n) - 1))

static const char *names[N] = { "alternate stack", "nested", "nested on both stacks", "in a call" };

struct task {
	pthread_t thread;
	int index;
	pid_t tid;
	stack_t stack;
	atomic_int depth, deepest, back;
	uint64_t mask;
	uint64_t kept[4];
};
static struct task tasks[N];
static _Thread_local struct task *self;
static atomic_int released;

static uint64_t mask_now(void)
{
	uint64_t mask = 0;
	must(syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &mask, 8));
	return mask;
}

static void wait_here(void)
{
	/* A short sleep and some arithmetic in turn, so that the freeze finds it in either. */
	volatile uint64_t spin = 0;
	while (!released) {
		for (int i = 0; i < 20000; i++)
			spin += i;
		nap_ms(2);
	}
}

/* What holds in a handler: on which stack it runs, and that the stack cannot be changed while in use. */
static void expect_inside(const char *when, bool on_alternate, uint64_t mask)
{
	stack_t now, other = { .ss_sp = self->stack.ss_sp, .ss_size = self->stack.ss_size };
	must(sigaltstack(NULL, &now));
	if ((bool)(now.ss_flags & SS_ONSTACK) != on_alternate)
		fail("%s, %s: stack flags %d", names[self->index], when, now.ss_flags);
	expect(names[self->index], (uintptr_t)self->stack.ss_sp, (uintptr_t)now.ss_sp);
	if (on_alternate && (sigaltstack(&other, NULL) != -1 || errno != EPERM))
		fail("%s, %s: the alternate stack could be changed", names[self->index], when);
	uint64_t got = mask_now();
	if (got != mask)
		fail("%s, %s: mask 0x%" PRIx64 " and not 0x%" PRIx64, names[self->index], when, got, mask);
}

/* Signal 40 is SA_ONSTACK, 41 not, 42 has SA_NODEFER and SA_ONSTACK; each blocks one more of 50 to 52. */
static void handler(int number, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	uint64_t before = mix(number + self->index), mask = mask_now();
	bool alternate = number != 41;
	self->depth++;
	expect_inside("at the start", alternate, mask);
	if (self->depth < self->deepest)
		must(syscall(SYS_tgkill, victim_pid, self->tid, self->index == 2 && self->depth == 1 ? 40 : 42));
	else
		wait_here();
	expect_inside("at the end", alternate, mask);
	expect("a local variable", mix(number + self->index), before);
	self->depth--;
}

static void *work(void *argument)
{
	struct task *t = self = argument;
	t->tid = thread_id();
	t->stack.ss_size = 65536;
	t->stack.ss_sp = must(mmap(NULL, t->stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	must(sigaltstack(&t->stack, NULL));
	t->mask = BIT(44 + t->index);
	must(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &t->mask, NULL, 8));
	for (int i = 0; i < 4; i++)
		t->kept[i] = mix(100 * t->index + i);
	t->deepest = t->index == 1 ? 2 : t->index == 2 ? 3 : 1;
	if (t->index == 3) {
		/* It interrupts this call, which ends with EINTR once the handler is left. */
		errno = 0;
		if (pause() != -1 || errno != EINTR)
			fail("pause ended with %s", strerror(errno));
	} else {
		must(syscall(SYS_tgkill, victim_pid, t->tid, (int[]){ 40, 42, 41 }[t->index]));
	}
	expect("depth", 0, t->depth);
	expect_inside("afterwards", false, t->mask);
	for (int i = 0; i < 4; i++)
		expect_at("kept", i, mix(100 * t->index + i), t->kept[i]);
	t->back = 1;
	return NULL;
}

static void act(int number, int flags, uint64_t mask)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags };
	sigemptyset(&action.sa_mask);
	for (int n = 1; n <= 64; n++)
		if (mask & BIT(n))
			sigaddset(&action.sa_mask, n);
	must(sigaction(number, &action, NULL));
}

int main(void)
{
	victim_start();
	act(40, SA_ONSTACK, BIT(50));
	act(41, 0, BIT(51));
	act(42, SA_ONSTACK | SA_NODEFER, BIT(52));
	for (int i = 0; i < N; i++) {
		tasks[i].index = i;
		must0(pthread_create(&tasks[i].thread, NULL, work, &tasks[i]));
	}
	nap_ms(100);
	must(syscall(SYS_tgkill, victim_pid, tasks[3].tid, 40));
	for (int i = 0; i < N; i++)
		while (tasks[i].depth == 0 || tasks[i].depth != tasks[i].deepest)
			nap_ms(1);
	victim_ready();
	victim_wait();
	for (int i = 0; i < N; i++) {
		expect_at("depth", i, tasks[i].deepest, tasks[i].depth);
		expect_at("back", i, 0, tasks[i].back);
	}
	released = 1;
	for (int i = 0; i < N; i++)
		must0(pthread_join(tasks[i].thread, NULL));
	victim_end();
}
