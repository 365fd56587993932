// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_protect.c - what hmmd does when it is told of an mprotect(): of this very
 * process, with a real userfaultfd. A driver that answers late, a map that keeps
 * changing, and several mappings in one block.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/protect.h"
#include "engine_fixture.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(protect);

static struct fixture fixture;
static struct kernel_ops ops;

static void *page_at(unsigned int page)
{
	return (void *)(ROOM_START + page * HMM_PAGE_SIZE);
}

/* Says that pages [first, end) of the room may have other rights than before. */
static void tell(unsigned int first, unsigned int end)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_protect *message = calloc(1, sizeof(*message));

	HMM_MSG_INIT(*message, HMM_OP_PROTECT, 0);
	message->addr = ROOM_START + first * HMM_PAGE_SIZE;
	message->length = (end - first) * HMM_PAGE_SIZE;
	letter->message = &message->header;
	letter->owner = fixture.owner->id;
	protect_request(fixture.owner, letter);
	owner_run(fixture.owner);
}

/* 1: answered well; 0: not yet. Other letters, to drivers, are dropped. */
static int answered(void)
{
	struct letter *letter = mailbox_take(&fixture.outbox), *next;
	int n = 0;

	for (; letter; letter = next) {
		next = letter->next;
		if (letter->kind == LETTER_REPLY) {
			cr_assert(eq(int, letter->error, 0));
			cr_assert(eq(int, letter->reply->opcode, HMM_OP_PROTECT_REPLY));
			n++;
		}
		letter_free(letter);
	}
	return n;
}

static void begin(unsigned int out)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, out);
}

static void finish(void)
{
	mprotect(page_at(0), ROOM_PAGES * HMM_PAGE_SIZE, PROT_READ | PROT_WRITE);
	kernel = &kernel_real;
	fixture_end(&fixture);
}

static unsigned int count(unsigned int block, enum hmm_page_state state)
{
	const struct block *found = fixture_block(&fixture, block);

	return found ? block_count(found, state) : 0;
}

Test(protect, nothing_lost_nothing_done)
{
	struct block *block;
	uint64_t before;

	begin(20);
	block = fixture_block(&fixture, 0);
	before = fixture_sequence(block);
	tell(0, 20);
	cr_assert(eq(int, answered(), 1));
	cr_assert(eq(u64, fixture_sequence(block), before));
	cr_assert(eq(uint, count(0, HMM_PAGE_DEVICE), 20));
	/* Where hmmd knows nothing. */
	tell(3 * HMM_BLOCK_PAGES, ROOM_PAGES);
	cr_assert(eq(int, answered(), 1));
	finish();
}

Test(protect, home_where_no_device_reads)
{
	char expected[HMM_PAGE_SIZE];

	begin(20);
	mprotect(page_at(4), 4 * HMM_PAGE_SIZE, PROT_NONE);
	mprotect(page_at(12), 4 * HMM_PAGE_SIZE, PROT_READ);
	tell(0, 20);
	cr_assert(eq(int, answered(), 1));
	cr_assert(eq(uint, count(0, HMM_PAGE_DEVICE), 12));
	cr_assert(eq(uint, count(0, HMM_PAGE_SHARED), 0));
	fixture_check(&fixture);
	mprotect(page_at(4), 4 * HMM_PAGE_SIZE, PROT_READ | PROT_WRITE);
	for (unsigned int i = 4; i < 8; i++) {
		fixture_bytes(i, expected);
		cr_assert(eq(int, memcmp(page_at(i), expected, HMM_PAGE_SIZE), 0));
	}
	finish();
}

Test(protect, only_what_was_said)
{
	begin(20);
	mprotect(page_at(0), 20 * HMM_PAGE_SIZE, PROT_NONE);
	tell(4, 6);
	cr_assert(eq(int, answered(), 1));
	cr_assert(eq(uint, count(0, HMM_PAGE_DEVICE), 18));
	finish();
}

Test(protect, over_several_blocks)
{
	begin(2 * HMM_BLOCK_PAGES + 30);
	mprotect(page_at(500), (HMM_BLOCK_PAGES + 40) * HMM_PAGE_SIZE, PROT_NONE);
	tell(500, HMM_BLOCK_PAGES + 540);
	cr_assert(eq(int, answered(), 1));
	cr_assert(eq(uint, count(0, HMM_PAGE_DEVICE), 500));
	cr_assert(eq(uint, count(1, HMM_PAGE_DEVICE), 0));
	cr_assert(eq(uint, count(2, HMM_PAGE_DEVICE), 2));
	finish();
}

