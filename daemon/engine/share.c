/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * share.c - ordinary memory becomes coherent (state C) in place, and back, while
 * its program runs. Runs on the owner's worker.
 *
 * Happy path of SHARE: a migration takes each block to the device, holes as zeros;
 * the job whose block is D as a whole opens the transit, before a fault could
 * bring a page home, and orders the agent to map the shadow in the block's place.
 * The kernel exchanges the mappings at once; who touches a page meanwhile is parked
 * in the block, and goes on over the new mapping. Windows show the shadow's pages
 * before and after.
 *
 * UNSHARE is the same exchange the other way round: the agent moves armed, empty
 * memory there, which leaves the block D; its pages come home as ever.
 *
 * The exchange raises an event of its own (UNMAP of what was armed, REMAP of what
 * gets armed), and the agent is in it until that is read: so the order counts
 * after the event, as the zap of the base engine does (order.c). Whether it was done
 * is the order's word alone, after a crash, too.
 *
 * What can fail: a page that may not leave (its result says why), a mapping that
 * the owner has no room for, or that the program has protected or replaced. SHARE stops at the first, and its caller, the library,
 * takes back what had become coherent; both requests may be asked again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/job.h"
#include "engine/worker.h"
#include "log.h"

/* How long a page may be pinned, or a map change, before it is a reason. A discard may take 2 s to be done. */
#define PATIENCE_NS	(3000 * NS_PER_MS)

struct share {
	struct letter *letter;
	struct migration *migration;
	uint64_t promise;		/* bytes that may be pinned for it */
	bool refused;			/* by a block: the others need not begin */
	int error;			/* of an exchange */
};

/* ---- the exchange ------------------------------------------------------------------ */

/* D is C and C is D, if it was done. What was voided is nobody's, unless the exchange itself voided it. */
static void exchange_end(struct block *block, bool done)
{
	struct share *share = block->move.job ? block->move.job->migration->share : NULL;
	struct pages *want = &block->move.want;
	unsigned int first = 0, end;
	bool lost = false;

	for (; pages_run(want, &first, &end); first = end)
		for (unsigned int i = first; i < end; i++) {
			enum hmm_page_state state = page_state(block, i);
			bool cohere = state == HMM_PAGE_DEVICE;

			if (done)
				state = cohere ? HMM_PAGE_COHERENT : HMM_PAGE_DEVICE;
			if (pages_test(&block->dead, i) && !(done && cohere)) {
				state = HMM_PAGE_INVALID;
				lost = true;
			}
			block_set_state(block, i, i + 1, state);
		}
	block->touched = true;
	block->record->flags &= ~HMM_BLOCK_HUGE;
	/* Set aside when it began. */
	if (share)
		share->promise += HMM_BLOCK_SIZE;
	if (block_count(block, HMM_PAGE_COHERENT)) {
		block_note_disarmed(block);
		block_keep(block, share ? &share->promise : NULL);
	} else if (block->kept) {
		/* It may be evicted again, in its turn. */
		block_cool(block);
		block_touch(block);
	}
	transit_end(block);
	block_settle_later(block);
	if (lost && block_has_window(block)) {
		block_punch_stale(block);
		window_wake(block, 0, HMM_BLOCK_PAGES);
	}
}

static bool is_coherent(const struct block *block)
{
	return block_count(block, HMM_PAGE_COHERENT) != 0;
}

static const char *why_not(int error)
{
	return error == -EPERM ? "the program has protected it" :
	       error == -EFAULT ? "something else is mapped there, or nothing" :
				  strerror(-error);
}

/*
 * The new mapping may be read and written, so the old one has to be so all through, or the exchange would undo an
 * mprotect(). What is coherent is the shadow's mapping still: nothing tells hmmd of what the program mapped in its place.
 * A hole where ordinary memory was is the event's business. Return: 0, -EPERM, -EFAULT or what looking failed with.
 */
