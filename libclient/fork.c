/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fork.c - fork() in an owner.
 *
 * The child gets a copy of the page tables, in which pages on the device are
 * missing; its userfaultfd is its parent's affair. Where hmmd sees forks it gives
 * the child its pages, but libc touches memory in the child before any hook
 * runs there. So the prepare hook closes the gate for migrations, asks hmmd to
 * bring home what the device alone has and to let nothing leave, whichever driver wants it; the parent's
 * hook says that it is over, and opens the gate.
 *
 * The child is no owner: its handles answer -ESTALE, the library forgets its
 * threads, which the child does not have, and the parent's arena stays readable.
 * It may call hmm_open() itself.
 *
 * A prepare_fork that hmmd refuses, for it is short of something, is asked again for as long as it takes: nothing
 * has come home then. Where hmmd is gone for good the fork waits until the rescuer is done; then
 * everything is home, too.
 *
 * A callback that forks waits for no migration, since that may wait for the callback: it passes
 * the gate, and where hmmd sees forks the child gets its pages from hmmd, as after a
 * raw clone(). Where hmmd does not the fork waits all the same, hmmd's deadline at the longest.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "arena.h"
#include "clerk.h"
#include "dispatch.h"
#include "fork.h"
#include "futex.h"
#include "log.h"
#include "space.h"
#include "told.h"

static struct {
	struct futex_lock lock;
	uint32_t closed;
	uint32_t inside;		/* futex */
	uint32_t opened;		/* futex: bumped each time it opens */
	struct gate_waiter *waiters;
	bool watching;
} gate LIBRARY_DATA = { .closed = 0 };

void hmmc_gate_enter(void)
{
	futex_lock(&gate.lock);
	while (gate.closed) {
		uint32_t opened = gate.opened;

		futex_unlock(&gate.lock);
		hmmc_dispatch_pause(&gate.opened, opened, NULL);
		futex_lock(&gate.lock);
	}
	gate.inside++;
	futex_unlock(&gate.lock);
}

bool hmmc_gate_pass(bool wait)
{
	bool open;

	if (wait) {
		hmmc_gate_enter();
		return true;
	}
	futex_lock(&gate.lock);
	open = gate.closed == 0;
	gate.inside += open;
	futex_unlock(&gate.lock);
	return open;
}

bool hmmc_gate_try(struct gate_waiter *waiter)
{
	bool open;

	futex_lock(&gate.lock);
	open = gate.closed == 0;
	if (open) {
		gate.inside++;
	} else {
		waiter->next = gate.waiters;
		gate.waiters = waiter;
	}
	futex_unlock(&gate.lock);
	return open;
}

void hmmc_gate_leave(void)
{
	futex_lock(&gate.lock);
	gate.inside--;
	futex_unlock(&gate.lock);
	futex_wake(&gate.inside, INT32_MAX);
}

static void close_gate(void)
{
	futex_lock(&gate.lock);
	gate.closed++;
	while (gate.inside) {
		uint32_t inside = gate.inside;

		futex_unlock(&gate.lock);
		hmmc_dispatch_pause(&gate.inside, inside, NULL);
		futex_lock(&gate.lock);
	}
	futex_unlock(&gate.lock);
}

static void open_gate(void)
{
	struct gate_waiter *waiter, *next;

	futex_lock(&gate.lock);
	gate.closed--;
	gate.opened++;
	waiter = gate.closed ? NULL : gate.waiters;
	if (waiter)
		gate.waiters = NULL;
	futex_unlock(&gate.lock);
	futex_wake(&gate.opened, INT32_MAX);
	for (; waiter; waiter = next) {
		next = waiter->next;
		waiter->resume(waiter);
	}
}

#define RETRY_NS	5000000L
/* A thread's forks that are under way: several, for a handler may fork. */
#define DEPTH_MAX	8U

static __thread struct {
	unsigned int depth;
	uint32_t fork[DEPTH_MAX];	/* its number, as hmmd was told; 0: it was not */
} told __attribute__((tls_model("initial-exec")));

static uint32_t new_number(void)
{
	static uint32_t last LIBRARY_DATA = 0;
	uint32_t number;

	do
		number = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
	while (!number);
	return number;
}

/* Of all threads. A hmmd that comes meanwhile has to know of them; of more it does not. */
static uint32_t under_way[FORKS_MAX] LIBRARY_DATA = { 0 };

