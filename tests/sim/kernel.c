// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * kernel.c - the owner's address space and its userfaultfd, by the page, and hmmd's calls on them. What the calls do
 * and refuse is what Linux 6.18 does (tests/contract proves it there). Each call of hmmd's is a step, so anybody may come just
 * before it; and it may fail as it may there.
 *
 * A huge page is 512 pages that go together as long as nobody does anything to one of them alone.
 *
 * Not simulated: swap, guard pages, files. A window's mapping is in window.c, a child's in child.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sim.h"
#include "uapi.h"

#define FDS_MAX 2048

static enum role roles[FDS_MAX];

/* ---- descriptors ----------------------------------------------------------------------------------------- */

static void count_fd(enum role role, int by)
{
	if (role == ROLE_CHILD)
		world.child_fds += (unsigned int)by;
	else if (role == ROLE_UFFD)
		world.uffd_fds += (unsigned int)by;
}

int role_fd(enum role role)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (fd < 0 || fd >= FDS_MAX)
		wrong("out of descriptors: %m");
	roles[fd] = role;
	count_fd(role, 1);
	return fd;
}

static int dup_from(int fd, int lowest)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, lowest);

	if (copy < 0 || copy >= FDS_MAX)
		wrong("out of descriptors: %m");
	roles[copy] = fd_role(fd);
	count_fd(roles[copy], 1);
	return copy;
}

int role_dup(int fd)
{
	return dup_from(fd, FDS_KEPT);
}

int role_dup_low(int fd)
{
	return dup_from(fd, 0);
}

enum role fd_role(int fd)
{
	return fd >= 0 && fd < FDS_MAX ? roles[fd] : ROLE_NONE;
}

void role_forget(int fd)
{
	enum role role = fd_role(fd);

	if (fd >= 0 && fd < FDS_MAX)
		roles[fd] = ROLE_NONE;
	count_fd(role, -1);
	if (role == ROLE_CHILD && !world.child_fds)
		child_is_released();
	/* The library has one as long as it is not rescued. */
	if (role == ROLE_UFFD && world.lost && rescue_is_done())
		space_release();
}

static void is(int fd, enum role role, const char *call)
{
	if (fd_role(fd) != role)
		wrong("%s on a descriptor that is closed, or another's", call);
}

/* ---- pages ------------------------------------------------------------------------------------------------- */

void space_reset(void)
{
	memset(roles, 0, sizeof(roles));
	for (unsigned int n = 0; n < PAGES_USED; n++)
		page_at(used_addr(n))->mapped = true;
	for (unsigned int i = 0; i < SLOT_PAGES; i++) {
		world.slot[i].mapped = true;
		world.slot[i].mapping = 1;
	}
	world.mappings = 1;
}

/* All of the first block, of which programs use what they do of the others. */
void space_make_huge(void)
{
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		world.room[i].mapped = world.room[i].present = world.room[i].huge = true;
}

/* khugepaged came by, and found the first block whole. */
void space_merge(void)
{
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		const struct page *page = &world.room[i];

		if (!page->mapped || !page->present || page->protected || page->shared || page->missing || page->wp ||
		    page->mapping != world.room[0].mapping)
			return;
	}
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		world.room[i].huge = true;
	say("khugepaged makes one page of %s", addr_name(ROOM));
}

bool block_is_huge(uint64_t block)
{
	const struct page *page = page_at(block);

	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (!page[i].huge || !page[i].present || page[i].protected != page->protected || page[i].mapping != page->mapping)
			return false;
	return true;
}

struct page *page_at(uint64_t addr)
{
	if (addr >= ROOM && addr < ROOM_END)
		return &world.room[(addr - ROOM) >> HMM_PAGE_SHIFT];
	if (addr >= SLOTS_ADDR && addr < SLOTS_END)
		return &world.slot[(addr - SLOTS_ADDR) >> HMM_PAGE_SHIFT];
	return NULL;
}

static bool is_slot(uint64_t addr)
{
	return addr >= SLOTS_ADDR && addr < SLOTS_END;
}

/* A slot's pages are real memory: the agent copies out of it by pointer. */
static uint64_t get_value(uint64_t addr)
{
	return is_slot(addr) ? real_value((void *)addr) : page_at(addr)->value;
}

static void set_value(uint64_t addr, uint64_t value)
{
	if (is_slot(addr))
		*(volatile uint64_t *)addr = value;
	else
		page_at(addr)->value = value;
}

