# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program has locked is nowhere that could be on a disk, and hmmd's core holds nobody's memory."""

import contextlib
import os
import re
import resource
import shutil
import struct
import subprocess
import unittest

import harness

PAGE = 4096
# Where the library maps: libclient/mapping.c.
LIBRARY = range(0x200000000000, 0x300000000000)
# Of tables as large as the address space not even a byte is a program's.
LARGEST = 4 << 30


class Mapping:
    def __init__(self, head):
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)", head)
        self.start, self.end, self.name = int(match[1], 16), int(match[2], 16), match[3]
        self.flags = []


def mappings(pid):
    found = []
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                found.append(Mapping(line.rstrip()))
            elif line.startswith("VmFlags:"):
                found[-1].flags = line.split()[1:]
    return found


def bytes_of(pid, mapping):
    """What is in memory of it, a piece after the other: a hole is not to be filled by being looked at."""
    with open(f"/proc/{pid}/pagemap", "rb") as pagemap, open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        pages = (mapping.end - mapping.start) // PAGE
        pagemap.seek(mapping.start // PAGE * 8)
        entries = struct.unpack(f"<{pages}Q", pagemap.read(pages * 8))
        for i, entry in enumerate(entries):
            if entry >> 62:
                with contextlib.suppress(OSError):
                    yield mapping.start + i * PAGE, os.pread(mem.fileno(), PAGE, mapping.start + i * PAGE)


class Secrets(harness.Test):
    daemon_args = ["--pool", "memfd"]

    def expect_no_word(self, pid, secrets, what, where):
        """Each word of the memory is a multiple of the seed, so that two tell it from whatever else is there."""
        for mapping in mappings(pid):
            if mapping.end - mapping.start > LARGEST or mapping.name.startswith("[v") or not where(mapping):
                continue
            for address, page in bytes_of(pid, mapping):
                if any(needle in page for needle in secrets):
                    self.fail(f"{what} at {address:#x} ({mapping.name or 'anonymous'}, {' '.join(mapping.flags)})")

    @staticmethod
    def needles(seed, addend):
        """Of secrets.c: the words at some offsets, two at a time."""
        def word(i):
            return struct.pack("<Q", seed * (2 * i + addend) & (1 << 64) - 1)
        return [word(i) + word(i + 8) for i in (0, 24, 96, 104, 4000, 4096, 8176)]

    @unittest.skipIf("address" in harness.SANITIZE, "AddressSanitizer makes mlock do nothing")
    def test_in_place(self):
        """Locked memory that a device reads and writes without a window: in hmmd, and in the library, it is in locked memory alone."""
        self.start_daemon()
        seed = self.random.getrandbits(61) | 1 << 60
        client = self.spawn("mirror-secrets", "in-place")
        client.send(f"{seed:x}")
        client.expect("^ready$")
        secrets = self.needles(seed, 3) + self.needles(seed, 5)
        # It can be found at all.
        with self.assertRaisesRegex(AssertionError, "in the program"):
            self.expect_no_word(client.pid, secrets, "in the program", lambda mapping: "lo" in mapping.flags)
        self.expect_no_word(self.daemon.pid, secrets, "the secret is in hmmd's unlocked memory", lambda mapping: "lo" not in mapping.flags)
        self.expect_no_word(client.pid, secrets, "the secret is in the library's unlocked memory",
                            lambda mapping: mapping.start in LIBRARY and "lo" not in mapping.flags)
        self.expect_no_word(client.pid, secrets, "the secret is in what the library leaves to a core",
                            lambda mapping: mapping.start in LIBRARY and "dd" not in mapping.flags)
        client.finish()

    def test_core_of_hmmd(self):
        """There is none; and in one that a debugger makes there are registers, and no memory."""
        self.start_daemon()
        self.assertEqual(resource.prlimit(self.daemon.pid, resource.RLIMIT_CORE), (1, 1))
        with open(f"/proc/{self.daemon.pid}/coredump_filter") as file:
            self.assertEqual(int(file.read(), 16), 0)
        if not shutil.which("gdb"):
            self.skipTest("gdb is not installed")
        seed = self.random.getrandbits(61) | 1 << 60
        client = self.spawn("mirror-secrets", "in-place")
        client.send(f"{seed:x}")
        client.expect("^ready$")
        core = os.path.join(self.folder, "core-of-hmmd")
        told = subprocess.run(["gdb", "-nx", "-batch", "-p", str(self.daemon.pid), "-iex", "set auto-load off",
                               "-iex", "set debuginfod enabled off", "-ex", f"gcore {core}"],
                              capture_output=True, text=True, timeout=harness.scaled(120), stdin=subprocess.DEVNULL)
        self.assertTrue(os.path.exists(core), told.stdout + told.stderr)
        with open(core, "rb") as file:
            content = file.read()
        self.assertEqual(content[:4], b"\x7fELF")
        # More than any register holds.
        for addend in (3, 5):
            words = b"".join(struct.pack("<Q", seed * (2 * i + addend) & (1 << 64) - 1) for i in range(0, 8192, 8))
            for at in range(0, 8192, 512):
                self.assertFalse(words[at:at + 256] in content, f"{256} bytes of the program's are in the core")
        client.finish()

    def test_core_for_whoever_looks_for_a_mistake(self):
        self.start_daemon(environment={"HMMD_DEBUG": "core"})
        with open(f"/proc/{self.daemon.pid}/coredump_filter") as file:
            self.assertNotEqual(int(file.read(), 16), 0)
        self.assertNotEqual(resource.prlimit(self.daemon.pid, resource.RLIMIT_CORE)[1], 1)


if __name__ == "__main__":
    harness.main()
