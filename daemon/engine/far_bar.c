// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * far_bar.c - pages whose memory is a BAR of a card: what a driver does with its copy engine hmmd
 * does here itself, in the same transits. Runs on the owner's worker.
 *
 * Out: each page of a "store" gets a frame and is copied there; when all are, and the card still
 * answers, they become far. Home: each page of a "fetch" is copied into the shadow; when all are,
 * and the card still answers, they are ordinary D pages. A BAR may be slow (a load can take a
 * microsecond), so it goes by pieces, one at once and the rest with the worker's next turns.
 *
 * A frame is the mirror's, by a claim that outlives hmmd (bar.h) and stands in the journal as its
 * token, from before it is written until the ledger says no more that a page is there. A successor
 * keeps what the ledger knows of, and frees the rest.
 *
 * A card that the kernel wants back has no frame for anybody, and what is there comes home, again and again where
 * some cannot: every second, since control looks so often whether nothing is left.
 *
 * What can fail: no frame is free (the page goes home); a copy, or the look at the card behind it
 * (a page that was to go out goes home, one that was to come home is asked for later again); the
 * card has stopped to answer: nothing that was copied since it did is believed, and every page in it
 * is lost, E.
 */
#include <errno.h>
#include <stdlib.h>

#include "engine/far.h"
#include "engine/far_bar.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"

#define PIECE	     16U /* pages */
#define PIECES	     4U	 /* of one turn of the worker */
#define RECALL_NS    (1000 * NS_PER_MS)

bool far_bar_is_lost(const struct mirror *mirror)
{
	const struct device *device = mirror->device;

	return device_has_bar(device) && (!device->bar || bar_is_lost(device->bar));
}

bool far_bar_is_recalled(const struct mirror *mirror)
{
	const struct device *device = mirror->device;

	return device_has_bar(device) && device->bar && bar_is_recalled(device->bar);
}

static void recalled_home(struct owner *owner, void *data, uint64_t pages)
{
	struct mirror *mirror = mirror_by_id(owner, (uint32_t)(uintptr_t)data);

	if (!mirror)
		return;
	mirror->homing = false;
	mirror->homing_again = owner->worker->now + RECALL_NS;
	log_info("owner %u: %lu pages on %s are home, its card is wanted back; %lu are there still", owner->id, pages,
		 mirror->device->name, mirror->far_pages);
}

static void recall(struct mirror *mirror, int64_t now)
{
	struct owner *owner = mirror->owner;

	if (!mirror->far_pages || far_bar_is_lost(mirror) || mirror->homing || owner->closing ||
	    mirror->homing_again > now)
		return;
	mirror->homing = true;
	migrate_home(owner, 0, HMM_VA_END, mirror->device, recalled_home, (void *)(uintptr_t)mirror->id);
}

/* ---- frames ---------------------------------------------------------------------------------- */

static uint32_t take(struct mirror *mirror)
{
	struct device *device = mirror->device;
	uint32_t number = FRAME_NONE;

	if (atomic_fetch_add(&device->bar_used, 1) < device->bar_pages)
		number = bar_take(device->bar, mirror->claim);
	if (number == FRAME_NONE)
		atomic_fetch_sub(&device->bar_used, 1);
	return number;
}

void far_bar_release(struct mirror *mirror, uint32_t number)
{
	struct device *device = mirror->device;

	if (device->bar && bar_release(device->bar, number, mirror->claim))
		atomic_fetch_sub(&device->bar_used, 1);
}

static void new_claim(struct mirror *mirror)
{
	struct hmm_journal_mirror *note = &mirror->owner->journal->mirror[mirror->index];
	struct bar *bar = mirror->device->bar;

	mirror->claim = bar_claim(bar, mirror->owner->pid);
	/* Never the one with the other's contents. */
	note->token = 0;
	__atomic_store_n(&note->contents, bar_contents(bar), __ATOMIC_RELEASE);
	__atomic_store_n(&note->token, mirror->claim, __ATOMIC_RELEASE);
}

int far_bar_begin(struct mirror *mirror)
{
	struct bar *bar = mirror->device->bar;

	if (!bar)
		return 0;
	new_claim(mirror);
	return mirror->claim ? 0 : -ENOSPC;
}

