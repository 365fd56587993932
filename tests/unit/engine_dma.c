// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_dma.c - what is in a card's IOMMU, and that it is out before anything changes, and
 * not before its driver has answered. The owner is this process, the card a fake.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/dma.h"
#include "engine/far_bar.h"
#include "engine/protect.h"
#include "engine_fixture.h"
#include "fake_vfio.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(dma);

#define OUT  20U
#define HOLD 5U

static struct fixture fixture;
static struct kernel_ops ops;
static int (*real_copy)(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode,
			size_t *done);
static char text[240];
static uid_t user; /* who asks */
static gid_t group;

static uint64_t addr_of(unsigned int page)
{
	return ROOM_START + page * HMM_PAGE_SIZE;
}

/* The first thing that changes at the CPU. */
static int copy(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode, size_t *done)
{
	cr_assert(eq(uint, fake_vfio_mappings(), 0), "the card reaches what goes home");
	return real_copy(uffd, dst, src, length, mode, done);
}

static void begin(void)
{
	struct card *card = NULL;

	fake_vfio_begin();
	ops = *kernel;
	real_copy = ops.uffd_copy;
	ops.uffd_copy = copy;
	kernel = &ops;
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	cr_assert(eq(int, card_open(FAKE_CARD, 0, 0, &card, text, sizeof(text)), 0), "%s", text);
	fixture.device->caps = HMM_DEVICE_CAPS_DMA;
	fixture.device->card_number = card_number(FAKE_CARD);
	fixture.device->card = card;
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, OUT);
}

static void finish(void)
{
	fixture_check(&fixture);
	fixture_end(&fixture);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(not(fake_vfio.kept));
	fake_vfio_end();
}

/* hmmd's answer; @pages: what it says of them. */
static int answer(uint64_t *pages)
{
	struct letter *letter = mailbox_take(&fixture.outbox), *next;
	int error = 1;

	for (; letter; letter = next) {
		next = letter->next;
		if (letter->kind == LETTER_REPLY) {
			error = letter->error;
			snprintf(text, sizeof(text), "%s", letter->text);
			if (!error && letter->reply->opcode == HMM_OP_DMA_MAP_REPLY)
				*pages = ((struct hmm_msg_dma_map_reply *)letter->reply)->pages;
		}
		letter_free(letter);
	}
	return error;
}

static int map_as(uint64_t peer, uint32_t hold, unsigned int first, unsigned int end, bool write,
		  uint64_t *pages)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_dma_map *message = calloc(1, sizeof(*message));

	HMM_MSG_INIT(*message, HMM_OP_DMA_MAP, 0);
	message->mirror = fixture.mirror->id;
	message->hold = hold;
	message->addr = message->hold_start = addr_of(first);
	message->hold_end = addr_of(end);
	message->length = (end - first) * HMM_PAGE_SIZE;
	message->write = write;
	letter->peer = peer;
	letter->uid = user;
	letter->gid = group;
	letter->message = &message->header;
	*pages = 0;
	dma_request(fixture.owner, letter);
	return answer(pages);
}

static void map(uint32_t hold, unsigned int first, unsigned int end, unsigned int expected)
{
	uint64_t pages;

	cr_assert(eq(int, map_as(DRIVER, hold, first, end, true, &pages), 0), "%s", text);
	cr_assert(eq(u64, pages, expected));
}

static void unmap(uint32_t hold)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_dma_unmap *message = calloc(1, sizeof(*message));
	uint64_t pages;

	HMM_MSG_INIT(*message, HMM_OP_DMA_UNMAP, 0);
	message->mirror = fixture.mirror->id;
	message->hold = hold;
	letter->peer = DRIVER;
	letter->message = &message->header;
	dma_request(fixture.owner, letter);
	cr_assert(eq(int, answer(&pages), 0));
}

/* What the driver is asked; 0: nothing. */
static uint64_t asked(uint64_t *start, uint64_t *end)
{
	struct letter *letter = mailbox_take(&fixture.outbox), *next;
	uint64_t cookie = 0;

	for (; letter; letter = next) {
		const struct hmm_msg_invalidate *message = (const void *)letter->message;

		next = letter->next;
		if (letter->message && letter->message->opcode == HMM_OP_INVALIDATE) {
			cr_assert(eq(u64, cookie, 0));
			cookie = message->cookie;
			*start = message->start;
			*end = message->end;
		}
		letter_free(letter);
	}
	return cookie;
}

static void go_home(unsigned int first, unsigned int end)
{
	migrate_home(fixture.owner, addr_of(first), addr_of(end), NULL, NULL, NULL);
	owner_run(fixture.owner);
}

Test(dma, at_the_owners_addresses)
{
	const struct fake_mapping *there;

	begin();
	map(HOLD, 2, OUT + 5, OUT - 2);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	there = fake_vfio_at(addr_of(2));
	cr_assert(eq(u64, there->iova, addr_of(2)));
	cr_assert(eq(u64, there->length, (OUT - 2) * HMM_PAGE_SIZE));
	cr_assert(eq(u64, there->vaddr,
		     (uintptr_t)shadow_at(block_shadow(fixture_block(&fixture, 0)), addr_of(2))));
	cr_assert(there->write);
	cr_assert(eq(u64, fixture.owner->counter[COUNTER_DMA_PAGES], OUT - 2));
	/* Again, and of another range: what is there is there. */
	map(HOLD, 2, OUT + 5, OUT - 2);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	map(HOLD + 1, 0, 4, 4);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	/* As long as one of them has a part of the block. */
	unmap(HOLD);
	unmap(HOLD + 7);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	unmap(HOLD + 1);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	finish();
}

Test(dma, out_when_the_driver_has_answered)
{
	uint64_t cookie, start = 0, end = 0;

	begin();
	map(HOLD, 0, OUT, OUT);
	go_home(10, 12);
	/* It hears of all that it loses. */
	cookie = asked(&start, &end);
	cr_assert(ne(u64, cookie, 0));
	cr_assert(eq(u64, start, addr_of(0)));
	cr_assert(eq(u64, end, addr_of(OUT)));
	fixture_later(&fixture, SECOND / 10);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	invalidate_ack(fixture.owner, cookie, 0);
	owner_run(fixture.owner);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(u64, fixture.mirror->device_pages, OUT - 2));
	cr_assert(eq(u64, fixture.owner->counter[COUNTER_DMA_CUTS], 1));
	/* The rest may come back, around the hole. */
	asked(&start, &end);
	map(HOLD, 0, OUT, OUT - 2);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	finish();
}

