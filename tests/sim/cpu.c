// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cpu.c - threads of the owner: they load and store, and change the map. What the kernel does for each is here: a fault
 * is told and waited for; a change is made, told, and waited for until hmmd has read of it.
 */
#include <linux/userfaultfd.h>
#include <string.h>

#include "sim.h"

/* ---- loads and stores ---------------------------------------------------------------------------------------- */

static bool is_woken(void *data)
{
	return !((struct waiter *)data)->waits;
}

static void fault(unsigned int cpu, uint64_t addr, uint64_t flags)
{
	struct waiter *waiter = &world.waiter[cpu];

	*waiter = (struct waiter){ .waits = true, .addr = addr, .flags = flags, .tid = 200 + cpu };
	say("faults at %s%s", addr_name(addr), flags & UFFD_PAGEFAULT_FLAG_WP ? ", protected" : "");
	hmmd_signal_uffd();
	block(is_woken, waiter, INT64_MAX);
}

/* The page as the CPU may use it now. NULL: nothing is mapped there. */
static struct page *reach(unsigned int cpu, unsigned int n, bool write)
{
	struct page *page = page_at(used_addr(n));

	for (;;) {
		uint64_t flags = write ? UFFD_PAGEFAULT_FLAG_WRITE : 0;

		if (!page->mapped || page->poisoned)
			return NULL;
		if (page->present && !(write && page->protected))
			return page;
		if (page->present && !page->wp) {
			page->protected = false;
		} else if (page->present) {
			fault(cpu, used_addr(n), flags | UFFD_PAGEFAULT_FLAG_WP);
		} else if (page->missing) {
			fault(cpu, used_addr(n), flags);
		} else {
			page->present = true;
			page->value = 0;
		}
	}
}

static void load(unsigned int cpu, unsigned int n)
{
	const struct page *page = reach(cpu, n, false);

	if (!page)
		return;
	say("loads %s: %lu", addr_name(used_addr(n)), page->value);
	cpu_loaded(n, page->value, actor_name(actor_current()));
}

static void store(unsigned int cpu, unsigned int n)
{
	struct page *page = reach(cpu, n, true);

	if (!page)
		return;
	page->shared = false;
	page->value = new_version();
	say("stores %s: %lu", addr_name(used_addr(n)), page->value);
	cpu_stored(n, page->value);
}

/* ---- changes of the map ------------------------------------------------------------------------------------------ */

static void tell_of(unsigned int cpu, uint8_t kind, unsigned int first, unsigned int pages)
{
	tell_event(cpu, kind, used_addr(first), 0, pages * HMM_PAGE_SIZE);
}

static bool page_is_watched(unsigned int n)
{
	return page_at(used_addr(n))->missing || page_at(used_addr(n))->wp;
}

static bool any_watched(unsigned int first, unsigned int pages)
{
	return range_is_watched(used_addr(first), pages * HMM_PAGE_SIZE);
}

/* MADV_DONTNEED: told first, and then done; from when it is read others may fill the pages again. */
static void discard(unsigned int cpu, unsigned int first, unsigned int pages)
{
	say("discards %s, %u pages", addr_name(used_addr(first)), pages);
	for (unsigned int n = first; n < first + pages; n++)
		page_changes(n, false, page_is_watched(n));
	if (any_watched(first, pages)) {
		world.changing++;
		tell_of(cpu, UFFD_EVENT_REMOVE, first, pages);
		world.changing--;
		step();
	}
	for (unsigned int n = first; n < first + pages; n++) {
		struct page *page = page_at(used_addr(n));

		page->present = page->protected = page->poisoned = page->shared = page->huge = false;
		page->value = 0;
		page_discarded(n);
	}
	say("has discarded %s, %u pages", addr_name(used_addr(first)), pages);
}

/* mmap(MAP_FIXED) over it: done first, and then told. */
static void replace(unsigned int cpu, unsigned int first, unsigned int pages)
{
	bool watched;

	step();
	watched = any_watched(first, pages);
	world.changing += watched;
	say("maps %s anew, %u pages", addr_name(used_addr(first)), pages);
	world.mappings++;
	for (unsigned int n = first; n < first + pages; n++) {
		struct page *page = page_at(used_addr(n));

		page_changes(n, true, page_is_watched(n));
		*page = (struct page){ .mapped = true, .mapping = world.mappings, .changing = true };
	}
	if (!watched)
		return;
	step();
	tell_of(cpu, UFFD_EVENT_UNMAP, first, pages);
	world.changing--;
}

