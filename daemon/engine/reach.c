/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * reach.c - what a device that cannot fault may have. Runs on the owner's worker.
 *
 * Such a device does not ask for a page: it has to be there when it is touched, and stay. So
 * the rule is one about where pages may be: on such a device is only what is coherent, or
 * pinned on it. Nothing goes there but for a pin (or to become coherent); and what the pin is
 * taken from comes home (reach_leave). Whatever
 * is on the device may therefore be reached, and what is not may not.
 *
 * A page that the CPU has read is half there, as S, only where the device can be kept from
 * writing it: a card's IOMMU maps it for reading. Its driver has it back for writing by
 * asking for that (range.c, touch.c): the pin holds.
 *
 * Only memory that cannot come home at present (its owner's is used up) stays there
 * without a pin: whole, and its device is stopped for each change as for any other.
 */
#include "engine/owner.h"

bool reach_page(const struct mirror *mirror, const struct block *block, unsigned int i)
{
	enum hmm_page_state state = page_state(block, i);

	if (device_faults(mirror->device))
		return true;
	/* What passes through a shadow to a BAR, or back, is in neither's reach. */
	if (device_is_far(mirror->device) && !page_is_far(block, i))
		return false;
	return block_mirror(block) == mirror && (state == HMM_PAGE_DEVICE || state == HMM_PAGE_COHERENT);
}

bool reach_page_to_read(const struct mirror *mirror, const struct block *block, unsigned int i)
{
	return reach_page(mirror, block, i) ||
	       (device_shares(mirror->device) && block_mirror(block) == mirror &&
		page_state(block, i) == HMM_PAGE_SHARED);
}

bool reach_any(const struct mirror *mirror, const struct block *block, uint64_t start, uint64_t end)
{
	if (device_faults(mirror->device))
		return true;
	if (block_mirror(block) != mirror)
		return false;
	for (uint64_t at = start; at < end; at += HMM_PAGE_SIZE)
		if (reach_page_to_read(mirror, block, page_index(at)))
			return true;
	return false;
}

uint32_t reach_pinned(const struct owner *owner, uint64_t start, uint64_t end)
{
	uint32_t mirrors = 0;

	for (uint64_t at = start; owner->attributes.pins && at < end;) {
		struct hmm_attribute here = attribute_at(&owner->attributes, at);
		const struct mirror *mirror = owner->mirror[here.pinned];

		if (here.flags & HMM_ATTRIBUTE_PIN && mirror && !device_faults(mirror->device))
			mirrors |= 1U << here.pinned;
		at = here.end;
	}
	return mirrors;
}

void reach_leave(struct mirror *mirror, uint64_t start, uint64_t end, migrate_done done, void *data)
{
	if (device_faults(mirror->device) || mirror->owner->gone)
		done(mirror->owner, data, 0);
	else
		migrate_home_unless_pinned(mirror, start, end, done, data);
}
