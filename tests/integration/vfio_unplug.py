# SPDX-License-Identifier: GPL-2.0-or-later
"""A card is taken out of its slot, or its driver unbound, while hmmd has it: in good order, nothing of its memory is lost.

The emulated machine of tests/guest has slots, and does what it is asked for.
"""

import os
import re
import subprocess

import harness
import vfio_card

PAGES = 1500


class Slot(harness.Test):
    name = None

    def setUp(self):
        super().setUp()
        if not vfio_card.Machine.is_there():
            self.skipTest("nobody can take a card out of this machine")
        self.card = vfio_card.Machine.plug(self.name)
        self.bind()

    def bind(self):
        if not os.path.exists(f"/sys/bus/pci/devices/{self.card}/driver"):
            self.hmmctl("device", "bind", self.card)

    def wait_gone(self):
        """The kernel asks, at most every ten seconds."""
        harness.wait_until(lambda: not os.path.exists(f"/sys/bus/pci/devices/{self.card}"), 40, "that the kernel has let go of the card")

    def wait_log(self, pattern, seconds=20):
        harness.wait_until(lambda: re.search(pattern, self.daemon.log), seconds, f"that the log says {pattern}")

    def write(self, path, text):
        """As the kernel may wait inside it a process of its own does it. Returns that."""
        return subprocess.Popen(["/bin/sh", "-c", f"echo {text} >{path}"], stdin=subprocess.DEVNULL)

    def unbind(self):
        writer = self.write("/sys/bus/pci/drivers/vfio-pci/unbind", self.card)
        self.addCleanup(writer.kill)
        return writer


class Memory(Slot):
    """Its BAR is the pool."""

    name = "spare-ivshmem"

    def start(self):
        self.start_daemon("--pool", "vfio", "--pool-card", self.card, "--pool-bar", "2")

    def owner(self, *args):
        owner = self.spawn("mirror-owner", str(PAGES), *args)
        owner.expect("^ready")
        return owner

    def out(self, owner):
        owner.ask("out", f"^out {PAGES}$")

    def goes_on(self, *owners):
        """All is at home, and is right; there is no room any more, and that is all."""
        for owner in owners:
            owner.ask("check", "^checked$")
            owner.ask("out", "^out 0$")
            owner.ask("change", "^changed$")
            owner.ask("check", "^checked$")
        self.assertNotIn("lost", self.daemon.log)

    def refused(self, why):
        ended = self.run_client("mirror-owner", "8", status=1)
        self.assertIn(why, ended.stdout + ended.stderr)

    def test_unplugged(self):
        self.start()
        owner, other = self.owner("huge"), self.owner()
        self.out(owner)
        self.out(other)
        vfio_card.Machine.unplug(self.name)
        self.wait_gone()
        self.wait_log(f"{self.card} is given back")
        self.goes_on(owner, other)
        self.refused(f"there is no PCI device {self.card}")
        # Another one in the same slot: whoever begins now has it, and who was there before goes on without.
        self.assertEqual(vfio_card.Machine.plug(self.name), self.card)
        self.bind()
        late = self.owner("base")
        self.out(late)
        late.ask("check", "^checked$")
        owner.ask("out", "^out 0$")
        for process in (owner, other, late):
            process.finish()

    def test_nobody_has_a_page(self):
        self.start()
        owner = self.owner()
        vfio_card.Machine.unplug(self.name)
        self.wait_gone()
        self.goes_on(owner)
        owner.finish()

    def test_unbound(self):
        """hmmctl, too, counts on it."""
        self.start()
        owner = self.owner()
        self.out(owner)
        self.assertIn("hmmd", self.hmmctl("device", "unbind", self.card, seconds=60).stderr)
        self.assertFalse(os.path.exists(f"/sys/bus/pci/devices/{self.card}/driver"))
        self.goes_on(owner)
        self.refused(f"{self.card} has no driver")
        owner.finish()

    def test_removed(self):
        self.start()
        owner = self.owner()
        self.out(owner)
        self.write(f"/sys/bus/pci/devices/{self.card}/remove", "1")
        self.wait_gone()
        self.goes_on(owner)
        owner.finish()
        with open("/sys/bus/pci/rescan", "w") as file:
            file.write("1")

    def test_stopped_programs(self):
        """One that hmmd knows: its pages come home all the same. One that is not back since hmmd was started is waited for, and named."""
        self.start()
        owner, other = self.owner(), self.owner("base")
        self.out(owner)
        self.out(other)
        with harness.stopped(owner.pid):
            self.daemon.restart()
            other.ask("check", "^checked$")
            self.out(other)
            with harness.stopped(other.pid):
                writer = self.unbind()
                self.wait_log(f"waits for {PAGES} pages in its BAR 2 to come home: {PAGES} of pid {owner.pid} ")
                self.refused(f"{self.card} is wanted back")
                self.assertIsNone(writer.poll())
        writer.wait(harness.scaled(60))
        self.goes_on(owner, other)
        owner.finish()
        other.finish()

    def test_hmmd_is_killed_meanwhile(self):
        self.start()
        owner, other = self.owner(), self.owner()
        self.out(owner)
        self.out(other)
        with harness.stopped(owner.pid):
            self.daemon.restart()
            writer = self.unbind()
            self.wait_log(f"waits for .* pid {owner.pid} ", 40)
            self.daemon.restart()
            # The kernel asks this one, too.
            self.wait_log(f"waits for .* pid {owner.pid} ", 40)
        writer.wait(harness.scaled(60))
        self.goes_on(owner, other)
        owner.finish()
        other.finish()


class Bus(Slot):
    """It is a device, and reaches memory by itself."""

    name = "spare-edu"

    def setUp(self):
        super().setUp()
        os.environ["HMM_TEST_CARD"] = self.card

    def check(self, take, wait):
        self.start_daemon("--pool", "memfd-huge")
        driver = self.spawn("mirror-card", "recalled")
        driver.expect("^mapped$")
        take()
        wait()
        self.wait_log(f"{self.card} is given back")
        driver.send("")
        driver.finish()

    def test_unplugged(self):
        self.check(lambda: vfio_card.Machine.unplug(self.name), self.wait_gone)
        self.run_client("mirror-card", "hold", status=1)

    def test_unbound(self):
        """And given to hmmd again."""
        self.check(self.unbind, lambda: harness.wait_until(
            lambda: not os.path.exists(f"/sys/bus/pci/devices/{self.card}/driver"), 40, "that the card is unbound"))
        self.hmmctl("device", "bind", self.card)
        driver = self.spawn("mirror-card", "hold")
        driver.expect("^mapped$")
        driver.send("")
        driver.finish()


if __name__ == "__main__":
    harness.main()
