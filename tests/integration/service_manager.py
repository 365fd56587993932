# SPDX-License-Identifier: GPL-2.0-or-later
"""hmmd under a service manager: sockets that it is passed, what it says of itself, and what it has kept for its successor."""

import errno
import os
import signal
import socket
import stat
import time
import unittest

import control_wire as wire
import harness
import manager


class Managed(wire.Test):
    def setUp(self):
        super().setUp()
        self.manager = manager.Manager(self.folder)
        self.path = os.path.join(self.folder, "hmmd.sock")
        self.admin_path = os.path.join(self.folder, "admin.sock")

    def tearDown(self):
        try:
            super().tearDown()
        finally:
            self.manager.close()

    def make(self, *args, **options):
        self.daemon = harness.Daemon(self, *self.daemon_args, *args, manager=self.manager, **options)
        return self.daemon

    def start(self, *args, **options):
        return self.make(*args, **options).start()


class Sockets(Managed):
    def expect_refusal(self, *words):
        self.make()
        with self.assertRaisesRegex(AssertionError, "status 1"):
            self.daemon.start()
        for word in words:
            self.assertIn(word, self.daemon.log)
        self.daemon = None

    def test_who_comes_first_waits(self):
        """Before hmmd is there, after it was killed, and after it has ended: whoever connects is served by the next."""
        self.manager.listen("programs", self.path, 0o640)
        early = wire.Client(self.path, hello=False)
        self.start()
        self.assertFalse(early.hello().is_error)
        self.assertEqual(early.status()["socket"], self.path)
        early.close()
        self.daemon.kill9()
        between = wire.Client(self.path, hello=False)
        self.daemon.start()
        self.assertFalse(between.hello().is_error)
        self.assertEqual(between.status()["clients"], 1)
        between.close()
        self.daemon.stop()
        # Its end removes nothing that is not its own.
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o640)
        late = wire.Client(self.path, hello=False)
        self.daemon.start()
        self.assertFalse(late.hello().is_error)
        late.close()

    def test_a_socket_behind_which_nobody_is(self):
        """The manager has it, and no hmmd comes: the library may connect, and brings its pages home all the same."""
        self.manager.listen("programs", self.path)
        self.start("--grace", "1s")
        owner = self.spawn("mirror-owner", 512)
        owner.ask("out", "^out 512$")
        self.daemon.kill9()
        owner.ask("check", "^checked$", seconds=60)
        self.daemon.start()
        owner.ask("where", "^where 0$")
        owner.finish()

    def test_a_socket_without_a_name(self):
        self.manager.listen("unknown", self.path)
        self.start()
        self.expect_healthy()

    def test_the_unit_says_where(self):
        """Lock and socket lie where the unit has them, whatever the configuration says."""
        self.manager.listen("programs", self.path)
        self.start("--socket", os.path.join(self.folder, "elsewhere.sock"))
        self.expect_log("'socket', which says .*elsewhere.sock, has no say beside hmmd.socket")
        self.assertFalse(os.path.exists(os.path.join(self.folder, "elsewhere.sock")))
        with wire.Client(self.path, role=wire.TOOL) as client:
            self.assertEqual(client.status()["socket"], self.path)
        second = self.spawn_command("second", [harness.binary("hmmd"), "--no-config", "--socket", self.path])
        self.assertEqual(second.wait(), 1)
        self.assertIn("another hmmd serves", second.errors)

    def test_nobody_serves_by_hand_where_a_unit_listens(self):
        self.manager.listen("programs", self.path)
        second = self.spawn_command("second", [harness.binary("hmmd"), "--no-config", "--socket", self.path])
        self.assertEqual(second.wait(), 1)
        self.assertIn("somebody else answers", second.errors)

    def test_wrong_kinds(self):
        for name, path, options, words in (
                ("programs", self.path, {"kind": socket.SOCK_STREAM}, "has to say ListenSequentialPacket= and Accept=no"),
                ("programs", self.path, {"backlog": None}, "has to say ListenSequentialPacket= and Accept=no"),
                ("programs", "\0hmmd-test-" + os.path.basename(self.folder), {}, "has no path of at most 107 bytes"),
                ("administration", self.admin_path, {"kind": socket.SOCK_STREAM}, "has to say ListenSequentialPacket=")):
            with self.subTest(name=name, path=path, options=options):
                self.manager.listen(name, path, **options)
                self.expect_refusal(words)
                self.manager.sockets.pop()[1].close()
                if os.path.exists(path.strip("\0")):
                    os.unlink(path)

    def test_for_another_process(self):
        """What LISTEN_PID does not give to hmmd is none of its business."""
        self.start(environment={"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "programs:administration"})
        self.expect_healthy()

    def test_nonsense(self):
        for pid, count in (("", "1"), ("x", "1"), ("1", ""), ("1", "-3"), ("1", "99999999999999999999")):
            self.start(environment={"LISTEN_PID": pid, "LISTEN_FDS": count})
            self.expect_healthy()
            self.daemon.stop()

    def test_what_is_of_no_use(self):
        reads, writes = os.pipe()
        self.manager.listen("programs", self.path)
        self.manager.kept.append(manager.Kept("a pipe", reads))
        self.start()
        self.expect_log("passed descriptor 4, 'a pipe', which hmmd has no use for")
        self.manager.kept.pop()
        os.close(reads)
        with self.assertRaises(BrokenPipeError):
            os.write(writes, b"x")
        os.close(writes)

    @unittest.skipUnless(os.getuid() == 0, "only root can become somebody else")
    def test_administration(self):
        """Who may open that socket administers, whoever he is; by the other one he does not."""
        self.manager.listen("programs", self.path, 0o666)
        self.manager.listen("administration", self.admin_path, 0o666)
        os.chmod(self.folder, 0o711)
        self.start()
        owner = self.connect().open_owner()

        def other():
            for path, allowed in ((self.path, False), (self.admin_path, True)):
                tool = wire.Client(os.path.basename(path), role=wire.TOOL, name="other")
                assert tool.uid == 65534
                for opcode, body in ((wire.DRAIN, bytes(8)), (wire.STATS, wire.struct.pack("<II", owner, 0))):
                    answer = tool.ask(opcode, body)
                    assert answer.is_error != allowed, (path, opcode, answer.is_error and answer.text)
                    assert allowed or answer.error == errno.EPERM, answer.text
                tool.close()
                # It is for administration, and no way to another's memory.
                driver = wire.Client(os.path.basename(path), role=wire.DRIVER, name="other")
                assert driver.ask(wire.DRAIN, bytes(8)).error == errno.EPERM
                driver.close()

        self.as_somebody_else(other)

    def test_the_end_closes_both(self):
        """While the pages come home nobody new is let in by either; who comes then waits for the next hmmd."""
        self.manager.listen("programs", self.path)
        self.manager.listen("administration", self.admin_path)
        self.start()
        self.daemon.stop()
        late = [wire.Client(path, hello=False) for path in (self.path, self.admin_path)]
        self.daemon.start()
        for client in late:
            self.assertFalse(client.hello(role=wire.TOOL).is_error)
            client.close()


class Reports(Managed):
    def test_from_start_to_end(self):
        self.start()
        words = self.manager.expect("READY")
        self.assertEqual(words["READY"], "1")
        self.assertRegex(words["STATUS"], r"^Serving 0 mirrored processes; 0 of \d+ MiB of device memory are in use$")
        self.daemon.stop()
        words = self.manager.expect("STOPPING")
        self.assertEqual(words["STOPPING"], "1")
        self.assertRegex(words["STATUS"], "^Bringing every page home: 0 MiB of 0 mirrored processes are out$")
        self.assertNotIn("READY", [key for words in self.manager.hear()[1:] for key in words])

    def test_reload(self):
        """As Type=notify-reload has it: RELOADING=1 with the time, not before the signal, and READY=1 when it is over."""
        path = os.path.join(self.folder, "h.conf")
        with open(path, "w") as file:
            file.write("[limits]\nconnections = 7\n")
        self.start("--config", path)
        self.manager.expect("READY")
        for text, trouble in (("[limits]\nconnections = 8\n", ""),
                              ("[limits]\nconnections = some\nowners = x\n",
                               f"; the configuration was not reloaded: {path}:2: 'connections' is 'some'; "
                               "it must be a number from 1 to 65536"),
                              ("[limits]\nconnections = 9\n", "")):
            with open(path, "w") as file:
                file.write(text)
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            self.daemon.process.signal(signal.SIGHUP)
            words = self.manager.expect("RELOADING")
            self.assertEqual(words["RELOADING"], "1")
            self.assertLessEqual(before, int(words["MONOTONIC_USEC"]))
            self.assertLessEqual(int(words["MONOTONIC_USEC"]), time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)
            words = self.manager.expect("READY")
            self.assertTrue(words["STATUS"].endswith(f"device memory are in use{trouble}"), words)

    def test_watchdog(self):
        """An hmmd without work is well, and says so; so it does with an owner."""
        self.start("--workers", "3", environment={"WATCHDOG_USEC": str(int(harness.scaled(1000000)))})
        for _ in range(5):
            self.assertEqual(self.manager.expect("WATCHDOG")["WATCHDOG"], "1")
        owner = self.connect()
        owner.open_owner()
        seen = ""
        while not seen.startswith("Serving 1 mirrored process;"):
            seen = self.manager.expect("WATCHDOG")["STATUS"]
        owner.close()

    def test_watchdog_of_another_process(self):
        self.start(environment={"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
        self.manager.expect("READY")
        client = self.connect()
        for _ in range(20):
            client.status()
            time.sleep(0.005)
        self.assertFalse([words for words in self.manager.hear() if "WATCHDOG" in words])

    def test_a_worker_that_hangs_starves_the_watchdog(self):
        """One of three does not come back, the loop and the two others are well: nobody may say that all is."""
        self.start("--workers", "3", environment={"WATCHDOG_USEC": "200000"}, mistake="hang-worker")
        for _ in range(3):
            self.manager.expect("WATCHDOG")
        self.daemon.process.signal(signal.SIGHUP)
        self.expect_log("worker 1 makes no progress: the service manager is not told that all is well")
        self.manager.hear()
        said = len(self.manager.said)
        # As many times again as it was fed before; the loop itself still serves.
        harness.wait_until(lambda: self.daemon.log.count("makes no progress") > 6, 20, "that it is noticed again")
        self.expect_healthy()
        later = self.manager.hear()[said:]
        self.assertFalse([words for words in later if "WATCHDOG" in words])
        self.assertTrue([words for words in later if words.get("STATUS", "").startswith("Worker 1 makes no progress")])
        self.daemon.kill9()


class HandedOver(Managed):
    """SIGUSR2, which is RestartKillSignal= of hmmd.service: another follows at once."""
    daemon_args = ["--pool", "memfd-huge", "--grace", "600s"]

    def test_what_the_manager_hears(self):
        self.manager.listen("programs", self.path)
        self.start()
        owner = self.spawn("mirror-owner", 1024)
        owner.ask("out", "^out 1024$")
        self.manager.expect("READY")
        self.daemon.hand_over()
        words = self.manager.expect("STOPPING")
        self.assertEqual(words["STOPPING"], "1")
        self.assertEqual(words["STATUS"], "Handing over to the next hmmd: 4 MiB of 1 mirrored process stay out")
        self.daemon.start()
        self.manager.expect("READY")
        owner.ask("where", "^where 1024$")
        owner.ask("check", "^checked$")
        owner.finish()
        self.assertFalse(self.manager.kept)

    def test_who_comes_meanwhile_waits(self):
        """By either socket; and who is connected is told nothing: its connection just ends."""
        self.manager.listen("programs", self.path)
        self.manager.listen("administration", self.admin_path)
        self.start()
        here = self.connect()
        self.daemon.hand_over()
        self.assertIsNone(here.receive())
        here.close()
        late = [wire.Client(path, hello=False) for path in (self.path, self.admin_path)]
        self.daemon.start()
        for client in late:
            self.assertFalse(client.hello(role=wire.TOOL).is_error)
            client.close()

    def test_by_hand(self):
        """Without a manager's sockets, too: the socket's file stays, and the next hmmd takes its place."""
        self.start()
        owner = self.spawn("mirror-owner", 512)
        owner.ask("out", "^out 512$")
        self.daemon.hand_over()
        self.assertTrue(stat.S_ISSOCK(os.stat(self.path).st_mode))
        self.daemon.start()
        owner.ask("where", "^where 512$")
        owner.ask("check", "^checked$")
        owner.finish()

    def test_twice_and_then_the_end(self):
        """What comes while it hands over changes nothing."""
        self.start()
        owner = self.spawn("mirror-owner", 512)
        owner.ask("out", "^out 512$")
        for number in (signal.SIGUSR2, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP):
            self.daemon.process.signal(number)
        self.assertEqual(self.daemon.process.wait(), 0)
        self.daemon.start()
        owner.ask("where", "^where 512$")
        owner.ask("check", "^checked$")
        owner.finish()


class Kept(Managed):
    """What only hmmd has is with the manager while it matters: a raw fork's child is not lost with hmmd."""
    daemon_args = ["--pool", "memfd"]

    def hear_until(self, condition, what):
        def heard():
            self.manager.hear()
            return condition()

        harness.wait_until(heard, 30, what)

    def die_in_fork(self, case):
        """An hmmd that is killed when the child has some of its pages; the owner waits for the next."""
        self.manager.listen("programs", self.path)
        self.start("--grace", "600s", mistake="die-in-fork")
        owner = self.spawn("mirror-family", case)
        self.hear_until(lambda: not self.daemon.running, "that hmmd dies")
        self.manager.hear()
        self.assertTrue(self.manager.kept, "nothing is kept")
        self.daemon.mistake = None
        return owner

    def finish(self, owner):
        self.daemon.start()
        self.hear_until(lambda: not owner.running, "that the owner ends")
        self.hear_until(lambda: not self.manager.kept, "that nothing is kept any more")
        return owner.status

    def test_a_child_gets_its_pages_from_the_next(self):
        owner = self.die_in_fork("cloned")
        # Its userfaultfd, and what it has done; known by the parent and its ledger.
        self.assertEqual({kept.name.split(".")[1] for kept in self.manager.kept}, {str(owner.pid)})
        self.assertEqual(len(self.manager.kept), 2)
        self.assertEqual(self.finish(owner), 0, owner.errors)
        self.expect_log("a raw fork was being served when hmmd died; its child gets its pages now")
        self.assertNotIn("may read zeros", self.daemon.log)

    def test_what_the_child_does_meanwhile(self):
        """It discards, moves and unmaps, and has a child of its own: each is known to the next hmmd."""
        owner = self.die_in_fork("cloned-and-changes")
        self.assertEqual(self.finish(owner), 0, owner.errors)

    def test_killed_over_it_again(self):
        owner = self.die_in_fork("cloned")
        self.daemon.mistake = "die-in-fork"
        for _ in range(3):
            self.daemon.start()
            self.hear_until(lambda: not self.daemon.running, "that hmmd dies again")
        self.daemon.mistake = None
        self.assertEqual(self.finish(owner), 0, owner.errors)

    def test_a_manager_that_keeps_nothing(self):
        """As without one: the child that was served finds zeros. So it is the store that saves it."""
        owner = self.die_in_fork("cloned")
        while self.manager.kept:
            os.close(self.manager.kept.pop().fd)
        self.assertNotEqual(self.finish(owner), 0)
        self.assertIn("is 0, not", owner.errors)

    def test_an_owner_that_does_not_come_back(self):
        """Nobody can give that child its pages any more; it is let go."""
        owner = self.die_in_fork("cloned")
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        self.daemon.args += ["--grace", "100ms"]
        self.daemon.environment = {"WATCHDOG_USEC": "400000"}
        self.daemon.start()
        self.hear_until(lambda: not self.manager.kept, "that nothing is kept any more")
        self.expect_log("a raw fork was being served when hmmd died, and its parent has ended, too")

    def test_nothing_is_kept_of_a_fork_that_is_done(self):
        self.start()
        owner = self.spawn("mirror-family", "cloned")
        self.hear_until(lambda: not owner.running, "that the owner ends")
        self.assertEqual(owner.status, 0)
        self.hear_until(lambda: not self.manager.kept, "that nothing is kept any more")
        self.assertTrue([words for words in self.manager.said if "FDSTORE" in words], "nothing ever was kept")

    def test_a_stopped_owner(self):
        """What an owner has its library keeps, stopped or not: hmmd is killed twice meanwhile, and not a byte is lost."""
        self.start("--grace", "600s")
        owner = self.spawn("mirror-owner", 1024)
        owner.ask("out", "^out 1024$")
        with harness.stopped(owner.pid):
            for _ in range(2):
                self.daemon.restart()
                self.connect(role=wire.TOOL).status()
            self.assertFalse(self.manager.kept)
        self.assertEqual(owner.ask("where", r"^where (\d+)$").group(1), "1024")
        owner.ask("check", "^checked$")
        owner.ask("device", "^checked$")
        owner.finish()


if __name__ == "__main__":
    harness.main()
