/* SPDX-License-Identifier: GPL-2.0-or-later */
/* copyengine.c - see copyengine.h. */
#include "copyengine.h"

#include <hmm/compat.h>

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>

#include "driver.h"
#include "mirror.h"

#define BOARD_FD 101

struct board *board;

/* ---- the owner's side -------------------------------------------------------------- */

void board_make(void)
{
	int fd = memfd_create("board", 0);

	CHECK(fd >= 0);
	CHECK_EQ(ftruncate(fd, sizeof(*board)), 0);
	CHECK_EQ(dup2(fd, BOARD_FD), BOARD_FD);
	close(fd);
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, BOARD_FD, 0);
	CHECK(board != MAP_FAILED);
	atomic_store(&board->room, DEVICE_PAGES);
}

pid_t copyengine_start(const char *name, int *socket)
{
	pid_t pid = test_driver_start(name, socket);
	int key = hmm_export(hmm);
	uint64_t word;

	CHECK(key >= 0);
	test_tell(*socket, (uint64_t)getpid(), key);
	close(key);
	CHECK(test_hear(*socket, &word, NULL));
	return pid;
}

uint64_t copyengine_ask(int socket, enum command command, const void *addr, size_t pages)
{
	uint64_t word;

	board->addr = (unsigned long)addr;
	board->pages = pages;
	test_tell(socket, command, -1);
	CHECK(test_hear(socket, &word, NULL));
	return word;
}

int engine;
pid_t driver;

void engine_begin(const char *name)
{
	board_make();
	test_open(0, DEVICE_MEMORY);
	driver = copyengine_start(name, &engine);
}

void engine_until(const char *what, const _Atomic unsigned int *value, unsigned int expected)
{
	for (int i = 0; i < test_scaled(2000) && atomic_load(value) != expected; i++)
		usleep(5000);
	if (atomic_load(value) != expected)
		FAIL("%s: %u, not %u", what, atomic_load(value), expected);
}

/* Every page of the driver's memory came back, once. */
void engine_unused(void)
{
	engine_until("pages in use", &board->in_use, 0);
	CHECK_EQ(board->bad_free, 0);
}

void engine_end(void)
{
	engine_unused();
	close(engine);
	test_reap(driver, 0);
	test_close();
}

void engine_out(void *memory, size_t pages)
{
	CHECK_EQ(copyengine_ask(engine, COMMAND_OUT, memory, pages), pages);
	for (size_t i = 0; i < pages; i++)
		CHECK(board->results[i] == HMM_MIGRATED || board->results[i] == HMM_ALREADY);
}

/* Pages [first, end) of what test_fill() wrote at @memory. */
void test_part(const char *memory, size_t first, size_t end, uint64_t seed)
{
	for (size_t i = first; i < end; i++)
		for (size_t w = 0; w < 512; w++)
			CHECK_EQ(((const volatile uint64_t *)(const void *)(memory + i * PAGE))[w], test_word(i, w, seed));
}

void engine_rounds(char *memory, size_t pages)
{
	for (uint64_t round = 1; round < 4; round++) {
		test_fill(memory, pages, round);
		engine_out(memory, pages);
		CHECK_EQ(engine_entry(memory), HMM_ENTRY_VALID | HMM_ENTRY_WRITE | HMM_ENTRY_DEVICE);
		test_part(memory, pages / 7, pages / 2, round);
		CHECK_EQ(copyengine_ask(engine, COMMAND_HOME, memory, pages), (long)pages);
		test_check(memory, pages, round);
	}
}

uint64_t engine_entry(const void *page)
{
	return copyengine_ask(engine, COMMAND_ENTRY, page, 1);
}

static __thread sigjmp_buf caught;
static __thread volatile unsigned long caught_at;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	caught_at = (unsigned long)info->si_addr;
	siglongjmp(caught, 1);
}

