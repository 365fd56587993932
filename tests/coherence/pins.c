/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pins.c - the owner's thread whose memory the kernel holds on to: O_DIRECT
 * reads into the area and writes from it, io_uring buffers that stay pinned
 * for long, and vmsplice, which keeps a page in a pipe.
 *
 * It writes the cells of the pinned area, by I/O alone, and reads everywhere.
 * What io_uring has registered must never leave: that is asked for and checked.
 */
#include "board.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define IO_PAGES 4U

struct pins {
	struct thread_context *me;
	struct area *area;
	struct io_uring ring;
	bool registered;
	int file;		/* O_DIRECT */
	int pipe[2];
	uint64_t *bounce;	/* IO_PAGES, never mirrored */
	struct sight sights[IO_PAGES * PAGE_CELLS];
};

static void fill(struct pins *pins, uint32_t page, uint32_t pages)
{
	struct thread_context *me = pins->me;

	for (uint32_t i = 0; i < pages * PAGE_CELLS; i++)
		pins->bounce[i] = board_announce(me->board, page * PAGE_CELLS + i, me->writer);
	if (pwrite(pins->file, pins->bounce, pages * PAGE_BYTES, 0) != (ssize_t)(pages * PAGE_BYTES))
		board_fail(me->board, me->who, "writing the test's file: %m");
}

static void publish(struct pins *pins, uint32_t page, uint32_t pages, struct stroke stroke)
{
	for (uint32_t i = 0; i < pages * PAGE_CELLS; i++)
		board_publish(pins->me->board, page * PAGE_CELLS + i, pins->bounce[i], stroke);
}

static void look(struct pins *pins, uint32_t page, uint32_t pages)
{
	for (uint32_t i = 0; i < pages * PAGE_CELLS; i++)
		pins->sights[i] = board_look(pins->me->board, page * PAGE_CELLS + i);
}

static void judge(struct pins *pins, enum operation how, uint32_t page, uint32_t pages)
{
	struct thread_context *me = pins->me;

	for (uint32_t i = 0; i < pages * PAGE_CELLS; i++)
		board_judge(me->board, me->who, how, page * PAGE_CELLS + i, &pins->sights[i],
			    pins->bounce[i]);
}

static void read_file(struct pins *pins, uint32_t pages)
{
	if (pread(pins->file, pins->bounce, pages * PAGE_BYTES, 0) != (ssize_t)(pages * PAGE_BYTES))
		board_fail(pins->me->board, pins->me->who, "reading the test's file: %m");
}

/* Pages that io_uring has not registered, in the pinned area. */
static uint32_t pick_own(struct pins *pins)
{
	return pins->area->first_page + IO_PAGES +
	       draw_below(&pins->me->random, pins->area->pages - 2 * IO_PAGES);
}

static void direct_read(struct pins *pins)
{
	struct thread_context *me = pins->me;
	uint32_t page = pick_own(pins), pages = 1 + draw_below(&me->random, IO_PAGES);
	size_t bytes = pages * PAGE_BYTES;
	struct stroke stroke;
	void *memory = board_enter(me->board, page);
	ssize_t got;

	fill(pins, page, pages);
	board_begin(me->board, me->who, OP_DIRECT_READ, page, pages, page * PAGE_CELLS, pins->bounce[0]);
	stroke = board_stroke(me->board, page);
	got = pread(pins->file, memory, bytes, 0);
	if (got != (ssize_t)bytes)
		board_fail(me->board, me->who, "O_DIRECT read into page %u gave %zd: %m", page, got);
	publish(pins, page, pages, stroke);
	board_done(me->board, me->who, OP_DIRECT_READ, true);
	board_leave(me->board, page);
}

static void direct_write(struct pins *pins)
{
	struct thread_context *me = pins->me;
	uint32_t page = board_pick_page(me->board, &me->random);
	void *memory;
	ssize_t got;

	if (board_area(me->board, page)->kind == AREA_COHERENT)
		return;
	memory = board_enter(me->board, page);
	board_begin(me->board, me->who, OP_DIRECT_WRITE, page, 1, page * PAGE_CELLS, 0);
	look(pins, page, 1);
	got = pwrite(pins->file, memory, PAGE_BYTES, 0);
	if (got != (ssize_t)PAGE_BYTES)
		board_fail(me->board, me->who, "O_DIRECT write from page %u gave %zd: %m", page, got);
	read_file(pins, 1);
	judge(pins, OP_DIRECT_WRITE, page, 1);
	board_done(me->board, me->who, OP_DIRECT_WRITE, true);
	board_leave(me->board, page);
}

static void splice_page(struct pins *pins)
{
	struct thread_context *me = pins->me;
	uint32_t page = board_pick_page(me->board, &me->random);
	struct iovec data = { board_enter(me->board, page), PAGE_BYTES };
	ssize_t got;

	board_begin(me->board, me->who, OP_VMSPLICE, page, 1, page * PAGE_CELLS, 0);
	look(pins, page, 1);
	got = vmsplice(pins->pipe[1], &data, 1, 0);
	if (got != (ssize_t)PAGE_BYTES)
		board_fail(me->board, me->who, "vmsplice of page %u gave %zd: %m", page, got);
	board_leave(me->board, page);
	pause_us(draw_below(&me->random, 1000));
	got = read(pins->pipe[0], pins->bounce, PAGE_BYTES);
	if (got != (ssize_t)PAGE_BYTES)
		board_fail(me->board, me->who, "the pipe gave %zd: %m", got);
	judge(pins, OP_VMSPLICE, page, 1);
	board_done(me->board, me->who, OP_VMSPLICE, true);
}

