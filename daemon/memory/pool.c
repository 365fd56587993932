/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pool.c - pools and devices.
 *
 * A device reserves its size from what hmmd may give out, so that a full
 * device never takes another's room; pages are charged when they are about to
 * be filled and uncharged when their block is punched. The control thread
 * makes devices, workers put mirrors on them: one lock, held for lookups only.
 */
#include "pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BAR_PASSING	(64UL << 20)	/* of hmmd's memory, at most, for pages on their way to a BAR and back */

/* With all that it has; without the lock. */
static void destroy(struct device *device)
{
	/* Another card's BAR is there for as long as this one may reach it. */
	card_close(device->card);
	if (device->bar) {
		bar_unpromise(device->bar, device->bar_pages);
		bar_put(device->bar);
	}
	free(device);
}

void devices_init(struct devices *devices, uint64_t capacity)
{
	memset(devices, 0, sizeof(*devices));
	pthread_mutex_init(&devices->lock, NULL);
	TAILQ_INIT(&devices->list);
	TAILQ_INIT(&devices->pools);
	devices->capacity = capacity;
}

void devices_deinit(struct devices *devices)
{
	struct device *device;
	struct pool *pool;

	while ((device = TAILQ_FIRST(&devices->list))) {
		TAILQ_REMOVE(&devices->list, device, link);
		destroy(device);
	}
	while ((pool = TAILQ_FIRST(&devices->pools))) {
		TAILQ_REMOVE(&devices->pools, pool, link);
		free(pool);
	}
	pthread_mutex_destroy(&devices->lock);
}

static struct pool *pool_get(struct devices *devices, enum hmm_pool_kind kind,
			     const struct placement *placement)
{
	struct pool *pool;

	TAILQ_FOREACH(pool, &devices->pools, link)
		if (pool->kind == kind && placement_same(&pool->placement, placement))
			return pool;
	pool = calloc(1, sizeof(*pool));
	if (!pool)
		return NULL;
	pool->id = ++devices->next_pool;
	pool->kind = kind;
	pool->placement = *placement;
	if (devices->reserve && reserve_serves(devices->reserve, kind, placement))
		pool->reserve = devices->reserve;
	TAILQ_INSERT_TAIL(&devices->pools, pool, link);
	return pool;
}

int devices_reserve(struct devices *devices, struct reserve *reserve)
{
	struct pool *pool;

	devices->reserve = reserve;
	pthread_mutex_lock(&devices->lock);
	pool = pool_get(devices, reserve_kind(reserve), reserve_placement(reserve));
	pthread_mutex_unlock(&devices->lock);
	return pool ? 0 : -ENOMEM;
}

static struct device *find_name(struct devices *devices, const char *name)
{
	struct device *device;

	TAILQ_FOREACH(device, &devices->list, link)
		if (strcmp(device->name, name) == 0)
			return device;
	return NULL;
}

static struct device *find_id(struct devices *devices, uint32_t id)
{
	struct device *device;

	TAILQ_FOREACH(device, &devices->list, link)
		if (device->id == id)
			return device;
	return NULL;
}

static int device_new_locked(struct devices *devices, const char *name, enum hmm_pool_kind kind,
			     const struct placement *placement, uint64_t size, struct device **result)
{
	uint64_t unit = pool_is_huge(kind) ? HMM_BLOCK_SIZE : HMM_PAGE_SIZE;
	struct device *device;

	if (find_name(devices, name))
		return -EBUSY;
	if (size > devices->capacity || size + unit - 1 < size)
		return -ENOSPC;
	size = (size + unit - 1) / unit * unit;
	if (size > devices->capacity - devices->promised)
		return -ENOSPC;
	device = calloc(1, sizeof(*device));
	if (!device)
		return -ENOMEM;
	device->pool = pool_get(devices, kind, placement);
	if (!device->pool) {
		free(device);
		return -ENOMEM;
	}
	device->id = ++devices->next_id;
	strcpy(device->name, name);
	device->size = device->promised = size;
	device->pool->promised += size;
	device->pool->devices++;
	devices->promised += size;
	TAILQ_INSERT_TAIL(&devices->list, device, link);
	*result = device;
	return 0;
}

