/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * device.c - named devices. One handle per name and address space; opening it again
 * is another reference.
 *
 * A device lives in hmmd as long as its creator's connection, so that after a
 * restart its creator makes it again and whoever else had it waits for that.
 */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "arena.h"
#include "devmem.h"
#include "group.h"
#include "space.h"

_Static_assert(HMM_DEVICE_FAULTS == HMM_DEVICE_CAPS_FAULTS &&
		       HMM_DEVICE_COPY_ENGINE == HMM_DEVICE_CAPS_COPY_ENGINE &&
		       (int)HMM_POOL_HUGETLB == (int)HMM_POOL_KIND_HUGETLB &&
		       (int)HMM_POOL_DAX == (int)HMM_POOL_KIND_DAX &&
		       (int)HMM_POOL_VFIO == (int)HMM_POOL_KIND_VFIO &&
		       (int)HMM_PLACE_INTERLEAVE == (int)HMM_PLACEMENT_INTERLEAVE,
	       "the protocol says the same");

/* One that its last user is giving back is nobody's any more. With hmm->lock held. */
static struct hmm_device *find(struct hmm *hmm, const char *name)
{
	struct hmm_device *device;

	for (device = hmm->devices; device; device = device->next)
		if (device->references && strcmp(device->name, name) == 0)
			break;
	return device;
}

/* In the receiver. */
static int finish_device(struct request *request, struct hmm_frame *frame)
{
	struct hmm_device *device = request->data;
	struct hmm *hmm = request->connection->hmm;

	if (frame->header.opcode == HMM_OP_DEVICE_NEW_REPLY) {
		const struct hmm_msg_device_new_reply *reply = (const void *)frame->data;

		device->id = reply->device;
		device->memory = reply->size;
	} else {
		const struct hmm_msg_device_open_reply *reply = (const void *)frame->data;

		device->id = reply->device;
		device->memory = reply->size;
		device->pool = (enum hmm_pool)reply->pool;
		device->caps = reply->caps;
		memcpy(device->bus, reply->bus, sizeof(device->bus));
	}
	futex_lock(&hmm->lock);
	device->next = hmm->devices;
	hmm->devices = device;
	futex_unlock(&hmm->lock);
	return 0;
}

static void fill_new(struct hmm_msg_device_new *message, const struct hmm_device *device)
{
	message->pool = device->pool;
	message->node = device->node;
	message->placement = (uint32_t)device->placement;
	message->nodes = device->nodes;
	message->size = device->wanted;
	message->caps = device->caps;
	HMM_MSG_TEXT(message->name, device->name);
	HMM_MSG_TEXT(message->bus, device->bus);
	message->bar = device->bar;
	HMM_MSG_TEXT(message->memory_bus, device->memory_bus);
}

static int call(struct hmm *hmm, struct hmm_device *device, uint16_t op, size_t size)
{
	struct request *request = hmmc_request_new(hmm->connection, op, size);
	int error;

	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	if (op == HMM_OP_DEVICE_NEW)
		fill_new((struct hmm_msg_device_new *)request->message, device);
	else
		HMM_MSG_TEXT(((struct hmm_msg_device_open *)request->message)->name, device->name);
	request->data = device;
	request->finish = finish_device;
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	return error;
}

static int check_name(const char *name)
{
	size_t length = name ? strlen(name) : 0;

	if (length < 1 || length > 63)
		return hmmc_fail(-EINVAL, "a device's name has 1 to 63 characters");
	for (size_t i = 0; i < length; i++)
		if (name[i] <= ' ' || name[i] > '~')
			return hmmc_fail(-EINVAL, "a device's name has printable characters only");
	return 0;
}

/* Of what the nodes are hmmd knows. */
static int check_placement(const struct hmm_device_options *options)
{
	if ((unsigned int)options->placement > HMM_PLACE_INTERLEAVE)
		return hmmc_fail(-EINVAL, "there is no placement %d", options->placement);
	if (options->node < -1 || options->node > 1023)
		return hmmc_fail(-EINVAL, "there is no memory node %d; -1 is any", options->node);
	if (options->node >= 0 && options->nodes)
		return hmmc_fail(-EINVAL, "options.node and options.nodes both name memory nodes: node is -1 where nodes does");
	if (options->nodes && !options->placement)
		return hmmc_fail(-EINVAL, "options.nodes goes with a placement: HMM_PLACE_BIND, _PREFERRED or _INTERLEAVE");
	if (options->placement && options->node < 0 && !options->nodes)
		return hmmc_fail(-EINVAL, "options.placement needs a memory node, or several");
	return 0;
}

