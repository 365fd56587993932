// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_far.c - pages in memory that only a driver reaches, with a driver that is this test: what
 * it may answer twice, too late, wrongly or not at all.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine_fixture.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(far);

#define TOKEN	7U
#define FAR	100U	/* pages of the driver's memory */
#define GRACE	(2 * SECOND)

static struct fixture fixture;
static unsigned int woken;

static void note_woken(struct task *task)
{
	(void)task;
	woken++;
}

static struct task waiter = { .run = note_woken };

/* ---- the driver's side of the connection ------------------------------------------- */

/* The next letter to it of this opcode; what comes before is thrown away. NULL: there is none. */
static struct letter *next_letter(uint16_t opcode)
{
	struct letter *letter = mailbox_take(&fixture.outbox), *next, *found = NULL;

	for (; letter; letter = next) {
		const struct hmm_wire_header *message = letter->kind == LETTER_EVENT ? letter->message : letter->reply;

		next = letter->next;
		if (!found && ((message && message->opcode == opcode) || (letter->error && opcode == HMM_OP_ERROR)))
			found = letter;
		else
			letter_free(letter);
	}
	return found;
}

/* The cookie of what it is asked; 0: nothing. */
static uint64_t asked(uint16_t opcode, unsigned int *pages)
{
	struct letter *letter = next_letter(opcode);
	const struct hmm_msg_devmem_store *store = letter ? (const void *)letter->message : NULL;
	uint64_t cookie = store ? store->cookie : 0;

	_Static_assert(offsetof(struct hmm_msg_devmem_store, cookie) == offsetof(struct hmm_msg_devmem_fetch, cookie),
		       "the same place");
	if (pages && store)
		*pages = store->count;
	letter_free(letter);
	return cookie;
}

/* How many of its pages it hears are free. */
static unsigned int freed(void)
{
	struct letter *letter = next_letter(HMM_OP_DEVMEM_FREE);
	unsigned int n = letter ? ((const struct hmm_msg_devmem_free *)(const void *)letter->message)->count : 0;

	letter_free(letter);
	return n;
}

static void *question(struct letter **letter, uint16_t opcode, size_t size, uint64_t peer)
{
	*letter = letter_new(LETTER_REQUEST);
	(*letter)->message = calloc(1, size);
	hmm_wire_init((*letter)->message, opcode, size, 0);
	(*letter)->peer = peer;
	(*letter)->pid = getpid();
	return (*letter)->message;
}

/* Its answer, or the error. */
static int ready(uint32_t token, uint64_t peer, unsigned int *count)
{
	struct hmm_msg_devmem_ready *message;
	struct letter *letter, *answer;
	int error;

	message = question(&letter, HMM_OP_DEVMEM_READY, sizeof(*message), peer);
	message->mirror = fixture.mirror->id;
	message->token = token;
	far_request(fixture.owner, letter);
	error = letter->error;
	if (!error && count)
		*count = ((const struct hmm_msg_devmem_ready_reply *)(const void *)letter->reply)->count;
	answer = mailbox_take(&fixture.outbox);
	while (answer) {
		struct letter *next = answer->next;

		letter_free(answer);
		answer = next;
	}
	return error;
}

static int stored(uint64_t cookie, const uint32_t *numbers, unsigned int count, uint64_t *moved)
{
	size_t size = sizeof(struct hmm_msg_devmem_stored) + count * sizeof(*numbers);
	struct hmm_msg_devmem_stored *message;
	struct letter *letter;
	int error;

	message = question(&letter, HMM_OP_DEVMEM_STORED, size, DRIVER);
	message->mirror = fixture.mirror->id;
	message->cookie = cookie;
	message->count = count;
	memcpy(message->numbers, numbers, count * sizeof(*numbers));
	far_request(fixture.owner, letter);
	error = letter->error;
	if (!error)
		*moved = ((const struct hmm_msg_devmem_stored_reply *)(const void *)letter->reply)->moved[0];
	letter_free(next_letter(HMM_OP_DEVMEM_STORED_REPLY));
	return error;
}

static void fetched(uint64_t cookie, uint8_t result, unsigned int count)
{
	struct hmm_msg_devmem_fetched *message;
	struct letter *letter;

	message = question(&letter, HMM_OP_DEVMEM_FETCHED, sizeof(*message) + count, DRIVER);
	message->mirror = fixture.mirror->id;
	message->cookie = cookie;
	message->count = count;
	memset(message->results, result, count);
	far_request(fixture.owner, letter);
	cr_assert(eq(int, letter->error, 0));
}

/* ---- pages ------------------------------------------------------------------------------ */

