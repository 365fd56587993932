// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * output.c - turns records into JSON by the schema's descriptions, and JSON
 * into text.
 *
 * Enums become their names, flags a list of names, everything else numbers and
 * text; padding is left out. A table first measures its columns, then prints;
 * numbers stand to the right. Running out of memory ends the program: there is
 * nothing to lose here. Main thread.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hmm_protocol.h"
#include "output.h"

#define MOST_COLUMNS 16

static uint64_t read_unsigned(const void *at, size_t size)
{
	uint64_t value = 0;	/* little-endian, as the protocol */

	memcpy(&value, at, size);
	return value;
}

static struct json_object *flag_names(const struct hmm_value_name *names, uint64_t value)
{
	struct json_object *array = json_object_new_array();

	for (; names->name; names++)
		if (value & names->value)
			json_object_array_add(array, json_object_new_string(names->name));
	return array;
}

static struct json_object *field_value(const struct hmm_wire_field *field, const char *at)
{
	switch (field->kind) {
	case HMM_WIRE_SIGNED:
		return json_object_new_int64(field->size == 8 ? (int64_t)read_unsigned(at, 8) :
								(int32_t)read_unsigned(at, 4));
	case HMM_WIRE_ENUM:
		return json_object_new_string(hmm_value_name(field->names,
							     read_unsigned(at, field->size)));
	case HMM_WIRE_FLAGS:
		return flag_names(field->names, read_unsigned(at, field->size));
	case HMM_WIRE_TEXT:
		return json_object_new_string_len(at, (int)strnlen(at, field->size));
	default:
		return json_object_new_uint64(read_unsigned(at, field->size));
	}
}

static struct json_object *object_of(const struct hmm_wire_field *fields, size_t n,
				     const void *record)
{
	struct json_object *object = json_object_new_object();

	for (size_t i = 0; i < n; i++)
		if (fields[i].kind != HMM_WIRE_PAD && strcmp(fields[i].name, "pad"))
			json_object_object_add(object, fields[i].name,
					       field_value(&fields[i],
							   (const char *)record + fields[i].offset));
	return object;
}

struct json_object *output_record(const struct hmm_wire_message *description, const void *record)
{
	return object_of(description->tail_fields, description->tail_field_count, record);
}

struct json_object *output_reply(const void *reply)
{
	const struct hmm_wire_header *header = reply;
	const struct hmm_wire_message *description = hmm_wire_message(header->opcode);

	return object_of(description->fields, description->field_count, reply);
}

struct json_object *output_records(unsigned int opcode, const void *records, size_t record_size,
				   long n)
{
	const struct hmm_wire_message *description = hmm_wire_message(opcode);
	struct json_object *array = json_object_new_array();

	for (long i = 0; i < n; i++)
		json_object_array_add(array, output_record(description, (const char *)records +
							   (size_t)i * record_size));
	return array;
}

char *output_bytes(char *text, uint64_t bytes)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	double value = (double)bytes;
	int unit = 0;

	while (value >= 1024 && unit < 4) {
		value /= 1024;
		unit++;
	}
	snprintf(text, 24, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
	return text;
}

static void time_text(char *text, size_t size, uint64_t ns)
{
	uint64_t seconds = ns / 1000000000;

	if (seconds < 60)
		snprintf(text, size, "%" PRIu64 " s", seconds);
	else if (seconds < 3600)
		snprintf(text, size, "%" PRIu64 " min %" PRIu64 " s", seconds / 60, seconds % 60);
	else if (seconds < 86400)
		snprintf(text, size, "%" PRIu64 " h %" PRIu64 " min", seconds / 3600,
			 seconds / 60 % 60);
	else
		snprintf(text, size, "%" PRIu64 " d %" PRIu64 " h", seconds / 86400,
			 seconds / 3600 % 24);
}

static void list_text(char *text, size_t size, struct json_object *array)
{
	size_t n = json_object_array_length(array), used = 0;

	text[0] = 0;
	for (size_t i = 0; i < n && used < size; i++)
		used += (size_t)snprintf(text + used, size - used, "%s%s", i ? " " : "",
			json_object_get_string(json_object_array_get_idx(array, i)));
}

static void cell_text(char *text, size_t size, struct json_object *object,
		      const struct column *column)
{
	struct json_object *value = NULL;
	char bytes[24];

	text[0] = 0;
	if (!json_object_object_get_ex(object, column->key, &value))
		return;
	if (json_object_is_type(value, json_type_array))
		list_text(text, size, value);
	else if (column->kind == COLUMN_BYTES)
		snprintf(text, size, "%s", output_bytes(bytes, json_object_get_uint64(value)));
	else if (column->kind == COLUMN_AGO)
		time_text(text, size, json_object_get_uint64(value));
	else
		snprintf(text, size, "%s", json_object_get_string(value));
}

/* @blanks: how many are due before the next text of the line, so that none ends it. */
static void print_cell(const char *text, int width, const struct column *column, int *blanks)
{
	int rest = width - (int)strlen(text);

	if (column->kind != COLUMN_TEXT)
		*blanks += rest;
	if (*text) {
		printf("%*s%s", *blanks, "", text);
		*blanks = 0;
	}
	*blanks += column->kind == COLUMN_TEXT ? rest + 2 : 2;
}

void output_table(struct json_object *array, const struct column *columns, const char *empty)
{
	size_t n = json_object_array_length(array);
	int width[MOST_COLUMNS], blanks;
	char text[512];
	size_t c;

	if (!n) {
		puts(empty);
		return;
	}
	for (c = 0; columns[c].key; c++) {
		width[c] = (int)strlen(columns[c].title);
		for (size_t i = 0; i < n; i++) {
			cell_text(text, sizeof(text), json_object_array_get_idx(array, i),
				  &columns[c]);
			if (width[c] < (int)strlen(text))
				width[c] = (int)strlen(text);
		}
	}
	for (c = 0, blanks = 0; columns[c].key; c++)
		print_cell(columns[c].title, width[c], &columns[c], &blanks);
	putchar('\n');
	for (size_t i = 0; i < n; i++) {
		for (c = 0, blanks = 0; columns[c].key; c++) {
			cell_text(text, sizeof(text), json_object_array_get_idx(array, i),
				  &columns[c]);
			print_cell(text, width[c], &columns[c], &blanks);
		}
		putchar('\n');
	}
}

void output_fields(struct json_object *object, const struct column *columns)
{
	size_t width = 0;
	char text[512];

	for (size_t c = 0; columns[c].key; c++)
		if (width < strlen(columns[c].title))
			width = strlen(columns[c].title);
	for (size_t c = 0; columns[c].key; c++) {
		cell_text(text, sizeof(text), object, &columns[c]);
		printf("%-*s  %s\n", (int)width, columns[c].title, text);
	}
}

void output_json(struct json_object *object)
{
	puts(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY |
					    JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(object);
}

void output_json_named(const char *name, struct json_object *value)
{
	struct json_object *object = json_object_new_object();

	json_object_object_add(object, name, value);
	output_json(object);
}
