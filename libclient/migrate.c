/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * migrate.c - migrations, waiting or not.
 *
 * A range is sent in pieces of at most 64 MiB, a few of them in flight at a
 * time, cut at block boundaries. hmm_migrate() collects the answers in order in
 * the calling thread. hmm_prefetch() has no thread: the answer to one piece,
 * in the receiver, sends the next, and the last one signals the eventfd.
 *
 * A piece that fails ends a migration; what was moved before stays moved and is
 * counted. Pieces to a device pass the fork gate one by one.
 */
#include <stdio.h>
#include <string.h>

#include "arena.h"
#include "dispatch.h"
#include "fork.h"
#include "log.h"
#include "space.h"

#define PIECE_MAX	(64UL << 20)
#define IN_FLIGHT	4

_Static_assert((int)HMM_MIGRATED == (int)HMM_PAGE_RESULT_MOVED &&
		       (int)HMM_CHANGED == (int)HMM_PAGE_RESULT_CHANGED &&
		       (int)HMM_MIGRATE_ERROR == (int)HMM_PAGE_RESULT_ERROR &&
		       HMM_MIGRATE_POPULATE == HMM_MIGRATE_FLAGS_POPULATE,
	       "the protocol says the same");

const char *hmm_migrate_result_name(enum hmm_migrate_result result)
{
	return hmm_page_result_name(result);
}

int hmmc_migrate_check(const struct hmm_mirror *mirror, unsigned long addr, size_t length)
{
	int error = hmmc_mirror_check(mirror);

	if (error)
		return error;
	if (!length || addr % HMM_PAGE_SIZE || length % HMM_PAGE_SIZE || addr + length < addr ||
	    addr + length > HMM_VA_END)
		return hmmc_fail(-EINVAL,
				 "the range is empty, unaligned, wraps or ends above user space");
	return 0;
}

static int check(const struct hmm_mirror *mirror, unsigned long addr, size_t length,
		 enum hmm_target target)
{
	int error = hmmc_migrate_check(mirror, addr, length);

	if (!error && target != HMM_SYSTEM && target != HMM_DEVICE)
		return hmmc_fail(-EINVAL, "there is no target %d", target);
	return error;
}

/* What is left of a range. */
struct rest {
	struct hmm_mirror_private *mirror;
	uint64_t addr, end;
	enum hmm_target target;
	uint64_t flags;
};

static int prepare_migrate(struct request *request)
{
	const struct hmm_mirror_private *mirror = request->data;

	((struct hmm_msg_migrate *)request->message)->mirror = mirror->id;
	return 0;
}

/* NULL: no memory. */
static struct request *next_piece(struct rest *rest)
{
	struct hmm_msg_migrate *message;
	struct request *request;
	uint64_t end;

	request = hmmc_request_new(rest->mirror->hmm->connection, HMM_OP_MIGRATE, sizeof(*message));
	if (!request)
		return NULL;
	end = rest->addr + PIECE_MAX;
	if (end >= rest->end)
		end = rest->end;
	else
		end &= ~(HMM_BLOCK_SIZE - 1);
	message = (struct hmm_msg_migrate *)request->message;
	message->target = rest->target;
	message->addr = rest->addr;
	message->length = end - rest->addr;
	message->flags = rest->flags;
	rest->flags |= HMM_MIGRATE_FLAGS_ONWARD;
	request->data = rest->mirror;
	request->prepare = prepare_migrate;
	rest->addr = end;
	return request;
}

/* ---- waiting ------------------------------------------------------------------ */

static int collect(struct request *request, enum hmm_target target, uint64_t first,
		   uint8_t *results, struct hmm_migrate_report *report)
{
	const struct hmm_msg_migrate *message = (const void *)request->message;
	const struct hmm_msg_migrate_reply *reply;
	int error = hmmc_request_wait(request);

	if (target == HMM_DEVICE)
		hmmc_gate_leave();
	if (!error) {
		reply = (const struct hmm_msg_migrate_reply *)request->reply;
		report->moved += reply->moved;
		report->already += reply->already;
		if (results && reply->count <= message->length >> HMM_PAGE_SHIFT)
			memcpy(results + ((message->addr - first) >> HMM_PAGE_SHIFT),
			       reply->results, reply->count);
	}
	hmmc_request_free(request);
	return error;
}

long hmmc_migrate(struct hmm_mirror *mirror, unsigned long addr, size_t length,
		  enum hmm_target target, uint64_t flags, uint8_t *results,
		  struct hmm_migrate_report *out)
{
	struct hmm_migrate_report report = { .pages = length >> HMM_PAGE_SHIFT };
	struct request *flying[IN_FLIGHT];
	unsigned int head = 0, tail = 0;
	struct rest rest;
	int error = check(mirror, addr, length, target), failed;

	if (!error)
		error = hmmc_dispatch_check();
	if (error)
		return error;
	rest = (struct rest){ mirror->priv, addr, addr + length, target, flags };
	if (results)
		memset(results, HMM_MIGRATE_ERROR, report.pages);
	while (tail != head || (rest.addr < rest.end && !error)) {
		if (head - tail < IN_FLIGHT && rest.addr < rest.end && !error) {
			struct request *request = next_piece(&rest);

			if (!request) {
				error = hmmc_fail(-ENOMEM, "the library's memory is used up");
				continue;
			}
			if (target == HMM_DEVICE)
				hmmc_gate_enter();
			flying[head++ % IN_FLIGHT] = request;
			hmmc_request_post(request);
			continue;
		}
		failed = collect(flying[tail++ % IN_FLIGHT], target, addr, results, &report);
		if (failed && !error)
			error = failed;
	}
	report.failed = report.pages - report.moved - report.already;
	if (out)
		*out = report;
	return error && !(report.moved + report.already) ? error
							 : (long)(report.moved + report.already);
}

