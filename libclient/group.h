/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* group.h - several devices with one mirror. */
#ifndef HMMC_GROUP_H
#define HMMC_GROUP_H

#include "space.h"

struct group;

/* Is it the program's mirror of a group? Not so of a member. */
bool hmmc_mirror_is_group(const struct hmm_mirror *mirror);
/* What the program registered: the mirror itself, or that of its group. */
struct hmm_mirror *hmmc_mirror_whole(const struct hmm_mirror_private *mirror);

/* hmm_mirror_register() and hmm_mirror_unregister() of a group, lookup of all its members. */
int hmmc_group_join(struct hmm_mirror *mirror, struct hmm *hmm);
int hmmc_group_leave(struct hmm_mirror *mirror);
uint64_t hmmc_group_lookup(const struct hmm_mirror *mirror, unsigned long addr);
/* Its last reference is gone. */
void hmmc_group_free(struct hmm_device *group);

/* mirror.c: the same of one device. @whole: the group's mirror, of its member 0; else NULL. */
int hmmc_mirror_join(struct hmm_mirror *mirror, struct hmm *hmm, struct group *group,
		     struct hmm_mirror *whole);
/* Return: 0; -EBUSY, -ENOMEM: it stays, try again; another error: it is gone all the same. */
int hmmc_mirror_leave(struct hmm_mirror *mirror);
/* However long it takes; to it nothing has come, or little. */
void hmmc_mirror_leave_surely(struct hmm_mirror *mirror);

#endif
