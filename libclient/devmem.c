/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * devmem.c - memory that the program adds to a device, and what hmmd asks of a
 * driver whose memory nobody else reaches.
 *
 * The happy path: hmmd has filled the shadow, which is mapped here too, and asks
 * to store a block's pages; the driver's alloc_and_copy() chooses pages and copies;
 * the answer tells hmmd their numbers, and its reply what really moved, for
 * finalize(). Later hmmd asks to fetch some; fault() copies them back into the
 * shadow, and when hmmd has noted that, it says that the pages are free. All of it
 * runs in the dispatch thread, in the order in which hmmd asked.
 *
 * A page is held by a mirror from alloc_and_copy() until hmmd frees it. After a
 * restart of hmmd the next one is told that earlier asks are over, and says which
 * pages it needs; what is held besides is freed. An answer that the old one may not
 * have heard is sent again and answered by what the ledger says.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "arena.h"
#include "devmem.h"
#include "dispatch.h"
#include "log.h"
#include "mapping.h"

#define STAGING_MAX	(64UL << 20)	/* of the pool, for pages on their way */
#define DRAIN_PAUSE_NS	5000000L

enum held {
	HELD_NOT,
	HELD_ASKED,	/* hmmd was told, and has not answered */
	HELD,
	HELD_LISTED,	/* hmmd says so after a restart */
};

static struct {
	struct futex_lock lock;
	struct hmm_devmem_private *list;
} memories LIBRARY_DATA = { .lock = { 0 } };

_Static_assert(HMM_DEVICE_PFN == HMM_TABLE_DEVICE_PFN, "the table says the same");

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

/* ---- pages ---------------------------------------------------------------------- */

void hmm_page_get(struct hmm_page *page)
{
	__atomic_add_fetch(&page->references, 1, __ATOMIC_ACQ_REL);
}

void hmm_page_put(struct hmm_page *page)
{
	struct hmm_devmem_private *devmem;

	if (!page || __atomic_sub_fetch(&page->references, 1, __ATOMIC_ACQ_REL))
		return;
	devmem = page->devmem->priv;
	if (devmem->devmem.ops && devmem->devmem.ops->free)
		devmem->devmem.ops->free(&devmem->devmem, page);
	if (devmem->free)
		hmmc_resource_free(devmem, page);
	if (__atomic_sub_fetch(&devmem->in_use, 1, __ATOMIC_ACQ_REL) == 0)
		futex_wake(&devmem->in_use, INT32_MAX);
}

static uint32_t number_of(const struct hmm_page *page)
{
	return (uint32_t)(page - page->devmem->pages);
}

