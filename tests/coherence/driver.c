/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * driver.c - a driver process: by the owner's key it reads and writes the
 * owner's memory, by hmm_device_read() and hmm_device_write() and, when asked
 * to, through a window at the owner's own addresses.
 *
 * Odd drivers take invalidations in a callback, even ones do without (but for those who
 * add to counters: exclusive.c). What the owner's mprotect() forbids they are refused.
 *
 * Each keeps a range that it looked at some time ago: once a page of it has been
 * discarded, the range must not be valid any more.
 */
#include "board.h"
#include "exclusive.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define RANGE_PAGES 24U

/* What was seen of some pages, and how many discards had begun by then. */
struct looked_at {
	struct hmm_range range;
	uint64_t pfns[RANGE_PAGES];
	uint32_t page, pages;
	uint32_t begun[RANGE_PAGES];
	bool watched[RANGE_PAGES];	/* it has an entry: a change is to be heard of */
};

struct driver {
	struct thread_context context;
	struct hmm_mirror mirror;
	bool far;		/* its memory is reached by copies alone */
	struct hmm_window *window, *coherent;
	int pipe[2];			/* what of the window is held */
	_Atomic uint64_t invalidations;
	struct looked_at looked_at;
};

static struct driver the_driver;

/* A window that shows nothing where it should: say where, then fail as any violation does. */
static void hit(int number, siginfo_t *info, void *machine)
{
	struct board *board = the_driver.context.board;
	struct participant *who = the_driver.context.who;
	uint32_t cell = atomic_load(&who->page) * PAGE_CELLS + (uint32_t)((uintptr_t)info->si_addr / 8 % PAGE_CELLS);
	const struct sight nothing = { 0 };
	char why[96];

	snprintf(why, sizeof(why), "signal %d (code %d) at address %p", number, info->si_code, info->si_addr);
	board_violation(board, who, (enum operation)atomic_load(&who->doing), cell, &nothing, 0, why);
}

static int let_go(struct hmm_mirror *mirror, const struct hmm_update *update)
{
	struct driver *driver = (struct driver *)((char *)mirror - offsetof(struct driver, mirror));

	if (update->start >= update->end)
		board_fail(driver->context.board, driver->context.who, "an invalidation of %#lx to %#lx",
			   update->start, update->end);
	if (driver->context.board->settings.exclusive)
		addition_stop();
	/* Its device is busy, now and then. */
	return atomic_fetch_add(&driver->invalidations, 1) % 3 == 0 && !update->blockable ? -EAGAIN : 0;
}

static const struct hmm_mirror_ops with_callback = { .size = sizeof(with_callback),
						     .sync_cpu_device_pagetables = let_go };
static const struct hmm_mirror_ops without_callback = { .size = sizeof(without_callback) };

/* What the mapping forbids: nothing was done. Else hmmd may be away. */
static bool is_refusal(const struct driver *driver, ssize_t result)
{
	return driver->context.board->settings.protect && (result == -EFAULT || result == -EPERM);
}

static void device_read(struct driver *driver, uint32_t page)
{
	static const uint32_t lengths[] = { 1, 8, 64, 512, 700 };
	struct thread_context *me = &driver->context;
	struct board *board = me->board;
	struct area *area = board_area(board, page);
	uint32_t offset = draw_below(&me->random, PAGE_CELLS);
	uint32_t first = page * PAGE_CELLS + offset, guard;
	uint32_t n = lengths[draw_below(&me->random, 5)];
	uint32_t left = (area->first_page + area->pages) * PAGE_CELLS - first;
	static struct sight sights[700];
	static uint64_t values[700];
	char *memory;
	ssize_t got;

	/* One page, one answer. */
	if (board->settings.protect)
		left = PAGE_CELLS - offset;
	if (n > left)
		n = left;
	memory = board_enter(board, page);
	board_begin(board, me->who, OP_DEVICE_READ, page, (offset + n + 511) / PAGE_CELLS, first, n);
	guard = board_guard(board, page);
	for (uint32_t i = 0; i < n; i++)
		sights[i] = board_look(board, first + i);
	got = hmm_device_read(&driver->mirror, (unsigned long)memory + offset * 8, values, n * 8);
	if (got == (ssize_t)n * 8) {
		board_admit(board, me->who, OP_DEVICE_READ, first, guard, ACCESS_READ, true);
		for (uint32_t i = 0; i < n; i++)
			board_judge(board, me->who, OP_DEVICE_READ, first + i, &sights[i], values[i]);
	} else if (got >= 0) {
		board_fail(board, me->who, "hmm_device_read of %u bytes at page %u gave %zd", n * 8, page, got);
	} else if (is_refusal(driver, got)) {
		board_admit(board, me->who, OP_DEVICE_READ, first, guard, ACCESS_READ, false);
	} else {
		board_excused(board, me->who, "hmm_device_read", got);
	}
	atomic_fetch_add_explicit(&area->read, got > 0, memory_order_relaxed);
	board_done(board, me->who, OP_DEVICE_READ, got > 0);
	board_leave(board, page);
}

