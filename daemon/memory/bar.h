/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bar.h - a BAR of a card behind VFIO as memory for pages: hmmd copies into it and out of it, by
 * loads and stores; nobody else does. No userfaultfd can be on such a mapping.
 *
 *	bar_open(), bar_put()		with each device on it; devices of one hmmd share a BAR
 *	bar_take(), bar_release()	a page of it
 *	bar_store(), bar_fetch()	its bytes, from and to a shadow
 *	bar_check()			whether what was copied can be believed
 *	bar_keep()			after a restart, and when nobody has anything there any more
 *
 * A tag says whose a page is, over restarts: the holder keeps the card, and a file of tags. Any
 * thread.
 */
#ifndef HMMD_BAR_H
#define HMMD_BAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "memory/card.h"
#include "memory/frames.h"

#define BAR_MAX_PAGES (1U << 24) /* 64 GiB; what is behind that is not used */

struct bar;

struct bar_wish {
	const char *address; /* of the card */
	unsigned int index;  /* of the BAR, 0..5 */
	uid_t uid;	     /* for a peer of that user and group */
	gid_t gid;
	bool kept; /* only if an earlier hmmd left it with the holder, whoever asks */
	/* Whether pages of this tag may still be wanted. */
	bool (*lives)(uint32_t tag);
};

/*
 * 0; or, with @why in words, as card_open(), and: -ENODEV: the card has no such BAR; -EOPNOTSUPP:
 * it cannot be mapped; -EBUSY: another BAR of the card is a pool already; -ENOENT: nobody kept it.
 */
int bar_open(const struct bar_wish *wish, struct bar **result, char *why, size_t size);
/* The last one closes the card. NULL is allowed. */
void bar_put(struct bar *bar);

const struct card *bar_card(const struct bar *bar);
unsigned int bar_index(const struct bar *bar);
uint32_t bar_pages(const struct bar *bar);
uint32_t bar_used(struct bar *bar);
/*
 * Pages that a device is to have at most; @pages 0: as many as are left. Return: how many; 0: there
 * are fewer.
 */
uint32_t bar_promise(struct bar *bar, uint32_t pages);
/* The same after a restart: whatever there is. */
void bar_promise_again(struct bar *bar, uint32_t pages);
void bar_unpromise(struct bar *bar, uint32_t pages);

uint32_t bar_take(struct bar *bar, uint32_t tag);
bool bar_release(struct bar *bar, uint32_t number, uint32_t tag);
bool bar_has(struct bar *bar, uint32_t number, uint32_t tag);
uint32_t bar_count(struct bar *bar, uint32_t tag);
uint32_t bar_keep(struct bar *bar, uint32_t tag, const uint64_t *kept);

/*
 * One page, @offset in the file. 0; -EIO: the card's memory cannot be reached; anything else: the
 * file cannot.
 */
int bar_store(struct bar *bar, uint32_t number, int file, uint64_t offset);
int bar_fetch(struct bar *bar, uint32_t number, int file, uint64_t offset);
/*
 * False: the card does not answer, or its memory is not what it was, and what was copied since it
 * was is nothing. Then it is lost for good, whatever it says later, and all that was in it.
 */
bool bar_check(struct bar *bar);
bool bar_is_lost(const struct bar *bar);

#endif
