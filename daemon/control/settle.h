/* SPDX-License-Identifier: GPL-2.0-or-later */
/* settle.h - what comes back from the engine. Thread: control. */
#ifndef HMMD_SETTLE_H
#define HMMD_SETTLE_H

struct letter;
struct server;

/* A letter from the engine's outbox: consumes it. */
void settle_letter(struct server *server, struct letter *letter);

#endif
