/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * rescuer.c - the owner's last resort: no hmmd came back within the grace period.
 *
 * The happy path: the rescuer takes the owner over by a compare-and-swap of the
 * incarnation word, so that a late hmmd finds itself replaced, marks the mirror
 * dead for drivers, and lets the agent finish what it is in. Then it brings home
 * every page that the ledger says is on the device, block by block, and between
 * blocks answers whatever faults and events wait. Last it unregisters
 * everything: memory is ordinary again.
 *
 * Where a page's bytes are is the ledger's word: complete in the shadow; in a
 * staging slot while its block was going out; the CPU's own page, which always
 * wins, since COPY onto a present page does nothing; or nowhere, then it reads zeros as
 * a discarded page does. What the device lost stays poisoned, and what lies in
 * memory that only a driver reaches is lost: no driver serves it without hmmd.
 *
 * It touches only arena memory, slots and shadows, and never waits for anybody
 * but the agent. What it cannot bring home, or poison (no memory for the page, or its table), it tries for
 * as long as it takes: letting go would mean zeros. So it does with a change that it finds no memory to
 * note, which would mean old bytes, or none. A child of a raw clone() has a copy of what its parent
 * had changed by then, and what it changes itself counts for it alone. Children are served when all of the owner is home, but the
 * oldest at once where so many wait that descriptors could run out.
 */
#include <string.h>
#include <sys/mman.h>

#include "arena.h"
#include "log.h"
#include "mapping.h"
#include "owner.h"
#include "space.h"

#define PAGE_STATE(byte) ((byte) & HMM_PAGE_STATE_MASK)

/* ---- what the program does --------------------------------------------------- */

static void await_turn(struct rescuer *rescuer, struct view *child)
{
	child->next = NULL;
	*rescuer->end = child;
	rescuer->end = &child->next;
}

static void note_child(struct rescuer *rescuer, const struct view *parent, int uffd)
{
	struct view *child;

	while (!(child = hmmc_arena_alloc(sizeof(*child))))
		wait_for_memory();
	child->uffd = uffd;
	hmmc_view_copy(child, parent);
	await_turn(rescuer, child);
	rescuer->waiting++;
}

/* The agent's own DONTNEED, whose bytes are in the shadow, is no discarding. */
static bool is_agents(struct rescuer *rescuer, uint64_t start, uint64_t end)
{
	struct hmm_orders *orders = rescuer->owner->orders;
	const struct hmm_order *order = &orders->ring[orders->consumed % HMM_ORDERS_RING];

	return __atomic_load_n(&rescuer->owner->agent.busy, __ATOMIC_SEQ_CST) &&
	       order->kind == HMM_ORDER_OUT_ZAP &&
	       __atomic_load_n(&order->state, __ATOMIC_SEQ_CST) == HMM_ORDER_COMMIT &&
	       start >= order->addr && end <= order->addr + HMM_BLOCK_SIZE;
}

/*
 * Armed, empty memory in the place of a shadow: what comes there lies under that very address.
 * The block's epoch tells it from a later change.
 */
static bool is_exchange(struct rescuer *rescuer, const struct uffd_msg *message)
{
	const struct hmm_orders *orders = rescuer->owner->orders;
	uint64_t block = message->arg.remap.to, epoch = 0;

	if (message->arg.remap.len != HMM_BLOCK_SIZE || block % HMM_BLOCK_SIZE ||
	    pread(rescuer->owner->ledger_fd, &epoch, sizeof(epoch),
		  (off_t)((block >> HMM_BLOCK_SHIFT) * sizeof(struct hmm_ledger_block) +
			  offsetof(struct hmm_ledger_block, epoch))) != sizeof(epoch))
		return false;
	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++)
		if (orders->ring[i].kind == HMM_ORDER_UNCOHERE && orders->ring[i].addr == block &&
		    orders->ring[i].epoch == epoch)
			return true;
	return false;
}

