// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * session.c - from a message to an answer.
 *
 * Happy path: the message passes hmm_wire_check(), the table says whom it is
 * about and what right it takes, the peer has that right, the request is
 * charged. It becomes a letter. Control answers it here (who is there, what
 * may be opened, devices), or the engine does and the letter comes back
 * (settle.c). The answer carries the request's serial.
 *
 * This is the edge: what is behind it asserts and does not check messages again. Every
 * refusal says why; descriptors of refused messages are closed with the
 * frame or the letter that holds them.
 *
 * What can fail: any message, and memory.
 * Thread: control.
 */
#include "daemon/control/session.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/control/admin.h"
#include "daemon/control/peer.h"
#include "daemon/control/server.h"
#include "daemon/control/sight.h"
#include "daemon/engine/breakage.h"
#include "daemon/log.h"
#include "daemon/vault.h"
#include "hmm_protocol.h"
#include "layout.h"

/* How a message names the owner that it is about. */
enum subject {
	SUBJECT_NONE,
	SUBJECT_OWNER,		/* an owner's id */
	SUBJECT_MIRROR,		/* owner << 8 | index */
	SUBJECT_WINDOW,		/* owner << 16 | number */
	SUBJECT_COOKIE,		/* owner << 48 | number */
};

struct verb {
	void (*answer)(struct peer *peer, struct letter *letter);	/* NULL: the engine's */
	enum subject subject;
	size_t offset;			/* of the subject in the message */
	enum right right;	/* to the subject */
	bool before_hello;
	bool grows;			/* makes more of what a shutdown takes down */
	bool opens_owner;		/* charged as one */
	bool answers;			/* what the engine has asked */
	unsigned int keeps_fds;		/* that the engine holds when it succeeds */
};

static void answer_hello(struct peer *peer, struct letter *letter);
static void answer_export(struct peer *peer, struct letter *letter);
static void answer_device(struct peer *peer, struct letter *letter);
static void forward_open_peer(struct peer *peer, struct letter *letter);
static void forward_drain(struct peer *peer, struct letter *letter);
static void forward_ack(struct peer *peer, struct letter *letter);
static void answer_status(struct peer *peer, struct letter *letter);
static void answer_feature(struct peer *peer, struct letter *letter);
static void answer_list(struct peer *peer, struct letter *letter);
static void answer_stats(struct peer *peer, struct letter *letter);
static void answer_usage(struct peer *peer, struct letter *letter);

#define ABOUT(kind, message, field, need)                                               \
	.subject = SUBJECT_##kind, .offset = offsetof(struct hmm_msg_##message, field), \
	.right = RIGHT_##need

