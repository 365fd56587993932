/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * company.c - several of everything: mirrors of one owner, owners of one
 * device, drivers in other processes; and drivers that do not answer or die.
 *
 * A driver is this program again, started with the case's name, "driver" and
 * a socket on which it gets the owner's key.
 */
#include "driver.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#define DEVICE_MEMORY (64UL << 20)
#define MANY 12U

/* ---- one process ------------------------------------------------------------ */

static void two_mirrors(void)
{
	struct hmm_mirror other = { 0 };
	struct hmm_device *device;
	uint64_t word = 0;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	device = test_device("the-other", DEVICE_MEMORY);
	test_mirror(&other, device);
	memory = test_map(64);
	test_fill(memory, 64, 1);
	test_out(memory, 64);
	/* The other device reads and writes what this one has. */
	CHECK_EQ(hmm_device_read(&other, (unsigned long)memory + 8 * PAGE, &word, 8), 8);
	CHECK_EQ(word, test_word(8, 0, 1));
	word = 5;
	CHECK_EQ(hmm_device_write(&other, (unsigned long)memory + 8 * PAGE, &word, 8), 8);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 8 * PAGE, &word, 8), 8);
	CHECK_EQ(word, 5);
	CHECK_EQ(*(volatile uint64_t *)(memory + 8 * PAGE), 5);
	*(volatile uint64_t *)(memory + 8 * PAGE) = test_word(8, 0, 1);
	/* From one device to the other. */
	test_out(memory, 64);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 64 * PAGE, HMM_DEVICE, 0, NULL, NULL), 64);
	CHECK(hmm_mirror_lookup(&other, (unsigned long)memory) & HMM_ENTRY_DEVICE);
	test_device_check(memory, 64, 1);
	test_check(memory, 64, 1);
	/* Each has some when the other's mirror goes. */
	test_out(memory, 32);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory + 32 * PAGE, 32 * PAGE, HMM_DEVICE, 0, NULL, NULL),
		 32);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(device);
	test_device_check(memory, 64, 1);
	test_check(memory, 64, 1);
	test_close();
	test_check(memory, 64, 1);
}

static void mirrors_in_turn(void)
{
	char *memory = test_map(64);

	test_fill(memory, 64, 2);
	for (int i = 0; i < 10; i++) {
		test_open(0, DEVICE_MEMORY);
		test_out(memory, 64);
		test_device_check(memory, 64, 2);
		/* Its pages come home with the last handle. */
		if (i % 2)
			CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
		else
			test_check(memory, 32, 2);
		if (i % 2 == 0)
			CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
		hmm_device_put(mirror.device);
		hmm_close(hmm);
		test_check(memory, 64, 2);
	}
}

static void many_mirrors(void)
{
	static struct hmm_mirror others[MANY];
	struct hmm_device *devices[MANY];
	char *memory, name[16];
	uint64_t word;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(MANY * 20);
	test_fill(memory, MANY * 20, 3);
	for (unsigned int i = 0; i < MANY; i++) {
		snprintf(name, sizeof(name), "many-%u", i);
		devices[i] = test_device(name, 4 << 20);
		test_mirror(&others[i], devices[i]);
		CHECK_EQ(hmm_migrate(&others[i], (unsigned long)memory + i * 20 * PAGE, 20 * PAGE,
				     HMM_DEVICE, 0, NULL, NULL), 20);
	}
	for (unsigned int i = 0; i < MANY; i++) {
		CHECK_EQ(hmm_device_read(&others[MANY - 1 - i], (unsigned long)memory + i * 20 * PAGE, &word, 8), 8);
		CHECK_EQ(word, test_word(i * 20, 0, 3));
	}
	test_check(memory, MANY * 10, 3);
	for (unsigned int i = 0; i < MANY; i++) {
		CHECK_EQ(hmm_mirror_unregister(&others[i]), 0);
		hmm_device_put(devices[i]);
	}
	test_check(memory, MANY * 20, 3);
	test_close();
}

static void not_known_yet(struct hmm_mirror *me)
{
}

