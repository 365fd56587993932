# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples that show one thing each: what they print is true, and what they leave behind is nothing."""

import os
import re

import harness


class Example(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--pool-size", "256M"]

    def setUp(self):
        super().setUp()
        self.start_daemon()

    def example(self, name):
        return self.run_client(os.path.join(harness.BINARY, "examples", name), seconds=100).stdout

    def numbers(self, pattern, output):
        match = re.search(pattern, output, re.M)
        self.assertTrue(match, f"no line like '{pattern}' in:\n{output}")
        return [int(number) for number in match.groups()]

    def test_hello(self):
        lines = self.example("hello").splitlines()
        # While the rest of its block follows, the device has no entry.
        self.assertIn(lines.pop(3), ("now the page is on both sides, to be read", "now the page is at home"))
        self.assertEqual(lines, [
            "2048 of 2048 pages moved; the first is on the device",
            "the device wrote; the page is on the device",
            "the CPU reads: written by the device",
            "the CPU wrote; the page is at home"])

    def test_list(self):
        """A window: the driver follows and changes a list by the owner's pointers."""
        if harness.SANITIZE:
            self.skipTest("a sanitizer's heap does not end at sbrk(0)")
        self.assertEqual(self.example("list"), "the driver's status is 0, the sum 9999900000\n")

    def test_share(self):
        self.assertEqual(self.example("share").splitlines(), [
            "the thread counts in ordinary memory",
            "it goes on, in coherent memory",
            "the device sees it count",
            "it still goes on, in ordinary memory"])

    def test_advise(self):
        table, pinned, written, discarded, end = self.example("advise").splitlines()
        self.assertEqual(table, "the table, read by the CPU: 1024 of 1024 pages are on the device")
        self.assertEqual(pinned, "the buffer, pinned: 1024 of 1024 pages are on the device")
        self.assertTrue(written.startswith("the buffer, written by the CPU: 1023 of 1024 pages are on the device; not as said: "))
        self.assertEqual(discarded, "the buffer, discarded: 0 of 1024 pages are on the device")
        self.assertEqual(end, "1024 pages added up; the buffer's last byte is 0")

    def test_events(self):
        """All of the buffer goes out, one page is touched, and a protected buffer is at home again."""
        output = self.example("events")
        pages = {}
        for kind, start, end, count in re.findall(r"^[\d.]+  (.+?) +0x(\w+)-0x(\w+), (\d+) pages$", output, re.M):
            self.assertLessEqual(int(count), (int(end, 16) - int(start, 16)) // 4096)
            pages[kind] = pages.get(kind, 0) + int(count)
        self.assertEqual((pages["to the device"], pages["the CPU touched"], pages["home"]), (256, 1, 256))
        self.assertEqual(self.numbers(r"^(\d+) events did not fit$", output), [0])

    def test_replica(self):
        self.assertRegex(
            self.example("replica"),
            r"^at first 16384 of 16384 pages were copied\nthen \d+, in 11 rounds\nthe copy is the same\n$")

    def test_checkpoint(self):
        first, pages, later, rounds = self.numbers(
            r"^at first (\d+) of (\d+) pages were copied\nthen (\d+), in (\d+) rounds\nthe copy is the same$",
            self.example("checkpoint"))
        self.assertEqual(first, pages)
        self.assertTrue(0 < later < rounds * pages / 10)

    def test_prefetch(self):
        output = self.example("prefetch")
        pieces, pages, room = self.numbers(r"^(\d+) pieces of (\d+) pages went through a device with room for (\d+)", output)
        there, home, waits, wrong = self.numbers(r"^(\d+) pages sent there, (\d+) sent home, in (\d+) waits; (\d+) words", output)
        self.assertGreater(pieces * pages, room)
        self.assertEqual((there, home, wrong), (pieces * pages, pieces * pages, 0))
        self.assertLessEqual(waits, 2 * pieces)

    def test_atomic(self):
        cpu, device, bursts, first, second = self.numbers(
            r"^the CPU added (\d+), the device (\d+) in (\d+) bursts: the words are (\d+) and (\d+)$", self.example("atomic"))
        self.assertEqual((first, second), (cpu + device, cpu + device))
        self.assertTrue(cpu and device and bursts)

    def test_copyengine(self):
        self.assertEqual(self.example("copyengine").splitlines(), [
            "256 pages are in memory that only the driver reaches",
            "256 pages came home changed by the device"])


if __name__ == "__main__":
    harness.main()
