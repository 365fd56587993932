/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dma.c - addresses of a range's pages for the device's own engine.
 *
 * The happy path: the range is faulted in as by hmm_range_fault(), and pages in the device's own memory get their
 * numbers there. A card behind an IOMMU gets the owner's addresses instead, once hmmd has mapped those
 * pages; then the range's number says whether they are so still.
 *
 * What can fail: whatever hmm_range_fault() says; a card's limits, with hmmd's words. Then it reaches nothing of the range.
 * Runs in the program's threads; giving addresses back does not wait in a callback.
 */
#include <stdio.h>
#include <string.h>

#include "dispatch.h"
#include "range.h"

/* Parts of a range that are on their way to hmmd at a time: while it maps one the next one comes. More would only make others wait. */
#define IN_FLIGHT 2

static int check_dma(const struct hmm_range *range, const struct hmm_device *device,
		     const uint64_t *daddrs)
{
	if (!range || !range->priv || !range->pfns || !device || !daddrs)
		return hmmc_fail(-EINVAL,
				 "range, device or daddrs is NULL, or the range is not registered");
	if (range->priv->group || (hmmc_range_is_registered(range->priv) && range->priv->mirror->device != device))
		return hmmc_fail(-EINVAL, "the range is of another device's mirror, or of a group's");
	return 0;
}

static int prepare_map(struct request *request)
{
	const struct hmm_range_private *private = request->data;

	((struct hmm_msg_dma_map *)request->message)->mirror = private->mirror->id;
	return 0;
}

/* Pages that are all wanted to be written, or none. */
static struct request *new_request(const struct hmm_range *range, uint64_t start, uint64_t end, bool write)
{
	struct hmm_range_private *private = range->priv;
	struct hmm_msg_dma_map *message;
	struct request *request;

	request = hmmc_request_new(private->hmm->connection, HMM_OP_DMA_MAP, sizeof(*message));
	if (!request)
		return NULL;
	message = (struct hmm_msg_dma_map *)request->message;
	message->hold = private->hold;
	message->hold_start = range->start;
	message->hold_end = range->end;
	message->addr = start;
	message->length = end - start;
	message->write = write;
	request->data = private;
	request->prepare = prepare_map;
	return request;
}

/* Return: how many the card reaches, or an error. */
static long collect(struct request *request)
{
	long result = hmmc_request_wait(request);

	if (!result)
		result = (long)((const struct hmm_msg_dma_map_reply *)request->reply)->pages;
	hmmc_request_free(request);
	return result;
}

static int prepare_unmap(struct request *request)
{
	const struct hmm_mirror_private *mirror = request->data;

	((struct hmm_msg_dma_unmap *)request->message)->mirror = mirror->id;
	return 0;
}

static void let_go(struct request *request)
{
	hmmc_mirror_put(request->data);
	hmmc_request_free(request);
}

/* A callback does not wait for it: hmmd may be waiting for the callback. */
static int reach_no_more(struct hmm_range_private *private)
{
	struct hmm_mirror_private *mirror = private->mirror;
	struct request *request;
	int error;

	request = hmmc_request_new(private->hmm->connection, HMM_OP_DMA_UNMAP,
				   sizeof(struct hmm_msg_dma_unmap));
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	((struct hmm_msg_dma_unmap *)request->message)->hold = private->hold;
	request->data = mirror;
	request->prepare = prepare_unmap;
	if (hmmc_dispatch_is_current()) {
		__atomic_add_fetch(&mirror->references, 1, __ATOMIC_RELAXED);
		request->complete = let_go;
		hmmc_request_post(request);
		private->reached = false;
		return 0;
	}
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	private->reached = error != 0;
	return error;
}

/* Which pages are to be written: one answer for each, or, where the driver asks for all alike, one. */
struct wants {
	const uint64_t *each; /* NULL: all alike */
	bool all;
};

/* Asks for a part from *at on that is all to be written, or none of it; *at: its end. NULL: no memory. */
static struct request *ask(const struct hmm_range *range, const struct wants *wants, uint64_t *at)
{
	const uint64_t start = *at, end = hmmc_range_part_end(range, start);
	const uint64_t *each = wants->each ? wants->each + ((start - range->start) >> HMM_PAGE_SHIFT) : NULL;
	size_t n = each ? 1 : (end - start) >> HMM_PAGE_SHIFT;
	struct request *request;