/* ---- buffers that io_uring keeps pinned -------------------------------------- */

static void set_registered(struct pins *pins, bool wanted)
{
	struct thread_context *me = pins->me;
	uint32_t page = pins->area->first_page;
	struct iovec data = { board_enter(me->board, page), IO_PAGES * PAGE_BYTES };
	int error;

	error = wanted ? io_uring_register_buffers(&pins->ring, &data, 1) :
			 io_uring_unregister_buffers(&pins->ring);
	if (error)
		board_fail(me->board, me->who, "io_uring: registering buffers (%d): %s", wanted,
			   strerror(-error));
	pins->registered = wanted;
	board_leave(me->board, page);
}

static void fixed(struct pins *pins, bool read)
{
	enum operation operation = read ? OP_FIXED_READ : OP_FIXED_WRITE;
	struct thread_context *me = pins->me;
	uint32_t page = pins->area->first_page, pages = IO_PAGES;
	void *memory = board_enter(me->board, page);
	struct io_uring_cqe *done;
	struct io_uring_sqe *entry;
	struct stroke stroke;
	int error;

	if (read)
		fill(pins, page, pages);
	else
		look(pins, page, pages);
	board_begin(me->board, me->who, operation, page, pages, page * PAGE_CELLS,
		    read ? pins->bounce[0] : 0);
	stroke = board_stroke(me->board, page);
	entry = io_uring_get_sqe(&pins->ring);
	if (read)
		io_uring_prep_read_fixed(entry, pins->file, memory, pages * PAGE_BYTES, 0, 0);
	else
		io_uring_prep_write_fixed(entry, pins->file, memory, pages * PAGE_BYTES, 0, 0);
	error = io_uring_submit_and_wait(&pins->ring, 1);
	if (error < 0 || io_uring_wait_cqe(&pins->ring, &done))
		board_fail(me->board, me->who, "io_uring: %s", strerror(-error));
	if (done->res != (int)(pages * PAGE_BYTES))
		board_fail(me->board, me->who, "%s gave %d", operation_name(operation), done->res);
	io_uring_cqe_seen(&pins->ring, done);
	if (read) {
		publish(pins, page, pages, stroke);
	} else {
		read_file(pins, pages);
		judge(pins, operation, page, pages);
	}
	board_done(me->board, me->who, operation, true);
	board_leave(me->board, page);
}

/* A device that got such a page would never see what I/O writes into it. */
static void pinned_stays(struct pins *pins)
{
	struct thread_context *me = pins->me;
	uint32_t page = pins->area->first_page;
	unsigned long address = (unsigned long)board_enter(me->board, page);
	uint8_t results[IO_PAGES];
	long there;

	board_begin(me->board, me->who, OP_OUT, page, IO_PAGES, 0, 0);
	there = hmm_migrate(me->mirror, address, IO_PAGES * PAGE_BYTES, HMM_DEVICE, 0, results, NULL);
	if (there < 0)
		board_excused(me->board, me->who, "hmm_migrate", there);
	else if (there > 0)
		board_fail(me->board, me->who, "%ld pages left that io_uring has pinned", there);
	board_done(me->board, me->who, OP_OUT, false);
	board_leave(me->board, page);
}

void *pins_thread(void *context)
{
	struct thread_context *me = context;
	struct board *board = me->board;
	static struct pins pins;
	char path[300];

	pins.me = me;
	for (uint32_t i = 0; i < board->n_areas; i++)
		if (board->areas[i].kind == AREA_PINNED)
			pins.area = &board->areas[i];
	snprintf(path, sizeof(path), "%s/coherence-XXXXXX", board->settings.directory);
	pins.file = mkostemp(path, O_CLOEXEC | O_DIRECT);
	if (pins.file < 0)
		board_fail(board, me->who, "%s: %m", path);
	unlink(path);
	pins.bounce = mmap(NULL, IO_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (pins.bounce == MAP_FAILED || pipe2(pins.pipe, O_CLOEXEC) || io_uring_queue_init(4, &pins.ring, 0))
		board_fail(board, me->who, "setting up: %m");
	while (!board_stopped(board)) {
		uint32_t choice = draw_below(&me->random, 100);

		if (choice < 40)
			direct_read(&pins);
		else if (choice < 60)
			direct_write(&pins);
		else if (choice < 75)
			splice_page(&pins);
		else if (choice < 80 || !pins.registered)
			set_registered(&pins, !pins.registered);
		else if (choice < 96)
			fixed(&pins, choice % 2);
		else
			pinned_stays(&pins);
		pause_us(draw_below(&me->random, 300));
	}
	io_uring_queue_exit(&pins.ring);
	close(pins.file);
	close(pins.pipe[0]);
	close(pins.pipe[1]);
	return NULL;
}
