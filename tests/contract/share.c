// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Exchanging one mapping for another in place, by mremap(), while threads use the
 * addresses: what hmm_share() and hmm_unshare() lean on.
 *
 * What can fail: a moment in which nothing is mapped there, an event that hmmd does
 * not expect, a registration that stays behind or does not come along.
 */
#include <sys/mman.h>

#include "contract.h"

#define ALL_EVENTS	(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP |	\
			 UFFD_FEATURE_EVENT_REMAP)
#define ONTO		(MREMAP_MAYMOVE | MREMAP_FIXED)

TestSuite(share, .init = contract_begin);

/* A shadow of one block, all of this byte. */
static int filled_shadow(int value)
{
	int fd = memfd_new("shadow", BLOCK, 0);
	char *map = map_memfd(fd, BLOCK, 0);

	memset(map, value, BLOCK);
	munmap(map, BLOCK);
	return fd;
}

static struct uffd_msg unmap_event(int fd, char *within)
{
	struct uffd_msg msg = expect_event(fd, UFFD_EVENT_UNMAP);

	cr_assert_geq(msg.arg.remove.start, (uintptr_t)within);
	cr_assert_leq(msg.arg.remove.end, (uintptr_t)within + BLOCK);
	return msg;
}

Test(share, a_shadow_takes_the_place_of_armed_memory)
{
	int fd = uffd_open(ALL_EVENTS), shadow = filled_shadow(7);
	char *mem = map_blocks(1), *map = map_memfd(shadow, BLOCK, 0);
	struct uffd_msg msg;
	struct call touch, call;

	cr_assert_eq(uffd_register(fd, mem, BLOCK, MISSING | WP), 0);
	load_start(&touch, mem + 5 * PAGE);
	expect_fault(fd, mem + 5 * PAGE, 0);
	CALL(&call, SYS_mremap, (long)map, BLOCK, BLOCK, ONTO, (long)mem);
	wait_until(!no_event(fd));
	/* It is done; the caller waits until that has been told, and nobody else does. */
	cr_assert(still_blocked(&call));
	cr_assert_eq(*(volatile char *)mem, 7);
	cr_assert(still_blocked(&touch));
	msg = unmap_event(fd, mem);
	cr_assert_eq(msg.arg.remove.end - msg.arg.remove.start, BLOCK);
	cr_assert_eq(call_end(&call), (long)mem);
	/* Nothing is registered there any more, and whoever waited there has to be woken. */
	cr_assert_eq(uffd_wp(fd, mem, BLOCK, false), -ENOENT);
	cr_assert_eq(uffd_wake(fd, mem, BLOCK), 0);
	cr_assert_eq(call_end(&touch), 7);
	cr_assert(no_event(fd));
	mem[9] = 8;
	map = map_memfd(shadow, BLOCK, 0);
	cr_assert_eq(map[9], 8, "the very same page");
}

/* To the program it was one mapping; to the kernel, several, some of them never armed. */
Test(share, several_mappings_are_replaced_at_once)
{
	int fd = uffd_open(ALL_EVENTS), shadow = filled_shadow(7);
	char *mem = map_blocks(1), *map = map_memfd(shadow, BLOCK, 0);
	struct uffd_msg msg;
	struct call call;

	cr_assert_eq(madvise(mem + 100 * PAGE, 100 * PAGE, MADV_DONTDUMP), 0);
	cr_assert_eq(uffd_register(fd, mem, 300 * PAGE, MISSING | WP), 0);
	CALL(&call, SYS_mremap, (long)map, BLOCK, BLOCK, ONTO, (long)mem);
	/* One event of all of it, also of what was never armed. */
	msg = unmap_event(fd, mem);
	cr_assert_eq(msg.arg.remove.end - msg.arg.remove.start, BLOCK);
	cr_assert_eq(call_end(&call), (long)mem);
	cr_assert(no_event(fd));
	for (size_t i = 0; i < BLOCK; i += PAGE)
		cr_assert_eq(mem[i], 7);
}

static atomic_bool enough;

static void *read_always(void *data)
{
	volatile char *mem = data;
	unsigned long seen = 0;

	while (!atomic_load(&enough))
		for (size_t i = 0; i < BLOCK; i += PAGE) {
			char value = mem[i];

			if (value != 7)
				return (void *)1;
			seen++;
		}
	return NULL;
}

static void *read_events(void *data)
{
	int fd = *(int *)data;
	struct uffd_msg msg;

	while (!atomic_load(&enough))
		if (read(fd, &msg, sizeof(msg)) != sizeof(msg))
			usleep(100);
	return NULL;
}

