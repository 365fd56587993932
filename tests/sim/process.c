// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * process.c - hmmd as a process that can be killed: what it allocates, maps and opens is known and goes with it, and
 * its worker is an actor. The calls that the linker sends here instead of to libc, to the reactor or to the agent's kernel
 * (CMakeLists.txt has the list) are at the end.
 *
 * The first descriptors are hmmd's; those that outlive it are moved above FDS_KEPT.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "daemon/log.h"
#include "sim.h"
#include "uapi.h"

/* The linker's names for what was wanted. */
int __real_close(int fd);
void *__real_malloc(size_t size);
void __real_free(void *memory);
void *__real_mmap64(void *at, size_t length, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t length);
ssize_t __real_pread64(int fd, void *buffer, size_t length, off_t offset);
ssize_t __real_write(int fd, const void *buffer, size_t length);
int __real_madvise(void *at, size_t length, int advice);
void __real_mailbox_post(struct mailbox *box, struct letter *letter);
long __real_syscall(long number, ...);

/* ---- memory ---------------------------------------------------------------------------------------------- */

struct chunk {
	struct chunk *next, **back;
	size_t size;
	size_t pad;
};

static struct chunk *chunks;

struct mapping {
	void *at;
	size_t length;
};

#define MAPPINGS_MAX 64
static struct mapping mappings[MAPPINGS_MAX];
static int first_fd;

bool in_hmmd(void)
{
	return actor_current() == ACTOR_HMMD;
}

void *__wrap_malloc(size_t size)
{
	struct chunk *chunk = __real_malloc(sizeof(*chunk) + size);

	if (!chunk)
		return NULL;
	chunk->size = size;
	chunk->next = chunks;
	chunk->back = &chunks;
	if (chunks)
		chunks->back = &chunk->next;
	chunks = chunk;
	return chunk + 1;
}

void __wrap_free(void *memory)
{
	struct chunk *chunk;

	if (!memory)
		return;
	chunk = (struct chunk *)memory - 1;
	*chunk->back = chunk->next;
	if (chunk->next)
		chunk->next->back = chunk->back;
	__real_free(chunk);
}

void *__wrap_calloc(size_t n, size_t size)
{
	void *memory = __wrap_malloc(n * size);

	if (memory)
		memset(memory, 0, n * size);
	return memory;
}

void *__wrap_realloc(void *memory, size_t size)
{
	void *larger = __wrap_malloc(size);

	if (larger && memory) {
		size_t old = ((struct chunk *)memory - 1)->size;

		memcpy(larger, memory, old < size ? old : size);
		__wrap_free(memory);
	}
	return larger;
}

void *__wrap_mmap64(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
	void *map = __real_mmap64(at, length, protection, flags, fd, offset);

	if (map == MAP_FAILED || !in_hmmd())
		return map;
	for (unsigned int i = 0; i < MAPPINGS_MAX; i++)
		if (!mappings[i].at) {
			mappings[i] = (struct mapping){ map, length };
			return map;
		}
	abort();
}

int __wrap_munmap(void *at, size_t length)
{
	for (unsigned int i = 0; i < MAPPINGS_MAX; i++)
		if (mappings[i].at == at)
			mappings[i].at = NULL;
	return __real_munmap(at, length);
}

int __wrap_close(int fd)
{
	role_forget(fd);
	if (fd != AGENT_UFFD)
		return __real_close(fd);
	/* The library's own: the last one, unless an hmmd that came too late has another. */
	if (!world.uffd_fds)
		space_release();
	return 0;
}

/* ---- its life -------------------------------------------------------------------------------------------------- */

static struct {
	struct source *source;
	bool ready;
} sources[8];
#define SOURCES (sizeof(sources) / sizeof(sources[0]))

static struct kernel_facts facts;

void process_init(void)
{
	kernel = &kernel_simulated;
	first_fd = dup(STDERR_FILENO);
	__real_close(first_fd);
	if (first_fd >= FDS_KEPT)
		abort();
}

