/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * owner.c - this process as an owner: opening it at hmmd, and opening it again.
 *
 * The happy path: the clerk opens a userfaultfd and this process's files in
 * /proc, maps the staging slots and starts the agent; `open` hands all that to
 * hmmd, which does the userfaultfd's handshake (it has the privilege for fork
 * events) and sends table, ledger, orders and pulse back. From then on both
 * sides hold every descriptor, so neither's death loses a page.
 *
 * A restarted hmmd is given everything with `reopen`, each mirror and each
 * shadow, and settles what was in transit. After a hmmd that ended in good order
 * nothing is on the device and the owner is opened anew: a userfaultfd can be
 * handed over only once. That lets go of the old one, and so of all that is away: it is
 * looked up in the ledger, whatever was said.
 *
 * Fails where userfaultfd is not permitted, or /proc is not there.
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "arena.h"
#include "fork.h"
#include "mapping.h"
#include "owner.h"
#include "space.h"

#define SLOTS_DEFAULT 8

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* The strongest userfaultfd there is: hmmd's device, the system call, faults of user mode only. */
int hmmc_owner_userfaultfd(int device, bool *user_mode)
{
	int fd;

	*user_mode = false;
	if (device >= 0) {
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		if (fd >= 0)
			return fd;
	}
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 && errno == EPERM) {
		*user_mode = true;
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	}
	return fd < 0 ? -errno : fd;
}

static bool is_filtered(void)
{
	return prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 2;
}

static int open_userfaultfd(int device)
{
	bool user_mode;

	return hmmc_owner_userfaultfd(device, &user_mode);
}

static int open_file(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/*
 * A mapping of its own for each slot's sake: aligned, huge where possible, in no child and
 * no core.
 */
static int map_slots(struct owner *owner)
{
	size_t size = (size_t)owner->slots_count * HMM_BLOCK_SIZE;
	char *room, *slots;

	room = hmmc_map(NULL, size + HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!room)
		return -errno;
	slots = (char *)(((uintptr_t)room + HMM_BLOCK_SIZE - 1) & ~(HMM_BLOCK_SIZE - 1));
	if (slots > room)
		munmap(room, (size_t)(slots - room));
	munmap(slots + size, (size_t)(room + HMM_BLOCK_SIZE - slots));
	madvise(slots, size, MADV_DONTFORK);
	madvise(slots, size, MADV_DONTDUMP);
	madvise(slots, size, MADV_HUGEPAGE);
	owner->slots = slots;
	return 0;
}

static int prepare(struct owner *owner, char *text, size_t size)
{
	struct agent *agent = &owner->agent;
	int error;

	owner->uffd = open_userfaultfd(owner->hmm->connection->userfaultfd_device);
	if (owner->uffd < 0) {
		snprintf(
			text, size,
			"no userfaultfd: %s%s; hmmd can hand one out if it may open /dev/userfaultfd, "
			"or %s",
			strerror(-owner->uffd), is_filtered() ? " by a seccomp filter, a container's, say" : "",
			is_filtered() ? "have that filter allow userfaultfd()" : "set vm.unprivileged_userfaultfd=1");
		return owner->uffd;
	}
	owner->mem = open_file("/proc/self/mem", O_RDWR);
	owner->pagemap = open_file("/proc/self/pagemap", O_RDONLY);
	owner->maps = open_file("/proc/self/maps", O_RDONLY);
	owner->smaps = open_file("/proc/self/smaps", O_RDONLY);
	error = owner->mem < 0 ? owner->mem : owner->pagemap < 0 ? owner->pagemap :
		owner->maps < 0 ? owner->maps : owner->smaps < 0 ? owner->smaps : 0;
	if (!error && pipe2(owner->pipe, O_CLOEXEC)) {
		error = -errno;
		snprintf(text, size, "no pipe for the agent: %s", strerror(-error));
		return error;
	}
	if (error) {
		snprintf(text, size, "cannot open this process's files in /proc: %s%s", strerror(-error),
			 error == -ENOENT ? "; is /proc mounted here?" :
			 !prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) ?
					    "; it keeps others from looking at it (PR_SET_DUMPABLE, or set-user-ID)" : "");
		return error;
	}
	error = map_slots(owner);
	if (error) {
		snprintf(text, size, "no room for %u staging slots: %s", owner->slots_count,
			 strerror(-error));
		return error;
	}
	memset(agent, 0, sizeof(*agent));
	agent->uffd = owner->uffd;
	agent->pagemap = owner->pagemap;
	agent->mem = owner->mem;
	agent->pipe[0] = owner->pipe[0];
	agent->pipe[1] = owner->pipe[1];
	/* Half a block at a time, where this user may. */
	fcntl(agent->pipe[0], F_SETPIPE_SZ, HMM_BLOCK_SIZE / 2);
	agent->slots = owner->slots;
	agent->slots_count = owner->slots_count;
	agent->policy = &owner->policy;
	agent->regions = &owner->regions;
	owner->regions.busy = &agent->busy;
	error = hmmc_agent_start(agent);
	if (!error)
		error = hmmc_rescuer_start(&owner->rescuer, owner);
	if (error)
		snprintf(text, size, "cannot start a thread: %s", strerror(-error));
	return error;
}