/* Programs that were built with other headers than the library. */
static void sizes_of_ops(struct hmm_mirror *other)
{
	struct {
		struct hmm_mirror_ops known;
		void (*later)(struct hmm_mirror *mirror);
	} longer = { .known = { .size = sizeof(longer) } };
	struct hmm_mirror_ops unset = { 0 }, *shorter;
	char *page = test_map(1);

	other->ops = &unset;
	CHECK_EQ(hmm_mirror_register(other, hmm), -EINVAL);
	CHECK(strstr(hmm_last_error(), "size"));
	longer.later = not_known_yet;
	other->ops = &longer.known;
	CHECK_EQ(hmm_mirror_register(other, hmm), -E2BIG);
	CHECK(!other->priv);
	longer.later = NULL;
	CHECK_EQ(hmm_mirror_register(other, hmm), 0);
	CHECK_EQ(hmm_mirror_unregister(other), 0);
	/* Of a shorter one nothing is read that it does not have, and nothing of it after registering. */
	shorter = (struct hmm_mirror_ops *)(page + PAGE - offsetof(struct hmm_mirror_ops, release));
	memset(page, 0xff, PAGE);
	shorter->size = offsetof(struct hmm_mirror_ops, release);
	other->ops = shorter;
	CHECK_EQ(hmm_mirror_register(other, hmm), 0);
	CHECK_EQ(munmap(page, PAGE), 0);
	CHECK_EQ(hmm_mirror_unregister(other), 0);
}

static void names_and_arguments(void)
{
	struct hmm_device_options options = { .size = sizeof(options), .name = "twice", .memory = 4 << 20,
					      .node = -1, .caps = HMM_DEVICE_FAULTS };
	struct hmm_open_options too_big = { .size = sizeof(too_big), .flags = 1ULL << 60 };
	static const struct hmm_mirror_ops operations = { .size = sizeof(operations) };
	struct hmm_device *device = NULL, *same = NULL;
	struct hmm_mirror other = { 0 };
	struct hmm *again = NULL;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_device_new(hmm, &options, &device), 0);
	CHECK_EQ(hmm_device_new(hmm, &options, &same), -EBUSY);
	CHECK_EQ(hmm_device_open(hmm, "nobody", &same), -ENODEV);
	CHECK_EQ(hmm_device_open(hmm, "twice", &same), 0);
	CHECK_EQ(hmm_device_memory(same), 4 << 20);
	options.name = "";
	CHECK_EQ(hmm_device_new(hmm, &options, &same), -EINVAL);
	options.name = NULL;
	CHECK_EQ(hmm_device_new(hmm, &options, &same), -EINVAL);
	options.name = "enormous";
	options.memory = 1ULL << 50;
	CHECK_EQ(hmm_device_new(hmm, &options, &same), -ENOSPC);
	CHECK_EQ(hmm_mirror_register(NULL, hmm), -EINVAL);
	CHECK_EQ(hmm_mirror_register(&other, NULL), -EINVAL);
	CHECK_EQ(hmm_mirror_register(&other, hmm), -EINVAL);
	other.device = device;
	CHECK_EQ(hmm_mirror_register(&other, hmm), -EINVAL);
	other.ops = &operations;
	CHECK_EQ(hmm_mirror_register(&other, hmm), 0);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	sizes_of_ops(&other);
	/* One address space, however often it is opened. */
	CHECK_EQ(hmm_open(NULL, &again), 0);
	CHECK(again == hmm);
	hmm_close(again);
	CHECK(hmm_open(&too_big, &again) < 0);
	CHECK_EQ(hmm_open_peer(-1, NULL, &again), -EBADF);
	CHECK_EQ(hmm_open_peer(0, NULL, &again), -EBADF);
	hmm_device_put(device);
	hmm_device_put(NULL);
	hmm_close(NULL);
	test_close();
}

/* A device without memory: everything is reached in place. */
static void no_memory(void)
{
	struct hmm_mirror other = { 0 };
	struct hmm_device *device;
	uint8_t results[4];
	char *memory, copy[16];

	test_open(0, DEVICE_MEMORY);
	device = test_device("no-memory", 0);
	test_mirror(&other, device);
	memory = test_map(4);
	test_fill(memory, 4, 4);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 4 * PAGE, HMM_DEVICE, 0, results, NULL), 0);
	CHECK_EQ(hmm_device_read(&other, (unsigned long)memory + PAGE, copy, 16), 16);
	CHECK(!memcmp(copy, memory + PAGE, 16));
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(device);
	test_check(memory, 4, 4);
	test_close();
}

