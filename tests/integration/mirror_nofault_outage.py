# SPDX-License-Identifier: GPL-2.0-or-later
"""hmmd is killed while a device that cannot fault is stopped for a change: the next one lets it go on."""

import harness


class NofaultOutage(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--ack-timeout", "60s"]

    def test_killed_between_quiesce_and_resume(self):
        self.start_daemon()
        client = self.spawn("mirror-nofault", "killed-between")
        client.expect("^stopped$")
        self.daemon.kill9()
        client.send("")
        self.daemon.start()
        client.expect("^resumed$", 60)
        client.finish()


if __name__ == "__main__":
    harness.main()
