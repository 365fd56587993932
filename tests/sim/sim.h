/* SPDX-License-Identifier: GPL-2.0-or-later */
/* sim.h - the simulated world. What it is and is not: sim.c. One thread; nothing here has a lock. */
#ifndef TEST_SIM_H
#define TEST_SIM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include <hmm/hmm.h>

#include "actor.h"
#include "engine/worker.h"
#include "rescue.h"

/* ---- addresses: none of the room's is ever followed by a pointer, those of the slots are ---------------- */

#define ROOM		0x100000000000UL
#define BLOCKS		2U
#define ROOM_END	(ROOM + BLOCKS * HMM_BLOCK_SIZE)
#define ROOM_PAGES	(BLOCKS * HMM_BLOCK_PAGES)
#define SLOTS		2U
#define SLOTS_ADDR	0x210000000000UL
#define SLOTS_END	(SLOTS_ADDR + SLOTS * HMM_BLOCK_SIZE)
#define SLOT_PAGES	(SLOTS * HMM_BLOCK_PAGES)

/* Pages that programs use: so many, in each block the first ones, and named by their number. */
#define PAGES_USED	8U
#define PAGES_BLOCK	(PAGES_USED / BLOCKS)

static inline uint64_t used_addr(unsigned int n)
{
	return ROOM + n / PAGES_BLOCK * HMM_BLOCK_SIZE + n % PAGES_BLOCK * HMM_PAGE_SIZE;
}

/* -1: none of them. */
static inline int used_at(uint64_t addr)
{
	uint64_t page = (addr - ROOM) >> HMM_PAGE_SHIFT;

	if (addr < ROOM || addr >= ROOM_END || page % HMM_BLOCK_PAGES >= PAGES_BLOCK)
		return -1;
	return (int)(page / HMM_BLOCK_PAGES * PAGES_BLOCK + page % HMM_BLOCK_PAGES);
}

#define EVENTS		(CPUS + 1U)	/* each thread has one at a time; the last is the agent's */
#define ACK_TIMEOUT_MS	1000U
#define GRACE_MS	10000U
#define OWNER_PEER	7U
#define WINDOW_PEER	8U
#define WINDOW_PID	1	/* another one's than the owner's, and alive */
#define WINDOW_MIRROR	1U	/* its index */

/* ---- the world ---------------------------------------------------------------------------------------------- */

struct page {
	bool mapped;
	bool missing, wp;	/* how it is registered with the owner's userfaultfd */
	bool present, protected, poisoned;
	bool doubtful;		/* registered while the map was changing, or to see what a mapping is: hmmd may not know of it */
	bool changing;		/* some thread is about to, or has not come back from it */
	bool shared;		/* with a child: nobody has written since */
	bool huge;		/* a part of a huge page, if all others of its block are, too */
	uint32_t mapping;	/* which: a number for each mmap() */
	uint64_t value;
};

#define VALUES_MAX 24U
struct values {
	unsigned int n;
	uint64_t value[VALUES_MAX];
};

/* What is true of a page that programs use. */
struct truth {
	struct values cpu;	/* what a load may see */
	struct values lag;	/* and a device, for as long as the owner's change is not known to it */
	bool lagging;
	unsigned int unread;	/* messages of it */
	uint64_t applied;	/* journal->applied, when that is known to hmmd */
	bool settled;		/* hmmd was done with it once; another transit is another matter */
	unsigned int discards;	/* under way */
	unsigned int moved_to;	/* by mremap, and hmmd does not know it yet: the page's number and 1 */
	unsigned int accesses;	/* by messages, under way */
	uint64_t written;	/* by one of them, sooner or later */
	struct values during;	/* what it was since the first of them began */
};

struct pane {			/* a page of the window */
	bool missing, wp, minor;
	bool present, protected, poisoned;
	bool closed;		/* by its library, because hmmd said so */
};

struct waiter {			/* a thread in a fault */
	bool waits, told;
	uint64_t addr;
	uint64_t flags;
	uint32_t tid;
};