static int make(struct devices *devices, const char *name, enum hmm_pool_kind kind, const struct placement *placement,
		uint64_t size, uint64_t caps, uint64_t creator, const struct bar_share *share, struct device **result)
{
	int r;

	if (!*name || strlen(name) >= sizeof((*result)->name))
		return -EINVAL;
	pthread_mutex_lock(&devices->lock);
	r = device_new_locked(devices, name, kind, placement, size, result);
	if (!r) {
		(*result)->caps = caps;
		(*result)->creator = creator;
		(*result)->uid = (uid_t)-1;
	}
	if (!r && share) {
		(*result)->bar = share->bar;
		(*result)->bar_card = share->card;
		(*result)->bar_index = share->index;
		(*result)->bar_pages = share->pages;
		(*result)->far_pages = share->bar ? bar_pages(share->bar) : 0;
	}
	pthread_mutex_unlock(&devices->lock);
	return r;
}

int device_new(struct devices *devices, const char *name, enum hmm_pool_kind kind,
	       const struct placement *placement, uint64_t size, uint64_t caps, uint64_t creator, struct device **result)
{
	return make(devices, name, kind, placement ? placement : &PLACEMENT_ANY, size, caps, creator, NULL, result);
}

int device_new_bar(struct devices *devices, const char *name, const struct bar_share *share, uint64_t caps,
		   uint64_t creator, struct device **result)
{
	uint64_t size = share->scarce ? 0 : (uint64_t)share->pages << HMM_PAGE_SHIFT;

	return make(devices, name, HMM_POOL_KIND_VFIO, &PLACEMENT_ANY, size < BAR_PASSING ? size : BAR_PASSING, caps, creator,
		    share, result);
}

static int resize_locked(struct devices *devices, struct device *device, uint64_t size)
{
	uint64_t unit = pool_is_huge(device->pool->kind) ? HMM_BLOCK_SIZE : HMM_PAGE_SIZE;
	uint64_t before = device->promised;

	if (size > devices->capacity)
		return -ENOSPC;
	size = (size + unit - 1) / unit * unit;
	if (size > before && size - before > devices->capacity - devices->promised)
		return -ENOSPC;
	/*
	 * Shrunk before it is looked at: whoever charges meanwhile finds no room or is seen. And it stays so: else those who
	 * go on to send pages would have each other's room, and it never came to an end.
	 */
	atomic_store(&device->size, size);
	if (atomic_load(&device->used) > size)
		return -EBUSY;
	devices->promised += size - before;
	device->pool->promised += size - before;
	device->promised = size;
	return 0;
}

int device_resize(struct devices *devices, uint32_t id, uint64_t size)
{
	struct device *device;
	int r;

	pthread_mutex_lock(&devices->lock);
	device = find_id(devices, id);
	r = device ? resize_locked(devices, device, size) : -ENODEV;
	pthread_mutex_unlock(&devices->lock);
	return r;
}

int device_add_far(struct devices *devices, uint32_t id, uint64_t pages, uint32_t token, pid_t driver,
		   bool (*alive)(pid_t driver))
{
	struct device *device;
	int r = 0;

	pthread_mutex_lock(&devices->lock);
	device = find_id(devices, id);
	if (!device)
		r = -ENODEV;
	else if (device->token && device->token != token && device->driver && alive(device->driver))
		r = -EBUSY;
	if (!r) {
		device->token = token;
		device->driver = driver;
		device->far_pages = pages;
	}
	pthread_mutex_unlock(&devices->lock);
	return r;
}

struct device *device_readopt(struct devices *devices, const char *name, uint64_t caps, uint64_t creator, uid_t uid,
			      struct card *card)
{
	struct device *device;