void far_bar_adopt(struct mirror *mirror)
{
	struct bar *bar = mirror->device->bar;
	const struct hmm_journal_mirror *note = &mirror->owner->journal->mirror[mirror->index];

	if (!bar)
		return;
	/* Where it is not known any more, nor are its pages. */
	if (bar_reclaim(bar, note->contents, note->token))
		mirror->claim = note->token;
	else
		new_claim(mirror);
	atomic_fetch_add(&mirror->device->bar_used, bar_count(bar, mirror->claim));
}

void far_bar_end(struct mirror *mirror)
{
	struct device *device = mirror->device;
	uint32_t n;

	if (!device->bar)
		return;
	n = mirror->owner->abandoned ? bar_leave(device->bar, mirror->claim)
				     : bar_unclaim(device->bar, mirror->claim);
	atomic_fetch_sub(&device->bar_used, n);
}

/* ---- copying --------------------------------------------------------------------------------- */

static void store_page(struct ask *ask, const struct shadow *shadow, unsigned int i)
{
	struct bar *bar = ask->mirror->device->bar;
	uint32_t number = take(ask->mirror);

	if (number != FRAME_NONE &&
	    bar_store(bar, number, shadow->fd, page_addr(ask->block, i) - shadow->base)) {
		far_bar_release(ask->mirror, number);
		number = FRAME_NONE;
	}
	ask->number[i] = number;
}

static void fetch_page(struct ask *ask, const struct shadow *shadow, unsigned int i)
{
	struct bar *bar = ask->mirror->device->bar;
	uint32_t number = block_far_number(ask->block, i);

	/* Whatever the ledger says: nobody is given another's page. */
	if (!bar_has(bar, number, ask->mirror->claim))
		pages_set(&ask->failed, i);
	else if (bar_fetch(bar, number, shadow->fd, page_addr(ask->block, i) - shadow->base))
		pages_set(&ask->later, i);
}

static void store_end(struct ask *ask, bool believed)
{
	uint32_t numbers[HMM_BLOCK_PAGES];
	uint64_t moved[HMM_BITMAP_WORDS] = {0};
	uint16_t order[HMM_BLOCK_PAGES];
	unsigned int n = far_ask_order(ask, order);

	for (unsigned int k = 0; k < n; k++) {
		unsigned int i = order[k];

		numbers[k] = ask->number ? ask->number[i] : FRAME_NONE;
		if (numbers[k] == FRAME_NONE || (believed && !pages_test(&ask->block->dead, i)))
			continue;
		far_bar_release(ask->mirror, numbers[k]);
		numbers[k] = FRAME_NONE;
	}
	/* From now on they are the ledger's. */
	free(ask->number);
	ask->number = NULL;
	far_stored(ask, numbers, moved);
}

static void fetch_end(struct ask *ask, enum bar_state state)
{
	uint8_t results[HMM_BLOCK_PAGES];
	uint16_t order[HMM_BLOCK_PAGES];
	unsigned int n = far_ask_order(ask, order);

	for (unsigned int k = 0; k < n; k++)
		if (state == BAR_LOST || pages_test(&ask->failed, order[k]))
			results[k] = HMM_FAR_RESULT_LOST;
		else if (state == BAR_UNSURE || pages_test(&ask->later, order[k]))
			results[k] = HMM_FAR_RESULT_MEMORY;
		else
			results[k] = HMM_FAR_RESULT_HERE;
	ask->copied = ask->later = (struct pages){0};
	far_fetched(ask, results);
}

static void end(struct ask *ask, enum bar_state state)
{
	struct worker *worker = ask->block->owner->worker;

	/* All others that are there are lost with these. */
	if (state == BAR_LOST)
		worker_alarm(worker, worker->now);
	if (far_is_store(ask))
		store_end(ask, state == BAR_HERE);
	else
		fetch_end(ask, state);
}

/* True: there is more to copy. */
static bool copy_piece(struct ask *ask, const struct shadow *shadow)
{
	uint16_t order[HMM_BLOCK_PAGES];
	unsigned int n = far_ask_order(ask, order), done = 0;

	for (unsigned int k = 0; k < n; k++) {
		unsigned int i = order[k];

		if (pages_test(&ask->copied, i))
			continue;
		if (done == PIECE)
			return true;
		pages_set(&ask->copied, i);
		/* Unmapped or discarded meanwhile. */
		if (pages_test(&ask->block->dead, i))
			continue;
		if (far_is_store(ask))
			store_page(ask, shadow, i);
		else
			fetch_page(ask, shadow, i);
		done++;
	}
	return false;
}