Test(dma, out_when_the_driver_is_late)
{
	uint64_t start, end;

	begin();
	map(HOLD, 0, OUT, OUT);
	go_home(0, OUT);
	cr_assert(ne(u64, asked(&start, &end), 0));
	fixture_later(&fixture, 1001 * NS_PER_MS);
	owner_run(fixture.owner);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(u64, fixture.mirror->device_pages, 0));
	asked(&start, &end);
	finish();
}

/* Of a letter to the driver with this opcode: the mirror's cookie. 0: there is none. */
static uint64_t told(uint16_t opcode, uint32_t reason)
{
	struct letter *letter = mailbox_take(&fixture.outbox), *next;
	uint64_t cookie = 0;

	for (; letter; letter = next) {
		const struct hmm_msg_invalidate *invalidate = (const void *)letter->message;
		const struct hmm_msg_settled *settled = (const void *)letter->message;

		next = letter->next;
		if (letter->message && letter->message->opcode == opcode) {
			cr_assert(eq(u64, cookie, 0));
			cookie = opcode == HMM_OP_SETTLED ? settled->cookie : invalidate->cookie;
		}
		if (letter->message && letter->message->opcode == HMM_OP_INVALIDATE) {
			cr_assert(eq(u32, invalidate->reason, reason));
			cr_assert(eq(u64, invalidate->start, 0));
			cr_assert(eq(u64, invalidate->end, HMM_VA_END));
		}
		letter_free(letter);
	}
	return cookie;
}

/* The kernel wants the card back: its driver hears of it, and when it has answered the card reaches nothing. */
Test(dma, recalled)
{
	uint64_t cookie, number, pages;

	begin();
	map(HOLD, 0, OUT, OUT);
	fake_vfio_recall(FAKE_CARD);
	cr_assert(cards_recall());
	cr_assert(eq(int, map_as(DRIVER, HOLD + 1, 0, OUT, true, &pages), -ENODEV));
	cr_assert(ne(ptr, strstr(text, "is wanted back"), NULL));
	number = fixture_sequence(fixture_block(&fixture, 0));
	fixture_later(&fixture, 1);
	cookie = told(HMM_OP_INVALIDATE, HMM_REASON_RECALL);
	cr_assert(ne(u64, cookie, 0));
	fixture_later(&fixture, SECOND / 10);
	cr_assert(eq(u64, told(HMM_OP_INVALIDATE, HMM_REASON_RECALL), 0), "once");
	cr_assert(cards_recall() && fake_vfio.kept);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	invalidate_ack(fixture.owner, cookie, 0);
	fixture_later(&fixture, 1);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(ne(u64, fixture_sequence(fixture_block(&fixture, 0)), number), "its ranges are not valid any more");
	cr_assert(eq(u64, told(HMM_OP_SETTLED, 0), cookie));
	cr_assert(eq(u64, fixture.mirror->device_pages, OUT), "they stay on the device");
	cr_assert(not(cards_recall() || fake_vfio.kept));
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, OUT, true, &pages), -ENODEV));
	fixture_later(&fixture, 1);
	finish();
}

Test(dma, recalled_from_a_late_driver)
{
	begin();
	map(HOLD, 0, OUT, OUT);
	fake_vfio_recall(FAKE_CARD);
	cr_assert(cards_recall());
	fixture_later(&fixture, 1);
	cr_assert(ne(u64, told(HMM_OP_INVALIDATE, HMM_REASON_RECALL), 0));
	fixture_later(&fixture, 1001 * NS_PER_MS);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(not(cards_recall() || fake_vfio.kept));
	told(0, 0);
	finish();
}

/* There is nobody to be told. */
Test(dma, recalled_without_a_driver)
{
	begin();
	map(HOLD, 0, OUT, OUT);
	fixture.mirror->flags &= ~HMM_MIRROR_FLAGS_CALLBACKS;
	fake_vfio_recall(FAKE_CARD);
	cr_assert(cards_recall());
	fixture_later(&fixture, 1);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(not(cards_recall() || fake_vfio.kept));
	finish();
}

/* What changes beside it, in the same block, is nothing to it. */
Test(dma, neighbours_stay)
{
	uint64_t start = 0, end = 0, cookie;

	begin();
	map(HOLD, 0, 4, 4);
	go_home(10, 12);
	cookie = asked(&start, &end);
	cr_assert(eq(u64, start, addr_of(10)));
	cr_assert(eq(u64, end, addr_of(12)));
	kernel = &kernel_real; /* what goes home is not the card's */
	invalidate_ack(fixture.owner, cookie, 0);
	owner_run(fixture.owner);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	asked(&start, &end);
	kernel = &ops;
	unmap(HOLD);
	finish();
}

Test(dma, discarded)
{
	uint64_t start, end, cookie;

	begin();
	map(HOLD, 0, OUT, OUT);
	block_discard(fixture_block(&fixture, 0), 3, 5, HMM_REASON_DISCARD);
	cookie = asked(&start, &end);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	invalidate_ack(fixture.owner, cookie, 0);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	owner_run(fixture.owner);
	asked(&start, &end);
	finish();
}

/* In the middle of another change nobody is waited for: what the owner gave up is gone already. */
Test(dma, discarded_in_a_change)
{
	uint64_t start, end, cookie, other;

	begin();
	map(HOLD, 0, OUT, OUT);
	unmap(HOLD);
	map(HOLD, 10, OUT, OUT - 10);
	go_home(0, 2);
	cookie = asked(&start, &end);
	block_discard(fixture_block(&fixture, 0), 12, 14, HMM_REASON_DISCARD);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	other = asked(&start, &end);
	cr_assert(ne(u64, other, 0));
	invalidate_ack(fixture.owner, other, 0);
	invalidate_ack(fixture.owner, cookie, 0);
	owner_run(fixture.owner);
	asked(&start, &end);
	finish();
}

