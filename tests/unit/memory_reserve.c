// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * memory_reserve.c - a pool's memory taken up front: all of it or nothing, block by block of the memfd; what
 * devices have and what is reserved are the pool's size together; what comes back is zeros; the next hmmd goes on with it.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "engine_random.h"
#include "memory/pool.h"
#include "memory/reserve.h"
#include "memory/shadow.h"
#include "tests/leakcheck.h"

#define MIB (1ULL << 20)

LEAKCHECKED_SUITE(reserve);

static struct kernel_ops calls;

static const struct reserve_options plain = {
	.kind = HMM_POOL_KIND_MEMFD, .placement = {.node = -1}, .size = 40 * MIB, .fds = {-1, -1},
};

static uint64_t blocks_of(int fd)
{
	struct stat st;

	cr_assert(eq(int, fstat(fd, &st), 0));
	return (uint64_t)st.st_blocks * 512;
}

static struct reserve *begin(const struct reserve_options *options)
{
	struct reserve *reserve;
	char why[300];
	int r = reserve_new(options, &reserve, why, sizeof(why));

	cr_assert(eq(int, r, 0), "%s", why);
	return reserve;
}

/* It is the thread's to take back; only what hangs is ended. */
static void await_held(struct reserve *reserve, uint64_t bytes)
{
	for (int i = 0; i < 60000 && reserve_held(reserve) != bytes; i++)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	cr_assert(eq(u64, reserve_held(reserve), bytes));
}

Test(reserve, all_of_it_is_there_and_goes_with_it)
{
	struct reserve *reserve = begin(&plain);
	int fd = fcntl(reserve_fds(reserve)[0], F_DUPFD_CLOEXEC, 3);

	cr_expect(eq(u64, blocks_of(fd), 40 * MIB));
	cr_expect(eq(u64, reserve_held(reserve), 40 * MIB));
	cr_expect(not(reserve_is_adopted(reserve)));
	cr_expect(eq(ptr, reserve_free(reserve), NULL));
	close(fd);
}

Test(reserve, what_is_spent_is_given_to_the_system_and_taken_back)
{
	struct reserve *reserve = begin(&plain);
	int fd = reserve_fds(reserve)[0];

	reserve_spend(reserve, 3 * HMM_PAGE_SIZE);
	cr_expect(eq(u64, blocks_of(fd), 40 * MIB - 3 * HMM_PAGE_SIZE));
	reserve_spend(reserve, 37 * MIB);
	cr_expect(eq(u64, blocks_of(fd), 3 * MIB - 3 * HMM_PAGE_SIZE));
	reserve_return(reserve, 20 * MIB);
	await_held(reserve, 23 * MIB - 3 * HMM_PAGE_SIZE);
	cr_expect(eq(u64, blocks_of(fd), 23 * MIB - 3 * HMM_PAGE_SIZE));
	/* More than there is: then there is none. */
	reserve_spend(reserve, 50 * MIB);
	cr_expect(eq(u64, blocks_of(fd), 0));
	reserve_return(reserve, 67 * MIB + 3 * HMM_PAGE_SIZE);
	await_held(reserve, 40 * MIB);
	cr_expect(eq(u64, blocks_of(fd), 40 * MIB), "all of it, however often the ring went round");
	reserve_free(reserve);
}

/* Pages of what cannot be had by 4 KiB are given, and taken, as a whole. */
Test(reserve, huge_pages)
{
	struct reserve_options options = plain;
	struct reserve *reserve;

	options.kind = HMM_POOL_KIND_MEMFD_HUGE;
	options.size = 7 * MIB;
	reserve = begin(&options);
	cr_expect(eq(u64, reserve_held(reserve), 6 * MIB));
	reserve_spend(reserve, HMM_PAGE_SIZE);
	cr_expect(eq(u64, blocks_of(reserve_fds(reserve)[0]), 4 * MIB));
	reserve_spend(reserve, 2 * MIB - HMM_PAGE_SIZE);
	cr_expect(eq(u64, blocks_of(reserve_fds(reserve)[0]), 4 * MIB));
	reserve_return(reserve, 2 * MIB);
	await_held(reserve, 6 * MIB);
	reserve_free(reserve);
}

