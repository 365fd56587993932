/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * coherence.c - the randomised coherence test: an owner with several threads
 * and driver processes read and write the same pages through every path, while
 * pages migrate and the address space changes under them. See board.h for what
 * is checked. The last act: everything comes home, every cell is read once
 * more by everybody, the mirror is closed, and every cell is still the same.
 *
 * Exit 0: nothing was wrong and pages did move. Exit 1: the first thing that
 * was, with its circumstances. The seed is printed and can be given; it fixes
 * what each participant does, not how they interleave.
 */
#include "board.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DRIVER_BOARD_FD 100
#define DRIVER_SOCKET_FD 101

extern char **environ;

struct test {
	struct board *board;
	int board_fd;
	struct participant *who;
	struct hmm *hmm;
	struct hmm_mirror mirror;
	struct hmm_mirror copies;	/* with --tracked */
	struct hmm_device *other_devices[DRIVERS_MAX];
	pid_t drivers[DRIVERS_MAX];
	int sockets[DRIVERS_MAX];
	struct thread_context contexts[PARTICIPANTS_MAX];
	pthread_t threads[PARTICIPANTS_MAX];
	uint32_t n_threads;
};

static struct test test;

static const struct hmm_mirror_ops no_callbacks = { .size = sizeof(no_callbacks) };
static const struct hmm_mirror_ops tracked = { .size = sizeof(tracked), .flags = HMM_MIRROR_TRACKED };

/* ---- settings --------------------------------------------------------------- */

enum { OPTION_SEED = 256, OPTION_SECONDS, OPTION_THREADS, OPTION_DRIVERS, OPTION_MIB, OPTION_DEVICE, OPTION_EVENTS,
       OPTION_FORK, OPTION_WINDOWS, OPTION_PINS, OPTION_ENGINE, OPTION_BAR, OPTION_PROTECT, OPTION_EXCLUSIVE, OPTION_SEVERAL,
       OPTION_IN_PLACE, OPTION_HUGETLB, OPTION_FORGET, OPTION_KILL, OPTION_END, OPTION_BASE, OPTION_DIRECTORY, OPTION_MOVERS, OPTION_TRACKED, OPTION_ATTENDED,
       OPTION_HANG, OPTION_DRIVER };

static const struct option long_options[] = {
	{ "seed", required_argument, NULL, OPTION_SEED },
	{ "seconds", required_argument, NULL, OPTION_SECONDS },
	{ "threads", required_argument, NULL, OPTION_THREADS },
	{ "drivers", required_argument, NULL, OPTION_DRIVERS },
	{ "movers", required_argument, NULL, OPTION_MOVERS },
	{ "mib", required_argument, NULL, OPTION_MIB },
	{ "device", required_argument, NULL, OPTION_DEVICE },
	{ "events", no_argument, NULL, OPTION_EVENTS },
	{ "fork", no_argument, NULL, OPTION_FORK },
	{ "windows", no_argument, NULL, OPTION_WINDOWS },
	{ "pins", no_argument, NULL, OPTION_PINS },
	{ "forget", no_argument, NULL, OPTION_FORGET },
	{ "engine", no_argument, NULL, OPTION_ENGINE },
	{ "bar", required_argument, NULL, OPTION_BAR },
	{ "protect", no_argument, NULL, OPTION_PROTECT },
	{ "exclusive", no_argument, NULL, OPTION_EXCLUSIVE },
	{ "several", no_argument, NULL, OPTION_SEVERAL },
	{ "in-place", no_argument, NULL, OPTION_IN_PLACE },
	{ "hugetlb", no_argument, NULL, OPTION_HUGETLB },
	{ "tracked", no_argument, NULL, OPTION_TRACKED },
	{ "attended", no_argument, NULL, OPTION_ATTENDED },
	{ "kill-daemon", no_argument, NULL, OPTION_KILL },
	{ "end-daemon", no_argument, NULL, OPTION_END },
	{ "base-engine", no_argument, NULL, OPTION_BASE },
	{ "directory", required_argument, NULL, OPTION_DIRECTORY },
	{ "hang", required_argument, NULL, OPTION_HANG },
	{ "as-driver", required_argument, NULL, OPTION_DRIVER },
	{ NULL, 0, NULL, 0 },
};

