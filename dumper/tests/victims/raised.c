/*
 * What only a process with all capabilities can have and only a restorer with all capabilities can give back: an
 * oom_score_adj below zero, hard limits above the usual ones, a login uid.
 *
 * It is made by its own setting, so it is of use only where CAP_SYS_RESOURCE and CAP_AUDIT_CONTROL are there.
 */
#include "victim.h"

#define FILES 300000
#define LOGIN 4321

static void put(const char *path, const char *text)
{
	int fd = must(open(path, O_WRONLY));
	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		broken("%s", path);
	close(fd);
}

static long read_number(const char *path)
{
	char *text = slurp(path);
	long value = atol(text);
	free(text);
	return value;
}

int main(void)
{
	struct rlimit files = { FILES - 1, FILES }, got;
	victim_start();
	put("/proc/self/oom_score_adj", "-432");
	put("/proc/self/loginuid", "4321");
	must(setrlimit(RLIMIT_NOFILE, &files));
	victim_ready();
	victim_wait();
	expect("oom_score_adj", -432, read_number("/proc/self/oom_score_adj"));
	expect("loginuid", LOGIN, read_number("/proc/self/loginuid"));
	must(getrlimit(RLIMIT_NOFILE, &got));
	expect("soft limit of files", FILES - 1, got.rlim_cur);
	expect("hard limit of files", FILES, got.rlim_max);
	victim_end();
}
