// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * client.c - an owner whose hmmd meets failing kernel calls. It does one
 * scenario and knows at any time what its memory must hold. hmmd may refuse
 * what it is asked, in words; a wrong byte, a signal or a hang is never right.
 *
 * Exit 0: every byte is right. 3: hmmd refused to serve at all, and every byte
 * is right. 1: a wrong byte. One thread, and driver processes for `window` and
 * `several`. What devices and drivers do besides is in devices.c, copies and forks of
 * far memory in copies.c.
 */
#include "client.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* Where no library of the driver lies. */
#define WINDOW_ADDR	((void *)0x300000000000UL)

static uint32_t scale(void)
{
	const char *env = getenv("HMM_TEST_SCALE");
	int value = env ? atoi(env) : 1;

	return value > 0 ? (uint32_t)value : 1;
}

bool open_or_refused(uint64_t memory)
{
	struct hmm_open_options options = { .size = sizeof(options), .timeout_ms = 5000 * scale() };
	struct hmm_device_options device = {
		.size = sizeof(device), .name = "inject", .memory = memory, .node = -1,
		.caps = HMM_DEVICE_FAULTS,
	};
	static const struct hmm_mirror_ops ops = { .size = sizeof(ops) };
	int r = hmm_open(&options, &hmm);

	if (r) {
		printf("hmm_open: %s\n", hmm_last_error());
		CHECK(*hmm_last_error());
		return false;
	}
	r = hmm_device_new(hmm, &device, &mirror.device);
	mirror.ops = &ops;
	if (!r)
		r = hmm_mirror_register(&mirror, hmm);
	if (r) {
		printf("mirror: %s\n", hmm_last_error());
		CHECK(*hmm_last_error());
		hmm_device_put(mirror.device);
		hmm_close(hmm);
		return false;
	}
	return true;
}