/* An hmmd that died while it let go of what was mapped there before may have taken it away: pages that are out would be zeros to whoever touches them. */
static void register_again(const struct rescuer *rescuer, const struct uffd_msg *message)
{
	struct uffdio_register there = {
		.range = { .start = message->arg.remap.to, .len = message->arg.remap.len },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};

	ioctl(rescuer->owner->uffd, UFFDIO_REGISTER, &there);
}

static void note_event(struct rescuer *rescuer, struct view *view, const struct uffd_msg *message)
{
	bool own = view == &rescuer->own;

	switch (message->event) {
	case UFFD_EVENT_PAGEFAULT:
		/* One too many, or a child's, is raised again when its block is home. */
		if (own && rescuer->faults_count < RESCUER_FAULTS)
			rescuer->faults[rescuer->faults_count++] = message->arg.pagefault.address;
		break;
	case UFFD_EVENT_REMOVE:
	case UFFD_EVENT_UNMAP:
		if (message->event == UFFD_EVENT_UNMAP || !own ||
		    !is_agents(rescuer, message->arg.remove.start, message->arg.remove.end))
			hmmc_view_note(view, message->arg.remove.start,
				    message->arg.remove.end - message->arg.remove.start, 0);
		break;
	case UFFD_EVENT_REMAP:
		if (own && is_exchange(rescuer, message))
			break;
		if (own)
			register_again(rescuer, message);
		hmmc_view_note(view, message->arg.remap.from, message->arg.remap.len, message->arg.remap.to);
		break;
	case UFFD_EVENT_FORK:
		note_child(rescuer, view, (int)message->arg.fork.ufd);
		break;
	}
}

/* Reading an event lets its causer go on; applying it is left to whoever asks where a page is. Return: 0, or errno. */
static int read_events(struct rescuer *rescuer, struct view *view)
{
	struct uffd_msg messages[16];
	ssize_t got = read(view->uffd, messages, sizeof(messages));

	if (got < 0)
		return errno;
	for (size_t i = 0; i < (size_t)got / sizeof(*messages); i++)
		note_event(rescuer, view, &messages[i]);
	return got ? 0 : EAGAIN;
}

enum served {
	NOBODY,		/* waits, or nobody knows yet where his pages are */
	SERVED,
	PUT_OFF
};

static enum served serve_child(struct rescuer *rescuer);

/*
 * A child that waits has a descriptor, and of those there is an end. So where many wait the owner's next fork does, too,
 * until the oldest of them has its pages. A fork of the child that is being served waits only where there is none left: then
 * others are served first, and where that is in the middle of too many already this one is put off, for the stack has an end, too, and
 * so is all that it is in the middle of: then it is the others' turn. A fork goes on waiting, and with it all that its child still lacks, until some
 * child has all its pages, or has ended, and so gives its descriptor back.
 */
static void drain_events(struct rescuer *rescuer, struct view *view)
{
	bool own = view == &rescuer->own;

	while (!view->put_off) {
		bool full = own && rescuer->settled && rescuer->waiting >= RESCUER_CHILDREN;
		int error = full ? EMFILE : read_events(rescuer, view);

		if (!error)
			continue;
		if ((error != EMFILE && error != ENFILE) || (own && rescuer->serving))
			return;
		if (rescuer->serving == RESCUER_NESTED && rescuer->children) {
			view->put_off = true;
			return;
		}
		switch (serve_child(rescuer)) {
		case NOBODY:
			return;
		case PUT_OFF:
			view->put_off = !own;
			break;
		case SERVED:
			break;
		}
	}
}

/* ---- pages ------------------------------------------------------------------------ */

/* All that can be mapped: the kernel refuses ranges that begin lower or end higher. */
#define WAKE_START	0x10000UL
#define WAKE_END	(HMM_VA_END - HMM_PAGE_SIZE)

static void wake(int uffd, uint64_t start, uint64_t length)
{
	struct uffdio_range range = { .start = start, .len = length };

	ioctl(uffd, UFFDIO_WAKE, &range);
}

