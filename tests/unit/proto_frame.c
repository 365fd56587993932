// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Framing over a real socket pair: descriptors cross and are owned once, and
 * whatever a peer sends, none of its descriptors stays open in this process.
 * The suite counts descriptors around every test; those that are about leaks
 * count once more where it matters.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "frame.h"
#include "hmm_protocol.h"
#include "tests/leakcheck.h"

static struct hmm_frame frame;
static int pair[2];

static unsigned open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned count = 0;

	cr_assert_not_null(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

static void set_up(void)
{
	leakcheck_begin();
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	hmm_frame_init(&frame);
}

static void tear_down(void)
{
	hmm_frame_close(&frame);
	close(pair[0]);
	if (pair[1] >= 0)
		close(pair[1]);
	leakcheck_end();
}

/* A datagram as a hostile peer would send it: any bytes, any number of descriptors. */
static void send_raw(const void *bytes, size_t size, unsigned nfds)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int) * 253)];
		struct cmsghdr align;
	} control = { .bytes = { 0 } };
	struct iovec iov = { .iov_base = (void *)bytes, .iov_len = size };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	int fd = memfd_create("sent", MFD_CLOEXEC);

	cr_assert_geq(fd, 0);
	if (nfds) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		for (unsigned i = 0; i < nfds; i++)
			memcpy(CMSG_DATA(&control.align) + i * sizeof(int), &fd, sizeof(int));
	}
	cr_assert_eq(sendmsg(pair[1], &msg, MSG_NOSIGNAL), (ssize_t)size, "%m");
	close(fd);
}

static void send_empty(uint32_t claimed_size, size_t size, uint16_t claimed_nfds, unsigned nfds)
{
	static union {
		struct hmm_wire_header header;
		uint8_t bytes[HMM_WIRE_MAX + 4096];
	} msg;

	memset(&msg.header, 0, sizeof(msg.header));
	msg.header.size = claimed_size;
	msg.header.opcode = HMM_OP_HELLO;
	msg.header.nfds = claimed_nfds;
	send_raw(&msg, size, nfds);
}

TestSuite(proto_frame, .init = set_up, .fini = tear_down);

Test(proto_frame, message_and_descriptors_cross)
{
	struct hmm_msg_region region;
	struct stat sent, received;
	int fds[2], taken;

	fds[0] = memfd_create("first", 0);
	fds[1] = memfd_create("second", 0);
	HMM_MSG_INIT(region, HMM_OP_REGION, 0);
	region.base = 0x40000000;
	cr_assert_eq(hmm_frame_send(pair[1], &region, fds, 2), 0);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), (int)sizeof(region));
	cr_assert_eq(frame.size, sizeof(region));
	cr_assert_eq(frame.header.nfds, 2);
	cr_assert_eq(frame.nfds, 2);
	region.header.nfds = 2;
	cr_assert_arr_eq(frame.data, &region, sizeof(region));

	taken = hmm_frame_take_fd(&frame, 1);
	cr_assert_eq(fcntl(taken, F_GETFD), FD_CLOEXEC);
	cr_assert_eq(fstat(taken, &received), 0);
	cr_assert_eq(fstat(fds[1], &sent), 0);
	cr_assert_eq(sent.st_ino, received.st_ino);
	cr_assert_eq(hmm_frame_take_fd(&frame, 1), -EBADF);
	cr_assert_eq(hmm_frame_take_fd(&frame, 2), -EBADF);
	cr_assert_eq(hmm_frame_take_fd(&frame, UINT32_MAX), -EBADF);

	/* The frame closes what is left and not what was taken. */
	hmm_frame_close(&frame);
	hmm_frame_close(&frame);
	cr_assert_eq(fstat(taken, &received), 0);
	close(taken);
	close(fds[0]);
	close(fds[1]);
}

Test(proto_frame, most_descriptors_cross)
{
	unsigned before = open_fds();

	send_empty(16, 16, HMM_WIRE_MAX_FDS, HMM_WIRE_MAX_FDS);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), 16);
	cr_assert_eq(frame.nfds, HMM_WIRE_MAX_FDS);
	cr_assert_eq(open_fds(), before + HMM_WIRE_MAX_FDS);
	for (int i = 0; i < HMM_WIRE_MAX_FDS; i++)
		cr_assert_eq(fcntl(frame.fds[i], F_GETFD), FD_CLOEXEC);
	hmm_frame_close(&frame);
	cr_assert_eq(open_fds(), before);
}

Test(proto_frame, next_message_closes_what_was_left)
{
	unsigned before = open_fds();

	for (int i = 0; i < 100; i++) {
		send_empty(16, 16, 3, 3);
		cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), 16);
		cr_assert_eq(open_fds(), before + 3);
	}
	send_empty(16, 16, 0, 0);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), 16);
	cr_assert_eq(open_fds(), before);
}

