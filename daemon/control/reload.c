// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * reload.c - the configuration, read again while hmmd runs (SIGHUP).
 *
 * It is all or nothing: the file is read into a copy, which replaces the running values only when every word of it is
 * right. What takes effect at the next start alone is named, and stays.
 *
 * What can fail: memory, and the file; both are logged, and the manager's status says so.
 *
 * Thread: control.
 */
#include "daemon/control/reload.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/control/notify.h"
#include "daemon/log.h"

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

bool reload_would_start(const struct server *server)
{
	struct config fresh;
	char *text;
	bool wrong = read_config(server, &fresh, &text) < 0 && text;

	if (wrong)
		log_lines(text);
	free(text);
	return !wrong;
}

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

void reload_on_signal(uv_signal_t *handle, int number)
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
		server_apply_limits(server);
		log_set_level((enum log_level)fresh.log);
		letter = letter_new(LETTER_RELOAD);
		if (letter)
			engine_submit(server->engine, letter);
		log_info("the configuration is reloaded");
	}
	free(text);
	server_report(server, server->state == SERVER_SERVING ? "READY=1" : "STOPPING=1");
}
