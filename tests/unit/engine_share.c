// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_share.c - ordinary memory becomes coherent and back: the test is the
 * owner's kernel (events come from a pipe) and its agent (it ends the orders in the
 * ring as it likes); hmmd may die at any step, and a successor settles.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine_fixture.h"
#include "tests/leakcheck.h"
#include "uapi.h"

LEAKCHECKED_SUITE(share);

static struct fixture fixture;

/* Block 0 of the room is on the device. */
static struct block *begin(void)
{
	fixture_begin_faked(&fixture, POOL);
	fixture.owner->peer = 1;
	fixture.owner->slots = 2;
	fixture_out(&fixture, 0, HMM_BLOCK_PAGES);
	return fixture_block(&fixture, 0);
}

static struct letter *letter_for(uint16_t opcode)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_share *message = calloc(1, sizeof(*message));

	cr_assert(letter && message);
	HMM_MSG_INIT(*message, HMM_OP_SHARE, 0);
	message->header.opcode = opcode;
	message->mirror = fixture.mirror->id;
	message->addr = ROOM_START;
	message->length = HMM_BLOCK_SIZE;
	letter->message = &message->header;
	return letter;
}

static void ask(uint16_t opcode)
{
	owner_request(fixture.owner, letter_for(opcode));
	owner_run(fixture.owner);
}

static struct hmm_order *last_order(uint32_t kind)
{
	struct owner *owner = fixture.owner;
	struct hmm_order *order = &owner->orders->ring[(owner->produced - 1) % HMM_ORDERS_RING];

	cr_assert(owner->produced > 0);
	cr_assert(eq(u32, order->kind, kind));
	cr_assert(eq(u64, order->addr, ROOM_START));
	return order;
}

/* The agent has done it, or not, and passed it. */
static void finish(struct hmm_order *order, int error)
{
	order->error = error;
	if (!error)
		memcpy(order->moved, order->want, sizeof(order->moved));
	order->state = HMM_ORDER_DONE;
	fixture.owner->orders->consumed = fixture.owner->produced;
}

static void say(uint8_t event, unsigned int first, unsigned int end)
{
	struct uffd_msg message = {
		.event = event,
		.arg.remove.start = ROOM_START + first * HMM_PAGE_SIZE,
		.arg.remove.end = ROOM_START + end * HMM_PAGE_SIZE,
	};

	cr_assert(eq(int, (int)write(fixture.events, &message, sizeof(message)), (int)sizeof(message)));
}

static unsigned int count(enum hmm_page_state state)
{
	return block_count(fixture_block(&fixture, 0), state);
}

/* Whatever it was about is over: the mm is gone, as far as hmmd can tell. */
static void end_all(void)
{
	owner_gone(fixture.owner);
	fixture_reply(&fixture);
}

/* Another hmmd takes over what the ledger and the ring say at this moment. */
static void die_and_succeed(void)
{
	static struct hmm_order ring[HMM_ORDERS_RING];
	struct owner *owner = fixture.owner;
	struct block *block = fixture_block(&fixture, 0);
	struct hmm_ledger_block record = *block->record;

	memcpy(ring, owner->orders->ring, sizeof(ring));
	end_all();
	owner->gone = owner->closing = false;
	memcpy(owner->orders->ring, ring, sizeof(ring));
	*block->record = record;
	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++)
		if (ring[i].state == HMM_ORDER_QUEUED)
			owner->orders->ring[i].state = HMM_ORDER_CANCELLED;
	owner->orders->consumed = owner->produced;
	owner->registered_bytes = 0;
	block_uncharge(block, block->charged);
	block_free(block);
	fixture.mirror->device_pages = fixture.mirror->shared_pages = 0;
	owner->recovering = true;
	owner->reopen_done = letter_new(LETTER_REQUEST);
	cr_assert(recover_tick(owner, fixture.worker.now));
	cr_assert(not(owner->recovering));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	fixture_check(&fixture);
}

/* ---- there --------------------------------------------------------------------------- */

