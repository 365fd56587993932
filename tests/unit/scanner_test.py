#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The scanner, tested like a compiler: it is run on files, and each mistake must give exactly one line.

A mistake is an entry of MISTAKES: what is written after `protocol t version 1` (line 1), the line
that is blamed, and the message. What is right is compiled, and the layout that C sees is compared with the
one that the manual states.
"""

import contextlib
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "integration"))
import harness      # noqa: E402  (its runner reports each test)

PROTO = os.path.join(os.environ.get("HMM_TEST_SOURCE") or os.path.join(HERE, "..", ".."), "proto")
SCANNER = os.path.join(PROTO, "scanner.py")
sys.path.insert(0, PROTO)
import scanner      # noqa: E402
GENERATED = ["PROTOCOL.md", "hmm_protocol.c", "hmm_protocol.h", "wire.dict"]
CORPUS = ["all", "all_reply", "happened", "own", "quiet"]      # of EVERYTHING, below

MISTAKES = {
    # characters and words
    "stray_character": ("enum e { a = 1 }\n%", 3, "unexpected character '%'"),
    "unended_string": ('enum e "what {\n a = 1 }', 2, "string without an end"),
    "bad_number": ("enum e {\n a = 12x }", 3, "bad number '12x'"),
    "octal_number": ("enum e {\n a = 012 }", 3, "bad number '012'"),
    "capital_letters": ("enum E { a = 1 }", 2, "'E': names are lower case"),
    "capital_value": ("enum e {\n\n A = 1 }", 4, "'A': names are lower case"),
    "not_a_declaration": ("struct s { u32 a; }", 2, "expected a declaration, found 'struct'"),
    "number_for_a_declaration": ("\n7", 3, "expected a declaration, found '7'"),

    # grammar
    "no_brace": ("enum e\n a = 1 }", 3, "expected '{', found 'a'"),
    "no_equals": ("enum e { a 1 }", 2, "expected '=', found '1'"),
    "no_number": ("enum e { a = b }", 2, "expected a number, found 'b'"),
    "no_semicolon": ("record r {\n u32 a\n u32 b; }", 4, "expected ';', found 'u32'"),
    "no_field_name": ("record r {\n u32; }", 3, "expected a name for the field, found ';'"),
    "no_bracket": ("record r { char 8 a; }", 2, "expected '[', found '8'"),
    "no_end": ("record r {\n u32 a;\n", 4, "expected '}', found end of file"),
    "no_end_of_enum": ("enum e {\n a = 1\n", 4, "expected a value, found end of file"),
    "no_field": ("record r {\n 4; }", 3, "expected a field, found '4'"),
    "no_opcode": ("request a { }\nnoreply a", 2, "request 'a' has no opcode"),
    "no_range_align": ("request a = 1 {\n range b c; }\nnoreply a", 3,
                       "expected 'align', found ';'"),
    "no_tail_count": ("request a = 1 { u32 n;\n tail u8 b; }\nnoreply a", 3,
                      "expected the field that counts it, found ';'"),

    # reserved words
    "keyword_as_enum": ("enum tail { a = 1 }", 2, "'tail' is a reserved word"),
    "keyword_as_flags": ("flags u32 { a = 1 }", 2, "'u32' is a reserved word"),
    "keyword_as_record": ("record request { u32 a; }", 2, "'request' is a reserved word"),
    "mask_as_flag": ("flags f {\n mask = 1 }", 3, "'mask' is a reserved word"),
    "c_word_as_field": ("record r {\n u32 int; }", 3, "'int' cannot name a field"),
    "header_as_field": ("record r { u32 header; }", 2, "'header' cannot name a field"),
    "own_padding_as_field": ("record r { u32 reserved_4; }", 2, "'reserved_4' cannot name a field"),
    "c_word_as_tail": ("request a = 1 { u32 n;\n tail u8 long n; }\nnoreply a", 3,
                       "'long' cannot name a field"),
    "c_word_as_length": ("request a = 1 {\n range b for align 1; }\nnoreply a", 3,
                         "'for' cannot name a field"),

    # unknown names
    "unknown_type": ("record r {\n u32 a;\n u33 b; }", 4, "unknown type 'u33'"),
    "unknown_enum": ("record r { enum e a; }", 2, "unknown enum 'e'"),
    "unknown_flags": ("record r { flags f a; }", 2, "unknown flags 'f'"),
    "enum_used_as_flags": ("enum e { a = 1 }\nrecord r { flags e a; }", 3, "unknown flags 'e'"),
    "type_used_before": ("record r { enum e a; }\nenum e { a = 1 }", 2, "unknown enum 'e'"),
    "unknown_tail": ("request a = 1 { u32 n;\n tail s b n; }\nnoreply a", 3, "unknown type 's'"),
    "record_as_field": ("record r { u32 a; }\nrecord s {\n r a; }", 4,
                        "record 'r' can only be in a tail"),

    # duplicates
    "enum_twice": ("enum e { a = 1 }\nenum e { b = 1 }", 3, "'e' is there twice: see line 2"),
    "enum_and_record": ("enum e { a = 1 }\n\nrecord e { u32 b; }", 4,
                        "'e' is there twice: see line 2"),
    "value_twice": ("enum e { a = 1\n a = 2 }", 3, "enum 'e': 'a' is there twice"),
    "number_twice": ("enum e { a = 1\n b = 0x1 }", 3, "enum 'e': 'b' has the value of 'a'"),
    "flag_twice": ("flags e { a = 1\n b = 1 }", 3, "flags 'e': 'b' has the value of 'a'"),
    "constant_twice": ("enum a { b_c = 1 }\nenum a_b { c = 1 }", 3,
                       "HMM_A_B_C is there twice: see line 2"),
    "field_twice": ("record r { u32 a;\n u64 a; }", 3, "field 'a' is there twice"),
    "pad_twice": ("record r { u32 pad; u32 a;\n u64 pad; }", 3, "field 'pad' is there twice"),
    "length_twice": ("request a = 1 { u32 c;\n range b c align 1; }\nnoreply a", 3,
                     "field 'c' is there twice"),
    "length_is_address": ("request a = 1 {\n range b b align 1; }\nnoreply a", 3,
                          "field 'b' is there twice"),
    "tail_twice": ("request a = 1 { u32 n;\n tail u8 n n; }\nnoreply a", 3,
                   "field 'n' is there twice"),
    "request_twice": ("request a = 1 { }\nrequest a = 2 { }\nnoreply a", 3,
                      "request 'a' is there twice: see line 2"),
    "event_named_as_request": ("request a = 1 { }\nnoreply a\nevent a = 0x4001 { }", 4,
                               "event 'a' is there twice: see line 2"),
    "reply_twice": ("request a = 1 { }\nreply a { }\nreply a { }", 4,
                    "reply 'a' is there twice: see line 3"),
    "request_named_as_reply": ("request a = 1 { }\nreply a { }\nrequest a_reply = 2 { }", 4,
                               "request 'a_reply' is there twice: see line 3"),
    "opcode_twice": ("request a = 1 { }\nreply a { }\nrequest b = 1 { }\nreply b { }", 4,
                     "request 'b': opcode 0x1 is taken by request 'a'"),
    "opcode_of_a_reply": ("request a = 1 { }\nreply a { }\nreply b = 0x8001 { }", 4,
                          "reply 'b': opcode 0x8001 is taken by reply 'a'"),
    "noreply_twice": ("request a = 1 { }\nnoreply a\nnoreply a", 4, "noreply 'a' is there twice"),

    # values out of bounds
    "enum_too_large": ("enum e { a = 0x100000000 }", 2, "enum 'e': 'a' does not fit in u32"),
    "enum_negative": ("enum e { a = -1 }", 2, "enum 'e': 'a' does not fit in u32"),
    "enum_empty": ("enum e { }", 2, "enum 'e' is empty"),
    "flags_empty": ("flags e { }", 2, "flags 'e' is empty"),
    "flag_zero": ("flags f { a = 0 }", 2, "flags 'f': 'a' is not one bit of 64"),
    "flag_of_two_bits": ("flags f { a = 1\n b = 6 }", 3, "flags 'f': 'b' is not one bit of 64"),
    "flag_too_high": ("flags f { a = 0x10000000000000000 }", 2,
                      "flags 'f': 'a' is not one bit of 64"),
    "opcode_zero": ("request a = 0 { }\nnoreply a", 2,
                    "request 'a': opcode 0x0 is outside 0x1..0x3fff"),
    "opcode_of_an_event": ("request a = 0x4000 { }\nnoreply a", 2,
                           "request 'a': opcode 0x4000 is outside 0x1..0x3fff"),
    "event_too_low": ("event a = 0x4000 { }", 2, "event 'a': opcode 0x4000 is outside 0x4001..0x7fff"),
    "event_too_high": ("event a = 0x8001 { }", 2,
                       "event 'a': opcode 0x8001 is outside 0x4001..0x7fff"),
    "reply_too_high": ("reply a = 0xc000 { }", 2,
                       "reply 'a': opcode 0xc000 is outside 0x8000..0xbfff"),
    "too_many_fds": ("request a = 1 fds 17 { }\nnoreply a", 2,
                     "bad number of fds: 0..16 are possible"),
    "fds_backwards": ("request a = 1 fds 3..2 { }\nnoreply a", 2,
                      "bad number of fds: 0..16 are possible"),
    "text_too_short": ("record r { char[1] a; }", 2, "text 'a': size is outside 2..4096"),
    "text_too_long": ("record r { char[4097] a; }", 2, "text 'a': size is outside 2..4096"),
    "range_align_zero": ("request a = 1 {\n range b c align 0; }\nnoreply a", 3,
                         "range 'b': alignment is no power of two"),
    "range_align_odd": ("request a = 1 {\n range b c align 4095; }\nnoreply a", 3,
                        "range 'b': alignment is no power of two"),
    "range_max_unaligned": ("request a = 1 {\n range b c align 4096 max 4097; }\nnoreply a", 3,
                            "range 'b': max is no multiple of the alignment, or outside the "
                            "address space"),
    "range_max_too_large": ("request a = 1 {\n range b c align 1 max 0x800000000001; }\nnoreply a",
                            3, "range 'b': max is no multiple of the alignment, or outside the "
                            "address space"),

    # shape
    "record_empty": ("record r { }", 2, "record 'r' is empty"),
    "record_too_large": ("record r {\n char[4096] a; u8 b; }", 2,
                         "record 'r' is too large: 4104 bytes of 4096"),
    "message_too_large": ("\nrequest a = 1 {" + "".join(f" char[4096] f{i};" for i in range(17))
                          + " }\nnoreply a", 3, "request 'a' is too large: 69648 bytes of 66560"),
    "tail_too_large": ("record r { char[4096] a; }\nrequest a = 1 {"
                       + "".join(f" char[4096] f{i};" for i in range(16))
                       + " u32 n; tail r b n; }\nnoreply a", 3,
                       "request 'a' is too large: one element does not fit"),
    "tail_not_last": ("request a = 1 { u32 n;\n tail u8 b n;\n u32 c; }\nnoreply a", 4,
                      "'b' is a tail, which must be last"),
    "two_tails": ("request a = 1 { u32 n;\n tail u8 b n;\n tail u8 c n; }\nnoreply a", 4,
                  "'b' is a tail, which must be last"),
    "tail_in_record": ("record r { u32 n;\n tail u8 b n; }", 3, "only a message has a tail"),
    "tail_without_count": ("request a = 1 {\n tail u8 b n; }\nnoreply a", 3,
                           "tail 'b': there is no field 'n' that counts it"),
    "tail_count_too_narrow": ("request a = 1 { u16 n;\n tail u8 b n; }\nnoreply a", 3,
                              "tail 'b': 'n' is not u32"),
    "tail_count_is_text": ("request a = 1 { char[4] n;\n tail u8 b n; }\nnoreply a", 3,
                           "tail 'b': 'n' is not u32"),
    "tail_count_is_pad": ("request a = 1 { u32 pad;\n tail u8 b pad; }\nnoreply a", 3,
                          "tail 'b': 'pad' is not u32"),
    "no_reply": ("request a = 1 { }\nrequest b = 2 { }\nreply b { }", 2,
                 "request 'a' has no reply; if it needs none, say 'noreply a'"),
    "noreply_and_reply": ("request a = 1 { }\nreply a { }\nnoreply a", 3,
                          "request 'a' is noreply and has a reply"),
    "noreply_of_nothing": ("noreply a", 2, "noreply 'a': there is no such request before it"),
    "reply_to_nothing": ("reply a { }", 2, "reply 'a' has no request before it"),
    "reply_before_request": ("reply a { }\nrequest a = 1 { }", 2,
                             "reply 'a' has no request before it"),
    "protocol_twice": ("protocol t version 2", 2, "expected a declaration, found 'protocol'"),
}

EVERYTHING = """
enum colour public mirror "Of a \\\\ device */" { red = 0 "\\\\o/ */" green = 4294967295 }
flags shape { round = 1 square = 0x8000000000000000 "corners" }
record item "One" { u8 a; u64 b; char[3] c; i16 d; enum colour e; flags shape f; u8 g; }
request all = 0x3fff fds 1..16 "Everything" {
    u8 a; range addr length align 4096 max 8192; char[5] name; u32 count; i64 b; i8 c; u32 pad;
    tail item items count;
}
reply all { u32 n; tail u64 numbers n; }
request quiet = 1 { }
noreply quiet
reply own = 0x8000 { enum colour colour; }
event happened = 0x7fff { u16 a; }
"""


class ScannerTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.out = os.path.join(self.folder, "out")

    def scan(self, text, name="schema.hmm"):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        return self.scan_file(path)

    def scan_file(self, path):
        """In this process, which takes a hundredth of the time that a new one takes."""
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            status = scanner.main([path, "--out", self.out])
        return subprocess.CompletedProcess(path, status, stdout.getvalue(), stderr.getvalue())

    def run_file(self, path):
        return subprocess.run([sys.executable, SCANNER, path, "--out", self.out], text=True,
                              capture_output=True)

    def refused(self, text, line, message):
        result = self.scan(text, "bad.hmm")
        self.assertEqual(result.stderr, f"{self.folder}/bad.hmm:{line}: {message}\n")
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertFalse(os.path.exists(self.out), "something was written in spite of a mistake")

    def generated(self, name):
        with open(os.path.join(self.out, name)) as file:
            return file.read()

    def scanned(self, text):
        result = self.scan(text)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))
        self.assertEqual(sorted(os.listdir(self.out)), sorted([*GENERATED, "corpus"]))


def mistake(text, line, message):
    return lambda self: self.refused("protocol t version 1\n" + text, line, message)


class Mistakes(ScannerTest):
    def test_empty_file(self):
        self.refused("", 1, "expected 'protocol NAME version NUMBER' first")

    def test_something_before_protocol(self):
        self.refused("# comment\nenum e { a = 1 }", 2, "expected 'protocol NAME version NUMBER' first")

    def test_version_zero(self):
        self.refused("protocol t version 0", 1, "version does not fit in u32, or is 0")

    def test_version_missing(self):
        self.refused("protocol t", 1, "expected 'version', found end of file")

    def test_missing_file(self):
        result = self.run_file(self.folder + "/none.hmm")
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, r"\A.*/none\.hmm: .*No such file.*\n\Z")

    def test_exit_status_of_the_program(self):
        path = self.folder + "/bad.hmm"
        with open(path, "w") as file:
            file.write("protocol t version 1\n%")
        result = self.run_file(path)
        self.assertEqual((result.returncode, result.stdout, result.stderr),
                         (1, "", f"{path}:2: unexpected character '%'\n"))
        with open(path, "w") as file:
            file.write("protocol t version 1\nevent a = 0x4001 { }")
        result = self.run_file(path)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))

    def test_not_text(self):
        with open(self.folder + "/binary.hmm", "wb") as file:
            file.write(b"protocol \xff\xfe")
        result = self.scan_file(self.folder + "/binary.hmm")
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, r"\A.*/binary\.hmm: .*\n\Z")

    def test_every_prefix_of_the_real_schema(self):
        """Cut anywhere between two words, it is either complete or one clean error."""
        with open(os.path.join(PROTO, "protocol.hmm")) as file:
            text = file.read()
        for match in list(re.finditer(r"\s+", text))[::17]:
            try:
                scanner.scan(text[:match.start()])
            except scanner.SchemaError as error:
                self.assertGreaterEqual(error.line, 1)
                self.assertLessEqual(error.line, text[:match.start()].count("\n") + 1)


for name_, mistake_ in MISTAKES.items():
    setattr(Mistakes, "test_" + name_, mistake(*mistake_))


class Output(ScannerTest):
    def compile(self, program):
        """The generated files together with program, linked with the codec and run."""
        with open(os.path.join(self.folder, "program.c"), "w") as file:
            file.write(program)
        subprocess.run([os.environ.get("CC", "cc"), "-std=gnu11", "-Wall", "-Wextra", "-Wshadow", "-Werror",
                        "-I", PROTO, "-I", self.out, "-o", "program", "program.c",
                        self.out + "/hmm_protocol.c"], cwd=self.folder, check=True)
        return subprocess.run([self.folder + "/program"], text=True, check=True, capture_output=True).stdout

    CODEC = """
    #include <stdio.h>
    #include "hmm_protocol.h"
    const char *hmm_value_name(const struct hmm_value_name *names, uint64_t value)
    {
        while (names->name && names->value != value)
            names++;
        return names->name ? names->name : "?";
    }
    """

    def test_everything_compiles(self):
        self.scanned("protocol t version 7\n" + EVERYTHING)
        shown = self.compile(self.CODEC + r"""
        int main(void)
        {
            printf("%d %zu %zu %zu %zu\n", HMM_PROTOCOL_VERSION, sizeof(struct hmm_record_item),
                   sizeof(struct hmm_msg_all), offsetof(struct hmm_msg_all, items),
                   sizeof(struct hmm_msg_quiet));
            printf("%x %x %x %x %x\n", HMM_OP_ALL, HMM_OP_ALL_REPLY, HMM_OP_QUIET, HMM_OP_OWN, HMM_OP_HAPPENED);
            printf("%s %s %s %s\n", hmm_colour_name(HMM_COLOUR_GREEN), hmm_shape_name(HMM_SHAPE_SQUARE),
                   hmm_shape_names[1].doc, hmm_colour_names[0].doc);
            printf("%d\n", HMM_SHAPE_MASK == 0x8000000000000001);
            for (size_t i = 0; i < hmm_wire_message_count; i++)
                printf("%s %x %d..%d %d%d|", hmm_wire_messages[i].name, hmm_wire_messages[i].opcode,
                       hmm_wire_messages[i].fds_min, hmm_wire_messages[i].fds_max,
                       hmm_wire_messages[i].serial, hmm_wire_messages[i].any_serial);
            return 0;
        }
        """)
        self.assertEqual(shown, "7 48 72 72 16\n3fff bfff 1 8000 7fff\ngreen square corners \\\\o/ */\n1\n"
                         "quiet 1 0..0 01|all 3fff 1..16 10|happened 7fff 0..0 00|own 8000 0..0 01|"
                         "all reply bfff 0..0 10|")

    def test_holes_become_checked_fields(self):
        self.scanned("protocol t version 1\n" + EVERYTHING)
        header, code = self.generated("hmm_protocol.h"), self.generated("hmm_protocol.c")
        for field in ("uint8_t reserved_1[7];", "uint8_t reserved_19[1];", "uint8_t reserved_22[2];",
                      "uint8_t reserved_41[7];"):
            self.assertIn(field, header)
        self.assertIn('{ .name = "reserved_1", .kind = HMM_WIRE_PAD, .offset = 1, .size = 7 },', code)

    def test_public_names_may_exist(self):
        """The same constants in a public header that came first, under an enum of the same name."""
        self.scanned("protocol t version 1\n" + EVERYTHING)
        shown = self.compile("""
        #define HMM_MIRROR_H
        enum hmm_colour { HMM_COLOUR_RED, HMM_COLOUR_PUBLIC = 5 };
        """ + self.CODEC + r"""
        int main(void)
        {
            enum hmm_colour colour = HMM_COLOUR_PUBLIC;

            printf("%d %d %u", colour, HMM_COLOUR_RED, (unsigned)HMM_COLOUR_GREEN);
            return 0;
        }
        """)
        self.assertEqual(shown, "5 0 4294967295")

    def test_manual_has_every_name(self):
        result = self.scan_file(os.path.join(PROTO, "protocol.hmm"))
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        manual = self.generated("PROTOCOL.md")
        with open(os.path.join(PROTO, "protocol.hmm")) as file:
            declared = re.findall(r"^(enum|flags|record|request|reply|event) (\w+)", file.read(), re.M)
        self.assertGreater(len(declared), 90)
        for kind, name in declared:
            self.assertIn(f"\n### {kind} {name}\n", manual)
        for link in re.findall(r"\]\(#(\w+)-(\w+)\)", manual):
            self.assertIn("\n### %s %s\n" % link, manual)

    def test_dictionary_is_one(self):
        self.scanned("protocol t version 1\n" + EVERYTHING)
        lines = self.generated("wire.dict").splitlines()
        for line in lines:
            self.assertRegex(line, r'\A(#.*|[a-z0-9_]+="(\\x[0-9a-f]{2})+")\Z')
        self.assertIn(r'header_request_all="\x48\x00\x00\x00\xff\x3f\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00"',
                      lines)
        names = [line.split("=")[0] for line in lines if not line.startswith("#")]
        self.assertEqual(len(names), len(set(names)))

    def test_corpus_has_every_message(self):
        self.scanned("protocol t version 1\n" + EVERYTHING)
        self.assertEqual(sorted(os.listdir(self.out + "/corpus")), CORPUS)
        with open(self.out + "/corpus/quiet", "rb") as file:
            self.assertEqual(file.read(), b"\0\0" + struct.pack("<IHHII", 16, 1, 0, 1, 0))
        with open(self.out + "/corpus/all_reply", "rb") as file:
            self.assertEqual(file.read(), b"\1\0" + struct.pack("<IHHIIIIQ", 32, 0xbfff, 0, 1, 0, 1, 0, 0))

    def test_unchanged_files_are_left_alone(self):
        self.scanned("protocol t version 1\n" + EVERYTHING)
        for name in GENERATED:
            os.utime(os.path.join(self.out, name), (1, 1))
        self.scanned("# only a comment\nprotocol t version 1\n" + EVERYTHING)
        for name in GENERATED:
            self.assertEqual(os.stat(os.path.join(self.out, name)).st_mtime, 1, name)
        self.scanned("protocol t version 2\n" + EVERYTHING)
        self.assertNotEqual(os.stat(os.path.join(self.out, "hmm_protocol.h")).st_mtime, 1)

    def test_same_input_same_output(self):
        self.scan_file(os.path.join(PROTO, "protocol.hmm"))
        first = {name: self.generated(name) for name in GENERATED}
        shutil.rmtree(self.out)
        self.scan_file(os.path.join(PROTO, "protocol.hmm"))
        self.assertEqual(first, {name: self.generated(name) for name in GENERATED})


if __name__ == "__main__":
    harness.main()