static void device_write(struct driver *driver, uint32_t page)
{
	struct thread_context *me = &driver->context;
	struct board *board = me->board;
	uint32_t line = board_pick_line(board, page, me->writer, &me->random);
	uint32_t first = page * PAGE_CELLS + line * LINE_CELLS, guard;
	uint32_t n = draw_below(&me->random, 2) ? 1 : LINE_CELLS;
	uint64_t values[LINE_CELLS];
	struct stroke stroke;
	char *memory = board_enter(board, page);
	ssize_t done;

	for (uint32_t i = 0; i < n; i++)
		values[i] = board_announce(board, first + i, me->writer);
	board_begin(board, me->who, OP_DEVICE_WRITE, page, 1, first, values[0]);
	guard = board_guard(board, page);
	stroke = board_stroke(board, page);
	done = hmm_device_write(&driver->mirror, (unsigned long)memory + line * LINE_CELLS * 8, values,
				n * 8);
	if (done == (ssize_t)n * 8) {
		board_admit(board, me->who, OP_DEVICE_WRITE, first, guard, ACCESS_WRITE, true);
		for (uint32_t i = 0; i < n; i++)
			board_publish(board, first + i, values[i], stroke);
	} else if (done >= 0) {
		board_fail(board, me->who, "hmm_device_write of %u bytes at page %u gave %zd", n * 8, page, done);
	} else if (is_refusal(driver, done)) {
		board_admit(board, me->who, OP_DEVICE_WRITE, first, guard, ACCESS_WRITE, false);
		/* One that was asked again after hmmd had died may have been done the first time. */
		for (uint32_t i = 0; i < n && !board->settings.kill_daemon; i++)
			board_retract(board, first + i);
	} else {
		board_excused(board, me->who, "hmm_device_write", done);
	}
	atomic_fetch_add_explicit(&board_area(board, page)->written, done > 0, memory_order_relaxed);
	board_done(board, me->who, OP_DEVICE_WRITE, done > 0);
	board_leave(board, page);
}

/* Where the page of an owner's address is here. */
static void *window_enter(struct driver *driver, uint32_t page)
{
	struct board *board = driver->context.board;
	bool coherent = board_area(board, page)->kind == AREA_COHERENT;
	unsigned long address = (unsigned long)board_enter(board, page);
	void *here = hmm_window_ptr(coherent ? driver->coherent : driver->window, address);

	if (!here)
		board_fail(board, driver->context.who, "the window does not cover page %u", page);
	return here;
}

static void window_load(struct driver *driver, uint32_t page)
{
	struct thread_context *me = &driver->context;
	struct board *board = me->board;
	uint32_t cell = page * PAGE_CELLS + draw_below(&me->random, PAGE_CELLS), guard;
	_Atomic uint64_t *memory = window_enter(driver, page);
	struct sight sight;
	uint64_t value;
	bool done;

	board_begin(board, me->who, OP_WINDOW_LOAD, page, 1, cell, 0);
	guard = board_guard(board, page);
	sight = board_look(board, cell);
	done = attempt_load(&memory[cell % PAGE_CELLS], &value);
	if (board_admit(board, me->who, OP_WINDOW_LOAD, cell, guard, ACCESS_READ_IF_SHOWN, done))
		board_judge(board, me->who, OP_WINDOW_LOAD, cell, &sight, value);
	board_done(board, me->who, OP_WINDOW_LOAD, done);
	board_leave(board, page);
}

