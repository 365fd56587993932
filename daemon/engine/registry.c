/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * registry.c - what the engine has, listed for control: devices, pools,
 * owners, mirrors, counters. Runs on the control thread; workers change the
 * lists under the same lock, and counters are relaxed atomics.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/dma.h"
#include "engine/engine.h"
#include "engine/worker.h"
#include "log.h"

/* ---- devices -------------------------------------------------------------------- */

/* Whatever a pool of this kind needs to lie on: it fails in words, with the nodes that there are. */
static int check_nodes(struct letter *letter, enum hmm_pool_kind kind, uint64_t size,
		       const struct placement *placement)
{
	uint64_t there[HMM_NODE_WORDS], mask[HMM_NODE_WORDS], total = 0, huge = 0;
	char wanted[PLACEMENT_TEXT], known[PLACEMENT_TEXT];

	if (placement->mode == HMM_PLACEMENT_ANY)
		return 0;
	placement_print_nodes(placement, wanted, sizeof(wanted));
	if (kernel_nodes(there))
		return letter_fail(
			letter, -EOPNOTSUPP,
			"memory node %s: this kernel places no memory, or forbids hmmd to (NUMA, seccomp); node -1 is any",
			wanted);
	if (!placement_lies_in(placement, there))
		return letter_fail(
			letter, -EINVAL,
			"memory node %s is not here, or hmmd may not use it: there is memory on %s; node -1 is any",
			wanted, nodes_print(there, known, sizeof(known)));
	if (placement->mode != HMM_PLACEMENT_BIND)
		return 0;
	placement_mask(placement, mask);
	for (unsigned int node = 0; node < HMM_NODE_WORDS * 64; node++) {
		uint64_t bytes = 0, pages = 0;

		if (!(mask[node / 64] >> (node % 64) & 1))
			continue;
		kernel_node_size(node, &bytes);
		kernel_node_huge(node, &pages);
		total += bytes;
		huge += pages;
	}
	if (kind == HMM_POOL_KIND_HUGETLB && size && !huge)
		return letter_fail(
			letter, -ENOSPC,
			"no huge pages are reserved on memory node %s: write their number into nr_hugepages below "
			"/sys/devices/system/node/nodeN/hugepages",
			wanted);
	if (size > total)
		return letter_fail(letter, -ENOSPC,
				   "%lu bytes bound to memory node %s, which has %lu", size, wanted,
				   total);
	return 0;
}

/* Memory of dax devices: what the kernel has made nodes of, all of them or those that are named. */
static int choose_dax(struct letter *letter, struct placement *placement)
{
	char wanted[PLACEMENT_TEXT], known[PLACEMENT_TEXT];
	uint64_t nodes[HMM_NODE_WORDS];
	unsigned int others = 0;
	int count = kernel_dax_nodes(nodes, &others);
	const char *why;

	if (count <= 0)
		return letter_fail(
			letter, -ENODEV,
			"no dax device is memory with a node of its own (%u are something else): "
			"daxctl reconfigure-device --mode=system-ram, and see hmmd.conf(5)",
			others);
	if (placement->mode == HMM_PLACEMENT_ANY)
		placement_make(placement, HMM_PLACEMENT_BIND, -1, nodes[0], &why);
	if (placement->mode == HMM_PLACEMENT_ANY || !placement_lies_in(placement, nodes))
		return letter_fail(letter, -EINVAL,
				   "memory node %s is not of dax devices alone: those are %s",
				   placement_print_nodes(placement, wanted, sizeof(wanted)),
				   nodes_print(nodes, known, sizeof(known)));
	return 0;
}

static int choose_placement(const struct engine *engine, struct letter *letter,
			    enum hmm_pool_kind kind, struct placement *placement)
{
	const struct hmm_msg_device_new *message = (const void *)letter->message;
	const char *why;

	if (placement_make(placement, message->placement, message->node, message->nodes, &why))
		return letter_fail(letter, -EINVAL, "%s", why);
	/* What is configured for other memory is not meant for this. */
	if (placement->mode == HMM_PLACEMENT_ANY &&
	    (kind == HMM_POOL_KIND_DAX) == (engine->options.pool_kind == HMM_POOL_KIND_DAX))
		*placement = engine->options.pool_placement;
	if (kind == HMM_POOL_KIND_DAX && message->size && choose_dax(letter, placement))
		return letter->error;
	return check_nodes(letter, kind, message->size, placement);
}

