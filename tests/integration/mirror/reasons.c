/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * reasons.c - memory that stays where it is: each page says why, its bytes are
 * untouched, and the device reads them in place all the same.
 */
#include "mirror.h"

#include <fcntl.h>
#include <liburing.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define DEVICE_MEMORY (64UL << 20)

static int scratch_file(size_t pages)
{
	char path[] = "/tmp/reasons-XXXXXX";
	int file = mkostemp(path, O_CLOEXEC);
	char *content = malloc(pages * PAGE);

	CHECK(file >= 0);
	unlink(path);
	test_fill(content, pages, 1);
	CHECK_EQ(write(file, content, pages * PAGE), pages * PAGE);
	free(content);
	return file;
}

static void file_private(void)
{
	int file = scratch_file(16);
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	CHECK(memory != MAP_FAILED);
	test_refused(memory, 16, HMM_FILE);
	test_device_check(memory, 16, 1);
	/* A page that was copied on write is anonymous, but its mapping is the file's. */
	test_fill(memory, 16, 2);
	test_refused(memory, 16, HMM_FILE);
	test_device_check(memory, 16, 2);
	test_check(memory, 16, 2);
	close(file);
	test_close();
}

static void file_shared(void)
{
	int file = scratch_file(16);
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(memory != MAP_FAILED);
	/* Others may map it: that comes before what it is. */
	test_refused(memory, 16, HMM_SHARED_MEMORY);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 5, "device", 6), 6);
	CHECK(!memcmp(memory + 5, "device", 6));
	close(file);
	test_close();
}

static void shared_memory(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	test_fill(memory, 16, 3);
	test_refused(memory, 16, HMM_SHARED_MEMORY);
	test_device_check(memory, 16, 3);
	test_check(memory, 16, 3);
	test_close();
}

static void readonly(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	test_fill(memory, 16, 4);
	CHECK_EQ(mprotect(memory, 16 * PAGE, PROT_READ), 0);
	test_refused(memory, 16, HMM_READONLY);
	test_device_check(memory, 16, 4);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory, "x", 1), -EPERM);
	CHECK_EQ(mprotect(memory, 16 * PAGE, PROT_READ | PROT_WRITE), 0);
	test_check(memory, 16, 4);
	test_out(memory, 16);
	test_check(memory, 16, 4);
	test_close();
}

static void locked(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	test_fill(memory, 16, 5);
	if (mlock(memory, 16 * PAGE))
		test_skip("mlock is not allowed here");
	test_refused(memory, 16, HMM_LOCKED);
	test_device_check(memory, 16, 5);
	CHECK_EQ(munlock(memory, 16 * PAGE), 0);
	test_out(memory, 16);
	test_check(memory, 16, 5);
	test_close();
}

static void pinned(void)
{
	struct io_uring ring;
	uint8_t results[16];
	struct iovec buffer;
	char *memory;
	int error;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	test_fill(memory, 16, 6);
	error = io_uring_queue_init(2, &ring, 0);
	if (error)
		test_skip("no io_uring here");
	buffer = (struct iovec){ memory + 4 * PAGE, 4 * PAGE };
	CHECK_EQ(io_uring_register_buffers(&ring, &buffer, 1), 0);
	CHECK_EQ(test_migrate(memory, 16, HMM_DEVICE, results), 12);
	for (int i = 0; i < 16; i++)
		CHECK_EQ(results[i], i / 4 == 1 ? HMM_PINNED : HMM_MIGRATED);
	test_device_check(memory, 16, 6);
	test_check(memory, 16, 6);
	CHECK_EQ(io_uring_unregister_buffers(&ring), 0);
	io_uring_queue_exit(&ring);
	/* The kernel lets go of the pages a little later. */
	for (int tries = 0; tries < test_scaled(1000) && test_migrate(memory, 16, HMM_DEVICE, NULL) < 16; tries++)
		usleep(10000);
	test_out(memory, 16);
	test_check(memory, 16, 6);
	test_close();
}

