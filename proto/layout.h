/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Shared memory that two processes must agree on: what hmmd, an owner and a
 * driver map together. Messages are in protocol.hmm; this is everything else.
 *
 *   table    index = virtual page number, one 64-bit entry each, followed by
 *            one sequence word per block and, per page, a bit for each mirror
 *            that has a copy. hmmd writes it; owners and drivers map it
 *            read-only, and a lookup is one load, or two for a copy.
 *   ledger   one record per block: where each page is, which transit the block
 *            is in. hmmd writes it; the owner holds a read-only descriptor so
 *            that its rescuer knows what is where when there is no daemon.
 *   orders   a ring of work for the owner's agent. Both sides write it; hmmd
 *            trusts nothing that it reads back from it.
 *   pulse    one page: "this mirror is dead", written by the owner.
 *   notices  a ring of what became of an owner's pages, for one listener. hmmd
 *            writes it, the listener maps it read-only and says in a page of
 *            its own how far it has read; hmmd trusts nothing it reads there.
 *
 * All are sparse memfds: the kernel's own page tables are the radix tree.
 */
#ifndef HMM_PROTO_LAYOUT_H
#define HMM_PROTO_LAYOUT_H

#include <stdint.h>
#include <stddef.h>

#define HMM_PAGE_SHIFT		12
#define HMM_PAGE_SIZE		(1UL << HMM_PAGE_SHIFT)
#define HMM_BLOCK_SHIFT		21
#define HMM_BLOCK_SIZE		(1UL << HMM_BLOCK_SHIFT)
#define HMM_BLOCK_PAGES		(1U << (HMM_BLOCK_SHIFT - HMM_PAGE_SHIFT))
#define HMM_REGION_SHIFT	30
#define HMM_REGION_SIZE		(1UL << HMM_REGION_SHIFT)
#define HMM_REGION_BLOCKS	(1U << (HMM_REGION_SHIFT - HMM_BLOCK_SHIFT))
#define HMM_VA_BITS		47
#define HMM_VA_END		(1UL << HMM_VA_BITS)
#define HMM_BITMAP_WORDS	(HMM_BLOCK_PAGES / 64)

/* ---- table ------------------------------------------------------------ */

#define HMM_TABLE_VALID		(1ULL << 0)	/* the device may read the page */
#define HMM_TABLE_WRITE		(1ULL << 1)	/* ... and write it */
#define HMM_TABLE_DEVICE	(1ULL << 2)	/* it lies in device memory */
#define HMM_TABLE_COHERENT	(1ULL << 3)	/* CPU and device map the same page */
#define HMM_TABLE_ERROR		(1ULL << 4)	/* the device lost it */
#define HMM_TABLE_EXCLUSIVE	(1ULL << 5)	/* the device has it to itself */
#define HMM_TABLE_FLAGS		0xfffULL
#define HMM_TABLE_PFN_SHIFT	12
/*
 * Device pages are numbered above every system page: mirror index 0 starts here. Behind a
 * mirror's start, the number is the page's own: of the address in the shadow, or of the
 * driver's memory for a page that is far. Such an entry keeps its number while it is hidden.
 */
#define HMM_TABLE_DEVICE_PFN	(1ULL << (HMM_VA_BITS - HMM_PAGE_SHIFT))

#define HMM_FAR_NONE		UINT32_MAX	/* no page of the driver's memory */
#define HMM_REGION_STAGING	UINT32_MAX	/* a region event's window: the mirror's driver passes pages through it */

#define HMM_TABLE_ENTRIES	(1ULL << (HMM_VA_BITS - HMM_PAGE_SHIFT))
#define HMM_TABLE_SEQ_OFFSET	(HMM_TABLE_ENTRIES * sizeof(uint64_t))
#define HMM_TABLE_SEQ_COUNT	(1ULL << (HMM_VA_BITS - HMM_BLOCK_SHIFT))
/*
 * Sharers: 16 bits per page, bit = mirror index. The entry names the block's
 * holder; while it is VALID and not WRITE, each of these mirrors has a copy.
 */