Test(protect, answered_when_the_driver_has)
{
	struct block *block;

	begin(20);
	fixture_callbacks(&fixture);
	block = fixture_block(&fixture, 0);
	mprotect(page_at(0), 10 * HMM_PAGE_SIZE, PROT_READ);
	mprotect(page_at(10), 10 * HMM_PAGE_SIZE, PROT_NONE);
	tell(0, 20);
	/* First what comes home, then what both may read: two questions. */
	for (int i = 0; i < 2; i++) {
		cr_assert(not(block_at_rest(block)));
		fixture_later(&fixture, SECOND / 10);
		cr_assert(eq(uint, fixture_answer(&fixture), 1));
		owner_run(fixture.owner);
	}
	cr_assert(eq(int, answered(), 1));
	cr_assert(block_at_rest(block));
	cr_assert(eq(uint, count(0, HMM_PAGE_DEVICE), 0));
	cr_assert(eq(uint, count(0, HMM_PAGE_SHARED), 10));
	/* And no reading either. */
	mprotect(page_at(0), 5 * HMM_PAGE_SIZE, PROT_NONE);
	tell(0, 20);
	cr_assert(eq(uint, fixture_answer(&fixture), 1));
	owner_run(fixture.owner);
	cr_assert(eq(int, answered(), 1));
	cr_assert(eq(uint, count(0, HMM_PAGE_SHARED), 5));
	finish();
}

static int failures;

static int failing_copy(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode, size_t *done)
{
	*done = 0;
	if (failures && failures-- > 0)
		return -EAGAIN;
	return kernel_real.uffd_copy(uffd, dst, src, length, mode, done);
}

static void fail_copies(int n)
{
	ops = kernel_real;
	ops.uffd_copy = failing_copy;
	kernel = &ops;
	failures = n;
}

Test(protect, a_map_that_is_changing_is_waited_for)
{
	int done, turns = 0;

	begin(20);
	mprotect(page_at(0), 20 * HMM_PAGE_SIZE, PROT_NONE);
	fail_copies(11);
	tell(0, 20);
	while (!(done = answered()) && turns++ < 10)
		fixture_later(&fixture, NS_PER_MS);
	cr_assert(eq(int, done, 1));
	cr_assert(ge(int, turns, 2), "it does not spin");
	cr_assert(eq(uint, count(0, HMM_PAGE_DEVICE), 0));
	finish();
}

Test(protect, windows_are_revoked_where_it_never_ends)
{
	struct window window = { .mirror = NULL, .peer = DRIVER, .start = ROOM_START, .end = ROOM_END, .id = 7 };
	struct letter *letter, *next;
	int revoked = 0, replies = 0;

	begin(20);
	window.mirror = fixture.mirror;
	TAILQ_INSERT_TAIL(&fixture.owner->windows, &window, link);
	mprotect(page_at(0), 20 * HMM_PAGE_SIZE, PROT_NONE);
	fail_copies(INT32_MAX);
	tell(0, 20);
	fixture_later(&fixture, 4 * SECOND);
	cr_assert(eq(int, answered(), 0));
	fixture_later(&fixture, 2 * SECOND);
	for (letter = mailbox_take(&fixture.outbox); letter; letter = next) {
		next = letter->next;
		revoked += letter->kind == LETTER_EVENT && letter->message->opcode == HMM_OP_WINDOW_REVOKED &&
			   ((struct hmm_msg_window_revoked *)letter->message)->error == -ETIMEDOUT;
		replies += letter->kind == LETTER_REPLY;
		letter_free(letter);
	}
	cr_assert(eq(int, revoked, 1));
	cr_assert(eq(int, replies, 1));
	cr_assert(window.revoked);
	TAILQ_REMOVE(&fixture.owner->windows, &window, link);
	kernel = &kernel_real;
	tell(0, 20);
	cr_assert(eq(int, answered(), 1));
	finish();
}

