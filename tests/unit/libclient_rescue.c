/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The rescuer against the real kernel: an owner whose hmmd died at a chosen
 * moment, written into ledger, shadow and slot as hmmd would have left it.
 */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "libclient/arena.h"
#include "libclient/owner.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(rescue);

#define HOME	0x6a0000000000UL
#define BLOCKS	4U

static struct owner *owner;
static char *home, *golden;
static int shadow;

/*
 * The library's calls come through here. There is no memory, so many times, for what it asks with that request: of
 * the owner's userfaultfd or of a child's.
 */
static struct {
	unsigned long request;
	int error;			/* what the kernel says then; 0: ENOMEM */
	bool of_child;
	unsigned int times;
	uint32_t *until;		/* until this is set, if that is earlier */
} short_of;

/* So many children at most were being served in the middle of each other. */
static unsigned int deepest;

__attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (request == UFFDIO_COPY && owner->rescuer.serving > deepest)
		deepest = owner->rescuer.serving;
	if (short_of.until && __atomic_load_n(short_of.until, __ATOMIC_ACQUIRE))
		short_of.times = 0;
	if (short_of.times && request == short_of.request && (fd != owner->uffd) == short_of.of_child) {
		short_of.times--;
		errno = short_of.error ? short_of.error : ENOMEM;
		return -1;
	}
	return (int)syscall(SYS_ioctl, fd, request, argument);
}

static void arm(void *start, size_t length, uint64_t mode)
{
	struct uffdio_register arg = { .range = { (uintptr_t)start, length }, .mode = mode };

	cr_assert_eq(ioctl(owner->uffd, UFFDIO_REGISTER, &arg), 0, "%s", strerror(errno));
}

