// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * card.c - a real card with a real DMA engine, behind an IOMMU: it reaches an owner's memory at the
 * owner's addresses while that is pinned on it or coherent, and nothing once it is not,
 * whatever its driver tells it. Each case that looks at that prints the addresses, which
 * the script then looks for among the IOMMU's faults.
 *
 * The driver is examples/edu's. HMM_TEST_CARD is the card's PCI address. HMM_TEST_MEMORY_CARD: the
 * device's memory is BAR 2 of that other card; then nothing is coherent, and whatever lies there the
 * one card reaches in the other.
 */
#include "mirror.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "examples/edu/edu.h"

#define MEMORY (32UL << 20)
#define WORDS  (EDU_MOST / sizeof(uint64_t))

static struct edu *edu;
static struct hmm_device *device;
static char *tray; /* coherent, or else pinned: what the card has in its buffer is looked at here */

static const uint64_t flags[HMM_PFN_FLAG_MAX] = {1, 2};
static const uint64_t values[HMM_PFN_VALUE_MAX] = {4, 0, 8};

static const char *bus(void)
{
	const char *name = getenv("HMM_TEST_CARD");

	if (!name)
		test_skip("HMM_TEST_CARD names no card");
	return name;
}

static const char *memory_bus(void)
{
	return getenv("HMM_TEST_MEMORY_CARD");
}

/* @dispatch: callbacks run when the case runs them. */
static int open_edu_for(bool dispatch)
{
	int fd = -1;
	void *at;

	CHECK_EQ(hmm_open(NULL, &hmm), 0);
	if (dispatch)
		fd = hmm_dispatch_fd(hmm);
	CHECK(!dispatch || fd >= 0);
	if (edu_open(hmm, bus(), MEMORY, memory_bus(), memory_bus() ? 2 : 0, &edu))
		FAIL("no card: %s", hmm_last_error());
	device = edu_mirror(edu)->device;
	if (memory_bus()) {
		tray = test_map_in_block(1);
		return fd;
	}
	CHECK_EQ(hmm_alloc(edu_mirror(edu), BLOCK, &at), 0);
	tray = at;
	return fd;
}

static void open_edu(void)
{
	open_edu_for(false);
}

static void close_edu(void)
{
	if (!memory_bus())
		CHECK_EQ(hmm_free(edu_mirror(edu), tray, BLOCK), 0);
	edu_close(edu);
	hmm_close(hmm);
}

static void must(int error, const char *what)
{
	if (error)
		FAIL("%s: %s (%s)", what, strerror(-error), hmm_last_error());
}

static int pin(void *memory, size_t pages)
{
	struct hmm_advise_options options = {.size = sizeof(options), .mirror = edu_mirror(edu)};

	return hmm_advise(hmm, (unsigned long)memory, pages * PAGE, HMM_ADVISE_PIN, &options);
}

static int unpin(void *memory, size_t pages)
{
	struct hmm_advise_options options = {.size = sizeof(options), .mirror = edu_mirror(edu)};

	return hmm_unadvise(hmm, (unsigned long)memory, pages * PAGE, HMM_ADVISE_PIN, &options);
}

static char *pinned(size_t pages, uint64_t seed)
{
	char *memory = test_map_in_block(pages);

	test_fill(memory, pages, seed);
	must(pin(memory, pages), "pin");
	return memory;
}

/* A range that stays in the IOMMU until it is taken out. */
struct reach {
	struct hmm_range range;
	uint64_t pfns[512], daddrs[512];
};

static void begin_reach(struct reach *reach, void *memory, size_t pages, bool write)
{
	memset(reach, 0, sizeof(*reach));
	reach->range.flags = flags;
	reach->range.values = values;
	reach->range.pfns = reach->pfns;
	reach->range.pfn_shift = 12;
	reach->range.default_flags = write ? 3 : 1;
	CHECK_EQ(hmm_range_register(&reach->range, edu_mirror(edu), (unsigned long)memory,
				    (unsigned long)memory + pages * PAGE, 12),
		 0);
}

static long map(struct reach *reach)
{
	long n;

	do {
		hmm_range_wait_until_valid(&reach->range, HMM_RANGE_DEFAULT_TIMEOUT);
		memset(reach->pfns, 0, sizeof(reach->pfns));
		n = hmm_range_dma_map(&reach->range, device, reach->daddrs, true);
	} while (n == -EBUSY || n == -EAGAIN);
	return n;
}

