# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory cgroups of a test's own, of either version."""

import contextlib
import itertools
import os
import re

import harness

_V1 = "/sys/fs/cgroup/memory"
_V2 = "/sys/fs/cgroup"
_numbers = itertools.count()


class Group:
    """What runs in it has @limit bytes together, None: as much as it wants. The test is skipped where there can be none."""

    def __init__(self, test, limit=None):
        self.v1 = os.path.exists(os.path.join(_V1, "memory.limit_in_bytes"))
        root = _V1 if self.v1 else _V2
        self.path = os.path.join(root, f"hmmd-test-{os.getpid()}-{next(_numbers)}")
        try:
            os.mkdir(self.path)
            if limit is not None:
                self.limit(limit)
            elif not os.path.exists(os.path.join(self.path, self._usage)):
                raise FileNotFoundError(2, "it has no memory controller")
            # Where there is swap the limit would be no end.
            if os.path.exists(os.path.join(self.path, "memory.swap.max")):
                with open(os.path.join(self.path, "memory.swap.max"), "w") as file:
                    file.write("0")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.rmdir(self.path)
            test.skipTest(f"no memory cgroup can be made here: {error.strerror}")
        test.addCleanup(self.remove)

    @property
    def _usage(self):
        return "memory.usage_in_bytes" if self.v1 else "memory.current"

    def _read(self, name):
        with open(os.path.join(self.path, name)) as file:
            return file.read()

    def limit(self, bytes):
        with open(os.path.join(self.path, "memory.limit_in_bytes" if self.v1 else "memory.max"), "w") as file:
            file.write(str(bytes))

    def usage(self):
        return int(self._read(self._usage))

    def shared(self):
        """Bytes of shared memory, such as memfds, that are charged to it."""
        return int(re.search(r"^(total_)?shmem (\d+)$", self._read("memory.stat"), re.M).group(2))

    def oom_kills(self):
        return int(re.search(r"oom_kill (\d+)", self._read("memory.oom_control" if self.v1 else "memory.events")).group(1))

    def prefix(self):
        """What to begin a command with that shall run in it."""
        return ["bash", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "bash"]

    def _removed(self):
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True

    def remove(self):
        harness.wait_until(self._removed, 20, "that the cgroup can be removed")