#define HMM_TABLE_SHARERS_OFFSET (HMM_TABLE_SEQ_OFFSET + HMM_TABLE_SEQ_COUNT * sizeof(uint64_t))
#define HMM_TABLE_SIZE		(HMM_TABLE_SHARERS_OFFSET + HMM_TABLE_ENTRIES * sizeof(uint16_t))

/* ---- ledger ----------------------------------------------------------- */

enum hmm_page_state {
	HMM_PAGE_INVALID = 0,	/* I: the CPU owns it, nothing mirrored */
	HMM_PAGE_REMOTE = 1,	/* R: the CPU owns it, the device reaches it through hmmd */
	HMM_PAGE_SHARED = 2,	/* S: write-protected at the CPU, equal read-only copy */
	HMM_PAGE_DEVICE = 3,	/* D: the only copy is in the shadow */
	HMM_PAGE_COHERENT = 4,	/* C: CPU and device map one memfd page */
	HMM_PAGE_ERROR = 5,	/* E: lost by the device, poisoned at the CPU */
};
#define HMM_PAGE_STATE_MASK	0x07
#define HMM_PAGE_COMPLETE	0x08	/* the shadow holds the page's bytes */
#define HMM_PAGE_SERVED		0x10	/* came home, or was discarded, while its block was in transit */
#define HMM_PAGE_FAR		0x20	/* D, in memory that only the driver reaches: its number is in the table's entry */
#define HMM_PAGE_DOUBTFUL	0x40	/* D, unless it had come home when hmmd died and was moved on by an mremap() that nobody has read of */

/*
 * A block's transit state; daemon/engine/transition.c has the table of edges
 * and recovery rules. Values are stored in ledgers: never renumber.
 */
enum hmm_transit {
	HMM_TRANSIT_REST = 0,
	HMM_TRANSIT_OUT_MOVE = 1,	/* to the device by UFFDIO_MOVE through a slot */
	HMM_TRANSIT_OUT_ZAP = 2,	/* to the device by write-protect and DONTNEED */
	HMM_TRANSIT_HOME_COPY = 3,	/* home by UFFDIO_COPY */
	HMM_TRANSIT_HOME_SLOT = 4,	/* home by filling a slot and UFFDIO_MOVE */
	HMM_TRANSIT_SHARING = 5,	/* D -> S */
	HMM_TRANSIT_UNSHARING = 6,	/* leaving S, or revoking */
	HMM_TRANSIT_COHERING = 7,	/* D <-> C: the owner's mapping is exchanged */
	HMM_TRANSIT_STORE = 8,		/* from the shadow to memory that only the driver reaches */
	HMM_TRANSIT_FETCH = 9,		/* ... and back into the shadow */
	HMM_TRANSIT_MAX
};

#define HMM_NO_SLOT		0xffffU
#define HMM_NO_MIRROR		0xffffU

struct hmm_ledger_block {
	uint64_t epoch;		/* bumped by every change; an order carries it */
	uint32_t transit;	/* enum hmm_transit */
	uint16_t mirror;	/* index of the mirror that holds D and S pages */
	uint16_t slot;		/* staging slot in use, or HMM_NO_SLOT */
	uint64_t flags;		/* HMM_BLOCK_* */
	uint64_t first, count;	/* pages of the block that the transit is about */
	uint64_t reserved[3];
	uint64_t pending[HMM_BITMAP_WORDS];	/* pages the transit is about */
	uint64_t spare[48];
	uint8_t page[HMM_BLOCK_PAGES];		/* enum hmm_page_state | bits */
};
_Static_assert(sizeof(struct hmm_ledger_block) == 1024, "one record per KiB");

#define HMM_BLOCK_ARMED		(1ULL << 0)	/* registered with the owner's userfaultfd */
#define HMM_BLOCK_HUGE		(1ULL << 1)	/* left as one huge page, PMD empty since */

