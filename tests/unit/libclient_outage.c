/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The library's side of the socket, against a scripted peer: hmmd goes, comes back, or
 * answers what it should not.
 */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <hmm/hmm.h>

#include "hmm_protocol.h"
#include "libclient/space.h"
#include "libclient_script.h"
#include "proto/uapi.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(outage);

static void check_notes(const uint16_t *wanted, unsigned int count)
{
	cr_assert_eq(script->notes, count, "%u requests instead of %u", script->notes, count);
	for (unsigned int i = 0; i < count; i++)
		cr_assert_eq(script->note[i], wanted[i], "request %u is '%s', not '%s'", i,
			     hmm_opcode_name(script->note[i]), hmm_opcode_name(wanted[i]));
}

Test(outage, what_was_asked_is_asked_again)
{
	const uint16_t wanted[] = {
		HMM_OP_HELLO,		HMM_OP_OPEN_PEER,   HMM_OP_DEVICE_NEW,
		HMM_OP_MIRROR_REGISTER, HMM_OP_DEVICE_READ, HMM_OP_DEVICE_READ,
		HMM_OP_HELLO,		HMM_OP_OPEN_PEER,   HMM_OP_DEVICE_NEW,
		HMM_OP_MIRROR_REGISTER, HMM_OP_DEVICE_READ,
	};

	script_begin();
	script->die_at_read = 2;
	be_driver();
	check_read();
	check_read();
	check_notes(wanted, sizeof(wanted) / sizeof(*wanted));
	/* The first hmmd may have died before it told of a change: the second waits for this. */
	while (!*(volatile uint32_t *)&script->ready)
		usleep(1000);
	cr_assert_eq(let_go_of_all, 1);
	stop_being_driver();
	cr_assert_eq(script->ready, 1);
	script_end();
}

Test(outage, an_answer_to_try_again_is_not_the_callers_affair)
{
	script_begin();
	script->busy_reads = 3;
	be_driver();
	check_read();
	cr_assert_eq(script->reads, 4);
	stop_being_driver();
	script_end();
}

static _Atomic int protected_with;

static void note_protected(struct request *request)
{
	protected_with = request->error ? request->error : 1;
	hmmc_request_free(request);
}

static struct request *new_protection(bool insists)
{
	struct request *request = hmmc_request_new(hmm->connection, HMM_OP_PROTECT, sizeof(struct hmm_msg_protect));

	cr_assert_not_null(request);
	((struct hmm_msg_protect *)request->message)->owner = 3;
	((struct hmm_msg_protect *)request->message)->addr = 0x10000;
	((struct hmm_msg_protect *)request->message)->length = HMM_PAGE_SIZE;
	request->insists = insists;
	return request;
}

/* Whether or not somebody waits: from inside a callback nobody does. */
static void check_insisting(int error)
{
	unsigned int before = script->protects;
	struct request *request;

	script->short_error = error;
	script->short_protects = 3;
	protected_with = 0;
	request = new_protection(true);
	request->complete = note_protected;
	hmmc_request_post(request);
	while (!protected_with)
		usleep(1000);
	cr_assert_eq(protected_with, 1);
	cr_assert_eq(script->protects, before + 4);
	script->short_protects = 3;
	request = new_protection(true);
	cr_assert_eq(hmmc_request_call(request), 0);
	hmmc_request_free(request);
	cr_assert_eq(script->protects, before + 8);
	script->short_protects = 1;
	request = new_protection(false);
	cr_assert_eq(hmmc_request_call(request), error);
	hmmc_request_free(request);
}

Test(outage, what_hmmd_has_no_memory_for_is_asked_again_where_it_must_be)
{
	script_begin();
	be_driver();
	check_insisting(-ENOMEM);
	/* Other processes of the user may have asked as much as he may. */
	check_insisting(-EDQUOT);
	stop_being_driver();
	script_end();
}

