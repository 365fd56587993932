// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * features.c - `hmmctl features`: what the schema knows, what hmmd and the
 * kernel have of it, and for the rest the reason that the doctor gives.
 */
#include <stdlib.h>

#include "hmmctl.h"
#include "output.h"

static const struct column columns[] = {
	{ "name", "FEATURE", COLUMN_TEXT },
	{ "here", "HERE", COLUMN_TEXT },
	{ "about", "WHAT IT IS", COLUMN_TEXT },
	{ "why", "WHY NOT", COLUMN_TEXT },
	{ NULL },
};

/* Nothing is wrong where these are missing, so the doctor does not speak of them. */
static const char *why_not_at_all(uint64_t feature)
{
	switch (feature) {
	case HMM_FEATURE_HUGE_SHMEM:
		return "/sys/kernel/mm/transparent_hugepage/shmem_enabled says never or deny";
	case HMM_FEATURE_HUGETLB:
		return "no huge pages are reserved: /proc/sys/vm/nr_hugepages is 0";
	case HMM_FEATURE_USER_MODE:
		return "this hmmd serves everybody, with privileges";
	case HMM_FEATURE_NUMA:
		return "this machine has one memory node";
	default:
		return "this kernel does not have it";
	}
}

static const char *why_not(const struct hmm_record_finding *findings, long n, uint64_t feature)
{
	for (long i = 0; i < n; i++)
		if (findings[i].feature == feature)
			return findings[i].text;
	return why_not_at_all(feature);
}

static struct json_object *feature_object(const struct hmm_value_name *feature, bool here,
					  const char *why)
{
	struct json_object *object = json_object_new_object();

	json_object_object_add(object, "name", json_object_new_string(feature->name));
	json_object_object_add(object, "here", json_object_new_boolean(here));
	json_object_object_add(object, "about", json_object_new_string(feature->doc));
	json_object_object_add(object, "why", json_object_new_string(here ? "" : why));
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
	struct hmm_record_finding *findings;
	struct json_object *array;
	struct hmm_msg_status request;
	struct hmm_msg_doctor doctor;
	uint64_t features;
	long n;

	HMM_MSG_INIT(request, HMM_OP_STATUS, 0);
	reply = link_request(&context->link, &request);
	if (!reply)
		return report_link_error(&context->link);
	features = reply->features;
	HMM_MSG_INIT(doctor, HMM_OP_DOCTOR, 0);
	n = link_list(&context->link, &doctor, sizeof(*findings), &findings);
	if (n < 0)
		return report_link_error(&context->link);

	array = json_object_new_array();
	for (const struct hmm_value_name *name = hmm_feature_names; name->name; name++)
		json_object_array_add(array, feature_object(name, features & name->value,
							    why_not(findings, n, name->value)));
	free(findings);
	if (context->json) {
		output_json_named("features", array);
		return STATUS_OK;
	}
	say_yes_and_no(array);
	output_table(array, columns, "");
	json_object_put(array);
	return STATUS_OK;
}
