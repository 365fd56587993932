// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * serving.c - hmmd in a thread of the fuzzer.
 *
 * Happy path: the first input starts it. Its socket lies in a folder of its own, which strangers remove when the
 * process ends, however it does; hmmd itself is not ended in order, as it never is when somebody kills it. What is left of strangers
 * is looked at through hmmd's own answers, and through /proc/self/fd.
 *
 * Short times: a driver that does not answer costs 20 ms. Threads: whoever fuzzes, and hmmd's.
 */
#include "serving.h"

#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "daemon/control/passed.h"
#include "daemon/control/server.h"
#include "daemon/log.h"
#include "frame.h"
#include "stranger.h"

#define LEFT_S 60

static char folder[] = "/tmp/hmm-fuzz-XXXXXX";
static struct sockaddr_un address = { .sun_family = AF_UNIX };
static pid_t self;
static int look = -1;
static unsigned int fds_at_start;

static void give_up(const char *what)
{
	fprintf(stderr, "fuzz: %s\n", what);
	_exit(1);
}

static void finish(void)
{
	if (getpid() == self)
		strangers_finish();
}

static void *serve(void *data)
{
	server_run(data);
	return NULL;
}

static void start(void)
{
	struct passed nothing = { 0 };
	struct server_options options = { .version = "fuzz", .ready_fd = -1, .passed = &nothing };
	struct server *server = NULL;
	pthread_t thread;

	config_defaults(&options.config);
	snprintf(options.config.socket, sizeof(options.config.socket), "%s", address.sun_path);
	options.config.group[0] = '\0';
	options.config.workers = 1;
	options.config.ack_timeout_ms = 20;
	options.config.pool_kind = HMM_POOL_KIND_MEMFD;
	options.config.pool_size = 64 << 20;
	options.config.log = LOG_LEVEL_ERROR;
	if (getenv("HMM_FUZZ_LOG"))
		options.config.log = LOG_LEVEL_DEBUG;
	if (log_init((enum log_level)options.config.log) || server_new(&options, &server))
		give_up("hmmd does not start");
	/* Everybody: strangers of any uid are what this is about. */
	if (chmod(address.sun_path, 0666) < 0)
		give_up("chmod of the socket");
	if (pthread_create(&thread, NULL, serve, server))
		give_up("no thread for hmmd");
	pthread_detach(thread);
}

static unsigned int count_fds(void)
{
	DIR *listing = opendir("/proc/self/fd");
	unsigned int count = 0;

	if (!listing)
		give_up("/proc/self/fd cannot be read");
	while (readdir(listing))
		count++;
	closedir(listing);
	return count;
}

static void print_fds(void)
{
	DIR *listing = opendir("/proc/self/fd");
	struct dirent *entry;
	char target[128];
	ssize_t n;

	while (listing && (entry = readdir(listing))) {
		n = readlinkat(dirfd(listing), entry->d_name, target, sizeof(target) - 1);
		if (n > 0)
			fprintf(stderr, "fuzz: %s: %.*s\n", entry->d_name, (int)n, target);
	}
	if (listing)
		closedir(listing);
}

/* A request of the looking connection. Returns its answer, valid until the next. */
static const void *ask(void *message)
{
	static struct hmm_frame answer;
	static uint32_t serial;
	struct hmm_wire_header *header = message;

	header->serial = ++serial;
	if (hmm_frame_send(look, header, NULL, 0) || hmm_frame_recv(look, &answer, 0) <= 0 ||
	    answer.header.serial != serial || answer.header.opcode == HMM_OP_ERROR) {
		fprintf(stderr, "fuzz: hmmd does not answer whoever looks\n");
		abort();
	}
	return answer.data;
}

void serving_begin(void)
{
	struct hmm_msg_hello hello;

	if (look >= 0)
		return;
	self = getpid();
	if (!mkdtemp(folder))
		give_up("no folder for the socket");
	chmod(folder, 0711);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/hmmd.sock", folder);
	atexit(finish);
	signal(SIGPIPE, SIG_IGN);
	hmm_frame_debug_init("fuzz");
	strangers_begin(folder);
	start();
	look = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (look < 0 || connect(look, (struct sockaddr *)&address, sizeof(address)) < 0)
		give_up("hmmd does not serve");
	HMM_MSG_INIT(hello, HMM_OP_HELLO, 1);
	hello.version_min = hello.version_max = HMM_PROTOCOL_VERSION;
	hello.role = HMM_ROLE_TOOL;
	HMM_MSG_TEXT(hello.name, "fuzz");
	ask(&hello);
}

int serving_look(void)
{
	return look;
}

/* Charged is the looking connection: itself, its socket and its pidfd. */
static bool is_charged_for(char *what, size_t room)
{
	const struct hmm_msg_usage_reply *usage;
	struct hmm_msg_usage message;

	HMM_MSG_INIT(message, HMM_OP_USAGE, 0);
	usage = ask(&message);
	for (uint32_t i = 0; i < usage->count; i++) {
		uint64_t own = !strcmp(usage->items[i].name, "connections") ? 1 :
			       !strcmp(usage->items[i].name, "fds")	   ? 2 :
									     0;

		if (usage->items[i].used == (usage->items[i].uid == geteuid() ? own : 0))
			continue;
		snprintf(what, room, "uid %u is charged for %llu %s", usage->items[i].uid,
			 (unsigned long long)usage->items[i].used, usage->items[i].name);
		return true;
	}
	return false;
}

static bool is_nothing_left(char *what, size_t room)
{
	const struct hmm_msg_status_reply *status;
	struct hmm_msg_status message;
	unsigned int fds;

	HMM_MSG_INIT(message, HMM_OP_STATUS, 0);
	status = ask(&message);
	snprintf(what, room, "%u clients, %u owners, %u mirrors, %u devices, %u windows, %llu bytes",
		 status->clients, status->owners, status->mirrors, status->devices, status->windows,
		 (unsigned long long)status->pool_used);
	if (status->clients != 1 || status->owners || status->mirrors || status->devices || status->windows ||
	    status->pool_used || is_charged_for(what, room))
		return false;
	fds = count_fds();
	snprintf(what, room, "%u descriptors, and %u at the start", fds, fds_at_start);
	/* What hmmd opens on first use it has from the first input on. */
	if (!fds_at_start)
		fds_at_start = fds;
	return fds <= fds_at_start;
}

void serving_expect_nothing_left(void)
{
	const struct timespec moment = { .tv_nsec = 500000 };
	struct timespec now, end;
	char what[160];

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += LEFT_S;
	while (!is_nothing_left(what, sizeof(what))) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec > end.tv_sec) {
			fprintf(stderr, "fuzz: hmmd keeps what it had of peers that are gone: %s\n", what);
			print_fds();
			abort();
		}
		nanosleep(&moment, NULL);
	}
}
