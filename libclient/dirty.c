/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dirty.c - which pages were written.
 *
 * The happy path: hmmd is told of a range and gives it a number; a read asks for its bits, at most
 * 1 GiB at a time.
 *
 * hmmd keeps no track over its own death, and nor does the library: a number is good for the
 * connection that it came by. Who finds it void has another track begun, in
 * which all pages count as written, and asks that one.
 *
 * In an owner the receiver answers hmmd's wish for a userfaultfd for tracking. The library
 * keeps no reference of that: when hmmd dies, the kernel lifts every protection.
 *
 * What can fail: as every request; a read of several pieces whose later ones fail gives up
 * its track, so that what it has cleared is not lost.
 */
#include <stdio.h>
#include <string.h>

#include "arena.h"
#include "dirty.h"
#include "dispatch.h"
#include "owner.h"

#define PIECE		(1UL << 30)
#define PIECE_WORDS	(PIECE / HMM_PAGE_SIZE / 64)

_Static_assert((int)HMM_DIRTY_CLEAR == (int)HMM_DIRTY_FLAGS_CLEAR, "one meaning");

static uint64_t track_of(const struct hmm_dirty *dirty)
{
	return __atomic_load_n(&dirty->track, __ATOMIC_ACQUIRE);
}

/* ---- tracks ------------------------------------------------------------------------ */

static int prepare_start(struct request *request)
{
	struct hmm_msg_dirty_start *message = (struct hmm_msg_dirty_start *)request->message;
	const struct hmm_dirty *dirty = request->data;

	message->owner = dirty->hmm->id;
	message->mirror = dirty->mirror ? dirty->mirror->id : 0;
	message->addr = dirty->start;
	message->length = dirty->end - dirty->start;
	return 0;
}

/* In the receiver, which alone changes `life`. */
static int finish_start(struct request *request, struct hmm_frame *frame)
{
	const struct hmm_msg_dirty_start_reply *reply = (const void *)frame->data;
	struct hmm_dirty *dirty = request->data;
	uint64_t life = request->connection->life;

	__atomic_store_n(&dirty->track, life << 32 | reply->dirty, __ATOMIC_RELEASE);
	return 0;
}

static int call_hmmd(struct hmm_dirty *dirty, uint16_t op, size_t size, int (*prepare)(struct request *),
		     int (*finish)(struct request *, struct hmm_frame *))
{
	struct request *request = hmmc_request_new(dirty->hmm->connection, op, size);
	int error;

	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	request->data = dirty;
	request->prepare = prepare;
	request->finish = finish;
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	return error;
}

/* In the clerk, with send_lock held: the connection does not change before it is sent. */
static bool is_good(const struct request *request, uint64_t track)
{
	return (uint32_t)track && track >> 32 == request->connection->life;
}

int hmmc_dirty_number(struct request *request, const struct hmm_dirty *dirty, uint64_t *track, uint32_t *number)
{
	*track = track_of(dirty);
	if (!is_good(request, *track)) {
		snprintf(request->text, sizeof(request->text), "another hmmd knows nothing of it");
		return -ENOENT;
	}
	*number = (uint32_t)*track;
	return 0;
}

static int prepare_stop(struct request *request)
{
	struct hmm_msg_dirty_stop *message = (struct hmm_msg_dirty_stop *)request->message;
	const struct hmm_dirty *dirty = request->data;
	uint64_t track;

	message->owner = dirty->hmm->id;
	return hmmc_dirty_number(request, dirty, &track, &message->dirty);
}

static void end(struct hmm_dirty *dirty)
{
	if (!__atomic_load_n(&dirty->hmm->lost, __ATOMIC_ACQUIRE))
		call_hmmd(dirty, HMM_OP_DIRTY_STOP, sizeof(struct hmm_msg_dirty_stop), prepare_stop, NULL);
}

/* Its copies with it. When hmmd dies in between, its successor knows nothing of the track. */
static int begin(struct hmm_dirty *dirty)
{
	int error;

	do {
		error = call_hmmd(dirty, HMM_OP_DIRTY_START, sizeof(struct hmm_msg_dirty_start), prepare_start, finish_start);
		if (error)
			return error;
		error = dirty->mirror ? hmmc_copy_open(dirty) : 0;
	} while (error == -ENOENT);
	if (error) {
		end(dirty);
		__atomic_store_n(&dirty->track, 0, __ATOMIC_RELEASE);
	}
	return error;
}

