/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * prefetch.c - migrations that nobody waits for.
 *
 * The happy path: the clerk takes the eventfd into the private table and sends the first
 * piece; the answer to one piece, in the receiver, notes what became of its pages and sends
 * the next; the last one signals the eventfd. Pieces to a device pass the fork gate one
 * by one; at a closed one the prefetch is left, and goes on when it opens.
 *
 * What is noted lies in the library's own memory, where the program's thread looks at it or
 * copies it from. A library thread must not write to the program's memory: that may be on
 * the device itself, and it is this thread that hears of callbacks and answers.
 *
 * It ends early when it is cancelled (so is whatever runs on a mirror that goes), when a
 * piece fails, and when there is no memory for the next one. A piece that hmmd wants
 * to be asked again, after a restart, is asked again.
 *
 * References: the program's handle, if there is one, and one as long as it runs. One that
 * runs is in hmm->prefetches, which keeps the address space; afterwards
 * the handle stands alone.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "arena.h"
#include "dispatch.h"
#include "fork.h"
#include "log.h"
#include "migrate.h"

/* Of one with a handle: it is followed, and may be cancelled. */
#define PIECE_FOLLOWED	(16UL << 20)

struct hmm_prefetch {
	struct gate_waiter waiter;	/* first: resume() gets it */
	struct hmm_prefetch *next;	/* under hmm->lock */
	struct hmm *hmm;		/* as long as it runs */
	struct rest rest;
	uint32_t references;		/* atomic */
	uint32_t generation;		/* of the process it was made in */
	uint32_t cancelled;		/* atomic */
	uint32_t ended;			/* atomic: what follows stays as it is */
	uint32_t done;			/* latch: the eventfd is signalled, it is in no list */
	int completion;			/* in the private table, or -1 */
	int error;			/* why it ended early */
	char text[HMMC_ERROR_TEXT];
	uint64_t first;
	uint64_t tried;			/* atomic: pages */
	struct hmm_migrate_report report;
	uint8_t *results;		/* one per page; NULL: there is no handle */
};

static void drop(struct hmm_prefetch *prefetch)
{
	if (__atomic_sub_fetch(&prefetch->references, 1, __ATOMIC_ACQ_REL))
		return;
	hmmc_arena_free(prefetch->results, prefetch->report.pages);
	hmmc_arena_free(prefetch, sizeof(*prefetch));
}

static void delist(struct hmm_prefetch *prefetch)
{
	struct hmm *hmm = prefetch->hmm;
	struct hmm_prefetch **at;

	futex_lock(&hmm->lock);
	for (at = &hmm->prefetches; *at != prefetch; at = &(*at)->next)
		;
	*at = prefetch->next;
	futex_unlock(&hmm->lock);
}

/* In a library thread. */
static void end(struct hmm_prefetch *prefetch, int error, const char *text)
{
	struct hmm_migrate_report *report = &prefetch->report;
	uint64_t signal = 1 + report->moved + report->already;

	prefetch->error = error;
	snprintf(prefetch->text, sizeof(prefetch->text), "%s", text);
	report->failed = report->pages - report->moved - report->already;
	__atomic_store_n(&prefetch->ended, 1, __ATOMIC_RELEASE);
	if (prefetch->completion >= 0) {
		/* It is the program's eventfd: what does not fit there is its affair. */
		if (write(prefetch->completion, &signal, sizeof(signal)) < 0)
			hmmc_log(HMMC_LOG_WARNING,
				 "a prefetch is done, but its eventfd takes no signal");
		close(prefetch->completion);
	}
	delist(prefetch);
	futex_latch_set(&prefetch->done, 1);
	drop(prefetch);
}

static void advance(struct hmm_prefetch *prefetch);

static void note(struct hmm_prefetch *prefetch, const struct request *request)
{
	const struct hmm_msg_migrate_reply *reply = (const void *)request->reply;
	const struct hmm_msg_migrate *message = (const void *)request->message;
	uint64_t pages = message->length >> HMM_PAGE_SHIFT;
	uint8_t *results = prefetch->results;

	if (results)
		results += (message->addr - prefetch->first) >> HMM_PAGE_SHIFT;
	if (!request->error) {
		prefetch->report.moved += reply->moved;
		prefetch->report.already += reply->already;
		if (results && reply->count <= pages)
			memcpy(results, reply->results, reply->count);
	} else if (results) {
		memset(results, HMM_MIGRATE_ERROR, pages);
	}
	__atomic_add_fetch(&prefetch->tried, pages, __ATOMIC_RELEASE);
}

