// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * library.c - the owner's library and hmmd's control thread in one: letters go to hmmd's worker and come from it. What the
 * library holds outlives hmmd, and is handed to the next one, or to the rescuer, when none comes. Agent and rescuer are the real ones
 * (libclient/agent.c, order.c, move.c, fill.c, region.c, rescuer.c); their system calls are kernel.c's.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sim.h"

void *__real_mmap64(void *at, size_t length, int protection, int flags, int fd, off_t offset);

#define REPLY_MAX 4096
static char replies[ACTOR_MAX][REPLY_MAX];

static int keep(int fd)
{
	int kept = fcntl(fd, F_DUPFD_CLOEXEC, FDS_KEPT);

	if (kept < 0)
		wrong("out of descriptors: %m");
	return kept;
}

/* ---- what comes -------------------------------------------------------------------------------------------- */

static void hold(const struct hmm_msg_region *message, int fd)
{
	for (unsigned int i = 0; i < REGIONS_HELD; i++) {
		struct held_region *held = &world.held[i];

		if (held->fd >= 0 && held->base == message->base && held->mirror == (message->mirror & 0xff))
			close(held->fd);
		else if (held->fd >= 0)
			continue;
		*held = (struct held_region){ .fd = keep(fd), .mirror = message->mirror & 0xff, .base = message->base };
		return;
	}
	wrong("more regions than there is room for");
}

static void take_event(struct letter *letter)
{
	switch (letter->message->opcode) {
	case HMM_OP_REGION:
		/* The second driver's window shows the file that the owner's library has, too. */
		if (letter->peer != OWNER_PEER)
			break;
		hold((const void *)letter->message, letter->fds[0]);
		hmmc_region_add(world.regions, (const void *)letter->message, keep(letter->fds[0]));
		break;
	case HMM_OP_INVALIDATE:
		driver_is_told((const void *)letter->message);
		break;
	case HMM_OP_WINDOW_REVOKED:
		window_is_revoked((const void *)letter->message);
		break;
	default:
		say("an event: %s", hmm_opcode_name(letter->message->opcode));
	}
}

static void take_reply(struct letter *letter)
{
	for (unsigned int i = 0; i < ACTOR_MAX; i++) {
		struct request *request = &world.request[i];

		if (!request->serial || request->serial != letter->message->serial)
			continue;
		if (request->answered)
			wrong("%s was answered twice", hmm_opcode_name(letter->message->opcode));
		request->answered = true;
		request->error = letter->error;
		if (letter->error)
			say("%s: %s", hmm_opcode_name(letter->message->opcode), letter->text);
		else
			memcpy(replies[i], letter->reply, letter->reply->size < REPLY_MAX ? letter->reply->size : REPLY_MAX);
		request->nfds = 0;
		for (unsigned int k = 0; !letter->error && k < letter->n_reply_fds; k++)
			request->fds[request->nfds++] = keep(letter->reply_fds[k]);
		return;
	}
	say("%s was answered, and nobody asks any more", hmm_opcode_name(letter->message->opcode));
}

static struct letter *next_letter(void)
{
	struct letter *letter = world.outbox.head;

	if (!letter)
		return NULL;
	world.outbox.head = letter->next;
	if (!letter->next)
		world.outbox.tail = &world.outbox.head;
	return letter;
}

static void take_letter(void)
{
	struct letter *letter = next_letter();

	if (!letter)
		return;
	if (letter->kind == LETTER_EVENT)
		take_event(letter);
	else if (letter->kind == LETTER_REPLY)
		take_reply(letter);
	else if (letter->kind == LETTER_STOPPED)
		world.stopped = true;
	letter_free(letter);
}

/* ---- what goes ----------------------------------------------------------------------------------------------- */

void *message_new(uint16_t opcode, size_t size)
{
	struct hmm_wire_header *header = calloc(1, size);

	if (!header)
		abort();
	hmm_wire_init(header, opcode, size, 0);
	return header;
}

static struct letter *letter_of(struct hmm_wire_header *message)
{
	struct letter *letter = letter_new(LETTER_REQUEST);

	if (!letter)
		abort();
	letter->peer = OWNER_PEER;
	letter->uid = getuid();
	letter->pid = getpid();
	letter->owner = world.owner_id;
	strcpy(letter->name, "sim");
	letter->message = message;
	return letter;
}

void tell(void *message)
{
	if (world.engine)
		engine_submit(world.engine, letter_of(message));
	else
		free(message);
}

static bool is_answered(void *data)
{
	return ((struct request *)data)->answered;
}

/* The library hears its own answers itself. */
static bool answered_or_letters(void *data)
{
	return is_answered(data) || world.outbox.head;
}

