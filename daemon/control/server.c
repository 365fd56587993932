// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * server.c - the control loop's own events: connections that come, letters
 * from the engine, and what the service manager hears.
 *
 * Happy path: server_new() makes the engine and the socket, server_run()
 * accepts peers until a signal ends it (ending.c).
 *
 * What can fail: the engine or the socket at the start (logged, hmmd ends);
 * later nothing that ends hmmd. A full descriptor table costs one newcomer
 * its connection: a reserve descriptor is given up to accept and close it,
 * since a connection left in the queue would wake the loop for ever.
 *
 * Thread: control.
 */
#include "daemon/control/server.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/control/ending.h"
#include "daemon/control/notify.h"
#include "daemon/control/passed.h"
#include "daemon/control/peer.h"
#include "daemon/control/reload.h"
#include "daemon/control/settle.h"
#include "daemon/control/socket.h"
#include "daemon/control/tracer.h"
#include "daemon/log.h"
#include "daemon/memory/bar.h"
#include "daemon/memory/card.h"
#include "daemon/memory/holder.h"
#include "daemon/memory/reserve.h"
#include "daemon/privileges.h"
#include "daemon/vault.h"

/* Connections accepted in one turn of the loop. */
#define TURN_ACCEPTS 16
/* How often it is looked whether the holder of cards is there, while there are cards. */
#define MEND_MS 1000
/* How often the service manager hears how it is, when it does not say how often it wants to. */
#define REPORT_MS 15000

void server_apply_limits(struct server *server)
{
	const struct config *config = &server->config;
	const uint64_t limit[QUOTA_KINDS] = {
		[QUOTA_CONNECTIONS] = config->connections,
		[QUOTA_OWNERS] = config->owners,
		[QUOTA_FDS] = config->fds,
		[QUOTA_REQUESTS] = config->requests,
		[QUOTA_RINGS] = config->rings,
		[QUOTA_MIRRORS] = config->mirrors,
		[QUOTA_MEMORY] = config->memory ? config->memory : QUOTA_UNLIMITED,
		[QUOTA_PINNED] = config->pinned ? config->pinned : QUOTA_UNLIMITED,
	};

	quota_set_limits(&server->quota, limit);
}

/* ---- connections -------------------------------------------------------------- */

static void refuse_one(const struct listener *listener)
{
	struct server *server = listener->server;
	int fd;

	close(server->reserve_fd);
	fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd >= 0)
		close(fd);
	server->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	log_error("a connection is refused: hmmd has no descriptor left; raise LimitNOFILE");
}

static void on_connection(uv_poll_t *handle, int status, int events)
{
	struct listener *listener = handle->data;
	unsigned int i;
	int fd;

	for (i = 0; i < TURN_ACCEPTS; i++) {
		fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0) {
			peer_new_consume_fd(listener, fd);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE)
			refuse_one(listener);
		else if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
			log_warn("a connection cannot be accepted: %m");
		return;
	}
}

/* ---- what the service manager hears ------------------------------------------------ */

/* @what, and how hmmd is, in a line for people: `systemctl status` shows it. */
void server_report(const struct server *server, const char *what)
{
	struct hmm_msg_status_reply totals = { 0 };
	char text[640];

	engine_totals(server->engine, &totals);
	if (server->state == SERVER_SERVING)
		snprintf(text, sizeof(text), "%s\nSTATUS=Serving %u mirrored process%s; %llu of %llu MiB of device memory are in use%s",
			 what, totals.owners, totals.owners == 1 ? "" : "es", (unsigned long long)(totals.pool_used >> 20),
			 (unsigned long long)(totals.pool_bytes >> 20), server->trouble);
	else if (server->state == SERVER_HANDING_OVER)
		snprintf(text, sizeof(text), "%s\nSTATUS=Handing over to the next hmmd: %llu MiB of %u mirrored process%s stay out",
			 what, (unsigned long long)(totals.device_bytes >> 20), totals.owners, totals.owners == 1 ? "" : "es");
	else
		snprintf(text, sizeof(text), "%s\nSTATUS=Bringing every page home: %llu MiB of %u mirrored process%s are out",
			 what, (unsigned long long)(totals.device_bytes >> 20), totals.owners, totals.owners == 1 ? "" : "es");
	notify_manager(text);
}