static const struct verb verbs[] = {
	[HMM_OP_HELLO] = { .answer = answer_hello, .before_hello = true },
	[HMM_OP_OPEN] = { .opens_owner = true, .keeps_fds = 10, .grows = true },
	[HMM_OP_REOPEN] = { .opens_owner = true, .keeps_fds = 10, .grows = true },
	[HMM_OP_REOPEN_REGION] = { ABOUT(OWNER, reopen_region, owner, OWN), .keeps_fds = 1 },
	[HMM_OP_REOPEN_MIRROR] = { ABOUT(OWNER, reopen_mirror, owner, OWN) },
	[HMM_OP_REOPEN_DONE] = { ABOUT(OWNER, reopen_done, owner, OWN) },
	[HMM_OP_DEVICE_NEW] = { .answer = answer_device, .grows = true },
	[HMM_OP_DEVICE_OPEN] = { .answer = answer_device },
	[HMM_OP_DEVICE_PUT] = { .answer = answer_device },
	[HMM_OP_DEVICE_FD] = { .answer = answer_device },
	[HMM_OP_DEVMEM_ADD] = { .answer = answer_device, .grows = true },
	[HMM_OP_DEVMEM_REMOVE] = { .answer = answer_device },
	[HMM_OP_DEVMEM_READY] = { ABOUT(MIRROR, devmem_ready, mirror, DRIVE) },
	[HMM_OP_DEVMEM_STORED] = { ABOUT(MIRROR, devmem_stored, mirror, DRIVE), .answers = true },
	[HMM_OP_DEVMEM_FETCHED] = { ABOUT(MIRROR, devmem_fetched, mirror, DRIVE), .answers = true },
	[HMM_OP_MIRROR_REGISTER] = { ABOUT(OWNER, mirror_register, owner, DRIVE), .grows = true },
	[HMM_OP_MIRROR_UNREGISTER] = { ABOUT(MIRROR, mirror_unregister, mirror, DRIVE) },
	[HMM_OP_MIGRATE] = { ABOUT(MIRROR, migrate, mirror, LOOK), .grows = true },
	[HMM_OP_DEVICE_READ] = { ABOUT(MIRROR, device_read, mirror, DRIVE) },
	[HMM_OP_DEVICE_WRITE] = { ABOUT(MIRROR, device_write, mirror, DRIVE) },
	[HMM_OP_EXPORT] = { .answer = answer_export,
			   ABOUT(OWNER, export, owner, OWN),
			   .grows = true },
	[HMM_OP_OPEN_PEER] = { .answer = forward_open_peer, .grows = true },
	[HMM_OP_LAYOUT] = { ABOUT(OWNER, layout, owner, LOOK) },
	[HMM_OP_WINDOW_MAP] = { ABOUT(MIRROR, window_map, mirror, DRIVE), .keeps_fds = 1,
			       .grows = true },
	[HMM_OP_WINDOW_ARMED] = { ABOUT(WINDOW, window_armed, window, DRIVE) },
	[HMM_OP_WINDOW_UNMAP] = { ABOUT(WINDOW, window_unmap, window, DRIVE) },
	[HMM_OP_ACK] = { .answer = forward_ack, ABOUT(COOKIE, ack, cookie, DRIVE), .answers = true },
	[HMM_OP_EXCLUDE] = { ABOUT(OWNER, exclude, owner, OWN) },
	[HMM_OP_ADVISE] = { ABOUT(OWNER, advise, owner, DRIVE), .grows = true },
	[HMM_OP_ALLOC] = { ABOUT(MIRROR, alloc, mirror, OWN), .grows = true },
	[HMM_OP_FREE] = { ABOUT(MIRROR, free, mirror, OWN) },
	[HMM_OP_SHARE] = { ABOUT(MIRROR, share, mirror, OWN), .grows = true },
	[HMM_OP_UNSHARE] = { ABOUT(MIRROR, unshare, mirror, OWN) },
	[HMM_OP_DRAIN] = { .answer = forward_drain },
	[HMM_OP_PREPARE_FORK] = { ABOUT(OWNER, prepare_fork, owner, OWN) },
	[HMM_OP_FORKED] = { ABOUT(OWNER, forked, owner, OWN) },
	[HMM_OP_STATUS] = { .answer = answer_status },
	[HMM_OP_FEATURE] = { .answer = answer_feature },
	[HMM_OP_CLIENTS] = { .answer = answer_list },
	[HMM_OP_OWNERS] = { .answer = answer_list },
	[HMM_OP_MIRRORS] = { .answer = answer_list },
	[HMM_OP_POOLS] = { .answer = answer_list },
	[HMM_OP_STATS] = { .answer = answer_stats },
	[HMM_OP_USAGE] = { .answer = answer_usage },
	[HMM_OP_RANGES] = { ABOUT(OWNER, ranges, owner, LOOK) },
	[HMM_OP_CELLS] = { ABOUT(OWNER, cells, owner, LOOK) },
	[HMM_OP_DOCTOR] = { .answer = answer_list },
	[HMM_OP_RANGE_FAULT] = { ABOUT(MIRROR, range_fault, mirror, DRIVE) },
	[HMM_OP_RANGE_RELEASE] = { ABOUT(MIRROR, range_release, mirror, DRIVE) },
	[HMM_OP_DMA_MAP] = { ABOUT(MIRROR, dma_map, mirror, DRIVE), .grows = true },
	[HMM_OP_DMA_UNMAP] = { ABOUT(MIRROR, dma_unmap, mirror, DRIVE) },
	[HMM_OP_NOTICES_OPEN] = { ABOUT(OWNER, notices_open, owner, LOOK), .keeps_fds = 2, .grows = true },
	[HMM_OP_TRACK_OPEN] = { ABOUT(OWNER, track_open, owner, OWN), .keeps_fds = 1 },
	[HMM_OP_DIRTY_START] = { ABOUT(OWNER, dirty_start, owner, DRIVE), .grows = true },
	[HMM_OP_DIRTY_READ] = { ABOUT(OWNER, dirty_read, owner, DRIVE) },
	[HMM_OP_DIRTY_STOP] = { ABOUT(OWNER, dirty_stop, owner, DRIVE) },
	[HMM_OP_DIRTY_MARK] = { ABOUT(MIRROR, dirty_mark, mirror, DRIVE) },
	[HMM_OP_MIRROR_SYNC] = { ABOUT(OWNER, mirror_sync, owner, DRIVE), .grows = true },
	[HMM_OP_COPY_OPEN] = { ABOUT(OWNER, copy_open, owner, DRIVE) },
	[HMM_OP_PROTECT] = { ABOUT(OWNER, protect, owner, OWN) },
	[HMM_OP_NOTICES_CLOSE] = { ABOUT(OWNER, notices_close, owner, LOOK) },
	[HMM_OP_ATTRIBUTE] = { ABOUT(OWNER, attribute, owner, LOOK) },
	[HMM_OP_ATTRIBUTES] = { ABOUT(OWNER, attributes, owner, LOOK) },
	[HMM_OP_RESTATE] = { ABOUT(OWNER, restate, owner, OWN) },
	[HMM_OP_MIRROR_READY] = { ABOUT(MIRROR, mirror_ready, mirror, DRIVE) },
	[HMM_OP_EXCLUSIVE_END] = { ABOUT(MIRROR, exclusive_end, mirror, DRIVE) },
};

