// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * vault.c - what a device reads and writes without a window passes through hmmd in messages: a page that its program has locked,
 * too. On the heap it could be swapped out.
 *
 * Happy path: one reservation of address space is cut into places, each large enough for any message. A place is locked as far as
 * it was ever used, and goes back to the end of a list that it is taken from again first; only as many as are mostly in
 * use at a time stay locked.
 *
 * What can fail: memory. Where hmmd may lock no more (RLIMIT_MEMLOCK) the log says so once, and all goes on without.
 * Any thread; the lock is held across mlock() of a place that was not used before.
 */
#include "daemon/vault.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/log.h"
#include "uapi.h"

#define PLACES	8192U		/* address space: requests are bounded by quotas long before */
#define KEPT	16U		/* that stay locked while nobody uses them */
#define PAGE	4096UL

static struct {
	pthread_mutex_t lock;
	char *start;
	unsigned int fresh;		/* places from here on were never used */
	unsigned int free;		/* how many of them are in the list */
	uint16_t list[PLACES];
	uint32_t locked[PLACES];	/* bytes, of each place */
	bool told;
} vault = { .lock = PTHREAD_MUTEX_INITIALIZER };

static char *place_at(unsigned int place)
{
	return vault.start + place * VAULT_MAX;
}

static bool reserve(void)
{
	void *start = mmap(NULL, PLACES * VAULT_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (start == MAP_FAILED)
		return false;
	madvise(start, PLACES * VAULT_MAX, MADV_DONTDUMP);
	madvise(start, PLACES * VAULT_MAX, MADV_DONTFORK);
	madvise(start, PLACES * VAULT_MAX, MADV_NOHUGEPAGE);
	__atomic_store_n(&vault.start, (char *)start, __ATOMIC_RELAXED);
	return true;
}

static void lock_place(unsigned int place, size_t size)
{
	size = (size + PAGE - 1) & ~(PAGE - 1);
	if (vault.locked[place] >= size)
		return;
	if (!mlock(place_at(place), size)) {
		vault.locked[place] = (uint32_t)size;
		return;
	}
	if (!vault.told)
		log_warn("hmmd may lock no more memory (%s): what programs have locked may be swapped out while a device reads or writes it through hmmd; raise RLIMIT_MEMLOCK (ulimit -l)",
			 strerror(errno));
	vault.told = true;
}

void *vault_alloc(size_t size)
{
	unsigned int place = PLACES;

	if (size > VAULT_MAX)
		return NULL;
	pthread_mutex_lock(&vault.lock);
	if (vault.start || reserve()) {
		if (vault.free)
			place = vault.list[--vault.free];
		else if (vault.fresh < PLACES)
			place = vault.fresh++;
	}
	if (place < PLACES)
		lock_place(place, size);
	pthread_mutex_unlock(&vault.lock);
	return place < PLACES ? place_at(place) : NULL;
}

bool vault_has(const void *memory)
{
	const char *at = memory, *start = __atomic_load_n(&vault.start, __ATOMIC_RELAXED);

	return start && at >= start && at < start + PLACES * VAULT_MAX;
}

void vault_free(void *memory)
{
	unsigned int place;

	if (!vault_has(memory)) {
		free(memory);
		return;
	}
	pthread_mutex_lock(&vault.lock);
	place = (unsigned int)(((char *)memory - vault.start) / (ptrdiff_t)VAULT_MAX);
	if (vault.free >= KEPT) {
		madvise(memory, VAULT_MAX, MADV_DONTNEED_LOCKED);
		if (vault.locked[place])
			munlock(memory, vault.locked[place]);
		vault.locked[place] = 0;
	}
	vault.list[vault.free++] = (uint16_t)place;
	pthread_mutex_unlock(&vault.lock);
}
