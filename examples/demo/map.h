/* SPDX-License-Identifier: GPL-2.0-or-later */
/* map.h - a picture of where the index lies. */
#ifndef DEMO_MAP_H
#define DEMO_MAP_H

#include "board.h"

struct hmm_mirror;

/* Prints one line for each run of neighbouring blocks. */
void map_print(const char *when, const struct hmm_mirror *mirror, const struct blocks *blocks);

#endif