Test(outage, nobody_comes_back)
{
	char byte;

	script_begin();
	script->grace_ms = 300;
	script->die_at_read = 1;
	script->vanish = true;
	be_driver();
	cr_assert_eq(hmm_device_read(&mirror, 0x7000, &byte, 1), -ESTALE);
	cr_assert_eq(hmm_device_read(&mirror, 0x7000, &byte, 1), -ESTALE);
	cr_assert_eq(hmm_features(hmm), 0);
	cr_assert_eq(hmm_mirror_lookup(&mirror, 0x7000), 0);
	stop_being_driver();
	script_end();
}

static void *read_in_vain(void *argument)
{
	char byte;

	cr_assert_eq(hmm_device_read(&mirror, 0x7000, &byte, 1), -ESTALE);
	return NULL;
}

static bool is_open(void *there)
{
	char byte;
	struct iovec here = { &byte, 1 }, window = { there, 1 };

	return process_vm_readv(getpid(), &here, 1, &window, 1, 0) == 1;
}

/* Nobody looks after it, and its owner's library brings the pages home when the grace time is over. */
static void close_the_window_in_time(void)
{
	struct hmm_window *window;
	pthread_t thread;
	void *there;

	script->grace_ms = (uint32_t)scaled_ms(1000);
	script->die_at_read = 1;
	be_driver();
	cr_assert_eq(hmm_window_map(&mirror, 0x7f0000000000, HMM_PAGE_SIZE, HMM_WINDOW_OFFSET, &window), 0, "%s",
		     hmm_last_error());
	there = hmm_window_ptr(window, 0x7f0000000000);
	cr_assert(is_open(there));
	cr_assert_eq(pthread_create(&thread, NULL, read_in_vain, NULL), 0);
	while (is_open(there))
		usleep(1000);
	/* Before the time was over. */
	cr_assert_eq(__atomic_load_n(&hmm->lost, __ATOMIC_ACQUIRE), 0);
	script_kill();
	cr_assert_eq(pthread_join(thread, NULL), 0);
	cr_assert(!is_open(there));
	cr_assert_eq(hmm_window_unmap(window), 0);
	stop_being_driver();
}

Test(outage, a_window_is_closed_in_time_whatever_the_next_hmmd_says)
{
	script_begin();
	script->open_error = -ESTALE;
	close_the_window_in_time();
	script_end();
}

Test(outage, a_window_is_closed_in_time_though_the_next_hmmd_says_nothing)
{
	script_begin();
	script->mute = true;
	close_the_window_in_time();
	script_end();
}

Test(outage, a_window_is_closed_in_time_though_the_next_hmmd_is_busy)
{
	script_begin();
	script->open_error = -EAGAIN;
	close_the_window_in_time();
	script_end();
}

Test(outage, the_text_of_an_error_reaches_the_caller)
{
	char byte;

	script_begin();
	be_driver();
	cr_assert_eq(hmm_device_read(&mirror, 0xbad000, &byte, 1), -EFAULT);
	cr_assert_str_eq(hmm_last_error(), "nothing is mapped at 0xbad000");
	check_read();
	stop_being_driver();
	script_end();
}

/* What hmmd refuses is as if nobody had asked, and may be asked again. */
Test(outage, a_mirror_that_hmmd_refuses)
{
	struct hmm_mirror other = { .ops = &ops };
	const int errors[] = { -ENOMEM, -EPERM, -ENOSPC };

	script_begin();
	be_driver();
	other.device = mirror.device;
	for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++) {
		script->register_error = errors[i];
		cr_assert_eq(hmm_mirror_register(&other, hmm), errors[i]);
		cr_assert_str_eq(hmm_last_error(), "no mirror");
		cr_assert_null(other.priv);
	}
	script->register_error = 0;
	cr_assert_eq(hmm_mirror_register(&other, hmm), 0, "%s", hmm_last_error());
	cr_assert_eq(hmm_mirror_register(&other, hmm), -EINVAL);
	cr_assert_eq(hmm_mirror_unregister(&other), 0);
	check_read();
	stop_being_driver();
	script_end();
}

