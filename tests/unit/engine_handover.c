// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_handover.c - a worker that leaves its owners to the next hmmd: what is under way is awaited, for a while,
 * and nothing is begun. The owner is this very process; the test is its agent and its driver.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/handover.h"
#include "engine_fixture.h"
#include "tests/leakcheck.h"
#include "uapi.h"

LEAKCHECKED_SUITE(handover);

#define PAGES	16U

static struct fixture fixture;

/* As the worker's loop does. */
static bool turn(int64_t ns)
{
	fixture.worker.now += ns;
	fixture.worker.alarm = INT64_MAX;
	return handover_tick(&fixture.worker);
}

/* Another hmmd would go on here. This one takes its owner down, which takes tasks. */
static void end(void)
{
	fixture.worker.handing_over = false;
	owner_gone(fixture.owner);
	fixture_end(&fixture);
}

Test(handover, nothing_is_under_way)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, PAGES);
	handover_begin(&fixture.worker);
	cr_expect(turn(0));
	cr_expect(eq(uint, block_count(fixture_block(&fixture, 0), HMM_PAGE_DEVICE), PAGES), "all stays where it is");
	fixture_check(&fixture);
	end();
}

static struct block *come_home(void)
{
	struct pages pages = pages_from(0, PAGES / 2);
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, PAGES);
	block = fixture_block(&fixture, 0);
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	cr_assert(not(block_at_rest(block)));
	return block;
}

struct counted_task {
	struct task task;
	unsigned int runs;
};

static void count_run(struct task *task)
{
	((struct counted_task *)task)->runs++;
}

Test(handover, a_driver_is_awaited_and_nothing_goes_on_from_there)
{
	struct counted_task parked = { .task.run = count_run };
	struct block *block = come_home();

	block_park(block, &parked.task);
	handover_begin(&fixture.worker);
	cr_expect(not(turn(0)));
	cr_expect(le(i64, fixture.worker.alarm, fixture.worker.hand_over_until), "it looks again by itself");
	cr_expect(not(turn(20 * NS_PER_MS)));
	cr_expect(eq(uint, fixture_answer(&fixture), 1));
	owner_run(fixture.owner);
	cr_expect(turn(0));
	cr_expect(block_at_rest(block));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), PAGES / 2));
	cr_expect(eq(uint, parked.runs, 0), "that is the next hmmd's");
	fixture_check(&fixture);
	end();
}

/* As by a crash: it settles in the next one. */
Test(handover, a_driver_that_does_not_answer_is_left_in_the_middle)
{
	struct block *block = come_home();

	handover_begin(&fixture.worker);
	cr_expect(not(turn(50 * NS_PER_MS)));
	cr_expect(turn(51 * NS_PER_MS));
	cr_expect(not(block_at_rest(block)));
	cr_expect(eq(u32, block->record->transit, HMM_TRANSIT_HOME_COPY));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_LATE_DRIVERS], 0), "it is not late for anybody");
	fixture_check(&fixture);
	end();
}

static struct letter *request(uint16_t op, size_t size)
{
	struct letter *letter = letter_new(LETTER_REQUEST);

	cr_assert(ne(ptr, letter, NULL));
	letter->message = calloc(1, size);
	cr_assert(ne(ptr, letter->message, NULL));
	hmm_wire_init(letter->message, op, size, 0);
	return letter;
}

static struct hmm_order *ask_to_go(void)
{
	struct letter *letter = request(HMM_OP_MIGRATE, sizeof(struct hmm_msg_migrate));
	struct hmm_msg_migrate *message = (struct hmm_msg_migrate *)letter->message;
	struct owner *owner;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	owner = fixture.owner;
	owner->peer = 1;
	message->mirror = fixture.mirror->id;
	message->target = HMM_TARGET_DEVICE;
	message->addr = ROOM_START;
	/* More than is in the agent's hands at once. */
	message->length = ROOM_END - ROOM_START;
	owner_request(owner, letter);
	owner_run(owner);
	cr_assert(ge(uint, owner->produced, 1));
	return &owner->orders->ring[(owner->produced - 1) % HMM_ORDERS_RING];
}

