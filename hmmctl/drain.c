// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * drain.c - `hmmctl drain`: brings pages home, of everybody, of some owners, or
 * from some devices.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "hmmctl.h"
#include "output.h"

/* @owner 0: all of them; @device 0: any. Return: an exit status. */
static int drain(struct context *context, uint32_t owner, uint32_t device, uint64_t *pages)
{
	const struct hmm_msg_drain_reply *reply;
	struct hmm_msg_drain request;

	HMM_MSG_INIT(request, HMM_OP_DRAIN, 0);
	request.owner = owner;
	request.device = device;
	reply = link_request(&context->link, &request);
	if (!reply)
		return report_link_error(&context->link);
	*pages += reply->pages;
	return STATUS_OK;
}

static int drain_mirrors(struct context *context, uint64_t *pages)
{
	struct hmm_record_mirror_info *mirrors;
	int ret = STATUS_OK;
	long n;

	n = select_mirrors(&context->selection, &context->link, &mirrors);
	if (n < 0)
		return report_link_error(&context->link);
	for (long i = 0; !ret && i < n; i++)
		ret = drain(context, mirrors[i].owner, mirrors[i].device, pages);
	free(mirrors);
	return ret || n ? ret : report_nothing("mirror");
}

int command_drain(struct context *context)
{
	bool all = selection_is_empty(&context->selection);
	uint64_t pages = 0;
	int ret;

	ret = all ? drain(context, 0, 0, &pages) : drain_mirrors(context, &pages);
	if (ret)
		return ret;
	if (context->json)
		output_json_named("pages", json_object_new_uint64(pages));
	else
		printf("%" PRIu64 " pages came home\n", pages);
	return STATUS_OK;
}
