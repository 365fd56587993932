/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * advise.c - advice of ranges: taking it, acting on it, and saying what holds.
 * Runs on the owner's worker.
 *
 * Most advice is only noted (attribute.c) and answered with the policy that
 * holds then. Some do something first, or after:
 *
 * PIN and ACCESSED_BY send pages to the device, and home again: errand.c. A pin is only
 * noted when it holds. What a device that cannot fault had of one that is taken back goes home (reach.c).
 *
 * DISCARD drops what is on a device, without copying: the next touch, from
 * either side, finds zeros. Pages at the CPU keep their bytes, as those of
 * MADV_FREE do when nobody needs memory. Nothing is noted: it is done.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/errand.h"
#include "engine/worker.h"
#include "policy/advice.h"

#define ANSWER_MAX 1024U	/* ranges in one answer */

_Static_assert(sizeof(struct hmm_msg_advise_reply) == sizeof(struct hmm_msg_attribute_reply) &&
	       offsetof(struct hmm_msg_advise_reply, why) == offsetof(struct hmm_msg_attribute_reply, why),
	       "both answers are a policy");

/* ---- what holds ----------------------------------------------------------------- */

static uint64_t policy_of(const struct hmm_attribute *attribute)
{
	static const struct { uint32_t flag; uint64_t policy; } same[] = {
		{ HMM_ATTRIBUTE_UNPINNED, HMM_ADVISED_UNPINNED },
		{ HMM_ATTRIBUTE_READ_MOSTLY, HMM_ADVISED_READ_MOSTLY },
		{ HMM_ATTRIBUTE_PREFER_SYSTEM, HMM_ADVISED_PREFERRED_SYSTEM },
		{ HMM_ATTRIBUTE_PREFER_DEVICE, HMM_ADVISED_PREFERRED_DEVICE },
		{ HMM_ATTRIBUTE_PIN, HMM_ADVISED_PIN },
		{ HMM_ATTRIBUTE_NO_PREFETCH, HMM_ADVISED_NO_PREFETCH },
		{ HMM_ATTRIBUTE_PRIORITY, HMM_ADVISED_EVICT_PRIORITY },
	};
	uint64_t policy = 0;

	for (unsigned int i = 0; i < sizeof(same) / sizeof(same[0]); i++)
		if (attribute->flags & same[i].flag)
			policy |= same[i].policy;
	if (attribute->accessed_by)
		policy |= HMM_ADVISED_ACCESSED_BY;
	if (attribute->granularity)
		policy |= HMM_ADVISED_GRANULARITY;
	return policy;
}

/* What is said of two ranges, but not the same. */
static uint64_t difference(const struct hmm_attribute *a, const struct hmm_attribute *b)
{
	uint64_t differs = policy_of(a) ^ policy_of(b);

	if (a->preferred != b->preferred)
		differs |= HMM_ADVISED_PREFERRED_DEVICE;
	if (a->pinned != b->pinned)
		differs |= HMM_ADVISED_PIN;
	if (a->granularity != b->granularity)
		differs |= HMM_ADVISED_GRANULARITY;
	if (a->priority != b->priority)
		differs |= HMM_ADVISED_EVICT_PRIORITY;
	if (a->accessed_by != b->accessed_by)
		differs |= HMM_ADVISED_ACCESSED_BY;
	return differs & (policy_of(a) | policy_of(b));
}

struct tally {
	uint64_t start, end;
	const struct mirror *only;	/* on its device; NULL: on any */
	bool alone;			/* ... and not shared with the CPU, if the device cannot fault */
	uint64_t on_device;
};

static void tally_block(struct block *block, void *data)
{
	struct tally *tally = data;
	bool shares;

	if (tally->only && block_mirror(block) != tally->only)
		return;
	/* A device that cannot fault is to have been given a page to write to, too; later it may share it. */
	shares = !block_mirror(block) || device_faults(block_mirror(block)->device) ||
		 (!tally->alone && device_shares(block_mirror(block)->device));
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		enum hmm_page_state state = page_state(block, i);

		if (page_addr(block, i) >= tally->start && page_addr(block, i) < tally->end &&
		    (state == HMM_PAGE_DEVICE || (state == HMM_PAGE_SHARED && shares) || state == HMM_PAGE_COHERENT))
			tally->on_device++;
	}
}

