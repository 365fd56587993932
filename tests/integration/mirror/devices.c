/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * devices.c - devices as such: what they are made with, what is registered twice, and memory
 * that cannot be given back yet. Under a hmmd whose grace time is short: giving back waits for so long.
 */
#include "driver.h"

#include <pthread.h>
#include <stdatomic.h>

#define DEVICE_MEMORY (64UL << 20)

static const struct hmm_mirror_ops quiet = { .size = sizeof(quiet) };

/* ---- what it is made with ------------------------------------------------------------- */

static int make(const char *name, uint64_t caps, int node, void *drvdata, struct hmm_device **device)
{
	struct hmm_device_options options = { .size = sizeof(options), .name = name, .node = node, .caps = caps,
					      .drvdata = drvdata };

	*device = NULL;
	return hmm_device_new(hmm, &options, device);
}

/* Bits that nothing follows from yet are bits of the device all the same, for whoever opens it. */
static void bits(void)
{
	const uint64_t all = HMM_DEVICE_FAULTS | HMM_DEVICE_WRITE_PROTECT | HMM_DEVICE_DMA;
	struct hmm_device *device, *same, *other, *group;
	struct hmm *peer;
	int key;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(make("bits", all, -1, NULL, &device), 0);
	CHECK_EQ(hmm_device_caps(device), all);
	CHECK_EQ(hmm_device_open(hmm, "bits", &same), 0);
	CHECK(same == device);
	hmm_device_put(same);
	/* As hmmd says it. */
	key = hmm_export(hmm);
	CHECK_EQ(hmm_open_peer(key, NULL, &peer), 0);
	close(key);
	CHECK_EQ(hmm_device_open(peer, "bits", &same), 0);
	CHECK(same != device);
	CHECK_EQ(hmm_device_caps(same), all);
	hmm_close(peer);
	CHECK_EQ(make("fewer", HMM_DEVICE_FAULTS | HMM_DEVICE_DMA, -1, NULL, &other), 0);
	CHECK_EQ(hmm_device_group(hmm, (struct hmm_device *[]){ device, other }, 2, &group), 0);
	CHECK_EQ(hmm_device_caps(group), HMM_DEVICE_FAULTS | HMM_DEVICE_DMA);
	hmm_device_put(group);
	CHECK_EQ(hmm_device_caps(NULL), 0);
	CHECK_EQ(make("more", all | 1ULL << 20, -1, NULL, &same), -EINVAL);
	CHECK_EQ(make("more", HMM_DEVICE_WRITE_PROTECT, -1, NULL, &same), -EINVAL);
	hmm_device_put(device);
	hmm_device_put(other);
	test_close();
}

static void options(void)
{
	struct { struct hmm_device_options known; uint64_t more; } later = {
		.known = { .size = sizeof(later), .name = "later", .node = -1 }, .more = 1 };
	struct hmm_device *device, *none = NULL;
	int mine;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_device_new(hmm, &later.known, &none), -E2BIG);
	CHECK(!none);
	later.more = 0;
	CHECK_EQ(hmm_device_new(hmm, &later.known, &device), 0);
	CHECK(!hmm_device_drvdata(device));
	hmm_device_put(device);
	CHECK_EQ(make("with-data", HMM_DEVICE_FAULTS, -1, &mine, &device), 0);
	CHECK(hmm_device_drvdata(device) == &mine);
	CHECK(!hmm_device_drvdata(NULL));
	hmm_device_put(device);
	test_close();
}

static void nodes(void)
{
	struct hmm_device *device;
	char path[64];
	int absent;

	test_open(0, DEVICE_MEMORY);
	for (absent = 1; absent < 1000; absent++) {
		snprintf(path, sizeof(path), "/sys/devices/system/node/node%d", absent);
		if (access(path, F_OK))
			break;
	}
	if (access("/sys/devices/system/node/node0", F_OK))
		test_skip("this kernel tells nothing of memory nodes");
	CHECK_EQ(make("nowhere", HMM_DEVICE_FAULTS, absent, NULL, &device), -EINVAL);
	CHECK(strstr(hmm_last_error(), "memory node"));
	CHECK_EQ(make("nowhere", HMM_DEVICE_FAULTS, 100000, NULL, &device), -EINVAL);
	CHECK_EQ(make("nowhere", HMM_DEVICE_FAULTS, -2, NULL, &device), -EINVAL);
	CHECK(!device);
	/* Nothing of it is left: the name is free. */
	CHECK_EQ(make("nowhere", HMM_DEVICE_FAULTS, 0, NULL, &device), 0);
	hmm_device_put(device);
	test_close();
}