/* SIGBUS, and not zeros. As of copy_home(). */
static unsigned int poison_once(struct rescuer *rescuer, struct view *view, uint64_t to)
{
	struct uffdio_poison arg = { .range = { .start = to, .len = HMM_PAGE_SIZE } };

	if (!ioctl(view->uffd, UFFDIO_POISON, &arg)) {
		rescuer->lost++;
		return 1;
	}
	if (errno == ENOMEM) {
		wait_for_memory();
		read_events(rescuer, &rescuer->own);
		return 0;
	}
	if (errno != EAGAIN)
		return 1;
	drain_events(rescuer, view);
	return 0;
}

/*
 * Installs pages at @to, as far as it goes in one piece. Return: pages dealt with,
 * 0 when the map is changing: the caller has to look again where the page is.
 */
static unsigned int copy_home(struct rescuer *rescuer, struct view *view, uint64_t to, const char *from,
			      unsigned int pages)
{
	struct uffdio_copy arg = {
		.dst = to, .src = (uintptr_t)from, .len = (uint64_t)pages << HMM_PAGE_SHIFT,
	};
	int error = ioctl(view->uffd, UFFDIO_COPY, &arg) ? errno : 0;

	if (arg.copy > 0) {
		rescuer->pages += (uint64_t)arg.copy >> HMM_PAGE_SHIFT;
		return (unsigned int)(arg.copy >> HMM_PAGE_SHIFT);
	}
	switch (error) {
	case EAGAIN:
		drain_events(rescuer, view);
		return 0;
	case EFAULT:
		if (hmmc_is_lost(from))
			return poison_once(rescuer, view, to);
		/* fall through */
	case ENOMEM:
		/* Letting go of the page would lose it; and the owner may be about to free some, whosever the page is. */
		wait_for_memory();
		read_events(rescuer, &rescuer->own);
		return 0;
	case EEXIST:
		/* The CPU's page wins; whoever waits there is not woken by that. */
		wake(view->uffd, to, HMM_PAGE_SIZE);
		return 1;
	case ENOENT:
		/* Unmapped, or more than one mapping: page by page. */
		return pages > 1 ? copy_home(rescuer, view, to, from, 1) : 1;
	default:
		return pages;	/* ESRCH: the mm itself is gone */
	}
}

static void read_slot(struct rescuer *rescuer, unsigned int slot, uint64_t *map)
{
	struct owner *owner = rescuer->owner;
	uint64_t address = (uintptr_t)owner->slots + (uint64_t)slot * HMM_BLOCK_SIZE;

	memset(map, 0, HMM_BITMAP_WORDS * sizeof(*map));
	if (slot >= owner->slots_count ||
	    pread(owner->pagemap, rescuer->entries, sizeof(rescuer->entries),
		  (off_t)((address >> HMM_PAGE_SHIFT) * sizeof(uint64_t))) !=
		    (ssize_t)sizeof(rescuer->entries))
		return;
	for (unsigned int page = 0; page < HMM_BLOCK_PAGES; page++)
		if (rescuer->entries[page] & (PM_PRESENT | PM_SWAP))
			map[page / 64] |= 1ULL << (page % 64);
}

/* The order that sent pages of the block out, which hmmd did not live to note as complete. */
static const struct hmm_order *find_order(struct rescuer *rescuer, uint64_t block)
{
	struct hmm_orders *orders = rescuer->owner->orders;

	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++) {
		const struct hmm_order *order = &orders->ring[i];

		if (order->addr != block || order->epoch != rescuer->block.epoch)
			continue;
		/* A zap comes after the filling: it need not have ended. */
		if ((order->state == HMM_ORDER_DONE &&
		     (order->kind == HMM_ORDER_OUT_ZAP || order->kind == HMM_ORDER_OUT_MOVE)) ||
		    (order->state == HMM_ORDER_COMMIT && order->kind == HMM_ORDER_OUT_ZAP))
			return order;
	}
	return NULL;
}

/*
 * Windows were open while it was filled: what has arrived in the shadow may have been
 * written since.
 */
static bool is_visible(struct rescuer *rescuer, uint64_t block)
{
	struct hmm_orders *orders = rescuer->owner->orders;

	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++)
		if (orders->ring[i].addr == block &&
		    orders->ring[i].epoch == rescuer->block.epoch &&
		    orders->ring[i].flags & HMM_ORDER_VISIBLE)
			return true;
	return false;
}