void hmmd_start(void)
{
	unsigned int taken = 0;
	const struct engine_options options = {
		.workers = 1, .pool_kind = HMM_POOL_KIND_MEMFD, .pool_size = 64UL << 20,
		.ack_timeout_ms = ACK_TIMEOUT_MS, .grace_ms = GRACE_MS, .no_io_uring = true, .no_move = world.no_move,
		.keep = kept_put, .drop = kept_drop, .take_kept = kept_take, .take_kept_data = &taken,
	};

	facts = (struct kernel_facts){
		.uffd_features = UFFD_FEATURE_MOVE | UFFD_FEATURE_POISON | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
				 UFFD_FEATURE_WP_UNPOPULATED,
		.event_fork = !world.forks_unseen, .pagemap_scan = true, .unregister_checks = true, .nodes = 1,
	};
	memset(sources, 0, sizeof(sources));
	if (mailbox_init(&world.outbox))
		abort();
	world.outbox_open = true;
	world.generation++;
	if (engine_new(&options, &world.outbox, &world.engine))
		wrong("hmmd does not start");
	world.engine->incarnation = world.generation;
	say("hmmd starts, the %lu.", world.generation);
}

bool hmmd_dies(void)
{
	if (!in_hmmd() || world.kills >= world.kills_max || !rarely(world.no_return ? 25 : 80))
		return false;
	world.kills++;
	world.killed = true;
	say("hmmd is killed");
	return true;
}

static void give_up_requests(void)
{
	for (unsigned int i = 0; i < ACTOR_MAX; i++)
		if (world.request[i].serial && !world.request[i].answered) {
			world.request[i].answered = true;
			world.request[i].error = -EAGAIN;
		}
}

void hmmd_kill(void)
{
	actor_forget(ACTOR_HMMD);
	while (chunks)
		__wrap_free(chunks + 1);
	for (unsigned int i = 0; i < MAPPINGS_MAX; i++)
		if (mappings[i].at) {
			__real_munmap(mappings[i].at, mappings[i].length);
			mappings[i].at = NULL;
		}
	for (int fd = first_fd; fd < FDS_KEPT; fd++)
		role_forget(fd);
	__real_syscall(SYS_close_range, (long)first_fd, (long)FDS_KEPT - 1, 0L);
	memset(sources, 0, sizeof(sources));
	world.engine = NULL;
	world.down_at = world.now;
	if (world.window_ready)
		world.window_down_at = world.now;
	world.outbox_open = world.open = world.window_ready = world.idle = world.killed = false;
	world.outbox.head = NULL;
	device_lets_go();
	child_may_lose();
	world.told_end = world.told_heard;
	give_up_requests();
}

void hmmd_end(void)
{
	static const char *const names[] = { "sim", "win" };
	int fd;

	for (unsigned int i = 0; i < 2; i++) {
		struct device *device = device_by_name(&world.engine->devices, names[i]);

		if (device && device->used)
			wrong("%lu bytes are charged for, and nobody has them", device->used);
	}
	device_let_go(&world.engine->devices, OWNER_PEER, 0);
	device_let_go(&world.engine->devices, WINDOW_PEER, 0);
	engine_free(world.engine);
	world.engine = NULL;
	mailbox_deinit(&world.outbox);
	world.outbox_open = false;
	if (chunks)
		wrong("hmmd has ended, and %zu bytes of its memory are in use", chunks->size);
	for (unsigned int i = 0; i < MAPPINGS_MAX; i++)
		if (mappings[i].at)
			wrong("hmmd has ended, and %zu bytes are mapped", mappings[i].length);
	fd = dup(STDERR_FILENO);
	__real_close(fd);
	if (fd != first_fd)
		wrong("hmmd has ended, and descriptor %d is open", first_fd);
}

struct owner *hmmd_owner(void)
{
	return world.engine && world.engine->workers ? TAILQ_FIRST(&world.engine->workers[0].owners) : NULL;
}

/* ---- what it waits for ------------------------------------------------------------------------------------------- */

static bool anything_ready(void *data)
{
	(void)data;
	for (unsigned int i = 0; i < SOURCES; i++)
		if (sources[i].source && sources[i].ready)
			return true;
	return false;
}

static void signal_fd(int fd)
{
	for (unsigned int i = 0; i < SOURCES; i++)
		if (sources[i].source && sources[i].source->fd == fd)
			sources[i].ready = true;
}

static void signal_role(enum role role)
{
	for (unsigned int i = 0; i < SOURCES; i++)
		if (sources[i].source && fd_role(sources[i].source->fd) == role)
			sources[i].ready = true;
}

void hmmd_signal_uffd(void)
{
	signal_role(ROLE_UFFD);
}

void hmmd_signal_window(void)
{
	signal_role(ROLE_WINDOW);
}

void hmmd_signal_done(void)
{
	struct owner *owner = hmmd_owner();

	if (owner && owner->done.fd >= 0)
		signal_fd(owner->done.fd);
}

struct reactor {
	int nothing;
};

