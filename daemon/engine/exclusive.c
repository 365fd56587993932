/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * exclusive.c - pages that a device has to itself, so that its atomic operations need no
 * other check. Runs on the owner's worker.
 *
 * The mark is a bit of the page's entry in the table, and nothing else: whatever
 * happens to a page takes its entry out first and then tells the drivers, so the mark goes
 * with it, by whichever way that is. Two touches have to know of it: the CPU's brings
 * such a page home alone and never shares it (fault.c), another device's does not use it
 * in place (access.c). A restart writes the table anew from the ledger: no mark outlives it.
 *
 * Happy path: a migration to the device with the flag; when its last job has ended,
 * exclusive_grant() marks what is D, and what is not has its reason as a result.
 */
#include <errno.h>
#include <string.h>

#include "engine/job.h"
#include "engine/worker.h"

static uint64_t *entry_of(const struct block *block, unsigned int i)
{
	return block->owner->table + (page_addr(block, i) >> HMM_PAGE_SHIFT);
}

bool exclusive_page(const struct block *block, unsigned int i)
{
	return *entry_of(block, i) & HMM_TABLE_EXCLUSIVE;
}

bool exclusive_any(const struct block *block)
{
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (exclusive_page(block, i))
			return true;
	return false;
}

void exclusive_take_back(struct block *block, unsigned int i, unsigned int first, uint64_t fault_flags)
{
	struct pages page = { 0 };

	pages_set(&page, i);
	home_begin(block, &page, first, false, HMM_REASON_EXCLUSIVE, fault_flags, NULL);
}

/* Why the page can't be had for itself, or MOVED: then it is marked. */
static enum hmm_page_result grant(const struct migration *migration, uint64_t addr, enum hmm_page_result mapping)
{
	struct block *block = block_find(migration->owner, addr);
	unsigned int i = page_index(addr);
	uint64_t *entry;

	if (block && block_mirror(block) == migration->mirror && page_state(block, i) == HMM_PAGE_COHERENT)
		return HMM_PAGE_RESULT_SHARED;	/* the CPU maps the very same page */
	if (!block || block_mirror(block) != migration->mirror || page_state(block, i) != HMM_PAGE_DEVICE)
		return HMM_PAGE_RESULT_CHANGED;
	if (mapping != HMM_PAGE_RESULT_MOVED)
		return mapping;
	entry = entry_of(block, i);
	if (!*entry)
		return HMM_PAGE_RESULT_CHANGED;	/* it is on its way somewhere */
	__atomic_store_n(entry, *entry | HMM_TABLE_EXCLUSIVE, __ATOMIC_RELEASE);
	return HMM_PAGE_RESULT_MOVED;
}

static void refuse(struct migration *migration, uint8_t *result, enum hmm_page_result why)
{
	if (*result == HMM_PAGE_RESULT_MOVED)
		migration->moved--;
	else
		migration->already--;
	migration->failed++;
	*result = (uint8_t)why;
}

void exclusive_grant(struct migration *migration)
{
	struct segment segment = { 0 };

	for (uint64_t addr = migration->start; addr < migration->end; addr += HMM_PAGE_SIZE) {
		uint8_t *result = &migration->results[(addr - migration->start) >> HMM_PAGE_SHIFT];
		enum hmm_page_result why;

		if (*result != HMM_PAGE_RESULT_MOVED && *result != HMM_PAGE_RESULT_ALREADY)
			continue;
		/* What was there before may have become read-only since. */
		if (addr >= segment.end && segment_at(migration->owner, addr, migration->end, &segment))
			segment = (struct segment){ addr, addr + HMM_PAGE_SIZE, HMM_PAGE_RESULT_CHANGED };
		why = grant(migration, addr, (enum hmm_page_result)segment.result);
		if (why != HMM_PAGE_RESULT_MOVED)
			refuse(migration, result, why);
	}
}

struct release {
	const struct mirror *mirror;
	uint64_t start, end, pages;
};

static void release_block(struct block *block, void *data)
{
	struct release *release = data;

	if (block_mirror(block) != release->mirror)
		return;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		uint64_t *entry = entry_of(block, i);

		if (page_addr(block, i) < release->start || page_addr(block, i) >= release->end ||
		    !exclusive_page(block, i))
			continue;
		__atomic_store_n(entry, *entry & ~HMM_TABLE_EXCLUSIVE, __ATOMIC_RELEASE);
		release->pages++;
	}
}

void exclusive_forget(struct mirror *mirror)
{
	struct release all = { .mirror = mirror, .end = HMM_VA_END };

	block_for_each(mirror->owner, 0, HMM_VA_END, release_block, &all);
}

void exclusive_end(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_exclusive_end *message = (const void *)letter->message;
	struct release release = {
		.mirror = mirror_by_id(owner, message->mirror),
		.start = message->addr, .end = message->addr + message->length,
	};
	struct hmm_msg_exclusive_end_reply *reply;

	if (!release.mirror) {
		letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
		return;
	}
	reply = letter_reply(letter, HMM_OP_EXCLUSIVE_END_REPLY, sizeof(*reply));
	if (!reply) {
		letter_fail(letter, -ENOMEM, "out of memory for the answer");
		return;
	}
	block_for_each(owner, release.start, release.end, release_block, &release);
	reply->pages = release.pages;
}
