/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sync.c - tracked mirrors: ranges whose copies the device has, where they are mapped, and how
 * they are brought up to date.
 *
 * The happy path: a range begins to be tracked (dirty.c), hmmd hands out the shadows that its copy is in, and
 * they are mapped here, read-only, beside each other. A sync is one request for each GiB; hmmd looks what
 * was written and has the owner's agent copy it.
 *
 * Another hmmd knows nothing of the range: it begins anew, with all pages counting as written, and the
 * mapping takes its shadows, which may be the same.
 *
 * What can fail: as every request; address space for the copies.
 */
#include <string.h>
#include <sys/mman.h>

#include "arena.h"
#include "dirty.h"
#include "dispatch.h"
#include "group.h"
#include "mapping.h"

#define PIECE (1UL << 30)	/* that one request may ask for */

/* ---- copies in this process ------------------------------------------------------------- */

struct opening {
	struct hmm_dirty *dirty;
	uint64_t at, end;		/* in one region */
	uint64_t track;
};

static int prepare_open(struct request *request)
{
	struct hmm_msg_copy_open *message = (struct hmm_msg_copy_open *)request->message;
	struct opening *opening = request->data;

	message->owner = opening->dirty->hmm->id;
	message->addr = opening->at;
	return hmmc_dirty_number(request, opening->dirty, &opening->track, &message->dirty);
}

/* In the receiver, whose descriptors they are. What was mapped there is replaced in one step. */
static int finish_open(struct request *request, struct hmm_frame *frame)
{
	const struct hmm_msg_copy_open_reply *reply = (const void *)frame->data;
	const struct opening *opening = request->data;
	const struct hmm_dirty *dirty = opening->dirty;
	int fd = hmm_frame_take_fd(frame, 0), error = 0;
	char *at = dirty->copy + (opening->at - dirty->start);
	size_t length = opening->end - opening->at;

	if (reply->base > opening->at || opening->end - reply->base > reply->length)
		error = -EPROTO;
	else if (!hmmc_map(at, length, PROT_READ, MAP_SHARED, fd, opening->at - reply->base))
		error = -errno;
	close(fd);
	if (!error) {
		madvise(at, length, MADV_DONTDUMP);
		madvise(at, length, MADV_DONTFORK);
		if (reply->kind == HMM_POOL_KIND_MEMFD_HUGE)
			madvise(at, length, MADV_HUGEPAGE);
	}
	return error;
}

/* As far from a huge page's beginning as the owner's address, so that huge pages fit. */
static int reserve(struct hmm_dirty *dirty)
{
	const size_t lead = dirty->start % HMM_BLOCK_SIZE, size = dirty->end - dirty->start + HMM_BLOCK_SIZE;
	char *room = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (room == MAP_FAILED)
		return hmmc_fail(-ENOMEM, "no address space for a copy of %zu bytes", dirty->end - dirty->start);
	dirty->room = room;
	dirty->room_size = size;
	dirty->copy = (char *)(((uintptr_t)room - lead + HMM_BLOCK_SIZE - 1) & ~(HMM_BLOCK_SIZE - 1)) + lead;
	return 0;
}

int hmmc_copy_open(struct hmm_dirty *dirty)
{
	struct opening opening = { .dirty = dirty, .end = dirty->start };
	int error = dirty->room ? 0 : reserve(dirty);

	while (!error && opening.end < dirty->end) {
		struct request *request =
			hmmc_request_new(dirty->hmm->connection, HMM_OP_COPY_OPEN, sizeof(struct hmm_msg_copy_open));

		if (!request)
			return hmmc_fail(-ENOMEM, "the library's memory is used up");
		opening.at = opening.end;
		opening.end = (opening.at & ~(HMM_REGION_SIZE - 1)) + HMM_REGION_SIZE;
		if (opening.end > dirty->end)
			opening.end = dirty->end;
		request->data = &opening;
		request->prepare = prepare_open;
		request->finish = finish_open;
		error = hmmc_request_call(request);
		hmmc_request_free(request);
	}
	return error;
}

void hmmc_copy_close(struct hmm_dirty *dirty)
{
	if (dirty->room)
		munmap(dirty->room, dirty->room_size);
	dirty->room = NULL;
}

/* The mirror's range that has all of [start, end). With hmm->lock held. */
static struct hmm_dirty *find(const struct hmm_mirror_private *mirror, uint64_t start, uint64_t end)
{
	struct hmm_dirty *dirty;

	for (dirty = mirror->hmm->dirties; dirty; dirty = dirty->next)
		if (dirty->mirror == mirror && dirty->start <= start && dirty->end >= end)
			break;
	return dirty;
}

static struct hmm_dirty *find_locked(const struct hmm_mirror_private *mirror, uint64_t start, uint64_t end)
{
	struct hmm_dirty *dirty;

	futex_lock(&mirror->hmm->lock);
	dirty = find(mirror, start, end);
	futex_unlock(&mirror->hmm->lock);
	return dirty;
}

