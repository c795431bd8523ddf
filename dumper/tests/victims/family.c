/*
 * Four generations of processes, each with threads, memory, signals, timers, directory, umask and name of its own; after
 * the check every parent lets its children go one by one, and gets exactly one SIGCHLD and one exit code of each.
 */
#include "tree.h"

#define DEPTH 4
/* Children of a task at each depth. */
static const int children_at[DEPTH + 1] = { 2, 2, 2, 1, 0 };
/* Ends a task that is done; queued, so that it may come before it is waited for. */
#define GO (SIGRTMIN + 1)
#define NOTE (SIGRTMIN + 2)
/* Changed by every task: after fork a copy of the parent's. */
static uint64_t inherited = 1;
static __thread uint64_t local;

struct worker {
	pthread_t thread;
	pid_t tid;
	uint64_t seed;
	char name[16];
	pthread_mutex_t *gate;
	atomic_bool set_up;
};

struct task {
	/* f, f.0, f.0.1 and so on. */
	char path[12];
	int depth, number;
	uint64_t seed;
	struct place place;
	struct worker workers[2];
	int count;
	pid_t children[2];
	struct task *child_of[2];
	char *memory, *heap;
	timer_t timer;
	int fd, received;
	char directory[PATH_MAX];
	pthread_mutex_t gate;
};
static struct task *self;

/* The exit code of a task that found all as it was. */
static int code_of(const struct task *t)
{
	return 10 + t->number % 200;
}

static void caught(int signal)
{
	(void)signal;
	self->received++;
}

static void mask_of(const struct task *t, sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGCHLD);
	sigaddset(set, GO);
	sigaddset(set, NOTE);
	sigaddset(set, SIGRTMIN + 5 + t->number % 20);
}

static void *work(void *argument)
{
	struct worker *w = argument;
	char name[16] = "";
	sigset_t mask, now;
	w->tid = thread_id();
	local = w->seed;
	must(prctl(PR_SET_NAME, w->name));
	sigemptyset(&mask);
	sigaddset(&mask, SIGRTMIN + 5 + w->seed % 20);
	sigaddset(&mask, SIGUSR2);
	sigaddset(&mask, SIGCHLD);
	sigaddset(&mask, GO);
	sigaddset(&mask, NOTE);
	must0(pthread_sigmask(SIG_SETMASK, &mask, NULL));
	w->set_up = true;
	must0(pthread_mutex_lock(w->gate));
	must0(pthread_mutex_unlock(w->gate));
	expect("thread local", w->seed, local);
	expect("thread tid", w->tid, thread_id());
	must(prctl(PR_GET_NAME, name));
	expect_string("thread name", w->name, name);
	must0(pthread_sigmask(SIG_SETMASK, NULL, &now));
	for (int signal = 1; signal < 64; signal++)
		if (signal != 32 && signal != 33)
			expect_at("thread mask", signal, sigismember(&mask, signal), sigismember(&now, signal));
	return (void *)(uintptr_t)(w->seed | 1);
}

static int live(void *argument);

