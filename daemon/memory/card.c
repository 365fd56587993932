/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * card.c - cards of VFIO: opening, what the IOMMU lets them reach, closing.
 *
 * Happy path: the card's group is found in sysfs and opened, put into a container with a
 * type1v2 IOMMU, the device is taken out of it and may master the bus. All three descriptors go to
 * the holder before anything is mapped.
 *
 * After hmmd was killed the holder has unmapped all, and gives the same descriptors: nobody else
 * could open the group, since the driver has a duplicate of the device.
 *
 * The kernel may want a card back: it is unplugged, or unbound. VFIO says so by an eventfd, one for
 * each device, at once and then every ten seconds, and waits until nobody has the device any more. The card
 * is recalled then: nothing new begins with it, and when nothing is left it is given back.
 *
 * What can fail: whatever the machine's administrator has to prepare, each with its own words;
 * mappings, by limits of the IOMMU and of locked memory.
 *
 * Threads: control opens, hears of recalls and gives back, the last one who lets go of a device closes,
 * workers map. The list of open cards and the holder have a lock, and who closes descriptors holds it; a
 * card's owner, and that it is recalled, are atomic, and its driver has a lock; the rest of a card does not change.
 */
#include "memory/card.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kernel/kernel.h"
#include "log.h"
#include "memory/holder.h"

#define CONTAINER_PATH "/dev/vfio/vfio"
#define CARD_FILE      3U /* behind those of enum holder_fd: what goes with its memory, or -1 */
_Static_assert(CARD_FILE == HOLDER_DEVICE + 1, "a card without memory is kept as so many");
#define CARD_FDS       4U
/* Starting a holder takes a while where it fails: not at every look. */
#define MEND_REST      9U

struct card {
	TAILQ_ENTRY(card) link;
	char address[CARD_ADDRESS];
	int fd[CARD_FDS]; /* enum holder_fd */
	uid_t uid;	  /* of the group's file */
	gid_t gid;
	mode_t mode;
	_Atomic uint32_t owner; /* whose addresses are its; 0: nobody's yet */
	bool was_kept;		/* the holder had it before */
	int request;		/* an eventfd: the kernel wants it back; -1: it does not say so */
	_Atomic bool recalled;	/* it does */

	pthread_mutex_t lock; /* on what follows, and its right to master the bus */
	bool away;	      /* it is given back: nothing of it is open */
	uint64_t driver;      /* the peer who had something mapped last; 0: nobody yet */
	bool stopped;	      /* that one is gone */
	bool broken;	      /* ... and it is for good */
};

static struct {
	pthread_mutex_t lock;
	TAILQ_HEAD(, card) open;
	struct holder *holder;
	bool (*wanted)(int file); /* what is in a card that was kept with it */
	bool leaving;
	time_t since;	   /* the holder was asked what it has */
	unsigned int rest; /* looks to let pass before another holder is tried again */
} cards = {.lock = PTHREAD_MUTEX_INITIALIZER, .open = TAILQ_HEAD_INITIALIZER(cards.open)};

/* Words for whoever asked, and the error. */
struct reason {
	char *text;
	size_t size;
};