static void fill_open(struct owner *owner, struct hmm_msg_open *message, int *fds)
{
	message->flags = owner->flags;
	message->slots_addr = (uintptr_t)owner->slots;
	message->slots_count = owner->slots_count;
	message->agent_tid = owner->agent.tid;
	/* hmmd knows the first 64 nodes, and none of a mode's flags: the nodes are those that are meant. */
	message->policy = (uint32_t)owner->policy.mode & 0xff;
	message->policy_nodes = owner->policy.nodes[0];
	fds[0] = owner->uffd;
	fds[1] = owner->mem;
	fds[2] = owner->pagemap;
	fds[3] = owner->maps;
	fds[4] = owner->smaps;
}

/* @at: where it was before, so that nobody who looks at it ever sees nothing there. */
static void *map_memfd(int fd, size_t size, int protection, const void *at)
{
	void *map = hmmc_map((void *)(uintptr_t)at, size, protection, MAP_SHARED, fd, 0);

	if (!map)
		return NULL;
	madvise(map, size, MADV_DONTDUMP);
	if (protection & PROT_WRITE)
		madvise(map, size, MADV_DONTFORK);
	return map;
}

static int attach(struct owner *owner, struct hmm_frame *frame)
{
	const struct hmm_msg_open_reply *reply = (const void *)frame->data;
	const uint64_t *table;
	struct hmm_orders *orders;
	struct hmm_pulse *pulse;

	owner->table_fd = hmm_frame_take_fd(frame, 0);
	owner->ledger_fd = hmm_frame_take_fd(frame, 1);
	owner->orders_fd = hmm_frame_take_fd(frame, 2);
	owner->pulse_fd = hmm_frame_take_fd(frame, 3);
	owner->eventfd = hmm_frame_take_fd(frame, 4);
	/* Numbers begin anew: before they can be seen. */
	__atomic_add_fetch(&owner->hmm->tables, 1, __ATOMIC_SEQ_CST);
	table = map_memfd(owner->table_fd, HMM_TABLE_SIZE, PROT_READ, owner->table);
	orders =
		map_memfd(owner->orders_fd, HMM_ORDERS_SIZE, PROT_READ | PROT_WRITE, owner->orders);
	pulse = map_memfd(owner->pulse_fd, sizeof(*pulse), PROT_READ | PROT_WRITE, owner->pulse);
	if (!table || !orders || !pulse)
		return -ENOMEM;
	owner->table = table;
	owner->orders = orders;
	owner->pulse = pulse;
	if (orders->magic != HMM_ORDERS_MAGIC || orders->version != HMM_ORDERS_VERSION)
		return -EPROTO;
	owner->id = reply->owner;
	owner->hmm->id = reply->owner;
	__atomic_store_n(&owner->hmm->features, reply->features, __ATOMIC_RELAXED);
	/* Where they were, if they were: others look there by now. */
	if (owner->hmm->table != table)
		owner->hmm->table = table;
	if (owner->hmm->pulse != pulse)
		owner->hmm->pulse = pulse;
	owner->agent.orders = orders;
	owner->agent.eventfd = owner->eventfd;
	hmmc_agent_attach(&owner->agent);
	return 0;
}

/* Threads and descriptors; what is mapped stays for attach() to replace. */
static int detach(void *argument)
{
	struct owner *owner = argument;

	hmmc_agent_stop(&owner->agent);
	hmmc_rescuer_stop(&owner->rescuer);
	/*
	 * The last reference of the userfaultfd, and every page is home: registrations go with it.
	 */
	close_fd(&owner->uffd);
	close_fd(&owner->mem);
	close_fd(&owner->pagemap);
	close_fd(&owner->maps);
	close_fd(&owner->smaps);
	close_fd(&owner->table_fd);
	close_fd(&owner->ledger_fd);
	close_fd(&owner->orders_fd);
	close_fd(&owner->pulse_fd);
	close_fd(&owner->eventfd);
	close_fd(&owner->pipe[0]);
	close_fd(&owner->pipe[1]);
	hmmc_region_drop(&owner->regions, HMM_NO_MIRROR);
	if (owner->slots)
		munmap(owner->slots, (size_t)owner->slots_count * HMM_BLOCK_SIZE);
	owner->slots = NULL;
	return 0;
}

