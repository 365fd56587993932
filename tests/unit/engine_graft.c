// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_graft.c - mremap onto a block that is in transit: the test is the owner's kernel (events
 * come from a pipe) and the driver, which does not answer before it is let; hmmd may die while the page
 * waits, and a successor puts it in.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/graft.h"
#include "engine_fixture.h"
#include "tests/leakcheck.h"
#include "uapi.h"

LEAKCHECKED_SUITE(graft);

static struct fixture fixture;

#define FROM	5U				/* pages of the room: of block 0 */
#define TO	(2 * HMM_BLOCK_PAGES + 1)	/* of block 2 */
#define FURTHER	(2 * HMM_BLOCK_PAGES + 3)
#define CALM	(3 * HMM_BLOCK_PAGES + 7)	/* of a block that is at rest */

static uint64_t room(unsigned int page)
{
	return ROOM_START + page * HMM_PAGE_SIZE;
}

static const struct hmm_grafts *grafts(void)
{
	return (const struct hmm_grafts *)((const char *)fixture.owner->ledger + HMM_GRAFTS_OFFSET);
}

static void happen(const struct uffd_msg *message)
{
	cr_assert(eq(int, (int)write(fixture.events, message, sizeof(*message)), (int)sizeof(*message)));
}

static void unmap(unsigned int first, unsigned int end)
{
	happen(&(struct uffd_msg){ .event = UFFD_EVENT_UNMAP,
				 .arg.remove = { .start = room(first), .end = room(end) } });
}

static void remap(unsigned int from, unsigned int to)
{
	happen(&(struct uffd_msg){ .event = UFFD_EVENT_REMAP,
				 .arg.remap = { .from = room(from), .to = room(to), .len = HMM_PAGE_SIZE } });
}

/* Pages of blocks 0 and 2 are on the device; the latter's are on their way home, and their driver thinks. */
static struct block *begin(void)
{
	struct pages pages = pages_from(0, 4);
	struct block *block;

	fixture_begin_faked(&fixture, POOL);
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, 10);
	fixture_out(&fixture, 2 * HMM_BLOCK_PAGES, 2 * HMM_BLOCK_PAGES + 4);
	block = fixture_block(&fixture, 2);
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	cr_assert(not(block_at_rest(block)));
	return block;
}

/* What is at the page of the room are the bytes that page @bytes had, on the device. */
static void expect_there(unsigned int page, unsigned int bytes)
{
	struct block *block = block_find(fixture.owner, room(page));
	char expected[HMM_PAGE_SIZE];

	cr_assert(ne(ptr, block, NULL));
	cr_assert(eq(int, page_state(block, page_index(room(page))), HMM_PAGE_DEVICE));
	fixture_bytes(bytes, expected);
	cr_expect(eq(int, memcmp(shadow_at(block_shadow(block), room(page)), expected, HMM_PAGE_SIZE), 0));
	fixture_check(&fixture);
}

static void move_there(void)
{
	unmap(2 * HMM_BLOCK_PAGES, 2 * HMM_BLOCK_PAGES + 4);
	remap(FROM, TO);
	event_read(fixture.owner);
	cr_assert(eq(uint, fixture.owner->grafts, 1));
	cr_expect(eq(u64, grafts()->graft[0].addr, room(TO)));
	cr_expect(eq(uint, fixture.mirror->migrations, 1), "the mirror stays meanwhile");
	cr_expect(eq(u64, fixture.owner->journal->applied, fixture.owner->journal_read));
}

struct waiting {
	struct task task;
	enum hmm_page_state found;
};

static void wait_run(struct task *task)
{
	struct block *block = fixture_block(&fixture, 2);

	((struct waiting *)task)->found = page_state(block, page_index(room(TO)));
}

Test(graft, goes_in_before_anybody_looks)
{
	struct waiting parked = { .task.run = wait_run }, queued = { .task.run = wait_run };
	struct block *block = begin();

	/* Both were there first: a fault on a hole beside it would fill the page's place with zeros. */
	block_park(block, &parked.task);
	move_there();
	owner_queue(fixture.owner, &queued.task);
	fixture_answer(&fixture);
	cr_assert(block_at_rest(block));
	owner_run(fixture.owner);
	cr_expect(eq(int, parked.found, HMM_PAGE_DEVICE));
	cr_expect(eq(int, queued.found, HMM_PAGE_DEVICE));
	cr_expect(eq(uint, fixture.owner->grafts, 0));
	cr_expect(eq(u32, grafts()->end, 0));
	cr_expect(eq(uint, fixture.mirror->migrations, 0));
	expect_there(TO, FROM);
	cr_expect(eq(int, page_state(fixture_block(&fixture, 0), FROM), HMM_PAGE_INVALID));
	fixture_end(&fixture);
}

/* Its bytes exist: they take room, and whoever wants some waits for it. */
Test(graft, goes_in_where_the_device_is_full)
{
	struct block *block = begin();
	uint64_t rest = fixture.device->size - fixture.device->used;
	unsigned int charged = block->charged;

	move_there();
	cr_assert(eq(int, device_charge(fixture.device, rest), 0));
	fixture_answer(&fixture);
	cr_expect(eq(uint, block->charged, charged + 1));
	cr_expect(eq(u64, fixture.device->used, fixture.device->size + HMM_PAGE_SIZE));
	cr_expect(eq(int, device_charge(fixture.device, 1), -ENOSPC));
	device_uncharge(fixture.device, rest);
	expect_there(TO, FROM);
	fixture_end(&fixture);
}