struct event {
	bool queued, read;
	uint64_t order;			/* the kernel's queue: who told first is read first */
	uint8_t kind;
	uint64_t from, to, length;	/* REMAP; the others: from, to its end */
};

struct child {			/* an address space of its own */
	bool lives, watched;
	struct page page[PAGES_USED];
	struct values truth[PAGES_USED];
	int origin[PAGES_USED];	/* whose copy it is, or is to be; -1: not the owner's any more */
	unsigned int changing;
	struct waiter waiter;
	struct event event;
};

#define KEPT_MAX 4U
struct kept_fds {		/* by whoever started hmmd */
	char name[64];
	int fd[2];
};

struct request {
	uint32_t serial;	/* 0: free */
	bool answered;
	int error;
	struct hmm_wire_header *reply;
	int fds[LETTER_FDS];
	unsigned int nfds;
};

#define INVALIDATIONS_MAX 256U
struct told {			/* an invalidation in the driver's hands */
	uint64_t start, end, cookie;
	int64_t deadline;
	bool blockable;
};

#define REGIONS_HELD 4U
struct held_region {		/* by the library: for a successor */
	int fd;
	uint32_t mirror;
	uint64_t base;
};

struct world {
	int64_t now;
	uint64_t versions;		/* of pages, given out so far */
	uint32_t mappings;

	/* The owner's address space. */
	struct page room[ROOM_PAGES], slot[SLOT_PAGES];
	unsigned int changing;		/* callers that are changing the map: mmap_changing */
	struct waiter waiter[CPUS];
	struct event event[EVENTS];
	uint64_t events;		/* so far */
	bool handshaken, released;
	struct truth truth[PAGES_USED];
	uint32_t prepared[CPUS];	/* forks that hmmd was told of, and has not heard the end of */
	uint32_t forks;
	struct child child;
	unsigned int child_fds;		/* of its userfaultfd; and hmmd's of the owner's */
	unsigned int uffd_fds;
	struct kept_fds kept[KEPT_MAX];

	/* hmmd. */
	struct engine *engine;
	struct mailbox outbox;
	bool outbox_open;
	unsigned int kills;		/* so far */
	uint64_t generation;		/* how many hmmds there have been */
	bool killed;			/* it has stopped where it was; hmmd_kill() is to follow */
	bool stopped;			/* it said so */
	bool idle;			/* it waits for something to happen */

	/* The owner's library. */
	bool open;			/* the owner is mirrored, and its hmmd lives */
	bool leaving;			/* it is not to be started again */
	int table_fd, ledger_fd, orders_fd, pulse_fd, done_fd;
	uint64_t *table;
	const struct hmm_ledger_block *ledger;
	struct hmm_orders *orders;
	struct agent *agent;
	struct regions *regions;
	struct hmm_pulse *pulse;
	bool lost;			/* no hmmd is awaited any more: the rescuer has been called */
	struct held_region held[REGIONS_HELD];
	uint32_t owner_id, mirror_id, device_id;
	uint32_t serial;
	struct request request[ACTOR_MAX];	/* each asks for one thing at a time */

	/* The driver. */
	struct told told[INVALIDATIONS_MAX];
	unsigned int told_first, told_heard, told_end;	/* not answered, not heard, not sent yet */
	uint8_t cached[PAGES_USED];	/* what its device may do with a page: HMM_TABLE_VALID, _WRITE */

	/* The second driver. */
	struct pane pane[PAGES_USED];
	struct waiter window_waiter;
	bool window_handshaken;
	bool window_open;		/* to its driver's threads */
	bool window_ready;		/* this hmmd knows it, and lives */
	int64_t window_down_at;		/* when the last one that did ended; and any one */
	int64_t down_at;
	uint32_t window_mirror_id;

	/* This run's character. */
	bool windows;
	unsigned int kills_max;
	bool no_return;			/* the first one is the end of hmmd */
	unsigned int failing;		/* one kernel call in so many; 0: none */
	unsigned int sticky;
	bool no_move;
	bool huge;			/* the first block is one huge page to begin with */
	bool forks_unseen;		/* no EVENT_FORK: only those that the library tells of are made */
	uint64_t device_size;
};
extern struct world world;

