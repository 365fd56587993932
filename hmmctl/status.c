// SPDX-License-Identifier: GPL-2.0-or-later
/* status.c - `hmmctl status`: one request, the whole daemon on one screen. */
#include "hmmctl.h"
#include "output.h"

static const struct column fields[] = {
	{ "version", "hmmd", COLUMN_TEXT },
	{ "pid", "pid", COLUMN_NUMBER },
	{ "uid", "uid", COLUMN_NUMBER },
	{ "uptime_ns", "up for", COLUMN_AGO },
	{ "socket", "socket", COLUMN_TEXT },
	{ "engine", "engine", COLUMN_TEXT },
	{ "features", "features", COLUMN_TEXT },
	{ "workers", "workers", COLUMN_NUMBER },
	{ "clients", "clients", COLUMN_NUMBER },
	{ "owners", "owners", COLUMN_NUMBER },
	{ "devices", "devices", COLUMN_NUMBER },
	{ "mirrors", "mirrors", COLUMN_NUMBER },
	{ "windows", "windows", COLUMN_NUMBER },
	{ "device_bytes", "on devices", COLUMN_BYTES },
	{ "pool_used", "pools used", COLUMN_BYTES },
	{ "pool_bytes", "pools", COLUMN_BYTES },
	{ NULL },
};

int command_status(struct context *context)
{
	const struct hmm_msg_status_reply *reply;
	struct hmm_msg_status request;
	struct json_object *object;

	HMM_MSG_INIT(request, HMM_OP_STATUS, 0);
	reply = link_request(&context->link, &request);
	if (!reply)
		return report_link_error(&context->link);
	object = output_reply(reply);
	json_object_object_add(object, "engine", json_object_new_string(
		reply->features & HMM_FEATURE_MOVE ? "full" : "base"));
	if (context->json) {
		output_json(object);
		return STATUS_OK;
	}
	output_fields(object, fields);
	json_object_put(object);
	return STATUS_OK;
}
