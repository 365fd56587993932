# SPDX-License-Identifier: GPL-2.0-or-later
"""A service manager for one hmmd: the sockets of its units, notifications, and descriptors that it keeps.

What it says and hears is systemd's: sd_listen_fds(3), sd_notify(3). hmmd finds its descriptors from 3 on.
"""

import array
import collections
import fcntl
import os
import shutil
import socket
import time

import harness

# Out of the way of where the passed descriptors go.
_HIGH = 200

Kept = collections.namedtuple("Kept", "name fd")


class Manager:
    def __init__(self, folder):
        self.path = os.path.join(folder, "notify")
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(self.path)
        self.notify.setblocking(False)
        # All that may be said while nobody looks.
        self.notify.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.sockets = []
        self.kept = []
        self.said = []
        self._taken = 0

    def close(self):
        for _, made in self.sockets:
            made.close()
        for kept in self.kept:
            os.close(kept.fd)
        self.notify.close()

    def listen(self, name, path, mode=0o600, kind=socket.SOCK_SEQPACKET, backlog=16):
        """A socket unit."""
        made = socket.socket(socket.AF_UNIX, kind)
        made.bind(path)
        if not path.startswith("\0"):
            os.chmod(path, mode)
        if backlog is not None:
            made.listen(backlog)
        self.sockets.append((name, made))
        return made

    # ---- starting hmmd -----------------------------------------------------------

    def passed(self):
        return [(name, made.fileno()) for name, made in self.sockets] + [(kept.name, kept.fd) for kept in self.kept]

    def wrap(self, command):
        """The command that starts @command as the manager would, and what it has to inherit; close() that then."""
        passed = self.passed()
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, _HIGH) for _, fd in passed]
        moves = " ".join(f"{3 + i}<&{fd} {fd}<&-" for i, fd in enumerate(copies))
        script = f"exec {moves}; " if copies else ""
        if passed:
            names = ":".join(name for name, _ in passed)
            script += f"export LISTEN_PID=$$ LISTEN_FDS={len(passed)} LISTEN_FDNAMES='{names}'; "
        return [shutil.which("bash"), "-c", script + 'exec "$@"', "manager", *command], copies

    def environment(self):
        return {"NOTIFY_SOCKET": self.path}

    # ---- what hmmd says ------------------------------------------------------------

    def _receive(self):
        data, ancillary, _, _ = self.notify.recvmsg(4096, socket.CMSG_SPACE(64 * 4))
        fds = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content)
        message = data.decode()
        words = dict(line.split("=", 1) for line in message.splitlines())
        name = words.get("FDNAME", "stored")
        if "FDSTORE" in words:
            self.kept += [Kept(name, fd) for fd in fds]
        elif "FDSTOREREMOVE" in words:
            for kept in [kept for kept in self.kept if kept.name == name]:
                os.close(kept.fd)
                self.kept.remove(kept)
        else:
            assert not fds
        self.said.append(words)

    def hear(self):
        """All that was said until now."""
        while True:
            try:
                self._receive()
            except BlockingIOError:
                return self.said

    def expect(self, key, seconds=20):
        """The next message with that key; those before it are passed over."""
        deadline = time.monotonic() + harness.scaled(seconds)
        while True:
            self.hear()
            while self._taken < len(self.said):
                self._taken += 1
                if key in self.said[self._taken - 1]:
                    return self.said[self._taken - 1]
            assert time.monotonic() < deadline, f"hmmd did not say {key}; it said {self.said[-20:]}"
            time.sleep(0.005)
