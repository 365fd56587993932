/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * attribute.c - what was said of ranges of an owner's memory. Runs on the
 * owner's worker.
 *
 * A change builds the whole list anew in the place that is not active, merging
 * what is alike, and makes it active in one store: that is as cheap as advice is
 * rare, and leaves nothing half done when hmmd dies. Events (unmap, remap) can't
 * be refused, so they have room that advice may not use up; should that be full,
 * too, what was said of the highest addresses is lost, and the log says so.
 *
 * By default nothing is said, and every question costs one compare.
 */
#include "engine/attribute.h"

#include <errno.h>
#include <string.h>

#include "engine/notice.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"

/* ---- the map ---------------------------------------------------------------- */

/* The list being built. */
struct draft {
	struct hmm_attribute *list;
	unsigned int count;
	bool overflow;
};

static bool says_anything(const struct hmm_attribute *attribute)
{
	return attribute->flags || attribute->accessed_by || attribute->granularity;
}

static bool same(const struct hmm_attribute *a, const struct hmm_attribute *b)
{
	const size_t from = offsetof(struct hmm_attribute, flags);

	return memcmp((const char *)a + from, (const char *)b + from, sizeof(*a) - from) == 0;
}

static void draft_add(struct draft *draft, const struct hmm_attribute *what, uint64_t start, uint64_t end)
{
	struct hmm_attribute *last = draft->count ? &draft->list[draft->count - 1] : NULL;

	if (start >= end || !says_anything(what))
		return;
	if (last && last->end == start && same(last, what)) {
		last->end = end;
		return;
	}
	if (draft->count == HMM_ATTRIBUTES_ROOM) {
		draft->overflow = true;
		return;
	}
	draft->list[draft->count] = *what;
	draft->list[draft->count].start = start;
	draft->list[draft->count++].end = end;
}

