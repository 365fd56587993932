/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * cpu.c - a thread of the owner: loads and stores, and has the kernel read and
 * write its memory through a pipe, which faults inside system calls.
 *
 * Half of what it touches is in the hot pages where everybody meets. What its own mprotect()
 * forbids is refused to it, by a signal or EFAULT.
 */
#include "board.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static void load_cell(struct thread_context *me, _Atomic uint64_t *memory, uint32_t cell)
{
	struct board *board = me->board;
	uint32_t page = cell / PAGE_CELLS, guard;
	struct sight sight;
	uint64_t value;
	bool done;

	board_begin(board, me->who, OP_LOAD, page, 1, cell, 0);
	guard = board_guard(board, page);
	sight = board_look(board, cell);
	done = attempt_load(&memory[cell % PAGE_CELLS], &value);
	if (board_admit(board, me->who, OP_LOAD, cell, guard, ACCESS_READ, done))
		board_judge(board, me->who, OP_LOAD, cell, &sight, value);
	board_done(board, me->who, OP_LOAD, done);
}

static void store_cell(struct thread_context *me, _Atomic uint64_t *memory, uint32_t cell)
{
	struct board *board = me->board;
	uint64_t value = board_announce(board, cell, me->writer);
	uint32_t page = cell / PAGE_CELLS, guard;
	struct stroke stroke;
	bool done;

	board_begin(board, me->who, OP_STORE, page, 1, cell, value);
	guard = board_guard(board, page);
	stroke = board_stroke(board, page);
	done = attempt_store(&memory[cell % PAGE_CELLS], value);
	if (board_admit(board, me->who, OP_STORE, cell, guard, ACCESS_WRITE, done))
		board_publish(board, cell, value, stroke);
	else
		board_retract(board, cell);
	board_done(board, me->who, OP_STORE, done);
}

static void load_one(struct thread_context *me, uint32_t page)
{
	_Atomic uint64_t *memory = board_enter(me->board, page);

	load_cell(me, memory, page * PAGE_CELLS + draw_below(&me->random, PAGE_CELLS));
	board_leave(me->board, page);
}

static void store_one(struct thread_context *me, uint32_t page)
{
	uint32_t line = board_pick_line(me->board, page, me->writer, &me->random);
	_Atomic uint64_t *memory = board_enter(me->board, page);

	store_cell(me, memory, page * PAGE_CELLS + line * LINE_CELLS + draw_below(&me->random, LINE_CELLS));
	board_leave(me->board, page);
}

/* A run of stores to one line, then of loads: the page may go between any two of them. */
static void burst(struct thread_context *me, uint32_t page)
{
	uint32_t line = board_pick_line(me->board, page, me->writer, &me->random);
	uint32_t first = page * PAGE_CELLS + line * LINE_CELLS;
	_Atomic uint64_t *memory = board_enter(me->board, page);

	for (uint32_t i = 0; i < LINE_CELLS; i++)
		store_cell(me, memory, first + i);
	for (uint32_t i = 0; i < LINE_CELLS; i++)
		load_cell(me, memory, first + i);
	board_leave(me->board, page);
}

static void count_one(struct thread_context *me, const struct area *area)
{
	struct board *board = me->board;
	uint32_t cell = board_pick_counter(board, area, &me->random), page = cell / PAGE_CELLS, guard;
	_Atomic uint64_t *memory = board_enter(board, page);
	bool done;

	board_add_begin(board, cell);
	board_begin(board, me->who, OP_ADD, page, 1, cell, 0);
	guard = board_guard(board, page);
	done = attempt_add(&memory[cell % PAGE_CELLS]);
	if (board_admit(board, me->who, OP_ADD, cell, guard, ACCESS_WRITE, done))
		board_added(board, cell);
	else
		board_retract(board, cell);
	board_done(board, me->who, OP_ADD, done);
	if (draw_below(&me->random, 2))
		load_cell(me, memory, cell);
	board_leave(board, page);
}