int __wrap_reactor_new(bool no_io_uring, struct reactor **result)
{
	static struct reactor reactor;

	(void)no_io_uring;
	*result = &reactor;
	return 0;
}

void __wrap_reactor_start(struct reactor *reactor)
{
	(void)reactor;
}

struct reactor *__wrap_reactor_free(struct reactor *reactor)
{
	(void)reactor;
	return NULL;
}

int __wrap_reactor_add(struct reactor *reactor, struct source *source, int fd, void (*ready)(struct source *source))
{
	(void)reactor;
	source->fd = fd;
	source->ready = ready;
	for (unsigned int i = 0; i < SOURCES; i++)
		if (!sources[i].source) {
			sources[i].source = source;
			/* What is there already is told, as epoll does. */
			sources[i].ready = fd_role(fd) == ROLE_UFFD   ? uffd_has_messages() :
					   fd_role(fd) == ROLE_WINDOW ? window_has_messages() :
									true;
			return 0;
		}
	abort();
}

void __wrap_reactor_remove(struct reactor *reactor, struct source *source)
{
	(void)reactor;
	for (unsigned int i = 0; i < SOURCES; i++)
		if (sources[i].source == source)
			sources[i].source = NULL;
}

int __wrap_reactor_wait(struct reactor *reactor, int64_t timeout)
{
	int64_t deadline = timeout < 0 || timeout > INT64_MAX - world.now ? INT64_MAX : world.now + timeout;
	unsigned int first;
	int n = 0;

	(void)reactor;
	step();
	if (!anything_ready(NULL) && deadline > world.now) {
		world.idle = true;
		oracle_idle();
		block(anything_ready, NULL, deadline);
		world.idle = false;
	}
	first = choose(2) ? SOURCES - 1 : 0;
	for (unsigned int i = 0; i < SOURCES; i++) {
		unsigned int at = first ? SOURCES - 1 - i : i;

		if (!sources[at].source || !sources[at].ready)
			continue;
		sources[at].ready = false;
		sources[at].source->ready(sources[at].source);
		n++;
	}
	return n;
}

/* ---- what it asks of the system -------------------------------------------------------------------------------------- */

/* What hmmd keeps for as long as it lives must not outlive it here: the next one has this process, too. */
void *__wrap_vault_alloc(size_t size)
{
	return malloc(size);
}

bool __wrap_vault_has(const void *memory)
{
	(void)memory;
	return false;
}

void __wrap_vault_free(void *memory)
{
	free(memory);
}

void __wrap_mailbox_post(struct mailbox *box, struct letter *letter)
{
	__real_mailbox_post(box, letter);
	if (box != &world.outbox)
		signal_fd(box->eventfd);
	else if (letter->kind == LETTER_EVENT && letter->message->opcode == HMM_OP_INVALIDATE)
		driver_is_sent((const void *)letter->message);
	if (in_hmmd())
		step();
}

static void *(*worker_main)(void *);

static void worker_body(void *data)
{
	worker_main(data);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *), void *data)
{
	(void)attributes;
	*thread = (pthread_t)0;
	worker_main = body;
	actor_start(ACTOR_HMMD, worker_body, data);
	return 0;
}

int __wrap_pthread_join(pthread_t thread, void **result)
{
	(void)thread, (void)result;
	actor_finish(ACTOR_HMMD);
	return 0;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
	(void)clock;
	now->tv_sec = world.now / 1000000000;
	now->tv_nsec = world.now % 1000000000;
	return 0;
}

ssize_t __wrap_getrandom(void *buffer, size_t length, unsigned int flags)
{
	(void)flags;
	memset(buffer, 0x5a, length);
	return (ssize_t)length;
}

void __wrap_kernel_probe(struct kernel_facts *result)
{
	*result = facts;
}

int __wrap_kernel_uffd_api(int uffd, uint64_t want, uint64_t *have)
{
	bool *done = fd_role(uffd) == ROLE_WINDOW ? &world.window_handshaken : &world.handshaken;

	(void)want;
	if ((fd_role(uffd) != ROLE_UFFD && fd_role(uffd) != ROLE_WINDOW) || *done)
		return -EINVAL;
	*done = true;
	if (have)
		*have = facts.uffd_features;
	return 0;
}

void __wrap_vma_refresh_threads(struct owner *owner, int64_t age_ns)
{
	(void)owner, (void)age_ns;
}