static int refuse(const struct reason *why, int error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static int refuse(const struct reason *why, int error, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(why->text, why->size, format, arguments);
	va_end(arguments);
	return error;
}

static time_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

static bool is_open(const char *address)
{
	const struct card *card;

	TAILQ_FOREACH(card, &cards.open, link)
		if (strcmp(card->address, address) == 0)
			return true;
	return false;
}

void cards_init(struct holder *holder, bool (*wanted)(int file))
{
	cards.holder = holder;
	cards.wanted = wanted;
	cards.leaving = false;
	cards.since = now();
	cards.rest = 0;
}

/* Its memory has pages of somebody who may still come: stopped, say. */
static bool is_wanted(const char *name)
{
	int fds[CARD_FDS] = {-1, -1, -1, -1};
	bool wanted = false;
	int r;

	if (!cards.wanted)
		return false;
	r = holder_take(cards.holder, name, fds, CARD_FDS);
	/* Who is out of descriptors looks again. */
	if (r < 0)
		return r != -ENOENT;
	if (fds[CARD_FILE] >= 0)
		wanted = cards.wanted(fds[CARD_FILE]);
	for (unsigned int i = 0; i < CARD_FDS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return wanted;
}

/* What an earlier hmmd's drivers had, who did not come back. */
static void give_up_kept(void)
{
	const char *name;
	unsigned int i = 0;

	while ((name = holder_name(cards.holder, i))) {
		if (is_open(name) || is_wanted(name)) {
			i++;
			continue;
		}
		log_info("%s is given up: its driver has not come back", name);
		if (holder_drop(cards.holder, name) < 0)
			i++;
	}
}

/* The process is gone, or could not be replaced when it was. */
static bool is_holder_gone(void)
{
	struct pollfd gone = {.fd = holder_poll_fd(cards.holder), .events = POLLIN};

	return gone.fd < 0 || poll(&gone, 1, 0) > 0;
}

static void mend_holder(void)
{
	if (!cards.holder || !holder_name(cards.holder, 0) || !is_holder_gone())
		return;
	if (cards.rest) {
		cards.rest--;
		return;
	}
	if (holder_mend(cards.holder) == 0)
		return;
	cards.rest = MEND_REST;
	log_error(
		"nobody keeps the cards should hmmd be killed now: their drivers should give them up");
}

bool cards_mend(uint64_t seconds)
{
	bool open;

	pthread_mutex_lock(&cards.lock);
	mend_holder();
	open = !TAILQ_EMPTY(&cards.open);
	if (cards.holder && !cards.leaving && (time_t)seconds - cards.since >= CARD_PATIENCE_S)
		give_up_kept();
	open |= cards.holder && holder_name(cards.holder, 0);
	pthread_mutex_unlock(&cards.lock);
	return open;
}

void cards_leave(void)
{
	pthread_mutex_lock(&cards.lock);
	cards.leaving = true;
	pthread_mutex_unlock(&cards.lock);
}

/* ---- what it takes ------------------------------------------------------------------ */

/* 0000:00:00.0 is no card, but a bridge. */
uint32_t card_number(const char *address)
{
	unsigned int domain, bus, slot, function;
	char again[32];

	if (sscanf(address, "%4x:%2x:%2x.%1x", &domain, &bus, &slot, &function) != 4 || slot > 31 ||
	    function > 7)
		return 0;
	snprintf(again, sizeof(again), "%04x:%02x:%02x.%x", domain, bus, slot, function);
	return strcmp(again, address) == 0 ? domain << 16 | bus << 8 | slot << 3 | function : 0;
}

void card_print_number(uint32_t number, char text[CARD_ADDRESS])
{
	snprintf(text, CARD_ADDRESS, "%04x:%02x:%02x.%x", number >> 16, number >> 8 & 0xff,
		 number >> 3 & 0x1f, number & 7);
}

static int find_group(const char *address, char *group, size_t size, const struct reason *why)
{
	char name[64];

	if (kernel->pci_link(address, "subsystem", name, sizeof(name)))
		return refuse(why, -ENODEV, "there is no PCI device %s: see /sys/bus/pci/devices",
			      address);
	if (kernel->pci_link(address, "iommu_group", group, size))
		return refuse(
			why, -EOPNOTSUPP,
			"%s is behind no IOMMU: switch it on in the firmware, and for the kernel (intel_iommu=on)",
			address);
	if (kernel->pci_link(address, "driver", name, sizeof(name)))
		return refuse(
			why, -ENXIO,
			"%s has no driver: load vfio-pci, write its name to driver_override and the address to drivers_probe",
			address);
	if (strcmp(name, "vfio-pci") != 0)
		return refuse(why, -ENXIO, "%s is bound to %s: unbind it, then bind it to vfio-pci",
			      address, name);
	return 0;
}

/* An empty container, for a type1v2 IOMMU. */
static int open_container(const struct reason *why)
{
	int fd = kernel->vfio_open(CONTAINER_PATH), r;

	if (fd == -ENOENT || fd == -ENODEV || fd == -ENXIO)
		return refuse(why, -EOPNOTSUPP,
			      "there is no " CONTAINER_PATH ": load the module vfio");
	if (fd < 0)
		return refuse(why, fd, CONTAINER_PATH " cannot be opened: %s", strerror(-fd));
	r = kernel->vfio_call(fd, VFIO_GET_API_VERSION, NULL);
	if (r != VFIO_API_VERSION)
		r = refuse(why, -EOPNOTSUPP, "this kernel's VFIO has version %d, hmmd knows %d", r,
			   VFIO_API_VERSION);
	else if (kernel->vfio_call(fd, VFIO_CHECK_EXTENSION,
				   (void *)(uintptr_t)VFIO_TYPE1v2_IOMMU) <= 0)
		r = refuse(why, -EOPNOTSUPP,
			   "there is no type1 IOMMU driver: load the module vfio_iommu_type1");
	if (r) {
		close(fd);
		return r;
	}
	return fd;
}

static bool is_allowed(uid_t uid, gid_t gid, uid_t owner, gid_t group, mode_t mode)
{
	const mode_t both = S_IROTH | S_IWOTH;

	if (uid == 0)
		return true;
	if (uid == owner)
		return (mode >> 6 & both) == both;
	if (gid == group)
		return (mode >> 3 & both) == both;
	return (mode & both) == both;
}

bool card_allows(const struct card *card, uid_t uid, gid_t gid)
{
	return is_allowed(uid, gid, card->uid, card->gid, card->mode);
}

static int check_right(struct card *card, uid_t uid, gid_t gid, const struct reason *why)
{
	struct stat st;

	if (fstat(card->fd[HOLDER_GROUP], &st) < 0)
		return refuse(why, -errno, "the group of %s cannot be looked at: %s", card->address,
			      strerror(errno));
	card->uid = st.st_uid;
	card->gid = st.st_gid;
	card->mode = st.st_mode;
	if (card_allows(card, uid, gid))
		return 0;
	return refuse(
		why, -EACCES,
		"user %u may not open the group of %s in /dev/vfio: its owner or group there decides who may",
		uid, card->address);
}

static int open_group(struct card *card, const char *group, const struct reason *why)
{
	char path[80];
	int fd;

	snprintf(path, sizeof(path), "/dev/vfio/%s", group);
	fd = kernel->vfio_open(path);
	if (fd == -EBUSY)
		return refuse(
			why, fd,
			"%s is in use: another program has %s, or a driver still has the card from before",
			card->address, path);
	if (fd == -ENOENT)
		return refuse(why, -ENXIO, "there is no %s: is %s bound to vfio-pci?", path,
			      card->address);
	if (fd < 0)
		return refuse(why, fd, "hmmd cannot open %s: %s", path, strerror(-fd));
	card->fd[HOLDER_GROUP] = fd;
	return 0;
}

static int join(struct card *card, const char *group, const struct reason *why)
{
	struct vfio_group_status status = {.argsz = sizeof(status)};
	int r = kernel->vfio_call(card->fd[HOLDER_GROUP], VFIO_GROUP_GET_STATUS, &status);

	if (r)
		return refuse(why, r, "group %s says nothing of itself: %s", group, strerror(-r));
	if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE))
		return refuse(
			why, -ENXIO,
			"group %s is not viable: bind all of /sys/kernel/iommu_groups/%s/devices to vfio-pci, they share an IOMMU's protection",
			group, group);
	if (status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET)
		return refuse(why, -EBUSY, "%s is in use: its group %s is in another container",
			      card->address, group);
	r = kernel->vfio_call(card->fd[HOLDER_GROUP], VFIO_GROUP_SET_CONTAINER,
			      &card->fd[HOLDER_CONTAINER]);
	if (r)
		return refuse(why, r, "group %s cannot be put into a container: %s", group,
			      strerror(-r));
	r = kernel->vfio_call(card->fd[HOLDER_CONTAINER], VFIO_SET_IOMMU,
			      (void *)(uintptr_t)VFIO_TYPE1v2_IOMMU);
	if (r == -EPERM)
		return refuse(
			why, r,
			"%s could forge interrupts, this IOMMU does not remap them: see allow_unsafe_interrupts of vfio_iommu_type1",
			card->address);
	if (r)
		return refuse(why, r, "group %s gets no IOMMU: %s", group, strerror(-r));
	r = kernel->vfio_call(card->fd[HOLDER_GROUP], VFIO_GROUP_GET_DEVICE_FD, card->address);
	if (r < 0)
		return refuse(why, r, "%s cannot be taken out of group %s: %s", card->address,
			      group, strerror(-r));
	card->fd[HOLDER_DEVICE] = r;
	return 0;
}

