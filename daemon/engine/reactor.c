/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * reactor.c - io_uring multishot polls, or epoll.
 *
 * A source lives in a numbered place; what the kernel hands back is the number
 * and a generation, so that an answer for a source that has been removed
 * meanwhile finds nobody. A multishot poll that the kernel ended is put back.
 */
#include "reactor.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BATCH 64U

struct place {
	struct source *source;
	uint32_t generation;
	uint32_t next_free;
};

struct reactor {
	bool uring;
	struct io_uring ring;
	int epoll;
	struct place *places;	/* [0] is never used: slot 0 means "not added" */
	uint32_t count, first_free;
};

static uint64_t pack(const struct reactor *reactor, uint32_t slot)
{
	return (uint64_t)reactor->places[slot].generation << 32 | slot;
}

/*
 * Completions wait until the worker asks: otherwise each one interrupts the
 * processor it runs on. Belongs to whoever calls reactor_start().
 */
static int new_ring(struct io_uring *ring)
{
	const unsigned int quiet = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
				   IORING_SETUP_R_DISABLED;

	if (io_uring_queue_init(256, ring, quiet) == 0)
		return 0;
	return io_uring_queue_init(256, ring, 0);
}

void reactor_start(struct reactor *reactor)
{
	if (reactor->uring && reactor->ring.flags & IORING_SETUP_R_DISABLED)
		/* Debian 12's liburing declares io_uring_enable_rings() and does not export it. */
		syscall(SYS_io_uring_register, reactor->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS,
			NULL, 0);
}

int reactor_new(bool no_io_uring, struct reactor **result)
{
	struct reactor *reactor = calloc(1, sizeof(*reactor));

	if (!reactor)
		return -ENOMEM;
	reactor->epoll = -1;
	reactor->count = 1;
	reactor->uring = !no_io_uring && new_ring(&reactor->ring) == 0;
	if (!reactor->uring)
		reactor->epoll = epoll_create1(EPOLL_CLOEXEC);
	reactor->places = calloc(1, sizeof(*reactor->places));
	if (!reactor->places || (!reactor->uring && reactor->epoll < 0)) {
		reactor_free(reactor);
		return -ENOMEM;
	}
	*result = reactor;
	return 0;
}

struct reactor *reactor_free(struct reactor *reactor)
{
	if (!reactor)
		return NULL;
	if (reactor->uring)
		io_uring_queue_exit(&reactor->ring);
	if (reactor->epoll >= 0)
		close(reactor->epoll);
	free(reactor->places);
	free(reactor);
	return NULL;
}

bool reactor_is_uring(const struct reactor *reactor)
{
	return reactor->uring;
}

static struct io_uring_sqe *get_sqe(struct reactor *reactor)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&reactor->ring);

	while (!sqe) {
		io_uring_submit(&reactor->ring);
		sqe = io_uring_get_sqe(&reactor->ring);
	}
	return sqe;
}

static int arm(struct reactor *reactor, uint32_t slot)
{
	struct place *place = &reactor->places[slot];

	if (reactor->uring) {
		struct io_uring_sqe *sqe = get_sqe(reactor);

		io_uring_prep_poll_multishot(sqe, place->source->fd, POLLIN);
		io_uring_sqe_set_data64(sqe, pack(reactor, slot));
		return 0;
	}
	struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.u64 = pack(reactor, slot) };

	return epoll_ctl(reactor->epoll, EPOLL_CTL_ADD, place->source->fd, &event) < 0 ? -errno : 0;
}

static int take_place(struct reactor *reactor, uint32_t *slot)
{
	struct place *places;

	if (reactor->first_free) {
		*slot = reactor->first_free;
		reactor->first_free = reactor->places[*slot].next_free;
		return 0;
	}
	places = realloc(reactor->places, (reactor->count + 1) * sizeof(*places));
	if (!places)
		return -ENOMEM;
	reactor->places = places;
	*slot = reactor->count++;
	places[*slot] = (struct place){ 0 };
	return 0;
}

