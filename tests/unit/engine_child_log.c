// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_child_log.c - where a raw fork's child has its parent's pages: moves of other threads that were done before the fork, or after it,
 * whatever the order in which both were told; and what the child has done since.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/child_log.h"
#include "engine_fixture.h"
#include "tests/leakcheck.h"
#include "uapi.h"

LEAKCHECKED_SUITE(child_log);

#define FROM	(ROOM_START + 16 * HMM_PAGE_SIZE)
#define TO	(ROOM_START + 64 * HMM_PAGE_SIZE)
#define LENGTH	(8 * HMM_PAGE_SIZE)

static struct fixture fixture;
static struct child_log child;

static void begin(void)
{
	fixture_begin_faked(&fixture, POOL);
	child = (struct child_log){ .fd = -1 };
	child_log_map(&child);
	cr_assert(ne(ptr, child.messages, NULL));
}

static void end(void)
{
	child_log_close(&child);
	fixture_end(&fixture);
}

static struct uffd_msg forked(void)
{
	return (struct uffd_msg){ .event = UFFD_EVENT_FORK };
}

static struct uffd_msg moved(uint64_t from, uint64_t to)
{
	return (struct uffd_msg){ .event = UFFD_EVENT_REMAP, .arg.remap = { .from = from, .to = to, .len = LENGTH } };
}

static struct uffd_msg unmapped(uint64_t start)
{
	return (struct uffd_msg){ .event = UFFD_EVENT_UNMAP, .arg.remove = { .start = start, .end = start + LENGTH } };
}

static void owner_says(struct uffd_msg message)
{
	*(struct uffd_msg *)fixture.owner->journal->slot[fixture.owner->journal_read++ % HMM_JOURNAL_SLOTS] = message;
}

static void child_says(struct uffd_msg message)
{
	*child_log_next(&child) = message;
	child_log_added(&child);
}

/* Where the child has been given mappings of its parent's that are watched. */
static uint64_t there[2];
static unsigned int questions;

static bool is_there(void *data, uint64_t addr)
{
	(void)data;
	questions++;
	return addr == there[0] || addr == there[1];
}

/* The fork is at @position of the journal; the child has what it was given at @first and @second. */
static void decide(uint64_t position, uint64_t first, uint64_t second)
{
	child_log_note_moves(&child, fixture.owner, 0, position);
	child_log_complete(&child);
	there[0] = first;
	there[1] = second;
	questions = 0;
	child_log_decide_moves(&child, is_there, NULL);
}

/* What the parent has at FROM now, and at TO. */
static void expect(uint64_t from, uint64_t to)
{
	cr_expect(eq(u64, child_log_find(&child, FROM + HMM_PAGE_SIZE), from ? from + HMM_PAGE_SIZE : 0));
	cr_expect(eq(u64, child_log_find(&child, TO + HMM_PAGE_SIZE), to ? to + HMM_PAGE_SIZE : 0));
	/* Beside it nothing is changed. */
	cr_expect(eq(u64, child_log_find(&child, FROM + LENGTH), FROM + LENGTH));
	cr_expect(eq(u64, child_log_find(&child, TO - HMM_PAGE_SIZE), TO - HMM_PAGE_SIZE));
}

static void told_behind(uint64_t first, uint64_t second, uint64_t from, uint64_t to)
{
	begin();
	owner_says(forked());
	owner_says(moved(FROM, TO));
	decide(0, first, second);
	expect(from, to);
	end();
}

Test(child_log, told_behind_and_done_before)
{
	told_behind(TO, 0, TO, 0);
}

Test(child_log, told_behind_and_done_behind)
{
	told_behind(FROM, 0, FROM, TO);
}

/* MREMAP_DONTUNMAP has left it a mapping. */
Test(child_log, told_behind_and_left_behind)
{
	told_behind(FROM, TO, TO, 0);
}

/* Something was there before, of which it is told behind the fork, too: a child that has both was made before. */
Test(child_log, told_behind_over_something)
{
	begin();
	owner_says(forked());
	owner_says(unmapped(TO));
	owner_says(moved(FROM, TO));
	decide(0, FROM, TO);
	expect(FROM, TO);
	end();

	begin();
	owner_says(forked());
	owner_says(unmapped(TO));
	owner_says(moved(FROM, TO));
	decide(0, TO, 0);
	expect(TO, 0);
	end();
}

/* The child was made before that, and has nothing armed at FROM: the move came later still. */
Test(child_log, told_behind_of_what_was_armed_behind)
{
	begin();
	fixture_out(&fixture, 0, 1);
	fixture_block(&fixture, 0)->armed_at = fixture.owner->journal_read;
	owner_says(forked());
	owner_says(unmapped(TO));
	owner_says(moved(FROM, TO));
	decide(0, TO, 0);
	expect(FROM, TO);
	end();
}

/* Its pages are at TO by the ledger, and the child, made before, has them where they were. */
Test(child_log, told_ahead_and_done_behind)
{
	begin();
	owner_says(moved(FROM, TO));
	owner_says(forked());
	decide(1, FROM, 0);
	cr_expect(eq(u64, child_log_find(&child, TO + HMM_PAGE_SIZE), FROM + HMM_PAGE_SIZE));
	cr_expect(eq(u64, child_log_find(&child, TO + LENGTH), TO + LENGTH));
	end();
}