/* The driver's choice, if it is one. */
static bool hold(struct hmm_devmem_private *devmem, struct hmm_mirror_private *mirror, struct hmm_page *page,
		 unsigned long addr)
{
	uint32_t free = 0;

	if (page < devmem->devmem.pages || page >= devmem->devmem.pages + devmem->count ||
	    !__atomic_compare_exchange_n(&page->references, &free, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
		hmmc_log(HMMC_LOG_ERROR, "alloc_and_copy() of %s chose a page that is not free", devmem->name);
		return false;
	}
	__atomic_add_fetch(&devmem->in_use, 1, __ATOMIC_ACQ_REL);
	page->mirror = mirror;
	page->addr = addr;
	page->held = HELD_ASKED;
	return true;
}

static void let_go(struct hmm_page *page)
{
	page->mirror = NULL;
	page->held = HELD_NOT;
	hmm_page_put(page);
}

/* Those that @mirror holds and that are @held; all: whatever they are. */
static void let_go_of(struct hmm_mirror_private *mirror, enum held held, bool all)
{
	struct hmm_devmem_private *devmem = mirror->devmem;

	for (uint64_t i = 0; devmem && devmem->devmem.pages && i < devmem->count; i++) {
		struct hmm_page *page = &devmem->devmem.pages[i];

		if (page->mirror == mirror && (all || page->held == held))
			let_go(page);
	}
}

/* ---- store ----------------------------------------------------------------------- */

struct storing {
	struct hmm_mirror_private *mirror;
	const struct hmm_msg_devmem_store *ask;
	unsigned int count;			/* pages asked for */
	unsigned int index[HMM_BLOCK_PAGES];	/* in the block, of each */
	const void *src[HMM_BLOCK_PAGES];	/* by index */
	struct hmm_page *dst[HMM_BLOCK_PAGES];
};

static int prepare_stored(struct request *request)
{
	const struct storing *storing = request->data;

	((struct hmm_msg_devmem_stored *)request->message)->mirror = storing->mirror->id;
	return 0;
}

/* Which of them hmmd has noted. Return: 0, or nothing has moved. */
static int tell_stored(struct storing *storing, uint64_t *moved)
{
	struct connection *connection = storing->mirror->hmm->connection;
	const struct hmm_msg_devmem_stored_reply *reply;
	struct hmm_msg_devmem_stored *message;
	struct request *request;
	int error;

	request = hmmc_request_new(connection, HMM_OP_DEVMEM_STORED,
				   sizeof(*message) + storing->count * sizeof(uint32_t));
	if (!request)
		return -ENOMEM;
	message = (struct hmm_msg_devmem_stored *)request->message;
	message->cookie = storing->ask->cookie;
	message->count = storing->count;
	for (unsigned int k = 0; k < storing->count; k++) {
		const struct hmm_page *page = storing->dst[storing->index[k]];

		message->numbers[k] = page ? number_of(page) : HMM_FAR_NONE;
	}
	request->data = storing;
	request->prepare = prepare_stored;
	error = hmmc_request_call(request);
	reply = (const struct hmm_msg_devmem_stored_reply *)request->reply;
	for (unsigned int w = 0; !error && w < reply->count && w < HMM_BITMAP_WORDS; w++)
		moved[w] = reply->moved[w];
	hmmc_request_free(request);
	return error;
}

static void take(struct storing *storing, struct hmm_devmem_private *devmem, struct hmm_devmem_move *move)
{
	const struct hmm_devmem_ops *ops = devmem->devmem.ops;

	if (ops && ops->alloc_and_copy)
		ops->alloc_and_copy(&devmem->devmem, move);
	else
		hmmc_resource_store(devmem, move);
	for (unsigned int k = 0; k < storing->count; k++) {
		unsigned int i = storing->index[k];

		if (storing->dst[i] &&
		    !hold(devmem, storing->mirror, storing->dst[i], storing->ask->addr + i * HMM_PAGE_SIZE))
			storing->dst[i] = NULL;
	}
}

static void conclude(struct storing *storing, struct hmm_devmem_private *devmem, struct hmm_devmem_move *move,
		     const uint64_t *moved)
{
	const struct hmm_devmem_ops *ops = devmem->devmem.ops;
	struct hmm_page *refused[HMM_BLOCK_PAGES];
	unsigned int n = 0;

	for (unsigned int k = 0; k < storing->count; k++) {
		struct hmm_page **page = &storing->dst[storing->index[k]];

		if (!*page)
			continue;
		if (moved[k / 64] >> (k % 64) & 1) {
			(*page)->held = HELD;
			continue;
		}
		refused[n++] = *page;
		*page = NULL;
	}
	if (ops && ops->finalize)
		ops->finalize(&devmem->devmem, move);
	while (n)
		let_go(refused[--n]);
}

static struct region *staging_of(const struct hmm_mirror_private *mirror, uint64_t addr)
{
	struct regions *staging = mirror->hmm->staging;

	return staging ? hmmc_region_find(staging, mirror->id, addr) : NULL;
}

static void store(struct hmm_mirror_private *mirror, const void *event)
{
	struct hmm_devmem_private *devmem = mirror->devmem;
	const struct hmm_msg_devmem_store *ask = event;
	struct region *region = staging_of(mirror, ask->addr);
	struct storing *storing = hmmc_arena_alloc(sizeof(*storing));
	uint64_t moved[HMM_BITMAP_WORDS] = { 0 };
	struct hmm_devmem_move move = { .mirror = mirror->mirror };
	unsigned int first;

	if (!storing) {
		hmmc_log(HMMC_LOG_ERROR, "the library's memory is used up: a migration waits");
		return;
	}
	storing->mirror = mirror;
	storing->ask = ask;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES && i / 64 < ask->count; i++) {
		if (!(ask->pages[i / 64] >> (i % 64) & 1))
			continue;
		storing->index[storing->count++] = i;
		if (region)
			storing->src[i] = region_at(region, ask->addr + i * HMM_PAGE_SIZE);
	}
	if (storing->count) {
		first = storing->index[0];
		move.start = ask->addr + first * HMM_PAGE_SIZE;
		move.end = ask->addr + (storing->index[storing->count - 1] + 1) * HMM_PAGE_SIZE;
		move.pages = (move.end - move.start) >> HMM_PAGE_SHIFT;
		move.src = storing->src + first;
		move.dst = storing->dst + first;
		if (devmem && region && !__atomic_load_n(&devmem->closing, __ATOMIC_ACQUIRE))
			take(storing, devmem, &move);
		if (tell_stored(storing, moved))
			memset(moved, 0, sizeof(moved));
		if (devmem)
			conclude(storing, devmem, &move, moved);
	}
	hmmc_arena_free(storing, sizeof(*storing));
}

