// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * config.c - `key = value` lines in [sections], strictly.
 *
 * One table says what exists: section, key, kind of value, bounds, and whether
 * a reload may change it. The file is read line by line into a copy of the
 * built-in values; then FILE.d/ drop-ins by name, then the command line. The
 * copy replaces *config only when nothing was wrong. All errors are reported,
 * not the first alone, so that one look repairs the file.
 *
 * (libinih was weighed: it joins indented lines to the one above, cuts long
 * lines, and drops the line number in the packaged build.)
 *
 * What can fail: reading, and every word of the files.
 * Thread: control.
 */
#include "daemon/config.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/engine/engine.h"
#include "daemon/log.h"
#include "daemon/memory/card.h"
#include "daemon/memory/holder.h"
#include "hmm_protocol.h"

#define FILE_SIZE_MAX (1 << 20)

#define KiB (1ULL << 10)
#define MiB (1ULL << 20)
#define TiB (1ULL << 40)

enum value_kind {
	VALUE_BOOL,
	VALUE_NUMBER,
	VALUE_SIZE,
	VALUE_MS,
	VALUE_US,
	VALUE_NODE,		/* "any" or a node number */
	VALUE_PLACEMENT,	/* "any", or how and on which nodes */
	VALUE_WORD,		/* one of names */
	VALUE_TEXT,
};

struct word {
	const char *name;
	uint64_t value;
};

struct key {
	const char *section, *name;
	enum value_kind kind;
	size_t offset, room;		/* in struct config; room for VALUE_TEXT */
	uint64_t min, max;
	const char *automatic;		/* the word that stands for 0, if any */
	const struct word *words;
	bool live;			/* a reload takes effect */
};

static const struct word log_words[] = {
	{ "error", LOG_LEVEL_ERROR },
	{ "warning", LOG_LEVEL_WARN },
	{ "info", LOG_LEVEL_INFO },
	{ "debug", LOG_LEVEL_DEBUG },
	{ NULL, 0 },
};

/* In the order of enum tracking_wish. */
static const struct word tracking_words[] = {
	{ "auto", 0 },
	{ "pagemap-scan", 1 },
	{ "uffd-wp", 2 },
	{ "soft-dirty", 3 },
	{ NULL, 0 },
};

static const struct word pool_words[] = {
	{ "memfd", HMM_POOL_KIND_MEMFD },
	{ "memfd-huge", HMM_POOL_KIND_MEMFD_HUGE },
	{ "hugetlb", HMM_POOL_KIND_HUGETLB },
	{ "dax", HMM_POOL_KIND_DAX },
	{ "vfio", HMM_POOL_KIND_VFIO },
	{ NULL, 0 },
};

#define AT(field) \
	.offset = offsetof(struct config, field), .room = sizeof(((struct config *)0)->field)