/* A huge page can't be parted while some of it is pinned: all of it stays, and nobody tries for ever. */
static void pinned_huge(void)
{
	struct io_uring ring;
	struct iovec buffer;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	if (!(hmm_features(hmm) & HMM_HAS_MOVE))
		test_skip("this kernel has no UFFDIO_MOVE");
	memory = test_map_huge(1);
	test_fill(memory, 512, 26);
	if (test_smaps(memory, BLOCK, "AnonHugePages") == 0)
		test_skip("the system gives no huge pages");
	if (io_uring_queue_init(2, &ring, 0))
		test_skip("no io_uring here");
	buffer = (struct iovec){ memory + 4 * PAGE, 4 * PAGE };
	CHECK_EQ(io_uring_register_buffers(&ring, &buffer, 1), 0);
	test_refused(memory, 512, HMM_PINNED);
	test_refused(memory + 100 * PAGE, 100, HMM_PINNED);
	test_device_check(memory, 512, 26);
	CHECK_EQ(io_uring_unregister_buffers(&ring), 0);
	io_uring_queue_exit(&ring);
	for (int tries = 0;
	     tries < test_scaled(1000) && test_migrate(memory + 100 * PAGE, 100, HMM_DEVICE, NULL) < 100; tries++)
		usleep(10000);
	test_out(memory, 512);
	test_check(memory, 512, 26);
	test_close();
}

/* Pinned after it went to the device: the pin brings it home, where it stays. */
static void pinned_later(void)
{
	int file = scratch_file(4);
	struct io_uring_cqe *done;
	struct io_uring ring;
	struct iovec buffer;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(8);
	test_fill(memory, 8, 7);
	test_out(memory, 8);
	if (io_uring_queue_init(2, &ring, 0))
		test_skip("no io_uring here");
	buffer = (struct iovec){ memory, 4 * PAGE };
	CHECK_EQ(io_uring_register_buffers(&ring, &buffer, 1), 0);
	test_refused(memory, 4, HMM_PINNED);
	io_uring_prep_read_fixed(io_uring_get_sqe(&ring), file, memory, 4 * PAGE, 0, 0);
	CHECK(io_uring_submit_and_wait(&ring, 1) >= 0);
	CHECK_EQ(io_uring_wait_cqe(&ring, &done), 0);
	CHECK_EQ(done->res, 4 * PAGE);
	io_uring_cqe_seen(&ring, done);
	test_check(memory, 4, 1);
	test_device_check(memory, 4, 1);
	io_uring_queue_exit(&ring);
	close(file);
	test_close();
}

/* In a child: until its parent has closed the pipe. */
static void wait_for_parent(const int hold[2])
{
	char byte;

	close(hold[1]);
	while (read(hold[0], &byte, 1) < 0)
		;
}

/* A page that a child still shares leaves as the owner's own copy: the child keeps what it had. */
static void forked(void)
{
	int hold[2];
	char *memory;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	test_fill(memory, 16, 8);
	CHECK_EQ(pipe2(hold, O_CLOEXEC), 0);
	child = fork();
	if (!child) {
		wait_for_parent(hold);
		test_check(memory, 16, 8);
		_exit(0);
	}
	close(hold[0]);
	test_out(memory, 16);
	test_device_check(memory, 16, 8);
	test_fill(memory, 16, 9);
	close(hold[1]);
	test_reap(child, 0);
	test_device_check(memory, 16, 9);
	test_out(memory, 16);
	test_check(memory, 16, 9);
	test_close();
}

/*
 * Parts of a huge page leave, though a child had shared it and the first part, which was written meanwhile, lies elsewhere
 * since: what MOVE asks is whose that one is.
 */
static void forked_huge(void)
{
	int hold[2];
	char *memory;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(1);
	test_fill(memory, 512, 8);
	CHECK_EQ(pipe2(hold, O_CLOEXEC), 0);
	child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!child) {
		wait_for_parent(hold);
		_exit(0);
	}
	close(hold[0]);
	test_fill(memory, 1, 8);
	close(hold[1]);
	test_reap(child, 0);
	test_out(memory + 132 * PAGE, 3);
	test_out(memory + 400 * PAGE, 1);
	test_device_check(memory, 512, 8);
	test_check(memory, 512, 8);
	test_close();
}

static void *look_at(void *page)
{
	(void)*(volatile char *)page;
	return NULL;
}

