/* SPDX-License-Identifier: GPL-2.0-or-later */
/* reload.h - the configuration, read again. Thread: control. */
#ifndef HMMD_RELOAD_H
#define HMMD_RELOAD_H

#include "daemon/control/server.h"

/* SIGHUP; handle->data is the server. */
void reload_on_signal(uv_signal_t *handle, int number);
/* Whether an hmmd would start with the configuration as it is written now. What is wrong with it is logged. */
bool reload_would_start(const struct server *server);

#endif
