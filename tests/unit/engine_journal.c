// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_journal.c - events of an owner, from a pipe in place of its
 * userfaultfd: each is applied once and in order, over many laps of the
 * journal; and what was read and not applied when hmmd died is found, neither
 * more nor less, by the next one and by layout.h's rule.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "engine_fixture.h"
#include "engine_random.h"
#include "tests/leakcheck.h"
#include "uapi.h"

LEAKCHECKED_SUITE(journal);


static struct fixture fixture;

static void say(const struct uffd_msg *message)
{
	cr_assert(eq(int, (int)write(fixture.events, message, sizeof(*message)),
		     (int)sizeof(*message)));
}

static struct uffd_msg removed(unsigned int first, unsigned int end)
{
	return (struct uffd_msg){
		.event = UFFD_EVENT_REMOVE,
		.arg.remove.start = ROOM_START + first * HMM_PAGE_SIZE,
		.arg.remove.end = ROOM_START + end * HMM_PAGE_SIZE,
	};
}

static struct uffd_msg unmapped(unsigned int first, unsigned int end)
{
	struct uffd_msg message = removed(first, end);

	message.event = UFFD_EVENT_UNMAP;
	return message;
}

static struct uffd_msg faulted(unsigned int page)
{
	return (struct uffd_msg){
		.event = UFFD_EVENT_PAGEFAULT,
		.arg.pagefault.address = ROOM_START + page * HMM_PAGE_SIZE,
	};
}

/* As layout.h tells the owner's rescuer to count them. */
static unsigned int unapplied(void)
{
	const struct hmm_journal *journal = fixture.owner->journal;
	unsigned int n = 0;

	while (n < HMM_JOURNAL_SLOTS) {
		const struct uffd_msg *message =
			(const void *)journal->slot[(journal->applied + n) % HMM_JOURNAL_SLOTS];

		if (!message->event)
			break;
		n++;
	}
	return n;
}

static unsigned int on_device(unsigned int first, unsigned int end)
{
	unsigned int n = 0;

	for (unsigned int page = first; page < end; page++) {
		uint64_t addr = ROOM_START + page * HMM_PAGE_SIZE;
		struct block *block = block_find(fixture.owner, addr);

		n += block && page_state(block, page_index(addr)) == HMM_PAGE_DEVICE;
	}
	return n;
}

Test(journal, starts_empty)
{
	fixture_begin_faked(&fixture, POOL);
	cr_expect(eq(uint, unapplied(), 0));
	event_read(fixture.owner);
	cr_expect(eq(u64, fixture.owner->journal->applied, 0));
	cr_expect(eq(uint, unapplied(), 0));
	journal_replay(fixture.owner);
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVENTS], 0));
	fixture_end(&fixture);
}

Test(journal, an_event_is_applied_when_it_is_read)
{
	struct uffd_msg message;

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, 600);
	message = unmapped(100, 520);
	say(&message);
	message = removed(90, 100);
	say(&message);
	event_read(fixture.owner);
	cr_expect(eq(uint, on_device(0, 600), 90 + 80));
	cr_expect(eq(uint, on_device(90, 520), 0));
	cr_expect(eq(u64, fixture.owner->journal->applied, 2));
	cr_expect(eq(uint, unapplied(), 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* Faults that were queued before an event are served after it: they see the world as it is. */
Test(journal, events_before_faults)
{
	struct uffd_msg message;

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, 10);
	message = faulted(5);
	say(&message);
	message = unmapped(0, 10);
	say(&message);
	event_read(fixture.owner);
	/* Nothing was brought home for a page that is unmapped. */
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_FAULTS], 1));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_FAULT_PAGES_HOME], 0));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVENTS], 1));
	fixture_end(&fixture);
}

