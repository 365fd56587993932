/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * migrate.c - migrations that the caller waits for; prefetch.c has the others.
 *
 * A range is sent in pieces of at most 64 MiB, a few of them in flight at a
 * time, cut at block boundaries. hmm_migrate() collects the answers in order in
 * the calling thread.
 *
 * A piece that fails ends a migration; what was moved before stays moved and is
 * counted. Pieces to a device pass the fork gate one by one.
 */
#include <stdio.h>
#include <string.h>

#include "arena.h"
#include "dispatch.h"
#include "fork.h"
#include "migrate.h"

#define IN_FLIGHT	4

_Static_assert((int)HMM_MIGRATED == (int)HMM_PAGE_RESULT_MOVED &&
		       (int)HMM_CHANGED == (int)HMM_PAGE_RESULT_CHANGED &&
		       (int)HMM_MIGRATE_ERROR == (int)HMM_PAGE_RESULT_ERROR &&
		       HMM_MIGRATE_POPULATE == HMM_MIGRATE_FLAGS_POPULATE,
	       "the protocol says the same");

const char *hmm_migrate_result_name(enum hmm_migrate_result result)
{
	/* Only a prefetch knows it: hmmd always tries. */
	return result == HMM_NOT_TRIED ? "not-tried" : hmm_page_result_name(result);
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

int hmmc_migrate_check_target(const struct hmm_mirror *mirror, unsigned long addr, size_t length,
			      enum hmm_target target, uint64_t flags)
{
	int error = hmmc_migrate_check(mirror, addr, length);

	if (error)
		return error;
	if (target != HMM_SYSTEM && target != HMM_DEVICE)
		return hmmc_fail(-EINVAL, "there is no target %d", target);
	if (flags & ~HMM_MIGRATE_POPULATE)
		return hmmc_fail(-EINVAL, "flags has unknown bits");
	return 0;
}

static int prepare_migrate(struct request *request)
{
	const struct hmm_mirror_private *mirror = request->data;

	((struct hmm_msg_migrate *)request->message)->mirror = mirror->id;
	return 0;
}

struct request *hmmc_migrate_next(struct rest *rest)
{
	struct hmm_msg_migrate *message;
	struct request *request;
	uint64_t end;

	end = rest->addr + rest->piece;
	if (end >= rest->end)
		end = rest->end;
	else
		end &= ~(HMM_BLOCK_SIZE - 1);
	request = hmmc_request_new_expecting(rest->mirror->hmm->connection, HMM_OP_MIGRATE, sizeof(*message),
					     (end - rest->addr) >> HMM_PAGE_SHIFT);
	if (!request)
		return NULL;
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
	int error = hmmc_migrate_check(mirror, addr, length), failed;

	if (!error)
		error = hmmc_dispatch_check();
	if (error)
		return error;
	rest = (struct rest){ mirror->priv, addr, addr + length, target, flags, HMMC_PIECE_MAX };
	if (results)
		memset(results, HMM_MIGRATE_ERROR, report.pages);
	while (tail != head || (rest.addr < rest.end && !error)) {
		/* A gate that closes waits for those in flight: they are collected before this one waits. */
		if (head - tail < IN_FLIGHT && rest.addr < rest.end && !error &&
		    (target != HMM_DEVICE || hmmc_gate_pass(head == tail))) {
			struct request *request = hmmc_migrate_next(&rest);

			if (!request) {
				if (target == HMM_DEVICE)
					hmmc_gate_leave();
				error = hmmc_fail(-ENOMEM, "the library's memory is used up");
				continue;
			}
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
	int error = hmmc_migrate_check_target(mirror, addr, length, target, flags);

	return error ? error : hmmc_migrate(mirror, addr, length, target, flags, results, report);
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
