// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The codec. Every message of the schema is made at random, must pass, and is
 * then broken in one place at a time: each break must be refused, with the
 * errno that says whether it can be answered. The printer gets buffers of every
 * length, and both get bytes that end where the memory ends.
 *
 * A failure prints the seed; HMM_TEST_SEED takes it back.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "hmm_protocol.h"
#include "layout.h"
#include "proto_sample.h"
#include "tests/leakcheck.h"

#define ROUNDS	50

static union {
	uint64_t align;
	uint8_t bytes[HMM_WIRE_MAX];
	struct hmm_wire_header header;
} good, bad;

static const struct hmm_wire_message *message;
static size_t size;

static enum hmm_wire_side other(enum hmm_wire_side side)
{
	return side == HMM_WIRE_CLIENT ? HMM_WIRE_SERVER : HMM_WIRE_CLIENT;
}

/* bad, a copy of good that the caller has broken, must be refused like this. */
static void expect(size_t bad_size, unsigned nfds, enum hmm_wire_side from, int error,
		   const char *reason)
{
	const char *why = NULL;
	int result = hmm_wire_check(&bad, bad_size, nfds, from, &why);

	cr_assert_eq(result, error, "%s: %d (%s), expected %d (%s)", message->name, result, why,
		     error, reason);
	cr_assert_str_eq(why, reason, "%s", message->name);
	cr_assert_eq(hmm_wire_check(&bad, bad_size, nfds, from, NULL), error);
}

static void expect_value(const char *reason)
{
	expect(size, bad.header.nfds, message->from, -EINVAL, reason);
	memcpy(&bad, &good, size);
}

static void expect_broken(const char *reason)
{
	expect(size, bad.header.nfds, message->from, -EPROTO, reason);
	memcpy(&bad, &good, size);
}

static void make(struct sample_random *random, const struct hmm_wire_message *which)
{
	const char *why = NULL;

	message = which;
	size = sample_message(random, message, &good);
	cr_assert_eq(hmm_wire_check(&good, size, good.header.nfds, message->from, &why), 0,
		     "%s: %s", message->name, why);
	memcpy(&bad, &good, size);
}

#define for_each_message(which) \
	for (const struct hmm_wire_message *which = hmm_wire_messages; \
	     which < hmm_wire_messages + hmm_wire_message_count; which++)

LEAKCHECKED_SUITE(proto_codec);

Test(proto_codec, messages_are_sorted_and_found)
{
	for (size_t i = 0; i < hmm_wire_message_count; i++) {
		cr_assert_eq(hmm_wire_message(hmm_wire_messages[i].opcode), &hmm_wire_messages[i]);
		cr_assert(i == 0 || hmm_wire_messages[i - 1].opcode < hmm_wire_messages[i].opcode);
	}
	cr_assert_null(hmm_wire_message(0));
	cr_assert_null(hmm_wire_message(0x3fff));
	cr_assert_null(hmm_wire_message(0x10000));
	cr_assert_str_eq(hmm_opcode_name(HMM_OP_OPEN), "open");
	cr_assert_str_eq(hmm_opcode_name(HMM_OP_OPEN_REPLY), "open reply");
	cr_assert_str_eq(hmm_opcode_name(HMM_OP_REGION), "region");
	cr_assert_str_eq(hmm_opcode_name(HMM_OP_ERROR), "error");
	cr_assert_str_eq(hmm_opcode_name(0x3fff), "?");
}

Test(proto_codec, valid_messages_pass)
{
	struct sample_random random = sample_seed();

	for_each_message(which)
		for (int i = 0; i < ROUNDS; i++)
			make(&random, which);
}

