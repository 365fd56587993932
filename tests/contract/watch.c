// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Memory registered by WP alone, with nothing protected: its userfaultfd tells of
 * every change of the map, and of no fault. So hmmd watches what a range was seen in.
 *
 * What can fail: a kernel that asks for holes then, or tells of less.
 */
#include "contract.h"

#define EVENTS	(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP | \
		 UFFD_FEATURE_PAGEFAULT_FLAG_WP)

TestSuite(watch, .init = contract_begin);

/* Reads and writes of pages that are there and of holes: all of it is the kernel's. */
static void use(int fd, volatile char *mem)
{
	struct call call;

	load_start(&call, mem);
	cr_assert_eq(call_end(&call), 1);
	store_start(&call, mem, 2);
	call_end(&call);
	load_start(&call, mem + PAGE);
	cr_assert_eq(call_end(&call), 0);
	store_start(&call, mem + PAGE, 3);
	call_end(&call);
	store_start(&call, mem + 2 * PAGE, 4);
	call_end(&call);
	cr_assert(no_event(fd));
	cr_assert_eq(mem[0] + mem[PAGE] + mem[2 * PAGE], 9);
}

/* Discarded, moved and unmapped: four pages at @mem. */
static void expect_told(int fd, char *mem)
{
	char *room = map_pages(4);
	struct uffd_msg msg;
	struct call call;

	CALL(&call, SYS_madvise, (long)mem, PAGE, MADV_DONTNEED);
	msg = expect_event(fd, UFFD_EVENT_REMOVE);
	cr_assert_eq(msg.arg.remove.start, (uintptr_t)mem);
	cr_assert_eq(call_end(&call), 0);
	CALL(&call, SYS_mremap, (long)mem, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (long)room);
	msg = expect_event(fd, UFFD_EVENT_REMAP);
	cr_assert_eq(msg.arg.remap.from, (uintptr_t)mem);
	expect_event(fd, UFFD_EVENT_UNMAP);
	cr_assert_eq(call_end(&call), (long)room);
	CALL(&call, SYS_munmap, (long)(mem + 2 * PAGE), PAGE);
	msg = expect_event(fd, UFFD_EVENT_UNMAP);
	cr_assert_eq(msg.arg.remove.start, (uintptr_t)(mem + 2 * PAGE));
	cr_assert_eq(call_end(&call), 0);
	/* And of what is mapped over it. */
	CALL(&call, SYS_mmap, (long)(mem + 3 * PAGE), PAGE, PROT_READ | PROT_WRITE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	expect_event(fd, UFFD_EVENT_UNMAP);
	cr_assert_eq(call_end(&call), (long)(mem + 3 * PAGE));
}

Test(watch, private_memory)
{
	int fd = uffd_open(EVENTS);
	char *mem = map_pages(4);

	memset(mem, 1, PAGE);
	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, WP), 0);
	use(fd, mem);
	expect_told(fd, mem);
}

Test(watch, shared_memory)
{
	int fd = uffd_open(EVENTS);
	char *mem = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	cr_assert_neq(mem, MAP_FAILED);
	if (!(uffd_features() & UFFD_FEATURE_WP_HUGETLBFS_SHMEM))
		skip("this kernel cannot write-protect shared memory");
	memset(mem, 1, PAGE);
	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, WP), 0);
	use(fd, mem);
	expect_told(fd, mem);
}

Test(watch, read_only_memory)
{
	int fd = uffd_open(EVENTS);
	char *mem = map_pages(4);

	memset(mem, 1, 4 * PAGE);
	cr_assert_eq(mprotect(mem, 4 * PAGE, PROT_READ), 0);
	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, WP), 0);
	expect_told(fd, mem);
}

static bool huge_at_first_touch(char *fresh)
{
	cr_assert_eq(madvise(fresh, BLOCK, MADV_HUGEPAGE), 0);
	memset(fresh, 1, BLOCK);
	return is_huge(fresh);
}

/*
 * First touched while it is watched, it is made of huge pages as ever. The huge page that was free a moment ago may be
 * somebody else's by then, so there are several tries, beside others with what nobody watches.
 */
