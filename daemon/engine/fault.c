/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fault.c - the owner's CPU touched a page that is armed. Runs on the owner's
 * worker, and is the hot path of hmmd.
 *
 * Happy path: the page is D, home.c copies it (and, when the faults look like
 * a walk, what follows), and the copy wakes the thread. A block in transit
 * parks the fault; a map that is changing puts it off until the event has been
 * read. Each fault is looked at afresh whenever it goes on: the page may have
 * come home, or gone, in between.
 */
#include <errno.h>
#include <stdlib.h>

#include "engine/notice.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

/* Blocks that a walk of whole blocks brings at a time. */
#define WALK_AHEAD	3

struct fault {
	struct task task;
	struct owner *owner;
	uint64_t addr, flags;
};

void fault_wake(struct owner *owner, uint64_t addr, uint64_t length)
{
	kernel->uffd_wake(owner->uffd, addr, length);
}

static void fault_run(struct task *task)
{
	struct fault *fault = (struct fault *)task;
	struct fault copy = *fault;

	free(fault);
	if (copy.owner->gone)
		return;
	fault_serve(copy.owner, copy.addr, copy.flags, 0);
}

bool fault_task_addr(const struct task *task, uint64_t *addr)
{
	if (task->run != fault_run)
		return false;
	*addr = ((const struct fault *)task)->addr;
	return true;
}

static struct fault *fault_new(struct owner *owner, uint64_t addr, uint64_t flags)
{
	struct fault *fault = malloc(sizeof(*fault));

	if (!fault) {
		/* Woken, the thread faults again: nothing is lost but time. */
		fault_wake(owner, addr & ~(HMM_PAGE_SIZE - 1), HMM_PAGE_SIZE);
		return NULL;
	}
	fault->task.run = fault_run;
	fault->owner = owner;
	fault->addr = addr;
	fault->flags = flags;
	return fault;
}

void fault_later(struct owner *owner, uint64_t addr, uint64_t flags)
{
	struct fault *fault = fault_new(owner, addr, flags);

	if (!fault)
		return;
	TAILQ_INSERT_TAIL(&owner->retry, &fault->task, link);
	worker_alarm(owner->worker, owner->worker->now + 50 * NS_PER_US);
}

void fault_retry(struct owner *owner)
{
	TAILQ_CONCAT(&owner->runnable, &owner->retry, link);
}

/* Not what a device has to itself. */
static bool comes_along(const struct block *block, unsigned int i, enum hmm_page_state state)
{
	return page_state(block, i) == state && !exclusive_page(block, i);
}

/*
 * Pages in @state to bring for a touch of @addr: its group, if one was said, and
 * the run behind it as long as a walk wants it.
 */
static struct pages walk_pages(struct owner *owner, struct block *block, uint64_t addr,
			       enum hmm_page_state state, const struct prefetch_hint *hint)
{
	uint64_t page = addr >> HMM_PAGE_SHIFT, base = block->addr >> HMM_PAGE_SHIFT;
	unsigned int asked = prefetch_ask(&owner->prefetch, page, HMM_BLOCK_PAGES), next;
	struct prefetch_span span = prefetch_span(page, asked, hint, base, base + HMM_BLOCK_PAGES);
	struct pages pages = { 0 };

	for (next = page_index(addr); base + next < span.end && comes_along(block, next, state); next++)
		pages_set(&pages, next);
	for (unsigned int i = (unsigned int)(span.start - base); i < page_index(addr); i++)
		if (comes_along(block, i, state))
			pages_set(&pages, i);
	prefetch_brought(&owner->prefetch, page, base + next, asked);
	return pages;
}

/* Never written before and armed all the same: zeros, for the whole run of holes. */
static int fill_holes(struct owner *owner, struct block *block, uint64_t addr)
{
	unsigned int first = page_index(addr), n = 1;
	uint64_t entries[HMM_BLOCK_PAGES];
	size_t done;
	int r;

	if (kernel->pagemap_read(owner->pagemap, page_addr(block, first), HMM_BLOCK_PAGES - first,
				 entries) == 0)
		while (first + n < HMM_BLOCK_PAGES && page_state(block, first + n) == HMM_PAGE_INVALID &&
		       !(entries[n] & (PM_PRESENT | PM_SWAP | PM_GUARD)))
			n++;
	r = kernel->uffd_zero(owner->uffd, page_addr(block, first), (size_t)n << HMM_PAGE_SHIFT, &done);
	/* The run crosses a mapping's edge: the page that is waited for, then. */
	if (r == -ENOENT && !done && n > 1)
		r = kernel->uffd_zero(owner->uffd, page_addr(block, first), HMM_PAGE_SIZE, &done);
	return done ? 0 : r;
}

