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

#include "dma_rig.h"
#include "engine/dma.h"
#include "engine/protect.h"
#include "fake_vfio.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(dma);

Test(dma, at_the_owners_addresses)
{
	const struct fake_mapping *there;

	dma_rig_begin();
	dma_rig_map(HOLD, 2, OUT + 5, OUT - 2);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	there = fake_vfio_at(dma_rig_addr_of(2));
	cr_assert(eq(u64, there->iova, dma_rig_addr_of(2)));
	cr_assert(eq(u64, there->length, (OUT - 2) * HMM_PAGE_SIZE));
	cr_assert(eq(u64, there->vaddr,
		     (uintptr_t)shadow_at(block_shadow(fixture_block(&fixture, 0)), dma_rig_addr_of(2))));
	cr_assert(there->write);
	cr_assert(eq(u64, fixture.owner->counter[COUNTER_DMA_PAGES], OUT - 2));
	/* Again, and of another range: what is there is there. */
	dma_rig_map(HOLD, 2, OUT + 5, OUT - 2);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	dma_rig_map(HOLD + 1, 0, 4, 4);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	/* As long as one of them has a part of the block. */
	dma_rig_unmap(HOLD);
	dma_rig_unmap(HOLD + 7);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	dma_rig_unmap(HOLD + 1);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	dma_rig_finish();
}

Test(dma, out_when_the_driver_has_answered)
{
	uint64_t cookie, start = 0, end = 0;

	dma_rig_begin();
	dma_rig_map(HOLD, 0, OUT, OUT);
	dma_rig_go_home(10, 12);
	/* It hears of all that it loses. */
	cookie = dma_rig_asked(&start, &end);
	cr_assert(ne(u64, cookie, 0));
	cr_assert(eq(u64, start, dma_rig_addr_of(0)));
	cr_assert(eq(u64, end, dma_rig_addr_of(OUT)));
	fixture_later(&fixture, SECOND / 10);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	invalidate_ack(fixture.owner, cookie, 0);
	owner_run(fixture.owner);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(u64, fixture.mirror->device_pages, OUT - 2));
	cr_assert(eq(u64, fixture.owner->counter[COUNTER_DMA_CUTS], 1));
	/* The rest may come back, around the hole. */
	dma_rig_asked(&start, &end);
	dma_rig_map(HOLD, 0, OUT, OUT - 2);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	dma_rig_finish();
}

Test(dma, out_when_the_driver_is_late)
{
	uint64_t start, end;

	dma_rig_begin();
	dma_rig_map(HOLD, 0, OUT, OUT);
	dma_rig_go_home(0, OUT);
	cr_assert(ne(u64, dma_rig_asked(&start, &end), 0));
	fixture_later(&fixture, 1001 * NS_PER_MS);
	owner_run(fixture.owner);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(u64, fixture.mirror->device_pages, 0));
	dma_rig_asked(&start, &end);
	dma_rig_finish();
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

	dma_rig_begin();
	dma_rig_map(HOLD, 0, OUT, OUT);
	fake_vfio_recall(FAKE_CARD);
	cr_assert(cards_recall());
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD + 1, 0, OUT, true, &pages), -ENODEV));
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
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, OUT, true, &pages), -ENODEV));
	fixture_later(&fixture, 1);
	dma_rig_finish();
}

Test(dma, recalled_from_a_late_driver)
{
	dma_rig_begin();
	dma_rig_map(HOLD, 0, OUT, OUT);
	fake_vfio_recall(FAKE_CARD);
	cr_assert(cards_recall());
	fixture_later(&fixture, 1);
	cr_assert(ne(u64, told(HMM_OP_INVALIDATE, HMM_REASON_RECALL), 0));
	fixture_later(&fixture, 1001 * NS_PER_MS);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(not(cards_recall() || fake_vfio.kept));
	told(0, 0);
	dma_rig_finish();
}

/* There is nobody to be told. */
Test(dma, recalled_without_a_driver)
{
	dma_rig_begin();
	dma_rig_map(HOLD, 0, OUT, OUT);
	fixture.mirror->flags &= ~HMM_MIRROR_FLAGS_CALLBACKS;
	fake_vfio_recall(FAKE_CARD);
	cr_assert(cards_recall());
	fixture_later(&fixture, 1);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(not(cards_recall() || fake_vfio.kept));
	dma_rig_finish();
}