#define HMM_LEDGER_BLOCKS	HMM_TABLE_SEQ_COUNT
#define HMM_JOURNAL_OFFSET	(HMM_LEDGER_BLOCKS * sizeof(struct hmm_ledger_block))

/*
 * ---- journal: behind the ledger's records, in the same memfd ------------
 *
 * Userfaultfd messages are read straight into it. A slot is zeroed before it
 * is read into, and a message is never zero, so that after hmmd's death the
 * messages from `applied` on up to the first empty slot are those that were
 * read and perhaps not applied.
 */
#define HMM_LEDGER_MAGIC	0x6c6d6d68U	/* "hmml" */
#define HMM_LEDGER_CLOSED	0x636d6d68U	/* "hmmc": all of it came home, and hmmd has forgotten the owner */
/*
 * Of records, grafts and journal. The owner's rescuer reads the first two as the release that it is of knows them: whoever changes
 * those gives the protocol another number, too, so that no hmmd writes what the library at the other end does not
 * understand. From the oldest on hmmd reads what an earlier one has left (remake_adapt()).
 */
#define HMM_LEDGER_VERSION	9U
#define HMM_LEDGER_OLDEST	8U
#define HMM_NODE_WORDS		16U	/* of a set of memory nodes: a bit each, 1024 as the kernel has them at most */
#define HMM_JOURNAL_SLOTS	1024U
#define HMM_JOURNAL_SLOT_SIZE	32U

/* A mirror, as a successor has to make it again. */
struct hmm_journal_mirror {
	uint32_t used;
	uint32_t kind;		/* of the device's pool: enum hmm_pool_kind */
	int32_t node;
	uint32_t windows;	/* that serve: the successor waits for them */
	uint64_t size;		/* of the device */
	uint64_t caps;
	int32_t driver;		/* the pid that has these windows or the far pages, or is called back */
	uint32_t callbacks;	/* it is called back: the successor waits until it has let go of all */
	uint32_t token;		/* of the memory that the far pages are in; 0: none */
	uint32_t tracked;	/* its device has copies, and never a page to itself */
	uint32_t card;		/* that the device is: its PCI address as a number; 0: none */
	uint32_t placement;	/* of the device's pool: enum hmm_placement */
	char device[64];
	uint64_t nodes;		/* where node is -1 */
	uint64_t bar_pages;	/* of a card's BAR that are the device's */
	uint32_t bar;		/* which one of the card */
	uint32_t memory_card;	/* whose BAR it is, as card; 0: its memory is no BAR */
	uint64_t contents;	/* of the BAR: another number when it was given up or reset in between, whose tokens are others */
};
#define HMM_MIRRORS_MAX		16	/* of one owner */

struct hmm_journal {
	uint32_t magic;
	uint32_t version;
	uint64_t incarnation;	/* the hmmd that writes it */
	uint64_t features;	/* HMM_FEATURE_* that this owner's userfaultfd got */
	uint64_t applied;	/* messages applied so far; slot = applied % HMM_JOURNAL_SLOTS */
	uint64_t open_flags;	/* as the owner asked */
	uint64_t policy, policy_nodes;	/* the owner's memory policy, MPOL_* */
	uint64_t grace_ms;	/* the longest that any hmmd told of this owner's programs; 0: an older one, which did not say */
	struct hmm_journal_mirror mirror[HMM_MIRRORS_MAX];	/* by index */
	_Alignas(64) uint8_t slot[HMM_JOURNAL_SLOTS][HMM_JOURNAL_SLOT_SIZE];
};
#define HMM_JOURNAL_SIZE	((sizeof(struct hmm_journal) + 4095) & ~4095UL)

/*
 * ---- attributes: behind the journal, in the same memfd -------------------
 *
 * What was said of ranges (hmm_advise): sorted, disjoint, merged where they
 * touch. A change is written to the list that is not active, which then becomes
 * active in one store, so that a crash leaves either the old or the new one. All
 * zero but for the addresses says nothing; such an interval is not in the list.
 */
