// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * rescue.c - the owner as its library has it, and the library's rescuer (libclient/rescuer.c), which is an actor.
 */
#include <string.h>

#include "actor.h"
#include "libclient/owner.h"
#include "rescue.h"

static struct owner owner;

struct agent *rescue_agent(void)
{
	return &owner.agent;
}

struct regions *rescue_regions(void)
{
	return &owner.regions;
}

void rescue_reset(void)
{
	memset(&owner, 0, sizeof(owner));
}

int __wrap_hmmc_thread_start(struct thread *thread, const char *name, void (*body)(void *), void *data)
{
	(void)thread, (void)name;
	actor_start(ACTOR_RESCUER, body, data);
	return 0;
}

void rescue_prepare(int uffd, int pagemap, int ledger_fd, struct hmm_orders *orders, struct hmm_pulse *pulse, void *slots,
		    uint32_t slots_count)
{
	owner.uffd = uffd;
	owner.pagemap = pagemap;
	owner.ledger_fd = ledger_fd;
	owner.orders = orders;
	owner.pulse = pulse;
	owner.slots = slots;
	owner.slots_count = slots_count;
}

void rescue_call(void)
{
	if (hmmc_rescuer_start(&owner.rescuer, &owner))
		wrong("no rescuer");
	hmmc_rescuer_call(&owner.rescuer);
}

bool rescue_is_done(void)
{
	return owner.rescuer.done;
}

uint64_t rescue_pages(void)
{
	return owner.rescuer.pages;
}