/* Whether a read of the page is SIGBUS. */
bool test_lost(const char *page)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };

	sigaction(SIGBUS, &action, NULL);
	if (sigsetjmp(caught, 1)) {
		CHECK_EQ(caught_at & ~(PAGE - 1), (unsigned long)page);
		return true;
	}
	(void)*(volatile const char *)page;
	return false;
}

/* ---- the driver's memory -------------------------------------------------------------- */

static uint64_t memory[DEVICE_PAGES][PAGE / 8];
static bool used[DEVICE_PAGES];
static struct hmm_devmem *devmem;
static struct hmm_page *referred;

#define SCRAMBLE 0x5bd1e995c0ffee11ULL

static void scramble(uint64_t *to, const uint64_t *from)
{
	for (size_t i = 0; i < PAGE / 8; i++)
		to[i] = from[i] ^ SCRAMBLE;
}

static struct hmm_page *choose(void)
{
	for (unsigned int i = 0; i < DEVICE_PAGES; i++) {
		if (used[i])
			continue;
		used[i] = true;
		atomic_fetch_add(&board->in_use, 1);
		return &devmem->pages[i];
	}
	return NULL;
}

static void free_page(struct hmm_devmem *me, struct hmm_page *page)
{
	size_t i = (size_t)(page - me->pages);

	if (!used[i])
		atomic_fetch_add(&board->bad_free, 1);
	used[i] = false;
	memset(memory[i], 0xee, PAGE);
	atomic_fetch_sub(&board->in_use, 1);
}

static void alloc_and_copy(struct hmm_devmem *me, const struct hmm_devmem_move *move)
{
	atomic_fetch_add(&board->stores, 1);
	CHECK(move->mirror == &mirror);
	CHECK_EQ(move->end - move->start, move->pages * PAGE);
	atomic_store(&board->in_store, true);
	while (atomic_load(&board->hold_store))
		usleep(1000);
	atomic_store(&board->in_store, false);
	for (unsigned long i = 0; i < move->pages; i++) {
		struct hmm_page *page;

		if (!move->src[i] || !atomic_load(&board->room))
			continue;
		if (atomic_load(&board->choose_badly)) {
			move->dst[i] = i % 2 ? me->pages - 1 : &me->pages[0];
			continue;
		}
		page = choose();
		if (!page)
			continue;
		atomic_fetch_sub(&board->room, 1);
		scramble(memory[page - me->pages], move->src[i]);
		hmm_devmem_page_set_drvdata(page, move->start + i * PAGE);
		move->dst[i] = page;
	}
}

static void finalize(struct hmm_devmem *me, const struct hmm_devmem_move *move)
{
	for (unsigned long i = 0; i < move->pages; i++) {
		if (!move->src[i])
			continue;
		if (!move->dst[i])
			atomic_fetch_add(&board->refused, 1);
		else
			atomic_fetch_add(&board->moved, 1);
		CHECK(!move->dst[i] || move->dst[i]->devmem == me);
	}
}

/* In the driver the library's as well: it asks for a page before the driver stores into it. */
__attribute__((visibility("default"))) int madvise(void *addr, size_t length, int advice)
{
	if (advice == MADV_POPULATE_WRITE && devmem && atomic_load(&board->no_page) > 0) {
		atomic_fetch_sub(&board->no_page, 1);
		errno = ENOMEM;
		return -1;
	}
	return (int)syscall(SYS_madvise, addr, length, advice);
}

static int bring(struct hmm_devmem *me, unsigned long addr, const struct hmm_page *page)
{
	uint64_t *to = hmm_vma_alloc_locked_page(me, addr);

	if (!to)
		return HMM_FAULT_OOM;
	scramble(to, memory[page - me->pages]);
	return HMM_FAULT_MINOR;
}

