// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * log.c - lines on their way to stderr.
 *
 * A caller claims a slot of the ring, prints into it and marks it full; the
 * log thread takes slots in order and writes them, several at a time. Slots carry
 * sequence numbers (the bounded queue of many producers and one consumer), so
 * no caller ever holds a lock or waits for another. A full ring drops the
 * line and counts it; the writer then says how many are missing.
 *
 * What can fail: the thread cannot start (log_init says so), stderr is closed
 * or broken (lines are lost, hmmd goes on), stderr blocks (only the log
 * thread waits; log_deinit gives up on it after a second).
 *
 * Thread: any. The log thread runs with every signal blocked.
 */
#include "log.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "privileges.h"

#define LOG_SLOTS 1024
#define LOG_BATCH 16384

struct log_slot {
	_Atomic uint32_t sequence;	/* == index: free; == index + 1: full */
	uint16_t length;
	uint8_t level;
	struct timespec when;
	char text[LOG_LINE_MAX];
};

static struct {
	struct log_slot slots[LOG_SLOTS];
	_Atomic uint32_t head;		/* next slot to claim */
	uint32_t tail;			/* next slot to write; the log thread's */
	_Atomic uint32_t bell;		/* futex: bumped by whoever wakes the thread */
	_Atomic bool asleep;
	_Atomic bool stop;
	_Atomic bool running;
	_Atomic uint64_t dropped;
	uint64_t reported;		/* of those; the log thread's */
	_Atomic int level;
	bool journal;			/* stderr is the journal: priorities, no time of our own */
	pthread_t thread;
} ring = { .level = LOG_LEVEL_INFO };

static const struct {
	const char *word, *priority;
} level_style[] = {
	[LOG_LEVEL_ERROR] = { "error", "<3>" },
	[LOG_LEVEL_WARN] = { "warning", "<4>" },
	[LOG_LEVEL_INFO] = { "info", "<6>" },
	[LOG_LEVEL_DEBUG] = { "debug", "<7>" },
};

/* Whoever has the same terminal or pipe may have made it non-blocking: it is waited for as for any other. */
static void write_all(const char *data, size_t size)
{
	struct pollfd room = { .fd = STDERR_FILENO, .events = POLLOUT };

	while (size) {
		ssize_t n = write(STDERR_FILENO, data, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			poll(&room, 1, -1);
			continue;
		}
		if (n <= 0)
			return;
		data += n;
		size -= n;
	}
}

static size_t format_line(char *out, size_t room, enum log_level level, const struct timespec *when,
			  const char *text)
{
	struct tm tm;
	char stamp[32];
	int n;

	if (ring.journal) {
		n = snprintf(out, room, "%s%s\n", level_style[level].priority, text);
	} else {
		localtime_r(&when->tv_sec, &tm);
		strftime(stamp, sizeof(stamp), "%H:%M:%S", &tm);
		n = snprintf(out, room, "hmmd %s.%03ld %s: %s\n", stamp, when->tv_nsec / 1000000,
			     level_style[level].word, text);
	}
	return (size_t)n < room ? (size_t)n : room;
}

/* One batch of full slots, formatted. 0 when the ring is empty. */
static size_t take_batch(char *out)
{
	size_t used = 0;

	while (used + LOG_LINE_MAX + 64 <= LOG_BATCH) {
		struct log_slot *slot = &ring.slots[ring.tail % LOG_SLOTS];

		if (atomic_load_explicit(&slot->sequence, memory_order_acquire) != ring.tail + 1)
			break;
		used += format_line(out + used, LOG_BATCH - used, slot->level, &slot->when,
				    slot->text);
		atomic_store_explicit(&slot->sequence, ring.tail + LOG_SLOTS, memory_order_release);
		ring.tail++;
	}
	return used;
}

static void report_drops(char *out)
{
	uint64_t dropped = atomic_load(&ring.dropped);
	struct timespec now;
	char text[80];

	if (dropped == ring.reported)
		return;
	clock_gettime(CLOCK_REALTIME, &now);
	snprintf(text, sizeof(text), "%llu log lines were dropped: stderr is too slow",
		 (unsigned long long)(dropped - ring.reported));
	ring.reported = dropped;
	write_all(out, format_line(out, LOG_BATCH, LOG_LEVEL_WARN, &now, text));
}

