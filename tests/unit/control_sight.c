// SPDX-License-Identifier: GPL-2.0-or-later
/* control_sight.c - of whom hmmd can't see anything: somebody in a container, or somebody who has ended; each is told which. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control/sight.h"

Test(sight, of_itself)
{
	char why[240] = "";

	cr_expect(eq(int, sight_of_owner(getpid(), why, sizeof(why)), 0));
	cr_expect(eq(str, why, ""));
}

Test(sight, of_who_has_no_number_here)
{
	char why[240] = "";

	cr_expect(eq(int, sight_of_owner(0, why, sizeof(why)), -ESRCH));
	cr_expect(ne(ptr, strstr(why, "pid namespace"), NULL));
}

/* It connects, and ends before it is looked at: no container's fault. */
Test(sight, of_who_has_ended)
{
	char why[240] = "";
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	cr_assert(eq(int, waitpid(pid, NULL, 0), pid));
	cr_expect(eq(int, sight_of_owner(pid, why, sizeof(why)), -ESRCH));
	cr_expect(ne(ptr, strstr(why, "has ended"), NULL), "%s", why);
}