static _Atomic int invalidations, unregister_inside;
static struct hmm_mirror called_back;

static int count_invalidation(struct hmm_mirror *me, const struct hmm_update *update)
{
	CHECK(me == &called_back);
	CHECK(update->start < update->end);
	CHECK_EQ(update->event, HMM_UPDATE_INVALIDATE);
	CHECK(update->reason >= HMM_REASON_CPU_WRITE && update->reason <= HMM_REASON_RELEASE);
	if (!atomic_fetch_add(&invalidations, 1))
		atomic_store(&unregister_inside, hmm_mirror_unregister(me));
	return 0;
}

static const struct hmm_mirror_ops counting = { .size = sizeof(counting),
						.sync_cpu_device_pagetables = count_invalidation };

/* The driver in the owner itself is told, and from inside a callback nothing hangs. */
static void callback(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	called_back.device = test_device("called-back", DEVICE_MEMORY);
	called_back.ops = &counting;
	CHECK_EQ(hmm_mirror_register(&called_back, hmm), 0);
	memory = test_map(64);
	test_fill(memory, 64, 5);
	CHECK_EQ(hmm_migrate(&called_back, (unsigned long)memory, 64 * PAGE, HMM_DEVICE, 0, NULL, NULL), 64);
	test_fill(memory, 64, 6);
	for (int i = 0; i < test_scaled(500) && !atomic_load(&invalidations); i++)
		usleep(10000);
	CHECK(atomic_load(&invalidations) > 0);
	CHECK_EQ(hmm_mirror_unregister(&called_back), 0);
	CHECK_EQ(atomic_load(&unregister_inside), -EDEADLK);
	hmm_device_put(called_back.device);
	test_check(memory, 64, 6);
	test_close();
}

/* ---- drivers of their own ---------------------------------------------------- */

static _Atomic int driver_silent;

static int maybe_answer(struct hmm_mirror *me, const struct hmm_update *update)
{
	while (atomic_load(&driver_silent))
		sleep(1);
	return 0;
}

static const struct hmm_mirror_ops answering = { .size = sizeof(answering),
						 .sync_cpu_device_pagetables = maybe_answer };
static const struct hmm_mirror_ops quiet = { .size = sizeof(quiet) };

static void peer_driver(void)
{
	void *address = (void *)test_driver_open(&quiet);
	uint64_t words[512], word;

	test_device_check(address, 64, 7);
	for (size_t i = 0; i < 64; i++) {
		for (size_t j = 0; j < 512; j++)
			words[j] = test_word(i, j, 8);
		CHECK_EQ(hmm_device_write(&mirror, (unsigned long)address + i * PAGE, words, PAGE), PAGE);
	}
	test_device_check(address, 64, 8);
	CHECK_EQ(hmm_migrate(&mirror, (unsigned long)address, 64 * PAGE, HMM_DEVICE, 0, NULL, NULL), 64);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, NULL));
	test_device_check(address, 64, 9);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void peer(void)
{
	uint64_t word;
	char *memory;
	int socket;
	pid_t driver = test_driver_start("peer", &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 7);
	test_out(memory, 32);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	test_check(memory, 64, 8);
	test_fill(memory, 64, 9);
	test_out(memory, 20);
	test_tell(socket, 2, -1);
	test_reap(driver, 0);
	test_check(memory, 64, 9);
	test_close();
}

