// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What /proc tells of another address space: pagemap, PAGEMAP_SCAN, PROCMAP_QUERY, guard
 * pages, soft-dirty.
 *
 * What can fail: hmmd taking a page for absent, clean or plain that is not.
 */
#include "contract.h"

TestSuite(pagemap, .init = contract_begin);

static char *filled(int value)
{
	void *page = map_pages(1);

	memset(page, value, PAGE);
	return page;
}

Test(pagemap, present_exclusive_and_file)
{
	char *mem = map_pages(2), *shared = map_shared(PAGE);

	mem[0] = 1;
	shared[0] = 1;
	cr_assert(pagemap(mem) & PM_PRESENT);
	cr_assert(pagemap(mem) & PM_EXCLUSIVE);
	cr_assert_not(pagemap(mem) & PM_FILE);
	cr_assert_eq(pagemap(mem + PAGE) & (PM_PRESENT | PM_SWAP), 0);
	cr_assert(pagemap(shared) & PM_FILE);
}

/* The descriptor that an owner opened itself answers whoever holds it, whatever its uid. */
struct handed {
	int fd;
	char *mem;
};

static void nobody_reads(void *arg)
{
	struct handed *handed = arg;
	uint64_t entry = 0;

	become_nobody();
	child_check(pread(handed->fd, &entry, 8, (off_t)((uintptr_t)handed->mem / PAGE * 8)) == 8);
	child_check(entry & PM_PRESENT);
}

Test(pagemap, belongs_to_its_opener)
{
	struct handed handed = {
		.fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), .mem = filled(1),
	};

	require_root();
	child_passed(child_start(nobody_reads, &handed));
}

Test(pagemap, guard_pages)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMOVE);
	char *mem = map_pages(4);
	struct call call;

	memset(mem, 1, 4 * PAGE);
	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, MISSING | WP), 0);
	CALL(&call, SYS_madvise, (long)(mem + PAGE), PAGE, MADV_GUARD_INSTALL);
	if (call_end(&call) == -EINVAL)
		skip("this kernel has no MADV_GUARD_INSTALL");
	/* It zapped a page, and nobody was told. */
	cr_assert(no_event(fd));
	if (!(pagemap(mem + PAGE) & PM_GUARD))
		skip("this kernel's pagemap does not show guard pages");
	cr_assert_not(pagemap(mem + PAGE) & PM_PRESENT);
	cr_assert_not(pagemap(mem) & PM_GUARD);
	/* So look before COPY: it overwrites a guard. */
	cr_assert_eq(uffd_copy(fd, mem + PAGE, filled(7), PAGE, 0), 0);
	cr_assert_eq(mem[PAGE], 7);
	cr_assert_not(pagemap(mem + PAGE) & PM_GUARD);
}

/* A page on the device that the program guards and unguards is a page of zeros. */
Test(pagemap, guard_on_a_missing_page)
{
	int fd = uffd_open(0);
	char *mem = map_pages(1);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	CALL(&call, SYS_madvise, (long)mem, PAGE, MADV_GUARD_INSTALL);
	if (call_end(&call) == -EINVAL)
		skip("this kernel has no MADV_GUARD_INSTALL");
	CALL(&call, SYS_madvise, (long)mem, PAGE, MADV_GUARD_REMOVE);
	cr_assert_eq(call_end(&call), 0);
	cr_assert(no_event(fd), "hmmd hears of neither");
	/* What it hears of is an ordinary fault: nothing tells it from that of a D page. */
	load_start(&call, mem);
	expect_fault(fd, mem, 0);
	cr_assert_eq(uffd_zeropage(fd, mem, PAGE), 0);
	cr_assert_eq(call_end(&call), 0);
}

static long scan(int fd, struct pm_scan_arg *arg, void *start, size_t len)
{
	arg->size = sizeof(*arg);
	arg->start = (uintptr_t)start;
	arg->end = arg->start + len;
	return ioctl(fd, PAGEMAP_SCAN, arg);
}

static int scanner(void)
{
	struct pm_scan_arg arg = { .category_mask = PAGE_IS_PRESENT, .return_mask = PAGE_IS_PRESENT };
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (scan(fd, &arg, map_pages(1), PAGE) < 0)
		skip("this kernel has no PAGEMAP_SCAN");
	return fd;
}

