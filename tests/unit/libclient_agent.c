/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The agent against the real kernel: the test writes orders as hmmd does, has
 * the agent carry them out in this thread and looks at every byte.
 */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "libclient/agent.h"
#include "libclient/arena.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(agent);

#define PAGES	HMM_BLOCK_PAGES
#define HOME	0x690000000000UL	/* where the owner's block is in these tests */

static struct agent *agent;
static struct hmm_orders *orders;
static struct regions *regions;
static char *home, *golden;
static int shadow;

static bool is_there(uint64_t address)
{
	uint64_t entry = 0;

	cr_assert_eq(pread(agent->pagemap, &entry, sizeof(entry), (off_t)(address / HMM_PAGE_SIZE * sizeof(entry))),
		     (ssize_t)sizeof(entry));
	return entry & (PM_PRESENT | PM_SWAP);
}

/*
 * The library's calls come through here. As Linux 6.18 does where a page changes in the middle of it, a MOVE moves and does
 * not count: nothing of it, or all but its first page.
 */
static enum { COUNTS, COUNTS_NOTHING, COUNTS_ONE, COUNTS_ONE_AND_IS_HELD, COUNTS_NOTHING_AND_IS_DISCARDED } forgetful;
static unsigned int forgotten;

__attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, ...)
{
	struct uffdio_move *move;
	va_list arguments;
	void *argument;
	int r;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	/* Who copies from a hole in a slot waits for hmmd. */
	if (request == UFFDIO_COPY && forgetful != COUNTS)
		cr_assert(is_there(((struct uffdio_copy *)argument)->src));
	r = (int)syscall(SYS_ioctl, fd, request, argument);
	if (request != UFFDIO_MOVE || forgetful == COUNTS || r)
		return r;
	move = argument;
	if (forgetful == COUNTS_NOTHING_AND_IS_DISCARDED && move->dst - HOME < HMM_BLOCK_SIZE) {
		cr_assert_eq(madvise((void *)move->dst, move->len, MADV_DONTNEED), 0);
		forgotten++;
		move->move = -EAGAIN;
		errno = EAGAIN;
		return -1;
	}
	if (forgetful == COUNTS_NOTHING_AND_IS_DISCARDED)
		return r;
	if (forgetful != COUNTS_NOTHING && move->len == HMM_PAGE_SIZE)
		return r;
	/* It is over a page that it stumbles. */
	if (!is_there(move->dst))
		return r;
	forgotten++;
	move->move = forgetful == COUNTS_NOTHING ? -EEXIST : (int64_t)HMM_PAGE_SIZE;
	errno = forgetful == COUNTS_NOTHING ? EEXIST : EAGAIN;
	/* hmmd is about to read an event: nothing more is tried. */
	if (forgetful == COUNTS_ONE_AND_IS_HELD)
		__atomic_store_n(&orders->hold, 1, __ATOMIC_SEQ_CST);
	return -1;
}

static uint64_t features(int uffd, uint64_t wanted)
{
	struct uffdio_api api = { .api = UFFD_API, .features = wanted };

	return ioctl(uffd, UFFDIO_API, &api) ? 0 : api.features;
}

static void arm(void *start, size_t length, uint64_t mode)
{
	struct uffdio_register arg = { .range = { (uintptr_t)start, length }, .mode = mode };

	cr_assert_eq(ioctl(agent->uffd, UFFDIO_REGISTER, &arg), 0, "%s", strerror(errno));
}

