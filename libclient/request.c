/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * request.c - requests, from the caller who waits to the socket.
 *
 * The happy path: the caller fills in a request and posts it; it joins the list
 * of those in flight and the clerk sends it; the receiver finds it by its serial,
 * takes it off the list and wakes the caller, who frees it. Whoever takes a request
 * off the list answers it, so nobody does it twice.
 *
 * Sending fails only for messages that cannot be sent at all. While the connection
 * is down requests wait to be sent again; when it is given up they fail. What hmmd wants
 * to be asked again is asked again after a pause: by the caller who waits, or, where
 * nobody does, by the receiver. So is what it has no memory for, or no more of its user's share, if the
 * request insists: a protection that devices must follow.
 *
 * Locks as in connection.c.
 */
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "arena.h"
#include "connection.h"
#include "dispatch.h"

#define RETRY_MS	10
#define ROUND_LATER UINT32_MAX /* request->round: to be sent when the connection is up again */

static void *alloc_for(uint16_t op, bool reply, size_t size)
{
	return hmmc_request_has_bytes(op, reply) ? hmmc_arena_alloc_locked(size) : hmmc_arena_alloc(size);
}

static void free_for(uint16_t op, bool reply, void *memory, size_t size)
{
	if (hmmc_request_has_bytes(op, reply))
		hmmc_arena_free_locked(memory, size);
	else
		hmmc_arena_free(memory, size);
}

static bool make_room(struct request *request, uint16_t op, size_t tail)
{
	const struct hmm_wire_message *answer = hmm_wire_message(op | HMM_WIRE_REPLY);

	if (!answer)
		return true;
	request->room = alloc_for(op, true, answer->size + tail);
	request->room_size = request->room ? answer->size + tail : 0;
	return request->room;
}

struct request *hmmc_request_new_expecting(struct connection *connection, uint16_t op, size_t size, size_t tail)
{
	struct request *request = hmmc_arena_alloc(sizeof(*request));

	if (!request)
		return NULL;
	request->message = alloc_for(op, false, size);
	if (!request->message || !make_room(request, op, tail)) {
		free_for(op, false, request->message, size);
		hmmc_arena_free(request, sizeof(*request));
		return NULL;
	}
	hmm_wire_init(request->message, op, size, 0);
	request->size = size;
	request->connection = connection;
	for (unsigned int i = 0; i < sizeof(request->fds) / sizeof(*request->fds); i++)
		request->fds[i] = -1;
	return request;
}

struct request *hmmc_request_new(struct connection *connection, uint16_t op, size_t size)
{
	return hmmc_request_new_expecting(connection, op, size, 0);
}

static int close_fds(void *argument)
{
	struct request *request = argument;

	for (unsigned int i = 0; i < request->nfds; i++)
		if (request->fds[i] >= 0)
			close(request->fds[i]);
	return 0;
}

/* Only as long as the clerk takes to come back from the system call that hmmd has answered. */
static void wait_for_clerk(const struct request *request)
{
	while (__atomic_load_n(&request->sending, __ATOMIC_ACQUIRE))
		sched_yield();
}

void hmmc_request_free(struct request *request)
{
	uint16_t op;

	if (!request)
		return;
	op = request->message->opcode;
	wait_for_clerk(request);
	if (request->nfds && !request->borrowed) {
		if (hmmc_thread_is_private())
			close_fds(request);
		else
			hmmc_clerk_call(close_fds, request);
	}
	if (request->reply != request->room)
		free_for(op, true, request->reply, request->reply_size);
	free_for(op, true, request->room, request->room_size);
	free_for(op, false, request->message, request->size);
	hmmc_arena_free(request, sizeof(*request));
}

bool hmmc_request_take_reply(struct request *request, const void *reply, size_t size)
{
	if (size <= request->room_size)
		request->reply = request->room;
	else
		request->reply = alloc_for(request->message->opcode, true, size);
	if (!request->reply)
		return false;
	request->reply_size = size;
	memcpy(request->reply, reply, size);
	return true;
}

