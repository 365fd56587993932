# SPDX-License-Identifier: GPL-2.0-or-later
"""A card's BAR as device memory, by hmmd_card (card.c) on any machine: what vfio-bar does with an emulated card, while one in 100
calls fails; and restarts at which something is in the way."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration"))
import harness  # noqa: E402
import vfio_bar  # noqa: E402

harness.PLACES["hmmd"] = "tests/inject/hmmd_card"
PAGES = vfio_bar.PAGES
CLIENT = os.path.join(harness.BINARY, "tests", "inject", "inject-client")


class Card(vfio_bar.Pages, harness.Test):
    card = "0000:00:04.0"

    def setUp(self):
        super().setUp()
        self.busy = os.path.join(self.folder, "busy")
        self.recall = os.path.join(self.folder, "recall")
        for name, value in (("HMMD_CARD_FAULTS", "100"), ("HMMD_CARD_BUSY", self.busy), ("HMMD_CARD_RECALL", self.recall)):
            os.environ[name] = value
            self.addCleanup(os.environ.pop, name)

    def out(self, owner):
        """A page whose copy fails stays at home, and is asked for again."""
        owner.ask("turn", f"^turned {PAGES}$")

    def device(self, name, mib):
        """Somebody's, who has no pages there."""
        other = self.spawn("mirror-device", name, str(mib))
        other.expect("^ready$")
        return other

    def begin(self):
        self.daemon_args = ["--pool-size", "64M"]
        self.start()
        owner = self.owner()
        self.out(owner)
        self.daemon.kill9()
        return owner

    def check(self, owner):
        owner.ask("check", "^checked$")
        self.out(owner)
        self.assert_in_bar(PAGES)
        owner.ask("device", "^checked$")
        owner.finish()

    def test_not_to_be_had_at_once(self):
        """What a restart cannot look at it does not throw away: the library comes again until it can, though its number is another's."""
        owner = self.begin()
        with open(self.busy, "w"):
            pass
        with harness.stopped(owner.pid):
            self.daemon.start()
            other = self.device("other", 4)
        harness.wait_until(lambda: self.daemon.log.count("is not to be had now") >= 3, 20, "that hmmd has tried")
        self.assertNotIn("taken over", self.daemon.log)
        os.unlink(self.busy)
        self.check(owner)
        other.finish()

    def wait_log(self, text):
        harness.wait_until(lambda: text in self.daemon.log, 20, f"that the log says {text}")

    def test_wanted_back(self):
        """The kernel wants the card: whatever call fails, all of it comes home, that of a stopped program at the latest when it goes on."""
        owner = self.begin()
        with harness.stopped(owner.pid):
            self.daemon.start()
            other = self.owner("huge")
            self.out(other)
            with open(self.recall, "w"):
                pass
            self.wait_log(f"of pid {owner.pid} (not back since hmmd was started)")
            other.ask("check", "^checked$")
            other.ask("out", "^out 0$")
            late = self.run_client("mirror-owner", "8", status=1)
            self.assertIn("is wanted back", late.stdout + late.stderr)
            self.assertEqual(self.pool()["name"], "vfio:leaving")
            self.assertNotIn("is given back", self.daemon.log)
        self.wait_log("is given back: nothing is left")
        os.unlink(self.recall)
        for process in (owner, other):
            process.ask("check", "^checked$")
            process.ask("out", "^out 0$")
            process.ask("change", "^changed$")
        self.assertNotIn("lost", self.daemon.log)
        # And another hmmd has none that could be kept.
        self.daemon.restart()
        for process in (owner, other):
            process.ask("check", "^checked$")
            process.finish()

    def test_reaches_much(self):
        """More than one request may be about: all of it, each page where it is, or nothing."""
        iommu = os.path.join(self.folder, "iommu")
        os.environ["HMMD_CARD_IOMMU"] = iommu
        self.addCleanup(os.environ.pop, "HMMD_CARD_IOMMU")
        self.daemon_args = ["--pool-size", "512M"]
        self.start_daemon()
        self.run_client(CLIENT, "reached", status=0, seconds=60)

    def test_its_name_is_anothers(self):
        """Somebody has made a device of that name before the owner is back."""
        owner = self.begin()
        with harness.stopped(owner.pid):
            self.daemon.start()
            other = self.device(f"device-{owner.pid}", 4)
        owner.ask("check", "^checked$")
        self.assertIn(f"there is another device device-{owner.pid}", self.daemon.log)
        owner.ask("change", "^changed$")
        self.out(owner)
        self.assert_in_bar(PAGES)
        # As is it is noted still.
        other.kill9()
        self.daemon.restart()
        self.check(owner)

    def test_its_room_is_anothers(self):
        """hmmd's own memory, through which pages pass, is all promised: what is in the BAR comes home all the same."""
        owner = self.begin()
        with harness.stopped(owner.pid):
            self.daemon.start()
            other = self.device("all", 64)
        owner.ask("check", "^checked$")
        other.finish()
        owner.finish()


if __name__ == "__main__":
    harness.main()
