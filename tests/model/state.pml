/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * state.pml - what there is of the one page: its bytes wherever they are, what the kernel
 * knows of it, what outlives hmmd in shared memory, and what dies with hmmd.
 *
 * Bytes are three values: zeros, what was stored last, and anything older. A store makes
 * every other copy old, so "a load sees the last store" is that it never sees OLD. That is all that
 * can be said of bytes that nobody computes with, so nothing is lost by it.
 */
#define ZERO	0
#define LAST	1
#define OLD	2

/* Of enum hmm_page_state. */
#define I	0
#define S	2
#define D	3

/* Of enum hmm_transit. */
#define REST		0
#define OUT_MOVE	1
#define HOME_COPY	3
#define SHARING		5
#define UNSHARING	6

/* What somebody wants of the page, or waits for. */
#define NOBODY		0
#define READ		1
#define WRITE		2
#define WP		3	/* a write to a protected page */

/* Of a fault, as the kernel has it. */
#define AWAKE		0
#define QUEUED_FAULT	1
#define ASLEEP		2	/* the message was read: it does not come again without a wake-up */

/* ---- the owner and its kernel ---------------------------------------------------------- */

bit has;		/* a page is there */
bit wp;			/* ... and write-protected */
bit armed;		/* the mapping is registered with the owner's userfaultfd: MISSING|WP */
byte val;		/* the page's bytes */
bit slot_has;
byte slot_val;
byte fault, fault_kind;	/* the thread's */
bit cpu_blocked;	/* in a call whose event was not read */

#define REMOVE		1
#define UNMAP		2

chan events = [2] of { byte };	/* unread */
chan journal = [5] of { byte };	/* read and not applied: hmmd's death leaves it */

/* While an event is unread COPY, MOVE, ZEROPAGE and WRITEPROTECT give EAGAIN. */
byte unread;		/* how many */
#define changing	(unread > 0)

/* ---- the shadow --------------------------------------------------------------------------- */

bit shadow_has;
byte shadow_val;

/* ---- what is promised ---------------------------------------------------------------------- */

bit last_is_right;	/* a load may see the last store */
bit zero_is_right = 1;	/* a load may see zeros: it was discarded, or never written */
/*
 * The owner has changed the map and hmmd has yet to see to it: until then a driver may keep its entry
 * (LIMITS 1 and 2).
 */
bit limbo;

/* ---- shared memory: it outlives hmmd ---------------------------------------------------------- */

#ifdef CALLBACKS
#define SEEN
#else
#define SEEN	local	/* by nobody but hmmd */
#endif
SEEN bit odd;		/* the block's sequence number */
SEEN byte entry;	/* table: NOBODY, READ, WRITE */
bit hold;		/* orders: none enters its critical call */

#define NO_ORDER	0
#define ORDER_MOVE	1
#define ORDER_DROP	2
#define ORDER_RELEASE	5

#define FREE		0
#define QUEUED		1
#define RUNNING		2
#define COMMIT		3
#define FILLING		4
#define DONE		5
#define CANCELLED	6

typedef order_record {
	byte kind, state;
	bit moved, hole;
	bit current;		/* its epoch is that of the transit in the ledger */
};
order_record ring[2];
byte consumer, unconsumed;	/* the agent's place in it, and how many it has not passed */

/* ---- between hmmd and the driver ---------------------------------------------------------------- */

bit told;		/* an invalidation is under way */
byte device_entry;	/* what the driver keeps of the table: NOBODY, READ, WRITE */
bit ask_back;		/* a successor waits for the driver */

bit born;		/* hmmd is there for the first time */