static int ask_with(struct letter *letter, struct hmm_wire_header **reply)
{
	int id = actor_current();
	struct request *request = &world.request[id];

	request->serial = letter->message->serial = ++world.serial;
	request->answered = false;
	request->nfds = 0;
	engine_submit(world.engine, letter);
	while (!request->answered) {
		if (id != ACTOR_LIBRARY) {
			block(is_answered, request, INT64_MAX);
			continue;
		}
		block(answered_or_letters, request, INT64_MAX);
		take_letter();
	}
	request->serial = 0;
	if (!request->error && reply)
		*reply = (struct hmm_wire_header *)replies[id];
	return request->error;
}

int ask(void *message, struct hmm_wire_header **reply)
{
	if (!world.open || world.leaving) {
		free(message);
		return -EAGAIN;
	}
	return ask_with(letter_of(message), reply);
}

int ask_from(uint64_t peer, void *message, int fd, struct hmm_wire_header **reply)
{
	struct letter *letter;

	if (!world.engine) {
		free(message);
		if (fd >= 0)
			close(fd);
		return -EAGAIN;
	}
	letter = letter_of(message);
	letter->peer = peer;
	letter->pid = WINDOW_PID;
	if (fd >= 0)
		letter->fds[letter->nfds++] = fd;
	return ask_with(letter, reply);
}

/* ---- coming ---------------------------------------------------------------------------------------------------- */

static void add_fd(struct letter *letter, int fd)
{
	letter->fds[letter->nfds++] = fd;
}

static void add_own_fds(struct letter *letter)
{
	static const enum role roles[] = { ROLE_UFFD, ROLE_MEM, ROLE_PAGEMAP, ROLE_MAPS, ROLE_SMAPS };

	for (unsigned int i = 0; i < 5; i++)
		add_fd(letter, role_fd(roles[i]));
}

static void *map(int fd, size_t size, int protection)
{
	void *at = __real_mmap64(NULL, size, protection, MAP_SHARED | MAP_NORESERVE, fd, 0);

	if (at == MAP_FAILED)
		wrong("no room for the owner's shared memory: %m");
	return at;
}

static void make_device(void)
{
	struct hmm_msg_mirror_register *message;
	const struct hmm_msg_mirror_register_reply *reply;
	struct hmm_wire_header *answer;
	struct device *device;
	int r;

	r = device_new(&world.engine->devices, "sim", HMM_POOL_KIND_MEMFD, NULL, world.device_size, HMM_DEVICE_CAPS_FAULTS, OWNER_PEER,
		       &device);
	if (r)
		wrong("no device: %s", strerror(-r));
	message = message_new(HMM_OP_MIRROR_REGISTER, sizeof(*message));
	message->owner = world.owner_id;
	message->device = device->id;
	message->flags = HMM_MIRROR_FLAGS_CALLBACKS;
	r = ask_with(letter_of(&message->header), &answer);
	if (r)
		wrong("no mirror: %s", strerror(-r));
	reply = (const void *)answer;
	world.mirror_id = reply->mirror;
}

/* Without UFFDIO_MOVE what pins a page is not seen: programs say that nothing does. */
static void declare_unpinned(void)
{
	struct hmm_msg_advise *message = message_new(HMM_OP_ADVISE, sizeof(*message));
	int r;

	message->owner = world.owner_id;
	message->advice = HMM_ADVICE_UNPINNED;
	message->addr = ROOM;
	message->length = ROOM_END - ROOM;
	r = ask_with(letter_of(&message->header), NULL);
	if (r)
		wrong("advice is not taken: %s", strerror(-r));
}

static void start_agent(void)
{
	struct agent *agent = world.agent;

	agent->orders = world.orders;
	agent->regions = world.regions;
	agent->uffd = AGENT_UFFD;
	agent->pagemap = AGENT_PAGEMAP;
	agent->mem = AGENT_MEM;
	agent->eventfd = world.done_fd;
	agent->slots = (char *)SLOTS_ADDR;
	agent->slots_count = SLOTS;
	if (pipe2(agent->pipe, O_CLOEXEC | O_NONBLOCK))
		wrong("out of descriptors: %m");
	for (unsigned int i = 0; i < 2; i++) {
		int fd = agent->pipe[i];

		agent->pipe[i] = keep(fd);
		close(fd);
	}
	world.regions->busy = &agent->busy;
	actor_start(ACTOR_AGENT, agent_body, NULL);
}

