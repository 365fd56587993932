/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* view.h - what became of an address space since hmmd last looked. */
#ifndef HMMC_VIEW_H
#define HMMC_VIEW_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* What the program did to its address space since hmmd last looked, in order. */
struct change {
	uint64_t start, length;
	uint64_t to;			/* moved there; 0: discarded or unmapped */
};

/* An address space that the ledger tells of: the owner's, or a child's that nobody announced, which begins as its parent was. */
struct view {
	struct view *next;
	int uffd;
	struct change *changes;
	uint32_t count, room;
	bool put_off;			/* it is served once more, from the beginning, when another one has had its turn */
};

/* Moved to @to; 0: discarded or unmapped. */
void hmmc_view_note(struct view *view, uint64_t start, uint64_t length, uint64_t to);
/* A child that is there now. */
void hmmc_view_copy(struct view *child, const struct view *parent);
void hmmc_view_forget(struct view *view);
/* Where the page that the ledger knows at @address is now; 0: it is no more. */
uint64_t hmmc_view_whereto(const struct view *view, uint64_t address);
/* Under which address the ledger knows what is now at @address; 0: nothing. */
uint64_t hmmc_view_wherefrom(const struct view *view, uint64_t address);

/* For what must not be given up. */
static inline void wait_for_memory(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
}

#endif