Test(outage, versions_that_do_not_fit)
{
	script_begin();
	script->hello_error = -EPROTO;
	cr_assert_eq(open_peer(), -EPROTO);
	cr_assert_str_eq(hmm_last_error(), "no such version");
	script_end();
}

Test(outage, what_is_no_message_is_passed_over)
{
	script_begin();
	script->garbage = true;
	be_driver();
	check_read();
	stop_being_driver();
	script_end();
}

Test(outage, a_callback_s_answer_and_what_it_must_not_do)
{
	script_begin();
	script->invalidate = true;
	updates = 0;
	be_driver();
	check_read();
	cr_assert_eq(updates, 1);
	cr_assert_eq(unregistered, -EDEADLK);
	cr_assert_eq(script->ack_cookie, 77);
	cr_assert_eq(script->ack_status, -EAGAIN);
	stop_being_driver();
	script_end();
}

Test(outage, a_migration_in_pieces_is_one_answer)
{
	const size_t length = 200UL << 20, pages = length >> HMM_PAGE_SHIFT;
	struct hmm_migrate_report report;
	uint8_t *results = malloc(pages);
	size_t pinned = 0;

	script_begin();
	be_driver();
	cr_assert_eq(hmm_migrate(&mirror, 0x7f0000001000, length, HMM_DEVICE, 0, results, &report),
		     (long)pages - 4);
	cr_assert_eq(report.pages, pages);
	cr_assert_eq(report.moved, pages - 4);
	cr_assert_eq(report.failed, 4);
	for (size_t i = 0; i < pages; i++)
		pinned += results[i] == HMM_PINNED;
	cr_assert_eq(pinned, 4);
	/* The second piece begins at a block's edge, below 64 MiB. */
	cr_assert_eq(results[0], HMM_PINNED);
	cr_assert_eq(results[(64 << 8) - 1], HMM_PINNED);
	free(results);
	stop_being_driver();
	script_end();
}

Test(outage, descriptors_are_in_nobody_s_way)
{
	struct pollfd hangup;
	int pipes[2];

	script_begin();
	cr_assert_eq(pipe2(pipes, O_CLOEXEC), 0);
	be_driver();
	/* The library must not hold the program's pipes open. */
	close(pipes[1]);
	hangup = (struct pollfd){ .fd = pipes[0], .events = POLLIN };
	cr_assert_eq(poll(&hangup, 1, scaled_ms(5000)), 1);
	cr_assert(hangup.revents & POLLHUP);
	close(pipes[0]);
	/*
	 * And a program may close all that it does not know; in a child, for the test's own sake.
	 */
	if (fork_at_rest() == 0) {
		be_driver();
		syscall(SYS_close_range, 3U, ~0U, 0U);
		check_read();
		_exit(script->reads == 1 ? 0 : 1);
	} else {
		int status;

		/* The peer serves one connection at a time. */
		stop_being_driver();
		wait(&status);
		cr_assert_eq(status, 0);
	}
	script_end();
}

Test(outage, a_child_has_no_part_in_its_parents_handle)
{
	char byte;
	int status;

	script_begin();
	be_driver();
	if (fork_at_rest() == 0) {
		if (hmm_device_read(&mirror, 0x7000, &byte, 1) != -ESTALE || hmm_features(hmm))
			_exit(1);
		hmm_close(hmm);
		_exit(script->reads ? 2 : 0);
	}
	wait(&status);
	cr_assert_eq(status, 0);
	check_read();
	stop_being_driver();
	script_end();
}

