/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * copyengine.h - a driver whose memory no other process reads: it keeps what it gets
 * scrambled, so that only its own copies give the bytes back. It does what the owner says
 * over a socket, and both look at one board of shared memory.
 */
#ifndef TEST_COPYENGINE_H
#define TEST_COPYENGINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <hmm/hmm.h>

#define DEVICE_PAGES 4096U	/* of the driver's memory */
#define DEVICE_MEMORY (64UL << 20)	/* of the owner's other devices */

enum command {
	COMMAND_OUT = 1,	/* board->addr, ->pages go to the device; the answer is hmm_migrate()'s */
	COMMAND_HOME,
	COMMAND_READ,		/* one word at board->addr, by the device: the answer; board->result: hmm_device_read()'s */
	COMMAND_WRITE,		/* board->word there */
	COMMAND_WINDOW,		/* the answer is hmm_window_map()'s */
	COMMAND_REMOVE,		/* hmm_devmem_remove() that blocks or (board->word 0) does not */
	COMMAND_REMOVE_AND_PUT,	/* ... that blocks, and a thread gives the reference back when it is the last */
	COMMAND_GET,		/* one reference to the page that has board->addr, and back */
	COMMAND_PUT,
	COMMAND_DEVICE_PUT,	/* mirror and device are given back, with the memory still there */
	COMMAND_UNREGISTER,
	COMMAND_DRVDATA,	/* that of the page that has board->addr */
	COMMAND_ENTRY,		/* the table's entry of board->addr */
	COMMAND_EXCLUSIVE,	/* the answer is hmm_device_exclusive_begin()'s */
	COMMAND_PIN,		/* ... hmm_advise()'s */
	COMMAND_RANGE,		/* ... hmm_range_fault()'s, to be written; its pages are those of the driver's memory */
};

struct board {
	unsigned long addr;
	uint64_t pages, word;
	long result;
	uint8_t results[DEVICE_PAGES];
	_Atomic unsigned int room;	/* pages that alloc_and_copy() may take yet */
	_Atomic int out_of_memory;	/* times that fault() answers OOM */
	_Atomic int no_page;		/* times that the kernel has none for hmm_vma_alloc_locked_page() */
	_Atomic unsigned long sigbus;	/* the address that fault() has lost; 0: none */
	_Atomic unsigned long liar;	/* ... that it says it brought */
	_Atomic bool whole;		/* fault() brings all it may */
	_Atomic bool slow;		/* fault() says that it took long */
	_Atomic unsigned long stray;	/* an address of the block that is not asked for; 0: none */
	_Atomic unsigned int strayed;	/* times that there was no room for it */
	_Atomic unsigned int stores, faults, writes, moved, refused, bad_free;
	_Atomic unsigned int in_use;	/* pages of the driver's memory */
	_Atomic bool hold_store;	/* alloc_and_copy() does not return */
	_Atomic bool in_store;
	_Atomic bool hold_fault;	/* fault() does not return */
	_Atomic bool in_fault;
	_Atomic bool hold_answer;	/* its callback does not return */
	_Atomic bool in_answer;
	_Atomic bool choose_badly;	/* alloc_and_copy() chooses pages in use, and no pages at all */
};

/* In the owner: the board, made before the driver. */
extern struct board *board;
void board_make(void);
/* Starts it, for this process's owner; returns when it has its mirror. */
pid_t copyengine_start(const char *name, int *socket);
/* The same, in steps: when nothing is answered yet. */
uint64_t copyengine_ask(int socket, enum command command, const void *addr, size_t pages);

/* An owner with such a driver: this process. And its end, with nothing of the driver's memory in use. */
extern int engine;	/* the socket to the driver */
extern pid_t driver;
void engine_begin(const char *name);
void engine_end(void);
/* Every page of the driver's memory came back, once. */
void engine_unused(void);
void engine_out(void *memory, size_t pages);
uint64_t engine_entry(const void *page);
void engine_until(const char *what, const _Atomic unsigned int *value, unsigned int expected);
/* Pages [first, end) of what test_fill() wrote at @memory. */
void test_part(const char *memory, size_t first, size_t end, uint64_t seed);
/* Three times new bytes go to the driver, in part home by a touch, all home by a call; the last of seed 3. */
void engine_rounds(char *memory, size_t pages);
/* Whether a read of the page is SIGBUS. */
bool test_lost(const char *page);

/*
 * The driver's main program; "resource", "huge-pages", "own-descriptor": it keeps its pages in a memfd, one of huge
 * pages, or /dev/zero, by the library's defaults; "dispatching": its callbacks run in its own loop.
 */
void copyengine_main(const char *name);

#endif
