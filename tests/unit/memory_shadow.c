// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * memory_shadow.c - a mirror's shadows: found and made by address, in order,
 * adopted from a former life; filled page by page and no more than that;
 * punched, and then gone.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine_random.h"
#include "memory/shadow.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(shadow);

#define REGION(n) (0x7e0000000000ULL + (n) * HMM_REGION_SIZE)

static const struct pool pool_4k = { .kind = HMM_POOL_KIND_MEMFD, .placement = { .node = -1 } };
static const struct pool pool_huge = { .kind = HMM_POOL_KIND_MEMFD_HUGE, .placement = { .node = -1 } };

static uint64_t allocated(const struct shadow *shadow)
{
	struct stat stat;

	cr_assert(eq(int, fstat(shadow->fd, &stat), 0));
	return (uint64_t)stat.st_blocks * 512;
}

static void check_order(const struct shadows *shadows)
{
	for (unsigned int i = 1; i < shadows->count; i++)
		cr_assert(shadows->list[i - 1]->base < shadows->list[i]->base);
}

Test(shadow, found_by_any_address_of_its_region)
{
	struct shadows shadows = { 0 };
	struct shadow *shadow, *same;

	cr_expect(eq(ptr, shadow_find(&shadows, REGION(0)), NULL));
	cr_assert(eq(int,
		     shadow_get(&shadows, &pool_4k, REGION(0) + 12345 * HMM_PAGE_SIZE, &shadow),
		     0));
	cr_expect(eq(u64, shadow->base, REGION(0)));
	cr_expect(eq(ptr, shadow_find(&shadows, REGION(0)), shadow));
	cr_expect(eq(ptr, shadow_find(&shadows, REGION(1) - 1), shadow));
	cr_expect(eq(ptr, shadow_find(&shadows, REGION(1)), NULL));
	cr_expect(eq(ptr, shadow_find(&shadows, REGION(0) - 1), NULL));
	cr_assert(eq(int, shadow_get(&shadows, &pool_4k, REGION(1) - 1, &same), 0));
	cr_expect(eq(ptr, same, shadow), "one per region");
	cr_expect(eq(u64, allocated(shadow), 0), "an empty shadow costs nothing");
	shadows_deinit(&shadows);
	cr_expect(eq(ptr, shadow_find(&shadows, REGION(0)), NULL));
}

Test(shadow, in_order_however_they_come)
{
	struct random random = random_begin("shadow");
	struct shadows shadows = { 0 };
	struct shadow *made[24] = { 0 }, *shadow;

	for (int i = 0; i < 100; i++) {
		unsigned int n = random_below(&random, 24);

		cr_assert(eq(int, shadow_get(&shadows, &pool_4k, REGION(n), &shadow), 0));
		cr_assert(made[n] == NULL || made[n] == shadow);
		made[n] = shadow;
		check_order(&shadows);
		for (unsigned int j = 0; j < 24; j++)
			cr_assert(eq(ptr, shadow_find(&shadows, REGION(j) + 7), made[j]));
	}
	shadows_deinit(&shadows);
}

Test(shadow, descriptors_are_private_and_of_fixed_size)
{
	struct shadows shadows = { 0 };
	struct shadow *shadow;
	struct stat stat;

	cr_assert(eq(int, shadow_get(&shadows, &pool_4k, REGION(3), &shadow), 0));
	cr_assert(eq(int, fstat(shadow->fd, &stat), 0));
	cr_expect(eq(u64, (uint64_t)stat.st_size, HMM_REGION_SIZE));
	cr_expect(eq(uint, stat.st_mode & 0777, 0600));
	cr_expect(fcntl(shadow->fd, F_GETFD) & FD_CLOEXEC);
	/* Its owner has it, too, and could take hmmd down by cutting it under hmmd's mapping. */
	cr_expect(lt(int, ftruncate(shadow->fd, 0), 0));
	cr_expect(lt(int, ftruncate(shadow->fd, 2 * HMM_REGION_SIZE), 0));
	shadows_deinit(&shadows);
}

