/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * arm.c - which pages of a block are registered with the owner's userfaultfd: armed
 * for all that a device needs, or watched for ranges, which only hear of changes.
 * Runs on the owner's worker.
 *
 * The ledger says ARMED before the kernel is asked, so that after a crash every armed
 * range is woken. Taking a registration away is not refused while an event is unread: what
 * an mremap has just moved in must not lose its own.
 *
 * A mapping that mremap() grew in place is registered as far as it goes, and nothing tells of
 * it: a fault proves it, a device's access finds it out, and who disarms its end looks.
 */
#include <errno.h>

#include "engine/owner.h"
#include "engine/worker.h"
#include "uapi.h"

#define MODES	(UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP)

void block_note_armed(struct block *block, unsigned int first, unsigned int end)
{
	for (unsigned int i = first; i < end; i++) {
		if (!pages_test(&block->armed, i))
			block->armed_at = block->owner->journal_read;
		pages_set(&block->armed, i);
	}
	if (block->record->flags & HMM_BLOCK_ARMED)
		return;
	block->record->flags |= HMM_BLOCK_ARMED;
	atomic_fetch_add(&block->owner->registered_bytes, HMM_BLOCK_SIZE);
}

void block_note_unmapped(struct block *block, unsigned int first, unsigned int end)
{
	for (unsigned int i = first; i < end; i++)
		pages_clear(&block->armed, i);
}

void block_note_disarmed(struct block *block)
{
	block->armed = (struct pages){ 0 };
	if (!(block->record->flags & HMM_BLOCK_ARMED))
		return;
	block->record->flags &= ~HMM_BLOCK_ARMED;
	atomic_fetch_sub(&block->owner->registered_bytes, HMM_BLOCK_SIZE);
}

bool split_begin(struct owner *owner)
{
	struct hmm_orders *orders = owner->orders;

	__atomic_store_n(&orders->splitting, 1, __ATOMIC_SEQ_CST);
	/* One that closes does not depend on what its library says there. */
	if (owner->closing || !__atomic_load_n(&orders->remapping, __ATOMIC_SEQ_CST))
		return true;
	split_end(owner);
	return false;
}

void split_end(struct owner *owner)
{
	__atomic_store_n(&owner->orders->splitting, 0, __ATOMIC_SEQ_CST);
}

int block_arm(struct block *block, uint64_t start, uint64_t end)
{
	struct owner *owner = block->owner;
	struct pages before = block->armed;
	int r;

	if (start < block->addr)
		start = block->addr;
	if (end > block->addr + HMM_BLOCK_SIZE)
		end = block->addr + HMM_BLOCK_SIZE;
	if (!split_begin(owner)) {
		block_settle_later(block);
		return -EAGAIN;
	}
	/* First the ledger: after a crash every armed range is woken. */
	block_note_armed(block, page_index(start), page_index(end - 1) + 1);
	r = kernel->uffd_register(owner->uffd, start, end - start, MODES);
	split_end(owner);
	/* Another's: nothing of it is ours to take back. */
	if (r == -EBUSY)
		block->armed = before;
	if (r)
		block_settle_later(block);
	return r;
}

/*
 * By WP alone, with nothing protected: the kernel tells of unmapping, moving and
 * discarding, and serves every fault by itself. What is registered for more stays so.
 */
int block_watch(struct owner *owner, uint64_t start, uint64_t end)
{
	struct block *block;
	int r;

	if (!split_begin(owner))
		return -EAGAIN;
	r = kernel->uffd_register(owner->uffd, start, end - start, UFFDIO_REGISTER_MODE_WP);
	split_end(owner);
	if (r)
		return r;
	block = block_get(owner, start);
	if (!block)
		return -ENOMEM;
	block_note_armed(block, page_index(start), page_index(end - 1) + 1);
	/* The number 0 says that there is nothing here that an mprotect() would concern. */
	if (!block_sequence(owner, start))
		transit_withdraw(block, &(struct pages){ 0 });
	if (!block->queued)
		block_settle_later(block);
	return 0;
}

