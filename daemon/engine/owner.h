/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * owner.h - the engine's nouns. An owner and everything that hangs on it
 * (blocks, mirrors, windows, orders) belongs to one worker thread, and only
 * that thread touches it; the counters alone are read by others.
 *
 * Nothing here waits. What has to wait becomes a task that is parked in the
 * block, and is run again, from the start, when the block comes to rest.
 */
#ifndef HMMD_OWNER_H
#define HMMD_OWNER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "daemon/quota.h"
#include "engine/attribute.h"
#include "engine/reactor.h"
#include "hmm_protocol.h"
#include "kernel/kernel.h"
#include "layout.h"
#include "mailbox.h"
#include "memory/pool.h"
#include "memory/shadow.h"
#include "policy/prefetch.h"

#define MIRRORS_MAX	HMM_MIRRORS_MAX
#define NS_PER_US	1000LL
#define NS_PER_MS	1000000LL

struct worker;
struct owner;
struct block;
struct copy;

/* ---- tasks -------------------------------------------------------------- */

struct task {
	TAILQ_ENTRY(task) link;
	void (*run)(struct task *task);
};
TAILQ_HEAD(task_list, task);

/* ---- bitmaps of a block's pages ------------------------------------------- */

struct pages {
	uint64_t word[HMM_BITMAP_WORDS];
};

static inline void pages_set(struct pages *pages, unsigned int i)
{
	pages->word[i / 64] |= 1ULL << (i % 64);
}

static inline void pages_clear(struct pages *pages, unsigned int i)
{
	pages->word[i / 64] &= ~(1ULL << (i % 64));
}

static inline bool pages_test(const struct pages *pages, unsigned int i)
{
	return pages->word[i / 64] >> (i % 64) & 1;
}

static inline unsigned int pages_count(const struct pages *pages)
{
	unsigned int n = 0;

	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		n += (unsigned int)__builtin_popcountll(pages->word[w]);
	return n;
}

static inline bool pages_empty(const struct pages *pages)
{
	return pages_count(pages) == 0;
}

/* The next run of set pages at or after *@first: *@first .. *@end. False: none. */
bool pages_run(const struct pages *pages, unsigned int *first, unsigned int *end);

/* ---- blocks --------------------------------------------------------------- */

/* What a transit goes on with once the drivers have answered. */
typedef void (*block_proceed)(struct block *block);

/* Of the few blocks that a card reaches. */
struct block_dma {
	struct pages reached;
	struct pages read_only;			/* ... of which it may only read these */
};

struct block {
	struct owner *owner;
	uint64_t addr;
	struct hmm_ledger_block *record;	/* in the ledger */
	struct task_list parked;		/* until the block is at rest */
	struct pages stale;			/* pages whose bytes may linger in the shadow, not complete */
	struct pages dead;			/* unmapped or discarded while the block was in transit */
	struct pages grafted;			/* pages for which others wait behind the ledger */
	struct pages armed;			/* registered with the owner's userfaultfd */
	struct pages zapping;			/* a REMOVE was read, its zap may be yet to come */
	int64_t zapping_until;
	unsigned int charged;			/* pages charged to the holder's device */
	struct mirror *charged_to;		/* the holder, while any are */
	TAILQ_ENTRY(block) use;			/* in its list, the one used longest ago first */
	uint64_t used;				/* when: the worker's count of uses */
	bool kept;				/* never to be evicted: not in the list */
	uint64_t brought;			/* by which journey; 0: none */
	uint64_t passed;			/* the pass of an eviction that has asked it */
	LIST_HEAD(, copy) copies;		/* of S pages, in other mirrors' shadows: copies.h */
	struct block_dma *dma;			/* what the holder's card reaches by itself: dma.h; NULL: nothing */
	unsigned int acks;			/* drivers' answers outstanding */
	uint32_t stopped;			/* the mirror whose device, which cannot fault, stopped for the transit */
	uint64_t stopped_for;			/* the cookie of what it was told; 0: it was told nothing */
	block_proceed proceed;
	block_proceed refused;			/* where drivers may refuse; or NULL */
	bool refusal;				/* one did */
	struct block_order *order;		/* in the agent's hands, or NULL */
	struct ask *ask;			/* in the driver's, or NULL: far.h */
	bool went_huge;				/* was one huge page of the owner: collapse it at home */
	bool touched;				/* came home page by page since it went out */
	bool remote;				/* some pages may have an entry as R */
	bool doubtful;				/* some are HMM_PAGE_DOUBTFUL */
	uint64_t armed_at;			/* owner->journal_read, when pages of it were armed last */
	bool queued;				/* in owner->settling */
	int64_t settle_at;
	TAILQ_ENTRY(block) settle;

	/* What the transit in progress does; valid while it is not at rest. */
	struct {
		struct pages want;
		unsigned int first;		/* the faulting page: before the rest; or HMM_BLOCK_PAGES */
		uint64_t fault_flags;		/* of that fault */
		bool share;			/* come home as S */
		int error;			/* why the mapping was not exchanged */
		int reason;			/* enum hmm_reason */
		struct job *job;
	} move;
};

/* ---- orders in the agent's hands -------------------------------------------- */

struct block_order {
	uint64_t cancelled_zap;		/* the block of a zap that was taken back; 0: none */
	uint32_t ring;			/* index, not wrapped */
	uint32_t kind;
	uint64_t serial;
	struct block *block;		/* NULL: RELEASE, or the block let it go */
	unsigned int slot;
	uint32_t flags;			/* HMM_ORDER_* as given */
	bool voided;			/* an event has made it stale: it is taken back before the hold goes */
	struct pages want;
	int64_t issued;
	struct sync *sync;		/* of SYNC: who asked, */
	uint64_t base;			/* the region, */
	uint32_t run[HMM_ORDER_RUNS];	/* and what of it: not as the owner may have written it */
	uint32_t runs;
};

enum slot_state { SLOT_FREE, SLOT_BUSY, SLOT_RELEASING };

/* ---- ranges the owner spoke of ------------------------------------------------- */

struct span_set {
	struct { uint64_t start, end; } *list;
	unsigned int count;
};
int span_set_add(struct span_set *set, uint64_t start, uint64_t end);
int span_set_remove(struct span_set *set, uint64_t start, uint64_t end);
bool span_set_overlaps(const struct span_set *set, uint64_t start, uint64_t end);
void span_set_deinit(struct span_set *set);

/* ---- mirrors and windows ------------------------------------------------------ */

