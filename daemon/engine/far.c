/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * far.c - memory that only the driver reaches: the pages of a device with a
 * copy engine of its own. Runs on the owner's worker.
 *
 * Such pages pass through the shadow. Out: the agent fills the shadow as for any
 * device; then, in a transit "store", the driver is asked to take the bytes, and
 * answers with the page of its memory that has them now. The page is "far" from
 * then on: D, not complete, its number in the table's entry; the shadow is
 * punched. Home: before anybody looks into the shadow, far_fetch() asks the driver
 * to bring the bytes back, in a transit "fetch"; the page is an ordinary D page
 * then, and whoever waited goes on as always. Each is noted in the ledger before
 * the other side lets go of its copy, so that a crash costs none.
 *
 * What can fail: the driver has no room (the pages come home), no memory to bring
 * a page back (asked again, for as long as it takes), or has lost it: E, poisoned at
 * the CPU, counted, logged. A driver that dies takes its pages with it. One that
 * is late is waited for, with the owner's thread: its memory is the only copy.
 *
 * What drivers answer, and that they come and go, is in far_driver.c. Where the memory is a BAR of a
 * card nobody is asked: hmmd copies itself, in far_bar.c.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/dma.h"
#include "engine/far.h"
#include "engine/far_bar.h"
#include "engine/job.h"
#include "engine/notice.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

#define AGAIN_FIRST_NS	NS_PER_MS
#define AGAIN_MOST_NS	(1000 * NS_PER_MS)
#define LOUD_NS		(3000 * NS_PER_MS)

bool far_is_store(const struct ask *ask)
{
	return ask->block->record->transit == HMM_TRANSIT_STORE;
}

static struct ask *ask_new(struct block *block, const struct pages *pages)
{
	struct owner *owner = block->owner;
	struct ask *ask = calloc(1, sizeof(*ask));

	if (!ask)
		return NULL;
	if (!owner->next_ask)
		owner->next_ask = owner->worker->engine->incarnation;
	ask->mirror = block_mirror(block);
	ask->block = block;
	ask->cookie = ++owner->next_ask;
	ask->pages = *pages;
	ask->first = HMM_BLOCK_PAGES;
	ask->since = owner->worker->now;
	block->ask = ask;
	TAILQ_INSERT_TAIL(&owner->asks, ask, link);
	return ask;
}

static void ask_free(struct ask *ask)
{
	TAILQ_REMOVE(&ask->block->owner->asks, ask, link);
	ask->block->ask = NULL;
	for (unsigned int i = 0; ask->number && i < HMM_BLOCK_PAGES; i++)
		if (ask->number[i] != HMM_FAR_NONE)
			far_release(ask->mirror, ask->number[i]);
	free(ask->number);
	free(ask);
}

unsigned int far_ask_order(const struct ask *ask, uint16_t *order)
{
	unsigned int n = 0;

	if (ask->first < HMM_BLOCK_PAGES && pages_test(&ask->pages, ask->first))
		order[n++] = (uint16_t)ask->first;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (pages_test(&ask->pages, i) && i != ask->first)
			order[n++] = (uint16_t)i;
	return n;
}

unsigned int block_far_pages(const struct block *block, struct pages *pages)
{
	unsigned int n = 0;

	*pages = (struct pages){ 0 };
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		if (!page_is_far(block, i))
			continue;
		pages_set(pages, i);
		n++;
	}
	return n;
}

/* ---- asking ---------------------------------------------------------------------- */

static void *store_message(const struct ask *ask)
{
	struct hmm_msg_devmem_store *message = malloc(sizeof(*message) + sizeof(ask->pages));

	if (!message)
		return NULL;
	hmm_wire_init(message, HMM_OP_DEVMEM_STORE, sizeof(*message) + sizeof(ask->pages), 0);
	message->mirror = ask->mirror->id;
	message->count = HMM_BITMAP_WORDS;
	message->addr = ask->block->addr;
	message->cookie = ask->cookie;
	memcpy(message->pages, ask->pages.word, sizeof(ask->pages));
	return message;
}

static void *fetch_message(const struct ask *ask)
{
	uint16_t order[HMM_BLOCK_PAGES];
	unsigned int n = far_ask_order(ask, order);
	struct hmm_msg_devmem_fetch *message;
	size_t size = sizeof(*message) + n * sizeof(message->pages[0]);

	message = malloc(size);
	if (!message)
		return NULL;
	hmm_wire_init(message, HMM_OP_DEVMEM_FETCH, size, 0);
	message->mirror = ask->mirror->id;
	message->count = n;
	message->addr = ask->block->addr;
	message->cookie = ask->cookie;
	message->flags = ask->fault_flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP) ?
			 HMM_FAR_FLAGS_WRITE : 0;
	for (unsigned int k = 0; k < n; k++) {
		message->pages[k].index = order[k];
		message->pages[k].number = block_far_number(ask->block, order[k]);
	}
	return message;
}

