/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * far.c - what hmmd asks of a driver whose memory nobody else reaches.
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
#include <string.h>
#include <sys/mman.h>

#include "arena.h"
#include "devmem.h"
#include "dispatch.h"
#include "log.h"

enum held {
	HELD_NOT,
	HELD_ASKED,	/* hmmd was told, and has not answered */
	HELD,
	HELD_LISTED,	/* hmmd says so after a restart */
};

/* ---- pages ---------------------------------------------------------------------- */

void hmm_page_get(struct hmm_page *page)
{
	if (page)
		__atomic_add_fetch(&page->references, 1, __ATOMIC_ACQ_REL);
}

void hmm_page_put(struct hmm_page *page)
{
	struct hmm_devmem_private *devmem;

	if (!page || __atomic_sub_fetch(&page->references, 1, __ATOMIC_ACQ_REL))
		return;
	devmem = page->devmem->priv;
	if (devmem->ops.free)
		devmem->ops.free(&devmem->devmem, page);
	if (devmem->free)
		hmmc_resource_free(devmem, page);
	if (__atomic_sub_fetch(&devmem->in_use, 1, __ATOMIC_ACQ_REL) == 0)
		futex_wake(&devmem->in_use, INT32_MAX);
}

static uint32_t number_of(const struct hmm_page *page)
{
	return (uint32_t)(page - page->devmem->pages);
}

/* Drivers of two handles may choose at once. */
static void touch(struct hmm_devmem_private *devmem, uint64_t end)
{
	uint64_t touched = __atomic_load_n(&devmem->touched, __ATOMIC_RELAXED);

	while (touched < end && !__atomic_compare_exchange_n(&devmem->touched, &touched, end, true, __ATOMIC_ACQ_REL,
							     __ATOMIC_RELAXED))
		;
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
	page->devmem = &devmem->devmem;
	touch(devmem, number_of(page) + 1UL);
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
	uint64_t touched = devmem ? __atomic_load_n(&devmem->touched, __ATOMIC_ACQUIRE) : 0;

	for (uint64_t i = 0; i < touched; i++) {
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

/*
 * What hmmd asked it asks once, and an owner waits for the answer, or the pages of a migration do: where there is no memory for it,
 * here or in hmmd, it is tried for as long as it takes.
 */
#define PAUSE_NS	10000000L

static void *need(size_t size)
{
	void *memory;

	while (!(memory = hmmc_arena_alloc(size)))
		hmmc_dispatch_nap(PAUSE_NS);
	return memory;
}

static struct request *new_answer(struct connection *connection, uint16_t op, size_t size, size_t tail)
{
	struct request *request;

	while (!(request = hmmc_request_new_expecting(connection, op, size, tail)))
		hmmc_dispatch_nap(PAUSE_NS);
	request->insists = true;
	return request;
}

/* Which of them hmmd has noted. Return: 0, or nothing has moved. */
static int tell_stored(struct storing *storing, uint64_t *moved)
{
	struct connection *connection = storing->mirror->hmm->connection;
	const struct hmm_msg_devmem_stored_reply *reply;
	struct hmm_msg_devmem_stored *message;
	struct request *request;
	int error;

	request = new_answer(connection, HMM_OP_DEVMEM_STORED,
			     sizeof(*message) + storing->count * sizeof(uint32_t), HMM_BITMAP_WORDS * sizeof(*moved));
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
	if (devmem->ops.alloc_and_copy)
		devmem->ops.alloc_and_copy(&devmem->devmem, move);
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
	if (devmem->ops.finalize)
		devmem->ops.finalize(&devmem->devmem, move);
	while (n)
		let_go(refused[--n]);
}

static struct region *staging_of(const struct hmm_mirror_private *mirror, uint64_t addr)
{
	struct regions *staging = mirror->hmm->staging;

	struct region *region = staging ? hmmc_region_find(staging, mirror->id, addr) : NULL;

	return region && hmmc_region_map(staging, region) ? region : NULL;
}

static void store(struct hmm_mirror_private *mirror, const void *event)
{
	struct hmm_devmem_private *devmem = mirror->devmem;
	const struct hmm_msg_devmem_store *ask = event;
	struct region *region = staging_of(mirror, ask->addr);
	struct storing *storing = need(sizeof(*storing));
	uint64_t moved[HMM_BITMAP_WORDS] = { 0 };
	struct hmm_devmem_move move = { .mirror = mirror->mirror };
	unsigned int first;

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
	unsigned long addr = fetching->ask->addr + i * HMM_PAGE_SIZE;
	uint64_t before[HMM_BITMAP_WORDS];
	int result;

	memcpy(before, fetching->brought, sizeof(before));
	if (devmem->ops.fault)
		result = devmem->ops.fault(
			&devmem->devmem, addr, page,
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

	request = new_answer(fetching->mirror->hmm->connection, HMM_OP_DEVMEM_FETCHED,
			     sizeof(*message) + fetching->ask->count, 0);
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
	struct fetching *fetching;

	if (ask->count > HMM_BLOCK_PAGES) {
		hmmc_log(HMMC_LOG_ERROR, "hmmd asks for more pages than a block has");
		return;
	}
	fetching = need(sizeof(*fetching));
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

int hmmc_devmem_event(struct hmm *hmm, const struct hmm_wire_header *event)
{
	/* All three begin with it. */
	uint32_t id = ((const struct hmm_msg_devmem_free *)(const void *)event)->mirror;
	void (*run)(struct hmm_mirror_private *mirror, const void *event) =
		event->opcode == HMM_OP_DEVMEM_STORE ? store :
		event->opcode == HMM_OP_DEVMEM_FETCH ? fetch : free_pages;
	struct hmm_mirror_private *mirror;
	int error = 0;

	futex_lock(&hmm->lock);
	mirror = hmmc_mirror_find(hmm, id);
	if (mirror && !hmmc_dispatch_post(mirror, run, event, event->size))
		error = -ENOMEM;
	futex_unlock(&hmm->lock);
	return error;
}

int hmmc_devmem_region(struct hmm *hmm, const struct hmm_msg_region *event, int fd)
{
	if (hmm->staging)
		return hmmc_region_add(hmm->staging, event, fd);
	close(fd);
	return 0;
}

/* ---- coming, and coming back ------------------------------------------------------ */

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

/* Another list is begun, or this one was heard to its end. */
static void forget_list(struct hmm_mirror_private *mirror)
{
	struct hmm_devmem_private *devmem = mirror->devmem;
	uint64_t touched = __atomic_load_n(&devmem->touched, __ATOMIC_ACQUIRE);

	for (uint64_t i = 0; i < touched; i++)
		if (devmem->devmem.pages[i].mirror == mirror && devmem->devmem.pages[i].held == HELD_LISTED)
			devmem->devmem.pages[i].held = HELD;
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
	if (!more)
		let_go_of(mirror, HELD, false);
	forget_list(mirror);
	return more;
}

static void ready_again(struct hmm_mirror_private *mirror, const void *event)
{
	(void)event;
	/* hmmd takes a driver for gone that does not come back, and his pages for lost. */
	while (hmmc_devmem_ready(mirror) == -ENOMEM)
		hmmc_dispatch_nap(PAUSE_NS);
}

int hmmc_devmem_return(struct hmm_mirror_private *mirror)
{
	if (mirror->devmem && mirror->devmem->token && !hmmc_dispatch_post(mirror, ready_again, NULL, 0))
		return -ENOMEM;
	return 0;
}
