/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * graft.c - pages that mremap moved to an address whose block is in transit, on
 * behalf of what was mapped there before. Runs on the owner's worker.
 *
 * Where the block is at rest, or the transit is not about that page, the page goes in at
 * once: its bytes into the shadow, D. Else it waits behind the ledger, noted there before
 * the event counts as applied and the old place lets go of it: a hmmd that is killed
 * loses nothing, its successor puts the page in when all blocks are at rest, and the
 * library's rescuer brings it home. transit_end() lets it in before anything that was
 * parked, or is queued, could find a hole there and fill it.
 *
 * The library asks hmmd to follow an mprotect() only where a block's number is not 0, and goes on from mremap() when the
 * event is read. So the number comes first, then the page, and then its rights are looked at (protect_anew).
 *
 * Until then it may be unmapped or moved again. The mirror that it comes from stays as
 * long as it waits.
 *
 * What can fail: memory for the block, or room in the shadow: the page goes home. More pages than the ledger has
 * places for: the page is lost, with an error in the log.
 */
#include "engine/graft.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "engine/protect.h"
#include "engine/worker.h"
#include "log.h"

static struct hmm_grafts *grafts_of(const struct owner *owner)
{
	return (struct hmm_grafts *)((char *)owner->ledger + HMM_GRAFTS_OFFSET);
}

static char *bytes_of(const struct owner *owner, uint32_t i)
{
	return (char *)owner->ledger + HMM_GRAFT_BYTES_OFFSET + i * HMM_PAGE_SIZE;
}

static struct mirror *mirror_at(const struct owner *owner, uint32_t index)
{
	return index < MIRRORS_MAX ? owner->mirror[index] : NULL;
}

/* ---- going in --------------------------------------------------------------- */

static int install_bytes(struct block *block, unsigned int i, unsigned int mirror_index, const void *bytes)
{
	uint64_t addr = page_addr(block, i);
	struct mirror *mirror;
	struct shadow *shadow;
	int r;

	if (block->record->mirror == HMM_NO_MIRROR)
		block->record->mirror = (uint16_t)mirror_index;
	mirror = block_mirror(block);
	r = mirror ? mirror_shadow(mirror, addr, &shadow) : -ENODEV;
	if (r)
		return r;
	/* Over the quota if need be: the bytes exist, the old place is freed right after. */
	block_overcharge(block, 1);
	/* Zeros may be seen before the bytes are: not by a window. */
	if (block_has_window(block))
		window_guard(block);
	r = shadow_store(shadow, addr, bytes);
	if (r)
		return r;
	block_note_armed(block, i, i + 1);
	block_set_state(block, i, i + 1, HMM_PAGE_DEVICE);
	block->touched = true;
	return 0;
}

/* A block has one holder: among another device's pages this one can't be known. */
static void install_far(struct block *block, unsigned int i, unsigned int mirror_index, uint32_t number)
{
	struct owner *owner = block->owner;
	struct mirror *mirror = mirror_at(owner, mirror_index);

	block_note_armed(block, i, i + 1);
	if (block->record->mirror == HMM_NO_MIRROR)
		block->record->mirror = (uint16_t)mirror_index;
	if (mirror && block->record->mirror == mirror_index) {
		block_set_far(block, i, number);
		block->touched = true;
		return;
	}
	log_error("owner %u: page %#lx lost in mremap: it is in memory that only a driver reaches, and its new block is another device's",
		  owner->id, page_addr(block, i));
	if (mirror)
		far_release(mirror, number);
	far_lose(block, i);
}

/* SIGBUS where it can be had, rather than zeros: there is a hole at its new place. */
static void lost(struct owner *owner, uint64_t addr, const char *why)
{
	size_t done;

	kernel->uffd_poison(owner->uffd, addr, HMM_PAGE_SIZE, &done);
	log_error("owner %u: page %#lx lost in mremap: %s", owner->id, addr, why);
}

/* Return: 0, or the page is not on a device at its new place. */
static int install_on_device(struct owner *owner, uint64_t addr, unsigned int mirror, uint32_t number, const void *bytes)
{
	struct block *block = mirror < MIRRORS_MAX ? block_get(owner, addr) : NULL;

	if (!block)
		return -ENOMEM;
	if (!block_sequence(owner, addr))
		transit_note(block);
	if (number == HMM_FAR_NONE)
		return install_bytes(block, page_index(addr), mirror, bytes);
	install_far(block, page_index(addr), mirror, number);
	return 0;
}

