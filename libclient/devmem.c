/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * devmem.c - memory that the program adds to a device, and takes away again.
 *
 * The happy path: hmm_devmem_add() makes a table of pages (for memory that only the
 * driver reaches) and tells hmmd; mirrors of that device have the memory from then on.
 * After a restart it is said again, under the same token. hmm_devmem_remove() has hmmd bring
 * everything home first, mirror by mirror, and waits for those who use pages.
 *
 * The list of memories is the process's: mirrors may be on other handles. What hmmd
 * asks of a driver is in far.c.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "arena.h"
#include "devmem.h"
#include "dispatch.h"
#include "mapping.h"

#define STAGING_MAX	(64UL << 20)	/* of the pool, for pages on their way */
#define DRAIN_PAUSE_NS	5000000L
#define MOMENT_MS	500		/* in which what came home is punched */

static struct {
	struct futex_lock lock;
	struct hmm_devmem_private *list;
} memories LIBRARY_DATA = { .lock = { 0 } };

_Static_assert(HMM_PFN_DEVICE_FIRST == HMM_TABLE_DEVICE_PFN, "the table says the same");

struct hmm_devmem_private *hmmc_devmem_find(const char *device)
{
	struct hmm_devmem_private *devmem;

	futex_lock(&memories.lock);
	for (devmem = memories.list; devmem; devmem = devmem->next)
		if (strcmp(devmem->name, device) == 0)
			break;
	futex_unlock(&memories.lock);
	return devmem;
}

void hmmc_devmem_forget(void)
{
	memset(&memories, 0, sizeof(memories));
}

/* ---- mirrors --------------------------------------------------------------------------- */

static void join(struct hmm_mirror_private *mirror, struct hmm_devmem_private *devmem)
{
	futex_lock(&memories.lock);
	mirror->devmem = devmem;
	mirror->devmem_next = devmem->mirrors;
	devmem->mirrors = mirror;
	futex_unlock(&memories.lock);
}

int hmmc_devmem_join(struct hmm_mirror_private *mirror)
{
	struct hmm_devmem_private *devmem = hmmc_devmem_find(mirror->device->name);
	struct hmm *hmm = mirror->hmm;

	if (!devmem)
		return 0;
	if (devmem->token && !hmm->staging) {
		struct regions *staging = hmmc_arena_alloc(sizeof(*staging));

		if (!staging)
			return -ENOMEM;
		__atomic_store_n(&hmm->staging, staging, __ATOMIC_RELEASE);
	}
	join(mirror, devmem);
	return 0;
}

static int drop_staging(void *argument)
{
	struct hmm_mirror_private *mirror = argument;

	hmmc_region_drop(mirror->hmm->staging, mirror->id & 0xff);
	return 0;
}

void hmmc_devmem_leave(struct hmm_mirror_private *mirror)
{
	struct hmm_mirror_private **at;

	if (!mirror->devmem)
		return;
	hmmc_devmem_release(mirror);
	if (mirror->hmm->staging)
		hmmc_clerk_call(drop_staging, mirror);
	futex_lock(&memories.lock);
	for (at = &mirror->devmem->mirrors; *at && *at != mirror; at = &(*at)->devmem_next)
		;
	if (*at)
		*at = mirror->devmem_next;
	futex_unlock(&memories.lock);
	mirror->devmem = NULL;
}

/* ---- adding and removing ------------------------------------------------------------------ */

static void fill_add(struct hmm_msg_devmem_add *message, const struct hmm_devmem_private *devmem, uint32_t device)
{
	message->device = device;
	message->token = devmem->token;
	message->pool = devmem->pool;
	message->pages = devmem->token ? devmem->count : 0;
}

int hmmc_devmem_restore(struct hmm *hmm, const struct hmm_device *device)
{
	struct hmm_devmem_private *devmem = hmmc_devmem_find(device->name);
	struct hmm_msg_devmem_add message;

	if (!devmem)
		return 0;
	HMM_MSG_INIT(message, HMM_OP_DEVMEM_ADD, 0);
	fill_add(&message, devmem, device->id);
	return hmmc_connection_exchange(hmm->connection, &message, NULL, 0);
}

static int prepare_add(struct request *request)
{
	const struct hmm_devmem_private *devmem = request->data;

	((struct hmm_msg_devmem_add *)request->message)->device = devmem->devmem.device->id;
	return 0;
}

static int tell_added(struct hmm_devmem_private *devmem)
{
	struct hmm_device *device = devmem->devmem.device;
	struct request *request;
	int error;

	request = hmmc_request_new(device->hmm->connection, HMM_OP_DEVMEM_ADD, sizeof(struct hmm_msg_devmem_add));
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	fill_add((struct hmm_msg_devmem_add *)request->message, devmem, device->id);
	request->data = devmem;
	request->prepare = prepare_add;
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	return error;
}

