/*
 * Seccomp filters that a victim can try: each answers a few system calls in its own way and allows the rest.
 */
#ifndef GODWIT_FILTER_H
#define GODWIT_FILTER_H

#include "victim.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

/* What a filter does with one system call. */
struct rule {
	int nr;
	uint32_t action;
};

/* Calls that nothing needs, so that a filter can answer them. */
#define TRIED SYS_getpriority
#define TRIED_TOO SYS_sched_rr_get_interval

#define ERRNO(n) (SECCOMP_RET_ERRNO | (n))

/* Adds a filter with these rules on top of the thread's own, `otherwise` for all other calls. */
static int add_filter(const struct rule *rules, int count, uint32_t otherwise, unsigned flags)
{
	struct sock_filter code[64] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	int n = 4;
	for (int i = 0; i < count; i++) {
		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, rules[i].nr, 0, 1);
		code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, rules[i].action);
	}
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, otherwise);
	struct sock_fprog program = { n, code };
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

__attribute__((unused)) static void must_filter(int nr, uint32_t action, unsigned flags)
{
	struct rule rule = { nr, action };
	must(add_filter(&rule, 1, SECCOMP_RET_ALLOW, flags));
}

/* The error that a call with invalid arguments answers: the filter's, or 0 when the kernel took the call. */
__attribute__((unused)) static int answer(int nr)
{
	errno = 0;
	long result = syscall(nr, -1, -1, NULL);
	/* Unfiltered they answer EINVAL. */
	return result == -1 && errno != EINVAL ? errno : 0;
}

/* A number of /proc/self/task/TID/status. */
__attribute__((unused)) static long thread_status(pid_t tid, const char *name)
{
	char path[64], field[64];
	snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
	snprintf(field, sizeof field, "\n%s:", name);
	char *text = slurp(path), *line = strstr(text, field);
	long value = line ? atol(line + strlen(field)) : -1;
	free(text);
	return value;
}
#endif
