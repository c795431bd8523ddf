/*
 * A process with what only a plugin knows (tests/plugins/foreign.c): "file" a tmpfs that is being set up, as descriptor 77
 * and, through a duplicate, as 78; "device" a shared mapping of a loop device, which it never touches.
 *
 * foreign file|device
 */
#include "victim.h"
#include <linux/mount.h>

static void check_file(void)
{
	char target[64] = "";
	if (readlink("/proc/self/fd/77", target, sizeof target - 1) < 0)
		target[0] = 0;
	expect_string("target", "anon_inode:[fscontext]", target);
	/* Both are one open file: a setting by one is there for the other, and only one can finish it. */
	if (syscall(SYS_fsconfig, 78, FSCONFIG_SET_STRING, "size", "1m", 0))
		fail("fsconfig size: %s", strerror(errno));
	if (syscall(SYS_fsconfig, 77, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		fail("fsconfig create: %s", strerror(errno));
	if (syscall(SYS_fsmount, 78, FSMOUNT_CLOEXEC, 0) < 0)
		fail("fsmount: %s", strerror(errno));
	expect("close on exec of 77", FD_CLOEXEC, fcntl(77, F_GETFD));
	expect("close on exec of 78", 0, fcntl(78, F_GETFD));
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	void *map = NULL;
	victim_start();
	if (!strcmp(what, "file")) {
		int fd = must(syscall(SYS_fsopen, "tmpfs", 0));
		must(dup3(fd, 77, O_CLOEXEC));
		must(dup2(fd, 78));
		close(fd);
	} else if (!strcmp(what, "device")) {
		int fd = open("/dev/loop7", O_RDWR);
		if (fd >= 0)
			map = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
		if (fd < 0 || map == MAP_FAILED) {
			say("CANNOT %s", strerror(errno));
			say("READY %d", victim_pid);
			return 0;
		}
		close(fd);
	} else
		broken("foreign %s", what);
	victim_ready();
	victim_wait();
	if (!map)
		check_file();
	else {
		/* A mapping is there, and it is that of the device. */
		char path[64], target[64] = "";
		snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", (long)map, (long)map + 4 * PAGE);
		if (readlink(path, target, sizeof target - 1) < 0)
			target[0] = 0;
		expect_string("mapping", "/dev/loop7", target);
	}
	victim_end();
}
