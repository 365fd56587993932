// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_fault.c - faults of threads of this very process, with a real userfaultfd: by one and by two threads, of
 * holes, and for which the owner's kernel has no memory.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "engine_fixture.h"
#include "engine_random.h"
#include "tests/leakcheck.h"
#include "uapi.h"

LEAKCHECKED_SUITE(fault);
LEAKCHECKED_SUITE(no_memory);

static struct fixture fixture;

struct toucher {
	pthread_t thread;
	struct random random;
	bool shuffled, write;
	unsigned int first, end, wrong;
	int done;
};

static void *touch(void *data)
{
	struct toucher *me = data;
	char expected[HMM_PAGE_SIZE];
	unsigned int n = me->end - me->first;

	for (unsigned int k = 0; k < n; k++) {
		unsigned int page = me->first + (me->shuffled ? random_below(&me->random, n) : k);
		volatile uint64_t *words = (volatile uint64_t *)(ROOM_START + page * HMM_PAGE_SIZE);

		fixture_bytes(page, expected);
		if (me->write)
			words[7] = ((uint64_t *)expected)[7];
		for (unsigned int w = 0; w < HMM_PAGE_SIZE / 8; w += 73)
			me->wrong += words[w] != ((uint64_t *)expected)[w];
	}
	__atomic_store_n(&me->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void touch_and_serve(struct toucher *toucher)
{
	cr_assert(eq(int, pthread_create(&toucher->thread, NULL, touch, toucher), 0));
	fixture_drive(&fixture, &toucher->done);
	pthread_join(toucher->thread, NULL);
	cr_expect(eq(uint, toucher->wrong, 0));
	fixture_check(&fixture);
}

Test(fault, a_walk_over_two_regions)
{
	struct toucher toucher = { .end = ROOM_PAGES };

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, ROOM_PAGES);
	fixture_check(&fixture);
	touch_and_serve(&toucher);
	cr_expect(lt(u64, fixture.owner->counter[COUNTER_FAULTS], 40),
		  "%lu faults for four blocks in a row", fixture.owner->counter[COUNTER_FAULTS]);
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_FAULT_PAGES_HOME], ROOM_PAGES));
	cr_expect(eq(u64, fixture.mirror->device_pages, 0));
	/* Read only: equal copies stay until nobody wants them; then nothing is left. */
	for (unsigned int i = 0; i < 4; i++)
		fixture_later(&fixture, SECOND);
	cr_expect(eq(uint, fixture.owner->span_count, 0));
	cr_expect(eq(u64, fixture.device->used, 0));
	cr_expect(eq(u64, fixture.owner->registered_bytes, 0));
	toucher = (struct toucher){ .end = ROOM_PAGES, .write = true };
	touch(&toucher);
	cr_expect(eq(uint, toucher.wrong, 0), "home for good");
	fixture_end(&fixture);
}

Test(fault, here_and_there_by_two_threads_reading_and_writing)
{
	struct random random = random_begin("fault");
	struct toucher a = { .end = ROOM_PAGES, .shuffled = true };
	struct toucher b = { .end = ROOM_PAGES, .shuffled = true, .write = true };

	a.random.state = random_next(&random);
	b.random.state = random_next(&random);
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, ROOM_PAGES);
	cr_assert(eq(int, pthread_create(&a.thread, NULL, touch, &a), 0));
	touch_and_serve(&b);
	fixture_drive(&fixture, &a.done);
	pthread_join(a.thread, NULL);
	cr_expect(eq(uint, a.wrong, 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(fault, a_driver_that_must_be_asked_first)
{
	struct toucher toucher = { .end = 64, .write = true };
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.engine.options.ack_timeout_ms = 60000;	/* the clock is the real one */
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, 64);
	mailbox_deinit(&fixture.outbox);
	cr_assert(eq(int, mailbox_init(&fixture.outbox), 0));
	fixture_callbacks(&fixture);
	block = fixture_block(&fixture, 0);
	cr_assert(eq(int, pthread_create(&toucher.thread, NULL, touch, &toucher), 0));
	while (!__atomic_load_n(&toucher.done, __ATOMIC_ACQUIRE)) {
		cr_assert(ge(int, reactor_wait(fixture.worker.reactor, NS_PER_MS), 0));
		fixture.worker.now = clock_now();
		owner_tick(fixture.owner, fixture.worker.now);
		fixture_check(&fixture);
		fixture_answer(&fixture);
		owner_run(fixture.owner);
	}
	pthread_join(toucher.thread, NULL);
	cr_expect(eq(uint, toucher.wrong, 0));
	cr_expect(lt(u64, 0, fixture.owner->counter[COUNTER_INVALIDATIONS]));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* Never written, and armed by its neighbours: zeros. */
Test(fault, holes_are_zeros)
{
	struct toucher toucher = { .end = 10 };
	uint64_t sum = 0;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, 10);
	fixture_out(&fixture, 200, 210);
	/* A hole through our own mem file: answered by an error, not by a wait. */
	cr_expect(lt(int,
		     (int)kernel->mem_read(fixture.owner->mem, ROOM_START + 100 * HMM_PAGE_SIZE,
					   &sum, 8),
		     0));
	fault_serve(fixture.owner, ROOM_START + 100 * HMM_PAGE_SIZE + 5, 0, 0);
	for (unsigned int i = 100; i < 200; i++)
		sum += *(volatile uint64_t *)(ROOM_START + i * HMM_PAGE_SIZE);
	cr_expect(eq(u64, sum, 0));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_HOLE_FAULTS], 1));
	cr_expect(eq(uint, block_count(fixture_block(&fixture, 0), HMM_PAGE_DEVICE), 20));
	touch_and_serve(&toucher);
	fixture_end(&fixture);
}

