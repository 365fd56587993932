/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dispatch.c - invalidations and releases, one after the other, to the driver.
 *
 * The happy path: the receiver queues an event; a thread takes it, calls the mirror's
 * sync_cpu_device_pagetables() without holding anything and sends the answer with the
 * event's cookie. Either it is the library's thread, which has the program's descriptors,
 * since callbacks are the program's code, and runs on arena memory; or the driver asked
 * for a descriptor (hmm_dispatch_fd()), which is readable while something is queued, and
 * calls hmm_dispatch(). Whichever comes first for a handle stays. A thread that dispatches
 * runs callbacks of its handles wherever it waits (dispatcher.c).
 *
 * A callback that does not return keeps those after it waiting; hmmd's deadline
 * then revokes the windows. A mirror that is unregistered waits for its callbacks that
 * run; those that are queued are answered without being run. An answer is sent only on the
 * connection that asked: the cookies of the next hmmd begin anew. When release() has
 * returned the mirror's windows lead nowhere.
 *
 * Callbacks of a device that cannot fault, quiesce() and resume(), run one at a time for each mirror
 * and in hmmd's order: while one is queued or runs, the others wait in mirror->later. A
 * change that the device has stopped for stays in mirror->changes until hmmd says that it is
 * over; resume() comes when that is so of all that overlap.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/eventfd.h>

#include "arena.h"
#include "devmem.h"
#include "dispatch.h"
#include "dispatcher.h"
#include "log.h"
#include "space.h"

struct item {
	struct item *next;
	struct hmm_mirror_private *mirror;
	bool release;
	bool settled;			/* the change with this cookie is over */
	bool ended;			/* of a change that the device stopped for: it is over */
	struct hmm_update update;
	uint64_t cookie;
	uint32_t life;			/* of the connection that asked */
	bool anew;			/* after a restart: the answer is that the mirror is ready */
	uint32_t id;			/* ... whose number is this */
	hmmc_dispatch_fn run;		/* instead: something else to do for the mirror */
	void *message;			/* a copy of what it is about */
	size_t size;
};

struct dispatch {
	struct thread thread;		/* not started where the driver dispatches */
	struct hmm *hmm;
	struct futex_lock lock;		/* the queue, and that fd agrees with it */
	struct item *head, *tail;
	unsigned int queued;
	uint32_t posted;		/* futex */
	uint32_t stop;
	int fd;				/* an eventfd of the program, or -1 */
	int signal;			/* the same in the private table */
	struct dispatchers dispatchers;
};

static __thread bool current __attribute__((tls_model("initial-exec")));

bool hmmc_dispatch_is_current(void)
{
	return current;
}

int hmmc_dispatch_check(void)
{
	if (!current)
		return 0;
	return hmmc_fail(-EDEADLK,
			 "a callback cannot wait for pages, which may be waiting for it; "
			 "do it in another thread or later");
}

/* The hmmd that waits for it is not there any more: the next waits for another. */
static int check_life(struct request *request)
{
	struct connection *connection = request->connection;
	uint32_t life;

	futex_lock(&connection->lock);
	life = connection->life;
	futex_unlock(&connection->lock);
	return request->life == life ? 0 : -ESTALE;
}

static void say_ready(struct hmm *hmm, const struct item *item)
{
	struct request *request;

	request = hmmc_request_new(hmm->connection, HMM_OP_MIRROR_READY,
				   sizeof(struct hmm_msg_mirror_ready));
	if (!request)
		return;		/* hmmd waits for as long as for a driver that stays away */
	((struct hmm_msg_mirror_ready *)request->message)->mirror = item->id;
	request->life = item->life;
	request->prepare = check_life;
	request->complete = hmmc_request_free;
	hmmc_request_post(request);
}

static void answer(struct hmm *hmm, const struct item *item, int status)
{
	struct request *request;
	struct hmm_msg_ack *ack;

	if (item->anew)
		say_ready(hmm, item);
	if (!item->cookie || item->settled)
		return;
	request = hmmc_request_new(hmm->connection, HMM_OP_ACK, sizeof(*ack));
	if (!request)
		return;		/* hmmd's deadline decides */
	ack = (struct hmm_msg_ack *)request->message;
	ack->cookie = item->cookie;
	ack->status = status;
	request->life = item->life;
	request->complete = hmmc_request_free;
	hmmc_request_post(request);
}

