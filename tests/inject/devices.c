// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * devices.c - scenarios of what devices and drivers do besides: advice, events,
 * pages that a device has to itself, a device that is too small, and memory that only
 * its driver reaches. As in client.c: hmmd may refuse what it is asked, in words; the bytes are right.
 */
#include "client.h"

#include <fcntl.h>
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

char *start_engine(size_t pages, int *socket, pid_t *driver)
{
	char *memory;
	int key;

	*driver = start_driver("engine", socket);
	memory = test_map(pages);
	test_fill(memory, pages, 1);
	if (!open_or_refused(DEVICE_MEMORY)) {
		send_key(*socket, -1);
		test_check(memory, pages, 1);
		_exit(REFUSED);
	}
	key = hmm_export(hmm);
	if (key < 0)
		printf("hmm_export: %s\n", hmm_last_error());
	send_key(*socket, key);
	if (key >= 0)
		close(key);
	return memory;
}

void devmem(void)
{
	size_t pages = 700;
	int socket, status;
	pid_t driver;
	char *memory = start_engine(pages, &socket, &driver);

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

/* ---- a card that reaches more than one request may be about ----------------------------- */

#define REACHED (160UL << 20)

static struct hmm_range range;
static uint64_t *daddrs;

static int quiesce(struct hmm_mirror *of, const struct hmm_update *update)
{
	(void)of;
	(void)update;
	return 0;
}

static void resume(struct hmm_mirror *of, const struct hmm_update *update)
{
	(void)of;
	(void)update;
}

static size_t range_pages(void)
{
	return (range.end - range.start) / PAGE;
}

/* As card.c says. */
static long mappings(void)
{
	FILE *file = fopen(getenv("HMMD_CARD_IOMMU"), "r");
	long n = -1;

	CHECK(file && fscanf(file, "%ld", &n) == 1);
	fclose(file);
	return n;
}

static long map_range(void)
{
	long n;

	do {
		CHECK(hmm_range_wait_until_valid(&range, HMM_RANGE_DEFAULT_TIMEOUT));
		n = hmm_range_dma_map(&range, mirror.device, daddrs, true);
	} while (n == -EBUSY || n == -EAGAIN);
	return n;
}

/* Each page has its own number, may be written, and is where the owner has it. */
static void check_reached(bool alike)
{
	const unsigned long first = HMM_PFN_DEVICE_FIRST + (range.start >> 12);

	CHECK_EQ(map_range(), (long)range_pages());
	for (size_t i = 0; i < range_pages(); i++) {
		CHECK_EQ(range.pfns[i], hmm_device_entry_from_pfn(&range, first + i) | 2);
		CHECK_EQ(daddrs[i], range.start + i * PAGE);
	}
	/* A block is one mapping, unless it was asked for in pieces. */
	CHECK(alike ? mappings() == (long)(REACHED / BLOCK) : mappings() > (long)(REACHED / BLOCK));
}

static void take_out(void)
{
	CHECK_EQ(hmm_range_dma_unmap(&range, mirror.device, daddrs, false), (long)range_pages());
	CHECK_EQ(mappings(), 0);
}

/* Its IOMMU is full in the middle of it: then none of it is in, whatever is on its way. */
static void check_full(void)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s.full", getenv("HMMD_CARD_IOMMU"));
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	CHECK(fd >= 0);
	close(fd);
	memset(daddrs, 0xff, range_pages() * sizeof(*daddrs));
	CHECK_EQ(map_range(), -EFAULT);
	if (!strstr(hmm_last_error(), "takes no more mappings"))
		FAIL("'%s'", hmm_last_error());
	for (size_t i = 0; i < range_pages(); i++)
		CHECK_EQ(daddrs[i], 0);
	CHECK_EQ(mappings(), 0);
	CHECK_EQ(unlink(path), 0);
}

void reached(void)
{
	static const struct hmm_mirror_ops ops = { .size = sizeof(ops), .quiesce = quiesce, .resume = resume };
	static const uint64_t flags[HMM_PFN_FLAG_MAX] = { [HMM_PFN_VALID] = 1, [HMM_PFN_WRITE] = 2 };
	static const uint64_t values[HMM_PFN_VALUE_MAX] = { [HMM_PFN_ERROR] = 4, [HMM_PFN_SPECIAL] = 8 };
	struct hmm_device_options device = { .size = sizeof(device), .name = "card", .memory = 2 * REACHED, .node = -1,
					     .caps = HMM_DEVICE_DMA, .bus = "0000:00:04.0" };
	void *memory;

	CHECK_EQ(hmm_open(NULL, &hmm), 0);
	CHECK_EQ(hmm_device_new(hmm, &device, &mirror.device), 0);
	mirror.ops = &ops;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	CHECK_EQ(hmm_alloc(&mirror, REACHED, &memory), 0);
	range = (struct hmm_range){ .flags = flags, .values = values, .pfn_shift = 12, .default_flags = 3 };
	/* It begins and ends within a block. */
	CHECK_EQ(hmm_range_register(&range, &mirror, (unsigned long)memory + 3 * PAGE,
				    (unsigned long)memory + REACHED - 5 * PAGE, 12), 0);
	range.pfns = calloc(range_pages(), sizeof(*range.pfns));
	daddrs = calloc(range_pages(), sizeof(*daddrs));
	check_reached(true);
	take_out();
	/* Asked for page by page, in runs, one of which ends with a request's part and one with the range. */
	range.default_flags = 0;
	range.pfn_flags_mask = 3;
	for (size_t i = 0; i < range_pages(); i++)
		range.pfns[i] = i % 5000 < 4000 ? 3 : i % 5000 == 4500 ? 0 : 1;
	check_reached(false);
	take_out();
	range.default_flags = 3;
	range.pfn_flags_mask = 0;
	check_full();
	check_reached(true);
	/* It goes with the range. */
	hmm_range_unregister(&range);
	CHECK_EQ(mappings(), 0);
	CHECK_EQ(hmm_free(&mirror, memory, REACHED), 0);
	close_all();
}
