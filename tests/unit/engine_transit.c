// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_transit.c - transits of an owner that is this very process, with a
 * real userfaultfd: with and without a driver that answers; discards at rest
 * and on the way; and what an owner that closes waits for.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/fork.h"
#include "engine_fixture.h"
#include "tests/leakcheck.h"
#include "uapi.h"

LEAKCHECKED_SUITE(transit);
LEAKCHECKED_SUITE(closing);

static struct fixture fixture;

/* ---- transits --------------------------------------------------------------------------- */

Test(transit, every_state_has_a_name_and_rules)
{
	for (unsigned int a = 0; a < HMM_TRANSIT_MAX; a++) {
		const struct transit_rule *rule = &transit_rules[a];

		cr_assert(ne(ptr, (void *)rule->name, NULL), "transit %u", a);
		cr_assert(eq(str, (char *)transit_name(a), (char *)rule->name));
		cr_assert(rule->owner_has && *rule->owner_has);
		cr_assert(rule->owner_has_not && *rule->owner_has_not);
		cr_assert(ne(uint, rule->from, 0));
		cr_assert(ne(uint, rule->to, 0));
		cr_assert(eq(uint, (rule->from | rule->to) >> (HMM_PAGE_ERROR + 1), 0),
			  "states that there are not");
		if (a != HMM_TRANSIT_REST) {
			/* Its page may always be lost to the owner meanwhile: unmapped. */
			cr_assert(rule->to & 1U << HMM_PAGE_INVALID, "%s", rule->name);
			cr_assert(not(rule->from & 1U << HMM_PAGE_REMOTE), "%s", rule->name);
		}
		for (unsigned int b = 0; b < a; b++)
			cr_assert(ne(str, (char *)rule->name, (char *)transit_rules[b].name));
	}
	cr_expect(eq(str, (char *)transit_name(HMM_TRANSIT_MAX), "?"));
	cr_expect(eq(str, (char *)transit_name(UINT32_MAX), "?"));
}

static unsigned int refusals, homes;

/* As where an event is unread. */
static int refused_copy(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode,
			size_t *done)
{
	if (!refusals)
		return kernel_real.uffd_copy(uffd, dst, src, length, mode, done);
	refusals--;
	*done = 0;
	return -EAGAIN;
}

static void note_home(struct owner *owner, void *data, uint64_t pages)
{
	(void)owner;
	(void)data;
	(void)pages;
	homes++;
}

/* How many of 20 pages stay on the device, whose copying home is refused so often. */
static uint64_t left_there(unsigned int times)
{
	struct kernel_ops ops = kernel_real;
	const struct kernel_ops *before = kernel;
	uint64_t left;

	refusals = times;
	homes = 0;
	ops.uffd_copy = refused_copy;
	kernel = &ops;
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 20);
	migrate_home(fixture.owner, ROOM_START, ROOM_START + HMM_BLOCK_SIZE, NULL, note_home, NULL);
	for (int ms = 0; ms < 4000 && !homes; ms++)
		fixture_later(&fixture, NS_PER_MS);
	cr_expect(eq(uint, homes, 1));
	left = fixture.mirror->device_pages;
	fixture_check(&fixture);
	kernel = before;
	fixture_end(&fixture);
	return left;
}

Test(transit, a_map_that_changes_all_the_time_keeps_nothing_there)
{
	cr_expect(eq(u64, left_there(2000), 0));
	/* For ever, it does. */
	cr_expect(eq(u64, left_there(UINT32_MAX), 20));
}

static void exclude(void)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_exclude *message = calloc(1, sizeof(*message));

	HMM_MSG_INIT(*message, HMM_OP_EXCLUDE, 0);
	message->addr = ROOM_START;
	message->length = ROOM_END - ROOM_START;
	letter->message = &message->header;
	letter->owner = fixture.owner->id;
	exclude_request(fixture.owner, letter);
	owner_run(fixture.owner);
}

static int excluded(void)
{
	int status = 1;

	exclude();
	for (int ms = 0; ms < 4000 && status == 1; ms++) {
		fixture_later(&fixture, NS_PER_MS);
		status = fixture_reply(&fixture);
	}
	return status;
}

