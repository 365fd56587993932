/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * advice.h - what of a program's advice is in force, and what is done instead
 * of the rest. Pure: no I/O, no clock, no allocation.
 */
#ifndef HMMD_ADVICE_H
#define HMMD_ADVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hmm_protocol.h"

/* What decides, for one range. */
struct advice_facts {
	uint64_t said;		/* HMM_ADVISED_*: of all of the range */
	bool move;		/* the owner has UFFDIO_MOVE */
	bool merging;		/* ksmd runs */
	bool protects;		/* windows can be write-protected */
	bool windows;		/* drivers have some of this owner */
	bool no_memory;		/* a device that it names has none */
	bool no_faults;		/* ... or cannot fault */
	uint64_t pages, on_device;
};

/* HMM_ADVISED_* that are in force; why the others are not, in words ("": all are). */
uint64_t advice_in_force(const struct advice_facts *facts, char *why, size_t size);

#endif
