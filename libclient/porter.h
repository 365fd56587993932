/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* porter.h - brings descriptors of the program's into the private table where pidfd_getfd() is forbidden. */
#ifndef HMMC_PORTER_H
#define HMMC_PORTER_H

/* In the clerk, with a table of its own already. 0 or -errno. */
int hmmc_porter_receive(void);
/* In a thread of the program, after that. 0 or -errno. */
int hmmc_porter_start(void);
/* In the clerk: a copy of the program's @fd in the private table, or -errno. */
int hmmc_porter_fetch(int fd);
/* After fork, in the child. */
void hmmc_porter_forget(void);

#endif
