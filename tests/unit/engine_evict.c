// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_evict.c - the order of use; evictions that drivers refuse, after which
 * everything is as it was; and rounds: who waits, who goes, who gets nothing.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <string.h>

#include "engine/copies.h"
#include "engine/evict.h"
#include "engine_fixture.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(use);
LEAKCHECKED_SUITE(refusal);
LEAKCHECKED_SUITE(room);
LEAKCHECKED_SUITE(copied);

#define OTHER_DRIVER (DRIVER + 1)

static struct fixture fixture;

/* ---- the order of use ---------------------------------------------------------------- */

static void expect_use(unsigned int count, const unsigned int *order)
{
	struct block *block = TAILQ_FIRST(&fixture.mirror->use);

	cr_assert(eq(uint, fixture.mirror->used_blocks, count));
	for (unsigned int i = 0; i < count; i++, block = TAILQ_NEXT(block, use)) {
		cr_assert(ne(ptr, block, NULL));
		cr_assert(eq(ptr, block, fixture_block(&fixture, order[i])), "place %u", i);
		cr_assert(eq(ptr, block->charged_to, fixture.mirror));
	}
	cr_assert(eq(ptr, block, NULL));
}

#define EXPECT_USE(...)                                                                            \
	do {                                                                                       \
		const unsigned int order_[] = { __VA_ARGS__ };                                     \
		expect_use(sizeof(order_) / sizeof(order_[0]), order_);                            \
	} while (0)

Test(use, what_was_used_last_is_last)
{
	uint64_t before;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	for (unsigned int n = 0; n < 4; n++)
		fixture_out(&fixture, n * HMM_BLOCK_PAGES, n * HMM_BLOCK_PAGES + 3);
	EXPECT_USE(0, 1, 2, 3);
	before = fixture.worker.uses;
	block_touch(fixture_block(&fixture, 1));
	EXPECT_USE(0, 2, 3, 1);
	cr_expect(eq(u64, fixture.worker.uses, before + 1));
	block_touch(fixture_block(&fixture, 1));
	block_touch(fixture_block(&fixture, 0));
	EXPECT_USE(2, 3, 1, 0);
	block_cool(fixture_block(&fixture, 1));
	EXPECT_USE(1, 2, 3, 0);
	/* One more page of it is a use, too. */
	fixture_out(&fixture, 2 * HMM_BLOCK_PAGES + 3, 2 * HMM_BLOCK_PAGES + 4);
	EXPECT_USE(1, 3, 0, 2);
	/* What is kept is in nobody's way, until it is nothing any more. */
	block_keep(fixture_block(&fixture, 3), NULL);
	EXPECT_USE(1, 0, 2);
	cr_expect(eq(uint, fixture.mirror->kept_blocks, 1));
	block_keep(fixture_block(&fixture, 3), NULL);
	block_touch(fixture_block(&fixture, 3));
	EXPECT_USE(1, 0, 2);
	block_cool(fixture_block(&fixture, 3));
	EXPECT_USE(3, 1, 0, 2);
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
	EXPECT_USE(2, 0, 1);
	fixture_later(&fixture, SECOND);
	EXPECT_USE(0, 1);
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

/* ---- room -------------------------------------------------------------------------------- */

struct wanting {
	struct task task;
	struct room_wait room;
	unsigned int runs;
};

static void count_run(struct task *task)
{
	((struct wanting *)task)->runs++;
}

/* The worker hears its bell and does what it has to do, until it has nothing more to do. */
static void work(void)
{
	for (int i = 0; i < 10; i++) {
		evict_look(&fixture.worker);
		owner_run(fixture.owner);
	}
}

static int want(struct wanting *wanting, uint64_t bytes)
{
	wanting->task.run = count_run;
	return evict_wait(fixture.owner, fixture.device, bytes, 0, &wanting->task, &wanting->room);
}

static void begin_full(unsigned int blocks)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, blocks * HMM_BLOCK_SIZE);
	for (unsigned int n = 0; n < blocks; n++)
		fixture_out(&fixture, n * HMM_BLOCK_PAGES, (n + 1) * HMM_BLOCK_PAGES);
	cr_assert(eq(u64, fixture.device->used, fixture.device->size));
}