/* Three that migrate (or are pinned, or have counters), what stays where it is, what is tracked, and a coherent one. */
static uint32_t n_areas(const struct settings *settings)
{
	return 4 + (settings->in_place ? 5 : 0) + (settings->hugetlb ? 2 : 0) + (settings->tracked ? 1 : 0);
}

static int usage(void)
{
	fprintf(stderr,
		"usage: coherence [--seed N] [--seconds N] [--threads N] [--movers N] [--drivers 0..4] [--mib N]\n"
		"                 [--device MIB]    so little that blocks have to make way (4 times --mib)\n"
		"                 [--events] [--fork] [--windows] [--pins] [--base-engine] [--directory DIR]\n"
		"                 [--engine]        the last driver's memory is its own, behind a copy engine\n"
		"                 [--bar CARD]      ... is BAR 2 of a card; without --engine\n"
		"                 [--forget]        the kernel does not count all that UFFDIO_MOVE has moved; without --base-engine\n"
		"                 [--protect]       mprotect() under everybody's hands; without --events, --pins\n"
		"                 [--exclusive]     counters, whose pages devices take for themselves; without --pins\n"
		"                 [--several]       each driver has a device; advice and shares at random; without --events\n"
		"                 [--in-place]      files and shared memory, too, which devices reach where they are; without --pins\n"
		"                 [--hugetlb]       and huge pages of the kernel's pool, which must have some; --mib 44\n"
		"                 [--tracked]       a tracked mirror's copies of one area, and which pages of it were written\n"
		"                 [--attended]      until standard input ends, instead of --seconds\n"
		"                 [--kill-daemon]   hmmd may die at any time: failing calls are excused\n"
		"                 [--end-daemon]    and may end in good order; without --windows\n"
		"                 [--hang N]        somebody who is in one operation for N seconds hangs (25)\n"
		"hmmd's socket is taken from HMM_SOCKET.\n");
	return 2;
}

static bool number_in(const char *text, uint64_t low, uint64_t high, uint64_t *result)
{
	char *end;

	errno = 0;
	*result = strtoull(text, &end, 0);
	return !errno && end != text && !*end && *result >= low && *result <= high;
}