static const struct verb *verb_of(const struct letter *letter)
{
	return &verbs[letter->message->opcode];
}

uint64_t session_keeps_fds(uint16_t opcode)
{
	return verbs[opcode].keeps_fds;
}

/* ---- rights --------------------------------------------------------------------- */

/*
 * hmmctl of root or of hmmd's own user, or of whoever may open the socket for administration: it may look at
 * everything and steer it.
 */
static bool is_admin(const struct peer *peer)
{
	return peer->role == HMM_ROLE_TOOL && (peer->administers || peer->uid == 0 || peer->uid == geteuid());
}

/* By its own grants, as administrator, or as a tool of the user whose process it is. */
static enum right right_to(const struct peer *peer, uint32_t owner)
{
	enum right right = peer_right(peer, owner);
	const struct rights_owner *known;

	if (right != RIGHT_NONE || peer->role != HMM_ROLE_TOOL)
		return right;
	known = rights_find(&peer->server->rights, owner);
	if (!known)
		return RIGHT_NONE;
	return is_admin(peer) || known->uid == peer->uid ? RIGHT_LOOK : RIGHT_NONE;
}

static uint32_t subject_owner(const struct verb *verb, const struct hmm_wire_header *message)
{
	const void *field = (const char *)message + verb->offset;
	uint64_t cookie;
	uint32_t id;

	if (verb->subject == SUBJECT_COOKIE) {
		memcpy(&cookie, field, sizeof(cookie));
		return (uint32_t)(cookie >> 48);
	}
	memcpy(&id, field, sizeof(id));
	switch (verb->subject) {
	case SUBJECT_MIRROR:
		return id >> 8;
	case SUBJECT_WINDOW:
		return id >> 16;
	default:
		return id;
	}
}

/*
 * Ids of owners that are not there and of those that are others' get the same
 * answer: which numbers are taken is nobody's business.
 */
static int check_right(const struct peer *peer, struct letter *letter, uint32_t owner,
		       enum right need)
{
	enum right right = right_to(peer, owner);

