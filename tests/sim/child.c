// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * child.c - a child that a thread of the owner forks, by clone() alone or between the library's hooks: an address space with copies of
 * the owner's pages as they were at that moment, and a userfaultfd of its own, which comes with the event. What the owner had on the
 * device the child gets from hmmd, sooner or later; then that lets go of the userfaultfd, and what is missing still is zeros. One at a time.
 *
 * And who keeps its userfaultfd while hmmd dies over it: what systemd's store of descriptors is to hmmd.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "sim.h"
#include "uapi.h"

/* ---- who keeps descriptors ------------------------------------------------------------------------------- */

int kept_put(const char *name, const int *fds, unsigned int n)
{
	for (unsigned int i = 0; i < KEPT_MAX; i++) {
		struct kept_fds *kept = &world.kept[i];

		if (*kept->name)
			continue;
		snprintf(kept->name, sizeof(kept->name), "%s", name);
		for (unsigned int k = 0; k < n; k++)
			kept->fd[k] = role_dup(fds[k]);
		return 0;
	}
	return -ENOSPC;
}

int kept_drop(const char *name)
{
	for (unsigned int i = 0; i < KEPT_MAX; i++) {
		struct kept_fds *kept = &world.kept[i];

		if (strcmp(kept->name, name) != 0)
			continue;
		kept->name[0] = '\0';
		for (unsigned int k = 0; k < 2; k++)
			close(kept->fd[k]);
		break;
	}
	return 0;
}

/* Its parent does not come back to any hmmd: what it has not got yet may be zeros (LIMITS.md, 75). */
void kept_forget(void)
{
	for (unsigned int i = 0; i < KEPT_MAX; i++) {
		if (!*world.kept[i].name)
			continue;
		for (unsigned int n = 0; n < PAGES_USED; n++)
			values_add(&world.child.truth[n], 0);
		kept_drop(world.kept[i].name);
	}
}

const char *kept_take(void *data, int *fd)
{
	unsigned int *at = data;

	for (; *at < 2 * KEPT_MAX; ++*at) {
		const struct kept_fds *kept = &world.kept[*at / 2];

		if (!*kept->name)
			continue;
		*fd = role_dup_low(kept->fd[*at % 2]);
		++*at;
		return kept->name;
	}
	return NULL;
}

/* ---- the kernel, of this address space --------------------------------------------------------------------- */

static struct child *child = &world.child;

static void wake(uint64_t start, uint64_t end)
{
	struct waiter *waiter = &child->waiter;

	if (waiter->waits && waiter->addr >= start && waiter->addr < end)
		waiter->waits = false;
}

void child_is_released(void)
{
	child->watched = false;
	for (unsigned int n = 0; n < PAGES_USED; n++)
		child->page[n].missing = child->page[n].wp = child->page[n].protected = false;
	child->event.read = true;
	wake(0, HMM_VA_END);
	say("the child's userfaultfd is closed");
}

static bool is_there(uint64_t addr)
{
	int n = used_at(addr);

	return n >= 0 && child->page[n].mapped && (child->page[n].missing || child->page[n].wp);
}

int child_fill(uint64_t dst, const char *src, size_t length, bool poison, size_t *done)
{
	int r = 0;

	*done = 0;
	if (!child->lives)
		return -ESRCH;
	if (child->changing)
		return -EAGAIN;
	for (uint64_t at = dst; at < dst + length; at += HMM_PAGE_SIZE)
		if (!is_there(at) || child->page[used_at(at)].mapping != child->page[used_at(dst)].mapping)
			return -ENOENT;
	for (; *done < length; *done += HMM_PAGE_SIZE) {
		struct page *page = &child->page[used_at(dst + *done)];

		if (*done && world.failing && rarely(8))
			r = -EAGAIN;
		else if (page->present || page->poisoned)
			r = -EEXIST;
		if (r)
			break;
		page->present = !poison;
		page->poisoned = poison;
		page->protected = false;
		page->value = poison ? 0 : real_value(src + *done);
	}
	wake(dst, dst + *done);
	return *done == length ? 0 : *done ? -EAGAIN : r;
}

int child_protect(uint64_t addr, bool on)
{
	struct page *page;

	if (!child->lives)
		return -ESRCH;
	if (child->changing)
		return -EAGAIN;
	if (!is_there(addr) || !child->page[used_at(addr)].wp)
		return -ENOENT;
	page = &child->page[used_at(addr)];
	page->protected = page->present && on;
	if (!on)
		wake(addr, addr + HMM_PAGE_SIZE);
	return 0;
}

ssize_t child_read(struct uffd_msg *message)
{
	struct waiter *waiter = &child->waiter;
	struct event *event = &child->event;

	if (child->lives && waiter->waits && !waiter->told) {
		waiter->told = true;
		put_fault(message, waiter);
	} else if (child->lives && event->queued && !event->read) {
		event->read = true;
		put_event(message, event);
	} else {
		errno = EAGAIN;
		return -1;
	}
	return sizeof(*message);
}

/* In one step: clone() copies it all under the lock of the map. */
static void copy_all(void)
{
	*child = (struct child){ .lives = true, .watched = !world.forks_unseen && !world.released };
	for (unsigned int n = 0; n < PAGES_USED; n++) {
		struct page *page = page_at(used_addr(n));

		child->page[n] = *page;
		child->truth[n] = world.truth[n].cpu;
		child->origin[n] = (int)n;
		page->shared = page->present;
		if (child->watched)
			continue;
		child->page[n].missing = child->page[n].wp = child->page[n].protected = false;
	}
}