/* Entries that hold nothing count as written: always mask PRESENT as well. */
Test(pagemap, scan_of_written_pages)
{
	int pagemap_fd = scanner();
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC);
	char *mem = map_pages(8);
	struct page_region region[8];
	struct pm_scan_arg arg = {
		.vec = (uintptr_t)region, .vec_len = 8,
		.category_mask = PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT,
	};

	memset(mem, 1, 4 * PAGE);
	cr_assert_eq(uffd_register(fd, mem, 8 * PAGE, WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, 4 * PAGE, true), 0);
	mem[2 * PAGE] = 2;
	cr_assert_eq(scan(pagemap_fd, &arg, mem, 8 * PAGE), 2);
	cr_assert_eq(region[0].start, (uintptr_t)(mem + 2 * PAGE));
	cr_assert_eq(region[0].end, (uintptr_t)(mem + 3 * PAGE));
	cr_assert_eq(region[1].start, (uintptr_t)(mem + 4 * PAGE), "never touched");
	cr_assert_not(region[1].categories & PAGE_IS_PRESENT);

	/* Fetch and re-protect in one go: a write that follows is seen by the next. */
	arg.category_mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT;
	arg.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC;
	cr_assert_eq(scan(pagemap_fd, &arg, mem, 8 * PAGE), 1);
	cr_assert_eq(scan(pagemap_fd, &arg, mem, 8 * PAGE), 0);
	mem[3 * PAGE] = 3;
	cr_assert_eq(scan(pagemap_fd, &arg, mem, 8 * PAGE), 1);
	cr_assert_eq(region[0].start, (uintptr_t)(mem + 3 * PAGE));
}

/* CHECK_WPASYNC refuses memory that is not tracked, where else all would count as written. */
Test(pagemap, scan_checks_that_memory_is_tracked)
{
	int pagemap_fd = scanner();
	char *mem = map_pages(2);
	struct page_region region[2];
	struct pm_scan_arg arg = {
		.vec = (uintptr_t)region, .vec_len = 2,
		.category_mask = PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN,
	};

	memset(mem, 1, 2 * PAGE);
	cr_assert_eq(scan(pagemap_fd, &arg, mem, 2 * PAGE), 1);
	arg.flags = PM_SCAN_CHECK_WPASYNC | PM_SCAN_WP_MATCHING;
	cr_assert_eq(scan(pagemap_fd, &arg, mem, 2 * PAGE), -1);
	cr_assert_eq(errno, EPERM);
}

static void tracked_owner(void *arg)
{
	int sock = *(int *)arg;
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC);
	int pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	char *mem = map_pages(4);
	char byte;

	memset(mem, 1, 4 * PAGE);
	child_check(uffd_register(fd, mem, 4 * PAGE, WP) == 0);
	child_check(uffd_wp(fd, mem, 4 * PAGE, true) == 0);
	send_fd(sock, pagemap_fd);
	child_check(write(sock, &mem, sizeof(mem)) == sizeof(mem));
	child_check(read(sock, &byte, 1) == 1);
	mem[PAGE] = 2;
	child_check(write(sock, "d", 1) == 1);
	child_check(read(sock, &byte, 1) == 1);
}

Test(pagemap, scan_works_on_another_process)
{
	struct page_region region[4];
	struct pm_scan_arg arg = {
		.vec = (uintptr_t)region, .vec_len = 4,
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.category_mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT, .return_mask = PAGE_IS_WRITTEN,
	};
	int sock[2], fd;
	char *mem, byte;
	pid_t pid;

	scanner();
	uffd_open(UFFD_FEATURE_WP_ASYNC);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	pid = child_start(tracked_owner, &sock[1]);
	fd = recv_fd(sock[0]);
	cr_assert_eq(recv(sock[0], &mem, sizeof(mem), MSG_WAITALL), sizeof(mem));
	cr_assert_eq(scan(fd, &arg, mem, 4 * PAGE), 0);
	cr_assert_eq(write(sock[0], "w", 1), 1);
	cr_assert_eq(read(sock[0], &byte, 1), 1);
	cr_assert_eq(scan(fd, &arg, mem, 4 * PAGE), 1);
	cr_assert_eq(region[0].start, (uintptr_t)(mem + PAGE));
	cr_assert_eq(write(sock[0], "q", 1), 1);
	child_passed(pid);
}