/* ---- fetch ------------------------------------------------------------------------ */

struct fetching {
	struct hmm_mirror_private *mirror;
	struct hmm_devmem_private *devmem;
	const struct hmm_msg_devmem_fetch *ask;
	struct region *region;
	uint64_t asked[HMM_BITMAP_WORDS], brought[HMM_BITMAP_WORDS];
	uint8_t result[HMM_BLOCK_PAGES];	/* in the order of the ask */
};

/* The callback that runs in this thread. */
static __thread struct fetching *now_fetching __attribute__((tls_model("initial-exec")));

static bool test_bit(const uint64_t *words, unsigned int i)
{
	return words[i / 64] >> (i % 64) & 1;
}

void *hmm_vma_alloc_locked_page(struct hmm_devmem *devmem, unsigned long addr)
{
	struct fetching *fetching = now_fetching;
	unsigned int i;
	char *page;

	if (!fetching || !devmem || devmem->priv != fetching->devmem || addr < fetching->ask->addr ||
	    addr - fetching->ask->addr >= HMM_BLOCK_SIZE)
		return NULL;
	i = (unsigned int)((addr - fetching->ask->addr) >> HMM_PAGE_SHIFT);
	if (!test_bit(fetching->asked, i))
		return NULL;
	page = region_at(fetching->region, addr & ~(HMM_PAGE_SIZE - 1));
	/* Now, for a store that finds no memory is a signal. Linux before 5.14 can't. */
	if (madvise(page, HMM_PAGE_SIZE, MADV_POPULATE_WRITE) && errno != EINVAL)
		return NULL;
	fetching->brought[i / 64] |= 1ULL << (i % 64);
	return page;
}

static int call_fault(struct fetching *fetching, unsigned int i, const struct hmm_page *page)
{
	struct hmm_devmem_private *devmem = fetching->devmem;
	const struct hmm_devmem_ops *ops = devmem->devmem.ops;
	unsigned long addr = fetching->ask->addr + i * HMM_PAGE_SIZE;
	uint64_t before[HMM_BITMAP_WORDS];
	int result;

	memcpy(before, fetching->brought, sizeof(before));
	if (ops && ops->fault)
		result = ops->fault(&devmem->devmem, addr, page,
				    fetching->ask->flags & HMM_FAR_FLAGS_WRITE ? HMM_FAULT_WRITE : 0);
	else
		result = hmmc_resource_fault(devmem, addr, page);
	if (result != HMM_FAULT_MINOR && result != HMM_FAULT_MAJOR)
		memcpy(fetching->brought, before, sizeof(before));
	return result;
}

static uint8_t fetch_page(struct fetching *fetching, unsigned int i, uint32_t number)
{
	struct hmm_devmem_private *devmem = fetching->devmem;
	const struct hmm_page *page = number < devmem->count ? &devmem->devmem.pages[number] : NULL;

	if (!page || page->mirror != fetching->mirror) {
		hmmc_log(HMMC_LOG_ERROR, "hmmd asks for page %u of %s, which has nothing of this mirror", number,
			 devmem->name);
		return HMM_FAR_RESULT_LOST;
	}
	switch (call_fault(fetching, i, page)) {
	case HMM_FAULT_MINOR:
	case HMM_FAULT_MAJOR:
		if (test_bit(fetching->brought, i))
			return HMM_FAR_RESULT_HERE;
		hmmc_log(HMMC_LOG_ERROR, "fault() of %s says that 0x%lx is there, and did not bring it",
			 devmem->name, (unsigned long)fetching->ask->addr + i * HMM_PAGE_SIZE);
		return HMM_FAR_RESULT_LOST;
	case HMM_FAULT_OOM:
		return HMM_FAR_RESULT_MEMORY;
	default:
		return HMM_FAR_RESULT_LOST;
	}
}