Test(outage, bad_arguments)
{
	struct {
		struct hmm_open_options known;
		uint64_t future;
	} newer = { .known = { .size = sizeof(newer) } };
	struct hmm_device_options options = { .size = sizeof(options), .name = "", .node = -1 };
	struct hmm_mirror none = { .ops = &ops };
	struct hmm_device *made;
	struct hmm *opened;
	char byte;

	script_begin();
	newer.known.socket = script_path;
	newer.future = 1;
	cr_assert_eq(hmm_open(&newer.known, &opened), -E2BIG);
	cr_assert_eq(hmm_open(NULL, NULL), -EINVAL);
	cr_assert_eq(hmm_open_peer(-1, NULL, &opened), -EBADF);
	be_driver();
	cr_assert_eq(hmm_export(hmm), -EPERM);
	cr_assert_eq(hmm_device_new(hmm, &options, &made), -EINVAL);
	options.name = "a name";
	cr_assert_eq(hmm_device_new(hmm, &options, &made), -EINVAL);
	cr_assert_eq(hmm_mirror_register(NULL, hmm), -EINVAL);
	cr_assert_eq(hmm_mirror_register(&none, hmm), -EINVAL);
	cr_assert_eq(hmm_migrate(&mirror, 0x1001, HMM_PAGE_SIZE, HMM_DEVICE, 0, NULL, NULL),
		     -EINVAL);
	cr_assert_eq(hmm_migrate(&mirror, 0x1000, 0, HMM_DEVICE, 0, NULL, NULL), -EINVAL);
	cr_assert_eq(
		hmm_migrate(&mirror, -HMM_PAGE_SIZE, 2 * HMM_PAGE_SIZE, HMM_DEVICE, 0, NULL, NULL),
		-EINVAL);
	cr_assert_eq(hmm_migrate(&mirror, HMM_VA_END, HMM_PAGE_SIZE, HMM_DEVICE, 0, NULL, NULL),
		     -EINVAL);
	cr_assert_eq(hmm_migrate(&mirror, 0x1000, HMM_PAGE_SIZE, (enum hmm_target)7, 0, NULL, NULL),
		     -EINVAL);
	cr_assert_eq(
		hmm_migrate(&mirror, 0x1000, HMM_PAGE_SIZE, HMM_DEVICE, 1ULL << 40, NULL, NULL),
		-EINVAL);
	cr_assert_eq(hmm_device_read(&mirror, HMM_VA_END - 1, &byte, 2), -EINVAL);
	cr_assert_eq(hmm_device_read(&mirror, 0x1000, &byte, 0), 0);
	cr_assert_eq(hmm_exclude(hmm, 0x1000, HMM_PAGE_SIZE), -EPERM);
	cr_assert_neq(hmm_last_error()[0], 0);
	cr_assert_eq(script->reads, 0, "none of that reached the other side");
	stop_being_driver();
	script_end();
}

/* ---- good-byes -------------------------------------------------------------------------- */

static unsigned int count_notes(uint16_t opcode)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < script->notes && i < NOTES; i++)
		n += script->note[i] == opcode;
	return n;
}

/* An owner whose hmmd ends when it is asked for a key. Return: what it has for an answer in the end. */
static int be_owner(void)
{
	struct hmm_open_options options = { .size = sizeof(options), .socket = script_path,
					    .timeout_ms = (uint32_t)scaled_ms(5000) };
	int key;

	script->grace_ms = (uint32_t)scaled_ms(300);
	cr_assert_eq(hmm_open(&options, &hmm), 0, "%s", hmm_last_error());
	key = hmm_export(hmm);
	if (key >= 0)
		close(key);
	hmm_close(hmm);
	return key < 0 ? key : 0;
}

/* Opened anew its userfaultfd would be closed, and all that is on a device be zeros. */
static void check_is_reopened(void)
{
	cr_assert_eq(be_owner(), -ESTALE);
	cr_assert_eq(count_notes(HMM_OP_OPEN), 1);
	cr_assert_geq(count_notes(HMM_OP_REOPEN), 1);
}

Test(outage, a_goodbye_of_one_that_had_what_is_out)
{
	script_begin();
	script->ends[1].at = HMM_OP_EXPORT;
	script->ends[1].goodbye = true;
	cr_assert_eq(be_owner(), 0, "everything is home, and the next one begins anew");
	cr_assert_eq(count_notes(HMM_OP_OPEN), 2);
	cr_assert_eq(count_notes(HMM_OP_REOPEN), 0);
	script_end();
}