static const struct key keys[] = {
	{ "daemon", "socket", VALUE_TEXT, AT(socket) },
	{ "daemon", "group", VALUE_TEXT, AT(group) },
	{ "daemon", "user", VALUE_BOOL, AT(user) },
	{ "daemon", "log", VALUE_WORD, AT(log), .words = log_words, .live = true },
	{ "engine", "workers", VALUE_NUMBER, AT(workers), 1, 64, "auto" },
	{ "engine", "io_uring", VALUE_BOOL, AT(io_uring) },
	{ "engine", "move", VALUE_BOOL, AT(move) },
	{ "engine", "spin", VALUE_US, AT(spin_us), 0, 10000 },
	{ "engine", "ack_timeout", VALUE_MS, AT(ack_timeout_ms), 1, 600000 },
	{ "engine", "grace", VALUE_MS, AT(grace_ms), 100, ENGINE_GRACE_MAX_MS },
	{ "engine", "card_grace", VALUE_MS, AT(card_grace_ms), 100, 3600000 },
	{ "engine", "tracking", VALUE_WORD, AT(tracking), .words = tracking_words },
	{ "pool", "kind", VALUE_WORD, AT(pool_kind), .words = pool_words },
	{ "pool", "size", VALUE_SIZE, AT(pool_size), 2 * MiB, 64 * TiB, "auto" },
	{ "pool", "node", VALUE_NODE, AT(pool_node), 0, 1023 },
	{ "pool", "placement", VALUE_PLACEMENT, AT(pool_placement) },
	{ "pool", "card", VALUE_TEXT, AT(pool_card) },
	{ "pool", "bar", VALUE_NUMBER, AT(pool_bar), 0, 5 },
	{ "pool", "reserve", VALUE_BOOL, AT(pool_reserve) },
	{ "pool", "evict_high", VALUE_NUMBER, AT(evict_high), 1, 100 },
	{ "pool", "evict_low", VALUE_NUMBER, AT(evict_low), 1, 100, "auto" },
	{ "limits", "connections", VALUE_NUMBER, AT(connections), 1, 65536, .live = true },
	{ "limits", "owners", VALUE_NUMBER, AT(owners), 1, 65535, .live = true },
	{ "limits", "fds", VALUE_NUMBER, AT(fds), 16, 1048576, .live = true },
	{ "limits", "requests", VALUE_NUMBER, AT(requests), 1, 1048576, .live = true },
	{ "limits", "rings", VALUE_SIZE, AT(rings), 16 * KiB, 64 * 1024 * MiB, .live = true },
	{ "limits", "mirrors", VALUE_NUMBER, AT(mirrors), 1, 1048576, .live = true },
	{ "limits", "memory", VALUE_SIZE, AT(memory), 2 * MiB, 64 * TiB, "unlimited", .live = true },
	{ "limits", "pinned", VALUE_SIZE, AT(pinned), 2 * MiB, 64 * TiB, "unlimited", .live = true },
	{ "limits", "queue", VALUE_SIZE, AT(queue), 128 * KiB, 1024 * MiB, .live = true },
	{ "limits", "stall", VALUE_MS, AT(stall_ms), 10, 3600000, .live = true },
};
#define N_KEYS (sizeof(keys) / sizeof(keys[0]))

/* Where a word was read: "FILE:LINE" or an option. */
struct place {
	const char *file;
	unsigned int line;		/* 0: the command line */
};

struct reading {
	struct config *config;
	FILE *errors;
	unsigned int n_errors;
	unsigned int seen[N_KEYS];	/* line in the present file */
};

__attribute__((format(printf, 3, 4)))
static void complain(struct reading *reading, const struct place *place, const char *format, ...)
{
	va_list args;

	if (place->line)
		fprintf(reading->errors, "%s:%u: ", place->file, place->line);
	else
		fprintf(reading->errors, "%s: ", place->file);
	va_start(args, format);
	vfprintf(reading->errors, format, args);
	va_end(args);
	fputc('\n', reading->errors);
	reading->n_errors++;
}

void config_defaults(struct config *config)
{
	*config = (struct config) {
		.group = "hmm",
		.log = LOG_LEVEL_INFO,
		.io_uring = true,
		.move = true,
		.spin_us = 50,
		.ack_timeout_ms = 1000,
		.grace_ms = 10000,
		.card_grace_ms = HOLDER_GRACE_MS,
		.pool_kind = HMM_POOL_KIND_MEMFD_HUGE,
		.pool_placement = PLACEMENT_ANY,
		.evict_high = 100,
		.connections = 512,
		.owners = 256,
		.fds = 16384,
		.requests = 4096,
		.rings = 64 * MiB,
		.mirrors = 4096,
		.queue = 4 * MiB,
		.stall_ms = 30000,
	};
}

/*
 * Decimal digits alone: no sign, no space, no overflow. Returns the rest, NULL when there is no
 * number.
 */
static const char *parse_digits(const char *text, uint64_t *value)
{
	uint64_t n = 0;

	if (!isdigit((unsigned char)*text))
		return NULL;
	for (; isdigit((unsigned char)*text); text++) {
		if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, *text - '0', &n))
			return NULL;
	}
	*value = n;
	return text;
}

