# SPDX-License-Identifier: GPL-2.0-or-later
"""What one uid may have: for each key of [limits] a user who goes up to it, is refused one more in words that name the key, gives back, and
may again; and when he is gone hmmd counts nothing for him any more."""

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import socket
import struct
import unittest

import control_wire as wire
import harness
import wire_schema as schema

PAGE, BLOCK = 4096, 2 << 20
ELSEWHERE = 1 << 45
KEYS = ["connections", "owners", "fds", "requests", "rings", "mirrors", "memory", "pinned"]


class Quotas(wire.Test):
    def start_with(self, **limits):
        self.config = os.path.join(self.folder, "h.conf")
        self.write(limits)
        self.start_daemon("--config", self.config)
        self.tool = self.connect(role=wire.TOOL)
        self.at_start = self.usage()

    def write(self, limits):
        with open(self.config, "w") as file:
            file.write("[limits]\n" + "".join(f"{key} = {value}\n" for key, value in limits.items()))

    def usage(self, client=None, uid=None):
        """key -> (used, limit) of a uid; {} when hmmd knows nothing of it."""
        records = (client or self.tool).listed_by_index(wire.USAGE, "IIQQ24s")
        uid = os.getuid() if uid is None else uid
        return {wire.untext(name): (used, limit) for of, _, used, limit, name in records if of == uid}

    def used(self, key):
        return self.usage()[key][0]

    def expect_over(self, answer, key):
        self.expect_error(answer, errno.EDQUOT, f"'{key}' in [limits] of hmmd.conf sets the limit", f"uid {os.getuid()} has")
        answer.close()

    def expect_all_back(self):
        def kept():
            return {key: used for key, (used, _) in self.usage().items() if used != self.at_start[key][0]}

        try:
            harness.wait_until(lambda: not kept())
        except AssertionError:
            self.fail(f"still charged for: {kept()}")

    def leave(self, client):
        client.close()
        if client in self.clients:
            self.clients.remove(client)

    def owner_with_mirror(self):
        client = self.connect()
        client.owner = client.open_owner()
        client.device = client.ask(wire.DEVICE_NEW, wire.new_device(f"d{client.owner}")).unpack("I")[0]
        client.mirror = self.register(client).unpack("I")[0]
        return client

    def register(self, client):
        answer = client.ask(wire.MIRROR_REGISTER, struct.pack("<IIQ", client.owner, client.device, 0))
        answer.close()
        return answer

    def test_every_key(self):
        """What there is: each key that bounds users, with its limit; hmmctl shows the same."""
        self.start_with(mirrors=5, memory="64M")
        self.assertEqual(list(self.at_start), KEYS)
        self.assertEqual(self.at_start["connections"], (1, 512))
        self.assertEqual((self.at_start["mirrors"], self.at_start["memory"], self.at_start["pinned"]), ((0, 5), (0, 64 << 20), (0, 0)))
        shown = {line.split()[1]: line.split()[2:] for line in self.hmmctl("usage").stdout.splitlines()[1:]}
        self.assertEqual(list(shown), KEYS)
        self.assertEqual((shown["memory"], shown["pinned"]), (["0", str(64 << 20)], ["0", "unlimited"]))
        told = self.hmmctl_json("usage")["usage"]
        self.assertEqual([(one["uid"], one["name"]) for one in told], [(os.getuid(), key) for key in KEYS])
        self.assertEqual([one["limit"] for one in told if one["name"] in ("mirrors", "pinned")], [5, None])

    def test_connections(self):
        self.start_with(connections=3)
        kept = [self.connect(), self.connect()]
        self.expect_over(self.connect(hello=False).receive(), "connections")
        self.assertEqual(self.used("connections"), 3)
        self.leave(kept.pop())
        harness.wait_until(lambda: self.used("connections") == 2)
        self.leave(self.connect())
        self.leave(kept.pop())
        self.expect_all_back()

    def test_owners(self):
        self.start_with(owners=2)
        clients = [self.connect() for _ in range(3)]
        for client in clients[:2]:
            client.open_owner()
        fds = [os.open("/dev/null", os.O_RDONLY)] * 5
        self.expect_over(clients[2].ask(wire.OPEN, schema.body("open"), fds), "owners")
        self.assertEqual(self.used("owners"), 2)
        self.leave(clients.pop(0))
        harness.wait_until(lambda: self.used("owners") == 1)
        clients[1].open_owner()
        os.close(fds[0])
        for client in clients:
            self.leave(client)
        self.expect_all_back()

    def test_fds(self):
        """Two a connection, ten an owner, two a ring."""
        self.start_with(fds=20)
        client = self.connect()
        owner = client.open_owner()
        ring = struct.pack("<IIQ", owner, 64, 0)
        opened = []
        while not (answer := client.ask(wire.NOTICES_OPEN, ring)).is_error:
            opened.append(answer.unpack("I")[0])
            answer.close()
        self.expect_over(answer, "fds")
        self.assertEqual((len(opened), self.used("fds")), (3, 20))
        key = os.memfd_create("key")
        self.expect_over(client.ask(wire.EXPORT, struct.pack("<II", owner, 0), [key]), "fds")
        os.close(key)
        self.assertFalse(client.ask(wire.NOTICES_CLOSE, struct.pack("<II", owner, opened[0])).is_error)
        answer = client.ask(wire.NOTICES_OPEN, ring)
        self.assertFalse(answer.is_error)
        answer.close()
        self.leave(client)
        self.expect_all_back()

    def test_a_shadow_that_is_not_needed(self):
        """Handed back to an hmmd that takes nothing over: not kept, and not charged."""
        self.start_with()
        client = self.owner_with_mirror()
        before = self.used("fds")
        for _ in range(10):
            fd = os.memfd_create("shadow")
            answer = client.ask(schema.REQUESTS["reopen_region"].opcode, schema.body("reopen_region", owner=client.owner, mirror=client.mirror), [fd])
            self.assertFalse(answer.is_error)
            os.close(fd)
        self.assertEqual(self.used("fds"), before)
        self.leave(client)
        self.expect_all_back()

    def test_requests(self):
        """Migrations of an owner whose agent does nothing wait as long as it lives."""
        self.start_with(requests=4)
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                page = mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                page[:5] = b"there"
                address = ctypes.addressof(ctypes.c_char.from_buffer(page)) & -PAGE
                client = wire.Client(self.daemon.socket)
                owner = client.open_owner()
                device = client.ask(wire.DEVICE_NEW, wire.new_device("d", caps=1)).unpack("I")[0]
                mirror = client.ask(wire.MIRROR_REGISTER, struct.pack("<IIQ", owner, device, 0)).unpack("I")[0]
                for _ in range(5):
                    client.send(wire.MIGRATE, struct.pack("<IIQQQ", mirror, 1, address, PAGE, 0))
                answer = client.receive()
                while not answer.opcode & 0x8000:
                    answer = client.receive()
                theirs.sendall(f"{answer.error} {answer.text}".encode())
                signal.pause()
            os._exit(0)
        try:
            number, _, text = ours.recv(4096).decode().partition(" ")
            self.assertEqual(int(number), errno.EDQUOT)
            self.assertIn("'requests' in [limits]", text)
            self.assertEqual(self.used("requests"), 4)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            ours.close()
            theirs.close()
        self.expect_all_back()

    def test_rings(self):
        self.start_with(rings="64K")
        client = self.connect()
        owner = client.open_owner()
        body = struct.pack("<IIQ", owner, 64, 0)
        opened = []
        while not (answer := client.ask(wire.NOTICES_OPEN, body)).is_error:
            opened.append(answer.unpack("I")[0])
            answer.close()
        self.expect_over(answer, "rings")
        self.assertGreater(len(opened), 0)
        self.assertFalse(client.ask(wire.NOTICES_CLOSE, struct.pack("<II", owner, opened[0])).is_error)
        answer = client.ask(wire.NOTICES_OPEN, body)
        self.assertFalse(answer.is_error)
        answer.close()
        self.leave(client)
        self.expect_all_back()

    def test_mirrors(self):
        self.start_with(mirrors=3)
        clients = [self.owner_with_mirror(), self.owner_with_mirror()]
        more = self.register(clients[0])
        self.assertFalse(more.is_error)
        self.expect_over(self.register(clients[1]), "mirrors")
        self.assertEqual(self.used("mirrors"), 3)
        self.assertFalse(clients[0].ask(wire.MIRROR_UNREGISTER, struct.pack("<II", more.unpack("I")[0], 0)).is_error)
        harness.wait_until(lambda: self.used("mirrors") == 2)
        self.assertFalse(self.register(clients[1]).is_error)
        for client in clients:
            self.leave(client)
        self.expect_all_back()

    def test_memory(self):
        """By the page; what does not fit stays at home, and of a program that has what it may nobody else's pages make way."""
        self.start_with(memory="4M")
        owner = self.spawn("mirror-owner", 2048)
        owner.expect("^ready ")
        owner.ask("out", "^out 1024$")
        self.expect_log("'memory' in .limits. of hmmd.conf sets the limit")
        harness.wait_until(lambda: self.used("memory") == 4 << 20)
        stats = {wire.untext(name): value for value, name in self.tool.list_stats()}
        self.assertEqual(stats["evictions"], 0)
        owner.ask("check", "^checked$")
        owner.ask("home", r"^home \d+$")
        harness.wait_until(lambda: self.used("memory") == 0)
        owner.ask("out 512", "^out 512$")
        self.assertEqual(self.used("memory"), 2 << 20)
        # A limit that was lowered takes nothing away, and one that was raised is there at once.
        for limit, answer in (("2M", "^out 512$"), ("unlimited", "^out 2048$")):
            self.write({"memory": limit})
            self.daemon.process.signal(signal.SIGHUP)
            harness.wait_until(lambda: self.usage()["memory"][1] == (2 << 20 if limit == "2M" else 0))
            owner.ask("out", answer)
        owner.ask("check", "^checked$")
        owner.finish()
        self.expect_all_back()

    def test_memory_of_an_owner_that_is_killed(self):
        self.start_with()
        owner = self.spawn("mirror-owner", 1024)
        owner.expect("^ready ")
        owner.ask("out", "^out 1024$")
        self.assertEqual(self.used("memory"), 4 << 20)
        owner.kill9()
        self.expect_all_back()

    def test_pinned(self):
        """Coherent memory, and what advice pins."""
        self.start_with(pinned="4M", memory="1G")
        client = self.owner_with_mirror()
        alloc = [struct.pack("<IIQQ", client.mirror, 0, ELSEWHERE + i * BLOCK, BLOCK) for i in range(3)]
        self.assertFalse(client.ask(wire.ALLOC, alloc[0]).is_error)
        self.assertFalse(client.ask(wire.ALLOC, alloc[1]).is_error)
        self.assertEqual((self.used("pinned"), self.used("memory")), (4 << 20, 4 << 20))
        self.expect_over(client.ask(wire.ALLOC, alloc[2]), "pinned")
        pin = struct.pack("<IIQQIIII", client.owner, 20, ELSEWHERE + (1 << 32), PAGE, client.mirror, 0, 0, 0)
        self.expect_over(client.ask(wire.ADVISE, pin), "pinned")
        share = struct.pack("<IIQQ", client.mirror, 0, ELSEWHERE + (1 << 32), BLOCK)
        self.expect_over(client.ask(wire.SHARE, share), "pinned")
        self.assertFalse(client.ask(wire.FREE, alloc[0]).is_error)
        harness.wait_until(lambda: self.used("pinned") == 2 << 20)
        self.assertFalse(client.ask(wire.ALLOC, alloc[2]).is_error)
        self.leave(client)
        self.expect_all_back()

    def test_coherent_memory_within_memory(self):
        self.start_with(memory="2M")
        client = self.owner_with_mirror()
        alloc = struct.pack("<IIQQ", client.mirror, 0, ELSEWHERE, 2 * BLOCK)
        self.expect_over(client.ask(wire.ALLOC, alloc), "memory")
        self.assertEqual((self.used("pinned"), self.used("memory")), (0, 0))
        self.leave(client)
        self.expect_all_back()

    def test_advice_that_pins(self):
        self.start_with(pinned="2M")
        owner = self.spawn("mirror-owner", 1024)
        owner.expect("^ready ")
        owner.ask("advise 20", f"^advised -{errno.EDQUOT}$")
        owner.finish()
        owner = self.spawn("mirror-owner", 512)
        owner.expect("^ready ")
        owner.ask("advise 20", "^advised 0$")
        harness.wait_until(lambda: self.used("pinned") == 2 << 20)
        owner.finish()
        self.expect_all_back()

    @unittest.skipUnless(os.getuid() == 0, "only root can become somebody else")
    def test_another_user(self):
        """He has limits of his own, and sees his own usage alone."""
        self.start_with(connections=2)
        os.chmod(self.folder, 0o711)
        os.chmod(self.daemon.socket, 0o666)
        self.connect()

        def other():
            path = os.path.basename(self.daemon.socket)
            for role in (wire.TOOL, wire.DRIVER):
                with wire.Client(path, role=role) as client:
                    assert self.usage(client, 0) == {}, "root's usage is told"
                    assert self.usage(client, 65534)["connections"] == (1, 2)

        self.as_somebody_else(other)
        harness.wait_until(lambda: self.usage(uid=65534) == {}, what="that nothing of him is left")


if __name__ == "__main__":
    harness.main()