	pthread_mutex_lock(&devices->lock);
	device = find_name(devices, name);
	if (device && device->uid == (uid_t)-1 && device->caps == caps && !device->card &&
	    device->card_number == card_number(card_address(card))) {
		device->creator = creator;
		device->uid = uid;
		device->card = card;
	} else {
		device = NULL;
	}
	pthread_mutex_unlock(&devices->lock);
	return device;
}

void device_forget_card(struct devices *devices, const char *name, uint32_t card)
{
	struct device *device;

	pthread_mutex_lock(&devices->lock);
	device = find_name(devices, name);
	if (device && !device->card && device->card_number == card)
		device->card_number = 0;
	pthread_mutex_unlock(&devices->lock);
}

void device_expect(struct devices *devices, uint32_t id, uint32_t token, pid_t driver, uint32_t card)
{
	struct device *device;

	pthread_mutex_lock(&devices->lock);
	device = find_id(devices, id);
	if (device && !device->token) {
		device->token = token;
		device->driver = token ? driver : 0;
	}
	if (device && !device->card)
		device->card_number = card;
	pthread_mutex_unlock(&devices->lock);
}

struct device *device_by_name(struct devices *devices, const char *name)
{
	struct device *device;

	pthread_mutex_lock(&devices->lock);
	device = find_name(devices, name);
	pthread_mutex_unlock(&devices->lock);
	return device;
}

struct device *device_by_id(struct devices *devices, uint32_t id)
{
	struct device *device;

	pthread_mutex_lock(&devices->lock);
	device = find_id(devices, id);
	pthread_mutex_unlock(&devices->lock);
	return device;
}

struct device *device_use(struct devices *devices, uint32_t id)
{
	struct device *device;

	pthread_mutex_lock(&devices->lock);
	device = find_id(devices, id);
	if (device)
		device->mirrors++;
	pthread_mutex_unlock(&devices->lock);
	return device;
}

struct device *device_use_name(struct devices *devices, const char *name)
{
	struct device *device;

	pthread_mutex_lock(&devices->lock);
	device = find_name(devices, name);
	if (device)
		device->mirrors++;
	pthread_mutex_unlock(&devices->lock);
	return device;
}

TAILQ_HEAD(device_list, device);

/* A device that neither its creator nor a mirror holds goes to those that are freed without the lock: a card takes a while. */
static void drop_unheld(struct devices *devices, struct device *device, struct device_list *dropped)
{
	if (device->creator || device->mirrors)
		return;
	devices->promised -= device->promised;
	device->pool->promised -= device->promised;
	device->pool->devices--;
	TAILQ_REMOVE(&devices->list, device, link);
	TAILQ_INSERT_TAIL(dropped, device, link);
}

static void free_dropped(struct device_list *dropped)
{
	struct device *device;

	while ((device = TAILQ_FIRST(dropped))) {
		TAILQ_REMOVE(dropped, device, link);
		destroy(device);
	}
}

void device_unuse(struct devices *devices, struct device *device)
{
	struct device_list dropped = TAILQ_HEAD_INITIALIZER(dropped);

	pthread_mutex_lock(&devices->lock);
	device->mirrors--;
	drop_unheld(devices, device, &dropped);
	pthread_mutex_unlock(&devices->lock);
	free_dropped(&dropped);
}

/* One that he has not let go of yet. */
static struct device *find_creation(struct devices *devices, uint64_t creator, uint32_t id)
{
	struct device *device;

	TAILQ_FOREACH(device, &devices->list, link)
		if (device->creator == creator && (!id || device->id == id))
			return device;
	return NULL;
}