static bool parse(int argc, char **argv, struct settings *settings, int *driver)
{
	const char *scale = getenv("HMM_TEST_SCALE"), *seed = getenv("HMM_TEST_SEED");
	const char *path = getenv("HMM_SOCKET");
	uint64_t number = 0;
	int option;

	*settings = (struct settings){ .owner = getpid(), .seconds = 8, .threads = 3, .mib = 16, .hang = 25, .scale = 1 };
	*driver = -1;
	settings->seed = now_ns() ^ (uint64_t)getpid() << 40;
	if (seed && *seed && number_in(seed, 0, UINT64_MAX, &number))
		settings->seed = number;
	if (scale && number_in(scale, 1, 1000, &number))
		settings->scale = (uint32_t)number;
	snprintf(settings->socket, sizeof(settings->socket), "%s", path ? path : "/run/hmmd/hmmd.sock");
	snprintf(settings->directory, sizeof(settings->directory), "/var/tmp");
	while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
		bool good = true;

		switch (option) {
		case OPTION_SEED:
			good = number_in(optarg, 0, UINT64_MAX, &settings->seed);
			break;
		case OPTION_SECONDS:
			good = number_in(optarg, 1, 86400, &number);
			settings->seconds = (uint32_t)number;
			break;
		case OPTION_THREADS:
			good = number_in(optarg, 1, 16, &number);
			settings->threads = (uint32_t)number;
			break;
		case OPTION_DRIVERS:
			good = number_in(optarg, 0, DRIVERS_MAX, &number);
			settings->drivers = (uint32_t)number;
			break;
		case OPTION_MOVERS:
			good = number_in(optarg, 1, MOVERS_MAX, &number);
			settings->movers = (uint32_t)number;
			break;
		case OPTION_MIB:
			good = number_in(optarg, 4, 240, &number);
			settings->mib = (uint32_t)number;
			break;
		case OPTION_DEVICE:
			good = number_in(optarg, 4, 1024, &number);
			settings->device = (uint32_t)number;
			break;
		case OPTION_EVENTS: settings->events = true; break;
		case OPTION_FORK: settings->fork = true; break;
		case OPTION_WINDOWS: settings->windows = true; break;
		case OPTION_PINS: settings->pins = true; break;
		case OPTION_ENGINE: settings->engine = true; break;
		case OPTION_BAR:
			settings->bar = true;
			good = strlen(optarg) < sizeof(settings->card);
			snprintf(settings->card, sizeof(settings->card), "%s", optarg);
			break;
		case OPTION_PROTECT: settings->protect = true; break;
		case OPTION_EXCLUSIVE: settings->exclusive = true; break;
		case OPTION_SEVERAL: settings->several = true; break;
		case OPTION_IN_PLACE: settings->in_place = true; break;
		case OPTION_FORGET: settings->forget = true; break;
		case OPTION_HUGETLB: settings->in_place = settings->hugetlb = true; break;
		case OPTION_TRACKED: settings->tracked = true; break;
		case OPTION_ATTENDED: settings->attended = true; break;
		case OPTION_KILL: settings->kill_daemon = true; break;
		case OPTION_END: settings->kill_daemon = settings->end_daemon = true; break;
		case OPTION_BASE: settings->base_engine = true; break;
		case OPTION_DIRECTORY:
			snprintf(settings->directory, sizeof(settings->directory), "%s", optarg);
			break;
		case OPTION_HANG:
			good = number_in(optarg, 1, 3600, &number);
			settings->hang = (uint32_t)number;
			break;
		case OPTION_DRIVER:
			good = number_in(optarg, 0, DRIVERS_MAX - 1, &number);
			*driver = (int)number;
			break;
		default: good = false;
		}
		if (!good)
			return false;
	}
	if (!settings->device)
		settings->device = 4 * settings->mib;
	if (!settings->movers)
		settings->movers = settings->several ? 2 : 1;
	if (settings->windows && !settings->drivers)
		settings->drivers = 1;
	if ((settings->engine || settings->bar) && !settings->drivers)
		settings->drivers = 1;
	if (settings->engine && settings->bar)
		return false;
	if ((settings->protect || settings->exclusive || settings->in_place) && settings->pins)
		return false;
	if (settings->hugetlb && (settings->mib << 8) / n_areas(settings) * PAGE_BYTES % BLOCK_BYTES)
		return false;
	if ((settings->protect || settings->several) && settings->events)
		return false;
	return optind == argc;
}

/* ---- setting up ----------------------------------------------------------------- */

static void spawn_driver(unsigned int index)
{
	posix_spawn_file_actions_t actions;
	char number[12], program[] = "/proc/self/exe", name[] = "coherence-driver", flag[] = "--as-driver";
	char *arguments[] = { name, flag, number, NULL };
	int pair[2], error;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		board_fail(test.board, test.who, "socketpair: %m");
	snprintf(number, sizeof(number), "%u", index);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, test.board_fd, DRIVER_BOARD_FD);
	posix_spawn_file_actions_adddup2(&actions, pair[1], DRIVER_SOCKET_FD);
	error = posix_spawn(&test.drivers[index], program, &actions, NULL, arguments, environ);
	if (error)
		board_fail(test.board, test.who, "starting a driver: %s", strerror(error));
	posix_spawn_file_actions_destroy(&actions);
	close(pair[1]);
	test.sockets[index] = pair[0];
}

