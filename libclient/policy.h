/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* policy.h - memory policies (set_mempolicy(2)): of a thread, and of an address as a thread finds it. */
#ifndef HMMC_POLICY_H
#define HMMC_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "layout.h"

struct policy {
	int mode;		/* MPOL_* with its flags; 0: local to whoever allocates */
	uint64_t nodes[HMM_NODE_WORDS];
};

/* The calling thread's. */
void hmmc_policy_of_thread(struct policy *policy);
/* That of the mapping at @address. False: it has none, and the thread's holds. */
bool hmmc_policy_at(struct policy *policy, uint64_t address);
void hmmc_policy_set(const struct policy *policy);

#endif
