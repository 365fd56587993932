// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_reactor.c - the reactor by io_uring and by epoll: the same promises.
 * What is ready is called, however many; what was removed never is, even from
 * inside a call; a deadline ends the wait.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "engine/reactor.h"
#include "engine_random.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(reactor);

#define MS 1000000LL

struct counted {
	struct source source;	/* first: a source is cast to it */
	struct reactor *reactor;
	unsigned int calls;
	uint64_t value;
	struct counted *victim;
};

static struct reactor *begin(bool no_io_uring)
{
	struct reactor *reactor = NULL;

	cr_assert(eq(int, reactor_new(no_io_uring, &reactor), 0));
	if (no_io_uring)
		cr_assert(not(reactor_is_uring(reactor)));
	reactor_start(reactor);
	return reactor;
}

static int new_eventfd(void)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	cr_assert(ge(int, fd, 0));
	return fd;
}

static void signal_fd(int fd)
{
	uint64_t one = 1;

	cr_assert(eq(int, (int)write(fd, &one, sizeof(one)), 8));
}

static void count(struct source *source)
{
	struct counted *me = (struct counted *)source;
	uint64_t n;

	me->calls++;
	if (read(source->fd, &n, sizeof(n)) == (ssize_t)sizeof(n))
		me->value += n;
}

static void add(struct reactor *reactor, struct counted *me, void (*ready)(struct source *source))
{
	me->reactor = reactor;
	cr_assert(eq(int, reactor_add(reactor, &me->source, new_eventfd(), ready), 0));
	cr_assert(ne(u32, me->source.slot, 0));
}

static void drop(struct counted *me)
{
	reactor_remove(me->reactor, &me->source);
	cr_assert(eq(u32, me->source.slot, 0));
	close(me->source.fd);
}

/* Until nothing is ready any more. */
static void settle(struct reactor *reactor)
{
	int n;

	do {
		n = reactor_wait(reactor, 0);
		cr_assert(ge(int, n, 0));
	} while (n);
	/* io_uring may post a little later: once more, with a wait. */
	cr_assert(ge(int, reactor_wait(reactor, MS), 0));
}

static void calls_what_is_ready(bool epoll)
{
	struct reactor *reactor = begin(epoll);
	struct counted a = { 0 }, b = { 0 };

	add(reactor, &a, count);
	add(reactor, &b, count);
	settle(reactor);
	cr_expect(eq(uint, a.calls + b.calls, 0), "nothing was ready");
	for (int i = 1; i <= 1000; i++) {
		signal_fd(a.source.fd);
		while (a.value < (uint64_t)i)
			cr_assert(ge(int, reactor_wait(reactor, -1), 0));
	}
	cr_expect(eq(u64, a.value, 1000), "a poll ended after its first answers");
	cr_expect(eq(uint, b.calls, 0));
	drop(&a);
	drop(&b);
	reactor_free(reactor);
}

Test(reactor, calls_what_is_ready_uring) { calls_what_is_ready(false); }
Test(reactor, calls_what_is_ready_epoll) { calls_what_is_ready(true); }

/* As worker.c has it: made and given its first source by one thread, waited on by another. */
static void *start_and_wait(void *data)
{
	struct counted *me = data;

	reactor_start(me->reactor);
	while (!me->value)
		cr_assert(ge(int, reactor_wait(me->reactor, -1), 0));
	drop(me);
	return NULL;
}

static void waited_on_by_another_thread(bool epoll)
{
	struct counted a = { 0 };
	pthread_t thread;

	cr_assert(eq(int, reactor_new(epoll, &a.reactor), 0));
	add(a.reactor, &a, count);
	cr_assert(eq(int, pthread_create(&thread, NULL, start_and_wait, &a), 0));
	signal_fd(a.source.fd);
	pthread_join(thread, NULL);
	cr_expect(eq(u64, a.value, 1));
	reactor_free(a.reactor);
}

Test(reactor, waited_on_by_another_thread_uring) { waited_on_by_another_thread(false); }
Test(reactor, waited_on_by_another_thread_epoll) { waited_on_by_another_thread(true); }

static void ready_before_it_was_added(bool epoll)
{
	struct reactor *reactor = begin(epoll);
	struct counted a = { 0 };
	int fd = new_eventfd();

	signal_fd(fd);
	cr_assert(eq(int, reactor_add(reactor, &a.source, fd, count), 0));
	a.reactor = reactor;
	cr_expect(eq(int, reactor_wait(reactor, -1), 1));
	cr_expect(eq(u64, a.value, 1));
	drop(&a);
	reactor_free(reactor);
}

Test(reactor, ready_before_it_was_added_uring) { ready_before_it_was_added(false); }
Test(reactor, ready_before_it_was_added_epoll) { ready_before_it_was_added(true); }

static int64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 * MS + ts.tv_nsec;
}

