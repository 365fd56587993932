/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upheaval.c - the owner's thread that changes the address space under
 * everybody: discards, new mappings over old ones, mremap, mprotect, huge
 * pages made and pages locked, and forks whose child checks that its copy is
 * the moment's and stays so, or is killed at it.
 *
 * What leaves no moment without a mapping runs unlocked beside loads and
 * stores. Only what would kill an innocent reader (munmap, mremap, mprotect)
 * takes the area's lock. It is the only thread that discards.
 */
#include "board.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define CHILD_PAGES 48

struct stretch {
	struct area *area;
	char *address;
	uint32_t page, pages;
	size_t bytes;
};

struct upheaval {
	struct thread_context *me;
	pid_t child;
	bool killed;
	bool raw;			/* by a clone() of its own, which waits for no page */
	/* Shared with the children, and so never armed. */
	struct snapshot *snapshot;
};

/* What a child needs to know of the moment of its birth. */
struct snapshot {
	uint64_t addresses[CHILD_PAGES];
	uint32_t pages[CHILD_PAGES];
	struct sight sights[CHILD_PAGES][PAGE_CELLS];
	uint64_t values[CHILD_PAGES][PAGE_CELLS];
	bool readable[CHILD_PAGES];
};

static bool may_change(const struct area *area, bool ordinary)
{
	return area->kind == AREA_ORDINARY || (!ordinary && (area_stays(area) || area->kind == AREA_TRACKED));
}

/* Of any area that may be changed, or @ordinary: of those that migrate, and stay nowhere. */
static struct stretch pick_stretch_of(struct thread_context *me, bool ordinary)
{
	struct board *board = me->board;
	struct stretch stretch;
	uint32_t offset, unit;

	do {
		stretch.page = board_pick_page(board, &me->random);
		stretch.area = board_area(board, stretch.page);
	} while (!may_change(stretch.area, ordinary));
	unit = stretch.area->unit;
	offset = (stretch.page - stretch.area->first_page) / unit * unit;
	stretch.page = stretch.area->first_page + offset;
	stretch.pages = 1 + draw_below(&me->random, draw_below(&me->random, 8) ? 16 : 700);
	stretch.pages = (stretch.pages + unit - 1) / unit * unit;
	if (stretch.pages > stretch.area->pages - offset)
		stretch.pages = stretch.area->pages - offset;
	stretch.bytes = stretch.pages * PAGE_BYTES;
	/* Only this thread moves areas, so it needs no lock to know where one is. */
	stretch.address = (char *)atomic_load(&stretch.area->base) + offset * PAGE_BYTES;
	return stretch;
}

static struct stretch pick_stretch(struct thread_context *me)
{
	return pick_stretch_of(me, false);
}

/* Copies are of addresses: what is tracked stays there. */
static struct stretch pick_movable(struct thread_context *me)
{
	struct stretch stretch;

	do
		stretch = pick_stretch(me);
	while (stretch.area->kind == AREA_TRACKED);
	return stretch;
}

static void begin(struct thread_context *me, enum operation operation, const struct stretch *stretch)
{
	board_begin(me->board, me->who, operation, stretch->page, stretch->pages, 0,
		    (uint64_t)stretch->address);
}

/*
 * hmmd reads an event before the call that caused it returns, and applies it
 * before it answers the next request; a window shows the old page until then.
 * So drivers with windows may count on a change only after one more request.
 */
static void settle(struct thread_context *me, const void *address)
{
	char byte;

	if (!me->board->settings.windows)
		return;
	while (hmm_device_read(me->mirror, (unsigned long)address, &byte, 1) < 0 &&
	       me->board->settings.kill_daemon && !board_stopped(me->board))
		pause_us(2000);
}

/* What is shared goes only where it lies: out of its file. */
static void discard(struct thread_context *me, enum operation operation, int advice, enum discard kind)
{
	struct stretch stretch = pick_stretch_of(me, kind == DISCARD_SOFT);

	if (stretch.area->shared) {
		operation = OP_REMOVE;
		advice = MADV_REMOVE;
	}
	begin(me, operation, &stretch);
	board_discard_begin(me->board, stretch.page, stretch.pages, kind);
	if (madvise(stretch.address, stretch.bytes, advice))
		board_fail(me->board, me->who, "madvise %d: %m", advice);
	settle(me, stretch.address);
	board_discard_end(me->board, stretch.page, stretch.pages, kind);
	board_done(me->board, me->who, operation, true);
}

