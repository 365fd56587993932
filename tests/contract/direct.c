// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A read(2) with O_DIRECT in flight while its page migrates: the kernel writes to the page
 * it found when the read began, wherever that page is by then.
 *
 * The slow disk is a FUSE file system of one file, served by a child process, which holds
 * each READ until it is let go; it is mounted in a mount namespace of the test's own. (A
 * thread of the test could not serve it: an exiting process closes its files, and a close
 * waits for the file system's answer.) Needs root and FUSE. What can fail: bytes from the disk that the program never sees.
 */
#include "contract.h"

#include <linux/fuse.h>
#include <sys/mount.h>

#define FILE_NODE	2
#define FILE_SIZE	(16 * PAGE)
#define DISK_BYTE	0xaa

static struct disk {
	atomic_int reading;	/* a READ has arrived */
	atomic_int go;		/* it may be answered */
} *disk;

static int dev;			/* the server's end */
static pid_t server;

/* Ends the connection, whoever still waits for an answer goes on with an error. */
static void disk_end(void)
{
	if (server > 0)
		child_kill(server);
}

TestSuite(direct, .init = contract_begin, .fini = disk_end);

static void answer(uint64_t unique, int error, const void *body, size_t len)
{
	struct fuse_out_header head = {
		.len = (uint32_t)(sizeof(head) + len), .error = error, .unique = unique,
	};
	struct iovec iov[2] = { { &head, sizeof(head) }, { (void *)body, len } };

	if (writev(dev, iov, len ? 2 : 1) < 0)
		perror("FUSE answer");
}

static struct fuse_attr attributes(uint64_t node)
{
	return (struct fuse_attr){
		.ino = node, .nlink = 1, .blksize = PAGE,
		.mode = node == FUSE_ROOT_ID ? S_IFDIR | 0700 : S_IFREG | 0600,
		.size = node == FUSE_ROOT_ID ? 0 : FILE_SIZE,
	};
}

static void serve(struct fuse_in_header *in)
{
	static unsigned char bytes[FILE_SIZE];
	struct fuse_init_out init = {
		.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_write = PAGE,
	};
	struct fuse_entry_out entry = { .nodeid = FILE_NODE, .attr = attributes(FILE_NODE) };
	struct fuse_attr_out attr = { .attr = attributes(in->nodeid) };
	struct fuse_open_out open = { .open_flags = FOPEN_DIRECT_IO };
	struct fuse_read_in *read_in = (struct fuse_read_in *)(in + 1);

	switch (in->opcode) {
	case FUSE_INIT:
		answer(in->unique, 0, &init, sizeof(init));
		break;
	case FUSE_LOOKUP:
		answer(in->unique, 0, &entry, sizeof(entry));
		break;
	case FUSE_GETATTR:
		answer(in->unique, 0, &attr, sizeof(attr));
		break;
	case FUSE_OPEN:
		answer(in->unique, 0, &open, sizeof(open));
		break;
	case FUSE_READ:
		atomic_store(&disk->reading, 1);
		/* A reader can't be killed while it waits, so a failed test ends here. */
		for (int left = deadline_ms(); left && !atomic_load(&disk->go); left--)
			usleep(1000);
		memset(bytes, DISK_BYTE, sizeof(bytes));
		answer(in->unique, 0, bytes, read_in->size);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	default:
		answer(in->unique, in->opcode == FUSE_FLUSH || in->opcode == FUSE_RELEASE ?
		       0 : -ENOSYS, NULL, 0);
	}
}

static void disk_run(void *arg)
{
	static char request[FUSE_MIN_READ_BUFFER + 16 * PAGE] __attribute__((aligned(8)));

	while (read(dev, request, sizeof(request)) > 0 || errno == EINTR || errno == ENOENT)
		serve((struct fuse_in_header *)request);
}