Test(watch, huge_pages_stay)
{
	int fd = uffd_open(EVENTS);
	bool watched = false, others = false;

	for (int left = 50; !watched && left; left--) {
		char *mem = map_huge(1), *fresh = map_blocks(1);

		munmap(mem, BLOCK);	/* where there are no huge pages it skips */
		cr_assert_eq(uffd_register(fd, fresh, BLOCK, WP), 0);
		watched = huge_at_first_touch(fresh);
		cr_assert(no_event(fd));
		cr_assert_eq(uffd_unregister(fd, fresh, BLOCK), 0);
		munmap(fresh, BLOCK);
		fresh = map_blocks(1);
		others |= huge_at_first_touch(fresh);
		munmap(fresh, BLOCK);
	}
	if (!watched && !others)
		skip("no huge page to be had: memory is fragmented");
	cr_assert(watched);
}

/* More may be asked for later; less may not, and is not given. */
Test(watch, is_raised_and_never_lowered)
{
	int fd = uffd_open(EVENTS);
	char *mem = map_pages(2), *page = map_pages(1);
	struct call call;

	memset(page, 5, PAGE);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, WP), 0);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING | WP), 0);
	load_start(&call, mem);
	expect_fault(fd, mem, 0);
	cr_assert_eq(uffd_copy(fd, mem, page, PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 5);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, WP), 0);
	load_start(&call, mem + PAGE);
	expect_fault(fd, mem + PAGE, 0);
	cr_assert_eq(uffd_copy(fd, mem + PAGE, page, PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 5);
}

/* A file on a disk can't be watched: hmmd asks, and takes the refusal for an answer. */
Test(watch, files_are_refused)
{
	char path[] = "/var/tmp/hmm-watch-XXXXXX";
	int fd = uffd_open(EVENTS), file = mkstemp(path);
	void *mem;

	cr_assert_geq(file, 0);
	unlink(path);
	cr_assert_eq(ftruncate(file, PAGE), 0);
	mem = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	cr_assert_neq(mem, MAP_FAILED);
	if (uffd_register(fd, mem, PAGE, WP) == 0)
		skip("/var/tmp is on no disk");
	cr_assert_eq(uffd_register(fd, mem, PAGE, WP), -EINVAL);
	close(file);
}

/* UNREGISTER does not say, before Linux 6.17, whose registration it takes away. REGISTER does. */
Test(watch, registering_tells_what_another_watches)
{
	int theirs = uffd_open(0), ours = uffd_open(0);
	char *mem = map_pages(3);
	struct call call;

	cr_assert_eq(uffd_register(theirs, mem + PAGE, PAGE, MISSING), 0);
	cr_assert_eq(uffd_register(ours, mem, PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_register(ours, mem, 3 * PAGE, WP), -EBUSY);
	cr_assert_eq(uffd_register(ours, mem + PAGE, PAGE, WP), -EBUSY);
	/* Of what is ours for more it changes nothing, and it was refused as a whole. */
	cr_assert_eq(uffd_register(ours, mem, PAGE, WP), 0);
	load_start(&call, mem);
	expect_fault(ours, mem, 0);
	cr_assert_eq(uffd_zeropage(ours, mem, PAGE), 0);
	cr_assert_eq(call_end(&call), 0);
	load_start(&call, mem + PAGE);
	expect_fault(theirs, mem + PAGE, 0);
	cr_assert_eq(uffd_zeropage(theirs, mem + PAGE, PAGE), 0);
	cr_assert_eq(call_end(&call), 0);
	cr_assert(no_event(ours));
}

/*
 * What MREMAP_DONTUNMAP left behind is one mapping. Watched in part, and written in two places meanwhile, it is two for
 * ever, though nothing that the kernel shows tells them apart; and mremap() takes one at a time.
 */
Test(watch, left_behind_and_split_stays_split)
{
	int fd = uffd_open(EVENTS);
	char *mem = map_pages(16), *room = map_pages(16);

	memset(mem, 7, 16 * PAGE);
	cr_assert_eq(syscall(SYS_mremap, mem, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, room), (long)room);
	cr_assert_eq(uffd_register(fd, mem + 4 * PAGE, PAGE, WP), 0);
	mem[0] = 1;
	mem[8 * PAGE] = 1;
	cr_assert_eq(uffd_unregister(fd, mem, 16 * PAGE), 0);
	cr_assert_eq(syscall(SYS_mremap, mem, 16 * PAGE, 17 * PAGE, MREMAP_MAYMOVE), -1);
	cr_assert_eq(errno, EFAULT);
	cr_assert_eq(mem[0] + mem[8 * PAGE], 2);
}
