/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * event.c - reading what becomes of an owner's pages.
 *
 * The happy path: hmmd makes a ring and a page for the reader's position, and the library
 * maps both. Records are taken out without hmmd. When the ring stops being
 * empty hmmd sends one message, on which the receiver signals the eventfd that the
 * program polls; who reads the ring empty resets it, and looks once more.
 *
 * The eventfd is the library's own, so that it stays the same across restarts of hmmd
 * and hmmd need not write to what a client can make it wait for. After a restart
 * there is a new ring; what is left in the old one is read first, then a LOST record.
 *
 * `out` may itself be on a device, in this very process: it is written with no lock
 * held that the receiver takes, who answers invalidations.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "arena.h"
#include "log.h"
#include "mapping.h"
#include "space.h"

#define BATCH	64U
#define KINDS	(((2ULL << HMM_EVENT_LOST) - 1) & ~1ULL)

struct ring {
	const struct hmm_notices *map;		/* NULL: there is none */
	struct hmm_notices_reader *reader;
	uint32_t entries;
};

struct hmm_events {
	struct hmm_events *next;	/* hmm->events */
	struct hmm *hmm;
	uint64_t mask;
	uint32_t entries;
	uint32_t id;
	int fd;				/* the eventfd, in the program's table */
	int private_fd;			/* and in the library's */
	uint32_t signalled;		/* it was written to, and not read since; atomic */

	struct futex_lock read_lock;	/* one reader at a time; before lock */
	struct hmm_notice batch[BATCH];

	struct futex_lock lock;		/* what follows: readers, and the receiver after a restart */
	struct ring ring, old;		/* old: of the hmmd before, read first */
	uint64_t lost;			/* records of the hmmds before that were dropped, and their ends */
	uint32_t restarts;		/* that no LOST record was given for */
};

/* ---- rings ------------------------------------------------------------------------ */

static void ring_unmap(struct ring *ring)
{
	if (ring->map)
		munmap((void *)(uintptr_t)ring->map, HMM_NOTICES_SIZE(ring->entries));
	if (ring->reader)
		munmap(ring->reader, sizeof(*ring->reader));
	memset(ring, 0, sizeof(*ring));
}

/* In a thread with the private table. */
static int ring_map(struct ring *ring, struct hmm_frame *frame)
{
	const struct hmm_msg_notices_open_reply *reply = (const void *)frame->data;
	int fd = hmm_frame_take_fd(frame, 0), reader = hmm_frame_take_fd(frame, 1);

	ring->entries = reply->entries;
	ring->map = hmmc_map(NULL, HMM_NOTICES_SIZE(ring->entries), PROT_READ, MAP_SHARED, fd, 0);
	ring->reader = hmmc_map(NULL, sizeof(*ring->reader), PROT_READ | PROT_WRITE, MAP_SHARED,
				reader, 0);
	close(fd);
	close(reader);
	if (ring->map && ring->reader)
		return 0;
	ring_unmap(ring);
	return -ENOMEM;
}

static uint64_t ring_unread(const struct ring *ring)
{
	return __atomic_load_n(&ring->map->produced, __ATOMIC_SEQ_CST) - ring->reader->consumed;
}

static uint64_t ring_dropped(const struct ring *ring)
{
	return ring->map ? __atomic_load_n(&ring->map->dropped, __ATOMIC_RELAXED) : 0;
}

static unsigned int ring_take(struct ring *ring, struct hmm_notice *out, unsigned int max)
{
	uint64_t from = ring->reader->consumed, unread = ring_unread(ring);
	unsigned int n = unread < max ? (unsigned int)unread : max;

	for (unsigned int i = 0; i < n; i++)
		out[i] = ring->map->ring[(from + i) % ring->entries];
	/* hmmd looks at it after it has stored `produced`; who finds nothing left looks at that after this. */
	__atomic_store_n(&ring->reader->consumed, from + n, __ATOMIC_SEQ_CST);
	return n;
}

/* ---- reading ---------------------------------------------------------------------- */

