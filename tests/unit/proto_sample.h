/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Random messages that are valid by construction: made from the same
 * descriptions as the codec's checks, but knowing for each kind of field what
 * is right rather than what is wrong.
 */
#ifndef HMM_TESTS_PROTO_SAMPLE_H
#define HMM_TESTS_PROTO_SAMPLE_H

#include "hmm_protocol.h"

/* xorshift64*: the same seed gives the same messages on every machine. */
struct sample_random {
	uint64_t state;
};

/* HMM_TEST_SEED, or the clock's; printed on stderr either way. */
struct sample_random sample_seed(void);
uint64_t sample_next(struct sample_random *random);
uint64_t sample_below(struct sample_random *random, uint64_t bound);

/* Fills buf, HMM_WIRE_MAX bytes and aligned to 8, and returns the message's size. */
size_t sample_message(struct sample_random *random, const struct hmm_wire_message *message,
		      void *buf);
/* With exactly so many elements in the tail. */
size_t sample_message_of(struct sample_random *random, const struct hmm_wire_message *message,
			 void *buf, uint32_t count);

#endif