static void window_store(struct driver *driver, uint32_t page)
{
	struct thread_context *me = &driver->context;
	struct board *board = me->board;
	uint32_t line = board_pick_line(board, page, me->writer, &me->random);
	uint32_t cell = page * PAGE_CELLS + line * LINE_CELLS + draw_below(&me->random, LINE_CELLS), guard;
	_Atomic uint64_t *memory = window_enter(driver, page);
	struct stroke stroke;
	uint64_t value;
	bool done;

	value = board_announce(board, cell, me->writer);
	board_begin(board, me->who, OP_WINDOW_STORE, page, 1, cell, value);
	guard = board_guard(board, page);
	stroke = board_stroke(board, page);
	done = attempt_store(&memory[cell % PAGE_CELLS], value);
	if (board_admit(board, me->who, OP_WINDOW_STORE, cell, guard, ACCESS_WRITE, done))
		board_publish(board, cell, value, stroke);
	else
		board_retract(board, cell);
	board_done(board, me->who, OP_WINDOW_STORE, done);
	board_leave(board, page);
}

/* Until it is drained, as I/O from a window would: the huge page of that page can't be split. */
static void hold(struct driver *driver, uint32_t page)
{
	struct board *board = driver->context.board;
	struct iovec held = { .iov_base = window_enter(driver, page), .iov_len = PAGE_BYTES };

	if (vmsplice(driver->pipe[1], &held, 1, 0) != (ssize_t)PAGE_BYTES)
		board_fail(board, driver->context.who, "vmsplice from page %u of the window: %s", page,
			   strerror(errno));
	board_leave(board, page);
}

static void drain(struct driver *driver)
{
	static char bytes[PAGE_BYTES];

	if (read(driver->pipe[0], bytes, sizeof(bytes)) != (ssize_t)sizeof(bytes))
		board_fail(driver->context.board, driver->context.who, "the pipe lost a page of the window: %s",
			   strerror(errno));
}

/* What the CPU takes back meanwhile lies in a page that is held. */
static void window_walk(struct driver *driver, uint32_t page)
{
	struct board *board = driver->context.board;
	struct area *area = board_area(board, page);
	uint32_t end = page + 1 + draw_below(&driver->context.random, 256);

	if (end > area->first_page + area->pages)
		end = area->first_page + area->pages;
	/* Memory that may not be read is not to be had for I/O, either. */
	if (!board->settings.protect)
		hold(driver, page);
	for (; page < end && !board_stopped(board); page++)
		window_load(driver, page);
	if (!board->settings.protect)
		drain(driver);
}

/* A page that was discarded since it was seen: what hmmd has read of that it has applied before it answers. */
static bool has_lost_a_page(struct driver *driver, uint32_t *page)
{
	struct looked_at *looked_at = &driver->looked_at;
	char byte;

	for (uint32_t i = 0; i < looked_at->pages; i++) {
		*page = looked_at->page + i;
		if (looked_at->watched[i] && board_look(driver->context.board, *page * PAGE_CELLS).hard >
						     looked_at->begun[i])
			return hmm_device_read(&driver->mirror, looked_at->range.start, &byte, 1) == 1;
	}
	return false;
}

static const uint64_t range_flags[HMM_PFN_FLAG_MAX] = { 1, 2, 4 };
static const uint64_t range_values[HMM_PFN_VALUE_MAX] = { 8, 0, 16 };

