// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * peer.c - connections.
 *
 * Happy path: the socket is readable, a few messages are read and given to
 * session.c, which answers at once or hands them to the engine; answers go
 * straight into the socket. Only when it is full do they wait in the queue.
 *
 * Nobody can hurt another: a turn of the loop reads so many messages of each
 * peer and no more, a peer that does not read is not read from either, its
 * queue is bounded in bytes and in time, and everything is charged to its uid.
 *
 * A connection is worth what the process behind it is: rights were given to
 * the process that connected, so the connection ends with that process even if
 * a child of it still holds the socket. (The pidfd tells; pid 0, a process
 * of another pid namespace, has none, and is told why it can't be served: sight.c.)
 *
 * What can fail: everything the other end may do. It costs that peer its
 * connection, with a line in the log, and nobody else anything.
 * Thread: control.
 */
#include "daemon/control/peer.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/control/server.h"
#include "daemon/control/session.h"
#include "daemon/log.h"
#include "daemon/vault.h"
#include "uapi.h"

/* After so long the kernel is asked again for what it had no memory for. */
#define AGAIN_MS 10
/* Messages of one peer in one turn of the loop. */
#define TURN_MESSAGES 16
/* With more than this waiting to go out, nothing more is read in. */
#define PAUSE_BYTES (64 * 1024)
/* What a waiting descriptor counts in the queue: it holds kernel memory, not ours. */
#define QUEUED_FD_BYTES 4096

const char *peer_title(const struct peer *peer, char *out, size_t room)
{
	snprintf(out, room, "peer %u '%s' (pid %d, uid %u)", peer->id, peer->name, peer->pid,
		 peer->uid);
	return out;
}

struct peer *peer_find(struct server *server, uint64_t id)
{
	struct peer *peer;

	for (peer = server->peer_buckets[id % SERVER_PEER_BUCKETS]; peer;
	     peer = peer->bucket_next) {
		if (peer->id == id)
			return peer;
	}
	return NULL;
}

static void list_add(struct server *server, struct peer *peer)
{
	struct peer **bucket = &server->peer_buckets[peer->id % SERVER_PEER_BUCKETS];

	peer->link = server->peers_tail;
	*peer->link = peer;
	server->peers_tail = &peer->next;

	peer->bucket_next = *bucket;
	peer->bucket_link = bucket;
	if (*bucket)
		(*bucket)->bucket_link = &peer->bucket_next;
	*bucket = peer;
	server->n_peers++;
}

static void list_remove(struct server *server, struct peer *peer)
{
	*peer->link = peer->next;
	if (peer->next)
		peer->next->link = peer->link;
	else
		server->peers_tail = peer->link;

	*peer->bucket_link = peer->bucket_next;
	if (peer->bucket_next)
		peer->bucket_next->bucket_link = peer->bucket_link;
	server->n_peers--;
}

/* ---- rights --------------------------------------------------------------- */

static struct rights_grant *find_grant(const struct peer *peer, uint32_t owner)
{
	unsigned int i;

	for (i = 0; i < peer->n_grants; i++) {
		if (peer->grants[i].owner == owner)
			return &peer->grants[i];
	}
	return NULL;
}

enum right peer_right(const struct peer *peer, uint32_t owner)
{
	const struct rights_grant *grant = find_grant(peer, owner);

	return grant ? grant->right : RIGHT_NONE;
}

int peer_grant(struct peer *peer, uint32_t owner, enum right right)
{
	struct rights_grant *grant = find_grant(peer, owner), *grants;

	if (grant) {
		if (grant->right < right)
			grant->right = right;
		return 0;
	}
	grants = realloc(peer->grants, (peer->n_grants + 1) * sizeof(*grants));
	if (!grants)
		return -ENOMEM;
	peer->grants = grants;
	grants[peer->n_grants++] = (struct rights_grant) { .owner = owner, .right = right };
	return 0;
}

enum right peer_revoke(struct peer *peer, uint32_t owner)
{
	struct rights_grant *grant = find_grant(peer, owner);
	enum right right;

	if (!grant)
		return RIGHT_NONE;
	right = grant->right;
	*grant = peer->grants[--peer->n_grants];
	return right;
}

/* ---- messages out ----------------------------------------------------------- */

static void close_fds(const int *fds, unsigned int nfds)
{
	unsigned int i;

	for (i = 0; i < nfds; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
}

static uint64_t parcel_bytes(const struct parcel *parcel)
{
	return sizeof(*parcel) + parcel->message->size + parcel->nfds * QUEUED_FD_BYTES;
}

static void parcel_free(struct parcel *parcel)
{
	close_fds(parcel->fds, parcel->nfds);
	vault_free(parcel->message);
	free(parcel);
}

static bool is_paused(const struct peer *peer)
{
	return peer->queued > PAUSE_BYTES;
}

static void on_poll(uv_poll_t *handle, int status, int events);
static void on_stall(uv_timer_t *timer);

/* Which events are worth waking for. Never none: a vanished peer must be noticed. */
static void update_poll(struct peer *peer)
{
	int events = 0;

	if (peer->closing)
		return;
	if (!is_paused(peer))
		events |= UV_READABLE;
	if (peer->queue && !uv_is_active((uv_handle_t *)&peer->short_of))
		events |= UV_WRITABLE;
	uv_poll_start(&peer->poll, events, on_poll);
}

/*
 * Nobody will read it. The peer goes on being read from: what it said before it went still counts.
 */
static void drop_queue(struct peer *peer)
{
	struct parcel *parcel;

	while ((parcel = peer->queue)) {
		peer->queue = parcel->next;
		parcel_free(parcel);
	}
	peer->queue_tail = &peer->queue;
	peer->queued = 0;
	uv_timer_stop(&peer->stall);
	uv_timer_stop(&peer->short_of);
}

static void send_queued(struct peer *peer);

static void on_short_of(uv_timer_t *timer)
{
	send_queued(timer->data);
}

/* The kernel's memory for messages is short. It would call the socket writable all the same. */
static bool is_short(struct peer *peer, int error)
{
	if (error != -ENOMEM && error != -ENOBUFS)
		return false;
	uv_timer_start(&peer->short_of, on_short_of, AGAIN_MS, 0);
	return true;
}

static void send_queued(struct peer *peer)
{
	struct parcel *parcel;
	bool progress = false;
	int r;

	while ((parcel = peer->queue)) {
		r = hmm_frame_send(peer->fd, parcel->message, parcel->fds, parcel->nfds);
		if (r == -EAGAIN || is_short(peer, r))
			break;
		if (r == -EPIPE || r == -ECONNRESET) {
			drop_queue(peer);
			break;
		}
		if (r < 0) {
			peer_close(peer, strerror(-r));
			return;
		}
		progress = true;
		peer->queue = parcel->next;
		if (!peer->queue)
			peer->queue_tail = &peer->queue;
		peer->queued -= parcel_bytes(parcel);
		parcel_free(parcel);
	}
	if (!peer->queue)
		uv_timer_stop(&peer->stall);
	else if (progress)
		uv_timer_start(&peer->stall, on_stall, peer->server->config.stall_ms, 0);
	update_poll(peer);
}

static void on_stall(uv_timer_t *timer)
{
	struct peer *peer = timer->data;
	char why[96];

	snprintf(why, sizeof(why), "it has read nothing for %llu ms, with %llu bytes waiting",
		 (unsigned long long)peer->server->config.stall_ms,
		 (unsigned long long)peer->queued);
	peer_close(peer, why);
}

static void enqueue(struct peer *peer, struct hmm_wire_header *message, const int *fds,
		    unsigned int nfds)
{
	struct parcel *parcel = calloc(1, sizeof(*parcel));
	struct hmm_wire_header *shrunk;
	char why[96];

	if (!parcel) {
		close_fds(fds, nfds);
		vault_free(message);
		peer_close(peer, "out of memory");
		return;
	}
	/*
	 * Lists are made in room for a full message: what waits is counted by its size and shall be
	 * no larger.
	 */
	shrunk = vault_has(message) ? message : realloc(message, message->size);
	parcel->message = shrunk ? shrunk : message;
	for (; parcel->nfds < nfds; parcel->nfds++)
		parcel->fds[parcel->nfds] = fds[parcel->nfds];
	if (!peer->queue)
		uv_timer_start(&peer->stall, on_stall, peer->server->config.stall_ms, 0);
	*peer->queue_tail = parcel;
	peer->queue_tail = &parcel->next;
	peer->queued += parcel_bytes(parcel);

	if (peer->queued > peer->server->config.queue) {
		snprintf(why, sizeof(why), "it does not read: %llu bytes wait for it, and %llu may",
			 (unsigned long long)peer->queued,
			 (unsigned long long)peer->server->config.queue);
		peer_close(peer, why);
		return;
	}
	update_poll(peer);
}

void peer_send_consume(struct peer *peer, struct hmm_wire_header *message, int *fds,
		       unsigned int nfds)
{
	int r = -EAGAIN;

	assert(nfds <= HMM_WIRE_MAX_FDS);
	if (peer->closing) {
		r = 0;
	} else if (!peer->queue) {
		r = hmm_frame_send(peer->fd, message, fds, nfds);
		if (r == -EAGAIN || is_short(peer, r)) {
			enqueue(peer, message, fds, nfds);
			return;
		}
	} else {
		enqueue(peer, message, fds, nfds);
		return;
	}
	close_fds(fds, nfds);
	vault_free(message);
	/* A vanished peer is noticed by reading: what it said before it went still counts. */
	if (r < 0 && r != -EPIPE && r != -ECONNRESET)
		peer_close(peer, strerror(-r));
}

void peer_send_error(struct peer *peer, uint32_t serial, int error, const char *text)
{
	struct hmm_msg_error *reply = malloc(sizeof(*reply));

	if (!reply) {
		peer_close(peer, "out of memory");
		return;
	}
	hmm_wire_error(reply, serial, error, "%s", text);
	peer_send_consume(peer, &reply->header, NULL, 0);
}

/* ---- messages in ------------------------------------------------------------ */

static const char *receive_error(int error, char *out, size_t room)
{
	switch (error) {
	case -EMSGSIZE:
		snprintf(out, room, "its message is longer than %d bytes", HMM_WIRE_MAX);
		break;
	case -EPROTO:
		snprintf(out, room, "its message has a broken header or too many descriptors");
		break;
	default:
		snprintf(out, room, "receiving fails: %s", strerror(-error));
		break;
	}
	return out;
}

static void receive(struct peer *peer)
{
	struct server *server = peer->server;
	unsigned int i;
	char why[96];
	int r;

	for (i = 0; i < TURN_MESSAGES && !peer->closing; i++) {
		if (is_paused(peer)) {
			if (peer->orphaned)
				peer_close(peer, NULL);
			return;
		}
		r = hmm_frame_recv(peer->fd, server->frame, MSG_DONTWAIT);
		if (r > 0) {
			session_message(peer, server->frame);
			/* Another one, if a letter has kept it. */
			hmm_frame_close(server->frame);
		} else if (r == -EAGAIN) {
			if (peer->orphaned)
				peer_close(peer, NULL);
			return;
		} else if (r == 0) {
			peer_close(peer, NULL);
		} else if (r != -ECONNRESET) {
			/* A reset stands before what was sent earlier: go on reading. */
			peer_close(peer, receive_error(r, why, sizeof(why)));
		}
	}
}

static void on_poll(uv_poll_t *handle, int status, int events)
{
	struct peer *peer = handle->data;

	if (peer->closing)
		return;
	if (status < 0) {
		/* The other end closed with our answers unread; libuv has stopped to poll. */
		drop_queue(peer);
		receive(peer);
		update_poll(peer);
		return;
	}
	if (events & UV_WRITABLE)
		send_queued(peer);
	if (!peer->closing && (events & UV_READABLE))
		receive(peer);
}

static void on_life(uv_poll_t *handle, int status, int events)
{
	struct peer *peer = handle->data;

	uv_poll_stop(&peer->life);
	if (peer->closing)
		return;
	peer->orphaned = true;
	drop_queue(peer);
	receive(peer);
	update_poll(peer);
}

/* ---- beginning and end --------------------------------------------------------- */

static void on_handle_closed(uv_handle_t *handle)
{
	struct peer *peer = handle->data;

	if (--peer->handles)
		return;
	close(peer->fd);
	if (peer->pidfd >= 0)
		close(peer->pidfd);
	free(peer->grants);
	free(peer);
}

static void drop_rings(struct peer *peer)
{
	struct peer_ring *ring;

	while ((ring = peer->rings)) {
		peer->rings = ring->next;
		free(ring);
	}
}

void peer_close(struct peer *peer, const char *why)
{
	struct server *server = peer->server;
	char title[128];

	if (peer->closing)
		return;
	peer->closing = true;
	peer_title(peer, title, sizeof(title));
	if (why)
		log_warn("%s is disconnected: %s", title, why);
	else
		log_debug("%s has gone", title);

	drop_queue(peer);
	list_remove(server, peer);
	session_end(peer);
	drop_rings(peer);
	quota_release(&server->quota, peer->uid, QUOTA_RINGS, peer->ring_bytes);
	quota_release(&server->quota, peer->uid, QUOTA_FDS, peer->fds);
	quota_release(&server->quota, peer->uid, QUOTA_CONNECTIONS, 1);

	/* At once, not when the loop comes round: the other end shall see it now. */
	shutdown(peer->fd, SHUT_RDWR);
	uv_close((uv_handle_t *)&peer->poll, on_handle_closed);
	if (peer->watched)
		uv_close((uv_handle_t *)&peer->life, on_handle_closed);
	uv_close((uv_handle_t *)&peer->stall, on_handle_closed);
	uv_close((uv_handle_t *)&peer->short_of, on_handle_closed);
}

/* Says no to a connection that never becomes a peer. What it has sent already is read away, so that
 * our answer is what it reads first and not a reset. */
static void turn_away(int fd, int error, const char *why)
{
	struct hmm_msg_error reply;
	char waste[64];

	hmm_wire_error(&reply, 0, error, "%s", why);
	hmm_frame_send(fd, &reply, NULL, 0);
	while (recv(fd, waste, sizeof(waste), MSG_DONTWAIT) > 0)
		;
	close(fd);
}

/* Charges the connection: itself, its socket and its pidfd. */
static int charge(struct server *server, uid_t uid, char *why, size_t size)
{
	int r;

	r = quota_charge(&server->quota, uid, QUOTA_CONNECTIONS, 1, why, size);
	if (r < 0)
		return r;
	r = quota_charge(&server->quota, uid, QUOTA_FDS, 2, why, size);
	if (r < 0)
		quota_release(&server->quota, uid, QUOTA_CONNECTIONS, 1);
	return r;
}

/* Of whoever connected, also if he has died and the number is another's. -1: there is none; -ESRCH: he has died. */
static int peer_pidfd(int fd, pid_t pid)
{
	socklen_t size = sizeof(int);
	int pidfd;

	if (pid <= 0)
		return -1;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0)
		return pidfd;
	if (errno == ENOPROTOOPT)
		pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	else
		pidfd = errno == ESRCH || errno == EINVAL ? -ESRCH : -1;
	return pidfd;
}

static void watch_process(struct peer *peer)
{
	if (peer->pidfd < 0)
		return;
	if (uv_poll_init(&peer->server->loop, &peer->life, peer->pidfd) < 0)
		return;
	peer->life.data = peer;
	peer->watched = true;
	peer->handles++;
	uv_poll_start(&peer->life, UV_READABLE, on_life);
}

void peer_new_consume_fd(const struct listener *listener, int fd)
{
	struct server *server = listener->server;
	struct ucred cred;
	struct peer *peer;
	char why[200];
	int pidfd, r;

	r = hmm_frame_peer(fd, &cred);
	if (r < 0) {
		turn_away(fd, r, "hmmd cannot tell who you are");
		return;
	}
	if (server->config.user && cred.uid != geteuid() && cred.uid != 0) {
		log_warn("pid %d, uid %u is turned away: this hmmd serves uid %u alone", cred.pid,
			 cred.uid, geteuid());
		turn_away(fd, -EPERM, "this hmmd runs with --user and serves its own user alone");
		return;
	}
	pidfd = peer_pidfd(fd, cred.pid);
	r = charge(server, cred.uid, why, sizeof(why));
	if (r < 0) {
		log_warn("pid %d is turned away: %s", cred.pid, why);
		if (pidfd >= 0)
			close(pidfd);
		turn_away(fd, r, why);
		return;
	}
	peer = calloc(1, sizeof(*peer));
	if (peer)
		peer->farewell = letter_new(LETTER_PEER_GONE);
	if (!peer || !peer->farewell || uv_poll_init(&server->loop, &peer->poll, fd) < 0) {
		if (peer)
			letter_free(peer->farewell);
		free(peer);
		quota_release(&server->quota, cred.uid, QUOTA_FDS, 2);
		quota_release(&server->quota, cred.uid, QUOTA_CONNECTIONS, 1);
		if (pidfd >= 0)
			close(pidfd);
		turn_away(fd, -ENOMEM, "hmmd is out of memory");
		return;
	}

	peer->server = server;
	peer->id = ++server->last_peer;
	peer->fd = fd;
	peer->pidfd = pidfd < 0 ? -1 : pidfd;
	peer->orphaned = pidfd == -ESRCH;
	peer->uid = cred.uid;
	peer->gid = cred.gid;
	peer->pid = cred.pid;
	peer->administers = listener->administers;
	peer->connected = uv_hrtime();
	peer->fds = 2;
	peer->queue_tail = &peer->queue;
	peer->poll.data = peer;
	peer->handles = 1;
	uv_timer_init(&server->loop, &peer->stall);
	peer->stall.data = peer;
	uv_timer_init(&server->loop, &peer->short_of);
	peer->short_of.data = peer;
	peer->handles += 2;
	list_add(server, peer);
	watch_process(peer);
	update_poll(peer);
	log_debug("peer %u has come (pid %d, uid %u)", peer->id, peer->pid, peer->uid);
	if (peer->orphaned)
		receive(peer);
}
