// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Two strangers, one of them of another uid, say anything to a real hmmd: see stranger.h and serving.h.
 *
 * An input is a list of steps, each a byte that says what and who:
 *   bits 0-1   0, 1: a message; 2: the stranger does something to its memory, see act() (15: it has no agent); 3: something is done to a descriptor
 *   bit 2      the second stranger, not the first
 *   bit 3      of a message: its header is the first 16 bytes of the body, as they are
 *   bit 4      of a message: its answer is not waited for
 * A message goes on with its opcode (u16), how many descriptors (u8), what each is (u8, see descriptor()), how
 * many bytes (u16) and those. To be of use in every run, small numbers stand for what hmmd gave: see name_real().
 *
 * What must hold: hmmd lives. Each request that is none is answered, or costs the connection, as proto/wire.h
 * says; each other one is answered once at most, by its own reply or an error in words; all that comes is as
 * the schema says. (Once at most: what takes an agent that does not work may wait as long as its owner lives.) When
 * both strangers are gone, so is everything of theirs. Every 16th input (HMM_FUZZ_EXACT: each) waits for that.
 *
 * One thread, beside hmmd's.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "frame.h"
#include "hmm_protocol.h"
#include "layout.h"
#include "serving.h"
#include "stranger.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* How long the answer of one request is waited for: not long, what comes later comes later. */
#define ANSWER_MS 40
/* ... and when everything has to be answered. */
#define PATIENCE_MS 30000
#define REQUESTS_MAX 64
#define GIVEN_MAX 24
#define OWN_MAX 16

struct given {
	const uint8_t *data;
	size_t size;
};

struct talker {
	struct stranger stranger;
	bool hung_up;			/* hmmd, or we */
	bool doomed;			/* it said what costs a connection */
	bool muddled;			/* whose answer is whose cannot be told any more */
	bool greeted;
	bool alone;			/* it opens without an agent: hmmd's orders are not carried out */
	uint32_t owner;
	uint64_t cookie;		/* hmmd asked with, last */
	uint32_t serial;
	struct request {
		uint32_t serial;
		uint16_t opcode;
		bool must_fail;		/* the schema says so already */
	} waiting[REQUESTS_MAX];
	unsigned int n_waiting;
	int given[GIVEN_MAX];		/* descriptors from hmmd */
	unsigned int n_given;
};

static struct talker talkers[2];
static uint32_t devices[8];
static unsigned int n_devices;
static int own[OWN_MAX];		/* descriptors of this input, made when first asked for; -1: not yet */
static struct hmm_frame answer;
static int answer_ms = PATIENCE_MS;	/* until it is warm */

static void wrong(const char *what, const void *message)
{
	char line[256] = "";

	if (message)
		hmm_wire_format(line, sizeof(line), message, ((const struct hmm_wire_header *)message)->size);
	fprintf(stderr, "fuzz: %s: %s\n", what, line);
	abort();
}

/* ---- the input ------------------------------------------------------------------------ */

static uint64_t take(struct given *given, unsigned int bytes)
{
	uint64_t value = 0;

	if (bytes > given->size)
		bytes = (unsigned int)given->size;
	memcpy(&value, given->data, bytes);
	given->data += bytes;
	given->size -= bytes;
	return value;
}

/* ---- descriptors ------------------------------------------------------------------------ */

static int memfd(size_t size, int seals)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd >= 0 && (ftruncate(fd, (off_t)size) < 0 || (seals && fcntl(fd, F_ADD_SEALS, seals) < 0)))
		abort();
	return fd;
}

/* As a ledger would be, had hmmd made it: but another user's, made while hmmd, which is in this process, may still give files away. */
static int foreign = -1;

static void make_foreign(void)
{
	foreign = memfd(HMM_LEDGER_SIZE, F_SEAL_SHRINK | F_SEAL_GROW);
	if (foreign >= 0 && geteuid() == 0 && fchown(foreign, 65534, 65534) < 0)
		abort();
}

static int forged(void)
{
	char path[32];

	/* Each input finds it empty. */
	fallocate(foreign, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)HMM_LEDGER_SIZE);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", foreign);
	return open(path, O_RDWR | O_CLOEXEC);
}