/* Some pages from @page on, whose area is held until board_leave(). Returns where they are. */
static unsigned long range_begin(struct driver *driver, uint32_t page, uint64_t wanted)
{
	struct looked_at *looked_at = &driver->looked_at;
	struct thread_context *me = &driver->context;
	struct area *area = board_area(me->board, page);
	uint32_t left = area->first_page + area->pages - page;
	unsigned long start = (unsigned long)board_enter(me->board, page);
	int error;

	looked_at->page = page;
	looked_at->pages = 1 + draw_below(&me->random, left < RANGE_PAGES ? left : RANGE_PAGES);
	board_begin(me->board, me->who, OP_RANGE, page, looked_at->pages, 0, start);
	looked_at->range = (struct hmm_range){ .pfns = looked_at->pfns, .flags = range_flags, .values = range_values,
					       .pfn_shift = 12, .default_flags = wanted };
	error = hmm_range_register(&looked_at->range, &driver->mirror, start,
				   start + looked_at->pages * PAGE_BYTES, 12);
	if (error)
		board_fail(me->board, me->who, "hmm_range_register: %s (%s)", strerror(-error), hmm_last_error());
	return start;
}

/* A range that is valid allows no more than the mappings do. */
static void range_forbids(struct driver *driver)
{
	struct looked_at *looked_at = &driver->looked_at;
	struct thread_context *me = &driver->context;

	for (uint32_t i = 0; i < looked_at->pages && me->board->settings.protect; i++) {
		uint32_t page = looked_at->page + i, guard = board_guard(me->board, page);
		bool valid = hmm_range_valid(&looked_at->range);

		if (!looked_at->watched[i] || !valid)
			continue;
		if (looked_at->pfns[i] & range_flags[HMM_PFN_WRITE])
			board_admit(me->board, me->who, OP_RANGE, page * PAGE_CELLS, guard, ACCESS_WRITE, true);
		board_admit(me->board, me->who, OP_RANGE, page * PAGE_CELLS, guard, ACCESS_READ, true);
	}
}

/* Whether there is something in the page that nobody has discarded. */
static bool has_bytes(struct board *board, uint32_t page)
{
	for (uint32_t cell = page * PAGE_CELLS; cell < (page + 1) * PAGE_CELLS; cell += 7) {
		struct sight sight = board_look(board, cell);

		if (sight.stroke.quiet && board_opinion(board, cell, &sight, 0, sight.stroke.begun))
			return true;
	}
	return false;
}

/* A look that faults nothing in, and stays valid, finds what is there. (Nothing here is ever swapped out.) */
static void range_snapshot(struct driver *driver, uint32_t page)
{
	struct looked_at *looked_at = &driver->looked_at;
	struct thread_context *me = &driver->context;
	bool there[RANGE_PAGES];
	unsigned long number;
	long result;

	range_begin(driver, page, 0);
	for (uint32_t i = 0; i < looked_at->pages; i++) {
		looked_at->begun[i] = board_stroke(me->board, page + i).begun;
		there[i] = has_bytes(me->board, page + i);
	}
	number = hmm_range_read_begin(&looked_at->range);
	result = hmm_range_snapshot(&looked_at->range);
	if (result > 0 && hmm_range_read_retry(&looked_at->range, number))
		result = -EAGAIN;
	for (uint32_t i = 0; result > 0 && i < looked_at->pages; i++)
		if (there[i] && !(looked_at->pfns[i] & range_flags[HMM_PFN_VALID]) &&
		    board_stroke(me->board, page + i).begun == looked_at->begun[i])
			board_fail(me->board, me->who, "a valid snapshot has entry %#lx for page %u, where bytes are",
				   looked_at->pfns[i], page + i);
	/* Holes are an answer. */
	if (result < 0 && result != -EAGAIN && result != -EFAULT)
		board_excused(me->board, me->who, "hmm_range_snapshot", result);
	board_done(me->board, me->who, OP_RANGE, result > 0);
	board_leave(me->board, page);
	hmm_range_unregister(&looked_at->range);
}

static void range_check(struct driver *driver)
{
	struct thread_context *me = &driver->context;
	uint32_t page;

	if (!driver->looked_at.range.priv)
		return;
	if (has_lost_a_page(driver, &page) && hmm_range_valid(&driver->looked_at.range))
		board_fail(me->board, me->who,
			   "a range from page %u on is valid, though page %u was discarded after it was seen",
			   driver->looked_at.page, page);
	range_forbids(driver);
	hmm_range_unregister(&driver->looked_at.range);
}

