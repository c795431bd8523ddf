/*
 * A sandbox: everything but a few system calls ends the thread that makes it. What a dumper borrows the program for is
 * not among them, and neither is rt_sigreturn.
 *
 * sandbox [deny]: with `deny` the calls answer EPERM instead.
 */
#include "filter.h"

static bool deny;
static volatile pid_t other;
static volatile int set_up, asked, survived, answered;

static void *work(void *argument)
{
	other = thread_id();
	set_up = 1;
	while (!asked)
		nap_ms(5);
	answered = answer(TRIED);
	survived = 1;
	while (true)
		nap_ms(5);
	return argument;
}

int main(int argc, char **argv)
{
	static const int allowed[] = {
		SYS_nanosleep, SYS_clock_nanosleep, SYS_access,	 SYS_faccessat, SYS_read,   SYS_write,
		SYS_getpid,    SYS_getsid,	    SYS_gettid,	 SYS_exit_group, SYS_tgkill, SYS_restart_syscall,
	};
	enum { COUNT = sizeof allowed / sizeof *allowed };
	struct rule rules[COUNT];
	pthread_t thread;
	deny = argc > 1 && !strcmp(argv[1], "deny");
	victim_start();
	must0(pthread_create(&thread, NULL, work, NULL));
	while (!set_up)
		nap_ms(1);
	for (int i = 0; i < COUNT; i++)
		rules[i] = (struct rule){ allowed[i], SECCOMP_RET_ALLOW };
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	must(add_filter(rules, COUNT, deny ? ERRNO(EPERM) : SECCOMP_RET_KILL_THREAD, SECCOMP_FILTER_FLAG_TSYNC));

	victim_ready();
	victim_wait();

	asked = 1;
	for (int ms = 0; ms < 2000 && !survived && syscall(SYS_tgkill, victim_pid, other, 0) == 0; ms += 5)
		nap_ms(5);
	expect("survived a denied call", deny, survived);
	expect("its answer", deny ? EPERM : 0, answered);
	victim_end();
}