struct waiting {
	struct task task;
	unsigned int runs;
};

static void wait_run(struct task *task)
{
	((struct waiting *)task)->runs++;
}

/* Its order has no slot: nothing else wakes them, if it was the last one. */
Test(share, whoever_waits_for_the_ring_goes_on)
{
	struct waiting waiting = { .task.run = wait_run };

	begin();
	ask(HMM_OP_SHARE);
	TAILQ_INSERT_TAIL(&fixture.owner->slot_waiters, &waiting.task, link);
	finish(last_order(HMM_ORDER_COHERE), 0);
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	cr_expect(owner_agent_idle(fixture.owner));
	cr_expect(eq(uint, waiting.runs, 1));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	fixture_end(&fixture);
}

Test(share, an_exchange_ends_after_its_own_event)
{
	struct block *block = begin();
	struct hmm_order *order;

	ask(HMM_OP_SHARE);
	order = last_order(HMM_ORDER_COHERE);
	cr_expect(eq(u32, block->record->transit, HMM_TRANSIT_COHERING));
	cr_expect(eq(u32, order->slot, HMM_NO_SLOT));
	fixture_check(&fixture);
	/* In the call, which waits for the reader: he does not wait for it. */
	order->state = HMM_ORDER_COMMIT;
	cr_assert(order_hold(fixture.owner));
	order_release_hold(fixture.owner);
	say(UFFD_EVENT_UNMAP, 0, HMM_BLOCK_PAGES);
	finish(order, 0);
	/* Done, and its event unread: that is applied first. */
	order_reap_before_events(fixture.owner);
	cr_expect(not(block_at_rest(block)));
	event_read(fixture.owner);
	cr_expect(not(block_at_rest(block)));
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	cr_expect(eq(uint, count(HMM_PAGE_COHERENT), HMM_BLOCK_PAGES));
	cr_expect(eq(u64, fixture.owner->registered_bytes, 0));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	fixture_check(&fixture);
	/* Asked again, as after a restart: nothing is left to do. */
	ask(HMM_OP_SHARE);
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	/* What is told of its addresses now was before. */
	say(UFFD_EVENT_UNMAP, 0, HMM_BLOCK_PAGES);
	event_read(fixture.owner);
	cr_expect(eq(uint, count(HMM_PAGE_COHERENT), HMM_BLOCK_PAGES));
	fixture_end(&fixture);
}

/* Faults that waited run after the exchange, never between. */
Test(share, a_fault_in_between_waits)
{
	struct block *block = begin();
	struct hmm_order *order;

	ask(HMM_OP_SHARE);
	fault_serve(fixture.owner, ROOM_START + 5 * HMM_PAGE_SIZE, 0, 0);
	cr_expect(ne(ptr, TAILQ_FIRST(&block->parked), NULL));
	order = last_order(HMM_ORDER_COHERE);
	say(UFFD_EVENT_UNMAP, 0, HMM_BLOCK_PAGES);
	order->state = HMM_ORDER_COMMIT;
	event_read(fixture.owner);
	finish(order, 0);
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	cr_expect(eq(uint, count(HMM_PAGE_COHERENT), HMM_BLOCK_PAGES));
	fixture_end(&fixture);
}

