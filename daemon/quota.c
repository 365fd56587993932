// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * quota.c - charges per uid. A uid's record appears with its first charge and
 * goes with its last release, so the list is as long as there are users now; it is
 * kept in order. One lock, held for some comparisons: workers charge whole blocks.
 *
 * What can fail: a charge over the limit, and memory for a new record.
 * Threads: any.
 */
#include "daemon/quota.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *noun, *key;
} kind_words[QUOTA_KINDS] = {
	[QUOTA_CONNECTIONS] = { "connections", "connections" },
	[QUOTA_OWNERS] = { "mirrored processes", "owners" },
	[QUOTA_FDS] = { "descriptors", "fds" },
	[QUOTA_REQUESTS] = { "unanswered requests", "requests" },
	[QUOTA_RINGS] = { "bytes of event rings and tracks", "rings" },
	[QUOTA_MIRRORS] = { "mirrors", "mirrors" },
	[QUOTA_MEMORY] = { "bytes of devices' memory", "memory" },
	[QUOTA_PINNED] = { "bytes of pinned and coherent memory", "pinned" },
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
	struct quota_user **link = &quota->users, *user;

	while (*link && (*link)->uid < uid)
		link = &(*link)->next;
	if (*link && (*link)->uid == uid)
		return *link;
	user = calloc(1, sizeof(*user));
	if (!user)
		return NULL;
	user->uid = uid;
	user->next = *link;
	*link = user;
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

void quota_init(struct quota *quota)
{
	*quota = (struct quota) { 0 };
	pthread_mutex_init(&quota->lock, NULL);
}

void quota_deinit(struct quota *quota)
{
	struct quota_user *user;

	pthread_mutex_destroy(&quota->lock);
	while ((user = quota->users)) {
		quota->users = user->next;
		free(user);
	}
}

void quota_set_limits(struct quota *quota, const uint64_t limit[QUOTA_KINDS])
{
	pthread_mutex_lock(&quota->lock);
	memcpy(quota->limit, limit, sizeof(quota->limit));
	pthread_mutex_unlock(&quota->lock);
}

static int ask(const struct quota *quota, const struct quota_user *user, enum quota_kind kind,
	       uint64_t count, char *why, size_t size)
{
	const uint64_t limit = quota->limit[kind], used = user->used[kind];

	/* Who asks for nothing is refused nothing, though a limit was lowered below what it has. */
	if (!count || (used <= limit && count <= limit - used))
		return 0;
	snprintf(why, size,
		 "uid %u has %llu of %llu %s and asks for %llu more; "
		 "'%s' in [limits] of hmmd.conf sets the limit",
		 user->uid, (unsigned long long)used, (unsigned long long)limit, kind_words[kind].noun,
		 (unsigned long long)count, kind_words[kind].key);
	return -EDQUOT;
}

int quota_charge(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count, char *why,
		 size_t size)
{
	struct quota_user *user;
	int r = -ENOMEM;

	pthread_mutex_lock(&quota->lock);
	user = find_or_add_user(quota, uid);
	if (user)
		r = ask(quota, user, kind, count, why, size);
	else
		snprintf(why, size, "hmmd is out of memory");
	if (!r)
		user->used[kind] += count;
	else
		drop_if_idle(quota, uid);
	pthread_mutex_unlock(&quota->lock);
	return r;
}

int quota_ask(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count, char *why,
	      size_t size)
{
	const struct quota_user *user, none = { .uid = uid };
	int r;

	pthread_mutex_lock(&quota->lock);
	user = find_user(quota, uid);
	r = ask(quota, user ? user : &none, kind, count, why, size);
	pthread_mutex_unlock(&quota->lock);
	return r;
}

void quota_charge_anyway(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count)
{
	struct quota_user *user;

	pthread_mutex_lock(&quota->lock);
	user = find_user(quota, uid);
	/*
	 * Whoever gets something more has something already; without a record there is nothing to
	 * bound.
	 */
	if (user)
		user->used[kind] += count;
	pthread_mutex_unlock(&quota->lock);
}

void quota_release(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count)
{
	struct quota_user *user;

	if (!count)
		return;
	pthread_mutex_lock(&quota->lock);
	user = find_user(quota, uid);
	assert(user && user->used[kind] >= count);
	user->used[kind] -= count;
	drop_if_idle(quota, uid);
	pthread_mutex_unlock(&quota->lock);
}

uint64_t quota_used(struct quota *quota, uid_t uid, enum quota_kind kind)
{
	const struct quota_user *user;
	uint64_t used;

	pthread_mutex_lock(&quota->lock);
	user = find_user(quota, uid);
	used = user ? user->used[kind] : 0;
	pthread_mutex_unlock(&quota->lock);
	return used;
}

unsigned int quota_list(struct quota *quota, const uid_t *only, unsigned int cursor, struct quota_usage *out,
			unsigned int max)
{
	const struct quota_user *user;
	unsigned int count = 0, kind;

	pthread_mutex_lock(&quota->lock);
	for (user = quota->users; user; user = user->next) {
		if (only && user->uid != *only)
			continue;
		for (kind = 0; kind < QUOTA_KINDS && count < max; kind++) {
			if (cursor) {
				cursor--;
				continue;
			}
			out[count++] = (struct quota_usage) {
				user->uid, kind_words[kind].key, user->used[kind], quota->limit[kind],
			};
		}
	}
	pthread_mutex_unlock(&quota->lock);
	return count;
}
