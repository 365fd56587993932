# SPDX-License-Identifier: GPL-2.0-or-later
"""hmmd.service: how much it leaves open, and that hmmd does its work with what it leaves."""

import contextlib
import os
import re
import shutil
import sys
import unittest

import confined
import control_wire as wire
import harness
import manager

UNIT = os.path.join(harness.BINARY, "systemd", "hmmd.service")
# Of ten, as `systemd-analyze security` counts.
EXPOSURE = 1.5


class Unit(harness.Test):
    def units(self):
        """The units as they are installed, but for the program, which need not be there yet."""
        for name in ("hmmd.socket", "hmmd-admin.socket"):
            shutil.copy(os.path.join(harness.SOURCE, "systemd", name), self.folder)
        with open(UNIT) as file, open(os.path.join(self.folder, "hmmd.service"), "w") as copy:
            copy.write(re.sub(r"=\S+/hmmd\b", "=/bin/true", file.read()))
        return [os.path.join(self.folder, name) for name in ("hmmd.service", "hmmd.socket", "hmmd-admin.socket")]

    def test_exposure(self):
        said = self.run_client("systemd-analyze", "--no-pager", "security", "--offline=yes", self.units()[0]).stdout
        match = re.search(r"Overall exposure level for hmmd.service: ([\d.]+)", said)
        self.assertTrue(match, said)
        self.assertLessEqual(float(match[1]), EXPOSURE, said)

    def test_every_line_is_understood(self):
        """A key that systemd does not know is passed over by it, and then protects from nothing."""
        said = self.run_client("systemd-analyze", "verify", "--man=no", *self.units(), status=None)
        ours = [line for line in (said.stdout + said.stderr).splitlines() if "hmmd" in line]
        self.assertEqual(ours, [])


@unittest.skipUnless(os.getuid() == 0, "only root can become somebody else")
class Confined(wire.Test):
    """hmmd with the unit's user (another one of its kind), capabilities, limits and filter of system calls."""

    def setUp(self):
        super().setUp()
        self.manager = manager.Manager(self.folder)
        self.manager.listen("programs", os.path.join(self.folder, "hmmd.sock"), 0o666)
        # RuntimeDirectory= is the service's user's.
        os.chmod(self.folder, 0o755)
        os.chown(self.folder, confined.USER, confined.USER)
        os.chmod(self.manager.path, 0o666)

    def tearDown(self):
        try:
            super().tearDown()
        finally:
            self.manager.close()

    def without_capabilities(self):
        return [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "confined.py"), UNIT] if self.manager else []

    def start(self, *args):
        self.daemon = harness.Daemon(self, *self.daemon_args, *args, manager=self.manager)
        self.daemon.start()
        return self.daemon

    def status(self):
        with open(f"/proc/{self.daemon.pid}/status") as file:
            return dict(line.rstrip("\n").split(":\t", 1) for line in file)

    def features(self):
        with wire.Client(self.daemon.socket, role=wire.TOOL) as client:
            return client.features

    def test_what_it_has(self):
        self.start()
        status = self.status()
        unit = confined.Unit(UNIT)
        held = sum(1 << number for number in unit.capabilities("AmbientCapabilities"))
        self.assertEqual({int(status[key], 16) for key in ("CapPrm", "CapEff", "CapBnd")}, {held})
        self.assertEqual((status["Uid"].split()[0], status["NoNewPrivs"], status["Seccomp"]), (str(confined.USER), "1", "2"))

    def test_it_can_do_all_that_root_can(self):
        """Of the features that hmmd has as root none is missing."""
        self.start()
        confined_features = self.features()
        self.daemon.stop()
        self.assertNotRegex(self.daemon.log, "not permitted|denied")
        confined_manager, self.manager = self.manager, None
        try:
            self.start_daemon("--socket", os.path.join(self.folder, "root.sock"))
            with wire.Client(os.path.join(self.folder, "root.sock"), role=wire.TOOL) as client:
                self.assertEqual(confined_features, client.features)
        finally:
            self.manager = confined_manager

    def check_cases(self, program, *cases):
        self.start("--ack-timeout", "10s")
        for case in cases:
            with self.subTest(case):
                self.run_client(program, case)
        self.assertNotRegex(self.daemon.log, "not permitted|denied")

    def huge_blocks(self):
        """Of an owner's two blocks: how many left as one page, and how many of them were one again at home."""
        owner = self.spawn("mirror-owner", 1024, "huge")
        owner.ask("out", "^out 1024$")
        # What has a hole is not MOVEd home as a whole: hmmd makes one page of it there.
        owner.ask("discard", "^discarded$")
        owner.ask("home", "^home")

        def stats():
            return self.hmmctl_json("stats")["owners"][0]["stats"]

        with contextlib.suppress(AssertionError):
            harness.wait_until(lambda: stats()["huge_home"] == 2, 1)
        counted = stats()
        owner.ask("change", "^changed$")
        owner.finish()
        return counted["huge_to_device"], counted["huge_home"]

    def test_huge_pages_come_home(self):
        """It takes a privilege to make one page of many in another process. (At times the kernel has none to give.)"""
        self.start()
        rounds = []
        for _ in range(8):
            rounds.append(self.huge_blocks())
            if rounds[-1][1] == 2:
                break
        self.assertTrue(rounds[-1][1] == 2 or not any(out == 2 for out, _ in rounds), rounds)

    def test_placement(self):
        """Where a pool is bound mbind() says."""
        self.start("--pool-placement", "bind:0")
        self.run_client("mirror-transfer", "small")
        self.assertNotRegex(self.daemon.log, "not permitted|denied")

    def test_transfer(self):
        self.check_cases("mirror-transfer", "small", "huge", "read-fault", "write-fault", "device-writes", "system-calls", "many-threads")


if __name__ == "__main__":
    harness.main()
