// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * rig.c - memory, time, processors, a mirror, and one line of JSON per row.
 *
 * Any step that does not do what the measurement rests on (memory that did not
 * become huge, a page that stayed) ends the program with a message: a wrong
 * figure is worse than none. Everything runs on the calling thread.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "bench/rig/rig.h"

void fail(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	fprintf(stderr, "%s: ", program_invocation_short_name);
	vfprintf(stderr, format, list);
	fprintf(stderr, "\n");
	va_end(list);
	exit(EXIT_FAILURE);
}

void hmm_check(long ret, const char *what)
{
	if (ret < 0)
		fail("%s: %s (%s)", what, hmm_last_error(), strerror((int)-ret));
}

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

double now(void)
{
	return (double)now_ns() / 1e9;
}

double waited(pid_t tid)
{
	unsigned long long ns = 0;
	char path[64], text[128];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/schedstat", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n > 0) {
		text[n] = '\0';
		sscanf(text, "%*u %llu", &ns);
	}
	if (fd >= 0)
		close(fd);
	return (double)ns / 1e9;
}

double now_served(void)
{
	double off = waited(gettid());

	return now() - off;
}

pid_t library_thread(const char *name)
{
	struct dirent *entry;
	char path[300], comm[32];
	pid_t found = 0;
	DIR *tasks = opendir("/proc/self/task");

	while (tasks && !found && (entry = readdir(tasks))) {
		FILE *file;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", entry->d_name);
		file = fopen(path, "re");
		if (!file)
			continue;
		if (fgets(comm, sizeof(comm), file) && !strncmp(comm, name, strlen(name)))
			found = atoi(entry->d_name);
		fclose(file);
	}
	if (tasks)
		closedir(tasks);
	return found;
}

/* ---- memory --------------------------------------------------------------------- */

void warm_up(size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		fail("no %zu MiB of memory to measure with", bytes / MIB);
	madvise(memory, bytes, MADV_HUGEPAGE);
	for (size_t at = 0; at < bytes; at += PAGE)
		memory[at] = 1;
	munmap(memory, bytes);
}