int hmmc_dirty_begin_anew(struct hmm_dirty *dirty, uint64_t gone)
{
	int error = 0;

	futex_lock(&dirty->lock);
	/* Another thread may have begun anew already. */
	if (track_of(dirty) == gone)
		error = begin(dirty);
	futex_unlock(&dirty->lock);
	return error;
}

/* ---- reading ------------------------------------------------------------------------- */

struct reading {
	struct hmm_dirty *dirty;
	uint64_t track;			/* that it was sent for */
};

static int prepare_read(struct request *request)
{
	struct hmm_msg_dirty_read *message = (struct hmm_msg_dirty_read *)request->message;
	struct reading *reading = request->data;
	const struct hmm_dirty *dirty = reading->dirty;

	message->owner = dirty->hmm->id;
	return hmmc_dirty_number(request, dirty, &reading->track, &message->dirty);
}

static int take_reply(const struct request *request, size_t pages, uint64_t *bitmap,
		      struct hmm_dirty_report *report)
{
	const struct hmm_msg_dirty_read_reply *reply = (const void *)request->reply;

	if (reply->count != (pages + 63) / 64)
		return hmmc_fail(-EPROTO, "hmmd told of %u words for %zu pages", reply->count, pages);
	if (bitmap)
		memcpy(bitmap, reply->bits, reply->count * sizeof(uint64_t));
	report->pages += pages;
	report->written += reply->written;
	report->presumed += reply->presumed;
	return 0;
}

static int read_piece(struct reading *reading, uint64_t addr, uint64_t length, uint64_t flags, uint64_t *bitmap,
		      struct hmm_dirty_report *report)
{
	struct hmm_msg_dirty_read *message;
	struct request *request;
	int error;

	request = hmmc_request_new_expecting(reading->dirty->hmm->connection, HMM_OP_DIRTY_READ, sizeof(*message),
					     (length / HMM_PAGE_SIZE + 63) / 64 * sizeof(uint64_t));
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	message = (struct hmm_msg_dirty_read *)request->message;
	message->addr = addr;
	message->length = length;
	message->flags = flags;
	request->data = reading;
	request->prepare = prepare_read;
	error = hmmc_request_call(request);
	if (!error)
		error = take_reply(request, length / HMM_PAGE_SIZE, bitmap, report);
	hmmc_request_free(request);
	return error;
}

/* With a track of the hmmd that is there, whichever that is by then. */
static int read_surely(struct hmm_dirty *dirty, uint64_t addr, uint64_t length, uint64_t flags, uint64_t *bitmap,
		       struct hmm_dirty_report *report)
{
	struct reading reading = { .dirty = dirty };
	int error;

	while ((error = read_piece(&reading, addr, length, flags, bitmap, report)) == -ENOENT) {
		error = hmmc_dirty_begin_anew(dirty, reading.track);
		if (error)
			break;
	}
	return error;
}

static int check(const struct hmm_dirty *dirty)
{
	int error;

	if (!dirty)
		return hmmc_fail(-EINVAL, "the handle is NULL");
	error = hmmc_space_check(dirty->hmm);
	return error ? error : hmmc_dispatch_check();
}

int hmmc_dirty_check_range(unsigned long addr, size_t length)
{
	if (!length || addr % HMM_PAGE_SIZE || length % HMM_PAGE_SIZE)
		return hmmc_fail(-EINVAL, "the range is empty or not of whole pages");
	if (addr + length < addr || addr + length > HMM_VA_END)
		return hmmc_fail(-EINVAL, "the range wraps or ends above user space");
	return 0;
}