/* A refusal puts everything back: it was not unmapped. */
Test(dma, a_driver_that_refuses_keeps_it)
{
	struct pages pages = pages_from(0, OUT);
	struct block *block;
	uint64_t start, end, cookie;

	begin();
	map(HOLD, 0, OUT, OUT);
	block = fixture_block(&fixture, 0);
	block->move.want = pages;
	transit_ask(block, HMM_TRANSIT_HOME_COPY, &pages, HMM_REASON_EVICT, transit_end,
		    block_settle_later);
	cookie = asked(&start, &end);
	invalidate_ack(fixture.owner, cookie, -EAGAIN);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	asked(&start, &end);
	map(HOLD, 0, OUT, OUT);
	finish();
}

Test(dma, withdrawn)
{
	struct block *block;
	uint64_t start, end, number;

	begin();
	map(HOLD, 3, 5, 2);
	block = fixture_block(&fixture, 0);
	number = fixture_sequence(block);
	dma_withdraw(block, HMM_REASON_FORK);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(lt(u64, number, fixture_sequence(block)));
	cr_assert(ne(u64, asked(&start, &end), 0));
	cr_assert(eq(u64, start, addr_of(3)));
	cr_assert(eq(u64, end, addr_of(5)));
	number = fixture_sequence(block);
	dma_withdraw(block, HMM_REASON_FORK);
	cr_assert(eq(u64, fixture_sequence(block), number));
	invalidate_answer_all(fixture.owner);
	finish();
}

Test(dma, driver_or_mirror_gone)
{
	uint64_t start, end, pages;

	begin();
	map(HOLD, 0, 4, 4);
	map(HOLD + 1, 6, 8, 2);
	dma_peer_gone(fixture.owner, DRIVER + 1);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	cr_assert(fake_vfio.master);
	dma_peer_gone(fixture.owner, DRIVER);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(not(fake_vfio.master));
	/* It goes on for who maps, if it can. */
	fake_vfio.calls = 0;
	fake_vfio.fail_at = 2;
	fake_vfio.error = -EIO;
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, 4, true, &pages), -EIO));
	cr_assert(ne(ptr, strstr(text, "was stopped"), NULL));
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	map(HOLD, 0, 4, 4);
	cr_assert(fake_vfio.master);
	dma_close(fixture.mirror);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(uint, fixture.mirror->n_transfers, 0));
	/* As an owner that goes in the middle. */
	map(HOLD, 0, 4, 4);
	asked(&start, &end);
	finish();
}

/* As long as one of an owner's mirrors may have something mapped the card is nobody else's. */
Test(dma, two_mirrors_of_an_owner)
{
	struct devices *devices = &fixture.engine.devices;
	struct mirror *other;
	uint64_t start, end;

	begin();
	map(HOLD, 0, 4, 4);
	other = mirror_new(fixture.owner, 1, device_use(devices, fixture.device->id), NULL);
	cr_assert(ne(ptr, other, NULL));
	mirror_free(other);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	cr_assert(not(card_take(fixture.device->card, 99)));
	cr_assert(card_take(fixture.device->card, fixture.owner->id));
	asked(&start, &end);
	finish();
}

Test(dma, refusals)
{
	struct card *card;
	uint64_t pages;

	begin();
	cr_assert(eq(int, map_as(DRIVER + 1, HOLD, 0, 4, true, &pages), -EPERM));
	cr_assert(eq(int, map_as(DRIVER, 0, 0, 4, true, &pages), -EINVAL));
	card = fixture.device->card;
	fixture.device->card = NULL;
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, 4, true, &pages), -EAGAIN));
	/* It is not waited for any more, or never was there. */
	device_forget_card(&fixture.engine.devices, fixture.device->name, card_number(FAKE_OTHER));
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, 4, true, &pages), -EAGAIN));
	device_forget_card(&fixture.engine.devices, fixture.device->name, card_number(FAKE_CARD));
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, 4, true, &pages), -ENODEV));
	fixture.device->caps = 0;
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, 4, true, &pages), -EOPNOTSUPP));
	fixture.device->caps = HMM_DEVICE_CAPS_DMA;
	fixture.device->card = card;
	cr_assert(card_take(card, 99));
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, 4, true, &pages), -EBUSY));
	card_leave(card, 99);
	/* Whoever may not open the group does not get at it by a mirror of before. */
	user = group = getuid() + 1;
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, 4, true, &pages), -EACCES));
	user = group = 0;
	fixture.mirror->leaving = true;
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, 4, true, &pages), -ENOENT));
	fixture.mirror->leaving = false;
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(uint, fixture.mirror->n_transfers, 0));
	/* The owner may not write there, so the card may not, whoever asks. */
	cr_assert(eq(int, mprotect((void *)ROOM_START, HMM_BLOCK_SIZE, PROT_READ), 0));
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, 4, true, &pages), -EPERM));
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, 4, false, &pages), 0));
	cr_assert(not(fake_vfio_at(addr_of(1))->write));
	cr_assert(eq(int, mprotect((void *)ROOM_START, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE), 0));
	finish();
}

static void protect(unsigned int first, unsigned int end)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_protect *message = calloc(1, sizeof(*message));

	HMM_MSG_INIT(*message, HMM_OP_PROTECT, 0);
	message->addr = addr_of(first);
	message->length = (end - first) * HMM_PAGE_SIZE;
	letter->message = &message->header;
	protect_request(fixture.owner, letter);
	owner_run(fixture.owner);
}

/* What the owner may not write any more is out before anything else is waited for. */
Test(dma, protected_in_a_change)
{
	uint64_t start = 0, end = 0, cookie, pages;

	begin();
	map(HOLD, 10, OUT, OUT - 10);
	go_home(0, 2);
	cookie = asked(&start, &end);
	protect(9, 10);
	cr_assert(eq(uint, fake_vfio_mappings(), 1), "nothing of it is meant");
	protect(10, 11);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	asked(&start, &end);
	cr_assert(eq(u64, start, addr_of(10)));
	cr_assert(eq(u64, end, addr_of(OUT)));
	invalidate_ack(fixture.owner, cookie, 0);
	owner_run(fixture.owner);
	cr_assert(eq(int, answer(&pages), 0));
	finish();
}