static bool has_data(const struct region *region, uint64_t address)
{
	off_t offset = (off_t)(region->offset + (address - region->base));

	return lseek(region->fd, offset, SEEK_DATA) == offset;
}

struct sources {
	uint64_t in_slot[HMM_BITMAP_WORDS];
	bool visible;
	const struct hmm_order *order;
};

/* Where the bytes of a page are, or NULL where the CPU has them or nobody has. */
static const char *source(struct rescuer *rescuer, uint64_t block, unsigned int page,
			  const struct sources *sources)
{
	const struct hmm_ledger_block *record = &rescuer->block;
	uint8_t byte = record->page[page];
	uint64_t bit = 1ULL << (page % 64);
	uint64_t address = block + ((uint64_t)page << HMM_PAGE_SHIFT);
	bool complete = byte & HMM_PAGE_COMPLETE, away;
	struct region *region;

	if (byte & HMM_PAGE_SERVED)
		return NULL;
	/* Discarded, and its drivers had not answered yet; what leaves S the CPU has. */
	if (record->transit == HMM_TRANSIT_UNSHARING && record->pending[page / 64] & bit)
		return NULL;
	region = hmmc_region_find(&rescuer->owner->regions, record->mirror, block);
	while (region && !hmmc_region_map(&rescuer->owner->regions, region))
		wait_for_memory();
	/* A page of the S state that was on its way to D is there, too. */
	if (sources->in_slot[page / 64] & bit) {
		if (sources->visible && region && has_data(region, address))
			return region_at(region, address);
		return rescuer->owner->slots + (uint64_t)record->slot * HMM_BLOCK_SIZE +
		       ((uint64_t)page << HMM_PAGE_SHIFT);
	}
	if (sources->order && sources->order->moved[page / 64] & bit)
		complete = true;
	away = (byte & HMM_PAGE_STATE_MASK) == HMM_PAGE_DEVICE ||
	       (byte & HMM_PAGE_STATE_MASK) == HMM_PAGE_SHARED ||
	       record->transit == HMM_TRANSIT_OUT_MOVE || record->transit == HMM_TRANSIT_OUT_ZAP ||
	       /* Where the shadow is mapped COPY does nothing. */
	       record->transit == HMM_TRANSIT_COHERING;
	return complete && away && region ? region_at(region, address) : NULL;
}

/* Never zeros, which it would read as soon as nothing is armed: also where a page table finds no memory. Poison outlives the userfaultfd. */
static void poison(struct rescuer *rescuer, struct view *view, uint64_t address)
{
	struct uffdio_poison arg = { .range = { .len = HMM_PAGE_SIZE } };

	while (!view->put_off && (arg.range.start = hmmc_view_whereto(view, address)) && ioctl(view->uffd, UFFDIO_POISON, &arg)) {
		if (errno == ENOMEM) {
			wait_for_memory();
			read_events(rescuer, &rescuer->own);
		} else if (errno != EAGAIN) {
			return;
		}
		drain_events(rescuer, view);
	}
}

/* What only its driver reaches, and no driver serves any more, and what was lost before. */
static void poison_lost(struct rescuer *rescuer, struct view *view, uint64_t block)
{
	for (unsigned int page = 0; page < HMM_BLOCK_PAGES; page++) {
		uint8_t byte = rescuer->block.page[page];

		if (!(byte & HMM_PAGE_SERVED) && (byte & HMM_PAGE_FAR || PAGE_STATE(byte) == HMM_PAGE_ERROR))
			poison(rescuer, view, block + ((uint64_t)page << HMM_PAGE_SHIFT));
	}
}

/* Return: false where nothing waits any more. */
static bool read_graft(struct rescuer *rescuer, uint32_t i, struct hmm_graft *graft)
{
	const off_t at = (off_t)HMM_GRAFTS_OFFSET;
	int ledger = rescuer->owner->ledger_fd;
	uint32_t end = 0;

	return pread(ledger, &end, sizeof(end), at + (off_t)offsetof(struct hmm_grafts, end)) == sizeof(end) &&
	       i < end && i < HMM_GRAFTS_MAX &&
	       pread(ledger, graft, sizeof(*graft), at + (off_t)offsetof(struct hmm_grafts, graft) +
		     (off_t)(i * sizeof(*graft))) == sizeof(*graft);
}

