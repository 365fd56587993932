# SPDX-License-Identifier: GPL-2.0-or-later
"""hmmd is killed while S pages lie on two devices, and comes back or does not: neither window shows old bytes."""

import time

import harness


class Several(harness.Test):
    daemon_args = ["--pool", "memfd-huge"]

    def begin(self, *args):
        self.start_daemon(*args)
        owner = self.spawn("mirror-several", "outage")
        owner.expect("^shared$")
        return owner

    def test_killed_then_written(self):
        owner = self.begin()
        for _ in range(4):
            self.daemon.restart()
            owner.ask("write")
            owner.ask("read")
            self.daemon.restart()
            owner.ask("read")
            owner.ask("share")
        owner.finish()

    def test_written_while_there_is_none(self):
        """The write waits for the new one, the windows go on meanwhile."""
        owner = self.begin()
        for _ in range(4):
            self.daemon.kill9()
            owner.send("write")
            time.sleep(self.random.uniform(0, 0.3))
            self.daemon.start()
            owner.expect("^done$", 60)
            owner.ask("read")
            owner.ask("share")
        owner.finish()

    def test_killed_at_any_moment(self):
        owner = self.begin()
        for _ in range(12):
            owner.send(self.random.choice(["share", "write", "read"]))
            time.sleep(self.random.uniform(0, 0.02))
            self.daemon.restart()
            owner.expect("^done$", 60)
            owner.ask("read")
        owner.finish()

    def test_rescued(self):
        """Nobody comes back: the windows are closed before the owner may write."""
        owner = self.begin("--grace", "400ms")
        self.daemon.kill9()
        owner.ask("write")
        owner.ask("closed")
        owner.kill9()

    def test_read_while_there_is_none(self):
        """What lies in a window is there without hmmd."""
        owner = self.begin()
        self.daemon.kill9()
        owner.ask("read")
        self.daemon.start()
        owner.ask("write")
        owner.ask("read")
        owner.finish()


if __name__ == "__main__":
    harness.main()
