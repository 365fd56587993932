/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * advice.c - advice of ranges. hmmd keeps what was said behind the ledger, so a
 * successor of one that died finds it there. One that goes away in good order
 * takes its ledger along; the library keeps that one's descriptor and says to the next
 * hmmd what stands in it, with the mirrors under their new numbers.
 */
#include <stdio.h>
#include <string.h>

#include "arena.h"
#include "dispatch.h"
#include "fork.h"
#include "log.h"
#include "space.h"

_Static_assert(HMM_POLICY_READ_MOSTLY == HMM_ADVISED_READ_MOSTLY &&
		       HMM_POLICY_UNPINNED == HMM_ADVISED_UNPINNED &&
		       HMM_POLICY_MIRRORS == HMM_MIRRORS_MAX &&
		       sizeof(((struct hmm_policy *)0)->why) ==
			       sizeof(((struct hmm_msg_advise_reply *)0)->why),
	       "the protocol says the same");

/* ---- the policy ------------------------------------------------------------------ */

/* The program's handle of the owner's mirror with this index, or NULL. With hmm->lock held. */
static struct hmm_mirror *handle_of(struct hmm *hmm, int index)
{
	struct hmm_mirror_private *mirror;

	for (mirror = hmm->mirrors; mirror; mirror = mirror->next)
		if ((int)(mirror->id & 0xff) == index)
			return mirror->mirror;
	return NULL;
}

static void fill_policy(struct hmm *hmm, const struct hmm_msg_advise_reply *reply,
			struct hmm_policy *result)
{
	struct hmm_policy policy = {
		.size = result->size,
		.said = reply->said,
		.mixed = reply->mixed,
		.in_force = reply->in_force,
		.pages = reply->pages,
		.on_device = reply->on_device,
		.granularity = reply->granularity,
		.evict_priority = reply->priority,
	};

	memcpy(policy.why, reply->why, sizeof(policy.why));
	futex_lock(&hmm->lock);
	for (int i = 0; i < HMM_POLICY_MIRRORS; i++)
		if (reply->accessed_by >> i & 1)
			policy.accessed_by[policy.accessed_by_count++] = handle_of(hmm, i);
	policy.preferred = handle_of(hmm, reply->preferred);
	policy.pinned = handle_of(hmm, reply->pinned);
	futex_unlock(&hmm->lock);
	if (result->size > sizeof(policy))
		memset((char *)result + sizeof(policy), 0, result->size - sizeof(policy));
	memcpy(result, &policy, result->size < sizeof(policy) ? result->size : sizeof(policy));
}

static int check_policy(const struct hmm_policy *policy)
{
	if (policy->size < sizeof(policy->size))
		return hmmc_fail(-EINVAL, "policy.size is not set");
	return 0;
}

int hmm_range_get_attribute(struct hmm *hmm, unsigned long addr, size_t length,
			    struct hmm_policy *policy)
{
	int error = hmmc_range_check(hmm, addr, length);
	struct hmm_msg_attribute *message;
	struct request *request;

	if (error)
		return error;
	error = policy ? check_policy(policy) : hmmc_fail(-EINVAL, "policy is NULL");
	if (error)
		return error;
	request = hmmc_request_new(hmm->connection, HMM_OP_ATTRIBUTE, sizeof(*message));
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	message = (struct hmm_msg_attribute *)request->message;
	message->addr = addr;
	message->length = length;
	request->prepare = hmmc_prepare_owner;
	error = hmmc_request_call(request);
	if (!error)
		fill_policy(hmm, (const struct hmm_msg_advise_reply *)request->reply, policy);
	hmmc_request_free(request);
	return error;
}

/* ---- saying ---------------------------------------------------------------------- */

static bool is_advice(enum hmm_advice advice)
{
	return (advice >= HMM_ADVISE_SET_READ_MOSTLY && advice <= HMM_ADVISE_UNSET_ACCESSED_BY) ||
	       (advice >= HMM_ADVISE_UNPINNED && advice <= HMM_ADVISE_EVICT_PRIORITY);
}

