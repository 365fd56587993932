/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libclient_script.c - see libclient_script.h.
 */
#define _GNU_SOURCE
#include "libclient_script.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "frame.h"
#include "hmm_protocol.h"
#include "proto/layout.h"
#include "proto/uapi.h"

struct script *script;
char script_path[96];
static char directory[64];
static pid_t peer;

/* ---- the peer ---------------------------------------------------------------- */

#define INCARNATION 1

static int memfd(uint64_t size)
{
	int fd = memfd_create("peer", MFD_CLOEXEC);

	return ftruncate(fd, (off_t)size) ? -1 : fd;
}

static void *answer(struct hmm_frame *frame, size_t size)
{
	return hmm_wire_init(calloc(1, size), frame->header.opcode | 0x8000, size,
			     frame->header.serial);
}

static void send_error(int fd, struct hmm_frame *frame, int error, const char *text)
{
	struct hmm_msg_error message;

	hmm_wire_error(&message, frame->header.serial, error, "%s", text);
	hmm_frame_send(fd, &message, NULL, 0);
}

static void invalidate(int fd, struct hmm_frame *frame)
{
	struct hmm_msg_invalidate event;
	struct hmm_frame *ack = calloc(1, sizeof(*ack));

	HMM_MSG_INIT(event, HMM_OP_INVALIDATE, 0);
	event.mirror = ((struct hmm_msg_device_read *)(void *)frame->data)->mirror;
	event.reason = HMM_REASON_CPU_WRITE;
	event.start = 0x10000;
	event.end = 0x12000;
	event.cookie = 77;
	hmm_frame_send(fd, &event, NULL, 0);
	hmm_frame_init(ack);
	if (hmm_frame_recv(fd, ack, 0) > 0 && ack->header.opcode == HMM_OP_ACK) {
		script->ack_cookie = ((struct hmm_msg_ack *)(void *)ack->data)->cookie;
		script->ack_status = ((struct hmm_msg_ack *)(void *)ack->data)->status;
	}
	free(ack);
}

static void send_region(int fd, const struct hmm_msg_window_map *asked)
{
	struct hmm_msg_region event;
	int shadow = memfd(asked->length);

	HMM_MSG_INIT(event, HMM_OP_REGION, 0);
	event.owner = 3;
	event.mirror = asked->mirror;
	event.window = 9;
	event.base = asked->addr;
	event.length = asked->length;
	event.kind = HMM_POOL_KIND_MEMFD;
	hmm_frame_send(fd, &event, &shadow, 1);
	close(shadow);
}

/* Of an owner: what a hmmd makes for it. */
static void make_shared(int *fds)
{
	struct hmm_ledger_block record = { .page[7] = HMM_PAGE_DEVICE | HMM_PAGE_COMPLETE };
	struct hmm_orders orders = { .magic = HMM_ORDERS_MAGIC, .version = HMM_ORDERS_VERSION,
				     .incarnation = script->holds ? INCARNATION : 0 };

	fds[0] = memfd(HMM_TABLE_SIZE);
	fds[1] = memfd(HMM_LEDGER_SIZE);
	fds[2] = memfd(HMM_ORDERS_SIZE);
	fds[3] = memfd(sizeof(struct hmm_pulse));
	fds[4] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pwrite(fds[2], &orders, offsetof(struct hmm_orders, ring), 0);
	if (script->away)
		pwrite(fds[1], &record, sizeof(record), (off_t)((script->away >> HMM_BLOCK_SHIFT) * sizeof(record)));
}

static bool ends_here(int fd, uint16_t opcode)
{
	struct hmm_msg_shutdown event;

	if (script->connections >= CONNECTIONS || script->ends[script->connections].at != opcode)
		return false;
	if (script->ends[script->connections].goodbye) {
		HMM_MSG_INIT(event, HMM_OP_SHUTDOWN, 0);
		hmm_frame_send(fd, &event, NULL, 0);
	}
	return true;
}