/* Takes it off the list of those in flight. With the lock held. */
void hmmc_request_forget(struct connection *connection, struct request *request)
{
	if (request->previous)
		request->previous->next = request->next;
	else
		connection->first = request->next;
	if (request->next)
		request->next->previous = request->previous;
	else
		connection->last = request->previous;
	request->next = request->previous = NULL;
}

/* Nobody waits for it. In the receiver: hmmd alone says EAGAIN. */
static void ask_later(struct request *request)
{
	struct connection *connection = request->connection;

	request->next = connection->later;
	connection->later = request;
	connection->later_at = clock_ms() + RETRY_MS;
}

void hmmc_request_answer(struct request *request, int error, const char *text)
{
	request->error = error;
	if (text != request->text)
		snprintf(request->text, sizeof(request->text), "%s", text);
	if (request->complete && error == -EAGAIN)
		ask_later(request);
	else if (request->complete)
		request->complete(request);
	else
		futex_latch_set(&request->done, 1);
}

/* In the clerk. */
static void fail(struct request *request, int error, const char *text)
{
	struct connection *connection = request->connection;

	futex_lock(&connection->lock);
	hmmc_request_forget(connection, request);
	futex_unlock(&connection->lock);
	hmmc_request_answer(request, error, text);
}

/* Asked again is what hmmd says EAGAIN to, and nothing of this process's own. */
static int own_error(int error)
{
	return error == -EAGAIN ? -ENOMEM : error;
}

enum chance {
	CHANCE_NOW,
	CHANCE_LATER,	/* it stays on the list */
	CHANCE_NEVER,	/* it is not on the list any more */
};

/* What becomes of it is settled in one: the receiver, too, takes what it gives up off the list. */
static enum chance chance_of(struct request *request)
{
	struct connection *connection = request->connection;
	enum chance chance = CHANCE_NEVER;

	futex_lock(&connection->lock);
	/* What another hmmd asked is not this one's to hear. */
	if (request->message->serial == 0 && request->life != connection->life)
		chance = CHANCE_NEVER;
	else if (connection->state == CONNECTION_UP)
		chance = CHANCE_NOW;
	else if (connection->state == CONNECTION_DOWN)
		chance = CHANCE_LATER;
	if (chance == CHANCE_NEVER)
		hmmc_request_forget(connection, request);
	else
		request->round = chance == CHANCE_NOW ? connection->round : ROUND_LATER;
	futex_unlock(&connection->lock);
	return chance;
}

/*
 * What hmmd waits for, or insists, is not given up for want of memory in the kernel. A connection that ends meanwhile
 * says so.
 */
static int send_surely(const struct request *request, bool noreply)
{
	const struct timespec pause = { .tv_nsec = RETRY_MS * 1000000L };
	int error;

	for (;;) {
		error = hmm_frame_send(request->connection->fd, request->message, request->fds, request->nfds);
		if ((error != -ENOMEM && error != -ENOBUFS) || (!noreply && !request->insists))
			return error;
		nanosleep(&pause, NULL);
	}
}

/*
 * In the clerk, with send_lock held: as long as it is, the receiver can neither give
 * the connection up nor tell another hmmd anything, so what prepare() fills in is good where it is
 * sent. Once sent the request may be answered and freed at any
 * moment, unless sending failed. A broken socket is the receiver's to notice.
 */
static void send_now(struct request *request)
{
	bool noreply = request->message->serial == 0;
	enum chance chance = chance_of(request);
	int error;

	if (chance == CHANCE_NEVER)
		hmmc_request_answer(request, -ESTALE, "hmmd is gone and did not come back in time");
	if (chance != CHANCE_NOW)
		return;
	error = request->prepare ? request->prepare(request) : 0;
	if (error) {
		fail(request, own_error(error), request->text);
		return;
	}
	__atomic_store_n(&request->sending, 1, __ATOMIC_RELAXED);
	error = send_surely(request, noreply);
	__atomic_store_n(&request->sending, 0, __ATOMIC_RELEASE);
	if (noreply)
		fail(request, error, "");
	else if (error && error != -EPIPE && error != -ECONNRESET && error != -ENOTCONN)
		fail(request, error, "the message cannot be sent to hmmd");
}

