/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * policy.c - where the program's pages are to lie, as it said itself.
 *
 * The kernel knows the policy of a mapping and that of a thread. Pages that come home are allocated
 * by others: by hmmd, by the agent into a slot, by the rescuer. For these the thread that opened the
 * handle stands for the program: its policy, as numactl(8) sets it, is noted then and told to hmmd, and
 * the library's threads take it. In a slot a page also follows the mapping that it goes to.
 *
 * Any thread. Where the kernel has no policies, or a filter forbids them, there is none to follow.
 */
#include "policy.h"

#include <linux/mempolicy.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NODES_MAX (HMM_NODE_WORDS * 64)

static void get(struct policy *policy, uint64_t address, unsigned long flags)
{
	memset(policy, 0, sizeof(*policy));
	if (syscall(SYS_get_mempolicy, &policy->mode, policy->nodes, NODES_MAX, address, flags))
		memset(policy, 0, sizeof(*policy));
}

void hmmc_policy_of_thread(struct policy *policy)
{
	get(policy, 0, 0);
}

bool hmmc_policy_at(struct policy *policy, uint64_t address)
{
	get(policy, address, MPOL_F_ADDR);
	return policy->mode != MPOL_DEFAULT;
}

void hmmc_policy_set(const struct policy *policy)
{
	static const struct policy none;

	if (!memcmp(policy->nodes, none.nodes, sizeof(none.nodes)))
		syscall(SYS_set_mempolicy, policy->mode, NULL, 0);
	else
		syscall(SYS_set_mempolicy, policy->mode, policy->nodes, NODES_MAX + 1);
}