static int prepare_fetched(struct request *request)
{
	const struct fetching *fetching = request->data;

	((struct hmm_msg_devmem_fetched *)request->message)->mirror = fetching->mirror->id;
	return 0;
}

static void tell_fetched(struct fetching *fetching)
{
	struct hmm_msg_devmem_fetched *message;
	struct request *request;

	request = hmmc_request_new(fetching->mirror->hmm->connection, HMM_OP_DEVMEM_FETCHED,
				   sizeof(*message) + fetching->ask->count);
	if (!request) {
		hmmc_log(HMMC_LOG_ERROR, "the library's memory is used up: an owner waits for its pages");
		return;
	}
	message = (struct hmm_msg_devmem_fetched *)request->message;
	message->cookie = fetching->ask->cookie;
	message->count = fetching->ask->count;
	memcpy(message->results, fetching->result, fetching->ask->count);
	request->data = fetching;
	request->prepare = prepare_fetched;
	hmmc_request_call(request);
	hmmc_request_free(request);
}

static void fetch(struct hmm_mirror_private *mirror, const void *event)
{
	const struct hmm_msg_devmem_fetch *ask = event;
	struct fetching *fetching = hmmc_arena_alloc(sizeof(*fetching));

	if (!fetching || ask->count > HMM_BLOCK_PAGES) {
		hmmc_log(HMMC_LOG_ERROR, "the library's memory is used up: an owner waits for its pages");
		hmmc_arena_free(fetching, sizeof(*fetching));
		return;
	}
	*fetching = (struct fetching){ .mirror = mirror, .devmem = mirror->devmem, .ask = ask,
				       .region = staging_of(mirror, ask->addr) };
	for (uint32_t k = 0; k < ask->count; k++)
		if (ask->pages[k].index < HMM_BLOCK_PAGES)
			fetching->asked[ask->pages[k].index / 64] |= 1ULL << (ask->pages[k].index % 64);
	now_fetching = fetching;
	for (uint32_t k = 0; k < ask->count; k++) {
		uint32_t i = ask->pages[k].index;

		if (!fetching->devmem || i >= HMM_BLOCK_PAGES)
			fetching->result[k] = HMM_FAR_RESULT_LOST;
		else if (!fetching->region)
			fetching->result[k] = HMM_FAR_RESULT_MEMORY;
		else if (test_bit(fetching->brought, i))
			fetching->result[k] = HMM_FAR_RESULT_HERE;
		else
			fetching->result[k] = fetch_page(fetching, i, ask->pages[k].number);
	}
	now_fetching = NULL;
	tell_fetched(fetching);
	hmmc_arena_free(fetching, sizeof(*fetching));
}

/* ---- free ---------------------------------------------------------------------------- */

static void free_pages(struct hmm_mirror_private *mirror, const void *event)
{
	struct hmm_devmem_private *devmem = mirror->devmem;
	const struct hmm_msg_devmem_free *ask = event;

	for (uint32_t k = 0; devmem && k < ask->count; k++) {
		struct hmm_page *page = ask->numbers[k] < devmem->count ?
					&devmem->devmem.pages[ask->numbers[k]] : NULL;

		if (page && page->mirror == mirror && page->held == HELD)
			let_go(page);
	}
}

void hmmc_devmem_release(struct hmm_mirror_private *mirror)
{
	let_go_of(mirror, HELD, true);
}

void hmmc_devmem_event(struct hmm *hmm, const struct hmm_wire_header *event)
{
	/* All three begin with it. */
	uint32_t id = ((const struct hmm_msg_devmem_free *)(const void *)event)->mirror;
	void (*run)(struct hmm_mirror_private *mirror, const void *event) =
		event->opcode == HMM_OP_DEVMEM_STORE ? store :
		event->opcode == HMM_OP_DEVMEM_FETCH ? fetch : free_pages;
	struct hmm_mirror_private *mirror;

	futex_lock(&hmm->lock);
	mirror = hmmc_mirror_find(hmm, id);
	if (mirror && !hmmc_dispatch_post(mirror, run, event, event->size))
		hmmc_log(HMMC_LOG_ERROR, "the library's memory is used up: what hmmd asked is not done");
	futex_unlock(&hmm->lock);
}

