/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tracker.c - an owner that is tracked: how it comes to be, and what it is asked. Runs on
 * the owner's worker.
 *
 * Coming: somebody wants to know what is written, and the engine needs a userfaultfd of the
 * owner's own. Its library is told so (track_wanted) and sends one (TRACK_OPEN); who asked is told to ask again
 * meanwhile. hmmd shakes hands with it and is the only one to have it.
 *
 * A reading goes through its range in pieces, and lets others have their turn in between.
 *
 * Going: with its peer, its owner, or hmmd. Nothing is handed to a successor: it knows no track, so the library begins
 * another, in which everything counts as written. But a thread that a look was to stop, and that does not stand yet, is
 * waited for, whoever is gone: only its tracer can let it go on, or bury it.
 *
 * What can fail: the owner's library has no userfaultfd to give, or the engine none to use.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/worker.h"
#include "log.h"
#include "tracking/freeze.h"
#include "tracking/tracking.h"
#include "uapi.h"

#define BATCH		64U
#define PIECE		(64UL << 20)
#define TRIES		3U
#define TRACKS_MAX	1024U		/* of an owner: each look goes through all */
#define ASK_AGAIN	(1000 * NS_PER_MS)
/* How often it is looked whether a thread has come to stand that no look waits for any more. */
#define THAW_NS		NS_PER_MS
/* ... or whether a process has ended whose first thread did so while it was to stand. */
#define BURY_NS		(20 * NS_PER_MS)

/* ---- messages -------------------------------------------------------------------- */

/*
 * It is not looked at any more, and one mapping again. Registered first, whatever the kernel checks: that
 * also wipes the marks of a userfaultfd that is gone, for which nobody cares any more.
 */
static void unregister(struct tracker *tracker, uint64_t at, uint64_t end)
{
	if (tracker->uffd < 0)
		return;
	unregister_run(tracker->owner, tracker->uffd, at, end, true);
	/* Unregistering forgets a writer that waits. */
	kernel->uffd_wake(tracker->uffd, at, end - at);
}

/* What was moved is what was there before, at an address where nobody knew it. */
static void moved(struct tracker *tracker, uint64_t to, uint64_t length)
{
	track_sight(tracker, to, to + length, SIGHT_WRITTEN);
	unregister(tracker, to, to + length);
}

/* Return: how many messages, or -errno. */
static int read_batch(struct tracker *tracker, struct uffd_msg *messages)
{
	ssize_t n = kernel->uffd_read(tracker->uffd, messages, BATCH * sizeof(*messages));

	return n < 0 ? (int)n : (int)(n / (ssize_t)sizeof(*messages));
}

void tracker_read(struct tracker *tracker)
{
	struct uffd_msg messages[BATCH];
	int n;

	do {
		n = read_batch(tracker, messages);
		for (int i = 0; i < n; i++)
			if (messages[i].event == UFFD_EVENT_REMAP)
				moved(tracker, messages[i].arg.remap.to, messages[i].arg.remap.len);
		for (int i = 0; i < n; i++)
			if (messages[i].event == UFFD_EVENT_PAGEFAULT && tracker->ops->fault) {
				owner_count(tracker->owner, COUNTER_TRACK_FAULTS, 1);
				tracker->ops->fault(tracker, messages[i].arg.pagefault.address);
			}
	} while (n > 0);
}

bool tracker_settle(struct tracker *tracker, unsigned int *tries)
{
	if (++*tries > TRIES)
		return false;
	tracker_read(tracker);
	return true;
}

static void tracker_ready(struct source *source)
{
	tracker_read((struct tracker *)((char *)source - offsetof(struct tracker, source)));
}

/* ---- coming and going -------------------------------------------------------------- */

/* It is in no list: ends its copies and frees it, as soon as no sync runs. */
static void drop(struct tracker *tracker, struct track *track)
{
	track->dropped = true;
	if (track->users) {
		TAILQ_INSERT_TAIL(&tracker->leaving, track, link);
		/* What the agent is at stays: it could write to the copy after that is gone. */
		if (track->syncing)
			order_cancel_syncs(tracker->owner, track->syncing);
		return;
	}
	copies_end(track);
	track_free(track);
}

static struct tracker *tracker_new(struct owner *owner, const struct tracking_ops *ops)
{
	struct tracker *tracker = calloc(1, sizeof(*tracker));

	if (!tracker)
		return NULL;
	tracker->owner = owner;
	tracker->ops = ops;
	tracker->uffd = tracker->clear_refs = -1;
	TAILQ_INIT(&tracker->tracks);
	TAILQ_INIT(&tracker->leaving);
	return tracker;
}