static struct reach *reached(void *memory, size_t pages)
{
	struct reach *reach = malloc(sizeof(*reach));

	begin_reach(reach, memory, pages, true);
	if (map(reach) != (long)pages)
		FAIL("not mapped: %s", hmm_last_error());
	/* The owner's addresses, and no others. */
	for (size_t i = 0; i < pages; i++)
		CHECK_EQ(reach->daddrs[i], (unsigned long)memory + i * PAGE);
	return reach;
}

static void end_reach(struct reach *reach)
{
	hmm_range_unregister(&reach->range);
	free(reach);
}

/* ---- what the card sees, and what it does not ---------------------------------------- */

/* It is where the card reaches it, with what the CPU has written. */
static void lay_tray_out(void)
{
	if (memory_bus())
		must(pin(tray, 1), "pin the tray");
}

/* The card has this page's first half, as test_fill() wrote page @number with @seed. */
static void card_has(uint64_t number, uint64_t seed)
{
	const volatile uint64_t *words = (volatile uint64_t *)tray;

	memset(tray, 0, PAGE);
	lay_tray_out();
	must(edu_store(edu, tray, EDU_MOST), "the card writes its buffer");
	for (size_t i = 0; i < WORDS; i++)
		if (words[i] != test_word(number, i, seed))
			FAIL("the card has %#lx in word %zu, instead of %#lx", words[i], i,
			     test_word(number, i, seed));
}

static void card_reads(char *memory, size_t number, uint64_t seed)
{
	must(edu_load(edu, memory + number * PAGE, EDU_MOST), "the card reads");
	card_has(number, seed);
}

static void give_card(uint64_t seed)
{
	test_fill(tray, 1, seed);
	lay_tray_out();
	must(edu_load(edu, tray, EDU_MOST), "the card reads");
}

/* It neither reads nor writes. What the CPU has there is page 0 of @seed, before and after. */
static void card_reaches_nothing(char *memory, uint64_t seed)
{
	const volatile uint64_t *words = (volatile uint64_t *)tray;

	give_card(~seed);
	edu_store_blindly(edu, memory, EDU_MOST);
	edu_load_blindly(edu, memory, EDU_MOST);
	lay_tray_out();
	must(edu_store(edu, tray, EDU_MOST), "the card writes its buffer");
	for (size_t i = 0; i < WORDS; i++)
		if (words[i] == test_word(0, i, seed))
			FAIL("the card has read word %zu of %p", i, memory);
	test_check(memory, 1, seed);
	printf("out of reach: %p\n", memory);
	fflush(stdout);
}

/* ---- bad input ------------------------------------------------------------------------- */

static int try_bus(const char *name, uint64_t caps, const char *says)
{
	struct hmm_device_options options = {.size = sizeof(options),
					     .name = "never",
					     .memory = MEMORY,
					     .node = -1,
					     .caps = caps,
					     .bus = name};
	struct hmm_device *never;
	int error = hmm_device_new(hmm, &options, &never);

	CHECK(error);
	if (!strstr(hmm_last_error(), says))
		FAIL("'%s' does not say '%s'", hmm_last_error(), says);
	return error;
}

static void refusals(void)
{
	struct hmm_device *plain, *again;
	struct hmm_device_options options = {
		.size = sizeof(options), .name = "plain", .memory = MEMORY, .node = -1};

	CHECK_EQ(hmm_open(NULL, &hmm), 0);
	CHECK_EQ(try_bus("0000:00:04", HMM_DEVICE_DMA, "is no PCI address"), -EINVAL);
	CHECK_EQ(try_bus("00:04.0", HMM_DEVICE_DMA, "is no PCI address"), -EINVAL);
	CHECK_EQ(try_bus("../../../etc/pas", HMM_DEVICE_DMA, "is no PCI address"), -EINVAL);
	CHECK_EQ(try_bus("0000:00:04.0/driver", HMM_DEVICE_DMA, "is no PCI address"), -EINVAL);
	CHECK_EQ(try_bus("ffff:ff:1f.7", HMM_DEVICE_DMA, "there is no PCI device ffff:ff:1f.7"),
		 -ENODEV);
	CHECK_EQ(try_bus("ffff:ff:1f.7", 0, "goes with dma"), -EINVAL);
	CHECK_EQ(try_bus("ffff:ff:1f.7", HMM_DEVICE_DMA | HMM_DEVICE_FAULTS, "cannot retry"),
		 -EOPNOTSUPP);
	CHECK_EQ(hmm_device_new(hmm, &options, &plain), 0);
	CHECK_EQ(hmm_device_fd(plain), -EOPNOTSUPP);
	CHECK_EQ(hmm_device_fd(NULL), -EINVAL);
	hmm_device_put(plain);
	/* No name was taken by what was refused. */
	options.name = "never";
	CHECK_EQ(hmm_device_new(hmm, &options, &again), 0);
	hmm_device_put(again);
	hmm_close(hmm);
}

