// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Any bytes to the codec. Input: who sent it (lowest bit), how many descriptors
 * came, the datagram. With the second bit set, the header is made to agree with
 * the datagram, so that chance gets past it to the fields.
 *
 * What must hold is more than that nothing crashes: of an accepted message, each
 * promise that callers rely on is looked up again here, in other words than the
 * codec's; and accepted or not, it must print. One thread.
 */
#include <stdlib.h>
#include <string.h>

#include "hmm_protocol.h"
#include "layout.h"
#include "must.h"

static void fields_hold(const struct hmm_wire_field *fields, size_t count, const uint8_t *base,
			size_t room)
{
	for (size_t i = 0; i < count; i++) {
		const uint8_t *at = base + fields[i].offset;
		uint64_t addr, length;

		must(fields[i].offset + fields[i].size <= room);
		if (fields[i].kind == HMM_WIRE_TEXT)
			must(memchr(at, '\0', fields[i].size) && !memchr(at, '\n', fields[i].size));
		if (fields[i].kind != HMM_WIRE_RANGE)
			continue;
		memcpy(&addr, at, 8);
		memcpy(&length, at + 8, 8);
		must(length > 0 && addr < HMM_VA_END && length <= HMM_VA_END - addr);
		must(addr % fields[i].align == 0 && length % fields[i].align == 0);
	}
}

static void promises_hold(const void *msg, size_t size, unsigned nfds, enum hmm_wire_side from)
{
	const struct hmm_wire_header *header = msg;
	const struct hmm_wire_message *message = hmm_wire_message(header->opcode);
	const uint8_t *bytes = msg;
	uint32_t count = 0;

	must(message && message->from == from);
	must(size == header->size && size >= message->size && size <= HMM_WIRE_MAX);
	must(nfds >= message->fds_min && nfds <= message->fds_max && nfds <= HMM_WIRE_MAX_FDS);
	fields_hold(message->fields, message->field_count, bytes, size);
	if (message->tail_name)
		memcpy(&count, bytes + message->tail_count_offset, sizeof(count));
	must(size - message->size == (uint64_t)count * message->tail_size);
	if (message->tail_fields)
		for (uint32_t i = 0; i < count; i++)
			fields_hold(message->tail_fields, message->tail_field_count,
				    bytes + message->size + i * message->tail_size,
				    message->tail_size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum hmm_wire_side from;
	struct hmm_wire_header *header;
	const char *why = NULL;
	char line[128];
	unsigned nfds;
	int result;

	if (size < 2)
		return 0;
	from = data[0] & 1 ? HMM_WIRE_SERVER : HMM_WIRE_CLIENT;
	nfds = data[1];
	size -= 2;
	/* A block of its own, exactly as long: a sanitizer sees the first byte too far. */
	header = malloc(size ? size : 1);
	must(header);
	memcpy(header, data + 2, size);
	if (data[0] & 2 && size >= sizeof(*header)) {
		header->size = size;
		header->nfds = nfds;
		header->reserved = 0;
	}

	result = hmm_wire_check(header, size, nfds, from, &why);
	must(why && (result == 0) == (*why == '\0'));
	if (result == 0)
		promises_hold(header, size, nfds, from);
	memset(line, 'x', sizeof(line));
	hmm_wire_format(line, sizeof(line), header, size);
	must(memchr(line, '\0', sizeof(line)) && !strchr(line, '\n'));
	free(header);
	return 0;
}