/* The CPU has it then, or something else that is there by now; or nothing is mapped there any more. */
static int install_at_home(struct owner *owner, uint64_t addr, const void *bytes)
{
	size_t done;
	int r = bytes ? kernel->uffd_copy(owner->uffd, addr, bytes, HMM_PAGE_SIZE, 0, &done) : -ENOMEM;

	if (r == -ESRCH)
		owner->gone = true;
	if (r == -EFAULT && shadow_is_lost(bytes)) {
		lost(owner, addr, "the device's memory has failed");
		return 0;
	}
	return r == -ENOMEM || r == -EAGAIN || r == -EFAULT ? r : 0;
}

/*
 * These are the only bytes. Where a device has no memory for them at their new address they go home, and where the owner has none
 * either, or its map changes again, both are tried for as long as it takes.
 */
static void install(struct owner *owner, uint64_t addr, unsigned int mirror, uint32_t number,
		    const void *bytes)
{
	const struct timespec pause = { .tv_nsec = NS_PER_MS };

	while (install_on_device(owner, addr, mirror, number, bytes) && install_at_home(owner, addr, bytes)) {
		nanosleep(&pause, NULL);
		worker_gets_on(owner->worker);
	}
}

/* ---- waiting ---------------------------------------------------------------- */

/* The transit is about this very page. */
static bool has_to_wait(struct owner *owner, uint64_t addr)
{
	const struct block *block = block_find(owner, addr);

	return block && page_is_pending(block, page_index(addr));
}

/* That of @addr, or a free one; HMM_GRAFTS_MAX: there is none. */
static uint32_t find_place(struct owner *owner, uint64_t addr)
{
	struct hmm_grafts *grafts = grafts_of(owner);
	const struct block *block = block_find(owner, addr);
	uint32_t i = owner->graft_free;

	if (pages_test(&block->grafted, page_index(addr))) {
		for (i = 0; grafts->graft[i].addr != addr; i++)
			;
		return i;
	}
	while (i < grafts->end && grafts->graft[i].addr)
		i++;
	owner->graft_free = i;
	return i;
}

/* A waiting page's address is in @block, or is not any more. */
static void mark(struct owner *owner, uint64_t addr, bool waits)
{
	struct block *block = block_find(owner, addr);

	if (block && waits)
		pages_set(&block->grafted, page_index(addr));
	else if (block)
		pages_clear(&block->grafted, page_index(addr));
}

static void note(struct owner *owner, uint64_t addr, unsigned int mirror, uint32_t number, const void *bytes)
{
	struct hmm_grafts *grafts = grafts_of(owner);
	uint32_t i = find_place(owner, addr);
	struct hmm_graft *graft = &grafts->graft[i];

	if (i == HMM_GRAFTS_MAX) {
		lost(owner, addr, "too many pages wait for blocks in transit");
		return;
	}
	if (i == grafts->end)
		__atomic_store_n(&grafts->end, i + 1, __ATOMIC_RELEASE);
	graft->mirror = mirror;
	graft->number = number;
	if (number == HMM_FAR_NONE)
		memcpy(bytes_of(owner, i), bytes, HMM_PAGE_SIZE);
	if (!graft->addr) {
		owner->grafts++;
		if (mirror_at(owner, mirror))
			owner->mirror[mirror]->migrations++;
	}
	__atomic_store_n(&graft->addr, addr, __ATOMIC_RELEASE);
	mark(owner, addr, true);
}

/* It waits no more. */
static void forget(struct owner *owner, uint32_t i)
{
	struct hmm_grafts *grafts = grafts_of(owner);
	struct mirror *mirror = mirror_at(owner, grafts->graft[i].mirror);
	uint32_t end = grafts->end;

	mark(owner, grafts->graft[i].addr, false);
	if (i < owner->graft_free)
		owner->graft_free = i;
	__atomic_store_n(&grafts->graft[i].addr, 0, __ATOMIC_RELEASE);
	if (grafts->graft[i].number == HMM_FAR_NONE)
		kernel->punch(owner->ledger_fd, HMM_GRAFT_BYTES_OFFSET + i * HMM_PAGE_SIZE, HMM_PAGE_SIZE);
	while (end && !grafts->graft[end - 1].addr)
		end--;
	grafts->end = end;
	owner->grafts--;
	if (mirror)
		mirror->migrations--;
}

