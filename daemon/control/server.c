// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * server.c - the control loop's own events: connections that come, letters
 * from the engine, signals, and the orderly end.
 *
 * Happy path: server_new() makes the engine and the socket, server_run()
 * accepts peers until SIGTERM. Then nobody new is let in, the engine brings
 * every page home while peers may still acknowledge and ask, and only when it
 * says STOPPED are the peers told, the socket removed and the loop left.
 *
 * SIGUSR2 is for when another hmmd follows at once: it ends as by a crash, at a moment when nothing is half done. Pages
 * stay where they are, nobody is told, nothing is taken down, and the socket's file stays; what the engine has asked is
 * still heard, and nothing else. With a configuration that the next one would not start with it is SIGTERM.
 *
 * What can fail: the engine or the socket at the start (logged, hmmd ends);
 * later nothing that ends hmmd. A full descriptor table costs one newcomer
 * its connection: a reserve descriptor is given up to accept and close it,
 * since a connection left in the queue would wake the loop for ever.
 *
 * A reload is all or nothing: the file is read into a copy, which replaces the
 * running values only when every word of it is right.
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

#include "daemon/control/notify.h"
#include "daemon/control/passed.h"
#include "daemon/control/peer.h"
#include "daemon/control/session.h"
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
/* How long the last words to peers may take. */
#define FLUSH_MS 2000
/* The same to peers who wait for the next hmmd: what is lost they ask again. */
#define FLUSH_HANDED_OVER_MS 100
/* How often it is looked whether the holder of cards is there, while there are cards. */
#define MEND_MS 1000
/* How often the service manager hears how it is, when it does not say how often it wants to. */
#define REPORT_MS 15000

static void apply_limits(struct server *server)
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
static void report(const struct server *server, const char *what)
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
		report(server, "WATCHDOG=1");
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

/* ---- the configuration ------------------------------------------------------------ */

/* Each line of the errors becomes a line of the log. */
static void log_lines(char *text)
{
	char *line, *rest = text;

	while ((line = strsep(&rest, "\n"))) {
		if (*line)
			log_error("%s", line);
	}
}

/* As it is written now. 0; or -errno, and *@text (heap, or NULL) has the errors. */
static int read_config(const struct server *server, struct config *fresh, char **text)
{
	FILE *errors;
	size_t size;
	int r;

	*text = NULL;
	errors = open_memstream(text, &size);
	if (!errors)
		return -ENOMEM;
	r = config_load(fresh, &server->source, errors);
	fclose(errors);
	return r;
}

/* Who is told to hand over could have nobody to hand over to. */
static bool next_would_start(const struct server *server)
{
	struct config fresh;
	char *text;
	bool wrong = read_config(server, &fresh, &text) < 0 && text;

	if (wrong) {
		log_lines(text);
		log_error("no hmmd would start with this configuration, so every page comes home");
	}
	free(text);
	return !wrong;
}

/* ---- the end -------------------------------------------------------------------- */

static void close_if_open(uv_handle_t *handle, void *arg)
{
	if (!uv_is_closing(handle))
		uv_close(handle, NULL);
}

/* Ends the loop by leaving it nothing to wait for. */
static void leave_loop(struct server *server)
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
		leave_loop(server);
}

static void flush_peers(struct server *server)
{
	uv_update_time(&server->loop);
	server->flush_began = uv_now(&server->loop);
	uv_timer_start(&server->flush_timer, on_flush, 0, 20);
}

static void say_farewell(struct server *server)
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
	flush_peers(server);
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
	report(server, "STOPPING=1");
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
	report(server, "STOPPING=1");
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

static void on_end_signal(uv_signal_t *handle, int number)
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

static void on_hand_over(uv_signal_t *handle, int number)
{
	struct server *server = handle->data;

	if (server->state == SERVER_HANDING_OVER)
		return;
	if (server->state != SERVER_SERVING)
		report_shutdown(server, "SIGUSR2");
	else if (next_would_start(server))
		begin_hand_over(server);
	else
		begin_shutdown(server, "SIGUSR2");
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
			session_letter(server, letter);
		}
	}
	if (stopped && server->state == SERVER_DRAINING) {
		log_info("every page is home");
		say_farewell(server);
	} else if (stopped) {
		engine_join(server->engine);
		uv_timer_stop(&server->report);
		flush_peers(server);
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

/* ---- reload ------------------------------------------------------------------------ */

/* Of all errors the first, on the one line that a status has room for. */
static void note_trouble(struct server *server, const char *errors)
{
	snprintf(server->trouble, sizeof(server->trouble), "; the configuration was not reloaded: %.*s",
		 (int)strcspn(errors, "\n"), errors);
}

/* A manager that reloads by Type=notify-reload knows by the time that it is this reload which has begun. */
static void report_reload(void)
{
	char text[64];

	snprintf(text, sizeof(text), "RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)(uv_hrtime() / 1000));
	notify_manager(text);
}

static void on_reload(uv_signal_t *handle, int number)
{
	struct server *server = handle->data;
	struct letter *letter;
	struct config fresh;
	char *text, names[256];
	int r;

	report_reload();
	server->trouble[0] = '\0';
	r = read_config(server, &fresh, &text);
	if (r < 0 && !text) {
		log_error("SIGHUP is ignored: out of memory");
		note_trouble(server, "out of memory");
	} else if (r < 0) {
		note_trouble(server, text);
		log_lines(text);
		log_error("the configuration is not reloaded; the old one stays in force");
	} else {
		if (config_frozen_changes(&server->config, &fresh, names, sizeof(names)))
			log_warn("these take effect at the next start of hmmd: %s", names);
		config_keep_frozen(&fresh, &server->config);
		server->config = fresh;
		apply_limits(server);
		log_set_level((enum log_level)fresh.log);
		letter = letter_new(LETTER_RELOAD);
		if (letter)
			engine_submit(server->engine, letter);
		log_info("the configuration is reloaded");
	}
	free(text);
	report(server, server->state == SERVER_SERVING ? "READY=1" : "STOPPING=1");
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
	apply_limits(server);
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
	uv_signal_start(&server->terminate, on_end_signal, SIGTERM);
	uv_signal_start(&server->interrupt, on_end_signal, SIGINT);
	uv_signal_start(&server->reload, on_reload, SIGHUP);
	uv_signal_start(&server->hand_over, on_hand_over, SIGUSR2);

	if (server->holder && holder_name(server->holder, 0))
		server_mend_cards(server);

	log_info("hmmd %s serves %s", server->version, server->path);
	notify_ready_fd(&server->ready_fd);
	report(server, "READY=1");
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
		leave_loop(server);
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
