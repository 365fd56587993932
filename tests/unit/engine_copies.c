// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_copies.c - S pages of a block that one mirror holds, copied to another
 * mirror of an owner that is this very process: what table, charges and counts
 * say, and that copies are gone before anything else changes.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/copies.h"
#include "engine_fixture.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(copies);

static struct fixture fixture;
static struct device *device;
static struct mirror *other;
static struct block *block;

struct waiter {
	struct task task;
	unsigned int ran;
};

static void ran(struct task *task)
{
	((struct waiter *)task)->ran++;
}

static struct waiter waiter = { .task = { .run = ran } };
static uint8_t result;

static enum copies_answer get(unsigned int i, unsigned int ahead)
{
	return copies_get(block, other, i, ahead, &waiter.task, &result);
}

static void begin_other(void)
{
	fixture.engine.devices.capacity += HMM_BLOCK_SIZE;
	/* Another kind, so that it is another pool, whose use is compared with its device's. */
	cr_assert(eq(int, device_new(&fixture.engine.devices, "other", HMM_POOL_KIND_MEMFD_HUGE, NULL, HMM_BLOCK_SIZE,
				     HMM_DEVICE_CAPS_FAULTS, DRIVER, &device), 0));
	device_use(&fixture.engine.devices, device->id);
	other = mirror_new(fixture.owner, 1, device, NULL);
	cr_assert(ne(ptr, other, NULL));
}

/* Pages [0, out) of the first block are on the device, [0, shared) of them at the CPU, too. */
static void begin(unsigned int out, unsigned int shared)
{
	struct pages pages = pages_from(0, shared);

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	begin_other();
	waiter.ran = 0;
	fixture_out(&fixture, 0, out);
	block = fixture_block(&fixture, 0);
	if (shared)
		home_begin(block, &pages, HMM_BLOCK_PAGES, true, HMM_REASON_CPU_FAULT, 0, NULL);
	cr_assert(eq(uint, block_count(block, HMM_PAGE_SHARED), shared));
}

static uint16_t sharers(unsigned int i)
{
	const uint16_t *all = (const uint16_t *)((const char *)fixture.owner->table + HMM_TABLE_SHARERS_OFFSET);

	return all[(block->addr >> HMM_PAGE_SHIFT) + i];
}

static unsigned int pages_in_shadow(void)
{
	const struct shadow *shadow = shadow_find(&other->shadows, block->addr);
	struct stat stat;

	if (!shadow)
		return 0;
	cr_assert(eq(int, fstat(shadow->fd, &stat), 0));
	return (unsigned int)(stat.st_blocks * 512 / (off_t)HMM_PAGE_SIZE);
}

/* Pages [first, end) of the block, and no others, are copied; everything that is said of it agrees. */
static void check_copied(unsigned int first, unsigned int end)
{
	const struct shadow *shadow = shadow_find(&other->shadows, block->addr);
	char expected[HMM_PAGE_SIZE];

	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		bool copied = i >= first && i < end;

		cr_assert(eq(int, copies_have(block, other, i), copied), "page %u", i);
		cr_assert(eq(uint, sharers(i), copied ? 2 : 0), "page %u", i);
		if (!copied)
			continue;
		cr_assert(eq(int, page_state(block, i), HMM_PAGE_SHARED));
		fixture_bytes(i, expected);
		cr_assert(eq(int, memcmp(shadow_at(shadow, page_addr(block, i)), expected, HMM_PAGE_SIZE), 0));
	}
	cr_assert(eq(uint, pages_in_shadow(), end - first));
	cr_assert(eq(u64, device->used, (end - first) * HMM_PAGE_SIZE));
	cr_assert(eq(u64, other->shared_pages, end - first));
	fixture_check(&fixture);
}

static bool table_says_nothing(void)
{
	off_t at = (off_t)HMM_TABLE_SHARERS_OFFSET;
	off_t data = lseek(fixture.owner->table_fd, at, SEEK_DATA);

	return data < 0;
}