static int start(const struct card *card, const struct reason *why)
{
	int r = kernel->vfio_master(card->fd[HOLDER_DEVICE], true);

	return r ? refuse(why, r, "%s cannot be made a master of its bus: %s", card->address,
			  strerror(-r))
		 : 0;
}

/*
 * There is one for a device: this takes the place of an earlier hmmd's, and a driver that sets one on its own
 * descriptor of the card takes this one's.
 */
static int hear_of_recalls(struct card *card, const struct reason *why)
{
	uint32_t room[(sizeof(struct vfio_irq_set) + sizeof(int32_t)) / sizeof(uint32_t)];
	struct vfio_irq_set *set = (void *)room;
	int r;

	card->request = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (card->request < 0)
		return refuse(why, -errno, "hmmd is out of descriptors");
	*set = (struct vfio_irq_set){
		.argsz = sizeof(room),
		.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
		.index = VFIO_PCI_REQ_IRQ_INDEX,
		.count = 1,
	};
	memcpy(set->data, &card->request, sizeof(int32_t));
	r = kernel->vfio_call(card->fd[HOLDER_DEVICE], VFIO_DEVICE_SET_IRQS, set);
	return r < 0 ? refuse(why, r, "%s cannot tell when it is wanted back: %s", card->address, strerror(-r)) : 0;
}