/* In the receiver, or in the clerk for what could not be sent. */
static void piece_done(struct request *request)
{
	const struct hmm_msg_migrate *message = (const void *)request->message;
	struct hmm_prefetch *prefetch = request->data;
	bool failed = request->error != 0;

	if (message->target == HMM_DEVICE)
		hmmc_gate_leave();
	note(prefetch, request);
	if (failed)
		end(prefetch, request->error, request->text);
	hmmc_request_free(request);
	if (!failed)
		advance(prefetch);
}

static int prepare(struct request *request)
{
	const struct hmm_prefetch *prefetch = request->data;

	((struct hmm_msg_migrate *)request->message)->mirror = prefetch->rest.mirror->id;
	return 0;
}

/* Sends the next piece if the gate is open, which otherwise calls again. In a library thread. */
static void advance(struct hmm_prefetch *prefetch)
{
	bool gated = prefetch->rest.target == HMM_DEVICE;
	struct request *request;

	if (prefetch->rest.addr >= prefetch->rest.end) {
		end(prefetch, 0, "");
		return;
	}
	if (__atomic_load_n(&prefetch->cancelled, __ATOMIC_ACQUIRE)) {
		end(prefetch, -ECANCELED, "the prefetch was cancelled");
		return;
	}
	if (gated && !hmmc_gate_try(&prefetch->waiter))
		return;
	request = hmmc_migrate_next(&prefetch->rest);
	if (!request) {
		if (gated)
			hmmc_gate_leave();
		end(prefetch, -ENOMEM, "the library's memory is used up");
		return;
	}
	request->data = prefetch;
	request->prepare = prepare;
	request->complete = piece_done;
	hmmc_request_post(request);
}

/* In the clerk. */
static int start(void *argument)
{
	struct hmm_prefetch *prefetch = argument;
	struct hmm *hmm = prefetch->hmm;
	bool leaving;

	if (prefetch->completion >= 0) {
		prefetch->completion = hmmc_clerk_take_fd(prefetch->completion);
		if (prefetch->completion < 0)
			return prefetch->completion;
	}
	futex_lock(&hmm->lock);
	/* Whoever stops those of a mirror that leaves may have looked already. */
	leaving = prefetch->rest.mirror->leaving;
	if (!leaving) {
		prefetch->next = hmm->prefetches;
		hmm->prefetches = prefetch;
	}
	futex_unlock(&hmm->lock);
	if (leaving) {
		if (prefetch->completion >= 0)
			close(prefetch->completion);
		return -ESTALE;
	}
	advance(prefetch);
	return 0;
}

static int resume_in_clerk(void *argument)
{
	advance(argument);
	return 0;
}

/* The gate opens in the thread that forked, which has the program's descriptors. */
static void resume(struct gate_waiter *waiter)
{
	hmmc_clerk_call(resume_in_clerk, waiter);
}

void hmmc_prefetch_stop(struct hmm *hmm, const struct hmm_mirror_private *mirror)
{
	struct hmm_prefetch *prefetch, *found;

	do {
		found = NULL;
		futex_lock(&hmm->lock);
		for (prefetch = hmm->prefetches; prefetch; prefetch = prefetch->next) {
			if (mirror && prefetch->rest.mirror != mirror)
				continue;
			__atomic_store_n(&prefetch->cancelled, 1, __ATOMIC_RELEASE);
			found = prefetch;
		}
		if (found)
			__atomic_add_fetch(&found->references, 1, __ATOMIC_ACQ_REL);
		futex_unlock(&hmm->lock);
		if (found) {
			hmmc_dispatch_wait(&found->done);
			drop(found);
		}
	} while (found);
}

/* ---- for programs ------------------------------------------------------------------- */