/* What changes beside it, in the same block, is nothing to it. */
Test(dma, neighbours_stay)
{
	uint64_t start = 0, end = 0, cookie;

	dma_rig_begin();
	dma_rig_map(HOLD, 0, 4, 4);
	dma_rig_go_home(10, 12);
	cookie = dma_rig_asked(&start, &end);
	cr_assert(eq(u64, start, dma_rig_addr_of(10)));
	cr_assert(eq(u64, end, dma_rig_addr_of(12)));
	kernel = &kernel_real; /* what goes home is not the card's */
	invalidate_ack(fixture.owner, cookie, 0);
	owner_run(fixture.owner);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	dma_rig_asked(&start, &end);
	kernel = &ops;
	dma_rig_unmap(HOLD);
	dma_rig_finish();
}

Test(dma, discarded)
{
	uint64_t start, end, cookie;

	dma_rig_begin();
	dma_rig_map(HOLD, 0, OUT, OUT);
	block_discard(fixture_block(&fixture, 0), 3, 5, HMM_REASON_DISCARD);
	cookie = dma_rig_asked(&start, &end);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	invalidate_ack(fixture.owner, cookie, 0);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	owner_run(fixture.owner);
	dma_rig_asked(&start, &end);
	dma_rig_finish();
}

/* In the middle of another change nobody is waited for: what the owner gave up is gone already. */
Test(dma, discarded_in_a_change)
{
	uint64_t start, end, cookie, other;

	dma_rig_begin();
	dma_rig_map(HOLD, 0, OUT, OUT);
	dma_rig_unmap(HOLD);
	dma_rig_map(HOLD, 10, OUT, OUT - 10);
	dma_rig_go_home(0, 2);
	cookie = dma_rig_asked(&start, &end);
	block_discard(fixture_block(&fixture, 0), 12, 14, HMM_REASON_DISCARD);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	other = dma_rig_asked(&start, &end);
	cr_assert(ne(u64, other, 0));
	invalidate_ack(fixture.owner, other, 0);
	invalidate_ack(fixture.owner, cookie, 0);
	owner_run(fixture.owner);
	dma_rig_asked(&start, &end);
	dma_rig_finish();
}

/* A refusal puts everything back: it was not unmapped. */
Test(dma, a_driver_that_refuses_keeps_it)
{
	struct pages pages = pages_from(0, OUT);
	struct block *block;
	uint64_t start, end, cookie;

	dma_rig_begin();
	dma_rig_map(HOLD, 0, OUT, OUT);
	block = fixture_block(&fixture, 0);
	block->move.want = pages;
	transit_ask(block, HMM_TRANSIT_HOME_COPY, &pages, HMM_REASON_EVICT, transit_end,
		    block_settle_later);
	cookie = dma_rig_asked(&start, &end);
	invalidate_ack(fixture.owner, cookie, -EAGAIN);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	dma_rig_asked(&start, &end);
	dma_rig_map(HOLD, 0, OUT, OUT);
	dma_rig_finish();
}

Test(dma, withdrawn)
{
	struct block *block;
	uint64_t start, end, number;

	dma_rig_begin();
	dma_rig_map(HOLD, 3, 5, 2);
	block = fixture_block(&fixture, 0);
	number = fixture_sequence(block);
	dma_withdraw(block, HMM_REASON_FORK);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(lt(u64, number, fixture_sequence(block)));
	cr_assert(ne(u64, dma_rig_asked(&start, &end), 0));
	cr_assert(eq(u64, start, dma_rig_addr_of(3)));
	cr_assert(eq(u64, end, dma_rig_addr_of(5)));
	number = fixture_sequence(block);
	dma_withdraw(block, HMM_REASON_FORK);
	cr_assert(eq(u64, fixture_sequence(block), number));
	invalidate_answer_all(fixture.owner);
	dma_rig_finish();
}

