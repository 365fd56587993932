// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the kernel contract tests share: see contract.h.
 *
 * Calls into the kernel give 0 or a negative errno; whatever only prepares the
 * ground (mmap, memfd_create, a thread) fails the test at once. Runs in the test's
 * own process; nothing here touches a setting of the machine.
 */
#include "contract.h"

#include <grp.h>

#define DEADLINE_S	20

static int scale(void)
{
	const char *env = getenv("HMM_TEST_SCALE");
	int value = env ? atoi(env) : 1;

	return value > 0 ? value : 1;
}

int deadline_ms(void)
{
	return DEADLINE_S * 1000 * scale();
}

void contract_begin(void)
{
	alarm(3 * DEADLINE_S * scale());
}

/* ---- memory ------------------------------------------------------------- */

static void *map(size_t len, int prot, int flags, int fd, off_t offset)
{
	void *addr = mmap(NULL, len, prot, flags, fd, offset);

	cr_assert_neq(addr, MAP_FAILED, "mmap of %zu bytes: %s", len, strerror(errno));
	return addr;
}

void *map_pages(size_t pages)
{
	/*
	 * A hole of one page on either side keeps the kernel from merging two of a
	 * test's mappings into one, and so a test's ranges apart.
	 */
	char *addr = map((pages + 2) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);

	cr_assert_eq(munmap(addr, PAGE), 0);
	cr_assert_eq(munmap(addr + (pages + 1) * PAGE, PAGE), 0);
	madvise(addr + PAGE, pages * PAGE, MADV_NOHUGEPAGE);
	return addr + PAGE;
}

static char *align(char *addr)
{
	return (char *)(((uintptr_t)addr + BLOCK - 1) & ~(BLOCK - 1));
}

void *map_blocks(size_t blocks)
{
	size_t len = (blocks + 2) * BLOCK;
	char *addr = map(len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *start = align(addr + 1);
	char *end = start + blocks * BLOCK;

	cr_assert_eq(munmap(addr, (size_t)(start - addr)), 0);
	cr_assert_eq(munmap(end, (size_t)(addr + len - end)), 0);
	return start;
}

void *map_huge(int value)
{
	char *addr = map_blocks(1);

	if (setting_is("/sys/kernel/mm/transparent_hugepage/enabled", "never"))
		skip("transparent huge pages are off");
	cr_assert_eq(madvise(addr, BLOCK, MADV_HUGEPAGE), 0);
	memset(addr, value, BLOCK);
	for (int left = 2000; !is_huge(addr) && collapse(addr) && left; left--)
		usleep(1000);
	if (!is_huge(addr))
		skip("no huge page to be had: memory is fragmented");
	return addr;
}

int collapse(void *block)
{
	return madvise(block, BLOCK, MADV_COLLAPSE) ? -errno : 0;
}

void no_huge_page(long error)
{
	cr_assert(error == -ENOMEM || error == -EAGAIN || error == -EBUSY, "MADV_COLLAPSE: %s",
		  strerror((int)-error));
	skip("no huge page to be had: memory is fragmented");
}

void *map_shared(size_t bytes)
{
	return map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

int memfd_new(const char *name, off_t size, unsigned int flags)
{
	int fd = memfd_create(name, MFD_CLOEXEC | flags);

	cr_assert_geq(fd, 0, "memfd_create: %s", strerror(errno));
	cr_assert_eq(ftruncate(fd, size), 0, "ftruncate: %s", strerror(errno));
	return fd;
}

void *map_memfd(int fd, size_t bytes, off_t offset)
{
	return map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, offset);
}

void *map_memfd_aligned(int fd, size_t bytes, off_t offset)
{
	char *room = map(bytes + BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			 -1, 0);
	void *addr = mmap(align(room), bytes, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, offset);

	cr_assert_neq(addr, MAP_FAILED, "mmap of a memfd: %s", strerror(errno));
	return addr;
}

int punch(int fd, off_t offset, off_t len)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, len) ? -errno : 0;
}

bool file_has(int fd, off_t offset)
{
	return lseek(fd, offset, SEEK_DATA) == offset;
}

long file_kib(int fd)
{
	struct stat st;

	cr_assert_eq(fstat(fd, &st), 0);
	return (long)st.st_blocks / 2;
}

uint64_t pagemap_read(int pagemap_fd, const volatile void *addr)
{
	uint64_t entry = 0;
	off_t offset = (off_t)((uintptr_t)addr / PAGE * sizeof(entry));

	cr_assert_eq(pread(pagemap_fd, &entry, sizeof(entry), offset), sizeof(entry));
	return entry;
}

uint64_t pagemap(const volatile void *addr)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = pagemap_read(fd, addr);

	close(fd);
	return entry;
}

