// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_fault.c - a fault for which the owner's kernel has no memory: of this very process, with a
 * real userfaultfd.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>

#include "engine_fixture.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(no_memory);

static struct fixture fixture;
static struct kernel_ops ops;
static unsigned int failures, poisoned;

static int poison(int uffd, uint64_t dst, size_t length, size_t *done)
{
	cr_assert(eq(u64, dst, ROOM_START + 3 * HMM_PAGE_SIZE));
	*done = 0;
	if (failures && failures--)
		return -ENOMEM;
	poisoned++;
	*done = length;
	return 0;
}

/* Whoever touched it waits for the poison, and is not told twice. */
Test(no_memory, what_is_lost_is_poisoned_as_soon_as_there_is_some)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 10);
	block_set_state(fixture_block(&fixture, 0), 3, 4, HMM_PAGE_ERROR);
	ops = kernel_real;
	ops.uffd_poison = poison;
	kernel = &ops;
	failures = 3;
	fault_serve(fixture.owner, ROOM_START + 3 * HMM_PAGE_SIZE + 5, 0, 0);
	cr_expect(eq(uint, poisoned, 0));
	for (unsigned int i = 0; i < 8; i++) {
		fixture_later(&fixture, SECOND);
		owner_run(fixture.owner);
	}
	cr_expect(eq(uint, failures, 0));
	cr_expect(eq(uint, poisoned, 1));
	kernel = &kernel_real;
	fixture_end(&fixture);
}
