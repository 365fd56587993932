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
 * A card that the kernel wants back (card.h) takes no more pages. Once the last one is gone, and so nobody copies
 * any more, it is unmapped and given back; the log says who keeps it waiting. What is left of the BAR is one that is lost.
 *
 * What can fail: what card.c knows; a BAR that is none, is of ports, or cannot be mapped; the card,
 * at any time, which loses all that is in it. Only two things are taken for that: a class of ones,
 * and a seal that was read and is another. A call that fails says nothing of the card, and what it
 * was for is tried again.
 *
 * Threads: control and workers open, any closes; one lock for the list, one for each BAR's frames, one for whoever asks a card whether it is there.
 * A card whose answer does not come holds up who asks, and who asks it next: nobody else, control least of all, so it is told of (the watchdog
 * hears nothing of a worker that is in such a call, as in one that copies).
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

#define TAGS_MAGIC 0x48424153U
#define SEAL_WORDS 8U
#define TOLD_REST  5U /* looks between two words about a card that is waited for */
#define TOLD_MOST  4U /* programs named in each */

/* The file: a page of this, then the tags. Sparse, and as large as it may ever have to be. */
struct tags {
	uint32_t magic; /* 0: it is new */
	uint32_t index;
	uint32_t count;
	uint32_t reserved[13];
	uint64_t seal[SEAL_WORDS]; /* what is in the BAR's last page */
	uint64_t seen[SEAL_WORDS]; /* the same, as it was read there last */
	uint32_t more[976];
	struct claim claim[CLAIMS_MAX];
	uint32_t tag[BAR_MAX_PAGES]; /* a claim's number */
};
_Static_assert(offsetof(struct tags, claim) == HMM_PAGE_SIZE, "the first page is the head");

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
	unsigned int rest; /* looks until the log is told again what keeps it; under the list's lock */

	pthread_mutex_t asking; /* the card: its descriptor and its mapping stay meanwhile. Before the lock, or tried */
	pthread_mutex_t lock;	/* on what follows */
	bool away;	      /* the card is given back, and the BAR not in the list */
	struct frames frames;
	struct claims claims;
	uint32_t promised;
};

static pthread_mutex_t bars_lock = PTHREAD_MUTEX_INITIALIZER;
static TAILQ_HEAD(, bar) bars = TAILQ_HEAD_INITIALIZER(bars);
static bool (*process_lives)(pid_t pid);

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
	pthread_mutex_destroy(&bar->asking);
	free(bar);
}