void device_let_go(struct devices *devices, uint64_t creator, uint32_t id)
{
	struct device_list dropped = TAILQ_HEAD_INITIALIZER(dropped);
	struct device *device;

	pthread_mutex_lock(&devices->lock);
	while (creator && (device = find_creation(devices, creator, id))) {
		device->creator = 0;
		/* It stays, for another's mirrors; held meanwhile, since a card takes a while. */
		if (!id && device->mirrors && device->card) {
			device->mirrors++;
			pthread_mutex_unlock(&devices->lock);
			card_driver_gone(device->card, creator);
			pthread_mutex_lock(&devices->lock);
			device->mirrors--;
		}
		drop_unheld(devices, device, &dropped);
	}
	pthread_mutex_unlock(&devices->lock);
	free_dropped(&dropped);
}

/* ---- room on the nodes ----------------------------------------------------------- */

/* Asked no more often than this many bytes or so long: between, others may take what was seen. */
#define GRANT_BYTES	(16LL << 20)
#define GRANT_NS	(20 * 1000000LL)

static int64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* What nobody tells counts as room: then it is as without a policy. */
static uint64_t room_on_nodes(const struct pool *pool)
{
	uint64_t mask[HMM_NODE_WORDS], bytes, sum = 0;

	placement_mask(&pool->placement, mask);
	for (unsigned int node = 0; node < HMM_NODE_WORDS * 64; node++) {
		if (!(mask[node / 64] >> (node % 64) & 1))
			continue;
		if (kernel->node_free(node, &bytes))
			return UINT64_MAX;
		sum += bytes;
	}
	return sum;
}

bool pool_has_room(struct pool *pool, uint64_t bytes)
{
	uint64_t room;

	/* It is about to be spent. */
	if (pool->reserve && reserve_held(pool->reserve) >= bytes)
		return true;
	/* hugetlb has an answer of its own (shadow_reserve()); the other placements go elsewhere when a node is full. */
	if (pool->placement.mode != HMM_PLACEMENT_BIND || pool->kind == HMM_POOL_KIND_HUGETLB)
		return true;
	if (clock_ns() < atomic_load(&pool->granted_until) &&
	    atomic_fetch_sub(&pool->granted, (int64_t)bytes) >= (int64_t)bytes)
		return true;
	room = room_on_nodes(pool);
	if (room < bytes) {
		atomic_store(&pool->granted_until, 0);
		return false;
	}
	room -= bytes;
	atomic_store(&pool->granted, room < (uint64_t)GRANT_BYTES ? (int64_t)room : GRANT_BYTES);
	atomic_store(&pool->granted_until, clock_ns() + GRANT_NS);
	return true;
}

/* ---- charging ---------------------------------------------------------------------- */

static void pool_charge(struct pool *pool, uint64_t bytes)
{
	uint64_t now = atomic_fetch_add(&pool->used, bytes) + bytes, peak = atomic_load(&pool->peak);

	while (now > peak && !atomic_compare_exchange_weak(&pool->peak, &peak, now))
		;
	if (pool->reserve && bytes)
		reserve_spend(pool->reserve, bytes);
}

int device_charge(struct device *device, uint64_t bytes)
{
	uint64_t used = atomic_load(&device->used);

	if (bytes && !pool_has_room(device->pool, bytes))
		return -ENOSPC;

	do {
		uint64_t size = atomic_load(&device->size);

		if (bytes && (used > size || bytes > size - used))
			return -ENOSPC;
	} while (!atomic_compare_exchange_weak(&device->used, &used, used + bytes));
	pool_charge(device->pool, bytes);
	return 0;
}

void device_overcharge(struct device *device, uint64_t bytes)
{
	atomic_fetch_add(&device->used, bytes);
	pool_charge(device->pool, bytes);
}

void device_uncharge(struct device *device, uint64_t bytes)
{
	/* The other way round than charged: the pool never seems to hold more than its devices. */
	atomic_fetch_sub(&device->pool->used, bytes);
	atomic_fetch_sub(&device->used, bytes);
	if (device->pool->reserve && bytes)
		reserve_return(device->pool->reserve, bytes);
}
