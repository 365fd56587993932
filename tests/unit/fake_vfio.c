// SPDX-License-Identifier: GPL-2.0-or-later
/* fake_vfio.c - see fake_vfio.h. The holder's functions here take the place of holder.c's. */
#include "fake_vfio.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernel/kernel.h"
#include "memory/card.h"
#include "memory/holder.h"

struct fake_vfio fake_vfio;

static struct kernel_ops ops;
static struct holder *const holder = (struct holder *)&fake_vfio;
#define HELD 4U
static int held[2][HELD] = {{-1, -1, -1, -1}, {-1, -1, -1, -1}};
static char *bar_memory;
static int bar_file = -1;
#define BAR_BYTES (64UL << 20)
static int quiet = -1; /* never readable */
static ino_t opened[2]; /* the file that each was opened as last */
static int armed[2] = {-1, -1}; /* what was armed last to hear that it is wanted back */

static bool fails(void)
{
	return ++fake_vfio.calls == fake_vfio.fail_at;
}

/* 0, 1: which of them; 2: none. */
static unsigned int card_at(const char *address)
{
	return strcmp(address, FAKE_CARD) == 0 ? 0 : strcmp(address, FAKE_OTHER) == 0 ? 1 : 2;
}

static bool *kept_of(unsigned int card)
{
	return card ? &fake_vfio.other_kept : &fake_vfio.kept;
}

static int new_fd(void)
{
	return memfd_create("fake-vfio", MFD_CLOEXEC);
}

static int pci_link(const char *address, const char *name, char *target, size_t size)
{
	const char *text = NULL;

	if (fails())
		return fake_vfio.error;
	if (!fake_vfio.no_device && card_at(address) < 2) {
		if (strcmp(name, "subsystem") == 0)
			text = "pci";
		else if (strcmp(name, "iommu_group") == 0)
			text = fake_vfio.no_iommu ? NULL : card_at(address) ? "8" : "7";
		else if (strcmp(name, "driver") == 0)
			text = fake_vfio.driver;
	}
	if (!text)
		return -ENOENT;
	snprintf(target, size, "%s", text);
	return 0;
}

/* Its user's alone. */
static int new_group(void)
{
	int fd = new_fd();

	cr_assert(eq(int, fchmod(fd, 0600), 0));
	return fd;
}

static int vfio_open(const char *path)
{
	if (fails())
		return fake_vfio.error;
	if (strcmp(path, "/dev/vfio/vfio") == 0)
		return fake_vfio.no_vfio ? -ENOENT : new_fd();
	cr_assert(strcmp(path, "/dev/vfio/7") == 0 || strcmp(path, "/dev/vfio/8") == 0);
	return fake_vfio.in_use ? -EBUSY : new_group();
}

static int map_dma(const struct vfio_iommu_type1_dma_map *map)
{
	unsigned int n = 0;

	cr_assert(map->size && !((map->size | map->iova | map->vaddr) % 4096));
	cr_assert(map->flags & VFIO_DMA_MAP_FLAG_READ);
	for (unsigned int i = 0; i < FAKE_MAPPINGS; i++) {
		const struct fake_mapping *there = &fake_vfio.mapping[i];

		n += there->length != 0;
		if (there->length && there->iova < map->iova + map->size &&
		    there->iova + there->length > map->iova)
			return -EEXIST;
	}
	if (n == fake_vfio.limit)
		return -ENOSPC;
	for (unsigned int i = 0; i < FAKE_MAPPINGS; i++) {
		if (fake_vfio.mapping[i].length)
			continue;
		fake_vfio.mapping[i] = (struct fake_mapping){map->iova, map->size, map->vaddr,
							     map->flags & VFIO_DMA_MAP_FLAG_WRITE};
		return 0;
	}
	return -ENOSPC;
}

static int unmap_dma(const struct vfio_iommu_type1_dma_unmap *unmap)
{
	uint64_t end = unmap->iova + unmap->size;

	for (unsigned int i = 0; i < FAKE_MAPPINGS; i++) {
		const struct fake_mapping *there = &fake_vfio.mapping[i];
		uint64_t stop = there->iova + there->length;

		if (there->length && ((there->iova < unmap->iova && stop > unmap->iova) ||
				      (there->iova < end && stop > end)))
			return -EINVAL;
	}
	for (unsigned int i = 0; i < FAKE_MAPPINGS; i++)
		if (fake_vfio.mapping[i].iova >= unmap->iova && fake_vfio.mapping[i].iova < end)
			fake_vfio.mapping[i].length = 0;
	return 0;
}

