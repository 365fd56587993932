/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * engine.h - the door between control and engine. Control knows no more of
 * the engine than this; the engine knows of control only the mailbox that
 * it posts replies and events to.
 *
 * Threads: engine_new(), engine_submit(), engine_free() and the lists are for
 * the control thread. Lists read counters that workers write (relaxed atomics).
 */
#ifndef HMMD_ENGINE_H
#define HMMD_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "hmm_protocol.h"
#include "daemon/mailbox.h"
#include "daemon/memory/placement.h"
#include "daemon/quota.h"

struct engine;
struct reserve;

/* The most that options.grace_ms may be. */
#define ENGINE_GRACE_MAX_MS	3600000U

struct engine_options {
	unsigned int workers;		/* 1..64 */
	bool no_io_uring;		/* epoll even where io_uring works */
	bool no_move;			/* the base engine for everybody */
	bool user_mode;			/* no privileges: one uid */
	enum hmm_pool_kind pool_kind;	/* what HMM_POOL_DEFAULT means */
	uint64_t pool_size;		/* bytes for all devices together */
	struct placement pool_placement;	/* where a device says nothing */
	struct reserve *reserve;	/* of that kind, size and placement: what its pages are taken from; outlives the engine. NULL: none */
	const char *pool_card;		/* of kind vfio: whose BAR; NULL: another kind */
	unsigned int pool_bar;
	unsigned int evict_high;	/* percent of a device: above it is evicted from; 0, 100: only at need */
	unsigned int evict_low;		/* down to; 0: as far as need be, and some blocks */
	unsigned int ack_timeout_ms;	/* a driver that answers later loses its windows */
	unsigned int spin_us;		/* how long a worker polls before it sleeps */
	unsigned int tracking;		/* enum tracking_wish: how what is written is found; 0: whichever way works best */
	struct quota *quota;		/* what each uid has; NULL: it is not counted */
	unsigned int grace_ms;		/* told to clients: when their rescuer takes over */
	/* Who keeps descriptors for the next hmmd should this one be killed, from any thread; NULL: nobody. 0 or -errno. */
	int (*keep)(const char *name, const int *fds, unsigned int n);
	int (*drop)(const char *name);
	/* What was kept for this one: @take_kept gives each, once, the engine's; NULL: none are left. */
	const char *(*take_kept)(void *data, int *fd);
	void *take_kept_data;
};

/* @outbox: replies and events go there. */
int engine_new(const struct engine_options *options, struct mailbox *outbox, struct engine **result);
/* After every worker said STOPPED, or at once to give up (as after a crash). NULL is allowed. */
void engine_free(struct engine *engine);
/* After the STOPPED of a HAND_OVER: no worker's thread is left, and the process ends without engine_free(). */
void engine_join(struct engine *engine);

/*
 * Hands a letter to the worker that has letter->owner; for HMM_OP_OPEN and
 * HMM_OP_REOPEN engine_submit() chooses the owner's id and worker itself and
 * sets letter->owner. The letter comes back as LETTER_REPLY (REQUEST), as
 * LETTER_STOPPED (SHUTDOWN or HAND_OVER: submitted once, one STOPPED when all is done) or not at all
 * (PEER_GONE, RELOAD; these go to every worker). HMM_OP_DRAIN with owner 0
 * comes back once, when every worker has done its part.
 */
void engine_submit(struct engine *engine, struct letter *letter);

/* Every worker looks at what may have changed. */
void engine_wake(struct engine *engine);
/*
 * The first worker that has made no progress since this was asked last, or -1; and wakes all, so that one without
 * work has made some when it is asked next. Only for control.
 */
int engine_find_stuck(struct engine *engine);

/* Handled by the engine but on the control thread, at once: fills the letter's reply or error. */
void engine_device_request(struct engine *engine, struct letter *letter);	/* DEVICE_NEW, _OPEN, _PUT, _FD, DEVMEM_ADD, _REMOVE */
/* A peer that created devices is gone: they go when their last mirror does. */
void engine_device_peer_gone(struct engine *engine, uint64_t peer);

/* What an earlier hmmd left for owners that will not come back is given up. Only for control, now and then. */
void engine_review(struct engine *engine);

uint64_t engine_features(const struct engine *engine);	/* HMM_FEATURE_* of daemon and kernel */
uint64_t engine_incarnation(const struct engine *engine);
/* Why a feature is off, in words; "" when it is on. NULL: it is no feature. */
const char *engine_feature_reason(const struct engine *engine, uint64_t feature);

/* Each fills up to @max records from @cursor (an id; 0: from the start) in order of id and returns how many. */
unsigned int engine_list_owners(struct engine *engine, uint32_t cursor, struct hmm_record_owner_info *out,
				unsigned int max);
unsigned int engine_list_mirrors(struct engine *engine, uint32_t cursor, struct hmm_record_mirror_info *out,
				 unsigned int max);
unsigned int engine_list_pools(struct engine *engine, uint32_t cursor, struct hmm_record_pool_info *out,
			       unsigned int max);
/* Counters: of one owner, or with owner 0 of all together. */
unsigned int engine_list_stats(struct engine *engine, uint32_t owner, uint32_t cursor,
			       struct hmm_record_stat_info *out, unsigned int max);
/* Totals for status: clients and windows excepted, which control counts. */
void engine_totals(struct engine *engine, struct hmm_msg_status_reply *status);

#endif