Test(dma, driver_or_mirror_gone)
{
	uint64_t start, end, pages;

	dma_rig_begin();
	dma_rig_map(HOLD, 0, 4, 4);
	dma_rig_map(HOLD + 1, 6, 8, 2);
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
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, 4, true, &pages), -EIO));
	cr_assert(ne(ptr, strstr(text, "was stopped"), NULL));
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	dma_rig_map(HOLD, 0, 4, 4);
	cr_assert(fake_vfio.master);
	dma_close(fixture.mirror);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(uint, fixture.mirror->n_transfers, 0));
	/* As an owner that goes in the middle. */
	dma_rig_map(HOLD, 0, 4, 4);
	dma_rig_asked(&start, &end);
	dma_rig_finish();
}

/* As long as one of an owner's mirrors may have something mapped the card is nobody else's. */
Test(dma, two_mirrors_of_an_owner)
{
	struct devices *devices = &fixture.engine.devices;
	struct mirror *other;
	uint64_t start, end;

	dma_rig_begin();
	dma_rig_map(HOLD, 0, 4, 4);
	other = mirror_new(fixture.owner, 1, device_use(devices, fixture.device->id), NULL);
	cr_assert(ne(ptr, other, NULL));
	mirror_free(other);
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	cr_assert(not(card_take(fixture.device->card, 99)));
	cr_assert(card_take(fixture.device->card, fixture.owner->id));
	dma_rig_asked(&start, &end);
	dma_rig_finish();
}

Test(dma, refusals)
{
	struct card *card;
	uint64_t pages;

	dma_rig_begin();
	cr_assert(eq(int, dma_rig_map_as(DRIVER + 1, HOLD, 0, 4, true, &pages), -EPERM));
	cr_assert(eq(int, dma_rig_map_as(DRIVER, 0, 0, 4, true, &pages), -EINVAL));
	card = fixture.device->card;
	fixture.device->card = NULL;
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, 4, true, &pages), -EAGAIN));
	/* It is not waited for any more, or never was there. */
	device_forget_card(&fixture.engine.devices, fixture.device->name, card_number(FAKE_OTHER));
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, 4, true, &pages), -EAGAIN));
	device_forget_card(&fixture.engine.devices, fixture.device->name, card_number(FAKE_CARD));
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, 4, true, &pages), -ENODEV));
	fixture.device->caps = 0;
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, 4, true, &pages), -EOPNOTSUPP));
	fixture.device->caps = HMM_DEVICE_CAPS_DMA;
	fixture.device->card = card;
	cr_assert(card_take(card, 99));
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, 4, true, &pages), -EBUSY));
	card_leave(card, 99);
	/* Whoever may not open the group does not get at it by a mirror of before. */
	user = group = getuid() + 1;
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, 4, true, &pages), -EACCES));
	user = group = 0;
	fixture.mirror->leaving = true;
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, 4, true, &pages), -ENOENT));
	fixture.mirror->leaving = false;
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(uint, fixture.mirror->n_transfers, 0));
	/* The owner may not write there, so the card may not, whoever asks. */
	cr_assert(eq(int, mprotect((void *)ROOM_START, HMM_BLOCK_SIZE, PROT_READ), 0));
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, 4, true, &pages), -EPERM));
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, 4, false, &pages), 0));
	cr_assert(not(fake_vfio_at(dma_rig_addr_of(1))->write));
	cr_assert(eq(int, mprotect((void *)ROOM_START, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE), 0));
	dma_rig_finish();
}

static void protect(unsigned int first, unsigned int end)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_protect *message = calloc(1, sizeof(*message));

	HMM_MSG_INIT(*message, HMM_OP_PROTECT, 0);
	message->addr = dma_rig_addr_of(first);
	message->length = (end - first) * HMM_PAGE_SIZE;
	letter->message = &message->header;
	protect_request(fixture.owner, letter);
	owner_run(fixture.owner);
}

