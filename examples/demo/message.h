/* SPDX-License-Identifier: GPL-2.0-or-later */
/* message.h - the few words that the demo's processes say to each other. */
#ifndef DEMO_MESSAGE_H
#define DEMO_MESSAGE_H

#include <stdbool.h>

enum message {
	GONE = 0,	/* the other side has closed: it failed, and said why */
	KEY = 'k',	/* owner to driver, with the key to its memory */
	AGAIN = 'a',	/* driver to owner: the addresses were taken, send it once more */
	READY = 'r',	/* driver to owner: the window is open, change things now */
	COUNTED = 'c',	/* driver to owner; and owner to third: tell the number of queries */
	FINISH = 'f',	/* owner to driver: all is compared, go home */
};

/* @fd: travels along, -1: none. Return: false when nobody is there any more. */
bool message_send(int socket, enum message message, int fd);
/* Waits. @fd: a descriptor that came along, or -1; NULL when none is expected. */
enum message message_wait(int socket, int *fd);
bool message_waiting(int socket);

#endif