/* What else it has to be hmmd knows. */
static int check_bus(const char *bus)
{
	if (bus && strlen(bus) >= sizeof(((struct hmm_device *)0)->bus))
		return hmmc_fail(-EINVAL, "'%.40s' is no PCI address: it looks like 0000:00:04.0", bus);
	return 0;
}

/* What else a BAR needs hmmd knows. */
static int check_bar(const struct hmm_device_options *options)
{
	const char *memory = options->memory_bus ? options->memory_bus : "";

	if (options->pool != HMM_POOL_VFIO)
		return options->bar || *memory ? hmmc_fail(-EINVAL, "options.%s goes with HMM_POOL_VFIO",
							   options->bar ? "bar" : "memory_bus") : 0;
	if (!options->bus || !*options->bus)
		return hmmc_fail(-EINVAL, "HMM_POOL_VFIO is a card's BAR: options.bus says which card");
	if (options->bar > 5)
		return hmmc_fail(-EINVAL, "a card has BARs 0 to 5, and no %u", options->bar);
	return check_bus(memory);
}

int hmm_device_new(struct hmm *hmm, const struct hmm_device_options *given,
		   struct hmm_device **result)
{
	struct hmm_device_options options;
	struct hmm_device *device;
	int error = hmmc_space_check(hmm);

	if (error)
		return error;
	if (!given || !result)
		return hmmc_fail(-EINVAL, "options or result is NULL");
	error = hmmc_take_options(given, &options, sizeof(options));
	if (!error)
		error = check_name(options.name);
	if (error)
		return error;
	if (options.pool > HMM_POOL_VFIO)
		return hmmc_fail(-EINVAL, "there is no pool of kind %d", options.pool);
	error = check_placement(&options);
	if (!error)
		error = check_bar(&options);
	if (error)
		return error;
	if (options.caps & ~(HMM_DEVICE_FAULTS | HMM_DEVICE_WRITE_PROTECT | HMM_DEVICE_DMA |
			     HMM_DEVICE_COPY_ENGINE))
		return hmmc_fail(-EINVAL, "options.caps has unknown bits");
	error = check_bus(options.bus);
	if (error)
		return error;
	if (options.caps & HMM_DEVICE_WRITE_PROTECT && !(options.caps & HMM_DEVICE_FAULTS))
		return hmmc_fail(-EINVAL,
				 "HMM_DEVICE_WRITE_PROTECT needs HMM_DEVICE_FAULTS: a write to a protected page is a fault");
	device = hmmc_arena_alloc(sizeof(*device));
	if (!device)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	device->hmm = hmm;
	device->references = 1;
	device->created = true;
	snprintf(device->name, sizeof(device->name), "%s", options.name);
	device->wanted = options.memory;
	device->pool = options.pool;
	device->node = options.node;
	device->placement = options.placement;
	device->nodes = options.nodes;
	device->caps = options.caps;
	device->drvdata = options.drvdata;
	device->bar = options.bar;
	if (options.bus)
		strcpy(device->bus, options.bus);
	if (options.memory_bus)
		strcpy(device->memory_bus, options.memory_bus);
	error = call(hmm, device, HMM_OP_DEVICE_NEW, sizeof(struct hmm_msg_device_new));
	if (error)
		hmmc_arena_free(device, sizeof(*device));
	else
		*result = device;
	return error;
}

int hmm_device_open(struct hmm *hmm, const char *name, struct hmm_device **result)
{
	struct hmm_device *device;
	int error = hmmc_space_check(hmm);

	if (error)
		return error;
	if (!result)
		return hmmc_fail(-EINVAL, "result is NULL");
	error = check_name(name);
	if (error)
		return error;
	futex_lock(&hmm->lock);
	device = find(hmm, name);
	if (device)
		device->references++;
	futex_unlock(&hmm->lock);
	if (device) {
		*result = device;
		return 0;
	}
	device = hmmc_arena_alloc(sizeof(*device));
	if (!device)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	device->hmm = hmm;
	device->references = 1;
	snprintf(device->name, sizeof(device->name), "%s", name);
	error = call(hmm, device, HMM_OP_DEVICE_OPEN, sizeof(struct hmm_msg_device_open));
	if (error)
		hmmc_arena_free(device, sizeof(*device));
	else
		*result = device;
	return error;
}

