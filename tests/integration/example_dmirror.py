# SPDX-License-Identifier: GPL-2.0-or-later
"""examples/dmirror: every command of the driver to copy, with its counts and the exact bytes of a snapshot."""

import mmap
import os
import re

import harness

STEPS = [("the device reads what the CPU wrote", 16, 1), ("the device writes, in place", 16, 0),
         ("it reads again: its own table has all", 2, 0), ("pages go to the device", 16, 0),
         ("the device writes one there", 1, 1),
         # The CPU's second touch takes the page behind it along, as reading ahead: those are at home as well.
         ("everything goes home", 13, 0), ("pages that the device has to itself", 16, 0)]


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


def gives_huge_pages():
    with mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.write(b"h" * (8 << 20))
        with open("/proc/self/smaps_rollup") as file:
            return int(re.search(r"^AnonHugePages: +(\d+) kB", file.read(), re.M).group(1)) >= 4096


class Example(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--pool-size", "256M"]

    def row(self, ended, what):
        return re.search(rf"^{re.escape(what)} +((?:[0-9a-f]{{2}} ?)+)$", ended.stdout, re.M).group(1)

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
        self.assertEqual(self.row(ended, "the CPU has touched two"), " ".join(["21"] * 3 + ["23"] * 13))
        # A huge page, or two small ones where the system has none to give.
        huge = self.row(ended, "huge, where the system has huge pages")
        self.assertIn(huge, ["07 07"] if features["pagemap_scan"] and gives_huge_pages() else ["07 07", "03 03"])
        self.assertEqual(self.row(ended, "what is not memory"), "ff")
        self.assertRegex(ended.stdout, r"(?m)^memory that CPU and device both map +43 43$")
        self.assertIn("every byte was right", ended.stdout)


if __name__ == "__main__":
    harness.main()