uint64_t advise_pages_on_device(struct owner *owner, uint64_t start, uint64_t end, const struct mirror *only, bool alone)
{
	struct tally tally = { .start = start, .end = end, .only = only, .alone = alone };

	block_for_each(owner, start, end, tally_block, &tally);
	return tally.on_device;
}

static bool lacks_memory(const struct owner *owner, unsigned int index)
{
	return owner->mirror[index] && !owner->mirror[index]->device->size;
}

static bool cannot_fault(const struct owner *owner, unsigned int index)
{
	return owner->mirror[index] && !device_faults(owner->mirror[index]->device);
}

static bool names_device(const struct owner *owner, const struct hmm_attribute *attribute,
			 bool (*is_like)(const struct owner *owner, unsigned int index))
{
	for (unsigned int i = 0; i < MIRRORS_MAX; i++)
		if ((attribute->accessed_by >> i & 1 ||
		     (attribute->flags & HMM_ATTRIBUTE_PREFER_DEVICE && attribute->preferred == i)) &&
		    is_like(owner, i))
			return true;
	return false;
}

static void describe(struct owner *owner, uint64_t start, uint64_t end, struct hmm_msg_advise_reply *reply)
{
	struct hmm_attribute first = attribute_at(&owner->attributes, start);
	const struct mirror *pinned = first.flags & HMM_ATTRIBUTE_PIN ? owner->mirror[first.pinned] : NULL;
	struct advice_facts facts = { 0 };

	reply->said = policy_of(&first);
	for (uint64_t at = first.end; at < end;) {
		struct hmm_attribute here = attribute_at(&owner->attributes, at);

		reply->mixed |= difference(&first, &here);
		at = here.end;
	}
	reply->said &= ~reply->mixed;
	facts.said = reply->said;
	facts.move = owner->features & HMM_FEATURE_MOVE;
	facts.merging = !owner_may_share(owner);
	facts.protects = owner->features & HMM_FEATURE_WP_SHMEM;
	facts.windows = !TAILQ_EMPTY(&owner->windows);
	facts.no_memory = names_device(owner, &first, lacks_memory);
	facts.no_faults = names_device(owner, &first, cannot_fault);
	facts.pages = (end - start) >> HMM_PAGE_SHIFT;
	facts.on_device = advise_pages_on_device(owner, start, end, pinned, false);
	reply->in_force = advice_in_force(&facts, reply->why, sizeof(reply->why));
	reply->pages = facts.pages;
	reply->on_device = facts.on_device;
	reply->granularity = first.granularity;
	reply->priority = first.flags & HMM_ATTRIBUTE_PRIORITY ? first.priority : EVICT_PRIORITY_DEFAULT;
	reply->accessed_by = first.accessed_by;
	reply->preferred = first.flags & HMM_ATTRIBUTE_PREFER_DEVICE ? first.preferred : -1;
	reply->pinned = first.flags & HMM_ATTRIBUTE_PIN ? first.pinned : -1;
}

static void answer_policy(struct owner *owner, struct letter *letter, uint16_t op, uint64_t start,
			  uint64_t end)
{
	struct hmm_msg_advise_reply *reply = letter_reply(letter, op, sizeof(*reply));

	if (reply)
		describe(owner, start, end, reply);
	else
		letter_fail(letter, -ENOMEM, "out of memory for the answer");
	worker_reply(owner->worker, letter);
}

void advise_answer(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_advise *message = (const void *)letter->message;

	answer_policy(owner, letter, HMM_OP_ADVISE_REPLY, message->addr, message->addr + message->length);
}

/* ---- noting ------------------------------------------------------------------------ */

static void set_flag(struct hmm_attribute *attribute, uint32_t flag, bool on)
{
	attribute->flags = on ? attribute->flags | flag : attribute->flags & ~flag;
}