/* What is on a device is dropped, what is not stays: done when the call returns. */
static void discard_on_device(struct thread_context *me)
{
	struct stretch stretch = pick_stretch_of(me, true);
	int error;

	begin(me, OP_DISCARD, &stretch);
	board_discard_begin(me->board, stretch.page, stretch.pages, DISCARD_DONE);
	error = hmm_advise(me->hmm, (unsigned long)stretch.address, stretch.bytes, HMM_ADVISE_DISCARD, NULL);
	if (error)
		board_excused(me->board, me->who, "hmm_advise: DISCARD", error);
	board_discard_end(me->board, stretch.page, stretch.pages, DISCARD_DONE);
	board_done(me->board, me->who, OP_DISCARD, !error);
}

static void *map_again(const struct stretch *stretch, int flag)
{
	return area_map(stretch->area, stretch->address, stretch->page - stretch->area->first_page, stretch->pages, flag);
}

/* The mapping goes, and with it the bytes, unless they lie in a file. */
static void lose(struct thread_context *me, const struct stretch *stretch)
{
	if (!stretch->area->kept)
		board_discard_begin(me->board, stretch->page, stretch->pages, DISCARD_HARD);
}

static void lost(struct thread_context *me, const struct stretch *stretch)
{
	if (!stretch->area->kept)
		board_discard_end(me->board, stretch->page, stretch->pages, DISCARD_HARD);
}

static void replace(struct thread_context *me)
{
	struct stretch stretch = pick_stretch(me);

	begin(me, OP_REPLACE, &stretch);
	lose(me, &stretch);
	if (map_again(&stretch, MAP_FIXED) == MAP_FAILED)
		board_fail(me->board, me->who, "mmap over a mapping: %m");
	settle(me, stretch.address);
	lost(me, &stretch);
	board_done(me->board, me->who, OP_REPLACE, true);
}

static void unmap(struct thread_context *me)
{
	struct stretch stretch = pick_stretch(me);

	pthread_rwlock_wrlock(&stretch.area->lock);
	begin(me, OP_UNMAP, &stretch);
	lose(me, &stretch);
	if (munmap(stretch.address, stretch.bytes))
		board_fail(me->board, me->who, "munmap: %m");
	if (draw_below(&me->random, 2))
		pause_us(draw_below(&me->random, 300));
	if (map_again(&stretch, MAP_FIXED_NOREPLACE) == MAP_FAILED)
		board_fail(me->board, me->who, "mmap anew: %m");
	settle(me, stretch.address);
	lost(me, &stretch);
	board_done(me->board, me->who, OP_UNMAP, true);
	pthread_rwlock_unlock(&stretch.area->lock);
}

static bool moved_away(void *address)
{
	unsigned char resident;

	return mincore(address, PAGE_BYTES, &resident) && errno == ENOMEM;
}

/*
 * The whole area goes to its other home. mremap takes one mapping at a time,
 * and nobody knows how many there are by now: in smaller pieces where it refuses.
 */
