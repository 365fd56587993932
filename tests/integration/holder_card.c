// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * holder_card.c - `holder_card ADDRESS GROUP`: the holder with a real card.
 *
 * An hmmd (a child) opens the card, maps a page for it, lets it start transfers
 * and is killed. A driver has a duplicate of the device all the time, so that
 * nothing of it would end by itself. The next hmmd finds the card as it was:
 * the same open files, its group in its container; but it reaches nothing and
 * may start nothing. vfio_cards.py runs it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel/kernel.h"
#include "memory/holder.h"

#define IOVA		UINT64_C(0x7f1234560000)
#define LENGTH		UINT64_C(0x1000)

#define check(what)                                                                                \
	do {                                                                                       \
		if (!(what)) {                                                                     \
			fprintf(stderr, "line %d: not so: %s (%m)\n", __LINE__, #what);            \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static const char *address, *group;

static struct holder *new_holder(const char *socket)
{
	struct holder_options options = { .socket = socket };
	struct holder *holder = NULL;

	check(holder_new(&options, &holder) == 0);
	return holder;
}

static void open_card(int fds[3])
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	char path[64];

	snprintf(path, sizeof(path), "/dev/vfio/%s", group);
	fds[HOLDER_CONTAINER] = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	fds[HOLDER_GROUP] = open(path, O_RDWR | O_CLOEXEC);
	check(fds[HOLDER_CONTAINER] >= 0 && fds[HOLDER_GROUP] >= 0);
	check(ioctl(fds[HOLDER_GROUP], VFIO_GROUP_GET_STATUS, &status) == 0);
	check(status.flags & VFIO_GROUP_FLAGS_VIABLE);
	check(ioctl(fds[HOLDER_GROUP], VFIO_GROUP_SET_CONTAINER, &fds[HOLDER_CONTAINER]) == 0);
	check(ioctl(fds[HOLDER_CONTAINER], VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
	fds[HOLDER_DEVICE] = ioctl(fds[HOLDER_GROUP], VFIO_GROUP_GET_DEVICE_FD, address);
	check(fds[HOLDER_DEVICE] >= 0);
}

static int map(int container, void *page)
{
	struct vfio_iommu_type1_dma_map dma = {
		.argsz = sizeof(dma), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)page, .iova = IOVA, .size = LENGTH,
	};

	return ioctl(container, VFIO_IOMMU_MAP_DMA, &dma) ? -errno : 0;
}

static int is_master(int device)
{
	struct vfio_region_info region = {
		.argsz = sizeof(region), .index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	uint16_t command = 0;

	check(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0);
	check(pread(device, &command, sizeof(command), (off_t)region.offset + PCI_COMMAND) ==
	      sizeof(command));
	return !!(command & PCI_COMMAND_MASTER);
}

static void give(int socket, int fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {
		.header.cmsg_level = SOL_SOCKET,
		.header.cmsg_type = SCM_RIGHTS,
		.header.cmsg_len = CMSG_LEN(sizeof(int)),
	};
	struct iovec iov = { .iov_base = "d", .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	check(sendmsg(socket, &message, 0) == 1);
}

static int take(int socket)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	char byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	int fd;

	check(recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == 1);
	check(CMSG_FIRSTHDR(&message));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

static void be_hmmd(const char *socket, int driver)
{
	void *page = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	struct holder *holder = new_holder(socket);
	int fds[3];

	open_card(fds);
	check(holder_keep(holder, address, fds, 3) == 0);
	check(map(fds[HOLDER_CONTAINER], page) == 0);
	check(map(fds[HOLDER_CONTAINER], page) == -EEXIST);
	check(kernel->vfio_master(fds[HOLDER_DEVICE], true) == 0);
	check(is_master(fds[HOLDER_DEVICE]));
	give(driver, fds[HOLDER_DEVICE]);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	char folder[] = "/tmp/holder-card.XXXXXX", socket[64];
	struct vfio_group_status status = { .argsz = sizeof(status) };
	int pair[2], driver, fds[3];
	struct holder *holder;
	void *page;
	pid_t hmmd;

	if (argc > 1 && !strcmp(argv[1], HOLDER_ARGUMENT))
		return holder_main(argc, argv);
	check(argc == 3);
	address = argv[1];
	group = argv[2];
	check(mkdtemp(folder));
	snprintf(socket, sizeof(socket), "%s/hmmd.sock", folder);
	check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	hmmd = fork();
	if (!hmmd)
		be_hmmd(socket, pair[1]);
	close(pair[1]);
	driver = take(pair[0]);
	check(is_master(driver));
	kill(hmmd, SIGKILL);
	waitpid(hmmd, NULL, 0);

	holder = new_holder(socket);
	check(!is_master(driver));
	check(holder_name(holder, 0) && !strcmp(holder_name(holder, 0), address));
	check(holder_take(holder, address, fds, 3) == 3);
	check(ioctl(fds[HOLDER_GROUP], VFIO_GROUP_GET_STATUS, &status) == 0);
	check(status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET);
	page = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE,
		    -1, 0);
	/* Nothing is there any more: EEXIST would say otherwise. */
	check(map(fds[HOLDER_CONTAINER], page) == 0);
	check(kernel->vfio_master(fds[HOLDER_DEVICE], true) == 0);
	check(is_master(driver));
	check(kernel->vfio_unmap_all(fds[HOLDER_CONTAINER]) == 0);
	check(map(fds[HOLDER_CONTAINER], page) == 0);

	for (unsigned int i = 0; i < 3; i++)
		close(fds[i]);
	close(driver);
	holder_free(holder);
	check(rmdir(folder) == 0);
	puts("the card was silenced, and found again");
	return 0;
}