static void change_preferred(struct hmm_attribute *attribute, const struct change *change)
{
	set_flag(attribute, HMM_ATTRIBUTE_PREFER_SYSTEM, !change->back && !change->mirror);
	set_flag(attribute, HMM_ATTRIBUTE_PREFER_DEVICE, !change->back && change->mirror);
	attribute->preferred = !change->back && change->mirror ? (uint8_t)change->mirror->index : 0;
}

static void change_one(struct hmm_attribute *attribute, const void *data)
{
	const struct change *change = data;

	switch (change->advice) {
	case HMM_ADVICE_SET_READ_MOSTLY:
		set_flag(attribute, HMM_ATTRIBUTE_READ_MOSTLY, !change->back);
		break;
	case HMM_ADVICE_SET_PREFERRED_LOCATION:
		change_preferred(attribute, change);
		break;
	case HMM_ADVICE_SET_ACCESSED_BY:
		attribute->accessed_by &= (uint16_t)~(1U << change->mirror->index);
		if (!change->back)
			attribute->accessed_by |= (uint16_t)(1U << change->mirror->index);
		break;
	case HMM_ADVICE_UNPINNED:
		set_flag(attribute, HMM_ATTRIBUTE_UNPINNED, !change->back);
		break;
	case HMM_ADVICE_GRANULARITY:
		attribute->granularity = change->back ? 0 : (uint16_t)change->value;
		break;
	case HMM_ADVICE_PREFETCH:
		set_flag(attribute, HMM_ATTRIBUTE_NO_PREFETCH, !change->back && !change->value);
		break;
	case HMM_ADVICE_PIN:
		set_flag(attribute, HMM_ATTRIBUTE_PIN, !change->back);
		attribute->pinned = change->back ? 0 : (uint8_t)change->mirror->index;
		break;
	case HMM_ADVICE_EVICT_PRIORITY:
		set_flag(attribute, HMM_ATTRIBUTE_PRIORITY, !change->back);
		attribute->priority = change->back ? 0 : (uint8_t)change->value;
		break;
	}
}

static void settle_block(struct block *block, void *data)
{
	(void)data;
	block_settle_later(block);
}

int advise_note(struct owner *owner, struct letter *letter, const struct change *change)
{
	const struct hmm_msg_advise *message = (const void *)letter->message;
	uint64_t end = message->addr + message->length;
	int r = attribute_edit(&owner->attributes, message->addr, end, change_one, change);

	if (r)
		return letter_fail(letter, r,
				   "owner %u has said different things of %u ranges: no more than %u can be told apart",
				   owner->id, owner->attributes.count, HMM_ATTRIBUTES_MAX);
	/* Copies that were kept for it may have no use any more. */
	if (change->back)
		block_for_each(owner, message->addr, end, settle_block, NULL);
	return 0;
}

/* ---- a pin that is taken back ------------------------------------------------------------ */

struct unpinning {
	struct letter *letter;
	unsigned int left;		/* devices that have to let go yet, and who asks them */
};

static void unpin_left(struct owner *owner, void *data, uint64_t pages)
{
	struct unpinning *unpinning = data;

	(void)pages;
	if (--unpinning->left)
		return;
	advise_answer(owner, unpinning->letter);
	free(unpinning);
}

/* A device that cannot fault has nothing that is not pinned: each gives up what it had. */
static int unpin(struct owner *owner, struct letter *letter, const struct change *change, uint32_t mirrors)
{
	const struct hmm_msg_advise *message = (const void *)letter->message;
	uint64_t start = message->addr, end = message->addr + message->length;
	struct unpinning *unpinning = calloc(1, sizeof(*unpinning));
	int r;

	if (!unpinning)
		return letter_fail(letter, -ENOMEM, "out of memory");
	r = advise_note(owner, letter, change);
	if (r) {
		free(unpinning);
		return r;
	}
	unpinning->letter = letter;
	unpinning->left = 1;
	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		if (!(mirrors >> i & 1) || !owner->mirror[i])
			continue;
		unpinning->left++;
		reach_leave(owner->mirror[i], start, end, unpin_left, unpinning);
	}
	unpin_left(owner, unpinning, 0);
	return 0;
}