static void kernel_reads(struct thread_context *me, int *pipe, uint32_t page)
{
	struct board *board = me->board;
	uint32_t first = page * PAGE_CELLS + draw_below(&me->random, PAGE_LINES) * LINE_CELLS, guard;
	struct sight sights[LINE_CELLS];
	uint64_t values[LINE_CELLS];
	char *memory = board_enter(board, page);
	ssize_t got;

	board_begin(board, me->who, OP_SYSCALL_READ, page, 1, first, 0);
	guard = board_guard(board, page);
	for (uint32_t i = 0; i < LINE_CELLS; i++)
		sights[i] = board_look(board, first + i);
	got = write(pipe[1], memory + first % PAGE_CELLS * 8, sizeof(values));
	if (!board_admit(board, me->who, OP_SYSCALL_READ, first, guard, ACCESS_READ, got >= 0 || errno != EFAULT)) {
		board_done(board, me->who, OP_SYSCALL_READ, false);
		board_leave(board, page);
		return;
	}
	if (got != sizeof(values) || read(pipe[0], values, sizeof(values)) != got)
		board_fail(board, me->who, "write(2) from page %u gave %zd, errno follows: %m", page, got);
	for (uint32_t i = 0; i < LINE_CELLS; i++)
		board_judge(board, me->who, OP_SYSCALL_READ, first + i, &sights[i], values[i]);
	board_done(board, me->who, OP_SYSCALL_READ, true);
	board_leave(board, page);
}

static void kernel_writes(struct thread_context *me, int *pipe, uint32_t page)
{
	struct board *board = me->board;
	uint32_t line = board_pick_line(board, page, me->writer, &me->random);
	uint32_t first = page * PAGE_CELLS + line * LINE_CELLS, guard;
	uint64_t values[LINE_CELLS];
	struct stroke stroke;
	char *memory = board_enter(board, page);
	ssize_t got;
	bool done;

	for (uint32_t i = 0; i < LINE_CELLS; i++)
		values[i] = board_announce(board, first + i, me->writer);
	board_begin(board, me->who, OP_SYSCALL_WRITE, page, 1, first, values[0]);
	if (write(pipe[1], values, sizeof(values)) != sizeof(values))
		board_fail(board, me->who, "pipe: %m");
	guard = board_guard(board, page);
	stroke = board_stroke(board, page);
	got = read(pipe[0], memory + line * LINE_CELLS * 8, sizeof(values));
	done = board_admit(board, me->who, OP_SYSCALL_WRITE, first, guard, ACCESS_WRITE, got >= 0 || errno != EFAULT);
	/* What was refused is in the pipe still. */
	if (!done && read(pipe[0], values, sizeof(values)) != sizeof(values))
		board_fail(board, me->who, "the pipe lost what could not be read into page %u: %m", page);
	if (done && got != sizeof(values))
		board_fail(board, me->who, "read(2) into page %u gave %zd, errno follows: %m", page, got);
	for (uint32_t i = 0; i < LINE_CELLS; i++) {
		if (done)
			board_publish(board, first + i, values[i], stroke);
		else
			board_retract(board, first + i);
	}
	board_done(board, me->who, OP_SYSCALL_WRITE, done);
	board_leave(board, page);
}

void *cpu_thread(void *context)
{
	struct thread_context *me = context;
	struct board *board = me->board;
	int pipe[2];

	if (pipe2(pipe, O_CLOEXEC))
		board_fail(board, me->who, "pipe: %m");
	while (!board_stopped(board)) {
		uint32_t page = board_pick_page(board, &me->random);
		uint32_t choice = draw_below(&me->random, 100);
		struct area *area = board_area(board, page), *counters = board_counters(board);

		if (counters && !draw_below(&me->random, 4))
			count_one(me, counters);
		/* The pinned area's cells are written by I/O alone. */
		if (area->kind == AREA_COUNTERS && choice >= 10 && choice < 84)
			count_one(me, area);
		else if (area->kind == AREA_COUNTERS && choice >= 84)
			kernel_reads(me, pipe, page);
		else if (choice < 40 || area->kind == AREA_PINNED)
			load_one(me, page);
		else if (choice < 70)
			store_one(me, page);
		else if (choice < 84)
			burst(me, page);
		else if (choice < 92)
			kernel_reads(me, pipe, page);
		else
			kernel_writes(me, pipe, page);
		/* Let pages rest now and then, so that they can leave. */
		if (!draw_below(&me->random, 64))
			pause_us(draw_below(&me->random, 300));
	}
	close(pipe[0]);
	close(pipe[1]);
	return NULL;
}