static void drop_place(struct reactor *reactor, uint32_t slot)
{
	struct place *place = &reactor->places[slot];

	place->source = NULL;
	place->generation++;
	place->next_free = reactor->first_free;
	reactor->first_free = slot;
}

int reactor_add(struct reactor *reactor, struct source *source, int fd,
		void (*ready)(struct source *source))
{
	uint32_t slot;
	int r = take_place(reactor, &slot);

	if (r)
		return r;
	source->fd = fd;
	source->ready = ready;
	reactor->places[slot].source = source;
	r = arm(reactor, slot);
	if (r) {
		drop_place(reactor, slot);
		return r;
	}
	source->slot = slot;
	return 0;
}

void reactor_remove(struct reactor *reactor, struct source *source)
{
	if (!source->slot)
		return;
	if (reactor->uring) {
		struct io_uring_sqe *sqe = get_sqe(reactor);

		/*
		 * The poll holds a reference of the file, and who removes means to close it. So
		 * now, and not by POLL_REMOVE, which fails (EALREADY) for a poll that has fired
		 * and was not looked at yet: that one would go on, and hold the file for ever.
		 */
		io_uring_prep_cancel64(sqe, pack(reactor, source->slot), 0);
		io_uring_sqe_set_data64(sqe, 0);
		io_uring_submit(&reactor->ring);
	} else {
		epoll_ctl(reactor->epoll, EPOLL_CTL_DEL, source->fd, NULL);
	}
	drop_place(reactor, source->slot);
	source->slot = 0;
}

static struct source *source_of(struct reactor *reactor, uint64_t data)
{
	uint32_t slot = (uint32_t)data;

	if (!slot || slot >= reactor->count || reactor->places[slot].generation != data >> 32)
		return NULL;
	return reactor->places[slot].source;
}

static int wait_uring(struct reactor *reactor, int64_t timeout_ns)
{
	struct __kernel_timespec ts = {
		.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000,
	};
	struct io_uring_cqe *cqe, *batch[BATCH];
	uint64_t data[BATCH];
	unsigned int n;
	int r, calls = 0;

	if (!io_uring_cq_ready(&reactor->ring)) {
		r = timeout_ns ? io_uring_submit_and_wait_timeout(&reactor->ring, &cqe, 1,
								  timeout_ns < 0 ? NULL : &ts, NULL)
			       : io_uring_submit_and_get_events(&reactor->ring);
		if (r < 0 && r != -ETIME && r != -EINTR && r != -EAGAIN && r != -EBUSY)
			return r;
	}
	n = io_uring_peek_batch_cqe(&reactor->ring, batch, BATCH);
	for (unsigned int i = 0; i < n; i++) {
		bool ended = !(batch[i]->flags & IORING_CQE_F_MORE) && batch[i]->res >= 0;

		data[i] = io_uring_cqe_get_data64(batch[i]);
		if (ended && source_of(reactor, data[i]))
			arm(reactor, (uint32_t)data[i]);
	}
	io_uring_cq_advance(&reactor->ring, n);
	for (unsigned int i = 0; i < n; i++) {
		/* Looked up again: a ready() may have removed a later one. */
		struct source *source = source_of(reactor, data[i]);

		if (!source)
			continue;
		source->ready(source);
		calls++;
	}
	return calls;
}

static int wait_epoll(struct reactor *reactor, int64_t timeout_ns)
{
	struct epoll_event events[BATCH];
	/* Rounded up: a wait that ends early would spin. */
	int ms = timeout_ns < 0 ? -1 : (int)((timeout_ns + 999999) / 1000000);
	int n, calls = 0;

	n = epoll_wait(reactor->epoll, events, BATCH, ms);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	for (int i = 0; i < n; i++) {
		struct source *source = source_of(reactor, events[i].data.u64);

		if (!source)
			continue;
		source->ready(source);
		calls++;
	}
	return calls;
}

int reactor_wait(struct reactor *reactor, int64_t timeout_ns)
{
	return reactor->uring ? wait_uring(reactor, timeout_ns) : wait_epoll(reactor, timeout_ns);
}
