/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * alloc.c - coherent memory: the CPU maps the very pages that the device has.
 *
 * The happy path: addresses are chosen where hardly anybody has anything, so that
 * a window finds them free in a driver, and reserved; `alloc` has hmmd make the
 * shadow there and mark the pages coherent; once the shadow has arrived the clerk
 * maps it in place of the reservation. Freeing goes the other way round.
 *
 * hmmd gives coherent memory by whole blocks, so a request is rounded up. It is
 * shared memory: a fork's child shares it with its parent.
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "arena.h"
#include "dispatch.h"
#include "mapping.h"
#include "space.h"

/* Above where AddressSanitizer keeps its heap, below where the kernel begins to map. */
#ifndef __SANITIZE_THREAD__
#define ALLOC_START	0x680000000000UL
#define ALLOC_END	0x700000000000UL
#else	/* which lets a program have few addresses of its own choice */
#define ALLOC_START	0x7e8000000000UL
#define ALLOC_END	0x7ea000000000UL
#endif

struct alloc {
	struct alloc *next;
	uint64_t start, length;		/* what was asked for */
	struct hmm_mirror_private *mirror;
};

static uint64_t block_up(uint64_t length)
{
	return (length + HMM_BLOCK_SIZE - 1) & ~(HMM_BLOCK_SIZE - 1);
}

/*
 * Addresses of no other allocation, reserved. A neighbour of the last one, so that shadows
 * are few.
 */
static char *reserve(struct hmm *hmm, uint64_t length)
{
	uint64_t size = block_up(length), at = 0;
	uint16_t random = 0;
	char *got, *room;

	futex_lock(&hmm->lock);
	for (struct alloc *alloc = hmm->allocs; alloc; alloc = alloc->next)
		if (alloc->start >= ALLOC_START && alloc->start < ALLOC_END &&
		    alloc->start + block_up(alloc->length) > at)
			at = alloc->start + block_up(alloc->length);
	futex_unlock(&hmm->lock);
	if (!at) {
		if (getrandom(&random, sizeof(random), GRND_NONBLOCK) < 0)
			random = (uint16_t)getpid();
		at = ALLOC_START + ((uint64_t)random << HMM_REGION_SHIFT) % ((ALLOC_END - ALLOC_START) / 2);
	}
	for (unsigned int tries = 0; tries < 4096 && at + size <= ALLOC_END;
	     tries++, at += block_up(size)) {
		got = mmap((void *)at, size, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
			   0);
		if (got != MAP_FAILED)
			return got;
		if (errno != EEXIST)
			break;
	}
	/* These addresses are not to be had in this program: then anywhere. */
	room = mmap(NULL, size + HMM_BLOCK_SIZE, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED)
		return NULL;
	got = (char *)(((uintptr_t)room + HMM_BLOCK_SIZE - 1) & ~(HMM_BLOCK_SIZE - 1));
	if (got > room)
		munmap(room, (size_t)(got - room));
	munmap(got + size, (size_t)(room + HMM_BLOCK_SIZE - got));
	return got;
}

struct placing {
	struct alloc *alloc;
	struct hmm *hmm;
};

/* In the clerk, which has the shadows' descriptors. */
static int place(void *argument)
{
	struct placing *placing = argument;
	struct regions *regions = &placing->hmm->owner->regions;
	uint64_t at = placing->alloc->start, end = at + block_up(placing->alloc->length);

	while (at < end) {
		struct region *region =
			hmmc_region_find(regions, placing->alloc->mirror->id & 0xff, at);
		uint64_t stop = (at & ~(HMM_REGION_SIZE - 1)) + HMM_REGION_SIZE;

		if (stop > end)
			stop = end;
		if (!region)
			return -ENOENT;
		if (!hmmc_map((void *)at, stop - at, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd,
			      region->offset + (at - region->base)))
			return -errno;
		if (region->kind == HMM_POOL_KIND_MEMFD_HUGE)
			madvise((void *)at, stop - at, MADV_HUGEPAGE);
		at = stop;
	}
	return 0;
}

/* Shadows come as events, before or after the answer. */
static int wait_for_shadows(struct hmm *hmm, const struct alloc *alloc)
{
	struct regions *regions = &hmm->owner->regions;
	const struct timespec moment = { .tv_nsec = 200000000 };

	for (uint64_t at = alloc->start; at < alloc->start + block_up(alloc->length);
	     at = (at & ~(HMM_REGION_SIZE - 1)) + HMM_REGION_SIZE) {
		for (;;) {
			uint32_t changes = __atomic_load_n(&regions->changes, __ATOMIC_ACQUIRE);

			if (hmmc_region_find(regions, alloc->mirror->id & 0xff, at))
				break;
			if (hmmc_space_check(hmm))
				return -ESTALE;
			hmmc_dispatch_pause(&regions->changes, changes, &moment);
		}
	}
	return 0;
}

