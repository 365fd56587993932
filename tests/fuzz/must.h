/* SPDX-License-Identifier: GPL-2.0-or-later */
/* must.h - what a fuzzer calls a finding: the process ends there, and the input is kept. */
#ifndef TEST_FUZZ_MUST_H
#define TEST_FUZZ_MUST_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define must(condition)			\
	do {				\
		if (!(condition))	\
			abort();	\
	} while (0)

#endif
