/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * server.h - the control loop: the socket, the peers on it, and the way to
 * and from the engine.
 *
 * Thread: control, which is the one that calls server_run().
 */
#ifndef HMMD_SERVER_H
#define HMMD_SERVER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

#include "daemon/config.h"
#include "daemon/control/rights.h"
#include "daemon/quota.h"
#include "daemon/engine/engine.h"
#include "daemon/mailbox.h"
#include "frame.h"

struct passed;
struct peer;

#define SERVER_PEER_BUCKETS 256

enum server_state {
	SERVER_SERVING,
	SERVER_DRAINING,	/* SHUTDOWN is with the engine: pages come home */
	SERVER_FLUSHING,	/* they are; peers are being told */
	SERVER_HANDING_OVER,	/* HAND_OVER is with the engine, or done; peers get their last answers */
};

struct server_options {
	const char *version;
	struct config config;
	struct config_source source;	/* to reload from; what it points to outlives the server */
	int ready_fd;			/* -1: none; closed once told */
	struct passed *passed;		/* by the service manager: what is used is taken out */
};

/* A socket that peers come by. */
struct listener {
	struct server *server;
	uv_poll_t poll;
	int fd;				/* -1: there is none */
	bool administers;		/* who comes by it is an administrator: it is for its file's mode to say who may */
};

struct server {
	uv_loop_t loop;
	struct listener programs, administration;
	struct letter *end;		/* SHUTDOWN or HAND_OVER, made in time: saying it must not need memory */
	uv_poll_t outbox_poll;
	uv_poll_t tracer_poll;		/* active only when tracer_fd is */
	uv_signal_t terminate, interrupt, reload, hand_over;
	uv_timer_t flush_timer;
	uv_timer_t mend;		/* looks after the holder of cards */
	uv_timer_t report;		/* how it is, to the service manager */
	enum server_state state;
	uint64_t flush_began;		/* loop time, ms */

	struct config config;
	struct config_source source;
	int ready_fd;
	const char *version;
	uint64_t started;		/* CLOCK_MONOTONIC, ns */
	char trouble[256];		/* what a person should know of the last reload; "": nothing */

	char path[108];
	int lock_fd;			/* path.lock, held as long as the socket is ours */
	dev_t socket_dev;		/* the socket that hmmd has made, and removes; */
	ino_t socket_ino;		/* 0: it was passed one */
	int tracer_fd;			/* -1: hmmd is not told of debuggers */
	int uffd_device;		/* /dev/userfaultfd, -1 when it cannot be opened */
	int reserve_fd;			/* given up to refuse a connection when the table is full */

	struct holder *holder;		/* of cards' descriptors; NULL: there can't be one */
	struct reserve *reserve;	/* the pool's memory, taken up front; NULL: it is taken page by page */
	struct engine *engine;
	unsigned int workers;
	struct mailbox outbox;
	bool has_outbox;
	struct quota quota;
	struct rights rights;

	struct peer *peers, **peers_tail;	/* in order of id */
	struct peer *peer_buckets[SERVER_PEER_BUCKETS];	/* the same, by id modulo their number */
	uint32_t n_peers;
	uint32_t last_peer;

	struct hmm_frame *frame;	/* the one being read: in the vault */
};

/* Everything up to the first connection. What went wrong is logged. 0 or a negative errno. */
int server_new(const struct server_options *options, struct server **result);
/*
 * Serves until a signal ends it. 0: every page is home. SERVER_HANDED_OVER: all is left to the next hmmd as it is, which a
 * server_free() would take down: the process ends without one. Or a negative errno.
 */
#define SERVER_HANDED_OVER 1
int server_run(struct server *server);
/* The limits as configured are in force. */
void server_apply_limits(struct server *server);
/* @what, and how hmmd is, to the service manager. */
void server_report(const struct server *server, const char *what);
/* A device may be a card now: its holder is looked after for as long as there is one. */
void server_mend_cards(struct server *server);
/* NULL is allowed; returns NULL. */
struct server *server_free(struct server *server);

#endif