/*
 * That this runs shows that the loop does. Whether the workers do they show by a turn of their loops since the last time: each is
 * woken, so one without work makes it as well. One that does not leaves the watchdog unfed.
 */
static void on_report(uv_timer_t *timer)
{
	struct server *server = timer->data;
	int stuck = engine_find_stuck(server->engine);
	char text[128];

	engine_review(server->engine);
	if (stuck < 0) {
		server_report(server, "WATCHDOG=1");
		return;
	}
	log_error("worker %d makes no progress: the service manager is not told that all is well", stuck);
	snprintf(text, sizeof(text), "STATUS=Worker %d makes no progress: faults of its processes wait", stuck);
	notify_manager(text);
}

static void start_reports(struct server *server)
{
	uint64_t every_ms = REPORT_MS, patience_ms = notify_patience_ms();

	if (!notify_is_heard())
		return;
	/* A worker may then be slow for half of that patience, and be heard of in time. */
	if (patience_ms)
		every_ms = patience_ms < 4 ? 1 : patience_ms / 4;
	engine_find_stuck(server->engine);
	uv_timer_start(&server->report, on_report, every_ms, every_ms);
}

/* ---- the engine ------------------------------------------------------------------ */

static void on_outbox(uv_poll_t *handle, int status, int events)
{
	struct server *server = handle->data;
	struct letter *letter, *next;
	bool stopped = false;

	for (letter = mailbox_take(&server->outbox); letter; letter = next) {
		next = letter->next;
		if (letter->kind == LETTER_STOPPED) {
			stopped = true;
			letter_free(letter);
		} else {
			settle_letter(server, letter);
		}
	}
	if (stopped && server->state == SERVER_DRAINING) {
		log_info("every page is home");
		ending_say_farewell(server);
	} else if (stopped) {
		engine_join(server->engine);
		uv_timer_stop(&server->report);
		ending_flush_peers(server);
	}
}

/* ---- debuggers -------------------------------------------------------------------- */

/* Neither a debugger nor the kernel's core dump can read what is on a device: the pages of who is looked at come home. */
static void on_tracer(uv_poll_t *handle, int status, int events)
{
	struct server *server = handle->data;
	bool dumps;
	pid_t pid;

	while ((pid = tracer_next(server->tracer_fd, &dumps))) {
		struct letter *letter = letter_new(dumps ? LETTER_DUMPS : LETTER_TRACED);

		if (!letter)
			return;
		letter->pid = pid;
		engine_submit(server->engine, letter);
	}
}

static void start_tracer(struct server *server)
{
	if (server->tracer_fd < 0)
		return;
	if (uv_poll_init(&server->loop, &server->tracer_poll, server->tracer_fd) < 0) {
		log_warn("debuggers and core dumps are not noticed: out of memory");
		return;
	}
	server->tracer_poll.data = server;
	uv_poll_start(&server->tracer_poll, UV_READABLE, on_tracer);
}

/* ---- beginning ----------------------------------------------------------------------- */

/* Half of the machine, in whole huge pages: the rest is the owners'. */
static uint64_t half_of_memory(void)
{
	uint64_t bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / 2;

	return bytes & ~((UINT64_C(2) << 20) - 1);
}

static unsigned int default_workers(void)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	if (cpus < 2)
		return 1;
	return cpus < 8 ? (unsigned int)cpus / 2 : 4;
}

static const char *take_kept(void *data, int *fd)
{
	return passed_take_kept(data, fd);
}

