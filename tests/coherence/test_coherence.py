# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the randomised coherence test (coherence.c) against a private hmmd, one variant each.

HMM_TEST_SEED replays a run's decisions; HMM_COHERENCE_SECONDS makes it longer than the 8 seconds of CI.
"""

import os
import re
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration"))
import harness  # noqa: E402

CARD = "0000:00:04.0"  # tests/inject/card.c's
SECONDS = int(os.environ.get("HMM_COHERENCE_SECONDS") or 8)


# Of a machine, or a build, on which a driver takes longer to answer.
PATIENCE = ["--ack-timeout", f"{harness.scaled(1):.0f}s"]


class Base(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--pool-size", "1G", *PATIENCE]

    def coherence(self, *options, seconds=SECONDS):
        return self.spawn("coherence", "--seed", str(self.seed), "--seconds", str(seconds), *options)

    def verdict(self, process, seconds=SECONDS):
        process.close_input()
        status = process.wait(seconds + 90)
        print(process.output, flush=True)
        if status != 0:
            self.fail(f"coherence ended with status {status}:\n{process.errors}")

    def run_coherence(self, *options):
        self.verdict(self.coherence(*options))

    def kill_at_random(self, process, seconds, end=None):
        """kill -9 (or another end) and a restart, again and again, with pauses of up to a second before and after each."""
        process.expect("coherence: running")
        deadline = time.monotonic() + seconds - 2
        ends = 0
        while time.monotonic() < deadline and process.running:
            time.sleep(self.random.uniform(0.05, 1.0))
            (end or self.daemon.kill9)()
            ends += 1
            time.sleep(self.random.choice([0, 0, 0.01, 0.3]))
            self.daemon.start()
        print(f"hmmd was ended {ends} times", flush=True)
        return ends


class Coherence(Base):
    def test_move(self):
        self.start_daemon()
        self.run_coherence("--drivers", "2")

    def test_base(self):
        """Write-protect and DONTNEED instead of UFFDIO_MOVE; all is declared UNPINNED, and nothing breaks that promise."""
        self.start_daemon()
        self.run_coherence("--drivers", "2", "--base-engine")

    def test_events(self):
        self.start_daemon()
        self.run_coherence("--drivers", "1", "--events")

    def test_fork(self):
        self.start_daemon()
        self.run_coherence("--drivers", "1", "--fork")

    def test_pins(self):
        self.start_daemon()
        self.run_coherence("--drivers", "1", "--pins")

    def test_kill(self):
        self.start_daemon()
        process = self.coherence("--drivers", "1", "--kill-daemon")
        self.kill_at_random(process, SECONDS)
        self.verdict(process)

    def test_kill_windows(self):
        """Drivers go on through their windows while there is no hmmd, and come back after the owner has."""
        self.start_daemon()
        process = self.coherence("--drivers", "1", "--windows", "--kill-daemon")
        self.kill_at_random(process, SECONDS)
        self.verdict(process)

    def test_stopped_driver(self):
        """A restart waits for a driver's windows until the grace period is over, and the owner goes on."""
        self.daemon_args = [*self.daemon_args, "--grace", f"{harness.scaled(2):.0f}s"]
        self.start_daemon()
        process = self.coherence("--drivers", "1", "--windows", "--kill-daemon")
        process.expect("coherence: running")
        harness.wait_until(lambda: self.hmmctl_json("status")["windows"] >= 2, 30, "that the driver has its windows")
        time.sleep(1)
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
            driver = int(file.read().split()[0])
        with harness.stopped(driver):
            self.daemon.kill9()
            self.daemon.start()
            harness.wait_until(lambda: "did not come back to its windows" in self.daemon.log, 30,
                               "that hmmd waits for the driver no longer")
            harness.wait_until(lambda: "taken over" in self.daemon.log, 10, "that the owner goes on")
        self.verdict(process)

    def test_windows(self):
        self.start_daemon()
        self.run_coherence("--drivers", "1", "--windows")

    def test_two_windows(self):
        """Two mirrors want the same pages all the time: each must get them, and the others go on."""
        self.start_daemon()
        self.run_coherence("--drivers", "2", "--windows")

    def test_many_windows(self):
        """Three on one device and one on another, all with windows: in a block that all want none waits for ever."""
        self.start_daemon()
        self.run_coherence("--drivers", "4", "--windows")

    def test_kill_two_windows(self):
        """Copies are not in the ledger: what lies on the second device is nobody's after a restart."""
        self.start_daemon()
        process = self.coherence("--drivers", "2", "--windows", "--kill-daemon")
        self.kill_at_random(process, SECONDS)
        self.verdict(process)


    def test_evict(self):
        """A device of four blocks beside the coherent ones, where fourteen are wanted all the time."""
        self.start_daemon()
        self.run_coherence("--drivers", "2", "--mib", "32", "--device", "16", "--events")

    def test_evict_windows(self):
        self.start_daemon()
        self.run_coherence("--drivers", "2", "--mib", "32", "--device", "16", "--windows")

    def test_evict_kill(self):
        self.start_daemon()
        process = self.coherence("--drivers", "2", "--mib", "32", "--device", "16", "--kill-daemon")
        self.kill_at_random(process, SECONDS)
        self.verdict(process)


