// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Shadows of shmem with huge pages: how they are filled and punched, and what puts zeros
 * into one unasked. A page that exists in a shadow proves nothing.
 *
 * Runs through tests/fixture/settings with shmem_enabled=advise, since that is a setting of
 * the machine; skips where it is not in effect. What can fail: hmmd taking zeros for a page.
 */
#include "contract.h"

#define AT	0x7e0000000000L
#define SPARSE	(1L << 47)
#define FEATURES (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)
#define SHMEM_ENABLED "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

TestSuite(shadow, .init = contract_begin);

static char *filled(int value)
{
	void *page = map_pages(1);

	memset(page, value, PAGE);
	return page;
}

static int shadow_new(char **plain, size_t blocks)
{
	int shadow = memfd_new("shadow", SPARSE, 0);

	if (!setting_is(SHMEM_ENABLED, "advise"))
		skip("shmem_enabled is not 'advise'");
	*plain = map_memfd_aligned(shadow, blocks * BLOCK, AT);
	cr_assert_eq(madvise(*plain, blocks * BLOCK, MADV_HUGEPAGE), 0);
	return shadow;
}

static void fill_huge(char *plain, size_t blocks)
{
	memset(plain, 7, blocks * BLOCK);
	if (smaps_kib(plain, "ShmemPmdMapped") != (long)(blocks * BLOCK / KIB))
		skip("no huge page to be had: memory is fragmented");
}

Test(shadow, one_store_through_a_huge_mapping_fills_a_block)
{
	char *plain;
	int shadow = shadow_new(&plain, 1);

	plain[5 * PAGE] = 7;
	if (file_kib(shadow) == 4)
		skip("no huge page to be had: memory is fragmented");
	cr_assert_eq(file_kib(shadow), (long)(BLOCK / KIB));
	cr_assert(file_has(shadow, AT + 6 * (off_t)PAGE), "a page that nobody wrote");
	cr_assert_eq(plain[6 * PAGE], 0);
}

/* A pool of 4 KiB pages fills by pwrite(2), which takes no more than it was given. */
Test(shadow, pwrite_fills_what_it_writes)
{
	char *plain;
	int shadow = shadow_new(&plain, 1);

	cr_assert_eq(pwrite(shadow, filled(7), PAGE, AT + 5 * (off_t)PAGE), PAGE);
	cr_assert_eq(file_kib(shadow), 4);
	cr_assert_not(file_has(shadow, AT + 6 * (off_t)PAGE));
}

