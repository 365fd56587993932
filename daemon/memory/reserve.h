/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * reserve.h - a pool's memory, taken up front: what no device uses yet lies in a memfd of hmmd's,
 * and whoever fills a device's page does it with what that gave back a moment before.
 *
 * Any thread spends and returns; a thread of its own takes back.
 */
#ifndef HMMD_RESERVE_H
#define HMMD_RESERVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hmm_protocol.h"
#include "memory/placement.h"

#define RESERVE_FDS	2U	/* the memory, and what is where in it */

struct reserve;

struct reserve_options {
	enum hmm_pool_kind kind;
	struct placement placement;
	uint64_t size;
	/* What an hmmd that was killed had, in any order, consumed; -1: nothing. */
	int fds[RESERVE_FDS];
	/* What it had given out may come back: nothing is taken in its place for so long. */
	unsigned int patience_ms;
	/* How far it is; NULL: nobody wants to know. */
	void (*progress)(uint64_t done, uint64_t size);
};

/*
 * Has all of it, or goes on with what there was (reserve_is_adopted()). Else nothing is taken, with @why in words:
 * -ENOSPC; -EINVAL: a placement that cannot be; or another -errno.
 */
int reserve_new(const struct reserve_options *options, struct reserve **result, char *why, size_t size);
/* NULL is allowed. Its memory is free then, but for what somebody else has descriptors of. */
struct reserve *reserve_free(struct reserve *reserve);
enum hmm_pool_kind reserve_kind(const struct reserve *reserve);
const struct placement *reserve_placement(const struct reserve *reserve);
bool reserve_is_adopted(const struct reserve *reserve);
/* RESERVE_FDS of them, still the reserve's: for whoever keeps them for the next hmmd. */
const int *reserve_fds(const struct reserve *reserve);

/* Whether pages of such a pool are of the same memory. */
bool reserve_serves(const struct reserve *reserve, enum hmm_pool_kind kind, const struct placement *placement);
/* @bytes are about to be allocated for a device: as many are free now. */
void reserve_spend(struct reserve *reserve, uint64_t bytes);
/* ... and are free again, to be taken back. */
void reserve_return(struct reserve *reserve, uint64_t bytes);
/* What it holds. */
uint64_t reserve_held(struct reserve *reserve);

#endif