/* What only a machine with an IOMMU can refuse. */
static void refusals_there(void)
{
	const char *other = getenv("HMM_TEST_OTHER_CARD");
	struct reach reach;
	char *plain;
	int fd;

	open_edu();
	CHECK_EQ(try_bus(bus(), HMM_DEVICE_DMA, "is in use"), -EBUSY);
	if (other)
		CHECK_EQ(try_bus(other, HMM_DEVICE_DMA, "is bound to"), -ENXIO);
	fd = hmm_device_fd(device);
	CHECK(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
	close(fd);
	/* Memory that is neither pinned nor coherent: nothing changes. */
	plain = test_map(1);
	test_fill(plain, 1, 3);
	begin_reach(&reach, plain, 1, true);
	CHECK_EQ(map(&reach), -EFAULT);
	CHECK_EQ(reach.daddrs[0], 0);
	hmm_range_unregister(&reach.range);
	CHECK_EQ(edu_load(edu, plain, EDU_MOST), -EFAULT);
	card_reaches_nothing(plain, 3);
	close_edu();
}

/*
 * Dumpable, as a program that this user has started: it looks into its own /proc. Its end, should it
 * hang and its parent be killed, is its own.
 */
static void become_stranger(void)
{
	alarm((unsigned int)test_scaled(100));
	CHECK_EQ(setgid(65534), 0);
	CHECK_EQ(setuid(65534), 0);
	CHECK_EQ(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), 0);
	CHECK_EQ(hmm_open(NULL, &hmm), 0);
}

/* Whoever may not open the group's file may not have the card, by no way. */
static void stranger(void)
{
	struct hmm_device *found;
	pid_t child;

	open_edu();
	child = fork();
	if (child == 0) {
		become_stranger();
		CHECK_EQ(hmm_device_open(hmm, "edu", &found), -EACCES);
		CHECK_EQ(try_bus(bus(), HMM_DEVICE_DMA, "is in use"), -EBUSY);
		_exit(0);
	}
	test_reap(child, 0);
	close_edu();
	/* It is free now. */
	child = fork();
	if (child == 0) {
		become_stranger();
		CHECK_EQ(try_bus(bus(), HMM_DEVICE_DMA, "user 65534 may not open"), -EACCES);
		_exit(0);
	}
	test_reap(child, 0);
}

/* ---- at work ---------------------------------------------------------------------------- */

static void copies(void)
{
	char *memory;

	open_edu();
	memory = pinned(64, 7);
	card_reads(memory, 5, 7);
	/* Into another page of the same memory, which then goes home. */
	card_reads(memory, 9, 7);
	must(edu_store(edu, memory + 20 * PAGE, EDU_MOST), "the card writes");
	CHECK_EQ(unpin(memory, 64), 0);
	for (size_t i = 0; i < 512; i++)
		CHECK_EQ(((volatile uint64_t *)(memory + 20 * PAGE))[i],
			 i < WORDS ? test_word(9, i, 7) : test_word(20, i, 7));
	test_check(memory, 20, 7);
	card_reaches_nothing(memory, 7);
	close_edu();
}

/* Between the CPU, the card and the CPU, each touch of the one taking it from the other. */
static void travels(void)
{
	char *memory;

	open_edu();
	memory = pinned(16, 1);
	for (uint64_t round = 2; round < 6; round++) {
		give_card(round);
		must(edu_store(edu, memory, EDU_MOST), "the card writes");
		for (size_t i = 0; i < WORDS; i++)
			CHECK_EQ(((volatile uint64_t *)memory)[i], test_word(0, i, round));
		test_fill(memory, 16, round);
		must(pin(memory, 16), "pin");
		card_reads(memory, 3, round);
	}
	must(unpin(memory, 16), "unpin");
	close_edu();
}

/*
 * A read by the CPU leaves the card what it had, to be read; its pin holds. Wanted for writing, the page is its alone
 * again.
 */