static int check_rights(const struct block *block)
{
	uint64_t at = block->addr, end = block->addr + HMM_BLOCK_SIZE;
	bool coherent = is_coherent(block);
	struct kernel_vma vma;
	int r = 0;

	for (; at < end; at = vma.end) {
		r = mapping_at(block->owner, at, &vma);
		if (r || vma.start >= end)
			break;
		if (coherent && (vma.start > at || !vma.shared))
			return -EFAULT;
		if (!vma.read || !vma.write || vma.exec)
			return -EPERM;
	}
	if (r && r != -ENOENT)
		return r;
	return coherent && at < end ? -EFAULT : 0;
}

/* It is the program's doing. What can't be looked at now can be in a moment. */
static bool lasts(int error)
{
	return error == -EPERM || error == -EFAULT;
}

static void exchange_proceed(struct block *block)
{
	struct job *job = block->move.job;
	int error = check_rights(block);

	if (!error && pages_empty(&block->dead) && order_has_room(block->owner)) {
		order_issue(block->owner, is_coherent(block) ? HMM_ORDER_UNCOHERE : HMM_ORDER_COHERE, block,
			    HMM_NO_SLOT, &block->move.want, 0);
		return;
	}
	/* While drivers answered part of it went away or lost rights, or the ring filled up. */
	if (lasts(error))
		block->move.error = error;
	exchange_end(block, false);
	if (!job)
		return;
	if (block->move.error)
		job->migration->share->error = block->move.error;
	job_block_done(job, -ENOMEM);
}

/* Of pages that are all D, or all C. */
static void exchange_begin(struct block *block, const struct pages *all, struct job *job)
{
	block->move.want = *all;
	block->move.job = job;
	block->move.error = 0;
	/* First the ledger: what is armed is woken after a crash. */
	if (is_coherent(block))
		block_note_armed(block, 0, HMM_BLOCK_PAGES);
	transit_begin(block, HMM_TRANSIT_COHERING, all, HMM_REASON_MIGRATE, exchange_proceed);
}

/*
 * What the agent says stopped it. That the map is changing, or the block is not armed any more,
 * is seen to by asking again; the rest is only told, so it has to look like an error.
 */
static int reported_error(const struct hmm_order *shared)
{
	if (!shared->error || shared->error == -EAGAIN || shared->error == -ENOENT)
		return 0;
	return shared->error < 0 && shared->error > -4096 ? shared->error : -EIO;
}

void share_order_done(struct block *block, const struct block_order *order, const struct hmm_order *shared)
{
	bool ended = shared->state == HMM_ORDER_DONE;
	struct job *job = block->move.job;

	block->move.error = ended ? reported_error(shared) : 0;
	if (block->move.error)
		log_debug("owner %u: block %#lx: its mapping could not be exchanged: %s", block->owner->id,
			  block->addr, strerror(-block->move.error));
	ended = ended && !shared->error && !memcmp(shared->moved, order->want.word, sizeof(shared->moved));
	exchange_end(block, ended);
	if (!job)
		return;
	if (block->move.error)
		job->migration->share->error = block->move.error;
	job_block_done(job, ended ? 0 : -ENOMEM);
}

/* ---- SHARE --------------------------------------------------------------------------- */

/* A reason that may be gone in a moment: I/O ends, a map comes to rest; or the page has come home again. */
static bool may_pass(uint8_t result)
{
	return result == HMM_PAGE_RESULT_PINNED || result == HMM_PAGE_RESULT_CHANGED ||
	       result == HMM_PAGE_RESULT_MOVED || result == HMM_PAGE_RESULT_ALREADY;
}

static uint8_t result_of(const struct job *job, unsigned int i)
{
	const struct migration *migration = job->migration;
	uint64_t addr = job->block + ((uint64_t)i << HMM_PAGE_SHIFT);

	return migration->results[(addr - migration->start) >> HMM_PAGE_SHIFT];
}

static bool is_worth_waiting(struct job *job, const struct block *block)
{
	int64_t now = block->owner->worker->now;

	if (!job->since)
		job->since = now;
	if (now - job->since > PATIENCE_NS)
		return false;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (page_state(block, i) != HMM_PAGE_DEVICE && !may_pass(result_of(job, i)))
			return false;
	return true;
}