	while (each && start + (n << HMM_PAGE_SHIFT) < end && each[n] == each[0])
		n++;
	*at = start + (n << HMM_PAGE_SHIFT);
	request = new_request(range, start, *at, each ? each[0] != 0 : wants->all);
	if (request)
		hmmc_request_post(request);
	return request;
}

/* The parts, a few on their way at a time, and all that were sent are waited for. Return: how many pages the card reaches, or an error. */
static long reach_parts(const struct hmm_range *range, const struct wants *wants)
{
	struct request *flying[IN_FLIGHT];
	unsigned int head = 0, tail = 0;
	uint64_t at = range->start;
	char why[HMMC_ERROR_TEXT];
	long reached = 0, error = 0, n;

	while (tail != head || (at < range->end && !error)) {
		if (head - tail < IN_FLIGHT && at < range->end && !error) {
			flying[head % IN_FLIGHT] = ask(range, wants, &at);
			if (flying[head % IN_FLIGHT]) {
				head++;
				continue;
			}
			n = hmmc_fail(-ENOMEM, "the library's memory is used up");
		} else {
			n = collect(flying[tail++ % IN_FLIGHT]);
		}
		/* What went wrong first counts. */
		if (n >= 0) {
			reached += n;
		} else if (!error) {
			error = n;
			snprintf(why, sizeof(why), "%s", hmm_last_error());
		}
	}
	return error ? hmmc_fail((int)error, "%s", why) : reached;
}

/* All of it, or nothing: the card is to reach as many pages as were found there. */
static int reach(struct hmm_range *range, const struct wants *wants, long found)
{
	struct hmm_range_private *private = range->priv;
	long reached;

	if (!private->hold)
		private->hold = hmmc_range_new_hold(private->hmm);
	private->reached = true;
	reached = reach_parts(range, wants);
	if (reached == found && hmm_range_valid(range))
		return 0;
	/* Why stays the last error. */
	if (reached >= 0)
		hmmc_fail(-EBUSY, "something changed in the range meanwhile; ask again");
	if (reached == -EPERM || reached == -ENODEV)
		return (int)reached;
	return reached >= 0 || reached == -EBUSY ? -EBUSY : -EFAULT;
}

/* Pages of the mirror's device, each at its own address. */
static void find_own(const struct hmm_range *range, size_t pages, uint64_t *daddrs)
{
	const unsigned long part = (range->priv->mirror->id & 0xff) + 1;

	for (size_t i = 0; i < pages; i++) {
		const unsigned long pfn = hmm_device_entry_to_pfn(range, range->pfns[i]);
		const bool own = pfn != -1UL && pfn / HMM_PFN_DEVICE_FIRST == part;

		daddrs[i] = own ? range->start + ((uint64_t)i << HMM_PAGE_SHIFT) : 0;
	}
}

/* ... which all are. */
static void number_all(const struct hmm_range *range, size_t pages, uint64_t *daddrs)
{
	size_t i = 0;

	for (; pages - i >= RANGE_STRIDE; i += RANGE_STRIDE)
		hmmc_range_count_up(daddrs + i, range->start + ((uint64_t)i << HMM_PAGE_SHIFT), HMM_PAGE_SIZE);
	for (; i < pages; i++)
		daddrs[i] = range->start + ((uint64_t)i << HMM_PAGE_SHIFT);
}

static bool is_to_be_written(const struct hmm_range *range, size_t i)
{
	return hmmc_range_want(range, i) & HMM_RANGE_WANT_WRITE;
}

/* Of a card: addresses are the owner's. Which pages are to be written stands in @daddrs meanwhile. */
static long card_map(struct hmm_range *range, uint64_t *daddrs, bool block)
{
	size_t pages = (range->end - range->start) >> HMM_PAGE_SHIFT;
	int error = hmmc_range_check_arrays(range);
	struct wants wants = {0};
	char why[HMMC_ERROR_TEXT];
	size_t own;
	long found;

	if (error)
		return error;
	wants.all = is_to_be_written(range, 0);
	if (range->pfn_flags_mask) {
		for (size_t i = 0; i < pages; i++)
			daddrs[i] = is_to_be_written(range, i);
		wants.each = daddrs;
	}
	found = hmmc_range_fault(range, block, &own);
	if (found >= 0)
		error = own ? reach(range, &wants, (long)own) : hmmc_fail(-EBUSY, "there is no page in the range");
	else
		error = (int)found;
	if (!error && own == pages)
		number_all(range, pages, daddrs);
	else if (!error)
		find_own(range, pages, daddrs);
	if (!error)
		return (long)own;
	snprintf(why, sizeof(why), "%s", hmm_last_error());
	memset(daddrs, 0, pages * sizeof(*daddrs));
	/* What it had before, too; or hmmd is gone, and its holder has. */
	if (range->priv->reached)
		reach_no_more(range->priv);
	return hmmc_fail(error, "%s", why);
}

