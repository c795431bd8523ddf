/*
 * Marks of fanotify: on a file, on a directory with its children, on a mount, and masks of what is ignored.
 */
#include "victim.h"
#include <poll.h>
#include <sys/fanotify.h>
#include <sys/mount.h>

enum { FILES = 10, MOUNT, IDS };

static char here[PATH_MAX], shm[64];

static void group_at(int fd, unsigned flags, unsigned event_flags)
{
	int made = fanotify_init(flags | FAN_CLASS_NOTIF | FAN_NONBLOCK, event_flags);
	if (made == -1)
		broken("fanotify_init");
	must(dup2(made, fd));
	close(made);
}

static void touch(const char *path)
{
	close(must(open(path, O_CREAT | O_WRONLY, 0600)));
}

/* The next event of this process, which must be of this file. */
static void expect_event(const char *field, int fd, uint64_t mask, const char *path, int flags)
{
	struct fanotify_event_metadata event;
	char link[64], target[PATH_MAX] = { 0 }, wanted[PATH_MAX + 64];
	do {
		struct pollfd ready = { .fd = fd, .events = POLLIN };
		if (poll(&ready, 1, 3000) != 1 || read(fd, &event, sizeof event) <= 0) {
			fail("%s: no event came", field);
			return;
		}
		if (event.pid != victim_pid)
			close(event.fd);
	} while (event.pid != victim_pid);
	snprintf(link, sizeof link, "/proc/self/fd/%d", event.fd);
	must(readlink(link, target, sizeof target - 1));
	snprintf(wanted, sizeof wanted, "%s%s%s", *path == '/' ? "" : here, *path == '/' ? "" : "/", path);
	expect_string(field, wanted, target);
	expect(field, mask, event.mask);
	expect(field, flags, fcntl(event.fd, F_GETFL) & (O_ACCMODE | O_NONBLOCK | O_APPEND));
	close(event.fd);
}

static void expect_none(const char *field, int fd)
{
	struct fanotify_event_metadata event;
	while (read(fd, &event, sizeof event) > 0) {
		close(event.fd);
		if (event.pid == victim_pid)
			fail("%s: event 0x%llx came", field, (unsigned long long)event.mask);
	}
}

int main(void)
{
	victim_start();
	if (!getcwd(here, sizeof here))
		broken("getcwd");
	must(mkdir("dir", 0755));
	touch("dir/child");
	touch("file");
	touch("ignored");
	snprintf(shm, sizeof shm, "/dev/shm/godwit-fanotify-%d", victim_pid);
	group_at(FILES, 0, O_RDONLY | O_NONBLOCK);
	must(fanotify_mark(FILES, FAN_MARK_ADD, FAN_CLOSE_WRITE, AT_FDCWD, "file"));
	must(fanotify_mark(FILES, FAN_MARK_ADD, FAN_OPEN | FAN_EVENT_ON_CHILD | FAN_ONDIR, AT_FDCWD, "dir"));
	group_at(MOUNT, FAN_UNLIMITED_QUEUE, O_RDWR | O_APPEND);
	must(fanotify_mark(MOUNT, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_CLOSE_WRITE, AT_FDCWD, "/dev/shm"));
	must(fanotify_mark(MOUNT, FAN_MARK_ADD, FAN_MODIFY | FAN_CLOSE_WRITE, AT_FDCWD, "ignored"));
	must(fanotify_mark(MOUNT, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_CLOSE_WRITE,
			   AT_FDCWD, "ignored"));
	must(fcntl(MOUNT, F_SETFD, FD_CLOEXEC));
	expect_none("before", FILES);
	expect_none("before", MOUNT);
	victim_ready();
	victim_wait();

	expect("nonblocking", O_NONBLOCK, fcntl(FILES, F_GETFL) & O_NONBLOCK);
	expect("close-on-exec", FD_CLOEXEC, fcntl(MOUNT, F_GETFD));
	/* What the restore itself did is told too. */
	expect_none("of the restore", FILES);
	expect_none("of the restore", MOUNT);
	touch("file");
	expect_event("close of a file", FILES, FAN_CLOSE_WRITE, "file", O_NONBLOCK);
	touch("dir/child");
	expect_event("opening a child", FILES, FAN_OPEN, "dir/child", O_NONBLOCK);
	touch("ignored");
	expect_none("nobody watches that", FILES);
	expect_none("ignored", MOUNT);
	int fd = must(open("ignored", O_WRONLY | O_APPEND));
	must(write(fd, "x", 1));
	close(fd);
	expect_event("modified", MOUNT, FAN_MODIFY, "ignored", O_RDWR | O_APPEND);
	touch("ignored");
	expect_none("ignored although it was modified", MOUNT);
	touch(shm);
	expect_event("on the mount", MOUNT, FAN_CLOSE_WRITE, shm, O_RDWR | O_APPEND);
	unlink(shm);
	victim_end();
}