/* ---- twice ------------------------------------------------------------------------------- */

static void refused(struct hmm_mirror *again, struct hmm *on)
{
	struct hmm_mirror_private *before = again->priv;

	CHECK_EQ(hmm_mirror_register(again, on), -EINVAL);
	CHECK(strstr(hmm_last_error(), "already"));
	CHECK(again->priv == before && again->hmm == hmm);
}

static void twice(void)
{
	struct hmm_device *devices[2], *group, *theirs, *ours;
	struct hmm_mirror whole, other = { .ops = &quiet };
	struct hmm *peer;
	char *memory;
	int key;

	test_open(0, DEVICE_MEMORY);
	refused(&mirror, hmm);
	/* On another handle, too. */
	key = hmm_export(hmm);
	CHECK_EQ(hmm_open_peer(key, NULL, &peer), 0);
	close(key);
	devices[0] = test_device("first", 0);
	devices[1] = test_device("second", 0);
	CHECK_EQ(hmm_device_open(peer, "first", &theirs), 0);
	ours = mirror.device;
	mirror.device = theirs;
	refused(&mirror, peer);
	mirror.device = ours;
	other.device = theirs;
	CHECK_EQ(hmm_mirror_register(&other, peer), 0);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	/* A mirror of a group, its member, and a struct that nobody has ever set. */
	memset(&whole, 0xa5, sizeof(whole));
	CHECK_EQ(hmm_device_group(hmm, devices, 2, &group), 0);
	whole.device = group;
	whole.ops = &quiet;
	CHECK_EQ(hmm_mirror_register(&whole, hmm), 0);
	refused(&whole, hmm);
	refused(hmm_mirror_member(&whole, 1), hmm);
	CHECK_EQ(hmm_mirror_unregister(&whole), 0);
	CHECK_EQ(hmm_mirror_register(&whole, hmm), 0);
	CHECK_EQ(hmm_mirror_unregister(&whole), 0);
	hmm_device_put(group);
	hmm_device_put(devices[0]);
	hmm_device_put(devices[1]);
	hmm_close(peer);
	/* The first of them is as it was. */
	memory = test_map(16);
	test_fill(memory, 16, 1);
	test_out(memory, 16);
	test_check(memory, 16, 1);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	CHECK_EQ(hmm_mirror_unregister(&mirror), -EINVAL);
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	test_close();
}

static void sixteen(void)
{
	static struct hmm_mirror others[16];
	struct hmm_device *device;
	unsigned int n;
	char name[16];

	test_open(0, DEVICE_MEMORY);
	for (n = 0; n < 15; n++) {
		snprintf(name, sizeof(name), "one-of-%u", n);
		test_mirror(&others[n], test_device(name, 0));
	}
	device = test_device("one-too-many", 0);
	others[n].device = device;
	others[n].ops = &quiet;
	CHECK_EQ(hmm_mirror_register(&others[n], hmm), -ENOSPC);
	CHECK(strstr(hmm_last_error(), "16 mirrors"));
	CHECK(!others[n].priv);
	CHECK_EQ(hmm_mirror_unregister(&others[0]), 0);
	CHECK_EQ(hmm_mirror_register(&others[n], hmm), 0);
	CHECK_EQ(hmm_mirror_unregister(&others[n]), 0);
	/* The rest goes with the handle. */
	test_close();
}

/* ---- memory that stays --------------------------------------------------------------------- */

static struct hmm_device *kept;
static _Atomic bool told;

static int put_inside(struct hmm_mirror *me, const struct hmm_update *update)
{
	if (told)
		return 0;
	hmm_device_put(kept);
	CHECK(strstr(hmm_last_error(), "callback"));
	told = true;
	return 0;
}

static const struct hmm_mirror_ops putting = { .size = sizeof(putting), .sync_cpu_device_pagetables = put_inside };

