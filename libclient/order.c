/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * order.c - what the agent does for each kind of order.
 *
 * The happy path of OUT_MOVE: with the order in COMMIT one UFFDIO_MOVE takes the
 * block's pages into a staging slot, FILLING copies them from there into the
 * shadow, and the bitmaps say what became of each page. The slot stays full
 * until hmmd sends RELEASE, so a death in between costs nothing.
 *
 * What MOVE takes, and why not, is in move.c. Pages that the shadow has no room for go home.
 *
 * Runs in the agent. Never reads or writes the owner's memory by pointer: what
 * is absent there would fault to hmmd, which may be waiting for this very order.
 */
#include <string.h>

#include "arena.h"
#include "fill.h"
#include "mapping.h"
#include "move.h"
#include "told.h"

/* ---- slots ------------------------------------------------------------------- */

static char *slot_at(struct agent *agent, unsigned int slot)
{
	return agent->slots + (size_t)slot * HMM_BLOCK_SIZE;
}

static int slot_unregister(struct agent *agent, char *slot)
{
	struct uffdio_range range = { .start = (uintptr_t)slot, .len = HMM_BLOCK_SIZE };

	return ioctl(agent->uffd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

static int slot_register(struct agent *agent, char *slot)
{
	struct uffdio_register arg = {
		.range = { .start = (uintptr_t)slot, .len = HMM_BLOCK_SIZE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	return ioctl(agent->uffd, UFFDIO_REGISTER, &arg) ? -errno : 0;
}

/*
 * Unregistered first, so that emptying raises no event and cannot wait for a
 * reader. After 4 KiB pages the slot is mapped anew: their page table would
 * keep the next huge page from moving in whole.
 */
static int empty_slot(struct agent *agent, unsigned int number)
{
	char *slot = slot_at(agent, number);
	int error = slot_unregister(agent, slot);

	if (!error && agent->thin[number]) {
		if (!hmmc_map(slot, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))
			error = -errno;
		madvise(slot, HMM_BLOCK_SIZE, MADV_DONTFORK);
		madvise(slot, HMM_BLOCK_SIZE, MADV_DONTDUMP);
		madvise(slot, HMM_BLOCK_SIZE, MADV_HUGEPAGE);
	} else if (!error && madvise(slot, HMM_BLOCK_SIZE, MADV_DONTNEED)) {
		error = -errno;
	}
	agent->thin[number] = error && agent->thin[number];
	if (!error)
		error = slot_register(agent, slot);
	if (!error)
		agent->full[number] = false;
	return error;
}

/* What is found in a slot is taken for the order's: one that could not be emptied is not filled again. */
static int claim_slot(struct agent *agent, unsigned int number)
{
	int error = agent->full[number] ? empty_slot(agent, number) : 0;

	if (!error)
		agent->full[number] = true;
	return error;
}

/* ---- filling ---------------------------------------------------------------- */

static int fill(struct agent *agent, struct hmm_order *order, struct region *region, const char *slot,
		unsigned int *unfilled)
{
	struct fill fill;
	unsigned int page, end;
	int error = hmmc_fill_begin(&fill, agent, order, region);

	for (page = 0; !error && next_run(order->moved, &page, &end); page = end) {
		uint64_t address = page_address(order->addr, page);
		const char *bytes = slot + ((size_t)page << HMM_PAGE_SHIFT);
		size_t length = (size_t)(end - page) << HMM_PAGE_SHIFT;

		error = hmmc_fill_run(&fill, address, bytes, length);
		if (error)
			break;
	}
	*unfilled = page;
	return error;
}

/* Whether a slot still has the page. */
static bool has_page(struct agent *agent, uint64_t address)
{
	hmmc_move_look_surely(agent, address, 1);
	return is_there(agent->map[0]);
}

/*
 * Return: false: not now. What a MOVE did not count is at home, or was and is discarded: there is nothing to be copied then, and
 * whoever reads the hole in the slot waits for hmmd.
 */
static bool give_back_page(struct agent *agent, uint64_t to, uint64_t from)
{
	struct uffdio_move move = { .dst = to, .src = from, .len = HMM_PAGE_SIZE };
	struct uffdio_copy copy = { .dst = to, .src = from, .len = HMM_PAGE_SIZE };

	if (!ioctl(agent->uffd, UFFDIO_MOVE, &move) || errno == EEXIST)
		return true;
	if (errno == EAGAIN)
		return false;
	/* COPY also works where the mapping has become read-only or locked since. */
	if (!has_page(agent, from) || !ioctl(agent->uffd, UFFDIO_COPY, &copy))
		return true;
	return errno == EFAULT ? hmmc_is_lost((void *)(uintptr_t)from) : errno != EAGAIN && errno != ENOMEM;
}

/*
 * The device has no room: what it did not get goes back where it came from. A
 * page that has been served from the slot meanwhile is the CPU's already.
 */
static void give_back(struct agent *agent, struct hmm_order *order, const char *slot,
		      unsigned int page)
{
	unsigned int end;

	for (; next_run(order->moved, &page, &end); page = end) {
		for (unsigned int i = page; i < end; i++) {
			while (!give_back_page(agent, page_address(order->addr, i), page_address((uintptr_t)slot, i)) &&
			       !agent_is_retired(agent))
				nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
			clear(order->moved, i);
			set(order->busy, i);
		}
	}
}

static bool taken_back(const struct hmm_order *order)
{
	return __atomic_load_n(&order->state, __ATOMIC_SEQ_CST) == HMM_ORDER_CANCELLED;
}

/*
 * Return: NULL: the order fails (order->error), or was taken back. The order may be faster than the event that brings its shadow, and a mirror's number may
 * be used again.
 */
static struct region *wait_for_region(struct agent *agent, struct hmm_order *order)
{
	for (;;) {
		uint32_t changes = __atomic_load_n(&agent->regions->changes, __ATOMIC_ACQUIRE);
		struct region *region =
			hmmc_region_find(agent->regions, order->mirror, order->addr);
		const struct timespec while_ = { .tv_nsec = 100000000 };

		if (region && (!order->shadow || region->inode == order->shadow)) {
			if (hmmc_region_map(agent->regions, region))
				return region;
			order->error = -ENOMEM;
			return NULL;
		}
		if (agent_is_retired(agent) || taken_back(order))
			return NULL;
		futex_wait(&agent->regions->changes, changes, &while_);
	}
}

/* ---- orders ------------------------------------------------------------------- */

/*
 * What lies in the slot was moved; what was tried and is nowhere was a hole. To take all of it for moved would have the
 * filling wait at a hole of the slot, for hmmd, which waits for this order.
 */
static void sort_out(struct agent *agent, struct hmm_order *order, const struct move *move,
		     char *slot)
{
	unsigned int page;

	hmmc_move_look_surely(agent, (uintptr_t)slot, PAGES);
	for (page = 0; page < PAGES; page++)
		if (is_there(agent->map[page]) && test(move->done, page))
			set(order->moved, page);
	for (page = 0; page < PAGES; page++)
		if (test(move->done, page) && !test(order->moved, page))
			set(order->hole, page);
	memcpy(order->busy, move->busy, sizeof(order->busy));
}

static bool order_out_move(struct agent *agent, struct hmm_order *order, bool keep)
{
	char *slot = slot_at(agent, order->slot);
	struct move move = {
		.to = (uintptr_t)slot, .from = order->addr, .want = order->want, .unshare = keep,
	};
	struct region *region = NULL;
	unsigned int unfilled;
	int error;

	if (keep) {
		region = wait_for_region(agent, order);
		if (!region)
			return order->error;
	}
	order->error = claim_slot(agent, order->slot);
	if (order->error)
		return true;
	if (hmmc_move_pages(agent, order, &move))
		return false;
	__atomic_store_n(&order->state, HMM_ORDER_FILLING, __ATOMIC_SEQ_CST);
	order->error = move.error;
	sort_out(agent, order, &move, slot);
	agent->thin[order->slot] = !hmmc_move_is_huge(agent, (uintptr_t)slot);
	if (!agent->thin[order->slot])
		order->flags |= HMM_ORDER_HUGE_MOVED;
	if (!keep)
		return true;
	error = fill(agent, order, region, slot, &unfilled);
	/* Filled page by page for the windows' sake: one huge page again, if the kernel likes. */
	if (!error && order->flags & HMM_ORDER_VISIBLE &&
	    region->kind == HMM_POOL_KIND_MEMFD_HUGE && next(order->moved, 0, false) == PAGES)
		madvise(region_at(region, order->addr), HMM_BLOCK_SIZE, MADV_COLLAPSE);
	if (error) {
		order->error = error;
		give_back(agent, order, slot, unfilled);
	}
	return true;
}

/*
 * From the owner's page to the shadow through /proc/self/mem, which fails on what
 * is missing: into the mapping where that is wanted, else by way of a buffer.
 */
static int fill_in_place(struct agent *agent, struct hmm_order *order, struct region *region)
{
	struct fill fill;
	int error = hmmc_fill_begin(&fill, agent, order, region);
	unsigned int page = 0, end;

	/*
	 * Once the order is taken back the CPU may write and the shadow's pages may be somebody's.
	 */
	while (!error && !taken_back(order) && next_run(order->moved, &page, &end)) {
		uint64_t address = page_address(order->addr, page);
		size_t length = (size_t)(end - page) << HMM_PAGE_SHIFT;
		char *to = fill.mapped ? region_at(region, address) : agent->bounce;
		ssize_t got;

		if (!fill.mapped && length > sizeof(agent->bounce))
			length = sizeof(agent->bounce);
		got = pread(agent->mem, to, length, (off_t)address) & ~(ssize_t)(HMM_PAGE_SIZE - 1);
		if (got <= 0) {
			/* Gone since we looked. */
			clear(order->moved, page);
			set(order->busy, page++);
			continue;
		}
		if (!fill.mapped)
			error = hmmc_fill_run(&fill, address, agent->bounce, (size_t)got);
		page += (unsigned int)((size_t)got >> HMM_PAGE_SHIFT);
	}
	return error;
}

/*
 * Whether the program has locked what is there: its bytes are not to lie in a shadow, be it for a moment, nor a device's in its
 * holes. Nothing that costs little says so; but the hint that a page is cold is refused there. (MOVE refuses by itself.)
 */
static bool is_locked(const struct hmm_order *order)
{
	unsigned int page = 0, end;

	for (; next_run(order->want, &page, &end); page = end)
		if (madvise((void *)page_address(order->addr, page), HMM_PAGE_SIZE, MADV_COLD) && errno == EINVAL)
			return true;
	return false;
}

/*
 * Whoever wants to write to the pages meanwhile faults, because hmmd has
 * protected them, and hmmd takes the order back before it lets him.
 */
static bool order_out_zap(struct agent *agent, struct hmm_order *order)
{
	struct region *region = wait_for_region(agent, order);
	unsigned int page, end;
	int error;

	if (!region)
		return order->error;
	if (is_locked(order)) {
		memcpy(order->busy, order->want, sizeof(order->busy));
		order->error = -EINVAL;
		return true;
	}
	error = hmmc_move_look(agent, order->addr, PAGES, agent->map);
	for (page = 0; !error && page < PAGES; page++) {
		if (!test(order->want, page))
			continue;
		/*
		 * Swapped pages come in by being read; a marker on an absent page looks the same
		 * and reads as EIO.
		 */
		if (is_there(agent->map[page]))
			set(order->moved, page);
		else
			set(order->hole, page);
	}
	if (!error)
		error = fill_in_place(agent, order, region);
	if (error) {
		memset(order->moved, 0, sizeof(order->moved));
		order->error = error;
		return true;
	}
	if (!hmmc_order_commit(agent, order))
		return false;
	for (page = 0; next_run(order->moved, &page, &end); page = end) {
		if (madvise((void *)page_address(order->addr, page),
			    (size_t)(end - page) << HMM_PAGE_SHIFT, MADV_DONTNEED)) {
			order->error = -errno;
			for (unsigned int i = page; i < end; i++) {
				clear(order->moved, i);
				set(order->busy, i);
			}
		}
	}
	return true;
}

/* The slot's pages are to be those of @address: they lie where its mapping says. */
static int populate_as_at(struct agent *agent, char *slot, uint64_t address)
{
	struct policy policy;
	bool other = agent->policy && hmmc_policy_at(&policy, address);
	int error;

	if (other)
		hmmc_policy_set(&policy);
	error = madvise(slot, HMM_BLOCK_SIZE, MADV_POPULATE_WRITE) ? -errno : 0;
	if (other)
		hmmc_policy_set(agent->policy);
	return error == -EFAULT ? -ENOMEM : error;
}

static bool order_home_slot(struct agent *agent, struct hmm_order *order)
{
	char *slot = slot_at(agent, order->slot);
	struct move move = { .to = order->addr, .from = (uintptr_t)slot, .want = order->want };
	struct region *region = wait_for_region(agent, order);
	unsigned int page, end;
	bool huge;
	int error;

	if (!region)
		return order->error;
	error = claim_slot(agent, order->slot);
	if (!error)
		error = slot_unregister(agent, slot);
	if (!error)
		error = populate_as_at(agent, slot, order->addr);
	for (page = 0; !error && next_run(order->want, &page, &end); page = end)
		error = hmmc_fill_read(order, region, page_address(order->addr, page),
				       slot + ((size_t)page << HMM_PAGE_SHIFT),
				       (size_t)(end - page) << HMM_PAGE_SHIFT);
	huge = !error && hmmc_move_is_huge(agent, (uintptr_t)slot);
	/* Until it is known that nothing stays behind: empty it with its page table. */
	agent->thin[order->slot] = true;
	if (error) {
		order->error = error;
		return true;
	}
	if (hmmc_move_pages(agent, order, &move))
		return false;
	order->error = move.error;
	memcpy(order->moved, move.done, sizeof(order->moved));
	memcpy(order->busy, move.busy, sizeof(order->busy));
	agent->thin[order->slot] = !huge || next(order->moved, 0, false) < PAGES;
	return true;
}

static bool order_release(struct agent *agent, struct hmm_order *order)
{
	order->error = empty_slot(agent, order->slot);
	return true;
}

/* ---- the exchange of a mapping -------------------------------------------------- */

/*
 * @map takes the place of the order's block, at once, and is in it afterwards or gone. Only
 * where it is armed if @armed: what the program mapped there meanwhile is not. Returns
 * when hmmd has read the event. Return: false when the order was taken back.
 */
static bool exchange(struct agent *agent, struct hmm_order *order, char *map, bool armed)
{
	struct uffdio_writeprotect look = { .range = { order->addr, HMM_BLOCK_SIZE } };
	struct uffdio_range watched = { (uintptr_t)map, HMM_BLOCK_SIZE };
	bool committed = hmmc_order_commit(agent, order);

	while (committed && armed && ioctl(agent->uffd, UFFDIO_WRITEPROTECT, &look)) {
		if (errno != EAGAIN) {
			order->error = -errno;
			break;
		}
		hmmc_order_step_back(agent, order);
		committed = hmmc_order_commit(agent, order);
	}
	if (committed && !order->error) {
		if (mremap(map, HMM_BLOCK_SIZE, HMM_BLOCK_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   (void *)order->addr) != MAP_FAILED) {
			memcpy(order->moved, order->want, sizeof(order->moved));
			return true;
		}
		order->error = -errno;
	}
	/* No event of what nobody knows. */
	ioctl(agent->uffd, UFFDIO_UNREGISTER, &watched);
	munmap(map, HMM_BLOCK_SIZE);
	return committed;
}

static bool order_cohere(struct agent *agent, struct hmm_order *order)
{
	struct region *region = wait_for_region(agent, order);
	char *map;

	if (!region)
		return order->error;
	map = hmmc_map(NULL, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd,
		       region->offset + (order->addr - region->base));
	if (!map) {
		order->error = -errno;
		return true;
	}
	if (region->kind == HMM_POOL_KIND_MEMFD_HUGE)
		madvise(map, HMM_BLOCK_SIZE, MADV_HUGEPAGE);
	hmmc_told_pass_on(order->addr, map);
	return exchange(agent, order, map, true);
}

/* Ordinary memory, as the program would have mapped it, and watched. */
static char *map_armed(struct agent *agent)
{
	char *map = mmap(NULL, HMM_BLOCK_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register arg = {
		.range = { .start = (uintptr_t)map, .len = HMM_BLOCK_SIZE },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};
	int error;

	if (map == MAP_FAILED)
		return NULL;
	/* A program that locks all that it maps would fill it at once. */
	munlock(map, HMM_BLOCK_SIZE);
	if (!mprotect(map, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE) &&
	    !ioctl(agent->uffd, UFFDIO_REGISTER, &arg))
		return map;
	error = errno;
	munmap(map, HMM_BLOCK_SIZE);
	errno = error;
	return NULL;
}

static bool order_uncohere(struct agent *agent, struct hmm_order *order)
{
	char *map = map_armed(agent);

	if (!map) {
		order->error = -errno;
		return true;
	}
	hmmc_told_pass_on(order->addr, map);
	return exchange(agent, order, map, false);
}

static bool order_sync(struct agent *agent, struct hmm_order *order)
{
	const struct region *region = wait_for_region(agent, order);

	return region ? hmmc_order_sync(agent, order, region) : order->error;
}

bool hmmc_order_run(struct agent *agent, struct hmm_order *order)
{
	order->error = 0;
	memset(order->moved, 0, sizeof(order->moved));
	memset(order->hole, 0, sizeof(order->hole));
	memset(order->busy, 0, sizeof(order->busy));
	if (order->slot < agent->slots_count) {
		switch (order->kind) {
		case HMM_ORDER_OUT_MOVE:
			return order_out_move(agent, order, true);
		case HMM_ORDER_DROP:
			return order_out_move(agent, order, false);
		case HMM_ORDER_HOME_SLOT:
			return order_home_slot(agent, order);
		case HMM_ORDER_RELEASE:
			return order_release(agent, order);
		}
	}
	switch (order->kind) {
	case HMM_ORDER_OUT_ZAP:
		return order_out_zap(agent, order);
	case HMM_ORDER_COHERE:
		return order_cohere(agent, order);
	case HMM_ORDER_UNCOHERE:
		return order_uncohere(agent, order);
	case HMM_ORDER_SYNC:
		return order_sync(agent, order);
	}
	order->error = -EINVAL;
	return true;
}