/* Nobody fails here: a program that could not be mirrored is no schedule of interest. */
static void open_owner(void)
{
	struct hmm_msg_open *message = message_new(HMM_OP_OPEN, sizeof(*message));
	const struct hmm_msg_open_reply *reply;
	struct request *request = &world.request[ACTOR_LIBRARY];
	struct hmm_wire_header *answer;
	struct letter *letter;
	int r;

	message->slots_addr = SLOTS_ADDR;
	message->slots_count = SLOTS;
	message->agent_tid = 100;
	letter = letter_of(&message->header);
	add_own_fds(letter);
	r = ask_with(letter, &answer);
	if (r)
		wrong("the owner is not mirrored: %s", strerror(-r));
	reply = (const void *)answer;
	world.owner_id = reply->owner;
	world.table_fd = request->fds[0];
	world.ledger_fd = request->fds[1];
	world.orders_fd = request->fds[2];
	world.pulse_fd = request->fds[3];
	world.done_fd = request->fds[4];
	world.table = map(world.table_fd, HMM_TABLE_SIZE, PROT_READ);
	world.ledger = map(world.ledger_fd, HMM_LEDGER_SIZE, PROT_READ);
	world.orders = map(world.orders_fd, HMM_ORDERS_SIZE, PROT_READ | PROT_WRITE);
	world.pulse = map(world.pulse_fd, sizeof(*world.pulse), PROT_READ | PROT_WRITE);
	rescue_prepare(AGENT_UFFD, AGENT_PAGEMAP, world.ledger_fd, world.orders, world.pulse, (void *)SLOTS_ADDR, SLOTS);
	make_device();
	if (world.no_move)
		declare_unpinned();
	start_agent();
	world.open = true;
}

/* ---- coming back --------------------------------------------------------------------------------------------------- */

static int reopen(void)
{
	struct hmm_msg_reopen *message = message_new(HMM_OP_REOPEN, sizeof(*message));
	const int kept[] = { world.table_fd, world.ledger_fd, world.orders_fd, world.pulse_fd, world.done_fd };
	struct letter *letter = letter_of(&message->header);
	struct hmm_wire_header *answer;
	int r;

	message->owner = world.owner_id;
	message->agent_tid = 100;
	message->incarnation = __atomic_load_n(&world.orders->incarnation, __ATOMIC_SEQ_CST);
	message->slots_addr = SLOTS_ADDR;
	message->slots_count = SLOTS;
	message->mirrors = 1;
	add_own_fds(letter);
	for (unsigned int i = 0; i < 5; i++)
		add_fd(letter, dup(kept[i]));
	r = ask_with(letter, &answer);
	if (!r)
		world.owner_id = ((const struct hmm_msg_reopen_reply *)(const void *)answer)->owner;
	return r;
}

static int reopen_mirror(void)
{
	struct hmm_msg_reopen_mirror *message = message_new(HMM_OP_REOPEN_MIRROR, sizeof(*message));
	struct hmm_wire_header *answer;
	int r;

	message->owner = world.owner_id;
	message->mirror = world.mirror_id;
	message->flags = HMM_MIRROR_FLAGS_CALLBACKS;
	strcpy(message->device, "sim");
	r = ask_with(letter_of(&message->header), &answer);
	if (!r)
		world.mirror_id = ((const struct hmm_msg_reopen_mirror_reply *)(const void *)answer)->mirror;
	return r;
}

static int reopen_region(const struct held_region *held)
{
	struct hmm_msg_reopen_region *message = message_new(HMM_OP_REOPEN_REGION, sizeof(*message));
	struct letter *letter = letter_of(&message->header);

	message->owner = world.owner_id;
	message->mirror = held->mirror;
	message->base = held->base;
	add_fd(letter, dup(held->fd));
	return ask_with(letter, NULL);
}

static int reopen_done(void)
{
	struct hmm_msg_reopen_done *message = message_new(HMM_OP_REOPEN_DONE, sizeof(*message) + sizeof(world.prepared));

	message->owner = world.owner_id;
	for (unsigned int i = 0; i < CPUS; i++)
		if (world.prepared[i])
			message->forks[message->count++] = world.prepared[i];
	message->header.size = (uint32_t)(sizeof(*message) + message->count * sizeof(message->forks[0]));
	return ask_with(letter_of(&message->header), NULL);
}

static int say_ready(void)
{
	struct hmm_msg_mirror_ready *message = message_new(HMM_OP_MIRROR_READY, sizeof(*message));

	message->mirror = world.mirror_id;
	return ask_with(letter_of(&message->header), NULL);
}

static bool hmmd_lives(void)
{
	return world.engine;
}

static int hand_back(void)
{
	int r = reopen();

	if (!r)
		r = reopen_mirror();
	for (unsigned int i = 0; !r && i < REGIONS_HELD; i++)
		if (world.held[i].fd >= 0)
			r = reopen_region(&world.held[i]);
	if (!r)
		r = reopen_done();
	/* Its driver was perhaps not told of the last change: it lets go of all, and then says so. */
	if (!r) {
		driver_forgets(0, HMM_VA_END);
		r = say_ready();
	}
	return r;
}

