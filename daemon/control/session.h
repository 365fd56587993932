/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * session.h - what a peer's messages mean: who answers each, and whether this
 * peer may ask it.
 *
 * Thread: control.
 */
#ifndef HMMD_SESSION_H
#define HMMD_SESSION_H

#include <stdint.h>

struct hmm_frame;
struct letter;
struct peer;
struct server;

/*
 * One message as it came, checked for nothing yet. Takes its descriptors or leaves them in the
 * frame.
 */
void session_message(struct peer *peer, struct hmm_frame *frame);

/* Sends the letter's reply, or its error, and frees it. The peer may be gone, NULL. */
void session_answer_consume(struct server *server, struct peer *peer, struct letter *letter);
/* What a request is charged for as long as what it has made is there: descriptors, bytes of rings; and that it is no more. */
uint64_t session_keeps_fds(uint16_t opcode);
uint64_t session_ring_bytes(const struct letter *letter);
void session_release_kept(struct server *server, const struct letter *letter);

/* The connection is closed: tells the engine. */
void session_end(struct peer *peer);

#endif