static void send_request(struct job *job)
{
	struct request *request = (struct request *)job;
	struct connection *connection = request->connection;

	futex_lock(&connection->send_lock);
	send_now(request);
	futex_unlock(&connection->send_lock);
}

void hmmc_request_post(struct request *request)
{
	struct connection *connection = request->connection;

	request->job.run = send_request;
	futex_lock(&connection->lock);
	/* An acknowledgement has no reply; its serial stays 0. */
	if (request->message->opcode != HMM_OP_ACK) {
		if (++connection->serial == 0)
			connection->serial = 1;
		request->message->serial = connection->serial;
	}
	request->previous = connection->last;
	request->next = NULL;
	if (connection->last)
		connection->last->next = request;
	else
		connection->first = request;
	connection->last = request;
	futex_unlock(&connection->lock);
	hmmc_clerk_post(&request->job);
}

int hmmc_request_wait(struct request *request)
{
	hmmc_dispatch_wait(&request->done);
	/* After a restart, while hmmd settles what was in transit. */
	while (request->error == -EAGAIN) {
		hmmc_dispatch_nap(RETRY_MS * 1000000L);
		wait_for_clerk(request);
		request->done = request->round = 0;
		request->error = 0;
		hmmc_request_post(request);
		hmmc_dispatch_wait(&request->done);
	}
	if (request->error)
		return hmmc_fail(request->error, "%s", request->text[0] ? request->text : strerror(-request->error));
	return 0;
}

int hmmc_request_call(struct request *request)
{
	hmmc_request_post(request);
	return hmmc_request_wait(request);
}

void hmmc_request_again(struct connection *connection)
{
	struct request *request = connection->later, *next;

	connection->later = NULL;
	for (; request; request = next) {
		next = request->next;
		wait_for_clerk(request);
		request->round = 0;
		request->error = 0;
		hmmc_request_post(request);
	}
}

struct resend {
	struct job job;
	struct connection *connection;
};

/* In the clerk: sends again, oldest first, what the last hmmd did not answer. */
static void resend(struct job *job)
{
	struct connection *connection = ((struct resend *)job)->connection;
	struct request *request;

	futex_lock(&connection->send_lock);
	do {
		futex_lock(&connection->lock);
		request = connection->state == CONNECTION_UP ? connection->first : NULL;
		while (request && (request->round == connection->round || request->round == 0))
			request = request->next;
		futex_unlock(&connection->lock);
		if (request)
			send_now(request);
	} while (request);
	futex_unlock(&connection->send_lock);
	hmmc_arena_free(job, sizeof(struct resend));
}

int hmmc_request_resend(struct connection *connection)
{
	struct resend *order = hmmc_arena_alloc(sizeof(*order));

	if (!order)
		return -ENOMEM;
	order->job.run = resend;
	order->connection = connection;
	hmmc_clerk_post(&order->job);
	return 0;
}

void hmmc_request_fail_all(struct connection *connection, int error, const char *text)
{
	struct request *request;

	while ((request = connection->later) != NULL) {
		connection->later = request->next;
		hmmc_request_answer(request, error, text);
	}
	for (;;) {
		futex_lock(&connection->lock);
		request = connection->first;
		/* What the clerk still has in its queue it fails itself. */
		while (request && request->round == 0)
			request = request->next;
		if (request)
			hmmc_request_forget(connection, request);
		futex_unlock(&connection->lock);
		if (!request)
			return;
		hmmc_request_answer(request, error, text);
	}
}
