// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * config.c - what a configuration means, and every way in which it can be
 * wrong, by the exact words a person reads.
 */
#include "daemon/config.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/log.h"
#include "hmm_protocol.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(config);

struct scene {
	char folder[64], file[128];
	struct config config;
	struct config_source source;
	char *errors;
	int result;
};

static void write_file(const char *path, const void *text, size_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	cr_assert(fd >= 0);
	cr_assert(write(fd, text, size) == (ssize_t)size);
	close(fd);
}

static struct scene *scene_new(const char *text)
{
	struct scene *scene = calloc(1, sizeof(*scene));

	strcpy(scene->folder, "/tmp/config-XXXXXX");
	cr_assert(mkdtemp(scene->folder) != NULL);
	snprintf(scene->file, sizeof(scene->file), "%s/h.conf", scene->folder);
	if (text)
		write_file(scene->file, text, strlen(text));
	scene->source.file = scene->file;
	scene->source.must_exist = true;
	memset(&scene->config, 0x5a, sizeof(scene->config));
	return scene;
}

static void drop_in(struct scene *scene, const char *name, const char *text)
{
	char path[256];

	snprintf(path, sizeof(path), "%s.d", scene->file);
	mkdir(path, 0700);
	snprintf(path, sizeof(path), "%s.d/%s", scene->file, name);
	write_file(path, text, strlen(text));
}

static void load(struct scene *scene)
{
	size_t size;
	FILE *errors;

	free(scene->errors);
	scene->errors = NULL;
	errors = open_memstream(&scene->errors, &size);
	scene->result = config_load(&scene->config, &scene->source, errors);
	fclose(errors);
}

static void scene_free(struct scene *scene)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -r %s", scene->folder);
	cr_assert(system(command) == 0);
	free(scene->errors);
	free(scene);
}

/* The error text, with the scene's file written as FILE. */
static void expect_errors(struct scene *scene, const char *expected)
{
	char want[4096] = "";
	const char *at;
	size_t used = 0;

	load(scene);
	for (at = expected; *at;) {
		if (!strncmp(at, "FILE", 4)) {
			used += snprintf(want + used, sizeof(want) - used, "%s", scene->file);
			at += 4;
		} else {
			want[used++] = *at++;
			want[used] = '\0';
		}
	}
	cr_expect(eq(int, scene->result, -22));
	cr_expect(eq(str, scene->errors, want));
}

static void expect_error_of(const char *text, const char *expected)
{
	struct scene *scene = scene_new(text);
	struct config before = scene->config;

	expect_errors(scene, expected);
	cr_expect(memcmp(&before, &scene->config, sizeof(before)) == 0,
		  "a refused file changed the configuration");
	scene_free(scene);
}

static struct config config_of(const char *text)
{
	struct scene *scene = scene_new(text);
	struct config config;

	load(scene);
	cr_expect(eq(str, scene->errors, ""));
	cr_expect(eq(int, scene->result, 0));
	config = scene->config;
	scene_free(scene);
	return config;
}

Test(config, empty_file_is_the_built_in_configuration)
{
	struct config config = config_of(""), defaults;

	config_defaults(&defaults);
	cr_expect(memcmp(&config, &defaults, sizeof(config)) == 0);
	cr_expect(eq(u64, defaults.ack_timeout_ms, 1000));
	cr_expect(eq(u64, defaults.grace_ms, 10000));
	cr_expect(eq(u64, defaults.card_grace_ms, 60000));
	cr_expect(eq(str, defaults.group, "hmm"));
}