static void move_area(struct thread_context *me)
{
	struct stretch stretch = pick_movable(me);
	struct area *area = stretch.area;
	char *from = (char *)atomic_load(&area->base);
	char *to = (char *)(from == (char *)area->homes[0] ? area->homes[1] : area->homes[0]);
	size_t bytes = area->pages * PAGE_BYTES, unit = area->unit * PAGE_BYTES, done = 0, piece;

	pthread_rwlock_wrlock(&area->lock);
	stretch.page = area->first_page;
	stretch.pages = area->pages;
	begin(me, OP_MREMAP, &stretch);
	while (done < bytes) {
		piece = bytes - done;
		if (draw_below(&me->random, 3) == 0 && piece > 64 * unit)
			piece = (1 + draw_below(&me->random, 64)) * unit;
		while (mremap(from + done, piece, piece, MREMAP_MAYMOVE | MREMAP_FIXED, to + done) ==
		       MAP_FAILED) {
			if (errno != EFAULT)
				board_fail(me->board, me->who, "mremap of %zu bytes: %m", piece);
			/* It may have moved some mappings before it met one that it will not. */
			while (done < bytes && moved_away(from + done))
				done += PAGE_BYTES;
			if (done == bytes)
				break;
			if (piece == unit)
				board_fail(me->board, me->who, "mremap of a page: EFAULT");
			piece = (piece / 2 + unit - 1) & ~(unit - 1);
			if (piece > bytes - done)
				piece = bytes - done;
		}
		if (done < bytes)
			done += piece;
	}
	atomic_store(&area->base, (uint64_t)to);
	settle(me, to);
	board_done(me->board, me->who, OP_MREMAP, true);
	pthread_rwlock_unlock(&area->lock);
}

/* Protected memory still reads as it was; so does memory that nobody may read, afterwards. */
static void protect(struct thread_context *me)
{
	struct stretch stretch = pick_stretch(me);
	int protection = draw_below(&me->random, 3) ? PROT_READ : PROT_NONE;

	pthread_rwlock_wrlock(&stretch.area->lock);
	begin(me, OP_PROTECT, &stretch);
	if (mprotect(stretch.address, stretch.bytes, protection))
		board_fail(me->board, me->who, "mprotect: %m");
	for (uint32_t i = 0; i < 16 && protection == PROT_READ; i++) {
		uint32_t offset = draw_below(&me->random, stretch.pages * PAGE_CELLS);
		uint32_t cell = stretch.page * PAGE_CELLS + offset;
		struct sight sight = board_look(me->board, cell);
		uint64_t value = atomic_load((_Atomic uint64_t *)stretch.address + offset);

		board_judge(me->board, me->who, OP_PROTECT, cell, &sight, value);
	}
	pause_us(draw_below(&me->random, 300));
	if (mprotect(stretch.address, stretch.bytes, PROT_READ | PROT_WRITE))
		board_fail(me->board, me->who, "mprotect back: %m");
	settle(me, stretch.address);
	board_done(me->board, me->who, OP_PROTECT, true);
	pthread_rwlock_unlock(&stretch.area->lock);
}

static void collapse(struct thread_context *me)
{
	struct stretch stretch = pick_stretch(me);
	uintptr_t block = (uintptr_t)stretch.address & ~(BLOCK_BYTES - 1);

	begin(me, OP_COLLAPSE, &stretch);
	/* Best effort: a hole, an absent page or a full machine make it refuse. */
	board_done(me->board, me->who, OP_COLLAPSE,
		   madvise((void *)block, BLOCK_BYTES, MADV_COLLAPSE) == 0);
}

static void lock_pages(struct thread_context *me)
{
	struct stretch stretch = pick_stretch(me);
	bool windows = me->board->settings.windows;

	/* A window cannot show what is locked: a driver that touches it gets SIGBUS. */
	if (windows)
		pthread_rwlock_wrlock(&stretch.area->lock);
	begin(me, OP_MLOCK, &stretch);
	if (mlock(stretch.address, stretch.bytes) == 0) {
		pause_us(draw_below(&me->random, 1000));
		munlock(stretch.address, stretch.bytes);
	}
	board_done(me->board, me->who, OP_MLOCK, true);
	if (windows)
		pthread_rwlock_unlock(&stretch.area->lock);
}

static void advise(struct thread_context *me, enum operation operation, int advice)
{
	struct stretch stretch = pick_stretch(me);

	begin(me, operation, &stretch);
	board_done(me->board, me->who, operation,
		   madvise(stretch.address, stretch.bytes, advice) == 0);
}

/* ---- fork ------------------------------------------------------------------- */

