// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_tracking.c - looks whose kernel calls fail, each in turn, before or after they
 * have done their work: what was written is told all the same, by this look or by the
 * next. This process is the owner, by real calls.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "engine_fixture.h"
#include "tests/leakcheck.h"
#include "tracking/tracking.h"
#include "uapi.h"

LEAKCHECKED_SUITE(engine_tracking);

#define PAGES	600U

/* ---- calls that fail ---------------------------------------------------------------- */

static unsigned int calls, fails;	/* the call with this number; 0: none */
static bool late;			/* ... and it has done its work */

static bool fails_now(void)
{
	return ++calls == fails;
}

static int fake_register(int uffd, uint64_t start, size_t length, uint64_t mode)
{
	bool failing = fails_now();
	int r = failing && !late ? 0 : kernel_real.uffd_register(uffd, start, length, mode);

	return failing ? -ENOMEM : r;
}

static int fake_protect(int uffd, uint64_t start, size_t length, bool protect)
{
	bool failing = protect && fails_now();
	int r = failing && !late ? 0 : kernel_real.uffd_protect(uffd, start, length, protect);

	return failing ? -EAGAIN : r;
}

static int fake_pagemap(int pagemap, uint64_t start, unsigned int pages, uint64_t *entries)
{
	return fails_now() ? -ENOMEM : kernel_real.pagemap_read(pagemap, start, pages, entries);
}

static int fake_written(int pagemap, uint64_t start, uint64_t end, struct kernel_region *regions, unsigned int max,
			uint64_t *walked)
{
	bool failing = fails_now();
	/* Few at a time, so that there are several calls. */
	int n = failing && !late ? 0 : kernel_real.pages_written(pagemap, start, end, regions, max < 5 ? max : 5, walked);

	return failing ? -EIO : n;
}

static int fake_vma(int maps, uint64_t addr, struct kernel_vma *vma)
{
	return fails_now() ? -EIO : kernel_real.vma_at(maps, addr, vma);
}

/* ---- an owner that is tracked ------------------------------------------------------- */

static struct fixture fixture;
static struct tracker tracker;
static struct track *track;
static struct kernel_ops ops;

static void declare(struct hmm_attribute *attribute, const void *data)
{
	attribute->flags |= HMM_ATTRIBUTE_UNPINNED;
}

static void begin(const struct tracking_ops *engine)
{
	struct kernel_facts facts;
	const char *lack;

	kernel_probe(&facts);
	lack = engine->lacks(&facts);
	if (lack)
		cr_skip_test("%s", lack);
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	cr_assert(eq(int, attribute_edit(&fixture.owner->attributes, ROOM_START, ROOM_END, declare, NULL), 0));
	tracker = (struct tracker){ .owner = fixture.owner, .ops = engine, .clear_refs = -1 };
	tracker.features = engine->uffd_features | (engine->uffd_optional & facts.uffd_features);
	tracker.uffd = kernel_uffd_new();
	cr_assert(ge(int, tracker.uffd, 0));
	cr_assert(eq(int, kernel_uffd_api(tracker.uffd, tracker.features, NULL), 0));
	TAILQ_INIT(&tracker.tracks);
	TAILQ_INIT(&tracker.leaving);
	track = track_new(1, DRIVER, ROOM_START, ROOM_START + PAGES * HMM_PAGE_SIZE);
	TAILQ_INSERT_TAIL(&tracker.tracks, track, link);
	memset((void *)ROOM_START, 1, PAGES * HMM_PAGE_SIZE);
	ops = kernel_real;
	ops.uffd_register = fake_register;
	ops.uffd_protect = fake_protect;
	ops.pagemap_read = fake_pagemap;
	ops.pages_written = fake_written;
	ops.vma_at = fake_vma;
	kernel = &ops;
}

static void end(void)
{
	kernel = &kernel_real;
	track_free(track);
	close(tracker.uffd);
	fixture_end(&fixture);
}

struct writing {
	const unsigned int *pages;
	unsigned int count;
	atomic_bool done;
};

static void *write_pages(void *data)
{
	struct writing *writing = data;

	for (unsigned int i = 0; i < writing->count; i++)
		++*(volatile char *)(ROOM_START + writing->pages[i] * HMM_PAGE_SIZE);
	atomic_store(&writing->done, true);
	return NULL;
}

/* By another thread: with uffd-wp it waits for this one. */
static void write_to(const unsigned int *pages, unsigned int count)
{
	struct writing writing = { pages, count, false };
	pthread_t thread;

	cr_assert(eq(int, pthread_create(&thread, NULL, write_pages, &writing), 0));
	while (!atomic_load(&writing.done))
		tracker_read(&tracker);
	pthread_join(thread, NULL);
}

static void tell(uint64_t *bits)
{
	uint64_t presumed = 0;

	track_tell(track, track->start, track->end, true, bits, 0, &presumed);
}

static void check(const uint64_t *bits, const unsigned int *pages, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++)
		cr_assert(bits[pages[i] / 64] >> (pages[i] % 64) & 1, "page %u is missed, call %u fails%s", pages[i], fails,
			  late ? " late" : "");
}

/* False: the call that was to fail was not reached. */
static bool one_failure(unsigned int which)
{
	static const unsigned int before[] = { 0, 1, 7, 63, 64, 300, 302, 304, 306, 308, 310, 511, 512, 599 };
	static const unsigned int after[] = { 2, 7, 65, 301, 302, 400, 513, 598 };
	uint64_t bits[PAGES / 64 + 1] = { 0 };
	bool reached;

	fails = 0;
	cr_assert(eq(int, tracking_look(&tracker, track->start, track->end), 0));
	tell((uint64_t[PAGES / 64 + 1]){ 0 });
	write_to(before, 14);
	calls = 0;
	fails = which;
	/* After an error nothing is told. */
	if (tracking_look(&tracker, track->start, track->end) == 0)
		tell(bits);
	reached = calls >= which;
	fails = 0;
	write_to(after, 8);
	cr_assert(eq(int, tracking_look(&tracker, track->start, track->end), 0));
	fails = which;
	tell(bits);
	check(bits, before, 14);
	check(bits, after, 8);
	memset(bits, 0, sizeof(bits));
	write_to(after, 8);
	fails = 0;
	cr_assert(eq(int, tracking_look(&tracker, track->start, track->end), 0));
	tell(bits);
	check(bits, after, 8);
	return reached;
}

static void every_failure(const struct tracking_ops *engine)
{
	begin(engine);
	for (int when = 0; when < 2; when++) {
		unsigned int which = 1;

		late = when;
		while (one_failure(which))
			which++;
		/* Mappings, registering, looking, and more than one of some. */
		cr_expect(which > 4, "%u calls", which);
	}
	end();
}

Test(engine_tracking, pagemap_scan)
{
	every_failure(&tracking_pagemap_scan);
}

Test(engine_tracking, uffd_wp)
{
	every_failure(&tracking_uffd_wp);
}
