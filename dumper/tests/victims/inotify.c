/*
 * Watches of inotify: their numbers, events and files, a group without any, and a thread that waits.
 */
#include "victim.h"
#include <poll.h>
#include <sys/inotify.h>

enum { GROUP = 10, DUPLICATE, EMPTY, WAITED };

static int dir_wd, file_wd, link_wd;

static void group_at(int fd, int flags)
{
	int made = must(inotify_init1(flags));
	must(dup2(made, fd));
	close(made);
}

static void make(const char *path)
{
	close(must(open(path, O_CREAT | O_WRONLY, 0600)));
}

/* The next event, which must be this one. A restore opens what is watched, so only what is not of its making is waited for. */
static void expect_event(const char *field, int fd, int wd, uint32_t mask, const char *name)
{
	char buffer[4096] __attribute__((aligned(8)));
	struct inotify_event *event = (void *)buffer;
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	memset(buffer, 0, sizeof buffer);
	if (poll(&ready, 1, 3000) != 1 || read(fd, buffer, sizeof *event + 16) <= 0) {
		fail("%s: no event came", field);
		return;
	}
	expect(field, wd, event->wd);
	expect(field, mask, event->mask);
	expect_string(field, name, event->len ? event->name : "");
}

static void expect_none(const char *field, int fd)
{
	char buffer[4096];
	expect(field, -1, read(fd, buffer, sizeof buffer));
	expect(field, EAGAIN, errno);
}

static atomic_int waits;
static struct inotify_event waited;

static void *wait_for_it(void *unused)
{
	atomic_store(&waits, 1);
	if (read(WAITED, &waited, sizeof waited) != sizeof waited)
		waited.wd = -1;
	return unused;
}

int main(void)
{
	pthread_t waiter;
	victim_start();
	must(mkdir("watched dir", 0755));
	make("watched dir/file");
	make("other");
	must(link("other", "linked"));
	group_at(GROUP, IN_NONBLOCK);
	must(dup2(GROUP, DUPLICATE));
	must(fcntl(DUPLICATE, F_SETFD, FD_CLOEXEC));
	group_at(EMPTY, IN_NONBLOCK);
	group_at(WAITED, 0);
	/* Numbers with gaps. */
	for (int i = 0; i < 5; i++)
		must(inotify_rm_watch(EMPTY, must(inotify_add_watch(EMPTY, "other", IN_ATTRIB))));
	for (char buffer[256]; read(EMPTY, buffer, sizeof buffer) > 0;)
		;
	int gap = must(inotify_add_watch(GROUP, ".", IN_ATTRIB));
	dir_wd = must(inotify_add_watch(GROUP, "watched dir", IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO));
	file_wd = must(inotify_add_watch(GROUP, "watched dir/file", IN_MODIFY | IN_ATTRIB));
	link_wd = must(inotify_add_watch(GROUP, "linked", IN_MODIFY));
	must(inotify_rm_watch(GROUP, gap));
	for (char buffer[256]; read(GROUP, buffer, sizeof buffer) > 0;)
		;
	must(inotify_add_watch(WAITED, "other", IN_ATTRIB));
	must0(pthread_create(&waiter, NULL, wait_for_it, NULL));
	while (!atomic_load(&waits))
		nap_ms(1);
	victim_ready();
	victim_wait();

	expect("nonblocking", O_NONBLOCK, fcntl(GROUP, F_GETFL) & O_NONBLOCK);
	expect("blocking", 0, fcntl(WAITED, F_GETFL) & O_NONBLOCK);
	expect("close-on-exec", FD_CLOEXEC, fcntl(DUPLICATE, F_GETFD));
	expect_none("nothing yet", GROUP);
	make("watched dir/new");
	expect_event("create", GROUP, dir_wd, IN_CREATE, "new");
	must(rename("watched dir/new", "moved"));
	expect_event("moved from", DUPLICATE, dir_wd, IN_MOVED_FROM, "new");
	expect_none("opening is not watched", GROUP);
	must(chmod("watched dir/file", 0640));
	expect_event("attributes", GROUP, file_wd, IN_ATTRIB, "");
	must(truncate("other", 10));
	expect_event("by another link", GROUP, link_wd, IN_MODIFY, "");
	expect_none("nothing of the directory itself", GROUP);
	expect("the same number for the same file", file_wd, inotify_add_watch(GROUP, "watched dir/file", IN_ATTRIB));
	expect("a new file has another", true, inotify_add_watch(GROUP, "moved", IN_ATTRIB) > 0);
	expect_none("none is watched", EMPTY);
	must(chmod("other", 0604));
	must0(pthread_join(waiter, NULL));
	expect("the waiting thread", 1, waited.wd);
	expect("what it was told", IN_ATTRIB, waited.mask);
	victim_end();
}