/* Return: false when the connection is to end. */
static bool serve(int fd, struct hmm_frame *frame)
{
	int fds[5] = { -1, -1, -1, -1, -1 };
	unsigned int nfds = 0;
	void *reply = NULL;
	bool going = true;

	if (frame->header.opcode != HMM_OP_MIRROR_READY)
		script->note[script->notes++ % NOTES] = frame->header.opcode;
	if (ends_here(fd, frame->header.opcode))
		return false;
	if (script->garbage) {
		uint32_t junk[8] = { sizeof(junk), 0x7777, 0, 9 };

		hmm_frame_send(fd, junk, NULL, 0);
	}
	switch (frame->header.opcode) {
	case HMM_OP_HELLO: {
		struct hmm_msg_hello_reply *hello;

		if (script->hello_error) {
			send_error(fd, frame, script->hello_error, "no such version");
			return true;
		}
		hello = reply = answer(frame, sizeof(*hello));
		hello->version = HMM_PROTOCOL_VERSION;
		hello->incarnation = INCARNATION;
		hello->grace_ms = script->grace_ms;
		break;
	}
	case HMM_OP_OPEN:
		reply = answer(frame, sizeof(struct hmm_msg_open_reply));
		make_shared(fds);
		nfds = 5;
		break;
	case HMM_OP_EXCLUDE:
		reply = answer(frame, sizeof(struct hmm_msg_exclude_reply));
		break;
	case HMM_OP_EXPORT:
		reply = answer(frame, sizeof(struct hmm_msg_export_reply));
		break;
	case HMM_OP_OPEN_PEER: {
		struct hmm_msg_open_peer_reply *opened;

		if (script->connections > 1 && script->mute)
			return true;
		if (script->connections > 1 && script->open_error) {
			send_error(fd, frame, script->open_error, "its owner is not here");
			return true;
		}
		opened = reply = answer(frame, sizeof(*opened));
		opened->owner = 3;
		opened->pid = 1;
		fds[0] = memfd(HMM_TABLE_SIZE);
		fds[1] = memfd(sizeof(struct hmm_pulse));
		nfds = 2;
		break;
	}
	case HMM_OP_DEVICE_NEW: {
		struct hmm_msg_device_new_reply *device = reply = answer(frame, sizeof(*device));

		device->device = 5;
		device->size = 1 << 20;
		break;
	}
	case HMM_OP_MIRROR_REGISTER: {
		struct hmm_msg_mirror_register_reply *registered;

		if (script->register_error) {
			send_error(fd, frame, script->register_error, "no mirror");
			return true;
		}
		registered = reply = answer(frame, sizeof(*registered));
		/* Another one after each restart. */
		registered->mirror = script->mirror = 0x300 + script->notes % 100;
		break;
	}
	case HMM_OP_DEVICE_READ: {
		const struct hmm_msg_device_read *asked = (void *)frame->data;
		struct hmm_msg_device_read_reply *data;

		script->reads++;
		script->strange_reads += asked->mirror != script->mirror;
		if ((int)script->reads == script->die_at_read)
			return false;
		if (script->busy_reads && script->busy_reads--) {
			send_error(fd, frame, -EAGAIN, "settling");
			return true;
		}
		if (asked->addr == 0xbad000) {
			send_error(fd, frame, -EFAULT, "nothing is mapped at 0xbad000");
			return true;
		}
		if (script->invalidate)
			invalidate(fd, frame);
		data = reply = answer(frame, sizeof(*data) + asked->length);
		data->count = asked->length;
		memset(data->data, 0x5a, asked->length);
		break;
	}
	case HMM_OP_MIGRATE: {
		const struct hmm_msg_migrate *asked = (void *)frame->data;
		uint32_t pages = (uint32_t)(asked->length >> HMM_PAGE_SHIFT);
		struct hmm_msg_migrate_reply *result;

		script->migrates++;
		while (*(volatile bool *)&script->hold_migrates)
			usleep(1000);
		if ((int)script->migrates == script->die_at_migrate)
			return false;
		if (script->busy_migrates && script->busy_migrates--) {
			send_error(fd, frame, -EAGAIN, "settling");
			return !script->die_when_busy;
		}
		if ((int)script->migrates == script->fail_migrate) {
			send_error(fd, frame, -ENOMEM, "no memory in hmmd");
			return true;
		}
		result = reply = answer(frame, sizeof(*result) + pages);

		result->pages = pages;
		result->moved = pages - 1;
		result->failed = 1;
		result->count = pages;
		result->results[0] = HMM_PAGE_RESULT_PINNED;
		break;
	}
	case HMM_OP_NOTICES_OPEN: {
		const struct hmm_msg_notices_open *asked = (void *)frame->data;
		struct hmm_msg_notices_open_reply *ring = reply = answer(frame, sizeof(*ring));

		ring->notices = ++script->rings;
		ring->entries = asked->entries ? asked->entries : HMM_NOTICES_MIN;
		fds[0] = memfd(HMM_NOTICES_SIZE(ring->entries));
		fds[1] = memfd(sizeof(struct hmm_notices_reader));
		nfds = 2;
		break;
	}
	case HMM_OP_NOTICES_CLOSE:
		while (script->die_at_close && !__atomic_load_n(&script->program_waits, __ATOMIC_ACQUIRE))
			usleep(1000);
		script->rings--;
		going = !script->die_at_close;
		script->die_at_close = false;
		reply = answer(frame, sizeof(struct hmm_msg_notices_close_reply));
		break;
	case HMM_OP_WINDOW_MAP: {
		const struct hmm_msg_window_map *asked = (void *)frame->data;
		struct hmm_msg_window_map_reply *window = reply = answer(frame, sizeof(*window));

		send_region(fd, asked);
		window->window = 9;
		window->regions = 1;
		break;
	}
	case HMM_OP_PROTECT:
		script->protects++;
		if (script->short_protects && script->short_protects--) {
			send_error(fd, frame, script->short_error, "no memory in hmmd");
			return true;
		}
		reply = answer(frame, sizeof(struct hmm_msg_protect_reply));
		break;
	case HMM_OP_WINDOW_ARMED:
		reply = answer(frame, sizeof(struct hmm_msg_window_armed_reply));
		break;
	case HMM_OP_WINDOW_UNMAP:
		reply = answer(frame, sizeof(struct hmm_msg_window_unmap_reply));
		break;
	case HMM_OP_DEVICE_PUT:
		reply = answer(frame, sizeof(struct hmm_msg_device_put_reply));
		break;
	case HMM_OP_MIRROR_READY:
		script->ready++;
		reply = answer(frame, sizeof(struct hmm_msg_mirror_ready_reply));
		break;
	case HMM_OP_MIRROR_UNREGISTER:
		reply = answer(frame, sizeof(struct hmm_msg_mirror_unregister_reply));
		break;
	default:
		send_error(fd, frame, -EOPNOTSUPP, "the peer of this test does not know that");
		return true;
	}
	hmm_frame_send(fd, reply, fds, nfds);
	for (unsigned int i = 0; i < nfds; i++)
		close(fds[i]);
	free(reply);
	return going;
}

