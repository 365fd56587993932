// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * quota.c - charges per uid. A uid's record appears with its first charge and
 * goes with its last release, so the list is as long as there are users now.
 *
 * What can fail: a charge over the limit, and memory for a new record.
 * Thread: control.
 */
#include "daemon/control/quota.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static const struct {
	const char *noun, *key;
} kind_words[QUOTA_KINDS] = {
	[QUOTA_CONNECTIONS] = { "connections", "connections" },
	[QUOTA_OWNERS] = { "mirrored processes", "owners" },
	[QUOTA_FDS] = { "descriptors", "fds" },
	[QUOTA_REQUESTS] = { "unanswered requests", "requests" },
	[QUOTA_RINGS] = { "bytes of event rings and tracks", "rings" },
};

static struct quota_user *find_user(const struct quota *quota, uid_t uid)
{
	struct quota_user *user;

	for (user = quota->users; user; user = user->next) {
		if (user->uid == uid)
			return user;
	}
	return NULL;
}

static struct quota_user *find_or_add_user(struct quota *quota, uid_t uid)
{
	struct quota_user *user = find_user(quota, uid);

	if (user)
		return user;
	user = calloc(1, sizeof(*user));
	if (!user)
		return NULL;
	user->uid = uid;
	user->next = quota->users;
	quota->users = user;
	return user;
}

static void drop_if_idle(struct quota *quota, uid_t uid)
{
	struct quota_user **link, *user;
	unsigned int i;

	for (link = &quota->users; (user = *link); link = &user->next) {
		if (user->uid == uid)
			break;
	}
	if (!user)
		return;
	for (i = 0; i < QUOTA_KINDS; i++) {
		if (user->used[i])
			return;
	}
	*link = user->next;
	free(user);
}

void quota_deinit(struct quota *quota)
{
	struct quota_user *user;

	while ((user = quota->users)) {
		quota->users = user->next;
		free(user);
	}
}

int quota_charge(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count, char *why,
		 size_t size)
{
	struct quota_user *user = find_or_add_user(quota, uid);

	if (!user) {
		snprintf(why, size, "hmmd is out of memory");
		return -ENOMEM;
	}
	/* Who asks for nothing is refused nothing, though a limit was lowered below what it has. */
	if (count && user->used[kind] + count > quota->limit[kind]) {
		snprintf(why, size,
			 "uid %u has %llu of %llu %s and asks for %llu more; "
			 "'%s' in [limits] of hmmd.conf sets the limit",
			 uid, (unsigned long long)user->used[kind],
			 (unsigned long long)quota->limit[kind], kind_words[kind].noun,
			 (unsigned long long)count, kind_words[kind].key);
		drop_if_idle(quota, uid);
		return -EDQUOT;
	}
	user->used[kind] += count;
	return 0;
}

void quota_charge_anyway(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count)
{
	struct quota_user *user = find_user(quota, uid);

	/*
	 * Whoever gets something more has something already; without a record there is nothing to
	 * bound.
	 */
	if (user)
		user->used[kind] += count;
}

void quota_release(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count)
{
	struct quota_user *user = find_user(quota, uid);

	if (!count)
		return;
	assert(user && user->used[kind] >= count);
	user->used[kind] -= count;
	drop_if_idle(quota, uid);
}

uint64_t quota_used(const struct quota *quota, uid_t uid, enum quota_kind kind)
{
	const struct quota_user *user = find_user(quota, uid);

	return user ? user->used[kind] : 0;
}
