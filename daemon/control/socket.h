/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * socket.h - the path that peers connect to, and whose it is.
 */
#ifndef HMMD_SOCKET_H
#define HMMD_SOCKET_H

struct passed;
struct server;

/*
 * Takes the sockets that were passed; server->path is then where they are. Without one it binds and
 * listens at server->path, after it has removed a socket that nobody answers, and sets mode and group. Either way
 * it takes the lock beside it. Says what is wrong in the log.
 */
int socket_open(struct server *server, struct passed *passed);
/* Nobody new is let in. Who comes to a socket that was passed waits there for the next hmmd. */
void socket_stop_listening(struct server *server);
/* Removes what socket_open() made, unless somebody replaced it meanwhile. */
void socket_close(struct server *server);

#endif