/* A driver elsewhere looks at the owner's pages, hears of changes, and of the end. */
static void ranges_driver(void)
{
	static const uint64_t flags[HMM_PFN_FLAG_MAX] = { 1, 2, 4 }, values[HMM_PFN_VALUE_MAX] = { 8, 0, 16 };
	unsigned long address = test_driver_open(&answering);
	struct hmm_range range = { .flags = flags, .values = values, .pfn_shift = 12, .default_flags = 1 };
	uint64_t pfns[64], word;
	long result;

	range.pfns = pfns;
	CHECK_EQ(hmm_migrate(&mirror, address, 16 * PAGE, HMM_DEVICE, 0, NULL, NULL), 16);
	CHECK_EQ(hmm_range_register(&range, &mirror, address, address + 64 * PAGE, 12), 0);
	do {
		CHECK(hmm_range_wait_until_valid(&range, 10000));
		result = hmm_range_fault(&range, true);
	} while (result == -EBUSY);
	CHECK_EQ(result, 64);
	for (size_t i = 0; i < 64; i++)
		CHECK_EQ(pfns[i] & 7, i < 16 ? 7 : 3);
	CHECK(hmm_range_valid(&range));
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, NULL));
	do {
		CHECK(hmm_range_wait_until_valid(&range, 10000));
		result = hmm_range_fault(&range, true);
	} while (result == -EBUSY);
	CHECK_EQ(result, -EFAULT);
	for (size_t i = 0; i < 64; i++)
		CHECK_EQ(pfns[i] & 31, i < 40 ? i < 16 ? 7 : 3 : i == 40 ? 8 : 0);
	test_tell(TEST_DRIVER_SOCKET, 2, -1);
	/* First its pages go home, which the range sees too; then it is gone. */
	while (hmm_device_read(&mirror, address, &word, 8) != -ESTALE)
		usleep(1000);
	CHECK(!hmm_range_valid(&range));
	CHECK_EQ(hmm_range_fault(&range, true), -EFAULT);
	CHECK_EQ(hmm_range_snapshot(&range), -EFAULT);
	for (size_t i = 0; i < 64; i++)
		CHECK_EQ(pfns[i], 0);
	hmm_range_unregister(&range);
	CHECK_EQ(hmm_range_register(&range, &mirror, address, address + 64 * PAGE, 12), -EFAULT);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void ranges(void)
{
	uint64_t word;
	char *memory;
	int socket;
	pid_t driver = test_driver_start("ranges", &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_map_apart(64);
	test_fill(memory, 64, 7);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	CHECK_EQ(munmap(memory + 40 * PAGE, PAGE), 0);
	/* So that it is applied, and not only read, before the driver hears of it elsewhere. */
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 40 * PAGE, &word, 8), -EFAULT);
	test_tell(socket, 2, -1);
	CHECK(test_hear(socket, &word, NULL));
	test_close();
	test_check(memory, 40, 7);
	test_reap(driver, 0);
}

/* Whether the window shows that page. */
static sigjmp_buf at_fault;

static void jump(int number)
{
	siglongjmp(at_fault, number);
}

static bool is_shown(const char *view)
{
	struct sigaction action = { .sa_handler = jump };

	CHECK_EQ(sigaction(SIGBUS, &action, NULL), 0);
	CHECK_EQ(sigaction(SIGSEGV, &action, NULL), 0);
	if (sigsetjmp(at_fault, 1))
		return false;
	(void)*(const volatile char *)view;
	return true;
}

/* A window over 64 pages that are the device's; what it writes to the last of them comes through it. */
static char *store_through_window(void *address, uint64_t word)
{
	struct hmm_window *window = NULL;
	char *view;

	CHECK_EQ(hmm_window_map(&mirror, (unsigned long)address, 64 * PAGE, HMM_WINDOW_OFFSET, &window), 0);
	CHECK_EQ(hmm_migrate(&mirror, (unsigned long)address, 64 * PAGE, HMM_DEVICE, 0, NULL, NULL), 64);
	view = hmm_window_ptr(window, (unsigned long)address);
	*(volatile uint64_t *)(view + 63 * PAGE) = word;
	CHECK(is_shown(view) && is_shown(view + 63 * PAGE));
	CHECK_EQ(hmm_migrate(&mirror, (unsigned long)address, 64 * PAGE, HMM_DEVICE, 0, NULL, NULL), 64);
	return view;
}