/*
 * Shared memory, which never migrates: callbacks look at it while they serve faults. A part of it is
 * touched when its pages are first used: most of a large device's never are.
 */
static int make_table(struct hmm_devmem_private *devmem)
{
	size_t pages = devmem->count * sizeof(struct hmm_page), free = devmem->count * sizeof(uint32_t);
	char *table;

	devmem->table_size = pages + (devmem->memory ? free : 0);
	table = hmmc_map_reserved(NULL, devmem->table_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
				  -1, 0);
	if (!table)
		return hmmc_fail(-ENOMEM, "no memory to keep count of %llu pages: %zu bytes",
				 (unsigned long long)devmem->count, devmem->table_size);
	madvise(table, devmem->table_size, MADV_DONTFORK);
	madvise(table, devmem->table_size, MADV_DONTDUMP);
	devmem->table = table;
	devmem->devmem.pages = (struct hmm_page *)(void *)table;
	if (devmem->memory)
		devmem->free = (uint32_t *)(void *)(table + pages);
	return 0;
}

/* Nobody's until it is used for the first time, so its place tells. */
struct hmm_devmem_private *hmmc_devmem_of(const struct hmm_page *page)
{
	struct hmm_devmem_private *devmem;

	futex_lock(&memories.lock);
	for (devmem = memories.list; devmem; devmem = devmem->next)
		if (devmem->devmem.pages && page >= devmem->devmem.pages && page < devmem->devmem.pages + devmem->count)
			break;
	futex_unlock(&memories.lock);
	return devmem;
}

static void destroy(struct hmm_devmem_private *devmem)
{
	if (devmem->table)
		munmap(devmem->table, devmem->table_size);
	hmmc_resource_unmap(devmem);
	hmmc_arena_free(devmem, sizeof(*devmem));
}

/* One memory per device and process. */
static int enlist(struct hmm_devmem_private *devmem)
{
	struct hmm_devmem_private *other;

	futex_lock(&memories.lock);
	for (other = memories.list; other && strcmp(other->name, devmem->name); other = other->next)
		;
	if (!other) {
		devmem->next = memories.list;
		memories.list = devmem;
	}
	futex_unlock(&memories.lock);
	return other ? hmmc_fail(-EBUSY, "device %s has memory already", devmem->name) : 0;
}

static void delist(struct hmm_devmem_private *devmem)
{
	struct hmm_devmem_private **at;

	futex_lock(&memories.lock);
	for (at = &memories.list; *at && *at != devmem; at = &(*at)->next)
		;
	if (*at)
		*at = devmem->next;
	/* A mirror that was registered meanwhile had found it. */
	for (struct hmm_mirror_private *mirror = devmem->mirrors; mirror; mirror = mirror->devmem_next)
		mirror->devmem = NULL;
	futex_unlock(&memories.lock);
}

static uint32_t new_token(void)
{
	uint32_t token = 0;

	while (!token)
		if (getrandom(&token, sizeof(token), 0) != (ssize_t)sizeof(token))
			token = (uint32_t)clock_ms() | 1;
	return token;
}

/* @given: the driver's; @known: what this library knows of it. */
static struct hmm_devmem_private *devmem_new(const struct hmm_devmem_ops *given,
					     const struct hmm_devmem_ops *known,
					     struct hmm_device *device)
{
	struct hmm_devmem_private *devmem = hmmc_arena_alloc(sizeof(*devmem));

	if (!devmem) {
		hmmc_fail(-ENOMEM, "the library's memory is used up");
		return NULL;
	}
	snprintf(devmem->name, sizeof(devmem->name), "%s", device->name);
	devmem->devmem.ops = given;
	devmem->ops = *known;
	devmem->devmem.device = device;
	devmem->devmem.priv = devmem;
	devmem->devmem.pfn_first = HMM_PFN_DEVICE_FIRST;
	return devmem;
}

