/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * board.h - what the participants of the coherence test share, in a memfd that
 * is never mirrored: where each area lies, what was announced and published of
 * each cell, which pages were discarded when, and what everybody did lately.
 *
 * A cell is an aligned 8-byte word of an area. It has one writer, whose values
 * carry the cell, a generation and the writer. The writer announces a
 * generation before it stores it and publishes it after. A reader samples the
 * floor before it reads and the announcement after, so a value that is older
 * than the floor, newer than the announcement or not of this cell at all is a
 * violation of the one promise: an address leads everybody to the same bytes.
 *
 * A cell of an area of counters has any number of writers, who add one to it: it is never less
 * than what had been added before the look, nor more than had been begun after.
 *
 * What a page's mapping allows is its guard: one number, which changes with each mprotect().
 */
#ifndef COHERENCE_BOARD_H
#define COHERENCE_BOARD_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <hmm/hmm.h>

#define PAGE_BYTES		4096UL
#define BLOCK_BYTES		(2UL << 20)
#define PAGE_CELLS		512U
#define LINE_CELLS		8U
#define PAGE_LINES		64U

#define AREAS_MAX		12
#define DRIVERS_MAX		4
#define PARTICIPANTS_MAX	32
#define MOVERS_MAX		8U
#define TRACE_ENTRIES		4096U

/* Every area has two homes, a stride apart, so that mremap can move it to and fro. */
#define ARENA_BASE		0x7ea000000000UL
#define AREA_STRIDE		(64UL << 20)
#define ARENA_BYTES		(2 * AREAS_MAX * AREA_STRIDE)

/* Writers that no cell belongs to: the values a forked child puts into its own copy. */
#define WRITER_CHILD		0xfeU

enum area_kind {
	AREA_ORDINARY,
	AREA_PINNED,	/* its cells are written by I/O; no event touches it */
	AREA_COHERENT,	/* from hmm_alloc() */
	AREA_COUNTERS,	/* everybody adds to its cells */
	AREA_TRACKED,	/* a tracked mirror has copies of it, and writes to it are told */
	/* From here on: what stays where it is, so that devices reach it in place. */
	AREA_SHARED,	/* anonymous, and shared */
	AREA_FILE,	/* of a file, in tmpfs or on a disk, private or shared */
	AREA_HUGETLB,
};

struct area {
	pthread_rwlock_t lock;		/* written around what unmaps, moves or protects it */
	_Atomic uint64_t base;
	uint64_t homes[2];
	uint32_t first_page, pages;
	uint32_t kind;			/* enum area_kind */
	uint32_t unit;			/* pages that it can be cut by */
	bool shared;			/* ... and a child sees what its parent writes */
	bool kept;			/* what is unmapped is there when it is mapped again */
	int file, flags;		/* the owner's, for mmap() */
	_Atomic uint64_t read, written;	/* by devices, without a window */
};

/*
 * When a page was discarded. Discards are numbered from 1 by the one thread
 * that makes them. A hard one (DONTNEED, a new mapping) leaves zeros, a soft
 * one (MADV_FREE) may.
 */
struct page_clock {
	_Atomic uint32_t begun;		/* the newest that has begun */
	_Atomic uint32_t ended;		/* == begun: none is under way */
	_Atomic uint32_t hard;		/* the newest hard one that has ended */
	_Atomic uint32_t soft;		/* the newest soft one that has begun */
};

enum operation {
	OP_IDLE, OP_LOAD, OP_STORE, OP_SYSCALL_READ, OP_SYSCALL_WRITE, OP_DEVICE_READ,
	OP_DEVICE_WRITE, OP_RANGE, OP_WINDOW_LOAD, OP_WINDOW_STORE, OP_OUT, OP_HOME, OP_EXCLUSIVE, OP_PREFETCH, OP_EXCLUDE, OP_SHARE, OP_ADVISE,
	OP_DONTNEED, OP_FREE, OP_REPLACE, OP_UNMAP, OP_MREMAP, OP_PROTECT, OP_COLLAPSE, OP_MLOCK,
	OP_POPULATE, OP_PAGEOUT, OP_FORK, OP_CHILD, OP_DIRECT_READ, OP_DIRECT_WRITE, OP_FIXED_READ,
	OP_FIXED_WRITE, OP_VMSPLICE, OP_FINAL, OP_ADD, OP_WINDOW_ADD, OP_EXCLUSIVE_ADD, OP_DISCARD,
	OP_FAR_OUT, OP_FAR_HOME, OP_STORE_FAR, OP_FETCH_FAR, OP_REFUSED, OP_REMOVE, OP_KILLED, OP_SPAWN, OP_SYNC,
	OP_DIRTY, OP_MAX
};

struct trace_entry {
	uint64_t when;
	uint64_t value;
	uint32_t page, pages;
	uint32_t operation;
	uint32_t cell;
};

