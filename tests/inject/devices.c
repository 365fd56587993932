// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * devices.c - scenarios of what devices and drivers do besides: advice, events,
 * pages that a device has to itself, a device that is too small, and memory that only
 * its driver reaches. As in client.c: hmmd may refuse what it is asked, in words; the bytes are right.
 */
#include "client.h"

#include <hmm/devmem.h>
#include <poll.h>
#include <sys/wait.h>

static char *begin(size_t pages, uint64_t device)
{
	char *memory = test_map(pages);

	test_fill(memory, pages, 1);
	if (!open_or_refused(device)) {
		test_check(memory, pages, 1);
		_exit(REFUSED);
	}
	return memory;
}

/* ---- advice ------------------------------------------------------------------------- */

static bool advised(void *memory, size_t pages, enum hmm_advice advice, uint64_t value)
{
	struct hmm_advise_options options = { .size = sizeof(options), .mirror = &mirror, .value = value };
	int r = hmm_advise(hmm, (unsigned long)memory, pages * PAGE, advice, &options);

	CHECK(!r || *hmm_last_error());
	return !r;
}

/* A refused pin leaves everything as it was; what is discarded is zeros or what it was, page by page. */
void advice(void)
{
	size_t pages = 700;
	char *memory = begin(pages, DEVICE_MEMORY);
	struct hmm_policy policy = { .size = sizeof(policy) };
	int r;

	advised(memory, pages, HMM_ADVISE_SET_READ_MOSTLY, 0);
	move(memory, pages, HMM_DEVICE);
	test_check(memory, pages, 1);
	advised(memory, pages, HMM_ADVISE_SET_PREFERRED_LOCATION, 0);
	advised(memory, 300, HMM_ADVISE_GRANULARITY, 64);
	advised(memory, pages, HMM_ADVISE_EVICT_PRIORITY, 10);
	for (int round = 0; round < 2; round++) {
		advised(memory, 200, HMM_ADVISE_PIN, 0);
		test_check(memory, pages, 1);
		test_fill(memory, 100, 1);
		r = hmm_range_get_attribute(hmm, (unsigned long)memory, pages * PAGE, &policy);
		CHECK(!r || *hmm_last_error());
		CHECK(r || (policy.pages == pages && policy.on_device <= pages));
		move(memory, pages, HMM_DEVICE);
		r = hmm_unadvise(hmm, (unsigned long)memory, 200 * PAGE, HMM_ADVISE_PIN, NULL);
		CHECK(!r || *hmm_last_error());
	}
	move(memory + 600 * PAGE, 100, HMM_DEVICE);
	advised(memory + 600 * PAGE, 100, HMM_ADVISE_DISCARD, 0);
	for (size_t i = 600; i < pages; i++) {
		volatile uint64_t *words = (volatile uint64_t *)(memory + i * PAGE);

		CHECK(!words[0] || words[0] == test_word(i, 0, 1));
		CHECK_EQ(words[511], words[0] ? test_word(i, 511, 1) : 0);
	}
	test_check(memory, 600, 1);
	close_all();
	check_and_rewrite(memory, 600, 1);
}

/* ---- events -------------------------------------------------------------------------- */

/* A ring that is read says nothing of other memory, and counts what it lost. */
void events(void)
{
	struct hmm_event_options options = { .size = sizeof(options), .entries = 64 };
	size_t pages = 600;
	char *memory = begin(pages, DEVICE_MEMORY);
	struct hmm_events *listener = NULL;
	struct hmm_event read[16];
	int n, r;

	for (int round = 0; round < 2; round++) {
		r = hmm_event_open(hmm, &options, &listener);
		CHECK(!r || *hmm_last_error());
		CHECK(!r == (listener != NULL));
		move(memory, pages, HMM_DEVICE);
		for (size_t i = 0; i < pages; i += 3)
			CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, 1));
		while (listener && (n = hmm_event_read(listener, read, 16)) > 0)
			for (int i = 0; i < n; i++)
				CHECK(read[i].start <= read[i].end);
		hmm_event_close(listener);
		listener = NULL;
		test_check(memory, pages, 1);
	}
	close_all();
	check_and_rewrite(memory, pages, 1);
}

