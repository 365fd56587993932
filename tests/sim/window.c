// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * window.c - a second driver, in another process, with a window: the shadow of its mirror mapped at the owner's addresses, as a
 * shared mapping of a memfd with a userfaultfd. What lies in the file the kernel maps by itself, unless it is registered for MINOR faults;
 * a protection stays where nothing is mapped, as a marker, and outlives a punch.
 *
 * The file is real, so whether a page is in it is asked by SEEK_DATA. Pages that programs do not use have no pane.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "sim.h"
#include "uapi.h"

static bool lies_in_file(unsigned int n)
{
	struct region *region = hmmc_region_find(world.regions, WINDOW_MIRROR, used_addr(n));
	off_t offset;

	if (!region)
		return false;
	offset = (off_t)(used_addr(n) - region->base);
	return lseek(region->fd, offset, SEEK_DATA) == offset;
}

/* ---- the kernel, of this mapping ----------------------------------------------------------------------------- */

static void wake(uint64_t start, uint64_t end)
{
	struct waiter *waiter = &world.window_waiter;

	if (waiter->waits && waiter->addr >= start && waiter->addr < end)
		waiter->waits = false;
}

int window_register(uint64_t start, uint64_t length, uint64_t mode)
{
	bool missing = mode & UFFDIO_REGISTER_MODE_MISSING, wp = mode & UFFDIO_REGISTER_MODE_WP;
	bool minor = mode & UFFDIO_REGISTER_MODE_MINOR;

	for (unsigned int n = 0; n < PAGES_USED; n++) {
		struct pane *pane = &world.pane[n];

		if (used_addr(n) < start || used_addr(n) >= start + length)
			continue;
		/* Fewer modes than there are change nothing. */
		if ((pane->missing || !missing) && (pane->wp || !wp) && (pane->minor || !minor))
			continue;
		pane->missing = missing;
		pane->wp = wp;
		pane->minor = minor;
	}
	return 0;
}

int window_set_protection(uint64_t start, uint64_t length, bool on)
{
	for (unsigned int n = 0; n < PAGES_USED; n++)
		if (used_addr(n) >= start && used_addr(n) < start + length && !world.pane[n].wp)
			return -ENOENT;
	for (unsigned int n = 0; n < PAGES_USED; n++)
		if (used_addr(n) >= start && used_addr(n) < start + length)
			world.pane[n].protected = on;
	if (!on)
		wake(start, start + length);
	return 0;
}

void window_let_go_on(uint64_t start, uint64_t length)
{
	wake(start, start + length);
}

int window_continue(uint64_t start, uint64_t length, uint64_t mode, size_t *done)
{
	for (*done = 0; *done < length; *done += HMM_PAGE_SIZE) {
		int n = used_at(start + *done);

		if (n < 0 || !lies_in_file((unsigned int)n))
			return *done ? -EAGAIN : -EFAULT;
		if (world.pane[n].present)
			return *done ? -EAGAIN : -EEXIST;
		world.pane[n].present = true;
		world.pane[n].protected = mode & UFFDIO_CONTINUE_MODE_WP;
		wake(start + *done, start + *done + HMM_PAGE_SIZE);
	}
	return 0;
}

int window_zero(uint64_t start, size_t *done)
{
	int n = used_at(start);
	struct region *region = hmmc_region_find(world.regions, WINDOW_MIRROR, start);
	static const char zeros[HMM_PAGE_SIZE];

	*done = 0;
	if (n < 0 || !region)
		return -ENOENT;
	if (lies_in_file((unsigned int)n))
		return -EEXIST;
	if (pwrite(region->fd, zeros, sizeof(zeros), (off_t)(start - region->base)) != (ssize_t)sizeof(zeros))
		return -ENOMEM;
	world.pane[n].present = true;
	world.pane[n].protected = false;
	wake(start, start + HMM_PAGE_SIZE);
	*done = HMM_PAGE_SIZE;
	return 0;
}

int window_poison(uint64_t start, size_t *done)
{
	int n = used_at(start);

	*done = 0;
	if (n < 0)
		return -ENOENT;
	if (world.pane[n].present || world.pane[n].protected || world.pane[n].poisoned)
		return -EEXIST;
	world.pane[n].poisoned = true;
	wake(start, start + HMM_PAGE_SIZE);
	*done = HMM_PAGE_SIZE;
	return 0;
}

