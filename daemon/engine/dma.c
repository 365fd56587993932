/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dma.c - pages into the IOMMU of a mirror's card, and out of it. Runs on the owner's worker.
 *
 * Happy path: a driver has looked at a range and asks that its card reach it. Of each block
 * those pages are mapped that lie still on the device (coherent, or pinned there: reach.c), and for
 * reading those that the CPU reads as well: the bytes are the shadow's, the addresses the owner's. The kernel populates what is a hole in the
 * shadow, which is zeros. A run of pages is one mapping, and the kernel splits none; so what is
 * taken out is always all of a block, and the driver hears that all of it is gone (dma_widen).
 * Where the device's memory is another card's BAR, pages that lie side by side there are a run, and
 * the card reaches them from card to card.
 *
 * It goes by number: the block's has changed then, so no range is valid that says otherwise.
 * Whoever finds his range valid after he was answered has what he was told.
 *
 * Never from a fault, and nobody waits: a block in transit has an odd number, so the range is not
 * valid, and the driver comes back.
 *
 * Whoever had something mapped last is the card's driver: when his connection ends the card stops,
 * until somebody maps again.
 *
 * A card that the kernel wants back (card.h) maps no more. Its driver is told of all addresses, and when it has
 * answered, or is too late, nothing is mapped and the owner leaves the card.
 *
 * What can fail: the limits of the IOMMU and of locked memory, in words (card_explain()). Then the
 * whole range is out again. Taking out does not fail.
 */
#include "engine/dma.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/worker.h"
#include "memory/bar.h"
#include "memory/card.h"

/* Ranges of a mirror that have something mapped. */
#define TRANSFERS_MAX 4096U

static struct card *card_of(const struct mirror *mirror)
{
	return mirror ? atomic_load(&mirror->device->card) : NULL;
}

int dma_check_driver(const struct device *device, struct letter *letter)
{
	const struct card *card = atomic_load(&device->card);

	if (!card || card_allows(card, letter->uid, letter->gid))
		return 0;
	return letter_fail(letter, -EACCES,
			   "%s is the card %s: user %u may not open its group in /dev/vfio",
			   device->name, card_address(card), letter->uid);
}

/* ---- out of it ----------------------------------------------------------------------- */

static const struct block_dma nothing;

static const struct block_dma *dma_of(const struct block *block)
{
	return block->dma ? block->dma : &nothing;
}

static void drop(struct block *block)
{
	if (!block->dma)
		return;
	card_unmap(card_of(block_mirror(block)), block->addr, HMM_BLOCK_SIZE);
	free(block->dma);
	block->dma = NULL;
}

void dma_cut(struct block *block, const struct pages *pages)
{
	uint64_t reached = 0;

	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		reached |= dma_of(block)->reached.word[w] & pages->word[w];
	if (!reached)
		return;
	drop(block);
	owner_count(block->owner, COUNTER_DMA_CUTS, 1);
}

bool dma_reaches(const struct block *block, unsigned int first, unsigned int end)
{
	for (; first < end; first++)
		if (pages_test(&dma_of(block)->reached, first))
			return true;
	return false;
}

void dma_widen(const struct mirror *mirror, const struct block *block, uint64_t *start,
	       uint64_t *end)
{
	unsigned int first = 0, stop = 0;

	if (block_mirror(block) != mirror ||
	    !dma_reaches(block, page_index(*start), page_index(*end - 1) + 1))
		return;
	pages_run(&dma_of(block)->reached, &first, &stop);
	if (page_addr(block, first) < *start)
		*start = page_addr(block, first);
	for (; pages_run(&dma_of(block)->reached, &first, &stop); first = stop)
		if (block->addr + ((uint64_t)stop << HMM_PAGE_SHIFT) > *end)
			*end = block->addr + ((uint64_t)stop << HMM_PAGE_SHIFT);
}

void dma_withdraw(struct block *block, int reason)
{
	uint64_t start, end;
	unsigned int first = 0, stop;

	if (!pages_run(&dma_of(block)->reached, &first, &stop))
		return;
	start = page_addr(block, first);
	end = start + HMM_PAGE_SIZE;
	dma_widen(block_mirror(block), block, &start, &end);
	drop(block);
	owner_count(block->owner, COUNTER_DMA_CUTS, 1);
	transit_note(block);
	invalidate_send(block, start, end, reason, false);
}