Test(proto_frame, longest_message_crosses)
{
	send_empty(HMM_WIRE_MAX, HMM_WIRE_MAX, 1, 1);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), HMM_WIRE_MAX);
	cr_assert_eq(frame.nfds, 1);
}

/* Each of these arrives with open descriptors, and none may stay. */
static void expect_refused(int error)
{
	unsigned before = open_fds();

	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), error);
	cr_assert_eq(frame.nfds, 0);
	cr_assert_eq(frame.size, 0);
	cr_assert_eq(open_fds(), before);
	/* The connection still works; to end it is the caller's decision. */
	send_empty(16, 16, 0, 0);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), 16);
}

Test(proto_frame, too_long)
{
	send_empty(HMM_WIRE_MAX + 1, HMM_WIRE_MAX + 1, 5, 5);
	expect_refused(-EMSGSIZE);
	send_empty(HMM_WIRE_MAX + 4096, HMM_WIRE_MAX + 4096, 16, 16);
	expect_refused(-EMSGSIZE);
}

Test(proto_frame, too_many_descriptors)
{
	send_empty(16, 16, HMM_WIRE_MAX_FDS + 1, HMM_WIRE_MAX_FDS + 1);
	expect_refused(-EPROTO);
	send_empty(16, 16, HMM_WIRE_MAX_FDS, HMM_WIRE_MAX_FDS + 1);
	expect_refused(-EPROTO);
	send_empty(16, 16, 253, 253);
	expect_refused(-EPROTO);
}

Test(proto_frame, lying_headers)
{
	send_empty(16, 8, 1, 1);
	expect_refused(-EPROTO);
	send_empty(8, 8, 1, 1);
	expect_refused(-EPROTO);
	send_empty(16, 1, 0, 0);
	expect_refused(-EPROTO);
	send_empty(15, 16, 1, 1);
	expect_refused(-EPROTO);
	send_empty(17, 16, 1, 1);
	expect_refused(-EPROTO);
	send_empty(0, 16, 1, 1);
	expect_refused(-EPROTO);
	send_empty(UINT32_MAX, 16, 1, 1);
	expect_refused(-EPROTO);
	send_empty(16, 16, 0, 1);
	expect_refused(-EPROTO);
	send_empty(16, 16, 2, 1);
	expect_refused(-EPROTO);
	send_empty(16, 16, 1, 0);
	expect_refused(-EPROTO);
}

/* An empty datagram can't be told from the end of the stream, but may carry descriptors. */
Test(proto_frame, empty_datagram)
{
	unsigned before = open_fds();

	send_raw("", 0, 4);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), 0);
	cr_assert_eq(open_fds(), before);
}

Test(proto_frame, no_room_for_descriptors)
{
	struct rlimit old, tight;
	unsigned before = open_fds();
	int lowest = dup(pair[0]);

	cr_assert_geq(lowest, 0);
	close(lowest);
	send_empty(16, 16, 4, 4);
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &old), 0);
	tight = old;
	tight.rlim_cur = lowest + 2;	/* for two of the four, or fewer */
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &tight), 0);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), -EPROTO);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &old), 0);
	cr_assert_eq(open_fds(), before);
}

Test(proto_frame, nothing_there)
{
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, MSG_DONTWAIT), -EAGAIN);
	cr_assert_eq(fcntl(pair[0], F_SETFL, O_NONBLOCK), 0);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), -EAGAIN);
}

Test(proto_frame, end_of_stream)
{
	send_empty(16, 16, 0, 0);
	close(pair[1]);
	pair[1] = -1;
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), 16);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), 0);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), 0);
}

/* A raised SIGPIPE would end this process. Today's kernels raise it for stream sockets only. */
Test(proto_frame, peer_is_gone)
{
	struct hmm_msg_owner_gone gone;
	int stream[2];

	signal(SIGPIPE, SIG_DFL);
	HMM_MSG_INIT(gone, HMM_OP_OWNER_GONE, 0);
	close(pair[1]);
	pair[1] = -1;
	cr_assert_eq(hmm_frame_send(pair[0], &gone, NULL, 0), -EPIPE);

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream), 0);
	close(stream[1]);
	cr_assert_eq(hmm_frame_send(stream[0], &gone, NULL, 0), -EPIPE);
	close(stream[0]);
}

Test(proto_frame, peer_does_not_read)
{
	static struct hmm_msg_hello hello;
	int result, sent = 0;

	HMM_MSG_INIT(hello, HMM_OP_HELLO, 1);
	cr_assert_eq(fcntl(pair[1], F_SETFL, O_NONBLOCK), 0);
	while ((result = hmm_frame_send(pair[1], &hello, NULL, 0)) == 0)
		sent++;
	cr_assert_eq(result, -EAGAIN);
	cr_assert_gt(sent, 0);
	while (sent-- > 0)
		cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), (int)sizeof(hello));
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, MSG_DONTWAIT), -EAGAIN);
}