ssize_t window_read(void *message)
{
	struct waiter *waiter = &world.window_waiter;
	struct uffd_msg *to = message;

	if (!waiter->waits || waiter->told)
		return -EAGAIN;
	waiter->told = true;
	*to = (struct uffd_msg){ .event = UFFD_EVENT_PAGEFAULT };
	to->arg.pagefault.address = waiter->addr;
	to->arg.pagefault.flags = waiter->flags;
	say("read: the window's fault at %s%s%s%s", addr_name(waiter->addr), waiter->flags & UFFD_PAGEFAULT_FLAG_WP ? ", protected" : "",
	    waiter->flags & UFFD_PAGEFAULT_FLAG_MINOR ? ", not mapped" : "",
	    waiter->flags & UFFD_PAGEFAULT_FLAG_WRITE ? ", to be written" : "");
	return sizeof(*to);
}

bool window_has_messages(void)
{
	return world.window_waiter.waits && !world.window_waiter.told;
}

/* A hole was punched in a shadow: whose? */
void window_is_punched(uint64_t inode, uint64_t offset, uint64_t length)
{
	const struct region *region = hmmc_region_find(world.regions, WINDOW_MIRROR, ROOM);

	if (!region || region->inode != inode)
		return;
	for (unsigned int n = 0; n < PAGES_USED; n++)
		if (used_addr(n) - region->base >= offset && used_addr(n) - region->base < offset + length) {
			world.pane[n].present = false;
			world.pane[n].protected &= world.pane[n].wp;
		}
}

/* Three quarters of the grace time without an hmmd that serves it: its library makes it inaccessible. */
static bool is_open(void *data)
{
	(void)data;
	if (!world.window_ready && world.now >= world.window_down_at + GRACE_MS * NS_PER_MS / 4 * 3)
		world.window_open = false;
	return world.window_open;
}

uint64_t window_reach(unsigned int n)
{
	const struct pane *pane = &world.pane[n];

	if (!is_open(NULL) || pane->closed || (!pane->present && (pane->poisoned || pane->minor || !lies_in_file(n))))
		return 0;
	return HMM_TABLE_VALID | (pane->protected && pane->wp ? 0 : HMM_TABLE_WRITE);
}

/* ---- the driver's threads ----------------------------------------------------------------------------------------- */

static bool is_woken(void *data)
{
	return !((struct waiter *)data)->waits;
}

static void fault(unsigned int n, uint64_t flags)
{
	struct waiter *waiter = &world.window_waiter;

	*waiter = (struct waiter){ .waits = true, .addr = used_addr(n), .flags = flags };
	say("faults at %s%s%s", addr_name(used_addr(n)), flags & UFFD_PAGEFAULT_FLAG_WP ? ", protected" : "",
	    flags & UFFD_PAGEFAULT_FLAG_MINOR ? ", not mapped" : "");
	hmmd_signal_window();
	block(is_woken, waiter, INT64_MAX);
}

/* NULL: it can't be had. */
static volatile uint64_t *reach(unsigned int n, bool write)
{
	struct pane *pane = &world.pane[n];

	for (unsigned int tries = 0; tries < 100; tries++) {
		uint64_t flags = write ? UFFD_PAGEFAULT_FLAG_WRITE : 0;

		if (!is_open(NULL) || pane->closed || pane->poisoned)
			return NULL;
		if (pane->present && !(write && pane->protected && pane->wp))
			return shadow_page(WINDOW_MIRROR, used_addr(n));
		if (pane->present)
			fault(n, flags | UFFD_PAGEFAULT_FLAG_WP);
		else if (!lies_in_file(n))
			fault(n, flags);
		else if (pane->minor)
			fault(n, flags | UFFD_PAGEFAULT_FLAG_MINOR);
		else
			pane->present = true;
	}
	return NULL;
}

/* The rescuer is about to begin. */
void window_is_abandoned(void)
{
	world.window_open = false;
	wake(0, HMM_VA_END);
}

static bool is_open_or_lost(void *data)
{
	return is_open(data) || world.lost;
}