static int open_card(struct letter *letter, const struct hmm_msg_device_new *message,
		     struct card **card)
{
	char why[sizeof(letter->text)];
	int r;

	if (!(message->caps & HMM_DEVICE_CAPS_DMA))
		return letter_fail(
			letter, -EINVAL,
			"a card with a bus address reaches memory by itself: it goes with dma");
	if (message->caps & HMM_DEVICE_CAPS_FAULTS)
		return letter_fail(
			letter, -EOPNOTSUPP,
			"a card behind VFIO cannot retry an access: it goes without faults");
	r = card_open(message->bus, letter->uid, letter->gid, card, why, sizeof(why));
	return r ? letter_fail(letter, r, "%s", why) : 0;
}

/* The card at bus is the device, and not only its memory. */
static bool is_card(const struct hmm_msg_device_new *message, enum hmm_pool_kind kind)
{
	return *message->bus && (kind != HMM_POOL_KIND_VFIO || *message->memory_bus ||
				 message->pool == HMM_POOL_KIND_CONFIGURED);
}

static int check_memory_bus(struct letter *letter, enum hmm_pool_kind kind)
{
	const struct hmm_msg_device_new *message = (const void *)letter->message;

	if (!*message->memory_bus)
		return 0;
	if (kind != HMM_POOL_KIND_VFIO || message->pool == HMM_POOL_KIND_CONFIGURED)
		return letter_fail(letter, -EINVAL, "memory_bus names a card whose BAR is the memory: it goes with a pool of kind vfio");
	if (!*message->bus)
		return letter_fail(letter, -EINVAL, "memory_bus goes with another card, at bus, that reaches that memory");
	if (strcmp(message->bus, message->memory_bus) == 0)
		return letter_fail(letter, -EINVAL, "%s does not reach its own BAR through its IOMMU: memory_bus is another card", message->bus);
	return 0;
}

/* What a device was made of before a restart is not to be had any more, whoever asks again and however often. */
static bool is_gone(int error)
{
	return error == -ENODEV || error == -ENXIO || error == -EOPNOTSUPP || error == -EACCES;
}

/* The device's memory is a BAR of a card, or a part of it. @driven: another card reaches it there. */
static int bar_begin(struct engine *engine, struct letter *letter, bool driven, struct device **result)
{
	const struct hmm_msg_device_new *message = (const void *)letter->message;
	const uint64_t others = HMM_DEVICE_CAPS_COPY_ENGINE | HMM_DEVICE_CAPS_DMA;
	/* What the administrator has chosen is for everybody. */
	const bool chosen = message->pool == HMM_POOL_KIND_CONFIGURED;
	const struct bar_wish wish = {
		.address = chosen ? engine->options.pool_card :
			   *message->memory_bus ? message->memory_bus : message->bus,
		.index = chosen ? engine->options.pool_bar : message->bar,
		.uid = chosen ? 0 : letter->uid,
		.gid = letter->gid,
	};
	struct bar_share share = {.card = card_number(wish.address), .index = wish.index};
	uint64_t pages = (message->size + HMM_PAGE_SIZE - 1) >> HMM_PAGE_SHIFT;
	char why[sizeof(letter->text)];
	int r;

	if (!*wish.address)
		return letter_fail(letter, -EINVAL, "a pool of kind vfio is a card's BAR: say which card, by its bus address");
	if (!driven && (message->caps & others || !(message->caps & HMM_DEVICE_CAPS_FAULTS)))
		return letter_fail(letter, -EINVAL, "hmmd copies to a BAR, and back before anybody touches: it goes with faults, without copy_engine and dma");
	if (message->placement != HMM_PLACEMENT_ANY || message->node >= 0)
		return letter_fail(letter, -EINVAL, "a card's memory is on no memory node: node is -1");
	if (message->size > HMM_VA_END)
		return letter_fail(letter, -ENOSPC, "no BAR has %lu bytes", message->size);
	r = bar_open(&wish, &share.bar, why, sizeof(why));
	if (r && message->again && (is_gone(r) || r == -EIO)) {
		log_warn("%s is there again, without its memory: %s", message->name, why);
		share.bar = NULL;
		share.pages = pages && pages < BAR_MAX_PAGES ? (uint32_t)pages : 1;
		return device_new_bar(&engine->devices, message->name, &share, message->caps, letter->peer, result);
	}
	if (r)
		return letter_fail(letter, r, "%s", why);
	share.pages = pages > UINT32_MAX ? 0 : bar_promise(share.bar, (uint32_t)pages);
	if (!share.pages)
		letter_fail(letter, -ENOSPC, "%lu bytes for device %s: BAR %u of %s has %lu, less what other devices have of it",
			    message->size, message->name, wish.index, wish.address, (uint64_t)bar_pages(share.bar) << HMM_PAGE_SHIFT);
	r = share.pages ? device_new_bar(&engine->devices, message->name, &share, message->caps, letter->peer, result) : -ENOSPC;
	if (!r)
		return 0;
	if (share.pages)
		bar_unpromise(share.bar, share.pages);
	bar_put(share.bar);
	return r;
}

