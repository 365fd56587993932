/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * track.c - a track's bitmaps. Runs on the owner's worker.
 *
 * A look marks every track that has the page, whoever asked for it: looking begins anew in
 * the kernel, so what is not marked then is never known. Who asks takes the
 * marks out of its own track alone.
 *
 * What can fail: memory, when a track is made.
 */
#include <stdlib.h>
#include <string.h>

#include "tracking/tracking.h"

static uint64_t words(uint64_t pages)
{
	return (pages + 63) / 64;
}

/* Bits first .. end of a word's worth: those of [first, end) that lie in word @w. */
static uint64_t mask_of(uint64_t w, uint64_t first, uint64_t end)
{
	uint64_t low = first > w * 64 ? first - w * 64 : 0;
	uint64_t high = end < (w + 1) * 64 ? end - w * 64 : 64;
	uint64_t below = high == 64 ? ~0ULL : (1ULL << high) - 1;

	return below & ~((1ULL << low) - 1);
}

struct track *track_new(uint32_t id, uint64_t peer, uint64_t start, uint64_t end)
{
	uint64_t pages = (end - start) >> HMM_PAGE_SHIFT, n = words(pages);
	struct track *track = calloc(1, sizeof(*track));

	if (!track)
		return NULL;
	TAILQ_INIT(&track->waiting);
	track->id = id;
	track->peer = peer;
	track->start = start;
	track->end = end;
	track->written = malloc(n * sizeof(uint64_t));
	track->presumed = malloc(n * sizeof(uint64_t));
	track->gap = calloc(n, sizeof(uint64_t));
	track->unseen = calloc(n, sizeof(uint64_t));
	if (!track->written || !track->presumed || !track->gap || !track->unseen)
		return track_free(track);
	/* Nobody has looked: all of it. */
	for (uint64_t w = 0; w < n; w++)
		track->written[w] = track->presumed[w] = mask_of(w, 0, pages);
	return track;
}

struct track *track_free(struct track *track)
{
	if (!track)
		return NULL;
	free(track->written);
	free(track->presumed);
	free(track->gap);
	free(track->unseen);
	free(track);
	return NULL;
}

static void sight_word(struct track *track, uint64_t w, uint64_t mask, enum sight sight)
{
	uint64_t gap = track->gap[w] & mask, unseen = track->unseen[w] & mask, changed = mask;

	/* The first look at what nobody looked at before says nothing of the time until then. */
	if (sight == SIGHT_CLEAN)
		changed = gap | unseen;
	else if (sight == SIGHT_GAP)
		changed &= ~gap;
	track->gap[w] = (track->gap[w] & ~mask) | (sight == SIGHT_GAP ? mask : 0);
	track->unseen[w] = (track->unseen[w] & ~mask) | (sight == SIGHT_PRESUMED ? mask : 0);
	/* What was presumed before stays so: nobody knows when it was written, if it was. */
	if (sight == SIGHT_PRESUMED || sight == SIGHT_CLEAN)
		track->presumed[w] |= changed & ~track->written[w];
	track->written[w] |= changed;
}

void track_mark(struct track *track, uint64_t start, uint64_t end)
{
	uint64_t first = (start - track->start) >> HMM_PAGE_SHIFT, last = (end - track->start) >> HMM_PAGE_SHIFT;

	for (uint64_t w = first / 64; w * 64 < last; w++)
		track->written[w] |= mask_of(w, first, last);
}

void track_sight(struct tracker *tracker, uint64_t start, uint64_t end, enum sight sight)
{
	struct track *track;

	TAILQ_FOREACH(track, &tracker->tracks, link) {
		uint64_t from = start > track->start ? start : track->start;
		uint64_t to = end < track->end ? end : track->end;
		uint64_t first, last;

		if (from >= to)
			continue;
		first = (from - track->start) >> HMM_PAGE_SHIFT;
		last = (to - track->start) >> HMM_PAGE_SHIFT;
		for (uint64_t w = first / 64; w * 64 < last; w++)
			sight_word(track, w, mask_of(w, first, last), sight);
	}
}

/* @base: where bit 0 of @word would go; what is set lies at or after bit 0 of @bits. */
static void store_bits(uint64_t *bits, uint64_t word, uint64_t base)
{
	for (; word; word &= word - 1) {
		uint64_t bit = base + (uint64_t)__builtin_ctzll(word);

		bits[bit / 64] |= 1ULL << (bit % 64);
	}
}

void track_presumed(const struct track *track, uint64_t start, uint64_t end, uint64_t *bits, uint64_t at)
{
	uint64_t first = (start - track->start) >> HMM_PAGE_SHIFT;
	uint64_t last = (end - track->start) >> HMM_PAGE_SHIFT;

	for (uint64_t w = first / 64; w * 64 < last; w++)
		store_bits(bits, track->written[w] & track->presumed[w] & mask_of(w, first, last), at + w * 64 - first);
}

uint64_t track_tell(struct track *track, uint64_t start, uint64_t end, bool clear, uint64_t *bits,
		    uint64_t at, uint64_t *presumed)
{
	uint64_t first = (start - track->start) >> HMM_PAGE_SHIFT;
	uint64_t last = (end - track->start) >> HMM_PAGE_SHIFT, n = 0;

	for (uint64_t w = first / 64; w * 64 < last; w++) {
		uint64_t mask = mask_of(w, first, last), found = track->written[w] & mask;

		n += (uint64_t)__builtin_popcountll(found);
		*presumed += (uint64_t)__builtin_popcountll(track->presumed[w] & found);
		store_bits(bits, found, at + w * 64 - first);
		if (clear) {
			track->written[w] &= ~mask;
			track->presumed[w] &= ~mask;
		}
	}
	return n;
}
