/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a message is, and what may be done with one: check it, make one, print
 * it. The descriptions that this works from (hmm_wire_messages and the tables
 * of names) are generated from protocol.hmm; include the generated
 * hmm_protocol.h, which includes this.
 *
 * Nothing here allocates, blocks or keeps state: any thread may call it.
 */
#ifndef HMM_PROTO_WIRE_H
#define HMM_PROTO_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The longest message: 64 KiB of tail, and room for what is before it. */
#define HMM_WIRE_MAX		(65536 + 1024)
#define HMM_WIRE_MAX_FDS	16

#define HMM_WIRE_EVENT		0x4000	/* bit of an event's opcode */
#define HMM_WIRE_REPLY		0x8000	/* bit of a reply's opcode, beside its request's */

struct hmm_wire_header {
	uint32_t size;		/* of the whole message, this header included */
	uint16_t opcode;
	uint16_t nfds;		/* descriptors that travel with it */
	uint32_t serial;	/* a reply repeats its request's; 0 in events */
	uint32_t reserved;	/* 0 */
};
_Static_assert(sizeof(struct hmm_wire_header) == 16, "header");

/* Who sent a message. */
enum hmm_wire_side {
	HMM_WIRE_CLIENT,
	HMM_WIRE_SERVER,
};

/* ---- values and their names --------------------------------------------- */

struct hmm_value_name {
	uint64_t value;
	const char *name;	/* NULL ends a table */
	const char *doc;	/* "" where the schema has none */
};

/* The name of a value, or "?". */
const char *hmm_value_name(const struct hmm_value_name *names, uint64_t value);
/* 0, or -ENOENT and *value untouched. */
int hmm_value_by_name(const struct hmm_value_name *names, const char *name, uint64_t *value);
/* "open", "open reply", "region"; "?" when there is no such message. */
const char *hmm_opcode_name(unsigned opcode);

/* ---- descriptions, generated -------------------------------------------- */

enum hmm_wire_kind {
	HMM_WIRE_UNSIGNED,
	HMM_WIRE_SIGNED,
	HMM_WIRE_PAD,		/* zero */
	HMM_WIRE_ENUM,		/* one value of names */
	HMM_WIRE_FLAGS,		/* any values of names together */
	HMM_WIRE_TEXT,		/* size bytes; printable, then zeros, at least one */
	HMM_WIRE_RANGE,		/* two u64, address and length; size is 16 */
};

struct hmm_wire_field {
	const char *name;
	const char *length_name;		/* of a range's second half */
	const struct hmm_value_name *names;	/* of enums and flags */
	uint64_t align;				/* of a range */
	uint64_t max;				/* longest range; 0: no bound of its own */
	uint16_t offset;
	uint16_t size;
	enum hmm_wire_kind kind;
};

struct hmm_wire_message {
	const char *name;		/* as hmm_opcode_name() gives it */
	const char *doc;
	const struct hmm_wire_field *fields;
	size_t field_count;
	const char *tail_name;		/* NULL: no tail */
	const struct hmm_wire_field *tail_fields;	/* NULL: plain bytes or numbers */
	size_t tail_field_count;
	uint32_t size;			/* header and fixed part; the tail starts there */
	uint32_t tail_size;		/* of one element */
	uint32_t tail_count_offset;	/* of the u32 that counts them */
	uint16_t opcode;
	uint8_t fds_min;
	uint8_t fds_max;
	enum hmm_wire_side from;
	bool serial;			/* belongs to a request with a reply: serial is not 0 */
	bool any_serial;		/* may have either */
};

extern const struct hmm_wire_message hmm_wire_messages[];
extern const size_t hmm_wire_message_count;

/* NULL when there is no such message. */
const struct hmm_wire_message *hmm_wire_message(unsigned opcode);

/* ---- check ---------------------------------------------------------------- */

/*
 * Whether a message of size bytes, received with nfds descriptors, is one that
 * this side may have sent, and every value in it is one that the schema allows.
 * What passes is used in place. msg is aligned to 8 bytes.
 *
 * 0, or:
 *   -EPROTO      size, header or direction is wrong: disconnect
 *   -EOPNOTSUPP  the opcode is unknown, the header sound: answer with an error
 *   -EINVAL      a value is bad, the header sound: answer with an error
 * and *why says so in words; why may be NULL.
 */
int hmm_wire_check(const void *msg, size_t size, unsigned nfds, enum hmm_wire_side from,
		   const char **why);

/* ---- make ----------------------------------------------------------------- */

/* Zeroes size bytes and fills the header in. Returns msg. */
void *hmm_wire_init(void *msg, uint16_t opcode, size_t size, uint32_t serial);

#define HMM_MSG_INIT(msg, op, serial) \
	hmm_wire_init(&(msg), (op), sizeof(msg), (serial))

/*
 * Text that always passes the check, whatever src holds: cut to fit, '?' for
 * what isn't printable ASCII, zeros after it. A NULL src gives empty text.
 */
void hmm_wire_text(char *dst, size_t size, const char *src);
void hmm_wire_textf(char *dst, size_t size, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

#define HMM_MSG_TEXT(field, src) \
	hmm_wire_text((field), sizeof(field), (src))

struct hmm_msg_error;
/* The whole answer to a request that failed. error is a negative errno. */
void hmm_wire_error(struct hmm_msg_error *reply, uint32_t serial, int error,
		    const char *format, ...) __attribute__((format(printf, 4, 5)));

/* ---- print ---------------------------------------------------------------- */

/*
 * One line without a newline, like snprintf: returns the length that it would
 * have had, writes at most n - 1 bytes of it and a NUL. Any bytes are safe to
 * pass, checked or not; msg is aligned to 8 bytes.
 */
size_t hmm_wire_format(char *buf, size_t n, const void *msg, size_t size);

#endif