/* One that there was not; or -errno, which the letter may say already. */
static int device_begin(struct engine *engine, struct letter *letter, enum hmm_pool_kind kind, bool driven,
			struct device **result)
{
	const struct hmm_msg_device_new *message = (const void *)letter->message;
	struct placement placement;

	/* Before its nodes: after a restart its mirrors have made it again, whatever has become of those. */
	if (device_by_name(&engine->devices, message->name))
		return letter_fail(letter, -EBUSY, "there is a device %s already", message->name);
	if (kind == HMM_POOL_KIND_VFIO)
		return bar_begin(engine, letter, driven, result);
	if (choose_placement(engine, letter, kind, &placement))
		return letter->error;
	return device_new(&engine->devices, message->name, kind, &placement, message->size,
			  message->caps, letter->peer, result);
}

/* True: after a restart, and it goes on without. Whoever waits for the card waits no longer. */
static bool goes_on_without(struct devices *devices, struct letter *letter)
{
	const struct hmm_msg_device_new *message = (const void *)letter->message;

	if (!message->again || !is_gone(letter->error))
		return false;
	log_warn("%s is there again, without its card: %s", message->name, letter->text);
	device_forget_card(devices, message->name, card_number(message->bus));
	letter->error = 0;
	return true;
}

static int device_make(struct engine *engine, struct letter *letter)
{
	const struct hmm_msg_device_new *message = (const void *)letter->message;
	struct devices *devices = &engine->devices;
	struct hmm_msg_device_new_reply *reply;
	enum hmm_pool_kind kind = (enum hmm_pool_kind)message->pool;
	struct device *device;
	struct card *card = NULL;
	int r;

	if (kind == HMM_POOL_KIND_CONFIGURED)
		kind = engine->options.pool_kind;
	/* It wants none of the card that the administrator has chosen. */
	if (kind == HMM_POOL_KIND_VFIO && message->pool == HMM_POOL_KIND_CONFIGURED && !message->size)
		kind = HMM_POOL_KIND_MEMFD;
	if (check_memory_bus(letter, kind))
		return letter->error;
	if (kind == HMM_POOL_KIND_HUGETLB && message->caps & HMM_DEVICE_CAPS_COPY_ENGINE)
		return letter_fail(
			letter, -EOPNOTSUPP,
			"a copy engine's pages pass one by one: not through a hugetlb pool; use memfd-huge");
	if (!(message->caps & HMM_DEVICE_CAPS_FAULTS)) {
		if (message->caps & HMM_DEVICE_CAPS_WRITE_PROTECT)
			return letter_fail(
				letter, -EINVAL,
				"a device that protects its own pages has to take the faults of that: write_protect goes with faults");
		if (message->caps & HMM_DEVICE_CAPS_COPY_ENGINE)
			return letter_fail(
				letter, -EOPNOTSUPP,
				"a device that cannot fault needs pinned memory, and nothing can be pinned in memory that only its driver reaches");
	}
	if (kind == HMM_POOL_KIND_HUGETLB && message->size && !engine->facts.hugetlb)
		return letter_fail(
			letter, -ENOSPC,
			"no huge pages are reserved: write their number into /proc/sys/vm/nr_hugepages, or use pool memfd-huge");
	/* Before a card is taken from where it waits. */
	reply = letter_reply(letter, HMM_OP_DEVICE_NEW_REPLY, sizeof(*reply));
	if (!reply)
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	if (is_card(message, kind) && open_card(letter, message, &card) && !goes_on_without(devices, letter))
		return letter->error;
	device = card ? device_readopt(devices, message->name, message->caps, letter->peer,
				       letter->uid, card)
		      : NULL;
	r = device ? 0 : device_begin(engine, letter, kind, is_card(message, kind), &device);
	if (r)
		card_undo(card);
	if (letter->error)
		return letter->error;
	if (r == -EBUSY)
		return letter_fail(letter, r, "there is a device %s already", message->name);
	if (r == -ENOSPC)
		return letter_fail(
			letter, r,
			"%lu bytes for device %s: the pool has %lu, of which %lu are promised; see pool-size",
			message->size, message->name, devices->capacity, devices->promised);
	if (r)
		return letter_fail(letter, r, "no device: %s", strerror(-r));
	device->uid = letter->uid;
	if (card) {
		device->card_number = card_number(message->bus);
		device->card = card;
	}
	reply->device = device->id;
	reply->size = device_memory(device);
	return 0;
}