static void drop_page(struct page *page)
{
	page->present = page->protected = page->poisoned = page->shared = page->huge = false;
	page->value = 0;
}

static bool same_mapping(const struct page *a, const struct page *b)
{
	return a && b && a->mapped && b->mapped && a->mapping == b->mapping && a->missing == b->missing && a->wp == b->wp;
}

/* A mapping ends where its registration changes, too. */
static int vma_at(uint64_t addr, struct kernel_vma *vma)
{
	static const uint64_t ends[][2] = { { ROOM, ROOM_END }, { SLOTS_ADDR, SLOTS_END } };
	uint64_t asked = addr & ~(HMM_PAGE_SIZE - 1);

	for (unsigned int i = 0; i < 2; i++) {
		uint64_t at = asked > ends[i][0] ? asked : ends[i][0], start, end;

		while (at < ends[i][1] && !page_at(at)->mapped)
			at += HMM_PAGE_SIZE;
		if (at >= ends[i][1])
			continue;
		for (start = at; start > ends[i][0] && same_mapping(page_at(start - HMM_PAGE_SIZE), page_at(at));)
			start -= HMM_PAGE_SIZE;
		for (end = at + HMM_PAGE_SIZE; end < ends[i][1] && same_mapping(page_at(end), page_at(at));)
			end += HMM_PAGE_SIZE;
		*vma = (struct kernel_vma){ .start = start, .end = end, .page_size = HMM_PAGE_SIZE, .read = true, .write = true };
		return 0;
	}
	return -ENOENT;
}

uint64_t space_pagemap(uint64_t addr)
{
	const struct page *page = page_at(addr);

	if (!page || !page->mapped)
		return 0;
	if (page->poisoned)
		return PM_SWAP;
	return page->present ? PM_PRESENT | (page->shared ? 0 : PM_EXCLUSIVE) | (page->protected ? PM_UFFD_WP : 0) : 0;
}

/* ---- userfaultfd -------------------------------------------------------------------------------------------- */

void wake_range(uint64_t start, uint64_t end)
{
	for (unsigned int i = 0; i < CPUS; i++)
		if (world.waiter[i].waits && world.waiter[i].addr >= start && world.waiter[i].addr < end)
			world.waiter[i].waits = false;
}

bool uffd_has_messages(void)
{
	for (unsigned int i = 0; i < EVENTS; i++)
		if ((i < CPUS && world.waiter[i].waits && !world.waiter[i].told) || (world.event[i].queued && !world.event[i].read))
			return true;
	return false;
}

static bool is_read(void *data)
{
	return ((struct event *)data)->read;
}

void tell_event(unsigned int index, uint8_t kind, uint64_t from, uint64_t to, uint64_t length)
{
	struct event *event = &world.event[index];

	if (world.released)
		return;
	*event = (struct event){ .queued = true, .order = ++world.events, .kind = kind, .from = from, .to = to, .length = length };
	hmmd_signal_uffd();
	block(is_read, event, INT64_MAX);
	event->queued = false;
}

bool range_is_watched(uint64_t start, uint64_t length)
{
	for (uint64_t at = start; at < start + length; at += HMM_PAGE_SIZE)
		if (page_at(at)->missing || page_at(at)->wp)
			return true;
	return false;
}

/* What is unread or unapplied when hmmd begins to take over may concern what it registers again then. */
static bool is_taken_over(void)
{
	const struct owner *owner = hmmd_owner();

	return owner && owner->recovering;
}

int space_register(uint64_t start, uint64_t length, uint64_t mode)
{
	bool missing = mode & UFFDIO_REGISTER_MODE_MISSING, wp = mode & UFFDIO_REGISTER_MODE_WP, any = false;

	for (uint64_t at = start; at < start + length; at += HMM_PAGE_SIZE) {
		struct page *page = page_at(at);

		if (!page || !page->mapped)
			continue;
		any = true;
		/* Fewer modes than there are change nothing. */
		if ((page->missing || !missing) && (page->wp || !wp))
			continue;
		page->missing = missing;
		page->wp = wp;
		page->huge &= length >= HMM_BLOCK_SIZE;
		page->doubtful = in_hmmd() && (world.changing || !missing || is_taken_over());
	}
	return any ? 0 : -EINVAL;
}