static bool holds_anything(const struct block *block)
{
	return block_count(block, HMM_PAGE_INVALID) != HMM_BLOCK_PAGES;
}

static void serve_invalid(struct owner *owner, struct block *block, uint64_t addr, uint64_t flags)
{
	uint64_t page = addr & ~(HMM_PAGE_SIZE - 1);
	int r;

	if (flags & UFFD_PAGEFAULT_FLAG_WP) {
		/* Protection that outlived its state: left by an unshare that met EAGAIN. */
		r = kernel->uffd_protect(owner->uffd, page, HMM_PAGE_SIZE, false);
	} else {
		owner_count(owner, COUNTER_HOLE_FAULTS, 1);
		if (!holds_anything(block) && !range_holds(block) && pages_empty(&block->zapping) &&
		    block_punch_stale(block)) {
			/* Nothing of ours is left here: the kernel does it better. */
			block_drop_remote(block, NULL);
			if (block_disarm(block)) {
				block_forget(block);
				/* Where no mapping was found to be disarmed nobody else has woken it. */
				fault_wake(owner, page, HMM_PAGE_SIZE);
				return;
			}
		}
		r = fill_holes(owner, block, page);
	}
	if (r == -EAGAIN) {
		owner_count(owner, COUNTER_RETRIES, 1);
		fault_later(owner, addr, flags);
	} else if (r == -ESRCH) {
		owner->gone = true;
	} else if (r) {
		fault_wake(owner, page, HMM_PAGE_SIZE);
	}
}

static void serve_error(struct owner *owner, uint64_t page, uint64_t flags)
{
	size_t done;
	int r = kernel->uffd_poison(owner->uffd, page, HMM_PAGE_SIZE, &done);

	/* -ENOMEM: no page table in the owner. */
	if (r == -EAGAIN || r == -ENOMEM)
		fault_later(owner, page, flags);
	else if (r == -EEXIST)
		fault_wake(owner, page, HMM_PAGE_SIZE);
	else if (r && r != -ESRCH)
		log_error("owner %u: page %#lx is lost and can't be poisoned on this kernel: the thread waits",
			  owner->id, page);
}

/* In transit; the agent itself touches pages that it is about to move: it can't wait for itself. */
static void serve_agent(struct owner *owner, struct block *block, uint64_t page)
{
	char bounce[HMM_PAGE_SIZE];
	const void *bytes = page_bytes(block, page_index(page), bounce);
	size_t done;
	int r;

	owner_policy(owner, true);
	r = bytes ? kernel->uffd_copy(owner->uffd, page, bytes, HMM_PAGE_SIZE, 0, &done)
		  : kernel->uffd_zero(owner->uffd, page, HMM_PAGE_SIZE, &done);
	owner_policy(owner, false);
	if (r)
		fault_wake(owner, page, HMM_PAGE_SIZE);
	else
		block_bury(block, page_index(page));
}

/* Looked up ten times a second at most. */
bool owner_may_share(struct owner *owner)
{
	struct worker *worker = owner->worker;

	if (worker->now - worker->merging_seen > 100 * NS_PER_MS) {
		worker->merging_seen = worker->now;
		worker->merging = kernel->merging();
	}
	return !worker->merging;
}

/*
 * Whole blocks come home for a walk: [start, next) in any case, and on from there
 * as far as they can, at most to @limit. Its next fault is behind them.
 */
static void bring_whole(struct owner *owner, uint64_t start, uint64_t next, uint64_t limit)
{
	uint64_t end = next;

	for (; end < limit; end += HMM_BLOCK_SIZE) {
		const struct block *block = block_find(owner, end);

		if (!block || !block_at_rest(block) || !migrate_can_slot(block) || exclusive_any(block) ||
		    !attribute_is_uniform(&owner->attributes, start, end + HMM_BLOCK_SIZE))
			break;
	}
	if (end == start)
		return;
	owner->walk_end = end;
	owner_count(owner, COUNTER_FAULT_PAGES_HOME, (end - start) >> HMM_PAGE_SHIFT);
	prefetch_brought(&owner->prefetch, next >> HMM_PAGE_SHIFT, end >> HMM_PAGE_SHIFT, HMM_BLOCK_PAGES);
	migrate_home(owner, start, end, NULL, NULL, NULL);
}