/* ... and also when the rest of it could not be done in time. */
Test(dma, protected_too_late)
{
	uint64_t start = 0, end = 0, cookie;

	begin();
	go_home(0, 2);
	cookie = asked(&start, &end);
	protect(10, 11);
	/* Six seconds later: the block is at rest, and its card reaches it when the task runs. */
	invalidate_ack(fixture.owner, cookie, 0);
	map(HOLD, 10, OUT, OUT - 10);
	fixture_later(&fixture, 6 * SECOND);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	invalidate_answer_all(fixture.owner);
	asked(&start, &end);
	finish();
}

/* Mapped for reading, as the owner could then: when he may write it is mapped anew. */
Test(dma, may_be_written_by_now)
{
	uint64_t start = 0, end = 0, pages;

	begin();
	map(HOLD + 1, 12, 14, 2);
	cr_assert(eq(int, mprotect((void *)ROOM_START, 10 * HMM_PAGE_SIZE, PROT_READ), 0));
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, 4, false, &pages), 0));
	cr_assert(not(fake_vfio_at(addr_of(1))->write));
	/* The same again, and what could be written, is as it was. */
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, 4, false, &pages), 0));
	map(HOLD + 1, 12, 14, 2);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	cr_assert(eq(int, mprotect((void *)ROOM_START, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE), 0));
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, 4, true, &pages), -EBUSY));
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(u64, fixture.owner->counter[COUNTER_DMA_CUTS], 1));
	map(HOLD, 0, 4, 4);
	cr_assert(fake_vfio_at(addr_of(1))->write);
	invalidate_answer_all(fixture.owner);
	asked(&start, &end);
	finish();
}

/* Another one's mirror keeps the device: the card stops all the same, unless that one drives it. */
Test(dma, creator_gone)
{
	struct devices *devices = &fixture.engine.devices;

	begin();
	map(HOLD, 0, 4, 4);
	fixture.device->creator = DRIVER + 1;
	device_let_go(devices, DRIVER + 1, 0);
	cr_assert(fake_vfio.master);
	fixture.device->creator = DRIVER;
	device_let_go(devices, DRIVER, fixture.device->id);
	cr_assert(fake_vfio.master, "he lives, and drives it");
	fixture.device->creator = DRIVER;
	device_let_go(devices, DRIVER, 0);
	cr_assert(not(fake_vfio.master));
	cr_assert(eq(uint, fixture.device->mirrors, 1));
	map(HOLD, 0, 4, 4);
	cr_assert(fake_vfio.master);
	finish();
}

static int make_device(void)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_device_new *message = calloc(1, sizeof(*message));
	int error;

	HMM_MSG_INIT(*message, HMM_OP_DEVICE_NEW, 0);
	hmm_wire_text(message->name, sizeof(message->name), fixture.device->name);
	hmm_wire_text(message->bus, sizeof(message->bus), FAKE_CARD);
	message->caps = HMM_DEVICE_CAPS_DMA;
	message->pool = HMM_POOL_KIND_MEMFD;
	message->node = -1;
	letter->peer = DRIVER;
	letter->message = &message->header;
	engine_device_request(&fixture.engine, letter);
	error = letter->error;
	letter_free(letter);
	return error;
}

static int ask_device(uint32_t id)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_device_fd *message = calloc(1, sizeof(*message));
	int error;

	HMM_MSG_INIT(*message, HMM_OP_DEVICE_FD, 0);
	message->device = id;
	letter->uid = user;
	letter->gid = group;
	letter->message = &message->header;
	engine_device_request(&fixture.engine, letter);
	error = letter->error;
	cr_assert(eq(uint, letter->n_reply_fds, error ? 0 : 1));
	if (!error)
		close(letter->reply_fds[0]);
	letter_free(letter);
	return error;
}

static int open_device(const char *name, char *bus, size_t size)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_device_open *message = calloc(1, sizeof(*message));
	int error;

	HMM_MSG_INIT(*message, HMM_OP_DEVICE_OPEN, 0);
	hmm_wire_text(message->name, sizeof(message->name), name);
	letter->uid = user;
	letter->gid = group;
	letter->message = &message->header;
	engine_device_request(&fixture.engine, letter);
	error = letter->error;
	if (!error)
		snprintf(bus, size, "%s",
			 ((const struct hmm_msg_device_open_reply *)letter->reply)->bus);
	letter_free(letter);
	return error;
}

/* It is held while it is looked at, and not a moment longer, whatever the answer. */
Test(dma, looked_at)
{
	char bus[CARD_ADDRESS] = "";

	begin();
	cr_assert(eq(int, open_device("nobody's", bus, sizeof(bus)), -ENODEV));
	cr_assert(eq(int, open_device(fixture.device->name, bus, sizeof(bus)), 0));
	cr_assert(eq(str, bus, FAKE_CARD));
	cr_assert(eq(int, ask_device(fixture.device->id), 0));
	cr_assert(eq(int, ask_device(fixture.device->id + 1), -ENODEV));
	user = group = getuid() + 1;
	cr_assert(eq(int, open_device(fixture.device->name, bus, sizeof(bus)), -EACCES));
	cr_assert(eq(int, ask_device(fixture.device->id), -EACCES));
	user = group = 0;
	cr_assert(eq(uint, fixture.device->mirrors, 1));
	finish();
}

