# SPDX-License-Identifier: GPL-2.0-or-later
"""hmmd goes away, by order or by force, and comes back or does not: the owner's bytes stay what they were."""

import errno
import os
import signal
import socket
import time
import unittest

import control_wire as wire
import harness

PAGES = 1500


class Outage(harness.Test):
    daemon_args = ["--pool", "memfd-huge"]

    def owner(self, *args, pages=PAGES):
        owner = self.spawn("mirror-owner", str(pages), *args)
        owner.expect("^ready")
        return owner

    def out(self, owner, pages=PAGES):
        owner.ask("out", f"^out {pages}$")

    def where(self, owner):
        return int(owner.ask("where", r"^where (\d+)$").group(1))

    def check_where(self, owner, pages):
        """Soon: what came home for a touch, or with it, is in transit for a moment after that."""
        harness.wait_until(lambda: self.where(owner) == pages, 10, f"that {pages} pages are on the device")

    # ---- the connection alone

    def test_connection_gone_for_longer_than_hmmd_waits(self):
        """It brings all home and forgets the owner, who was told nothing of it and comes back as a new one."""
        self.start_daemon()
        owner = self.owner("huge")
        for _ in range(2):
            self.out(owner)
            away, closed = self.daemon.socket + "-away", self.daemon.log.count("everything is home")
            os.rename(self.daemon.socket, away)
            if not harness.sever(owner.pid, self.daemon.socket):
                self.skipTest("this kernel has no descriptors for single threads (Linux 6.9)")
            harness.wait_until(lambda: self.daemon.log.count("everything is home") > closed, 20, "that it is closed")
            os.rename(away, self.daemon.socket)
            self.out(owner)
            owner.ask("device", "^checked$")
            owner.ask("check", "^checked$")
            owner.ask("change", "^changed$")
            self.assertNotRegex(self.daemon.log, "did not finish handing things back|is not taken over")
        owner.ask("close", "^closed$")
        owner.finish()

    # ---- in good order

    def test_sigterm_brings_all_home(self):
        self.start_daemon()
        owner = self.owner("huge")
        self.out(owner)
        self.daemon.stop()
        owner.ask("check", "^checked$")
        owner.ask("change", "^changed$")
        owner.ask("fork", "^forked$")
        owner.finish()

    def test_sigterm_then_start(self):
        self.start_daemon()
        owner = self.owner()
        for _ in range(3):
            self.out(owner)
            owner.ask("touch", "^touched$")
            self.out(owner)
            self.daemon.stop()
            self.daemon.start()
            owner.ask("device", "^checked$")
            owner.ask("check", "^checked$")
        owner.ask("close", "^closed$")
        owner.finish()

    def test_killed_in_its_farewell(self):
        """Some are home by then, some are not, and some have been told."""
        self.start_daemon()
        owners = [self.owner(*(["huge"] if i % 2 else [])) for i in range(4)]
        for _ in range(6):
            for owner in owners:
                self.out(owner)
            self.daemon.process.signal(signal.SIGTERM)
            time.sleep(self.random.uniform(0, 0.05))
            self.daemon.kill9()
            self.daemon.start()
            for owner in owners:
                owner.ask("check", "^checked$")
                owner.ask("change", "^changed$")
            self.assertNotRegex(self.daemon.log, "did not finish handing things back|is not taken over")
        for owner in owners:
            self.out(owner)
            owner.ask("check", "^checked$")
            owner.ask("close", "^closed$")
            owner.finish()

    def test_sigterm_in_a_move(self):
        """The next one does not take its memory for what is being moved for ever."""
        self.start_daemon()
        owner = self.spawn("mirror-changes", "remap-over-a-stop")
        owner.expect("^moving$")
        self.daemon.stop()
        self.daemon.start()
        harness.wait_until(lambda: self.hmmctl_json("mirrors")["mirrors"], 20, "that the owner is back")
        owner.send("go")
        owner.expect("^moved$")
        owner.finish()

    def test_sigterm_with_a_stopped_owner(self):
        """COPY needs nobody in the owner: a stopped one delays nothing."""
        self.start_daemon()
        owner = self.owner("huge")
        self.out(owner)
        owner.signal(signal.SIGSTOP)
        self.daemon.stop()
        owner.signal(signal.SIGCONT)
        owner.ask("check", "^checked$")
        owner.finish()

    # ---- left to a new one

    def test_handed_over(self):
        """Nothing comes home for it, and the next one goes on."""
        self.start_daemon("--grace", "600s")
        owner = self.owner("huge")
        self.out(owner)
        for _ in range(2):
            self.daemon.hand_over()
            self.assertIn("every page stays where it is", self.daemon.log)
            self.daemon.start()
            owner.ask("device", "^checked$")
            self.check_where(owner, PAGES)
        owner.ask("check", "^checked$")
        owner.ask("change", "^changed$")
        self.out(owner)
        owner.ask("close", "^closed$")
        owner.finish()

    def test_handed_over_to_nobody(self):
        self.start_daemon("--grace", "300ms")
        owner = self.owner()
        self.out(owner)
        self.daemon.hand_over()
        owner.ask("check", "^checked$")
        owner.ask("change", "^changed$")
        owner.finish()

    def test_handed_over_with_a_stopped_owner(self):
        """Its agent has orders and does not get on: it is waited for, and then left as by a crash."""
        self.start_daemon("--grace", "600s")
        owner = self.owner("huge")
        mirror = self.hmmctl_json("mirrors")["mirrors"][0]["id"]
        with harness.stopped(owner.pid):
            mover = self.spawn("hmmctl", "migrate", "--to", "device", "--mirror", mirror)
            harness.wait_until(lambda: self.hmmctl_json("stats")["owners"][0]["stats"]["orders"] > 0, 20, "that its agent has orders")
            self.daemon.hand_over()
            self.assertIn("something is under way still", self.daemon.log)
            self.daemon.start()
        owner.ask("device", "^checked$")
        owner.ask("check", "^checked$")
        mover.wait()
        owner.ask("close", "^closed$")
        owner.finish()

    def test_handed_over_where_none_would_start(self):
        """With a configuration that is wrong nobody could follow: it ends in good order."""
        path = f"{self.folder}/h.conf"
        with open(path, "w") as file:
            file.write("[engine]\ngrace = 600s\n")
        self.start_daemon("--config", path)
        owner = self.owner()
        self.out(owner)
        with open(path, "w") as file:
            file.write("[engine]\ngrace = 600 sheep\n")
        self.daemon.hand_over()
        self.assertIn(f"{path}:2", self.daemon.log)
        self.assertIn("no hmmd would start with this configuration, so every page comes home", self.daemon.log)
        # Nobody has to wait for the grace time.
        owner.ask("check", "^checked$")
        owner.kill9()

    # ---- one that is stopped before it has taken anything over

    def say_goodbye_at_once(self):
        """As an hmmd that is stopped as soon as it is started: whoever has come by then is told that it ends in good order."""
        os.unlink(self.daemon.socket)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.daemon.socket)
            listener.listen()
            listener.settimeout(harness.scaled(20))
            peer = listener.accept()[0]
            with peer:
                header = wire.HEADER.unpack_from(peer.recv(65536))
                self.assertEqual(header[1], wire.HELLO)
                peer.send(wire.HEADER.pack(wire.HEADER.size + 8, wire.EVENT_SHUTDOWN, 0, 0, 0) + bytes(8))
        os.unlink(self.daemon.socket)

    def test_a_goodbye_of_one_that_had_nothing(self):
        """It does not mean that everything is home: nothing was this one's to bring home."""
        self.start_daemon("--grace", "600s")
        owner = self.owner("huge")
        self.out(owner)
        self.daemon.kill9()
        self.say_goodbye_at_once()
        self.daemon.start()
        owner.ask("device", "^checked$")
        owner.ask("check", "^checked$")
        owner.ask("change", "^changed$")
        owner.ask("close", "^closed$")
        owner.finish()

    # ---- kill -9, and a new one

    def test_kill_and_restart(self):
        self.start_daemon()
        owner = self.owner("huge")
        self.out(owner)
        self.daemon.restart()
        owner.ask("device", "^checked$")
        owner.ask("check", "^checked$")
        owner.ask("change", "^changed$")
        self.out(owner)
        owner.ask("check", "^checked$")
        owner.ask("close", "^closed$")
        owner.finish()

    def test_restart_with_a_smaller_pool(self):
        """What the next hmmd may not give out any more is still where it is, and comes home."""
        self.start_daemon()
        owner = self.owner("huge")
        self.out(owner)
        self.daemon.kill9()
        self.daemon.args += ["--pool-size", "4M"]
        self.daemon.start()
        owner.ask("device", "^checked$")
        self.assertIn("has no room in the pool any more", self.daemon.log)
        owner.ask("check", "^checked$")
        owner.ask("change", "^changed$")
        self.check_where(owner, 0)
        owner.ask("out", "^out 0$")
        owner.ask("check", "^checked$")
        owner.finish()

    def test_its_name_is_another_devices(self):
        """Somebody is faster and makes a device of that name, which is another thing: it is not taken for the one that has the pages."""
        self.start_daemon()
        owner = self.owner("huge")
        self.out(owner)
        with harness.stopped(owner.pid):
            self.daemon.kill9()
            self.daemon.start()
            other = wire.Client(self.daemon.socket)
            self.assertFalse(other.ask(wire.DEVICE_NEW, wire.new_device(f"device-{owner.pid}", caps=0)).is_error)
        owner.ask("device", "^checked$")
        self.assertIn("there is another device", self.daemon.log)
        owner.ask("change", "^changed$")
        self.out(owner)
        owner.ask("check", "^checked$")
        owner.ask("close", "^closed$")
        owner.finish()
        other.close()

    def test_mprotect_waits_for_the_new_one(self):
        """Devices follow before it returns; so it waits for who can see to that, and asks once more."""
        self.start_daemon()
        owner = self.owner("huge")
        for _ in range(3):
            self.out(owner)
            self.daemon.kill9()
            owner.send("protect")
            time.sleep(self.random.uniform(0, 0.2))
            self.daemon.start()
            owner.expect("^protected$")
            owner.ask("device", "^checked$")
            self.check_where(owner, 0)
            owner.ask("change", "^changed$")
        owner.send("protect")
        self.daemon.restart()
        owner.expect("^protected$")
        owner.ask("close", "^closed$")
        owner.finish()

    def test_mprotect_after_a_rescue(self):
        self.start_daemon("--grace", "300ms")
        owner = self.owner()
        self.out(owner)
        self.daemon.kill9()
        owner.ask("protect", "^protected$")
        owner.ask("check", "^checked$")
        owner.ask("protect", "^protected$")
        owner.finish()

    def test_events_over_a_restart(self):
        """What was not read yet is kept, then it says that something may be missing, then it goes on."""
        self.start_daemon()
        owner = self.owner(pages=4)
        owner.ask("listen", "^listening$")
        for round in range(3):
            self.out(owner, 4)
            if round % 2:
                self.daemon.stop()
                self.daemon.start()
            else:
                self.daemon.restart()
            owner.ask("device", "^checked$")
            # Sent home in good order: that is heard, too.
            home = " 5 3" if round % 2 else ""
            owner.ask("heard", f"^heard {round + 1} 5 2{home} 10$")
            owner.ask("home", "^home 4$")
            owner.ask("heard", f"^heard {round + 1}{'' if round % 2 else ' 5 3'}$")
        # Three that nobody reads between: the first ring's are kept, of the others it is said how many there were.
        for _ in range(3):
            self.out(owner, 4)
            owner.ask("home", "^home 4$")
            self.daemon.restart()
            owner.ask("device", "^checked$")
        owner.ask("heard", "^heard 14 5 2 5 3 10$")
        owner.ask("close", "^closed$")
        owner.finish()

    def test_events_after_a_rescue(self):
        self.start_daemon("--grace", "1s")
        owner = self.owner(pages=4)
        owner.ask("listen", "^listening$")
        self.out(owner, 4)
        self.daemon.kill9()
        owner.ask("check", "^checked$")
        owner.ask("heard", "^heard 0 5 2$")
        owner.ask("heard", "^heard 0$")
        owner.finish()

    ALL_ADVICE = [(1, 0), (3, 0), (5, 0), (18, 64), (19, 0), (22, 80), (20, 0)]
    POLICY = r"^policy said (\S+) in force (\S+) granularity (\d+) priority (\d+) there (\d+) named (\d)$"

    def advise_all(self, owner):
        """All advice at once, and the policy that is the answer."""
        for advice, value in self.ALL_ADVICE:
            owner.ask(f"advise {advice} {value}", "^advised 0$")
        policy = owner.ask("policy", self.POLICY).groups()
        self.assertEqual(policy, ("0xfb", "0xfb", "64", "80", str(PAGES), "3"))
        return policy

    def test_advice_survives_a_kill(self):
        self.start_daemon()
        owner = self.owner()
        policy = self.advise_all(owner)
        self.daemon.restart()
        self.assertEqual(owner.ask("policy", self.POLICY).groups(), policy)
        # What is shared is shared still, for the advice that says so.
        owner.ask("check", "^checked$")
        self.check_where(owner, PAGES)
        self.daemon.restart()
        self.assertEqual(owner.ask("policy", self.POLICY).groups(), policy)
        owner.ask("change", "^changed$")
        owner.ask("device", "^checked$")
        owner.ask("close", "^closed$")
        owner.finish()

    def test_advice_is_listed(self):
        self.start_daemon()
        owner = self.owner()
        self.advise_all(owner)
        ranges = self.hmmctl_json("advice")["ranges"]
        self.assertEqual([entry["bytes"] for entry in ranges], [PAGES * 4096])
        self.assertEqual(set(ranges[0]["said"]), {"read_mostly", "preferred_device", "accessed_by", "granularity",
                                                  "no_prefetch", "pin", "evict_priority"})
        self.assertEqual((ranges[0]["granularity"], ranges[0]["priority"]), (64, 80))
        self.assertEqual(ranges[0]["mirrors"], [mirror["id"] for mirror in self.hmmctl_json("mirrors")["mirrors"]])
        self.assertIn("pin", self.hmmctl("advice").stdout)
        # More than one answer holds, and each once.
        owner.ask("stripe", "^striped$")
        self.assertEqual(len(self.hmmctl_json("advice")["ranges"]), PAGES)
        owner.finish()

    def test_advice_is_said_again_after_a_stop(self):
        self.start_daemon()
        owner = self.owner()
        policy = self.advise_all(owner)
        for _ in range(2):
            self.daemon.stop()
            self.daemon.start()
            # The stop brought all home: that broke the pin, and the answer says so.
            after = owner.ask("policy", self.POLICY).groups()
            self.assertEqual(after, (policy[0], "0xbb", *policy[2:4], "0", policy[5]))
            self.out(owner)
            self.assertEqual(owner.ask("policy", self.POLICY).groups(), policy)
        owner.ask("check", "^checked$")
        owner.ask("close", "^closed$")
        owner.finish()

    def test_broken_pins_are_counted_and_logged(self):
        self.start_daemon()
        owner = self.owner()
        owner.ask("advise 20", "^advised 0$")
        owner.ask("check", "^checked$")
        self.assertEqual(self.pins_broken(), 0)
        owner.ask("touch", "^touched$")
        harness.wait_until(lambda: self.pins_broken() == PAGES, 20, "that every broken pin is counted")
        harness.wait_until(lambda: "pinned pages" in self.daemon.log, 20, "that the log tells of them")
        owner.finish()

    def pins_broken(self):
        return self.hmmctl_json("stats")["owners"][0]["stats"]["pins_broken"]

    def test_kill_and_restart_of_exclusive_pages(self):
        """The pages stay on the device; that it had them for itself nobody knows any more."""
        self.start_daemon()
        owner = self.owner()
        owner.ask("exclusive", f"^exclusive {PAGES}$")
        owner.ask("marked", f"^marked {PAGES}$")
        self.daemon.restart()
        owner.ask("device", "^checked$")
        owner.ask("marked", "^marked 0$")
        self.check_where(owner, PAGES)
        owner.ask("exclusive", f"^exclusive {PAGES}$")
        owner.ask("check", "^checked$")
        owner.ask("marked", "^marked 0$")
        owner.ask("close", "^closed$")
        owner.finish()

    def test_kill_and_restart_with_shared_pages(self):
        self.start_daemon()
        owner = self.owner()
        self.out(owner)
        owner.ask("check", "^checked$")
        self.daemon.restart()
        owner.ask("change", "^changed$")
        owner.ask("device", "^checked$")
        owner.ask("check", "^checked$")
        owner.finish()

    def test_fault_waits_for_the_new_one(self):
        """Faults that the dead daemon had read are raised anew."""
        self.start_daemon()
        owner = self.owner()
        self.out(owner)
        self.daemon.kill9()
        owner.send("check")
        time.sleep(0.5)
        self.daemon.start()
        owner.expect("^checked$")
        owner.finish()

    def test_killed_with_an_order_that_nobody_heard_of(self):
        """The agent slept, and the one who was to wake it is dead: the next hmmd must not wait for it."""
        self.start_daemon("--grace", "60s", mistake="die-at-the-bell")
        owner = self.owner("huge")
        owner.send("out")
        harness.wait_until(lambda: not self.daemon.running, 20, "that hmmd dies")
        self.daemon.mistake = None
        self.daemon.start()
        harness.wait_until(lambda: "taken over" in self.daemon.log, 20, "that the owner is taken over")
        owner.expect(f"^out {PAGES}$")
        owner.ask("device", "^checked$")
        owner.ask("check", "^checked$")
        owner.finish()

    def test_kill_again_and_again(self):
        self.start_daemon()
        owner = self.owner("huge")
        for _ in range(8):
            owner.send("out")
            time.sleep(self.random.uniform(0, 0.05))
            self.daemon.restart()
            owner.expect(r"^out \d+$")
            owner.send(self.random.choice(["check", "change", "touch", "device", "home", "fork"]))
            time.sleep(self.random.uniform(0, 0.05))
            self.daemon.restart()
            owner.expect(r"^(checked|changed|touched|home \d+|forked)$")
            owner.ask("check", "^checked$")
        owner.ask("close", "^closed$")
        owner.finish()

    def test_kill_and_restart_of_a_group_of_devices(self):
        self.start_daemon()
        owner = self.owner()
        owner.ask("group", "^grouped$")
        for _ in range(2):
            owner.ask("halves", f"^halves {PAGES}$")
            self.daemon.restart()
            self.check_where(owner, 0)
            owner.ask("whole", f"^whole {PAGES}$")
            owner.ask("check", "^checked$")
            owner.ask("change", "^changed$")
        owner.ask("halves", f"^halves {PAGES}$")
        self.daemon.stop()
        self.daemon.start()
        owner.ask("halves", f"^halves {PAGES}$")
        owner.ask("check", "^checked$")
        owner.finish()

    def test_prefetch_goes_on_after_a_kill(self):
        """What was in flight is asked again, and what is said of each page is so."""
        pages = 20000
        self.start_daemon()
        owner = self.owner("huge", pages=pages)
        for _ in range(4):
            owner.ask("prefetch", "^prefetching$")
            time.sleep(self.random.uniform(0, 0.05))
            self.daemon.restart()
            said = owner.ask("prefetched", r"^prefetched (\d+) (-?\d+) (\d+)$")
            tried, result, there = (int(said.group(i)) for i in (1, 2, 3))
            self.assertEqual(tried, pages)
            self.assertEqual(result, there)
            self.check_where(owner, there)
            owner.ask("change", "^changed$")
        owner.ask("check", "^checked$")
        owner.finish()

    def test_kill_under_the_base_engine(self):
        self.start_daemon()
        owner = self.owner("base", "huge")
        for _ in range(4):
            owner.send("out")
            time.sleep(self.random.uniform(0, 0.05))
            self.daemon.restart()
            owner.expect(r"^out \d+$")
            owner.ask("device", "^checked$")
            owner.ask("change", "^changed$")
        owner.finish()

    def test_fork_while_there_is_none(self):
        """fork waits for its pages to come home; the new daemon, or the rescuer, brings them."""
        self.start_daemon()
        owner = self.owner()
        self.out(owner)
        self.daemon.kill9()
        owner.send("fork")
        time.sleep(0.3)
        self.daemon.start()
        owner.expect("^forked$")
        owner.ask("check", "^checked$")
        owner.finish()

    # ---- kill -9, and nobody comes

    def test_rescue(self):
        self.start_daemon("--grace", "300ms")
        owner = self.owner("huge")
        self.out(owner)
        self.daemon.kill9()
        owner.ask("check", "^checked$")
        owner.ask("change", "^changed$")
        owner.ask("check", "^checked$")
        owner.ask("fork", "^forked$")
        owner.finish()

    @staticmethod
    def armed(owner):
        """Its mappings that a userfaultfd watches."""
        with open(f"/proc/{owner.pid}/smaps") as file:
            flags = [line for line in file if line.startswith("VmFlags:")]
        return [line for line in flags if " um" in line or " uw" in line]

    def test_rescue_brings_all_home_by_itself(self):
        self.start_daemon("--grace", "300ms")
        owner = self.owner()
        self.out(owner)
        self.daemon.kill9()
        harness.wait_until(lambda: not self.armed(owner), 20, "that nothing is armed any more")
        owner.ask("check", "^checked$")
        owner.finish()

    def test_rescue_ends_a_prefetch(self):
        pages = 20000
        self.start_daemon("--grace", "300ms")
        owner = self.owner("huge", pages=pages)
        owner.ask("prefetch", "^prefetching$")
        self.daemon.kill9()
        said = owner.ask("prefetched", r"^prefetched (\d+) (-?\d+) (\d+)$")
        if int(said.group(1)) < pages:
            self.assertTrue(int(said.group(2)) in (int(said.group(3)), -errno.ESTALE), said.group(0))
        owner.ask("check", "^checked$")
        owner.finish()

    def test_rescue_of_a_migration_under_way(self):
        self.start_daemon("--grace", "300ms")
        owners = [self.owner("huge") for _ in range(3)]
        for owner in owners:
            owner.send("out")
        time.sleep(self.random.uniform(0, 0.02))
        self.daemon.kill9()
        # The owner opens anew when it has been rescued, and tries that for five seconds.
        time.sleep(1.5)
        self.daemon.start()
        for owner in owners:
            owner.expect(r"^out \d+$")
            owner.ask("check", "^checked$")
            owner.finish()

    def test_late_daemon_finds_it_rescued(self):
        self.start_daemon("--grace", "300ms")
        owner = self.owner()
        self.out(owner)
        self.daemon.kill9()
        harness.wait_until(lambda: not self.armed(owner), 20, "that the owner is rescued")
        self.daemon.start()
        owner.ask("check", "^checked$")
        self.out(owner)
        owner.ask("device", "^checked$")
        owner.ask("check", "^checked$")
        owner.finish()

    # ---- ranges

    def becomes_invalid(self, owner):
        harness.wait_until(lambda: owner.ask("valid", r"^valid (\d)$").group(1) == "0", 20, "that the range is invalid")

    def looks(self):
        return int(self.hmmctl_json("stats")["owners"][0]["stats"]["range_looks"])

    def test_range_that_is_there_costs_no_message(self):
        """hmmd is stopped, and nobody waits for it."""
        self.start_daemon()
        owner = self.owner("huge")
        owner.ask("range", f"^range {PAGES}$")
        with harness.stopped(self.daemon.process.pid):
            for _ in range(3):
                owner.ask("range", f"^range {PAGES}$")
                owner.ask("valid", "^valid 1$")
        owner.ask("check", "^checked$")
        owner.finish()

    def test_one_message_for_all_that_is_missing(self):
        self.start_daemon()
        owner = self.owner("across")
        self.out(owner, PAGES)
        before = self.looks()
        owner.ask("range", f"^range {PAGES}$")
        self.assertEqual(self.looks(), before)  # its own pages are there
        owner.ask("home", "^home")
        self.becomes_invalid(owner)
        owner.ask("range", f"^range {PAGES}$")
        self.assertEqual(self.looks(), before + 1)
        owner.finish()

    def test_range_over_a_restart(self):
        self.start_daemon()
        owner = self.owner()
        for _ in range(3):
            owner.ask("range", f"^range {PAGES}$")
            self.daemon.restart()
            self.becomes_invalid(owner)
            owner.ask("range", f"^range {PAGES}$")
            owner.ask("valid", "^valid 1$")
        owner.ask("discard", "^discarded$")
        self.becomes_invalid(owner)
        owner.ask("range", f"^range {PAGES}$")
        owner.ask("change", "^changed$")
        owner.ask("device", "^checked$")
        owner.finish()

    def test_range_over_a_good_bye(self):
        """The table is a new one: its numbers begin anew."""
        self.start_daemon()
        owner = self.owner()
        owner.ask("range", f"^range {PAGES}$")
        self.daemon.stop()
        self.daemon.start()
        self.becomes_invalid(owner)
        owner.ask("range", f"^range {PAGES}$")
        owner.ask("check", "^checked$")
        owner.finish()

    def test_range_changed_while_there_is_no_daemon(self):
        """The discarding waits for its event to be read; what the next hmmd reads it knows of."""
        self.start_daemon()
        owner = self.owner()
        owner.ask("range", f"^range {PAGES}$")
        self.daemon.kill9()
        owner.send("discard")
        time.sleep(0.2)
        self.daemon.start()
        owner.expect("^discarded$")
        self.becomes_invalid(owner)
        owner.ask("range", f"^range {PAGES}$")
        owner.ask("change", "^changed$")
        owner.ask("device", "^checked$")
        owner.finish()

    def test_range_and_a_rescue(self):
        self.start_daemon("--grace", "300ms")
        owner = self.owner()
        owner.ask("range", f"^range {PAGES}$")
        self.daemon.kill9()
        self.becomes_invalid(owner)
        owner.ask("range", "^error -14$")
        owner.ask("check", "^checked$")
        owner.ask("change", "^changed$")
        owner.finish()

    # ---- an owner stops or ends

    @unittest.skipIf(harness.SANITIZE, "AddressSanitizer's shadow is terabytes to migrate")
    def test_stopped_owner_holds_up_nobody(self):
        self.start_daemon()
        stopped, other = self.owner(), self.owner()
        self.out(stopped)
        stopped.signal(signal.SIGSTOP)
        self.hmmctl("migrate", "--to", "device", "--pid", str(other.pid), status=None)
        other.ask("check", "^checked$")
        self.hmmctl("drain", "--pid", str(stopped.pid))
        stopped.signal(signal.SIGCONT)
        stopped.ask("check", "^checked$")
        stopped.finish()
        other.finish()

    def test_owner_stopped_in_a_migration(self):
        """An order that the agent does not carry out is taken back, or waits; the other owner never does."""
        self.start_daemon()
        stopped, other = self.owner("huge"), self.owner()
        for _ in range(10):
            stopped.send("out")
            time.sleep(self.random.uniform(0, 0.003))
            stopped.signal(signal.SIGSTOP)
            self.out(other)
            other.ask("check", "^checked$")
            stopped.signal(signal.SIGCONT)
            stopped.expect(r"^out \d+$")
            stopped.ask("check", "^checked$")
        stopped.finish()
        other.finish()

    def test_killed_owner_leaves_nothing(self):
        self.start_daemon()
        victim, other = self.owner("huge"), self.owner()
        self.out(other)
        self.out(victim)
        victim.kill9()
        other.ask("check", "^checked$")
        other.ask("close", "^closed$")
        other.finish()
        harness.wait_until(lambda: not sum(pool["used"] for pool in self.hmmctl_json("pools")["pools"]), 10,
                           "that the pool is empty")

    def test_owner_killed_in_a_migration(self):
        self.start_daemon()
        other = self.owner()
        for _ in range(6):
            victim = self.owner("huge")
            victim.send("out")
            time.sleep(self.random.uniform(0, 0.01))
            victim.kill9()
            self.out(other)
            other.ask("check", "^checked$")
        other.finish()


if __name__ == "__main__":
    harness.main()