static void fill_lost(struct hmm_notice *notice)
{
	memset(notice, 0, sizeof(*notice));
	notice->time = clock_ns();
	notice->kind = HMM_EVENT_LOST;
}

/* The old ring's, then LOST, then what is new. With the lock held. */
static unsigned int take(struct hmm_events *events, unsigned int max)
{
	unsigned int n = 0;

	if (events->old.map) {
		n = ring_take(&events->old, events->batch, max);
		if (!ring_unread(&events->old))
			ring_unmap(&events->old);
	}
	if (!events->old.map && events->restarts && n < max) {
		events->restarts = 0;
		fill_lost(&events->batch[n++]);
	}
	if (!events->old.map && !events->restarts && n < max)
		n += ring_take(&events->ring, events->batch + n, max - n);
	return n;
}

static bool is_empty(struct hmm_events *events)
{
	bool empty;

	futex_lock(&events->lock);
	empty = !events->old.map && !events->restarts && !ring_unread(&events->ring);
	futex_unlock(&events->lock);
	return empty;
}

/* With the private table. Written first and noted then: who resets it does so again rather than never. */
static int raise_signal(void *argument)
{
	struct hmm_events *events = argument;
	const uint64_t one = 1;

	/* Full, it is readable anyway. */
	if (write(events->private_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		return -errno;
	__atomic_store_n(&events->signalled, 1, __ATOMIC_SEQ_CST);
	return 0;
}

static int reset_signal(void *argument)
{
	struct hmm_events *events = argument;
	uint64_t count;

	return read(events->private_fd, &count, sizeof(count)) < 0 ? -errno : 0;
}

/* The last record was read: the descriptor is not readable any more, unless one came meanwhile. */
static void settle_signal(struct hmm_events *events)
{
	if (!is_empty(events) || !__atomic_exchange_n(&events->signalled, 0, __ATOMIC_SEQ_CST))
		return;
	hmmc_clerk_call(reset_signal, events);
	if (!is_empty(events) || __atomic_load_n(&events->hmm->lost, __ATOMIC_ACQUIRE))
		hmmc_clerk_call(raise_signal, events);
}

static struct hmm_mirror *mirror_of(struct hmm *hmm, uint32_t id)
{
	struct hmm_mirror_private *private;
	struct hmm_mirror *mirror;

	if (!id)
		return NULL;
	futex_lock(&hmm->lock);
	private = hmmc_mirror_find(hmm, id);
	mirror = private ? private->mirror : NULL;
	futex_unlock(&hmm->lock);
	return mirror;
}

static void give(struct hmm_events *events, const struct hmm_notice *notice, struct hmm_event *out)
{
	*out = (struct hmm_event){
		.time = notice->time,
		.kind = notice->kind,
		.reason = notice->reason,
		.error = notice->error,
		.mirror_id = notice->mirror,
		.mirror = mirror_of(events->hmm, notice->mirror),
		.start = notice->start,
		.end = notice->end,
		.pages = notice->pages,
	};
}

static int check(const struct hmm_events *events)
{
	if (!events)
		return hmmc_fail(-EINVAL, "the handle is NULL");
	if (hmmc_space_check(events->hmm) == -ESTALE &&
	    !__atomic_load_n(&events->hmm->lost, __ATOMIC_ACQUIRE))
		return -ESTALE;		/* a fork's child has none of it */
	return 0;
}

int hmm_event_read(struct hmm_events *events, struct hmm_event *out, unsigned int max)
{
	bool lost;
	unsigned int n = 0, taken;
	int error = check(events);

	if (error)
		return error;
	if (!out || !max)
		return hmmc_fail(-EINVAL, "out is NULL, or max is 0");
	if (max > HMM_NOTICES_MAX)
		max = HMM_NOTICES_MAX;
	futex_lock(&events->read_lock);
	lost = __atomic_load_n(&events->hmm->lost, __ATOMIC_ACQUIRE);
	do {
		unsigned int room = max - n < BATCH ? max - n : BATCH;

		futex_lock(&events->lock);
		taken = take(events, room);
		futex_unlock(&events->lock);
		for (unsigned int i = 0; i < taken; i++)
			give(events, &events->batch[i], &out[n++]);
	} while (taken && n < max);
	settle_signal(events);
	futex_unlock(&events->read_lock);
	if (!n && lost)
		return hmmc_fail(-ESTALE, "the owner or its hmmd is gone: nothing more will come");
	return (int)n;
}

int hmm_event_fd(const struct hmm_events *events)
{
	int error = check(events);

	return error ? error : events->fd;
}

uint64_t hmm_event_dropped(const struct hmm_events *events)
{
	struct hmm_events *these = (struct hmm_events *)(uintptr_t)events;
	uint64_t dropped;

	if (check(events))
		return 0;
	futex_lock(&these->lock);
	dropped = these->lost + ring_dropped(&these->ring);
	futex_unlock(&these->lock);
	return dropped;
}

/* ---- opening and closing ---------------------------------------------------------- */

static int check_options(const struct hmm_event_options *given, struct hmm_event_options *options)
{
	int error = hmmc_take_options(given, options, sizeof(*options));

	if (error)
		return error;
	if (options->mask & ~KINDS)
		return hmmc_fail(-EINVAL, "options.mask has kinds that are not known");
	if (options->entries &&
	    (options->entries < HMM_NOTICES_MIN || options->entries > HMM_NOTICES_MAX))
		return hmmc_fail(-EINVAL, "options.entries is %u: %u to %u are possible",
				 options->entries, HMM_NOTICES_MIN, HMM_NOTICES_MAX);
	if (options->reserved)
		return hmmc_fail(-EINVAL, "options.reserved is not 0");
	return 0;
}

static void fill_open(struct hmm_msg_notices_open *message, const struct hmm_events *events)
{
	message->owner = events->hmm->id;
	message->mask = events->mask;
	message->entries = events->entries;
}

static int prepare_open(struct request *request)
{
	fill_open((struct hmm_msg_notices_open *)request->message, request->data);
	return 0;
}

/* In the receiver: from here on a restart finds it. */
static int finish_open(struct request *request, struct hmm_frame *frame)
{
	const struct hmm_msg_notices_open_reply *reply = (const void *)frame->data;
	struct hmm_events *events = request->data;
	int error = ring_map(&events->ring, frame);

	if (error)
		return error;
	futex_lock(&events->hmm->lock);
	events->id = reply->notices;
	events->next = events->hmm->events;
	events->hmm->events = events;
	futex_unlock(&events->hmm->lock);
	return 0;
}

static int prepare_close(struct request *request)
{
	struct hmm_msg_notices_close *message = (struct hmm_msg_notices_close *)request->message;
	const struct hmm_events *events = request->data;

	/* The hmmd that is there now gave none. */
	if (!events->id)
		return -ENOENT;
	message->owner = events->hmm->id;
	message->notices = events->id;
	return 0;
}

static void forget(struct hmm_events *events)
{
	struct hmm *hmm = events->hmm;
	struct hmm_events **at;

	futex_lock(&hmm->restore_lock);
	futex_lock(&hmm->lock);
	for (at = &hmm->events; *at && *at != events; at = &(*at)->next)
		;
	if (*at)
		*at = events->next;
	futex_unlock(&hmm->lock);
	futex_unlock(&hmm->restore_lock);
}

/* In the receiver: no restart from here on opens it again. */
static int finish_close(struct request *request, struct hmm_frame *frame)
{
	forget(request->data);
	return 0;
}

static int call_hmmd(struct hmm_events *events, uint16_t op, size_t size,
		     int (*prepare)(struct request *),
		     int (*finish)(struct request *, struct hmm_frame *))
{
	struct request *request = hmmc_request_new(events->hmm->connection, op, size);
	int error;

	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	request->data = events;
	request->prepare = prepare;
	request->finish = finish;
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	return error;
}

static int take_fd(void *argument)
{
	struct hmm_events *events = argument;
	int fd = hmmc_clerk_take_fd(events->fd);

	if (fd < 0)
		return fd;
	events->private_fd = fd;
	return 0;
}

static int close_private(void *argument)
{
	struct hmm_events *events = argument;

	return events->private_fd >= 0 ? close(events->private_fd) : 0;
}

static void free_events(struct hmm_events *events)
{
	hmmc_clerk_call(close_private, events);
	if (events->fd >= 0)
		close(events->fd);
	ring_unmap(&events->ring);
	ring_unmap(&events->old);
	hmmc_arena_free(events, sizeof(*events));
}

int hmm_event_open(struct hmm *hmm, const struct hmm_event_options *given, struct hmm_events **result)
{
	struct hmm_event_options options;
	struct hmm_events *events;
	int error = hmmc_space_check(hmm);

	if (error)
		return error;
	if (!result)
		return hmmc_fail(-EINVAL, "result is NULL");
	error = check_options(given, &options);
	if (error)
		return error;
	events = hmmc_arena_alloc(sizeof(*events));
	if (!events)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	events->hmm = hmm;
	events->mask = options.mask;
	events->entries = options.entries;
	events->private_fd = -1;
	events->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (events->fd < 0)
		error = hmmc_fail(-errno, "no descriptor: %s", strerror(errno));
	if (!error) {
		error = hmmc_clerk_call(take_fd, events);
		if (error)
			hmmc_fail(error, "no descriptor for the library: %s", strerror(-error));
	}
	if (!error)
		error = call_hmmd(events, HMM_OP_NOTICES_OPEN, sizeof(struct hmm_msg_notices_open),
				  prepare_open, finish_open);
	if (error) {
		free_events(events);
		return error;
	}
	*result = events;
	return 0;
}

void hmm_event_close(struct hmm_events *events)
{
	if (!events || check(events))
		return;
	if (!__atomic_load_n(&events->hmm->lost, __ATOMIC_ACQUIRE))
		call_hmmd(events, HMM_OP_NOTICES_CLOSE, sizeof(struct hmm_msg_notices_close),
			  prepare_close, finish_close);
	forget(events);
	free_events(events);
}

/* ---- in the receiver -------------------------------------------------------------- */

void hmmc_event_signal(struct hmm *hmm, uint32_t notices)
{
	futex_lock(&hmm->lock);
	for (struct hmm_events *events = hmm->events; events; events = events->next)
		if (!notices || events->id == notices)
			raise_signal(events);
	futex_unlock(&hmm->lock);
}

/* @ring NULL: the new hmmd gives none, and nothing more will come. */
static void switch_ring(struct hmm_events *events, const struct ring *ring)
{
	futex_lock(&events->lock);
	events->lost++;
	events->restarts++;
	if (!ring) {
		futex_unlock(&events->lock);
		return;
	}
	events->lost += ring_dropped(&events->ring);
	if (events->old.map) {
		/* Nobody has read what the hmmd before the last one said: it stays, the last one's goes. */
		events->lost += ring_unread(&events->ring);
		ring_unmap(&events->ring);
	} else {
		events->old = events->ring;
	}
	events->ring = *ring;
	futex_unlock(&events->lock);
}

int hmmc_event_restore(struct hmm *hmm)
{
	struct hmm_msg_notices_open message;
	struct hmm_frame *frame = hmm->connection->frame;
	struct ring ring = { 0 };
	int error;

	for (struct hmm_events *events = hmm->events; events; events = events->next) {
		HMM_MSG_INIT(message, HMM_OP_NOTICES_OPEN, 0);
		fill_open(&message, events);
		error = hmmc_connection_exchange(hmm->connection, &message, NULL, 0);
		if (error == EXCHANGE_LOST)
			return error;
		if (!error)
			error = ring_map(&ring, frame);
		events->id = 0;
		if (error)
			hmmc_log(HMMC_LOG_WARNING, "the new hmmd gives no ring of events: %s",
				 strerror(-error));
		else
			events->id = ((const struct hmm_msg_notices_open_reply *)(const void *)
					      frame->data)->notices;
		switch_ring(events, error ? NULL : &ring);
		raise_signal(events);
	}
	return 0;
}
