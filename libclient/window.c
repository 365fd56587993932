/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * window.c - the owner's addresses in a driver process.
 *
 * The happy path: the library reserves the addresses, opens a userfaultfd and asks
 * hmmd for the window; each shadow that it covers comes as an event with a
 * descriptor and is mapped where it belongs; `window_armed` then has hmmd register
 * the mappings and serve their faults. A window over everything consists of parts,
 * one for each run of the owner's mappings, each with its own userfaultfd.
 *
 * Windows stay out of core dumps and children. What hmmd revokes, and everything
 * while there is no hmmd for long, becomes inaccessible: a driver that goes on
 * there gets a signal instead of stale bytes.
 *
 * Fails with -EEXIST where the driver has something of its own.
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "arena.h"
#include "dispatch.h"
#include "log.h"
#include "mapping.h"
#include "space.h"

#define PARTS_MAX	256
#define NOT_YET		UINT32_MAX	/* an id: hmmd is yet to be told of it again */
#define GAP_MAX		(64UL << 20)	/* between mappings of one part */
#define ROOM_MIN	(256UL << 20)

struct piece {
	uint64_t base, length;
	uint64_t device, inode;		/* the file that is mapped there */
	bool shut;			/* until hmmd serves what is mapped there now */
};

struct part {
	struct hmm_window *window;
	uint32_t id;
	uint64_t addr, length;		/* the owner's */
	char *at;			/* here */
	int uffd;			/* in the private table */
	int last_uffd;			/* of what was mapped here before; its touches wait */
	uint32_t expected, mapped;	/* regions; mapped is a futex */
	uint32_t failed;		/* a region could not be mapped */
	bool open;			/* hmmd knows it: so must the next one */
	bool restoring;			/* by the userfaultfd of what is mapped here */
	bool replaced;			/* something else is to be mapped here */
	bool revoked;			/* all of it */
	uint32_t pieces_room;
	struct piece *pieces;
};

struct hmm_window {
	struct hmm_window *next;
	struct hmm *hmm;
	struct hmm_mirror_private *mirror;
	uint64_t flags;
	bool frozen;
	uint32_t count;
	struct part parts[PARTS_MAX];
};

/* ---- one part ------------------------------------------------------------------ */

static int taken(uint64_t addr, uint64_t length)
{
	return hmmc_fail(
		-EEXIST,
		"some of 0x%llx-0x%llx is taken in this process; HMM_WINDOW_OFFSET maps elsewhere",
		(unsigned long long)addr, (unsigned long long)(addr + length));
}

#define RESERVATION (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

/* Nothing else of this process gets in between asking and mapping. */
static int reserve(struct part *part, uint64_t flags)
{
	uint64_t lead = part->addr & (HMM_REGION_SIZE - 1);
	char *room, *at;

	if (!(flags & HMM_WINDOW_OFFSET)) {
		at = mmap((void *)part->addr, part->length, PROT_NONE,
			  RESERVATION | MAP_FIXED_NOREPLACE, -1, 0);
		if (at == MAP_FAILED)
			return errno == EEXIST ? taken(part->addr, part->length)
					       : hmmc_fail(-errno, "cannot reserve the window: %s",
							   strerror(errno));
		part->at = at;
		return 0;
	}
	/* The same place inside a region, so that huge pages fit. */
	room = mmap(NULL, part->length + HMM_REGION_SIZE, PROT_NONE, RESERVATION, -1, 0);
	if (room == MAP_FAILED)
		return hmmc_fail(-errno, "no address space for the window: %s", strerror(errno));
	at = (char *)(((uintptr_t)room - lead + HMM_REGION_SIZE - 1) & ~(HMM_REGION_SIZE - 1)) +
	     lead;
	if (at > room)
		munmap(room, (size_t)(at - room));
	munmap(at + part->length, (size_t)(room + HMM_REGION_SIZE - at));
	part->at = at;
	return 0;
}

/* As much of the @want bytes behind @addr as is free here: all, or half of it, ... */
static uint64_t reserve_behind(uint64_t addr, uint64_t want)
{
	for (; want >= HMM_BLOCK_SIZE; want = want / 2 & ~(HMM_BLOCK_SIZE - 1))
		if (addr + want <= HMM_VA_END &&
		    mmap((void *)addr, want, PROT_NONE, RESERVATION | MAP_FIXED_NOREPLACE, -1, 0) !=
			    MAP_FAILED)
			return want;
	return 0;
}

