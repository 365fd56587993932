/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * engine.c - the last driver, when it has a copy engine: memory that no other process
 * reads. What it gets it keeps scrambled, so that bytes are right only if they came by its
 * own copies, and what is given back it spoils.
 *
 * Callbacks run in the library's dispatch thread, moves in the driver's. Each page that was
 * chosen comes back once, and in the end all have.
 */
#include "board.h"

#include <errno.h>
#include <hmm/devmem.h>
#include <stdlib.h>
#include <string.h>

#define SCRAMBLE 0x5bd1e995c0ffee11ULL

static struct {
	struct thread_context *driver;
	struct participant *who;	/* the callbacks */
	struct hmm_devmem *devmem;
	uint32_t n_pages, next;
	uint64_t random;
	uint64_t (*memory)[PAGE_CELLS];
	bool *used;
	_Atomic uint32_t in_use;
} engine;

static void scramble(uint64_t *to, const uint64_t *from)
{
	for (uint32_t i = 0; i < PAGE_CELLS; i++)
		to[i] = from[i] ^ SCRAMBLE;
}

static struct hmm_page *choose(void)
{
	for (uint32_t i = 0; i < engine.n_pages; i++) {
		uint32_t n = (engine.next + i) % engine.n_pages;

		if (engine.used[n])
			continue;
		engine.used[n] = true;
		engine.next = n + 1;
		atomic_fetch_add(&engine.in_use, 1);
		return &engine.devmem->pages[n];
	}
	return NULL;
}

static void free_page(struct hmm_devmem *devmem, struct hmm_page *page)
{
	size_t n = (size_t)(page - devmem->pages);

	if (!engine.used[n])
		board_fail(engine.driver->board, engine.who, "page %zu of the driver's memory is freed twice", n);
	memset(engine.memory[n], 0xee, PAGE_BYTES);
	engine.used[n] = false;
	atomic_fetch_sub(&engine.in_use, 1);
}

/* Now and then it has no room for a page, though it has. */
static void alloc_and_copy(struct hmm_devmem *devmem, const struct hmm_devmem_move *move)
{
	struct board *board = engine.driver->board;

	board_begin(board, engine.who, OP_STORE_FAR, 0, 0, 0, move->start);
	for (unsigned long i = 0; i < move->pages; i++) {
		if (!move->src[i] || !draw_below(&engine.random, 50))
			continue;
		move->dst[i] = choose();
		if (!move->dst[i])
			break;
		scramble(engine.memory[move->dst[i] - devmem->pages], move->src[i]);
	}
	if (!draw_below(&engine.random, 8))
		pause_us(draw_below(&engine.random, 2000));
	board_done(board, engine.who, OP_STORE_FAR, true);
}

static int bring(struct hmm_devmem *devmem, unsigned long addr, const struct hmm_page *page)
{
	uint64_t *to = hmm_vma_alloc_locked_page(devmem, addr);

	if (!to)
		return HMM_FAULT_OOM;
	scramble(to, engine.memory[page - devmem->pages]);
	return HMM_FAULT_MINOR;
}

/* The page, and perhaps its neighbours; or it is out of memory, for a moment. */
static int fault(struct hmm_devmem *devmem, unsigned long addr, const struct hmm_page *page, unsigned int flags)
{
	struct board *board = engine.driver->board;
	size_t n = (size_t)(page - devmem->pages);

	if (!engine.used[n])
		board_fail(board, engine.who, "page %zu of the driver's memory is asked for, and was freed", n);
	if (!draw_below(&engine.random, 60))
		return HMM_FAULT_OOM;
	board_begin(board, engine.who, OP_FETCH_FAR, 0, 0, 0, addr);
	for (uint32_t i = 0; i < engine.n_pages && !draw_below(&engine.random, 3000); i++)
		if (engine.used[i] && devmem->pages[i].addr != addr)
			bring(devmem, devmem->pages[i].addr, &devmem->pages[i]);
	if (!draw_below(&engine.random, 20))
		pause_us(draw_below(&engine.random, 1000));
	board_done(board, engine.who, OP_FETCH_FAR, true);
	return bring(devmem, addr, page);
}

