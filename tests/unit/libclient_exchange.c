/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libclient_exchange.c - a block's mapping is exchanged for its shadow and back, and how long the agent's own
 * mapping of a shadow stays.
 */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "agent_fixture.h"

#define EVENTS (UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP)

static void *read_events(void *data)
{
	struct pollfd wait = { .fd = agent->uffd, .events = POLLIN };
	struct hmm_order *until = data;
	uint64_t seen = 0;
	struct uffd_msg event;

	while (__atomic_load_n(&until->state, __ATOMIC_SEQ_CST) != HMM_ORDER_DONE)
		if (poll(&wait, 1, 1) == 1 && read(agent->uffd, &event, sizeof(event)) == sizeof(event))
			seen |= 1ULL << event.event;
	return (void *)seen;
}

static uint64_t step_and_read(struct hmm_order *until)
{
	pthread_t reader;
	void *seen;

	pthread_create(&reader, NULL, read_events, until);
	cr_assert(hmmc_agent_step(agent));
	pthread_join(reader, &seen);
	return (uint64_t)seen;
}

Test(agent, a_mapping_is_exchanged_there_and_back)
{
	struct hmm_order *done;
	uint64_t seen, entry;

	begin(HMM_POOL_KIND_MEMFD, EVENTS, HMM_REGION_SIZE);
	cr_assert_eq(pwrite(shadow, golden, HMM_BLOCK_SIZE, HOME % HMM_REGION_SIZE), (ssize_t)HMM_BLOCK_SIZE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	done = order(HMM_ORDER_COHERE, 0);
	done->slot = HMM_NO_SLOT;
	seen = step_and_read(done);
	cr_assert_eq(seen, 1ULL << UFFD_EVENT_UNMAP);
	cr_assert_eq(done->error, 0, "%s", strerror(-done->error));
	cr_assert_eq(count(done->moved), PAGES);
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0);
	home[7] = (char)(golden[7] + 1);
	cr_assert_eq(region_at(hmmc_region_find(regions, 0, HOME), HOME)[7], home[7], "the very page");

	done = order(HMM_ORDER_UNCOHERE, 0);
	done->slot = HMM_NO_SLOT;
	seen = step_and_read(done);
	cr_assert_eq(seen, 1ULL << UFFD_EVENT_REMAP | 1ULL << UFFD_EVENT_UNMAP);
	cr_assert_eq(done->error, 0, "%s", strerror(-done->error));
	cr_assert_eq(count(done->moved), PAGES);
	for (unsigned int i = 0; i < PAGES; i++) {
		cr_assert_eq(pread(agent->pagemap, &entry, 8, (off_t)((HOME >> 12) + i) * 8), 8);
		cr_assert_eq(entry & PM_PRESENT, 0);
	}
	cr_assert_eq(region_at(hmmc_region_find(regions, 0, HOME), HOME)[7], (char)(golden[7] + 1));
	end();
}

/* hmmd has taken the order back, and its mirror goes, while the agent is in the middle of a copy. */
Test(agent, a_region_stays_mapped_while_the_agent_may_use_it)
{
	struct hmm_msg_region event = {
		.mirror = 0x100,
		.base = HOME & ~(HMM_REGION_SIZE - 1),
		.length = HMM_REGION_SIZE,
		.kind = HMM_POOL_KIND_MEMFD,
	};
	unsigned char resident;
	struct region *region;
	char *map;
	int next;

	begin(HMM_POOL_KIND_MEMFD, EVENTS, HMM_REGION_SIZE);
	regions->busy = &agent->busy;
	agent->busy = 1;
	region = hmmc_region_find(regions, 0, HOME);
	map = region->map;
	hmmc_region_drop(regions, 0);
	cr_assert_null(hmmc_region_find(regions, 0, HOME));
	cr_assert_eq(region_at(region, HOME)[7], 0, "still there");
	next = memfd_create("next", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(next, HMM_REGION_SIZE), 0);
	cr_assert_eq(hmmc_region_add(regions, &event, next), 0);
	cr_assert_neq(hmmc_region_find(regions, 0, HOME), region, "of the same key, and another one");
	cr_assert_eq(region->map, map);
	cr_assert_eq(mincore(map, HMM_PAGE_SIZE, &resident), 0);
	agent->busy = 0;
	hmmc_region_settle(regions);
	cr_assert_eq(mincore(map, HMM_PAGE_SIZE, &resident), -1, "unmapped");
	cr_assert(hmmc_region_find(regions, 0, HOME), "the next one stays");
	hmmc_region_drop(regions, 0);
	cr_assert_null(hmmc_region_find(regions, 0, HOME));
	end();
}

/* Not armed any more: something else may be mapped there. */
Test(agent, what_is_not_armed_is_not_exchanged)
{
	struct hmm_order *done;

	begin(HMM_POOL_KIND_MEMFD, EVENTS, HMM_REGION_SIZE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	done = order(HMM_ORDER_COHERE, 0);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->error, -ENOENT);
	cr_assert_eq(count(done->moved), 0);
	memset(home, 5, HMM_BLOCK_SIZE);
	cr_assert_neq(region_at(hmmc_region_find(regions, 0, HOME), HOME)[7], 5);
	end();
}

Test(agent, an_exchange_is_held_and_taken_back)
{
	struct hmm_order *done;
	pthread_t stepper;

	begin(HMM_POOL_KIND_MEMFD, EVENTS, HMM_REGION_SIZE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	orders->hold = 1;
	done = order(HMM_ORDER_COHERE, 0);
	pthread_create(&stepper, NULL, step, NULL);
	for (uint32_t running = 0; running != HMM_ORDER_RUNNING;) {
		running = HMM_ORDER_RUNNING;
		if (!__atomic_compare_exchange_n(&done->state, &running, HMM_ORDER_CANCELLED, false,
						 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			running = 0;
	}
	orders->hold = 0;
	pthread_join(stepper, NULL);
	cr_assert_eq(done->state, HMM_ORDER_CANCELLED);
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0);
	end();
}
