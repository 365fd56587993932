/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * connection.c - the receiver thread of one connection.
 *
 * The happy path: the receiver connects, says hello and then reads. A reply is
 * matched with its request by serial and wakes whoever waits; an event goes to
 * the address space that the connection serves. Requests are sent by the clerk.
 *
 * When the socket ends, the receiver connects again, every 10 to 500 ms, tells the
 * new hmmd what it has to know (hmmc_space_restore()) and has the clerk send
 * again whatever is in flight: every request of the protocol may be sent twice,
 * because the hmmd that had the first one is dead. After the grace period it
 * gives up: requests fail with -ESTALE and the rescuer is called. A driver's windows are
 * closed at 3/4 of it, counted from when the last hmmd went: whatever the receiver waits for then ends
 * there (hmmc_connection_end()), since the owner, whom nobody took over, counts from there, too. It does not give up while the
 * hmmd that has it answers.
 *
 * Locks: `lock` guards state and the list of requests and is never held across
 * a system call other than a futex's; `send_lock` is held while sending and
 * while the descriptor is replaced. The connection goes down under both, before anything
 * is told to the next hmmd: who holds send_lock and sees it up has a descriptor and the
 * numbers that are good on it.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "arena.h"
#include "connection.h"
#include "log.h"
#include "owner.h"

#define RETRY_MIN_MS	10
#define RETRY_MAX_MS	500
#define GRACE_MS	10000
#define SOCKET_SYSTEM	"/run/hmmd/hmmd.sock"

/* ---- receiving ----------------------------------------------------------- */

/* What passes by itself: its memory, or its user's share of it, which other processes' requests count against. */
static bool is_short(int error)
{
	return error == -ENOMEM || error == -EDQUOT;
}

static void receive_reply(struct connection *connection, struct hmm_frame *frame)
{
	const struct hmm_msg_error *failure = (const void *)frame->data;
	struct request *request;
	int error = 0;

	futex_lock(&connection->lock);
	for (request = connection->first; request; request = request->next)
		if (request->message->serial == frame->header.serial &&
		    request->round == connection->round)
			break;
	if (request)
		hmmc_request_forget(connection, request);
	futex_unlock(&connection->lock);
	if (!request)
		return;
	connection->heard = true;
	if (frame->header.opcode == HMM_OP_ERROR) {
		error = failure->error < 0 ? failure->error : -EPROTO;
		hmmc_request_answer(request, request->insists && is_short(error) ? -EAGAIN : error, failure->text);
		return;
	}
	if (frame->header.opcode != (request->message->opcode | 0x8000)) {
		hmmc_request_answer(request, -EPROTO,
				    "hmmd answered another question than was asked");
		return;
	}
	if (!hmmc_request_take_reply(request, frame->data, frame->size)) {
		hmmc_request_answer(request, -ENOMEM, "the library's memory is used up");
		return;
	}
	if (request->finish)
		error = request->finish(request, frame);
	/* hmmd has not said that it is to be asked again. */
	hmmc_request_answer(request, error == -EAGAIN ? -ENOMEM : error, request->text);
}

static void receive(struct connection *connection, struct hmm_frame *frame)
{
	if (hmm_wire_check(frame->data, frame->size, frame->nfds, HMM_WIRE_SERVER, NULL)) {
		hmmc_log(HMMC_LOG_ERROR, "a message of hmmd that this library does not understand");
	} else if (frame->header.opcode == HMM_OP_SHUTDOWN) {
		/* Of one that has not taken over it says nothing: what is out was never this one's to bring home. */
		if (connection->state == CONNECTION_UP)
			connection->parted = true;
	} else if (frame->header.serial == 0) {
		if (frame->header.opcode == HMM_OP_ERROR)
			snprintf(connection->text, sizeof(connection->text), "%s",
				 ((const struct hmm_msg_error *)(const void *)frame->data)->text);
		else
			hmmc_space_event(connection->hmm, frame);
	} else {
		receive_reply(connection, frame);
	}
	hmm_frame_close(frame);
}