/* ---- opening and closing --------------------------------------------------------------------- */

static void close_fds(struct card *card)
{
	/* The device behind its container and group: it keeps them. */
	for (unsigned int i = 0; i < CARD_FDS; i++) {
		if (card->fd[i] >= 0)
			close(card->fd[i]);
		card->fd[i] = -1;
	}
	if (card->request >= 0)
		close(card->request);
	card->request = -1;
}

static struct card *card_free(struct card *card)
{
	close_fds(card);
	pthread_mutex_destroy(&card->lock);
	free(card);
	return NULL;
}

static int keep(struct card *card, const struct reason *why)
{
	int r = holder_keep(cards.holder, card->address, card->fd, CARD_FDS);

	return r ? refuse(why, r,
			  "no process keeps %s in case hmmd is killed: %s; hmmd's log says more",
			  card->address, strerror(-r))
		 : 0;
}

/* How a card is wanted. */
struct wish {
	uid_t uid;
	gid_t gid;
	bool kept;  /* not otherwise, and for anybody */
	int file;   /* to be kept with it; -1: none */
};

/* As an earlier hmmd had it. -ENOENT: it had not. */
static int open_kept(struct card *card, const struct wish *wish, const struct reason *why)
{
	int fds[CARD_FDS] = {-1, -1, -1, -1};
	int r = holder_take(cards.holder, card->address, fds, CARD_FDS);

	if (r == -ENOENT)
		return wish->kept ? refuse(why, r, "nobody has kept %s", card->address) : r;
	if (r >= 0) {
		if (card->fd[CARD_FILE] >= 0)
			close(card->fd[CARD_FILE]);
		memcpy(card->fd, fds, sizeof(fds));
	}
	/* An hmmd that knew no card's memory kept none. */
	if (r >= 0 && r != CARD_FDS && r != CARD_FILE)
		r = -EIO;
	if (r < 0)
		return refuse(why, r, "%s cannot be had back from the process that kept it: %s",
			      card->address, strerror(-r));
	card->was_kept = true;
	r = check_right(card, wish->kept ? 0 : wish->uid, wish->gid, why);
	if (r)
		return r;
	if ((card->fd[CARD_FILE] >= 0) != (wish->file >= 0))
		return refuse(why, -EBUSY, "%s is in use: it was kept over a restart as %s", card->address,
			      wish->file < 0 ? "memory that has pages" : "a card without pages in it");
	/* The holder has done so, too. */
	r = kernel->vfio_unmap_all(card->fd[HOLDER_CONTAINER]);
	if (r)
		return refuse(why, r, "%s has mappings of an earlier hmmd, which do not go: %s",
			      card->address, strerror(-r));
	r = start(card, why);
	return r ? r : hear_of_recalls(card, why);
}