static int device_look(struct device *device, struct letter *letter)
{
	struct hmm_msg_device_open_reply *reply;
	const struct card *card = atomic_load(&device->card);

	if (dma_check_driver(device, letter))
		return letter->error;
	reply = letter_reply(letter, HMM_OP_DEVICE_OPEN_REPLY, sizeof(*reply));
	if (!reply)
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	reply->device = device->id;
	reply->pool = (uint32_t)device->pool->kind;
	reply->size = device_memory(device);
	reply->caps = device->caps;
	if (device->bar)
		hmm_wire_text(reply->bus, sizeof(reply->bus), card_address(bar_card(device->bar)));
	if (card)
		hmm_wire_text(reply->bus, sizeof(reply->bus), card_address(card));
	return 0;
}

/* The card for its driver; never what decides what it reaches. */
static int device_fd(struct device *device, struct letter *letter)
{
	struct card *card = atomic_load(&device->card);
	int fd;

	if (device_has_bar(device) && !device->card_number)
		return letter_fail(letter, -EPERM, "%s is a card's BAR, with everybody's pages in it: hmmd alone has that card", device->name);
	if (!card && device->caps & HMM_DEVICE_CAPS_DMA)
		return letter_fail(letter, -ENODEV, "%s is no card, or its card is gone", device->name);
	if (!card)
		return letter_fail(letter, -EOPNOTSUPP,
				   "%s is no card: it was made without a bus address",
				   device->name);
	if (dma_check_driver(device, letter))
		return letter->error;
	if (device->uid != letter->uid && letter->uid)
		return letter_fail(letter, -EPERM, "%s is another user's device", device->name);
	fd = card_device(card);
	if (fd == -ENODEV)
		return letter_fail(letter, fd, CARD_RECALLED, card_address(card));
	if (fd < 0)
		return letter_fail(letter, fd, "hmmd is out of descriptors");
	if (!letter_reply(letter, HMM_OP_DEVICE_FD_REPLY, sizeof(struct hmm_msg_device_fd_reply))) {
		close(fd);
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	}
	letter->reply_fds[0] = fd;
	letter->n_reply_fds = 1;
	return 0;
}

/* A device that this user made, or (after a restart, when nobody knows) any. */
static int check_own(const struct device *device, struct letter *letter)
{
	if (device->uid == (uid_t)-1 || device->uid == letter->uid || !letter->uid)
		return 0;
	return letter_fail(letter, -EPERM, "%s is another user's device", device->name);
}

static int memory_add(struct devices *devices, struct device *device, struct letter *letter)
{
	const struct hmm_msg_devmem_add *message = (const void *)letter->message;
	struct hmm_msg_devmem_add_reply *reply;
	int r = 0;

	if (check_own(device, letter))
		return letter->error;
	if (device_has_bar(device))
		return letter_fail(letter, -EOPNOTSUPP, "the memory of %s is a card's BAR: there is no more to add", device->name);
	if (device_is_far(device) != (message->pages != 0) || (message->pages && !message->token))
		return letter_fail(letter, -EINVAL, "%s was made %s a copy engine", device->name,
				   device_is_far(device) ? "with" : "without");
	if (message->pages >= HMM_FAR_NONE)
		return letter_fail(letter, -ENOSPC, "%lu pages: fewer than %u can be numbered",
				   message->pages, HMM_FAR_NONE);
	reply = letter_reply(letter, HMM_OP_DEVMEM_ADD_REPLY, sizeof(*reply));
	if (!reply)
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	/* Said again after a restart it changes nothing. */
	if (message->pool > device->size)
		r = device_resize(devices, message->device, message->pool);
	if (r)
		return letter_fail(
			letter, r,
			"%lu bytes for device %s: the pool has %lu, of which %lu are promised; see pool-size",
			message->pool, device->name, devices->capacity, devices->promised);
	if (message->pages)
		r = device_add_far(devices, message->device, message->pages, message->token,
				   letter->pid, process_is_alive);
	if (r)
		return letter_fail(letter, r, "%s has its memory from a driver that lives, pid %d",
				   device->name, atomic_load(&device->driver));
	reply->pool = device->size;
	return 0;
}

