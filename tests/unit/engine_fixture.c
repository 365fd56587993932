// SPDX-License-Identifier: GPL-2.0-or-later
/* engine_fixture.c - see engine_fixture.h. Runs in the test's thread. */
#include "engine_fixture.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/table_entry.h"
#include "uapi.h"

#define SLOTS		2U
#define SLOTS_ADDR	0x210000000000ULL

static void begin_worker(struct fixture *fixture, uint64_t size)
{
	struct engine *engine = &fixture->engine;
	struct worker *worker = &fixture->worker;

	memset(fixture, 0, sizeof(*fixture));
	fixture->events = -1;
	cr_assert(eq(int, mailbox_init(&fixture->outbox), 0));
	kernel_probe(&engine->facts);
	engine->options.workers = 1;
	engine->options.ack_timeout_ms = 1000;
	engine->features = HMM_FEATURE_MOVE | (engine->facts.guard ? HMM_FEATURE_GUARD : 0);
	engine->incarnation = 1;
	engine->outbox = &fixture->outbox;
	engine->workers = worker;
	engine->started = 1;
	pthread_mutex_init(&engine->lock, NULL);
	TAILQ_INIT(&engine->owners);
	devices_init(&engine->devices, size);

	worker->engine = engine;
	worker->now = clock_now();
	worker->alarm = INT64_MAX;
	TAILQ_INIT(&worker->owners);
	cr_assert(eq(int, mailbox_init(&worker->inbox), 0));
	cr_assert(eq(int, reactor_new(false, &worker->reactor), 0));
	reactor_start(worker->reactor);
}

static void begin_owner(struct fixture *fixture)
{
	struct letter *letter = letter_new(LETTER_REQUEST);

	letter->owner = 1;
	letter->uid = getuid();
	letter->pid = getpid();
	strcpy(letter->name, "test");
	fixture->owner = owner_new(&fixture->worker, letter);
	cr_assert(ne(ptr, fixture->owner, NULL));
	letter_free(letter);
	fixture->owner->mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	fixture->owner->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	fixture->owner->maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	fixture->owner->smaps = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
	fixture->owner->done.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	cr_assert(eq(int, owner_map_shared(fixture->owner), 0));
	owner_open_attributes(fixture->owner);
}

static void begin_mirror(struct fixture *fixture, enum hmm_pool_kind kind, uint64_t size)
{
	struct devices *devices = &fixture->engine.devices;

	cr_assert(eq(int, device_new(devices, "test", kind, NULL, size, HMM_DEVICE_CAPS_FAULTS, DRIVER,
				     &fixture->device), 0));
	device_use(devices, fixture->device->id);
	fixture->mirror = mirror_new(fixture->owner, 0, fixture->device, NULL);
	cr_assert(ne(ptr, fixture->mirror, NULL));
}

