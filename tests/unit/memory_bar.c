// SPDX-License-Identifier: GPL-2.0-or-later
/* memory_bar.c - frames of a card's memory, and a BAR as such: who has what, also over a restart; what stands in its way. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_vfio.h"
#include "memory/bar.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(bar);

#define COUNT 200U

static pid_t dead = 99;

static bool lives(pid_t pid)
{
	return pid != dead;
}

static struct bar_wish wish = {.address = FAKE_CARD, .index = 2};
static char why[240];

static struct bar *opened(void)
{
	struct bar *bar = NULL;

	cr_assert(eq(int, bar_open(&wish, &bar, why, sizeof(why)), 0), "%s", why);
	return bar;
}

static void refused(int error, const char *says)
{
	struct bar *bar = NULL;

	*why = '\0';
	cr_assert(eq(int, bar_open(&wish, &bar, why, sizeof(why)), error), "%s", why);
	cr_assert(ne(ptr, strstr(why, says), NULL), "'%s' does not say '%s'", why, says);
	cr_assert(eq(ptr, bar, NULL));
}

static void begin(void)
{
	fake_vfio_begin();
	bars_init(lives);
	wish = (struct bar_wish){.address = FAKE_CARD, .index = 2};
}

Test(bar, frames_are_somebodys)
{
	uint32_t tags[COUNT] = {0}, whose[COUNT] = {0}, used = 0;
	struct frames frames;

	tags[7] = 3;
	cr_assert(eq(int, frames_init(&frames, tags, COUNT), 0));
	cr_assert(eq(u32, frames.used, 1), "of before");
	whose[7] = 3;
	used = 1;
	srand(1);
	for (unsigned int round = 0; round < 20000; round++) {
		uint32_t tag = 1 + (uint32_t)rand() % 3, number = (uint32_t)rand() % COUNT;

		if (rand() % 2) {
			number = frames_take(&frames, tag);
			cr_assert(eq(int, number == FRAME_NONE, used == COUNT));
			if (number == FRAME_NONE)
				continue;
			cr_assert(lt(u32, number, COUNT));
			cr_assert(eq(u32, whose[number], 0), "it was somebody's");
			whose[number] = tag;
			used++;
		} else {
			cr_assert(eq(int, frames_put(&frames, number, tag), whose[number] == tag));
			if (whose[number] == tag) {
				whose[number] = 0;
				used--;
			}
		}
		cr_assert(eq(u32, frames.used, used));
		cr_assert(not(memcmp(tags, whose, sizeof(tags))), "the file says the same");
	}
	cr_assert(not(frames_has(&frames, COUNT, 1) || frames_has(&frames, 0, 0)));
	frames_deinit(&frames);
}

struct sieve {
	uint32_t tag;
	uint64_t kept[3];
};

static bool stays(void *data, uint32_t number, uint32_t tag)
{
	const struct sieve *sieve = data;

	return tag != sieve->tag || sieve->kept[number / 64] >> (number % 64) & 1;
}

Test(bar, all_frames_and_no_more)
{
	for (uint32_t count = 1; count <= 130; count++) {
		uint32_t tags[130] = {0};
		struct sieve two = {.tag = 2}, some = {.tag = 1, .kept = {5}}, all = {.tag = 1};
		struct frames frames;

		cr_assert(eq(int, frames_init(&frames, tags, count), 0));
		for (uint32_t i = 0; i < count; i++)
			cr_assert(lt(u32, frames_take(&frames, 1), count));
		cr_assert(eq(u32, frames_take(&frames, 1), FRAME_NONE));
		cr_assert(eq(u32, frames.used, count));
		cr_assert(eq(u32, frames_sift(&frames, stays, &two), 0));
		cr_assert(eq(u32, frames_sift(&frames, stays, &some), count < 3 ? count - 1 : count - 2));
		cr_assert(eq(u32, frames_sift(&frames, stays, &all), count < 3 ? 1 : 2));
		cr_assert(eq(u32, frames.used, 0));
		frames_deinit(&frames);
	}
}

/* A number is not given twice, whoever ends in between; and one that is here is not taken by another. */
Test(bar, claims_are_told_apart)
{
	static struct claim list[CLAIMS_MAX];
	static struct claims claims = {.list = list};
	uint32_t first = claims_add(&claims, 1), second = claims_add(&claims, 1);

	cr_assert(first && second && first != second);
	cr_assert(not(claims_take(&claims, first)), "it is here");
	claims_leave(&claims, first);
	cr_assert(claims_take(&claims, first));
	claims_drop(&claims, first);
	cr_assert(not(claims_take(&claims, first) || claims_pages(&claims, first)));
	cr_assert(not(claims_take(&claims, 0) || claims_pages(&claims, 0)));
	claims_drop(&claims, 0);
	for (unsigned int i = 0; i < 3000; i++) {
		uint32_t again = claims_add(&claims, 2);

		cr_assert(again != first && again != second);
		cr_assert(eq(u32, again % CLAIMS_MAX, first % CLAIMS_MAX), "the same place");
		claims_drop(&claims, again);
	}
	/* All were given out. */
	list[first % CLAIMS_MAX].last |= ~(CLAIMS_MAX - 1);
	cr_assert(ne(u32, claims_add(&claims, 3) / CLAIMS_MAX, 0));
	for (unsigned int i = 2; i < CLAIMS_MAX; i++)
		cr_assert(ne(u32, claims_add(&claims, 3), 0));
	cr_assert(eq(u32, claims_add(&claims, 3), 0));
}