static uint64_t reserve_before(uint64_t addr, uint64_t want)
{
	for (; want >= HMM_BLOCK_SIZE; want = want / 2 & ~(HMM_BLOCK_SIZE - 1))
		if (want < addr && mmap((void *)(addr - want), want, PROT_NONE,
					RESERVATION | MAP_FIXED_NOREPLACE, -1, 0) != MAP_FAILED)
			return want;
	return 0;
}

/*
 * Room for what the owner maps next, which nobody announces: heaps grow upwards,
 * mappings downwards. Up to the edge of the region, whose shadow is there in any
 * case, and where that is near, of the next one.
 */
static void make_room(struct part *part)
{
	uint64_t after = -(part->addr + part->length) & (HMM_REGION_SIZE - 1);
	uint64_t before = part->addr & (HMM_REGION_SIZE - 1);

	part->length += reserve_behind(part->addr + part->length,
				       after < ROOM_MIN ? after + HMM_REGION_SIZE : after);
	before = reserve_before(part->addr, before < ROOM_MIN ? before + HMM_REGION_SIZE : before);
	part->addr -= before;
	part->at -= before;
	part->length += before;
}

static int open_uffd(struct connection *connection)
{
	int fd = -1;

	if (connection->userfaultfd_device >= 0)
		fd = ioctl(connection->userfaultfd_device, USERFAULTFD_IOC_NEW,
			   O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 && errno == EPERM)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	return fd < 0 ? -errno : fd;
}

static void fill_map(struct hmm_msg_window_map *message, const struct part *part)
{
	message->mirror = part->window->mirror->id;
	message->addr = part->addr;
	message->length = part->length;
	message->at = (uintptr_t)part->at;
	message->flags = part->window->flags & HMM_WINDOW_OFFSET ? HMM_WINDOW_FLAGS_OFFSET : 0;
}

static int prepare_map(struct request *request)
{
	struct part *part = request->data;

	if (part->uffd < 0)
		part->uffd = open_uffd(request->connection);
	if (part->uffd < 0) {
		snprintf(request->text, sizeof(request->text), "no userfaultfd for the window: %s",
			 strerror(-part->uffd));
		return part->uffd;
	}
	request->fds[0] = part->uffd;
	part->mapped = part->id = 0;
	fill_map((struct hmm_msg_window_map *)request->message, part);
	return 0;
}

static int finish_map(struct request *request, struct hmm_frame *frame)
{
	const struct hmm_msg_window_map_reply *reply = (const void *)frame->data;
	struct part *part = request->data;

	part->id = reply->window;
	part->expected = reply->regions;
	part->open = true;
	return 0;
}

static void wait_for_regions(struct part *part)
{
	uint32_t mapped;

	while ((mapped = __atomic_load_n(&part->mapped, __ATOMIC_ACQUIRE)) < part->expected &&
	       !__atomic_load_n(&part->window->hmm->lost, __ATOMIC_ACQUIRE))
		hmmc_dispatch_pause(&part->mapped, mapped, &(struct timespec){ .tv_nsec = 200000000 });
}

static void protect_piece(const struct part *part, const struct piece *piece)
{
	bool shut = piece->shut || part->revoked || part->window->frozen;

	if (piece->length)
		mprotect(part->at + (piece->base - part->addr), piece->length,
			 shut ? PROT_NONE : PROT_READ | PROT_WRITE);
}

static bool is_shut(const struct part *part)
{
	for (uint32_t i = 0; i < part->pieces_room; i++)
		if (part->pieces[i].shut)
			return true;
	return false;
}

/* hmmd may hold on to the userfaultfd. */
static void let_go_on(struct part *part)
{
	struct uffdio_range range = { (uintptr_t)part->at, part->length };

	if (part->last_uffd < 0 || part->window->frozen || is_shut(part))
		return;
	ioctl(part->last_uffd, UFFDIO_WAKE, &range);
	close(part->last_uffd);
	part->last_uffd = -1;
}

/*
 * It is served: what is mapped there may be touched, and who waits at what was there before
 * asks again. In a frozen window he waits on.
 */
static void part_served(struct part *part)
{
	for (uint32_t i = 0; i < part->pieces_room; i++) {
		struct piece *piece = &part->pieces[i];

		if (!piece->shut)
			continue;
		piece->shut = false;
		protect_piece(part, piece);
	}
	let_go_on(part);
}

static int finish_armed(struct request *request, struct hmm_frame *frame)
{
	struct part *part = request->data;

	futex_lock(&part->window->hmm->lock);
	part_served(part);
	futex_unlock(&part->window->hmm->lock);
	return 0;
}