static int half_of_a_pair(unsigned int which)
{
	int pair[2], r;

	r = which == 2 ? socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) : pipe2(pair, O_CLOEXEC);
	if (r < 0)
		return -1;
	close(pair[which != 1]);
	return pair[which == 1];
}

static int make_own(unsigned int which)
{
	switch (which) {
	case 0:
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	case 1:
		return half_of_a_pair(0);
	case 2:
		return half_of_a_pair(1);
	case 3:
		return half_of_a_pair(2);
	case 4:
		return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	case 5:
		return memfd(HMM_PAGE_SIZE, 0);
	case 6:
		return memfd(HMM_PAGE_SIZE, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
	case 7:
		return memfd(100, 0);
	case 8:
		return memfd(1UL << 30, 0);
	case 9:
		return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	case 10:
		return open("/", O_PATH | O_CLOEXEC);
	case 11:
		return open("/dev/zero", O_RDWR | O_CLOEXEC);
	case 12:
		return open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	case 13:
		return epoll_create1(EPOLL_CLOEXEC);
	case 14:
		return open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	default:
		return forged();
	}
}

/*
 * Up to 15: of no use to hmmd, or of use as a key. From 16: the stranger's own, in the order of stranger.h. From 24: the
 * other one's. From 32: what hmmd gave it.
 */
static int descriptor(const struct talker *talker, unsigned int what)
{
	const struct talker *other = talker == talkers ? talkers + 1 : talkers;
	int fd = -1;

	what %= 64;
	if (what >= 32)
		fd = talker->n_given ? talker->given[(what - 32) % talker->n_given] : -1;
	else if (what >= 16)
		fd = (what < 24 ? talker : other)->stranger.fds[(what - 16) % STRANGER_FDS];
	if (fd >= 0)
		return fd;
	what %= OWN_MAX;
	if (own[what] < 0)
		own[what] = make_own(what);
	return own[what] < 0 ? STDERR_FILENO : own[what];
}

/* ---- answers ------------------------------------------------------------------------------ */

static void keep_given(struct talker *talker)
{
	for (unsigned int i = 0; i < answer.nfds && talker->n_given < GIVEN_MAX; i++)
		talker->given[talker->n_given++] = hmm_frame_take_fd(&answer, i);
}

static void learn(struct talker *talker)
{
	const void *message = answer.data;

	switch (answer.header.opcode) {
	case HMM_OP_HELLO_REPLY:
		talker->greeted = true;
		break;
	case HMM_OP_OPEN_REPLY:
		talker->owner = ((const struct hmm_msg_open_reply *)message)->owner;
		if (!talker->alone)
			stranger_serve(&talker->stranger, answer.fds[2], answer.fds[4]);
		break;
	case HMM_OP_REGION:
		stranger_tell(&talker->stranger, message, answer.fds[0]);
		break;
	case HMM_OP_REOPEN_REPLY:
		talker->owner = ((const struct hmm_msg_reopen_reply *)message)->owner;
		break;
	case HMM_OP_DEVICE_NEW_REPLY:
		if (n_devices < sizeof(devices) / sizeof(devices[0]))
			devices[n_devices++] = ((const struct hmm_msg_device_new_reply *)message)->device;
		break;
	case HMM_OP_INVALIDATE:
		talker->cookie = ((const struct hmm_msg_invalidate *)message)->cookie;
		break;
	case HMM_OP_DEVMEM_STORE:
		talker->cookie = ((const struct hmm_msg_devmem_store *)message)->cookie;
		break;
	case HMM_OP_DEVMEM_FETCH:
		talker->cookie = ((const struct hmm_msg_devmem_fetch *)message)->cookie;
		break;
	default:
		break;
	}
}

static void check_answer(struct talker *talker)
{
	const struct hmm_msg_error *error = (const void *)answer.data;
	struct request *request = talker->waiting;
	const char *why;

	if (hmm_wire_check(answer.data, answer.size, answer.nfds, HMM_WIRE_SERVER, &why))
		wrong(why, answer.data);
	if (!(answer.header.opcode & HMM_WIRE_REPLY))
		return;
	for (; request < talker->waiting + talker->n_waiting; request++)
		if (request->serial == answer.header.serial)
			break;
	if (talker->muddled)
		return;
	if (request == talker->waiting + talker->n_waiting)
		wrong("an answer to nothing", answer.data);
	if (answer.header.opcode == HMM_OP_ERROR) {
		if (error->error >= 0 || !*error->text || strstr(error->text, "bad answer"))
			wrong("an error that says nothing", answer.data);
	} else if (answer.header.opcode != (request->opcode | HMM_WIRE_REPLY) || request->must_fail) {
		wrong("the wrong answer", answer.data);
	}
	*request = talker->waiting[--talker->n_waiting];
}

static bool is_waiting(const struct talker *talker, uint32_t serial)
{
	for (unsigned int i = 0; i < talker->n_waiting; i++)
		if (talker->waiting[i].serial == serial)
			return true;
	return false;
}

/* What has come, or comes within @ms. False: nothing more will. */
static bool hear(struct talker *talker, int ms)
{
	struct pollfd wait = { .fd = talker->stranger.fds[STRANGER_CONNECTION], .events = POLLIN };
	int r;

	while (!talker->hung_up && poll(&wait, 1, ms) > 0) {
		r = hmm_frame_recv(wait.fd, &answer, MSG_DONTWAIT);
		if (r == -EAGAIN)
			return true;
		/* A reset stands before what hmmd said earlier. */
		if (r == -ECONNRESET)
			continue;
		if (r <= 0) {
			talker->hung_up = true;
			break;
		}
		check_answer(talker);
		learn(talker);
		keep_given(talker);
		hmm_frame_close(&answer);
		ms = 0;
	}
	return !talker->hung_up;
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- messages ------------------------------------------------------------------------------- */

static void put(void *at, uint64_t value, unsigned int size)
{
	memcpy(at, &value, size);
}

/* Small numbers stand for what hmmd gave, which is another in each run. An owner: 1 the first stranger's, 2 the second's. */
static void name_real(const struct talker *talker, const struct hmm_wire_field *field, uint8_t *at)
{
	uint64_t value = 0, who, mask;
	unsigned int shift = 0;

	memcpy(&value, at, field->size > 8 ? 8 : field->size);
	if (!strcmp(field->name, "device")) {
		if (value && value <= n_devices)
			put(at, devices[value - 1], field->size);
		return;
	}
	if (!strcmp(field->name, "cookie")) {
		if (value == 1)
			put(at, talker->cookie, field->size);
		return;
	}
	if (!strcmp(field->name, "mirror"))
		shift = 8;
	else if (!strcmp(field->name, "window"))
		shift = 16;
	else if (strcmp(field->name, "owner") != 0)
		return;
	who = value >> shift;
	mask = (UINT64_C(1) << shift) - 1;
	if ((who == 1 || who == 2) && talkers[who - 1].owner)
		put(at, (uint64_t)talkers[who - 1].owner << shift | (value & mask), field->size);
}

static void name_all_real(const struct talker *talker, uint8_t *message, size_t size)
{
	const struct hmm_wire_message *described = hmm_wire_message(((struct hmm_wire_header *)(void *)message)->opcode);

	if (!described || described->from != HMM_WIRE_CLIENT)
		return;
	for (size_t i = 0; i < described->field_count; i++) {
		const struct hmm_wire_field *field = &described->fields[i];

		if (field->offset + (size_t)field->size <= size)
			name_real(talker, field, message + field->offset);
	}
}

static int send_bytes(struct talker *talker, const void *bytes, size_t size, const int *fds, unsigned int nfds)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int) * 32)];
		struct cmsghdr align;
	} control = { .bytes = { 0 } };
	struct iovec iov = { (void *)(uintptr_t)bytes, size };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nfds) {
		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(&control.align), fds, sizeof(int) * nfds);
	}
	return sendmsg(talker->stranger.fds[STRANGER_CONNECTION], &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* What proto/wire.h promises of a message, so that hmmd can be held to it. */
static void expect(struct talker *talker, const void *message, size_t size, unsigned int nfds)
{
	const struct hmm_wire_header *header = message;
	int r;

	if (size < sizeof(*header) || header->size != size || header->nfds != nfds || nfds > HMM_WIRE_MAX_FDS) {
		talker->doomed = true;
		return;
	}
	r = hmm_wire_check(message, size, nfds, HMM_WIRE_CLIENT, NULL);
	if (r == -EPROTO) {
		talker->doomed = true;
	} else if (header->opcode != HMM_OP_ACK || r == -EOPNOTSUPP) {
		/* A serial that is in use, or more of them than are counted here. */
		if (is_waiting(talker, header->serial) || talker->n_waiting == REQUESTS_MAX)
			talker->muddled = true;
		else
			talker->waiting[talker->n_waiting++] = (struct request) { header->serial, header->opcode, r != 0 };
	}
}

static void say(struct talker *talker, struct given *given, unsigned int how)
{
	static union {
		struct hmm_wire_header header;
		uint8_t bytes[HMM_WIRE_MAX + 4096];
		uint64_t align;
	} message;
	uint16_t opcode = (uint16_t)take(given, 2);
	unsigned int nfds = (unsigned int)take(given, 1) % 20;
	size_t size, length;
	int fds[20];

	for (unsigned int i = 0; i < nfds; i++)
		fds[i] = descriptor(talker, (unsigned int)take(given, 1));
	length = take(given, 2);
	if (length > given->size)
		length = given->size;
	if (talker->hung_up || talker->doomed)
		return;
	memset(message.bytes, 0, sizeof(message.header));
	if (how & 8) {
		memcpy(message.bytes, given->data, length);
		size = length;
	} else {
		size = sizeof(message.header) + length;
		message.header.size = (uint32_t)size;
		message.header.opcode = opcode;
		message.header.nfds = (uint16_t)nfds;
		message.header.serial = ++talker->serial;
		memcpy(message.bytes + sizeof(message.header), given->data, length);
		name_all_real(talker, message.bytes, size);
	}
	given->data += length;
	given->size -= length;
	/* An empty datagram is the end of a connection to hmmd, too. */
	if (size == 0)
		talker->doomed = true;
	if (send_bytes(talker, message.bytes, size, fds, nfds))
		return;
	if (size)
		expect(talker, message.bytes, size, nfds);
	hear(talker, 0);
	if (talker->doomed)
		return;
	for (int64_t end = now_ms() + answer_ms; !(how & 16) && is_waiting(talker, message.header.serial) && now_ms() < end;)
		if (!hear(talker, answer_ms))
			break;
}

/* ---- everything else that a client can do ------------------------------------------------------ */

static void meddle(struct talker *talker, struct given *given)
{
	int fd = descriptor(talker, (unsigned int)take(given, 1));
	unsigned int how = (unsigned int)take(given, 1);
	uint64_t offset = take(given, 4), value = take(given, 8);
	struct pollfd room = { .fd = fd, .events = POLLOUT };

	switch (how % 6) {
	case 0:
		if (pwrite(fd, &value, sizeof(value), (off_t)offset) < 0 && errno == ESPIPE && poll(&room, 1, 0) == 1)
			(void)!write(fd, &value, sizeof(value));
		break;
	case 1:
		(void)!ftruncate(fd, (off_t)(value & 0xffffffff));
		break;
	case 2:
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)(value & 0xffffffff));
		break;
	case 3:
		fcntl(fd, F_ADD_SEALS, (int)value & 31);
		break;
	case 4:
		/* The flags of a file are everybody's who has it: hmmd must not depend on them. */
		if (fd != STDERR_FILENO && fd != talker->stranger.fds[STRANGER_CONNECTION])
			fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) ^ O_NONBLOCK);
		break;
	default:
		shutdown(talker->stranger.fds[STRANGER_CONNECTION], value & 1 ? SHUT_RDWR : SHUT_WR);
		talker->doomed = true;
		talker->muddled = true;
		break;
	}
}