/* The first interval that ends behind @addr. */
static unsigned int find(const struct attribute_map *map, uint64_t addr)
{
	unsigned int low = 0, high = map->count;

	while (low < high) {
		unsigned int middle = (low + high) / 2;

		if (map->list[middle].end <= addr)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void take(struct attribute_map *map, uint32_t active, uint32_t count)
{
	map->list = map->shared->list[active];
	map->count = count;
	map->pins = 0;
	map->pinned = 0;
	for (unsigned int i = 0; i < map->count; i++) {
		if (!(map->list[i].flags & HMM_ATTRIBUTE_PIN))
			continue;
		map->pins++;
		map->pinned += map->list[i].end - map->list[i].start;
	}
}

static struct draft draft_begin(struct attribute_map *map)
{
	return (struct draft){ .list = map->shared->list[!(map->shared->active & 1)] };
}

static void draft_commit(struct attribute_map *map, const struct draft *draft)
{
	uint32_t next = map->list == map->shared->list[0];

	map->shared->count[next] = draft->count;
	__atomic_store_n(&map->shared->active, next, __ATOMIC_RELEASE);
	take(map, next, draft->count);
}

/* What lies below @start, or from @end on, as it is. */
static void draft_keep_below(struct draft *draft, const struct attribute_map *map, uint64_t start)
{
	for (unsigned int i = 0; i < map->count && map->list[i].start < start; i++)
		draft_add(draft, &map->list[i], map->list[i].start,
			  map->list[i].end < start ? map->list[i].end : start);
}

static void draft_keep_above(struct draft *draft, const struct attribute_map *map, uint64_t end)
{
	for (unsigned int i = find(map, end); i < map->count; i++)
		draft_add(draft, &map->list[i], map->list[i].start > end ? map->list[i].start : end,
			  map->list[i].end);
}

static bool is_sound(const struct hmm_attribute *attribute)
{
	return attribute->start < attribute->end && attribute->end <= HMM_VA_END &&
	       (attribute->start | attribute->end) % HMM_PAGE_SIZE == 0 &&
	       !(attribute->flags & ~HMM_ATTRIBUTE_FLAGS) && says_anything(attribute) &&
	       attribute->granularity <= HMM_BLOCK_PAGES &&
	       !(attribute->granularity & (attribute->granularity - 1)) &&
	       attribute->priority <= EVICT_PRIORITY_MAX &&
	       attribute->preferred < HMM_MIRRORS_MAX && attribute->pinned < HMM_MIRRORS_MAX;
}

bool attribute_map_open(struct attribute_map *map, struct hmm_attributes *shared)
{
	uint32_t active = shared->active;
	bool sound = active <= 1 && shared->count[active] <= HMM_ATTRIBUTES_ROOM;

	map->shared = shared;
	for (unsigned int i = 0; sound && i < shared->count[active]; i++)
		sound = is_sound(&shared->list[active][i]) &&
			(!i || shared->list[active][i - 1].end <= shared->list[active][i].start);
	if (!sound) {
		shared->active = 0;
		shared->count[0] = 0;
	}
	take(map, shared->active, shared->count[shared->active]);
	return sound;
}

struct hmm_attribute attribute_at(const struct attribute_map *map, uint64_t addr)
{
	struct hmm_attribute nothing = { .start = 0, .end = HMM_VA_END };
	unsigned int i;

	if (!map->count)
		return nothing;
	i = find(map, addr);
	if (i < map->count && map->list[i].start <= addr)
		return map->list[i];
	if (i < map->count)
		nothing.end = map->list[i].start;
	if (i)
		nothing.start = map->list[i - 1].end;
	return nothing;
}

bool attribute_covers(const struct attribute_map *map, uint64_t start, uint64_t end, uint32_t flags)
{
	while (start < end) {
		struct hmm_attribute here = attribute_at(map, start);

		if ((here.flags & flags) != flags)
			return false;
		start = here.end;
	}
	return true;
}

bool attribute_is_uniform(const struct attribute_map *map, uint64_t start, uint64_t end)
{
	return attribute_at(map, start).end >= end;
}

int attribute_edit(struct attribute_map *map, uint64_t start, uint64_t end, attribute_change change,
		   const void *data)
{
	struct draft draft = draft_begin(map);

	draft_keep_below(&draft, map, start);
	for (uint64_t at = start; at < end;) {
		struct hmm_attribute here = attribute_at(map, at);
		uint64_t stop = here.end < end ? here.end : end;

		change(&here, data);
		draft_add(&draft, &here, at, stop);
		at = stop;
	}
	draft_keep_above(&draft, map, end);
	/* Fewer than before is always allowed: so that taking back works when it is full. */
	if (draft.overflow || (draft.count > HMM_ATTRIBUTES_MAX && draft.count > map->count))
		return -ENOSPC;
	draft_commit(map, &draft);
	return 0;
}

static void draft_commit_event(struct attribute_map *map, const struct draft *draft)
{
	if (draft->overflow)
		log_warn("what was said of some ranges is forgotten: unmapping has cut them into more than %u",
			 HMM_ATTRIBUTES_ROOM);
	draft_commit(map, draft);
}

void attribute_forget(struct attribute_map *map, uint64_t start, uint64_t end)
{
	unsigned int i = find(map, start);
	struct draft draft;

	if (i == map->count || map->list[i].start >= end)
		return;
	draft = draft_begin(map);
	draft_keep_below(&draft, map, start);
	draft_keep_above(&draft, map, end);
	draft_commit_event(map, &draft);
}

void attribute_move(struct attribute_map *map, uint64_t from, uint64_t to, uint64_t length)
{
	struct draft draft;
	unsigned int i = find(map, from);

	if (i == map->count || map->list[i].start >= from + length)
		return;
	draft = draft_begin(map);
	draft_keep_below(&draft, map, to);
	for (; i < map->count && map->list[i].start < from + length; i++) {
		const struct hmm_attribute *here = &map->list[i];
		uint64_t start = here->start > from ? here->start : from;
		uint64_t end = here->end < from + length ? here->end : from + length;

		draft_add(&draft, here, start - from + to, end - from + to);
	}
	draft_keep_above(&draft, map, to + length);
	draft_commit_event(map, &draft);
	attribute_forget(map, from, from + length);
}

void attribute_forget_mirror(struct attribute_map *map, unsigned int index)
{
	struct draft draft = draft_begin(map);

	if (!map->count)
		return;
	for (unsigned int i = 0; i < map->count; i++) {
		struct hmm_attribute here = map->list[i];

		here.accessed_by &= (uint16_t)~(1U << index);
		if (here.flags & HMM_ATTRIBUTE_PREFER_DEVICE && here.preferred == index) {
			here.flags &= ~HMM_ATTRIBUTE_PREFER_DEVICE;
			here.preferred = 0;
		}
		if (here.flags & HMM_ATTRIBUTE_PIN && here.pinned == index) {
			here.flags &= ~HMM_ATTRIBUTE_PIN;
			here.pinned = 0;
		}
		draft_add(&draft, &here, here.start, here.end);
	}
	draft_commit(map, &draft);
}

/* ---- what it means for a block -------------------------------------------------- */

static bool on_device(enum hmm_page_state state)
{
	return state == HMM_PAGE_DEVICE || state == HMM_PAGE_SHARED || state == HMM_PAGE_COHERENT;
}

static uint64_t block_end(const struct block *block)
{
	return block->addr + HMM_BLOCK_SIZE;
}

/* @only: to this mirror's device; NULL: to any. */
static bool is_pinned(const struct block *block, const struct mirror *only)
{
	const struct attribute_map *map = &block->owner->attributes;
	const struct pinning *pinning;

	TAILQ_FOREACH(pinning, &block->owner->pinnings, link)
		if (pinning->start < block_end(block) && pinning->end > block->addr)
			return true;
	if (!map->pins)
		return false;
	for (unsigned int i = find(map, block->addr); i < map->count && map->list[i].start < block_end(block); i++)
		if (map->list[i].flags & HMM_ATTRIBUTE_PIN && (!only || map->list[i].pinned == only->index))
			return true;
	return false;
}

bool block_is_pinned(const struct block *block)
{
	return is_pinned(block, NULL);
}

bool block_is_pinned_to(const struct block *block, const struct mirror *mirror)
{
	return is_pinned(block, mirror);
}

/* Whether any page of [start, end) of the block is on a device. */
static bool any_on_device(const struct block *block, uint64_t start, uint64_t end)
{
	for (; start < end; start += HMM_PAGE_SIZE)
		if (on_device(page_state(block, page_index(start))))
			return true;
	return false;
}

unsigned int block_evict_priority(const struct block *block)
{
	const struct attribute_map *map = &block->owner->attributes;
	unsigned int highest = 0;
	bool any = false;

	if (!map->count)
		return EVICT_PRIORITY_DEFAULT;
	for (uint64_t at = block->addr; at < block_end(block);) {
		struct hmm_attribute here = attribute_at(map, at);
		uint64_t end = here.end < block_end(block) ? here.end : block_end(block);
		unsigned int priority = here.flags & HMM_ATTRIBUTE_PRIORITY ? here.priority :
									      EVICT_PRIORITY_DEFAULT;

		if (any_on_device(block, at, end)) {
			any = true;
			if (highest < priority)
				highest = priority;
		}
		at = end;
	}
	return any ? highest : EVICT_PRIORITY_DEFAULT;
}

bool block_is_discarded(const struct block *block)
{
	return block->charged && block_at_rest(block) &&
	       !any_on_device(block, block->addr, block_end(block));
}

/* Whether @attribute wants pages to be at the CPU and on this mirror's device alike. */
static bool is_for_copies(const struct hmm_attribute *attribute, unsigned int mirror)
{
	return attribute->flags & HMM_ATTRIBUTE_READ_MOSTLY ||
	       (attribute->flags & HMM_ATTRIBUTE_PIN && attribute->pinned == mirror) ||
	       (attribute->flags & HMM_ATTRIBUTE_PREFER_DEVICE && attribute->preferred == mirror) ||
	       attribute->accessed_by >> mirror & 1;
}

static bool is_being_pinned(const struct owner *owner, uint64_t addr)
{
	const struct pinning *pinning;

	TAILQ_FOREACH(pinning, &owner->pinnings, link)
		if (pinning->start <= addr && pinning->end > addr)
			return true;
	return false;
}

bool attribute_leaves_copy(const struct block *block, uint64_t addr)
{
	const struct owner *owner = block->owner;
	const struct mirror *mirror = block_mirror(block);
	struct hmm_attribute here;

	if (owner->closing || !mirror || mirror->leaving || device_is_far(mirror->device) ||
	    !device_shares(mirror->device))
		return false;
	if (is_being_pinned(owner, addr))
		return true;
	if (!owner->attributes.count)
		return false;
	here = attribute_at(&owner->attributes, addr);
	return is_for_copies(&here, mirror->index);
}

bool attribute_keeps_copies(const struct block *block)
{
	const struct attribute_map *map = &block->owner->attributes;
	const struct mirror *mirror = block_mirror(block);

	if (!map->count || block->owner->closing || !mirror || mirror->leaving)
		return false;
	for (unsigned int i = find(map, block->addr); i < map->count && map->list[i].start < block_end(block); i++)
		if (is_for_copies(&map->list[i], mirror->index))
			return true;
	return false;
}

bool attribute_wants_copy(const struct owner *owner, const struct mirror *mirror, uint64_t addr)
{
	struct hmm_attribute here;

	if (!owner->attributes.count)
		return false;
	here = attribute_at(&owner->attributes, addr);
	return here.flags & (HMM_ATTRIBUTE_READ_MOSTLY | HMM_ATTRIBUTE_PREFER_SYSTEM) ||
	       here.accessed_by >> mirror->index & 1;
}

struct prefetch_hint attribute_hint(const struct owner *owner, uint64_t addr, bool shares)
{
	struct prefetch_hint hint = PREFETCH_NO_HINT;
	uint32_t still = shares ? 0 : HMM_ATTRIBUTE_PIN | HMM_ATTRIBUTE_PREFER_DEVICE;
	struct hmm_attribute here;

	if (!owner->attributes.count)
		return hint;
	here = attribute_at(&owner->attributes, addr);
	hint.granularity = here.granularity;
	hint.off = here.flags & (HMM_ATTRIBUTE_NO_PREFETCH | still);
	hint.start = here.start >> HMM_PAGE_SHIFT;
	hint.end = here.end >> HMM_PAGE_SHIFT;
	return hint;
}

/* The log is told once a second, the counter each time. */
#define TELL_NS (1000 * NS_PER_MS)

void attribute_note_left(struct block *block, const struct pages *pages)
{
	struct owner *owner = block->owner;
	unsigned int broken = 0, first = 0, end;
	uint64_t addr = 0;

	if (!owner->attributes.pins || owner->closing)
		return;
	for (; pages_run(pages, &first, &end); first = end)
		for (unsigned int i = first; i < end; i++) {
			if (on_device(page_state(block, i)) ||
			    !(attribute_at(&owner->attributes, page_addr(block, i)).flags & HMM_ATTRIBUTE_PIN))
				continue;
			if (!broken++)
				addr = page_addr(block, i);
		}
	if (!broken)
		return;
	owner_count(owner, COUNTER_PINS_BROKEN, broken);
	notice(owner, (struct hmm_notice){
		.kind = HMM_EVENT_KIND_PIN_BROKEN, .mirror = block_mirror(block) ? block_mirror(block)->id : 0,
		.start = addr, .end = addr + HMM_PAGE_SIZE, .pages = broken });
	if (owner->broken_told && owner->worker->now - owner->broken_told < TELL_NS)
		return;
	owner->broken_told = owner->worker->now;
	log_warn("owner %u: the CPU has taken pinned pages (%u at %#lx): they are on the device again when it touches them, or is given them",
		 owner->id, broken, addr);
}