static int prepare_armed(struct request *request)
{
	const struct part *part = request->data;

	((struct hmm_msg_window_armed *)request->message)->window = part->id;
	return 0;
}

static int call_part(struct part *part, uint16_t op, size_t size, int (*prepare)(struct request *),
		     int (*finish)(struct request *, struct hmm_frame *))
{
	struct request *request = hmmc_request_new(part->window->hmm->connection, op, size);
	int error;

	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	request->data = part;
	request->prepare = prepare;
	request->finish = finish;
	request->nfds = op == HMM_OP_WINDOW_MAP;
	request->borrowed = true;
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	return error;
}

static int open_part(struct part *part)
{
	int error;

	part->pieces_room =
		(uint32_t)((part->addr + part->length + HMM_REGION_SIZE - 1) / HMM_REGION_SIZE -
			   part->addr / HMM_REGION_SIZE);
	part->pieces = hmmc_arena_alloc(part->pieces_room * sizeof(*part->pieces));
	if (!part->pieces)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	error = call_part(part, HMM_OP_WINDOW_MAP, sizeof(struct hmm_msg_window_map), prepare_map,
			  finish_map);
	if (error)
		return error;
	wait_for_regions(part);
	if (part->failed)
		return hmmc_fail(-(int)part->failed, "a shadow cannot be mapped: %s",
				 strerror((int)part->failed));
	error = call_part(part, HMM_OP_WINDOW_ARMED, sizeof(struct hmm_msg_window_armed), prepare_armed, finish_armed);
	/* Another hmmd came in between, and the receiver has had it armed with all others (restore_part()). */
	return error == -EALREADY ? 0 : error;
}

static int close_uffd(void *argument)
{
	struct part *part = argument;

	if (part->uffd >= 0)
		close(part->uffd);
	if (part->last_uffd >= 0)
		close(part->last_uffd);
	part->uffd = part->last_uffd = -1;
	return 0;
}

static int finish_unmap(struct request *request, struct hmm_frame *frame)
{
	struct part *part = request->data;

	part->open = false;
	return 0;
}

static void part_leave(struct part *part)
{
	if (part->open && hmmc_space_check(part->window->hmm) == 0)
		call_part(part, HMM_OP_WINDOW_UNMAP, sizeof(struct hmm_msg_window_unmap),
			  prepare_armed, finish_unmap);
}

/* After hmmd has let go of it and nobody finds it in the list. */
static void close_part(struct part *part)
{
	hmmc_clerk_call(close_uffd, part);
	if (part->at)
		munmap(part->at, part->length);
	hmmc_arena_free(part->pieces, part->pieces_room * sizeof(*part->pieces));
	part->at = NULL;
	part->pieces = NULL;
}

/* ---- windows ---------------------------------------------------------------------- */

static void link_window(struct hmm_window *window)
{
	struct hmm *hmm = window->hmm;

	futex_lock(&hmm->lock);
	window->next = hmm->windows;
	hmm->windows = window;
	futex_unlock(&hmm->lock);
}

static void unlink_window(struct hmm_window *window)
{
	struct hmm_window **at;

	futex_lock(&window->hmm->restore_lock);
	futex_lock(&window->hmm->lock);
	for (at = &window->hmm->windows; *at && *at != window; at = &(*at)->next)
		;
	if (*at)
		*at = window->next;
	futex_unlock(&window->hmm->lock);
	futex_unlock(&window->hmm->restore_lock);
}

static struct part *add_part(struct hmm_window *window, uint64_t addr, uint64_t length)
{
	struct part *part;

	if (window->count == PARTS_MAX)
		return NULL;
	part = &window->parts[window->count];
	part->window = window;
	part->addr = addr;
	part->length = length;
	part->uffd = part->last_uffd = -1;
	return part;
}

/* Nothing of this process lies there. */
static bool is_free(uint64_t start, uint64_t end)
{
	void *map = mmap((void *)start, end - start, PROT_NONE, RESERVATION | MAP_FIXED_NOREPLACE,
			 -1, 0);

	if (map == MAP_FAILED)
		return false;
	munmap(map, end - start);
	return true;
}

/*
 * Parts over everything that the owner has mapped now, as many mappings to a part as lie
 * near each other.
 */