struct participant {
	char name[24];
	pid_t pid, tid;
	uint32_t index;
	_Atomic uint64_t done;		/* operations finished: the watchdog looks here */
	_Atomic uint32_t doing, page;	/* the operation under way and its page */
	_Atomic uint32_t traced;
	struct trace_entry trace[TRACE_ENTRIES];
};

struct settings {
	pid_t owner;		/* names its devices */
	uint64_t seed;
	uint32_t seconds, threads, drivers, mib;
	uint32_t movers;	/* so many requests at a time from the owner */
	uint32_t device;	/* MiB that a device has */
	bool events, fork, windows, pins, kill_daemon, base_engine;
	bool end_daemon;	/* kill_daemon; and it may end in good order, after which coherent memory is ordinary */
	bool engine;		/* the last driver's memory is its own */
	bool bar;		/* ... is a card's BAR */
	char card[16];		/* that card's address */
	bool forget;		/* the kernel does not count all that it moves: forget.c */
	bool protect;		/* mprotect() while everybody goes on */
	bool exclusive;		/* counters, on which devices have pages to themselves */
	bool several;		/* each driver has a device of its own, and says what it wants where */
	bool in_place;		/* files and shared memory, too */
	bool hugetlb;		/* with in_place: and huge pages of a pool, which is there */
	bool tracked;		/* one area has copies that are brought up to date, and its writes are told */
	bool attended;		/* until standard input ends */
	uint32_t hang;		/* seconds after which an operation hangs */
	uint32_t scale;
	char socket[108];
	char directory[256];
};

struct board {
	struct settings settings;
	uint64_t bytes;
	uint32_t n_areas, n_pages, n_writers;
	_Atomic uint32_t n_participants;
	_Atomic uint32_t stop;
	_Atomic uint32_t failed;
	_Atomic uint32_t hot;		/* first of the few pages where everybody meets */
	_Atomic uint32_t drivers_ready;
	_Atomic uint64_t tally[OP_MAX];	/* of successes */
	_Atomic uint64_t results[HMM_TRACKED + 1];	/* of hmm_migrate(), page by page */
	_Atomic uint64_t refused;	/* hmm calls that failed while hmmd was away */
	struct area areas[AREAS_MAX];
	struct participant participants[PARTICIPANTS_MAX];
	uint64_t clocks_at, floors_at, announced_at, guards_at;	/* offsets */
};

/* What was known of a page's discards before a cell was read or written. */
struct stroke {
	uint32_t begun;
	bool quiet;		/* none was under way or, for a reader, may still take effect */
};

/* What a reader knew of a cell before it read it. */
struct sight {
	uint64_t floor;
	uint32_t hard;
	struct stroke stroke;
};

struct board *board_new(const struct settings *settings, uint32_t n_areas, int *fd);
struct board *board_map(int fd);
struct participant *board_join(struct board *board, const char *name, unsigned int number);

/* The address of @page, which stays valid until board_leave(). */
void *board_enter(struct board *board, uint32_t page);
void board_leave(struct board *board, uint32_t page);
struct area *board_area(struct board *board, uint32_t page);
/* What never leaves, and devices reach where it is. */
bool area_stays(const struct area *area);

uint32_t board_writer(const struct board *board, uint32_t page, uint32_t line);
uint32_t board_pick_page(struct board *board, uint64_t *random);
/* One of @writer's lines in @page. */
uint32_t board_pick_line(struct board *board, uint32_t page, uint32_t writer, uint64_t *random);

/* Writing: announce gives the value to store; stroke before the store, publish after it. */
uint64_t board_announce(struct board *board, uint32_t cell, uint32_t writer);
struct stroke board_stroke(struct board *board, uint32_t page);
void board_publish(struct board *board, uint32_t cell, uint64_t value, struct stroke stroke);

/* It was refused: nobody may ever see that value. */
void board_retract(struct board *board, uint32_t cell);

/* Adding: begun before, added after, or retracted. */
void board_add_begin(struct board *board, uint32_t cell);
void board_added(struct board *board, uint32_t cell);
struct area *board_counters(struct board *board);	/* NULL: there are none */
/* One of the few cells that everybody adds to. */
uint32_t board_pick_counter(struct board *board, const struct area *area, uint64_t *random);

/* Reading. board_judge() reports and ends the test when @value cannot be. */
struct sight board_look(struct board *board, uint32_t cell);
/*
 * The newest generation of a cell that is known to have been there, and the newest that anybody has begun to write: what was
 * begun after a moment and known at a later one was written between the two.
 */
uint32_t board_known(struct board *board, uint32_t cell);
uint32_t board_begun(struct board *board, uint32_t cell);
void board_judge(struct board *board, struct participant *who, enum operation how, uint32_t cell,
		 const struct sight *sight, uint64_t value);