/* With its size known and its resource mapped. Consumes @devmem when it fails. */
static int add(struct hmm_devmem_private *devmem, uint64_t size, struct hmm_devmem **result)
{
	struct hmm_device *device = devmem->devmem.device;
	int error = 0;

	devmem->count = size >> HMM_PAGE_SHIFT;
	devmem->devmem.pfn_last = 2 * HMM_PFN_DEVICE_FIRST - 1;
	devmem->base = device->memory;
	devmem->pool = devmem->base + size;
	if (device->caps & HMM_DEVICE_COPY_ENGINE) {
		devmem->token = new_token();
		devmem->devmem.pfn_last = HMM_PFN_DEVICE_FIRST + devmem->count - 1;
		devmem->pool = size < STAGING_MAX ? size : STAGING_MAX;
		if (devmem->pool < devmem->base)
			devmem->pool = devmem->base;
		if (devmem->count >= HMM_FAR_NONE)
			error = hmmc_fail(-ENOSPC, "fewer than %u pages can be numbered", HMM_FAR_NONE);
	}
	if (!error)
		error = enlist(devmem);
	if (!error) {
		if (devmem->token)
			error = make_table(devmem);
		if (!error)
			error = tell_added(devmem);
		if (error)
			delist(devmem);
	}
	if (error) {
		destroy(devmem);
		return error;
	}
	/* Of hmmd's pool: mirrors that are there already have it, too. */
	futex_lock(&device->hmm->lock);
	for (struct hmm_mirror_private *mirror = device->hmm->mirrors; mirror; mirror = mirror->next)
		/* One that is being registered may have found it by itself. */
		if (!mirror->devmem && strcmp(mirror->device->name, devmem->name) == 0)
			join(mirror, devmem);
	futex_unlock(&device->hmm->lock);
	device->devmem = devmem;
	device->memory = device->caps & HMM_DEVICE_COPY_ENGINE ? size : devmem->pool;
	*result = &devmem->devmem;
	return 0;
}

static int check(const struct hmm_devmem_ops *given, struct hmm_devmem_ops *known,
		 const struct hmm_device *device, struct hmm_devmem **result)
{
	int error;

	if (!device || !result)
		return hmmc_fail(-EINVAL, "device or result is NULL");
	if (device->count)
		return hmmc_fail(-EINVAL, "a group of devices has no memory but its members'");
	if (device->pool == HMM_POOL_VFIO)
		return hmmc_fail(-EOPNOTSUPP, "the device's memory is a card's BAR: there is no more to add");
	error = hmmc_space_check(device->hmm);
	return error ? error : hmmc_take_options(given, known, sizeof(*known));
}

int hmm_devmem_add(const struct hmm_devmem_ops *given, struct hmm_device *device, unsigned long size,
		   struct hmm_devmem **result)
{
	struct hmm_devmem_ops ops;
	struct hmm_devmem_private *devmem;
	int error = check(given, &ops, device, result);

	if (error)
		return error;
	if (device->caps & HMM_DEVICE_COPY_ENGINE && (!ops.alloc_and_copy || !ops.fault))
		return hmmc_fail(-EINVAL, "only the driver reaches a copy engine's memory: ops->alloc_and_copy and ops->fault are needed");
	if (!(device->caps & HMM_DEVICE_COPY_ENGINE) && given)
		return hmmc_fail(-EINVAL, "the device was made without HMM_DEVICE_COPY_ENGINE: its memory is hmmd's, and needs no ops");
	if (!size || size > HMM_VA_END)
		return hmmc_fail(-EINVAL, "the size is 0 or above 2^47");
	devmem = devmem_new(given, &ops, device);
	return devmem ? add(devmem, (size + HMM_PAGE_SIZE - 1) & ~(HMM_PAGE_SIZE - 1), result) : -ENOMEM;
}

int hmm_devmem_add_resource(const struct hmm_devmem_ops *given, struct hmm_device *device,
			    const struct hmm_resource *file, struct hmm_devmem **result)
{
	struct hmm_devmem_ops ops;
	struct hmm_resource resource;
	struct hmm_devmem_private *devmem;
	int error = check(given, &ops, device, result);

	if (error)
		return error;
	if (!file)
		return hmmc_fail(-EINVAL, "resource is NULL");
	error = hmmc_take_options(file, &resource, sizeof(resource));
	if (error)
		return error;
	if (!(device->caps & HMM_DEVICE_COPY_ENGINE))
		return hmmc_fail(-EINVAL, "the device was made without HMM_DEVICE_COPY_ENGINE");
	devmem = devmem_new(given, &ops, device);
	if (!devmem)
		return -ENOMEM;
	error = hmmc_resource_map(devmem, &resource);
	if (error) {
		destroy(devmem);
		return error;
	}
	return add(devmem, resource.length, result);
}

static int tell_removed(struct hmm_devmem_private *devmem)
{
	struct hmm_device *device = devmem->devmem.device;
	struct hmm_msg_devmem_remove *message;
	struct request *request;
	int error;

	_Static_assert(offsetof(struct hmm_msg_devmem_remove, device) == offsetof(struct hmm_msg_devmem_add, device),
		       "prepare_add() is for both");
	request = hmmc_request_new(device->hmm->connection, HMM_OP_DEVMEM_REMOVE, sizeof(*message));
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	message = (struct hmm_msg_devmem_remove *)request->message;
	message->pool = devmem->base;
	request->data = devmem;
	request->prepare = prepare_add;
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	return error;
}