/* The scanner's own idea of a valid message, which the fuzzer starts from. */
Test(proto_codec, corpus_passes)
{
	for_each_message(which) {
		const char *why = NULL;
		char path[512];
		FILE *file;
		int from, nfds;

		snprintf(path, sizeof(path), "%s/%s", CORPUS, which->name);
		for (char *c = path + strlen(CORPUS); *c; c++)
			if (*c == ' ')
				*c = '_';
		file = fopen(path, "re");
		cr_assert_not_null(file, "%s: %m", path);
		from = fgetc(file);
		nfds = fgetc(file);
		size = fread(&good, 1, sizeof(good), file);
		fclose(file);
		cr_assert_eq(good.header.opcode, which->opcode);
		cr_assert_eq(from, which->from == HMM_WIRE_SERVER);
		cr_assert_eq(hmm_wire_check(&good, size, nfds, which->from, &why), 0, "%s: %s",
			     which->name, why);
	}
}

Test(proto_codec, longest_tails_pass)
{
	struct sample_random random = sample_seed();
	const char *why = NULL;

	for_each_message(which) {
		if (!which->tail_name)
			continue;
		size = sample_message_of(&random, which, &good,
					 (HMM_WIRE_MAX - which->size) / which->tail_size);
		cr_assert_eq(hmm_wire_check(&good, size, good.header.nfds, which->from, &why), 0,
			     "%s: %s", which->name, why);
	}
}

/* 64 MiB and 64 KiB are what the protocol promises in one migrate and one device_read. */
Test(proto_codec, promised_sizes_fit)
{
	cr_assert_leq(sizeof(struct hmm_msg_migrate_reply) + (64 << 20) / HMM_PAGE_SIZE,
		      HMM_WIRE_MAX);
	cr_assert_leq(sizeof(struct hmm_msg_device_read_reply) + 65536, HMM_WIRE_MAX);
	cr_assert_leq(sizeof(struct hmm_msg_device_write) + 65536, HMM_WIRE_MAX);
}

Test(proto_codec, wrong_sizes)
{
	struct sample_random random = sample_seed();

	for_each_message(which) {
		make(&random, which);
		/* Every way to cut it, the header admitting it. */
		for (size_t cut = 0; cut < size; cut += 1 + (cut > 512) * 61) {
			bad.header.size = cut;
			expect(cut, bad.header.nfds, message->from, -EPROTO,
			       cut < sizeof(bad.header) ? "message is shorter than a header" :
			       cut < message->size ? "message is too short" :
			       "message is too short for its count");
		}
		if (size + 1 <= HMM_WIRE_MAX) {
			bad.header.size = size + 1;
			expect(size + 1, bad.header.nfds, message->from, -EPROTO,
			       "message is too long");
		}
		/* A header that lies. */
		bad.header.size = size + 1;
		expect_broken("header and datagram differ in size");
		bad.header.size = size - 1;
		expect_broken("header and datagram differ in size");
		bad.header.size = UINT32_MAX;
		expect_broken("header and datagram differ in size");
	}
}

Test(proto_codec, longer_than_any)
{
	static union {
		struct hmm_wire_header header;
		uint8_t bytes[HMM_WIRE_MAX + 1];
	} huge;
	const char *why = NULL;

	hmm_wire_init(&huge, HMM_OP_DEVICE_WRITE, sizeof(huge), 1);
	cr_assert_eq(hmm_wire_check(&huge, HMM_WIRE_MAX + 1, 0, HMM_WIRE_CLIENT, &why), -EPROTO);
	cr_assert_str_eq(why, "message is longer than any may be");
}

/* A count whose product wraps in 32 bits to the size that is there. */
Test(proto_codec, wrapping_counts)
{
	struct sample_random random = sample_seed();

	for_each_message(which) {
		uint32_t counts[] = { UINT32_MAX, 0x80000000, 0x10000000, 0x1000000, 0x2000001 };

		if (!which->tail_name)
			continue;
		make(&random, which);
		for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
			memcpy(bad.bytes + which->tail_count_offset, &counts[i], 4);
			expect_broken("message is too short for its count");
		}
	}
}

