/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * card.h - a PCI device behind an IOMMU, as VFIO hands it to programs: bound to vfio-pci, in a
 * container (type1v2) of its own, so with one address space of its own.
 *
 * What it reaches is what is mapped here, and its driver, who gets a duplicate of
 * the device's descriptor, can change nothing of that: container and group do not leave hmmd.
 * A holder (holder.h) has them too, and unmaps everything should hmmd be killed.
 *
 *	cards_init(), cards_leave()	with hmmd
 *	card_open(), card_close()	with the device that is this card
 *	card_take()			an owner's addresses are the card's, and no other's
 *	card_drive()			whose death stops it
 *	card_map(), card_unmap()	in the same units: the kernel splits none
 *	cards_recall()			now and then: some may be wanted back by the kernel
 *
 * Any thread; a card is mapped for by its owner's worker alone.
 */
#ifndef HMMD_CARD_H
#define HMMD_CARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define CARD_PATIENCE_S 60
#define CARD_ADDRESS	16U /* "0000:00:04.0" and the zero */

struct card;
struct holder;

/*
 * @holder: NULL: cards cannot be opened, since nobody would stop them if hmmd were killed. @wanted: of a card
 * that was kept with a file (card_open_keeping()), whether somebody may still come for it; NULL: nobody.
 */
void cards_init(struct holder *holder, bool (*wanted)(int file));
/*
 * To be called now and then while cards are open, or kept from before: if the holder has been
 * killed another one keeps them (where that fails it is tried again every tenth time), and what
 * no driver came back for in a minute is given up. @seconds: of CLOCK_MONOTONIC. False: there are none.
 */
bool cards_mend(uint64_t seconds);
/*
 * hmmd ends: from now on what is closed stays with the holder, for a driver that waits for the next
 * hmmd.
 */
void cards_leave(void);

/*
 * For a peer of that user and group, who must be allowed to open the card's group in /dev/vfio, or
 * be root. One that the holder has kept is opened as it was. Return: 0; or, with @why in words for
 * the peer: -EINVAL: no PCI address; -ENODEV: no such device; -ENXIO: it, or another of its group,
 * is not bound to vfio-pci; -EOPNOTSUPP: no IOMMU, no module, no holder; -EACCES; -EBUSY: somebody
 * has it; -ENOMEM, ...
 */
int card_open(const char *address, uid_t uid, gid_t gid, struct card **result, char *why,
	      size_t size);
/*
 * The same of a card whose own memory is to outlive hmmd, and *@file with it, which tells what is
 * in it: the holder keeps a duplicate. Where the card was kept already *@file becomes what was kept
 * with it; card_open() refuses such a card, -EBUSY. @kept: -ENOENT if it was not kept, and whoever
 * asks may have it.
 */
int card_open_keeping(const char *address, uid_t uid, gid_t gid, bool kept, int *file,
		      struct card **result, char *why, size_t size);
/* Nothing is mapped from now on. NULL is allowed; returns NULL. */
struct card *card_close(struct card *card);
/* The same, and nobody waits for it, also if hmmd ends. */
struct card *card_give_up(struct card *card);
/* As before card_open(): what the holder had already it keeps for the next one who opens it. */
struct card *card_undo(struct card *card);

const char *card_address(const struct card *card);
/* An address as a number; 0: it is none. And back. */
uint32_t card_number(const char *address);
void card_print_number(uint32_t number, char text[CARD_ADDRESS]);
bool card_allows(const struct card *card, uid_t uid, gid_t gid);
/* A duplicate of the device's descriptor, the caller's; or -errno, -ENODEV: it is recalled. */
int card_device(struct card *card);

/*
 * The kernel wants it back, because it is unplugged or its driver unbound, and waits for all who have it. From then
 * on it is nobody's anew; who has something mapped takes it out and leaves it (card_leave()). Never again false.
 * NULL is allowed.
 */
bool card_is_recalled(const struct card *card);
#define CARD_RECALLED "%s is wanted back (it is unplugged, or unbound): nothing new begins with it"
/*
 * Hears of that, and gives back what no owner has any more. True: some are recalled and have yet to be left;
 * of those with a file (card_open_keeping()) who opened them says when, by card_give_back(). Their own thread.
 */
bool cards_recall(void);
/* All is closed, also with the holder. The card stays what it is until it is closed, and opens no more. */
void card_give_back(struct card *card);

/* Whose addresses are its. False: another owner's are, or it is recalled. */
bool card_take(struct card *card, uint32_t owner);
void card_leave(struct card *card, uint32_t owner);

/*
 * A peer has had something mapped: he is its driver now, instead of any other. 0; or -errno: it was
 * stopped and cannot go on.
 */
int card_drive(struct card *card, uint64_t driver);
/* If he is its driver it is stopped: no transfers until somebody else drives it. NULL is allowed. */
void card_driver_gone(struct card *card, uint64_t driver);

/*
 * Bytes that are there, and stay there until they are unmapped, at @iova. 0 or -errno, which
 * card_explain() explains.
 */
int card_map(struct card *card, uint64_t iova, void *memory, uint64_t length, bool write);
/*
 * All that was mapped within [iova, iova + length). When it returns the card reaches nothing there,
 * whatever it is.
 */
void card_unmap(struct card *card, uint64_t iova, uint64_t length);
/* Why card_map() failed, with the limit that it met. */
void card_explain(const struct card *card, int error, uint64_t iova, char *text, size_t size);

#endif