Test(transit, what_is_excluded_and_cannot_come_home_is_told)
{
	struct kernel_ops ops = kernel_real;

	refusals = UINT32_MAX;
	ops.uffd_copy = refused_copy;
	kernel = &ops;
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 20);
	cr_expect(eq(int, excluded(), -EBUSY));
	cr_expect(eq(u64, fixture.mirror->device_pages, 20));
	/* It is excluded all the same, and comes when it can. */
	cr_expect(span_set_overlaps(&fixture.owner->excluded, ROOM_START, ROOM_START + HMM_PAGE_SIZE));
	refusals = 0;
	cr_expect(eq(int, excluded(), 0));
	cr_expect(eq(u64, fixture.mirror->device_pages, 0));
	fixture_check(&fixture);
	kernel = &kernel_real;
	fixture_end(&fixture);
}

/* Pages [0, out) of a block are on the device, and [0, coming) of them wait for the driver's answer. */
static struct block *coming_home(unsigned int out, unsigned int coming)
{
	struct pages pages = pages_from(0, coming);
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, out);
	block = fixture_block(&fixture, 0);
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	return block;
}

Test(transit, home_without_a_driver_is_at_once)
{
	struct pages pages = pages_from(3, 9);
	char expected[HMM_PAGE_SIZE];
	uint64_t before, epoch;
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 20);
	block = fixture_block(&fixture, 0);
	before = fixture_sequence(block);
	epoch = block->record->epoch;
	cr_assert(eq(u64, before & 1, 0));
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before + 2));
	cr_expect(lt(u64, epoch, block->record->epoch));
	fixture_check(&fixture);
	for (unsigned int i = 0; i < 20; i++)
		cr_assert(eq(int, page_state(block, i),
			     i >= 3 && i < 9 ? HMM_PAGE_INVALID : HMM_PAGE_DEVICE));
	for (unsigned int i = 3; i < 9; i++) {
		fixture_bytes(i, expected);
		cr_assert(eq(int, memcmp((void *)page_addr(block, i), expected, HMM_PAGE_SIZE), 0));
	}
	fixture_end(&fixture);
}

Test(transit, waits_for_the_driver)
{
	struct pages pages = pages_from(0, 10);
	uint64_t before;
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, 20);
	block = fixture_block(&fixture, 0);
	before = fixture_sequence(block);
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	cr_assert(not(block_at_rest(block)));
	cr_expect(eq(u64, fixture_sequence(block), before + 1));
	cr_expect(eq(uint, block->acks, 1));
	/* What a successor would find. */
	cr_expect(eq(u32, block->record->transit, HMM_TRANSIT_HOME_COPY));
	cr_expect(eq(u64, block->record->pending[0], 0x3ff));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 20),
		  "nothing is done before the driver has answered");
	fixture_check(&fixture);
	/* A little later: still waiting. */
	fixture_later(&fixture, SECOND / 2);
	cr_assert(not(block_at_rest(block)));
	cr_expect(eq(uint, fixture_answer(&fixture), 1));
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before + 2));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 10));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(transit, a_driver_that_does_not_answer_is_not_waited_for)
{
	struct block *block;

	block = coming_home(10, 10);
	fixture_later(&fixture, 1001 * NS_PER_MS);
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 0));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_LATE_DRIVERS], 1));
	fixture_check(&fixture);
	/* Its answer comes after all. */
	cr_expect(eq(uint, fixture_answer(&fixture), 1));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(transit, a_driver_that_dies_is_not_waited_for)
{
	struct block *block;

	block = coming_home(20, 10);
	/* Another event for it is on its way, too. */
	block_discard(block, 15, 16, HMM_REASON_UNMAP);
	owner_peer_gone(fixture.owner, DRIVER);
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 9));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

struct counted_task {
	struct task task;
	unsigned int runs;
	struct block *block;
};

