// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_evict.c - the order of use; evictions that drivers refuse, after which
 * everything is as it was.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>

#include "engine/evict.h"
#include "engine_fixture.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(use);
LEAKCHECKED_SUITE(refusal);

#define OTHER_DRIVER (DRIVER + 1)

static struct fixture fixture;

/* ---- the order of use ---------------------------------------------------------------- */

Test(use, what_was_used_last_is_last)
{
	uint64_t before;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	for (unsigned int n = 0; n < 4; n++)
		fixture_out(&fixture, n * HMM_BLOCK_PAGES, n * HMM_BLOCK_PAGES + 3);
	EXPECT_USE(&fixture, 0, 1, 2, 3);
	before = fixture.worker.uses;
	block_touch(fixture_block(&fixture, 1));
	EXPECT_USE(&fixture, 0, 2, 3, 1);
	cr_expect(eq(u64, fixture.worker.uses, before + 1));
	block_touch(fixture_block(&fixture, 1));
	block_touch(fixture_block(&fixture, 0));
	EXPECT_USE(&fixture, 2, 3, 1, 0);
	block_cool(fixture_block(&fixture, 1));
	EXPECT_USE(&fixture, 1, 2, 3, 0);
	/* One more page of it is a use, too. */
	fixture_out(&fixture, 2 * HMM_BLOCK_PAGES + 3, 2 * HMM_BLOCK_PAGES + 4);
	EXPECT_USE(&fixture, 1, 3, 0, 2);
	/* What is kept is in nobody's way, until it is nothing any more. */
	block_keep(fixture_block(&fixture, 3), NULL);
	EXPECT_USE(&fixture, 1, 0, 2);
	cr_expect(eq(uint, fixture.mirror->kept_blocks, 1));
	block_keep(fixture_block(&fixture, 3), NULL);
	block_touch(fixture_block(&fixture, 3));
	EXPECT_USE(&fixture, 1, 0, 2);
	block_cool(fixture_block(&fixture, 3));
	EXPECT_USE(&fixture, 3, 1, 0, 2);
	cr_expect(eq(uint, fixture.mirror->kept_blocks, 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* It has come home: what lingers is the first to go, and then it is in no list. */
Test(use, home_is_cold_and_then_gone)
{
	struct pages pages = pages_from(0, 3);

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	for (unsigned int n = 0; n < 3; n++)
		fixture_out(&fixture, n * HMM_BLOCK_PAGES, n * HMM_BLOCK_PAGES + 3);
	home_begin(fixture_block(&fixture, 2), &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	EXPECT_USE(&fixture, 2, 0, 1);
	fixture_later(&fixture, SECOND);
	EXPECT_USE(&fixture, 0, 1);
	fixture_end(&fixture);
}

static unsigned int finished;

static void note_finished(struct owner *owner, void *data, uint64_t pages)
{
	(void)owner;
	(void)data;
	(void)pages;
	finished++;
}

/* A job that has brought pages home does not take what has gone out since, before it was run again. */
static void expect_out_again(unsigned int shared)
{
	struct pages pages = pages_from(0, shared);

	finished = 0;
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 20);
	if (shared)
		home_begin(fixture_block(&fixture, 0), &pages, HMM_BLOCK_PAGES, true, HMM_REASON_CPU_FAULT, 0, NULL);
	fixture_callbacks(&fixture);
	migrate_home(fixture.owner, ROOM_START, ROOM_START + HMM_BLOCK_SIZE, NULL, note_finished, NULL);
	owner_run(fixture.owner);
	cr_assert(eq(uint, fixture_answer(&fixture), 1));
	cr_assert(eq(uint, fixture.mirror->device_pages, shared ? 20 - shared : 0));
	fixture_out(&fixture, 0, shared ? shared : 15);
	owner_run(fixture.owner);
	/* What it has not brought yet it still has to. */
	cr_expect(eq(uint, fixture_answer(&fixture), shared ? 1 : 0));
	owner_run(fixture.owner);
	cr_expect(eq(uint, finished, 1));
	cr_expect(eq(u64, fixture.mirror->device_pages, shared ? shared : 15));
	for (unsigned int i = 0; i < (shared ? shared : 15); i++)
		cr_assert(eq(int, page_state(fixture_block(&fixture, 0), i), HMM_PAGE_DEVICE));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(use, what_has_gone_out_again_stays)
{
	expect_out_again(0);
	expect_out_again(5);
}

/* ---- refusals -------------------------------------------------------------------------- */

/* Block 0 is about to be evicted, and its driver has been asked. Return: its sequence number before. */
static uint64_t evict_first(bool cheap)
{
	uint64_t before = fixture_sequence(fixture_block(&fixture, 0));

	finished = 0;
	cr_assert(eq(int, migrate_evict(fixture_block(&fixture, 0), fixture.device, cheap, note_finished, NULL), 0));
	owner_run(fixture.owner);
	cr_assert(not(block_at_rest(fixture_block(&fixture, 0))));
	cr_assert(eq(u64, fixture_sequence(fixture_block(&fixture, 0)), before + 1));
	fixture_check(&fixture);
	return before;
}

static void expect_refused(uint64_t before, unsigned int device, unsigned int shared)
{
	struct block *block = fixture_block(&fixture, 0);

	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before + 2));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), device));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_SHARED), shared));
	fixture_check(&fixture);
	owner_run(fixture.owner);
	cr_expect(eq(uint, finished, 1), "it is asked no further");
	cr_expect(eq(uint, fixture.owner->jobs, 0));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVICTIONS_REFUSED], 1));
	fixture_check(&fixture);
}

