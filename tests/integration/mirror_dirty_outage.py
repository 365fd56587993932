# SPDX-License-Identifier: GPL-2.0-or-later
"""hmmd dies while it tracks: mirror_dirty_outage.py ENGINE. Who writes goes on, and no write is missed."""

import signal
import sys
import time

import harness

ENGINE = sys.argv.pop(1)


class DirtyOutage(harness.Test):
    program = "mirror-dirty"
    outage = "outage"       # its case, for a hmmd that is killed
    daemon_args = ["--pool", "memfd-huge", "--tracking", ENGINE]

    def writing(self, case):
        if not any(feature["here"] for feature in self.hmmctl_json("features")["features"]
                   if feature["name"].startswith("track_")):
            self.skipTest(f"this kernel cannot track by {ENGINE}")
        owner = self.spawn(self.program, case)
        owner.expect("^ready")
        return owner

    def ask(self, owner):
        return [int(n) for n in owner.ask("more", r"^told (\d+) of which (\d+), at (\d+)$").groups()]

    def test_kill_again_and_again(self):
        self.start_daemon()
        owner = self.writing(self.outage)
        for _ in range(8):
            self.ask(owner)
            self.daemon.restart()
            written, presumed, at = self.ask(owner)
            # Nobody has seen anything: all of it counts as written.
            self.assertEqual((written, presumed), (256, 256))
            harness.wait_until(lambda: self.ask(owner)[2] > at + 1000, 20, "that the program writes on")
        owner.send("enough")
        owner.finish()

    def test_stopped_again_and_again(self):
        self.start_daemon()
        owner = self.writing("outage")
        for _ in range(8):
            owner.signal(signal.SIGSTOP)
            time.sleep(self.random.uniform(0, 0.05))
            owner.signal(signal.SIGCONT)
            self.ask(owner)
        owner.send("enough")
        owner.finish()

    def test_killed_owner_leaves_nothing(self):
        self.start_daemon()
        for _ in range(4):
            owner = self.writing("outage")
            self.ask(owner)
            owner.kill9()

    def test_nobody_comes(self):
        self.start_daemon("--grace", "300ms")
        owner = self.writing("abandoned")
        self.daemon.kill9()
        owner.send("go on")
        owner.finish()

    def test_sigterm(self):
        """hmmd ends in good order, and another comes."""
        self.start_daemon()
        owner = self.writing("outage")
        self.ask(owner)
        self.daemon.stop()
        self.daemon.start()
        written, presumed, _ = self.ask(owner)
        self.assertEqual((written, presumed), (256, 256))
        owner.send("enough")
        owner.finish()


class SyncOutage(DirtyOutage):
    """The same with the copies of a tracked mirror, which another process reads meanwhile."""
    program = "mirror-outlive"
    outage = "kept"

    def check_shown(self):
        mirrors = self.hmmctl_json("mirrors")["mirrors"]
        self.assertEqual(sorted((mirror["device_name"] == "replica", mirror["flags"]) for mirror in mirrors),
                         [(False, []), (True, ["tracked"]), (True, ["tracked"])])
        self.assertRegex(self.hmmctl("mirrors").stdout, r"(?m)^ *\d+ +\d+ +replica .* tracked ")

    def test_tracked_is_shown(self):
        """To who asks what is there, by the next hmmd as well."""
        self.start_daemon()
        owner = self.writing(self.outage)
        self.check_shown()
        self.daemon.restart()
        self.ask(owner)
        self.check_shown()
        owner.send("enough")
        owner.finish()


if __name__ == "__main__":
    harness.main()
