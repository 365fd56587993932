/* SPDX-License-Identifier: GPL-2.0-or-later */
/* surroundings.h - whether a program that is started here could be mirrored. */
#ifndef HMMCTL_SURROUNDINGS_H
#define HMMCTL_SURROUNDINGS_H

#include "link.h"

/* Adds to the @count findings of the hmmd that @asked leads to. */
void surroundings_examine(const struct link *asked, struct hmm_record_finding **findings, long *count);

#endif