/* A card that waits for its driver is not lost by a request that fails. */
Test(dma, kept_for_the_next)
{
	struct card *card = NULL;

	fake_vfio_begin();
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	cr_assert(eq(int, make_device(), -EBUSY), "there is one of that name");
	cr_assert(not(fake_vfio.kept || fake_vfio.master));
	cr_assert(eq(int, card_open(FAKE_CARD, 0, 0, &card, text, sizeof(text)), 0), "%s", text);
	cards_leave();
	card_close(card);
	cards_init(fake_vfio_holder(), NULL);
	cr_assert(eq(int, make_device(), -EBUSY));
	cr_assert(fake_vfio.kept);
	cr_assert(not(fake_vfio.master));
	/* The one that waits for it gets it. */
	fixture.device->caps = HMM_DEVICE_CAPS_DMA;
	fixture.device->card_number = card_number(FAKE_CARD);
	cr_assert(eq(int, make_device(), 0));
	cr_assert(fake_vfio.kept && fake_vfio.master);
	finish();
}

/* Several mappings, and each of them fails once: nothing is left of the others. */
Test(dma, all_or_nothing)
{
	uint64_t start, end, pages;

	begin();
	fixture_out(&fixture, 30, 32);
	fixture_out(&fixture, HMM_BLOCK_PAGES, HMM_BLOCK_PAGES + 2);
	for (unsigned int n = 1; n <= 3; n++) {
		fake_vfio.calls = 0;
		fake_vfio.fail_at = n;
		fake_vfio.error = -ENOMEM;
		cr_assert(eq(int, map_as(DRIVER, HOLD, 0, HMM_BLOCK_PAGES + 2, true, &pages),
			     -ENOMEM),
			  "call %u", n);
		cr_assert(ne(ptr, strstr(text, "RLIMIT_MEMLOCK"), NULL));
		cr_assert(eq(uint, fake_vfio_mappings(), 0));
		cr_assert(eq(uint, fixture.mirror->n_transfers, 0));
	}
	fake_vfio.fail_at = 0;
	fake_vfio.limit = 2;
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, HMM_BLOCK_PAGES + 2, true, &pages), -ENOSPC));
	cr_assert(ne(ptr, strstr(text, "dma_entry_limit"), NULL));
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	fake_vfio.limit = 3;
	map(HOLD, 0, HMM_BLOCK_PAGES + 2, OUT + 4);
	/* A block in transit is not waited for. */
	go_home(0, 1);
	asked(&start, &end);
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, HMM_BLOCK_PAGES + 2, true, &pages), -EBUSY));
	invalidate_answer_all(fixture.owner);
	owner_run(fixture.owner);
	asked(&start, &end);
	finish();
}

static unsigned int looks;

static int count_look(int maps, uint64_t addr, struct kernel_vma *vma)
{
	looks++;
	return kernel_real.vma_at(maps, addr, vma);
}

/* A mapping of the owner's is looked at once for all blocks that a request is about, and goes only as far as it goes. */
Test(dma, looked_at_once)
{
	const unsigned int block = HMM_BLOCK_PAGES, most = 2 * block + 4;
	const unsigned int from = block + 10, until = 2 * block + 2;
	void *middle = (void *)addr_of(from);
	const size_t length = (until - from) * HMM_PAGE_SIZE;
	uint64_t pages;

	begin();
	fixture_out(&fixture, OUT, most);
	ops.vma_at = count_look;
	looks = 0;
	map(HOLD, 0, most, most);
	cr_assert(eq(uint, looks, 1));
	cr_assert(eq(uint, fake_vfio_mappings(), 3));
	unmap(HOLD);
	/* Three mappings, whose borders are within blocks; the middle one has a block's border in it. */
	cr_assert(eq(int, mprotect(middle, length, PROT_READ), 0));
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, most, true, &pages), -EPERM));
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	looks = 0;
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, most, false, &pages), 0));
	cr_assert(eq(uint, looks, 3));
	cr_assert(eq(u64, pages, most));
	cr_assert(eq(uint, fake_vfio_mappings(), 5));
	cr_assert(fake_vfio_at(addr_of(from - 1))->write && fake_vfio_at(addr_of(until))->write);
	cr_assert(not(fake_vfio_at(addr_of(from))->write || fake_vfio_at(addr_of(2 * block - 1))->write));
	cr_assert(not(fake_vfio_at(addr_of(2 * block))->write || fake_vfio_at(addr_of(until - 1))->write));
	unmap(HOLD);
	/* What may not even be read is left out. */
	cr_assert(eq(int, mprotect(middle, length, PROT_NONE), 0));
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, most, false, &pages), 0));
	cr_assert(eq(u64, pages, most - (until - from)));
	cr_assert(eq(uint, fake_vfio_mappings(), 3));
	unmap(HOLD);
	cr_assert(eq(int, mprotect(middle, length, PROT_READ | PROT_WRITE), 0));
	finish();
}

/* A block that is coherent as a whole is mapped as a whole, whatever of it is asked for first. */
Test(dma, whole_blocks)
{
	struct block *block;
	uint64_t pages;

	begin();
	fixture_out(&fixture, OUT, 2 * HMM_BLOCK_PAGES);
	for (unsigned int n = 0; n < 2; n++) {
		block = fixture_block(&fixture, n);
		cr_assert(not(block_is_coherent(block)));
		block_set_state(block, 0, HMM_BLOCK_PAGES, HMM_PAGE_COHERENT);
		cr_assert(block_is_coherent(block));
	}
	map(HOLD, 0, 2 * HMM_BLOCK_PAGES, 2 * HMM_BLOCK_PAGES);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	cr_assert(eq(u64, fake_vfio_at(addr_of(0))->length, HMM_BLOCK_SIZE));
	cr_assert(eq(u64, fixture.owner->counter[COUNTER_DMA_PAGES], 2 * HMM_BLOCK_PAGES));
	/* Parts of it, over words and blocks, are counted as they are asked for. */
	map(HOLD + 1, 5, 6, 1);
	map(HOLD + 2, 60, 70, 10);
	map(HOLD + 3, 64, 128, 64);
	map(HOLD + 4, 500, 600, 100);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	for (unsigned int n = 0; n < 5; n++)
		unmap(HOLD + n);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	/* A part first: then the rest goes around it. */
	map(HOLD, 100, 200, 100);
	map(HOLD + 1, 0, HMM_BLOCK_PAGES, HMM_BLOCK_PAGES);
	cr_assert(eq(uint, fake_vfio_mappings(), 3));
	/* One page that is not is no whole block. */
	unmap(HOLD);
	unmap(HOLD + 1);
	block = fixture_block(&fixture, 1);
	block_set_state(block, 7, 8, HMM_PAGE_INVALID);
	cr_assert(not(block_is_coherent(block)));
	cr_assert(eq(int, map_as(DRIVER, HOLD, HMM_BLOCK_PAGES, 2 * HMM_BLOCK_PAGES, false, &pages), 0));
	cr_assert(eq(u64, pages, HMM_BLOCK_PAGES - 1));
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	unmap(HOLD);
	for (unsigned int n = 0; n < 2; n++)
		block_set_state(fixture_block(&fixture, n), 0, HMM_BLOCK_PAGES, HMM_PAGE_DEVICE);
	fixture_end(&fixture);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	fake_vfio_end();
}

