/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * guard.c - mappings that forbid what somebody is about to do. The owner's protector
 * threads take rights from pages and give them back, through the library's mprotect(), while
 * threads and devices go on: nobody waits, there is no lock. The page's guard on the board says
 * what holds. An access that it forbids must be refused and change nothing, one that
 * it allows must be done; while it changes both are right.
 *
 * Each protector has pages of its own. At the end all of them may be written.
 *
 * attempt_*(): a touch that a signal refuses comes back and says so. The flag and the place to
 * return to are the thread's own.
 */
#include "board.h"

#include <setjmp.h>
#include <string.h>
#include <sys/mman.h>

/* ---- touches that may be refused ------------------------------------------------ */

/*
 * ThreadSanitizer calls handlers with all signals blocked, whatever they asked for: whoever jumps out of one has to unblock them. And it has a
 * lock for each atomic variable, which must not be held by whoever jumps: such a touch it does not see.
 */
#ifdef __SANITIZE_THREAD__
#define SAVED_MASK 1
#define UNSEEN __attribute__((no_sanitize("thread")))
#else
#define SAVED_MASK 0
#define UNSEEN
#endif

static __thread sigjmp_buf landing;
static __thread volatile sig_atomic_t in_attempt;
static bool attempting;
static void (*on_other)(int number, siginfo_t *info, void *machine);

static void refused(int number, siginfo_t *info, void *machine)
{
	if (!in_attempt) {
		on_other(number, info, machine);
		return;
	}
	in_attempt = 0;
	siglongjmp(landing, 1);
}

void attempt_begin(void (*otherwise)(int number, siginfo_t *info, void *machine))
{
	struct sigaction action = { .sa_sigaction = refused, .sa_flags = SA_SIGINFO | SA_NODEFER };

	on_other = otherwise;
	attempting = true;
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
}

UNSEEN
bool attempt_load(const _Atomic uint64_t *cell, uint64_t *value)
{
	if (!attempting) {
		*value = atomic_load(cell);
		return true;
	}
	if (sigsetjmp(landing, SAVED_MASK))
		return false;
	in_attempt = 1;
	*value = atomic_load(cell);
	in_attempt = 0;
	return true;
}

UNSEEN
bool attempt_store(_Atomic uint64_t *cell, uint64_t value)
{
	if (attempting && sigsetjmp(landing, SAVED_MASK))
		return false;
	in_attempt = attempting;
	atomic_store(cell, value);
	in_attempt = 0;
	return true;
}

UNSEEN
bool attempt_add(_Atomic uint64_t *cell)
{
	if (attempting && sigsetjmp(landing, SAVED_MASK))
		return false;
	in_attempt = attempting;
	atomic_fetch_add(cell, 1);
	in_attempt = 0;
	return true;
}

/* ---- who protects ------------------------------------------------------------------ */

#define SHARE_PAGES 32U		/* they alternate, by so many pages */
#define PROTECTORS 2U

static const int rights[] = {
	[GUARD_WRITE] = PROT_READ | PROT_WRITE, [GUARD_READ] = PROT_READ, [GUARD_NOTHING] = PROT_NONE,
};

static void set_guard(struct thread_context *me, uint32_t page, uint32_t pages, enum guard guard)
{
	struct board *board = me->board;
	char *address = board_enter(board, page);

	board_begin(board, me->who, OP_PROTECT, page, pages, 0, guard);
	for (uint32_t i = 0; i < pages; i++)
		board_guard_set(board, page + i, GUARD_CHANGING);
	if (mprotect(address, pages * PAGE_BYTES, rights[guard]))
		board_fail(board, me->who, "mprotect of page %u: %m", page);
	for (uint32_t i = 0; i < pages; i++)
		board_guard_set(board, page + i, guard);
	board_done(board, me->who, OP_PROTECT, true);
	board_leave(board, page);
}

static void protect_some(struct thread_context *me)
{
	static const enum guard guards[] = { GUARD_WRITE, GUARD_READ, GUARD_READ, GUARD_NOTHING };
	struct board *board = me->board;
	uint32_t page = board_pick_page(board, &me->random);
	const struct area *area = board_area(board, page);
	uint32_t left = SHARE_PAGES - page % SHARE_PAGES, pages = 1 + draw_below(&me->random, 16);

	if (page / SHARE_PAGES % PROTECTORS != me->writer || (area->kind != AREA_ORDINARY && area->kind != AREA_COUNTERS))
		return;
	if (left > area->first_page + area->pages - page)
		left = area->first_page + area->pages - page;
	if (pages > left)
		pages = left;
	set_guard(me, page, pages, guards[draw_below(&me->random, 4)]);
	pause_us(draw_below(&me->random, 800));
	/* Some stay as they are until somebody comes by again. */
	if (draw_below(&me->random, 4))
		set_guard(me, page, pages, GUARD_WRITE);
}

/* me->writer: its number. */
void *protector_thread(void *context)
{
	struct thread_context *me = context;
	struct board *board = me->board;

	while (!board_stopped(board))
		protect_some(me);
	for (uint32_t page = 0; page < board->n_pages; page++) {
		if (page / SHARE_PAGES % PROTECTORS == me->writer &&
		    (board_guard(board, page) & GUARD_CHANGING) != GUARD_WRITE)
			set_guard(me, page, 1, GUARD_WRITE);
	}
	return NULL;
}