static struct block *begin(void)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.engine.options.grace_ms = GRACE / NS_PER_MS;
	fixture.device->caps |= HMM_DEVICE_CAPS_COPY_ENGINE;
	cr_assert(eq(int, device_add_far(&fixture.engine.devices, fixture.device->id, FAR, TOKEN, getpid(),
					 process_is_alive), 0));
	fixture.mirror->peer = DRIVER;
	cr_assert(eq(int, ready(TOKEN, DRIVER, NULL), 0));
	woken = 0;
	fixture_out(&fixture, 0, 10);
	return fixture_block(&fixture, 0);
}

/* Ten pages are the driver's. */
static struct block *begin_far(void)
{
	static const uint32_t numbers[10] = { 3, 1, 4, 15, 9, 2, 6, 5, 35, 8 };
	struct pages pages = pages_from(0, 10);
	struct block *block = begin();
	uint64_t moved = 0;

	far_store(block, &pages, NULL);
	cr_assert(eq(int, stored(asked(HMM_OP_DEVMEM_STORE, NULL), numbers, 10, &moved), 0));
	cr_assert(eq(u64, moved, 0x3ff));
	cr_assert(block_at_rest(block));
	return block;
}

static unsigned int far_pages(const struct block *block)
{
	struct pages pages;

	return block_far_pages(block, &pages);
}

Test(far, there_and_back)
{
	struct block *block = begin_far();
	struct pages pages = pages_from(2, 5);
	unsigned int n = 0;
	uint64_t cookie;

	cr_expect(eq(u64, fixture.mirror->far_pages, 10));
	cr_expect(eq(u32, block_far_number(block, 8), 35));
	cr_expect(eq(u64, fixture.device->used, 0), "nothing of it is in the shadow");
	cr_assert(far_fetch(block, &pages, 3, 0, HMM_REASON_CPU_FAULT, &waiter));
	cookie = asked(HMM_OP_DEVMEM_FETCH, &n);
	cr_expect(eq(uint, n, 3));
	cr_expect(eq(u64, fixture.device->used, 3 * HMM_PAGE_SIZE));
	fetched(cookie, HMM_FAR_RESULT_HERE, 3);
	cr_assert(block_at_rest(block));
	owner_run(fixture.owner);
	cr_expect(eq(uint, woken, 1));
	cr_expect(eq(uint, far_pages(block), 7));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 10));
	cr_expect(not(far_fetch(block, &pages, 3, 0, HMM_REASON_CPU_FAULT, &waiter)), "they are here");
	far_flush_all(fixture.owner);
	cr_expect(eq(uint, freed(), 3));
	fixture_end(&fixture);
}

/* The driver has let go of what it was told last, and its answer is in the worker's box. */
static void let_go(void)
{
	struct letter *told = next_letter(HMM_OP_INVALIDATE), *letter;
	struct hmm_msg_ack *message = question(&letter, HMM_OP_ACK, sizeof(*message), DRIVER);

	cr_assert(ne(ptr, told, NULL));
	message->cookie = ((const struct hmm_msg_invalidate *)(const void *)told->message)->cookie;
	letter->owner = fixture.owner->id;
	letter_free(told);
	mailbox_post(&fixture.worker.inbox, letter);
}

/* Who serves a raw fork hears what brings far pages, and no more: others stay where the child is given them from. */
Test(far, only_what_brings_far_pages_is_heard_in_a_fork)
{
	struct pages pages = pages_from(0, 10);
	struct block *block = begin_far(), *other;
	uint64_t cookie;

	fixture_out(&fixture, HMM_BLOCK_PAGES, HMM_BLOCK_PAGES + 10);
	other = fixture_block(&fixture, 1);
	fixture_callbacks(&fixture);
	home_begin(other, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_CPU_FAULT, 0, NULL);
	let_go();
	cr_assert(far_fetch(block, &pages, HMM_BLOCK_PAGES, 0, HMM_REASON_FORK, &waiter));
	let_go();
	cr_assert(worker_hear_drivers(fixture.owner));
	cr_expect(not(block_at_rest(other)));
	cr_expect(eq(uint, block_count(other, HMM_PAGE_DEVICE), 10));
	cookie = asked(HMM_OP_DEVMEM_FETCH, NULL);
	cr_assert(ne(u64, cookie, 0), "that answer was heard");
	fetched(cookie, HMM_FAR_RESULT_HERE, 10);
	cr_expect(block_at_rest(block));
	/* The other is held, for when the worker has time again. */
	cr_assert(ne(ptr, fixture.worker.held, NULL));
	owner_request(fixture.owner, fixture.worker.held);
	fixture.worker.held = NULL;
	cr_expect(block_at_rest(other));
	cr_expect(eq(uint, block_count(other, HMM_PAGE_DEVICE), 0));
	fixture_end(&fixture);
}

