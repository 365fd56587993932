# SPDX-License-Identifier: GPL-2.0-or-later
"""Every request of the schema with every mistake that its own fields allow, one at a time, to a real hmmd: each has the answer
that its kind of mistake has, in number and words, and hmmd goes on serving. So have the headers that lie.

The table is made from the schema; what is expected stands in MISTAKES. No two of the inputs are the same bytes with the same
descriptors, and there are as many as docs/ARCHITECTURE.md promises: test_distinct counts them."""

import errno
import os
import struct

import control_wire as wire
import harness
import wire_schema as schema

# Distinct bad inputs, at least.
PROMISED = 200

HANG_UP = None
# kind of mistake -> (errno, or HANG_UP; what the answer, or the log, says)
MISTAKES = {
    "too short": (HANG_UP, "message is too short"),
    "too long": (HANG_UP, "message is too long"),
    "no serial": (HANG_UP, "serial is 0"),
    "reserved bits": (HANG_UP, "reserved bits of the header"),
    "fewer elements than it says": (HANG_UP, "message is too short for its count"),
    "more elements than it says": (HANG_UP, "message is too long"),
    "a size that lies": (HANG_UP, "broken header"),
    "descriptors that lie": (HANG_UP, "broken header"),
    "too few descriptors": (errno.EINVAL, "too few descriptors"),
    "too many descriptors": (errno.EINVAL, "too many descriptors"),
    "padding": (errno.EINVAL, "reserved bytes are not zero"),
    "unknown value": (errno.EINVAL, "unknown value of an enumeration"),
    "unknown flag": (errno.EINVAL, "unknown flags"),
    "endless text": (errno.EINVAL, "text without an end"),
    "unprintable text": (errno.EINVAL, "text that is not printable"),
    "bytes behind a text": (errno.EINVAL, "bytes after the end of a text"),
    "unaligned address": (errno.EINVAL, "range is not aligned"),
    "unaligned length": (errno.EINVAL, "range is not aligned"),
    "empty range": (errno.EINVAL, "range is empty"),
    "wrapping range": (errno.EINVAL, "range wraps around"),
    "kernel's memory": (errno.EINVAL, "range is outside the address space of programs"),
    "range across the end": (errno.EINVAL, "range is outside the address space of programs"),
    "range that is too long": (errno.EINVAL, "range is too long"),
}
RANGES = {
    "unaligned address": (schema.HOME + 1, schema.PAGE),
    "unaligned length": (schema.HOME, schema.PAGE - 1),
    "empty range": (schema.HOME, 0),
    "wrapping range": ((1 << 64) - schema.PAGE, 2 * schema.PAGE),
    "kernel's memory": (0xFFFF800000000000, schema.PAGE),
    "range across the end": ((1 << 47) - schema.PAGE, 2 * schema.PAGE),
}
# An ack has no serial and gets no answer.
UNANSWERED = {"ack"}


class Input:
    def __init__(self, name, mistake, body, fds=None, where="", **header):
        self.name, self.mistake, self.body, self.where, self.header = name, mistake, bytes(body), where, header
        self.fds = schema.REQUESTS[name].fds[0] if fds is None else fds

    def __str__(self):
        return f"{self.name}: {self.mistake}" + (f" ({self.where})" if self.where else "")

    @property
    def identity(self):
        return self.name, self.body, self.fds, tuple(sorted(self.header.items()))


