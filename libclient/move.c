/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * move.c - UFFDIO_MOVE of a block's pages, into a staging slot or out of it.
 *
 * The happy path: with the order in COMMIT one call takes a run of pages.
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
 * Anything else ends the moving.
 *
 * Runs in the agent. Never reads or writes the owner's memory by pointer.
 */
#include <string.h>

#include "futex.h"
#include "move.h"

/* ---- the kernel ----------------------------------------------------------- */

int hmmc_move_look(struct agent *agent, uint64_t address, unsigned int pages, uint64_t *entries)
{
	ssize_t got = pread(agent->pagemap, entries, pages * sizeof(*entries),
			    (off_t)((address >> HMM_PAGE_SHIFT) * sizeof(*entries)));

	return got == (ssize_t)(pages * sizeof(*entries)) ? 0 : got < 0 ? -errno : -ENODATA;
}

bool hmmc_move_is_huge(struct agent *agent, uint64_t block)
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

/* ---- COMMIT ---------------------------------------------------------------- */

static bool held(const struct agent *agent)
{
	return __atomic_load_n(&agent->orders->hold, __ATOMIC_SEQ_CST) != 0;
}

void hmmc_order_step_back(struct agent *agent, struct hmm_order *order)
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

bool hmmc_order_commit(struct agent *agent, struct hmm_order *order)
{
	for (;;) {
		uint32_t running = HMM_ORDER_RUNNING;

		if (agent_is_retired(agent) ||
		    !__atomic_compare_exchange_n(&order->state, &running, HMM_ORDER_COMMIT, false,
						 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return false;
		/* Whoever retires it, and did not see COMMIT, is seen here. */
		if (!held(agent) && !agent_is_retired(agent))
			return true;
		hmmc_order_step_back(agent, order);
	}
}

/* ---- MOVE ------------------------------------------------------------------ */

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

	if (hmmc_move_look(agent, page_address(move->from, page), end - page, &agent->map[page]))
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
	if (!move->parted && hmmc_move_is_huge(agent, move->from)) {
		if (move->unshare)
			futex_write_fault((uint32_t *)page_address(move->from, page));
		madvise((void *)page_address(move->from, page), HMM_PAGE_SIZE, MADV_COLD);
		if (hmmc_move_is_huge(agent, move->from))
			return false;
	}
	move->parted = true;
	return true;
}

void hmmc_move_look_surely(struct agent *agent, uint64_t address, unsigned int pages)
{
	while (hmmc_move_look(agent, address, pages, agent->map))
		nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
}

/*
 * Linux 6.18 repeats a part of a MOVE that met a change, and does not count what it moves then (contract-move): those pages
 * are at the destination, and gone from where they were. Of [page, end) they are done from now on.
 */
static void find_uncounted(struct agent *agent, struct move *move, unsigned int page, unsigned int end)
{
	uint64_t arrived[HMM_BITMAP_WORDS] = {0};

	hmmc_move_look_surely(agent, page_address(move->to, page), end - page);
	for (unsigned int i = page; i < end; i++)
		if (test(move->want, i) && is_there(agent->map[i - page]))
			set(arrived, i);
	hmmc_move_look_surely(agent, page_address(move->from, page), end - page);
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
		if (!*committed && !hmmc_order_commit(agent, order))
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
			hmmc_order_step_back(agent, order);
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

int hmmc_move_pages(struct agent *agent, struct hmm_order *order, struct move *move)
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