/* ---- ranges that have something in it ---------------------------------------------------- */

static struct transfer *transfer_find(struct mirror *mirror, uint64_t peer, uint32_t id)
{
	struct transfer *transfer;

	TAILQ_FOREACH(transfer, &mirror->transfers, link)
		if (transfer->peer == peer && transfer->id == id)
			return transfer;
	return NULL;
}

static bool is_wanted(const struct mirror *mirror, const struct block *block)
{
	const struct transfer *transfer;

	TAILQ_FOREACH(transfer, &mirror->transfers, link)
		if (transfer->start < block->addr + HMM_BLOCK_SIZE && transfer->end > block->addr)
			return true;
	return false;
}

static void drop_unwanted(struct block *block, void *data)
{
	const struct mirror *mirror = data;

	if (block_mirror(block) == mirror && !is_wanted(mirror, block))
		drop(block);
}

/* The same, where a range of a driver that is not there any more may still be looked at. */
static void drop_unwanted_noted(struct block *block, void *data)
{
	bool reached = dma_reaches(block, 0, HMM_BLOCK_PAGES);

	drop_unwanted(block, data);
	if (reached && !dma_reaches(block, 0, HMM_BLOCK_PAGES))
		transit_note(block);
}

static void transfer_end(struct mirror *mirror, struct transfer *transfer, block_fn drop_block)
{
	uint64_t start = transfer->start, end = transfer->end;

	TAILQ_REMOVE(&mirror->transfers, transfer, link);
	mirror->n_transfers--;
	free(transfer);
	block_for_each(mirror->owner, start, end, drop_block, mirror);
}

void dma_release(struct owner *owner, uint64_t peer, uint32_t id, uint32_t number)
{
	struct mirror *mirror = mirror_by_id(owner, id);
	struct transfer *transfer = mirror ? transfer_find(mirror, peer, number) : NULL;

	if (transfer)
		transfer_end(mirror, transfer, drop_unwanted);
}

void dma_peer_gone(struct owner *owner, uint64_t peer)
{
	struct transfer *transfer, *next;

	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		struct mirror *mirror = owner->mirror[i];

		/* What he has started goes no further, whoever keeps the device. */
		card_driver_gone(card_of(mirror), peer);
		for (transfer = mirror ? TAILQ_FIRST(&mirror->transfers) : NULL; transfer;
		     transfer = next) {
			next = TAILQ_NEXT(transfer, link);
			if (transfer->peer == peer)
				transfer_end(mirror, transfer, drop_unwanted_noted);
		}
	}
}

static void close_block(struct block *block, void *data)
{
	if (block_mirror(block) != data || !block->dma)
		return;
	drop(block);
	/* The table may be a successor's by now. */
	if (!block->owner->abandoned && !block->owner->gone)
		transit_note(block);
}

void dma_close(struct mirror *mirror)
{
	struct transfer *transfer;

	if (card_of(mirror))
		block_for_each(mirror->owner, 0, HMM_VA_END, close_block, mirror);
	while ((transfer = TAILQ_FIRST(&mirror->transfers))) {
		TAILQ_REMOVE(&mirror->transfers, transfer, link);
		free(transfer);
	}
	mirror->n_transfers = 0;
}

/* Whether the owner has another mirror on that device, which has not left the card. */
static bool has_another(const struct mirror *mirror)
{
	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		const struct mirror *other = mirror->owner->mirror[i];

		if (other && other != mirror && other->device == mirror->device && other->card != CARD_IS_LEFT)
			return true;
	}
	return false;
}

void dma_mirror_gone(struct mirror *mirror)
{
	dma_close(mirror);
	if (card_of(mirror) && !has_another(mirror))
		card_leave(card_of(mirror), mirror->owner->id);
}

/* ---- the kernel wants the card back ------------------------------------------------------ */