/* There is no trace of a copy. */
static bool none_left(void)
{
	return TAILQ_EMPTY(&other->copies) && (!block || LIST_EMPTY(&block->copies));
}

Test(copies, made_of_shared_pages)
{
	struct pages pages;

	begin(20, 10);
	cr_expect(eq(int, get(2, 4), COPIES_MADE));
	check_copied(2, 6);
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_COPIES_MADE], 4));
	/* Up to the first that is not shared. */
	cr_expect(eq(int, get(6, 100), COPIES_MADE));
	check_copied(2, 10);
	pages = copies_on(block, device);
	cr_expect(eq(uint, pages_count(&pages), 8));
	pages = copies_on(block, fixture.device);
	cr_expect(pages_empty(&pages));
	cr_expect(eq(int, copies_are_read(block), 0), "no window, no callback");
	other->flags |= HMM_MIRROR_FLAGS_CALLBACKS;
	cr_expect(copies_are_read(block));
	other->flags = 0;
	cr_expect(eq(uint, waiter.ran, 0));
	fixture_end(&fixture);
}

Test(copies, of_a_device_page_that_is_shared_first)
{
	begin(20, 0);
	cr_expect(eq(int, get(3, 5), COPIES_COMING));
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_SHARED), 5));
	cr_expect(eq(uint, waiter.ran, 0), "not before the safe point");
	owner_run(fixture.owner);
	cr_expect(eq(uint, waiter.ran, 1));
	cr_expect(eq(int, get(3, 5), COPIES_MADE));
	check_copied(3, 8);
	fixture_end(&fixture);
}

Test(copies, not_for_everybody)
{
	begin(20, 10);
	/* The holder has the pages; and of what the CPU keeps to itself there is none on the device. */
	cr_expect(eq(int, copies_get(block, fixture.mirror, 2, 4, &waiter.task, &result), COPIES_NONE));
	other->leaving = true;
	cr_expect(eq(int, get(2, 4), COPIES_NONE));
	other->leaving = false;
	other->blind = true;
	cr_expect(eq(int, get(2, 4), COPIES_NONE));
	other->blind = false;
	fixture.mirror->leaving = true;
	cr_expect(eq(int, get(2, 4), COPIES_NONE));
	fixture.mirror->leaving = false;
	fixture.owner->closing = true;
	cr_expect(eq(int, get(2, 4), COPIES_NONE));
	fixture.owner->closing = false;
	fixture.worker.merging_seen = fixture.worker.now;
	fixture.worker.merging = true;
	cr_expect(eq(int, get(12, 4), COPIES_NONE), "a D page that may not become S");
	fixture.worker.merging = false;
	block = block_get(fixture.owner, ROOM_START + 2 * HMM_BLOCK_SIZE);
	cr_expect(eq(int, get(2, 4), COPIES_NONE), "nobody holds it");
	block = fixture_block(&fixture, 0);
	check_copied(0, 0);
	fixture_end(&fixture);
}

Test(copies, gone_before_the_cpu_may_write)
{
	struct pages pages = pages_from(3, 6);

	begin(20, 10);
	fixture_callbacks(&fixture);
	cr_assert(eq(int, get(0, 8), COPIES_MADE));
	unshare_begin(block, &pages, HMM_REASON_CPU_WRITE, NULL);
	/* The driver has yet to answer: out of the table, but not freed under its feet. */
	cr_assert(not(block_at_rest(block)));
	for (unsigned int i = 0; i < 8; i++)
		cr_expect(eq(uint, sharers(i), i >= 3 && i < 6 ? 0 : 2));
	cr_expect(eq(uint, pages_in_shadow(), 8));
	cr_expect(eq(uint, fixture_answer(&fixture), 1));
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, pages_in_shadow(), 5));
	cr_expect(eq(u64, device->used, 5 * HMM_PAGE_SIZE));
	cr_expect(eq(u64, other->shared_pages, 5));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_COPIES_DROPPED], 3));
	cr_expect(copies_have(block, other, 2) && !copies_have(block, other, 3) && copies_have(block, other, 6));
	pages = pages_from(0, 3);
	unshare_begin(block, &pages, HMM_REASON_CPU_WRITE, NULL);
	fixture_answer(&fixture);
	pages = pages_from(6, 10);
	unshare_begin(block, &pages, HMM_REASON_CPU_WRITE, NULL);
	fixture_answer(&fixture);
	/* Before anybody looks, which would put a page of zeros there. */
	cr_expect(table_says_nothing(), "the last that goes frees the table's page");
	check_copied(0, 0);
	cr_expect(none_left());
	fixture_end(&fixture);
}

