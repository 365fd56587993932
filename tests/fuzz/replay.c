// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Drives a fuzz target where libFuzzer is not linked in: replay [FOLDER OF INPUTS | INPUT ...]
 *
 * Every file is given to the target as it is, then for a while an input (or nothing, where there are none) with a few
 * bytes changed, inserted, removed or doubled. A finding is a crash or a sanitizer's report; the seed printed
 * first makes the run again (HMM_TEST_SEED). HMM_FUZZ_SECONDS changes its length, HMM_FUZZ_ROUNDS counts it instead.
 * HMM_FUZZ_KEEP names a file that each input is written to before it is given: in the end, the last one.
 *
 * One thread. Each input lies in a heap block of exactly its size, so that AddressSanitizer sees an overrun.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define INPUT_MAX  (64 * 1024)
#define INPUTS_MAX 4096
#define SECONDS	   8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	uint8_t *data;
	size_t size;
};

static struct input inputs[INPUTS_MAX];
static size_t input_count;
static uint64_t random_state;

/* splitmix64 */
static uint64_t random_next(void)
{
	uint64_t z = (random_state += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static size_t random_below(size_t bound)
{
	return bound ? random_next() % bound : 0;
}

static void keep(const char *path, const uint8_t *data, size_t size)
{
	FILE *file = fopen(path, "wb");

	if (!file || fwrite(data, 1, size, file) != size || fclose(file)) {
		perror(path);
		exit(1);
	}
}

static void give(const uint8_t *data, size_t size)
{
	const char *kept = getenv("HMM_FUZZ_KEEP");
	uint8_t *copy = malloc(size ? size : 1);

	if (!copy)
		abort();
	if (kept)
		keep(kept, data, size);
	memcpy(copy, data, size);
	LLVMFuzzerTestOneInput(copy, size);
	free(copy);
}

static void read_input(int folder, const char *name)
{
	struct input *input = &inputs[input_count];
	int fd = openat(folder, name, O_RDONLY | O_CLOEXEC);
	struct stat status;

	if (fd < 0 || fstat(fd, &status) < 0) {
		perror(name);
		exit(1);
	}
	if (S_ISREG(status.st_mode) && status.st_size <= INPUT_MAX) {
		input->size = (size_t)status.st_size;
		input->data = malloc(input->size ? input->size : 1);
		if (!input->data || read(fd, input->data, input->size) != (ssize_t)input->size) {
			perror(name);
			exit(1);
		}
		input_count++;
	}
	close(fd);
}

static void read_folder(const char *path)
{
	DIR *folder = opendir(path);
	struct dirent *entry;

	if (!folder && errno == ENOTDIR && input_count < INPUTS_MAX) {
		read_input(AT_FDCWD, path);
		return;
	}
	if (!folder) {
		perror(path);
		exit(1);
	}
	while ((entry = readdir(folder)) && input_count < INPUTS_MAX)
		if (entry->d_name[0] != '.')
			read_input(dirfd(folder), entry->d_name);
	closedir(folder);
}

static size_t mutate(uint8_t *data, size_t size)
{
	size_t at = random_below(size), length = 1 + random_below(8), other;

	switch (random_below(5)) {
	case 0: /* one bit */
		if (size)
			data[at] ^= (uint8_t)(1u << random_below(8));
		return size;
	case 1: /* one byte, often an extreme one */
		if (size)
			data[at] = random_below(2) ? (uint8_t)random_next() :
						     (uint8_t)(0u - random_below(3));
		return size;
	case 2: /* more bytes */
		if (size + length > INPUT_MAX)
			return size;
		memmove(data + at + length, data + at, size - at);
		while (length--) {
			data[at++] = (uint8_t)random_next();
			size++;
		}
		return size;
	case 3: /* fewer bytes */
		if (at + length > size)
			return at;
		memmove(data + at, data + at + length, size - at - length);
		return size - length;
	default: /* a piece of another input */
		if (!input_count)
			return size;
		other = random_below(input_count);
		length = random_below(inputs[other].size + 1);
		if (at + length > INPUT_MAX)
			return size;
		memcpy(data + at, inputs[other].data, length);
		return at + length > size ? at + length : size;
	}
}

int main(int argc, char **argv)
{
	static uint8_t data[INPUT_MAX];
	const char *seed = getenv("HMM_TEST_SEED"), *rounds_wanted = getenv("HMM_FUZZ_ROUNDS");
	const char *seconds_wanted = getenv("HMM_FUZZ_SECONDS");
	unsigned long rounds = rounds_wanted ? strtoul(rounds_wanted, NULL, 0) : ULONG_MAX, round;
	time_t end;

	random_state = seed ? strtoull(seed, NULL, 0) : (uint64_t)time(NULL) ^ (uint64_t)getpid() << 32;
	printf("HMM_TEST_SEED=%llu\n", (unsigned long long)random_state);
	fflush(stdout);
	for (int i = 1; i < argc; i++)
		read_folder(argv[i]);

	give(data, 0);
	for (size_t i = 0; i < input_count; i++)
		give(inputs[i].data, inputs[i].size);
	end = rounds_wanted ? 0 : time(NULL) + (seconds_wanted ? atoi(seconds_wanted) : SECONDS);
	for (round = 0; round < rounds && (!end || time(NULL) < end); round++) {
		size_t size = 0, changes = 1 + random_below(6);

		if (input_count) {
			struct input *input = &inputs[random_below(input_count)];

			size = input->size;
			memcpy(data, input->data, size);
		}
		while (changes--)
			size = mutate(data, size);
		give(data, size);
	}
	printf("%zu inputs and %lu mutations of them\n", input_count, round);
	for (size_t i = 0; i < input_count; i++)
		free(inputs[i].data);
	return 0;
}
