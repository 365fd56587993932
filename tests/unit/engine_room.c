// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_room.c - rounds of eviction: who waits for room, who goes, who gets nothing,
 * and copies of what another device holds, which make way, too.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>

#include "engine/copies.h"
#include "engine/evict.h"
#include "engine_fixture.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(room);
LEAKCHECKED_SUITE(copied);

static struct fixture fixture;

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
	EXPECT_USE(&fixture, 2, 3, 0);
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
	EXPECT_USE(&fixture, 2, 0);
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
	EXPECT_USE(&fixture, 0, 1, 2, 3);
	fixture_answer(&fixture);
	work();
	fixture_answer(&fixture);
	work();
	cr_expect(eq(uint, wanting.runs, 1));
	EXPECT_USE(&fixture, 0, 1, 3);
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
	EXPECT_USE(&fixture, 0, 1, 2);
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
	EXPECT_USE(&fixture, 1, 2);
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
	EXPECT_USE(&fixture, 3);
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