Test(bar, what_stands_in_the_way)
{
	struct bar *bar;

	begin();
	wish.index = 1;
	refused(-ENODEV, "has no BAR 1");
	wish.index = 2;
	fake_vfio.bar_error = -EOPNOTSUPP;
	refused(-EOPNOTSUPP, "cannot be mapped");
	fake_vfio.bar_error = -EINVAL;
	refused(-EINVAL, "cannot be mapped");
	fake_vfio.bar_error = 0;
	fake_vfio.driver = "e1000e";
	refused(-ENXIO, "is bound to e1000e");
	fake_vfio.driver = "vfio-pci";
	wish.kept = true;
	refused(-ENOENT, "nobody has kept");
	wish.kept = false;
	wish.address = "4.0";
	refused(-EINVAL, "is no PCI address");
	wish.address = FAKE_CARD;
	cr_assert(not(fake_vfio.kept), "nothing is left of all that");
	bar = opened();
	wish.index = 1;
	refused(-EBUSY, "its BAR 2 is a pool already");
	wish.index = 2;
	wish.uid = getuid() + 1;
	wish.gid = getgid() + 1;
	refused(-EACCES, "may not open the group");
	bar_put(bar);
	cr_assert(not(fake_vfio.kept));
	fake_vfio_end();
}

Test(bar, each_call_may_fail)
{
	unsigned int calls;
	struct bar *bar;

	begin();
	bar = opened();
	calls = fake_vfio.calls;
	bar_put(bar);
	for (unsigned int n = 1; n <= calls; n++) {
		fake_vfio.calls = 0;
		fake_vfio.fail_at = n;
		fake_vfio.error = -EIO;
		*why = '\0';
		bar = NULL;
		cr_assert(lt(int, bar_open(&wish, &bar, why, sizeof(why)), 0), "call %u", n);
		cr_assert(ne(int, *why, 0));
		fake_vfio.fail_at = 0;
		cr_assert(not(fake_vfio.kept), "call %u", n);
		bar_put(opened());
	}
	fake_vfio_end();
}