/* Nor does the table go on to say what could not be taken back. */
Test(protect, entries_are_withdrawn_where_it_never_ends)
{
	const uint64_t *entries;

	begin(20);
	entries = fixture.owner->table + (ROOM_START >> HMM_PAGE_SHIFT);
	mprotect(page_at(0), 10 * HMM_PAGE_SIZE, PROT_NONE);
	fail_copies(INT32_MAX);
	tell(0, 20);
	fixture_later(&fixture, 4 * SECOND);
	cr_assert(eq(int, answered(), 0));
	fixture_later(&fixture, 2 * SECOND);
	cr_assert(eq(int, answered(), 1));
	cr_assert(eq(uint, count(0, HMM_PAGE_DEVICE), 20));
	for (unsigned int i = 0; i < 20; i++)
		cr_expect(eq(int, (entries[i] & HMM_TABLE_VALID) != 0, i >= 10), "page %u", i);
	kernel = &kernel_real;
	tell(0, 20);
	cr_assert(eq(int, answered(), 1));
	cr_assert(eq(uint, count(0, HMM_PAGE_DEVICE), 10));
	fixture_check(&fixture);
	finish();
}

static int failing_look(int maps, uint64_t addr, struct kernel_vma *vma)
{
	return failures && failures-- > 0 ? -ENOMEM : kernel_real.vma_at(maps, addr, vma);
}

/* What could not be looked at is not taken for unchanged. */
Test(protect, mappings_that_can_t_be_looked_at)
{
	struct block *block;

	begin(20);
	block = fixture_block(&fixture, 0);
	mprotect(page_at(0), 10 * HMM_PAGE_SIZE, PROT_NONE);
	ops = kernel_real;
	ops.vma_at = failing_look;
	kernel = &ops;
	failures = 1;
	cr_assert(protect_is_due(block, ROOM_START + 15 * HMM_PAGE_SIZE));
	failures = 1;
	cr_assert(eq(int, protect_follow(block, 0, HMM_BLOCK_PAGES), -ENOMEM));
	failures = 1;
	tell(0, 20);
	cr_assert(eq(int, answered(), 0));
	fixture_later(&fixture, NS_PER_MS);
	cr_assert(eq(int, answered(), 1));
	cr_assert(eq(uint, count(0, HMM_PAGE_DEVICE), 10));
	finish();
}

/* ---- a device's write in place -------------------------------------------------------- */

static void device_write(uint64_t addr)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_device_write *message = calloc(1, sizeof(*message) + 8);

	hmm_wire_init(message, HMM_OP_DEVICE_WRITE, sizeof(*message) + 8, 1);
	message->mirror = fixture.mirror->id;
	message->addr = addr;
	message->count = 8;
	letter->message = &message->header;
	letter->owner = fixture.owner->id;
	access_request(fixture.owner, letter);
	owner_run(fixture.owner);
}

static unsigned int looks, writes;

/* What the program does just after hmmd has looked. */
static int look_in_time(int maps, uint64_t addr, struct kernel_vma *vma)
{
	int r = kernel_real.vma_at(maps, addr, vma);

	if (looks++ == 0)
		mprotect(page_at(600), HMM_PAGE_SIZE, PROT_READ);
	return r;
}

/* The library has to ask by then, and is answered when this is over. */
static ssize_t write_in_place(int mem, uint64_t addr, const void *buffer, size_t length)
{
	uint64_t number = block_sequence(fixture.owner, addr);

	writes++;
	cr_assert(number && !(number & 1), "%lu", number);
	return kernel_real.mem_write(mem, addr, buffer, length);
}

static void begin_in_place(void)
{
	begin(0);
	ops = kernel_real;
	ops.mem_write = write_in_place;
	kernel = &ops;
	looks = writes = 0;
	*(volatile uint64_t *)page_at(600) = 1;
	cr_assert(eq(u64, block_sequence(fixture.owner, (uint64_t)page_at(600)), 0));
}

Test(protect, a_write_in_place_is_known_of_before)
{
	begin_in_place();
	device_write((uint64_t)page_at(600));
	cr_assert(eq(int, fixture_reply(&fixture), 0));
	cr_assert(eq(uint, writes, 1));
	cr_assert(eq(u64, *(uint64_t *)page_at(600), 0));
	finish();
}

