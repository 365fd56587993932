// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * advice.c - `hmmctl advice`: what programs have said of their memory, range by
 * range, as hmmd has it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "hmmctl.h"
#include "output.h"

static const struct column columns[] = {
	{ "owner", "OWNER", COLUMN_NUMBER },
	{ "range", "RANGE", COLUMN_TEXT },
	{ "bytes", "SIZE", COLUMN_BYTES },
	{ "said", "SAID", COLUMN_TEXT },
	{ "granularity", "PAGES A TOUCH", COLUMN_NUMBER },
	{ "priority", "PRIORITY", COLUMN_NUMBER },
	{ "mirrors", "MIRRORS", COLUMN_TEXT },
	{ NULL },
};

static void add_mirror(struct json_object *array, uint32_t owner, int index)
{
	for (size_t i = 0; i < json_object_array_length(array); i++)
		if (json_object_get_int64(json_object_array_get_idx(array, i)) == (owner << 8 | (uint32_t)index))
			return;
	json_object_array_add(array, json_object_new_int64(owner << 8 | (uint32_t)index));
}

/* The mirrors that it names. */
static struct json_object *mirrors_of(const struct hmm_record_attribute_info *info, uint32_t owner)
{
	struct json_object *array = json_object_new_array();

	if (info->preferred >= 0)
		add_mirror(array, owner, info->preferred);
	if (info->pinned >= 0)
		add_mirror(array, owner, info->pinned);
	for (int i = 0; i < 32; i++)
		if (info->accessed_by >> i & 1)
			add_mirror(array, owner, i);
	return array;
}

static struct json_object *range_of(const struct hmm_record_attribute_info *info, uint32_t owner)
{
	struct json_object *object = output_record(hmm_wire_message(HMM_OP_ATTRIBUTES_REPLY), info);
	char range[48];

	/* Numbers within the owner, which nobody else knows mirrors by. */
	json_object_object_del(object, "preferred");
	json_object_object_del(object, "pinned");
	json_object_object_del(object, "accessed_by");
	snprintf(range, sizeof(range), "%#" PRIx64 "-%#" PRIx64, info->start, info->end);
	json_object_object_add(object, "owner", json_object_new_int64(owner));
	json_object_object_add(object, "range", json_object_new_string(range));
	json_object_object_add(object, "bytes", json_object_new_uint64(info->end - info->start));
	json_object_object_add(object, "mirrors", mirrors_of(info, owner));
	return object;
}

static int add_owner(struct context *context, uint32_t owner, struct json_object *array)
{
	struct hmm_record_attribute_info *infos;
	struct hmm_msg_attributes request;
	long n;

	HMM_MSG_INIT(request, HMM_OP_ATTRIBUTES, 0);
	request.owner = owner;
	n = link_list(&context->link, &request, sizeof(*infos), &infos);
	if (n < 0)
		return report_owner_error(&context->link);
	for (long i = 0; i < n; i++)
		json_object_array_add(array, range_of(&infos[i], owner));
	free(infos);
	return STATUS_OK;
}

int command_advice(struct context *context)
{
	struct json_object *array = json_object_new_array();
	struct hmm_record_owner_info *owners;
	long n = select_owners(&context->selection, &context->link, &owners);
	int ret = STATUS_OK;

	if (n < 0) {
		json_object_put(array);
		return report_link_error(&context->link);
	}
	if (!n && !selection_is_empty(&context->selection))
		ret = report_nothing("owner");
	for (long i = 0; !ret && i < n; i++)
		ret = add_owner(context, owners[i].id, array);
	free(owners);
	if (!ret && context->json) {
		output_json_named("ranges", array);
		return ret;
	}
	if (!ret)
		output_table(array, columns, "nothing was said");
	json_object_put(array);
	return ret;
}