Test(config, every_key)
{
	struct config config = config_of(
		"# a comment\n"
		"; another\n"
		"\n"
		"[daemon]\n"
		"socket = /run/x.sock\n"
		"  group\t=\tstaff  \n"
		"user = yes\n"
		"log=debug\n"
		"[engine]\n"
		"workers = 64\n"
		"io_uring = no\n"
		"move = no\n"
		"spin = 10ms\n"
		"ack_timeout = 2s\n"
		"grace = 250ms\n"
		"card_grace = 1s\n"
		"[pool]\n"
		"kind = hugetlb\n"
		"size = 3G\n"
		"node = 1\n"
		"evict_high = 90\n"
		"evict_low = 70\n"
		"[limits]\n"
		"connections = 1\n"
		"owners = 2\n"
		"fds = 16\n"
		"requests = 4\n"
		"rings = 16K\n"
		"mirrors = 9\n"
		"memory = 1G\n"
		"pinned = 2M\n"
		"queue = 128K\n"
		"stall = 10ms");

	cr_expect(eq(str, config.socket, "/run/x.sock"));
	cr_expect(eq(str, config.group, "staff"));
	cr_expect(config.user);
	cr_expect(eq(u64, config.log, LOG_LEVEL_DEBUG));
	cr_expect(eq(u64, config.workers, 64));
	cr_expect(not(config.io_uring));
	cr_expect(not(config.move));
	cr_expect(eq(u64, config.spin_us, 10000));
	cr_expect(eq(u64, config.ack_timeout_ms, 2000));
	cr_expect(eq(u64, config.grace_ms, 250));
	cr_expect(eq(u64, config.card_grace_ms, 1000));
	cr_expect(eq(u64, config.pool_kind, HMM_POOL_KIND_HUGETLB));
	cr_expect(eq(u64, config.pool_size, 3ULL << 30));
	cr_expect(eq(u64, config.pool_node, 2));
	cr_expect(eq(u64, config.evict_high, 90));
	cr_expect(eq(u64, config.evict_low, 70));
	cr_expect(eq(u64, config.connections, 1));
	cr_expect(eq(u64, config.owners, 2));
	cr_expect(eq(u64, config.fds, 16));
	cr_expect(eq(u64, config.requests, 4));
	cr_expect(eq(u64, config.rings, 16 << 10));
	cr_expect(eq(u64, config.mirrors, 9));
	cr_expect(eq(u64, config.memory, 1 << 30));
	cr_expect(eq(u64, config.pinned, 2 << 20));
	cr_expect(eq(u64, config.queue, 128 << 10));
	cr_expect(eq(u64, config.stall_ms, 10));
}

Test(config, automatic_words)
{
	struct config config =
		config_of("[engine]\nworkers = auto\n[pool]\nsize = auto\nnode = any\nevict_low = auto\n");

	cr_expect(eq(u64, config.workers, 0));
	cr_expect(eq(u64, config.pool_size, 0));
	cr_expect(eq(u64, config.pool_node, 0));
	cr_expect(eq(u64, config.evict_low, 0));
}

Test(config, placements)
{
	static const char wrong[] = "it must be any, or bind:, preferred: or interleave: with memory nodes, such as bind:1 or interleave:0-1\n";
	static const char *const bad[] = { "bind", "bind:", "1", "any:1", "bind:1,", "bind:,1", "bind:1-", "bind:1-0", "bind:0-64", "bind:1024",
					   "bind:-1", "bind: 1", "binding:1", "bin:1", "", "interleave:0 1", "bind:99999999999999999999" };
	struct config config = config_of("[pool]\nplacement = interleave:0-1,3\n");
	char text[PLACEMENT_TEXT], line[256];

	cr_expect(eq(int, config.pool_placement.mode, HMM_PLACEMENT_INTERLEAVE));
	cr_expect(eq(u64, config.pool_placement.nodes, 0xb));
	cr_expect(eq(str, (char *)placement_print(&config.pool_placement, text, sizeof(text)), "interleave:0-1,3"));
	config = config_of("[pool]\nplacement = bind:1-1\n");
	cr_expect(eq(int, config.pool_placement.node, 1));
	cr_expect(eq(u64, config.pool_placement.nodes, 0));
	config = config_of("[pool]\nplacement = preferred:1023\n");
	cr_expect(eq(int, config.pool_placement.node, 1023));
	cr_expect(eq(str, (char *)placement_print(&config.pool_placement, text, sizeof(text)), "preferred:1023"));
	config = config_of("[pool]\nplacement = any\nnode = 3\n");
	cr_expect(eq(int, config.pool_placement.mode, HMM_PLACEMENT_ANY));
	config.pool_placement = config_placement(&config);
	cr_expect(eq(str, (char *)placement_print(&config.pool_placement, text, sizeof(text)), "bind:3"));
	for (unsigned int i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		char error[512];

		snprintf(line, sizeof(line), "[pool]\nplacement = %s\n", bad[i]);
		snprintf(error, sizeof(error), "FILE:2: 'placement' is '%s'; %s", bad[i], wrong);
		expect_error_of(line, error);
	}
	expect_error_of("[pool]\nplacement = bind:1\nnode = 0\n",
			"node is 0, and placement says where, too: one of them is enough\n");
}