	if (right >= need && owner)
		return 0;
	if (right == RIGHT_NONE || !owner)
		return letter_fail(
			letter, -EPERM,
			"owner %u is not yours and was not opened by its key on this "
			"connection: hmm_open() it, or hmm_open_peer() it with its exported key",
			owner);
	if (need == RIGHT_OWN)
		return letter_fail(letter, -EPERM, "only owner %u itself may ask for %s", owner,
				   hmm_opcode_name(letter->message->opcode));
	return letter_fail(letter, -EPERM,
			   "a tool may not use the memory of owner %u: %s takes the owner's key",
			   owner, hmm_opcode_name(letter->message->opcode));
}

/* ---- charges -------------------------------------------------------------------- */

/* Of the ring, or the bitmaps, that a letter asks for; what cannot be had is refused without one. */
uint64_t session_ring_bytes(const struct letter *letter)
{
	const struct hmm_msg_notices_open *open = (const void *)letter->message;
	const struct hmm_msg_dirty_start *start = (const void *)letter->message;

	if (letter->message->opcode == HMM_OP_DIRTY_START)
		return HMM_TRACK_BYTES(start->length);
	if (letter->message->opcode != HMM_OP_NOTICES_OPEN || open->entries > HMM_NOTICES_MAX ||
	    (open->entries && open->entries < HMM_NOTICES_MIN))
		return 0;
	return HMM_NOTICES_SIZE(hmm_notices_entries(open->entries)) + HMM_PAGE_SIZE;
}

/* What the engine will hold when it says yes is charged before it is asked. */
static int charge(struct peer *peer, struct letter *letter)
{
	const struct verb *verb = verb_of(letter);
	struct quota *quota = &peer->server->quota;
	char why[200];
	int r;

	r = quota_charge(quota, peer->uid, QUOTA_REQUESTS, 1, why, sizeof(why));
	if (r < 0)
		return letter_fail(letter, r, "%s", why);
	if (verb->opens_owner) {
		r = quota_charge(quota, peer->uid, QUOTA_OWNERS, 1, why, sizeof(why));
		if (r < 0)
			goto release_request;
	}
	r = quota_charge(quota, peer->uid, QUOTA_FDS, verb->keeps_fds, why, sizeof(why));
	if (r < 0)
		goto release_owner;
	r = quota_charge(quota, peer->uid, QUOTA_RINGS, session_ring_bytes(letter), why, sizeof(why));
	if (r < 0)
		goto release_fds;
	return 0;

release_fds:
	quota_release(quota, peer->uid, QUOTA_FDS, verb->keeps_fds);
release_owner:
	if (verb->opens_owner)
		quota_release(quota, peer->uid, QUOTA_OWNERS, 1);
release_request:
	quota_release(quota, peer->uid, QUOTA_REQUESTS, 1);
	return letter_fail(letter, r, "%s", why);
}

void session_release_kept(struct server *server, const struct letter *letter)
{
	const struct verb *verb = verb_of(letter);

	quota_release(&server->quota, letter->uid, QUOTA_FDS, verb->keeps_fds);
	quota_release(&server->quota, letter->uid, QUOTA_RINGS, session_ring_bytes(letter));
	if (verb->opens_owner)
		quota_release(&server->quota, letter->uid, QUOTA_OWNERS, 1);
}

/* ---- answers -------------------------------------------------------------------- */

void session_answer_consume(struct server *server, struct peer *peer, struct letter *letter)
{
	const struct hmm_wire_header *request = letter->message;
	const char *why = NULL;
	int i;

	if (!letter->error && letter->reply) {
		letter->reply->serial = request->serial;
		letter->reply->nfds = (uint16_t)letter->n_reply_fds;
		if (hmm_wire_check(letter->reply, letter->reply->size, letter->n_reply_fds,
				   HMM_WIRE_SERVER, &why) < 0) {
			log_error("the answer to %s would break the protocol: %s",
				  hmm_opcode_name(request->opcode), why);
			letter_fail(letter, -EIO, "hmmd made a bad answer; its log says more");
		}
	} else if (!letter->error) {
		letter_fail(letter, -ENOMEM, "hmmd is out of memory");
	}
	if (!peer) {
		letter_free(letter);
		return;
	}
	if (letter->error) {
		peer_send_error(peer, request->serial, letter->error, letter->text);
	} else {
		struct hmm_wire_header *reply = letter->reply;
		int fds[LETTER_FDS];

		letter->reply = NULL;
		for (i = 0; i < LETTER_FDS; i++) {
			fds[i] = letter->reply_fds[i];
			letter->reply_fds[i] = -1;
		}
		peer_send_consume(peer, reply, fds, letter->n_reply_fds);
	}
	letter_free(letter);
}

