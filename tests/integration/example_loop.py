# SPDX-License-Identifier: GPL-2.0-or-later
"""A driver in an event loop: it is called back in time, and never answers with what the owner has written over."""

import re

import harness


class Loop(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--ack-timeout", "60s"]

    def test_it_is_called_back(self):
        self.start_daemon()
        told = re.search(r"(?m)^(\d+) copies, (\d+) looks, (\d+) callbacks$", self.run_client("loop", seconds=40).stdout)
        self.assertTrue(told)
        for count in told.groups():
            self.assertGreater(int(count), 0)


if __name__ == "__main__":
    harness.main()
