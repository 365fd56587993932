# SPDX-License-Identifier: GPL-2.0-or-later
"""examples/queue: an accelerator in a thread of the owner; every answer is right, and its pages really were taken from under it."""

import os
import re
import time

import harness

JOBS, LISTS, RECORDS = 64, 16, 48		# records of a list


class Queue(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--pool-size", "128M"]

    def check(self, output):
        jobs, records, wrong = map(int, re.search(r"(?m)^(\d+) jobs on lists of (\d+) records: (\d+) wrong answers$", output).groups())
        self.assertEqual((jobs, records, wrong), (JOBS, RECORDS, 0))
        sent, local = map(int, re.search(r"(?m)^(\d+) pages sent to the device; (\d+) accesses to them there", output).groups())
        faults, invalidations = map(int, re.search(r"(?m)^(\d+) device faults, \d+ retries, (\d+) invalidations$", output).groups())
        # Each job takes its list there, and the program's next look at it takes it back.
        self.assertGreaterEqual(sent, JOBS)
        self.assertGreater(local, 0)
        self.assertGreaterEqual(faults, LISTS)
        self.assertGreaterEqual(invalidations, LISTS)

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