static void answer_hello(struct peer *peer, struct letter *letter)
{
	const struct hmm_msg_hello *hello = (const void *)letter->message;
	const uint32_t version = HMM_PROTOCOL_VERSION + (broken("newer-protocol") ? 1 : 0);
	struct server *server = peer->server;
	struct hmm_msg_hello_reply *reply;
	char why[320];
	int r = 0;

	if (peer->greeted) {
		letter_fail(letter, -EISCONN, "hello was said before on this connection");
		return;
	}
	if (hello->version_min > version || hello->version_max < version) {
		letter_fail(letter, -EPROTO,
			    "you speak protocol versions %u to %u, this hmmd speaks %u to %u: "
			    "bring libhmmclient and hmmd to the same release",
			    hello->version_min, hello->version_max, version, version);
		return;
	}
	if (hello->role == HMM_ROLE_OWNER)
		r = sight_of_owner(peer->pid, why, sizeof(why));
	else if (hello->role == HMM_ROLE_DRIVER)
		r = sight_of_driver(peer->pid, why, sizeof(why));
	if (r) {
		log_warn("peer %u '%s' (pid %d, uid %u) is refused: %s", peer->id, hello->name, peer->pid, peer->uid, why);
		letter_fail(letter, r, "%s", why);
		return;
	}
	reply = letter_reply(letter, HMM_OP_HELLO_REPLY, sizeof(*reply));
	if (!reply)
		return;
	if (server->uffd_device >= 0) {
		letter->reply_fds[0] = fcntl(server->uffd_device, F_DUPFD_CLOEXEC, 3);
		letter->n_reply_fds = letter->reply_fds[0] >= 0;
	}
	reply->version = version;
	reply->uid = peer->uid;
	reply->incarnation = engine_incarnation(server->engine);
	reply->features = engine_features(server->engine);
	reply->grace_ms = (uint32_t)server->config.grace_ms;

	peer->greeted = true;
	peer->role = hello->role;
	memcpy(peer->name, hello->name, sizeof(peer->name));
}

static void answer_export(struct peer *peer, struct letter *letter)
{
	struct server *server = peer->server;
	struct rights_owner *owner = rights_find(&server->rights, letter->owner);
	char why[200];
	int fd, r;

	if (!owner) {
		letter_fail(letter, -ESRCH, "owner %u is gone", letter->owner);
		return;
	}
	r = quota_charge(&server->quota, owner->uid, QUOTA_FDS, 1, why, sizeof(why));
	if (r < 0) {
		letter_fail(letter, r, "%s", why);
		return;
	}
	fd = letter->fds[0];
	r = rights_export_consume_fd(&server->rights, owner, peer->uid, fd);
	if (!r) {
		letter_take_fd(letter, 0);
		owner->fds++;
	} else {
		quota_release(&server->quota, owner->uid, QUOTA_FDS, 1);
	}
	if (r == -EINVAL)
		letter_fail(letter, r,
			    "the key is no memfd of your own: make one with memfd_create()");
	else if (r == -EEXIST)
		letter_fail(letter, r, "the key opens another owner already");
	else if (r == -EMFILE)
		letter_fail(letter, r, "owner %u has %u keys, and no more are kept", owner->id,
			    RIGHTS_KEYS_MAX);
	else if (r < 0)
		letter_fail(letter, r, "hmmd is out of memory");
	else
		letter_reply(letter, HMM_OP_EXPORT_REPLY, sizeof(struct hmm_msg_export_reply));
}