static struct hmm_prefetch *prefetch_new(struct hmm_mirror_private *mirror, unsigned long addr,
					 size_t length, bool followed)
{
	struct hmm_prefetch *prefetch = hmmc_arena_alloc(sizeof(*prefetch));

	if (!prefetch)
		return NULL;
	prefetch->waiter.resume = resume;
	prefetch->hmm = mirror->hmm;
	prefetch->rest = (struct rest){ .mirror = mirror, .addr = addr, .end = addr + length };
	prefetch->rest.piece = followed ? PIECE_FOLLOWED : HMMC_PIECE_MAX;
	prefetch->references = followed ? 2 : 1;
	prefetch->generation = hmmc_space_generation();
	prefetch->first = addr;
	prefetch->report.pages = length >> HMM_PAGE_SHIFT;
	if (!followed)
		return prefetch;
	prefetch->results = hmmc_arena_alloc(prefetch->report.pages);
	if (!prefetch->results) {
		hmmc_arena_free(prefetch, sizeof(*prefetch));
		return NULL;
	}
	memset(prefetch->results, HMM_NOT_TRIED, prefetch->report.pages);
	return prefetch;
}

int hmm_prefetch(struct hmm_mirror *mirror, unsigned long addr, size_t length,
		 enum hmm_target target, uint64_t flags, int completion,
		 struct hmm_prefetch **result)
{
	struct hmm_prefetch *prefetch;
	int error = hmmc_migrate_check_target(mirror, addr, length, target, flags);

	if (error)
		return error;
	if (target == HMM_DEVICE && !(mirror->priv->device->caps & HMM_DEVICE_FAULTS))
		return hmmc_fail(-EOPNOTSUPP,
				 "the device was made without HMM_DEVICE_FAULTS: it has what is pinned on it");
	prefetch = prefetch_new(mirror->priv, addr, length, result != NULL);
	if (!prefetch)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	prefetch->rest.target = target;
	prefetch->rest.flags = flags;
	prefetch->completion = completion < 0 ? -1 : completion;
	error = hmmc_clerk_call(start, prefetch);
	if (error) {
		hmmc_arena_free(prefetch->results, prefetch->report.pages);
		hmmc_arena_free(prefetch, sizeof(*prefetch));
		if (error == -ESTALE)
			return hmmc_fail(error, "the mirror is being unregistered");
		return hmmc_fail(error, "the completion descriptor cannot be used: %s",
				 strerror(-error));
	}
	if (result)
		*result = prefetch;
	return 0;
}

static int check(const struct hmm_prefetch *prefetch)
{
	if (!prefetch)
		return hmmc_fail(-EINVAL, "prefetch is NULL");
	if (prefetch->generation != hmmc_space_generation())
		return hmmc_fail(-ESTALE, "the prefetch belongs to the process that forked this one");
	return 0;
}

uint64_t hmm_prefetch_progress(const struct hmm_prefetch *prefetch, uint64_t *pages)
{
	if (pages)
		*pages = prefetch ? prefetch->report.pages : 0;
	return prefetch ? __atomic_load_n(&prefetch->tried, __ATOMIC_ACQUIRE) : 0;
}

long hmm_prefetch_result(const struct hmm_prefetch *prefetch, uint8_t *results,
			 struct hmm_migrate_report *report)
{
	int error = check(prefetch);
	long there;

	if (error)
		return error;
	if (!__atomic_load_n(&prefetch->ended, __ATOMIC_ACQUIRE))
		return hmmc_fail(-EAGAIN, "the prefetch runs");
	if (results)
		memcpy(results, prefetch->results, prefetch->report.pages);
	if (report)
		*report = prefetch->report;
	there = (long)(prefetch->report.moved + prefetch->report.already);
	return there || !prefetch->error ? there
					 : hmmc_fail(prefetch->error, "%s", prefetch->text);
}

int hmm_prefetch_cancel(struct hmm_prefetch *prefetch)
{
	int error = check(prefetch);

	if (error)
		return error;
	if (__atomic_load_n(&prefetch->ended, __ATOMIC_ACQUIRE))
		return hmmc_fail(-EALREADY, "the prefetch has ended");
	__atomic_store_n(&prefetch->cancelled, 1, __ATOMIC_RELEASE);
	return 0;
}

void hmm_prefetch_free(struct hmm_prefetch *prefetch)
{
	/* A fork's child has no part in it. */
	if (prefetch && prefetch->generation == hmmc_space_generation())
		drop(prefetch);
}
