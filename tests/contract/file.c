// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Private mappings of files. Pages of them that were written are anonymous to the
 * kernel's HMM, which migrates them. From outside there is no sound way: of a file on a
 * disk nothing can be watched, of one in memory it can, and of neither anything can be taken.
 *
 * What can fail: a kernel that allows one of these. Then there is something to gain.
 */
#include "contract.h"

#include <sys/mman.h>

TestSuite(file, .init = contract_begin);

/* Pages of a file on a disk file system, each written to: the program's own copies. */
static char *written_pages(size_t pages)
{
	char path[] = "/var/tmp/contract-XXXXXX", bytes[PAGE];
	int fd = mkstemp(path);
	char *map;

	cr_assert_geq(fd, 0);
	unlink(path);
	memset(bytes, 1, sizeof(bytes));
	for (size_t i = 0; i < pages; i++)
		cr_assert_eq(write(fd, bytes, sizeof(bytes)), (ssize_t)sizeof(bytes));
	map = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	cr_assert_neq(map, MAP_FAILED);
	close(fd);
	memset(map, 2, pages * PAGE);
	return map;
}

Test(file, written_private_pages_cannot_be_watched)
{
	const uint64_t modes[] = { MISSING, WP, MINOR, MISSING | WP };
	int fd = uffd_open(UFFD_FEATURE_MISSING_SHMEM);
	char *file = written_pages(4);

	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++)
		cr_assert_eq(uffd_register(fd, file, 4 * PAGE, modes[i]), -EINVAL, "modes %#lx",
			     (unsigned long)modes[i]);
}

/* The bytes could be written by a thread at any moment, and unwatched they cannot be copied out either. */
Test(file, written_private_pages_cannot_be_taken)
{
	int fd = uffd_open(UFFD_FEATURE_MOVE);
	char *file = written_pages(4), *slot = map_pages(4);

	cr_assert_eq(uffd_register(fd, slot, 4 * PAGE, MISSING), 0);
	cr_assert_eq(uffd_move(fd, slot, file, PAGE, 0), -EINVAL);
	cr_assert_eq(file[0], 2);
	cr_assert_not(pagemap(slot) & PM_PRESENT);
}

/* Nor do they join an anonymous mapping that is moved in beside them, to be watched there. */
Test(file, written_private_pages_stay_in_their_mapping)
{
	char *file = written_pages(2), *room = map_pages(4);
	int fd = uffd_open(UFFD_FEATURE_MISSING_SHMEM);

	cr_assert_eq(mremap(file, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + PAGE),
		     room + PAGE);
	cr_assert_eq(room[PAGE], 2);
	cr_assert_eq(uffd_register(fd, room + PAGE, 2 * PAGE, MISSING), -EINVAL);
}

/* Of a file in memory faults are told, and its pages stay where they are all the same. */
Test(file, written_private_pages_of_a_memory_file_are_watched_and_stay)
{
	const uint64_t modes[] = { MISSING, WP, MISSING | WP };
	int fd = uffd_open(UFFD_FEATURE_MOVE | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	int memory = memfd_new("private", 4 * PAGE, 0);
	char *file = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, memory, 0);
	char *slot = map_pages(4), *filled = map_pages(1);
	struct call store, load;

	cr_assert_neq(file, MAP_FAILED);
	memset(file, 2, 3 * PAGE);
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		cr_assert_eq(uffd_register(fd, file, 4 * PAGE, modes[i]), 0, "modes %#lx", (unsigned long)modes[i]);
		cr_assert_eq(uffd_unregister(fd, file, 4 * PAGE), 0);
	}
	cr_assert_eq(uffd_register(fd, file, 4 * PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, file, PAGE, true), 0);
	store_start(&store, file, 3);
	expect_fault(fd, file, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(fd, file, PAGE, false), 0);
	call_end(&store);
	cr_assert_eq(file[0], 3);

	cr_assert_eq(uffd_register(fd, slot, 4 * PAGE, MISSING), 0);
	cr_assert_eq(uffd_move(fd, slot, file, PAGE, 0), -EINVAL);
	cr_assert_eq(file[0], 3);
	/* A page of which neither has bytes is missing, and can be filled. */
	cr_assert_not(file_has(memory, 3 * PAGE));
	memset(filled, 5, PAGE);
	load_start(&load, file + 3 * PAGE);
	expect_fault(fd, file + 3 * PAGE, 0);
	cr_assert_eq(uffd_copy(fd, file + 3 * PAGE, filled, PAGE, 0), 0);
	cr_assert_eq(call_end(&load), 5);
	cr_assert_not(file_has(memory, 3 * PAGE), "the program's own page");
}
