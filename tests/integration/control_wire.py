# SPDX-License-Identifier: GPL-2.0-or-later
"""A client of hmmd in plain Python, for tests that say what libhmmclient would never say.

It packs messages with struct, from the numbers of proto/protocol.hmm, which are never changed once given.
"""

import array
import collections
import ctypes
import fcntl
import mmap
import os
import re
import socket
import struct


import harness

HEADER = struct.Struct("<IHHII")
ERROR, HELLO, OPEN, REOPEN, REOPEN_MIRROR, REOPEN_DONE, DEVICE_NEW, DEVICE_OPEN, DEVICE_PUT = 0x8000, 1, 2, 3, 5, 6, 7, 8, 9
MIRROR_REGISTER, MIRROR_UNREGISTER, MIGRATE, DEVICE_READ, DEVICE_WRITE = 10, 11, 12, 13, 14
EXPORT, OPEN_PEER, LAYOUT, WINDOW_MAP, WINDOW_ARMED, WINDOW_UNMAP, ACK = 15, 16, 17, 18, 19, 20, 21
EXCLUDE, ADVISE, ALLOC, FREE, DRAIN, PREPARE_FORK = 22, 23, 24, 25, 26, 27
STATUS, CLIENTS, OWNERS, MIRRORS, POOLS, STATS, RANGES, CELLS, DOCTOR = 28, 29, 30, 31, 32, 33, 34, 35, 36
NOTICES_OPEN, NOTICES_CLOSE, PROTECT, FORKED, FEATURE = 58, 59, 60, 61, 64
TRACK_OPEN, DIRTY_START, DIRTY_READ, DIRTY_STOP, DIRTY_MARK = 65, 66, 67, 68, 69
MIRROR_SYNC, COPY_OPEN = 62, 63
DMA_MAP, DMA_UNMAP, DEVICE_FD = 71, 72, 73
ATTRIBUTE, ATTRIBUTES, RESTATE = 42, 43, 44
SHARE, UNSHARE, USAGE = 54, 55, 74
DEVMEM_ADD, DEVMEM_READY, DEVMEM_STORED, DEVMEM_FETCHED, DEVMEM_REMOVE = 49, 50, 51, 52, 53
EVENT_REGION, EVENT_OWNER_GONE, EVENT_SHUTDOWN = 0x4001, 0x4004, 0x4005
OWNER, DRIVER, TOOL = 1, 2, 3
VERSION = 2


def new_device(name, pool=1, node=-1, size=64 << 20, caps=0, placement=0, nodes=0, bus="", bar=0, memory_bus=""):
    """DEVICE_NEW without its header."""
    return (struct.pack("<IiQQ", pool, node, size, caps) + text(name, 64) + struct.pack("<IIQ", placement, 0, nodes) +
            text(bus, 16) + struct.pack("<I", bar) + text(memory_bus, 16) + bytes(4))


def text(value, size):
    return value.encode().ljust(size, b"\0")


def untext(data):
    return data.split(b"\0", 1)[0].decode()


BLOCK = 2 << 20
SLOTS = 4
_libc = ctypes.CDLL(None, use_errno=True)
_SYS_USERFAULTFD = 323
_USERFAULTFD_IOC_NEW = 0xAA00


