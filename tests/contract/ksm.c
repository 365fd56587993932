// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * KSM merging drops write protection, silently: memory that KSM may merge is never armed
 * before it was unmerged.
 *
 * Runs through tests/fixture/settings with ksm_run=1. What can fail: hmmd sharing a page
 * that the CPU then writes unseen.
 */
#include "contract.h"

#define PAGES	64

TestSuite(ksm, .init = contract_begin);

static char *pairs_of_equal_pages(void)
{
	char *mem = map_pages(PAGES);

	for (size_t i = 0; i < PAGES; i++)
		memset(mem + i * PAGE, (int)(i / 2 + 1), PAGE);
	return mem;
}

static int unprotected(const char *mem)
{
	int count = 0;

	for (size_t i = 0; i < PAGES; i++)
		count += !(pagemap(mem + i * PAGE) & PM_UFFD_WP);
	return count;
}

static void may_merge(char *mem)
{
	int left = deadline_ms() / 2;

	if (!setting_is("/sys/kernel/mm/ksm/run", "1"))
		skip("KSM does not run");
	if (madvise(mem, PAGES * PAGE, MADV_MERGEABLE))
		skip("this kernel has no KSM");
	while (!unprotected(mem) && left--)
		usleep(1000);
	if (left < 0)
		skip("KSM merged nothing in time");
}

Test(ksm, merging_drops_protection)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *mem = pairs_of_equal_pages();
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGES * PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, PAGES * PAGE, true), 0);
	cr_assert_eq(unprotected(mem), 0);
	may_merge(mem);
	for (size_t i = 0; i < PAGES; i++) {
		if (pagemap(mem + i * PAGE) & PM_UFFD_WP)
			continue;
		store_start(&call, mem + i * PAGE, 99);
		call_end(&call);
		break;
	}
	cr_assert(no_event(fd), "the store went through unseen");
}

/* Merged pages can't be moved either; unmerging first makes them plain memory again. */
Test(ksm, unmerged_memory_moves)
{
	int fd = uffd_open(UFFD_FEATURE_MOVE | UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *mem = pairs_of_equal_pages(), *slot = map_pages(PAGES);

	cr_assert_eq(uffd_register(fd, mem, PAGES * PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, PAGES * PAGE, true), 0);
	may_merge(mem);
	cr_assert_eq(uffd_register(fd, slot, PAGES * PAGE, MISSING), 0);
	cr_assert_eq(madvise(mem, PAGES * PAGE, MADV_UNMERGEABLE), 0);
	cr_assert_eq(uffd_move(fd, slot, mem, PAGES * PAGE, 0), 0);
	for (size_t i = 0; i < PAGES; i++)
		cr_assert_eq(slot[i * PAGE], (char)(i / 2 + 1));
}
