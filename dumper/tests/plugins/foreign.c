/*
 * A plugin that knows what neither godwit nor CRIU do: a file system that is being set up (man 2 fsopen), as long as it is
 * a tmpfs, and shared mappings of loop devices. Every call is a line in the file that GODWIT_PLUGIN_LOG names; the one that
 * GODWIT_PLUGIN_FAIL names fails.
 */
#define _GNU_SOURCE
#include "contract.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define LOOP_MAJOR 7

extern struct record CR_PLUGIN_DESC;

/* One write a line; 0, or the failure that was asked for. */
__attribute__((format(printf, 2, 3))) static int tell(const char *call, const char *format, ...)
{
	const char *log = getenv("GODWIT_PLUGIN_LOG"), *fails = getenv("GODWIT_PLUGIN_FAIL");
	char line[256];
	va_list args;
	int n = snprintf(line, sizeof line, "%s", call);
	va_start(args, format);
	n += vsnprintf(line + n, sizeof line - n - 1, format, args);
	va_end(args);
	line[n++] = '\n';
	int fd = log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
	if (fd >= 0) {
		if (write(fd, line, n) != n)
			abort();
		close(fd);
	}
	return fails && !strcmp(fails, call) ? -EBUSY : 0;
}

static int begin(int stage)
{
	if (tell("init", " %d", stage))
		return 1;
	if (stage != STAGE_RESTORE)
		return add_inventory_plugin(CR_PLUGIN_DESC.name);
	return check_and_remove_inventory_plugin(CR_PLUGIN_DESC.name, strlen(CR_PLUGIN_DESC.name)) ? 0 : -1;
}

static void end(int stage, int outcome)
{
	tell("exit", " %d %d", stage, outcome);
}

static int pause_devices(int pid)
{
	return tell("pause", " %d", pid);
}

/* The process must lie still. */
static int checkpoint_devices(int pid)
{
	char path[64], state[256] = "?";
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, state, sizeof state - 1);
	state[n > 0 ? n : 0] = 0;
	close(fd);
	char *behind = strrchr(state, ')');
	return tell("checkpoint", " %d %c", pid, behind ? behind[2] : '?');
}

static void name_of(char name[32], int id)
{
	snprintf(name, 32, "foreign-%x.img", (unsigned int)id);
}

static int dump_file(int fd, int id)
{
	char path[64], target[64] = "", name[32];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	if (readlink(path, target, sizeof target - 1) < 0)
		return -errno;
	if (strcmp(target, "anon_inode:[fscontext]")) {
		tell("other", " %s", target);
		return -ENOTSUP;
	}
	int failed = tell("dump", " %s", target);
	if (failed)
		return failed;
	name_of(name, id);
	int image = openat(criu_get_image_dir(), name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (image < 0)
		return -errno;
	bool whole = write(image, "tmpfs", 5) == 5;
	close(image);
	return whole ? 0 : -EIO;
}

static int restore_file(int id)
{
	char name[32], kind[16] = "";
	name_of(name, id);
	int image = openat(criu_get_image_dir(), name, O_RDONLY | O_CLOEXEC);
	if (image < 0 || read(image, kind, sizeof kind - 1) < 0)
		return -1;
	close(image);
	tell("restore", " %s", kind);
	return syscall(SYS_fsopen, kind, 0);
}

static int handle_device(int fd, const struct stat *stat)
{
	struct stat found;
	if (fstat(fd, &found) || found.st_rdev != stat->st_rdev)
		return -EINVAL;
	if (!S_ISBLK(stat->st_mode) || major(stat->st_rdev) != LOOP_MAJOR)
		return -ENOTSUP;
	return tell("device", " %u", minor(stat->st_rdev));
}

struct record CR_PLUGIN_DESC = {
	.name = "godwit_foreign",
	.init = begin,
	.exit = end,
	.version = CONTRACT_VERSION,
	.hooks_len = HOOKS,
	.hooks = {
		[DUMP_EXT_FILE] = (void *)dump_file,
		[RESTORE_EXT_FILE] = (void *)restore_file,
		[HANDLE_DEVICE_VMA] = (void *)handle_device,
		[PAUSE_DEVICES] = (void *)pause_devices,
		[CHECKPOINT_DEVICES] = (void *)checkpoint_devices,
	},
};