Test(handover, the_agent_is_awaited_and_gets_no_more_to_move)
{
	struct hmm_order *last = ask_to_go();
	struct owner *owner = fixture.owner;
	uint32_t moves = 0;

	handover_begin(&fixture.worker);
	cr_expect(not(turn(0)));
	/* It does what it has, and releases slots. */
	for (unsigned int n = 0; n < HMM_ORDERS_RING && !owner_agent_idle(owner); n++) {
		for (uint32_t at = owner->reaped; at != owner->produced; at++) {
			struct hmm_order *order = &owner->orders->ring[at % HMM_ORDERS_RING];

			if (order->state != HMM_ORDER_QUEUED)
				continue;
			moves += order->kind == HMM_ORDER_OUT_MOVE;
			if (order->kind == HMM_ORDER_OUT_MOVE)
				memcpy(order->moved, order->want, sizeof(order->moved));
			order->state = HMM_ORDER_DONE;
		}
		owner->orders->consumed = owner->produced;
		turn(0);
	}
	cr_expect(owner_agent_idle(owner));
	cr_expect(turn(0));
	cr_expect(eq(u32, last->state, HMM_ORDER_DONE));
	cr_expect(ge(u32, moves, 1));
	cr_expect(le(u32, moves, owner->slots), "what had a slot went, and no more");
	cr_expect(eq(u64, fixture.mirror->device_pages, (uint64_t)moves * HMM_BLOCK_PAGES));
	cr_expect(eq(int, fixture_reply(&fixture), 1), "its library asks the next one");
	fixture_check(&fixture);
	end();
}

Test(handover, an_agent_that_is_stopped_is_not_waited_for_long)
{
	ask_to_go();
	handover_begin(&fixture.worker);
	cr_expect(not(turn(99 * NS_PER_MS)));
	cr_expect(turn(2 * NS_PER_MS));
	end();
}

static void touch(uint64_t addr, uint32_t tid)
{
	const struct uffd_msg message = {
		.event = UFFD_EVENT_PAGEFAULT,
		.arg.pagefault.address = addr, .arg.pagefault.feat.ptid = tid,
	};

	cr_assert(eq(i64, write(fixture.events, &message, sizeof(message)), sizeof(message)));
}

static unsigned int copies;

static int note_copy(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode, size_t *done)
{
	(void)uffd;
	(void)dst;
	(void)src;
	(void)mode;
	copies++;
	*done = length;
	return 0;
}

Test(handover, nobody_is_served_but_the_agent)
{
	struct kernel_ops ops = kernel_real;

	ops.uffd_copy = note_copy;
	kernel = &ops;
	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, PAGES);
	fixture.owner->orders->agent_tid = 4711;
	handover_begin(&fixture.worker);
	touch(ROOM_START, 4712);
	event_read(fixture.owner);
	cr_expect(eq(uint, copies, 0));
	cr_expect(eq(uint, block_count(fixture_block(&fixture, 0), HMM_PAGE_DEVICE), PAGES));
	touch(ROOM_START, 4711);
	event_read(fixture.owner);
	cr_expect(eq(uint, copies, 1));
	cr_expect(turn(0));
	kernel = &kernel_real;
	end();
}

/* What the program unmaps meanwhile is known to the next one by the ledger. */
Test(handover, events_are_applied_as_ever)
{
	const struct uffd_msg message = {
		.event = UFFD_EVENT_UNMAP,
		.arg.remove.start = ROOM_START, .arg.remove.end = ROOM_START + HMM_BLOCK_SIZE,
	};
	struct block *block;

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, PAGES);
	block = fixture_block(&fixture, 0);
	handover_begin(&fixture.worker);
	cr_assert(eq(i64, write(fixture.events, &message, sizeof(message)), sizeof(message)));
	event_read(fixture.owner);
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 0));
	cr_expect(eq(u64, fixture.owner->journal->applied, fixture.owner->journal_read));
	cr_expect(turn(0));
	end();
}
