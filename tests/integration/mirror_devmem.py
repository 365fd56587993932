# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages in memory that only the driver reaches, while hmmd goes away and comes back, or does not."""

import errno
import signal
import struct
import time

import control_wire as wire
import harness

PAGES = 700


class Devmem(harness.Test):
    daemon_args = ["--pool", "memfd-huge"]

    def owner(self):
        owner = self.spawn("mirror-devmem", "told")
        owner.expect("^ready")
        return owner

    def ask(self, owner, line, answer, seconds=60):
        owner.send(line)
        return owner.expect(answer, seconds)

    def in_use(self, owner):
        return int(self.ask(owner, "use", r"^use (\d+)$").group(1))

    def wait_in_use(self, owner, count):
        harness.wait_until(lambda: self.in_use(owner) == count, 15, f"that {count} pages are in use")

    def finish(self, owner):
        self.ask(owner, "end", "^ended$")
        owner.finish()

    def test_kill_and_restart(self):
        """Nothing is lost, and the driver's own data of each page is there still."""
        self.start_daemon()
        owner = self.owner()
        self.ask(owner, f"out {PAGES}", f"^out {PAGES}$")
        for _ in range(3):
            self.daemon.restart()
            self.assertEqual(self.in_use(owner), PAGES)
            self.ask(owner, "drvdata", "^drvdata$")
        self.ask(owner, f"check {PAGES}", "^checked$")
        self.wait_in_use(owner, 0)
        self.ask(owner, f"out {PAGES}", f"^out {PAGES}$")
        self.finish(owner)

    def test_fault_waits_for_the_new_one(self):
        self.start_daemon()
        owner = self.owner()
        self.ask(owner, f"out {PAGES}", f"^out {PAGES}$")
        self.daemon.kill9()
        owner.send(f"check {PAGES}")
        time.sleep(0.3)
        self.daemon.start()
        owner.expect("^checked$")
        self.finish(owner)

    def test_unmapped_while_there_is_none(self):
        """What the driver need not keep any more it is told afterwards."""
        self.start_daemon()
        owner = self.owner()
        self.ask(owner, f"out {PAGES}", f"^out {PAGES}$")
        self.daemon.kill9()
        owner.send("unmap 300")
        time.sleep(0.2)
        self.daemon.start()
        owner.expect("^unmapped$")
        self.wait_in_use(owner, PAGES - 300)
        self.finish(owner)

    def test_kill_in_a_store(self):
        """The old one asked, the new one hears the answer: the bytes are in one place, and it knows in which."""
        self.start_daemon()
        owner = self.owner()
        for _ in range(3):
            self.ask(owner, "hold", "^holding$")
            self.daemon.restart()
            self.ask(owner, "let go", "^let go$")
            self.ask(owner, f"check {PAGES}", "^checked$")
        # The driver's answer to the old one is what its thread is busy with: the new one must not wait behind it.
        self.assertNotIn("did not come back", self.daemon.log)
        self.finish(owner)

    def test_handed_over_in_a_store(self):
        """The driver has not answered in time: it is as if hmmd had been killed."""
        self.start_daemon()
        owner = self.owner()
        for _ in range(3):
            self.ask(owner, "hold", "^holding$")
            self.daemon.hand_over()
            self.assertIn("something is under way still", self.daemon.log)
            self.daemon.start()
            self.ask(owner, "let go", "^let go$")
            self.ask(owner, f"check {PAGES}", "^checked$")
        self.finish(owner)

    def test_who_asks_while_it_hands_over(self):
        """It waits for a driver, and everybody else is told nothing, least of all that hmmd ends: the next one will answer."""
        self.start_daemon("--grace", "600s")
        owner = self.owner()
        with wire.Client(self.daemon.socket) as client:
            self.ask(owner, "hold", "^holding$")
            self.daemon.process.signal(signal.SIGUSR2)
            harness.wait_until(lambda: "every page stays where it is" in self.daemon.log, 20, "that it hands over")
            try:
                self.assertIsNone(client.ask(wire.DEVICE_NEW, wire.new_device("late")))
            except BrokenPipeError:
                pass    # it has ended by now
        self.assertEqual(self.daemon.process.wait(), 0)
        self.daemon.start()
        self.ask(owner, "let go", "^let go$")
        self.ask(owner, f"check {PAGES}", "^checked$")
        self.finish(owner)

    def test_who_is_home_before_the_others(self):
        """hmmd ends in good order and waits for a driver. An owner whose pages are home is another's already: it is not told that it isn't its own."""
        self.start_daemon("--grace", "600s")
        owner = self.owner()
        with wire.Client(self.daemon.socket) as client:
            number = client.open_owner()
            self.ask(owner, "hold", "^holding$")
            self.daemon.process.signal(signal.SIGTERM)
            harness.wait_until(lambda: f"owner {number}: everything is home" in self.daemon.log, 20, "that it is home")
            for opcode, subject, least in ((wire.RANGES, number, 0), (wire.UNSHARE, number << 8, wire.BLOCK)):
                answer = client.ask(opcode, struct.pack("<IIQQ", subject, 0, least, wire.BLOCK))
                self.assertEqual(answer.is_error and answer.error, errno.EAGAIN, answer.is_error and answer.text)
            # What was never its own is not, as ever.
            self.assertEqual(client.ask(wire.RANGES, struct.pack("<IIQQ", number + 1, 0, 0, wire.BLOCK)).error, errno.EPERM)
            self.ask(owner, "let go", "^let go$")
            self.assertEqual(self.daemon.process.wait(), 0)
        self.daemon.start()
        self.ask(owner, f"check {PAGES}", "^checked$")
        self.finish(owner)

    def test_kill_again_and_again(self):
        self.start_daemon()
        owner = self.owner()
        for _ in range(12):
            owner.send(f"out {PAGES}")
            time.sleep(self.random.uniform(0, 0.04))
            self.daemon.restart()
            owner.expect(r"^out -?\d+$")
            owner.send(f"check {self.random.randint(1, PAGES)}")
            time.sleep(self.random.uniform(0, 0.04))
            self.daemon.restart()
            owner.expect("^checked$")
        self.ask(owner, f"check {PAGES}", "^checked$")
        self.finish(owner)

    def test_kill_under_a_crowd(self):
        """Threads and a driver at work, and each page has what its thread wrote."""
        self.start_daemon()
        crowd = self.spawn("mirror-devmem", "crowd")
        while crowd.running:
            time.sleep(self.random.uniform(0.05, 0.3))
            if crowd.running and self.daemon.starts < 20:
                self.daemon.restart()
        crowd.finish()

    def test_sigterm_brings_all_home(self):
        self.start_daemon()
        owner = self.owner()
        self.ask(owner, f"out {PAGES}", f"^out {PAGES}$")
        self.daemon.stop()
        self.ask(owner, f"check {PAGES}", "^checked$")
        self.wait_in_use(owner, 0)
        self.daemon.start()
        self.finish(owner)

    def test_nobody_comes(self):
        """Without any hmmd a driver can't be asked: SIGBUS, and never zeros; the rest is as it was."""
        self.start_daemon("--grace", "300ms")
        owner = self.owner()
        self.ask(owner, "out 100", "^out 100$")
        self.daemon.kill9()
        self.ask(owner, "lost 100", "^lost$")
        self.ask(owner, "rest 100", "^checked$")
        self.wait_in_use(owner, 0)
        owner.kill9()

    def test_without_memory_for_long(self):
        """It is asked again and again, after 1 ms, 2 ms, ... 1 s, and never given up; after 3 s the log says so."""
        self.start_daemon()
        owner = self.owner()
        self.ask(owner, "out 1", "^out 1$")
        self.ask(owner, "starve 14", "^starving$")
        self.ask(owner, "check 1", "^checked$")
        self.assertRegex(self.daemon.log, "has had no memory for 3 s to bring 1 pages of 0x[0-9a-f]+ home")
        self.finish(owner)

    def test_hmmctl_drain(self):
        self.start_daemon()
        owner = self.owner()
        self.ask(owner, f"out {PAGES}", f"^out {PAGES}$")
        self.hmmctl("drain", "--pid", str(owner.pid))
        self.wait_in_use(owner, 0)
        self.finish(owner)


if __name__ == "__main__":
    harness.main()
