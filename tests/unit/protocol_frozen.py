#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the messages of this version of the protocol look like does not change: another release speaks it, too.

protocol_frozen.txt has the layout of each message and record, padding left out. What is new beside that is right. Where the
schema differs from it, either the change is taken back, or it is another version: `protocol hmm version` is raised, and
`protocol_frozen.py --write` writes the file anew.
"""

import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "integration"))
import harness      # noqa: E402  (its runner reports each test)

sys.path.insert(0, os.path.join(harness.SOURCE, "proto"))
import scanner      # noqa: E402

FILE = os.path.join(harness.SOURCE, "tests", "unit", "protocol_frozen.txt")


def schema_of(text):
    schema = scanner.Parser(text).parse()
    scanner.resolve(schema)
    return schema


def lines_of(schema):
    """One line for each fact about the bytes that another release counts on."""
    lines = []
    for record in [*schema.records.values(), *schema.messages]:
        what = f"{record.kind} {record.long_name}"
        opcode = f" = {record.opcode:#x}" if record.opcode is not None else ""
        lines.append(f"{what}{opcode}: {record.size} bytes, fds {record.fds[0]}..{record.fds[1]}")
        for field in record.fields:
            if field.kind == "pad" or field.name == "pad":
                continue
            lines.append(f"{what}: {field.name} at {field.offset}, {field.size} bytes, {field.kind}")
        if record.tail:
            lines.append(f"{what}: {record.tail.name}, items of {record.tail.size} bytes, counted by {record.tail.count}")
    for names in schema.names.values():
        lines += [f"{names.kind} {names.name}: {value.name} = {value.number:#x}" for value in names.values]
    return lines


def contradictions(frozen, schema):
    """Lines of the file that are no longer so. What was padding may have got a name."""
    return sorted(set(frozen) - set(lines_of(schema)))


class Frozen(unittest.TestCase):
    def setUp(self):
        with open(os.path.join(harness.SOURCE, "proto", "protocol.hmm"), encoding="utf-8") as file:
            self.text = file.read()
        with open(FILE, encoding="utf-8") as file:
            self.version, *self.frozen = file.read().splitlines()

    def test_this_version_is_what_it_was(self):
        schema = schema_of(self.text)
        self.assertEqual(self.version, f"version {schema.version}",
                         "another version: python3 tests/unit/protocol_frozen.py --write")
        self.assertEqual(contradictions(self.frozen, schema), [],
                         "these bytes have changed, and the version of proto/protocol.hmm has not; raise it, and write this file anew")

    def change(self, before, after):
        self.assertEqual(self.text.count(before), 1, before)
        return contradictions(self.frozen, schema_of(self.text.replace(before, after)))

    def test_what_is_new_is_no_contradiction(self):
        self.assertEqual(self.change("request usage = 74", "request later = 4000 { u32 a; u32 b; }\nreply later { }\n\nrequest usage = 74"), [])
        self.assertEqual(self.change("	recall = 12", "	later = 99\n	recall = 12"), [])
        self.assertEqual(self.change("record stat_info {\n", "record later { u64 a; }\n\nrecord stat_info {\n"), [])

    def test_what_has_changed_is_one(self):
        self.assertTrue(self.change("reply drain { u64 pages; }", "reply drain { u64 pages; u64 left; }"))
        self.assertTrue(self.change("request usage = 74", "request usage = 76"))
        self.assertTrue(self.change("	evict = 10\n", "	evict = 13\n"))
        self.assertTrue(self.change("	u32 owner; u32 device;\n}\nreply drain", "	u32 device; u32 owner;\n}\nreply drain"))


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        with open(os.path.join(harness.SOURCE, "proto", "protocol.hmm"), encoding="utf-8") as source:
            present = schema_of(source.read())
        with open(FILE, "w", encoding="utf-8") as file:
            file.write("\n".join([f"version {present.version}", *lines_of(present)]) + "\n")
    else:
        harness.main()