Test(proto_codec, headers)
{
	struct sample_random random = sample_seed();

	for_each_message(which) {
		make(&random, which);
		bad.header.reserved = 1u << sample_below(&random, 32);
		expect_broken("reserved bits of the header are set");
		expect(size, bad.header.nfds, other(which->from), -EPROTO,
		       "message goes the other way");
		expect(size, bad.header.nfds + 1, which->from, -EPROTO,
		       "header and datagram differ in descriptors");
		if (which->serial) {
			bad.header.serial = 0;
			expect_broken("serial is 0");
		} else if (!which->any_serial) {
			bad.header.serial = 1;
			expect_broken("event has a serial");
		}
	}
}

Test(proto_codec, serials_by_meaning)
{
	cr_assert(hmm_wire_message(HMM_OP_HELLO)->serial);
	cr_assert(hmm_wire_message(HMM_OP_HELLO_REPLY)->serial);
	cr_assert(hmm_wire_message(HMM_OP_ACK)->any_serial);	/* nobody answers it */
	cr_assert(hmm_wire_message(HMM_OP_ERROR)->any_serial);	/* may be about the connection */
	cr_assert_not(hmm_wire_message(HMM_OP_INVALIDATE)->serial);
	cr_assert_not(hmm_wire_message(HMM_OP_INVALIDATE)->any_serial);
}

Test(proto_codec, descriptor_counts)
{
	struct sample_random random = sample_seed();

	for_each_message(which) {
		make(&random, which);
		for (unsigned n = 0; n <= HMM_WIRE_MAX_FDS + 1; n++) {
			bad.header.nfds = n;
			if (n < which->fds_min)
				expect_value("too few descriptors");
			else if (n > which->fds_max)
				expect_value("too many descriptors");
			else
				cr_assert_eq(hmm_wire_check(&bad, size, n, which->from, NULL), 0);
		}
	}
	cr_assert_eq(hmm_wire_message(HMM_OP_OPEN)->fds_min, 5);
	cr_assert_eq(hmm_wire_message(HMM_OP_HELLO_REPLY)->fds_min, 0);
	cr_assert_eq(hmm_wire_message(HMM_OP_HELLO_REPLY)->fds_max, 1);
}

Test(proto_codec, unknown_opcodes)
{
	const char *why = NULL;

	for (unsigned opcode = 0; opcode < 0x10000; opcode++) {
		bool answerable = !(opcode & (HMM_WIRE_REPLY | HMM_WIRE_EVENT));

		if (hmm_wire_message(opcode))
			continue;
		hmm_wire_init(&bad, opcode, sizeof(bad.header), 7);
		cr_assert_eq(hmm_wire_check(&bad, sizeof(bad.header), 0, HMM_WIRE_CLIENT, &why),
			     answerable ? -EOPNOTSUPP : -EPROTO, "0x%x: %s", opcode, why);
		cr_assert_eq(hmm_wire_check(&bad, sizeof(bad.header), 0, HMM_WIRE_SERVER, &why),
			     -EPROTO, "0x%x: %s", opcode, why);
		bad.header.serial = 0;
		cr_assert_eq(hmm_wire_check(&bad, sizeof(bad.header), 0, HMM_WIRE_CLIENT, &why),
			     -EPROTO, "0x%x: %s", opcode, why);
	}
}

/* ---- values: each field of each message, and of each element of its tail ------- */

static void break_enum(const struct hmm_wire_field *field, uint8_t *at)
{
	for (uint64_t value = 0; value < 40; value++) {
		if (strcmp(hmm_value_name(field->names, value), "?") != 0)
			continue;
		memcpy(at, &value, field->size);
		expect_value("unknown value of an enumeration");
	}
	memset(at, 0xff, field->size);
	expect_value("unknown value of an enumeration");
	at[3] = 0x80;
	expect_value("unknown value of an enumeration");
}

static void break_flags(const struct hmm_wire_field *field, uint8_t *at)
{
	cr_assert_eq(field->size, 8);
	for (int bit = 0; bit < 64; bit++) {
		uint64_t value = UINT64_C(1) << bit;

		memcpy(at, &value, 8);
		if (strcmp(hmm_value_name(field->names, value), "?") == 0)
			expect_value("unknown flags");
		else
			cr_assert_eq(hmm_wire_check(&bad, size, bad.header.nfds, message->from,
						    NULL), 0);
	}
	memcpy(&bad, &good, size);
}

