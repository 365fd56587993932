/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * owner.h - what this process holds as an owner: the descriptors that keep its
 * memory alive whatever becomes of hmmd, staging slots, agent and rescuer.
 */
#ifndef HMMC_OWNER_H
#define HMMC_OWNER_H

#include "agent.h"
#include "policy.h"
#include "connection.h"
#include "region.h"
#include "rescuer.h"

struct owner {
	struct hmm *hmm;
	uint32_t id;
	uint64_t flags;			/* HMM_OPEN_FLAGS_* */
	/* In the private table. */
	int uffd, mem, pagemap, maps, smaps;
	int pipe[2];
	int table_fd, ledger_fd, orders_fd, pulse_fd, eventfd;
	int former_fd;			/* the ledger of an hmmd that has gone away, until its advice is said again */
	char *slots;
	uint32_t slots_count;
	struct policy policy;		/* of the thread that opened it */
	const uint64_t *table;
	struct hmm_orders *orders;
	struct hmm_pulse *pulse;
	struct agent agent;
	struct rescuer rescuer;
	struct regions regions;
};

/* In a thread with the private table: the strongest that can be had; or a negative errno. */
int hmmc_owner_userfaultfd(int device, bool *user_mode);
/* Opens this process on a connection that is up. Return: 0 or a negative errno with its text. */
int hmmc_owner_new(struct hmm *hmm, uint64_t flags, uint32_t slots, struct owner **result);
/* Everything is home. Stops the threads and lets go of everything. NULL is allowed. */
void hmmc_owner_free(struct owner *owner);

/*
 * In the receiver: hands everything to a restarted hmmd, or starts anew with one after a
 * clean end.
 */
int hmmc_owner_reopen(struct owner *owner);
int hmmc_owner_reopen_done(struct owner *owner);
int hmmc_owner_open_anew(struct owner *owner);
/* This process is an owner, and that hmmd has it: nobody else's, nor the rescuer's. */
bool hmmc_owner_is_held(const struct hmm *hmm, uint64_t incarnation);
/* By the ledger nothing is away: the userfaultfd may be closed. */
bool hmmc_owner_is_home(const struct owner *owner);

#endif