static int open_new(struct card *card, const struct wish *wish, const struct reason *why)
{
	char group[32];
	int r = find_group(card->address, group, sizeof(group), why);

	if (r)
		return r;
	r = open_container(why);
	if (r < 0)
		return r;
	card->fd[HOLDER_CONTAINER] = r;
	r = open_group(card, group, why);
	if (!r)
		r = check_right(card, wish->uid, wish->gid, why);
	if (!r)
		r = join(card, group, why);
	if (!r)
		r = start(card, why);
	if (!r)
		r = hear_of_recalls(card, why);
	return r ? r : keep(card, why);
}

static int open_locked(struct card *card, const struct wish *wish, const struct reason *why)
{
	int r;

	if (!cards.holder)
		return refuse(
			why, -EOPNOTSUPP,
			"this hmmd has nobody to stop a card should hmmd be killed; its log says why");
	if (is_open(card->address))
		return refuse(why, -EBUSY, "%s is in use: another device of this hmmd is this card",
			      card->address);
	r = open_kept(card, wish, why);
	if (r == -ENOENT && !wish->kept)
		r = open_new(card, wish, why);
	if (!r)
		TAILQ_INSERT_TAIL(&cards.open, card, link);
	return r;
}

static int open_wished(const char *address, const struct wish *wish, struct card **result,
		       const struct reason *why)
{
	struct card *card;
	int r;

	if (!card_number(address))
		return refuse(why, -EINVAL, "'%s' is no PCI address: it looks like 0000:00:04.0",
			      address);
	card = calloc(1, sizeof(*card));
	if (!card)
		return refuse(why, -ENOMEM, "hmmd is out of memory");
	strcpy(card->address, address);
	for (unsigned int i = 0; i < CARD_FDS; i++)
		card->fd[i] = -1;
	card->request = -1;
	pthread_mutex_init(&card->lock, NULL);
	if (wish->file >= 0)
		card->fd[CARD_FILE] = fcntl(wish->file, F_DUPFD_CLOEXEC, 3);
	if (wish->file >= 0 && card->fd[CARD_FILE] < 0) {
		card_free(card);
		return refuse(why, -EMFILE, "hmmd is out of descriptors");
	}
	pthread_mutex_lock(&cards.lock);
	r = open_locked(card, wish, why);
	pthread_mutex_unlock(&cards.lock);
	if (r) {
		card_free(card);
		return r;
	}
	*result = card;
	return 0;
}

int card_open(const char *address, uid_t uid, gid_t gid, struct card **result, char *text,
	      size_t size)
{
	const struct wish wish = {.uid = uid, .gid = gid, .file = -1};
	const struct reason why = {text, size};

	return open_wished(address, &wish, result, &why);
}

int card_open_keeping(const char *address, uid_t uid, gid_t gid, bool kept, int *file,
		      struct card **result, char *text, size_t size)
{
	const struct wish wish = {.uid = uid, .gid = gid, .kept = kept, .file = *file};
	const struct reason why = {text, size};
	struct card *card;
	int r = open_wished(address, &wish, &card, &why), fd;

	if (r)
		return r;
	fd = fcntl(card->fd[CARD_FILE], F_DUPFD_CLOEXEC, 3);
	if (fd < 0) {
		card_undo(card);
		return refuse(&why, -EMFILE, "hmmd is out of descriptors");
	}
	close(*file);
	*file = fd;
	*result = card;
	return 0;
}

/* What becomes of what the holder has of it. */
enum kept { KEPT_IF_HMMD_ENDS, KEPT_AS_IT_WAS, KEPT_NO_MORE };

/* With the lock of all cards held. */
static void let_go(struct card *card, bool drop)
{
	/* The driver may have a duplicate of the device, which would go on. */
	kernel->vfio_unmap_all(card->fd[HOLDER_CONTAINER]);
	kernel->vfio_master(card->fd[HOLDER_DEVICE], false);
	TAILQ_REMOVE(&cards.open, card, link);
	if (cards.holder && drop)
		holder_drop(cards.holder, card->address);
}