static void armed(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register registration = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_copy fill = { .len = PAGE };
	struct uffd_msg message;
	char *memory, *copy;
	pthread_t thread;
	int own;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	test_fill(memory, 16, 9);
	own = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1);
	CHECK(own >= 0);
	CHECK_EQ(ioctl(own, UFFDIO_API, &api), 0);
	registration.range = (struct uffdio_range){ (unsigned long)memory, 16 * PAGE };
	CHECK_EQ(ioctl(own, UFFDIO_REGISTER, &registration), 0);
	test_refused(memory, 16, HMM_ARMED);
	test_device_check(memory, 16, 9);
	test_check(memory, 16, 9);
	/* And stays the program's, when hmmd has tidied up: it is asked for what is missing. */
	usleep(200000);
	CHECK_EQ(madvise(memory + 3 * PAGE, PAGE, MADV_DONTNEED), 0);
	CHECK_EQ(pthread_create(&thread, NULL, look_at, memory + 3 * PAGE), 0);
	CHECK_EQ(read(own, &message, sizeof(message)), sizeof(message));
	CHECK_EQ(message.event, UFFD_EVENT_PAGEFAULT);
	CHECK_EQ(message.arg.pagefault.address & ~(PAGE - 1), memory + 3 * PAGE);
	copy = test_map(16);
	test_fill(copy, 16, 9);
	fill.dst = (unsigned long)memory + 3 * PAGE;
	fill.src = (unsigned long)copy + 3 * PAGE;
	CHECK_EQ(ioctl(own, UFFDIO_COPY, &fill), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	test_check(memory, 16, 9);
	close(own);
	test_out(memory, 16);
	test_check(memory, 16, 9);
	test_close();
}

static void excluded(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	test_fill(memory, 16, 10);
	test_out(memory, 16);
	CHECK_EQ(hmm_exclude(hmm, (unsigned long)memory, 16 * PAGE), 0);
	CHECK_EQ(test_device_pages(memory, 16), 0);
	test_check(memory, 16, 10);
	test_refused(memory, 16, HMM_EXCLUDED);
	CHECK_EQ(hmm_include(hmm, (unsigned long)memory, 16 * PAGE), 0);
	test_out(memory, 16);
	test_check(memory, 16, 10);
	CHECK_EQ(hmm_exclude(hmm, (unsigned long)memory + 1, PAGE), -EINVAL);
	test_close();
}

static void *refuse_control_block(void *argument)
{
	static _Thread_local char local;
	void *control = (void *)((uintptr_t)&local & ~(PAGE - 1));

	local = 1;
	test_refused(control, 1, HMM_EXCLUDED);
	test_refused((void *)((uintptr_t)pthread_self() & ~(PAGE - 1)), 1, HMM_EXCLUDED);
	return NULL;
}