/* A migration to a device, of one request or several that go on from each other. */
#define JOURNEYS 8U
struct journey {
	uint64_t number;		/* 0: none */
	uint64_t next;			/* where it would go on */
};

struct mirror {
	uint32_t id;			/* owner << 8 | index */
	unsigned int index;
	struct owner *owner;
	struct device *device;
	struct shadows shadows;
	uint64_t flags;			/* HMM_MIRROR_FLAGS_* */
	uint64_t flags_before;		/* it began to leave */
	uid_t uid;			/* whom it is charged to */
	bool charged;			/* ... and that it is */
	uint64_t peer;			/* the driver's connection; 0: gone */
	bool leaving;
	unsigned int migrations;	/* that go out to it, and whatever else needs it to stay */
	unsigned int awaited;		/* windows of before a restart that are not back yet */
	bool restarting;		/* its device cannot fault, stopped for another hmmd, and may go on when all is at rest */
	bool unready;			/* its driver may act on what it was told before a restart */
	bool strayed;			/* some never came: they show what is not punched */
	TAILQ_HEAD(, block) use;	/* charged blocks that may be evicted, the coldest first */
	unsigned int used_blocks;	/* in it */
	unsigned int kept_blocks;	/* charged, and not in it */
	struct journey journeys[JOURNEYS];	/* of late */
	unsigned int next_journey;
	bool blind;			/* its windows can't map a copy (before Linux 6.4) */
	TAILQ_HEAD(, copy) copies;	/* that it has of blocks which others hold, the one used longest ago first */

	/* Of a device whose memory only its driver reaches. */
	uint64_t far_pages;
	uint32_t claim;			/* of a BAR: whose its pages there are */
	bool homing;			/* of a BAR that is recalled: they are on their way home */
	int64_t homing_again;		/* ... and not again before that */
	bool ready;			/* its driver answers: nothing that it was asked before goes on */
	int64_t far_deadline;		/* a driver that is gone comes back by then, or the pages are lost; 0: not set */
	uint32_t *freed;		/* pages of the driver's memory to be given back */
	unsigned int freed_count, freed_room;

	/* Of a device that is a card behind an IOMMU: dma.h. */
	TAILQ_HEAD(, transfer) transfers;
	unsigned int n_transfers;
	enum { CARD_IS_HERE, CARD_IS_RECALLED, CARD_IS_LEFT } card;	/* its driver is told; nothing is mapped any more */
	uint64_t recalled;		/* the cookie of what it was told; 0: nobody was there */

	_Atomic uint64_t device_pages, shared_pages;
	_Atomic unsigned int windows;
};

#define WINDOW_REFUSALS 8U

struct window {
	TAILQ_ENTRY(window) link;
	uint32_t id;
	struct mirror *mirror;
	uint64_t peer;			/* 0: its driver lost its connection, and may use it still (keep.c) */
	pid_t driver;
	int64_t keep_until;
	struct letter *farewell;	/* to control, which charges for it */
	int uffd;
	struct source source;
	uint64_t start, end;		/* the owner's addresses */
	uint64_t at;			/* where they begin in the driver */
	bool armed;
	struct prefetch prefetch;	/* the walks of its touches */
	bool revoked;			/* the driver was late: what it asks for is poisoned */
	int untold;			/* ... which there was no memory to tell it: the error; 0: it was told */
	struct touch *touches;		/* that are being served (touch.c): one for each page */
	uint64_t refused[WINDOW_REFUSALS];	/* pages refused lately, to be poisoned if asked for again */
	unsigned int refusals;
	struct span_set closed;		/* poisoned, as far as it is remembered */
	bool *guarded;			/* per block: hmmd decides on every page that is not mapped */
};
TAILQ_HEAD(window_list, window);

/* ---- counters ------------------------------------------------------------------- */

enum counter {
	COUNTER_FAULTS,			/* messages of the owner's userfaultfd about pages */
	COUNTER_FAULT_PAGES_HOME,	/* pages that faults brought home */
	COUNTER_WRITE_FAULTS,		/* writes to S pages */
	COUNTER_HOLE_FAULTS,		/* first touches of armed memory */
	COUNTER_RETRIES,		/* faults put off because the map was changing */
	COUNTER_EVENTS,
	COUNTER_FORKS,
	COUNTER_PAGES_TO_DEVICE,
	COUNTER_PAGES_HOME,
	COUNTER_HUGE_TO_DEVICE,		/* blocks that left as one huge page */
	COUNTER_HUGE_HOME,		/* blocks that came back as one */
	COUNTER_ORDERS,
	COUNTER_ORDERS_CANCELLED,
	COUNTER_WINDOW_FAULTS,
	COUNTER_COPIES_MADE,		/* S pages that another mirror reads, too */
	COUNTER_COPIES_DROPPED,
	COUNTER_INVALIDATIONS,
	COUNTER_LATE_DRIVERS,		/* acknowledgements that came too late */
	COUNTER_REVOKED_WINDOWS,
	COUNTER_PINS_BROKEN,		/* pinned pages that the CPU (or who asked for them) took */
	COUNTER_ERRORS,			/* pages lost: state E */
	COUNTER_RANGE_LOOKS,		/* messages that asked for pages of ranges */
	COUNTER_EVICTIONS,		/* blocks that came home to make room */
	COUNTER_PAGES_EVICTED,		/* their pages */
	COUNTER_EVICTIONS_REFUSED,	/* by a driver that did not want to wait for its device */
	COUNTER_UNREACHABLE,		/* what devices that cannot fault asked for and may not have */
	COUNTER_QUIESCES,		/* changes for which they were stopped */
	COUNTER_TRACK_FAULTS,		/* first writes to tracked pages that hmmd had to let through */
	COUNTER_TRACK_WRITTEN,		/* pages told to have been written */
	COUNTER_TRACK_PRESUMED,		/* of these, what nobody saw being written */
	COUNTER_SYNC_COPIED,		/* pages copied for tracked mirrors */
	COUNTER_SYNC_ZEROED,		/* pages that became holes of their copies */
	COUNTER_DMA_PAGES,		/* pages that went into a card's IOMMU */
	COUNTER_DMA_CUTS,		/* blocks that were taken out of it for a change */
	COUNTER_MAX
};
extern const char *const counter_names[COUNTER_MAX];

/* ---- the owner ------------------------------------------------------------------- */

#define SPAN_BLOCKS HMM_REGION_BLOCKS

struct block_span {			/* the blocks of one region */
	uint64_t base;
	unsigned int used;
	struct block *block[SPAN_BLOCKS];
};