/* It is there still, with its memory, and has one reference. */
static void check_kept(const char *name, const struct hmm_devmem *devmem)
{
	struct hmm_device *same = NULL;

	CHECK_EQ(hmm_device_open(hmm, name, &same), 0);
	CHECK(same == kept && devmem->device == kept);
	CHECK_EQ(hmm_device_memory(kept), 4 << 20);
	hmm_device_put(same);
	CHECK_EQ(hmm_device_memory(kept), 4 << 20);
}

static void kept_in_a_callback(void)
{
	struct hmm_devmem *devmem = NULL;
	struct hmm_device *none;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	mirror.ops = &putting;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	kept = test_device("kept", 0);
	CHECK_EQ(hmm_devmem_add(NULL, kept, 4 << 20, &devmem), 0);
	memory = test_map(16);
	test_fill(memory, 16, 1);
	test_out(memory, 16);
	CHECK(told);
	check_kept("kept", devmem);
	hmm_device_put(kept);
	CHECK_EQ(hmm_device_open(hmm, "kept", &none), -ENODEV);
	test_check(memory, 16, 1);
	test_close();
}

static void another_driver(void)
{
	unsigned long address;
	uint64_t word;
	int key;

	CHECK(test_hear(TEST_DRIVER_SOCKET, &address, &key));
	CHECK_EQ(hmm_open_peer(key, NULL, &hmm), 0);
	close(key);
	CHECK_EQ(hmm_device_open(hmm, "shared-pool", &mirror.device), 0);
	mirror.ops = &quiet;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	CHECK_EQ(hmm_migrate(&mirror, address, 16 * PAGE, HMM_DEVICE, 0, NULL, NULL), 16);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, NULL));
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

/* What another process's mirror has there this one cannot bring home. */
static void another_has_pages(void)
{
	struct hmm_devmem *devmem = NULL;
	struct hmm_device *none;
	uint64_t word;
	char *memory;
	int socket, key;
	pid_t driver = test_driver_start("another-has-pages", &socket);

	test_open(0, DEVICE_MEMORY);
	kept = test_device("shared-pool", 0);
	CHECK_EQ(hmm_devmem_add(NULL, kept, 4 << 20, &devmem), 0);
	memory = test_map(16);
	test_fill(memory, 16, 2);
	key = hmm_export(hmm);
	test_tell(socket, (uint64_t)memory, key);
	close(key);
	CHECK(test_hear(socket, &word, NULL));
	CHECK_EQ(hmm_devmem_remove(devmem, false), -EBUSY);
	CHECK(strstr(hmm_last_error(), "in use"));
	CHECK_EQ(hmm_devmem_remove(devmem, true), -EBUSY);
	hmm_device_put(kept);
	CHECK(strstr(hmm_last_error(), "in use"));
	check_kept("shared-pool", devmem);
	test_tell(socket, 1, -1);
	CHECK(test_hear(socket, &word, NULL));
	/* All is home, and punched in a moment. */
	CHECK_EQ(hmm_devmem_remove(devmem, true), 0);
	CHECK_EQ(hmm_device_memory(kept), 0);
	hmm_device_put(kept);
	CHECK_EQ(hmm_device_open(hmm, "shared-pool", &none), -ENODEV);
	test_reap(driver, 0);
	test_check(memory, 16, 2);
	test_close();
}

/* ---- memory that goes while everybody uses it ------------------------------------------------- */

#define BUSY_PAGES	2048UL
#define REMOVALS	12

static struct {
	char *memory;
	struct hmm_mirror mirror;
	atomic_bool over;
	atomic_ulong moved, touched;
	uint64_t written[BUSY_PAGES];
} busy;

/* Sends everything to the device, again and again. */
static void *send_busy(void *data)
{
	while (!atomic_load(&busy.over)) {
		long there = hmm_migrate(&busy.mirror, (unsigned long)busy.memory, BUSY_PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL);

		CHECK(there >= 0);
		atomic_fetch_add(&busy.moved, (unsigned long)there);
	}
	return NULL;
}

/* Whatever lies there is what was written last. */
static void *touch_busy(void *data)
{
	unsigned int seed = 1;

	while (!atomic_load(&busy.over)) {
		size_t page = (size_t)rand_r(&seed) % BUSY_PAGES;
		uint64_t *word = (uint64_t *)(busy.memory + page * PAGE);

		CHECK_EQ(__atomic_load_n(word, __ATOMIC_RELAXED), busy.written[page]);
		__atomic_store_n(word, ++busy.written[page], __ATOMIC_RELAXED);
		atomic_fetch_add(&busy.touched, 1);
	}
	return NULL;
}

