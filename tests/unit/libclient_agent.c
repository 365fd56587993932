/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libclient_agent.c - pages go out and come home, and orders are held and taken back: every byte is looked at.
 */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent_fixture.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(agent);

/*
 * The library's calls come through here. As Linux 6.18 does where a page changes in the middle of it, a MOVE moves and does
 * not count: nothing of it, or all but its first page.
 */
static enum { COUNTS, COUNTS_NOTHING, COUNTS_ONE, COUNTS_ONE_AND_IS_HELD, COUNTS_NOTHING_AND_IS_DISCARDED } forgetful;
static unsigned int forgotten;
/* The block's mapping takes no MOVE any more; and so many times there is no memory to read what is copied there instead. */
static bool moves_nothing_home;
static unsigned int unreadable;

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
	if (request == UFFDIO_COPY && unreadable) {
		unreadable--;
		errno = EFAULT;
		return -1;
	}
	if (request == UFFDIO_MOVE && moves_nothing_home && ((struct uffdio_move *)argument)->dst - HOME < HMM_BLOCK_SIZE) {
		errno = EINVAL;
		return -1;
	}
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

/* Of a block, to a shadow that has room for ten of its pages. */
static struct hmm_order *order_out_without_room(void)
{
	begin(HMM_POOL_KIND_MEMFD, UFFD_FEATURE_MOVE, 10 * HMM_PAGE_SIZE);
	madvise(home, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	memcpy(home, golden, HMM_BLOCK_SIZE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	return order(HMM_ORDER_OUT_MOVE, 0);
}

Test(agent, no_room_in_the_shadow_costs_nothing)
{
	struct hmm_order *done = order_out_without_room();

	cr_assert(hmmc_agent_step(agent));
	cr_assert_lt(done->error, 0);
	cr_assert_eq(count(done->moved) + count(done->busy), PAGES);
	cr_assert_eq(count(done->moved), 0);
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0, "all is home");
	end();
}

Test(agent, no_room_in_the_shadow_and_no_memory_to_read_what_goes_back)
{
	struct hmm_order *done = order_out_without_room();

	moves_nothing_home = true;
	unreadable = 3;
	cr_assert(hmmc_agent_step(agent));
	moves_nothing_home = false;
	cr_assert_eq(unreadable, 0);
	cr_assert_eq(count(done->moved), 0);
	for (unsigned int i = 0; i < PAGES; i++)
		cr_assert(is_there(HOME + i * HMM_PAGE_SIZE), "page %u is thrown away with the slot", i);
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0, "all is home");
	end();
}

/* What goes back is there, told by the count or not; and what was discarded there since stays so. */
Test(agent, no_room_in_the_shadow_and_a_move_that_does_not_count)
{
	struct hmm_order *done;

	for (unsigned int discarded = 0; discarded < 2; discarded++) {
		done = order_out_without_room();
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