/* ---- pages that both read ------------------------------------------------------------------- */

/* The CPU has read pages [first, end): they are S. */
static void share(unsigned int first, unsigned int end)
{
	struct pages pages = pages_from(first, end);
	uint64_t start, stop;

	home_begin(fixture_block(&fixture, 0), &pages, HMM_BLOCK_PAGES, true, HMM_REASON_CPU_FAULT, 0, NULL);
	invalidate_answer_all(fixture.owner);
	owner_run(fixture.owner);
	asked(&start, &stop);
	cr_assert(eq(uint, block_count(fixture_block(&fixture, 0), HMM_PAGE_SHARED), end - first));
}

/* The card may read what the CPU reads, and not write it, whatever the mapping allows. */
Test(dma, read_by_both)
{
	uint64_t pages, start = 0, end = 0, cookie;
	struct pages written = pages_from(5, 6);

	begin();
	map(HOLD, 0, OUT, OUT);
	share(4, 8);
	cr_assert(eq(uint, fake_vfio_mappings(), 0), "out before it changes");
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, OUT, false, &pages), 0), "%s", text);
	cr_assert(eq(u64, pages, OUT));
	cr_assert(eq(uint, fake_vfio_mappings(), 3));
	cr_assert(fake_vfio_at(addr_of(3))->write && fake_vfio_at(addr_of(8))->write);
	cr_assert(not(fake_vfio_at(addr_of(4))->write));
	cr_assert(eq(u64, fake_vfio_at(addr_of(7))->iova, addr_of(4)));
	cr_assert(eq(u64, fake_vfio_at(addr_of(4))->vaddr,
		     (uintptr_t)shadow_at(block_shadow(fixture_block(&fixture, 0)), addr_of(4))));
	/* Who is to write them has been told less, and looks again; what others have there stays. */
	cr_assert(eq(int, map_as(DRIVER, HOLD + 1, 0, OUT, true, &pages), 0), "%s", text);
	cr_assert(eq(u64, pages, OUT - 4));
	cr_assert(eq(uint, fake_vfio_mappings(), 3));
	/* The CPU writes: the driver is asked, and the block is out before that is let go on. */
	unshare_begin(fixture_block(&fixture, 0), &written, HMM_REASON_CPU_WRITE, NULL);
	cookie = asked(&start, &end);
	cr_assert(ne(u64, cookie, 0), "what it may read concerns it");
	cr_assert(eq(u64, start, addr_of(0)));
	cr_assert(eq(u64, end, addr_of(OUT)));
	cr_assert(eq(uint, fake_vfio_mappings(), 3));
	invalidate_ack(fixture.owner, cookie, 0);
	owner_run(fixture.owner);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(uint, block_count(fixture_block(&fixture, 0), HMM_PAGE_SHARED), 3));
	cr_assert(eq(int, map_as(DRIVER, HOLD, 0, OUT, false, &pages), 0), "%s", text);
	cr_assert(eq(u64, pages, OUT - 1));
	/* Nothing is kept of a device that is no card. */
	unmap(HOLD);
	unmap(HOLD + 1);
	cr_assert(block_device_reads(fixture_block(&fixture, 0)));
	asked(&start, &end);
	finish();
}

/* ---- from card to card: the device's memory is another card's BAR --------------------------- */

static struct bar *bar;

static void begin_bar(void)
{
	const struct bar_wish wish = {.address = FAKE_OTHER, .index = 2};
	struct pages pages = pages_from(0, OUT);
	struct card *card = NULL;

	fake_vfio_begin();
	fixture_begin(&fixture, HMM_POOL_KIND_VFIO, POOL);
	cr_assert(eq(int, card_open(FAKE_CARD, 0, 0, &card, text, sizeof(text)), 0), "%s", text);
	cr_assert(eq(int, bar_open(&wish, &bar, text, sizeof(text)), 0), "%s", text);
	fixture.device->caps = HMM_DEVICE_CAPS_DMA;
	fixture.device->card_number = card_number(FAKE_CARD);
	fixture.device->card = card;
	fixture.device->bar = bar;
	fixture.device->bar_pages = bar_promise(bar, 0);
	fixture.device->far_pages = bar_pages(bar);
	cr_assert(eq(int, far_bar_begin(fixture.mirror), 0));
	fixture_out(&fixture, 0, OUT);
	far_store(fixture_block(&fixture, 0), &pages, NULL);
	fixture_later(&fixture, 1);
	cr_assert(eq(u64, fixture.mirror->far_pages, OUT));
	fixture_callbacks(&fixture);
}

static void finish_bar(void)
{
	fixture_end(&fixture);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(not(fake_vfio.kept || fake_vfio.other_kept));
	fake_vfio_end();
}

static void check_frames(unsigned int first, unsigned int end)
{
	const struct block *block = fixture_block(&fixture, 0);
	char bytes[HMM_PAGE_SIZE];

	for (unsigned int i = first; i < end; i++) {
		const struct fake_mapping *there = fake_vfio_at(addr_of(i));

		cr_assert(ne(ptr, (void *)(uintptr_t)there, NULL), "page %u is out of reach", i);
		cr_assert(eq(u64, there->vaddr + (addr_of(i) - there->iova),
			     (uintptr_t)bar_page(bar, block_far_number(block, i))));
		fixture_bytes(i, bytes);
		cr_assert(not(memcmp(fake_vfio_frame(block_far_number(block, i)), bytes, sizeof(bytes))));
	}
}

