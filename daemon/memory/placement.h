/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * placement.h - on which memory nodes a pool's pages lie: as numbers, in
 * words ("bind:1", "interleave:0-1"), and held against the nodes that there are.
 */
#ifndef HMMD_PLACEMENT_H
#define HMMD_PLACEMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hmm_protocol.h"
#include "layout.h"

/* Made by placement_make() alone, so that equal ones have equal bytes. All zero but the node, -1: anywhere. */
struct placement {
	enum hmm_placement mode;
	int32_t node;		/* the only one, or -1 */
	uint64_t nodes;		/* several, of the first 64: a bit each; or 0 */
};

#define PLACEMENT_ANY	((struct placement){ .mode = HMM_PLACEMENT_ANY, .node = -1 })
#define PLACEMENT_TEXT	96U	/* enough for most; what is longer is cut */

/*
 * From what somebody asked for: @node of 0..1023, or @nodes where it is -1. 0, or -EINVAL with
 * *@why (a constant text). A node alone is HMM_PLACEMENT_BIND.
 */
int placement_make(struct placement *placement, uint32_t mode, int32_t node, uint64_t nodes, const char **why);
/* "any", "bind:1", "preferred:0", "interleave:0-1,3". 0 or -EINVAL. */
int placement_parse(struct placement *placement, const char *text);
/* The same words. Returns @text. */
const char *placement_print(const struct placement *placement, char *text, size_t size);
/* Only the nodes: "0-1,3", or "". */
const char *placement_print_nodes(const struct placement *placement, char *text, size_t size);

bool placement_same(const struct placement *one, const struct placement *other);
/* Whether every node of it is among @there, HMM_NODE_WORDS words. */
bool placement_lies_in(const struct placement *placement, const uint64_t *there);
/* Its nodes as the kernel takes them: HMM_NODE_WORDS words. */
void placement_mask(const struct placement *placement, uint64_t *mask);
/* "0-1,3": any set of nodes, HMM_NODE_WORDS words. */
const char *nodes_print(const uint64_t *nodes, char *text, size_t size);

#endif
