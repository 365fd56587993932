# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes from outside under the scenarios of client.c: test_outside.py [TEST]

A disk that is full for logs, a table of descriptors that is full while hmmd serves, owners and drivers (and hmmd) that are stopped
and go on, huge pages that vanish. What has to hold then is in scenarios.py.
"""

import contextlib
import os
import resource
import signal
import time

import scenarios
from scenarios import harness

HUGE_PAGES = "/proc/sys/vm/nr_hugepages"


def family(pid):
    """A process and what it has started."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                for child in file.read().split():
                    found += family(int(child))
    return found


class Outside(scenarios.Test):
    def each(self, *names, **options):
        for scenario in names:
            with self.subTest(scenario=scenario):
                self.run_scenario(scenario, **options)

    def test_full_disk(self):
        """Nothing that hmmd says can be written."""
        path = os.path.join(self.folder, "hmmd-mute")
        with open(path, "w") as file:
            file.write(f'#!/bin/sh\nexec "{harness.binary("hmmd")}" "$@" --log debug 2>/dev/full\n')
        os.chmod(path, 0o700)
        harness.PLACES["hmmd"], before = path, harness.PLACES["hmmd"]
        try:
            self.each("travel", "devmem", "window", "family")
        finally:
            harness.PLACES["hmmd"] = before

    def test_no_descriptors(self):
        """As many as hmmd has, and a few, and none; and then as many as before."""
        def press(client):
            pid = self.daemon.pid
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            used = max(int(fd) for fd in os.listdir(f"/proc/{pid}/fd"))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 1 + self.random.choice((0, 0, 1, 2, 5)), before[1]))
            time.sleep(self.random.uniform(0, 0.02))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            time.sleep(self.random.uniform(0, 0.01))

        for _ in range(2 if harness.SANITIZE else 4):
            self.each("travel", "devmem", "several", "family", "farfork", "sync", outside=press)

    def test_stopped(self):
        """Who is stopped finds everything as it should be when he goes on; so do those who wait for him."""
        def stop(client):
            pid = self.random.choice([*family(client.pid), self.daemon.pid])
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(self.random.choice((0, 0.001, 0.01, 0.1)))
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
            time.sleep(self.random.uniform(0, 0.005))

        under = ["travel", "share", "touch", "upheaval", "family", "window", "several", "devmem", "sync", "dirty", "farfork"]
        self.each(*self.random.sample(under, 4), outside=stop)

    def test_huge_pages_vanish(self):
        """They are given back to the system while hmmd has promised them; tests/fixture/settings puts them back."""
        def reserve(pages):
            with open(HUGE_PAGES, "w") as file:
                file.write(str(pages))

        try:
            with open(HUGE_PAGES) as file:
                reserved = int(file.read())
            reserve(reserved)
        except OSError as error:
            self.skipTest(f"huge pages cannot be reserved here: {error}")
        if reserved < 8:
            self.skipTest("needs 8 reserved huge pages")

        def take(client):
            reserve(self.random.randint(0, reserved))
            time.sleep(self.random.uniform(0, 0.02))

        self.daemon_args = ["--pool", "hugetlb", "--pool-size", "64M", "--workers", "1"]
        try:
            for _ in range(3):
                self.each("travel", "share", "touch", "evict", "access", outside=take)
                reserve(reserved)
        finally:
            reserve(reserved)


if __name__ == "__main__":
    harness.main()