void hmmc_device_reference(struct hmm_device *device)
{
	futex_lock(&device->hmm->lock);
	device->references++;
	futex_unlock(&device->hmm->lock);
}

static void forget(struct hmm *hmm, struct hmm_device *device)
{
	struct hmm_device **at;

	futex_lock(&hmm->restore_lock);
	futex_lock(&hmm->lock);
	for (at = &hmm->devices; *at && *at != device; at = &(*at)->next)
		;
	if (*at)
		*at = device->next;
	futex_unlock(&hmm->lock);
	futex_unlock(&hmm->restore_lock);
}

static int prepare_put(struct request *request)
{
	const struct hmm_device *device = request->data;

	((struct hmm_msg_device_put *)request->message)->device = device->id;
	return 0;
}

static int finish_put(struct request *request, struct hmm_frame *frame)
{
	forget(request->connection->hmm, request->data);
	return 0;
}

static void give_back(struct hmm_device *device)
{
	struct hmm *hmm = device->hmm;
	struct request *request;

	if (hmmc_space_check(hmm) == 0) {
		request = hmmc_request_new(hmm->connection, HMM_OP_DEVICE_PUT,
					   sizeof(struct hmm_msg_device_put));
		if (request) {
			request->data = device;
			request->prepare = prepare_put;
			request->finish = finish_put;
			hmmc_request_call(request);
			hmmc_request_free(request);
		}
	}
	forget(hmm, device);
	hmmc_arena_free(device, sizeof(*device));
}

void hmm_device_put(struct hmm_device *device)
{
	bool last;

	if (!device || hmmc_space_check_handle(device->hmm))
		return;		/* a fork's child has its parent's, and nothing to give back */
	futex_lock(&device->hmm->lock);
	last = --device->references == 0;
	futex_unlock(&device->hmm->lock);
	if (!last)
		return;
	if (device->count)
		hmmc_group_free(device);
	else if (device->devmem && hmm_devmem_remove(&device->devmem->devmem, true))
		hmmc_device_reference(device);	/* the memory stays, and its device with it */
	else
		give_back(device);
}

void hmmc_device_close(struct hmm_device *device)
{
	if (device->devmem)
		hmmc_devmem_close(device->devmem);
	give_back(device);
}

void *hmm_device_drvdata(const struct hmm_device *device)
{
	return device ? device->drvdata : NULL;
}

uint64_t hmm_device_memory(const struct hmm_device *device)
{
	return device ? device->memory : 0;
}

uint64_t hmm_device_caps(const struct hmm_device *device)
{
	return device ? device->caps : 0;
}

/* ---- the card's own descriptor ------------------------------------------------------ */

union baggage {
	char bytes[CMSG_SPACE(sizeof(int))];
	struct cmsghdr align;
};

struct passage {
	struct hmm_device *device;
	int from;		/* an end of a pair of sockets, in the program's table */
	int to;			/* the other one, in the private table */
	int error;
};

/* In the clerk. */
static int take_end(void *argument)
{
	struct passage *passage = argument;

	passage->to = hmmc_clerk_take_fd(passage->from);
	return passage->to < 0 ? passage->to : 0;
}

static int close_end(void *argument)
{
	const struct passage *passage = argument;

	close(passage->to);
	return 0;
}

static int prepare_fd(struct request *request)
{
	const struct passage *passage = request->data;

	((struct hmm_msg_device_fd *)request->message)->device = passage->device->id;
	return 0;
}

/*
 * In the receiver: its descriptors are not the program's, so this one goes there as any would to
 * another process.
 */
static int finish_fd(struct request *request, struct hmm_frame *frame)
{
	struct passage *passage = request->data;
	int fd = hmm_frame_take_fd(frame, 0);
	union baggage baggage = { .bytes = { 0 } };
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &baggage,
				  .msg_controllen = sizeof(baggage) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	if (sendmsg(passage->to, &message, MSG_NOSIGNAL | MSG_DONTWAIT) != 1)
		passage->error = -errno;
	close(fd);
	return 0;
}