static void read_by_both(void)
{
	const volatile uint64_t *words;
	struct reach *reach;
	char *memory;

	open_edu();
	memory = pinned(16, 1);
	test_check(memory, 16, 1);
	card_reads(memory, 3, 1);
	card_reads(memory, 15, 1);
	test_check(memory, 16, 1);
	/* Whoever would rather not wait has asked for it all the same. */
	{
		struct reach *soon = malloc(sizeof(*soon));
		long n = -EAGAIN;

		begin_reach(soon, memory + 12 * PAGE, 2, true);
		for (unsigned int i = 0; i < 1000 && (n == -EAGAIN || n == -EBUSY); i++) {
			hmm_range_wait_until_valid(&soon->range, 1000);
			n = hmm_range_fault(&soon->range, false);
			usleep(1000);
		}
		CHECK_EQ(n, 2);
		end_reach(soon);
	}
	/* What may not leave the CPU is refused, and that is told. */
	test_check(memory, 16, 1);
	CHECK_EQ(mprotect(memory + 14 * PAGE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC), 0);
	CHECK_EQ(edu_load(edu, memory + 14 * PAGE, EDU_MOST), 0);
	CHECK_EQ(edu_store(edu, memory + 14 * PAGE, EDU_MOST), -EFAULT);
	CHECK_EQ(mprotect(memory + 14 * PAGE, PAGE, PROT_READ | PROT_WRITE), 0);
	test_check(memory, 16, 1);
	/* It is in the IOMMU, and not to be written there. */
	reach = malloc(sizeof(*reach));
	begin_reach(reach, memory, 16, false);
	CHECK_EQ(map(reach), 16);
	give_card(2);
	edu_store_blindly(edu, memory, EDU_MOST);
	printf("out of reach: %p\n", memory);
	fflush(stdout);
	test_check(memory, 16, 1);
	CHECK(hmm_range_valid(&reach->range));
	/* Asked for to be written, without another pin. */
	must(edu_store(edu, memory + 7 * PAGE, EDU_MOST), "the card writes");
	words = (volatile uint64_t *)(memory + 7 * PAGE);
	for (size_t i = 0; i < WORDS; i++)
		CHECK_EQ(words[i], test_word(0, i, 2));
	test_check(memory, 7, 1);
	/* What the CPU writes it takes, and ends its pin. */
	CHECK_EQ(map(reach), 16);
	test_fill(memory + 9 * PAGE, 1, 4);
	CHECK(!hmm_range_valid(&reach->range));
	CHECK_EQ(edu_load(edu, memory + 9 * PAGE, EDU_MOST), -EFAULT);
	card_reads(memory, 10, 1);
	test_check(memory + 9 * PAGE, 1, 4);
	end_reach(reach);
	must(unpin(memory, 16), "unpin");
	CHECK_EQ(edu_load(edu, memory, EDU_MOST), -EFAULT);
	test_check(memory, 7, 1);
	close_edu();
}

static void coherent(void)
{
	char *memory;
	void *at;

	open_edu();
	CHECK_EQ(hmm_alloc(edu_mirror(edu), 2 * BLOCK, &at), 0);
	/* Over the blocks' border, page by page and nothing twice. */
	memory = (char *)at + BLOCK - 2 * PAGE;
	test_fill(memory, 4, 11);
	for (size_t i = 0; i < 4; i++)
		card_reads(memory, i, 11);
	give_card(12);
	must(edu_store(edu, memory + 2 * PAGE, EDU_MOST), "the card writes");
	CHECK_EQ(*(volatile uint64_t *)(memory + 2 * PAGE), test_word(0, 0, 12));
	CHECK_EQ(hmm_free(edu_mirror(edu), at, 2 * BLOCK), 0);
	close_edu();
}

static void shared(void)
{
	struct reach *reach;
	char *memory;

	open_edu();
	memory = test_map_huge(1);
	test_fill(memory, 512, 13);
	must(hmm_share(edu_mirror(edu), memory, BLOCK), "share");
	reach = reached(memory, 512);
	card_reads(memory, 511, 13);
	must(hmm_unshare(edu_mirror(edu), memory, BLOCK), "unshare");
	CHECK(!hmm_range_valid(&reach->range));
	card_reaches_nothing(memory, 13);
	test_check(memory, 512, 13);
	end_reach(reach);
	close_edu();
}

/* ---- changes -------------------------------------------------------------------------------- */

