/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * placement.c - placements in numbers and in words. No state, no kernel calls;
 * any thread.
 *
 * What can fail: every word and number that comes from outside.
 */
#include "placement.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define NODES_MAX	(HMM_NODE_WORDS * 64)

static bool has(const uint64_t *nodes, unsigned int node)
{
	return nodes[node / 64] >> (node % 64) & 1;
}

/* A set of one node is that node. */
static void settle(struct placement *placement)
{
	if (placement->nodes && !(placement->nodes & (placement->nodes - 1))) {
		placement->node = __builtin_ctzll(placement->nodes);
		placement->nodes = 0;
	}
}

int placement_make(struct placement *placement, uint32_t mode, int32_t node, uint64_t nodes, const char **why)
{
	*placement = PLACEMENT_ANY;
	if (mode > HMM_PLACEMENT_INTERLEAVE)
		*why = "there is no such placement";
	else if (node < -1 || node >= (int)NODES_MAX)
		*why = "a memory node's number is 0 to 1023, or -1";
	else if (node >= 0 && nodes)
		*why = "node and nodes both name memory nodes: node is -1 where nodes does";
	else if (!mode && nodes)
		*why = "nodes go with a placement: bind, preferred or interleave";
	else if (mode && node < 0 && !nodes)
		*why = "a placement needs a memory node, or several";
	else
		*why = NULL;
	if (*why)
		return -EINVAL;
	placement->mode = mode ? (enum hmm_placement)mode : node < 0 ? HMM_PLACEMENT_ANY : HMM_PLACEMENT_BIND;
	placement->node = node;
	placement->nodes = nodes;
	settle(placement);
	return 0;
}

/* ---- words -------------------------------------------------------------------------- */

/* Decimal digits alone. NULL: no number, or one that is too large. */
static const char *parse_node(const char *text, unsigned int *node)
{
	if (!isdigit((unsigned char)*text))
		return NULL;
	for (*node = 0; isdigit((unsigned char)*text); text++) {
		*node = *node * 10 + (unsigned int)(*text - '0');
		if (*node >= NODES_MAX)
			return NULL;
	}
	return text;
}

/* "0-1,3", each but a single one below 64. */
static int parse_nodes(struct placement *placement, const char *text)
{
	unsigned int first, last;
	const char *rest = parse_node(text, &first);

	if (rest && !*rest) {
		placement->node = (int32_t)first;
		return 0;
	}
	for (;; text = rest + 1) {
		rest = parse_node(text, &first);
		last = first;
		if (rest && *rest == '-')
			rest = parse_node(rest + 1, &last);
		if (!rest || last < first || last >= 64 || (*rest && *rest != ','))
			return -EINVAL;
		for (; first <= last; first++)
			placement->nodes |= 1ULL << first;
		if (!*rest)
			break;
	}
	settle(placement);
	return 0;
}

int placement_parse(struct placement *placement, const char *text)
{
	struct placement made = PLACEMENT_ANY;

	if (strcmp(text, "any")) {
		const struct hmm_value_name *name = hmm_placement_names;
		size_t length = strcspn(text, ":");

		while (name->name && (strlen(name->name) != length || strncmp(name->name, text, length)))
			name++;
		if (!name->name || name->value == HMM_PLACEMENT_ANY || text[length] != ':' ||
		    parse_nodes(&made, text + length + 1))
			return -EINVAL;
		made.mode = (enum hmm_placement)name->value;
	}
	*placement = made;
	return 0;
}

const char *nodes_print(const uint64_t *nodes, char *text, size_t size)
{
	size_t used = 0;

	text[0] = '\0';
	for (unsigned int first = 0, last; first < NODES_MAX && used < size; first = last + 1) {
		last = first;
		if (!has(nodes, first))
			continue;
		while (last + 1 < NODES_MAX && has(nodes, last + 1))
			last++;
		used += (size_t)snprintf(text + used, size - used, last == first ? "%s%u" : "%s%u-%u", used ? "," : "",
					 first, last);
	}
	return text;
}

void placement_mask(const struct placement *placement, uint64_t *mask)
{
	memset(mask, 0, HMM_NODE_WORDS * sizeof(*mask));
	mask[0] = placement->nodes;
	if (placement->node >= 0)
		mask[placement->node / 64] |= 1ULL << (placement->node % 64);
}

const char *placement_print_nodes(const struct placement *placement, char *text, size_t size)
{
	uint64_t mask[HMM_NODE_WORDS];

	placement_mask(placement, mask);
	return nodes_print(mask, text, size);
}

const char *placement_print(const struct placement *placement, char *text, size_t size)
{
	char nodes[PLACEMENT_TEXT];

	if (placement->mode == HMM_PLACEMENT_ANY)
		snprintf(text, size, "any");
	else
		snprintf(text, size, "%s:%s", hmm_placement_name(placement->mode),
			 placement_print_nodes(placement, nodes, sizeof(nodes)));
	return text;
}

/* ---- sets --------------------------------------------------------------------------- */

bool placement_same(const struct placement *one, const struct placement *other)
{
	return one->mode == other->mode && one->node == other->node && one->nodes == other->nodes;
}

bool placement_lies_in(const struct placement *placement, const uint64_t *there)
{
	uint64_t mask[HMM_NODE_WORDS];

	placement_mask(placement, mask);
	for (unsigned int i = 0; i < HMM_NODE_WORDS; i++)
		if (mask[i] & ~there[i])
			return false;
	return true;
}