static void peer_main(int listener)
{
	struct hmm_frame *frame = calloc(1, sizeof(*frame));
	int fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	hmm_frame_init(frame);
	while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		bool going = true;

		script->rings = 0;
		script->connections++;
		while (going && hmm_frame_recv(fd, frame, 0) > 0)
			going = serve(fd, frame);
		hmm_frame_close(frame);
		close(fd);
		if (!going && script->vanish)
			break;
	}
	_exit(0);
}

void script_begin(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int listener;

	strcpy(directory, "/tmp/hmm-script-XXXXXX");
	cr_assert_not_null(mkdtemp(directory));
	snprintf(script_path, sizeof(script_path), "%s/socket", directory);
	script = mmap(NULL, sizeof(*script), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	script->grace_ms = 60000;
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	strcpy(address.sun_path, script_path);
	cr_assert_eq(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	cr_assert_eq(listen(listener, 4), 0);
	fflush(NULL);
	peer = fork();
	if (peer == 0)
		peer_main(listener);
	close(listener);
}

void script_kill(void)
{
	kill(peer, SIGKILL);
}

void script_end(void)
{
	script_kill();
	waitpid(peer, NULL, 0);
	unlink(script_path);
	rmdir(directory);
	munmap(script, sizeof(*script));
}

/* ---- a driver -------------------------------------------------------------------- */

struct hmm *hmm;
struct hmm_mirror mirror;
int updates, unregistered;
_Atomic int let_go_of_all;
static struct hmm_device *device;

static int let_go(struct hmm_mirror *of, const struct hmm_update *update)
{
	cr_assert_eq(of, &mirror);
	if (update->end == HMM_VA_END) {
		cr_assert_eq(update->start, 0);
		let_go_of_all++;
		return 0;
	}
	cr_assert_eq(update->start, 0x10000);
	cr_assert_eq(update->end, 0x12000);
	cr_assert_eq(update->reason, HMM_REASON_CPU_WRITE);
	unregistered = hmm_mirror_unregister(of);
	updates++;
	return -EAGAIN;
}

const struct hmm_mirror_ops ops = { .size = sizeof(ops),
				    .sync_cpu_device_pagetables = let_go };

static bool others_sleep(void)
{
	DIR *tasks = opendir("/proc/self/task");
	char path[sizeof("/proc/self/task/") + NAME_MAX + sizeof("/stat")];
	struct dirent *entry;
	bool asleep = true;
	char state;

	cr_assert_not_null(tasks);
	while ((entry = readdir(tasks))) {
		FILE *stat;

		if (entry->d_name[0] == '.' || strtol(entry->d_name, NULL, 10) == gettid())
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%s/stat", entry->d_name);
		stat = fopen(path, "re");
		/* One that has just ended is gone by the next look. */
		asleep &= stat && fscanf(stat, "%*d (%*[^)]) %c", &state) == 1 && state == 'S';
		if (stat)
			fclose(stat);
	}
	closedir(tasks);
	return asleep;
}

pid_t fork_at_rest(void)
{
	fflush(NULL);
	while (!others_sleep())
		usleep(1000);
	return fork();
}

int scaled_ms(int ms)
{
	const char *env = getenv("HMM_TEST_SCALE");
	int scale = env ? atoi(env) : 1;

	return scale > 0 ? ms * scale : ms;
}

int open_peer(void)
{
	struct hmm_open_options options = { .size = sizeof(options), .socket = script_path };
	int key = memfd_create("key", MFD_CLOEXEC), error;

	error = hmm_open_peer(key, &options, &hmm);
	close(key);
	return error;
}

void be_driver(void)
{
	struct hmm_device_options options = {
		.size = sizeof(options), .name = "d", .memory = 1 << 20, .node = -1, .caps = HMM_DEVICE_FAULTS
	};

	cr_assert_eq(open_peer(), 0, "%s", hmm_last_error());
	cr_assert_eq(hmm_device_new(hmm, &options, &device), 0, "%s", hmm_last_error());
	mirror = (struct hmm_mirror){ .ops = &ops, .device = device };
	cr_assert_eq(hmm_mirror_register(&mirror, hmm), 0, "%s", hmm_last_error());
}

void stop_being_driver(void)
{
	cr_assert_eq(hmm_mirror_unregister(&mirror), 0, "%s", hmm_last_error());
	hmm_device_put(device);
	hmm_close(hmm);
}

void check_read(void)
{
	char byte = 0;

	cr_assert_eq(hmm_device_read(&mirror, 0x7000, &byte, 1), 1, "%s", hmm_last_error());
	cr_assert_eq(byte, 0x5a);
}