Test(proto_frame, sends_that_cannot_be)
{
	struct hmm_msg_hello hello;
	int fds[HMM_WIRE_MAX_FDS + 1] = { 0 };
	int closed = -1;

	HMM_MSG_INIT(hello, HMM_OP_HELLO, 1);
	cr_assert_eq(hmm_frame_send(pair[1], &hello, fds, HMM_WIRE_MAX_FDS + 1), -EINVAL);
	cr_assert_eq(hmm_frame_send(pair[1], &hello, &closed, 1), -EBADF);
	hello.header.size = HMM_WIRE_MAX + 1;
	cr_assert_eq(hmm_frame_send(pair[1], &hello, NULL, 0), -EMSGSIZE);
	hello.header.size = 15;
	cr_assert_eq(hmm_frame_send(pair[1], &hello, NULL, 0), -EINVAL);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, MSG_DONTWAIT), -EAGAIN);
}

Test(proto_frame, not_a_socket)
{
	struct hmm_msg_hello hello;
	int fd = memfd_create("file", MFD_CLOEXEC);

	HMM_MSG_INIT(hello, HMM_OP_HELLO, 1);
	cr_assert_eq(hmm_frame_recv(fd, &frame, 0), -ENOTSOCK);
	cr_assert_eq(hmm_frame_send(fd, &hello, NULL, 0), -ENOTSOCK);
	cr_assert_eq(hmm_frame_recv(-1, &frame, 0), -EBADF);
	close(fd);
}

Test(proto_frame, peer_is_known)
{
	struct ucred cred;

	cr_assert_eq(hmm_frame_peer(pair[0], &cred), 0);
	cr_assert_eq(cred.uid, getuid());
	cr_assert_eq(hmm_frame_peer(-1, &cred), -EBADF);
}

/* ---- HMMD_DEBUG=wire ------------------------------------------------------------- */

static char printed[4096];

/* What crosses the pair while HMMD_DEBUG has this value. */
static void exchange(const char *setting)
{
	struct hmm_msg_device_put put;
	int out = memfd_create("printed", MFD_CLOEXEC), sent = memfd_create("sent", MFD_CLOEXEC);
	ssize_t length;

	if (setting)
		setenv("HMMD_DEBUG", setting, 1);
	else
		unsetenv("HMMD_DEBUG");
	hmm_frame_debug_init("test");
	hmm_frame_debug_fd(out);
	HMM_MSG_INIT(put, HMM_OP_DEVICE_PUT, 5);
	put.device = 9;
	cr_assert_eq(hmm_frame_send(pair[1], &put, &sent, 1), 0);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), (int)sizeof(put));
	length = pread(out, printed, sizeof(printed) - 1, 0);
	cr_assert_geq(length, 0);
	printed[length] = '\0';
	close(sent);
	close(out);
	hmm_frame_debug_fd(STDERR_FILENO);
	unsetenv("HMMD_DEBUG");
	hmm_frame_debug_init("test");
}

Test(proto_frame, debug_prints_both_ways)
{
	char expected[256];

	snprintf(expected, sizeof(expected),
		 "test[%d] %d -> (1 fds) device_put serial=5 device=9\n"
		 "test[%d] %d <- (1 fds) device_put serial=5 device=9\n",
		 getpid(), pair[1], getpid(), pair[0]);
	exchange("wire");
	cr_assert_str_eq(printed, expected);
	exchange("other,wire,more");
	cr_assert_str_eq(printed, expected);
}

Test(proto_frame, debug_is_silent_unasked)
{
	exchange(NULL);
	cr_assert_str_empty(printed);
	exchange("");
	cr_assert_str_empty(printed);
	exchange("wires,rewire");
	cr_assert_str_empty(printed);
}

/* The line is cut, not the message, and what can't be decoded is still shown. */
Test(proto_frame, debug_prints_what_is_refused)
{
	int out = memfd_create("printed", MFD_CLOEXEC);
	ssize_t length;

	setenv("HMMD_DEBUG", "wire", 1);
	hmm_frame_debug_init("test");
	hmm_frame_debug_fd(out);
	send_empty(16, 3, 2, 2);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), -EPROTO);
	send_empty(HMM_WIRE_MAX + 1, HMM_WIRE_MAX + 1, 0, 0);
	cr_assert_eq(hmm_frame_recv(pair[0], &frame, 0), -EMSGSIZE);
	length = pread(out, printed, sizeof(printed) - 1, 0);
	cr_assert_gt(length, 0);
	printed[length] = '\0';
	cr_assert_not_null(strstr(printed, "(2 fds) (3 bytes, no header)\n"), "%s", printed);
	cr_assert_not_null(strstr(printed, "hello serial=0 (message is too long"), "%s", printed);
	close(out);
}
