// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_fork.c - what a raw fork's child is given of a block in transit: by the base engine, pages that the agent has thrown away while its
 * order counts only later. The child's userfaultfd is nothing; what is copied to it is noted here. And the fork that the library tells of,
 * beside another thread's mremap().
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/fork.h"
#include "engine_fixture.h"
#include "tests/leakcheck.h"
#include "uapi.h"

LEAKCHECKED_SUITE(fork);

#define PAGES	4U

static struct fixture fixture;
static struct pages copied;
static unsigned int wrong;

static int note_copy(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode, size_t *done)
{
	char expected[HMM_PAGE_SIZE];

	(void)uffd, (void)mode;
	for (*done = 0; *done < length; *done += HMM_PAGE_SIZE) {
		unsigned int page = (unsigned int)((dst + *done - ROOM_START) >> HMM_PAGE_SHIFT);

		fixture_bytes(page, expected);
		wrong += memcmp((const char *)src + *done, expected, HMM_PAGE_SIZE) != 0;
		pages_set(&copied, page);
	}
	return 0;
}

static void give_order(struct block *block)
{
	struct pages pages = pages_from(0, PAGES);

	order_issue(block->owner, HMM_ORDER_OUT_ZAP, block, HMM_NO_SLOT, &pages, 0);
}

/* Pages [0, PAGES) are on their way out, the agent has filled all but the last and is at @state; then the owner forks. */
static unsigned int fork_at(enum hmm_order_state state)
{
	struct kernel_ops ops = kernel_real;
	struct pages pages = pages_from(0, PAGES);
	struct hmm_order *shared;
	struct block *block;

	ops.uffd_copy = note_copy;
	kernel = &ops;
	copied = (struct pages){ 0 };
	wrong = 0;
	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, PAGES);
	block = fixture_block(&fixture, 0);
	/* Their bytes stay in the shadow. */
	block_set_state(block, 0, PAGES, HMM_PAGE_INVALID);
	transit_begin(block, HMM_TRANSIT_OUT_ZAP, &pages, HMM_REASON_MIGRATE, give_order);
	shared = order_shared(fixture.owner, block->order);
	shared->moved[0] = (1U << (PAGES - 1)) - 1;
	shared->state = state;
	fork_child_consume_fd(fixture.owner, 0, 0, open("/dev/null", O_RDWR | O_CLOEXEC));
	cr_expect(eq(uint, wrong, 0));
	/* No agent and no job will end it. */
	block->order = NULL;
	fixture.owner->reaped = fixture.owner->produced;
	kernel = &kernel_real;
	fixture_end(&fixture);
	return pages_count(&copied);
}

Test(fork, what_was_zapped_is_in_the_shadow)
{
	cr_expect(eq(uint, fork_at(HMM_ORDER_DONE), PAGES - 1));
	cr_expect(eq(uint, fork_at(HMM_ORDER_COMMIT), PAGES - 1));
}

/* Its parent has all of it still, and so has the child. */
Test(fork, what_was_not_zapped_is_not_given)
{
	cr_expect(eq(uint, fork_at(HMM_ORDER_QUEUED), 0));
	cr_expect(eq(uint, fork_at(HMM_ORDER_RUNNING), 0));
	cr_expect(eq(uint, fork_at(HMM_ORDER_CANCELLED), 0));
}

/* ---- what lies in a slot -------------------------------------------------------------------------- */

static unsigned int reads;			/* fail so often, and nobody says why */
static bool in_slot;

static ssize_t read_from_slot(int mem, uint64_t addr, void *buffer, size_t length)
{
	(void)mem;
	if (reads || !in_slot) {
		reads -= reads > 0;
		return -EIO;
	}
	fixture_bytes((unsigned int)((addr - slot_addr(fixture.owner, 0)) >> HMM_PAGE_SHIFT), buffer);
	return (ssize_t)length;
}

static int look_into_slot(int pagemap, uint64_t start, unsigned int pages, uint64_t *entries)
{
	if (start < slot_addr(fixture.owner, 0) || start >= slot_addr(fixture.owner, 1))
		return kernel_real.pagemap_read(pagemap, start, pages, entries);
	for (unsigned int i = 0; i < pages; i++)
		entries[i] = in_slot ? PM_SWAP : 0;
	return 0;
}

static void give_move(struct block *block)
{
	struct pages pages = pages_from(0, PAGES);

	order_issue(block->owner, HMM_ORDER_OUT_MOVE, block, 0, &pages, 0);
}