static int release(void *argument)
{
	struct owner *owner = argument;

	close_fd(&owner->former_fd);
	return detach(owner);
}

/* ---- the first time --------------------------------------------------------- */

static int prepare_request(struct request *request)
{
	struct owner *owner = request->data;
	int error = 0;

	if (!owner->slots) {
		error = prepare(owner, request->text, sizeof(request->text));
	} else {
		/* The hmmd that had the first one is dead, and may have shaken hands with it. */
		close_fd(&owner->uffd);
		owner->uffd = open_userfaultfd(request->connection->userfaultfd_device);
		owner->agent.uffd = owner->uffd;
		error = owner->uffd < 0 ? owner->uffd : 0;
	}
	if (!error)
		fill_open(owner, (struct hmm_msg_open *)request->message, request->fds);
	return error;
}

static int finish_open(struct request *request, struct hmm_frame *frame)
{
	int error = attach(request->data, frame);

	if (error == -EPROTO)
		snprintf(request->text, sizeof(request->text),
			 "hmmd shares memory of another layout: bring libhmmclient and hmmd to the same release");
	else if (error)
		snprintf(request->text, sizeof(request->text), "cannot map what hmmd shares: %s",
			 strerror(-error));
	return error;
}

int hmmc_owner_new(struct hmm *hmm, uint64_t flags, uint32_t slots, struct owner **result)
{
	struct owner *owner = hmmc_arena_alloc(sizeof(*owner));
	struct request *request =
		hmmc_request_new(hmm->connection, HMM_OP_OPEN, sizeof(struct hmm_msg_open));
	int error;

	if (!owner || !request) {
		hmmc_arena_free(owner, sizeof(*owner));
		hmmc_request_free(request);
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	}
	owner->hmm = hmm;
	owner->flags = flags;
	owner->slots_count = slots ? slots : SLOTS_DEFAULT;
	hmmc_policy_of_thread(&owner->policy);
	owner->uffd = owner->mem = owner->pagemap = owner->maps = owner->smaps = -1;
	owner->pipe[0] = owner->pipe[1] = owner->former_fd = -1;
	owner->table_fd = owner->ledger_fd = owner->orders_fd = owner->pulse_fd = owner->eventfd =
		-1;
	/* Region events may come before the reply does. */
	hmm->owner = owner;
	request->data = owner;
	request->prepare = prepare_request;
	request->finish = finish_open;
	request->nfds = 5;
	request->borrowed = true;
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	if (error) {
		hmm->owner = NULL;
		hmmc_owner_free(owner);
		return error;
	}
	*result = owner;
	return 0;
}

void hmmc_owner_free(struct owner *owner)
{
	if (!owner)
		return;
	hmmc_clerk_call(release, owner);
	if (owner->table)
		munmap((void *)(uintptr_t)owner->table, HMM_TABLE_SIZE);
	if (owner->orders)
		munmap(owner->orders, HMM_ORDERS_SIZE);
	if (owner->pulse)
		munmap(owner->pulse, sizeof(*owner->pulse));
	hmmc_arena_free(owner, sizeof(*owner));
}

/* ---- again -------------------------------------------------------------------- */

static int reopen_region(struct owner *owner, const struct region *region)
{
	struct hmm_msg_reopen_region message;

	HMM_MSG_INIT(message, HMM_OP_REOPEN_REGION, 0);
	message.owner = owner->id;
	message.mirror = owner->id << 8 | region->mirror;
	message.base = region->base;
	return hmmc_connection_exchange(owner->hmm->connection, &message, &region->fd, 1);
}

static int reopen_regions(struct owner *owner)
{
	int error = 0;

	for (unsigned int i = 0; !error && i < REGIONS_MAX; i++) {
		struct region *region = owner->regions.table[i];

		if (region && !region->gone)
			error = reopen_region(owner, region);
	}
	return error;
}

