/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * board.c - the oracle of the coherence test.
 *
 * A floor is one atomic word: the newest generation known to have been in the
 * cell, the page's discard number before it was there (unless a discard was
 * under way then) and after. From it follows, for a reader that sampled it:
 *
 *   a value of an older generation               stale
 *   zero, and nothing was discarded in between   lost
 *   the same generation, though a hard discard
 *   began after it was seen and has ended        came back from the dead
 *   a generation that nobody announced           from the future
 *   another cell's or writer's value             another page's bytes
 *
 * Readers raise floors too: what one has seen, nobody may later unsee.
 * Any thread of any process runs this; there are no locks but the areas'.
 */
#include "board.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define GENERATION_BITS 28
#define GENERATION_MASK ((1U << GENERATION_BITS) - 1)
#define DISCARD_BITS 18
#define DISCARD_MASK ((1U << DISCARD_BITS) - 1)

void (*board_explain)(uint64_t address);

static const char *const operation_names[OP_MAX] = {
	[OP_IDLE] = "idle", [OP_LOAD] = "load", [OP_STORE] = "store",
	[OP_SYSCALL_READ] = "write(2) from it", [OP_SYSCALL_WRITE] = "read(2) into it",
	[OP_DEVICE_READ] = "device read", [OP_DEVICE_WRITE] = "device write",
	[OP_RANGE] = "range", [OP_WINDOW_LOAD] = "window load", [OP_WINDOW_STORE] = "window store",
	[OP_OUT] = "migrate out", [OP_HOME] = "migrate home", [OP_PREFETCH] = "prefetch",
	[OP_EXCLUDE] = "exclude", [OP_SHARE] = "share", [OP_ADVISE] = "advise", [OP_DONTNEED] = "DONTNEED", [OP_FREE] = "FREE",
	[OP_EXCLUSIVE] = "exclusive",
	[OP_REPLACE] = "mmap over it", [OP_UNMAP] = "munmap and mmap", [OP_MREMAP] = "mremap",
	[OP_PROTECT] = "mprotect", [OP_COLLAPSE] = "COLLAPSE", [OP_MLOCK] = "mlock",
	[OP_POPULATE] = "POPULATE_WRITE", [OP_PAGEOUT] = "PAGEOUT", [OP_FORK] = "fork",
	[OP_CHILD] = "child's read", [OP_DIRECT_READ] = "O_DIRECT read into it",
	[OP_DIRECT_WRITE] = "O_DIRECT write from it", [OP_FIXED_READ] = "READ_FIXED into it",
	[OP_FIXED_WRITE] = "WRITE_FIXED from it", [OP_VMSPLICE] = "vmsplice", [OP_FINAL] = "final check",
	[OP_ADD] = "add", [OP_WINDOW_ADD] = "window add", [OP_EXCLUSIVE_ADD] = "exclusive add",
	[OP_DISCARD] = "DISCARD", [OP_FAR_OUT] = "to the driver's memory", [OP_FAR_HOME] = "home from there",
	[OP_STORE_FAR] = "driver's copy there", [OP_FETCH_FAR] = "driver's copy back",
	[OP_REFUSED] = "refused accesses", [OP_REMOVE] = "REMOVE", [OP_KILLED] = "killed child",
	[OP_SPAWN] = "posix_spawn", [OP_SYNC] = "sync", [OP_DIRTY] = "look for writes",
};

const char *operation_name(unsigned int operation)
{
	return operation < OP_MAX ? operation_names[operation] : "?";
}

