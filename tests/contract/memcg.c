// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Whose memory cgroup pays for a page that UFFDIO_COPY brings home: the owner's. A copy
 * past its limit gets the owner killed, so bulk moves home look at the headroom first.
 *
 * Makes a cgroup of its own below the root of the hierarchy and removes it again; no
 * setting of anybody else's changes. Needs root and a memory controller.
 */
#include "contract.h"

#define LIMIT	(64UL << 20)
#define AREA	(128UL << 20)

static char group[128];
static bool unified;
static pid_t owner;

static bool write_to(const char *file, const char *value)
{
	char path[256];
	int fd;
	bool ok;

	snprintf(path, sizeof(path), "%s/%s", group, file);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	ok = fd >= 0 && write(fd, value, strlen(value)) == (ssize_t)strlen(value);
	close(fd);
	return ok;
}

static unsigned long usage(void)
{
	char path[256], value[64];

	snprintf(path, sizeof(path), "%s/%s", group,
		 unified ? "memory.current" : "memory.usage_in_bytes");
	return read_setting(path, value, sizeof(value)) ? strtoul(value, NULL, 10) : 0;
}

static void group_end(void)
{
	int left = deadline_ms();

	if (owner > 0)
		kill(owner, SIGKILL);
	while (group[0] && rmdir(group) && errno == EBUSY && left--)
		usleep(1000);
}

TestSuite(memcg, .init = contract_begin, .fini = group_end);

static void group_begin(void)
{
	char limit[32];

	require_root();
	snprintf(limit, sizeof(limit), "%lu", LIMIT);
	snprintf(group, sizeof(group), "/sys/fs/cgroup/memory/hmmd-test-%d", getpid());
	if (mkdir(group, 0755) == 0 && write_to("memory.limit_in_bytes", limit))
		return;
	rmdir(group);
	unified = true;
	snprintf(group, sizeof(group), "/sys/fs/cgroup/hmmd-test-%d", getpid());
	if (mkdir(group, 0755) == 0 && write_to("memory.max", limit)) {
		write_to("memory.swap.max", "0");
		return;
	}
	rmdir(group);
	group[0] = '\0';
	skip("no memory controller to make a cgroup with");
}

struct limited {
	int sock;
	char *mem;
};

static void owner_in_the_group(void *arg)
{
	struct limited *limited = arg;
	char pid[16];
	int fd = uffd_open(0);

	snprintf(pid, sizeof(pid), "%d", getpid());
	child_check(write_to("cgroup.procs", pid));
	child_check(uffd_register(fd, limited->mem, AREA, MISSING) == 0);
	send_fd(limited->sock, fd);
	pause();
}

Test(memcg, copy_is_charged_to_the_owner)
{
	struct limited limited;
	int sock[2], fd, status, result = 0;
	char *bytes = map_pages(256);
	unsigned long before;

	group_begin();
	memset(bytes, 7, 256 * PAGE);
	limited.mem = mmap(NULL, AREA, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	madvise(limited.mem, AREA, MADV_NOHUGEPAGE);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	limited.sock = sock[1];
	owner = child_start(owner_in_the_group, &limited);
	fd = recv_fd(sock[0]);
	cr_assert_geq(fd, 0);
	before = usage();
	for (size_t mib = 0; mib < 16; mib++)
		cr_assert_eq(uffd_copy(fd, limited.mem + (mib << 20), bytes, 1UL << 20, 0), 0);
	cr_assert_geq(usage() - before, 15UL << 20);
	/* Past the limit: COPY fails, and the owner, who did nothing, is killed. */
	for (size_t mib = 16; mib < AREA >> 20 && !result; mib++)
		result = uffd_copy(fd, limited.mem + (mib << 20), bytes, 1UL << 20, 0);
	cr_assert_lt(result, 0);
	status = child_end(owner);
	owner = 0;
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status 0x%x", status);
}
