/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * agent.c - takes orders from the ring that hmmd writes, one at a time.
 *
 * The happy path: hmmd writes an order, bumps `produced` and the doorbell; the
 * agent carries the order out (order.c), marks it DONE, bumps `consumed` and
 * signals hmmd's eventfd. With nothing to do it looks around for a moment, since
 * orders come in bursts and a wake-up costs more than a move, then sleeps on the
 * doorbell: an idle owner costs no context switch.
 *
 * Emptying a slot of 4 KiB pages is left to a second thread, the sweeper; such an
 * order is passed in the ring while it still runs, and ends a little later.
 *
 * These threads touch only arena memory, staging slots and shadows. Whatever may
 * be on the device it touches through system calls that fail instead of faulting.
 */
#include <sched.h>
#include <string.h>

#include "agent.h"
#include "arena.h"
#include "futex.h"
#include "region.h"

#define SPIN_NS 20000

static bool has_work(const struct agent *agent)
{
	const struct hmm_orders *orders = agent->orders;

	return __atomic_load_n(&orders->produced, __ATOMIC_ACQUIRE) != orders->consumed;
}

static void put_down(struct agent *agent)
{
	__atomic_store_n(&agent->busy, 0, __ATOMIC_SEQ_CST);
	hmmc_region_settle(agent->regions);
	if (agent_is_retired(agent))
		futex_wake(&agent->busy, INT32_MAX);
}

static void signal_hmmd(struct agent *agent)
{
	uint64_t one = 1;

	/* A full counter cannot be: hmmd reads it, and it takes 2^64 - 1. */
	if (write(agent->eventfd, &one, sizeof(one)) < 0)
		return;
}