bool share_block(struct job *job, struct block *block)
{
	struct share *share = job->migration->share;
	struct owner *owner = block->owner;
	struct pages device;

	if (is_coherent(block))
		return false;	/* done, or another device's */
	if (share->refused || share->error || !is_worth_waiting(job, block)) {
		share->refused = true;
		return false;
	}
	if (block_mirror(block) == job->migration->mirror &&
	    block_pages_in(block, HMM_PAGE_DEVICE, 0, HMM_BLOCK_PAGES, &device) == HMM_BLOCK_PAGES) {
		if (!order_has_room(owner)) {
			TAILQ_INSERT_TAIL(&owner->slot_waiters, &job->task, link);
			return true;
		}
		/* It was coherent when the request came, and is no more. */
		if (share->promise < HMM_BLOCK_SIZE &&
		    owner_promise_pins(owner, share->letter, HMM_BLOCK_SIZE, &share->promise)) {
			share->refused = true;
			return false;
		}
		share->promise -= HMM_BLOCK_SIZE;
		exchange_begin(block, &device, job);
		return true;
	}
	/* All of it once more, in a moment. */
	job->reported = (struct pages){ 0 };
	job->again = true;
	job->rounds = 0;
	job_block_done(job, -ENOMEM);
	return true;
}

static void refuse(struct share *share, uint64_t addr, uint8_t result)
{
	const struct device *device = share->migration->mirror->device;

	if (result == HMM_PAGE_RESULT_MOVED || result == HMM_PAGE_RESULT_ALREADY)
		letter_fail(share->letter, -EBUSY, "page %#lx is wanted at the CPU without a pause, or the agent is stopped",
			    addr);
	else if (result == HMM_PAGE_RESULT_FULL)
		letter_fail(share->letter, -ENOSPC, "page %#lx: device %s has %lu of %lu bytes in use", addr,
			    device->name, atomic_load(&device->used), device->size);
	else if (result != HMM_PAGE_RESULT_QUOTA ||
		 !owner_ask_quota(share->migration->mirror->owner, share->letter, QUOTA_MEMORY, HMM_BLOCK_SIZE))
		letter_fail(share->letter, page_result_error(result), "page %#lx can't be shared: %s", addr,
			    hmm_page_result_name(result));
}

static bool page_is_coherent(struct owner *owner, const struct migration *migration, uint64_t addr)
{
	const struct block *block = block_find(owner, addr);

	return block && block_mirror(block) == migration->mirror &&
	       page_state(block, page_index(addr)) == HMM_PAGE_COHERENT;
}

#define NO_PAGE	UINT64_MAX

/* The first page that is not coherent, and why: better a reason that lasts than one that may pass. */
static uint64_t first_refused(struct owner *owner, const struct migration *migration, uint8_t *result)
{
	uint64_t found = NO_PAGE;

	*result = HMM_PAGE_RESULT_MOVED;
	for (uint64_t at = migration->start; at < migration->end; at += HMM_PAGE_SIZE) {
		uint8_t now = migration->results[(at - migration->start) >> HMM_PAGE_SHIFT];

		if (page_is_coherent(owner, migration, at))
			continue;
		if (!may_pass(now)) {
			*result = now;
			return at;
		}
		if (found == NO_PAGE || (*result == HMM_PAGE_RESULT_MOVED && now != HMM_PAGE_RESULT_MOVED)) {
			found = at;
			*result = now;
		}
	}
	return found;
}

