// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_recover.c - what another hmmd makes of an owner, where chance rarely comes by: its agent is in the middle of an order that an
 * event has made stale; a page was noted as shared and the block was not at rest yet; somebody waits where the ledger knows of nobody. The test
 * is the agent and, where a pipe stands for the userfaultfd, the owner's kernel.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine_fixture.h"
#include "tests/leakcheck.h"
#include "uapi.h"

LEAKCHECKED_SUITE(recover);

#define PAGES	4U
#define EPOCH	5U

static struct fixture fixture;

/* hmmd is dead: what its blocks were is what the ledger says. Its successor has all that it needs, and looks. */
static void succeed(void)
{
	struct owner *owner = fixture.owner;

	for (unsigned int n = 0; n < 4; n++) {
		struct block *block = fixture_block(&fixture, n);

		if (!block)
			continue;
		block_uncharge(block, block->charged);
		block_free(block);
	}
	reactor_remove(fixture.worker.reactor, &owner->source);
	reactor_remove(fixture.worker.reactor, &owner->done);
	owner->registered_bytes = 0;
	fixture.mirror->device_pages = fixture.mirror->shared_pages = 0;
	owner->recovering = true;
	owner->reopen_done = letter_new(LETTER_REQUEST);
	__atomic_store_n(&owner->orders->hold, 1, __ATOMIC_SEQ_CST);
}

static void look(void)
{
	cr_assert(recover_tick(fixture.owner, fixture.worker.now));
}

/* ---- an order that was under way --------------------------------------------------------- */

static uint64_t *sequence(void)
{
	return fixture.owner->table + HMM_TABLE_ENTRIES + (ROOM_START >> HMM_BLOCK_SHIFT);
}

/* Pages [0, PAGES) of the first block are on their way out, and their agent is where it looks at the hold. */
static struct hmm_order *die_in_commit(enum hmm_transit transit, enum hmm_order_kind kind)
{
	struct hmm_orders *orders;
	struct hmm_ledger_block *record;
	struct hmm_order *order;

	fixture_begin_faked(&fixture, POOL);
	record = &fixture.owner->ledger[ROOM_START >> HMM_BLOCK_SHIFT];
	record->transit = transit;
	record->epoch = EPOCH;
	record->pending[0] = (1U << PAGES) - 1;
	record->slot = HMM_NO_SLOT;
	record->flags = HMM_BLOCK_ARMED;
	*sequence() = 7;
	orders = fixture.owner->orders;
	order = &orders->ring[0];
	*order = (struct hmm_order){
		.state = HMM_ORDER_COMMIT, .kind = kind, .serial = 1, .addr = ROOM_START, .epoch = EPOCH,
		.want = { (1U << PAGES) - 1 },
	};
	orders->produced = 1;
	succeed();
	return order;
}

static void happen(uint8_t event)
{
	struct uffd_msg message = {
		.event = event, .arg.remove = { .start = ROOM_START, .end = ROOM_START + PAGES * HMM_PAGE_SIZE },
	};

	cr_assert(eq(int, (int)write(fixture.events, &message, sizeof(message)), (int)sizeof(message)));
}

static bool is_unread(void)
{
	int bytes = 0;

	cr_assert(eq(int, ioctl(fixture.owner->uffd, FIONREAD, &bytes), 0));
	return bytes;
}

static enum hmm_page_state state_of(unsigned int page)
{
	struct block *block = fixture_block(&fixture, 0);

	return block ? page_state(block, page) : HMM_PAGE_INVALID;
}

/*
 * The program has unmapped the block. Its thread goes on when that is read, and may have something else there at once: MOVE, with no
 * event unread any more, would take that.
 */
Test(recover, no_event_is_read_while_a_move_may_be_on_its_way)
{
	struct hmm_order *order = die_in_commit(HMM_TRANSIT_OUT_MOVE, HMM_ORDER_OUT_MOVE);
	struct owner *owner = fixture.owner;

	happen(UFFD_EVENT_UNMAP);
	for (unsigned int i = 0; i < 3; i++) {
		look();
		cr_assert(is_unread(), "its thread has been let go");
		cr_assert(eq(u32, order->state, HMM_ORDER_COMMIT));
		cr_assert(not(owner->settled));
	}
	/* It sees the hold, and steps back. */
	order->state = HMM_ORDER_RUNNING;
	look();
	cr_assert(eq(u32, order->state, HMM_ORDER_CANCELLED), "it would wait for the hold to end, and MOVE then");
	cr_expect(not(is_unread()), "nothing is on its way");
	cr_expect(eq(u64, owner->journal->applied, 0), "where the pages are nobody knows yet");
	owner->orders->consumed = 1;
	look();
	cr_assert(not(owner->recovering));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	cr_expect(eq(u64, owner->journal->applied, 1));
	cr_expect(eq(u32, owner->orders->hold, 0));
	cr_expect(eq(u64, *sequence() & 1, 0));
	for (unsigned int i = 0; i < PAGES; i++)
		cr_expect(eq(int, state_of(i), HMM_PAGE_INVALID));
	fixture_end(&fixture);
}