/*
 * Whether hmmd follows what was seen. Of memory that was excluded then it does not; it may have been included and seen
 * by another device since, after other rights had come.
 */
static bool is_followed(const struct driver *driver, unsigned long address, uint64_t pfn)
{
	uint64_t entry = hmm_mirror_lookup(&driver->mirror, address);

	if (!(pfn & range_flags[HMM_PFN_VALID]) || !(entry & HMM_ENTRY_VALID))
		return false;
	return !(pfn & range_flags[HMM_PFN_WRITE]) || entry & HMM_ENTRY_WRITE;
}

static void range_look(struct driver *driver, uint32_t page)
{
	struct looked_at *looked_at = &driver->looked_at;
	struct thread_context *me = &driver->context;
	unsigned long start = range_begin(driver, page, range_flags[HMM_PFN_VALID]);
	long result = 0;

	if (draw_below(&me->random, 8) == 0 && !area_stays(board_area(me->board, page)))
		looked_at->range.default_flags |= range_flags[HMM_PFN_DEVICE_PRIVATE];
	if (draw_below(&me->random, 4) == 0)
		looked_at->range.default_flags |= range_flags[HMM_PFN_WRITE];
	for (int tries = 0; tries < 100 && (result == 0 || result == -EBUSY); tries++) {
		hmm_range_wait_until_valid(&looked_at->range, 100);
		result = hmm_range_fault(&looked_at->range, true);
	}
	if (result < 0 && result != -EBUSY && !is_refusal(driver, result))
		board_excused(me->board, me->who, "hmm_range_fault", result);
	for (uint32_t i = 0; i < looked_at->pages; i++) {
		looked_at->begun[i] = board_stroke(me->board, page + i).begun;
		looked_at->watched[i] = result > 0 && is_followed(driver, start + i * PAGE_BYTES, looked_at->pfns[i]);
		if (result > 0 && (looked_at->pfns[i] & looked_at->range.default_flags & 3) !=
					  (looked_at->range.default_flags & 3))
			board_fail(me->board, me->who, "hmm_range_fault gave entry %#lx for page %u, wanted %#lx",
				   looked_at->pfns[i], page + i, looked_at->range.default_flags);
	}
	board_done(me->board, me->who, OP_RANGE, result > 0);
	board_leave(me->board, page);
	if (result < 0)
		hmm_range_unregister(&looked_at->range);
}

/* Any driver may say what it wants where. What it does not get does not matter. */
static void advise(struct driver *driver, uint32_t page)
{
	static const enum hmm_advice advices[] = {
		HMM_ADVISE_SET_READ_MOSTLY, HMM_ADVISE_SET_PREFERRED_LOCATION, HMM_ADVISE_EVICT_PRIORITY,
		HMM_ADVISE_SET_ACCESSED_BY,
	};
	enum hmm_advice advice = advices[draw_below(&driver->context.random, 4)];
	struct hmm_advise_options options = { .size = sizeof(options), .mirror = &driver->mirror };
	struct thread_context *me = &driver->context;
	struct area *area = board_area(me->board, page);
	uint32_t left = area->first_page + area->pages - page, pages = 1 + draw_below(&me->random, 600);
	unsigned long address = (unsigned long)board_enter(me->board, page);
	int error;

	if (pages > left)
		pages = left;
	if (advice == HMM_ADVISE_EVICT_PRIORITY)
		options.value = draw_below(&me->random, 101);
	board_begin(me->board, me->who, OP_ADVISE, page, pages, 0, advice);
	if (draw_below(&me->random, 3))
		error = hmm_advise(me->hmm, address, pages * PAGE_BYTES, advice, &options);
	else
		error = hmm_unadvise(me->hmm, address, pages * PAGE_BYTES, advice, &options);
	if (error)
		board_excused(me->board, me->who, "hmm_advise", error);
	board_done(me->board, me->who, OP_ADVISE, !error);
	board_leave(me->board, page);
}