/* ---- exclusive pages ------------------------------------------------------------------- */

/* What is said to be marked is, until the CPU comes; whatever is refused, its bytes are right. */
void exclusive(void)
{
	size_t pages = 300;
	char *memory = begin(pages, DEVICE_MEMORY);
	unsigned long start = (unsigned long)memory;
	static uint8_t results[300];
	long marked, ended;

	for (int round = 0; round < 3; round++) {
		marked = hmm_device_exclusive_begin(&mirror, start, pages * PAGE, results);
		CHECK(marked >= 0 || *hmm_last_error());
		/* What is refused now may be marked from the last round. */
		for (size_t i = 0; marked > 0 && i < pages; i++)
			CHECK(hmm_device_exclusive_check(&mirror, start + i * PAGE, PAGE) ||
			      (results[i] != HMM_MIGRATED && results[i] != HMM_ALREADY));
		for (size_t i = 0; i < pages; i += 7) {
			volatile uint64_t *words = (volatile uint64_t *)(memory + i * PAGE);

			CHECK_EQ(words[511], test_word(i, 511, 1));
			CHECK(!hmm_device_exclusive_check(&mirror, start + i * PAGE, PAGE));
			words[0] = test_word(i, 0, 1);
		}
		ended = round ? hmm_device_exclusive_end(&mirror, start, pages * PAGE) : 0;
		CHECK(ended >= 0 || *hmm_last_error());
		if (round == 1)
			test_check(memory, pages, 1);
	}
	test_check(memory, pages, 1);
	close_all();
	check_and_rewrite(memory, pages, 1);
}

/* ---- a device that is too small ---------------------------------------------------------- */

/* Of five blocks two have room: others make way, or the rest stays. */
void evict(void)
{
	size_t pages = 5 * 512;
	char *memory = test_map_huge(5);

	test_fill(memory, pages, 1);
	if (!open_or_refused(2 * BLOCK)) {
		test_check(memory, pages, 1);
		_exit(REFUSED);
	}
	for (int round = 0; round < 2; round++) {
		for (size_t block = 0; block < 5; block++)
			move(memory + block * BLOCK, 512, HMM_DEVICE);
		test_check(memory, 512, 1);
		test_fill(memory, 512, 1);
	}
	move(memory, pages, HMM_DEVICE);
	test_check(memory, pages, 1);
	close_all();
	check_and_rewrite(memory, pages, 1);
}

/* ---- memory that only its driver reaches --------------------------------------------------- */

#define ENGINE_PAGES 2048U

static uint64_t far_memory[ENGINE_PAGES][PAGE / 8];
static bool used[ENGINE_PAGES];

static void scramble(uint64_t *to, const uint64_t *from)
{
	for (size_t i = 0; i < PAGE / 8; i++)
		to[i] = ~from[i];
}

static void alloc_and_copy(struct hmm_devmem *me, const struct hmm_devmem_move *move)
{
	unsigned int n = 0;

	for (unsigned long i = 0; i < move->pages; i++) {
		if (!move->src[i])
			continue;
		while (n < ENGINE_PAGES && used[n])
			n++;
		if (n == ENGINE_PAGES)
			return;
		used[n] = true;
		scramble(far_memory[n], move->src[i]);
		move->dst[i] = &me->pages[n];
	}
}

static int bring(struct hmm_devmem *me, unsigned long addr, const struct hmm_page *page, unsigned int flags)
{
	uint64_t *to = hmm_vma_alloc_locked_page(me, addr);

	CHECK(used[page - me->pages]);
	if (!to)
		return HMM_FAULT_OOM;
	scramble(to, far_memory[page - me->pages]);
	return HMM_FAULT_MINOR;
}

static void free_page(struct hmm_devmem *me, struct hmm_page *page)
{
	CHECK(used[page - me->pages]);
	used[page - me->pages] = false;
	memset(far_memory[page - me->pages], 0xee, PAGE);
}

