// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A dax device as a file (/dev/daxX.Y, driver device_dax): why no shadow can lie on one. It is memory
 * that is there or not, whole: nothing watches it, nothing punches it, nothing writes to it but a store.
 *
 * What is on the device stays as it is. Skips where there is none: the emulated machine has.
 */
#include "contract.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>

TestSuite(dax, .init = contract_begin);

static int dax_open(void)
{
	DIR *folder = opendir("/sys/bus/dax/drivers/device_dax");
	struct dirent *entry;
	char path[300];
	int fd = -1;

	while (folder && fd < 0 && (entry = readdir(folder))) {
		if (strncmp(entry->d_name, "dax", 3) || !strchr(entry->d_name, '.'))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
	}
	if (folder)
		closedir(folder);
	if (fd < 0)
		skip("there is no dax device as a file");
	return fd;
}

static char *dax_map(int fd)
{
	/* The device wants its own alignment, and finds a place with it. */
	char *mem = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	cr_assert(mem != MAP_FAILED, "mmap: %s", strerror(errno));
	cr_assert_eq((uintptr_t)mem % BLOCK, 0);
	return mem;
}

/* A shadow's window waits for pages: here it cannot. */
Test(dax, nothing_watches_it)
{
	int fd = dax_open(), uffd = uffd_open(0);
	char *mem = dax_map(fd);

	cr_expect_eq(uffd_register(uffd, mem, BLOCK, MISSING), -EINVAL);
	cr_expect_eq(uffd_register(uffd, mem, BLOCK, MISSING | WP), -EINVAL);
	cr_expect_eq(uffd_register(uffd, mem, BLOCK, MINOR), -EINVAL);
}

/* A page that came home leaves its shadow: here it stays. */
Test(dax, nothing_is_punched)
{
	int fd = dax_open();
	char *mem = dax_map(fd);
	volatile char *at = mem;
	int r = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, BLOCK) ? -errno : 0;

	cr_expect(r == -ENODEV || r == -EOPNOTSUPP, "fallocate: %s", strerror(-r));
	(void)*at;
	cr_expect_neq(madvise(mem, BLOCK, MADV_REMOVE), 0);
}

/* The agent fills by write(2), the rescuer reads by read(2): neither is there; nor does it end where it is told to. */
Test(dax, no_file_to_write)
{
	char *page = map_pages(1);
	int fd = dax_open();
	struct stat stat;

	/* Bytes that would change nothing, should it work. */
	memcpy(page, dax_map(fd), PAGE);
	cr_expect_lt(pwrite(fd, page, PAGE, 0), 0);
	cr_expect_lt(pread(fd, page, PAGE, 0), 0);
	cr_expect_lt(ftruncate(fd, BLOCK), 0);
	cr_assert_eq(fstat(fd, &stat), 0);
	cr_expect_eq(stat.st_size, 0);
	cr_expect(mmap(NULL, BLOCK, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED);
	cr_expect(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE) == MAP_FAILED, "no smaller than its pages");
}