/* The agent's own DONTNEED ends when its event has been read, and not before: waited for it would never end. */
Test(recover, the_event_of_a_zap_is_read_and_is_no_discard)
{
	struct hmm_order *order = die_in_commit(HMM_TRANSIT_OUT_ZAP, HMM_ORDER_OUT_ZAP);
	struct owner *owner = fixture.owner;

	happen(UFFD_EVENT_REMOVE);
	look();
	cr_assert(not(is_unread()));
	cr_expect(eq(u64, owner->journal->applied, 0));
	cr_assert(not(owner->settled));
	/* What it has zapped was filled before. */
	memcpy(order->moved, order->want, sizeof(order->moved));
	order->state = HMM_ORDER_DONE;
	owner->orders->consumed = 1;
	owner->ledger[ROOM_START >> HMM_BLOCK_SHIFT].mirror = 0;
	look();
	cr_assert(not(owner->recovering));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	cr_expect(eq(u64, owner->journal->applied, 1));
	for (unsigned int i = 0; i < PAGES; i++)
		cr_expect(eq(int, state_of(i), HMM_PAGE_DEVICE), "the only copy is on the device");
	fixture_end(&fixture);
}

static void zap_proceed(struct block *block)
{
	struct hmm_orders *orders = block->owner->orders;

	/* Its order stays in the ring until its place is used again. */
	orders->ring[0] = (struct hmm_order){
		.state = HMM_ORDER_DONE, .kind = HMM_ORDER_OUT_ZAP, .serial = 1, .addr = ROOM_START, .epoch = block->record->epoch,
		.want = { (1U << PAGES) - 1 }, .moved = { (1U << PAGES) - 1 },
	};
	orders->produced = orders->consumed = 1;
	block_set_state(block, 0, PAGES, HMM_PAGE_DEVICE);
	transit_end(block);
}

static void expect_gone(void)
{
	for (unsigned int i = 0; i < PAGES; i++)
		cr_expect(eq(int, state_of(i), HMM_PAGE_INVALID), "its program would read it again");
	cr_expect(eq(int, state_of(PAGES), HMM_PAGE_DEVICE));
}

/* hmmd is killed between reading and applying. */
static void die_at_its_event(void)
{
	happen(UFFD_EVENT_REMOVE);
	journal_read_only(fixture.owner);
	cr_assert(not(is_unread()));
	succeed();
	look();
	cr_assert(not(fixture.owner->recovering));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
}

/* What the program throws away when its pages have gone is gone, though their order would have done the same. */
Test(recover, what_is_discarded_after_a_zap_is_gone)
{
	struct pages pages = pages_from(0, PAGES);
	struct block *block;

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, PAGES + 1);
	block = fixture_block(&fixture, 0);
	block_set_state(block, 0, PAGES, HMM_PAGE_INVALID);
	transit_begin(block, HMM_TRANSIT_OUT_ZAP, &pages, HMM_REASON_MIGRATE, zap_proceed);
	cr_assert(block_at_rest(block));
	die_at_its_event();
	expect_gone();
	fixture_end(&fixture);
}

/* Also where a successor has settled that order. */
Test(recover, what_is_discarded_after_a_zap_that_was_settled_is_gone)
{
	struct hmm_order *order = die_in_commit(HMM_TRANSIT_OUT_ZAP, HMM_ORDER_OUT_ZAP);
	struct owner *owner = fixture.owner;

	memcpy(order->moved, order->want, sizeof(order->moved));
	order->state = HMM_ORDER_DONE;
	owner->orders->consumed = 1;
	owner->ledger[ROOM_START >> HMM_BLOCK_SHIFT].mirror = 0;
	look();
	cr_assert(not(owner->recovering));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	cr_expect(eq(int, state_of(0), HMM_PAGE_DEVICE));
	owner->settled = false;
	die_at_its_event();
	for (unsigned int i = 0; i < PAGES; i++)
		cr_expect(eq(int, state_of(i), HMM_PAGE_INVALID), "its program would read it again");
	fixture_end(&fixture);
}

/* ---- a page that was becoming S --------------------------------------------------------- */

