// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_range.c - what the engine answers to a look at a range, which entries it
 * makes, what takes them back, and who is told. The owner is this process.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine_fixture.h"
#include "uapi.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(range);

static struct fixture fixture;

#define QUIET	(200 * NS_PER_MS)	/* longer than a block is left alone */
#define HERE	(HMM_RANGE_ENTRY_VALID | HMM_RANGE_ENTRY_WRITE)
#define THERE	(HERE | HMM_RANGE_ENTRY_DEVICE)

static char *page(unsigned int n)
{
	return (char *)ROOM_START + n * HMM_PAGE_SIZE;
}

/* Posts a look of the driver @peer at pages [first, end), and lets the owner run. */
static void post(uint64_t peer, unsigned int first, unsigned int end, uint64_t flags, uint8_t want, uint32_t hold)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_range_fault *message = calloc(1, sizeof(*message) + 1);

	hmm_wire_init(message, HMM_OP_RANGE_FAULT, sizeof(*message) + 1, 0);
	message->mirror = fixture.mirror->id;
	message->hold = hold;
	message->addr = message->hold_start = (uint64_t)page(first);
	message->length = (end - first) * HMM_PAGE_SIZE;
	message->hold_end = (uint64_t)page(end);
	message->flags = flags;
	message->page_shift = HMM_PAGE_SHIFT;
	message->count = 1;
	message->wants[0] = want;
	letter->peer = peer;
	letter->message = &message->header;
	range_request(fixture.owner, letter);
	owner_run(fixture.owner);
}

/* The answer that has come, after events to the driver; NULL: none yet. */
static struct letter *answer(void)
{
	struct letter *letter = mailbox_take(&fixture.outbox), *next, *found = NULL;

	for (; letter; letter = next) {
		next = letter->next;
		if (letter->kind == LETTER_REPLY) {
			cr_assert(eq(ptr, found, NULL));
			found = letter;
		} else {
			letter_free(letter);
		}
	}
	return found;
}

/* A look that is answered at once: @error, and @expected for each page before it failed. */
static void look(unsigned int first, unsigned int end, uint64_t flags, uint8_t want, uint32_t hold, int error,
		 uint8_t expected)
{
	const struct hmm_msg_range_fault_reply *reply;
	struct letter *letter;

	post(DRIVER, first, end, flags, want, hold);
	/* After each block that it had to fault in, others have their turn. */
	for (int turns = 0; !(letter = answer()); turns++) {
		cr_assert(lt(int, turns, 100));
		fixture_later(&fixture, 0);
	}
	cr_assert(eq(int, letter->error, 0), "%s", letter->text);
	reply = (const void *)letter->reply;
	cr_assert(eq(int, reply->error, error));
	if (!error)
		cr_assert(eq(u32, reply->count, end - first));
	for (uint32_t i = 0; i < reply->count; i++)
		cr_assert(eq(uint, reply->entries[i], expected), "page %u", first + i);
	letter_free(letter);
	fixture_check(&fixture);
}

static void release(uint32_t hold)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_range_release *message = calloc(1, sizeof(*message));

	hmm_wire_init(message, HMM_OP_RANGE_RELEASE, sizeof(*message), 0);
	message->mirror = fixture.mirror->id;
	message->hold = hold;
	letter->peer = DRIVER;
	letter->message = &message->header;
	range_request(fixture.owner, letter);
	letter_free(answer());
}

static unsigned int entries(unsigned int first, unsigned int end)
{
	unsigned int n = 0;

	for (unsigned int i = first; i < end; i++)
		n += (fixture.owner->table[(uint64_t)page(i) >> HMM_PAGE_SHIFT] & HMM_TABLE_VALID) != 0;
	return n;
}

static uint64_t sequence(unsigned int block)
{
	return block_sequence(fixture.owner, ROOM_START + block * HMM_BLOCK_SIZE);
}

