# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle itself is tested: an hmmd with a deliberate mistake (daemon/engine/breakage.h) must be caught.

Caught means that the coherence test ends by itself and says what is wrong, or that it finds somebody hanging.
The same options with nothing broken must pass, so that it is the mistake that is found. A mistake shows itself
by chance; it gets several runs, each with a seed of its own, and one that is never found fails the test.
"""

import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration"))
import harness  # noqa: E402

RUNS = 40
SECONDS = 8


class Base(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--pool-size", "1G"]


@unittest.skipIf(harness.SANITIZE, "the oracle is tested once, with the plain build")
class Broken(Base):
    def run_once(self, mistake, seed, options):
        """Its verdict: None, or what it says is wrong."""
        self.start_daemon(mistake=mistake)
        # With a mistake somebody hangs sooner or later; with none a busy machine may keep one waiting for long.
        hang = ["--hang", "8"] if mistake else []
        process = self.spawn("coherence", "--seed", str(seed), "--seconds", str(SECONDS), *hang, *options)
        process.close_input()
        try:
            status = process.wait(SECONDS + 60)
        except AssertionError as hang:
            # With a mistake in hmmd it may not even be able to end: caught all the same.
            if not mistake:
                raise
            process.kill9()
            self.daemon.kill9()
            return str(hang)
        complaint = [line for line in process.errors.splitlines() if line.startswith("coherence: ")]
        self.daemon.kill9()
        if status == 0:
            return None
        self.assertEqual(status, 1, process.errors)
        self.assertTrue(complaint, process.errors)
        return complaint[0]

    def must_be_caught(self, mistake, *options):
        for run in range(RUNS):
            complaint = self.run_once(mistake, self.seed + run, options)
            if complaint:
                print(f"{mistake}: caught in run {run + 1}: {complaint}", flush=True)
                return
        self.fail(f"{mistake} was not caught in {RUNS} runs")

    def test_nothing_broken(self):
        self.assertIsNone(self.run_once("", self.seed, ["--drivers", "1", "--events"]))

    def test_write_protect_skipped(self):
        self.must_be_caught("skip-wp", "--drivers", "2", "--windows")

    def test_copies_kept(self):
        self.must_be_caught("skip-copies", "--drivers", "2", "--windows")

    def test_steps_swapped(self):
        self.must_be_caught("swap-steps", "--drivers", "1")

    def test_wake_dropped(self):
        self.must_be_caught("drop-wake", "--drivers", "1")

    def test_discard_during_a_move_forgotten(self):
        self.must_be_caught("skip-dead", "--drivers", "1", "--events", "--mib", "4")


@unittest.skipIf(harness.SANITIZE, "the oracle is tested once, with the plain build")
class Huge(Base):
    """By a case of its own: by chance it took ten runs to meet, or never, on a busy machine."""

    def held_huge(self, mistake):
        self.start_daemon(mistake=mistake)
        ended = self.run_client("mirror-api", "held-huge", status=None, seconds=60)
        self.daemon.kill9()
        return ended

    def test_nothing_broken(self):
        ended = self.held_huge("")
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)

    def test_guard_skipped(self):
        for _ in range(10):
            ended = self.held_huge("skip-guard")
            if ended.returncode:
                self.assertIn("is 0, not", ended.stdout + ended.stderr)
                return
        self.fail("skip-guard was not caught")


if __name__ == "__main__":
    harness.main()