static int memory_remove(struct devices *devices, struct device *device, struct letter *letter)
{
	const struct hmm_msg_devmem_remove *message = (const void *)letter->message;
	int r;

	if (check_own(device, letter))
		return letter->error;
	if (device_has_bar(device))
		return letter_fail(letter, -EOPNOTSUPP, "the memory of %s is a card's BAR, and none that was added", device->name);
	if (device_is_far(device) && atomic_load(&device->driver) != letter->pid)
		return letter_fail(letter, -EPERM, "%s has its memory from another driver",
				   device->name);
	/* Also of one that has shrunk, and whose pages are not all gone. */
	r = message->pool < device->promised ? device_resize(devices, message->device, message->pool)
					     : 0;
	if (r)
		return letter_fail(letter, r, "%lu bytes of %s are in use",
				   atomic_load(&device->used), device->name);
	if (device_is_far(device)) {
		atomic_store(&device->far_pages, 0);
		atomic_store(&device->token, 0);
	}
	if (!letter_reply(letter, HMM_OP_DEVMEM_REMOVE_REPLY,
			  sizeof(struct hmm_msg_devmem_remove_reply)))
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	return 0;
}

/* The device that a letter is about, held; or NULL, and the letter says so. */
static struct device *use_device(struct devices *devices, struct letter *letter)
{
	const struct hmm_msg_device_open *by_name = (const void *)letter->message;
	struct device *device;
	uint32_t id;

	switch (letter->message->opcode) {
	case HMM_OP_DEVICE_OPEN:
		device = device_use_name(devices, by_name->name);
		if (!device)
			letter_fail(letter, -ENODEV, "no device %s", by_name->name);
		return device;
	case HMM_OP_DEVICE_FD:
		id = ((const struct hmm_msg_device_fd *)letter->message)->device;
		break;
	case HMM_OP_DEVMEM_ADD:
		id = ((const struct hmm_msg_devmem_add *)letter->message)->device;
		break;
	default:
		id = ((const struct hmm_msg_devmem_remove *)letter->message)->device;
	}
	device = device_use(devices, id);
	if (!device)
		letter_fail(letter, -ENODEV, "no device %u", id);
	return device;
}

static void device_request(struct devices *devices, struct letter *letter)
{
	struct device *device = use_device(devices, letter);

	if (!device)
		return;
	switch (letter->message->opcode) {
	case HMM_OP_DEVICE_OPEN:
		device_look(device, letter);
		break;
	case HMM_OP_DEVICE_FD:
		device_fd(device, letter);
		break;
	case HMM_OP_DEVMEM_ADD:
		memory_add(devices, device, letter);
		break;
	default:
		memory_remove(devices, device, letter);
	}
	device_unuse(devices, device);
}

void engine_device_request(struct engine *engine, struct letter *letter)
{
	const struct hmm_msg_device_put *put = (const void *)letter->message;

	switch (letter->message->opcode) {
	case HMM_OP_DEVICE_NEW:
		device_make(engine, letter);
		break;
	case HMM_OP_DEVICE_OPEN:
	case HMM_OP_DEVICE_FD:
	case HMM_OP_DEVMEM_ADD:
	case HMM_OP_DEVMEM_REMOVE:
		device_request(&engine->devices, letter);
		break;
	default:
		/* Of a device that this peer did not make it is nothing but good manners. */
		device_let_go(&engine->devices, letter->peer, put->device);
		if (!letter_reply(letter, HMM_OP_DEVICE_PUT_REPLY,
				  sizeof(struct hmm_msg_device_put_reply)))
			letter_fail(letter, -ENOMEM, "out of memory for the answer");
	}
}

