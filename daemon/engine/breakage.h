/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * breakage.h - deliberate mistakes, for proving that the coherence test sees
 * them, and an hmmd of another release. Only the test build hmmd_broken is compiled with HMMD_BREAK; in every
 * other one broken() is the constant false and nothing of it is left.
 */
#ifndef HMMD_BREAKAGE_H
#define HMMD_BREAKAGE_H

#include <stdbool.h>

#ifdef HMMD_BREAK
#include <stdlib.h>
#include <string.h>

/* HMMD_BREAK=skip-wp: S pages are not write-protected; swap-steps: the copy is
 * punched before it is home; drop-wake: a served fault's thread is not woken;
 * skip-dead: what was unmapped during a move is believed all the same;
 * skip-guard: windows map by themselves what can't be punched; skip-copies: other
 * mirrors' copies stay when the CPU may write; die-at-the-bell: it is killed when it has given an order, and has not
 * woken the agent; hang-worker: the second worker never comes back from a reload; die-in-fork:
 * it is killed when it has given a forked child some of its pages; skip-child: a child gets nothing of blocks in transit; skip-hold: pages
 * leave while the library forks; skip-moved: what was to come home by a slot counts as home, whatever the agent says; late-refusal: it takes its time to tell a driver that it may not.
 * Of another release: older-ledger, newer-ledger: its ledgers are of the version before, or behind, ours; newer-orders:
 * its rings of orders are; newer-protocol: it speaks the next one alone; newer-open: it says that it
 * speaks ours, and does not understand how we open. */
static inline bool broken(const char *what)
{
	const char *chosen = getenv("HMMD_BREAK");

	return chosen && strcmp(chosen, what) == 0;
}
#else
static inline bool broken(const char *what)
{
	(void)what;
	return false;
}
#endif

#endif