Test(reserve, whom_it_serves)
{
	const struct placement bound = {.mode = HMM_PLACEMENT_BIND, .node = 0};
	struct reserve *reserve = begin(&plain);

	cr_expect(reserve_serves(reserve, HMM_POOL_KIND_MEMFD, &PLACEMENT_ANY));
	cr_expect(reserve_serves(reserve, HMM_POOL_KIND_MEMFD_HUGE, &PLACEMENT_ANY), "it is the same memory");
	cr_expect(not(reserve_serves(reserve, HMM_POOL_KIND_HUGETLB, &PLACEMENT_ANY)));
	cr_expect(not(reserve_serves(reserve, HMM_POOL_KIND_VFIO, &PLACEMENT_ANY)));
	cr_expect(not(reserve_serves(reserve, HMM_POOL_KIND_MEMFD, &bound)));
	reserve_free(reserve);
}

/* ---- what cannot be had ------------------------------------------------------------ */

static uint64_t room;
static int populates_left, taken_back;

static void scarce(pid_t pid, uint64_t *bytes, char *what, size_t size)
{
	cr_expect(zero(int, pid));
	*bytes = room;
	snprintf(what, size, "memory cgroup /test (memory.max)");
}

static int populate_some(void *start, size_t length)
{
	if (!populates_left--)
		return -EFAULT;
	return kernel_real.populate(start, length);
}

static int punch_counted(int fd, uint64_t offset, uint64_t length)
{
	taken_back++;
	return kernel_real.punch(fd, offset, length);
}

static void refused(int error, const char *word)
{
	struct reserve *reserve = NULL;
	char why[300];

	cr_expect(eq(int, reserve_new(&plain, &reserve, why, sizeof(why)), error));
	cr_expect(eq(ptr, reserve, NULL));
	cr_expect(strstr(why, word) != NULL, "%s", why);
}

Test(reserve, nothing_is_taken_where_there_is_no_room_for_all)
{
	calls = kernel_real;
	calls.room = scarce;
	calls.populate = populate_some;
	kernel = &calls;
	room = 40 * MIB - 1;
	populates_left = 100;
	refused(-ENOSPC, "memory cgroup /test (memory.max) has 39 MiB to give, and 40 MiB are to be reserved");
	cr_expect(eq(int, populates_left, 100), "asked before the first page");
	kernel = &kernel_real;
}

/* Others took it in the middle. Leaks are looked for when the test ends. */
Test(reserve, what_was_taken_is_given_back_where_the_rest_is_missing)
{
	calls = kernel_real;
	calls.populate = populate_some;
	kernel = &calls;
	populates_left = 2;
	refused(-ENOSPC, "the kernel has no more");
	kernel = &kernel_real;
}

Test(reserve, a_node_that_is_not_here)
{
	struct reserve_options options = plain;
	struct reserve *reserve;
	char why[300];

	options.placement = (struct placement){.mode = HMM_PLACEMENT_BIND, .node = 1023};
	cr_expect(lt(int, reserve_new(&options, &reserve, why, sizeof(why)), 0));
	cr_expect(strstr(why, "no memory can be had at bind:1023") != NULL, "%s", why);
}

