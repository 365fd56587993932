// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Any bytes as hmmd.conf, and as what stands behind an option. Input: one byte, then the file; where the byte's lowest bit is
 * set, the first line is a value of the command line instead.
 *
 * What must hold: an error is told in whole lines, each with its place, and leaves the configuration as it was. What
 * is accepted is within the bounds that callers rely on. One thread.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/log.h"
#include "must.h"

static bool is_text(const char *text, size_t room)
{
	const char *end = memchr(text, '\0', room);

	if (!end)
		return false;
	for (; text < end; text++)
		if (*text < ' ' || *text > '~')
			return false;
	return true;
}

static void expect_bounds(const struct config *config)
{
	char names[64];

	must(is_text(config->socket, sizeof(config->socket)) && is_text(config->group, sizeof(config->group)));
	must(is_text(config->pool_card, sizeof(config->pool_card)));
	must(config->log <= LOG_LEVEL_DEBUG && config->workers <= 64);
	must(config->ack_timeout_ms >= 1 && config->grace_ms >= 100);
	must(config->pool_size % 4096 == 0 && config->pool_bar <= 5 && config->pool_node <= 1024);
	must(config->evict_low <= config->evict_high && config->evict_high >= 1 && config->evict_high <= 100);
	must(config->connections && config->owners && config->fds >= 16 && config->requests);
	must(config->queue >= 128 << 10 && config->stall_ms >= 10);
	config_placement(config);
	must(config_frozen_changes(config, config, names, sizeof(names)) == 0 && !*names);
}

static void expect_lines(const char *errors, size_t size, const char *file)
{
	must(size && errors[size - 1] == '\n');
	/* What concerns several keys has no place; anything else has one. */
	must(strstr(errors, file) || strstr(errors, "--option: ") || strchr(errors, ' '));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const keys[][2] = { { "pool", "placement" }, { "pool", "size" }, { "engine", "spin" }, { "pool", "card" },
					       { "daemon", "socket" }, { "limits", "queue" }, { "pool", "node" }, { "engine", "tracking" } };
	struct config_override override = { .option = "--option" };
	struct config_source source = { .must_exist = true };
	struct config config, before;
	char path[32], value[256] = "", *text = NULL;
	size_t length;
	FILE *errors;
	int fd, r;

	if (!size)
		return 0;
	fd = memfd_create("conf", MFD_CLOEXEC);
	must(fd >= 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	source.file = path;
	if (data[0] & 1) {
		const uint8_t *end = memchr(data + 1, '\n', size - 1);
		size_t line = end ? (size_t)(end - data - 1) : size - 1;

		memcpy(value, data + 1, line < sizeof(value) ? line : sizeof(value) - 1);
		override.section = keys[data[0] >> 1 & 7][0];
		override.key = keys[data[0] >> 1 & 7][1];
		override.value = value;
		source.overrides = &override;
		source.n_overrides = 1;
		data += line;
		size -= line;
	}
	must(write(fd, data + 1, size - 1) == (ssize_t)(size - 1));
	errors = open_memstream(&text, &length);
	must(errors);
	memset(&config, 0xa5, sizeof(config));
	before = config;
	r = config_load(&config, &source, errors);
	fclose(errors);
	must((r == 0) == (length == 0) && (!r || r == -22));
	if (r) {
		must(!memcmp(&config, &before, sizeof(config)));
		expect_lines(text, length, path);
	} else {
		expect_bounds(&config);
	}
	free(text);
	close(fd);
	return 0;
}
