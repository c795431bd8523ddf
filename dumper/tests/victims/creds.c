/*
 * Credentials: all ids different, supplementary groups, five capability sets, securebits, no_new_privs,
 * and one thread that has less than the others.
 *
 * creds [same-uid]: with `same-uid` the eight ids stay as they are, for a dumper that may read the limits of
 * its own user's processes only (CRIU without CAP_SYS_RESOURCE).
 */
#include "victim.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>

static const char *fields[] = { "Uid",	  "Gid",    "Groups", "CapInh", "CapPrm",
				"CapEff", "CapBnd", "CapAmb", "NoNewPrivs" };
#define FIELDS (int)(sizeof fields / sizeof *fields)

struct credentials {
	char field[FIELDS][256];
	int securebits, dumpable, keep_caps;
};

static void read_credentials(struct credentials *c)
{
	for (int i = 0; i < FIELDS; i++)
		status_field(fields[i], c->field[i], sizeof c->field[i]);
	c->securebits = prctl(PR_GET_SECUREBITS);
	c->dumpable = prctl(PR_GET_DUMPABLE);
	c->keep_caps = prctl(PR_GET_KEEPCAPS);
}

static void compare(const char *who, const struct credentials *set, const struct credentials *got)
{
	char field[64];
	for (int i = 0; i < FIELDS; i++) {
		snprintf(field, sizeof field, "%s %s", who, fields[i]);
		expect_string(field, set->field[i], got->field[i]);
	}
	expect(who, set->securebits, got->securebits);
	expect("dumpable", set->dumpable, got->dumpable);
	expect("keep_caps", set->keep_caps, got->keep_caps);
}

static void set_caps(uint64_t effective, uint64_t permitted, uint64_t inheritable)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = {
		{ effective, permitted, inheritable },
		{ effective >> 32, permitted >> 32, inheritable >> 32 },
	};
	must(syscall(SYS_capset, &header, data));
}

static struct credentials mine, threads_own;
static atomic_int phase;

static void *weaker(void *argument)
{
	struct credentials now;
	(void)argument;
	set_caps(0, 1ull << CAP_CHOWN, 0);
	read_credentials(&threads_own);
	phase = 1;
	while (phase == 1)
		nap_ms(5);
	read_credentials(&now);
	compare("thread", &threads_own, &now);
	return NULL;
}

int main(int argc, char **argv)
{
	static const gid_t groups[] = { 77, 4242, 1000, 65534 };
	static const int dropped[] = { CAP_SYS_MODULE, CAP_SYS_BOOT, CAP_AUDIT_CONTROL };
	pthread_t thread;
	struct credentials now;
	victim_start();
	/* Set up by system call: libc would do it for all threads, and there are none yet. */
	for (int i = 0; i < 3; i++)
		must(prctl(PR_CAPBSET_DROP, dropped[i]));
	must(setgroups(4, groups));
	must(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_NOROOT));
	if (argc < 2 || strcmp(argv[1], "same-uid")) {
		must(setresgid(1001, 1002, 1003));
		must(setresuid(2001, 2002, 2003));
		setfsgid(1001);
		setfsuid(2001);
	}
	uint64_t chown = 1ull << CAP_CHOWN, raw = 1ull << CAP_NET_RAW, kill = 1ull << CAP_KILL;
	set_caps(chown | kill, chown | raw | kill, raw | kill);
	must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0));
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	must0(pthread_create(&thread, NULL, weaker, NULL));
	while (phase != 1)
		nap_ms(1);
	read_credentials(&mine);

	victim_ready();
	victim_wait();

	read_credentials(&now);
	compare("leader", &mine, &now);
	phase = 2;
	must0(pthread_join(thread, NULL));
	victim_end();
}