/* As board_judge() of a copy taken when the page's clock stood at @begun: nothing is learned from it. */
const char *board_opinion(struct board *board, uint32_t cell, const struct sight *sight,
			  uint64_t value, uint32_t begun);

/* What a discard leaves: zeros; at any later time zeros, until somebody writes; zeros or what was there. */
enum discard { DISCARD_HARD, DISCARD_SOFT, DISCARD_DONE };

/* The one thread that discards. */
void board_discard_begin(struct board *board, uint32_t page, uint32_t pages, enum discard kind);
void board_discard_end(struct board *board, uint32_t page, uint32_t pages, enum discard kind);

/* What a mapping allows. While it changes, and when it has changed meanwhile, nobody knows. */
enum guard { GUARD_WRITE, GUARD_READ, GUARD_NOTHING, GUARD_CHANGING };

uint32_t board_guard(struct board *board, uint32_t page);
void board_guard_set(struct board *board, uint32_t page, enum guard guard);

enum access {
	ACCESS_READ,
	ACCESS_WRITE,
	ACCESS_READ_IF_SHOWN,	/* a window need not show what may not be written */
};

/*
 * After an access to @cell, @before which the guard was taken: fails the test if it was done and was not
 * allowed, or the other way round. Returns @done.
 */
bool board_admit(struct board *board, struct participant *who, enum operation how, uint32_t cell,
		 uint32_t before, enum access access, bool done);

void board_begin(struct board *board, struct participant *who, enum operation operation,
		 uint32_t page, uint32_t pages, uint32_t cell, uint64_t value);
void board_done(struct board *board, struct participant *who, enum operation operation, bool success);

/* Ends the test: says what happened, in words and with what everybody did there lately. */
void board_violation(struct board *board, struct participant *who, enum operation how,
		     uint32_t cell, const struct sight *sight, uint64_t value, const char *why)
	__attribute__((noreturn));
void board_fail(struct board *board, struct participant *who, const char *format, ...)
	__attribute__((noreturn, format(printf, 3, 4)));
bool board_stopped(struct board *board);
/* For hmm_set_log(): what the library says of hmmd's ends, and when. */
/* Of several owners that share an hmmd each has devices of its own. @name: 64 bytes; returns it. */
const char *board_device(const struct board *board, const char *which, char *name);
void board_log(void *who, int level, const char *text);
/* In this process: prints the device's entry and the CPU's for an address. */
extern void (*board_explain)(uint64_t address);

const char *operation_name(unsigned int operation);

uint64_t draw(uint64_t *random);		/* a random number */
uint32_t draw_below(uint64_t *random, uint32_t limit);
uint64_t now_ns(void);
void pause_us(uint32_t us);

/* Who does what; each returns when the board says stop. */
struct thread_context {
	struct board *board;
	struct participant *who;
	struct hmm *hmm;
	struct hmm_mirror *mirror;
	uint32_t writer;
	uint64_t random;
};

/* In areas.c, for the owner alone: what lies behind each area, and its mapping. */
void areas_open(struct board *board, struct participant *who);
void areas_close(struct board *board);
/* @pages from page number @offset of the area on, at @where. MAP_FAILED: errno says why. */
void *area_map(const struct area *area, void *where, uint32_t offset, uint32_t pages, int more_flags);

void *cpu_thread(void *context);
void *mover_thread(void *context);
void *upheaval_thread(void *context);
void *pins_thread(void *context);
void *protector_thread(void *context);
void *tracker_thread(void *context);	/* me->mirror: the tracked one */
int driver_main(int board_fd, int socket_fd, unsigned int index);

/*
 * hmmd may be away: counts a refusal and returns true. Fails the test if hmmd is never away, and with any error
 * that its absence does not give: the library asks again what hmmd did not answer, and says -ESTALE when none came
 * in time; and one that ends in good order says -ESHUTDOWN to what would bring pages out. -EFAULT, -EIO, -EINVAL or the socket's own would be something else, whoever was away.
 */
bool board_excused(struct board *board, struct participant *who, const char *call, long error);

/*
 * In guard.c: touches that may be refused. attempt_begin(): from here on a refusal is an answer;
 * @otherwise hears of other signals. Without it they are plain accesses.
 */
void attempt_begin(void (*otherwise)(int number, siginfo_t *info, void *machine));
bool attempt_load(const _Atomic uint64_t *cell, uint64_t *value);
bool attempt_store(_Atomic uint64_t *cell, uint64_t value);
bool attempt_add(_Atomic uint64_t *cell);

/* In engine.c: the memory of a driver with a copy engine. */
void engine_open(struct thread_context *driver, struct hmm_mirror *mirror);
void engine_move(struct thread_context *driver, struct hmm_mirror *mirror, bool out);
/* After its mirror is gone: every page came back, once. */
void engine_close(struct thread_context *driver);

/* From now on; and how often it was so. */
void forget_begin(void);
uint64_t forget_count(void);

#endif
