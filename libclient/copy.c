/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * copy.c - orders of kind SYNC: runs of the owner's pages go into a tracked mirror's shadow, and
 * the owner keeps them.
 *
 * Happy path: pagemap says what is there of each run; that is read from this process's own
 * addresses into the shadow's mapping, many runs in one system call; where nothing is, the shadow gets
 * a hole. The owner's pages are never touched by a pointer, and absent ones not at all, but where a file may have them, or
 * they are few and hmmd saw them change: pagemap is not asked for those, and zeros become a hole afterwards.
 *
 * process_vm_readv() takes one call for an order's scattered pages. Where it stops, or a filter of system calls
 * forbids it, the page in question is written by pwrite(), which tells a page that can't be read from a
 * shadow that can't be filled.
 *
 * What can fail: the shadow has no room (order->error); a page that is gone by now is a hole, one that is there
 * and can't be read is busy. hmmd may take the order back at any time: it changes no address.
 * Runs in the agent.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "agent.h"

/* So few pages are rather read than asked for, if they were seen being written: asking takes longer than copying. */
#define FEW 16U

struct copying {
	struct agent *agent;
	struct hmm_order *order;
	const struct region *region;
	unsigned int count;		/* runs to be copied: agent->from, agent->to, and */
	uint16_t first[HMM_BLOCK_PAGES];	/* the number in the order of each one's first page */
	uint8_t kind[HMM_BLOCK_PAGES];	/* and what it is: */
};

enum kind {
	KIND_PRESENT,
	KIND_UNKNOWN,			/* swapped, or a mark of hmmd's look in the place of no page; or it was not asked */
	KIND_BACKED,			/* by a file, say */
};

static void set(uint64_t *map, unsigned int page)
{
	map[page / 64] |= 1ULL << (page % 64);
}

static off_t offset_of(const struct copying *copying, uint64_t address)
{
	return (off_t)(copying->region->offset + (address - copying->region->base));
}

/* ---- holes --------------------------------------------------------------------------- */

static void make_hole(struct copying *copying, uint64_t address, unsigned int n, unsigned int pages)
{
	if (fallocate(copying->region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      offset_of(copying, address), (off_t)pages << HMM_PAGE_SHIFT)) {
		copying->order->error = -errno;
		return;
	}
	while (pages--)
		set(copying->order->hole, n++);
}

/* ---- copies --------------------------------------------------------------------------- */

static bool look(struct agent *agent, uint64_t address, unsigned int pages)
{
	const size_t size = pages * sizeof(*agent->map);

	return pread(agent->pagemap, agent->map, size,
		     (off_t)((address >> HMM_PAGE_SHIFT) * sizeof(*agent->map))) == (ssize_t)size;
}

/* It is there, and its bytes are not: the memory failed. */
static bool is_lost(uint64_t address)
{
	return madvise((void *)(uintptr_t)address, HMM_PAGE_SIZE, MADV_POPULATE_READ) &&
	       errno == EHWPOISON;
}

/* The page can't be copied together with others. */
static void copy_page(struct copying *copying, uint64_t address, unsigned int n, enum kind kind)
{
	struct agent *agent = copying->agent;
	ssize_t done = pwrite(copying->region->fd, (void *)(uintptr_t)address, HMM_PAGE_SIZE,
			      offset_of(copying, address));

	if (done == (ssize_t)HMM_PAGE_SIZE) {
		set(copying->order->moved, n);
	} else if (done < 0 && errno != EFAULT) {
		copying->order->error = -errno;
	} else if ((kind == KIND_BACKED && !is_lost(address)) ||
		   (look(agent, address, 1) && !(agent->map[0] & (PM_PRESENT | PM_SWAP)))) {
		/* Behind the end of its file; or it was there a moment ago. */
		make_hole(copying, address, n, 1);
	} else {
		set(copying->order->busy, n);
	}
}

static bool is_zero(const char *page)
{
	return !*page && !memcmp(page, page + 1, HMM_PAGE_SIZE - 1);
}

/* Zeros that come of reading where no page was: the copy need not keep them. It has just been filled. */
static void make_thin(struct copying *copying, uint64_t address, unsigned int n, size_t bytes)
{
	for (size_t done = 0; done < bytes; done += HMM_PAGE_SIZE, address += HMM_PAGE_SIZE, n++) {
		if (!is_zero(region_at(copying->region, address)))
			continue;
		copying->order->moved[n / 64] &= ~(1ULL << (n % 64));
		make_hole(copying, address, n, 1);
	}
}