Test(outage, a_goodbye_that_the_ledger_does_not_agree_with)
{
	script_begin();
	script->ends[1].at = HMM_OP_EXPORT;
	script->ends[1].goodbye = true;
	script->away = 0x7f0000000000;
	check_is_reopened();
	script_end();
}

Test(outage, a_goodbye_before_hello_of_one_that_came_after_a_crash)
{
	script_begin();
	script->ends[1].at = HMM_OP_EXPORT;
	script->ends[2].at = HMM_OP_HELLO;
	script->ends[2].goodbye = true;
	check_is_reopened();
	script_end();
}

Test(outage, a_goodbye_of_one_that_was_told_and_did_not_answer)
{
	script_begin();
	script->ends[1].at = HMM_OP_EXPORT;
	script->ends[2].at = HMM_OP_REOPEN;
	script->ends[2].goodbye = true;
	check_is_reopened();
	script_end();
}

/* The first that it came to; the next one was killed. */
Test(outage, a_goodbye_before_anything_was_opened)
{
	script_begin();
	script->ends[1].at = HMM_OP_HELLO;
	script->ends[1].goodbye = true;
	script->ends[2].at = HMM_OP_EXPORT;
	check_is_reopened();
	script_end();
}

static void *ask_in_vain(void *argument)
{
	cr_assert_eq(hmm_export(hmm), -ESTALE);
	return NULL;
}

/* It only hung up. It has the owner still, reads its events and brings its pages home: the rescuer must not do so, too. */
Test(outage, nobody_is_rescued_from_an_hmmd_that_lives)
{
	struct hmm_open_options options = { .size = sizeof(options) };
	uint32_t before;
	pthread_t thread;

	script_begin();
	options.socket = script_path;
	script->grace_ms = (uint32_t)scaled_ms(100);
	script->ends[1].at = HMM_OP_EXPORT;
	script->holds = true;
	cr_assert_eq(hmm_open(&options, &hmm), 0, "%s", hmm_last_error());
	cr_assert_eq(pthread_create(&thread, NULL, ask_in_vain, NULL), 0);
	while (!(before = *(volatile uint32_t *)&script->connections) || before == 1)
		usleep(1000);
	usleep((useconds_t)scaled_ms(400) * 1000);
	cr_assert_eq(__atomic_load_n(&hmm->lost, __ATOMIC_ACQUIRE), 0);
	cr_assert_gt(*(volatile uint32_t *)&script->connections, before, "it asks again and again");
	cr_assert_lt(*(volatile uint32_t *)&script->connections, before + 200, "but not all the time");
	/* Now there is none. */
	script_kill();
	cr_assert_eq(pthread_join(thread, NULL), 0);
	hmm_close(hmm);
	script_end();
}

/* ---- threads that meet just where it hurts -------------------------------------------- */

/*
 * The library's system calls come by here. A thread is held up at one of them until the others are where
 * the test wants them, which a scheduler does once in a million.
 */
static struct {
	bool at_close;			/* the receiver, closing the socket, until the clerk wants to send */
	bool at_wake;			/* the receiver, having let the clerk send, for a moment */
	bool at_send;			/* the clerk, waiting to send, until the next hmmd has taken over */
	bool at_sleep;			/* this thread, asleep in a call, until then */
	pthread_t program;
	uint32_t closing;		/* the receiver is there */
} hold;

static bool thread_is(const char *name)
{
	char mine[16] = "";

	prctl(PR_GET_NAME, mine);
	return !strcmp(mine, name);
}

static void wait_for_next_hmmd(void)
{
	struct connection *connection = hmm->connection;
	bool up = false;

	while (!up) {
		usleep(1000);
		futex_lock(&connection->lock);
		up = connection->state == CONNECTION_UP && connection->round == 2;
		futex_unlock(&connection->lock);
	}
}

