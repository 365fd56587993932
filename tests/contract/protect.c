// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Write protection of private memory by userfaultfd: what keeps it, what loses it, and
 * what it looks like from outside.
 *
 * A second thread stores, the test's main thread reads events. What can fail: a
 * protection that is gone without anybody having been told.
 */
#include "contract.h"

TestSuite(protect, .init = contract_begin);

static char *filled(int value)
{
	void *page = map_pages(1);

	memset(page, value, PAGE);
	return page;
}

/* A page that is protected, and the userfaultfd that did it. */
static char *protected_page(int *fd, uint64_t features)
{
	char *mem = filled(1);

	*fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | features);
	cr_assert_eq(uffd_register(*fd, mem, PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(*fd, mem, PAGE, true), 0);
	cr_assert(pagemap(mem) & PM_UFFD_WP);
	return mem;
}

Test(protect, store_asks_and_lifting_wakes)
{
	struct call call;
	int fd;
	char *mem = protected_page(&fd, 0);

	load_start(&call, mem);
	cr_assert_eq(call_end(&call), 1, "loads are free");
	cr_assert(no_event(fd));
	store_start(&call, mem, 2);
	expect_fault(fd, mem, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(mem[0], 1);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, false), 0);
	call_end(&call);
	cr_assert_eq(mem[0], 2);
	/* A lifted protection does not come back by itself. */
	store_start(&call, mem, 3);
	call_end(&call);
	cr_assert(no_event(fd));
}

Test(protect, system_calls_ask_too)
{
	int fd, pipe_fd[2];
	struct call call;
	char *mem = protected_page(&fd, 0);

	cr_assert_eq(pipe(pipe_fd), 0);
	cr_assert_eq(write(pipe_fd[1], "abc", 3), 3);
	CALL(&call, SYS_read, pipe_fd[0], (long)mem, 3);
	expect_fault(fd, mem, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, false), 0);
	cr_assert_eq(call_end(&call), 3);
	cr_assert_eq(mem[2], 'c');
}

/* DONTWAKE lifts silently: the waiter sleeps until it is woken. */
Test(protect, lifting_without_waking)
{
	struct uffdio_writeprotect lift = { .mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE };
	struct call call;
	int fd;
	char *mem = protected_page(&fd, 0);

	store_start(&call, mem, 2);
	expect_fault(fd, mem, FAULT_WRITE | FAULT_WP);
	lift.range = (struct uffdio_range){ (uintptr_t)mem, PAGE };
	cr_assert_eq(ioctl(fd, UFFDIO_WRITEPROTECT, &lift), 0);
	cr_assert(still_blocked(&call));
	cr_assert_eq(uffd_wake(fd, mem, PAGE), 0);
	call_end(&call);
}

/* A waiter whose protection is lifted by UNREGISTER is forgotten by some kernels: WAKE it. */
Test(protect, unregister_then_wake_frees_a_blocked_writer)
{
	char *mem = filled(1);
	struct call call;
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);

	cr_assert_eq(uffd_register(fd, mem, PAGE, WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, true), 0);
	store_start(&call, mem, 2);
	expect_fault(fd, mem, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_unregister(fd, mem, PAGE), 0);
	cr_assert_eq(uffd_wake(fd, mem, PAGE), 0);
	call_end(&call);
	cr_assert_eq(mem[0], 2);
	cr_assert_not(pagemap(mem) & PM_UFFD_WP);
}

Test(protect, unpopulated_memory_is_not_protected_and_nobody_says_so)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *mem = map_pages(1);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, true), 0);
	store_start(&call, mem, 2);
	call_end(&call);
	cr_assert(no_event(fd));
}

Test(protect, wp_unpopulated_leaves_a_marker)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED);
	char *mem = map_pages(2);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, 2 * PAGE, true), 0);
	/* A marker looks like swap, as the kernel's own device pages do. */
	cr_assert(pagemap(mem) & PM_SWAP);
	cr_assert(pagemap(mem) & PM_UFFD_WP);
	cr_assert_not(pagemap(mem) & PM_PRESENT);
	/* It raises plain MISSING, and a plain COPY drops it. */
	store_start(&call, mem, 2);
	expect_fault(fd, mem, FAULT_WRITE);
	cr_assert_eq(uffd_copy(fd, mem, filled(7), PAGE, 0), 0);
	call_end(&call);
	cr_assert(no_event(fd));
	cr_assert_not(pagemap(mem) & PM_UFFD_WP);
	/* COPY_MODE_WP keeps it. */
	cr_assert_eq(uffd_copy(fd, mem + PAGE, filled(7), PAGE, UFFDIO_COPY_MODE_WP), 0);
	store_start(&call, mem + PAGE, 2);
	expect_fault(fd, mem + PAGE, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(fd, mem + PAGE, PAGE, false), 0);
	call_end(&call);
}

