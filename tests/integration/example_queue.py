# SPDX-License-Identifier: GPL-2.0-or-later
"""examples/queue: an accelerator in a thread of the owner; every answer is right, and its pages really were taken from under it."""

import os
import re
import time

import harness

JOBS, RECORDS = 64, 768
PAGES = RECORDS * 496 // 4096		# that the records fill, at least


class Queue(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--pool-size", "128M"]

    def check(self, output):
        jobs, records, wrong = map(int, re.search(r"(?m)^(\d+) jobs over (\d+) records, .*: (\d+) wrong answers$", output).groups())
        self.assertEqual((jobs, records, wrong), (JOBS, RECORDS, 0))
        sent, local = map(int, re.search(r"(?m)^(\d+) pages sent .* accesses (\d+) were to its memory", output).groups())
        faults, invalidations = map(int, re.search(r"(?m)^(\d+) device faults, \d+ retries, (\d+) invalidations$", output).groups())
        # Each job takes its list there, and the program's next look at it takes it back.
        self.assertGreaterEqual(sent, PAGES * JOBS // 16)
        self.assertGreater(local, 0)
        self.assertGreaterEqual(faults, PAGES)
        self.assertGreaterEqual(invalidations, PAGES)

    def test_every_answer_is_right(self):
        self.start_daemon()
        self.check(self.run_client(os.path.join(harness.BINARY, "examples", "queue"), seconds=60).stdout)

    def test_hmmd_is_replaced_meanwhile(self):
        """kill -9 at random moments: jobs wait, none is lost, none is answered from what has changed since."""
        self.start_daemon()
        queue = self.spawn(os.path.join(harness.BINARY, "examples", "queue"))
        harness.wait_until(lambda: self.hmmctl_json("mirrors")["mirrors"] or not queue.running, 20, "that it mirrors")
        for _ in range(3):
            time.sleep(self.random.random() / 2)
            if queue.running:
                self.daemon.restart()
        queue.finish(seconds=60)
        self.check(queue.output)


if __name__ == "__main__":
    harness.main()