/* ---- an input from its beginning to its end ------------------------------------------------------ */

static void greet(struct talker *talker)
{
	struct hmm_msg_hello hello;

	HMM_MSG_INIT(hello, HMM_OP_HELLO, ++talker->serial);
	hello.version_min = hello.version_max = HMM_PROTOCOL_VERSION;
	hello.role = HMM_ROLE_OWNER;
	HMM_MSG_TEXT(hello.name, "stranger");
	expect(talker, &hello, sizeof(hello), 0);
	if (send_bytes(talker, &hello, sizeof(hello), NULL, 0))
		wrong("a newcomer's hello", &hello);
	while (!talker->greeted)
		if (!hear(talker, PATIENCE_MS) || !talker->n_waiting)
			break;
	if (!talker->greeted)
		wrong("a newcomer is not greeted", NULL);
}

static void begin(void)
{
	for (unsigned int i = 0; i < OWN_MAX; i++)
		own[i] = -1;
	n_devices = 0;
	for (unsigned int i = 0; i < 2; i++) {
		memset(&talkers[i], 0, sizeof(talkers[i]));
		stranger_new(&talkers[i].stranger, i == 1);
		greet(&talkers[i]);
	}
}

/* What hmmd owes at once, whatever its engine does. */
static const char *is_owed(const struct talker *talker)
{
	if (talker->hung_up)
		return NULL;
	if (talker->doomed)
		return "hmmd does not hang up";
	for (unsigned int i = 0; i < talker->n_waiting && !talker->muddled; i++)
		if (talker->waiting[i].must_fail)
			return hmm_opcode_name(talker->waiting[i].opcode);
	return NULL;
}

