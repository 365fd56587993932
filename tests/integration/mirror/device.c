// SPDX-License-Identifier: GPL-2.0-or-later
/* device.c - a device of pool memfd, and nothing else, until the end of its input. usage: mirror-device NAME MIB */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mirror.h"

int main(int argc, char **argv)
{
	struct hmm_open_options how = { .size = sizeof(how), .timeout_ms = (unsigned int)test_scaled(5000) };
	struct hmm_device_options options = { .size = sizeof(options), .node = -1, .caps = HMM_DEVICE_FAULTS,
					      .pool = HMM_POOL_MEMFD };
	struct hmm_device *device;

	if (argc != 3)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	options.name = argv[1];
	options.memory = strtoul(argv[2], NULL, 0) << 20;
	CHECK_EQ(hmm_open(&how, &hmm), 0);
	CHECK_EQ(hmm_device_new(hmm, &options, &device), 0);
	printf("ready\n");
	while (read(0, &(char){ 0 }, 1) > 0)
		;
	hmm_device_put(device);
	hmm_close(hmm);
	return 0;
}