static int check_options(struct hmm *hmm, const struct hmm_advise_options *given,
			 struct hmm_advise_options *options)
{
	int error = hmmc_take_options(given, options, sizeof(*options));

	if (error)
		return error;
	if (options->mirror) {
		error = hmmc_mirror_check(options->mirror);
		if (error)
			return error;
		if (options->mirror->hmm != hmm)
			return hmmc_fail(-EINVAL, "options.mirror is one of another address space");
	}
	return options->policy ? check_policy(options->policy) : 0;
}

static int prepare_advise(struct request *request)
{
	struct hmm_msg_advise *message = (struct hmm_msg_advise *)request->message;
	const struct hmm_mirror_private *mirror = request->data;

	message->mirror = mirror ? mirror->id : 0;
	return hmmc_prepare_owner(request);
}

static int say(struct hmm *hmm, unsigned long addr, size_t length, enum hmm_advice advice, bool back,
	       const struct hmm_advise_options *given)
{
	bool sends = !back && (advice == HMM_ADVISE_PIN || advice == HMM_ADVISE_SET_ACCESSED_BY);
	int error = hmmc_range_check(hmm, addr, length);
	struct hmm_advise_options options;
	struct hmm_msg_advise *message;
	struct request *request;

	if (!error && !is_advice(advice))
		error = hmmc_fail(-EINVAL, "there is no advice %d", advice);
	if (!error)
		error = check_options(hmm, given, &options);
	if (!error && (sends || advice == HMM_ADVISE_DISCARD))
		error = hmmc_dispatch_check();
	if (error)
		return error;
	request = hmmc_request_new(hmm->connection, HMM_OP_ADVISE, sizeof(*message));
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	message = (struct hmm_msg_advise *)request->message;
	message->advice = advice;
	message->addr = addr;
	message->length = length;
	message->value = options.value;
	message->back = back;
	request->data = options.mirror ? options.mirror->priv : NULL;
	request->prepare = prepare_advise;
	if (sends)
		hmmc_gate_enter();
	error = hmmc_request_call(request);
	if (sends)
		hmmc_gate_leave();
	if (!error && options.policy)
		fill_policy(hmm, (const struct hmm_msg_advise_reply *)request->reply, options.policy);
	hmmc_request_free(request);
	return error;
}

int hmm_advise(struct hmm *hmm, unsigned long addr, size_t length, enum hmm_advice advice,
	       const struct hmm_advise_options *options)
{
	return say(hmm, addr, length, advice, false, options);
}

int hmm_unadvise(struct hmm *hmm, unsigned long addr, size_t length, enum hmm_advice advice,
		 const struct hmm_advise_options *options)
{
	return say(hmm, addr, length, advice, true, options);
}

/* ---- saying it again ----------------------------------------------------------------- */

/* In one message. */
#define PIECE 256U

struct restatement {
	struct hmm_attribute noted[PIECE];
	_Alignas(struct hmm_msg_restate) unsigned char message[sizeof(struct hmm_msg_restate) +
							       PIECE * sizeof(struct hmm_record_attribute_info)];
};

/* What the mirror that had this index has now; -1: it is another process's, which says it anew. */
static int new_index(const struct hmm *hmm, unsigned int former)
{
	const struct hmm_mirror_private *mirror;

	for (mirror = hmm->mirrors; mirror; mirror = mirror->next)
		if ((mirror->former & 0xff) == former)
			return (int)(mirror->id & 0xff);
	return -1;
}