Test(room, the_coldest_makes_way)
{
	struct wanting wanting = { 0 };

	begin_full(4);
	block_touch(fixture_block(&fixture, 0));
	cr_assert(eq(int, want(&wanting, HMM_BLOCK_SIZE), 0));
	cr_expect(eq(uint, wanting.runs, 0));
	work();
	cr_expect(eq(uint, wanting.runs, 1));
	cr_expect(eq(ptr, fixture_block(&fixture, 1), NULL));
	EXPECT_USE(2, 3, 0);
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVICTIONS], 1));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_PAGES_EVICTED], HMM_BLOCK_PAGES));
	cr_expect(eq(u64, fixture.device->pool->evicted, HMM_BLOCK_SIZE));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* Chosen, and used before its turn came: another one goes. */
Test(room, what_was_used_since_stays)
{
	struct wanting wanting = { 0 };

	begin_full(3);
	cr_assert(eq(int, want(&wanting, HMM_BLOCK_SIZE), 0));
	evict_look(&fixture.worker);
	block_touch(fixture_block(&fixture, 0));
	work();
	cr_expect(eq(uint, wanting.runs, 1));
	EXPECT_USE(2, 0);
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVICTIONS], 1));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVICTIONS_REFUSED], 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* A block that is busy when somebody looks is no younger for that. */
Test(room, what_is_busy_keeps_its_place)
{
	struct pages one = pages_from(0, 1);
	struct wanting wanting = { 0 };

	begin_full(4);
	fixture_callbacks(&fixture);
	for (unsigned int n = 0; n < 2; n++)
		home_begin(fixture_block(&fixture, n), &one, HMM_BLOCK_PAGES, false, HMM_REASON_CPU_FAULT, 0, NULL);
	cr_assert(eq(int, want(&wanting, HMM_BLOCK_SIZE), 0));
	evict_look(&fixture.worker);
	EXPECT_USE(0, 1, 2, 3);
	fixture_answer(&fixture);
	work();
	fixture_answer(&fixture);
	work();
	cr_expect(eq(uint, wanting.runs, 1));
	EXPECT_USE(0, 1, 3);
	fixture_end(&fixture);
}

/* Two want room in one round, and both get theirs. */
Test(room, for_two_at_once)
{
	struct wanting a = { 0 }, b = { 0 };

	begin_full(4);
	cr_assert(eq(int, want(&a, HMM_BLOCK_SIZE), 0));
	cr_assert(eq(int, want(&b, 2 * HMM_BLOCK_SIZE), 0));
	work();
	cr_expect(eq(uint, a.runs, 1));
	cr_expect(eq(uint, b.runs, 1));
	cr_expect(eq(u64, fixture.device->used, HMM_BLOCK_SIZE));
	cr_expect(eq(u64, fixture.device->room.round, 1));
	fixture_end(&fixture);
}

/* What has come home and lingers goes first, and nobody is asked for it. */
Test(room, what_is_unused_first)
{
	struct pages all = pages_from(0, HMM_BLOCK_PAGES);
	struct wanting wanting = { 0 };

	begin_full(4);
	home_begin(fixture_block(&fixture, 3), &all, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	cr_assert(eq(u64, fixture.device->used, fixture.device->size));
	cr_assert(eq(int, want(&wanting, HMM_BLOCK_SIZE), 0));
	work();
	cr_expect(eq(uint, wanting.runs, 1));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVICTIONS], 0));
	cr_expect(eq(u64, fixture.mirror->device_pages, 3 * HMM_BLOCK_PAGES));
	EXPECT_USE(0, 1, 2);
	fixture_end(&fixture);
}