/* The answer was noted, and its reply lost with hmmd: said again, it is answered by what was noted. */
Test(far, stored_said_again)
{
	static const uint32_t numbers[4] = { 15, 77, 3, HMM_FAR_NONE };
	struct block *block = begin_far();
	uint64_t moved = 0;

	cr_assert(eq(int, stored(12345, numbers, 4, &moved), 0));
	cr_expect(eq(u64, moved, 0x5), "15 and 3 are in use, 77 is not");
	cr_expect(eq(uint, far_pages(block), 10));
	fixture_end(&fixture);
}

Test(far, what_a_driver_may_not_answer)
{
	uint32_t numbers[HMM_BLOCK_PAGES + 1] = { 0, FAR, FAR - 1, HMM_FAR_NONE };
	struct pages pages = pages_from(0, 4);
	struct block *block = begin();
	uint64_t cookie, moved = 0;

	far_store(block, &pages, NULL);
	cookie = asked(HMM_OP_DEVMEM_STORE, NULL);
	cr_expect(eq(int, stored(cookie, numbers, HMM_BLOCK_PAGES + 1, &moved), -EINVAL));
	cr_expect(eq(int, stored(cookie, numbers, 3, &moved), 0));
	cr_expect(not(block_at_rest(block)), "too few");
	fetched(cookie, HMM_FAR_RESULT_HERE, 4);
	cr_expect(not(block_at_rest(block)), "the answer to another question");
	cr_expect(eq(int, stored(cookie, numbers, 4, &moved), 0));
	cr_expect(eq(u64, moved, 0x5), "there is no page FAR");
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, far_pages(block), 2));
	cr_expect(eq(u64, fixture.device->used, 8 * HMM_PAGE_SIZE), "of ten pages two are not in the shadow");
	cr_expect(eq(int, ready(TOKEN + 1, DRIVER, NULL), -EINVAL));
	cr_expect(eq(int, ready(TOKEN, DRIVER + 1, NULL), -ENOENT));
	fixture_end(&fixture);
}

Test(far, no_memory_is_asked_again)
{
	struct pages pages = pages_from(0, 10);
	struct block *block = begin_far();
	unsigned int n = 0;
	uint64_t cookie;

	cr_assert(far_fetch(block, &pages, HMM_BLOCK_PAGES, 0, HMM_REASON_MIGRATE, &waiter));
	for (int i = 0; i < 15; i++) {
		cookie = asked(HMM_OP_DEVMEM_FETCH, NULL);
		cr_assert(ne(u64, cookie, 0));
		fetched(cookie, HMM_FAR_RESULT_MEMORY, 10);
		cr_expect(eq(u64, asked(HMM_OP_DEVMEM_FETCH, NULL), 0), "not at once");
		fixture_later(&fixture, SECOND);
	}
	cr_expect(eq(uint, far_pages(block), 10), "it is waited for as long as it takes");
	cr_expect(eq(uint, woken, 0));
	cookie = asked(HMM_OP_DEVMEM_FETCH, &n);
	fetched(cookie, HMM_FAR_RESULT_HERE, n);
	cr_expect(eq(uint, n, 10));
	owner_run(fixture.owner);
	cr_expect(eq(uint, woken, 1));
	cr_expect(eq(uint, far_pages(block), 0));
	fixture_end(&fixture);
}

/* Whoever waits does so for one page, and the driver may give up after it. */
Test(far, the_faulting_address_comes_first)
{
	struct pages pages = pages_from(2, 10);
	struct block *block = begin_far();
	const struct hmm_msg_devmem_fetch *fetch;
	struct letter *letter;

	cr_assert(far_fetch(block, &pages, 7, 0, HMM_REASON_CPU_FAULT, &waiter));
	letter = next_letter(HMM_OP_DEVMEM_FETCH);
	cr_assert(letter != NULL);
	fetch = (const void *)letter->message;
	cr_expect(eq(uint, fetch->count, 8));
	cr_expect(eq(uint, fetch->pages[0].index, 7));
	cr_expect(eq(uint, fetch->pages[0].number, 5));
	cr_expect(eq(uint, fetch->pages[1].index, 2));
	for (unsigned int k = 2; k < 8; k++)
		cr_expect(lt(uint, fetch->pages[k - 1].index, fetch->pages[k].index));
	fetched(fetch->cookie, HMM_FAR_RESULT_HERE, 8);
	letter_free(letter);
	owner_run(fixture.owner);
	cr_expect(eq(uint, woken, 1));
	fixture_end(&fixture);
}