static void add(struct driver *driver, struct area *area)
{
	struct thread_context *me = &driver->context;
	uint32_t cell = board_pick_counter(me->board, area, &me->random);

	if (draw_below(&me->random, 3))
		exclusive_add(me, &driver->mirror, driver->window, cell);
	else
		window_add(me, driver->window, cell);
}

/* The counters, if there are any and one is at hand. */
static struct area *counters_of(struct driver *driver, struct area *area)
{
	struct board *board = driver->context.board;

	if (!board->settings.exclusive || !driver->window)
		return NULL;
	if (area->kind == AREA_COUNTERS)
		return draw_below(&driver->context.random, 5) ? area : NULL;
	return draw_below(&driver->context.random, 3) ? board_counters(board) : NULL;
}

static void access_at_random(struct driver *driver)
{
	struct thread_context *me = &driver->context;
	struct board *board = me->board;
	uint32_t page = board_pick_page(board, &me->random);
	struct area *area = board_area(board, page), *counters;
	uint32_t kind = area->kind;
	bool mine = kind != AREA_PINNED && kind != AREA_COUNTERS;
	uint32_t choice = draw_below(&me->random, 100);

	if ((kind == AREA_ORDINARY || area_stays(area)) && !draw_below(&me->random, 8)) {
		range_check(driver);
		if (board->settings.several && draw_below(&me->random, 2))
			range_snapshot(driver, page);
		else
			range_look(driver, page);
	}
	if (board->settings.several && !draw_below(&me->random, 40))
		advise(driver, page);
	if (driver->far && choice < 20) {
		engine_move(me, &driver->mirror, choice < 14);
		return;
	}
	counters = counters_of(driver, area);
	if (counters) {
		add(driver, counters);
		return;
	}

	/*
	 * What I/O pins for long cannot be had through a window: SIGBUS says so. Nor can the
	 * coherent memory of the owner's own device, which is not this driver's, nor what stays where it is.
	 */
	if (driver->window && kind == AREA_ORDINARY && choice < 70) {
		if (choice < 20)
			window_walk(driver, page);
		else if (choice < 40)
			window_load(driver, page);
		else
			window_store(driver, page);
	} else if (choice < (area_stays(area) ? 50 : 85) || !mine) {
		device_read(driver, page);
	} else {
		device_write(driver, page);
	}
	if (!draw_below(&me->random, 16))
		pause_us(draw_below(&me->random, 300));
}

static int receive_key(int socket_fd)
{
	char byte, control[CMSG_SPACE(sizeof(int))];
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *header;
	int key;

	if (recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC) != 1)
		return -1;
	header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_type != SCM_RIGHTS)
		return -1;
	memcpy(&key, CMSG_DATA(header), sizeof(key));
	return key;
}

static void bar_open(struct driver *driver)
{
	struct thread_context *me = &driver->context;
	struct board *board = me->board;
	char name[64];
	struct hmm_device_options options = { .size = sizeof(options), .node = -1,
					      .name = board_device(driver->context.board, "bar", name),
					      .caps = HMM_DEVICE_FAULTS, .pool = HMM_POOL_VFIO,
					      .memory = (uint64_t)board->settings.device << 20,
					      .bus = board->settings.card, .bar = 2 };
	int error = -EIO;

	/* A card that fails at times may do so here. */
	for (int tries = 0; tries < 20 && error; tries++)
		error = hmm_device_new(me->hmm, &options, &driver->mirror.device);
	if (error)
		board_fail(board, me->who, "hmm_device_new: %s (%s)", strerror(-error), hmm_last_error());
	error = hmm_mirror_register(&driver->mirror, me->hmm);
	if (error)
		board_fail(board, me->who, "hmm_mirror_register: %s (%s)", strerror(-error), hmm_last_error());
}

/* Whether it lasts: at once, and a little later. */
static void explain(uint64_t address)
{
	for (int i = 0; i < 3; i++) {
		uint64_t entry = hmm_mirror_lookup(&the_driver.mirror, address), value = 0;
		ssize_t got = hmm_device_read(&the_driver.mirror, address, &value, sizeof(value));

		dprintf(2, "  device: entry %#lx; read again: %#lx (%zd), entry %#lx\n", entry, value, got,
			hmm_mirror_lookup(&the_driver.mirror, address));
		usleep(100000);
	}
}

