/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * uffd.c - userfaultfd, and the table of real kernel calls.
 *
 * Everything here may run on any thread. The traps (KERNEL facts): `copy` may
 * be left untouched by kernels before 6.15 when the call fails early, so it is
 * zeroed first; a partial copy fails with -EAGAIN and says the bytes done.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "kernel.h"
#include "private.h"
#include "uapi.h"

int kernel_uffd_new(void)
{
	int device, fd;

	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device >= 0) {
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(device);
		if (fd >= 0)
			return fd;
	}
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	/* Without privilege: faults of user mode only, system calls get EFAULT. */
	if (fd < 0 && errno == EPERM)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	return fd < 0 ? -errno : fd;
}

int kernel_uffd_api(int uffd, uint64_t want, uint64_t *have)
{
	struct uffdio_api api = { .api = UFFD_API, .features = want };

	if (ioctl(uffd, UFFDIO_API, &api) < 0)
		return -errno;
	if (have)
		*have = api.features;
	return 0;
}

static size_t bytes_done(int64_t answer)
{
	return answer > 0 ? (size_t)answer : 0;
}

static int uffd_copy(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode,
		     size_t *done)
{
	struct uffdio_copy copy = {
		.dst = dst, .src = (uint64_t)(uintptr_t)src, .len = length, .mode = mode,
	};
	int r = ioctl(uffd, UFFDIO_COPY, &copy) < 0 ? -errno : 0;

	*done = r ? bytes_done(copy.copy) : length;
	return r;
}

static int uffd_zero(int uffd, uint64_t dst, size_t length, size_t *done)
{
	struct uffdio_zeropage zero = { .range = { .start = dst, .len = length } };
	int r = ioctl(uffd, UFFDIO_ZEROPAGE, &zero) < 0 ? -errno : 0;

	*done = r ? bytes_done(zero.zeropage) : length;
	return r;
}

static int uffd_poison(int uffd, uint64_t dst, size_t length, size_t *done)
{
	struct uffdio_poison poison = { .range = { .start = dst, .len = length } };
	int r = ioctl(uffd, UFFDIO_POISON, &poison) < 0 ? -errno : 0;

	*done = r ? bytes_done(poison.updated) : length;
	return r;
}

static int uffd_continue(int uffd, uint64_t dst, size_t length, uint64_t mode, size_t *done)
{
	struct uffdio_continue arg = { .range = { .start = dst, .len = length }, .mode = mode };
	int r = ioctl(uffd, UFFDIO_CONTINUE, &arg) < 0 ? -errno : 0;

	*done = r ? bytes_done(arg.mapped) : length;
	return r;
}

static int uffd_protect(int uffd, uint64_t start, size_t length, bool protect)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = start, .len = length },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) < 0 ? -errno : 0;
}

static int uffd_register(int uffd, uint64_t start, size_t length, uint64_t mode)
{
	struct uffdio_register reg = { .range = { .start = start, .len = length }, .mode = mode };

	return ioctl(uffd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

static int uffd_unregister(int uffd, uint64_t start, size_t length)
{
	struct uffdio_range range = { .start = start, .len = length };

	return ioctl(uffd, UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
}

static int uffd_wake(int uffd, uint64_t start, size_t length)
{
	struct uffdio_range range = { .start = start, .len = length };

	return ioctl(uffd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

static ssize_t uffd_read(int uffd, void *messages, size_t length)
{
	static _Atomic bool plain;	/* the kernel can't be asked not to wait (before 6.11 or so) */
	struct iovec iov = { .iov_base = messages, .iov_len = length };
	ssize_t n;

	if (!plain) {
		n = preadv2(uffd, &iov, 1, -1, RWF_NOWAIT);
		if (n >= 0 || (errno != EOPNOTSUPP && errno != ESPIPE))
			return n < 0 ? -errno : n;
		plain = true;
	}
	n = read(uffd, messages, length);
	return n < 0 ? -errno : n;
}

const struct kernel_ops kernel_real = {
	.uffd_read = uffd_read,
	.uffd_copy = uffd_copy,
	.uffd_zero = uffd_zero,
	.uffd_poison = uffd_poison,
	.uffd_continue = uffd_continue,
	.uffd_protect = uffd_protect,
	.uffd_register = uffd_register,
	.uffd_unregister = uffd_unregister,
	.uffd_wake = uffd_wake,
	.pagemap_read = kernel_pagemap_read,
	.page_kinds = kernel_page_kinds,
	.pages_written = kernel_pages_written,
	.soft_dirty_clear = kernel_soft_dirty_clear,
	.mem_read = kernel_mem_read,
	.mem_write = kernel_mem_write,
	.vma_at = kernel_vma_at,
	.mapped = kernel_mapped,
	.told = kernel_told,
	.memfd_new = kernel_memfd_new,
	.punch = kernel_punch,
	.collapse = kernel_collapse,
	.merging = kernel_merging,
	.vfio_unmap_all = kernel_vfio_unmap_all,
	.vfio_master = kernel_vfio_master,
	.node_free = kernel_node_free,
	.place = kernel_place,
	.policy = kernel_policy,
	.populate = kernel_populate,
	.lock = kernel_lock,
	.room = kernel_room,
	.pci_link = kernel_pci_link,
	.vfio_open = kernel_vfio_open,
	.vfio_call = kernel_vfio_call,
	.bar_map = kernel_bar_map,
	.bar_store = kernel_bar_store,
	.bar_fetch = kernel_bar_fetch,
	.vfio_answers = kernel_vfio_answers,
};

const struct kernel_ops *kernel = &kernel_real;