/*
 * A walk that takes whole blocks: they come home as the huge pages that they
 * were, by the agent, and the next ones with them; the fault waits for its own.
 */
static bool walk_whole(struct owner *owner, struct block *block, const struct pages *pages, uint64_t addr,
		       uint64_t flags, const struct prefetch_hint *hint)
{
	unsigned int blocks = hint->off ? 1 : WALK_AHEAD;
	struct fault *fault;

	if (pages_count(pages) != HMM_BLOCK_PAGES || !migrate_can_slot(block))
		return false;
	/* Not behind others: the fault would come here again and again before a slot could be free. */
	if (!TAILQ_EMPTY(&owner->slot_waiters))
		return false;
	fault = fault_new(owner, addr, flags);
	if (!fault)
		return true;
	bring_whole(owner, block->addr, block->addr + HMM_BLOCK_SIZE,
		    block->addr + blocks * HMM_BLOCK_SIZE);
	owner_queue(owner, &fault->task);	/* behind the job, whose transit it will meet */
	return true;
}

/* Bytes that only the driver reaches are fetched first; the fault waits for them. */
static bool wait_for_driver(struct owner *owner, struct block *block, const struct pages *pages, uint64_t addr,
			    uint64_t flags)
{
	struct fault *fault;

	if (!page_is_far(block, page_index(addr)))
		return false;
	fault = fault_new(owner, addr, flags);
	if (fault)
		far_fetch(block, pages, page_index(addr), flags, HMM_REASON_CPU_FAULT, &fault->task);
	return true;
}

/* It has caught up with what comes home for it: as much again, so that the agent is never idle. */
static void walk_on(struct owner *owner, const struct block *block)
{
	uint64_t end = block->addr + WALK_AHEAD * HMM_BLOCK_SIZE;

	if (block->addr < owner->walk_end && owner->walk_end < end)
		bring_whole(owner, owner->walk_end, owner->walk_end, end);
}

/* A fault proves it: a mapping that grew in place, or that DONTUNMAP left behind. */
static void note_armed_mapping(struct owner *owner, struct block *block, uint64_t addr)
{
	uint64_t start = block->addr, end = block->addr + HMM_BLOCK_SIZE;
	struct kernel_vma vma;

	if (mapping_at(owner, addr, &vma) || vma.start > addr)
		return;
	if (start < vma.start)
		start = vma.start;
	if (end > vma.end)
		end = vma.end;
	block_note_armed(block, page_index(start), page_index(end - 1) + 1);
}

/* The page that was touched, and how many come or change with it. */
static void note_fault(const struct block *block, uint64_t page, int reason, const struct pages *pages)
{
	const struct mirror *mirror = block_mirror(block);

	notice(block->owner, (struct hmm_notice){
		.kind = HMM_EVENT_KIND_CPU_FAULT, .reason = (uint32_t)reason, .mirror = mirror ? mirror->id : 0,
		.start = page, .end = page + HMM_PAGE_SIZE, .pages = pages_count(pages) });
}

/* A CPU touch of a page that is on the device only. */
static void serve_device(struct owner *owner, struct block *block, uint64_t addr, uint64_t flags)
{
	bool copies = attribute_leaves_copy(block, addr);
	/* A copy for the device beside the CPU's page takes room, too. */
	bool read = copies || (block_device_reads(block) && !owner_near_limit(owner, 0));
	bool share = !(flags & UFFD_PAGEFAULT_FLAG_WRITE) && read && owner_may_share(owner);
	struct prefetch_hint hint = attribute_hint(owner, addr, share);
	struct pages pages = { 0 };

	if (exclusive_page(block, page_index(addr))) {
		pages_set(&pages, page_index(addr));
		note_fault(block, addr & ~(HMM_PAGE_SIZE - 1), HMM_REASON_EXCLUSIVE, &pages);
		owner_count(owner, COUNTER_FAULT_PAGES_HOME, 1);
		exclusive_take_back(block, page_index(addr), page_index(addr), flags);
		return;
	}
	pages = walk_pages(owner, block, addr & ~(HMM_PAGE_SIZE - 1), HMM_PAGE_DEVICE, &hint);
	if (wait_for_driver(owner, block, &pages, addr, flags))
		return;
	note_fault(block, addr & ~(HMM_PAGE_SIZE - 1), HMM_REASON_CPU_FAULT, &pages);
	/* What comes home whole leaves nothing on the device. */
	if (!copies && walk_whole(owner, block, &pages, addr, flags, &hint))
		return;
	owner_count(owner, COUNTER_FAULT_PAGES_HOME, pages_count(&pages));
	home_begin(block, &pages, page_index(addr), share, HMM_REASON_CPU_FAULT, flags, NULL);
}