/* Nobody is killed for it, and it is taken as soon as there is room. */
Test(reserve, is_short_until_there_is_room)
{
	struct reserve *reserve;

	calls = kernel_real;
	calls.room = scarce;
	calls.punch = punch_counted;
	kernel = &calls;
	room = UINT64_MAX;
	reserve = begin(&plain);
	reserve_spend(reserve, 30 * MIB);
	__atomic_store_n(&room, 0, __ATOMIC_SEQ_CST);
	taken_back = 0;
	reserve_return(reserve, 30 * MIB);
	/* It was tried, and nothing is left of the try. */
	for (int i = 0; i < 60000 && !__atomic_load_n(&taken_back, __ATOMIC_SEQ_CST); i++)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	cr_expect(lt(int, 0, taken_back));
	cr_expect(eq(u64, reserve_held(reserve), 10 * MIB));
	/* What is spent meanwhile is there. */
	reserve_spend(reserve, 4 * MIB);
	cr_expect(eq(u64, reserve_held(reserve), 10 * MIB), "26 MiB are due to it, of which it has 10");
	reserve_spend(reserve, 28 * MIB);
	cr_expect(eq(u64, reserve_held(reserve), 8 * MIB));
	reserve_return(reserve, 32 * MIB);
	__atomic_store_n(&room, UINT64_MAX, __ATOMIC_SEQ_CST);
	await_held(reserve, 40 * MIB);
	reserve_free(reserve);
	kernel = &kernel_real;
}

/* ---- the next hmmd ------------------------------------------------------------------- */

static struct reserve_options successor(const struct reserve *of, bool swapped)
{
	struct reserve_options options = plain;

	for (unsigned int i = 0; i < RESERVE_FDS; i++)
		options.fds[i ^ swapped] = fcntl(reserve_fds(of)[i], F_DUPFD_CLOEXEC, 3);
	return options;
}

Test(reserve, a_successor_goes_on_with_it)
{
	struct reserve *first = begin(&plain), *second;
	struct reserve_options options;

	/* So that the ring goes round the end. */
	reserve_spend(first, 30 * MIB);
	reserve_return(first, 25 * MIB);
	await_held(first, 35 * MIB);
	options = successor(first, true);
	options.patience_ms = 3600000;
	reserve_free(first);
	second = begin(&options);
	cr_expect(reserve_is_adopted(second));
	cr_expect(eq(u64, reserve_held(second), 35 * MIB), "nothing is taken beside what devices still have");
	cr_expect(eq(u64, blocks_of(reserve_fds(second)[0]), 35 * MIB));
	/* Their owners come back. */
	reserve_spend(second, 5 * MIB);
	cr_expect(eq(u64, reserve_held(second), 35 * MIB));
	reserve_spend(second, 3 * MIB);
	cr_expect(eq(u64, blocks_of(reserve_fds(second)[0]), 32 * MIB));
	reserve_free(second);
}

Test(reserve, a_successor_takes_what_nobody_came_back_for)
{
	struct reserve *first = begin(&plain), *second;
	struct reserve_options options;

	reserve_spend(first, 30 * MIB);
	options = successor(first, false);
	reserve_free(first);
	second = begin(&options);
	cr_expect(reserve_is_adopted(second));
	await_held(second, 40 * MIB);
	cr_expect(eq(u64, blocks_of(reserve_fds(second)[0]), 40 * MIB));
	reserve_free(second);
}

static void not_adopted(struct reserve_options *options, uint64_t size)
{
	struct reserve *second = begin(options);

	cr_expect(not(reserve_is_adopted(second)));
	cr_expect(eq(u64, reserve_held(second), size));
	reserve_free(second);
}

Test(reserve, another_reserve_is_not_gone_on_with)
{
	struct reserve *first = begin(&plain);
	struct reserve_options options = successor(first, false);

	options.size = 20 * MIB;
	not_adopted(&options, 20 * MIB);
	options = successor(first, false);
	options.kind = HMM_POOL_KIND_MEMFD_HUGE;
	not_adopted(&options, 40 * MIB);
	options = successor(first, false);
	close(options.fds[1]);
	options.fds[1] = -1;
	not_adopted(&options, 40 * MIB);
	reserve_free(first);
}

/* ---- devices -------------------------------------------------------------------------- */

