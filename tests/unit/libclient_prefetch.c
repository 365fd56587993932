/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Prefetches in pieces, against a scripted peer that fails, hesitates or dies in the middle.
 */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libclient_script.h"
#include "proto/layout.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(prefetch);

Test(prefetch, prefetch_tells_its_eventfd)
{
	const size_t length = 200UL << 20;
	int completion = eventfd(0, EFD_CLOEXEC);
	uint64_t signal = 0;

	script_begin();
	be_driver();
	/* 4 pieces; one page of each stays. */
	cr_assert_eq(hmm_prefetch(&mirror, 0x7f0000000000, length, HMM_DEVICE, 0, completion, NULL),
		     0, "%s", hmm_last_error());
	cr_assert_eq(read(completion, &signal, sizeof(signal)), (ssize_t)sizeof(signal));
	cr_assert_eq(signal, 1 + (length >> HMM_PAGE_SHIFT) - 4);
	cr_assert_eq(hmm_prefetch(&mirror, 0x7f0000000000, HMM_PAGE_SIZE, HMM_DEVICE, 0, 12345,
				  NULL),
		     -EBADF);
	close(completion);
	stop_being_driver();
	script_end();
}

/* ---- a prefetch that is followed ---------------------------------------------------- */

#define FOLLOWED	(40UL << 20)	/* 3 pieces, of which one page each stays */
#define FOLLOWED_PAGES	((long)(FOLLOWED >> HMM_PAGE_SHIFT))
#define PIECE_PAGES	((16L << 20) >> HMM_PAGE_SHIFT)

static struct hmm_prefetch *prefetch;
static int completion;

static void follow(void)
{
	completion = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	cr_assert_eq(hmm_prefetch(&mirror, 0x7f0000000000, FOLLOWED, HMM_DEVICE,
				  HMM_MIGRATE_POPULATE, completion, &prefetch),
		     0, "%s", hmm_last_error());
}

/* A driver whose peer has such a script, and a prefetch of it. */
static void begin_following(struct script wanted)
{
	script_begin();
	if (!wanted.grace_ms)
		wanted.grace_ms = script->grace_ms;
	*script = wanted;
	be_driver();
	follow();
}

static void end_following(void)
{
	stop_being_driver();
	script_end();
}

/* Return: pages at the target, as its eventfd says. */
static long await(void)
{
	struct pollfd wait = { .fd = completion, .events = POLLIN };
	uint64_t signal = 0;

	cr_assert_eq(poll(&wait, 1, scaled_ms(10000)), 1);
	cr_assert_eq(read(completion, &signal, sizeof(signal)), (ssize_t)sizeof(signal));
	close(completion);
	return (long)signal - 1;
}

static void check_progress(long wanted)
{
	uint64_t pages = 0;

	cr_assert_eq(hmm_prefetch_progress(prefetch, &pages), (uint64_t)wanted);
	cr_assert_eq(pages, (uint64_t)FOLLOWED_PAGES);
}

static void check_followed(void)
{
	uint8_t *results = malloc((size_t)FOLLOWED_PAGES);
	struct hmm_migrate_report report;

	cr_assert_eq(await(), FOLLOWED_PAGES - 3);
	check_progress(FOLLOWED_PAGES);
	cr_assert_eq(hmm_prefetch_result(prefetch, results, &report), FOLLOWED_PAGES - 3);
	cr_assert_eq(report.pages, (uint64_t)FOLLOWED_PAGES);
	cr_assert_eq(report.moved, (uint64_t)FOLLOWED_PAGES - 3);
	cr_assert_eq(report.failed, 3);
	for (long i = 0; i < FOLLOWED_PAGES; i++)
		cr_assert_eq(results[i], i % PIECE_PAGES ? HMM_MIGRATED : HMM_PINNED);
	cr_assert_eq(hmm_prefetch_cancel(prefetch), -EALREADY);
	hmm_prefetch_free(prefetch);
	free(results);
}

Test(prefetch, a_prefetch_is_followed)
{
	long before;

	begin_following((struct script){ .hold_migrates = true });
	check_progress(0);
	cr_assert_eq(hmm_prefetch_result(prefetch, NULL, NULL), -EAGAIN);
	script->hold_migrates = false;
	check_followed();
	/* Given back while it runs, it goes on. */
	before = script->migrates;
	follow();
	hmm_prefetch_free(prefetch);
	cr_assert_eq(await(), FOLLOWED_PAGES - 3);
	cr_assert_eq(script->migrates, before + 3);
	end_following();
}

Test(prefetch, a_prefetch_asks_again_what_hmmd_had_no_answer_to)
{
	begin_following((struct script){ .busy_migrates = 3 });
	check_followed();
	cr_assert_eq(script->migrates, 6);
	end_following();
}

Test(prefetch, a_prefetch_outlives_hmmd)
{
	begin_following((struct script){ .die_at_migrate = 2 });
	check_followed();
	cr_assert_eq(script->migrates, 4);
	end_following();
}

/* The first piece has had its turn. */
static void check_ended_early(int error, uint8_t second)
{
	uint8_t *results = malloc((size_t)FOLLOWED_PAGES);
	long tried = second == HMM_NOT_TRIED ? PIECE_PAGES : 2 * PIECE_PAGES;

	cr_assert_eq(await(), PIECE_PAGES - 1);
	check_progress(tried);
	cr_assert_eq(hmm_prefetch_result(prefetch, results, NULL), PIECE_PAGES - 1);
	cr_assert_eq(results[0], HMM_PINNED);
	cr_assert_eq(results[PIECE_PAGES - 1], HMM_MIGRATED);
	cr_assert_eq(results[PIECE_PAGES], second);
	cr_assert_eq(results[FOLLOWED_PAGES - 1], HMM_NOT_TRIED);
	cr_assert_str_eq(hmm_migrate_result_name(HMM_NOT_TRIED), "not-tried");
	hmm_prefetch_free(prefetch);
	free(results);
	/* And a mirror that is not there any more does not begin another. */
	if (error)
		cr_assert_eq(hmm_prefetch(&mirror, 0x7f0000000000, FOLLOWED, HMM_DEVICE, 0, -1,
					  NULL),
			     error);
}

