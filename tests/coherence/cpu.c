/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * cpu.c - a thread of the owner: loads and stores, and has the kernel read and
 * write its memory through a pipe, which faults inside system calls.
 *
 * Half of what it touches is in the hot pages where everybody meets.
 */
#include "board.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static void load_one(struct thread_context *me, uint32_t page)
{
	struct board *board = me->board;
	uint32_t cell = page * PAGE_CELLS + draw_below(&me->random, PAGE_CELLS);
	_Atomic uint64_t *memory;
	struct sight sight;
	uint64_t value;

	memory = board_enter(board, page);
	board_begin(board, me->who, OP_LOAD, page, 1, cell, 0);
	sight = board_look(board, cell);
	value = atomic_load(&memory[cell % PAGE_CELLS]);
	board_judge(board, me->who, OP_LOAD, cell, &sight, value);
	board_done(board, me->who, OP_LOAD, true);
	board_leave(board, page);
}

static void store_one(struct thread_context *me, uint32_t page)
{
	struct board *board = me->board;
	uint32_t line = board_pick_line(board, page, me->writer, &me->random);
	uint32_t cell = page * PAGE_CELLS + line * LINE_CELLS + draw_below(&me->random, LINE_CELLS);
	_Atomic uint64_t *memory;
	struct stroke stroke;
	uint64_t value;

	memory = board_enter(board, page);
	value = board_announce(board, cell, me->writer);
	board_begin(board, me->who, OP_STORE, page, 1, cell, value);
	stroke = board_stroke(board, page);
	atomic_store(&memory[cell % PAGE_CELLS], value);
	board_publish(board, cell, value, stroke);
	board_done(board, me->who, OP_STORE, true);
	board_leave(board, page);
}

/* A run of stores to one line, then of loads: the page may go between any two of them. */
static void burst(struct thread_context *me, uint32_t page)
{
	struct board *board = me->board;
	uint32_t line = board_pick_line(board, page, me->writer, &me->random);
	uint32_t first = page * PAGE_CELLS + line * LINE_CELLS;
	_Atomic uint64_t *memory = board_enter(board, page);

	for (uint32_t i = 0; i < LINE_CELLS; i++) {
		uint64_t value = board_announce(board, first + i, me->writer);
		struct stroke stroke;

		board_begin(board, me->who, OP_STORE, page, 1, first + i, value);
		stroke = board_stroke(board, page);
		atomic_store(&memory[(first + i) % PAGE_CELLS], value);
		board_publish(board, first + i, value, stroke);
		board_done(board, me->who, OP_STORE, true);
	}
	for (uint32_t i = 0; i < LINE_CELLS; i++) {
		struct sight sight;
		uint64_t value;

		board_begin(board, me->who, OP_LOAD, page, 1, first + i, 0);
		sight = board_look(board, first + i);
		value = atomic_load(&memory[(first + i) % PAGE_CELLS]);
		board_judge(board, me->who, OP_LOAD, first + i, &sight, value);
		board_done(board, me->who, OP_LOAD, true);
	}
	board_leave(board, page);
}

static void kernel_reads(struct thread_context *me, int *pipe, uint32_t page)
{
	struct board *board = me->board;
	uint32_t first = page * PAGE_CELLS + draw_below(&me->random, PAGE_LINES) * LINE_CELLS;
	struct sight sights[LINE_CELLS];
	uint64_t values[LINE_CELLS];
	char *memory = board_enter(board, page);
	ssize_t got;

	board_begin(board, me->who, OP_SYSCALL_READ, page, 1, first, 0);
	for (uint32_t i = 0; i < LINE_CELLS; i++)
		sights[i] = board_look(board, first + i);
	got = write(pipe[1], memory + first % PAGE_CELLS * 8, sizeof(values));
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
	uint32_t first = page * PAGE_CELLS + line * LINE_CELLS;
	uint64_t values[LINE_CELLS];
	struct stroke stroke;
	char *memory = board_enter(board, page);
	ssize_t got;

	for (uint32_t i = 0; i < LINE_CELLS; i++)
		values[i] = board_announce(board, first + i, me->writer);
	board_begin(board, me->who, OP_SYSCALL_WRITE, page, 1, first, values[0]);
	if (write(pipe[1], values, sizeof(values)) != sizeof(values))
		board_fail(board, me->who, "pipe: %m");
	stroke = board_stroke(board, page);
	got = read(pipe[0], memory + line * LINE_CELLS * 8, sizeof(values));
	if (got != sizeof(values))
		board_fail(board, me->who, "read(2) into page %u gave %zd, errno follows: %m", page, got);
	for (uint32_t i = 0; i < LINE_CELLS; i++)
		board_publish(board, first + i, values[i], stroke);
	board_done(board, me->who, OP_SYSCALL_WRITE, true);
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
		/* The pinned area's cells are written by I/O alone. */
		bool mine = board_area(board, page)->kind != AREA_PINNED;

		if (choice < 40 || !mine)
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
