// SPDX-License-Identifier: GPL-2.0-or-later
/* memory_card.c - what stands in the way of a card, in words; nothing lost whichever call fails; what a restart finds. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fake_vfio.h"
#include "memory/card.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(card);

static char why[240];

static struct card *opened(void)
{
	struct card *card = NULL;

	cr_assert(eq(int, card_open(FAKE_CARD, 0, 0, &card, why, sizeof(why)), 0), "%s", why);
	cr_assert(fake_vfio.master && fake_vfio.kept);
	return card;
}

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec;
}

static void refused(const char *address, int error, const char *says)
{
	struct card *card = NULL;

	*why = '\0';
	cr_assert(eq(int, card_open(address, 0, 0, &card, why, sizeof(why)), error), "%s", why);
	cr_assert(ne(ptr, strstr(why, says), NULL), "'%s' does not say '%s'", why, says);
	cr_assert(not(fake_vfio.kept));
}

Test(card, an_address_is_a_number)
{
	cr_assert(eq(u32, card_number(FAKE_CARD), 0x20));
	cr_assert(eq(u32, card_number("abcd:ef:1f.7"), 0xabcdefff));
	cr_assert(eq(u32, card_number(""), 0));
	cr_assert(eq(u32, card_number("0:0:4.0"), 0));
	cr_assert(eq(u32, card_number("0000:00:20.0"), 0));
	cr_assert(eq(u32, card_number("0000:00:04.8"), 0));
	cr_assert(eq(u32, card_number("0000:00:04.0/"), 0));
	cr_assert(eq(u32, card_number("../../../../etc"), 0));
	cr_assert(eq(u32, card_number("0000:00:0A.0"), 0));
}

Test(card, what_stands_in_the_way)
{
	struct card *card;

	fake_vfio_begin();
	refused("4.0", -EINVAL, "is no PCI address");
	refused("0000:00:05.0", -ENODEV, "there is no PCI device");
	fake_vfio.no_iommu = true;
	refused(FAKE_CARD, -EOPNOTSUPP, "behind no IOMMU");
	fake_vfio.no_iommu = false;
	fake_vfio.driver = NULL;
	refused(FAKE_CARD, -ENXIO, "has no driver");
	fake_vfio.driver = "e1000e";
	refused(FAKE_CARD, -ENXIO, "is bound to e1000e");
	fake_vfio.driver = "vfio-pci";
	fake_vfio.no_vfio = true;
	refused(FAKE_CARD, -EOPNOTSUPP, "load the module vfio");
	fake_vfio.no_vfio = false;
	fake_vfio.no_type1 = true;
	refused(FAKE_CARD, -EOPNOTSUPP, "vfio_iommu_type1");
	fake_vfio.no_type1 = false;
	fake_vfio.not_viable = true;
	refused(FAKE_CARD, -ENXIO, "is not viable");
	fake_vfio.not_viable = false;
	fake_vfio.in_use = true;
	refused(FAKE_CARD, -EBUSY, "is in use");
	fake_vfio.in_use = false;
	fake_vfio.unsafe = true;
	refused(FAKE_CARD, -EPERM, "allow_unsafe_interrupts");
	fake_vfio.unsafe = false;
	cards_init(NULL, NULL);
	refused(FAKE_CARD, -EOPNOTSUPP, "should hmmd be killed");
	fake_vfio_end();
	fake_vfio_begin();
	card = opened();
	cr_assert(eq(int, card_open(FAKE_CARD, 0, 0, &card, why, sizeof(why)), -EBUSY));
	cr_assert(ne(ptr, strstr(why, "another device of this hmmd"), NULL));
	card_close(card);
	cr_assert(not(fake_vfio.master || fake_vfio.kept));
	fake_vfio_end();
}

/* The fake's group is a file of this user's, mode 0600. */
Test(card, who_may)
{
	struct card *card;
	uid_t other = getuid() + 1;

	fake_vfio_begin();
	card = opened();
	cr_assert(card_allows(card, 0, 0));
	cr_assert(card_allows(card, getuid(), getgid() + 1));
	cr_assert(not(card_allows(card, other, getgid() + 1)));
	cr_assert(not(card_allows(card, other, getgid())));
	card_close(card);
	fake_vfio_end();
}