/* A driver never answers: past the deadline its window is closed and the owner goes on. */
static void silent_driver(void)
{
	void *address = (void *)test_driver_open(&answering);
	uint64_t word;
	char *view;

	test_device_check(address, 64, 10);
	view = store_through_window(address, test_word(63, 0, 10) + 1);
	atomic_store(&driver_silent, 1);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	test_hear(TEST_DRIVER_SOCKET, &word, NULL);
	for (size_t i = 0; i < 64; i++)
		CHECK(!is_shown(view + i * PAGE));
	_exit(0);
}

static void silent(void)
{
	uint64_t word;
	char *memory;
	int socket;
	struct hmm_event_options options = { .size = sizeof(options), .mask = 1ULL << HMM_EVENT_REVOKED };
	pid_t driver = test_driver_start("silent", &socket);
	struct hmm_event seen[4];
	struct hmm_events *events;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_in_block(64);
	test_fill(memory, 64, 10);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	CHECK_EQ(hmm_event_open(hmm, &options, &events), 0);
	/* What the window wrote, read and written by the CPU; and the rest at once: three changes. */
	CHECK_EQ(*(volatile uint64_t *)(memory + 63 * PAGE), test_word(63, 0, 10) + 1);
	*(volatile uint64_t *)(memory + 63 * PAGE) = test_word(63, 0, 10);
	test_home(memory, 64);
	test_check(memory, 64, 10);
	/* For what the device has no more, it is not waited for. */
	test_fill(memory, 64, 11);
	test_check(memory, 64, 11);
	/* One window is closed once. */
	CHECK_EQ(hmm_event_read(events, seen, 4), 1);
	CHECK_EQ(seen[0].error, -ETIMEDOUT);
	hmm_event_close(events);
	test_tell(socket, 2, -1);
	test_reap(driver, 0);
	test_close();
}

static void dying_driver(void)
{
	void *address = (void *)test_driver_open(&answering);
	uint64_t word;

	store_through_window(address, test_word(63, 0, 12) + 1);
	word = test_word(0, 0, 12) + 1;
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)address, &word, 8), 8);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	raise(SIGKILL);
}

/* What it wrote stays, through its window as otherwise; what it had comes home. */
static void dying(void)
{
	uint64_t word;
	char *memory;
	int socket;
	pid_t driver = test_driver_start("dying", &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 12);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	test_reap(driver, SIGKILL);
	CHECK_EQ(*(volatile uint64_t *)memory, test_word(0, 0, 12) + 1);
	*(volatile uint64_t *)memory = test_word(0, 0, 12);
	CHECK_EQ(*(volatile uint64_t *)(memory + 63 * PAGE), test_word(63, 0, 12) + 1);
	*(volatile uint64_t *)(memory + 63 * PAGE) = test_word(63, 0, 12);
	test_check(memory, 64, 12);
	test_out(memory, 64);
	test_check(memory, 64, 12);
	test_close();
}

static _Atomic int released;

static void note_release(struct hmm_mirror *me)
{
	atomic_store(&released, 1);
}

static const struct hmm_mirror_ops releasing = { .size = sizeof(releasing),
						 .release = note_release };

