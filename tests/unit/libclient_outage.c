/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The library's side of the socket, against a peer that behaves exactly as
 * badly as each test needs at exactly that moment, which a real hmmd does not.
 *
 * The peer is a child process. It answers what a driver asks, writes down
 * every request, and dies, hesitates or lies where the script says so.
 */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <hmm/hmm.h>

#include "frame.h"
#include "hmm_protocol.h"
#include "libclient/space.h"
#include "proto/layout.h"
#include "proto/uapi.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(outage);

#define NOTES 256

struct script {
	uint32_t grace_ms;
	int die_at_read; /* the n-th device_read is not answered: the connection goes; 0: none */
	int busy_reads;			/* so many device_reads are answered -EAGAIN */
	int busy_migrates, die_at_migrate;	/* the same */
	bool die_when_busy;		/* after such an answer the connection goes */
	int fail_migrate;		/* the n-th is answered -ENOMEM; 0: none */
	bool hold_migrates;		/* they are answered when this is taken back */
	bool vanish;			/* after that nobody listens any more */
	bool invalidate; /* a device_read first raises an invalidation, and waits for its answer */
	int hello_error;
	bool garbage;			/* before each reply something that is no message */
	bool die_at_close;		/* a notices_close is answered, to one who waits, and the connection goes */
	uint32_t program_waits;		/* a thread of the program is about to sleep */
	/* What happened. */
	uint32_t notes;
	uint16_t note[NOTES];
	int32_t ack_status;
	uint64_t ack_cookie;
	uint32_t reads, migrates;
	uint32_t ready;			/* mirrors that have let go of everything: at any time, so no note */
	uint32_t mirror;		/* the number that this connection knows */
	uint32_t strange_reads;		/* of another */
	uint32_t rings;			/* of events, open on this connection */
};

static struct script *script;
static char directory[64], path[96];
static pid_t peer;

/* ---- the peer ---------------------------------------------------------------- */

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

/* Return: false when the connection is to end. */
static bool serve(int fd, struct hmm_frame *frame)
{
	int fds[2] = { -1, -1 };
	unsigned int nfds = 0;
	void *reply = NULL;
	bool going = true;

	if (frame->header.opcode != HMM_OP_MIRROR_READY)
		script->note[script->notes++ % NOTES] = frame->header.opcode;
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
		hello->incarnation = 1;
		hello->grace_ms = script->grace_ms;
		break;
	}
	case HMM_OP_OPEN_PEER: {
		struct hmm_msg_open_peer_reply *opened = reply = answer(frame, sizeof(*opened));

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
		struct hmm_msg_mirror_register_reply *mirror = reply =
			answer(frame, sizeof(*mirror));

		/* Another one after each restart. */
		mirror->mirror = script->mirror = 0x300 + script->notes % 100;
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
		while (going && hmm_frame_recv(fd, frame, 0) > 0)
			going = serve(fd, frame);
		hmm_frame_close(frame);
		close(fd);
		if (!going && script->vanish)
			break;
	}
	_exit(0);
}