static int fault(struct hmm_devmem *me, unsigned long addr, const struct hmm_page *page, unsigned int flags)
{
	atomic_fetch_add(&board->faults, 1);
	atomic_fetch_add(&board->writes, flags & HMM_FAULT_WRITE);
	CHECK_EQ(hmm_devmem_page_get_drvdata(page) % PAGE, 0);
	atomic_store(&board->in_fault, true);
	while (atomic_load(&board->hold_fault))
		usleep(1000);
	if (addr == atomic_load(&board->sigbus)) {
		hmm_vma_alloc_locked_page(me, addr);
		return HMM_FAULT_SIGBUS;
	}
	if (addr == atomic_load(&board->liar))
		return HMM_FAULT_MAJOR;
	/* Nobody asks for another block, nor for an address that stayed at home. */
	CHECK(!hmm_vma_alloc_locked_page(me, addr + BLOCK));
	if (atomic_load(&board->stray)) {
		CHECK(!hmm_vma_alloc_locked_page(me, atomic_load(&board->stray)));
		atomic_fetch_add(&board->strayed, 1);
	}
	if (atomic_load(&board->out_of_memory) > 0) {
		atomic_fetch_sub(&board->out_of_memory, 1);
		hmm_vma_alloc_locked_page(me, addr);
		return HMM_FAULT_OOM;
	}
	if (atomic_load(&board->whole))
		for (unsigned int i = 0; i < DEVICE_PAGES; i++)
			if (used[i] && me->pages[i].addr != addr)
				bring(me, me->pages[i].addr, &me->pages[i]);
	if (bring(me, addr, page) != HMM_FAULT_MINOR)
		return HMM_FAULT_OOM;
	return atomic_load(&board->slow) ? HMM_FAULT_MAJOR : HMM_FAULT_MINOR;
}

static const struct hmm_devmem_ops ops = {
	.size = sizeof(ops),
	.free = free_page, .fault = fault, .alloc_and_copy = alloc_and_copy, .finalize = finalize,
};

/* ---- what it is told --------------------------------------------------------------------- */

static struct hmm_page *page_of(unsigned long addr)
{
	for (unsigned int i = 0; i < DEVICE_PAGES; i++)
		if (devmem->pages[i].references && devmem->pages[i].addr == addr)
			return &devmem->pages[i];
	return NULL;
}

/* Every entry is the page of the driver's memory that has the bytes. */
static long look(unsigned long start, size_t pages)
{
	static const uint64_t flags[HMM_PFN_FLAG_MAX] = { 1, 2, 4 }, values[HMM_PFN_VALUE_MAX] = { 64, 0, 128 };
	struct hmm_range range = { .flags = flags, .values = values, .pfn_shift = 12 };
	long found;

	range.pfns = malloc(pages * sizeof(*range.pfns));
	CHECK(range.pfns);
	for (size_t i = 0; i < pages; i++)
		range.pfns[i] = flags[HMM_PFN_VALID] | flags[HMM_PFN_WRITE];
	CHECK_EQ(hmm_range_register(&range, &mirror, start, start + pages * PAGE, 12), 0);
	do
		found = hmm_range_fault(&range, true);
	while (found == -EBUSY || found == -EAGAIN);
	for (size_t i = 0; found > 0 && i < pages; i++) {
		CHECK_EQ(range.pfns[i] & 7, 7);
		CHECK(hmm_device_entry_to_page(&range, range.pfns[i]) == page_of(start + i * PAGE));
		CHECK(hmm_pfn_to_page(&range, range.pfns[i]) == page_of(start + i * PAGE));
		CHECK_EQ(hmm_device_entry_from_page(&range, page_of(start + i * PAGE)) | 7, range.pfns[i]);
		CHECK_EQ(hmm_pfn_from_page(&range, page_of(start + i * PAGE)) | 7, range.pfns[i]);
	}
	/* What is no page of this memory: nothing, a page of the owner's, another mirror's, one past the end. */
	CHECK(!hmm_device_entry_to_page(&range, values[HMM_PFN_NONE]));
	CHECK(!hmm_device_entry_to_page(&range, hmm_device_entry_from_pfn(&range, start >> 12)));
	CHECK(!hmm_range_page(&range, hmm_range_page_pfn(&range, devmem->pages) + HMM_PFN_DEVICE_FIRST));
	CHECK(!hmm_range_page(&range, hmm_range_page_pfn(&range, devmem->pages) + DEVICE_PAGES));
	CHECK_EQ(hmm_range_page_pfn(&range, &(struct hmm_page){ 0 }), -1UL);
	hmm_range_unregister(&range);
	free(range.pfns);
	return found;
}