Test(config, marks_the_wrong_way_round)
{
	expect_error_of("[pool]\nevict_high = 60\nevict_low = 61\n",
			"evict_low is 61 and evict_high 60: devices can't be emptied to more than what is too much\n");
	expect_error_of("[pool]\nevict_high = 0\n",
			"FILE:2: 'evict_high' is '0'; it must be a number from 1 to 100\n");
	expect_error_of("[pool]\nevict_low = 101\n",
			"FILE:2: 'evict_low' is '101'; it must be a number from 1 to 100, or auto\n");
	cr_expect(eq(u64, config_of("[pool]\nevict_high = 60\nevict_low = 60\n").evict_low, 60));
}

Test(config, a_section_may_come_twice)
{
	struct config config =
		config_of("[limits]\nfds = 16\n[pool]\nsize = 2M\n[limits]\nowners = 3\n");

	cr_expect(eq(u64, config.fds, 16));
	cr_expect(eq(u64, config.owners, 3));
}

Test(config, pool_of_a_card)
{
	struct config config = config_of("[pool]\nkind = vfio\ncard = 0000:00:04.0\nbar = 2\n");

	cr_expect(eq(u64, config.pool_kind, HMM_POOL_KIND_VFIO));
	cr_expect(eq(str, config.pool_card, "0000:00:04.0"));
	cr_expect(eq(u64, config.pool_bar, 2));
	expect_error_of("[pool]\nkind = vfio\n", "kind is vfio: card has to say whose BAR is the pool\n");
	expect_error_of("[pool]\ncard = 0000:00:04.0\n", "card says whose BAR is the pool: it goes with kind = vfio\n");
	expect_error_of("[pool]\nkind = vfio\ncard = 4.0\n",
			"card is '4.0', which is no PCI address: it looks like 0000:00:04.0\n");
	expect_error_of("[pool]\nkind = vfio\ncard = 0000:00:04.0\nbar = 6\n",
			"FILE:4: 'bar' is '6'; it must be a number from 0 to 5\n");
	expect_error_of("[pool]\nkind = vfio\ncard = 0000:00:04.0\nnode = 0\n",
			"kind is vfio: a card's memory is on no memory node, so node and placement say nothing\n");
	expect_error_of("[pool]\nkind = vfio\ncard = 0000:00:04.0\nreserve = yes\n",
			"kind is vfio: a card's memory is there, and nothing of it is to be reserved\n");
}

Test(config, pool_that_is_reserved)
{
	struct config config = config_of("[pool]\nreserve = yes\n"), plain = config_of("");
	char names[64];

	cr_expect(config.pool_reserve);
	cr_expect(not(plain.pool_reserve));
	cr_expect(eq(uint, config_frozen_changes(&plain, &config, names, sizeof(names)), 1));
	cr_expect(eq(str, (char *)names, "pool.reserve"));
	expect_error_of("[pool]\nreserve = 1G\n", "FILE:2: 'reserve' is '1G'; it must be yes or no\n");
}

Test(config, unknown_key)
{
	expect_error_of("[pool]\nsize = 1G\nsise = 2G\n",
			"FILE:3: unknown key 'sise' in [pool]; known are: kind, size, node, placement, card, bar, reserve, evict_high, evict_low\n");
}

Test(config, key_of_another_section)
{
	expect_error_of(
		"[engine]\nsize = 1G\n",
		"FILE:2: unknown key 'size' in [engine]; known are: workers, io_uring, move, spin, "
		"ack_timeout, grace, card_grace, tracking\n");
}

Test(config, unknown_section_is_said_once)
{
	expect_error_of(
		"[pools]\nsize = 1G\nkind = memfd\n",
		"FILE:1: unknown section [pools]; known are: daemon, engine, pool, limits\n");
}

Test(config, key_before_any_section)
{
	expect_error_of(
		"size = 1G\n",
		"FILE:1: 'size' stands before any [section]; sections are: daemon, engine, pool, limits\n");
}

Test(config, line_without_meaning)
{
	expect_error_of("[pool]\nsize\n",
			"FILE:2: 'size' is neither 'key = value', [section] nor a # comment\n");
	expect_error_of("[pool]\n= 4G\n",
			"FILE:2: '= 4G' is neither 'key = value', [section] nor a # comment\n");
}