static uint64_t pagemap(unsigned int page)
{
	uint64_t entry = 0;

	cr_assert(eq(int, kernel->pagemap_read(fixture.owner->pagemap, ROOM_START + page * HMM_PAGE_SIZE, 1, &entry), 0));
	return entry;
}

static void copy_protected(unsigned int page)
{
	char bytes[HMM_PAGE_SIZE];
	size_t done;

	fixture_bytes(page, bytes);
	cr_assert(eq(int, kernel->uffd_copy(fixture.owner->uffd, ROOM_START + page * HMM_PAGE_SIZE, bytes, HMM_PAGE_SIZE,
					    UFFDIO_COPY_MODE_WP, &done), 0));
}

/*
 * The number is even a moment before the ledger says that the block rests, and a driver that takes its entry then has not been told
 * of anything: the CPU must not store before it is.
 */
Test(recover, what_was_noted_as_shared_stays_shared)
{
	struct pages pages = pages_from(0, PAGES);
	struct hmm_ledger_block *record;
	struct block *block;
	char bytes[HMM_PAGE_SIZE];

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, PAGES + 2);
	block = fixture_block(&fixture, 0);
	home_begin(block, &pages, 0, true, HMM_REASON_MIGRATE, 0, NULL);
	for (unsigned int i = 0; i < PAGES; i++)
		cr_assert(eq(int, page_state(block, i), HMM_PAGE_SHARED));
	/* One more has come home, and was not noted; the last one not even that. */
	copy_protected(PAGES);
	record = block->record;
	record->transit = HMM_TRANSIT_SHARING;
	record->pending[0] = (1U << (PAGES + 2)) - 1;
	succeed();
	look();
	cr_assert(not(fixture.owner->recovering));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	for (unsigned int i = 0; i < PAGES; i++) {
		cr_expect(eq(int, state_of(i), HMM_PAGE_SHARED));
		cr_expect(pagemap(i) & PM_PRESENT && pagemap(i) & PM_UFFD_WP, "the CPU may write what a device reads");
	}
	cr_expect(eq(int, state_of(PAGES), HMM_PAGE_INVALID));
	cr_expect(eq(u64, pagemap(PAGES) & (PM_PRESENT | PM_UFFD_WP), PM_PRESENT));
	cr_expect(eq(int, state_of(PAGES + 1), HMM_PAGE_DEVICE));
	for (unsigned int i = 0; i < PAGES + 1; i++) {
		fixture_bytes(i, bytes);
		cr_expect(eq(int, memcmp((void *)(ROOM_START + i * HMM_PAGE_SIZE), bytes, HMM_PAGE_SIZE), 0));
	}
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/*
 * Noted as home, its copy is punched and the block nobody's, and then hmmd died; the program discards it before anybody looks. There is no
 * copy that it could be on the device with.
 */
Test(recover, what_was_noted_as_home_is_not_on_the_device)
{
	struct pages pages = pages_from(0, PAGES);
	struct hmm_ledger_block *record;
	struct block *block;

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, PAGES);
	block = fixture_block(&fixture, 0);
	block_set_state(block, 0, PAGES, HMM_PAGE_INVALID);
	for (unsigned int i = 0; i < PAGES; i++)
		pages_set(&block->stale, i);
	block_punch_stale(block);
	record = block->record;
	cr_assert(eq(uint, record->mirror, HMM_NO_MIRROR));
	record->transit = HMM_TRANSIT_HOME_COPY;
	memcpy(record->pending, pages.word, sizeof(record->pending));
	record->slot = HMM_NO_SLOT;
	succeed();
	look();
	cr_assert(not(fixture.owner->recovering));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	for (unsigned int i = 0; i < PAGES; i++)
		cr_expect(eq(int, state_of(i), HMM_PAGE_INVALID));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* ---- what was moved on before anybody looked ---------------------------------------------------- */

#define TO	(ROOM_START + 2 * HMM_BLOCK_SIZE)

/* Pages 0 and 1: of a block that was on its way home, its first page had arrived. */
static void *move_on(void *data)
{
	(void)data;
	return mremap((void *)ROOM_START, 2 * HMM_PAGE_SIZE, 2 * HMM_PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)TO);
}

static uint64_t pagemap_at(uint64_t addr)
{
	uint64_t entry = 0;

	cr_assert(eq(int, kernel->pagemap_read(fixture.owner->pagemap, addr, 1, &entry), 0));
	return entry;
}

static enum hmm_page_state state_at(uint64_t addr)
{
	struct block *block = block_find(fixture.owner, addr);