struct owner {
	TAILQ_ENTRY(owner) link;	/* worker->owners */
	TAILQ_ENTRY(owner) registry;	/* engine's, under its lock */
	struct worker *worker;
	uint32_t id;
	uint64_t peer;			/* 0: its connection is gone */
	uid_t uid;
	pid_t pid;
	char name[64];

	int uffd, mem, pagemap, maps, smaps, pidfd;
	uint64_t features;		/* HMM_FEATURE_* that this owner has */
	uint64_t open_flags;
	int policy;			/* MPOL_*: of its own thread; the mappings' the kernel knows */
	uint64_t policy_nodes;
	struct source source, done;	/* the userfaultfd; the agent's eventfd */

	int table_fd, ledger_fd, orders_fd, pulse_fd;
	uint64_t *table;		/* entries, then sequence words */
	struct hmm_ledger_block *ledger;
	struct hmm_journal *journal;
	struct hmm_orders *orders;
	struct hmm_pulse *pulse;
	uint64_t journal_read;		/* messages read so far */
	uint64_t journal_taken;		/* at a take-over: what lay before was read by another hmmd */
	uint64_t journal_zeroed;	/* slots below it are zero, unless read into */

	struct block_span **spans;
	unsigned int span_count;
	struct block_span *last_span;

	struct mirror *mirror[MIRRORS_MAX];
	struct window_list windows;
	uint32_t next_window;
	TAILQ_HEAD(, listener) listeners;	/* who wants notices */
	uint32_t next_listener;

	struct block_order order[HMM_ORDERS_RING];
	uint32_t produced, reaped;	/* ring indices */
	uint64_t next_serial, next_epoch;
	enum slot_state slot[HMM_SLOTS_MAX];
	unsigned int slots;
	uint64_t slots_addr;
	struct task_list slot_waiters;
	struct task_list fork_waiters;	/* that a fork is over: fork.c */
	LIST_HEAD(, fork_hold) forks;	/* that are under way */
	unsigned int fork_holds;
	int64_t fork_until;
	struct task_list runnable;	/* what goes on at the next safe point: owner_run() */
	bool running;

	TAILQ_HEAD(, hold) holds;	/* ranges whose drivers want to hear of changes */
	unsigned int n_holds;
	bool unheld;			/* there are ranges that could not be noted there: told of whatever goes */

	TAILQ_HEAD(, ack) acks;
	uint32_t next_cookie;
	TAILQ_HEAD(, ask) asks;
	uint64_t next_ask;		/* never the same twice, not even over a restart */

	bool restarting;		/* one of its mirrors is, perhaps: looked at when a transit ends */
	uint64_t moves;			/* by mremap, that hmmd knows of */
	unsigned int grafts;		/* pages that wait behind the ledger: graft.h */
	uint32_t graft_free;		/* no free place is before this one */
	struct task_list retry;		/* the map was changing */
	TAILQ_HEAD(, block) settling;
	LIST_HEAD(, protection) protections;	/* under way */
	struct span_set excluded;
	struct attribute_map attributes;
	uint64_t pinned, pinned_said;	/* bytes that are charged as such; what of it was said to be, as of the last tick */
	bool over_quota;		/* its user is, and the log has been told */
	struct pinning_list pinnings;
	int64_t broken_told;		/* when the log was told of broken pins last */
	TAILQ_HEAD(, migration) outgoing;	/* migrations to devices that run */
	TAILQ_HEAD(, room_wait) room_waiters;	/* what waits for room on a device */
	uint32_t next_journey;
	struct tracker *tracker;	/* of what it writes; NULL: nobody asks. tracking/ */
	uint32_t next_track;
	int64_t tracker_asked;		/* when its library was asked for a userfaultfd */
	int untrackable;		/* it has none to give: an error */
	struct span_set threads;	/* stacks and control blocks, as found last */
	int64_t threads_found;
	struct prefetch prefetch;
	uint64_t walk_end;		/* behind the last block that comes home whole, for a walk */

	int64_t last_fault;		/* when one was served */
	bool near_limit;		/* of its memory cgroup, as it was found last */
	int64_t limit_due;		/* when that is looked for again, */
	uint64_t limit_pages;		/* or when so many more have moved */
	unsigned int jobs;		/* migrations that run, and whatever else needs the owner to stay */
	bool agent_stuck;		/* it did not get on with its last order: do without it */
	bool deferred_read;		/* the userfaultfd is to be read, but the agent commits, or there was no room for a child */
	bool recovering;		/* between REOPEN and the end of settling, or of waiting for windows */
	bool settled;			/* ... and only windows are waited for */
	uint64_t pages_settled;
	int64_t windows_deadline;	/* not longer than this */
	struct letter *reopen_done;	/* to answer when that is over */
	bool closing;			/* everything comes home, then the owner goes */
	bool gone;			/* its mm is */
	bool unsettled;			/* some block could not be, for lack of memory: what it has nobody knows yet */
	bool abandoned;			/* not ours to touch: it goes on with its library, or a successor */
	bool close_after;		/* ... as soon as it is settled */
	struct letter *farewell;	/* to control, which charges for it and knows who may reach it; made in time */
	int64_t orphan_since;		/* its connection is gone since then; 0: it is not */
	_Atomic uint64_t counter[COUNTER_MAX];
	_Atomic uint64_t registered_bytes;
};

/* owner.c */
void owner_open(struct worker *worker, struct letter *letter);
/* A request about this owner; it is answered now or later. */
void owner_request(struct owner *owner, struct letter *letter);
void owner_peer_gone(struct owner *owner, uint64_t peer);
struct owner *owner_by_id(struct worker *worker, uint32_t id);
void owner_count(struct owner *owner, enum counter counter, uint64_t n);
/*
 * A task goes on at the next safe point. Never at once: while events are being
 * applied a new order would be taken for one that they made stale.
 */