struct hmm_attribute {
	uint64_t start, end;
	uint32_t flags;		/* HMM_ATTRIBUTE_* */
	uint16_t accessed_by;	/* a bit for each mirror's index */
	uint16_t granularity;	/* pages; 0: not said */
	uint8_t preferred;	/* mirror's index, with PREFER_DEVICE */
	uint8_t pinned;		/* mirror's index, with PIN */
	uint8_t priority;	/* 0 to 100, with PRIORITY */
	uint8_t reserved[5];
};
_Static_assert(sizeof(struct hmm_attribute) == 32, "no hidden padding: they are compared as bytes");

#define HMM_ATTRIBUTE_UNPINNED		(1U << 0)
#define HMM_ATTRIBUTE_READ_MOSTLY	(1U << 1)
#define HMM_ATTRIBUTE_PREFER_SYSTEM	(1U << 2)
#define HMM_ATTRIBUTE_PREFER_DEVICE	(1U << 3)
#define HMM_ATTRIBUTE_PIN		(1U << 4)
#define HMM_ATTRIBUTE_NO_PREFETCH	(1U << 5)
#define HMM_ATTRIBUTE_PRIORITY		(1U << 6)
#define HMM_ATTRIBUTE_FLAGS		((1U << 7) - 1)

#define HMM_ATTRIBUTES_MAX	4096U	/* intervals that may be asked for */
/* ... and room for those that unmapping and remapping cut in two. */
#define HMM_ATTRIBUTES_ROOM	(HMM_ATTRIBUTES_MAX + 1024U)

struct hmm_attributes {
	uint32_t active;	/* 0 or 1 */
	uint32_t count[2];
	uint32_t reserved[5];
	struct hmm_attribute list[2][HMM_ATTRIBUTES_ROOM];
};
#define HMM_ATTRIBUTES_OFFSET	(HMM_JOURNAL_OFFSET + HMM_JOURNAL_SIZE)
#define HMM_ATTRIBUTES_SIZE	((sizeof(struct hmm_attributes) + 4095) & ~4095UL)

/*
 * ---- grafts: behind the attributes, in the same memfd ---------------------
 *
 * Pages that mremap has moved into a block which is in transit still, on behalf of
 * what was mapped there before. They wait here, bytes and all, until that has
 * ended: nobody else has them. The address is stored last, and cleared first.
 */
struct hmm_graft {
	uint64_t addr;		/* where it goes; 0: this place is free */
	uint32_t mirror;	/* index of the mirror that has held it */
	uint32_t number;	/* of the driver's memory; HMM_FAR_NONE: its bytes are here */
};
#define HMM_GRAFTS_MAX		65536U

struct hmm_grafts {
	uint32_t end;		/* places from it on are free */
	uint32_t reserved[3];
	struct hmm_graft graft[HMM_GRAFTS_MAX];
};
#define HMM_GRAFTS_OFFSET	(HMM_ATTRIBUTES_OFFSET + HMM_ATTRIBUTES_SIZE)
/* Page i is that of graft[i]. */
#define HMM_GRAFT_BYTES_OFFSET	(HMM_GRAFTS_OFFSET + ((sizeof(struct hmm_grafts) + 4095) & ~4095UL))
#define HMM_LEDGER_SIZE		(HMM_GRAFT_BYTES_OFFSET + HMM_GRAFTS_MAX * HMM_PAGE_SIZE)

/* ---- orders: hmmd to the owner's agent --------------------------------- */

enum hmm_order_kind {
	HMM_ORDER_NONE = 0,
	HMM_ORDER_OUT_MOVE = 1,	/* MOVE wanted pages to the slot, fill the shadow */
	HMM_ORDER_OUT_ZAP = 2,	/* fill the shadow from protected pages, DONTNEED them */
	HMM_ORDER_HOME_SLOT = 3,/* fill the slot from the shadow, MOVE it home whole */
	HMM_ORDER_DROP = 4,	/* MOVE wanted pages to the slot and forget them (S -> D) */
	HMM_ORDER_RELEASE = 5,	/* empty the slot: UNREGISTER, DONTNEED, REGISTER */
	HMM_ORDER_COHERE = 6,	/* map the shadow in the block's place (D -> C) */
	HMM_ORDER_UNCOHERE = 7,	/* map armed, empty memory in the shadow's place (C -> D) */
	HMM_ORDER_SYNC = 8,	/* copy runs of pages into the shadow; the owner keeps them */
};