/* A restarted hmmd may have taken an order back that changes no memory but a slot's. */
static void finish(struct hmm_order *order)
{
	uint32_t state = __atomic_load_n(&order->state, __ATOMIC_SEQ_CST);

	while (state != HMM_ORDER_CANCELLED &&
	       !__atomic_compare_exchange_n(&order->state, &state, HMM_ORDER_DONE, false,
					    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
}

/* ---- the sweeper ------------------------------------------------------------- */

/* Return: false when it is to be done here and now. */
static bool leave_to_sweeper(struct agent *agent, struct hmm_order *order)
{
	struct sweeper *sweeper = &agent->sweeper;

	if (order->kind != HMM_ORDER_RELEASE || order->slot >= agent->slots_count || !sweeper->thread.started)
		return false;
	/* It may be at this very slot, for an order that a restarted hmmd has taken back and waits for no more. */
	hmmc_agent_wait_for_sweeper(agent, order->slot);
	if (!agent->thin[order->slot])
		return false;
	__atomic_or_fetch(&sweeper->slots, 1U << order->slot, __ATOMIC_SEQ_CST);
	__atomic_store_n(&sweeper->order[order->slot], order, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&sweeper->posted, 1, __ATOMIC_SEQ_CST);
	futex_wake(&sweeper->posted, 1);
	return true;
}

void hmmc_agent_wait_for_sweeper(struct agent *agent, uint32_t slot)
{
	uint32_t mask = slot == EVERY_SLOT ? ~0U : slot < HMM_SLOTS_MAX ? 1U << slot : 0, slots;

	while ((slots = __atomic_load_n(&agent->sweeper.slots, __ATOMIC_SEQ_CST)) & mask)
		futex_wait(&agent->sweeper.slots, slots, NULL);
}

static void sweep(struct agent *agent, uint32_t slot)
{
	struct sweeper *sweeper = &agent->sweeper;
	struct hmm_order *order =
		__atomic_exchange_n(&sweeper->order[slot], NULL, __ATOMIC_SEQ_CST);

	if (!order)
		return;
	hmmc_order_run(agent, order);
	/* The slot first: hmmd may use it as soon as the order is done. */
	__atomic_and_fetch(&sweeper->slots, ~(1U << slot), __ATOMIC_SEQ_CST);
	futex_wake(&sweeper->slots, INT32_MAX);
	finish(order);
	signal_hmmd(agent);
}

static void sweeper_main(void *argument)
{
	struct agent *agent = argument;
	struct sweeper *sweeper = &agent->sweeper;

	for (;;) {
		uint32_t posted = __atomic_load_n(&sweeper->posted, __ATOMIC_SEQ_CST);

		for (uint32_t slot = 0; slot < HMM_SLOTS_MAX; slot++)
			sweep(agent, slot);
		if (__atomic_load_n(&sweeper->stop, __ATOMIC_SEQ_CST))
			return;
		futex_wait(&sweeper->posted, posted, NULL);
	}
}

/* ---- the agent ---------------------------------------------------------------- */

bool hmmc_agent_step(struct agent *agent)
{
	struct hmm_orders *orders = agent->orders;
	uint32_t queued = HMM_ORDER_QUEUED;
	struct hmm_order *order;
	bool mine = true;

	if (!has_work(agent))
		return false;
	/*
	 * Whoever ends the old regime sets the word and then looks at busy; we do it the other way
	 * round.
	 */
	__atomic_store_n(&agent->busy, 1, __ATOMIC_SEQ_CST);
	if (agent_is_retired(agent)) {
		put_down(agent);
		return false;
	}
	order = &orders->ring[orders->consumed % HMM_ORDERS_RING];
	if (__atomic_compare_exchange_n(&order->state, &queued, HMM_ORDER_RUNNING, false,
					__ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
		mine = !leave_to_sweeper(agent, order);
		if (mine) {
			hmmc_agent_wait_for_sweeper(agent, order->slot);
			if (hmmc_order_run(agent, order))
				finish(order);
		}
	}
	__atomic_store_n(&orders->consumed, orders->consumed + 1, __ATOMIC_SEQ_CST);
	put_down(agent);
	if (mine)
		signal_hmmd(agent);
	return true;
}

static void look_around(struct agent *agent)
{
	uint64_t end = clock_ns() + SPIN_NS;

	while (!has_work(agent) && clock_ns() < end)
		__builtin_ia32_pause();
}

static void rest(struct agent *agent)
{
	struct hmm_orders *orders = agent->orders;
	uint32_t doorbell = __atomic_load_n(&orders->doorbell, __ATOMIC_SEQ_CST);

	__atomic_store_n(&orders->asleep, 1, __ATOMIC_SEQ_CST);
	if ((!has_work(agent) || agent_is_retired(agent)) &&
	    !__atomic_load_n(&agent->stop, __ATOMIC_ACQUIRE))
		futex_wait_shared(&orders->doorbell, doorbell, NULL);
	__atomic_store_n(&orders->asleep, 0, __ATOMIC_SEQ_CST);
}

static void agent_main(void *argument)
{
	struct agent *agent = argument;

	if (agent->policy)
		hmmc_policy_set(agent->policy);
	futex_latch_set(&agent->tid, (uint32_t)syscall(SYS_gettid));
	futex_latch_wait(&agent->attached);
	while (!__atomic_load_n(&agent->stop, __ATOMIC_ACQUIRE)) {
		bool worked = false;

		while (hmmc_agent_step(agent))
			worked = true;
		if (worked)
			look_around(agent);
		if (!has_work(agent) || agent_is_retired(agent))
			rest(agent);
	}
}

int hmmc_agent_start(struct agent *agent)
{
	int error = hmmc_thread_start(&agent->sweeper.thread, "hmm-sweeper", sweeper_main, agent);

	if (!error)
		error = hmmc_thread_start(&agent->thread, "hmm-agent", agent_main, agent);
	if (!error)
		futex_latch_wait(&agent->tid);
	return error;
}

void hmmc_agent_attach(struct agent *agent)
{
	futex_latch_set(&agent->attached, 1);
}

void hmmc_agent_stop(struct agent *agent)
{
	__atomic_store_n(&agent->stop, 1, __ATOMIC_SEQ_CST);
	if (agent->orders) {
		__atomic_add_fetch(&agent->orders->doorbell, 1, __ATOMIC_SEQ_CST);
		futex_wake_shared(&agent->orders->doorbell, INT32_MAX);
		futex_wake_shared(&agent->orders->hold, INT32_MAX);
	}
	if (agent->regions) {
		__atomic_add_fetch(&agent->regions->changes, 1, __ATOMIC_RELEASE);
		futex_wake(&agent->regions->changes, INT32_MAX);
	}
	futex_latch_set(&agent->attached, 1);
	hmmc_thread_join(&agent->thread);
	__atomic_store_n(&agent->sweeper.stop, 1, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&agent->sweeper.posted, 1, __ATOMIC_SEQ_CST);
	futex_wake(&agent->sweeper.posted, INT32_MAX);
	hmmc_thread_join(&agent->sweeper.thread);
}