static bool read_graft_page(struct rescuer *rescuer, uint32_t i)
{
	return pread(rescuer->owner->ledger_fd, rescuer->page, sizeof(rescuer->page),
		     (off_t)(HMM_GRAFT_BYTES_OFFSET + i * HMM_PAGE_SIZE)) == sizeof(rescuer->page);
}

/* Pages that mremap had moved into blocks in transit: before anybody finds a hole there. */
static void bring_grafts(struct rescuer *rescuer, struct view *view)
{
	struct hmm_graft graft;

	for (uint32_t i = 0; read_graft(rescuer, i, &graft); i++) {
		uint64_t to = graft.addr;

		if (!to)
			continue;
		if (graft.number != HMM_FAR_NONE) {
			rescuer->lost++;
			poison(rescuer, view, graft.addr);
			continue;
		}
		/* Read each time: a child that is served meanwhile has its own turn with the buffer. */
		while (!view->put_off && (to = hmmc_view_whereto(view, graft.addr)) && read_graft_page(rescuer, i) &&
		       !copy_home(rescuer, view, to, rescuer->page, 1))
			;
	}
}

/* The block's record must have been read. */
static void settle_block(struct rescuer *rescuer, struct view *view, uint64_t block)
{
	const struct hmm_ledger_block *record = &rescuer->block;
	struct uffdio_writeprotect writable = { .range = { .start = block,
							   .len = HMM_BLOCK_SIZE } };
	struct sources sources = { .order = NULL };
	unsigned int page = 0;

	/* In any other transit a slot is at most a second copy of what the shadow has. */
	if (record->slot != HMM_NO_SLOT && record->transit == HMM_TRANSIT_OUT_MOVE)
		read_slot(rescuer, record->slot, sources.in_slot);
	if (record->transit == HMM_TRANSIT_OUT_MOVE || record->transit == HMM_TRANSIT_OUT_ZAP) {
		sources.order = find_order(rescuer, block);
		sources.visible = is_visible(rescuer, block);
	}
	while (page < HMM_BLOCK_PAGES && !view->put_off) {
		uint64_t address = block + ((uint64_t)page << HMM_PAGE_SHIFT);
		const char *from = source(rescuer, block, page, &sources);
		uint64_t to = from ? hmmc_view_whereto(view, address) : 0;
		unsigned int run = 1;

		if (!to) {
			page++;
			continue;
		}
		while (page + run < HMM_BLOCK_PAGES) {
			uint64_t step = (uint64_t)run << HMM_PAGE_SHIFT;

			if (source(rescuer, block, page + run, &sources) != from + step ||
			    hmmc_view_whereto(view, address + step) != to + step)
				break;
			run++;
		}
		page += copy_home(rescuer, view, to, from, run);
	}
	poison_lost(rescuer, view, block);
	/* ENOENT where nothing was ever protected. */
	ioctl(view->uffd, UFFDIO_WRITEPROTECT, &writable);
	wake(view->uffd, block, HMM_BLOCK_SIZE);
}

/* A private copy; the mapping would allocate what it only looks at. */
static bool read_record(struct rescuer *rescuer, uint64_t block)
{
	rescuer->block_read = block;
	return pread(rescuer->owner->ledger_fd, &rescuer->block, sizeof(rescuer->block),
		     (off_t)((block >> HMM_BLOCK_SHIFT) * sizeof(rescuer->block))) ==
	       (ssize_t)sizeof(rescuer->block);
}

/*
 * The same of a DONTNEED whose event hmmd had read: its order may have ended since. By the block's epoch, which is another one when a
 * transit has ended: the order may be in the ring still, and the program may have discarded what it took away.
 */