static void *log_thread(void *arg)
{
	static char batch[LOG_BATCH];

	/* It writes to what is open. */
	privileges_keep(PRIVILEGES_NONE);
	for (;;) {
		/*
		 * Read before the ring is: a line from before log_deinit() is in this batch then.
		 */
		bool stop = atomic_load(&ring.stop);
		uint32_t bell = atomic_load(&ring.bell);
		size_t used = take_batch(batch);

		if (used) {
			write_all(batch, used);
			report_drops(batch);
			continue;
		}
		if (stop)
			return arg;
		/* Announce sleep, then look once more: a line that came between rings the bell. */
		atomic_store(&ring.asleep, true);
		if (atomic_load(&ring.slots[ring.tail % LOG_SLOTS].sequence) != ring.tail + 1 &&
		    !atomic_load(&ring.stop))
			syscall(SYS_futex, &ring.bell, FUTEX_WAIT_PRIVATE, bell, NULL, NULL, 0);
		atomic_store(&ring.asleep, false);
	}
}

static void wake_thread(void)
{
	atomic_fetch_add(&ring.bell, 1);
	syscall(SYS_futex, &ring.bell, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void say(enum log_level level, const char *format, va_list args)
{
	int saved = errno;
	uint32_t head;
	struct log_slot *slot;

	if ((int)level > atomic_load_explicit(&ring.level, memory_order_relaxed))
		return;

	if (!atomic_load(&ring.running)) {
		char text[LOG_LINE_MAX], line[LOG_LINE_MAX + 64];
		struct timespec now;

		clock_gettime(CLOCK_REALTIME, &now);
		vsnprintf(text, sizeof(text), format, args);
		write_all(line, format_line(line, sizeof(line), level, &now, text));
		errno = saved;
		return;
	}

	head = atomic_load_explicit(&ring.head, memory_order_relaxed);
	for (;;) {
		uint32_t sequence;

		slot = &ring.slots[head % LOG_SLOTS];
		sequence = atomic_load_explicit(&slot->sequence, memory_order_acquire);
		if ((int32_t)(sequence - head) < 0) {
			atomic_fetch_add(&ring.dropped, 1);
			errno = saved;
			return;
		}
		if (sequence == head &&
		    atomic_compare_exchange_weak(&ring.head, &head, head + 1))
			break;
		if (sequence != head)
			head = atomic_load_explicit(&ring.head, memory_order_relaxed);
	}

	errno = saved;		/* for %m */
	vsnprintf(slot->text, sizeof(slot->text), format, args);
	slot->level = level;
	clock_gettime(CLOCK_REALTIME, &slot->when);
	atomic_store(&slot->sequence, head + 1);
	if (atomic_load(&ring.asleep))
		wake_thread();
	errno = saved;
}

#define DEFINE_LOG(name, level)				\
	void name(const char *format, ...)		\
	{						\
		va_list args;				\
							\
		va_start(args, format);			\
		say(level, format, args);		\
		va_end(args);				\
	}

DEFINE_LOG(log_error, LOG_LEVEL_ERROR)
DEFINE_LOG(log_warn, LOG_LEVEL_WARN)
DEFINE_LOG(log_info, LOG_LEVEL_INFO)
DEFINE_LOG(log_debug, LOG_LEVEL_DEBUG)

void log_set_level(enum log_level level)
{
	atomic_store(&ring.level, (int)level);
}

uint64_t log_dropped(void)
{
	return atomic_load(&ring.dropped);
}

int log_init(enum log_level level)
{
	sigset_t all, old;
	uint32_t i;
	int r;

	atomic_store(&ring.level, (int)level);
	atomic_store(&ring.head, 0);
	atomic_store(&ring.stop, false);
	ring.tail = 0;
	ring.reported = atomic_load(&ring.dropped);
	ring.journal = getenv("JOURNAL_STREAM") && !isatty(STDERR_FILENO);
	for (i = 0; i < LOG_SLOTS; i++)
		atomic_store(&ring.slots[i].sequence, i);

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&ring.thread, NULL, log_thread, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return -r;
	pthread_setname_np(ring.thread, "hmmd-log");
	atomic_store(&ring.running, true);
	return 0;
}

void log_deinit(void)
{
	struct timespec until;

	if (!atomic_exchange(&ring.running, false))
		return;
	atomic_store(&ring.stop, true);
	wake_thread();
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec++;
	if (pthread_timedjoin_np(ring.thread, NULL, &until))
		pthread_detach(ring.thread);
}
