/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * exclude.c - memory that its program wants left alone, and no more. Runs on the owner's worker.
 *
 * Happy path of EXCLUDE: the range is noted, so that nothing of it leaves any more; what is out comes home, is
 * disarmed, and is watched by nobody. INCLUDE takes the note back; windows ask anew for what was closed.
 *
 * What can fail: memory for the note, and then nothing has changed. What cannot come home (no memory) is answered
 * with -EBUSY; the note stays.
 */
#include <errno.h>

#include "engine/worker.h"
#include "tracking/tracking.h"

static int reply(struct letter *letter)
{
	if (letter_reply(letter, HMM_OP_EXCLUDE_REPLY, sizeof(struct hmm_msg_exclude_reply)))
		return 0;
	return letter_fail(letter, -ENOMEM, "out of memory for the answer");
}

static int note(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_exclude *message = (const void *)letter->message;
	uint64_t end = message->addr + message->length;
	int r = message->include ? span_set_remove(&owner->excluded, message->addr, end)
				 : span_set_add(&owner->excluded, message->addr, end);

	return r ? letter_fail(letter, r, "out of memory for another excluded range") : 0;
}

static void disarm_now(struct block *block, void *data)
{
	(void)data;
	if (block_at_rest(block))
		block_settle(block);
}

struct stay {
	uint64_t start, end, pages;
};

static void count_out(struct block *block, void *data)
{
	struct stay *stay = data;
	unsigned int first = stay->start > block->addr ? page_index(stay->start) : 0;
	unsigned int end = stay->end < block->addr + HMM_BLOCK_SIZE ? page_index(stay->end) : HMM_BLOCK_PAGES;
	struct pages pages;

	stay->pages += block_pages_in(block, HMM_PAGE_DEVICE, first, end, &pages);
	stay->pages += block_pages_in(block, HMM_PAGE_SHARED, first, end, &pages);
}

/*
 * What has come home is not left to the time when nobody waits for pages: whoever excluded it may move it
 * next, and mremap() takes one mapping at a time.
 */
static void is_home(struct owner *owner, void *data, uint64_t pages)
{
	struct letter *letter = data;
	const struct hmm_msg_exclude *message = (const void *)letter->message;
	struct stay stay = { message->addr, message->addr + message->length, 0 };

	(void)pages;
	block_for_each(owner, stay.start, stay.end, disarm_now, NULL);
	if (!owner->gone)
		block_for_each(owner, stay.start, stay.end, count_out, &stay);
	if (stay.pages)
		letter_fail(letter, -EBUSY,
			    "%lu pages could not come home yet; they are excluded: ask again", stay.pages);
	else
		reply(letter);
	worker_reply(owner->worker, letter);
}

void exclude_request(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_exclude *message = (const void *)letter->message;
	uint64_t start = message->addr, end = message->addr + message->length;
	int r = note(owner, letter);

	if (!r && !message->include) {
		tracking_let_go(owner, start, end);
		migrate_home(owner, start, end, NULL, is_home, letter);
		return;
	}
	if (!r) {
		window_reopen(owner, start, end);
		reply(letter);
	}
	worker_reply(owner->worker, letter);
}

/* Of excluded memory nothing is out: that was seen to when it was said first. */
void exclude_restate(struct owner *owner, struct letter *letter)
{
	if (!note(owner, letter))
		reply(letter);
}