Test(shadow, stores_one_page_and_allocates_no_more)
{
	struct shadows shadows = { 0 };
	struct shadow *shadow;
	char bytes[HMM_PAGE_SIZE];
	uint64_t addr = REGION(5) + 700 * HMM_PAGE_SIZE;

	memset(bytes, 0x5a, sizeof(bytes));
	cr_assert(eq(int, shadow_get(&shadows, &pool_4k, addr, &shadow), 0));
	cr_expect(not(shadow_has_data(shadow, REGION(5), HMM_REGION_SIZE)));
	cr_assert(eq(int, shadow_store(shadow, addr, bytes), 0));
	cr_expect(eq(u64, allocated(shadow), HMM_PAGE_SIZE));
	cr_expect(eq(int, memcmp(shadow_at(shadow, addr), bytes, HMM_PAGE_SIZE), 0));
	cr_expect(shadow_has_data(shadow, addr, HMM_PAGE_SIZE));
	cr_expect(not(shadow_has_data(shadow, addr - HMM_PAGE_SIZE, HMM_PAGE_SIZE)));
	cr_expect(not(shadow_has_data(shadow, addr + HMM_PAGE_SIZE, HMM_PAGE_SIZE)));
	cr_expect(shadow_has_data(shadow, REGION(5), HMM_REGION_SIZE));

	cr_assert(eq(int, kernel->punch(shadow->fd, addr - shadow->base, HMM_PAGE_SIZE), 0));
	cr_expect(not(shadow_has_data(shadow, addr, HMM_PAGE_SIZE)));
	cr_expect(eq(u64, allocated(shadow), 0));
	shadows_deinit(&shadows);
}

Test(shadow, punching_some_leaves_the_others)
{
	struct random random = random_begin("punch");
	struct shadows shadows = { 0 };
	struct shadow *shadow;
	bool there[64] = { 0 };
	char bytes[HMM_PAGE_SIZE];

	cr_assert(eq(int, shadow_get(&shadows, &pool_4k, REGION(1), &shadow), 0));
	for (int step = 0; step < 500; step++) {
		unsigned int i = random_below(&random, 64);
		uint64_t addr = REGION(1) + i * HMM_PAGE_SIZE;

		if (there[i]) {
			cr_assert(eq(int,
				     kernel->punch(shadow->fd, addr - shadow->base, HMM_PAGE_SIZE),
				     0));
		} else {
			memset(bytes, (int)i + 1, sizeof(bytes));
			cr_assert(eq(int, shadow_store(shadow, addr, bytes), 0));
		}
		there[i] = !there[i];
		for (unsigned int j = 0; j < 64; j++) {
			uint64_t at = REGION(1) + j * HMM_PAGE_SIZE;

			cr_assert(eq(int, shadow_has_data(shadow, at, HMM_PAGE_SIZE), there[j]));
			if (there[j])
				cr_assert(eq(int, *(char *)shadow_at(shadow, at), (int)j + 1));
		}
	}
	shadows_deinit(&shadows);
}

Test(shadow, of_huge_pages)
{
	struct shadows shadows = { 0 };
	struct kernel_facts facts;
	struct shadow *shadow;
	char bytes[HMM_PAGE_SIZE];

	kernel_probe(&facts);
	cr_assert(eq(int, shadow_get(&shadows, &pool_huge, REGION(2), &shadow), 0));
	memset(bytes, 0x77, sizeof(bytes));
	cr_assert(eq(int, shadow_store(shadow, REGION(2) + HMM_PAGE_SIZE, bytes), 0));
	cr_expect(le(u64, allocated(shadow), HMM_BLOCK_SIZE));
	cr_expect(eq(int,
		     memcmp(shadow_at(shadow, REGION(2) + HMM_PAGE_SIZE), bytes, HMM_PAGE_SIZE),
		     0));
	/* Filled through the mapping a block is one huge page, where the system gives them. */
	memset(shadow_at(shadow, REGION(2) + HMM_BLOCK_SIZE), 1, HMM_BLOCK_SIZE);
	cr_expect(ge(u64, allocated(shadow), HMM_BLOCK_SIZE + HMM_PAGE_SIZE));
	cr_assert(eq(int, kernel->punch(shadow->fd, 0, 2 * HMM_BLOCK_SIZE), 0));
	cr_expect(eq(u64, allocated(shadow), 0), "whole blocks are freed (shmem_huge=%d)",
		  facts.shmem_huge);
	shadows_deinit(&shadows);
}