static inline void owner_queue(struct owner *owner, struct task *task)
{
	TAILQ_INSERT_TAIL(&owner->runnable, task, link);
}
/* The safe point: the worker calls it when it is between things. */
void owner_run(struct owner *owner);
/* Everything comes home, then it is forgotten; at once if its mm is gone. */
void owner_close(struct owner *owner);
/* The mm is gone: nothing can be saved and nobody will ask. */
void owner_gone(struct owner *owner);
/* Frees an owner whose pages are all home (or whose mm is gone). */
void owner_free(struct owner *owner);
/* Periodic: is an owner without connection gone, is closing done? Sets the worker's alarm. */
/* Of a tick what the agent, drivers and unread events have begun, and nothing new. */
void owner_get_on(struct owner *owner, int64_t now);
void owner_tick(struct owner *owner, int64_t now);
/* Shared with recover.c. */
struct owner *owner_new(struct worker *worker, struct letter *letter);
int owner_handshake(struct owner *owner, uint64_t open_flags);
int owner_map_shared(struct owner *owner);
void owner_open_attributes(struct owner *owner);	/* of a ledger that is ours */
int owner_watch(struct owner *owner);
/* From the journal. */
void owner_take_policy(struct owner *owner);
/* What the kernel allocates for this owner in hmmd's name is placed as the owner's own would be; then as hmmd's again. */
void owner_policy(struct owner *owner, bool follow);
/* How long a program without hmmd may wait before it helps itself: the longest that it, or another that has the mirror, was told. */
int64_t owner_grace_ns(const struct owner *owner);
void owner_note_grace(struct owner *owner);	/* this hmmd's, in the journal */
int owner_read_only(int fd);	/* another descriptor of it, which can't write; or -errno */
int owner_check_proc(const struct owner *owner);
bool owner_is_userfaultfd(int fd);
bool owner_mm_is_gone(struct owner *owner);
bool process_is_alive(pid_t pid);		/* in doubt it is */
bool process_is_stopped(pid_t pid);		/* by a signal, or a tracer; in doubt it is not */

/* block.c */
struct block *block_find(struct owner *owner, uint64_t addr);
struct block *block_get(struct owner *owner, uint64_t addr);	/* NULL: out of memory */
void block_free(struct block *block);		/* the object only: the ledger keeps its record */
void block_forget(struct block *block);		/* at rest, all I, nothing charged, not armed */
typedef void (*block_fn)(struct block *block, void *data);
/* Every block that overlaps [start, end), in order; fn may forget the block it is given. */
void block_for_each(struct owner *owner, uint64_t start, uint64_t end, block_fn fn, void *data);
/* The first block at or after @addr and before @end, or NULL. */
struct block *block_next(struct owner *owner, uint64_t addr, uint64_t end);
void block_park(struct block *block, struct task *task);

static inline unsigned int page_index(uint64_t addr)
{
	return (unsigned int)(addr >> HMM_PAGE_SHIFT) % HMM_BLOCK_PAGES;
}

static inline uint64_t page_addr(const struct block *block, unsigned int i)
{
	return block->addr + ((uint64_t)i << HMM_PAGE_SHIFT);
}

static inline enum hmm_page_state page_state(const struct block *block, unsigned int i)
{
	return (enum hmm_page_state)(block->record->page[i] & HMM_PAGE_STATE_MASK);
}

/* D, in memory that only the driver reaches. */
static inline bool page_is_far(const struct block *block, unsigned int i)
{
	return block->record->page[i] & HMM_PAGE_FAR;
}

static inline bool block_at_rest(const struct block *block)
{
	return block->record->transit == HMM_TRANSIT_REST;
}

/* The transit that the block is in is about this very page. */
static inline bool page_is_pending(const struct block *block, unsigned int i)
{
	return !block_at_rest(block) && block->record->pending[i / 64] >> (i % 64) & 1;
}

struct mirror *block_mirror(const struct block *block);
struct shadow *block_shadow(const struct block *block);
/* State of pages [first, end): ledger, table entry and the mirror's counts together. */
void block_set_state(struct block *block, unsigned int first, unsigned int end,
		     enum hmm_page_state state);
/* Page @i lies in this page of the driver's memory, and nowhere else. */
void block_set_far(struct block *block, unsigned int i, uint32_t number);
uint32_t block_far_number(const struct block *block, unsigned int i);
/* It goes by another address now, with its number: here it is I. */
void block_forget_far(struct block *block, unsigned int i);
/* Fills @pages with those that are far. Return: how many. */
unsigned int block_far_pages(const struct block *block, struct pages *pages);
/* Fills @pages with those in @state within [first, end). Return: how many. */
unsigned int block_pages_in(const struct block *block, enum hmm_page_state state, unsigned int first,
			    unsigned int end, struct pages *pages);
unsigned int block_count(const struct block *block, enum hmm_page_state state);
bool block_is_coherent(const struct block *block);	/* every page of it */
/* Entries of these pages out of the table. */
void block_hide(struct block *block, const struct pages *pages);
/* A page that is I gets an entry as R: the device reaches it, and is told when it goes. */
void block_set_remote(struct block *block, unsigned int i, bool write);
bool block_is_remote(const struct block *block, unsigned int i);
/* Its entry as R allows what the mapping does not any more. */
bool block_remote_exceeds(const struct block *block, unsigned int i, bool read, bool write);
/*
 * R entries of these pages (NULL: all) go, though nothing has changed: nobody will hear of changes. Drivers are told
 * where a range still holds the block. At rest.
 */
void block_drop_remote(struct block *block, const struct pages *pages);
/* arm.c */
/*
 * Around whatever splits the owner's mappings, or joins them. False: its library is moving one; later. (A move of what is
 * several mappings by then would stop half way.)
 */
bool split_begin(struct owner *owner);
void split_end(struct owner *owner);
/* Whether the owner's map is changing, or has changed unread: COPY and its like are refused then. */
bool map_is_changing(struct owner *owner);
/* Mapping by mapping where it has to be; @prove: what another userfaultfd watches stays that one's, whatever the kernel checks. */
void unregister_run(struct owner *owner, int uffd, uint64_t at, uint64_t stop, bool prove);
void register_again(struct owner *owner, uint64_t at, uint64_t stop);	/* as it was, or for more */
/* Registers what of the block a mapping [start, end) covers; 0 or -errno. */
int block_arm(struct block *block, uint64_t start, uint64_t end);
/* Events about [start, end), in one block, are heard from now on; or -errno: the kernel can't. */
int block_watch(struct owner *owner, uint64_t start, uint64_t end);
void block_note_armed(struct block *block, unsigned int first, unsigned int end);
void block_note_unmapped(struct block *block, unsigned int first, unsigned int end);
/* Nothing of it is registered: its mapping has been exchanged. */
void block_note_disarmed(struct block *block);
bool block_disarm_excluded(struct block *block);	/* pages that are to be left alone; false: later */
bool block_disarm(struct block *block);		/* false: the map is changing; later */
bool block_holds_pages(const struct block *block);	/* in the shadow */
/* Gives back what is charged for more than the shadow of a 4K pool holds. */
void block_recharge(struct block *block);
/* Frees shadow pages that are not complete. All of it when none is. */
bool block_punch_stale(struct block *block);	/* false: something could not be freed */
/* The same of pages that the owner gave up: while others of the block go out only these may be punched. */
void block_punch_void(struct block *block, const struct pages *pages);
/* Page @i of a block in transit: whatever is being done to it counts no more. */
void block_bury(struct block *block, unsigned int i);
/* The pages of [start, end) are gone at the CPU: unmapped, discarded, moved away. */
void block_discard(struct block *block, unsigned int first, unsigned int end, int reason);
bool block_has_window(const struct block *block);	/* one that serves */
bool block_in_window(const struct block *block);	/* or is about to */
/* A REMOVE of these pages was read; which of them were zapped since? */
void block_expect_zap(struct block *block, unsigned int first, unsigned int end);
void block_look_for_zap(struct block *block);
/* Will be looked at when it has been quiet for a while. */
void block_settle_later(struct block *block);
void block_settle(struct block *block);
bool block_device_reads(const struct block *block);	/* so that a copy on the device is worth keeping */
/* Its mirror goes and none of its pages are out: what lingers in the shadow goes with that. */
void block_forget_mirror(struct block *block);
/* Coherent memory stays the owner's, bytes and all; hmmd has no part in it any more. */
void block_let_go_coherent(struct block *block);