static void map_at(uint64_t addr, uint64_t length)
{
	void *at = mmap((void *)addr, length, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	cr_assert(eq(ptr, at, (void *)addr));
	madvise(at, length, MADV_NOHUGEPAGE);
}

void fixture_begin(struct fixture *fixture, enum hmm_pool_kind kind, uint64_t size)
{
	struct owner *owner;

	begin_worker(fixture, size);
	begin_owner(fixture);
	owner = fixture->owner;
	owner->uffd = kernel_uffd_new();
	cr_assert(ge(int, owner->uffd, 0));
	cr_assert(eq(int, owner_handshake(owner, 0), 0));
	map_at(ROOM_START, ROOM_END - ROOM_START);
	map_at(SLOTS_ADDR, SLOTS * HMM_BLOCK_SIZE);
	owner->slots = SLOTS;
	owner->slots_addr = SLOTS_ADDR;
	cr_assert(eq(int, kernel->uffd_register(owner->uffd, SLOTS_ADDR, SLOTS * HMM_BLOCK_SIZE,
						UFFDIO_REGISTER_MODE_MISSING), 0));
	cr_assert(eq(int, owner_watch(owner), 0));
	begin_mirror(fixture, kind, size);
}

void fixture_begin_faked(struct fixture *fixture, uint64_t size)
{
	int ends[2];

	begin_worker(fixture, size);
	begin_owner(fixture);
	cr_assert(eq(int, pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0));
	fixture->owner->uffd = ends[0];
	fixture->events = ends[1];
	begin_mirror(fixture, HMM_POOL_KIND_MEMFD, size);
}

void fixture_end(struct fixture *fixture)
{
	bool faked = fixture->events >= 0;

	if (fixture->owner)
		owner_free(fixture->owner);
	reactor_free(fixture->worker.reactor);
	device_let_go(&fixture->engine.devices, DRIVER, 0);
	cr_expect(eq(u64, fixture->engine.devices.promised, 0));
	devices_deinit(&fixture->engine.devices);
	pthread_mutex_destroy(&fixture->engine.lock);
	mailbox_deinit(&fixture->outbox);
	mailbox_deinit(&fixture->worker.inbox);
	if (faked) {
		close(fixture->events);
	} else {
		munmap((void *)ROOM_START, ROOM_END - ROOM_START);
		munmap((void *)SLOTS_ADDR, SLOTS * HMM_BLOCK_SIZE);
	}
}

/* ---- the driver ---------------------------------------------------------------- */

void fixture_callbacks(struct fixture *fixture)
{
	fixture->mirror->peer = DRIVER;
	fixture->mirror->flags |= HMM_MIRROR_FLAGS_CALLBACKS;
}

unsigned int fixture_answer(struct fixture *fixture)
{
	return fixture_answer_with(fixture, 0);
}

unsigned int fixture_answer_with(struct fixture *fixture, int status)
{
	struct letter *letter = mailbox_take(&fixture->outbox), *next;
	unsigned int n = 0;

	for (; letter; letter = next) {
		const struct hmm_msg_invalidate *message = (const void *)letter->message;
		uint64_t cookie;

		next = letter->next;
		cr_assert(eq(int, letter->kind, LETTER_EVENT));
		cr_assert(eq(int, letter->message->opcode, HMM_OP_INVALIDATE));
		cr_assert(eq(u64, letter->peer, DRIVER));
		cr_assert(eq(u32, message->mirror, fixture->mirror->id));
		cr_assert(lt(u64, message->start, message->end));
		cookie = message->cookie;
		cr_assert(eq(u64, cookie >> 48, fixture->owner->id),
			  "control finds the owner by it");
		letter_free(letter);
		invalidate_ack(fixture->owner, cookie, status);
		/* Twice, and made up: nobody waits for that. */
		invalidate_ack(fixture->owner, cookie, 0);
		invalidate_ack(fixture->owner, ~cookie, 0);
		n++;
	}
	return n;
}

int fixture_reply(struct fixture *fixture)
{
	struct letter *letter = mailbox_take(&fixture->outbox), *next;
	int error = 1;

	for (; letter; letter = next) {
		next = letter->next;
		if (letter->kind == LETTER_REPLY)
			error = letter->error;
		letter_free(letter);
	}
	return error;
}

/* ---- pages ----------------------------------------------------------------------- */

void fixture_bytes(unsigned int page, void *bytes)
{
	uint64_t *words = bytes;

	for (unsigned int i = 0; i < HMM_PAGE_SIZE / sizeof(*words); i++)
		words[i] = (page + 1) * 0x9e3779b97f4a7c15ULL + i;
}

void fixture_out(struct fixture *fixture, unsigned int first, unsigned int end)
{
	struct owner *owner = fixture->owner;
	char bytes[HMM_PAGE_SIZE];
	struct shadow *shadow;

	for (unsigned int page = first; page < end; page++) {
		uint64_t addr = ROOM_START + page * HMM_PAGE_SIZE;
		struct block *block = block_get(owner, addr);
		unsigned int i = page_index(addr);

		cr_assert(ne(ptr, block, NULL));
		cr_assert(block_at_rest(block));
		cr_assert(eq(int, mirror_shadow(fixture->mirror, addr, &shadow), 0));
		cr_assert(block->record->mirror == 0 || block->record->mirror == HMM_NO_MIRROR);
		block->record->mirror = 0;
		if (!pages_test(&block->stale, i))
			cr_assert(eq(int, block_charge(block, fixture->device,
						       pool_is_huge(fixture->device->pool->kind) ?
						       HMM_BLOCK_PAGES : 1), 0));
		if (fixture->events < 0 && !(block->record->flags & HMM_BLOCK_ARMED))
			cr_assert(eq(int,
				     block_arm(block, block->addr, block->addr + HMM_BLOCK_SIZE),
				     0));
		fixture_bytes(page, bytes);
		cr_assert(eq(int, shadow_store(shadow, addr, bytes), 0));
		block_set_state(block, i, i + 1, HMM_PAGE_DEVICE);
	}
}

void fixture_drive(struct fixture *fixture, const int *done)
{
	struct worker *worker = &fixture->worker;

	while (!__atomic_load_n(done, __ATOMIC_ACQUIRE)) {
		cr_assert(ge(int, reactor_wait(worker->reactor, NS_PER_MS), 0));
		worker->now = clock_now();
		worker->alarm = INT64_MAX;
		owner_tick(fixture->owner, worker->now);
	}
}

void fixture_later(struct fixture *fixture, int64_t ns)
{
	fixture->worker.now += ns;
	fixture->worker.alarm = INT64_MAX;
	/* An owner without a connection would be closed after a while. */
	fixture->owner->orphan_since = fixture->worker.now;
	owner_tick(fixture->owner, fixture->worker.now);
}

/* ---- what must agree ----------------------------------------------------------------- */

struct block *fixture_block(const struct fixture *fixture, unsigned int n)
{
	return block_find(fixture->owner, ROOM_START + n * HMM_BLOCK_SIZE);
}

struct pages pages_from(unsigned int first, unsigned int end)
{
	struct pages pages = { 0 };

	for (unsigned int i = first; i < end; i++)
		pages_set(&pages, i);
	return pages;
}

uint64_t fixture_sequence(const struct block *block)
{
	return block->owner->table[HMM_TABLE_ENTRIES + (block->addr >> HMM_BLOCK_SHIFT)];
}

struct totals {
	struct fixture *fixture;
	uint64_t device, shared, charged, armed;
};

static void check_block(struct block *block, void *data)
{
	struct totals *totals = data;
	bool rest = block_at_rest(block);
	unsigned int held = 0;

	cr_assert(eq(u64, fixture_sequence(block) & 1, rest ? 0 : 1),
		  "block %#lx: %s, sequence %lu", block->addr, transit_name(block->record->transit),
		  fixture_sequence(block));
	if (rest)
		cr_assert(eq(uint, block->record->slot, HMM_NO_SLOT));
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		enum hmm_page_state state = page_state(block, i);
		bool in_shadow = state == HMM_PAGE_DEVICE || state == HMM_PAGE_SHARED ||
				 state == HMM_PAGE_COHERENT;
		bool pending = !rest && block->record->pending[i / 64] >> (i % 64) & 1;
		uint64_t entry = block->owner->table[(block->addr >> HMM_PAGE_SHIFT) + i];

		cr_assert(eq(uint, block->record->page[i] & ~(unsigned int)(HMM_PAGE_SERVED | (block->doubtful ? HMM_PAGE_DOUBTFUL : 0)),
			     (unsigned int)state | (in_shadow ? HMM_PAGE_COMPLETE : 0)));
		/* Pages on their way that were lost meanwhile: a successor has to know. */
		cr_assert(eq(int, (block->record->page[i] & HMM_PAGE_SERVED) != 0,
			     pending && pages_test(&block->dead, i)), "page %u", i);
		/* At home, seen by a range, and watched. */
		if (state == HMM_PAGE_INVALID && !pending && entry)
			cr_assert(block->remote && pages_test(&block->armed, i) &&
				  (entry & ~HMM_TABLE_WRITE) == (page_addr(block, i) | HMM_TABLE_VALID),
				  "block %#lx page %u: %#lx", block->addr, i, entry);
		else
			cr_assert(eq(u64, entry, pending ? 0 :
				     expected_entry(totals->fixture->mirror->index, page_addr(block, i), state)),
				  "block %#lx page %u in state %d", block->addr, i, state);
		cr_assert(not(in_shadow && pages_test(&block->stale, i)),
			  "page %u is needed, and stale", i);
		totals->device += state == HMM_PAGE_DEVICE || state == HMM_PAGE_COHERENT;
		totals->shared += state == HMM_PAGE_SHARED;
		held += in_shadow;
	}
	cr_assert(ge(uint, block->charged, held), "pages that nobody is charged for");
	cr_assert(le(uint, block->charged, HMM_BLOCK_PAGES));
	totals->charged += block->charged;
	totals->armed += block->record->flags & HMM_BLOCK_ARMED ? HMM_BLOCK_SIZE : 0;
}

