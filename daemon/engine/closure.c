/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * closure.c - what a window may not show: pages that can't be had, the whole window of
 * a driver that did not answer, and pages that may be had again. Runs on the
 * owner's worker.
 *
 * Happy path: a page is poisoned, so that the driver gets SIGBUS instead of waiting, and its
 * library is told, which closes what the kernel can't poison. What was closed is remembered; when the owner's rights there
 * have changed the library is told to let go of the poison, and the next touch asks anew.
 *
 * What is not remembered (too many ranges, another hmmd) stays closed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/notice.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"

/* Ranges of closed pages that a window remembers. */
#define CLOSED_MAX	4096U
#define TELL_AGAIN_NS	(10 * NS_PER_MS)

static bool send_revoked(const struct window *window, uint64_t start, uint64_t end, int error, bool poisoned)
{
	struct hmm_msg_window_revoked *message = malloc(sizeof(*message));

	if (!message)
		return false;
	HMM_MSG_INIT(*message, HMM_OP_WINDOW_REVOKED, 0);
	message->window = window->id;
	message->error = error;
	message->start = start;
	message->end = end;
	message->poisoned = poisoned;
	return worker_event(window->mirror->owner->worker, window->peer, message, -1);
}

/* From now on the owner's library tells of every mprotect(): one may open the page. */
static void hear_of_rights(const struct window *window)
{
	__atomic_store_n(&window->mirror->owner->orders->refused, 1, __ATOMIC_SEQ_CST);
}

static void note_closed(struct window *window, uint64_t page)
{
	if (window->closed.count < CLOSED_MAX)
		span_set_add(&window->closed, page, page + HMM_PAGE_SIZE);
	hear_of_rights(window);
}

bool window_may_show_by_now(const struct window *window, uint64_t page)
{
	struct owner *owner = window->mirror->owner;
	struct segment segment;

	hear_of_rights(window);
	return segment_at(owner, page, page + HMM_PAGE_SIZE, &segment) == 0 && segment.result == HMM_PAGE_RESULT_MOVED;
}

void window_close_page(struct window *window, uint64_t addr, int error)
{
	uint64_t page = addr & ~(HMM_PAGE_SIZE - 1);
	size_t done;
	int r;

	/* Poison is refused where a write-protect marker stands. */
	kernel->uffd_protect(window->uffd, driver_addr(window, page), HMM_PAGE_SIZE, false);
	r = kernel->uffd_poison(window->uffd, driver_addr(window, page), HMM_PAGE_SIZE, &done);
	if (r == -EEXIST || r == -EAGAIN) {
		/* Something is there after all: the driver asks again. */
		kernel->uffd_wake(window->uffd, driver_addr(window, page), HMM_PAGE_SIZE);
		return;
	}
	/* No poison before Linux 6.6: the driver waits until its library has closed the page. */
	if (r && r != -ESRCH)
		log_debug("window %u: %#lx can't be had (%s), and is not poisoned: %s", window->id, page,
			  strerror(-error), strerror(-r));
	notice(window->mirror->owner, (struct hmm_notice){
		.kind = HMM_EVENT_KIND_POISON, .error = error, .mirror = window->mirror->id,
		.start = page, .end = page + HMM_PAGE_SIZE, .pages = 1 });
	note_closed(window, page);
	/* Whom nobody closes it for asks again. */
	if (!send_revoked(window, page, page + HMM_PAGE_SIZE, error, !r) && r)
		kernel->uffd_wake(window->uffd, driver_addr(window, page), HMM_PAGE_SIZE);
	owner_count(window->mirror->owner, COUNTER_REVOKED_WINDOWS, 1);
}

void window_revoke_one(struct window *window, int error)
{
	struct owner *owner = window->mirror->owner;

	if (window->revoked)
		return;
	window->revoked = true;
	owner_count(owner, COUNTER_REVOKED_WINDOWS, 1);
	notice(owner, (struct hmm_notice){
		.kind = HMM_EVENT_KIND_REVOKED, .error = error, .mirror = window->mirror->id,
		.start = window->start, .end = window->end,
		.pages = (window->end - window->start) >> HMM_PAGE_SHIFT });
	window->untold = error;
	window_tell_revoked(window);
}

/* Its driver goes on using what hmmd does not watch any more, until it hears of it. */
void window_tell_revoked(struct window *window)
{
	struct worker *worker = window->mirror->owner->worker;

	if (send_revoked(window, window->start, window->end, window->untold, false))
		window->untold = 0;
	else
		worker_alarm(worker, worker->now + TELL_AGAIN_NS);
}

void window_revoke(struct owner *owner, uint64_t peer, uint64_t start, uint64_t end, int error)
{
	struct window *window;

	TAILQ_FOREACH(window, &owner->windows, link)
		if (window->peer == peer && window->start < end && window->end > start)
			window_revoke_one(window, error);
}

void window_revoke_range(struct owner *owner, uint64_t start, uint64_t end, int error)
{
	struct window *window;

	TAILQ_FOREACH(window, &owner->windows, link)
		if (window->start < end && window->end > start)
			window_revoke_one(window, error);
}

/*
 * Poison stays in the driver's page table until the driver itself lets go of it: its
 * library does. What it cannot touch meanwhile it cannot be refused once more.
 */
static void reopen(struct window *window, uint64_t start, uint64_t end)
{
	bool told = true;

	for (unsigned int i = 0; i < window->closed.count; i++) {
		uint64_t from = window->closed.list[i].start, to = window->closed.list[i].end;

		if (from < end && to > start)
			told &= send_revoked(window, from > start ? from : start, to < end ? to : end, 0, false);
	}
	/* What its driver has not heard of is told with the next change. */
	if (told)
		span_set_remove(&window->closed, start, end);
}

void window_reopen(struct owner *owner, uint64_t start, uint64_t end)
{
	struct window *window;

	/* Of one whose driver can't be told: when it is back, all of it (keep.c). */
	TAILQ_FOREACH(window, &owner->windows, link)
		if (window->peer && !window->revoked && span_set_overlaps(&window->closed, start, end))
			reopen(window, start, end);
}