static void answer_device(struct peer *peer, struct letter *letter)
{
	engine_device_request(peer->server->engine, letter);
	if (letter->message->opcode == HMM_OP_DEVICE_NEW && !letter->error)
		server_mend_cards(peer->server);
}

static void answer_status(struct peer *peer, struct letter *letter)
{
	admin_status(peer->server, letter);
}

static void answer_feature(struct peer *peer, struct letter *letter)
{
	admin_feature(peer->server, letter);
}

static void answer_list(struct peer *peer, struct letter *letter)
{
	admin_list(peer->server, letter);
}

static void answer_stats(struct peer *peer, struct letter *letter)
{
	const struct hmm_msg_stats *stats = (const void *)letter->message;

	if (stats->owner && check_right(peer, letter, stats->owner, RIGHT_LOOK) < 0)
		return;
	admin_list(peer->server, letter);
}

/* What others have is for an administrator to see. */
static void answer_usage(struct peer *peer, struct letter *letter)
{
	admin_usage(peer->server, letter, is_admin(peer) ? NULL : &peer->uid);
}

/* ---- to the engine and back ------------------------------------------------------ */

/* Charges and submits, or fails the letter; what failed is answered by the caller. */
static void forward(struct peer *peer, struct letter *letter)
{
	if (charge(peer, letter) == 0)
		engine_submit(peer->server->engine, letter);
	else
		session_answer_consume(peer->server, peer, letter);
}

static void forward_open_peer(struct peer *peer, struct letter *letter)
{
	const struct hmm_msg_open_peer *message = (const void *)letter->message;
	int fd, r;

	if (message->flags) {
		letter_fail(letter, -EINVAL, "flags: none are known");
		return;
	}
	fd = letter_take_fd(letter, 0);
	r = rights_open(&peer->server->rights, fd, &letter->owner);
	close(fd);
	if (r == -EINVAL)
		letter_fail(letter, r, "the descriptor is no memfd, so it is no key");
	else if (r < 0)
		letter_fail(
			letter, r,
			"the key opens no owner that is here: its process has ended, or has not "
			"exported the key");
}

static void forward_drain(struct peer *peer, struct letter *letter)
{
	const struct hmm_msg_drain *drain = (const void *)letter->message;

	letter->owner = drain->owner;
	if (drain->owner)
		check_right(peer, letter, drain->owner, RIGHT_LOOK);
	else if (!is_admin(peer))
		letter_fail(letter, -EPERM,
			    "only a tool of root or of hmmd's own user may drain everything, or one that came by "
			    "the socket for administration; name an owner");
}

/* Nothing answers an ack, so it is bounded by what was asked. */
static void forward_ack(struct peer *peer, struct letter *letter)
{
	if (!peer->acks) {
		letter_fail(letter, -EINVAL, "nothing was asked");
		return;
	}
	peer->acks--;
}

/*
 * A message with bytes of a program, who may have locked them, is not copied: registers, too, get to a stack. The frame becomes the
 * letter's, and the next message is read into another one.
 */
static void *take_message(struct server *server, struct hmm_frame *frame)
{
	struct hmm_frame *next;
	void *message;

	if (frame->header.opcode != HMM_OP_DEVICE_WRITE) {
		message = malloc(frame->size);
		return message ? memcpy(message, frame->data, frame->size) : NULL;
	}
	next = vault_alloc(sizeof(*next));
	if (!next)
		return NULL;
	hmm_frame_init(next);
	server->frame = next;
	return frame;
}

_Static_assert(offsetof(struct hmm_frame, data) == 0, "a frame is its message");

