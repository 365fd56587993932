/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * far_driver.c - the drivers of memory that only they reach: what they answer to
 * what far.c asks, which of their pages are free again, and their coming and
 * going. Runs on the owner's worker.
 *
 * Happy path: the program that called hmm_devmem_add() makes a mirror and says
 * DEVMEM_READY; what is asked of it is sent, it answers DEVMEM_STORED and
 * DEVMEM_FETCHED, and is told by DEVMEM_FREE of pages that nobody needs any more.
 *
 * A driver that comes back says first that nothing goes on any more of what it was
 * asked on an earlier connection (DEVMEM_READY): a late copy must not meet new bytes
 * in the shadow. It learns which pages are in use; asks wait for that. One that has
 * died, or does not come back in time, has lost what it had: far_lose_all().
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "engine/far.h"
#include "engine/far_bar.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"

#define NUMBERS_MAX	8192U		/* of one message */

/* ---- the driver's free pages ------------------------------------------------------------- */

void far_release(struct mirror *mirror, uint32_t number)
{
	uint32_t *more;

	if (device_has_bar(mirror->device)) {
		far_bar_release(mirror, number);
		return;
	}
	/* One that comes back is told which are in use. */
	if (!mirror->peer)
		return;
	if (mirror->freed_count == mirror->freed_room) {
		unsigned int room = mirror->freed_room ? mirror->freed_room * 2 : 512;

		more = realloc(mirror->freed, room * sizeof(*more));
		if (!more) {
			log_error("mirror %u: out of memory: a page of its driver's memory stays in use",
				  mirror->id);
			return;
		}
		mirror->freed = more;
		mirror->freed_room = room;
	}
	mirror->freed[mirror->freed_count++] = number;
}

void far_flush(struct mirror *mirror)
{
	unsigned int done = 0;

	if (!mirror->ready || !mirror->peer || !mirror->freed_count)
		return;
	while (done < mirror->freed_count) {
		unsigned int n = mirror->freed_count - done;
		struct hmm_msg_devmem_free *message;

		if (n > NUMBERS_MAX)
			n = NUMBERS_MAX;
		message = malloc(sizeof(*message) + n * sizeof(uint32_t));
		if (!message)
			break;
		hmm_wire_init(message, HMM_OP_DEVMEM_FREE, sizeof(*message) + n * sizeof(uint32_t), 0);
		message->mirror = mirror->id;
		message->count = n;
		memcpy(message->numbers, mirror->freed + done, n * sizeof(uint32_t));
		if (!worker_event(mirror->owner->worker, mirror->peer, message, -1))
			break;
		done += n;
	}
	mirror->freed_count -= done;
	memmove(mirror->freed, mirror->freed + done, mirror->freed_count * sizeof(uint32_t));
}

void far_flush_all(struct owner *owner)
{
	for (unsigned int i = 0; i < MIRRORS_MAX; i++)
		if (owner->mirror[i])
			far_flush(owner->mirror[i]);
}

/* ---- requests ------------------------------------------------------------------------------- */

int far_check_driver(const struct owner *owner, const struct device *device, struct letter *letter)
{
	pid_t driver = atomic_load(&device->driver);

	if (!device_is_far(device))
		return 0;
	if (device_has_bar(device))
		return owner->pid > 0 ? 0 :
		       letter_fail(letter, -EOPNOTSUPP, "%s is a card's BAR: it is for programs whose pid hmmd sees", device->name);
	if (letter->pid == owner->pid)
		return letter_fail(letter, -EOPNOTSUPP,
				   "%s has memory that only its driver reaches: a driver in the owner itself would wait for its own pages; run it in another process",
				   device->name);
	if (!atomic_load(&device->far_pages) || letter->pid != driver)
		return letter_fail(letter, -EOPNOTSUPP,
				   "%s has memory that only its driver reaches: the process that called hmm_devmem_add() has its mirrors, and after that",
				   device->name);
	return 0;
}