/* The owner is killed under its driver: told by release, and every access fails. */
static void orphaned_driver(void)
{
	unsigned long address = test_driver_open(&releasing);
	char byte;

	CHECK_EQ(hmm_device_read(&mirror, address, &byte, 1), 1);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	for (int i = 0; i < test_scaled(2000) && !atomic_load(&released); i++)
		usleep(10000);
	CHECK(atomic_load(&released));
	CHECK(hmm_device_read(&mirror, address, &byte, 1) < 0);
	CHECK_EQ(hmm_migrate(&mirror, address, PAGE, HMM_DEVICE, 0, NULL, NULL), -ESTALE);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void orphaned(void)
{
	int socket;
	pid_t driver = test_driver_start("orphaned", &socket), owner;

	owner = fork();
	if (!owner) {
		test_open(0, DEVICE_MEMORY);
		test_lend(socket, 4, 13);
		raise(SIGKILL);
	}
	close(socket);
	test_reap(owner, SIGKILL);
	test_reap(driver, 0);
}

/* An owner executes another program: its old addresses lead nowhere, least of all into the new one. */
static void executed_driver(void)
{
	unsigned long address = test_driver_open(&releasing);
	char byte;

	CHECK_EQ(hmm_device_read(&mirror, address, &byte, 1), 1);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	for (int i = 0; i < test_scaled(2000) && !atomic_load(&released); i++)
		usleep(10000);
	CHECK(atomic_load(&released));
	CHECK(hmm_device_read(&mirror, address, &byte, 1) < 0);
	/* Where every program of this kind has its code. */
	CHECK(hmm_device_read(&mirror, 0x400000, &byte, 1) < 0);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void executed(void)
{
	int socket;
	pid_t driver = test_driver_start("executed", &socket), owner;

	owner = fork();
	if (!owner) {
		test_open(0, DEVICE_MEMORY);
		test_lend(socket, 4, 14);
		execlp("sleep", "sleep", "1000", NULL);
		FAIL("execlp: %m");
	}
	close(socket);
	test_reap(driver, 0);
	kill(owner, SIGKILL);
	test_reap(owner, SIGKILL);
}

static void stale_key_driver(void)
{
	struct hmm *gone = NULL;
	uint64_t word;
	int key;

	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, &key));
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, NULL));
	/* hmmd takes note of a closed connection a moment later. */
	for (int tries = 0; tries < test_scaled(500) && !hmm_open_peer(key, NULL, &gone); tries++) {
		hmm_close(gone);
		usleep(10000);
	}
	CHECK_EQ(hmm_open_peer(key, NULL, &gone), -ESTALE);
	CHECK(strlen(hmm_last_error()) > 0);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
}

/* The key of an owner that has closed leads nowhere. */
static void stale_key(void)
{
	uint64_t word;
	int socket, key;
	pid_t driver = test_driver_start("stale-key", &socket);

	test_open(0, DEVICE_MEMORY);
	key = hmm_export(hmm);
	CHECK(key >= 0);
	test_tell(socket, 0, key);
	test_close();
	test_tell(socket, 0, -1);
	CHECK(test_hear(socket, &word, NULL));
	test_reap(driver, 0);
	close(key);
}

