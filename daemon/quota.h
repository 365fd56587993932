/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * quota.h - what each uid may hold of hmmd. Everything that a peer causes is
 * charged to its uid before it happens and released when it is over; the
 * limits come from [limits] and may change while hmmd runs. Memory and mirrors are
 * charged to the owner whose pages they are about, by his worker: they live as long as
 * that, whatever becomes of connections.
 *
 * Threads: any.
 */
#ifndef HMMD_QUOTA_H
#define HMMD_QUOTA_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum quota_kind {
	QUOTA_CONNECTIONS,
	QUOTA_OWNERS,
	QUOTA_FDS,		/* of peers and owners: sockets, userfaultfds, memfds, keys */
	QUOTA_REQUESTS,		/* not answered yet */
	QUOTA_RINGS,		/* bytes of rings of notices, and of tracks' bitmaps */
	QUOTA_MIRRORS,
	QUOTA_MEMORY,		/* bytes of devices' memory that hold pages, or are set aside for some */
	QUOTA_PINNED,		/* bytes of it that never make way: coherent blocks, and what is said to be pinned */
	QUOTA_KINDS
};

/* A limit that is none. */
#define QUOTA_UNLIMITED UINT64_MAX

struct quota_user {
	struct quota_user *next;
	uid_t uid;
	uint64_t used[QUOTA_KINDS];
};

struct quota {
	pthread_mutex_t lock;		/* of all below */
	uint64_t limit[QUOTA_KINDS];
	struct quota_user *users;	/* those with anything charged */
};

void quota_init(struct quota *quota);
void quota_deinit(struct quota *quota);
void quota_set_limits(struct quota *quota, const uint64_t limit[QUOTA_KINDS]);

/* 0; -EDQUOT with the figures in @why; or -ENOMEM. @why gets a sentence in both cases. */
int quota_charge(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count, char *why,
		 size_t size);
/* What a charge would be told, and nothing is charged. */
int quota_ask(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count, char *why,
	      size_t size);
/* For what has happened already and cannot be refused: counted, and later requests feel it. */
void quota_charge_anyway(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count);
void quota_release(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t count);
uint64_t quota_used(struct quota *quota, uid_t uid, enum quota_kind kind);

/* What one uid has of one kind, in order of uid, then of kind. */
struct quota_usage {
	uid_t uid;
	const char *key;		/* in [limits] */
	uint64_t used, limit;
};
/* Up to @max from number @cursor on, of every uid or of @only (if not NULL); returns how many. */
unsigned int quota_list(struct quota *quota, const uid_t *only, unsigned int cursor, struct quota_usage *out,
			unsigned int max);

#endif
