# SPDX-License-Identifier: GPL-2.0-or-later
"""A real card for tests that need one: found by its numbers, given to vfio-pci, and given back."""

import contextlib
import glob
import json
import os
import subprocess
import time

import harness


def read(path):
    with open(path) as file:
        return file.read().strip()


def hmmctl(*words):
    return subprocess.run([harness.binary("hmmctl"), *words], capture_output=True, text=True, timeout=harness.scaled(60))


def find(ids):
    """The first one: those behind it may be in slots, for tests that take them out."""
    for folder in sorted(glob.glob("/sys/bus/pci/devices/*")):
        if (read(f"{folder}/vendor"), read(f"{folder}/device")) == ids:
            return os.path.basename(folder)
    return None


def take(test, card):
    """For vfio-pci, until the class is done."""
    if not os.path.exists(f"/sys/bus/pci/devices/{card}/driver"):
        done = hmmctl("device", "bind", card)
        assert done.returncode == 0, done.stderr
        test.addClassCleanup(give_back, card)


def give_back(card):
    """Once nobody has it open: the process that keeps cards outlives a hmmd that was killed by its grace time."""
    harness.wait_until(lambda: hmmctl("device", "unbind", card).returncode == 0, 90, f"that {card} is given back")


class Machine:
    """The emulated machine that a test runs in: tests/guest/machine.py does what it is asked for."""

    folder = "/run/guest"
    # As there.
    slots = {
        "spare-edu": {"driver": "edu", "bus": "slot0", "dma_mask": "0xffffffffffffffff"},
        "spare-ivshmem": {"driver": "ivshmem-plain", "bus": "slot1"},
    }

    @classmethod
    def is_there(cls):
        return os.path.exists(f"{cls.folder}/plan")

    @classmethod
    def ask(cls, command, **arguments):
        answer = f"{cls.folder}/answer"
        with open(f"{cls.folder}/ask.new", "w") as file:
            json.dump({"execute": command, "arguments": arguments}, file)
        os.rename(f"{cls.folder}/ask.new", f"{cls.folder}/ask")
        harness.wait_until(lambda: os.path.exists(answer), 20, f"that the machine answers {command}")
        with open(answer) as file:
            told = json.load(file)
        os.unlink(answer)
        return told

    @classmethod
    def plug(cls, name):
        """Puts it back into its slot, unless it is there. Returns its address."""
        device = dict(cls.slots[name], id=name)
        if cls.find(name):
            return cls.find(name)
        if device["driver"] == "ivshmem-plain":
            # QEMU 7.2 gives up where memory is given to a second card.
            device["memdev"] = f"memory-{time.time_ns()}"
            cls.must("object-add", id=device["memdev"], size=64 << 20, share=True, **{"qom-type": "memory-backend-ram"})
        cls.must("device_add", **device)
        return harness.wait_until(lambda: cls.find(name), 30, f"that {name} is found")

    @classmethod
    def unplug(cls, name):
        cls.must("device_del", id=name)

    @classmethod
    def must(cls, command, **arguments):
        told = cls.ask(command, **arguments)
        assert "error" not in told, told

    @classmethod
    def find(cls, name):
        """What lies behind a slot and is of that kind."""
        ids = {"edu": ("0x1234", "0x11e8"), "ivshmem-plain": ("0x1af4", "0x1110")}[cls.slots[name]["driver"]]
        for folder in glob.glob("/sys/bus/pci/devices/*"):
            with contextlib.suppress(OSError):
                if (read(f"{folder}/vendor"), read(f"{folder}/device")) == ids and \
                        not os.path.basename(folder).startswith("0000:00:"):
                    return os.path.basename(folder)
        return None


class Test(harness.Test):
    """cls.card is the address of the card with cls.ids; where there is none, or no IOMMU before it, all is skipped."""

    ids = name = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.card = find(cls.ids)
        cls.missing = None if cls.card else f"there is no {cls.name} card"
        if cls.card and not os.path.exists(f"/sys/bus/pci/devices/{cls.card}/iommu_group"):
            cls.missing = f"the {cls.name} card is behind no IOMMU"
        if not cls.missing:
            take(cls, cls.card)

    def setUp(self):
        super().setUp()
        if self.missing:
            self.skipTest(self.missing)
