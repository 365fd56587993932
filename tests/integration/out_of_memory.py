# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory runs out: who is charged for what, who is killed, and that nothing is lost by it."""

import os
import time
import unittest

import harness
import memcg

MIB = 1 << 20
PAGES = 20 << 8
BYTES = PAGES << 12
SECONDS = 4
# Where everything is emulated, too.
FEW = 6 << 8


@unittest.skipIf(harness.SANITIZE, "AddressSanitizer's own memory exceeds the limits")
class OutOfMemory(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--pool-size", "256M", "--grace", "60s"]

    def in_group(self, group, name, program, *args):
        return self.spawn_command(name, [*group.prefix(), harness.binary(program), *map(str, args)])

    def owner(self, group, *args):
        owner = self.in_group(group, "owner", "mirror-owner", PAGES, *args)
        owner.expect("^ready")
        return owner

    # ---- who is charged --------------------------------------------------------------

    def test_who_is_charged(self):
        """What is on a device is the owner's charge, as it was at home; hmmd's is what it keeps of it."""
        hmmds, owners = memcg.Group(self), memcg.Group(self)
        self.daemon_prefix = hmmds.prefix()
        self.start_daemon()
        owner = self.owner(owners, "huge")
        before, kept = owners.usage(), hmmds.usage()
        for _ in range(3):
            owner.ask("turn", f"^turned {PAGES}$")
            self.assertGreaterEqual(owners.shared(), BYTES - 2 * MIB)
            self.assertLess(owners.usage(), before + 12 * MIB)
            owner.ask("home", f"^home {PAGES}$")
            self.assertLess(owners.usage(), before + 12 * MIB)
        self.assertLess(hmmds.usage(), kept + 4 * MIB)
        owner.ask("close", "^closed$")
        owner.finish()
        self.daemon.stop()

    # ---- who is killed ---------------------------------------------------------------

    def test_hmmd_is_not_the_first(self):
        """Beside an owner in one group, and with all that it maps, hmmd is the last to go."""
        group = memcg.Group(self)
        self.daemon_prefix = group.prefix()
        self.start_daemon()
        with open(f"/proc/{self.daemon.pid}/oom_score_adj") as file:
            if int(file.read()) != -900:
                self.skipTest("hmmd may not say how dear it is (no CAP_SYS_RESOURCE)")
        owners = [self.in_group(group, "owner", "mirror-owner", FEW) for _ in range(2)]
        for owner in owners:
            owner.expect("^ready")
            owner.ask("turn", f"^turned {FEW}$")
        owners[0].ask("device", "^checked$")
        # From here on nobody gets more.
        group.limit(group.usage())
        greedy = self.in_group(group, "greedy", "python3", "-c", f"x = bytearray({64 * MIB}); print('has it', flush=True); input()")
        harness.wait_until(lambda: not greedy.running or "has it" in greedy.output, 60, "that it is killed for memory, or all others are")
        self.assertGreater(group.oom_kills(), 0)
        self.assertTrue(self.daemon.running)
        group.limit(1 << 40)
        for owner in owners:
            if owner.running:
                owner.ask("check", "^checked$")
                owner.finish()
            else:
                self.assertEqual(owner.status, -9)
        self.hmmctl("status")
        self.daemon.stop()

    def load(self, *args):
        return self.spawn("coherence", "--seed", self.seed, "--seconds", SECONDS, "--kill-daemon", "--drivers", 1, *args)

    def kill_by_limit(self, group):
        """What hmmd has is the most that it gets, from now on; and more want to be its owners, for each of whom it needs some."""
        kills = group.oom_kills()
        group.limit(group.usage())
        more = []
        while self.daemon.running and len(more) < 40:
            more.append(self.spawn("mirror-owner", 2048))
            for _ in range(50):
                time.sleep(0.01)
                if not self.daemon.running or more[-1].output:
                    break
            if more[-1].output:
                more[-1].send("out")
        harness.wait_until(lambda: not self.daemon.running, 30, "that hmmd is killed for memory")
        for process in more:
            process.kill9()
        self.assertEqual(self.daemon.process.status, -9)
        self.assertGreater(group.oom_kills(), kills)

    def test_hmmd_at_its_limit(self):
        """Killed for memory in the middle of a load it is as with any kill -9: the next one goes on, and no byte is wrong."""
        self.daemon_args = [*self.daemon_args, "--ack-timeout", f"{harness.scaled(1):.0f}s"]
        group = memcg.Group(self)
        self.daemon_prefix = group.prefix()
        self.start_daemon()
        process = self.load("--windows")
        process.expect("coherence: running")
        deadline = time.monotonic() + SECONDS - 2
        kills = 0
        while time.monotonic() < deadline and process.running:
            time.sleep(self.random.uniform(0.1, 0.6))
            self.kill_by_limit(group)
            kills += 1
            group.limit(1 << 40)
            self.daemon.start()
        process.close_input()
        status = process.wait(SECONDS + 90)
        print(process.output, f"hmmd was killed for memory {kills} times", sep="", flush=True)
        self.assertEqual(status, 0, process.errors)
        self.assertGreater(kills, 0)
        self.daemon.stop()

    def test_hmmd_at_its_limit_reserved(self):
        """What was reserved and is in use is no more hmmd's charge: it has room, takes back less, and says so."""
        self.daemon_args = [*self.daemon_args, "--pool-reserve"]
        group = memcg.Group(self)
        self.daemon_prefix = group.prefix()
        self.start_daemon()
        process = self.load("--events")
        process.expect("coherence: running")
        harness.wait_until(lambda: self.reserved() < 256, 30, "that some of it is in use")
        group.limit(group.usage())
        process.close_input()
        self.assertEqual(process.wait(SECONDS + 90), 0, process.errors)
        print(process.output, flush=True)
        self.assertEqual(group.oom_kills(), 0)
        self.assertIn("the pool's reserve is short by ", self.daemon.log)
        self.assertLess(self.reserved(), 256)
        group.limit(1 << 40)
        harness.wait_until(lambda: self.reserved() == 256, 30, "that all of it is reserved again")
        self.assertIn("there is room again for the pool's reserve", self.daemon.log)
        self.daemon.stop()

    def reserved(self):
        return self.hmmctl_json("pools")["pools"][0]["reserved_mib"]


if __name__ == "__main__":
    assert os.path.isdir("/sys/fs/cgroup")
    harness.main()
