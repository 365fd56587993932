// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * memory_pool.c - devices and what is charged to them: exact to the byte,
 * whoever charges at the same time; refused when full; named once; gone when
 * nobody holds them.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "engine_random.h"
#include "memory/pool.h"
#include "tests/leakcheck.h"

#define MIB (1ULL << 20)

LEAKCHECKED_SUITE(pool);

static int new_device(struct devices *devices, const char *name, uint64_t size, uint64_t creator,
		      struct device **device)
{
	return device_new(devices, name, HMM_POOL_KIND_MEMFD, NULL, size, 0, creator, device);
}

Test(pool, shares_of_the_whole)
{
	struct devices devices;
	struct device *a, *b, *c;

	devices_init(&devices, 10 * MIB);
	cr_assert(eq(int, new_device(&devices, "a", 6 * MIB, 1, &a), 0));
	cr_expect(eq(int, new_device(&devices, "b", 4 * MIB + 1, 1, &b), -ENOSPC));
	cr_assert(eq(int, new_device(&devices, "b", 4 * MIB, 1, &b), 0), "exactly what is left");
	cr_expect(eq(int, new_device(&devices, "c", 1, 1, &c), -ENOSPC));
	cr_assert(eq(int, new_device(&devices, "c", 0, 1, &c), 0),
		  "a device without memory takes none");
	cr_expect(eq(u64, devices.promised, 10 * MIB));
	cr_expect(eq(ptr, a->pool, b->pool), "one pool per kind and node");
	cr_expect(eq(u64, a->pool->promised, 10 * MIB));
	cr_expect(eq(u32, a->pool->devices, 3));
	/* Nothing of a refusal stays. */
	cr_expect(eq(ptr, device_by_name(&devices, "c"), c));
	devices_deinit(&devices);
}

Test(pool, sizes_are_rounded_up_to_the_pages_of_the_pool)
{
	struct devices devices;
	struct device *small, *huge, *again;

	devices_init(&devices, 5 * MIB);
	cr_assert(eq(int, new_device(&devices, "small", 1, 1, &small), 0));
	cr_expect(eq(u64, small->size, HMM_PAGE_SIZE));
	cr_assert(eq(int, device_new(&devices, "huge", HMM_POOL_KIND_MEMFD_HUGE, NULL, 1, 0, 1, &huge),
		     0));
	cr_expect(eq(u64, huge->size, HMM_BLOCK_SIZE));
	cr_expect(ne(ptr, small->pool, huge->pool));
	cr_expect(eq(int,
		     device_new(&devices, "more", HMM_POOL_KIND_HUGETLB, NULL, 2 * MIB + 1, 0, 1,
				&again),
		     -ENOSPC),
		  "what it would be rounded to counts");
	cr_expect(eq(int, new_device(&devices, "wraps", UINT64_MAX, 1, &again), -ENOSPC));
	cr_expect(eq(int, new_device(&devices, "wraps", UINT64_MAX - HMM_PAGE_SIZE + 2, 1, &again),
		     -ENOSPC));
	cr_expect(eq(int, new_device(&devices, "wraps", INT64_MAX, 1, &again), -ENOSPC));
	devices_deinit(&devices);
}

Test(pool, names)
{
	struct devices devices;
	struct device *a, *b;
	char name[65];

	devices_init(&devices, MIB);
	memset(name, 'n', sizeof(name));
	name[64] = '\0';
	cr_expect(eq(int, new_device(&devices, "", 0, 1, &a), -EINVAL));
	cr_expect(eq(int, new_device(&devices, name, 0, 1, &a), -EINVAL),
		  "64 characters don't fit");
	name[63] = '\0';
	cr_assert(eq(int, new_device(&devices, name, 0, 1, &a), 0));
	cr_expect(eq(str, a->name, name));
	cr_expect(eq(int, new_device(&devices, name, 0, 2, &b), -EBUSY));
	cr_expect(eq(ptr, device_by_name(&devices, name), a));
	cr_expect(eq(ptr, device_by_name(&devices, "other"), NULL));
	cr_expect(eq(ptr, device_by_id(&devices, a->id), a));
	cr_expect(eq(ptr, device_by_id(&devices, a->id + 1), NULL));
	/* Free again once it is gone; ids are never used twice. */
	b = a;
	uint32_t id = a->id;

	device_let_go(&devices, 1, 0);
	cr_assert(eq(int, new_device(&devices, name, 0, 2, &b), 0));
	cr_expect(ne(u32, b->id, id));
	devices_deinit(&devices);
}

