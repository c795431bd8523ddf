/*
 * A program that lives on the values in its registers: general, x87, SSE, AVX or AVX-512, mask and control
 * registers. It loads them, spins or sleeps in the kernel, stores them and compares, for ever. Anything that
 * touches its registers, signal mask, alternate stack or memory map shows as a line that begins with FAIL, and
 * ends it. Progress is counted in a file that is mapped shared: word 0 counts rounds, word 1 says that it failed,
 * word 2 counts signals.
 *
 * usage: storm spin|sleep|thread|corner|filtered|killing|strict PROGRESS_FILE
 *   spin    in user code all the time
 *   sleep   mostly in clock_nanosleep, with the vector registers live across the call
 *   thread  as spin, in a second thread, while the main thread sleeps
 *   corner  as spin, with the stack pointer a few bytes above the lowest page of the main stack
 *   filtered  as spin, under a seccomp filter that answers EPERM to what the tracer borrows it for
 *   killing   as spin, under one that ends it instead
 *   strict    as spin, in strict seccomp mode, without signals and without a look at what a call would have to tell
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
/* musl comes without the kernel's headers. */
#ifdef __GLIBC__
#include <linux/filter.h>
#include <linux/seccomp.h>
#endif

struct state {
	uint64_t gpr[14];		/* 0: rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r12 r13 r14 r15 */
	uint64_t k[8];			/* 112 */
	uint8_t st[8][16];		/* 176 */
	uint32_t mxcsr, fcw;		/* 304 */
	uint8_t pad[8];
	uint8_t vector[32][64];		/* 320 */
};
_Static_assert(__builtin_offsetof(struct state, vector) == 320, "the assembly below counts on it");

/* hold_KIND(in, out, spins, sleep): loads everything from in, spins or sleeps, stores everything to out. */
#define GPR_LOAD                                                                                             \
	"mov 0(%rdi),%rax; mov 8(%rdi),%rbx; mov 16(%rdi),%rcx; mov 24(%rdi),%rdx; mov 32(%rdi),%rsi;"       \
	"mov 48(%rdi),%rbp; mov 56(%rdi),%r8; mov 64(%rdi),%r9; mov 72(%rdi),%r10; mov 80(%rdi),%r12;"       \
	"mov 88(%rdi),%r13; mov 96(%rdi),%r14; mov 104(%rdi),%r15; mov 40(%rdi),%rdi;"
#define GPR_STORE                                                                                            \
	"mov %rax,0(%r11); mov %rbx,8(%r11); mov %rcx,16(%r11); mov %rdx,24(%r11); mov %rsi,32(%r11);"       \
	"mov %rdi,40(%r11); mov %rbp,48(%r11); mov %r8,56(%r11); mov %r9,64(%r11); mov %r10,72(%r11);"       \
	"mov %r12,80(%r11); mov %r13,88(%r11); mov %r14,96(%r11); mov %r15,104(%r11);"
#define X87_LOAD                                                                                             \
	"fninit; fldcw 308(%rdi); ldmxcsr 304(%rdi); fldt 176(%rdi); fldt 192(%rdi); fldt 208(%rdi);"        \
	"fldt 224(%rdi); fldt 240(%rdi); fldt 256(%rdi); fldt 272(%rdi); fldt 288(%rdi);"
#define X87_STORE                                                                                            \
	"fnstcw 308(%r11); stmxcsr 304(%r11); fstpt 288(%r11); fstpt 272(%r11); fstpt 256(%r11);"            \
	"fstpt 240(%r11); fstpt 224(%r11); fstpt 208(%r11); fstpt 192(%r11); fstpt 176(%r11); fninit;"
#define EACH16(M, P) M(0, P) M(1, P) M(2, P) M(3, P) M(4, P) M(5, P) M(6, P) M(7, P) M(8, P) M(9, P) M(10, P) \
	M(11, P) M(12, P) M(13, P) M(14, P) M(15, P)
#define EACH32(M, P) EACH16(M, P) M(16, P) M(17, P) M(18, P) M(19, P) M(20, P) M(21, P) M(22, P) M(23, P)    \
	M(24, P) M(25, P) M(26, P) M(27, P) M(28, P) M(29, P) M(30, P) M(31, P)
#define EACH_K(M) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define X_LOAD(n, P) "movups 320+64*" #n "(%rdi),%xmm" #n ";"
#define X_STORE(n, P) "movups %xmm" #n ",320+64*" #n "(%r11);"
#define Y_LOAD(n, P) "vmovups 320+64*" #n "(%rdi),%ymm" #n ";"
#define Y_STORE(n, P) "vmovups %ymm" #n ",320+64*" #n "(%r11);"
#define Z_LOAD(n, P) "vmovups 320+64*" #n "(%rdi),%zmm" #n ";"
#define Z_STORE(n, P) "vmovups %zmm" #n ",320+64*" #n "(%r11);"
#define K_LOAD(n) "kmovq 112+8*" #n "(%rdi),%k" #n ";"
#define K_STORE(n) "kmovq %k" #n ",112+8*" #n "(%r11);"

