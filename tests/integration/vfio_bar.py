# SPDX-License-Identifier: GPL-2.0-or-later
"""A card's BAR as device memory: pages migrate into it and home, byte by byte, also over the deaths of hmmd.

The card is QEMU's ivshmem-plain, which the emulated machine of tests/guest has: its BAR 2 is memory. This binds it to vfio-pci.
"""

import harness
import vfio_card

PAGES = 1500


class Pages:
    """Of mirror-owner, in BAR 2 of self.card."""

    def start(self, bar=2):
        self.start_daemon("--pool", "vfio", "--pool-card", self.card, "--pool-bar", str(bar))

    def owner(self, *args):
        owner = self.spawn("mirror-owner", str(PAGES), *args)
        owner.expect("^ready")
        return owner

    def pool(self):
        pools = [pool for pool in self.hmmctl_json("pools")["pools"] if pool["kind"] == "vfio"]
        return pools[0] if pools else {"used": 0, "capacity": 0}

    def out(self, owner):
        owner.ask("out", f"^out {PAGES}$")

    def assert_in_bar(self, pages):
        harness.wait_until(lambda: self.pool()["used"] == pages * 4096, 20, f"that {pages} pages are in the BAR")

    def test_there_and_back(self):
        self.start()
        owner = self.owner("huge")
        for _ in range(2):
            self.out(owner)
            self.assert_in_bar(PAGES)
            owner.ask("check", "^checked$")
            owner.ask("change", "^changed$")
            self.assert_in_bar(0)
        self.out(owner)
        owner.ask("home", f"^home {PAGES}$")
        self.assert_in_bar(0)
        self.out(owner)
        owner.ask("device", "^checked$")
        self.out(owner)
        owner.ask("fork", "^forked$")
        owner.ask("check", "^checked$")
        self.out(owner)
        owner.ask("close", "^closed$")
        self.assert_in_bar(0)
        owner.finish()

    def test_who_dies_leaves_nothing(self):
        self.start()
        owner, other = self.owner(), self.owner()
        self.out(owner)
        self.out(other)
        self.assert_in_bar(2 * PAGES)
        owner.kill9()
        harness.wait_until(lambda: self.pool()["used"] == PAGES * 4096, 20, "that the dead one's pages are free")
        other.ask("check", "^checked$")
        other.finish()

    def test_hmmd_is_killed(self):
        """The card is not reset, and what is whose in its memory is known."""
        self.start()
        owner, other = self.owner("huge"), self.owner()
        self.out(owner)
        self.out(other)
        self.daemon.restart()
        other.ask("check", "^checked$")
        harness.wait_until(lambda: self.pool()["used"] == PAGES * 4096, 20, "that only the first one's are there")
        self.out(other)
        owner.ask("check", "^checked$")
        owner.ask("change", "^changed$")
        self.out(owner)
        self.daemon.restart()
        owner.ask("check", "^checked$")
        other.ask("check", "^checked$")
        owner.finish()
        other.finish()

    def test_a_stopped_owner_keeps_its_pages(self):
        """Over two deaths of hmmd, and whatever another one does with the card meanwhile."""
        self.start()
        owner, other = self.owner(), self.owner()
        self.out(owner)
        self.out(other)
        with harness.stopped(owner.pid):
            for _ in range(2):
                self.daemon.restart()
                other.ask("check", "^checked$")
                other.ask("change", "^changed$")
                self.out(other)
        owner.ask("check", "^checked$")
        other.ask("check", "^checked$")
        owner.finish()
        other.finish()
        self.assert_in_bar(0)

    def test_hmmd_ends(self):
        """In good order: all comes home first."""
        self.start()
        owner = self.owner()
        self.out(owner)
        self.daemon.stop()
        owner.ask("check", "^checked$")
        owner.finish()


class Bar(Pages, vfio_card.Test):
    ids = ("0x1af4", "0x1110")
    name = "ivshmem"

    def test_no_such_memory(self):
        for bar, why in ((0, "less than two pages"), (1, "has no BAR 1")):
            self.start(bar)
            ended = self.run_client("mirror-owner", "8", status=1)
            self.assertIn(why, ended.stdout + ended.stderr)
            self.daemon.stop()

    def test_doctor(self):
        self.start()
        found = [finding for finding in self.hmmctl_json("doctor")["findings"] if finding["name"].startswith("pool ")]
        self.assertEqual(len(found), 1)
        self.assertIn("with 65536 KiB", found[0]["text"])


if __name__ == "__main__":
    harness.main()
