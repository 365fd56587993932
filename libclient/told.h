/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* told.h - what the program has told the kernel of memory whose mapping is to be exchanged. */
#ifndef HMMC_TOLD_H
#define HMMC_TOLD_H

#include <stdint.h>

struct hmm;

/*
 * From here to the end what was told of these blocks holds for the mappings that come in their place. In a
 * thread of the program. 0; -EOPNOTSUPP with words: it can't hold there; -ENOMEM, or what reading failed with.
 */
struct told *hmmc_told_begin(struct hmm *hmm, uint64_t start, uint64_t end, int *error);
/* Of ordinary memory that is to be coherent, or the reverse: whether that may be. 0 or -EOPNOTSUPP with words. */
int hmmc_told_check(const struct told *told, int cohere);
/* NULL is allowed. */
void hmmc_told_end(struct told *told);
/* In the agent: @map is to be the mapping of the block at @block. Before anybody sees it. */
void hmmc_told_pass_on(uint64_t block, void *map);
/* After fork, in the child. */
void hmmc_told_forget(void);

#endif