Test(room, there_is_none)
{
	struct wanting wanting = { 0 };
	char text[200];

	begin_full(2);
	block_keep(fixture_block(&fixture, 0), NULL);
	block_keep(fixture_block(&fixture, 1), NULL);
	/* More than there is at all: nobody is troubled. */
	cr_expect(eq(int, want(&wanting, 3 * HMM_BLOCK_SIZE), -ENOSPC));
	cr_expect(eq(u64, fixture.device->room.round, 0));
	cr_assert(eq(int, want(&wanting, HMM_BLOCK_SIZE), 0));
	work();
	cr_expect(eq(uint, wanting.runs, 1));
	cr_expect(eq(int, want(&wanting, HMM_BLOCK_SIZE), -ENOSPC));
	evict_explain(&fixture.worker, fixture.device, HMM_BLOCK_SIZE, text, sizeof(text));
	cr_expect(eq(str, text, "device test has 4194304 bytes, of which 4194304 are in use, "
				"4194304 of those pinned or coherent; 2097152 are wanted"));
	fixture_end(&fixture);
}

/* A block that is busy may be free in a moment: it is come back for, later and later, and not for ever. */
Test(room, what_is_busy_is_come_back_for)
{
	struct pages all = pages_from(0, HMM_BLOCK_PAGES);
	struct wanting wanting = { 0 };
	unsigned int times = 0;
	int r;

	begin_full(1);
	fixture_callbacks(&fixture);
	home_begin(fixture_block(&fixture, 0), &all, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	while (!(r = want(&wanting, HMM_BLOCK_SIZE))) {
		cr_assert(lt(uint, times++, 100));
		work();
		/* Not a turn of the worker too early. */
		if (wanting.room.due > fixture.worker.now)
			cr_assert(eq(uint, wanting.runs, times - 1));
		fixture.worker.now += SECOND / 4;
		evict_tick(fixture.owner, fixture.worker.now);
		owner_run(fixture.owner);
		cr_assert(eq(uint, wanting.runs, times), "time %u", times);
	}
	cr_expect(eq(int, r, -EAGAIN));
	cr_expect(eq(uint, times, 17), "nine rounds, and eight times later");
	fixture_answer(&fixture);
	/* A new one finds it free. */
	wanting = (struct wanting){ 0 };
	cr_assert(eq(int, want(&wanting, HMM_BLOCK_SIZE), 0));
	work();
	cr_expect(eq(u64, fixture.device->used, 0));
	fixture_end(&fixture);
}

/* Not only after its delay: a migration that ends leaves behind what may make way. */
Test(room, what_comes_free_is_heard_of)
{
	struct pages all = pages_from(0, HMM_BLOCK_PAGES);
	struct wanting wanting = { 0 };

	begin_full(1);
	fixture_callbacks(&fixture);
	home_begin(fixture_block(&fixture, 0), &all, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	cr_assert(eq(int, want(&wanting, HMM_BLOCK_SIZE), 0));
	work();
	cr_assert(eq(int, want(&wanting, HMM_BLOCK_SIZE), 0));
	work();
	evict_tick(fixture.owner, fixture.worker.now);
	owner_run(fixture.owner);
	cr_expect(eq(uint, wanting.runs, 1));
	evict_released(&fixture.worker, fixture.device);
	work();
	cr_expect(eq(uint, wanting.runs, 2));
	cr_expect(eq(uint, wanting.room.delays, 0), "a delay that was not needed is not counted");
	fixture_answer(&fixture);
	fixture_end(&fixture);
}

/* All drivers refuse: then they are told, the coldest first. */
Test(room, refused_by_all_it_is_an_order)
{
	struct wanting wanting = { 0 };

	begin_full(3);
	fixture_callbacks(&fixture);
	cr_assert(eq(int, want(&wanting, HMM_BLOCK_SIZE), 0));
	for (int i = 0; i < 10 && !wanting.runs; i++) {
		work();
		fixture_answer_with(&fixture, -EAGAIN);
	}
	cr_expect(eq(uint, wanting.runs, 1));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVICTIONS_REFUSED], 3));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVICTIONS], 1));
	EXPECT_USE(1, 2);
	fixture_end(&fixture);
}

