// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_reach.c - a device that cannot fault: its driver is asked before a change, and told
 * once when it is over, and never in another order.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdlib.h>

#include "engine_fixture.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(reach);

#define OUT 20U

static struct fixture fixture;

/* What was said to the driver, in order. */
static struct { uint16_t opcode; uint64_t cookie; } heard[8];
static unsigned int n_heard;

static void hear(void)
{
	struct letter *letter = mailbox_take(&fixture.outbox), *next;

	for (n_heard = 0; letter; letter = next) {
		const struct hmm_msg_invalidate *invalidate = (const void *)letter->message;
		const struct hmm_msg_settled *settled = (const void *)letter->message;

		next = letter->next;
		cr_assert(eq(int, letter->kind, LETTER_EVENT));
		cr_assert(lt(uint, n_heard, 8));
		heard[n_heard].opcode = letter->message->opcode;
		if (letter->message->opcode == HMM_OP_SETTLED) {
			cr_assert(eq(u32, settled->mirror, fixture.mirror->id));
			heard[n_heard++].cookie = settled->cookie;
		} else {
			cr_assert(eq(int, letter->message->opcode, HMM_OP_INVALIDATE));
			heard[n_heard++].cookie = invalidate->cookie;
		}
		letter_free(letter);
	}
}

static void begin(void)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.device->caps = 0;
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, OUT);
	cr_assert(eq(u64, fixture.mirror->device_pages, OUT));
}

static void finish(void)
{
	fixture_check(&fixture);
	fixture_end(&fixture);
}

static void go_home(void)
{
	migrate_home(fixture.owner, ROOM_START, ROOM_START + OUT * HMM_PAGE_SIZE, NULL, NULL, NULL);
	owner_run(fixture.owner);
}

Test(reach, stopped_then_changed_then_told)
{
	struct block *block;
	uint64_t cookie;

	begin();
	block = fixture_block(&fixture, 0);
	go_home();
	hear();
	cr_assert(eq(uint, n_heard, 1));
	cr_assert(eq(int, heard[0].opcode, HMM_OP_INVALIDATE));
	cookie = heard[0].cookie;
	/* It may be running still. */
	cr_assert(not(block_at_rest(block)));
	cr_assert(eq(u64, fixture.mirror->device_pages, OUT));
	fixture_later(&fixture, SECOND / 10);
	hear();
	cr_assert(eq(uint, n_heard, 0));
	invalidate_ack(fixture.owner, cookie, 0);
	owner_run(fixture.owner);
	hear();
	cr_assert(eq(uint, n_heard, 1));
	cr_assert(eq(int, heard[0].opcode, HMM_OP_SETTLED));
	cr_assert(eq(u64, heard[0].cookie, cookie));
	cr_assert(eq(u64, fixture.mirror->device_pages, 0));
	cr_assert(eq(u64, fixture.owner->counter[COUNTER_QUIESCES], 1));
	/* Nothing of its pages is out: what happens to them is nothing to it. */
	block = fixture_block(&fixture, 0);
	if (block) {
		cr_assert(not(reach_any(fixture.mirror, block, ROOM_START, ROOM_START + OUT * HMM_PAGE_SIZE)));
		block_discard(block, 0, OUT, HMM_REASON_DISCARD);
	}
	owner_run(fixture.owner);
	hear();
	cr_assert(eq(uint, n_heard, 0));
	finish();
}

Test(reach, a_late_driver_is_told_as_well)
{
	uint64_t cookie;

	begin();
	go_home();
	hear();
	cookie = heard[0].cookie;
	fixture_later(&fixture, 1001 * NS_PER_MS);
	owner_run(fixture.owner);
	hear();
	cr_assert(eq(uint, n_heard, 1));
	cr_assert(eq(int, heard[0].opcode, HMM_OP_SETTLED));
	cr_assert(eq(u64, heard[0].cookie, cookie));
	cr_assert(eq(u64, fixture.owner->counter[COUNTER_LATE_DRIVERS], 1));
	finish();
}

/* No page is at both: a read takes it as a write does. */
Test(reach, never_shared)
{
	struct block *block;
	struct pages pages = pages_from(0, OUT);

	begin();
	block = fixture_block(&fixture, 0);
	home_begin(block, &pages, HMM_BLOCK_PAGES, true, HMM_REASON_CPU_FAULT, 0, NULL);
	hear();
	invalidate_ack(fixture.owner, heard[0].cookie, 0);
	owner_run(fixture.owner);
	hear();
	cr_assert(eq(u64, fixture.mirror->shared_pages, 0));
	cr_assert(eq(u64, fixture.mirror->device_pages, 0));
	finish();
}

/* A driver that comes back in the middle of a change goes on when that is over. */
Test(reach, comes_back_in_a_change)
{
	uint64_t cookie;

	begin();
	go_home();
	hear();
	cookie = heard[0].cookie;
	fixture.mirror->restarting = true;
	invalidate_restart(fixture.owner);
	hear();
	cr_assert(eq(uint, n_heard, 0));
	invalidate_ack(fixture.owner, cookie, 0);
	owner_run(fixture.owner);
	hear();
	cr_assert(eq(uint, n_heard, 2));
	cr_assert(eq(u64, heard[0].cookie, cookie));
	cr_assert(eq(int, heard[1].opcode, HMM_OP_SETTLED));
	cr_assert(eq(u64, heard[1].cookie, 0));
	cr_assert(not(fixture.mirror->restarting));
	/* With nothing under way at once, and once only. */
	fixture.mirror->restarting = true;
	invalidate_restart(fixture.owner);
	invalidate_restart(fixture.owner);
	hear();
	cr_assert(eq(uint, n_heard, 1));
	finish();
}

Test(reach, what_it_may_have)
{
	struct block *block;

	begin();
	block = fixture_block(&fixture, 0);
	cr_assert(reach_page(fixture.mirror, block, 0));
	cr_assert(not(reach_page(fixture.mirror, block, OUT)));
	cr_assert(eq(u32, reach_pinned(fixture.owner, ROOM_START, ROOM_END), 0));
	fixture.device->caps = HMM_DEVICE_CAPS_FAULTS;
	cr_assert(reach_page(fixture.mirror, block, OUT));
	finish();
}
