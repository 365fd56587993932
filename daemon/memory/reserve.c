/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * reserve.c - a pool that is reserved up front.
 *
 * A device's pages lie in shadows, at the owner's addresses, so nobody knows beforehand in which file they will be.
 * What is taken up front is therefore as much memory in a memfd of its own: a page of it is punched before a page
 * is filled in a shadow, and taken again after one was punched there. So what devices use and what is reserved are
 * the pool's size together, but for the moment between; and nobody is ever shown another's bytes, since each of these
 * pages goes through the kernel, which clears it.
 *
 * It is a ring: spent in front, filled at the end. So the thread that fills need not hold the lock meanwhile. What
 * is where stands in a second memfd: the service manager keeps both for the next hmmd, which would else need the memory
 * of what owners have on devices twice. It is locked in memory, where that is allowed: pages that nobody touches
 * would be the first to be swapped out.
 *
 * Happy path: reserve_new() populates, a step at a time, looking before each whether there is room, for the kernel kills
 * somebody where there is none. Then the thread sleeps until something is returned.
 *
 * What can fail: there is less room than wanted. At the beginning that is an error, later the reserve is short, and
 * the log says so, until there is room again.
 */
#include "memory/reserve.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "kernel/kernel.h"
#include "layout.h"
#include "log.h"
#include "memory/pool.h"
#include "memory/shadow.h"

#define STEP		(16UL << 20)
#define NOTE_SIZE	HMM_PAGE_SIZE
#define NOTE_MAGIC	UINT64_C(0x31767265736572)
/* What is returned page by page is taken back by more than one. */
#define GATHER_MS	1U
#define SHORT_MS	1000U

/* In shared memory: what is where. The next hmmd may be of another build, so it is checked. */
struct note {
	uint64_t magic, size, unit;
	struct placement placement;
	uint64_t first, held;		/* the ring: [first, first + held), modulo size */
};

struct reserve {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	pthread_t thread;
	bool running, ending, adopted;
	bool is_short;			/* ... and it was said */
	int fds[RESERVE_FDS];		/* the memory; the note */
	char *map;
	struct note *note;
	enum hmm_pool_kind kind;
	struct placement placement;
	uint64_t size, unit;
	uint64_t spent;			/* bytes that devices have, or are about to */
	int64_t patience;		/* CLOCK_MONOTONIC, ns: nothing is taken back before */
	void (*progress)(uint64_t done, uint64_t size);
};

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* hugetlb's memory is one, and all others' another. */
static bool is_hugetlb(enum hmm_pool_kind kind)
{
	return kind == HMM_POOL_KIND_HUGETLB;
}

/* With the lock, as all that follow. */
static uint64_t wanted(const struct reserve *reserve)
{
	return reserve->spent < reserve->size ? (reserve->size - reserve->spent) / reserve->unit * reserve->unit : 0;
}

static void give(struct reserve *reserve)
{
	struct note *note = reserve->note;

	while (note->held > wanted(reserve)) {
		uint64_t at = note->first, n = note->held - wanted(reserve);

		if (n > reserve->size - at)
			n = reserve->size - at;
		note->first = (at + n) % reserve->size;
		note->held -= n;
		kernel->punch(reserve->fds[0], at, n);
	}
}

/* ---- filling ---------------------------------------------------------------------- */

/* Where it is bound the nodes have to have it: the kernel would kill somebody there, too. */
static int ask_nodes(const struct reserve *reserve, uint64_t bytes, char *why, size_t size)
{
	struct pool pool = {.kind = reserve->kind, .placement = reserve->placement};
	char words[PLACEMENT_TEXT];

	if (pool_has_room(&pool, bytes))
		return 0;
	snprintf(why, size, "memory node %s has no more to give",
		 placement_print_nodes(&reserve->placement, words, sizeof(words)));
	return -ENOSPC;
}

/* Of reserved huge pages a lack is an answer; for others the kernel kills somebody. */
static int ask(const struct reserve *reserve, uint64_t bytes, char *why, size_t size)
{
	char what[128];
	uint64_t room;

	if (is_hugetlb(reserve->kind))
		return 0;
	kernel->room(0, &room, what, sizeof(what));
	if (room >= bytes)
		return ask_nodes(reserve, bytes, why, size);
	snprintf(why, size, "%s has %" PRIu64 " MiB to give, and %" PRIu64 " MiB are to be reserved", what, room >> 20,
		 (bytes + (1U << 20) - 1) >> 20);
	return -ENOSPC;
}