int config_parse_size(const char *text, uint64_t *bytes)
{
	static const char units[] = "KMGT";
	const char *rest, *unit;
	uint64_t n;
	unsigned int shift;

	rest = parse_digits(text, &n);
	if (!rest)
		return -EINVAL;
	if (*rest) {
		unit = strchr(units, *rest);
		if (!unit || rest[1])
			return -EINVAL;
		shift = 10 * (unsigned int)(unit - units + 1);
		if (n > UINT64_MAX >> shift)
			return -EINVAL;
		n <<= shift;
	}
	if (n % 4096)
		return -EINVAL;
	*bytes = n;
	return 0;
}

int config_parse_time(const char *text, uint64_t unit_us, uint64_t *value)
{
	static const struct {
		const char *suffix;
		uint64_t us;
	} units[] = { { "us", 1 }, { "ms", 1000 }, { "s", 1000000 } };
	const char *rest;
	uint64_t n, us;
	size_t i;

	rest = parse_digits(text, &n);
	if (!rest)
		return -EINVAL;
	for (i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
		if (strcmp(rest, units[i].suffix))
			continue;
		if (__builtin_mul_overflow(n, units[i].us, &us) || us % unit_us)
			return -EINVAL;
		*value = us / unit_us;
		return 0;
	}
	return -EINVAL;
}

static void print_size(char *out, size_t room, uint64_t bytes)
{
	static const char units[] = "\0KMGT";
	unsigned int i = 0;

	while (i < 4 && bytes && bytes % 1024 == 0) {
		bytes /= 1024;
		i++;
	}
	snprintf(out, room, "%llu%.1s", (unsigned long long)bytes, units + i);
}

static void print_time(char *out, size_t room, uint64_t us)
{
	if (us && us % 1000000 == 0)
		snprintf(out, room, "%llus", (unsigned long long)us / 1000000);
	else if (us % 1000 == 0)
		snprintf(out, room, "%llums", (unsigned long long)us / 1000);
	else
		snprintf(out, room, "%lluus", (unsigned long long)us);
}

/* What the key takes, in words. */
static void describe_key(const struct key *key, char *out, size_t room)
{
	char low[32], high[32];
	const struct word *word;
	uint64_t unit = key->kind == VALUE_US ? 1 : 1000;
	size_t used = 0;

	switch (key->kind) {
	case VALUE_BOOL:
		snprintf(out, room, "yes or no");
		break;
	case VALUE_NUMBER:
		used = snprintf(out, room, "a number from %llu to %llu",
				(unsigned long long)key->min, (unsigned long long)key->max);
		break;
	case VALUE_SIZE:
		print_size(low, sizeof(low), key->min);
		print_size(high, sizeof(high), key->max);
		used = snprintf(out, room,
				"a size from %s to %s in pages of 4K, such as 512M or 4G", low,
				high);
		break;
	case VALUE_MS:
	case VALUE_US:
		print_time(low, sizeof(low), key->min * unit);
		print_time(high, sizeof(high), key->max * unit);
		used = snprintf(out, room, "a time from %s to %s with its unit, %s", low, high,
				unit == 1 ? "us, ms or s" : "ms or s");
		break;
	case VALUE_NODE:
		snprintf(out, room, "any or a memory node's number from %llu to %llu",
			 (unsigned long long)key->min, (unsigned long long)key->max);
		break;
	case VALUE_PLACEMENT:
		snprintf(out, room, "any, or bind:, preferred: or interleave: with memory nodes, such as bind:1 or interleave:0-1");
		break;
	case VALUE_WORD:
		for (word = key->words; word->name && used < room; word++)
			used += snprintf(out + used, room - used, "%s%s",
					 word == key->words ? ""
					 : word[1].name	    ? ", "
							    : " or ",
					 word->name);
		break;
	case VALUE_TEXT:
		snprintf(out, room, "a plain text of at most %zu bytes", key->room - 1);
		break;
	}
	if (key->automatic && used < room)
		snprintf(out + used, room - used, ", or %s", key->automatic);
}

