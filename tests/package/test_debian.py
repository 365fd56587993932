#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian packages: they build, lintian has nothing to say against them, and each has what it should have.

Whether they install, and what they do then, is tried in the emulated machine: tests/guest/systemd.
"""

import os
import re
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "integration"))
sys.path.insert(0, HERE)
import debian  # noqa: E402
import harness  # noqa: E402


def run(*command):
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


class Debian(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = debian.build(harness.BINARY)

    def files(self, name):
        """What a package has: {path: mode and owner}."""
        lines = run("dpkg-deb", "-c", debian.package(self.folder, name)).stdout.splitlines()
        return {line.split(None, 5)[5].split(" -> ")[0].lstrip("."): " ".join(line.split()[:2]) for line in lines}

    def field(self, name, field):
        return run("dpkg-deb", "-f", debian.package(self.folder, name), field).stdout.strip()

    def test_lintian(self):
        [changes] = [name for name in os.listdir(self.folder) if name.endswith(".changes")]
        done = run("lintian", "--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0", f"{self.folder}/{changes}")
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_version(self):
        """The changelog follows the public header."""
        with open(f"{harness.SOURCE}/include/hmm/hmm.h") as file:
            version = re.search(r'^#define HMM_VERSION "(.*)"', file.read(), re.M).group(1)
        for name in debian.PACKAGES:
            self.assertEqual(self.field(name, "Version"), version, name)

    def test_build_dependencies(self):
        """What the packages are built from is what cmake/packages.txt brings."""
        with open(f"{harness.SOURCE}/cmake/packages.txt") as file:
            brought = {line.split()[1] for line in file if not line.startswith("#")}
        with open(f"{harness.SOURCE}/debian/control") as file:
            depends = re.search(r"^Build-Depends:((?:.*\n)(?:[ \t].*\n)*)", file.read(), re.M).group(1)
        names = {entry.split()[0] for entry in depends.split(",")}
        # Virtual, and debhelper's.
        names = {"debhelper" if re.match("debhelper-compat|dh-sequence-", name) else name for name in names}
        self.assertLessEqual(names, brought)

    def test_installed_is_packaged_once(self):
        """Each file that is installed is in one package."""
        seen = {}
        for name in debian.PACKAGES:
            for path in self.files(name):
                if not path.endswith("/") and not path.startswith("/usr/share/doc/"):
                    self.assertNotIn(path, seen, f"{path} is in {name}, too")
                    seen[path] = name
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(["cmake", "--install", harness.BINARY, "--prefix", "/usr"], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  env=dict(os.environ, DESTDIR=folder))
            self.assertEqual(done.returncode, 0, done.stdout)
            installed = {name for _, _, names in os.walk(folder) for name in names}
        packaged = {os.path.basename(path).removesuffix(".gz") for path in seen}
        # CMake names one file by the build's type.
        by_type = re.compile(r"^hmmclient-targets-.*\.cmake$")
        self.assertEqual({name for name in installed - packaged if not by_type.match(name)}, set())

    def test_service(self):
        files = self.files("hmmd")
        for path in ("/usr/sbin/hmmd", "/lib/systemd/system/hmmd.service", "/etc/hmmd/hmmd.conf", "/etc/hmmd/hmmd.conf.d/",
                     "/usr/share/man/man8/hmmd.8.gz", "/usr/share/man/man5/hmmd.conf.5.gz"):
            self.assertIn(path, files)
        # A configuration that was changed is not overwritten.
        conffiles = run("dpkg-deb", "--info", debian.package(self.folder, "hmmd"), "conffiles").stdout.split()
        self.assertEqual(conffiles, ["/etc/hmmd/hmmd.conf"])
        script = run("dpkg-deb", "--info", debian.package(self.folder, "hmmd"), "postinst").stdout
        self.assertRegex(script, r"systemd-sysusers .*hmmd\.conf")
        self.assertRegex(script, r"deb-systemd-invoke .*\|\| true", "a start that fails would break the installation")

    def test_library(self):
        self.assertIn("/usr/lib/x86_64-linux-gnu/libhmmclient.so.0", self.files("libhmmclient0"))
        shlibs = run("dpkg-deb", "--info", debian.package(self.folder, "libhmmclient0"), "symbols").stdout
        self.assertIn("hmm_open@HMMCLIENT_0.1 ", shlibs)
        # The preload module uses what is the library's own and no interface.
        self.assertIn(f"libhmmclient0 (= {self.field('libhmmclient0', 'Version')})", self.field("hmmctl", "Depends"))
        self.assertIn("/usr/lib/x86_64-linux-gnu/hmmd/libhmmpreload.so", self.files("hmmctl"))

    def test_no_trace_of_the_build(self):
        """Nothing that is installed looks for anything where it was built."""
        with tempfile.TemporaryDirectory() as folder:
            for name in debian.PACKAGES:
                self.assertEqual(run("dpkg-deb", "-x", debian.package(self.folder, name), folder).returncode, 0)
            for where, _, names in os.walk(folder):
                for path in (os.path.join(where, name) for name in names):
                    if not os.path.islink(path):
                        with open(path, "rb") as file:
                            self.assertNotIn(f"{harness.BINARY}/".encode(), file.read(), path)


if __name__ == "__main__":
    harness.main()