int space_unregister(uint64_t start, uint64_t length)
{
	bool any = false;

	for (uint64_t at = start; at < start + length; at += HMM_PAGE_SIZE) {
		struct page *page = page_at(at);

		if (!page || !page->mapped)
			continue;
		any = true;
		if (page->missing)
			wake_range(at, at + HMM_PAGE_SIZE);
		page->missing = page->wp = page->protected = page->doubtful = false;
		page->huge &= length >= HMM_BLOCK_SIZE;
	}
	return any ? 0 : -EINVAL;
}

/* Of COPY and its like: all of it in one mapping, and registered. */
static bool is_watched(uint64_t start, uint64_t length)
{
	const struct page *first = page_at(start);

	if (!first || !first->mapped || !(first->missing || first->wp))
		return false;
	for (uint64_t at = start; at < start + length; at += HMM_PAGE_SIZE)
		if (!same_mapping(first, page_at(at)))
			return false;
	return true;
}

enum filling { FILL_COPY, FILL_ZERO, FILL_POISON };

static int fill(enum filling how, uint64_t dst, const char *src, size_t length, uint64_t mode, size_t *done)
{
	int r = 0;

	*done = 0;
	if (world.changing)
		return -EAGAIN;
	if (!is_watched(dst, length))
		return -ENOENT;
	if (mode & UFFDIO_COPY_MODE_WP && !page_at(dst)->wp)
		return -EINVAL;
	for (; *done < length && !r; *done += HMM_PAGE_SIZE) {
		uint64_t at = dst + *done;
		struct page *page = page_at(at);

		/* Half of it, and the map changes. */
		if (*done && world.failing && rarely(8))
			r = -EAGAIN;
		else if (page->present || (page->poisoned && how == FILL_POISON))
			r = -EEXIST;
		if (r)
			break;
		drop_page(page);
		page->present = how != FILL_POISON;
		page->poisoned = how == FILL_POISON;
		page->protected = mode & UFFDIO_COPY_MODE_WP;
		set_value(at, how == FILL_COPY ? real_value(src + *done) : 0);
	}
	if (*done && !(mode & UFFDIO_COPY_MODE_DONTWAKE))
		wake_range(dst, dst + *done);
	/* The kernel says how far it got, and that it was not all. */
	return *done == length ? 0 : *done ? -EAGAIN : r;
}

static int protect(uint64_t start, size_t length, bool on)
{
	bool any = false;

	if (world.changing)
		return -EAGAIN;
	for (uint64_t at = start; at < start + length; at += HMM_PAGE_SIZE) {
		const struct page *page = page_at(at);

		if (!page || !page->mapped)
			continue;
		if (!page->wp)
			return -ENOENT;
		any = true;
	}
	if (!any)
		return -ENOENT;
	for (uint64_t at = start; at < start + length; at += HMM_PAGE_SIZE) {
		struct page *page = page_at(at);

		/* Of what is not there nothing is noted. */
		if (page && page->present) {
			page->protected = on;
			page->huge &= length == HMM_BLOCK_SIZE;
		}
	}
	if (!on)
		wake_range(start, start + length);
	return 0;
}

/* ---- hmmd's calls --------------------------------------------------------------------------------------------- */

/* Others may come. True: it fails, as it does there for want of memory or for a map that has changed in between. */
static bool fails(void)
{
	step();
	return world.failing && rarely(world.failing);
}

static int short_of(void)
{
	return choose(2) ? -ENOMEM : -EAGAIN;
}

static bool of_window(int uffd)
{
	return fd_role(uffd) == ROLE_WINDOW;
}

static int sim_copy(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode, size_t *done)
{
	int r;

	*done = 0;
	if (fd_role(uffd) == ROLE_CHILD) {
		r = fails() ? short_of() : child_fill(dst, src, length, false, done);
		say("COPY to the child, %s, %zu pages: %d, %zu done", addr_name(dst), length >> HMM_PAGE_SHIFT, r, *done >> HMM_PAGE_SHIFT);
		return r;
	}
	is(uffd, ROLE_UFFD, "COPY");
	r = fails() ? short_of() : fill(FILL_COPY, dst, src, length, mode, done);
	say("COPY %s, %zu pages%s%s: %d, %zu done", addr_name(dst), length >> HMM_PAGE_SHIFT,
	    mode & UFFDIO_COPY_MODE_WP ? ", protected" : "", mode & UFFDIO_COPY_MODE_DONTWAKE ? ", nobody woken" : "", r,
	    *done >> HMM_PAGE_SHIFT);
	return r;
}

