/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * protect.c - devices follow mprotect(). Runs on the owner's worker.
 *
 * The kernel raises no event for it. The library stands before the call, lets it
 * happen, and asks hmmd to follow before the program goes on: so the mappings are as
 * they are now, whichever rights came or went, and nothing has to be taken back where
 * the kernel refused.
 *
 * Happy path: block by block; drivers are told (HMM_REASON_PROTECT). What may not be
 * read comes home, COPY works there too. What may not be written becomes S where the
 * device reads: the windows' writes are frozen, and one that is tried all the same finds a page that
 * the CPU does not give up. What ranges were shown at the CPU is withdrawn, and what a card
 * reaches, that before all else. A block in transit parks the task. At the end what
 * windows were refused in the range is opened again, to be judged anew.
 *
 * Pages of a device that mremap() brings somewhere (graft.c) are looked at by the same task, and
 * nobody waits for it.
 *
 * Who calls the kernel directly is found out about when a window next asks for the page.
 *
 * What can fail: memory, or a map that keeps changing. After 5 s windows that could
 * still show what they should not are revoked, and entries that still say so are withdrawn.
 */
#include "engine/protect.h"

#include <errno.h>
#include <stdlib.h>

#include "engine/copies.h"
#include "engine/dma.h"
#include "engine/worker.h"

#define FOLLOW_NS	(5000 * NS_PER_MS)
/* Transits of one block before it waits a moment: S home, D home, D shared, and one more. */
#define TRANSITS	4U

struct protection {
	struct task task;
	struct owner *owner;
	struct letter *letter;	/* NULL: nobody asked */
	LIST_ENTRY(protection) of_owner;
	uint64_t at, end;
	int64_t since;		/* when it came to the block that it is at */
	unsigned int transits;	/* of that block, since it last waited */
};

/* What has to change; in the order in which it is done. */
struct surplus {
	struct pages unshare, home, share;
};

static void judge(struct block *block, unsigned int i, const struct kernel_vma *vma, bool can_share,
		  struct surplus *surplus)
{
	enum hmm_page_state state = page_state(block, i);

	if (vma->read && vma->write)
		return;
	/* What a range was shown at the CPU: it looks again. */
	if (block_remote_exceeds(block, i, vma->read, vma->write))
		pages_set(&surplus->unshare, i);
	else if (state == HMM_PAGE_SHARED && !vma->read)
		pages_set(&surplus->unshare, i);
	else if (state == HMM_PAGE_DEVICE && vma->read && can_share)
		pages_set(&surplus->share, i);
	else if (state == HMM_PAGE_DEVICE)
		pages_set(&surplus->home, i);
}

/* Mapping by mapping. Gaps are the unmapping events' business. Return: 0 or -errno. */
static int look(struct block *block, unsigned int first, unsigned int end, struct surplus *surplus)
{
	uint64_t at = page_addr(block, first), stop = block->addr + (uint64_t)end * HMM_PAGE_SIZE;
	bool can_share = block_device_reads(block) && owner_may_share(block->owner);
	struct kernel_vma vma;
	int r = 0;

	*surplus = (struct surplus){ 0 };
	while (at < stop && (r = mapping_at(block->owner, at, &vma)) == 0 && vma.start < stop) {
		if (at < vma.start)
			at = vma.start;
		for (; at < stop && at < vma.end; at += HMM_PAGE_SIZE)
			judge(block, page_index(at), &vma, can_share, surplus);
	}
	return r == -ENOENT ? 0 : r;
}

int protect_follow(struct block *block, unsigned int first, unsigned int end)
{
	struct surplus surplus;
	int r = look(block, first, end, &surplus);

	if (r)
		return r;
	if (!pages_empty(&surplus.unshare))
		unshare_begin(block, &surplus.unshare, HMM_REASON_PROTECT, NULL);
	else if (far_fetch(block, &surplus.home, HMM_BLOCK_PAGES, 0, HMM_REASON_PROTECT, NULL))
		return 1;
	else if (!pages_empty(&surplus.home))
		home_begin(block, &surplus.home, HMM_BLOCK_PAGES, false, HMM_REASON_PROTECT, 0, NULL);
	else if (!pages_empty(&surplus.share))
		home_begin(block, &surplus.share, HMM_BLOCK_PAGES, true, HMM_REASON_PROTECT, 0, NULL);
	else
		return 0;
	return 1;
}

/* What cannot be found out at present is found out by following. */
bool protect_is_due(struct block *block, uint64_t addr)
{
	enum hmm_page_state state = page_state(block, page_index(addr));
	struct kernel_vma vma;
	int r;

	if (state != HMM_PAGE_DEVICE && state != HMM_PAGE_SHARED)
		return false;
	r = mapping_at(block->owner, addr, &vma);
	if (r)
		return r != -ENOENT;
	return vma.start <= addr && (!vma.read || (!vma.write && state == HMM_PAGE_DEVICE));
}

