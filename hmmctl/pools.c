// SPDX-License-Identifier: GPL-2.0-or-later
/* pools.c - `hmmctl pools`: where device memory comes from. */
#include <stdlib.h>

#include "hmmctl.h"
#include "output.h"

static const struct column columns[] = {
	{ "id", "ID", COLUMN_NUMBER },
	{ "name", "NAME", COLUMN_TEXT },
	{ "kind", "KIND", COLUMN_TEXT },
	{ "page_size", "PAGES OF", COLUMN_BYTES },
	{ "placement", "PLACED", COLUMN_TEXT },
	{ "nodes", "NODES", COLUMN_TEXT },
	{ "devices", "DEVICES", COLUMN_NUMBER },
	{ "used", "USED", COLUMN_BYTES },
	{ "peak", "PEAK", COLUMN_BYTES },
	{ "evicted", "EVICTED", COLUMN_BYTES },
	{ "capacity", "PROMISED", COLUMN_BYTES },
	{ "reserved_mib", "RESERVED MIB", COLUMN_NUMBER },
	{ NULL },
};

int command_pools(struct context *context)
{
	struct hmm_record_pool_info *pools;
	struct hmm_msg_pools request;
	struct json_object *array;
	long n;

	HMM_MSG_INIT(request, HMM_OP_POOLS, 0);
	n = link_list(&context->link, &request, sizeof(*pools), &pools);
	if (n < 0)
		return report_link_error(&context->link);
	array = output_records(HMM_OP_POOLS_REPLY, pools, sizeof(*pools), n);
	free(pools);
	if (context->json) {
		output_json_named("pools", array);
		return STATUS_OK;
	}
	output_table(array, columns, "no pools");
	json_object_put(array);
	return STATUS_OK;
}