static void send_key(int key, int socket_fd)
{
	char byte = 0, control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &key, sizeof(key));
	if (sendmsg(socket_fd, &message, MSG_NOSIGNAL) != 1)
		board_fail(test.board, test.who, "sending the key: %m");
}

static void must(const char *call, long error)
{
	if (error < 0)
		board_fail(test.board, test.who, "%s: %s (%s)", call, strerror((int)-error), hmm_last_error());
}

static void explain(uint64_t address)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	if (fd >= 0 && pread(fd, &entry, sizeof(entry), (off_t)(address / PAGE_BYTES * 8)) == 8)
		dprintf(2, "  CPU: pagemap %#lx%s%s%s\n", entry, entry >> 63 & 1 ? " present" : "",
			entry >> 62 & 1 ? " swapped" : "", entry >> 57 & 1 ? " write-protected" : "");
	dprintf(2, "  device: entry %#lx\n", hmm_mirror_lookup(&test.mirror, address));
}

static struct hmm_device *new_device(unsigned int number)
{
	char which[12], name[64];
	struct hmm_device_options options = { .size = sizeof(options), .name = name, .node = -1,
					      .memory = (uint64_t)test.board->settings.device << 20,
					      .caps = HMM_DEVICE_FAULTS };
	struct hmm_device *device = NULL;

	snprintf(which, sizeof(which), "%u", number);
	board_device(test.board, which, name);
	must("hmm_device_new", hmm_device_new(test.hmm, &options, &device));
	return device;
}

static struct area *tracked_area(void)
{
	for (uint32_t i = 0; i < test.board->n_areas; i++)
		if (test.board->areas[i].kind == AREA_TRACKED)
			return &test.board->areas[i];
	return NULL;
}