Test(card, each_call_may_fail)
{
	struct card *card;
	unsigned int calls;

	fake_vfio_begin();
	card_close(opened());
	calls = fake_vfio.calls;
	cr_assert(lt(uint, 10, calls));
	for (unsigned int n = 1; n <= calls; n++) {
		fake_vfio.calls = 0;
		fake_vfio.fail_at = n;
		fake_vfio.error = -EIO;
		*why = '\0';
		card = NULL;
		/* The last one only takes a right away, which is gone with the card. */
		if (n == calls) {
			card_close(opened());
			continue;
		}
		cr_assert(lt(int, card_open(FAKE_CARD, 0, 0, &card, why, sizeof(why)), 0),
			  "call %u", n);
		cr_assert(ne(int, *why, 0), "call %u says nothing", n);
		cr_assert(eq(ptr, card, NULL));
		cr_assert(not(fake_vfio.kept));
		/* Nothing is left of it: it can be had. */
		fake_vfio.fail_at = 0;
		card_close(opened());
	}
	fake_vfio_end();
}

Test(card, maps_and_unmaps)
{
	void *memory =
		mmap(NULL, 8 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct card *card;

	fake_vfio_begin();
	card = opened();
	cr_assert(eq(int, card_map(card, 0x7f0000000000, memory, 2 * 4096, true), 0));
	cr_assert(eq(int, card_map(card, 0x7f0000004000, memory, 4096, false), 0));
	cr_assert(eq(int, card_map(card, 0x7f0000004000, memory, 4096, false), -EEXIST));
	cr_assert(fake_vfio_at(0x7f0000001000)->write);
	cr_assert(not(fake_vfio_at(0x7f0000004000)->write));
	card_unmap(card, 0x7f0000000000, 2 << 20);
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(card_take(card, 1) && card_take(card, 1) && !card_take(card, 2));
	card_leave(card, 2);
	cr_assert(not(card_take(card, 2)));
	card_leave(card, 1);
	cr_assert(card_take(card, 2));
	card_close(card);
	fake_vfio_end();
	munmap(memory, 8 * 4096);
}

/* It cannot be, but if it is the card must not go on. */
Test(card, what_cannot_be_unmapped_is_stopped)
{
	struct card *card;

	fake_vfio_begin();
	card = opened();
	fake_vfio.calls = 0;
	fake_vfio.fail_at = 1;
	fake_vfio.error = -EINVAL;
	card_unmap(card, 0x7f0000000000, 4096);
	cr_assert(not(fake_vfio.master));
	cr_assert(eq(int, card_drive(card, 1), -EIO));
	cr_assert(not(fake_vfio.master));
	card_close(card);
	fake_vfio_end();
}

Test(card, stops_without_its_driver)
{
	struct card *card;

	fake_vfio_begin();
	card = opened();
	card_driver_gone(card, 1);
	card_driver_gone(NULL, 1);
	cr_assert(eq(int, card_drive(card, 1), 0));
	cr_assert(eq(int, card_drive(card, 2), 0));
	card_driver_gone(card, 1);
	cr_assert(fake_vfio.master, "another one drives it");
	card_driver_gone(card, 2);
	cr_assert(not(fake_vfio.master));
	fake_vfio.calls = 0;
	fake_vfio.fail_at = 1;
	fake_vfio.error = -EIO;
	cr_assert(eq(int, card_drive(card, 1), -EIO));
	card_driver_gone(card, 1);
	cr_assert(eq(int, card_drive(card, 1), 0));
	cr_assert(fake_vfio.master);
	card_close(card);
	fake_vfio_end();
}

/* The holder was killed: one that cannot be replaced is tried again, but not at every look. */
Test(card, another_holder)
{
	struct card *card;

	fake_vfio_begin();
	cr_assert(not(cards_mend(now())));
	card = opened();
	cr_assert(cards_mend(now()));
	cr_assert(eq(uint, fake_vfio.mended, 0));
	fake_vfio.lost = true;
	fake_vfio.mend = -ENOMEM;
	for (unsigned int n = 0; n < 11; n++)
		cr_assert(cards_mend(now()));
	cr_assert(eq(uint, fake_vfio.mended, 2));
	fake_vfio.mend = 0;
	for (unsigned int n = 0; n < 20; n++)
		cr_assert(cards_mend(now()));
	cr_assert(eq(uint, fake_vfio.mended, 3));
	card_close(card);
	fake_vfio_end();
}

Test(card, limits_are_said)
{
	struct card *card;

	fake_vfio_begin();
	card = opened();
	card_explain(card, -ENOSPC, 0, why, sizeof(why));
	cr_assert(ne(ptr, strstr(why, "dma_entry_limit"), NULL));
	card_explain(card, -ENOMEM, 0, why, sizeof(why));
	cr_assert(ne(ptr, strstr(why, "RLIMIT_MEMLOCK"), NULL));
	card_explain(card, -EINVAL, 0xfee00000, why, sizeof(why));
	cr_assert(ne(ptr, strstr(why, "0xfee00000 is no address"), NULL));
	card_explain(card, -EIO, 0x1000, why, sizeof(why));
	cr_assert(ne(ptr, strstr(why, "refuses 0x1000"), NULL));
	card_close(card);
	fake_vfio_end();
}

/* hmmd is gone and another one comes: what the holder has is the card, though nobody could open its group. */
Test(card, comes_back_from_the_holder)
{
	struct card *card;

	fake_vfio_begin();
	card = opened();
	cards_leave();
	card_close(card);
	cr_assert(fake_vfio.kept);
	cr_assert(not(fake_vfio.master));
	cards_init(fake_vfio_holder(), NULL);
	fake_vfio.in_use = true;
	card = opened();
	cr_assert(eq(uint, fake_vfio_mappings(), 0));
	cr_assert(cards_mend(now()));
	/* What it was opened for failed: it stays for the next, and only what is new goes. */
	card_undo(card);
	cr_assert(fake_vfio.kept);
	cr_assert(not(fake_vfio.master));
	card = opened();
	card_close(card);
	cr_assert(not(fake_vfio.kept));
	cr_assert(not(cards_mend(now())));
	fake_vfio.in_use = false;
	card_undo(opened());
	cr_assert(not(fake_vfio.kept));
	fake_vfio_end();
}

/* One of a release that knew no card's memory kept three descriptors. */
Test(card, comes_back_from_an_older_hmmd)
{
	struct card *card;

	fake_vfio_begin();
	card = opened();
	cards_leave();
	card_close(card);
	cards_init(fake_vfio_holder(), NULL);
	fake_vfio.kept_fds = 3;
	card = opened();
	card_close(card);
	cr_assert(not(fake_vfio.kept));
	fake_vfio_end();
}

static bool is_wanted;
static unsigned int asked;

static bool wanted(int file)
{
	cr_assert(fcntl(file, F_GETFD) >= 0);
	asked++;
	return is_wanted;
}

/* With its memory's file a card is not given up while somebody may come for his pages. */
Test(card, waits_for_who_has_pages)
{
	int file = memfd_create("tags", MFD_CLOEXEC);
	struct card *card;

	fake_vfio_begin();
	cr_assert(eq(int, card_open_keeping(FAKE_CARD, 0, 0, false, &file, &card, why, sizeof(why)), 0));
	cards_leave();
	card_close(card);
	cards_init(fake_vfio_holder(), wanted);
	is_wanted = true;
	cr_assert(cards_mend(now()));
	cr_assert(eq(uint, asked, 0), "it has time");
	cr_assert(cards_mend(now() + CARD_PATIENCE_S));
	cr_assert(eq(uint, asked, 1));
	cr_assert(fake_vfio.kept);
	is_wanted = false;
	cr_assert(not(cards_mend(now() + CARD_PATIENCE_S)));
	cr_assert(not(fake_vfio.kept));
	close(file);
	fake_vfio_end();
}

/* The kernel wants it back. Nobody has it: it is given back, and may come again as another. */
Test(card, recalled)
{
	struct card *card, *again;

	fake_vfio_begin();
	card = opened();
	cr_assert(not(cards_recall() || card_is_recalled(card)));
	cr_assert(eq(int, card_drive(card, 1), 0));
	fake_vfio_recall(FAKE_CARD);
	cr_assert(not(cards_recall()), "nothing keeps it waiting");
	cr_assert(card_is_recalled(card));
	cr_assert(not(fake_vfio.kept || fake_vfio.master));
	cr_assert(not(card_take(card, 1)));
	cr_assert(eq(int, card_device(card), -ENODEV));
	cr_assert(eq(int, card_drive(card, 1), -ENODEV));
	card_driver_gone(card, 1);
	cr_assert(strcmp(card_address(card), FAKE_CARD) == 0);
	fake_vfio.no_device = true;
	refused(FAKE_CARD, -ENODEV, "there is no PCI device");
	fake_vfio.no_device = false;
	again = opened();
	cr_assert(not(card_is_recalled(again) || cards_recall()));
	card_close(card);
	cr_assert(fake_vfio.kept && fake_vfio.master, "they are two");
	card_give_back(again);
	card_give_back(again);
	cr_assert(not(fake_vfio.kept));
	card_undo(again);
	fake_vfio_end();
}

/* Who has something mapped is waited for; nobody begins anew. */
Test(card, recalled_from_an_owner)
{
	void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct card *card;

	fake_vfio_begin();
	card = opened();
	cr_assert(card_take(card, 1));
	cr_assert(eq(int, card_map(card, 0x7f0000000000, memory, 4096, true), 0));
	fake_vfio_recall(FAKE_CARD);
	cr_assert(cards_recall() && cards_recall());
	cr_assert(fake_vfio.kept && card_take(card, 1));
	cr_assert(eq(int, card_device(card), -ENODEV));
	cr_assert(eq(uint, fake_vfio_mappings(), 1), "its owner takes it out");
	card_unmap(card, 0x7f0000000000, 4096);
	card_leave(card, 1);
	cr_assert(not(card_take(card, 1) || card_take(card, 2)));
	cr_assert(not(cards_recall()));
	cr_assert(not(fake_vfio.kept));
	card_close(card);
	fake_vfio_end();
	munmap(memory, 4096);
}

/* With its memory's file whoever opened it says when; and the next hmmd is asked as well. */
Test(card, recalled_with_its_memory)
{
	int file = memfd_create("tags", MFD_CLOEXEC);
	struct card *card;

	fake_vfio_begin();
	cr_assert(eq(int, card_open_keeping(FAKE_CARD, 0, 0, false, &file, &card, why, sizeof(why)), 0));
	fake_vfio_recall(FAKE_CARD);
	cr_assert(cards_recall());
	cards_leave();
	card_close(card);
	cr_assert(fake_vfio.kept);
	cards_init(fake_vfio_holder(), NULL);
	cr_assert(eq(int, card_open_keeping(FAKE_CARD, 0, 0, false, &file, &card, why, sizeof(why)), 0));
	cr_assert(not(cards_recall()));
	fake_vfio_recall(FAKE_CARD);
	cr_assert(cards_recall() && fake_vfio.kept);
	card_give_back(card);
	cr_assert(not(cards_recall() || fake_vfio.kept));
	card_close(card);
	close(file);
	fake_vfio_end();
}
