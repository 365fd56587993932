/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * far.h - what far.c (pages that go to a driver's memory and come back) and
 * far_driver.c (what drivers answer, and when they come and go) share.
 */
#ifndef HMMD_FAR_H
#define HMMD_FAR_H

#include "engine/owner.h"

/* How soon what could not be asked is looked at again, and whether a driver has come back. */
#define LOOK_NS		(10 * NS_PER_MS)

/* What one block is waiting for. */
struct ask {
	TAILQ_ENTRY(ask) link;
	struct mirror *mirror;
	struct block *block;
	uint64_t cookie;
	struct pages pages;		/* without an answer */
	unsigned int first;
	uint64_t fault_flags;
	struct job *job;		/* STORE: to go on with */
	bool asking;			/* drivers have let go: it may be sent */
	bool sent;			/* to the mirror's peer, on this connection */
	int64_t since, again, pause;	/* again: not before; 0: at once */
	bool loud;			/* it was complained of */
	/* hmmd copies itself: far_bar.c. */
	struct pages copied;		/* so far, or tried */
	struct pages failed;		/* FETCH: of those, gone */
	struct pages later;		/* FETCH: no memory for them */
	uint32_t *number;		/* STORE: where each page is; HMM_FAR_NONE: nowhere */
};

/* A transit "store"; else it is a "fetch". */
bool far_is_store(const struct ask *ask);
/* The pages of an ask in the order in which they are asked and answered. */
unsigned int far_ask_order(const struct ask *ask, uint16_t *order);
/* It is looked at again that much later. */
void far_ask_again_in(struct ask *ask, int64_t pause);
/* If its driver is there, and was not asked on this connection. Where hmmd copies itself: a piece of it, which may end it. */
void far_ask_send(struct ask *ask);
/* The driver's answers. Numbers: of the pages in order, NULL: it takes none; @moved: what is far now. */
void far_stored(struct ask *ask, const uint32_t *numbers, uint64_t *moved);
void far_fetched(struct ask *ask, const uint8_t *results);
/* far_bar.c: a piece of the copying. The ask may have ended. */
void far_bar_copy(struct ask *ask);
/* Nobody takes these bytes: they are in the shadow, and go home. */
void far_refuse_stores(struct mirror *mirror);
/* Whatever was in the driver's memory is gone. */
void far_lose_all(struct mirror *mirror, const char *why);

#endif