static void answer(struct owner *owner, struct share *share)
{
	const struct migration *migration = share->migration;
	struct hmm_msg_share_reply *reply;
	uint8_t result;
	uint64_t at = first_refused(owner, migration, &result);

	if (at == NO_PAGE) {
		reply = letter_reply(share->letter, HMM_OP_SHARE_REPLY, sizeof(*reply));
		if (reply)
			reply->pages = (migration->end - migration->start) >> HMM_PAGE_SHIFT;
		else
			letter_fail(share->letter, -ENOMEM, "out of memory for the answer");
	} else if (share->letter->error) {
		return;
	} else if (owner->closing) {
		letter_fail(share->letter, -EAGAIN, "hmmd is going away; try again");
	} else if (migration->mirror->leaving) {
		letter_fail(share->letter, -ENOENT, "no mirror %u", migration->mirror->id);
	} else if (share->error) {
		letter_fail(share->letter, share->error, "%#lx: its mapping can't be exchanged: %s", at,
			    why_not(share->error));
	} else {
		refuse(share, at, result);
	}
}

static void reply_letter(struct owner *owner, void *letter, uint64_t pages)
{
	(void)pages;
	worker_reply(owner->worker, letter);
}

/* What went out and did not become coherent stays where it is, on a device that can fault. */
static void share_done(struct owner *owner, void *data, uint64_t pages)
{
	struct share *share = data;
	struct letter *letter = share->letter;
	struct mirror *mirror = share->migration->mirror;
	const struct hmm_msg_share *message = (const void *)letter->message;
	uint64_t start = message->addr, end = message->addr + message->length;

	(void)pages;
	answer(owner, share);
	owner_break_promise(owner, &share->promise);
	free(share);
	if (letter->error) {
		reach_leave(mirror, start, end, reply_letter, letter);
		return;
	}
	window_reopen(owner, start, end);
	reply_letter(owner, letter, 0);
}

/* Asked again after a restart, some of it is done, and counted. */
static void count_coherent(struct block *block, void *data)
{
	uint64_t *bytes = data;

	if (is_coherent(block))
		*bytes += HMM_BLOCK_SIZE;
}

static int share_begin(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_share *message = (const void *)letter->message;
	struct mirror *mirror = mirror_by_id(owner, message->mirror);
	uint64_t end = message->addr + message->length, coherent = 0, promise = 0;
	struct migration *migration;
	struct share *share;

	if (!mirror || mirror->leaving || owner->closing)
		return letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
	if (mirror_refuse_tracked(mirror, letter))
		return letter->error;
	if (device_is_far(mirror->device))
		return letter_fail(letter, -EOPNOTSUPP,
				   "%s has memory that only %s: no CPU can share it", mirror->device->name, device_reached_by(mirror->device));
	block_for_each(owner, message->addr, end, count_coherent, &coherent);
	if (owner_promise_pins(owner, letter, message->length - coherent, &promise))
		return letter->error;
	share = calloc(1, sizeof(*share));
	migration = share ? migration_new(owner, message->addr, end, true) : NULL;
	if (!migration) {
		owner_break_promise(owner, &promise);
		free(share);
		return letter_fail(letter, -ENOMEM, "out of memory to share %lu bytes", message->length);
	}
	share->letter = letter;
	share->migration = migration;
	share->promise = promise;
	migration->share = share;
	migration->to_device = true;
	migration->populate = true;
	migration->mirror = mirror;
	migration->done = share_done;
	migration->data = share;
	migration_begin(migration);
	return 0;
}

/* ---- UNSHARE ------------------------------------------------------------------------- */

#define TRIES_MAX	64

struct unsharing {
	struct task task;
	struct owner *owner;
	struct mirror *mirror;
	struct letter *letter;
	uint64_t start, at, end;
	unsigned int tries, idle;	/* of this block; those of them that came to nothing at once */
	int64_t since;			/* its first one */
	uint64_t pages;
};

static void unsharing_end(struct unsharing *unsharing, int error)
{
	struct letter *letter = unsharing->letter;
	struct hmm_msg_unshare_reply *reply;

	if (error) {
		letter_fail(letter, error, "%#lx stays coherent: its mapping can't be exchanged: %s", unsharing->at,
			    why_not(error));
	} else {
		reply = letter_reply(letter, HMM_OP_UNSHARE_REPLY, sizeof(*reply));
		if (reply)
			reply->pages = unsharing->pages;
		else
			letter_fail(letter, -ENOMEM, "out of memory for the answer");
	}
	unsharing->mirror->migrations--;
	unsharing->owner->jobs--;
	reach_leave(unsharing->mirror, unsharing->start, unsharing->end, reply_letter, letter);
	free(unsharing);
}

