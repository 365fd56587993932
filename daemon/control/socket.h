/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * socket.h - the path that peers connect to, and whose it is.
 */
#ifndef HMMD_SOCKET_H
#define HMMD_SOCKET_H

struct server;

/*
 * Binds and listens at server->path: takes the lock beside it, removes a
 * socket that nobody answers, sets mode and group. Says what is wrong in the log.
 */
int socket_open(struct server *server);
/* Removes what socket_open() made, unless somebody replaced it meanwhile. */
void socket_close(struct server *server);

#endif