/* Never shorter than asked for (a wait that ends early spins), and it does end. */
static void deadlines(bool epoll)
{
	struct reactor *reactor = begin(epoll);
	struct counted a = { 0 };
	int64_t start;

	add(reactor, &a, count);
	settle(reactor);
	for (int64_t wait = 0; wait <= 8 * MS; wait = wait ? wait * 2 : 100000) {
		start = now();
		cr_expect(eq(int, reactor_wait(reactor, wait), 0));
		cr_expect(ge(i64, now() - start, wait));
	}
	signal_fd(a.source.fd);
	cr_expect(eq(int, reactor_wait(reactor, 3600 * 1000 * MS), 1),
		  "ready: the deadline does not count");
	drop(&a);
	reactor_free(reactor);
}

Test(reactor, deadlines_uring) { deadlines(false); }
Test(reactor, deadlines_epoll) { deadlines(true); }

/* Removed, then closed and the number used again: nobody may be called for the old one. */
static void removed_is_not_called(bool epoll)
{
	struct reactor *reactor = begin(epoll);
	struct counted a = { 0 }, b = { 0 };
	int number;

	for (int i = 0; i < 200; i++) {
		add(reactor, &a, count);
		if (i % 2)
			cr_assert(ge(int, reactor_wait(reactor, 0), 0));
		signal_fd(a.source.fd);
		number = a.source.fd;
		drop(&a);
		add(reactor, &b, count);
		cr_assert(eq(int, b.source.fd, number), "the same number");
		settle(reactor);
		cr_assert(eq(uint, a.calls, 0));
		cr_assert(eq(uint, b.calls, 0), "called for what its predecessor had");
		signal_fd(b.source.fd);
		while (!b.calls)
			cr_assert(ge(int, reactor_wait(reactor, -1), 0));
		cr_assert(eq(u64, b.value, 1));
		b = (struct counted){ .source = b.source, .reactor = reactor };
		drop(&b);
	}
	reactor_remove(reactor, &a.source);	/* not added: nothing happens */
	reactor_free(reactor);
}

Test(reactor, removed_is_not_called_uring) { removed_is_not_called(false); }
Test(reactor, removed_is_not_called_epoll) { removed_is_not_called(true); }

/* Nor is its file held: whoever waits for the last reference to go would wait for ever. */
static void removed_is_let_go(bool no_io_uring)
{
	struct reactor *reactor = begin(no_io_uring);
	struct counted me = { .reactor = reactor };
	int ends[2];

	for (unsigned int round = 0; round < 4; round++) {
		cr_assert(eq(int, pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0));
		cr_assert(eq(int, reactor_add(reactor, &me.source, ends[0], count), 0));
		settle(reactor);
		/* Ready, and nobody has looked yet; or not. */
		if (round % 2)
			cr_assert(eq(int, (int)write(ends[1], "x", 1), 1));
		reactor_remove(reactor, &me.source);
		close(ends[0]);
		settle(reactor);
		cr_assert(eq(int, (int)write(ends[1], "x", 1), -1), "round %u: somebody could still read it",
			  round);
		cr_assert(eq(int, errno, EPIPE));
		close(ends[1]);
	}
	reactor_free(reactor);
}

Test(reactor, removed_is_let_go_uring) { signal(SIGPIPE, SIG_IGN); removed_is_let_go(false); }
Test(reactor, removed_is_let_go_epoll) { signal(SIGPIPE, SIG_IGN); removed_is_let_go(true); }

static void count_and_remove_victim(struct source *source)
{
	struct counted *me = (struct counted *)source;

	count(source);
	if (me->victim && me->victim->source.slot) {
		drop(me->victim);
		/* What the header promises: it may be freed now. */
		memset(&me->victim->source, 0xff, sizeof(me->victim->source));
		me->victim->source.slot = 0;
	}
}

static void remove_another_from_inside(bool epoll)
{
	struct reactor *reactor = begin(epoll);

	for (int i = 0; i < 50; i++) {
		struct counted pair[2] = { 0 };

		pair[0].victim = &pair[1];
		pair[1].victim = &pair[0];
		add(reactor, &pair[0], count_and_remove_victim);
		add(reactor, &pair[1], count_and_remove_victim);
		signal_fd(pair[0].source.fd);
		signal_fd(pair[1].source.fd);
		settle(reactor);
		cr_assert(eq(uint, pair[0].calls + pair[1].calls, 1),
			  "who was removed was called as well");
		drop(&pair[pair[0].calls ? 0 : 1]);
	}
	reactor_free(reactor);
}

Test(reactor, remove_another_from_inside_uring) { remove_another_from_inside(false); }
Test(reactor, remove_another_from_inside_epoll) { remove_another_from_inside(true); }

static void remove_itself(struct source *source)
{
	struct counted *me = (struct counted *)source;

	count(source);
	drop(me);
}

static struct counted born[64];
static unsigned int n_born;

static void give_birth(struct source *source)
{
	struct counted *me = (struct counted *)source;

	count(source);
	for (int i = 0; i < 4 && n_born < 64; i++) {
		add(me->reactor, &born[n_born], give_birth);
		signal_fd(born[n_born++].source.fd);
	}
}

