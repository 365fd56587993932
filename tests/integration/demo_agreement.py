# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo: three counts agree, through a window and without, and when hmmd is killed in the middle."""

import re
import unittest

import harness


class Demo(harness.Test):
    daemon_args = ["--pool", "memfd", "--pool-size", "1G"]
    SIZE = "32"

    def setUp(self):
        super().setUp()
        self.start_daemon()
        if "move" not in self.hmmctl_json("status")["features"]:
            self.skipTest("the demo declares nothing, so its memory migrates by UFFDIO_MOVE only, which this kernel lacks")

    def check(self, output):
        self.assertRegex(output, r"(?m)^owner, driver and a count without hmmd agree on all [1-9]\d* words$")
        moved = re.search(r"(?m)^moved: (\d+) pages to the device and (\d+) home", output)
        self.assertGreater(int(moved.group(1)), 0)
        self.assertGreater(int(moved.group(2)), 0)
        for when in ("before", "during", "after"):
            self.assertRegex(output, rf"(?m)^{when}  ")

    @unittest.skipIf(harness.SANITIZE, "a sanitizer's allocator uses the same addresses in owner and driver")
    def test_window(self):
        self.check(self.run_client("demo", "--size", self.SIZE, "--seed", self.seed).stdout)

    def test_no_window(self):
        self.check(self.run_client("demo", "--size", "16", "--seed", self.seed, "--no-window", seconds=300).stdout)

    @unittest.skipIf(harness.SANITIZE, "a sanitizer's allocator uses the same addresses in owner and driver")
    def test_kill_9_of_hmmd_meanwhile(self):
        demo = self.spawn("demo", "--size", self.SIZE, "--seed", self.seed)
        demo.expect("^during ", seconds=200)
        self.daemon.restart()
        demo.finish(seconds=300)
        self.check(demo.output)


class WithoutDaemon(harness.Test):
    def test_it_says_so(self):
        done = self.run_client("demo", "--size", "4", status=1)
        self.assertIn("cannot have the memory mirrored", done.stderr)

    def test_usage(self):
        for words in (["--size", "0"], ["--size", "x"], ["--seed", "-1"], ["more"], ["--nonsense"], ["--socket", "x" * 108]):
            done = self.run_client("demo", *words, status=2)
            self.assertEqual(done.stdout, "")
            self.assertNotEqual(done.stderr, "")


if __name__ == "__main__":
    harness.main()
