// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * features.c - `hmmctl features`: what the schema knows, what hmmd and the
 * kernel have of it, and for the rest hmmd's reason.
 */
#include "hmmctl.h"
#include "output.h"

static const struct column columns[] = {
	{ "name", "FEATURE", COLUMN_TEXT },
	{ "here", "HERE", COLUMN_TEXT },
	{ "about", "WHAT IT IS", COLUMN_TEXT },
	{ "why", "WHY NOT", COLUMN_TEXT },
	{ NULL },
};

/* Return: hmmd's words, good until the next request; NULL: the link failed. */
static const char *why_not(struct link *link, uint64_t feature)
{
	const struct hmm_msg_feature_reply *reply;
	struct hmm_msg_feature request;

	HMM_MSG_INIT(request, HMM_OP_FEATURE, 0);
	request.feature = feature;
	reply = link_request(link, &request);
	return reply ? reply->why : NULL;
}

static struct json_object *feature_object(const struct hmm_value_name *feature, bool here,
					  const char *why)
{
	struct json_object *object = json_object_new_object();

	json_object_object_add(object, "name", json_object_new_string(feature->name));
	json_object_object_add(object, "here", json_object_new_boolean(here));
	json_object_object_add(object, "about", json_object_new_string(feature->doc));
	json_object_object_add(object, "why", json_object_new_string(why));
	return object;
}

/* For people a column of yes and no. */
static void say_yes_and_no(struct json_object *array)
{
	for (size_t i = 0; i < json_object_array_length(array); i++) {
		struct json_object *object = json_object_array_get_idx(array, i), *here;

		json_object_object_get_ex(object, "here", &here);
		json_object_object_add(object, "here", json_object_new_string(
			json_object_get_boolean(here) ? "yes" : "no"));
	}
}

int command_features(struct context *context)
{
	const struct hmm_msg_status_reply *reply;
	struct json_object *array;
	struct hmm_msg_status request;
	uint64_t features;

	HMM_MSG_INIT(request, HMM_OP_STATUS, 0);
	reply = link_request(&context->link, &request);
	if (!reply)
		return report_link_error(&context->link);
	features = reply->features;
	array = json_object_new_array();
	for (const struct hmm_value_name *name = hmm_feature_names; name->name; name++) {
		bool here = features & name->value;
		const char *why = here ? "" : why_not(&context->link, name->value);

		if (!why) {
			json_object_put(array);
			return report_link_error(&context->link);
		}
		json_object_array_add(array, feature_object(name, here, why));
	}
	if (context->json) {
		output_json_named("features", array);
		return STATUS_OK;
	}
	say_yes_and_no(array);
	output_table(array, columns, "");
	json_object_put(array);
	return STATUS_OK;
}