void engine_device_peer_gone(struct engine *engine, uint64_t peer)
{
	device_let_go(&engine->devices, peer, 0);
}

/* ---- lists --------------------------------------------------------------------------- */

static uint64_t counter_of(const struct owner *owner, enum counter counter)
{
	return atomic_load_explicit(&owner->counter[counter], memory_order_relaxed);
}

static void owner_info(const struct owner *owner, struct hmm_record_owner_info *out)
{
	memset(out, 0, sizeof(*out));
	out->id = owner->id;
	out->pid = (uint32_t)owner->pid;
	out->uid = owner->uid;
	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		const struct mirror *mirror = owner->mirror[i];

		if (!mirror)
			continue;
		out->mirrors++;
		out->device_bytes += atomic_load(&mirror->device_pages) << HMM_PAGE_SHIFT;
		out->shared_bytes += atomic_load(&mirror->shared_pages) << HMM_PAGE_SHIFT;
	}
	out->registered_bytes = atomic_load(&owner->registered_bytes);
	out->faults = counter_of(owner, COUNTER_FAULTS);
	out->to_device = counter_of(owner, COUNTER_PAGES_TO_DEVICE);
	out->home = counter_of(owner, COUNTER_PAGES_HOME);
	hmm_wire_text(out->name, sizeof(out->name), owner->name);
}

/* The registered owner with the lowest id from @cursor on. */
static struct owner *owner_from(struct engine *engine, uint32_t cursor)
{
	struct owner *owner, *best = NULL;

	TAILQ_FOREACH(owner, &engine->owners, registry)
		if (owner->id >= cursor && (!best || owner->id < best->id))
			best = owner;
	return best;
}

unsigned int engine_list_owners(struct engine *engine, uint32_t cursor,
				struct hmm_record_owner_info *out, unsigned int max)
{
	struct owner *owner;
	unsigned int n = 0;

	pthread_mutex_lock(&engine->lock);
	while (n < max && (owner = owner_from(engine, cursor))) {
		owner_info(owner, &out[n++]);
		cursor = owner->id + 1;
	}
	pthread_mutex_unlock(&engine->lock);
	return n;
}

static void mirror_info(const struct mirror *mirror, struct hmm_record_mirror_info *out)
{
	char nodes[sizeof(out->nodes)];

	memset(out, 0, sizeof(*out));
	out->id = mirror->id;
	out->owner = mirror->owner->id;
	out->device = mirror->device->id;
	out->windows = mirror->windows;
	out->flags = mirror->flags;
	out->device_bytes = atomic_load(&mirror->device_pages) << HMM_PAGE_SHIFT;
	out->shared_bytes = atomic_load(&mirror->shared_pages) << HMM_PAGE_SHIFT;
	out->pool_bytes = atomic_load(&mirror->device->used);
	out->placement = (uint32_t)mirror->device->pool->placement.mode;
	out->node = mirror->device->pool->placement.node;
	hmm_wire_text(
		out->nodes, sizeof(out->nodes),
		placement_print_nodes(&mirror->device->pool->placement, nodes, sizeof(nodes)));
	hmm_wire_text(out->device_name, sizeof(out->device_name), mirror->device->name);
}

unsigned int engine_list_mirrors(struct engine *engine, uint32_t cursor,
				 struct hmm_record_mirror_info *out, unsigned int max)
{
	uint32_t from = cursor >> 8;
	struct owner *owner;
	unsigned int n = 0;

	pthread_mutex_lock(&engine->lock);
	while (n < max && (owner = owner_from(engine, from))) {
		for (unsigned int i = 0; i < MIRRORS_MAX && n < max; i++)
			if (owner->mirror[i] && owner->mirror[i]->id >= cursor)
				mirror_info(owner->mirror[i], &out[n++]);
		from = owner->id + 1;
	}
	pthread_mutex_unlock(&engine->lock);
	return n;
}

