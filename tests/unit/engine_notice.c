// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_notice.c - rings of notices: what fits and what does not, the last lap
 * after many, a reader that lies about where it is, and who may have how many.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/notice.h"
#include "engine_fixture.h"
#include "engine_random.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(notice);

static struct hmm_notices_reader reader;

static struct listener ring_new(uint32_t entries)
{
	struct listener listener = { .entries = entries, .reader = &reader };

	listener.ring = aligned_alloc(4096, HMM_NOTICES_SIZE(entries));
	memset(listener.ring, 0, HMM_NOTICES_SIZE(entries));
	memset(&reader, 0, sizeof(reader));
	return listener;
}

static bool put(struct listener *listener, uint64_t n)
{
	const struct hmm_notice record = { .kind = 1, .start = n };

	return listener_put(listener, &record);
}

Test(notice, full_loses_what_is_new)
{
	struct listener listener = ring_new(64);

	for (uint64_t n = 0; n < 64; n++)
		cr_assert(eq(int, put(&listener, n), n == 0), "only the first finds it empty");
	for (uint64_t n = 64; n < 100; n++)
		cr_assert(not(put(&listener, n)));
	cr_assert(eq(u64, listener.ring->produced, 64));
	cr_assert(eq(u64, listener.ring->dropped, 36));
	for (uint64_t n = 0; n < 64; n++)
		cr_assert(eq(u64, listener.ring->ring[n].start, n));
	/* One is read: there is room for one. */
	reader.consumed = 1;
	cr_assert(not(put(&listener, 100)));
	cr_assert(not(put(&listener, 101)));
	cr_assert(eq(u64, listener.ring->ring[0].start, 100));
	cr_assert(eq(u64, listener.ring->ring[1].start, 1));
	cr_assert(eq(u64, listener.ring->dropped, 37));
	free(listener.ring);
}

Test(notice, any_order_of_writing_and_reading)
{
	struct random random = random_begin("notice");
	struct listener listener = ring_new(64);
	uint64_t next = 0, expected[64], dropped = 0;
	unsigned int held = 0;

	for (int step = 0; step < 20000; step++) {
		if (random_below(&random, 3)) {
			bool empty = held == 0;

			cr_assert(eq(int, put(&listener, next), empty));
			if (held < 64)
				expected[held++] = next;
			else
				dropped++;
			next++;
		} else if (held) {
			cr_assert(eq(u64, listener.ring->ring[reader.consumed % 64].start, expected[0]));
			memmove(expected, expected + 1, --held * sizeof(*expected));
			reader.consumed++;
		}
		cr_assert(eq(u64, listener.ring->dropped, dropped));
		cr_assert(eq(u64, listener.ring->produced - reader.consumed, held));
	}
	cr_assert(lt(u64, 100, dropped));
	free(listener.ring);
}

Test(notice, a_position_that_cannot_be_looks_full)
{
	static const uint64_t lies[] = { 11, 12, 1000, UINT64_MAX, 1ULL << 63, (uint64_t)-54 };
	struct listener listener = ring_new(64);

	for (uint64_t n = 0; n < 10; n++)
		put(&listener, n);
	for (size_t i = 0; i < sizeof(lies) / sizeof(*lies); i++) {
		reader.consumed = lies[i];
		cr_assert(not(put(&listener, 99)), "%#lx", lies[i]);
		cr_assert(eq(u64, listener.ring->produced, 10), "%#lx", lies[i]);
		cr_assert(eq(u64, listener.ring->dropped, i + 1));
	}
	/* What it wrote over hmmd's own words does not matter either: they are kept elsewhere. */
	reader.consumed = 10;
	listener.ring->produced = 12345;
	cr_assert(put(&listener, 10));
	cr_assert(eq(u64, listener.ring->ring[10].start, 10));
	cr_assert(eq(u64, listener.ring->produced, 11));
	free(listener.ring);
}

/* ---- asking for one ---------------------------------------------------------------- */

static struct fixture fixture;

static struct letter *ask(uint16_t op, uint64_t peer, uint32_t value, uint64_t mask)
{
	struct letter *letter = letter_new(LETTER_REQUEST), *reply;
	struct hmm_msg_notices_open *open = calloc(1, sizeof(*open));
	struct hmm_msg_notices_close *close = calloc(1, sizeof(*close));

	if (op == HMM_OP_NOTICES_OPEN) {
		HMM_MSG_INIT(*open, HMM_OP_NOTICES_OPEN, 0);
		open->entries = value;
		open->mask = mask;
		letter->message = &open->header;
		free(close);
	} else {
		HMM_MSG_INIT(*close, HMM_OP_NOTICES_CLOSE, 0);
		close->notices = value;
		letter->message = &close->header;
		free(open);
	}
	letter->peer = peer;
	letter->owner = fixture.owner->id;
	notice_request(fixture.owner, letter);
	reply = mailbox_take(&fixture.outbox);
	cr_assert(eq(ptr, reply, letter));
	cr_assert(eq(ptr, reply->next, NULL));
	return reply;
}