static void await_more(atomic_ulong *count)
{
	unsigned long before = atomic_load(count);

	while (atomic_load(count) == before)
		usleep(1000);
}

/*
 * The device shrinks in front of those who fill it, and all that was there is home. Not that it is tried until there is a
 * moment in which nobody uses it.
 */
static void removed_under_load(void)
{
	struct hmm_devmem *devmem = NULL;
	struct hmm_device *device;
	pthread_t sender, toucher;

	test_open(0, DEVICE_MEMORY);
	device = test_device("busy", 0);
	busy.memory = test_map(BUSY_PAGES);
	test_mirror(&busy.mirror, device);
	for (size_t i = 0; i < BUSY_PAGES; i++)
		*(uint64_t *)(busy.memory + i * PAGE) = 0;
	CHECK_EQ(pthread_create(&sender, NULL, send_busy, NULL), 0);
	CHECK_EQ(pthread_create(&toucher, NULL, touch_busy, NULL), 0);
	for (int i = 0; i < REMOVALS; i++) {
		/* Not enough for all of it, every other time. */
		CHECK_EQ(hmm_devmem_add(NULL, device, (i % 2 ? 4UL : 16UL) << 20, &devmem), 0);
		await_more(&busy.moved);
		await_more(&busy.touched);
		CHECK_EQ(hmm_devmem_remove(devmem, true), 0);
		CHECK_EQ(hmm_device_memory(device), 0);
		CHECK_EQ(hmm_drain(&busy.mirror), 0);
	}
	atomic_store(&busy.over, true);
	pthread_join(sender, NULL);
	pthread_join(toucher, NULL);
	for (size_t i = 0; i < BUSY_PAGES; i++)
		CHECK_EQ(*(uint64_t *)(busy.memory + i * PAGE), busy.written[i]);
	CHECK_EQ(hmm_mirror_unregister(&busy.mirror), 0);
	hmm_device_put(device);
	test_close();
}

static void maker_driver(void)
{
	struct hmm_devmem *devmem = NULL;
	uint64_t word;
	int key;

	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, &key));
	CHECK_EQ(hmm_open_peer(key, NULL, &hmm), 0);
	close(key);
	kept = test_device("left-behind", 0);
	CHECK_EQ(hmm_devmem_add(NULL, kept, 4 << 20, &devmem), 0);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, NULL));
	hmm_close(hmm);
}

/* A handle's end waits for nobody: the device is its user's now. */
static void maker_closes(void)
{
	struct hmm_mirror other = { 0 };
	struct hmm_device *device;
	uint64_t word;
	char *memory;
	int socket, key;
	pid_t driver = test_driver_start("maker-closes", &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	test_fill(memory, 16, 3);
	key = hmm_export(hmm);
	test_tell(socket, 1, key);
	close(key);
	CHECK(test_hear(socket, &word, NULL));
	CHECK_EQ(hmm_device_open(hmm, "left-behind", &device), 0);
	test_mirror(&other, device);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 16 * PAGE, HMM_DEVICE, 0, NULL, NULL), 16);
	test_tell(socket, 1, -1);
	test_reap(driver, 0);
	CHECK_EQ(hmm_device_read(&other, (unsigned long)memory, &word, 8), 8);
	CHECK_EQ(word, test_word(0, 0, 3));
	test_check(memory, 16, 3);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 16 * PAGE, HMM_DEVICE, 0, NULL, NULL), 16);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(device);
	test_check(memory, 16, 3);
	test_close();
}

static const struct test_case cases[] = {
	{ "bits", bits, false }, { "options", options, false }, { "nodes", nodes, false },
	{ "twice", twice, false }, { "sixteen", sixteen, false },
	{ "kept-in-a-callback", kept_in_a_callback, false },
	{ "another-has-pages", another_has_pages, false }, { "maker-closes", maker_closes, false },
	{ "removed-under-load", removed_under_load, false },
	{ NULL, NULL, false },
};

static const struct test_case drivers[] = {
	{ "another-has-pages", another_driver, false }, { "maker-closes", maker_driver, false },
	{ NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