/* What the owner may not write any more is out before anything else is waited for. */
Test(dma, protected_in_a_change)
{
	uint64_t start = 0, end = 0, cookie, pages;

	dma_rig_begin();
	dma_rig_map(HOLD, 10, OUT, OUT - 10);
	dma_rig_go_home(0, 2);
	cookie = dma_rig_asked(&start, &end);
	protect(9, 10);
	cr_assert(eq(uint, fake_vfio_mappings(), 1), "nothing of it is meant");
	protect(10, 11);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	dma_rig_asked(&start, &end);
	cr_assert(eq(u64, start, dma_rig_addr_of(10)));
	cr_assert(eq(u64, end, dma_rig_addr_of(OUT)));
	invalidate_ack(fixture.owner, cookie, 0);
	owner_run(fixture.owner);
	cr_assert(eq(int, dma_rig_answer(&pages), 0));
	dma_rig_finish();
}

/* ... and also when the rest of it could not be done in time. */
Test(dma, protected_too_late)
{
	uint64_t start = 0, end = 0, cookie;

	dma_rig_begin();
	dma_rig_go_home(0, 2);
	cookie = dma_rig_asked(&start, &end);
	protect(10, 11);
	/* Six seconds later: the block is at rest, and its card reaches it when the task runs. */
	invalidate_ack(fixture.owner, cookie, 0);
	dma_rig_map(HOLD, 10, OUT, OUT - 10);
	fixture_later(&fixture, 6 * SECOND);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	invalidate_answer_all(fixture.owner);
	dma_rig_asked(&start, &end);
	dma_rig_finish();
}

/* Mapped for reading, as the owner could then: when he may write it is mapped anew. */
Test(dma, may_be_written_by_now)
{
	uint64_t start = 0, end = 0, pages;

	dma_rig_begin();
	dma_rig_map(HOLD + 1, 12, 14, 2);
	cr_assert(eq(int, mprotect((void *)ROOM_START, 10 * HMM_PAGE_SIZE, PROT_READ), 0));
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, 4, false, &pages), 0));
	cr_assert(not(fake_vfio_at(dma_rig_addr_of(1))->write));
	/* The same again, and what could be written, is as it was. */
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, 4, false, &pages), 0));
	dma_rig_map(HOLD + 1, 12, 14, 2);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	cr_assert(eq(int, mprotect((void *)ROOM_START, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE), 0));
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, 4, true, &pages), -EBUSY));
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(u64, fixture.owner->counter[COUNTER_DMA_CUTS], 1));
	dma_rig_map(HOLD, 0, 4, 4);
	cr_assert(fake_vfio_at(dma_rig_addr_of(1))->write);
	invalidate_answer_all(fixture.owner);
	dma_rig_asked(&start, &end);
	dma_rig_finish();
}

/* Another one's mirror keeps the device: the card stops all the same, unless that one drives it. */
Test(dma, creator_gone)
{
	struct devices *devices = &fixture.engine.devices;

	dma_rig_begin();
	dma_rig_map(HOLD, 0, 4, 4);
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
	dma_rig_map(HOLD, 0, 4, 4);
	cr_assert(fake_vfio.master);
	dma_rig_finish();
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

	dma_rig_begin();
	cr_assert(eq(int, open_device("nobody's", bus, sizeof(bus)), -ENODEV));
	cr_assert(eq(int, open_device(fixture.device->name, bus, sizeof(bus)), 0));
	cr_assert(eq(str, bus, FAKE_CARD));
	cr_assert(eq(int, dma_rig_ask_device(fixture.device->id), 0));
	cr_assert(eq(int, dma_rig_ask_device(fixture.device->id + 1), -ENODEV));
	user = group = getuid() + 1;
	cr_assert(eq(int, open_device(fixture.device->name, bus, sizeof(bus)), -EACCES));
	cr_assert(eq(int, dma_rig_ask_device(fixture.device->id), -EACCES));
	user = group = 0;
	cr_assert(eq(uint, fixture.device->mirrors, 1));
	dma_rig_finish();
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
	dma_rig_finish();
}

