# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that mean harm, beside one that does not: descriptors of every kind at each message that takes one, files shrunk and punched
behind hmmd's back, another user's owners, mirrors, windows and devices by every request that names one, a pid that was somebody
else's. Each is refused, hmmd lives and keeps nothing of them, and the innocent's memory is what it was."""

import contextlib
import ctypes
import errno
import json
import mmap
import os
import re
import select
import signal
import socket
import struct
import traceback
import unittest

import control_wire as wire
import harness
import wire_schema as schema

PAGE, BLOCK = 4096, 2 << 20
PAGES = 512
SYS_PIDFD_GETFD = 438
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_ADD_SEALS = 1, 2, 4, 8, 1033
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
libc = ctypes.CDLL(None, use_errno=True)


def is_root():
    return os.getuid() == 0


def memfd(size=PAGE, seals=0):
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, size)
    if seals and libc.fcntl(fd, F_ADD_SEALS, seals) < 0:
        raise OSError(ctypes.get_errno(), "F_ADD_SEALS")
    return fd


def punch(fd, offset, length):
    """Return: 0, or what fallocate() failed with."""
    flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    return 0 if libc.fallocate64(fd, flags, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0 else ctypes.get_errno()


class Kinds:
    """A descriptor of each kind that is never what hmmd wants, but as a key; and of some that would be, of somebody else."""

    def __init__(self, folder, victim=None):
        self.fds, self.kept = {}, []
        self.add("null", os.open("/dev/null", os.O_RDWR))
        self.add("zero", os.open("/dev/zero", os.O_RDWR))
        reader, writer = os.pipe()
        self.add("pipe to read", reader)
        self.add("pipe to write", writer)
        left, right = socket.socketpair()
        self.add("socket", os.dup(left.fileno()))
        self.kept += [left, right]
        self.add("eventfd", os.eventfd(0))
        self.kept.append(select.epoll())
        self.add("epoll", os.dup(self.kept[-1].fileno()))
        self.add("pidfd", os.pidfd_open(os.getpid()))
        self.add("memfd", memfd())
        self.add("memfd, sealed", memfd(PAGE, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE))
        self.add("memfd, short", memfd(100))
        self.add("memfd, empty", memfd(0))
        self.add("memfd, huge", memfd(1 << 40))
        self.add("folder", os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
        self.add("path", os.open(folder, os.O_PATH))
        self.add("file", os.open(folder, os.O_TMPFILE | os.O_RDWR))
        fifo = os.path.join(folder, f"fifo-{os.getpid()}")
        os.mkfifo(fifo)
        self.add("fifo", os.open(fifo, os.O_RDWR))
        self.add("cmdline", os.open("/proc/self/cmdline", os.O_RDONLY))
        if victim:
            for name, flags in (("mem", os.O_RDWR), ("maps", os.O_RDONLY)):
                self.add(f"another's {name}", os.open(f"/proc/{victim}/{name}", flags))

    def add(self, name, fd):
        self.fds[name] = fd

    def close(self):
        for fd in self.fds.values():
            os.close(fd)
        for one in self.kept:
            one.close()


class Hostile(wire.Test):
    def setUp(self):
        super().setUp()
        self.children = []
        os.chmod(self.folder, 0o711)
        self.start_daemon("--log", "debug", "--tracking", self.tracking)
        # Whoever comes, comes in: it is not the socket that is tried here.
        os.chmod(self.daemon.socket, 0o666)
        self.innocent = self.spawn("mirror-owner", PAGES)
        self.innocent.expect("^ready ")
        self.innocent.ask(f"out {PAGES // 2}", f"^out {PAGES // 2}$")
        self.tool = self.connect(role=wire.TOOL)
        self.kept_before = self.daemon.extra_descriptors()

    tracking = "auto"

    def tearDown(self):
        # They have copies of the pipes that the innocent reads its end from.
        for child in self.children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if self.daemon.running:
            self.innocent.ask("check", "^checked$")
            self.innocent.finish()
            self.expect_healthy()
        super().tearDown()

    def innocents(self):
        """Its owner's id, its mirror's, its device's."""
        owners = [record[0] for record in self.tool.listed(wire.OWNERS, "IIIIQQQQQQ64s") if record[1] == self.innocent.pid]
        self.assertEqual(len(owners), 1)
        mirrors = [record for record in self.tool.listed(wire.MIRRORS, "IIIIQQQIi64s64sQ") if record[1] == owners[0]]
        return owners[0], mirrors[0][0], mirrors[0][2]

    def as_another(self, function):
        """Runs it in a process of another uid (of this one, where that can't be); returns what it returned."""
        said, say = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                # By a relative name: the folders that lead here may be closed to others.
                os.chdir(self.folder)
                path = os.path.basename(self.daemon.socket)
                if is_root():
                    wire.become_somebody_else()
                    libc.prctl(4, 1, 0, 0, 0)       # PR_SET_DUMPABLE: its own files of /proc are its own
                os.write(say, json.dumps(["good", function(path)]).encode())
                status = 0
            except BaseException:
                os.write(say, json.dumps(["failed", traceback.format_exc()]).encode())
            finally:
                os._exit(status)
        os.close(say)
        with open(said, "rb") as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        how, what = json.loads(text or b'["failed", "it died"]')
        self.assertEqual(how, "good", what)
        return what


