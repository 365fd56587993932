/* SPDX-License-Identifier: GPL-2.0-or-later */
/* choose.h - which engine finds what is written. */
#ifndef HMMD_TRACKING_CHOOSE_H
#define HMMD_TRACKING_CHOOSE_H

#include <stdint.h>

#include "kernel/kernel.h"

struct tracking_ops;

#define TRACKING_ENGINES 3U

/* What the configuration says. */
enum tracking_wish { TRACKING_AUTO, TRACKING_PAGEMAP_SCAN, TRACKING_UFFD_WP, TRACKING_SOFT_DIRTY };

struct tracking_choice {
	const struct tracking_ops *ops;			/* NULL: none */
	char why[TRACKING_ENGINES][200];		/* why each other one is not in use; "": it is */
};

void tracking_choose(struct tracking_choice *choice, enum tracking_wish wish, const struct kernel_facts *facts);
/* The HMM_FEATURE_TRACK_* of the one in use, or 0. */
uint64_t tracking_feature(const struct tracking_choice *choice);
/* Of a HMM_FEATURE_TRACK_*; NULL: it is none. */
const char *tracking_why_not(const struct tracking_choice *choice, uint64_t feature);
/* Why there is none at all. */
const char *tracking_why_none(const struct tracking_choice *choice, enum tracking_wish wish);

#endif
