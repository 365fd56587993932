/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * edu.h - a driver of QEMU's teaching card `edu`: a real PCI card with a real DMA engine, which
 * copies between memory and 4 KiB of its own. Through hmmd it does so at the addresses
 * that the program itself uses.
 *
 * One transfer at a time; any thread, but no callback of hmm's.
 */
#ifndef EDU_H
#define EDU_H

#include <stddef.h>

#include <hmm/hmm.h>

#define EDU_VENDOR 0x1234
#define EDU_DEVICE 0x11e8
#define EDU_MOST   2048UL /* bytes of one transfer, within a page */

struct edu;

/*
 * The card at @bus becomes a device with so much memory, and this program's memory its. @memory_bus:
 * that memory is BAR @bar of the card there; NULL: it is hmmd's. 0 or -errno.
 */
int edu_open(struct hmm *hmm, const char *bus, size_t memory, const char *memory_bus,
	     unsigned int bar, struct edu **result);
void edu_close(struct edu *edu);
/* For hmm_advise(), hmm_share(), hmm_alloc(). */
struct hmm_mirror *edu_mirror(struct edu *edu);

/*
 * The card reads @from, or writes @to, which must be pinned on it or coherent. 0 or -errno: then
 * nothing was transferred. -ENODEV: it was unplugged, or unbound.
 */
int edu_load(struct edu *edu, const void *from, size_t length);
int edu_store(struct edu *edu, void *to, size_t length);

/* What a broken driver does: it starts the engine wherever that leads. */
void edu_load_blindly(struct edu *edu, const void *from, size_t length);
void edu_store_blindly(struct edu *edu, void *to, size_t length);

#endif