/* The driver maps what its pages pass through. */
static bool tell_region(struct ask *ask)
{
	struct mirror *mirror = ask->mirror;
	struct shadow *shadow;

	if (mirror_shadow(mirror, ask->block->addr, &shadow))
		return false;
	if (shadow->told != mirror->peer &&
	    !mirror_send_region(mirror, shadow, mirror->peer, HMM_REGION_STAGING, 0, shadow->base, HMM_REGION_SIZE))
		return false;
	shadow->told = mirror->peer;
	return true;
}

void far_ask_again_in(struct ask *ask, int64_t pause)
{
	struct worker *worker = ask->block->owner->worker;

	ask->again = worker->now + pause;
	worker_alarm(worker, ask->again);
}

void far_ask_send(struct ask *ask)
{
	void *message;

	if (ask->asking && device_has_bar(ask->mirror->device)) {
		far_bar_copy(ask);
		return;
	}
	if (!ask->asking || ask->sent || !ask->mirror->peer || !ask->mirror->ready)
		return;		/* when its driver is there */
	message = tell_region(ask) ? far_is_store(ask) ? store_message(ask) : fetch_message(ask) : NULL;
	if (!message) {
		far_ask_again_in(ask, LOOK_NS);
		return;
	}
	if (!worker_event(ask->block->owner->worker, ask->mirror->peer, message, -1)) {
		far_ask_again_in(ask, LOOK_NS);
		return;
	}
	ask->sent = true;
	ask->again = 0;
}

/* ---- lost pages --------------------------------------------------------------------- */

void far_lose(struct block *block, unsigned int i)
{
	const struct mirror *mirror = block_mirror(block);
	struct owner *owner = block->owner;
	size_t done;
	int r;

	block_set_state(block, i, i + 1, HMM_PAGE_ERROR);
	owner_count(owner, COUNTER_ERRORS, 1);
	/* Where it does not work now, a touch finds the state. */
	r = kernel->uffd_poison(owner->uffd, page_addr(block, i), HMM_PAGE_SIZE, &done);
	if (r && r != -EAGAIN)
		log_debug("owner %u: %#lx is not poisoned: %s", owner->id, page_addr(block, i), strerror(-r));
	notice(owner, (struct hmm_notice){
		.kind = HMM_EVENT_KIND_POISON, .error = -EIO, .mirror = mirror ? mirror->id : 0,
		.start = page_addr(block, i), .end = page_addr(block, i) + HMM_PAGE_SIZE, .pages = 1 });
}

bool far_let_go_lost(struct block *block)
{
	struct pages lost;
	size_t done;

	if (!block_at_rest(block))
		return false;
	block_pages_in(block, HMM_PAGE_ERROR, 0, HMM_BLOCK_PAGES, &lost);
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		if (!pages_test(&lost, i))
			continue;
		if (kernel->uffd_poison(block->owner->uffd, page_addr(block, i), HMM_PAGE_SIZE, &done) == -EAGAIN)
			return false;
		block_set_state(block, i, i + 1, HMM_PAGE_INVALID);
	}
	return true;
}

struct loss {
	struct mirror *mirror;
	uint64_t pages;
};

static void lose_block(struct block *block, void *data)
{
	struct loss *loss = data;
	struct pages far;
	unsigned int n = block_far_pages(block, &far);

	if (!n || block_mirror(block) != loss->mirror)
		return;
	dma_withdraw(block, HMM_REASON_MIGRATE);
	/* What was discarded is no loss, and ends with its transit. */
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (pages_test(&far, i) && page_is_pending(block, i) &&
		    (!block->ask || pages_test(&block->dead, i)))
			pages_clear(&far, i);
	block_hide(block, &far);
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		if (!pages_test(&far, i))
			continue;
		far_lose(block, i);
		if (block->ask)
			pages_clear(&block->ask->pages, i);
		loss->pages++;
	}
	transit_note(block);
}

static void lose_nobodys(struct block *block, void *data)
{
	if (!block_mirror(block))
		lose_block(block, data);
}

void far_recover(struct owner *owner)
{
	struct loss loss = { .mirror = NULL };

	/* Now: a new mirror may get the number of theirs, and has other pages. */
	block_for_each(owner, 0, HMM_VA_END, lose_nobodys, &loss);
	if (loss.pages)
		log_error("owner %u: %lu pages that were in memory of a device which could not be made again are lost; a touch is SIGBUS",
			  owner->id, loss.pages);
	far_bar_recover(owner);
}

static void ask_finish(struct ask *ask);

