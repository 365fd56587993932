// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The codec: checks, makes and prints messages from the descriptions that the
 * scanner generated.
 *
 * Happy path: a datagram comes in, hmm_wire_check() walks its description field
 * by field, and from then on the bytes are used in place as the message's
 * struct. There is no unpacking, so there is nothing to allocate.
 *
 * What can fail: anything a peer can write into a datagram. It is refused here,
 * at the edge, with a reason in words; nobody inside looks at it again.
 *
 * Threads: any. There is no state.
 */
#include "hmm_protocol.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "layout.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "messages are used in place");

/* ---- values and their names --------------------------------------------- */

const char *hmm_value_name(const struct hmm_value_name *names, uint64_t value)
{
	for (; names->name; names++)
		if (names->value == value)
			return names->name;
	return "?";
}

int hmm_value_by_name(const struct hmm_value_name *names, const char *name, uint64_t *value)
{
	for (; names->name; names++) {
		if (strcmp(names->name, name) == 0) {
			*value = names->value;
			return 0;
		}
	}
	return -ENOENT;
}

const struct hmm_wire_message *hmm_wire_message(unsigned opcode)
{
	size_t low = 0, high = hmm_wire_message_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (hmm_wire_messages[middle].opcode == opcode)
			return &hmm_wire_messages[middle];
		if (hmm_wire_messages[middle].opcode < opcode)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

const char *hmm_opcode_name(unsigned opcode)
{
	const struct hmm_wire_message *message = hmm_wire_message(opcode);

	return message ? message->name : "?";
}

/* ---- check ---------------------------------------------------------------- */

/* The caller knows that the field lies within the datagram and is 1, 2, 4 or 8 bytes wide. */
static uint64_t number_at(const uint8_t *at, size_t width)
{
	uint64_t value = 0;

	memcpy(&value, at, width);
	return value;
}

static bool all_zero(const uint8_t *at, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (at[i])
			return false;
	return true;
}

static bool printable(uint8_t byte)
{
	return byte >= 0x20 && byte < 0x7f;
}

static const char *text_fault(const uint8_t *at, size_t size)
{
	size_t length = strnlen((const char *)at, size);

	if (length == size)
		return "text without an end";
	for (size_t i = 0; i < length; i++)
		if (!printable(at[i]))
			return "text that is not printable";
	if (!all_zero(at + length, size - length))
		return "bytes after the end of a text";
	return NULL;
}

static const char *range_fault(const struct hmm_wire_field *field, uint64_t addr, uint64_t length)
{
	if (addr & (field->align - 1) || length & (field->align - 1))
		return "range is not aligned";
	if (length == 0)
		return "range is empty";
	if (addr + length < addr)
		return "range wraps around";
	if (addr + length > HMM_VA_END)
		return "range is outside the address space of programs";
	if (field->max && length > field->max)
		return "range is too long";
	return NULL;
}

static uint64_t flags_mask(const struct hmm_value_name *names)
{
	uint64_t mask = 0;

	for (; names->name; names++)
		mask |= names->value;
	return mask;
}

static bool is_value(const struct hmm_value_name *names, uint64_t value)
{
	for (; names->name; names++)
		if (names->value == value)
			return true;
	return false;
}

static const char *field_fault(const struct hmm_wire_field *field, const uint8_t *at)
{
	switch (field->kind) {
	case HMM_WIRE_UNSIGNED:
	case HMM_WIRE_SIGNED:
		return NULL;
	case HMM_WIRE_PAD:
		return all_zero(at, field->size) ? NULL : "reserved bytes are not zero";
	case HMM_WIRE_ENUM:
		return is_value(field->names, number_at(at, field->size)) ?
			NULL : "unknown value of an enumeration";
	case HMM_WIRE_FLAGS:
		return number_at(at, field->size) & ~flags_mask(field->names) ?
			"unknown flags" : NULL;
	case HMM_WIRE_TEXT:
		return text_fault(at, field->size);
	case HMM_WIRE_RANGE:
		return range_fault(field, number_at(at, 8), number_at(at + 8, 8));
	}
	return "field of unknown kind";
}

static const char *fields_fault(const struct hmm_wire_field *fields, size_t count,
				const uint8_t *base)
{
	for (size_t i = 0; i < count; i++) {
		const char *fault = field_fault(&fields[i], base + fields[i].offset);

		if (fault)
			return fault;
	}
	return NULL;
}

static uint64_t tail_count(const struct hmm_wire_message *message, const void *msg)
{
	if (!message->tail_name)
		return 0;
	return number_at((const uint8_t *)msg + message->tail_count_offset, 4);
}

/* Whether the datagram has exactly the bytes that fixed part and tail need. */
static const char *size_fault(const struct hmm_wire_message *message, const void *msg, size_t size)
{
	uint64_t exact;

	if (size < message->size)
		return "message is too short";
	exact = message->size + tail_count(message, msg) * message->tail_size;
	if (size < exact)
		return "message is too short for its count";
	if (size > exact)
		return "message is too long";
	return NULL;
}

/* What makes it impossible to answer: without a sound header there is no serial. */
static const char *header_fault(const void *msg, size_t size, unsigned nfds)
{
	const struct hmm_wire_header *header = msg;

	if (size < sizeof(*header))
		return "message is shorter than a header";
	if (size > HMM_WIRE_MAX)
		return "message is longer than any may be";
	if (header->size != size)
		return "header and datagram differ in size";
	if (header->nfds != nfds)
		return "header and datagram differ in descriptors";
	if (header->reserved)
		return "reserved bits of the header are set";
	return NULL;
}

static const char *serial_fault(const struct hmm_wire_message *message, uint32_t serial)
{
	if (message->any_serial)
		return NULL;
	if (message->serial && serial == 0)
		return "serial is 0";
	if (!message->serial && serial != 0)
		return "event has a serial";
	return NULL;
}

static const char *tail_fault(const struct hmm_wire_message *message, const void *msg)
{
	const uint8_t *element = (const uint8_t *)msg + message->size;
	uint64_t count = tail_count(message, msg);

	if (!message->tail_fields)
		return NULL;
	for (uint64_t i = 0; i < count; i++, element += message->tail_size) {
		const char *fault = fields_fault(message->tail_fields, message->tail_field_count,
						 element);

		if (fault)
			return fault;
	}
	return NULL;
}

static int refuse(const char **why, const char *reason, int error)
{
	*why = reason;
	return error;
}

int hmm_wire_check(const void *msg, size_t size, unsigned nfds, enum hmm_wire_side from,
		   const char **why)
{
	const struct hmm_wire_header *header = msg;
	const struct hmm_wire_message *message;
	const char *unheard, *fault;

	if (!why)
		why = &unheard;
	fault = header_fault(msg, size, nfds);
	if (fault)
		return refuse(why, fault, -EPROTO);

	message = hmm_wire_message(header->opcode);
	if (!message) {
		/* Answering what isn't a request would start an argument that never ends. */
		if (from != HMM_WIRE_CLIENT || header->opcode & (HMM_WIRE_REPLY | HMM_WIRE_EVENT))
			return refuse(why, "unknown reply or event", -EPROTO);
		if (header->serial == 0)
			return refuse(why, "unknown request without a serial", -EPROTO);
		return refuse(why, "unknown request", -EOPNOTSUPP);
	}
	if (message->from != from)
		return refuse(why, "message goes the other way", -EPROTO);
	fault = serial_fault(message, header->serial);
	if (!fault)
		fault = size_fault(message, msg, size);
	if (fault)
		return refuse(why, fault, -EPROTO);

	if (nfds < message->fds_min)
		return refuse(why, "too few descriptors", -EINVAL);
	if (nfds > message->fds_max)
		return refuse(why, "too many descriptors", -EINVAL);
	fault = fields_fault(message->fields, message->field_count, msg);
	if (!fault)
		fault = tail_fault(message, msg);
	if (fault)
		return refuse(why, fault, -EINVAL);
	*why = "";
	return 0;
}

/* ---- make ----------------------------------------------------------------- */

void *hmm_wire_init(void *msg, uint16_t opcode, size_t size, uint32_t serial)
{
	struct hmm_wire_header *header = msg;

	memset(msg, 0, size);
	header->size = size;
	header->opcode = opcode;
	header->serial = serial;
	return msg;
}

void hmm_wire_text(char *dst, size_t size, const char *src)
{
	size_t length = src ? strnlen(src, size - 1) : 0;

	for (size_t i = 0; i < length; i++)
		dst[i] = printable(src[i]) ? src[i] : '?';
	memset(dst + length, 0, size - length);
}

static void text_of_arguments(char *dst, size_t size, const char *format, va_list arguments)
{
	char text[4096];

	if (vsnprintf(text, sizeof(text), format, arguments) < 0)
		text[0] = '\0';
	hmm_wire_text(dst, size, text);
}

void hmm_wire_textf(char *dst, size_t size, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	text_of_arguments(dst, size, format, arguments);
	va_end(arguments);
}

void hmm_wire_error(struct hmm_msg_error *reply, uint32_t serial, int error,
		    const char *format, ...)
{
	va_list arguments;

	HMM_MSG_INIT(*reply, HMM_OP_ERROR, serial);
	reply->error = error;
	va_start(arguments, format);
	text_of_arguments(reply->text, sizeof(reply->text), format, arguments);
	va_end(arguments);
}

/* ---- print ---------------------------------------------------------------- */

#define PRINTED_ELEMENTS	4	/* of a tail; the rest is only counted */
#define PRINTED_BYTES		16

/* A buffer that counts on when it is full. */
struct line {
	char *buf;
	size_t size;
	size_t length;
};

static void __attribute__((format(printf, 2, 3))) put(struct line *line, const char *format, ...)
{
	size_t room = line->length < line->size ? line->size - line->length : 0;
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(room ? line->buf + line->length : NULL, room, format, arguments);
	va_end(arguments);
	if (length > 0)
		line->length += length;
}

static void put_text(struct line *line, const uint8_t *at, size_t size)
{
	put(line, "\"");
	for (size_t i = 0; i < size && at[i]; i++) {
		if (printable(at[i]) && at[i] != '"' && at[i] != '\\')
			put(line, "%c", at[i]);
		else
			put(line, "\\x%02x", at[i]);
	}
	put(line, "\"");
}

static void put_flags(struct line *line, const struct hmm_value_name *names, uint64_t value)
{
	const char *between = "";

	for (; names->name; names++) {
		if (!(value & names->value))
			continue;
		put(line, "%s%s", between, names->name);
		value &= ~names->value;
		between = "|";
	}
	if (value)
		put(line, "%s0x%" PRIx64, between, value);
	else if (!*between)
		put(line, "0");
}

static int64_t signed_at(const uint8_t *at, size_t width)
{
	unsigned unused = 64 - 8 * width;

	return (int64_t)(number_at(at, width) << unused) >> unused;
}

/* Addresses read better in hexadecimal, counts in decimal; without a type, size must tell. */
static void put_number(struct line *line, uint64_t value)
{
	put(line, value < 65536 ? "%" PRIu64 : "0x%" PRIx64, value);
}

static void put_field(struct line *line, const struct hmm_wire_field *field, const uint8_t *at)
{
	if (field->kind == HMM_WIRE_PAD && all_zero(at, field->size))
		return;
	put(line, " %s=", field->name);
	switch (field->kind) {
	case HMM_WIRE_UNSIGNED:
		put_number(line, number_at(at, field->size));
		break;
	case HMM_WIRE_SIGNED:
		put(line, "%" PRId64, signed_at(at, field->size));
		break;
	case HMM_WIRE_PAD:
		put(line, "(not zero)");
		break;
	case HMM_WIRE_ENUM:
		if (is_value(field->names, number_at(at, field->size)))
			put(line, "%s", hmm_value_name(field->names, number_at(at, field->size)));
		else
			put(line, "(%" PRIu64 ")", number_at(at, field->size));
		break;
	case HMM_WIRE_FLAGS:
		put_flags(line, field->names, number_at(at, field->size));
		break;
	case HMM_WIRE_TEXT:
		put_text(line, at, field->size);
		break;
	case HMM_WIRE_RANGE:
		put(line, "0x%" PRIx64 " %s=0x%" PRIx64, number_at(at, 8), field->length_name,
		    number_at(at + 8, 8));
		break;
	}
}

static void put_fields(struct line *line, const struct hmm_wire_field *fields, size_t count,
		       const uint8_t *base)
{
	for (size_t i = 0; i < count; i++)
		put_field(line, &fields[i], base + fields[i].offset);
}

static void put_tail(struct line *line, const struct hmm_wire_message *message, const uint8_t *msg)
{
	const uint8_t *tail = msg + message->size;
	uint64_t count = tail_count(message, msg);
	uint64_t shown = 0;

	put(line, " %s=[", message->tail_name);
	if (message->tail_fields) {
		for (; shown < count && shown < PRINTED_ELEMENTS; shown++) {
			put(line, "{");
			put_fields(line, message->tail_fields, message->tail_field_count,
				   tail + shown * message->tail_size);
			put(line, " }");
		}
	} else {
		for (; shown < count && shown < PRINTED_BYTES; shown++)
			put(line, "%s%" PRIx64, shown ? " " : "",
			    number_at(tail + shown * message->tail_size, message->tail_size));
	}
	put(line, shown < count ? " ...]" : "]");
}

size_t hmm_wire_format(char *buf, size_t n, const void *msg, size_t size)
{
	struct line line = { .buf = buf, .size = n };
	const struct hmm_wire_header *header = msg;
	const struct hmm_wire_message *message;
	const char *fault;

	if (n)
		buf[0] = '\0';
	if (size < sizeof(*header)) {
		put(&line, "(%zu bytes, no header)", size);
		return line.length;
	}
	message = hmm_wire_message(header->opcode);
	if (!message) {
		put(&line, "(opcode 0x%x) serial=%u size=%u nfds=%u, %zu bytes", header->opcode,
		    header->serial, header->size, header->nfds, size);
		return line.length;
	}
	put(&line, "%s serial=%u", message->name, header->serial);
	fault = size_fault(message, msg, size);
	if (fault) {
		put(&line, " (%s: %zu bytes)", fault, size);
		return line.length;
	}
	put_fields(&line, message->fields, message->field_count, msg);
	if (message->tail_name)
		put_tail(&line, message, msg);
	return line.length;
}