/* True: there are threads that will have to be let go of later, or buried. */
static bool see_to_stopped(struct worker *worker, struct tracker *tracker)
{
	bool go_on = thaw(&tracker->stopped);

	if (!tracker->stopped.count)
		return false;
	worker_alarm(worker, worker->now + (go_on ? BURY_NS : THAW_NS));
	return true;
}

static void tracker_free(struct tracker *tracker)
{
	struct worker *worker = tracker->owner->worker;
	struct track *track;

	while ((track = TAILQ_FIRST(&tracker->tracks))) {
		TAILQ_REMOVE(&tracker->tracks, track, link);
		drop(tracker, track);
	}
	if (tracker->uffd >= 0) {
		reactor_remove(worker->reactor, &tracker->source);
		/* The last reference: every protection is lifted, and who waits goes on. */
		close(tracker->uffd);
	}
	if (tracker->clear_refs >= 0)
		close(tracker->clear_refs);
	if (!see_to_stopped(worker, tracker)) {
		free(tracker);
		return;
	}
	tracker->owner = NULL;
	LIST_INSERT_HEAD(&worker->standing, tracker, link);
}

/* By pid, and then it is looked whether that is the owner's still. Of its own the owner could pass any file of procfs. */
static int open_clear_refs(const struct owner *owner)
{
	char path[48];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/clear_refs", owner->pid);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (owner->pidfd >= 0 && syscall(SYS_pidfd_send_signal, owner->pidfd, 0, NULL, 0) < 0) {
		close(fd);
		return -ESRCH;
	}
	return fd;
}

static int open_tracker(struct owner *owner, struct letter *letter, int uffd)
{
	const struct tracking_ops *ops = owner->worker->engine->tracking.ops;
	struct tracker *tracker = tracker_new(owner, ops);
	int r = tracker ? 0 : -ENOMEM;

	if (!r && ops->userfaultfd) {
		tracker->features = ops->uffd_features |
				    (ops->uffd_optional & owner->worker->engine->facts.uffd_features);
		r = kernel_uffd_api(uffd, tracker->features, NULL);
	}
	if (!r && ops->whole) {
		tracker->clear_refs = open_clear_refs(owner);
		r = tracker->clear_refs < 0 ? tracker->clear_refs : 0;
	}
	if (!r && uffd >= 0) {
		fcntl(uffd, F_SETFL, O_NONBLOCK);
		r = reactor_add(owner->worker->reactor, &tracker->source, uffd, tracker_ready);
	}
	if (r) {
		if (tracker)
			tracker_free(tracker);
		if (uffd >= 0)
			close(uffd);
		return letter_fail(letter, r, "owner %u can't be tracked by %s: %s", owner->id, ops->name, strerror(-r));
	}
	tracker->uffd = uffd;
	owner->tracker = tracker;
	log_info("owner %u: what it writes is found by %s", owner->id, ops->name);
	return 0;
}

static int refuse(struct owner *owner, struct letter *letter, int error)
{
	owner->untrackable = error;
	return letter_fail(letter, error, "owner %u has no userfaultfd to give for tracking: %s", owner->id, strerror(-error));
}

static int track_open(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_track_open *message = (const void *)letter->message;
	const struct tracking_ops *ops = owner->worker->engine->tracking.ops;

	if (owner->tracker || !ops || !ops->userfaultfd)
		return letter_fail(letter, -EEXIST, "no userfaultfd is wanted for tracking");
	if (!letter->nfds)
		return refuse(owner, letter, message->error < 0 && message->error >= -4095 ? message->error : -EPERM);
	if (!owner_is_userfaultfd(letter->fds[0]))
		return letter_fail(letter, -EBADF, "the descriptor is no userfaultfd");
	/* The kernel's own writes would fail in a system call of the program's. */
	if (message->user_mode && ops->kernel_faults)
		return refuse(owner, letter, -EPERM);
	if (open_tracker(owner, letter, letter_take_fd(letter, 0))) {
		/* Who asked would ask for ever. */
		owner->untrackable = letter->error;
		return letter->error;
	}
	if (!letter_reply(letter, HMM_OP_TRACK_OPEN_REPLY, sizeof(struct hmm_msg_track_open_reply)))
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	return 0;
}

