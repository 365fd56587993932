// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_attribute.c - what was said of ranges, against a plain array that says
 * the same page by page; what lies in the ledger after a crash; and what eviction
 * asks of a block.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine_fixture.h"
#include "engine_random.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(attribute_map);
LEAKCHECKED_SUITE(attribute_block);

#define UNITS 256U
#define BASE 0x7f0000000000ULL

struct model {
	uint32_t flags[UNITS];
	uint8_t priority[UNITS];
};

static uint64_t at_unit(unsigned int unit)
{
	return BASE + (uint64_t)unit * HMM_PAGE_SIZE;
}

static struct hmm_attributes *shared_new(void)
{
	struct hmm_attributes *shared = calloc(1, sizeof(*shared));

	cr_assert_not_null(shared);
	return shared;
}

static bool unlike(const struct model *model, unsigned int a, unsigned int b)
{
	return model->flags[a] != model->flags[b] || model->priority[a] != model->priority[b];
}

/* The list says what the model says, sorted, merged, and nothing that says nothing. */
static void check_map(const struct attribute_map *map, const struct model *model)
{
	unsigned int intervals = 0, pins = 0;

	for (unsigned int i = 0; i < UNITS; i++) {
		struct hmm_attribute here = attribute_at(map, at_unit(i) + i * 16);

		intervals += model->flags[i] && (!i || unlike(model, i - 1, i));
		cr_assert(eq(u32, here.flags, model->flags[i]), "page %u", i);
		cr_assert(eq(u8, here.priority, model->priority[i]), "page %u", i);
		cr_assert(here.start <= at_unit(i) && here.end > at_unit(i));
		cr_assert(here.start <= BASE || unlike(model, (unsigned int)((here.start - BASE) / HMM_PAGE_SIZE) - 1, i),
			  "what holds at page %u holds before its start", i);
	}
	cr_assert(eq(uint, map->count, intervals), "not merged, or cut up");
	for (unsigned int i = 0; i < map->count; i++) {
		pins += !!(map->list[i].flags & HMM_ATTRIBUTE_PIN);
		cr_assert(map->list[i].start < map->list[i].end);
		cr_assert(i == 0 || map->list[i - 1].end <= map->list[i].start);
	}
	cr_assert(eq(uint, map->pins, pins));
}

static void check_questions(const struct attribute_map *map, const struct model *model, struct random *random)
{
	for (int i = 0; i < 20; i++) {
		unsigned int start = random_below(random, UNITS);
		unsigned int end = start + 1 + random_below(random, UNITS - start);
		uint32_t flag = 1U << random_below(random, 7);
		bool all = true, alike = true;

		for (unsigned int at = start; at < end; at++) {
			all &= !!(model->flags[at] & flag);
			alike &= !unlike(model, start, at);
		}
		cr_assert(eq(int, attribute_covers(map, at_unit(start), at_unit(end), flag), all));
		cr_assert(eq(int, attribute_is_uniform(map, at_unit(start), at_unit(end)), alike));
	}
}

struct edit {
	uint32_t set, clear;
	int priority;		/* -1: as it was */
};

static void edit_one(struct hmm_attribute *attribute, const void *data)
{
	const struct edit *edit = data;

	attribute->flags = (attribute->flags | edit->set) & ~edit->clear;
	if (edit->priority >= 0) {
		attribute->flags |= HMM_ATTRIBUTE_PRIORITY;
		attribute->priority = (uint8_t)edit->priority;
	}
}

static void model_edit(struct model *model, unsigned int start, unsigned int end, const struct edit *edit)
{
	for (unsigned int i = start; i < end; i++) {
		struct hmm_attribute attribute = { .flags = model->flags[i], .priority = model->priority[i] };

		edit_one(&attribute, edit);
		model->flags[i] = attribute.flags;
		model->priority[i] = attribute.flags ? attribute.priority : 0;
	}
}

