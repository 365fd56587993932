# SPDX-License-Identifier: GPL-2.0-or-later
"""examples/dmirror: every command of the driver to copy, with its counts and the exact bytes of a snapshot."""

import mmap
import os
import re

import harness

STEPS = [("the device reads what the CPU wrote", 16, 1), ("the device writes, in place", 16, 0),
         ("it reads again: its own table has all", 2, 0), ("pages go to the device", 16, 0),
         ("the device writes one there", 1, 1), ("pages that the device has to itself", 16, 0)]


def resident_pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])


def reading_costs_nothing():
    """Some kernels have no page of zeros for whoever reads what was never written, but a page of its own."""
    with mmap.mmap(-1, 1024 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        before = resident_pages()
        for page in range(1024):
            memory[page * mmap.PAGESIZE]
        return resident_pages() - before < 512


class Example(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--pool-size", "256M"]

    def test_dmirror(self):
        self.start_daemon()
        ended = self.run_client(os.path.join(harness.BINARY, "examples", "dmirror"), status=0, seconds=60)
        steps = re.findall(r"^(.+?) +(\d+) pages +(\d+) faults$", ended.stdout, re.M)
        seen = {what: (int(pages), int(faults)) for what, pages, faults in steps}
        for what, pages, faults in STEPS:
            self.assertEqual(seen[what], (pages, faults), what)
        kinds = re.search(r"gone, zero +([0-9a-f ]+)$", ended.stdout, re.M).group(1)
        features = {feature["name"]: feature["here"] for feature in self.hmmctl_json("features")["features"]}
        zero = "13" if features["pagemap_scan"] and reading_costs_nothing() else "03"
        self.assertEqual(kinds, f"00 03 01 23 33 00 00 {zero}")
        self.assertRegex(ended.stdout, r"(?m)^memory that CPU and device both map +43 43$")
        self.assertIn("every byte was right", ended.stdout)


if __name__ == "__main__":
    harness.main()