Test(copies, gone_with_what_is_discarded)
{
	struct pages pages = pages_from(0, 2);

	begin(20, 10);
	cr_assert(eq(int, get(0, 10), COPIES_MADE));
	block_discard(block, 4, 6, HMM_REASON_UNMAP);
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, pages_in_shadow(), 8));
	cr_expect(eq(uint, sharers(4) | sharers(5), 0));
	/* While others of its pages are on their way. */
	fixture_callbacks(&fixture);
	unshare_begin(block, &pages, HMM_REASON_CPU_WRITE, NULL);
	cr_assert(not(block_at_rest(block)));
	block_discard(block, 1, 8, HMM_REASON_UNMAP);
	cr_expect(eq(uint, sharers(1) | sharers(2) | sharers(7), 0));
	cr_expect(eq(uint, pages_in_shadow(), 4), "0 and 1 wait for the driver, 8 and 9 stay");
	fixture_answer(&fixture);
	cr_assert(block_at_rest(block));
	check_copied(8, 10);
	fixture_end(&fixture);
}

Test(copies, returned_while_the_holder_keeps_the_pages)
{
	struct pages pages = pages_from(2, 5);
	uint64_t before;

	begin(20, 10);
	cr_assert(eq(int, get(0, 5), COPIES_MADE));
	before = fixture_sequence(block);
	copies_return(block, &pages, HMM_REASON_EVICT, NULL);
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before + 2));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_SHARED), 10));
	check_copied(0, 2);
	/* What is unmapped while the driver thinks about it does not come back. */
	fixture_callbacks(&fixture);
	pages = pages_from(0, 2);
	copies_return(block, &pages, HMM_REASON_EVICT, NULL);
	block_discard(block, 1, 2, HMM_REASON_UNMAP);
	fixture_answer(&fixture);
	cr_assert(block_at_rest(block));
	cr_expect(eq(int, page_state(block, 0), HMM_PAGE_SHARED));
	cr_expect(eq(int, page_state(block, 1), HMM_PAGE_INVALID));
	check_copied(0, 0);
	fixture_end(&fixture);
}

Test(copies, room_is_made_by_the_oldest)
{
	struct pages pages = pages_from(0, 4);
	struct block *second;

	begin(20, 10);
	fixture_out(&fixture, HMM_BLOCK_PAGES, HMM_BLOCK_PAGES + 4);
	second = fixture_block(&fixture, 1);
	home_begin(second, &pages, HMM_BLOCK_PAGES, true, HMM_REASON_CPU_FAULT, 0, NULL);
	/* Room for three: of eight that are asked for one is had. */
	cr_assert(eq(int, device_charge(device, HMM_BLOCK_SIZE - 3 * HMM_PAGE_SIZE), 0));
	cr_expect(eq(int, get(0, 8), COPIES_MADE));
	cr_expect(eq(uint, pages_in_shadow(), 1));
	cr_expect(eq(int, get(1, 2), COPIES_MADE));
	cr_expect(eq(uint, pages_in_shadow(), 3));
	cr_expect(eq(int, get(3, 1), COPIES_NONE), "a block does not make room for itself");
	/* The other block's first page: the first block returns its copies. */
	cr_expect(eq(int, copies_get(second, other, 0, 1, &waiter.task, &result), COPIES_MADE));
	cr_expect(not(copies_have(block, other, 0)));
	cr_expect(copies_have(second, other, 0));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_SHARED), 10));
	cr_expect(eq(int, copies_make_room(other, 3, NULL, &waiter.task), COPIES_MADE));
	cr_expect(eq(u64, device->used, HMM_BLOCK_SIZE - 3 * HMM_PAGE_SIZE));
	cr_assert(eq(int, device_charge(device, 3 * HMM_PAGE_SIZE), 0));
	cr_expect(eq(int, copies_make_room(other, 1, NULL, &waiter.task), COPIES_NONE));
	cr_expect(eq(int, get(0, 1), COPIES_NONE), "full of other things");
	cr_expect(none_left());
	device_uncharge(device, HMM_BLOCK_SIZE);
	fixture_end(&fixture);
}