struct listing {
	struct mirror *mirror;
	struct hmm_msg_devmem_ready_reply *reply;
};

static void list_block(struct block *block, void *data)
{
	struct listing *listing = data;
	struct hmm_msg_devmem_ready_reply *reply = listing->reply;

	if (block_mirror(block) != listing->mirror || reply->more)
		return;
	if (reply->count + HMM_BLOCK_PAGES > NUMBERS_MAX) {
		reply->more = 1;
		reply->next = block->addr;
		return;
	}
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (page_is_far(block, i))
			reply->numbers[reply->count++] = block_far_number(block, i);
}

static void resume(struct mirror *mirror)
{
	struct ask *ask;

	mirror->ready = true;
	mirror->far_deadline = 0;
	far_flush(mirror);
	TAILQ_FOREACH(ask, &mirror->owner->asks, link)
		if (ask->mirror == mirror)
			far_ask_send(ask);
}

static int ready(struct mirror *mirror, struct letter *letter)
{
	const struct hmm_msg_devmem_ready *message = (const void *)letter->message;
	struct hmm_journal_mirror *note = &mirror->owner->journal->mirror[mirror->index];
	struct hmm_msg_devmem_ready_reply *reply;
	struct listing listing = { .mirror = mirror };

	if (!device_is_far(mirror->device) || device_has_bar(mirror->device) || message->token != atomic_load(&mirror->device->token))
		return letter_fail(letter, -EINVAL, "the device has no memory of that number");
	reply = letter_reply(letter, HMM_OP_DEVMEM_READY_REPLY, sizeof(*reply) + NUMBERS_MAX * sizeof(uint32_t));
	if (!reply)
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	if (note->token != message->token && mirror->far_pages)
		far_lose_all(mirror, "another driver has come");
	note->token = message->token;
	note->driver = letter->pid;
	listing.reply = reply;
	block_for_each(mirror->owner, message->cursor, HMM_VA_END, list_block, &listing);
	reply->header.size = (uint32_t)(sizeof(*reply) + reply->count * sizeof(uint32_t));
	if (!reply->more)
		resume(mirror);
	return 0;
}

struct search {
	const struct mirror *mirror;
	const struct hmm_msg_devmem_stored *message;
	uint64_t *moved;
};

static void search_block(struct block *block, void *data)
{
	const struct search *search = data;

	if (block_mirror(block) != search->mirror)
		return;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		for (unsigned int k = 0; page_is_far(block, i) && k < search->message->count; k++)
			if (search->message->numbers[k] == block_far_number(block, i))
				search->moved[k / 64] |= 1ULL << (k % 64);
}

static struct ask *find_ask(const struct mirror *mirror, uint64_t cookie, unsigned int count)
{
	struct ask *ask;

	TAILQ_FOREACH(ask, &mirror->owner->asks, link)
		if (ask->mirror == mirror && ask->cookie == cookie && ask->sent &&
		    pages_count(&ask->pages) == count)
			return ask;
	return NULL;
}

static int answer_stored(struct mirror *mirror, struct letter *letter)
{
	const struct hmm_msg_devmem_stored *message = (const void *)letter->message;
	struct ask *ask = find_ask(mirror, message->cookie, message->count);
	struct hmm_msg_devmem_stored_reply *reply;
	struct search search = { .mirror = mirror, .message = message };

	if (message->count > HMM_BLOCK_PAGES)
		return letter_fail(letter, -EINVAL, "%u pages: a block has %u", message->count, HMM_BLOCK_PAGES);
	reply = letter_reply(letter, HMM_OP_DEVMEM_STORED_REPLY, sizeof(*reply) + sizeof(struct pages));
	if (!reply) {
		if (ask && far_is_store(ask))
			far_stored(ask, NULL, NULL);
		return letter_fail(letter, -ENOMEM, "out of memory for the answer: the pages stay here");
	}
	reply->count = HMM_BITMAP_WORDS;
	search.moved = reply->moved;
	if (ask && far_is_store(ask))
		far_stored(ask, message->numbers, reply->moved);
	else
		/* Said again after a restart: what the ledger says of them is the truth. */
		block_for_each(mirror->owner, 0, HMM_VA_END, search_block, &search);
	return 0;
}