Test(shadow, of_hugetlb)
{
	struct pool pool = { .kind = HMM_POOL_KIND_HUGETLB, .placement = { .node = -1 } };
	struct shadows shadows = { 0 };
	struct shadow *shadow;
	char bytes[HMM_PAGE_SIZE];
	int r;

	cr_assert(eq(int, shadow_get(&shadows, &pool, REGION(2), &shadow), 0));
	memset(bytes, 0x33, sizeof(bytes));
	r = shadow_store(shadow, REGION(2) + 5 * HMM_PAGE_SIZE, bytes);
	/* With no huge page reserved: an answer, not a SIGBUS. With one: zeros around the page. */
	if (r) {
		cr_expect(eq(int, r, -ENOSPC));
		cr_expect(eq(u64, allocated(shadow), 0));
	} else {
		cr_expect(eq(u64, allocated(shadow), HMM_BLOCK_SIZE));
		cr_expect(eq(int,
			     memcmp(shadow_at(shadow, REGION(2) + 5 * HMM_PAGE_SIZE), bytes,
				    sizeof(bytes)),
			     0));
		cr_expect(eq(int, *(char *)shadow_at(shadow, REGION(2)), 0));
		cr_expect(eq(int, kernel->punch(shadow->fd, 0, HMM_BLOCK_SIZE), 0));
		cr_expect(eq(u64, allocated(shadow), 0));
	}
	shadows_deinit(&shadows);
}

Test(shadow, adopted_from_a_former_life)
{
	struct shadows before = { 0 }, after = { 0 };
	struct shadow *shadow, *adopted;
	char bytes[HMM_PAGE_SIZE];
	uint64_t addr = REGION(9) + 3 * HMM_PAGE_SIZE;

	memset(bytes, 0x11, sizeof(bytes));
	cr_assert(eq(int, shadow_get(&before, &pool_4k, addr, &shadow), 0));
	cr_assert(eq(int, shadow_store(shadow, addr, bytes), 0));
	cr_assert(eq(int, shadow_get(&after, &pool_4k, REGION(20), &adopted), 0));
	cr_assert(eq(int, shadow_adopt_consume_fd(&after, &pool_4k, REGION(9),
						  fcntl(shadow->fd, F_DUPFD_CLOEXEC, 3)), 0));
	shadows_deinit(&before);
	check_order(&after);
	adopted = shadow_find(&after, addr);
	cr_assert(ne(ptr, adopted, NULL));
	cr_expect(eq(int, memcmp(shadow_at(adopted, addr), bytes, HMM_PAGE_SIZE), 0));
	cr_expect(shadow_has_data(adopted, addr, HMM_PAGE_SIZE));
	/* Not twice; the descriptor is closed all the same (the leak check sees to that). */
	cr_expect(eq(int,
		     shadow_adopt_consume_fd(&after, &pool_4k, REGION(9),
					     fcntl(adopted->fd, F_DUPFD_CLOEXEC, 3)),
		     -EEXIST));
	cr_expect(eq(ptr, shadow_find(&after, addr), adopted));
	/* Nor what can't be mapped. */
	cr_expect(lt(int,
		     shadow_adopt_consume_fd(&after, &pool_4k, REGION(10),
					     open("/proc/self/stat", O_RDONLY | O_CLOEXEC)),
		     0));
	cr_expect(eq(ptr, shadow_find(&after, REGION(10)), NULL));
	shadows_deinit(&after);
}

static int no_memfd(const char *name, uint64_t size, unsigned int flags)
{
	return -EMFILE;
}

Test(shadow, out_of_descriptors_is_an_error_and_nothing_else)
{
	struct kernel_ops ops = kernel_real;
	struct shadows shadows = { 0 };
	struct shadow *shadow;

	ops.memfd_new = no_memfd;
	kernel = &ops;
	cr_expect(eq(int, shadow_get(&shadows, &pool_4k, REGION(0), &shadow), -EMFILE));
	cr_expect(eq(uint, shadows.count, 0));
	kernel = &kernel_real;
	cr_expect(eq(int, shadow_get(&shadows, &pool_4k, REGION(0), &shadow), 0));
	shadows_deinit(&shadows);
}

static int placed_policy;
static uint64_t placed_nodes;
static unsigned int placed_times;