/* Several mappings, and each of them fails once: nothing is left of the others. */
Test(dma, all_or_nothing)
{
	uint64_t start, end, pages;

	dma_rig_begin();
	fixture_out(&fixture, 30, 32);
	fixture_out(&fixture, HMM_BLOCK_PAGES, HMM_BLOCK_PAGES + 2);
	for (unsigned int n = 1; n <= 3; n++) {
		fake_vfio.calls = 0;
		fake_vfio.fail_at = n;
		fake_vfio.error = -ENOMEM;
		cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, HMM_BLOCK_PAGES + 2, true, &pages),
			     -ENOMEM),
			  "call %u", n);
		cr_assert(ne(ptr, strstr(text, "RLIMIT_MEMLOCK"), NULL));
		cr_assert(eq(uint, fake_vfio_mappings(), 0));
		cr_assert(eq(uint, fixture.mirror->n_transfers, 0));
	}
	fake_vfio.fail_at = 0;
	fake_vfio.limit = 2;
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, HMM_BLOCK_PAGES + 2, true, &pages), -ENOSPC));
	cr_assert(ne(ptr, strstr(text, "dma_entry_limit"), NULL));
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	fake_vfio.limit = 3;
	dma_rig_map(HOLD, 0, HMM_BLOCK_PAGES + 2, OUT + 4);
	/* A block in transit is not waited for. */
	dma_rig_go_home(0, 1);
	dma_rig_asked(&start, &end);
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, HMM_BLOCK_PAGES + 2, true, &pages), -EBUSY));
	invalidate_answer_all(fixture.owner);
	owner_run(fixture.owner);
	dma_rig_asked(&start, &end);
	dma_rig_finish();
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
	void *middle = (void *)dma_rig_addr_of(from);
	const size_t length = (until - from) * HMM_PAGE_SIZE;
	uint64_t pages;

	dma_rig_begin();
	fixture_out(&fixture, OUT, most);
	ops.vma_at = count_look;
	looks = 0;
	dma_rig_map(HOLD, 0, most, most);
	cr_assert(eq(uint, looks, 1));
	cr_assert(eq(uint, fake_vfio_mappings(), 3));
	dma_rig_unmap(HOLD);
	/* Three mappings, whose borders are within blocks; the middle one has a block's border in it. */
	cr_assert(eq(int, mprotect(middle, length, PROT_READ), 0));
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, most, true, &pages), -EPERM));
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	looks = 0;
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, most, false, &pages), 0));
	cr_assert(eq(uint, looks, 3));
	cr_assert(eq(u64, pages, most));
	cr_assert(eq(uint, fake_vfio_mappings(), 5));
	cr_assert(fake_vfio_at(dma_rig_addr_of(from - 1))->write && fake_vfio_at(dma_rig_addr_of(until))->write);
	cr_assert(not(fake_vfio_at(dma_rig_addr_of(from))->write || fake_vfio_at(dma_rig_addr_of(2 * block - 1))->write));
	cr_assert(not(fake_vfio_at(dma_rig_addr_of(2 * block))->write || fake_vfio_at(dma_rig_addr_of(until - 1))->write));
	dma_rig_unmap(HOLD);
	/* What may not even be read is left out. */
	cr_assert(eq(int, mprotect(middle, length, PROT_NONE), 0));
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, most, false, &pages), 0));
	cr_assert(eq(u64, pages, most - (until - from)));
	cr_assert(eq(uint, fake_vfio_mappings(), 3));
	dma_rig_unmap(HOLD);
	cr_assert(eq(int, mprotect(middle, length, PROT_READ | PROT_WRITE), 0));
	dma_rig_finish();
}