static bool is_printable(const char *text)
{
	for (; *text; text++) {
		if (!isprint((unsigned char)*text))
			return false;
	}
	return true;
}

static int parse_bool(const char *text, bool *value)
{
	if (!strcmp(text, "yes"))
		*value = true;
	else if (!strcmp(text, "no"))
		*value = false;
	else
		return -EINVAL;
	return 0;
}

static int parse_word(const struct word *words, const char *text, uint64_t *value)
{
	for (; words->name; words++) {
		if (!strcmp(words->name, text)) {
			*value = words->value;
			return 0;
		}
	}
	return -EINVAL;
}

static int parse_number(const struct key *key, const char *text, uint64_t *value)
{
	const char *rest;
	int r = 0;

	switch (key->kind) {
	case VALUE_SIZE:
		r = config_parse_size(text, value);
		break;
	case VALUE_MS:
		r = config_parse_time(text, 1000, value);
		break;
	case VALUE_US:
		r = config_parse_time(text, 1, value);
		break;
	default:
		rest = parse_digits(text, value);
		r = rest && !*rest ? 0 : -EINVAL;
		break;
	}
	if (r < 0 || *value < key->min || *value > key->max)
		return -EINVAL;
	return 0;
}

static int store_value(struct config *config, const struct key *key, const char *text)
{
	void *field = (char *)config + key->offset;
	uint64_t *number = field;
	uint64_t value = 0;
	int r;

	switch (key->kind) {
	case VALUE_BOOL:
		return parse_bool(text, field);
	case VALUE_WORD:
		return parse_word(key->words, text, number);
	case VALUE_TEXT:
		if (strlen(text) >= key->room || !is_printable(text))
			return -EINVAL;
		memset(field, 0, key->room);
		memcpy(field, text, strlen(text));
		return 0;
	case VALUE_PLACEMENT:
		return placement_parse(field, text);
	case VALUE_NODE:
		if (!strcmp(text, "any")) {
			*number = 0;
			return 0;
		}
		r = parse_number(key, text, &value);
		if (!r)
			*number = value + 1;
		return r;
	default:
		if (key->automatic && !strcmp(text, key->automatic)) {
			*number = 0;
			return 0;
		}
		r = parse_number(key, text, &value);
		if (!r)
			*number = value;
		return r;
	}
}

static const struct key *find_key(const char *section, const char *name)
{
	size_t i;

	for (i = 0; i < N_KEYS; i++) {
		if (!strcmp(keys[i].section, section) && !strcmp(keys[i].name, name))
			return &keys[i];
	}
	return NULL;
}

/* "a, b, c": the sections (@section NULL), or the keys of one. "" when there are none. */
static const char *list_known(const char *section, char *out, size_t room)
{
	const char *last = "", *name;
	size_t i, used = 0;

	out[0] = '\0';
	for (i = 0; i < N_KEYS && used < room; i++) {
		if (section && strcmp(keys[i].section, section))
			continue;
		name = section ? keys[i].name : keys[i].section;
		if (!strcmp(name, last))
			continue;
		last = name;
		used += snprintf(out + used, room - used, "%s%s", used ? ", " : "", name);
	}
	return out;
}

static void set_key(struct reading *reading, const struct place *place, const char *section,
		    const char *name, const char *value)
{
	const struct key *key = find_key(section, name);
	char known[256];

	if (!key) {
		complain(reading, place, "unknown key '%s' in [%s]; known are: %s", name, section,
			 list_known(section, known, sizeof(known)));
		return;
	}
	if (place->line) {
		unsigned int *seen = &reading->seen[key - keys];

		if (*seen) {
			complain(reading, place, "'%s' was set before, in line %u", name, *seen);
			return;
		}
		*seen = place->line;
	}
	if (store_value(reading->config, key, value) < 0) {
		describe_key(key, known, sizeof(known));
		if (place->line)
			complain(reading, place, "'%s' is '%s'; it must be %s", name, value, known);
		else
			complain(reading, place, "'%s' must be %s, not '%s'", name, known, value);
	}
}

