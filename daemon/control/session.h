/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * session.h - what a peer's messages mean: who answers each, and whether this
 * peer may ask it.
 *
 * Thread: control.
 */
#ifndef HMMD_SESSION_H
#define HMMD_SESSION_H

struct hmm_frame;
struct letter;
struct peer;
struct server;

/*
 * One message as it came, checked for nothing yet. Takes its descriptors or leaves them in the
 * frame.
 */
void session_message(struct peer *peer, struct hmm_frame *frame);
/* A letter from the engine's outbox. */
void session_letter(struct server *server, struct letter *letter);
/* The connection is closed: tells the engine. */
void session_end(struct peer *peer);

#endif