def same_words(answer):
    """What an answer says, whatever number it names."""
    return [answer.error, re.sub(r"\d+", "N", answer.text)] if answer.is_error else [0, "agreed"]


class Descriptors(Hostile):
    """Every message that takes descriptors, with a wrong one of every kind at each place."""

    def good(self, name):
        """What belongs at each place, of this process; of REOPEN's last five there is nothing good."""
        proc = [os.open("/proc/self/mem", os.O_RDWR)] + [os.open(f"/proc/self/{file}", os.O_RDONLY) for file in ("pagemap", "maps", "smaps")]
        if name == "open":
            return [wire.userfaultfd(), *proc]
        if name == "reopen":
            return [wire.userfaultfd(), *proc, *[memfd() for _ in range(4)], os.eventfd(0)]
        for fd in proc:
            os.close(fd)
        if name == "window_map" or name == "track_open":
            return [wire.userfaultfd()]
        return [memfd()]

    def test_each_kind_at_each_place(self):
        owner, mirror, _ = self.innocents()
        slots = mmap.mmap(-1, 5 * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = self.base_of(slots)
        kinds = Kinds(self.folder, self.innocent.pid if is_root() else None)
        kinds.add("another's userfaultfd", self.anothers_userfaultfd(slots))
        kinds.add("a userfaultfd that is in use", used := wire.userfaultfd())
        libc.ioctl(used, 0xC018AA3F, (ctypes.c_uint64 * 3)(0xAA, 0, 0))
        client = self.connect()
        mine = client.open_owner()
        answer = client.ask(wire.DEVICE_NEW, wire.new_device("hostile"))
        device = answer.unpack("I")[0]
        answer = client.ask(wire.MIRROR_REGISTER, struct.pack("<IIQ", mine, device, 0))
        my_mirror = answer.unpack("I")[0]
        values = {
            "open": dict(slots_addr=base, slots_count=4, agent_tid=os.getpid()),
            "reopen": dict(owner=owner, slots_addr=base, slots_count=4),
            "reopen_region": dict(owner=mine, mirror=my_mirror, base=1 << 30),
            "export": dict(owner=mine),
            "open_peer": {},
            "window_map": dict(mirror=my_mirror, at=1 << 45),
            "track_open": dict(owner=mine),
        }
        takers = {name for name, message in schema.REQUESTS.items() if message.fds[1]}
        self.assertEqual(takers, set(values), "a message that takes descriptors is not tried here")
        tried = 0
        before = self.daemon.extra_descriptors()
        for name in sorted(takers):
            body = schema.body(name, **values[name])
            for place in range(schema.REQUESTS[name].fds[1]):
                for kind, wrong in kinds.fds.items():
                    if self.is_good(name, place, kind):
                        continue
                    with self.subTest(f"{name}[{place}] = {kind}"):
                        fds = self.good(name)
                        sent = fds[:place] + [wrong] + fds[place + 1:]
                        answer = client.ask(schema.REQUESTS[name].opcode, body, sent)
                        for fd in fds:
                            os.close(fd)
                        tried += 1
                        self.assertIsNotNone(answer, "hmmd hung up instead of answering")
                        answer.close()
                        # Of an owner that is not being taken over a shadow is not needed, and not looked at.
                        if name != "reopen_region":
                            self.assertTrue(answer.is_error, "hmmd took it")
                            self.assertTrue(answer.text)
        print(f"{tried} wrong descriptors")
        self.assertGreaterEqual(tried, 300)
        self.expect_nothing_kept_since(before)
        self.assertEqual(client.status()["owners"], 2)
        client.close()
        kinds.close()

    def is_good(self, name, place, kind):
        """What hmmd may well take: the files of another process of this user say nothing that this one could not say."""
        if name == "export":
            return kind.startswith("memfd")
        if name in ("window_map", "track_open"):
            return kind == "another's userfaultfd"
        return False

    def anothers_userfaultfd(self, without=None):
        """Of a process that has the same memory as this one; but for a mapping."""
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                libc.prctl(1, signal.SIGKILL, 0, 0, 0)
                fd = wire.userfaultfd()
                if without:
                    without.close()
                os.write(tell, struct.pack("<i", fd))
                signal.pause()
            os._exit(0)
        self.children.append(child)
        os.close(tell)
        number = struct.unpack("<i", os.read(told, 4))[0]
        os.close(told)
        pidfd = os.pidfd_open(child)
        fd = libc.syscall(SYS_PIDFD_GETFD, pidfd, number, 0)
        self.assertGreaterEqual(fd, 0)
        os.close(pidfd)
        return fd

    def base_of(self, slots):
        view = ctypes.c_char.from_buffer(slots)
        return -(-ctypes.addressof(view) // BLOCK) * BLOCK

    def test_a_twins_userfaultfd(self):
        """A child's, whose memory looks the same: hmmd can't tell, and what comes of it is the two's own."""
        slots = mmap.mmap(-1, 5 * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page = mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page[:5] = b"right"
        client = self.connect()
        fds = [self.anothers_userfaultfd(), *self.good("open")[1:]]
        answer = client.ask(wire.OPEN, schema.body("open", slots_addr=self.base_of(slots), slots_count=4, agent_tid=os.getpid()), fds)
        for fd in fds:
            os.close(fd)
        if not answer.is_error:
            answer.close()
            owner = answer.unpack("I")[0]
            device = client.ask(wire.DEVICE_NEW, wire.new_device("hostile")).unpack("I")[0]
            mirror = client.ask(wire.MIRROR_REGISTER, struct.pack("<IIQ", owner, device, 0)).unpack("I")[0]
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            read = client.ask(wire.DEVICE_READ, struct.pack("<IIQ", mirror, 5, address))
            self.assertTrue(read.is_error or read.body[8:13] == b"right")
            # Nobody carries out what hmmd orders: the answer may never come.
            client.send(wire.MIGRATE, struct.pack("<IIQQQ", mirror, 1, address & -PAGE, PAGE, 0))
        os.kill(self.children[-1], signal.SIGKILL)
        os.waitpid(self.children.pop(), 0)
        client.close()
        self.clients.remove(client)
        harness.wait_until(lambda: self.tool.status()["owners"] == 1, what="that it is gone")
        self.expect_nothing_kept_since(self.kept_before)

    def test_counts_that_lie(self):
        """Said and sent differ, for each message that takes some."""
        null = os.open("/dev/null", os.O_RDWR)
        for name, message in schema.REQUESTS.items():
            if not message.fds[1]:
                continue
            low, high = message.fds
            for said, sent in ((0, high), (high, 0), (high, high - 1), (high, high + 1), (0xFFFF, high), (low, 16)):
                if said == sent:
                    continue
                with self.subTest(f"{name}: {said} said, {sent} sent"):
                    client = self.connect()
                    client.send(message.opcode, schema.body(name), [null] * sent, nfds=said)
                    self.assertTrue(client.at_end())
                    client.close()
                    self.clients.remove(client)
        os.close(null)
        self.expect_nothing_kept_since(self.kept_before)


class Files(Hostile):
    """What hmmd hands out, or was given, in hands that shrink, grow, punch, seal and write."""

    def expect_sealed(self, fd, writable, what):
        with self.subTest(what):
            size = os.fstat(fd).st_size
            for wanted in (0, max(size - PAGE, 0), size + PAGE):
                with self.assertRaises(OSError) as caught:
                    os.ftruncate(fd, wanted)
                self.assertIn(caught.exception.errno, (errno.EPERM, errno.EINVAL))
            self.assertNotEqual(libc.fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0, "it can be sealed against hmmd")
            if writable:
                self.assertEqual(punch(fd, 0, size), 0)
            else:
                self.assertNotEqual(punch(fd, 0, size), 0)
                with self.assertRaises(OSError):
                    os.pwrite(fd, b"x", 0)

    def test_what_hmmd_hands_out(self):
        client = self.connect()
        self.slots = mmap.mmap(-1, 5 * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = -(-ctypes.addressof(ctypes.c_char.from_buffer(self.slots)) // BLOCK) * BLOCK
        fds = [wire.userfaultfd(), os.open("/proc/self/mem", os.O_RDWR)]
        fds += [os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("pagemap", "maps", "smaps")]
        opened = client.ask(wire.OPEN, schema.body("open", slots_addr=base, slots_count=4, agent_tid=os.getpid()), fds)
        self.assertFalse(opened.is_error)
        owner = opened.unpack("I")[0]
        for fd, writable, what in zip(opened.fds, (False, False, True, True), ("table", "ledger", "orders", "pulse")):
            self.expect_sealed(fd, writable, what)
        # Orders that nobody gave, and a bell that rings without end.
        for value in (0, 1, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1):
            os.pwrite(opened.fds[2], struct.pack("<Q", value) * 512, 0)
            with contextlib.suppress(BlockingIOError):
                os.write(opened.fds[4], struct.pack("<Q", (1 << 64) - 2))
            client.status()
        ring = client.ask(wire.NOTICES_OPEN, struct.pack("<IIQ", owner, 64, 0))
        self.expect_sealed(ring.fds[0], False, "ring of notices")
        self.expect_sealed(ring.fds[1], True, "reader's page")
        ring.close()
        key = memfd()
        self.assertFalse(client.ask(wire.EXPORT, struct.pack("<II", owner, 0), [key]).is_error)
        peer = client.ask(wire.OPEN_PEER, bytes(8), [key])
        self.expect_sealed(peer.fds[0], False, "table, of a driver")
        self.expect_sealed(peer.fds[1], False, "pulse, of a driver")
        # A key is what it is, not what is in it.
        os.ftruncate(key, 0)
        peer.close()
        again = client.ask(wire.OPEN_PEER, bytes(8), [key])
        self.assertFalse(again.is_error)
        again.close()
        opened.close()
        for fd in [*fds, key]:
            os.close(fd)
        client.close()

    @unittest.skipUnless(is_root(), "only root can become somebody else")
    def test_what_is_read_only_stays_so(self):
        """By /proc/self/fd somebody else opens nothing for writing that was handed out for reading."""
        def try_it(path):
            with wire.Client(path) as client:
                slots = mmap.mmap(-1, 5 * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                base = -(-ctypes.addressof(ctypes.c_char.from_buffer(slots)) // BLOCK) * BLOCK
                fds = [os.open("/proc/self/mem", os.O_RDWR)] + [os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("pagemap", "maps", "smaps")]
                hello = wire.Client(path, hello=False)
                device = hello.hello().fds
                uffd = wire.userfaultfd(device[0] if device else None)
                opened = client.ask(wire.OPEN, schema.body("open", slots_addr=base, slots_count=4, agent_tid=os.getpid()), [uffd, *fds])
                assert not opened.is_error, opened.text
                said = []
                for fd in opened.fds[:2]:
                    try:
                        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
                        said.append(0)
                    except OSError as error:
                        said.append(error.errno)
                return said
        self.assertEqual(self.as_another(try_it), [errno.EACCES, errno.EACCES])

    def test_a_key_that_was_sealed_or_shrunk(self):
        client = self.connect()
        owner = client.open_owner()
        for key in (memfd(0), memfd(PAGE, F_SEAL_SEAL | F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW), memfd(1 << 40)):
            self.assertFalse(client.ask(wire.EXPORT, struct.pack("<II", owner, 0), [key]).is_error)
            answer = client.ask(wire.OPEN_PEER, bytes(8), [key])
            self.assertFalse(answer.is_error)
            answer.close()
            os.close(key)
        client.close()

    def test_files_to_take_over_that_shrink(self):
        """REOPEN with files as an earlier hmmd would have made them, but that can shrink, or have shrunk, or were sealed by somebody else."""
        client = self.connect()
        slots = mmap.mmap(-1, 5 * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = -(-ctypes.addressof(ctypes.c_char.from_buffer(slots)) // BLOCK) * BLOCK
        opened = client.open_owner()
        del opened
        for size in (0, PAGE, 1 << 20, 1 << 40):
            for seals in (0, F_SEAL_GROW, F_SEAL_SEAL):
                with self.subTest(size=size, seals=seals):
                    proc = [os.open("/proc/self/mem", os.O_RDWR)] + [os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("pagemap", "maps", "smaps")]
                    fds = [wire.userfaultfd(), *proc, *[memfd(size, seals) for _ in range(4)], os.eventfd(0)]
                    answer = client.ask(wire.REOPEN, schema.body("reopen", owner=77, slots_addr=base, slots_count=4), fds)
                    for fd in fds:
                        os.close(fd)
                    self.expect_error(answer, errno.EBADF)
        client.close()


class Handles(Hostile):
    """What belongs to another uid, by each request that names it: refused, as what does not exist is."""

    # field of the first handle -> how a number of an owner's becomes one of its, and what is not there
    FORMS = {"owner": lambda owner: owner, "mirror": lambda owner: owner << 8, "window": lambda owner: owner << 16 | 1,
             "cookie": lambda owner: owner << 48 | 1}
    # Which devices there are is no secret, and any user's owner may be mirrored on one: see test_devices.
    PUBLIC = {"device"}
    # No handle: what it names of an owner is looked for among what this hmmd does not have.
    UNANSWERED = {"ack"}

    def naming(self):
        """(request, its first handle's field) of each request that names one."""
        for name, message in sorted(schema.REQUESTS.items()):
            fields = [field.name for field in message.fields if field.name in self.FORMS]
            if fields:
                yield name, "mirror" if "mirror" in fields and "owner" not in fields else fields[0]

    def test_every_request(self):
        owner, _, device = self.innocents()
        requests = list(self.naming())
        self.assertGreaterEqual(len(requests), 45)

        def try_all(path):
            said = {}
            fds = [os.open("/dev/null", os.O_RDWR)] * 10
            for role in (wire.OWNER, wire.DRIVER, wire.TOOL):
                with wire.Client(path, role=role) as client:
                    for name, field in requests:
                        message = schema.REQUESTS[name]
                        for whose, number in (("another's", owner), ("nobody's", owner + 4000)):
                            values = {field: self.FORMS[field](number)}
                            if "device" in (one.name for one in message.fields if one.kind == "scalar"):
                                values["device"] = device
                            if name == "restate" or name == "reopen_done":
                                values["count"] = 0
                            body = schema.body(name, **values)
                            if name in self.UNANSWERED:
                                client.send(message.opcode, body, serial=0)
                                continue
                            answer = client.ask(message.opcode, body, fds[:message.fds[0]])
                            assert answer is not None, f"hmmd hung up on {name}"
                            answer.close()
                            said[f"{role} {name} {whose}"] = same_words(answer)
            return said

        said = self.as_another(try_all)
        for key, words in said.items():
            if not key.endswith(" another's"):
                continue
            with self.subTest(key):
                self.assertEqual(words, said[key.replace("another's", "nobody's")], "who asks can tell whether it is there")
                self.assertNotEqual(words[0], 0, "it was done")
                if not key.split()[1] == "reopen":
                    self.assertEqual(words[0], errno.EPERM, words[1])
        print(f"{len(said) // 2} requests for what is another's")
        self.assertGreaterEqual(len(said) // 2, 3 * 45)

    def test_with_an_owner_of_its_own(self):
        """The first handle is its own, the second another's mirror."""
        owner, mirror, _ = self.innocents()

        def try_all(path):
            said = {}
            with wire.Client(path) as client:
                hello = wire.Client(path, hello=False)
                device = hello.hello().fds
                mine = self.open_owner_with(client, wire.userfaultfd(device[0] if device else None))
                for name in ("advise", "dirty_start", "reopen_mirror", "reopen_region"):
                    message = schema.REQUESTS[name]
                    for whose, number in (("another's", mirror), ("nobody's", (owner + 4000) << 8)):
                        # Advice about a device: PREFERRED_LOCATION.
                        extra = {"advice": 3} if name == "advise" else {}
                        body = schema.body(name, owner=mine, mirror=number, **extra)
                        answer = client.ask(message.opcode, body, [memfd()] * message.fds[0])
                        said[f"{name} {whose}"] = same_words(answer)
            return said

        said = self.as_another(try_all)
        for key, words in said.items():
            if key.endswith(" another's") and not key.startswith("reopen_region"):
                with self.subTest(key):
                    self.assertEqual(words, said[key.replace("another's", "nobody's")])
                    self.assertNotEqual(words[0], 0)

    @staticmethod
    def open_owner_with(client, uffd):
        client.slots = mmap.mmap(-1, 5 * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = -(-ctypes.addressof(ctypes.c_char.from_buffer(client.slots)) // BLOCK) * BLOCK
        fds = [uffd, os.open("/proc/self/mem", os.O_RDWR)] + [os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("pagemap", "maps", "smaps")]
        answer = client.ask(wire.OPEN, schema.body("open", slots_addr=base, slots_count=4, agent_tid=os.getpid()), fds)
        assert not answer.is_error, answer.text
        return answer.unpack("I")[0]

    @unittest.skipUnless(is_root(), "only root can become somebody else")
    def test_devices(self):
        """Another's device may be looked up; its memory and its card are its maker's."""
        _, _, device = self.innocents()

        def try_all(path):
            with wire.Client(path, role=wire.DRIVER) as client:
                return {name: same_words(client.ask(schema.REQUESTS[name].opcode, schema.body(name, device=device, **values)))
                        for name, values in (("device_put", {}), ("device_fd", {}), ("devmem_add", {"pool": 1 << 30}),
                                             ("devmem_remove", {}))}

        said = self.as_another(try_all)
        for name in ("devmem_add", "devmem_remove"):
            self.assertEqual(said[name][0], errno.EPERM, said)
        self.assertNotEqual(said["device_fd"][0], 0)
        # To put what one did not make is nothing but good manners.
        self.assertEqual(said["device_put"][0], 0)
        self.assertEqual(self.innocents()[2], device)


class Pids(Hostile):
    """A pid is a number; whom it means is decided by a pidfd."""

    def test_a_connection_ends_with_who_made_it(self):
        """Though a child of his, or whoever he gave it to, holds it still."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                client = wire.Client(self.daemon.socket)
                client.open_owner()
                socket.send_fds(theirs, [b"x"], [client.socket.fileno()])
                theirs.recv(1)
            os._exit(0)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        with socket.socket(fileno=fds[0]) as held:
            held.settimeout(harness.scaled(20))
            ours.send(b"x")
            os.waitpid(child, 0)
            with contextlib.suppress(ConnectionResetError):
                while held.recv(1 << 17):
                    pass
        ours.close()
        theirs.close()
        harness.wait_until(lambda: self.tool.status()["owners"] == 1, what="that its owner is gone")

    @unittest.skipUnless(is_root() and os.access("/proc/sys/kernel/ns_last_pid", os.W_OK), "needs root and CONFIG_CHECKPOINT_RESTORE")
    @unittest.skipUnless(hasattr(os, "pidfd_open"), "needs pidfds")
    def test_a_pid_that_is_somebody_elses_by_now(self):
        """One connects and dies before hmmd has looked at him; the next process has his number; a third holds the connection."""
        probe = socket.socketpair()
        try:
            probe[0].getsockopt(socket.SOL_SOCKET, 77)
        except OSError:
            self.skipTest("the kernel tells no peer's pidfd (Linux 6.5 does)")
        finally:
            for one in probe:
                one.close()
        with harness.stopped(self.daemon.pid):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            first = os.fork()
            if first == 0:
                with contextlib.suppress(BaseException):
                    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                        connection.connect(self.daemon.socket)
                        socket.send_fds(theirs, [b"x"], [connection.fileno()])
                os._exit(0)
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
            os.waitpid(first, 0)
            victim = self.fork_as(first)
        self.children.append(victim)
        self.assertEqual(victim, first, "the number was not to be had again")
        with socket.socket(fileno=fds[0]) as held:
            held.settimeout(harness.scaled(20))
            with contextlib.suppress(BrokenPipeError):
                held.send(wire.Client.pack(type("Serial", (), {"serial": 0})(), wire.HELLO,
                                           struct.pack("<IIQII", 1, 1, 0, wire.OWNER, 0) + wire.text("ghost", 64)))
            # What was said is heard, and that is all: the connection does not live on the victim's life.
            with contextlib.suppress(ConnectionResetError):
                while held.recv(1 << 17):
                    pass
        self.assertNotIn(victim, [client[1] for client in self.tool.list_clients()])
        ours.close()
        theirs.close()

    def fork_as(self, wanted):
        """A process with that number, if nobody is faster a hundred times."""
        for _ in range(100):
            with open("/proc/sys/kernel/ns_last_pid", "w") as file:
                file.write(str(wanted - 1))
            child = os.fork()
            if child == 0:
                libc.prctl(1, signal.SIGKILL, 0, 0, 0)
                while True:
                    signal.pause()
            if child == wanted:
                return child
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return child


class Floods(Hostile):
    """Who floods hmmd is served as far as it goes, and so is everybody else; how fast is bench/flood.c's matter."""

    ROUNDS = 10

    def requests_whose_answers_are_not_read(self, path, count):
        client = wire.Client(path, role=wire.DRIVER)
        client.socket.setblocking(False)
        message = client.pack(wire.DOCTOR, bytes(8))
        while True:
            try:
                client.send_raw(message)
                count()
            except BlockingIOError:
                select.select([], [client.socket], [], 0.01)

    def requests_that_are_refused(self, path, count):
        with wire.Client(path, role=wire.DRIVER) as client:
            while True:
                answer = client.ask(wire.MIGRATE, schema.body("migrate", mirror=1 << 8))
                count(answer.error == errno.EPERM)

    def half_messages(self, path, count):
        while True:
            with wire.Client(path) as client:
                client.send_raw(client.pack(wire.STATUS, bytes(8))[:20])
                count()

    def connections(self, path, count):
        while True:
            with wire.Client(path, hello=False):
                count()

    def more_connections_than_there_may_be(self, path, count):
        kept = []
        while True:
            client = wire.Client(path, hello=False)
            count()
            if len(kept) < 1000:
                kept.append(client)
            else:
                client.close()

    def flood(self, how, counters, index):
        """A process of another uid that does it without end."""
        child = os.fork()
        if child:
            self.children.append(child)
            return
        with contextlib.suppress(BaseException):
            libc.prctl(1, signal.SIGKILL, 0, 0, 0)
            os.chdir(self.folder)
            path = os.path.basename(self.daemon.socket)
            if is_root():
                wire.become_somebody_else()

            def count(good=True):
                counters[index] += good

            while True:
                # Over quota it is turned away, and comes again.
                with contextlib.suppress(OSError, AssertionError, AttributeError):
                    how(path, count)
        os._exit(1)

    def test_the_innocent_is_served(self):
        kinds = (self.requests_whose_answers_are_not_read, self.requests_that_are_refused, self.half_messages, self.connections,
                 self.more_connections_than_there_may_be)
        shared = mmap.mmap(-1, PAGE)
        counters = (ctypes.c_uint64 * len(kinds)).from_buffer(shared)
        for index, kind in enumerate(kinds):
            self.flood(kind, counters, index)
        harness.wait_until(lambda: all(counters), 30, "that every flood has begun")
        served = 0
        for _ in range(self.ROUNDS):
            self.innocent.ask(f"out {PAGES}", f"^out {PAGES}$")
            self.innocent.ask("check", "^checked$")
            self.assertEqual(self.tool.status()["owners"], 1)
            served += 1
        self.assertEqual(served, self.ROUNDS)
        with wire.Client(self.daemon.socket) as newcomer:
            newcomer.status()
        for child in self.children:
            self.assertEqual(os.waitpid(child, os.WNOHANG), (0, 0), "a flooder has ended")
        print(f"{served} rounds beside {list(counters)} of {[kind.__name__ for kind in kinds]}")
        while self.children:
            child = self.children.pop()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        harness.wait_until(lambda: self.tool.status()["clients"] == 2, 20, "that they are gone")
        self.expect_nothing_kept_since(self.kept_before)
        del counters


if __name__ == "__main__":
    harness.main()