static int sim_zero(int uffd, uint64_t dst, size_t length, size_t *done)
{
	int r;

	*done = 0;
	if (of_window(uffd)) {
		r = fails() ? -ENOMEM : window_zero(dst, done);
		say("ZEROPAGE in the window, %s: %d", addr_name(dst), r);
		return r;
	}
	is(uffd, ROLE_UFFD, "ZEROPAGE");
	r = fails() ? short_of() : fill(FILL_ZERO, dst, NULL, length, 0, done);
	say("ZEROPAGE %s, %zu pages: %d, %zu done", addr_name(dst), length >> HMM_PAGE_SHIFT, r, *done >> HMM_PAGE_SHIFT);
	return r;
}

static int sim_poison(int uffd, uint64_t dst, size_t length, size_t *done)
{
	int r;

	*done = 0;
	if (of_window(uffd)) {
		r = fails() ? -ENOMEM : window_poison(dst, done);
		say("POISON in the window, %s: %d", addr_name(dst), r);
		return r;
	}
	if (fd_role(uffd) == ROLE_CHILD) {
		r = fails() ? -EAGAIN : child_fill(dst, NULL, length, true, done);
		say("POISON for the child, %s: %d", addr_name(dst), r);
		return r;
	}
	is(uffd, ROLE_UFFD, "POISON");
	r = fails() ? short_of() : fill(FILL_POISON, dst, NULL, length, 0, done);
	say("POISON %s: %d", addr_name(dst), r);
	return r;
}

static int sim_continue(int uffd, uint64_t dst, size_t length, uint64_t mode, size_t *done)
{
	int r;

	*done = 0;
	is(uffd, ROLE_WINDOW, "CONTINUE");
	r = fails() ? -ENOMEM : window_continue(dst, length, mode, done);
	say("CONTINUE in the window, %s, %zu pages%s: %d", addr_name(dst), length >> HMM_PAGE_SHIFT,
	    mode & UFFDIO_CONTINUE_MODE_WP ? ", protected" : "", r);
	return r;
}

static int sim_protect(int uffd, uint64_t start, size_t length, bool on)
{
	int r;

	if (of_window(uffd)) {
		r = fails() ? -EAGAIN : window_set_protection(start, length, on);
		say("WRITEPROTECT in the window, %s, %zu pages, %s: %d", addr_name(start), length >> HMM_PAGE_SHIFT, on ? "on" : "off", r);
		return r;
	}
	if (fd_role(uffd) == ROLE_CHILD) {
		r = fails() ? -EAGAIN : child_protect(start, on);
		say("WRITEPROTECT of the child, %s, %s: %d", addr_name(start), on ? "on" : "off", r);
		return r;
	}
	is(uffd, ROLE_UFFD, "WRITEPROTECT");
	/* Of a slot it is asked whether the map is changing, and nothing else. */
	r = fails() && !is_slot(start) ? -EAGAIN : protect(start, length, on);
	if (!is_slot(start))
		say("WRITEPROTECT %s, %zu pages, %s: %d", addr_name(start), length >> HMM_PAGE_SHIFT, on ? "on" : "off", r);
	return r;
}

static int sim_register(int uffd, uint64_t start, size_t length, uint64_t mode)
{
	int r;

	if (of_window(uffd)) {
		/* A window that can't be guarded is revoked: its library closes it when it hears of it, and hmmd can't wait for that. */
		r = fails() && !(mode & UFFDIO_REGISTER_MODE_MINOR) ? -ENOMEM : window_register(start, length, mode);
		say("REGISTER in the window, %s, %zu pages, modes %lu: %d", addr_name(start), length >> HMM_PAGE_SHIFT, mode, r);
		return r;
	}
	is(uffd, ROLE_UFFD, "REGISTER");
	r = fails() ? -ENOMEM : space_register(start, length, mode);
	say("REGISTER %s, %zu pages, modes %lu: %d", addr_name(start), length >> HMM_PAGE_SHIFT, mode, r);
	return r;
}

static int sim_unregister(int uffd, uint64_t start, size_t length)
{
	int r;

	is(uffd, ROLE_UFFD, "UNREGISTER");
	step();
	r = space_unregister(start, length);
	say("UNREGISTER %s, %zu pages: %d", addr_name(start), length >> HMM_PAGE_SHIFT, r);
	return r;
}

