// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * broken.c - the library's rescuer with a mistake on purpose, in the place of the right one, in sim_broken alone. skip-zap: the agent's own
 * DONTNEED counts as the program's.
 */
#include "libclient/owner.h"

#include "engine/breakage.h"

enum { zap = HMM_ORDER_OUT_ZAP };

#define HMM_ORDER_OUT_ZAP	(broken("skip-zap") ? HMM_ORDER_NONE : zap)

#include "libclient/rescuer.c"