Test(pagemap, procmap_query_by_an_open_descriptor)
{
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	char *mem = map_pages(4);
	struct procmap_query query = {
		.size = sizeof(query), .query_addr = (uintptr_t)mem + 5,
	};

	if (ioctl(fd, PROCMAP_QUERY, &query))
		skip("this kernel has no PROCMAP_QUERY");
	cr_assert_eq(query.vma_start, (uintptr_t)mem);
	cr_assert_eq(query.vma_end, (uintptr_t)mem + 4 * PAGE);
	cr_assert_eq(query.vma_flags, PROCMAP_QUERY_VMA_READABLE | PROCMAP_QUERY_VMA_WRITABLE);
	cr_assert_eq(query.inode, 0);
	/* Between mappings: nothing, or the next one if asked. */
	query.query_addr = (uintptr_t)mem - 1;
	cr_assert_eq(ioctl(fd, PROCMAP_QUERY, &query), -1);
	cr_assert_eq(errno, ENOENT);
	query.query_flags = PROCMAP_QUERY_COVERING_OR_NEXT_VMA;
	cr_assert_eq(ioctl(fd, PROCMAP_QUERY, &query), 0);
	cr_assert_eq(query.vma_start, (uintptr_t)mem);
}

/* Moves onto the same place without end. */
static void *move_onto(void *place)
{
	for (;;) {
		char *fresh = map_pages(16);

		/* With a page table to be moved, too, it takes longer. */
		fresh[0] = 1;
		if (mremap(fresh, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) !=
		    place)
			_exit(1);
	}
	return NULL;
}

/*
 * The program that moves one mapping onto another never finds none there, and PAGEMAP_SCAN, which waits for it, tells of one
 * each time: whatever a page has, if nothing is said of what it is to have. A query may tell of none (6.18).
 */
Test(pagemap, a_scan_sees_a_mapping_that_is_moved_onto_another)
{
	int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	char *place = map_pages(17);
	struct procmap_query query = { .size = sizeof(query), .query_addr = (uintptr_t)place };
	struct page_region region;
	struct pm_scan_arg arg = {
		.vec = (uintptr_t)&region, .vec_len = 1, .return_mask = PAGE_IS_PRESENT,
	};
	unsigned int unseen = 0;
	pthread_t thread;

	if (scan(fd, &arg, place, PAGE) < 0)
		skip("this kernel has no PAGEMAP_SCAN");
	cr_assert_eq(pthread_create(&thread, NULL, move_onto, place), 0);
	for (int i = 0; i < 50000; i++)
		unseen += ioctl(maps, PROCMAP_QUERY, &query) && errno == ENOENT;
	fprintf(stderr, "%u of 50000 queries saw no mapping\n", unseen);
	for (int i = 0; i < 50000; i++)
		cr_assert_eq(scan(fd, &arg, place, PAGE), 1);
	cr_assert_eq(munmap(place + 16 * PAGE, PAGE), 0);
	cr_assert_eq(scan(fd, &arg, place + 16 * PAGE, PAGE), 0);
}

static bool soft_dirty(const char *mem)
{
	return pagemap(mem) & PM_SOFT_DIRTY;
}

static int clear_refs(void)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	ssize_t wrote = fd < 0 ? -1 : write(fd, "4", 1);

	close(fd);
	return wrote == 1 ? 0 : -1;
}

/* Where soft-dirty is not configured clear_refs succeeds all the same: probe by writing. */
Test(pagemap, soft_dirty)
{
	char *mem = map_pages(2);

	memset(mem, 1, 2 * PAGE);
	cr_assert_eq(clear_refs(), 0);
	mem[0] = 2;
	if (!soft_dirty(mem))
		skip("this kernel has no soft-dirty bits");
	cr_assert_not(soft_dirty(mem + PAGE));
	cr_assert_eq(clear_refs(), 0);
	cr_assert_not(soft_dirty(mem));
}