/* Each page where it lies in the BAR; and what is on its way into it, or out, nowhere. */
Test(dma, in_the_bar)
{
	struct block *block;
	struct pages pages = pages_from(4, 6);
	uint64_t start, end, cookie;

	begin_bar();
	map(HOLD, 0, OUT, OUT);
	cr_assert(eq(uint, fake_vfio_mappings(), 1), "its frames lie side by side");
	check_frames(0, OUT);
	unmap(HOLD);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));

	/* Pages 4 and 5 come into the shadow: its driver first, then the IOMMU, then the copy. */
	map(HOLD, 0, OUT, OUT);
	block = fixture_block(&fixture, 0);
	cr_assert(far_fetch(block, &pages, 4, 0, HMM_REASON_MIGRATE, NULL));
	cookie = asked(&start, &end);
	cr_assert(ne(u64, cookie, 0));
	cr_assert(eq(u64, start, addr_of(0)));
	cr_assert(eq(u64, end, addr_of(OUT)));
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	invalidate_ack(fixture.owner, cookie, 0);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	fixture_later(&fixture, 1);
	cr_assert(block_at_rest(block));
	/* Half-way, in the shadow. */
	map(HOLD, 0, OUT, OUT - 2);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	check_frames(0, 4);
	check_frames(6, OUT);
	cr_assert(eq(ptr, (void *)(uintptr_t)fake_vfio_at(addr_of(4)), NULL));

	/* They go back, to frames of somewhere: what does not lie side by side is mapped by pieces. */
	far_store(block, &pages, NULL);
	asked(&start, &end);
	invalidate_answer_all(fixture.owner);
	fixture_later(&fixture, 1);
	cr_assert(eq(u64, fixture.mirror->far_pages, OUT));
	map(HOLD, 0, OUT, OUT);
	check_frames(0, OUT);
	finish_bar();
}

/* Whatever stands in the table: a frame of another mirror's is not shown to this one's card. */
Test(dma, not_anothers_frame)
{
	struct block *block;
	uint32_t number;

	begin_bar();
	block = fixture_block(&fixture, 0);
	number = block_far_number(block, 3);
	cr_assert(bar_release(bar, number, fixture.mirror->claim));
	map(HOLD, 0, OUT, OUT - 1);
	cr_assert(eq(ptr, (void *)(uintptr_t)fake_vfio_at(addr_of(3)), NULL));
	unmap(HOLD);
	/* As it was, for the end. */
	cr_assert(eq(u32, bar_take(bar, fixture.mirror->claim), number));
	finish_bar();
}

/* All that was in the BAR is lost, and nothing of it in the other card's reach any more. */
Test(dma, the_bar_is_gone)
{
	struct pages pages = pages_from(4, 6);
	uint64_t start, end;
	struct block *block;

	begin_bar();
	map(HOLD, 0, OUT, OUT);
	asked(&start, &end);
	block = fixture_block(&fixture, 0);
	fake_vfio.gone = true;
	cr_assert(far_fetch(block, &pages, 4, 0, HMM_REASON_MIGRATE, NULL));
	invalidate_answer_all(fixture.owner);
	fixture_later(&fixture, 1);
	fixture_later(&fixture, 1);
	cr_assert(eq(uint, block_count(block, HMM_PAGE_ERROR), OUT));
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	asked(&start, &end);
	fake_vfio.gone = false;
	finish_bar();
}

/* The same, of a block that nobody touches, mapped at that moment: its driver hears of it. */
Test(dma, the_bar_is_gone_unasked)
{
	uint64_t start = 0, end = 0;

	begin_bar();
	map(HOLD, 0, OUT, OUT);
	asked(&start, &end);
	fake_vfio.gone = true;
	cr_assert(eq(int, bar_check(bar), BAR_LOST));
	fixture_later(&fixture, 1);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	asked(&start, &end);
	cr_assert(eq(u64, start, addr_of(0)));
	cr_assert(eq(u64, end, addr_of(OUT)));
	cr_assert(eq(uint, block_count(fixture_block(&fixture, 0), HMM_PAGE_ERROR), OUT));
	fake_vfio.gone = false;
	finish_bar();
}

static uint32_t again;

static int make_bar_device(const char *name, enum hmm_pool_kind pool, const char *bus, const char *memory_bus,
			   uint64_t caps)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_device_new *message = calloc(1, sizeof(*message));
	int error;

	HMM_MSG_INIT(*message, HMM_OP_DEVICE_NEW, 0);
	hmm_wire_text(message->name, sizeof(message->name), name);
	hmm_wire_text(message->bus, sizeof(message->bus), bus);
	hmm_wire_text(message->memory_bus, sizeof(message->memory_bus), memory_bus);
	message->caps = caps;
	message->pool = pool;
	message->node = -1;
	message->bar = 2;
	message->again = again;
	message->size = 1 << 20;
	letter->peer = DRIVER;
	letter->message = &message->header;
	engine_device_request(&fixture.engine, letter);
	error = letter->error;
	snprintf(text, sizeof(text), "%s", letter->text);
	letter_free(letter);
	return error;
}