static bool nap(struct connection *connection, unsigned int ms)
{
	struct timespec pause = { .tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000L };

	if (!__atomic_load_n(&connection->closing, __ATOMIC_ACQUIRE))
		futex_wait(&connection->closing, 0, &pause);
	return __atomic_load_n(&connection->closing, __ATOMIC_ACQUIRE);
}

static uint64_t late_at(const struct connection *connection)
{
	return connection->down_at + connection->down_grace_ms / 4 * 3;
}

/* Between two hmmds, with windows that are to be closed in time. */
static bool is_hurried(const struct connection *connection)
{
	return connection->down_at && !connection->late && connection->role != HMM_ROLE_OWNER;
}

uint64_t hmmc_connection_end(const struct connection *connection)
{
	return is_hurried(connection) ? late_at(connection) : clock_ms() + connection->grace_ms;
}

/* How long one wait for the other end lasts; 0: for ever. */
static void set_patience(int fd, uint64_t ms)
{
	struct timeval time = { .tv_sec = (time_t)(ms / 1000), .tv_usec = (suseconds_t)(ms % 1000) * 1000 };

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof(time));
}

/* An hmmd that hangs before it serves counts as none. */
static uint64_t patience(const struct connection *connection)
{
	uint64_t now = clock_ms(), end = late_at(connection);

	if (is_hurried(connection))
		return end > now ? end - now : 1;
	return connection->grace_ms > GRACE_MS ? connection->grace_ms : GRACE_MS;
}

/* In the receiver, before it serves. Return: as hmm_frame_recv(). */
static int await(struct connection *connection)
{
	if (is_hurried(connection)) {
		if (clock_ms() >= late_at(connection))
			return -ETIMEDOUT;
		set_patience(connection->fd, patience(connection));
	}
	return hmm_frame_recv(connection->fd, connection->frame, 0);
}

static int exchange(struct connection *connection, void *message, const int *fds, unsigned int nfds)
{
	struct hmm_wire_header *header = message;
	struct hmm_frame *frame = connection->frame;
	const struct hmm_msg_error *failure = (const void *)frame->data;
	int got, error;

	futex_lock(&connection->lock);
	if (++connection->serial == 0)
		connection->serial = 1;
	header->serial = connection->serial;
	futex_unlock(&connection->lock);
	error = hmm_frame_send(connection->fd, message, fds, nfds);
	if (error)
		return EXCHANGE_LOST;
	for (;;) {
		got = await(connection);
		if (got <= 0)
			return EXCHANGE_LOST;
		if (frame->header.serial != header->serial) {
			receive(connection, frame);
			/* Refused before hello: over quota, say. */
			if (frame->header.opcode == HMM_OP_ERROR && frame->header.serial == 0)
				return failure->error < 0 ? failure->error : EXCHANGE_LOST;
			continue;
		}
		if (hmm_wire_check(frame->data, frame->size, frame->nfds, HMM_WIRE_SERVER, NULL))
			return -EPROTO;
		if (frame->header.opcode != HMM_OP_ERROR)
			return frame->header.opcode == (header->opcode | 0x8000) ? 0 : -EPROTO;
		snprintf(connection->text, sizeof(connection->text), "%s", failure->text);
		return failure->error < 0 ? failure->error : -EPROTO;
	}
}

int hmmc_connection_exchange(struct connection *connection, void *message, const int *fds,
			     unsigned int nfds)
{
	uint64_t end = hmmc_connection_end(connection);
	int error;

	/* An owner that is being taken over by hmmd answers like this until it is. */
	while ((error = exchange(connection, message, fds, nfds)) == -EAGAIN && clock_ms() < end)
		if (nap(connection, RETRY_MIN_MS))
			break;
	return error;
}

int hmmc_connection_event(struct connection *connection)
{
	if (await(connection) <= 0)
		return EXCHANGE_LOST;
	receive(connection, connection->frame);
	return 0;
}