/* charge.c */
/*
 * Whether its memory cgroup has so little room that the kernel might kill it for what is in two places while @pages more
 * of it move. Looked at every 20 ms or 16 MiB, and less often where there is a gigabyte and more.
 */
bool owner_near_limit(struct owner *owner, unsigned int pages);
/* Room for so many more of its pages on its mirror's @device, or -ENOSPC. It counts as a use. */
int block_charge(struct block *block, struct device *device, unsigned int pages);	/* -ENOSPC: the device is full; -EDQUOT */
/* The pages are there already, whether or not its device has room: nothing else gets any until it has. */
void block_overcharge(struct block *block, unsigned int pages);
void block_uncharge(struct block *block, unsigned int pages);
void block_touch(struct block *block);		/* its device uses it */
void block_cool(struct block *block);		/* as if it had not been used for longest */
/* It is never evicted, until it is cooled. @promise: on whose account it is pinned; NULL: nobody was asked. */
void block_keep(struct block *block, uint64_t *promise);
/* Of a mirror's device, on account of the owner's user. -EDQUOT is logged; -ENOSPC: the device is full. */
int mirror_charge(struct mirror *mirror, uint64_t bytes);
void mirror_overcharge(struct mirror *mirror, uint64_t bytes);
void mirror_uncharge(struct mirror *mirror, uint64_t bytes);
/* Whether the owner's user may have so much more: 0, or the letter says why not. Nothing is charged. */
int owner_ask_quota(struct owner *owner, struct letter *letter, enum quota_kind kind, uint64_t bytes);
/*
 * So much of what is to be pinned for a request is charged to the owner's user, before any of it is: two requests have no more together than
 * one after the other. What of it has been pinned leaves the promise; the rest is given back. -EDQUOT, -ENOMEM: the letter says why.
 */
int owner_promise_pins(struct owner *owner, struct letter *letter, uint64_t bytes, uint64_t *promise);
void owner_break_promise(struct owner *owner, uint64_t *promise);
/* What is said to be pinned may have changed. @promise: by whose request; NULL: whoever's. */
void owner_count_pins(struct owner *owner, uint64_t *promise);
void owner_release_pins(struct owner *owner);

/* transition.c */
const char *transit_name(uint32_t transit);
struct transit_rule {
	const char *name;
	const char *owner_has;		/* after a crash, when the owner has the page */
	const char *owner_has_not;
	uint32_t from;			/* states a page may be in when it begins: 1 << state */
	uint32_t to;			/* and when it ends */
};
extern const struct transit_rule transit_rules[HMM_TRANSIT_MAX];
/*
 * Begins a transit of @pages: stored in the ledger, sequence number odd,
 * entries out, drivers told. @proceed runs when all have answered: at once,
 * or later; until transit_end() the block is busy.
 */
void transit_begin(struct block *block, enum hmm_transit transit, const struct pages *pages,
		   int reason, block_proceed proceed);
/*
 * The same, but drivers are asked and may refuse (blockable is false). Then
 * everything is as it was, and @refused runs in place of @proceed.
 */
void transit_ask(struct block *block, enum hmm_transit transit, const struct pages *pages, int reason,
		 block_proceed proceed, block_proceed refused);
/* All have answered. */
void transit_proceed(struct block *block);
/* A driver has answered, by a refusal or not. The last answer decides. */
void transit_answered(struct block *block, bool refusal);
/* Ends it with pages as they were when it began, but for those that were lost meanwhile. */
void transit_restore(struct block *block);
/* Sequence number even, at rest, what was parked goes on at the next safe point. */
void transit_end(struct block *block);
/* Entries of pages that stay what they are go: whoever relied on them looks again. At rest. */
void transit_withdraw(struct block *block, const struct pages *pages);
/* The number that entries of this block belong to. */
uint64_t block_sequence(const struct owner *owner, uint64_t addr);
/* Something changed that no living driver has an entry of: no reader may miss it. */
void transit_note(struct block *block);
/*
 * Something there is written behind the mapping's back: the library is to ask about an mprotect() from now on. True: it
 * was not so before.
 */
bool transit_note_written(struct owner *owner, uint64_t addr);

/* invalidate.c */
/* Tells the mirrors' drivers. Return: answers that the block waits for (@wait), or 0. */
unsigned int invalidate_send(struct block *block, uint64_t start, uint64_t end, int reason, bool wait);
/* The block's transit has ended: the device that stopped for it may go on. */
void invalidate_settled(struct block *block);
/* Devices that stopped for what was before this hmmd, or this connection, may go on where nothing changes. */
void invalidate_restart(struct owner *owner);
void invalidate_ack(struct owner *owner, uint64_t cookie, int status);
/* Whether a block waits for that answer, to have far pages brought into its shadow. */
bool invalidate_is_of_fetch(const struct owner *owner, uint64_t cookie);
void invalidate_expire(struct owner *owner, int64_t now);	/* drivers that are late lose their windows */
void invalidate_peer_gone(struct owner *owner, uint64_t peer);
void invalidate_answer_all(struct owner *owner);
void invalidate_deinit(struct owner *owner);
int64_t invalidate_deadline(const struct owner *owner);		/* INT64_MAX: none */
/* Tells a mirror's driver of all addresses, whatever it has there. The cookie of its answer, 0: there is nobody to tell. */
uint64_t invalidate_all(struct mirror *mirror, int reason);
/* It has yet to answer, and is not too late. */
bool invalidate_is_awaited(const struct owner *owner, uint64_t cookie);
/* What it was told of is over. */
void invalidate_all_over(struct mirror *mirror, uint64_t cookie);

