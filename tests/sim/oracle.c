// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * oracle.c - what must hold. Every store is a number of its own, so a load tells whose it was. After each step: an
 * address leads CPU and device to the same bytes, or one of them has no entry; when both have one nobody may write. Each load sees
 * the last store. When hmmd waits: table and ledger agree. At the end: nothing is left.
 *
 * What the owner does to its map a device hears of later: until hmmd knows, and its drivers have let go, a device may see what was
 * there before, and what it stores is lost. Never does the CPU see anything of that.
 */
#include <string.h>

#include "sim.h"

#include "engine/copies.h"
#include "tests/table_entry.h"

bool values_have(const struct values *values, uint64_t value)
{
	for (unsigned int i = 0; i < values->n; i++)
		if (values->value[i] == value)
			return true;
	return false;
}

void values_add(struct values *values, uint64_t value)
{
	if (values_have(values, value))
		return;
	if (values->n == VALUES_MAX)
		wrong("the simulator has no room for so many values of a page");
	values->value[values->n++] = value;
}

static void only(struct values *values, uint64_t value)
{
	values->n = 1;
	values->value[0] = value;
}

static const char *print(const struct values *values)
{
	static char text[VALUES_MAX * 12 + 1];
	size_t at = 0;

	text[0] = '\0';
	for (unsigned int i = 0; i < values->n; i++)
		at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%lu", i ? " or " : "", values->value[i]);
	return text;
}

uint64_t new_version(void)
{
	return ++world.versions;
}

void oracle_reset(void)
{
	for (unsigned int n = 0; n < PAGES_USED; n++)
		only(&world.truth[n].cpu, 0);
}

static void set_value(struct truth *truth, uint64_t value)
{
	if (truth->discards || truth->accesses)
		values_add(&truth->cpu, value);
	else
		only(&truth->cpu, value);
	if (truth->accesses)
		values_add(&truth->during, value);
}

/* Whatever was there before is gone: zeros, or what is being written. */
static void begin_anew(struct truth *truth)
{
	truth->cpu.n = 0;
	set_value(truth, 0);
	if (truth->written)
		values_add(&truth->cpu, truth->written);
}

static void seen_value(struct truth *truth, uint64_t value)
{
	if (!truth->discards && !truth->accesses)
		only(&truth->cpu, value);
}

static const struct hmm_journal *journal(void)
{
	return (const void *)((const char *)world.ledger + HMM_JOURNAL_OFFSET);
}

static bool is_pending(const struct hmm_ledger_block *record, unsigned int page)
{
	return record->transit != HMM_TRANSIT_REST && record->pending[page / 64] >> (page % 64) & 1;
}

bool page_in_transit(unsigned int n)
{
	return world.ledger && is_pending(&world.ledger[used_addr(n) >> HMM_BLOCK_SHIFT],
					  (unsigned int)(used_addr(n) / HMM_PAGE_SIZE % HMM_BLOCK_PAGES));
}

/* What the owner has done there hmmd has heard, and is done with, whatever it does to the block's other pages. */
static bool is_known(unsigned int n)
{
	struct truth *truth = &world.truth[n];
	uint64_t addr = used_addr(n);

	if (truth->unread || truth->discards || journal()->applied < truth->applied)
		return false;
	truth->settled |= !is_pending(&world.ledger[addr >> HMM_BLOCK_SHIFT], (unsigned int)(addr / HMM_PAGE_SIZE % HMM_BLOCK_PAGES));
	return truth->settled;
}

/* ---- what is seen ------------------------------------------------------------------------------------------- */

void cpu_loaded(unsigned int n, uint64_t value, const char *who)
{
	struct truth *truth = &world.truth[n];

	if (!values_have(&truth->cpu, value))
		wrong("%s loads %lu from %s, where %s is", who, value, addr_name(used_addr(n)), print(&truth->cpu));
	seen_value(truth, value);
}

void cpu_stored(unsigned int n, uint64_t value)
{
	set_value(&world.truth[n], value);
}

