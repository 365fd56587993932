# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts a command to which some system calls are forbidden: denied.py NAME,NAME... COMMAND..."""

import errno
import os
import sys

import confined


def main():
    names, *command = sys.argv[1:]
    made = confined.Filter(confined.ALLOW)
    for name in names.split(","):
        made.add(confined.ERRNO | errno.EPERM, name)
    confined.prctl(confined.PR_SET_NO_NEW_PRIVS, 1)
    made.load()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