/*
 * The life of an order. hmmd writes QUEUED; the agent goes RUNNING, and
 * COMMIT right around the call that changes the address space. hmmd may take
 * an order back (compare-and-swap to CANCELLED) from QUEUED or RUNNING only.
 */
enum hmm_order_state {
	HMM_ORDER_FREE = 0,
	HMM_ORDER_QUEUED = 1,
	HMM_ORDER_RUNNING = 2,	/* the address space is unchanged so far */
	HMM_ORDER_COMMIT = 3,	/* in the call that changes it */
	HMM_ORDER_FILLING = 4,	/* pages are in the slot, being copied to the shadow */
	HMM_ORDER_DONE = 5,
	HMM_ORDER_CANCELLED = 6,
};

#define HMM_ORDER_WHOLE		(1U << 0)	/* the block may be filled as one huge page */
#define HMM_ORDER_HUGE_MOVED	(1U << 1)	/* result: it left as one huge page */
#define HMM_ORDER_VISIBLE	(1U << 2)	/* windows map the shadow: each page has to appear with its bytes */

/*
 * SYNC is about runs of pages anywhere in the region that addr begins. The bitmaps are then about
 * all pages of all runs, counted from the first on: moved is copied, and hole zeros.
 */
#define HMM_ORDER_RUNS		48U
#define HMM_RUN_PAGE_BITS	18		/* the first page, counted in the region */
#define HMM_RUN_PAGE(run)	((run) & ((1U << HMM_RUN_PAGE_BITS) - 1))
#define HMM_RUN_PAGES(run)	(((run) >> HMM_RUN_PAGE_BITS & (HMM_BLOCK_PAGES - 1)) + 1)
#define HMM_RUN(page, pages)	((uint32_t)(page) | (uint32_t)((pages) - 1) << HMM_RUN_PAGE_BITS)
#define HMM_RUN_SEEN		(1U << 28)	/* it was written, or discarded: there, most likely */
#define HMM_RUN_BARRED		(1U << 29)	/* hmmd's own: it may be read one day, as it is */
#define HMM_RUN_BACKED		(1U << 30)	/* a file's, say: read, whether or not a page is there */
#define HMM_RUN_ZERO		(1U << 31)	/* it may not be read: zeros, whatever is there */

struct hmm_order {
	uint32_t state;		/* enum hmm_order_state, atomic */
	uint32_t kind;		/* enum hmm_order_kind */
	uint64_t serial;	/* hmmd's own name for this order */
	uint64_t addr;		/* block address */
	uint32_t slot;
	uint32_t flags;
	uint32_t mirror;	/* whose shadow */
	int32_t error;		/* result: 0 or -errno of what stopped it */
	uint64_t want[HMM_BITMAP_WORDS];	/* pages to move */
	uint64_t moved[HMM_BITMAP_WORDS];	/* result: moved (and filled, when DONE) */
	uint64_t hole[HMM_BITMAP_WORDS];	/* result: nothing there: zeros in the shadow if WHOLE held */
	uint64_t busy[HMM_BITMAP_WORDS];	/* result: pinned or shared, left alone */
	uint64_t epoch;		/* of the block when the order was given */
	uint64_t shadow;	/* inode of the shadow meant: a mirror's number may be used again */
	uint32_t run[HMM_ORDER_RUNS];	/* of SYNC */
	uint32_t runs;
	uint32_t spare;
};
_Static_assert(sizeof(struct hmm_order) == 512, "fixed size");

