/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * remap.c - mremap() in an owner.
 *
 * hmmd watches memory by runs of blocks, and watching a part of a mapping splits
 * it, invisibly but for one call: mremap() takes one mapping only and refuses the
 * rest with EFAULT. A program that made one mapping must not see that. So the
 * library stands before libc's mremap(): where it fails so, the range comes home and is
 * watched no more, which makes it one mapping again, and the call is repeated.
 *
 * Not always: parts that were written apart may stay apart for ever (contract-watch: of what
 * MREMAP_DONTUNMAP left behind), and a block in transit is watched for longer. What then differs in nothing
 * that the kernel shows of a mapping is taken for one as far as it is to grow where it is: its last part does.
 * It is not moved part by part: that is not done at once, and can't be taken back for certain.
 *
 * Since Linux 6.17 a move to a given place takes several mappings, one after the
 * other, and stops with EFAULT at one that is watched, the former having moved; and where that was another
 * thread may have mapped something before anybody can look. So for such a move the range is looked at
 * before, and between the look and the call hmmd splits no mapping: two words of the shared page see to that
 * (`remapping`, `splitting`), each written before the other one is read.
 *
 * A call that fails for another reason, or would have failed without hmmd, fails
 * as ever. Any thread; library threads' own calls pass straight through.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clerk.h"
#include "dispatch.h"
#include "proto/uapi.h"
#include "remap.h"
#include "space.h"

/* Mappings that were several before hmmd looked at them stay so: after half a second that is known. */
#define TRIES		50
#define TRIES_WHOLE	5
#define MOMENT_NS	10000000L
#define SPLIT_NS	20000L

__attribute__((visibility("default"))) void *mremap(void *old, size_t old_size, size_t new_size,
						    int flags, ...);

static void *call(void *old, size_t old_size, size_t new_size, int flags, void *new)
{
	return (void *)syscall(SYS_mremap, old, old_size, new_size, flags, new);
}

struct look {
	const struct owner *owner;
	struct procmap_query query;
};

/* In the clerk, whose table has the descriptor. */
static int look_in_clerk(void *argument)
{
	struct look *look = argument;

	return ioctl(look->owner->maps, PROCMAP_QUERY, &look->query) ? -errno : 0;
}

/* The mapping that has @start, or the next one. Fails before Linux 6.11. */
static int look_at(struct hmm *hmm, uint64_t start, struct procmap_query *found)
{
	struct look look = {
		.owner = hmm->owner,
		.query = { .size = sizeof(look.query), .query_addr = start,
			   .query_flags = PROCMAP_QUERY_COVERING_OR_NEXT_VMA },
	};
	int error = hmmc_clerk_call(look_in_clerk, &look);

	*found = look.query;
	return error;
}

/* Whether a move would begin with this mapping and go on with another. */
static bool is_part(const struct procmap_query *found, uint64_t start, uint64_t end)
{
	return found->vma_start <= start && found->vma_end < end;
}

/* From here on hmmd neither begins to watch a part of anything nor ends; it never does so for longer than a few system calls. */
static void keep_whole(struct hmm *hmm)
{
	struct hmm_orders *orders = hmm->owner->orders;

	__atomic_add_fetch(&orders->remapping, 1, __ATOMIC_SEQ_CST);
	/* A killed one may have left it: the next clears it. */
	while (__atomic_load_n(&orders->splitting, __ATOMIC_SEQ_CST) && !__atomic_load_n(&hmm->lost, __ATOMIC_ACQUIRE))
		hmmc_dispatch_nap(SPLIT_NS);
}