static bool was_agents(struct rescuer *rescuer, uint64_t start, uint64_t end)
{
	uint64_t block = start & ~(HMM_BLOCK_SIZE - 1);
	const struct hmm_order *order;

	if (end > block + HMM_BLOCK_SIZE || !read_record(rescuer, block))
		return false;
	order = find_order(rescuer, block);
	if (!order || order->kind != HMM_ORDER_OUT_ZAP)
		return false;
	for (uint64_t page = (start - block) >> HMM_PAGE_SHIFT; page < (end - block) >> HMM_PAGE_SHIFT; page++)
		if (!(order->want[page / 64] >> (page % 64) & 1))
			return false;
	return true;
}

/*
 * What the dead hmmd had read and not applied. Its faults are raised again; its
 * descriptors died with it.
 */
static void replay_journal(struct rescuer *rescuer)
{
	const off_t slots = (off_t)(HMM_JOURNAL_OFFSET + offsetof(struct hmm_journal, slot));
	struct uffd_msg message;
	uint64_t applied = 0;

	_Static_assert(sizeof(message) == HMM_JOURNAL_SLOT_SIZE, "a slot is a message");
	if (pread(rescuer->owner->ledger_fd, &applied, sizeof(applied),
		  (off_t)(HMM_JOURNAL_OFFSET + offsetof(struct hmm_journal, applied))) !=
	    sizeof(applied))
		return;
	for (unsigned int i = 0; i < HMM_JOURNAL_SLOTS; i++) {
		if (pread(rescuer->owner->ledger_fd, &message, sizeof(message),
			  slots + (off_t)((applied + i) % HMM_JOURNAL_SLOTS * sizeof(message))) !=
			    sizeof(message) ||
		    !message.event)
			return;
		if (message.event == UFFD_EVENT_REMOVE &&
		    was_agents(rescuer, message.arg.remove.start, message.arg.remove.end))
			continue;
		if (message.event != UFFD_EVENT_PAGEFAULT && message.event != UFFD_EVENT_FORK)
			note_event(rescuer, &rescuer->own, &message);
	}
}

static void settle_at(struct rescuer *rescuer, uint64_t page)
{
	uint64_t block = page & ~(HMM_BLOCK_SIZE - 1);

	if (block && read_record(rescuer, block))
		settle_block(rescuer, &rescuer->own, block);
}

static void serve_fault(struct rescuer *rescuer, uint64_t address)
{
	struct owner *owner = rescuer->owner;
	uint64_t page = address & ~(HMM_PAGE_SIZE - 1), known;
	struct uffdio_zeropage zero = { .range = { .start = page, .len = HMM_PAGE_SIZE } };

	do {
		known = hmmc_view_wherefrom(&rescuer->own, page);
		settle_at(rescuer, known);
		/* An hmmd that died amid the event of its mremap may have brought it there already. */
		if (known != page)
			settle_at(rescuer, page);
		/* Nothing was there: a hole reads zeros. If something is there by now, it stays. */
		zero.zeropage = 0;
		if (ioctl(owner->uffd, UFFDIO_ZEROPAGE, &zero) == 0 || errno != EAGAIN)
			break;
		drain_events(rescuer, &rescuer->own);
	} while (known || errno == EAGAIN);
	wake(owner->uffd, page, HMM_PAGE_SIZE);
}

static void serve(struct rescuer *rescuer)
{
	drain_events(rescuer, &rescuer->own);
	while (rescuer->faults_count)
		serve_fault(rescuer, rescuer->faults[--rescuer->faults_count]);
}

/* ---- everything ---------------------------------------------------------------------- */

/* Calls fn for each block that the ledger has a record of. */
static void for_each_block(struct rescuer *rescuer, struct view *view,
			   void (*fn)(struct rescuer *rescuer, struct view *view, uint64_t block))
{
	const unsigned int per_page = HMM_PAGE_SIZE / sizeof(struct hmm_ledger_block);
	int ledger = rescuer->owner->ledger_fd;
	off_t at = 0, end;

	while ((at = lseek(ledger, at, SEEK_DATA)) >= 0 && at < (off_t)HMM_JOURNAL_OFFSET) {
		end = lseek(ledger, at, SEEK_HOLE);
		if (end > (off_t)HMM_JOURNAL_OFFSET)
			end = (off_t)HMM_JOURNAL_OFFSET;
		for (at &= ~(off_t)(HMM_PAGE_SIZE - 1); at < end; at += HMM_PAGE_SIZE) {
			uint64_t block = (uint64_t)at / sizeof(struct hmm_ledger_block)
					 << HMM_BLOCK_SHIFT;

			for (unsigned int i = 0; i < per_page; i++, block += HMM_BLOCK_SIZE)
				if (read_record(rescuer, block) &&
				    (rescuer->block.epoch || rescuer->block.flags ||
				     rescuer->block.transit))
					fn(rescuer, view, block);
		}
	}
}