/* ---- the queue ------------------------------------------------------------------ */

/* With the lock held, where the program's descriptors are. */
static void unlink_after(struct dispatch *dispatch, struct item *previous)
{
	struct item *item = previous ? previous->next : dispatch->head;
	uint64_t value;

	if (previous)
		previous->next = item->next;
	else
		dispatch->head = item->next;
	if (dispatch->tail == item)
		dispatch->tail = previous;
	dispatch->queued--;
	/* It cannot wait: it was signalled, and is read here alone. */
	if (!dispatch->head && dispatch->fd >= 0 &&
	    read(dispatch->fd, &value, sizeof(value)) < 0)
		return;		/* the program closed it */
}

static struct item *take(struct dispatch *dispatch)
{
	struct item *item;

	futex_lock(&dispatch->lock);
	item = dispatch->head;
	if (item)
		unlink_after(dispatch, NULL);
	futex_unlock(&dispatch->lock);
	return item;
}

/* Whoever unregisters it may go on. */
static void let_go(struct hmm_mirror_private *mirror)
{
	/* The mirror may be freed at once: its address alone is used for the wake-up. */
	__atomic_sub_fetch(&mirror->callbacks, 1, __ATOMIC_ACQ_REL);
	futex_wake(&mirror->callbacks, INT32_MAX);
}

static void post(struct dispatch *dispatch)
{
	__atomic_add_fetch(&dispatch->posted, 1, __ATOMIC_RELEASE);
	futex_wake(&dispatch->posted, INT32_MAX);
	hmmc_dispatcher_post(dispatch);
}

static void item_free(struct item *item)
{
	hmmc_arena_free(item->message, item->size);
	hmmc_arena_free(item, sizeof(*item));
}

static void append(struct dispatch *dispatch, struct item *item)
{
	item->next = NULL;
	if (dispatch->tail)
		dispatch->tail->next = item;
	else
		dispatch->head = item;
	dispatch->tail = item;
}

/* The next of a mirror whose callbacks run one at a time. Where the program's descriptors are. */
static void go_on(struct dispatch *dispatch, struct hmm_mirror_private *mirror)
{
	uint64_t one = 1;
	struct item *item;

	if (!mirror->quiesces)
		return;
	futex_lock(&dispatch->lock);
	item = mirror->later;
	mirror->busy = item;
	if (item) {
		mirror->later = item->next;
		append(dispatch, item);
		if (dispatch->queued++ == 0 && dispatch->fd >= 0 &&
		    write(dispatch->fd, &one, sizeof(one)) < 0)
			one = 0;	/* the program closed it */
	}
	futex_unlock(&dispatch->lock);
	if (item)
		post(dispatch);
}

/* @kept: the mirror remembers it. */
static void done(struct dispatch *dispatch, struct item *item, bool kept)
{
	struct hmm_mirror_private *mirror = item->mirror;

	go_on(dispatch, mirror);
	if (!kept)
		item_free(item);
	let_go(mirror);
}

/* What waits behind a callback of its mirror. With the lock held. */
static void drop_later(struct hmm_mirror_private *mirror, bool all, struct item **dropped)
{
	struct item *item, **at = &mirror->later;

	while ((item = *at)) {
		if (item->run && !all) {
			at = &item->next;
			continue;
		}
		*at = item->next;
		item->next = *dropped;
		*dropped = item;
	}
}

void hmmc_dispatch_drop(struct hmm *hmm, struct hmm_mirror_private *mirror, bool all)
{
	struct dispatch *dispatch = __atomic_load_n(&hmm->dispatch, __ATOMIC_ACQUIRE);
	struct item *item, *previous = NULL, *dropped = NULL, *later = NULL;

	if (!dispatch)
		return;
	futex_lock(&dispatch->lock);
	for (item = dispatch->head; item; item = previous ? previous->next : dispatch->head) {
		if (item->mirror != mirror || (item->run && !all)) {
			previous = item;
			continue;
		}
		unlink_after(dispatch, previous);
		item->next = dropped;
		dropped = item;
	}
	drop_later(mirror, all, &later);
	futex_unlock(&dispatch->lock);
	while ((item = later)) {
		later = item->next;
		answer(hmm, item, 0);
		item_free(item);
		let_go(mirror);
	}
	while ((item = dropped)) {
		dropped = item->next;
		answer(hmm, item, 0);
		done(dispatch, item, false);
	}
}