static void unmapped(void)
{
	struct reach *reach;
	char *memory, *other;

	open_edu();
	memory = pinned(32, 1);
	reach = reached(memory, 32);
	card_reads(memory, 31, 1);
	CHECK_EQ(munmap(memory, 32 * PAGE), 0);
	other = mmap(memory, 32 * PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(other == memory);
	test_fill(other, 32, 2);
	/* The event has been read by now, and is applied soon. */
	while (hmm_range_valid(&reach->range))
		;
	card_reaches_nothing(other, 2);
	end_reach(reach);
	close_edu();
}

static void taken_home(void)
{
	struct reach *reach;
	char *memory;

	open_edu();
	memory = pinned(32, 1);
	reach = reached(memory, 32);
	test_check(memory, 32, 1);
	card_reaches_nothing(memory, 1);
	CHECK(!hmm_range_valid(&reach->range));
	must(pin(memory, 32), "pin");
	CHECK_EQ(map(reach), 32);
	card_reads(memory, 30, 1);
	end_reach(reach);
	must(unpin(memory, 32), "unpin");
	close_edu();
}

static void discarded(void)
{
	struct reach *reach;
	char *memory;

	open_edu();
	memory = pinned(32, 1);
	reach = reached(memory, 32);
	CHECK_EQ(madvise(memory, 32 * PAGE, MADV_DONTNEED), 0);
	test_check_zero(memory, 32);
	test_fill(memory, 32, 2);
	card_reaches_nothing(memory, 2);
	end_reach(reach);
	close_edu();
}

static void moved(void)
{
	struct reach *reach;
	char *memory, *to;

	open_edu();
	memory = pinned(32, 1);
	reach = reached(memory, 32);
	to = test_map(32);
	CHECK(mremap(memory, 32 * PAGE, 32 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	CHECK(mmap(memory, PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == memory);
	test_fill(memory, 1, 2);
	card_reaches_nothing(memory, 2);
	/* Its pin has gone along. */
	card_reads(to, 7, 1);
	test_check(to, 32, 1);
	end_reach(reach);
	close_edu();
}

static void protected(void)
{
	struct reach *reach;
	char *memory;
	void *at;

	open_edu();
	CHECK_EQ(hmm_alloc(edu_mirror(edu), BLOCK, &at), 0);
	memory = at;
	test_fill(memory, 4, 1);
	reach = reached(memory, 4);
	CHECK_EQ(mprotect(memory, BLOCK, PROT_READ), 0);
	CHECK(!hmm_range_valid(&reach->range));
	card_reaches_nothing(memory, 1);
	CHECK_EQ(map(reach), -EPERM);
	CHECK_EQ(edu_store(edu, memory, EDU_MOST), -EPERM);
	reach->range.default_flags = 1;
	CHECK_EQ(map(reach), 4);
	card_reads(memory, 2, 1);
	/* It is there, to be read. */
	give_card(9);
	edu_store_blindly(edu, memory, EDU_MOST);
	test_check(memory, 4, 1);
	CHECK_EQ(mprotect(memory, BLOCK, PROT_READ | PROT_WRITE), 0);
	reach->range.default_flags = 3;
	CHECK_EQ(map(reach), 4);
	must(edu_store(edu, memory, EDU_MOST), "the card writes");
	CHECK_EQ(*(volatile uint64_t *)memory, test_word(0, 0, 9));
	end_reach(reach);
	CHECK_EQ(hmm_free(edu_mirror(edu), at, BLOCK), 0);
	close_edu();
}

static void freed(void)
{
	struct reach *reach;
	char *memory;
	void *at;

	open_edu();
	CHECK_EQ(hmm_alloc(edu_mirror(edu), BLOCK, &at), 0);
	memory = at;
	test_fill(memory, 1, 1);
	reach = reached(memory, 1);
	CHECK_EQ(hmm_free(edu_mirror(edu), at, BLOCK), 0);
	while (!hmm_range_wait_until_valid(&reach->range, 1000))
		;
	CHECK(mmap(memory, PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == memory);
	test_fill(memory, 1, 2);
	card_reaches_nothing(memory, 2);
	end_reach(reach);
	close_edu();
}

/* Pages beside those that change lose their place too, and get it back. */
static void neighbours(void)
{
	struct reach *reach;
	char *memory;

	open_edu();
	memory = pinned(64, 1);
	reach = reached(memory, 8);
	CHECK_EQ(*(volatile uint64_t *)(memory + 60 * PAGE), test_word(60, 0, 1));
	/* Those were not mapped: nothing of the others has gone. */
	card_reads(memory, 3, 1);
	CHECK_EQ(*(volatile uint64_t *)(memory + 5 * PAGE), test_word(5, 0, 1));
	CHECK(!hmm_range_valid(&reach->range));
	/* It was read, which ends no pin; of a BAR it has gone home. */
	CHECK_EQ(map(reach), memory_bus() ? -EFAULT : 8);
	test_fill(memory + 5 * PAGE, 1, 6);
	CHECK_EQ(map(reach), -EFAULT);
	must(pin(memory, 64), "pin");
	CHECK_EQ(map(reach), 8);
	card_reads(memory, 4, 1);
	end_reach(reach);
	must(unpin(memory, 64), "unpin");
	close_edu();
}

static void given_back(void)
{
	struct reach *reach, *other;
	void *at;

	open_edu();
	CHECK_EQ(hmm_alloc(edu_mirror(edu), BLOCK, &at), 0);
	test_fill(at, 8, 1);
	reach = reached(at, 8);
	other = reached((char *)at + 4 * PAGE, 8);
	CHECK_EQ(hmm_range_dma_unmap(&reach->range, device, reach->daddrs, true), 8);
	CHECK_EQ(reach->daddrs[7], 0);
	/* The other range has a part of the block. */
	edu_load_blindly(edu, (char *)at + 6 * PAGE, EDU_MOST);
	card_has(6, 1);
	CHECK_EQ(hmm_range_dma_unmap(&other->range, device, other->daddrs, true), 8);
	card_reaches_nothing(at, 1);
	end_reach(reach);
	end_reach(other);
	/* Unregistering is enough. */
	end_reach(reached(at, 8));
	card_reaches_nothing(at, 1);
	CHECK_EQ(hmm_free(edu_mirror(edu), at, BLOCK), 0);
	close_edu();
}

/* Nobody runs its callbacks: after the deadline the change takes place, and the card is out. */
static void late(void)
{
	struct reach *reach;
	char *memory;
	int fd;

	fd = open_edu_for(true);
	memory = pinned(16, 1);
	reach = reached(memory, 16);
	/* In the kernel until hmmd has waited long enough. */
	test_check(memory, 1, 1);
	CHECK_EQ(poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0), 1);
	edu_store_blindly(edu, memory, EDU_MOST);
	edu_load_blindly(edu, memory, EDU_MOST);
	test_check(memory, 1, 1);
	printf("out of reach: %p\n", memory);
	while (hmm_dispatch(hmm, 0, 0) > 0)
		;
	end_reach(reach);
	must(unpin(memory, 16), "unpin");
	close_edu();
}

/* A limit of the kernel's that the script has set, to 4 mappings. */
static void limited(void)
{
	struct reach *reach[8];
	unsigned int n = 0;
	void *at;

	open_edu();
	CHECK_EQ(hmm_alloc(edu_mirror(edu), 8 * BLOCK, &at), 0);
	test_fill(at, 1, 1);
	for (; n < 8; n++) {
		reach[n] = malloc(sizeof(*reach[n]));
		begin_reach(reach[n], (char *)at + n * BLOCK, 1, true);
		if (map(reach[n]) != 1)
			break;
	}
	CHECK_EQ(n, 4);
	CHECK(strstr(hmm_last_error(), "0 are left") &&
	      strstr(hmm_last_error(), "dma_entry_limit"));
	CHECK_EQ(map(reach[n]), -EFAULT);
	CHECK_EQ(reach[n]->daddrs[0], 0);
	/* Two blocks where there is room for one: neither. */
	end_reach(reach[n]);
	end_reach(reach[3]);
	reach[3] = malloc(sizeof(*reach[3]));
	begin_reach(reach[3], (char *)at + 4 * BLOCK - PAGE, 2, true);
	CHECK_EQ(map(reach[3]), -EFAULT);
	test_fill((char *)at + 4 * BLOCK - PAGE, 1, 2);
	end_reach(reach[2]);
	card_reaches_nothing((char *)at + 4 * BLOCK - PAGE, 2);
	CHECK_EQ(map(reach[3]), 2);
	for (n = 0; n < 4; n++)
		if (n != 2)
			end_reach(reach[n]);
	CHECK_EQ(hmm_free(edu_mirror(edu), at, 8 * BLOCK), 0);
	close_edu();
}

/* ---- hmmd, or the driver, is killed ------------------------------------------------------------ */

static void say(const char *line)
{
	puts(line);
	fflush(stdout);
}

static void wait_for_line(void)
{
	int c;

	while ((c = getchar()) != '\n' && c != EOF)
		;
}

static void outage(void)
{
	struct reach *reach;
	char *memory;
	void *at;

	open_edu();
	CHECK_EQ(hmm_alloc(edu_mirror(edu), BLOCK, &at), 0);
	memory = at;
	test_fill(memory, 4, 1);
	reach = reached(memory, 4);
	give_card(5);
	say("mapped");
	wait_for_line();
	/* There is no hmmd: nobody but its holder can have done this. */
	edu_store_blindly(edu, memory, EDU_MOST);
	test_check(memory, 1, 1);
	say("nothing");
	wait_for_line();
	CHECK_EQ(map(reach), 4);
	card_reads(memory, 3, 1);
	end_reach(reach);
	CHECK_EQ(hmm_free(edu_mirror(edu), at, BLOCK), 0);
	close_edu();
}

/* hmmd ends in good order and another one comes: nothing is coherent or pinned, and the card is the same. */
static void restarted(void)
{
	char *memory;
	void *at;

	open_edu();
	memory = pinned(16, 1);
	card_reads(memory, 1, 1);
	say("mapped");
	wait_for_line();
	test_check(memory, 16, 1);
	must(pin(memory, 16), "pin");
	CHECK_EQ(hmm_alloc(edu_mirror(edu), BLOCK, &at), 0);
	tray = at;
	card_reads(memory, 2, 1);
	must(unpin(memory, 16), "unpin");
	close_edu();
}

/* The same where the device's memory is a BAR: what lies there outlives hmmd, and the card is let into it again. */
static void outage_in_bar(void)
{
	struct reach *reach;
	char *memory;

	open_edu();
	memory = pinned(4, 1);
	give_card(5);
	reach = reached(memory, 4);
	say("mapped");
	wait_for_line();
	edu_store_blindly(edu, memory, EDU_MOST);
	say("nothing");
	wait_for_line();
	CHECK_EQ(map(reach), 4);
	say("there");
	wait_for_line();
	card_reads(memory, 3, 1);
	card_reads(memory, 0, 1);
	test_check(memory, 4, 1);
	end_reach(reach);
	must(unpin(memory, 4), "unpin");
	close_edu();
}

/* Coherent memory is what both reach at once, and a BAR is nothing that the CPU does. */
static void refusals_in_bar(void)
{
	const struct hmm_device_options options = {.size = sizeof(options), .name = "never", .node = -1,
						   .caps = HMM_DEVICE_DMA, .pool = HMM_POOL_VFIO, .bar = 2,
						   .bus = bus(), .memory_bus = bus()};
	struct hmm_device_options other = options;
	struct hmm_device *never;
	char *memory, *much;
	void *at;

	open_edu();
	CHECK_EQ(hmm_alloc(edu_mirror(edu), BLOCK, &at), -EOPNOTSUPP);
	memory = test_map_huge(1);
	test_fill(memory, 512, 1);
	CHECK_EQ(hmm_share(edu_mirror(edu), memory, BLOCK), -EOPNOTSUPP);
	CHECK_EQ(hmm_migrate(edu_mirror(edu), (unsigned long)memory, PAGE, HMM_DEVICE, 0, NULL, NULL), -EOPNOTSUPP);
	/* More than the device has of the BAR: nothing of it goes there. */
	much = test_map(MEMORY / PAGE + 1);
	test_fill(much, 2, 3);
	CHECK_EQ(pin(much, MEMORY / PAGE + 1), -ENOSPC);
	CHECK(strstr(hmm_last_error(), "33554432"));
	test_check(much, 2, 3);
	CHECK_EQ(hmm_device_new(hmm, &options, &never), -EINVAL);
	CHECK(strstr(hmm_last_error(), "its own BAR"));
	other.pool = HMM_POOL_MEMFD;
	other.bar = 0;
	CHECK_EQ(hmm_device_new(hmm, &other, &never), -EINVAL);
	other = options;
	other.memory_bus = "0000:00:04.0 and more";
	CHECK_EQ(hmm_device_new(hmm, &other, &never), -EINVAL);
	/* It is this program's card, and the other one nobody's but hmmd's. */
	other = options;
	other.bus = memory_bus();
	other.memory_bus = NULL;
	CHECK_EQ(hmm_device_new(hmm, &other, &never), -EINVAL);
	CHECK(strstr(hmm_last_error(), "goes with faults"));
	card_reaches_nothing(memory, 1);
	close_edu();
}

static void hold(void)
{
	open_edu();
	lay_tray_out();
	reached(tray, memory_bus() ? 1 : 512);
	say("mapped");
	wait_for_line();
	close_edu();
}

/* The kernel wants the card back: the driver hears of it, and has nothing of it any more. */
static void recalled(void)
{
	struct reach *reach;
	char *memory;

	open_edu();
	memory = pinned(4, 1);
	reach = reached(memory, 4);
	card_reads(memory, 3, 1);
	say("mapped");
	wait_for_line();
	CHECK(!hmm_range_valid(&reach->range));
	CHECK_EQ(map(reach), -ENODEV);
	CHECK(strstr(hmm_last_error(), "wanted back"));
	CHECK_EQ(edu_load(edu, memory, EDU_MOST), -ENODEV);
	CHECK_EQ(hmm_device_fd(device), -ENODEV);
	CHECK(strstr(hmm_last_error(), "wanted back"));
	end_reach(reach);
	must(unpin(memory, 4), "unpin");
	test_check(memory, 4, 1);
	close_edu();
}

static void goes_on(const char *name)
{
	struct hmm_device_options options = {.size = sizeof(options), .name = name, .memory = BLOCK, .node = -1,
					     .caps = HMM_DEVICE_FAULTS, .pool = HMM_POOL_MEMFD};
	struct hmm_mirror other = {0};
	char *memory = test_map(8);

	must(hmm_device_new(hmm, &options, &other.device), "another device");
	test_mirror(&other, other.device);
	test_fill(memory, 8, 5);
	CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, 8 * PAGE, HMM_ADVISE_UNPINNED, NULL), 0);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 8 * PAGE, HMM_DEVICE, 0, NULL, NULL), 8);
	test_check(memory, 8, 5);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(other.device);
}