void *memory_at(unsigned long addr, size_t bytes, bool huge)
{
	/* Alone between gaps: the kernel would merge it with whatever else is mapped next to it. */
	size_t room = bytes + 2 * BLOCK;
	char *start = mmap((void *)addr, room, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (addr ? MAP_FIXED_NOREPLACE : 0),
			   -1, 0);
	char *memory = (char *)(((unsigned long)start + BLOCK) & ~(BLOCK - 1));

	if (start == MAP_FAILED || mprotect(memory, bytes, PROT_READ | PROT_WRITE) < 0)
		fail("no %zu MiB of memory: %s", bytes / MIB, strerror(errno));
	madvise(memory, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	memset(memory, 0x5a, bytes);
	memory_mark(memory, bytes, 0);
	if (huge && memory_field(memory, bytes, "AnonHugePages:") < bytes / 10 * 9)
		fail("memory did not become huge pages: is transparent_hugepage/enabled 'never', or memory fragmented?");
	return memory;
}

void *memory_new(size_t bytes, bool huge)
{
	return memory_at(0, bytes, huge);
}

void memory_mark(void *memory, size_t bytes, uint64_t seed)
{
	for (size_t at = 0; at < bytes; at += PAGE)
		*(uint64_t *)((char *)memory + at) = seed + at / PAGE;
}

void memory_compare(const void *memory, size_t bytes, uint64_t seed)
{
	for (size_t at = 0; at < bytes; at += PAGE)
		if (*(const uint64_t *)((const char *)memory + at) != seed + at / PAGE)
			fail("page %zu of %zu has wrong bytes", at / PAGE, bytes / PAGE);
}

size_t memory_field(const void *memory, size_t bytes, const char *field)
{
	unsigned long start = (unsigned long)memory, end = start + bytes, from, to;
	FILE *smaps = fopen("/proc/self/smaps", "re");
	bool inside = false;
	size_t sum = 0, kib;
	char line[512];

	if (!smaps)
		fail("/proc/self/smaps: %s", strerror(errno));
	while (fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			inside = from < end && to > start;
		else if (inside && !strncmp(line, field, strlen(field)) &&
			 sscanf(line + strlen(field), "%zu", &kib) == 1)
			sum += kib << 10;
	}
	fclose(smaps);
	return sum;
}

uint64_t random_next(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

uint32_t *permutation(uint32_t n, uint64_t seed)
{
	uint32_t *order = malloc(n * sizeof(*order));

	if (!order)
		fail("out of memory");
	for (uint32_t i = 0; i < n; i++)
		order[i] = i;
	for (uint32_t i = n - 1; i > 0; i--) {
		uint32_t j = (uint32_t)(random_next(&seed) % (i + 1)), kept = order[i];

		order[i] = order[j];
		order[j] = kept;
	}
	return order;
}

void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (cpu < 0 || i == cpu)
			CPU_SET(i, &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0)
		fail("processor %d: %s", cpu, strerror(errno));
}

/* ---- our side ------------------------------------------------------------------------ */

static const struct hmm_mirror_ops no_ops = { .size = sizeof(no_ops) };

void mirrored_open(struct mirrored *mirrored, size_t bytes)
{
	struct hmm_device_options options = { .size = sizeof(options), .memory = bytes, .node = -1,
					      .caps = HMM_DEVICE_FAULTS };
	char name[64];

	snprintf(name, sizeof(name), "bench-%d", getpid());
	options.name = name;
	mirrored->mirror = (struct hmm_mirror){ .ops = &no_ops };
	hmm_check(hmm_open(NULL, &mirrored->hmm), "hmm_open");
	hmm_check(hmm_device_new(mirrored->hmm, &options, &mirrored->mirror.device), "hmm_device_new");
	hmm_check(hmm_mirror_register(&mirrored->mirror, mirrored->hmm), "hmm_mirror_register");
}

void mirrored_close(struct mirrored *mirrored)
{
	hmm_check(hmm_mirror_unregister(&mirrored->mirror), "hmm_mirror_unregister");
	hmm_device_put(mirrored->mirror.device);
	hmm_close(mirrored->hmm);
}

void move_all(struct mirrored *mirrored, void *memory, size_t bytes, enum hmm_target target)
{
	struct hmm_migrate_report report;
	uint8_t results[512];
	long n = hmm_migrate(&mirrored->mirror, (unsigned long)memory, bytes, target, 0, NULL, &report);

	hmm_check(n, "hmm_migrate");
	if ((size_t)n == bytes / PAGE)
		return;
	for (size_t at = 0; at < bytes; at += sizeof(results) * PAGE) {
		hmm_check(hmm_migrate(&mirrored->mirror, (unsigned long)memory + at,
				      bytes - at < BLOCK ? bytes - at : BLOCK, target, 0, results, NULL),
			  "hmm_migrate");
		for (size_t i = 0; i < sizeof(results) && at + i * PAGE < bytes; i++)
			if (results[i] != HMM_MIGRATED && results[i] != HMM_ALREADY)
				fail("%ld of %zu pages moved; page %zu did not: %s", n, bytes / PAGE,
				     at / PAGE + i, hmm_migrate_result_name(results[i]));
	}
}

/* ---- telling ---------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double quantile(double *values, size_t n, double q)
{
	size_t at = (size_t)(q * (double)n);

	if (!n)
		fail("nothing was measured");
	qsort(values, n, sizeof(*values), by_value);
	return values[at < n ? at : n - 1];
}

void figures_add(struct figures *figures, double ours, double floor)
{
	if (figures->count == sizeof(figures->ours) / sizeof(figures->ours[0]))
		return;
	figures->ours[figures->count] = ours;
	figures->floor[figures->count++] = floor;
}

static void print_values(const char *name, const double *values, unsigned int n)
{
	printf("\"%s\": [", name);
	for (unsigned int i = 0; i < n; i++)
		printf("%s%.6g", i ? ", " : "", values[i]);
	printf("]");
}

void figures_print(const struct figures *figures, const char *note)
{
	printf("{\"row\": \"%s\", \"unit\": \"%s\", ", figures->row, figures->unit);
	print_values("ours", figures->ours, figures->count);
	printf(", ");
	print_values("floor", figures->floor, figures->count);
	printf(", \"note\": {%s}}\n", note ? note : "");
	fflush(stdout);
}

/* ---- arguments ------------------------------------------------------------------------------ */

void arguments_read(struct arguments *arguments, int argc, char **argv)
{
	static const struct option options[] = {
		{ "rounds", required_argument, NULL, 'r' },
		{ "mib", required_argument, NULL, 'm' },
		{ "spin", required_argument, NULL, 's' },
		{ "fault-cpu", required_argument, NULL, 'f' },
		{ "handler-cpu", required_argument, NULL, 'h' },
		{ "threads", required_argument, NULL, 't' },
		{ "4k", no_argument, NULL, '4' },
		{ "pool", required_argument, NULL, 'p' },
		{ "hmmd", required_argument, NULL, 'd' },
		{ "seconds", required_argument, NULL, 'n' },
		{ NULL, 0, NULL, 0 },
	};
	int option;

	*arguments = (struct arguments){
		.rounds = 9, .bytes = 256 * MIB, .spin_us = 50, .fault_cpu = -1, .handler_cpu = -1,
		.threads = 1, .huge = true, .pool = "memfd", .seconds = 10,
	};
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		int number = optarg ? atoi(optarg) : 0;

		switch (option) {
		case 'r':
			arguments->rounds = (unsigned int)number;
			break;
		case 'm':
			arguments->bytes = (size_t)number * MIB;
			break;
		case 's':
			arguments->spin_us = (unsigned int)number;
			break;
		case 'f':
			arguments->fault_cpu = number;
			break;
		case 'h':
			arguments->handler_cpu = number;
			break;
		case 't':
			arguments->threads = (unsigned int)number;
			break;
		case '4':
			arguments->huge = false;
			break;
		case 'p':
			arguments->pool = optarg;
			break;
		case 'd':
			arguments->hmmd = number;
			break;
		case 'n':
			arguments->seconds = (unsigned int)number;
			break;
		default:
			exit(2);
		}
	}
	if (!arguments->rounds || arguments->bytes < BLOCK || !arguments->threads)
		fail("--rounds, --mib (at least 2) and --threads take a number");
}