	return block ? page_state(block, page_index(addr)) : HMM_PAGE_INVALID;
}

static void die_on_the_way_home(enum hmm_transit transit, uint64_t mode)
{
	struct pages pages = pages_from(0, PAGES);
	struct hmm_ledger_block *record;
	char bytes[HMM_PAGE_SIZE];
	pthread_t mover;
	void *moved;
	size_t done;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, PAGES);
	fixture_bytes(0, bytes);
	cr_assert(eq(int, kernel->uffd_copy(fixture.owner->uffd, ROOM_START, bytes, HMM_PAGE_SIZE, mode, &done), 0));
	record = fixture_block(&fixture, 0)->record;
	record->transit = transit;
	memcpy(record->pending, pages.word, sizeof(record->pending));
	record->slot = HMM_NO_SLOT;
	if (transit == HMM_TRANSIT_HOME_SLOT) {
		fixture.owner->orders->ring[0] = (struct hmm_order){
			.state = HMM_ORDER_DONE, .kind = HMM_ORDER_HOME_SLOT, .serial = 1, .addr = ROOM_START, .epoch = record->epoch,
			.want = { (1U << PAGES) - 1 }, .moved = { 1 },
		};
		fixture.owner->orders->produced = fixture.owner->orders->consumed = 1;
	}
	cr_assert(eq(int, pthread_create(&mover, NULL, move_on, NULL), 0));
	while (!(pagemap_at(TO) & PM_PRESENT))
		usleep(1000);
	succeed();
	look();
	cr_assert(not(fixture.owner->recovering));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	while (pthread_tryjoin_np(mover, &moved)) {
		usleep(1000);
		event_read(fixture.owner);
	}
	cr_assert(eq(ptr, moved, (void *)TO));
	cr_expect(eq(int, state_at(TO), HMM_PAGE_INVALID), "CPU and device have it at a time");
	cr_expect(eq(int, state_at(TO + HMM_PAGE_SIZE), HMM_PAGE_DEVICE), "it is nowhere");
	for (unsigned int i = 0; i < 2; i++)
		cr_expect(eq(int, state_at(ROOM_START + i * HMM_PAGE_SIZE), HMM_PAGE_INVALID));
	for (unsigned int i = 2; i < PAGES; i++)
		cr_expect(eq(int, state_of(i), HMM_PAGE_DEVICE));
	cr_expect(eq(int, memcmp((void *)TO, bytes, HMM_PAGE_SIZE), 0));
	fixture_check(&fixture);
	/* The doubt ends when all has been read. */
	block_settle(fixture_block(&fixture, 0));
	for (unsigned int i = 0; i < PAGES; i++)
		cr_expect(eq(uint, fixture_block(&fixture, 0)->record->page[i] & HMM_PAGE_DOUBTFUL, 0));
	fixture_end(&fixture);
}

/* Copied home by hmmd itself, which notes it afterwards. */
Test(recover, what_was_copied_home_and_moved_on_is_home)
{
	die_on_the_way_home(HMM_TRANSIT_HOME_COPY, 0);
}

Test(recover, what_was_shared_and_moved_on_is_home)
{
	die_on_the_way_home(HMM_TRANSIT_SHARING, UFFDIO_COPY_MODE_WP);
}

/* Moved home by the agent, whose order says so. */
Test(recover, what_was_moved_home_and_moved_on_is_home)
{
	die_on_the_way_home(HMM_TRANSIT_HOME_SLOT, 0);
}

/* hmmd let go of what was there before, and was killed before it could look again: pages that are out would be zeros to whoever touches them. */
Test(recover, what_an_mremap_brought_where_it_was_let_go_is_armed_again)
{
	unsigned char resident;
	pthread_t mover;
	void *moved;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, 2);
	fixture_out(&fixture, 2 * HMM_BLOCK_PAGES + 8, 2 * HMM_BLOCK_PAGES + 9);
	cr_assert(eq(int, pthread_create(&mover, NULL, move_on, NULL), 0));
	while (mincore((void *)ROOM_START, HMM_PAGE_SIZE, &resident) == 0)
		usleep(1000);
	cr_assert(eq(int, kernel->uffd_unregister(fixture.owner->uffd, TO, 2 * HMM_PAGE_SIZE), 0));
	succeed();
	settle_registrations(fixture.owner);
	look();
	cr_assert(not(fixture.owner->recovering));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	while (pthread_tryjoin_np(mover, &moved)) {
		usleep(1000);
		event_read(fixture.owner);
	}
	for (unsigned int i = 0; i < 2; i++) {
		cr_expect(eq(int, state_at(TO + i * HMM_PAGE_SIZE), HMM_PAGE_DEVICE));
		cr_expect(eq(int, kernel->uffd_protect(fixture.owner->uffd, TO + i * HMM_PAGE_SIZE, HMM_PAGE_SIZE, false), 0), "not armed");
	}
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* ---- windows that are not back yet ---------------------------------------------------------------- */