/* ---- DISCARD -------------------------------------------------------------------------- */

struct discard {
	struct task task;
	struct owner *owner;
	struct letter *letter;
	uint64_t next, end;
};

/* One block's worth. True: it waits for the block. */
static bool discard_block(struct discard *discard, struct block *block)
{
	unsigned int first = discard->next > block->addr ? page_index(discard->next) : 0, run = 0, end;
	unsigned int stop = discard->end < block->addr + HMM_BLOCK_SIZE ? page_index(discard->end) :
									  HMM_BLOCK_PAGES;
	struct pages pages;

	if (!block_at_rest(block)) {
		block_park(block, &discard->task);
		return true;
	}
	if (block_pages_in(block, HMM_PAGE_SHARED, first, stop, &pages)) {
		/* Looked at again: the CPU's page stays, the copy goes. */
		owner_queue(discard->owner, &discard->task);
		unshare_begin(block, &pages, HMM_REASON_DISCARD, NULL);
		return true;
	}
	if (block_pages_in(block, HMM_PAGE_DEVICE, first, stop, &pages) && pages_run(&pages, &run, &end)) {
		owner_queue(discard->owner, &discard->task);
		block_discard(block, run, end, HMM_REASON_DISCARD);
		return true;
	}
	discard->next = block->addr + HMM_BLOCK_SIZE;
	return false;
}

static void discard_run(struct task *task)
{
	struct discard *discard = (struct discard *)task;
	struct owner *owner = discard->owner;
	struct block *block;

	while (!owner->gone && discard->next < discard->end &&
	       (block = block_next(owner, discard->next, discard->end)))
		if (discard_block(discard, block))
			return;
	owner->jobs--;
	advise_answer(owner, discard->letter);
	free(discard);
}

static int discard_begin(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_advise *message = (const void *)letter->message;
	struct discard *discard = calloc(1, sizeof(*discard));

	if (!discard)
		return letter_fail(letter, -ENOMEM, "out of memory");
	discard->task.run = discard_run;
	discard->owner = owner;
	discard->letter = letter;
	discard->next = message->addr;
	discard->end = message->addr + message->length;
	owner->jobs++;
	owner_queue(owner, &discard->task);
	return 0;
}

/* ---- requests --------------------------------------------------------------------------- */

/* The opposites of CUDA's, and of UNPINNED, are the same advice taken back. */
static void change_of(const struct hmm_msg_advise *message, struct change *change)
{
	change->advice = message->advice;
	change->back = message->back;
	change->value = message->value;
	switch (message->advice) {
	case HMM_ADVICE_UNSET_READ_MOSTLY:
	case HMM_ADVICE_UNSET_PREFERRED_LOCATION:
	case HMM_ADVICE_UNSET_ACCESSED_BY:
	case HMM_ADVICE_PINNED:
		change->advice--;
		change->back = true;
		break;
	}
}