static int cover_all(struct hmm_window *window)
{
	const struct hmm_msg_layout_reply *reply;
	struct request *request;
	uint64_t cursor = 0;
	struct part *part = NULL;
	bool more = true;
	int error = 0;

	while (more && !error) {
		request = hmmc_request_new(window->hmm->connection, HMM_OP_LAYOUT,
					   sizeof(struct hmm_msg_layout));
		if (!request)
			return hmmc_fail(-ENOMEM, "the library's memory is used up");
		request->prepare = hmmc_prepare_owner;
		((struct hmm_msg_layout *)request->message)->cursor = cursor;
		error = hmmc_request_call(request);
		reply = (const struct hmm_msg_layout_reply *)request->reply;
		more = !error && reply->more && reply->count;
		for (uint32_t i = 0; !error && i < reply->count; i++) {
			const struct hmm_record_range_info *range = &reply->ranges[i];

			cursor = range->end;
			if (part && range->start - (part->addr + part->length) < GAP_MAX &&
			    is_free(part->addr + part->length, range->end)) {
				part->length = range->end - part->addr;
				continue;
			}
			part = add_part(window, range->start, range->end - range->start);
			if (!part)
				error = hmmc_fail(
					-E2BIG,
					"the owner's memory lies in more than %d places; map ranges",
					PARTS_MAX);
			else
				window->count++;
		}
		hmmc_request_free(request);
	}
	return error;
}

int hmm_window_map(struct hmm_mirror *mirror, unsigned long addr, size_t length, uint64_t flags,
		   struct hmm_window **result)
{
	struct hmm_window *window;
	int error = hmmc_mirror_check(mirror);

	if (!error)
		error = hmmc_dispatch_check();
	if (error)
		return error;
	if (!result || flags & ~HMM_WINDOW_OFFSET)
		return hmmc_fail(-EINVAL, "result is NULL, or flags has unknown bits");
	if (mirror->priv->flags & HMM_MIRROR_FLAGS_TRACKED)
		return hmmc_fail(-EOPNOTSUPP, "the mirror is tracked: hmm_mirror_copy() leads to its copies");
	if (mirror->priv->hmm->owner)
		return hmmc_fail(-EBUSY, "this is the owner: its addresses lead to its own memory");
	if (addr % HMM_PAGE_SIZE || length % HMM_PAGE_SIZE || addr + length < addr ||
	    addr + length > HMM_VA_END || (addr && !length))
		return hmmc_fail(-EINVAL,
				 "the range is empty, unaligned, wraps or ends above user space");
	window = hmmc_arena_alloc(sizeof(*window));
	if (!window)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	window->hmm = mirror->priv->hmm;
	window->mirror = mirror->priv;
	window->flags = flags;
	if (length) {
		add_part(window, addr, length);
		window->count = 1;
	} else {
		error = cover_all(window);
	}
	if (!error) {
		link_window(window);
		for (uint32_t i = 0; i < window->count && !error; i++)
			error = reserve(&window->parts[i], flags);
		/* Not before all have their places, so that none takes another's. */
		for (uint32_t i = 0;
		     i < window->count && !error && !length && !(flags & HMM_WINDOW_OFFSET); i++)
			make_room(&window->parts[i]);
		for (uint32_t i = 0; i < window->count && !error; i++)
			error = open_part(&window->parts[i]);
		if (error) {
			char text[HMMC_ERROR_TEXT];

			snprintf(text, sizeof(text), "%s", hmm_last_error());
			hmm_window_unmap(window);
			return hmmc_fail(error, "%s", text);
		}
		*result = window;
		return 0;
	}
	hmmc_arena_free(window, sizeof(*window));
	return error;
}

int hmm_window_unmap(struct hmm_window *window)
{
	if (!window)
		return 0;
	if (hmmc_space_check(window->hmm) == -ESTALE &&
	    !__atomic_load_n(&window->hmm->lost, __ATOMIC_ACQUIRE))
		return -ESTALE;	/* a fork's child has none of it */
	for (uint32_t i = 0; i < window->count; i++)
		part_leave(&window->parts[i]);
	unlink_window(window);
	for (uint32_t i = 0; i < window->count; i++)
		close_part(&window->parts[i]);
	hmmc_arena_free(window, sizeof(*window));
	return 0;
}

void *hmm_window_ptr(const struct hmm_window *window, unsigned long addr)
{
	if (!window)
		return NULL;
	for (uint32_t i = 0; i < window->count; i++) {
		const struct part *part = &window->parts[i];

		if (addr - part->addr < part->length)
			return part->at + (addr - part->addr);
	}
	return NULL;
}