/*
 * Linux before 6.17 takes a registration away whosever it is; registering is refused of what another
 * userfaultfd watches, the program's own say. False: that is so, or it failed.
 */
static bool unregister_proved(int uffd, uint64_t at, uint64_t stop, bool prove)
{
	if (prove && kernel->uffd_register(uffd, at, stop - at, UFFDIO_REGISTER_MODE_WP))
		return false;
	return kernel->uffd_unregister(uffd, at, stop - at) == 0;
}

void unregister_run(struct owner *owner, int uffd, uint64_t at, uint64_t stop, bool prove)
{
	struct kernel_vma vma;

	if (unregister_proved(uffd, at, stop, prove))
		return;
	/* A mapping in it can't be, or is not, registered here: one by one. */
	while (at < stop && mapping_at(owner, at, &vma) == 0 && vma.start < stop) {
		uint64_t from = vma.start > at ? vma.start : at;
		uint64_t to = vma.end < stop ? vma.end : stop;

		unregister_proved(uffd, from, to, prove);
		at = to;
	}
}

static void unregister_ours(struct owner *owner, uint64_t at, uint64_t stop)
{
	unregister_run(owner, owner->uffd, at, stop, !owner->worker->engine->facts.unregister_checks);
}

bool map_is_changing(struct owner *owner)
{
	return kernel->uffd_protect(owner->uffd, owner->slots_addr, HMM_PAGE_SIZE, false) == -EAGAIN;
}

/*
 * Where memory for it is short it is asked again: what mremap() has brought there from a device would be zeros to whoever touches it, and
 * its caller is not back as long as this takes. (The kernel says so of an mm that is gone, too.)
 */
static void register_surely(struct owner *owner, uint64_t at, uint64_t length, uint64_t mode)
{
	const struct timespec nap = { .tv_nsec = NS_PER_MS };

	while (kernel->uffd_register(owner->uffd, at, length, mode) == -ENOMEM && !owner_mm_is_gone(owner))
		nanosleep(&nap, NULL);
}

/*
 * As it was, or for more. Pages of anonymous memory may be on a device, and what is missing of it must be asked for; of
 * files and of huge pages of the kernel's pool none ever are, and what is missing nobody but the kernel can give:
 * they were watched. Whoever touched them would be refused, or wait for as long as they were registered for more.
 */
void register_again(struct owner *owner, uint64_t at, uint64_t stop)
{
	struct kernel_vma vma;
	int r = 0;

	while (at < stop && (r = mapping_at(owner, at, &vma)) == 0 && vma.start < stop) {
		uint64_t from = vma.start > at ? vma.start : at;
		uint64_t to = vma.end < stop ? vma.end : stop;

		register_surely(owner, from, to - from, vma.file ? UFFDIO_REGISTER_MODE_WP : MODES);
		at = to;
	}
	/* It can't be told which. */
	if (r && r != -ENOENT)
		register_surely(owner, at, stop - at, MODES);
}

/*
 * Only what was registered here and has not been unmapped since. Unregistering
 * is not refused while an event is unread, and an mremap may have moved armed
 * pages to these addresses: its caller is not back before the event is read, so
 * if one is unread now, everything is registered again before anybody can tell
 * (but who touches these addresses while another thread moves something there).
 */
static bool disarm_now(struct block *block, const struct pages *pages)
{
	struct owner *owner = block->owner;
	unsigned int first = 0, end;

	for (; pages_run(pages, &first, &end); first = end)
		unregister_ours(owner, page_addr(block, first),
				block->addr + (uint64_t)end * HMM_PAGE_SIZE);
	if (!owner->gone && map_is_changing(owner)) {
		for (first = 0; pages_run(pages, &first, &end); first = end)
			register_again(owner, page_addr(block, first),
				       block->addr + (uint64_t)end * HMM_PAGE_SIZE);
		return false;
	}
	for (first = 0; pages_run(pages, &first, &end); first = end) {
		/* Unregistering forgets a writer that waits on a protected page. */
		fault_wake(owner, page_addr(block, first), (uint64_t)(end - first) << HMM_PAGE_SHIFT);
		for (unsigned int i = first; i < end; i++)
			pages_clear(&block->armed, i);
	}
	return true;
}