void hmmc_connection_renew(struct connection *connection)
{
	hmmc_log(HMMC_LOG_ERROR, "the library's memory is used up: what hmmd said is asked for again");
	shutdown(connection->fd, SHUT_RDWR);
}

/* ---- connecting ----------------------------------------------------------- */

static int dial(const char *path, uint64_t patience_ms)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd, error;

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	set_patience(fd, patience_ms);
	/* Who was stopped, and goes on, is told that he was interrupted. */
	do {
		error = connect(fd, (struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
	} while (error == -EINTR);
	if (error) {
		close(fd);
		return error;
	}
	return fd;
}

static int hello(struct connection *connection)
{
	const struct hmm_msg_hello_reply *reply = (const void *)connection->frame->data;
	struct hmm_msg_hello message;
	int error;

	HMM_MSG_INIT(message, HMM_OP_HELLO, 0);
	message.version_min = message.version_max = HMM_PROTOCOL_VERSION;
	message.role = connection->role;
	HMM_MSG_TEXT(message.name, connection->name);
	error = hmmc_connection_exchange(connection, &message, NULL, 0);
	if (error)
		return error;
	connection->incarnation = reply->incarnation;
	connection->features = reply->features;
	connection->grace_ms = reply->grace_ms ? reply->grace_ms : GRACE_MS;
	if (connection->userfaultfd_device >= 0)
		close(connection->userfaultfd_device);
	connection->userfaultfd_device = hmm_frame_take_fd(connection->frame, 0);
	return 0;
}

/* In the receiver. The socket is up and hmmd knows who speaks, or there is no socket. */
static int join(struct connection *connection)
{
	int error, fd;

	fd = dial(connection->socket, patience(connection));
	if (fd < 0) {
		snprintf(connection->text, sizeof(connection->text),
			 "cannot connect to hmmd at %s: %s%s", connection->socket, strerror(-fd),
			 fd == -EACCES ? "; is this user in group hmm?" :
			 fd == -ENOENT || fd == -ECONNREFUSED ? "; is hmmd running?" : "");
		return fd;
	}
	futex_lock(&connection->send_lock);
	connection->fd = fd;
	futex_unlock(&connection->send_lock);
	connection->text[0] = 0;
	error = hello(connection);
	if (error && !connection->text[0])
		snprintf(connection->text, sizeof(connection->text), "hmmd at %s hung up: %s",
			 connection->socket, strerror(-error));
	return error;
}

static void part(struct connection *connection)
{
	if (connection->fd < 0)
		return;
	/* Whoever is in sendmsg() comes out and lets go of the lock. */
	shutdown(connection->fd, SHUT_RDWR);
	futex_lock(&connection->send_lock);
	close(connection->fd);
	connection->fd = -1;
	/* In one: who gets send_lock next must not take it for up, with no descriptor. */
	futex_lock(&connection->lock);
	connection->life++;
	if (connection->state == CONNECTION_UP)
		connection->state = CONNECTION_DOWN;
	futex_unlock(&connection->lock);
	futex_unlock(&connection->send_lock);
}

static void set_state(struct connection *connection, enum connection_state state)
{
	if (state == CONNECTION_UP)
		set_patience(connection->fd, 0);
	futex_lock(&connection->lock);
	connection->state = state;
	if (state == CONNECTION_UP)
		connection->round++;
	futex_unlock(&connection->lock);
}

/* Not beyond what is to be done in time. */
static bool nap_until_due(struct connection *connection, unsigned int pause)
{
	uint64_t now = clock_ms(), due = late_at(connection);

	if (connection->late)
		due = connection->down_at + connection->down_grace_ms;
	return nap(connection, now + pause <= due ? pause : due > now ? (unsigned int)(due - now) : 0);
}

/*
 * It lives, lets us in, and hangs up at what is asked before it has answered anything: asked without end it would do
 * nothing else. After so many times nobody waits for that answer any more.
 */
#define BARREN_MAX	8

static void note_barren(struct connection *connection, uint64_t before)
{
	char text[HMMC_ERROR_TEXT];

	connection->barren = connection->heard || connection->incarnation != before ? 0 : connection->barren + 1;
	connection->heard = false;
	if (connection->barren < BARREN_MAX)
		return;
	connection->barren = 0;
	snprintf(text, sizeof(text), "hmmd at %s hangs up at what it is asked: bring libhmmclient and hmmd to the same release; its log tells more",
		 connection->socket);
	hmmc_log(HMMC_LOG_ERROR, "%s", text);
	hmmc_request_fail_all(connection, -EPROTO, text);
}

/* Return: true when a new hmmd has taken over, false when it is time to give up. */
static bool reconnect(struct connection *connection)
{
	uint64_t start = clock_ms(), before = connection->incarnation, now;
	unsigned int pause = RETRY_MIN_MS;

	part(connection);
	hmmc_space_down(connection->hmm);
	connection->late = false;
	connection->down_at = start;
	/* The next hmmd may know another, of which the owner has not heard. */
	connection->down_grace_ms = connection->grace_ms;
	if (connection->barren && nap_until_due(connection, pause << connection->barren))
		return false;
	for (;;) {
		bool joined = join(connection) == 0;

		if (joined && hmmc_space_restore(connection->hmm) == 0)
			break;
		part(connection);
		now = clock_ms();
		/* It lives, brings everything home by itself, say, and reads the events: two must not do that. */
		if (joined && hmmc_owner_is_held(connection->hmm, connection->incarnation)) {
			connection->down_at = start = now;
			connection->late = false;
		}
		if (now - start >= connection->down_grace_ms)
			return false;
		if (!connection->late && now >= late_at(connection)) {
			connection->late = true;
			hmmc_space_late(connection->hmm);
		}
		if (nap_until_due(connection, pause))
			return false;
		pause = pause * 2 < RETRY_MAX_MS ? pause * 2 : RETRY_MAX_MS;
	}
	connection->down_at = 0;
	connection->parted = false;
	note_barren(connection, before);
	set_state(connection, CONNECTION_UP);
	hmmc_log(HMMC_LOG_NOTICE, "a new hmmd took over after %llu ms",
		 (unsigned long long)(clock_ms() - start));
	if (hmmc_request_resend(connection) == 0)
		return true;
	/* Down before it is given up: the clerk may be sending. */
	part(connection);
	return false;
}

static int open_first(struct connection *connection)
{
	uint64_t start = clock_ms();
	unsigned int pause = RETRY_MIN_MS;
	int error;

	for (;;) {
		error = join(connection);
		if (!error)
			return 0;
		part(connection);
		if ((error != -ENOENT && error != -ECONNREFUSED && error != EXCHANGE_LOST) ||
		    clock_ms() - start >= connection->timeout_ms || nap(connection, pause))
			return error == EXCHANGE_LOST ? -ECONNREFUSED : error;
		pause = pause * 2 < RETRY_MAX_MS ? pause * 2 : RETRY_MAX_MS;
	}
}

/*
 * With something to be asked again. Return: whether there is something to receive (a hangup,
 * too); if not, it was asked.
 */
static bool has_come(struct connection *connection)
{
	struct pollfd wait = { .fd = connection->fd, .events = POLLIN };
	uint64_t now = clock_ms();

	if (now < connection->later_at && poll(&wait, 1, (int)(connection->later_at - now)) > 0)
		return true;
	hmmc_request_again(connection);
	return false;
}

static void receiver_main(void *argument)
{
	struct connection *connection = argument;
	int error = open_first(connection);

	if (!error)
		set_state(connection, CONNECTION_UP);
	futex_latch_set(&connection->opened, error ? (uint32_t)error : 1);
	if (error)
		return;
	while (!__atomic_load_n(&connection->closing, __ATOMIC_ACQUIRE)) {
		if (connection->later && !has_come(connection))
			continue;
		if (hmm_frame_recv(connection->fd, connection->frame, 0) > 0) {
			receive(connection, connection->frame);
			continue;
		}
		if (__atomic_load_n(&connection->closing, __ATOMIC_ACQUIRE) ||
		    reconnect(connection))
			continue;
		/* Before it is dead: who is answered -ESTALE finds it lost, and waits for the rescue. */
		if (!__atomic_load_n(&connection->closing, __ATOMIC_ACQUIRE))
			hmmc_space_lost(connection->hmm);
		break;
	}
	set_state(connection, CONNECTION_DEAD);
	hmmc_request_fail_all(connection, -ESTALE, "hmmd is gone and did not come back in time");
}

static void find_socket(char *path, size_t size, const char *wanted)
{
	const char *directory;

	if (!wanted)
		wanted = secure_getenv("HMM_SOCKET");
	if (wanted && *wanted) {
		snprintf(path, size, "%s", wanted);
		return;
	}
	directory = secure_getenv("XDG_RUNTIME_DIR");
	snprintf(path, size, "%s", SOCKET_SYSTEM);
	if (access(path, F_OK) && directory && *directory) {
		char user[256];
		int length = snprintf(user, sizeof(user), "%s/hmmd.sock", directory);

		if (length > 0 && (size_t)length < size && access(user, F_OK) == 0)
			memcpy(path, user, (size_t)length + 1);
	}
}

static int start_receiver(void *argument)
{
	struct connection *connection = argument;

	return hmmc_thread_start(&connection->receiver, "hmm-connection", receiver_main,
				 connection);
}

int hmmc_connection_new(struct hmm *hmm, enum hmm_role role, const char *socket, const char *name,
			uint32_t timeout_ms, struct connection **result)
{
	struct connection *connection;
	int error;

	if (socket && strlen(socket) >= sizeof(connection->socket))
		return hmmc_fail(-ENAMETOOLONG, "the socket's path is longer than %zu bytes",
				 sizeof(connection->socket) - 1);
	connection = hmmc_arena_alloc(sizeof(*connection));
	if (connection)
		connection->frame = hmmc_arena_alloc_locked(sizeof(*connection->frame));
	if (!connection || !connection->frame) {
		hmmc_arena_free(connection, sizeof(*connection));
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	}
	hmm_frame_init(connection->frame);
	connection->hmm = hmm;
	connection->role = role;
	connection->timeout_ms = timeout_ms;
	connection->fd = connection->userfaultfd_device = -1;
	find_socket(connection->socket, sizeof(connection->socket), socket);
	snprintf(connection->name, sizeof(connection->name), "%s",
		 name ? name : program_invocation_short_name);
	error = hmmc_clerk_call(start_receiver, connection);
	if (!error) {
		error = (int)futex_latch_wait(&connection->opened);
		error = error == 1 ? 0 : error;
	}
	if (error) {
		hmmc_fail(error, "%s", connection->text[0] ? connection->text : strerror(-error));
		hmmc_connection_free(connection);
		return error;
	}
	*result = connection;
	return 0;
}

static int stop_receiver(void *argument)
{
	struct connection *connection = argument;

	futex_latch_set(&connection->closing, 1);
	futex_lock(&connection->send_lock);
	if (connection->fd >= 0)
		shutdown(connection->fd, SHUT_RDWR);
	futex_unlock(&connection->send_lock);
	hmmc_thread_join(&connection->receiver);
	part(connection);
	if (connection->userfaultfd_device >= 0)
		close(connection->userfaultfd_device);
	return 0;
}

static int pass(void *argument)
{
	return 0;
}

void hmmc_connection_free(struct connection *connection)
{
	if (!connection)
		return;
	hmmc_clerk_call(stop_receiver, connection);
	/* Behind what the receiver had the clerk do until its end. */
	hmmc_clerk_call(pass, NULL);
	hmmc_arena_free_locked(connection->frame, sizeof(*connection->frame));
	hmmc_arena_free(connection, sizeof(*connection));
}
