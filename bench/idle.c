// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * idle.c - how often hmmd and its clients' library threads run while nobody
 * asks for anything.
 *
 * A hundred processes open hmmd, mirror themselves and send 2 MiB to the
 * device. Then the context switches of hmmd's threads and of all library
 * threads in the clients are counted over --seconds.
 */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/rig/rig.h"

#define CLIENTS 100

static void client(int socket, const void *data)
{
	struct mirrored mirrored;
	char *memory = memory_new(BLOCK, false);

	(void)data;
	mirrored_open(&mirrored, BLOCK);
	move_all(&mirrored, memory, BLOCK, HMM_DEVICE);
	word_send(socket, 0, -1);
	word_wait(socket, NULL);
	mirrored_close(&mirrored);
	exit(EXIT_SUCCESS);
}

static unsigned long switches_of(pid_t pid, const char *thread)
{
	unsigned long sum = 0, n;
	char path[320], line[256];
	FILE *status;

	snprintf(path, sizeof(path), "/proc/%d/task/%s/status", pid, thread);
	status = fopen(path, "re");
	if (!status)
		return 0;
	while (fgets(line, sizeof(line), status))
		if (sscanf(line, "voluntary_ctxt_switches: %lu", &n) == 1 ||
		    sscanf(line, "nonvoluntary_ctxt_switches: %lu", &n) == 1)
			sum += n;
	fclose(status);
	return sum;
}

/* All threads; of a client all but the program's own. */
static unsigned long switches(pid_t pid, bool library_only, unsigned int *threads)
{
	unsigned long sum = 0;
	struct dirent *entry;
	char path[64];
	DIR *folder;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	folder = opendir(path);
	if (!folder)
		fail("%s: %s", path, strerror(errno));
	while ((entry = readdir(folder))) {
		if (entry->d_name[0] == '.' || (library_only && atoi(entry->d_name) == pid))
			continue;
		sum += switches_of(pid, entry->d_name);
		++*threads;
	}
	closedir(folder);
	return sum;
}

struct count {
	unsigned long hmmd, agents;
	unsigned int threads;
};

static struct count count_all(pid_t hmmd, const pid_t *pids)
{
	struct count count = { 0 };

	count.hmmd = switches(hmmd, false, &count.threads);
	for (int i = 0; i < CLIENTS; i++)
		count.agents += switches(pids[i], true, &count.threads);
	return count;
}

int main(int argc, char **argv)
{
	struct figures figures = { .row = "idle", .unit = "switches" };
	struct arguments arguments;
	struct count before, after;
	int sockets[CLIENTS];
	pid_t pids[CLIENTS];
	char note[256];

	arguments_read(&arguments, argc, argv);
	if (!arguments.hmmd)
		fail("--hmmd PID is needed");
	for (int i = 0; i < CLIENTS; i++) {
		pids[i] = process_start(client, NULL, &sockets[i]);
		word_wait(sockets[i], NULL);
	}
	sleep(2);
	before = count_all(arguments.hmmd, pids);
	sleep(arguments.seconds);
	after = count_all(arguments.hmmd, pids);
	for (int i = 0; i < CLIENTS; i++)
		word_send(sockets[i], 0, -1);
	while (wait(NULL) > 0)
		continue;
	figures_add(&figures, (double)(after.hmmd - before.hmmd + after.agents - before.agents), 0);
	snprintf(note, sizeof(note), "\"clients\": %d, \"threads\": %u, \"seconds\": %u, \"hmmd\": %lu, \"libraries\": %lu",
		 CLIENTS, after.threads, arguments.seconds, after.hmmd - before.hmmd, after.agents - before.agents);
	figures_print(&figures, note);
	return 0;
}
