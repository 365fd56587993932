/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dispatcher.c - which threads of the program run whose callbacks.
 *
 * The happy path: a thread calls hmm_dispatch_fd() or hmm_dispatch() on a handle and from
 * then on has the duty to run its callbacks, for nobody else may be there who does. It may
 * have that duty for several handles. Wherever in the library such a thread waits, for
 * hmmd, for another thread or for a moment, it waits here, and what is queued on any of its
 * handles is run meanwhile: what is waited for may wait for that.
 *
 * A duty ends with its handle or with its thread, whichever is first; so it is in the lists of
 * both, under one lock, which is held for a few instructions and before which hmm->lock may be
 * taken. The handle waits for threads that are just looking into its queue. A callback
 * runs without a lock.
 *
 * Fails where there is no memory for a duty; what there was goes on.
 */
#include <pthread.h>

#include "arena.h"
#include "dispatch.h"
#include "dispatcher.h"
#include "futex.h"

struct duty {
	struct duty *next;		/* of the thread */
	struct duty *next_thread;	/* of the handle */
	struct dispatcher *dispatcher;
	struct dispatch *dispatch;
};

struct dispatcher {
	struct duty *duties;		/* the one that was seen to longest ago is first */
	uint32_t posted;		/* futex: how often something was queued on one of them */
};

static struct {
	struct futex_lock lock;
	bool has_key;
	pthread_key_t key;		/* has a dispatcher taken back when its thread ends */
} dispatchers LIBRARY_DATA = { .lock = { 0 } };

static __thread struct dispatcher *self __attribute__((tls_model("initial-exec")));

/* ---- duties: with the lock held ---------------------------------------------------- */

static struct duty *find(const struct dispatcher *dispatcher, const struct dispatch *dispatch)
{
	struct duty *duty;

	for (duty = dispatcher->duties; duty && duty->dispatch != dispatch; duty = duty->next)
		;
	return duty;
}

static void leave_thread(struct duty *duty)
{
	struct duty **at;

	for (at = &duty->dispatcher->duties; *at != duty; at = &(*at)->next)
		;
	*at = duty->next;
}

static void leave_handle(struct duty *duty)
{
	struct duty **at;

	for (at = &hmmc_dispatch_dispatchers(duty->dispatch)->first; *at != duty; at = &(*at)->next_thread)
		;
	*at = duty->next_thread;
}

static void append(struct dispatcher *dispatcher, struct duty *duty)
{
	struct duty **at;

	for (at = &dispatcher->duties; *at; at = &(*at)->next)
		;
	duty->next = NULL;
	*at = duty;
}

/* ---- beginning and end --------------------------------------------------------------- */

/* The thread ends. */
static void retire(void *argument)
{
	struct dispatcher *dispatcher = argument;
	struct duty *duty;

	self = NULL;
	futex_lock(&dispatchers.lock);
	while ((duty = dispatcher->duties)) {
		dispatcher->duties = duty->next;
		leave_handle(duty);
		hmmc_arena_free(duty, sizeof(*duty));
	}
	futex_unlock(&dispatchers.lock);
	hmmc_arena_free(dispatcher, sizeof(*dispatcher));
}

static bool make_key(void)
{
	futex_lock(&dispatchers.lock);
	if (!dispatchers.has_key)
		dispatchers.has_key = pthread_key_create(&dispatchers.key, retire) == 0;
	futex_unlock(&dispatchers.lock);
	return dispatchers.has_key;
}

static bool become_dispatcher(void)
{
	struct dispatcher *dispatcher;

	if (self)
		return true;
	if (!make_key())
		return false;
	dispatcher = hmmc_arena_alloc(sizeof(*dispatcher));
	if (!dispatcher || pthread_setspecific(dispatchers.key, dispatcher)) {
		hmmc_arena_free(dispatcher, sizeof(*dispatcher));
		return false;
	}
	self = dispatcher;
	return true;
}