/* The run of holes ends where its mapping does: the kernel fills no more than one at a time. */
Test(fault, holes_over_two_mappings)
{
	struct toucher toucher = { .end = 10 };
	uint64_t entry, at = ROOM_START + 140 * HMM_PAGE_SIZE;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, 10);
	/* Cuts the mapping in two without an event. */
	cr_assert(eq(int,
		     madvise((void *)(ROOM_START + 150 * HMM_PAGE_SIZE), 50 * HMM_PAGE_SIZE,
			     MADV_DONTDUMP),
		     0));
	fault_serve(fixture.owner, at, 0, 0);
	cr_assert(eq(int, kernel->pagemap_read(fixture.owner->pagemap, at, 1, &entry), 0));
	cr_expect(ne(u64, entry & PM_PRESENT, 0), "whoever touched it faults for ever");
	touch_and_serve(&toucher);
	fixture_end(&fixture);
}

static void whole_groups(struct hmm_attribute *attribute, const void *data)
{
	(void)data;
	attribute->granularity = HMM_BLOCK_PAGES;
}

/* Its group is a block that left as one huge page, and every slot is in use: it does not ask for ever. */
Test(fault, a_whole_block_and_no_slot)
{
	struct owner *owner;
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	owner = fixture.owner;
	owner->peer = 1;
	fixture_out(&fixture, 0, HMM_BLOCK_PAGES);
	block = fixture_block(&fixture, 0);
	block->record->flags |= HMM_BLOCK_HUGE;
	cr_assert(eq(int, attribute_edit(&owner->attributes, ROOM_START, ROOM_START + HMM_BLOCK_SIZE,
					 whole_groups, NULL), 0));
	cr_assert(migrate_can_slot(block));
	while (slot_take(owner) >= 0)
		;
	fault_serve(owner, ROOM_START, 0, 0);
	owner_run(owner);
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 0), "what is touched came home by copy");
	fixture_check(&fixture);
	for (unsigned int i = 0; i < owner->slots; i++)
		slot_put(owner, i);
	owner_run(owner);
	cr_expect(eq(uint, owner->jobs, 0));
	fixture_end(&fixture);
}

/* ---- no memory ------------------------------------------------------------------------------ */

static struct kernel_ops ops;
static unsigned int failures, poisoned;

static int poison(int uffd, uint64_t dst, size_t length, size_t *done)
{
	cr_assert(eq(u64, dst, ROOM_START + 3 * HMM_PAGE_SIZE));
	*done = 0;
	if (failures && failures--)
		return -ENOMEM;
	poisoned++;
	*done = length;
	return 0;
}

/* Whoever touched it waits for the poison, and is not told twice. */
Test(no_memory, what_is_lost_is_poisoned_as_soon_as_there_is_some)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 10);
	block_set_state(fixture_block(&fixture, 0), 3, 4, HMM_PAGE_ERROR);
	ops = kernel_real;
	ops.uffd_poison = poison;
	kernel = &ops;
	failures = 3;
	fault_serve(fixture.owner, ROOM_START + 3 * HMM_PAGE_SIZE + 5, 0, 0);
	cr_expect(eq(uint, poisoned, 0));
	for (unsigned int i = 0; i < 8; i++) {
		fixture_later(&fixture, SECOND);
		owner_run(fixture.owner);
	}
	cr_expect(eq(uint, failures, 0));
	cr_expect(eq(uint, poisoned, 1));
	kernel = &kernel_real;
	fixture_end(&fixture);
}