Test(graft, is_unmapped_while_it_waits)
{
	struct block *block = begin();

	move_there();
	unmap(TO, TO + 1);
	event_read(fixture.owner);
	cr_expect(eq(uint, fixture.owner->grafts, 0));
	cr_expect(eq(uint, fixture.mirror->migrations, 0));
	fixture_answer(&fixture);
	cr_expect(eq(int, page_state(block, page_index(room(TO))), HMM_PAGE_INVALID),
		  "its bytes would be found by whoever maps something there");
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(graft, is_moved_on_while_it_waits)
{
	begin();
	move_there();
	remap(TO, FURTHER);
	event_read(fixture.owner);
	cr_expect(eq(uint, fixture.owner->grafts, 1));
	cr_expect(eq(u64, grafts()->graft[0].addr, room(FURTHER)));
	remap(FURTHER, CALM);
	event_read(fixture.owner);
	cr_expect(eq(uint, fixture.owner->grafts, 0));
	fixture_answer(&fixture);
	expect_there(CALM, FROM);
	fixture_end(&fixture);
}

/* Another hmmd takes over what the ledger says at this moment. */
static void die_and_succeed(void)
{
	struct owner *owner = fixture.owner;
	struct hmm_grafts *waiting = (struct hmm_grafts *)((char *)owner->ledger + HMM_GRAFTS_OFFSET);
	char *first = (char *)owner->ledger + HMM_GRAFT_BYTES_OFFSET;
	struct hmm_graft graft = waiting->graft[0];
	struct hmm_ledger_block records[4];
	uint32_t end = waiting->end;
	char bytes[HMM_PAGE_SIZE];
	unsigned int n;

	cr_assert(end <= 1);
	memcpy(bytes, first, sizeof(bytes));
	for (n = 0; n < 4; n++)
		records[n] = owner->ledger[(ROOM_START >> HMM_BLOCK_SHIFT) + n];
	owner_gone(owner);
	owner->gone = owner->closing = false;
	fixture_reply(&fixture);
	for (n = 0; n < 4; n++) {
		struct block *block = fixture_block(&fixture, n);

		if (block) {
			block_uncharge(block, block->charged);
			block_free(block);
		}
		owner->ledger[(ROOM_START >> HMM_BLOCK_SHIFT) + n] = records[n];
	}
	waiting->end = end;
	waiting->graft[0] = graft;
	memcpy(first, bytes, sizeof(bytes));
	owner->registered_bytes = 0;
	owner->grafts = 0;
	fixture.mirror->migrations = 0;
	fixture.mirror->device_pages = fixture.mirror->shared_pages = 0;
	owner->recovering = true;
	owner->reopen_done = letter_new(LETTER_REQUEST);
	cr_assert(recover_tick(owner, fixture.worker.now));
	cr_assert(not(owner->recovering));
	cr_expect(eq(int, fixture_reply(&fixture), 0));
	fixture_check(&fixture);
}

Test(graft, outlives_hmmd)
{
	begin();
	move_there();
	die_and_succeed();
	expect_there(TO, FROM);
	for (unsigned int i = 0; i < 4; i++)
		if (i != TO % HMM_BLOCK_PAGES)
			cr_expect(eq(int, page_state(fixture_block(&fixture, 2), i), HMM_PAGE_INVALID));
	cr_expect(eq(u32, grafts()->end, 0));
	fixture_end(&fixture);
}

/* The event counts as not applied: it is done once more, with what it had done. */
Test(graft, outlives_hmmd_in_the_middle_of_its_event)
{
	begin();
	move_there();
	fixture.owner->journal->applied--;
	die_and_succeed();
	expect_there(TO, FROM);
	fixture_end(&fixture);
}

static uint64_t poisoned;

static int fail_to_copy(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode, size_t *done)
{
	(void)uffd, (void)dst, (void)src, (void)length, (void)mode;
	*done = 0;
	return -EFAULT;
}

static int note_poison(int uffd, uint64_t dst, size_t length, size_t *done)
{
	(void)uffd;
	*done = length;
	poisoned = dst;
	return 0;
}

/* Neither the device nor the CPU gets it, and nobody may take it for zeros. */
Test(graft, bytes_that_cannot_be_read_any_more)
{
	int nothing = memfd_create("nothing", MFD_CLOEXEC);
	struct kernel_ops ops = kernel_real;
	struct block *block;
	void *bytes;

	ops.uffd_copy = fail_to_copy;
	ops.uffd_poison = note_poison;
	begin();
	block = fixture_block(&fixture, 0);
	bytes = shadow_at(block_shadow(block), room(FROM));
	cr_assert(ne(ptr, mmap(bytes, HMM_PAGE_SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, nothing, 0), MAP_FAILED));
	close(nothing);
	kernel = &ops;
	poisoned = 0;
	remap(FROM, CALM);
	event_read(fixture.owner);
	cr_expect(eq(u64, poisoned, room(CALM)));
	kernel = &kernel_real;
	fixture_answer(&fixture);
	fixture_end(&fixture);
}