static struct letter *letter_from(struct peer *peer, struct hmm_frame *frame)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	unsigned int i;

	if (!letter)
		return NULL;
	letter->message = take_message(peer->server, frame);
	if (!letter->message || !letter_make_room(letter))
		return letter_free(letter);
	letter->peer = peer->id;
	letter->uid = peer->uid;
	letter->gid = peer->gid;
	letter->pid = peer->pid;
	memcpy(letter->name, peer->name, sizeof(letter->name));
	/* By number it could be somebody else's by the time that a worker reads this. */
	if (verbs[letter->message->opcode].opens_owner && peer->pidfd >= 0)
		letter->pidfd = fcntl(peer->pidfd, F_DUPFD_CLOEXEC, 3);
	letter->nfds = frame->nfds;
	for (i = 0; i < frame->nfds; i++)
		letter->fds[i] = hmm_frame_take_fd(frame, i);
	return letter;
}

static bool is_forwarded(const struct verb *verb)
{
	return !verb->answer || verb->answer == forward_open_peer ||
	       verb->answer == forward_drain || verb->answer == forward_ack;
}

static void dispatch(struct peer *peer, struct letter *letter)
{
	const struct verb *verb = verb_of(letter);
	struct server *server = peer->server;

	/* Its library asks the next hmmd, as after a crash. */
	if (server->state == SERVER_HANDING_OVER && !verb->answers) {
		letter_free(letter);
		return;
	}
	if (!peer->greeted && !verb->before_hello) {
		letter_fail(letter, -EPROTO, "hello comes first");
	} else if (verb->grows && server->state != SERVER_SERVING) {
		letter_fail(letter, -ESHUTDOWN, "hmmd is shutting down and brings every page home");
	} else if (verb->subject != SUBJECT_NONE) {
		letter->owner = subject_owner(verb, letter->message);
		check_right(peer, letter, letter->owner, verb->right);
	}
	if (!letter->error && verb->answer)
		verb->answer(peer, letter);

	if (letter->message->opcode == HMM_OP_ACK) {
		if (letter->error) {
			log_debug("peer %u: ack is ignored: %s", peer->id, letter->text);
			letter_free(letter);
		} else {
			engine_submit(server->engine, letter);
		}
	} else if (!letter->error && is_forwarded(verb)) {
		forward(peer, letter);
	} else {
		session_answer_consume(server, peer, letter);
	}
}

void session_message(struct peer *peer, struct hmm_frame *frame)
{
	const char *why = "";
	struct letter *letter;
	char text[160];
	int r;

	r = hmm_wire_check(frame->data, frame->size, frame->nfds, HMM_WIRE_CLIENT, &why);
	if (broken("newer-open") && frame->header.opcode == HMM_OP_OPEN)
		r = -EPROTO;
	if (r == -EPROTO) {
		snprintf(text, sizeof(text), "its message (%s, %zu bytes) cannot be understood: %s",
			 hmm_opcode_name(frame->header.opcode), frame->size, why);
		peer_close(peer, text);
		return;
	}
	if (r == -EOPNOTSUPP) {
		snprintf(text, sizeof(text), "this hmmd knows no message %u: %s",
			 frame->header.opcode, why);
		peer_send_error(peer, frame->header.serial, r, text);
		return;
	}
	if (r < 0) {
		snprintf(text, sizeof(text), "%s: %s", hmm_opcode_name(frame->header.opcode), why);
		if (frame->header.opcode == HMM_OP_ACK)
			log_debug("peer %u: %s", peer->id, text);
		else
			peer_send_error(peer, frame->header.serial, r, text);
		return;
	}

	if (frame->header.opcode >= sizeof(verbs) / sizeof(verbs[0])) {
		peer_send_error(peer, frame->header.serial, -EOPNOTSUPP,
				"this hmmd cannot do that");
		return;
	}

	letter = letter_from(peer, frame);
	if (!letter) {
		peer_send_error(peer, frame->header.serial, -ENOMEM, "hmmd is out of memory");
		return;
	}
	dispatch(peer, letter);
}

void session_end(struct peer *peer)
{
	struct engine *engine = peer->server->engine;
	struct letter *letter = peer->farewell;

	peer->farewell = NULL;
	letter->peer = peer->id;
	letter->uid = peer->uid;
	letter->pid = peer->pid;
	engine_device_peer_gone(engine, peer->id);
	engine_submit(engine, letter);
}
