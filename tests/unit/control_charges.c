// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * control_charges.c - quotas and keys: what is charged is released, what is
 * over the limit is refused with its figures, a key opens its owner and
 * nothing else.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/quota.h"
#include "daemon/control/rights.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(control);

Test(control, charge_and_release)
{
	struct quota quota = { .limit = { [QUOTA_FDS] = 10, [QUOTA_OWNERS] = 1 } };
	char why[200];

	cr_expect(eq(int, quota_charge(&quota, 7, QUOTA_FDS, 8, why, sizeof(why)), 0));
	cr_expect(eq(int, quota_charge(&quota, 7, QUOTA_FDS, 3, why, sizeof(why)), -EDQUOT));
	cr_expect(eq(
		str, why,
		"uid 7 has 8 of 10 descriptors and asks for 3 more; 'fds' in [limits] of hmmd.conf sets the limit"));
	cr_expect(eq(u64, quota_used(&quota, 7, QUOTA_FDS), 8));
	cr_expect(eq(int, quota_charge(&quota, 7, QUOTA_FDS, 2, why, sizeof(why)), 0));

	/* Another uid has its own. */
	cr_expect(eq(int, quota_charge(&quota, 8, QUOTA_FDS, 10, why, sizeof(why)), 0));
	quota_release(&quota, 7, QUOTA_FDS, 10);
	cr_expect(eq(u64, quota_used(&quota, 7, QUOTA_FDS), 0));
	cr_expect(eq(u64, quota_used(&quota, 8, QUOTA_FDS), 10));
	quota_release(&quota, 8, QUOTA_FDS, 10);
	cr_expect(eq(ptr, quota.users, NULL), "an idle uid's record stays");
}

Test(control, what_has_happened_counts)
{
	struct quota quota = { .limit = { [QUOTA_FDS] = 2, [QUOTA_REQUESTS] = 1 } };
	char why[200];

	cr_expect(eq(int, quota_charge(&quota, 0, QUOTA_FDS, 2, why, sizeof(why)), 0));
	quota_charge_anyway(&quota, 0, QUOTA_FDS, 5);
	cr_expect(eq(int, quota_charge(&quota, 0, QUOTA_FDS, 1, why, sizeof(why)), -EDQUOT));
	cr_expect(eq(u64, quota_used(&quota, 0, QUOTA_FDS), 7));
	quota_release(&quota, 0, QUOTA_FDS, 7);
	cr_expect(eq(ptr, quota.users, NULL));

	/* A limit that was lowered under what is held refuses more and takes nothing away. */
	cr_expect(eq(int, quota_charge(&quota, 0, QUOTA_REQUESTS, 1, why, sizeof(why)), 0));
	quota.limit[QUOTA_REQUESTS] = 0;
	cr_expect(eq(int, quota_charge(&quota, 0, QUOTA_REQUESTS, 1, why, sizeof(why)), -EDQUOT));
	cr_expect(eq(u64, quota_used(&quota, 0, QUOTA_REQUESTS), 1));
	cr_expect(eq(int, quota_charge(&quota, 0, QUOTA_REQUESTS, 0, why, sizeof(why)), 0));
	quota_deinit(&quota);
}

Test(control, a_question_charges_nothing)
{
	struct quota quota = { .limit = { [QUOTA_PINNED] = 10, [QUOTA_MEMORY] = QUOTA_UNLIMITED } };
	char why[200];

	cr_expect(eq(int, quota_ask(&quota, 7, QUOTA_PINNED, 10, why, sizeof(why)), 0));
	cr_expect(eq(int, quota_ask(&quota, 7, QUOTA_PINNED, 11, why, sizeof(why)), -EDQUOT));
	cr_expect(eq(str, why,
		     "uid 7 has 0 of 10 bytes of pinned and coherent memory and asks for 11 more; "
		     "'pinned' in [limits] of hmmd.conf sets the limit"));
	cr_expect(eq(ptr, quota.users, NULL));
	/* Sums that no number holds. */
	cr_expect(eq(int, quota_charge(&quota, 7, QUOTA_MEMORY, UINT64_MAX - 1, why, sizeof(why)), 0));
	cr_expect(eq(int, quota_ask(&quota, 7, QUOTA_MEMORY, 2, why, sizeof(why)), -EDQUOT));
	cr_expect(eq(int, quota_charge(&quota, 7, QUOTA_MEMORY, 1, why, sizeof(why)), 0));
	quota_release(&quota, 7, QUOTA_MEMORY, UINT64_MAX);
	cr_expect(eq(ptr, quota.users, NULL));
}

