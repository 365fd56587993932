// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * settle.c - what comes back from the engine: answers, which go to who asked, events, and that something is no more; and
 * what control keeps of it: owners, rights, what each peer is charged for.
 *
 * Happy path: a request that succeeded is noted (its owner exists, its peer has a ring, a window, a mirror), then its
 * answer goes out. What was charged for it is released with the thing itself, whose end the engine tells.
 *
 * What can fail: memory for a note: the peer hears of it, and nothing stays charged that nobody would release. A peer may
 * be gone by the time that its answer comes.
 * Thread: control.
 */
#include "daemon/control/settle.h"

#include <errno.h>
#include <stdlib.h>

#include "daemon/control/peer.h"
#include "daemon/control/server.h"
#include "daemon/control/session.h"
#include "daemon/log.h"
#include "hmm_protocol.h"

/* The owner now exists for control: what was charged for it is kept in its record. */
static int adopt_owner(struct server *server, struct peer *peer, struct letter *letter)
{
	struct rights_owner *owner = rights_find(&server->rights, letter->owner);

	if (owner) {
		/* Its connection broke and came back; it is charged already. */
		session_release_kept(server, letter);
	} else {
		owner = rights_add(&server->rights, letter->owner, letter->uid, letter->pid);
		if (!owner) {
			/* Nobody will say that it has ended: who comes again is charged again. */
			session_release_kept(server, letter);
			return -ENOMEM;
		}
		owner->fds = session_keeps_fds(letter->message->opcode);
	}
	return peer ? peer_grant(peer, letter->owner, RIGHT_OWN) : 0;
}

/* A ring, or a track, is the peer's from now on. Its size is remembered: who closes it does not say it. */
static void note_ring(struct peer *peer, const struct letter *letter, uint32_t number)
{
	struct peer_ring *ring = malloc(sizeof(*ring));

	peer->fds += session_keeps_fds(letter->message->opcode);
	peer->ring_bytes += session_ring_bytes(letter);
	/* Without memory for that it stays charged as long as the peer is there. */
	if (!ring)
		return;
	ring->owner = letter->owner;
	ring->opcode = letter->message->opcode;
	ring->number = number;
	ring->bytes = session_ring_bytes(letter);
	ring->next = peer->rings;
	peer->rings = ring;
}

/* A ring is closed, for its listener or with its owner; or a track is. @opcode: what made it. */
static void release_ring(struct server *server, struct peer *peer, uint16_t opcode, uint32_t owner, uint32_t number)
{
	const uint64_t fds = session_keeps_fds(opcode);
	struct peer_ring **link = peer ? &peer->rings : NULL, *ring;

	if (!peer || peer->fds < fds)
		return;
	peer->fds -= fds;
	quota_release(&server->quota, peer->uid, QUOTA_FDS, fds);
	while (*link && ((*link)->owner != owner || (*link)->number != number || (*link)->opcode != opcode))
		link = &(*link)->next;
	ring = *link;
	if (!ring)
		return;
	*link = ring->next;
	peer->ring_bytes -= ring->bytes;
	quota_release(&server->quota, peer->uid, QUOTA_RINGS, ring->bytes);
	free(ring);
}

/* A request succeeded: what control keeps of it. The peer may be gone. */
static void settle_success(struct server *server, struct peer *peer, struct letter *letter)
{
	struct rights_owner *owner = rights_find(&server->rights, letter->owner);

	switch (letter->message->opcode) {
	case HMM_OP_OPEN:
	case HMM_OP_REOPEN:
		if (adopt_owner(server, peer, letter) < 0)
			letter_fail(letter, -ENOMEM,
				    "hmmd is out of memory; close the connection and come again");
		break;
	case HMM_OP_OPEN_PEER:
		/* An owner that ended meanwhile has said so in an earlier letter. */
		if (!owner)
			letter_fail(letter, -ESRCH, "owner %u has just ended", letter->owner);
		else if (peer && peer_grant(peer, letter->owner, RIGHT_DRIVE) < 0)
			letter_fail(letter, -ENOMEM, "hmmd is out of memory");
		break;
	case HMM_OP_REOPEN_REGION:
		/* Of an owner that is not being taken over any more it is not needed. */
		if (owner && letter->nfds && letter->fds[0] < 0)
			owner->fds++;
		else
			session_release_kept(server, letter);
		break;
	case HMM_OP_WINDOW_MAP:
		/* Without a peer it is charged for, too, until the engine says that it is gone. */
		if (peer)
			peer->windows++;
		break;
	case HMM_OP_NOTICES_OPEN:
		if (peer)
			note_ring(peer, letter, ((const struct hmm_msg_notices_open_reply *)(const void *)letter->reply)->notices);
		else
			session_release_kept(server, letter);
		break;
	case HMM_OP_NOTICES_CLOSE:
		release_ring(server, peer, HMM_OP_NOTICES_OPEN, letter->owner,
			     ((const struct hmm_msg_notices_close *)(const void *)letter->message)->notices);
		break;
	case HMM_OP_DIRTY_START:
		if (peer)
			note_ring(peer, letter, ((const struct hmm_msg_dirty_start_reply *)(const void *)letter->reply)->dirty);
		else
			session_release_kept(server, letter);
		break;
	case HMM_OP_DIRTY_STOP:
		release_ring(server, peer, HMM_OP_DIRTY_START, letter->owner,
			     ((const struct hmm_msg_dirty_stop *)(const void *)letter->message)->dirty);
		break;
	case HMM_OP_TRACK_OPEN:
		/* Without a descriptor it said that there is none. */
		if (owner && letter->nfds)
			owner->fds++;
		else
			session_release_kept(server, letter);
		break;
	case HMM_OP_MIRROR_REGISTER:
		if (peer)
			peer->mirrors++;
		break;
	case HMM_OP_MIRROR_UNREGISTER:
		if (peer && peer->mirrors)
			peer->mirrors--;
		break;
	default:
		break;
	}
}