/* mremap(MREMAP_FIXED) of one mapping over others: all of it is done, and then told. */
static void move(unsigned int cpu, unsigned int from, unsigned int to, unsigned int pages)
{
	bool watched, covered;

	step();
	for (unsigned int n = from; n < from + pages; n++)
		if (!page_at(used_addr(n))->mapped || page_at(used_addr(n))->mapping != page_at(used_addr(from))->mapping ||
		    page_is_watched(n) != page_is_watched(from))
			return;
	watched = page_is_watched(from);
	covered = any_watched(to, pages);
	world.changing += covered + 2 * watched;
	world.mappings++;
	say("moves %s to %s, %u pages", addr_name(used_addr(from)), addr_name(used_addr(to)), pages);
	for (unsigned int n = 0; n < pages; n++) {
		struct page *source = page_at(used_addr(from + n)), *target = page_at(used_addr(to + n));

		page_moves(from + n, to + n, covered, watched);
		*target = *source;
		target->mapping = world.mappings;
		target->huge = false;
		*source = (struct page){ .changing = true };
	}
	if (covered) {
		step();
		tell_of(cpu, UFFD_EVENT_UNMAP, to, pages);
		world.changing--;
	}
	if (watched) {
		step();
		tell_event(cpu, UFFD_EVENT_REMAP, used_addr(from), used_addr(to), pages * HMM_PAGE_SIZE);
		world.changing--;
		step();
		tell_of(cpu, UFFD_EVENT_UNMAP, from, pages);
		world.changing--;
	}
}

struct change {
	unsigned int first, pages;
};

/* Two threads that change the same pages at a time know no more than we do what comes of it. */
static bool may_change(void *data)
{
	const struct change *change = data;

	for (unsigned int n = change->first; n < change->first + change->pages; n++)
		if (page_at(used_addr(n))->changing)
			return false;
	return true;
}

static void mark(const struct change *change, bool changing)
{
	for (unsigned int n = change->first; n < change->first + change->pages; n++)
		page_at(used_addr(n))->changing = changing;
}

static bool may_change_both(void *data)
{
	return may_change(data) && may_change((struct change *)data + 1);
}

static void change(unsigned int cpu, unsigned int first)
{
	struct change change[2] = { { first, 1 + choose(PAGES_BLOCK - first % PAGES_BLOCK) } };
	unsigned int what = choose(3), to = choose(PAGES_USED);

	change[1] = change[0];
	if (what == 2) {
		/* In one block, and not over itself. */
		to -= to % PAGES_BLOCK + change->pages > PAGES_BLOCK ? to % PAGES_BLOCK : 0;
		if (to < first + change->pages && first < to + change->pages)
			return;
		change[1].first = to;
	}
	block(may_change_both, change, INT64_MAX);
	mark(&change[0], true);
	mark(&change[1], true);
	if (what == 2)
		move(cpu, first, to, change->pages);
	else if (what)
		replace(cpu, first, change->pages);
	else
		discard(cpu, first, change->pages);
	mark(&change[0], false);
	mark(&change[1], false);
}

/* ---- forks ---------------------------------------------------------------------------------------------------------- */

static bool may_ask(void *data)
{
	return world.lost || (world.open && !*(const bool *)data);
}

/* Until it is answered: hmmd may die over it, or be short of something. */
static void ask_surely(uint16_t opcode, uint32_t number)
{
	bool asked;
	int r;

	do {
		struct hmm_msg_forked *message = message_new(opcode, sizeof(*message));

		message->owner = world.owner_id;
		message->fork = number;
		r = ask(message, NULL);
		asked = world.open;
		if (r)
			block(may_ask, &asked, asked ? world.now + NS_PER_MS : INT64_MAX);
	} while ((r == -EAGAIN || r == -ENOMEM) && !world.lost);
	if (r && !world.lost)
		wrong("%s: %s", hmm_opcode_name(opcode), strerror(-r));
}

static bool is_rescued(void *data)
{
	(void)data;
	return rescue_is_done();
}

/* As libclient/fork.c has it: what is on the device comes home before, and nothing leaves until it is over. */
static void fork_by_library(unsigned int cpu)
{
	/* As long as hmmd waits for the end of it, whose clock is a moment late, and not longer (LIMITS.md, 21). */
	int64_t until = world.now + 29 * ACK_TIMEOUT_MS * NS_PER_MS;

	world.prepared[cpu] = ++world.forks;
	ask_surely(HMM_OP_PREPARE_FORK, world.prepared[cpu]);
	if (world.lost)
		block(is_rescued, NULL, INT64_MAX);
	step();
	fork_child(cpu, world.lost || !world.forks_unseen ? INT64_MAX : until);
	step();
	ask_surely(HMM_OP_FORKED, world.prepared[cpu]);
	world.prepared[cpu] = 0;
}

static void make_child(unsigned int cpu)
{
	if (world.forks_unseen || choose(3) == 2)
		fork_by_library(cpu);
	else
		fork_child(cpu, INT64_MAX);
}

void cpu_body(void *data)
{
	unsigned int cpu = *(const unsigned int *)data;

	while (choose(12)) {
		unsigned int n = choose(PAGES_USED);

		switch (choose(7 + rarely(3))) {
		case 7:
			make_child(cpu);
			break;
		case 6:
			/* Who declares memory UNPINNED promises that nothing unmaps it during a migration, either. */
			if (!world.no_move)
				change(cpu, n);
			break;
		case 0: case 1: case 2:
			store(cpu, n);
			break;
		default:
			load(cpu, n);
		}
		if (rarely(6))
			sleep_ns(500 * NS_PER_US);
		else
			step();
	}
}
