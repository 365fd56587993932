#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual against what it describes: a page for every call and none for another, with the header's own
prototype; every command, option and setting; references that lead somewhere; and no complaint of groff's."""

import glob
import os
import re
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
import harness      # noqa: E402

MANUAL = os.path.join(harness.SOURCE, "docs", "man")
OURS = re.compile(r"^(hmm\w*|hmmctl|hmmd|hmmd\.conf)$")


def read(path):
    with open(path) as file:
        return file.read()


def pages():
    return {os.path.basename(path): read(path) for path in glob.glob(f"{MANUAL}/*.[1-8]")}


def in_one_line(text):
    """Blanks only where C needs them."""
    return re.sub(r"\s*([(),*;])\s*", r"\1", " ".join(text.split())).replace(";", "")


def prototypes():
    """Of every public function: what its header says."""
    found = {}
    for header in glob.glob(f"{harness.SOURCE}/include/hmm/*.h"):
        text = re.sub(r"/\*.*?\*/", "", read(header), flags=re.S)
        text = re.sub(r"^\s*#(.*\\\n)*.*$", "", text, flags=re.M)
        for static, start, name, arguments in re.findall(
                r"^(static inline )?((?:const |struct |enum |unsigned )*\w+ \**)(hmm_\w+)(\([^{};]*\))(?=\s*[;{])", text, re.M):
            found[name] = in_one_line(start + name + arguments)
    return found


def plain(text):
    """A line of a page without its macro, fonts and quotes."""
    text = re.sub(r"^\.(BI|BR|RB|IR|RI|B|I) ", "", text)
    if '"' in text:
        text = "".join(quoted if quoted else bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', text))
    text = re.sub(r"\\f[BIRP]", "", text)
    return text.replace("\\-", "-").replace("\\&", "").replace("\\(aq", "'")


class Manual(unittest.TestCase):
    def test_a_page_for_each_call(self):
        declared = set(prototypes())
        self.assertGreater(len(declared), 50)
        described = {name[:-2] for name in pages() if name.endswith(".3")}
        self.assertEqual(declared - described, set(), "calls without a page")
        self.assertEqual(described - declared, set(), "pages without a call")

    def test_the_library_has_them(self):
        symbols = subprocess.run(["nm", "-D", "--defined-only", os.path.join(harness.BINARY, "libclient", "libhmmclient.so")],
                                 stdout=subprocess.PIPE, text=True, check=True).stdout
        exported = set(re.findall(r" T (hmm_\w+)@@HMMCLIENT", symbols))
        exported = {name for name in exported if not name.startswith("hmm_internal_")}
        self.assertGreater(len(exported), 50)
        self.assertEqual({f"{name}.3" for name in exported} - set(pages()), set(), "exported calls without a page")

    def test_names(self):
        """A page that only names another one is named by that; the others name themselves first or later."""
        texts = pages()
        for name, text in texts.items():
            with self.subTest(page=name):
                led = re.match(r"\.so man(\d)/(\S+)\s*$", text)
                if led:
                    self.assertIn(led.group(2), texts)
                    text = texts[led.group(2)]
                names = re.search(r"^\.SH NAME\n(.*) \\- ", text, re.M).group(1)
                self.assertIn(name[:-2], names.replace("\\-", "-").split(", "))

    def test_prototypes(self):
        """What a page shows is what the header says."""
        said = prototypes()
        shown = {}
        for name, text in pages().items():
            synopsis = re.search(r"^\.SH SYNOPSIS\n(.*?)^\.SH", text, re.M | re.S)
            if not name.endswith(".3") or not synopsis:
                continue
            text = " ".join(plain(line) for line in synopsis.group(1).splitlines() if line.startswith((".B", ".I", ".R")))
            for piece in text.split(";"):
                call = re.search(r"\b(hmm_\w+)\(", piece)
                if call and call.group(1) in said:
                    start = re.sub(r"^.*?(#include <[^>]*> *)+", "", in_one_line(piece)).strip()
                    shown.setdefault(call.group(1), []).append(re.sub(r"^static inline ", "", start))
        self.assertEqual(set(said) - set(shown), set(), "no page shows how to call them")
        for name in sorted(shown):
            with self.subTest(call=name):
                self.assertIn(said[name], shown[name])

    def test_references(self):
        texts = pages()
        for name, text in texts.items():
            for target, section in re.findall(r"^\.BR +([\w.\\-]+) +\(([1-8])\)", text, re.M):
                if OURS.match(target):
                    with self.subTest(page=name, reference=target):
                        self.assertIn(f"{target}.{section}", texts)

    def test_hmmctl(self):
        """Each command that it knows, and each of its options, is in its page; and the other way round."""
        page = pages()["hmmctl.1"]
        hmmctl = os.path.join(harness.BINARY, "hmmctl", "hmmctl")
        known = subprocess.run([hmmctl, "--help"], stdout=subprocess.PIPE, text=True, check=True).stdout
        commands = set(re.findall(r"^  (\w+)  +\S", known, re.M))
        self.assertIn("status", commands)
        body = re.search(r"^\.SH COMMANDS\n(.*?)^\.SH", page, re.M | re.S).group(1)
        described = set(re.findall(r'^\.TP\n\.BR? (\w+)', body, re.M))
        self.assertEqual(described - {"help"}, commands)
        for command in commands:
            told = subprocess.run([hmmctl, "help", command], stdout=subprocess.PIPE, text=True, check=True).stdout
            for option in set(re.findall(r"--[a-z][a-z-]+", told)):
                with self.subTest(command=command, option=option):
                    self.assertIn(option, page.replace("\\-", "-"))

    def test_hmmd(self):
        page = pages()["hmmd.8"].replace("\\-", "-")
        told = subprocess.run([os.path.join(harness.BINARY, "daemon", "hmmd"), "--help"], stdout=subprocess.PIPE, text=True,
                              check=True).stdout
        options = set(re.findall(r"^  .*?(--[a-z][a-z-]+)", told, re.M)) | {"--version"}
        described = set(re.findall(r"^\.BI? (--[a-z-]+)|^\.BR (--[a-z-]+)", page, re.M))
        described = {a or b for a, b in described} | {"--version"}
        self.assertGreater(len(options), 10)
        self.assertEqual(described, options)

    def test_configuration(self):
        """The file that is installed names each setting, as the manual does."""
        page = pages()["hmmd.conf.5"].replace("\\-", "-")
        settings = re.findall(r"^#? ?([a-z][a-z_-]+) *=", read(os.path.join(harness.SOURCE, "systemd", "hmmd.conf")), re.M)
        self.assertGreater(len(settings), 10)
        described = re.findall(r"^\.B[IR]? (?:\"?)([a-z][a-z_-]+)(?= |=|\"|$)", page, re.M)
        self.assertLessEqual(set(settings), set(described))

    def test_groff(self):
        whole = sorted(os.path.join(MANUAL, name) for name, text in pages().items() if not text.startswith(".so "))
        for page in whole:
            done = subprocess.run(["groff", "-ww", "-z", "-man", "-Tutf8", page], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True)
            with self.subTest(page=os.path.basename(page)):
                self.assertEqual((done.returncode, done.stdout), (0, ""))


if __name__ == "__main__":
    harness.main()
