// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_dma_bar.c - from card to card: the device's memory is another card's BAR, and what lies there is in
 * the first card's IOMMU, frame by frame.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dma_rig.h"
#include "engine/dma.h"
#include "engine/far_bar.h"
#include "fake_vfio.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(dma_bar);

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
		const struct fake_mapping *there = fake_vfio_at(dma_rig_addr_of(i));

		cr_assert(ne(ptr, (void *)(uintptr_t)there, NULL), "page %u is out of reach", i);
		cr_assert(eq(u64, there->vaddr + (dma_rig_addr_of(i) - there->iova),
			     (uintptr_t)bar_page(bar, block_far_number(block, i))));
		fixture_bytes(i, bytes);
		cr_assert(not(memcmp(fake_vfio_frame(block_far_number(block, i)), bytes, sizeof(bytes))));
	}
}

/* Each page where it lies in the BAR; and what is on its way into it, or out, nowhere. */
Test(dma_bar, in_the_bar)
{
	struct block *block;
	struct pages pages = pages_from(4, 6);
	uint64_t start, end, cookie;

	begin_bar();
	dma_rig_map(HOLD, 0, OUT, OUT);
	cr_assert(eq(uint, fake_vfio_mappings(), 1), "its frames lie side by side");
	check_frames(0, OUT);
	dma_rig_unmap(HOLD);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));

	/* Pages 4 and 5 come into the shadow: its driver first, then the IOMMU, then the copy. */
	dma_rig_map(HOLD, 0, OUT, OUT);
	block = fixture_block(&fixture, 0);
	cr_assert(far_fetch(block, &pages, 4, 0, HMM_REASON_MIGRATE, NULL));
	cookie = dma_rig_asked(&start, &end);
	cr_assert(ne(u64, cookie, 0));
	cr_assert(eq(u64, start, dma_rig_addr_of(0)));
	cr_assert(eq(u64, end, dma_rig_addr_of(OUT)));
	cr_assert(eq(uint, fake_vfio_mappings(), 1));
	invalidate_ack(fixture.owner, cookie, 0);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	fixture_later(&fixture, 1);
	cr_assert(block_at_rest(block));
	/* Half-way, in the shadow. */
	dma_rig_map(HOLD, 0, OUT, OUT - 2);
	cr_assert(eq(uint, fake_vfio_mappings(), 2));
	check_frames(0, 4);
	check_frames(6, OUT);
	cr_assert(eq(ptr, (void *)(uintptr_t)fake_vfio_at(dma_rig_addr_of(4)), NULL));

	/* They go back, to frames of somewhere: what does not lie side by side is mapped by pieces. */
	far_store(block, &pages, NULL);
	dma_rig_asked(&start, &end);
	invalidate_answer_all(fixture.owner);
	fixture_later(&fixture, 1);
	cr_assert(eq(u64, fixture.mirror->far_pages, OUT));
	dma_rig_map(HOLD, 0, OUT, OUT);
	check_frames(0, OUT);
	finish_bar();
}

/* Whatever stands in the table: a frame of another mirror's is not shown to this one's card. */
Test(dma_bar, not_anothers_frame)
{
	struct block *block;
	uint32_t number;

	begin_bar();
	block = fixture_block(&fixture, 0);
	number = block_far_number(block, 3);
	cr_assert(bar_release(bar, number, fixture.mirror->claim));
	dma_rig_map(HOLD, 0, OUT, OUT - 1);
	cr_assert(eq(ptr, (void *)(uintptr_t)fake_vfio_at(dma_rig_addr_of(3)), NULL));
	dma_rig_unmap(HOLD);
	/* As it was, for the end. */
	cr_assert(eq(u32, bar_take(bar, fixture.mirror->claim), number));
	finish_bar();
}

/* All that was in the BAR is lost, and nothing of it in the other card's reach any more. */
Test(dma_bar, the_bar_is_gone)
{
	struct pages pages = pages_from(4, 6);
	uint64_t start, end;
	struct block *block;

	begin_bar();
	dma_rig_map(HOLD, 0, OUT, OUT);
	dma_rig_asked(&start, &end);
	block = fixture_block(&fixture, 0);
	fake_vfio.gone = true;
	cr_assert(far_fetch(block, &pages, 4, 0, HMM_REASON_MIGRATE, NULL));
	invalidate_answer_all(fixture.owner);
	fixture_later(&fixture, 1);
	fixture_later(&fixture, 1);
	cr_assert(eq(uint, block_count(block, HMM_PAGE_ERROR), OUT));
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	dma_rig_asked(&start, &end);
	fake_vfio.gone = false;
	finish_bar();
}

/* The same, of a block that nobody touches, mapped at that moment: its driver hears of it. */
Test(dma_bar, the_bar_is_gone_unasked)
{
	uint64_t start = 0, end = 0;

	begin_bar();
	dma_rig_map(HOLD, 0, OUT, OUT);
	dma_rig_asked(&start, &end);
	fake_vfio.gone = true;
	cr_assert(eq(int, bar_check(bar), BAR_LOST));
	fixture_later(&fixture, 1);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	dma_rig_asked(&start, &end);
	cr_assert(eq(u64, start, dma_rig_addr_of(0)));
	cr_assert(eq(u64, end, dma_rig_addr_of(OUT)));
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

Test(dma_bar, made_of_two_cards)
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
	cr_assert(eq(int, dma_rig_ask_device(device->id), 0));

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
Test(dma_bar, made_again_without)
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
	cr_assert(eq(int, dma_rig_ask_device(device->id), -ENODEV));
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
