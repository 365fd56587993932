# SPDX-License-Identifier: GPL-2.0-or-later
"""A driver in an event loop: it is called back in time, and never answers with what the owner has written over."""

import re
import time

import harness


class Loop(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--ack-timeout", "60s"]

    def check(self, output):
        told = re.search(r"(?m)^(\d+) copies, (\d+) looks, (\d+) callbacks$", output)
        self.assertTrue(told)
        for count in told.groups():
            self.assertGreater(int(count), 0)

    def driver(self):
        return [client["pid"] for client in self.hmmctl_json("clients")["clients"] if client["role"] == "driver"]

    def test_it_is_called_back(self):
        self.start_daemon()
        self.check(self.run_client("loop", seconds=40).stdout)

    def test_a_new_hmmd_waits_until_it_has_let_go(self):
        """It is stopped when hmmd dies, so that it is the last to come back."""
        self.start_daemon()
        loop = self.spawn("loop", "-")
        driver = harness.wait_until(self.driver, 20, "that the driver is there")[0]
        time.sleep(0.3)
        with harness.stopped(driver):
            self.daemon.restart()
            time.sleep(0.5)
        loop.finish(seconds=40)
        self.check(loop.output)


if __name__ == "__main__":
    harness.main()