void device_loaded(unsigned int n, uint64_t value)
{
	struct truth *truth = &world.truth[n];

	if (values_have(&truth->cpu, value)) {
		if (!truth->lagging)
			seen_value(truth, value);
		return;
	}
	if (!truth->lagging || !values_have(&truth->lag, value))
		wrong("the device loads %lu from %s, where %s is", value, addr_name(used_addr(n)), print(&truth->cpu));
}

void device_stored(unsigned int n, uint64_t value)
{
	struct truth *truth = &world.truth[n];

	child_may_have(n, value);
	if (!truth->lagging) {
		set_value(truth, value);
		return;
	}
	/* Of what has been read hmmd may have brought to the address what is there now, and a store to it is one to that, by whatever entry. */
	if (!truth->unread)
		values_add(&truth->cpu, value);
	/* Where it has gone to its bytes are taken along, with this. */
	if (truth->moved_to) {
		values_add(&world.truth[truth->moved_to - 1].cpu, value);
		child_may_have(truth->moved_to - 1, value);
	}
	values_add(&truth->lag, value);
}

/* hmmd itself shows it what is there, and asks no driver: it may have the page anew while the other device still has what was there before. */
void window_stored(unsigned int n, uint64_t value)
{
	if (is_known(n)) {
		child_may_have(n, value);
		set_value(&world.truth[n], value);
	} else {
		device_stored(n, value);
	}
}

void page_changes(unsigned int n, bool fresh, unsigned int messages)
{
	struct truth *truth = &world.truth[n];

	for (unsigned int i = 0; messages && i < truth->cpu.n; i++)
		values_add(&truth->lag, truth->cpu.value[i]);
	/* Its shadow page is punched while a driver that has been told has not answered yet, and is read through the entry that it has. */
	if (messages)
		values_add(&truth->lag, 0);
	truth->lagging |= messages;
	truth->settled &= !messages;
	truth->unread += messages;
	truth->moved_to = 0;
	if (fresh) {
		begin_anew(truth);
	} else {
		truth->discards++;
		values_add(&truth->cpu, 0);
	}
}

void page_discarded(unsigned int n)
{
	struct truth *truth = &world.truth[n];

	truth->discards--;
	begin_anew(truth);
}

void page_moves(unsigned int from, unsigned int to, bool covered, bool watched)
{
	struct truth *source = &world.truth[from], *target = &world.truth[to];
	struct values values = source->cpu;

	page_changes(to, true, covered + watched);
	page_changes(from, true, 2 * watched);
	target->cpu = values;
	if (target->written)
		values_add(&target->cpu, target->written);
	for (unsigned int i = 0; target->accesses && i < values.n; i++)
		values_add(&target->during, values.value[i]);
	source->moved_to = watched ? to + 1 : 0;
}

/* ---- accesses by messages: at one moment between the question and the answer ------------------------------------- */

void access_begins(unsigned int n, uint64_t written)
{
	struct truth *truth = &world.truth[n];

	if (!truth->accesses++)
		truth->during = truth->cpu;
	for (unsigned int i = 0; i < truth->lag.n; i++)
		values_add(&truth->during, truth->lag.value[i]);
	truth->written = written;
	if (written) {
		child_may_have(n, written);
		set_value(truth, written);
	}
}

void access_loaded(unsigned int n, uint64_t value)
{
	struct truth *truth = &world.truth[n];

	if (!values_have(&truth->during, value) && !values_have(&truth->lag, value))
		wrong("a device is told %lu of %s, which was %s since it asked", value, addr_name(used_addr(n)), print(&truth->during));
}

void access_ends(unsigned int n)
{
	world.truth[n].accesses--;
	world.truth[n].written = 0;
}

/* ---- after each step ----------------------------------------------------------------------------------------- */

static bool driver_is_told_of(uint64_t addr)
{
	for (unsigned int i = world.told_first; i != world.told_end; i++) {
		const struct told *told = &world.told[i % INVALIDATIONS_MAX];

		if (addr >= told->start && addr < told->end)
			return true;
	}
	for (const struct letter *letter = world.outbox.head; letter; letter = letter->next) {
		const struct hmm_msg_invalidate *message = (const void *)letter->message;

		if (letter->kind == LETTER_EVENT && message->header.opcode == HMM_OP_INVALIDATE && addr >= message->start &&
		    addr < message->end)
			return true;
	}
	return false;
}