/* Not with every question: the answer may be on its way. */
static void want(struct owner *owner)
{
	struct hmm_msg_track_wanted *message;

	if (owner->tracker_asked && owner->worker->now - owner->tracker_asked < ASK_AGAIN)
		return;
	message = malloc(sizeof(*message));
	if (!message)
		return;
	HMM_MSG_INIT(*message, HMM_OP_TRACK_WANTED, 0);
	message->owner = owner->id;
	if (worker_event(owner->worker, owner->peer, message, -1))
		owner->tracker_asked = owner->worker->now;
}

/* 0: there is a tracker. */
static int find_tracker(struct owner *owner, struct letter *letter)
{
	const struct tracking_choice *tracking = &owner->worker->engine->tracking;

	if (owner->tracker)
		return 0;
	if (!tracking->ops)
		return letter_fail(letter, -EOPNOTSUPP, "this hmmd can't find what is written: %s",
				   tracking_why_none(tracking, (enum tracking_wish)owner->worker->engine->options.tracking));
	if (!tracking->ops->userfaultfd)
		return open_tracker(owner, letter, -1);
	if (owner->untrackable)
		return letter_fail(letter, owner->untrackable, "owner %u has no userfaultfd to give for tracking: %s",
				   owner->id, strerror(-owner->untrackable));
	want(owner);
	return letter_fail(letter, -EAGAIN, "the owner is asked for a userfaultfd; ask again");
}

/* Whether another track has some of it; and if so, where that begins or ends. */
static uint64_t free_until(const struct tracker *tracker, uint64_t at, uint64_t end, bool *taken)
{
	const struct track *track;

	*taken = false;
	TAILQ_FOREACH(track, &tracker->tracks, link) {
		if (track->end <= at || track->start >= end)
			continue;
		if (track->start <= at) {
			*taken = true;
			return track->end < end ? track->end : end;
		}
		end = track->start;
	}
	return end;
}

/* With the track not in the list: what no other one has is looked at no more, and has no marks. */
static void clean(struct tracker *tracker, const struct track *track)
{
	uint64_t at = track->start;

	while (at < track->end && !tracker->owner->gone) {
		bool taken;
		uint64_t stop = free_until(tracker, at, track->end, &taken);

		if (!taken)
			unregister(tracker, at, stop);
		at = stop;
	}
}

static void release(struct tracker *tracker, struct track *track)
{
	TAILQ_REMOVE(&tracker->tracks, track, link);
	clean(tracker, track);
	drop(tracker, track);
}

void tracking_peer_gone(struct owner *owner, uint64_t peer)
{
	struct track *track, *next;

	if (!owner->tracker)
		return;
	for (track = TAILQ_FIRST(&owner->tracker->tracks); track; track = next) {
		next = TAILQ_NEXT(track, link);
		if (track->peer == peer)
			release(owner->tracker, track);
	}
}

void tracking_mirror_gone(const struct mirror *mirror)
{
	struct tracker *tracker = mirror->owner->tracker;
	struct track *track, *next;

	for (track = tracker ? TAILQ_FIRST(&tracker->tracks) : NULL; track; track = next) {
		next = TAILQ_NEXT(track, link);
		if (track->mirror == mirror)
			release(tracker, track);
	}
}

void tracking_deinit(struct owner *owner)
{
	if (owner->tracker)
		tracker_free(owner->tracker);
	owner->tracker = NULL;
}

void tracking_tick(struct owner *owner)
{
	if (owner->tracker)
		see_to_stopped(owner->worker, owner->tracker);
}

void tracking_thaw(struct worker *worker)
{
	struct tracker *tracker, *next;

	for (tracker = LIST_FIRST(&worker->standing); tracker; tracker = next) {
		next = LIST_NEXT(tracker, link);
		if (see_to_stopped(worker, tracker))
			continue;
		LIST_REMOVE(tracker, link);
		free(tracker);
	}
}

void tracking_forget(struct worker *worker)
{
	struct tracker *tracker;

	while ((tracker = LIST_FIRST(&worker->standing))) {
		LIST_REMOVE(tracker, link);
		free(tracker->stopped.list);
		free(tracker);
	}
}

void tracking_let_go(struct owner *owner, uint64_t start, uint64_t end)
{
	if (owner->tracker && !TAILQ_EMPTY(&owner->tracker->tracks))
		unregister(owner->tracker, start, end);
}

bool tracking_clip(const struct owner *owner, uint64_t addr, uint64_t *end)
{
	const struct track *track;
	bool tracked = false;

	if (!owner->tracker)
		return false;
	TAILQ_FOREACH(track, &owner->tracker->tracks, link) {
		if (track->end <= addr || track->start >= *end)
			continue;
		if (track->start > addr && !tracked)
			*end = track->start;
		if (track->start > addr)
			continue;
		if (!tracked || track->end < *end)
			*end = track->end < *end ? track->end : *end;
		tracked = true;
	}
	return tracked;
}