/* Cuts white space off both ends, in place. */
static char *strip(char *text)
{
	char *end;

	while (*text == ' ' || *text == '\t')
		text++;
	end = text + strlen(text);
	while (end > text && (end[-1] == ' ' || end[-1] == '\t'))
		end--;
	*end = '\0';
	return text;
}

/* @section: the one the line is in, "" before any, NULL in one that is unknown. */
static void read_line(struct reading *reading, const struct place *place, char *line,
		      const char **section)
{
	char known[256], *equals, *end, *key;
	size_t i;

	line = strip(line);
	if (!*line || *line == '#' || *line == ';')
		return;

	if (*line == '[') {
		end = strchr(line, ']');
		*section = NULL;
		if (!end || end[1]) {
			complain(reading, place, "'%s' is not a [section]", line);
			return;
		}
		*end = '\0';
		for (i = 0; i < N_KEYS; i++) {
			if (!strcmp(keys[i].section, line + 1))
				*section = keys[i].section;
		}
		if (!*section)
			complain(reading, place, "unknown section [%s]; known are: %s", line + 1,
				 list_known(NULL, known, sizeof(known)));
		return;
	}

	equals = strchr(line, '=');
	if (!equals || equals == line) {
		complain(reading, place, "'%s' is neither 'key = value', [section] nor a # comment",
			 line);
		return;
	}
	*equals = '\0';
	key = strip(line);
	if (!*section)
		return;
	if (!**section) {
		complain(reading, place, "'%s' stands before any [section]; sections are: %s", key,
			 list_known(NULL, known, sizeof(known)));
		return;
	}
	set_key(reading, place, *section, key, strip(equals + 1));
}

/*
 * The whole file, NUL-terminated, or NULL with errno. Regular files only: a fifo would hang the
 * control thread.
 */
static char *slurp(const char *path, size_t *size)
{
	struct stat st;
	char *text = NULL;
	ssize_t n;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return NULL;
	if (fstat(fd, &st) < 0)
		goto out;
	if (!S_ISREG(st.st_mode)) {
		errno = S_ISDIR(st.st_mode) ? EISDIR : EINVAL;
		goto out;
	}
	if (st.st_size > FILE_SIZE_MAX) {
		errno = EFBIG;
		goto out;
	}
	text = malloc(st.st_size + 1);
	if (!text)
		goto out;
	*size = 0;
	while (*size < (size_t)st.st_size) {
		n = read(fd, text + *size, st.st_size - *size);
		if (n < 0) {
			free(text);
			text = NULL;
			goto out;
		}
		if (n == 0)
			break;
		*size += n;
	}
	text[*size] = '\0';
out:
	n = errno;
	close(fd);
	errno = (int)n;
	return text;
}

static void read_file(struct reading *reading, const char *path, bool must_exist)
{
	struct place place = { .file = path };
	const char *section = "";
	char *text, *line, *next;
	size_t size;

	text = slurp(path, &size);
	if (!text) {
		if (errno != ENOENT || must_exist)
			complain(reading, &place, "cannot be read: %s", strerror(errno));
		return;
	}

	memset(reading->seen, 0, sizeof(reading->seen));
	for (line = text; line < text + size; line = next) {
		char *end = memchr(line, '\n', text + size - line);

		if (!end)
			end = text + size;
		next = end + 1;
		*end = '\0';
		place.line++;
		if (strlen(line) != (size_t)(end - line))
			complain(reading, &place, "holds a zero byte; this is no text file");
		else
			read_line(reading, &place, line, &section);
	}
	free(text);
}

static int is_drop_in(const struct dirent *entry)
{
	size_t length = strlen(entry->d_name);

	return entry->d_name[0] != '.' && length > 5 &&
	       !strcmp(entry->d_name + length - 5, ".conf");
}