static void *map_blocks(uint64_t at, unsigned int blocks)
{
	void *map = mmap((void *)at, blocks * HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	cr_assert_neq(map, MAP_FAILED);
	madvise(map, blocks * HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	return map;
}

static int memfd(size_t size)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	cr_assert_eq(ftruncate(fd, (off_t)size), 0);
	return fd;
}

static void begin_with(uint64_t features)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP |
			    UFFD_FEATURE_EVENT_REMAP | features,
	};
	struct hmm_msg_region event = {
		.base = HOME, .length = HMM_REGION_SIZE, .kind = HMM_POOL_KIND_MEMFD,
	};

	owner = hmmc_arena_alloc(sizeof(*owner));
	owner->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (owner->uffd < 0 || ioctl(owner->uffd, UFFDIO_API, &api))
		cr_skip_test("no userfaultfd with events: %s", strerror(errno));
	owner->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	owner->ledger_fd = memfd(HMM_LEDGER_SIZE);
	owner->orders = mmap(NULL, HMM_ORDERS_SIZE, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	owner->pulse = mmap(NULL, sizeof(*owner->pulse), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	owner->orders->incarnation = 5;
	owner->orders->hold = 1;
	owner->slots = map_blocks(HOME + HMM_REGION_SIZE, 1);
	owner->slots_count = 1;
	arm(owner->slots, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	home = map_blocks(HOME, BLOCKS);
	golden = malloc(BLOCKS * HMM_BLOCK_SIZE);
	for (size_t i = 0; i < BLOCKS * HMM_BLOCK_SIZE; i++)
		golden[i] = (char)(i * 2654435761u >> 11 | 1);
	shadow = memfd(HMM_REGION_SIZE);
	cr_assert_eq(hmmc_region_add(&owner->regions, &event, dup(shadow)), 0);
}

static void begin(void)
{
	begin_with(0);
}

static void end(void)
{
	hmmc_rescuer_stop(&owner->rescuer);
	close(owner->pagemap);
	close(owner->ledger_fd);
	hmmc_region_drop(&owner->regions, HMM_NO_MIRROR);
	munmap(owner->orders, HMM_ORDERS_SIZE);
	munmap(owner->pulse, sizeof(*owner->pulse));
	munmap(home, BLOCKS * HMM_BLOCK_SIZE);
	munmap(owner->slots, HMM_BLOCK_SIZE);
	free(golden);
	close(shadow);
}

/* What is gone, a bit for each block, is zeros, and all else as it was. */
static int look_at(unsigned int blocks, unsigned int gone)
{
	for (unsigned int i = 0; i < blocks; i++)
		for (size_t k = 0; k < HMM_BLOCK_SIZE; k += HMM_PAGE_SIZE)
			if (home[i * HMM_BLOCK_SIZE + k] !=
			    (gone >> i & 1 ? 0 : golden[i * HMM_BLOCK_SIZE + k]))
				return (int)i + 1;
	return 0;
}

static void record(unsigned int block, struct hmm_ledger_block *record_)
{
	record_->epoch = 1;
	record_->flags = HMM_BLOCK_ARMED;
	cr_assert_eq(pwrite(owner->ledger_fd, record_, sizeof(*record_),
			    (off_t)(((HOME >> HMM_BLOCK_SHIFT) + block) * sizeof(*record_))),
		     (ssize_t)sizeof(*record_));
}

/* Every page of the block is on the device. */
static void on_device(unsigned int block)
{
	struct hmm_ledger_block all = { .slot = HMM_NO_SLOT };

	memset(all.page, HMM_PAGE_DEVICE | HMM_PAGE_COMPLETE, sizeof(all.page));
	record(block, &all);
	cr_assert_eq(pwrite(shadow, golden + block * HMM_BLOCK_SIZE, HMM_BLOCK_SIZE,
			    (off_t)(block * HMM_BLOCK_SIZE)),
		     (ssize_t)HMM_BLOCK_SIZE);
}

static void rescue(void)
{
	cr_assert_eq(hmmc_rescuer_start(&owner->rescuer, owner), 0);
	hmmc_rescuer_call(&owner->rescuer);
	futex_latch_wait(&owner->rescuer.done);
	cr_assert_eq(owner->orders->incarnation, HMM_INCARNATION_RESCUE);
	cr_assert_eq(owner->orders->hold, 0);
	cr_assert_eq(owner->pulse->dead, 1);
}

static void graft(uint32_t place, uint64_t address, uint32_t number, const void *bytes)
{
	const struct hmm_graft graft = { .addr = address, .number = number };
	const uint32_t end = place + 1;

	cr_assert_eq(pwrite(owner->ledger_fd, &end, sizeof(end), (off_t)HMM_GRAFTS_OFFSET), (ssize_t)sizeof(end));
	cr_assert_eq(pwrite(owner->ledger_fd, &graft, sizeof(graft),
			    (off_t)(HMM_GRAFTS_OFFSET + offsetof(struct hmm_grafts, graft) +
				    place * sizeof(graft))),
		     (ssize_t)sizeof(graft));
	if (bytes)
		cr_assert_eq(pwrite(owner->ledger_fd, bytes, HMM_PAGE_SIZE,
				    (off_t)(HMM_GRAFT_BYTES_OFFSET + place * HMM_PAGE_SIZE)),
			     (ssize_t)HMM_PAGE_SIZE);
}

/* mremap moved them there while the block was on its way for what had been there before. */
Test(rescue, pages_that_wait_for_a_block_in_transit)
{
	struct hmm_ledger_block block = { .transit = HMM_TRANSIT_HOME_COPY, .slot = HMM_NO_SLOT };

	begin();
	arm(home, BLOCKS * HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	block.pending[0] = 0xe;
	memset(&block.page[1], HMM_PAGE_DEVICE | HMM_PAGE_COMPLETE | HMM_PAGE_SERVED, 3);
	record(0, &block);
	graft(0, HOME + HMM_PAGE_SIZE, HMM_FAR_NONE, golden + HMM_PAGE_SIZE);
	graft(1, 0, HMM_FAR_NONE, golden);
	graft(2, HOME + 2 * HMM_PAGE_SIZE, 17, NULL);
	graft(3, HOME + 3 * HMM_PAGE_SIZE, HMM_FAR_NONE, golden + 3 * HMM_PAGE_SIZE);
	rescue();
	cr_assert_eq(memcmp(home + HMM_PAGE_SIZE, golden + HMM_PAGE_SIZE, HMM_PAGE_SIZE), 0);
	cr_assert_eq(memcmp(home + 3 * HMM_PAGE_SIZE, golden + 3 * HMM_PAGE_SIZE, HMM_PAGE_SIZE), 0);
	cr_assert_eq(owner->rescuer.pages, 2);
	cr_assert_eq(owner->rescuer.lost, 1, "only its driver reaches it");
	end();
}

static sigjmp_buf poisoned;

static void note_bus_error(int number)
{
	siglongjmp(poisoned, 1);
}

static bool is_poisoned(const volatile char *address)
{
	if (sigsetjmp(poisoned, 1))
		return true;
	(void)*address;
	return false;
}

static bool can_poison(void)
{
	struct uffdio_poison arg = { .range = { (uintptr_t)owner->slots, HMM_PAGE_SIZE } };

	return ioctl(owner->uffd, UFFDIO_POISON, &arg) == 0;
}

/* The page table that a marker takes is not to be had for a while. */
Test(rescue, what_the_device_has_lost_is_poisoned_though_memory_is_short)
{
	struct hmm_ledger_block lost = { .slot = HMM_NO_SLOT };

	begin();
	if (!can_poison())
		cr_skip_test("no UFFDIO_POISON: %s", strerror(errno));
	signal(SIGBUS, note_bus_error);
	arm(home, BLOCKS * HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	lost.page[3] = HMM_PAGE_ERROR;
	record(1, &lost);
	short_of.request = UFFDIO_POISON;
	short_of.times = 3;
	rescue();
	cr_assert_eq(short_of.times, 0);
	cr_assert_eq(is_poisoned(home + HMM_BLOCK_SIZE + 3 * HMM_PAGE_SIZE), true);
	cr_assert_eq(is_poisoned(home + HMM_BLOCK_SIZE + 4 * HMM_PAGE_SIZE), false);
	end();
}

/* The kernel has no memory to map it from the shadow, and can't say that it is this which lacks. */
Test(rescue, what_cannot_be_read_for_want_of_memory_comes_home)
{
	begin();
	arm(home, BLOCKS * HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	on_device(1);
	short_of.request = UFFDIO_COPY;
	short_of.error = EFAULT;
	short_of.times = 3;
	rescue();
	cr_assert_eq(short_of.times, 0);
	cr_assert_eq(memcmp(home + HMM_BLOCK_SIZE, golden + HMM_BLOCK_SIZE, HMM_BLOCK_SIZE), 0);
	cr_assert_eq(owner->rescuer.lost, 0);
	end();
}

/* Its memory has failed, say: here there is none, which ends in the same signal. */
Test(rescue, what_cannot_be_read_any_more_is_poisoned)
{
	const size_t kept = 5 * HMM_PAGE_SIZE;

	begin();
	if (!can_poison())
		cr_skip_test("no UFFDIO_POISON: %s", strerror(errno));
	signal(SIGBUS, note_bus_error);
	arm(home, BLOCKS * HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	on_device(0);
	cr_assert_eq(ftruncate(shadow, (off_t)kept), 0);
	rescue();
	cr_assert_eq(memcmp(home, golden, kept), 0);
	for (size_t at = kept; at < HMM_BLOCK_SIZE; at += HMM_PAGE_SIZE)
		cr_assert(is_poisoned(home + at), "byte %zu of what is lost reads as zeros", at);
	cr_assert_eq(owner->rescuer.lost, HMM_BLOCK_PAGES - kept / HMM_PAGE_SIZE);
	end();
}

Test(rescue, everything_on_the_device_comes_home)
{
	begin();
	arm(home, BLOCKS * HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	for (unsigned int i = 0; i < BLOCKS; i++)
		on_device(i);
	rescue();
	cr_assert_eq(memcmp(home, golden, BLOCKS * HMM_BLOCK_SIZE), 0);
	cr_assert_eq(owner->rescuer.pages, BLOCKS * HMM_BLOCK_PAGES);
	memset(home, 7, BLOCKS * HMM_BLOCK_SIZE);
	end();
}

Test(rescue, the_cpu_s_page_wins_and_a_stale_shadow_is_nobody_s)
{
	struct hmm_ledger_block mixed = { .slot = HMM_NO_SLOT };

	begin();
	/*
	 * Page 0: D. Page 1: D, but at home. Page 2: not complete. Page 3: invalid, with bytes in
	 * the shadow.
	 */
	memset(home + HMM_PAGE_SIZE, 0x55, HMM_PAGE_SIZE);
	mixed.page[0] = HMM_PAGE_DEVICE | HMM_PAGE_COMPLETE;
	mixed.page[1] = HMM_PAGE_DEVICE | HMM_PAGE_COMPLETE;
	mixed.page[2] = HMM_PAGE_DEVICE;
	record(0, &mixed);
	cr_assert_eq(pwrite(shadow, golden, HMM_BLOCK_SIZE, 0), (ssize_t)HMM_BLOCK_SIZE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	rescue();
	cr_assert_eq(memcmp(home, golden, HMM_PAGE_SIZE), 0);
	cr_assert_eq(home[HMM_PAGE_SIZE], 0x55);
	cr_assert_eq(home[2 * HMM_PAGE_SIZE], 0);
	cr_assert_eq(home[3 * HMM_PAGE_SIZE], 0);
	end();
}

/* The discard was applied and is over for the program; hmmd died while drivers were asked. */
Test(rescue, what_was_discarded_stays_so)
{
	struct hmm_ledger_block leaving = { .transit = HMM_TRANSIT_UNSHARING, .slot = HMM_NO_SLOT, .pending = { 0x3ff } };

	begin();
	memset(leaving.page, HMM_PAGE_DEVICE | HMM_PAGE_COMPLETE, sizeof(leaving.page));
	record(0, &leaving);
	cr_assert_eq(pwrite(shadow, golden, HMM_BLOCK_SIZE, 0), (ssize_t)HMM_BLOCK_SIZE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	rescue();
	for (size_t i = 0; i < 10 * HMM_PAGE_SIZE; i++)
		cr_assert_eq(home[i], 0, "discarded byte %zu is back", i);
	cr_assert_eq(memcmp(home + 10 * HMM_PAGE_SIZE, golden + 10 * HMM_PAGE_SIZE, HMM_BLOCK_SIZE - 10 * HMM_PAGE_SIZE), 0);
	end();
}

Test(rescue, pages_in_a_slot_come_home_from_there)
{
	struct hmm_ledger_block leaving = { .transit = HMM_TRANSIT_OUT_MOVE, .slot = 0 };
	struct uffdio_copy copy;

	begin();
	for (unsigned int page = 0; page < HMM_BLOCK_PAGES; page += 2) {
		copy = (struct uffdio_copy){
			.dst = (uintptr_t)owner->slots + page * HMM_PAGE_SIZE,
			.src = (uintptr_t)golden + page * HMM_PAGE_SIZE, .len = HMM_PAGE_SIZE,
		};
		cr_assert_eq(ioctl(owner->uffd, UFFDIO_COPY, &copy), 0);
	}
	for (unsigned int page = 1; page < HMM_BLOCK_PAGES; page += 2)
		memcpy(home + page * HMM_PAGE_SIZE, golden + page * HMM_PAGE_SIZE, HMM_PAGE_SIZE);
	record(0, &leaving);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	rescue();
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0);
	end();
}

Test(rescue, protected_pages_can_be_written_again)
{
	struct uffdio_writeprotect protect = {
		.range = { HOME, HMM_BLOCK_SIZE }, .mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	struct hmm_ledger_block shared = { .slot = HMM_NO_SLOT };

	begin();
	memcpy(home, golden, HMM_BLOCK_SIZE);
	memset(shared.page, HMM_PAGE_SHARED | HMM_PAGE_COMPLETE, sizeof(shared.page));
	record(0, &shared);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	cr_assert_eq(ioctl(owner->uffd, UFFDIO_WRITEPROTECT, &protect), 0);
	rescue();
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0);
	memset(home, 9, HMM_BLOCK_SIZE);
	end();
}

static void *touch_all(void *argument)
{
	for (unsigned int i = 0; i < BLOCKS * HMM_BLOCK_PAGES; i++)
		if (home[i * HMM_PAGE_SIZE + 11] != golden[i * HMM_PAGE_SIZE + 11])
			return home + i * HMM_PAGE_SIZE;
	return NULL;
}

Test(rescue, threads_that_wait_are_served)
{
	pthread_t threads[4];
	void *wrong;

	begin();
	arm(home, BLOCKS * HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	for (unsigned int i = 0; i < BLOCKS; i++)
		on_device(i);
	for (unsigned int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, touch_all, NULL);
	/*
	 * They wait by now, or meet pages that are home: either way they must see the right bytes.
	 */
	usleep(20000);
	rescue();
	for (unsigned int i = 0; i < 4; i++) {
		pthread_join(threads[i], &wrong);
		cr_assert_null(wrong, "wrong byte at %p", wrong);
	}
	end();
}

static void await_event(void)
{
	struct pollfd event = { .fd = owner->uffd, .events = POLLIN };

	cr_assert_eq(poll(&event, 1, -1), 1);
}

/* Whoever changes the map, or forks, waits in the call until its event is read. For a lock it waits no two looks long. */
static void await_caller(const pid_t *tid)
{
	unsigned int waits = 0;
	char path[64], state;
	pid_t known;

	while (waits < 2) {
		FILE *stat;

		usleep(1000);
		known = __atomic_load_n(tid, __ATOMIC_ACQUIRE);
		snprintf(path, sizeof(path), "/proc/%d/stat", known);
		stat = known ? fopen(path, "re") : NULL;
		if (!stat)
			continue;
		cr_assert_eq(fscanf(stat, "%*d (%*[^)]) %c", &state), 1);
		waits = state == 'D' ? waits + 1 : 0;
		fclose(stat);
	}
}

static pid_t discarder_tid, mover_tid;

static void *discard(void *argument)
{
	__atomic_store_n(&discarder_tid, gettid(), __ATOMIC_RELEASE);
	return (void *)(intptr_t)madvise(argument, HMM_BLOCK_SIZE, MADV_DONTNEED);
}

static void *move_away(void *argument)
{
	__atomic_store_n(&mover_tid, gettid(), __ATOMIC_RELEASE);
	return mremap(argument, HMM_BLOCK_SIZE, HMM_BLOCK_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
		      (char *)argument + 64 * HMM_BLOCK_SIZE);
}

Test(rescue, what_was_discarded_or_moved_while_nobody_looked)
{
	pthread_t discarder, mover;
	void *result;
	char *moved;

	begin();
	arm(home, BLOCKS * HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	for (unsigned int i = 0; i < BLOCKS; i++)
		on_device(i);
	pthread_create(&discarder, NULL, discard, home + HMM_BLOCK_SIZE);
	pthread_create(&mover, NULL, move_away, home + 2 * HMM_BLOCK_SIZE);
	await_caller(&discarder_tid);
	await_caller(&mover_tid);
	rescue();
	pthread_join(discarder, &result);
	cr_assert_null(result);
	pthread_join(mover, &result);
	moved = result;
	cr_assert_eq(moved, home + 66 * HMM_BLOCK_SIZE);
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0);
	for (size_t i = 0; i < HMM_BLOCK_SIZE; i++)
		cr_assert_eq(home[HMM_BLOCK_SIZE + i], 0, "discarded byte %zu is back", i);
	cr_assert_eq(memcmp(moved, golden + 2 * HMM_BLOCK_SIZE, HMM_BLOCK_SIZE), 0);
	cr_assert_eq(memcmp(home + 3 * HMM_BLOCK_SIZE, golden + 3 * HMM_BLOCK_SIZE, HMM_BLOCK_SIZE),
		     0);
	munmap(moved, HMM_BLOCK_SIZE);
	end();
}

/* The list of changes has to come from elsewhere, and from nowhere for a while. */
Test(rescue, no_memory_to_note_a_change)
{
	const struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
	pthread_t discarder;
	void *result;

	begin();
	arm(home, BLOCKS * HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	for (unsigned int i = 0; i < BLOCKS; i++)
		on_device(i);
	pthread_create(&discarder, NULL, discard, home + HMM_BLOCK_SIZE);
	await_event();
	cr_assert_eq(hmmc_rescuer_start(&owner->rescuer, owner), 0);
	for (size_t size = 1UL << 26; size >= 64; size /= 2)
		while (hmmc_arena_alloc(size))
			;
#ifndef __SANITIZE_ADDRESS__
	cr_assert_eq(setrlimit(RLIMIT_AS, &(struct rlimit){ 0, RLIM_INFINITY }), 0);
#endif
	hmmc_rescuer_call(&owner->rescuer);
	usleep(100000);
#ifndef __SANITIZE_ADDRESS__
	cr_assert_eq(__atomic_load_n(&owner->rescuer.done, __ATOMIC_ACQUIRE), 0);
#endif
	cr_assert_eq(setrlimit(RLIMIT_AS, &all), 0);
	futex_latch_wait(&owner->rescuer.done);
	pthread_join(discarder, &result);
	cr_assert_null(result);
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0);
	for (size_t i = 0; i < HMM_BLOCK_SIZE; i++)
		cr_assert_eq(home[HMM_BLOCK_SIZE + i], 0, "discarded byte %zu is back", i);
	end();
}

/* The munmap() that would help waits for its event to be read. */
Test(rescue, no_mapping_to_note_a_change)
{
#ifndef __SANITIZE_ADDRESS__
	const struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
	struct rlimit none = { 0, RLIM_INFINITY };
	pthread_t discarder;
	void *result;

	begin();
	arm(home, BLOCKS * HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	for (unsigned int i = 0; i < BLOCKS; i++)
		on_device(i);
	pthread_create(&discarder, NULL, discard, home + HMM_BLOCK_SIZE);
	await_event();
	cr_assert_eq(hmmc_rescuer_start(&owner->rescuer, owner), 0);
	cr_assert_eq(setrlimit(RLIMIT_AS, &none), 0);
	hmmc_rescuer_call(&owner->rescuer);
	futex_latch_wait(&owner->rescuer.done);
	cr_assert_eq(setrlimit(RLIMIT_AS, &all), 0);
	pthread_join(discarder, &result);
	cr_assert_null(result);
	cr_assert_eq(look_at(BLOCKS, 1 << 1), 0);
	end();
#else
	cr_skip_test("AddressSanitizer maps memory of its own");
#endif
}

/* ---- children of a raw clone(), which nobody announces ---------------------------- */

#define CHILDREN 100

static unsigned int on_devices;

/* @argument: the blocks that the child itself discards, a bit each. Return: its exit status. */
static void *clone_raw(void *argument)
{
	unsigned int gone = (unsigned int)(uintptr_t)argument;
	pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	int status = -1;

	if (child == 0) {
		for (unsigned int i = 0; i < BLOCKS; i++)
			if (gone >> i & 1)
				madvise(home + i * HMM_BLOCK_SIZE, HMM_BLOCK_SIZE, MADV_DONTNEED);
		syscall(SYS_exit_group, look_at(on_devices, gone));
	}
	waitpid(child, &status, 0);
	return (void *)(intptr_t)status;
}

static void begin_with_children(unsigned int blocks)
{
	on_devices = blocks;
	begin_with(UFFD_FEATURE_EVENT_FORK);
	arm(home, BLOCKS * HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	for (unsigned int i = 0; i < blocks; i++)
		on_device(i);
}

static void expect_status(pthread_t thread, int wanted)
{
	void *status;

	pthread_join(thread, &status);
	cr_assert_eq((int)(intptr_t)status, wanted, "a child's status is %#x", (int)(intptr_t)status);
}

static pid_t cloners[CHILDREN];

static void *clone_as(void *argument)
{
	__atomic_store_n((pid_t *)argument, gettid(), __ATOMIC_RELEASE);
	return clone_raw(NULL);
}

/*
 * @descriptors: that are left; 0: enough. They are met at the first copy: of a graft, else of a block; and are looked after while
 * it waits.
 */
static void rescue_a_crowd(unsigned int descriptors, bool grafts)
{
	const char *grafted = (const char *)HOME + 2 * HMM_BLOCK_SIZE + HMM_PAGE_SIZE;
	struct hmm_ledger_block nothing = { .slot = HMM_NO_SLOT };
	pthread_t threads[CHILDREN];
	struct rlimit before, few;
	int next;

	begin_with_children(1);
	record(BLOCKS - 1, &nothing);
	for (unsigned int i = 0; grafts && i < 2; i++)
		graft(i, (uintptr_t)grafted + i * HMM_PAGE_SIZE, HMM_FAR_NONE, golden + i * HMM_PAGE_SIZE);
	for (unsigned int i = 0; i < CHILDREN; i++)
		pthread_create(&threads[i], NULL, clone_as, &cloners[i]);
	for (unsigned int i = 0; i < CHILDREN; i++)
		await_caller(&cloners[i]);
	next = dup(owner->uffd);
	close(next);
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
	few = before;
	if (descriptors)
		few.rlim_cur = (rlim_t)next + descriptors;
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
	rescue();
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
	for (unsigned int i = 0; i < CHILDREN; i++)
		expect_status(threads[i], 0);
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0);
	cr_assert(!grafts || memcmp(grafted, golden, 2 * HMM_PAGE_SIZE) == 0);
	end();
}

Test(rescue, a_crowd_of_children)
{
	rescue_a_crowd(0, false);
}

Test(rescue, more_children_than_descriptors)
{
	rescue_a_crowd(90, true);
}

Test(rescue, hardly_any_descriptors_for_children)
{
	rescue_a_crowd(3, false);
}

/* ---- children that have children, while their own pages are away --------------------- */

#define FORKERS 40

static struct family {
	pid_t cloner;			/* the thread */
	pid_t child;			/* it forks at once */
	bool forks;
} *families;
static unsigned int families_count;
static uint32_t all_fork;

static void *clone_a_family(void *argument)
{
	struct family *family = argument;
	int status = 0;
	pid_t child;

	__atomic_store_n(&family->cloner, gettid(), __ATOMIC_RELEASE);
	child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (child == 0) {
		__atomic_store_n(&family->child, (pid_t)syscall(SYS_getpid), __ATOMIC_RELEASE);
		child = family->forks ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : -1;
		if (child > 0)
			waitpid(child, &status, 0);
		syscall(SYS_exit_group, status ? 100 : look_at(on_devices, 0));
	}
	waitpid(child, &status, 0);
	return (void *)(intptr_t)status;
}

/* The first @forkers of them, in the order in which they are heard of, are to have children; @descriptors are left for all. */
static struct rlimit begin_with_families(pthread_t *threads, unsigned int count, unsigned int forkers, unsigned int descriptors)
{
	struct rlimit before, few;
	int next;

	begin_with_children(1);
	families_count = count;
	families = mmap(NULL, count * sizeof(*families), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(families, MAP_FAILED);
	for (unsigned int i = 0; i < count; i++) {
		families[i].forks = i < forkers;
		pthread_create(&threads[i], NULL, clone_a_family, &families[i]);
		await_caller(&families[i].cloner);
	}
	next = dup(owner->uffd);
	close(next);
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
	few = before;
	few.rlim_cur = (rlim_t)next + descriptors;
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
	/* A child that has its pages before it comes to forking would give its descriptor back. */
	short_of.request = UFFDIO_COPY;
	short_of.of_child = true;
	short_of.until = &all_fork;
	short_of.times = UINT_MAX;
	return before;
}

/* It needs a descriptor to look with, which is there while the rescuer asks for none. */
static void let_all_fork(void)
{
	struct rlimit few, one_more;

	for (unsigned int i = 0; i < families_count; i++)
		while (!__atomic_load_n(&families[i].child, __ATOMIC_ACQUIRE))
			usleep(1000);
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &few), 0);
	one_more = few;
	one_more.rlim_cur++;
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &one_more), 0);
	for (unsigned int i = 0; i < families_count; i++)
		if (families[i].forks)
			await_caller(&families[i].child);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
	__atomic_store_n(&all_fork, 1, __ATOMIC_RELEASE);
}

static void *let_them(void *unused)
{
	(void)unused;
	let_all_fork();
	return NULL;
}

/* In a process of its own: what Criterion has in this one does not bear to be without descriptors. */
static void elsewhere(void (*scene)(void))
{
	pid_t child = fork();
	int status = -1;

	if (!child) {
		alarm(60);
		scene();
		_exit(0);
	}
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert_eq(status, 0, "it ended with %#x", status);
}

static void end_of_families(pthread_t *threads, unsigned int count, int killed)
{
	for (unsigned int i = 0; i < count; i++)
		expect_status(threads[i], (int)i == killed ? SIGKILL : 0);
	cr_assert_leq(deepest, RESCUER_NESTED);
	munmap(families, count * sizeof(*families));
	end();
}

/* Each that is being served finds no descriptor for its fork, until one comes that has none. */
static void a_family_each(void)
{
	pthread_t threads[FORKERS];
	struct rlimit before = begin_with_families(threads, FORKERS, FORKERS - 4, FORKERS);
	pthread_t looker;

	pthread_create(&looker, NULL, let_them, NULL);
	rescue();
	pthread_join(looker, NULL);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
	end_of_families(threads, FORKERS, -1);
}

Test(rescue, children_of_children)
{
	elsewhere(a_family_each);
}

/* Every descriptor is one's that waits for another: nobody gets on, and no byte is wrong, until one of them ends. */
static void none_gets_on(void)
{
	const unsigned int count = RESCUER_NESTED + 4;
	pthread_t threads[RESCUER_NESTED + 4];
	struct rlimit before = begin_with_families(threads, count, count, count);

	cr_assert_eq(hmmc_rescuer_start(&owner->rescuer, owner), 0);
	hmmc_rescuer_call(&owner->rescuer);
	let_all_fork();
	usleep(100000);
	kill(families[3].child, SIGKILL);
	futex_latch_wait(&owner->rescuer.done);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
	end_of_families(threads, count, 3);
}

Test(rescue, children_who_all_wait_for_each_other)
{
	elsewhere(none_gets_on);
}

/* Neither what its parent discards later nor what it discards itself is the other's affair. */
Test(rescue, a_child_is_as_its_parent_was)
{
	pthread_t child, discarder;
	void *result;

	begin_with_children(BLOCKS);
	pthread_create(&child, NULL, clone_raw, (void *)(uintptr_t)(1 << 2));
	await_event();
	pthread_create(&discarder, NULL, discard, home + HMM_BLOCK_SIZE);
	await_caller(&discarder_tid);
	rescue();
	expect_status(child, 0);
	pthread_join(discarder, &result);
	cr_assert_null(result);
	cr_assert_eq(look_at(BLOCKS, 1 << 1), 0);
	end();
}

static uint32_t freed;

static void *free_when_it_is_short(void *argument)
{
	void *result;

	while (__atomic_load_n(&short_of.times, __ATOMIC_ACQUIRE) == UINT_MAX)
		usleep(1000);
	result = discard(argument);
	__atomic_store_n(&freed, 1, __ATOMIC_RELEASE);
	return result;
}

/* What the child needs is what its parent is about to free. */
Test(rescue, no_memory_for_a_child)
{
	pthread_t child, discarder;
	void *result;

	begin_with_children(2);
	pthread_create(&child, NULL, clone_raw, NULL);
	await_event();
	short_of.request = UFFDIO_COPY;
	short_of.of_child = true;
	short_of.until = &freed;
	short_of.times = UINT_MAX;
	pthread_create(&discarder, NULL, free_when_it_is_short, home + 3 * HMM_BLOCK_SIZE);
	rescue();
	pthread_join(discarder, &result);
	cr_assert_null(result);
	expect_status(child, 0);
	end();
}

/* The first 100 pages of the block are zapped, and the order that did it is done. */
static void zap(unsigned int block)
{
	struct hmm_order *order = &owner->orders->ring[3 + block];
	const size_t start = block * HMM_BLOCK_SIZE;

	memcpy(home + start + 100 * HMM_PAGE_SIZE, golden + start + 100 * HMM_PAGE_SIZE, HMM_BLOCK_SIZE - 100 * HMM_PAGE_SIZE);
	order->kind = HMM_ORDER_OUT_ZAP;
	order->state = HMM_ORDER_DONE;
	order->addr = HOME + start;
	order->epoch = 1;
	for (unsigned int page = 0; page < 100; page++) {
		order->want[page / 64] |= 1ULL << (page % 64);
		order->moved[page / 64] |= 1ULL << (page % 64);
	}
	cr_assert_eq(pwrite(shadow, golden + start, 100 * HMM_PAGE_SIZE, (off_t)start), (ssize_t)(100 * HMM_PAGE_SIZE));
	arm(home + start, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
}

/* What hmmd had read and not noted as applied. */
static void note_event(unsigned int place, struct uffd_msg message)
{
	cr_assert_eq(pwrite(owner->ledger_fd, &message, sizeof(message),
			    (off_t)(HMM_JOURNAL_OFFSET + offsetof(struct hmm_journal, slot) + place * sizeof(message))),
		     (ssize_t)sizeof(message));
}

static void note_zap(unsigned int place, unsigned int block)
{
	note_event(place, (struct uffd_msg){
		.event = UFFD_EVENT_REMOVE,
		.arg.remove = { .start = HOME + block * HMM_BLOCK_SIZE, .end = HOME + block * HMM_BLOCK_SIZE + 100 * HMM_PAGE_SIZE },
	});
}

static void *touch_last_block(void *argument)
{
	(void)argument;
	return (void *)(intptr_t)memcmp(home + 3 * HMM_BLOCK_SIZE, golden + 3 * HMM_BLOCK_SIZE, HMM_PAGE_SIZE);
}

/* hmmd had brought the page where an mremap() moved it, and died before it noted that; somebody waits there. */
Test(rescue, an_mremap_that_hmmd_did_not_live_to_note)
{
	struct hmm_ledger_block there = { .slot = HMM_NO_SLOT, .page = { HMM_PAGE_DEVICE | HMM_PAGE_COMPLETE } };
	struct hmm_ledger_block here = { .slot = HMM_NO_SLOT };
	struct pollfd unread = { .events = POLLIN };
	pthread_t toucher;
	void *wrong;

	begin();
	/* That takes its time: the fault is served before its block comes up. */
	on_device(0);
	on_device(1);
	record(2, &here);
	record(3, &there);
	cr_assert_eq(pwrite(shadow, golden + 3 * HMM_BLOCK_SIZE, HMM_PAGE_SIZE, (off_t)(3 * HMM_BLOCK_SIZE)), (ssize_t)HMM_PAGE_SIZE);
	arm(home + 3 * HMM_BLOCK_SIZE, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING);
	note_event(0, (struct uffd_msg){
		.event = UFFD_EVENT_REMAP,
		.arg.remap = { .from = HOME + 2 * HMM_BLOCK_SIZE, .to = HOME + 3 * HMM_BLOCK_SIZE, .len = HMM_PAGE_SIZE },
	});
	unread.fd = owner->uffd;
	pthread_create(&toucher, NULL, touch_last_block, NULL);
	while (poll(&unread, 1, -1) != 1)
		;
	rescue();
	pthread_join(toucher, &wrong);
	cr_assert_null(wrong, "it reads zeros");
	end();
}

Test(rescue, a_zap_that_hmmd_did_not_live_to_note)
{
	struct hmm_ledger_block leaving = { .transit = HMM_TRANSIT_OUT_ZAP, .slot = HMM_NO_SLOT };

	begin();
	record(0, &leaving);
	zap(0);
	rescue();
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0);
	end();
}

/*
 * hmmd has read the event of the agent's DONTNEED, and died before it applied it; the agent has gone on, and ended. That is no discard. Of a
 * block that was at rest it is one, though the order that took the pages away is in the ring still.
 */
Test(rescue, the_event_of_a_zap_that_has_ended)
{
	struct hmm_ledger_block leaving = { .transit = HMM_TRANSIT_OUT_ZAP, .slot = HMM_NO_SLOT };
	struct hmm_ledger_block away = { .slot = HMM_NO_SLOT };

	begin();
	record(0, &leaving);
	zap(0);
	note_zap(0, 0);
	memset(away.page, HMM_PAGE_DEVICE | HMM_PAGE_COMPLETE, 100);
	record(1, &away);
	zap(1);
	/* The block has another number since its transit ended. */
	owner->orders->ring[4].epoch = 9;
	note_zap(1, 1);
	rescue();
	cr_assert_eq(memcmp(home, golden, HMM_BLOCK_SIZE), 0);
	for (size_t i = 0; i < 100 * HMM_PAGE_SIZE; i++)
		cr_assert_eq(home[HMM_BLOCK_SIZE + i], 0, "it was discarded");
	end();
}

/* ---- a mapping that was being exchanged ------------------------------------------ */

static void exchanging(unsigned int block, enum hmm_page_state before, uint32_t kind)
{
	struct hmm_ledger_block cohering = { .transit = HMM_TRANSIT_COHERING, .slot = HMM_NO_SLOT };
	struct hmm_order *order = &owner->orders->ring[block];

	memset(cohering.page, (int)before | HMM_PAGE_COMPLETE, sizeof(cohering.page));
	record(block, &cohering);
	cr_assert_eq(pwrite(shadow, golden + block * HMM_BLOCK_SIZE, HMM_BLOCK_SIZE,
			    (off_t)(block * HMM_BLOCK_SIZE)),
		     (ssize_t)HMM_BLOCK_SIZE);
	order->kind = kind;
	order->addr = HOME + block * HMM_BLOCK_SIZE;
	order->epoch = 1;
}

static void map_shadow(unsigned int block)
{
	cr_assert_eq(mmap(home + block * HMM_BLOCK_SIZE, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_FIXED, shadow, (off_t)(block * HMM_BLOCK_SIZE)),
		     home + block * HMM_BLOCK_SIZE);
}

static void *move_here(void *argument)
{
	return mremap(argument, HMM_BLOCK_SIZE, HMM_BLOCK_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
		      home + 2 * HMM_BLOCK_SIZE);
}

static void *touch_what_moved(void *argument)
{
	while (home[2 * HMM_BLOCK_SIZE + 11] == golden[2 * HMM_BLOCK_SIZE + 11] &&
	       !__atomic_load_n((bool *)argument, __ATOMIC_ACQUIRE))
		usleep(1000);
	return (void *)(intptr_t)(home[2 * HMM_BLOCK_SIZE + 11] != golden[2 * HMM_BLOCK_SIZE + 11]);
}

/* Block 0: not yet there. 1: there. 2: back, its event unread. 3: not yet back. */
Test(rescue, whatever_was_exchanged)
{
	struct pollfd unread = { .events = POLLIN };
	pthread_t mover, toucher;
	bool rescued = false;
	void *moved, *wrong;
	char *empty;

	begin();
	exchanging(0, HMM_PAGE_DEVICE, HMM_ORDER_COHERE);
	arm(home, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	exchanging(1, HMM_PAGE_DEVICE, HMM_ORDER_COHERE);
	map_shadow(1);
	exchanging(2, HMM_PAGE_COHERENT, HMM_ORDER_UNCOHERE);
	map_shadow(2);
	empty = map_blocks(HOME + 32 * HMM_BLOCK_SIZE, 1);
	arm(empty, HMM_BLOCK_SIZE, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	unread.fd = owner->uffd;
	pthread_create(&mover, NULL, move_here, empty);
	exchanging(3, HMM_PAGE_COHERENT, HMM_ORDER_UNCOHERE);
	map_shadow(3);
	while (poll(&unread, 1, -1) != 1)
		;
	pthread_create(&toucher, NULL, touch_what_moved, &rescued);
	rescue();
	pthread_join(mover, &moved);
	cr_assert_eq(moved, home + 2 * HMM_BLOCK_SIZE);
	__atomic_store_n(&rescued, true, __ATOMIC_RELEASE);
	pthread_join(toucher, &wrong);
	cr_assert_null(wrong);
	cr_assert_eq(memcmp(home, golden, BLOCKS * HMM_BLOCK_SIZE), 0);
	cr_assert_eq(owner->rescuer.pages, 2 * HMM_BLOCK_PAGES);
	memset(home, 9, BLOCKS * HMM_BLOCK_SIZE);
	for (unsigned int i = 0; i < BLOCKS; i++) {
		char byte;

		cr_assert_eq(pread(shadow, &byte, 1, (off_t)(i * HMM_BLOCK_SIZE + 77)), 1);
		cr_assert_eq(byte == 9, i % 2 == 1, "block %u", i);
	}
	end();
}