ssize_t __wrap_readlink(const char *path, char *target, size_t size)
{
	static const char *const names[] = {
		[ROLE_NONE] = "/dev/null", [ROLE_UFFD] = "anon_inode:[userfaultfd]", [ROLE_MEM] = "/proc/100/mem",
		[ROLE_PAGEMAP] = "/proc/100/pagemap", [ROLE_MAPS] = "/proc/100/maps", [ROLE_SMAPS] = "/proc/100/smaps",
		[ROLE_WINDOW] = "anon_inode:[userfaultfd]", [ROLE_CHILD] = "anon_inode:[userfaultfd]",
	};
	const char *name = names[fd_role(atoi(path + strlen("/proc/self/fd/")))];
	size_t length = strlen(name);

	if (length > size)
		length = size;
	memcpy(target, name, length);
	return (ssize_t)length;
}

int __wrap_fstatfs64(int fd, struct statfs *st)
{
	*st = (struct statfs){ .f_type = fd_role(fd) >= ROLE_MEM && fd_role(fd) <= ROLE_SMAPS ? PROC_SUPER_MAGIC : 0 };
	return 0;
}

void __wrap___assert_fail(const char *what, const char *file, unsigned int line, const char *function)
{
	const char *name = strrchr(file, '/');

	wrong("assertion %s in %s(), %s:%u", what, function, name ? name + 1 : file, line);
}

static void log_line(const char *level, const char *format, va_list args)
{
	char text[LOG_LINE_MAX];

	vsnprintf(text, sizeof(text), format, args);
	say("hmmd %s: %s", level, text);
}

#define LOG(level)						\
void __wrap_log_##level(const char *format, ...)		\
{								\
	va_list args;						\
								\
	va_start(args, format);					\
	log_line(#level, format, args);				\
	va_end(args);						\
}
LOG(error)
LOG(warn)
LOG(info)
LOG(debug)

void __wrap_hmmc_log(int level, const char *format, ...)
{
	va_list args;

	(void)level;
	va_start(args, format);
	log_line("(library)", format, args);
	va_end(args);
}

/* ---- what the agent asks of it ----------------------------------------------------------------------------------------- */

int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
	int r;

	if (fd == AGENT_PAGEMAP) {
		struct pm_scan_arg *scan = argument;
		struct page_region *found = (void *)(uintptr_t)scan->vec;

		/* PAGEMAP_SCAN: is this block one huge page? */
		step();
		if (!world.huge || !page_at(scan->start) || !block_is_huge(scan->start))
			return 0;
		*found = (struct page_region){ .start = scan->start, .end = scan->end, .categories = PAGE_IS_HUGE };
		return 1;
	}
	if (fd_role(fd) == ROLE_CHILD)
		return rescuer_ioctl(fd, request, argument);
	if (fd != AGENT_UFFD)
		wrong("an ioctl %#lx of somebody who is not simulated", request);
	switch (request) {
	case UFFDIO_ZEROPAGE:
	case UFFDIO_POISON:
	case UFFDIO_WAKE:
		return rescuer_ioctl(fd, request, argument);
	case UFFDIO_MOVE:
		return agent_move(argument);
	case UFFDIO_COPY:
		return agent_copy(argument);
	case UFFDIO_WRITEPROTECT:
		return agent_protect(argument);
	case UFFDIO_REGISTER: {
		struct uffdio_register *arg = argument;

		step();
		r = space_register(arg->range.start, arg->range.len, arg->mode);
		break;
	}
	case UFFDIO_UNREGISTER: {
		struct uffdio_range *arg = argument;

		step();
		r = space_unregister(arg->start, arg->len);
		break;
	}
	default:
		wrong("the agent's ioctl %#lx is not simulated", request);
	}
	errno = -r;
	return r ? -1 : 0;
}

ssize_t __wrap_pread64(int fd, void *buffer, size_t length, off_t offset)
{
	uint64_t *entries = buffer;

	if (fd == AGENT_MEM)
		return agent_read(buffer, length, (uint64_t)offset);
	if (fd != AGENT_PAGEMAP)
		return __real_pread64(fd, buffer, length, offset);
	step();
	for (size_t i = 0; i < length / sizeof(*entries); i++)
		entries[i] = space_pagemap(((uint64_t)offset / sizeof(*entries) + i) << HMM_PAGE_SHIFT);
	return (ssize_t)length;
}

ssize_t __wrap_write(int fd, const void *buffer, size_t length)
{
	ssize_t n = __real_write(fd, buffer, length);

	if (fd == world.done_fd && actor_current() == ACTOR_AGENT)
		hmmd_signal_done();
	return n;
}