/* @why: room was short, or the kernel had none after all. */
static int fill(struct reserve *reserve, uint64_t at, uint64_t n, char *why, size_t size)
{
	int r = ask(reserve, n, why, size);

	if (r)
		return r;
	do {
		r = kernel->populate(reserve->map + at, n);
	} while (r == -EINTR);
	if (!r)
		return 0;
	snprintf(why, size, is_hugetlb(reserve->kind) ? "no more huge pages are free" : "the kernel has no more: %s",
		 strerror(-r));
	return r == -EFAULT || r == -ENOMEM ? -ENOSPC : r;
}

/* One step. 0: of what is wanted some is there, or nothing was wanted. The lock is not held meanwhile. */
static int fill_step(struct reserve *reserve, char *why, size_t size)
{
	struct note *note = reserve->note;
	uint64_t at = (note->first + note->held) % reserve->size, n;
	int r;

	if (note->held >= wanted(reserve))
		return 0;
	n = wanted(reserve) - note->held;
	n = n > STEP ? STEP : n;
	n = n > reserve->size - at ? reserve->size - at : n;
	pthread_mutex_unlock(&reserve->lock);
	r = fill(reserve, at, n, why, size);
	if (r)
		kernel->punch(reserve->fds[0], at, n);
	pthread_mutex_lock(&reserve->lock);
	if (r)
		return r;
	note->held += n;
	/* It may have been spent meanwhile. */
	give(reserve);
	return 0;
}

/* ---- the thread ---------------------------------------------------------------------- */

static void rest(struct reserve *reserve, unsigned int ms)
{
	int64_t until = now_ns() + ms * 1000000LL;
	struct timespec end = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};

	while (!reserve->ending && now_ns() < until)
		pthread_cond_timedwait(&reserve->changed, &reserve->lock, &end);
}

static void say(struct reserve *reserve, int r, const char *why)
{
	if (r && !reserve->is_short)
		log_warn("the pool's reserve is short by %" PRIu64 " MiB: %s; it is taken back as soon as there is room",
			 (wanted(reserve) - reserve->note->held) >> 20, why);
	if (!r && reserve->is_short)
		log_info("there is room again for the pool's reserve");
	reserve->is_short = r;
}

static void *keep_filled(void *data)
{
	struct reserve *reserve = data;
	char why[200];
	int r;

	pthread_setname_np(pthread_self(), "hmmd-reserve");
	pthread_mutex_lock(&reserve->lock);
	if (reserve->patience > now_ns())
		rest(reserve, (unsigned int)((reserve->patience - now_ns()) / 1000000));
	while (!reserve->ending) {
		if (reserve->note->held >= wanted(reserve)) {
			pthread_cond_wait(&reserve->changed, &reserve->lock);
			continue;
		}
		rest(reserve, GATHER_MS);
		if (reserve->ending)
			break;
		r = fill_step(reserve, why, sizeof(why));
		say(reserve, r, why);
		if (r)
			rest(reserve, SHORT_MS);
	}
	pthread_mutex_unlock(&reserve->lock);
	return NULL;
}