static int answer_fetched(struct mirror *mirror, struct letter *letter)
{
	const struct hmm_msg_devmem_fetched *message = (const void *)letter->message;
	struct ask *ask = find_ask(mirror, message->cookie, message->count);

	/* Of an earlier connection it is void: it is asked again. */
	if (ask && !far_is_store(ask))
		far_fetched(ask, message->results);
	if (!letter_reply(letter, HMM_OP_DEVMEM_FETCHED_REPLY, sizeof(struct hmm_msg_devmem_fetched_reply)))
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	return 0;
}

void far_request(struct owner *owner, struct letter *letter)
{
	/* All three begin with it. */
	uint32_t id = ((const struct hmm_msg_devmem_ready *)(const void *)letter->message)->mirror;
	struct mirror *mirror = mirror_by_id(owner, id);

	_Static_assert(offsetof(struct hmm_msg_devmem_ready, mirror) == offsetof(struct hmm_msg_devmem_stored, mirror) &&
		       offsetof(struct hmm_msg_devmem_ready, mirror) == offsetof(struct hmm_msg_devmem_fetched, mirror),
		       "the same place");
	if (!mirror || mirror->peer != letter->peer)
		letter_fail(letter, -ENOENT, "no mirror %u of this driver", id);
	else if (letter->message->opcode == HMM_OP_DEVMEM_READY)
		ready(mirror, letter);
	else if (letter->message->opcode == HMM_OP_DEVMEM_STORED)
		answer_stored(mirror, letter);
	else
		answer_fetched(mirror, letter);
	worker_reply(owner->worker, letter);
}

/* ---- drivers that go --------------------------------------------------------------------------- */

void far_peer_gone(struct mirror *mirror)
{
	struct ask *ask;

	if (!device_is_far(mirror->device) || device_has_bar(mirror->device))
		return;
	mirror->ready = false;
	mirror->freed_count = 0;
	/* Nobody waits for its end, and it can't come without its driver, who asks for it again when he is back. */
	mirror->leaving = false;
	far_refuse_stores(mirror);
	TAILQ_FOREACH(ask, &mirror->owner->asks, link)
		if (ask->mirror == mirror)
			ask->sent = false;
	worker_alarm(mirror->owner->worker, mirror->owner->worker->now);
}

/* A driver that has died does not come back; another one is waited for as long as hmmd itself would be. */
static void await_driver(struct mirror *mirror, int64_t now)
{
	struct owner *owner = mirror->owner;
	pid_t driver = owner->journal->mirror[mirror->index].driver;

	if (!mirror->far_deadline)
		mirror->far_deadline = now + owner_grace_ns(owner);
	if (driver && !process_is_alive(driver))
		far_lose_all(mirror, "its driver has died");
	else if (now >= mirror->far_deadline)
		far_lose_all(mirror, "its driver did not come back");
	else
		worker_alarm(owner->worker, now + LOOK_NS);
}

void far_tick(struct owner *owner, int64_t now)
{
	struct ask *ask;

	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		struct mirror *mirror = owner->mirror[i];

		if (!mirror || !device_is_far(mirror->device) || device_has_bar(mirror->device))
			continue;
		if (mirror->far_pages && !mirror->ready)
			await_driver(mirror, now);
	}
	far_flush_all(owner);
	far_bar_recall(owner, now);
	far_bar_tick(owner, now);
	TAILQ_FOREACH(ask, &owner->asks, link) {
		if (!ask->again || device_has_bar(ask->mirror->device))
			continue;
		if (ask->again <= now)
			far_ask_send(ask);
		else
			worker_alarm(owner->worker, ask->again);
	}
}