/* After an hmmd that ended in good order there is another page in that place, which knows nothing of this call. */
static void let_split(struct hmm *hmm)
{
	uint32_t *remapping = &hmm->owner->orders->remapping, calls = __atomic_load_n(remapping, __ATOMIC_SEQ_CST);

	while (calls && !__atomic_compare_exchange_n(remapping, &calls, calls - 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
}

static bool continues(const struct procmap_query *first, const struct procmap_query *next)
{
	return next->vma_flags == first->vma_flags && next->inode == first->inode &&
	       next->dev_major == first->dev_major && next->dev_minor == first->dev_minor &&
	       (!first->inode || next->vma_offset - first->vma_offset == next->vma_start - first->vma_start);
}

/* Private memory in mappings that differ in nothing that the kernel shows of them. */
static bool looks_like_one(struct hmm *hmm, uint64_t start, uint64_t end)
{
	struct procmap_query first, found;

	if (look_at(hmm, start, &first) || first.vma_start > start || first.vma_flags & PROCMAP_QUERY_VMA_SHARED)
		return false;
	for (uint64_t at = first.vma_end; at < end; at = found.vma_end)
		if (look_at(hmm, at, &found) || found.vma_start != at || !continues(&first, &found))
			return false;
	return true;
}

/* Into what lies behind it, or fails as if it were one mapping. */
static void *grow_in_place(struct hmm *hmm, uint64_t start, uint64_t end, size_t extra)
{
	struct procmap_query found;

	if (look_at(hmm, end - HMM_PAGE_SIZE, &found) || found.vma_start >= end) {
		errno = EFAULT;
		return MAP_FAILED;
	}
	if (found.vma_end != end) {
		errno = ENOMEM;
		return MAP_FAILED;
	}
	if (found.vma_start > start)
		start = found.vma_start;
	return call((void *)start, end - start, end - start + extra, 0, NULL);
}

/* The kernel would move it, with more behind it, or not at all: in parts it can only grow. */
static void *call_split(struct hmm *hmm, void *old, size_t old_size, size_t new_size, int flags)
{
	uint64_t start = (uint64_t)old, end = start + old_size;
	int error = errno;

	if (flags & ~MREMAP_MAYMOVE || new_size <= old_size || !looks_like_one(hmm, start, end)) {
		errno = error;
		return MAP_FAILED;
	}
	if (grow_in_place(hmm, start, end, new_size - old_size) != MAP_FAILED)
		return old;
	if (flags & MREMAP_MAYMOVE)
		errno = EFAULT;
	return MAP_FAILED;
}

/* With the range at home. hmmd stops watching it a moment after that. */
static void *call_until_whole(struct hmm *hmm, void *old, size_t old_size, size_t new_size, int flags, void *new)
{
	void *map;

	for (unsigned int tries = 0; tries < TRIES; tries++) {
		map = call(old, old_size, new_size, flags, new);
		if (map == MAP_FAILED && errno == EFAULT && tries >= TRIES_WHOLE)
			map = call_split(hmm, old, old_size, new_size, flags);
		if (map != MAP_FAILED || errno != EFAULT)
			break;
		hmmc_dispatch_nap(MOMENT_NS);
		errno = EFAULT;
	}
	return map;
}

static int pause_range(struct hmm *hmm, uint64_t start, size_t size, bool pause)
{
	int error = errno, paused = hmmc_statement_pause(hmm, start, size, pause);

	errno = pause && paused ? EFAULT : error;
	return paused;
}

static void *call_paused(struct hmm *hmm, void *old, size_t old_size, size_t new_size, int flags, void *new)
{
	void *map;

	if (pause_range(hmm, (uint64_t)old, old_size, true))
		return call_split(hmm, old, old_size, new_size, flags);
	map = call_until_whole(hmm, old, old_size, new_size, flags, new);
	pause_range(hmm, (uint64_t)old, old_size, false);
	return map;
}

/* hmmd stops watching a range a moment after that has come home. */
static void wait_until_whole(struct hmm *hmm, uint64_t start, uint64_t end)
{
	struct procmap_query found;

	for (unsigned int tries = 0; tries < TRIES && !look_at(hmm, start, &found) && is_part(&found, start, end);
	     tries++)
		hmmc_dispatch_nap(MOMENT_NS);
}

/* Before Linux 6.11, where nothing tells. */
#define SETTLED_NS	(20 * 1000000L)

/* Paused, and once: what has moved must not be asked for again, others may have mapped there. */
static void *move_paused(struct hmm *hmm, void *old, size_t size, int flags, void *new)
{
	struct procmap_query found;
	void *map;

	/* Excluded by the program itself: it is not watched. */
	if (pause_range(hmm, (uint64_t)old, size, true))
		return call(old, size, size, flags, new);
	if (look_at(hmm, (uint64_t)old, &found))
		hmmc_dispatch_nap(SETTLED_NS);
	else
		wait_until_whole(hmm, (uint64_t)old, (uint64_t)old + size);
	map = call(old, size, size, flags, new);
	pause_range(hmm, (uint64_t)old, size, false);
	return map;
}

/* To a given place, all of it. */
static void *move(struct hmm *hmm, void *old, size_t size, int flags, void *new)
{
	uint64_t start = (uint64_t)old, end = start + size;
	struct procmap_query found;
	void *map = MAP_FAILED;
	bool looked, parts;
	int error;

	keep_whole(hmm);
	looked = look_at(hmm, start, &found) == 0;
	/* What DONTUNMAP moved can't be told from what it did not. */
	parts = flags & MREMAP_DONTUNMAP || (looked && is_part(&found, start, end));
	if (!parts)
		map = call(old, size, size, flags, new);
	error = errno;
	let_split(hmm);
	errno = error;
	/* Before Linux 6.11 it can't be looked at, nor moved in part. */
	if (parts || (!looked && map == MAP_FAILED && error == EFAULT))
		return move_paused(hmm, old, size, flags, new);
	return map;
}

static size_t whole_pages(size_t size)
{
	return (size + HMM_PAGE_SIZE - 1) & ~(HMM_PAGE_SIZE - 1);
}

void *hmm_internal_mremap(void *old, size_t old_size, size_t new_size, int flags, void *new)
{
	size_t length = whole_pages(old_size);
	bool moves = flags & MREMAP_FIXED && length == whole_pages(new_size);
	void *map = MAP_FAILED;
	struct hmm *hmm;
	int error;

	if (!moves) {
		map = call(old, old_size, new_size, flags, new);
		if (map != MAP_FAILED || errno != EFAULT)
			return map;
	}
	if (hmmc_thread_is_private() || !length || length > HMM_VA_END ||
	    (uint64_t)old % HMM_PAGE_SIZE || (uint64_t)old + length > HMM_VA_END)
		return moves ? call(old, old_size, new_size, flags, new) : map;
	hmm = hmmc_space_enter_own();
	if (!hmm) {
		/* The mapping may be whole again: what really fails just fails once more. */
		hmmc_space_await_close();
		return call(old, old_size, new_size, flags, new);
	}
	errno = EFAULT;
	map = moves ? move(hmm, old, length, flags, new)
		    : call_paused(hmm, old, length, whole_pages(new_size), flags, new);
	error = errno;
	hmmc_space_leave(hmm);
	if (map == MAP_FAILED)
		errno = error;
	return map;
}

void *mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
	va_list arguments;
	void *new;

	va_start(arguments, flags);
	new = remap_place(flags, arguments);
	va_end(arguments);
	return hmm_internal_mremap(old, old_size, new_size, flags, new);
}