def of_field(message, field):
    """(mistake, body) for each mistake that this field allows."""
    good = schema.body(message.name)
    offset = field.offset - schema.HEADER_SIZE

    def put(form, *values, at=offset):
        data = bytearray(good)
        struct.pack_into(form, data, at, *values)
        return data

    if field.kind == "pad":
        yield "padding", put("<B", 1, at=offset + field.size - 1)
    elif field.kind == "enum":
        yield "unknown value", put("<I", max(value.number for value in field.names.values) + 1)
        yield "unknown value", put("<I", 0xFFFFFFFF)
    elif field.kind == "flags":
        known = 0
        for value in field.names.values:
            known |= value.number
        yield "unknown flag", put("<Q", 1 << 63)
        yield "unknown flag", put("<Q", ~known & (known + 1))
    elif field.kind == "text":
        yield "endless text", put(f"{field.size}s", b"x" * field.size)
        yield "unprintable text", put("2s", b"a\n")
        yield "unprintable text", put("3s", b"\xc3\xa9x")
        yield "bytes behind a text", put("3s", b"a\0b")
    elif field.kind == "range":
        for mistake, pair in RANGES.items():
            yield mistake, put("<QQ", *pair)
        if field.range_max:
            yield "range that is too long", put("<QQ", schema.PAGE, field.range_max + schema.PAGE)


def of_message(message):
    name, good = message.name, schema.body(message.name)
    most = message.fds[1]
    yield Input(name, "too short", good[:-4])
    yield Input(name, "reserved bits", good, reserved=1)
    yield Input(name, "no serial", good, serial=0)
    yield Input(name, "a size that lies", good, size=schema.HEADER_SIZE + len(good) + 4)
    yield Input(name, "descriptors that lie", good, nfds=message.fds[0] + 1)
    yield Input(name, "too many descriptors", good, fds=most + 1)
    if most < 16:
        yield Input(name, "too many descriptors", good, fds=16)
    for count in range(message.fds[0]):
        yield Input(name, "too few descriptors", good, fds=count)
    if message.tail:
        size, at = schema.tail_size(message), message.tail.count_offset - schema.HEADER_SIZE
        for count in (1, 0xFFFFFFFF):
            data = bytearray(good)
            struct.pack_into("<I", data, at, count)
            yield Input(name, "fewer elements than it says", data, where=str(count))
        yield Input(name, "more elements than it says", good + bytes(size))
    else:
        yield Input(name, "too long", good + bytes(8))
    for field in message.fields:
        for mistake, body in of_field(message, field):
            yield Input(name, mistake, body, where=field.name)


def table():
    return [entry for name in sorted(schema.REQUESTS) if name not in UNANSWERED for entry in of_message(schema.REQUESTS[name])]


class BadMessages(wire.Test):
    def test_distinct(self):
        entries = table()
        self.assertEqual(len({entry.identity for entry in entries}), len(entries))
        self.assertEqual({entry.mistake for entry in entries}, set(MISTAKES))
        self.assertGreaterEqual(len(entries), PROMISED)
        print(f"{len(entries)} distinct bad inputs, {len(MISTAKES)} kinds of mistakes, {len(schema.REQUESTS)} requests")

    def test_each(self):
        self.start_daemon("--log", "debug")
        null = os.open("/dev/null", os.O_RDWR)
        client = self.connect()
        for entry in table():
            with self.subTest(str(entry)):
                number, words = MISTAKES[entry.mistake]
                client.send(schema.REQUESTS[entry.name].opcode, entry.body, [null] * entry.fds, **entry.header)
                if number is not HANG_UP:
                    self.expect_error(client.receive(), number, f"{entry.name}: {words}")
                    continue
                # What it says is in the log alone; the line is this connection's, so no other's is taken for it.
                peer = self.peer_of(client)
                self.assertTrue(client.at_end(), "hmmd goes on with it")
                self.expect_log(rf"peer {peer} .* is disconnected: .*{words}")
                client.close()
                self.clients.remove(client)
                client = self.connect()
        client.close()
        os.close(null)
        self.expect_descriptors_back()
        self.expect_healthy()

    def peer_of(self, client):
        return self.peers[client]

    def connect(self, **options):
        """Peers are numbered in the order in which they come."""
        client = super().connect(**options)
        self.peers = getattr(self, "peers", {})
        self.peers[client] = len(self.peers) + 1
        return client


if __name__ == "__main__":
    harness.main()
