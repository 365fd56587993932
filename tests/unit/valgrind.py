# SPDX-License-Identifier: GPL-2.0-or-later
"""Short unit tests once more, under valgrind: valgrind.py NAME...

What it sees and the sanitizers do not is memory that is read before it is written. Criterion runs each test in a process of its own, which
takes valgrind a second to begin. Programs that need the kernel's userfaultfd, or a sanitizer's build, do not run under it.
"""

import os
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration"))
import harness  # noqa: E402

NAMES = sys.argv[1:]


class Valgrind(unittest.TestCase):
    def check(self, name):
        if harness.SANITIZE:
            self.skipTest("valgrind does not run a sanitizer's build")
        if not shutil.which("valgrind"):
            self.skipTest("valgrind is not installed")
        program = os.path.join(harness.BINARY, "tests", "unit", f"test-unit-{name}")
        done = subprocess.run(["valgrind", "-q", "--trace-children=yes", "--error-exitcode=9", "--leak-check=full",
                               "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite", program],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=harness.scaled(250))
        said = [line for line in done.stdout.splitlines() if line.startswith("==")]
        if said or done.returncode:
            self.fail(f"status {done.returncode}:\n" + "\n".join(said[:40] or done.stdout.splitlines()[-20:]))


for program_name in NAMES:
    setattr(Valgrind, f"test_{program_name.replace('-', '_')}", lambda self, name=program_name: self.check(name))

if __name__ == "__main__":
    del sys.argv[1:]
    harness.main()