static void model_move(struct model *model, unsigned int from, unsigned int to, unsigned int n)
{
	struct model before = *model;
	bool any = false;

	for (unsigned int i = 0; i < n; i++)
		any |= !!before.flags[from + i];
	for (unsigned int i = 0; any && i < n; i++) {
		model->flags[from + i] = model->priority[from + i] = 0;
		model->flags[to + i] = before.flags[from + i];
		model->priority[to + i] = before.priority[from + i];
	}
}

static struct edit edit_at_random(struct random *random)
{
	/* Priority is kept apart: a value without its flag would say nothing. */
	uint32_t flags = HMM_ATTRIBUTE_FLAGS & ~HMM_ATTRIBUTE_PRIORITY;
	struct edit edit = { .priority = -1 };

	if (random_below(random, 2))
		edit.set = (1U << random_below(random, 7)) & flags;
	else
		edit.clear = (uint32_t)random_next(random) & flags;
	if (!random_below(random, 4))
		edit.priority = (int)random_below(random, 3);
	return edit;
}

Test(attribute_map, at_random)
{
	struct random random = random_begin("attributes");

	for (int round = 0; round < 40; round++) {
		struct hmm_attributes *shared = shared_new();
		struct attribute_map map = { 0 };
		struct model model = { 0 };

		cr_assert(attribute_map_open(&map, shared));
		for (int step = 0; step < 200; step++) {
			unsigned int most = random_below(&random, 10) ? 8 : UNITS;
			unsigned int start = random_below(&random, UNITS);
			unsigned int room = UNITS - start < most ? UNITS - start : most;
			unsigned int end = start + 1 + random_below(&random, room), to;
			struct edit edit = edit_at_random(&random);

			switch (random_below(&random, 8)) {
			case 0:
				attribute_forget(&map, at_unit(start), at_unit(end));
				memset(model.flags + start, 0, (end - start) * sizeof(model.flags[0]));
				memset(model.priority + start, 0, end - start);
				break;
			case 1:
				to = random_below(&random, UNITS);
				if (to + (end - start) > UNITS || (to < end && to + (end - start) > start))
					break;	/* mremap() refuses what overlaps */
				attribute_move(&map, at_unit(start), at_unit(to), (uint64_t)(end - start) * HMM_PAGE_SIZE);
				model_move(&model, start, to, end - start);
				check_map(&map, &model);
				/* As a replay of the journal does. */
				attribute_move(&map, at_unit(start), at_unit(to), (uint64_t)(end - start) * HMM_PAGE_SIZE);
				break;
			default:
				cr_assert(eq(int, attribute_edit(&map, at_unit(start), at_unit(end), edit_one, &edit), 0));
				model_edit(&model, start, end, &edit);
			}
			check_map(&map, &model);
			check_questions(&map, &model, &random);
			/* A successor finds the same. */
			cr_assert(attribute_map_open(&map, shared));
			check_map(&map, &model);
		}
		free(shared);
	}
}

static int set(struct attribute_map *map, uint64_t start, uint64_t end, uint32_t flags)
{
	struct edit edit = { .set = flags, .priority = -1 };

	return attribute_edit(map, start, end, edit_one, &edit);
}

static int clear(struct attribute_map *map, uint64_t start, uint64_t end, uint32_t flags)
{
	struct edit edit = { .clear = flags, .priority = -1 };

	return attribute_edit(map, start, end, edit_one, &edit);
}

