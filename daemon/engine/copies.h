/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * copies.h - read-only copies of S pages in the shadows of mirrors that do not
 * hold the block. A copied page is S: protected at the CPU and complete in the
 * holder's shadow. Owner's worker only.
 */
#ifndef HMMD_COPIES_H
#define HMMD_COPIES_H

#include "engine/owner.h"

/* What one mirror has of a block that another one holds. */
struct copy {
	LIST_ENTRY(copy) of_block;
	TAILQ_ENTRY(copy) of_mirror;
	struct block *block;
	struct mirror *mirror;
	struct pages pages;	/* equal to the holder's */
	struct pages stale;	/* not any more, but it could not be freed: no more than charged for */
	uint64_t used;		/* when: the worker's count of uses */
	uint64_t passed;	/* the pass of an eviction that has asked it */
};

enum copies_answer {
	COPIES_MADE,		/* it lies in the mirror's shadow */
	COPIES_COMING,		/* the task is run again when the next step is done */
	COPIES_NONE,		/* not to be had: nobody holds the block, no room, ksmd runs, ... */
};

/*
 * The device of @mirror reads page @i, and perhaps up to @ahead pages from
 * there on, of a block that is at rest and that another mirror may hold.
 * @result is what became of a page that had to go to the holder first.
 */
enum copies_answer copies_get(struct block *block, struct mirror *mirror, unsigned int i,
			      unsigned int ahead, struct task *task, uint8_t *result);
bool copies_have(const struct block *block, const struct mirror *mirror, unsigned int i);
/* What the mirror has of the block, or NULL: neither copies nor anything that it is charged for. */
struct copy *copies_find(const struct block *block, const struct mirror *mirror);
/* Pages that its device is charged for. */
unsigned int copies_charged(const struct copy *copy);
/* Its device uses it. */
void copies_touch(struct copy *copy);
/* Nothing of it is a copy any more: what lingers is freed, if that is possible by now. It may be gone then. */
void copies_tidy(struct copy *copy);
/* Whether somebody reads them. */
bool copies_are_read(const struct block *block);
/* Pages of the block that mirrors on this device have copies of. */
struct pages copies_on(const struct block *block, const struct device *device);

/* A change of these pages begins: no table leads to their copies any more. */
void copies_hide(struct block *block, const struct pages *pages);
/* It does not take place: they do again. */
void copies_show(struct block *block, const struct pages *pages);
/* ... and the drivers have answered: before anybody may write, the copies go. */
void copies_drop(struct block *block, const struct pages *pages);
/* Nothing of the block is held any more: nor by them. False: something could not be freed. */
bool copies_clear(struct block *block);
/* A new window of @mirror, which maps by itself what lies in the shadow: not these, unprotected. */
void copies_protect(struct block *block);
/*
 * Copies of these pages go, and the pages stay S with the holder. The block must
 * be at rest. For a job that is cheap drivers are asked, and may refuse.
 */
void copies_return(struct block *block, const struct pages *pages, int reason, struct job *job);
/*
 * A full device returns copies that the mirror has of blocks other than @not, the oldest first and
 * no more than need be. COPIES_MADE: there is room; COPIES_COMING: some is on its way, and
 * @task is run again then; COPIES_NONE: there will be none.
 */
enum copies_answer copies_make_room(struct mirror *mirror, unsigned int pages, const struct block *not,
				    struct task *task);
/* After a restart nobody knows of copies: what lies where the block's holder is not is none. */
void copies_recover(struct block *block);
void copies_recover_table(struct owner *owner);
/* Without a word to anybody: the block's object goes, or the mirror with its shadows. */
void copies_forget(struct block *block);
void copies_forget_mirror(struct mirror *mirror);

#endif