long hmm_dirty_read(struct hmm_dirty *dirty, unsigned long addr, size_t length, uint64_t flags,
		    uint64_t *bitmap, struct hmm_dirty_report *report)
{
	struct hmm_dirty_report total = { 0 };
	int error = check(dirty);

	if (!error)
		error = hmmc_dirty_check_range(addr, length);
	if (error)
		return error;
	if (flags & ~HMM_DIRTY_CLEAR)
		return hmmc_fail(-EINVAL, "flags has unknown bits");
	if (addr < dirty->start || addr + length > dirty->end)
		return hmmc_fail(-EINVAL, "%#lx to %#lx is not within the range that is tracked", addr, addr + length);
	for (size_t done = 0; done < length && !error; done += PIECE) {
		size_t piece = length - done < PIECE ? length - done : PIECE;

		error = read_surely(dirty, addr + done, piece, flags, bitmap ? bitmap + done / PIECE * PIECE_WORDS : NULL,
				    &total);
	}
	if (error) {
		/* What was cleared already, the piece that failed among it, is told to nobody now: all of it counts as written. */
		if (flags & HMM_DIRTY_CLEAR) {
			end(dirty);
			__atomic_store_n(&dirty->track, 0, __ATOMIC_RELEASE);
		}
		return error;
	}
	if (report)
		*report = total;
	return (long)total.written;
}

/* ---- starting and stopping ----------------------------------------------------------- */

static void forget(struct hmm_dirty *dirty)
{
	struct hmm *hmm = dirty->hmm;
	struct hmm_dirty **at;

	futex_lock(&hmm->lock);
	for (at = &hmm->dirties; *at && *at != dirty; at = &(*at)->next)
		;
	if (*at)
		*at = dirty->next;
	futex_unlock(&hmm->lock);
}

int hmmc_dirty_new(struct hmm *hmm, struct hmm_mirror_private *mirror, unsigned long addr, size_t length,
		   struct hmm_dirty **result)
{
	struct hmm_dirty *dirty = hmmc_arena_alloc(sizeof(*dirty));
	int error;

	if (!dirty)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	dirty->hmm = hmm;
	dirty->mirror = mirror;
	dirty->start = addr;
	dirty->end = addr + length;
	error = begin(dirty);
	if (error) {
		hmmc_copy_close(dirty);
		hmmc_arena_free(dirty, sizeof(*dirty));
		return error;
	}
	futex_lock(&hmm->lock);
	dirty->next = hmm->dirties;
	hmm->dirties = dirty;
	futex_unlock(&hmm->lock);
	*result = dirty;
	return 0;
}

void hmmc_dirty_end(struct hmm_dirty *dirty)
{
	end(dirty);
	forget(dirty);
	hmmc_copy_close(dirty);
	hmmc_arena_free(dirty, sizeof(*dirty));
}

int hmm_dirty_start(struct hmm *hmm, unsigned long addr, size_t length, uint64_t flags,
		    struct hmm_dirty **result)
{
	int error = hmmc_space_check(hmm);

	if (!error)
		error = hmmc_dispatch_check();
	if (error)
		return error;
	if (!result)
		return hmmc_fail(-EINVAL, "result is NULL");
	if (flags)
		return hmmc_fail(-EINVAL, "flags has unknown bits");
	error = hmmc_dirty_check_range(addr, length);
	return error ? error : hmmc_dirty_new(hmm, NULL, addr, length, result);
}

int hmm_dirty_stop(struct hmm_dirty *dirty)
{
	int error;

	if (!dirty)
		return 0;
	error = hmmc_space_check_handle(dirty->hmm);
	if (!error)
		error = hmmc_dispatch_check();
	if (!error)
		hmmc_dirty_end(dirty);
	return error;
}

/* ---- an owner's userfaultfd ------------------------------------------------------------ */

/* Each time another: the hmmd that had the last one may have shaken hands with it. */
static int prepare_track(struct request *request)
{
	struct hmm_msg_track_open *message = (struct hmm_msg_track_open *)request->message;
	bool user_mode = false;
	int fd;

	if (request->fds[0] >= 0)
		close(request->fds[0]);
	fd = hmmc_owner_userfaultfd(request->connection->userfaultfd_device, &user_mode);
	request->fds[0] = fd < 0 ? -1 : fd;
	request->nfds = fd >= 0;
	message->owner = request->connection->hmm->id;
	message->error = fd < 0 ? fd : 0;
	message->user_mode = user_mode;
	return 0;
}

void hmmc_dirty_wanted(struct hmm *hmm)
{
	struct request *request;

	if (!hmm->owner)
		return;
	request = hmmc_request_new(hmm->connection, HMM_OP_TRACK_OPEN, sizeof(struct hmm_msg_track_open));
	/* hmmd asks again. */
	if (!request)
		return;
	request->prepare = prepare_track;
	request->complete = hmmc_request_free;
	hmmc_request_post(request);
}