/* 1: it is under way, the task goes on later. 0: nothing is left to do to this block. Or -errno. */
static int unshare_block(struct unsharing *unsharing, struct block *block)
{
	struct owner *owner = unsharing->owner;
	struct pages coherent;
	int r;

	if (!block_at_rest(block)) {
		block_park(block, &unsharing->task);
		return 1;
	}
	if (!block_pages_in(block, HMM_PAGE_COHERENT, 0, HMM_BLOCK_PAGES, &coherent))
		return 0;
	if (unsharing->tries && block->move.error)
		return block->move.error;
	/* Before drivers are asked to let go of it for nothing. */
	r = check_rights(block);
	if (lasts(r))
		return r;
	if (!unsharing->tries++) {
		unsharing->since = owner->worker->now;
		unsharing->idle = 0;
	} else if (unsharing->idle == TRIES_MAX ||
		   (unsharing->tries > TRIES_MAX && owner->worker->now - unsharing->since > PATIENCE_NS)) {
		return -EBUSY;
	}
	if (!order_has_room(owner)) {
		TAILQ_INSERT_TAIL(&owner->slot_waiters, &unsharing->task, link);
		return 1;
	}
	exchange_begin(block, &coherent, NULL);
	if (block_at_rest(block)) {
		unsharing->idle++;
		owner_queue(owner, &unsharing->task);
	} else {
		block_park(block, &unsharing->task);
	}
	return 1;
}

/* One after the other: an exchange takes some microseconds. */
static void unsharing_run(struct task *task)
{
	struct unsharing *unsharing = (struct unsharing *)task;
	int r = 0;

	while (unsharing->at < unsharing->end && !r) {
		struct block *block = block_find(unsharing->owner, unsharing->at);

		if (unsharing->owner->gone)
			r = -ESTALE;
		else if (block && block_mirror(block) == unsharing->mirror)
			r = unshare_block(unsharing, block);
		if (r)
			break;
		unsharing->pages += unsharing->tries ? HMM_BLOCK_PAGES : 0;
		unsharing->tries = 0;
		unsharing->at += HMM_BLOCK_SIZE;
	}
	if (r <= 0)
		unsharing_end(unsharing, r);
}

static int unsharing_begin(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_unshare *message = (const void *)letter->message;
	struct mirror *mirror = mirror_by_id(owner, message->mirror);
	struct unsharing *unsharing;

	if (!mirror || mirror->leaving)
		return letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
	if (owner->closing)
		return letter_fail(letter, -EAGAIN, "hmmd is going away; try again");
	unsharing = calloc(1, sizeof(*unsharing));
	if (!unsharing)
		return letter_fail(letter, -ENOMEM, "out of memory");
	*unsharing = (struct unsharing){
		.task.run = unsharing_run,
		.owner = owner,
		.mirror = mirror,
		.letter = letter,
		.start = message->addr,
		.at = message->addr,
		.end = message->addr + message->length,
	};
	mirror->migrations++;	/* the mirror stays while it runs */
	owner->jobs++;
	owner_queue(owner, &unsharing->task);
	return 0;
}

/* The two messages have the same fields. */
_Static_assert(sizeof(struct hmm_msg_share) == sizeof(struct hmm_msg_unshare) &&
		       offsetof(struct hmm_msg_share, addr) == offsetof(struct hmm_msg_unshare, addr),
	       "share_request() looks at both");

void share_request(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_share *message = (const void *)letter->message;
	int r;

	if ((message->addr | message->length) % HMM_BLOCK_SIZE)
		r = letter_fail(letter, -EINVAL, "coherent memory comes in blocks of 2 MiB");
	else
		r = letter->message->opcode == HMM_OP_SHARE ? share_begin(owner, letter)
							    : unsharing_begin(owner, letter);
	if (r)
		worker_reply(owner->worker, letter);
}