static _Atomic bool given_back;

/* All others are home by then, so what removes the memory waits for this one. */
static void *put_later(void *page)
{
	while (atomic_load(&board->in_use) != 1)
		usleep(1000);
	usleep(100000);
	atomic_store(&given_back, true);
	hmm_page_put(page);
	return NULL;
}

static int remove_and_put(void)
{
	pthread_t thread;
	int error;

	CHECK_EQ(pthread_create(&thread, NULL, put_later, referred), 0);
	error = hmm_devmem_remove(devmem, true);
	CHECK(atomic_load(&given_back));
	CHECK_EQ(pthread_join(thread, NULL), 0);
	return error;
}

static uint64_t obey(enum command command)
{
	struct hmm_device *device = mirror.device;
	struct hmm_window *window = NULL;
	uint64_t word = 0;

	switch (command) {
	case COMMAND_OUT:
	case COMMAND_HOME:
		return (uint64_t)hmm_migrate(&mirror, board->addr, board->pages * PAGE,
					     command == COMMAND_OUT ? HMM_DEVICE : HMM_SYSTEM, board->word,
					     board->results, NULL);
	case COMMAND_READ:
		board->result = hmm_device_read(&mirror, board->addr, &word, sizeof(word));
		return word;
	case COMMAND_WRITE:
		board->result = hmm_device_write(&mirror, board->addr, &board->word, sizeof(board->word));
		return 0;
	case COMMAND_WINDOW:
		return (uint64_t)hmm_window_map(&mirror, board->addr, board->pages * PAGE, 0, &window);
	case COMMAND_REMOVE:
		return (uint64_t)hmm_devmem_remove(devmem, board->word);
	case COMMAND_REMOVE_AND_PUT:
		return (uint64_t)remove_and_put();
	case COMMAND_GET:
		referred = page_of(board->addr);
		CHECK(referred);
		hmm_page_get(referred);
		return 0;
	case COMMAND_PUT:
		hmm_page_put(referred);
		return 0;
	case COMMAND_UNREGISTER:
		return (uint64_t)hmm_mirror_unregister(&mirror);
	case COMMAND_DEVICE_PUT:
		CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
		hmm_device_put(device);
		return 0;
	case COMMAND_DRVDATA:
		CHECK(page_of(board->addr));
		return hmm_devmem_page_get_drvdata(page_of(board->addr));
	case COMMAND_ENTRY:
		return hmm_mirror_lookup(&mirror, board->addr);
	case COMMAND_EXCLUSIVE:
		return (uint64_t)hmm_device_exclusive_begin(&mirror, board->addr, board->pages * PAGE, NULL);
	case COMMAND_PIN:
		return (uint64_t)hmm_advise(hmm, board->addr, board->pages * PAGE, HMM_ADVISE_PIN,
					    &(struct hmm_advise_options){ .size = sizeof(struct hmm_advise_options),
									  .mirror = &mirror });
	case COMMAND_RANGE:
		return (uint64_t)look(board->addr, board->pages);
	}
	FAIL("what is command %d?", command);
}

static bool is_resource(const char *kind)
{
	return !strcmp(kind, "resource") || !strcmp(kind, "huge-pages") || !strcmp(kind, "own-descriptor") ||
	       !strcmp(kind, "dax");
}