bool tracking_lift(struct owner *owner, uint64_t addr)
{
	uint64_t end = addr + 1;

	if (!owner->tracker || !owner->tracker->ops->fault || !tracking_clip(owner, addr, &end))
		return false;
	owner->tracker->ops->fault(owner->tracker, addr);
	return true;
}

/* ---- questions ---------------------------------------------------------------------- */

static struct track *track_by_id(struct owner *owner, uint32_t id, uint64_t peer)
{
	struct track *track;

	if (!owner->tracker)
		return NULL;
	TAILQ_FOREACH(track, &owner->tracker->tracks, link)
		if (track->id == id && track->peer == peer)
			return track;
	return NULL;
}

static unsigned int count_tracks(const struct tracker *tracker)
{
	const struct track *track;
	unsigned int n = 0;

	TAILQ_FOREACH(track, &tracker->tracks, link)
		n++;
	return n;
}

static int dirty_start(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_dirty_start *message = (const void *)letter->message;
	struct hmm_msg_dirty_start_reply *reply;
	struct mirror *mirror = NULL;
	struct track *track;

	if (owner->closing || owner->gone)
		return letter_fail(letter, -ESTALE, "owner %u is gone", owner->id);
	if (message->mirror && copies_check(owner, letter, message->mirror, &mirror))
		return letter->error;
	if (find_tracker(owner, letter))
		return letter->error;
	if (count_tracks(owner->tracker) >= TRACKS_MAX)
		return letter_fail(letter, -ENOSPC, "%u ranges of owner %u are tracked already", TRACKS_MAX, owner->id);
	reply = letter_reply(letter, HMM_OP_DIRTY_START_REPLY, sizeof(*reply));
	if (!++owner->next_track)
		owner->next_track = 1;
	track = reply ? track_new(owner->next_track, letter->peer, message->addr, message->addr + message->length) : NULL;
	if (!track)
		return letter_fail(letter, -ENOMEM, "out of memory for %lu bytes to track", message->length);
	if (mirror && copies_begin(owner->tracker, letter, track, mirror)) {
		track_free(track);
		return letter->error;
	}
	/* A userfaultfd that was closed may have left marks on pages that are written without asking. */
	clean(owner->tracker, track);
	TAILQ_INSERT_TAIL(&owner->tracker->tracks, track, link);
	reply->dirty = track->id;
	return 0;
}

struct reading {
	struct task task;
	struct owner *owner;
	struct letter *letter;
	uint64_t at, end;
};

static const struct hmm_msg_dirty_read *asked(const struct reading *reading)
{
	return (const void *)reading->letter->message;
}

static int reading_fail(struct reading *reading, int r)
{
	return letter_fail(reading->letter, r, "what is written at %#lx can't be found: %s", reading->at,
			   tracking_look_error(r));
}

/* One piece. 0: done; 1: more is to come, or it is to be tried again; or -errno. */
static int reading_step(struct reading *reading)
{
	struct hmm_msg_dirty_read_reply *reply = (void *)reading->letter->reply;
	const struct hmm_msg_dirty_read *message = asked(reading);
	struct owner *owner = reading->owner;
	struct tracker *tracker = owner->tracker;
	uint64_t stop, written, presumed;
	struct track *track;
	int r;

	if (owner->gone || owner->closing)
		return letter_fail(reading->letter, -ESTALE, "owner %u is gone", owner->id);
	/* It may have been stopped between two pieces. */
	track = track_by_id(owner, message->dirty, reading->letter->peer);
	if (!track)
		return letter_fail(reading->letter, -ENOENT, "no track %u", message->dirty);
	/* A thread that was seized for an earlier try and stands by now. Nobody but who has a track waits for it. */
	if (!thaw(&tracker->stopped))
		return 1;
	if (tracker->uffd >= 0)
		tracker_read(tracker);
	/* All of it at once, where a look is one at everything. */
	stop = !tracker->ops->whole && reading->end - reading->at > PIECE ? reading->at + PIECE : reading->end;
	r = tracking_look(tracker, reading->at, stop);
	if (r == -EAGAIN)
		return 1;
	if (r) {
		/* What this very answer was to tell. */
		if (message->flags & HMM_DIRTY_FLAGS_CLEAR)
			track_sight(tracker, message->addr, reading->at, SIGHT_WRITTEN);
		return reading_fail(reading, r);
	}
	presumed = reply->presumed;
	written = track_tell(track, reading->at, stop, message->flags & HMM_DIRTY_FLAGS_CLEAR, reply->bits,
			     (reading->at - message->addr) >> HMM_PAGE_SHIFT, &reply->presumed);
	reply->written += written;
	owner_count(owner, COUNTER_TRACK_WRITTEN, written);
	owner_count(owner, COUNTER_TRACK_PRESUMED, reply->presumed - presumed);
	reading->at = stop;
	return reading->at < reading->end;
}