/* Takes what it is told to, as far as hmmd lets it, until the owner closes the socket. */
void engine_driver(void)
{
	static const struct hmm_devmem_ops ops = { .size = sizeof(ops), .alloc_and_copy = alloc_and_copy,
						   .fault = bring, .free = free_page };
	static const struct hmm_mirror_ops none = { .size = sizeof(none) };
	struct hmm_device_options options = { .size = sizeof(options), .name = "inject-engine", .node = -1,
					      .caps = HMM_DEVICE_FAULTS | HMM_DEVICE_COPY_ENGINE };
	struct hmm_devmem *devmem = NULL;
	int key = receive_key(DRIVER_SOCKET), r;
	uint64_t range[2];
	int64_t there;

	if (key < 0)
		_exit(REFUSED);
	mirror.ops = &none;
	r = hmm_open_peer(key, NULL, &hmm);
	close(key);
	if (!r)
		r = hmm_device_new(hmm, &options, &mirror.device);
	if (!r)
		r = hmm_devmem_add(&ops, mirror.device, ENGINE_PAGES * PAGE, &devmem);
	if (!r)
		r = hmm_mirror_register(&mirror, hmm);
	if (r) {
		printf("driver: %s\n", hmm_last_error());
		CHECK(*hmm_last_error());
		_exit(REFUSED);
	}
	while (read(DRIVER_SOCKET, range, sizeof(range)) == sizeof(range)) {
		there = hmm_migrate(&mirror, range[0], range[1], HMM_DEVICE, 0, NULL, NULL);
		CHECK(there >= 0 || *hmm_last_error());
		if (write(DRIVER_SOCKET, &there, sizeof(there)) != sizeof(there))
			break;
	}
	/* Not everything could come home, or it was refused: said, and it may be tried again. A driver that ends takes what is left along. */
	for (int tries = 0; tries < 20 && (r = hmm_mirror_unregister(&mirror)); tries++) {
		printf("unregister: %s\n", hmm_last_error());
		CHECK(*hmm_last_error());
		usleep(1000);
	}
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	_exit(0);
}

void driver_takes(int socket, char *memory, size_t pages)
{
	uint64_t range[2] = { (uint64_t)memory, pages * PAGE };
	int64_t there;

	if (write(socket, range, sizeof(range)) != sizeof(range) || read(socket, &there, sizeof(there)) <= 0)
		return;		/* it was refused its memory */
	if (there > 0)
		printf("%ld pages are the driver's\n", there);
}

void devmem(void)
{
	size_t pages = 700;
	int socket, status, key;
	pid_t driver = start_driver("engine", &socket);
	char *memory = test_map(pages);

	test_fill(memory, pages, 1);
	if (!open_or_refused(DEVICE_MEMORY)) {
		send_key(socket, -1);
		test_check(memory, pages, 1);
		_exit(REFUSED);
	}
	key = hmm_export(hmm);
	if (key < 0)
		printf("hmm_export: %s\n", hmm_last_error());
	send_key(socket, key);
	if (key >= 0)
		close(key);
	driver_takes(socket, memory, pages);
	test_check(memory, pages, 1);
	driver_takes(socket, memory, 400);
	test_fill(memory, 100, 1);		/* written while it is there */
	madvise(memory + 300 * PAGE, 50 * PAGE, MADV_DONTNEED);
	test_check_zero(memory + 300 * PAGE, 50);
	driver_takes(socket, memory, 300);
	move(memory, 200, HMM_SYSTEM);
	driver_takes(socket, memory, 200);
	test_check(memory, 300, 1);
	driver_takes(socket, memory, 300);
	close(socket);
	CHECK_EQ(waitpid(driver, &status, 0), driver);
	if (status != 0 && status != REFUSED << 8)
		FAIL("the driver ended with status %#x", (unsigned int)status);
	test_check(memory, 300, 1);
	close_all();
	check_and_rewrite(memory, 300, 1);
	/* Only with a call that failed. */
	if (status)
		_exit(REFUSED);
}