void close_all(void)
{
	int r = hmm_mirror_unregister(&mirror);

	/* Not everything could come home: said, and it may be tried again. */
	if (r == -EBUSY)
		r = hmm_mirror_unregister(&mirror);
	if (r)
		printf("unregister: %s\n", hmm_last_error());
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

void move(void *memory, size_t pages, enum hmm_target target)
{
	struct hmm_migrate_report report = { 0 };
	long there =
		hmm_migrate(&mirror, (unsigned long)memory, pages * PAGE, target, 0, NULL, &report);

	if (there < 0)
		printf("hmm_migrate: %s\n", hmm_last_error());
	else
		CHECK_EQ(report.moved + report.already + report.failed, pages);
}

void check_and_rewrite(void *memory, size_t pages, uint64_t seed)
{
	test_check(memory, pages, seed);
	test_fill(memory, pages, seed + 1);
	test_check(memory, pages, seed + 1);
}

/* Without UFFDIO_MOVE only that goes. */
static void declare(void *memory, size_t pages)
{
	struct hmm_advise_options options = { .size = sizeof(options) };
	int r = hmm_advise(hmm, (unsigned long)memory, pages * PAGE, HMM_ADVISE_UNPINNED, &options);

	CHECK(!r || *hmm_last_error());
}

void fill_and_open(char *memory, size_t pages)
{
	test_fill(memory, pages, 1);
	if (open_or_refused(DEVICE_MEMORY))
		return;
	test_check(memory, pages, 1);
	_exit(REFUSED);
}

static void travel_of(bool declared, bool secret)
{
	char *huge = test_map_huge(3), *small = test_map(700);

	test_fill(huge, 3 * 512, 1);
	test_fill(small, 700, 2);
	if (!open_or_refused(DEVICE_MEMORY)) {
		test_check(huge, 3 * 512, 1);
		test_check(small, 700, 2);
		_exit(REFUSED);
	}
	/* What is locked may lie nowhere that is swapped out. */
	if (secret)
		CHECK_EQ(mlock(small, 700 * PAGE), 0);
	if (declared) {
		declare(huge, 3 * 512);
		declare(small, 700);
	}
	for (int round = 0; round < 2; round++) {
		move(huge, 3 * 512, HMM_DEVICE);
		move(small, 700, HMM_DEVICE);
		move(small, 350, HMM_SYSTEM);
		move(huge, 3 * 512, HMM_SYSTEM);
	}
	move(small, 700, HMM_DEVICE);
	test_check(small, 700, 2);
	move(huge, 3 * 512, HMM_DEVICE);
	close_all();
	check_and_rewrite(huge, 3 * 512, 1);
	check_and_rewrite(small, 700, 2);
}

static void travel(void)
{
	travel_of(false, false);
}

static void base(void)
{
	travel_of(true, false);
}

static void locked(void)
{
	travel_of(false, true);
}

/* All of it or nothing; in words if nothing. Whatever is refused, the bytes are there to be read and written. */
static void share(void)
{
	size_t pages = 3 * 512;
	char *memory = test_map_huge(3);

	fill_and_open(memory, pages);
	for (int round = 0; round < 2; round++) {
		int r = hmm_share(&mirror, memory, pages * PAGE);

		CHECK(!r || *hmm_last_error());
		test_check(memory, pages, 1);
		test_fill(memory, pages, 1);
		r = hmm_unshare(&mirror, memory, pages * PAGE);
		CHECK(!r || *hmm_last_error());
		test_check(memory, pages, 1);
	}
	close_all();
	check_and_rewrite(memory, pages, 1);
}

static void touch(void)
{
	size_t pages = 1200;
	char *memory = test_map(pages);

	fill_and_open(memory, pages);
	move(memory, pages, HMM_DEVICE);
	test_check(memory, pages, 1);		/* reading: S */
	test_fill(memory, pages / 2, 1);	/* writing S */
	move(memory, pages, HMM_DEVICE);	/* S and I */
	for (size_t i = 0; i < pages; i++) {
		size_t page = i * 769 % pages;
		volatile uint64_t *words = (volatile uint64_t *)(memory + page * PAGE);

		CHECK_EQ(words[511], test_word(page, 511, 1));
		words[0] = test_word(page, 0, 1);
	}
	test_check(memory, pages, 1);
	/* Holes beside pages that are out. */
	madvise(memory, 100 * PAGE, MADV_DONTNEED);
	test_check_zero(memory, 100);
	close_all();
	test_check_zero(memory, 100);
	for (size_t i = 100; i < pages; i++)
		for (size_t word = 0; word < 512; word += 37)
			CHECK_EQ(((uint64_t *)(memory + i * PAGE))[word], test_word(i, word, 1));
	check_and_rewrite((test_fill(memory, pages, 3), memory), pages, 3);
}

static void upheaval(void)
{
	char *memory = test_map(2048), *moved = test_map(512);

	for (int i = 0; i < 8; i++)
		test_fill(memory + i * 256 * PAGE, 256, (uint64_t)i + 10);
	test_fill(moved, 512, 30);
	if (open_or_refused(DEVICE_MEMORY)) {
		move(memory, 2048, HMM_DEVICE);
		move(moved, 512, HMM_DEVICE);
	} else {
		hmm = NULL;
	}
	CHECK_EQ(munmap(memory + 256 * PAGE, 256 * PAGE), 0);
	CHECK_EQ(madvise(memory + 512 * PAGE, 256 * PAGE, MADV_DONTNEED), 0);
	if (mremap(moved, 512 * PAGE, 512 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		   memory + 768 * PAGE) == MAP_FAILED)
		FAIL("mremap: %s", strerror(errno));
	CHECK_EQ(mprotect(memory + 1280 * PAGE, 256 * PAGE, PROT_READ), 0);
	CHECK(mmap(memory + 256 * PAGE, 256 * PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory + 256 * PAGE);
	if (hmm)
		move(memory, 2048, HMM_DEVICE);
	test_check(memory, 256, 10);
	test_check_zero(memory + 256 * PAGE, 512);
	test_check(memory + 768 * PAGE, 512, 30);
	for (int i = 5; i < 8; i++)
		test_check(memory + i * 256 * PAGE, 256, (uint64_t)i + 10);
	CHECK_EQ(mprotect(memory + 1280 * PAGE, 256 * PAGE, PROT_READ | PROT_WRITE), 0);
	check_and_rewrite(memory + 1280 * PAGE, 256, 15);
	if (!hmm)
		_exit(REFUSED);
	close_all();
	test_check(memory + 1280 * PAGE, 256, 16);
	check_and_rewrite(memory, 256, 10);
	check_and_rewrite(memory + 768 * PAGE, 512, 30);
}

/* What it says is there is there, and what it watches it tells of. */
static void look(void *memory, size_t pages, bool discard)
{
	static const uint64_t flags[HMM_PFN_FLAG_MAX] = { 1, 2, 4 };
	static const uint64_t values[HMM_PFN_VALUE_MAX] = { 8, 0, 16 };
	unsigned long start = (unsigned long)memory;
	struct hmm_range range = { .flags = flags, .values = values, .pfn_shift = 12, .default_flags = 1 };
	long result = -EBUSY;
	bool faulted = false;

	if (hmm_range_register(&range, &mirror, start, start + pages * PAGE, 12)) {
		printf("hmm_range_register: %s\n", hmm_last_error());
		CHECK(*hmm_last_error());
		if (discard)
			madvise(memory, PAGE, MADV_DONTNEED);
		return;
	}
	range.pfns = calloc(pages, sizeof(*range.pfns));
	for (int tries = 0; tries < 50 && (result == -EBUSY || result == -EAGAIN); tries++) {
		hmm_range_wait_until_valid(&range, 1000);
		faulted = tries % 2 == 0;
		result = faulted ? hmm_range_fault(&range, true) : hmm_range_snapshot(&range);
	}
	if (result < 0) {
		printf("range: %s\n", hmm_last_error());
		CHECK(*hmm_last_error());
	} else {
		CHECK_EQ(result, pages);
		for (size_t i = 0; faulted && i < pages; i++)
			CHECK_EQ(range.pfns[i] & 1, 1);
	}
	if (discard) {
		bool watched = hmm_mirror_lookup(&mirror, start) & HMM_ENTRY_VALID;

		madvise(memory, PAGE, MADV_DONTNEED);
		for (int tries = 0; watched && hmm_range_valid(&range); tries++) {
			CHECK(tries < 10000 * (int)scale());
			usleep(1000);
		}
	}
	hmm_range_unregister(&range);
	free(range.pfns);
}

static void ranges(void)
{
	size_t pages = 900;
	char *memory = test_map(pages);

	fill_and_open(memory, pages);
	for (int round = 0; round < 2; round++) {
		move(memory + 100 * PAGE, 200, HMM_DEVICE);
		look(memory, pages, false);
		madvise(memory + 600 * PAGE, 50 * PAGE, MADV_DONTNEED);
		look(memory + 550 * PAGE, 200, false);
		look(memory + 700 * PAGE, 200, true);
		test_check_zero(memory + 600 * PAGE, 50);
		test_check_zero(memory + 700 * PAGE, 1);
		test_check(memory, 600, 1);
	}
	close_all();
	test_check(memory, 600, 1);
	test_check_zero(memory + 600 * PAGE, 50);
	check_and_rewrite((test_fill(memory, pages, 3), memory), pages, 3);
}

static void family(void)
{
	size_t pages = 600;
	char *memory = test_map(pages);
	pid_t child;

	fill_and_open(memory, pages);
	for (int round = 0; round < 2; round++) {
		move(memory, pages, HMM_DEVICE);
		child = fork();
		if (child == 0) {
			check_and_rewrite(memory, pages, 1);
			_exit(0);
		}
		test_check(memory, pages / 2, 1);
		test_reap(child, 0);
		test_check(memory, pages, 1);
	}
	close_all();
	check_and_rewrite(memory, pages, 1);
}

/* The device's own accesses: done or refused, never half a word. */
static void access_memory(void)
{
	size_t pages = 64;
	char *memory = test_map(pages), *coherent = NULL;
	void *allocated = NULL;
	uint64_t word;

	fill_and_open(memory, pages);
	move(memory, pages / 2, HMM_DEVICE);
	for (size_t i = 0; i < pages; i++) {
		unsigned long addr = (unsigned long)memory + i * PAGE;
		ssize_t n = hmm_device_read(&mirror, addr, &word, 8);

		if (n == 8)
			CHECK_EQ(word, test_word(i, 0, 1));
		else
			CHECK(n < 0);
		word = test_word(i, 0, 2);
		n = hmm_device_write(&mirror, addr, &word, 8);
		CHECK(n == 8 || n < 0);
		word = n == 8 ? word : test_word(i, 0, 1);
		CHECK_EQ(*(volatile uint64_t *)addr, word);
		*(volatile uint64_t *)addr = test_word(i, 0, 1);
	}
	test_check(memory, pages, 1);
	if (hmm_alloc(&mirror, 2 * BLOCK, &allocated) == 0) {
		coherent = allocated;
		test_fill(coherent, 1024, 5);
		if (hmm_device_read(&mirror, (unsigned long)coherent + PAGE, &word, 8) == 8)
			CHECK_EQ(word, test_word(1, 0, 5));
		test_check(coherent, 1024, 5);
		if (hmm_free(&mirror, coherent, 2 * BLOCK))
			CHECK(*hmm_last_error());
	} else {
		printf("hmm_alloc: %s\n", hmm_last_error());
	}
	close_all();
	check_and_rewrite(memory, pages, 1);
}

/* ---- a driver's window ------------------------------------------------------------ */

#define WINDOW_PAGES 640

struct invitation {
	uint64_t refused;
};

void send_key(int socket, int key)
{
	struct invitation invitation = { key < 0 };
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { .header = { .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
				  .cmsg_len = CMSG_LEN(sizeof(int)) } };
	struct iovec data = { &invitation, sizeof(invitation) };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1 };

	if (key >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof(control.room);
		memcpy(CMSG_DATA(&control.header), &key, sizeof(key));
	}
	CHECK_EQ(sendmsg(socket, &message, MSG_NOSIGNAL), sizeof(invitation));
}

int receive_key(int socket)
{
	struct invitation invitation;
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec data = { &invitation, sizeof(invitation) };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = sizeof(control) };
	int key = -1;

	CHECK_EQ(recvmsg(socket, &message, MSG_CMSG_CLOEXEC), sizeof(invitation));
	if (!invitation.refused)
		memcpy(&key, CMSG_DATA(&control.header), sizeof(key));
	return key;
}