/* Two owners on one device: neither sees the other's bytes, and the pool is shared fairly enough to fit both. */
static void two_owners(void)
{
	int barrier[2], socket[2];
	pid_t child;
	char *memory, byte;

	CHECK_EQ(pipe2(barrier, O_CLOEXEC), 0);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, socket), 0);
	child = fork();
	if (!child) {
		struct hmm_open_options options = { .size = sizeof(options),
							    .timeout_ms = (unsigned int)test_scaled(5000) };

		CHECK_EQ(read(socket[1], &byte, 1), 1);
		CHECK_EQ(hmm_open(&options, &hmm), 0);
		CHECK_EQ(hmm_device_open(hmm, "shared-by-two", &mirror.device), 0);
		mirror.ops = &quiet;
		CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
		memory = mmap((void *)0x7eb000000000, 300 * PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		CHECK(memory != MAP_FAILED);
		for (uint64_t round = 0; round < 30; round++) {
			test_fill(memory, 300, 1000 + round);
			test_out(memory, 300);
			test_device_check(memory, 300, 1000 + round);
			test_check(memory, 300, 1000 + round);
		}
		test_close();
		_exit(0);
	}
	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	test_mirror(&mirror, test_device("shared-by-two", DEVICE_MEMORY));
	CHECK_EQ(write(socket[0], "x", 1), 1);
	memory = mmap((void *)0x7eb000000000, 300 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(memory != MAP_FAILED);
	for (uint64_t round = 0; round < 30; round++) {
		test_fill(memory, 300, round);
		test_out(memory, 300);
		test_device_check(memory, 300, round);
		test_check(memory, 300, round);
	}
	test_reap(child, 0);
	test_check(memory, 300, 29);
	test_close();
}

/* ---- a window over memory that becomes coherent and ordinary again ----------------------- */

#define SHARED_BLOCKS 2UL
#define SHARED_PAGES (SHARED_BLOCKS * BLOCK / PAGE)

/* Adds one to its word of each page and wants to find what it wrote. Return: rounds. */
static uint64_t count_until(char *memory, size_t which, bool (*enough)(void))
{
	uint64_t rounds = 0;

	for (; !enough(); rounds++)
		for (size_t i = 0; i < SHARED_PAGES; i++) {
			volatile uint64_t *word = (volatile uint64_t *)(memory + i * PAGE) + which;

			if (*word != rounds)
				FAIL("word %zu of page %zu is %lu, not %lu", which, i, *word, rounds);
			*word = rounds + 1;
		}
	return rounds;
}

static bool is_told(void)
{
	struct pollfd wait = { .fd = TEST_DRIVER_SOCKET, .events = POLLIN };

	return poll(&wait, 1, 0) != 0;
}

static void windowed_driver(void)
{
	unsigned long address = test_driver_open(&answering);
	struct hmm_window *window = NULL;
	uint64_t rounds, enough;
	char *view;

	/* An owner's memory is its own to exchange. */
	CHECK_EQ(hmm_share(&mirror, (void *)address, BLOCK), -EPERM);
	CHECK_EQ(hmm_unshare(&mirror, (void *)address, BLOCK), -EPERM);
	CHECK_EQ(hmm_window_map(&mirror, address, SHARED_BLOCKS * BLOCK, HMM_WINDOW_OFFSET, &window), 0);
	view = hmm_window_ptr(window, address);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	rounds = count_until(view, 1, is_told);
	/* A socket that is closed with something unread takes the answer with it. */
	CHECK(test_hear(TEST_DRIVER_SOCKET, &enough, NULL));
	test_tell(TEST_DRIVER_SOCKET, rounds, -1);
	CHECK_EQ(hmm_window_unmap(window), 0);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static _Atomic bool owner_enough;

static bool is_enough(void)
{
	return atomic_load(&owner_enough);
}

static void *owner_counts(void *memory)
{
	return (void *)count_until(memory, 0, is_enough);
}

static void windowed(void)
{
	void *rounds;
	uint64_t word;
	char *memory;
	pthread_t thread;
	int socket;
	pid_t driver = test_driver_start("windowed", &socket);

	test_open(0, DEVICE_MEMORY);
	/* A thread's stack beside it would keep it at home. */
	memory = test_map_huge(SHARED_BLOCKS + 2) + BLOCK;
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	CHECK_EQ(pthread_create(&thread, NULL, owner_counts, memory), 0);
	for (int round = 0; round < 25; round++) {
		CHECK_EQ(test_share(memory, SHARED_BLOCKS), 0);
		/* CPU and driver now write side by side. */
		usleep(2000);
		CHECK_EQ(test_unshare(memory, SHARED_BLOCKS), 0);
		usleep(2000);
	}
	atomic_store(&owner_enough, true);
	pthread_join(thread, &rounds);
	test_tell(socket, 2, -1);
	CHECK(test_hear(socket, &word, NULL));
	for (size_t i = 0; i < SHARED_PAGES; i++) {
		CHECK_EQ(((uint64_t *)(memory + i * PAGE))[0], (uint64_t)rounds);
		CHECK_EQ(((uint64_t *)(memory + i * PAGE))[1], word);
	}
	test_reap(driver, 0);
	test_close();
}

static const struct test_case cases[] = {
	{ "two-mirrors", two_mirrors, false }, { "mirrors-in-turn", mirrors_in_turn, false },
	{ "many-mirrors", many_mirrors, false }, { "names-and-arguments", names_and_arguments, false },
	{ "no-memory", no_memory, false }, { "callback", callback, false }, { "peer", peer, false }, { "ranges", ranges, false }, { "silent", silent, false },
	{ "dying", dying, false }, { "orphaned", orphaned, false },
	{ "executed", executed, false }, { "stale-key", stale_key, false },
	{ "two-owners", two_owners, false }, { "windowed", windowed, false }, { NULL, NULL, false },
};

static const struct test_case drivers[] = {
	{ "peer", peer_driver, false }, { "ranges", ranges_driver, false }, { "silent", silent_driver, false }, { "dying", dying_driver, false },
	{ "orphaned", orphaned_driver, false }, { "executed", executed_driver, false },
	{ "stale-key", stale_key_driver, false }, { "windowed", windowed_driver, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