Test(protect, protected_between_the_look_and_the_write)
{
	begin_in_place();
	ops.vma_at = look_in_time;
	device_write((uint64_t)page_at(600));
	cr_assert(eq(int, fixture_reply(&fixture), -EPERM));
	cr_assert(eq(uint, writes, 0));
	cr_assert(eq(u64, *(uint64_t *)page_at(600), 1));
	finish();
}

/* A driver can have no memory used up by addresses that lead nowhere. */
Test(protect, a_write_to_nowhere_notes_nothing)
{
	const uint64_t nowhere = ROOM_END + 8 * HMM_BLOCK_SIZE;

	begin_in_place();
	device_write(nowhere);
	cr_assert(eq(int, fixture_reply(&fixture), -EFAULT));
	cr_assert(eq(u64, block_sequence(fixture.owner, nowhere), 0));
	finish();
}

Test(protect, a_page_that_is_asked_for)
{
	struct block *block;

	begin(20);
	block = fixture_block(&fixture, 0);
	cr_assert(not(protect_is_due(block, ROOM_START)));
	mprotect(page_at(0), 10 * HMM_PAGE_SIZE, PROT_READ);
	cr_assert(protect_is_due(block, ROOM_START));
	cr_assert(not(protect_is_due(block, ROOM_START + 10 * HMM_PAGE_SIZE)));
	cr_assert(not(protect_is_due(block, ROOM_START + 30 * HMM_PAGE_SIZE)));
	cr_assert(eq(int, protect_follow(block, 0, HMM_BLOCK_PAGES), 1));
	cr_assert(not(protect_is_due(block, ROOM_START)));
	cr_assert(eq(int, protect_follow(block, 0, HMM_BLOCK_PAGES), 0));
	cr_assert(eq(uint, count(0, HMM_PAGE_DEVICE), 10));
	finish();
}

/* What was closed in windows opens again where it was said, and is said once. */
Test(protect, what_was_closed_opens)
{
	struct window window = { .peer = DRIVER, .start = ROOM_START, .end = ROOM_END, .id = 7 };
	const struct hmm_msg_window_revoked *message;
	struct letter *letter;

	begin(20);
	window.mirror = fixture.mirror;
	TAILQ_INSERT_TAIL(&fixture.owner->windows, &window, link);
	span_set_add(&window.closed, ROOM_START + 30 * HMM_PAGE_SIZE, ROOM_START + 40 * HMM_PAGE_SIZE);
	window_reopen(fixture.owner, ROOM_START, ROOM_START + 30 * HMM_PAGE_SIZE);
	cr_assert(eq(ptr, mailbox_take(&fixture.outbox), NULL));
	window_reopen(fixture.owner, ROOM_START + 35 * HMM_PAGE_SIZE, ROOM_END);
	letter = mailbox_take(&fixture.outbox);
	cr_assert(ne(ptr, letter, NULL));
	cr_assert(eq(ptr, letter->next, NULL));
	message = (const void *)letter->message;
	cr_assert(eq(int, message->header.opcode, HMM_OP_WINDOW_REVOKED));
	cr_assert(eq(int, message->error, 0));
	cr_assert(eq(u64, message->start, ROOM_START + 35 * HMM_PAGE_SIZE));
	cr_assert(eq(u64, message->end, ROOM_START + 40 * HMM_PAGE_SIZE));
	letter_free(letter);
	window_reopen(fixture.owner, ROOM_START + 35 * HMM_PAGE_SIZE, ROOM_END);
	cr_assert(eq(ptr, mailbox_take(&fixture.outbox), NULL));
	cr_assert(eq(uint, window.closed.count, 1));
	cr_assert(eq(u64, window.closed.list[0].start, ROOM_START + 30 * HMM_PAGE_SIZE));
	cr_assert(eq(u64, window.closed.list[0].end, ROOM_START + 35 * HMM_PAGE_SIZE));
	/* A window that is closed for good stays so. */
	window.revoked = true;
	window_reopen(fixture.owner, 0, HMM_VA_END);
	cr_assert(eq(ptr, mailbox_take(&fixture.outbox), NULL));
	span_set_deinit(&window.closed);
	TAILQ_REMOVE(&fixture.owner->windows, &window, link);
	finish();
}