static void break_text(const struct hmm_wire_field *field, uint8_t *at)
{
	static const uint8_t unprintable[] = {
		0x01, '\n', '\t', 0x1b, 0x1f, 0x7f, 0x80, 0xc3, 0xff
	};

	memset(at, 'x', field->size);
	expect_value("text without an end");
	memset(at, 'x', field->size);
	at[field->size - 1] = 0;
	cr_assert_eq(hmm_wire_check(&bad, size, bad.header.nfds, message->from, NULL), 0);
	for (size_t i = 0; i < sizeof(unprintable); i++) {
		memset(at, 0, field->size);
		at[0] = unprintable[i];
		expect_value("text that is not printable");
		memset(at, 'x', field->size - 1);
		at[field->size - 1] = 0;
		at[field->size - 2] = unprintable[i];
		expect_value("text that is not printable");
	}
	memset(at, 0, field->size);
	at[field->size - 1] = 'x';
	expect_value("bytes after the end of a text");
	memset(at, 0, field->size);
	at[1] = 0xff;
	expect_value("bytes after the end of a text");
}

static void set_range(uint8_t *at, uint64_t addr, uint64_t length)
{
	memcpy(at, &addr, 8);
	memcpy(at + 8, &length, 8);
}

static void break_range(const struct hmm_wire_field *field, uint8_t *at)
{
	uint64_t unit = field->align, end = HMM_VA_END;
	static const struct {
		uint64_t addr, length;
		const char *reason;
	} broken[] = {
		{ 0x10001, 0x1000, "range is not aligned" },
		{ 0x10800, 0x1000, "range is not aligned" },
		{ 0x10000, 0x1001, "range is not aligned" },
		{ 0x10000, 1, "range is not aligned" },
		{ UINT64_MAX, UINT64_MAX, "range is not aligned" },
		{ 0x10000, 0, "range is empty" },
		{ 0x1000, -UINT64_C(0x1000), "range wraps around" },
		{ 0x2000, -UINT64_C(0x1000), "range wraps around" },
		{ -UINT64_C(0x1000), 0x2000, "range wraps around" },
		{ 0xffff800000000000, 0x1000, "range is outside the address space of programs" },
		{ 0xffffffffff600000, 0x1000, "range is outside the address space of programs" },
		{ 0x800000000000, 0x1000, "range is outside the address space of programs" },
		{ 0x7ffffffff000, 0x2000, "range is outside the address space of programs" },
		{ 0x1000, 0x800000000000, "range is outside the address space of programs" },
	};

	cr_assert_eq(unit, 4096, "the table above is for pages");
	for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
		set_range(at, broken[i].addr, broken[i].length);
		expect_value(broken[i].reason);
	}
	set_range(at, end - unit, unit);
	cr_assert_eq(hmm_wire_check(&bad, size, bad.header.nfds, message->from, NULL), 0);
	set_range(at, 0, field->max ? field->max : end);
	cr_assert_eq(hmm_wire_check(&bad, size, bad.header.nfds, message->from, NULL), 0);
	if (field->max) {
		set_range(at, 0x10000, field->max + unit);
		expect_value("range is too long");
	}
	memcpy(&bad, &good, size);
}

static void break_fields(const struct hmm_wire_field *fields, size_t count, uint8_t *base)
{
	for (const struct hmm_wire_field *field = fields; field < fields + count; field++) {
		uint8_t *at = base + field->offset;

		switch (field->kind) {
		case HMM_WIRE_PAD:
			for (int i = 0; i < field->size; i++) {
				at[i] = 1 << i % 8;
				expect_value("reserved bytes are not zero");
			}
			break;
		case HMM_WIRE_ENUM:
			break_enum(field, at);
			break;
		case HMM_WIRE_FLAGS:
			break_flags(field, at);
			break;
		case HMM_WIRE_TEXT:
			break_text(field, at);
			break;
		case HMM_WIRE_RANGE:
			break_range(field, at);
			break;
		case HMM_WIRE_UNSIGNED:
		case HMM_WIRE_SIGNED:
			break;
		}
	}
}