/* The CPU has it and may write it, and a window that is still mapped shows what was there. */
Test(recover, what_was_given_up_no_window_shows)
{
	struct block *block;

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, PAGES + 1);
	block = fixture_block(&fixture, 0);
	/* And hmmd is killed before it has punched them. */
	block_set_state(block, 0, PAGES, HMM_PAGE_INVALID);
	succeed();
	fixture.mirror->awaited = 1;
	fixture.owner->journal->grace_ms = 1000;
	look();
	cr_assert(fixture.owner->recovering);
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	block = fixture_block(&fixture, 0);
	cr_expect(not(shadow_has_data(block_shadow(block), ROOM_START, PAGES * HMM_PAGE_SIZE)));
	cr_expect(shadow_has_data(block_shadow(block), page_addr(block, PAGES), HMM_PAGE_SIZE));
	/* Its driver comes back. */
	fixture.mirror->awaited = 0;
	look();
	cr_assert(not(fixture.owner->recovering));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* ---- who waits -------------------------------------------------------------------------- */

static struct toucher {
	pthread_t thread;
	uint64_t addr;
	int done;
} toucher;

static void *touch(void *data)
{
	(void)data;
	*(volatile char *)toucher.addr = 1;
	__atomic_store_n(&toucher.done, 1, __ATOMIC_RELEASE);
	return NULL;
}

/* A thread faults at @addr, and hmmd is killed when it has read of that. */
static void die_at_its_fault(uint64_t addr)
{
	struct uffd_msg message;

	toucher = (struct toucher){ .addr = addr };
	cr_assert(eq(int, pthread_create(&toucher.thread, NULL, touch, NULL), 0));
	while (kernel->uffd_read(fixture.owner->uffd, &message, sizeof(message)) != (ssize_t)sizeof(message))
		usleep(1000);
	cr_assert(eq(int, message.event, UFFD_EVENT_PAGEFAULT));
	cr_assert(eq(u64, message.arg.pagefault.address & ~(HMM_PAGE_SIZE - 1), addr));
	succeed();
	look();
	cr_assert(not(fixture.owner->recovering));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
}

/* Its fault comes again, and is served. */
static void expect_served(void)
{
	const char *scale = getenv("HMM_TEST_SCALE");
	bool served;

	for (int ms = 0; ms < 5000 * (scale ? atoi(scale) : 1) && !__atomic_load_n(&toucher.done, __ATOMIC_ACQUIRE); ms++) {
		cr_assert(ge(int, reactor_wait(fixture.worker.reactor, NS_PER_MS), 0));
		fixture.worker.now = clock_now();
		owner_tick(fixture.owner, fixture.worker.now);
	}
	served = __atomic_load_n(&toucher.done, __ATOMIC_ACQUIRE);
	if (!served)
		kernel->uffd_unregister(fixture.owner->uffd, toucher.addr, HMM_PAGE_SIZE);
	pthread_join(toucher.thread, NULL);
	cr_expect(served, "it waits for ever");
}

#define ELSEWHERE	(ROOM_START + 3 * HMM_BLOCK_SIZE)

/* register_again() may do that: a page of which the ledger knows nothing is registered. */
Test(recover, whoever_waits_where_nothing_is_known_is_woken)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, PAGES);
	cr_assert(eq(int, kernel->uffd_register(fixture.owner->uffd, ELSEWHERE, HMM_PAGE_SIZE, UFFDIO_REGISTER_MODE_MISSING), 0));
	die_at_its_fault(ELSEWHERE);
	expect_served();
	fixture_check(&fixture);
	fixture_end(&fixture);
}

static int refused_wake(int uffd, uint64_t start, size_t length)
{
	return start < HMM_BLOCK_SIZE ? -EINVAL : kernel_real.uffd_wake(uffd, start, length);
}

/* Where nobody may map as low as usual the kernel says so: what the ledger knows of is woken still. */
Test(recover, the_lowest_addresses_are_forbidden)
{
	struct kernel_ops ops = kernel_real;

	ops.uffd_wake = refused_wake;
	kernel = &ops;
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, PAGES);
	die_at_its_fault(ROOM_START);
	expect_served();
	fixture_check(&fixture);
	kernel = &kernel_real;
	fixture_end(&fixture);
}
