# SPDX-License-Identifier: GPL-2.0-or-later
"""A real card behind an IOMMU reaches an owner's memory at the owner's addresses, and nothing when it may not.

The card is QEMU's edu, which the emulated machine of tests/guest has; this binds it to vfio-pci. Where a case says that something
was out of the card's reach, the bytes have shown it, and here the IOMMU's own faults are asked as well.
"""

import contextlib
import glob
import os
import re
import time

import harness
import vfio_card

PROGRAM = "mirror-card"
LIMIT = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit"


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def find_other():
    """One with a driver of the kernel's, behind an IOMMU."""
    for folder in sorted(glob.glob("/sys/bus/pci/devices/*")):
        if os.path.exists(f"{folder}/iommu_group") and os.path.exists(f"{folder}/driver") and \
                os.path.basename(os.readlink(f"{folder}/driver")) != "vfio-pci":
            return os.path.basename(folder)
    return None


class Edu(vfio_card.Test):
    """What cases of PROGRAM need, and how they are looked at."""

    ids = ("0x1234", "0x11e8")
    name = "edu"
    daemon_args = ["--pool", "memfd-huge"]
    quiet_at = 0

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if cls.missing:
            return
        os.environ["HMM_TEST_CARD"] = cls.card
        other = find_other()
        if other:
            os.environ["HMM_TEST_OTHER_CARD"] = other

    def setUp(self):
        super().setUp()
        self.log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.log, 0, os.SEEK_END)

    def tearDown(self):
        if not self.missing:
            os.close(self.log)
            Edu.quiet_at = time.monotonic() + 6
        super().tearDown()

    def faults(self, found):
        """Page addresses that the IOMMU refused to this card since the test began."""
        with contextlib.suppress(BlockingIOError):
            while True:
                line = os.read(self.log, 8192).decode(errors="replace")
                match = re.search(rf"DMAR: \[DMA \w+.*\[{self.card[5:]}\] fault addr (0x[0-9a-f]+)", line)
                if match:
                    found.add(int(match.group(1), 16))
        return found

    def check_faults(self, output):
        expected = {int(addr, 16) for addr in re.findall(r"^out of reach: (0x[0-9a-f]+)$", output, re.M)}
        found = set()
        harness.wait_until(lambda: expected <= self.faults(found), 1,
                           f"that the IOMMU has refused {[hex(addr) for addr in expected]}")
        return expected

    def check_case(self, case, outs=True):
        # Of more than two or three of an IOMMU's faults in 5 s the kernel's log has none.
        time.sleep(max(0, Edu.quiet_at - time.monotonic()) if outs else 0)
        self.start_daemon()
        ended = self.run_client(PROGRAM, case, status=0, seconds=45)
        self.assertEqual(bool(self.check_faults(ended.stdout)), outs)
        self.assert_nothing_left()

    def assert_nothing_left(self):
        harness.wait_until(lambda: not any(pool["used"] for pool in self.hmmctl_json("pools")["pools"]), 10,
                           "that no device memory is in use")
        self.assertNotIn("cannot be taken from its IOMMU", self.daemon.log)

    def check_killed_drivers(self):
        self.start_daemon()
        for _ in range(2):
            client = self.spawn(PROGRAM, "hold")
            client.expect("^mapped$")
            client.kill9()
            harness.wait_until(lambda: not self.others(), 10, "that the driver is gone")
        self.run_client(PROGRAM, "copies", status=0, seconds=45)
        self.assert_nothing_left()

    def others(self):
        return [client for client in self.hmmctl_json("clients")["clients"] if client["role"] != "tool"]


class Card(Edu):
    def test_refusals(self):
        self.check_case("refusals-there")

    def test_stranger(self):
        for folder in (os.path.dirname(self.folder), self.folder):
            os.chmod(folder, 0o755)
        self.start_daemon()
        os.chmod(self.daemon.socket, 0o666)
        self.run_client(PROGRAM, "stranger", status=0, seconds=45)

    def test_copies(self):
        self.check_case("copies")

    def test_travels(self):
        self.check_case("travels", False)

    def test_read_by_both(self):
        self.check_case("read-by-both")

    def test_coherent(self):
        self.check_case("coherent", False)

    def test_shared(self):
        self.check_case("shared")

    def test_unmapped(self):
        self.check_case("unmapped")

    def test_taken_home(self):
        self.check_case("taken-home")

    def test_discarded(self):
        self.check_case("discarded")

    def test_moved(self):
        self.check_case("moved")

    def test_protected(self):
        self.check_case("protected")

    def test_freed(self):
        self.check_case("freed")

    def test_neighbours(self):
        self.check_case("neighbours", False)

    def test_given_back(self):
        self.check_case("given-back")

    def test_late(self):
        self.check_case("late")

    def test_limited(self):
        before = vfio_card.read(LIMIT)
        write(LIMIT, "4")
        try:
            self.check_case("limited")
        finally:
            write(LIMIT, before)

    def test_hmmd_is_killed(self):
        """At once nothing is mapped; the next hmmd has the same card."""
        self.start_daemon()
        client = self.spawn(PROGRAM, "outage")
        client.expect("^mapped$")
        self.daemon.kill9()
        client.send("")
        client.expect("^nothing$")
        self.daemon.start()
        client.send("")
        client.finish()
        self.assert_nothing_left()

    def test_hmmd_is_restarted(self):
        """In good order, with a driver that stays: nobody else could open its card's group."""
        self.start_daemon()
        client = self.spawn(PROGRAM, "restarted")
        client.expect("^mapped$")
        self.daemon.stop()
        self.daemon.start()
        client.send("")
        client.finish()
        self.assert_nothing_left()

    def test_driver_is_killed(self):
        """The card is free for the next one."""
        self.check_killed_drivers()

    def test_example(self):
        self.start_daemon()
        ended = self.run_client(os.path.join(harness.BINARY, "examples", "edu"), self.card, status=0, seconds=60)
        self.assertEqual(len(re.findall(r"yes$", ended.stdout, re.M)), 4)


if __name__ == "__main__":
    harness.main()