/* State S: a fresh page, protected from its first moment. */
Test(protect, copy_mode_wp_installs_a_protected_page)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *mem = map_pages(1);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_copy(fd, mem, filled(7), PAGE, UFFDIO_COPY_MODE_WP), 0);
	cr_assert(pagemap(mem) & PM_UFFD_WP);
	cr_assert_eq(mem[0], 7);
	store_start(&call, mem, 2);
	expect_fault(fd, mem, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, false), 0);
	call_end(&call);
	cr_assert_eq(mem[1], 7);
}

/* A write fault that is answered by COPY_MODE_WP comes back at once as a WP fault. */
Test(protect, write_fault_served_protected_asks_again)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *mem = map_pages(1);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING | WP), 0);
	store_start(&call, mem, 2);
	expect_fault(fd, mem, FAULT_WRITE);
	cr_assert_eq(uffd_copy(fd, mem, filled(7), PAGE, UFFDIO_COPY_MODE_WP), 0);
	expect_fault(fd, mem, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, false), 0);
	call_end(&call);
	cr_assert_eq(mem[0], 2);
}

Test(protect, mode_wp_needs_a_wp_registration)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *mem = map_pages(1);

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	cr_assert_eq(uffd_copy(fd, mem, filled(7), PAGE, UFFDIO_COPY_MODE_WP), -EINVAL);
}

Test(protect, dontneed_loses_it)
{
	int fd;
	char *mem = protected_page(&fd, 0);
	struct call call;

	cr_assert_eq(madvise(mem, PAGE, MADV_DONTNEED), 0);
	cr_assert_not(pagemap(mem) & PM_UFFD_WP);
	store_start(&call, mem, 2);
	expect_fault(fd, mem, FAULT_WRITE);
	cr_assert_eq(uffd_copy(fd, mem, filled(7), PAGE, 0), 0);
	call_end(&call);
	cr_assert(no_event(fd));
}

/* mprotect and back does not lose it. */
Test(protect, mprotect_keeps_it)
{
	int fd;
	char *mem = protected_page(&fd, 0);

	cr_assert_eq(mprotect(mem, PAGE, PROT_NONE), 0);
	cr_assert_eq(mprotect(mem, PAGE, PROT_READ | PROT_WRITE), 0);
	cr_assert(pagemap(mem) & PM_UFFD_WP);
}

/* What may not be read, or not be written, takes a copy all the same, and keeps it protected. */
Test(protect, a_copy_under_lesser_rights_is_there_when_they_come_back)
{
	static const int rights[] = { PROT_NONE, PROT_READ };

	for (int i = 0; i < 2; i++) {
		int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP), null = memfd_new("null", 0, 0);
		char *mem = map_pages(2);
		struct call call;

		cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING | WP), 0);
		cr_assert_eq(mprotect(mem, 2 * PAGE, rights[i]), 0);
		cr_assert_eq(uffd_copy(fd, mem, filled(7), PAGE, UFFDIO_COPY_MODE_WP), 0);
		cr_assert_eq(uffd_copy(fd, mem + PAGE, filled(8), PAGE, 0), 0);
		cr_assert(pagemap(mem) & PM_UFFD_WP);
		cr_assert_eq(write(null, mem, 1), rights[i] == PROT_NONE ? -1 : 1);
		cr_assert_eq(mprotect(mem, 2 * PAGE, PROT_READ | PROT_WRITE), 0);
		cr_assert_eq(mem[0], 7);
		cr_assert_eq(mem[PAGE], 8);
		mem[PAGE] = 9;
		cr_assert(no_event(fd));
		store_start(&call, mem, 9);
		expect_fault(fd, mem, FAULT_WRITE | FAULT_WP);
		cr_assert_eq(uffd_wp(fd, mem, PAGE, false), 0);
		call_end(&call);
		close(fd);
	}
}

Test(protect, unregister_loses_it)
{
	int fd;
	char *mem = protected_page(&fd, 0);
	struct call call;

	cr_assert_eq(uffd_unregister(fd, mem, PAGE), 0);
	cr_assert_not(pagemap(mem) & PM_UFFD_WP);
	store_start(&call, mem, 2);
	call_end(&call);
	cr_assert(no_event(fd));
}

Test(protect, mremap_without_its_event_loses_it)
{
	int fd;
	char *mem = protected_page(&fd, 0), *room = map_pages(1);
	struct call call;

	cr_assert_eq(mremap(mem, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room), room);
	store_start(&call, room, 2);
	call_end(&call);
	cr_assert(no_event(fd));
}

