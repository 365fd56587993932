/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tracer.c - a debugger reads its victim's memory through the kernel, which
 * answers EIO for what is on a device: no fault is raised that hmmd could
 * serve. So when a tracer attaches to an owner, its pages come home by
 * themselves, which needs no help of the owner: it is stopped by then. A core dump reads in
 * the same way, and finds zeros; the dying process is told of before it begins.
 *
 * Happy path: PROC_EVENT_PTRACE or PROC_EVENT_COREDUMP arrives on the connector, server.c hands the
 * pid to the engine. What can fail is the subscription, and then nothing
 * happens by itself: `hmmctl drain --pid PID` does the same by hand.
 */
#include "daemon/control/tracer.h"

#include <errno.h>
#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * Of 6.6: subscribe to some events only. Older headers lack it; older kernels
 * ignore a message of this size, and then nothing is ever heard.
 */
struct filtered_subscription {
	uint32_t operation;	/* enum proc_cn_mcast_op */
	uint32_t events;
};

struct subscription {
	struct nlmsghdr netlink;
	struct cn_msg connector;
	struct filtered_subscription input;
} __attribute__((packed));

static int subscribe(int fd)
{
	struct subscription message = {
		.netlink = {
			.nlmsg_len = sizeof(message),
			.nlmsg_type = NLMSG_DONE,
			.nlmsg_pid = (uint32_t)getpid(),
		},
		.connector = {
			.id = { .idx = CN_IDX_PROC, .val = CN_VAL_PROC },
			.len = sizeof(message.input),
		},
		.input = { .operation = PROC_CN_MCAST_LISTEN, .events = PROC_EVENT_PTRACE | PROC_EVENT_COREDUMP },
	};

	return send(fd, &message, sizeof(message), 0) < 0 ? -errno : 0;
}

/* One message's payload, or NULL. */
static const void *receive(int fd, char *buffer, size_t size)
{
	const struct nlmsghdr *netlink = (const void *)buffer;
	const struct cn_msg *connector;
	ssize_t n = recv(fd, buffer, size, MSG_DONTWAIT);

	if (n < (ssize_t)NLMSG_LENGTH(sizeof(*connector) + sizeof(struct proc_event)))
		return NULL;
	connector = NLMSG_DATA(netlink);
	if (connector->id.idx != CN_IDX_PROC || connector->len < sizeof(uint32_t))
		return NULL;
	return (const void *)connector->data;
}

int tracer_listen(void)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = CN_IDX_PROC };
	int fd, r;

	fd = socket(PF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_CONNECTOR);
	if (fd < 0)
		return -errno;
	r = bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : subscribe(fd);
	if (r) {
		close(fd);
		return r;
	}
	return fd;
}

pid_t tracer_next(int fd, bool *dumps)
{
	char buffer[512] __attribute__((aligned(NLMSG_ALIGNTO)));
	const void *payload;
	struct proc_event event;

	while ((payload = receive(fd, buffer, sizeof(buffer)))) {
		/* Behind two headers of four-byte alignment; it wants eight. */
		memcpy(&event, payload, sizeof(event));
		*dumps = event.what == PROC_EVENT_COREDUMP;
		if (*dumps)
			return event.event_data.coredump.process_tgid;
		/* hmmd itself does so for a look at what was written, and reads nothing of what is out. */
		if (event.what == PROC_EVENT_PTRACE && event.event_data.ptrace.tracer_pid &&
		    event.event_data.ptrace.tracer_tgid != getpid())
			return event.event_data.ptrace.process_tgid;
	}
	return 0;
}
