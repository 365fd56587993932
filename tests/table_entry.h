/* SPDX-License-Identifier: GPL-2.0-or-later */
/* table_entry.h - what a page's entry in the device page table has to be, as layout.h says it and not as block.c does. */
#ifndef TEST_TABLE_ENTRY_H
#define TEST_TABLE_ENTRY_H

#include <stdint.h>

#include "layout.h"

static inline uint64_t expected_entry(unsigned int mirror, uint64_t addr, enum hmm_page_state state)
{
	uint64_t pfn = HMM_TABLE_DEVICE_PFN * (mirror + 1ULL) + addr / HMM_PAGE_SIZE;
	uint64_t place = pfn << HMM_TABLE_PFN_SHIFT;

	switch (state) {
	case HMM_PAGE_SHARED:
		return place | HMM_TABLE_DEVICE | HMM_TABLE_VALID;
	case HMM_PAGE_DEVICE:
		return place | HMM_TABLE_DEVICE | HMM_TABLE_VALID | HMM_TABLE_WRITE;
	case HMM_PAGE_COHERENT:
		return place | HMM_TABLE_DEVICE | HMM_TABLE_VALID | HMM_TABLE_WRITE | HMM_TABLE_COHERENT;
	case HMM_PAGE_ERROR:
		return HMM_TABLE_ERROR;
	default:
		return 0;
	}
}

#endif