Test(config, broken_section)
{
	expect_error_of("[pool\nsize = 1G\n", "FILE:1: '[pool' is not a [section]\n");
	expect_error_of("[pool] x\n", "FILE:1: '[pool] x' is not a [section]\n");
}

Test(config, duplicate_in_one_file)
{
	expect_error_of("[pool]\nsize = 1G\n\n[pool]\nsize = 2G\n",
			"FILE:5: 'size' was set before, in line 2\n");
}

Test(config, bad_numbers)
{
	static const char *const bad[] = {
		"0", "65", "-1", "+4", "4x", "", "0x10", "4.0", "99999999999999999999", "4 4"};
	char text[128], want[256];
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		snprintf(text, sizeof(text), "[engine]\nworkers = %s\n", bad[i]);
		snprintf(want, sizeof(want),
			 "FILE:2: 'workers' is '%s'; it must be a number from 1 to 64, or auto\n",
			 bad[i]);
		expect_error_of(text, want);
	}
}

Test(config, bad_sizes)
{
	static const char *const bad[] = {"1M",
					  "65T",
					  "4g",
					  "4GB",
					  "G",
					  "4097K1",
					  "2097153",
					  "-1G",
					  "18446744073709551616",
					  "18014398509481984T",
					  "auto "
					  "x"};
	char text[128], want[256];
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		snprintf(text, sizeof(text), "[pool]\nsize = %s\n", bad[i]);
		snprintf(want, sizeof(want),
			 "FILE:2: 'size' is '%s'; it must be a size from 2M to 64T in pages of 4K, "
			 "such as 512M or 4G, or auto\n",
			 bad[i]);
		expect_error_of(text, want);
	}
}

Test(config, bad_times)
{
	static const char *const bad[] = {"1000", "1m",	  "ms",	   "0ms",
					  "601s", "1.5s", "500us", "1 s"};
	char text[128], want[256];
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		snprintf(text, sizeof(text), "[engine]\nack_timeout = %s\n", bad[i]);
		snprintf(
			want, sizeof(want),
			"FILE:2: 'ack_timeout' is '%s'; it must be a time from 1ms to 600s with its "
			"unit, ms or s\n",
			bad[i]);
		expect_error_of(text, want);
	}
	expect_error_of(
		"[engine]\nspin = 11ms\n",
		"FILE:2: 'spin' is '11ms'; it must be a time from 0ms to 10ms with its unit, us, ms or s\n");
}

Test(config, bad_words)
{
	expect_error_of("[daemon]\nlog = verbose\n",
			"FILE:2: 'log' is 'verbose'; it must be error, warning, info or debug\n");
	expect_error_of("[pool]\nkind = shm\n",
			"FILE:2: 'kind' is 'shm'; it must be memfd, memfd-huge, hugetlb, dax or vfio\n");
	expect_error_of("[daemon]\nuser = true\n",
			"FILE:2: 'user' is 'true'; it must be yes or no\n");
	expect_error_of(
		"[pool]\nnode = first\n",
		"FILE:2: 'node' is 'first'; it must be any or a memory node's number from 0 to 1023\n");
}

Test(config, socket_too_long)
{
	char text[300], path[120], want[400];

	memset(path, 'a', sizeof(path));
	path[0] = '/';
	path[107] = '\0';
	snprintf(text, sizeof(text), "[daemon]\nsocket = %s\n", path);
	cr_expect(eq(str, config_of(text).socket, path));

	path[107] = 'a';
	path[108] = '\0';
	snprintf(text, sizeof(text), "[daemon]\nsocket = %s\n", path);
	snprintf(want, sizeof(want),
		 "FILE:2: 'socket' is '%s'; it must be a plain text of at most 107 bytes\n", path);
	expect_error_of(text, want);
}

Test(config, windows_line_ends)
{
	expect_error_of("[pool]\nkind = memfd\r\n",
			"FILE:2: 'kind' is 'memfd\r'; it must be memfd, memfd-huge, hugetlb, dax or vfio\n");
}

Test(config, zero_byte)
{
	struct scene *scene = scene_new(NULL);

	write_file(scene->file, "[pool]\nki\0nd = memfd\n", 20);
	expect_errors(scene, "FILE:2: holds a zero byte; this is no text file\n");
	scene_free(scene);
}

