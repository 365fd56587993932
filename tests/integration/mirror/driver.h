/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * driver.h - a driver in another process. It is the test program again, started
 * with the case's name, "driver" and a socket on which it gets the owner's key.
 */
#ifndef TEST_DRIVER_H
#define TEST_DRIVER_H

#include "mirror.h"

#include <sys/types.h>

#define TEST_DRIVER_SOCKET 100

/* main() of a program whose cases have drivers of the same names; both are tables as test_main() takes them. */
#define test_driver_main(argc, argv, cases, drivers) \
	(test_is_driver(argc, argv) ? test_main(2, argv, drivers) : test_main(argc, argv, cases))
bool test_is_driver(int argc, char **argv);
pid_t test_driver_start(const char *name, int *socket);
/* A message of one word, with the key or without. */
void test_tell(int socket, uint64_t word, int key);
/* False: the other end is gone. */
bool test_hear(int socket, uint64_t *word, int *key);
/* In the owner: what test_driver_join() waits for. */
void test_invite(int socket, void *memory);
/* The same, of memory of its own with a known pattern that is on the device; and the driver is ready. */
char *test_lend(int socket, size_t pages, uint64_t seed);
/* In the driver: opens the owner whose key comes, and the owner's device. Returns the memory. */
unsigned long test_driver_join(void);
/* The same, and registers a mirror on it. */
unsigned long test_driver_open(const struct hmm_mirror_ops *operations);

#endif