static void child_complains(struct upheaval *upheaval, uint32_t i, uint32_t j, uint64_t value,
			    const char *why)
{
	struct snapshot *snapshot = upheaval->snapshot;
	struct board *board = upheaval->me->board;

	/* The owner's mirror is not this process's: nothing to explain it with. */
	board_explain = NULL;
	board_violation(board, upheaval->me->who, OP_CHILD, snapshot->pages[i] * PAGE_CELLS + j,
			&snapshot->sights[i][j], value, why);
}

#ifdef __SANITIZE_THREAD__
void AnnotateIgnoreReadsBegin(const char *file, int line);
void AnnotateIgnoreWritesBegin(const char *file, int line);
void AnnotateIgnoreSyncBegin(const char *file, int line);

/*
 * ThreadSanitizer has a lock for each atomic variable, and in a child of a raw clone() those that another thread held stay locked. After
 * fork(), which it stands before, it leaves the child alone by itself.
 */
static void unwatched(void)
{
	AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
	AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
	AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
}
#else
static void unwatched(void)
{
}
#endif

/* Runs with nothing but its own copy of the pages; touches no lock and no heap. */
static void child_main(struct upheaval *upheaval)
{
	struct snapshot *snapshot = upheaval->snapshot;
	struct board *board = upheaval->me->board;

	/*
	 * What its mappings forbid is forbidden to it for ever: it has them as they were. And of memory
	 * that only a driver reaches it may get SIGBUS. Where hmmd was killed while it served this very child of a raw
	 * clone() there may be zeros in place of what a device had: docs/LIMITS.md, 22.
	 */
	for (uint32_t i = 0; i < CHILD_PAGES; i++) {
		const _Atomic uint64_t *memory = (const _Atomic uint64_t *)snapshot->addresses[i];

		snapshot->readable[i] = attempt_load(memory, &snapshot->values[i][0]);
		for (uint32_t j = 0; snapshot->readable[i] && j < PAGE_CELLS; j++) {
			uint64_t value = atomic_load(&memory[j]);
			const char *why = board_opinion(board, snapshot->pages[i] * PAGE_CELLS + j,
							&snapshot->sights[i][j], value,
							snapshot->sights[i][j].stroke.begun);

			if (why && value == 0 && upheaval->raw && board->settings.kill_daemon)
				why = NULL;
			if (why)
				child_complains(upheaval, i, j, value, why);
			snapshot->values[i][j] = value;
		}
	}
	for (uint32_t i = 0; i < CHILD_PAGES; i += 3)
		attempt_store((_Atomic uint64_t *)snapshot->addresses[i] + i,
			      (uint64_t)(snapshot->pages[i] * PAGE_CELLS + i) << 36 | (WRITER_CHILD + 1));
	pause_us(3000);
	for (uint32_t i = 0; i < CHILD_PAGES; i++) {
		const _Atomic uint64_t *memory = (const _Atomic uint64_t *)snapshot->addresses[i];

		for (uint32_t j = 0; snapshot->readable[i] && j < PAGE_CELLS; j++) {
			uint64_t value = atomic_load(&memory[j]);

			if (value != snapshot->values[i][j] && (value & 0xff) != WRITER_CHILD + 1)
				child_complains(upheaval, i, j, value,
						"a child's private memory changed under it");
		}
	}
	/* Whatever else stands before an ordinary end. */
	syscall(SYS_exit_group, 0);
}

static void reap(struct upheaval *upheaval)
{
	struct thread_context *me = upheaval->me;
	int status;
	pid_t pid;

	if (!upheaval->child)
		return;
	pid = waitpid(upheaval->child, &status, 0);
	upheaval->child = 0;
	if (pid < 0)
		board_fail(me->board, me->who, "waitpid: %m");
	if (upheaval->killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
		atomic_fetch_add(&me->board->tally[OP_KILLED], 1);
		return;
	}
	if (WIFSIGNALED(status) || WEXITSTATUS(status))
		board_fail(me->board, me->who, "a forked child ended with status %#x", (unsigned int)status);
	atomic_fetch_add(&me->board->tally[OP_CHILD], 1);
}