static const struct hmm_devmem_ops memory_ops = {
	.size = sizeof(memory_ops), .free = free_page, .fault = fault, .alloc_and_copy = alloc_and_copy,
};

void engine_open(struct thread_context *driver, struct hmm_mirror *mirror)
{
	char name[64];
	struct hmm_device_options options = { .size = sizeof(options), .node = -1,
					      .name = board_device(driver->board, "engine", name),
					      .caps = HMM_DEVICE_FAULTS | HMM_DEVICE_COPY_ENGINE };
	struct board *board = driver->board;
	int error;

	engine.driver = driver;
	engine.who = board_join(board, "engine", 0);
	engine.random = board->settings.seed + 2000;
	engine.n_pages = board->settings.device << 8;
	engine.memory = calloc(engine.n_pages, PAGE_BYTES);
	engine.used = calloc(engine.n_pages, sizeof(bool));
	if (!engine.memory || !engine.used)
		board_fail(board, driver->who, "no memory for the driver's own");
	error = hmm_device_new(driver->hmm, &options, &mirror->device);
	if (error)
		board_fail(board, driver->who, "hmm_device_new: %s (%s)", strerror(-error), hmm_last_error());
	error = hmm_devmem_add(&memory_ops, mirror->device, engine.n_pages * PAGE_BYTES, &engine.devmem);
	if (error)
		board_fail(board, driver->who, "hmm_devmem_add: %s (%s)", strerror(-error), hmm_last_error());
	error = hmm_mirror_register(mirror, driver->hmm);
	if (error)
		board_fail(board, driver->who, "hmm_mirror_register: %s (%s)", strerror(-error), hmm_last_error());
}

/* Its pages may be unmapped under the call: then they are holes, or have changed. */
void engine_move(struct thread_context *driver, struct hmm_mirror *mirror, bool out)
{
	static uint8_t results[PAGE_CELLS];
	struct board *board = driver->board;
	uint32_t page = board_pick_page(board, &driver->random);
	struct area *area = board_area(board, page);
	uint32_t left = area->first_page + area->pages - page;
	uint32_t pages = 1 + draw_below(&driver->random, draw_below(&driver->random, 3) ? 24 : PAGE_CELLS - 1);
	enum operation operation = out ? OP_FAR_OUT : OP_FAR_HOME;
	unsigned long address = atomic_load(&area->base) + (page - area->first_page) * PAGE_BYTES;
	long there;

	if (pages > left)
		pages = left;
	board_begin(board, driver->who, operation, page, pages, 0, 0);
	there = hmm_migrate(mirror, address, pages * PAGE_BYTES, out ? HMM_DEVICE : HMM_SYSTEM,
			    out && !draw_below(&driver->random, 4) ? HMM_MIGRATE_POPULATE : 0, results, NULL);
	if (there < 0)
		board_excused(board, driver->who, "hmm_migrate", there);
	for (uint32_t i = 0; there >= 0 && i < pages; i++)
		if (results[i] > HMM_MIGRATE_ERROR && (results[i] != HMM_TRACKED || area->kind != AREA_TRACKED))
			board_fail(board, driver->who, "hmm_migrate: result %u of page %u", results[i], page + i);
	board_done(board, driver->who, operation, there > 0);
}

void engine_close(struct thread_context *driver)
{
	for (int i = 0; i < 1000 * (int)driver->board->settings.scale && atomic_load(&engine.in_use); i++)
		pause_us(10000);
	if (atomic_load(&engine.in_use))
		board_fail(driver->board, driver->who, "%u pages of the driver's memory never came back",
			   atomic_load(&engine.in_use));
	free(engine.memory);
	free(engine.used);
}
