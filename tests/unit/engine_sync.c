// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_sync.c - copies of a tracked mirror: the test is the engine that finds what was written, and
 * the agent that ends orders as it likes. Whatever an order came to, what it did not copy is told again.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine_fixture.h"
#include "tests/leakcheck.h"
#include "tracking/tracking.h"

LEAKCHECKED_SUITE(sync);

#define PAGES	(3 * HMM_BLOCK_PAGES)	/* over a region's end */

static struct fixture fixture;
static bool found[PAGES];		/* by the next look */
static int look_result;
static uint32_t tracked;

static int fake_look(struct tracker *tracker, uint64_t at, uint64_t end)
{
	for (; at < end && !look_result; at += HMM_PAGE_SIZE) {
		bool *page = &found[(at - ROOM_START) >> HMM_PAGE_SHIFT];

		if (*page)
			track_sight(tracker, at, at + HMM_PAGE_SIZE, SIGHT_WRITTEN);
		*page = false;
	}
	return look_result;
}

static bool copied[PAGES];		/* since what_is_mapped_cannot_be_told() began */
static unsigned int vma_calls, vma_fails;

static int failing_vma(int maps, uint64_t addr, struct kernel_vma *vma)
{
	return ++vma_calls == vma_fails ? -EIO : kernel_real.vma_at(maps, addr, vma);
}

static const struct tracking_ops fake = { .name = "fake", .look = fake_look };

static void declare(struct hmm_attribute *attribute, const void *data)
{
	attribute->flags |= HMM_ATTRIBUTE_UNPINNED;
}

static struct letter *send(struct letter *letter, void *message)
{
	letter->message = message;
	letter->peer = DRIVER;
	owner_request(fixture.owner, letter);
	owner_run(fixture.owner);
	return letter;
}

static int start_with(uint32_t mirror, uint64_t addr, uint64_t length)
{
	struct hmm_msg_dirty_start *message = calloc(1, sizeof(*message));

	HMM_MSG_INIT(*message, HMM_OP_DIRTY_START, 0);
	message->owner = fixture.owner->id;
	message->mirror = mirror;
	message->addr = addr;
	message->length = length;
	send(letter_new(LETTER_REQUEST), message);
	return fixture_reply(&fixture);
}

static int start(uint64_t addr, uint64_t length)
{
	return start_with(fixture.mirror->id, addr, length);
}

static void begin_with(const struct tracking_ops *ops, pid_t pid)
{
	struct owner *owner;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	owner = fixture.owner;
	owner->peer = 1;
	owner->pid = pid;
	fixture.mirror->flags |= HMM_MIRROR_FLAGS_TRACKED;
	fixture.mirror->peer = DRIVER;
	fixture.engine.tracking.ops = ops;
	look_result = 0;
	memset(found, 0, sizeof(found));
	cr_assert(eq(int, attribute_edit(&owner->attributes, ROOM_START, ROOM_END, declare, NULL), 0));
	cr_assert(eq(int, start(ROOM_START, PAGES * HMM_PAGE_SIZE), 0));
	tracked = owner->next_track;
	cr_assert(eq(u64, fixture.device->used, PAGES * HMM_PAGE_SIZE));
}

static void begin(void)
{
	begin_with(&fake, getpid());
}

/* Asks for a sync of all. Its orders are not ended by themselves. */
static void ask(void)
{
	struct hmm_msg_mirror_sync *message = calloc(1, sizeof(*message));

	HMM_MSG_INIT(*message, HMM_OP_MIRROR_SYNC, 0);
	message->owner = fixture.owner->id;
	message->dirty = tracked;
	message->addr = ROOM_START;
	message->length = PAGES * HMM_PAGE_SIZE;
	send(letter_new(LETTER_REQUEST), message);
}

/* One turn of the worker. */
static void turn(void)
{
	fixture_later(&fixture, NS_PER_MS);
	owner_run(fixture.owner);
}

