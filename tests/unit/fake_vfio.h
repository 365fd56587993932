/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fake_vfio.h - a kernel with a card behind an IOMMU, 0000:00:04.0 in group 7, another one, and a holder
 * that keeps them. Nobody maps for two at a time. It splits no mapping and lets none overlap, as type1v2 does. Its descriptors are real
 * ones, so none may be lost.
 */
#ifndef TEST_FAKE_VFIO_H
#define TEST_FAKE_VFIO_H

#include <stdbool.h>
#include <stdint.h>

#define FAKE_CARD     "0000:00:04.0"
#define FAKE_OTHER    "0000:00:09.0"
#define FAKE_MAPPINGS 32U

struct fake_mapping {
	uint64_t iova, length, vaddr; /* length 0: free */
	bool write;
};

struct fake_vfio {
	/*
	 * What the machine is like; the card can be opened when all are as fake_vfio_begin() leaves
	 * them.
	 */
	const char *driver; /* that the card is bound to; NULL: none */
	bool no_device, no_iommu, no_vfio, no_type1, not_viable, in_use, unsafe;
	unsigned int limit; /* of mappings */
	/* The @fail_at-th call from now on, counted from 1, is answered with @error. 0: none. */
	unsigned int fail_at;
	int error;

	unsigned int calls; /* so far */
	struct fake_mapping mapping[FAKE_MAPPINGS];
	bool master;
	bool kept; /* by the holder */
	bool other_kept;
	int take_error; /* they cannot be had back */
	unsigned int kept_fds; /* so many; 0: as many as it was given */
	bool lost; /* the holder was killed, and nobody has its place yet */
	int mend;  /* what holder_mend() says */
	unsigned int mended; /* so often was it called */

	/* BAR 2 of each, the same memory, which outlives whoever maps it; there is no other. */
	uint32_t bar_pages;
	int bar_error; /* it cannot be mapped */
	bool gone;     /* the card does not answer: its memory reads as ones, and nothing gets there */
	bool off;      /* its memory is switched off, though it answers */
	bool hangs;    /* it does not answer, nor say that it will not, until this is over; atomic */
	bool asked;    /* ... and is waited for; atomic */
};
extern struct fake_vfio fake_vfio;

/* From now on it is the kernel, for what concerns cards, and a holder is there. */
void fake_vfio_begin(void);
void fake_vfio_end(void);
/* One page of that memory. */
void *fake_vfio_frame(uint32_t number);
/* The kernel wants that card back, and says so to whoever has armed its request last. */
void fake_vfio_recall(const char *address);
/* For cards_init(): as the next hmmd finds it. */
struct holder *fake_vfio_holder(void);

unsigned int fake_vfio_mappings(void);
/* The mapping that has @iova, or NULL. */
const struct fake_mapping *fake_vfio_at(uint64_t iova);

#endif
