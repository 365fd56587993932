/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * forget.c - a kernel that does not count all that UFFDIO_MOVE has moved.
 *
 * Linux 6.18 forgets a run of pages, now and then, where one of them changed while it looked: they are at the destination, and it
 * says EEXIST (contract-move). Here that befalls every fourth move of the owner's agent: the library's calls
 * come through this file, since the program's own ioctl() stands before libc's. Nothing of it is counted, or
 * only its first page.
 */
#include "board.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "proto/uapi.h"

#define EACH 4U

static _Atomic bool forgetful;
static _Atomic uint64_t moves, forgotten;

void forget_begin(void)
{
	atomic_store(&forgetful, true);
}

uint64_t forget_count(void)
{
	return atomic_load(&forgotten);
}

/* It stumbles over a page that has arrived. The library's threads have descriptors of their own. */
static bool has_arrived(uint64_t address)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;
	ssize_t got = pread(pagemap, &entry, sizeof(entry), (off_t)(address / PAGE_BYTES * sizeof(entry)));

	close(pagemap);
	return got == sizeof(entry) && entry & (PM_PRESENT | PM_SWAP);
}

__attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, ...)
{
	struct uffdio_move *move;
	va_list arguments;
	void *argument;
	uint64_t n;
	int r;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	r = (int)syscall(SYS_ioctl, fd, request, argument);
	move = argument;
	if (request != UFFDIO_MOVE || r || !atomic_load(&forgetful) || !has_arrived(move->dst))
		return r;
	n = atomic_fetch_add(&moves, 1);
	if (n % EACH || (n / EACH % 2 && move->len == PAGE_BYTES))
		return r;
	atomic_fetch_add(&forgotten, 1);
	move->move = n / EACH % 2 ? (int64_t)PAGE_BYTES : -EEXIST;
	errno = n / EACH % 2 ? EAGAIN : EEXIST;
	return -1;
}