/* In the receiver, which has the private descriptors. */
static bool queue(struct dispatch *dispatch, struct hmm_mirror_private *mirror,
		  const struct item *what)
{
	struct item *item = dispatch ? hmmc_arena_alloc(sizeof(*item)) : NULL;
	bool signalled = true;
	uint64_t one = 1;

	if (!item)
		return false;
	*item = *what;
	item->next = NULL;
	item->mirror = mirror;
	__atomic_add_fetch(&mirror->callbacks, 1, __ATOMIC_ACQ_REL);
	futex_lock(&dispatch->lock);
	if (mirror->busy) {
		struct item **at = &mirror->later;

		while (*at)
			at = &(*at)->next;
		*at = item;
		futex_unlock(&dispatch->lock);
		return true;
	}
	mirror->busy = mirror->quiesces;
	append(dispatch, item);
	if (dispatch->queued++ == 0 && dispatch->signal >= 0)
		signalled = write(dispatch->signal, &one, sizeof(one)) == sizeof(one);
	futex_unlock(&dispatch->lock);
	post(dispatch);
	if (!signalled)
		hmmc_log(HMMC_LOG_ERROR, "the descriptor for callbacks takes no signal");
	return true;
}

/* ---- calling --------------------------------------------------------------------- */

static bool overlaps(const struct item *change, unsigned long start, unsigned long end)
{
	return change->update.start < end && change->update.end > start;
}

/* All that hangs together with [*@start, *@end), by overlapping. False: some of it is not over. */
static bool span_ended(const struct hmm_mirror_private *mirror, unsigned long *start, unsigned long *end)
{
	const struct item *change;
	bool grown;

	do {
		grown = false;
		for (change = mirror->changes; change; change = change->next) {
			if (!overlaps(change, *start, *end))
				continue;
			if (!change->ended)
				return false;
			grown |= change->update.start < *start || change->update.end > *end;
			if (change->update.start < *start)
				*start = change->update.start;
			if (change->update.end > *end)
				*end = change->update.end;
		}
	} while (grown);
	return true;
}

static bool is_gone(const struct hmm_mirror_private *mirror, unsigned long start, unsigned long end)
{
	/* Of everything (another hmmd goes on) nothing is said. */
	if (end - start > HMM_REGION_SIZE)
		return false;
	for (; start < end; start += HMM_PAGE_SIZE)
		if (hmm_mirror_lookup(mirror->mirror, start) & HMM_ENTRY_VALID)
			return false;
	return true;
}

/* A change is over: unless another one of its range is not, the device goes on there. */
static void settle(struct hmm_mirror_private *mirror, const struct item *settled)
{
	struct item *change = mirror->changes, **at = &mirror->changes;
	struct hmm_update update = { 0 };

	while (change && (change->cookie != settled->cookie || change->life != settled->life))
		change = change->next;
	if (!change)
		return;		/* its driver refused, and had not stopped */
	change->ended = true;
	update = change->update;
	if (!span_ended(mirror, &update.start, &update.end))
		return;
	while ((change = *at)) {
		if (!overlaps(change, update.start, update.end)) {
			at = &change->next;
			continue;
		}
		*at = change->next;
		item_free(change);
	}
	for (change = mirror->changes; change; change = change->next)
		update.pending++;
	update.event = is_gone(mirror, update.start, update.end) ? HMM_UPDATE_GONE : HMM_UPDATE_RESTORED;
	update.blockable = true;
	mirror->ops.resume(mirror->mirror, &update);
}

/* The device stops. True: it is to be remembered, until the change is over. */
static bool quiesce(struct hmm_mirror_private *mirror, struct item *item, int *status)
{
	/* Nobody will say of these that they are over: the hmmd that began them is gone. */
	for (struct item *change = mirror->changes; item->anew && change; change = change->next)
		change->ended = true;
	*status = mirror->ops.quiesce(mirror->mirror, &item->update);
	if (*status == -EAGAIN && !item->update.blockable)
		return false;
	item->next = mirror->changes;
	mirror->changes = item;
	return true;
}

