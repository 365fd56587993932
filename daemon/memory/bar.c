// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * bar.c - BARs that hold pages.
 *
 * Happy path: the card is opened as any is (card.c), its BAR mapped, and a file made in which each
 * page of it has a tag; the file goes to the holder together with the card's descriptors. After
 * hmmd was killed the holder gives back all of them, the card has not been reset, and the tags say
 * which pages are in use: so what nobody has come for yet is given to nobody else.
 *
 * The mapping is never touched by this program itself: a card that is gone answers a load with
 * SIGBUS, or with ones. The kernel copies between it and a shadow's file, and says -EFAULT. After
 * each piece the card is asked for its class, and one that has none was not there; and its last
 * page holds a seal, some words that hmmd has thrown, which a card that was reset, or does not
 * decode its addresses any more, has not.
 *
 * What can fail: what card.c knows; a BAR that is none, is of ports, or cannot be mapped; the card,
 * at any time, which loses all that is in it.
 *
 * Threads: control and workers open, any closes; one lock for the list, one for each BAR's frames.
 */
#include "memory/bar.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <sys/random.h>
#include <unistd.h>

#include "kernel/kernel.h"
#include "layout.h"
#include "log.h"

#define TAGS_MAGIC 0x48424152U
#define SEAL_WORDS 8U

/* The file: a page of this, then the tags. Sparse, and as large as it may ever have to be. */
struct tags {
	uint32_t magic; /* 0: it is new */
	uint32_t index;
	uint32_t count;
	uint32_t reserved[13];
	uint64_t seal[SEAL_WORDS]; /* what is in the BAR's last page */
	uint64_t seen[SEAL_WORDS]; /* the same, as it was read there last */
	uint32_t more[960];
	uint32_t tag[BAR_MAX_PAGES];
};

struct bar {
	TAILQ_ENTRY(bar) link;
	unsigned int references; /* under the list's lock */
	struct card *card;
	unsigned int index;
	int device;	 /* the card's descriptor */
	char *map;
	uint64_t length;
	struct tags *tags;
	int file; /* of the tags */
	_Atomic bool lost;

	pthread_mutex_t lock; /* on what follows */
	struct frames frames;
	uint32_t promised;
};

static pthread_mutex_t bars_lock = PTHREAD_MUTEX_INITIALIZER;
static TAILQ_HEAD(, bar) bars = TAILQ_HEAD_INITIALIZER(bars);

__attribute__((format(printf, 4, 5)))
static int refuse(char *why, size_t size, int error, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(why, size, format, arguments);
	va_end(arguments);
	return error;
}

/* ---- opening and closing --------------------------------------------------------------------- */

static void destroy(struct bar *bar)
{
	if (bar->map)
		munmap(bar->map, bar->length);
	if (bar->device >= 0)
		close(bar->device);
	frames_deinit(&bar->frames);
	if (bar->tags)
		munmap(bar->tags, sizeof(*bar->tags));
	if (bar->file >= 0)
		close(bar->file);
	pthread_mutex_destroy(&bar->lock);
	free(bar);
}

static int map_bar(struct bar *bar, const struct bar_wish *wish, char *why, size_t size)
{
	void *map;
	int r;

	bar->device = card_device(bar->card);
	if (bar->device < 0)
		return refuse(why, size, bar->device, "hmmd is out of descriptors");
	r = kernel->bar_map(bar->device, wish->index, &map, &bar->length);
	if (r == -ENODEV)
		return refuse(why, size, r, "%s has no BAR %u, or one of I/O ports", wish->address,
			      wish->index);
	if (r == -EOPNOTSUPP)
		return refuse(why, size, r,
			      "BAR %u of %s cannot be mapped: vfio-pci keeps it, or a part of it, to itself",
			      wish->index, wish->address);
	if (r)
		return refuse(why, size, r, "BAR %u of %s cannot be mapped: %s", wish->index,
			      wish->address, strerror(-r));
	bar->map = map;
	if (bar->length < 2 * HMM_PAGE_SIZE)
		return refuse(why, size, -EOPNOTSUPP,
			      "BAR %u of %s has %lu bytes: less than two pages", wish->index,
			      wish->address, bar->length);
	return 0;
}

static void *frame_at(const struct bar *bar, uint32_t number)
{
	return bar->map + (uint64_t)number * HMM_PAGE_SIZE;
}

/* ---- the seal, behind the last frame --------------------------------------------------------- */

static int set_seal(struct bar *bar)
{
	if (getrandom(bar->tags->seal, sizeof(bar->tags->seal), GRND_NONBLOCK) < 0)
		return -errno;
	bar->tags->seal[0] |= 1; /* what is all zeros is no seal */
	return kernel->bar_store(bar->file, offsetof(struct tags, seal),
				 frame_at(bar, bar->tags->count), sizeof(bar->tags->seal));
}