Test(protect, mremap_with_its_event_keeps_it)
{
	int fd;
	char *mem = protected_page(&fd, UFFD_FEATURE_EVENT_REMAP), *room = map_pages(1);
	struct call remap, store;

	CALL(&remap, SYS_mremap, (long)mem, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (long)room);
	expect_event(fd, UFFD_EVENT_REMAP);
	cr_assert_eq(call_end(&remap), (long)room);
	cr_assert(pagemap(room) & PM_UFFD_WP);
	store_start(&store, room, 2);
	expect_fault(fd, room, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(fd, room, PAGE, false), 0);
	call_end(&store);
}

Test(protect, swap_keeps_it)
{
	int fd;
	char *mem = protected_page(&fd, 0);
	struct call call;

	cr_assert_eq(madvise(mem, PAGE, MADV_PAGEOUT), 0);
	if (pagemap(mem) & PM_PRESENT)
		skip("no swap space: a page cannot be paged out");
	cr_assert(pagemap(mem) & PM_SWAP);
	cr_assert(pagemap(mem) & PM_UFFD_WP);
	store_start(&call, mem, 2);
	expect_fault(fd, mem, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, false), 0);
	call_end(&call);
}

/* Protecting part of a huge page splits it; protecting it whole does not. */
Test(protect, huge_page_whole_and_in_part)
{
	char *mem = map_huge(1);
	struct call call;
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);

	cr_assert_eq(uffd_register(fd, mem, BLOCK, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, BLOCK, true), 0);
	cr_assert(is_huge(mem));
	cr_assert(pagemap(mem + 5 * PAGE) & PM_UFFD_WP);
	store_start(&call, mem + 5 * PAGE, 2);
	expect_fault(fd, mem + 5 * PAGE, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(fd, mem + 5 * PAGE, PAGE, false), 0);
	call_end(&call);
	cr_assert_not(is_huge(mem));
	cr_assert(pagemap(mem + 4 * PAGE) & PM_UFFD_WP);
	cr_assert_not(pagemap(mem + 5 * PAGE) & PM_UFFD_WP);
}

/*
 * The base tier's way to the device, protect and zap, has no gate: an order that runs
 * after the program unmapped and mapped anew destroys the new mapping's bytes.
 */
Test(protect, stale_zap_destroys_new_data)
{
	char *mem = map_pages(16);

	memset(mem, 1, 16 * PAGE);
	cr_assert_eq(munmap(mem, 16 * PAGE), 0);
	cr_assert_eq(mmap(mem, 16 * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), mem);
	memset(mem, 42, 16 * PAGE);
	cr_assert_eq(madvise(mem, 16 * PAGE, MADV_DONTNEED), 0);
	cr_assert_eq(mem[0], 0);
}

/* WP_ASYNC lets every write through and only takes notes, for the whole descriptor. */
Test(protect, wp_async_belongs_to_the_descriptor)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC |
			   UFFD_FEATURE_WP_UNPOPULATED);
	char *mem = map_pages(2);

	mem[0] = 1;
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, 2 * PAGE, true), 0);
	mem[0] = 2;
	cr_assert(no_event(fd));
	cr_assert_not(pagemap(mem) & PM_UFFD_WP);
	cr_assert(pagemap(mem + PAGE) & PM_UFFD_WP);
}

/*
 * A huge page that is split (part of it is hinted cold, say) maps those of its pages that are all zeros to the zero page, from
 * Linux 6.12 on. They stay protected, or a store into what both sides read would be nobody's to see.
 */
Test(protect, splitting_a_huge_page_keeps_it_for_zeros_too)
{
	char *mem = map_huge(0);
	unsigned int zeros = 0;
	struct call call;
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);

	mem[0] = 1;
	cr_assert_eq(uffd_register(fd, mem, BLOCK, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, BLOCK, true), 0);
	cr_assert_eq(madvise(mem + 8 * PAGE, PAGE, MADV_COLD), 0);
	for (unsigned int i = 0; i < BLOCK / PAGE; i++)
		cr_assert(pagemap(mem + i * PAGE) & PM_UFFD_WP, "page %u", i);
	for (unsigned int i = 10; i < BLOCK / PAGE; i++)
		zeros += (pagemap(mem + i * PAGE) & ((1ULL << 55) - 1)) == (pagemap(mem + 9 * PAGE) & ((1ULL << 55) - 1));
	printf("%u pages of a huge page have become the zero page\n", zeros);
	store_start(&call, mem + 100 * PAGE, 2);
	expect_fault(fd, mem + 100 * PAGE, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(fd, mem + 100 * PAGE, PAGE, false), 0);
	call_end(&call);
	cr_assert_eq(mem[100 * PAGE], 2);
}