/* It may take minutes, and the manager is patient as long as it hears of it. */
static void on_reserving(uint64_t done, uint64_t size)
{
	char text[128];

	snprintf(text, sizeof(text), "EXTEND_TIMEOUT_USEC=60000000\nSTATUS=Reserving memory: %llu of %llu MiB",
		 (unsigned long long)(done >> 20), (unsigned long long)(size >> 20));
	notify_manager(text);
}

static uint64_t pool_size(const struct config *config)
{
	return config->pool_size ? config->pool_size : half_of_memory();
}

/* What is not used by an hmmd that reserves nothing, or something else, is not kept either. */
static void give_up_reserve(struct passed *passed)
{
	int fd = passed_take_named(passed, PASSED_RESERVE);

	if (fd < 0)
		return;
	for (; fd >= 0; fd = passed_take_named(passed, PASSED_RESERVE))
		close(fd);
	notify_drop(PASSED_RESERVE);
}

static int start_reserve(struct server *server, struct passed *passed)
{
	const struct config *config = &server->config;
	struct reserve_options options = {
		.kind = (enum hmm_pool_kind)config->pool_kind,
		.placement = config_placement(config),
		.size = pool_size(config),
		.patience_ms = (unsigned int)config->grace_ms + 5000,
		.progress = notify_is_heard() ? on_reserving : NULL,
	};
	char why[300];
	bool kept;
	int r;

	if (!config->pool_reserve) {
		give_up_reserve(passed);
		return 0;
	}
	for (unsigned int i = 0; i < RESERVE_FDS; i++)
		options.fds[i] = passed_take_named(passed, PASSED_RESERVE);
	kept = options.fds[0] >= 0;
	log_info("%llu MiB are reserved for the pool", (unsigned long long)(options.size >> 20));
	r = reserve_new(&options, &server->reserve, why, sizeof(why));
	if (kept && (r || !reserve_is_adopted(server->reserve)))
		notify_drop(PASSED_RESERVE);
	if (r) {
		log_error("%llu MiB cannot be reserved for the pool: %s. A smaller 'size' in [pool], or 'reserve = no', lets hmmd start",
			  (unsigned long long)(options.size >> 20), why);
		return r;
	}
	if (notify_is_heard() && !reserve_is_adopted(server->reserve) &&
	    notify_keep(PASSED_RESERVE, reserve_fds(server->reserve), RESERVE_FDS) < 0)
		log_warn("the service manager does not keep the pool's reserve should hmmd be killed");
	return 0;
}

