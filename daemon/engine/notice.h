/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * notice.h - what became of an owner's pages, told to whoever listens. With no
 * listener a notice costs the test of a pointer.
 */
#ifndef HMMD_NOTICE_H
#define HMMD_NOTICE_H

#include "engine/owner.h"

/* One ring, for one connection. */
struct listener {
	TAILQ_ENTRY(listener) link;	/* owner->listeners */
	uint32_t id;
	uint64_t peer;
	uint64_t mask;			/* 1 << kind */
	uint32_t entries;
	uint64_t produced;		/* what the ring says is only said by hmmd, but kept here too */
	int ring_fd, reader_fd;
	struct hmm_notices *ring;
	const struct hmm_notices_reader *reader;
};

/*
 * Stores a record, or counts it as dropped where the reader has left no room: the
 * oldest stay. Return: whether the ring was empty, so that the reader has to be told.
 */
bool listener_put(struct listener *listener, const struct hmm_notice *record);

void notice_request(struct owner *owner, struct letter *letter);	/* NOTICES_OPEN, _CLOSE */
void notice_peer_gone(struct owner *owner, uint64_t peer);
/* The owner goes: listeners are told that nothing more will come. */
void notice_deinit(struct owner *owner);

void notice_send(struct owner *owner, struct hmm_notice *record);
void notice_send_pages(const struct block *block, uint32_t kind, const struct pages *pages);

static inline void notice(struct owner *owner, struct hmm_notice record)
{
	if (!TAILQ_EMPTY(&owner->listeners))
		notice_send(owner, &record);
}

/* These pages of a block whose transit is about to end, with its reason. */
static inline void notice_pages(const struct block *block, uint32_t kind, const struct pages *pages)
{
	if (!TAILQ_EMPTY(&block->owner->listeners))
		notice_send_pages(block, kind, pages);
}

/* They came home; an eviction has a kind of its own, however it was done. */
static inline void notice_home(const struct block *block, const struct pages *pages)
{
	notice_pages(block, block->move.reason == HMM_REASON_EVICT ? HMM_EVENT_KIND_EVICT :
								     HMM_EVENT_KIND_MIGRATE_HOME, pages);
}

#endif
