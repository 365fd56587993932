/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#include "agent_fixture.h"
#include "libclient/arena.h"

struct agent *agent;
struct hmm_orders *orders;
struct regions *regions;
char *home, *golden;
int shadow;

bool is_there(uint64_t address)
{
	uint64_t entry = 0;

	cr_assert_eq(pread(agent->pagemap, &entry, sizeof(entry), (off_t)(address / HMM_PAGE_SIZE * sizeof(entry))),
		     (ssize_t)sizeof(entry));
	return entry & (PM_PRESENT | PM_SWAP);
}

static uint64_t features(int uffd, uint64_t wanted)
{
	struct uffdio_api api = { .api = UFFD_API, .features = wanted };

	return ioctl(uffd, UFFDIO_API, &api) ? 0 : api.features;
}

void arm(void *start, size_t length, uint64_t mode)
{
	struct uffdio_register arg = { .range = { (uintptr_t)start, length }, .mode = mode };

	cr_assert_eq(ioctl(agent->uffd, UFFDIO_REGISTER, &arg), 0, "%s", strerror(errno));
}

void *map_blocks(void *at, unsigned int blocks)
{
	void *map = mmap(at, blocks * HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	cr_assert_neq(map, MAP_FAILED);
	return map;
}

void begin(enum hmm_pool_kind kind, uint64_t wanted, off_t shadow_size)
{
	struct hmm_msg_region event = {
		.mirror = 0x100,
		.base = HOME & ~(HMM_REGION_SIZE - 1),
		.length = HMM_REGION_SIZE,
		.kind = kind,
	};

	agent = hmmc_arena_alloc(sizeof(*agent));
	regions = hmmc_arena_alloc(sizeof(*regions));
	orders = hmmc_arena_alloc(sizeof(*orders));
	agent->orders = orders;
	agent->regions = regions;
	agent->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (agent->uffd < 0)
		cr_skip_test("no userfaultfd: %s", strerror(errno));
	if (!features(agent->uffd, wanted)) {
		close(agent->uffd);
		cr_skip_test("the kernel has no UFFDIO_MOVE");
	}
	agent->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	agent->mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	agent->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	cr_assert_eq(pipe2(agent->pipe, O_CLOEXEC), 0);
	agent->slots = map_blocks((void *)(HOME + HMM_REGION_SIZE), 1);
	agent->slots_count = 1;
	madvise(agent->slots, HMM_BLOCK_SIZE, MADV_HUGEPAGE);
	arm(agent->slots, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	home = map_blocks((void *)HOME, 1);
	golden = malloc(HMM_BLOCK_SIZE);
	for (size_t i = 0; i < HMM_BLOCK_SIZE; i++)
		golden[i] = (char)(i * 2654435761u >> 13);
	shadow = memfd_create("shadow", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	cr_assert_eq(ftruncate(shadow, shadow_size), 0);
	cr_assert_eq(fcntl(shadow, F_ADD_SEALS, F_SEAL_GROW), 0);
	cr_assert_eq(hmmc_region_add(regions, &event, dup(shadow)), 0);
}

void end(void)
{
	struct uffdio_range all = { HOME, HMM_BLOCK_SIZE };

	/* No reader of events is left: disarm before unmapping. */
	ioctl(agent->uffd, UFFDIO_UNREGISTER, &all);
	close(agent->uffd);
	close(agent->pagemap);
	close(agent->mem);
	close(agent->eventfd);
	close(agent->pipe[0]);
	close(agent->pipe[1]);
	hmmc_region_drop(regions, HMM_NO_MIRROR);
	munmap(home, HMM_BLOCK_SIZE);
	munmap(agent->slots, HMM_BLOCK_SIZE);
	free(golden);
	close(shadow);
}

struct hmm_order *order(enum hmm_order_kind kind, uint32_t flags)
{
	struct hmm_order *new = &orders->ring[orders->produced % HMM_ORDERS_RING];

	memset(new, 0, sizeof(*new));
	new->kind = kind;
	new->addr = HOME;
	new->flags = flags;
	memset(new->want, 0xff, sizeof(new->want));
	new->state = HMM_ORDER_QUEUED;
	orders->produced++;
	return new;
}

bool bit(const uint64_t *map, unsigned int page)
{
	return map[page / 64] >> (page % 64) & 1;
}

unsigned int count(const uint64_t *map)
{
	unsigned int sum = 0;

	for (unsigned int i = 0; i < HMM_BITMAP_WORDS; i++)
		sum += (unsigned int)__builtin_popcountll(map[i]);
	return sum;
}

void check_shadow(const struct hmm_order *done)
{
	char page[HMM_PAGE_SIZE];

	for (unsigned int i = 0; i < PAGES; i++) {
		if (!bit(done->moved, i))
			continue;
		cr_assert_eq(pread(shadow, page, sizeof(page), (off_t)i * (off_t)sizeof(page)),
			     (ssize_t)sizeof(page));
		cr_assert_eq(memcmp(page, golden + i * HMM_PAGE_SIZE, sizeof(page)), 0,
			     "page %u of the shadow", i);
	}
}

void *step(void *argument)
{
	return (void *)(uintptr_t)hmmc_agent_step(agent);
}

void wait_for_state(struct hmm_order *order_, uint32_t state)
{
	while (__atomic_load_n(&order_->state, __ATOMIC_SEQ_CST) != state)
		sched_yield();
}