def userfaultfd(device=None):
    """By hello's descriptor of /dev/userfaultfd where there is one, as libhmmclient does."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    if device is not None:
        return fcntl.ioctl(device, _USERFAULTFD_IOC_NEW, flags)
    fd = _libc.syscall(_SYS_USERFAULTFD, flags)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    return fd


class Answer:
    """A message from hmmd; close() its descriptors."""

    def __init__(self, data, fds):
        self.size, self.opcode, self.nfds, self.serial, self.reserved = HEADER.unpack_from(data)
        self.body = data[HEADER.size:]
        self.fds = list(fds)
        assert self.size == len(data) and self.nfds == len(fds) and self.reserved == 0

    @property
    def is_error(self):
        return self.opcode == ERROR

    @property
    def error(self):
        return -struct.unpack_from("<i", self.body)[0]

    @property
    def text(self):
        return untext(self.body[8:])

    def unpack(self, layout, offset=0):
        return struct.unpack_from("<" + layout, self.body, offset)

    def records(self, layout, offset=8):
        """count, more, then the records."""
        count, more = self.unpack("II")
        record = struct.Struct("<" + layout)
        assert len(self.body) == offset + count * record.size, (len(self.body), count, record.size)
        return more, [record.unpack_from(self.body, offset + i * record.size) for i in range(count)]

    def close(self):
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class Client:
    def __init__(self, path, role=OWNER, name="control-wire", hello=True):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Where many come at once it waits for room in the queue; with a timeout of Python's it would be turned away there.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(harness.scaled(20)), 0))
        self.socket.connect(path)
        self.socket.settimeout(harness.scaled(20))
        self.serial = 0
        if hello:
            answer = self.hello(role, name)
            assert not answer.is_error, answer.text
            self.version, self.uid, _, self.incarnation, self.features, self.grace_ms, _ = answer.unpack("IIQQQII")
            answer.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send_raw(self, data, fds=()):
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([data], ancillary)

    def pack(self, opcode, body=b"", fds=(), serial=None, size=None, nfds=None, reserved=0):
        if serial is None:
            self.serial += 1
            serial = self.serial
        return HEADER.pack(HEADER.size + len(body) if size is None else size, opcode,
                           len(fds) if nfds is None else nfds, serial, reserved) + body

    def send(self, opcode, body=b"", fds=(), **header):
        self.send_raw(self.pack(opcode, body, fds, **header), fds)

    def receive(self):
        """The next message, or None at the end of the connection."""
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(1 << 17, socket.CMSG_SPACE(16 * 4))
                break
            except ConnectionResetError:
                # Stands before what hmmd said earlier, and before the end.
                continue
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload[:len(payload) - len(payload) % fds.itemsize])
        return Answer(data, fds) if data else None

    def ask(self, opcode, body=b"", fds=(), **header):
        """Sends a request and returns its answer; events that come first are dropped."""
        self.send(opcode, body, fds, **header)
        while True:
            answer = self.receive()
            if answer is None or answer.opcode & 0x8000:
                return answer
            answer.close()

    def hello(self, role=OWNER, name="control-wire", low=VERSION, high=VERSION):
        return self.ask(HELLO, struct.pack("<IIQII", low, high, 0, role, 0) + text(name, 64))

    def open_owner(self):
        """Has this very process mirrored. Nothing of it may migrate: it has no agent. Returns the owner's id."""
        self.slots = mmap.mmap(-1, (SLOTS + 1) * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.slots))
        fds = [userfaultfd(), os.open("/proc/self/mem", os.O_RDWR)]
        fds += [os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("pagemap", "maps", "smaps")]
        try:
            answer = self.ask(OPEN, struct.pack("<QQIIIIQ", 0, -(-base // BLOCK) * BLOCK, SLOTS, os.getpid(), 0, 0, 0), fds)
        finally:
            for fd in fds:
                os.close(fd)
        assert not answer.is_error, answer.text
        owner = answer.unpack("I")[0]
        assert len(answer.fds) == 5
        answer.close()
        return owner

    def status(self):
        answer = self.ask(STATUS, bytes(8))
        assert not answer.is_error, answer.text
        names = ("pid uid uptime_ns incarnation features clients owners mirrors devices windows workers "
                 "device_bytes pool_bytes pool_used version socket kernel_tier").split()
        values = answer.unpack("IIQQQIIIIII") + answer.unpack("QQQ64s108sI", 56)
        status = dict(zip(names, values))
        status["version"], status["socket"] = untext(status["version"]), untext(status["socket"])
        return status

    def listed(self, opcode, layout, id_of=lambda record: record[0], first=0):
        """A whole list, asked for again from the last id on while there is more."""
        cursor, everything = first, []
        while True:
            answer = self.ask(opcode, struct.pack("<II", cursor, 0))
            assert not answer.is_error, answer.text
            more, records = answer.records(layout)
            everything += records
            if not more:
                return everything
            assert records, "more without anything"
            cursor = id_of(records[-1]) + 1

    def listed_by_index(self, opcode, layout, owner=None):
        """A list whose cursor counts records."""
        everything = []
        while True:
            cursor = (len(everything), 0) if owner is None else (owner, len(everything))
            answer = self.ask(opcode, struct.pack("<II", *cursor))
            assert not answer.is_error, answer.text
            more, records = answer.records(layout)
            everything += records
            if not more:
                return everything

    def list_stats(self, owner=0):
        """value, name"""
        return self.listed_by_index(STATS, "Q56s", owner)

    def list_findings(self):
        """severity, feature, name, text, fix"""
        return self.listed_by_index(DOCTOR, "II48s160s160s")

    def list_clients(self):
        """id, pid, uid, role, owner, mirrors, windows, fds, connected_ns, name"""
        return [record[:-1] + (untext(record[-1]),) for record in self.listed(CLIENTS, "IIIIIIIIQ64s")]

    def at_end(self):
        """True when hmmd has closed the connection; what it said before is dropped."""
        while True:
            try:
                answer = self.receive()
            except BrokenPipeError:
                return True
            if answer is None:
                return True
            answer.close()


def connect_soon(path, **options):
    """To an hmmd that is just starting: its socket is there a moment before it listens."""
    def attempt():
        try:
            return Client(path, **options)
        except (FileNotFoundError, ConnectionRefusedError):
            return None

    return harness.wait_until(attempt, what=f"that somebody answers on {path}")


SOMEBODY_ELSE = 65534


def become_somebody_else():
    os.setgroups([])
    os.setresgid(SOMEBODY_ELSE, SOMEBODY_ELSE, SOMEBODY_ELSE)
    os.setresuid(SOMEBODY_ELSE, SOMEBODY_ELSE, SOMEBODY_ELSE)


class Test(harness.Test):
    """What every test of the control room ends with: hmmd lives, and serves somebody new."""

    def setUp(self):
        super().setUp()
        self.clients = []

    def tearDown(self):
        for client in self.clients:
            client.close()
        super().tearDown()

    def connect(self, **options):
        client = Client(self.daemon.socket, **options)
        self.clients.append(client)
        return client

    def as_somebody_else(self, do):
        """do() in a child that is another user, in this test's folder: by a relative name, for the folders that lead here may be closed to him."""
        said, say = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.chdir(self.folder)
                become_somebody_else()
                do()
                os.write(say, b"good")
            except BaseException as error:
                os.write(say, repr(error).encode())
            finally:
                os._exit(0)
        os.close(say)
        self.assertEqual(os.read(said, 4096).decode(), "good")
        os.close(said)
        os.waitpid(child, 0)

    def expect_healthy(self):
        self.assertTrue(self.daemon.running, "hmmd has ended")
        with Client(self.daemon.socket, role=TOOL, name="healthy") as client:
            status = client.status()
            self.assertEqual(status["pid"], self.daemon.pid)
        return status

    def expect_log(self, pattern):
        harness.wait_until(lambda: re.search(pattern, self.daemon.log), what=f"log line '{pattern}'")

    def expect_error(self, answer, number, *words):
        self.assertIsNotNone(answer, "hmmd closed the connection instead of answering")
        self.assertTrue(answer.is_error, f"hmmd agreed: opcode {answer.opcode:#x}")
        self.assertEqual(answer.error, number, answer.text)
        for word in words:
            self.assertIn(word, answer.text)

    def expect_nothing_kept_since(self, before):
        """hmmd holds no descriptor beyond those that extra_descriptors() listed before; fewer is fine."""
        def surplus():
            return collections.Counter(self.daemon.extra_descriptors()) - collections.Counter(before)

        try:
            harness.wait_until(lambda: not surplus())
        except AssertionError:
            self.fail(f"hmmd keeps what it was sent: {dict(surplus())}")

    def expect_descriptors_back(self):
        self.daemon.expect_no_extra_descriptors()