static void translate(const struct hmm *hmm, const struct hmm_attribute *from,
		      struct hmm_record_attribute_info *to)
{
	static const struct { uint32_t flag; uint64_t policy; } same[] = {
		{ HMM_ATTRIBUTE_UNPINNED, HMM_POLICY_UNPINNED },
		{ HMM_ATTRIBUTE_READ_MOSTLY, HMM_POLICY_READ_MOSTLY },
		{ HMM_ATTRIBUTE_PREFER_SYSTEM, HMM_POLICY_PREFERRED_SYSTEM },
		{ HMM_ATTRIBUTE_PREFER_DEVICE, HMM_POLICY_PREFERRED_DEVICE },
		{ HMM_ATTRIBUTE_PIN, HMM_POLICY_PIN },
		{ HMM_ATTRIBUTE_NO_PREFETCH, HMM_POLICY_NO_PREFETCH },
		{ HMM_ATTRIBUTE_PRIORITY, HMM_POLICY_EVICT_PRIORITY },
	};

	memset(to, 0, sizeof(*to));
	to->start = from->start;
	to->end = from->end;
	for (unsigned int i = 0; i < sizeof(same) / sizeof(same[0]); i++)
		if (from->flags & same[i].flag)
			to->said |= same[i].policy;
	if (from->granularity)
		to->said |= HMM_POLICY_GRANULARITY;
	to->granularity = from->granularity;
	to->priority = from->priority;
	to->preferred = new_index(hmm, from->preferred);
	to->pinned = new_index(hmm, from->pinned);
	for (unsigned int i = 0; i < HMM_MIRRORS_MAX; i++) {
		int index = from->accessed_by >> i & 1 ? new_index(hmm, i) : -1;

		if (index >= 0)
			to->accessed_by |= 1U << index;
	}
}

static int restate(struct hmm *hmm, struct restatement *all, uint32_t active, uint32_t count)
{
	const off_t list = (off_t)(HMM_ATTRIBUTES_OFFSET + offsetof(struct hmm_attributes, list) +
				   active * sizeof(((struct hmm_attributes *)0)->list[0]));
	struct hmm_msg_restate *message = (void *)all->message;
	uint32_t done = 0, n;
	int error = 0;

	for (; !error && done < count; done += n) {
		n = count - done < PIECE ? count - done : PIECE;
		if (pread(hmm->owner->former_fd, all->noted, n * sizeof(all->noted[0]),
			  list + (off_t)(done * sizeof(all->noted[0]))) !=
		    (ssize_t)(n * sizeof(all->noted[0])))
			return -EIO;
		hmm_wire_init(message, HMM_OP_RESTATE, sizeof(*message) + n * sizeof(message->items[0]), 0);
		for (uint32_t i = 0; i < n; i++)
			translate(hmm, &all->noted[i], &message->items[i]);
		message->owner = hmm->id;
		message->count = n;
		error = hmmc_connection_exchange(hmm->connection, message, NULL, 0);
	}
	return error;
}

int hmmc_advice_restate(struct hmm *hmm)
{
	struct owner *owner = hmm->owner;
	uint32_t head[3] = { 0 };	/* active, count[2] */
	struct restatement *all;
	int error = 0;

	_Static_assert(offsetof(struct hmm_attributes, count) == sizeof(uint32_t), "head");
	if (owner->former_fd < 0)
		return 0;
	all = hmmc_arena_alloc(sizeof(*all));
	if (!all)
		return -ENOMEM;
	if (pread(owner->former_fd, head, sizeof(head), (off_t)HMM_ATTRIBUTES_OFFSET) !=
		    (ssize_t)sizeof(head) || head[0] > 1 || head[1 + head[0]] > HMM_ATTRIBUTES_ROOM)
		error = -EIO;
	if (!error)
		error = restate(hmm, all, head[0], head[1 + head[0]]);
	hmmc_arena_free(all, sizeof(*all));
	if (error == EXCHANGE_LOST)
		return error;
	/* Hints: the owner goes on without. */
	if (error)
		hmmc_log(HMMC_LOG_WARNING, "hmmd was not told again what was said of ranges: %s",
			 strerror(-error));
	close(owner->former_fd);
	owner->former_fd = -1;
	return 0;
}
