// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * story.c - the steps of story.h. Which word a query looks for depends on the
 * seed and on the number of the query alone. Only memory can run out.
 */
#include <errno.h>

#include "story.h"

int story_build(struct story *story, struct blocks *blocks)
{
	size_t size = story->board->options.size;

	story->index = index_new(size, blocks);
	if (!story->index)
		return -ENOMEM;
	while (story->index->bytes < size)
		if (index_add(story->index, story->corpus, SIZE_MAX))
			return -ENOMEM;
	return 0;
}

int story_grow(struct story *story)
{
	if (index_add(story->index, story->corpus, STORY_GROWTH_BYTES))
		return -ENOMEM;
	for (int i = 0; i < STORY_QUERIES; i++)
		story_query(story);
	return 0;
}

void story_query(struct story *story)
{
	index_query(story->index, scramble(story->board->options.seed + story->queries++));
}
