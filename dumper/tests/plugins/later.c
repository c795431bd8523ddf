/* A plugin of a later contract: -DVERSION=, -DHOOKS_LEN=, or one that wants of CRIU what nobody else has: -DWANTS=. */
#include "contract.h"

#ifndef VERSION
#define VERSION CONTRACT_VERSION
#endif
#ifndef HOOKS_LEN
#define HOOKS_LEN HOOKS
#endif
#ifdef WANTS
extern int WANTS(int);
#else
#define WANTS(stage) (stage)
#endif

static int begin(int stage)
{
	return WANTS(stage);
}

struct record CR_PLUGIN_DESC = { .name = "later", .init = begin, .version = VERSION, .hooks_len = HOOKS_LEN };