/* By bytes, whatever the locale: 10-a.conf before 20-b.conf everywhere. */
static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static void read_drop_ins(struct reading *reading, const char *file)
{
	struct dirent **entries;
	char path[PATH_MAX];
	struct place place = { .file = path };
	int i, n;

	snprintf(path, sizeof(path), "%s.d", file);
	n = scandir(path, &entries, is_drop_in, by_name);
	if (n < 0) {
		if (errno != ENOENT && errno != ENOTDIR)
			complain(reading, &place, "cannot be read: %s", strerror(errno));
		return;
	}
	for (i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s.d/%s", file, entries[i]->d_name);
		read_file(reading, path, true);
		free(entries[i]);
	}
	free(entries);
}

int config_load(struct config *config, const struct config_source *source, FILE *errors)
{
	struct config fresh;
	struct reading reading = { .config = &fresh, .errors = errors };
	unsigned int i;

	config_defaults(&fresh);
	if (source->file) {
		read_file(&reading, source->file, source->must_exist);
		read_drop_ins(&reading, source->file);
	}
	for (i = 0; i < source->n_overrides; i++) {
		const struct config_override *override = &source->overrides[i];
		struct place place = { .file = override->option };

		set_key(&reading, &place, override->section, override->key, override->value);
	}
	if (fresh.pool_node && fresh.pool_placement.mode != HMM_PLACEMENT_ANY) {
		fprintf(errors, "node is %llu, and placement says where, too: one of them is enough\n",
			(unsigned long long)fresh.pool_node - 1);
		reading.n_errors++;
	}
	if ((fresh.pool_kind == HMM_POOL_KIND_VFIO) != (*fresh.pool_card != '\0')) {
		fprintf(errors, "%s\n", *fresh.pool_card ? "card says whose BAR is the pool: it goes with kind = vfio" :
							   "kind is vfio: card has to say whose BAR is the pool");
		reading.n_errors++;
	} else if (*fresh.pool_card && !card_number(fresh.pool_card)) {
		fprintf(errors, "card is '%s', which is no PCI address: it looks like 0000:00:04.0\n", fresh.pool_card);
		reading.n_errors++;
	}
	if (fresh.pool_kind == HMM_POOL_KIND_VFIO && (fresh.pool_node || fresh.pool_placement.mode != HMM_PLACEMENT_ANY)) {
		fprintf(errors, "kind is vfio: a card's memory is on no memory node, so node and placement say nothing\n");
		reading.n_errors++;
	}
	if (fresh.pool_kind == HMM_POOL_KIND_VFIO && fresh.pool_reserve) {
		fprintf(errors, "kind is vfio: a card's memory is there, and nothing of it is to be reserved\n");
		reading.n_errors++;
	}
	if (fresh.evict_low > fresh.evict_high) {
		fprintf(errors, "evict_low is %llu and evict_high %llu: devices can't be emptied to more than what is too much\n",
			(unsigned long long)fresh.evict_low, (unsigned long long)fresh.evict_high);
		reading.n_errors++;
	}
	if (reading.n_errors)
		return -EINVAL;
	*config = fresh;
	return 0;
}

struct placement config_placement(const struct config *config)
{
	struct placement placement = config->pool_placement;
	const char *why;

	if (config->pool_node)
		placement_make(&placement, HMM_PLACEMENT_BIND, (int32_t)config->pool_node - 1, 0, &why);
	return placement;
}

unsigned int config_frozen_changes(const struct config *old, const struct config *new, char *names,
				   size_t size)
{
	unsigned int changes = 0;
	size_t i, used = 0;

	if (size)
		names[0] = '\0';
	for (i = 0; i < N_KEYS; i++) {
		const struct key *key = &keys[i];

		if (key->live || !memcmp((const char *)old + key->offset,
					 (const char *)new + key->offset, key->room))
			continue;
		if (used < size)
			used += snprintf(names + used, size - used, "%s%s.%s", changes ? ", " : "",
					 key->section, key->name);
		changes++;
	}
	return changes;
}

void config_keep_frozen(struct config *new, const struct config *running)
{
	size_t i;

	for (i = 0; i < N_KEYS; i++) {
		const struct key *key = &keys[i];

		if (!key->live)
			memcpy((char *)new + key->offset, (const char *)running + key->offset,
			       key->room);
	}
}
