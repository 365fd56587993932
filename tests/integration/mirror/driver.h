/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * driver.h - a driver in a process of its own: the test program again, started with the case's
 * name, "driver" and a socket on which it gets the owner's key.
 */
#ifndef TEST_DRIVER_H
#define TEST_DRIVER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define DRIVER_SOCKET 100	/* the driver's end, in the driver */

/* Return: its pid; *@socket is the owner's end. */
pid_t start_driver(const char *name, int *socket);
/* A message of one word, with the key or without (-1). */
void tell(int socket, uint64_t word, int key);
/* False: the other end is gone. @key: NULL where none is wanted. */
bool hear(int socket, uint64_t *word, int *key);

#endif
