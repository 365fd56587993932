// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Shadows of reserved huge pages (hugetlb): everything goes by 2 MiB.
 *
 * Runs through tests/fixture/settings with nr_hugepages set; skips where there are none.
 * What can fail: hmmd believing in a smaller unit than the kernel does.
 */
#include "contract.h"

#define AT	0x600000000000L
#define SPARSE	(1L << 47)

TestSuite(hugetlb, .init = contract_begin);

static int shadow_new(void)
{
	char free_pages[32];

	if (!read_setting("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", free_pages,
			  sizeof(free_pages)) || atoi(free_pages) < 4)
		skip("no free 2 MiB huge pages (vm.nr_hugepages)");
	return memfd_new("shadow", SPARSE, MFD_HUGETLB | MFD_ALLOW_SEALING);
}

static char *shadow_map(int shadow, size_t blocks)
{
	return map_memfd(shadow, blocks * BLOCK, AT);
}

Test(hugetlb, sparse_file_of_the_whole_address_space)
{
	int shadow = shadow_new();
	char *plain = shadow_map(shadow, 1);

	cr_assert_eq(fcntl(shadow, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
	plain[0] = 1;
	cr_assert_eq(file_kib(shadow), (long)(BLOCK / KIB));
	cr_assert_eq(punch(shadow, AT, BLOCK), 0);
	cr_assert_eq(file_kib(shadow), 0);
	cr_assert_eq(plain[0], 0);
}

/* A 4 KiB punch zeroes and frees nothing; nor does SEEK_DATA know a hole. */
Test(hugetlb, small_punch_zeroes_without_freeing)
{
	int shadow = shadow_new();
	char *plain = shadow_map(shadow, 1);

	memset(plain, 9, BLOCK);
	cr_assert_eq(punch(shadow, AT + 5 * (off_t)PAGE, PAGE), 0);
	cr_assert_eq(file_kib(shadow), (long)(BLOCK / KIB));
	cr_assert_eq(plain[5 * PAGE], 0);
	cr_assert_eq(plain[6 * PAGE], 9);
	cr_assert_neq(lseek(shadow, 0, SEEK_DATA), AT, "SEEK_DATA does not find the page");
}

Test(hugetlb, copy_in_whole_pages_only)
{
	int shadow = shadow_new(), fd = uffd_open(UFFD_FEATURE_MISSING_HUGETLBFS);
	char *armed = shadow_map(shadow, 2), *bytes = map_blocks(1);
	struct call call;
	struct uffd_msg msg;

	memset(bytes, 7, BLOCK);
	cr_assert_eq(uffd_register(fd, armed, 2 * BLOCK, MISSING), 0);
	load_start(&call, armed + 5 * PAGE);
	msg = expect_event(fd, UFFD_EVENT_PAGEFAULT);
	/* The fault names the huge page. */
	cr_assert_eq(msg.arg.pagefault.address, (uintptr_t)armed);
	cr_assert_eq(uffd_copy(fd, armed + 5 * PAGE, bytes, PAGE, 0), -EINVAL);
	cr_assert_eq(uffd_copy(fd, armed, bytes, BLOCK, 0), 0);
	cr_assert_eq(call_end(&call), 7);
}

Test(hugetlb, punch_revokes_a_window)
{
	int shadow = shadow_new(), fd = uffd_open(UFFD_FEATURE_MISSING_HUGETLBFS);
	char *plain = shadow_map(shadow, 1), *armed = shadow_map(shadow, 1);
	struct call call;

	plain[0] = 7;
	cr_assert_eq(uffd_register(fd, armed, BLOCK, MISSING), 0);
	load_start(&call, armed);
	cr_assert_eq(call_end(&call), 7);
	cr_assert_eq(punch(shadow, AT, BLOCK), 0);
	load_start(&call, armed);
	expect_event(fd, UFFD_EVENT_PAGEFAULT);
	plain[0] = 8;
	cr_assert_eq(uffd_wake(fd, armed, BLOCK), 0);
	cr_assert_eq(call_end(&call), 8);
}

Test(hugetlb, window_protects_in_whole_pages)
{
	int shadow = shadow_new();
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	char *plain = shadow_map(shadow, 1), *armed = shadow_map(shadow, 1);
	struct call call;

	plain[0] = 7;
	cr_assert_eq(uffd_register(fd, armed, BLOCK, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, armed, PAGE, true), -EINVAL);
	cr_assert_eq(uffd_wp(fd, armed, BLOCK, true), 0);
	store_start(&call, armed + 5 * PAGE, 1);
	expect_event(fd, UFFD_EVENT_PAGEFAULT);
	cr_assert_eq(uffd_wp(fd, armed, BLOCK, false), 0);
	call_end(&call);
	cr_assert_eq(plain[5 * PAGE], 1);
}

Test(hugetlb, move_does_not_take_it)
{
	int fd = uffd_open(UFFD_FEATURE_MOVE), shadow = shadow_new();
	char *plain = shadow_map(shadow, 1), *slot = map_blocks(1);

	memset(plain, 1, BLOCK);
	cr_assert_eq(uffd_register(fd, slot, BLOCK, MISSING), 0);
	cr_assert_eq(uffd_move(fd, slot, plain, BLOCK, 0), -EINVAL);
}
