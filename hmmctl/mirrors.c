// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * mirrors.c - `hmmctl mirrors`: the owners, and what each has on which device.
 *
 * An owner without a mirror has its own table, so that nobody is left out.
 */
#include <stdio.h>
#include <stdlib.h>

#include "hmmctl.h"
#include "output.h"

static const struct column mirror_columns[] = {
	{ "id", "MIRROR", COLUMN_NUMBER },
	{ "owner", "OWNER", COLUMN_NUMBER },
	{ "device_name", "DEVICE", COLUMN_TEXT },
	{ "windows", "WINDOWS", COLUMN_NUMBER },
	{ "flags", "FLAGS", COLUMN_TEXT },
	{ "device_bytes", "ON DEVICE", COLUMN_BYTES },
	{ "shared_bytes", "SHARED", COLUMN_BYTES },
	{ "pool_bytes", "OF POOL", COLUMN_BYTES },
	{ "placement", "PLACED", COLUMN_TEXT },
	{ "nodes", "NODES", COLUMN_TEXT },
	{ NULL },
};

static const struct column owner_columns[] = {
	{ "id", "OWNER", COLUMN_NUMBER },
	{ "pid", "PID", COLUMN_NUMBER },
	{ "uid", "UID", COLUMN_NUMBER },
	{ "mirrors", "MIRRORS", COLUMN_NUMBER },
	{ "registered_bytes", "WATCHED", COLUMN_BYTES },
	{ "device_bytes", "ON DEVICE", COLUMN_BYTES },
	{ "shared_bytes", "SHARED", COLUMN_BYTES },
	{ "faults", "FAULTS", COLUMN_NUMBER },
	{ "to_device", "PAGES OUT", COLUMN_NUMBER },
	{ "home", "PAGES HOME", COLUMN_NUMBER },
	{ "name", "NAME", COLUMN_TEXT },
	{ NULL },
};

static void print(const struct context *context, struct json_object *owners,
		  struct json_object *mirrors)
{
	if (context->json) {
		struct json_object *both = json_object_new_object();

		json_object_object_add(both, "owners", owners);
		json_object_object_add(both, "mirrors", mirrors);
		output_json(both);
		return;
	}
	output_table(owners, owner_columns, "no process is mirrored");
	if (json_object_array_length(owners)) {
		putchar('\n');
		output_table(mirrors, mirror_columns, "no mirrors");
	}
	json_object_put(owners);
	json_object_put(mirrors);
}

int command_mirrors(struct context *context)
{
	struct hmm_record_mirror_info *mirrors;
	struct hmm_record_owner_info *owners;
	long n_owners, n_mirrors;

	n_owners = select_owners(&context->selection, &context->link, &owners);
	if (n_owners < 0)
		return report_link_error(&context->link);
	n_mirrors = select_mirrors(&context->selection, &context->link, &mirrors);
	if (n_mirrors < 0) {
		free(owners);
		return report_link_error(&context->link);
	}
	print(context, output_records(HMM_OP_OWNERS_REPLY, owners, sizeof(*owners), n_owners),
	      output_records(HMM_OP_MIRRORS_REPLY, mirrors, sizeof(*mirrors), n_mirrors));
	free(owners);
	free(mirrors);
	return n_owners || selection_is_empty(&context->selection) ? STATUS_OK :
								     report_nothing("owner");
}
