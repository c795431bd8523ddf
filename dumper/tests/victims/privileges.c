/*
 * Privileges and settings of threads that differ from each other in all that can differ: ids, groups, five capability
 * sets, securebits, no_new_privs, parent death signal, alternate stack, scheduling. And what the process as a whole is.
 *
 * privileges [user|closed] [own-limits]: with `user` the leader, too, is an unprivileged user in the end, and nobody
 * may look at the process; with `closed` it is root, and nobody may look either. `own-limits` keeps all ids, for a
 * dumper that may read the limits of its own user's processes only (CRIU without CAP_SYS_RESOURCE).
 */
#include "victim.h"
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/syscall.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif

static const char *fields[] = { "Uid",	  "Gid",    "Groups", "CapInh", "CapPrm",
				"CapEff", "CapBnd", "CapAmb", "NoNewPrivs" };
#define FIELDS (int)(sizeof fields / sizeof *fields)
#define CAP(c) (1ull << CAP_##c)

/*
 * What a thread makes of itself. Ids of 0 stay. The death signals are two that are ignored: `criu restore -d` is the
 * parent of what it restores, and ends.
 */
struct wanted {
	uint32_t ids[3];
	gid_t groups[3];
	int groups_count;
	uint64_t dropped, permitted, effective, inheritable;
	int ambient, securebits, no_new_privs, death_signal, policy, priority, nice;
	unsigned stack_flags;
};

#define ALL_CAPS (CAP(CHOWN) | CAP(KILL) | CAP(SETPCAP) | CAP(NET_RAW) | CAP(SYS_NICE))
static const struct wanted wanted[] = {
	{ .ids = { 0, 0, 0 }, .groups = { 5, 6, 7 }, .groups_count = 3, .permitted = ALL_CAPS, .effective = ALL_CAPS,
	  .ambient = -1, .securebits = SECBIT_KEEP_CAPS, .policy = SCHED_BATCH | SCHED_RESET_ON_FORK, .nice = 2 },
	{ .ids = { 1000, 1000, 1000 }, .ambient = -1, .groups_count = 0, .death_signal = SIGWINCH, .nice = 1 },
	{ .ids = { 2001, 2002, 2003 }, .groups = { 4242 }, .groups_count = 1, .dropped = CAP(SYS_BOOT) | CAP(MKNOD),
	  .permitted = CAP(NET_RAW) | CAP(KILL), .effective = CAP(KILL), .inheritable = CAP(NET_RAW) | CAP(KILL),
	  .ambient = CAP_NET_RAW, .securebits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED, .no_new_privs = 1,
	  .death_signal = SIGURG },
	{ .ids = { 0, 3000, 0 }, .groups = { 1, 65534 }, .groups_count = 2, .ambient = -1,
	  .securebits = SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |
			SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED,
	  .permitted = CAP(CHOWN), .stack_flags = SS_AUTODISARM },
	{ .ids = { 0, 0, 0 }, .groups = { 9 }, .groups_count = 1, .ambient = -1, .no_new_privs = 1,
	  .permitted = ALL_CAPS, .effective = CAP(SETPCAP), .policy = SCHED_FIFO | SCHED_RESET_ON_FORK, .priority = 3 },
};
#define THREADS (int)(sizeof wanted / sizeof *wanted)

struct state {
	char field[FIELDS][512];
	int securebits, keep_caps, no_new_privs, death_signal, policy, priority, nice;
	stack_t stack;
};
static struct state set[THREADS];
static char stacks[THREADS][65536] __attribute__((aligned(4096)));
static atomic_int phase, ready;
static bool keeps_ids;

