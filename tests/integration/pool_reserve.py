# SPDX-License-Identifier: GPL-2.0-or-later
"""A pool that is reserved up front: all of it is there before anybody is served, and stays hmmd's or its devices'."""

import glob
import os

import harness
import manager
import memcg

MIB = 1 << 20
SIZE = 96 * MIB
PAGES = 20 << 8
BYTES = PAGES << 12


class Reserved(harness.Test):
    daemon_args = ["--pool", "memfd", "--pool-size", f"{SIZE >> 20}M", "--pool-reserve", "--grace", "2s"]

    def reserve(self):
        """The memfd of hmmd's that holds what no device uses: which it is, and how much of it is allocated."""
        for link in glob.glob(f"/proc/{self.daemon.pid}/fd/*"):
            if os.readlink(link).startswith("/memfd:hmm-reserve ("):
                status = os.stat(link)
                return status.st_ino, status.st_blocks * 512
        self.fail("hmmd has no reserve")

    def held(self):
        return self.reserve()[1]

    def used(self):
        return sum(pool["used"] for pool in self.hmmctl_json("pools")["pools"])

    def expect_whole(self):
        """What is used and what is reserved are the pool, but for what is on its way between them."""
        harness.wait_until(lambda: self.held() + self.used() == SIZE, 30, "that reserve and devices make up the pool")

    def owner(self, **options):
        owner = self.spawn("mirror-owner", str(PAGES), **options)
        owner.expect("^ready")
        return owner

    # ---- in use -----------------------------------------------------------------

    def test_all_of_it_is_there(self):
        self.start_daemon()
        self.assertEqual(self.held(), SIZE)
        pool, = self.hmmctl_json("pools")["pools"]
        self.assertEqual((pool["reserved_mib"], pool["used"]), (SIZE >> 20, 0))
        self.assertIn("RESERVED", self.hmmctl("pools").stdout)

    def use(self):
        owner = self.owner()
        for _ in range(3):
            owner.ask("turn", f"^turned {PAGES}$")
            self.assertGreaterEqual(self.used(), BYTES)
            self.expect_whole()
            owner.ask("device", "^checked$")
            owner.ask("change", "^changed$")
            owner.ask("check", "^checked$")
        owner.ask("close", "^closed$")
        owner.finish()
        harness.wait_until(lambda: self.held() == SIZE, 30, "that all of it is reserved again")

    def test_what_devices_use_is_taken_from_it(self):
        self.start_daemon()
        self.use()

    def test_huge_pages(self):
        self.daemon_args = [*self.daemon_args, "--pool", "memfd-huge"]
        self.start_daemon()
        self.use()

    def test_an_owner_dies(self):
        self.start_daemon()
        owner = self.owner()
        owner.ask("turn", f"^turned {PAGES}$")
        owner.kill9()
        harness.wait_until(lambda: self.held() == SIZE, 30, "that all of it is reserved again")

    # ---- killed -----------------------------------------------------------------

    def test_killed_with_a_manager(self):
        """The next hmmd is given the very same memory, and takes nothing in the place of what owners still have on devices."""
        keeper = manager.Manager(self.folder)
        self.addCleanup(keeper.close)
        self.daemon = harness.Daemon(self, *self.daemon_args, manager=keeper).start()
        said = keeper.expect("EXTEND_TIMEOUT_USEC")
        self.assertIn("Reserving memory: 0 of 96 MiB", said["STATUS"])
        keeper.expect("READY")
        owner = self.owner()
        owner.ask("turn", f"^turned {PAGES}$")
        self.expect_whole()
        inode, held = self.reserve()
        self.daemon.kill9()
        keeper.hear()
        self.assertEqual([kept.name for kept in keeper.kept], ["reserve", "reserve"])
        self.daemon.start()
        self.assertEqual(self.reserve()[0], inode)
        self.assertLessEqual(self.held(), held)
        owner.ask("device", "^checked$")
        self.expect_whole()
        owner.ask("home", f"^home {PAGES}$")
        owner.ask("check", "^checked$")
        owner.finish()
        harness.wait_until(lambda: self.held() == SIZE, 60, "that all of it is reserved again")
        # One that reserves nothing has it kept no more.
        self.daemon.stop()
        self.daemon.args.remove("--pool-reserve")
        self.daemon.start()
        keeper.hear()
        self.assertEqual(keeper.kept, [])

    def test_killed_without_one(self):
        self.start_daemon()
        owner = self.owner()
        owner.ask("turn", f"^turned {PAGES}$")
        self.daemon.restart()
        owner.ask("device", "^checked$")
        self.expect_whole()
        owner.ask("check", "^checked$")
        owner.finish()

    # ---- whose memory it is -------------------------------------------------------

    def test_charged_to_hmmd(self):
        group = memcg.Group(self)
        self.daemon_prefix = group.prefix()
        self.start_daemon()
        self.assertGreaterEqual(group.shared(), SIZE)
        owners = memcg.Group(self)
        owner = self.spawn_command("owner", [*owners.prefix(), harness.binary("mirror-owner"), str(PAGES)])
        owner.expect("^ready")
        owner.ask("turn", f"^turned {PAGES}$")
        self.expect_whole()
        # What is in use is charged to who filled it, and is not hmmd's any more.
        harness.wait_until(lambda: owners.shared() >= BYTES - 2 * MIB, 10, "that the owner is charged")
        harness.wait_until(lambda: group.shared() <= SIZE - BYTES + 8 * MIB, 10, "that hmmd is not")
        owner.finish()
        self.daemon.stop()

    def expect_refusal(self, *words):
        with self.assertRaisesRegex(AssertionError, "status 1"):
            self.start_daemon()
        for word in words:
            self.assertIn(word, self.daemon.log)
        self.daemon = None

    def test_more_than_its_cgroup_lets_it_have(self):
        """It says so and ends, instead of being killed."""
        group = memcg.Group(self, SIZE)
        self.daemon_prefix = group.prefix()
        self.expect_refusal(f"{SIZE >> 20} MiB cannot be reserved for the pool: memory cgroup /hmmd-test-", "MiB to give",
                            "'reserve = no', lets hmmd start")
        self.assertEqual(group.oom_kills(), 0)
        group.limit(2 * SIZE + 256 * MIB)
        self.start_daemon()
        self.assertEqual(self.held(), SIZE)
        self.daemon.stop()

    def test_more_than_there_is(self):
        with open("/proc/meminfo") as file:
            total = int(file.readline().split()[1]) << 10
        self.daemon_args = [*self.daemon_args, "--pool-size", f"{total >> 20}M"]
        self.expect_refusal("cannot be reserved for the pool: ", " MiB to give, and ")


class HugePages(Reserved):
    """Those of the kernel's own pool: too few are an error, and given back."""

    daemon_args = ["--pool", "hugetlb", *Reserved.daemon_args[2:]]

    @staticmethod
    def free():
        with open("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") as file:
            return int(file.read()) * 2 * MIB

    def setUp(self):
        super().setUp()
        if self.free() < SIZE:
            self.skipTest("no free 2 MiB huge pages (vm.nr_hugepages)")

    def test_more_than_there_is(self):
        free = self.free()
        self.daemon_args = [*self.daemon_args, "--pool-size", f"{(free >> 20) + 2}M"]
        self.expect_refusal("cannot be reserved for the pool: no more huge pages are free")
        self.assertEqual(self.free(), free)

    # The same of other kinds is not about this memory.
    test_huge_pages = test_charged_to_hmmd = test_more_than_its_cgroup_lets_it_have = None


if __name__ == "__main__":
    harness.main()