static int sim_wake(int uffd, uint64_t start, size_t length)
{
	if (of_window(uffd)) {
		step();
		say("WAKE in the window, %s, %zu pages", addr_name(start), length >> HMM_PAGE_SHIFT);
		window_let_go_on(start, length);
		return 0;
	}
	is(uffd, ROLE_UFFD, "WAKE");
	step();
	say("WAKE %s, %zu pages", addr_name(start), length >> HMM_PAGE_SHIFT);
	wake_range(start, start + length);
	return 0;
}

void put_fault(struct uffd_msg *message, const struct waiter *waiter)
{
	*message = (struct uffd_msg){ .event = UFFD_EVENT_PAGEFAULT };
	message->arg.pagefault.address = waiter->addr;
	message->arg.pagefault.flags = waiter->flags;
	message->arg.pagefault.feat.ptid = waiter->tid;
	say("read: a fault at %s%s", addr_name(waiter->addr),
	    waiter->flags & UFFD_PAGEFAULT_FLAG_WP ? ", protected" : waiter->flags ? ", to be written" : "");
}

void put_event(struct uffd_msg *message, const struct event *event)
{
	*message = (struct uffd_msg){ .event = event->kind };
	if (event->kind == UFFD_EVENT_FORK) {
		int fd = role_fd(ROLE_CHILD);

		message->arg.fork.ufd = (uint32_t)fd;
		if (!in_hmmd()) {
			message->arg.fork.ufd = (uint32_t)role_dup(fd);
			close(fd);
		}
		say("read: FORK");
		return;
	}
	if (event->kind == UFFD_EVENT_REMAP) {
		message->arg.remap.from = event->from;
		message->arg.remap.to = event->to;
		message->arg.remap.len = event->length;
	} else {
		message->arg.remove.start = event->from;
		message->arg.remove.end = event->from + event->length;
	}
	say("read: %s at %s, %lu pages", event->kind == UFFD_EVENT_REMAP ? "REMAP" : event->kind == UFFD_EVENT_UNMAP ? "UNMAP" : "REMOVE",
	    addr_name(event->from), event->length >> HMM_PAGE_SHIFT);
}

static struct event *next_event(void)
{
	struct event *next = NULL;

	for (unsigned int i = 0; i < EVENTS; i++) {
		struct event *event = &world.event[i];

		if (event->queued && !event->read && (!next || event->order < next->order))
			next = event;
	}
	return next;
}

static size_t read_messages(struct uffd_msg *message, size_t room)
{
	size_t n = 0;

	/* All faults before any event. */
	for (unsigned int i = 0; i < CPUS && n < room; i++)
		if (world.waiter[i].waits && !world.waiter[i].told) {
			world.waiter[i].told = true;
			put_fault(&message[n++], &world.waiter[i]);
		}
	for (struct event *event; n < room && (event = next_event()); n++) {
		event->read = true;
		put_event(&message[n], event);
		/* The agent's own changes nothing of what is true. */
		if (event < &world.event[CPUS] && in_hmmd())
			event_is_read(event, &message[n]);
	}
	return n;
}

static ssize_t sim_read(int uffd, void *messages, size_t length)
{
	struct uffd_msg *message = messages;
	size_t n = 0, room = length / sizeof(*message);

	if (of_window(uffd)) {
		step();
		return window_read(messages);
	}
	is(uffd, ROLE_UFFD, "read");
	step();
	n = read_messages(message, room);
	return n ? (ssize_t)(n * sizeof(*message)) : -EAGAIN;
}
static int sim_pagemap_read(int pagemap, uint64_t start, unsigned int pages, uint64_t *entries)
{
	is(pagemap, ROLE_PAGEMAP, "pagemap");
	if (fails())
		return -ENOMEM;
	for (unsigned int i = 0; i < pages; i++)
		entries[i] = space_pagemap(start + i * HMM_PAGE_SIZE);
	return 0;
}

static int sim_page_kinds(int pagemap, uint64_t start, unsigned int pages, uint8_t *kinds)
{
	(void)pagemap, (void)start;
	memset(kinds, 0, pages);
	return 0;
}

static int sim_pages_written(int pagemap, uint64_t start, uint64_t end, struct kernel_region *regions, unsigned int max,
			     uint64_t *walked)
{
	(void)pagemap, (void)start, (void)end, (void)regions, (void)max, (void)walked;
	return -EPERM;
}

