// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Threads of an owner: their kernel stores at exit, and agents that are stopped or traced.
 *
 * What can fail: a pthread_join that hangs because a page of thread control was armed, or
 * a fault that nobody serves because the one who could is stopped.
 */
#include "contract.h"

#include <linux/futex.h>
#include <sys/ptrace.h>

TestSuite(thread, .init = contract_begin);

#define THREAD_FLAGS	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |	\
			 CLONE_SYSVSEM | CLONE_CHILD_CLEARTID | CLONE_PARENT_SETTID)

/* A thread whose tid word is in armed memory; it exits when told. */
struct exiter {
	char stack[65536];
	atomic_int go;
	int tid;
	volatile int *word;
};

static int exiter_run(void *arg)
{
	struct exiter *exiter = arg;

	while (!atomic_load(&exiter->go))
		syscall(SYS_sched_yield);
	syscall(SYS_exit, 0);
	return 0;
}

static struct exiter *exiter_start(void)
{
	struct exiter *exiter = mmap(NULL, sizeof(*exiter), PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	exiter->word = (int *)map_pages(1);
	*exiter->word = -1;
	/* The kernel stores the tid there at birth, and zero, with a futex wake, at exit. */
	exiter->tid = clone(exiter_run, exiter->stack + sizeof(exiter->stack) - 64, THREAD_FLAGS,
			    exiter, (pid_t *)exiter->word, NULL, (pid_t *)exiter->word);
	cr_assert_gt(exiter->tid, 0);
	cr_assert_eq(*exiter->word, exiter->tid);
	return exiter;
}

static void exiter_end(struct exiter *exiter)
{
	atomic_store(&exiter->go, 1);
	wait_until(syscall(SYS_tgkill, getpid(), exiter->tid, 0) != 0);
}

Test(thread, exit_clears_its_tid_word)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	struct exiter *exiter = exiter_start();

	cr_assert_eq(uffd_register(fd, (void *)exiter->word, PAGE, MISSING | WP), 0);
	exiter_end(exiter);
	wait_until(*exiter->word == 0);
}

/* Protected: the store is dropped, no event says so; pthread_join would wait for ever. */
Test(thread, exit_store_to_a_protected_page_is_dropped)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	struct exiter *exiter = exiter_start();

	cr_assert_eq(uffd_register(fd, (void *)exiter->word, PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, (void *)exiter->word, PAGE, true), 0);
	exiter_end(exiter);
	cr_assert_eq(*exiter->word, exiter->tid);
	cr_assert(no_event(fd));
}

Test(thread, exit_store_to_a_missing_page_is_dropped)
{
	int fd = uffd_open(0);
	struct exiter *exiter = exiter_start();
	char device[PAGE];

	cr_assert_eq(uffd_register(fd, (void *)exiter->word, PAGE, MISSING), 0);
	memcpy(device, (void *)exiter->word, PAGE);
	cr_assert_eq(madvise((void *)exiter->word, PAGE, MADV_DONTNEED), 0);
	exiter_end(exiter);
	cr_assert(no_event(fd));
	cr_assert_eq(uffd_copy(fd, (void *)exiter->word, device, PAGE, 0), 0);
	cr_assert_eq(*exiter->word, exiter->tid);
}

/* A robust mutex whose holder dies with the mutex's page missing: nobody learns of it. */
struct robust_owner {
	struct robust_list_head head;
	struct robust_list node;
};

struct holder {
	struct robust_owner *list;
	volatile uint32_t *futex;
	atomic_int go, ready;
};

static void *holder_run(void *arg)
{
	struct holder *holder = arg;
	struct robust_owner *list = holder->list;

	list->node.next = &list->head.list;
	list->head.list.next = &list->node;
	list->head.futex_offset = (long)((char *)holder->futex - (char *)&list->node);
	list->head.list_op_pending = NULL;
	*holder->futex = (uint32_t)syscall(SYS_gettid) | FUTEX_WAITERS;
	syscall(SYS_set_robust_list, &list->head, sizeof(list->head));
	atomic_store(&holder->ready, 1);
	while (!atomic_load(&holder->go))
		usleep(1000);
	return NULL;
}