static int check_advice(struct owner *owner, struct letter *letter, const struct change *change)
{
	const struct hmm_msg_advise *message = (const void *)letter->message;
	bool wants_mirror = change->advice == HMM_ADVICE_SET_ACCESSED_BY ||
			    (change->advice == HMM_ADVICE_PIN && !change->back);

	if (owner->gone || owner->closing)
		return letter_fail(letter, -ESTALE, "owner %u is gone", owner->id);
	if (message->back && (message->advice != change->advice || message->advice == HMM_ADVICE_DISCARD))
		return letter_fail(letter, -EINVAL, "%s can't be taken back",
				   hmm_advice_name(message->advice));
	if (change->advice == HMM_ADVICE_UNPINNED && letter->peer != owner->peer)
		return letter_fail(letter, -EPERM,
				   "only the owner itself can know that nothing pins its pages");
	if (message->mirror && (!change->mirror || change->mirror->leaving))
		return letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
	if (wants_mirror && !change->mirror)
		return letter_fail(letter, -EINVAL, "%s is about a device: no mirror was named",
				   hmm_advice_name(message->advice));
	if (change->mirror && !change->back && mirror_refuse_tracked(change->mirror, letter))
		return letter->error;
	if (change->back)
		return 0;
	if (change->advice == HMM_ADVICE_GRANULARITY &&
	    (!change->value || change->value > HMM_BLOCK_PAGES || change->value & (change->value - 1)))
		return letter_fail(letter, -EINVAL, "a granularity of %u pages: a power of two from 1 to %u is possible",
				   change->value, (unsigned int)HMM_BLOCK_PAGES);
	if (change->advice == HMM_ADVICE_EVICT_PRIORITY && change->value > EVICT_PRIORITY_MAX)
		return letter_fail(letter, -EINVAL, "a priority of %u: 0 to %u are possible", change->value,
				   EVICT_PRIORITY_MAX);
	if (change->advice == HMM_ADVICE_PREFETCH && change->value > 1)
		return letter_fail(letter, -EINVAL, "prefetching is on (1) or off (0), not %u", change->value);
	return 0;
}

static void advise(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_advise *message = (const void *)letter->message;
	struct mirror *mirror = message->mirror ? mirror_by_id(owner, message->mirror) : NULL;
	struct change change = { .mirror = mirror };
	bool errand, pin;
	int r;

	change_of(message, &change);
	pin = change.advice == HMM_ADVICE_PIN && !change.back;
	errand = pin || (change.advice == HMM_ADVICE_SET_ACCESSED_BY && !change.back);
	r = check_advice(owner, letter, &change);
	if (!r && change.advice == HMM_ADVICE_DISCARD) {
		r = discard_begin(owner, letter);
		if (!r)
			return;
	}
	if (!r && change.advice == HMM_ADVICE_PIN && change.back) {
		uint32_t mirrors = reach_pinned(owner, message->addr, message->addr + message->length);

		r = mirrors ? unpin(owner, letter, &change, mirrors) : 0;
		if (mirrors && !r)
			return;
	}
	/* A pin holds when all of it is there, and is noted then. */
	if (!r && !pin)
		r = advise_note(owner, letter, &change);
	/* Without memory, or with none that a copy could lie in, there is nothing to send there: the answer says so. */
	if (!r && errand && (pin || (mirror->device->size && !device_is_far(mirror->device) &&
				      device_faults(mirror->device)))) {
		r = errand_begin(owner, letter, mirror, &change);
		if (!r)
			return;
	}
	if (r)
		worker_reply(owner->worker, letter);
	else
		advise_answer(owner, letter);
}

static void list(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_attributes *message = (const void *)letter->message;
	struct hmm_msg_attributes_reply *reply =
		letter_reply(letter, HMM_OP_ATTRIBUTES_REPLY,
			     sizeof(*reply) + ANSWER_MAX * sizeof(reply->items[0]));
	uint64_t at = message->cursor;
	uint32_t n = 0;

	if (!reply) {
		letter_fail(letter, -ENOMEM, "out of memory for the answer");
		worker_reply(owner->worker, letter);
		return;
	}
	while (at < HMM_VA_END && n < ANSWER_MAX) {
		struct hmm_attribute here = attribute_at(&owner->attributes, at);
		struct hmm_record_attribute_info *item = &reply->items[n];

		at = here.end;
		item->said = policy_of(&here);
		if (!item->said)
			continue;
		item->start = here.start;
		item->end = here.end;
		item->accessed_by = here.accessed_by;
		item->granularity = here.granularity;
		item->preferred = here.flags & HMM_ATTRIBUTE_PREFER_DEVICE ? here.preferred : -1;
		item->pinned = here.flags & HMM_ATTRIBUTE_PIN ? here.pinned : -1;
		item->priority = here.flags & HMM_ATTRIBUTE_PRIORITY ? here.priority : EVICT_PRIORITY_DEFAULT;
		n++;
	}
	reply->count = n;
	reply->more = at < HMM_VA_END;
	reply->header.size = (uint32_t)(sizeof(*reply) + n * sizeof(reply->items[0]));
	worker_reply(owner->worker, letter);
}

