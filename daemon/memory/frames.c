// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * frames.c - the frame allocator of a card's memory: a bit for each page, searched from where the
 * last one was found, and its tag in memory that a successor reads.
 *
 * The tag is written before a frame is given out, and cleared after it is given back, so whoever
 * is killed in between leaves a frame that is used by nobody, never one that is used by two.
 */
#include "memory/frames.h"

#include <errno.h>
#include <stdlib.h>

#define BITS 64U

static uint32_t words(const struct frames *frames)
{
	return (frames->count + BITS - 1) / BITS;
}

static uint32_t tag_of(const struct frames *frames, uint32_t number)
{
	return __atomic_load_n(&frames->tag[number], __ATOMIC_RELAXED);
}

static void note(struct frames *frames, uint32_t number, uint32_t tag)
{
	__atomic_store_n(&frames->tag[number], tag, __ATOMIC_RELEASE);
	if (tag)
		frames->full[number / BITS] |= 1ULL << (number % BITS);
	else
		frames->full[number / BITS] &= ~(1ULL << (number % BITS));
}

int frames_init(struct frames *frames, uint32_t *tags, uint32_t count)
{
	*frames = (struct frames){.tag = tags, .count = count};
	frames->full = calloc(words(frames) ? words(frames) : 1, sizeof(*frames->full));
	if (!frames->full)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++) {
		if (!tags[i])
			continue;
		frames->full[i / BITS] |= 1ULL << (i % BITS);
		frames->used++;
	}
	/* Those behind the last are never free. */
	if (count % BITS)
		frames->full[count / BITS] |= ~0ULL << (count % BITS);
	return 0;
}

void frames_deinit(struct frames *frames)
{
	free(frames->full);
	*frames = (struct frames){0};
}

uint32_t frames_take(struct frames *frames, uint32_t tag)
{
	uint32_t number;

	if (frames->used == frames->count)
		return FRAME_NONE;
	while (!~frames->full[frames->next])
		frames->next = (frames->next + 1) % words(frames);
	number = frames->next * BITS + (uint32_t)__builtin_ctzll(~frames->full[frames->next]);
	note(frames, number, tag);
	frames->used++;
	return number;
}

bool frames_has(const struct frames *frames, uint32_t number, uint32_t tag)
{
	return number < frames->count && tag && tag_of(frames, number) == tag;
}

bool frames_put(struct frames *frames, uint32_t number, uint32_t tag)
{
	if (!frames_has(frames, number, tag))
		return false;
	note(frames, number, 0);
	frames->used--;
	return true;
}

uint32_t frames_sift(struct frames *frames, bool (*stays)(void *data, uint32_t number, uint32_t tag), void *data)
{
	uint32_t n = 0;

	for (uint32_t word = 0; word < words(frames); word++) {
		uint64_t full = frames->full[word];

		for (; full; full &= full - 1) {
			uint32_t number = word * BITS + (uint32_t)__builtin_ctzll(full);

			/* Those behind the last are nobody's. */
			if (number >= frames->count)
				break;
			if (!stays(data, number, tag_of(frames, number)))
				n += frames_put(frames, number, tag_of(frames, number));
		}
	}
	return n;
}
