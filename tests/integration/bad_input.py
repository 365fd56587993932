# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a client says, hmmd answers clearly or hangs up with a line in its log, keeps no descriptor of it,
and goes on serving everybody else."""

import errno
import os
import select
import signal
import socket
import struct
import tempfile
import threading
import unittest

import control_wire as wire
import harness

PAGE = 4096
KERNEL_HALF = 0xFFFF800000000000
WIRE_MAX = 65536 + 1024


class Messages(wire.Test):
    """Messages that are no messages: the connection ends, with a reason in the log. Others: an error, and on it goes."""

    def setUp(self):
        super().setUp()
        self.start_daemon("--log", "debug")

    def tearDown(self):
        if self.daemon.running:
            self.expect_healthy()
        super().tearDown()

    def expect_hang_up(self, client, log):
        self.assertTrue(client.at_end())
        self.expect_log(log)

    def test_cut_short(self):
        for size in range(1, wire.HEADER.size):
            client = self.connect()
            client.send_raw(client.pack(wire.STATUS, bytes(8))[:size])
            self.expect_hang_up(client, "broken header")

    def test_cut_short_behind_the_header(self):
        for cut in (1, 7, 8):
            client = self.connect()
            client.send_raw(client.pack(wire.STATUS, bytes(8))[:-cut])
            self.expect_hang_up(client, "disconnected: its message")

    def test_short_but_honest(self):
        client = self.connect()
        client.send(wire.STATUS, bytes(4))
        self.expect_hang_up(client, r"\(status, 20 bytes\) cannot be understood")

    def test_longer_than_it_says(self):
        client = self.connect()
        client.send_raw(client.pack(wire.STATUS, bytes(8)) + bytes(8))
        self.expect_hang_up(client, "broken header")

    def test_too_long_for_its_kind(self):
        client = self.connect()
        client.send(wire.STATUS, bytes(16))
        self.expect_hang_up(client, r"\(status, 32 bytes\) cannot be understood")

    def test_longer_than_any(self):
        for size in (WIRE_MAX + 1, 150000):
            client = self.connect()
            client.send(wire.STATUS, bytes(size - wire.HEADER.size))
            self.expect_hang_up(client, f"longer than {WIRE_MAX} bytes")

    def test_nothing_at_all(self):
        client = self.connect()
        client.send_raw(b"")
        self.assertTrue(client.at_end())

    def test_unknown_request(self):
        client = self.connect()
        for opcode in (0, 39, 999, 0x3FFF):
            self.expect_error(client.ask(opcode, bytes(8)), errno.EOPNOTSUPP, f"message {opcode}")
        client.status()

    def test_what_only_hmmd_says(self):
        for opcode in (wire.ERROR, 0x8001, wire.EVENT_REGION, 0x7FFF, 0xFFFF):
            client = self.connect()
            client.send(opcode, bytes(248))
            self.expect_hang_up(client, "cannot be understood")

    def test_reserved_bits_of_the_header(self):
        client = self.connect()
        client.send(wire.STATUS, bytes(8), reserved=0x10)
        self.expect_hang_up(client, "reserved bits")

    def test_request_without_a_serial(self):
        client = self.connect()
        client.send(wire.STATUS, bytes(8), serial=0)
        self.expect_hang_up(client, "serial is 0")

    def test_padding_that_is_not_zero(self):
        client = self.connect()
        self.expect_error(client.ask(wire.STATUS, struct.pack("<Q", 1 << 63)), errno.EINVAL, "status: ")
        client.status()

    def test_unknown_flags_and_values(self):
        client = self.connect()
        migrate = struct.pack("<IIQQQ", 256, 1, PAGE, PAGE, 1 << 40)
        self.expect_error(client.ask(wire.MIGRATE, migrate), errno.EINVAL, "migrate: ")
        migrate = struct.pack("<IIQQQ", 256, 99, PAGE, PAGE, 0)
        self.expect_error(client.ask(wire.MIGRATE, migrate), errno.EINVAL, "migrate: ")
        self.expect_error(client.ask(wire.DEVICE_NEW, wire.new_device("gpu", pool=99)), errno.EINVAL, "device_new: ")
        client.status()

    def test_placements(self):
        """What the library asks of its own caller is asked here of whoever speaks."""
        client = self.connect()
        for placement, node, nodes, said in ((4, 0, 0, "device_new: "), (1, -1, 0, "needs a memory node"), (1, 0, 1, "both name"),
                                             (0, -1, 1, "go with a placement"), (1, -2, 0, "0 to 1023"), (2, 1024, 0, "0 to 1023"),
                                             (3, -1, 1 << 63, "memory node 63"), (1, 2147483647, 0, "0 to 1023")):
            device = wire.new_device("gpu", node=node, size=2 << 20, placement=placement, nodes=nodes)
            self.expect_error(client.ask(wire.DEVICE_NEW, device), errno.EINVAL, said)
        client.status()

    def test_a_card_as_memory(self):
        """Of kind vfio (5): what it needs, and what it cannot be."""
        client = self.connect()
        card = "0000:00:04.0"
        for error, said, how in ((errno.EINVAL, "say which card", {"bus": ""}),
                                 (errno.EINVAL, "it goes with faults", {"caps": 0}),
                                 (errno.EINVAL, "it goes with faults", {"caps": 1 | 4}),
                                 (errno.EINVAL, "it goes with faults", {"caps": 1 | 8}),
                                 (errno.EINVAL, "node is -1", {"node": 0}),
                                 (errno.EINVAL, "node is -1", {"placement": 3, "nodes": 1}),
                                 (errno.ENOSPC, "no BAR has", {"size": 1 << 60}),
                                 (errno.EINVAL, "is no PCI address", {"bus": "4.0"}),
                                 (errno.EINVAL, "is no PCI address", {"bus": "0000:00:99.0"}),
                                 (errno.ENODEV, "there is no PCI device ffff:ff:1f.7", {"bus": "ffff:ff:1f.7"}),
                                 (errno.EINVAL, "with another card", {"bus": "", "memory_bus": card, "caps": 4}),
                                 (errno.EINVAL, "its own BAR", {"memory_bus": card, "caps": 4}),
                                 (errno.EINVAL, "a pool of kind vfio", {"memory_bus": card, "caps": 4, "pool": 1}),
                                 (errno.EINVAL, "goes with dma", {"memory_bus": "0000:00:05.0"}),
                                 (errno.EOPNOTSUPP, "cannot retry", {"memory_bus": "0000:00:05.0", "caps": 5}),
                                 (errno.ENODEV, "there is no PCI device ffff:ff:1f.7",
                                  {"bus": "ffff:ff:1f.7", "memory_bus": card, "caps": 4})):
            device = wire.new_device("gpu", **{"pool": 5, "caps": 1, "bus": card, **how})
            self.expect_error(client.ask(wire.DEVICE_NEW, device), error, said)
        client.status()

    def test_text_that_is_none(self):
        for name in (b"x" * 64, b"a\0b" + bytes(61), b"caf\xc3\xa9" + bytes(59), b"a\nb" + bytes(61)):
            client = self.connect(hello=False)
            body = struct.pack("<IIQII", 1, 1, 0, wire.TOOL, 0) + name
            self.expect_error(client.ask(wire.HELLO, body), errno.EINVAL, "hello: ")

    def test_tail_that_lies(self):
        for count, data in ((100, 10), (10, 100), (0xFFFFFFFF, 8), (0xFFFFFFF8, 0)):
            client = self.connect()
            client.send(wire.DEVICE_WRITE, struct.pack("<IIQ", 256, count, PAGE) + bytes(data))
            self.expect_hang_up(client, r"\(device_write, \d+ bytes\) cannot be understood")

    def test_ranges(self):
        client = self.connect()
        bad = {
            "unaligned start": (PAGE + 1, PAGE),
            "unaligned length": (PAGE, 100),
            "empty": (PAGE, 0),
            "longer than a request may be": (PAGE, (64 << 20) + PAGE),
            "wrapping": (0xFFFFFFFFFFFFF000, 2 * PAGE),
            "in the kernel half": (KERNEL_HALF, PAGE),
            "across the end of user memory": ((1 << 47) - PAGE, 2 * PAGE),
        }
        for name, (start, length) in bad.items():
            with self.subTest(name):
                body = struct.pack("<IIQQQ", 256, 1, start, length, 0)
                self.expect_error(client.ask(wire.MIGRATE, body), errno.EINVAL, "migrate: ")
        client.status()

    def test_other_requests_with_ranges(self):
        client = self.connect()
        for opcode in (wire.EXCLUDE, wire.ADVISE, wire.ALLOC, wire.FREE, wire.CELLS, wire.ATTRIBUTE, wire.MIRROR_SYNC,
                       wire.DIRTY_MARK, wire.DMA_MAP):
            for start, length in ((1, PAGE), (PAGE, 0), (KERNEL_HALF, PAGE), (0xFFFFFFFFFFFFF000, 2 * PAGE)):
                with self.subTest(opcode=opcode, start=start):
                    body = struct.pack("<IIQQ", 1, 1, start, length)
                    if opcode in (wire.ALLOC, wire.FREE, wire.ATTRIBUTE, wire.DIRTY_MARK):
                        body = struct.pack("<IIQQ", 1, 0, start, length)
                    if opcode == wire.ADVISE:
                        body += bytes(16)
                    if opcode == wire.DMA_MAP:
                        body += struct.pack("<QQII", PAGE, 2 * PAGE, 0, 0)
                    self.expect_error(client.ask(opcode, body), errno.EINVAL)
        client.status()

    def test_random_bytes(self):
        """Valid requests with bytes changed, cut or added, and descriptors that nobody asked for."""
        requests = [(wire.STATUS, bytes(8)), (wire.CLIENTS, bytes(8)), (wire.DOCTOR, bytes(8)),
                    (wire.DEVICE_OPEN, wire.text("x", 64)), (wire.DRAIN, bytes(8)), (wire.ACK, bytes(16)),
                    (wire.MIGRATE, struct.pack("<IIQQQ", 256, 1, PAGE, PAGE, 0)),
                    (wire.WINDOW_MAP, struct.pack("<IIQQQQ", 256, 0, PAGE, PAGE, 0, 0)),
                    (wire.DEVICE_WRITE, struct.pack("<IIQ", 256, 8, PAGE) + bytes(8))]
        with open("/dev/null", "rb") as null:
            for _ in range(400):
                client = wire.Client(self.daemon.socket)
                with client:
                    for _ in range(self.random.randint(1, 8)):
                        opcode, body = self.random.choice(requests)
                        fds = [null.fileno()] * self.random.choice((0, 0, 1, 3, 16))
                        message = bytearray(client.pack(opcode, body, fds))
                        for _ in range(self.random.randint(0, 3)):
                            message[self.random.randrange(len(message))] = self.random.getrandbits(8)
                        if self.random.random() < 0.2:
                            message = message[:self.random.randint(1, len(message))]
                        if self.random.random() < 0.2:
                            message += bytes(self.random.randint(1, 64))
                        try:
                            client.send_raw(bytes(message), fds)
                        except (BrokenPipeError, ConnectionResetError):
                            break
        self.expect_descriptors_back()


class Descriptors(wire.Test):
    """Too many, too few, the wrong kind: all are closed."""

    def setUp(self):
        super().setUp()
        self.start_daemon()
        self.null = os.open("/dev/null", os.O_RDWR)

    def tearDown(self):
        os.close(self.null)
        if self.daemon.running:
            self.expect_healthy()
        super().tearDown()

    def test_too_few(self):
        client = self.connect()
        before = self.daemon.extra_descriptors()
        body = struct.pack("<QQIIIIQ", 0, 1 << 40, 4, os.getpid(), 0, 0, 0)
        for count in (0, 1, 4):
            self.expect_error(client.ask(wire.OPEN, body, [self.null] * count), errno.EINVAL, "open: too few descriptors")
        self.expect_error(client.ask(wire.EXPORT, bytes(8)), errno.EINVAL, "export: too few descriptors")
        self.expect_nothing_kept_since(before)

    def test_too_many(self):
        client = self.connect()
        before = self.daemon.extra_descriptors()
        for count in (1, 5, 16):
            self.expect_error(client.ask(wire.STATUS, bytes(8), [self.null] * count), errno.EINVAL,
                              "status: too many descriptors")
        self.expect_nothing_kept_since(before)
        client.status()

    def test_more_than_any_message_has(self):
        for count in (17, 100, 253):
            client = self.connect()
            client.send(wire.STATUS, bytes(8), [self.null] * count)
            self.assertTrue(client.at_end())
        self.expect_log("too many descriptors")
        self.expect_descriptors_back()

    def test_header_that_lies(self):
        for said, sent in ((0, 1), (1, 0), (2, 3)):
            client = self.connect()
            client.send(wire.STATUS, bytes(8), [self.null] * sent, nfds=said)
            self.assertTrue(client.at_end())
        self.expect_descriptors_back()

    def test_wrong_kind_to_open(self):
        client = self.connect()
        before = self.daemon.extra_descriptors()
        body = struct.pack("<QQIIIIQ", 0, 1 << 40, 4, os.getpid(), 0, 0, 0)
        pipe = os.pipe()
        other = socket.socket(socket.AF_UNIX)
        memfd = os.memfd_create("x")
        right = [wire.userfaultfd(), os.open("/proc/self/mem", os.O_RDWR), os.open("/proc/self/pagemap", os.O_RDONLY),
                 os.open("/proc/self/maps", os.O_RDONLY), os.open("/proc/self/smaps", os.O_RDONLY)]
        for index in range(5):
            for wrong in (self.null, pipe[0], other.fileno(), memfd, right[(index + 1) % 5]):
                with self.subTest(index=index, wrong=os.readlink(f"/proc/self/fd/{wrong}")):
                    fds = right[:index] + [wrong] + right[index + 1:]
                    answer = client.ask(wire.OPEN, body, fds)
                    self.assertIsNotNone(answer, "hmmd closed the connection instead of answering")
                    self.assertTrue(answer.is_error)
                    self.assertTrue(answer.text)
        self.expect_nothing_kept_since(before)
        for fd in [*right, *pipe, memfd]:
            os.close(fd)
        other.close()
        self.assertEqual(client.status()["owners"], 0)

    def test_wrong_kind_to_reopen(self):
        client = self.connect()
        before = self.daemon.extra_descriptors()
        body = struct.pack("<IIQQQII", 1, os.getpid(), 1, 0, 1 << 40, 4, 0)
        answer = client.ask(wire.REOPEN, body, [self.null] * 10)
        self.assertTrue(answer.is_error)
        memfd = os.memfd_create("table")
        answer = client.ask(wire.REOPEN, body, [self.null] * 5 + [memfd] * 5)
        self.assertTrue(answer.is_error)
        os.close(memfd)
        self.expect_nothing_kept_since(before)
        self.assertEqual(client.status()["owners"], 0)

    def test_wrong_kind_of_key(self):
        client = self.connect(role=wire.DRIVER)
        before = self.daemon.extra_descriptors()
        left, right = socket.socketpair()
        with tempfile.TemporaryFile(dir="/var/tmp") as file:
            for wrong in (self.null, left.fileno(), file.fileno()):
                self.expect_error(client.ask(wire.OPEN_PEER, bytes(8), [wrong]), errno.EINVAL, "no memfd")
        left.close()
        right.close()
        memfd = os.memfd_create("never exported")
        self.expect_error(client.ask(wire.OPEN_PEER, bytes(8), [memfd]), errno.ENOENT, "opens no owner")
        self.expect_error(client.ask(wire.OPEN_PEER, struct.pack("<Q", 1), [memfd]), errno.EINVAL, "flags")
        os.close(memfd)
        self.expect_nothing_kept_since(before)

    def test_descriptors_of_a_client_that_is_gone(self):
        body = struct.pack("<QQIIIIQ", 0, 1 << 40, 4, os.getpid(), 0, 0, 0)
        for _ in range(50):
            with wire.Client(self.daemon.socket) as client:
                for _ in range(4):
                    client.send(wire.OPEN, body, [self.null] * 5)
        self.expect_descriptors_back()


class Ids(wire.Test):
    """What belongs to others."""

    def requests_about(self, owner):
        mirror, window = owner << 8 & 0xFFFFFFFF, owner << 16 & 0xFFFFFFFF
        pair = struct.pack("<II", owner, 0)
        memory = struct.pack("<QQ", PAGE, PAGE)
        return {
            wire.PREPARE_FORK: pair,
            wire.REOPEN_DONE: pair,
            wire.REOPEN_MIRROR: struct.pack("<IIQ", owner, mirror, 0) + wire.text("gpu", 64),
            wire.LAYOUT: pair + bytes(8),
            wire.RANGES: pair + struct.pack("<QQ", 0, 1 << 40),
            wire.CELLS: struct.pack("<II", owner, 1) + memory,
            wire.EXCLUDE: pair + memory,
            wire.ADVISE: struct.pack("<II", owner, 1) + memory + bytes(16),
            wire.ATTRIBUTE: pair + memory,
            wire.ATTRIBUTES: pair + bytes(8),
            wire.RESTATE: pair,
            wire.DRAIN: struct.pack("<II", owner, 1),
            wire.NOTICES_OPEN: struct.pack("<IIQ", owner, 64, 0),
            wire.NOTICES_CLOSE: struct.pack("<II", owner, 1),
            wire.PROTECT: pair + memory,
            wire.TRACK_OPEN: pair + bytes(8),
            wire.DIRTY_START: pair + memory,
            wire.DIRTY_READ: struct.pack("<II", owner, 1) + memory + bytes(8),
            wire.DIRTY_STOP: struct.pack("<II", owner, 1),
            wire.DIRTY_MARK: struct.pack("<II", mirror, 0) + memory,
            wire.MIRROR_SYNC: struct.pack("<II", owner, 1) + memory,
            wire.COPY_OPEN: struct.pack("<IIQ", owner, 1, PAGE),
            wire.FORKED: struct.pack("<II", owner, 1),
            wire.DMA_MAP: struct.pack("<II", mirror, 1) + memory + struct.pack("<QQII", PAGE, 2 * PAGE, 1, 0),
            wire.DMA_UNMAP: struct.pack("<II", mirror, 1),
            wire.STATS: pair,
            wire.MIRROR_REGISTER: struct.pack("<IIQ", owner, 1, 0),
            wire.MIRROR_UNREGISTER: struct.pack("<II", mirror, 0),
            wire.MIGRATE: struct.pack("<II", mirror, 1) + memory + bytes(8),
            wire.DEVICE_READ: struct.pack("<IIQ", mirror, 8, PAGE),
            wire.DEVICE_WRITE: struct.pack("<IIQ", mirror, 8, PAGE) + bytes(8),
            wire.ALLOC: struct.pack("<II", mirror, 0) + memory,
            wire.FREE: struct.pack("<II", mirror, 0) + memory,
            wire.WINDOW_ARMED: struct.pack("<II", window, 0),
            wire.WINDOW_UNMAP: struct.pack("<II", window, 0),
        }

    def expect_refusals(self, client, owner, leave_out=()):
        for opcode, body in self.requests_about(owner).items():
            if opcode in leave_out:
                continue
            with self.subTest(opcode=opcode, owner=owner):
                self.expect_error(client.ask(opcode, body), errno.EPERM)
        with self.subTest("window_map"):
            fd = wire.userfaultfd()
            body = struct.pack("<II", owner << 8 & 0xFFFFFFFF, 0) + struct.pack("<QQQQ", PAGE, PAGE, 0, 0)
            self.expect_error(client.ask(wire.WINDOW_MAP, body, [fd]), errno.EPERM)
            os.close(fd)
        with self.subTest("export"):
            fd = os.memfd_create("key")
            self.expect_error(client.ask(wire.EXPORT, struct.pack("<II", owner, 0), [fd]), errno.EPERM)
            os.close(fd)

    def test_what_is_no_card(self):
        """A device's card is asked for by number: there is no such device, or it is none, whoever made it."""
        self.start_daemon()
        maker = self.connect(role=wire.DRIVER)
        answer = maker.ask(wire.DEVICE_NEW, wire.new_device("gpu"))
        self.assertFalse(answer.is_error and answer.text)
        device = answer.unpack("I")[0]
        for client in (maker, self.connect(), self.connect(role=wire.DRIVER), self.connect(role=wire.TOOL)):
            for bad in (0, device + 1, 0xFFFFFFFF):
                self.expect_error(client.ask(wire.DEVICE_FD, struct.pack("<II", bad, 0)), errno.ENODEV, f"no device {bad}")
            self.expect_error(client.ask(wire.DEVICE_FD, struct.pack("<II", device, 0)), errno.EOPNOTSUPP, "gpu is no card")
            self.expect_error(client.ask(wire.DEVICE_FD, struct.pack("<II", device, 1)), errno.EINVAL, "device_fd: ")
        self.expect_healthy()

    def test_nobodys(self):
        self.start_daemon()
        client = self.connect()
        # In 0 there is no owner, and with it stats and drain speak of all: the one is told, the other is refused.
        self.expect_refusals(client, 0, leave_out=(wire.STATS,))
        for owner in (1, 2, 255, 65535, 65536, 0xFFFFFFFF):
            self.expect_refusals(client, owner)
        self.expect_healthy()

    def test_somebody_elses(self):
        self.start_daemon()
        owner = self.connect().open_owner()
        for role in (wire.OWNER, wire.DRIVER):
            self.expect_refusals(self.connect(role=role), owner)
        # Nothing of it happened: the owner is there as it was.
        self.assertEqual(self.expect_healthy()["owners"], 1)

    def test_a_tool_looks_but_does_not_touch(self):
        self.start_daemon()
        owner = self.connect().open_owner()
        tool = self.connect(role=wire.TOOL)
        looks = (wire.LAYOUT, wire.RANGES, wire.CELLS, wire.STATS, wire.DRAIN, wire.MIGRATE, wire.NOTICES_OPEN,
                 wire.NOTICES_CLOSE, wire.ATTRIBUTE, wire.ATTRIBUTES)
        self.expect_refusals(tool, owner, leave_out=looks)
        for opcode in (wire.RANGES, wire.CELLS, wire.STATS, wire.DRAIN, wire.NOTICES_OPEN, wire.ATTRIBUTE,
                       wire.ATTRIBUTES):
            answer = tool.ask(opcode, self.requests_about(owner)[opcode])
            self.assertFalse(answer.is_error and answer.error == errno.EPERM, (opcode, answer.is_error and answer.text))
        self.expect_healthy()

    def test_tracking_that_makes_no_sense(self):
        """An owner that gives what is no userfaultfd, or none; tracks that are not there, or another connection's."""
        self.start_daemon("--tracking", "uffd-wp")
        client = self.connect()
        owner = client.open_owner()
        start = struct.pack("<II", owner, 0) + struct.pack("<QQ", 1 << 32, 4 * PAGE)

        def give(fds, error=0, user_mode=0):
            return client.ask(wire.TRACK_OPEN, struct.pack("<IiII", owner, error, user_mode, 0), fds)

        self.expect_error(client.ask(wire.DIRTY_START, start), errno.EAGAIN, "ask again")
        for path in ("/dev/null", "/proc/self/mem"):
            fd = os.open(path, os.O_RDONLY)
            self.expect_error(give([fd]), errno.EBADF, "no userfaultfd")
            os.close(fd)
        fd = wire.userfaultfd()
        self.assertFalse(give([fd]).is_error)
        # Handed over, and once.
        self.expect_error(give([fd]), errno.EEXIST)
        os.close(fd)
        for addr, length in ((1 << 32, 0), ((1 << 32) + 1, PAGE), (1 << 32, PAGE + 1), (1 << 46, 1 << 47), (2**64 - PAGE, 2 * PAGE)):
            with self.subTest(addr=addr, length=length):
                body = struct.pack("<IIQQ", owner, 0, addr, length)
                self.expect_error(client.ask(wire.DIRTY_START, body), errno.EINVAL)
        self.expect_error(client.ask(wire.DIRTY_START, struct.pack("<II", owner, owner << 8) + start[8:]), errno.ENOENT)
        answer = client.ask(wire.DIRTY_START, start)
        self.assertFalse(answer.is_error and answer.text)
        track = answer.unpack("I")[0]

        def read(track, addr=1 << 32, length=PAGE, flags=1):
            return client.ask(wire.DIRTY_READ, struct.pack("<IIQQQ", owner, track, addr, length, flags))

        for bad in (0, track + 1, 2**32 - 1):
            self.expect_error(read(bad), errno.ENOENT)
            self.expect_error(client.ask(wire.DIRTY_STOP, struct.pack("<II", owner, bad)), errno.ENOENT)
        self.expect_error(read(track, (1 << 32) - PAGE), errno.EINVAL)
        self.expect_error(read(track, length=5 * PAGE), errno.EINVAL)
        self.expect_error(read(track, length=(1 << 30) + PAGE), errno.EINVAL)
        self.expect_error(read(track, flags=2), errno.EINVAL)
        # Nothing of that has told anything.
        answer = read(track, length=4 * PAGE)
        self.assertEqual(answer.unpack("QQIIQ"), (4, 4, 1, 0, 0xf))
        self.assertFalse(client.ask(wire.DIRTY_STOP, struct.pack("<II", owner, track)).is_error)
        self.expect_error(read(track), errno.ENOENT)
        client.close()
        # One that has none to give is not asked again.
        client = self.connect()
        owner = client.open_owner()
        start = struct.pack("<II", owner, 0) + start[8:]
        self.expect_error(client.ask(wire.DIRTY_START, start), errno.EAGAIN)
        self.expect_error(give([], error=-errno.ENFILE), errno.ENFILE)
        self.expect_error(client.ask(wire.DIRTY_START, start), errno.ENFILE, "no userfaultfd to give")
        client.close()
        # For this engine one of faults in user mode alone will not do.
        client = self.connect()
        owner = client.open_owner()
        start = struct.pack("<II", owner, 0) + start[8:]
        fd = wire.userfaultfd()
        self.expect_error(give([fd], user_mode=1), errno.EPERM)
        os.close(fd)
        self.expect_error(client.ask(wire.DIRTY_START, start), errno.EPERM)
        self.expect_healthy()

    def test_advice_that_makes_no_sense(self):
        """What the library would not send: each is refused, and nothing of it is noted."""
        self.start_daemon()
        client = self.connect()
        owner = client.open_owner()

        def advise(advice, mirror=0, value=0, back=0):
            return client.ask(wire.ADVISE, struct.pack("<IIQQIIII", owner, advice, PAGE, PAGE, mirror, value, back, 0))

        def restate(start, end, said=1, accessed_by=0, granularity=0, preferred=-1, pinned=-1, priority=50):
            item = struct.pack("<QQQIIiiII", start, end, said, accessed_by, granularity, preferred, pinned, priority, 0)
            return client.ask(wire.RESTATE, struct.pack("<II", owner, 1) + item)

        for advice in (3, 5, 20):
            self.expect_error(advise(advice, mirror=owner << 8), errno.ENOENT)
            self.expect_error(advise(advice, mirror=0xFFFFFFFF), errno.ENOENT)
        for value in (0, 3, 513, 1024, 0xFFFFFFFF):
            self.expect_error(advise(18, value=value), errno.EINVAL, "granularity")
        self.expect_error(advise(19, value=2), errno.EINVAL)
        self.expect_error(advise(22, value=101), errno.EINVAL, "priority")
        for opposite in (2, 4, 6, 17, 21):
            self.expect_error(advise(opposite, back=1), errno.EINVAL, "taken back")
        for start, end in ((1, PAGE), (PAGE, PAGE), (2 * PAGE, PAGE), (PAGE, 1 << 47 | PAGE)):
            self.expect_error(restate(start, end), errno.EINVAL)
        for wrong in ({"granularity": 3}, {"granularity": 1024}, {"priority": 101}):
            self.expect_error(restate(PAGE, 2 * PAGE, **wrong), errno.EINVAL)
        # A mirror that is not there is left out; what remains says nothing.
        self.assertFalse(restate(PAGE, 2 * PAGE, said=0x4A, accessed_by=0xFFFFFFFF, preferred=5, pinned=100).is_error)
        count, _more = struct.unpack_from("<II", client.ask(wire.ATTRIBUTES, struct.pack("<IIQ", owner, 0, 0)).body)
        self.assertEqual(count, 0)
        self.expect_healthy()

    @unittest.skipUnless(os.getuid() == 0, "only root can become somebody else")
    def test_another_user(self):
        """A member of the group may come; it is nobody's administrator, and has a quota of its own."""
        config = os.path.join(self.folder, "h.conf")
        with open(config, "w") as file:
            file.write("[daemon]\ngroup = nogroup\n[limits]\nconnections = 5\n")
        os.chmod(self.folder, 0o711)
        self.start_daemon("--config", config)
        owner = self.connect().open_owner()

        def other():
            path = os.path.basename(self.daemon.socket)
            tool = wire.Client(path, role=wire.TOOL, name="other")
            assert tool.uid == 65534
            for opcode in (wire.RANGES, wire.CELLS, wire.STATS, wire.DRAIN, wire.MIGRATE, wire.NOTICES_OPEN):
                answer = tool.ask(opcode, self.requests_about(owner)[opcode])
                assert answer.is_error and answer.error == errno.EPERM, opcode
            answer = tool.ask(wire.DRAIN, bytes(8))
            assert answer.is_error and answer.error == errno.EPERM
            assert "only a tool of root or of hmmd's own user may drain everything" in answer.text
            kept = [wire.Client(path) for _ in range(4)]
            answer = wire.Client(path, hello=False).receive()
            assert answer.error == errno.EDQUOT and "uid 65534 has 5 of 5 connections" in answer.text
            assert tool.status()["clients"] == 2 + len(kept)

        self.as_somebody_else(other)
        # Root's own admin may, and the other's quota was not root's.
        tool = self.connect(role=wire.TOOL)
        self.assertFalse(tool.ask(wire.DRAIN, bytes(8)).is_error)
        self.expect_healthy()

    def test_rings_are_charged_for(self):
        """Two descriptors each, as long as they are open; a bad position harms who wrote it."""
        config = os.path.join(self.folder, "h.conf")
        with open(config, "w") as file:
            file.write("[limits]\nfds = 24\n")
        self.start_daemon("--config", config)
        client = self.connect()
        owner = client.open_owner()
        body = struct.pack("<IIQ", owner, 64, 0)
        rings = []
        while not (answer := client.ask(wire.NOTICES_OPEN, body)).is_error:
            rings.append(answer.unpack("II"))
            os.pwrite(answer.fds[1], struct.pack("<Q", 1 << 63), 0)
            answer.close()
        self.expect_error(answer, errno.EDQUOT)
        self.assertGreater(len(rings), 0)
        self.assertLess(len(rings), 8)
        self.assertEqual({entries for _, entries in rings}, {64})
        for ring, _ in rings:
            self.assertFalse(client.ask(wire.NOTICES_CLOSE, struct.pack("<II", owner, ring)).is_error)
            self.expect_error(client.ask(wire.NOTICES_CLOSE, struct.pack("<II", owner, ring)), errno.ENOENT)
        for _ in rings:
            answer = client.ask(wire.NOTICES_OPEN, body)
            self.assertFalse(answer.is_error)
            answer.close()
        client.close()
        self.expect_descriptors_back()

    def test_acks_that_nobody_asked_for(self):
        self.start_daemon("--log", "debug")
        client = self.connect()
        for cookie in (0, 1, 1 << 48, 0xFFFFFFFFFFFFFFFF):
            for _ in range(100):
                client.send(wire.ACK, struct.pack("<QiI", cookie, 0, 0), serial=0)
        client.status()
        self.expect_log("ack is ignored")
        self.expect_healthy()