class Pair(Base):
    """A variant as it is, and with kill -9, each for half of the time."""

    seconds = (SECONDS + 1) // 2

    def run_half(self, *options):
        self.start_daemon()
        self.verdict(self.coherence(*options, seconds=self.seconds), self.seconds)

    def run_killed(self, *options):
        self.start_daemon()
        process = self.coherence(*options, "--kill-daemon", seconds=self.seconds)
        self.kill_at_random(process, self.seconds)
        self.verdict(process, self.seconds)


class Engine(Pair):
    """The last driver's memory is its own: bytes come and go by its copies alone."""

    def test_events(self):
        self.run_half("--drivers", "2", "--engine", "--events", "--fork", "--device", "8")

    def test_kill(self):
        self.run_killed("--drivers", "2", "--engine", "--device", "8")


class Bar(Pair):
    """The last driver's memory is a card's BAR, which hmmd copies to and from; one in 50 of those calls fails."""

    def setUp(self):
        super().setUp()
        place = harness.PLACES["hmmd"]
        self.addCleanup(harness.PLACES.__setitem__, "hmmd", place)
        harness.PLACES["hmmd"] = "tests/inject/hmmd_card"
        os.environ["HMMD_CARD_FAULTS"] = "50"
        self.addCleanup(os.environ.pop, "HMMD_CARD_FAULTS")

    def run_half(self, *options):
        super().run_half("--drivers", "2", "--bar", CARD, *options)

    def test_events(self):
        self.run_half("--events", "--fork", "--device", "8")

    def test_windows(self):
        """Others want through windows what is there."""
        self.run_half("--windows", "--device", "8")

    def test_kill(self):
        self.run_killed("--drivers", "2", "--bar", CARD, "--events", "--fork", "--device", "8")


class Protect(Pair):
    """Rights go and come back while everybody goes on: what is refused changes nothing, what is allowed is done."""

    def test_windows(self):
        self.run_half("--drivers", "2", "--protect", "--windows")

    def test_kill(self):
        """Without windows: those that are closed when hmmd dies stay closed, and nobody is there to close others."""
        self.run_killed("--drivers", "2", "--protect")


class Exclusive(Pair):
    """Nothing comes between a load and a store of a page that a device has to itself."""

    def test_protect_and_fork(self):
        self.run_half("--drivers", "2", "--exclusive", "--windows", "--protect", "--fork")

    def test_kill(self):
        self.run_killed("--drivers", "2", "--exclusive", "--windows")


class Several(Pair):
    """Small devices that take from each other, told all the time what is to be where."""

    options = ["--drivers", "3", "--several", "--windows", "--mib", "32", "--device", "16"]

    def test_advised(self):
        self.run_half(*self.options)

    def test_kill(self):
        self.run_killed(*self.options)


class Forgetful(Pair):
    """A kernel that moves pages and does not count them, as Linux 6.18 does now and then: here all the time."""

    options = ["--drivers", "2", "--windows", "--events", "--forget"]

    def test_as_it_is(self):
        self.run_half(*self.options)

    def test_kill(self):
        self.run_killed(*self.options)


class InPlace(Pair):
    """What stays where it is, beside what moves: shared memory, and files in tmpfs and on a disk, private and shared."""

    def test_changed(self):
        self.run_half("--drivers", "2", "--in-place", "--windows", "--events", "--fork", "--mib", "18")

    def test_kill(self):
        self.run_killed("--drivers", "2", "--in-place", "--events", "--mib", "18")


