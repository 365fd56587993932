// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * memfds as tables, ledgers and shadows: who can open them anew, what seals forbid, what
 * merely reading them costs, how large they may be.
 *
 * What can fail: a client that writes what it was given to read, or a revocation that a
 * seal forbids.
 */
#include "contract.h"

#define SPARSE	(1L << 47)

TestSuite(memfd, .init = contract_begin);

/* The same file, by a descriptor that may only read. */
static int read_only(int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static int reopen(int fd)
{
	char path[64];
	int again;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	return again < 0 ? -errno : again;
}

/* As hmmd does after a restart, with the read-only descriptors that a library kept. */
Test(memfd, read_only_descriptor_reopens_for_writing)
{
	int fd = memfd_new("table", SPARSE, MFD_ALLOW_SEALING), ro, rw;
	struct stat st;

	cr_assert_eq(fstat(fd, &st), 0);
	cr_assert_eq(st.st_mode & 07777, 0777, "a memfd is born open to everybody");
	cr_assert_eq(fchmod(fd, 0600), 0);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
	ro = read_only(fd);
	cr_assert_geq(ro, 0);
	cr_assert_eq(pwrite(ro, "x", 1, 0), -1);
	cr_assert_eq(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ro, 0), MAP_FAILED);
	close(fd);
	rw = reopen(ro);
	cr_assert_geq(rw, 0, "same uid: %d", rw);
	cr_assert_eq(pwrite(rw, "x", 1, 0), 1);
	cr_assert_eq(punch(rw, 0, PAGE), 0);
}

struct handed {
	int ro;
	int expect;		/* of reopen(): a negative errno, or 0 for success */
};

static void nobody_reopens(void *arg)
{
	struct handed *handed = arg;
	int rw;

	become_nobody();
	rw = reopen(handed->ro);
	child_check(handed->expect ? rw == handed->expect : rw >= 0);
	child_check(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, handed->ro, 0) != MAP_FAILED);
}

Test(memfd, another_uid_reopens_unless_mode_0600)
{
	int fd;
	struct handed handed;

	require_root();
	fd = memfd_new("table", SPARSE, MFD_ALLOW_SEALING);
	handed = (struct handed){ .ro = read_only(fd), .expect = 0 };
	child_passed(child_start(nobody_reopens, &handed));
	cr_assert_eq(fchmod(fd, 0600), 0);
	handed.expect = -EACCES;
	child_passed(child_start(nobody_reopens, &handed));
}

/* The seals that hmmd sets leave punching alone; FUTURE_WRITE and WRITE forbid it. */
Test(memfd, which_seals_allow_punching)
{
	int fd = memfd_new("shadow", 1L << 30, MFD_ALLOW_SEALING);
	char *mem;

	cr_assert_eq(pwrite(fd, "x", 1, 0), 1);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
	cr_assert_eq(punch(fd, 0, PAGE), 0);
	cr_assert_not(file_has(fd, 0));
	cr_assert_eq(ftruncate(fd, 0), -1);
	cr_assert_eq(ftruncate(fd, 1L << 31), -1);
	mem = map_memfd(fd, PAGE, 0);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
	mem[0] = 3;
	cr_assert_eq(punch(fd, 0, PAGE), -EPERM);
	cr_assert_eq(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	/* SEAL_SEAL keeps anybody from adding that to ours. */
	fd = memfd_new("shadow", 1L << 30, MFD_ALLOW_SEALING);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), -1);
	cr_assert_eq(errno, EPERM);
}

/* A sealed size is what keeps a client from truncating memory under hmmd's feet (SIGBUS). */
Test(memfd, noexec_seal)
{
	int fd = memfd_create("shadow", MFD_CLOEXEC | MFD_NOEXEC_SEAL);

	if (fd < 0)
		skip("this kernel has no MFD_NOEXEC_SEAL");
	cr_assert(fcntl(fd, F_GET_SEALS) & F_SEAL_EXEC);
}

Test(memfd, sparse_to_128_tib)
{
	int fd = memfd_new("shadow", SPARSE, 0);

	cr_assert_eq(pwrite(fd, "x", 1, SPARSE - 1), 1);
	cr_assert_eq(file_kib(fd), 4);
	cr_assert(file_has(fd, SPARSE - (off_t)PAGE));
	cr_assert_eq(lseek(fd, 0, SEEK_DATA), SPARSE - (off_t)PAGE);
	cr_assert_eq(lseek(fd, 0, SEEK_HOLE), 0);
}

/* Reading holes through a mapping allocates, even a read-only one; pread(2) does not. */
Test(memfd, reading_holes_through_a_mapping_allocates)
{
	int fd = memfd_new("table", SPARSE, 0), ro;
	char bytes[PAGE];
	volatile char *mem;
	long before;

	ro = read_only(fd);
	mem = mmap(NULL, 64 * PAGE, PROT_READ, MAP_SHARED | MAP_NORESERVE, ro, 0);
	cr_assert_neq(mem, MAP_FAILED);
	cr_assert_eq(pread(ro, bytes, PAGE, 100 * PAGE), PAGE);
	cr_assert_eq(file_kib(fd), 0);
	cr_assert_eq(mem[3 * PAGE], 0);
	before = file_kib(fd);
	cr_assert_geq(before, 4);
	cr_assert_eq(mem[50 * PAGE], 0);
	cr_assert_geq(file_kib(fd), before);
}

/* Quotas are charged by allocated blocks, which fstat tells and punching gives back. */
Test(memfd, blocks_tell_what_is_allocated)
{
	int fd = memfd_new("shadow", SPARSE, 0);

	for (int i = 0; i < 10; i++)
		cr_assert_eq(pwrite(fd, "x", 1, i * (off_t)BLOCK), 1);
	cr_assert_eq(file_kib(fd), 40);
	cr_assert_eq(punch(fd, 0, 5 * BLOCK), 0);
	cr_assert_eq(file_kib(fd), 20);
}
