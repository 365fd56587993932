# SPDX-License-Identifier: GPL-2.0-or-later
"""hmmd goes away, by order or by force, and comes back or does not: the owner's bytes stay what they were."""

import signal
import time
import unittest

import harness

PAGES = 1500


class Outage(harness.Test):
    daemon_args = ["--pool", "memfd-huge"]

    def owner(self, *args, pages=PAGES):
        owner = self.spawn("mirror-owner", str(pages), *args)
        owner.expect("^ready")
        return owner

    def ask(self, owner, line, answer, seconds=60):
        owner.send(line)
        return owner.expect(answer, seconds)

    def out(self, owner, pages=PAGES):
        self.ask(owner, "out", f"^out {pages}$")

    def where(self, owner):
        return int(self.ask(owner, "where", r"^where (\d+)$").group(1))

    # ---- in good order

    def test_sigterm_brings_all_home(self):
        self.start_daemon()
        owner = self.owner("huge")
        self.out(owner)
        self.daemon.stop()
        self.ask(owner, "check", "^checked$")
        self.ask(owner, "change", "^changed$")
        self.ask(owner, "fork", "^forked$")
        owner.finish()

    def test_sigterm_then_start(self):
        self.start_daemon()
        owner = self.owner()
        for _ in range(3):
            self.out(owner)
            self.ask(owner, "touch", "^touched$")
            self.out(owner)
            self.daemon.stop()
            self.daemon.start()
            self.ask(owner, "device", "^checked$")
            self.ask(owner, "check", "^checked$")
        self.ask(owner, "close", "^closed$")
        owner.finish()

    def test_sigterm_with_a_stopped_owner(self):
        """COPY needs nobody in the owner: a stopped one delays nothing."""
        self.start_daemon()
        owner = self.owner("huge")
        self.out(owner)
        owner.signal(signal.SIGSTOP)
        self.daemon.stop()
        owner.signal(signal.SIGCONT)
        self.ask(owner, "check", "^checked$")
        owner.finish()

    # ---- kill -9, and a new one

    def test_kill_and_restart(self):
        self.start_daemon()
        owner = self.owner("huge")
        self.out(owner)
        self.daemon.restart()
        self.ask(owner, "device", "^checked$")
        self.ask(owner, "check", "^checked$")
        self.ask(owner, "change", "^changed$")
        self.out(owner)
        self.ask(owner, "check", "^checked$")
        self.ask(owner, "close", "^closed$")
        owner.finish()

    def test_kill_and_restart_of_exclusive_pages(self):
        """The pages stay on the device; that it had them for itself nobody knows any more."""
        self.start_daemon()
        owner = self.owner()
        self.ask(owner, "exclusive", f"^exclusive {PAGES}$")
        self.ask(owner, "marked", f"^marked {PAGES}$")
        self.daemon.restart()
        self.ask(owner, "device", "^checked$")
        self.ask(owner, "marked", "^marked 0$")
        self.assertEqual(self.where(owner), PAGES)
        self.ask(owner, "exclusive", f"^exclusive {PAGES}$")
        self.ask(owner, "check", "^checked$")
        self.ask(owner, "marked", "^marked 0$")
        self.ask(owner, "close", "^closed$")
        owner.finish()

    def test_kill_and_restart_with_shared_pages(self):
        self.start_daemon()
        owner = self.owner()
        self.out(owner)
        self.ask(owner, "check", "^checked$")
        self.daemon.restart()
        self.ask(owner, "change", "^changed$")
        self.ask(owner, "device", "^checked$")
        self.ask(owner, "check", "^checked$")
        owner.finish()

    def test_fault_waits_for_the_new_one(self):
        """Faults that the dead daemon had read are raised anew."""
        self.start_daemon()
        owner = self.owner()
        self.out(owner)
        self.daemon.kill9()
        owner.send("check")
        time.sleep(0.5)
        self.daemon.start()
        owner.expect("^checked$")
        owner.finish()

    def test_kill_again_and_again(self):
        self.start_daemon()
        owner = self.owner("huge")
        for _ in range(8):
            owner.send("out")
            time.sleep(self.random.uniform(0, 0.05))
            self.daemon.restart()
            owner.expect(r"^out \d+$")
            owner.send(self.random.choice(["check", "change", "touch", "device", "home", "fork"]))
            time.sleep(self.random.uniform(0, 0.05))
            self.daemon.restart()
            owner.expect(r"^(checked|changed|touched|home \d+|forked)$")
            self.ask(owner, "check", "^checked$")
        self.ask(owner, "close", "^closed$")
        owner.finish()

    def test_kill_under_the_base_engine(self):
        self.start_daemon()
        owner = self.owner("base", "huge")
        for _ in range(4):
            owner.send("out")
            time.sleep(self.random.uniform(0, 0.05))
            self.daemon.restart()
            owner.expect(r"^out \d+$")
            self.ask(owner, "device", "^checked$")
            self.ask(owner, "change", "^changed$")
        owner.finish()

    def test_fork_while_there_is_none(self):
        """fork waits for its pages to come home; the new daemon, or the rescuer, brings them."""
        self.start_daemon()
        owner = self.owner()
        self.out(owner)
        self.daemon.kill9()
        owner.send("fork")
        time.sleep(0.3)
        self.daemon.start()
        owner.expect("^forked$")
        self.ask(owner, "check", "^checked$")
        owner.finish()

    # ---- kill -9, and nobody comes

    def test_rescue(self):
        self.start_daemon("--grace", "300ms")
        owner = self.owner("huge")
        self.out(owner)
        self.daemon.kill9()
        self.ask(owner, "check", "^checked$")
        self.ask(owner, "change", "^changed$")
        self.ask(owner, "check", "^checked$")
        self.ask(owner, "fork", "^forked$")
        owner.finish()

    def test_rescue_brings_all_home_by_itself(self):
        self.start_daemon("--grace", "300ms")
        owner = self.owner()
        self.out(owner)
        self.daemon.kill9()
        time.sleep(harness.scaled(2))
        with open(f"/proc/{owner.pid}/smaps") as file:
            flags = [line for line in file if line.startswith("VmFlags:")]
        self.assertFalse([line for line in flags if " um" in line or " uw" in line], "something is still armed")
        self.ask(owner, "check", "^checked$")
        owner.finish()

    def test_rescue_of_a_migration_under_way(self):
        self.start_daemon("--grace", "300ms")
        owners = [self.owner("huge") for _ in range(3)]
        for owner in owners:
            owner.send("out")
        time.sleep(self.random.uniform(0, 0.02))
        self.daemon.kill9()
        # The owner opens anew when it has been rescued, and tries that for five seconds.
        time.sleep(min(harness.scaled(1.5), 3))
        self.daemon.start()
        for owner in owners:
            owner.expect(r"^out \d+$")
            self.ask(owner, "check", "^checked$")
            owner.finish()

    def test_late_daemon_finds_it_rescued(self):
        self.start_daemon("--grace", "300ms")
        owner = self.owner()
        self.out(owner)
        self.daemon.kill9()
        time.sleep(harness.scaled(1.5))
        self.daemon.start()
        self.ask(owner, "check", "^checked$")
        self.out(owner)
        self.ask(owner, "device", "^checked$")
        self.ask(owner, "check", "^checked$")
        owner.finish()

    # ---- an owner stops or ends

    @unittest.skipIf(harness.SANITIZE, "AddressSanitizer's shadow is terabytes to migrate")
    def test_stopped_owner_holds_up_nobody(self):
        self.start_daemon()
        stopped, other = self.owner(), self.owner()
        self.out(stopped)
        stopped.signal(signal.SIGSTOP)
        self.hmmctl("migrate", "--to", "device", "--pid", str(other.pid), status=None)
        self.ask(other, "check", "^checked$")
        self.hmmctl("drain", "--pid", str(stopped.pid))
        stopped.signal(signal.SIGCONT)
        self.ask(stopped, "check", "^checked$")
        stopped.finish()
        other.finish()

    def test_owner_stopped_in_a_migration(self):
        """An order that the agent does not carry out is taken back, or waits; the other owner never does."""
        self.start_daemon()
        stopped, other = self.owner("huge"), self.owner()
        for _ in range(10):
            stopped.send("out")
            time.sleep(self.random.uniform(0, 0.003))
            stopped.signal(signal.SIGSTOP)
            self.out(other)
            self.ask(other, "check", "^checked$")
            stopped.signal(signal.SIGCONT)
            stopped.expect(r"^out \d+$")
            self.ask(stopped, "check", "^checked$")
        stopped.finish()
        other.finish()

    def test_killed_owner_leaves_nothing(self):
        self.start_daemon()
        victim, other = self.owner("huge"), self.owner()
        self.out(other)
        self.out(victim)
        victim.kill9()
        self.ask(other, "check", "^checked$")
        self.ask(other, "close", "^closed$")
        other.finish()
        harness.wait_until(lambda: not sum(pool["used"] for pool in self.hmmctl_json("pools")["pools"]), 10,
                           "that the pool is empty")

    def test_owner_killed_in_a_migration(self):
        self.start_daemon()
        other = self.owner()
        for _ in range(6):
            victim = self.owner("huge")
            victim.send("out")
            time.sleep(self.random.uniform(0, 0.01))
            victim.kill9()
            self.out(other)
            self.ask(other, "check", "^checked$")
        other.finish()


if __name__ == "__main__":
    harness.main()
