/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * selection.h - the same selectors for every command: --pid, --owner, --mirror,
 * --device and addresses. Of one kind any may fit, and each kind that is given
 * must; nothing given selects everything.
 */
#ifndef HMMCTL_SELECTION_H
#define HMMCTL_SELECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hmm_protocol.h"

#define MOST_SELECTORS 64

struct link;

struct address_range {
	uint64_t start, end;
};

struct selection {
	uint32_t pids[MOST_SELECTORS], owners[MOST_SELECTORS], mirrors[MOST_SELECTORS];
	const char *devices[MOST_SELECTORS];
	struct address_range ranges[MOST_SELECTORS];
	size_t n_pids, n_owners, n_mirrors, n_devices, n_ranges;
};

/* Each takes one selector's text. Return: false when it is none; stderr says why. */
bool selection_add_pid(struct selection *selection, const char *text);
bool selection_add_owner(struct selection *selection, const char *text);
bool selection_add_mirror(struct selection *selection, const char *text);
bool selection_add_device(struct selection *selection, const char *text);
bool selection_add_range(struct selection *selection, const char *text);

bool selection_is_empty(const struct selection *selection);

/* What fits, in *list (free() it). Return: how many, or a negative errno. */
long select_owners(const struct selection *selection, struct link *link,
		   struct hmm_record_owner_info **list);
long select_mirrors(const struct selection *selection, struct link *link,
		    struct hmm_record_mirror_info **list);

/*
 * The owner's mapped ranges that pages can move in, cut to the selected
 * addresses; in *list (free() it). Return: how many, or a negative errno.
 */
long select_ranges(const struct selection *selection, struct link *link, uint32_t owner,
		   struct address_range **list);

#endif
