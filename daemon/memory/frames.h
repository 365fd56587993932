/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * frames.h - which pages of a card's memory are whose. Pure: no calls, no locks.
 *
 * Whose a frame is is a number, its tag, in memory of the caller's that outlives hmmd: what a
 * successor finds there is in use. 0: it is free.
 */
#ifndef HMMD_FRAMES_H
#define HMMD_FRAMES_H

#include <stdbool.h>
#include <stdint.h>

#define FRAME_NONE UINT32_MAX

struct frames {
	uint32_t *tag;	/* of each; the caller's */
	uint64_t *full; /* a bit for each that is used */
	uint32_t count, used;
	uint32_t next; /* word of @full to look at first */
};

/* @tags: of @count frames, which stay there until frames_deinit(). 0 or -ENOMEM. */
int frames_init(struct frames *frames, uint32_t *tags, uint32_t count);
void frames_deinit(struct frames *frames);

/* A free one is @tag's from now on; FRAME_NONE: there is none. */
uint32_t frames_take(struct frames *frames, uint32_t tag);
bool frames_has(const struct frames *frames, uint32_t number, uint32_t tag);
/* It is free. False: it was not @tag's, and stays as it was. */
bool frames_put(struct frames *frames, uint32_t number, uint32_t tag);
/* Every frame that is used is asked for: it stays, or is free from now on. Return: how many are. */
uint32_t frames_sift(struct frames *frames, bool (*stays)(void *data, uint32_t number, uint32_t tag), void *data);

#endif
