/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dma_rig.h - an owner whose device is a card, behind an IOMMU that is a fake. */
#ifndef TESTS_DMA_RIG_H
#define TESTS_DMA_RIG_H

#include "engine_fixture.h"

#define OUT  20U		/* pages on the device */
#define HOLD 5U

extern struct fixture fixture;
extern struct kernel_ops ops;	/* between begin and finish: a copy that is in force */
extern char text[240];		/* what was wrong */
extern uid_t user;		/* who asks */
extern gid_t group;

uint64_t dma_rig_addr_of(unsigned int page);
void dma_rig_begin(void);
void dma_rig_finish(void);
/* hmmd's answer; @pages: what it says of them. */
int dma_rig_answer(uint64_t *pages);
int dma_rig_map_as(uint64_t peer, uint32_t hold, unsigned int first, unsigned int end, bool write, uint64_t *pages);
void dma_rig_map(uint32_t hold, unsigned int first, unsigned int end, unsigned int expected);
void dma_rig_unmap(uint32_t hold);
/* What the driver is asked; 0: nothing. */
uint64_t dma_rig_asked(uint64_t *start, uint64_t *end);
/* Whether who asks gets the descriptor of that device: an error, or 0, and it is closed again. */
int dma_rig_ask_device(uint32_t id);
void dma_rig_go_home(unsigned int first, unsigned int end);

#endif
