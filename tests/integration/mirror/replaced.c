/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * replaced.c - a thread puts one mapping in another's place, over and over, while a device asks
 * for what is there. Something is mapped at any time and all of it may be read and written, so the
 * device is refused nothing; what it finds is what some mapping had: its mark, or zeros.
 */
#include "mirror.h"

#include <pthread.h>
#include <stdatomic.h>

#include "look.h"

#define DEVICE_MEMORY (64UL << 20)

#define FIRST 64UL	/* what is replaced lies in the middle of a block */
#define PAGES 32UL
#define MARK 0x4d41524bU
#define TURNS 4000U
#define LEAST 200U	/* of turns that are not told to come back, and of replacements */

enum way { MAPPED_OVER, MOVED_ONTO };

static struct {
	char *memory;
	enum way way;
	_Atomic bool stop;
	_Atomic unsigned long replaced;
} owner;

static void map_over(void)
{
	char *fresh = mmap(owner.memory, PAGES * PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	CHECK(fresh == owner.memory);
	*(volatile uint32_t *)fresh = MARK;
}

/* The kernel unmaps what is there before it moves. */
static void move_onto(void)
{
	char *fresh = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(fresh != MAP_FAILED);
	*(volatile uint32_t *)fresh = MARK;
	CHECK(mremap(fresh, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		     owner.memory) == owner.memory);
}

static void *replace(void *unused)
{
	(void)unused;
	while (!atomic_load(&owner.stop)) {
		if (owner.way == MAPPED_OVER)
			map_over();
		else
			move_onto();
		atomic_fetch_add(&owner.replaced, 1);
	}
	return NULL;
}

/* One turn of a device's. Return: as the library says it. */
static long look_once(struct hmm_range *range, bool fault)
{
	long result;

	CHECK(hmm_range_wait_until_valid(range, LOOK_PATIENCE));
	result = fault ? hmm_range_fault(range, true) : hmm_range_snapshot(range);
	for (unsigned long i = 0; result >= 0 && i < PAGES; i++) {
		uint64_t entry = range->pfns[i];

		if (fault ? !(entry & VALID) : entry == ERROR || entry == SPECIAL)
			FAIL("page %lu: entry %#lx", i, entry);
	}
	return result;
}

static long access_once(bool write)
{
	unsigned long addr = (unsigned long)owner.memory;
	uint32_t word = MARK;
	long result = write ? hmm_device_write(&mirror, addr, &word, sizeof(word))
			    : hmm_device_read(&mirror, addr, &word, sizeof(word));

	if (result >= 0 && word != MARK && word)
		FAIL("%#x is read, which was there at no time", word);
	return result;
}

enum what { FAULTS, SNAPSHOTS, READS, WRITES, WHATS };
static const char *const names[WHATS] = { "range faults", "snapshots", "reads", "writes" };

static long take_turn(enum what what, struct hmm_range *range)
{
	if (what == FAULTS || what == SNAPSHOTS)
		return look_once(range, what == FAULTS);
	return access_once(what == WRITES);
}

static bool was_replaced_since(unsigned long before)
{
	return atomic_load(&owner.replaced) - before >= LEAST;
}

static void turns(enum what what)
{
	unsigned long before = atomic_load(&owner.replaced), done = 0, busy = 0, refused = 0;
	struct hmm_range range = look_at(owner.memory, PAGES);
	long result;

	range.default_flags = VALID;
	for (unsigned int i = 0; i < TURNS || done < LEAST || !was_replaced_since(before); i++) {
		result = take_turn(what, &range);
		done += result > 0;
		busy += result == -EBUSY || result == -EAGAIN;
		refused += result == -EFAULT;
		if (result <= 0 && result != -EBUSY && result != -EAGAIN && result != -EFAULT)
			FAIL("%s: %ld (%s)", names[what], result, hmm_last_error());
	}
	printf("%s: %lu done, %lu to come back, %lu refused, beside %lu replacements\n",
	       names[what], done, busy, refused, atomic_load(&owner.replaced) - before);
	end(&range);
	CHECK_EQ(refused, 0);
}

static void replaced(enum way way)
{
	pthread_t thread;

	test_open(0, DEVICE_MEMORY);
	owner.memory = test_map_huge(1) + FIRST * PAGE;
	owner.way = way;
	CHECK_EQ(pthread_create(&thread, NULL, replace, NULL), 0);
	for (enum what what = 0; what < WHATS; what++)
		turns(what);
	atomic_store(&owner.stop, true);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK_EQ(*(volatile uint32_t *)owner.memory, MARK);
	test_close();
}

static void mapped_over(void)
{
	replaced(MAPPED_OVER);
}

static void moved_onto(void)
{
	replaced(MOVED_ONTO);
}

static const struct test_case cases[] = {
	{ "mapped-over", mapped_over, false }, { "moved-onto", moved_onto, false },
	{ NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