static void pause_a_little(void)
{
	hmmc_dispatch_nap(DRAIN_PAUSE_NS);
}

/* Pages that somebody has references to. */
static int await_references(struct hmm_devmem_private *devmem, bool block)
{
	uint32_t n;

	while ((n = __atomic_load_n(&devmem->in_use, __ATOMIC_ACQUIRE)) != 0) {
		if (!block)
			return hmmc_fail(-EBUSY, "%u pages of %s are in use", n, devmem->name);
		/* What is at home by now is freed in a moment; the rest by hmm_page_put(). */
		hmmc_dispatch_pause(&devmem->in_use, n, &(struct timespec){ .tv_nsec = DRAIN_PAUSE_NS });
	}
	return 0;
}

static void drain(struct hmm_devmem_private *devmem)
{
	for (struct hmm_mirror_private *mirror = devmem->mirrors; mirror; mirror = mirror->devmem_next)
		hmm_drain(mirror->mirror);
}

/*
 * From the first time that hmmd is told nothing more goes there. What came in between comes home, and is punched, and no
 * longer in use, a moment later; what mirrors of other processes have there stays until they let it go.
 */
static int give_back(struct hmm_devmem_private *devmem, bool block)
{
	uint64_t end = clock_ms() + (block ? devmem->devmem.device->hmm->connection->grace_ms : MOMENT_MS);
	int error;

	while ((error = tell_removed(devmem)) == -EBUSY && clock_ms() < end) {
		drain(devmem);
		pause_a_little();
	}
	return error == -ESTALE ? 0 : error;
}

/* Everything that this process's mirrors have on it comes home, and nobody refers to a page. */
static int empty(struct hmm_devmem_private *devmem, bool block)
{
	struct hmm_mirror_private *mirror;

	__atomic_store_n(&devmem->closing, 1, __ATOMIC_RELEASE);
	drain(devmem);
	/* hmmd has said which are free before it answered: let that be done. */
	for (mirror = devmem->mirrors; mirror; mirror = mirror->devmem_next)
		hmmc_dispatch_wait_zero(&mirror->callbacks);
	return await_references(devmem, block);
}

static void forget(struct hmm_devmem_private *devmem)
{
	delist(devmem);
	devmem->devmem.device->devmem = NULL;
	devmem->devmem.device->memory = devmem->base;
	destroy(devmem);
}

/* It stays: pages may go there again. */
static void keep(struct hmm_devmem_private *devmem)
{
	char why[HMMC_ERROR_TEXT];

	snprintf(why, sizeof(why), "%s", hmm_last_error());
	tell_added(devmem);
	/* That it is in use is what there is to say. */
	hmmc_fail(0, "%s", why);
	__atomic_store_n(&devmem->closing, 0, __ATOMIC_RELEASE);
}

int hmm_devmem_remove(struct hmm_devmem *public, bool block)
{
	struct hmm_devmem_private *devmem = public ? public->priv : NULL;
	int error;

	if (!devmem)
		return hmmc_fail(-EINVAL, "devmem is NULL");
	if (hmmc_space_check(public->device->hmm) == -ESTALE &&
	    !__atomic_load_n(&public->device->hmm->lost, __ATOMIC_ACQUIRE))
		return -ESTALE;	/* a fork's child has none of it */
	if (hmmc_dispatch_is_current())
		return hmmc_fail(-EDEADLK, "a callback cannot wait for itself; remove it from another thread");
	error = empty(devmem, block);
	if (!error)
		error = give_back(devmem, block);
	if (error)
		keep(devmem);
	else
		forget(devmem);
	return error;
}

void hmmc_devmem_close(struct hmm_devmem_private *devmem)
{
	empty(devmem, true);
	/* The device is theirs who have pages there, and so is its memory. */
	if (give_back(devmem, false) == -EBUSY)
		tell_added(devmem);
	forget(devmem);
}

void *hmm_devmem_page_address(const struct hmm_page *page)
{
	const struct hmm_devmem_private *devmem = hmmc_devmem_of(page);

	return devmem && devmem->memory ? devmem->memory + (size_t)(page - devmem->devmem.pages) * HMM_PAGE_SIZE : NULL;
}

unsigned long hmm_devmem_page_to_pfn(const struct hmm_page *page)
{
	const struct hmm_devmem_private *devmem = hmmc_devmem_of(page);

	return devmem ? devmem->devmem.pfn_first + (unsigned long)(page - devmem->devmem.pages) : -1UL;
}
