/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * roles.h - the three parts of the demo, each a process. Every function
 * returns an exit status, and has said on stderr what went wrong.
 */
#ifndef DEMO_ROLES_H
#define DEMO_ROLES_H

#include "board.h"
#include "corpus.h"

/* Builds the index, has it mirrored, changes it while the driver works, counts. */
int owner_run(struct board *board, const struct corpus *corpus, int to_driver, int to_third);

/* Walks the owner's index through a window, and has its blocks migrated all the while. */
int driver_run(struct board *board, int to_owner, char **argv);
#define DRIVER_TRY_AGAIN 75	/* the owner's addresses are taken here: start me anew */

/* The same without hmmd. */
int third_run(struct board *board, const struct corpus *corpus, int to_owner);

#endif