/* The program's own, or an error. */
static int receive(int end)
{
	union baggage baggage;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &baggage,
				  .msg_controllen = sizeof(baggage) };
	const struct cmsghdr *header;
	int fd;

	if (recvmsg(end, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != 1)
		return -errno;
	header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_type != SCM_RIGHTS || message.msg_flags & MSG_CTRUNC)
		return -EMFILE;
	memcpy(&fd, CMSG_DATA(header), sizeof(fd));
	return fd;
}

static int ask_for_fd(struct passage *passage, int end)
{
	struct request *request;
	int error;

	request = hmmc_request_new(passage->device->hmm->connection, HMM_OP_DEVICE_FD,
				   sizeof(struct hmm_msg_device_fd));
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	request->data = passage;
	request->prepare = prepare_fd;
	request->finish = finish_fd;
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	if (error)
		return error;
	error = passage->error ? passage->error : receive(end);
	if (error < 0)
		return hmmc_fail(error, "the card's descriptor did not arrive: %s", strerror(-error));
	return error;
}

int hmm_device_fd(struct hmm_device *device)
{
	struct passage *passage;	/* arena memory: the clerk and the receiver look at it */
	int ends[2], result;

	if (!device)
		return hmmc_fail(-EINVAL, "device is NULL");
	result = hmmc_space_check(device->hmm);
	if (result)
		return result;
	if (device->count || !*device->bus)
		return hmmc_fail(-EOPNOTSUPP,
				 "the device is no card: it was made without options.bus");
	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends))
		return hmmc_fail(-errno, "no socket for the card's descriptor: %s", strerror(errno));
	passage = hmmc_arena_alloc(sizeof(*passage));
	if (passage) {
		passage->device = device;
		passage->from = ends[1];
		result = hmmc_clerk_call(take_end, passage);
		if (result) {
			hmmc_fail(result, "no descriptor for the card's descriptor: %s",
				  strerror(-result));
		} else {
			result = ask_for_fd(passage, ends[0]);
			hmmc_clerk_call(close_end, passage);
		}
		hmmc_arena_free(passage, sizeof(*passage));
	} else {
		result = hmmc_fail(-ENOMEM, "the library's memory is used up");
	}
	close(ends[0]);
	close(ends[1]);
	return result;
}

/* ---- after a restart of hmmd, in the receiver ------------------------------------ */

static int make_again(struct hmm *hmm, struct hmm_device *device)
{
	const struct hmm_msg_device_new_reply *reply = (const void *)hmm->connection->frame->data;
	struct hmm_msg_device_new message;
	int error;

	HMM_MSG_INIT(message, HMM_OP_DEVICE_NEW, 0);
	fill_new(&message, device);
	message.again = 1;
	error = hmmc_connection_exchange(hmm->connection, &message, NULL, 0);
	if (!error) {
		device->id = reply->device;
		device->memory = reply->size;
	}
	return error;
}

static int open_again(struct hmm *hmm, struct hmm_device *device)
{
	const struct hmm_msg_device_open_reply *reply = (const void *)hmm->connection->frame->data;
	struct hmm_msg_device_open message;
	int error;

	HMM_MSG_INIT(message, HMM_OP_DEVICE_OPEN, 0);
	HMM_MSG_TEXT(message.name, device->name);
	error = hmmc_connection_exchange(hmm->connection, &message, NULL, 0);
	if (!error)
		device->id = reply->device;
	return error;
}

int hmmc_device_restore(struct hmm *hmm)
{
	uint64_t end = hmmc_connection_end(hmm->connection);
	int error = 0;

	for (struct hmm_device *device = hmm->devices; device && !error; device = device->next) {
		error = device->created ? make_again(hmm, device) : -EBUSY;
		while (error == -EBUSY || error == -EEXIST || error == -ENODEV) {
			error = open_again(hmm, device);
			if (error != -ENODEV || clock_ms() >= end ||
			    __atomic_load_n(&hmm->connection->closing, __ATOMIC_ACQUIRE))
				break;
			/* Its creator has not come back yet. */
			nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
		}
		if (!error)
			error = hmmc_devmem_restore(hmm, device);
	}
	return error;
}