Test(attribute_map, bounded_but_for_events)
{
	struct hmm_attributes *shared = shared_new();
	struct attribute_map map = { 0 };
	unsigned int i;

	cr_assert(attribute_map_open(&map, shared));
	for (i = 0; i < HMM_ATTRIBUTES_MAX; i++)
		cr_assert(eq(int, set(&map, at_unit(4 * i), at_unit(4 * i + 3), HMM_ATTRIBUTE_PIN), 0));
	cr_expect(eq(int, set(&map, at_unit(4 * i), at_unit(4 * i + 3), HMM_ATTRIBUTE_PIN), -ENOSPC));
	cr_expect(eq(uint, map.count, HMM_ATTRIBUTES_MAX), "what is refused changes nothing");
	/* Taking a middle back would make two of one. */
	cr_expect(eq(int, clear(&map, at_unit(1), at_unit(2), HMM_ATTRIBUTE_PIN), -ENOSPC));
	/* Unmapping it does. */
	for (i = 0; i < HMM_ATTRIBUTES_ROOM - HMM_ATTRIBUTES_MAX; i++)
		attribute_forget(&map, at_unit(4 * i + 1), at_unit(4 * i + 2));
	cr_expect(eq(uint, map.count, HMM_ATTRIBUTES_ROOM));
	/* Past that the highest is lost, and all else stays. */
	attribute_forget(&map, at_unit(4 * i + 1), at_unit(4 * i + 2));
	cr_expect(eq(uint, map.count, HMM_ATTRIBUTES_ROOM));
	cr_expect(eq(u32, attribute_at(&map, at_unit(4 * i)).flags, HMM_ATTRIBUTE_PIN));
	cr_expect(eq(u32, attribute_at(&map, at_unit(4 * i + 1)).flags, 0));
	cr_expect(eq(u32, attribute_at(&map, at_unit(4 * (HMM_ATTRIBUTES_MAX - 1))).flags, 0));
	/* Fewer is allowed, whatever the number. */
	cr_expect(eq(int, clear(&map, at_unit(0), at_unit(3), HMM_ATTRIBUTE_PIN), 0));
	cr_expect(eq(uint, map.count, HMM_ATTRIBUTES_ROOM - 2));
	free(shared);
}

static void damage_nothing(struct hmm_attributes *shared)
{
	(void)shared;
}

static void damage_active(struct hmm_attributes *shared)
{
	shared->active = 2;
}

static void damage_count(struct hmm_attributes *shared)
{
	shared->count[shared->active] = HMM_ATTRIBUTES_ROOM + 1;
}

static void damage_order(struct hmm_attributes *shared)
{
	shared->list[shared->active][0].end = shared->list[shared->active][1].start + HMM_PAGE_SIZE;
}

static void damage_edge(struct hmm_attributes *shared)
{
	shared->list[shared->active][0].start++;
}

static void damage_mirror(struct hmm_attributes *shared)
{
	shared->list[shared->active][0].pinned = HMM_MIRRORS_MAX;
}

static void damage_flags(struct hmm_attributes *shared)
{
	shared->list[shared->active][0].flags |= 1U << 30;
}

static void damage_granularity(struct hmm_attributes *shared)
{
	shared->list[shared->active][0].granularity = 3;
}

static void damage_priority(struct hmm_attributes *shared)
{
	shared->list[shared->active][0].priority = 101;
}

/* The memfd comes back from a client: what makes no sense is not believed. */
Test(attribute_map, damaged_lists_are_emptied)
{
	static void (*const damage[])(struct hmm_attributes *) = {
		damage_nothing, damage_active, damage_count, damage_order, damage_edge,
		damage_mirror, damage_flags, damage_granularity, damage_priority,
	};

	for (unsigned int i = 0; i < sizeof(damage) / sizeof(damage[0]); i++) {
		struct hmm_attributes *shared = shared_new();
		struct attribute_map map = { 0 };

		cr_assert(attribute_map_open(&map, shared));
		cr_assert(eq(int, set(&map, at_unit(0), at_unit(2), HMM_ATTRIBUTE_PIN), 0));
		cr_assert(eq(int, set(&map, at_unit(4), at_unit(5), HMM_ATTRIBUTE_PIN), 0));
		damage[i](shared);
		cr_expect(eq(int, attribute_map_open(&map, shared), i == 0), "damage %u", i);
		cr_expect(eq(uint, map.count, i == 0 ? 2 : 0), "damage %u", i);
		free(shared);
	}
}