static void map_area(struct area *area, uint32_t index)
{
	size_t bytes = area->pages * PAGE_BYTES;
	void *wanted = (void *)area->homes[0];
	void *got;

	if (area->kind == AREA_COHERENT) {
		must("hmm_alloc", hmm_alloc(&test.mirror, bytes, &got));
		atomic_store(&area->base, (uint64_t)got);
		return;
	}
	got = area_map(area, wanted, 0, area->pages, MAP_FIXED_NOREPLACE);
	if (got != wanted)
		board_fail(test.board, test.who, "mmap at %p: %m", wanted);
	if (area_stays(area))
		return;
	madvise(got, bytes, index % 2 ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	if (test.board->settings.base_engine || area->kind == AREA_TRACKED)
		must("hmm_advise", hmm_advise(test.hmm, (unsigned long)got, bytes, HMM_ADVISE_UNPINNED, NULL));
}

/* Room for what is tracked, wherever it begins in a block. */
static void open_copies(void)
{
	char name[64];
	struct hmm_device_options options = { .size = sizeof(options), .node = -1,
					      .name = board_device(test.board, "copies", name),
					      .memory = ((uint64_t)test.board->settings.mib << 20) + 2 * BLOCK_BYTES };
	struct area *area = tracked_area();

	if (!area)
		return;
	must("hmm_device_new", hmm_device_new(test.hmm, &options, &test.copies.device));
	test.copies.ops = &tracked;
	must("hmm_mirror_register", hmm_mirror_register(&test.copies, test.hmm));
	must("hmm_mirror_track", hmm_mirror_track(&test.copies, atomic_load(&area->base), area->pages * PAGE_BYTES, 0));
}

static void open_mirror(void)
{
	const struct settings *settings = &test.board->settings;
	struct hmm_open_options options = { .size = sizeof(options), .socket = settings->socket,
					    .name = "coherence", .timeout_ms = 5000 * settings->scale,
					    .flags = settings->base_engine ? HMM_OPEN_BASE_ENGINE : 0 };
	int key;

	hmm_set_log(board_log, test.who);
	must("hmm_open", hmm_open(&options, &test.hmm));
	test.mirror.device = new_device(0);
	test.other_devices[1] = new_device(1);
	for (uint32_t i = 2; settings->several && i < settings->drivers; i++)
		test.other_devices[i] = new_device(i);
	test.mirror.ops = &no_callbacks;
	must("hmm_mirror_register", hmm_mirror_register(&test.mirror, test.hmm));
	board_explain = explain;
	for (uint32_t i = 0; i < test.board->n_areas; i++)
		map_area(&test.board->areas[i], i);
	open_copies();
	for (uint32_t i = 0; i < settings->drivers; i++) {
		key = hmm_export(test.hmm);
		must("hmm_export", key);
		send_key(key, test.sockets[i]);
		close(key);
	}
}

static void start_for(struct hmm_mirror *mirror, const char *name, unsigned int number, uint32_t writer, void *(*run)(void *))
{
	struct thread_context *context = &test.contexts[test.n_threads];
	int error;

	*context = (struct thread_context){
		.board = test.board, .who = board_join(test.board, name, number), .hmm = test.hmm,
		.mirror = mirror, .writer = writer,
		.random = test.board->settings.seed + test.n_threads * 0x10001ULL,
	};
	error = pthread_create(&test.threads[test.n_threads++], NULL, run, context);
	if (error)
		board_fail(test.board, test.who, "pthread_create: %s", strerror(error));
}

static void start(const char *name, unsigned int number, uint32_t writer, void *(*run)(void *))
{
	start_for(&test.mirror, name, number, writer, run);
}

/* A signal in the owner where nothing may be refused. */
static void hit(int number, siginfo_t *info, void *machine)
{
	board_fail(test.board, test.who, "signal %d (code %d) in process %d, thread %d at address %p", number, info->si_code,
		   getpid(), gettid(), info->si_addr);
}

/* ---- the watch ------------------------------------------------------------------ */

static void check_drivers(void)
{
	int status;

	for (uint32_t i = 0; i < test.board->settings.drivers; i++) {
		if (waitpid(test.drivers[i], &status, WNOHANG) != test.drivers[i])
			continue;
		/* It may have failed with a report of its own. */
		for (int tries = 0; tries < 50 && atomic_load(&test.board->failed) == 1; tries++)
			pause_us(20000);
		if (atomic_load(&test.board->failed))
			_exit(1);
		board_fail(test.board, test.who, "driver %u ended with status %#x", i, (unsigned int)status);
	}
}

/* Somebody who does not get on with one operation for this long hangs. */
static void check_progress(uint64_t *done, uint64_t *since)
{
	uint64_t now = now_ns(), limit = 1000000000ULL * test.board->settings.hang * test.board->settings.scale;
	uint32_t n = atomic_load(&test.board->n_participants);

	for (uint32_t i = 0; i < n; i++) {
		struct participant *who = &test.board->participants[i];
		uint64_t count = atomic_load(&who->done);

		if (count != done[i] || !since[i] || atomic_load(&who->doing) == OP_IDLE) {
			done[i] = count;
			since[i] = now;
		} else if (now - since[i] > limit) {
			uint32_t page = atomic_load(&who->page);
			struct area *area = board_area(test.board, page);
			uint64_t address = atomic_load(&area->base) + (page - area->first_page) * PAGE_BYTES;

			explain(address);
			board_fail(test.board, test.who, "HANG: %s (pid %d, thread %d) is in %s of page %u, address %#lx, for %lu s",
				   who->name, who->pid, who->tid, operation_name(atomic_load(&who->doing)),
				   page, address, (now - since[i]) / 1000000000);
		}
	}
}

static bool all_idle(void)
{
	for (uint32_t i = 0; i < test.n_threads; i++)
		if (pthread_tryjoin_np(test.threads[i], NULL) == EBUSY)
			return false;
		else
			test.threads[i--] = test.threads[--test.n_threads];
	return true;
}

/* What a run with a setting is about. How often it happens is chance, that it does is not. */
static const struct {
	size_t setting;
	enum operation operation;
} essentials[] = {
#define WITH(setting, operation) { offsetof(struct settings, setting), operation }
	WITH(windows, OP_WINDOW_LOAD), WITH(windows, OP_WINDOW_STORE),
	WITH(events, OP_DONTNEED), WITH(events, OP_FREE), WITH(events, OP_REPLACE), WITH(events, OP_UNMAP),
	WITH(events, OP_PROTECT), WITH(events, OP_POPULATE),
	WITH(fork, OP_FORK), WITH(fork, OP_CHILD),
	WITH(several, OP_ADVISE), WITH(several, OP_SHARE), WITH(several, OP_DISCARD),
	WITH(pins, OP_DIRECT_READ), WITH(pins, OP_DIRECT_WRITE), WITH(pins, OP_FIXED_READ),
	WITH(pins, OP_FIXED_WRITE), WITH(pins, OP_VMSPLICE),
	WITH(engine, OP_FAR_OUT), WITH(engine, OP_STORE_FAR), WITH(engine, OP_FETCH_FAR),
	WITH(bar, OP_FAR_OUT), WITH(bar, OP_FAR_HOME),
	WITH(exclusive, OP_ADD), WITH(exclusive, OP_EXCLUSIVE_ADD),
	WITH(protect, OP_PROTECT), WITH(protect, OP_REFUSED),
	WITH(tracked, OP_SYNC), WITH(tracked, OP_DIRTY),
#undef WITH
};

static bool happened(enum operation operation)
{
	return atomic_load(&test.board->tally[operation]);
}

/* What this run is about and has not happened yet; NULL: all of it has. */
static const char *untested(void)
{
	const struct settings *settings = &test.board->settings;

	if (!happened(OP_OUT) || !happened(OP_HOME))
		return "migrations both ways";
	if (settings->forget && !forget_count())
		return "a move that was not counted";
	if (settings->drivers && (!happened(OP_DEVICE_READ) || !happened(OP_DEVICE_WRITE) || !happened(OP_RANGE)))
		return "accesses by a driver";
	for (size_t i = 0; i < sizeof(essentials) / sizeof(essentials[0]); i++)
		if (*((const bool *)((const char *)settings + essentials[i].setting)) && !happened(essentials[i].operation))
			return operation_name(essentials[i].operation);
	/* Of far pages one device alone may have some in a block that they are moved to. */
	if (settings->events && !settings->engine && !settings->bar && !happened(OP_MREMAP))
		return operation_name(OP_MREMAP);
	if (settings->events && settings->in_place && !happened(OP_REMOVE))
		return operation_name(OP_REMOVE);
	for (uint32_t i = 0; settings->drivers && i < test.board->n_areas; i++) {
		struct area *area = &test.board->areas[i];

		if (area_stays(area) && (!atomic_load(&area->read) || !atomic_load(&area->written)))
			return "a driver's reads and writes of each area";
	}
	return NULL;
}

/* Somebody else says when. */
static void attend(uint64_t *end)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };

	if (*end == UINT64_MAX && poll(&input, 1, 0) == 1)
		*end = now_ns();
}