Test(dma, made_of_two_cards)
{
	struct devices *devices = &fixture.engine.devices;
	const struct {
		enum hmm_pool_kind pool;
		const char *bus, *memory_bus;
		uint64_t caps;
		int error;
		const char *why;
	} refused[] = {
		{HMM_POOL_KIND_MEMFD, FAKE_CARD, FAKE_OTHER, HMM_DEVICE_CAPS_DMA, -EINVAL, "pool of kind vfio"},
		{HMM_POOL_KIND_CONFIGURED, FAKE_CARD, FAKE_OTHER, HMM_DEVICE_CAPS_DMA, -EINVAL, "pool of kind vfio"},
		{HMM_POOL_KIND_VFIO, "", FAKE_OTHER, HMM_DEVICE_CAPS_DMA, -EINVAL, "another card"},
		{HMM_POOL_KIND_VFIO, FAKE_CARD, FAKE_CARD, HMM_DEVICE_CAPS_DMA, -EINVAL, "its own BAR"},
		{HMM_POOL_KIND_VFIO, FAKE_CARD, FAKE_OTHER, HMM_DEVICE_CAPS_FAULTS, -EINVAL, "goes with dma"},
		{HMM_POOL_KIND_VFIO, FAKE_CARD, FAKE_OTHER, HMM_DEVICE_CAPS_DMA | HMM_DEVICE_CAPS_FAULTS, -EOPNOTSUPP,
		 "cannot retry"},
		{HMM_POOL_KIND_VFIO, FAKE_CARD, FAKE_OTHER, HMM_DEVICE_CAPS_DMA | HMM_DEVICE_CAPS_COPY_ENGINE,
		 -EOPNOTSUPP, "pinned"},
		{HMM_POOL_KIND_VFIO, FAKE_CARD, "0000:00:06.0", HMM_DEVICE_CAPS_DMA, -ENODEV, "0000:00:06.0"},
		{HMM_POOL_KIND_VFIO, FAKE_CARD, "somewhere", HMM_DEVICE_CAPS_DMA, -EINVAL, "somewhere"},
	};
	struct device *device;

	fake_vfio_begin();
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	devices->capacity = 2 * POOL;
	for (unsigned int i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		cr_assert(eq(int, make_bar_device("two", refused[i].pool, refused[i].bus, refused[i].memory_bus,
						  refused[i].caps), refused[i].error), "%u: %s", i, text);
		cr_assert(ne(ptr, strstr(text, refused[i].why), NULL), "%u: %s", i, text);
		cr_assert(not(fake_vfio.kept || fake_vfio.other_kept), "%u", i);
	}
	cr_assert(eq(int, make_bar_device("two", HMM_POOL_KIND_VFIO, FAKE_CARD, FAKE_OTHER, HMM_DEVICE_CAPS_DMA), 0), "%s", text);
	device = device_by_name(devices, "two");
	cr_assert(device && device->card && device->bar);
	cr_assert(eq(str, (char *)card_address(device->card), FAKE_CARD));
	cr_assert(eq(str, (char *)card_address(bar_card(device->bar)), FAKE_OTHER));
	cr_assert(eq(u32, device->bar_pages, 256));
	/* Its driver gets the card, and not the one with the memory. */
	cr_assert(eq(int, ask_device(device->id), 0));

	/* The pool that the administrator has chosen is a BAR: a card that names none has its memory there. */
	device_let_go(devices, DRIVER, device->id);
	cr_assert(not(fake_vfio.kept || fake_vfio.other_kept));
	fixture.engine.options.pool_kind = HMM_POOL_KIND_VFIO;
	fixture.engine.options.pool_card = FAKE_OTHER;
	fixture.engine.options.pool_bar = 2;
	cr_assert(eq(int, make_bar_device("two", HMM_POOL_KIND_CONFIGURED, FAKE_CARD, "", HMM_DEVICE_CAPS_DMA), 0), "%s", text);
	device = device_by_name(devices, "two");
	cr_assert(device && device->card && device->bar);
	cr_assert(eq(str, (char *)card_address(bar_card(device->bar)), FAKE_OTHER));
	/* Nothing is left of a card that was opened before there was no room for its memory. */
	device_let_go(devices, DRIVER, device->id);
	fake_vfio.bar_pages = 100;
	cr_assert(eq(int, make_bar_device("two", HMM_POOL_KIND_CONFIGURED, FAKE_CARD, "", HMM_DEVICE_CAPS_DMA), -ENOSPC));
	cr_assert(not(fake_vfio.kept || fake_vfio.other_kept));
	fixture_end(&fixture);
	fake_vfio_end();
}

/* After a restart what is gone of a device keeps nobody from having the rest again. */
Test(dma, made_again_without)
{
	struct devices *devices = &fixture.engine.devices;
	struct device *device;

	fake_vfio_begin();
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	devices->capacity = 2 * POOL;
	fake_vfio.driver = NULL;
	cr_assert(eq(int, make_bar_device("one", HMM_POOL_KIND_MEMFD, FAKE_CARD, "", HMM_DEVICE_CAPS_DMA), -ENXIO));
	cr_assert(eq(ptr, device_by_name(devices, "one"), NULL));
	again = 1;
	cr_assert(eq(int, make_bar_device("one", HMM_POOL_KIND_MEMFD, FAKE_CARD, "", HMM_DEVICE_CAPS_DMA), 0), "%s", text);
	device = device_by_name(devices, "one");
	cr_assert(device && !atomic_load(&device->card));
	cr_assert(eq(u32, device->card_number, 0));
	cr_assert(eq(int, ask_device(device->id), -ENODEV));
	/* An owner has made it already, and waits for that card: no longer. */
	device->card_number = card_number(FAKE_CARD);
	cr_assert(eq(int, make_bar_device("one", HMM_POOL_KIND_MEMFD, FAKE_CARD, "", HMM_DEVICE_CAPS_DMA), -EBUSY));
	cr_assert(eq(u32, device->card_number, 0));
	/* Both cards, or a BAR alone. */
	cr_assert(eq(int, make_bar_device("two", HMM_POOL_KIND_VFIO, FAKE_CARD, FAKE_OTHER, HMM_DEVICE_CAPS_DMA), 0), "%s", text);
	cr_assert(eq(int, make_bar_device("bar", HMM_POOL_KIND_VFIO, FAKE_OTHER, "", HMM_DEVICE_CAPS_FAULTS), 0), "%s", text);
	device = device_by_name(devices, "bar");
	cr_assert(device && !device->bar);
	/* What may be there in a moment is asked for again. */
	fake_vfio.driver = "vfio-pci";
	fake_vfio.in_use = true;
	cr_assert(eq(int, make_bar_device("three", HMM_POOL_KIND_MEMFD, FAKE_CARD, "", HMM_DEVICE_CAPS_DMA), -EBUSY));
	cr_assert(eq(ptr, device_by_name(devices, "three"), NULL));
	cr_assert(not(fake_vfio.kept || fake_vfio.other_kept));
	fixture_end(&fixture);
	fake_vfio_end();
}
