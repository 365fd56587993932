/* SPDX-License-Identifier: GPL-2.0-or-later */
/* count.h - the count that the owner, the driver and the process without hmmd each make. */
#ifndef DEMO_COUNT_H
#define DEMO_COUNT_H

#include "board.h"
#include "index.h"
#include "view.h"

/*
 * Walks every word and every posting of @index and fills @who's results.
 * @write: write the scores and answers into the index on the way.
 * Return: how many words; -1: more than the board has room for, or the view's
 *	error is set.
 */
long count_words(struct board *board, enum who who, struct view *view, struct index *index,
		 bool write);

/* Whether every word holds the answer that the driver had to write there. */
bool count_answers_hold(const struct board *board, const struct index *index);

#endif