/* A machine that is busy with something else gets more time, until everything has happened. */
static bool is_time(uint64_t end)
{
	uint64_t now = now_ns();

	return now >= end && (!untested() || now >= end + 50000000000ULL * test.board->settings.scale);
}

static void watch(void)
{
	static uint64_t done[PARTICIPANTS_MAX], since[PARTICIPANTS_MAX];
	uint64_t end = test.board->settings.attended ? UINT64_MAX : now_ns() + test.board->settings.seconds * 1000000000ULL;
	bool over = false;

	while (!over || !all_idle()) {
		pause_us(50000);
		if (atomic_load(&test.board->failed)) {
			while (atomic_load(&test.board->failed) != 2)
				pause_us(10000);
			_exit(1);
		}
		check_drivers();
		check_progress(done, since);
		attend(&end);
		over = over || is_time(end);
		if (over)
			atomic_store(&test.board->stop, 1);
	}
}

/* ---- the last act ---------------------------------------------------------------- */

/* Few requests of many pages: how fast they are answered is not the question. */
#define CHECKED_AT_ONCE 16U

static void check_pages(uint32_t page, uint32_t pages, bool by_device)
{
	static uint64_t copy[CHECKED_AT_ONCE * PAGE_CELLS];
	static struct sight sights[CHECKED_AT_ONCE * PAGE_CELLS];
	struct board *board = test.board;
	uint32_t first = page * PAGE_CELLS, cells = pages * PAGE_CELLS;
	_Atomic uint64_t *memory = board_enter(board, page);

	board_begin(board, test.who, OP_FINAL, page, pages, first, by_device);
	for (uint32_t i = 0; i < cells; i++)
		sights[i] = board_look(board, first + i);
	if (by_device) {
		ssize_t got = hmm_device_read(&test.mirror, (unsigned long)memory, copy, pages * PAGE_BYTES);

		must("hmm_device_read", got);
		if (got != (ssize_t)(pages * PAGE_BYTES))
			board_fail(board, test.who, "hmm_device_read of %u pages gave %zd", pages, got);
	}
	for (uint32_t i = 0; i < cells; i++)
		board_judge(board, test.who, OP_FINAL, first + i, &sights[i],
			    by_device ? copy[i] : atomic_load(&memory[i]));
	board_done(board, test.who, OP_FINAL, true);
	board_leave(board, page);
}

