/*
 * Register values that are live across the freeze: each thread loads every register that it has and
 * then either spins in a loop that touches none of them, or blocks in a raw system call.
 */
#include "victim.h"
#include <cpuid.h>
#include <sys/syscall.h>

struct frame {
	_Alignas(64) uint8_t zmm[32][64];
	uint64_t k[8];
	_Alignas(16) uint8_t x87[8][10];
	uint64_t gp[14];
	uint32_t mxcsr;
	uint16_t control;
	uint64_t eflags;
};

static int pipe_fds[2];
static volatile int go;
static volatile atomic_int loaded;
static bool has_avx2, has_avx512, has_pku;

/*
 * rdi = what to load, rsi = where to store, rdx = address of `go`, rcx = pipe to block on or -1,
 * r8 = 0 SSE, 1 AVX2, 2 AVX-512. Written as one block: the compiler must not touch a register between.
 */
void hold(const struct frame *in, struct frame *out, volatile int *flag, long fd, long level);
__asm__(
	".text\n.globl hold\n.type hold,@function\nhold:\n"
	"push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
	"sub $64, %rsp\n"
	"mov %rdi, 0(%rsp); mov %rsi, 8(%rsp); mov %rdx, 16(%rsp); mov %rcx, 24(%rsp); mov %r8, 32(%rsp)\n"
	"stmxcsr 40(%rsp)\n fnstcw 44(%rsp)\n"
	"cmp $2, %r8; je 3f; cmp $1, %r8; je 2f\n"
	/* SSE */
	".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n movdqa \\i*64(%rdi), %xmm\\i\n .endr\n jmp 4f\n"
	/* AVX2 */
	"2: .irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vmovdqa \\i*64(%rdi), %ymm\\i\n .endr\n jmp 4f\n"
	/* AVX-512 */
	"3: .irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	" vmovdqa64 \\i*64(%rdi), %zmm\\i\n .endr\n"
	".irp i,1,2,3,4,5,6,7\n kmovw 2048+\\i*8(%rdi), %k\\i\n .endr\n"
	"4: fninit\n"
	".irp i,0,1,2,3,4,5\n fldt 2112+\\i*16-\\i*6(%rdi)\n .endr\n"
	"ldmxcsr 2304(%rdi)\n fldcw 2308(%rdi)\n"
	"mov 2192+0(%rdi), %rbx; mov 2192+8(%rdi), %rbp\n"
	".irp i,8,9,10,12,13,14,15\n mov 2192+\\i*8-48(%rdi), %r\\i\n .endr\n"
	"cmpq $0, 24(%rsp); jge 6f\n"
	/* The loop: rdx and the arithmetic flags alone are used. DF is set, which no compare changes. */
	"mov 16(%rsp), %rdx; mov 8(%rsp), %rsi; mov $0x5151515151515151, %rdi\n"
	"mov $0x6161616161616161, %rax; mov $0x7171717171717171, %rcx; mov $0x1212121212121212, %r11\n"
	"lock incl loaded(%rip)\n std\n"
	"5: pause; cmpl $0, (%rdx); je 5b\n"
	"pushfq; popq 2312(%rsi); cld\n"
	"mov %rax, 2192+80(%rsi); mov %rcx, 2192+88(%rsi); mov %rdi, 2192+96(%rsi); mov %r11, 2192+104(%rsi)\n"
	"jmp 7f\n"
	/* Blocked: read(fd, stack, 1). The kernel clobbers rax, rcx and r11 by contract, so they are not kept. */
	"6: lock incl loaded(%rip)\n"
	"mov 24(%rsp), %rdi; lea 48(%rsp), %rsi; mov $1, %rdx; xor %eax, %eax; syscall\n"
	"mov 8(%rsp), %rsi\n"
	"mov %rax, 2192+80(%rsi); mov %rdi, 2192+96(%rsi); mov %rdx, 2192+88(%rsi)\n"
	"7: mov %rbx, 2192+0(%rsi); mov %rbp, 2192+8(%rsi)\n"
	".irp i,8,9,10,12,13,14,15\n mov %r\\i, 2192+\\i*8-48(%rsi)\n .endr\n"
	"stmxcsr 2304(%rsi)\n fnstcw 2308(%rsi)\n"
	".irp i,0,1,2,3,4,5\n fstpt 2112+\\i*16-\\i*6(%rsi)\n .endr\n"
	"mov 32(%rsp), %r8\n cmp $2, %r8; je 9f; cmp $1, %r8; je 8f\n"
	".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n movdqa %xmm\\i, \\i*64(%rsi)\n .endr\n jmp 10f\n"
	"8: .irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vmovdqa %ymm\\i, \\i*64(%rsi)\n .endr\n vzeroupper\n jmp 10f\n"
	"9: .irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	" vmovdqa64 %zmm\\i, \\i*64(%rsi)\n .endr\n"
	".irp i,1,2,3,4,5,6,7\n kmovw %k\\i, 2048+\\i*8(%rsi)\n .endr\n vzeroupper\n"
	"10: ldmxcsr 40(%rsp)\n fninit\n fldcw 44(%rsp)\n"
	"add $64, %rsp\n pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp\n ret\n"
	".size hold, .-hold\n");

