/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * errand.c - advice that sends pages: PIN and ACCESSED_BY. Runs on the owner's worker.
 *
 * PIN sends every page to the device, piece by piece. Only when all are there it is noted; else
 * what it has moved comes home again, and the answer names the page that can't be
 * there and why. Of what it has moved it remembers runs; of a range the length of a
 * piece, whatever its own. Meanwhile the range counts as pinned, or its first pages could be
 * evicted for its last.
 *
 * ACCESSED_BY sends what may go to the device and has copies of it sent home, so
 * that both have it. Best effort, and no more than the device's size. What is not
 * there at all it passes by.
 *
 * What can fail: PIN, for want of room or for pages that can't be there, and memory.
 */
#include "engine/errand.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

/* However long a range is, so much of it is on its way at a time. */
#define PIECE_MAX (64UL << 20)
#define PIECE_PAGES (PIECE_MAX / HMM_PAGE_SIZE)
/* Runs of pages that a pin remembers to have moved. What it finds on the device already parts them. */
#define RUNS_MAX 65536U
#define RUNS_STEP 256U

struct run {
	uint64_t start, end;
};

struct errand {
	struct task task;
	struct pinning pinning;		/* of a PIN: in the owner's list */
	struct owner *owner;
	struct letter *letter;
	struct mirror *mirror;
	struct change change;
	uint64_t start, end;
	uint64_t at, stop;		/* the piece that is under way */
	uint64_t journey;		/* of all pieces */
	uint64_t next;			/* ACCESSED_BY: where on the second way */
	uint64_t promise;		/* PIN: bytes that may be pinned for it */
	struct run *runs;		/* PIN: pages that have gone out for it */
	unsigned int n_runs, undone;
	uint8_t results[PIECE_PAGES];	/* of the piece's way out, one per page */
};

static bool pins(const struct errand *errand)
{
	return errand->change.advice == HMM_ADVICE_PIN;
}

static uint64_t pages_between(uint64_t start, uint64_t end)
{
	return (end - start) >> HMM_PAGE_SHIFT;
}

static void errand_end(struct errand *errand)
{
	struct owner *owner = errand->owner;

	if (pins(errand))
		TAILQ_REMOVE(&owner->pinnings, &errand->pinning, link);
	owner_break_promise(owner, &errand->promise);
	errand->mirror->migrations--;
	owner->jobs--;
	if (errand->letter->error)
		worker_reply(owner->worker, errand->letter);
	else
		advise_answer(owner, errand->letter);
	free(errand->runs);
	free(errand);
}

/* The next run of the piece's pages that have gone out, at or after @from. */
static bool moved_run(const struct errand *errand, uint64_t from, struct run *run)
{
	uint64_t pages = pages_between(errand->at, errand->stop), i = pages_between(errand->at, from);

	while (i < pages && errand->results[i] != HMM_PAGE_RESULT_MOVED)
		i++;
	if (i == pages)
		return false;
	run->start = errand->at + (i << HMM_PAGE_SHIFT);
	while (i < pages && errand->results[i] == HMM_PAGE_RESULT_MOVED)
		i++;
	run->end = errand->at + (i << HMM_PAGE_SHIFT);
	return true;
}

static void next_piece(struct errand *errand)
{
	errand->at = errand->stop;
	owner_queue(errand->owner, &errand->task);
}

/* ---- ... ACCESSED_BY: piece by piece, out and as copies home */

static void copy_home(struct owner *owner, void *data, uint64_t pages)
{
	struct errand *errand = data;
	struct run run;

	(void)pages;
	if (!moved_run(errand, errand->next, &run)) {
		next_piece(errand);
		return;
	}
	errand->next = run.end;
	if (migrate_copies(errand->mirror, run.start, run.end, copy_home, errand)) {
		log_warn("owner %u: out of memory: its device has pages to itself that both should have",
			 owner->id);
		errand_end(errand);
	}
}

/* Some of its pages are on a device, this one or another, or on their way. */
static bool has_any(const struct block *block)
{
	return block && (!block_at_rest(block) || block_count(block, HMM_PAGE_INVALID) != HMM_BLOCK_PAGES);
}

static uint64_t block_stop(const struct errand *errand, uint64_t addr)
{
	uint64_t stop = (addr & ~(HMM_BLOCK_SIZE - 1)) + HMM_BLOCK_SIZE;

	return stop < errand->end ? stop : errand->end;
}

/* In @addr's block, the first page from there on that is anywhere; or where the block stops, or the range. */
static uint64_t first_there(const struct errand *errand, struct kernel_vma *vma, uint64_t addr)
{
	struct owner *owner = errand->owner;
	uint64_t entries[HMM_BLOCK_PAGES], stop = block_stop(errand, addr);

	if (has_any(block_find(owner, addr)))
		return addr;
	/* Nothing is mapped from there on, or it can't be told: the mm is gone. */
	if (addr >= vma->end && mapping_at(owner, addr, vma))
		return stop;
	if (vma->start >= stop)
		return stop;
	if (kernel->pagemap_read(owner->pagemap, addr, pages_between(addr, stop), entries))
		return stop;
	for (unsigned int i = 0; i < pages_between(addr, stop); i++)
		if (entries[i] & (PM_PRESENT | PM_SWAP))
			return addr + ((uint64_t)i << HMM_PAGE_SHIFT);
	return stop;
}