static void begin_with_driver(unsigned int pages)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, pages);
}

Test(refusal, everything_is_as_it_was)
{
	uint64_t before;

	begin_with_driver(20);
	before = evict_first(true);
	cr_expect(eq(uint, fixture_answer_with(&fixture, -EAGAIN), 1));
	expect_refused(before, 20, 0);
	/* Asked again it may say yes. */
	evict_first(true);
	cr_expect(eq(uint, fixture_answer(&fixture), 1));
	owner_run(fixture.owner);
	cr_expect(eq(u64, fixture.mirror->device_pages, 0));
	cr_expect(eq(uint, finished, 1));
	fixture_end(&fixture);
}

Test(refusal, of_shared_pages)
{
	struct pages pages = pages_from(0, 20);
	uint64_t before, entry;

	begin_with_driver(20);
	home_begin(fixture_block(&fixture, 0), &pages, HMM_BLOCK_PAGES, true, HMM_REASON_CPU_FAULT, 0, NULL);
	fixture_answer(&fixture);
	cr_assert(eq(uint, block_count(fixture_block(&fixture, 0), HMM_PAGE_SHARED), 20));
	before = evict_first(true);
	cr_expect(eq(u32, fixture_block(&fixture, 0)->record->transit, HMM_TRANSIT_UNSHARING));
	fixture_answer_with(&fixture, -EAGAIN);
	expect_refused(before, 0, 20);
	/* The next write of the CPU must still be seen. */
	for (unsigned int i = 0; i < 20; i++) {
		cr_assert(eq(int, kernel->pagemap_read(fixture.owner->pagemap, ROOM_START + i * HMM_PAGE_SIZE, 1,
						       &entry), 0));
		cr_assert(ne(u64, entry & 1ULL << 57, 0), "page %u is S and can be written", i);
	}
	fixture_end(&fixture);
}

/* What the owner gave up while the driver thought about it does not come back. */
Test(refusal, of_what_was_lost_meanwhile)
{
	struct block *block;
	uint64_t before;

	begin_with_driver(20);
	before = evict_first(true);
	block = fixture_block(&fixture, 0);
	block_discard(block, 5, 9, HMM_REASON_UNMAP);
	fixture_check(&fixture);
	fixture_answer_with(&fixture, -EAGAIN);
	expect_refused(before, 16, 0);
	for (unsigned int i = 5; i < 9; i++)
		cr_expect(eq(int, page_state(block, i), HMM_PAGE_INVALID));
	fixture_end(&fixture);
}