static struct hmm_order *order_at(uint32_t at)
{
	return &fixture.owner->orders->ring[at % HMM_ORDERS_RING];
}

/* Of the orders that hmmd has not seen the end of. */
static unsigned int count_orders(uint32_t state)
{
	unsigned int n = 0;

	for (uint32_t at = fixture.owner->reaped; at != fixture.owner->produced; at++)
		n += order_at(at)->state == state;
	return n;
}

/*
 * The agent ends all orders that it has, having copied pages whose number in the order is not a multiple of @miss,
 * and passes those that were taken back.
 */
static unsigned int work(unsigned int miss)
{
	struct owner *owner = fixture.owner;
	unsigned int pages = 0;

	for (uint32_t at = owner->reaped; at != owner->produced; at++) {
		struct hmm_order *order = order_at(at);
		unsigned int n = 0;

		owner->orders->consumed = at + 1;
		if (order->state == HMM_ORDER_CANCELLED)
			continue;
		cr_assert(eq(u32, order->kind, HMM_ORDER_SYNC));
		cr_assert(order->addr == ROOM - HMM_REGION_SIZE || order->addr == ROOM);
		for (uint32_t i = 0; i < order->runs; i++) {
			uint64_t first = order->addr + ((uint64_t)HMM_RUN_PAGE(order->run[i]) << HMM_PAGE_SHIFT);

			n += HMM_RUN_PAGES(order->run[i]);
			for (unsigned int k = 0; k < HMM_RUN_PAGES(order->run[i]); k++)
				copied[((first - ROOM_START) >> HMM_PAGE_SHIFT) + k] = true;
		}
		cr_assert(le(uint, n, HMM_BLOCK_PAGES));
		for (unsigned int i = 0; i < n; i++)
			if (!miss || i % miss)
				order->moved[i / 64] |= 1ULL << (i % 64);
			else
				order->busy[i / 64] |= 1ULL << (i % 64);
		pages += n;
		order->state = HMM_ORDER_DONE;
	}
	order_reap(owner);
	owner_run(owner);
	return pages;
}

/* Until there is an answer. @asked: pages that were in orders. */
static int answer(unsigned int miss, unsigned int *asked)
{
	unsigned int all = 0;
	int error = 1;

	for (unsigned int i = 0; i < 1000 && error == 1; i++) {
		all += work(miss);
		turn();
		error = fixture_reply(&fixture);
	}
	if (asked)
		*asked = all;
	return error;
}

static unsigned int sync_all(void)
{
	unsigned int asked;

	ask();
	cr_assert(eq(int, answer(0, &asked), 0));
	return asked;
}

static void end(void)
{
	owner_gone(fixture.owner);
	fixture_reply(&fixture);
	fixture_end(&fixture);
}

Test(sync, what_was_written_is_asked_for_once)
{
	begin();
	cr_assert(eq(uint, sync_all(), PAGES));
	cr_assert(eq(uint, sync_all(), 0));
	for (unsigned int i = 0; i < PAGES; i += 7)
		found[i] = true;
	cr_assert(eq(uint, sync_all(), (PAGES + 6) / 7));
	cr_assert(eq(uint, sync_all(), 0));
	end();
}

Test(sync, what_could_not_be_copied_is_tried_again_and_then_an_error)
{
	unsigned int asked;

	begin();
	sync_all();
	memset(found, true, sizeof(found));
	ask();
	cr_assert(eq(int, answer(10, &asked), -EBUSY));
	cr_assert(lt(uint, PAGES, asked), "some were tried again");
	/* And are told by the next one. */
	asked = sync_all();
	cr_assert(lt(uint, 0, asked));
	cr_assert(lt(uint, asked, PAGES / 10));
	cr_assert(eq(uint, sync_all(), 0));
	end();
}