/* The creator and the mirrors hold a device, in whatever order they let go. */
Test(pool, goes_with_the_last_that_holds_it)
{
	struct devices devices;
	struct device *device;
	uint32_t id;

	devices_init(&devices, MIB);
	/* The creator first. */
	cr_assert(eq(int, new_device(&devices, "d", MIB, 7, &device), 0));
	id = device->id;
	cr_expect(eq(ptr, device_use(&devices, id), device));
	cr_expect(eq(ptr, device_use(&devices, id), device));
	device_let_go(&devices, 7, id);
	cr_expect(eq(ptr, device_by_id(&devices, id), device), "mirrors hold it");
	device_unuse(&devices, device);
	cr_expect(eq(ptr, device_by_id(&devices, id), device));
	device_unuse(&devices, device);
	cr_expect(eq(ptr, device_by_id(&devices, id), NULL));
	cr_expect(eq(ptr, device_use(&devices, id), NULL));
	cr_expect(eq(u64, devices.promised, 0));
	/* The mirrors first. */
	cr_assert(eq(int, new_device(&devices, "d", MIB, 7, &device), 0));
	id = device->id;
	device_use(&devices, id);
	device_unuse(&devices, device);
	cr_expect(eq(ptr, device_by_id(&devices, id), device), "its creator holds it");
	device_let_go(&devices, 8, 0);
	device_let_go(&devices, 8, id);
	device_let_go(&devices, 7, id + 1);
	cr_expect(eq(ptr, device_by_id(&devices, id), device),
		  "another's letting go is not its creator's");
	device_let_go(&devices, 7, 0);
	cr_expect(eq(ptr, device_by_id(&devices, id), NULL));
	cr_expect(eq(u64, devices.promised, 0));
	devices_deinit(&devices);
}

Test(pool, all_devices_of_a_creator_go_at_once)
{
	struct devices devices;
	struct device *mine[3], *theirs;
	char name[] = "mine-0";

	devices_init(&devices, 4 * MIB);
	for (int i = 0; i < 3; i++, name[5]++)
		cr_assert(eq(int, new_device(&devices, name, MIB, 1, &mine[i]), 0));
	cr_assert(eq(int, new_device(&devices, "theirs", MIB, 2, &theirs), 0));
	cr_expect(eq(int, new_device(&devices, "late", 1, 2, &mine[0]), -ENOSPC));
	device_let_go(&devices, 1, 0);
	cr_expect(eq(ptr, device_by_name(&devices, "theirs"), theirs));
	cr_expect(eq(u64, devices.promised, MIB));
	cr_expect(eq(u32, theirs->pool->devices, 1));
	cr_expect(eq(u64, theirs->pool->promised, MIB));
	devices_deinit(&devices);
}

Test(pool, charges_are_exact)
{
	struct devices devices;
	struct device *a, *b;

	devices_init(&devices, 4 * MIB);
	cr_assert(eq(int, new_device(&devices, "a", MIB, 1, &a), 0));
	cr_assert(eq(int, new_device(&devices, "b", 2 * MIB, 1, &b), 0));
	cr_expect(eq(int, device_charge(a, MIB - HMM_PAGE_SIZE), 0));
	cr_expect(eq(int, device_charge(a, 2 * HMM_PAGE_SIZE), -ENOSPC));
	cr_expect(eq(u64, a->used, MIB - HMM_PAGE_SIZE), "a refusal charges nothing");
	cr_expect(eq(u64, a->pool->used, MIB - HMM_PAGE_SIZE));
	cr_expect(eq(int, device_charge(a, UINT64_MAX), -ENOSPC));
	cr_expect(eq(int, device_charge(a, UINT64_MAX - MIB + 2), -ENOSPC));
	cr_expect(eq(int, device_charge(a, HMM_PAGE_SIZE), 0));
	cr_expect(eq(int, device_charge(a, 1), -ENOSPC));
	cr_expect(eq(int, device_charge(a, 0), 0));
	/* A full device does not touch another's room. */
	cr_expect(eq(int, device_charge(b, 2 * MIB), 0));
	cr_expect(eq(u64, a->pool->used, 3 * MIB));
	/* What is there already counts: nothing else comes before it has gone. */
	device_overcharge(a, HMM_PAGE_SIZE);
	cr_expect(eq(u64, a->used, MIB + HMM_PAGE_SIZE));
	cr_expect(eq(int, device_charge(a, 1), -ENOSPC));
	cr_expect(eq(int, device_charge(a, 0), 0));
	device_uncharge(a, 2 * HMM_PAGE_SIZE);
	cr_expect(eq(int, device_charge(a, HMM_PAGE_SIZE), 0));
	device_uncharge(b, 2 * MIB);
	device_uncharge(a, MIB);
	cr_expect(eq(u64, a->used, 0));
	cr_expect(eq(u64, a->pool->used, 0));
	cr_expect(eq(u64, a->pool->peak, 3 * MIB + HMM_PAGE_SIZE), "the peak stays");
	devices_deinit(&devices);
}