Test(proto_codec, bad_values)
{
	struct sample_random random = sample_seed();

	for_each_message(which) {
		make(&random, which);
		break_fields(which->fields, which->field_count, bad.bytes);
	}
}

Test(proto_codec, bad_values_in_tails)
{
	struct sample_random random = sample_seed();

	for_each_message(which) {
		if (!which->tail_fields)
			continue;
		message = which;
		size = sample_message_of(&random, which, &good, 3);
		memcpy(&bad, &good, size);
		for (int i = 0; i < 3; i++)
			break_fields(which->tail_fields, which->tail_field_count,
				     bad.bytes + which->size + i * which->tail_size);
	}
}

/* Two descriptions of one layout: the struct that C sees, and the table that is checked. */
Test(proto_codec, descriptions_cover_every_byte)
{
	for_each_message(which) {
		uint32_t at = sizeof(struct hmm_wire_header);

		for (size_t i = 0; i < which->field_count; i++) {
			cr_assert_eq(which->fields[i].offset, at, "%s.%s", which->name,
				     which->fields[i].name);
			at += which->fields[i].size;
		}
		cr_assert_eq(which->size, at, "%s", which->name);
		at = 0;
		for (size_t i = 0; i < which->tail_field_count; i++) {
			cr_assert_eq(which->tail_fields[i].offset, at, "%s", which->name);
			at += which->tail_fields[i].size;
		}
		cr_assert(!which->tail_fields || which->tail_size == at, "%s", which->name);
	}
}

/* ---- make ------------------------------------------------------------------------ */

Test(proto_codec, a_message_in_bytes)
{
	static const uint8_t bytes[64] = {
		64, 0, 0, 0, 12, 0, 0, 0, 0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0,
		3, 0, 0, 0, 1, 0, 0, 0,
		0, 0x10, 0, 0, 0, 0x7f, 0, 0,
		0, 0, 0x20, 0, 0, 0, 0, 0,
		1, 0, 0, 0, 0, 0, 0, 0,
	};
	struct hmm_msg_migrate migrate;

	HMM_MSG_INIT(migrate, HMM_OP_MIGRATE, 0x12345678);
	migrate.mirror = 3;
	migrate.target = HMM_TARGET_DEVICE;
	migrate.addr = 0x7f0000001000;
	migrate.length = 2 << 20;
	migrate.flags = HMM_MIGRATE_FLAGS_POPULATE;
	cr_assert_eq(sizeof(migrate), 48);
	migrate.header.size = 64;
	cr_assert_arr_eq(&migrate, bytes, sizeof(migrate));
}

Test(proto_codec, text_always_passes)
{
	static const struct {
		const char *src, *dst;
	} texts[] = {
		{ NULL, "" },
		{ "", "" },
		{ "gpu0", "gpu0" },
		{ "exactly", "exactly" },
		{ "too long by far", "too lon" },
		{ "a\nb\x7f\xc3\xa4", "a?b???" },
	};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		char dst[8];

		memset(dst, 0xee, sizeof(dst));
		hmm_wire_text(dst, sizeof(dst), texts[i].src);
		cr_assert_str_eq(dst, texts[i].dst);
		for (size_t j = strlen(dst); j < sizeof(dst); j++)
			cr_assert_eq(dst[j], 0);
	}
}

Test(proto_codec, errors_are_valid_messages)
{
	static char path[8192];
	struct hmm_msg_error reply;
	const char *why = NULL;

	memset(path, '/', sizeof(path) - 1);
	hmm_wire_error(&reply, 9, -ENOENT, "no device '%s': %s\n", path, "look");
	cr_assert_eq(hmm_wire_check(&reply, sizeof(reply), 0, HMM_WIRE_SERVER, &why), 0, "%s", why);
	cr_assert_eq(reply.error, -ENOENT);
	cr_assert_eq(strlen(reply.text), sizeof(reply.text) - 1);
	hmm_wire_error(&reply, 9, -EINVAL, "%s", "range is empty");
	cr_assert_str_eq(reply.text, "range is empty");
}