/* ---- the kernel, as hmmd and the agent see it (kernel.c, calls.c) ------------------------------------------- */

extern const struct kernel_ops kernel_simulated;
struct page *page_at(uint64_t addr);	/* NULL: neither room nor slot */
void space_reset(void);
void space_make_huge(void);
void space_merge(void);
/* The block is one huge page, of the owner's or of a slot's. */
bool block_is_huge(uint64_t block);
void slot_populate(uint64_t start);
/* A descriptor of the owner's, for hmmd: it says what it is. */
enum role { ROLE_NONE, ROLE_UFFD, ROLE_MEM, ROLE_PAGEMAP, ROLE_MAPS, ROLE_SMAPS, ROLE_WINDOW, ROLE_CHILD };
int role_fd(enum role role);
/* Of hmmd's for somebody else; and the reverse. */
int role_dup(int fd);
int role_dup_low(int fd);
enum role fd_role(int fd);
void role_forget(int fd);
bool uffd_has_messages(void);
struct uffd_msg;
void put_fault(struct uffd_msg *message, const struct waiter *waiter);
void put_event(struct uffd_msg *message, const struct event *event);
/* Threads that wait in [@start, @end) look again. */
void wake_range(uint64_t start, uint64_t end);
/* A page's value as it lies in real memory: a slot, a shadow. */
static inline uint64_t real_value(const void *page)
{
	return *(const volatile uint64_t *)page;
}

/* The agent's calls. Return: 0 or a count, or -1 with errno. */
int agent_move(struct uffdio_move *move);
int agent_copy(struct uffdio_copy *copy);
int agent_protect(const struct uffdio_writeprotect *protect);
void space_release(void);		/* nobody has the owner's userfaultfd any more */
/* By the library, of the owner's or the child's userfaultfd. */
int rescuer_ioctl(int fd, unsigned long request, void *argument);
ssize_t rescuer_read(struct uffd_msg *messages, size_t length);
int space_register(uint64_t start, uint64_t length, uint64_t mode);
int space_unregister(uint64_t start, uint64_t length);
uint64_t space_pagemap(uint64_t addr);
void slot_discard(uint64_t start, uint64_t length);
void agent_discard(uint64_t start, uint64_t length);
ssize_t agent_read(void *buffer, size_t length, uint64_t addr);
/* The caller's event @index is told, and waited for until it is read. */
void tell_event(unsigned int index, uint8_t kind, uint64_t from, uint64_t to, uint64_t length);
bool range_is_watched(uint64_t start, uint64_t length);

/* ---- threads of the owner (cpu.c) ----------------------------------------------------------------------------- */

void cpu_body(void *data);

/* ---- descriptors ------------------------------------------------------------------------------------------ */

#define FDS_KEPT	300	/* from it on: not hmmd's */
/* Of the agent: no descriptors at all, so that nothing real is done to them. */
#define AGENT_UFFD	1000001
#define AGENT_PAGEMAP	1000002
#define AGENT_MEM	1000003

/* ---- hmmd as a process (process.c) ---------------------------------------------------------------------------- */

void process_init(void);
void hmmd_start(void);
/* It may die here. True: it does, and is not to go on. */
bool hmmd_dies(void);
void hmmd_kill(void);
/* In good order, after it said that it has stopped: what it has left then is a leak. */
void hmmd_end(void);
bool in_hmmd(void);
void hmmd_signal_uffd(void);
void hmmd_signal_window(void);
void hmmd_signal_done(void);
struct owner *hmmd_owner(void);		/* NULL: none */

/* ---- the library, and who talks to hmmd (library.c) ------------------------------------------------------------ */

