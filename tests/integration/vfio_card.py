# SPDX-License-Identifier: GPL-2.0-or-later
"""A real card for tests that need one: found by its numbers, given to vfio-pci, and given back."""

import glob
import os
import subprocess

import harness


def read(path):
    with open(path) as file:
        return file.read().strip()


def hmmctl(*words):
    return subprocess.run([harness.binary("hmmctl"), *words], capture_output=True, text=True, timeout=harness.scaled(60))


def find(ids):
    for folder in glob.glob("/sys/bus/pci/devices/*"):
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