static void exchange(uint32_t from, uint32_t to)
{
	for (unsigned int i = 0; i < FORKS_MAX; i++) {
		uint32_t expected = from;

		if (__atomic_compare_exchange_n(&under_way[i], &expected, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return;
	}
}

unsigned int hmmc_forks(uint32_t *numbers)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < FORKS_MAX; i++) {
		numbers[n] = __atomic_load_n(&under_way[i], __ATOMIC_SEQ_CST);
		n += numbers[n] != 0;
	}
	return n;
}

_Static_assert(sizeof(struct hmm_msg_prepare_fork) == sizeof(struct hmm_msg_forked) &&
		       offsetof(struct hmm_msg_prepare_fork, fork) == offsetof(struct hmm_msg_forked, fork),
	       "tell() is for both");

/* What passes by itself. Anything else is an answer: a fork must not wait for what will never be otherwise. */
static bool is_short(int error)
{
	return error == -ENOMEM || error == -ENOSPC || error == -EDQUOT || error == -EMFILE || error == -ENFILE;
}

static int tell_once(struct hmm *hmm, uint16_t op, uint32_t fork)
{
	struct request *request = hmmc_request_new(hmm->connection, op, sizeof(struct hmm_msg_forked));
	int error;

	if (!request)
		return -ENOMEM;
	((struct hmm_msg_forked *)request->message)->fork = fork;
	request->prepare = hmmc_prepare_owner;
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	return error;
}

/*
 * Whatever hmmd, or the library, is short of: a child that nobody sees would have zeros where a device has a page, and
 * devices that don't hear of the end get none for long.
 */
static void tell(struct hmm *hmm, uint16_t op, uint32_t fork)
{
	while (is_short(tell_once(hmm, op, fork)) && !__atomic_load_n(&hmm->lost, __ATOMIC_ACQUIRE))
		hmmc_dispatch_nap(RETRY_NS);
}

static void before(void)
{
	bool in_callback = hmmc_dispatch_is_current();
	unsigned int depth = told.depth++;
	uint32_t number = 0;
	struct hmm *hmm;

	/* First: one that is opened behind our back finds the gate closed. */
	if (!in_callback)
		close_gate();
	hmm = hmmc_space_enter_any();
	if (hmm && !__atomic_load_n(&hmm->lost, __ATOMIC_ACQUIRE) &&
	    !(in_callback && __atomic_load_n(&hmm->features, __ATOMIC_RELAXED) & HMM_FEATURE_EVENT_FORK)) {
		number = new_number();
		exchange(0, number);
		tell(hmm, HMM_OP_PREPARE_FORK, number);
	}
	/* Deeper than that hmmd does not hear of the end, and goes on after its patience. */
	if (depth < DEPTH_MAX)
		told.fork[depth] = number;
	if (hmm && __atomic_load_n(&hmm->lost, __ATOMIC_ACQUIRE))
		hmmc_dispatch_wait(&hmm->owner->rescuer.done);
	if (hmm)
		hmmc_space_leave(hmm);
	/* Last: what was waited for may wait for a callback, and that may open. */
	hmmc_space_lock();
}

static void in_parent(void)
{
	unsigned int depth = --told.depth;
	uint32_t number = depth < DEPTH_MAX ? told.fork[depth] : 0;
	struct hmm *hmm;

	hmmc_space_unlock();
	if (number)
		exchange(number, 0);
	hmm = number ? hmmc_space_enter_own() : NULL;
	if (hmm) {
		tell(hmm, HMM_OP_FORKED, number);
		hmmc_space_leave(hmm);
	}
	if (!hmmc_dispatch_is_current())
		open_gate();
}

static void in_child(void)
{
	gate.lock.word = 0;
	gate.closed = gate.inside = 0;
	gate.waiters = NULL;
	told.depth = 0;
	memset(under_way, 0, sizeof(under_way));
	hmmc_log_forget();
	hmmc_dispatch_forget();
	hmmc_space_forget();
	hmmc_clerk_forget();
	hmmc_told_forget();
	hmmc_arena_forget();
}

void hmmc_fork_watch(void)
{
	bool first;

	futex_lock(&gate.lock);
	first = !gate.watching;
	gate.watching = true;
	futex_unlock(&gate.lock);
	if (first)
		pthread_atfork(before, in_parent, in_child);
}