class Hugetlb(Pair):
    """The same, and huge pages of the kernel's pool, private and shared."""

    def test_changed(self):
        with open("/proc/meminfo") as file:
            free = int(re.search(r"HugePages_Free:\s*(\d+)", file.read()).group(1))
        if free < 24:
            self.skipTest("the system gives no huge pages")
        self.run_half("--drivers", "2", "--hugetlb", "--events", "--fork", "--mib", "44")


class HandedOver(Pair):
    """hmmd leaves everything to the next one, again and again: no byte is wrong, and no call of anybody is refused."""

    # A busy machine may take long to start one.
    daemon_args = [*Base.daemon_args, "--grace", "120s"]

    def run_handed_over(self, *options):
        self.start_daemon()
        process = self.coherence(*options, "--kill-daemon", seconds=self.seconds)
        ends = self.kill_at_random(process, self.seconds, self.daemon.hand_over)
        self.verdict(process, self.seconds)
        self.assertGreater(ends, 0)
        self.assertIn("calls refused while hmmd was away 0\n", process.output)

    def test_windows(self):
        """And coherent memory, which stays so; and blocks that become so, and ordinary again."""
        self.run_handed_over("--drivers", "2", "--windows")

    def test_events(self):
        self.run_handed_over("--drivers", "2", "--engine", "--device", "8", "--events", "--fork", "--pins")


class EndedInGoodOrder(Pair):
    daemon_args = HandedOver.daemon_args

    def test_again_and_again(self):
        """SIGTERM, and another: what is refused meanwhile is refused because hmmd ends, and for no other reason (board_excused())."""
        self.run_ended(self.daemon_stops)

    def test_killed_meanwhile(self):
        """kill -9 while the pages come home: some owners' are, others' are not, and the next one finds them either way."""
        self.killed = 0
        self.run_ended(self.daemon_is_killed)
        self.assertGreater(self.killed, 0)

    def daemon_stops(self):
        self.daemon.stop()

    def daemon_is_killed(self):
        self.daemon.process.signal(signal.SIGTERM)
        time.sleep(self.random.choice([0, self.random.uniform(0, 0.003), self.random.uniform(0, 0.03)]) if self.killed else 0)
        self.daemon.kill9()
        self.killed += self.daemon.process.status == -signal.SIGKILL

    def run_ended(self, end):
        self.start_daemon()
        process = self.coherence("--drivers", "2", "--end-daemon", "--tracked", "--movers", "2", seconds=self.seconds)
        self.assertGreater(self.kill_at_random(process, self.seconds, end), 0)
        self.verdict(process, self.seconds)


class SmallPages(Pair):
    """A device whose memory is pages of 4 KiB."""

    daemon_args = ["--pool", "memfd", "--pool-size", "1G", *PATIENCE]

    def test_changed(self):
        self.run_half("--drivers", "2", "--windows", "--events", "--fork")


class Owners(Pair):
    """Several owners, each with drivers of its own, on hmmd's several workers."""

    daemon_args = ["--pool", "memfd-huge", "--pool-size", "1G", "--workers", "3", *PATIENCE]
    owners = 3

    def start_owners(self, *options):
        self.start_daemon()
        return [self.spawn("coherence", "--seed", str(self.seed + i), "--seconds", str(self.seconds), *options) for i in range(self.owners)]

    def test_side_by_side(self):
        for process in self.start_owners("--drivers", "2", "--windows", "--events", "--device", "16"):
            self.verdict(process, self.seconds)

    def test_kill(self):
        first, *others = self.start_owners("--drivers", "1", "--windows", "--kill-daemon")
        for process in others:
            process.expect("coherence: running")
        self.kill_at_random(first, self.seconds)
        for process in (first, *others):
            self.verdict(process, self.seconds)


class Everything(Pair):
    """All at once."""

    options = ["--drivers", "2", "--windows", "--events", "--fork", "--pins"]

    def test_for_a_moment(self):
        self.run_killed(*self.options)

    def test_for_long(self):
        self.seconds = max(SECONDS, 120)
        self.run_killed(*self.options, "--mib", "32")


if __name__ == "__main__":
    harness.main()
