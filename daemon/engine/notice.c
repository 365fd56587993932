/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * notice.c - rings of notices. Runs on the owner's worker.
 *
 * Happy path: a listener asks for a ring and gets two memfds: the ring itself, which
 * it can only read, and a page in which it says how far it has read. hmmd stores a
 * record, then `produced`, then looks at `consumed`; the listener stores `consumed`,
 * then looks at `produced`. So either it sees the record by itself, or hmmd sees that the ring
 * had been empty and sends one message. Nothing is sent to a listener that has not
 * caught up.
 *
 * A full ring loses what is new, and counts it. What `consumed` says is not trusted: a value that
 * cannot be makes the ring look full, to the harm of who wrote it.
 *
 * A ring is not handed to a successor: the library asks the next hmmd for another.
 *
 * What can fail: descriptors, memory, more rings than a connection may have. Control has
 * charged for what a ring takes before it is asked for here.
 */
#include "engine/notice.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/worker.h"

#define LISTENERS_PER_PEER	8U
#define LISTENERS_PER_OWNER	64U
#define ALL_KINDS		(((2ULL << HMM_EVENT_KIND_LOST) - 1) & ~1ULL)

bool listener_put(struct listener *listener, const struct hmm_notice *record)
{
	struct hmm_notices *ring = listener->ring;
	uint64_t produced = listener->produced;
	uint64_t consumed = __atomic_load_n(&listener->reader->consumed, __ATOMIC_ACQUIRE);

	if (consumed > produced || produced - consumed >= listener->entries) {
		__atomic_store_n(&ring->dropped, ring->dropped + 1, __ATOMIC_RELAXED);
		return false;
	}
	ring->ring[produced % listener->entries] = *record;
	listener->produced = produced + 1;
	__atomic_store_n(&ring->produced, produced + 1, __ATOMIC_SEQ_CST);
	return __atomic_load_n(&listener->reader->consumed, __ATOMIC_SEQ_CST) == produced;
}

static void tell(struct owner *owner, const struct listener *listener, bool closed)
{
	struct hmm_msg_notices *message = malloc(sizeof(*message));

	/* Without it the reader finds what there is when it looks by itself. */
	if (!message)
		return;
	HMM_MSG_INIT(*message, HMM_OP_NOTICES, 0);
	message->owner = owner->id;
	message->notices = listener->id;
	message->closed = closed;
	worker_event(owner->worker, listener->peer, message, -1);
}

void notice_send(struct owner *owner, struct hmm_notice *record)
{
	struct listener *listener;

	record->time = (uint64_t)clock_now();
	TAILQ_FOREACH(listener, &owner->listeners, link)
		if (listener->mask & 1ULL << record->kind && listener_put(listener, record))
			tell(owner, listener, false);
}

void notice_send_pages(const struct block *block, uint32_t kind, const struct pages *pages)
{
	const struct mirror *mirror = block_mirror(block);
	struct hmm_notice record = { .kind = kind, .reason = (uint32_t)block->move.reason,
				     .mirror = mirror ? mirror->id : 0 };
	unsigned int first = 0, end;

	for (; pages_run(pages, &first, &end); first = end) {
		if (!record.pages)
			record.start = page_addr(block, first);
		record.end = block->addr + (uint64_t)end * HMM_PAGE_SIZE;
		record.pages += end - first;
	}
	if (record.pages)
		notice_send(block->owner, &record);
}

/* ---- coming and going ----------------------------------------------------------- */

static void listener_free(struct listener *listener)
{
	if (listener->ring)
		munmap(listener->ring, HMM_NOTICES_SIZE(listener->entries));
	if (listener->reader)
		munmap((void *)(uintptr_t)listener->reader, sizeof(*listener->reader));
	if (listener->ring_fd >= 0)
		close(listener->ring_fd);
	if (listener->reader_fd >= 0)
		close(listener->reader_fd);
	free(listener);
}

static struct listener *listener_by_id(struct owner *owner, uint32_t id, uint64_t peer)
{
	struct listener *listener;

	TAILQ_FOREACH(listener, &owner->listeners, link)
		if (listener->id == id && listener->peer == peer)
			return listener;
	return NULL;
}

