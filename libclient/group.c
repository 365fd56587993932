/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * group.c - one mirror of several devices.
 *
 * A group of devices is the library's own: hmmd knows its members alone. A mirror of it is
 * one of each member, the last one registered first, and what the program registered stands for
 * member 0, whose callbacks are the group's: hmmd asks every mirror that has some, so each change
 * is told once. A restart finds nothing but ordinary mirrors.
 *
 * What needs one device (a migration, a window...) refuses the group and wants the member. A range
 * over the group has pages that all members reach alike: range.c asks for them at home.
 *
 * What fails half way is undone; hmm_mirror_unregister() that cannot go on is asked again, and
 * goes on with those that are left. Runs in the program's threads.
 */
#include <stdio.h>

#include "arena.h"
#include "dispatch.h"
#include "group.h"

static const struct hmm_mirror_ops no_callbacks = { .size = sizeof(no_callbacks) };

struct group {
	struct hmm_mirror *mirror;	/* the program's */
	struct hmm_device *device;	/* referenced */
	struct hmm_mirror members[HMM_MIRRORS_MAX];
};

/* ---- devices ------------------------------------------------------------------------ */

static int check_members(const struct hmm *hmm, struct hmm_device *const *devices,
			 unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		if (!devices[i] || devices[i]->hmm != hmm)
			return hmmc_fail(-EINVAL,
					 "device %u is NULL, or was opened on another handle", i);
		if (devices[i]->count)
			return hmmc_fail(-EINVAL, "device %u is a group itself", i);
		/* It is stopped for changes of its own, and goes on after them. */
		if (!(devices[i]->caps & HMM_DEVICE_FAULTS))
			return hmmc_fail(-EOPNOTSUPP,
					 "device %u was made without HMM_DEVICE_FAULTS: it has a mirror to itself", i);
		for (unsigned int j = 0; j < i; j++)
			if (devices[j] == devices[i])
				return hmmc_fail(-EINVAL, "devices %u and %u are the same", j, i);
	}
	return 0;
}

int hmm_device_group(struct hmm *hmm, struct hmm_device *const *devices, unsigned int count,
		     struct hmm_device **result)
{
	struct hmm_device *group;
	int error = hmmc_space_check(hmm);

	if (error)
		return error;
	if (!devices || !result || !count || count > HMM_MIRRORS_MAX)
		return hmmc_fail(-EINVAL, "devices or result is NULL, or count is not 1 to %d",
				 HMM_MIRRORS_MAX);
	error = check_members(hmm, devices, count);
	if (error)
		return error;
	group = hmmc_arena_alloc(sizeof(*group));
	if (!group)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	group->hmm = hmm;
	group->references = 1;
	group->count = count;
	snprintf(group->name, sizeof(group->name), "group");
	group->caps = ~0ULL;
	for (unsigned int i = 0; i < count; i++) {
		group->caps &= devices[i]->caps;
		group->members[i] = devices[i];
		group->memory += devices[i]->memory;
		hmmc_device_reference(devices[i]);
	}
	futex_lock(&hmm->lock);
	group->next = hmm->groups;
	hmm->groups = group;
	futex_unlock(&hmm->lock);
	*result = group;
	return 0;
}

void hmmc_group_free(struct hmm_device *group)
{
	struct hmm *hmm = group->hmm;
	struct hmm_device **at;

	futex_lock(&hmm->lock);
	for (at = &hmm->groups; *at != group; at = &(*at)->next)
		;
	*at = group->next;
	futex_unlock(&hmm->lock);
	for (unsigned int i = 0; i < group->count; i++)
		hmm_device_put(group->members[i]);
	hmmc_arena_free(group, sizeof(*group));
}

/* ---- mirrors ------------------------------------------------------------------------ */

bool hmmc_mirror_is_group(const struct hmm_mirror *mirror)
{
	return mirror && mirror->priv && mirror->priv->group && mirror->priv->group->mirror == mirror;
}

struct hmm_mirror *hmmc_mirror_whole(const struct hmm_mirror_private *mirror)
{
	return mirror->group ? mirror->group->mirror : mirror->mirror;
}

/* Return: -EBUSY, -ENOMEM: one of them stays. Else all are gone. */
static int leave(struct group *group)
{
	int error = 0, failed;

	for (unsigned int i = group->device->count; i-- > 0;) {
		failed = group->members[i].priv ? hmmc_mirror_leave(&group->members[i]) : 0;
		if (failed == -EBUSY || failed == -ENOMEM)
			return failed;
		error = error ? error : failed;
	}
	return error;
}

static void group_free(struct group *group)
{
	hmm_device_put(group->device);
	hmmc_arena_free(group, sizeof(*group));
}

int hmmc_group_join(struct hmm_mirror *mirror, struct hmm *hmm)
{
	struct group *group = hmmc_arena_alloc(sizeof(*group));
	char text[HMMC_ERROR_TEXT];
	int error = 0;

	if (!group)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	group->mirror = mirror;
	group->device = mirror->device;
	hmmc_device_reference(group->device);
	for (unsigned int i = group->device->count; i-- > 0 && !error;) {
		group->members[i].ops = i ? &no_callbacks : mirror->ops;
		group->members[i].device = group->device->members[i];
		error = hmmc_mirror_join(&group->members[i], hmm, group, i ? NULL : mirror);
	}
	if (!error)
		return 0;
	snprintf(text, sizeof(text), "%s", hmm_last_error());
	for (unsigned int i = group->device->count; i-- > 0;)
		if (group->members[i].priv)
			hmmc_mirror_leave_surely(&group->members[i]);
	mirror->priv = NULL;
	group_free(group);
	return hmmc_fail(error, "%s", text);
}

int hmmc_group_leave(struct hmm_mirror *mirror)
{
	struct group *group = mirror->priv->group;
	int error = leave(group);

	if (error == -EBUSY || error == -ENOMEM)
		return error;
	mirror->priv = NULL;
	group_free(group);
	return error;
}

struct hmm_mirror *hmm_mirror_member(struct hmm_mirror *mirror, unsigned int index)
{
	if (!mirror || !mirror->priv || hmmc_space_check_handle(mirror->priv->hmm))
		return NULL;
	if (!hmmc_mirror_is_group(mirror))
		return index ? NULL : mirror;
	return index < mirror->priv->group->device->count ? &mirror->priv->group->members[index] : NULL;
}

uint64_t hmmc_group_lookup(const struct hmm_mirror *mirror, unsigned long addr)
{
	const struct group *group = mirror->priv->group;
	uint64_t flags = ~0ULL;

	for (unsigned int i = 0; i < group->device->count; i++)
		flags &= hmm_mirror_lookup(&group->members[i], addr);
	return flags;
}