/* A write to a page that the device has a copy of. */
static void serve_shared_write(struct owner *owner, struct block *block, uint64_t addr)
{
	struct prefetch_hint hint = attribute_hint(owner, addr, false);
	struct pages pages = walk_pages(owner, block, addr & ~(HMM_PAGE_SIZE - 1), HMM_PAGE_SHARED, &hint);

	owner_count(owner, COUNTER_WRITE_FAULTS, 1);
	note_fault(block, addr & ~(HMM_PAGE_SIZE - 1), HMM_REASON_CPU_WRITE, &pages);
	unshare_begin(block, &pages, HMM_REASON_CPU_WRITE, NULL);
}

/*
 * A touch of an S page that the CPU had not. Another thread's touch has brought it since this one was told, and all that this one needs
 * is to be woken; or it was discarded, or moved away, and the event is to be read first; or the CPU has lost it (it was cut off).
 * Only then it is D: said to be so while the CPU has it, here or where mremap has put it, it would stay so if the map changed just
 * then, and its device would write what the CPU never sees.
 */
static void serve_shared_absent(struct owner *owner, struct block *block, uint64_t addr, uint64_t flags)
{
	uint64_t page = addr & ~(HMM_PAGE_SIZE - 1), entry;
	unsigned int i = page_index(addr);
	struct pages pages = { 0 };
	int r = kernel->pagemap_read(owner->pagemap, page, 1, &entry);

	if (r == -ESRCH) {
		owner->gone = true;
	} else if (!r && entry & (PM_PRESENT | PM_SWAP)) {
		fault_wake(owner, page, HMM_PAGE_SIZE);
	} else if (r || map_is_changing(owner)) {
		fault_later(owner, addr, flags);
	} else {
		pages_set(&pages, i);
		block_set_state(block, i, i + 1, HMM_PAGE_DEVICE);
		home_begin(block, &pages, i, true, HMM_REASON_CPU_FAULT, flags, NULL);
	}
}

void fault_serve(struct owner *owner, uint64_t addr, uint64_t flags, uint32_t tid)
{
	uint64_t page = addr & ~(HMM_PAGE_SIZE - 1);
	struct block *block = block_get(owner, addr);
	struct fault *fault;

	owner->last_fault = owner->worker->now;
	if (!block) {
		fault_later(owner, addr, flags);
		return;
	}
	/* Not of coherent memory: that fault was before its mapping was exchanged. */
	if (!pages_test(&block->armed, page_index(addr)) && block_at_rest(block) &&
	    page_state(block, page_index(addr)) != HMM_PAGE_COHERENT)
		note_armed_mapping(owner, block, addr);
	if (!block_at_rest(block)) {
		if (tid && tid == owner->orders->agent_tid && !(flags & UFFD_PAGEFAULT_FLAG_WP) &&
		    page_state(block, page_index(addr)) == HMM_PAGE_INVALID) {
			serve_agent(owner, block, page);
			return;
		}
		fault = fault_new(owner, addr, flags);
		if (fault)
			block_park(block, &fault->task);
		if (block->record->transit == HMM_TRANSIT_HOME_SLOT)
			walk_on(owner, block);
		return;
	}

	switch (page_state(block, page_index(addr))) {
	case HMM_PAGE_INVALID:
	case HMM_PAGE_REMOTE:
		serve_invalid(owner, block, addr, flags);
		break;
	case HMM_PAGE_SHARED:
		if (flags & UFFD_PAGEFAULT_FLAG_WP)
			serve_shared_write(owner, block, addr);
		else
			serve_shared_absent(owner, block, addr, flags);
		break;
	case HMM_PAGE_DEVICE:
		serve_device(owner, block, addr, flags);
		break;
	case HMM_PAGE_COHERENT:
		fault_wake(owner, page, HMM_PAGE_SIZE);
		break;
	case HMM_PAGE_ERROR:
		serve_error(owner, page, flags);
		break;
	}
}