void hmmc_dispatch_forget_changes(struct hmm_mirror_private *mirror)
{
	struct item *change;

	while ((change = mirror->changes)) {
		mirror->changes = change->next;
		item_free(change);
	}
}

static void call(struct hmm *hmm, struct item *item)
{
	const struct hmm_mirror_ops *ops = &item->mirror->ops;
	struct hmm_mirror *mirror = item->mirror->told;
	bool kept = false;
	int status = 0;

	current = true;
	if (item->run) {
		item->run(item->mirror, item->message);
	} else if (item->release) {
		if (ops->release)
			ops->release(mirror);
		hmmc_devmem_release(item->mirror);
	} else if (item->settled) {
		settle(item->mirror, item);
	} else if (item->mirror->quiesces) {
		kept = quiesce(item->mirror, item, &status);
	} else if (ops->sync_cpu_device_pagetables) {
		status = ops->sync_cpu_device_pagetables(mirror, &item->update);
	}
	/* It has forked and this is the child, which has no part in it. */
	if (!current)
		return;
	current = false;
	if (item->release)
		hmmc_window_shut(item->mirror);
	answer(hmm, item, status > 0 ? 0 : status);
	done(hmm->dispatch, item, kept);
}

static void dispatch_main(void *argument)
{
	struct dispatch *dispatch = argument;

	for (;;) {
		uint32_t posted = __atomic_load_n(&dispatch->posted, __ATOMIC_ACQUIRE);
		struct item *item = take(dispatch);

		if (item)
			call(dispatch->hmm, item);
		else if (__atomic_load_n(&dispatch->stop, __ATOMIC_ACQUIRE))
			return;
		else
			futex_wait(&dispatch->posted, posted, NULL);
		/* In a child that a callback forked there is nothing to wait for. */
		if (hmmc_space_check_handle(dispatch->hmm))
			return;
	}
}

static void wait_for_item(struct dispatch *dispatch, int timeout_ms)
{
	uint64_t now = clock_ms(), end = now + (uint64_t)timeout_ms;
	struct timespec rest;

	for (;;) {
		uint32_t posted = __atomic_load_n(&dispatch->posted, __ATOMIC_ACQUIRE);

		if (__atomic_load_n(&dispatch->queued, __ATOMIC_ACQUIRE) ||
		    (timeout_ms >= 0 && now >= end))
			return;
		rest = (struct timespec){ .tv_sec = (time_t)((end - now) / 1000),
					  .tv_nsec = (long)((end - now) % 1000) * 1000000 };
		/* Its own are counted: they are run by hmm_dispatch(). */
		hmmc_dispatcher_wait(&dispatch->posted, posted, timeout_ms < 0 ? NULL : &rest, dispatch);
		if (hmmc_space_check_handle(dispatch->hmm))
			return;
		now = clock_ms();
	}
}

bool hmmc_dispatch_waits(const struct dispatch *dispatch)
{
	return __atomic_load_n(&dispatch->queued, __ATOMIC_ACQUIRE) != 0;
}

bool hmmc_dispatch_run(struct dispatch *dispatch)
{
	struct item *item = take(dispatch);

	if (!item)
		return false;
	call(dispatch->hmm, item);
	/* It has forked, and this is the child, which has no part in the rest. */
	return !hmmc_space_check_handle(dispatch->hmm);
}

struct dispatchers *hmmc_dispatch_dispatchers(struct dispatch *dispatch)
{
	return &dispatch->dispatchers;
}

void hmmc_dispatch_pause(const uint32_t *word, uint32_t value, const struct timespec *timeout)
{
	hmmc_dispatcher_wait(word, value, timeout, NULL);
}

void hmmc_dispatch_wait(const uint32_t *latch)
{
	while (!__atomic_load_n(latch, __ATOMIC_ACQUIRE))
		hmmc_dispatch_pause(latch, 0, NULL);
}

void hmmc_dispatch_nap(long ns)
{
	uint64_t now = clock_ns(), end = now + (uint64_t)ns;
	uint32_t never = 0;

	for (; now < end; now = clock_ns())
		hmmc_dispatch_pause(&never, 0, &(struct timespec){ .tv_nsec = (long)(end - now) });
}

void hmmc_dispatch_wait_zero(const uint32_t *count)
{
	uint32_t now;

	while ((now = __atomic_load_n(count, __ATOMIC_ACQUIRE)) != 0)
		hmmc_dispatch_pause(count, now, NULL);
}