Test(sync, a_shadow_that_has_no_room_is_an_error_and_nothing_is_lost)
{
	struct owner *owner;
	struct hmm_order *order;

	begin();
	owner = fixture.owner;
	ask();
	turn();
	order = &owner->orders->ring[owner->reaped % HMM_ORDERS_RING];
	cr_assert(ne(u32, owner->produced, owner->reaped));
	order->error = -ENOSPC;
	order->state = HMM_ORDER_DONE;
	order_reap(owner);
	cr_assert(eq(int, answer(0, NULL), -ENOSPC));
	cr_assert(lt(uint, 0, sync_all()));
	cr_assert(eq(uint, sync_all(), 0));
	end();
}

Test(sync, orders_that_never_end_count_as_not_done)
{
	begin();
	ask();
	turn();
	order_abandon(fixture.owner);
	/* The others of it are done. */
	cr_assert(eq(int, answer(0, NULL), 0));
	cr_assert(eq(uint, sync_all(), 0));
	end();
}

Test(sync, a_look_that_fails_is_an_error_and_nothing_is_lost)
{
	begin();
	sync_all();
	memset(found, true, sizeof(found));
	look_result = -ESRCH;
	ask();
	cr_assert(eq(int, answer(0, NULL), -ESRCH));
	look_result = 0;
	cr_assert(eq(uint, sync_all(), PAGES));
	end();
}

static void stop(void)
{
	struct hmm_msg_dirty_stop *message = calloc(1, sizeof(*message));

	HMM_MSG_INIT(*message, HMM_OP_DIRTY_STOP, 0);
	message->owner = fixture.owner->id;
	message->dirty = tracked;
	send(letter_new(LETTER_REQUEST), message);
}

Test(sync, a_range_that_is_let_go_of_meanwhile_gives_its_room_back_last)
{
	begin();
	ask();
	turn();
	cr_assert(lt(uint, 1, count_orders(HMM_ORDER_QUEUED)));
	order_at(fixture.owner->reaped)->state = HMM_ORDER_RUNNING;
	stop();
	cr_assert(eq(int, fixture_reply(&fixture), 0));
	/* The agent is at it still: no other may begin there. */
	cr_assert(eq(uint, count_orders(HMM_ORDER_RUNNING), 1));
	cr_assert(eq(uint, count_orders(HMM_ORDER_QUEUED), 0));
	cr_assert(eq(u64, fixture.device->used, PAGES * HMM_PAGE_SIZE));
	cr_assert(eq(int, start(ROOM_START, HMM_PAGE_SIZE), -EAGAIN));
	cr_assert(eq(int, answer(0, NULL), -ENOENT));
	cr_assert(eq(u64, fixture.device->used, 0));
	cr_assert(eq(int, start(ROOM_START, HMM_PAGE_SIZE), 0));
	end();
}

Test(sync, an_agent_that_is_stopped_keeps_nobody_who_lets_go)
{
	begin();
	/* Until the ring has no room for more of what was taken back, and over that. */
	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++) {
		ask();
		turn();
		cr_assert(eq(int, fixture_reply(&fixture), 1));
		stop();
		owner_run(fixture.owner);
		while (fixture_reply(&fixture) != 1)
			;
		cr_assert(eq(uint, count_orders(HMM_ORDER_QUEUED), 0));
		cr_assert(eq(u64, fixture.device->used, 0), "round %u", i);
		cr_assert(eq(int, start(ROOM_START, PAGES * HMM_PAGE_SIZE), 0));
		tracked = fixture.owner->next_track;
	}
	/* It goes on: nothing of what was taken back was taken for copied. */
	work(0);
	cr_assert(eq(uint, sync_all(), PAGES));
	/* The driver dies. */
	memset(found, true, sizeof(found));
	ask();
	turn();
	cr_assert(lt(uint, 0, count_orders(HMM_ORDER_QUEUED)));
	owner_peer_gone(fixture.owner, DRIVER);
	owner_run(fixture.owner);
	cr_assert(eq(uint, count_orders(HMM_ORDER_QUEUED), 0));
	cr_assert(eq(u64, fixture.device->used, 0));
	cr_assert(eq(uint, fixture.mirror->migrations, 0));
	end();
}

