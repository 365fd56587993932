# SPDX-License-Identifier: GPL-2.0-or-later
"""An hmmd of another release comes: what it can read it takes over, else the library brings everything home.

hmmd_broken plays the other release: daemon/engine/breakage.h.
"""

import harness

PAGES = 1500


class Versions(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--grace", "1s"]

    def begin(self, difference=None):
        self.start_daemon(mistake=difference)
        owner = self.spawn("mirror-owner", str(PAGES), "huge")
        owner.expect("^ready")
        owner.ask("out", f"^out {PAGES}$")
        return owner

    def there(self):
        return sum(pool["used"] for pool in self.hmmctl_json("pools")["pools"])

    def test_an_older_ledger_is_read(self):
        owner = self.begin("older-ledger")
        self.daemon.kill9()
        self.daemon.mistake = None
        self.daemon.start()
        owner.ask("device", "^checked$")
        self.assertEqual(int(owner.ask("where", r"^where (\d+)$").group(1)), PAGES)
        owner.ask("change", "^changed$")
        # It is ours from now on, and the older one takes it no more.
        owner.ask("out", f"^out {PAGES}$")
        self.daemon.restart()
        owner.ask("device", "^checked$")
        owner.ask("check", "^checked$")
        owner.ask("close", "^closed$")
        owner.finish()

    def check_refused(self, difference, complaint):
        """Nobody takes it over; every byte comes home, nothing is left on the device, and who opens anew is served."""
        owner = self.begin(difference)
        self.daemon.kill9()
        self.daemon.mistake = None
        self.daemon.start()
        owner.ask("check", "^checked$")
        self.assertIn(complaint, self.daemon.log)
        self.assertEqual(self.daemon.log.count("is not taken over"), 1)
        harness.wait_until(lambda: self.there() == 0, 20, "that nothing of it is on the device")
        owner.ask("out", f"^out {PAGES}$")
        owner.ask("device", "^checked$")
        owner.ask("change", "^changed$")
        owner.ask("close", "^closed$")
        owner.finish()

    def test_a_newer_ledger_is_refused(self):
        self.check_refused("newer-ledger", "its ledger has version 10, this hmmd knows 8 to 9")

    def test_a_new_protocol_after_a_restart(self):
        """An old library and a new hmmd: it is told so, and brings everything home."""
        owner = self.begin()
        self.daemon.kill9()
        self.daemon.mistake = "newer-protocol"
        self.daemon.start()
        owner.ask("check", "^checked$")
        self.assertNotIn("taken over", self.daemon.log)
        # Nor does it open anew.
        owner.kill9()

    def test_a_new_protocol_from_the_beginning(self):
        self.start_daemon(mistake="newer-protocol")
        ended = self.run_client("mirror-owner", str(PAGES), status=None)
        self.assertNotEqual(ended.returncode, 0)
        said = ended.stdout + ended.stderr
        self.assertIn("you speak protocol versions 2 to 2, this hmmd speaks 3 to 3: bring libhmmclient and hmmd to the same release", said)
        ended = self.hmmctl("status", status=None)
        self.assertNotEqual(ended.returncode, 0)
        self.assertIn("to the same release", ended.stdout + ended.stderr)

    def test_a_message_that_is_not_understood(self):
        """An hmmd that says it speaks the same and hangs up at a message: the caller is told, and nobody asks without end."""
        self.start_daemon(mistake="newer-open")
        ended = self.run_client("mirror-owner", str(PAGES), status=None)
        self.assertNotEqual(ended.returncode, 0)
        self.assertIn("hangs up at what it is asked: bring libhmmclient and hmmd to the same release", ended.stdout + ended.stderr)
        times = self.daemon.log.count("cannot be understood")
        self.assertGreater(times, 3)
        self.assertLess(times, 20)

    def test_orders_of_another_layout(self):
        """The agent does not act on what it does not understand."""
        self.start_daemon(mistake="newer-orders")
        ended = self.run_client("mirror-owner", str(PAGES), status=None)
        self.assertNotEqual(ended.returncode, 0)
        self.assertIn("another layout: bring libhmmclient and hmmd to the same release", ended.stdout + ended.stderr)


if __name__ == "__main__":
    harness.main()