static bool is_dead(void *data)
{
	(void)data;
	return world.pulse->dead;
}

/* No hmmd for the grace time; one that comes later is refused, and one that has begun to take over finds itself replaced. */
static void give_up(void)
{
	bool late = choose(2), begun = late && choose(2);
	int r;

	sleep_ns(world.down_at + GRACE_MS * NS_PER_MS - world.now);
	if (begun) {
		hmmd_start();
		reopen();
	}
	say("no hmmd came back: the rescuer is called");
	world.lost = true;
	kept_forget();
	window_is_abandoned();
	rescue_call();
	if (late && !begun) {
		/* Its first step is to say that it has begun. */
		block(is_dead, NULL, INT64_MAX);
		hmmd_start();
		r = reopen();
		if (r != -ESTALE && world.engine)
			wrong("a late hmmd takes over what is being rescued: %d", r);
	}
	if (!late)
		return;
	sleep_ns(20 * NS_PER_MS);
	world.killed = true;
}

static void come_back(void)
{
	static const int64_t pauses[] = { 0, 100 * NS_PER_US, 50 * NS_PER_MS };
	int r;

	if (world.no_return || rarely(10)) {
		give_up();
		return;
	}
	sleep_ns(pauses[choose(3)]);
	hmmd_start();
	r = hand_back();
	if (!r)
		world.open = true;
	else if (hmmd_lives())
		wrong("the owner is not taken over: %s", strerror(-r));
}

static bool letters_or_death(void *data)
{
	(void)data;
	return world.outbox.head || (!world.engine && !world.leaving && !world.lost);
}

void library_body(void *data)
{
	(void)data;
	open_owner();
	for (;;) {
		block(letters_or_death, NULL, INT64_MAX);
		if (!world.engine && !world.leaving && !world.lost)
			come_back();
		else
			take_letter();
	}
}

/* ---- the agent -------------------------------------------------------------------------------------------------------- */

static bool has_orders(void *data)
{
	(void)data;
	return __atomic_load_n(&world.orders->produced, __ATOMIC_ACQUIRE) != world.orders->consumed;
}

void agent_body(void *data)
{
	(void)data;
	for (;;) {
		block(has_orders, NULL, INT64_MAX);
		if (agent_is_retired(world.agent))
			return;
		say("the agent takes an order: kind %u, %s", world.orders->ring[world.orders->consumed % HMM_ORDERS_RING].kind,
		    addr_name(world.orders->ring[world.orders->consumed % HMM_ORDERS_RING].addr));
		hmmc_agent_step(world.agent);
		step();
	}
}

void *shadow_page(unsigned int mirror, uint64_t addr)
{
	struct region *region = hmmc_region_find(world.regions, mirror, addr);

	return region ? region_at(region, addr) : NULL;
}

void library_reset(void)
{
	hmmc_region_drop(world.regions, HMM_NO_MIRROR);
	if (world.table)
		munmap(world.table, HMM_TABLE_SIZE);
	if (world.ledger)
		munmap((void *)world.ledger, HMM_LEDGER_SIZE);
	if (world.orders)
		munmap(world.orders, HMM_ORDERS_SIZE);
	if (world.pulse)
		munmap(world.pulse, sizeof(*world.pulse));
	close_range(FDS_KEPT, FDS_KEPT + 200, 0);
}

/* ---- who asks for migrations -------------------------------------------------------------------------------------------- */

static void migrate(void)
{
	struct hmm_msg_migrate *message = message_new(HMM_OP_MIGRATE, sizeof(*message));
	unsigned int block = world.huge && choose(4) ? 0 : choose(BLOCKS), first = choose(PAGES_BLOCK), n = 1 + choose(PAGES_BLOCK - first);
	bool out = world.huge ? choose(2) : !choose(3);
	int r;

	message->mirror = world.window_mirror_id && choose(2) ? world.window_mirror_id : world.mirror_id;
	message->target = out ? HMM_TARGET_DEVICE : HMM_TARGET_SYSTEM;
	message->addr = used_addr(block * PAGES_BLOCK + first);
	message->length = n * HMM_PAGE_SIZE;
	if (world.huge && !block && choose(8)) {
		space_merge();
		message->addr = ROOM;
		message->length = HMM_BLOCK_SIZE;
	}
	say("asks: %s to %s, %u pages", addr_name(message->addr), out ? "the device" : "the system", (unsigned int)(message->length >> HMM_PAGE_SHIFT));
	r = ask(message, NULL);
	say("is answered: %d", r);
}

void mover_body(void *data)
{
	(void)data;
	while (choose(world.huge ? 16 : 8))
		migrate();
}