Test(range, sees_what_is_there)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	look(0, 10, HMM_RANGE_FLAGS_SNAPSHOT, 0, 0, 0, 0);
	cr_expect(eq(uint, entries(0, 10), 0));
	memset(page(0), 1, 10 * HMM_PAGE_SIZE);
	look(0, 10, HMM_RANGE_FLAGS_SNAPSHOT, 0, 0, 0, HERE);
	cr_expect(eq(uint, entries(0, 20), 10));
	fixture_out(&fixture, 20, 30);
	look(20, 30, HMM_RANGE_FLAGS_SNAPSHOT, 0, 0, 0, THERE);
	look(20, 30, 0, HMM_RANGE_WANT_READ, 0, 0, THERE);
	/* Four blocks and two regions. */
	look(30, ROOM_PAGES, HMM_RANGE_FLAGS_BLOCK, HMM_RANGE_WANT_READ, 0, 0, HERE);
	cr_expect(eq(uint, entries(30, ROOM_PAGES), ROOM_PAGES - 30));
	fixture_end(&fixture);
}

static unsigned int mem_reads;

/* Pages 3 and 4 are in swap until they are read. */
static int swapped_pagemap(int pagemap, uint64_t addr, unsigned int pages, uint64_t *entries)
{
	int r = kernel_real.pagemap_read(pagemap, addr, pages, entries);

	for (unsigned int i = 0; !r && i < pages; i++) {
		uint64_t at = addr + i * HMM_PAGE_SIZE;

		if (!mem_reads && at >= (uint64_t)page(3) && at < (uint64_t)page(5))
			entries[i] = PM_SWAP;
	}
	return r;
}

static ssize_t counted_read(int mem, uint64_t addr, void *buffer, size_t length)
{
	mem_reads++;
	return kernel_real.mem_read(mem, addr, buffer, length);
}

Test(range, what_is_in_swap_is_faulted_in)
{
	struct kernel_ops swapped = kernel_real;

	swapped.pagemap_read = swapped_pagemap;
	swapped.mem_read = counted_read;
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	memset(page(0), 1, 10 * HMM_PAGE_SIZE);
	kernel = &swapped;
	/* A snapshot faults nothing in, and nobody asked. */
	look(3, 5, HMM_RANGE_FLAGS_SNAPSHOT, 0, 0, 0, 0);
	look(3, 5, HMM_RANGE_FLAGS_BLOCK, 0, 0, 0, 0);
	cr_expect(eq(uint, mem_reads, 0));
	cr_expect(eq(uint, entries(0, 10), 0));
	look(0, 4, HMM_RANGE_FLAGS_BLOCK, HMM_RANGE_WANT_READ, 0, 0, HERE);
	cr_expect(eq(uint, mem_reads, 1));
	cr_expect(eq(uint, entries(0, 10), 4));
	kernel = &kernel_real;
	fixture_end(&fixture);
}

/* As long as a range holds it; then its number says that nobody looks any more. */
Test(range, is_watched_while_it_is_held)
{
	uint64_t before;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	memset(page(0), 1, 10 * HMM_PAGE_SIZE);
	look(0, 10, 0, HMM_RANGE_WANT_READ, 5, 0, HERE);
	look(2, 4, 0, HMM_RANGE_WANT_READ, 6, 0, HERE);
	before = sequence(0);
	fixture_later(&fixture, QUIET);
	fixture_later(&fixture, QUIET);
	cr_expect(eq(uint, entries(0, 10), 10));
	cr_expect(eq(u64, sequence(0), before));
	release(5);
	release(5);
	release(77);
	fixture_later(&fixture, QUIET);
	cr_expect(eq(uint, entries(0, 10), 10), "the other holds it still");
	release(6);
	cr_expect(eq(uint, entries(0, 10), 10), "not at once");
	fixture_later(&fixture, QUIET);
	cr_expect(eq(uint, entries(0, 10), 0));
	cr_expect(eq(u64, sequence(0), before + 2));
	cr_expect(eq(ptr, fixture_block(&fixture, 0), NULL));
	/* Without a hold: a moment. */
	look(0, 10, 0, HMM_RANGE_WANT_READ, 0, 0, HERE);
	fixture_later(&fixture, QUIET);
	cr_expect(eq(uint, entries(0, 10), 0));
	cr_expect(eq(u64, sequence(0), before + 4));
	/* The driver goes away. */
	look(0, 10, 0, HMM_RANGE_WANT_READ, 7, 0, HERE);
	owner_peer_gone(fixture.owner, DRIVER);
	fixture_later(&fixture, QUIET);
	cr_expect(eq(uint, entries(0, 10), 0));
	/* The mirror. */
	look(0, 10, 0, HMM_RANGE_WANT_READ, 8, 0, HERE);
	range_mirror_gone(fixture.mirror);
	fixture_later(&fixture, QUIET);
	cr_expect(eq(uint, entries(0, 10), 0));
	cr_expect(eq(uint, fixture.owner->n_holds, 0));
	fixture_end(&fixture);
}