static void *map_blocks(void *at, unsigned int blocks)
{
	void *map = mmap(at, blocks * HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	cr_assert_neq(map, MAP_FAILED);
	return map;
}

static void begin(enum hmm_pool_kind kind, uint64_t wanted, off_t shadow_size)
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

static void end(void)
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

static struct hmm_order *order(enum hmm_order_kind kind, uint32_t flags)
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

static bool bit(const uint64_t *map, unsigned int page)
{
	return map[page / 64] >> (page % 64) & 1;
}

static unsigned int count(const uint64_t *map)
{
	unsigned int sum = 0;

	for (unsigned int i = 0; i < HMM_BITMAP_WORDS; i++)
		sum += (unsigned int)__builtin_popcountll(map[i]);
	return sum;
}

static bool huge_at(uint64_t address)
{
	struct page_region found;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = address,
		.end = address + HMM_BLOCK_SIZE,
		.vec = (uintptr_t)&found,
		.vec_len = 1,
		.category_mask = PAGE_IS_HUGE,
		.return_mask = PAGE_IS_HUGE,
	};

	return ioctl(agent->pagemap, PAGEMAP_SCAN, &arg) == 1 &&
	       found.end - found.start == HMM_BLOCK_SIZE;
}

static void check_shadow(const struct hmm_order *done)
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

static void release(void)
{
	struct hmm_order *done = order(HMM_ORDER_RELEASE, 0);

	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->state, HMM_ORDER_DONE);
	cr_assert_eq(done->error, 0, "%s", strerror(-done->error));
}

Test(agent, a_huge_page_goes_out_and_comes_home_whole)
{
	struct hmm_order *done;
	uint64_t signals = 0;

	begin(HMM_POOL_KIND_MEMFD_HUGE, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_HUGEPAGE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	if (!huge_at(HOME)) {
		end();
		cr_skip_test("the system gives no huge page");
	}
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);

	done = order(HMM_ORDER_OUT_MOVE, HMM_ORDER_WHOLE);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->state, HMM_ORDER_DONE);
	cr_assert_eq(done->error, 0, "%s", strerror(-done->error));
	cr_assert_eq(count(done->moved), PAGES);
	cr_assert_eq(count(done->hole) + count(done->busy), 0);
	cr_assert(done->flags & HMM_ORDER_HUGE_MOVED);
	cr_assert_eq(read(agent->eventfd, &signals, sizeof(signals)), (ssize_t)sizeof(signals));
	check_shadow(done);
	release();

	done = order(HMM_ORDER_HOME_SLOT, HMM_ORDER_WHOLE);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->error, 0, "%s", strerror(-done->error));
	cr_assert_eq(count(done->moved), PAGES);
	cr_assert(huge_at(HOME), "it is to be a huge page again");
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0);
	release();
	cr_assert_not(hmmc_agent_step(agent), "nothing is left to do");
	end();
}

Test(agent, small_pages_and_holes_are_told_apart)
{
	struct hmm_order *done;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	for (unsigned int i = 0; i < PAGES; i++)
		if (i % 3)
			memcpy(home + i * HMM_PAGE_SIZE, golden + i * HMM_PAGE_SIZE, HMM_PAGE_SIZE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);

	done = order(HMM_ORDER_OUT_MOVE, 0);
	done->want[0] &= ~2ULL;	/* page 1 is to stay */
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->error, 0);
	for (unsigned int i = 0; i < PAGES; i++) {
		cr_assert_eq(bit(done->moved, i), i % 3 && i != 1, "page %u", i);
		cr_assert_eq(bit(done->hole, i), i % 3 == 0, "page %u", i);
	}
	cr_assert_not(done->flags & HMM_ORDER_HUGE_MOVED);
	check_shadow(done);
	cr_assert_eq(memcmp(home + HMM_PAGE_SIZE, golden + HMM_PAGE_SIZE, HMM_PAGE_SIZE), 0);
	release();
	end();
}