static int note_place(void *start, size_t length, int policy, const uint64_t *nodes)
{
	cr_expect(eq(sz, length, HMM_REGION_SIZE));
	placed_policy = policy;
	placed_nodes = nodes[0];
	placed_times++;
	return 0;
}

static int no_place(void *start, size_t length, int policy, const uint64_t *nodes)
{
	return -EPERM;
}

/* When it is made, and when it is taken over: with the policy that its pool has. */
Test(shadow, placed_as_the_pool_says)
{
	static const struct { struct placement placement; int policy; uint64_t nodes; } all[] = {
		{ { HMM_PLACEMENT_BIND, 1, 0 }, 2, 2 },
		{ { HMM_PLACEMENT_BIND, -1, 5 }, 2, 5 },
		{ { HMM_PLACEMENT_PREFERRED, 0, 0 }, 1, 1 },
		{ { HMM_PLACEMENT_PREFERRED, -1, 3 }, 5, 3 },
		{ { HMM_PLACEMENT_INTERLEAVE, -1, 3 }, 3, 3 },
	};
	struct kernel_ops ops = kernel_real;

	ops.place = note_place;
	kernel = &ops;
	for (unsigned int i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		struct pool pool = { .kind = HMM_POOL_KIND_MEMFD, .placement = all[i].placement };
		struct shadows shadows = { 0 }, after = { 0 };
		struct shadow *shadow;

		placed_times = 0;
		cr_assert(eq(int, shadow_get(&shadows, &pool, REGION(0), &shadow), 0));
		cr_expect(eq(uint, placed_times, 1));
		cr_expect(eq(int, placed_policy, all[i].policy));
		cr_expect(eq(u64, placed_nodes, all[i].nodes));
		cr_assert(eq(int, shadow_adopt_consume_fd(&after, &pool, REGION(0), fcntl(shadow->fd, F_DUPFD_CLOEXEC, 3)), 0));
		cr_expect(eq(uint, placed_times, 2));
		shadows_deinit(&shadows);
		shadows_deinit(&after);
	}
	kernel = &kernel_real;
}

Test(shadow, that_cannot_be_placed_is_none)
{
	struct pool bound = { .kind = HMM_POOL_KIND_MEMFD, .placement = { HMM_PLACEMENT_BIND, 0, 0 } };
	struct shadows shadows = { 0 }, after = { 0 };
	struct kernel_ops ops = kernel_real;
	struct shadow *shadow;

	ops.place = no_place;
	kernel = &ops;
	cr_expect(eq(int, shadow_get(&shadows, &bound, REGION(0), &shadow), -EPERM));
	cr_expect(eq(uint, shadows.count, 0));
	cr_expect(eq(int, shadow_get(&shadows, &pool_4k, REGION(0), &shadow), 0), "what is not placed does not mind");
	/* What is taken over has bytes that nobody else has. */
	cr_expect(eq(int, shadow_adopt_consume_fd(&after, &bound, REGION(0), fcntl(shadow->fd, F_DUPFD_CLOEXEC, 3)), 0));
	kernel = &kernel_real;
	shadows_deinit(&shadows);
	shadows_deinit(&after);
}

/* Coherent memory of a bound pool is taken at once, since nobody is asked later; else not before it is touched. */
Test(shadow, committed_where_it_is_bound)
{
	struct pool bound = { .kind = HMM_POOL_KIND_MEMFD, .placement = { HMM_PLACEMENT_BIND, 0, 0 } };
	struct shadows shadows = { 0 }, others = { 0 };
	struct kernel_ops ops = kernel_real;
	struct shadow *shadow, *other;

	ops.place = note_place;
	kernel = &ops;
	cr_assert(eq(int, shadow_get(&shadows, &bound, REGION(0), &shadow), 0));
	cr_assert(eq(int, shadow_get(&others, &pool_4k, REGION(0), &other), 0));
	cr_expect(eq(int, shadow_commit(shadow, REGION(0) + HMM_BLOCK_SIZE + 5 * HMM_PAGE_SIZE), 0));
	cr_expect(eq(u64, allocated(shadow), HMM_BLOCK_SIZE));
	cr_expect(eq(int, shadow_commit(other, REGION(0)), 0));
	cr_expect(eq(u64, allocated(other), 0));
	kernel = &kernel_real;
	shadows_deinit(&shadows);
	shadows_deinit(&others);
}