Test(control, usage_in_order)
{
	const uint64_t limit[QUOTA_KINDS] = { [QUOTA_FDS] = 100 };
	struct quota_usage usage[2 * QUOTA_KINDS];
	const uid_t nine = 9, ten = 10;
	struct quota quota;
	unsigned int n, whole;
	char why[200];

	quota_init(&quota);
	quota_set_limits(&quota, limit);
	cr_expect(eq(int, quota_charge(&quota, 9, QUOTA_FDS, 2, why, sizeof(why)), 0));
	cr_expect(eq(int, quota_charge(&quota, 3, QUOTA_FDS, 1, why, sizeof(why)), 0));
	whole = quota_list(&quota, NULL, 0, usage, 2 * QUOTA_KINDS);
	cr_assert(eq(uint, whole, 2 * QUOTA_KINDS));
	cr_expect(eq(uint, usage[0].uid, 3));
	cr_expect(eq(uint, usage[QUOTA_KINDS].uid, 9));
	cr_expect(eq(u64, usage[QUOTA_KINDS + QUOTA_FDS].used, 2));
	cr_expect(eq(u64, usage[QUOTA_KINDS + QUOTA_FDS].limit, 100));
	cr_expect(eq(str, (char *)usage[QUOTA_FDS].key, "fds"));
	/* A piece at a time it is the same. */
	n = quota_list(&quota, NULL, QUOTA_KINDS - 1, usage, 2);
	cr_expect(eq(uint, n, 2));
	cr_expect(eq(uint, usage[0].uid, 3));
	cr_expect(eq(uint, usage[1].uid, 9));
	cr_expect(eq(uint, quota_list(&quota, NULL, whole, usage, 2), 0));
	cr_expect(eq(uint, quota_list(&quota, &nine, 0, usage, 2 * QUOTA_KINDS), QUOTA_KINDS));
	cr_expect(eq(uint, usage[0].uid, 9));
	cr_expect(eq(uint, quota_list(&quota, &ten, 0, usage, 2), 0));
	quota_deinit(&quota);
}

Test(control, keys_by_identity)
{
	struct rights rights = { 0 };
	struct rights_owner *one = rights_add(&rights, 1, geteuid(), 100),
			    *two = rights_add(&rights, 2, geteuid(), 200);
	int key = memfd_create("key", MFD_CLOEXEC), same = fcntl(key, F_DUPFD_CLOEXEC, 3);
	int other = memfd_create("key", MFD_CLOEXEC);
	uint32_t owner = 0;

	cr_expect(eq(ptr, rights_add(&rights, 1, 5, 5), one));
	cr_expect(eq(int, rights_open(&rights, key, &owner), -ENOENT));
	cr_expect(eq(int, rights_export_consume_fd(&rights, one, geteuid(), key), 0));
	cr_expect(eq(int, rights_open(&rights, same, &owner), 0));
	cr_expect(eq(u32, owner, 1));
	cr_expect(eq(int, rights_open(&rights, other, &owner), -ENOENT));
	cr_expect(eq(int, rights_export_consume_fd(&rights, one, geteuid(), same), 1));
	cr_expect(eq(int, rights_export_consume_fd(&rights, two, geteuid(), same), -EEXIST));
	cr_expect(eq(int, rights_export_consume_fd(&rights, two, geteuid() + 1, other), -EINVAL));

	rights_remove(&rights, 1);
	cr_expect(eq(int, rights_open(&rights, same, &owner), -ENOENT));
	cr_expect(eq(ptr, rights_find(&rights, 1), NULL));
	cr_expect(eq(ptr, rights_find(&rights, 2), two));
	close(same);
	close(other);
	rights_deinit(&rights);
}

Test(control, what_is_no_key)
{
	struct rights rights = { 0 };
	struct rights_owner *owner = rights_add(&rights, 1, geteuid(), 100);
	int pair[2], null = open("/dev/null", O_RDWR | O_CLOEXEC);
	uint32_t id;

	cr_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	cr_expect(eq(int, rights_export_consume_fd(&rights, owner, geteuid(), null), -EINVAL));
	cr_expect(eq(int, rights_export_consume_fd(&rights, owner, geteuid(), pair[0]), -EINVAL));
	cr_expect(eq(int, rights_open(&rights, pair[0], &id), -EINVAL));
	cr_expect(eq(int, rights_open(&rights, null, &id), -EINVAL));
	close(null);
	close(pair[0]);
	close(pair[1]);
	rights_deinit(&rights);
}

Test(control, keys_are_counted)
{
	struct rights rights = { 0 };
	struct rights_owner *owner = rights_add(&rights, 1, geteuid(), 100);
	int i, fd;

	for (i = 0; i < RIGHTS_KEYS_MAX; i++) {
		fd = memfd_create("key", MFD_CLOEXEC);
		cr_assert(eq(int, rights_export_consume_fd(&rights, owner, geteuid(), fd), 0));
	}
	fd = memfd_create("key", MFD_CLOEXEC);
	cr_expect(eq(int, rights_export_consume_fd(&rights, owner, geteuid(), fd), -EMFILE));
	close(fd);
	rights_deinit(&rights);
}