static int start(struct reserve *reserve)
{
	sigset_t all, old;
	int r;

	/* Signals are the control thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = -pthread_create(&reserve->thread, NULL, keep_filled, reserve);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	reserve->running = !r;
	return r;
}

/* ---- beginning ------------------------------------------------------------------------- */

static int map_both(struct reserve *reserve)
{
	void *map;

	map = mmap(NULL, NOTE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, reserve->fds[1], 0);
	if (map == MAP_FAILED)
		return -errno;
	reserve->note = map;
	map = mmap(NULL, reserve->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, reserve->fds[0], 0);
	if (map == MAP_FAILED)
		return -errno;
	reserve->map = map;
	madvise(map, reserve->size, MADV_DONTDUMP);
	madvise(map, reserve->size, MADV_DONTFORK);
	if (pool_is_huge(reserve->kind) && !is_hugetlb(reserve->kind))
		madvise(map, reserve->size, MADV_HUGEPAGE);
	return 0;
}

/* Whether these are what an hmmd like this one left. */
static bool is_ours(const struct reserve *reserve)
{
	const struct note *note = reserve->note;

	return note->magic == NOTE_MAGIC && note->size == reserve->size && note->unit == reserve->unit &&
	       placement_same(&note->placement, &reserve->placement) && note->first < note->size &&
	       note->held <= note->size && note->first % note->unit == 0 && note->held % note->unit == 0;
}

static void close_both(struct reserve *reserve)
{
	if (reserve->note)
		munmap(reserve->note, NOTE_SIZE);
	if (reserve->map)
		munmap(reserve->map, reserve->size);
	reserve->note = NULL;
	reserve->map = NULL;
	for (unsigned int i = 0; i < RESERVE_FDS; i++) {
		if (reserve->fds[i] >= 0)
			close(reserve->fds[i]);
		reserve->fds[i] = -1;
	}
}

static bool adopt(struct reserve *reserve)
{
	struct statfs fs;
	struct stat st;
	int swap = reserve->fds[0];

	if (reserve->fds[0] < 0 || reserve->fds[1] < 0 || fstat(reserve->fds[0], &st) < 0)
		return false;
	/* The small one is the note. */
	if ((uint64_t)st.st_size == NOTE_SIZE) {
		reserve->fds[0] = reserve->fds[1];
		reserve->fds[1] = swap;
	}
	if (fstat(reserve->fds[1], &st) < 0 || (uint64_t)st.st_size != NOTE_SIZE ||
	    fstat(reserve->fds[0], &st) < 0 || (uint64_t)st.st_size != reserve->size ||
	    fstatfs(reserve->fds[0], &fs) < 0 || (fs.f_type == HUGETLBFS_MAGIC) != is_hugetlb(reserve->kind))
		return false;
	return map_both(reserve) == 0 && is_ours(reserve);
}

static int make(struct reserve *reserve)
{
	unsigned int flags = is_hugetlb(reserve->kind) ? MFD_HUGETLB | (HMM_BLOCK_SHIFT << MFD_HUGE_SHIFT) : 0;
	int r;

	reserve->fds[0] = kernel->memfd_new("hmm-reserve", reserve->size, flags);
	if (reserve->fds[0] < 0)
		return reserve->fds[0];
	reserve->fds[1] = kernel->memfd_new("hmm-reserve-note", NOTE_SIZE, 0);
	if (reserve->fds[1] < 0)
		return reserve->fds[1];
	r = map_both(reserve);
	if (!r)
		*reserve->note = (struct note){.magic = NOTE_MAGIC, .size = reserve->size, .unit = reserve->unit,
					       .placement = reserve->placement};
	return r;
}

/* Those of dax devices are where nobody said so, too. */
static int settle_placement(struct reserve *reserve, char *why, size_t size)
{
	uint64_t nodes[HMM_NODE_WORDS];
	unsigned int others;
	const char *reason;

	if (reserve->kind != HMM_POOL_KIND_DAX || reserve->placement.mode != HMM_PLACEMENT_ANY)
		return 0;
	if (kernel_dax_nodes(nodes, &others) > 0 &&
	    !placement_make(&reserve->placement, HMM_PLACEMENT_BIND, -1, nodes[0], &reason))
		return 0;
	snprintf(why, size, "no dax device is memory with a node of its own");
	return -ENODEV;
}

static int place(const struct reserve *reserve, char *why, size_t size)
{
	char words[PLACEMENT_TEXT];
	int r = shadow_place(reserve->map, reserve->size, &reserve->placement);

	if (r)
		snprintf(why, size, "no memory can be had at %s: %s",
			 placement_print(&reserve->placement, words, sizeof(words)), strerror(-r));
	return r;
}

static void lock(struct reserve *reserve)
{
	const struct note *note = reserve->note;
	uint64_t first;

	/* Those are not swapped. */
	if (is_hugetlb(reserve->kind))
		return;
	if (kernel->lock(reserve->map, reserve->size)) {
		log_warn("the pool's reserve may be swapped out: hmmd may not lock so much memory (RLIMIT_MEMLOCK)");
		return;
	}
	/* What there is already is locked where it is mapped. */
	first = note->held > note->size - note->first ? note->size - note->first : note->held;
	kernel->populate(reserve->map + note->first, first);
	kernel->populate(reserve->map, note->held - first);
}

static int take_all(struct reserve *reserve, char *why, size_t size)
{
	int r = make(reserve);

	if (r) {
		snprintf(why, size, "%s", strerror(-r));
		return r;
	}
	r = place(reserve, why, size);
	/* Of all: who fails fails at once. */
	if (!r)
		r = ask(reserve, reserve->size, why, size);
	if (!r)
		lock(reserve);
	pthread_mutex_lock(&reserve->lock);
	while (!r && reserve->note->held < reserve->size) {
		if (reserve->progress)
			reserve->progress(reserve->note->held, reserve->size);
		r = fill_step(reserve, why, size);
	}
	pthread_mutex_unlock(&reserve->lock);
	return r;
}

int reserve_new(const struct reserve_options *options, struct reserve **result, char *why, size_t size)
{
	struct reserve *reserve = calloc(1, sizeof(*reserve));
	pthread_condattr_t clock;
	int r;

	*why = '\0';
	if (!reserve) {
		snprintf(why, size, "out of memory");
		for (unsigned int i = 0; i < RESERVE_FDS; i++)
			if (options->fds[i] >= 0)
				close(options->fds[i]);
		return -ENOMEM;
	}
	reserve->kind = options->kind;
	reserve->placement = options->placement;
	reserve->unit = pool_is_huge(options->kind) ? HMM_BLOCK_SIZE : HMM_PAGE_SIZE;
	reserve->size = options->size / reserve->unit * reserve->unit;
	reserve->progress = options->progress;
	memcpy(reserve->fds, options->fds, sizeof(reserve->fds));
	pthread_mutex_init(&reserve->lock, NULL);
	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_cond_init(&reserve->changed, &clock);
	pthread_condattr_destroy(&clock);
	r = settle_placement(reserve, why, size);
	if (!r && adopt(reserve)) {
		reserve->adopted = true;
		reserve->patience = now_ns() + options->patience_ms * 1000000LL;
		shadow_place(reserve->map, reserve->size, &reserve->placement);
		lock(reserve);
	} else if (!r) {
		close_both(reserve);
		r = take_all(reserve, why, size);
	}
	if (!r) {
		r = start(reserve);
		if (r)
			snprintf(why, size, "no thread can be started: %s", strerror(-r));
	}
	if (r) {
		reserve_free(reserve);
		return r;
	}
	*result = reserve;
	return 0;
}

struct reserve *reserve_free(struct reserve *reserve)
{
	if (!reserve)
		return NULL;
	if (reserve->running) {
		pthread_mutex_lock(&reserve->lock);
		reserve->ending = true;
		pthread_cond_broadcast(&reserve->changed);
		pthread_mutex_unlock(&reserve->lock);
		pthread_join(reserve->thread, NULL);
	}
	close_both(reserve);
	pthread_cond_destroy(&reserve->changed);
	pthread_mutex_destroy(&reserve->lock);
	free(reserve);
	return NULL;
}

enum hmm_pool_kind reserve_kind(const struct reserve *reserve)
{
	return reserve->kind;
}

const struct placement *reserve_placement(const struct reserve *reserve)
{
	return &reserve->placement;
}

bool reserve_is_adopted(const struct reserve *reserve)
{
	return reserve->adopted;
}

const int *reserve_fds(const struct reserve *reserve)
{
	return reserve->fds;
}

/* ---- what devices do ---------------------------------------------------------------------- */

bool reserve_serves(const struct reserve *reserve, enum hmm_pool_kind kind, const struct placement *placement)
{
	/* A BAR's pages only pass, and take what there is. */
	return kind != HMM_POOL_KIND_VFIO && is_hugetlb(kind) == is_hugetlb(reserve->kind) &&
	       placement_same(placement, &reserve->placement);
}

void reserve_spend(struct reserve *reserve, uint64_t bytes)
{
	pthread_mutex_lock(&reserve->lock);
	reserve->spent += bytes;
	give(reserve);
	pthread_mutex_unlock(&reserve->lock);
}

void reserve_return(struct reserve *reserve, uint64_t bytes)
{
	pthread_mutex_lock(&reserve->lock);
	reserve->spent -= bytes;
	if (reserve->note->held < wanted(reserve))
		pthread_cond_signal(&reserve->changed);
	pthread_mutex_unlock(&reserve->lock);
}

uint64_t reserve_held(struct reserve *reserve)
{
	uint64_t held;

	pthread_mutex_lock(&reserve->lock);
	held = reserve->note->held;
	pthread_mutex_unlock(&reserve->lock);
	return held;
}
