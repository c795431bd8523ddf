/* What /proc/self/smaps says of one mapping. */
#ifndef SMAPS_H
#define SMAPS_H
#include "victim.h"

struct mapping_line {
	unsigned long start, end;
	int prot;
	bool shared;
	/* A blank before each flag and behind the last. */
	char flags[256];
	unsigned long page_kib, locked_kib, huge_kib;
};

/* The mapping that `at` lies in, or false. The file is read anew each time: memory may have changed in between. */
__attribute__((unused)) static bool mapping_of(const void *at, struct mapping_line *found)
{
	FILE *file = fopen("/proc/self/smaps", "re");
	char line[PATH_MAX + 256];
	bool inside = false, seen = false;
	if (!file)
		broken("smaps");
	memset(found, 0, sizeof *found);
	while (fgets(line, sizeof line, file)) {
		unsigned long start, end;
		char mode[8];
		if (sscanf(line, "%lx-%lx %7s", &start, &end, mode) == 3) {
			inside = start <= (unsigned long)at && (unsigned long)at < end;
			if (!inside)
				continue;
			seen = true;
			found->start = start;
			found->end = end;
			found->prot = (mode[0] == 'r' ? PROT_READ : 0) | (mode[1] == 'w' ? PROT_WRITE : 0) |
				      (mode[2] == 'x' ? PROT_EXEC : 0);
			found->shared = mode[3] == 's';
		} else if (inside) {
			sscanf(line, "KernelPageSize: %lu", &found->page_kib);
			sscanf(line, "Locked: %lu", &found->locked_kib);
			sscanf(line, "AnonHugePages: %lu", &found->huge_kib);
			if (!strncmp(line, "VmFlags: ", 9))
				snprintf(found->flags, sizeof found->flags, " %.*s ", (int)strcspn(line + 9, "\n"),
					 line + 9);
		}
	}
	fclose(file);
	return seen;
}

__attribute__((unused)) static bool has_flag(const struct mapping_line *mapping, const char *flag)
{
	char padded[8];
	snprintf(padded, sizeof padded, " %s ", flag);
	return strstr(mapping->flags, padded) != NULL;
}
#endif