class Greetings(wire.Test):
    def setUp(self):
        super().setUp()
        self.start_daemon()

    def test_hello_comes_first(self):
        client = self.connect(hello=False)
        for opcode in (wire.STATUS, wire.CLIENTS, wire.DRAIN):
            self.expect_error(client.ask(opcode, bytes(8)), errno.EPROTO, "hello comes first")
        self.assertFalse(client.hello().is_error)
        client.status()

    def test_hello_twice(self):
        client = self.connect()
        self.expect_error(client.hello(), errno.EISCONN, "hello was said before")
        client.status()

    def test_versions_that_do_not_meet(self):
        client = self.connect(hello=False)
        for low, high in ((3, 9), (0, 0), (1, 1), (9, 1)):
            self.expect_error(client.hello(low=low, high=high), errno.EPROTO,
                              f"versions {low} to {high}", "this hmmd speaks 2 to 2")
        answer = client.hello(low=0, high=0xFFFFFFFF)
        self.assertEqual(answer.unpack("I")[0], 2)

    def test_unknown_role(self):
        client = self.connect(hello=False)
        self.expect_error(client.hello(role=4), errno.EINVAL, "hello: ")


class Behaviour(wire.Test):
    """Clients that do not play along."""

    def configured(self, **limits):
        path = os.path.join(self.folder, "limits.conf")
        with open(path, "w") as file:
            file.write("[limits]\n" + "".join(f"{key} = {value}\n" for key, value in limits.items()))
        self.daemon = harness.Daemon(self, *self.daemon_args, "--config", path)
        # The harness says --no-config first; the last word counts.
        self.daemon.start()

    def flood(self, client):
        """Requests until hmmd takes no more, or hangs up; how many it took."""
        client.socket.setblocking(False)
        count = 0
        message = client.pack(wire.DOCTOR, bytes(8))
        while True:
            try:
                client.send_raw(message)
                count += 1
            except BlockingIOError:
                if not select.select([], [client.socket], [], 0.2)[1]:
                    return count
            except (BrokenPipeError, ConnectionResetError):
                return count
            self.assertLess(count, 1000000, "hmmd takes everything and keeps it")

    def test_stops_reading(self):
        self.configured(stall="300ms")
        client = self.connect(name="deaf")
        taken = self.flood(client)
        self.assertGreater(taken, 0)
        # Whoever reads is served meanwhile, and the one that does not is put out.
        self.expect_healthy()
        self.expect_log(r"'deaf' .*disconnected: it has read nothing for 300 ms, with \d+ bytes waiting")
        self.expect_descriptors_back()

    def test_pauses_and_reads_on(self):
        """Backpressure is no punishment: every request that was taken is answered, in order, once."""
        self.configured(stall="600s")
        client = self.connect()
        taken = self.flood(client)
        client.socket.settimeout(harness.scaled(20))
        first = client.serial
        for _ in range(taken):
            answer = client.receive()
            self.assertIsNotNone(answer)
            self.assertEqual((answer.opcode, answer.serial), (wire.DOCTOR | 0x8000, first))
        client.status()

    def test_memory_of_a_deaf_client_is_bounded(self):
        self.configured(stall="600s", queue="128K")
        before = self.daemon.process.memory()
        for _ in range(20):
            self.flood(self.connect())
        grown = self.daemon.process.memory() - before
        self.assertLess(grown, 20 * 512 if not harness.SANITIZE else 1 << 20, "KiB, for 20 clients that do not read")

    def test_dies_at_any_moment(self):
        """Killed while it sends: whole messages count, nothing of the rest stays."""
        self.start_daemon()
        for _ in range(20):
            child = os.fork()
            if child == 0:
                client = wire.Client(self.daemon.socket)
                null = os.open("/dev/null", os.O_RDONLY)
                while True:
                    client.send(wire.OPEN, struct.pack("<QQIIIIQ", 0, 1 << 40, 4, 1, 0, 0, 0), [null] * 5)
                    client.receive()
            harness.wait_until(lambda: self.expect_healthy()["clients"] > 1)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        harness.wait_until(lambda: self.expect_healthy()["clients"] == 1, what="that the dead are forgotten")
        self.expect_descriptors_back()

    def test_floods(self):
        """Four clients send as fast as they can; a fifth gets its answers all the same."""
        self.start_daemon()
        stop = threading.Event()

        def rush():
            with wire.Client(self.daemon.socket, name="rush") as client:
                while not stop.is_set():
                    for _ in range(50):
                        client.send(wire.CLIENTS, bytes(8))
                    for _ in range(50):
                        client.receive().close()

        threads = [threading.Thread(target=rush) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            polite = self.connect(role=wire.TOOL, name="polite")
            for _ in range(200):
                polite.status()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self.expect_descriptors_back_after(polite)

    def expect_descriptors_back_after(self, client):
        client.close()
        self.expect_descriptors_back()

    def test_says_nothing(self):
        self.start_daemon()
        silent = [self.connect(hello=False) for _ in range(50)]
        self.assertEqual(self.expect_healthy()["clients"], 51)
        for client in silent:
            client.close()
        self.expect_descriptors_back()

    def test_too_many_connections(self):
        self.configured(connections=4)
        kept = [self.connect() for _ in range(4)]
        extra = self.connect(hello=False)
        answer = extra.receive()
        self.expect_error(answer, errno.EDQUOT, f"uid {os.getuid()} has 4 of 4 connections", "'connections' in [limits]")
        self.assertEqual(answer.serial, 0)
        self.assertTrue(extra.at_end())
        kept[0].close()
        harness.wait_until(lambda: kept[1].status()["clients"] == 3)
        self.connect().status()

    def test_too_many_descriptors(self):
        self.configured(fds=16)
        clients = [self.connect() for _ in range(8)]
        self.expect_error(self.connect(hello=False).receive(), errno.EDQUOT, "16 of 16 descriptors")
        clients[0].close()
        harness.wait_until(lambda: clients[1].status()["clients"] == 7)
        # An owner takes ten, which are not there: hmmd says so before it makes anything.
        null = os.open("/dev/null", os.O_RDWR)
        answer = clients[1].ask(wire.OPEN, struct.pack("<QQIIIIQ", 0, 1 << 40, 4, os.getpid(), 0, 0, 0), [null] * 5)
        os.close(null)
        self.expect_error(answer, errno.EDQUOT, "14 of 16 descriptors and asks for 10 more")

    def test_too_many_owners(self):
        self.configured(owners=1)
        client = self.connect()
        client.open_owner()
        null = os.open("/dev/null", os.O_RDWR)
        answer = client.ask(wire.OPEN, struct.pack("<QQIIIIQ", 0, 1 << 40, 4, os.getpid(), 0, 0, 0), [null] * 5)
        os.close(null)
        self.expect_error(answer, errno.EDQUOT, "1 of 1 mirrored processes")

    def test_too_many_tracked_bytes(self):
        """Five bits for each page; with the track, and with its connection, they are released."""
        self.configured(rings="20K")
        client = self.connect()
        owner = client.open_owner()
        start = struct.pack("<IIQQ", owner, 0, 1 << 32, 128 << 20)
        self.expect_error(client.ask(wire.DIRTY_START, start), errno.EAGAIN)
        fd = wire.userfaultfd()
        self.assertFalse(client.ask(wire.TRACK_OPEN, struct.pack("<IiII", owner, 0, 0, 0), [fd]).is_error)
        os.close(fd)
        for _ in range(3):
            answer = client.ask(wire.DIRTY_START, start)
            self.assertFalse(answer.is_error)
            self.expect_error(client.ask(wire.DIRTY_START, start), errno.EDQUOT, "20480 of 20480 bytes of event rings and tracks")
            self.assertFalse(client.ask(wire.DIRTY_STOP, struct.pack("<II", owner, answer.unpack("I")[0])).is_error)
        self.assertFalse(client.ask(wire.DIRTY_START, start).is_error)
        client.close()
        client = self.connect()
        owner = client.open_owner()
        start = struct.pack("<II", owner, 0) + start[8:]
        self.expect_error(client.ask(wire.DIRTY_START, start), errno.EAGAIN)
        self.expect_healthy()

    def test_too_many_bytes_of_rings(self):
        """Each of 64 records takes three pages, and the next one up four."""
        self.configured(rings="48K")
        client, tool = self.connect(), self.connect(role=wire.TOOL)
        owner = client.open_owner()

        def open_ring(client, entries=64):
            answer = client.ask(wire.NOTICES_OPEN, struct.pack("<IIQ", owner, entries, 0))
            answer.close()
            return answer

        rings = [open_ring(client) for _ in range(3)] + [open_ring(tool)]
        self.assertFalse([ring.text for ring in rings if ring.is_error])
        full = f"uid {os.getuid()} has 49152 of 49152 bytes of event rings and tracks and asks for"
        self.expect_error(open_ring(tool), errno.EDQUOT, f"{full} 12288 more; 'rings' in [limits]")
        self.expect_error(open_ring(client, 0), errno.EDQUOT, f"{full} 270336 more")
        # What cannot be is no matter of quotas, and costs nothing.
        for entries in (1, 65537, 2**32 - 1):
            self.expect_error(open_ring(client, entries), errno.EINVAL)
        # One for one, and not more; a ring is released as what it was.
        def close_ring(client, ring):
            return client.ask(wire.NOTICES_CLOSE, struct.pack("<II", owner, ring.unpack("I")[0]))

        self.assertFalse(close_ring(client, rings[0]).is_error)
        self.expect_error(close_ring(client, rings[0]), errno.ENOENT)
        self.expect_error(open_ring(tool, 65), errno.EDQUOT, "has 36864 of 49152", "asks for 16384 more")
        self.assertFalse(open_ring(tool).is_error)
        self.expect_error(open_ring(tool), errno.EDQUOT, full)
        # With the connection, and with the owner: whoever listened has room for another's.
        other = self.connect()
        tool.close()
        harness.wait_until(lambda: not open_ring(client).is_error, 10, "that the tool's rings are released")
        watcher = self.connect(role=wire.TOOL)
        self.assertFalse(open_ring(watcher).is_error)
        client.close()
        owner = other.open_owner()
        for _ in range(4):
            harness.wait_until(lambda: not open_ring(other).is_error, 10, "that the owner's listeners are released")
        self.expect_error(open_ring(other), errno.EDQUOT, full)
        # Over what it has by a new limit, it is refused rings and nothing else.
        with open(os.path.join(self.folder, "limits.conf"), "w") as file:
            file.write("[limits]\nrings = 16K\n")
        self.daemon.process.signal(signal.SIGHUP)
        harness.wait_until(lambda: "of 16384" in open_ring(other).text, 10, "that the limit is lower")
        self.assertFalse(other.ask(wire.RANGES, struct.pack("<IIQQ", owner, 0, 0, 1 << 40)).is_error)

    def test_socket_that_outlives_its_process(self):
        """A connection is worth what the process behind it is: a child that inherited it inherits no rights."""
        self.start_daemon()
        hold, release = os.pipe()
        child = os.fork()
        if child == 0:
            client = wire.Client(self.daemon.socket, name="parent")
            if os.fork() == 0:
                os.close(release)
                os.read(hold, 1)
                os._exit(0)
            client.socket.detach()
            os._exit(0)
        os.waitpid(child, 0)
        os.close(hold)
        harness.wait_until(lambda: self.expect_healthy()["clients"] == 1, what="that the orphan is put out")
        self.expect_descriptors_back()
        os.close(release)


if __name__ == "__main__":
    harness.main()
