# SPDX-License-Identifier: GPL-2.0-or-later
"""hmmd dies while an owner forks: mirror_fork_outage.py. Its child begins with its parent's bytes, whoever wants them."""

import harness


class ForkOutage(harness.Test):
    daemon_args = ["--pool", "memfd-huge"]

    def window_faults(self):
        return self.hmmctl_json("stats")["owners"][0]["stats"]["window_faults"]

    def over_a_restart(self):
        self.start_daemon()
        for _ in range(3):
            owner = self.spawn("mirror-forks", "over-a-restart")
            owner.expect("^forking")
            self.daemon.restart()
            # This hmmd counts from 0: it wants the pages that the fork has brought home.
            harness.wait_until(lambda: self.window_faults() > 0, 20, "that the driver asks for a page")
            owner.send("go on")
            owner.finish()

    def test_seen(self):
        self.over_a_restart()

    def test_unseen(self):
        """hmmd may not ask for forks: what is away then is zeros in the child."""
        self.daemon_lacks = ["sys_ptrace"]
        self.over_a_restart()


if __name__ == "__main__":
    harness.main()