/* far.c: memory that only the driver reaches */
/*
 * The one step before anybody looks for bytes in the shadow: those of @pages that are far are
 * asked from the driver, @first before the others (HMM_BLOCK_PAGES: any). True: that is under
 * way, and @task is run when they are there, or lost. The block must be at rest. Without
 * @task the caller looks again by itself, soon if the block is at rest still.
 */
bool far_fetch(struct block *block, const struct pages *pages, unsigned int first, uint64_t fault_flags,
	       int reason, struct task *task);
/* Pages that came into the shadow go on to the driver; then the job. The block must be at rest. */
void far_store(struct block *block, const struct pages *pages, struct job *job);
/* What lies in the shadow of such a device goes home, then @job, or NULL, on. True: under way. */
bool far_settle(struct block *block, struct job *job);
/* It becomes E: poisoned at the CPU, and counted. */
void far_lose(struct block *block, unsigned int i);
/* Lost pages stay poisoned, and hmmd has no part in them any more. False: the map is changing; later. */
bool far_let_go_lost(struct block *block);
/* The ledger is settled: what nobody has any more is lost. */
void far_recover(struct owner *owner);
void far_abandon(struct owner *owner);		/* the owner's mm is gone */
void far_deinit(struct owner *owner);

/* far_driver.c: the drivers of such memory */
/* Nobody needs this page of the driver's memory any more; it is told by far_flush(). */
void far_release(struct mirror *mirror, uint32_t number);
void far_flush(struct mirror *mirror);
void far_flush_all(struct owner *owner);
/* Whether the peer of @letter may have a mirror on @device, or why not. */
int far_check_driver(const struct owner *owner, const struct device *device, struct letter *letter);
void far_request(struct owner *owner, struct letter *letter);	/* DEVMEM_READY, _STORED, _FETCHED */
void far_peer_gone(struct mirror *mirror);
/* Asks again for what could not be had; finds drivers that do not come back. */
void far_tick(struct owner *owner, int64_t now);

/* order.c */
struct block_order *order_issue(struct owner *owner, uint32_t kind, struct block *block,
				unsigned int slot, const struct pages *want, uint32_t flags);
/* SYNC: so many @runs of the region at @base go from the owner into the mirror's shadow. */
struct sync;
void order_issue_sync(struct owner *owner, struct sync *sync, const struct mirror *mirror,
		      const struct shadow *shadow, const uint32_t *run, uint32_t runs);
/* Takes it back if the agent has not begun to change anything. */
bool order_cancel(struct owner *owner, struct block_order *order);
/* What the agent has not begun of this sync; NULL: all that can be taken back of any. */
void order_cancel_syncs(struct owner *owner, const struct sync *sync);
void order_reap(struct owner *owner);
/* The same, but for those whose own events are among what is about to be applied. */
void order_reap_before_events(struct owner *owner);
/* Raises the hold: true when no order can be inside its critical call. */
bool order_hold(struct owner *owner);
/* Of a dead hmmd's: whether one is in its critical call that does not wait for an event to be read. */
bool order_commits(const struct owner *owner);
/* The agent looks for orders, if it sleeps. */
void order_ring(struct owner *owner);
/* False: not yet, for an order that an event has made stale may still come to its critical call. */
bool order_release_hold(struct owner *owner);
/* Whether the ring has room for an order that needs no slot. */
bool order_has_room(const struct owner *owner);
int slot_take(struct owner *owner);		/* -EAGAIN: none is free */
void slot_release(struct owner *owner, unsigned int slot);
void slot_put(struct owner *owner, unsigned int slot);	/* nothing was put into it */
uint64_t slot_addr(const struct owner *owner, unsigned int slot);
struct hmm_order *order_shared(struct owner *owner, const struct block_order *order);
bool owner_agent_idle(const struct owner *owner);
/* The agent will never answer again: everything in its hands counts as cancelled. */
void order_abandon(struct owner *owner);
/* The owner is stopped, and its agent in the middle of the block's order, which cannot be taken back there. */
bool order_is_held_up(const struct block *block);
/* Work that the agent has sat on for long while somebody waits: taken back, or done without it. */
void order_unstick(struct owner *owner, int64_t now);

/* event.c, journal.c */
void event_read(struct owner *owner);
/* After a restart: what was read and not applied; and reading without applying yet. */
void journal_take_over(struct owner *owner);
void journal_replay(struct owner *owner);
void journal_read_only(struct owner *owner);
/* A fork is being applied: into the journal, behind it, with what the owner's threads were changing when it was made. They are applied in their turn. */
void event_read_on(struct owner *owner);
/* Of a position below owner->journal_read, and of the batch that is being applied. */
const struct uffd_msg *journal_message(struct owner *owner, uint64_t position);

/* fault.c */
/*
 * While ksmd runs nothing becomes S: it merges protected pages, drops the
 * protection, and a write would go unseen.
 */
bool owner_may_share(struct owner *owner);
void fault_serve(struct owner *owner, uint64_t addr, uint64_t flags, uint32_t tid);
/* The address that a parked task waits for, if it is a fault. */
bool fault_task_addr(const struct task *task, uint64_t *addr);
void fault_later(struct owner *owner, uint64_t addr, uint64_t flags);
void fault_retry(struct owner *owner);
void fault_wake(struct owner *owner, uint64_t addr, uint64_t length);
/* Whether pages may become S at present. */
bool fault_may_share(struct owner *owner);

/* home.c: pages on their way back */
/*
 * Begins to bring @pages (all D) home by COPY; @first is served first. @share:
 * come home as S. The block must be at rest.
 */
void home_begin(struct block *block, const struct pages *pages, unsigned int first, bool share,
		int reason, uint64_t fault_flags, struct job *job);
/* S pages become I. The block must be at rest; it may be forgotten when this returns. */
void unshare_begin(struct block *block, const struct pages *pages, int reason, struct job *job);
/* The agent finished (or refused) an order of this kind. */
void home_slot_done(struct block *block, struct block_order *order, struct hmm_order *shared);
/* The bytes of a page wherever they are (shadow or slot), or NULL. @bounce is a page. */
const void *page_bytes(struct block *block, unsigned int i, void *bounce);