#define HMM_ORDERS_MAGIC	0x6f6d6d68U	/* "hmmo" */
#define HMM_ORDERS_VERSION	1U
#define HMM_ORDERS_RING		64
#define HMM_SLOTS_MAX		16

struct hmm_orders {
	uint32_t magic;
	uint32_t version;
	uint64_t incarnation;	/* who may give orders: an hmmd's incarnation, or HMM_INCARNATION_RESCUE */
	uint32_t doorbell;	/* futex the agent sleeps on; hmmd increments and wakes */
	uint32_t hold;		/* while not 0 no order may enter COMMIT */
	uint32_t asleep;	/* the agent is, or is about to be, in FUTEX_WAIT on the doorbell */
	uint32_t agent_tid;
	uint32_t produced;	/* ring index of the next order hmmd writes; wraps freely */
	uint32_t consumed;	/* ring index of the next order the agent takes */
	uint64_t slots_addr;	/* staging slots: slots_count blocks of the owner's addresses */
	uint32_t slots_count;
	uint32_t refused;	/* not 0: some window was refused a page; every mprotect() may change that */
	uint32_t remapping;	/* the owner's: calls that move one mapping, which nobody may split now */
	uint32_t splitting;	/* hmmd's: it registers, or lets go of, a part of the owner's mappings; whoever is to move waits */
	uint32_t reserved[12];
	_Alignas(4096) struct hmm_order ring[HMM_ORDERS_RING];
};
#define HMM_ORDERS_SIZE		sizeof(struct hmm_orders)
#define HMM_INCARNATION_RESCUE	0xffffffffffffffffULL

/* ---- pulse -------------------------------------------------------------- */

struct hmm_pulse {
	uint32_t dead;		/* not 0: nobody keeps this mirror; ranges are invalid */
	uint32_t reserved[1023];
};

/* ---- notices: hmmd to whoever listens ------------------------------------ */

struct hmm_notice {
	uint64_t time;		/* CLOCK_MONOTONIC, ns */
	uint32_t kind;		/* enum hmm_event_kind */
	uint32_t reason;	/* enum hmm_reason, or 0 */
	int32_t error;		/* why something can't be had, or 0 */
	uint32_t mirror;	/* the mirror's id, or 0 */
	uint64_t start, end;	/* the owner's addresses */
	uint64_t pages;
	uint64_t reserved[2];
};
_Static_assert(sizeof(struct hmm_notice) == 64, "fixed size");

#define HMM_NOTICES_MAGIC	0x6e6d6d68U	/* "hmmn" */
#define HMM_NOTICES_MIN		64U
#define HMM_NOTICES_MAX		65536U
#define HMM_NOTICES_DEFAULT	4096U

struct hmm_notices {
	uint32_t magic;
	uint32_t version;
	uint32_t entries;	/* of the ring: a power of two */
	uint32_t closed;	/* nothing more will come: the owner is gone */
	uint64_t produced;	/* records so far; the next lies at produced % entries */
	uint64_t dropped;	/* there was no room for */
	_Alignas(4096) struct hmm_notice ring[];
};
#define HMM_NOTICES_SIZE(entries) \
	(sizeof(struct hmm_notices) + (uint64_t)(entries) * sizeof(struct hmm_notice))

/* What hmmd keeps for a track of so many bytes of addresses: five bits for each page. */
#define HMM_TRACK_BYTES(length) (((((length) >> HMM_PAGE_SHIFT) + 63) / 64) * 5 * sizeof(uint64_t))

/* As many as a ring has for one that asks for so many: a power of two. */
static inline uint32_t hmm_notices_entries(uint32_t asked)
{
	uint32_t entries = HMM_NOTICES_MIN;

	while (entries < (asked ? asked : HMM_NOTICES_DEFAULT) && entries < HMM_NOTICES_MAX)
		entries *= 2;
	return entries;
}

struct hmm_notices_reader {
	uint64_t consumed;	/* records that were read; never more than produced */
	uint64_t reserved[511];
};

#endif