/* The kernel stores into an exiting thread's control block, and drops what it cannot. */
static void stacks(void)
{
	char page[3 * PAGE];
	void *inside = (void *)(((uintptr_t)page + PAGE - 1) & ~(PAGE - 1));
	pthread_t thread;

	test_open(0, DEVICE_MEMORY);
	memset(page, 1, sizeof(page));
	test_refused(inside, 1, HMM_EXCLUDED);
	refuse_control_block(NULL);
	CHECK_EQ(pthread_create(&thread, NULL, refuse_control_block, NULL), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	test_close();
}

#define OWN_STACK 32UL

static void *refuse_below(void *memory)
{
	test_refused(memory, 8, HMM_EXCLUDED);
	return NULL;
}

/* Nothing tells memory that lies below a stack, in the same mapping, from the stack. */
static void stack_in_a_mapping(void)
{
	pthread_attr_t attributes;
	pthread_t thread;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(2 * OWN_STACK);
	test_fill(memory, 2 * OWN_STACK, 31);
	CHECK(!pthread_attr_init(&attributes));
	CHECK(!pthread_attr_setstack(&attributes, memory + OWN_STACK * PAGE, OWN_STACK * PAGE));
	CHECK_EQ(pthread_create(&thread, &attributes, refuse_below, memory), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	pthread_attr_destroy(&attributes);
	test_out(memory, 8);
	test_check(memory, 8, 31);
	test_close();
}

static void unmapped(void)
{
	uint8_t results[24];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_apart(24);
	test_fill(memory, 24, 11);
	CHECK_EQ(munmap(memory + 8 * PAGE, 8 * PAGE), 0);
	CHECK_EQ(test_migrate(memory, 24, HMM_DEVICE, results), 16);
	for (int i = 0; i < 24; i++)
		CHECK_EQ(results[i], i / 8 == 1 ? HMM_HOLE : HMM_MIGRATED);
	test_check(memory, 8, 11);
	test_home(memory, 8);
	test_close();
}

static void guard_pages(void)
{
	uint8_t results[16];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	test_fill(memory, 16, 12);
	if (madvise(memory + 4 * PAGE, 4 * PAGE, MADV_GUARD_INSTALL))
		test_skip("the kernel has no guard pages");
	test_migrate(memory, 16, HMM_DEVICE, results);
	for (int i = 0; i < 16; i++) {
		if (i / 4 == 1 && results[i] != HMM_SPECIAL && results[i] != HMM_HOLE)
			FAIL("guard page %d: %s", i, hmm_migrate_result_name(results[i]));
		else if (i / 4 != 1)
			CHECK_EQ(results[i], HMM_MIGRATED);
	}
	test_home(memory, 4);
	test_check(memory, 4, 12);
	CHECK_EQ(write(1, memory + 5 * PAGE, 1), -1);
	CHECK_EQ(errno, EFAULT);
	test_close();
}

/* Neither code, nor read-only data, nor the kernel's own pages in the program. */
static void program_itself(void)
{
	FILE *maps;
	char line[512];
	unsigned long start, end;
	int seen = 0;

	test_open(0, DEVICE_MEMORY);
	maps = fopen("/proc/self/maps", "re");
	CHECK(maps);
	while (fgets(line, sizeof(line), maps)) {
		uint8_t result = HMM_MIGRATED;
		long there;

		CHECK_EQ(sscanf(line, "%lx-%lx", &start, &end), 2);
		if (!strstr(line, ".so") && !strstr(line, "[vdso]") && !strstr(line, "[vvar]") &&
		    !strstr(line, "[stack]"))
			continue;
		there = hmm_migrate(&mirror, start, PAGE, HMM_DEVICE, 0, &result, NULL);
		if (there)
			FAIL("%s gave %ld", line, there);
		CHECK(result != HMM_MIGRATED && result != HMM_ALREADY);
		seen++;
	}
	CHECK(seen > 5);
	fclose(maps);
	test_close();
}

static void pool_full(void)
{
	uint8_t *results = malloc(4 * 512);
	size_t full = 0, moved = 0;
	char *memory;

	test_open(0, 4UL << 20);
	memory = test_map_huge(4);
	test_fill(memory, 4 * 512, 13);
	test_migrate(memory, 4 * 512, HMM_DEVICE, results);
	for (int i = 0; i < 4 * 512; i++) {
		full += results[i] == HMM_POOL_FULL;
		moved += results[i] == HMM_MIGRATED;
	}
	CHECK_EQ(full + moved, 4 * 512);
	CHECK_EQ(moved, 2 * 512);
	test_device_check(memory, 4 * 512, 13);
	test_check(memory, 4 * 512, 13);
	/* What came home made room. */
	test_home(memory, 4 * 512);
	test_out(memory + 2 * BLOCK, 2 * 512);
	test_check(memory, 4 * 512, 13);
	free(results);
	test_close();
}

static const struct test_case cases[] = {
	{ "file-private", file_private, false }, { "file-shared", file_shared, false },
	{ "shared-memory", shared_memory, false }, { "readonly", readonly, false }, { "locked", locked, false },
	{ "pinned", pinned, false }, { "pinned-huge", pinned_huge, false }, { "pinned-later", pinned_later, false },
	{ "forked", forked, false }, { "forked-huge", forked_huge, false },
	{ "armed", armed, false }, { "excluded", excluded, false }, { "stacks", stacks, false },
	{ "stack-in-a-mapping", stack_in_a_mapping, false }, { "unmapped", unmapped, false },
	{ "guard-pages", guard_pages, false }, { "program-itself", program_itself, false },
	{ "pool-full", pool_full, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
