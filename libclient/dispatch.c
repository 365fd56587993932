/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dispatch.c - invalidations and releases, one after the other, to the driver.
 *
 * The happy path: the receiver queues an event, this thread calls the mirror's
 * sync_cpu_device_pagetables() without holding anything and sends the answer
 * with the event's cookie. It has the program's descriptors, not the library's,
 * since callbacks are the program's code, and runs on arena memory.
 *
 * A callback that does not return keeps those after it waiting; hmmd's deadline
 * then revokes the windows. A mirror that is unregistered waits for its callbacks.
 */
#include <string.h>

#include "arena.h"
#include "devmem.h"
#include "dispatch.h"
#include "space.h"

struct item {
	struct item *next;
	struct hmm_mirror_private *mirror;
	bool release;
	struct hmm_update update;
	uint64_t cookie;
	hmmc_dispatch_fn run;		/* instead: something else to do for the mirror */
	void *message;			/* a copy of what it is about */
	size_t size;
};

struct dispatch {
	struct thread thread;
	struct hmm *hmm;
	struct futex_lock lock;
	struct item *head, *tail;
	uint32_t posted;		/* futex */
	uint32_t stop;
};

static __thread bool current __attribute__((tls_model("initial-exec")));

bool hmmc_dispatch_is_current(void)
{
	return current;
}

static void acknowledge(struct hmm *hmm, uint64_t cookie, int status)
{
	struct request *request;
	struct hmm_msg_ack *ack;

	if (!cookie)
		return;
	request = hmmc_request_new(hmm->connection, HMM_OP_ACK, sizeof(*ack));
	if (!request)
		return;		/* hmmd's deadline decides */
	ack = (struct hmm_msg_ack *)request->message;
	ack->cookie = cookie;
	ack->status = status;
	request->complete = hmmc_request_free;
	hmmc_request_post(request);
}

static struct item *take(struct dispatch *dispatch)
{
	struct item *item;

	futex_lock(&dispatch->lock);
	item = dispatch->head;
	if (item) {
		dispatch->head = item->next;
		if (!dispatch->head)
			dispatch->tail = NULL;
	}
	futex_unlock(&dispatch->lock);
	return item;
}

static void call(struct hmm *hmm, struct item *item)
{
	const struct hmm_mirror_ops *ops = item->mirror->mirror->ops;
	int status = 0;

	current = true;
	if (item->run) {
		item->run(item->mirror, item->message);
	} else if (item->release) {
		if (ops->release)
			ops->release(item->mirror->mirror);
		hmmc_devmem_release(item->mirror);
	} else if (ops->sync_cpu_device_pagetables) {
		status = ops->sync_cpu_device_pagetables(item->mirror->mirror, &item->update);
	}
	current = false;
	acknowledge(hmm, item->cookie, status > 0 ? 0 : status);
	__atomic_sub_fetch(&item->mirror->callbacks, 1, __ATOMIC_ACQ_REL);
	futex_wake(&item->mirror->callbacks, INT32_MAX);
}

static void dispatch_main(void *argument)
{
	struct dispatch *dispatch = argument;

	for (;;) {
		uint32_t posted = __atomic_load_n(&dispatch->posted, __ATOMIC_ACQUIRE);
		struct item *item = take(dispatch);

		if (item) {
			call(dispatch->hmm, item);
			hmmc_arena_free(item->message, item->size);
			hmmc_arena_free(item, sizeof(*item));
		} else if (__atomic_load_n(&dispatch->stop, __ATOMIC_ACQUIRE)) {
			return;
		} else {
			futex_wait(&dispatch->posted, posted, NULL);
		}
	}
}

int hmmc_dispatch_start(struct hmm *hmm)
{
	struct dispatch *dispatch;
	int error;

	if (__atomic_load_n(&hmm->dispatch, __ATOMIC_ACQUIRE))
		return 0;
	dispatch = hmmc_arena_alloc(sizeof(*dispatch));
	if (!dispatch)
		return -ENOMEM;
	dispatch->hmm = hmm;
	error = hmmc_thread_start(&dispatch->thread, "hmm-dispatch", dispatch_main, dispatch);
	if (error) {
		hmmc_arena_free(dispatch, sizeof(*dispatch));
		return error;
	}
	__atomic_store_n(&hmm->dispatch, dispatch, __ATOMIC_RELEASE);
	return 0;
}

static void post(struct dispatch *dispatch)
{
	__atomic_add_fetch(&dispatch->posted, 1, __ATOMIC_RELEASE);
	futex_wake(&dispatch->posted, 1);
}

void hmmc_dispatch_free(struct dispatch *dispatch)
{
	if (!dispatch)
		return;
	__atomic_store_n(&dispatch->stop, 1, __ATOMIC_RELEASE);
	post(dispatch);
	hmmc_thread_join(&dispatch->thread);
	hmmc_arena_free(dispatch, sizeof(*dispatch));
}

static bool queue(struct dispatch *dispatch, struct hmm_mirror_private *mirror,
		  const struct item *what)
{
	struct item *item = dispatch ? hmmc_arena_alloc(sizeof(*item)) : NULL;

	if (!item)
		return false;
	*item = *what;
	item->next = NULL;
	item->mirror = mirror;
	__atomic_add_fetch(&mirror->callbacks, 1, __ATOMIC_ACQ_REL);
	futex_lock(&dispatch->lock);
	if (dispatch->tail)
		dispatch->tail->next = item;
	else
		dispatch->head = item;
	dispatch->tail = item;
	futex_unlock(&dispatch->lock);
	post(dispatch);
	return true;
}

void hmmc_dispatch_invalidate(struct hmm *hmm, const struct hmm_msg_invalidate *event)
{
	struct item item = {
		.update = {
			.start = event->start, .end = event->end, .event = HMM_UPDATE_INVALIDATE,
			.reason = event->reason, .blockable = event->blockable,
		},
		.cookie = event->cookie,
	};
	struct hmm_mirror_private *mirror;
	bool queued = false;

	futex_lock(&hmm->lock);
	mirror = hmmc_mirror_find(hmm, event->mirror);
	if (mirror)
		queued = queue(hmm->dispatch, mirror, &item);
	futex_unlock(&hmm->lock);
	if (!queued)
		acknowledge(hmm, event->cookie, 0);
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
	struct item item = { .release = true };

	futex_lock(&hmm->lock);
	for (struct hmm_mirror_private *mirror = hmm->mirrors; mirror; mirror = mirror->next)
		if (!__atomic_exchange_n(&mirror->gone, 1, __ATOMIC_ACQ_REL))
			queue(hmm->dispatch, mirror, &item);
	futex_unlock(&hmm->lock);
}