/* ---- in the receiver ------------------------------------------------------------------ */

/* By its id; a region may overtake the answer that tells the id, then by its addresses. */
static struct part *find_part(struct hmm *hmm, uint32_t id, uint64_t base)
{
	struct part *unnamed = NULL;

	for (struct hmm_window *window = hmm->windows; window; window = window->next)
		for (uint32_t i = 0; i < window->count; i++) {
			struct part *part = &window->parts[i];

			if (part->id == id)
				return part;
			if (!part->id && part->pieces && base - part->addr < part->length)
				unnamed = part;
		}
	return unnamed;
}

static int map_region(struct part *part, const struct hmm_msg_region *event, int fd)
{
	char *at = part->at + (event->base - part->addr);
	struct piece *piece = NULL;
	struct stat stat;

	if (event->base < part->addr || event->length > part->length ||
	    event->base - part->addr > part->length - event->length)
		return -ERANGE;
	if (fstat(fd, &stat))
		return -errno;
	for (uint32_t i = 0; i < part->pieces_room && !piece; i++)
		if (!part->pieces[i].length || part->pieces[i].base == event->base)
			piece = &part->pieces[i];
	if (!piece)
		return -ENOSPC;
	/* After a restart of hmmd it is the same file, and the mapping is armed: leave it. */
	if (piece->base == event->base && piece->device == stat.st_dev &&
	    piece->inode == stat.st_ino)
		return 0;
	/* Whoever touches what is mapped there waits, until the other is there. */
	if (part->restoring) {
		part->replaced = true;
		return 0;
	}
	/* Nobody sees to it yet: what is missing would read as zeros, and stay so. */
	if (!hmmc_map(at, event->length, PROT_NONE, MAP_SHARED, fd, event->offset))
		return -errno;
	madvise(at, event->length, MADV_DONTDUMP);
	madvise(at, event->length, MADV_DONTFORK);
	if (event->kind == HMM_POOL_KIND_MEMFD_HUGE)
		madvise(at, event->length, MADV_HUGEPAGE);
	*piece = (struct piece){ event->base, event->length, stat.st_dev, stat.st_ino, true };
	return 0;
}

void hmmc_window_region(struct hmm *hmm, const struct hmm_msg_region *event, int fd)
{
	struct part *part;
	int error;

	futex_lock(&hmm->lock);
	part = find_part(hmm, event->window, event->base);
	if (part) {
		error = map_region(part, event, fd);
		if (error)
			part->failed = (uint32_t)-error;
		__atomic_add_fetch(&part->mapped, 1, __ATOMIC_RELEASE);
		futex_wake(&part->mapped, INT32_MAX);
	}
	futex_unlock(&hmm->lock);
	close(fd);
}

/*
 * What is poisoned needs nothing more. Who waits at what is not is woken into the closed mapping. What is
 * opened again is let go of first, with the poison that hmmd has put there.
 */
static void close_or_open(struct part *part, const struct hmm_msg_window_revoked *event)
{
	char *at = part->at + (event->start - part->addr);
	size_t length = event->end - event->start;
	struct uffdio_range range = { (uintptr_t)at, length };

	if (event->error) {
		if (event->poisoned)
			return;
		part->revoked |= length == part->length;
		mprotect(at, length, PROT_NONE);
		ioctl(part->uffd, UFFDIO_WAKE, &range);
		return;
	}
	part->revoked = false;
	madvise(at, length, MADV_DONTNEED);
	if (!part->window->frozen && !is_shut(part))
		mprotect(at, length, PROT_READ | PROT_WRITE);
}

void hmmc_window_revoked(struct hmm *hmm, const struct hmm_msg_window_revoked *event)
{
	struct part *part;

	futex_lock(&hmm->lock);
	part = find_part(hmm, event->window, event->start);
	if (part && event->start < event->end && event->start >= part->addr &&
	    event->end <= part->addr + part->length)
		close_or_open(part, event);
	futex_unlock(&hmm->lock);
	if (!event->error)
		return;
	hmmc_log(HMMC_LOG_WARNING, "hmmd revoked the window over 0x%llx-0x%llx: %s",
		 (unsigned long long)event->start, (unsigned long long)event->end,
		 strerror(-event->error));
}

/* Nobody serves their faults any more: whoever waits for one finds the window frozen. */
void hmmc_window_abandon(struct hmm *hmm)
{
	futex_lock(&hmm->lock);
	for (struct hmm_window *window = hmm->windows; window; window = window->next)
		for (uint32_t i = 0; i < window->count; i++)
			close_uffd(&window->parts[i]);
	futex_unlock(&hmm->lock);
}