static sigjmp_buf refused_access;

/* SIGBUS by the poison; SIGSEGV where there was none to be had, and the library has closed the page. */
static void on_refused_access(int signal)
{
	siglongjmp(refused_access, 1);
}

/* The driver of that device: its window, or NULL when something was refused. */
static struct hmm_window *open_window(const char *device)
{
	struct sigaction action = { .sa_handler = on_refused_access };
	static const struct hmm_mirror_ops ops = { .size = sizeof(ops) };
	struct hmm_window *window = NULL;
	int key = receive_key(DRIVER_SOCKET), r;

	if (key < 0)
		_exit(REFUSED);
	r = hmm_open_peer(key, NULL, &hmm);
	close(key);
	if (!r)
		r = hmm_device_open(hmm, device, &mirror.device);
	mirror.ops = &ops;
	if (!r)
		r = hmm_mirror_register(&mirror, hmm);
	if (!r)
		r = hmm_window_map(&mirror, (unsigned long)WINDOW_ADDR, WINDOW_PAGES * PAGE, 0,
				   &window);
	if (r)
		printf("driver: %s\n", hmm_last_error());
	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	return r ? NULL : window;
}

/* Reads each page and writes its word 0, in the window; tells how many it wrote. */
static void drive(void)
{
	struct hmm_window *window = open_window("inject");
	static volatile uint64_t written;
	uint64_t told;

	if (window && sigsetjmp(refused_access, 1) == 0) {
		for (; written < WINDOW_PAGES; written++) {
			volatile uint64_t *words =
				(volatile uint64_t *)((char *)WINDOW_ADDR + written * PAGE);

			CHECK_EQ(words[1], test_word(written, 1, 1));
			CHECK_EQ(words[511], test_word(written, 511, 1));
			words[0] = test_word(written, 0, 2);
		}
	}
	told = written;
	CHECK_EQ(write(DRIVER_SOCKET, &told, sizeof(told)), sizeof(told));
	hmm_window_unmap(window);
	_exit(0);
}

