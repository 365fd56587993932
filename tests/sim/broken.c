// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * broken.c - the library's rescuer with mistakes on purpose, in the place of the right one, in sim_broken alone. skip-served: what was
 * discarded in a transit is believed all the same; skip-zap: the agent's own DONTNEED counts as the program's.
 */
#include "libclient/owner.h"

#include "engine/breakage.h"

enum { served = HMM_PAGE_SERVED, zap = HMM_ORDER_OUT_ZAP };

#undef HMM_PAGE_SERVED
#define HMM_PAGE_SERVED		(broken("skip-served") ? 0 : served)
#define HMM_ORDER_OUT_ZAP	(broken("skip-zap") ? HMM_ORDER_NONE : zap)

#include "libclient/rescuer.c"
