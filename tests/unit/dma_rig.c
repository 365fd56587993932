// SPDX-License-Identifier: GPL-2.0-or-later
/* dma_rig.c - an owner whose device is a card, behind an IOMMU that is a fake. */
#include "dma_rig.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/dma.h"
#include "fake_vfio.h"

struct fixture fixture;
struct kernel_ops ops;
static int (*real_copy)(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode,
			size_t *done);
char text[240];
uid_t user;
gid_t group;

uint64_t dma_rig_addr_of(unsigned int page)
{
	return ROOM_START + page * HMM_PAGE_SIZE;
}

/* The first thing that changes at the CPU. */
static int copy(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode, size_t *done)
{
	cr_assert(eq(uint, fake_vfio_mappings(), 0), "the card reaches what goes home");
	return real_copy(uffd, dst, src, length, mode, done);
}

void dma_rig_begin(void)
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

void dma_rig_finish(void)
{
	fixture_check(&fixture);
	fixture_end(&fixture);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(not(fake_vfio.kept));
	fake_vfio_end();
}

int dma_rig_answer(uint64_t *pages)
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

int dma_rig_map_as(uint64_t peer, uint32_t hold, unsigned int first, unsigned int end, bool write,
		  uint64_t *pages)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_dma_map *message = calloc(1, sizeof(*message));

	HMM_MSG_INIT(*message, HMM_OP_DMA_MAP, 0);
	message->mirror = fixture.mirror->id;
	message->hold = hold;
	message->addr = message->hold_start = dma_rig_addr_of(first);
	message->hold_end = dma_rig_addr_of(end);
	message->length = (end - first) * HMM_PAGE_SIZE;
	message->write = write;
	letter->peer = peer;
	letter->uid = user;
	letter->gid = group;
	letter->message = &message->header;
	*pages = 0;
	dma_request(fixture.owner, letter);
	return dma_rig_answer(pages);
}

void dma_rig_map(uint32_t hold, unsigned int first, unsigned int end, unsigned int expected)
{
	uint64_t pages;

	cr_assert(eq(int, dma_rig_map_as(DRIVER, hold, first, end, true, &pages), 0), "%s", text);
	cr_assert(eq(u64, pages, expected));
}

void dma_rig_unmap(uint32_t hold)
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
	cr_assert(eq(int, dma_rig_answer(&pages), 0));
}

uint64_t dma_rig_asked(uint64_t *start, uint64_t *end)
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

void dma_rig_go_home(unsigned int first, unsigned int end)
{
	migrate_home(fixture.owner, dma_rig_addr_of(first), dma_rig_addr_of(end), NULL, NULL, NULL);
	owner_run(fixture.owner);
}

int dma_rig_ask_device(uint32_t id)
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