/* Killed while the other list was being written. */
Test(attribute_map, a_crash_leaves_the_old_list)
{
	struct hmm_attributes *shared = shared_new();
	struct attribute_map map = { 0 };

	cr_assert(attribute_map_open(&map, shared));
	cr_assert(eq(int, set(&map, at_unit(0), at_unit(2), HMM_ATTRIBUTE_PIN), 0));
	memset(shared->list[!shared->active], 0xa5, sizeof(shared->list[0]));
	shared->count[!shared->active] = 0xa5a5;
	cr_assert(attribute_map_open(&map, shared));
	cr_expect(eq(uint, map.count, 1));
	cr_expect(eq(int, set(&map, at_unit(2), at_unit(3), HMM_ATTRIBUTE_PIN), 0));
	cr_expect(eq(uint, map.count, 1));
	free(shared);
}

static void name_mirrors(struct hmm_attribute *attribute, const void *data)
{
	(void)data;
	attribute->flags |= HMM_ATTRIBUTE_PIN | HMM_ATTRIBUTE_PREFER_DEVICE | HMM_ATTRIBUTE_READ_MOSTLY;
	attribute->pinned = 2;
	attribute->preferred = 3;
	attribute->accessed_by = 1 << 2 | 1 << 3;
}

Test(attribute_map, a_mirror_goes_with_what_named_it)
{
	struct hmm_attributes *shared = shared_new();
	struct attribute_map map = { 0 };
	struct hmm_attribute here;

	cr_assert(attribute_map_open(&map, shared));
	cr_assert(eq(int, attribute_edit(&map, at_unit(0), at_unit(9), name_mirrors, NULL), 0));
	attribute_forget_mirror(&map, 1);
	here = attribute_at(&map, at_unit(0));
	cr_expect(eq(u16, here.accessed_by, 1 << 2 | 1 << 3));
	attribute_forget_mirror(&map, 2);
	here = attribute_at(&map, at_unit(0));
	cr_expect(eq(u16, here.accessed_by, 1 << 3));
	cr_expect(eq(u32, here.flags, HMM_ATTRIBUTE_PREFER_DEVICE | HMM_ATTRIBUTE_READ_MOSTLY));
	attribute_forget_mirror(&map, 3);
	here = attribute_at(&map, at_unit(0));
	cr_expect(eq(u16, here.accessed_by, 0));
	cr_expect(eq(u32, here.flags, HMM_ATTRIBUTE_READ_MOSTLY));
	free(shared);
}

/* ---- of a block ------------------------------------------------------------------------ */

static uint64_t room_page(unsigned int page)
{
	return ROOM_START + (uint64_t)page * HMM_PAGE_SIZE;
}

static void prioritise(struct owner *owner, unsigned int first, unsigned int end, int priority)
{
	struct edit edit = { .priority = priority };

	cr_assert(eq(int, attribute_edit(&owner->attributes, room_page(first), room_page(end), edit_one, &edit), 0));
}

Test(attribute_block, pinned_by_any_page)
{
	struct fixture fixture;
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 2 * HMM_BLOCK_PAGES);
	block = fixture_block(&fixture, 1);
	cr_expect(not(block_is_pinned(block)));
	cr_assert(eq(int, set(&fixture.owner->attributes, room_page(0), room_page(HMM_BLOCK_PAGES), HMM_ATTRIBUTE_PIN), 0));
	cr_expect(not(block_is_pinned(block)), "its neighbour's pin is not its own");
	cr_expect(block_is_pinned(fixture_block(&fixture, 0)));
	cr_assert(eq(int, set(&fixture.owner->attributes, room_page(2 * HMM_BLOCK_PAGES - 1),
			      room_page(2 * HMM_BLOCK_PAGES), HMM_ATTRIBUTE_PIN), 0));
	cr_expect(block_is_pinned(block));
	cr_assert(eq(int, clear(&fixture.owner->attributes, ROOM_START, ROOM_END, HMM_ATTRIBUTE_PIN), 0));
	cr_expect(not(block_is_pinned(block)));
	fixture_end(&fixture);
}

