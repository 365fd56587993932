# SPDX-License-Identifier: GPL-2.0-or-later
"""A card is taken out of its slot, or its driver unbound, while hmmd has it: in good order, nothing of its memory is lost.

The emulated machine of tests/guest has slots, and does what it is asked for.
"""

import os
import re
import struct
import subprocess

import harness
import vfio_card

PAGES = 1500
# Of linux/pci_regs.h: where capabilities begin, PCI Express among them, and its slot's control.
CAPABILITIES, EXPRESS, SLOT_CONTROL = 0x34, 0x10, 0x18
POWER_OFF, LIGHT_OFF = 0x400, 0x300


class Slot(harness.Test):
    name = None

    def setUp(self):
        super().setUp()
        if not vfio_card.Machine.is_there():
            self.skipTest("nobody can take a card out of this machine")
        self.card = vfio_card.Machine.plug(self.name)
        self.bind(self.card)

    def bind(self, card):
        if not os.path.exists(f"/sys/bus/pci/devices/{card}/driver"):
            self.hmmctl("device", "bind", card)

    def wait_gone(self, card=None):
        """The kernel asks, at most every ten seconds."""
        harness.wait_until(lambda: not os.path.exists(f"/sys/bus/pci/devices/{card or self.card}"), 40,
                           "that the kernel has let go of the card")

    def wait_log(self, pattern, seconds=20):
        harness.wait_until(lambda: re.search(pattern, self.daemon.log), seconds, f"that the log says {pattern}")

    def write(self, path, text):
        """As the kernel may wait inside it a process of its own does it. Returns that."""
        return subprocess.Popen(["/bin/sh", "-c", f"echo {text} >{path}"], stdin=subprocess.DEVNULL)

    def rescan(self):
        """What was removed is in its slot still."""
        with open("/sys/bus/pci/rescan", "w") as file:
            file.write("1")

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
        self.bind(self.card)
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
        self.rescan()

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


    def test_torn_out(self):
        """Nobody has asked: what was in it is lost, and nothing else; that it is gone for the kernel, too, ends in good order."""
        self.start()
        owner, other = self.owner(), self.owner("base")
        self.out(owner)
        # Its slot is switched off. The kernel, which finds cards by ACPI here, does not look there.
        port = os.path.basename(os.path.dirname(os.path.realpath(f"/sys/bus/pci/devices/{self.card}")))
        with open(f"/sys/bus/pci/devices/{port}/config", "r+b", buffering=0) as config:
            at = self.slot_control(config)
            before = self.word(config, at)
            self.put_word(config, at, before | POWER_OFF | LIGHT_OFF)
            self.assertEqual(self.word_of_card(0), 0xffff)
            other.ask("out", "^out 0$")
            self.wait_log("it does not answer: all pages in its BAR 2 are lost")
            self.wait_log(f"{PAGES} pages that were in the memory of device-{owner.pid} are lost")
            other.ask("check", "^checked$")
            self.refused("does not answer any more")
            self.write(f"/sys/bus/pci/devices/{self.card}/remove", "1")
            self.wait_gone()
            self.wait_log(f"{self.card} is given back")
            self.put_word(config, at, before)
        self.rescan()
        other.ask("change", "^changed$")
        other.ask("check", "^checked$")
        other.finish()
        owner.kill9()

    def word_of_card(self, at):
        with open(f"/sys/bus/pci/devices/{self.card}/config", "rb", buffering=0) as config:
            return self.word(config, at)

    @staticmethod
    def word(config, at):
        config.seek(at)
        return struct.unpack("<H", config.read(2))[0]

    @staticmethod
    def put_word(config, at, value):
        config.seek(at)
        config.write(struct.pack("<H", value))

    def slot_control(self, config):
        at = self.word(config, CAPABILITIES) & 0xff
        while self.word(config, at) & 0xff != EXPRESS:
            at = self.word(config, at) >> 8
            self.assertTrue(at)
        return at + SLOT_CONTROL


class Bus(Slot):
    """It is a device, and reaches memory by itself."""

    name = "spare-edu"

    def driver(self, case, **environment):
        return self.spawn("mirror-card", case, environment=dict(environment, HMM_TEST_CARD=self.card))

    def check(self, take, wait):
        self.start_daemon("--pool", "memfd-huge")
        driver = self.driver("recalled")
        driver.expect("^mapped$")
        take()
        wait()
        self.wait_log(f"{self.card} is given back")
        driver.send("")
        driver.finish()

    def test_unplugged(self):
        self.check(lambda: vfio_card.Machine.unplug(self.name), self.wait_gone)
        late = self.driver("hold")
        self.assertEqual(late.wait(), 1)
        self.assertIn(f"there is no PCI device {self.card}", late.output + late.errors)

    def test_hmmd_is_restarted_without_it(self):
        """Killed, and in good order: a device without its card keeps nobody from coming back."""
        self.start_daemon("--pool", "memfd-huge")
        driver = self.driver("recalled-and-restarted")
        driver.expect("^mapped$")
        writer = self.unbind()
        self.wait_log(f"{self.card} is given back")
        writer.wait(harness.scaled(60))
        driver.ask("", "^goes on$")
        self.daemon.restart()
        self.wait_log("is there again, without its card")
        driver.ask("", "^goes on$")
        self.daemon.stop()
        self.daemon.start()
        self.wait_log("is there again, without its card")
        driver.ask("", "^goes on$")
        driver.finish()

    def test_its_memory_is_unplugged(self):
        """Which is another card's."""
        memory = vfio_card.Machine.plug("spare-ivshmem")
        self.bind(memory)
        self.start_daemon()
        driver = self.driver("memory-recalled", HMM_TEST_MEMORY_CARD=memory)
        driver.expect("^mapped$")
        vfio_card.Machine.unplug("spare-ivshmem")
        self.wait_gone(memory)
        driver.send("")
        driver.finish()
        self.assertNotIn("lost", self.daemon.log)
        self.assertNotIn(f"{self.card} is given back", self.daemon.log)

    def test_unbound(self):
        """And given to hmmd again."""
        self.check(self.unbind, lambda: harness.wait_until(
            lambda: not os.path.exists(f"/sys/bus/pci/devices/{self.card}/driver"), 40, "that the card is unbound"))
        self.hmmctl("device", "bind", self.card)
        driver = self.driver("hold")
        driver.expect("^mapped$")
        driver.send("")
        driver.finish()


if __name__ == "__main__":
    harness.main()