/* The library moves a mapping: nothing is watched, nor let go of, before that is over, and nobody is told that it can't be. */
Test(range, what_is_being_moved_is_not_split)
{
	struct letter *letter;
	uint32_t *remapping;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	memset(page(0), 1, 10 * HMM_PAGE_SIZE);
	remapping = &fixture.owner->orders->remapping;
	*remapping = 1;
	post(DRIVER, 0, 10, HMM_RANGE_FLAGS_BLOCK, HMM_RANGE_WANT_READ, 0);
	for (int turns = 0; turns < 10; turns++) {
		fixture_later(&fixture, NS_PER_MS);
		cr_assert(eq(ptr, answer(), NULL));
	}
	cr_expect(eq(u64, atomic_load(&fixture.owner->registered_bytes), 0));
	*remapping = 0;
	fixture_later(&fixture, NS_PER_MS);
	letter = answer();
	cr_assert(letter != NULL);
	cr_assert(eq(int, ((const struct hmm_msg_range_fault_reply *)(const void *)letter->reply)->error, 0));
	letter_free(letter);
	cr_expect(eq(uint, entries(0, 10), 10));
	*remapping = 1;
	fixture_later(&fixture, QUIET);
	cr_expect(eq(u64, atomic_load(&fixture.owner->registered_bytes), HMM_BLOCK_SIZE));
	cr_expect(eq(uint, fixture.owner->orders->splitting, 0));
	*remapping = 0;
	fixture_later(&fixture, QUIET);
	cr_expect(eq(u64, atomic_load(&fixture.owner->registered_bytes), 0));
	fixture_end(&fixture);
}

/* More than are noted: their drivers hear of it all the same when nobody looks after their entries any more. */
Test(range, more_than_can_be_held)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	memset(page(0), 1, HMM_PAGE_SIZE);
	memset(page(600), 1, 10 * HMM_PAGE_SIZE);
	for (uint32_t id = 1; id <= 4096; id++)
		look(0, 1, 0, HMM_RANGE_WANT_READ, id, 0, HERE);
	cr_expect(eq(uint, fixture.owner->n_holds, 4096));
	look(600, 610, 0, HMM_RANGE_WANT_READ, 5000, 0, HERE);
	cr_expect(eq(uint, fixture.owner->n_holds, 4096));
	cr_expect(eq(uint, entries(600, 610), 10));
	fixture_later(&fixture, QUIET);
	cr_expect(eq(uint, entries(600, 610), 0));
	cr_expect(eq(uint, fixture_answer(&fixture), 1));
	cr_expect(eq(uint, entries(0, 1), 1), "the others are held");
	fixture_end(&fixture);
}

/* Asks for @blocks of coherent memory. Return: hmmd's answer. */
static int alloc_coherent(unsigned int blocks)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_alloc *message = calloc(1, sizeof(*message));
	int error;

	HMM_MSG_INIT(*message, HMM_OP_ALLOC, 0);
	message->mirror = fixture.mirror->id;
	message->addr = ROOM_START;
	message->length = blocks * HMM_BLOCK_SIZE;
	letter->message = &message->header;
	access_request(fixture.owner, letter);
	owner_run(fixture.owner);
	for (int turns = 0; !(letter = answer()); turns++) {
		cr_assert(lt(int, turns, 100));
		fixture_later(&fixture, QUIET);
	}
	error = letter->error;
	letter_free(letter);
	return error;
}

