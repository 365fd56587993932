/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * order.c - what the agent does for each kind of order.
 *
 * The happy path of OUT_MOVE: with the order in COMMIT one UFFDIO_MOVE takes the
 * block's pages into a staging slot, FILLING copies them from there into the
 * shadow, and the bitmaps say what became of each page. The slot stays full
 * until hmmd sends RELEASE, so a death in between costs nothing.
 *
 * MOVE fails per page and says why only by its errno:
 *   EBUSY   pinned, or still shared since a fork. Sharing is broken once by a write
 *           fault; what is busy then is reported and stepped over.
 *   EAGAIN  an event is unread: the map is changing. With nothing moved yet the
 *           order goes back to RUNNING, where hmmd may take it back; with
 *           something moved it ends early and the rest is hmmd's to ask for again.
 *   EEXIST  Linux 6.18 has moved pages and not counted them: where they are tells which.
 *   EINVAL, ENOENT, EFAULT  the range spans mappings or holds a page that cannot
 *           move: halved until the page is found.
 * Anything else ends the moving. Pages that the shadow has no room for go home.
 *
 * Runs in the agent. Never reads or writes the owner's memory by pointer: what
 * is absent there would fault to hmmd, which may be waiting for this very order.
 */
#include <string.h>

#include "agent.h"
#include "arena.h"
#include "fill.h"
#include "futex.h"
#include "mapping.h"

#define PAGES HMM_BLOCK_PAGES

/* ---- bitmaps ------------------------------------------------------------- */

static bool test(const uint64_t *map, unsigned int page)
{
	return map[page / 64] >> (page % 64) & 1;
}

static void set(uint64_t *map, unsigned int page)
{
	map[page / 64] |= 1ULL << (page % 64);
}

static void clear(uint64_t *map, unsigned int page)
{
	map[page / 64] &= ~(1ULL << (page % 64));
}

/* The first page from @page on whose bit is @value; PAGES: none. */
static unsigned int next(const uint64_t *map, unsigned int page, bool value)
{
	while (page < PAGES) {
		uint64_t word = value ? map[page / 64] : ~map[page / 64];

		word >>= page % 64;
		if (word)
			return page + (unsigned int)__builtin_ctzll(word);
		page = (page / 64 + 1) * 64;
	}
	return PAGES;
}

/* Runs of set bits: for (from = 0; next_run(map, &from, &end); from = end) */
static bool next_run(const uint64_t *map, unsigned int *from, unsigned int *end)
{
	*from = next(map, *from, true);
	if (*from >= PAGES)
		return false;
	*end = next(map, *from, false);
	return true;
}

static uint64_t page_address(uint64_t block, unsigned int page)
{
	return block + ((uint64_t)page << HMM_PAGE_SHIFT);
}

/* ---- the kernel ----------------------------------------------------------- */

static bool is_there(uint64_t entry)
{
	return entry & (PM_PRESENT | PM_SWAP);
}

static int read_pagemap(struct agent *agent, uint64_t address, unsigned int pages,
			uint64_t *entries)
{
	ssize_t got = pread(agent->pagemap, entries, pages * sizeof(*entries),
			    (off_t)((address >> HMM_PAGE_SHIFT) * sizeof(*entries)));

	return got == (ssize_t)(pages * sizeof(*entries)) ? 0 : got < 0 ? -errno : -ENODATA;
}

static bool is_huge(struct agent *agent, uint64_t block)
{
	struct page_region found;
	struct pm_scan_arg arg = {
		.size = sizeof(arg), .start = block, .end = block + HMM_BLOCK_SIZE,
		.vec = (uintptr_t)&found, .vec_len = 1,
		.category_mask = PAGE_IS_HUGE, .return_mask = PAGE_IS_HUGE,
	};

	return ioctl(agent->pagemap, PAGEMAP_SCAN, &arg) == 1 && found.start == block &&
	       found.end == block + HMM_BLOCK_SIZE;
}

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

/* ---- COMMIT ---------------------------------------------------------------- */

static bool held(const struct agent *agent)
{
	return __atomic_load_n(&agent->orders->hold, __ATOMIC_SEQ_CST) != 0;
}

