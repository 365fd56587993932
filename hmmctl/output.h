/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * output.h - what commands print: tables and fields for people, JSON for
 * programs. Both are made from the same records, by the schema's own names, so
 * what -j calls something is what the protocol manual calls it.
 */
#ifndef HMMCTL_OUTPUT_H
#define HMMCTL_OUTPUT_H

#include <stddef.h>
#include <stdint.h>

#include <json-c/json.h>

enum column_kind {
	COLUMN_TEXT,
	COLUMN_NUMBER,
	COLUMN_BYTES,	/* 1.5 MiB */
	COLUMN_AGO,	/* nanoseconds, as 3 h 20 min */
};

struct column {
	const char *key;	/* the field's name in the schema; NULL ends the columns */
	const char *title;
	enum column_kind kind;
};

/* One record of a list's tail, and the fixed part of a reply. The caller owns the result. */
struct json_object *output_record(const struct hmm_wire_message *description, const void *record);
struct json_object *output_reply(const void *reply);
/* All records of a list as an array. @opcode: of the reply. */
struct json_object *output_records(unsigned int opcode, const void *records, size_t record_size,
				   long n);

/* An array of objects, one line each under a line of titles. @empty: said when there are none. */
void output_table(struct json_object *array, const struct column *columns, const char *empty);
/* One object, one line for each field. */
void output_fields(struct json_object *object, const struct column *columns);
/* @object is given up. */
void output_json(struct json_object *object);
/* {"@name": @value}; both are given up. */
void output_json_named(const char *name, struct json_object *value);

/* "12.5 MiB". @text: room for 24 bytes. Return: @text. */
char *output_bytes(char *text, uint64_t bytes);

#endif
