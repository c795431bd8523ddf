/*
 * A process whose root directory is not the machine's, with its working directory below it.
 */
#include "victim.h"

int main(void)
{
	struct stat root, now, cwd, cwd_now;
	char path[PATH_MAX];
	victim_start();
	must(mkdir("jail", 0755));
	must(mkdir("jail/inside", 0755));
	close(must(open("jail/marker", O_CREAT | O_WRONLY, 0644)));
	/* The way to "check" leaves the jail through a working directory that is opened before. */
	int outside = must(open(".", O_RDONLY | O_DIRECTORY));
	must(chroot("jail"));
	must(chdir("/inside"));
	must(stat("/", &root));
	must(stat(".", &cwd));

	victim_ready();
	for (int ms = 0; faccessat(outside, "check", F_OK, 0); ms += 10) {
		if (ms > LIFE_SECONDS * 1000)
			_exit(3);
		nap_ms(10);
	}

	must(stat("/", &now));
	must(stat(".", &cwd_now));
	expect("root inode", root.st_ino, now.st_ino);
	expect("cwd inode", cwd.st_ino, cwd_now.st_ino);
	expect_string("cwd", "/inside", getcwd(path, sizeof path) ?: "");
	expect("marker is in the root", 0, access("/marker", F_OK));
	victim_end();
}
