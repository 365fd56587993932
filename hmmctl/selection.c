// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * selection.c - reads selectors and finds what they fit.
 *
 * The lists come whole from hmmd and are cut here: they are short, and so the
 * rules are the same for every command. Fails as the link does. Main thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "link.h"
#include "number.h"
#include "selection.h"

#define PAGE 4096UL

static bool complain(const char *what, const char *text, const char *wanted)
{
	fprintf(stderr, "hmmctl: %s '%s': %s\n", what, text, wanted);
	return false;
}

static bool add_number(uint32_t *list, size_t *n, const char *what, const char *text)
{
	uint64_t value;

	if (!parse_number(text, UINT32_MAX, &value) || !value)
		return complain(what, text, "a number is wanted");
	if (*n == MOST_SELECTORS)
		return complain(what, text, "too many of them");
	list[(*n)++] = (uint32_t)value;
	return true;
}

bool selection_add_pid(struct selection *selection, const char *text)
{
	return add_number(selection->pids, &selection->n_pids, "--pid", text);
}

bool selection_add_owner(struct selection *selection, const char *text)
{
	return add_number(selection->owners, &selection->n_owners, "--owner", text);
}

bool selection_add_mirror(struct selection *selection, const char *text)
{
	return add_number(selection->mirrors, &selection->n_mirrors, "--mirror", text);
}

bool selection_add_device(struct selection *selection, const char *text)
{
	if (!*text || strlen(text) > 63)
		return complain("--device", text, "a name of 1 to 63 characters is wanted");
	if (selection->n_devices == MOST_SELECTORS)
		return complain("--device", text, "too many of them");
	selection->devices[selection->n_devices++] = text;
	return true;
}

bool selection_add_range(struct selection *selection, const char *text)
{
	struct address_range range;

	if (!parse_range(text, &range.start, &range.end))
		return complain("addresses", text, "START-END or START+LENGTH is wanted, as in "
				"7f0000000000-7f0000200000 or 7f0000000000+2M");
	if (range.start % PAGE || range.end % PAGE)
		return complain("addresses", text, "they must be multiples of 4096 (0x1000)");
	if (selection->n_ranges == MOST_SELECTORS)
		return complain("addresses", text, "too many of them");
	selection->ranges[selection->n_ranges++] = range;
	return true;
}

bool selection_is_empty(const struct selection *selection)
{
	return !selection->n_pids && !selection->n_owners && !selection->n_mirrors &&
	       !selection->n_devices && !selection->n_ranges;
}

/* An empty list fits everything. */
static bool among(const uint32_t *list, size_t n, uint32_t value)
{
	for (size_t i = 0; i < n; i++)
		if (list[i] == value)
			return true;
	return n == 0;
}

static bool device_fits(const struct selection *selection, const char *name)
{
	for (size_t i = 0; i < selection->n_devices; i++)
		if (!strcmp(selection->devices[i], name))
			return true;
	return selection->n_devices == 0;
}

static bool mirror_fits(const struct selection *selection,
			const struct hmm_record_mirror_info *mirror)
{
	return among(selection->mirrors, selection->n_mirrors, mirror->id) &&
	       device_fits(selection, mirror->device_name);
}

static bool owner_fits(const struct selection *selection, const struct hmm_record_owner_info *owner,
		       const struct hmm_record_mirror_info *mirrors, long n_mirrors)
{
	if (!among(selection->owners, selection->n_owners, owner->id) ||
	    !among(selection->pids, selection->n_pids, owner->pid))
		return false;
	if (!selection->n_mirrors && !selection->n_devices)
		return true;
	for (long i = 0; i < n_mirrors; i++)
		if (mirrors[i].owner == owner->id && mirror_fits(selection, &mirrors[i]))
			return true;
	return false;
}

static long all_mirrors(struct link *link, struct hmm_record_mirror_info **list)
{
	struct hmm_msg_mirrors request;

	HMM_MSG_INIT(request, HMM_OP_MIRRORS, 0);
	return link_list(link, &request, sizeof(**list), list);
}

long select_owners(const struct selection *selection, struct link *link,
		   struct hmm_record_owner_info **list)
{
	struct hmm_record_mirror_info *mirrors = NULL;
	struct hmm_msg_owners request;
	long n, n_mirrors, kept = 0;

	n_mirrors = all_mirrors(link, &mirrors);
	if (n_mirrors < 0)
		return n_mirrors;
	HMM_MSG_INIT(request, HMM_OP_OWNERS, 0);
	n = link_list(link, &request, sizeof(**list), list);
	for (long i = 0; i < n; i++)
		if (owner_fits(selection, &(*list)[i], mirrors, n_mirrors))
			(*list)[kept++] = (*list)[i];
	free(mirrors);
	return n < 0 ? n : kept;
}

long select_mirrors(const struct selection *selection, struct link *link,
		    struct hmm_record_mirror_info **list)
{
	struct hmm_record_owner_info *owners = NULL;
	long n, n_owners, kept = 0;

	n_owners = select_owners(selection, link, &owners);
	if (n_owners < 0)
		return n_owners;
	n = all_mirrors(link, list);
	for (long i = 0; i < n; i++) {
		bool fits = mirror_fits(selection, &(*list)[i]);

		for (long j = 0; fits && j < n_owners; j++) {
			if (owners[j].id != (*list)[i].owner)
				continue;
			(*list)[kept++] = (*list)[i];
			break;
		}
	}
	free(owners);
	return n < 0 ? n : kept;
}

/* Appends the part of [start, end) that is selected. */
static size_t cut(const struct selection *selection, uint64_t start, uint64_t end,
		  struct address_range *out)
{
	size_t n = 0;

	if (!selection->n_ranges) {
		out[0] = (struct address_range){ start, end };
		return 1;
	}
	for (size_t i = 0; i < selection->n_ranges; i++) {
		uint64_t low = selection->ranges[i].start, high = selection->ranges[i].end;

		if (low < start)
			low = start;
		if (high > end)
			high = end;
		if (low < high)
			out[n++] = (struct address_range){ low, high };
	}
	return n;
}

long select_ranges(const struct selection *selection, struct link *link, uint32_t owner,
		   struct address_range **list)
{
	size_t each = selection->n_ranges ? selection->n_ranges : 1, kept = 0;
	struct hmm_record_range_info *ranges;
	struct hmm_msg_layout request;
	long n;

	HMM_MSG_INIT(request, HMM_OP_LAYOUT, 0);
	request.owner = owner;
	n = link_list(link, &request, sizeof(*ranges), &ranges);
	if (n < 0)
		return n;
	*list = calloc((size_t)n * each + 1, sizeof(**list));
	for (long i = 0; *list && i < n; i++)
		kept += cut(selection, ranges[i].start, ranges[i].end, *list + kept);
	free(ranges);
	return *list ? (long)kept : link_fail(link, -ENOMEM, "out of memory");
}