/* The open file; the disk goes away with it. */
static int disk_open(void)
{
	char dir[] = "/tmp/hmm-disk-XXXXXX", options[128], path[64];
	int fd, reason = 0;

	require_root();
	dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		skip("no FUSE: %s", strerror(errno));
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		skip("no mount namespace: %s", strerror(errno));
	disk = map_shared(sizeof(*disk));
	cr_assert_not_null(mkdtemp(dir));
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", dev);
	if (mount("hmm-disk", dir, "fuse", MS_NOSUID | MS_NODEV, options)) {
		reason = errno;
		rmdir(dir);
		skip("cannot mount a FUSE file system: %s", strerror(reason));
	}
	server = child_start(disk_run, NULL);
	close(dev);
	snprintf(path, sizeof(path), "%s/file", dir);
	fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	reason = errno;
	/* The file stays open, its mount point need not. */
	umount2(dir, MNT_DETACH);
	rmdir(dir);
	cr_assert_geq(fd, 0, "open: %s", strerror(reason));
	return fd;
}

static void read_start(struct call *call, int file, char *mem)
{
	CALL(call, SYS_pread64, file, (long)mem, PAGE, 0);
	wait_until(atomic_load(&disk->reading));
}

static void read_end(struct call *call)
{
	atomic_store(&disk->go, 1);
	cr_assert_eq(call_end(call), PAGE);
}

Test(direct, read_arrives)
{
	int file = disk_open();
	char *mem = map_pages(1);
	struct call call;

	mem[0] = 1;
	read_start(&call, file, mem);
	read_end(&call);
	cr_assert_eq((unsigned char)mem[0], DISK_BYTE);
}

/* Base tier: protected, copied, zapped, all without an event, and the read is lost. */
Test(direct, protect_and_zap_loses_a_read_in_flight)
{
	int file = disk_open(), fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *mem = map_pages(1), device[PAGE];
	struct call call;

	mem[0] = 1;
	read_start(&call, file, mem);
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, true), 0);
	memcpy(device, mem, PAGE);
	cr_assert_eq(madvise(mem, PAGE, MADV_DONTNEED), 0);
	read_end(&call);
	cr_assert(no_event(fd));
	cr_assert_eq(uffd_copy(fd, mem, device, PAGE, 0), 0);
	cr_assert_eq(mem[0], 1, "read(2) said that the disk's bytes are here");
}

/*
 * Full tier: busy where the file system pins its pages. Where it takes a plain reference
 * the page moves with the read still in flight, and the bytes arrive in the slot.
 */
Test(direct, move_of_a_page_being_read)
{
	int file = disk_open(), fd = uffd_open(UFFD_FEATURE_MOVE), result;
	char *mem = map_pages(1), *slot = map_pages(1);
	struct call call;

	mem[0] = 1;
	cr_assert_eq(uffd_register(fd, slot, PAGE, MISSING), 0);
	read_start(&call, file, mem);
	result = uffd_move(fd, slot, mem, PAGE, 0);
	read_end(&call);
	fprintf(stderr, "MOVE of a page that FUSE reads into: %d\n", result);
	if (result == -EBUSY) {
		cr_assert_eq((unsigned char)mem[0], DISK_BYTE);
		wait_until(uffd_move(fd, slot, mem, PAGE, 0) == 0);
	} else {
		cr_assert_eq(result, 0);
	}
	cr_assert_eq((unsigned char)slot[0], DISK_BYTE);
}

/* The soft-dirty detector of pins sees a pinned page here as well, and no plain reference. */
Test(direct, soft_dirty_of_a_page_being_read)
{
	int file = disk_open(), refs;
	char *mem = map_pages(1);
	struct call call;
	bool shown;

	mem[0] = 1;
	if (!(pagemap(mem) & PM_SOFT_DIRTY))
		skip("this kernel has no soft-dirty bits");
	read_start(&call, file, mem);
	refs = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	cr_assert_eq(write(refs, "4", 1), 1);
	shown = pagemap(mem) & PM_SOFT_DIRTY;
	read_end(&call);
	cr_assert_eq((unsigned char)mem[0], DISK_BYTE);
	fprintf(stderr, "a page that FUSE reads into shows as pinned: %d\n", shown);
	if (!shown)
		cr_assert_not(pagemap(mem) & PM_SOFT_DIRTY, "written, and the bit says it was not");
}