_Static_assert(offsetof(struct frame, k) == 2048, "hold() knows the layout");
_Static_assert(offsetof(struct frame, x87) == 2112, "hold() knows the layout");
_Static_assert(offsetof(struct frame, gp) == 2192, "hold() knows the layout");
_Static_assert(offsetof(struct frame, mxcsr) == 2304, "hold() knows the layout");
_Static_assert(offsetof(struct frame, control) == 2308, "hold() knows the layout");
_Static_assert(offsetof(struct frame, eflags) == 2312, "hold() knows the layout");

struct holder {
	pthread_t thread;
	const char *name;
	long fd, level;
	struct frame in, out;
	uint64_t fs, gs, gs_now, fs_now;
	uint32_t pkru, pkru_now;
};

static uint32_t read_pkru(void)
{
	uint32_t eax, edx;
	__asm__ volatile(".byte 0x0f,0x01,0xee" : "=a"(eax), "=d"(edx) : "c"(0));
	return eax;
}

static void *run(void *argument)
{
	struct holder *h = argument;
	/* gs is free in a 64-bit program; fs is the thread pointer. */
	must(syscall(SYS_arch_prctl, 0x1001 /* ARCH_SET_GS */, h->gs));
	must(syscall(SYS_arch_prctl, 0x1003 /* ARCH_GET_FS */, &h->fs));
	if (has_pku)
		__asm__ volatile(".byte 0x0f,0x01,0xef" : : "a"(h->pkru), "c"(0), "d"(0));
	hold(&h->in, &h->out, &go, h->fd, h->level);
	must(syscall(SYS_arch_prctl, 0x1004 /* ARCH_GET_GS */, &h->gs_now));
	must(syscall(SYS_arch_prctl, 0x1003, &h->fs_now));
	if (has_pku)
		h->pkru_now = read_pkru();
	return NULL;
}

static void prepare(struct holder *h, const char *name, long level, bool blocked, int seed)
{
	h->name = name;
	h->level = level;
	h->fd = blocked ? pipe_fds[0] : -1;
	h->gs = 0x100000 + seed * 4096;
	/* Key 0 stays open; keys 5.. are unused, so their bits change nothing. */
	h->pkru = (0x2cu + seed) << 12;
	for (size_t i = 0; i < sizeof h->in.zmm / 8; i++)
		((uint64_t *)h->in.zmm)[i] = mix(seed * 100000 + i);
	for (int i = 0; i < 8; i++)
		h->in.k[i] = mix(seed * 1000 + i) & 0xffff;
	for (int i = 0; i < 6; i++) {
		long double value = seed + i + 0.625L;
		memcpy(h->in.x87[i], &value, 10);
	}
	for (int i = 0; i < 14; i++)
		h->in.gp[i] = mix(seed * 7000 + i);
	h->in.mxcsr = 0x1f80 | 0x6000 | 0x8000 | 0x0040; /* all masked, toward zero, flush, denormals as zero */
	h->in.control = 0x0a7f; /* 53 bits, round up */
	must0(pthread_create(&h->thread, NULL, run, h));
}

