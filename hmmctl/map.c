// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * map.c - `hmmctl map`: where the pages of an owner are.
 *
 * For people hmmd sums each range up into at most 64 cells; -j adds every run
 * of pages that are not simply at home. It is a moment's view: pages move while
 * it is taken.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/layout.h"
#include "hmmctl.h"
#include "output.h"

#define CELLS 64

static const char *const state_names[] = {
	[HMM_PAGE_INVALID] = "invalid",
	[HMM_PAGE_REMOTE] = "remote",
	[HMM_PAGE_SHARED] = "shared",
	[HMM_PAGE_DEVICE] = "device",
	[HMM_PAGE_COHERENT] = "coherent",
	[HMM_PAGE_ERROR] = "error",
};
#define STATES (sizeof(state_names) / sizeof(state_names[0]))

static const char legend[] =
	"  . home  D on the device  d partly  s read by both  c coherent  ~ moving  ! lost"
	"  (space) nothing there\n";

static uint64_t pages_in(const struct hmm_record_run_info *cell)
{
	return (uint64_t)cell->invalid + cell->remote + cell->shared + cell->device +
	       cell->coherent + cell->error + cell->hole + cell->transit;
}

static char cell_letter(const struct hmm_record_run_info *cell)
{
	uint64_t pages = pages_in(cell) - cell->hole;

	if (cell->error)
		return '!';
	if (cell->transit)
		return '~';
	if (!pages)
		return ' ';
	if (cell->device)
		return cell->device == pages ? 'D' : 'd';
	if (cell->coherent)
		return 'c';
	return cell->shared ? 's' : '.';
}

static void add(struct hmm_record_run_info *sum, const struct hmm_record_run_info *cell)
{
	sum->invalid += cell->invalid;
	sum->remote += cell->remote;
	sum->shared += cell->shared;
	sum->device += cell->device;
	sum->coherent += cell->coherent;
	sum->error += cell->error;
	sum->hole += cell->hole;
	sum->transit += cell->transit;
}

static void print_amount(const char *what, uint64_t pages)
{
	char text[24];

	if (pages)
		printf(" %s %s", what, output_bytes(text, pages * HMM_PAGE_SIZE));
}

static void print_range(const struct address_range *range, const char *letters,
			const struct hmm_record_run_info *sum)
{
	printf("  %012" PRIx64 "-%012" PRIx64 " [%s]", range->start, range->end, letters);
	print_amount("device", sum->device);
	print_amount("shared", sum->shared);
	print_amount("coherent", sum->coherent);
	print_amount("home", (uint64_t)sum->invalid + sum->remote);
	print_amount("moving", sum->transit);
	print_amount("lost", sum->error);
	putchar('\n');
}

/* Asks for one range's cells. Return: false when the link fails. */
static bool fetch_cells(struct context *context, uint32_t owner, const struct address_range *range,
			char letters[CELLS + 1], struct hmm_record_run_info *sum)
{
	const struct hmm_msg_cells_reply *reply;
	uint64_t pages = (range->end - range->start) / HMM_PAGE_SIZE;
	struct hmm_msg_cells request;
	uint32_t n;

	HMM_MSG_INIT(request, HMM_OP_CELLS, 0);
	request.owner = owner;
	request.cells = pages < CELLS ? (uint32_t)pages : CELLS;
	request.addr = range->start;
	request.length = range->end - range->start;
	reply = link_request(&context->link, &request);
	if (!reply)
		return false;
	memset(sum, 0, sizeof(*sum));
	for (n = 0; n < reply->count && n < CELLS; n++) {
		letters[n] = cell_letter(&reply->items[n]);
		add(sum, &reply->items[n]);
	}
	letters[n] = 0;
	return true;
}

static struct json_object *runs_json(const struct hmm_record_range_info *runs, long n)
{
	struct json_object *array = output_records(HMM_OP_RANGES_REPLY, runs, sizeof(*runs), n);