long hmm_migrate(struct hmm_mirror *mirror, unsigned long addr, size_t length,
		 enum hmm_target target, uint64_t flags, uint8_t *results,
		 struct hmm_migrate_report *report)
{
	int error = check(mirror, addr, length, target);

	if (error)
		return error;
	if (flags & ~HMM_MIGRATE_POPULATE)
		return hmmc_fail(-EINVAL, "flags has unknown bits");
	return hmmc_migrate(mirror, addr, length, target, flags, results, report);
}

static int prepare_drain(struct request *request)
{
	const struct hmm_mirror_private *mirror = request->data;
	struct hmm_msg_drain *message = (struct hmm_msg_drain *)request->message;

	message->owner = mirror->hmm->id;
	message->device = mirror->device->id;
	return 0;
}

long hmm_drain(struct hmm_mirror *mirror)
{
	struct request *request;
	long done = hmmc_mirror_check(mirror);

	if (!done)
		done = hmmc_dispatch_check();
	if (done)
		return done;
	request = hmmc_request_new(mirror->priv->hmm->connection, HMM_OP_DRAIN,
				   sizeof(struct hmm_msg_drain));
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	request->data = mirror->priv;
	request->prepare = prepare_drain;
	done = hmmc_request_call(request);
	if (!done)
		done = (long)((const struct hmm_msg_drain_reply *)request->reply)->pages;
	hmmc_request_free(request);
	return done;
}

/* ---- not waiting ------------------------------------------------------------------ */

struct prefetch {
	struct gate_waiter waiter;	/* first: resume() gets it */
	struct rest rest;
	struct hmm *hmm;
	int completion;			/* in the private table, or -1 */
	uint64_t at_target;
};

/* In a library thread. */
static void end_prefetch(struct prefetch *prefetch)
{
	struct hmm *hmm = prefetch->hmm;
	uint64_t signal = 1 + prefetch->at_target;

	if (prefetch->completion >= 0) {
		/* It is the program's eventfd: what does not fit there is its affair. */
		if (write(prefetch->completion, &signal, sizeof(signal)) < 0)
			hmmc_log(HMMC_LOG_WARNING,
				 "a prefetch is done, but its eventfd takes no signal");
		close(prefetch->completion);
	}
	hmmc_arena_free(prefetch, sizeof(*prefetch));
	__atomic_sub_fetch(&hmm->prefetching, 1, __ATOMIC_ACQ_REL);
	futex_wake(&hmm->prefetching, INT32_MAX);
}

static void advance(struct prefetch *prefetch);

/* In the receiver, or in the clerk for what could not be sent. */
static void piece_done(struct request *request)
{
	const struct hmm_msg_migrate_reply *reply = (const void *)request->reply;
	const struct hmm_msg_migrate *message = (const void *)request->message;
	struct prefetch *prefetch = request->data;
	bool gone = request->error == -ESTALE;

	if (message->target == HMM_DEVICE)
		hmmc_gate_leave();
	if (!request->error)
		prefetch->at_target += reply->moved + reply->already;
	hmmc_request_free(request);
	if (gone)
		prefetch->rest.addr = prefetch->rest.end;
	advance(prefetch);
}

static int prepare_prefetch(struct request *request)
{
	const struct prefetch *prefetch = request->data;

	((struct hmm_msg_migrate *)request->message)->mirror = prefetch->rest.mirror->id;
	return 0;
}

/* Sends the next piece if the gate is open, which otherwise calls again. In a library thread. */
static void advance(struct prefetch *prefetch)
{
	struct request *request;

	if (prefetch->rest.addr >= prefetch->rest.end) {
		end_prefetch(prefetch);
		return;
	}
	if (prefetch->rest.target == HMM_DEVICE && !hmmc_gate_try(&prefetch->waiter))
		return;
	request = next_piece(&prefetch->rest);
	if (!request) {
		if (prefetch->rest.target == HMM_DEVICE)
			hmmc_gate_leave();
		end_prefetch(prefetch);
		return;
	}
	request->data = prefetch;
	request->prepare = prepare_prefetch;
	request->complete = piece_done;
	hmmc_request_post(request);
}

static int start(void *argument)
{
	struct prefetch *prefetch = argument;

	if (prefetch->completion >= 0) {
		prefetch->completion = hmmc_clerk_take_fd(prefetch->completion);
		if (prefetch->completion < 0)
			return prefetch->completion;
	}
	__atomic_add_fetch(&prefetch->hmm->prefetching, 1, __ATOMIC_ACQ_REL);
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

int hmm_prefetch(struct hmm_mirror *mirror, unsigned long addr, size_t length,
		 enum hmm_target target, int completion)
{
	struct prefetch *prefetch;
	int error = check(mirror, addr, length, target);

	if (error)
		return error;
	prefetch = hmmc_arena_alloc(sizeof(*prefetch));
	if (!prefetch)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	prefetch->waiter.resume = resume;
	prefetch->rest = (struct rest){ mirror->priv, addr, addr + length, target, 0 };
	prefetch->hmm = mirror->priv->hmm;
	prefetch->completion = completion < 0 ? -1 : completion;
	error = hmmc_clerk_call(start, prefetch);
	if (error) {
		hmmc_arena_free(prefetch, sizeof(*prefetch));
		return hmmc_fail(error, "the completion descriptor cannot be used: %s",
				 strerror(-error));
	}
	return 0;
}