static struct card *close_card(struct card *card, enum kept kept)
{
	bool drop = true;

	if (!card)
		return NULL;
	pthread_mutex_lock(&cards.lock);
	if (kept == KEPT_IF_HMMD_ENDS)
		drop = !cards.leaving;
	else if (kept == KEPT_AS_IT_WAS)
		drop = !cards.leaving && !card->was_kept;
	if (!card->away)
		let_go(card, drop);
	pthread_mutex_unlock(&cards.lock);
	return card_free(card);
}

struct card *card_close(struct card *card)
{
	return close_card(card, KEPT_IF_HMMD_ENDS);
}

struct card *card_undo(struct card *card)
{
	return close_card(card, KEPT_AS_IT_WAS);
}

struct card *card_give_up(struct card *card)
{
	return close_card(card, KEPT_NO_MORE);
}

const char *card_address(const struct card *card)
{
	return card->address;
}

int card_device(struct card *card)
{
	int fd = -ENODEV;

	pthread_mutex_lock(&card->lock);
	if (!card->away && !card_is_recalled(card)) {
		fd = fcntl(card->fd[HOLDER_DEVICE], F_DUPFD_CLOEXEC, 3);
		fd = fd < 0 ? -errno : fd;
	}
	pthread_mutex_unlock(&card->lock);
	return fd;
}

bool card_take(struct card *card, uint32_t owner)
{
	uint32_t nobody = 0;

	if (!atomic_compare_exchange_strong(&card->owner, &nobody, owner))
		return nobody == owner;
	/* Whoever gives it back looks for owners after he has said that it is. */
	if (!card_is_recalled(card))
		return true;
	card_leave(card, owner);
	return false;
}

void card_leave(struct card *card, uint32_t owner)
{
	atomic_compare_exchange_strong(&card->owner, &owner, 0);
}

int card_drive(struct card *card, uint64_t driver)
{
	int r = 0;

	pthread_mutex_lock(&card->lock);
	if (card->away)
		r = -ENODEV;
	else if (card->broken)
		r = -EIO;
	else if (card->stopped)
		r = kernel->vfio_master(card->fd[HOLDER_DEVICE], true);
	if (!r) {
		card->driver = driver;
		card->stopped = false;
	}
	pthread_mutex_unlock(&card->lock);
	return r;
}

static void stop(struct card *card)
{
	int r = kernel->vfio_master(card->fd[HOLDER_DEVICE], false);

	card->stopped = true;
	if (r)
		log_error("%s: it cannot be stopped: %s", card->address, strerror(-r));
}

void card_driver_gone(struct card *card, uint64_t driver)
{
	if (!card)
		return;
	pthread_mutex_lock(&card->lock);
	if (card->driver == driver && !card->stopped && !card->away) {
		log_info("%s: its driver is gone, and it is stopped until another one maps",
			 card->address);
		stop(card);
	}
	pthread_mutex_unlock(&card->lock);
}

/* ---- the kernel wants it back ------------------------------------------------------------------- */

bool card_is_recalled(const struct card *card)
{
	return card && atomic_load(&card->recalled);
}

/* With the lock of all cards held. */
static void give_back(struct card *card)
{
	pthread_mutex_lock(&card->lock);
	let_go(card, true);
	close_fds(card);
	card->away = true;
	pthread_mutex_unlock(&card->lock);
}

void card_give_back(struct card *card)
{
	pthread_mutex_lock(&cards.lock);
	if (!card->away)
		give_back(card);
	pthread_mutex_unlock(&cards.lock);
}

static void hear(struct card *card)
{
	uint64_t asked;

	if (card->request < 0 || read(card->request, &asked, sizeof(asked)) != sizeof(asked) ||
	    atomic_exchange(&card->recalled, true))
		return;
	log_warn(CARD_RECALLED ", and hmmd gives it back when nothing is left", card->address);
}

bool cards_recall(void)
{
	struct card *card, *next;
	bool waiting = false;

	pthread_mutex_lock(&cards.lock);
	for (card = TAILQ_FIRST(&cards.open); card; card = next) {
		next = TAILQ_NEXT(card, link);
		hear(card);
		if (!card_is_recalled(card))
			continue;
		/* One whose memory has pages is bar.c's to give back. */
		if (card->fd[CARD_FILE] < 0 && !atomic_load(&card->owner)) {
			log_info("%s is given back; what its driver has of it (hmm_device_fd()) is the driver's to close",
				 card->address);
			give_back(card);
		} else {
			waiting = true;
		}
	}
	pthread_mutex_unlock(&cards.lock);
	return waiting;
}