static int new_device(unsigned int card)
{
	int fd = card < 2 ? new_fd() : -ENODEV;
	struct stat st;

	if (fd < 0)
		return fd;
	cr_assert(eq(int, fstat(fd, &st), 0));
	opened[card] = st.st_ino;
	return fd;
}

/* Until it is armed anew, or the test ends. */
static void disarm(unsigned int card)
{
	if (armed[card] >= 0)
		close(armed[card]);
	armed[card] = -1;
}

static int set_irqs(int of, const struct vfio_irq_set *set)
{
	unsigned int card;
	struct stat st;
	int32_t fd;

	cr_assert(eq(int, fstat(of, &st), 0));
	card = st.st_ino == opened[0] ? 0 : 1;
	cr_assert(eq(u64, st.st_ino, opened[card]));

	cr_assert(set->index == VFIO_PCI_REQ_IRQ_INDEX && !set->start && set->count == 1);
	cr_assert(set->flags == (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER));
	cr_assert(set->argsz == sizeof(*set) + sizeof(fd));
	memcpy(&fd, set->data, sizeof(fd));
	disarm(card);
	armed[card] = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	return 0;
}

void fake_vfio_recall(const char *address)
{
	cr_assert(armed[card_at(address)] >= 0);
	cr_assert(eq(int, eventfd_write(armed[card_at(address)], 1), 0));
}

static int vfio_call(int fd, unsigned long request, void *argument)
{
	struct vfio_group_status *status = argument;

	if (fails())
		return fake_vfio.error;
	cr_assert(fcntl(fd, F_GETFD) >= 0);
	switch (request) {
	case VFIO_GET_API_VERSION:
		return VFIO_API_VERSION;
	case VFIO_CHECK_EXTENSION:
		return (uintptr_t)argument == VFIO_TYPE1v2_IOMMU && !fake_vfio.no_type1;
	case VFIO_GROUP_GET_STATUS:
		status->flags = fake_vfio.not_viable ? 0 : VFIO_GROUP_FLAGS_VIABLE;
		return 0;
	case VFIO_GROUP_SET_CONTAINER:
		return fcntl(*(int *)argument, F_GETFD) < 0 ? -EBADF : 0;
	case VFIO_SET_IOMMU:
		return fake_vfio.unsafe ? -EPERM : 0;
	case VFIO_GROUP_GET_DEVICE_FD:
		return new_device(card_at(argument));
	case VFIO_DEVICE_SET_IRQS:
		return set_irqs(fd, argument);
	case VFIO_IOMMU_MAP_DMA:
		return map_dma(argument);
	case VFIO_IOMMU_UNMAP_DMA:
		return unmap_dma(argument);
	default:
		return -ENOTTY;
	}
}

static int vfio_unmap_all(int container)
{
	cr_assert(fcntl(container, F_GETFD) >= 0);
	memset(fake_vfio.mapping, 0, sizeof(fake_vfio.mapping));
	return 0;
}

static int vfio_master(int device, bool on)
{
	if (fails())
		return fake_vfio.error;
	cr_assert(fcntl(device, F_GETFD) >= 0);
	fake_vfio.master = on;
	return 0;
}

/* ---- its memory ------------------------------------------------------------------ */

static int bar_map(int device, unsigned int bar, void **map, uint64_t *length)
{
	if (fails())
		return fake_vfio.error;
	cr_assert(fcntl(device, F_GETFD) >= 0);
	if (fake_vfio.bar_error || bar != 2)
		return bar == 2 ? fake_vfio.bar_error : -ENODEV;
	*length = fake_vfio.bar_pages * 4096UL;
	*map = mmap(NULL, *length, PROT_READ | PROT_WRITE, MAP_SHARED, bar_file, 0);
	return *map == MAP_FAILED ? -ENOMEM : 0;
}

static int bar_store(int file, uint64_t offset, void *frame, size_t length)
{
	if (fails())
		return fake_vfio.error;
	if (fake_vfio.off)
		return -EFAULT;
	return fake_vfio.gone ? 0 : kernel_real.bar_store(file, offset, frame, length);
}

static int bar_fetch(int file, uint64_t offset, const void *frame, size_t length)
{
	char ones[4096];

	cr_assert(length <= sizeof(ones));
	if (fails())
		return fake_vfio.error;
	if (fake_vfio.off)
		return -EFAULT;
	memset(ones, 0xff, sizeof(ones));
	return kernel_real.bar_fetch(file, offset, fake_vfio.gone ? ones : frame, length);
}

