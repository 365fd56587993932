/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * agent_fixture.h - the library's agent against the real kernel: the test writes orders as hmmd does, and has the
 * agent carry them out, in this thread unless it says otherwise.
 */
#ifndef TEST_AGENT_FIXTURE_H
#define TEST_AGENT_FIXTURE_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libclient/agent.h"

#define PAGES	HMM_BLOCK_PAGES
#define HOME	0x690000000000UL	/* where the owner's block is in these tests */

extern struct agent *agent;
extern struct hmm_orders *orders;
extern struct regions *regions;
extern char *home;		/* a block that is mapped, and untouched */
extern char *golden;		/* as many bytes to fill it with */
extern int shadow;

/* With a shadow of @shadow_size bytes, which does not grow. Skips the test where the kernel has not all of @wanted. */
void begin(enum hmm_pool_kind kind, uint64_t wanted, off_t shadow_size);
void end(void);
void arm(void *start, size_t length, uint64_t mode);
void *map_blocks(void *at, unsigned int blocks);

/* The next order, of HOME and all its pages. */
struct hmm_order *order(enum hmm_order_kind kind, uint32_t flags);
/* A thread's body: the agent carries out one. */
void *step(void *argument);
void wait_for_state(struct hmm_order *order_, uint32_t state);

bool bit(const uint64_t *map, unsigned int page);
unsigned int count(const uint64_t *map);
bool is_there(uint64_t address);
/* What went out is the golden bytes. */
void check_shadow(const struct hmm_order *done);

#endif