static void begin(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int listener;

	strcpy(directory, "/tmp/hmm-outage-XXXXXX");
	cr_assert_not_null(mkdtemp(directory));
	snprintf(path, sizeof(path), "%s/socket", directory);
	script = mmap(NULL, sizeof(*script), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	script->grace_ms = 60000;
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	strcpy(address.sun_path, path);
	cr_assert_eq(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	cr_assert_eq(listen(listener, 4), 0);
	fflush(NULL);
	peer = fork();
	if (peer == 0)
		peer_main(listener);
	close(listener);
}

static void end(void)
{
	kill(peer, SIGKILL);
	waitpid(peer, NULL, 0);
	unlink(path);
	rmdir(directory);
	munmap(script, sizeof(*script));
}

/* ---- a driver -------------------------------------------------------------------- */

static struct hmm *hmm;
static struct hmm_device *device;
static struct hmm_mirror mirror;
static int updates, unregistered;
static _Atomic int let_go_of_all;

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

static const struct hmm_mirror_ops ops = { .size = sizeof(ops),
					   .sync_cpu_device_pagetables = let_go };

static int open_peer(void)
{
	struct hmm_open_options options = { .size = sizeof(options), .socket = path };
	int key = memfd_create("key", MFD_CLOEXEC), error;

	error = hmm_open_peer(key, &options, &hmm);
	close(key);
	return error;
}

static void be_driver(void)
{
	struct hmm_device_options options = {
		.size = sizeof(options), .name = "d", .memory = 1 << 20, .node = -1, .caps = HMM_DEVICE_FAULTS
	};

	cr_assert_eq(open_peer(), 0, "%s", hmm_last_error());
	cr_assert_eq(hmm_device_new(hmm, &options, &device), 0, "%s", hmm_last_error());
	mirror = (struct hmm_mirror){ .ops = &ops, .device = device };
	cr_assert_eq(hmm_mirror_register(&mirror, hmm), 0, "%s", hmm_last_error());
}

static void stop_being_driver(void)
{
	cr_assert_eq(hmm_mirror_unregister(&mirror), 0, "%s", hmm_last_error());
	hmm_device_put(device);
	hmm_close(hmm);
}

static void check_read(void)
{
	char byte = 0;

	cr_assert_eq(hmm_device_read(&mirror, 0x7000, &byte, 1), 1, "%s", hmm_last_error());
	cr_assert_eq(byte, 0x5a);
}

static void check_notes(const uint16_t *wanted, unsigned int count)
{
	cr_assert_eq(script->notes, count, "%u requests instead of %u", script->notes, count);
	for (unsigned int i = 0; i < count; i++)
		cr_assert_eq(script->note[i], wanted[i], "request %u is '%s', not '%s'", i,
			     hmm_opcode_name(script->note[i]), hmm_opcode_name(wanted[i]));
}

Test(outage, what_was_asked_is_asked_again)
{
	const uint16_t wanted[] = {
		HMM_OP_HELLO,		HMM_OP_OPEN_PEER,   HMM_OP_DEVICE_NEW,
		HMM_OP_MIRROR_REGISTER, HMM_OP_DEVICE_READ, HMM_OP_DEVICE_READ,
		HMM_OP_HELLO,		HMM_OP_OPEN_PEER,   HMM_OP_DEVICE_NEW,
		HMM_OP_MIRROR_REGISTER, HMM_OP_DEVICE_READ,
	};

	begin();
	script->die_at_read = 2;
	be_driver();
	check_read();
	check_read();
	check_notes(wanted, sizeof(wanted) / sizeof(*wanted));
	/* The first hmmd may have died before it told of a change: the second waits for this. */
	while (!*(volatile uint32_t *)&script->ready)
		usleep(1000);
	cr_assert_eq(let_go_of_all, 1);
	stop_being_driver();
	cr_assert_eq(script->ready, 1);
	end();
}

Test(outage, an_answer_to_try_again_is_not_the_callers_affair)
{
	begin();
	script->busy_reads = 3;
	be_driver();
	check_read();
	cr_assert_eq(script->reads, 4);
	stop_being_driver();
	end();
}

Test(outage, nobody_comes_back)
{
	char byte;

	begin();
	script->grace_ms = 300;
	script->die_at_read = 1;
	script->vanish = true;
	be_driver();
	cr_assert_eq(hmm_device_read(&mirror, 0x7000, &byte, 1), -ESTALE);
	cr_assert_eq(hmm_device_read(&mirror, 0x7000, &byte, 1), -ESTALE);
	cr_assert_eq(hmm_features(hmm), 0);
	cr_assert_eq(hmm_mirror_lookup(&mirror, 0x7000), 0);
	stop_being_driver();
	end();
}

Test(outage, the_text_of_an_error_reaches_the_caller)
{
	char byte;

	begin();
	be_driver();
	cr_assert_eq(hmm_device_read(&mirror, 0xbad000, &byte, 1), -EFAULT);
	cr_assert_str_eq(hmm_last_error(), "nothing is mapped at 0xbad000");
	check_read();
	stop_being_driver();
	end();
}

Test(outage, versions_that_do_not_fit)
{
	begin();
	script->hello_error = -EPROTO;
	cr_assert_eq(open_peer(), -EPROTO);
	cr_assert_str_eq(hmm_last_error(), "no such version");
	end();
}

Test(outage, what_is_no_message_is_passed_over)
{
	begin();
	script->garbage = true;
	be_driver();
	check_read();
	stop_being_driver();
	end();
}

Test(outage, a_callback_s_answer_and_what_it_must_not_do)
{
	begin();
	script->invalidate = true;
	updates = 0;
	be_driver();
	check_read();
	cr_assert_eq(updates, 1);
	cr_assert_eq(unregistered, -EDEADLK);
	cr_assert_eq(script->ack_cookie, 77);
	cr_assert_eq(script->ack_status, -EAGAIN);
	stop_being_driver();
	end();
}

Test(outage, prefetch_tells_its_eventfd)
{
	const size_t length = 200UL << 20;
	int completion = eventfd(0, EFD_CLOEXEC);
	uint64_t signal = 0;

	begin();
	be_driver();
	/* 4 pieces; one page of each stays. */
	cr_assert_eq(hmm_prefetch(&mirror, 0x7f0000000000, length, HMM_DEVICE, 0, completion, NULL),
		     0, "%s", hmm_last_error());
	cr_assert_eq(read(completion, &signal, sizeof(signal)), (ssize_t)sizeof(signal));
	cr_assert_eq(signal, 1 + (length >> HMM_PAGE_SHIFT) - 4);
	cr_assert_eq(hmm_prefetch(&mirror, 0x7f0000000000, HMM_PAGE_SIZE, HMM_DEVICE, 0, 12345,
				  NULL),
		     -EBADF);
	close(completion);
	stop_being_driver();
	end();
}

/* ---- a prefetch that is followed ---------------------------------------------------- */

#define FOLLOWED	(40UL << 20)	/* 3 pieces, of which one page each stays */
#define FOLLOWED_PAGES	((long)(FOLLOWED >> HMM_PAGE_SHIFT))
#define PIECE_PAGES	((16L << 20) >> HMM_PAGE_SHIFT)

static struct hmm_prefetch *prefetch;
static int completion;

static void follow(void)
{
	completion = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	cr_assert_eq(hmm_prefetch(&mirror, 0x7f0000000000, FOLLOWED, HMM_DEVICE,
				  HMM_MIGRATE_POPULATE, completion, &prefetch),
		     0, "%s", hmm_last_error());
}

/* Return: pages at the target, as its eventfd says. */
static long await(void)
{
	struct pollfd wait = { .fd = completion, .events = POLLIN };
	uint64_t signal = 0;

	cr_assert_eq(poll(&wait, 1, 10000), 1);
	cr_assert_eq(read(completion, &signal, sizeof(signal)), (ssize_t)sizeof(signal));
	close(completion);
	return (long)signal - 1;
}

static void check_progress(long wanted)
{
	uint64_t pages = 0;

	cr_assert_eq(hmm_prefetch_progress(prefetch, &pages), (uint64_t)wanted);
	cr_assert_eq(pages, (uint64_t)FOLLOWED_PAGES);
}

static void check_followed(void)
{
	uint8_t *results = malloc((size_t)FOLLOWED_PAGES);
	struct hmm_migrate_report report;

	cr_assert_eq(await(), FOLLOWED_PAGES - 3);
	check_progress(FOLLOWED_PAGES);
	cr_assert_eq(hmm_prefetch_result(prefetch, results, &report), FOLLOWED_PAGES - 3);
	cr_assert_eq(report.pages, (uint64_t)FOLLOWED_PAGES);
	cr_assert_eq(report.moved, (uint64_t)FOLLOWED_PAGES - 3);
	cr_assert_eq(report.failed, 3);
	for (long i = 0; i < FOLLOWED_PAGES; i++)
		cr_assert_eq(results[i], i % PIECE_PAGES ? HMM_MIGRATED : HMM_PINNED);
	cr_assert_eq(hmm_prefetch_cancel(prefetch), -EALREADY);
	hmm_prefetch_free(prefetch);
	free(results);
}

Test(outage, a_prefetch_is_followed)
{
	long before;

	begin();
	be_driver();
	script->hold_migrates = true;
	follow();
	check_progress(0);
	cr_assert_eq(hmm_prefetch_result(prefetch, NULL, NULL), -EAGAIN);
	script->hold_migrates = false;
	check_followed();
	/* Given back while it runs, it goes on. */
	before = script->migrates;
	follow();
	hmm_prefetch_free(prefetch);
	cr_assert_eq(await(), FOLLOWED_PAGES - 3);
	cr_assert_eq(script->migrates, before + 3);
	stop_being_driver();
	end();
}

Test(outage, a_prefetch_asks_again_what_hmmd_had_no_answer_to)
{
	begin();
	script->busy_migrates = 3;
	be_driver();
	follow();
	check_followed();
	cr_assert_eq(script->migrates, 6);
	stop_being_driver();
	end();
}

Test(outage, a_prefetch_outlives_hmmd)
{
	begin();
	script->die_at_migrate = 2;
	be_driver();
	follow();
	check_followed();
	cr_assert_eq(script->migrates, 4);
	stop_being_driver();
	end();
}

/* The first piece has had its turn. */
static void check_ended_early(int error, uint8_t second)
{
	uint8_t *results = malloc((size_t)FOLLOWED_PAGES);
	long tried = second == HMM_NOT_TRIED ? PIECE_PAGES : 2 * PIECE_PAGES;

	cr_assert_eq(await(), PIECE_PAGES - 1);
	check_progress(tried);
	cr_assert_eq(hmm_prefetch_result(prefetch, results, NULL), PIECE_PAGES - 1);
	cr_assert_eq(results[0], HMM_PINNED);
	cr_assert_eq(results[PIECE_PAGES - 1], HMM_MIGRATED);
	cr_assert_eq(results[PIECE_PAGES], second);
	cr_assert_eq(results[FOLLOWED_PAGES - 1], HMM_NOT_TRIED);
	cr_assert_str_eq(hmm_migrate_result_name(HMM_NOT_TRIED), "not-tried");
	hmm_prefetch_free(prefetch);
	free(results);
	/* And a mirror that is not there any more does not begin another. */
	if (error)
		cr_assert_eq(hmm_prefetch(&mirror, 0x7f0000000000, FOLLOWED, HMM_DEVICE, 0, -1,
					  NULL),
			     error);
}

Test(outage, a_piece_that_fails_ends_a_prefetch)
{
	begin();
	script->fail_migrate = 2;
	be_driver();
	follow();
	check_ended_early(0, HMM_MIGRATE_ERROR);
	script->fail_migrate = 3;
	follow();
	cr_assert_eq(await(), 0);
	check_progress(PIECE_PAGES);
	cr_assert_eq(hmm_prefetch_result(prefetch, NULL, NULL), -ENOMEM);
	cr_assert_str_eq(hmm_last_error(), "no memory in hmmd");
	hmm_prefetch_free(prefetch);
	stop_being_driver();
	end();
}

Test(outage, a_prefetch_without_an_hmmd_ends)
{
	begin();
	script->grace_ms = 300;
	script->die_at_migrate = 2;
	script->vanish = true;
	be_driver();
	follow();
	check_ended_early(-ESTALE, HMM_MIGRATE_ERROR);
	stop_being_driver();
	end();
}

Test(outage, a_prefetch_without_an_hmmd_that_would_be_asked_again_ends)
{
	begin();
	script->grace_ms = 300;
	script->busy_migrates = 1;
	script->die_when_busy = true;
	script->vanish = true;
	be_driver();
	follow();
	cr_assert_eq(await(), 0);
	cr_assert_eq(hmm_prefetch_result(prefetch, NULL, NULL), -ESTALE);
	hmm_prefetch_free(prefetch);
	stop_being_driver();
	end();
}

Test(outage, a_prefetch_is_cancelled)
{
	begin();
	be_driver();
	script->hold_migrates = true;
	follow();
	while (*(volatile uint32_t *)&script->migrates == 0)
		usleep(1000);
	cr_assert_eq(hmm_prefetch_cancel(prefetch), 0);
	cr_assert_eq(hmm_prefetch_cancel(prefetch), 0);
	cr_assert_eq(hmm_prefetch_result(prefetch, NULL, NULL), -EAGAIN);
	script->hold_migrates = false;
	check_ended_early(0, HMM_NOT_TRIED);
	cr_assert_eq(script->migrates, 1);
	stop_being_driver();
	end();
}

static void *let_on(void *argument)
{
	usleep(1000000);
	script->hold_migrates = false;
	return NULL;
}

Test(outage, a_mirror_that_goes_ends_its_prefetches)
{
	struct hmm_migrate_report report;
	pthread_t thread;

	begin();
	be_driver();
	script->hold_migrates = true;
	follow();
	while (*(volatile uint32_t *)&script->migrates == 0)
		usleep(1000);
	cr_assert_eq(pthread_create(&thread, NULL, let_on, NULL), 0);
	stop_being_driver();
	pthread_join(thread, NULL);
	/* All is over, and the handle stands alone. */
	cr_assert_eq(hmm_prefetch_result(prefetch, NULL, &report), PIECE_PAGES - 1);
	cr_assert_eq(report.pages, (uint64_t)FOLLOWED_PAGES);
	check_ended_early(0, HMM_NOT_TRIED);
	end();
}

Test(outage, what_is_no_prefetch)
{
	uint64_t pages = 1;
	int status;

	begin();
	be_driver();
	prefetch = NULL;
	cr_assert_eq(hmm_prefetch(NULL, 0x1000, 0x1000, HMM_DEVICE, 0, -1, &prefetch), -EINVAL);
	cr_assert_eq(hmm_prefetch(&mirror, 0x1001, 0x1000, HMM_DEVICE, 0, -1, &prefetch), -EINVAL);
	cr_assert_eq(hmm_prefetch(&mirror, 0x1000, 0, HMM_DEVICE, 0, -1, &prefetch), -EINVAL);
	cr_assert_eq(hmm_prefetch(&mirror, 0x1000, 0x1000, 7, 0, -1, &prefetch), -EINVAL);
	cr_assert_eq(hmm_prefetch(&mirror, 0x1000, 0x1000, HMM_DEVICE, 2, -1, &prefetch), -EINVAL);
	cr_assert_eq(hmm_prefetch(&mirror, 0x1000, 0x1000, HMM_DEVICE, 0, 12345, &prefetch), -EBADF);
	/* A byte a page in the library's memory is more than there is. */
	cr_assert_eq(hmm_prefetch(&mirror, 0x1000, 1UL << 40, HMM_DEVICE, 0, -1, &prefetch), -ENOMEM);
	cr_assert_null(prefetch);
	cr_assert_eq(script->migrates, 0);
	cr_assert_eq(hmm_prefetch_progress(NULL, &pages), 0);
	cr_assert_eq(pages, 0);
	cr_assert_eq(hmm_prefetch_result(NULL, NULL, NULL), -EINVAL);
	cr_assert_eq(hmm_prefetch_cancel(NULL), -EINVAL);
	hmm_prefetch_free(NULL);
	script->hold_migrates = true;
	follow();
	/* A child has no part in it; a fork waits for what is on its way to a device. */
	script->hold_migrates = false;
	fflush(NULL);
	if (fork() == 0) {
		if (hmm_prefetch_result(prefetch, NULL, NULL) != -ESTALE ||
		    hmm_prefetch_cancel(prefetch) != -ESTALE)
			_exit(1);
		hmm_prefetch_free(prefetch);
		_exit(0);
	}
	wait(&status);
	cr_assert_eq(status, 0);
	check_followed();
	stop_being_driver();
	end();
}

Test(outage, a_migration_in_pieces_is_one_answer)
{
	const size_t length = 200UL << 20, pages = length >> HMM_PAGE_SHIFT;
	struct hmm_migrate_report report;
	uint8_t *results = malloc(pages);
	size_t pinned = 0;

	begin();
	be_driver();
	cr_assert_eq(hmm_migrate(&mirror, 0x7f0000001000, length, HMM_DEVICE, 0, results, &report),
		     (long)pages - 4);
	cr_assert_eq(report.pages, pages);
	cr_assert_eq(report.moved, pages - 4);
	cr_assert_eq(report.failed, 4);
	for (size_t i = 0; i < pages; i++)
		pinned += results[i] == HMM_PINNED;
	cr_assert_eq(pinned, 4);
	/* The second piece begins at a block's edge, below 64 MiB. */
	cr_assert_eq(results[0], HMM_PINNED);
	cr_assert_eq(results[(64 << 8) - 1], HMM_PINNED);
	free(results);
	stop_being_driver();
	end();
}

Test(outage, descriptors_are_in_nobody_s_way)
{
	struct pollfd hangup;
	int pipes[2];

	begin();
	cr_assert_eq(pipe2(pipes, O_CLOEXEC), 0);
	be_driver();
	/* The library must not hold the program's pipes open. */
	close(pipes[1]);
	hangup = (struct pollfd){ .fd = pipes[0], .events = POLLIN };
	cr_assert_eq(poll(&hangup, 1, 5000), 1);
	cr_assert(hangup.revents & POLLHUP);
	close(pipes[0]);
	/*
	 * And a program may close all that it does not know; in a child, for the test's own sake.
	 */
	fflush(NULL);
	if (fork() == 0) {
		be_driver();
		syscall(SYS_close_range, 3U, ~0U, 0U);
		check_read();
		_exit(script->reads == 1 ? 0 : 1);
	} else {
		int status;

		/* The peer serves one connection at a time. */
		stop_being_driver();
		wait(&status);
		cr_assert_eq(status, 0);
	}
	end();
}

Test(outage, a_child_has_no_part_in_its_parents_handle)
{
	char byte;
	int status;

	begin();
	be_driver();
	fflush(NULL);
	if (fork() == 0) {
		if (hmm_device_read(&mirror, 0x7000, &byte, 1) != -ESTALE || hmm_features(hmm))
			_exit(1);
		hmm_close(hmm);
		_exit(script->reads ? 2 : 0);
	}
	wait(&status);
	cr_assert_eq(status, 0);
	check_read();
	stop_being_driver();
	end();
}

Test(outage, bad_arguments)
{
	struct {
		struct hmm_open_options known;
		uint64_t future;
	} newer = { .known = { .size = sizeof(newer) } };
	struct hmm_device_options options = { .size = sizeof(options), .name = "", .node = -1 };
	struct hmm_mirror none = { .ops = &ops };
	struct hmm_device *made;
	struct hmm *opened;
	char byte;

	begin();
	newer.known.socket = path;
	newer.future = 1;
	cr_assert_eq(hmm_open(&newer.known, &opened), -E2BIG);
	cr_assert_eq(hmm_open(NULL, NULL), -EINVAL);
	cr_assert_eq(hmm_open_peer(-1, NULL, &opened), -EBADF);
	be_driver();
	cr_assert_eq(hmm_export(hmm), -EPERM);
	cr_assert_eq(hmm_device_new(hmm, &options, &made), -EINVAL);
	options.name = "a name";
	cr_assert_eq(hmm_device_new(hmm, &options, &made), -EINVAL);
	cr_assert_eq(hmm_mirror_register(NULL, hmm), -EINVAL);
	cr_assert_eq(hmm_mirror_register(&none, hmm), -EINVAL);
	cr_assert_eq(hmm_migrate(&mirror, 0x1001, HMM_PAGE_SIZE, HMM_DEVICE, 0, NULL, NULL),
		     -EINVAL);
	cr_assert_eq(hmm_migrate(&mirror, 0x1000, 0, HMM_DEVICE, 0, NULL, NULL), -EINVAL);
	cr_assert_eq(
		hmm_migrate(&mirror, -HMM_PAGE_SIZE, 2 * HMM_PAGE_SIZE, HMM_DEVICE, 0, NULL, NULL),
		-EINVAL);
	cr_assert_eq(hmm_migrate(&mirror, HMM_VA_END, HMM_PAGE_SIZE, HMM_DEVICE, 0, NULL, NULL),
		     -EINVAL);
	cr_assert_eq(hmm_migrate(&mirror, 0x1000, HMM_PAGE_SIZE, (enum hmm_target)7, 0, NULL, NULL),
		     -EINVAL);
	cr_assert_eq(
		hmm_migrate(&mirror, 0x1000, HMM_PAGE_SIZE, HMM_DEVICE, 1ULL << 40, NULL, NULL),
		-EINVAL);
	cr_assert_eq(hmm_device_read(&mirror, HMM_VA_END - 1, &byte, 2), -EINVAL);
	cr_assert_eq(hmm_device_read(&mirror, 0x1000, &byte, 0), 0);
	cr_assert_eq(hmm_exclude(hmm, 0x1000, HMM_PAGE_SIZE), -EPERM);
	cr_assert_neq(hmm_last_error()[0], 0);
	cr_assert_eq(script->reads, 0, "none of that reached the other side");
	stop_being_driver();
	end();
}

/* ---- threads that meet just where it hurts -------------------------------------------- */

/*
 * The library's system calls come by here. A thread is held up at one of them until the others are where
 * the test wants them, which a scheduler does once in a million.
 */
static struct {
	bool at_close;			/* the receiver, closing the socket, until the clerk wants to send */
	bool at_wake;			/* the receiver, having let the clerk send, for a moment */
	bool at_send;			/* the clerk, waiting to send, until the next hmmd has taken over */
	bool at_sleep;			/* this thread, asleep in a call, until then */
	pthread_t program;
	uint32_t closing;		/* the receiver is there */
} hold;

static bool thread_is(const char *name)
{
	char mine[16] = "";

	prctl(PR_GET_NAME, mine);
	return !strcmp(mine, name);
}

static void wait_for_next_hmmd(void)
{
	struct connection *connection = hmm->connection;
	bool up = false;

	while (!up) {
		usleep(1000);
		futex_lock(&connection->lock);
		up = connection->state == CONNECTION_UP && connection->round == 2;
		futex_unlock(&connection->lock);
	}
}

static long raw_syscall(long number, const long *a)
{
	register long r10 __asm__("r10") = a[3];
	register long r8 __asm__("r8") = a[4];
	register long r9 __asm__("r9") = a[5];
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

long syscall(long number, ...)
{
	bool futex = number == SYS_futex, wait, wake;
	const uint32_t *send_lock = hmm ? &hmm->connection->send_lock.word : NULL;
	long a[6], result;
	va_list list;

	va_start(list, number);
	for (unsigned int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	wait = futex && a[1] == FUTEX_WAIT_PRIVATE;
	wake = futex && a[1] == FUTEX_WAKE_PRIVATE;
	if (wait && hold.at_send && (const uint32_t *)a[0] == send_lock && thread_is("hmm-clerk")) {
		hold.at_send = false;
		wait_for_next_hmmd();
		return 0;
	}
	if (wait && a[2] != 2 && hold.at_sleep && pthread_equal(pthread_self(), hold.program)) {
		hold.at_sleep = false;
		__atomic_store_n(&script->program_waits, 1, __ATOMIC_RELEASE);
		result = raw_syscall(number, a);
		wait_for_next_hmmd();
		return result;
	}
	result = raw_syscall(number, a);
	if (wake && hold.at_wake && (const uint32_t *)a[0] == send_lock && thread_is("hmm-connection")) {
		hold.at_wake = false;
		usleep(100000);
	}
	return result;
}

int close(int fd)
{
	const long arguments[6] = { fd };

	if (hold.at_close && thread_is("hmm-connection") && fd == hmm->connection->fd) {
		hold.at_close = false;
		__atomic_store_n(&hold.closing, 1, __ATOMIC_RELEASE);
		while (__atomic_load_n(&hmm->connection->send_lock.word, __ATOMIC_ACQUIRE) != 2)
			usleep(1000);
	}
	return (int)raw_syscall(SYS_close, arguments);
}

static void *read_in_between(void *argument)
{
	while (!__atomic_load_n(&hold.closing, __ATOMIC_ACQUIRE))
		usleep(1000);
	check_read();
	return NULL;
}

/* A read is under way as the connection goes, and another comes while it is being closed. */
static void read_while_it_breaks(void)
{
	pthread_t thread;

	script->die_at_read = 1;
	cr_assert_eq(pthread_create(&thread, NULL, read_in_between, NULL), 0);
	check_read();
	cr_assert_eq(pthread_join(thread, NULL), 0);
	memset(&hold, 0, sizeof(hold));
}

Test(outage, nothing_is_sent_where_no_connection_is)
{
	begin();
	be_driver();
	hold.at_close = hold.at_wake = true;
	read_while_it_breaks();
	stop_being_driver();
	end();
}

Test(outage, a_request_that_waits_to_be_sent_names_what_the_next_hmmd_knows)
{
	begin();
	be_driver();
	hold.at_close = hold.at_send = true;
	read_while_it_breaks();
	cr_assert_eq(script->strange_reads, 0);
	stop_being_driver();
	end();
}

Test(outage, a_ring_that_was_closed_stays_closed)
{
	struct hmm_event_options options = { .size = sizeof(options) };
	struct hmm_events *events, *other;

	begin();
	be_driver();
	cr_assert_eq(hmm_event_open(hmm, &options, &events), 0, "%s", hmm_last_error());
	cr_assert_eq(hmm_event_open(hmm, &options, &other), 0, "%s", hmm_last_error());
	script->die_at_close = true;
	hold.program = pthread_self();
	hold.at_sleep = true;
	hmm_event_close(events);
	cr_assert_eq(hold.at_sleep, false);
	check_read();
	cr_assert_eq(script->rings, 1, "%u rings are open, not one", script->rings);
	hmm_event_close(other);
	cr_assert_eq(script->rings, 0);
	stop_being_driver();
	end();
}