/* Registered MISSING alone a window maps huge pages; WP comes to one block later. */
Test(shadow, missing_alone_maps_huge_pages)
{
	char *plain;
	int shadow = shadow_new(&plain, 2), fd = uffd_open(FEATURES);
	char *mem = map_memfd_aligned(shadow, 3 * BLOCK, AT);
	struct call call;

	fill_huge(plain, 2);
	cr_assert_eq(madvise(mem, 3 * BLOCK, MADV_HUGEPAGE), 0);
	cr_assert_eq(uffd_register(fd, mem, 3 * BLOCK, MISSING), 0);
	cr_assert_eq(mem[0], 7);
	cr_assert_eq(mem[BLOCK], 7);
	cr_assert_eq(smaps_kib(mem, "ShmemPmdMapped"), 2 * (long)(BLOCK / KIB));
	load_start(&call, mem + 2 * BLOCK);
	expect_fault(fd, mem + 2 * BLOCK, 0);
	cr_assert_eq(uffd_copy(fd, mem + 2 * BLOCK, filled(3), PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 3);
	/* Freeze the first block: it is split into 4 KiB, the second stays huge. */
	cr_assert_eq(uffd_register(fd, mem, BLOCK, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, BLOCK, true), 0);
	store_start(&call, mem + PAGE, 9);
	expect_fault(fd, mem + PAGE, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(smaps_kib(mem, "ShmemPmdMapped"), 0);
	cr_assert_eq(smaps_kib(mem + BLOCK, "ShmemPmdMapped"), (long)(BLOCK / KIB));
	cr_assert_eq(uffd_wp(fd, mem, BLOCK, false), 0);
	call_end(&call);
	cr_assert_eq(plain[PAGE], 9);
}

/* Revoking a whole block: it goes at once, however it is mapped and referenced. */
Test(shadow, whole_block_punch_always_frees)
{
	char *plain, *armed;
	int shadow = shadow_new(&plain, 2), fd = uffd_open(FEATURES), pipe_fd[2];
	struct iovec iov;
	struct call call;

	fill_huge(plain, 2);
	armed = map_memfd_aligned(shadow, 2 * BLOCK, AT);
	madvise(armed, 2 * BLOCK, MADV_HUGEPAGE);
	cr_assert_eq(uffd_register(fd, armed, 2 * BLOCK, MISSING), 0);
	cr_assert_eq(armed[0] + armed[BLOCK], 14);
	cr_assert_eq(punch(shadow, AT, BLOCK), 0);
	cr_assert_not(file_has(shadow, AT));
	cr_assert_eq(file_kib(shadow), (long)(BLOCK / KIB));
	load_start(&call, armed + 9 * PAGE);
	expect_fault(fd, armed + 9 * PAGE, 0);
	cr_assert_eq(uffd_copy(fd, armed + 9 * PAGE, filled(3), PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 3);

	/* Somebody holds a reference, as I/O in flight does: the file lets go all the same. */
	cr_assert_eq(pipe(pipe_fd), 0);
	iov = (struct iovec){ plain + BLOCK, PAGE };
	cr_assert_eq(vmsplice(pipe_fd[1], &iov, 1, 0), PAGE);
	cr_assert_eq(punch(shadow, AT + BLOCK, BLOCK), 0);
	cr_assert_not(file_has(shadow, AT + BLOCK));
	load_start(&call, armed + BLOCK);
	expect_fault(fd, armed + BLOCK, 0);
	cr_assert_eq(uffd_copy(fd, armed + BLOCK, filled(3), PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 3);
}

Test(shadow, small_punch_of_a_huge_page_splits_it)
{
	char *plain;
	int shadow = shadow_new(&plain, 1);

	fill_huge(plain, 1);
	/* Whoever has passed by, another CPU's list of new pages, say, may hold it for a moment. */
	wait_until(punch(shadow, AT + 3 * (off_t)PAGE, PAGE) == 0 && !file_has(shadow, AT + 3 * (off_t)PAGE));
	cr_assert(file_has(shadow, AT + 4 * (off_t)PAGE));
	cr_assert_eq(smaps_kib(plain, "ShmemPmdMapped"), 0);
	cr_assert_eq(plain[2 * PAGE], 7);
	cr_assert_eq(plain[4 * PAGE], 7);
}

/* A split needs the page to itself. Else fallocate says 0, and zeros stay where it was. */
Test(shadow, small_punch_of_a_referenced_huge_page_leaves_zeros)
{
	char *plain, *armed;
	int shadow = shadow_new(&plain, 1), fd = uffd_open(FEATURES), pipe_fd[2];
	struct iovec iov;
	char drained[PAGE];
	off_t page = AT + 3 * (off_t)PAGE;
	struct call call;

	fill_huge(plain, 1);
	cr_assert_eq(pipe(pipe_fd), 0);
	iov = (struct iovec){ plain + 9 * PAGE, PAGE };
	cr_assert_eq(vmsplice(pipe_fd[1], &iov, 1, 0), PAGE);
	cr_assert_eq(punch(shadow, page, PAGE), 0);
	cr_assert(file_has(shadow, page), "SEEK_HOLE tells");
	armed = map_memfd_aligned(shadow, BLOCK, AT);
	cr_assert_eq(uffd_register(fd, armed, BLOCK, MISSING), 0);
	load_start(&call, armed + 3 * PAGE);
	cr_assert_eq(call_end(&call), 0, "zeros, and nobody was asked");
	cr_assert(no_event(fd));
	/* When the reference is gone a second punch does it. */
	cr_assert_eq(read(pipe_fd[0], drained, PAGE), PAGE);
	wait_until(punch(shadow, page, PAGE) == 0 && !file_has(shadow, page));
}

static void fill_four_small_pages(int shadow, char *plain, size_t block)
{
	for (size_t i = 0; i < 4; i++) {
		off_t offset = AT + (off_t)(block * BLOCK + i * PAGE);

		cr_assert_eq(pwrite(shadow, filled(3), PAGE, offset), PAGE);
		cr_assert_eq(plain[block * BLOCK + i * PAGE], 3);
	}
}

/* Collapsing fills holes with zeros; a MISSING mapping of the block stops it on newer kernels. */
Test(shadow, collapse_fills_holes_with_zeros)
{
	char *plain, *armed;
	int shadow = shadow_new(&plain, 2), fd = uffd_open(FEATURES), result;
	off_t hole = AT + 100 * (off_t)PAGE;

	fill_four_small_pages(shadow, plain, 0);
	fill_four_small_pages(shadow, plain, 1);
	collapse_or_skip(collapse(plain));
	cr_assert(file_has(shadow, hole));
	cr_assert_eq(plain[100 * PAGE], 0);
	armed = map_memfd_aligned(shadow, 2 * BLOCK, AT);
	cr_assert_eq(uffd_register(fd, armed, 2 * BLOCK, MISSING), 0);
	result = madvise(plain + BLOCK, BLOCK, MADV_COLLAPSE);
	cr_assert_eq(file_has(shadow, hole + (off_t)BLOCK), result == 0);
}

Test(shadow, khugepaged_fills_holes_with_zeros)
{
	char *plain;
	int shadow = shadow_new(&plain, 1), left = deadline_ms() / 2;
	off_t hole = AT + 100 * (off_t)PAGE;

	if (!setting_is("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "10"))
		skip("khugepaged is not set to scan often");
	/* khugepaged visits a process that has private memory it could collapse. */
	*(char *)map_huge(1) = 1;
	fill_four_small_pages(shadow, plain, 0);
	while (!file_has(shadow, hole) && left--)
		usleep(1000);
	if (left < 0)
		skip("khugepaged did not come by");
	cr_assert_eq(plain[100 * PAGE], 0);
}