/* Four pages of each of three blocks are copied, and the device is full of that. Return: the third. */
static struct block *fill_with_three(void)
{
	struct pages pages = pages_from(0, 4);
	struct block *third = NULL;

	begin(8, 4);
	fixture_out(&fixture, HMM_BLOCK_PAGES, HMM_BLOCK_PAGES + 4);
	fixture_out(&fixture, 2 * HMM_BLOCK_PAGES, 2 * HMM_BLOCK_PAGES + 4);
	cr_assert(eq(int, device_charge(device, HMM_BLOCK_SIZE - 8 * HMM_PAGE_SIZE), 0));
	for (unsigned int n = 0; n < 3; n++) {
		third = fixture_block(&fixture, n);
		if (n)
			home_begin(third, &pages, HMM_BLOCK_PAGES, true, HMM_REASON_CPU_FAULT, 0, NULL);
		if (n < 2)
			cr_assert(eq(int, copies_get(third, other, 0, 4, &waiter.task, &result), COPIES_MADE));
	}
	fixture_callbacks(&fixture);
	return third;
}

static void end_full(void)
{
	device_uncharge(device, HMM_BLOCK_SIZE - 8 * HMM_PAGE_SIZE);
	fixture_end(&fixture);
}

/* The drivers have to answer first: who wants the room waits, and no more is given back than it needs. */
Test(copies, room_on_its_way_is_waited_for)
{
	struct block *third = fill_with_three();

	for (unsigned int time = 0; time < 2; time++) {
		cr_expect(eq(int, copies_get(third, other, 0, 1, &waiter.task, &result), COPIES_COMING));
		cr_expect(not(block_at_rest(block)));
		cr_expect(block_at_rest(fixture_block(&fixture, 1)));
		cr_expect(copies_have(fixture_block(&fixture, 1), other, 3), "one block is enough");
		owner_run(fixture.owner);
		cr_assert(eq(uint, waiter.ran, time));
		if (!time) {
			/* Something else takes the room: there is more to wait for. */
			cr_expect(eq(uint, fixture_answer(&fixture), 1));
			cr_assert(eq(int, device_charge(device, 4 * HMM_PAGE_SIZE), 0));
			owner_run(fixture.owner);
			device_uncharge(device, 4 * HMM_PAGE_SIZE);
			cr_assert(eq(int, get(0, 4), COPIES_MADE));
			copies_touch(copies_find(fixture_block(&fixture, 1), other));
		}
	}
	cr_expect(eq(uint, fixture_answer(&fixture), 1));
	owner_run(fixture.owner);
	cr_expect(eq(uint, waiter.ran, 2));
	cr_expect(eq(int, copies_get(third, other, 0, 1, &waiter.task, &result), COPIES_MADE));
	cr_expect(not(copies_have(block, other, 0)));
	cr_expect(copies_have(fixture_block(&fixture, 1), other, 0));
	end_full();
}

/* Another's transit of the block with the copies is waited for like one's own. */
Test(copies, room_in_a_block_that_is_busy)
{
	struct block *third = fill_with_three();
	struct pages pages = pages_from(0, 4);

	unshare_begin(block, &pages, HMM_REASON_CPU_WRITE, NULL);
	cr_expect(eq(int, copies_get(third, other, 0, 4, &waiter.task, &result), COPIES_COMING));
	cr_expect(eq(uint, fixture_answer(&fixture), 1), "nobody is asked twice");
	owner_run(fixture.owner);
	cr_expect(eq(uint, waiter.ran, 1));
	cr_expect(eq(int, copies_get(third, other, 0, 4, &waiter.task, &result), COPIES_MADE));
	end_full();
}

