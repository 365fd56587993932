// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * handler.c - the bare handler: what a fault costs at least when another
 * process serves it.
 *
 * The child fills its own resident copy, then polls the userfaultfd, reads one
 * message at a time as it comes, copies and goes on; it keeps no state and
 * takes no decision. It waits in the same way as hmmd's worker: after an event
 * it looks again without sleeping for spin_us. What can fail ends the child;
 * the parent then sees its range never served and its pipe closed.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/rig/rig.h"

#define MESSAGES 16

static void serve_fault(const struct handler *handler, const char *source, unsigned int around,
			uint64_t addr)
{
	unsigned long length = around * PAGE;
	unsigned long at = ((addr & ~(PAGE - 1)) - (unsigned long)handler->range) / length * length;
	struct uffdio_copy copy = {
		.dst = (unsigned long)handler->range + at,
		.src = (unsigned long)source + at,
		.len = length < handler->bytes - at ? length : handler->bytes - at,
	};

	if (ioctl(handler->uffd, UFFDIO_COPY, &copy) < 0)
		fail("UFFDIO_COPY: %s", strerror(errno));
}

struct serving {
	const struct handler *handler;
	int cpu;
	unsigned int spin_us;
};

static void serve(int commands, const void *data)
{
	const struct serving *serving = data;
	const struct handler *handler = serving->handler;
	const unsigned int spin_us = serving->spin_us;
	char *source;
	struct pollfd fds[] = {
		{ .fd = handler->uffd, .events = POLLIN },
		{ .fd = commands, .events = POLLIN },
	};
	unsigned int around = 1;
	uint64_t spin_until = 0;

	pin(serving->cpu);
	source = memory_new(handler->bytes, true);
	for (;;) {
		int timeout = spin_us && now_ns() < spin_until ? 0 : -1;

		if (poll(fds, 2, timeout) < 0)
			fail("poll: %s", strerror(errno));
		if (fds[1].revents) {
			if (read(commands, &around, sizeof(around)) != sizeof(around))
				_exit(0);
			if (write(commands, &around, sizeof(around)) != sizeof(around))
				_exit(0);
		}
		if (fds[0].revents) {
			struct uffd_msg messages[MESSAGES];
			ssize_t n = read(handler->uffd, messages, sizeof(messages));

			for (ssize_t i = 0; i < n / (ssize_t)sizeof(messages[0]); i++)
				serve_fault(handler, source, around, messages[i].arg.pagefault.address);
			spin_until = now_ns() + spin_us * 1000ULL;
		}
	}
}

void handler_start(struct handler *handler, size_t bytes, int cpu, unsigned int spin_us)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	const struct serving serving = { handler, cpu, spin_us };

	handler->bytes = bytes;
	handler->range = memory_new(bytes, true);
	handler->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (handler->uffd < 0 || ioctl(handler->uffd, UFFDIO_API, &api) < 0)
		fail("userfaultfd: %s", strerror(errno));
	range.range.start = (unsigned long)handler->range;
	range.range.len = bytes;
	if (ioctl(handler->uffd, UFFDIO_REGISTER, &range) < 0)
		fail("UFFDIO_REGISTER: %s", strerror(errno));
	madvise(handler->range, bytes, MADV_DONTNEED);
	handler->pid = process_start(serve, &serving, &handler->commands);
	handler_reset(handler, 1);
}

void handler_reset(struct handler *handler, unsigned int around)
{
	madvise(handler->range, handler->bytes, MADV_DONTNEED);
	if (write(handler->commands, &around, sizeof(around)) != sizeof(around) ||
	    read(handler->commands, &around, sizeof(around)) != sizeof(around))
		fail("the bare handler ended");
}

void handler_stop(struct handler *handler)
{
	close(handler->commands);
	waitpid(handler->pid, NULL, 0);
	close(handler->uffd);
	munmap(handler->range, handler->bytes);
}