static void freeze(struct hmm_window *window, bool frozen)
{
	window->frozen = frozen;
	for (uint32_t i = 0; i < window->count; i++) {
		struct part *part = &window->parts[i];

		for (uint32_t k = 0; k < part->pieces_room; k++)
			protect_piece(part, &part->pieces[k]);
		let_go_on(part);
	}
}

void hmmc_window_freeze(struct hmm *hmm, bool frozen)
{
	futex_lock(&hmm->lock);
	for (struct hmm_window *window = hmm->windows; window; window = window->next)
		freeze(window, frozen);
	futex_unlock(&hmm->lock);
}

/* In the clerk or the receiver. */
static int shut(void *argument)
{
	struct hmm_mirror_private *mirror = argument;
	struct hmm *hmm = mirror->hmm;

	futex_lock(&hmm->lock);
	for (struct hmm_window *window = hmm->windows; window; window = window->next) {
		if (window->mirror != mirror)
			continue;
		freeze(window, true);
		for (uint32_t i = 0; i < window->count; i++)
			close_uffd(&window->parts[i]);
	}
	futex_unlock(&hmm->lock);
	return 0;
}

void hmmc_window_shut(struct hmm_mirror_private *mirror)
{
	hmmc_clerk_call(shut, mirror);
}

/*
 * Other memory is to be mapped: the kernel tells one userfaultfd from the other by what it is
 * registered to, so who waits at what was mapped here is woken when all is done, and not before.
 */
static int change_uffd(struct part *part)
{
	int fd = open_uffd(part->window->hmm->connection);

	if (fd < 0)
		return fd;
	/* A second time: nobody could touch what was mapped in between. */
	if (part->last_uffd < 0)
		part->last_uffd = part->uffd;
	else if (part->uffd >= 0)
		close(part->uffd);
	part->uffd = fd;
	for (uint32_t i = 0; i < part->pieces_room; i++)
		part->pieces[i].inode = 0;
	return 0;
}

static int restore_part(struct hmm *hmm, struct part *part)
{
	const struct hmm_msg_window_map_reply *reply = (const void *)hmm->connection->frame->data;
	struct hmm_msg_window_armed armed;
	struct hmm_msg_window_map map;
	int error;

	/* After a clean end shadows are new. */
	part->restoring = !hmm->connection->parted && !part->replaced;
	if (!part->restoring) {
		error = change_uffd(part);
		if (error)
			return error;
	}
	HMM_MSG_INIT(map, HMM_OP_WINDOW_MAP, 0);
	fill_map(&map, part);
	part->mapped = part->id = 0;	/* now the one without a name */
	part->revoked = false;
	error = hmmc_connection_exchange(hmm->connection, &map, &part->uffd, 1);
	if (error)
		return error;
	part->id = reply->window;
	part->expected = reply->regions;
	while (part->mapped < part->expected) {
		error = hmmc_connection_event(hmm->connection);
		if (error)
			return error;
	}
	/* With another userfaultfd, then: hmmd has this one until the connection ends. */
	if (part->restoring && part->replaced)
		return EXCHANGE_LOST;
	HMM_MSG_INIT(armed, HMM_OP_WINDOW_ARMED, 0);
	armed.window = part->id;
	error = hmmc_connection_exchange(hmm->connection, &armed, NULL, 0);
	if (error)
		return error;
	part->restoring = part->replaced = false;
	futex_lock(&hmm->lock);
	part_served(part);
	futex_unlock(&hmm->lock);
	return 0;
}

/* What the new hmmd calls a window, the old one may have called another. */
static void forget_ids(struct hmm *hmm)
{
	for (struct hmm_window *window = hmm->windows; window; window = window->next)
		for (uint32_t i = 0; i < window->count; i++)
			if (window->parts[i].open)
				window->parts[i].id = NOT_YET;
}

int hmmc_window_restore(struct hmm *hmm)
{
	int error = 0;

	futex_lock(&hmm->lock);
	forget_ids(hmm);
	futex_unlock(&hmm->lock);
	for (struct hmm_window *window = hmm->windows; window && !error; window = window->next)
		for (uint32_t i = 0; i < window->count && !error; i++)
			if (window->parts[i].open)
				error = restore_part(hmm, &window->parts[i]);
	if (!error && hmm->windows && hmm->windows->frozen)
		hmmc_window_freeze(hmm, false);
	return error;
}
