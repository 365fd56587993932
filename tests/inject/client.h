/* SPDX-License-Identifier: GPL-2.0-or-later */
/* client.h - what the scenarios of client.c, devices.c and copies.c share. */
#ifndef INJECT_CLIENT_H
#define INJECT_CLIENT_H

#include "tests/integration/mirror/mirror.h"

#define DEVICE_MEMORY	(64UL << 20)
#define REFUSED		3
#define DRIVER_SOCKET	100

/* The mirror, on a device of @memory bytes. False: hmmd serves no one, and said so. */
bool open_or_refused(uint64_t memory);
/* Bytes in @memory, and the same; refused, they are right, and the scenario is over. */
void fill_and_open(char *memory, size_t pages);
void close_all(void);
/* What can't go stays, and says so; nothing else may happen. */
void move(void *memory, size_t pages, enum hmm_target target);
/* Every page is right, and takes every write. */
void check_and_rewrite(void *memory, size_t pages, uint64_t seed);

/* A driver process, which runs the scenario @what. */
pid_t start_driver(const char *what, int *socket);
/* The owner's key (less than 0: there is none), and in the driver. */
void send_key(int socket, int key);
int receive_key(int socket);

/* devices.c */
void advice(void);
void events(void);
void exclusive(void);
void evict(void);
void devmem(void);
void engine_driver(void);
/* That driver, for so many pages of bytes; refused, they are right, and the scenario is over. */
char *start_engine(size_t pages, int *socket, pid_t *driver);
/* What the driver of `engine` can have of it. */
void driver_takes(int socket, char *memory, size_t pages);
void reached(void);

/* copies.c */
void synced(void);
void watched(void);
void drained(void);
void farfork(void);

#endif