static void recall(struct mirror *mirror)
{
	struct owner *owner = mirror->owner;

	if (mirror->card == CARD_IS_HERE) {
		mirror->recalled = invalidate_all(mirror, HMM_REASON_RECALL);
		mirror->card = CARD_IS_RECALLED;
	}
	if (mirror->card != CARD_IS_RECALLED || invalidate_is_awaited(owner, mirror->recalled))
		return;
	dma_close(mirror);
	invalidate_all_over(mirror, mirror->recalled);
	mirror->card = CARD_IS_LEFT;
	/* A successor does not wait for it: at that address may be another card by then, and another's. */
	owner->journal->mirror[mirror->index].card = 0;
	if (!has_another(mirror))
		card_leave(card_of(mirror), owner->id);
}

void dma_tick(struct owner *owner)
{
	for (unsigned int i = 0; i < MIRRORS_MAX; i++)
		if (card_is_recalled(card_of(owner->mirror[i])))
			recall(owner->mirror[i]);
}

/* ---- into it --------------------------------------------------------------------------- */

/* Whatever the ledger says: no card is shown another mirror's page of a BAR. */
static bool is_reached(const struct mirror *mirror, const struct block *block, unsigned int i)
{
	const struct device *device = mirror->device;

	return reach_page_to_read(mirror, block, i) &&
	       (!device_has_bar(device) ||
		(device->bar && bar_has(device->bar, block_far_number(block, i), mirror->claim)));
}

/* Where the CPU has it, too, the card may read it and no more. */
static bool is_written(const struct block *block, unsigned int i, bool write)
{
	return write && page_state(block, i) != HMM_PAGE_SHARED;
}

/* Page i's bytes lie behind those of the page before it. */
static bool goes_on(const struct mirror *mirror, const struct block *block, unsigned int i)
{
	return !device_has_bar(mirror->device) ||
	       block_far_number(block, i) == block_far_number(block, i - 1) + 1;
}

/* Pages [first, end) of @pages that lie in word @w. */
static uint64_t word_mask(unsigned int w, unsigned int first, unsigned int end)
{
	unsigned int low = w * 64, high = low + 64;
	uint64_t mask = UINT64_MAX;

	if (first >= high || end <= low)
		return 0;
	if (first > low)
		mask &= UINT64_MAX << (first - low);
	if (end < high)
		mask &= UINT64_MAX >> (high - end);
	return mask;
}

static int map_run(struct mirror *mirror, struct block *block, unsigned int first, unsigned int end,
		   bool write)
{
	uint64_t addr = page_addr(block, first);
	void *memory = device_has_bar(mirror->device) ?
			       bar_page(mirror->device->bar, block_far_number(block, first)) :
			       shadow_at(block_shadow(block), addr);
	struct block_dma *dma = block->dma ? block->dma : calloc(1, sizeof(*dma));
	int r = dma ? card_map(card_of(mirror), addr, memory, (uint64_t)(end - first) << HMM_PAGE_SHIFT, write) : -ENOMEM;

	if (r) {
		if (!block->dma)
			free(dma);
		return r;
	}
	block->dma = dma;
	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++) {
		dma->reached.word[w] |= word_mask(w, first, end);
		dma->read_only.word[w] |= write ? 0 : word_mask(w, first, end);
	}
	return 0;
}

/* Mapped when the owner might not write there, who may by now. */
static bool falls_short(const struct block *block, unsigned int first, unsigned int end)
{
	for (; first < end; first++)
		if (pages_test(&dma_of(block)->read_only, first) && page_state(block, first) != HMM_PAGE_SHARED)
			return true;
	return false;
}

/* All of it is coherent, as what hmm_share() and hmm_alloc() made is, and nothing of it mapped yet. */
static bool is_whole(const struct mirror *mirror, const struct block *block, unsigned int first, unsigned int end)
{
	return first == 0 && end == HMM_BLOCK_PAGES && !block->dma && block_mirror(block) == mirror &&
	       block_is_coherent(block);
}

/*
 * Pages [first, end), of one mapping of the owner's. What the card reaches already it goes on
 * reaching; if it could do less there than it may now it loses the block: -EBUSY, and with the new
 * number it can be mapped anew.
 */
