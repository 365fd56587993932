# SPDX-License-Identifier: GPL-2.0-or-later
"""hmmd under a service manager: sockets that it is passed, what it says of itself, and what it has kept for its successor."""

import errno
import os
import signal
import socket
import stat
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

    def make(self, *args, environment=None):
        self.daemon = harness.Daemon(self, *self.daemon_args, *args, environment=environment, manager=self.manager)
        return self.daemon

    def start(self, *args, environment=None):
        return self.make(*args, environment=environment).start()


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
        said, say = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.chdir(self.folder)
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
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
                os.write(say, b"good")
            except BaseException as error:
                os.write(say, repr(error).encode())
            finally:
                os._exit(0)
        os.close(say)
        self.assertEqual(os.read(said, 4096).decode(), "good")
        os.close(said)
        os.waitpid(child, 0)

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


if __name__ == "__main__":
    harness.main()
