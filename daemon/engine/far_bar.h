/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * far_bar.h - pages whose memory is a BAR of a card: far pages (far.h), and nobody is asked for them. On the
 * owner's worker.
 */
#ifndef HMMD_FAR_BAR_H
#define HMMD_FAR_BAR_H

#include <stdbool.h>
#include <stdint.h>

struct mirror;
struct owner;

int far_bar_begin(struct mirror *mirror);	/* a new one; -ENOSPC: too many have pages there */
void far_bar_adopt(struct mirror *mirror);	/* one of before a restart, or another attempt after one */
void far_bar_end(struct mirror *mirror);
void far_bar_release(struct mirror *mirror, uint32_t number);
bool far_bar_is_lost(const struct mirror *mirror);
bool far_bar_is_recalled(const struct mirror *mirror);	/* bar.h: no more room, and what is there comes home */
/* The ledger is settled: what it does not know of is free, and what is not there is lost. */
void far_bar_recover(struct owner *owner);
/* What is on cards that are recalled begins to go home. */
void far_bar_recall(struct owner *owner, int64_t now);
/* Whether something could go on at once; *@any: or later. */
bool far_bar_is_due(const struct owner *owner, bool *any);
/* What is due goes on; some of it. */
void far_bar_tick(struct owner *owner, int64_t now);

#endif