/*
 * Back where hmmd may take the order away, until the hold is over or a moment has
 * passed. Not longer in either case: a hmmd that takes an order back wakes nobody,
 * and one that has just started keeps the hold up until the agent is idle.
 */
static void step_back(struct agent *agent, struct hmm_order *order)
{
	const struct timespec moment = { .tv_nsec = 50000 }, longer = { .tv_nsec = 1000000 };
	uint32_t hold;

	__atomic_store_n(&order->state, HMM_ORDER_RUNNING, __ATOMIC_SEQ_CST);
	hold = __atomic_load_n(&agent->orders->hold, __ATOMIC_SEQ_CST);
	if (hold && !agent_is_retired(agent))
		futex_wait_shared(&agent->orders->hold, hold, &longer);
	else
		nanosleep(&moment, NULL);
}

/* RUNNING -> COMMIT with no hold. Return: false when the order was taken back. */
static bool commit(struct agent *agent, struct hmm_order *order)
{
	for (;;) {
		uint32_t running = HMM_ORDER_RUNNING;

		if (agent_is_retired(agent) ||
		    !__atomic_compare_exchange_n(&order->state, &running, HMM_ORDER_COMMIT, false,
						 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return false;
		if (!held(agent))
			return true;
		step_back(agent, order);
	}
}

/* ---- MOVE ------------------------------------------------------------------ */

struct move {
	uint64_t to, from;		/* blocks */
	const uint64_t *want;
	bool unshare;			/* break what a fork left shared */
	bool begun;			/* something has moved: no way back */
	bool parted;			/* no huge page lies across what is wanted and what is not */
	uint64_t done[HMM_BITMAP_WORDS];	/* moved, holes of the source included */
	uint64_t busy[HMM_BITMAP_WORDS];
	int error;			/* what could not be moved, or ended it */
};

static int unprotect(struct agent *agent, uint64_t address, unsigned int pages)
{
	struct uffdio_writeprotect arg = {
		.range = { .start = address, .len = (uint64_t)pages << HMM_PAGE_SHIFT },
	};

	/* Not registered: then nothing is protected. */
	return ioctl(agent->uffd, UFFDIO_WRITEPROTECT, &arg) && errno != ENOENT ? -errno : 0;
}

/*
 * Gives the busy page and those after it, as far as they are present, their own
 * copies. Returns the first page that was not touched. hmmd may be waiting for this very
 * order: a page that went away since must not make us wait for hmmd.
 */
static unsigned int break_sharing(struct agent *agent, const struct move *move, unsigned int page,
			    unsigned int end)
{
	unsigned int present = page;

	if (read_pagemap(agent, page_address(move->from, page), end - page, &agent->map[page]))
		return page + 1;
	while (present < end && agent->map[present] & PM_PRESENT)
		present++;
	/* A protection that outlived its state. */
	if (present == page || unprotect(agent, page_address(move->from, page), present - page))
		return page + 1;
	do
		if (futex_write_fault((uint32_t *)page_address(move->from, page)))
			return page + 1;
	while (++page < present);
	return present;
}

/*
 * Linux 6.12 repeats the MOVE of a part of a huge page for ever when that is pinned (contract-pins), so
 * it is parted first: where it is shared, by a write, else by a hint that parts it on the way. Neither
 * parts the mapping alone, as lifting a protection from a part would: then it could not be told any more.
 * False: it is whole still.
 */
static bool part(struct agent *agent, struct move *move, unsigned int page)
{
	if (!move->parted && is_huge(agent, move->from)) {
		if (move->unshare)
			futex_write_fault((uint32_t *)page_address(move->from, page));
		madvise((void *)page_address(move->from, page), HMM_PAGE_SIZE, MADV_COLD);
		if (is_huge(agent, move->from))
			return false;
	}
	move->parted = true;
	return true;
}

/* Nothing may be lost for want of an answer. */
static void read_surely(struct agent *agent, uint64_t address, unsigned int pages)
{
	while (read_pagemap(agent, address, pages, agent->map))
		nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
}

/*
 * Linux 6.18 repeats a part of a MOVE that met a change, and does not count what it moves then (contract-move): those pages
 * are at the destination, and gone from where they were. Of [page, end) they are done from now on.
 */
static void find_uncounted(struct agent *agent, struct move *move, unsigned int page, unsigned int end)
{
	uint64_t arrived[HMM_BITMAP_WORDS] = {0};

	read_surely(agent, page_address(move->to, page), end - page);
	for (unsigned int i = page; i < end; i++)
		if (test(move->want, i) && is_there(agent->map[i - page]))
			set(arrived, i);
	read_surely(agent, page_address(move->from, page), end - page);
	for (unsigned int i = page; i < end; i++) {
		if (!test(arrived, i) || test(move->done, i) || is_there(agent->map[i - page]))
			continue;
		set(move->done, i);
		clear(move->busy, i);
		move->begun = true;
	}
}

/* One wanted run. Return: 1 go on, 0 enough, -ECANCELED taken back. */
static int move_run(struct agent *agent, struct hmm_order *order, struct move *move,
		    unsigned int page, unsigned int end, bool *committed)
{
	unsigned int step = end - page, touched = page, hinted = page;

	while (page < end) {
		struct uffdio_move arg = {
			.dst = page_address(move->to, page), .src = page_address(move->from, page),
			.mode = UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES,
		};
		int error;

		if (test(move->done, page)) {
			step = end - ++page;
			continue;
		}
		if (!*committed && !commit(agent, order))
			return -ECANCELED;
		*committed = true;
		if (held(agent)) {
			error = EAGAIN;
		} else {
			if (step > end - page)
				step = end - page;
			if (step < PAGES && !part(agent, move, page))
				break;
			arg.len = (uint64_t)step << HMM_PAGE_SHIFT;
			error = ioctl(agent->uffd, UFFDIO_MOVE, &arg) ? errno : 0;
		}
		if (arg.move > 0) {
			for (unsigned int n = (unsigned int)(arg.move >> HMM_PAGE_SHIFT); n; n--)
				set(move->done, page++);
			move->begun = true;
			step = end - page;
			continue;
		}
		switch (error) {
		case EAGAIN:
			if (move->begun) {
				move->error = -EAGAIN;
				return 0;
			}
			step_back(agent, order);
			*committed = false;
			continue;
		case EBUSY:
			if (move->unshare && page >= touched) {
				touched = break_sharing(agent, move, page, end);
				continue;
			}
			/*
			 * A part of a huge page whose first part a child had shared is refused though it is the owner's
			 * alone: the hint makes small pages of it (contract-move).
			 */
			if (move->unshare && page >= hinted) {
				hinted = page + 1;
				madvise((void *)page_address(move->from, page), HMM_PAGE_SIZE, MADV_COLD);
				continue;
			}
			break;
		case EINVAL:
		case ENOENT:
		case EFAULT:
			if (step > 1) {
				step /= 2;
				continue;
			}
			move->error = -error;
			break;
		case EEXIST:
			find_uncounted(agent, move, page, end);
			if (test(move->done, page))
				continue;
			move->error = -EEXIST;
			return 0;
		default:
			move->error = error ? -error : -EIO;
			return 0;
		}
		set(move->busy, page++);
		step = end - page;
	}
	return 1;
}

/* Return: 0, with move filled in, or -ECANCELED with nothing changed. */
static int move_pages(struct agent *agent, struct hmm_order *order, struct move *move)
{
	bool committed = false;
	unsigned int page = 0, end;
	uint64_t left = 0;
	int going = 1;

	for (; going > 0 && next_run(move->want, &page, &end); page = end)
		going = move_run(agent, order, move, page, end, &committed);
	if (going < 0)
		return going;
	/* What was not tried any more is left alone as well; but for what the last try has taken. */
	for (unsigned int i = 0; i < HMM_BITMAP_WORDS; i++) {
		move->busy[i] |= move->want[i] & ~move->done[i];
		left |= move->busy[i];
	}
	if (left)
		find_uncounted(agent, move, 0, PAGES);
	return 0;
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
	read_surely(agent, address, 1);
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
	return !has_page(agent, from) || !ioctl(agent->uffd, UFFDIO_COPY, &copy) ||
	       (errno != EAGAIN && errno != ENOMEM);
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
 * The order may be faster than the event that brings its shadow, and a mirror's number may
 * be used again.
 */
static struct region *wait_for_region(struct agent *agent, const struct hmm_order *order)
{
	for (;;) {
		uint32_t changes = __atomic_load_n(&agent->regions->changes, __ATOMIC_ACQUIRE);
		struct region *region =
			hmmc_region_find(agent->regions, order->mirror, order->addr);
		const struct timespec while_ = { .tv_nsec = 100000000 };

		if (region && (!order->shadow || region->inode == order->shadow))
			return region;
		if (agent_is_retired(agent) || taken_back(order))
			return NULL;
		futex_wait(&agent->regions->changes, changes, &while_);
	}
}

/* ---- orders ------------------------------------------------------------------- */

/* What lies in the slot was moved; what was tried and is nowhere was a hole. */
static int sort_out(struct agent *agent, struct hmm_order *order, const struct move *move,
		    char *slot)
{
	unsigned int page;
	int error = read_pagemap(agent, (uintptr_t)slot, PAGES, agent->map);

	if (error)
		return error;
	for (page = 0; page < PAGES; page++)
		if (is_there(agent->map[page]) && test(move->done, page))
			set(order->moved, page);
	for (page = 0; page < PAGES; page++)
		if (test(move->done, page) && !test(order->moved, page))
			set(order->hole, page);
	memcpy(order->busy, move->busy, sizeof(order->busy));
	return 0;
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
			return false;
	}
	order->error = claim_slot(agent, order->slot);
	if (order->error)
		return true;
	if (move_pages(agent, order, &move))
		return false;
	__atomic_store_n(&order->state, HMM_ORDER_FILLING, __ATOMIC_SEQ_CST);
	order->error = move.error;
	error = sort_out(agent, order, &move, slot);
	if (error) {
		/* Without knowing better: all that was tried is in the slot; filling finds out. */
		memcpy(order->moved, move.done, sizeof(order->moved));
		order->error = error;
	}
	agent->thin[order->slot] = !is_huge(agent, (uintptr_t)slot);
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
 * Whoever wants to write to the pages meanwhile faults, because hmmd has
 * protected them, and hmmd takes the order back before it lets him.
 */
static bool order_out_zap(struct agent *agent, struct hmm_order *order)
{
	struct region *region = wait_for_region(agent, order);
	unsigned int page, end;
	int error;

	if (!region)
		return false;
	error = read_pagemap(agent, order->addr, PAGES, agent->map);
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
	if (!commit(agent, order))
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
		return false;
	error = claim_slot(agent, order->slot);
	if (!error)
		error = slot_unregister(agent, slot);
	if (!error)
		error = populate_as_at(agent, slot, order->addr);
	for (page = 0; !error && next_run(order->want, &page, &end); page = end)
		error = hmmc_fill_read(order, region, page_address(order->addr, page),
				       slot + ((size_t)page << HMM_PAGE_SHIFT),
				       (size_t)(end - page) << HMM_PAGE_SHIFT);
	huge = !error && is_huge(agent, (uintptr_t)slot);
	/* Until it is known that nothing stays behind: empty it with its page table. */
	agent->thin[order->slot] = true;
	if (error) {
		order->error = error;
		return true;
	}
	if (move_pages(agent, order, &move))
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
	bool committed = commit(agent, order);

	while (committed && armed && ioctl(agent->uffd, UFFDIO_WRITEPROTECT, &look)) {
		if (errno != EAGAIN) {
			order->error = -errno;
			break;
		}
		step_back(agent, order);
		committed = commit(agent, order);
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
		return false;
	map = hmmc_map(NULL, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd,
		       region->offset + (order->addr - region->base));
	if (!map) {
		order->error = -errno;
		return true;
	}
	if (region->kind == HMM_POOL_KIND_MEMFD_HUGE)
		madvise(map, HMM_BLOCK_SIZE, MADV_HUGEPAGE);
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
	return exchange(agent, order, map, false);
}

static bool order_sync(struct agent *agent, struct hmm_order *order)
{
	const struct region *region = wait_for_region(agent, order);

	return region && hmmc_order_sync(agent, order, region);
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