/* Whatever was in the driver's memory is gone. */
void far_lose_all(struct mirror *mirror, const char *why)
{
	struct owner *owner = mirror->owner;
	struct loss loss = { .mirror = mirror };
	struct ask *ask, *next;

	block_for_each(owner, 0, HMM_VA_END, lose_block, &loss);
	if (loss.pages)
		log_error("owner %u: %s: %lu pages that were in the memory of %s are lost; a touch is SIGBUS",
			  owner->id, why, loss.pages, mirror->device->name);
	mirror->freed_count = 0;
	owner->journal->mirror[mirror->index].token = 0;
	/* Those of a BAR end by themselves, with the next piece. */
	if (device_has_bar(mirror->device))
		return;
	for (ask = TAILQ_FIRST(&owner->asks); ask; ask = next) {
		next = TAILQ_NEXT(ask, link);
		if (ask->mirror == mirror && ask->asking && pages_empty(&ask->pages))
			ask_finish(ask);
	}
}

/* ---- fetching: from the driver's memory into the shadow ------------------------------- */

/* The answer is in, or there is nothing left to ask. */
static void ask_finish(struct ask *ask)
{
	struct block *block = ask->block;
	struct job *job = ask->job;

	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		if (!page_is_pending(block, i))
			continue;
		/* Unmapped or discarded while it was asked for: the driver's page is free. */
		if (pages_test(&block->dead, i) && page_state(block, i) == HMM_PAGE_DEVICE)
			block_set_state(block, i, i + 1, HMM_PAGE_INVALID);
		/* Whatever the driver wrote there. */
		if (page_state(block, i) != HMM_PAGE_DEVICE || page_is_far(block, i))
			pages_set(&block->stale, i);
	}
	block_punch_stale(block);
	ask_free(ask);
	transit_end(block);
	block_recharge(block);
	block_settle_later(block);
	if (job)
		job_block_done(job, 0);
}

static void drop_dead(struct ask *ask)
{
	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		ask->pages.word[w] &= ~ask->block->dead.word[w];
}

static void fetch_proceed(struct block *block)
{
	struct ask *ask = block->ask;
	struct mirror *mirror = ask->mirror;
	unsigned int n;

	drop_dead(ask);
	n = pages_count(&ask->pages);
	ask->asking = true;
	if (!n) {
		ask_finish(ask);
		return;
	}
	/* Over its share if need be: it is on its way home, and must not wait for others that are. */
	block_overcharge(block, pool_is_huge(mirror->device->pool->kind) ? HMM_BLOCK_PAGES : n);
	far_ask_send(ask);
}

bool far_fetch(struct block *block, const struct pages *pages, unsigned int first, uint64_t fault_flags,
	       int reason, struct task *task)
{
	struct owner *owner = block->owner;
	struct pages far;
	struct ask *ask;

	if (!block_far_pages(block, &far))
		return false;
	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		far.word[w] &= pages->word[w];
	if (pages_empty(&far))
		return false;
	/* After a restart that found no room for its device again. */
	if (!block_mirror(block)) {
		lose_block(block, &(struct loss){ .mirror = NULL });
		if (task)
			owner_queue(owner, task);
		return true;
	}
	ask = ask_new(block, &far);
	if (!ask && !task)
		return true;
	if (!ask) {
		TAILQ_INSERT_TAIL(&owner->retry, task, link);
		worker_alarm(owner->worker, owner->worker->now + NS_PER_MS);
		return true;
	}
	ask->first = first;
	ask->fault_flags = fault_flags;
	transit_begin(block, HMM_TRANSIT_FETCH, &far, reason, fetch_proceed);
	if (task && block_at_rest(block))
		owner_queue(owner, task);
	else if (task)
		block_park(block, task);
	return true;
}

/* The driver has no memory for it at present. */
static void ask_later(struct ask *ask)
{
	struct owner *owner = ask->block->owner;

	ask->sent = false;
	ask->pause = ask->pause ? ask->pause * 2 : AGAIN_FIRST_NS;
	if (ask->pause > AGAIN_MOST_NS)
		ask->pause = AGAIN_MOST_NS;
	far_ask_again_in(ask, ask->pause);
	if (ask->loud || owner->worker->now - ask->since < LOUD_NS)
		return;
	ask->loud = true;
	log_error("owner %u: %s of %s has had no memory for %lld s to bring %u pages of %#lx home, or could not be asked: whoever needs them waits",
		  owner->id, device_has_bar(ask->mirror->device) ? "the card" : "the driver", ask->mirror->device->name, (long long)(LOUD_NS / (1000 * NS_PER_MS)),
		  pages_count(&ask->pages), ask->block->addr);
}