/* migrate.c */
struct migration;
/* Whether the block can come home as the one huge page that it was. */
bool migrate_can_slot(const struct block *block);
void migrate_request(struct owner *owner, struct letter *letter);
typedef void (*migrate_done)(struct owner *owner, void *data, uint64_t pages);
/* All that is out, of this device (NULL: any); a block whose order is held up stays for now. 0 or -ENOMEM. */
int migrate_drain(struct owner *owner, const struct device *device, migrate_done done, void *data);
/* [start, end) of this owner home (device: of that device only, or NULL); then done(data, pages that came). */
void migrate_home(struct owner *owner, uint64_t start, uint64_t end, const struct device *device,
		  migrate_done done, void *data);
/* What this mirror has, but for what is pinned on it when its turn comes. The mirror stays meanwhile. */
void migrate_home_unless_pinned(struct mirror *mirror, uint64_t start, uint64_t end, migrate_done done,
				void *data);
/* The same of everything, because the owner forks. */
void migrate_home_for_fork(struct owner *owner, migrate_done done, void *data);
/*
 * The block leaves this device, to make room, unless it is used before it comes to that.
 * @cheap: where no driver would have to wait. Or -ENOMEM, and done() is not called.
 */
int migrate_evict(struct block *block, const struct device *device, bool cheap, migrate_done done, void *data);
/* The same for copies of a block that another mirror holds and keeps. */
int migrate_return(const struct copy *copy, bool cheap, migrate_done done, void *data);
/* Whether that journey's migration is still running. */
bool migrate_is_under_way(const struct owner *owner, uint64_t journey);
/* The page is on its way to the mirror's device, or will be. */
bool migrate_is_sent(const struct mirror *mirror, uint64_t addr);
void migrate_out_done(struct block *block, struct block_order *order, struct hmm_order *shared);
void job_block_done(struct job *job, int result);
/* A job, or NULL, has brought these pages home: it does not do so twice. */
void job_came(struct job *job, const struct block *block, const struct pages *pages);
bool job_is_cheap(const struct job *job);
void job_refused(struct block *block);		/* a driver would have to wait */
/* A window touched @addr: the pages of @span go to the device, then @task runs. */
void migrate_for_window(struct mirror *mirror, uint64_t addr, struct prefetch_span span,
			struct task *task, uint8_t *result);
/* [start, end) to the device; @results: a byte per page, the caller's. Then done(data). 0 or -ENOMEM. */
int migrate_to(struct mirror *mirror, uint64_t start, uint64_t end, bool populate, uint8_t *results,
	       uint64_t journey, migrate_done done, void *data);
/* For migrations that go on from each other: what one has brought is no room for the next. */
uint64_t migrate_new_journey(struct owner *owner);
/* What is D in [start, end) comes home and stays on the device, as S. */
int migrate_copies(struct mirror *mirror, uint64_t start, uint64_t end, migrate_done done, void *data);
/* What a page's result is as an error number. */
int page_result_error(uint8_t result);

/* window.c */
void window_request(struct owner *owner, struct letter *letter);	/* WINDOW_MAP, _ARMED, _UNMAP */
/* Not while anything is out that they may show: of @mirror, or all with NULL. */
void window_close_all(struct owner *owner, struct mirror *mirror);
/* Whoever sleeps at one of this mirror asks again. */
void window_wake_all(struct owner *owner, struct mirror *mirror);
/* keep.c: what a driver that lives may use still stays */
void window_peer_gone(struct owner *owner, uint64_t peer);
void window_tick(struct owner *owner, int64_t now);
/* Where the owner's address is in the driver. */
static inline uint64_t driver_addr(const struct window *window, uint64_t addr)
{
	return window->at + (addr - window->start);
}

/* From now on no window maps a page of this block that it has not mapped, unless hmmd does it. */
void window_guard(struct block *block);
/* Freezes writes to these pages in every window: guards and write-protects. 0 or -errno. */
int window_protect(struct block *block, unsigned int first, unsigned int end, bool protect);
/* The same in the windows of a mirror that does not hold the block. */
int window_protect_for(struct block *block, const struct mirror *mirror, unsigned int first,
		       unsigned int end, bool protect);
/* Whoever waits for these pages in a window asks again. */
void window_wake(struct block *block, unsigned int first, unsigned int end);
/* touch.c: what their drivers touch */
/*
 * Pages have come to the block's holder: whoever of its windows waits for one gets
 * it now. What is parked in the block may be about to take it away again.
 */
void window_arrived(struct block *block);

/* closure.c: what a window may not show */
/*
 * Whether the owner's mapping allows what it did not when it was looked at. Whoever allows it after this look tells of it: what is closed for
 * that reason, without another task in between, is opened again.
 */
bool window_may_show_by_now(const struct window *window, uint64_t page);
/* The page can't be had, for this error: the driver gets SIGBUS there. */
void window_close_page(struct window *window, uint64_t addr, int error);
/* A driver that did not answer: everything it maps of the range is taken away. */
void window_revoke(struct owner *owner, uint64_t peer, uint64_t start, uint64_t end, int error);
/* This one, all of it. */
void window_revoke_one(struct window *window, int error);
/* Of one that is untold: again. */
void window_tell_revoked(struct window *window);
/* Every driver's. */
void window_revoke_range(struct owner *owner, uint64_t start, uint64_t end, int error);
/* What was refused there may be had by now: it is asked for and judged anew. */
void window_reopen(struct owner *owner, uint64_t start, uint64_t end);

/* exclude.c */
void exclude_request(struct owner *owner, struct letter *letter);
void exclude_restate(struct owner *owner, struct letter *letter);	/* while it is recovered */

/* reach.c: what a device that cannot fault may have */
/* The mirror's device may have page @i; one that can fault may have any. At rest, or before a transit has changed it. */
bool reach_page(const struct mirror *mirror, const struct block *block, unsigned int i);
/* The same, if reading will do. */
bool reach_page_to_read(const struct mirror *mirror, const struct block *block, unsigned int i);
/* Whether the mirror's device may have any page of [start, end), in one block: what happens there concerns it. */
bool reach_any(const struct mirror *mirror, const struct block *block, uint64_t start, uint64_t end);
/* What of [start, end) it may have no longer, since no pin keeps it there, comes home; then done(data). */
void reach_leave(struct mirror *mirror, uint64_t start, uint64_t end, migrate_done done, void *data);
/* The indices of mirrors whose devices cannot fault and that have pins in [start, end): a bit each. */
uint32_t reach_pinned(const struct owner *owner, uint64_t start, uint64_t end);