static void look(struct state *s)
{
	struct sched_param param;
	memset(s, 0, sizeof *s);
	for (int i = 0; i < FIELDS; i++)
		status_field(fields[i], s->field[i], sizeof s->field[i]);
	s->securebits = must(prctl(PR_GET_SECUREBITS));
	s->keep_caps = must(prctl(PR_GET_KEEPCAPS));
	s->no_new_privs = must(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	must(prctl(PR_GET_PDEATHSIG, &s->death_signal));
	s->policy = must(sched_getscheduler(0));
	must(sched_getparam(0, &param));
	s->priority = param.sched_priority;
	s->nice = getpriority(PRIO_PROCESS, thread_id());
	must(sigaltstack(NULL, &s->stack));
}

static void compare(int index)
{
	struct state now, *was = &set[index];
	char field[64];
	look(&now);
	for (int i = 0; i < FIELDS; i++) {
		snprintf(field, sizeof field, "%s[%d]", fields[i], index);
		expect_string(field, was->field[i], now.field[i]);
	}
	expect_at("securebits", index, was->securebits, now.securebits);
	expect_at("keep_caps", index, was->keep_caps, now.keep_caps);
	expect_at("no_new_privs", index, was->no_new_privs, now.no_new_privs);
	expect_at("parent death signal", index, was->death_signal, now.death_signal);
	expect_at("scheduling policy", index, was->policy, now.policy);
	expect_at("scheduling priority", index, was->priority, now.priority);
	expect_at("nice", index, was->nice, now.nice);
	expect_at("altstack", index, (uintptr_t)was->stack.ss_sp, (uintptr_t)now.stack.ss_sp);
	expect_at("altstack size", index, was->stack.ss_size, now.stack.ss_size);
	expect_at("altstack flags", index, (unsigned)was->stack.ss_flags, (unsigned)now.stack.ss_flags);
}

/* By system call throughout: the C library would do it for all threads. */
static void become(const struct wanted *w, int index)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct caps[2] = {
		{ w->effective, w->permitted, w->inheritable },
		{ w->effective >> 32, w->permitted >> 32, w->inheritable >> 32 },
	};
	struct sched_param param = { w->priority };
	stack_t stack = { .ss_sp = stacks[index], .ss_size = sizeof stacks[index] - 4096 * index,
			  .ss_flags = (int)w->stack_flags };
	must(sigaltstack(&stack, NULL));
	must(syscall(SYS_setpriority, PRIO_PROCESS, thread_id(), w->nice));
	must(syscall(SYS_sched_setscheduler, 0, w->policy, &param));
	for (int cap = 0; cap < 64; cap++)
		if (w->dropped >> cap & 1)
			must(prctl(PR_CAPBSET_DROP, cap));
	must(syscall(SYS_setgroups, w->groups_count, w->groups));
	/* Ids change with all capabilities kept; what is kept of them is set afterwards. */
	must(prctl(PR_SET_SECUREBITS, w->securebits | SECBIT_NO_SETUID_FIXUP));
	if (!keeps_ids) {
		must(syscall(SYS_setresgid, w->ids[2], w->ids[1], w->ids[0]));
		must(syscall(SYS_setresuid, w->ids[0], w->ids[1], w->ids[2]));
	}
	must(prctl(PR_SET_SECUREBITS, w->securebits));
	must(syscall(SYS_capset, &header, caps));
	if (w->ambient >= 0)
		must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, w->ambient, 0, 0));
	if (w->no_new_privs)
		must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	/* Last: a change of ids takes it away. */
	must(prctl(PR_SET_PDEATHSIG, w->death_signal));
	look(&set[index]);
}

static void *work(void *argument)
{
	int index = (intptr_t)argument;
	become(&wanted[index], index);
	ready++;
	while (phase == 0)
		nap_ms(5);
	compare(index);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS];
	bool closed = false, user = false;
	for (int i = 1; i < argc; i++) {
		user |= !strcmp(argv[i], "user");
		closed |= !strcmp(argv[i], "closed");
		keeps_ids |= !strcmp(argv[i], "own-limits");
	}
	victim_start();
	for (intptr_t i = 1; i < THREADS; i++)
		must0(pthread_create(&threads[i], NULL, work, (void *)i));
	while (ready != THREADS - 1)
		nap_ms(1);
	become(&wanted[user ? 1 : 0], 0);
	/* Changes of ids have made it so; what is wanted is set. */
	must(prctl(PR_SET_DUMPABLE, !(user || closed)));

	victim_ready();
	victim_wait();

	compare(0);
	phase = 1;
	for (int i = 1; i < THREADS; i++)
		must0(pthread_join(threads[i], NULL));
	expect("dumpable", !(user || closed), prctl(PR_GET_DUMPABLE));
	victim_end();
}