static void bring_home(struct rescuer *rescuer, struct view *view, uint64_t block)
{
	for (unsigned int page = 0; page < HMM_BLOCK_PAGES; page++)
		if (PAGE_STATE(rescuer->block.page[page]) == HMM_PAGE_ERROR ||
		    rescuer->block.page[page] & HMM_PAGE_FAR)
			rescuer->lost++;
	settle_block(rescuer, view, block);
	serve(rescuer);
}

static void bring_to_child(struct rescuer *rescuer, struct view *view, uint64_t block)
{
	if (view->put_off)
		return;
	settle_block(rescuer, view, block);
	drain_events(rescuer, view);
	drain_events(rescuer, &rescuer->own);
}

static void forget_child(struct rescuer *rescuer, struct view *child)
{
	close(child->uffd);
	hmmc_view_forget(child);
	hmmc_arena_free(child, sizeof(*child));
	rescuer->waiting--;
}

/*
 * The oldest; more may come meanwhile. Also in the middle of a block of the owner's, or of another child's: its record is read again.
 * What a child has got it keeps when it is put off: COPY does nothing where a page is.
 */
static enum served serve_child(struct rescuer *rescuer)
{
	struct view *child = rescuer->children;
	uint64_t block = rescuer->block_read;
	enum served outcome = SERVED;

	if (!child || !rescuer->settled)
		return NOBODY;
	rescuer->children = child->next;
	if (!child->next)
		rescuer->end = &rescuer->children;
	rescuer->serving++;
	bring_grafts(rescuer, child);
	for_each_block(rescuer, child, bring_to_child);
	drain_events(rescuer, child);
	rescuer->serving--;
	if (child->put_off) {
		child->put_off = false;
		await_turn(rescuer, child);
		outcome = PUT_OFF;
		/* Where all wait for each other only the end of one of them helps. */
		if (!rescuer->serving)
			wait_for_memory();
	} else {
		forget_child(rescuer, child);
	}
	read_record(rescuer, block);
	return outcome;
}

static void disarm(struct rescuer *rescuer, struct view *view, uint64_t block)
{
	struct uffdio_range range = { .start = block, .len = HMM_BLOCK_SIZE };

	if (rescuer->block.flags & HMM_BLOCK_ARMED)
		ioctl(view->uffd, UFFDIO_UNREGISTER, &range);
}

/*
 * The agent may be about to MOVE, and would take what is mapped there the moment that an event is read: what mremap() brought, for one. The
 * kernel refuses it as long as the event is unread, and then it steps back. What raises an event of its own waits for that to be read.
 */
static bool agent_moves(const struct owner *owner)
{
	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++) {
		const struct hmm_order *order = &owner->orders->ring[i];

		if (__atomic_load_n(&order->state, __ATOMIC_SEQ_CST) == HMM_ORDER_COMMIT &&
		    order->kind != HMM_ORDER_OUT_ZAP && order->kind != HMM_ORDER_COHERE && order->kind != HMM_ORDER_UNCOHERE)
			return true;
	}
	return false;
}