void graft_page(struct owner *owner, uint64_t addr, unsigned int mirror, uint32_t number, const void *bytes)
{
	if (has_to_wait(owner, addr))
		note(owner, addr, mirror, number, bytes);
	else
		install(owner, addr, mirror, number, bytes);
}

static void let_in(struct owner *owner, uint32_t i)
{
	const struct hmm_graft graft = grafts_of(owner)->graft[i];

	install(owner, graft.addr, graft.mirror, graft.number, bytes_of(owner, i));
	forget(owner, i);
}

void graft_settle(struct block *block)
{
	struct owner *owner = block->owner;
	const struct hmm_grafts *grafts = grafts_of(owner);

	if (!owner->grafts || owner->gone || pages_empty(&block->grafted))
		return;
	for (uint32_t i = 0; i < grafts->end; i++)
		if (grafts->graft[i].addr && grafts->graft[i].addr - block->addr < HMM_BLOCK_SIZE)
			let_in(owner, i);
	protect_anew(owner, block->addr, block->addr + HMM_BLOCK_SIZE);
}

void graft_drop(struct owner *owner, uint64_t start, uint64_t end)
{
	const struct hmm_grafts *grafts = grafts_of(owner);

	for (uint32_t i = 0; owner->grafts && i < grafts->end; i++) {
		const struct hmm_graft *graft = &grafts->graft[i];

		if (!graft->addr || graft->addr < start || graft->addr >= end)
			continue;
		if (graft->number != HMM_FAR_NONE && mirror_at(owner, graft->mirror))
			far_release(owner->mirror[graft->mirror], graft->number);
		forget(owner, i);
	}
}

bool graft_move(struct owner *owner, uint64_t from, uint64_t to, uint64_t length)
{
	struct hmm_grafts *grafts = grafts_of(owner);
	bool any = false;

	for (uint32_t i = 0; owner->grafts && i < grafts->end; i++) {
		struct hmm_graft *graft = &grafts->graft[i];

		if (!graft->addr || graft->addr < from || graft->addr >= from + length)
			continue;
		mark(owner, graft->addr, false);
		__atomic_store_n(&graft->addr, graft->addr - from + to, __ATOMIC_RELEASE);
		mark(owner, graft->addr, true);
		any = true;
		if (!has_to_wait(owner, graft->addr))
			let_in(owner, i);
	}
	return any;
}

/* ---- after a crash, and for children ------------------------------------------ */

void graft_recover(struct owner *owner)
{
	struct hmm_grafts *grafts = grafts_of(owner);
	uint32_t end = grafts->end < HMM_GRAFTS_MAX ? grafts->end : HMM_GRAFTS_MAX;
	uint64_t last = HMM_VA_END;

	for (uint32_t i = 0; i < end; i++) {
		const struct hmm_graft *graft = &grafts->graft[i];

		if (!graft->addr || graft->addr >= HMM_VA_END || graft->addr % HMM_PAGE_SIZE)
			continue;
		install(owner, graft->addr, graft->mirror, graft->number, bytes_of(owner, i));
		if (graft->addr >> HMM_BLOCK_SHIFT != last)
			protect_anew(owner, graft->addr & ~(HMM_BLOCK_SIZE - 1),
				     (graft->addr & ~(HMM_BLOCK_SIZE - 1)) + HMM_BLOCK_SIZE);
		last = graft->addr >> HMM_BLOCK_SHIFT;
		log_debug("owner %u: page %#lx, moved there while its block was in transit, is put in",
			  owner->id, graft->addr);
	}
	for (uint32_t i = 0; i < end; i++)
		grafts->graft[i].addr = 0;
	grafts->end = 0;
	if (end)
		kernel->punch(owner->ledger_fd, HMM_GRAFT_BYTES_OFFSET, end * HMM_PAGE_SIZE);
}

void graft_for_each(struct owner *owner, graft_fn fn, void *data)
{
	const struct hmm_grafts *grafts = grafts_of(owner);

	for (uint32_t i = 0; owner->grafts && i < grafts->end; i++)
		if (grafts->graft[i].addr)
			fn(grafts->graft[i].addr,
			   grafts->graft[i].number == HMM_FAR_NONE ? bytes_of(owner, i) : NULL, data);
}