void hmmc_devmem_region(struct hmm *hmm, const struct hmm_msg_region *event, int fd)
{
	if (hmm->staging)
		hmmc_region_add(hmm->staging, event, fd);
	else
		close(fd);
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
	let_go_of(mirror, HELD, true);
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

struct returning {
	struct hmm_mirror_private *mirror;
	uint64_t cursor;
};

static int prepare_ready(struct request *request)
{
	const struct returning *returning = request->data;

	((struct hmm_msg_devmem_ready *)request->message)->mirror = returning->mirror->id;
	return 0;
}

/* Notes the next of the pages that hmmd needs. Return: 1 there are more, 0, or a negative errno. */
static int list_some(struct returning *returning)
{
	struct hmm_devmem_private *devmem = returning->mirror->devmem;
	const struct hmm_msg_devmem_ready_reply *reply;
	struct hmm_msg_devmem_ready *message;
	struct request *request;
	int more;

	request = hmmc_request_new(returning->mirror->hmm->connection, HMM_OP_DEVMEM_READY, sizeof(*message));
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	message = (struct hmm_msg_devmem_ready *)request->message;
	message->token = devmem->token;
	message->cursor = returning->cursor;
	request->data = returning;
	request->prepare = prepare_ready;
	more = hmmc_request_call(request);
	reply = (const struct hmm_msg_devmem_ready_reply *)request->reply;
	if (!more) {
		for (uint32_t k = 0; k < reply->count; k++) {
			uint32_t number = reply->numbers[k];
			struct hmm_page *page = number < devmem->count ? &devmem->devmem.pages[number] : NULL;

			if (page && page->mirror == returning->mirror && page->held == HELD)
				page->held = HELD_LISTED;
		}
		returning->cursor = reply->next;
		more = reply->more != 0;
	}
	hmmc_request_free(request);
	return more;
}

int hmmc_devmem_ready(struct hmm_mirror_private *mirror)
{
	struct hmm_devmem_private *devmem = mirror->devmem;
	struct returning *returning;
	int more = 1;

	if (!devmem || !devmem->token)
		return 0;
	returning = hmmc_arena_alloc(sizeof(*returning));
	if (!returning)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	returning->mirror = mirror;
	while (more > 0)
		more = list_some(returning);
	hmmc_arena_free(returning, sizeof(*returning));
	if (more)
		return more;
	let_go_of(mirror, HELD, false);
	for (uint64_t i = 0; i < devmem->count; i++)
		if (devmem->devmem.pages[i].mirror == mirror && devmem->devmem.pages[i].held == HELD_LISTED)
			devmem->devmem.pages[i].held = HELD;
	return 0;
}

static void ready_again(struct hmm_mirror_private *mirror, const void *event)
{
	(void)event;
	hmmc_devmem_ready(mirror);
}

void hmmc_devmem_return(struct hmm_mirror_private *mirror)
{
	if (mirror->devmem && mirror->devmem->token && !hmmc_dispatch_post(mirror, ready_again, NULL, 0))
		hmmc_log(HMMC_LOG_ERROR, "the library's memory is used up: hmmd takes this driver for gone");
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

/* Shared memory, which never migrates: callbacks look at it while they serve faults. */
static int make_table(struct hmm_devmem_private *devmem)
{
	size_t pages = devmem->count * sizeof(struct hmm_page), free = devmem->count * sizeof(uint32_t);
	char *table;

	devmem->table_size = pages + (devmem->memory ? free : 0);
	table = hmmc_map(NULL, devmem->table_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!table)
		return hmmc_fail(-ENOMEM, "no memory to keep count of %llu pages",
				 (unsigned long long)devmem->count);
	madvise(table, devmem->table_size, MADV_DONTFORK);
	madvise(table, devmem->table_size, MADV_DONTDUMP);
	devmem->table = table;
	devmem->devmem.pages = (struct hmm_page *)(void *)table;
	for (uint64_t i = 0; i < devmem->count; i++)
		devmem->devmem.pages[i].devmem = &devmem->devmem;
	if (!devmem->memory)
		return 0;
	devmem->free = (uint32_t *)(void *)(table + pages);
	/* The lowest are on top. */
	for (uint64_t i = devmem->count; i; i--)
		devmem->free[devmem->free_count++] = (uint32_t)(i - 1);
	return 0;
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

static struct hmm_devmem_private *devmem_new(const struct hmm_devmem_ops *ops, struct hmm_device *device)
{
	struct hmm_devmem_private *devmem = hmmc_arena_alloc(sizeof(*devmem));

	if (!devmem) {
		hmmc_fail(-ENOMEM, "the library's memory is used up");
		return NULL;
	}
	snprintf(devmem->name, sizeof(devmem->name), "%s", device->name);
	devmem->devmem.ops = ops;
	devmem->devmem.device = device;
	devmem->devmem.priv = devmem;
	devmem->devmem.pfn_first = HMM_DEVICE_PFN;
	return devmem;
}

/* With its size known and its resource mapped. Consumes @devmem when it fails. */
static int add(struct hmm_devmem_private *devmem, uint64_t size, struct hmm_devmem **result)
{
	struct hmm_device *device = devmem->devmem.device;
	int error = 0;

	devmem->count = size >> HMM_PAGE_SHIFT;
	devmem->devmem.pfn_last = 2 * HMM_DEVICE_PFN - 1;
	devmem->base = device->memory;
	devmem->pool = devmem->base + size;
	if (device->caps & HMM_DEVICE_COPY_ENGINE) {
		devmem->token = new_token();
		devmem->devmem.pfn_last = HMM_DEVICE_PFN + devmem->count - 1;
		devmem->pool = size < STAGING_MAX ? size : STAGING_MAX;
		if (devmem->pool < devmem->base)
			devmem->pool = devmem->base;
		if (devmem->count >= HMM_FAR_NONE)
			error = hmmc_fail(-ENOSPC, "fewer than %u pages can be numbered", HMM_FAR_NONE);
		if (!error)
			error = make_table(devmem);
	}
	if (!error)
		error = enlist(devmem);
	if (!error) {
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
		if (strcmp(mirror->device->name, devmem->name) == 0)
			join(mirror, devmem);
	futex_unlock(&device->hmm->lock);
	device->devmem = devmem;
	device->memory = device->caps & HMM_DEVICE_COPY_ENGINE ? size : devmem->pool;
	*result = &devmem->devmem;
	return 0;
}

static int check_device(const struct hmm_device *device, struct hmm_devmem **result)
{
	if (!device || !result)
		return hmmc_fail(-EINVAL, "device or result is NULL");
	return hmmc_space_check(device->hmm);
}

int hmm_devmem_add(const struct hmm_devmem_ops *ops, struct hmm_device *device, unsigned long size,
		   struct hmm_devmem **result)
{
	struct hmm_devmem_private *devmem;
	int error = check_device(device, result);

	if (error)
		return error;
	if (device->caps & HMM_DEVICE_COPY_ENGINE && (!ops || !ops->alloc_and_copy || !ops->fault))
		return hmmc_fail(-EINVAL, "only the driver reaches a copy engine's memory: ops->alloc_and_copy and ops->fault are needed");
	if (!(device->caps & HMM_DEVICE_COPY_ENGINE) && ops)
		return hmmc_fail(-EINVAL, "the device was made without HMM_DEVICE_COPY_ENGINE: its memory is hmmd's, and needs no ops");
	if (!size || size > HMM_VA_END)
		return hmmc_fail(-EINVAL, "the size is 0 or above 2^47");
	devmem = devmem_new(ops, device);
	return devmem ? add(devmem, (size + HMM_PAGE_SIZE - 1) & ~(HMM_PAGE_SIZE - 1), result) : -ENOMEM;
}

int hmm_devmem_add_resource(const struct hmm_devmem_ops *ops, struct hmm_device *device,
			    const struct hmm_resource *given, struct hmm_devmem **result)
{
	const unsigned char *bytes = (const unsigned char *)given;
	struct hmm_resource resource = { 0 };
	struct hmm_devmem_private *devmem;
	int error = check_device(device, result);

	if (error)
		return error;
	if (!given || given->size < sizeof(given->size))
		return hmmc_fail(-EINVAL, "resource is NULL, or resource->size is not set");
	for (size_t i = sizeof(resource); i < given->size; i++)
		if (bytes[i])
			return hmmc_fail(-E2BIG, "resource asks for something this library does not know");
	memcpy(&resource, given, given->size < sizeof(resource) ? given->size : sizeof(resource));
	if (!(device->caps & HMM_DEVICE_COPY_ENGINE))
		return hmmc_fail(-EINVAL, "the device was made without HMM_DEVICE_COPY_ENGINE");
	devmem = devmem_new(ops, device);
	if (!devmem)
		return -ENOMEM;
	error = hmmc_resource_map(devmem, &resource);
	if (error) {
		destroy(devmem);
		return error;
	}
	return add(devmem, resource.length, result);
}

static int prepare_drain(struct request *request)
{
	const struct hmm_mirror_private *mirror = request->data;
	struct hmm_msg_drain *message = (struct hmm_msg_drain *)request->message;

	message->owner = mirror->hmm->id;
	message->device = mirror->device->id;
	return 0;
}

static void drain(struct hmm_mirror_private *mirror)
{
	struct request *request;

	if (hmmc_space_check(mirror->hmm))
		return;
	request = hmmc_request_new(mirror->hmm->connection, HMM_OP_DRAIN, sizeof(struct hmm_msg_drain));
	if (!request)
		return;
	request->data = mirror;
	request->prepare = prepare_drain;
	hmmc_request_call(request);
	hmmc_request_free(request);
}

static int prepare_remove(struct request *request)
{
	return prepare_add(request);
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
	request->prepare = prepare_remove;
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	return error;
}

static void pause_a_little(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = DRAIN_PAUSE_NS }, NULL);
}

/* Pages that somebody has references to. */
static int await_references(struct hmm_devmem_private *devmem, bool block)
{
	uint32_t n;

	while ((n = __atomic_load_n(&devmem->in_use, __ATOMIC_ACQUIRE)) != 0) {
		if (!block)
			return hmmc_fail(-EBUSY, "%u pages of %s are in use", n, devmem->name);
		/* What is at home by now is freed in a moment; the rest by hmm_page_put(). */
		futex_wait(&devmem->in_use, n, &(struct timespec){ .tv_nsec = DRAIN_PAUSE_NS });
	}
	return 0;
}

/* What came home is punched, and no longer in use, a moment later. */
static int give_back(struct hmm_devmem_private *devmem)
{
	uint64_t end = clock_ms() + devmem->devmem.device->hmm->connection->grace_ms;
	int error;

	while ((error = tell_removed(devmem)) == -EBUSY && clock_ms() < end)
		pause_a_little();
	return error == -ESTALE ? 0 : error;
}

int hmm_devmem_remove(struct hmm_devmem *public, bool block)
{
	struct hmm_devmem_private *devmem = public ? public->priv : NULL;
	struct hmm_mirror_private *mirror;
	uint32_t running;
	int error;

	if (!devmem)
		return hmmc_fail(-EINVAL, "devmem is NULL");
	if (hmmc_dispatch_is_current())
		return hmmc_fail(-EDEADLK, "a callback cannot wait for itself; remove it from another thread");
	__atomic_store_n(&devmem->closing, 1, __ATOMIC_RELEASE);
	for (mirror = devmem->mirrors; mirror; mirror = mirror->devmem_next)
		drain(mirror);
	/* hmmd has said which are free before it answered: let that be done. */
	for (mirror = devmem->mirrors; mirror; mirror = mirror->devmem_next)
		while ((running = __atomic_load_n(&mirror->callbacks, __ATOMIC_ACQUIRE)) != 0)
			futex_wait(&mirror->callbacks, running, NULL);
	error = await_references(devmem, block);
	if (!error)
		error = give_back(devmem);
	if (error) {
		__atomic_store_n(&devmem->closing, 0, __ATOMIC_RELEASE);
		return error;
	}
	delist(devmem);
	futex_lock(&memories.lock);
	for (mirror = devmem->mirrors; mirror; mirror = mirror->devmem_next)
		mirror->devmem = NULL;
	futex_unlock(&memories.lock);
	devmem->devmem.device->devmem = NULL;
	devmem->devmem.device->memory = devmem->base;
	destroy(devmem);
	return 0;
}

void *hmm_devmem_page_address(const struct hmm_page *page)
{
	const struct hmm_devmem_private *devmem = page ? page->devmem->priv : NULL;

	return devmem && devmem->memory ? devmem->memory + ((size_t)number_of(page) << HMM_PAGE_SHIFT) : NULL;
}