static void count_run(struct task *task)
{
	struct counted_task *me = (struct counted_task *)task;

	cr_assert(block_at_rest(me->block));
	me->runs++;
}

Test(transit, what_was_parked_goes_on_once_and_in_order)
{
	struct counted_task tasks[5];
	struct block *block;

	block = coming_home(10, 5);
	for (unsigned int i = 0; i < 5; i++) {
		tasks[i] = (struct counted_task){ .task.run = count_run, .block = block };
		block_park(block, &tasks[i].task);
	}
	owner_run(fixture.owner);
	cr_expect(eq(uint, tasks[0].runs, 0));
	fixture_answer(&fixture);
	cr_expect(eq(uint, tasks[0].runs, 0), "not inside of whatever ended the transit");
	cr_expect(eq(ptr, TAILQ_FIRST(&fixture.owner->runnable), &tasks[0].task));
	cr_expect(eq(ptr, TAILQ_LAST(&fixture.owner->runnable, task_list), &tasks[4].task));
	owner_run(fixture.owner);
	fixture_later(&fixture, 0);
	for (unsigned int i = 0; i < 5; i++)
		cr_expect(eq(uint, tasks[i].runs, 1));
	fixture_end(&fixture);
}

/* ---- orders that are taken back --------------------------------------------------------- */

#define GOING	16U	/* pages that are asked to go */

/* The newest order, which moves them out; NULL: it is not that. */
static struct hmm_order *order_out(void)
{
	const struct owner *owner = fixture.owner;
	struct hmm_order *order = &owner->orders->ring[(owner->produced - 1) % HMM_ORDERS_RING];

	return owner->produced && order->kind == HMM_ORDER_OUT_MOVE && order->state == HMM_ORDER_QUEUED ? order : NULL;
}

static void ask_to_go(void)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_migrate *message = calloc(1, sizeof(*message));

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	cr_assert(letter && message);
	HMM_MSG_INIT(*message, HMM_OP_MIGRATE, 0);
	message->mirror = fixture.mirror->id;
	message->target = HMM_TARGET_DEVICE;
	message->addr = ROOM_START;
	message->length = GOING * HMM_PAGE_SIZE;
	letter->message = &message->header;
	owner_request(fixture.owner, letter);
	owner_run(fixture.owner);
}

static unsigned int failed_registers;

static int failing_register(int uffd, uint64_t start, uint64_t length, uint64_t mode)
{
	if (start != ROOM_START || failed_registers == 3)
		return kernel_real.uffd_register(uffd, start, length, mode);
	/* What the tries before were charged for was given back. */
	cr_expect(eq(u64, fixture.device->used, GOING * HMM_PAGE_SIZE));
	failed_registers++;
	return -ENOMEM;
}

/* What could not even begin to go takes no room from others. */
Test(transit, an_order_that_can_t_begin_is_charged_for_nothing)
{
	struct kernel_ops failing = kernel_real;

	failing.uffd_register = failing_register;
	kernel = &failing;
	ask_to_go();
	cr_assert(ge(uint, failed_registers, 1));
	if (!order_out())
		cr_expect(eq(u64, fixture.device->used, 0));
	kernel = &kernel_real;
	fixture_end(&fixture);
}

/* The agent is through with all that there is. */
static void pass(void)
{
	struct owner *owner = fixture.owner;

	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++)
		if (owner->orders->ring[i].kind == HMM_ORDER_RELEASE)
			owner->orders->ring[i].state = HMM_ORDER_DONE;
	owner->orders->consumed = owner->produced;
	fixture_later(&fixture, NS_PER_MS);
}

/* The agent does not get on, and a thread wants a page. */
static void want_a_page(struct hmm_order *order)
{
	fault_serve(fixture.owner, ROOM_START, 0, 0);
	fixture_later(&fixture, 30 * NS_PER_MS);
	cr_assert(eq(u32, order->state, HMM_ORDER_CANCELLED));
	pass();
}

