// SPDX-License-Identifier: GPL-2.0-or-later
/* move.c - one range, in requests of at most 64 MiB. Fails as the link does. */
#include "move.h"

#define MOST_AT_ONCE (64UL << 20)

static int move_piece(struct link *link, struct hmm_msg_migrate *request, struct tally *tally)
{
	const struct hmm_msg_migrate_reply *reply = link_request(link, request);

	if (!reply)
		return link->error;
	tally->pages += reply->pages;
	tally->moved += reply->moved;
	tally->already += reply->already;
	tally->failed += reply->failed;
	for (uint32_t i = 0; i < reply->count; i++)
		tally->result[reply->results[i]]++;
	return 0;
}

int move_range(struct link *link, uint32_t mirror, const struct address_range *range,
	       uint32_t target, uint64_t flags, struct tally *tally)
{
	struct hmm_msg_migrate request;
	int ret = 0;

	for (uint64_t at = range->start; !ret && at < range->end; at += request.length) {
		/* Whole blocks to a request: one cut in two would lose its huge page. */
		uint64_t end = (at + MOST_AT_ONCE) & ~(MOST_AT_ONCE - 1);

		HMM_MSG_INIT(request, HMM_OP_MIGRATE, 0);
		request.mirror = mirror;
		request.target = target;
		request.flags = flags;
		request.addr = at;
		request.length = (end < range->end ? end : range->end) - at;
		ret = move_piece(link, &request, tally);
	}
	return ret;
}