#define CHARGERS 4
#define ROUNDS 20000

struct charger {
	pthread_t thread;
	struct device *device;
	struct random random;
	uint64_t held, refused;
};

static void *charge_and_uncharge(void *data)
{
	struct charger *me = data;

	for (int i = 0; i < ROUNDS; i++) {
		uint64_t bytes = (1 + random_below(&me->random, 16)) * HMM_PAGE_SIZE;

		if (me->held >= bytes && random_below(&me->random, 2)) {
			device_uncharge(me->device, bytes);
			me->held -= bytes;
		} else if (device_charge(me->device, bytes) == 0) {
			me->held += bytes;
			cr_assert(le(u64, atomic_load(&me->device->used), me->device->size));
		} else {
			me->refused++;
		}
	}
	return NULL;
}

Test(pool, many_threads_charge_and_the_sum_is_right)
{
	struct charger chargers[CHARGERS];
	struct devices devices;
	struct device *device;
	uint64_t held = 0, refused = 0;
	struct random random = random_begin("pool");

	devices_init(&devices, MIB);
	/* Too little for all, so that refusals happen in the middle of it. */
	cr_assert(eq(int, new_device(&devices, "d", 100 * HMM_PAGE_SIZE, 1, &device), 0));
	for (int i = 0; i < CHARGERS; i++) {
		chargers[i] = (struct charger){.device = device, .random = {random_next(&random)}};
		cr_assert(eq(int, pthread_create(&chargers[i].thread, NULL, charge_and_uncharge,
						 &chargers[i]), 0));
	}
	for (int i = 0; i < CHARGERS; i++) {
		pthread_join(chargers[i].thread, NULL);
		held += chargers[i].held;
		refused += chargers[i].refused;
	}
	cr_expect(lt(u64, 0, refused), "it was never full: the test tests nothing");
	cr_expect(eq(u64, device->used, held));
	cr_expect(eq(u64, device->pool->used, held));
	cr_expect(le(u64, device->pool->peak, device->size));
	cr_expect(ge(u64, device->pool->peak, held));
	devices_deinit(&devices);
}

/* ---- placement ---------------------------------------------------------------------- */

static struct placement placed(uint32_t mode, int32_t node, uint64_t nodes)
{
	struct placement placement;
	const char *why;

	cr_assert(eq(int, placement_make(&placement, mode, node, nodes, &why), 0), "%s", why);
	return placement;
}

static void expect_refused(uint32_t mode, int32_t node, uint64_t nodes, const char *because)
{
	struct placement placement;
	const char *why = NULL;

	cr_expect(eq(int, placement_make(&placement, mode, node, nodes, &why), -EINVAL));
	cr_expect(why && strstr(why, because), "%s", why);
}

Test(pool, placements_that_mean_something)
{
	struct placement one = placed(HMM_PLACEMENT_BIND, 1, 0), same = placed(HMM_PLACEMENT_BIND, -1, 2),
			 plain = placed(HMM_PLACEMENT_ANY, 1, 0), any = placed(HMM_PLACEMENT_ANY, -1, 0),
			 far = placed(HMM_PLACEMENT_PREFERRED, 1023, 0), both = placed(HMM_PLACEMENT_INTERLEAVE, -1, 3);
	uint64_t mask[HMM_NODE_WORDS], there[HMM_NODE_WORDS] = { 3 };

	cr_expect(placement_same(&one, &same), "a set of one node is that node");
	cr_expect(placement_same(&one, &plain), "a node alone is BIND");
	cr_expect(not(placement_same(&one, &both)));
	cr_expect(placement_lies_in(&both, there));
	cr_expect(placement_lies_in(&any, there));
	cr_expect(not(placement_lies_in(&far, there)));
	placement_mask(&far, mask);
	cr_expect(eq(u64, mask[15], 1ULL << 63));
	expect_refused(4, 0, 0, "no such placement");
	expect_refused(HMM_PLACEMENT_BIND, -1, 0, "needs a memory node");
	expect_refused(HMM_PLACEMENT_BIND, 0, 1, "both name");
	expect_refused(HMM_PLACEMENT_ANY, -1, 1, "nodes go with a placement");
	expect_refused(HMM_PLACEMENT_BIND, -2, 0, "0 to 1023");
	expect_refused(HMM_PLACEMENT_BIND, 1024, 0, "0 to 1023");
}