static void reading_run(struct task *task)
{
	struct reading *reading = (struct reading *)task;
	struct owner *owner = reading->owner;

	if (reading_step(reading) == 1) {
		TAILQ_INSERT_TAIL(&owner->retry, task, link);
		worker_alarm(owner->worker, owner->worker->now);
		return;
	}
	worker_reply(owner->worker, reading->letter);
	free(reading);
}

/* 0: it will be answered. */
static int dirty_read(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_dirty_read *message = (const void *)letter->message;
	uint64_t n = ((message->length >> HMM_PAGE_SHIFT) + 63) / 64;
	struct track *track = track_by_id(owner, message->dirty, letter->peer);
	struct hmm_msg_dirty_read_reply *reply;
	struct reading *reading;

	/* Who took the marks of a copy would leave it behind. */
	if (!track || track->mirror)
		return letter_fail(letter, -ENOENT, "no track %u", message->dirty);
	if (message->addr < track->start || message->addr + message->length > track->end)
		return letter_fail(letter, -EINVAL, "%#lx to %#lx is not within %#lx to %#lx, which is tracked", message->addr,
				   message->addr + message->length, track->start, track->end);
	reading = calloc(1, sizeof(*reading));
	reply = reading ? letter_reply(letter, HMM_OP_DIRTY_READ_REPLY, sizeof(*reply) + n * sizeof(uint64_t)) : NULL;
	if (!reply) {
		free(reading);
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	}
	reply->count = (uint32_t)n;
	reading->task.run = reading_run;
	reading->owner = owner;
	reading->letter = letter;
	reading->at = message->addr;
	reading->end = message->addr + message->length;
	owner_queue(owner, &reading->task);
	return 0;
}

static int dirty_stop(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_dirty_stop *message = (const void *)letter->message;
	struct track *track = track_by_id(owner, message->dirty, letter->peer);

	if (!track)
		return letter_fail(letter, -ENOENT, "no track %u", message->dirty);
	if (!letter_reply(letter, HMM_OP_DIRTY_STOP_REPLY, sizeof(struct hmm_msg_dirty_stop_reply)))
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	release(owner->tracker, track);
	return 0;
}

static int dirty_mark(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_dirty_mark *message = (const void *)letter->message;
	const struct mirror *mirror = mirror_by_id(owner, message->mirror);

	if (!mirror || mirror->peer != letter->peer)
		return letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
	if (!letter_reply(letter, HMM_OP_DIRTY_MARK_REPLY, sizeof(struct hmm_msg_dirty_mark_reply)))
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	if (owner->tracker)
		track_sight(owner->tracker, message->addr, message->addr + message->length, SIGHT_WRITTEN);
	return 0;
}

/* Of a tracked mirror. 0: it will be answered. */
static int about_copies(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_mirror_sync *sync = (const void *)letter->message;
	const struct hmm_msg_copy_open *open = (const void *)letter->message;
	bool is_sync = letter->message->opcode == HMM_OP_MIRROR_SYNC;
	uint32_t id = is_sync ? sync->dirty : open->dirty;
	struct track *track = track_by_id(owner, id, letter->peer);

	if (!track || !track->mirror)
		return letter_fail(letter, -ENOENT, "no track %u of a tracked mirror", id);
	if (is_sync)
		return sync_begin(owner, letter, track);
	copy_open(letter, track);
	return 1;
}

void tracking_request(struct owner *owner, struct letter *letter)
{
	switch (letter->message->opcode) {
	case HMM_OP_TRACK_OPEN:
		track_open(owner, letter);
		break;
	case HMM_OP_DIRTY_START:
		dirty_start(owner, letter);
		break;
	case HMM_OP_DIRTY_STOP:
		dirty_stop(owner, letter);
		break;
	case HMM_OP_DIRTY_MARK:
		dirty_mark(owner, letter);
		break;
	case HMM_OP_MIRROR_SYNC:
	case HMM_OP_COPY_OPEN:
		if (!about_copies(owner, letter))
			return;
		break;
	default:
		if (!dirty_read(owner, letter))
			return;
	}
	worker_reply(owner->worker, letter);
}