/* ---- mapping ------------------------------------------------------------------------------------ */

int card_map(struct card *card, uint64_t iova, void *memory, uint64_t length, bool write)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | (write ? VFIO_DMA_MAP_FLAG_WRITE : 0),
		.vaddr = (uintptr_t)memory,
		.iova = iova,
		.size = length,
	};

	return kernel->vfio_call(card->fd[HOLDER_CONTAINER], VFIO_IOMMU_MAP_DMA, &map);
}

void card_unmap(struct card *card, uint64_t iova, uint64_t length)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap), .iova = iova, .size = length};
	int r = kernel->vfio_call(card->fd[HOLDER_CONTAINER], VFIO_IOMMU_UNMAP_DMA, &unmap);

	if (!r)
		return;
	/* It never splits what was mapped, so there is no reason why. The card must not go on. */
	log_error(
		"%s: %#lx bytes at %#lx cannot be taken from its IOMMU (%s): it is stopped for good",
		card->address, length, iova, strerror(-r));
	pthread_mutex_lock(&card->lock);
	card->broken = true;
	stop(card);
	pthread_mutex_unlock(&card->lock);
}

/* The kernel's information with its chain of capabilities; NULL: it gives none. */
static const struct vfio_info_cap_header *find_capability(const struct card *card, uint64_t *room,
							  size_t size, uint16_t id)
{
	struct vfio_iommu_type1_info *info = (void *)room;
	uint32_t at;

	memset(room, 0, size);
	info->argsz = (uint32_t)size;
	if (kernel->vfio_call(card->fd[HOLDER_CONTAINER], VFIO_IOMMU_GET_INFO, info) ||
	    !(info->flags & VFIO_IOMMU_INFO_CAPS))
		return NULL;
	for (at = info->cap_offset; at && at < size - sizeof(struct vfio_info_cap_header);) {
		const struct vfio_info_cap_header *header = (const void *)((const char *)room + at);

		if (header->id == id)
			return header;
		at = header->next > at ? header->next : 0;
	}
	return NULL;
}

static void explain_ranges(const struct card *card, uint64_t iova, char *text, size_t size)
{
	uint64_t room[512];
	const struct vfio_iommu_type1_info_cap_iova_range *ranges = (const void *)find_capability(
		card, room, sizeof(room), VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
	int n = snprintf(text, size, "%#lx is no address that %s can have: its IOMMU has", iova,
			 card->address);

	for (uint32_t i = 0; ranges && i < ranges->nr_iovas && n > 0 && (size_t)n < size; i++)
		n += snprintf(text + n, size - (size_t)n, " %#llx-%#llx",
			      (unsigned long long)ranges->iova_ranges[i].start,
			      (unsigned long long)ranges->iova_ranges[i].end);
}

void card_explain(const struct card *card, int error, uint64_t iova, char *text, size_t size)
{
	const struct vfio_iommu_type1_info_dma_avail *available;
	struct rlimit limit = {0};
	uint64_t room[512];

	switch (error) {
	case -EINVAL:
		explain_ranges(card, iova, text, size);
		break;
	case -ENOSPC:
		available = (const void *)find_capability(card, room, sizeof(room),
							  VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);
		snprintf(
			text, size,
			"the IOMMU takes no more mappings for %s: %u are left; dma_entry_limit of vfio_iommu_type1 says how many",
			card->address, available ? available->avail : 0);
		break;
	case -ENOMEM:
		getrlimit(RLIMIT_MEMLOCK, &limit);
		snprintf(
			text, size,
			"hmmd has no memory that %s could reach, or may lock no more of it: RLIMIT_MEMLOCK is %lu bytes",
			card->address, (unsigned long)limit.rlim_cur);
		break;
	default:
		snprintf(text, size, "the IOMMU of %s refuses %#lx: %s", card->address, iova,
			 strerror(-error));
	}
}
