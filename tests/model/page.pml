/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * page.pml - the protocol of one page, for spin. What is modelled, what is not, and how it is held
 * against the code: docs/ARCHITECTURE.md, "The model". test_model.py says which parts of it run together.
 */
#ifndef CRASHES
#define CRASHES	1
#endif
#ifndef ACTS
#define ACTS	1
#endif
#define MANY	9	/* any number of them */
#define DONE_ONCE(count)	count = (count == MANY -> MANY : count - 1)
#ifndef BREAK
#define BREAK	none
#endif

/* -DBREAK=skip_wp: one mistake on purpose; the names are those of daemon/engine/breakage.h where it has them. */
#define none		0
#define drop_wake	1
#define skip_wp		2
#define skip_dead	3
#define skip_served	4
#define skip_hold	5
#define skip_zapping	6
#define miss_commit	7
#define lose_served	8
#define read_in_commit	9
#define settle_home	10
#define tell_late	11
#define settle_sharing	12
#define settle_unsharing	13
#define BROKEN(what)	(mistake == what)

/* -DAT_RUN_TIME: pan looks into $MISTAKE, $ACTS and $CRASHES, so that one program does for all. */
#ifdef AT_RUN_TIME
c_decl {
	static int said(const char *name)
	{
		const char *number = getenv(name);

		return number ? atoi(number) : 0;
	}
}
#define CHOOSE	c_code { now.mistake = said("MISTAKE"); Phmmd->acts = said("ACTS"); Phmmd->crashes = said("CRASHES"); }
#else
#define CHOOSE	skip
#endif
local byte mistake = BREAK;	/* it never changes */

#ifdef CALLBACKS
#define has_callbacks	1
#else
#define has_callbacks	0
#endif

/* Each edge that is taken is said once: test_model.py holds them against the table in the code. */
#ifdef EDGES
c_decl {
	static unsigned char edge_seen[1 << 12];
	static void edge(int what, int transit, int has, int state)
	{
		static const char *const says[] = { "from", "to", "settled" };
		unsigned char *seen = &edge_seen[what << 10 | transit << 5 | has << 4 | state];

		if (!*seen)
			printf("edge %s %d %d %d\n", says[what], transit, has, state);
		*seen = 1;
	}
}
#define NOTE_FROM	c_code { edge(0, Phmmd->transit, 0, Phmmd->state); }
#define NOTE_TO		c_code { edge(1, Phmmd->transit, 0, Phmmd->state); }
#define NOTE_SETTLED	c_code { edge(2, Phmmd->transit, now.has, Phmmd->to); }
#else
#define NOTE_FROM	skip
#define NOTE_TO		skip
#define NOTE_SETTLED	skip
#endif

/* hmmd is killed here, or not: between any two steps of which a trace remains. */
#define MAY_DIE	if :: crashes > 0 -> DONE_ONCE(crashes); goto killed :: skip fi

#include "state.pml"
#include "kernel.pml"
#include "driver.pml"
#include "owner.pml"
#include "hmmd.pml"