Test(sync, an_owner_that_closes_takes_its_orders_back)
{
	begin();
	ask();
	turn();
	cr_assert(lt(uint, 1, count_orders(HMM_ORDER_QUEUED)));
	/* What the agent copies of it meanwhile goes with the owner. */
	order_at(fixture.owner->reaped)->state = HMM_ORDER_RUNNING;
	owner_close(fixture.owner);
	owner_run(fixture.owner);
	cr_assert(eq(uint, count_orders(HMM_ORDER_CANCELLED), fixture.owner->produced - fixture.owner->reaped));
	cr_assert(eq(int, fixture_reply(&fixture), -ESTALE));
	/* The next turn would free it. */
	cr_assert(eq(uint, fixture.owner->jobs, 0));
	end();
}

Test(sync, an_owner_that_closes_waits_for_what_its_agent_has_done)
{
	begin();
	ask();
	turn();
	/* It says so in a moment. */
	order_at(fixture.owner->reaped)->state = HMM_ORDER_COMMIT;
	owner_close(fixture.owner);
	for (int i = 0; i < 5; i++) {
		turn();
		cr_assert(eq(int, fixture_reply(&fixture), 1));
	}
	work(0);
	cr_assert(eq(int, fixture_reply(&fixture), -ESTALE));
	cr_assert(eq(uint, fixture.owner->jobs, 0));
	end();
}

Test(sync, what_is_mapped_cannot_be_told)
{
	static struct kernel_ops ops;
	unsigned int errors = 0;

	begin();
	/* Several mappings in one order. */
	cr_assert(eq(int, mprotect((void *)(ROOM_START + 100 * HMM_PAGE_SIZE), 100 * HMM_PAGE_SIZE, PROT_READ), 0));
	sync_all();
	ops = kernel_real;
	ops.vma_at = failing_vma;
	kernel = &ops;
	for (unsigned int call = 1; call < 40; call++) {
		memset(found, true, sizeof(found));
		memset(copied, false, sizeof(copied));
		vma_calls = 0;
		vma_fails = call;
		ask();
		errors += answer(0, NULL) != 0;
		/* What the failed one had taken is told now. */
		vma_fails = 0;
		sync_all();
		for (unsigned int i = 0; i < PAGES; i++)
			cr_assert(copied[i], "call %u failed, and page %u was never copied", call, i);
	}
	kernel = &kernel_real;
	cr_assert(lt(uint, 3, errors));
	end();
}

Test(sync, refusals)
{
	begin();
	cr_assert(eq(int, start(ROOM_START + PAGES * HMM_PAGE_SIZE - HMM_PAGE_SIZE, 2 * HMM_PAGE_SIZE), -EEXIST));
	cr_assert(eq(int, start(ROOM_START + (1UL << 32), POOL), -ENOSPC));
	cr_assert(eq(u64, fixture.device->used, PAGES * HMM_PAGE_SIZE));
	fixture.mirror->flags &= ~HMM_MIRROR_FLAGS_TRACKED;
	cr_assert(eq(int, start(ROOM_START + (1UL << 32), HMM_PAGE_SIZE), -EOPNOTSUPP));
	fixture.mirror->flags |= HMM_MIRROR_FLAGS_TRACKED;
	fixture.mirror->peer = DRIVER + 1;
	cr_assert(eq(int, start(ROOM_START + (1UL << 32), HMM_PAGE_SIZE), -ENOENT));
	fixture.mirror->peer = DRIVER;
	cr_assert(eq(uint, sync_all(), PAGES));
	end();
}

/* ---- a thread that comes to stand late ------------------------------------------------------ */

static struct tracking_ops freezing;
static int told[2], on[2];		/* pipes: it may go on; it has */

