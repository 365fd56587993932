/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * rescue.h - what the owner's library is: agent, shadows, rescuer. hmmd and the library both call something "struct owner", so whoever
 * knows the library's is rescue.c alone.
 */
#ifndef TEST_SIM_RESCUE_H
#define TEST_SIM_RESCUE_H

#include "libclient/agent.h"
#include "libclient/region.h"

struct agent *rescue_agent(void);
struct regions *rescue_regions(void);
/* A new owner, without anything. */
void rescue_reset(void);
/* It has all this, and a rescuer that sleeps. */
void rescue_prepare(int uffd, int pagemap, int ledger_fd, struct hmm_orders *orders, struct hmm_pulse *pulse, void *slots,
		    uint32_t slots_count);
/* No hmmd came back. */
void rescue_call(void);
bool rescue_is_done(void);
/* Pages that it has copied home. */
uint64_t rescue_pages(void);

#endif