/* Reads all of it, again and again, on another device, until the owner has heard enough. */
static void read_along(void)
{
	struct hmm_window *window = open_window("inject-other");
	static volatile size_t page;
	uint64_t rounds = 0;

	if (window && sigsetjmp(refused_access, 1) == 0)
		for (; rounds < 3; rounds++)
			for (page = 0; page < WINDOW_PAGES; page++) {
				volatile uint64_t *words =
					(volatile uint64_t *)((char *)WINDOW_ADDR + page * PAGE);
				uint64_t first = words[0];

				CHECK(first == test_word(page, 0, 1) || first == test_word(page, 0, 2));
				CHECK_EQ(words[1], test_word(page, 1, 1));
				CHECK_EQ(words[511], test_word(page, 511, 1));
			}
	hmm_window_unmap(window);
	_exit(0);
}

pid_t start_driver(const char *what, int *socket)
{
	char program[] = "/proc/self/exe", name[16], *arguments[] = {program, name, NULL};
	int ends[2];
	pid_t driver;

	snprintf(name, sizeof(name), "%s", what);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	driver = fork();
	CHECK(driver >= 0);
	if (driver == 0) {
		dup2(ends[1], DRIVER_SOCKET);
		execv(program, arguments);
		_exit(1);
	}
	close(ends[1]);
	*socket = ends[0];
	return driver;
}

static bool has_ended(pid_t driver, int *status)
{
	if (driver && waitpid(driver, status, WNOHANG) == 0)
		return false;
	if (*status != 0 && *status != REFUSED << 8)
		FAIL("a driver ended with status %#x", *status);
	return true;
}