static void pin_to(struct hmm_attribute *attribute, const void *data)
{
	attribute->flags |= HMM_ATTRIBUTE_PIN;
	attribute->pinned = *(const uint8_t *)data;
}

/* What is pinned where the copy is stays there; a pin to the holder says nothing about copies. */
Test(copies, room_is_not_made_by_pinned_ones)
{
	struct block *third = fill_with_three();
	struct attribute_map *map = &fixture.owner->attributes;
	const uint8_t here = 1, holder = 0;

	cr_assert(eq(int, attribute_edit(map, ROOM_START, ROOM_START + 2 * HMM_BLOCK_SIZE, pin_to, &here), 0));
	cr_expect(eq(int, copies_get(third, other, 0, 1, &waiter.task, &result), COPIES_NONE));
	cr_assert(eq(int, attribute_edit(map, ROOM_START, ROOM_START + 2 * HMM_BLOCK_SIZE, pin_to, &holder), 0));
	cr_expect(eq(int, copies_get(third, other, 0, 1, &waiter.task, &result), COPIES_COMING));
	fixture_answer(&fixture);
	owner_run(fixture.owner);
	cr_expect(eq(uint, block_count(block, HMM_PAGE_SHARED), 4));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_PINS_BROKEN], 0));
	end_full();
}

static struct kernel_ops held;

static int punch_nothing(int fd, uint64_t offset, uint64_t length)
{
	(void)fd;
	(void)offset;
	(void)length;
	return 0;
}

Test(copies, what_cannot_be_freed_stays_charged)
{
	struct pages pages = pages_from(0, 8);

	begin(8, 8);
	cr_assert(eq(int, get(0, 8), COPIES_MADE));
	held = *kernel;
	held.punch = punch_nothing;
	kernel = &held;
	unshare_begin(block, &pages, HMM_REASON_CPU_WRITE, NULL);
	kernel = &kernel_real;
	cr_expect(eq(uint, sharers(0), 0));
	cr_expect(not(copies_have(block, other, 0)));
	cr_expect(eq(u64, device->used, 8 * HMM_PAGE_SIZE));
	cr_expect(eq(u64, other->shared_pages, 0));
	/* The block is not forgotten before that has gone, too. */
	cr_assert(eq(int, block_punch_stale(block), 1));
	cr_expect(eq(uint, pages_in_shadow(), 0));
	check_copied(0, 0);
	fixture_end(&fixture);
}

Test(copies, a_successor_takes_them_away)
{
	char expected[HMM_PAGE_SIZE];

	begin(20, 10);
	cr_assert(eq(int, get(0, 10), COPIES_MADE));
	/* As in a new hmmd: it knows of none. */
	copies_forget(block);
	cr_expect(eq(u64, device->used, 0));
	copies_recover_table(fixture.owner);
	copies_recover(block);
	check_copied(0, 0);
	for (unsigned int i = 0; i < 20; i++) {
		fixture_bytes(i, expected);
		cr_assert(eq(int, memcmp(shadow_at(block_shadow(block), page_addr(block, i)), expected,
					 HMM_PAGE_SIZE), 0), "the holder's stays");
	}
	fixture_end(&fixture);
}

Test(copies, forgotten_with_their_mirror)
{
	begin(20, 10);
	cr_assert(eq(int, get(0, 10), COPIES_MADE));
	copies_forget_mirror(other);
	cr_expect(eq(u64, device->used, 0));
	cr_expect(eq(u64, other->shared_pages, 0));
	cr_expect(none_left());
	/* And with the owner, whatever it has. */
	cr_assert(eq(int, get(0, 10), COPIES_MADE));
	fixture_end(&fixture);
}