static int vfio_answers(int device)
{
	if (fails())
		return fake_vfio.error;
	cr_assert(fcntl(device, F_GETFD) >= 0);
	while (__atomic_load_n(&fake_vfio.hangs, __ATOMIC_SEQ_CST)) {
		__atomic_store_n(&fake_vfio.asked, true, __ATOMIC_SEQ_CST);
		usleep(1000);
	}
	return fake_vfio.gone ? -ENODEV : 0;
}

void *fake_vfio_frame(uint32_t number)
{
	return bar_memory + number * 4096UL;
}

void fake_vfio_begin(void)
{
	fake_vfio = (struct fake_vfio){.driver = "vfio-pci", .limit = FAKE_MAPPINGS, .bar_pages = 1024};
	bar_file = new_fd();
	cr_assert(eq(int, ftruncate(bar_file, BAR_BYTES), 0));
	bar_memory = mmap(NULL, BAR_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, bar_file, 0);
	cr_assert(ne(ptr, bar_memory, MAP_FAILED));
	ops = *kernel;
	ops.pci_link = pci_link;
	ops.vfio_open = vfio_open;
	ops.vfio_call = vfio_call;
	ops.vfio_unmap_all = vfio_unmap_all;
	ops.vfio_master = vfio_master;
	ops.bar_map = bar_map;
	ops.bar_store = bar_store;
	ops.bar_fetch = bar_fetch;
	ops.vfio_answers = vfio_answers;
	kernel = &ops;
	quiet = eventfd(0, EFD_CLOEXEC);
	cards_init(holder, NULL);
}

struct holder *fake_vfio_holder(void)
{
	return holder;
}

static void let_go(unsigned int card)
{
	for (unsigned int i = 0; i < HELD; i++) {
		if (held[card][i] >= 0)
			close(held[card][i]);
		held[card][i] = -1;
	}
}

void fake_vfio_end(void)
{
	cards_init(NULL, NULL);
	let_go(0);
	let_go(1);
	close(quiet);
	disarm(0);
	disarm(1);
	munmap(bar_memory, BAR_BYTES);
	close(bar_file);
	kernel = &kernel_real;
}

unsigned int fake_vfio_mappings(void)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < FAKE_MAPPINGS; i++)
		n += fake_vfio.mapping[i].length != 0;
	return n;
}

const struct fake_mapping *fake_vfio_at(uint64_t iova)
{
	for (unsigned int i = 0; i < FAKE_MAPPINGS; i++) {
		const struct fake_mapping *there = &fake_vfio.mapping[i];

		if (there->length && iova >= there->iova && iova < there->iova + there->length)
			return there;
	}
	return NULL;
}

/* ---- the holder ------------------------------------------------------------------- */

int holder_keep(struct holder *one, const char *name, const int *fds, unsigned int n)
{
	unsigned int card = card_at(name);

	cr_assert(one == holder && n == HELD && card < 2);
	if (fails())
		return fake_vfio.error;
	for (unsigned int i = 0; i < n; i++)
		held[card][i] = fds[i] < 0 ? -1 : fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
	*kept_of(card) = true;
	return 0;
}

int holder_drop(struct holder *one, const char *name)
{
	unsigned int card = card_at(name);

	cr_assert(one == holder && card < 2);
	cr_assert(kept_of(card)[0]);
	let_go(card);
	*kept_of(card) = false;
	return 0;
}

const char *holder_name(const struct holder *one, unsigned int i)
{
	if (fake_vfio.kept && i == 0)
		return FAKE_CARD;
	return fake_vfio.other_kept && i == fake_vfio.kept ? FAKE_OTHER : NULL;
}

/* Readable when it is gone; when nobody took its place there is none at all. */
int holder_poll_fd(const struct holder *one)
{
	return holder_name(one, 0) && !fake_vfio.lost ? quiet : -1;
}

int holder_mend(struct holder *one)
{
	fake_vfio.mended++;
	fake_vfio.lost = fake_vfio.mend < 0;
	return fake_vfio.mend;
}

int holder_take(struct holder *one, const char *name, int *fds, unsigned int n)
{
	unsigned int card = card_at(name);

	cr_assert(one == holder && n == HELD);
	if (card == 2 || !*kept_of(card))
		return -ENOENT;
	if (fake_vfio.take_error)
		return fake_vfio.take_error;
	if (fake_vfio.kept_fds)
		n = fake_vfio.kept_fds;
	for (unsigned int i = 0; i < n; i++)
		fds[i] = held[card][i] < 0 ? -1 : fcntl(held[card][i], F_DUPFD_CLOEXEC, 3);
	return (int)n;
}