Test(transit, an_order_that_was_taken_back_is_given_anew)
{
	struct hmm_order *order;

	ask_to_go();
	order = order_out();
	cr_assert(order != NULL);
	want_a_page(order);
	cr_assert(eq(int, fixture_reply(&fixture), 1), "it goes on");
	order = order_out();
	cr_assert(order != NULL, "the same once more");
	memcpy(order->moved, order->want, sizeof(order->moved));
	order->state = HMM_ORDER_DONE;
	pass();
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	cr_expect(eq(uint, block_count(fixture_block(&fixture, 0), HMM_PAGE_DEVICE), GOING));
	owner_gone(fixture.owner);
	fixture_end(&fixture);
}

/* ... but not for ever: whoever asked is told that the pages have stayed. */
Test(transit, an_order_that_is_always_taken_back_is_given_up)
{
	struct hmm_order *order;
	unsigned int given = 0;

	ask_to_go();
	for (; (order = order_out()) != NULL; given++) {
		cr_assert(lt(uint, given, 50));
		want_a_page(order);
	}
	cr_expect(lt(uint, 1, given));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	cr_expect(eq(uint, block_count(fixture_block(&fixture, 0), HMM_PAGE_DEVICE), 0));
	owner_gone(fixture.owner);
	fixture_end(&fixture);
}

static struct hmm_order *looking;

/* The pages are unmapped, and as hmmd hears of it the agent is about to look at the hold. */
static ssize_t read_unmap_meanwhile(int uffd, void *buffer, size_t size)
{
	struct uffd_msg message = {
		.event = UFFD_EVENT_UNMAP,
		.arg.remove.start = ROOM_START, .arg.remove.end = ROOM_START + GOING * HMM_PAGE_SIZE,
	};

	(void)uffd;
	if (looking->state != HMM_ORDER_QUEUED)
		return -EAGAIN;
	cr_assert(ge(ulong, size, sizeof(message)));
	looking->state = HMM_ORDER_COMMIT;
	memcpy(buffer, &message, sizeof(message));
	return sizeof(message);
}

/* It steps back and waits for the hold to go; by then it must have been taken back, or it moves what is mapped there next. */
Test(transit, what_is_stale_is_taken_back_before_the_hold_goes)
{
	struct kernel_ops ops = kernel_real;
	struct owner *owner;

	ask_to_go();
	owner = fixture.owner;
	looking = order_out();
	cr_assert(ne(ptr, looking, NULL));
	ops.uffd_read = read_unmap_meanwhile;
	kernel = &ops;
	event_read(owner);
	cr_expect(eq(u32, looking->state, HMM_ORDER_COMMIT));
	cr_expect(eq(u32, owner->orders->hold, 1));
	event_read(owner);
	cr_expect(eq(u32, owner->orders->hold, 1));
	looking->state = HMM_ORDER_RUNNING;
	event_read(owner);
	cr_expect(eq(u32, looking->state, HMM_ORDER_CANCELLED));
	cr_expect(eq(u32, owner->orders->hold, 0));
	kernel = &kernel_real;
	pass();
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	cr_expect(eq(uint, fixture_block(&fixture, 0) ? block_count(fixture_block(&fixture, 0), HMM_PAGE_DEVICE) : 0, 0));
	owner_gone(owner);
	fixture_end(&fixture);
}

/* ---- forks ------------------------------------------------------------------------------ */

static void tell_of_fork(uint16_t opcode, uint32_t fork)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_prepare_fork *message = calloc(1, sizeof(*message));

	cr_assert(letter && message);
	HMM_MSG_INIT(*message, HMM_OP_PREPARE_FORK, 0);
	message->header.opcode = opcode;
	message->fork = fork;
	letter->message = &message->header;
	owner_request(fixture.owner, letter);
	fixture_later(&fixture, NS_PER_MS);
	cr_assert(eq(int, fixture_reply(&fixture), 0));
}

static void just_count(struct task *task)
{
	((struct counted_task *)task)->runs++;
}