/* On the way by slot: the slot is free again. */
Test(refusal, gives_the_slot_back)
{
	struct block *block;
	uint64_t before;

	begin_with_driver(HMM_BLOCK_PAGES);
	fixture.owner->peer = 1;
	block = fixture_block(&fixture, 0);
	block->record->flags |= HMM_BLOCK_HUGE;
	before = evict_first(true);
	cr_assert(eq(u32, block->record->transit, HMM_TRANSIT_HOME_SLOT));
	cr_expect(ne(uint, block->record->slot, HMM_NO_SLOT));
	fixture_answer_with(&fixture, -EAGAIN);
	expect_refused(before, HMM_BLOCK_PAGES, 0);
	for (unsigned int i = 0; i < fixture.owner->slots; i++)
		cr_expect(eq(int, fixture.owner->slot[i], SLOT_FREE));
	cr_expect(ne(u32, block->record->flags & HMM_BLOCK_HUGE, 0), "it can come home as one page still");
	fixture_end(&fixture);
}

/* An order is not refused. */
Test(refusal, is_no_answer_to_an_order)
{
	begin_with_driver(20);
	evict_first(false);
	fixture_answer_with(&fixture, -EAGAIN);
	owner_run(fixture.owner);
	cr_expect(eq(u64, fixture.mirror->device_pages, 0));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVICTIONS_REFUSED], 0));
	fixture_end(&fixture);
}

static uint64_t cookies[2];

/* What the two drivers were asked. */
static void take_questions(unsigned int blockable)
{
	struct letter *letter = mailbox_take(&fixture.outbox), *next;
	unsigned int n = 0;

	for (; letter; letter = next, n++) {
		const struct hmm_msg_invalidate *message = (const void *)letter->message;

		next = letter->next;
		cr_assert(lt(uint, n, 2));
		cr_assert(eq(u32, message->blockable, blockable));
		cr_assert(eq(u32, message->reason, HMM_REASON_EVICT));
		cookies[n] = message->cookie;
		letter_free(letter);
	}
	cr_assert(eq(uint, n, 2));
}

/* One of two drivers refuses, whichever answers first: nothing is done before both have. */
Test(refusal, by_one_is_by_all)
{
	for (unsigned int first = 0; first < 2; first++)
		for (unsigned int refuses = 0; refuses < 2; refuses++) {
			struct mirror *other;
			struct device *device;
			uint64_t before;

			fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL / 2);
			fixture.engine.devices.capacity = POOL;
			cr_assert(eq(int, device_new(&fixture.engine.devices, "other", HMM_POOL_KIND_MEMFD, NULL,
						     POOL / 2, HMM_DEVICE_CAPS_FAULTS, DRIVER, &device), 0));
			device_use(&fixture.engine.devices, device->id);
			other = mirror_new(fixture.owner, 1, device, NULL);
			other->peer = OTHER_DRIVER;
			other->flags |= HMM_MIRROR_FLAGS_CALLBACKS;
			fixture_callbacks(&fixture);
			fixture_out(&fixture, 0, 20);
			before = evict_first(true);
			take_questions(0);
			invalidate_ack(fixture.owner, cookies[first], first == refuses ? -EAGAIN : 0);
			cr_assert(not(block_at_rest(fixture_block(&fixture, 0))));
			fixture_check(&fixture);
			invalidate_ack(fixture.owner, cookies[!first], first == refuses ? 0 : -EAGAIN);
			expect_refused(before, 20, 0);
			fixture_end(&fixture);
		}
}

/* Late is not refused: its windows are revoked, and the block goes. */
Test(refusal, is_not_said_by_silence)
{
	begin_with_driver(20);
	evict_first(true);
	fixture_later(&fixture, 1001 * NS_PER_MS);
	cr_expect(eq(u64, fixture.mirror->device_pages, 0));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_LATE_DRIVERS], 1));
	fixture_answer_with(&fixture, -EAGAIN);
	fixture_end(&fixture);
}