ssize_t __real_splice(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t length, unsigned int flags);
ssize_t __wrap_splice(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t length, unsigned int flags)
{
	step();
	return __real_splice(from, from_offset, to, to_offset, length, flags);
}

ssize_t __real_pwrite64(int fd, const void *buffer, size_t length, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *buffer, size_t length, off_t offset)
{
	/* hmmd's own stores into a shadow, too. */
	if (actor_current() == ACTOR_AGENT || in_hmmd())
		step();
	return __real_pwrite64(fd, buffer, length, offset);
}

int __wrap_madvise(void *at, size_t length, int advice)
{
	uint64_t addr = (uintptr_t)at;

	if (!page_at(addr))
		return __real_madvise(at, length, advice);
	if (advice == MADV_POPULATE_WRITE && addr >= SLOTS_ADDR) {
		step();
		slot_populate(addr);
	}
	/* A hint that a page is cold parts the huge one. */
	if (advice == MADV_COLD)
		page_at(addr)->huge = false;
	if (advice != MADV_DONTNEED)
		return 0;
	if (addr < SLOTS_ADDR) {
		agent_discard(addr, length);
		return 0;
	}
	step();
	slot_discard(addr, length);
	return 0;
}

void *__real_hmmc_map(void *at, size_t size, int protection, int flags, int fd, uint64_t offset);
void *__wrap_hmmc_map(void *at, size_t size, int protection, int flags, int fd, uint64_t offset)
{
	if (!page_at((uintptr_t)at))
		return __real_hmmc_map(at, size, protection, flags, fd, offset);
	step();
	slot_discard((uintptr_t)at, size);
	return at;
}

ssize_t __real_read(int fd, void *buffer, size_t length);
ssize_t __wrap_read(int fd, void *buffer, size_t length)
{
	if (fd == AGENT_UFFD)
		return rescuer_read(buffer, length);
	if (fd_role(fd) != ROLE_CHILD)
		return __real_read(fd, buffer, length);
	step();
	return child_read(buffer);
}

/* Of smaps: nothing is wiped on fork. */
ssize_t __wrap___getdelim(char **line, size_t *size, int end, FILE *file)
{
	(void)line, (void)size, (void)end, (void)file;
	return -1;
}

ssize_t __wrap_getline(char **line, size_t *size, FILE *file)
{
	return __wrap___getdelim(line, size, '\n', file);
}

int __wrap_usleep(useconds_t us)
{
	sleep_ns(us * NS_PER_US);
	return 0;
}

int __wrap_sched_yield(void)
{
	step();
	return 0;
}

int __wrap_nanosleep(const struct timespec *time, struct timespec *left)
{
	(void)left;
	sleep_ns(time->tv_sec * 1000000000LL + time->tv_nsec);
	return 0;
}

struct futex {
	const uint32_t *word;
	uint32_t value;
};

static bool futex_differs(void *data)
{
	const struct futex *futex = data;

	return __atomic_load_n(futex->word, __ATOMIC_RELAXED) != futex->value;
}

static long futex(const uint32_t *word, int operation, uint32_t value, const struct timespec *timeout, const uint32_t *second)
{
	struct futex wait = { word, value };

	switch (operation & FUTEX_CMD_MASK) {
	case FUTEX_WAIT:
		if (futex_differs(&wait)) {
			errno = EAGAIN;
			return -1;
		}
		if (block(futex_differs, &wait, timeout ? world.now + timeout->tv_sec * 1000000000LL + timeout->tv_nsec : INT64_MAX))
			return 0;
		errno = ETIMEDOUT;
		return -1;
	case FUTEX_WAKE:
		return 0;
	case FUTEX_WAKE_OP: {
		struct page *page = page_at((uintptr_t)second);

		step();
		/* A write of what is there: the page is its owner's alone then. */
		if (page && page->present && !page->protected) {
			page->shared = page->huge = false;
			return 0;
		}
		errno = EFAULT;
		return -1;
	}
	default:
		wrong("a futex call that is not simulated");
	}
}

long __wrap_syscall(long number, ...)
{
	long a[6];
	va_list args;

	va_start(args, number);
	for (unsigned int i = 0; i < 6; i++)
		a[i] = va_arg(args, long);
	va_end(args);
	if (number == SYS_futex)
		return futex((const uint32_t *)a[0], (int)a[1], (uint32_t)a[2], (const struct timespec *)a[3], (const uint32_t *)a[4]);
	return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
