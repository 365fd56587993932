/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * peer.h - one connection: its messages in, its messages out, and what it is
 * charged for. What the messages mean is session.c's.
 *
 * Thread: control.
 */
#ifndef HMMD_PEER_H
#define HMMD_PEER_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "daemon/control/rights.h"
#include "hmm_protocol.h"

struct letter;
struct listener;
struct server;

/* A message that waits for the socket to take it. */
struct parcel {
	struct parcel *next;
	struct hmm_wire_header *message;
	unsigned int nfds;
	int fds[HMM_WIRE_MAX_FDS];
};

/* A ring of notices that the engine has for a peer. */
struct peer_ring {
	struct peer_ring *next;
	uint16_t opcode;		/* what made it: a ring of notices, or a track */
	uint32_t owner, number;
	uint64_t bytes;
};

struct peer {
	struct server *server;
	struct peer *next, **link;	/* server->peers */
	struct peer *bucket_next, **bucket_link;
	uint32_t id;			/* never reused; the engine's name for it too */
	int fd, pidfd;
	uid_t uid;
	gid_t gid;
	pid_t pid;
	bool administers;		/* it came by the socket for administration */
	uint64_t connected;		/* CLOCK_MONOTONIC, ns */
	bool closing;
	bool orphaned; /* its process ended: what it said is heard, then it closes */

	/* by hello */
	bool greeted;
	uint32_t role;
	char name[64];

	struct rights_grant *grants;
	unsigned int n_grants;
	uint32_t mirrors;		/* registered by it */
	uint32_t windows;		/* mapped by it; a descriptor each, charged until the engine lets go of it */
	uint64_t acks;			/* invalidate events that it has not answered */
	uint64_t fds;			/* charged to uid: socket, pidfd, rings of notices */
	struct peer_ring *rings;	/* of notices, and tracks' bitmaps; and */
	uint64_t ring_bytes;		/* what of them is charged to uid */
	struct letter *farewell; /* PEER_GONE, made in time: saying it must not need memory */

	uv_poll_t poll;
	uv_poll_t life;			/* its process, by pidfd */
	uv_timer_t stall;		/* runs while messages wait */
	uv_timer_t short_of;		/* ... for memory of the kernel's */
	unsigned int handles;		/* open ones; the peer is freed with the last */
	bool watched;			/* life was initialised */

	struct parcel *queue, **queue_tail;
	uint64_t queued;		/* bytes */
};

/* Takes over @fd; a peer that is not welcome is told why, as far as possible, and closed. */
void peer_new_consume_fd(const struct listener *listener, int fd);
/*
 * Closes; the peer is freed when the loop comes round. @why is for the log, NULL when it is no
 * news.
 */
void peer_close(struct peer *peer, const char *why);

/* The message (heap) and the descriptors are taken over whatever happens. */
void peer_send_consume(struct peer *peer, struct hmm_wire_header *message, int *fds,
		       unsigned int nfds);
void peer_send_error(struct peer *peer, uint32_t serial, int error, const char *text);

struct peer *peer_find(struct server *server, uint64_t id);

/* Its right to the owner by its own grants. */
enum right peer_right(const struct peer *peer, uint32_t owner);
/* Raises the right; 0 or -ENOMEM. */
int peer_grant(struct peer *peer, uint32_t owner, enum right right);
/* What it had. */
enum right peer_revoke(struct peer *peer, uint32_t owner);

/* "name" (pid 1, uid 0), for the log. */
const char *peer_title(const struct peer *peer, char *out, size_t room);

#endif
