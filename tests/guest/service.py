#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""hmmd as a service: runs inside a Debian that its systemd has booted, installs the packages there, and is its users.

alice becomes a member of group hmm, mallory does not. Nobody here runs hmmd: that is systemd's affair.
"""

import contextlib
import glob
import grp
import os
import pwd
import re
import signal
import stat
import subprocess
import sys
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import limits  # noqa: E402
from booted import (LOCAL, as_user, configure, harness, install, journal, kill, main_pid, patient, reload, restart, run, show,  # noqa: E402
                    upgrade)

PACKAGES = ("libhmmclient0", "hmmd", "hmmctl")
SOCKETS = ("hmmd.socket", "hmmd-admin.socket")
CHURN = ("hmmctl", "run", "--device-memory", "64M", "--churn", "1", "--verbose", "--")
# Memory in pieces of 64 KiB, which come and go; the same bytes each time.
UNMODIFIED = """
import hashlib, random, sys
while True:
    random.seed(1)
    pieces = [random.randbytes(65536) for _ in range(16)]
    print(hashlib.sha256(b"".join(pieces)).hexdigest(), flush=True)
"""


def setUpModule():
    install(*PACKAGES)
    for name in ("alice", "mallory"):
        run("useradd", "--no-create-home", name)
    run("usermod", "-aG", "hmm", "alice")


class Installed(unittest.TestCase):
    """What the packages' scripts have done."""

    def test_units(self):
        for unit in ("hmmd.service", *SOCKETS):
            self.assertEqual(run("systemctl", "is-enabled", unit).strip(), "enabled", unit)
            self.assertEqual(run("systemctl", "is-active", unit).strip(), "active", unit)

    def test_sockets(self):
        """As their units say, also after hmmd was started: systemd gave all of a root's /run/hmmd to hmmd's user and group."""
        for path, mode, group in (("/run/hmmd/hmmd.sock", 0o660, "hmm"), ("/run/hmmd/admin.sock", 0o600, "root")):
            found = os.stat(path)
            self.assertEqual((stat.S_IMODE(found.st_mode), found.st_uid, grp.getgrgid(found.st_gid).gr_name), (mode, 0, group))

    def test_user(self):
        """hmmd runs as a user of its own, with the two capabilities that it needs and no others."""
        with open(f"/proc/{main_pid()}/status") as file:
            status = dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)
        self.assertEqual(set(status["Uid"].split()), {str(pwd.getpwnam("hmmd").pw_uid)})
        self.assertEqual(set(status["Gid"].split()), {str(grp.getgrnam("hmm").gr_gid)})
        for kind in ("CapEff", "CapPrm", "CapBnd"):
            # CAP_SYS_PTRACE, CAP_SYS_NICE
            self.assertEqual(int(status[kind], 16), 1 << 19 | 1 << 23, kind)
        self.assertEqual(status["NoNewPrivs"], "1")
        self.assertEqual(os.stat("/dev/userfaultfd").st_uid, pwd.getpwnam("hmmd").pw_uid)

    def test_status(self):
        self.assertRegex(run("systemctl", "status", "--no-pager", "hmmd.service"), r'Status: "\w')

    def test_nothing_is_refused(self):
        """Not by seccomp, nor by what its mount namespace hides: hmmd says at the start what it has to do without."""
        complaints = [line for line in journal().splitlines() if re.search(r"\b(warning|error)\b", line)]
        self.assertEqual(complaints, [])

    def test_doctor(self):
        for user in ("alice", None):
            said = run("hmmctl", "doctor", user=user, status=None)
            print(said)
            # Of the service there is nothing to be said; huge pages for shmem are the kernel's affair.
            self.assertEqual(set(re.findall(r"^(?:warning|error): (\w+)", said, re.M)) - {"shmem_enabled"}, set())
            self.assertIn("note: iommu:", said)