Test(journal, many_laps)
{
	struct random random = random_begin("journal");
	uint64_t total = 0;

	fixture_begin_faked(&fixture, POOL);
	while (total < 20 * HMM_JOURNAL_SLOTS + 17) {
		unsigned int n = 1 + random_below(&random, 300);
		unsigned int page = random_below(&random, ROOM_PAGES - 1);

		fixture_out(&fixture, page, page + 1);
		for (unsigned int i = 0; i < n; i++) {
			/* The last one is about the page; it must not get lost at any edge. */
			struct uffd_msg message = i == n - 1 ? unmapped(page, page + 1)
							     : unmapped(page + 1, page + 2);

			say(&message);
		}
		total += n;
		event_read(fixture.owner);
		cr_assert(eq(u64, fixture.owner->journal->applied, total));
		cr_assert(eq(u64, fixture.owner->counter[COUNTER_EVENTS], total));
		cr_assert(eq(uint, on_device(page, page + 1), 0));
		cr_assert(eq(uint, unapplied(), 0),
			  "after %lu messages the last lap's look unapplied", total);
		mailbox_deinit(&fixture.outbox);
		cr_assert(eq(int, mailbox_init(&fixture.outbox), 0));
	}
	fixture_end(&fixture);
}

/* A fault where nothing of ours is. */
static struct uffd_msg faulted_elsewhere(void)
{
	struct uffd_msg message = faulted(0);

	message.arg.pagefault.address -= 8 * HMM_BLOCK_SIZE;
	return message;
}

/* hmmd dies between reading and applying, at every place of the journal. */
Test(journal, what_was_read_and_not_applied_is_replayed)
{
	struct random random = random_begin("replay");
	uint64_t applied = 0, events = 0;

	fixture_begin_faked(&fixture, POOL);
	for (int round = 0; round < 400; round++) {
		unsigned int n = random_below(&random, 65),
			     first = random_below(&random, ROOM_PAGES - 64);
		unsigned int room = HMM_JOURNAL_SLOTS - applied % HMM_JOURNAL_SLOTS, about = 0,
			     read;
		bool is_event[64];

		for (unsigned int i = 0; i < n; i++) {
			struct uffd_msg message;

			is_event[i] = random_below(&random, 4);
			message = is_event[i] ? unmapped(first + i, first + i + 1)
					      : faulted_elsewhere();
			say(&message);
		}
		fixture_out(&fixture, first, first + 64);
		/* Read, as far as one read goes, and dead. */
		journal_read_only(fixture.owner);
		read = n < room ? n : room;
		cr_assert(eq(u64, fixture.owner->journal->applied, applied));
		cr_assert(eq(uint, unapplied(), read), "round %d at %lu", round, applied);
		cr_assert(eq(u64, fixture.owner->counter[COUNTER_EVENTS], events),
			  "nothing is applied yet");
		/* The next one. */
		fixture.owner->journal_read = 0;
		journal_replay(fixture.owner);
		for (unsigned int i = 0; i < read; i++)
			about += is_event[i];
		cr_assert(eq(u64, fixture.owner->journal->applied, applied + read));
		cr_assert(eq(u64, fixture.owner->journal_read, applied + read));
		cr_assert(eq(u64, fixture.owner->counter[COUNTER_EVENTS], events + about),
			  "once each");
		cr_assert(eq(uint, unapplied(), 0));
		cr_assert(eq(uint, on_device(first, first + 64), 64 - about));
		/* Replayed once more, it does nothing. */
		journal_replay(fixture.owner);
		cr_assert(eq(u64, fixture.owner->counter[COUNTER_EVENTS], events + about));
		/* And it reads on where the dead one stopped. */
		event_read(fixture.owner);
		for (unsigned int i = read; i < n; i++)
			about += is_event[i];
		applied += n;
		events += about;
		cr_assert(eq(u64, fixture.owner->journal->applied, applied));
		cr_assert(eq(u64, fixture.owner->counter[COUNTER_EVENTS], events));
		cr_assert(eq(uint, on_device(first, first + 64), 64 - about));
		for (unsigned int page = first; page < first + 64; page++) {
			uint64_t addr = ROOM_START + page * HMM_PAGE_SIZE;

			block_discard(block_find(fixture.owner, addr), page_index(addr),
				      page_index(addr) + 1, HMM_REASON_UNMAP);
		}
		mailbox_deinit(&fixture.outbox);
		cr_assert(eq(int, mailbox_init(&fixture.outbox), 0));
	}
	fixture_end(&fixture);
}