Test(reserve, devices_spend_it)
{
	struct reserve *reserve = begin(&plain);
	struct device *one, *huge, *other;
	struct devices devices;

	devices_init(&devices, 40 * MIB);
	cr_assert(eq(int, devices_reserve(&devices, reserve), 0));
	cr_assert(eq(int, device_new(&devices, "one", HMM_POOL_KIND_MEMFD, NULL, 20 * MIB, 0, 1, &one), 0));
	cr_assert(eq(int, device_new(&devices, "huge", HMM_POOL_KIND_MEMFD_HUGE, NULL, 10 * MIB, 0, 1, &huge), 0));
	cr_assert(eq(int, device_new(&devices, "other", HMM_POOL_KIND_HUGETLB, NULL, 10 * MIB, 0, 1, &other), 0));
	cr_expect(eq(ptr, TAILQ_FIRST(&devices.pools)->reserve, reserve));
	cr_expect(eq(int, device_charge(one, 5 * MIB), 0));
	cr_expect(eq(int, device_charge(huge, 4 * MIB), 0));
	cr_expect(eq(int, device_charge(other, 4 * MIB), 0));
	cr_expect(eq(int, device_charge(one, 16 * MIB), -ENOSPC), "and what is refused spends nothing");
	cr_expect(eq(u64, reserve_held(reserve), 31 * MIB));
	device_overcharge(one, MIB);
	cr_expect(eq(u64, reserve_held(reserve), 30 * MIB));
	device_uncharge(huge, 4 * MIB);
	device_uncharge(other, 4 * MIB);
	device_uncharge(one, 6 * MIB);
	await_held(reserve, 40 * MIB);
	devices_deinit(&devices);
	reserve_free(reserve);
}

#define SPENDERS 4
#define ROUNDS 300

struct spender {
	pthread_t thread;
	struct device *device;
	struct shadow *shadow;
	struct random random;
	unsigned int number;
};

/* As a worker does: charged, filled, punched, uncharged; and what comes anew is zeros. */
static void *fill_and_punch(void *data)
{
	struct spender *me = data;

	for (int i = 0; i < ROUNDS; i++) {
		unsigned int pages = 1 + (unsigned int)random_below(&me->random, 256);
		uint64_t at = me->shadow->base + me->number * HMM_BLOCK_SIZE, length = (uint64_t)pages * HMM_PAGE_SIZE;
		char *bytes = shadow_at(me->shadow, at);

		cr_assert(eq(int, device_charge(me->device, length), 0));
		for (uint64_t k = 0; k < length; k += HMM_PAGE_SIZE)
			cr_assert(eq(int, bytes[k], 0));
		memset(bytes, 0x5a, length);
		cr_assert(eq(int, kernel->punch(me->shadow->fd, at - me->shadow->base, length), 0));
		device_uncharge(me->device, length);
	}
	return NULL;
}

Test(reserve, many_threads_and_the_sum_is_right)
{
	struct reserve *reserve = begin(&plain);
	struct random random = random_begin("reserve");
	struct spender spenders[SPENDERS];
	struct shadows shadows = {0};
	struct devices devices;
	struct device *device;
	struct shadow *shadow;

	devices_init(&devices, 40 * MIB);
	cr_assert(eq(int, devices_reserve(&devices, reserve), 0));
	cr_assert(eq(int, device_new(&devices, "d", HMM_POOL_KIND_MEMFD, NULL, 40 * MIB, 0, 1, &device), 0));
	cr_assert(eq(int, shadow_get(&shadows, device->pool, 1UL << 40, &shadow), 0));
	for (unsigned int i = 0; i < SPENDERS; i++) {
		spenders[i] = (struct spender){.device = device, .shadow = shadow, .random = {random_next(&random)}, .number = i};
		cr_assert(eq(int, pthread_create(&spenders[i].thread, NULL, fill_and_punch, &spenders[i]), 0));
	}
	for (unsigned int i = 0; i < SPENDERS; i++)
		pthread_join(spenders[i].thread, NULL);
	await_held(reserve, 40 * MIB);
	cr_expect(eq(u64, blocks_of(reserve_fds(reserve)[0]), 40 * MIB));
	cr_expect(eq(u64, blocks_of(shadow->fd), 0));
	shadows_deinit(&shadows);
	devices_deinit(&devices);
	reserve_free(reserve);
}