Test(config, all_errors_at_once)
{
	expect_error_of(
		"[pool]\nsize = 1\nsise = 2\n[limits]\nfds = x\n",
		"FILE:2: 'size' is '1'; it must be a size from 2M to 64T in pages of 4K, such as 512M or 4G, or auto\n"
		"FILE:3: unknown key 'sise' in [pool]; known are: kind, size, node, placement, card, bar, reserve, evict_high, evict_low\n"
		"FILE:5: 'fds' is 'x'; it must be a number from 16 to 1048576\n");
}

Test(config, file_that_cannot_be_read)
{
	struct scene *scene = scene_new(NULL);

	expect_errors(scene, "FILE: cannot be read: No such file or directory\n");
	scene->source.must_exist = false;
	load(scene);
	cr_expect(eq(int, scene->result, 0));

	/* Present but unfit, it is an error whoever named it. */
	cr_assert(mkdir(scene->file, 0700) == 0);
	expect_errors(scene, "FILE: cannot be read: Is a directory\n");
	rmdir(scene->file);
	cr_assert(mkfifo(scene->file, 0600) == 0);
	expect_errors(scene, "FILE: cannot be read: Invalid argument\n");
	scene_free(scene);
}

Test(config, drop_ins_in_order_of_name)
{
	struct scene *scene = scene_new("[limits]\nowners = 1\nfds = 100\nconnections = 7\n");

	drop_in(scene, "20-b.conf", "[limits]\nowners = 3\n");
	drop_in(scene, "10-a.conf", "[limits]\nowners = 2\nfds = 200\n");
	drop_in(scene, "30-c.conf.bak", "[limits]\nowners = 4\n");
	drop_in(scene, ".40-d.conf", "[limits]\nowners = 5\n");
	load(scene);
	cr_expect(eq(int, scene->result, 0));
	cr_expect(eq(u64, scene->config.owners, 3));
	cr_expect(eq(u64, scene->config.fds, 200));
	cr_expect(eq(u64, scene->config.connections, 7));

	drop_in(scene, "15-x.conf", "[limits]\nowner = 2\n");
	expect_errors(
		scene,
		"FILE.d/15-x.conf:2: unknown key 'owner' in [limits]; known are: connections, owners, fds, "
		"requests, rings, mirrors, memory, pinned, queue, stall\n");
	scene_free(scene);
}

Test(config, drop_ins_without_the_file)
{
	struct scene *scene = scene_new(NULL);

	scene->source.must_exist = false;
	drop_in(scene, "a.conf", "[limits]\nowners = 9\n");
	load(scene);
	cr_expect(eq(int, scene->result, 0));
	cr_expect(eq(u64, scene->config.owners, 9));
	scene_free(scene);
}

Test(config, command_line_is_last)
{
	static const struct config_override overrides[] = {
		{ "pool", "size", "8M", "--pool-size" },
		{ "pool", "size", "16M", "--pool-size" },
	};
	static const struct config_override bad[] = { { "pool", "size", "12X", "--pool-size" } };
	struct scene *scene = scene_new("[pool]\nsize = 4M\n");

	scene->source.overrides = overrides;
	scene->source.n_overrides = 2;
	load(scene);
	cr_expect(eq(int, scene->result, 0));
	cr_expect(eq(u64, scene->config.pool_size, 16 << 20));

	scene->source.overrides = bad;
	scene->source.n_overrides = 1;
	expect_errors(
		scene,
		"--pool-size: 'size' must be a size from 2M to 64T in pages of 4K, such as 512M or 4G, or auto, "
		"not '12X'\n");
	scene_free(scene);
}

Test(config, what_a_reload_cannot_change)
{
	struct config old = config_of(""),
		      new = config_of(
			      "[pool]\nsize = 4G\n[engine]\nmove = no\n[limits]\nfds = 99\n");
	char names[128];

	cr_expect(eq(u32, config_frozen_changes(&old, &new, names, sizeof(names)), 2));
	cr_expect(eq(str, names, "engine.move, pool.size"));
	config_keep_frozen(&new, &old);
	cr_expect(eq(u64, new.pool_size, old.pool_size));
	cr_expect(new.move);
	cr_expect(eq(u64, new.fds, 99));
	cr_expect(eq(u32, config_frozen_changes(&old, &new, names, sizeof(names)), 0));
}