void hmmc_dispatch_forget(void)
{
	current = false;
	hmmc_dispatcher_forget();
}

int hmm_dispatch(struct hmm *hmm, unsigned int max, int timeout_ms)
{
	struct dispatch *dispatch;
	unsigned int ran = 0, waiting;
	int error = hmmc_space_check_handle(hmm);

	if (!error)
		error = hmmc_dispatch_check();
	if (error)
		return error;
	dispatch = __atomic_load_n(&hmm->dispatch, __ATOMIC_ACQUIRE);
	if (!dispatch || dispatch->fd < 0)
		return hmmc_fail(
			-EINVAL,
			"callbacks of this handle do not come this way; call hmm_dispatch_fd() before the first mirror");
	if (hmmc_dispatcher_join(dispatch))
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	if (timeout_ms)
		wait_for_item(dispatch, timeout_ms);
	error = hmmc_space_check_handle(hmm);
	if (error)
		return error;
	/* No more than wait now: others may come as fast as they are run. */
	waiting = __atomic_load_n(&dispatch->queued, __ATOMIC_ACQUIRE);
	if (!max || max > waiting)
		max = waiting;
	if (max > INT_MAX)
		max = INT_MAX;
	while (ran < max && hmmc_dispatch_run(dispatch))
		ran++;
	error = hmmc_space_check_handle(hmm);
	return error ? error : (int)ran;
}

/* ---- beginning and end --------------------------------------------------------------- */

static struct dispatch *dispatch_new(struct hmm *hmm)
{
	struct dispatch *dispatch = hmmc_arena_alloc(sizeof(*dispatch));

	if (!dispatch)
		return NULL;
	dispatch->hmm = hmm;
	dispatch->fd = dispatch->signal = -1;
	return dispatch;
}

/* Makes it the handle's, unless another thread was faster. Return: the handle's. */
static struct dispatch *publish(struct dispatch *dispatch)
{
	struct dispatch *first = NULL;