static int sim_soft_dirty_clear(int clear_refs)
{
	(void)clear_refs;
	return -ENOSYS;
}

/* Whoever reads or writes by /proc/PID/mem faults in what nobody watches, and is refused where somebody does. */
static struct page *reached(uint64_t addr)
{
	struct page *page = page_at(addr);

	if (!page || !page->mapped || page->poisoned || (!page->present && page->missing))
		return NULL;
	if (!page->present) {
		drop_page(page);
		page->present = true;
		set_value(addr & ~(HMM_PAGE_SIZE - 1), 0);
	}
	return page;
}

static ssize_t sim_mem_read(int mem, uint64_t addr, void *buffer, size_t length)
{
	uint64_t bytes[HMM_PAGE_SIZE / sizeof(uint64_t)] = { 0 };
	size_t offset = addr % HMM_PAGE_SIZE;

	is(mem, ROLE_MEM, "mem");
	if (fails() || !reached(addr) || offset + length > HMM_PAGE_SIZE)
		return -EIO;
	bytes[0] = get_value(addr - offset);
	memcpy(buffer, (char *)bytes + offset, length);
	return (ssize_t)length;
}

static ssize_t sim_mem_write(int mem, uint64_t addr, const void *buffer, size_t length)
{
	struct page *page;

	is(mem, ROLE_MEM, "mem");
	if (fails())
		return -EIO;
	page = reached(addr);
	if (!page || page->protected || addr % HMM_PAGE_SIZE || length < sizeof(uint64_t))
		return -EIO;
	page->shared = false;
	set_value(addr, real_value(buffer));
	say("hmmd writes %lu to %s in place", real_value(buffer), addr_name(addr));
	return (ssize_t)length;
}

/* These owners tell the kernel nothing. */
static int sim_told(int smaps, uint64_t start, uint64_t end,
		    void (*found)(void *data, uint64_t start, uint64_t end, unsigned int told), void *data)
{
	(void)smaps, (void)start, (void)end, (void)found, (void)data;
	return 0;
}

static int sim_vma_at(int maps, uint64_t addr, struct kernel_vma *vma)
{
	is(maps, ROLE_MAPS, "maps");
	step();
	return vma_at(addr, vma);
}

static int sim_mapped(int pagemap, uint64_t addr)
{
	const struct page *page = page_at(addr);

	is(pagemap, ROLE_PAGEMAP, "pagemap");
	step();
	return page && page->mapped;
}

static int sim_memfd_new(const char *name, uint64_t size, unsigned int flags)
{
	/* Between the reading of a fork and the keeping of its descriptor nobody can help (LIMITS.md, 75). */
	if (world.open && strcmp(name, "hmm-child") != 0 && fails())
		return -ENFILE;
	return kernel_real.memfd_new(name, size, flags);
}

static int sim_punch(int fd, uint64_t offset, uint64_t length)
{
	struct stat stat;
	int r;

	step();
	r = kernel_real.punch(fd, offset, length);
	/* What a table or a ledger lies in is nothing to anybody. */
	if (!r && fstat(fd, &stat) == 0 && stat.st_size == (off_t)HMM_REGION_SIZE) {
		say("punches the shadow, %s, %lu pages", addr_name((ROOM & ~(HMM_REGION_SIZE - 1)) + offset), length >> HMM_PAGE_SHIFT);
		window_is_punched(stat.st_ino, offset, length);
	}
	return r;
}

/* hmmd has no pidfd of the owner, which it would need. */
static int sim_collapse(int pidfd, uint64_t start, size_t length)
{
	(void)pidfd, (void)start, (void)length;
	return -EINVAL;
}

static bool sim_merging(void)
{
	return false;
}

static int sim_place(void *start, size_t length, int policy, const uint64_t *nodes)
{
	(void)start, (void)length, (void)policy, (void)nodes;
	return 0;
}

static int sim_policy(int policy, uint64_t nodes)
{
	(void)policy, (void)nodes;
	return 0;
}

static int sim_populate(void *start, size_t length)
{
	(void)start, (void)length;
	return 0;
}

/* Now near its limit, now far from it. */
static void sim_room(pid_t pid, uint64_t *bytes, char *what, size_t size)
{
	(void)pid;
	*bytes = world.failing && rarely(2) ? 0 : UINT64_MAX;
	if (size)
		*what = '\0';
}