/* Of BARs it is their memory that counts, not hmmd's own through which it passes. */
static void bar_info(const struct devices *devices, struct hmm_record_pool_info *out)
{
	const struct device *device;
	const char *state = NULL;

	/* How much there was at most nobody counts. */
	out->capacity = out->used = out->peak = 0;
	TAILQ_FOREACH(device, &devices->list, link) {
		if (!device_has_bar(device))
			continue;
		if (!device->bar || bar_is_lost(device->bar)) {
			state = state ? state : "lost";
			continue;
		}
		if (bar_is_recalled(device->bar))
			state = "leaving";
		out->capacity += device_memory(device);
		out->used += device_memory_used(device);
	}
	out->peak = out->peak > out->used ? out->peak : out->used;
	if (state)
		hmm_wire_textf(out->name, sizeof(out->name), "%s:%s", hmm_pool_kind_name(HMM_POOL_KIND_VFIO), state);
}

unsigned int engine_list_pools(struct engine *engine, uint32_t cursor,
			       struct hmm_record_pool_info *out, unsigned int max)
{
	struct devices *devices = &engine->devices;
	const struct pool *pool;
	char words[sizeof(out->nodes)];
	unsigned int n = 0;

	pthread_mutex_lock(&devices->lock);
	TAILQ_FOREACH(pool, &devices->pools, link) {
		if (pool->id < cursor || n == max)
			continue;
		memset(&out[n], 0, sizeof(out[n]));
		out[n].id = pool->id;
		out[n].kind = (uint32_t)pool->kind;
		out[n].node = pool->placement.node;
		out[n].placement = (uint32_t)pool->placement.mode;
		hmm_wire_text(out[n].nodes, sizeof(out[n].nodes),
			      placement_print_nodes(&pool->placement, words, sizeof(words)));
		out[n].devices = pool->devices;
		out[n].capacity = pool->promised;
		out[n].used = atomic_load(&pool->used);
		out[n].peak = atomic_load(&pool->peak);
		out[n].evicted = atomic_load(&pool->evicted);
		out[n].page_size = pool_is_huge(pool->kind) ? HMM_BLOCK_SIZE : HMM_PAGE_SIZE;
		hmm_wire_textf(out[n].name, sizeof(out[n].name),
			       pool->placement.mode == HMM_PLACEMENT_ANY ? "%s" : "%s:%s",
			       hmm_pool_kind_name(pool->kind),
			       placement_print(&pool->placement, words, sizeof(words)));
		if (pool->reserve)
			out[n].reserved_mib = (uint32_t)(reserve_held(pool->reserve) >> 20);
		if (pool->kind == HMM_POOL_KIND_VFIO)
			bar_info(devices, &out[n]);
		n++;
	}
	pthread_mutex_unlock(&devices->lock);
	return n;
}

unsigned int engine_list_stats(struct engine *engine, uint32_t owner_id, uint32_t cursor,
			       struct hmm_record_stat_info *out, unsigned int max)
{
	const struct owner *owner;
	unsigned int n = 0;

	pthread_mutex_lock(&engine->lock);
	for (uint32_t c = cursor; c < COUNTER_MAX && n < max; c++, n++) {
		memset(&out[n], 0, sizeof(out[n]));
		hmm_wire_text(out[n].name, sizeof(out[n].name), counter_names[c]);
		TAILQ_FOREACH(owner, &engine->owners, registry)
			if (!owner_id || owner->id == owner_id)
				out[n].value += counter_of(owner, (enum counter)c);
	}
	pthread_mutex_unlock(&engine->lock);
	return n;
}

void engine_totals(struct engine *engine, struct hmm_msg_status_reply *status)
{
	struct hmm_record_owner_info info;
	struct device *device;
	struct owner *owner;
	struct pool *pool;

	status->workers = engine->started;
	status->features = engine->features;
	status->incarnation = engine->incarnation;
	status->kernel_tier = engine->features & HMM_FEATURE_MOVE ? 2 : 1;
	pthread_mutex_lock(&engine->lock);
	TAILQ_FOREACH(owner, &engine->owners, registry) {
		owner_info(owner, &info);
		status->owners++;
		status->mirrors += info.mirrors;
		status->device_bytes += info.device_bytes;
	}
	pthread_mutex_unlock(&engine->lock);
	pthread_mutex_lock(&engine->devices.lock);
	status->pool_bytes = engine->devices.capacity;
	TAILQ_FOREACH(device, &engine->devices.list, link)
		status->devices++;
	TAILQ_FOREACH(pool, &engine->devices.pools, link)
		status->pool_used += atomic_load(&pool->used);
	pthread_mutex_unlock(&engine->devices.lock);
}