Test(prefetch, a_piece_that_fails_ends_a_prefetch)
{
	begin_following((struct script){ .fail_migrate = 2 });
	check_ended_early(0, HMM_MIGRATE_ERROR);
	script->fail_migrate = 3;
	follow();
	cr_assert_eq(await(), 0);
	check_progress(PIECE_PAGES);
	cr_assert_eq(hmm_prefetch_result(prefetch, NULL, NULL), -ENOMEM);
	cr_assert_str_eq(hmm_last_error(), "no memory in hmmd");
	hmm_prefetch_free(prefetch);
	end_following();
}

Test(prefetch, a_prefetch_without_an_hmmd_ends)
{
	begin_following((struct script){ .grace_ms = 300, .die_at_migrate = 2, .vanish = true });
	check_ended_early(-ESTALE, HMM_MIGRATE_ERROR);
	end_following();
}

Test(prefetch, a_prefetch_without_an_hmmd_that_would_be_asked_again_ends)
{
	begin_following((struct script){ .grace_ms = 300, .busy_migrates = 1, .die_when_busy = true, .vanish = true });
	cr_assert_eq(await(), 0);
	cr_assert_eq(hmm_prefetch_result(prefetch, NULL, NULL), -ESTALE);
	hmm_prefetch_free(prefetch);
	end_following();
}

Test(prefetch, a_prefetch_is_cancelled)
{
	begin_following((struct script){ .hold_migrates = true });
	while (*(volatile uint32_t *)&script->migrates == 0)
		usleep(1000);
	cr_assert_eq(hmm_prefetch_cancel(prefetch), 0);
	cr_assert_eq(hmm_prefetch_cancel(prefetch), 0);
	cr_assert_eq(hmm_prefetch_result(prefetch, NULL, NULL), -EAGAIN);
	script->hold_migrates = false;
	check_ended_early(0, HMM_NOT_TRIED);
	cr_assert_eq(script->migrates, 1);
	end_following();
}

static void *let_on(void *argument)
{
	usleep(1000U * (unsigned int)scaled_ms(1000));
	script->hold_migrates = false;
	return NULL;
}

Test(prefetch, a_mirror_that_goes_ends_its_prefetches)
{
	struct hmm_migrate_report report;
	pthread_t thread;

	begin_following((struct script){ .hold_migrates = true });
	while (*(volatile uint32_t *)&script->migrates == 0)
		usleep(1000);
	cr_assert_eq(pthread_create(&thread, NULL, let_on, NULL), 0);
	stop_being_driver();
	pthread_join(thread, NULL);
	/* All is over, and the handle stands alone. */
	cr_assert_eq(hmm_prefetch_result(prefetch, NULL, &report), PIECE_PAGES - 1);
	cr_assert_eq(report.pages, (uint64_t)FOLLOWED_PAGES);
	check_ended_early(0, HMM_NOT_TRIED);
	script_end();
}

Test(prefetch, what_is_no_prefetch)
{
	uint64_t pages = 1;
	int status;

	script_begin();
	be_driver();
	prefetch = NULL;
	cr_assert_eq(hmm_prefetch(NULL, 0x1000, 0x1000, HMM_DEVICE, 0, -1, &prefetch), -EINVAL);
	cr_assert_eq(hmm_prefetch(&mirror, 0x1001, 0x1000, HMM_DEVICE, 0, -1, &prefetch), -EINVAL);
	cr_assert_eq(hmm_prefetch(&mirror, 0x1000, 0, HMM_DEVICE, 0, -1, &prefetch), -EINVAL);
	cr_assert_eq(hmm_prefetch(&mirror, 0x1000, 0x1000, 7, 0, -1, &prefetch), -EINVAL);
	cr_assert_eq(hmm_prefetch(&mirror, 0x1000, 0x1000, HMM_DEVICE, 2, -1, &prefetch), -EINVAL);
	cr_assert_eq(hmm_prefetch(&mirror, 0x1000, 0x1000, HMM_DEVICE, 0, 12345, &prefetch), -EBADF);
	/* A byte a page in the library's memory is more than there is. */
	cr_assert_eq(hmm_prefetch(&mirror, 0x1000, 1UL << 40, HMM_DEVICE, 0, -1, &prefetch), -ENOMEM);
	cr_assert_null(prefetch);
	cr_assert_eq(script->migrates, 0);
	cr_assert_eq(hmm_prefetch_progress(NULL, &pages), 0);
	cr_assert_eq(pages, 0);
	cr_assert_eq(hmm_prefetch_result(NULL, NULL, NULL), -EINVAL);
	cr_assert_eq(hmm_prefetch_cancel(NULL), -EINVAL);
	hmm_prefetch_free(NULL);
	script->hold_migrates = true;
	follow();
	/* A child has no part in it; a fork waits for what is on its way to a device. */
	script->hold_migrates = false;
	if (fork_at_rest() == 0) {
		if (hmm_prefetch_result(prefetch, NULL, NULL) != -ESTALE ||
		    hmm_prefetch_cancel(prefetch) != -ESTALE)
			_exit(1);
		hmm_prefetch_free(prefetch);
		_exit(0);
	}
	wait(&status);
	cr_assert_eq(status, 0);
	check_followed();
	end_following();
}