const void *hmm_mirror_copy(const struct hmm_mirror *mirror, unsigned long addr)
{
	const struct hmm_dirty *dirty;

	if (!mirror || !mirror->priv || hmmc_mirror_is_group(mirror) || hmmc_space_check_handle(mirror->priv->hmm) ||
	    addr >= HMM_VA_END)
		return NULL;
	dirty = find_locked(mirror->priv, addr, addr + 1);
	return dirty ? dirty->copy + (addr - dirty->start) : NULL;
}

/* ---- ranges ------------------------------------------------------------------------------------ */

static int check(const struct hmm_mirror *mirror, unsigned long addr, size_t length, uint64_t flags)
{
	int error = hmmc_mirror_check(mirror);

	if (!error)
		error = hmmc_dispatch_check();
	if (error)
		return error;
	if (!(mirror->priv->flags & HMM_MIRROR_FLAGS_TRACKED))
		return hmmc_fail(-EOPNOTSUPP, "the mirror is not tracked: register one with HMM_MIRROR_TRACKED in ops->flags");
	if (flags)
		return hmmc_fail(-EINVAL, "flags has unknown bits");
	return hmmc_dirty_check_range(addr, length);
}

int hmm_mirror_track(struct hmm_mirror *mirror, unsigned long addr, size_t length, uint64_t flags)
{
	int error = check(mirror, addr, length, flags);
	struct hmm_dirty *dirty;

	return error ? error : hmmc_dirty_new(mirror->priv->hmm, mirror->priv, addr, length, &dirty);
}

int hmm_mirror_untrack(struct hmm_mirror *mirror, unsigned long addr, size_t length)
{
	int error = check(mirror, addr, length, 0);
	struct hmm_dirty *dirty;

	if (error)
		return error;
	dirty = find_locked(mirror->priv, addr, addr + length);
	if (!dirty || dirty->start != addr || dirty->end != addr + length)
		return hmmc_fail(-EINVAL, "%#lx to %#lx is not a range that the mirror tracks", addr, addr + length);
	hmmc_dirty_end(dirty);
	return 0;
}

void hmmc_sync_leave(struct hmm_mirror_private *mirror)
{
	for (;;) {
		struct hmm_dirty *dirty;

		futex_lock(&mirror->hmm->lock);
		for (dirty = mirror->hmm->dirties; dirty && dirty->mirror != mirror; dirty = dirty->next)
			;
		futex_unlock(&mirror->hmm->lock);
		if (!dirty)
			return;
		hmmc_dirty_end(dirty);
	}
}

/* ---- syncs ---------------------------------------------------------------------------------------- */

struct syncing {
	struct hmm_dirty *dirty;
	uint64_t track;			/* that it was sent for */
};

static int prepare_sync(struct request *request)
{
	struct hmm_msg_mirror_sync *message = (struct hmm_msg_mirror_sync *)request->message;
	struct syncing *syncing = request->data;

	message->owner = syncing->dirty->hmm->id;
	return hmmc_dirty_number(request, syncing->dirty, &syncing->track, &message->dirty);
}

static int sync_piece(struct syncing *syncing, uint64_t addr, uint64_t length, struct hmm_sync_report *report)
{
	const struct hmm_msg_mirror_sync_reply *reply;
	struct hmm_msg_mirror_sync *message;
	struct request *request;
	int error;

	request = hmmc_request_new(syncing->dirty->hmm->connection, HMM_OP_MIRROR_SYNC, sizeof(*message));
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	message = (struct hmm_msg_mirror_sync *)request->message;
	message->addr = addr;
	message->length = length;
	request->data = syncing;
	request->prepare = prepare_sync;
	error = hmmc_request_call(request);
	if (!error) {
		reply = (const struct hmm_msg_mirror_sync_reply *)request->reply;
		report->written += reply->written;
		report->presumed += reply->presumed;
		report->copied += reply->copied;
		report->zeroed += reply->zeroed;
	}
	hmmc_request_free(request);
	return error;
}

/* With a track of the hmmd that is there, whichever that is by then. */
static int sync_surely(struct hmm_dirty *dirty, uint64_t addr, uint64_t length, struct hmm_sync_report *report)
{
	struct syncing syncing = { .dirty = dirty };
	int error;

	while ((error = sync_piece(&syncing, addr, length, report)) == -ENOENT) {
		error = hmmc_dirty_begin_anew(dirty, syncing.track);
		if (error)
			break;
	}
	return error;
}

long hmm_mirror_sync(struct hmm_mirror *mirror, unsigned long addr, size_t length, uint64_t flags,
		     struct hmm_sync_report *report)
{
	struct hmm_sync_report total = { .pages = length / HMM_PAGE_SIZE };
	int error = check(mirror, addr, length, flags);
	struct hmm_dirty *dirty;

	if (error)
		return error;
	dirty = find_locked(mirror->priv, addr, addr + length);
	if (!dirty)
		return hmmc_fail(-EINVAL, "%#lx to %#lx is not tracked by this mirror: hmm_mirror_track()", addr, addr + length);
	for (size_t done = 0; done < length && !error; done += PIECE)
		error = sync_surely(dirty, addr + done, length - done < PIECE ? length - done : PIECE, &total);
	if (error)
		return error;
	if (report)
		*report = total;
	return (long)(total.copied + total.zeroed);
}