Test(bar, devices_share_it)
{
	struct bar *one, *other;

	begin();
	one = opened();
	other = opened();
	cr_assert(eq(ptr, one, other));
	cr_assert(eq(u32, bar_promise(one, 1000), 1000));
	cr_assert(eq(u32, bar_promise(one, 1000), 0));
	cr_assert(eq(u32, bar_promise(one, 0), 23), "the rest, without the seal's page");
	cr_assert(eq(u32, bar_promise(one, 0), 0));
	bar_unpromise(one, 1023);
	cr_assert(eq(u32, bar_promise(one, 1023), 1023));
	bar_put(one);
	cr_assert(fake_vfio.kept);
	bar_put(other);
	cr_assert(not(fake_vfio.kept));
	fake_vfio_end();
}

static int new_file(char byte)
{
	int file = memfd_create("test", MFD_CLOEXEC);
	char bytes[4096];

	memset(bytes, byte, sizeof(bytes));
	cr_assert(eq(int, (int)pwrite(file, bytes, sizeof(bytes), 0), 4096));
	return file;
}

Test(bar, bytes_go_there_and_back)
{
	int from = new_file('a'), to = new_file('b');
	char bytes[4096];
	struct bar *bar;

	begin();
	bar = opened();
	cr_assert(eq(int, bar_store(bar, 1022, from, 0), 0));
	cr_assert(eq(int, *(char *)fake_vfio_frame(1022), 'a'));
	cr_assert(eq(int, bar_fetch(bar, 1022, to, 0), 0));
	cr_assert(eq(int, (int)pread(to, bytes, 4096, 0), 4096));
	cr_assert(bytes[0] == 'a' && bytes[4095] == 'a');
	cr_assert(eq(int, bar_store(bar, 0, from, 4096), -EFAULT), "there are no such bytes");
	fake_vfio.off = true;
	cr_assert(eq(int, bar_store(bar, 0, from, 0), -EFAULT));
	cr_assert(eq(int, bar_fetch(bar, 0, to, 0), -EFAULT));
	cr_assert(eq(int, bar_check(bar), BAR_UNSURE), "that says nothing of what is in it");
	fake_vfio.off = false;
	cr_assert(eq(int, bar_check(bar), BAR_HERE));
	cr_assert(not(bar_is_lost(bar)));
	fake_vfio.gone = true;
	cr_assert(eq(int, bar_check(bar), BAR_LOST));
	fake_vfio.gone = false;
	cr_assert(eq(int, bar_check(bar), BAR_LOST), "for good");
	refused(-EIO, "does not answer");
	bar_put(bar);
	close(from);
	close(to);
	fake_vfio_end();
}

/* It answers, and decodes other addresses, or has forgotten all. */
Test(bar, reset)
{
	struct bar *bar;
	uint64_t contents;
	uint32_t claim;

	begin();
	bar = opened();
	cr_assert(eq(int, bar_check(bar), BAR_HERE));
	memset(fake_vfio_frame(1023), 0, 4096);
	cr_assert(eq(int, bar_check(bar), BAR_LOST));
	bar_put(bar);

	bar = opened();
	contents = bar_contents(bar);
	claim = bar_claim(bar, 1);
	cr_assert(ne(u32, bar_take(bar, claim), FRAME_NONE));
	cards_leave();
	bar_put(bar);
	cards_init(fake_vfio_holder(), bar_is_wanted);
	memset(fake_vfio_frame(1023), 0xff, 4096);
	wish.kept = true;
	bar = opened();
	cr_assert(eq(u32, bar_used(bar), 0), "nothing of before is believed");
	cr_assert(not(bar_reclaim(bar, contents, claim)));
	/* Of the new contents somebody has the very same number. */
	cr_assert(eq(u32, bar_claim(bar, 2), claim));
	bar_leave(bar, claim);
	cr_assert(not(bar_reclaim(bar, contents, claim)));
	cr_assert(bar_reclaim(bar, bar_contents(bar), claim));
	bar_unclaim(bar, claim);
	cr_assert(eq(int, bar_check(bar), BAR_HERE));
	bar_put(bar);
	/* The same when it was given up in between. */
	wish.kept = false;
	bar = opened();
	cr_assert(ne(u64, bar_contents(bar), contents));
	bar_put(bar);
	fake_vfio_end();
}

