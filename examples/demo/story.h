/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * story.h - what happens to the index, step by step. The owner lives it with
 * its memory mirrored, the third count repeats it without hmmd: the same steps
 * in the same order, so that every byte must come out the same.
 */
#ifndef DEMO_STORY_H
#define DEMO_STORY_H

#include "board.h"
#include "corpus.h"
#include "index.h"

#define STORY_GROWTH		32	/* documents that are added later */
#define STORY_GROWTH_BYTES	512	/* of text, each at most */
#define STORY_QUERIES		4	/* after each of them */

struct story {
	const struct board *board;
	const struct corpus *corpus;
	struct index *index;
	uint64_t queries;	/* so far */
};

/* Indexes documents until board->options.size is reached. Return: 0 or -ENOMEM. */
int story_build(struct story *story, struct blocks *blocks);
/* One more document, and some queries. Return: 0 or -ENOMEM. */
int story_grow(struct story *story);
void story_query(struct story *story);

#endif