Test(proto_codec, values_by_name)
{
	uint64_t value = 42;

	cr_assert_eq(hmm_value_by_name(hmm_role_names, "tool", &value), 0);
	cr_assert_eq(value, HMM_ROLE_TOOL);
	cr_assert_eq(hmm_value_by_name(hmm_role_names, "too", &value), -ENOENT);
	cr_assert_eq(value, HMM_ROLE_TOOL);
	cr_assert_str_eq(hmm_feature_name(HMM_FEATURE_MOVE), "move");
	cr_assert_str_eq(hmm_feature_name(0), "?");
	cr_assert_str_eq(hmm_target_name(HMM_TARGET_SYSTEM), "system");
	cr_assert_str_eq(hmm_reason_name(999), "?");
	for (const struct hmm_value_name *n = hmm_feature_names; n->name; n++) {
		cr_assert(HMM_FEATURE_MASK & n->value);
		cr_assert_gt(strlen(n->doc), 0, "nothing to say of %s", n->name);
	}
}

/* ---- print ----------------------------------------------------------------------- */

Test(proto_codec, printed_lines)
{
	struct hmm_msg_hello hello;
	struct hmm_msg_device_new device;
	struct hmm_msg_invalidate event;
	union {
		struct hmm_msg_migrate_reply reply;
		uint8_t bytes[sizeof(struct hmm_msg_migrate_reply) + 20];
	} result;
	char line[1024];

	HMM_MSG_INIT(hello, HMM_OP_HELLO, 1);
	hello.version_min = hello.version_max = 1;
	hello.role = HMM_ROLE_OWNER;
	HMM_MSG_TEXT(hello.name, "a \"b\" \\");
	hmm_wire_format(line, sizeof(line), &hello, sizeof(hello));
	cr_assert_str_eq(line, "hello serial=1 version_min=1 version_max=1 capabilities=0 "
			 "role=owner name=\"a \\x22b\\x22 \\x5c\"");
	hello.role = 77;
	hello.pad = 1;
	hello.name[0] = '\n';
	hello.name[1] = 0;
	hmm_wire_format(line, sizeof(line), &hello, sizeof(hello));
	cr_assert_str_eq(line, "hello serial=1 version_min=1 version_max=1 capabilities=0 "
			 "role=(77) pad=(not zero) name=\"\\x0a\"");

	HMM_MSG_INIT(device, HMM_OP_DEVICE_NEW, 2);
	device.pool = HMM_POOL_KIND_MEMFD_HUGE;
	device.node = -1;
	device.size = 1 << 30;
	device.caps = HMM_DEVICE_CAPS_FAULTS | HMM_DEVICE_CAPS_DMA | 1 << 20;
	hmm_wire_format(line, sizeof(line), &device, sizeof(device));
	cr_assert_str_eq(line, "device_new serial=2 pool=memfd_huge node=-1 size=0x40000000 "
			 "caps=faults|dma|0x100000 name=\"\" placement=any again=0 nodes=0 bus=\"\" bar=0 memory_bus=\"\"");

	HMM_MSG_INIT(event, HMM_OP_INVALIDATE, 0);
	event.reason = HMM_REASON_UNMAP;
	event.start = 0x1000;
	event.end = 0x7f0000000000;
	hmm_wire_format(line, sizeof(line), &event, sizeof(event));
	cr_assert_str_eq(line, "invalidate serial=0 mirror=0 reason=unmap start=4096 "
			 "end=0x7f0000000000 cookie=0 blockable=0");

	hmm_wire_init(&result, HMM_OP_MIGRATE_REPLY, sizeof(struct hmm_msg_migrate_reply) + 20, 3);
	result.reply.count = 20;
	result.reply.results[1] = 10;
	hmm_wire_format(line, sizeof(line), &result, result.reply.header.size);
	cr_assert_str_eq(line, "migrate reply serial=3 pages=0 moved=0 already=0 failed=0 count=20 "
			 "results=[0 a 0 0 0 0 0 0 0 0 0 0 0 0 0 0 ...]");

	hmm_wire_format(line, sizeof(line), &hello, 40);
	cr_assert_str_eq(line, "hello serial=1 (message is too short: 40 bytes)");
	hmm_wire_format(line, sizeof(line), &hello, 3);
	cr_assert_str_eq(line, "(3 bytes, no header)");
	hmm_wire_init(&hello, 0x3fff, sizeof(hello), 5);
	hmm_wire_format(line, sizeof(line), &hello, sizeof(hello));
	cr_assert_str_eq(line, "(opcode 0x3fff) serial=5 size=104 nfds=0, 104 bytes");
}