/* Small pages with holes between them, out, and whatever was counted all of it is in the shadow. */
static void forget_on_the_way_out(enum hmm_order_kind kind)
{
	struct hmm_order *done;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	for (unsigned int i = 0; i < PAGES; i++)
		if (i % 7 != 3)
			memcpy(home + i * HMM_PAGE_SIZE, golden + i * HMM_PAGE_SIZE, HMM_PAGE_SIZE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	done = order(kind, 0);
	done->want[3] = 0;	/* several runs */
	forgetful = kind == HMM_ORDER_DROP ? COUNTS_ONE : COUNTS_NOTHING;
	cr_assert(hmmc_agent_step(agent));
	forgetful = COUNTS;
	cr_assert_eq(forgotten, 2U);
	cr_assert_eq(done->error, 0, "%s", strerror(-done->error));
	for (unsigned int i = 0; i < PAGES; i++) {
		bool wanted = i / 64 != 3;

		cr_assert_eq(bit(done->moved, i), wanted && i % 7 != 3, "page %u", i);
		cr_assert_eq(bit(done->hole, i), wanted && i % 7 == 3, "page %u", i);
		cr_assert_not(bit(done->busy, i), "page %u", i);
	}
	if (kind == HMM_ORDER_OUT_MOVE)
		check_shadow(done);
	for (unsigned int i = 1; i < PAGES; i += 7)
		if (bit(done->moved, i))
			cr_assert_eq(memcmp(agent->slots + i * HMM_PAGE_SIZE, golden + i * HMM_PAGE_SIZE, HMM_PAGE_SIZE), 0);
	release();
	end();
}

Test(agent, what_a_move_does_not_count_goes_out)
{
	forget_on_the_way_out(HMM_ORDER_OUT_MOVE);
}

Test(agent, what_a_move_does_not_count_is_dropped)
{
	forget_on_the_way_out(HMM_ORDER_DROP);
}

/* Small pages in the shadow, of which page @stays is the program's already. */
static struct hmm_order *begin_home(uint32_t flags, const char *stays, unsigned int page)
{
	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	madvise(agent->slots, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	if (stays)
		strcpy(home + page * HMM_PAGE_SIZE, stays);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	cr_assert_eq(pwrite(shadow, golden, HMM_BLOCK_SIZE, 0), (ssize_t)HMM_BLOCK_SIZE);
	return order(HMM_ORDER_HOME_SLOT, flags);
}

Test(agent, what_a_move_does_not_count_comes_home)
{
	struct hmm_order *done;

	for (forgotten = 0; forgotten < 2;) {
		done = begin_home(HMM_ORDER_WHOLE, NULL, 0);
		forgetful = forgotten ? COUNTS_ONE : COUNTS_NOTHING;
		cr_assert(hmmc_agent_step(agent));
		forgetful = COUNTS;
		cr_assert_eq(done->error, 0, "%s", strerror(-done->error));
		cr_assert_eq(count(done->moved), PAGES);
		cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0);
		release();
		end();
	}
}

/* An order that ends early has all that it took, told by the count or not. */
Test(agent, what_a_move_does_not_count_before_it_is_held)
{
	struct hmm_order *done;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	done = order(HMM_ORDER_OUT_MOVE, 0);
	done->want[3] = 0;
	forgetful = COUNTS_ONE_AND_IS_HELD;
	cr_assert(hmmc_agent_step(agent));
	forgetful = COUNTS;
	__atomic_store_n(&orders->hold, 0, __ATOMIC_SEQ_CST);
	cr_assert_eq(forgotten, 1U);
	cr_assert_eq(done->error, -EAGAIN);
	cr_assert_eq(count(done->moved), 192U);
	cr_assert_eq(count(done->busy), 512U - 64 - 192);
	check_shadow(done);
	cr_assert_eq(memcmp(home + 256 * HMM_PAGE_SIZE, golden + 256 * HMM_PAGE_SIZE, 256 * HMM_PAGE_SIZE), 0);
	release();
	end();
}

/* EEXIST as it was meant: somebody's page is there, and stays. */
Test(agent, a_page_that_is_at_home_already_ends_it)
{
	struct hmm_order *done = begin_home(0, "the program's", 100);

	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->error, -EEXIST);
	cr_assert_eq(count(done->moved), 100U);
	cr_assert_str_eq(home + 100 * HMM_PAGE_SIZE, "the program's");
	release();
	end();
}