static void hear_out(struct talker *talker)
{
	const int64_t end = now_ms() + PATIENCE_MS;
	const char *what;

	while ((what = is_owed(talker))) {
		if (now_ms() >= end)
			wrong(what, NULL);
		hear(talker, 100);
	}
}

static void end(bool exact)
{
	for (unsigned int i = 0; i < 2; i++) {
		struct talker *talker = &talkers[i];

		hear_out(talker);
		hear(talker, 0);
		stranger_end(&talker->stranger);
		for (unsigned int k = 0; k < talker->n_given; k++)
			close(talker->given[k]);
	}
	for (unsigned int i = 0; i < OWN_MAX; i++)
		if (own[i] >= 0)
			close(own[i]);
	if (exact)
		serving_expect_nothing_left();
}

static void run(const uint8_t *data, size_t size, bool exact)
{
	struct given given = { data, size };

	begin();
	while (given.size) {
		unsigned int what = (unsigned int)take(&given, 1);
		struct talker *talker = &talkers[what >> 2 & 1];
		unsigned char act;

		switch (what & 3) {
		case 2:
			act = (unsigned char)take(&given, 1);
			talker->alone |= (act & 15) == 15;
			send(talker->stranger.control, &act, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
			break;
		case 3:
			meddle(talker, &given);
			break;
		default:
			say(talker, &given, what);
			break;
		}
	}
	end(exact);
}

/* An owner, so that hmmd has opened what it opens on first use. */
static void warm_up(void)
{
	struct {
		uint8_t what;
		uint8_t opcode[2], nfds, fds[5], length[2];
		uint8_t body[sizeof(struct hmm_msg_open) - sizeof(struct hmm_wire_header)];
	} step = {
		.opcode = { HMM_OP_OPEN }, .nfds = 5,
		.fds = { 16 + STRANGER_UFFD, 16 + STRANGER_MEM, 16 + STRANGER_PAGEMAP, 16 + STRANGER_MAPS, 16 + STRANGER_SMAPS },
	};
	struct hmm_msg_open open = { .slots_addr = STRANGER_SLOTS, .slots_count = STRANGER_SLOT_COUNT };

	_Static_assert(sizeof(step.body) < 256, "length fits a byte");
	step.length[0] = sizeof(step.body);
	memcpy(step.body, (uint8_t *)&open + sizeof(open.header), sizeof(step.body));
	run((const uint8_t *)&step, sizeof(step), true);
	if (!talkers[0].owner)
		wrong("no owner can be opened here", NULL);
	answer_ms = ANSWER_MS;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static unsigned int count;

	if (!count) {
		make_foreign();
		serving_begin();
		hmm_frame_init(&answer);
		warm_up();
	}
	run(data, size, ++count % 16 == 0 || getenv("HMM_FUZZ_EXACT"));
	return 0;
}