void fork_child(unsigned int cpu, int64_t until)
{
	step();
	if (child->lives || child->watched || world.now >= until)
		return;
	say("forks");
	copy_all();
	if (child->watched) {
		world.changing++;
		tell_event(cpu, UFFD_EVENT_FORK, 0, 0, 0);
		world.changing--;
	}
	/* Nobody came to read of it. */
	if (child->watched && world.released && !world.child_fds)
		child_is_released();
	actor_start(ACTOR_CHILD, child_body, NULL);
}

/* ---- what is true there ---------------------------------------------------------------------------------------- */

/* A device has no part in the fork: what it stores before the page is copied may be in the copy. */
void child_may_have(unsigned int n, uint64_t value)
{
	for (unsigned int i = 0; child->watched && i < PAGES_USED; i++)
		if (child->origin[i] == (int)n && !child->page[i].present)
			values_add(&child->truth[i], value);
}

/* hmmd is dead. What was on its way home the parent may put something else in the place of before the next one looks (LIMITS.md, 75). */
void child_may_lose(void)
{
	for (unsigned int i = 0; child->watched && i < PAGES_USED; i++)
		if (child->origin[i] >= 0 && !child->page[i].present && page_in_transit((unsigned int)child->origin[i]))
			values_add(&child->truth[i], 0);
}

static void only(unsigned int n, uint64_t value)
{
	child->truth[n] = (struct values){ .n = 1, .value = { value } };
}

/* Whatever was there before. */
static void is_own(unsigned int n, uint64_t value)
{
	only(n, value);
	child->origin[n] = -1;
}

static void loaded(unsigned int n, uint64_t value)
{
	if (values_have(&child->truth[n], value)) {
		only(n, value);
		return;
	}
	wrong("the child loads %lu from %s, where %lu was when it was forked%s", value, addr_name(used_addr(n)),
	      child->truth[n].value[0], child->truth[n].n > 1 ? ", or something else" : "");
}

/* ---- what it does -------------------------------------------------------------------------------------------- */

static bool is_woken(void *data)
{
	return !((struct waiter *)data)->waits;
}

static void fault(unsigned int n, uint64_t flags)
{
	child->waiter = (struct waiter){ .waits = true, .addr = used_addr(n), .flags = flags, .tid = 300 };
	say("faults at %s", addr_name(used_addr(n)));
	block(is_woken, &child->waiter, INT64_MAX);
}

static struct page *reach(unsigned int n, bool write)
{
	struct page *page = &child->page[n];

	for (;;) {
		if (!page->mapped || page->poisoned)
			return NULL;
		if (page->present && !(write && page->protected))
			return page;
		if (page->present) {
			fault(n, UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP);
		} else if (page->missing) {
			fault(n, write ? UFFD_PAGEFAULT_FLAG_WRITE : 0);
		} else {
			page->present = true;
			page->value = 0;
		}
	}
}

static bool is_read(void *data)
{
	return ((struct event *)data)->read;
}

static void report(uint8_t kind, unsigned int from, unsigned int to)
{
	/* Nobody is told any more. */
	if (!child->watched)
		return;
	child->event = (struct event){ .queued = true, .kind = kind, .from = used_addr(from), .to = used_addr(to), .length = HMM_PAGE_SIZE };
	block(is_read, &child->event, INT64_MAX);
	child->event.queued = false;
}

static bool is_watched(unsigned int n)
{
	return child->page[n].missing || child->page[n].wp;
}

static void discard(unsigned int n)
{
	struct page *page = &child->page[n];

	say("discards %s", addr_name(used_addr(n)));
	if (is_watched(n)) {
		child->changing++;
		report(UFFD_EVENT_REMOVE, n, n);
		child->changing--;
		step();
	}
	page->present = page->protected = page->poisoned = false;
	page->value = 0;
	is_own(n, 0);
}

static void move(unsigned int from, unsigned int to)
{
	bool watched = is_watched(from), covered = is_watched(to);

	if (from == to || !child->page[from].mapped)
		return;
	say("moves %s to %s", addr_name(used_addr(from)), addr_name(used_addr(to)));
	child->changing += covered + 2 * watched;
	child->page[to] = child->page[from];
	child->page[to].mapping = ++world.mappings;
	child->truth[to] = child->truth[from];
	child->origin[to] = child->origin[from];
	child->page[from] = (struct page){ 0 };
	is_own(from, 0);
	if (covered) {
		step();
		report(UFFD_EVENT_UNMAP, to, to);
		child->changing--;
	}
	if (watched) {
		step();
		report(UFFD_EVENT_REMAP, from, to);
		child->changing--;
		step();
		report(UFFD_EVENT_UNMAP, from, from);
		child->changing--;
	}
}

void child_body(void *data)
{
	(void)data;
	while (choose(10)) {
		unsigned int n = choose(PAGES_USED), what = choose(8);
		struct page *page;

		if (what == 7) {
			move(n, choose(PAGES_USED));
		} else if (what == 6) {
			discard(n);
		} else {
			page = reach(n, what == 5);
			if (page && what == 5) {
				page->value = new_version();
				is_own(n, page->value);
			} else if (page) {
				say("loads %s: %lu", addr_name(used_addr(n)), page->value);
				loaded(n, page->value);
			}
		}
		step();
	}
	child->lives = false;
}