static bool begin(struct ask *ask, struct shadow **shadow)
{
	if (far_is_store(ask) && !ask->number) {
		ask->number = malloc(HMM_BLOCK_PAGES * sizeof(*ask->number));
		if (!ask->number)
			return false;
		for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
			ask->number[i] = FRAME_NONE;
	}
	return !mirror_shadow(ask->mirror, ask->block->addr, shadow);
}

void far_bar_copy(struct ask *ask)
{
	struct owner *owner = ask->block->owner;
	enum bar_state state;
	struct shadow *shadow;
	bool more;

	ask->again = 0;
	if (far_bar_is_lost(ask->mirror)) {
		end(ask, BAR_LOST);
		return;
	}
	if (!begin(ask, &shadow)) {
		end(ask, BAR_UNSURE);
		return;
	}
	more = copy_piece(ask, shadow);
	state = bar_check(ask->mirror->device->bar);
	if (state != BAR_HERE || !more) {
		end(ask, state);
	} else {
		far_ask_again_in(ask, 0);
		TAILQ_REMOVE(&owner->asks, ask, link);
		TAILQ_INSERT_TAIL(&owner->asks, ask, link);
	}
}

static struct ask *find_due(struct owner *owner, int64_t now)
{
	struct ask *ask;

	TAILQ_FOREACH(ask, &owner->asks, link) {
		if (!ask->again || !device_has_bar(ask->mirror->device))
			continue;
		if (ask->again <= now)
			return ask;
		worker_alarm(owner->worker, ask->again);
	}
	return NULL;
}

void far_bar_recall(struct owner *owner, int64_t now)
{
	for (unsigned int i = 0; i < MIRRORS_MAX; i++)
		if (owner->mirror[i] && far_bar_is_recalled(owner->mirror[i]))
			recall(owner->mirror[i], now);
}

bool far_bar_is_due(const struct owner *owner, bool *any)
{
	const struct ask *ask;

	TAILQ_FOREACH(ask, &owner->asks, link) {
		if (!device_has_bar(ask->mirror->device))
			continue;
		*any = true;
		if (ask->again && ask->again <= owner->worker->now)
			return true;
	}
	return false;
}

void far_bar_tick(struct owner *owner, int64_t now)
{
	struct ask *ask;

	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		struct mirror *mirror = owner->mirror[i];

		if (mirror && mirror->far_pages && far_bar_is_lost(mirror))
			far_lose_all(mirror, mirror->device->bar ? "its card does not answer" :
								   "its card could not be had again");
	}
	for (unsigned int n = 0; n < PIECES && (ask = find_due(owner, now)); n++)
		far_bar_copy(ask);
	if (find_due(owner, now))
		worker_alarm(owner->worker, now);
}

/* ---- after a restart ------------------------------------------------------------------------- */

struct found {
	struct mirror *mirror;
	uint64_t *numbers; /* a bit for each page that the ledger says is there; NULL: no memory for that */
	unsigned int lost;
};

static void claim_block(struct block *block, void *data)
{
	struct found *found = data;

	if (block_mirror(block) != found->mirror)
		return;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		uint32_t number = block_far_number(block, i);

		if (!page_is_far(block, i))
			continue;
		/* Twice the same: in the middle of an mremap, whose event is replayed. */
		if (bar_has(found->mirror->device->bar, number, found->mirror->claim)) {
			if (found->numbers)
				found->numbers[number / 64] |= 1ULL << (number % 64);
			continue;
		}
		/* The card has been somebody else's, or this is no ledger of ours. */
		far_lose(block, i);
		found->lost++;
	}
}

void far_bar_recover(struct owner *owner)
{
	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		struct found found = {.mirror = owner->mirror[i]};
		struct device *device;

		if (!found.mirror || !found.mirror->device->bar)
			continue;
		device = found.mirror->device;
		found.numbers = calloc(bar_pages(device->bar) / 64 + 1, sizeof(*found.numbers));
		block_for_each(owner, 0, HMM_VA_END, claim_block, &found);
		/* Otherwise what is left over is free when the mirror is gone. */
		if (found.numbers && !owner->unsettled)
			atomic_fetch_sub(&device->bar_used, bar_keep(device->bar, found.mirror->claim, found.numbers));
		free(found.numbers);
		if (found.lost)
			log_error("owner %u: %u pages on %s are not in its BAR: lost", owner->id,
				  found.lost, found.mirror->device->name);
	}
}
