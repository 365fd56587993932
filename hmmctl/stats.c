// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * stats.c - `hmmctl stats`: the counters of all owners together, or of each
 * that is selected.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "hmmctl.h"
#include "output.h"

/* Prints one owner's counters, or adds them to @array. Return: an exit status. */
static int owner_stats(struct context *context, const struct hmm_record_owner_info *owner,
		       struct json_object *array)
{
	struct hmm_record_stat_info *stats;
	struct json_object *object, *values;
	struct hmm_msg_stats request;
	long n;

	HMM_MSG_INIT(request, HMM_OP_STATS, 0);
	request.owner = owner ? owner->id : 0;
	n = link_list(&context->link, &request, sizeof(*stats), &stats);
	if (n < 0)
		return owner ? report_owner_error(&context->link) : report_link_error(&context->link);

	object = json_object_new_object();
	values = json_object_new_object();
	if (owner) {
		json_object_object_add(object, "owner", json_object_new_int64(owner->id));
		json_object_object_add(object, "pid", json_object_new_int64(owner->pid));
		json_object_object_add(object, "name", json_object_new_string(owner->name));
	}
	json_object_object_add(object, "stats", values);
	for (long i = 0; i < n; i++)
		json_object_object_add(values, stats[i].name,
				       json_object_new_uint64(stats[i].value));
	json_object_array_add(array, object);
	if (!context->json && owner)
		printf("owner %u, pid %u, %s\n", owner->id, owner->pid, owner->name);
	for (long i = 0; !context->json && i < n; i++)
		printf("%-28s %20" PRIu64 "\n", stats[i].name, stats[i].value);
	free(stats);
	return STATUS_OK;
}

int command_stats(struct context *context)
{
	struct json_object *array = json_object_new_array();
	struct hmm_record_owner_info *owners = NULL;
	long n = 0;
	int ret = STATUS_OK;

	if (selection_is_empty(&context->selection)) {
		ret = owner_stats(context, NULL, array);
	} else {
		n = select_owners(&context->selection, &context->link, &owners);
		if (n < 0)
			ret = report_link_error(&context->link);
		else if (n == 0)
			ret = report_nothing("owner");
	}
	for (long i = 0; !ret && i < n; i++)
		ret = owner_stats(context, &owners[i], array);
	free(owners);
	if (!ret && context->json)
		output_json_named("owners", array);
	else
		json_object_put(array);
	return ret;
}