Test(pool, one_for_each_placement)
{
	const struct placement bound = placed(HMM_PLACEMENT_BIND, 0, 0), same = placed(HMM_PLACEMENT_BIND, -1, 1),
			       preferred = placed(HMM_PLACEMENT_PREFERRED, 0, 0);
	struct devices devices;
	struct device *a, *b, *c, *d;

	devices_init(&devices, 10 * MIB);
	cr_assert(eq(int, new_device(&devices, "a", MIB, 1, &a), 0));
	cr_assert(eq(int, device_new(&devices, "b", HMM_POOL_KIND_MEMFD, &bound, MIB, 0, 1, &b), 0));
	cr_assert(eq(int, device_new(&devices, "c", HMM_POOL_KIND_MEMFD, &same, MIB, 0, 1, &c), 0));
	cr_assert(eq(int, device_new(&devices, "d", HMM_POOL_KIND_MEMFD, &preferred, MIB, 0, 1, &d), 0));
	cr_expect(ne(ptr, a->pool, b->pool));
	cr_expect(eq(ptr, c->pool, b->pool));
	cr_expect(ne(ptr, d->pool, b->pool));
	devices_deinit(&devices);
}

static uint64_t free_bytes;
static unsigned int asked;

static int node_with_so_much(unsigned int node, uint64_t *bytes)
{
	asked++;
	*bytes = node == 3 ? free_bytes : 0;
	return node == 3 ? 0 : -ENOENT;
}

/* A node without room is a device without room; and it is not asked for each page. */
Test(pool, bound_to_a_full_node)
{
	const struct placement bound = placed(HMM_PLACEMENT_BIND, 3, 0), preferred = placed(HMM_PLACEMENT_PREFERRED, 3, 0);
	struct kernel_ops ops = kernel_real;
	struct devices devices;
	struct device *strict, *lax, *huge;

	ops.node_free = node_with_so_much;
	kernel = &ops;
	devices_init(&devices, 100 * MIB);
	cr_assert(eq(int, device_new(&devices, "strict", HMM_POOL_KIND_MEMFD, &bound, 8 * MIB, 0, 1, &strict), 0));
	cr_assert(eq(int, device_new(&devices, "lax", HMM_POOL_KIND_MEMFD, &preferred, 8 * MIB, 0, 1, &lax), 0));
	cr_assert(eq(int, device_new(&devices, "huge", HMM_POOL_KIND_HUGETLB, &bound, 8 * MIB, 0, 1, &huge), 0));
	free_bytes = HMM_PAGE_SIZE - 1;
	cr_expect(eq(int, device_charge(strict, HMM_PAGE_SIZE), -ENOSPC));
	cr_expect(eq(u64, atomic_load(&strict->used), 0), "nothing of a refusal stays");
	cr_expect(eq(u64, atomic_load(&strict->pool->used), 0));
	cr_expect(eq(int, device_charge(strict, 0), 0), "nothing needs no room");
	cr_expect(eq(int, device_charge(lax, HMM_PAGE_SIZE), 0), "it goes elsewhere");
	cr_expect(eq(int, device_charge(huge, HMM_BLOCK_SIZE), 0), "it has an answer of its own");
	/* Room for two pages, and then none, however much the device may have. */
	free_bytes = 2 * HMM_PAGE_SIZE;
	asked = 0;
	cr_expect(eq(int, device_charge(strict, HMM_PAGE_SIZE), 0));
	free_bytes = 0;
	cr_expect(eq(int, device_charge(strict, 2 * HMM_PAGE_SIZE), -ENOSPC), "only one page was granted beside");
	/* What came free counts at once. */
	free_bytes = 100 * MIB;
	asked = 0;
	for (unsigned int i = 0; i < 4; i++)
		cr_expect(eq(int, device_charge(strict, HMM_PAGE_SIZE), 0));
	cr_expect(ge(uint, asked, 1));
	cr_expect(eq(int, device_charge(strict, 8 * MIB), -ENOSPC), "its own size counts as before");
	kernel = &kernel_real;
	devices_deinit(&devices);
}