/* Above the high mark blocks go home that nobody wants the room of, down to the low one. */
Test(room, between_the_marks)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, 4 * HMM_BLOCK_SIZE);
	fixture.engine.options.evict_high = 75;
	fixture.engine.options.evict_low = 25;
	for (unsigned int n = 0; n < 3; n++)
		fixture_out(&fixture, n * HMM_BLOCK_PAGES, (n + 1) * HMM_BLOCK_PAGES);
	evict_released(&fixture.worker, fixture.device);
	work();
	cr_expect(eq(u64, fixture.device->used, 3 * HMM_BLOCK_SIZE));
	cr_expect(eq(u64, fixture.device->room.round, 0));
	fixture_out(&fixture, 3 * HMM_BLOCK_PAGES, 3 * HMM_BLOCK_PAGES + 1);
	evict_released(&fixture.worker, fixture.device);
	work();
	cr_expect(eq(u64, fixture.device->room.round, 1));
	cr_expect(eq(u64, fixture.device->used, HMM_PAGE_SIZE));
	EXPECT_USE(3);
	fixture_end(&fixture);
}

/* The owner goes: what waits does not. */
Test(room, an_owner_that_is_gone_waits_no_more)
{
	struct wanting wanting = { 0 };

	begin_full(1);
	cr_assert(eq(int, want(&wanting, HMM_BLOCK_SIZE), 0));
	owner_gone(fixture.owner);
	cr_expect(eq(uint, wanting.runs, 1));
	evict_look(&fixture.worker);
	cr_expect(eq(u64, fixture.device->room.ended, 1));
	fixture_end(&fixture);
}

/* ---- copies of what another device holds ------------------------------------------------- */

#define COPIED 4U	/* pages of a block */

static struct device *full;
static struct mirror *reader;

static struct copy *copy_in(unsigned int n)
{
	return copies_find(fixture_block(&fixture, n), reader);
}

/* A device with room for pages of @blocks blocks, full of copies of what another mirror's device holds. */
static void begin_copied(unsigned int blocks)
{
	struct pages pages = pages_from(0, COPIED);
	struct task none = { 0 };
	uint8_t result;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.engine.devices.capacity += POOL;
	/* Another kind, so that it is another pool. */
	cr_assert(eq(int, device_new(&fixture.engine.devices, "full", HMM_POOL_KIND_MEMFD_HUGE, NULL, POOL, 0, DRIVER,
				     &full), 0));
	full->size = blocks * COPIED * HMM_PAGE_SIZE;
	device_use(&fixture.engine.devices, full->id);
	reader = mirror_new(fixture.owner, 1, full, NULL);
	cr_assert(ne(ptr, reader, NULL));
	for (unsigned int n = 0; n < blocks; n++) {
		fixture_out(&fixture, n * HMM_BLOCK_PAGES, n * HMM_BLOCK_PAGES + COPIED);
		home_begin(fixture_block(&fixture, n), &pages, HMM_BLOCK_PAGES, true, HMM_REASON_CPU_FAULT, 0, NULL);
		cr_assert(eq(int, copies_get(fixture_block(&fixture, n), reader, 0, COPIED, &none, &result),
			     COPIES_MADE));
	}
	cr_assert(eq(u64, full->used, full->size));
}

static void end_copied(void)
{
	full->size = POOL;
	fixture_end(&fixture);
}

static int want_on_full(struct wanting *wanting, unsigned int pages)
{
	wanting->task.run = count_run;
	return evict_wait(fixture.owner, full, pages * HMM_PAGE_SIZE, 0, &wanting->task, &wanting->room);
}