/* A block that is coherent as a whole is mapped as a whole, whatever of it is asked for first. */
Test(dma, whole_blocks)
{
	struct block *block;
	uint64_t pages;

	dma_rig_begin();
	fixture_out(&fixture, OUT, 2 * HMM_BLOCK_PAGES);
	for (unsigned int n = 0; n < 2; n++) {
		block = fixture_block(&fixture, n);
		cr_assert(not(block_is_coherent(block)));
		block_set_state(block, 0, HMM_BLOCK_PAGES, HMM_PAGE_COHERENT);
		cr_assert(block_is_coherent(block));
	}
	dma_rig_map(HOLD, 0, 2 * HMM_BLOCK_PAGES, 2 * HMM_BLOCK_PAGES);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	cr_assert(eq(u64, fake_vfio_at(dma_rig_addr_of(0))->length, HMM_BLOCK_SIZE));
	cr_assert(eq(u64, fixture.owner->counter[COUNTER_DMA_PAGES], 2 * HMM_BLOCK_PAGES));
	/* Parts of it, over words and blocks, are counted as they are asked for. */
	dma_rig_map(HOLD + 1, 5, 6, 1);
	dma_rig_map(HOLD + 2, 60, 70, 10);
	dma_rig_map(HOLD + 3, 64, 128, 64);
	dma_rig_map(HOLD + 4, 500, 600, 100);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	for (unsigned int n = 0; n < 5; n++)
		dma_rig_unmap(HOLD + n);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	/* A part first: then the rest goes around it. */
	dma_rig_map(HOLD, 100, 200, 100);
	dma_rig_map(HOLD + 1, 0, HMM_BLOCK_PAGES, HMM_BLOCK_PAGES);
	cr_assert(eq(uint, fake_vfio_mappings(), 3));
	/* One page that is not is no whole block. */
	dma_rig_unmap(HOLD);
	dma_rig_unmap(HOLD + 1);
	block = fixture_block(&fixture, 1);
	block_set_state(block, 7, 8, HMM_PAGE_INVALID);
	cr_assert(not(block_is_coherent(block)));
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, HMM_BLOCK_PAGES, 2 * HMM_BLOCK_PAGES, false, &pages), 0));
	cr_assert(eq(u64, pages, HMM_BLOCK_PAGES - 1));
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	dma_rig_unmap(HOLD);
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
	dma_rig_asked(&start, &stop);
	cr_assert(eq(uint, block_count(fixture_block(&fixture, 0), HMM_PAGE_SHARED), end - first));
}

/* The card may read what the CPU reads, and not write it, whatever the mapping allows. */
Test(dma, read_by_both)
{
	uint64_t pages, start = 0, end = 0, cookie;
	struct pages written = pages_from(5, 6);

	dma_rig_begin();
	dma_rig_map(HOLD, 0, OUT, OUT);
	share(4, 8);
	cr_assert(eq(uint, fake_vfio_mappings(), 0), "out before it changes");
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, OUT, false, &pages), 0), "%s", text);
	cr_assert(eq(u64, pages, OUT));
	cr_assert(eq(uint, fake_vfio_mappings(), 3));
	cr_assert(fake_vfio_at(dma_rig_addr_of(3))->write && fake_vfio_at(dma_rig_addr_of(8))->write);
	cr_assert(not(fake_vfio_at(dma_rig_addr_of(4))->write));
	cr_assert(eq(u64, fake_vfio_at(dma_rig_addr_of(7))->iova, dma_rig_addr_of(4)));
	cr_assert(eq(u64, fake_vfio_at(dma_rig_addr_of(4))->vaddr,
		     (uintptr_t)shadow_at(block_shadow(fixture_block(&fixture, 0)), dma_rig_addr_of(4))));
	/* Who is to write them has been told less, and looks again; what others have there stays. */
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD + 1, 0, OUT, true, &pages), 0), "%s", text);
	cr_assert(eq(u64, pages, OUT - 4));
	cr_assert(eq(uint, fake_vfio_mappings(), 3));
	/* The CPU writes: the driver is asked, and the block is out before that is let go on. */
	unshare_begin(fixture_block(&fixture, 0), &written, HMM_REASON_CPU_WRITE, NULL);
	cookie = dma_rig_asked(&start, &end);
	cr_assert(ne(u64, cookie, 0), "what it may read concerns it");
	cr_assert(eq(u64, start, dma_rig_addr_of(0)));
	cr_assert(eq(u64, end, dma_rig_addr_of(OUT)));
	cr_assert(eq(uint, fake_vfio_mappings(), 3));
	invalidate_ack(fixture.owner, cookie, 0);
	owner_run(fixture.owner);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(eq(uint, block_count(fixture_block(&fixture, 0), HMM_PAGE_SHARED), 3));
	cr_assert(eq(int, dma_rig_map_as(DRIVER, HOLD, 0, OUT, false, &pages), 0), "%s", text);
	cr_assert(eq(u64, pages, OUT - 1));
	/* Nothing is kept of a device that is no card. */
	dma_rig_unmap(HOLD);
	dma_rig_unmap(HOLD + 1);
	cr_assert(block_device_reads(fixture_block(&fixture, 0)));
	dma_rig_asked(&start, &end);
	dma_rig_finish();
}
