# SPDX-License-Identifier: GPL-2.0-or-later
"""A card with a DMA engine whose device has its memory in another card: it reaches an owner's pages there, from card to card.

Cards are QEMU's edu, and ivshmem-plain, whose BAR 2 is memory; the emulated machine of tests/guest has both.
"""

import os
import re

import harness
import vfio_card
import vfio_edu

PROGRAM = vfio_edu.PROGRAM
MEMORY = ("0x1af4", "0x1110")


class Peer(vfio_edu.Edu):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if cls.missing:
            return
        cls.memory = vfio_card.find(MEMORY)
        if not cls.memory:
            cls.missing = "there is no ivshmem card"
            return
        vfio_card.take(cls, cls.memory)
        os.environ["HMM_TEST_MEMORY_CARD"] = cls.memory

    def in_bar(self):
        return sum(pool["used"] for pool in self.hmmctl_json("pools")["pools"] if pool["kind"] == "vfio")

    def test_refusals(self):
        self.check_case("refusals-in-bar")

    def test_copies(self):
        self.check_case("copies")

    def test_travels(self):
        self.check_case("travels", False)

    def test_unmapped(self):
        self.check_case("unmapped")

    def test_taken_home(self):
        self.check_case("taken-home")

    def test_discarded(self):
        self.check_case("discarded")

    def test_moved(self):
        self.check_case("moved")

    def test_neighbours(self):
        self.check_case("neighbours", False)

    def test_late(self):
        self.check_case("late")

    def test_hmmd_is_killed(self):
        """What is in the BAR stays there, and is out of the other card's reach until the next hmmd lets it in."""
        self.start_daemon()
        client = self.spawn(PROGRAM, "outage-in-bar")
        client.expect("^mapped$")
        self.assertEqual(self.in_bar(), 5 * 4096)
        self.daemon.kill9()
        client.send("")
        client.expect("^nothing$")
        self.daemon.start()
        client.send("")
        client.expect("^there$")
        self.assertEqual(self.in_bar(), 5 * 4096)
        client.send("")
        client.finish()
        self.assert_nothing_left()

    def test_driver_is_killed(self):
        """Both cards are free for the next one."""
        self.check_killed_drivers()

    def test_example(self):
        self.start_daemon()
        ended = self.run_client(os.path.join(harness.BINARY, "examples", "edu"), self.card, self.memory, "2", status=0,
                                seconds=60)
        self.assertEqual(len(re.findall(r"yes$", ended.stdout, re.M)), 3)
        self.assertIn("in the other card", ended.stdout)


if __name__ == "__main__":
    harness.main()
