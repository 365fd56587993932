# SPDX-License-Identifier: GPL-2.0-or-later
"""A device that is too small, seen from outside: what is counted, the marks, and hmmd's death with the device full."""

import time

import harness

BLOCK = 2 << 20
BLOCKS = 24
ROOM = 8
PAGES = BLOCKS * 512


class Eviction(harness.Test):
    daemon_args = ["--pool", "memfd-huge"]

    def owner(self, *args):
        owner = self.spawn("mirror-owner", str(PAGES), "huge", f"room={ROOM}", *args)
        owner.expect("^ready")
        return owner

    def ask(self, owner, line, answer, seconds=60):
        owner.send(line)
        return owner.expect(answer, seconds)

    def turn(self, owner):
        self.ask(owner, "turn", f"^turned {PAGES}$")

    def where(self, owner):
        return int(self.ask(owner, "where", r"^where (\d+)$").group(1))

    def check_where(self, owner, pages):
        """Soon: what came home for a touch, or with it, is in transit for a moment after that."""
        harness.wait_until(lambda: self.where(owner) == pages, 10, f"that {pages} pages are on the device")

    def pool(self):
        return [pool for pool in self.hmmctl_json("pools")["pools"] if pool["devices"]][0]

    def stats(self):
        return self.hmmctl_json("stats")["owners"][0]["stats"]

    def check(self, owner):
        self.ask(owner, "device", "^checked$")
        self.ask(owner, "check", "^checked$")

    def test_counts(self):
        """24 blocks in turn on a device of 8: every second one makes two go, the one that is in the way and one more."""
        self.start_daemon()
        owner = self.owner()
        self.turn(owner)
        stats, pool = self.stats(), self.pool()
        self.assertEqual(stats["evictions"], BLOCKS - ROOM)
        self.assertEqual(stats["pages_evicted"], (BLOCKS - ROOM) * 512)
        self.assertEqual(stats["evictions_refused"], 0)
        self.assertEqual(stats["pages_to_device"], PAGES)
        self.assertEqual(pool["evicted"], (BLOCKS - ROOM) * BLOCK)
        self.assertEqual(pool["used"], ROOM * BLOCK)
        self.assertEqual(pool["peak"], ROOM * BLOCK)
        self.check_where(owner, ROOM * 512)
        self.check(owner)
        owner.finish()

    def test_a_full_device_is_no_change(self):
        """One migration of more than fits evicts nothing, neither of its own nor again."""
        self.start_daemon()
        owner = self.owner()
        for _ in range(3):
            self.ask(owner, "out", f"^out {ROOM * 512}$")
        self.assertEqual(self.stats()["evictions"], 0)
        self.check_where(owner, ROOM * 512)
        self.check(owner)
        owner.finish()

    def test_marks(self):
        """Above the high mark blocks go that nobody wants the room of, down to the low one."""
        self.daemon_args = [*self.daemon_args, "--evict-high", "75", "--evict-low", "50"]
        self.start_daemon()
        owner = self.owner()
        self.ask(owner, f"out {6 * 512}", f"^out {6 * 512}$")
        self.assertEqual(self.pool()["used"], 6 * BLOCK)
        self.ask(owner, f"out {7 * 512}", f"^out {7 * 512}$")
        harness.wait_until(lambda: self.pool()["used"] <= 6 * BLOCK, 10, "that blocks above the high mark go home")
        self.turn(owner)
        harness.wait_until(lambda: self.pool()["used"] <= 6 * BLOCK, 10, "that blocks above the high mark go home")
        self.assertGreaterEqual(self.pool()["used"], 3 * BLOCK)
        self.check(owner)
        owner.finish()

    def test_restart_with_a_full_device(self):
        self.start_daemon()
        owner = self.owner()
        for _ in range(2):
            self.turn(owner)
            self.daemon.restart()
            self.ask(owner, "device", "^checked$")
            self.check_where(owner, ROOM * 512)
            self.assertEqual(self.pool()["used"], ROOM * BLOCK)
            # What a dead hmmd had brought makes way for what this one brings.
            self.turn(owner)
            self.check_where(owner, ROOM * 512)
            self.check(owner)
            self.ask(owner, "change", "^changed$")
        self.ask(owner, "close", "^closed$")
        owner.finish()

    def test_killed_while_blocks_make_way(self):
        self.start_daemon()
        owner = self.owner()
        for _ in range(4):
            owner.send("turn")
            time.sleep(self.random.uniform(0, 0.05))
            self.daemon.restart()
            owner.expect(r"^turned \d+$")
            owner.send(self.random.choice(["check", "change", "turn", "device", "home", "fork"]))
            time.sleep(self.random.uniform(0, 0.05))
            self.daemon.restart()
            owner.expect(r"^(checked|changed|turned \d+|home \d+|forked)$")
            self.ask(owner, "check", "^checked$")
        self.ask(owner, "close", "^closed$")
        owner.finish()

    def test_rescued_from_a_full_device(self):
        """No other hmmd comes: the library brings home what is there."""
        self.daemon_args = [*self.daemon_args, "--grace", "200ms"]
        self.start_daemon()
        owner = self.owner()
        self.turn(owner)
        self.daemon.kill9()
        self.ask(owner, "check", "^checked$")
        owner.finish()

    def test_drained_while_blocks_make_way(self):
        self.start_daemon()
        owner = self.owner()
        for _ in range(3):
            owner.send("turn")
            for _ in range(5):
                # 6: some are on their way, or there again.
                self.assertIn(self.hmmctl("drain", "--pid", str(owner.pid), status=None).returncode, (0, 6))
            owner.expect(r"^turned \d+$")
        self.check(owner)
        owner.finish()


if __name__ == "__main__":
    harness.main()