static void check_cells(bool by_device)
{
	struct board *board = test.board;

	for (uint32_t i = 0; i < board->n_areas; i++) {
		struct area *area = &board->areas[i];

		for (uint32_t page = 0; page < area->pages; page += CHECKED_AT_ONCE) {
			uint32_t pages = area->pages - page;

			check_pages(area->first_page + page, pages < CHECKED_AT_ONCE ? pages : CHECKED_AT_ONCE,
				    by_device);
		}
	}
}

static void bring_home(void)
{
	for (uint32_t i = 0; i < test.board->n_areas; i++) {
		struct area *area = &test.board->areas[i];
		long there = -EAGAIN;

		for (int tries = 0; tries < 300 && there < 0; tries++) {
			there = hmm_migrate(&test.mirror, atomic_load(&area->base), area->pages * PAGE_BYTES,
					    HMM_SYSTEM, 0, NULL, NULL);
			if (there < 0 && !test.board->settings.kill_daemon)
				break;
			if (there < 0)
				pause_us(20000);
		}
		must("hmm_migrate home at the end", there);
	}
}

static void end_drivers(void)
{
	int status;

	for (uint32_t i = 0; i < test.board->settings.drivers; i++) {
		close(test.sockets[i]);
		if (waitpid(test.drivers[i], &status, 0) != test.drivers[i] || status)
			board_fail(test.board, test.who, "driver %u ended with status %#x", i,
				   (unsigned int)status);
	}
}

static int summary(void)
{
	struct board *board = test.board;
	const char *missing = untested();

	printf("coherence: seed %lu;", board->settings.seed);
	for (unsigned int i = 0; i < OP_MAX; i++)
		if (atomic_load(&board->tally[i]))
			printf(" %s %lu;", operation_name(i), atomic_load(&board->tally[i]));
	printf("\ncoherence: pages");
	for (unsigned int i = 0; i <= HMM_TRACKED; i++)
		if (atomic_load(&board->results[i]))
			printf(" %s %lu;", hmm_migrate_result_name(i), atomic_load(&board->results[i]));
	printf(" calls refused while hmmd was away %lu\n", atomic_load(&board->refused));
	if (missing) {
		printf("coherence: there never was what this is about (%s), so it was not tested\n", missing);
		fprintf(stderr, "coherence: not tested: %s\n", missing);
	}
	return missing ? 1 : 0;
}