class Served(unittest.TestCase):
    def tearDown(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(LOCAL)

    def test_first_client_starts_it(self):
        run("systemctl", "stop", "hmmd.service")
        states = run("systemctl", "is-active", "hmmd.service", *SOCKETS, status=None).split()
        self.assertEqual(states, ["inactive", "active", "active"])
        self.assertRegex(run(f"{harness.BINARY}/examples/hello", user="alice"), r"\b(\d+) of \1 pages moved")
        self.assertEqual(run("systemctl", "is-active", "hmmd.service").strip(), "active")

    def test_administrator_starts_it(self):
        run("systemctl", "stop", "hmmd.service")
        run("hmmctl", "status")
        self.assertEqual(run("systemctl", "is-active", "hmmd.service").strip(), "active")

    def test_member(self):
        """A member of group hmm, without privileges, mirrors an unmodified program: pages go to the device and come home."""
        program = "import hashlib, random; random.seed(1); print(hashlib.sha256(random.randbytes(16 << 20)).hexdigest())"
        plain = run("python3", "-c", program, user="alice")
        said = run(*CHURN, "python3", "-c", program, user="alice")
        self.assertIn(plain, said)
        moved = re.search(r"(\d+) pages went to the device, (\d+) were fetched home", said)
        self.assertTrue(moved and int(moved.group(1)) > 0, said)

    def test_non_member(self):
        for command in ((f"{harness.BINARY}/examples/hello",), ("hmmctl", "status"), ("hmmctl", "doctor")):
            said = run(*command, user="mallory", status=None)
            print(said)
            self.assertRegex(said, r"group hmm", command)

    def test_non_member_starts_nothing(self):
        run("systemctl", "stop", "hmmd.service")
        run(f"{harness.BINARY}/examples/hello", user="mallory", status=1)
        self.assertEqual(run("systemctl", "is-active", "hmmd.service", status=None).strip(), "inactive")
        run("systemctl", "start", "hmmd.service")

    def test_reload(self):
        pid = main_pid()
        configure("[daemon]\nlog = debug\n")
        run("systemctl", "reload", "hmmd.service")
        self.assertEqual(main_pid(), pid)
        harness.wait_until(patient(lambda: "the configuration is reloaded" in journal()), 10, "that hmmd read it")

    def test_reload_of_what_is_wrong(self):
        """The administrator is told what and where, and hmmd goes on as it was."""
        pid = main_pid()
        configure("[daemon]\nlog = loud\n")
        run("systemctl", "reload", "hmmd.service", status=1)
        self.assertIn(f"{LOCAL}:2", run("systemctl", "status", "--no-pager", "-n", "30", "hmmd.service"))
        self.assertEqual((main_pid(), show("hmmd.service", "ActiveState")), (pid, "active"))
        self.assertRegex(run(f"{harness.BINARY}/examples/hello", user="alice"), r"\b(\d+) of \1 pages moved")


class Upheaval(unittest.TestCase):
    """kill -9, restart, reload, an upgrade of the package: programs and a driver go on, and every byte is right."""

    def setUp(self):
        self.children = []

    def tearDown(self):
        for child in self.children:
            # With what it has started: an owner that is left would keep hmmd from ending.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(LOCAL)

    def start(self, name, *command):
        with open(f"{os.environ['TMPDIR']}/{name}", "w") as out:
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT,
                                     start_new_session=True, **as_user("alice"))
        self.children.append(child)
        return child

    def output(self, name):
        with open(f"{os.environ['TMPDIR']}/{name}") as file:
            return file.read()

    def wait_for(self, name, text, child, times=1):
        """A child's words, so often; it must not end before."""
        def said():
            self.assertIsNone(child.poll(), self.output(name))
            return self.output(name).count(text) >= times
        harness.wait_until(patient(said), 60, f"'{text}' of {name}")

    def start_unmodified(self):
        self.reference = run("python3", "-c", UNMODIFIED.replace("while True:", "for _ in range(1):")).strip()
        self.unmodified = self.start("unmodified", *CHURN, "python3", "-c", UNMODIFIED)
        self.wait_for("unmodified", self.reference, self.unmodified)

    def disturb(self, *how):
        """One after the other; each time the unmodified program goes on, with the same bytes."""
        for disturb in how:
            began = time.monotonic()
            disturb()
            disturbed = time.monotonic()
            self.wait_for("unmodified", self.reference, self.unmodified, self.output("unmodified").count(self.reference) + 2)
            print(f"{disturb.__name__}: {disturbed - began:.1f} s, {time.monotonic() - disturbed:.1f} s later twice the same", flush=True)

    def end_unmodified(self):
        os.killpg(self.unmodified.pid, signal.SIGTERM)
        self.unmodified.wait(harness.scaled(30))
        told = self.output("unmodified").split("\n")
        hashes = {line for line in told if re.fullmatch(r"[0-9a-f]{64}", line)}
        print("\n".join(told[-4:]), told.count(self.reference))
        self.assertEqual(hashes, {self.reference})

    def start_coherence(self, *options):
        coherence = self.start("coherence", f"{harness.BINARY}/tests/coherence/coherence", "--attended", "--drivers", "1",
                               "--threads", "1", "--mib", "8", "--kill-daemon", "--hang", "300", *options)
        self.start_unmodified()
        self.wait_for("coherence", "running", coherence)
        return coherence

    def end_coherence(self, coherence):
        self.assertIsNone(coherence.poll(), self.output("coherence"))
        coherence.stdin.close()
        self.assertEqual(coherence.wait(harness.scaled(60)), 0, self.output("coherence"))
        print(self.output("coherence"))

    def test_killed_under_load(self):
        coherence = self.start_coherence()
        with open(f"/proc/{coherence.pid}/maps") as file:
            self.assertIn("/usr/lib/x86_64-linux-gnu/libhmmclient.so.0", file.read(), "it is not the package's library")
        self.disturb(kill, reload, kill)
        self.assertGreaterEqual(int(show("hmmd.service", "NRestarts")), 1)
        self.end_coherence(coherence)
        self.end_unmodified()

    def test_restarted_under_load(self):
        """Everything is left to the next hmmd, coherent memory and a driver's window too; no call of anybody is refused."""
        # Emulated, nobody is quick.
        configure("[engine]\ngrace = 600s\nack_timeout = 20s\n")
        restart()
        before = journal()
        coherence = self.start_coherence("--windows")
        self.disturb(restart, upgrade, restart)
        self.end_coherence(coherence)
        self.assertIn("calls refused while hmmd was away 0\n", self.output("coherence"))
        said = journal().removeprefix(before)
        self.assertEqual((said.count("every page stays where it is"), said.count("every page comes home")), (3, 0), said)
        self.end_unmodified()


class Removed(unittest.TestCase):
    def test_a_start_that_fails(self):
        """A configuration that is wrong keeps hmmd from starting, and dpkg from nothing."""
        configure("[daemon]\nlog = loud\n")
        try:
            install("hmmd")
            harness.wait_until(patient(lambda: show("hmmd.service", "ActiveState") == "failed"), 30, "that hmmd does not start")
            self.assertIn(f"{LOCAL}:2", run("systemctl", "status", "--no-pager", "hmmd.service", status=3))
        finally:
            os.unlink(LOCAL)
        run("systemctl", "start", "hmmd.service")

    def test_then_it_is_purged(self):
        run("dpkg", "--purge", "hmmd", "hmmctl", "libhmmclient0")
        for unit in ("hmmd.service", *SOCKETS):
            self.assertNotEqual(run("systemctl", "is-active", unit, status=None).strip(), "active", unit)
        self.assertEqual(glob.glob("/etc/systemd/system/*/hmmd*") + glob.glob("/run/hmmd/*.sock"), [])
        self.assertFalse(os.path.exists("/etc/hmmd"))


def load_tests(loader, tests, pattern):
    return unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in (Installed, Served, Upheaval, limits.Limits, Removed))


if __name__ == "__main__":
    harness.main()
