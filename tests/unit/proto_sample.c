// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Random valid messages. Happy path: zero the buffer, fill the header, then the
 * fixed part and each element of the tail field by field. Nothing can fail; a
 * message that the codec refuses is a fault of one of the two. Any thread.
 */
#include "proto_sample.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "layout.h"

struct sample_random sample_seed(void)
{
	const char *given = getenv("HMM_TEST_SEED");
	struct sample_random random;
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	random.state = given && *given ? strtoull(given, NULL, 0) :
		(uint64_t)now.tv_sec * 1000000007 + now.tv_nsec;
	fprintf(stderr, "HMM_TEST_SEED=%" PRIu64 "\n", random.state);
	if (random.state == 0)
		random.state = 1;	/* xorshift stays at 0 for ever */
	return random;
}

uint64_t sample_next(struct sample_random *random)
{
	uint64_t x = random->state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	random->state = x;
	return x * UINT64_C(0x2545f4914f6cdd1d);
}

uint64_t sample_below(struct sample_random *random, uint64_t bound)
{
	return (sample_next(random) >> 16) % bound;
}

static uint64_t random_of_names(struct sample_random *random, const struct hmm_value_name *names,
				bool flags)
{
	uint64_t value = 0, count = 0;

	while (names[count].name)
		count++;
	if (!flags)
		return names[sample_below(random, count)].value;
	for (uint64_t i = 0; i < count; i++)
		if (sample_next(random) & 1 << 20)
			value |= names[i].value;
	return value;
}

static void random_range(struct sample_random *random, const struct hmm_wire_field *field,
			 uint8_t *at)
{
	uint64_t units = HMM_VA_END / field->align;
	uint64_t longest = field->max ? field->max / field->align : units;
	uint64_t length = 1 + sample_below(random, sample_below(random, 2) ? longest : 3);
	uint64_t addr = sample_below(random, units - length + 1);

	if (sample_below(random, 8) == 0)
		addr = units - length;	/* right up to the end */
	addr *= field->align;
	length *= field->align;
	memcpy(at, &addr, 8);
	memcpy(at + 8, &length, 8);
}

static void random_field(struct sample_random *random, const struct hmm_wire_field *field,
			 uint8_t *at)
{
	uint64_t value;

	switch (field->kind) {
	case HMM_WIRE_PAD:
		return;
	case HMM_WIRE_TEXT:
		value = sample_below(random, field->size);
		for (uint64_t i = 0; i < value; i++)
			at[i] = ' ' + sample_below(random, 95);
		return;
	case HMM_WIRE_RANGE:
		random_range(random, field, at);
		return;
	case HMM_WIRE_ENUM:
	case HMM_WIRE_FLAGS:
		value = random_of_names(random, field->names, field->kind == HMM_WIRE_FLAGS);
		break;
	default:
		value = sample_next(random) >> sample_below(random, 64);
	}
	memcpy(at, &value, field->size);
}

static void random_fields(struct sample_random *random, const struct hmm_wire_field *fields,
			  size_t count, uint8_t *base)
{
	for (size_t i = 0; i < count; i++)
		random_field(random, &fields[i], base + fields[i].offset);
}

size_t sample_message_of(struct sample_random *random, const struct hmm_wire_message *message,
			 void *buf, uint32_t count)
{
	size_t size = message->size + (size_t)count * message->tail_size;
	struct hmm_wire_header *header = buf;
	uint8_t *element = (uint8_t *)buf + message->size;

	hmm_wire_init(buf, message->opcode, size,
		      message->serial ? 1 + sample_below(random, UINT32_MAX) : 0);
	header->nfds = message->fds_min +
		sample_below(random, message->fds_max - message->fds_min + 1);
	random_fields(random, message->fields, message->field_count, buf);
	if (!message->tail_name)
		return size;
	memcpy((uint8_t *)buf + message->tail_count_offset, &count, sizeof(count));
	for (uint32_t i = 0; i < count; i++, element += message->tail_size) {
		if (message->tail_fields)
			random_fields(random, message->tail_fields, message->tail_field_count,
				      element);
		else
			for (uint32_t j = 0; j < message->tail_size; j++)
				element[j] = sample_next(random) >> 40;
	}
	return size;
}

size_t sample_message(struct sample_random *random, const struct hmm_wire_message *message,
		      void *buf)
{
	uint32_t most = 0;

	if (message->tail_name) {
		most = (HMM_WIRE_MAX - message->size) / message->tail_size;
		if (sample_below(random, 16) && most > 8)
			most = 8;
	}
	return sample_message_of(random, message, buf, sample_below(random, (uint64_t)most + 1));
}