/*
 * The next piece: blocks of which some page is anywhere. Nothing else has to go, and hmmd
 * has no part in blocks that have none. False: there is none as far as a piece, or a gap.
 */
static bool find_piece(struct errand *errand)
{
	struct kernel_vma vma = { 0 };
	uint64_t looked = 0;

	while (errand->at < errand->end && looked++ < PIECE_MAX / HMM_BLOCK_SIZE) {
		uint64_t stop = block_stop(errand, errand->at);

		errand->at = first_there(errand, &vma, errand->at);
		if (errand->at < stop)
			break;
		/* Over what is not mapped in one step, unless blocks are there still. */
		if (vma.start > errand->at && !block_next(errand->owner, errand->at, vma.start))
			errand->at = vma.start < errand->end ? vma.start : errand->end;
	}
	if (errand->at == errand->end || looked > PIECE_MAX / HMM_BLOCK_SIZE)
		return false;
	errand->stop = block_stop(errand, errand->at);
	while (errand->stop < errand->end && errand->stop - errand->at <= PIECE_MAX - HMM_BLOCK_SIZE &&
	       first_there(errand, &vma, errand->stop) < block_stop(errand, errand->stop))
		errand->stop = block_stop(errand, errand->stop);
	return true;
}

/* ---- ... PIN: everything out, or everything that went home again */

static void undo_pin(struct owner *owner, void *data, uint64_t pages)
{
	struct errand *errand = data;
	const struct run *run;

	(void)pages;
	if (errand->undone == errand->n_runs) {
		errand_end(errand);
		return;
	}
	run = &errand->runs[errand->undone++];
	migrate_home_unless_pinned(errand->mirror, run->start, run->end, undo_pin, errand);
}

/* What has gone out in this piece is remembered, for it may have to come home. */
static int note_moved(struct errand *errand)
{
	uint64_t from = errand->at;
	struct run run;

	for (; moved_run(errand, from, &run); from = run.end) {
		struct run *last = errand->n_runs ? &errand->runs[errand->n_runs - 1] : NULL;

		if (last && last->end == run.start) {
			last->end = run.end;
			continue;
		}
		/* Of one piece all are remembered, so that nothing is left behind. */
		if (errand->n_runs % RUNS_STEP == 0) {
			struct run *more = realloc(errand->runs, (errand->n_runs + RUNS_STEP) * sizeof(*more));

			if (!more)
				return -ENOMEM;
			errand->runs = more;
		}
		errand->runs[errand->n_runs++] = run;
	}
	return errand->n_runs > RUNS_MAX ? -ENOMEM : 0;
}

/* Why not every page is on the device. False: it is. */
static bool explain(struct errand *errand)
{
	const struct device *device = errand->mirror->device;
	uint64_t tried = pages_between(errand->start, errand->stop), pages = pages_between(errand->at, errand->stop);
	uint64_t failed = 0, first = 0;
	uint8_t why = HMM_PAGE_RESULT_CHANGED;

	for (uint64_t i = 0; i < pages; i++) {
		if (errand->results[i] == HMM_PAGE_RESULT_MOVED ||
		    errand->results[i] == HMM_PAGE_RESULT_ALREADY)
			continue;
		if (!failed++) {
			first = i;
			why = errand->results[i];
		}
	}
	if (!failed)
		return false;
	if (why == HMM_PAGE_RESULT_FULL)
		letter_fail(errand->letter, -ENOSPC,
			    "%lu of %lu pages find no room: device %s has %lu of %lu bytes in use; nothing is pinned",
			    failed, tried, device->name, device_memory_used(device), device_memory(device));
	else if (why != HMM_PAGE_RESULT_QUOTA ||
		 !owner_ask_quota(errand->owner, errand->letter, QUOTA_MEMORY, failed << HMM_PAGE_SHIFT))
		letter_fail(errand->letter, page_result_error(why),
			    "%lu of %lu pages can't be on device %s; page %#lx: %s; nothing is pinned", failed,
			    tried, device->name, errand->at + (first << HMM_PAGE_SHIFT),
			    hmm_page_result_name(why));
	return true;
}

static void pin_piece(struct errand *errand)
{
	int r = note_moved(errand);

	if (r)
		letter_fail(errand->letter, r,
			    "too many of the range's pages are on the device already, each by itself; nothing is pinned");
	if (r || explain(errand))
		undo_pin(errand->owner, errand, 0);
	else
		next_piece(errand);
}