/* Before a pin is noted its pages are on their way. */
Test(attribute_block, pinned_while_it_is_being_pinned)
{
	struct pinning pinning = { .start = room_page(HMM_BLOCK_PAGES), .end = room_page(HMM_BLOCK_PAGES + 1) };
	struct fixture fixture;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 2 * HMM_BLOCK_PAGES);
	TAILQ_INSERT_TAIL(&fixture.owner->pinnings, &pinning, link);
	cr_expect(not(block_is_pinned(fixture_block(&fixture, 0))));
	cr_expect(block_is_pinned(fixture_block(&fixture, 1)));
	TAILQ_REMOVE(&fixture.owner->pinnings, &pinning, link);
	cr_expect(not(block_is_pinned(fixture_block(&fixture, 1))));
	fixture_end(&fixture);
}

Test(attribute_block, an_entry_of_a_range_is_no_broken_pin)
{
	struct pages shared = pages_from(0, 2), pages = pages_from(0, 1);
	struct fixture fixture;
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 2);
	block = fixture_block(&fixture, 0);
	home_begin(block, &shared, HMM_BLOCK_PAGES, true, HMM_REASON_CPU_FAULT, 0, NULL);
	cr_assert(eq(uint, block_count(block, HMM_PAGE_SHARED), 2));
	block_set_remote(block, 7, true);
	cr_assert(eq(int, set(&fixture.owner->attributes, room_page(0), room_page(10), HMM_ATTRIBUTE_PIN), 0));
	/* A page that the device has, and one that a range was shown at the CPU. */
	pages_set(&pages, 7);
	unshare_begin(block, &pages, HMM_REASON_PROTECT, NULL);
	cr_assert(block_at_rest(block));
	cr_expect(not(block_is_remote(block, 7)));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_PINS_BROKEN], 1));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(attribute_block, priority_is_the_highest_of_what_is_there)
{
	struct fixture fixture;
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 100, 200);
	block = fixture_block(&fixture, 0);
	cr_expect(eq(uint, block_evict_priority(block), EVICT_PRIORITY_DEFAULT));
	/* Pages that are not on the device do not count. */
	prioritise(fixture.owner, 0, 100, 90);
	cr_expect(eq(uint, block_evict_priority(block), EVICT_PRIORITY_DEFAULT));
	prioritise(fixture.owner, 100, 150, 10);
	cr_expect(eq(uint, block_evict_priority(block), EVICT_PRIORITY_DEFAULT), "the other half has 50");
	prioritise(fixture.owner, 150, 300, 0);
	cr_expect(eq(uint, block_evict_priority(block), 10));
	prioritise(fixture.owner, 199, 200, 77);
	cr_expect(eq(uint, block_evict_priority(block), 77));
	fixture_end(&fixture);
}

Test(attribute_block, discarded_is_charged_for_nothing)
{
	struct fixture fixture;
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD_HUGE, POOL);
	fixture_out(&fixture, 0, 100);
	block = fixture_block(&fixture, 0);
	cr_expect(not(block_is_discarded(block)));
	block_discard(block, 0, 50, HMM_REASON_DISCARD);
	cr_expect(not(block_is_discarded(block)), "half of it is needed");
	block_discard(block, 50, 100, HMM_REASON_DISCARD);
	cr_expect(block_is_discarded(block));
	cr_expect(ne(uint, block->charged, 0));
	cr_expect(block_punch_stale(block));
	cr_expect(not(block_is_discarded(block)));
	cr_expect(eq(uint, block->charged, 0));
	fixture_end(&fixture);
}