/* What the last order left in a slot, since emptying failed, is nobody's page of the next. */
Test(agent, a_slot_that_was_not_emptied_is_emptied_first)
{
	struct hmm_order *done;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	order(HMM_ORDER_OUT_MOVE, 0);
	cr_assert(hmmc_agent_step(agent));
	/* No RELEASE; and of the next one's pages all are holes. */
	done = order(HMM_ORDER_OUT_MOVE, 0);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->error, 0);
	cr_assert_eq(count(done->moved), 0U);
	cr_assert_eq(count(done->hole), PAGES);
	cr_assert_not(is_there((uintptr_t)agent->slots));
	release();
	end();
}

Test(agent, what_a_fork_left_shared_gets_its_own_copy)
{
	struct hmm_order *done;
	int status, pipes[2];
	char byte;
	pid_t child;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	cr_assert_eq(pipe2(pipes, O_CLOEXEC), 0);
	child = fork();
	if (child == 0) {
		close(pipes[1]);
		_exit(read(pipes[0], &byte, 1) == 0 && memcmp(home, golden, HMM_BLOCK_SIZE) == 0
			      ? 0
			      : 1);
	}
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	done = order(HMM_ORDER_OUT_MOVE, 0);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(count(done->moved), PAGES, "%u moved, %u busy: %s", count(done->moved),
		     count(done->busy), strerror(-done->error));
	check_shadow(done);
	close(pipes[0]);
	close(pipes[1]);
	waitpid(child, &status, 0);
	cr_assert_eq(status, 0, "the child kept its own view");
	end();
}

Test(agent, a_page_that_cannot_move_stays_alone)
{
	struct hmm_order *done;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	cr_assert_eq(mprotect(home + 100 * HMM_PAGE_SIZE, 3 * HMM_PAGE_SIZE, PROT_READ), 0);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	done = order(HMM_ORDER_OUT_MOVE, 0);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(count(done->moved), PAGES - 3);
	cr_assert_eq(count(done->busy), 3);
	cr_assert(bit(done->busy, 100) && bit(done->busy, 102));
	cr_assert_eq(done->error, -EINVAL);
	check_shadow(done);
	cr_assert_eq(
		memcmp(home + 100 * HMM_PAGE_SIZE, golden + 100 * HMM_PAGE_SIZE, 3 * HMM_PAGE_SIZE),
		0);
	end();
}

Test(agent, no_room_in_the_shadow_costs_nothing)
{
	struct hmm_order *done;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, 10 * HMM_PAGE_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	done = order(HMM_ORDER_OUT_MOVE, 0);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_lt(done->error, 0);
	cr_assert_eq(count(done->moved) + count(done->busy), PAGES);
	cr_assert_eq(count(done->moved), 0);
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0, "all is home");
	end();
}

/* What goes back is there, told by the count or not; and what was discarded there since stays so. */
Test(agent, no_room_in_the_shadow_and_a_move_that_does_not_count)
{
	struct hmm_order *done;

	for (unsigned int discarded = 0; discarded < 2; discarded++) {
		begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, 10 * HMM_PAGE_SIZE);
		madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
		memcpy(home, golden, HMM_BLOCK_SIZE);
		arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
		done = order(HMM_ORDER_OUT_MOVE, 0);
		forgotten = 0;
		forgetful = discarded ? COUNTS_NOTHING_AND_IS_DISCARDED : COUNTS_NOTHING;
		cr_assert(hmmc_agent_step(agent));
		forgetful = COUNTS;
		cr_assert_geq(forgotten, PAGES);
		cr_assert_lt(done->error, 0);
		cr_assert_eq(count(done->moved), 0);
		cr_assert_eq(count(done->busy), PAGES);
		for (unsigned int i = 0; i < PAGES; i++) {
			cr_assert_eq(is_there(HOME + i * HMM_PAGE_SIZE), !discarded, "page %u", i);
			cr_assert_not(is_there((uintptr_t)agent->slots + i * HMM_PAGE_SIZE), "page %u", i);
		}
		cr_assert(discarded || memcmp(home, golden, HMM_BLOCK_SIZE) == 0);
		end();
	}
}