/* Readers would die of SIGSEGV if there were a moment with nothing. */
Test(share, there_is_no_moment_without_a_mapping)
{
	int fd = uffd_open(ALL_EVENTS), shadow = filled_shadow(7);
	char *mem = map_memfd_aligned(shadow, BLOCK, 0);
	pthread_t reader[2], events;
	void *wrong;

	cr_assert_eq(pthread_create(&events, NULL, read_events, &fd), 0);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(pthread_create(&reader[i], NULL, read_always, mem), 0);
	for (int round = 0; round < 2000; round++) {
		char *map = map_memfd(shadow, BLOCK, 0);

		cr_assert_eq(mremap(map, BLOCK, BLOCK, ONTO, mem), mem);
	}
	atomic_store(&enough, true);
	for (int i = 0; i < 2; i++) {
		pthread_join(reader[i], &wrong);
		cr_assert_null(wrong);
	}
	pthread_join(events, NULL);
}

Test(share, armed_memory_takes_the_place_of_a_shadow)
{
	int fd = uffd_open(ALL_EVENTS), shadow = filled_shadow(7);
	char *mem = map_memfd_aligned(shadow, BLOCK, 0), *map = map_pages(BLOCK / PAGE), *bytes = map_pages(1);
	struct call call, touch;
	struct uffd_msg msg;

	memset(bytes, 9, PAGE);
	cr_assert_eq(mem[0], 7);
	cr_assert_eq(uffd_register(fd, map, BLOCK, MISSING | WP), 0);
	CALL(&call, SYS_mremap, (long)map, BLOCK, BLOCK, ONTO, (long)mem);
	/* Of what moved; none of what it replaced. */
	msg = expect_event(fd, UFFD_EVENT_REMAP);
	cr_assert_eq(msg.arg.remap.from, (uintptr_t)map);
	cr_assert_eq(msg.arg.remap.to, (uintptr_t)mem);
	cr_assert_eq(msg.arg.remap.len, BLOCK);
	cr_assert(still_blocked(&call));
	msg = unmap_event(fd, map);
	cr_assert_eq(msg.arg.remove.end - msg.arg.remove.start, BLOCK);
	cr_assert_eq(call_end(&call), (long)mem);
	cr_assert(no_event(fd));
	/* It is armed: empty, and filled by nobody but us. */
	cr_assert_not(pagemap(mem) & (PM_PRESENT | PM_SWAP));
	load_start(&touch, mem + 3 * PAGE);
	expect_fault(fd, mem + 3 * PAGE, 0);
	cr_assert_eq(uffd_copy(fd, mem + 3 * PAGE, bytes, PAGE, 0), 0);
	cr_assert_eq(call_end(&touch), 9);
	/* The shadow's own pages are what they were. */
	map = map_memfd(shadow, BLOCK, 0);
	cr_assert_eq(map[3 * PAGE], 7);
}

/* Its map may change without a word: hmmd hears nothing of coherent memory. */
Test(share, a_shadow_in_place_raises_no_event)
{
	int fd = uffd_open(ALL_EVENTS), shadow = filled_shadow(7);
	char *mem = map_blocks(2), *map = map_memfd(shadow, BLOCK, 0);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem + BLOCK, BLOCK, MISSING | WP), 0);
	cr_assert_eq(mremap(map, BLOCK, BLOCK, ONTO, mem), mem);
	CALL(&call, SYS_madvise, (long)mem, BLOCK, MADV_DONTNEED);
	cr_assert_eq(call_end(&call), 0);
	cr_assert_eq(mem[PAGE], 7, "of shared memory DONTNEED forgets nothing");
	CALL(&call, SYS_munmap, (long)mem, BLOCK);
	cr_assert_eq(call_end(&call), 0);
	cr_assert(no_event(fd));
}

/* The agent's last look before it exchanges: whether what it replaces is still what hmmd armed. */
Test(share, writeprotect_tells_what_is_armed)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_blocks(1);
	struct call call;
	int answer;

	/* Pages that are not there it steps over; what is mapped has to be armed. */
	cr_assert_eq(uffd_wp(fd, mem, BLOCK, false), -ENOENT);
	cr_assert_eq(uffd_register(fd, mem, BLOCK, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, BLOCK, false), 0);
	CALL(&call, SYS_munmap, (long)(mem + 10 * PAGE), PAGE);
	wait_until(!no_event(fd));
	cr_assert_eq(uffd_wp(fd, mem, BLOCK, false), -EAGAIN);
	expect_event(fd, UFFD_EVENT_UNMAP);
	cr_assert_eq(call_end(&call), 0);
	/* Linux 6.1 looks at one mapping only. */
	answer = uffd_wp(fd, mem, BLOCK, false);
	cr_assert(answer == 0 || answer == -ENOENT, "%s", strerror(-answer));
	cr_assert_eq(mmap(mem + 10 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
		     mem + 10 * PAGE);
	cr_assert_eq(uffd_wp(fd, mem, BLOCK, false), -ENOENT);
}