/* What is not here is for cards, which the simulation has none of: NULL. */
const struct kernel_ops kernel_simulated = {
	.uffd_copy = sim_copy, .uffd_zero = sim_zero, .uffd_poison = sim_poison, .uffd_continue = sim_continue,
	.uffd_protect = sim_protect, .uffd_register = sim_register, .uffd_unregister = sim_unregister,
	.uffd_wake = sim_wake, .uffd_read = sim_read, .pagemap_read = sim_pagemap_read, .page_kinds = sim_page_kinds,
	.pages_written = sim_pages_written, .soft_dirty_clear = sim_soft_dirty_clear, .mem_read = sim_mem_read,
	.mem_write = sim_mem_write, .vma_at = sim_vma_at, .mapped = sim_mapped, .told = sim_told, .memfd_new = sim_memfd_new,
	.punch = sim_punch, .collapse = sim_collapse, .merging = sim_merging, .place = sim_place, .policy = sim_policy,
	.populate = sim_populate, .room = sim_room,
};

/* ---- the library's calls -------------------------------------------------------------------------------------------- */

static int refuse(int error)
{
	errno = -error;
	return -1;
}

void slot_discard(uint64_t start, uint64_t length)
{
	for (uint64_t at = start; at < start + length; at += HMM_PAGE_SIZE) {
		struct page *page = page_at(at);

		if (page->present)
			set_value(at, 0);
		drop_page(page);
	}
}

/* One huge page, if the kernel finds one. */
void slot_populate(uint64_t start)
{
	struct page *page = page_at(start);
	bool huge = world.huge && !(world.failing && rarely(4));

	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		huge &= !page[i].present;
		page[i].present = true;
		page[i].huge = huge;
	}
}

/* All of it in one piece, as long as it is one and nothing is at the other end. */
static bool moves_whole(const struct uffdio_move *move)
{
	const struct page *to = page_at(move->dst);

	if (move->len != HMM_BLOCK_SIZE || !block_is_huge(move->src))
		return false;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (to[i].present)
			return false;
	return true;
}

/* One page. Return: 1 moved, 0 a hole, or -errno. */
static int move_page(uint64_t dst, uint64_t src, bool may_fail)
{
	struct page *from = page_at(src), *to = page_at(dst);

	if (to->present)
		return -EEXIST;
	if (from->poisoned)
		return -EFAULT;
	if (!from->present)
		return 0;
	/* Somebody holds the page, for a moment; or a child has it, too, for long. */
	if (from->shared)
		return -EBUSY;
	if (may_fail && world.failing && rarely(16))
		return -EBUSY;
	to->present = true;
	to->protected = to->poisoned = false;
	set_value(dst, get_value(src));
	if (is_slot(src))
		set_value(src, 0);
	drop_page(from);
	return 1;
}

int agent_move(struct uffdio_move *move)
{
	bool whole;
	int r = 0;

	step();
	move->move = 0;
	if (world.changing || (world.failing && rarely(world.failing)))
		return refuse(-EAGAIN);
	if (!is_watched(move->dst, move->len))
		return refuse(-ENOENT);
	for (uint64_t at = 0; at < move->len; at += HMM_PAGE_SIZE)
		if (!page_at(move->src + at) || !page_at(move->src + at)->mapped ||
		    page_at(move->src + at)->mapping != page_at(move->src)->mapping)
			return refuse(-EINVAL);
	whole = moves_whole(move);
	for (uint64_t at = 0; at < move->len; at += HMM_PAGE_SIZE) {
		/* Of a huge page all goes, or nothing. */
		r = move_page(move->dst + at, move->src + at, !whole || !at);
		if (r < 0 || (at && !whole && world.failing && rarely(16)))
			break;
		page_at(move->dst + at)->huge = whole;
		if (r > 0 && at < PAGES_BLOCK * HMM_PAGE_SIZE)
			say("MOVE %s to %s", addr_name(move->src + at), addr_name(move->dst + at));
		move->move += HMM_PAGE_SIZE;
		wake_range(move->dst + at, move->dst + at + HMM_PAGE_SIZE);
	}
	if (move->move == (int64_t)move->len)
		return 0;
	if (r < 0)
		say("MOVE %s: %d", addr_name(move->src + (uint64_t)move->move), r);
	if (!move->move)
		return refuse(move->move = r);
	return refuse(-EAGAIN);
}