long hmm_range_dma_map(struct hmm_range *range, struct hmm_device *device, uint64_t *daddrs,
		       bool block)
{
	int error = check_dma(range, device, daddrs);
	long pages, mapped = 0;

	if (!error && *device->bus && device->caps & HMM_DEVICE_DMA)
		return card_map(range, daddrs, block);
	pages = error ? error : hmm_range_fault(range, block);
	if (pages < 0)
		return pages;
	for (long i = 0; i < pages && !error; i++) {
		unsigned long pfn = hmm_device_entry_to_pfn(range, range->pfns[i]);

		daddrs[i] = 0;
		if (pfn == -1UL)
			continue;
		/* Another device's, seen because nothing was asked of it, has none either. */
		if (pfn / HMM_PFN_DEVICE_FIRST != (range->priv->mirror->id & 0xff) + 1) {
			error = hmmc_fail(
				-EFAULT,
				"%#lx is not in the device's memory, and there is no IOMMU",
				range->start + ((unsigned long)i << HMM_PAGE_SHIFT));
		} else {
			daddrs[i] = (uint64_t)pfn << HMM_PAGE_SHIFT;
			mapped++;
		}
	}
	if (!error && (!mapped || !hmm_range_valid(range)))
		error = hmmc_fail(-EBUSY,
				  "there is no page in the range, or something changed meanwhile");
	if (error)
		memset(daddrs, 0, (size_t)pages * sizeof(*daddrs));
	return error ? error : mapped;
}

static int prepare_mark(struct request *request)
{
	const struct hmm_mirror_private *mirror = request->data;

	((struct hmm_msg_dirty_mark *)request->message)->mirror = mirror->id;
	return 0;
}

/*
 * Pages [first, end) of the range have been written. Nobody waits for it: a callback may unmap. A
 * hmmd that does not hear of it any more tells of all pages.
 */
static int mark_written(const struct hmm_range *range, size_t first, size_t end)
{
	struct hmm_mirror_private *mirror = range->priv->mirror;
	struct hmm_msg_dirty_mark *message;
	struct request *request;

	request = hmmc_request_new(mirror->hmm->connection, HMM_OP_DIRTY_MARK, sizeof(*message));
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	message = (struct hmm_msg_dirty_mark *)request->message;
	message->addr = range->start + (first << HMM_PAGE_SHIFT);
	message->length = (end - first) << HMM_PAGE_SHIFT;
	__atomic_add_fetch(&mirror->references, 1, __ATOMIC_RELAXED);
	request->data = mirror;
	request->prepare = prepare_mark;
	request->complete = let_go;
	hmmc_request_post(request);
	return 0;
}

long hmm_range_dma_unmap(struct hmm_range *range, struct hmm_device *device, uint64_t *daddrs,
			 bool dirty)
{
	int error = check_dma(range, device, daddrs);
	size_t pages, first, end;
	long unmapped = 0;

	if (!error)
		error = hmmc_range_check_arrays(range);
	if (!error && range->priv->reached)
		error = reach_no_more(range->priv);
	if (error)
		return error;
	pages = (range->end - range->start) >> HMM_PAGE_SHIFT;
	for (first = 0; first < pages && !daddrs[first]; first++)
		;
	for (end = pages; end > first && !daddrs[end - 1]; end--)
		;
	/* The device's memory is the page, so there is nothing to write back; but who has a copy is to know. */
	if (dirty && first < end && hmmc_range_is_registered(range->priv))
		error = mark_written(range, first, end);
	if (error)
		return error;
	for (size_t i = first; i < end; i++) {
		if (!daddrs[i])
			continue;
		range->pfns[i] = range->values[HMM_PFN_NONE];
		daddrs[i] = 0;
		unmapped++;
	}
	return unmapped;
}