/* Its card is gone for good, and hmmd too, twice: its program goes on with everything else. */
static void recalled_and_restarted(void)
{
	struct reach *reach;
	char *memory;

	open_edu();
	memory = pinned(4, 1);
	reach = reached(memory, 4);
	say("mapped");
	for (unsigned int i = 0; i < 3; i++) {
		wait_for_line();
		CHECK_EQ(map(reach), i < 2 ? -ENODEV : -EFAULT);
		CHECK_EQ(hmm_device_fd(device), -ENODEV);
		goes_on(i == 0 ? "first" : i == 1 ? "second" : "third");
		say("goes on");
	}
	end_reach(reach);
	test_check(memory, 4, 1);
	edu_close(edu);
	hmm_close(hmm);
}

/* The other card, where its memory is, is wanted back: what is pinned there comes home, out of this card's reach. */
static void memory_recalled(void)
{
	struct reach *reach;
	char *memory;

	open_edu();
	memory = pinned(4, 1);
	reach = reached(memory, 4);
	card_reads(memory, 3, 1);
	say("mapped");
	wait_for_line();
	CHECK(!hmm_range_valid(&reach->range));
	/* It has page 3. */
	edu_store_blindly(edu, memory, EDU_MOST);
	test_check(memory, 4, 1);
	end_reach(reach);
	must(unpin(memory, 4), "unpin");
	CHECK_EQ(pin(memory, 4), -ENOSPC);
	test_check(memory, 4, 1);
	close_edu();
}

static const struct test_case cases[] = {
	{"refusals", refusals, false},
	{"refusals-there", refusals_there, true},
	{"stranger", stranger, true},
	{"copies", copies, true},
	{"travels", travels, true},
	{"read-by-both", read_by_both, true},
	{"coherent", coherent, true},
	{"shared", shared, true},
	{"unmapped", unmapped, true},
	{"taken-home", taken_home, true},
	{"discarded", discarded, true},
	{"moved", moved, true},
	{"protected", protected, true},
	{"freed", freed, true},
	{"neighbours", neighbours, true},
	{"given-back", given_back, true},
	{"late", late, true},
	{"limited", limited, true},
	{"outage", outage, true},
	{"restarted", restarted, true},
	{"hold", hold, true},
	{"recalled-and-restarted", recalled_and_restarted, true},
	{"outage-in-bar", outage_in_bar, true},
	{"refusals-in-bar", refusals_in_bar, true},
	{"recalled", recalled, true},
	{"memory-recalled", memory_recalled, true},
	{NULL, NULL, false},
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