int main(int argc, char **argv)
{
	struct settings settings;
	struct area *coherent;
	int driver;

	if (!parse(argc, argv, &settings, &driver))
		return usage();
	if (driver >= 0)
		return driver_main(DRIVER_BOARD_FD, DRIVER_SOCKET_FD, (unsigned int)driver);
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	printf("coherence: --seed %lu --seconds %u --threads %u --movers %u --drivers %u --mib %u --device %u%s%s%s%s%s%s%s%s%s%s%s%s%s%s%s%s%s\n",
	       settings.seed, settings.seconds, settings.threads, settings.movers, settings.drivers, settings.mib, settings.device,
	       settings.events ? " --events" : "", settings.fork ? " --fork" : "",
	       settings.windows ? " --windows" : "", settings.pins ? " --pins" : "", settings.forget ? " --forget" : "",
	       settings.engine ? " --engine" : "", settings.bar ? " --bar " : "", settings.card, settings.protect ? " --protect" : "",
	       settings.exclusive ? " --exclusive" : "", settings.several ? " --several" : "",
	       settings.in_place ? " --in-place" : "", settings.hugetlb ? " --hugetlb" : "",
	       settings.tracked ? " --tracked" : "", settings.attended ? " --attended" : "",
	       settings.end_daemon ? " --end-daemon" : settings.kill_daemon ? " --kill-daemon" : "", settings.base_engine ? " --base-engine" : "");
	test.board = board_new(&settings, n_areas(&settings), &test.board_fd);
	if (!test.board) {
		perror("coherence: the board");
		return 1;
	}
	test.who = board_join(test.board, "main", 0);
	if (settings.pins)
		test.board->areas[1].kind = AREA_PINNED;
	if (settings.exclusive)
		test.board->areas[1].kind = AREA_COUNTERS;
	coherent = &test.board->areas[test.board->n_areas - 1];
	coherent->kind = AREA_COHERENT;
	if (settings.tracked)
		coherent[-1].kind = AREA_TRACKED;
	areas_open(test.board, test.who);
	for (uint32_t i = 0; i < settings.drivers; i++)
		spawn_driver(i);
	if (settings.forget)
		forget_begin();
	open_mirror();
	if (settings.protect || settings.engine || settings.bar)
		attempt_begin(hit);
	while (atomic_load(&test.board->drivers_ready) < settings.drivers) {
		pause_us(5000);
		check_drivers();
	}
	printf("coherence: running\n");
	for (uint32_t i = 0; i < settings.threads; i++)
		start("thread", i, i, cpu_thread);
	for (uint32_t i = 0; i < settings.movers; i++)
		start("mover", i, i, mover_thread);
	for (uint32_t i = 0; settings.protect && i < 2; i++)
		start("protector", i, i, protector_thread);
	if (settings.events || settings.fork || settings.several)
		start("upheaval", 0, 0, upheaval_thread);
	if (settings.tracked)
		start_for(&test.copies, "tracker", 0, 0, tracker_thread);
	if (settings.pins)
		start("pins", 0, test.board->n_writers, pins_thread);
	watch();
	printf("coherence: final check\n");
	check_cells(false);
	bring_home();
	check_cells(true);
	check_cells(false);
	end_drivers();
	if (settings.tracked)
		must("hmm_mirror_unregister", hmm_mirror_unregister(&test.copies));
	must("hmm_mirror_unregister", hmm_mirror_unregister(&test.mirror));
	test.board->n_areas--;		/* the coherent area went with the mirror */
	test.board->n_pages -= coherent->pages;
	check_cells(false);
	hmm_device_put(test.copies.device);
	hmm_device_put(test.mirror.device);
	for (uint32_t i = 1; i < DRIVERS_MAX; i++)
		hmm_device_put(test.other_devices[i]);
	hmm_close(test.hmm);
	check_cells(false);
	areas_close(test.board);
	return summary();
}
