// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * footprint.c - what hmmd holds for each GiB that is mirrored and on the device.
 *
 * Looks at hmmd (--hmmd PID, needs the right to read its /proc files) before
 * and after this program's memory has gone: anonymous memory, page tables, and
 * the memfds that hold tables and ledgers (shadows are the device itself). The
 * floor is the memory that went, the figure a percentage of it.
 */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/rig/rig.h"

struct holding {
	double anonymous, page_tables, memfds;	/* bytes */
};

static double proc_field(pid_t pid, const char *file, const char *field)
{
	char path[64], line[256];
	double kib = -1;
	FILE *stream;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	stream = fopen(path, "re");
	if (!stream)
		fail("%s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), stream))
		if (!strncmp(line, field, strlen(field)))
			kib = atof(line + strlen(field));
	fclose(stream);
	if (kib < 0)
		fail("%s has no %s", path, field);
	return kib * 1024;
}

static bool is_bookkeeping(const char *target)
{
	return !strncmp(target, "/memfd:", 7) && strncmp(target, "/memfd:hmm-shadow", 17);
}

static double memfds(pid_t pid)
{
	char path[64], link[400], target[256];
	struct dirent *entry;
	double bytes = 0;
	struct stat st;
	DIR *folder;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	folder = opendir(path);
	if (!folder)
		fail("%s: %s", path, strerror(errno));
	while ((entry = readdir(folder))) {
		ssize_t n;

		snprintf(link, sizeof(link), "%s/%s", path, entry->d_name);
		n = readlink(link, target, sizeof(target) - 1);
		if (n <= 0)
			continue;
		target[n] = '\0';
		if (is_bookkeeping(target) && stat(link, &st) == 0)
			bytes += (double)st.st_blocks * 512;
	}
	closedir(folder);
	return bytes;
}

static struct holding look(pid_t pid)
{
	return (struct holding){
		.anonymous = proc_field(pid, "smaps_rollup", "Anonymous:"),
		.page_tables = proc_field(pid, "status", "VmPTE:"),
		.memfds = memfds(pid),
	};
}

int main(int argc, char **argv)
{
	struct figures figures = { .unit = "%" };
	struct arguments arguments;
	struct holding before, after;
	struct mirrored mirrored;
	char *memory, note[256];
	double bytes;

	arguments_read(&arguments, argc, argv);
	if (!arguments.hmmd)
		fail("--hmmd PID is needed");
	bytes = (double)arguments.bytes;
	memory = memory_new(arguments.bytes, arguments.huge);
	before = look(arguments.hmmd);
	mirrored_open(&mirrored, arguments.bytes);
	move_all(&mirrored, memory, arguments.bytes, HMM_DEVICE);
	after = look(arguments.hmmd);
	mirrored_close(&mirrored);
	figures_add(&figures, ((after.anonymous - before.anonymous) +
			       (after.page_tables - before.page_tables) +
			       (after.memfds - before.memfds)) * 100 / bytes, 100);
	figures.row = arguments.huge ? "footprint-huge" : "footprint-4k";
	snprintf(note, sizeof(note),
		 "\"MiB\": %zu, \"anonymous_KiB\": %.0f, \"page_tables_KiB\": %.0f, \"tables_and_ledger_KiB\": %.0f",
		 arguments.bytes / MIB, (after.anonymous - before.anonymous) / 1024,
		 (after.page_tables - before.page_tables) / 1024, (after.memfds - before.memfds) / 1024);
	figures_print(&figures, note);
	return 0;
}
