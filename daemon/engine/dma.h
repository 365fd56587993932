/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dma.h - what a mirror's card reaches through its IOMMU, at the owner's own addresses.
 *
 * block->dma says which pages that are. A page in it is D or C, complete in the block's shadow, and
 * stays both until it has left: transit_proceed() takes out what a transit is about when the
 * drivers have answered, or are too late, and before anything else is done.
 */
#ifndef HMMD_DMA_H
#define HMMD_DMA_H

#include "engine/owner.h"

/*
 * What a range of the driver's has there: blocks stay mapped as long as one of these has a part of
 * them.
 */
struct transfer {
	TAILQ_ENTRY(transfer) link;
	uint64_t peer;
	uint32_t id; /* the library's number of the range */
	uint64_t start, end;
};

/*
 * Whether the peer of @letter may have to do with @device, if that is a card; or why not. Any
 * thread.
 */
int dma_check_driver(const struct device *device, struct letter *letter);

void dma_request(struct owner *owner, struct letter *letter); /* DMA_MAP, _UNMAP */

/*
 * The card reaches nothing of the block any more if it reached one of @pages. Its driver has been
 * told, or is.
 */
void dma_cut(struct block *block, const struct pages *pages);
/* The same at once, whatever it is, with its driver told after it; at rest or not. */
void dma_withdraw(struct block *block, int reason);
/*
 * If the mirror's card reaches a page of [*@start, *@end) it loses the block: that is what its
 * driver has to hear.
 */
void dma_widen(const struct mirror *mirror, const struct block *block, uint64_t *start,
	       uint64_t *end);
/* Whether a card reaches one of pages [first, end). */
bool dma_reaches(const struct block *block, unsigned int first, unsigned int end);

void dma_release(struct owner *owner, uint64_t peer, uint32_t mirror,
		 uint32_t id); /* the range is gone */
void dma_peer_gone(struct owner *owner, uint64_t peer);
void dma_tick(struct owner *owner); /* cards that are recalled are left */
void dma_close(struct mirror *mirror);	     /* nothing is mapped; ranges that were are not valid */
void dma_mirror_gone(struct mirror *mirror); /* ... and the card may be another owner's, if it
					      * was the last of this one's there */

#endif