static int make_ring(struct listener *listener)
{
	uint64_t size = HMM_NOTICES_SIZE(listener->entries);
	void *map;

	listener->ring_fd = kernel->memfd_new("hmm-notices", size, 0);
	if (listener->ring_fd < 0)
		return listener->ring_fd;
	listener->reader_fd = kernel->memfd_new("hmm-notices-reader", sizeof(*listener->reader), 0);
	if (listener->reader_fd < 0)
		return listener->reader_fd;
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, listener->ring_fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	listener->ring = map;
	map = mmap(NULL, sizeof(*listener->reader), PROT_READ, MAP_SHARED, listener->reader_fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	listener->reader = map;
	madvise(listener->ring, size, MADV_DONTDUMP);
	listener->ring->magic = HMM_NOTICES_MAGIC;
	listener->ring->version = 1;
	listener->ring->entries = listener->entries;
	return 0;
}

/* @peer 0: everybody's. */
static unsigned int count_of(struct owner *owner, uint64_t peer)
{
	struct listener *listener;
	unsigned int n = 0;

	TAILQ_FOREACH(listener, &owner->listeners, link)
		n += !peer || listener->peer == peer;
	return n;
}

static int reply_open(const struct listener *listener, struct letter *letter)
{
	struct hmm_msg_notices_open_reply *reply =
		letter_reply(letter, HMM_OP_NOTICES_OPEN_REPLY, sizeof(*reply));

	if (!reply)
		return -ENOMEM;
	letter->reply_fds[0] = owner_read_only(listener->ring_fd);
	letter->reply_fds[1] = fcntl(listener->reader_fd, F_DUPFD_CLOEXEC, 3);
	letter->n_reply_fds = 2;
	if (letter->reply_fds[0] < 0 || letter->reply_fds[1] < 0)
		return -EMFILE;
	reply->notices = listener->id;
	reply->entries = listener->entries;
	return 0;
}

static int notices_open(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_notices_open *message = (const void *)letter->message;
	struct listener *listener;
	int r;

	if (message->entries && (message->entries < HMM_NOTICES_MIN || message->entries > HMM_NOTICES_MAX))
		return letter_fail(letter, -EINVAL, "%u entries: %u to %u are possible", message->entries,
				   HMM_NOTICES_MIN, HMM_NOTICES_MAX);
	if (message->mask & ~ALL_KINDS)
		return letter_fail(letter, -EINVAL, "the mask %#lx has kinds that are not known",
				   message->mask);
	if (count_of(owner, letter->peer) >= LISTENERS_PER_PEER)
		return letter_fail(letter, -EMFILE, "this connection has %u rings of owner %u already",
				   LISTENERS_PER_PEER, owner->id);
	if (count_of(owner, 0) >= LISTENERS_PER_OWNER)
		return letter_fail(letter, -EMFILE, "%u listen to owner %u already", LISTENERS_PER_OWNER, owner->id);
	listener = calloc(1, sizeof(*listener));
	if (!listener)
		return letter_fail(letter, -ENOMEM, "out of memory for another ring");
	listener->ring_fd = listener->reader_fd = -1;
	listener->id = ++owner->next_listener;
	listener->peer = letter->peer;
	listener->mask = message->mask ? message->mask : ALL_KINDS;
	listener->entries = hmm_notices_entries(message->entries);
	r = make_ring(listener);
	if (!r)
		r = reply_open(listener, letter);
	if (r) {
		listener_free(listener);
		return letter_fail(letter, r, "no room for a ring of %u entries: %s", message->entries,
				   strerror(-r));
	}
	TAILQ_INSERT_TAIL(&owner->listeners, listener, link);
	return 0;
}

static int notices_close(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_notices_close *message = (const void *)letter->message;
	struct listener *listener = listener_by_id(owner, message->notices, letter->peer);

	if (!listener)
		return letter_fail(letter, -ENOENT, "no ring %u", message->notices);
	TAILQ_REMOVE(&owner->listeners, listener, link);
	listener_free(listener);
	if (!letter_reply(letter, HMM_OP_NOTICES_CLOSE_REPLY, sizeof(struct hmm_msg_notices_close_reply)))
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	return 0;
}

void notice_request(struct owner *owner, struct letter *letter)
{
	if (letter->message->opcode == HMM_OP_NOTICES_OPEN)
		notices_open(owner, letter);
	else
		notices_close(owner, letter);
	worker_reply(owner->worker, letter);
}

void notice_peer_gone(struct owner *owner, uint64_t peer)
{
	struct listener *listener, *next;

	for (listener = TAILQ_FIRST(&owner->listeners); listener; listener = next) {
		next = TAILQ_NEXT(listener, link);
		if (listener->peer != peer)
			continue;
		TAILQ_REMOVE(&owner->listeners, listener, link);
		listener_free(listener);
	}
}

void notice_deinit(struct owner *owner)
{
	struct listener *listener;

	while ((listener = TAILQ_FIRST(&owner->listeners))) {
		__atomic_store_n(&listener->ring->closed, 1, __ATOMIC_RELEASE);
		tell(owner, listener, true);
		TAILQ_REMOVE(&owner->listeners, listener, link);
		listener_free(listener);
	}
}
