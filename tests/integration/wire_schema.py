# SPDX-License-Identifier: GPL-2.0-or-later
"""The requests of proto/protocol.hmm, as proto/scanner.py reads them, for tests that go through all of them and for what builds
messages by name."""

import os
import struct
import sys

PROTO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "proto")
sys.path.insert(0, PROTO)
import scanner      # noqa: E402

HEADER_SIZE = 16
HOME, PAGE = 0x500000000000, 4096
FORMS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


def _read():
    with open(os.path.join(PROTO, "protocol.hmm")) as file:
        schema = scanner.Parser(file.read()).parse()
    scanner.resolve(schema)
    return schema


SCHEMA = _read()
REQUESTS = {message.name: message for message in SCHEMA.messages if message.kind == "request"}


def tail_size(message):
    """Of one element of its array, 0: it has none."""
    if not message.tail:
        return 0
    return SCHEMA.records[message.tail.type].size if message.tail.type in SCHEMA.records else message.tail.size


def body(name, /, tail=b"", **values):
    """A request without its header: what is not said is 0, or the first value that is allowed. A range is a pair."""
    message = REQUESTS[name]
    data = bytearray(message.size)
    for field in message.fields:
        value = values.pop(field.name, None)
        if field.kind == "range":
            struct.pack_into("<QQ", data, field.offset, *(value or (HOME, PAGE)))
        elif field.kind == "text":
            value = (value or "").encode()
            data[field.offset:field.offset + len(value)] = value
        elif field.kind == "enum" and value is None:
            struct.pack_into("<I", data, field.offset, field.names.values[0].number)
        elif value is not None:
            struct.pack_into(FORMS[field.size], data, field.offset, value & (1 << 8 * field.size) - 1)
    assert not values, (name, values)
    if tail:
        struct.pack_into("<I", data, message.tail.count_offset, len(tail) // tail_size(message))
    return bytes(data[HEADER_SIZE:]) + tail