uint64_t draw(uint64_t *random)
{
	uint64_t z = *random += 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

uint32_t draw_below(uint64_t *random, uint32_t limit)
{
	return (uint32_t)(((draw(random) >> 32) * limit) >> 32);
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

void pause_us(uint32_t us)
{
	struct timespec pause = { .tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000 };

	nanosleep(&pause, NULL);
}

/* ---- the board -------------------------------------------------------- */

static inline struct page_clock *clock_of(struct board *board, uint32_t page)
{
	return (struct page_clock *)((char *)board + board->clocks_at) + page;
}

static inline _Atomic uint64_t *floor_of(struct board *board, uint32_t cell)
{
	return (_Atomic uint64_t *)((char *)board + board->floors_at) + cell;
}

static inline _Atomic uint32_t *announced_of(struct board *board, uint32_t cell)
{
	return (_Atomic uint32_t *)((char *)board + board->announced_at) + cell;
}

static inline _Atomic uint32_t *guard_of(struct board *board, uint32_t page)
{
	return (_Atomic uint32_t *)((char *)board + board->guards_at) + page;
}

static void area_init(struct board *board, uint32_t index, uint32_t pages)
{
	struct area *area = &board->areas[index];
	pthread_rwlockattr_t attributes;

	pthread_rwlockattr_init(&attributes);
	pthread_rwlockattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&area->lock, &attributes);
	area->first_page = index * pages;
	area->pages = pages;
	area->unit = 1;
	area->file = -1;
	area->flags = MAP_PRIVATE | MAP_ANONYMOUS;
	/* Odd areas begin and end inside a block, so that blocks are shared with neighbours. */
	area->homes[0] = ARENA_BASE + 2 * index * AREA_STRIDE + (index % 2 ? 5 * PAGE_BYTES : 0);
	area->homes[1] = area->homes[0] + AREA_STRIDE + (index % 3 == 2 ? 3 * PAGE_BYTES : 0);
	atomic_store(&area->base, area->homes[0]);
}

struct board *board_new(const struct settings *settings, uint32_t n_areas, int *fd)
{
	uint32_t pages = (settings->mib << 8) / n_areas;
	uint64_t n_cells = (uint64_t)pages * n_areas * PAGE_CELLS;
	uint64_t clocks_at = (sizeof(struct board) + 4095) & ~4095ULL;
	uint64_t floors_at = clocks_at + (uint64_t)pages * n_areas * sizeof(struct page_clock);
	uint64_t announced_at, guards_at, bytes;
	struct board *board;

	floors_at = (floors_at + 4095) & ~4095ULL;
	announced_at = floors_at + n_cells * sizeof(uint64_t);
	guards_at = announced_at + n_cells * sizeof(uint32_t);
	bytes = guards_at + (uint64_t)pages * n_areas * sizeof(uint32_t);
	*fd = memfd_create("coherence-board", MFD_CLOEXEC);
	if (*fd < 0 || ftruncate(*fd, (off_t)bytes))
		return NULL;
	board = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	if (board == MAP_FAILED)
		return NULL;
	board->settings = *settings;
	board->bytes = bytes;
	board->n_areas = n_areas;
	board->n_pages = pages * n_areas;
	board->n_writers = settings->threads + settings->drivers;
	board->clocks_at = clocks_at;
	board->floors_at = floors_at;
	board->announced_at = announced_at;
	board->guards_at = guards_at;
	for (uint32_t i = 0; i < n_areas; i++)
		area_init(board, i, pages);
	return board;
}

struct board *board_map(int fd)
{
	struct board *board;
	uint64_t bytes;

	board = mmap(NULL, sizeof(*board), PROT_READ, MAP_SHARED, fd, 0);
	if (board == MAP_FAILED)
		return NULL;
	bytes = board->bytes;
	munmap(board, sizeof(*board));
	board = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	return board == MAP_FAILED ? NULL : board;
}

struct participant *board_join(struct board *board, const char *name, unsigned int number)
{
	uint32_t index = atomic_fetch_add(&board->n_participants, 1);
	struct participant *who = &board->participants[index];

	if (index >= PARTICIPANTS_MAX)
		abort();
	snprintf(who->name, sizeof(who->name), "%s %u", name, number);
	who->pid = getpid();
	who->tid = (pid_t)syscall(SYS_gettid);
	who->index = index;
	return who;
}

bool board_stopped(struct board *board)
{
	return atomic_load_explicit(&board->stop, memory_order_relaxed);
}

struct area *board_area(struct board *board, uint32_t page)
{
	return &board->areas[page / board->areas[0].pages];
}

bool area_stays(const struct area *area)
{
	return area->kind >= AREA_SHARED;
}

void *board_enter(struct board *board, uint32_t page)
{
	struct area *area = board_area(board, page);

	pthread_rwlock_rdlock(&area->lock);
	return (char *)atomic_load(&area->base) + (page - area->first_page) * PAGE_BYTES;
}

void board_leave(struct board *board, uint32_t page)
{
	pthread_rwlock_unlock(&board_area(board, page)->lock);
}

/* ---- who writes what ---------------------------------------------------- */

uint32_t board_writer(const struct board *board, uint32_t page, uint32_t line)
{
	if (board->areas[page / board->areas[0].pages].kind == AREA_PINNED)
		return board->n_writers;
	return (page + line) % board->n_writers;
}

uint32_t board_pick_page(struct board *board, uint64_t *random)
{
	uint64_t number = draw(random);
	uint32_t hot = atomic_load_explicit(&board->hot, memory_order_relaxed);

	if (number & 1)
		return (hot + (uint32_t)(number >> 8) % 24) % board->n_pages;
	return draw_below(random, board->n_pages);
}

uint32_t board_pick_line(struct board *board, uint32_t page, uint32_t writer, uint64_t *random)
{
	uint32_t writers = board->n_writers;
	uint32_t first = (writer + writers - page % writers) % writers;

	return first + writers * draw_below(random, (PAGE_LINES - first + writers - 1) / writers);
}

/* ---- writing ------------------------------------------------------------ */

static inline uint64_t value_of(uint32_t cell, uint32_t generation, uint32_t writer)
{
	return (uint64_t)cell << 36 | (uint64_t)generation << 8 | (writer + 1);
}

uint64_t board_announce(struct board *board, uint32_t cell, uint32_t writer)
{
	uint32_t generation = atomic_fetch_add(announced_of(board, cell), 1) + 1;

	return value_of(cell, generation & GENERATION_MASK, writer);
}

struct stroke board_stroke(struct board *board, uint32_t page)
{
	struct page_clock *clock = clock_of(board, page);
	uint32_t ended = atomic_load(&clock->ended);
	uint32_t begun = atomic_load(&clock->begun);

	return (struct stroke){ .begun = begun, .quiet = begun == ended };
}

static inline uint32_t floor_generation(uint64_t floor)
{
	return (uint32_t)(floor >> 36);
}

static inline uint32_t floor_before(uint64_t floor)
{
	return (uint32_t)(floor >> DISCARD_BITS) & DISCARD_MASK;
}

static inline uint32_t floor_after(uint64_t floor)
{
	return (uint32_t)floor & DISCARD_MASK;
}

/* @a is later than @b; both are numbers of discards, cut to DISCARD_BITS. */
static inline bool discard_later(uint32_t a, uint32_t b)
{
	uint32_t difference = (a - b) & DISCARD_MASK;

	return difference && difference < DISCARD_MASK / 2;
}

/* At some moment after @stroke was taken and before now, @cell held @generation. */
static void floor_raise(struct board *board, uint32_t cell, uint32_t generation, struct stroke stroke)
{
	struct page_clock *clock = clock_of(board, cell / PAGE_CELLS);
	_Atomic uint64_t *floor = floor_of(board, cell);
	/* A number that never matches when a discard was under way. */
	uint32_t before = stroke.quiet ? stroke.begun : stroke.begun - 1;
	uint64_t old = atomic_load(floor), raised;

	atomic_thread_fence(memory_order_seq_cst);
	raised = (uint64_t)generation << 36 | (uint64_t)(before & DISCARD_MASK) << DISCARD_BITS |
		 (atomic_load(&clock->begun) & DISCARD_MASK);
	do {
		if (floor_generation(old) > generation)
			return;
		if (floor_generation(old) == generation && !stroke.quiet)
			return;
	} while (!atomic_compare_exchange_weak(floor, &old, raised));
}

void board_publish(struct board *board, uint32_t cell, uint64_t value, struct stroke stroke)
{
	floor_raise(board, cell, (uint32_t)(value >> 8) & GENERATION_MASK, stroke);
}

void board_retract(struct board *board, uint32_t cell)
{
	atomic_fetch_sub(announced_of(board, cell), 1);
}

/* ---- counting ------------------------------------------------------------ */

void board_add_begin(struct board *board, uint32_t cell)
{
	atomic_fetch_add(announced_of(board, cell), 1);
}

void board_added(struct board *board, uint32_t cell)
{
	atomic_fetch_add(floor_of(board, cell), 1);
}

struct area *board_counters(struct board *board)
{
	for (uint32_t i = 0; i < board->n_areas; i++)
		if (board->areas[i].kind == AREA_COUNTERS)
			return &board->areas[i];
	return NULL;
}

uint32_t board_pick_counter(struct board *board, const struct area *area, uint64_t *random)
{
	uint32_t number = draw_below(random, 16);
	uint32_t page = ((number & 3) + (number & 4) * 150) % area->pages;

	return (area->first_page + page) * PAGE_CELLS + (number & 8 ? PAGE_CELLS - 1 : 0);
}

static const char *counter_opinion(struct board *board, uint32_t cell, const struct sight *sight, uint64_t value)
{
	if (value < sight->floor)
		return "a counter is less than what was added to it: an addition is lost";
	if (value > atomic_load(announced_of(board, cell)))
		return "a counter is more than what was added to it";
	return NULL;
}

static inline bool is_counter(const struct board *board, uint32_t cell)
{
	return board->areas[cell / PAGE_CELLS / board->areas[0].pages].kind == AREA_COUNTERS;
}

/* ---- what a mapping allows ------------------------------------------------- */

#define GUARD_STATE 3U

uint32_t board_guard(struct board *board, uint32_t page)
{
	return atomic_load(guard_of(board, page));
}

void board_guard_set(struct board *board, uint32_t page, enum guard guard)
{
	_Atomic uint32_t *word = guard_of(board, page);

	atomic_store(word, ((atomic_load(word) | GUARD_STATE) + 1) | guard);
}

bool board_admit(struct board *board, struct participant *who, enum operation how, uint32_t cell,
		 uint32_t before, enum access access, bool done)
{
	const struct sight nothing = { 0 };
	uint32_t guard = before & GUARD_STATE;
	bool allowed = guard == GUARD_WRITE || (guard == GUARD_READ && access != ACCESS_WRITE);

	if (!done)
		atomic_fetch_add_explicit(&board->tally[OP_REFUSED], 1, memory_order_relaxed);
	if (guard == GUARD_CHANGING || board_guard(board, cell / PAGE_CELLS) != before)
		return done;
	if (done && !allowed)
		board_violation(board, who, how, cell, &nothing, guard, "done, though the mapping forbids it");
	if (!done && allowed && !(guard == GUARD_READ && access == ACCESS_READ_IF_SHOWN))
		board_violation(board, who, how, cell, &nothing, guard, "refused, though the mapping allows it");
	return done;
}

/* ---- reading ------------------------------------------------------------- */

struct sight board_look(struct board *board, uint32_t cell)
{
	struct page_clock *clock = clock_of(board, cell / PAGE_CELLS);
	struct sight sight;

	sight.stroke = board_stroke(board, cell / PAGE_CELLS);
	/* What MADV_FREE spared may go at any later time, until somebody writes. */
	if (atomic_load(&clock->soft) == sight.stroke.begun && sight.stroke.begun)
		sight.stroke.quiet = false;
	/* The floor before the discards: one that ended in between then only makes us laxer. */
	sight.hard = atomic_load(&clock->hard);
	sight.floor = atomic_load(floor_of(board, cell));
	return sight;
}

const char *board_opinion(struct board *board, uint32_t cell, const struct sight *sight,
			  uint64_t value, uint32_t begun)
{
	uint32_t generation = (uint32_t)(value >> 8) & GENERATION_MASK;
	uint32_t known = floor_generation(sight->floor);

	if (is_counter(board, cell))
		return counter_opinion(board, cell, sight, value);
	if (!value) {
		if (known && floor_before(sight->floor) == (begun & DISCARD_MASK))
			return "zero, though nothing was discarded since: the value is lost";
		return NULL;
	}
	if ((value & 0xff) == WRITER_CHILD + 1)
		return "a forked child's private value";
	if (value >> 36 != cell)
		return "another cell's bytes";
	if ((value & 0xff) != board_writer(board, cell / PAGE_CELLS, cell % PAGE_CELLS / LINE_CELLS) + 1)
		return "not this cell's writer";
	if (generation > (atomic_load(announced_of(board, cell)) & GENERATION_MASK))
		return "a generation that nobody announced";
	if (generation < known)
		return "stale: a newer generation was seen before this read began";
	if (generation == known && discard_later(sight->hard & DISCARD_MASK, floor_after(sight->floor)))
		return "discarded bytes came back";
	return NULL;
}

uint32_t board_known(struct board *board, uint32_t cell)
{
	return floor_generation(atomic_load(floor_of(board, cell)));
}

uint32_t board_begun(struct board *board, uint32_t cell)
{
	return atomic_load(announced_of(board, cell)) & GENERATION_MASK;
}

void board_judge(struct board *board, struct participant *who, enum operation how, uint32_t cell,
		 const struct sight *sight, uint64_t value)
{
	uint32_t begun = atomic_load(&clock_of(board, cell / PAGE_CELLS)->begun);
	const char *why = board_opinion(board, cell, sight, value, begun);

	if (why)
		board_violation(board, who, how, cell, sight, value, why);
	if (value && !is_counter(board, cell))
		floor_raise(board, cell, (uint32_t)(value >> 8) & GENERATION_MASK, sight->stroke);
}

/* ---- discarding ------------------------------------------------------------ */

void board_discard_begin(struct board *board, uint32_t page, uint32_t pages, enum discard kind)
{
	for (uint32_t i = 0; i < pages; i++) {
		struct page_clock *clock = clock_of(board, page + i);
		uint32_t number = atomic_load(&clock->begun) + 1;

		if (kind == DISCARD_SOFT)
			atomic_store(&clock->soft, number);
		atomic_store(&clock->begun, number);
	}
}

void board_discard_end(struct board *board, uint32_t page, uint32_t pages, enum discard kind)
{
	for (uint32_t i = 0; i < pages; i++) {
		struct page_clock *clock = clock_of(board, page + i);
		uint32_t number = atomic_load(&clock->begun);

		if (kind == DISCARD_HARD)
			atomic_store(&clock->hard, number);
		atomic_store(&clock->ended, number);
	}
}

/* ---- who did what ------------------------------------------------------------ */

void board_begin(struct board *board, struct participant *who, enum operation operation,
		 uint32_t page, uint32_t pages, uint32_t cell, uint64_t value)
{
	uint32_t slot = atomic_fetch_add_explicit(&who->traced, 1, memory_order_relaxed) % TRACE_ENTRIES;

	who->trace[slot] = (struct trace_entry){ .when = now_ns(), .value = value, .page = page,
		.pages = pages, .operation = operation, .cell = cell };
	atomic_store_explicit(&who->page, page, memory_order_relaxed);
	atomic_store_explicit(&who->doing, operation, memory_order_release);
}

void board_done(struct board *board, struct participant *who, enum operation operation, bool success)
{
	atomic_store_explicit(&who->doing, OP_IDLE, memory_order_release);
	atomic_fetch_add_explicit(&who->done, 1, memory_order_relaxed);
	if (success)
		atomic_fetch_add_explicit(&board->tally[operation], 1, memory_order_relaxed);
}

const char *board_device(const struct board *board, const char *which, char *name)
{
	snprintf(name, 64, "coherence-%d-%s", board->settings.owner, which);
	return name;
}

void board_log(void *who, int level, const char *text)
{
	const struct participant *participant = who;

	dprintf(2, "  library of %s, at %.3f s: <%d> %s\n", participant->name, (double)now_ns() / 1e9, level, text);
}

bool board_excused(struct board *board, struct participant *who, const char *call, long error)
{
	if (!board->settings.kill_daemon || (error != -ESTALE && error != -ESHUTDOWN))
		board_fail(board, who, "%s: %s (%s)", call, strerror((int)-error), hmm_last_error());
	atomic_fetch_add(&board->refused, 1);
	pause_us(2000);
	return true;
}

/* ---- the end of a test that failed ----------------------------------------------- */

struct recollection {
	const struct participant *who;
	struct trace_entry entry;
};

static int by_time(const void *a, const void *b)
{
	const struct recollection *one = a, *other = b;

	return one->entry.when < other->entry.when ? -1 : one->entry.when > other->entry.when;
}

/* Loads and stores of other lines of the page would only bury what matters. */
static bool matters(const struct trace_entry *entry, uint32_t cell)
{
	uint32_t page = cell / PAGE_CELLS;

	if (!entry->when || page < entry->page || page >= entry->page + entry->pages)
		return false;
	switch (entry->operation) {
	case OP_LOAD: case OP_STORE: case OP_SYSCALL_READ: case OP_SYSCALL_WRITE:
	case OP_WINDOW_LOAD: case OP_WINDOW_STORE: case OP_DEVICE_WRITE: case OP_FINAL:
	case OP_ADD: case OP_WINDOW_ADD: case OP_EXCLUSIVE_ADD:
		return entry->cell / LINE_CELLS == cell / LINE_CELLS;
	case OP_DEVICE_READ:
		return cell >= entry->cell && cell - entry->cell < entry->value;
	default:
		return true;
	}
}

/* The last things that anybody did to the cell, its page or its block. */
static void recall(struct board *board, uint32_t cell)
{
	enum { SHOWN = 36 };
	struct recollection *all;
	size_t n = 0, most = (size_t)PARTICIPANTS_MAX * TRACE_ENTRIES;
	uint64_t now = now_ns();

	all = mmap(NULL, most * sizeof(*all), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (all == MAP_FAILED)
		return;
	for (uint32_t i = 0; i < atomic_load(&board->n_participants); i++) {
		struct participant *who = &board->participants[i];

		for (uint32_t j = 0; j < TRACE_ENTRIES; j++) {
			const struct trace_entry *entry = &who->trace[j];

			if (matters(entry, cell))
				all[n++] = (struct recollection){ who, *entry };
		}
	}
	qsort(all, n, sizeof(*all), by_time);
	dprintf(2, "  lately on this cell's line, and done to its page:\n");
	for (size_t i = n > SHOWN ? n - SHOWN : 0; i < n; i++) {
		const struct trace_entry *entry = &all[i].entry;

		dprintf(2, "    -%8.3f ms  %-12s %-22s page %u+%u cell %u value %#lx generation %u\n",
			(double)(now - entry->when) / 1e6, all[i].who->name,
			operation_name(entry->operation), entry->page, entry->pages, entry->cell,
			entry->value, (uint32_t)(entry->value >> 8) & GENERATION_MASK);
	}
	munmap(all, most * sizeof(*all));
}

/* The first that fails says why, and whoever fails meanwhile lets it. */
static void fail_once(struct board *board)
{
	uint32_t none = 0;

	if (atomic_compare_exchange_strong(&board->failed, &none, 1))
		return;
	while (atomic_load(&board->failed) != 2)
		pause_us(10000);
	_exit(1);
}

void board_violation(struct board *board, struct participant *who, enum operation how, uint32_t cell,
		     const struct sight *sight, uint64_t value, const char *why)
{
	uint32_t page = cell / PAGE_CELLS;
	struct area *area = board_area(board, page);
	uint64_t address = atomic_load(&area->base) + (page - area->first_page) * PAGE_BYTES +
			   cell % PAGE_CELLS * 8;
	struct page_clock *clock = clock_of(board, page);

	fail_once(board);
	dprintf(2, "coherence: VIOLATION by %s: %s\n", how == OP_IDLE ? "?" : operation_name(how), why);
	dprintf(2, "  reader %s (pid %d), seed %lu\n", who->name, who->pid, board->settings.seed);
	dprintf(2, "  cell %u, page %u, address %#lx, block %#lx, offset %#lx, area %u of kind %u\n", cell,
		page, address, address & ~(BLOCK_BYTES - 1), address & 4095,
		(unsigned int)(area - board->areas), area->kind);
	dprintf(2, "  seen %#lx: cell %lu generation %u writer %d\n", value, value >> 36,
		(uint32_t)(value >> 8) & GENERATION_MASK, (int)(value & 0xff) - 1);
	dprintf(2, "  floor: generation %u (discards before %u, after %u), hard discard %u\n",
		floor_generation(sight->floor), floor_before(sight->floor), floor_after(sight->floor),
		sight->hard);
	dprintf(2, "  now: announced %u, floor generation %u, discards begun %u ended %u hard %u\n",
		atomic_load(announced_of(board, cell)), floor_generation(atomic_load(floor_of(board, cell))),
		atomic_load(&clock->begun), atomic_load(&clock->ended), atomic_load(&clock->hard));
	if (board_explain)
		board_explain(address);
	recall(board, cell);
	atomic_store(&board->failed, 2);
	_exit(1);
}

void board_fail(struct board *board, struct participant *who, const char *format, ...)
{
	char text[512];
	va_list arguments;

	fail_once(board);
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	dprintf(2, "coherence: FAILED in %s (seed %lu): %s\n", who->name, board->settings.seed, text);
	atomic_store(&board->failed, 2);
	_exit(1);
}
