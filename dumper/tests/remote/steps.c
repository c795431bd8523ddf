/*
 * usage: steps: changes its memory map in a way that a tracker could be fooled by, a step at each SIGUSR1, and says so.
 * Between two steps it does nothing at all.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define SIZE (8ul << 20)
#define BESIDE (64 * PAGE)
#define AREA ((char *)0x200000000000ul)
#define OTHER (AREA + 8 * SIZE)

/* Without a content it is left untouched. */
static void map(char *at, unsigned long size, char content)
{
	if (mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at)
		exit(2);
	/* Whole page tables are moved only where there are page tables. */
	madvise(at, size, MADV_NOHUGEPAGE);
	for (unsigned long i = 0; content && i < size; i += PAGE)
		at[i] = content;
}

static void say(const char *what)
{
	if (write(1, what, strlen(what)) < 0)
		exit(3);
}

static void wait_for_next(void)
{
	sigset_t set;
	int signal;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigwait(&set, &signal);
}

int main(int argc, char **argv)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (argc > 1) {
		map(AREA, SIZE, 5);
		say("EXECUTED\n");
		for (;;)
			wait_for_next();
	}
	map(AREA, SIZE, 1);
	say("READY\n");
	wait_for_next();
	for (unsigned long i = 0; i < 100; i++)
		AREA[2 * i * PAGE] = 2;
	map(AREA + SIZE / 2, SIZE / 2, 3);
	say("REPLACED\n");
	wait_for_next();
	map(OTHER, SIZE, 4);
	say("MAPPED\n");
	wait_for_next();
	if (mremap(OTHER, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, AREA) != AREA)
		exit(4);
	say("MOVED\n");
	wait_for_next();
	/* What was never touched is joined with what it comes to lie beside. */
	map(AREA, SIZE, 6);
	map(OTHER, BESIDE, 0);
	say("BESIDE\n");
	wait_for_next();
	if (mremap(OTHER, BESIDE, BESIDE, MREMAP_MAYMOVE | MREMAP_FIXED, AREA + SIZE) != AREA + SIZE)
		exit(6);
	for (unsigned long i = 0; i < 50; i++)
		AREA[3 * i * PAGE] = 7;
	say("JOINED\n");
	wait_for_next();
	for (unsigned long i = 0; i < 50; i++)
		AREA[3 * i * PAGE] = 8;
	say("WRITTEN\n");
	wait_for_next();
	execl("/proc/self/exe", argv[0], "again", NULL);
	exit(5);
}