/*
 * What of the range is not pinned yet, and so not counted, is promised; or the letter says why not. Asked again after a restart it may have
 * been done, and what was pinned before may be no more when it comes to be noted.
 */
static int promise_rest(struct errand *errand)
{
	const struct owner *owner = errand->owner;
	uint64_t bytes = 0;

	for (uint64_t at = errand->start; at < errand->end;) {
		struct hmm_attribute here = attribute_at(&owner->attributes, at);
		uint64_t end = here.end < errand->end ? here.end : errand->end;

		bytes += here.flags & HMM_ATTRIBUTE_PIN ? 0 : end - at;
		at = end;
	}
	if (bytes <= errand->promise)
		return 0;
	return owner_promise_pins(errand->owner, errand->letter, bytes - errand->promise, &errand->promise);
}

/* All pieces have gone out: it holds, if nobody has taken a page since. */
static void pin_all(struct errand *errand)
{
	struct owner *owner = errand->owner;

	if (advise_pages_on_device(owner, errand->start, errand->end, errand->mirror, true) !=
	    pages_between(errand->start, errand->end)) {
		letter_fail(errand->letter, -EBUSY,
			    "the CPU took pages of the range while it was being pinned; nothing is pinned");
	} else if (!promise_rest(errand) && !advise_note(owner, errand->letter, &errand->change)) {
		owner_count_pins(owner, &errand->promise);
		window_reopen(owner, errand->start, errand->end);
	}
	if (errand->letter->error)
		undo_pin(owner, errand, 0);
	else
		errand_end(errand);
}

/* ---- ... both */

static void piece_is_out(struct owner *owner, void *data, uint64_t pages)
{
	struct errand *errand = data;

	(void)pages;
	if (pins(errand)) {
		pin_piece(errand);
		return;
	}
	errand->next = errand->at;
	copy_home(owner, errand, 0);
}

static void errand_run(struct task *task)
{
	struct errand *errand = (struct errand *)task;
	struct owner *owner = errand->owner;

	if (!pins(errand) && (owner->gone || owner->closing || errand->mirror->leaving))
		errand->at = errand->end;
	if (!pins(errand) && errand->at < errand->end && !find_piece(errand) && errand->at < errand->end) {
		/* Others' turn, in between. */
		TAILQ_INSERT_TAIL(&owner->retry, &errand->task, link);
		worker_alarm(owner->worker, owner->worker->now);
		return;
	}
	if (errand->at == errand->end) {
		if (pins(errand))
			pin_all(errand);
		else
			errand_end(errand);
		return;
	}
	if (pins(errand))
		errand->stop = errand->end - errand->at > PIECE_MAX ? errand->at + PIECE_MAX : errand->end;
	memset(errand->results, HMM_PAGE_RESULT_ERROR, sizeof(errand->results));
	if (migrate_to(errand->mirror, errand->at, errand->stop, pins(errand), errand->results, errand->journey,
		       piece_is_out, errand)) {
		letter_fail(errand->letter, -ENOMEM, "out of memory for a migration");
		undo_pin(owner, errand, 0);
	}
}

int errand_begin(struct owner *owner, struct letter *letter, struct mirror *mirror,
		 const struct change *change)
{
	const struct hmm_msg_advise *message = (const void *)letter->message;
	bool pin = change->advice == HMM_ADVICE_PIN;
	uint64_t length = message->length;
	struct errand *errand;

	/* Before anything is moved. */
	if (pin && device_is_far(mirror->device) && device_faults(mirror->device))
		return letter_fail(letter, -EOPNOTSUPP,
				   "nothing can be pinned on %s, in memory that only %s: a touch of the CPU takes it home",
				   mirror->device->name, device_reached_by(mirror->device));
	if (pin && length > device_memory(mirror->device))
		return letter_fail(letter, -ENOSPC,
				   "a range of %lu bytes can't be pinned: device %s has %lu, %lu of them in use",
				   message->length, mirror->device->name, device_memory(mirror->device),
				   device_memory_used(mirror->device));
	/* Of a larger range the beginning: whatever is touched later follows. */
	if (!pin && length > mirror->device->size)
		length = mirror->device->size & ~(HMM_PAGE_SIZE - 1);
	errand = calloc(1, sizeof(*errand));
	if (!errand)
		return letter_fail(letter, -ENOMEM, "out of memory for advice");
	errand->task.run = errand_run;
	errand->owner = owner;
	errand->letter = letter;
	errand->mirror = mirror;
	errand->change = *change;
	errand->journey = migrate_new_journey(owner);
	errand->start = errand->at = errand->pinning.start = message->addr;
	errand->end = errand->pinning.end = message->addr + length;
	if (pin && promise_rest(errand)) {
		free(errand);
		return letter->error;
	}
	if (pin)
		TAILQ_INSERT_TAIL(&owner->pinnings, &errand->pinning, link);
	mirror->migrations++;
	owner->jobs++;
	owner_queue(owner, &errand->task);
	return 0;
}
