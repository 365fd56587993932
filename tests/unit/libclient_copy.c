/* SPDX-License-Identifier: GPL-2.0-or-later */
/* libclient_copy.c - orders of kind SYNC: runs of pages are copied, and what is not there is a hole. */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <string.h>
#include <sys/stat.h>

#include "agent_fixture.h"

/* HOME lies at the beginning of its region. */
static struct hmm_order *order_sync(const uint32_t *run, uint32_t runs)
{
	struct hmm_order *new = order(HMM_ORDER_SYNC, 0);

	cr_assert_eq(HOME % HMM_REGION_SIZE, 0);
	new->slot = HMM_NO_SLOT;
	new->runs = runs;
	memcpy(new->run, run, runs * sizeof(*run));
	return new;
}

static void check_copy(unsigned int page, const void *expected)
{
	char copy[HMM_PAGE_SIZE];

	cr_assert_eq(pread(shadow, copy, sizeof(copy), (off_t)page * (off_t)sizeof(copy)), (ssize_t)sizeof(copy));
	cr_assert_eq(memcmp(copy, expected, sizeof(copy)), 0, "page %u of the copy", page);
}

Test(agent, runs_are_copied_and_what_is_not_there_is_a_hole)
{
	static const char zeros[HMM_PAGE_SIZE];
	const uint32_t run[] = { HMM_RUN(0, 1), HMM_RUN(2, 4), HMM_RUN(100, 50), HMM_RUN(200, 3) | HMM_RUN_ZERO,
				 HMM_RUN(511, 1) };
	struct hmm_order *done;
	struct stat stat;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	cr_assert_eq(madvise(home + 120 * HMM_PAGE_SIZE, 10 * HMM_PAGE_SIZE, MADV_DONTNEED), 0);
	/* An older copy of what is not there any more. */
	cr_assert_eq(pwrite(shadow, golden, 4 * HMM_PAGE_SIZE, 120 * (off_t)HMM_PAGE_SIZE), (ssize_t)(4 * HMM_PAGE_SIZE));
	cr_assert_eq(pwrite(shadow, golden, HMM_PAGE_SIZE, 201 * (off_t)HMM_PAGE_SIZE), (ssize_t)HMM_PAGE_SIZE);
	done = order_sync(run, 5);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->state, HMM_ORDER_DONE);
	cr_assert_eq(done->error, 0, "%s", strerror(-done->error));
	cr_assert_eq(count(done->moved), 1 + 4 + 40 + 1);
	cr_assert_eq(count(done->hole), 10 + 3);
	cr_assert_eq(count(done->busy), 0);
	/* By their numbers in the order: 0; 1 to 4; 5 to 54, of which 25 to 34 are not there; 55 to 57; 58. */
	for (unsigned int i = 0; i < 59; i++)
		cr_assert_eq(bit(done->hole, i), (i >= 25 && i < 35) || (i >= 55 && i < 58), "number %u", i);
	check_copy(0, golden);
	check_copy(1, zeros);
	for (unsigned int i = 2; i < 6; i++)
		check_copy(i, golden + i * HMM_PAGE_SIZE);
	for (unsigned int i = 100; i < 150; i++)
		check_copy(i, i >= 120 && i < 130 ? zeros : golden + i * HMM_PAGE_SIZE);
	for (unsigned int i = 200; i < 203; i++)
		check_copy(i, zeros);
	check_copy(511, golden + 511 * HMM_PAGE_SIZE);
	cr_assert_eq(fstat(shadow, &stat), 0);
	cr_assert_eq((size_t)stat.st_blocks * 512, 46 * HMM_PAGE_SIZE, "holes take no memory");
	end();
}

Test(agent, a_page_that_may_not_be_read_is_busy_and_the_others_are_copied)
{
	const uint32_t run[] = { HMM_RUN(0, 100) }, bad[] = { HMM_RUN(262100, 100) };
	struct hmm_order *done;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	cr_assert_eq(mprotect(home + 40 * HMM_PAGE_SIZE, 2 * HMM_PAGE_SIZE, PROT_NONE), 0);
	done = order_sync(run, 1);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->error, 0);
	for (unsigned int i = 0; i < 100; i++) {
		cr_assert_eq(bit(done->busy, i), i == 40 || i == 41, "page %u", i);
		cr_assert_eq(bit(done->moved, i), i != 40 && i != 41, "page %u", i);
		if (i != 40 && i != 41)
			check_copy(i, golden + i * HMM_PAGE_SIZE);
	}
	/* Beyond the region: hmmd made a mistake, and nothing is touched. */
	done = order_sync(bad, 1);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->error, -EINVAL);
	cr_assert_eq(count(done->moved) + count(done->hole), 0);
	mprotect(home, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE);
	end();
}

Test(agent, a_shadow_without_room_says_so)
{
	const uint32_t run[] = { HMM_RUN(0, 2), HMM_RUN(300, 20) };
	struct hmm_order *done;

	/* One that ends after 256 pages. */
	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, 256 * HMM_PAGE_SIZE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	done = order_sync(run, 2);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_lt(done->error, 0);
	cr_assert_eq(count(done->moved), 2);
	check_copy(0, golden);
	end();
}
