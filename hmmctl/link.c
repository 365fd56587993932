// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * link.c - speaks the protocol to hmmd, as a tool.
 *
 * Connect, exchange hello, then strictly one request after the other; events
 * that arrive in between are not for a tool and are dropped. A reply that does
 * not fit the schema ends the connection: this hmmctl and this hmmd are not a
 * pair. Only the main thread talks.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "link.h"

#define SYSTEM_SOCKET "/run/hmmd/hmmd.sock"
/* Of hmmd-admin.socket. Who may open it gets in there, however many programs throng before the other. */
#define ADMIN_SOCKET "/run/hmmd/admin.sock"

void link_init(struct link *link)
{
	memset(link, 0, offsetof(struct link, frame));
	link->fd = -1;
	hmm_frame_init(&link->frame);
}

int link_fail(struct link *link, int error, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(link->text, sizeof(link->text), format, arguments);
	va_end(arguments);
	link->error = error;
	return error;
}

/* Return: 0, or a negative errno: nobody listens there. */
static int connect_to(struct link *link, const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int ret = 0;

	if (strlen(path) >= sizeof(address.sun_path))
		return link_fail(link, -ENAMETOOLONG, "a socket's path has at most %zu characters",
				 sizeof(address.sun_path) - 1);
	strcpy(address.sun_path, path);
	strcpy(link->path, path);
	link->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (link->fd < 0)
		return link_fail(link, -errno, "%s", strerror(errno));
	if (connect(link->fd, (struct sockaddr *)&address, sizeof(address))) {
		ret = link_fail(link, -errno, "%s", strerror(errno));
		link_close(link);
	}
	return ret;
}

static int find_daemon(struct link *link)
{
	const char *path = getenv("HMM_SOCKET"), *runtime = getenv("XDG_RUNTIME_DIR");
	char user_socket[108];
	struct link first;
	int ret;

	if (path && *path)
		return connect_to(link, path);
	if (!connect_to(link, ADMIN_SOCKET))
		return 0;
	ret = connect_to(link, SYSTEM_SOCKET);
	if (!ret || !runtime)
		return ret;
	/* When there is none either, the system's hmmd is the one to complain about. */
	first = *link;
	snprintf(user_socket, sizeof(user_socket), "%s/hmmd.sock", runtime);
	if (!connect_to(link, user_socket))
		return 0;
	*link = first;
	return ret;
}

static int say_hello(struct link *link, uint32_t role)
{
	struct hmm_msg_hello hello;

	HMM_MSG_INIT(hello, HMM_OP_HELLO, 0);
	hello.version_min = HMM_PROTOCOL_VERSION;
	hello.version_max = HMM_PROTOCOL_VERSION;
	hello.role = role;
	HMM_MSG_TEXT(hello.name, "hmmctl");
	return link_request(link, &hello) ? 0 : link->error;
}

int link_open(struct link *link, const char *path)
{
	return link_open_as(link, path, HMM_ROLE_TOOL);
}

int link_open_as(struct link *link, const char *path, uint32_t role)
{
	int ret = path ? connect_to(link, path) : find_daemon(link);

	if (ret)
		return ret;
	ret = say_hello(link, role);
	if (ret)
		link_close(link);
	return ret;
}

void link_close(struct link *link)
{
	hmm_frame_close(&link->frame);
	if (link->fd >= 0)
		close(link->fd);
	link->fd = -1;
}

static int receive(struct link *link, uint32_t serial)
{
	const char *why = "";
	int ret;

	do {
		ret = hmm_frame_recv(link->fd, &link->frame, 0);
		if (ret == 0)
			return link_fail(link, -ECONNRESET, "hmmd closed the connection");
		if (ret < 0)
			return link_fail(link, ret, "%s", strerror(-ret));
		ret = hmm_wire_check(link->frame.data, link->frame.size, link->frame.nfds,
				     HMM_WIRE_SERVER, &why);
		if (ret)
			return link_fail(link, -EPROTO, "hmmd's answer is not understood: %s", why);
	} while (link->frame.header.serial != serial);
	return 0;
}

const void *link_event(struct link *link)
{
	/* Events are the messages that answer nothing. */
	if (!receive(link, 0))
		return link->frame.data;
	link_close(link);
	return NULL;
}

int link_take_fd(struct link *link, unsigned int index)
{
	return hmm_frame_take_fd(&link->frame, index);
}

const void *link_request(struct link *link, void *message)
{
	struct hmm_wire_header *header = message;
	const struct hmm_msg_error *error = (const void *)link->frame.data;
	int ret;

	if (link->fd < 0) {
		link_fail(link, -ENOTCONN, "not connected");
		return NULL;
	}
	header->serial = ++link->serial;
	ret = hmm_frame_send(link->fd, message, NULL, 0);
	if (ret)
		link_fail(link, ret, "%s", strerror(-ret));
	else
		ret = receive(link, header->serial);
	if (ret) {
		link_close(link);
		return NULL;
	}
	if (link->frame.header.opcode == HMM_OP_ERROR) {
		link_fail(link, error->error ? error->error : -EIO, "%s", error->text);
		return NULL;
	}
	if (link->frame.header.opcode != (header->opcode | HMM_WIRE_REPLY)) {
		link_fail(link, -EPROTO, "hmmd answered something else: %s",
			  hmm_opcode_name(link->frame.header.opcode));
		link_close(link);
		return NULL;
	}
	return link->frame.data;
}

/* Every list request begins so behind its header, and every reply too. */
struct list_head {
	struct hmm_wire_header header;
	uint32_t count, more;
};

/* Where the next part begins: records are in order of what the cursor counts. */
static void move_cursor(void *message, const void *last, size_t n)
{
	const struct hmm_wire_header *header = message;

	switch (header->opcode) {
	case HMM_OP_LAYOUT:
		((struct hmm_msg_layout *)message)->cursor =
			((const struct hmm_record_range_info *)last)->end;
		break;
	case HMM_OP_RANGES:
		((struct hmm_msg_ranges *)message)->cursor =
			((const struct hmm_record_range_info *)last)->end;
		break;
	case HMM_OP_ATTRIBUTES:
		((struct hmm_msg_attributes *)message)->cursor =
			((const struct hmm_record_attribute_info *)last)->end;
		break;
	case HMM_OP_STATS:
		((struct hmm_msg_stats *)message)->cursor = (uint32_t)n;
		break;
	case HMM_OP_USAGE:
		((struct hmm_msg_usage *)message)->cursor = (uint32_t)n;
		break;
	case HMM_OP_DOCTOR:
		((struct hmm_msg_doctor *)message)->cursor = (uint32_t)n;
		break;
	default:	/* clients, owners, mirrors, pools: an id is first in every record */
		((struct hmm_msg_owners *)message)->cursor = *(const uint32_t *)last + 1;
		break;
	}
}

long link_list(struct link *link, void *message, size_t record_size, void *records)
{
	const struct hmm_wire_message *description;
	const struct list_head *reply;
	char *list = NULL, *grown;
	size_t n = 0;

	do {
		reply = link_request(link, message);
		if (!reply) {
			free(list);
			return link->error;
		}
		description = hmm_wire_message(reply->header.opcode);
		grown = reallocarray(list, n + reply->count + 1, record_size);
		if (!grown) {
			free(list);
			return link_fail(link, -ENOMEM, "out of memory");
		}
		list = grown;
		memcpy(list + n * record_size, link->frame.data + description->size,
		       reply->count * record_size);
		n += reply->count;
		if (reply->count)
			move_cursor(message, list + (n - 1) * record_size, n);
	} while (reply->more && reply->count);
	*(void **)records = list;
	return (long)n;
}
