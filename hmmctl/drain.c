// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * drain.c - `hmmctl drain`: brings pages home, of everybody, of some owners, or
 * from some devices; and says what is on devices all the same when that is over.
 *
 * An owner or a device that is gone meanwhile has nothing there any more: the others are seen to.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "hmmctl.h"
#include "layout.h"
#include "output.h"

/* What a mirror has on its device after the drain. */
struct left {
	uint64_t pages;		/* which could have come home: they went there again, or nothing has room for them */
	uint64_t coherent;	/* which never do */
	uint64_t moving;	/* of the owner: between two places; of a stopped one they stay there */
};

static bool is_gone(const struct link *link)
{
	return link->fd >= 0 && (link->error == -ESRCH || link->error == -ESTALE || link->error == -ENOENT ||
				 link->error == -ENODEV);
}

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
		return is_gone(&context->link) ? STATUS_OK : report_link_error(&context->link);
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

/* ---- what is left ------------------------------------------------------------------ */

static int look(struct context *context, const struct hmm_record_mirror_info *mirror, struct left *left)
{
	struct hmm_record_range_info *runs;
	struct hmm_msg_ranges request;
	long n;

	if (!mirror->device_bytes)
		return STATUS_OK;
	HMM_MSG_INIT(request, HMM_OP_RANGES, 0);
	request.owner = mirror->owner;
	request.end = HMM_VA_END;
	n = link_list(&context->link, &request, sizeof(*runs), &runs);
	if (n < 0)
		return is_gone(&context->link) ? STATUS_OK : report_link_error(&context->link);
	for (long i = 0; i < n; i++) {
		if (runs[i].mirror != mirror->id)
			continue;
		left->pages += runs[i].state == HMM_PAGE_DEVICE ? runs[i].pages : 0;
		left->coherent += runs[i].state == HMM_PAGE_COHERENT ? runs[i].pages : 0;
	}
	free(runs);
	return STATUS_OK;
}

static int look_at_owner(struct context *context, uint32_t owner, struct left *left)
{
	const struct hmm_msg_cells_reply *reply;
	struct hmm_msg_cells request;

	HMM_MSG_INIT(request, HMM_OP_CELLS, 0);
	request.owner = owner;
	request.cells = 1;
	request.length = HMM_VA_END;
	reply = link_request(&context->link, &request);
	if (!reply)
		return is_gone(&context->link) ? STATUS_OK : report_link_error(&context->link);
	left->moving = reply->count ? reply->items[0].transit : 0;
	return STATUS_OK;
}

static void print(const struct hmm_record_mirror_info *mirror, const struct left *left)
{
	if (left->pages)
		printf("%" PRIu64 " pages of owner %u are on %s (mirror %u): they went there again, or cannot come home now\n",
		       left->pages, mirror->owner, mirror->device_name, mirror->id);
	if (left->moving)
		printf("%" PRIu64 " pages of owner %u are on their way; if its process is stopped they stay where they are until it goes on\n",
		       left->moving, mirror->owner);
	if (left->coherent)
		printf("%" PRIu64 " pages of owner %u stay on %s (mirror %u): they are coherent memory\n", left->coherent,
		       mirror->owner, mirror->device_name, mirror->id);
}

static struct json_object *left_json(const struct hmm_record_mirror_info *mirror, const struct left *left)
{
	struct json_object *object = json_object_new_object();

	json_object_object_add(object, "mirror", json_object_new_uint64(mirror->id));
	json_object_object_add(object, "owner", json_object_new_uint64(mirror->owner));
	json_object_object_add(object, "device_name", json_object_new_string(mirror->device_name));
	json_object_object_add(object, "pages", json_object_new_uint64(left->pages));
	json_object_object_add(object, "moving", json_object_new_uint64(left->moving));
	json_object_object_add(object, "coherent", json_object_new_uint64(left->coherent));
	return object;
}

/* Of what was selected. @array: gets it, or NULL: it is printed. Return: an exit status. */
static int tell_left(struct context *context, struct json_object *array)
{
	struct hmm_record_mirror_info *mirrors;
	int ret = STATUS_OK;
	bool any = false;
	long n;

	n = select_mirrors(&context->selection, &context->link, &mirrors);
	if (n < 0)
		return report_link_error(&context->link);
	for (long i = 0; !ret && i < n; i++) {
		struct left left = { 0 };

		ret = look(context, &mirrors[i], &left);
		/* Once for each owner. */
		if (!ret && (!i || mirrors[i].owner != mirrors[i - 1].owner))
			ret = look_at_owner(context, mirrors[i].owner, &left);
		if (ret || (!left.pages && !left.moving && !left.coherent))
			continue;
		any |= left.pages || left.moving;
		if (array)
			json_object_array_add(array, left_json(&mirrors[i], &left));
		else
			print(&mirrors[i], &left);
	}
	free(mirrors);
	return !ret && any ? STATUS_PARTIAL : ret;
}

int command_drain(struct context *context)
{
	bool all = selection_is_empty(&context->selection);
	struct json_object *object, *array;
	uint64_t pages = 0;
	int ret;

	ret = all ? drain(context, 0, 0, &pages) : drain_mirrors(context, &pages);
	if (ret)
		return ret;
	if (!context->json) {
		printf("%" PRIu64 " pages came home\n", pages);
		return tell_left(context, NULL);
	}
	object = json_object_new_object();
	array = json_object_new_array();
	json_object_object_add(object, "pages", json_object_new_uint64(pages));
	ret = tell_left(context, array);
	json_object_object_add(object, "left", array);
	output_json(object);
	return ret;
}
