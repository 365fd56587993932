// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * ending.c - how hmmd ends in good order.
 *
 * Happy path: on SIGTERM nobody new is let in, the engine brings every page home while peers may still acknowledge
 * and ask, and only when it says STOPPED are the peers told and the loop left.
 *
 * SIGUSR2 is for when another hmmd follows at once: it ends as by a crash, at a moment when nothing is half done. Pages
 * stay where they are, nobody is told, nothing is taken down, and the socket's file stays; what the engine has asked is
 * still heard, and nothing else. With a configuration that the next one would not start with it is SIGTERM.
 *
 * Nothing here can fail: what it needs memory for was made in time (server->end), or is told to nobody.
 *
 * Thread: control.
 */
#include "daemon/control/ending.h"

#include <signal.h>
#include <stdlib.h>

#include "daemon/control/peer.h"
#include "daemon/control/reload.h"
#include "daemon/control/socket.h"
#include "daemon/log.h"
#include "daemon/memory/card.h"

/* How long the last words to peers may take. */
#define FLUSH_MS 2000
/* The same to peers who wait for the next hmmd: what is lost they ask again. */
#define FLUSH_HANDED_OVER_MS 100

static void close_if_open(uv_handle_t *handle, void *arg)
{
	if (!uv_is_closing(handle))
		uv_close(handle, NULL);
}

void ending_leave_loop(struct server *server)
{
	while (server->peers)
		peer_close(server->peers, NULL);
	uv_walk(&server->loop, close_if_open, NULL);
}

static bool all_flushed(const struct server *server)
{
	const struct peer *peer;

	for (peer = server->peers; peer; peer = peer->next) {
		if (peer->queue)
			return false;
	}
	return true;
}

static void on_flush(uv_timer_t *timer)
{
	struct server *server = timer->data;

	const uint64_t patience = server->state == SERVER_HANDING_OVER ? FLUSH_HANDED_OVER_MS : FLUSH_MS;

	if (!all_flushed(server) && uv_now(&server->loop) - server->flush_began < patience)
		return;
	/* Not even a connection is closed: that would be the end of its devices. */
	if (server->state == SERVER_HANDING_OVER)
		uv_stop(&server->loop);
	else
		ending_leave_loop(server);
}

void ending_flush_peers(struct server *server)
{
	uv_update_time(&server->loop);
	server->flush_began = uv_now(&server->loop);
	uv_timer_start(&server->flush_timer, on_flush, 0, 20);
}

void ending_say_farewell(struct server *server)
{
	struct hmm_msg_shutdown *event;
	struct peer *peer, *next;

	server->state = SERVER_FLUSHING;
	cards_leave();
	for (peer = server->peers; peer; peer = next) {
		next = peer->next;
		event = malloc(sizeof(*event));
		if (!event) {
			peer_close(peer, "out of memory");
			continue;
		}
		hmm_wire_init(event, HMM_OP_SHUTDOWN, sizeof(*event), 0);
		peer_send_consume(peer, &event->header, NULL, 0);
	}
	ending_flush_peers(server);
}

static void let_nobody_in(struct server *server)
{
	uv_close((uv_handle_t *)&server->programs.poll, NULL);
	if (server->administration.fd >= 0)
		uv_close((uv_handle_t *)&server->administration.poll, NULL);
}

static void begin_shutdown(struct server *server, const char *cause)
{
	struct letter *letter = server->end;

	server->end = NULL;
	log_info("%s: no more connections, every page comes home", cause);
	server->state = SERVER_DRAINING;
	server_report(server, "STOPPING=1");
	let_nobody_in(server);
	socket_stop_listening(server);
	engine_submit(server->engine, letter);
}

static void begin_hand_over(struct server *server)
{
	struct letter *letter = server->end;

	server->end = NULL;
	letter->kind = LETTER_HAND_OVER;
	log_info("SIGUSR2: the next hmmd is to go on; every page stays where it is");
	server->state = SERVER_HANDING_OVER;
	server_report(server, "STOPPING=1");
	/* Who connects now waits in the queue for the next one, or comes again. */
	let_nobody_in(server);
	uv_timer_stop(&server->mend);
	engine_submit(server->engine, letter);
}

static void report_shutdown(struct server *server, const char *cause)
{
	struct hmm_msg_status_reply totals = { 0 };

	engine_totals(server->engine, &totals);
	log_warn(
		"%s again: %llu KiB of %u mirrored processes are still on devices and keep coming home",
		cause, (unsigned long long)(totals.device_bytes >> 10), totals.owners);
}

void ending_on_signal(uv_signal_t *handle, int number)
{
	struct server *server = handle->data;
	const char *cause = number == SIGTERM ? "SIGTERM" : "SIGINT";

	if (server->state == SERVER_SERVING)
		begin_shutdown(server, cause);
	else if (server->state == SERVER_HANDING_OVER)
		log_warn("%s comes too late: every page is left where it is, for the next hmmd", cause);
	else
		report_shutdown(server, cause);
}

static bool would_be_followed(const struct server *server)
{
	if (reload_would_start(server))
		return true;
	log_error("no hmmd would start with this configuration, so every page comes home");
	return false;
}

void ending_on_hand_over(uv_signal_t *handle, int number)
{
	struct server *server = handle->data;

	if (server->state == SERVER_HANDING_OVER)
		return;
	if (server->state != SERVER_SERVING)
		report_shutdown(server, "SIGUSR2");
	else if (would_be_followed(server))
		begin_hand_over(server);
	else
		begin_shutdown(server, "SIGUSR2");
}