void library_body(void *data);
void agent_body(void *data);
void library_reset(void);
/* A message of @size with this opcode, for ask() or tell(). */
void *message_new(uint16_t opcode, size_t size);
/* Return: its error, -EAGAIN too if hmmd died over it. *@reply: as long as nothing else is asked. */
int ask(void *message, struct hmm_wire_header **reply);
void tell(void *message);
/* The same as another peer, and with a descriptor; at any time. */
int ask_from(uint64_t peer, void *message, int fd, struct hmm_wire_header **reply);
void *shadow_page(unsigned int mirror, uint64_t addr);	/* NULL: no shadow is known */
void mover_body(void *data);

/* ---- driver and device (driver.c) --------------------------------------------------------------------------------- */

void driver_body(void *data);
void device_body(void *data);
void driver_is_sent(const struct hmm_msg_invalidate *message);
void driver_is_told(const struct hmm_msg_invalidate *message);
void driver_forgets(uint64_t start, uint64_t end);
/* What the device may do with a page at this moment: flags of a table's entry. */
uint64_t device_reach(unsigned int n);
void device_lets_go(void);

/* ---- a second driver, with a window (window.c) -------------------------------------------------------------------- */

void window_body(void *data);
void window_library_body(void *data);
void window_is_revoked(const struct hmm_msg_window_revoked *message);
int window_register(uint64_t start, uint64_t length, uint64_t mode);
int window_set_protection(uint64_t start, uint64_t length, bool on);
int window_continue(uint64_t start, uint64_t length, uint64_t mode, size_t *done);
int window_zero(uint64_t start, size_t *done);
int window_poison(uint64_t start, size_t *done);
ssize_t window_read(void *message);
void window_is_abandoned(void);
void window_let_go_on(uint64_t start, uint64_t length);
bool window_has_messages(void);
void window_is_punched(uint64_t inode, uint64_t offset, uint64_t length);
/* What its driver may do with a page at this moment, without being asked: as device_reach(). */
uint64_t window_reach(unsigned int n);

/* ---- a child, and who keeps its userfaultfd (child.c) ------------------------------------------------------------- */

/* The caller's thread forks, if it is not too late for that; it waits for hmmd where that sees it. */
void fork_child(unsigned int cpu, int64_t until);
void child_body(void *data);
void child_is_released(void);		/* nobody has its userfaultfd any more */
int child_protect(uint64_t addr, bool on);
int child_fill(uint64_t dst, const char *src, size_t length, bool poison, size_t *done);
ssize_t child_read(struct uffd_msg *message);
/* A device stores into the owner's page. */
void child_may_have(unsigned int n, uint64_t value);
void child_may_lose(void);
int kept_put(const char *name, const int *fds, unsigned int n);
int kept_drop(const char *name);
void kept_forget(void);
const char *kept_take(void *data, int *fd);

/* ---- what must hold (oracle.c) -------------------------------------------------------------------------------------- */

void oracle_reset(void);
void oracle_step(void);			/* after every step */
void oracle_idle(void);			/* hmmd waits */
void oracle_end(void);			/* hmmd has gone in good order, or all is rescued */
bool values_have(const struct values *values, uint64_t value);
void values_add(struct values *values, uint64_t value);
uint64_t new_version(void);
void cpu_loaded(unsigned int n, uint64_t value, const char *who);
void cpu_stored(unsigned int n, uint64_t value);
void device_loaded(unsigned int n, uint64_t value);
void device_stored(unsigned int n, uint64_t value);
void window_stored(unsigned int n, uint64_t value);
/* @fresh: it is another mapping's from now on; hmmd will hear of it by so many messages. */
void page_changes(unsigned int n, bool fresh, unsigned int messages);
void event_is_read(const struct event *event, const void *message);
bool page_in_transit(unsigned int n);
void page_discarded(unsigned int n);
void page_moves(unsigned int from, unsigned int to, bool covered, bool watched);
/* A device asks by a message for a page, or to write it; and has its answer. */
void access_begins(unsigned int n, uint64_t written);
void access_ends(unsigned int n);
void access_loaded(unsigned int n, uint64_t value);

#endif