/* The first so many bytes of run @i are copied: it is shorter now. */
static void advance(struct copying *copying, unsigned int i, size_t bytes)
{
	struct iovec *from = &copying->agent->from[i], *to = &copying->agent->to[i];
	const uint64_t address = (uintptr_t)from->iov_base;
	const unsigned int n = copying->first[i];

	for (size_t done = 0; done < bytes; done += HMM_PAGE_SIZE)
		set(copying->order->moved, copying->first[i]++);
	from->iov_base = (char *)from->iov_base + bytes;
	to->iov_base = (char *)to->iov_base + bytes;
	from->iov_len = to->iov_len = from->iov_len - bytes;
	if (copying->kind[i] == KIND_UNKNOWN)
		make_thin(copying, address, n, bytes);
}

static bool taken_back(const struct hmm_order *order)
{
	return __atomic_load_n(&order->state, __ATOMIC_SEQ_CST) == HMM_ORDER_CANCELLED;
}

static void copy_all(struct copying *copying)
{
	struct agent *agent = copying->agent;
	const pid_t self = getpid();
	unsigned int i = 0;

	while (i < copying->count && !copying->order->error && !taken_back(copying->order)) {
		unsigned int left = copying->count - i;
		ssize_t got = process_vm_readv(self, &agent->to[i], left, &agent->from[i], left, 0);

		for (; i < copying->count && got >= (ssize_t)agent->from[i].iov_len; i++) {
			got -= (ssize_t)agent->from[i].iov_len;
			advance(copying, i, agent->from[i].iov_len);
		}
		if (i == copying->count)
			break;
		if (got > 0)
			advance(copying, i, (size_t)got & ~(HMM_PAGE_SIZE - 1));
		copy_page(copying, (uintptr_t)agent->from[i].iov_base, copying->first[i],
			  (enum kind)copying->kind[i]);
		/* That page is dealt with, whatever became of it. */
		agent->from[i].iov_base = (char *)agent->from[i].iov_base + HMM_PAGE_SIZE;
		agent->to[i].iov_base = (char *)agent->to[i].iov_base + HMM_PAGE_SIZE;
		agent->from[i].iov_len = agent->to[i].iov_len =
			agent->from[i].iov_len - HMM_PAGE_SIZE;
		copying->first[i]++;
		if (!agent->from[i].iov_len)
			i++;
	}
}

static void add(struct copying *copying, uint64_t address, unsigned int n, unsigned int pages,
		enum kind kind)
{
	struct agent *agent = copying->agent;
	unsigned int i = copying->count++;

	agent->from[i] =
		(struct iovec){ (void *)(uintptr_t)address, (size_t)pages << HMM_PAGE_SHIFT };
	agent->to[i] = (struct iovec){ region_at(copying->region, address),
				       (size_t)pages << HMM_PAGE_SHIFT };
	copying->first[i] = (uint16_t)n;
	copying->kind[i] = (uint8_t)kind;
}

/* ---- runs --------------------------------------------------------------------------------- */

static void sort_out(struct copying *copying, uint64_t address, unsigned int n, unsigned int pages)
{
	const uint64_t there = PM_PRESENT | PM_SWAP, *map = copying->agent->map;

	if (!look(copying->agent, address, pages)) {
		copying->order->error = -EIO;
		return;
	}
	for (unsigned int first = 0, end; first < pages; first = end) {
		uint64_t from = address + ((uint64_t)first << HMM_PAGE_SHIFT);

		for (end = first + 1; end < pages && !((map[end] ^ map[first]) & there); end++)
			;
		if (map[first] & there)
			add(copying, from, n + first, end - first,
			    map[first] & PM_PRESENT ? KIND_PRESENT : KIND_UNKNOWN);
		else
			make_hole(copying, from, n + first, end - first);
	}
}

/* Pages of the order so far: @n. Return: with this run. */
static unsigned int take_run(struct copying *copying, uint32_t run, unsigned int n)
{
	uint64_t address = copying->region->base + ((uint64_t)HMM_RUN_PAGE(run) << HMM_PAGE_SHIFT);
	unsigned int pages = HMM_RUN_PAGES(run);

	if (n + pages > HMM_BLOCK_PAGES ||
	    HMM_RUN_PAGE(run) + pages > HMM_REGION_SIZE >> HMM_PAGE_SHIFT) {
		copying->order->error = -EINVAL;
		return n;
	}
	if (run & HMM_RUN_ZERO)
		make_hole(copying, address, n, pages);
	else if (run & HMM_RUN_BACKED)
		add(copying, address, n, pages, KIND_BACKED);
	else if (run & HMM_RUN_SEEN && pages < FEW)
		add(copying, address, n, pages, KIND_UNKNOWN);
	else
		sort_out(copying, address, n, pages);
	return n + pages;
}

bool hmmc_order_sync(struct agent *agent, struct hmm_order *order, const struct region *region)
{
	struct copying copying = { .agent = agent, .order = order, .region = region };
	unsigned int n = 0;

	if (order->runs > HMM_ORDER_RUNS) {
		order->error = -EINVAL;
		return true;
	}
	for (uint32_t i = 0; i < order->runs && !order->error; i++)
		n = take_run(&copying, order->run[i], n);
	copy_all(&copying);
	return true;
}