	for (long i = 0; i < n; i++)
		json_object_object_add(json_object_array_get_idx(array, (size_t)i), "state",
				       json_object_new_string(runs[i].state < STATES ?
							      state_names[runs[i].state] : "?"));
	return array;
}

/* Every run of pages in one state within the range. NULL when the link fails. */
static struct json_object *fetch_runs(struct context *context, uint32_t owner,
				      const struct address_range *range)
{
	struct hmm_record_range_info *runs;
	struct hmm_msg_ranges request;
	struct json_object *array;
	long n;

	HMM_MSG_INIT(request, HMM_OP_RANGES, 0);
	request.owner = owner;
	request.cursor = range->start;
	request.end = range->end;
	n = link_list(&context->link, &request, sizeof(*runs), &runs);
	if (n < 0)
		return NULL;
	array = runs_json(runs, n);
	free(runs);
	return array;
}

static struct json_object *range_json(const struct address_range *range, const char *letters,
				      const struct hmm_record_run_info *sum, struct json_object *runs)
{
	struct json_object *object = json_object_new_object(), *pages;

	pages = output_record(hmm_wire_message(HMM_OP_CELLS_REPLY), sum);
	json_object_object_add(object, "start", json_object_new_uint64(range->start));
	json_object_object_add(object, "end", json_object_new_uint64(range->end));
	json_object_object_add(object, "cells", json_object_new_string(letters));
	json_object_object_add(object, "pages", pages);
	json_object_object_add(object, "runs", runs);
	return object;
}

/* One range: a line, or an object for @array. Return: false when the link fails. */
static bool map_range(struct context *context, uint32_t owner, const struct address_range *range,
		      struct json_object *array)
{
	struct hmm_record_run_info sum;
	struct json_object *runs;
	char letters[CELLS + 1];

	if (!fetch_cells(context, owner, range, letters, &sum))
		return false;
	if (!context->json) {
		print_range(range, letters, &sum);
		return true;
	}
	runs = fetch_runs(context, owner, range);
	if (runs)
		json_object_array_add(array, range_json(range, letters, &sum, runs));
	return runs != NULL;
}

static int map_owner(struct context *context, const struct hmm_record_owner_info *owner,
		     struct json_object *owners, long *n_ranges)
{
	struct json_object *object = json_object_new_object(), *array = json_object_new_array();
	struct address_range *ranges = NULL;
	int ret = STATUS_OK;
	long n;

	json_object_object_add(object, "owner", json_object_new_int64(owner->id));
	json_object_object_add(object, "pid", json_object_new_int64(owner->pid));
	json_object_object_add(object, "name", json_object_new_string(owner->name));
	json_object_object_add(object, "ranges", array);
	json_object_array_add(owners, object);

	n = select_ranges(&context->selection, &context->link, owner->id, &ranges);
	if (n < 0)
		return report_owner_error(&context->link);
	if (!context->json)
		printf("owner %u, pid %u, %s\n", owner->id, owner->pid, owner->name);
	for (long i = 0; i < n; i++) {
		if (map_range(context, owner->id, &ranges[i], array))
			continue;
		ret = report_owner_error(&context->link);
		break;
	}
	*n_ranges += n;
	free(ranges);
	return ret;
}

int command_map(struct context *context)
{
	struct json_object *array;
	struct hmm_record_owner_info *owners;
	long n, n_ranges = 0;
	int ret = STATUS_OK;

	n = select_owners(&context->selection, &context->link, &owners);
	if (n < 0)
		return report_link_error(&context->link);
	array = json_object_new_array();
	for (long i = 0; !ret && i < n; i++)
		ret = map_owner(context, &owners[i], array, &n_ranges);
	free(owners);

	if (!ret && context->json)
		output_json_named("owners", array);
	else
		json_object_put(array);
	if (!ret && n_ranges && !context->json)
		fputs(legend, stdout);
	if (!ret && !n_ranges && !selection_is_empty(&context->selection))
		return report_nothing("mapped range");
	if (!ret && !n && !context->json)
		puts("no process is mirrored");
	return ret;
}