/* Nothing comes home, and the holder keeps its pages. */
static void expect_copied(unsigned int blocks, unsigned int kept)
{
	uint64_t pages = 0;

	for (unsigned int n = 0; n < blocks; n++) {
		const struct block *block = fixture_block(&fixture, n);

		cr_expect(eq(uint, block_count(block, HMM_PAGE_SHARED), COPIED), "block %u", n);
		cr_expect(eq(int, copy_in(n) != NULL, kept >> n & 1), "block %u", n);
		pages += kept >> n & 1 ? COPIED : 0;
	}
	cr_expect(eq(u64, full->used, pages * HMM_PAGE_SIZE));
	cr_expect(eq(u64, full->pool->used, full->used));
	cr_expect(eq(u64, reader->shared_pages, pages));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVICTIONS], 0), "no block came home");
	cr_expect(eq(uint, fixture.owner->jobs, 0));
	fixture_check(&fixture);
}

Test(copied, the_coldest_make_way)
{
	struct wanting wanting = { 0 };

	begin_copied(3);
	copies_touch(copy_in(0));
	cr_assert(eq(int, want_on_full(&wanting, COPIED), 0));
	work();
	cr_expect(eq(uint, wanting.runs, 1));
	expect_copied(3, 1 | 4);
	/* Making one is a use, too. */
	wanting = (struct wanting){ 0 };
	cr_assert(eq(int, want_on_full(&wanting, 2 * COPIED), 0));
	work();
	cr_expect(eq(uint, wanting.runs, 1));
	expect_copied(3, 1);
	end_copied();
}

/* Drivers are told, with the reason, and what waits does so until they have answered. */
Test(copied, when_the_drivers_have_answered)
{
	struct wanting wanting = { 0 };
	struct letter *letter;
	const struct hmm_msg_invalidate *message;

	begin_copied(3);
	fixture_callbacks(&fixture);
	cr_assert(eq(int, want_on_full(&wanting, COPIED), 0));
	work();
	cr_assert(eq(uint, wanting.runs, 0));
	cr_expect(block_at_rest(fixture_block(&fixture, 1)), "no more than need be");
	cr_expect(not(block_at_rest(fixture_block(&fixture, 0))));
	cr_expect(eq(u64, full->used, full->size), "not freed under anybody's feet");
	letter = mailbox_take(&fixture.outbox);
	cr_assert(ne(ptr, letter, NULL));
	message = (const void *)letter->message;
	cr_expect(eq(ptr, letter->next, NULL));
	cr_expect(eq(u32, message->reason, HMM_REASON_EVICT));
	cr_expect(eq(u32, message->blockable, 0));
	cr_expect(eq(u64, message->start, ROOM_START));
	cr_expect(eq(u64, message->end, ROOM_START + COPIED * HMM_PAGE_SIZE));
	invalidate_ack(fixture.owner, message->cookie, 0);
	letter_free(letter);
	work();
	cr_expect(eq(uint, wanting.runs, 1));
	expect_copied(3, 2 | 4);
	end_copied();
}

/* A refusal leaves the copy where it is, in the table, too; all refuse: then it is an order. */
Test(copied, refused_by_all_it_is_an_order)
{
	struct wanting wanting = { 0 };
	unsigned int refused = 0;

	begin_copied(2);
	fixture_callbacks(&fixture);
	cr_assert(eq(int, want_on_full(&wanting, COPIED), 0));
	for (int i = 0; i < 10 && refused < 2; i++) {
		work();
		refused += fixture_answer_with(&fixture, -EAGAIN);
		for (unsigned int n = 0; n < 2; n++)
			cr_expect(eq(uint, pages_count(&copy_in(n)->pages), COPIED));
		cr_assert(eq(u64, full->used, full->size));
		cr_assert(eq(uint, wanting.runs, 0));
	}
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVICTIONS_REFUSED], 2));
	work();
	cr_expect(eq(uint, fixture_answer_with(&fixture, -EAGAIN), 1), "which is no answer to an order");
	work();
	cr_expect(eq(uint, wanting.runs, 1));
	expect_copied(2, 2);
	end_copied();
}

static void pin_to(struct hmm_attribute *attribute, const void *data)
{
	attribute->flags |= HMM_ATTRIBUTE_PIN;
	attribute->pinned = *(const uint8_t *)data;
}