static void take_reply(struct server *server, struct letter *letter)
{
	struct peer *peer = peer_find(server, letter->peer);

	if (letter->message->opcode == HMM_OP_ACK) {
		letter_free(letter);
		return;
	}
	quota_release(&server->quota, letter->uid, QUOTA_REQUESTS, 1);
	if (letter->error || !letter->reply)
		session_release_kept(server, letter);
	else
		settle_success(server, peer, letter);
	session_answer_consume(server, peer, letter);
}

static void take_event(struct server *server, struct letter *letter)
{
	struct peer *peer = peer_find(server, letter->peer);
	const struct hmm_msg_region *region = (const void *)letter->message;
	const struct hmm_msg_invalidate *invalidate = (const void *)letter->message;
	const struct hmm_msg_notices *notices = (const void *)letter->message;
	struct rights_owner *owner;
	struct hmm_wire_header *message;
	const char *why;
	int fds[LETTER_FDS];
	unsigned int i;

	letter->message->nfds = (uint16_t)letter->nfds;
	if (hmm_wire_check(letter->message, letter->message->size, letter->nfds, HMM_WIRE_SERVER,
			   &why) < 0) {
		log_error("the event %s would break the protocol: %s",
			  hmm_opcode_name(letter->message->opcode), why);
		letter_free(letter);
		return;
	}
	if (letter->message->opcode == HMM_OP_REGION && !region->window) {
		/* The shadow is made, and hmmd holds it as long as the owner lives. */
		owner = rights_find(&server->rights, region->owner);
		if (owner) {
			owner->fds++;
			quota_charge_anyway(&server->quota, owner->uid, QUOTA_FDS, 1);
		}
	}
	if (!peer) {
		letter_free(letter);
		return;
	}
	if (letter->message->opcode == HMM_OP_INVALIDATE && invalidate->cookie)
		peer->acks++;
	if (letter->message->opcode == HMM_OP_NOTICES && notices->closed)
		release_ring(server, peer, HMM_OP_NOTICES_OPEN, notices->owner, notices->notices);
	for (i = 0; i < letter->nfds; i++)
		fds[i] = letter_take_fd(letter, i);
	message = letter->message;
	letter->message = NULL;
	peer_send_consume(peer, message, fds, letter->nfds);
	letter_free(letter);
}

/* Its tracks ended with it; rings are closed by messages of their own. */
static void release_tracks(struct server *server, struct peer *peer, uint32_t owner)
{
	struct peer_ring *ring, *next;

	for (ring = peer->rings; ring; ring = next) {
		next = ring->next;
		if (ring->owner == owner && ring->opcode == HMM_OP_DIRTY_START)
			release_ring(server, peer, ring->opcode, owner, ring->number);
	}
}

static void announce_owner_gone(struct peer *peer, uint32_t owner)
{
	struct hmm_msg_owner_gone *event = malloc(sizeof(*event));

	if (!event) {
		peer_close(peer, "out of memory");
		return;
	}
	hmm_wire_init(event, HMM_OP_OWNER_GONE, sizeof(*event), 0);
	event->owner = owner;
	peer_send_consume(peer, &event->header, NULL, 0);
}

static void forget_owner(struct server *server, uint32_t id)
{
	struct rights_owner *owner = rights_find(&server->rights, id);
	struct peer *peer, *next;

	if (!owner)
		return;
	quota_release(&server->quota, owner->uid, QUOTA_FDS, owner->fds);
	quota_release(&server->quota, owner->uid, QUOTA_OWNERS, 1);
	rights_remove(&server->rights, id);
	for (peer = server->peers; peer; peer = next) {
		next = peer->next;
		release_tracks(server, peer, id);
		/*
		 * While hmmd ends, an owner goes on: with the next one, as its drivers do. Their rights stay, so that who asks for
		 * it is told to ask again, and not that it is somebody else's. No other owner comes under that number.
		 */
		if (server->state == SERVER_SERVING && peer_revoke(peer, id) == RIGHT_DRIVE)
			announce_owner_gone(peer, id);
	}
}

/* Its peer may have gone before it. */
static void forget_window(struct server *server, const struct letter *letter)
{
	struct peer *peer = peer_find(server, letter->peer);

	if (peer)
		peer->windows--;
	quota_release(&server->quota, letter->uid, QUOTA_FDS, 1);
}

void settle_letter(struct server *server, struct letter *letter)
{
	switch (letter->kind) {
	case LETTER_REPLY:
		take_reply(server, letter);
		return;
	case LETTER_EVENT:
		take_event(server, letter);
		return;
	case LETTER_WINDOW_GONE:
		forget_window(server, letter);
		break;
	case LETTER_OWNER_GONE:
		forget_owner(server, letter->owner);
		break;
	default:
		log_error("the engine sent a letter of kind %d, which is not for control",
			  letter->kind);
		break;
	}
	letter_free(letter);
}