/* Its thread was stopped, say: it says so when another one forks. */
Test(transit, a_fork_that_took_too_long_ends_no_other_one)
{
	struct counted_task task = { .task.run = just_count };

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	tell_of_fork(HMM_OP_PREPARE_FORK, 1);
	cr_assert(fork_holds(fixture.owner, &task.task));
	/* However long an owner may take that nobody sees forking. */
	fixture_later(&fixture, 60 * SECOND);
	cr_expect(eq(uint, task.runs, 1), "it was waited for long enough");
	cr_expect(not(fork_holds(fixture.owner, &task.task)));

	tell_of_fork(HMM_OP_PREPARE_FORK, 2);
	tell_of_fork(HMM_OP_PREPARE_FORK, 3);
	cr_assert(fork_holds(fixture.owner, &task.task));
	tell_of_fork(HMM_OP_FORKED, 1);
	tell_of_fork(HMM_OP_FORKED, 2);
	cr_expect(eq(uint, task.runs, 1));
	tell_of_fork(HMM_OP_FORKED, 3);
	cr_expect(eq(uint, task.runs, 2));
	tell_of_fork(HMM_OP_PREPARE_FORK, 4);
	fixture_end(&fixture);
}

Test(transit, discarded_on_the_way)
{
	struct pages pages = pages_from(0, 10);
	struct shadow *shadow;
	struct block *block;
	uint64_t before;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, 20);
	block = fixture_block(&fixture, 0);
	shadow = block_shadow(block);
	before = fixture_sequence(block);
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	/* Some that are on their way, some that are not. */
	block_discard(block, 7, 13, HMM_REASON_DISCARD);
	cr_assert(not(block_at_rest(block)));
	cr_expect(pages_test(&block->dead, 7) && pages_test(&block->dead, 9) &&
		  !pages_test(&block->dead, 6) && !pages_test(&block->dead, 10));
	cr_expect(eq(int, page_state(block, 8), HMM_PAGE_DEVICE),
		  "what the transit is about is its business");
	cr_expect(eq(int, page_state(block, 11), HMM_PAGE_INVALID), "the others are gone at once");
	fixture_check(&fixture);
	cr_expect(eq(uint, fixture_answer(&fixture), 2), "the driver is told of both");
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before + 2));
	for (unsigned int i = 0; i < 20; i++)
		cr_expect(
			eq(int, page_state(block, i), i >= 13 ? HMM_PAGE_DEVICE : HMM_PAGE_INVALID),
			"page %u", i);
	/* What was discarded did not come home: the kernel gives the owner zeros there. */
	for (unsigned int i = 0; i < 13; i++) {
		uint64_t entry;

		cr_assert(eq(int,
			     kernel->pagemap_read(fixture.owner->pagemap, page_addr(block, i), 1,
						  &entry),
			     0));
		cr_expect(eq(int, (entry & PM_PRESENT) != 0, i < 7), "page %u", i);
	}
	cr_assert(block_punch_stale(block));
	cr_expect(not(shadow_has_data(shadow, block->addr, 13 * HMM_PAGE_SIZE)));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(transit, discarded_at_rest)
{
	uint64_t before;
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, 20);
	block = fixture_block(&fixture, 0);
	before = fixture_sequence(block);
	/* Nothing of it is on the device: nobody is asked. */
	block_discard(block, 100, 200, HMM_REASON_UNMAP);
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before));
	block_discard(block, 0, 7, HMM_REASON_UNMAP);
	cr_assert(not(block_at_rest(block)));
	cr_expect(eq(u64, fixture_sequence(block), before + 1));
	fixture_check(&fixture);
	/* Once more while the driver thinks: the same pages, and others. */
	block_discard(block, 5, 12, HMM_REASON_UNMAP);
	fixture_check(&fixture);
	fixture_answer(&fixture);
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before + 2));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 8));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(transit, shared_and_back)
{
	struct pages pages = pages_from(0, 8), some = pages_from(2, 5);
	struct block *block;
	uint64_t before, entry;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 8);
	block = fixture_block(&fixture, 0);
	home_begin(block, &pages, HMM_BLOCK_PAGES, true, HMM_REASON_CPU_FAULT, 0, NULL);
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_SHARED), 8));
	fixture_check(&fixture);
	for (unsigned int i = 0; i < 8; i++) {
		cr_assert(eq(int,
			     kernel->pagemap_read(fixture.owner->pagemap, page_addr(block, i), 1,
						  &entry),
			     0));
		cr_expect(ne(u64, entry & PM_PRESENT, 0));
		cr_expect(ne(u64, entry & 1ULL << 57, 0), "page %u is S and can be written", i);
	}
	before = fixture_sequence(block);
	unshare_begin(block, &some, HMM_REASON_CPU_WRITE, NULL);
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before + 2));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_SHARED), 5));
	fixture_check(&fixture);
	for (unsigned int i = 0; i < 8; i++) {
		cr_assert(eq(int,
			     kernel->pagemap_read(fixture.owner->pagemap, page_addr(block, i), 1,
						  &entry),
			     0));
		cr_expect(eq(int, (entry & 1ULL << 57) != 0, i < 2 || i >= 5), "page %u", i);
	}
	fixture_end(&fixture);
}