/* The last page leaves while a fault waits for another one: that must not come home in between. */
Test(share, what_waits_for_the_move_runs_behind_the_exchange)
{
	struct hmm_order *order;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, 5);
	fixture_out(&fixture, 6, HMM_BLOCK_PAGES);
	ask(HMM_OP_SHARE);
	order = last_order(HMM_ORDER_OUT_MOVE);
	cr_expect(eq(u64, order->want[0], 1 << 5));
	fault_serve(fixture.owner, ROOM_START + 6 * HMM_PAGE_SIZE, 0, 0);
	/* It was never written: zeros of the device. */
	order->hole[0] = 1 << 5;
	order->state = HMM_ORDER_DONE;
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	order = last_order(HMM_ORDER_COHERE);
	cr_expect(eq(uint, count(HMM_PAGE_DEVICE), HMM_BLOCK_PAGES));
	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++)
		if (fixture.owner->orders->ring[i].kind == HMM_ORDER_RELEASE)
			fixture.owner->orders->ring[i].state = HMM_ORDER_DONE;
	finish(order, 0);
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	cr_expect(eq(uint, count(HMM_PAGE_COHERENT), HMM_BLOCK_PAGES));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(share, unmapped_before_the_exchange_it_is_taken_back)
{
	struct hmm_order *order;

	begin();
	ask(HMM_OP_SHARE);
	order = last_order(HMM_ORDER_COHERE);
	say(UFFD_EVENT_UNMAP, 10, 20);
	event_read(fixture.owner);
	cr_expect(eq(u32, order->state, HMM_ORDER_CANCELLED));
	cr_expect(eq(uint, count(HMM_PAGE_DEVICE), HMM_BLOCK_PAGES - 10));
	cr_expect(eq(uint, count(HMM_PAGE_COHERENT), 0));
	fixture_check(&fixture);
	/* Nothing is mapped there: it is asked once more, and told. */
	fixture.owner->orders->consumed = fixture.owner->produced;
	fixture_later(&fixture, 2 * NS_PER_MS);
	fixture_later(&fixture, 2 * NS_PER_MS);
	cr_expect(eq(int, fixture_reply(&fixture), -EFAULT));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(share, no_room_for_a_mapping)
{
	begin();
	ask(HMM_OP_SHARE);
	finish(last_order(HMM_ORDER_COHERE), -ENOMEM);
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	fixture_later(&fixture, 2 * NS_PER_MS);
	cr_expect(eq(int, fixture_reply(&fixture), -ENOMEM));
	cr_expect(eq(uint, count(HMM_PAGE_DEVICE), HMM_BLOCK_PAGES));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* An agent that does not get on is tried again, and given up. */
Test(share, an_agent_that_is_stopped)
{
	struct block *block = begin();

	ask(HMM_OP_SHARE);
	for (int i = 0; i < 10 && !block_at_rest(block); i++) {
		fault_serve(fixture.owner, ROOM_START, 0, 0);
		fixture_later(&fixture, 30 * NS_PER_MS);
	}
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_ORDERS_CANCELLED] > 0, 1));
	fixture.owner->orders->consumed = fixture.owner->produced;
	fixture_check(&fixture);
	end_all();
	fixture_end(&fixture);
}

/* What an agent claims of a part of a block is not believed. */
Test(share, half_an_exchange_is_none)
{
	struct hmm_order *order;

	begin();
	ask(HMM_OP_SHARE);
	order = last_order(HMM_ORDER_COHERE);
	order->moved[0] = 0xff;
	order->state = HMM_ORDER_DONE;
	fixture.owner->orders->consumed = fixture.owner->produced;
	order_reap(fixture.owner);
	cr_expect(eq(uint, count(HMM_PAGE_COHERENT), 0));
	/* It is asked once more, and says what is no error. */
	fixture_later(&fixture, 2 * NS_PER_MS);
	finish(last_order(HMM_ORDER_COHERE), 5);
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	fixture_later(&fixture, 2 * NS_PER_MS);
	cr_expect(eq(int, fixture_reply(&fixture), -EIO));
	fixture_end(&fixture);
}

/* ---- and back -------------------------------------------------------------------------- */

