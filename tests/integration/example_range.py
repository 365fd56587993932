# SPDX-License-Identifier: GPL-2.0-or-later
"""examples/range: a device with a page table of its own sees what the CPU sees, and faults once for a whole range."""

import os
import re

import harness


class Example(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--pool-size", "128M"]

    def test_range(self):
        self.start_daemon()
        ended = self.run_client(os.path.join(harness.BINARY, "examples", "range"), status=0, seconds=60)
        seen = re.findall(r"^([\w ]+): +(\d+) of 512 pages on the device, (\d+) device faults$", ended.stdout, re.M)
        self.assertEqual([line[0] for line in seen],
                         ["nothing written yet", "the CPU wrote", "half of it migrated", "the middle thrown away"])
        # What is thrown away of pages on the device is gone, and comes back at home.
        self.assertEqual([int(line[1]) for line in seen][:3], [0, 0, 256])
        # The first look is one fault; writing to what is there is none.
        self.assertEqual([int(line[2]) for line in seen][:2], [1, 0])
        self.assertGreater(int(seen[2][2]), 0)
        self.assertGreater(int(seen[3][2]), 0)


if __name__ == "__main__":
    harness.main()
