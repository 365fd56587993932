/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * exclusive.c - pages that a device has to itself.
 *
 * To begin is to migrate with a flag, so a large range goes in pieces, as there; the
 * mark is in the table that hmmd shares, so to check is to look there.
 */
#include "arena.h"
#include "space.h"

_Static_assert(HMM_ENTRY_EXCLUSIVE == HMM_TABLE_EXCLUSIVE, "a lookup returns the table's own bits");

long hmm_device_exclusive_begin(struct hmm_mirror *mirror, unsigned long addr, size_t length,
				uint8_t *results)
{
	return hmmc_migrate(mirror, addr, length, HMM_DEVICE,
			    HMM_MIGRATE_FLAGS_POPULATE | HMM_MIGRATE_FLAGS_EXCLUSIVE, results,
			    NULL);
}

static int prepare_end(struct request *request)
{
	const struct hmm_mirror_private *mirror = request->data;

	((struct hmm_msg_exclusive_end *)request->message)->mirror = mirror->id;
	return 0;
}

long hmm_device_exclusive_end(struct hmm_mirror *mirror, unsigned long addr, size_t length)
{
	struct hmm_msg_exclusive_end *message;
	struct request *request;
	long pages = hmmc_migrate_check(mirror, addr, length);

	if (pages)
		return pages;
	request = hmmc_request_new(mirror->priv->hmm->connection, HMM_OP_EXCLUSIVE_END,
				   sizeof(*message));
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	message = (struct hmm_msg_exclusive_end *)request->message;
	message->addr = addr;
	message->length = length;
	request->data = mirror->priv;
	request->prepare = prepare_end;
	pages = hmmc_request_call(request);
	if (!pages)
		pages = (long)((const struct hmm_msg_exclusive_end_reply *)request->reply)->pages;
	hmmc_request_free(request);
	return pages;
}

bool hmm_device_exclusive_check(const struct hmm_mirror *mirror, unsigned long addr, size_t length)
{
	if (!length || addr % HMM_PAGE_SIZE || length % HMM_PAGE_SIZE || addr + length < addr)
		return false;
	for (size_t at = 0; at < length; at += HMM_PAGE_SIZE)
		if (!(hmm_mirror_lookup(mirror, addr + at) & HMM_ENTRY_EXCLUSIVE))
			return false;
	return true;
}