#define HOLD(name, load, store)                                                                              \
	__asm__(".pushsection .text; .globl hold_" name "; .type hold_" name ",@function; hold_" name ":"    \
		"push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rsi; push %rcx; push %rdx;" \
		X87_LOAD load                                                                                \
		"test %rcx,%rcx; jnz 3f;" GPR_LOAD                                                           \
		"1: decq (%rsp); jnz 1b; mov 16(%rsp),%r11;" GPR_STORE "jmp 4f;"                             \
		/* clock_nanosleep(CLOCK_MONOTONIC, 0, sleep, NULL): what it leaves alone is checked too. */ \
		"3:" GPR_LOAD "mov $230,%eax; mov $1,%edi; xor %esi,%esi; mov 8(%rsp),%rdx; xor %r10d,%r10d;" \
		"syscall; mov 16(%rsp),%r11;" GPR_STORE                                                      \
		"4:" store X87_STORE                                                                         \
		"add $24,%rsp; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret;"             \
		".size hold_" name ",.-hold_" name "; .popsection");

HOLD("sse", EACH16(X_LOAD, ), EACH16(X_STORE, ))
HOLD("avx", EACH16(Y_LOAD, ), EACH16(Y_STORE, ) "vzeroupper;")
HOLD("avx512", EACH32(Z_LOAD, ) EACH_K(K_LOAD), EACH32(Z_STORE, ) EACH_K(K_STORE) "vzeroupper;")

typedef void hold_function(const struct state *, struct state *, uint64_t spins, const struct timespec *);
extern hold_function hold_sse, hold_avx, hold_avx512;

static hold_function *hold;
static int vectors, vector_bytes, masks;
static volatile uint64_t *progress;
static sigset_t mask;
static stack_t altstack;
static volatile int has_altstack;
static int is_sleeper, is_strict;
static const char *mode;

static void failed(const char *what, long index)
{
	progress[1] = 1;
	dprintf(1, "FAIL %s[%ld]\n", what, index);
	_exit(1);
}

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static void fill(struct state *s, uint64_t *seed)
{
	memset(s, 0, sizeof *s);
	for (int i = 0; i < 14; i++)
		s->gpr[i] = next_random(seed);
	for (int i = 1; i < 8; i++)
		s->k[i] = masks ? next_random(seed) : 0;
	for (int i = 0; i < 8; i++) {
		uint64_t mantissa = next_random(seed) | 1ull << 63;
		uint16_t exponent = 0x3fff + i;
		memcpy(s->st[i], &mantissa, 8);
		memcpy(s->st[i] + 8, &exponent, 2);
	}
	/* Exceptions masked; a rounding mode, flush-to-zero and precision that nothing sets by default. */
	s->mxcsr = 0x1f80 | 3u << 13 | 1u << 15;
	s->fcw = 0x007f | 0x0200 | 2u << 10;
	for (int i = 0; i < vectors; i++)
		for (int j = 0; j < vector_bytes; j += 8) {
			uint64_t word = next_random(seed);
			memcpy(s->vector[i] + j, &word, 8);
		}
}

static void compare(const struct state *want, const struct state *got)
{
	for (int i = 0; i < 14; i++) {
		/* A call returns in rax, clobbers rcx, and had its arguments in rdi, rsi, rdx and r10. */
		uint64_t expected = want->gpr[i];
		if (is_sleeper && (i == 0 || i == 4 || i == 9))
			expected = 0;
		if (is_sleeper && i == 5)
			expected = 1;
		if (is_sleeper && (i == 2 || i == 3))
			continue;
		if (got->gpr[i] != expected) {
			dprintf(1, "register %d is 0x%" PRIx64 "\n", i, got->gpr[i]);
			failed("gpr", i);
		}
	}
	for (int i = 1; i < 8; i++)
		if (want->k[i] != got->k[i])
			failed("k", i);
	for (int i = 0; i < 8; i++)
		if (memcmp(want->st[i], got->st[i], 10))
			failed("st", i);
	for (int i = 0; i < vectors; i++)
		if (memcmp(want->vector[i], got->vector[i], vector_bytes))
			failed("vector", i);
	if ((want->mxcsr ^ got->mxcsr) & 0xffc0)
		failed("mxcsr", got->mxcsr);
	if (want->fcw != got->fcw)
		failed("fcw", got->fcw);
}

static int64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