/* Of what it is known that it is another's, that is known; otherwise it is not, and nothing is thrown away. */
Test(bar, each_look_may_fail)
{
	static const int errors[] = {-EIO, -EFAULT, -ENOMEM, -EINTR, -ENOSPC};
	struct bar *bar;

	begin();
	bar = opened();
	for (unsigned int i = 0; i < 5; i++)
		for (unsigned int n = 1; n <= 2; n++) {
			fake_vfio.calls = 0;
			fake_vfio.fail_at = n;
			fake_vfio.error = errors[i];
			cr_assert(eq(int, bar_check(bar), BAR_UNSURE), "call %u: %s", n, strerror(-errors[i]));
			cr_assert(eq(int, bar_check(bar), BAR_HERE));
		}
	bar_put(bar);
	fake_vfio_end();
}

/* The next hmmd finds what each had; others' pages are given to nobody, but the dead's are free. */
Test(bar, over_a_restart)
{
	uint32_t mine, gone, unseen, one, other, hidden, more;
	struct bar *bar;
	struct card *card;
	unsigned int calls;
	uint64_t contents;
	int error;

	begin();
	bar = opened();
	contents = bar_contents(bar);
	one = bar_claim(bar, 1);
	other = bar_claim(bar, 99);
	hidden = bar_claim(bar, 0);
	mine = bar_take(bar, one);
	gone = bar_take(bar, other);
	unseen = bar_take(bar, hidden);
	cr_assert(eq(u32, bar_take(bar, one + CLAIMS_MAX), FRAME_NONE), "there is no such claim");
	cards_leave();
	bar_put(bar);
	cr_assert(fake_vfio.kept);

	cards_init(fake_vfio_holder(), bar_is_wanted);
	cr_assert(eq(int, card_open(FAKE_CARD, 0, 0, &card, why, sizeof(why)), -EBUSY), "it has pages");
	wish.index = 1;
	refused(-ENODEV, "no BAR 1");
	cr_assert(fake_vfio.kept, "an attempt takes nothing away");
	wish.index = 2;
	wish.kept = true;
	/* Nor does one at which whatever call fails. */
	calls = 0;
	do {
		fake_vfio.calls = 0;
		fake_vfio.fail_at = ++calls;
		fake_vfio.error = calls % 2 ? -ENOMEM : -EIO;
		bar = NULL;
		error = bar_open(&wish, &bar, why, sizeof(why));
		if (error == 0)
			break;
		cr_assert(fake_vfio.kept, "call %u", calls);
		cr_assert(error != -ENOENT && error != -EBUSY && error != -ENODEV, "call %u says for good %d", calls, error);
	} while (calls < 20);
	fake_vfio.fail_at = 0;
	cr_assert(lt(uint, 2, calls));
	cr_assert(lt(uint, calls, 20));
	cr_assert(bar_reclaim(bar, contents, one) && bar_has(bar, mine, one));
	cr_assert(not(bar_reclaim(bar, contents, one)), "nobody else's");
	cr_assert(not(bar_reclaim(bar, contents, other) || bar_has(bar, gone, other)));
	cr_assert(bar_has(bar, unseen, hidden), "it may live where hmmd does not see it");
	cr_assert(eq(u32, bar_used(bar), 2));
	cr_assert(eq(u32, bar_count(bar, one), 1));
	more = bar_claim(bar, 1);
	for (unsigned int i = 0; i < 1021; i++)
		cr_assert(ne(u32, bar_take(bar, more), mine));
	cr_assert(eq(u32, bar_take(bar, more), FRAME_NONE));
	cr_assert(eq(u32, bar_unclaim(bar, more), 1021), "one process has two");
	cr_assert(bar_has(bar, mine, one));
	/* Who has come back is gone before the other is there. */
	cr_assert(eq(u32, bar_unclaim(bar, one), 1));
	bar_put(bar);
	cr_assert(fake_vfio.kept, "for the other");
	bar = opened();
	cr_assert(bar_reclaim(bar, contents, hidden));
	cr_assert(eq(u32, bar_unclaim(bar, hidden), 1));
	bar_put(bar);
	cr_assert(not(fake_vfio.kept));
	fake_vfio_end();
}

