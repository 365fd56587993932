#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What docs/LIMITS.md cites exists: each test as ctest knows it, and each case (":case" is one of the test named before it)
among those that the test runs. A case that no test runs shows nothing."""

import fnmatch
import json
import os
import re
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
import harness      # noqa: E402

CITED = re.compile(r"`([a-z][a-z0-9*-]*)?(?::([\w*-]+))?`")
ROOMS = re.compile(r"^(contract|unit|mirror|inject|coherence|example|demo|hmmctl|vfio|control|service|fuzz|package|bad|hostile)(-|$)")


def tests():
    """Name -> command."""
    told = subprocess.run(["ctest", "--test-dir", harness.BINARY, "--show-only=json-v1"], stdout=subprocess.PIPE, text=True, check=True)
    return {test["name"]: test["command"][test["command"].index("--", 2) + 1:] for test in json.loads(told.stdout)["tests"]
            if "--" in test.get("command", [])}


def run(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def cases_of(command):
    script = next((word for word in command if word.endswith(".py")), None)
    if script and os.path.basename(script) == "mirror_cases.py":
        group, _, case = command[command.index(script) + 1].partition(":")
        return [case] if case else run(harness.binary(f"mirror-{group}"), "--list").split()
    if script:
        with open(script) as file:
            return re.findall(r"^    def (test_\w+)\(self", file.read(), re.M)
    return re.findall(r"(\w+)$", run(command[0], "--list"), re.M)


def citations(text):
    """(item, test, case or None); a test's name stays for the cases after it, to the end of its item."""
    found, item, test = [], "", None
    for line in text.splitlines():
        begins = re.match(r"(\d+)\. ", line)
        if begins:
            item, test = begins.group(1), None
        for name, case in CITED.findall(line):
            if name and not ROOMS.match(name):
                continue
            test = name or test
            if name or case:
                found.append((item, test, case or None))
    return found


class Limits(unittest.TestCase):
    def test_reading(self):
        """Of this script itself."""
        self.assertEqual(citations("1. a `mirror-a:b`, `:c-*` `hmm_x`\n   `unit-*`\n2. `:e`"),
                         [("1", "mirror-a", "b"), ("1", "mirror-a", "c-*"), ("1", "unit-*", None), ("2", None, "e")])

    def test_cited(self):
        with open(os.path.join(harness.SOURCE, "docs", "LIMITS.md")) as file:
            cited = citations(file.read())
        known, cases = tests(), {}
        self.assertGreater(len(cited), 80)
        for item, test, case in cited:
            with self.subTest(item=item, test=test, case=case):
                meant = fnmatch.filter(known, test or "")
                self.assertTrue(meant, f"there is no test {test}")
                for name in meant if case else []:
                    if name not in cases:
                        cases[name] = cases_of(known[name])
                self.assertTrue(not case or any(fnmatch.filter(cases[name], case) for name in meant), f"{test} has no case {case}")


if __name__ == "__main__":
    harness.main()
