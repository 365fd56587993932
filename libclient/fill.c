/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fill.c - bytes on their way into a shadow.
 *
 * A whole block goes through the mapping, as one huge page. The rest is written,
 * page by page where a window looks on: there each page has to appear with its
 * bytes. write(2) does not promise that: a source that is absent for a moment, say
 * because the kernel moves it, makes the page appear as zeros, and the bytes come
 * in a second try. What comes out of a pipe is there. So under a window the pages
 * are spliced.
 *
 * Runs in the agent.
 */
#include "fill.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

static off_t offset_of(const struct region *region, uint64_t address)
{
	return (off_t)(region->offset + (address - region->base));
}

/* pwrite() or pread() of all of it. */
static int whole_run(struct region *region, uint64_t address, char *bytes, size_t length, bool write)
{
	off_t offset = offset_of(region, address);

	while (length) {
		ssize_t done = write ? pwrite(region->fd, bytes, length, offset)
				     : pread(region->fd, bytes, length, offset);

		if (done <= 0)
			return done < 0 ? -errno : -EIO;
		bytes += done;
		offset += done;
		length -= (size_t)done;
	}
	return 0;
}

/* What the file did not take must not be in front of what comes next. */
static void empty_pipe(struct agent *agent, size_t length)
{
	char bytes[512];

	while (length) {
		ssize_t done = read(agent->pipe[0], bytes, length < sizeof(bytes) ? length : sizeof(bytes));

		if (done <= 0)
			return;
		length -= (size_t)done;
	}
}

static int splice_run(struct agent *agent, struct region *region, uint64_t address, const char *bytes,
		      size_t length)
{
	off_t offset = offset_of(region, address);

	while (length) {
		struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = length };
		ssize_t held = vmsplice(agent->pipe[1], &iov, 1, 0);

		if (held <= 0)
			return held < 0 ? -errno : -EIO;
		bytes += held;
		length -= (size_t)held;
		while (held) {
			ssize_t done = splice(agent->pipe[0], NULL, region->fd, &offset, (size_t)held, 0);
			int error = done < 0 ? -errno : -EIO;

			if (done <= 0) {
				empty_pipe(agent, (size_t)held);
				return error;
			}
			held -= done;
		}
	}
	return 0;
}

/*
 * Under a window not through the mapping: when the order is taken back meanwhile
 * and the shadow punched, that would put zeros where nothing is, for the driver to
 * see. hugetlb cannot be read otherwise, and has no windows.
 */
int hmmc_fill_read(const struct hmm_order *order, struct region *region, uint64_t address, char *bytes,
		   size_t length)
{
	if (order->flags & HMM_ORDER_VISIBLE && region->kind != HMM_POOL_KIND_HUGETLB)
		return whole_run(region, address, bytes, length, false);
	memcpy(bytes, region_at(region, address), length);
	return 0;
}

/* Through the mapping, having asked first: without room a store would be a SIGBUS. */
static int copy_run(struct region *region, uint64_t address, const char *bytes, size_t length)
{
	char *to = region_at(region, address);

	if (madvise(to, length, MADV_POPULATE_WRITE) && errno != EINVAL)
		return errno == EFAULT ? -ENOSPC : -errno;
	memcpy(to, bytes, length);
	return 0;
}

static bool by_mapping(const struct region *region, const struct hmm_order *order)
{
	if (region->kind == HMM_POOL_KIND_HUGETLB)
		return true;
	if (!(order->flags & HMM_ORDER_WHOLE) || region->kind != HMM_POOL_KIND_MEMFD_HUGE)
		return false;
	for (unsigned int i = 0; i < HMM_BITMAP_WORDS; i++)
		if ((order->moved[i] | order->hole[i]) != ~0ULL)
			return false;
	return true;
}

/* A whole huge page is asked for at once, holes included, so that it is one. */
static int make_room(const struct hmm_order *order, const struct region *region)
{
	if (!(order->flags & HMM_ORDER_WHOLE) ||
	    !madvise(region_at(region, order->addr), HMM_BLOCK_SIZE, MADV_POPULATE_WRITE) ||
	    errno == EINVAL)
		return 0;
	return errno == EFAULT ? -ENOSPC : -errno;
}

int hmmc_fill_begin(struct fill *fill, struct agent *agent, const struct hmm_order *order,
		    struct region *region)
{
	fill->agent = agent;
	fill->region = region;
	fill->mapped = by_mapping(region, order);
	fill->visible = order->flags & HMM_ORDER_VISIBLE;
	return fill->mapped ? make_room(order, region) : 0;
}

int hmmc_fill_run(struct fill *fill, uint64_t address, const char *bytes, size_t length)
{
	if (fill->mapped)
		return copy_run(fill->region, address, bytes, length);
	if (fill->visible)
		return splice_run(fill->agent, fill->region, address, bytes, length);
	return whole_run(fill->region, address, (char *)(uintptr_t)bytes, length, true);
}
