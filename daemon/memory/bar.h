/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bar.h - a BAR of a card behind VFIO as memory for pages: hmmd copies into it and out of it, by
 * loads and stores; nobody else does. No userfaultfd can be on such a mapping.
 *
 *	bars_init(), bars_mend()	with hmmd, and now and then
 *	bar_open(), bar_put()		with each device on it; devices of one hmmd share a BAR
 *	bar_claim(), bar_unclaim()	with each mirror on such a device
 *	bar_take(), bar_release()	a page of it
 *	bar_store(), bar_fetch()	its bytes, from and to a shadow
 *	bar_check()			whether what was copied can be believed
 *	bar_reclaim(), bar_keep()	after a restart
 *
 * A claim says whose a page is, over restarts: the holder keeps the card, and a file of tags. Any
 * thread.
 */
#ifndef HMMD_BAR_H
#define HMMD_BAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "memory/card.h"
#include "memory/claims.h"
#include "memory/frames.h"

#define BAR_MAX_PAGES (1U << 24) /* 64 GiB; what is behind that is not used */

struct bar;

struct bar_wish {
	const char *address; /* of the card */
	unsigned int index;  /* of the BAR, 0..5 */
	uid_t uid;	     /* for a peer of that user and group */
	gid_t gid;
	bool kept; /* only if an earlier hmmd left it with the holder, whoever asks */
};

/* What the card has said of itself. */
enum bar_state {
	BAR_HERE,
	BAR_UNSURE, /* it was not to be asked: later again */
	BAR_LOST,   /* for good, whatever it says later, and all that was in it */
};

/* @lives: whether a process may still want its pages. Before cards_init(), which is given bar_is_wanted(). */
void bars_init(bool (*lives)(pid_t pid));
/* What processes had that have ended, and that nobody came back for, is free. */
void bars_mend(void);
/*
 * Those whose cards are recalled (card.h), and that have no page any more, are given back: they are lost then, and their cards
 * may be opened anew. From control, after cards_recall().
 */
void bars_recall(void);
/* Whether there are pages of processes that live, in a card that was kept with this file. */
bool bar_is_wanted(int file);

/*
 * 0; or, with @why in words, as card_open(), and: -ENODEV: the card has no such BAR; -EOPNOTSUPP:
 * it cannot be mapped; -EBUSY: another BAR of the card is a pool already; -ENOENT: nobody kept it;
 * @kept: only -ENOENT, -EBUSY and -ENODEV (also: it was lost since) say that what was in it is not to be had for good.
 */
int bar_open(const struct bar_wish *wish, struct bar **result, char *why, size_t size);
/* The last one closes the card. NULL is allowed. */
void bar_put(struct bar *bar);

const struct card *bar_card(const struct bar *bar);
/* Which contents its claims are of: another number after it was reset, or given up in between. */
uint64_t bar_contents(const struct bar *bar);
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

/* A claim of that process's, for a mirror; 0: CLAIMS_MAX have one. */
uint32_t bar_claim(struct bar *bar, pid_t pid);
/* One of before a restart, of those contents, is somebody's again. False: there is none like it. */
bool bar_reclaim(struct bar *bar, uint64_t contents, uint32_t claim);
/* It is kept for the next hmmd, with its pages; or it and they are free. Return: how many pages. */
uint32_t bar_leave(struct bar *bar, uint32_t claim);
uint32_t bar_unclaim(struct bar *bar, uint32_t claim);
/* Of its pages those stay whose bit is set in @kept. Return: how many are free now. */
uint32_t bar_keep(struct bar *bar, uint32_t claim, const uint64_t *kept);
uint32_t bar_count(struct bar *bar, uint32_t claim);

/* FRAME_NONE: there is none, or no such claim. */
uint32_t bar_take(struct bar *bar, uint32_t claim);
bool bar_release(struct bar *bar, uint32_t number, uint32_t claim);
bool bar_has(struct bar *bar, uint32_t number, uint32_t claim);

/*
 * One page, @offset in the file. 0, and if bar_check() then says that it is here, it can be
 * believed; or -errno: it has not been copied, whose fault it ever was.
 */
int bar_store(struct bar *bar, uint32_t number, int file, uint64_t offset);
int bar_fetch(struct bar *bar, uint32_t number, int file, uint64_t offset);
/* Where it is, for an IOMMU: nobody loads from there or stores. */
void *bar_page(const struct bar *bar, uint32_t number);
/* Not BAR_HERE: what was copied since it was is not to be believed. */
enum bar_state bar_check(struct bar *bar);
bool bar_is_lost(const struct bar *bar);
/* The kernel wants its card back: it has no more room, and what is there is to come home. */
bool bar_is_recalled(const struct bar *bar);

#endif