static int map_bar(struct bar *bar, const struct bar_wish *wish, char *why, size_t size)
{
	void *map;
	int r;

	bar->device = card_device(bar->card);
	/* Not for good: it is asked for again, and what is there then comes home. */
	if (bar->device == -ENODEV)
		return refuse(why, size, -EAGAIN, CARD_RECALLED, wish->address);
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

void *bar_page(const struct bar *bar, uint32_t number)
{
	return bar->map + (uint64_t)number * HMM_PAGE_SIZE;
}

/* ---- the seal, behind the last frame --------------------------------------------------------- */

static int set_seal(struct bar *bar)
{
	if (getrandom(bar->tags->seal, sizeof(bar->tags->seal), 0) != sizeof(bar->tags->seal))
		return -EAGAIN;
	bar->tags->seal[0] |= 1; /* what is all zeros is no seal */
	return kernel->bar_store(bar->file, offsetof(struct tags, seal),
				 bar_page(bar, bar->tags->count), sizeof(bar->tags->seal));
}

/* 1: it is there; 0: another is; -errno: it cannot be read. Of one that asks, or of one that nobody else has yet. */
static int check_seal(struct bar *bar)
{
	int r;

	memset(bar->tags->seen, 0, sizeof(bar->tags->seen));
	r = kernel->bar_fetch(bar->file, offsetof(struct tags, seen),
			      bar_page(bar, bar->tags->count), sizeof(bar->tags->seen));
	if (r)
		return r;
	return memcmp(bar->tags->seen, bar->tags->seal, sizeof(bar->tags->seal)) == 0;
}

/* ---- whose pages ----------------------------------------------------------------------------- */

/* A claim's pages are counted, and those of none are free. */
static bool count_page(void *data, uint32_t number, uint32_t tag)
{
	struct bar *bar = data;
	uint32_t *pages = claims_pages(&bar->claims, tag);

	(void)number;
	if (pages)
		++*pages;
	return pages;
}

static bool is_anothers(void *data, uint32_t number, uint32_t tag)
{
	const uint32_t *claim = data;

	(void)number;
	return tag != *claim;
}

static uint32_t count(struct bar *bar, uint32_t claim)
{
	const uint32_t *pages = claims_pages(&bar->claims, claim);

	return pages ? *pages : 0;
}

/* With the lock held. */
static uint32_t drop(struct bar *bar, uint32_t claim)
{
	uint32_t n = count(bar, claim);

	if (n)
		frames_sift(&bar->frames, is_anothers, &claim);
	claims_drop(&bar->claims, claim);
	return n;
}

/* In doubt it does, as does one that hmmd cannot see. */
static bool is_alive(const struct claim *claim)
{
	return !claim->pid || process_lives(claim->pid);
}

/* Of programs that have ended, and were not here to do it themselves. With the lock held. */
static void drop_ended(struct bar *bar)
{
	uint32_t n = 0;

	for (unsigned int i = 0; i < CLAIMS_MAX; i++) {
		const struct claim *claim = &bar->tags->claim[i];

		if (!claim->number || bar->claims.here[i])
			continue;
		if (!bar->claims.pages[i] || !is_alive(claim))
			n += drop(bar, claim->number);
	}
	if (n)
		log_info("%s: %u pages of programs that have ended are free",
			 card_address(bar->card), n);
}

void bars_init(bool (*lives)(pid_t pid))
{
	process_lives = lives;
}

void bars_mend(void)
{
	struct bar *bar;

	pthread_mutex_lock(&bars_lock);
	TAILQ_FOREACH(bar, &bars, link) {
		pthread_mutex_lock(&bar->lock);
		drop_ended(bar);
		pthread_mutex_unlock(&bar->lock);
	}
	pthread_mutex_unlock(&bars_lock);
}

/* ---- the kernel wants the card back ------------------------------------------------------------ */

bool bar_is_recalled(const struct bar *bar)
{
	return card_is_recalled(bar->card);
}

/* What nobody is here for, who could have it: it is lost, and keeps nothing waiting. With the lock held. */
static void drop_absent(struct bar *bar)
{
	for (unsigned int i = 0; i < CLAIMS_MAX; i++)
		if (bar->tags->claim[i].number && !bar->claims.here[i])
			drop(bar, bar->tags->claim[i].number);
}

/* With the lock held. */
static void tell_who_keeps_it(const struct bar *bar)
{
	char text[200];
	unsigned int told = 0, others = 0;
	int length = 0;

	for (unsigned int i = 0; i < CLAIMS_MAX; i++) {
		const struct claim *claim = &bar->tags->claim[i];

		if (!claim->number || !bar->claims.pages[i])
			continue;
		if (told == TOLD_MOST) {
			others++;
			continue;
		}
		length += snprintf(text + length, sizeof(text) - (size_t)length, "%s%u of pid %d%s",
				   told++ ? ", " : "", bar->claims.pages[i], claim->pid,
				   bar->claims.here[i] ? "" : " (not back since hmmd was started)");
	}
	log_warn("%s is wanted back and waits for %u pages in its BAR %u to come home: %s%s",
		 card_address(bar->card), bar->frames.used, bar->index, text, others ? ", and more" : "");
}

/* With the lock held. Nobody copies: whoever does has a page there. Nor does anybody ask. */
static void put_away(struct bar *bar)
{
	munmap(bar->map, bar->length);
	close(bar->device);
	bar->map = NULL;
	bar->device = -1;
	bar->away = true;
	atomic_store(&bar->lost, true);
}

/* With the list's lock held. */
static void recall(struct bar *bar)
{
	bool away;

	/* Who asks may not have an answer yet: then with the next look. */
	if (pthread_mutex_trylock(&bar->asking))
		return;
	pthread_mutex_lock(&bar->lock);
	if (bar_is_lost(bar))
		drop_absent(bar);
	away = !bar->frames.used;
	if (away) {
		put_away(bar);
	} else if (!bar->rest) {
		tell_who_keeps_it(bar);
		bar->rest = TOLD_REST;
	}
	pthread_mutex_unlock(&bar->lock);
	pthread_mutex_unlock(&bar->asking);
	if (!away) {
		bar->rest--;
		return;
	}
	TAILQ_REMOVE(&bars, bar, link);
	card_give_back(bar->card);
	log_info("%s is given back: nothing is left in its BAR %u", card_address(bar->card), bar->index);
}

void bars_recall(void)
{
	struct bar *bar, *next;

	pthread_mutex_lock(&bars_lock);
	for (bar = TAILQ_FIRST(&bars); bar; bar = next) {
		next = TAILQ_NEXT(bar, link);
		if (bar_is_recalled(bar))
			recall(bar);
	}
	pthread_mutex_unlock(&bars_lock);
}

/* ---- a file that was kept ---------------------------------------------------------------------- */

static struct tags *map_tags(int file)
{
	void *tags = mmap(NULL, sizeof(struct tags), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_NORESERVE, file, 0);

	return tags == MAP_FAILED ? NULL : tags;
}

bool bar_is_wanted(int file)
{
	struct tags *tags = map_tags(file);
	bool wanted = !tags;

	if (tags && tags->magic == TAGS_MAGIC)
		for (unsigned int i = 0; i < CLAIMS_MAX && !wanted; i++)
			wanted = tags->claim[i].number && is_alive(&tags->claim[i]);
	if (tags)
		munmap(tags, sizeof(*tags));
	return wanted;
}

/* ---- a BAR that was kept, or a new one ------------------------------------------------------- */

/* All that was in it is another card's now, or nobody's. */
static void forget_all(struct bar *bar)
{
	log_error("%s has been reset: all that was in its BAR %u is lost", card_address(bar->card),
		  bar->index);
	memset(bar->tags->claim, 0, sizeof(bar->tags->claim));
	memset(bar->tags->tag, 0, bar->tags->count * sizeof(bar->tags->tag[0]));
}

static int read_tags(struct bar *bar, const struct bar_wish *wish, char *why, size_t size)
{
	uint64_t pages = bar->length / HMM_PAGE_SIZE - 1;
	struct tags *tags = map_tags(bar->file);
	int r = 1;

	if (!tags)
		return refuse(why, size, -ENOMEM, "hmmd is out of memory");
	bar->tags = tags;
	bar->claims.list = tags->claim;
	if (pages > BAR_MAX_PAGES)
		pages = BAR_MAX_PAGES;
	if (tags->magic && (tags->magic != TAGS_MAGIC || tags->index != wish->index ||
			    tags->count != pages))
		return refuse(why, size, -EBUSY, "BAR %u of %s has pages of before a restart",
			      tags->index, wish->address);
	if (!tags->magic && wish->kept)
		return refuse(why, size, -ENOENT, "%s was kept without pages", wish->address);
	tags->index = wish->index;
	tags->count = (uint32_t)pages;
	if (tags->magic) {
		r = check_seal(bar);
		if (r < 0)
			return refuse(why, size, -EAGAIN, "BAR %u of %s cannot be looked at: %s",
				      wish->index, wish->address, strerror(-r));
		if (!r)
			forget_all(bar);
	}
	if (!tags->magic || !r) {
		r = set_seal(bar);
		if (!r)
			r = check_seal(bar);
		if (r != 1)
			return refuse(why, size, -EIO,
				      "BAR %u of %s does not keep what is written there",
				      wish->index, wish->address);
	}
	__atomic_store_n(&tags->magic, TAGS_MAGIC, __ATOMIC_RELEASE);
	r = frames_init(&bar->frames, tags->tag, (uint32_t)pages);
	if (r)
		return refuse(why, size, r, "hmmd is out of memory");
	frames_sift(&bar->frames, count_page, bar);
	drop_ended(bar);
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
	pthread_mutex_init(&bar->asking, NULL);
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
		return refuse(why, size, wish->kept ? -ENODEV : -EIO, "%s does not answer any more",
			      wish->address);
	/* What somebody has there of before a restart is still to come home. */
	if (bar_is_recalled(bar) && !wish->kept)
		return refuse(why, size, -ENODEV, CARD_RECALLED, wish->address);
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
		if (!bar->away)
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

/* The seal is thrown anew whenever nothing of before is there. */
uint64_t bar_contents(const struct bar *bar)
{
	return bar->tags->seal[0];
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

uint32_t bar_claim(struct bar *bar, pid_t pid)
{
	uint32_t claim;

	pthread_mutex_lock(&bar->lock);
	claim = claims_add(&bar->claims, pid);
	pthread_mutex_unlock(&bar->lock);
	return claim;
}

bool bar_reclaim(struct bar *bar, uint64_t contents, uint32_t claim)
{
	bool was;

	pthread_mutex_lock(&bar->lock);
	was = contents == bar_contents(bar) && claims_take(&bar->claims, claim);
	pthread_mutex_unlock(&bar->lock);
	return was;
}

uint32_t bar_count(struct bar *bar, uint32_t claim)
{
	uint32_t n;

	pthread_mutex_lock(&bar->lock);
	n = count(bar, claim);
	pthread_mutex_unlock(&bar->lock);
	return n;
}

uint32_t bar_leave(struct bar *bar, uint32_t claim)
{
	uint32_t n;

	pthread_mutex_lock(&bar->lock);
	n = count(bar, claim);
	claims_leave(&bar->claims, claim);
	pthread_mutex_unlock(&bar->lock);
	return n;
}

uint32_t bar_unclaim(struct bar *bar, uint32_t claim)
{
	uint32_t n;

	pthread_mutex_lock(&bar->lock);
	n = drop(bar, claim);
	pthread_mutex_unlock(&bar->lock);
	return n;
}

struct kept {
	uint32_t claim;
	const uint64_t *numbers;
};

static bool is_kept(void *data, uint32_t number, uint32_t tag)
{
	const struct kept *kept = data;

	return tag != kept->claim || kept->numbers[number / 64] >> (number % 64) & 1;
}

uint32_t bar_keep(struct bar *bar, uint32_t claim, const uint64_t *kept)
{
	struct kept of = {.claim = claim, .numbers = kept};
	uint32_t *pages, n = 0;

	pthread_mutex_lock(&bar->lock);
	pages = claims_pages(&bar->claims, claim);
	if (pages && *pages) {
		n = frames_sift(&bar->frames, is_kept, &of);
		*pages -= n;
	}
	pthread_mutex_unlock(&bar->lock);
	return n;
}

uint32_t bar_take(struct bar *bar, uint32_t claim)
{
	uint32_t number = FRAME_NONE, *pages;

	pthread_mutex_lock(&bar->lock);
	pages = claims_pages(&bar->claims, claim);
	if (pages && !bar_is_recalled(bar))
		number = frames_take(&bar->frames, claim);
	if (number != FRAME_NONE)
		++*pages;
	pthread_mutex_unlock(&bar->lock);
	return number;
}

bool bar_release(struct bar *bar, uint32_t number, uint32_t claim)
{
	uint32_t *pages;
	bool was;

	pthread_mutex_lock(&bar->lock);
	was = frames_put(&bar->frames, number, claim);
	pages = claims_pages(&bar->claims, claim);
	if (was && pages)
		--*pages;
	pthread_mutex_unlock(&bar->lock);
	return was;
}

bool bar_has(struct bar *bar, uint32_t number, uint32_t claim)
{
	bool has;

	pthread_mutex_lock(&bar->lock);
	has = frames_has(&bar->frames, number, claim);
	pthread_mutex_unlock(&bar->lock);
	return has;
}

int bar_store(struct bar *bar, uint32_t number, int file, uint64_t offset)
{
	return kernel->bar_store(file, offset, bar_page(bar, number), HMM_PAGE_SIZE);
}

int bar_fetch(struct bar *bar, uint32_t number, int file, uint64_t offset)
{
	return kernel->bar_fetch(file, offset, bar_page(bar, number), HMM_PAGE_SIZE);
}

enum bar_state bar_check(struct bar *bar)
{
	const char *why = "it does not answer";
	enum bar_state state;
	int r;

	/* Who has no page there may find it put away. */
	pthread_mutex_lock(&bar->asking);
	if (atomic_load(&bar->lost)) {
		pthread_mutex_unlock(&bar->asking);
		return BAR_LOST;
	}
	r = kernel->vfio_answers(bar->device);
	state = !r ? BAR_HERE : r == -ENODEV ? BAR_LOST : BAR_UNSURE;
	if (state == BAR_HERE) {
		r = check_seal(bar);
		state = r == 1 ? BAR_HERE : r ? BAR_UNSURE : BAR_LOST;
		why = "it was reset";
	}
	pthread_mutex_unlock(&bar->asking);
	if (state == BAR_LOST && !atomic_exchange(&bar->lost, true))
		log_error("%s: %s: all pages in its BAR %u are lost", card_address(bar->card), why,
			  bar->index);
	return state;
}

bool bar_is_lost(const struct bar *bar)
{
	return atomic_load(&bar->lost);
}