Test(far, discarded_while_it_is_asked_for)
{
	struct pages pages = pages_from(0, 10);
	struct block *block = begin_far();
	uint64_t cookie;

	cr_assert(far_fetch(block, &pages, HMM_BLOCK_PAGES, 0, HMM_REASON_MIGRATE, &waiter));
	cookie = asked(HMM_OP_DEVMEM_FETCH, NULL);
	block_discard(block, 4, 6, HMM_REASON_UNMAP);
	fetched(cookie, HMM_FAR_RESULT_HERE, 10);
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 8));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), 0));
	far_flush_all(fixture.owner);
	cr_expect(eq(uint, freed(), 10), "all of the driver's pages are free");
	fixture_end(&fixture);
}

/* A driver that lives and does not come back within the grace time. */
Test(far, lost_with_the_driver)
{
	struct pages pages = pages_from(0, 2);
	struct block *block = begin_far();

	cr_assert(far_fetch(block, &pages, 0, 0, HMM_REASON_CPU_FAULT, &waiter));
	owner_peer_gone(fixture.owner, DRIVER);
	fixture_later(&fixture, GRACE / 2);
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), 0));
	/* It comes, and goes again: its time begins anew. */
	fixture.mirror->peer = DRIVER;
	cr_assert(eq(int, ready(TOKEN, DRIVER, NULL), 0));
	owner_peer_gone(fixture.owner, DRIVER);
	fixture_later(&fixture, GRACE / 2 + GRACE / 4);
	fixture_later(&fixture, GRACE / 4);
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), 0));
	fixture_later(&fixture, GRACE);
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), 10));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_ERRORS], 10));
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture.mirror->far_pages, 0));
	fixture_end(&fixture);
}

Test(far, another_driver_has_other_memory)
{
	struct block *block = begin_far();
	uint64_t before = fixture_sequence(block);
	unsigned int count = 1;

	/* Not while the first one lives. */
	cr_expect(eq(int, device_add_far(&fixture.engine.devices, fixture.device->id, FAR, TOKEN + 1, getpid(),
					 process_is_alive), -EBUSY));
	cr_expect(eq(int, ready(TOKEN, DRIVER, &count), 0));
	cr_expect(eq(uint, count, 10));
	fixture.device->token = TOKEN + 1;
	cr_expect(eq(int, ready(TOKEN + 1, DRIVER, &count), 0));
	cr_expect(eq(uint, count, 0));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), 10));
	cr_expect(eq(u64, fixture_sequence(block), before + 2), "no reader may miss it");
	fixture_end(&fixture);
}

Test(far, a_share_grows_and_shrinks)
{
	struct devices devices;
	struct device *device;

	devices_init(&devices, 8 << 20);
	cr_assert(eq(int, device_new(&devices, "d", HMM_POOL_KIND_MEMFD_HUGE, NULL, 2 << 20, 0, 1, &device), 0));
	cr_expect(eq(int, device_resize(&devices, device->id, (6 << 20) - 5), 0));
	cr_expect(eq(u64, device->size, 6 << 20));
	cr_expect(eq(u64, devices.promised, 6 << 20));
	cr_expect(eq(int, device_resize(&devices, device->id, 9 << 20), -ENOSPC));
	cr_expect(eq(int, device_resize(&devices, device->id + 1, 1), -ENODEV));
	cr_expect(eq(int, device_charge(device, 4 << 20), 0));
	cr_expect(eq(int, device_resize(&devices, device->id, 2 << 20), -EBUSY));
	/* Nobody else has it yet, and nobody fills it any more. */
	cr_expect(eq(u64, devices.promised, 6 << 20));
	cr_expect(eq(int, device_charge(device, 2 << 20), -ENOSPC));
	/* It is wanted back: no room has to be found for it. */
	cr_expect(eq(int, device_resize(&devices, device->id, 6 << 20), 0));
	cr_expect(eq(u64, devices.promised, 6 << 20));
	cr_expect(eq(int, device_charge(device, 2 << 20), 0));
	device_uncharge(device, 2 << 20);
	cr_expect(eq(int, device_resize(&devices, device->id, 2 << 20), -EBUSY));
	device_uncharge(device, 4 << 20);
	cr_expect(eq(int, device_resize(&devices, device->id, 0), 0));
	cr_expect(eq(u64, devices.promised, 0));
	cr_expect(eq(int, device_charge(device, 1), -ENOSPC));
	devices_deinit(&devices);
}