/* 0; -EFAULT: it is not there. With the lock held. */
static int check_seal(struct bar *bar)
{
	int r;

	memset(bar->tags->seen, 0, sizeof(bar->tags->seen));
	r = kernel->bar_fetch(bar->file, offsetof(struct tags, seen),
			      frame_at(bar, bar->tags->count), sizeof(bar->tags->seen));
	if (!r && memcmp(bar->tags->seen, bar->tags->seal, sizeof(bar->tags->seal)))
		r = -EFAULT;
	return r;
}

/* Pages of programs that ended while there was no hmmd. */
static void free_ended(struct bar *bar, bool (*lives)(uint32_t tag))
{
	uint32_t last = 0, n = 0;

	for (uint32_t i = 0; i < bar->frames.count; i++) {
		uint32_t tag = bar->tags->tag[i];

		if (!tag || tag == last)
			continue;
		last = tag;
		if (!lives(tag))
			n += frames_keep(&bar->frames, tag, NULL);
	}
	if (n)
		log_info("%s: %u pages of programs that have ended are free", card_address(bar->card), n);
}

static int read_tags(struct bar *bar, const struct bar_wish *wish, char *why, size_t size)
{
	uint64_t pages = bar->length / HMM_PAGE_SIZE - 1;
	struct tags *tags = mmap(NULL, sizeof(*tags), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_NORESERVE, bar->file, 0);
	bool is_new;
	int r = 0;

	if (tags == MAP_FAILED)
		return refuse(why, size, -ENOMEM, "hmmd is out of memory");
	bar->tags = tags;
	if (pages > BAR_MAX_PAGES)
		pages = BAR_MAX_PAGES;
	if (tags->magic && (tags->magic != TAGS_MAGIC || tags->index != wish->index ||
			    tags->count != pages))
		return refuse(why, size, -EBUSY, "BAR %u of %s has pages of before a restart",
			      tags->index, wish->address);
	if (!tags->magic && wish->kept)
		return refuse(why, size, -ENOENT, "%s was kept without pages", wish->address);
	is_new = !tags->magic;
	tags->index = wish->index;
	tags->count = (uint32_t)pages;
	if (!is_new && check_seal(bar)) {
		log_error("%s has been reset: all that was in its BAR %u is lost", wish->address,
			  wish->index);
		memset(tags->tag, 0, pages * sizeof(tags->tag[0]));
		is_new = true;
	}
	if (is_new)
		r = set_seal(bar);
	if (!r)
		r = check_seal(bar);
	if (r)
		return refuse(why, size, -EIO, "BAR %u of %s does not keep what is written there",
			      wish->index, wish->address);
	__atomic_store_n(&tags->magic, TAGS_MAGIC, __ATOMIC_RELEASE);
	r = frames_init(&bar->frames, tags->tag, (uint32_t)pages);
	if (r)
		return refuse(why, size, r, "hmmd is out of memory");
	free_ended(bar, wish->lives);
	return 0;
}

static int open_new(const struct bar_wish *wish, struct bar **result, char *why, size_t size)
{
	struct bar *bar = calloc(1, sizeof(*bar));
	int r;

	if (!bar)
		return refuse(why, size, -ENOMEM, "hmmd is out of memory");
	bar->device = -1;
	bar->index = wish->index;
	bar->references = 1;
	pthread_mutex_init(&bar->lock, NULL);
	bar->file = kernel->memfd_new("hmm-frames", sizeof(struct tags), 0);
	r = bar->file < 0 ? refuse(why, size, bar->file, "no file for the tags of a BAR's pages: %s",
				   strerror(-bar->file))
			  : card_open_keeping(wish->address, wish->uid, wish->gid, wish->kept,
					      &bar->file, &bar->card, why, size);
	if (!r)
		r = map_bar(bar, wish, why, size);
	if (!r)
		r = read_tags(bar, wish, why, size);
	if (r) {
		struct card *card = bar->card;

		destroy(bar);
		card_undo(card);
		return r;
	}
	log_info("%s: BAR %u, %u pages, %u of them in use", wish->address, wish->index,
		 bar->frames.count, bar->frames.used);
	TAILQ_INSERT_TAIL(&bars, bar, link);
	*result = bar;
	return 0;
}

static struct bar *find(const char *address)
{
	struct bar *bar;

	TAILQ_FOREACH(bar, &bars, link)
		if (strcmp(card_address(bar->card), address) == 0)
			return bar;
	return NULL;
}

static int open_again(struct bar *bar, const struct bar_wish *wish, char *why, size_t size)
{
	if (bar->index != wish->index)
		return refuse(why, size, -EBUSY, "%s is in use: its BAR %u is a pool already",
			      wish->address, bar->index);
	if (!wish->kept && !card_allows(bar->card, wish->uid, wish->gid))
		return refuse(why, size, -EACCES,
			      "user %u may not open the group of %s in /dev/vfio", wish->uid,
			      wish->address);
	if (bar_is_lost(bar))
		return refuse(why, size, -EIO, "%s does not answer any more", wish->address);
	bar->references++;
	return 0;
}