static int prepare_alloc(struct request *request)
{
	const struct alloc *alloc = request->data;
	struct hmm_msg_alloc *message = (struct hmm_msg_alloc *)request->message;

	message->mirror = alloc->mirror->id;
	message->addr = alloc->start;
	message->length = block_up(alloc->length);
	return 0;
}

/* The two messages have the same fields. */
_Static_assert(sizeof(struct hmm_msg_alloc) == sizeof(struct hmm_msg_free) &&
		       offsetof(struct hmm_msg_alloc, addr) == offsetof(struct hmm_msg_free, addr),
	       "prepare_alloc() fills both");

static int call(struct hmm *hmm, uint16_t op, struct alloc *alloc)
{
	struct request *request =
		hmmc_request_new(hmm->connection, op, sizeof(struct hmm_msg_alloc));
	int error;

	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	request->data = alloc;
	request->prepare = prepare_alloc;
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	return error;
}

static int map_alloc(struct hmm *hmm, struct alloc *alloc)
{
	struct placing *placing = hmmc_arena_alloc(sizeof(*placing));
	int error;

	if (!placing)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	placing->alloc = alloc;
	placing->hmm = hmm;
	error = wait_for_shadows(hmm, alloc);
	if (!error)
		error = hmmc_clerk_call(place, placing);
	hmmc_arena_free(placing, sizeof(*placing));
	return error ? hmmc_fail(error, "the shadow cannot be mapped: %s", strerror(-error)) : 0;
}

int hmm_alloc(struct hmm_mirror *mirror, size_t length, void **result)
{
	struct alloc *alloc;
	struct hmm *hmm;
	int error = hmmc_mirror_check(mirror);

	if (!error)
		error = hmmc_dispatch_check();
	if (error)
		return error;
	hmm = mirror->priv->hmm;
	if (!hmm->owner)
		return hmmc_fail(-EPERM, "only the owner itself can allocate in its address space");
	if (!result || !length || length % HMM_PAGE_SIZE || length > ALLOC_END - ALLOC_START)
		return hmmc_fail(-EINVAL,
				 "result is NULL, or length is 0, too large or no multiple of %lu",
				 HMM_PAGE_SIZE);
	alloc = hmmc_arena_alloc(sizeof(*alloc));
	if (!alloc)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	alloc->mirror = mirror->priv;
	alloc->length = length;
	alloc->start = (uintptr_t)reserve(hmm, length);
	if (!alloc->start) {
		hmmc_arena_free(alloc, sizeof(*alloc));
		return hmmc_fail(-ENOMEM, "no free addresses for %zu bytes of coherent memory",
				 length);
	}
	error = call(hmm, HMM_OP_ALLOC, alloc);
	if (!error) {
		error = map_alloc(hmm, alloc);
		if (error)
			call(hmm, HMM_OP_FREE, alloc);
	}
	if (error) {
		munmap((void *)alloc->start, block_up(length));
		hmmc_arena_free(alloc, sizeof(*alloc));
		return error;
	}
	futex_lock(&hmm->lock);
	alloc->next = hmm->allocs;
	hmm->allocs = alloc;
	futex_unlock(&hmm->lock);
	*result = (void *)alloc->start;
	return 0;
}

int hmm_free(struct hmm_mirror *mirror, void *addr, size_t length)
{
	struct alloc **at, *alloc;
	struct hmm *hmm;
	int error;

	if (!addr)
		return 0;
	error = hmmc_mirror_check(mirror);
	if (!error)
		error = hmmc_dispatch_check();
	if (error)
		return error;
	hmm = mirror->priv->hmm;
	futex_lock(&hmm->lock);
	for (at = &hmm->allocs; *at; at = &(*at)->next)
		if ((*at)->start == (uintptr_t)addr && (*at)->length == length &&
		    (*at)->mirror == mirror->priv)
			break;
	alloc = *at;
	if (alloc)
		*at = alloc->next;
	futex_unlock(&hmm->lock);
	if (!alloc)
		return hmmc_fail(-EINVAL, "%p is not coherent memory of this mirror and length",
				 addr);
	/*
	 * Unmapped first: between the two the CPU has no entry, never another one than the device.
	 */
	mmap(addr, block_up(length), PROT_NONE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	error = call(hmm, HMM_OP_FREE, alloc);
	munmap(addr, block_up(length));
	hmmc_arena_free(alloc, sizeof(*alloc));
	return error;
}

bool hmmc_alloc_has(struct hmm *hmm, uint64_t start, uint64_t end)
{
	const struct alloc *alloc;

	futex_lock(&hmm->lock);
	for (alloc = hmm->allocs; alloc; alloc = alloc->next)
		if (alloc->start < end && alloc->start + block_up(alloc->length) > start)
			break;
	futex_unlock(&hmm->lock);
	return alloc;
}

void hmmc_alloc_forget(struct hmm *hmm)
{
	while (hmm->allocs) {
		struct alloc *alloc = hmm->allocs;

		hmm->allocs = alloc->next;
		hmmc_arena_free(alloc, sizeof(*alloc));
	}
}