/* exclusive.c: pages that a device has to itself */
bool exclusive_page(const struct block *block, unsigned int i);
bool exclusive_any(const struct block *block);
/* The page goes home, alone and never as S. @first: as in home_begin(). The block must be at rest. */
void exclusive_take_back(struct block *block, unsigned int i, unsigned int first, uint64_t fault_flags);
void exclusive_end(struct owner *owner, struct letter *letter);
/* Its driver is gone. */
void exclusive_forget(struct mirror *mirror);

/* access.c */
void access_request(struct owner *owner, struct letter *letter);	/* DEVICE_READ, _WRITE, ALLOC, FREE */

/* In place, at the CPU: bytes done, or -errno. -EAGAIN: the map is changing. @addr to @addr + @n is in one page. */
ssize_t access_in_place(struct owner *owner, const struct block *block, uint64_t addr, void *buffer,
			size_t n, bool write);

/* range.c */
void range_request(struct owner *owner, struct letter *letter);	/* RANGE_FAULT, _RELEASE */
/* Entries of this block as R are worth keeping: a range with it was looked at and not released. */
bool range_holds(const struct block *block);
bool range_is_told(const struct block *block);	/* that its entries go: it is held, or may be */
void range_peer_gone(struct owner *owner, uint64_t peer);
void range_mirror_gone(struct mirror *mirror);
void range_deinit(struct owner *owner);

/* mirror.c */
void mirror_request(struct owner *owner, struct letter *letter);	/* MIRROR_REGISTER, _UNREGISTER */
/* @letter: asks for it, and whose uid is charged; NULL: it was there before a restart. NULL: no memory, or the letter says why. */
struct mirror *mirror_new(struct owner *owner, unsigned int index, struct device *device, struct letter *letter);
/* Its device has copies that are brought up to date, and never a page to itself. */
static inline bool mirror_is_tracked(const struct mirror *mirror)
{
	return mirror->flags & HMM_MIRROR_FLAGS_TRACKED;
}
/* What is not for such a mirror: -EOPNOTSUPP, and the letter says so; or 0. */
int mirror_refuse_tracked(const struct mirror *mirror, struct letter *letter);
/* It was one for the hmmd before this one, whose driver did not come back: nobody reads the copies. */
void mirror_empty_copies(struct owner *owner);
struct mirror *mirror_by_id(struct owner *owner, uint32_t id);
void mirror_peer_gone(struct owner *owner, uint64_t peer);
void mirror_free(struct mirror *mirror);
/* Its driver is @pid, who says what it wants: so that a successor knows for whom to wait. */
void mirror_note_driver(struct mirror *mirror, uint64_t peer, uint64_t flags, pid_t pid);
void mirror_ready(struct owner *owner, struct letter *letter);
/* To an owner that has come back: what it was told may have been lost with its connection. */
void mirror_tell_again(struct mirror *mirror);
/* The mirror's shadow of @addr; the owner is told of a new one. */
int mirror_shadow(struct mirror *mirror, uint64_t addr, struct shadow **result);
/* Announces it to a peer. False: out of memory or descriptors. */
bool mirror_send_region(struct mirror *mirror, const struct shadow *shadow, uint64_t peer,
			uint32_t window, uint32_t index, uint64_t base, uint64_t length);

/* share.c: ordinary memory becomes coherent in place, and back */
void share_request(struct owner *owner, struct letter *letter);	/* SHARE, UNSHARE */
/* The agent exchanged the mapping (or refused). */
void share_order_done(struct block *block, const struct block_order *order, const struct hmm_order *shared);

/* residency.c: what hmmctl looks at */
void residency_request(struct owner *owner, struct letter *letter);	/* LAYOUT, RANGES, CELLS */

/* advise.c */
void advise_request(struct owner *owner, struct letter *letter);	/* ADVISE, ATTRIBUTE, ATTRIBUTES, RESTATE */

/* recover.c */
void recover_reopen(struct worker *worker, struct letter *letter);
/* remake.c: its mirrors. -errno, said to @letter: not now; some may be there. */
int remake_mirrors(struct owner *owner, struct letter *letter);
/* What an earlier hmmd noted becomes what this one would have. May be done again where it was broken off. */
void remake_adapt(struct hmm_journal *journal);
void recover_request(struct owner *owner, struct letter *letter);	/* REOPEN_REGION, _MIRROR, _DONE */
bool recover_serves(const struct owner *owner, uint16_t opcode);	/* while owner->recovering */
bool recover_tick(struct owner *owner, int64_t now);	/* false: given up */

/* settle.c: return: how many pages were in transit */
uint64_t settle_ledger(struct owner *owner);
/* Before any event is read: the last hmmd may have died while it disarmed what an mremap() had just brought armed pages to. */
void settle_registrations(struct owner *owner);

/* vma.c: what may be migrated, and why not */
struct segment {
	uint64_t start, end;
	uint8_t result;		/* enum hmm_page_result: MOVED when eligible */
};
/*
 * Looks where threads keep what the kernel stores to when they exit: never
 * migrated. What was found less than @age_ns ago will do.
 */
void vma_refresh_threads(struct owner *owner, int64_t age_ns);
/*
 * The mapping that has @addr, or the next one above, as of now: every look at an owner's map is this one. -ENOENT: none;
 * -EAGAIN: the map does not stop changing.
 */
int mapping_at(struct owner *owner, uint64_t addr, struct kernel_vma *vma);
/* What a device finds at an address. */
struct view {
	uint64_t end;			/* as far as that goes */
	uint64_t page_size;		/* 0: the kernel does not say */
	bool read, write;
	bool special;			/* not memory */
	bool excluded;			/* never to be armed */
	uint64_t watch_start, watch_end;	/* what of its block may be watched with it: huge pages are not split */
};
bool vma_is_special(const struct kernel_vma *vma);	/* not memory */
/* -EFAULT: nothing is mapped there; -EAGAIN as of mapping_at(). */
int view_at(struct owner *owner, uint64_t addr, uint64_t end, struct view *view);
/* The mapping that has @addr (or the gap after it), clipped to @end. What is tracked is not eligible. */
int segment_at(struct owner *owner, uint64_t addr, uint64_t end, struct segment *segment);
/* The same, whoever tracks it. */
int segment_of_map(struct owner *owner, uint64_t addr, uint64_t end, struct segment *segment);

#endif