static bool may_disarm(struct owner *owner)
{
	return split_begin(owner) && (owner->gone || !map_is_changing(owner));
}

static bool disarm(struct block *block, const struct pages *pages)
{
	bool done = may_disarm(block->owner) && disarm_now(block, pages);

	split_end(block->owner);
	return done;
}

/*
 * A mapping that grew in place is registered as far as it goes now, and nothing tells of it. Left so when the rest
 * is disarmed it would be two mappings, of which mremap() takes one. Returns where that ends: at what
 * is noted as armed, or with the mapping.
 */
static uint64_t grown_end(const struct block *block, uint64_t end)
{
	struct owner *owner = block->owner;
	const struct block *next;
	struct kernel_vma vma;
	uint64_t at = block->addr + HMM_BLOCK_SIZE;
	unsigned int first = 0, last;

	/* The mapping of the page before it. */
	if (mapping_at(owner, end - HMM_PAGE_SIZE, &vma) || vma.start >= end || vma.end <= end ||
	    map_is_changing(owner))
		return end;
	if (owner->slots_addr >= end && owner->slots_addr < vma.end)
		vma.end = owner->slots_addr;
	for (; (next = block_next(owner, at, vma.end)); at = next->addr + HMM_BLOCK_SIZE)
		if (pages_run(&next->armed, &first, &last))
			break;
	if (next && page_addr(next, first) < vma.end)
		vma.end = page_addr(next, first);
	/* Somebody else's is refused. */
	if (vma.end > end && kernel->uffd_register(owner->uffd, end, vma.end - end, UFFDIO_REGISTER_MODE_WP))
		return end;
	return vma.end;
}

static bool disarm_all(struct block *block)
{
	struct pages armed = block->armed;
	struct owner *owner = block->owner;
	unsigned int first = 0, last;
	uint64_t from = 0, end;

	for (; pages_run(&armed, &first, &last); first = last)
		from = block->addr + (uint64_t)last * HMM_PAGE_SIZE;
	end = from && !owner->gone ? grown_end(block, from) : from;
	if (end > from)
		unregister_ours(owner, from, end);
	if (!disarm_now(block, &armed)) {
		if (end > from)
			register_again(owner, from, end);
		return false;
	}
	if (end > from)
		fault_wake(owner, from, end - from);
	block_note_disarmed(block);
	return true;
}

bool block_disarm(struct block *block)
{
	bool done;

	if (!(block->record->flags & HMM_BLOCK_ARMED))
		return true;
	done = may_disarm(block->owner) && disarm_all(block);
	split_end(block->owner);
	return done;
}

/*
 * What the program wants left alone, while others of the block's pages are out:
 * its mapping must not stay split at our edges, which mremap() refuses.
 */
bool block_disarm_excluded(struct block *block)
{
	const struct span_set *excluded = &block->owner->excluded;
	struct pages pages = { 0 };

	if (!span_set_overlaps(excluded, block->addr, block->addr + HMM_BLOCK_SIZE))
		return true;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (page_state(block, i) == HMM_PAGE_INVALID && pages_test(&block->armed, i) &&
		    span_set_overlaps(excluded, page_addr(block, i), page_addr(block, i) + HMM_PAGE_SIZE))
			pages_set(&pages, i);
	if (pages_empty(&pages))
		return true;
	/* Their neighbours are watched still, and who saw them is told of what becomes of them. */
	block_drop_remote(block, &pages);
	return disarm(block, &pages);
}