static void verify(struct holder *h)
{
	char field[64];
	size_t width = h->level == 2 ? 64 : h->level == 1 ? 32 : 16, count = h->level == 2 ? 32 : 16;
	for (size_t i = 0; i < count; i++)
		if (memcmp(h->in.zmm[i], h->out.zmm[i], width))
			fail("%s vector %zu expected 0x%" PRIx64 " got 0x%" PRIx64, h->name, i, *(uint64_t *)h->in.zmm[i],
			     *(uint64_t *)h->out.zmm[i]);
	if (h->level == 2)
		for (int i = 1; i < 8; i++)
			expect_at("opmask", i, h->in.k[i], h->out.k[i]);
	/* Loaded 0..5, so 5 is on top and stored first. */
	for (int i = 0; i < 6; i++)
		if (memcmp(h->in.x87[5 - i], h->out.x87[i], 10))
			fail("%s x87 %d", h->name, i);
	snprintf(field, sizeof field, "%s mxcsr", h->name);
	expect(field, h->in.mxcsr, h->out.mxcsr & ~0x3fu);
	snprintf(field, sizeof field, "%s x87 control", h->name);
	expect(field, h->in.control, h->out.control & 0x0f7f);
	static const int kept[] = { 0, 1, 2, 3, 4, 6, 7, 8, 9 };
	for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
		expect_at(h->name, kept[i], h->in.gp[kept[i]], h->out.gp[kept[i]]);
	if (h->fd < 0) {
		expect("rax", 0x6161616161616161, h->out.gp[10]);
		expect("rcx", 0x7171717171717171, h->out.gp[11]);
		expect("rdi", 0x5151515151515151, h->out.gp[12]);
		expect("r11", 0x1212121212121212, h->out.gp[13]);
		expect("direction flag", 0x400, h->out.eflags & 0x400);
	} else {
		expect("read result", 1, h->out.gp[10]);
		expect("rdi in read", h->fd, h->out.gp[12]);
		expect("rdx in read", 1, h->out.gp[11]);
	}
	expect("gs base", h->gs, h->gs_now);
	expect("fs base", h->fs, h->fs_now);
	if (has_pku)
		expect("pkru", h->pkru, h->pkru_now);
}

int main(void)
{
	static struct holder holders[6];
	unsigned a, b, c, d;
	int n = 0;
	victim_start();
	must(pipe(pipe_fds));
	if (__get_cpuid_count(7, 0, &a, &b, &c, &d))
		has_pku = c >> 4 & 1; /* OSPKE: the kernel uses it */
	has_avx2 = __builtin_cpu_supports("avx2");
	has_avx512 = __builtin_cpu_supports("avx512f");

	/* Blocked ones share one pipe: whoever reads first, each gets one byte. */
	prepare(&holders[n++], "sse spinning", 0, false, 1);
	prepare(&holders[n++], "sse blocked", 0, true, 2);
	if (has_avx2) {
		prepare(&holders[n++], "avx2 spinning", 1, false, 3);
		prepare(&holders[n++], "avx2 blocked", 1, true, 4);
	}
	if (has_avx512) {
		prepare(&holders[n++], "avx512 spinning", 2, false, 5);
		prepare(&holders[n++], "avx512 blocked", 2, true, 6);
	}
	while (loaded != n)
		nap_ms(1);
	nap_ms(20);
	victim_ready();
	victim_wait();

	go = 1;
	if (write(pipe_fds[1], "abc", n / 2) != n / 2)
		fail("write to pipe");
	for (int i = 0; i < n; i++) {
		must0(pthread_join(holders[i].thread, NULL));
		verify(&holders[i]);
	}
	victim_end();
}