static void compare_rest(void)
{
	sigset_t now;
	stack_t stack;
	pthread_sigmask(SIG_SETMASK, NULL, &now);
	if (memcmp(&now, &mask, 8))
		failed("signal mask", 0);
	sigaltstack(NULL, &stack);
	if (stack.ss_sp != altstack.ss_sp || stack.ss_size != altstack.ss_size || stack.ss_flags != altstack.ss_flags)
		failed("sigaltstack", 0);
}

static void on_alarm(int number)
{
	(void)number;
	char here;
	if (!has_altstack)
		return;
	if (&here < (char *)altstack.ss_sp || &here >= (char *)altstack.ss_sp + altstack.ss_size)
		failed("handler off its stack", 0);
	progress[2]++;
}

static __attribute__((noreturn)) void *live(void *unused)
{
	(void)unused;
	static __attribute__((aligned(64))) struct state in, out;
	uint64_t seed = 88172645463325252ull;
	struct timespec nap = { 0, 700000 };

	altstack = (stack_t){ .ss_sp = aligned_alloc(4096, 65536), .ss_size = 65536 };
	sigaltstack(&altstack, NULL);
	sigaltstack(NULL, &altstack);
	has_altstack = 1;
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigaddset(&mask, SIGRTMIN + 7);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	if (is_strict && prctl(PR_SET_SECCOMP, 1))
		failed("strict mode", errno);
	for (;;) {
		fill(&in, &seed);
		memset(&out, 0, sizeof out);
		int64_t before = is_sleeper ? now_us() : 0;
		hold(&in, &out, 150000, is_sleeper ? &nap : NULL);
		if (is_sleeper && now_us() - before < 700)
			failed("slept short, us", now_us() - before);
		compare(&in, &out);
		if (!is_strict)
			compare_rest();
		progress[0]++;
	}
}

/* Puts itself under a filter that gives `value` for what a tracer borrows it for, and allows the rest. */
static void filter(uint32_t value)
{
#ifdef __GLIBC__
	static const int borrowed[] = { SYS_mmap, SYS_munmap, SYS_prctl, SYS_getpid, SYS_pselect6, SYS_rt_sigaction };
	struct sock_filter code[32] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0) };
	int n = 1;
	for (size_t i = 0; i < sizeof borrowed / sizeof *borrowed; i++) {
		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, borrowed[i], 0, 1);
		code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, value);
	}
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { n, code };
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		failed("seccomp", errno);
#else
	failed("no filters here", value);
#endif
}

/* Goes down the main stack nearly to the lowest byte of it that is mapped, and lives there. */
static __attribute__((noreturn)) void dive(uintptr_t floor)
{
	volatile char here[(uintptr_t)__builtin_frame_address(0) - floor - 1500];
	here[0] = 1;
	(void)here[0];
	live(NULL);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	mode = argv[1];
	int fd = open(argv[2], O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, 4096))
		return 2;
	progress = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	/* Without a test that looks after it, it ends by itself. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(0);
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx512bw"))
		hold = hold_avx512, vectors = 32, vector_bytes = 64, masks = 1;
	else if (__builtin_cpu_supports("avx"))
		hold = hold_avx, vectors = 16, vector_bytes = 32;
	else
		hold = hold_sse, vectors = 16, vector_bytes = 16;
	is_sleeper = !strcmp(mode, "sleep");
	is_strict = !strcmp(mode, "strict");
	if (!is_sleeper && !is_strict) {
		/* Signals in between; a sleep would rightly end with EINTR by them. */
		struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_ONSTACK | SA_RESTART };
		struct itimerval every = { { 0, 3000 }, { 0, 3000 } };
		sigaction(SIGALRM, &action, NULL);
		if (!strcmp(mode, "thread")) {
			sigset_t only;
			sigemptyset(&only);
			sigaddset(&only, SIGALRM);
			pthread_t thread;
			if (pthread_create(&thread, NULL, live, NULL))
				return 2;
			pthread_sigmask(SIG_BLOCK, &only, NULL);
			setitimer(ITIMER_REAL, &every, NULL);
			for (;;)
				pause();
		}
		setitimer(ITIMER_REAL, &every, NULL);
	}
	if (!strcmp(mode, "corner")) {
		char line[512];
		uintptr_t floor = 0;
		FILE *maps = fopen("/proc/self/maps", "r");
		while (maps && fgets(line, sizeof line, maps))
			if (strstr(line, "[stack]"))
				floor = strtoul(line, NULL, 16);
		if (maps)
			fclose(maps);
		dive(floor);
	}
	if (!strcmp(mode, "filtered"))
		filter(0x00050000 | EPERM); /* SECCOMP_RET_ERRNO */
	if (!strcmp(mode, "killing"))
		filter(0x80000000); /* SECCOMP_RET_KILL_PROCESS */
	live(NULL);
}