/*
 * The shadow takes ten pages, wanted are 0-3 and 20-511: each way of filling says so, what it did
 * not take is at home with its bytes, and nothing is left on the way.
 */
static void run_out(enum hmm_order_kind kind, enum hmm_pool_kind pool, uint32_t flags, unsigned int taken)
{
	struct hmm_order *done;
	int piped = -1;

	begin(pool, UFFD_FEATURE_MOVE, 10 * HMM_PAGE_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	for (unsigned int i = 0; i < PAGES; i++)
		if (i < 4 || i >= 20)
			memcpy(home + i * HMM_PAGE_SIZE, golden + i * HMM_PAGE_SIZE, HMM_PAGE_SIZE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	done = order(kind, flags);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->state, HMM_ORDER_DONE);
	cr_assert_lt(done->error, 0);
	cr_assert_eq(count(done->hole), 16);
	cr_assert_eq(count(done->moved), taken, "%u moved: %s", count(done->moved), strerror(-done->error));
	cr_assert_eq(count(done->busy), kind == HMM_ORDER_OUT_MOVE ? PAGES - 16 - taken : 0);
	check_shadow(done);
	for (unsigned int i = 0; i < PAGES; i++)
		if (!bit(done->moved, i) && !bit(done->hole, i))
			cr_assert_eq(memcmp(home + i * HMM_PAGE_SIZE, golden + i * HMM_PAGE_SIZE,
					    HMM_PAGE_SIZE), 0, "page %u is home", i);
	cr_assert_eq(ioctl(agent->pipe[0], FIONREAD, &piped), 0);
	cr_assert_eq(piped, 0, "%d bytes are left in the pipe", piped);
	end();
}

Test(agent, no_room_for_a_whole_block)
{
	run_out(HMM_ORDER_OUT_MOVE, HMM_POOL_KIND_MEMFD_HUGE, HMM_ORDER_WHOLE, 0);
	run_out(HMM_ORDER_OUT_ZAP, HMM_POOL_KIND_MEMFD_HUGE, HMM_ORDER_WHOLE, 0);
}

/* hugetlb memory is filled through the mapping a run at a time. */
Test(agent, no_room_in_the_mapping)
{
	run_out(HMM_ORDER_OUT_MOVE, HMM_POOL_KIND_HUGETLB, 0, 4);
	run_out(HMM_ORDER_OUT_MOVE, HMM_POOL_KIND_HUGETLB, HMM_ORDER_WHOLE, 0);
}

Test(agent, no_room_behind_the_pipe)
{
	run_out(HMM_ORDER_OUT_MOVE, HMM_POOL_KIND_MEMFD, HMM_ORDER_VISIBLE, 4);
	run_out(HMM_ORDER_OUT_MOVE, HMM_POOL_KIND_MEMFD_HUGE, HMM_ORDER_VISIBLE, 4);
}

Test(agent, no_room_for_single_pages)
{
	run_out(HMM_ORDER_OUT_MOVE, HMM_POOL_KIND_MEMFD, 0, 4);
	run_out(HMM_ORDER_OUT_ZAP, HMM_POOL_KIND_MEMFD, 0, 0);
}

Test(agent, an_order_taken_back_changes_nothing)
{
	struct hmm_order *done;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	done = order(HMM_ORDER_OUT_MOVE, 0);
	done->state = HMM_ORDER_CANCELLED;
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->state, HMM_ORDER_CANCELLED);
	cr_assert_eq(orders->consumed, orders->produced);
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0);
	end();
}