/* The agent has just moved them there, if @moved, and has not said so yet. */
static unsigned int fork_with_slot(bool moved, unsigned int failures)
{
	struct kernel_ops ops = kernel_real;
	struct pages pages = pages_from(0, PAGES);
	struct block *block;

	ops.uffd_copy = note_copy;
	ops.mem_read = read_from_slot;
	ops.pagemap_read = look_into_slot;
	copied = (struct pages){ 0 };
	wrong = 0;
	in_slot = moved;
	reads = failures;
	fixture_begin_faked(&fixture, POOL);
	fixture.owner->slots_addr = ROOM_END;
	fixture_out(&fixture, 0, PAGES);
	block = fixture_block(&fixture, 0);
	block_set_state(block, 0, PAGES, HMM_PAGE_INVALID);
	transit_begin(block, HMM_TRANSIT_OUT_MOVE, &pages, HMM_REASON_MIGRATE, give_move);
	kernel = &ops;
	fork_child_consume_fd(fixture.owner, 0, 0, open("/dev/null", O_RDWR | O_CLOEXEC));
	kernel = &kernel_real;
	cr_expect(eq(uint, wrong, 0));
	block->order = NULL;
	fixture.owner->reaped = fixture.owner->produced;
	fixture_end(&fixture);
	return pages_count(&copied);
}

Test(fork, what_is_in_the_slot_is_given)
{
	cr_expect(eq(uint, fork_with_slot(true, 0), PAGES));
}

/* It is swapped out, say, and there is no memory for it at the moment. */
Test(fork, what_is_in_the_slot_and_cannot_be_read_is_given_later)
{
	cr_expect(eq(uint, fork_with_slot(true, 7), PAGES), "the child reads zeros");
	cr_expect(eq(uint, reads, 0));
}

/* Its parent has all of it still, and so has the child. */
Test(fork, what_is_not_in_the_slot_is_not_waited_for)
{
	cr_expect(eq(uint, fork_with_slot(false, 0), 0));
}

/* ---- what another thread is moving meanwhile ------------------------------------------------------- */

#define MOVED	3U				/* this page of the room, to the other one */
#define MOVED_TO (HMM_BLOCK_PAGES + 8)

static int child_fd;
static bool child_has_moved;			/* it was made after the move */
static unsigned int looks, told;
static uint64_t copied_to;

static void tell(struct uffd_msg message)
{
	cr_assert(eq(int, (int)write(fixture.events, &message, sizeof(message)), (int)sizeof(message)));
}

static uint64_t addr_of(unsigned int n)
{
	return ROOM_START + n * HMM_PAGE_SIZE;
}

/* Of the owner: whether its map is changing. Its other thread has moved the page already, and gets to tell of it only now. */
static int ask(int uffd, uint64_t start, size_t length, bool on)
{
	(void)length, (void)on;
	if (uffd == child_fd)
		return start == addr_of(child_has_moved ? MOVED_TO : MOVED) ? 0 : -ENOENT;
	if (looks++ < 3)
		return -EAGAIN;
	if (told)
		return 0;
	told = 1;
	tell((struct uffd_msg){ .event = UFFD_EVENT_REMAP,
				.arg.remap = { .from = addr_of(MOVED), .to = addr_of(MOVED_TO), .len = HMM_PAGE_SIZE } });
	return -EAGAIN;
}

static int note_where(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode, size_t *done)
{
	char expected[HMM_PAGE_SIZE];

	(void)mode;
	cr_assert(eq(int, uffd, child_fd));
	fixture_bytes(MOVED, expected);
	wrong += memcmp(src, expected, HMM_PAGE_SIZE) != 0;
	*done = length;
	copied_to = dst;
	return 0;
}

static void fork_amid_a_move(bool made_after)
{
	struct kernel_ops ops = kernel_real;

	ops.uffd_protect = ask;
	ops.uffd_copy = note_where;
	looks = told = wrong = 0;
	copied_to = 0;
	child_has_moved = made_after;
	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, MOVED, MOVED + 1);
	child_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	tell((struct uffd_msg){ .event = UFFD_EVENT_FORK, .arg.fork.ufd = (uint32_t)child_fd });
	kernel = &ops;
	event_read(fixture.owner);
	kernel = &kernel_real;
	cr_expect(eq(uint, told, 1));
	cr_expect(eq(uint, wrong, 0));
	cr_expect(eq(u64, copied_to, addr_of(made_after ? MOVED_TO : MOVED)), "the child reads zeros");
	/* And then what was read on is done. */
	cr_expect(eq(u64, fixture.owner->journal->applied, 2));
	cr_expect(eq(u64, fixture.owner->moves, 1));
	cr_expect(eq(int, page_state(block_find(fixture.owner, addr_of(MOVED_TO)), MOVED_TO % HMM_BLOCK_PAGES), HMM_PAGE_DEVICE));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(fork, what_was_moved_before_it_and_told_of_behind_it)
{
	fork_amid_a_move(true);
}

Test(fork, what_was_moved_behind_it)
{
	fork_amid_a_move(false);
}

/* ---- bytes that can't be read ------------------------------------------------------------------ */

static const char *unreadable;			/* a page of the shadow */
static unsigned int refusals;			/* so many times nothing can be read, for want of memory */
static uint64_t poisoned;

static int copy_or_not(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode, size_t *done)
{
	const char *from = src;
	int r = 0;

	*done = 0;
	if (refusals) {
		refusals--;
		return -EFAULT;
	}
	if (unreadable >= from && unreadable < from + length) {
		length = (size_t)(unreadable - from);
		r = -EFAULT;
	}
	if (length)
		note_copy(uffd, dst, src, length, mode, done);
	return r;
}