static int map_pages(struct mirror *mirror, struct block *block, unsigned int first,
		     unsigned int end, bool write)
{
	unsigned int stop;
	int r = 0;

	if (is_whole(mirror, block, first, end)) {
		r = map_run(mirror, block, first, end, write);
		owner_count(block->owner, COUNTER_DMA_PAGES, r ? 0 : HMM_BLOCK_PAGES);
		return r;
	}
	if (write && falls_short(block, first, end)) {
		dma_withdraw(block, HMM_REASON_PROTECT);
		return -EBUSY;
	}
	for (; first < end && !r; first = stop) {
		stop = first + 1;
		if (pages_test(&dma_of(block)->reached, first) || !is_reached(mirror, block, first))
			continue;
		while (stop < end && !pages_test(&dma_of(block)->reached, stop) &&
		       is_reached(mirror, block, stop) && goes_on(mirror, block, stop) &&
		       is_written(block, stop, write) == is_written(block, first, write))
			stop++;
		r = map_run(mirror, block, first, stop, is_written(block, first, write));
		owner_count(block->owner, COUNTER_DMA_PAGES, r ? 0 : stop - first);
	}
	return r;
}

/*
 * The card may write what the owner may, whatever is asked for: another range may ask for more.
 * @write: it must. @limit: where the request ends. @view: the mapping that was looked at last; it goes for the next block, too,
 * for what becomes of it meanwhile this worker hears of behind the request. 0 or -errno: -EBUSY: its number is odd.
 */
static int map_block(struct mirror *mirror, struct block *block, uint64_t start, uint64_t end, uint64_t limit,
		     bool write, struct view *view)
{
	uint64_t stop;
	int r = 0;

	if (!block_at_rest(block))
		return -EBUSY;
	if (block_mirror(block) != mirror || (!block_shadow(block) && !device_has_bar(mirror->device)))
		return 0;
	for (; start < end && !r; start = stop) {
		if (start >= view->end)
			r = view_at(mirror->owner, start, limit, view);
		stop = end < view->end ? end : view->end;
		/*
		 * Not mapped at the owner any more: the event that says so comes, and takes the number
		 * along.
		 */
		if (r == -EFAULT || r == -EAGAIN)
			return -EBUSY;
		if (!r && write && !view->write)
			r = -EPERM;
		if (!r && view->read)
			r = map_pages(mirror, block, page_index(start), page_index(stop - 1) + 1, view->write);
	}
	/* Of a BAR: it may be gone. Then so is all that was in it, soon. */
	if (r == -EFAULT && device_has_bar(mirror->device) && bar_check(mirror->device->bar) == BAR_LOST)
		worker_alarm(mirror->owner->worker, mirror->owner->worker->now);
	return r;
}

static uint64_t count_reached(const struct block *block, uint64_t start, uint64_t end, bool write)
{
	uint64_t n = 0;

	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		n += (uint64_t)__builtin_popcountll(
			dma_of(block)->reached.word[w] & ~(write ? dma_of(block)->read_only.word[w] : 0) &
			word_mask(w, page_index(start), page_index(end - 1) + 1));
	return n;
}

static int map_range(struct mirror *mirror, uint64_t start, uint64_t end, bool write,
		     uint64_t *pages, uint64_t *failed)
{
	struct view view = { 0 };
	struct block *block;
	int r = 0;

	for (uint64_t at = start; !r && (block = block_next(mirror->owner, at, end));
	     at = block->addr + HMM_BLOCK_SIZE) {
		uint64_t from = start > block->addr ? start : block->addr,
			 to = block->addr + HMM_BLOCK_SIZE;

		if (end < to)
			to = end;
		*failed = from;
		r = map_block(mirror, block, from, to, end, write, &view);
		*pages += block_mirror(block) == mirror ? count_reached(block, from, to, write) : 0;
	}
	return r;
}

static struct transfer *transfer_get(struct mirror *mirror, const struct letter *letter)
{
	const struct hmm_msg_dma_map *message = (const void *)letter->message;
	struct transfer *transfer = transfer_find(mirror, letter->peer, message->hold);