/* Whoever lives may still come for what he has: hmmd does not give the card up. */
Test(bar, is_wanted)
{
	struct bar *bar;
	uint32_t claim;

	begin();
	cards_init(fake_vfio_holder(), bar_is_wanted);
	bar = opened();
	claim = bar_claim(bar, 1);
	cr_assert(ne(u32, bar_take(bar, claim), FRAME_NONE));
	cards_leave();
	bar_put(bar);
	cards_init(fake_vfio_holder(), bar_is_wanted);
	cr_assert(cards_mend(UINT32_MAX));
	cr_assert(fake_vfio.kept);
	/* Who is out of descriptors cannot look. */
	fake_vfio.take_error = -EMFILE;
	dead = 1;
	cr_assert(cards_mend(UINT32_MAX));
	cr_assert(fake_vfio.kept);
	fake_vfio.take_error = 0;
	cr_assert(not(cards_mend(UINT32_MAX)));
	cr_assert(not(fake_vfio.kept));
	dead = 99;
	fake_vfio_end();
}

/* A process that ends before it has come back to a BAR that others have in use. */
Test(bar, who_never_comes_back)
{
	struct bar *bar;
	uint32_t claim, here;

	begin();
	bar = opened();
	claim = bar_claim(bar, 99);
	here = bar_claim(bar, 99);
	cr_assert(ne(u32, bar_take(bar, claim), FRAME_NONE));
	cr_assert(ne(u32, bar_take(bar, here), FRAME_NONE));
	bars_mend();
	cr_assert(eq(u32, bar_used(bar), 2), "they are here");
	cr_assert(eq(u32, bar_leave(bar, claim), 1));
	bars_mend();
	cr_assert(eq(u32, bar_used(bar), 1));
	cr_assert(eq(u32, bar_count(bar, here), 1));
	bar_unclaim(bar, here);
	bar_put(bar);
	fake_vfio_end();
}

/* The kernel wants the card back: no more pages, what is there can be had, and when it has gone the card has, too. */
Test(bar, recalled)
{
	int from = new_file('a'), to = new_file('b');
	struct bar *bar, *again;
	uint32_t claim, number;
	char bytes[4096];

	begin();
	bar = opened();
	claim = bar_claim(bar, 1);
	number = bar_take(bar, claim);
	cr_assert(eq(int, bar_store(bar, number, from, 0), 0));
	bars_recall();
	cr_assert(not(bar_is_recalled(bar)));
	fake_vfio_recall(FAKE_CARD);
	cr_assert(cards_recall());
	bars_recall();
	bars_recall();
	cr_assert(bar_is_recalled(bar) && !bar_is_lost(bar) && fake_vfio.kept);
	cr_assert(eq(u32, bar_take(bar, claim), FRAME_NONE));
	refused(-ENODEV, "is wanted back");
	/* Somebody who has pages there of before a restart. */
	wish.kept = true;
	cr_assert(eq(ptr, opened(), bar));
	wish.kept = false;
	bar_put(bar);
	cr_assert(eq(int, bar_fetch(bar, number, to, 0), 0));
	cr_assert(eq(int, bar_check(bar), BAR_HERE));
	cr_assert(eq(int, (int)pread(to, bytes, 4096, 0), 4096));
	cr_assert(bytes[0] == 'a' && bytes[4095] == 'a');
	cr_assert(bar_release(bar, number, claim));
	cr_assert(cards_recall());
	bars_recall();
	cr_assert(not(cards_recall() || fake_vfio.kept));
	cr_assert(bar_is_lost(bar));
	cr_assert(eq(int, bar_check(bar), BAR_LOST));
	cr_assert(eq(u32, bar_take(bar, claim), FRAME_NONE));
	cr_assert(eq(u32, bar_used(bar), 0));
	cr_assert(strcmp(card_address(bar_card(bar)), FAKE_CARD) == 0);
	fake_vfio.no_device = true;
	refused(-ENODEV, "there is no PCI device");
	/* Another card in the same place is another pool. */
	fake_vfio.no_device = false;
	again = opened();
	cr_assert(ne(ptr, again, bar));
	bar_unclaim(bar, claim);
	bar_put(bar);
	cr_assert(fake_vfio.kept);
	bar_put(again);
	cr_assert(not(fake_vfio.kept));
	close(from);
	close(to);
	fake_vfio_end();
}

