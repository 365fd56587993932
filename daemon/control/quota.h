/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * quota.h - what each uid may hold of hmmd. Everything that a peer causes is
 * charged to its uid before it happens and released when it is over; the
 * limits come from [limits] and may change while hmmd runs.
 *
 * Thread: control.
 */
#ifndef HMMD_QUOTA_H
#define HMMD_QUOTA_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum quota_kind {
	QUOTA_CONNECTIONS,
	QUOTA_OWNERS,
	QUOTA_FDS,		/* of peers and owners: sockets, userfaultfds, memfds, keys */
	QUOTA_REQUESTS,		/* not answered yet */
	QUOTA_RINGS,		/* bytes of rings of notices, and of tracks' bitmaps */
	QUOTA_KINDS
};

struct quota_user {
	struct quota_user *next;
	uid_t uid;
	uint64_t used[QUOTA_KINDS];
};

struct quota {
	uint64_t limit[QUOTA_KINDS];
	struct quota_user *users;	/* those with anything charged */
};

void quota_deinit(struct quota *quota);

/* 0; -EDQUOT with the figures in @why; or -ENOMEM. @why gets a sentence in both cases. */
int quota_charge(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count, char *why,
		 size_t size);
/* For what has happened already and cannot be refused: counted, and later requests feel it. */
void quota_charge_anyway(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count);
void quota_release(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count);
uint64_t quota_used(const struct quota *quota, uid_t uid, enum quota_kind kind);

#endif