	if (transfer)
		return transfer;
	if (mirror->n_transfers == TRANSFERS_MAX)
		return NULL;
	transfer = calloc(1, sizeof(*transfer));
	if (!transfer)
		return NULL;
	transfer->peer = letter->peer;
	transfer->id = message->hold;
	transfer->start = message->hold_start;
	transfer->end = message->hold_end;
	TAILQ_INSERT_TAIL(&mirror->transfers, transfer, link);
	mirror->n_transfers++;
	return transfer;
}

static int check_map(struct owner *owner, struct mirror *mirror, struct letter *letter)
{
	const struct hmm_msg_dma_map *message = (const void *)letter->message;
	const struct transfer *known;
	struct card *card;

	if (!mirror || mirror->leaving || owner->closing)
		return letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
	card = card_of(mirror);
	if (!card && mirror->device->card_number)
		return letter_fail(letter, -EAGAIN, "%s has not come back since hmmd was started again",
				   mirror->device->name);
	if (!card)
		return letter_fail(letter, mirror->device->caps & HMM_DEVICE_CAPS_DMA ? -ENODEV : -EOPNOTSUPP,
				   "%s is no card, or its card is gone", mirror->device->name);
	if (card_is_recalled(card))
		return letter_fail(letter, -ENODEV, CARD_RECALLED, card_address(card));
	if (mirror->peer != letter->peer)
		return letter_fail(letter, -EPERM, "mirror %u has another driver", message->mirror);
	/* It may have become its driver while the card was not back yet. */
	if (dma_check_driver(mirror->device, letter))
		return letter->error;
	known = transfer_find(mirror, letter->peer, message->hold);
	if (!message->hold || message->hold_start > message->addr ||
	    message->hold_end > HMM_VA_END || message->hold_end < message->addr + message->length ||
	    (known && (known->start != message->hold_start || known->end != message->hold_end)))
		return letter_fail(letter, -EINVAL, "the pages are not of the range");
	if (!card_take(card, owner->id))
		return letter_fail(
			letter, -EBUSY,
			"%s reaches another owner's memory: it has one address space at a time",
			card_address(card));
	return 0;
}

static int dma_map(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_dma_map *message = (const void *)letter->message;
	struct mirror *mirror = mirror_by_id(owner, message->mirror);
	uint64_t pages = 0, failed = message->addr;
	struct hmm_msg_dma_map_reply *reply;
	struct transfer *transfer;
	char why[200];
	int stopped, r = check_map(owner, mirror, letter);

	if (r)
		return r;
	transfer = transfer_get(mirror, letter);
	if (!transfer)
		return letter_fail(letter, -ENOMEM,
				   "mirror %u has %u ranges mapped, or hmmd is out of memory",
				   mirror->id, mirror->n_transfers);
	r = map_range(mirror, message->addr, message->addr + message->length, message->write,
		      &pages, &failed);
	stopped = r ? 0 : card_drive(card_of(mirror), letter->peer);
	if (stopped) {
		transfer_end(mirror, transfer, drop_unwanted);
		return letter_fail(letter, stopped, "%s was stopped, and cannot go on: %s",
				   card_address(card_of(mirror)), strerror(-stopped));
	}
	reply = r ? NULL : letter_reply(letter, HMM_OP_DMA_MAP_REPLY, sizeof(*reply));
	if (reply) {
		reply->pages = pages;
		return 0;
	}
	transfer_end(mirror, transfer, drop_unwanted);
	if (!r || r == -EBUSY)
		return letter_fail(letter, r ? r : -ENOMEM,
				   r ? "a page is under way; ask again"
				     : "out of memory for the answer");
	if (r == -EPERM)
		return letter_fail(letter, r, "a mapping may not be written");
	card_explain(card_of(mirror), r, failed, why, sizeof(why));
	return letter_fail(letter, r, "%s", why);
}

void dma_request(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_dma_unmap *message = (const void *)letter->message;

	if (letter->message->opcode == HMM_OP_DMA_MAP) {
		dma_map(owner, letter);
	} else {
		dma_release(owner, letter->peer, message->mirror, message->hold);
		if (!letter_reply(letter, HMM_OP_DMA_UNMAP_REPLY,
				  sizeof(struct hmm_msg_dma_unmap_reply)))
			letter_fail(letter, -ENOMEM, "out of memory for the answer");
	}
	worker_reply(owner->worker, letter);
}