static void remove_itself_and_add_from_inside(bool epoll)
{
	struct reactor *reactor = begin(epoll);
	struct counted a = { 0 };

	add(reactor, &a, remove_itself);
	signal_fd(a.source.fd);
	settle(reactor);
	cr_expect(eq(uint, a.calls, 1));
	cr_expect(eq(u32, a.source.slot, 0));

	n_born = 1;
	memset(born, 0, sizeof(born));
	add(reactor, &born[0], give_birth);
	signal_fd(born[0].source.fd);
	settle(reactor);
	cr_expect(eq(uint, n_born, 64));
	for (unsigned int i = 0; i < 64; i++) {
		cr_expect(eq(uint, born[i].calls, 1), "source %u", i);
		drop(&born[i]);
	}
	reactor_free(reactor);
}

Test(reactor, remove_itself_and_add_from_inside_uring) { remove_itself_and_add_from_inside(false); }
Test(reactor, remove_itself_and_add_from_inside_epoll) { remove_itself_and_add_from_inside(true); }

/* Far more than rings and batches hold, all at once, again and again. */
#define MANY 900U

static void many(bool epoll)
{
	struct counted *sources = calloc(MANY, sizeof(*sources));
	struct reactor *reactor = begin(epoll);

	for (unsigned int i = 0; i < MANY; i++)
		add(reactor, &sources[i], count);
	for (uint64_t round = 1; round <= 20; round++) {
		unsigned int late = MANY;

		for (unsigned int i = 0; i < MANY; i++)
			signal_fd(sources[i].source.fd);
		/* Within a second each (the wait ends a hang; it is no measure). */
		for (int tries = 0; late && tries < 1000; tries++) {
			cr_assert(ge(int, reactor_wait(reactor, MS), 0));
			late = 0;
			for (unsigned int i = 0; i < MANY; i++)
				late += sources[i].value != round;
		}
		cr_assert(eq(uint, late, 0), "round %lu: %u of %u were never called", round, late,
			  MANY);
	}
	for (unsigned int i = 0; i < MANY; i++)
		drop(&sources[i]);
	reactor_free(reactor);
	free(sources);
}

Test(reactor, many_uring) { many(false); }
Test(reactor, many_epoll) { many(true); }

/* What 64 sources do, at random: added, removed, signalled, waited for. */
static void at_random(bool epoll)
{
	struct random random = random_begin("reactor");
	struct reactor *reactor = begin(epoll);
	struct counted sources[64] = { 0 };
	uint64_t expected[64] = { 0 };
	bool added[64] = { 0 };

	for (int step = 0; step < 5000; step++) {
		unsigned int i = random_below(&random, 64);

		switch (random_below(&random, 4)) {
		case 0:
			if (added[i])
				drop(&sources[i]);
			else
				add(reactor, &sources[i], count);
			added[i] = !added[i];
			expected[i] = sources[i].value;
			break;
		case 1:
		case 2:
			if (!added[i])
				break;
			signal_fd(sources[i].source.fd);
			expected[i]++;
			break;
		default:
			settle(reactor);
			for (unsigned int j = 0; j < 64; j++)
				cr_assert(eq(u64, sources[j].value, expected[j]),
					  "step %d, source %u", step, j);
		}
	}
	for (unsigned int i = 0; i < 64; i++)
		if (added[i])
			drop(&sources[i]);
	reactor_free(reactor);
}

Test(reactor, at_random_uring) { at_random(false); }
Test(reactor, at_random_epoll) { at_random(true); }

static void *signal_soon(void *data)
{
	struct timespec a_while = { .tv_nsec = 5 * MS };

	nanosleep(&a_while, NULL);
	signal_fd(*(int *)data);
	return NULL;
}

static void another_thread_wakes_it(bool epoll)
{
	struct reactor *reactor = begin(epoll);
	struct counted a = { 0 };
	pthread_t thread;

	add(reactor, &a, count);
	for (unsigned int i = 1; i <= 10; i++) {
		cr_assert(eq(int, pthread_create(&thread, NULL, signal_soon, &a.source.fd), 0));
		while (a.value < i)
			cr_assert(ge(int, reactor_wait(reactor, -1), 0));
		pthread_join(thread, NULL);
	}
	drop(&a);
	reactor_free(reactor);
}

Test(reactor, another_thread_wakes_it_uring) { another_thread_wakes_it(false); }
Test(reactor, another_thread_wakes_it_epoll) { another_thread_wakes_it(true); }

Test(reactor, what_can_not_be_polled_is_refused_by_epoll)
{
	struct reactor *reactor = begin(true);
	struct counted a = { 0 }, b = { 0 };

	cr_expect(eq(int, reactor_add(reactor, &a.source, -1, count), -EBADF));
	cr_expect(eq(u32, a.source.slot, 0));
	/* Its place is free for the next. */
	add(reactor, &b, count);
	signal_fd(b.source.fd);
	cr_assert(eq(int, reactor_wait(reactor, -1), 1));
	cr_expect(eq(u64, b.value, 1));
	drop(&b);
	reactor_free(reactor);
}