/* It dies several times in a row before anything is applied, and the owner goes on doing things. */
Test(journal, several_deaths_add_up)
{
	struct uffd_msg message;

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, 400);
	for (unsigned int death = 0; death < 4; death++) {
		for (unsigned int i = 0; i < 50; i++) {
			message = unmapped(death * 50 + i, death * 50 + i + 1);
			say(&message);
		}
		fixture.owner->journal_read = 0;
		journal_read_only(fixture.owner);
		cr_assert(eq(uint, unapplied(), (death + 1) * 50));
	}
	journal_replay(fixture.owner);
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVENTS], 200));
	cr_expect(eq(uint, on_device(0, 200), 0));
	cr_expect(eq(uint, on_device(200, 400), 200));
	/* And it goes on as ever. */
	message = unmapped(390, 400);
	say(&message);
	event_read(fixture.owner);
	cr_expect(eq(uint, on_device(200, 400), 190));
	cr_expect(eq(uint, unapplied(), 0));
	fixture_end(&fixture);
}

/* However often: what is unapplied is never overwritten, the rest stays in the userfaultfd. */
Test(journal, is_never_overrun)
{
	struct uffd_msg message;
	unsigned int said = 0, n;

	fixture_begin_faked(&fixture, POOL);
	for (unsigned int death = 0; death < 40; death++) {
		for (unsigned int i = 0; i < 50; i++) {
			message = removed(said % ROOM_PAGES, said % ROOM_PAGES + 1);
			said++;
			say(&message);
		}
		fixture.owner->journal_read = 0;
		journal_read_only(fixture.owner);
		n = unapplied();
		cr_assert(le(uint, n, said));
		cr_assert(le(uint, n, HMM_JOURNAL_SLOTS - 1), "an empty slot marks the end");
		for (unsigned int i = 0; i < n; i++) {
			memcpy(&message, fixture.owner->journal->slot[i], sizeof(message));
			cr_assert(eq(u64, message.arg.remove.start,
				     ROOM_START + i % ROOM_PAGES * HMM_PAGE_SIZE),
				  "message %u was overwritten", i);
		}
	}
	journal_replay(fixture.owner);
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVENTS], n));
	event_read(fixture.owner);
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_EVENTS], said), "each once, in the end");
	cr_expect(eq(u64, fixture.owner->journal->applied, said));
	cr_expect(eq(uint, unapplied(), 0));
	fixture_end(&fixture);
}

/* What one does not know is passed over, with a line in the log; what follows it counts. */
Test(journal, unknown_events_are_passed_over)
{
	struct uffd_msg message = { .event = 0x55 };

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, 10);
	say(&message);
	message = unmapped(0, 5);
	say(&message);
	event_read(fixture.owner);
	cr_expect(eq(uint, on_device(0, 10), 5));
	cr_expect(eq(u64, fixture.owner->journal->applied, 2));
	fixture_end(&fixture);
}

/* ---- no room for a descriptor ------------------------------------------------------------ */

static unsigned int refusals, readings;

/* A fork stands behind the first message, for which there is no room. The kernel gives what is before it, and says nothing. */
static ssize_t read_up_to_a_fork(int uffd, void *messages, size_t length)
{
	(void)length;
	if (readings++ == 1 && refusals) {
		refusals--;
		return -EMFILE;
	}
	return kernel_real.uffd_read(uffd, messages, sizeof(struct uffd_msg));
}

/* Nobody is told of it again. */
Test(journal, what_stands_behind_a_fork_without_room_is_read_later)
{
	struct kernel_ops ops = kernel_real;
	struct uffd_msg message;

	ops.uffd_read = read_up_to_a_fork;
	refusals = 1;
	readings = 0;
	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, 10);
	message = unmapped(0, 5);
	say(&message);
	kernel = &ops;
	event_read(fixture.owner);
	cr_expect(eq(uint, readings, 2), "it is asked until it has nothing");
	cr_expect(eq(uint, on_device(0, 10), 5));
	cr_expect(fixture.owner->deferred_read);
	message = unmapped(5, 8);
	say(&message);
	fixture_later(&fixture, 2 * NS_PER_MS);
	kernel = &kernel_real;
	cr_expect(eq(uint, on_device(0, 10), 2), "its thread waits for ever");
	cr_expect(not(fixture.owner->deferred_read));
	fixture_end(&fixture);
}