static void add_memory(struct hmm_device *device, const char *kind)
{
	struct hmm_resource file = { .size = sizeof(file), .length = DEVICE_PAGES * PAGE, .offset = 2 * PAGE };
	bool huge = !strcmp(kind, "huge-pages"), dax = !strcmp(kind, "dax");

	if (!is_resource(kind)) {
		CHECK_EQ(hmm_devmem_add(&ops, device, DEVICE_PAGES * PAGE - 100, &devmem), 0);
	} else {
		if (huge || dax)
			file.offset = BLOCK;
		if (!strcmp(kind, "own-descriptor"))
			file.fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
		else if (dax)
			file.fd = open(getenv("HMM_TEST_DAX"), O_RDWR | O_CLOEXEC);
		else
			file.fd = memfd_create("device", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));
		CHECK(file.fd >= 0);
		if (strcmp(kind, "own-descriptor") && !dax)
			CHECK_EQ(ftruncate(file.fd, (off_t)(file.offset + file.length)), 0);
		CHECK_EQ(hmm_devmem_add_resource(NULL, device, &file, &devmem), 0);
		close(file.fd);
	}
	CHECK_EQ(devmem->pfn_last - devmem->pfn_first + 1, DEVICE_PAGES);
	CHECK_EQ(hmm_device_memory(device), DEVICE_PAGES * PAGE);
}

static int let_go(struct hmm_mirror *me, const struct hmm_update *update)
{
	CHECK(me == &mirror && update->start < update->end);
	atomic_store(&board->in_answer, true);
	while (atomic_load(&board->hold_answer))
		usleep(1000);
	atomic_store(&board->in_answer, false);
	return 0;
}

/* The next command, with callbacks run meanwhile if @fd is theirs. */
static bool next(int fd, uint64_t *word)
{
	struct pollfd wait[2] = { { .fd = TEST_DRIVER_SOCKET, .events = POLLIN }, { .fd = fd, .events = POLLIN } };

	while (fd >= 0) {
		CHECK(poll(wait, 2, -1) > 0);
		if (wait[1].revents)
			CHECK(hmm_dispatch(hmm, 0, 0) >= 0);
		else
			break;
	}
	return test_hear(TEST_DRIVER_SOCKET, word, NULL);
}

void copyengine_main(const char *kind)
{
	int fd = -1;
	struct hmm_device_options options = { .size = sizeof(options), .node = -1,
					      .caps = HMM_DEVICE_FAULTS | HMM_DEVICE_COPY_ENGINE };
	static const struct hmm_mirror_ops none = { .size = sizeof(none) };
	static const struct hmm_mirror_ops told = { .size = sizeof(told),
						    .sync_cpu_device_pagetables = let_go };
	struct hmm_open_options how = { .size = sizeof(how), .timeout_ms = (unsigned int)test_scaled(5000) };
	char name[32];
	uint64_t word;
	int key;

	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, BOARD_FD, 0);
	CHECK(board != MAP_FAILED);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, &key));
	/* hmmd may just be coming back. */
	CHECK_EQ(hmm_open_peer(key, &how, &hmm), 0);
	close(key);
	if (!strcmp(kind, "dispatching")) {
		fd = hmm_dispatch_fd(hmm);
		CHECK(fd >= 0);
	}
	snprintf(name, sizeof(name), "copyengine-%lu", word);
	options.name = name;
	/* One whose driver died is there as long as the owner's mirror. */
	if (hmm_device_new(hmm, &options, &mirror.device) == -EBUSY)
		CHECK_EQ(hmm_device_open(hmm, name, &mirror.device), 0);
	CHECK(mirror.device);
	mirror.ops = is_resource(kind) ? &none : &told;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), -EOPNOTSUPP);	/* without memory, or another's */
	add_memory(mirror.device, kind);
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	test_tell(TEST_DRIVER_SOCKET, 0, -1);
	while (next(fd, &word))
		test_tell(TEST_DRIVER_SOCKET, obey((enum command)word), -1);
	/* An owner that has ended: what it had is freed when hmmd has seen it. */
	for (int i = 0; i < test_scaled(1000) && atomic_load(&board->in_use); i++) {
		if (fd >= 0)
			hmm_dispatch(hmm, 0, 0);
		usleep(10000);
	}
}
