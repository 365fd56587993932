# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory becomes coherent and ordinary again, threads count on it, and somebody is killed or stopped: no count is lost."""

import signal
import time

import harness


class ShareOutage(harness.Test):
    daemon_args = ["--pool", "memfd-huge"]

    def counting(self, case="hammered"):
        owner = self.spawn("mirror-share", case)
        owner.expect("^ready")
        return owner

    def pause(self, longest):
        time.sleep(self.random.uniform(0, longest))

    def end(self, owner, how):
        owner.send("enough")
        owner.expect(rf"^ended \d+ {how}$", 60)
        owner.finish()

    def test_kill_again_and_again(self):
        """Whatever step the exchange of a mapping was in, the next hmmd knows how it ended."""
        self.start_daemon()
        owner = self.counting()
        for _ in range(15):
            self.pause(0.1)
            self.daemon.restart()
        self.pause(0.1)
        self.end(owner, "together")

    def test_handed_over_again_and_again(self):
        """Blocks that are coherent stay so over it."""
        self.start_daemon()
        owner = self.counting()
        for _ in range(10):
            self.pause(0.1)
            self.daemon.hand_over()
            self.daemon.start()
        self.pause(0.1)
        self.end(owner, "together")

    def test_rescue(self):
        """Nobody comes back: what is coherent stays as it is, everything else comes home."""
        for _ in range(4):
            self.start_daemon("--grace", "300ms")
            owner = self.counting()
            self.pause(0.1)
            self.daemon.kill9()
            time.sleep(min(harness.scaled(1), 3))
            self.end(owner, "alone")

    def test_stopped_again_and_again(self):
        self.start_daemon()
        owner = self.counting()
        for _ in range(15):
            self.pause(0.05)
            owner.signal(signal.SIGSTOP)
            self.pause(0.05)
            owner.signal(signal.SIGCONT)
        self.end(owner, "together")

    def test_killed_owner_leaves_nothing(self):
        self.start_daemon()
        for _ in range(5):
            owner = self.counting()
            self.pause(0.05)
            owner.kill9()
        harness.wait_until(lambda: not sum(pool["used"] for pool in self.hmmctl_json("pools")["pools"]), 10,
                           "that the pool is empty")

    def test_sigterm(self):
        """Coherent memory stays the program's when hmmd ends in good order."""
        self.start_daemon("--grace", "300ms")
        owner = self.counting("left-behind")
        self.daemon.stop()
        time.sleep(min(harness.scaled(1), 3))
        self.end(owner, "alone")


if __name__ == "__main__":
    harness.main()