static int note_poison(int uffd, uint64_t dst, size_t length, size_t *done)
{
	(void)uffd;
	*done = length;
	poisoned = dst;
	return 0;
}

/* Pages [0, PAGES) are on the device. */
static void fork_with(struct kernel_ops *ops)
{
	*ops = kernel_real;
	ops->uffd_copy = copy_or_not;
	ops->uffd_poison = note_poison;
	kernel = ops;
	copied = (struct pages){ 0 };
	wrong = 0;
	poisoned = 0;
	fork_child_consume_fd(fixture.owner, 0, 0, open("/dev/null", O_RDWR | O_CLOEXEC));
	kernel = &kernel_real;
	cr_expect(eq(uint, wrong, 0));
}

/* It says that it cannot read, and not why. */
Test(fork, what_there_is_no_memory_to_read_is_given_later)
{
	struct kernel_ops ops;

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, PAGES);
	refusals = 5;
	fork_with(&ops);
	cr_expect(eq(uint, pages_count(&copied), PAGES), "the child reads zeros");
	cr_expect(eq(u64, poisoned, 0));
	fixture_end(&fixture);
}

/* Its memory has failed, say: here there is none, which ends in the same signal. */
Test(fork, what_cannot_be_read_any_more_is_poisoned)
{
	int nothing = memfd_create("nothing", MFD_CLOEXEC);
	struct kernel_ops ops;
	struct block *block;

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, PAGES);
	block = fixture_block(&fixture, 0);
	unreadable = shadow_at(block_shadow(block), page_addr(block, 1));
	cr_assert(ne(ptr, mmap((void *)(uintptr_t)unreadable, HMM_PAGE_SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, nothing, 0), MAP_FAILED));
	close(nothing);
	fork_with(&ops);
	cr_expect(eq(uint, pages_count(&copied), PAGES - 1));
	cr_expect(eq(u64, poisoned, page_addr(block, 1)));
	fixture_end(&fixture);
}

/* ---- by the library ------------------------------------------------------------------------- */

#define FROM	1U				/* pages of the room: of block 0, and of block 2 */
#define TO	(2 * HMM_BLOCK_PAGES + 1)

static void *page(unsigned int n)
{
	return (void *)(ROOM_START + n * HMM_PAGE_SIZE);
}

static void *move(void *data)
{
	(void)data;
	return mremap(page(FROM), HMM_PAGE_SIZE, HMM_PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, page(TO));
}

static void prepare(void)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_prepare_fork *message = calloc(1, sizeof(*message));

	HMM_MSG_INIT(*message, HMM_OP_PREPARE_FORK, 0);
	message->fork = 1;
	letter->message = &message->header;
	letter->owner = fixture.owner->id;
	owner_request(fixture.owner, letter);
	owner_run(fixture.owner);
}

/* Its driver lets go of whatever it is asked for. Return: hmmd's answer to the program, or 1. */
static int answer(void)
{
	struct letter *letter = mailbox_take(&fixture.outbox), *next;
	int status = 1;

	for (; letter; letter = next) {
		next = letter->next;
		if (letter->kind == LETTER_REPLY)
			status = letter->error;
		else if (letter->message->opcode == HMM_OP_INVALIDATE)
			invalidate_ack(fixture.owner, ((const struct hmm_msg_invalidate *)(const void *)letter->message)->cookie, 0);
		letter_free(letter);
	}
	return status;
}

/* Block 0 is on its way home, and block 2 has been looked at: nothing is there. Then a page goes from the one to the other. */
Test(fork, nothing_is_out_though_another_thread_moves_it)
{
	char expected[HMM_PAGE_SIZE];
	pthread_t mover;
	void *moved;
	int status;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, PAGES);
	mailbox_deinit(&fixture.outbox);
	cr_assert(eq(int, mailbox_init(&fixture.outbox), 0));
	prepare();
	cr_assert(not(block_at_rest(fixture_block(&fixture, 0))));
	cr_assert(eq(int, pthread_create(&mover, NULL, move, NULL), 0));
	while (!fixture.owner->moves) {
		usleep(1000);
		event_read(fixture.owner);
	}
	cr_assert(eq(int, page_state(block_find(fixture.owner, (uint64_t)page(TO)), TO % HMM_BLOCK_PAGES), HMM_PAGE_DEVICE));
	/* The rest of its events, while nobody has answered for block 0. */
	while (pthread_tryjoin_np(mover, &moved)) {
		usleep(1000);
		event_read(fixture.owner);
	}
	cr_assert(eq(ptr, moved, page(TO)));
	while ((status = answer()) == 1)
		fixture_later(&fixture, NS_PER_MS);
	cr_expect(eq(int, status, 0));
	cr_expect(eq(u64, fixture.mirror->device_pages, 0), "a child that nobody sees would have zeros there");
	fixture_bytes(FROM, expected);
	cr_expect(eq(int, memcmp(page(TO), expected, HMM_PAGE_SIZE), 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}