static long raw_syscall(long number, const long *a)
{
	register long r10 __asm__("r10") = a[3];
	register long r8 __asm__("r8") = a[4];
	register long r9 __asm__("r9") = a[5];
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

long syscall(long number, ...)
{
	bool futex = number == SYS_futex, wait, wake;
	const uint32_t *send_lock = hmm ? &hmm->connection->send_lock.word : NULL;
	long a[6], result;
	va_list list;

	va_start(list, number);
	for (unsigned int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	wait = futex && a[1] == FUTEX_WAIT_PRIVATE;
	wake = futex && a[1] == FUTEX_WAKE_PRIVATE;
	if (wait && hold.at_send && (const uint32_t *)a[0] == send_lock && thread_is("hmm-clerk")) {
		hold.at_send = false;
		wait_for_next_hmmd();
		return 0;
	}
	if (wait && a[2] != 2 && hold.at_sleep && pthread_equal(pthread_self(), hold.program)) {
		hold.at_sleep = false;
		__atomic_store_n(&script->program_waits, 1, __ATOMIC_RELEASE);
		result = raw_syscall(number, a);
		wait_for_next_hmmd();
		return result;
	}
	result = raw_syscall(number, a);
	if (wake && hold.at_wake && (const uint32_t *)a[0] == send_lock && thread_is("hmm-connection")) {
		hold.at_wake = false;
		usleep(100000);
	}
	return result;
}

int close(int fd)
{
	const long arguments[6] = { fd };

	if (hold.at_close && thread_is("hmm-connection") && fd == hmm->connection->fd) {
		hold.at_close = false;
		__atomic_store_n(&hold.closing, 1, __ATOMIC_RELEASE);
		while (__atomic_load_n(&hmm->connection->send_lock.word, __ATOMIC_ACQUIRE) != 2)
			usleep(1000);
	}
	return (int)raw_syscall(SYS_close, arguments);
}

static void *read_in_between(void *argument)
{
	while (!__atomic_load_n(&hold.closing, __ATOMIC_ACQUIRE))
		usleep(1000);
	check_read();
	return NULL;
}

/* A read is under way as the connection goes, and another comes while it is being closed. */
static void read_while_it_breaks(void)
{
	pthread_t thread;

	script->die_at_read = 1;
	cr_assert_eq(pthread_create(&thread, NULL, read_in_between, NULL), 0);
	check_read();
	cr_assert_eq(pthread_join(thread, NULL), 0);
	memset(&hold, 0, sizeof(hold));
}

Test(outage, nothing_is_sent_where_no_connection_is)
{
	script_begin();
	be_driver();
	hold.at_close = hold.at_wake = true;
	read_while_it_breaks();
	stop_being_driver();
	script_end();
}

Test(outage, a_request_that_waits_to_be_sent_names_what_the_next_hmmd_knows)
{
	script_begin();
	be_driver();
	hold.at_close = hold.at_send = true;
	read_while_it_breaks();
	cr_assert_eq(script->strange_reads, 0);
	stop_being_driver();
	script_end();
}

Test(outage, a_ring_that_was_closed_stays_closed)
{
	struct hmm_event_options options = { .size = sizeof(options) };
	struct hmm_events *events, *other;

	script_begin();
	be_driver();
	cr_assert_eq(hmm_event_open(hmm, &options, &events), 0, "%s", hmm_last_error());
	cr_assert_eq(hmm_event_open(hmm, &options, &other), 0, "%s", hmm_last_error());
	script->die_at_close = true;
	hold.program = pthread_self();
	hold.at_sleep = true;
	hmm_event_close(events);
	cr_assert_eq(hold.at_sleep, false);
	check_read();
	cr_assert_eq(script->rings, 1, "%u rings are open, not one", script->rings);
	hmm_event_close(other);
	cr_assert_eq(script->rings, 0);
	stop_being_driver();
	script_end();
}