Test(child_log, told_ahead_and_done_before)
{
	begin();
	owner_says(moved(FROM, TO));
	owner_says(forked());
	decide(1, TO, 0);
	expect(FROM, TO);
	end();

	begin();
	owner_says(moved(FROM, TO));
	owner_says(forked());
	/* By MREMAP_DONTUNMAP. */
	decide(1, TO, FROM);
	expect(FROM, TO);
	end();
}

Test(child_log, one_after_the_other)
{
	begin();
	owner_says(forked());
	owner_says(moved(FROM, TO));
	owner_says(moved(TO, TO + 4 * LENGTH));
	/* Made between the two. */
	decide(0, TO, 0);
	cr_expect(eq(u64, child_log_find(&child, FROM), TO));
	end();

	begin();
	owner_says(forked());
	owner_says(moved(FROM, TO));
	owner_says(moved(TO, TO + 4 * LENGTH));
	decide(0, TO + 4 * LENGTH, 0);
	cr_expect(eq(u64, child_log_find(&child, FROM), TO + 4 * LENGTH));
	end();
}

/* Of what was told in earlier batches its caller has gone on: the ledger has it, and so has the child. */
Test(child_log, of_an_earlier_batch_nobody_asks)
{
	begin();
	owner_says(moved(FROM, TO));
	owner_says(forked());
	child_log_note_moves(&child, fixture.owner, 1, 1);
	child_log_complete(&child);
	child_log_decide_moves(&child, is_there, NULL);
	cr_expect(eq(uint, child.count, 0));
	expect(FROM, TO);
	end();
}

Test(child_log, what_it_does_itself)
{
	begin();
	owner_says(forked());
	owner_says(moved(FROM, TO));
	child_log_note_moves(&child, fixture.owner, 0, 0);
	child_log_complete(&child);
	cr_expect(eq(int, child_log_was_there(&child, FROM), -1), "the parent's moves say nothing of it");
	/* Before anybody has asked: it has moved what was at TO away, and something of its own to FROM. */
	child_says(moved(TO, TO + 4 * LENGTH));
	child_says(moved(TO + 8 * LENGTH, FROM));
	cr_expect(eq(int, child_log_was_there(&child, TO + HMM_PAGE_SIZE), 1));
	cr_expect(eq(int, child_log_was_there(&child, FROM), 0));
	cr_expect(eq(int, child_log_was_there(&child, TO + LENGTH), -1));
	there[0] = TO;
	there[1] = 0;
	child_log_decide_moves(&child, is_there, NULL);
	cr_expect(eq(u64, child_log_find(&child, FROM), TO + 4 * LENGTH));
	child_says(unmapped(TO + 4 * LENGTH));
	cr_expect(eq(u64, child_log_find(&child, FROM), 0));
	cr_expect(eq(int, child_log_was_there(&child, TO + 4 * LENGTH), 0), "it was not given what it has moved there");
	end();
}

/* Another hmmd has its descriptor: what is decided is not asked again, and what is not, is. */
Test(child_log, of_an_earlier_hmmd)
{
	struct child_log next = { .fd = -1 };

	begin();
	owner_says(forked());
	owner_says(moved(FROM, TO));
	child_log_note_moves(&child, fixture.owner, 0, 0);
	cr_expect(not(child_log_is_complete(&child)));
	child_log_complete(&child);
	next.fd = dup(child.fd);
	child_log_map(&next);
	cr_expect(child_log_is_complete(&next));
	cr_expect(eq(uint, next.count, child.count));
	there[0] = TO;
	there[1] = 0;
	questions = 0;
	child_log_decide_moves(&next, is_there, NULL);
	cr_expect(eq(uint, questions, 2));
	cr_expect(eq(u64, child_log_find(&next, FROM), TO));
	child_log_decide_moves(&child, is_there, NULL);
	cr_expect(eq(uint, questions, 2));
	cr_expect(eq(u64, child_log_find(&child, FROM), TO));
	child_log_close(&next);
	end();
}

/* Another release's is not understood, and begins anew. */
Test(child_log, of_another_release)
{
	struct child_log other = { .fd = memfd_create("child", MFD_CLOEXEC) };

	begin();
	cr_assert(eq(int, ftruncate(other.fd, 2 * HMM_PAGE_SIZE), 0));
	child_log_map(&other);
	cr_expect(eq(uint, other.count, 0));
	cr_expect(eq(u64, child_log_find(&other, FROM), FROM));
	cr_expect(ne(ptr, child_log_next(&other), NULL));
	child_log_close(&other);
	end();
}

/* What is known of a child up to there is true of its own child: decided, and with nothing of its own. */
Test(child_log, a_child_of_its_own)
{
	struct child_log grandchild = { .fd = -1 };

	begin();
	owner_says(forked());
	owner_says(moved(FROM, TO));
	decide(0, TO, 0);
	child_says(forked());
	child_says(unmapped(TO));
	cr_expect(ne(ptr, (void *)child_log_fork(&child, child.count - 2), NULL));
	cr_expect(eq(ptr, (void *)child_log_fork(&child, child.count - 1), NULL));
	child_log_map(&grandchild);
	child_log_inherit(&grandchild, &child, child.count - 2);
	cr_expect(eq(u64, child_log_find(&grandchild, FROM), TO));
	cr_expect(eq(u64, child_log_find(&child, FROM), 0));
	cr_expect(eq(int, child_log_was_there(&grandchild, FROM), -1));
	child_log_close(&grandchild);
	end();
}