long smaps_kib(const void *addr, const char *field)
{
	FILE *file = fopen("/proc/self/smaps", "re");
	unsigned long start, end, kib;
	char line[512], name[64];
	bool inside = false;
	long found = -1;

	cr_assert_not_null(file);
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = (uintptr_t)addr >= start && (uintptr_t)addr < end;
		else if (inside && sscanf(line, "%63[^:]: %lu kB", name, &kib) == 2 &&
			 !strcmp(name, field))
			found = (long)kib;
	}
	fclose(file);
	return found;
}

bool is_huge(const void *addr)
{
	return smaps_kib(addr, "AnonHugePages") > 0;
}

bool read_setting(const char *path, char *value, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got;

	if (fd < 0)
		return false;
	got = read(fd, value, size - 1);
	close(fd);
	if (got < 0)
		return false;
	value[got] = '\0';
	value[strcspn(value, "\n")] = '\0';
	return true;
}

bool setting_is(const char *path, const char *selected)
{
	char value[256], choice[64];

	if (!read_setting(path, value, sizeof(value)))
		return false;
	snprintf(choice, sizeof(choice), "[%s]", selected);
	return !strcmp(value, selected) || strstr(value, choice);
}

/* ---- userfaultfd --------------------------------------------------------- */

int uffd_new(void)
{
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd = -1;

	if (dev >= 0) {
		fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(dev);
	}
	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		skip("no userfaultfd for this user: %s", strerror(errno));
	return fd;
}

int uffd_api(int fd, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	return ioctl(fd, UFFDIO_API, &api) ? -errno : 0;
}

uint64_t uffd_features(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = uffd_new();

	cr_assert_eq(ioctl(fd, UFFDIO_API, &api), 0);
	close(fd);
	return api.features;
}

int uffd_open(uint64_t features)
{
	uint64_t lacking = features & ~uffd_features();
	int fd;

	if (lacking)
		skip("this kernel's userfaultfd lacks feature 0x%llx", (unsigned long long)lacking);
	fd = uffd_new();
	cr_assert_eq(uffd_api(fd, features), 0, "UFFDIO_API: %s", strerror(errno));
	return fd;
}

