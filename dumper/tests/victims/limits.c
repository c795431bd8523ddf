/*
 * What a process has besides memory and files: resource limits, scheduling of each thread, names, umask,
 * working directory, oom adjustment, and the values of prctl(2).
 */
#include "victim.h"
#include <linux/membarrier.h>

static struct rlimit limits[RLIM_NLIMITS];
static atomic_int phase;

struct schedule {
	int policy, priority, nice;
};
static const struct schedule wanted[] = {
	{ SCHED_OTHER, 0, 7 },
	{ SCHED_BATCH, 0, 3 },
	{ SCHED_IDLE, 0, 0 },
	{ SCHED_RR, 2, 0 },
	{ SCHED_FIFO, 1, 0 },
};
#define THREADS (int)(sizeof wanted / sizeof *wanted)

static void set_schedule(const struct schedule *s)
{
	struct sched_param param = { s->priority };
	must(setpriority(PRIO_PROCESS, thread_id(), s->nice));
	must(sched_setscheduler(0, s->policy, &param));
}

static void check_schedule(int index)
{
	struct sched_param param = { 0 };
	expect_at("scheduling policy", index, wanted[index].policy, sched_getscheduler(0));
	must(sched_getparam(0, &param));
	expect_at("scheduling priority", index, wanted[index].priority, param.sched_priority);
	errno = 0;
	expect_at("nice", index, wanted[index].nice, getpriority(PRIO_PROCESS, thread_id()));
}

static void *work(void *argument)
{
	int index = (intptr_t)argument;
	set_schedule(&wanted[index]);
	phase++;
	while (phase < 100)
		nap_ms(5);
	check_schedule(index);
	return NULL;
}

static void set_limits(void)
{
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		must(getrlimit(i, &limits[i]));
		/* Lower only: raising needs a capability that a container may lack. */
		rlim_t top = limits[i].rlim_max == RLIM_INFINITY ? 1ull << 40 : limits[i].rlim_max;
		if (top < 100)
			continue;
		limits[i].rlim_max = top - i - 3;
		limits[i].rlim_cur = top - i - 20;
		must(setrlimit(i, &limits[i]));
	}
}

static void check_limits(void)
{
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		struct rlimit got;
		must(getrlimit(i, &got));
		expect_at("soft limit", i, limits[i].rlim_cur, got.rlim_cur);
		expect_at("hard limit", i, limits[i].rlim_max, got.rlim_max);
	}
}

static int read_number(const char *path)
{
	char *text = slurp(path);
	int value = atoi(text);
	free(text);
	return value;
}

int main(void)
{
	pthread_t threads[THREADS];
	char cwd[PATH_MAX], now[PATH_MAX], name[16];
	victim_start();
	set_limits();
	must(prctl(PR_SET_NAME, "odd name) R 1 (")); /* comm may hold what a parser of stat trips over */
	umask(0137);
	int oom = open("/proc/self/oom_score_adj", O_WRONLY);
	if (write(oom, "137", 3) != 3)
		broken("oom_score_adj");
	close(oom);
	must(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
	must(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
	bool barrier = syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
	syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0);
	syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
	/* MEMBARRIER_CMD_GET_REGISTRATIONS, Linux 6.3. */
	long registrations = syscall(SYS_membarrier, 1 << 9, 0, 0);
	/* May be set once, where it may be set at all. */
	int login = open("/proc/self/loginuid", O_WRONLY);
	if (login >= 0 && write(login, "4321", 4) != 4)
		say("no login uid here: %s", strerror(errno));
	close(login);
	char *loginuid = slurp("/proc/self/loginuid");
	for (intptr_t i = 1; i < THREADS; i++)
		must0(pthread_create(&threads[i], NULL, work, (void *)i));
	while (phase != THREADS - 1)
		nap_ms(1);
	set_schedule(&wanted[0]);
	/* "check" is then looked for one level up, so that the directory is not the one of the start. */
	must(mkdir("deeper dir", 0755));
	must(symlink("../check", "deeper dir/check"));
	must(chdir("deeper dir"));
	if (!getcwd(cwd, sizeof cwd))
		broken("getcwd");

	victim_ready();
	victim_wait();

	check_limits();
	check_schedule(0);
	phase = 100;
	for (int i = 1; i < THREADS; i++)
		must0(pthread_join(threads[i], NULL));
	must(prctl(PR_GET_NAME, name));
	expect_string("comm", "odd name) R 1 (", name);
	expect("umask", 0137, umask(0));
	expect("oom_score_adj", 137, read_number("/proc/self/oom_score_adj"));
	expect_string("cwd", cwd, getcwd(now, sizeof now) ?: "");
	int subreaper = 0;
	must(prctl(PR_GET_CHILD_SUBREAPER, &subreaper, 0, 0, 0));
	expect("child_subreaper", 1, subreaper);
	expect("thp_disable", 1, prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
	expect("dumpable", 1, prctl(PR_GET_DUMPABLE));
	if (barrier)
		expect("membarrier registration", 0, syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0));
	expect("membarrier registrations", registrations, syscall(SYS_membarrier, 1 << 9, 0, 0));
	expect_string("loginuid", loginuid, slurp("/proc/self/loginuid"));
	victim_end();
}