static bool lies_in(unsigned int n, uint64_t start, uint64_t length)
{
	return used_addr(n) >= start && used_addr(n) < start + length;
}

/* Its message is the one at @at of the journal. */
void event_is_read(const struct event *event, const void *message)
{
	uint64_t applied = journal()->applied;
	uint64_t slot = ((uintptr_t)message - (uintptr_t)hmmd_owner()->journal->slot) / HMM_JOURNAL_SLOT_SIZE;

	for (unsigned int n = 0; n < PAGES_USED; n++)
		if (lies_in(n, event->from, event->length) || lies_in(n, event->to, event->length)) {
			world.truth[n].unread -= world.truth[n].unread > 0;
			world.truth[n].applied = applied + (slot - applied) % HMM_JOURNAL_SLOTS + 1;
		}
}

/* All that the owner has done there is known to everybody by now. */
static void end_lag(unsigned int n)
{
	struct truth *truth = &world.truth[n];
	const struct owner *owner = hmmd_owner();
	uint64_t addr = used_addr(n);

	/* After a restart its driver lets go of everything, perhaps it was not told: not before it is back. */
	if (!owner || owner->recovering || !is_known(n) || world.ledger[addr >> HMM_BLOCK_SHIFT].transit != HMM_TRANSIT_REST ||
	    world.table[HMM_TABLE_ENTRIES + (addr >> HMM_BLOCK_SHIFT)] & 1 || driver_is_told_of(addr))
		return;
	truth->lagging = false;
	truth->lag.n = 0;
	truth->moved_to = 0;
}

struct eye {
	const char *who;
	uint64_t may;		/* HMM_TABLE_VALID, _WRITE; 0: it has no entry */
	uint64_t value;
};

static void check_both(unsigned int n, const struct eye *a, const struct eye *b)
{
	if (!a->may || !b->may)
		return;
	if (a->may & HMM_TABLE_WRITE)
		wrong("%s may write %s, and %s has it", a->who, addr_name(used_addr(n)), b->who);
	if (b->may & HMM_TABLE_WRITE)
		wrong("%s may write %s, and %s has it", b->who, addr_name(used_addr(n)), a->who);
	if (a->value != b->value)
		wrong("%s is %lu for %s and %lu for %s", addr_name(used_addr(n)), a->value, a->who, b->value, b->who);
}

static void look(struct eye *view, unsigned int mirror, unsigned int n)
{
	const void *page = view->may ? shadow_page(mirror, used_addr(n)) : NULL;

	view->value = page ? real_value(page) : 0;
}

static void check_page(unsigned int n)
{
	const struct page *page = page_at(used_addr(n));
	struct eye cpu = { "the CPU", page->present ? HMM_TABLE_VALID | (page->protected ? 0 : HMM_TABLE_WRITE) : 0, page->value };
	struct eye device = { "the device", 0, 0 }, window = { "the window", 0, 0 };

	if (world.truth[n].lagging)
		end_lag(n);
	if (world.truth[n].lagging)
		return;
	device.may = device_reach(n);
	/* Asked of the kernel: only where it can matter. */
	if (world.windows && (cpu.may || device.may))
		window.may = window_reach(n);
	if (!device.may && !window.may)
		return;
	look(&device, 0, n);
	look(&window, WINDOW_MIRROR, n);
	check_both(n, &cpu, &device);
	check_both(n, &cpu, &window);
	check_both(n, &device, &window);
}

void oracle_step(void)
{
	for (unsigned int n = 0; n < PAGES_USED; n++)
		check_page(n);
}

/* ---- when hmmd waits -------------------------------------------------------------------------------------------- */

struct totals {
	uint64_t charged, device, shared;
};