/* MADV_DONTNEED, as cpu.c has it. */
void agent_discard(uint64_t start, uint64_t length)
{
	step();
	if (range_is_watched(start, length)) {
		world.changing++;
		tell_event(CPUS, UFFD_EVENT_REMOVE, start, 0, length);
		world.changing--;
		step();
	}
	for (uint64_t at = start; at < start + length; at += HMM_PAGE_SIZE)
		drop_page(page_at(at));
	say("has zapped %s, %lu pages", addr_name(start), length >> HMM_PAGE_SHIFT);
}

/* By /proc/self/mem: as far as pages are there. */
ssize_t agent_read(void *buffer, size_t length, uint64_t addr)
{
	size_t done = 0;

	step();
	for (; done < length && reached(addr + done); done += HMM_PAGE_SIZE) {
		memset((char *)buffer + done, 0, HMM_PAGE_SIZE);
		*(uint64_t *)((char *)buffer + done) = get_value(addr + done);
	}
	if (done)
		return (ssize_t)done;
	errno = EIO;
	return -1;
}

int agent_copy(struct uffdio_copy *copy)
{
	size_t done;
	int r;

	step();
	r = fill(FILL_COPY, copy->dst, (const char *)copy->src, copy->len, copy->mode, &done);
	copy->copy = done ? (int64_t)done : r;
	return r ? refuse(r) : 0;
}

int agent_protect(const struct uffdio_writeprotect *arg)
{
	int r;

	step();
	r = protect(arg->range.start, arg->range.len, arg->mode & UFFDIO_WRITEPROTECT_MODE_WP);
	return r ? refuse(r) : 0;
}

ssize_t rescuer_read(struct uffd_msg *messages, size_t length)
{
	size_t n;

	step();
	n = read_messages(messages, length / sizeof(*messages));
	return n ? (ssize_t)(n * sizeof(*messages)) : refuse(-EAGAIN);
}

/* Whoever waits goes on, for a fault that nobody serves, or an event that nobody reads. */
void space_release(void)
{
	world.released = true;
	for (unsigned int i = 0; i < ROOM_PAGES; i++)
		world.room[i].missing = world.room[i].wp = world.room[i].protected = false;
	for (unsigned int i = 0; i < EVENTS; i++)
		world.event[i].read = true;
	wake_range(0, HMM_VA_END);
	say("the owner's userfaultfd is closed");
}

static int rescue_zero(struct uffdio_zeropage *zero)
{
	size_t done;
	int r = fill(FILL_ZERO, zero->range.start, NULL, zero->range.len, 0, &done);

	zero->zeropage = done ? (int64_t)done : r;
	return r;
}

static int of_child(unsigned long request, void *argument)
{
	struct uffdio_copy *copy = argument;
	struct uffdio_poison *poison = argument;
	size_t done;
	int r = 0;

	if (request == UFFDIO_COPY) {
		r = child_fill(copy->dst, (const char *)copy->src, copy->len, false, &done);
		copy->copy = done ? (int64_t)done : r;
		say("COPY to the child, %s: %d", addr_name(copy->dst), r);
	} else if (request == UFFDIO_POISON) {
		r = child_fill(poison->range.start, NULL, poison->range.len, true, &done);
	}
	/* WAKE, and the end of a protection: what closing it does as well. */
	return r;
}

int rescuer_ioctl(int fd, unsigned long request, void *argument)
{
	const struct uffdio_range *range = argument;
	const struct uffdio_poison *poison = argument;
	const struct uffdio_register *there = argument;
	size_t done;
	int r = 0;

	step();
	if (fd_role(fd) == ROLE_CHILD) {
		r = of_child(request, argument);
	} else if (request == UFFDIO_ZEROPAGE) {
		r = rescue_zero(argument);
		say("ZEROPAGE %s: %d", addr_name(range->start), r);
	} else if (request == UFFDIO_REGISTER) {
		r = space_register(there->range.start, there->range.len, there->mode);
		say("REGISTER %s, %llu pages: %d", addr_name(there->range.start), there->range.len >> HMM_PAGE_SHIFT, r);
	} else if (request == UFFDIO_POISON) {
		r = fill(FILL_POISON, poison->range.start, NULL, poison->range.len, 0, &done);
	} else {
		wake_range(range->start, range->start + range->len);
	}
	return r ? refuse(r) : 0;
}