static void let_agent_finish(struct rescuer *rescuer)
{
	struct owner *owner = rescuer->owner;
	const struct timespec moment = { .tv_nsec = 1000000 };

	__atomic_store_n(&owner->orders->hold, 0, __ATOMIC_SEQ_CST);
	futex_wake_shared(&owner->orders->hold, INT32_MAX);
	__atomic_add_fetch(&owner->regions.changes, 1, __ATOMIC_RELEASE);
	futex_wake(&owner->regions.changes, INT32_MAX);
	while (__atomic_load_n(&owner->agent.busy, __ATOMIC_SEQ_CST)) {
		/* It may be in a madvise() whose event nobody has read. */
		if (!agent_moves(owner))
			drain_events(rescuer, &rescuer->own);
		futex_wait(&owner->agent.busy, 1, &moment);
	}
	/* It waits for nobody; the userfaultfd must not be closed under it. */
	hmmc_agent_wait_for_sweeper(&owner->agent, EVERY_SLOT);
}

static void rescue(struct rescuer *rescuer)
{
	struct owner *owner = rescuer->owner;
	uint64_t before = __atomic_load_n(&owner->orders->incarnation, __ATOMIC_SEQ_CST);

	while (before != HMM_INCARNATION_RESCUE &&
	       !__atomic_compare_exchange_n(&owner->orders->incarnation, &before,
					    HMM_INCARNATION_RESCUE, false, __ATOMIC_SEQ_CST,
					    __ATOMIC_SEQ_CST))
		;
	__atomic_store_n(&owner->pulse->dead, 1, __ATOMIC_SEQ_CST);
	rescuer->own.uffd = owner->uffd;
	rescuer->end = &rescuer->children;
	replay_journal(rescuer);
	let_agent_finish(rescuer);
	rescuer->settled = true;
	bring_grafts(rescuer, &rescuer->own);
	/* Faults that the dead hmmd had read are raised again. */
	wake(owner->uffd, WAKE_START, WAKE_END - WAKE_START);
	for_each_block(rescuer, &rescuer->own, bring_home);
	do {
		while (serve_child(rescuer) != NOBODY)
			;
		serve(rescuer);
	} while (rescuer->children);
	for_each_block(rescuer, &rescuer->own, disarm);
	for (uint32_t i = 0; i < rescuer->own.count; i++) {
		struct uffdio_range range = {
			.start = rescuer->own.changes[i].to, .len = rescuer->own.changes[i].length,
		};

		if (range.start)
			ioctl(owner->uffd, UFFDIO_UNREGISTER, &range);
	}
	wake(owner->uffd, WAKE_START, WAKE_END - WAKE_START);
	/*
	 * Ours was the last reference, and what it still covers is holes: let whoever waits there
	 * go.
	 */
	close(owner->uffd);
	owner->uffd = -1;
	hmmc_log(HMMC_LOG_WARNING,
		 "no hmmd came back: %llu pages brought home, %llu lost by the device",
		 (unsigned long long)rescuer->pages, (unsigned long long)rescuer->lost);
}

static void rescuer_main(void *argument)
{
	struct rescuer *rescuer = argument;

	if (futex_latch_wait(&rescuer->wanted) == 1) {
		hmmc_policy_set(&rescuer->owner->policy);
		rescue(rescuer);
	}
	futex_latch_set(&rescuer->done, 1);
}

int hmmc_rescuer_start(struct rescuer *rescuer, struct owner *owner)
{
	memset(rescuer, 0, sizeof(*rescuer));
	rescuer->owner = owner;
	return hmmc_thread_start(&rescuer->thread, "hmm-rescuer", rescuer_main, rescuer);
}

void hmmc_rescuer_stop(struct rescuer *rescuer)
{
	uint32_t idle = 0;

	/* A rescue that has begun is seen through. */
	__atomic_compare_exchange_n(&rescuer->wanted, &idle, 2, false, __ATOMIC_SEQ_CST,
				    __ATOMIC_SEQ_CST);
	futex_wake(&rescuer->wanted, INT32_MAX);
	hmmc_thread_join(&rescuer->thread);
	hmmc_view_forget(&rescuer->own);
}

void hmmc_rescuer_call(struct rescuer *rescuer)
{
	uint32_t idle = 0;

	__atomic_compare_exchange_n(&rescuer->wanted, &idle, 1, false, __ATOMIC_SEQ_CST,
				    __ATOMIC_SEQ_CST);
	futex_wake(&rescuer->wanted, INT32_MAX);
}