void far_fetched(struct ask *ask, const uint8_t *results)
{
	struct block *block = ask->block;
	uint16_t order[HMM_BLOCK_PAGES];
	unsigned int n = far_ask_order(ask, order), lost = 0, later = 0;

	for (unsigned int k = 0; k < n; k++) {
		unsigned int i = order[k];

		if (pages_test(&block->dead, i)) {
			pages_clear(&ask->pages, i);
		} else if (results[k] == HMM_FAR_RESULT_MEMORY) {
			later++;
		} else if (results[k] == HMM_FAR_RESULT_HERE) {
			pages_clear(&ask->pages, i);
			block_set_state(block, i, i + 1, HMM_PAGE_DEVICE);
		} else {
			pages_clear(&ask->pages, i);
			far_lose(block, i);
			lost++;
		}
	}
	if (lost)
		log_error("owner %u: %s of %s has lost %u pages of %#lx; a touch is SIGBUS", block->owner->id,
			  device_has_bar(ask->mirror->device) ? "the card" : "the driver", ask->mirror->device->name, lost,
			  block->addr);
	/* Some are here: whoever waits looks again, and asks for the rest if it needs it. */
	if (later && later == n)
		ask_later(ask);
	else
		ask_finish(ask);
}

/* ---- storing: from the shadow into the driver's memory ---------------------------------- */

/* Of each page of the job what became of it, when the driver has taken what it takes. */
static void store_results(struct job *job, const struct block *block, const struct pages *pages)
{
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (pages_test(pages, i))
			result_set(job, i, page_is_far(block, i) ? HMM_PAGE_RESULT_MOVED :
				   pages_test(&block->dead, i) ? HMM_PAGE_RESULT_CHANGED : HMM_PAGE_RESULT_FULL);
}

/* Numbers: of the pages in order; NULL: the driver takes none. */
void far_stored(struct ask *ask, const uint32_t *numbers, uint64_t *moved)
{
	struct block *block = ask->block;
	uint64_t limit = atomic_load(&ask->mirror->device->far_pages);
	uint16_t order[HMM_BLOCK_PAGES];
	unsigned int n = far_ask_order(ask, order);
	struct pages asked, gone = { 0 };

	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		asked.word[w] = block->record->pending[w];
	for (unsigned int k = 0; numbers && k < n; k++) {
		if (pages_test(&block->dead, order[k]) || numbers[k] >= limit)
			continue;
		block_set_far(block, order[k], numbers[k]);
		moved[k / 64] |= 1ULL << (k % 64);
		pages_set(&gone, order[k]);
	}
	notice_pages(block, HMM_EVENT_KIND_MIGRATE_OUT, &gone);
	if (ask->job)
		store_results(ask->job, block, &asked);
	ask_finish(ask);
}

static void store_proceed(struct block *block)
{
	struct ask *ask = block->ask;

	drop_dead(ask);
	ask->asking = true;
	if (pages_empty(&ask->pages) || !ask->mirror->ready)
		far_stored(ask, NULL, NULL);
	else
		far_ask_send(ask);
}

void far_store(struct block *block, const struct pages *pages, struct job *job)
{
	struct ask *ask = ask_new(block, pages);

	if (!ask) {
		store_results(job, block, pages);
		block_settle_later(block);
		job_block_done(job, 0);
		return;
	}
	ask->job = job;
	transit_begin(block, HMM_TRANSIT_STORE, pages, HMM_REASON_MIGRATE, store_proceed);
}

/* Nobody takes these bytes: they are in the shadow, and go home. */
void far_refuse_stores(struct mirror *mirror)
{
	struct ask *ask, *next;

	for (ask = TAILQ_FIRST(&mirror->owner->asks); ask; ask = next) {
		next = TAILQ_NEXT(ask, link);
		if (ask->mirror == mirror && ask->asking && far_is_store(ask))
			far_stored(ask, NULL, NULL);
	}
}

bool far_settle(struct block *block, struct job *job)
{
	struct mirror *mirror = block_mirror(block);
	struct pages here;

	if (!mirror || !device_is_far(mirror->device))
		return false;
	block_pages_in(block, HMM_PAGE_DEVICE, 0, HMM_BLOCK_PAGES, &here);
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (page_is_far(block, i))
			pages_clear(&here, i);
	if (pages_empty(&here)) {
		block_punch_stale(block);
		return false;
	}
	home_begin(block, &here, HMM_BLOCK_PAGES, false, HMM_REASON_EVICT, 0, job);
	return true;
}

/* ---- the end of it --------------------------------------------------------------------- */

void far_abandon(struct owner *owner)
{
	struct ask *ask, *next;

	for (ask = TAILQ_FIRST(&owner->asks); ask; ask = next) {
		next = TAILQ_NEXT(ask, link);
		if (!ask->asking)
			continue;	/* its drivers' answers are given first */
		ask->block->dead = ask->pages;
		ask_finish(ask);
	}
}

void far_deinit(struct owner *owner)
{
	while (!TAILQ_EMPTY(&owner->asks))
		ask_free(TAILQ_FIRST(&owner->asks));
}