int hmmc_owner_reopen(struct owner *owner)
{
	const struct hmm_msg_reopen_reply *reply =
		(const void *)owner->hmm->connection->frame->data;
	int fds[10] = { 0 }, error;
	struct hmm_msg_reopen message;
	uint32_t mirrors = 0;

	for (struct hmm_mirror_private *mirror = owner->hmm->mirrors; mirror; mirror = mirror->next)
		mirrors++;
	HMM_MSG_INIT(message, HMM_OP_REOPEN, 0);
	message.owner = owner->id;
	message.agent_tid = owner->agent.tid;
	message.incarnation = __atomic_load_n(&owner->orders->incarnation, __ATOMIC_SEQ_CST);
	message.flags = owner->flags;
	message.slots_addr = (uintptr_t)owner->slots;
	message.slots_count = owner->slots_count;
	message.mirrors = mirrors;
	fds[0] = owner->uffd;
	fds[1] = owner->mem;
	fds[2] = owner->pagemap;
	fds[3] = owner->maps;
	fds[4] = owner->smaps;
	fds[5] = owner->table_fd;
	fds[6] = owner->ledger_fd;
	fds[7] = owner->orders_fd;
	fds[8] = owner->pulse_fd;
	fds[9] = owner->eventfd;
	error = hmmc_connection_exchange(owner->hmm->connection, &message, fds, 10);
	if (error)
		return error;
	owner->id = owner->hmm->id = reply->owner;
	__atomic_store_n(&owner->hmm->features, reply->features, __ATOMIC_RELAXED);
	return 0;
}

/* With the mirrors known again. */
int hmmc_owner_reopen_done(struct owner *owner)
{
	_Alignas(8) char buffer[sizeof(struct hmm_msg_reopen_done) + FORKS_MAX * sizeof(uint32_t)];
	struct hmm_msg_reopen_done *message = (void *)buffer;
	int error = reopen_regions(owner);
	uint32_t forks[FORKS_MAX], n;

	if (error)
		return error;
	n = hmmc_forks(forks);
	hmm_wire_init(message, HMM_OP_REOPEN_DONE, sizeof(*message) + n * sizeof(forks[0]), 0);
	message->owner = owner->id;
	message->count = n;
	memcpy(message->forks, forks, n * sizeof(forks[0]));
	return hmmc_connection_exchange(owner->hmm->connection, message, NULL, 0);
}

bool hmmc_owner_is_held(const struct hmm *hmm, uint64_t incarnation)
{
	const struct hmm_orders *orders = hmm->owner ? hmm->owner->orders : NULL;

	return orders && __atomic_load_n(&orders->incarnation, __ATOMIC_SEQ_CST) == incarnation;
}

/* All that hmmd has noted of a few blocks: that nothing of theirs is anywhere else. */
static bool are_home(const struct hmm_ledger_block *record, size_t count)
{
	for (size_t n = 0; n < count; n++) {
		if (record[n].transit != HMM_TRANSIT_REST)
			return false;
		for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
			if ((record[n].page[i] & HMM_PAGE_STATE_MASK) > HMM_PAGE_REMOTE)
				return false;
	}
	return true;
}

bool hmmc_owner_is_home(const struct owner *owner)
{
	struct hmm_ledger_block record[HMM_PAGE_SIZE / sizeof(struct hmm_ledger_block)];
	const off_t end = (off_t)HMM_JOURNAL_OFFSET;
	uint32_t grafts;
	off_t at = 0, stop;

	/* One that was opened anew and not answered: nobody has been given anything of it. */
	if (owner->ledger_fd < 0)
		return true;
	while ((at = lseek(owner->ledger_fd, at, SEEK_DATA)) >= 0 && at < end) {
		stop = lseek(owner->ledger_fd, at, SEEK_HOLE);
		for (at &= ~(off_t)(HMM_PAGE_SIZE - 1); at < stop && at < end; at += sizeof(record))
			if (pread(owner->ledger_fd, record, sizeof(record), at) != (ssize_t)sizeof(record) ||
			    !are_home(record, sizeof(record) / sizeof(*record)))
				return false;
	}
	return pread(owner->ledger_fd, &grafts, sizeof(grafts),
		     (off_t)(HMM_GRAFTS_OFFSET + offsetof(struct hmm_grafts, end))) == sizeof(grafts) && !grafts;
}

int hmmc_owner_open_anew(struct owner *owner)
{
	struct connection *connection = owner->hmm->connection;
	struct hmm_msg_open message;
	int fds[5], error;

	if (owner->former_fd < 0) {
		owner->former_fd = owner->ledger_fd;
		owner->ledger_fd = -1;
		for (struct hmm_mirror_private *mirror = owner->hmm->mirrors; mirror; mirror = mirror->next)
			mirror->former = mirror->id;
	}
	detach(owner);
	error = prepare(owner, connection->text, sizeof(connection->text));
	if (error)
		return error;
	HMM_MSG_INIT(message, HMM_OP_OPEN, 0);
	fill_open(owner, &message, fds);
	error = hmmc_connection_exchange(connection, &message, fds, 5);
	return error ? error : attach(owner, connection->frame);
}
