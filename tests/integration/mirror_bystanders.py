# SPDX-License-Identifier: GPL-2.0-or-later
"""Others who look at an owner or bound it: a debugger, a core dump, a memory cgroup."""

import contextlib
import errno
import os
import re
import shutil
import signal
import struct
import subprocess
import unittest

import harness

PAGES = 512
CGROUP = "/sys/fs/cgroup/memory"


class Bystanders(harness.Test):
    daemon_args = ["--pool", "memfd-huge"]

    def owner(self, *args, pages=PAGES, prefix=(), cwd=None):
        owner = self.spawn_command("owner", [*prefix, harness.binary("mirror-owner"), str(pages), *args], cwd=cwd)
        self.ready = owner.expect(r"^ready (\d+) (0x[0-9a-f]+) (0x[0-9a-f]+)$")
        return owner

    def ask(self, owner, line, answer):
        owner.send(line)
        return owner.expect(answer)

    def out(self, owner, pages=PAGES):
        self.ask(owner, "out", f"^out {pages}$")

    # ---- gdb

    def gdb(self, owner, *commands):
        if not shutil.which("gdb"):
            self.skipTest("gdb is not installed")
        words = [word for command in commands for word in ("-ex", command)]
        return subprocess.run(["gdb", "-nx", "-batch", "-p", str(owner.pid), "-iex", "set auto-load off",
                               "-iex", "set debuginfod enabled off", *words],
                              capture_output=True, text=True, timeout=harness.scaled(120), stdin=subprocess.DEVNULL,
                              env=self.environment())

    def expect_word(self, owner):
        # The debugger has it stopped, and looks when hmmd has brought all home.
        empty = f"while {harness.binary('hmmctl')} mirrors -j | grep -q '\"device_bytes\": *[1-9]'; do sleep 0.1; done"
        seen = self.gdb(owner, f"shell {empty}", f"x/gx {self.ready.group(2)}")
        self.assertIn(self.ready.group(3), seen.stdout, seen.stdout + seen.stderr)
        self.ask(owner, "check", "^checked$")

    def test_gdb_reads_migrated_memory(self):
        """hmmd hears that a debugger attaches, and brings everything home."""
        self.start_daemon()
        owner = self.owner()
        self.out(owner)
        self.expect_word(owner)
        self.out(owner)
        self.ask(owner, "device", "^checked$")
        owner.finish()

    def test_gdb_after_a_drain(self):
        """What works where hmmd hears of nothing (no CAP_NET_ADMIN)."""
        self.start_daemon()
        owner = self.owner()
        self.out(owner)
        self.hmmctl("drain", "--pid", str(owner.pid))
        self.expect_word(owner)
        owner.finish()

    def test_mem_file_of_another(self):
        """/proc/PID/mem has an error for what is on the device, never wrong bytes, and nothing comes of trying."""
        self.start_daemon()
        owner = self.owner()
        self.out(owner)
        with open(f"/proc/{owner.pid}/mem", "rb", buffering=0) as file:
            with self.assertRaises(OSError) as caught:
                os.pread(file.fileno(), 8, int(self.ready.group(2), 16))
        self.assertEqual(caught.exception.errno, errno.EIO)
        self.ask(owner, "device", "^checked$")
        self.ask(owner, "check", "^checked$")
        owner.finish()

    # ---- core dumps

    def test_core_dump_ends(self):
        """
        The dump holds zeros for what was on the device when it came there (docs/LIMITS.md), never anything else, and hmmd says so; it neither
        hangs nor holds a page back.
        """
        self.start_daemon()
        owner = self.owner(prefix=["bash", "-c", 'ulimit -c unlimited; exec "$@"', "bash"], cwd=self.folder)
        self.out(owner)
        owner.send("crash")
        self.assertEqual(owner.wait(60), -signal.SIGABRT)
        harness.wait_until(lambda: not sum(pool["used"] for pool in self.hmmctl_json("pools")["pools"]), 10,
                           "that the pool is empty")
        core = os.path.join(self.folder, "core")
        if os.path.exists(core):
            self.assertIn(self.word_of_core(core, int(self.ready.group(2), 16)), (0, int(self.ready.group(3), 16)))
        # Which events it is told of can be chosen since then.
        if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 6):
            self.assertNotIn("debuggers and core dumps are not noticed", self.daemon.log)
            harness.wait_until(lambda: f"pid {owner.pid} is dumping core while {PAGES} of its pages are on a device" in self.daemon.log,
                               10, "that hmmd tells of it")

    def word_of_core(self, path, address):
        """The 8 bytes that an ELF core holds for an address of the process."""
        with open(path, "rb") as file:
            header = file.read(64)
            self.assertEqual(header[:4], b"\x7fELF")
            offset, = struct.unpack_from("<Q", header, 32)
            size, count = struct.unpack_from("<HH", header, 54)
            for i in range(count):
                file.seek(offset + i * size)
                kind, _, at, start, _, in_file, _, _ = struct.unpack("<IIQQQQQQ", file.read(56))
                if kind == 1 and start <= address < start + in_file:
                    file.seek(at + address - start)
                    return struct.unpack("<Q", file.read(8))[0]
        self.fail(f"the core has nothing of {address:#x}")

    # ---- a memory cgroup

    @contextlib.contextmanager
    def memory_cgroup(self, limit):
        path = os.path.join(CGROUP, f"hmmd-test-{os.getpid()}")
        try:
            os.mkdir(path)
            with open(os.path.join(path, "memory.limit_in_bytes"), "w") as file:
                file.write(str(limit))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.rmdir(path)
            self.skipTest(f"no memory cgroup (v1) can be made here: {error.strerror}")
        try:
            yield path
        finally:
            harness.wait_until(lambda: self._remove(path), 10, "that the cgroup can be removed")

    @staticmethod
    def _remove(path):
        try:
            os.rmdir(path)
            return True
        except OSError:
            return False

    def limited_owner(self, group, pages, *args):
        return self.owner(*args, pages=pages, prefix=["bash", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "bash"])

    def oom_kills(self, group):
        with open(os.path.join(group, "memory.oom_control")) as file:
            return int(re.search(r"oom_kill (\d+)", file.read()).group(1))

    @unittest.skipIf(harness.SANITIZE, "AddressSanitizer's own memory exceeds the limit")
    def test_owner_at_its_memory_limit(self):
        """All goes out and comes home, page by page and in bulk, with room for no more of it in both places than a block or two."""
        self.start_daemon()
        pages = 40 << 8
        for kind in ((), ("huge",)):
            with self.subTest(kind=kind), self.memory_cgroup(52 << 20) as group:
                owner = self.limited_owner(group, pages, *kind)
                for _ in range(2):
                    self.out(owner, pages)
                    self.ask(owner, "check", "^checked$")
                    self.out(owner, pages)
                    self.ask(owner, "home", rf"^home {pages}$")
                    self.ask(owner, "check", "^checked$")
                    self.ask(owner, "change", "^changed$")
                self.assertEqual(self.oom_kills(group), 0)
                self.ask(owner, "close", "^closed$")
                owner.finish()

    @unittest.skipIf(harness.SANITIZE, "AddressSanitizer's own memory exceeds the limit")
    def test_shutdown_of_an_owner_at_its_limit(self):
        self.start_daemon()
        pages = 40 << 8
        with self.memory_cgroup(52 << 20) as group:
            owner = self.limited_owner(group, pages, "huge")
            self.out(owner, pages)
            self.daemon.stop()
            self.ask(owner, "check", "^checked$")
            self.assertEqual(self.oom_kills(group), 0)
            owner.finish()


if __name__ == "__main__":
    harness.main()