/* In vfork(), where no tracer's word reaches it. */
static void be_late(void)
{
	char byte;

	close(told[1]);
	if (vfork() == 0)
		_exit(read(told[0], &byte, 1) != 1);
	if (write(on[1], "x", 1) == 1)
		pause();
	_exit(0);
}

/* A sync has tried to stop it, and will try again. */
static pid_t begin_late(void)
{
	pid_t child;

	cr_assert_eq(pipe(told) | pipe(on), 0);
	child = fork();
	cr_assert_neq(child, -1);
	if (!child)
		be_late();
	freezing = tracking_soft_dirty;
	freezing.look = fake_look;
	/* Until it is there. */
	usleep(20000);
	begin_with(&freezing, child);
	ask();
	cr_assert(eq(int, fixture_reply(&fixture), 1));
	cr_assert(eq(uint, fixture.owner->tracker->stopped.count, 1));
	return child;
}

static bool goes_on(void)
{
	struct pollfd fd = { .fd = on[0], .events = POLLIN };

	return poll(&fd, 1, 1) == 1;
}

static void end_late(pid_t child)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	for (int i = 0; i < 2; i++) {
		close(told[i]);
		close(on[i]);
	}
}

#define TURNS	20000	/* they only end what hangs */

Test(sync, a_thread_that_stands_when_its_driver_is_gone_goes_on)
{
	pid_t child = begin_late();
	unsigned int turns = 0;

	owner_peer_gone(fixture.owner, DRIVER);
	turn();
	cr_assert(eq(int, fixture_reply(&fixture), -ENOENT));
	cr_assert_eq(write(told[1], "x", 1), 1);
	for (; !goes_on(); turn())
		cr_assert(lt(uint, ++turns, TURNS), "the owner's thread stands still");
	cr_assert(eq(uint, fixture.owner->tracker->stopped.count, 0));
	end_late(child);
	end();
}

/* hmmd ends: a thread that does not come to stand, for as long as it likes, holds up neither that nor who asks. */
Test(sync, an_owner_that_closes_waits_for_no_thread)
{
	pid_t child = begin_late();
	struct hmm_msg_dirty_read *message = calloc(1, sizeof(*message));

	cr_assert(eq(int, start_with(0, ROOM_START, HMM_PAGE_SIZE), 0));
	HMM_MSG_INIT(*message, HMM_OP_DIRTY_READ, 0);
	message->owner = fixture.owner->id;
	message->dirty = fixture.owner->next_track;
	message->addr = ROOM_START;
	message->length = HMM_PAGE_SIZE;
	send(letter_new(LETTER_REQUEST), message);
	turn();
	cr_assert(eq(int, fixture_reply(&fixture), 1));
	owner_close(fixture.owner);
	/* The next turn would free it. */
	owner_run(fixture.owner);
	TAILQ_CONCAT(&fixture.owner->runnable, &fixture.owner->retry, link);
	owner_run(fixture.owner);
	cr_assert(eq(int, fixture_reply(&fixture), -ESTALE));
	cr_assert(eq(uint, fixture.owner->tracker->stopped.count, 1));
	cr_assert_null(TAILQ_FIRST(&fixture.owner->retry));
	cr_assert(eq(uint, fixture.owner->jobs, 0));
	end_late(child);
	end();
}

Test(sync, or_when_its_owner_is)
{
	pid_t child = begin_late();
	unsigned int turns = 0;

	owner_gone(fixture.owner);
	cr_assert(eq(int, fixture_reply(&fixture), -ESTALE));
	owner_free(fixture.owner);
	fixture.owner = NULL;
	cr_assert_eq(write(told[1], "x", 1), 1);
	for (; !goes_on(); tracking_thaw(&fixture.worker))
		cr_assert(lt(uint, ++turns, TURNS), "the thread of an owner that is no more stands still");
	end_late(child);
	fixture_end(&fixture);
}