void fixture_expect_use(const struct fixture *fixture, unsigned int count, const unsigned int *order)
{
	struct block *block = TAILQ_FIRST(&fixture->mirror->use);

	cr_assert(eq(uint, fixture->mirror->used_blocks, count));
	for (unsigned int i = 0; i < count; i++, block = TAILQ_NEXT(block, use)) {
		cr_assert(ne(ptr, block, NULL));
		cr_assert(eq(ptr, block, fixture_block(fixture, order[i])), "place %u", i);
		cr_assert(eq(ptr, block->charged_to, fixture->mirror));
	}
	cr_assert(eq(ptr, block, NULL));
}

void fixture_check(struct fixture *fixture)
{
	struct totals totals = { .fixture = fixture };
	struct shadows *shadows = &fixture->mirror->shadows;
	uint64_t allocated = 0;

	block_for_each(fixture->owner, 0, HMM_VA_END, check_block, &totals);
	cr_assert(eq(u64, fixture->mirror->device_pages, totals.device));
	cr_assert(eq(u64, fixture->mirror->shared_pages, totals.shared));
	cr_assert(eq(u64, fixture->device->used, totals.charged * HMM_PAGE_SIZE));
	cr_assert(eq(u64, fixture->device->pool->used, fixture->device->used));
	cr_assert(eq(u64, fixture->owner->registered_bytes, totals.armed));
	for (unsigned int i = 0; i < shadows->count; i++) {
		struct stat stat;

		cr_assert(eq(int, fstat(shadows->list[i]->fd, &stat), 0));
		allocated += (uint64_t)stat.st_blocks * 512;
	}
	cr_assert(le(u64, allocated, fixture->device->used), "memory that nobody is charged for");
}