Test(proto_codec, printer_stays_in_its_buffer)
{
	struct sample_random random = sample_seed();
	static char whole[32768], part[32768];

	for_each_message(which) {
		size_t length;

		make(&random, which);
		length = hmm_wire_format(whole, sizeof(whole), &good, size);
		cr_assert_lt(length, sizeof(whole));
		cr_assert_eq(length, strlen(whole));
		cr_assert_eq(hmm_wire_format(NULL, 0, &good, size), length);
		for (size_t n = 1; n <= length + 2; n++) {
			memset(part, 0x55, length + 16);
			cr_assert_eq(hmm_wire_format(part, n, &good, size), length);
			cr_assert_eq(memcmp(part, whole, n - 1 < length ? n - 1 : length), 0);
			cr_assert_eq(part[n - 1 < length ? n - 1 : length], 0);
			for (size_t i = n; i < length + 16; i++)
				cr_assert_eq(part[i], 0x55, "%s: wrote past %zu", which->name, n);
		}
	}
}

/* ---- any bytes ------------------------------------------------------------------- */

/*
 * Messages bent at random and cut anywhere end at the edge of a page that cannot
 * be touched: neither the check nor the printer may read past what it was given.
 */
Test(proto_codec, never_reads_past_the_end)
{
	struct sample_random random = sample_seed();
	size_t span = (HMM_WIRE_MAX + HMM_PAGE_SIZE - 1) & ~(HMM_PAGE_SIZE - 1);
	uint8_t *map = mmap(NULL, span + HMM_PAGE_SIZE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned passed = 0, refused = 0;

	cr_assert_neq(map, MAP_FAILED);
	cr_assert_eq(mprotect(map + span, HMM_PAGE_SIZE, PROT_NONE), 0);
	for (int round = 0; round < 20 * ROUNDS; round++) {
		struct hmm_wire_header *header;
		unsigned bends = sample_below(&random, 4);
		char line[256];
		size_t cut;

		make(&random, &hmm_wire_messages[sample_below(&random, hmm_wire_message_count)]);
		for (unsigned i = 0; i < bends; i++)
			bad.bytes[sample_below(&random, sample_below(&random, 2) && size > 64 ?
					       64 : size)] = sample_next(&random) >> 24;
		cut = sample_below(&random, 2) ? size : sample_below(&random, size + 1);
		cut &= ~7UL;	/* where a message begins is always aligned */
		header = (struct hmm_wire_header *)(map + span - cut);
		memcpy(header, &bad, cut);
		if (cut >= sizeof(*header) && sample_below(&random, 8))
			header->size = cut;
		if (hmm_wire_check(header, cut, bad.header.nfds, message->from, NULL) == 0)
			passed++;
		else
			refused++;
		hmm_wire_format(line, sizeof(line), header, cut);
		cr_assert_lt(strlen(line), sizeof(line));
	}
	cr_assert_gt(passed, 0);
	cr_assert_gt(refused, 0);
	munmap(map, span + HMM_PAGE_SIZE);
}