static int answer(uint16_t op, uint64_t peer, uint32_t value, uint64_t mask)
{
	struct letter *letter = ask(op, peer, value, mask);
	int error = letter->error;

	letter_free(letter);
	return error;
}

Test(notice, asked_for_wrongly)
{
	fixture_begin_faked(&fixture, POOL);
	cr_assert(eq(int, answer(HMM_OP_NOTICES_OPEN, DRIVER, 63, 0), -EINVAL));
	cr_assert(eq(int, answer(HMM_OP_NOTICES_OPEN, DRIVER, 65537, 0), -EINVAL));
	cr_assert(eq(int, answer(HMM_OP_NOTICES_OPEN, DRIVER, 0, 1), -EINVAL));
	cr_assert(eq(int, answer(HMM_OP_NOTICES_OPEN, DRIVER, 0, 2ULL << HMM_EVENT_KIND_LOST), -EINVAL));
	cr_assert(eq(int, answer(HMM_OP_NOTICES_CLOSE, DRIVER, 1, 0), -ENOENT));
	cr_assert(eq(ptr, TAILQ_FIRST(&fixture.owner->listeners), NULL));
	fixture_end(&fixture);
}

Test(notice, so_many_for_a_connection)
{
	fixture_begin_faked(&fixture, POOL);
	for (int i = 0; i < 8; i++)
		cr_assert(eq(int, answer(HMM_OP_NOTICES_OPEN, DRIVER, 64, 0), 0));
	cr_assert(eq(int, answer(HMM_OP_NOTICES_OPEN, DRIVER, 64, 0), -EMFILE));
	cr_assert(eq(int, answer(HMM_OP_NOTICES_OPEN, DRIVER + 1, 64, 0), 0));
	/* Another's can't be closed; one's own can, once. */
	cr_assert(eq(int, answer(HMM_OP_NOTICES_CLOSE, DRIVER + 1, 1, 0), -ENOENT));
	cr_assert(eq(int, answer(HMM_OP_NOTICES_CLOSE, DRIVER, 1, 0), 0));
	cr_assert(eq(int, answer(HMM_OP_NOTICES_CLOSE, DRIVER, 1, 0), -ENOENT));
	cr_assert(eq(int, answer(HMM_OP_NOTICES_OPEN, DRIVER, 64, 0), 0));
	owner_peer_gone(fixture.owner, DRIVER);
	cr_assert(eq(u64, TAILQ_FIRST(&fixture.owner->listeners)->peer, DRIVER + 1));
	cr_assert(eq(ptr, TAILQ_NEXT(TAILQ_FIRST(&fixture.owner->listeners), link), NULL));
	fixture_end(&fixture);
}

Test(notice, the_ring_is_not_the_listener_s_to_write)
{
	struct letter *letter;
	void *map;

	fixture_begin_faked(&fixture, POOL);
	letter = ask(HMM_OP_NOTICES_OPEN, DRIVER, 100, 0);
	cr_assert(eq(int, letter->error, 0));
	cr_assert(eq(uint, ((struct hmm_msg_notices_open_reply *)letter->reply)->entries, 128));
	map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, letter->reply_fds[0], 0);
	cr_assert(eq(ptr, map, MAP_FAILED));
	map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, letter->reply_fds[1], 0);
	cr_assert(ne(ptr, map, MAP_FAILED));
	munmap(map, 4096);
	cr_assert(eq(int, ftruncate(letter->reply_fds[1], 0), -1), "hmmd reads there");
	letter_free(letter);
	fixture_end(&fixture);
}

Test(notice, told_once_and_by_kind)
{
	struct letter *letter;

	fixture_begin_faked(&fixture, POOL);
	cr_assert(eq(int, answer(HMM_OP_NOTICES_OPEN, DRIVER, 64, 1 << HMM_EVENT_KIND_EVICT), 0));
	notice(fixture.owner, (struct hmm_notice){ .kind = HMM_EVENT_KIND_POISON });
	cr_assert(eq(ptr, mailbox_take(&fixture.outbox), NULL), "it is not what was asked for");
	notice(fixture.owner, (struct hmm_notice){ .kind = HMM_EVENT_KIND_EVICT });
	notice(fixture.owner, (struct hmm_notice){ .kind = HMM_EVENT_KIND_EVICT });
	letter = mailbox_take(&fixture.outbox);
	cr_assert(ne(ptr, letter, NULL));
	cr_assert(eq(ptr, letter->next, NULL), "only the first finds the ring empty");
	cr_assert(eq(int, letter->kind, LETTER_EVENT));
	cr_assert(eq(int, letter->message->opcode, HMM_OP_NOTICES));
	cr_assert(eq(u64, letter->peer, DRIVER));
	letter_free(letter);
	cr_assert(eq(u64, TAILQ_FIRST(&fixture.owner->listeners)->produced, 2));
	fixture_end(&fixture);
}