static bool is_mirror(const struct owner *owner, int32_t index)
{
	return index >= 0 && index < (int32_t)MIRRORS_MAX && owner->mirror[index];
}

struct restatement {
	const struct owner *owner;
	const struct hmm_record_attribute_info *item;
};

static void restate_one(struct hmm_attribute *attribute, const void *data)
{
	const struct restatement *restatement = data;
	const struct hmm_record_attribute_info *item = restatement->item;
	bool device = item->said & HMM_ADVISED_PREFERRED_DEVICE && is_mirror(restatement->owner, item->preferred);
	bool pin = item->said & HMM_ADVISED_PIN && is_mirror(restatement->owner, item->pinned);

	attribute->flags = 0;
	set_flag(attribute, HMM_ATTRIBUTE_UNPINNED, item->said & HMM_ADVISED_UNPINNED);
	set_flag(attribute, HMM_ATTRIBUTE_READ_MOSTLY, item->said & HMM_ADVISED_READ_MOSTLY);
	set_flag(attribute, HMM_ATTRIBUTE_PREFER_SYSTEM, item->said & HMM_ADVISED_PREFERRED_SYSTEM);
	set_flag(attribute, HMM_ATTRIBUTE_PREFER_DEVICE, device);
	set_flag(attribute, HMM_ATTRIBUTE_PIN, pin);
	set_flag(attribute, HMM_ATTRIBUTE_NO_PREFETCH, item->said & HMM_ADVISED_NO_PREFETCH);
	set_flag(attribute, HMM_ATTRIBUTE_PRIORITY, item->said & HMM_ADVISED_EVICT_PRIORITY);
	attribute->preferred = device ? (uint8_t)item->preferred : 0;
	attribute->pinned = pin ? (uint8_t)item->pinned : 0;
	attribute->priority = item->said & HMM_ADVISED_EVICT_PRIORITY ? (uint8_t)item->priority : 0;
	attribute->granularity = item->said & HMM_ADVISED_GRANULARITY ? (uint16_t)item->granularity : 0;
	attribute->accessed_by = 0;
	for (int i = 0; i < (int)MIRRORS_MAX; i++)
		if (item->accessed_by >> i & 1 && is_mirror(restatement->owner, i))
			attribute->accessed_by |= (uint16_t)(1U << i);
}

static int check_restatement(const struct hmm_record_attribute_info *item)
{
	if ((item->start | item->end) % HMM_PAGE_SIZE || item->start >= item->end || item->end > HMM_VA_END ||
	    item->priority > EVICT_PRIORITY_MAX || item->granularity > HMM_BLOCK_PAGES ||
	    item->granularity & (item->granularity - 1))
		return -EINVAL;
	return 0;
}

static void restate(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_restate *message = (const void *)letter->message;
	int r = 0;

	for (uint32_t i = 0; !r && i < message->count; i++) {
		struct restatement restatement = { owner, &message->items[i] };

		r = check_restatement(&message->items[i]);
		if (!r)
			r = attribute_edit(&owner->attributes, message->items[i].start, message->items[i].end,
					   restate_one, &restatement);
	}
	if (!r && !letter_reply(letter, HMM_OP_RESTATE_REPLY, sizeof(struct hmm_msg_restate_reply)))
		r = -ENOMEM;
	if (r)
		letter_fail(letter, r, "what was said before can't be said again: %s", strerror(-r));
	worker_reply(owner->worker, letter);
}

void advise_request(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_attribute *attribute = (const void *)letter->message;

	switch (letter->message->opcode) {
	case HMM_OP_ADVISE:
		advise(owner, letter);
		break;
	case HMM_OP_ATTRIBUTE:
		answer_policy(owner, letter, HMM_OP_ATTRIBUTE_REPLY, attribute->addr,
			      attribute->addr + attribute->length);
		break;
	case HMM_OP_ATTRIBUTES:
		list(owner, letter);
		break;
	default:
		restate(owner, letter);
	}
}