/* A driver writes through its window while the owner looks on, and perhaps another one. */
static void with_windows(bool others)
{
	char *memory = mmap(WINDOW_ADDR, WINDOW_PAGES * PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	struct hmm_device_options options = {
		.size = sizeof(options), .name = "inject-other", .memory = DEVICE_MEMORY, .node = -1,
		.caps = HMM_DEVICE_FAULTS,
	};
	uint64_t written = 0;
	int socket, other_socket, key = -1, status = 0, other_status = 0;
	pid_t driver = start_driver("driver", &socket);
	pid_t other = others ? start_driver("reader", &other_socket) : 0;
	struct hmm_device *device = NULL;
	bool opened, ended = false, other_ended = false;

	CHECK(memory == WINDOW_ADDR);
	madvise(memory, WINDOW_PAGES * PAGE, MADV_NOHUGEPAGE);
	test_fill(memory, WINDOW_PAGES, 1);
	opened = open_or_refused(DEVICE_MEMORY);
	if (opened) {
		if (others && hmm_device_new(hmm, &options, &device))
			printf("hmm_device_new: %s\n", hmm_last_error());
		key = hmm_export(hmm);
		if (key < 0)
			printf("hmm_export: %s\n", hmm_last_error());
	}
	send_key(socket, key);
	if (others)
		send_key(other_socket, key);
	if (key >= 0)
		close(key);
	/* Meanwhile the owner reads, and takes pages away. */
	for (unsigned int i = 0; !ended || !other_ended; i++) {
		size_t page = i * 37 % WINDOW_PAGES;
		volatile uint64_t *words = (volatile uint64_t *)(memory + page * PAGE);

		CHECK_EQ(words[2], test_word(page, 2, 1));
		if (i % 3 == 0)
			words[3] = test_word(page, 3, 1);
		usleep(200);
		ended = ended || has_ended(driver, &status);
		other_ended = other_ended || has_ended(other, &other_status);
	}
	if (status == 0)
		CHECK_EQ(read(socket, &written, sizeof(written)), sizeof(written));
	printf("driver: %lu of %d pages written\n", written, WINDOW_PAGES);
	for (size_t page = 0; page < WINDOW_PAGES; page++) {
		volatile uint64_t *words = (volatile uint64_t *)(memory + page * PAGE);

		CHECK_EQ(words[0], test_word(page, 0, page < written ? 2 : 1));
		words[0] = test_word(page, 0, 1);
	}
	test_check(memory, WINDOW_PAGES, 1);
	hmm_device_put(device);
	if (opened)
		close_all();
	check_and_rewrite(memory, WINDOW_PAGES, 1);
	if (!opened)
		_exit(REFUSED);
}

static void window(void)
{
	with_windows(false);
}

/* And another driver, whose device has copies. */
static void several(void)
{
	with_windows(true);
}

/* ---- hmmd ends before its owner ------------------------------------------------------ */

static void farewell(void)
{
	char *huge = test_map_huge(2), *small = test_map(300), line[16];

	test_fill(huge, 2 * 512, 1);
	test_fill(small, 300, 2);
	if (!open_or_refused(DEVICE_MEMORY)) {
		puts("out");
		CHECK(fgets(line, sizeof(line), stdin));
		test_check(huge, 2 * 512, 1);
		test_check(small, 300, 2);
		_exit(REFUSED);
	}
	move(huge, 2 * 512, HMM_DEVICE);
	move(small, 300, HMM_DEVICE);
	test_check(small, 150, 2);
	puts("out");
	/* Until hmmd is gone. */
	CHECK(fgets(line, sizeof(line), stdin));
	check_and_rewrite(huge, 2 * 512, 1);
	check_and_rewrite(small, 300, 2);
}

static const struct test_case cases[] = {
	{"travel", travel, false},
	{"base", base, false},
	{"locked", locked, false},
	{"share", share, false},
	{"touch", touch, false},
	{"ranges", ranges, false},
	{"upheaval", upheaval, false},
	{"family", family, false},
	{"access", access_memory, false},
	{"window", window, false},
	{"several", several, false},
	{"advice", advice, false},
	{"events", events, false},
	{"exclusive", exclusive, false},
	{"evict", evict, false},
	{"devmem", devmem, false},
	{"sync", synced, false},
	{"dirty", watched, false},
	{"farfork", farfork, false},
	{"drain", drained, true},
	{"farewell", farewell, true},
	{"driver", drive, true},
	{"reader", read_along, true},
	{"engine", engine_driver, true},
	{"reached", reached, true},
	{NULL, NULL, false},
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