int bar_open(const struct bar_wish *wish, struct bar **result, char *why, size_t size)
{
	struct bar *bar;
	int r;

	pthread_mutex_lock(&bars_lock);
	bar = find(wish->address);
	if (bar) {
		r = open_again(bar, wish, why, size);
		*result = r ? NULL : bar;
	} else {
		r = open_new(wish, result, why, size);
	}
	pthread_mutex_unlock(&bars_lock);
	return r;
}

void bar_put(struct bar *bar)
{
	struct card *card;
	bool others;

	if (!bar)
		return;
	pthread_mutex_lock(&bars_lock);
	if (!--bar->references) {
		TAILQ_REMOVE(&bars, bar, link);
		card = bar->card;
		/* Pages of somebody who has not come back from before a restart: they are kept, for a while. */
		others = bar->frames.used && !bar_is_lost(bar);
		destroy(bar);
		if (others)
			card_undo(card);
		else
			card_give_up(card);
	}
	pthread_mutex_unlock(&bars_lock);
}

/* ---- what it is ------------------------------------------------------------------------------ */

const struct card *bar_card(const struct bar *bar)
{
	return bar->card;
}

unsigned int bar_index(const struct bar *bar)
{
	return bar->index;
}

uint32_t bar_pages(const struct bar *bar)
{
	return bar->frames.count;
}

uint32_t bar_used(struct bar *bar)
{
	uint32_t n;

	pthread_mutex_lock(&bar->lock);
	n = bar->frames.used;
	pthread_mutex_unlock(&bar->lock);
	return n;
}

uint32_t bar_promise(struct bar *bar, uint32_t pages)
{
	uint32_t left;

	pthread_mutex_lock(&bar->lock);
	left = bar->promised < bar->frames.count ? bar->frames.count - bar->promised : 0;
	if (!pages)
		pages = left;
	else if (pages > left)
		pages = 0;
	bar->promised += pages;
	pthread_mutex_unlock(&bar->lock);
	return pages;
}

void bar_promise_again(struct bar *bar, uint32_t pages)
{
	pthread_mutex_lock(&bar->lock);
	bar->promised += pages;
	pthread_mutex_unlock(&bar->lock);
}

void bar_unpromise(struct bar *bar, uint32_t pages)
{
	pthread_mutex_lock(&bar->lock);
	bar->promised -= pages;
	pthread_mutex_unlock(&bar->lock);
}

/* ---- its pages ------------------------------------------------------------------------------- */

uint32_t bar_take(struct bar *bar, uint32_t tag)
{
	uint32_t number;

	pthread_mutex_lock(&bar->lock);
	number = frames_take(&bar->frames, tag);
	pthread_mutex_unlock(&bar->lock);
	return number;
}

bool bar_release(struct bar *bar, uint32_t number, uint32_t tag)
{
	bool was;

	pthread_mutex_lock(&bar->lock);
	was = frames_put(&bar->frames, number, tag);
	pthread_mutex_unlock(&bar->lock);
	return was;
}

bool bar_has(struct bar *bar, uint32_t number, uint32_t tag)
{
	bool has;

	pthread_mutex_lock(&bar->lock);
	has = frames_has(&bar->frames, number, tag);
	pthread_mutex_unlock(&bar->lock);
	return has;
}

uint32_t bar_count(struct bar *bar, uint32_t tag)
{
	uint32_t n;

	pthread_mutex_lock(&bar->lock);
	n = frames_count(&bar->frames, tag);
	pthread_mutex_unlock(&bar->lock);
	return n;
}

uint32_t bar_keep(struct bar *bar, uint32_t tag, const uint64_t *kept)
{
	uint32_t n;

	pthread_mutex_lock(&bar->lock);
	n = frames_keep(&bar->frames, tag, kept);
	pthread_mutex_unlock(&bar->lock);
	return n;
}

int bar_store(struct bar *bar, uint32_t number, int file, uint64_t offset)
{
	int r = kernel->bar_store(file, offset, frame_at(bar, number), HMM_PAGE_SIZE);

	return r == -EFAULT ? -EIO : r;
}

int bar_fetch(struct bar *bar, uint32_t number, int file, uint64_t offset)
{
	int r = kernel->bar_fetch(file, offset, frame_at(bar, number), HMM_PAGE_SIZE);

	return r == -EFAULT ? -EIO : r ? -ENOSPC : 0;
}

bool bar_check(struct bar *bar)
{
	int r = atomic_load(&bar->lost) ? -ENODEV : kernel->vfio_answers(bar->device);

	pthread_mutex_lock(&bar->lock);
	if (!r)
		r = check_seal(bar);
	pthread_mutex_unlock(&bar->lock);
	if (!r)
		return true;
	if (!atomic_exchange(&bar->lost, true))
		log_error("%s does not answer any more (%s): all pages in its BAR %u are lost",
			  card_address(bar->card), strerror(-r), bar->index);
	return false;
}

bool bar_is_lost(const struct bar *bar)
{
	return atomic_load(&bar->lost);
}
