# SPDX-License-Identifier: GPL-2.0-or-later
"""hmmctl drain while everybody goes on: it ends, nothing is lost, and it says what is on devices all the same."""

import os
import time

import harness

PAGES = 24 << 8
SECONDS = int(os.environ.get("HMM_COHERENCE_SECONDS") or 4)


class Drain(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--pool-size", "512M", "--ack-timeout", f"{harness.scaled(1):.0f}s"]

    def owner(self, pages=PAGES, *args):
        owner = self.spawn("mirror-owner", str(pages), "huge", *args)
        owner.expect("^ready")
        return owner

    def drain(self, *args):
        """What came home, what is left, and its exit status."""
        ended = self.hmmctl("drain", *args, "-j", status=None)
        self.assertIn(ended.returncode, (0, 6), ended.stderr)
        answer = harness.json.loads(ended.stdout)
        self.assertEqual(ended.returncode, 6 if any(left["pages"] + left["moving"] for left in answer["left"]) else 0)
        return answer

    def there(self):
        return sum(mirror["device_bytes"] for mirror in self.hmmctl_json("mirrors")["mirrors"])

    # ---- what it says -----------------------------------------------------------------

    def test_all_is_home(self):
        self.start_daemon()
        owners = [self.owner() for _ in range(3)]
        for owner in owners:
            owner.ask("turn", f"^turned {PAGES}$")
        self.assertEqual(self.drain(), {"pages": 3 * PAGES, "left": []})
        self.assertEqual(self.there(), 0)
        owners[0].ask("turn", f"^turned {PAGES}$")
        self.assertEqual(self.hmmctl("drain", "--pid", owners[1].pid).stdout, "0 pages came home\n")
        self.assertEqual(self.there(), PAGES << 12)
        name = self.hmmctl_json("mirrors")["mirrors"][0]["device_name"]
        self.assertEqual(self.drain("--device", name), {"pages": PAGES, "left": []})
        for owner in owners:
            owner.ask("check", "^checked$")
            owner.finish()

    def test_no_such_device(self):
        self.start_daemon()
        owner = self.owner(512)
        owner.ask("turn", "^turned 512$")
        ended = self.hmmctl("drain", "--device", "other", status=None)
        self.assertEqual(ended.returncode, 5)
        self.assertEqual(self.there(), 512 << 12)
        owner.finish()

    # ---- stopped --------------------------------------------------------------------------

    def test_an_owner_is_stopped(self):
        """Its agent does nothing, its pages come home all the same; and so do the others'."""
        self.start_daemon()
        still, other = self.owner(), self.owner()
        for owner in (still, other):
            owner.ask("turn", f"^turned {PAGES}$")
        with harness.stopped(still.pid):
            self.assertEqual(self.drain(), {"pages": 2 * PAGES, "left": []})
            self.assertEqual(self.there(), 0)
            other.ask("check", "^checked$")
        still.ask("check", "^checked$")
        still.ask("turn", f"^turned {PAGES}$")
        still.ask("device", "^checked$")
        for owner in (still, other):
            owner.finish()

    def test_an_owner_is_stopped_in_a_migration(self):
        """Wherever its agent stands: what it had begun is taken back, or is said to be on its way. The others' come home."""
        self.start_daemon()
        owner, other = self.owner(), self.owner(512)
        moving = 0
        for _ in range(12):
            other.ask("turn", "^turned 512$")
            owner.ask("prefetch", "^prefetching$")
            time.sleep(self.random.uniform(0, 0.02))
            with harness.stopped(owner.pid):
                answer = self.drain()
                self.assertEqual(sum(left["pages"] for left in answer["left"]), 0)
                moving += sum(left["moving"] for left in answer["left"])
            owner.ask("prefetched", "^prefetched")
            owner.ask("check", "^checked$")
            other.ask("check", "^checked$")
        print(f"{moving} pages were on their way", flush=True)
        self.drain()
        self.assertEqual(self.there(), 0)
        for process in (owner, other):
            process.finish()

    # ---- under load --------------------------------------------------------------------------

    def under_load(self, *args):
        """Everybody reads and writes through every path meanwhile, and compares; each drain ends."""
        self.start_daemon()
        process = self.spawn("coherence", "--seed", self.seed, "--seconds", SECONDS, "--drivers", 2, *args)
        process.expect("coherence: running")
        deadline = time.monotonic() + SECONDS - 1
        drains = home = left = coherent = 0
        while time.monotonic() < deadline and process.running:
            answer = self.drain(*self.random.choice([[], ["--pid", process.pid]]))
            drains += 1
            home += answer["pages"]
            left += sum(mirror["pages"] for mirror in answer["left"])
            coherent += sum(mirror["coherent"] for mirror in answer["left"])
        process.close_input()
        status = process.wait(SECONDS + 120)
        print(process.output, f"{drains} drains: {home} pages came home, {left} were there again, {coherent} are coherent", flush=True)
        self.assertEqual(status, 0, process.errors)
        self.assertGreater(home, 0)
        self.assertGreater(coherent, 0)
        self.assertGreater(drains, 1)

    def test_with_windows(self):
        self.under_load("--windows")

    def test_killed_in_it(self):
        """Whoever waits for its end is told that hmmd is gone, and no byte is wrong."""
        self.start_daemon()
        owner = self.owner()
        for _ in range(6):
            owner.ask("turn", f"^turned {PAGES}$")
            drain = self.spawn("hmmctl", "drain")
            time.sleep(self.random.uniform(0, 0.03))
            self.daemon.restart()
            self.assertIn(drain.wait(), (0, 3, 6))
            owner.ask("device", "^checked$")
            owner.ask("change", "^changed$")
        self.drain()
        owner.ask("check", "^checked$")
        self.assertEqual(self.there(), 0)
        owner.finish()


class ForLonger(Drain):
    def test_with_forks_and_events(self):
        self.under_load("--fork", "--events")

    def test_with_small_devices(self):
        self.under_load("--mib", "32", "--device", "16", "--windows")

    def test_with_memory_of_a_driver(self):
        self.under_load("--engine")

    test_an_owner_is_stopped = test_all_is_home = test_no_such_device = None


if __name__ == "__main__":
    harness.main()