/* Another way to a child: one that shares the memory until it is another program. */
static void spawn(struct thread_context *me)
{
	char program[] = "/bin/true", *arguments[] = { program, NULL }, *environment[] = { NULL };
	int error, status;
	pid_t child;

	board_begin(me->board, me->who, OP_SPAWN, 0, me->board->n_pages, 0, 0);
	error = posix_spawn(&child, program, NULL, NULL, arguments, environment);
	if (error)
		board_fail(me->board, me->who, "posix_spawn: %s", strerror(error));
	if (waitpid(child, &status, 0) != child || status)
		board_fail(me->board, me->who, "%s ended with status %#x", program, (unsigned int)status);
	board_done(me->board, me->who, OP_SPAWN, true);
}

static void fork_and_verify(struct upheaval *upheaval)
{
	struct thread_context *me = upheaval->me;
	struct snapshot *snapshot = upheaval->snapshot;
	uint32_t offset;

	reap(upheaval);
	upheaval->raw = draw_below(&me->random, 2);
	for (uint32_t i = 0; i < CHILD_PAGES; i++) {
		struct area *area;

		do {
			snapshot->pages[i] = board_pick_page(me->board, &me->random);
			area = board_area(me->board, snapshot->pages[i]);
		} while (area->kind == AREA_COHERENT || area->shared);
		offset = snapshot->pages[i] - area->first_page;
		snapshot->addresses[i] = atomic_load(&area->base) + offset * PAGE_BYTES;
		for (uint32_t j = 0; j < PAGE_CELLS; j++)
			snapshot->sights[i][j] = board_look(me->board, snapshot->pages[i] * PAGE_CELLS + j);
	}
	/* Two of the child's pages may be the same: its own writes are told apart by value. */
	board_begin(me->board, me->who, OP_FORK, 0, me->board->n_pages, upheaval->raw, 0);
	upheaval->child = upheaval->raw ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();
	if (upheaval->child < 0)
		board_fail(me->board, me->who, "%s: %m", upheaval->raw ? "clone" : "fork");
	if (!upheaval->child && upheaval->raw)
		unwatched();
	if (!upheaval->child)
		child_main(upheaval);
	board_done(me->board, me->who, OP_FORK, true);
	/* In the middle of its reads, its writes or its end. */
	upheaval->killed = draw_below(&me->random, 4) == 0;
	if (upheaval->killed) {
		pause_us(draw_below(&me->random, 4000));
		kill(upheaval->child, SIGKILL);
	}
}

void *upheaval_thread(void *context)
{
	struct thread_context *me = context;
	struct board *board = me->board;
	struct upheaval upheaval = { .me = me };
	bool events = board->settings.events, forks = board->settings.fork;

	upheaval.snapshot = mmap(NULL, sizeof(*upheaval.snapshot), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (upheaval.snapshot == MAP_FAILED)
		board_fail(board, me->who, "mmap: %m");
	while (!board_stopped(board)) {
		uint32_t choice = draw_below(&me->random, 100);

		if (forks && (!(events || board->settings.several) || choice < 8)) {
			if (draw_below(&me->random, 4))
				fork_and_verify(&upheaval);
			else
				spawn(me);
			/* Or the drivers get nowhere. */
			if (board->settings.exclusive)
				pause_us(50000);
		} else if (!events)
			discard_on_device(me);
		else if (choice < 32)
			discard(me, OP_DONTNEED, MADV_DONTNEED, DISCARD_HARD);
		else if (choice < 38)
			discard(me, OP_FREE, MADV_FREE, DISCARD_SOFT);
		else if (choice < 58)
			replace(me);
		else if (choice < 65)
			unmap(me);
		else if (choice < 69 && !board->settings.engine)
			/* Of far pages one device alone may have some in a block that they are moved to. */
			move_area(me);
		else if (choice < 77)
			protect(me);
		else if (choice < 83)
			collapse(me);
		else if (choice < 88)
			lock_pages(me);
		else if (choice < 95)
			advise(me, OP_POPULATE, MADV_POPULATE_WRITE);
		else
			advise(me, OP_PAGEOUT, draw_below(&me->random, 2) ? MADV_PAGEOUT : MADV_COLD);
		pause_us(draw_below(&me->random, 800));
	}
	reap(&upheaval);
	return NULL;
}