static void driver_open(struct driver *driver, int socket_fd, unsigned int index)
{
	struct thread_context *me = &driver->context;
	struct board *board = me->board;
	struct hmm_open_options options = { .size = sizeof(options), .socket = board->settings.socket,
					    .name = "coherence-driver",
					    .timeout_ms = 5000 * board->settings.scale };
	int key = receive_key(socket_fd), error;
	char which[12], name[64];

	if (key < 0)
		board_fail(board, me->who, "no key came from the owner");
	hmm_set_log(board_log, me->who);
	error = hmm_open_peer(key, &options, &me->hmm);
	if (error)
		board_fail(board, me->who, "hmm_open_peer: %s (%s)", strerror(-error), hmm_last_error());
	close(key);
	driver->far = (board->settings.engine || board->settings.bar) && index + 1 == board->settings.drivers;
	driver->mirror.ops = index % 2 || board->settings.exclusive ? &with_callback : &without_callback;
	if (driver->far && board->settings.engine) {
		engine_open(me, &driver->mirror);
		return;
	}
	if (driver->far) {
		bar_open(driver);
		return;
	}
	/* The last driver has a device of its own, the others share the owner's. Or each has. */
	snprintf(which, sizeof(which), "%u", board->settings.several ? index : index && index + 1 == board->settings.drivers);
	board_device(board, which, name);
	error = hmm_device_open(me->hmm, name, &driver->mirror.device);
	if (error)
		board_fail(board, me->who, "hmm_device_open(%s): %s (%s)", name, strerror(-error),
			   hmm_last_error());
	error = hmm_mirror_register(&driver->mirror, me->hmm);
	if (error)
		board_fail(board, me->who, "hmm_mirror_register: %s (%s)", strerror(-error), hmm_last_error());
	if (!board->settings.windows)
		return;
	if (pipe2(driver->pipe, O_CLOEXEC))
		board_fail(board, me->who, "pipe: %s", strerror(errno));
	error = hmm_window_map(&driver->mirror, ARENA_BASE, ARENA_BYTES, 0, &driver->window);
	if (error)
		board_fail(board, me->who, "hmm_window_map: %s (%s)", strerror(-error), hmm_last_error());
	for (uint32_t i = 0; i < board->n_areas; i++) {
		struct area *area = &board->areas[i];

		if (area->kind != AREA_COHERENT)
			continue;
		error = hmm_window_map(&driver->mirror, atomic_load(&area->base), area->pages * PAGE_BYTES, 0,
				       &driver->coherent);
		if (error)
			board_fail(board, me->who, "hmm_window_map of coherent memory: %s (%s)",
				   strerror(-error), hmm_last_error());
	}
}

int driver_main(int board_fd, int socket_fd, unsigned int index)
{
	struct sigaction action = { .sa_sigaction = hit, .sa_flags = SA_SIGINFO };
	struct driver *driver = &the_driver;
	struct thread_context *me = &driver->context;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	me->board = board_map(board_fd);
	if (!me->board)
		return 1;
	me->who = board_join(me->board, "driver", index);
	me->writer = me->board->settings.threads + index;
	me->random = me->board->settings.seed + 1000 + index;
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	if (me->board->settings.protect)
		attempt_begin(hit);
	board_explain = explain;
	driver_open(driver, socket_fd, index);
	atomic_fetch_add(&me->board->drivers_ready, 1);
	while (!board_stopped(me->board))
		access_at_random(driver);
	/* The owner checks everything once more while its drivers are still there. */
	while (read(socket_fd, &(char){ 0 }, 1) < 0 && errno == EINTR)
		;
	hmm_range_unregister(&driver->looked_at.range);
	hmm_window_unmap(driver->window);
	hmm_window_unmap(driver->coherent);
	if (hmm_mirror_unregister(&driver->mirror) == 0 && driver->far && me->board->settings.engine)
		engine_close(me);
	hmm_device_put(driver->mirror.device);
	hmm_close(me->hmm);
	return 0;
}