static void *step(void *argument)
{
	return (void *)(uintptr_t)hmmc_agent_step(agent);
}

static void wait_for_state(struct hmm_order *order_, uint32_t state)
{
	while (__atomic_load_n(&order_->state, __ATOMIC_SEQ_CST) != state)
		sched_yield();
}

Test(agent, a_hold_keeps_orders_out_and_lets_them_be_taken_back)
{
	uint32_t running = HMM_ORDER_RUNNING;
	struct hmm_order *done;
	pthread_t thread;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	orders->hold = 1;
	done = order(HMM_ORDER_OUT_MOVE, 0);
	pthread_create(&thread, NULL, step, NULL);
	wait_for_state(done, HMM_ORDER_RUNNING);
	while (!__atomic_compare_exchange_n(&done->state, &running, HMM_ORDER_CANCELLED, false,
					    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		running = HMM_ORDER_RUNNING;
	__atomic_store_n(&orders->hold, 0, __ATOMIC_SEQ_CST);
	futex_wake_shared(&orders->hold, INT32_MAX);
	pthread_join(thread, NULL);
	cr_assert_eq(done->state, HMM_ORDER_CANCELLED);
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0);

	done = order(HMM_ORDER_OUT_MOVE, 0);
	orders->hold = 1;
	pthread_create(&thread, NULL, step, NULL);
	wait_for_state(done, HMM_ORDER_RUNNING);
	__atomic_store_n(&orders->hold, 0, __ATOMIC_SEQ_CST);
	futex_wake_shared(&orders->hold, INT32_MAX);
	pthread_join(thread, NULL);
	cr_assert_eq(done->state, HMM_ORDER_DONE);
	cr_assert_eq(count(done->moved), PAGES);
	check_shadow(done);
	end();
}

static void *unmap(void *argument)
{
	munmap(argument, HMM_BLOCK_SIZE);
	return NULL;
}

Test(agent, an_unread_event_makes_a_stale_order_wait)
{
	pthread_t unmapper, stepper;
	struct hmm_order *done;
	struct pollfd unread = { .events = POLLIN };
	struct uffd_msg event;
	char *other;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE | UFFD_FEATURE_EVENT_UNMAP, HMM_REGION_SIZE);
	unread.fd = agent->uffd;
	other = map_blocks((void *)(HOME + 16 * HMM_BLOCK_SIZE), 1);
	arm(other, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	pthread_create(&unmapper, NULL, unmap, other);
	while (poll(&unread, 1, -1) != 1)
		;
	done = order(HMM_ORDER_OUT_MOVE, 0);
	pthread_create(&stepper, NULL, step, NULL);
	wait_for_state(done, HMM_ORDER_RUNNING);
	cr_assert_neq(__atomic_load_n(&done->state, __ATOMIC_SEQ_CST), HMM_ORDER_DONE);
	cr_assert_eq(home[5], golden[5], "the page is still here");
	cr_assert_eq(read(agent->uffd, &event, sizeof(event)), (ssize_t)sizeof(event));
	cr_assert_eq(event.event, UFFD_EVENT_UNMAP);
	pthread_join(unmapper, NULL);
	pthread_join(stepper, NULL);
	cr_assert_eq(done->state, HMM_ORDER_DONE);
	cr_assert_eq(count(done->moved), PAGES);
	check_shadow(done);
	end();
}

Test(agent, protect_and_zap)
{
	struct uffdio_writeprotect protect = {
		.range = { HOME, HMM_BLOCK_SIZE }, .mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	uint64_t entry;
	struct hmm_order *done;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	for (unsigned int i = 0; i < PAGES; i++)
		if (i != 7)
			memcpy(home + i * HMM_PAGE_SIZE, golden + i * HMM_PAGE_SIZE, HMM_PAGE_SIZE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	cr_assert_eq(ioctl(agent->uffd, UFFDIO_WRITEPROTECT, &protect), 0);
	done = order(HMM_ORDER_OUT_ZAP, 0);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->error, 0, "%s", strerror(-done->error));
	cr_assert_eq(count(done->moved), PAGES - 1);
	cr_assert(bit(done->hole, 7));
	check_shadow(done);
	for (unsigned int i = 0; i < PAGES; i++) {
		cr_assert_eq(pread(agent->pagemap, &entry, 8, (off_t)((HOME >> 12) + i) * 8), 8);
		cr_assert_eq(entry & PM_PRESENT, 0, "page %u is still with its owner", i);
	}
	end();
}

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

Test(agent, a_retired_agent_begins_nothing)
{
	struct hmm_order *done;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	orders->incarnation = HMM_INCARNATION_RESCUE;
	done = order(HMM_ORDER_OUT_MOVE, 0);
	cr_assert_not(hmmc_agent_step(agent));
	cr_assert_eq(done->state, HMM_ORDER_QUEUED);
	cr_assert_eq(agent->busy, 0);
	end();
}

Test(agent, slots_are_emptied_beside_the_next_move)
{
	struct hmm_order *out[8], *released[8];

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	cr_assert_eq(hmmc_agent_start(agent), 0);
	for (unsigned int round = 0; round < 8; round++) {
		struct uffdio_copy fill = {
			.dst = HOME, .src = (uintptr_t)golden, .len = HMM_BLOCK_SIZE,
		};

		cr_assert_eq(ioctl(agent->uffd, UFFDIO_COPY, &fill), 0, "round %u: %s", round,
			     strerror(errno));
		cr_assert_eq(fallocate(shadow, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				       HMM_BLOCK_SIZE),
			     0);
		/*
		 * The one slot is wanted again by the next round's order before it is known to be
		 * empty.
		 */
		out[round] = order(HMM_ORDER_OUT_MOVE, 0);
		released[round] = order(HMM_ORDER_RELEASE, 0);
		if (round == 0)
			hmmc_agent_attach(agent);
		__atomic_add_fetch(&orders->doorbell, 1, __ATOMIC_SEQ_CST);
		futex_wake_shared(&orders->doorbell, 1);
		wait_for_state(out[round], HMM_ORDER_DONE);
		cr_assert_eq(count(out[round]->moved), PAGES, "round %u: %s", round,
			     strerror(-out[round]->error));
		check_shadow(out[round]);
	}
	for (unsigned int round = 0; round < 8; round++) {
		wait_for_state(released[round], HMM_ORDER_DONE);
		cr_assert_eq(released[round]->error, 0);
	}
	hmmc_agent_stop(agent);
	cr_assert_eq(agent->sweeper.slots, 0);
	end();
}

/* ---- SYNC --------------------------------------------------------------------------- */

/* HOME lies at the beginning of its region. */
static struct hmm_order *order_sync(const uint32_t *run, uint32_t runs)
{
	struct hmm_order *new = order(HMM_ORDER_SYNC, 0);

	cr_assert_eq(HOME % HMM_REGION_SIZE, 0);
	new->slot = HMM_NO_SLOT;
	new->runs = runs;
	memcpy(new->run, run, runs * sizeof(*run));
	return new;
}

static void check_copy(unsigned int page, const void *expected)
{
	char copy[HMM_PAGE_SIZE];

	cr_assert_eq(pread(shadow, copy, sizeof(copy), (off_t)page * (off_t)sizeof(copy)), (ssize_t)sizeof(copy));
	cr_assert_eq(memcmp(copy, expected, sizeof(copy)), 0, "page %u of the copy", page);
}

Test(agent, runs_are_copied_and_what_is_not_there_is_a_hole)
{
	static const char zeros[HMM_PAGE_SIZE];
	const uint32_t run[] = { HMM_RUN(0, 1), HMM_RUN(2, 4), HMM_RUN(100, 50), HMM_RUN(200, 3) | HMM_RUN_ZERO,
				 HMM_RUN(511, 1) };
	struct hmm_order *done;
	struct stat stat;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	cr_assert_eq(madvise(home + 120 * HMM_PAGE_SIZE, 10 * HMM_PAGE_SIZE, MADV_DONTNEED), 0);
	/* An older copy of what is not there any more. */
	cr_assert_eq(pwrite(shadow, golden, 4 * HMM_PAGE_SIZE, 120 * (off_t)HMM_PAGE_SIZE), (ssize_t)(4 * HMM_PAGE_SIZE));
	cr_assert_eq(pwrite(shadow, golden, HMM_PAGE_SIZE, 201 * (off_t)HMM_PAGE_SIZE), (ssize_t)HMM_PAGE_SIZE);
	done = order_sync(run, 5);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->state, HMM_ORDER_DONE);
	cr_assert_eq(done->error, 0, "%s", strerror(-done->error));
	cr_assert_eq(count(done->moved), 1 + 4 + 40 + 1);
	cr_assert_eq(count(done->hole), 10 + 3);
	cr_assert_eq(count(done->busy), 0);
	/* By their numbers in the order: 0; 1 to 4; 5 to 54, of which 25 to 34 are not there; 55 to 57; 58. */
	for (unsigned int i = 0; i < 59; i++)
		cr_assert_eq(bit(done->hole, i), (i >= 25 && i < 35) || (i >= 55 && i < 58), "number %u", i);
	check_copy(0, golden);
	check_copy(1, zeros);
	for (unsigned int i = 2; i < 6; i++)
		check_copy(i, golden + i * HMM_PAGE_SIZE);
	for (unsigned int i = 100; i < 150; i++)
		check_copy(i, i >= 120 && i < 130 ? zeros : golden + i * HMM_PAGE_SIZE);
	for (unsigned int i = 200; i < 203; i++)
		check_copy(i, zeros);
	check_copy(511, golden + 511 * HMM_PAGE_SIZE);
	cr_assert_eq(fstat(shadow, &stat), 0);
	cr_assert_eq((size_t)stat.st_blocks * 512, 46 * HMM_PAGE_SIZE, "holes take no memory");
	end();
}

Test(agent, a_page_that_may_not_be_read_is_busy_and_the_others_are_copied)
{
	const uint32_t run[] = { HMM_RUN(0, 100) }, bad[] = { HMM_RUN(262100, 100) };
	struct hmm_order *done;

	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, HMM_REGION_SIZE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	cr_assert_eq(mprotect(home + 40 * HMM_PAGE_SIZE, 2 * HMM_PAGE_SIZE, PROT_NONE), 0);
	done = order_sync(run, 1);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->error, 0);
	for (unsigned int i = 0; i < 100; i++) {
		cr_assert_eq(bit(done->busy, i), i == 40 || i == 41, "page %u", i);
		cr_assert_eq(bit(done->moved, i), i != 40 && i != 41, "page %u", i);
		if (i != 40 && i != 41)
			check_copy(i, golden + i * HMM_PAGE_SIZE);
	}
	/* Beyond the region: hmmd made a mistake, and nothing is touched. */
	done = order_sync(bad, 1);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_eq(done->error, -EINVAL);
	cr_assert_eq(count(done->moved) + count(done->hole), 0);
	mprotect(home, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE);
	end();
}

Test(agent, a_shadow_without_room_says_so)
{
	const uint32_t run[] = { HMM_RUN(0, 2), HMM_RUN(300, 20) };
	struct hmm_order *done;

	/* One that ends after 256 pages. */
	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, 256 * HMM_PAGE_SIZE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	done = order_sync(run, 2);
	cr_assert(hmmc_agent_step(agent));
	cr_assert_lt(done->error, 0);
	cr_assert_eq(count(done->moved), 2);
	check_copy(0, golden);
	end();
}