/* Whoever looked at coherent memory learns by the number that it is so no more. */
Test(range, coherent_memory_goes_with_its_number)
{
	uint64_t before;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	cr_assert(eq(int, alloc_coherent(1), 0));
	look(0, 10, HMM_RANGE_FLAGS_SNAPSHOT, 0, 0, 0, THERE | HMM_RANGE_ENTRY_COHERENT);
	before = sequence(0);
	block_let_go_coherent(fixture_block(&fixture, 0));
	cr_expect(eq(uint, entries(0, HMM_BLOCK_PAGES), 0));
	cr_expect(ne(u64, sequence(0), before));
	cr_expect(eq(u64, sequence(0) % 2, 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* So does what was coherent for a moment, because there was no room for all of it. */
Test(range, coherent_memory_is_taken_back_with_its_number)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, HMM_BLOCK_SIZE);
	cr_assert(eq(int, alloc_coherent(2), -ENOSPC));
	cr_expect(eq(uint, entries(0, HMM_BLOCK_PAGES), 0));
	cr_expect(ne(u64, sequence(0), 0));
	cr_expect(eq(u64, sequence(0) % 2, 0));
	cr_expect(eq(u64, sequence(1), 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(range, drivers_are_told_of_what_goes)
{
	struct block *block;
	uint64_t before;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	memset(page(0), 1, 10 * HMM_PAGE_SIZE);
	look(0, 10, 0, HMM_RANGE_WANT_READ, 5, 0, HERE);
	block = fixture_block(&fixture, 0);
	before = sequence(0);
	/* What no range saw is nobody's affair. */
	block_discard(block, 10, 300, HMM_REASON_UNMAP);
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, sequence(0), before));
	block_discard(block, 3, 5, HMM_REASON_DISCARD);
	/* Told, and not waited for: nothing of these pages is on a device. */
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, sequence(0), before + 2));
	cr_expect(eq(uint, entries(0, 10), 8));
	fixture_check(&fixture);
	block_discard(block, 5, 6, HMM_REASON_DISCARD);
	cr_expect(eq(uint, entries(0, 10), 7));
	cr_expect(eq(u64, sequence(0), before + 4));
	fixture_check(&fixture);
	cr_expect(eq(uint, fixture_answer(&fixture), 2));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

static void look_in_transit(uint64_t flags)
{
	struct pages pages = pages_from(0, 10);

	home_begin(fixture_block(&fixture, 0), &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	cr_assert(not(block_at_rest(fixture_block(&fixture, 0))));
	post(DRIVER, 0, 20, flags, HMM_RANGE_WANT_READ, 0);
}

Test(range, waits_only_if_it_may)
{
	const uint64_t ways[] = { HMM_RANGE_FLAGS_SNAPSHOT, 0, HMM_RANGE_FLAGS_BLOCK };

	for (unsigned int i = 0; i < 3; i++) {
		const struct hmm_msg_range_fault_reply *reply;
		struct letter *letter, *next, *done = NULL;
		uint64_t cookie = 0;

		fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
		fixture_callbacks(&fixture);
		fixture_out(&fixture, 0, 20);
		look_in_transit(ways[i]);
		for (letter = mailbox_take(&fixture.outbox); letter; letter = next) {
			next = letter->next;
			if (letter->kind == LETTER_REPLY) {
				done = letter;
				continue;
			}
			cookie = ((const struct hmm_msg_invalidate *)(const void *)letter->message)->cookie;
			letter_free(letter);
		}
		cr_assert(eq(int, done != NULL, ways[i] != HMM_RANGE_FLAGS_BLOCK));
		invalidate_ack(fixture.owner, cookie, 0);
		owner_run(fixture.owner);
		if (!done)
			done = answer();
		cr_assert(ne(ptr, done, NULL));
		reply = (const void *)done->reply;
		cr_expect(eq(int, reply->error, ways[i] == HMM_RANGE_FLAGS_BLOCK ? 0 : -EAGAIN));
		if (!reply->error) {
			cr_assert(eq(u32, reply->count, 20));
			for (unsigned int page = 0; page < 20; page++)
				cr_expect(eq(uint, reply->entries[page], page < 10 ? HERE : THERE));
			cr_expect(eq(u64, reply->sequence, sequence(0)));
		}
		letter_free(done);
		fixture_check(&fixture);
		fixture_end(&fixture);
	}
}

Test(range, errors_where_they_are)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	memset(page(0), 1, 20 * HMM_PAGE_SIZE);
	cr_assert(eq(int, mprotect(page(10), HMM_PAGE_SIZE, PROT_READ), 0));
	look(0, 10, 0, HMM_RANGE_WANT_READ | HMM_RANGE_WANT_WRITE, 0, 0, HERE);
	look(10, 11, 0, HMM_RANGE_WANT_READ, 0, 0, HMM_RANGE_ENTRY_VALID);
	look(0, 20, 0, HMM_RANGE_WANT_READ | HMM_RANGE_WANT_WRITE, 0, -EPERM, 0);
	/* Without READ nothing is asked. */
	look(0, 10, 0, HMM_RANGE_WANT_WRITE, 0, 0, HERE);
	look(10, 11, 0, HMM_RANGE_WANT_WRITE, 0, 0, HMM_RANGE_ENTRY_VALID);
	fixture_end(&fixture);
}

/* What the kernel's two looks say of page 5: how often there is no mapping though there is one, and whether one can be asked. */
static unsigned int unseen, looks, second_looks;
static bool cannot_be_asked;

static int unseeing_look(int maps, uint64_t addr, struct kernel_vma *vma)
{
	int r = kernel_real.vma_at(maps, addr, vma);

	looks++;
	if (!r && addr == (uint64_t)page(5) && unseen && unseen--)
		vma->start = addr + HMM_PAGE_SIZE;
	return r;
}

static int second_look(int pagemap, uint64_t addr)
{
	second_looks++;
	return cannot_be_asked ? -ENOTTY : kernel_real.mapped(pagemap, addr);
}

Test(range, a_mapping_that_takes_another_s_place_is_seen)
{
	struct kernel_ops ops = kernel_real;
	const struct kernel_ops *before = kernel;
	char *other = mmap(NULL, 2 * HMM_PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kernel_vma vma;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	cr_assert(ne(ptr, other, MAP_FAILED));
	memset(page(0), 1, 20 * HMM_PAGE_SIZE);
	ops.vma_at = unseeing_look;
	ops.mapped = second_look;
	kernel = &ops;
	for (unsigned int times = 0; times < 4; times++) {
		unseen = times;
		look(5, 6, 0, HMM_RANGE_WANT_READ, 0, 0, HERE);
		unseen = times;
		look(5, 6, HMM_RANGE_FLAGS_SNAPSHOT, 0, 0, 0, HERE);
	}
	/* As long as both have their way: whoever may wait looks again later, and is told where it never ends. */
	unseen = 1000000;
	look(5, 6, 0, HMM_RANGE_WANT_READ, 0, -EAGAIN, 0);
	unseen = 50;
	look(5, 6, HMM_RANGE_FLAGS_BLOCK, HMM_RANGE_WANT_READ, 0, 0, HERE);
	/* A kernel that can't be asked is taken at its first word. */
	cannot_be_asked = true;
	unseen = 1;
	look(5, 6, HMM_RANGE_FLAGS_BLOCK, HMM_RANGE_WANT_READ, 0, -EFAULT, 0);
	cannot_be_asked = false;
	/* Of what is mapped nothing more is asked; of what is not, once. */
	looks = second_looks = unseen = 0;
	cr_assert(eq(int, mapping_at(fixture.owner, (uint64_t)page(5), &vma), 0));
	cr_expect(looks == 1 && second_looks == 0);
	cr_assert(eq(int, munmap(other, HMM_PAGE_SIZE), 0));
	cr_assert(eq(int, mapping_at(fixture.owner, (uint64_t)other, &vma), 0));
	cr_expect(eq(u64, vma.start, (uint64_t)other + HMM_PAGE_SIZE));
	cr_expect(looks == 2 && second_looks == 1);
	cr_assert(eq(int, munmap(other + HMM_PAGE_SIZE, HMM_PAGE_SIZE), 0));
	kernel = before;
	fixture_end(&fixture);
}

static bool changing;
static unsigned int quiet;			/* so often it is asked before that begins */
/* Modes that were asked for last, of page(0) and page(2). */
static uint64_t registered[2];

static int changing_protect(int uffd, uint64_t start, size_t length, bool protect)
{
	if (changing && !quiet)
		return -EAGAIN;
	quiet -= quiet > 0;
	return kernel_real.uffd_protect(uffd, start, length, protect);
}

static int noted_register(int uffd, uint64_t start, size_t length, uint64_t mode)
{
	for (unsigned int i = 0; i < 2; i++)
		if (start <= (uint64_t)page(2 * i) && (uint64_t)page(2 * i) < start + length)
			registered[i] = mode;
	return kernel_real.uffd_register(uffd, start, length, mode);
}

/* Of a file nothing is ever on a device, and of what is missing hmmd could not give all: of huge pages none. */
Test(range, a_file_that_is_not_let_go_is_watched_and_no_more)
{
	int file = memfd_create("file", MFD_CLOEXEC);
	struct kernel_ops ops = kernel_real;
	const struct kernel_ops *before = kernel;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	cr_assert(eq(int, ftruncate(file, 2 * HMM_PAGE_SIZE), 0));
	cr_assert(ne(ptr, mmap(page(0), 2 * HMM_PAGE_SIZE, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_FIXED, file, 0), MAP_FAILED));
	memset(page(0), 1, 4 * HMM_PAGE_SIZE);
	ops.uffd_protect = changing_protect;
	ops.uffd_register = noted_register;
	kernel = &ops;
	look(0, 4, 0, HMM_RANGE_WANT_READ, 0, 0, HERE);
	cr_expect(eq(u64, registered[0], UFFDIO_REGISTER_MODE_WP));
	cr_expect(eq(u64, registered[1], UFFDIO_REGISTER_MODE_WP));
	changing = true;
	registered[0] = registered[1] = 0;
	fixture_later(&fixture, QUIET);
	cr_expect(eq(u64, registered[1], 0), "what is let go of while the map changes may be another thread's, who has moved it there");
	quiet = 1;
	fixture_later(&fixture, QUIET);
	changing = false;
	/* Anonymous memory may by now be what an mremap has moved there, with pages on a device. */
	cr_expect(eq(u64, registered[0], UFFDIO_REGISTER_MODE_WP));
	cr_expect(eq(u64, registered[1], UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING));
	fixture_later(&fixture, QUIET);
	cr_expect(eq(ptr, fixture_block(&fixture, 0), NULL));
	kernel = before;
	fixture_end(&fixture);
	close(file);
}

/* The program has called the kernel by itself: nobody has told hmmd. */
static void protected_unseen(uint32_t caps)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.device->caps = caps;
	fixture_out(&fixture, 20, 30);
	cr_assert(eq(int, mprotect(page(22), 4 * HMM_PAGE_SIZE, PROT_READ), 0));
	look(20, 22, HMM_RANGE_FLAGS_SNAPSHOT, 0, 0, 0, THERE);
	look(22, 26, HMM_RANGE_FLAGS_SNAPSHOT, 0, 0, 0, THERE & ~HMM_RANGE_ENTRY_WRITE);
	look(26, 30, HMM_RANGE_FLAGS_SNAPSHOT, 0, 0, 0, THERE);
	look(22, 26, HMM_RANGE_FLAGS_BLOCK, HMM_RANGE_WANT_READ, 0, 0, THERE & ~HMM_RANGE_ENTRY_WRITE);
	look(22, 26, HMM_RANGE_FLAGS_BLOCK, HMM_RANGE_WANT_READ | HMM_RANGE_WANT_WRITE, 0, -EPERM, 0);
	fixture_end(&fixture);
}

Test(range, never_more_than_the_mapping_allows)
{
	protected_unseen(HMM_DEVICE_CAPS_FAULTS);
}

Test(range, never_more_than_the_mapping_allows_a_device_that_cannot_fault)
{
	protected_unseen(0);
}

/* What the device lost can be had by nobody. */
Test(range, lost_pages)
{
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 20);
	block = fixture_block(&fixture, 0);
	block_set_state(block, 7, 8, HMM_PAGE_ERROR);
	look(0, 20, HMM_RANGE_FLAGS_SNAPSHOT, 0, 0, -EFAULT, THERE);
	look(0, 20, 0, HMM_RANGE_WANT_READ, 0, -EFAULT, THERE);
	block_set_state(block, 7, 8, HMM_PAGE_DEVICE);
	look(0, 20, 0, HMM_RANGE_WANT_READ, 0, 0, THERE);
	fixture_end(&fixture);
}