void window_body(void *data)
{
	(void)data;
	block(is_open_or_lost, NULL, INT64_MAX);
	while (choose(12)) {
		unsigned int n = choose(PAGES_USED);
		bool write = choose(2);
		volatile uint64_t *at = reach(n, write);

		if (at && write) {
			*at = new_version();
			say("the window stores %s: %lu", addr_name(used_addr(n)), *at);
			window_stored(n, *at);
		} else if (at) {
			say("the window loads %s: %lu", addr_name(used_addr(n)), *at);
			device_loaded(n, *at);
		}
		if (rarely(4))
			sleep_ns(NS_PER_MS);
		else
			step();
	}
}

/* ---- its library ----------------------------------------------------------------------------------------------------- */

void window_is_revoked(const struct hmm_msg_window_revoked *message)
{
	for (unsigned int n = 0; n < PAGES_USED; n++) {
		struct pane *pane = &world.pane[n];

		if (used_addr(n) < message->start || used_addr(n) >= message->end)
			continue;
		if (message->error && !message->poisoned)
			pane->closed = true;
		/* Open again: what was poisoned is mapped anew. */
		if (!message->error)
			pane->closed = pane->poisoned = false;
		if (pane->closed)
			pane->present = false;
	}
	say("the window is %s at %s", message->error ? "closed" : "open again", addr_name(message->start));
	wake(message->start, message->end);
}

static int register_mirror(void)
{
	struct device *device = device_by_name(&world.engine->devices, "win");
	struct hmm_msg_mirror_register *message;
	struct hmm_wire_header *answer;
	int r;

	if (!device && !world.open)
		return -EAGAIN;		/* its owner is not back yet, and may bring it */
	if (!device && device_new(&world.engine->devices, "win", HMM_POOL_KIND_MEMFD, NULL, world.device_size,
				  HMM_DEVICE_CAPS_FAULTS, WINDOW_PEER, &device))
		wrong("no device for the window");
	message = message_new(HMM_OP_MIRROR_REGISTER, sizeof(*message));
	message->owner = world.owner_id;
	message->device = device->id;
	r = ask_from(WINDOW_PEER, message, -1, &answer);
	if (!r)
		world.window_mirror_id = ((const struct hmm_msg_mirror_register_reply *)(const void *)answer)->mirror;
	return r;
}

static int map_window(uint32_t *window)
{
	struct hmm_msg_window_map *message = message_new(HMM_OP_WINDOW_MAP, sizeof(*message));
	struct hmm_wire_header *answer;
	int r;

	message->mirror = world.window_mirror_id;
	message->addr = message->at = ROOM;
	message->length = ROOM_END - ROOM;
	r = ask_from(WINDOW_PEER, message, role_fd(ROLE_WINDOW), &answer);
	if (!r)
		*window = ((const struct hmm_msg_window_map_reply *)(const void *)answer)->window;
	return r;
}

static int arm_window(uint32_t window)
{
	struct hmm_msg_window_armed *message = message_new(HMM_OP_WINDOW_ARMED, sizeof(*message));

	message->window = window;
	return ask_from(WINDOW_PEER, message, -1, NULL);
}

static bool is_new_hmmd(void *data)
{
	return world.engine && !world.leaving && !world.lost && world.generation != *(const uint64_t *)data && world.owner_id;
}

void window_library_body(void *data)
{
	uint64_t generation = 0, with = 0;
	bool registered = false;
	uint32_t window = 0;

	(void)data;
	for (;;) {
		int r = 0;

		block(is_new_hmmd, &generation, INT64_MAX);
		/* It stays away: longer than its library keeps the window open, and hmmd waits for it. */
		if (with && with != world.generation && rarely(40))
			sleep_ns((GRACE_MS + 2000) * NS_PER_MS);
		if (!is_new_hmmd(&generation))
			continue;
		/* What one step has got stays, should the next one fail. */
		if (with != world.generation) {
			with = world.generation;
			registered = false;
			window = 0;
		}
		if (!registered)
			r = register_mirror();
		registered |= !r;
		if (!r && !window)
			r = map_window(&window);
		if (!r)
			r = arm_window(window);
		say("the window: %d", r);
		if (r) {
			sleep_ns(NS_PER_MS);
			continue;
		}
		generation = with;
		/* Not before it is armed its library lets anybody in. It may have died since. */
		world.window_open = true;
		world.window_ready = world.engine && world.generation == with;
		world.window_down_at = world.down_at;
		/* What was closed before the restart is closed no more: mapped anew. */
		for (unsigned int n = 0; n < PAGES_USED; n++)
			world.pane[n].closed = world.pane[n].poisoned = false;
	}
}