/* Where the owner has the block, as it has what the agent maps. */
static void map_block(void)
{
	void *at = mmap((void *)ROOM_START, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	cr_assert(eq(ptr, at, (void *)ROOM_START));
}

static void protect_page(unsigned int page, int rights)
{
	cr_assert(eq(int, mprotect((void *)(ROOM_START + page * HMM_PAGE_SIZE), HMM_PAGE_SIZE, rights), 0));
}

/* An exchange would give back what the program took while drivers thought. */
Test(share, protected_while_drivers_answer)
{
	begin();
	map_block();
	/* What the owner's library was told. */
	cr_assert(eq(int, fixture_reply(&fixture), 1));
	fixture_callbacks(&fixture);
	ask(HMM_OP_SHARE);
	cr_assert(eq(u32, fixture_block(&fixture, 0)->record->transit, HMM_TRANSIT_COHERING));
	protect_page(77, PROT_READ);
	cr_assert(eq(uint, fixture_answer(&fixture), 1));
	owner_run(fixture.owner);
	cr_expect(eq(u64, fixture.owner->produced, 0));
	for (int i = 0; i < 3; i++)
		fixture_later(&fixture, 2 * NS_PER_MS);
	cr_expect(eq(int, fixture_reply(&fixture), -EPERM));
	cr_expect(eq(uint, count(HMM_PAGE_DEVICE), HMM_BLOCK_PAGES));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

static struct block *begin_coherent(void)
{
	struct block *block = begin();

	map_block();
	ask(HMM_OP_SHARE);
	finish(last_order(HMM_ORDER_COHERE), 0);
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	cr_assert(eq(int, fixture_reply(&fixture), 0));
	cr_assert(eq(uint, count(HMM_PAGE_COHERENT), HMM_BLOCK_PAGES));
	return block;
}

Test(share, back)
{
	struct block *block = begin_coherent();

	ask(HMM_OP_UNSHARE);
	cr_expect(eq(u32, block->record->transit, HMM_TRANSIT_COHERING));
	cr_expect(block->record->flags & HMM_BLOCK_ARMED, "said before it is done");
	fixture_check(&fixture);
	finish(last_order(HMM_ORDER_UNCOHERE), 0);
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	cr_expect(eq(uint, count(HMM_PAGE_DEVICE), HMM_BLOCK_PAGES));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	fixture_check(&fixture);
	/* Twice is no error; it is the library that knows better. */
	ask(HMM_OP_UNSHARE);
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	fixture_end(&fixture);
}

/* On the way back, before it and while drivers answer. */
Test(share, back_protected)
{
	begin_coherent();
	protect_page(77, PROT_READ);
	ask(HMM_OP_UNSHARE);
	cr_expect(eq(int, fixture_reply(&fixture), -EPERM));
	protect_page(77, PROT_READ | PROT_WRITE);
	fixture_callbacks(&fixture);
	ask(HMM_OP_UNSHARE);
	cr_assert(eq(u32, fixture_block(&fixture, 0)->record->transit, HMM_TRANSIT_COHERING));
	protect_page(511, PROT_NONE);
	cr_assert(eq(uint, fixture_answer(&fixture), 1));
	owner_run(fixture.owner);
	cr_expect(eq(int, fixture_reply(&fixture), -EPERM));
	cr_expect(eq(uint, count(HMM_PAGE_COHERENT), HMM_BLOCK_PAGES));
	cr_expect(eq(u64, fixture.owner->registered_bytes, 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(share, back_without_room)
{
	begin_coherent();
	ask(HMM_OP_UNSHARE);
	finish(last_order(HMM_ORDER_UNCOHERE), -ENOMEM);
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	cr_expect(eq(int, fixture_reply(&fixture), -ENOMEM));
	cr_expect(eq(uint, count(HMM_PAGE_COHERENT), HMM_BLOCK_PAGES));
	cr_expect(eq(u64, fixture.owner->registered_bytes, 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* ---- on whose account ------------------------------------------------------------------ */

static struct quota quota;

static void set_quota(void)
{
	char why[200];

	for (unsigned int kind = 0; kind < QUOTA_KINDS; kind++)
		quota.limit[kind] = QUOTA_UNLIMITED;
	quota.limit[QUOTA_PINNED] = HMM_BLOCK_SIZE;
	pthread_mutex_init(&quota.lock, NULL);
	fixture.engine.options.quota = &quota;
	/* What the fixture has put there. */
	cr_assert(eq(int, quota_charge(&quota, fixture.owner->uid, QUOTA_MEMORY, HMM_BLOCK_SIZE, why, sizeof(why)), 0));
	cr_assert(eq(int, quota_charge(&quota, fixture.owner->uid, QUOTA_PINNED, fixture.owner->pinned, why, sizeof(why)), 0));
}

static uint64_t pinned(void)
{
	return quota_used(&quota, fixture.owner->uid, QUOTA_PINNED);
}

static void ask_for_another_block(void)
{
	struct letter *letter = letter_for(HMM_OP_SHARE);

	((struct hmm_msg_share *)(void *)letter->message)->addr += HMM_BLOCK_SIZE;
	owner_request(fixture.owner, letter);
	owner_run(fixture.owner);
}

/* Nothing is coherent yet when the second one comes. */
Test(share, two_requests_have_no_more_than_the_limit)
{
	struct hmm_order *order;

	begin();
	set_quota();
	ask(HMM_OP_SHARE);
	order = last_order(HMM_ORDER_COHERE);
	cr_expect(eq(u64, pinned(), HMM_BLOCK_SIZE));
	ask_for_another_block();
	cr_expect(eq(int, fixture_reply(&fixture), -EDQUOT));
	cr_expect(eq(u64, pinned(), HMM_BLOCK_SIZE));
	finish(order, 0);
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	cr_expect(eq(uint, count(HMM_PAGE_COHERENT), HMM_BLOCK_PAGES));
	cr_expect(eq(u64, pinned(), HMM_BLOCK_SIZE));
	/* Asked again, as after a restart: what is there is not counted twice. */
	ask(HMM_OP_SHARE);
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	cr_expect(eq(u64, pinned(), HMM_BLOCK_SIZE));
	fixture_end(&fixture);
	cr_expect(eq(ptr, quota.users, NULL));
}

Test(share, what_came_to_nothing_is_given_back)
{
	begin();
	set_quota();
	ask(HMM_OP_SHARE);
	cr_expect(eq(u64, pinned(), HMM_BLOCK_SIZE));
	finish(last_order(HMM_ORDER_COHERE), -ENOMEM);
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	fixture_later(&fixture, 2 * NS_PER_MS);
	cr_expect(eq(int, fixture_reply(&fixture), -ENOMEM));
	cr_expect(eq(u64, pinned(), 0));
	fixture_end(&fixture);
	cr_expect(eq(ptr, quota.users, NULL));
}

/* It was coherent, and so counted, when it was asked for; and somebody else has what that was when it is done. */
Test(share, what_was_counted_and_is_no_more)
{
	struct hmm_order *order;

	begin_coherent();
	set_quota();
	ask(HMM_OP_UNSHARE);
	order = last_order(HMM_ORDER_UNCOHERE);
	ask(HMM_OP_SHARE);
	finish(order, 0);
	quota.limit[QUOTA_PINNED] = 0;
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	cr_expect(eq(uint, count(HMM_PAGE_COHERENT), 0));
	cr_expect(eq(u64, pinned(), 0));
	end_all();
	fixture_end(&fixture);
	cr_expect(eq(ptr, quota.users, NULL));
}

/* ---- ... and the program meanwhile */

/* Unmapped by the program as soon as it was ordinary again, before hmmd looked at the order. */
Test(share, unmapped_right_after)
{
	struct hmm_order *order;

	begin_coherent();
	ask(HMM_OP_UNSHARE);
	order = last_order(HMM_ORDER_UNCOHERE);
	finish(order, 0);
	say(UFFD_EVENT_UNMAP, 100, 200);
	event_read(fixture.owner);
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	cr_expect(eq(uint, count(HMM_PAGE_DEVICE), HMM_BLOCK_PAGES - 100));
	cr_expect(eq(uint, count(HMM_PAGE_COHERENT), 0));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* Moved by the program as soon as it was ordinary again: its bytes go along. */
Test(share, moved_right_after)
{
	struct uffd_msg message = {
		.event = UFFD_EVENT_REMAP,
		.arg.remap = { ROOM_START, ROOM_START + 2 * HMM_BLOCK_SIZE, HMM_BLOCK_SIZE },
	};
	char expected[HMM_PAGE_SIZE];
	struct block *there;

	begin_coherent();
	ask(HMM_OP_UNSHARE);
	finish(last_order(HMM_ORDER_UNCOHERE), 0);
	cr_assert(eq(int, (int)write(fixture.events, &message, sizeof(message)), (int)sizeof(message)));
	event_read(fixture.owner);
	order_reap(fixture.owner);
	owner_run(fixture.owner);
	cr_expect(eq(uint, count(HMM_PAGE_INVALID), HMM_BLOCK_PAGES));
	there = fixture_block(&fixture, 2);
	cr_assert(ne(ptr, there, NULL));
	cr_expect(eq(uint, block_count(there, HMM_PAGE_DEVICE), HMM_BLOCK_PAGES));
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		fixture_bytes(i, expected);
		cr_assert(eq(int, memcmp(shadow_at(block_shadow(there), page_addr(there, i)), expected,
					 HMM_PAGE_SIZE), 0));
	}
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* ---- a crash at each step ----------------------------------------------------------------- */

struct step {
	uint16_t request;
	bool done, event, applied;	/* by the agent; its event was read; and applied */
	bool noted;			/* of half of the pages, in the ledger */
	enum hmm_page_state after;
};

static void crash(const struct step *step)
{
	bool there = step->request == HMM_OP_SHARE;
	struct hmm_order *order;

	if (there)
		begin();
	else
		begin_coherent();
	ask(step->request);
	order = last_order(there ? HMM_ORDER_COHERE : HMM_ORDER_UNCOHERE);
	if (step->done)
		finish(order, 0);
	if (step->event) {
		say(UFFD_EVENT_UNMAP, 0, HMM_BLOCK_PAGES);
		if (step->applied)
			event_read(fixture.owner);
		else
			journal_read_only(fixture.owner);
	}
	if (step->noted)
		block_set_state(block_find(fixture.owner, order->addr), 0, HMM_BLOCK_PAGES / 2, step->after);
	die_and_succeed();
	cr_expect(eq(uint, count(step->after), HMM_BLOCK_PAGES));
	fixture_end(&fixture);
}

Test(share, crashed_before_the_agent_began)
{
	crash(&(struct step){ .request = HMM_OP_SHARE, .after = HMM_PAGE_DEVICE });
}

Test(share, crashed_when_it_was_exchanged)
{
	crash(&(struct step){ .request = HMM_OP_SHARE, .done = true, .after = HMM_PAGE_COHERENT });
}

Test(share, crashed_with_the_event_read)
{
	crash(&(struct step){ .request = HMM_OP_SHARE, .done = true, .event = true,
			      .after = HMM_PAGE_COHERENT });
}

Test(share, crashed_with_the_event_applied)
{
	crash(&(struct step){ .request = HMM_OP_SHARE, .done = true, .event = true, .applied = true,
			      .after = HMM_PAGE_COHERENT });
}

Test(share, crashed_with_half_of_it_noted)
{
	crash(&(struct step){ .request = HMM_OP_SHARE, .done = true, .event = true, .applied = true, .noted = true,
			      .after = HMM_PAGE_COHERENT });
}

Test(share, crashed_on_the_way_back_with_half_of_it_noted)
{
	crash(&(struct step){ .request = HMM_OP_UNSHARE, .done = true, .noted = true, .after = HMM_PAGE_DEVICE });
}

Test(share, crashed_on_the_way_back_before_the_agent_began)
{
	crash(&(struct step){ .request = HMM_OP_UNSHARE, .after = HMM_PAGE_COHERENT });
}

Test(share, crashed_on_the_way_back_when_it_was_exchanged)
{
	crash(&(struct step){ .request = HMM_OP_UNSHARE, .done = true, .after = HMM_PAGE_DEVICE });
}