static int start_engine(struct server *server, struct passed *passed)
{
	const struct config *config = &server->config;
	struct engine_options options = {
		.workers = config->workers ? (unsigned int)config->workers : default_workers(),
		.no_io_uring = !config->io_uring,
		.no_move = !config->move,
		.user_mode = config->user,
		.pool_kind = (enum hmm_pool_kind)config->pool_kind,
		.pool_size = pool_size(config),
		.pool_placement = config_placement(config),
		.reserve = server->reserve,
		.pool_card = server->config.pool_card,
		.pool_bar = (unsigned int)config->pool_bar,
		.evict_high = (unsigned int)config->evict_high,
		.evict_low = (unsigned int)config->evict_low,
		.ack_timeout_ms = (unsigned int)config->ack_timeout_ms,
		.spin_us = (unsigned int)config->spin_us,
		.grace_ms = (unsigned int)config->grace_ms,
		.tracking = (unsigned int)config->tracking,
		.keep = notify_is_heard() ? notify_keep : NULL,
		.drop = notify_is_heard() ? notify_drop : NULL,
		.take_kept = take_kept,
		.take_kept_data = passed,
		.quota = &server->quota,
	};
	sigset_t all, old;
	int r;

	/* Signals are the control thread's: workers inherit a full mask. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = engine_new(&options, &server->outbox, &server->engine);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r < 0)
		log_error("the engine does not start: %s", strerror(-r));
	else
		server->workers = options.workers;
	return r;
}

/*
 * Without one there are no cards; everything else goes on. But what somebody else has of an earlier hmmd's
 * may still reach the memory of its users: until that is over nothing of theirs may be settled.
 */
static int start_holder(struct server *server)
{
	const struct holder_options options = {
		.socket = server->path, .grace_ms = (unsigned int)server->config.card_grace_ms,
	};
	int r = holder_new(&options, &server->holder);

	if (r == -EADDRINUSE) {
		log_error("hmmd does not start beside cards that it does not have");
		return r;
	}
	if (r < 0)
		log_warn("no process can keep cards should hmmd be killed, so there are none: %s", strerror(-r));
	else
		cards_init(server->holder, bar_is_wanted);
	return 0;
}

static void on_mend(uv_timer_t *timer)
{
	const struct server *server = timer->data;

	bars_mend();
	/* Those that are recalled: workers bring home and unmap, and what is empty is given back. */
	if (cards_recall()) {
		bars_recall();
		engine_wake(server->engine);
	}
	if (!cards_mend(uv_hrtime() / 1000000000U))
		uv_timer_stop(timer);
}

void server_mend_cards(struct server *server)
{
	/* Started anew by each card its first look would be put off for ever. */
	if (!uv_is_active((uv_handle_t *)&server->mend))
		uv_timer_start(&server->mend, on_mend, MEND_MS, MEND_MS);
}

static int listener_init(struct server *server, struct listener *listener, bool administers)
{
	listener->server = server;
	listener->administers = administers;
	listener->poll.data = listener;
	return listener->fd >= 0 ? uv_poll_init(&server->loop, &listener->poll, listener->fd) : 0;
}

static void listener_start(struct listener *listener)
{
	if (listener->fd >= 0)
		uv_poll_start(&listener->poll, UV_READABLE, on_connection);
}

/* What may fail comes first: then there is nothing to be closed yet but that. */
static int start_handles(struct server *server)
{
	int r = uv_poll_init(&server->loop, &server->outbox_poll, server->outbox.eventfd);

	if (!r)
		r = listener_init(server, &server->programs, false);
	if (!r)
		r = listener_init(server, &server->administration, true);
	if (r < 0)
		return r;
	uv_signal_init(&server->loop, &server->terminate);
	uv_signal_init(&server->loop, &server->interrupt);
	uv_signal_init(&server->loop, &server->reload);
	uv_signal_init(&server->loop, &server->hand_over);
	uv_timer_init(&server->loop, &server->flush_timer);
	uv_timer_init(&server->loop, &server->report);
	uv_timer_init(&server->loop, &server->mend);
	server->outbox_poll.data = server;
	server->terminate.data = server;
	server->interrupt.data = server;
	server->reload.data = server;
	server->hand_over.data = server;
	server->flush_timer.data = server;
	server->mend.data = server;
	server->report.data = server;
	return 0;
}

int server_new(const struct server_options *options, struct server **result)
{
	struct server *server = calloc(1, sizeof(*server));
	int r;

	if (server)
		server->frame = vault_alloc(sizeof(*server->frame));
	if (!server || !server->frame) {
		log_error("hmmd does not start: out of memory");
		free(server);
		return -ENOMEM;
	}
	server->config = options->config;
	server->source = options->source;
	server->version = options->version;
	server->ready_fd = options->ready_fd;
	server->started = uv_hrtime();
	server->programs.fd = -1;
	server->administration.fd = -1;
	server->lock_fd = -1;
	server->reserve_fd = -1;
	server->outbox.eventfd = -1;
	server->tracer_fd = -1;
	server->peers_tail = &server->peers;
	hmm_frame_init(server->frame);
	quota_init(&server->quota);
	server_apply_limits(server);
	memcpy(server->path, options->config.socket, sizeof(server->path));

	/* Who owns its memory opens userfaultfds from this, and needs no privilege of its own. */
	server->uffd_device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	r = uv_loop_init(&server->loop);
	if (r < 0) {
		log_error("the control loop does not start: %s", uv_strerror(r));
		if (server->uffd_device >= 0)
			close(server->uffd_device);
		quota_deinit(&server->quota);
		vault_free(server->frame);
		free(server);
		return r;
	}

	r = mailbox_init(&server->outbox);
	if (r < 0) {
		log_error("no mailbox can be made: %s", strerror(-r));
		goto fail;
	}
	server->has_outbox = true;
	server->end = letter_new(LETTER_SHUTDOWN);
	if (!server->end) {
		r = -ENOMEM;
		log_error("hmmd does not start: out of memory");
		goto fail;
	}
	server->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	r = socket_open(server, options->passed);
	if (r < 0)
		goto fail;
	server->tracer_fd = tracer_listen();
	if (server->tracer_fd < 0)
		log_info("debuggers and core dumps are not noticed (%s): before attaching one, hmmctl drain --pid PID",
			 strerror(-server->tracer_fd));
	/* All that took more is done; who is started from here on has no more. */
	r = privileges_keep(PRIVILEGES_SERVE);
	if (r < 0) {
		log_error("hmmd cannot give up the privileges that it does not need: %s", strerror(-r));
		goto fail;
	}
	r = start_holder(server);
	if (r < 0)
		goto fail;
	r = start_reserve(server, options->passed);
	if (r < 0)
		goto fail;
	r = start_engine(server, options->passed);
	if (r < 0)
		goto fail;
	r = start_handles(server);
	if (r < 0) {
		log_error("the control loop does not start: %s", uv_strerror(r));
		goto fail;
	}
	*result = server;
	return 0;

fail:
	server_free(server);
	return r;
}

int server_run(struct server *server)
{
	listener_start(&server->programs);
	listener_start(&server->administration);
	uv_poll_start(&server->outbox_poll, UV_READABLE, on_outbox);
	start_tracer(server);
	uv_signal_start(&server->terminate, ending_on_signal, SIGTERM);
	uv_signal_start(&server->interrupt, ending_on_signal, SIGINT);
	uv_signal_start(&server->reload, reload_on_signal, SIGHUP);
	uv_signal_start(&server->hand_over, ending_on_hand_over, SIGUSR2);

	if (server->holder && holder_name(server->holder, 0))
		server_mend_cards(server);

	log_info("hmmd %s serves %s", server->version, server->path);
	notify_ready_fd(&server->ready_fd);
	server_report(server, "READY=1");
	start_reports(server);
	uv_run(&server->loop, UV_RUN_DEFAULT);
	log_info("hmmd ends");
	return server->state == SERVER_HANDING_OVER ? SERVER_HANDED_OVER : 0;
}

struct server *server_free(struct server *server)
{
	if (!server)
		return NULL;
	if (server->engine) {
		ending_leave_loop(server);
		uv_run(&server->loop, UV_RUN_DEFAULT);
	}
	engine_free(server->engine);
	reserve_free(server->reserve);
	cards_init(NULL, NULL);
	/* What is kept is for a driver that waits for the next hmmd. */
	if (server->holder && holder_name(server->holder, 0))
		server->holder = holder_leave(server->holder);
	else
		server->holder = holder_free(server->holder);
	uv_loop_close(&server->loop);
	if (server->has_outbox)
		mailbox_deinit(&server->outbox);
	socket_close(server);
	letter_free(server->end);
	rights_deinit(&server->rights);
	quota_deinit(&server->quota);
	if (server->uffd_device >= 0)
		close(server->uffd_device);
	if (server->tracer_fd >= 0)
		close(server->tracer_fd);
	if (server->reserve_fd >= 0)
		close(server->reserve_fd);
	if (server->ready_fd >= 0)
		close(server->ready_fd);
	vault_free(server->frame);
	free(server);
	return NULL;
}