Test(copied, pinned_ones_stay)
{
	struct wanting wanting = { 0 };
	const uint8_t here = 1, holder = 0;
	struct attribute_map *map;

	begin_copied(2);
	map = &fixture.owner->attributes;
	cr_assert(eq(int, attribute_edit(map, ROOM_START, ROOM_END, pin_to, &here), 0));
	cr_assert(eq(int, want_on_full(&wanting, 1), 0));
	work();
	cr_expect(eq(uint, wanting.runs, 1));
	cr_expect(eq(int, want_on_full(&wanting, 1), -ENOSPC));
	cr_expect(eq(u64, full->room.seen.pinned, full->size));
	expect_copied(2, 1 | 2);
	/* Pinned to the device that holds it: it does, without the copies. */
	cr_assert(eq(int, attribute_edit(map, ROOM_START, ROOM_END, pin_to, &holder), 0));
	wanting = (struct wanting){ 0 };
	cr_assert(eq(int, want_on_full(&wanting, 1), 0));
	work();
	cr_expect(eq(uint, wanting.runs, 1));
	expect_copied(2, 2);
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_PINS_BROKEN], 0));
	end_copied();
}

/* Copies of a block that is busy may go in a moment: the device is asked again. */
Test(copied, busy_ones_are_asked_again)
{
	struct pages pages = pages_from(0, 1);
	struct wanting wanting = { 0 };

	begin_copied(1);
	fixture_callbacks(&fixture);
	unshare_begin(fixture_block(&fixture, 0), &pages, HMM_REASON_CPU_WRITE, NULL);
	cr_assert(eq(int, want_on_full(&wanting, COPIED), 0));
	work();
	cr_expect(eq(uint, wanting.runs, 1), "nothing could go");
	cr_assert(eq(int, want_on_full(&wanting, COPIED), 0), "but that may change");
	cr_expect(eq(uint, fixture_answer(&fixture), 1));
	fixture.worker.now += SECOND;
	evict_tick(fixture.owner, fixture.worker.now);
	owner_run(fixture.owner);
	cr_expect(eq(uint, wanting.runs, 2));
	cr_assert(eq(int, want_on_full(&wanting, COPIED), 0));
	work();
	fixture_answer(&fixture);
	work();
	cr_expect(eq(uint, wanting.runs, 3));
	cr_expect(eq(u64, full->used, 0));
	end_copied();
}

static struct kernel_ops stubborn;

static int punch_nothing(int fd, uint64_t offset, uint64_t length)
{
	(void)fd;
	(void)offset;
	(void)length;
	return 0;
}

/* What could not be freed with its copies is the first to go, and nobody is asked for it. */
Test(copied, what_lingers_goes_first)
{
	struct pages pages = pages_from(0, COPIED);
	struct wanting wanting = { 0 };

	begin_copied(2);
	stubborn = *kernel;
	stubborn.punch = punch_nothing;
	kernel = &stubborn;
	copies_return(fixture_block(&fixture, 1), &pages, HMM_REASON_MIGRATE, NULL);
	kernel = &kernel_real;
	cr_assert(eq(u64, full->used, full->size));
	fixture_callbacks(&fixture);
	cr_assert(eq(int, want_on_full(&wanting, COPIED), 0));
	work();
	cr_expect(eq(uint, fixture_answer(&fixture), 0));
	cr_expect(eq(uint, wanting.runs, 1));
	expect_copied(2, 1);
	end_copied();
}

/* The owner goes while its drivers think about it. */
Test(copied, of_an_owner_that_is_gone)
{
	struct wanting wanting = { 0 };

	begin_copied(2);
	fixture_callbacks(&fixture);
	cr_assert(eq(int, want_on_full(&wanting, COPIED), 0));
	work();
	owner_gone(fixture.owner);
	cr_expect(eq(uint, wanting.runs, 1));
	evict_look(&fixture.worker);
	cr_expect(eq(u64, full->room.ended, full->room.round));
	cr_expect(eq(u64, full->room.busy | full->room.asked, 0));
	end_copied();
}
