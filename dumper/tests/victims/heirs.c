/*
 * heirs: three processes, each of which would notice the end of another and say so.
 *
 * The root has a child in a process group of its own, and that has a child in the same group. Every one writes a line to
 * the file "noticed" when it learns of another's end: by SIGUSR1, which it asked for at its parent's death; by the end of
 * a pipe that only its parent can write to; by SIGHUP, which a group with stopped members gets when it is orphaned; by
 * SIGCHLD. A parent that finds a child stopped says that as well. Whoever kills them all at once leaves no line. The
 * root forks once more when it finds a file named "fork", and writes the new pid to "forked".
 */
#include "victim.h"

#include <sys/syscall.h>

static const char *self_name;

/* Called in signal handlers too. */
static void notice(const char *what)
{
	char line[80];
	int at = 0, fd = open("noticed", O_WRONLY | O_CREAT | O_APPEND, 0644);
	for (const char *s = self_name; *s; s++)
		line[at++] = *s;
	line[at++] = ' ';
	for (const char *s = what; *s; s++)
		line[at++] = *s;
	line[at++] = '\n';
	if (fd < 0 || write(fd, line, at) != at)
		_exit(5);
	close(fd);
}

static void on_signal(int signal)
{
	notice(signal == SIGUSR1 ? "parent-died" : "orphaned");
}

static void on_child(int signal, siginfo_t *info, void *context)
{
	siginfo_t stopped = { 0 };
	(void)signal;
	(void)context;
	if (info->si_code == CLD_EXITED || info->si_code == CLD_KILLED || info->si_code == CLD_DUMPED)
		notice("child-died");
	if (waitid(P_ALL, 0, &stopped, WSTOPPED | WNOHANG | WNOWAIT) == 0 && stopped.si_pid != 0)
		notice("child-stopped");
}

static atomic_bool watches;

static void *watch_pipe(void *fd)
{
	char byte;
	ssize_t got;
	watches = true;
	do
		got = read((int)(long)fd, &byte, 1);
	while (got == -1 && errno == EINTR);
	if (got == 0)
		notice("pipe-ended");
	return NULL;
}

/* Sets the watches of one process; `from_parent` is -1 for the root. */
static void watch(const char *name, int from_parent)
{
	struct sigaction on_two = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	struct sigaction on_chld = { .sa_sigaction = on_child, .sa_flags = SA_SIGINFO | SA_RESTART };
	pthread_t thread;
	self_name = name;
	must(sigaction(SIGUSR1, &on_two, NULL));
	must(sigaction(SIGHUP, &on_two, NULL));
	must(sigaction(SIGCHLD, &on_chld, NULL));
	if (from_parent == -1)
		return;
	must(prctl(PR_SET_PDEATHSIG, SIGUSR1));
	must0(pthread_create(&thread, NULL, watch_pipe, (void *)(long)from_parent));
	while (!watches)
		nap_ms(1);
}

static void nap_to_the_end(void)
{
	for (int ms = 0; ms < LIFE_SECONDS * 1000; ms += 5)
		nap_ms(5);
	_exit(3);
}

static int ready_fd;

static void ready(void)
{
	if (write(ready_fd, "x", 1) != 1)
		_exit(6);
}

static pid_t child, extra;

static void middle(int from_parent)
{
	int ends[2];
	must(setpgid(0, 0));
	must(pipe(ends));
	if (must(fork()) == 0) {
		close(ends[1]);
		close(from_parent);
		watch("grandchild", ends[0]);
		ready();
		nap_to_the_end();
	}
	close(ends[0]);
	watch("child", from_parent);
	ready();
	nap_to_the_end();
}

static void fork_once(void)
{
	if (extra || access("fork", F_OK) != 0)
		return;
	extra = must(fork());
	if (extra == 0)
		nap_to_the_end();
	FILE *file = fopen("forked.part", "w");
	if (!file || fprintf(file, "%d\n", extra) < 0 || fclose(file) || rename("forked.part", "forked"))
		broken("forked");
}

int main(void)
{
	int ends[2], up[2];
	char bytes[2];
	victim_start();
	must(pipe(up));
	must(pipe(ends));
	ready_fd = up[1];
	child = must(fork());
	if (child == 0) {
		close(ends[1]);
		close(up[0]);
		middle(ends[0]);
	}
	close(ends[0]);
	for (int got = 0; got < 2; got++)
		must(read(up[0], bytes, 1));
	close(up[0]);
	close(up[1]);
	watch("root", -1);
	victim_ready();
	for (int ms = 0; ms < LIFE_SECONDS * 1000 && !victim_asked(); ms += 10) {
		fork_once();
		nap_ms(10);
	}
	char *said = slurp("noticed");
	expect_string("noticed", "", said);
	expect("child is there", 0, must(waitpid(child, NULL, WNOHANG)));
	must(signal(SIGCHLD, SIG_DFL) == SIG_ERR ? -1 : 0);
	must(kill(-child, SIGKILL));
	must(waitpid(child, NULL, 0));
	if (extra) {
		expect("extra is there", 0, must(waitpid(extra, NULL, WNOHANG)));
		must(kill(extra, SIGKILL));
		must(waitpid(extra, NULL, 0));
	}
	victim_end();
}