int uffd_register(int fd, void *addr, size_t len, uint64_t mode)
{
	struct uffdio_register reg = { .range = { (uintptr_t)addr, len }, .mode = mode };

	return ioctl(fd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

int uffd_unregister(int fd, void *addr, size_t len)
{
	struct uffdio_range range = { (uintptr_t)addr, len };

	return ioctl(fd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

int uffd_copy_done(int fd, void *dst, const void *src, size_t len, uint64_t mode, int64_t *done)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)dst, .src = (uintptr_t)src, .len = len, .mode = mode,
	};
	int result = ioctl(fd, UFFDIO_COPY, &copy) ? -errno : 0;

	*done = copy.copy;
	return result;
}

int uffd_copy(int fd, void *dst, const void *src, size_t len, uint64_t mode)
{
	int64_t done;

	return uffd_copy_done(fd, dst, src, len, mode, &done);
}

int uffd_zeropage(int fd, void *dst, size_t len)
{
	struct uffdio_zeropage zero = { .range = { (uintptr_t)dst, len } };

	return ioctl(fd, UFFDIO_ZEROPAGE, &zero) ? -errno : 0;
}

int uffd_move_done(int fd, void *dst, const void *src, size_t len, uint64_t mode, int64_t *done)
{
	struct uffdio_move move = {
		.dst = (uintptr_t)dst, .src = (uintptr_t)src, .len = len, .mode = mode,
	};
	int result = ioctl(fd, UFFDIO_MOVE, &move) ? -errno : 0;

	*done = move.move;
	return result;
}

int uffd_move(int fd, void *dst, const void *src, size_t len, uint64_t mode)
{
	int64_t done;

	return uffd_move_done(fd, dst, src, len, mode, &done);
}

int uffd_wp(int fd, void *addr, size_t len, bool protect)
{
	struct uffdio_writeprotect wp = {
		.range = { (uintptr_t)addr, len },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(fd, UFFDIO_WRITEPROTECT, &wp) ? -errno : 0;
}

int uffd_wake(int fd, void *addr, size_t len)
{
	struct uffdio_range range = { (uintptr_t)addr, len };

	return ioctl(fd, UFFDIO_WAKE, &range) ? -errno : 0;
}

int uffd_poison(int fd, void *addr, size_t len)
{
	struct uffdio_poison poison = { .range = { (uintptr_t)addr, len } };

	return ioctl(fd, UFFDIO_POISON, &poison) ? -errno : 0;
}

int uffd_continue(int fd, void *addr, size_t len, uint64_t mode)
{
	struct uffdio_continue arg = { .range = { (uintptr_t)addr, len }, .mode = mode };

	return ioctl(fd, UFFDIO_CONTINUE, &arg) ? -errno : 0;
}

struct uffd_msg next_event(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	struct uffd_msg msg;

	cr_assert_eq(poll(&pfd, 1, deadline_ms()), 1, "no event of the userfaultfd came");
	cr_assert_eq(read(fd, &msg, sizeof(msg)), sizeof(msg), "read: %s", strerror(errno));
	return msg;
}

bool no_event(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, 0) == 0;
}

struct uffd_msg expect_event(int fd, uint8_t event)
{
	struct uffd_msg msg = next_event(fd);

	cr_assert_eq(msg.event, event, "event 0x%x instead of 0x%x", msg.event, event);
	return msg;
}

struct uffd_msg expect_fault(int fd, const volatile void *addr, uint64_t flags)
{
	struct uffd_msg msg = expect_event(fd, UFFD_EVENT_PAGEFAULT);
	uint64_t page = (uintptr_t)addr & ~(PAGE - 1);

	cr_assert_eq(msg.arg.pagefault.address & ~(PAGE - 1), page, "fault at 0x%llx, not 0x%llx",
		     (unsigned long long)msg.arg.pagefault.address, (unsigned long long)page);
	cr_assert_eq(msg.arg.pagefault.flags, flags, "fault flags 0x%llx instead of 0x%llx",
		     (unsigned long long)msg.arg.pagefault.flags, (unsigned long long)flags);
	return msg;
}

/* ---- threads -------------------------------------------------------------- */

static void *call_run(void *arg)
{
	struct call *call = arg;

	atomic_store(&call->tid, (int)syscall(SYS_gettid));
	if (call->addr && call->store >= 0) {
		*call->addr = (unsigned char)call->store;
	} else if (call->addr) {
		call->value = *call->addr;
		call->result = call->value;
	} else {
		call->result = syscall(call->nr, call->arg[0], call->arg[1], call->arg[2],
				       call->arg[3], call->arg[4], call->arg[5]);
		if (call->result == -1)
			call->result = -errno;
	}
	atomic_store(&call->done, 1);
	return NULL;
}

static void call_go(struct call *call)
{
	cr_assert_eq(pthread_create(&call->thread, NULL, call_run, call), 0);
}

void call_start(struct call *call, long nr, const long arg[6])
{
	*call = (struct call){ .nr = nr, .store = -1 };
	memcpy(call->arg, arg, sizeof(call->arg));
	call_go(call);
}

void load_start(struct call *call, volatile void *addr)
{
	*call = (struct call){ .addr = addr, .store = -1 };
	call_go(call);
}

void store_start(struct call *call, volatile void *addr, int value)
{
	*call = (struct call){ .addr = addr, .store = value };
	call_go(call);
}

long call_end(struct call *call)
{
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += deadline_ms() / 1000;
	cr_assert_eq(pthread_timedjoin_np(call->thread, NULL, &end), 0, "the thread never came back");
	return call->result;
}

bool still_blocked(struct call *call)
{
	usleep(20000);
	return !atomic_load(&call->done);
}

/* ---- processes ------------------------------------------------------------ */

pid_t child_start(void (*run)(void *arg), void *arg)
{
	pid_t pid = fork();

	cr_assert_geq(pid, 0);
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	contract_begin();
	run(arg);
	_exit(0);
}

int child_end(pid_t pid)
{
	struct pollfd pfd = { .fd = pidfd_open(pid, 0), .events = POLLIN };
	int status = -1;

	cr_assert_geq(pfd.fd, 0);
	cr_assert_eq(poll(&pfd, 1, deadline_ms()), 1, "child %d does not end", pid);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	close(pfd.fd);
	return status;
}

void child_kill(pid_t pid)
{
	kill(pid, SIGKILL);
	child_end(pid);
}

void send_fd(int sock, int fd)
{
	char byte = 'f';
	struct iovec iov = { &byte, 1 };
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr head;
	} control = { { 0 } };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};

	control.head = (struct cmsghdr){
		.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
	};
	memcpy(CMSG_DATA(&control.head), &fd, sizeof(int));
	if (sendmsg(sock, &msg, MSG_NOSIGNAL) != 1)
		_exit(98);
}

int recv_fd(int sock)
{
	struct pollfd pfd = { .fd = sock, .events = POLLIN };
	char byte;
	struct iovec iov = { &byte, 1 };
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr head;
	} control = { { 0 } };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	int fd = -1;

	if (poll(&pfd, 1, deadline_ms()) == 1 && recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) == 1 &&
	    msg.msg_controllen)
		memcpy(&fd, CMSG_DATA(&control.head), sizeof(int));
	return fd;
}

void require_root(void)
{
	if (geteuid() != 0)
		skip("needs root");
}

void become_nobody(void)
{
	child_check(setgroups(0, NULL) == 0);
	child_check(setgid(65534) == 0);
	child_check(setuid(65534) == 0);
	/* setuid(2) clears it, and /proc/self would belong to root then. */
	prctl(PR_SET_DUMPABLE, 1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}