int hmmc_dispatcher_join(struct dispatch *dispatch)
{
	struct dispatchers *these = hmmc_dispatch_dispatchers(dispatch);
	struct duty *duty;
	bool known;

	if (!become_dispatcher())
		return -ENOMEM;
	futex_lock(&dispatchers.lock);
	known = find(self, dispatch);
	futex_unlock(&dispatchers.lock);
	if (known)
		return 0;
	duty = hmmc_arena_alloc(sizeof(*duty));
	if (!duty)
		return -ENOMEM;
	duty->dispatcher = self;
	duty->dispatch = dispatch;
	futex_lock(&dispatchers.lock);
	append(self, duty);
	duty->next_thread = these->first;
	these->first = duty;
	futex_unlock(&dispatchers.lock);
	return 0;
}

void hmmc_dispatcher_release(struct dispatch *dispatch)
{
	struct dispatchers *these = hmmc_dispatch_dispatchers(dispatch);
	struct duty *duty;
	uint32_t looking;

	futex_lock(&dispatchers.lock);
	while ((duty = these->first)) {
		these->first = duty->next_thread;
		leave_thread(duty);
		hmmc_arena_free(duty, sizeof(*duty));
	}
	futex_unlock(&dispatchers.lock);
	while ((looking = __atomic_load_n(&these->looking, __ATOMIC_ACQUIRE)) != 0)
		futex_wait(&these->looking, looking, NULL);
}

void hmmc_dispatcher_forget(void)
{
	if (self)
		pthread_setspecific(dispatchers.key, NULL);
	self = NULL;
	dispatchers.lock.word = 0;
}

/* ---- waiting ----------------------------------------------------------------------------- */

void hmmc_dispatcher_post(struct dispatch *dispatch)
{
	futex_lock(&dispatchers.lock);
	for (struct duty *duty = hmmc_dispatch_dispatchers(dispatch)->first; duty; duty = duty->next_thread) {
		__atomic_add_fetch(&duty->dispatcher->posted, 1, __ATOMIC_RELEASE);
		futex_wake(&duty->dispatcher->posted, 1);
	}
	futex_unlock(&dispatchers.lock);
}

/* The queue of the next duty in which something waits; it stays until it was looked into. */
static struct dispatch *next_queue(const struct dispatch *except)
{
	struct duty *duty;

	futex_lock(&dispatchers.lock);
	for (duty = self->duties; duty; duty = duty->next)
		if (duty->dispatch != except && hmmc_dispatch_waits(duty->dispatch))
			break;
	if (duty) {
		/* One that never runs dry keeps nobody else waiting. */
		leave_thread(duty);
		append(self, duty);
		__atomic_add_fetch(&hmmc_dispatch_dispatchers(duty->dispatch)->looking, 1, __ATOMIC_ACQ_REL);
	}
	futex_unlock(&dispatchers.lock);
	return duty ? duty->dispatch : NULL;
}

static void looked(struct dispatch *dispatch)
{
	uint32_t *looking = &hmmc_dispatch_dispatchers(dispatch)->looking;

	/* It may be freed at once: its address alone is used for the wake-up. */
	__atomic_sub_fetch(looking, 1, __ATOMIC_ACQ_REL);
	futex_wake(looking, INT32_MAX);
}

static bool run_one(const struct dispatch *except)
{
	struct dispatch *dispatch = next_queue(except);

	if (!dispatch)
		return false;
	hmmc_dispatch_run(dispatch);
	/* What has forked meanwhile, in the child, has forgotten all that. */
	if (self)
		looked(dispatch);
	return true;
}

void hmmc_dispatcher_wait(const uint32_t *word, uint32_t value, const struct timespec *timeout,
			  const struct dispatch *except)
{
	uint32_t posted;

	if (!self || hmmc_dispatch_is_current()) {
		futex_wait(word, value, timeout);
		return;
	}
	posted = __atomic_load_n(&self->posted, __ATOMIC_ACQUIRE);
	if (__atomic_load_n(word, __ATOMIC_ACQUIRE) == value && !run_one(except))
		futex_wait_either(word, value, &self->posted, posted, timeout);
}