static void check_copies(struct block *block, struct totals *all)
{
	const struct copy *copy;

	LIST_FOREACH(copy, &block->copies, of_block) {
		all[copy->mirror->index].shared += pages_count(&copy->pages);
		all[copy->mirror->index].charged += copies_charged(copy);
	}
}

static void check_block(struct block *block, void *data)
{
	struct totals none = { 0 }, *all = data;
	struct totals *totals = block_mirror(block) ? &all[block->record->mirror] : &none;
	bool rest = block_at_rest(block);
	unsigned int held = 0;

	if ((block_sequence(block->owner, block->addr) & 1) == rest)
		wrong("block %s: %s, and its number is %lu", addr_name(block->addr), transit_name(block->record->transit),
		      block_sequence(block->owner, block->addr));
	if (rest && block->record->slot != HMM_NO_SLOT)
		wrong("block %s rests, and has slot %u", addr_name(block->addr), block->record->slot);
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		enum hmm_page_state state = page_state(block, i);
		bool out = state == HMM_PAGE_DEVICE || state == HMM_PAGE_SHARED;
		bool pending = page_is_pending(block, i);
		uint64_t entry = block->owner->table[(block->addr >> HMM_PAGE_SHIFT) + i];

		if (entry != (pending ? 0 : expected_entry(block->record->mirror, page_addr(block, i), state)))
			wrong("%s: the ledger has state %u%s, the table %#lx", addr_name(page_addr(block, i)), state,
			      pending ? " in transit" : "", entry);
		if (out && pages_test(&block->stale, i))
			wrong("%s is needed, and stale", addr_name(page_addr(block, i)));
		totals->device += state == HMM_PAGE_DEVICE;
		totals->shared += state == HMM_PAGE_SHARED;
		held += out;
	}
	if (block->charged < held)
		wrong("block %s has %u pages on the device, and %u are charged for", addr_name(block->addr), held, block->charged);
	totals->charged += block->charged;
	if (none.charged || none.device || none.shared)
		wrong("block %s has pages, and no mirror", addr_name(block->addr));
	check_copies(block, all);
}

void oracle_idle(void)
{
	struct owner *owner = hmmd_owner();
	struct totals all[MIRRORS_MAX] = { 0 };

	if (!owner || !owner->table || owner->recovering || owner->gone)
		return;
	block_for_each(owner, 0, HMM_VA_END, check_block, all);
	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		const struct mirror *mirror = owner->mirror[i];

		if (!mirror)
			continue;
		if (all[i].device != mirror->device_pages || all[i].shared != mirror->shared_pages)
			wrong("mirror %u: %lu pages are D and %lu S; counted are %lu and %lu", i, all[i].device, all[i].shared,
			      (uint64_t)mirror->device_pages, (uint64_t)mirror->shared_pages);
		if (mirror->device->used != all[i].charged * HMM_PAGE_SIZE)
			wrong("mirror %u: %lu bytes are charged for, and blocks have %lu", i, (uint64_t)mirror->device->used,
			      all[i].charged * HMM_PAGE_SIZE);
	}
}

/* ---- when all is over ---------------------------------------------------------------------------------------------- */

void oracle_end(void)
{
	if (world.child_fds)
		wrong("hmmd has gone, and a child's userfaultfd is kept");
	for (unsigned int n = 0; n < PAGES_USED; n++) {
		const struct page *page = page_at(used_addr(n));

		/*
		 * What it registers again because the map is changing may be another mapping by then, which it is then told was
		 * unmapped: it stays registered, and the first fault there sets that right. And what hmmd registers for a moment, to see
		 * whether a mapping has grown (grown_end()), stays so if it is killed in that: nothing is protected there, nobody waits.
		 */
		if ((page->missing || page->wp) && !page->doubtful)
			wrong("hmmd has gone, and %s is registered", addr_name(used_addr(n)));
		if (page->present && page->protected)
			wrong("hmmd has gone, and %s is protected", addr_name(used_addr(n)));
		if (page->mapped)
			cpu_loaded(n, page->present ? page->value : 0, "whoever comes after hmmd");
	}
}