/*
 * It would not end. Windows are closed, and no entry goes on to say what the mapping has not; where that can't be found
 * out, none of what a device may lose.
 */
static void give_up(struct block *block, unsigned int first, unsigned int end)
{
	uint64_t start = page_addr(block, first), stop = page_addr(block, end - 1) + HMM_PAGE_SIZE;
	struct surplus surplus;
	struct pages pages = { 0 };
	bool known = look(block, first, end, &surplus) == 0;

	for (unsigned int i = first; i < end; i++) {
		enum hmm_page_state state = page_state(block, i);
		bool due = state == HMM_PAGE_DEVICE || state == HMM_PAGE_SHARED || block_is_remote(block, i);

		if (known)
			due = pages_test(&surplus.unshare, i) || pages_test(&surplus.home, i) ||
			      pages_test(&surplus.share, i);
		if (due)
			pages_set(&pages, i);
	}
	window_revoke_range(block->owner, start, stop, -ETIMEDOUT);
	if (pages_empty(&pages))
		return;
	copies_hide(block, &pages);
	transit_withdraw(block, &pages);
	invalidate_send(block, start, stop, HMM_REASON_PROTECT, false);
}

static void finish(struct protection *protection)
{
	struct owner *owner = protection->owner;
	struct letter *letter = protection->letter;
	const struct hmm_msg_protect *message = letter ? (const void *)letter->message : NULL;

	LIST_REMOVE(protection, of_owner);
	free(protection);
	if (!letter)
		return;
	if (owner->gone)
		letter_fail(letter, -ESTALE, "the owner is gone");
	else if (!letter_reply(letter, HMM_OP_PROTECT_REPLY, sizeof(struct hmm_msg_protect_reply)))
		letter_fail(letter, -ENOMEM, "out of memory for the answer");
	window_reopen(owner, message->addr, message->addr + message->length);
	worker_reply(owner->worker, letter);
}

static void next_block(struct protection *protection, uint64_t at)
{
	protection->at = at;
	protection->since = protection->owner->worker->now;
	protection->transits = 0;
}

static void wait_a_moment(struct protection *protection)
{
	struct owner *owner = protection->owner;

	protection->transits = 0;
	TAILQ_INSERT_TAIL(&owner->retry, &protection->task, link);
	worker_alarm(owner->worker, owner->worker->now + NS_PER_MS);
}

/* Return: false when the task waits, and will be run again. */
static bool step(struct protection *protection, struct block *block)
{
	struct owner *owner = protection->owner;
	uint64_t start = protection->at > block->addr ? protection->at : block->addr;
	uint64_t end = block->addr + HMM_BLOCK_SIZE;
	int r;

	if (protection->end < end)
		end = protection->end;
	/* A card writes where it could before; its driver asks anew. At rest or not. */
	if (dma_reaches(block, page_index(start), page_index(end - 1) + 1))
		dma_withdraw(block, HMM_REASON_PROTECT);
	if (!block_at_rest(block)) {
		block_park(block, &protection->task);
		return false;
	}
	if (owner->worker->now - protection->since > FOLLOW_NS) {
		give_up(block, page_index(start), page_index(end - 1) + 1);
		next_block(protection, end);
		return true;
	}
	r = protection->transits++ == TRANSITS ? -EAGAIN :
		protect_follow(block, page_index(start), page_index(end - 1) + 1);
	if (r < 0) {
		wait_a_moment(protection);
		return false;
	}
	if (r == 0)
		next_block(protection, end);
	return true;
}

static void protection_run(struct task *task)
{
	struct protection *protection = (struct protection *)task;
	struct owner *owner = protection->owner;
	struct block *block;

	while (!owner->gone && protection->at < protection->end &&
	       (block = block_next(owner, protection->at, protection->end)))
		if (!step(protection, block))
			return;
	finish(protection);
}

static struct protection *protection_new(struct owner *owner, uint64_t start, uint64_t end)
{
	struct protection *protection = calloc(1, sizeof(*protection));

	if (!protection)
		return NULL;
	protection->task.run = protection_run;
	protection->owner = owner;
	protection->end = end;
	LIST_INSERT_HEAD(&owner->protections, protection, of_owner);
	next_block(protection, start);
	owner_queue(owner, &protection->task);
	return protection;
}

void protect_request(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_protect *message = (const void *)letter->message;
	struct protection *protection = protection_new(owner, message->addr, message->addr + message->length);

	if (protection) {
		protection->letter = letter;
		return;
	}
	letter_fail(letter, -ENOMEM, "out of memory");
	worker_reply(owner->worker, letter);
}

void protect_deinit(struct owner *owner)
{
	struct protection *protection;

	while ((protection = LIST_FIRST(&owner->protections))) {
		LIST_REMOVE(protection, of_owner);
		if (protection->letter)
			letter_free(protection->letter);
		free(protection);
	}
}

void protect_anew(struct owner *owner, uint64_t start, uint64_t end)
{
	if (!protection_new(owner, start, end))
		window_revoke_range(owner, start, end, -ENOMEM);
}
