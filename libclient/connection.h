/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * connection.h - one socket to hmmd: requests out, replies and events in,
 * reconnection after hmmd's death.
 */
#ifndef HMMC_CONNECTION_H
#define HMMC_CONNECTION_H

#include "clerk.h"
#include "error.h"
#include "futex.h"
#include "public.h"

struct connection;
struct hmm;

/*
 * A request lives from request_new() to request_free(); all of it is arena
 * memory. Descriptors in it are of the private table.
 */
struct request {
	struct job job;			/* the clerk sends it */
	struct request *next, *previous;	/* in flight */
	struct connection *connection;
	struct hmm_wire_header *message;
	size_t size;
	int fds[10];
	unsigned int nfds;
	bool borrowed;			/* the descriptors stay when the request goes */
	bool insists;			/* what hmmd has no memory for, or no more of the user's share, is asked again as after EAGAIN */
	uint32_t round;			/* of the connection it was last sent on; 0: not yet */
	uint32_t life;			/* noreply: of the connection it is for */
	uint32_t done;			/* latch */
	uint32_t sending; /* the clerk is reading the message, though the answer may be here */
	int error;
	char text[HMMC_ERROR_TEXT];
	struct hmm_wire_header *reply;	/* in room, or arena; NULL for noreply and errors */
	size_t reply_size;
	struct hmm_wire_header *room;	/* for the answer, made before anything is asked: what hmmd has done is not refused */
	size_t room_size;
	/*
	 * In the clerk, each time before it is sent: fills in what only it can know.
	 * An error, with its text in request->text, ends the request.
	 */
	int (*prepare)(struct request *request);
	/*
	 * In the receiver, before the caller wakes: takes descriptors. An error becomes the
	 * request's.
	 */
	int (*finish)(struct request *request, struct hmm_frame *frame);
	/* In the receiver, instead of waking anybody, and not for EAGAIN: the callee frees the request. */
	void (*complete)(struct request *request);
	void *data;
};

/* Whether bytes of the program's are in a message, which may have locked them. */
static inline bool hmmc_request_has_bytes(uint16_t op, bool reply)
{
	return op == (reply ? HMM_OP_DEVICE_READ : HMM_OP_DEVICE_WRITE);
}

/* A zeroed message of @size bytes for @op, and room for the fixed part of its answer. NULL: no memory. */
struct request *hmmc_request_new(struct connection *connection, uint16_t op, size_t size);
/* The same, with room for a tail of @tail bytes too, where hmmd will have done what that tells of. */
struct request *hmmc_request_new_expecting(struct connection *connection, uint16_t op, size_t size, size_t tail);
void hmmc_request_free(struct request *request);	/* closes its descriptors too */
/* Queues it; request->done is set, or complete() called, when it is answered. */
void hmmc_request_post(struct request *request);
int hmmc_request_wait(struct request *request);	/* sets hmm_last_error() */
int hmmc_request_call(struct request *request);	/* post and wait */

/* For the receiver. With the lock held: takes it off the list of those in flight. */
void hmmc_request_forget(struct connection *connection, struct request *request);
void hmmc_request_answer(struct request *request, int error, const char *text);
/* A copy of the answer, into its room if that is large enough. False: no memory. */
bool hmmc_request_take_reply(struct request *request, const void *reply, size_t size);
/* In the receiver, at connection->later_at: asks again what hmmd had no answer to then. */
void hmmc_request_again(struct connection *connection);
/* Has the clerk send again what the last hmmd did not answer. Return: 0 or -ENOMEM. */
int hmmc_request_resend(struct connection *connection);
/* The connection is dead: whoever waits gets -ESTALE. */
void hmmc_request_fail_all(struct connection *connection, int error, const char *text);

enum connection_state {
	CONNECTION_DOWN,	/* being made, or made again */
	CONNECTION_UP,
	CONNECTION_DEAD,	/* given up: requests fail with -ESTALE */
};

struct connection {
	struct hmm *hmm;
	struct thread receiver;
	char socket[108];
	char name[64];
	enum hmm_role role;
	uint32_t timeout_ms;

	struct futex_lock send_lock;	/* fd may be used for sending */
	int fd;
	struct futex_lock lock;		/* what follows */
	uint32_t state;
	uint32_t round;			/* how many times it was up, from 1 */
	uint32_t life;			/* how many times it ended: whom events came from */
	uint32_t serial;
	struct request *first, *last;	/* in flight, oldest first */
	uint32_t closing;		/* futex: reconnection sleeps on it */

	uint32_t opened;		/* latch for the first connection: 1, or -errno */
	char text[HMMC_ERROR_TEXT];	/* why it failed */
	uint64_t incarnation;
	bool heard;			/* by the receiver: an answer came since it was up */
	unsigned int barren;		/* how many times on end it went without one, and it was the same hmmd */
	uint64_t features;
	uint32_t grace_ms;
	uint64_t down_at;		/* ms: the last hmmd went, and none has taken over; 0: not so */
	uint32_t down_grace_ms;		/* what it said: the owner counts by that, too */
	bool late;			/* 3/4 of it are over: windows are closed */
	bool parted;			/* hmmd said good-bye: everything is home */
	int userfaultfd_device;		/* what hello gave, or -1 */
	struct hmm_frame *frame;	/* the receiver's */
	struct request *later;		/* the receiver's: to be asked again, all at once */
	uint64_t later_at;		/* ms */
};

/*
 * Connects and says hello. @socket NULL: the usual places.
 * Return: 0 or a negative errno, with hmm_last_error().
 */
int hmmc_connection_new(struct hmm *hmm, enum hmm_role role, const char *socket, const char *name,
			uint32_t timeout_ms, struct connection **result);
/* Requests in flight fail with -ESTALE. NULL is allowed. */
void hmmc_connection_free(struct connection *connection);

/*
 * For the receiver while it restores what a restarted hmmd has to know: sends
 * @message and waits for its reply, which is then in connection->frame.
 */
int hmmc_connection_exchange(struct connection *connection, void *message, const int *fds,
			     unsigned int nfds);
/* As above, for the next event, which is dealt with. */
int hmmc_connection_event(struct connection *connection);
/*
 * In the receiver: what hmmd said cannot be taken in, for want of memory, and it says nothing twice. So the connection ends,
 * and on the next one hmmd hears what is known here, and tells the rest again.
 */
void hmmc_connection_renew(struct connection *connection);
/*
 * For the receiver: when (by clock_ms()) it must not wait any longer for what hmmd does not know yet. Of a driver that is 3/4 of
 * the grace time after hmmd went, so that its windows are closed then.
 */
uint64_t hmmc_connection_end(const struct connection *connection);
#define EXCHANGE_LOST	(-EPIPE)	/* the connection broke again: try anew */

/* What the owner of the connection makes of it; in space.c. */
void hmmc_space_event(struct hmm *hmm, struct hmm_frame *frame);
int hmmc_space_restore(struct hmm *hmm);
void hmmc_space_down(struct hmm *hmm);		/* called once each time it breaks */
void hmmc_space_late(struct hmm *hmm);		/* three quarters of the grace period are over */
void hmmc_space_lost(struct hmm *hmm);		/* no hmmd within the grace period */

#endif