static void set_up(struct task *t)
{
	sigset_t mask;
	struct sigaction action = { .sa_handler = caught, .sa_flags = SA_RESTART };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	struct itimerspec when = { .it_value.tv_sec = 2000 + t->number, .it_interval.tv_sec = 3000 + t->number };
	struct itimerval alarm = { .it_value.tv_sec = 4000 + t->number, .it_interval.tv_sec = 5000 + t->number };
	struct rlimit limit;
	self = t;
	t->seed = 0xfa0000 + t->number * 64;
	inherited = inherited * 2 + t->number;
	if (t->depth) {
		must(mkdir(t->path, 0755) == -1 && errno != EEXIST ? -1 : 0);
		must(chdir(t->path));
	}
	if (!getcwd(t->directory, sizeof t->directory))
		broken("getcwd");
	umask(t->number);
	t->memory = must(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	fill_pages(t->memory, 8, t->seed);
	t->heap = malloc(3 * PAGE);
	memset(t->heap, t->number + 1, 3 * PAGE);
	t->fd = pattern_file("own", 100);
	must(lseek(t->fd, t->number, SEEK_SET));
	must(setpriority(PRIO_PROCESS, 0, t->number % 7 + 1));
	must(getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = 300 + t->number;
	must(setrlimit(RLIMIT_NOFILE, &limit));
	if (t->depth && t->number % 2)
		must(prctl(PR_SET_PDEATHSIG, SIGUSR2));
	must(sigaction(t->number % 2 ? SIGUSR1 : SIGUSR2, &action, NULL));
	must(sigaction(SIGWINCH, &(struct sigaction){ .sa_handler = t->number % 3 ? SIG_IGN : SIG_DFL }, NULL));
	must(timer_create(CLOCK_MONOTONIC, &event, &t->timer));
	must(timer_settime(t->timer, 0, &when, NULL));
	must(setitimer(ITIMER_REAL, &alarm, NULL));
	mask_of(t, &mask);
	must0(pthread_sigmask(SIG_SETMASK, &mask, NULL));
	must(sigqueue(getpid(), NOTE, (union sigval){ .sival_int = 7000 + t->number }));
}

static void start_threads(struct task *t)
{
	must0(pthread_mutex_init(&t->gate, NULL));
	must0(pthread_mutex_lock(&t->gate));
	t->count = t->number % 3;
	for (int i = 0; i < t->count; i++) {
		struct worker *w = &t->workers[i];
		w->seed = t->seed + 32 + i;
		w->gate = &t->gate;
		snprintf(w->name, sizeof w->name, "%.11s/%d", t->path, i % 10);
		must0(pthread_create(&w->thread, NULL, work, w));
	}
	for (int i = 0; i < t->count; i++)
		if (!tree_eventually(t->workers[i].set_up))
			broken("%sa thread does not start", victim_task);
}

static void fork_children(struct task *t)
{
	for (int i = 0; i < children_at[t->depth]; i++) {
		struct task *child = t->child_of[i] = calloc(1, sizeof *child);
		child->depth = t->depth + 1;
		child->number = t->number * 2 + 1 + i;
		snprintf(child->path, sizeof child->path, "%.9s.%d", t->path, i % 10);
		t->children[i] = tree_fork(child->path, live, child);
	}
}

static void check_values(struct task *t, uint64_t was)
{
	char path[PATH_MAX] = "", name[32];
	struct itimerspec when;
	struct itimerval alarm;
	struct sigaction action;
	struct rlimit limit;
	sigset_t mask, now;
	siginfo_t info;
	int death = 0;
	/* The root's parent is whoever restored it. */
	if (!t->depth)
		t->place.parent = getppid();
	expect_place(t->place);
	expect("inherited", was, inherited);
	if (!getcwd(path, sizeof path))
		fail("getcwd %s", strerror(errno));
	expect_string("cwd", t->directory, path);
	mode_t old = umask(0);
	umask(old);
	expect("umask", t->number & 0777, old);
	expect_pages("memory", t->memory, 8, t->seed);
	for (size_t i = 0; i < 3 * PAGE; i++)
		if (t->heap[i] != (char)(t->number + 1)) {
			fail("heap at %zu", i);
			break;
		}
	expect("offset", t->number, lseek(t->fd, 0, SEEK_CUR));
	expect("nice", t->number % 7 + 1, getpriority(PRIO_PROCESS, 0));
	must(getrlimit(RLIMIT_NOFILE, &limit));
	expect("limit of descriptors", 300 + t->number, limit.rlim_cur);
	must(prctl(PR_GET_PDEATHSIG, &death));
	expect("parent death signal", t->depth && t->number % 2 ? SIGUSR2 : 0, death);
	name_of(getpid(), name);
	if (t->depth)
		expect_string("name", t->path, name);
	must(sigaction(SIGUSR1, NULL, &action));
	expect("SIGUSR1 handler", t->number % 2 ? (uintptr_t)caught : (uintptr_t)action.sa_handler,
	       (uintptr_t)action.sa_handler);
	must(sigaction(SIGWINCH, NULL, &action));
	expect("SIGWINCH", (uintptr_t)(t->number % 3 ? SIG_IGN : SIG_DFL), (uintptr_t)action.sa_handler);
	mask_of(t, &mask);
	must0(pthread_sigmask(SIG_SETMASK, NULL, &now));
	for (int signal = 1; signal < 64; signal++)
		if (signal != 32 && signal != 33)
			expect_at("mask", signal, sigismember(&mask, signal), sigismember(&now, signal));
	must(timer_gettime(t->timer, &when));
	expect_range("timer", 1600 + t->number, 2000 + t->number, when.it_value.tv_sec);
	expect("timer interval", 3000 + t->number, when.it_interval.tv_sec);
	must(getitimer(ITIMER_REAL, &alarm));
	expect_range("itimer", 3600 + t->number, 4000 + t->number, alarm.it_value.tv_sec);
	expect("itimer interval", 5000 + t->number, alarm.it_interval.tv_sec);
	if (!take_signal(NOTE, &info, 0))
		fail("the queued signal is gone");
	else
		expect("queued value", 7000 + t->number, info.si_value.sival_int);
	expect_no_signal("a second time", NOTE);
}

static void check_threads(struct task *t)
{
	must0(pthread_mutex_unlock(&t->gate));
	for (int i = 0; i < t->count; i++) {
		void *result = NULL;
		must0(pthread_join(t->workers[i].thread, &result));
		expect_at("thread result", i, t->workers[i].seed | 1, (uintptr_t)result);
	}
}

/* Lets the children go one after the other. */
static void check_children(struct task *t)
{
	expect_no_signal("before a child ended", SIGCHLD);
	for (int i = 0; i < children_at[t->depth]; i++) {
		struct task *child = t->child_of[i];
		pid_t pid = t->children[i];
		siginfo_t info = { 0 };
		expect_at("ppid of child", i, getpid(), atoi(stat_field(pid, 4)));
		if (sigqueue(pid, GO, (union sigval){ .sival_int = child->number }) == -1) {
			fail("child %s cannot be told: %s", child->path, strerror(errno));
			continue;
		}
		if (!take_signal(SIGCHLD, &info, TREE_PATIENCE_MS))
			fail("no SIGCHLD of %s", child->path);
		else {
			expect_at("SIGCHLD pid", i, pid, info.si_pid);
			expect_at("SIGCHLD code", i, CLD_EXITED, info.si_code);
			expect_at("SIGCHLD status", i, code_of(child), info.si_status);
		}
		tree_expect_exit(child->path, pid, code_of(child));
		expect_no_signal("a second time for one child", SIGCHLD);
	}
	tree_expect_no_child();
}

static void wait_and_check(struct task *t, uint64_t was)
{
	victim_wait();
	check_values(t, was);
	check_threads(t);
	check_children(t);
}

static int live(void *argument)
{
	struct task *t = argument;
	siginfo_t info;
	set_up(t);
	fork_children(t);
	t->place = place_of_self();
	/* Not before: a child has no threads of its parent, but would have their gate. */
	start_threads(t);
	uint64_t was = inherited;
	task_ready();
	wait_and_check(t, was);
	if (!take_signal(GO, &info, TREE_PATIENCE_MS * 2))
		fail("the parent never let it go");
	else {
		expect("GO of", t->place.parent, info.si_pid);
		expect("GO value", t->number, info.si_value.sival_int);
	}
	return code_of(t);
}

int main(void)
{
	struct task *root = calloc(1, sizeof *root);
	tree_start();
	strcpy(root->path, "f");
	set_up(root);
	fork_children(root);
	root->place = place_of_self();
	start_threads(root);
	uint64_t was = inherited;
	tree_ready(2 + 4 + 8 + 8);
	wait_and_check(root, was);
	victim_end();
}