/* ---- owners that close ------------------------------------------------------------------------ */

/* The worker's turns, until the owner is gone. False: it stays. */
static bool goes(void)
{
	for (unsigned int i = 0; i < 20 && !TAILQ_EMPTY(&fixture.worker.owners); i++)
		fixture_later(&fixture, SECOND);
	if (!TAILQ_EMPTY(&fixture.worker.owners))
		return false;
	fixture.owner = NULL;
	return true;
}

struct lingering {
	struct task task;
	struct owner *owner;
	unsigned int left;	/* times that it waits once more */
	unsigned int runs;
};

static void linger_run(struct task *task)
{
	struct lingering *me = (struct lingering *)task;

	me->runs++;
	if (me->left && me->left--)
		TAILQ_INSERT_TAIL(&me->owner->retry, &me->task, link);
}

Test(closing, waits_for_what_is_tried_again)
{
	struct lingering task = { .task.run = linger_run, .left = 7 };

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	task.owner = fixture.owner;
	TAILQ_INSERT_TAIL(&fixture.owner->retry, &task.task, link);
	owner_close(fixture.owner);
	cr_expect(goes());
	cr_expect(eq(uint, task.runs, 8));
	fixture_end(&fixture);
}

Test(closing, waits_for_who_wants_a_slot)
{
	struct lingering task = { .task.run = linger_run };
	int slot;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	slot = slot_take(fixture.owner);
	cr_assert(ge(int, slot, 0));
	TAILQ_INSERT_TAIL(&fixture.owner->slot_waiters, &task.task, link);
	owner_close(fixture.owner);
	cr_assert(not(goes()));
	slot_put(fixture.owner, (unsigned int)slot);
	cr_expect(goes());
	cr_expect(eq(uint, task.runs, 1));
	fixture_end(&fixture);
}

static struct letter *read_letter(uint64_t addr)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_device_read *message = calloc(1, sizeof(*message));

	cr_assert(letter && message);
	HMM_MSG_INIT(*message, HMM_OP_DEVICE_READ, 0);
	message->mirror = fixture.mirror->id;
	message->addr = addr;
	message->length = 8;
	letter->message = &message->header;
	return letter;
}

/* Replies that control got. */
static unsigned int replies(void)
{
	struct letter *letter = mailbox_take(&fixture.outbox), *next;
	unsigned int n = 0;

	for (; letter; letter = next) {
		next = letter->next;
		n += letter->kind == LETTER_REPLY;
		letter_free(letter);
	}
	return n;
}

static ssize_t cannot_read(int mem, uint64_t addr, void *buffer, size_t n)
{
	(void)mem, (void)addr, (void)buffer, (void)n;
	return -EIO;
}