	if (__atomic_compare_exchange_n(&dispatch->hmm->dispatch, &first, dispatch, false,
					__ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return dispatch;
	hmmc_dispatch_free(dispatch);
	return first;
}

int hmmc_dispatch_start(struct hmm *hmm)
{
	struct dispatch *dispatch;
	int error;

	if (__atomic_load_n(&hmm->dispatch, __ATOMIC_ACQUIRE))
		return 0;
	dispatch = dispatch_new(hmm);
	if (!dispatch)
		return -ENOMEM;
	error = hmmc_thread_start(&dispatch->thread, "hmm-dispatch", dispatch_main, dispatch);
	if (error) {
		hmmc_arena_free(dispatch, sizeof(*dispatch));
		return error;
	}
	publish(dispatch);
	return 0;
}

static int take_signal(void *argument)
{
	struct dispatch *dispatch = argument;

	dispatch->signal = hmmc_clerk_take_fd(dispatch->fd);
	return dispatch->signal < 0 ? dispatch->signal : 0;
}

static int close_signal(void *argument)
{
	struct dispatch *dispatch = argument;

	return close(dispatch->signal);
}

static int open_fd(struct dispatch *dispatch)
{
	dispatch->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (dispatch->fd < 0)
		return -errno;
	return hmmc_clerk_call(take_signal, dispatch);
}

int hmm_dispatch_fd(struct hmm *hmm)
{
	struct dispatch *dispatch;
	int error = hmmc_space_check(hmm);

	if (error)
		return error;
	dispatch = __atomic_load_n(&hmm->dispatch, __ATOMIC_ACQUIRE);
	if (!dispatch) {
		dispatch = dispatch_new(hmm);
		error = dispatch ? open_fd(dispatch) : -ENOMEM;
		if (error) {
			hmmc_dispatch_free(dispatch);
			return hmmc_fail(error, "no descriptor for callbacks: %s",
					 strerror(-error));
		}
		dispatch = publish(dispatch);
	}
	if (dispatch->fd < 0)
		return hmmc_fail(
			-EBUSY,
			"a mirror with callbacks is registered: the library's thread runs them");
	if (hmmc_dispatcher_join(dispatch))
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	return dispatch->fd;
}

void hmmc_dispatch_free(struct dispatch *dispatch)
{
	if (!dispatch)
		return;
	__atomic_store_n(&dispatch->stop, 1, __ATOMIC_RELEASE);
	post(dispatch);
	hmmc_thread_join(&dispatch->thread);
	hmmc_dispatcher_release(dispatch);
	if (dispatch->signal >= 0)
		hmmc_clerk_call(close_signal, dispatch);
	if (dispatch->fd >= 0)
		close(dispatch->fd);
	hmmc_arena_free(dispatch, sizeof(*dispatch));
}

/* ---- what hmmd says: in the receiver ---------------------------------------------------- */

void hmmc_dispatch_invalidate(struct hmm *hmm, const struct hmm_msg_invalidate *event)
{
	struct item item = {
		.update = {
			.start = event->start, .end = event->end, .event = HMM_UPDATE_INVALIDATE,
			.reason = event->reason, .blockable = event->blockable,
		},
		.cookie = event->cookie,
		.life = hmm->connection->life,
	};
	struct hmm_mirror_private *mirror;
	bool queued = false;

	futex_lock(&hmm->lock);
	mirror = hmmc_mirror_find(hmm, event->mirror);
	if (mirror && !mirror->leaving)
		queued = queue(hmm->dispatch, mirror, &item);
	futex_unlock(&hmm->lock);
	if (!queued)
		answer(hmm, &item, 0);
}

void hmmc_dispatch_settled(struct hmm *hmm, const struct hmm_msg_settled *event)
{
	struct item item = {
		.settled = true,
		.cookie = event->cookie,
		.life = hmm->connection->life,
	};
	struct hmm_mirror_private *mirror;

	futex_lock(&hmm->lock);
	mirror = hmmc_mirror_find(hmm, event->mirror);
	if (mirror && !mirror->leaving && mirror->quiesces && !queue(hmm->dispatch, mirror, &item))
		hmmc_log(HMMC_LOG_ERROR, "the library's memory is used up: a device that has stopped is not told to go on");
	futex_unlock(&hmm->lock);
}

void hmmc_dispatch_anew(struct hmm *hmm)
{
	struct item item = {
		.update = {
			.end = HMM_VA_END, .event = HMM_UPDATE_INVALIDATE,
			.reason = HMM_REASON_MIGRATE, .blockable = true,
		},
		.life = hmm->connection->life,
		.anew = true,
	};

	futex_lock(&hmm->lock);
	for (struct hmm_mirror_private *mirror = hmm->mirrors; mirror; mirror = mirror->next) {
		if (!(mirror->flags & HMM_MIRROR_FLAGS_CALLBACKS))
			continue;
		item.id = mirror->id;
		if (mirror->leaving || !queue(hmm->dispatch, mirror, &item))
			answer(hmm, &item, 0);
	}
	futex_unlock(&hmm->lock);
}

/* Return: one that has no release() to be run first, with a callback counted. */
static struct hmm_mirror_private *release_next(struct hmm *hmm)
{
	struct hmm_mirror_private *mirror;
	struct item item = { .release = true };

	futex_lock(&hmm->lock);
	for (mirror = hmm->mirrors; mirror; mirror = mirror->next) {
		if (__atomic_exchange_n(&mirror->gone, 1, __ATOMIC_ACQ_REL))
			continue;
		if (!mirror->leaving && (mirror->ops.release || mirror->devmem) &&
		    queue(hmm->dispatch, mirror, &item))
			continue;
		__atomic_add_fetch(&mirror->callbacks, 1, __ATOMIC_ACQ_REL);
		break;
	}
	futex_unlock(&hmm->lock);
	return mirror;
}

bool hmmc_dispatch_post(struct hmm_mirror_private *mirror, hmmc_dispatch_fn run, const void *message,
			size_t size)
{
	struct item item = { .run = run, .size = size };

	if (size) {
		item.message = hmmc_arena_alloc(size);
		if (!item.message)
			return false;
		memcpy(item.message, message, size);
	}
	if (queue(mirror->hmm->dispatch, mirror, &item))
		return true;
	hmmc_arena_free(item.message, size);
	return false;
}

void hmmc_dispatch_release(struct hmm *hmm)
{
	struct hmm_mirror_private *mirror;

	while ((mirror = release_next(hmm))) {
		hmmc_window_shut(mirror);
		let_go(mirror);
	}
}
