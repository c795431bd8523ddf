/*
 * What a plugin for CRIU 4.2 looks like from outside (criu/include/criu-plugin.h, version 0.2), as far as the plugins of
 * these tests go: the record that they export, the numbers of the hooks, and what they find in the program that loads them.
 */
#ifndef GODWIT_PLUGIN_CONTRACT_H
#define GODWIT_PLUGIN_CONTRACT_H

#include <stdbool.h>
#include <stddef.h>

enum hook {
	DUMP_EXT_FILE = 2,
	RESTORE_EXT_FILE = 3,
	HANDLE_DEVICE_VMA = 7,
	UPDATE_VMA_MAP = 8,
	PAUSE_DEVICES = 10,
	CHECKPOINT_DEVICES = 11,
	HOOKS = 13,
};

enum stage { STAGE_DUMP, STAGE_PRE_DUMP, STAGE_RESTORE };

struct record {
	const char *name;
	int (*init)(int stage);
	void (*exit)(int stage, int outcome);
	unsigned int version;
	unsigned int hooks_len;
	void *hooks[HOOKS];
};

#define CONTRACT_VERSION (2u << 8)

/* Of the program: where images lie, and the list of plugins without which they are not restored. */
extern int criu_get_image_dir(void);
extern int add_inventory_plugin(const char *name);
extern bool check_and_remove_inventory_plugin(const char *name, size_t len);

#endif
