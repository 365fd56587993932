// SPDX-License-Identifier: GPL-2.0-or-later
/* usage.c - `hmmctl usage`: what each user has of what is limited. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "hmmctl.h"
#include "output.h"

int command_usage(struct context *context)
{
	struct hmm_record_usage_info *usage;
	struct hmm_msg_usage request;
	struct json_object *array, *object;
	long n;

	HMM_MSG_INIT(request, HMM_OP_USAGE, 0);
	n = link_list(&context->link, &request, sizeof(*usage), &usage);
	if (n < 0)
		return report_link_error(&context->link);
	array = json_object_new_array();
	if (!context->json)
		printf("%10s  %-12s %20s %20s\n", "UID", "LIMITED", "USED", "LIMIT");
	for (long i = 0; i < n; i++) {
		object = json_object_new_object();
		json_object_object_add(object, "uid", json_object_new_int64(usage[i].uid));
		json_object_object_add(object, "name", json_object_new_string(usage[i].name));
		json_object_object_add(object, "used", json_object_new_uint64(usage[i].used));
		json_object_object_add(object, "limit",
				       usage[i].limit ? json_object_new_uint64(usage[i].limit) : NULL);
		json_object_array_add(array, object);
		if (context->json)
			continue;
		printf("%10u  %-12s %20" PRIu64, usage[i].uid, usage[i].name, usage[i].used);
		if (usage[i].limit)
			printf(" %20" PRIu64 "\n", usage[i].limit);
		else
			printf(" %20s\n", "unlimited");
	}
	free(usage);
	if (context->json)
		output_json_named("usage", array);
	else
		json_object_put(array);
	return STATUS_OK;
}