static void *check(void *bar)
{
	return (void *)(intptr_t)bar_check(bar);
}

/* Only who asks it waits for it: neither those who take and release pages, nor control, for whatever it looks; and it is not put away meanwhile. */
Test(bar, one_that_does_not_answer_at_all, .timeout = 60)
{
	pthread_t asker;
	struct bar *bar;
	uint32_t claim, number;
	void *state;

	begin();
	bar = opened();
	claim = bar_claim(bar, 1);
	fake_vfio.hangs = true;
	cr_assert(eq(int, pthread_create(&asker, NULL, check, bar), 0));
	while (!__atomic_load_n(&fake_vfio.asked, __ATOMIC_SEQ_CST))
		usleep(1000);
	number = bar_take(bar, claim);
	cr_assert(ne(u32, number, FRAME_NONE));
	cr_assert(bar_release(bar, number, claim));
	bars_mend();
	fake_vfio_recall(FAKE_CARD);
	cr_assert(cards_recall());
	bars_recall();
	cr_assert(fake_vfio.kept && !bar_is_lost(bar));
	__atomic_store_n(&fake_vfio.hangs, false, __ATOMIC_SEQ_CST);
	cr_assert(eq(int, pthread_join(asker, &state), 0));
	cr_assert(eq(int, (int)(intptr_t)state, BAR_HERE));
	bars_recall();
	cr_assert(not(fake_vfio.kept));
	bar_unclaim(bar, claim);
	bar_put(bar);
	fake_vfio_end();
}

/* Pages of one that is not back are waited for until it has ended. */
Test(bar, recalled_from_who_is_not_here)
{
	struct bar *bar;
	uint32_t claim;

	begin();
	bar = opened();
	claim = bar_claim(bar, 7);
	cr_assert(ne(u32, bar_take(bar, claim), FRAME_NONE));
	bar_leave(bar, claim);
	fake_vfio_recall(FAKE_CARD);
	for (unsigned int n = 0; n < 20; n++) {
		cr_assert(cards_recall());
		bars_mend();
		bars_recall();
		cr_assert(fake_vfio.kept && !bar_is_lost(bar));
	}
	dead = 7;
	bars_mend();
	bars_recall();
	dead = 99;
	cr_assert(not(fake_vfio.kept));
	bar_put(bar);
	fake_vfio_end();
}

/* A card that does not answer has nothing that could come home: only who is here is waited for, who may be copying. */
Test(bar, recalled_and_lost)
{
	uint32_t absent, here;
	struct bar *bar;

	begin();
	bar = opened();
	absent = bar_claim(bar, 7);
	here = bar_claim(bar, 8);
	cr_assert(ne(u32, bar_take(bar, absent), FRAME_NONE));
	cr_assert(ne(u32, bar_take(bar, here), FRAME_NONE));
	bar_leave(bar, absent);
	fake_vfio.gone = true;
	fake_vfio_recall(FAKE_CARD);
	cr_assert(cards_recall());
	cr_assert(eq(int, bar_check(bar), BAR_LOST));
	bars_recall();
	cr_assert(fake_vfio.kept);
	cr_assert(eq(u32, bar_used(bar), 1));
	cr_assert(eq(u32, bar_unclaim(bar, here), 1));
	bars_recall();
	cr_assert(not(fake_vfio.kept));
	bar_put(bar);
	fake_vfio_end();
}
