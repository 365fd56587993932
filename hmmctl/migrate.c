// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * migrate.c - `hmmctl migrate`: moves what is selected to the device or home.
 *
 * Range by range, 64 MiB to a request: the addresses as they were given, so that
 * hmmd says of each page why it stays, or everything that can move at all. Pages
 * that stay are counted by their reason; they are no error of hmmctl's, but the
 * exit status tells of them.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "hmmctl.h"
#include "move.h"
#include "output.h"

static void print_tally(const struct hmm_record_mirror_info *mirror, const struct tally *tally)
{
	printf("mirror %u (%s): %" PRIu64 " pages: %" PRIu64 " moved, %" PRIu64 " there already",
	       mirror->id, mirror->device_name, tally->pages, tally->moved, tally->already);
	for (const struct hmm_value_name *name = hmm_page_result_names; name->name; name++)
		if (name->value > HMM_PAGE_RESULT_ALREADY && tally->result[name->value])
			printf(", %" PRIu64 " %s", tally->result[name->value], name->name);
	putchar('\n');
}

static struct json_object *tally_json(const struct hmm_record_mirror_info *mirror,
				      const struct tally *tally)
{
	struct json_object *object = json_object_new_object(), *left = json_object_new_object();

	json_object_object_add(object, "mirror", json_object_new_int64(mirror->id));
	json_object_object_add(object, "owner", json_object_new_int64(mirror->owner));
	json_object_object_add(object, "device_name", json_object_new_string(mirror->device_name));
	json_object_object_add(object, "pages", json_object_new_uint64(tally->pages));
	json_object_object_add(object, "moved", json_object_new_uint64(tally->moved));
	json_object_object_add(object, "already", json_object_new_uint64(tally->already));
	json_object_object_add(object, "left", left);
	for (const struct hmm_value_name *name = hmm_page_result_names; name->name; name++)
		if (name->value > HMM_PAGE_RESULT_ALREADY && tally->result[name->value])
			json_object_object_add(left, name->name,
					       json_object_new_uint64(tally->result[name->value]));
	return object;
}

static int move_all(struct context *context, uint32_t mirror, const struct address_range *ranges,
		    long n, struct tally *tally)
{
	uint64_t flags = context->populate ? HMM_MIGRATE_FLAGS_POPULATE : 0;

	for (long i = 0; i < n; i++)
		if (move_range(&context->link, mirror, &ranges[i], context->target, flags, tally))
			return report_link_error(&context->link);
	return STATUS_OK;
}

/* Return: an exit status, of which STATUS_PARTIAL is no reason to stop. */
static int migrate_mirror(struct context *context, const struct hmm_record_mirror_info *mirror,
			  struct json_object *array, uint64_t *there)
{
	const struct selection *selection = &context->selection;
	struct address_range *ranges = NULL;
	struct tally tally = { 0 };
	long n = 0;
	int ret;

	if (selection->n_ranges) {
		ret = move_all(context, mirror->id, selection->ranges, (long)selection->n_ranges,
			       &tally);
	} else {
		n = select_ranges(selection, &context->link, mirror->owner, &ranges);
		if (n < 0)
			return report_link_error(&context->link);
		ret = move_all(context, mirror->id, ranges, n, &tally);
		free(ranges);
	}
	if (ret)
		return ret;
	*there += tally.pages - tally.result[HMM_PAGE_RESULT_HOLE];
	json_object_array_add(array, tally_json(mirror, &tally));
	if (!context->json)
		print_tally(mirror, &tally);
	return tally.failed > tally.result[HMM_PAGE_RESULT_HOLE] ? STATUS_PARTIAL : STATUS_OK;
}

int command_migrate(struct context *context)
{
	struct json_object *array = json_object_new_array();
	struct hmm_record_mirror_info *mirrors;
	int ret = STATUS_OK, one = STATUS_OK;
	uint64_t there = 0;
	long n;

	n = select_mirrors(&context->selection, &context->link, &mirrors);
	for (long i = 0; i < n && (one == STATUS_OK || one == STATUS_PARTIAL); i++) {
		one = migrate_mirror(context, &mirrors[i], array, &there);
		if (one)
			ret = one;
	}
	if (n >= 0)
		free(mirrors);
	if (context->json)
		output_json_named("mirrors", array);
	else
		json_object_put(array);
	if (n < 0)
		return report_link_error(&context->link);
	return ret || there ? ret : report_nothing(n ? "memory in use" : "mirror");
}
