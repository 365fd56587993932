/* SPDX-License-Identifier: GPL-2.0-or-later */
/* ending.h - how hmmd ends in good order. Thread: control. */
#ifndef HMMD_ENDING_H
#define HMMD_ENDING_H

#include "daemon/control/server.h"

/* SIGTERM and SIGINT: every page comes home. SIGUSR2: all is left to the next hmmd. handle->data is the server. */
void ending_on_signal(uv_signal_t *handle, int number);
void ending_on_hand_over(uv_signal_t *handle, int number);

/* The engine has done what it was told: every page is home, and the peers hear of it before the loop is left; */
void ending_say_farewell(struct server *server);
/* ... or all stays where it is, and only what waits for peers is sent. */
void ending_flush_peers(struct server *server);
/* Ends the loop by leaving it nothing to wait for. */
void ending_leave_loop(struct server *server);

#endif