/* The owner is stopped in the middle of an mremap(), or says that it is in one and no more. */
Test(closing, a_read_where_the_map_never_comes_to_rest_is_answered)
{
	struct kernel_ops ops = *kernel;

	ops.mem_read = cannot_read;
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	kernel = &ops;
	fixture.owner->orders->remapping = 1;
	owner_request(fixture.owner, read_letter(ROOM_START));
	for (int i = 0; i < 2; i++) {
		fixture_later(&fixture, SECOND);
		cr_expect(eq(int, fixture_reply(&fixture), 1));
	}
	for (int i = 0; i < 3; i++)
		fixture_later(&fixture, SECOND);
	cr_expect(eq(int, fixture_reply(&fixture), -EBUSY));
	kernel = &kernel_real;
	fixture_end(&fixture);
}

/* ---- bytes that can't be read ---------------------------------------------------------------- */

static bool refuses;

static int refuse_to_copy(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode, size_t *done)
{
	*done = 0;
	return refuses ? -EFAULT : kernel_real.uffd_copy(uffd, dst, src, length, mode, done);
}

static void go_home(struct block *block)
{
	struct pages pages;

	block_pages_in(block, HMM_PAGE_DEVICE, 0, HMM_BLOCK_PAGES, &pages);
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	cr_assert(block_at_rest(block));
}

/* There is no memory to read them, and the kernel can't say that it is this. */
Test(transit, what_there_is_no_memory_to_read_stays_on_the_device)
{
	struct kernel_ops ops = kernel_real;
	char expected[HMM_PAGE_SIZE];
	struct block *block;

	ops.uffd_copy = refuse_to_copy;
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 8);
	block = fixture_block(&fixture, 0);
	kernel = &ops;
	refuses = true;
	go_home(block);
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 8));
	refuses = false;
	go_home(block);
	kernel = &kernel_real;
	cr_expect(eq(uint, block_count(block, HMM_PAGE_INVALID), HMM_BLOCK_PAGES));
	fixture_bytes(3, expected);
	cr_expect(eq(int, memcmp((void *)page_addr(block, 3), expected, HMM_PAGE_SIZE), 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* Its memory has failed, say: here there is none, which ends in the same signal. Whoever touched it asked for ever. */
Test(transit, what_cannot_be_read_any_more_is_lost_and_nothing_else)
{
	int nothing = memfd_create("nothing", MFD_CLOEXEC);
	char expected[HMM_PAGE_SIZE];
	struct block *block;
	void *bytes;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 8);
	block = fixture_block(&fixture, 0);
	bytes = shadow_at(block_shadow(block), page_addr(block, 3));
	cr_assert(ne(ptr, mmap(bytes, HMM_PAGE_SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, nothing, 0), MAP_FAILED));
	close(nothing);
	/* Those before it; of more the kernel says that it is to be asked again. */
	go_home(block);
	go_home(block);
	cr_expect(eq(int, page_state(block, 3), HMM_PAGE_ERROR));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_INVALID), HMM_BLOCK_PAGES - 1));
	for (unsigned int i = 0; i < 8; i++) {
		fixture_bytes(i, expected);
		if (i != 3)
			cr_expect(eq(int, memcmp((void *)page_addr(block, i), expected, HMM_PAGE_SIZE), 0));
	}
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_ERRORS], 1));
	cr_expect(eq(u64, fixture.mirror->device_pages, 0));
	fixture_end(&fixture);
}

/* A device's read, parked in a block whose driver thinks: answered, whether the owner closes or its mm is gone. */
Test(closing, a_read_that_is_parked_is_answered)
{
	coming_home(10, 5);
	owner_request(fixture.owner, read_letter(ROOM_START));
	owner_run(fixture.owner);
	owner_close(fixture.owner);
	fixture_later(&fixture, SECOND / 10);
	cr_expect(ne(ptr, TAILQ_FIRST(&fixture.worker.owners), NULL));
	/* It does not answer in time. */
	cr_expect(goes());
	cr_expect(eq(uint, replies(), 1));
	fixture_end(&fixture);
}

Test(closing, a_read_of_an_owner_that_dies_is_answered)
{
	coming_home(10, 5);
	owner_request(fixture.owner, read_letter(ROOM_START));
	owner_run(fixture.owner);
	fixture.owner->gone = true;
	cr_expect(goes());
	cr_expect(eq(uint, replies(), 1));
	fixture_end(&fixture);
}