static void robust_futex_of_a_dead_thread(bool missing, uint32_t *left)
{
	int fd = uffd_open(0);
	struct holder holder = { .list = (void *)map_pages(1), .futex = (void *)map_pages(1) };
	char device[PAGE];
	pthread_t thread;

	cr_assert_eq(pthread_create(&thread, NULL, holder_run, &holder), 0);
	wait_until(atomic_load(&holder.ready));
	cr_assert_eq(uffd_register(fd, (void *)holder.futex, PAGE, MISSING), 0);
	memcpy(device, (void *)holder.futex, PAGE);
	if (missing)
		cr_assert_eq(madvise((void *)holder.futex, PAGE, MADV_DONTNEED), 0);
	atomic_store(&holder.go, 1);
	cr_assert_eq(pthread_join(thread, NULL), 0);
	cr_assert(no_event(fd));
	if (missing)
		cr_assert_eq(uffd_copy(fd, (void *)holder.futex, device, PAGE, 0), 0);
	*left = *holder.futex;
}

Test(thread, robust_futex_on_a_missing_page_is_not_released)
{
	uint32_t left;

	robust_futex_of_a_dead_thread(false, &left);
	cr_assert(left & FUTEX_OWNER_DIED);
	robust_futex_of_a_dead_thread(true, &left);
	cr_assert_not(left & FUTEX_OWNER_DIED);
}

/* An owner's agent, and a tracer that reads an argument from a page on the device. */
struct traced {
	atomic_int agent_tid, fault_ready;
	int sock;
	char *mem;
};

static void *agent_run(void *arg)
{
	struct traced *traced = arg;

	atomic_store(&traced->agent_tid, (int)syscall(SYS_gettid));
	for (;;)
		syscall(SYS_getppid);
	return NULL;
}

static void traced_owner(void *arg)
{
	struct traced *traced = arg;
	pthread_t thread;
	int fd = uffd_open(0);

	child_check(uffd_register(fd, traced->mem, PAGE, MISSING) == 0);
	child_check(pthread_create(&thread, NULL, agent_run, traced) == 0);
	send_fd(traced->sock, fd);
	pause();
}

struct tracing {
	pid_t pid, agent;
	char *mem;
};

static void tracer(void *arg)
{
	struct tracing *tracing = arg;
	char byte;
	struct iovec local = { &byte, 1 }, remote = { tracing->mem, 1 };

	child_check(ptrace(PTRACE_SEIZE, tracing->agent, 0, 0) == 0);
	child_check(ptrace(PTRACE_INTERRUPT, tracing->agent, 0, 0) == 0);
	child_check(waitpid(tracing->agent, NULL, __WALL) == tracing->agent);
	child_check(process_vm_readv(tracing->pid, &local, 1, &remote, 1, 0) == 1);
	child_check(byte == 7);
}

/* The agent is stopped by the one who waits for it; a daemon that serves alone is not. */
Test(thread, tracer_of_a_stopped_agent_is_served_from_outside)
{
	struct traced *traced = map_shared(PAGE);
	struct tracing tracing;
	char *bytes = map_pages(1);
	int sock[2], fd;
	pid_t owner, strace;

	require_root();
	memset(bytes, 7, PAGE);
	traced->mem = map_pages(1);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	traced->sock = sock[1];
	owner = child_start(traced_owner, traced);
	fd = recv_fd(sock[0]);
	wait_until(atomic_load(&traced->agent_tid));
	tracing = (struct tracing){ owner, atomic_load(&traced->agent_tid), traced->mem };
	strace = child_start(tracer, &tracing);
	expect_fault(fd, traced->mem, 0);
	cr_assert_eq(uffd_copy(fd, traced->mem, bytes, PAGE, 0), 0);
	child_passed(strace);
	child_kill(owner);
}

/* A stopped owner's memory can be served and read all the same. */
Test(thread, stopped_owner_takes_copies)
{
	struct traced *traced = map_shared(PAGE);
	char *bytes = map_pages(1), byte = 0;
	struct iovec local = { &byte, 1 }, remote;
	int sock[2], fd, status;
	pid_t owner;

	require_root();
	memset(bytes, 7, PAGE);
	traced->mem = map_pages(1);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	traced->sock = sock[1];
	owner = child_start(traced_owner, traced);
	fd = recv_fd(sock[0]);
	cr_assert_eq(kill(owner, SIGSTOP), 0);
	cr_assert_eq(waitpid(owner, &status, WUNTRACED), owner);
	cr_assert(WIFSTOPPED(status));
	cr_assert_eq(uffd_copy(fd, traced->mem, bytes, PAGE, 0), 0);
	remote = (struct iovec){ traced->mem, 1 };
	cr_assert_eq(process_vm_readv(owner, &local, 1, &remote, 1, 0), 1);
	cr_assert_eq(byte, 7);
	child_kill(owner);
}
