#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What `cmake --install` lays down is usable from outside: pkg-config, CMake package, headers, symbols, manual."""

import glob
import os
import re
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
import harness  # noqa: E402

CONSUMER = """
#include <hmm/hmm.h>
#include <stdio.h>
int main(void) { puts(hmm_version()); return 0; }
"""

CMAKE_CONSUMER = """
cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES C)
find_package(hmmclient 0.1 REQUIRED)
add_executable(shared consumer.c)
target_link_libraries(shared hmm::hmmclient)
add_executable(static consumer.c)
target_link_libraries(static hmm::hmmclient_static)
"""


def run(*command, **options):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}")
    return done.stdout


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp()
        cls.prefix = os.path.join(cls.folder, "prefix")
        run("cmake", "--install", harness.BINARY, "--prefix", cls.prefix)
        cls.library_folder = os.path.dirname(glob.glob(f"{cls.prefix}/lib/**/libhmmclient.so", recursive=True)[0])
        with open(os.path.join(cls.folder, "consumer.c"), "w") as file:
            file.write(CONSUMER)
        header = open(f"{cls.prefix}/include/hmm/hmm.h").read()
        cls.version = re.search(r'#define HMM_VERSION "(.*)"', header).group(1)
        cls.environment = dict(os.environ, PKG_CONFIG_PATH=f"{cls.library_folder}/pkgconfig",
                               LD_LIBRARY_PATH=cls.library_folder)

    def pkg_config(self, *options):
        # The file names the prefix of the configuration; this test installed elsewhere.
        return run("pkg-config", f"--define-variable=prefix={self.prefix}", *options, "hmmclient", env=self.environment).split()

    def test_pkg_config_shared(self):
        program = f"{self.folder}/by-pkg-config"
        run("cc", f"{self.folder}/consumer.c", "-o", program, *self.pkg_config("--cflags", "--libs"))
        self.assertEqual(run(program, env=self.environment).strip(), self.version)
        self.assertIn("libhmmclient.so.0", run("ldd", program, env=self.environment))

    def test_pkg_config_static(self):
        program = f"{self.folder}/by-pkg-config-static"
        run("cc", f"{self.folder}/consumer.c", "-o", program, *self.pkg_config("--cflags"),
            f"{self.library_folder}/libhmmclient.a", "-pthread")
        self.assertEqual(run(program).strip(), self.version)

    def test_pkg_config_version(self):
        self.assertEqual(self.pkg_config("--modversion"), [self.version])

    def test_cmake_package(self):
        source = f"{self.folder}/cmake-consumer"
        os.mkdir(source)
        with open(f"{source}/CMakeLists.txt", "w") as file:
            file.write(CMAKE_CONSUMER)
        with open(f"{source}/consumer.c", "w") as file:
            file.write(CONSUMER)
        run("cmake", "-S", source, "-B", f"{source}/build", f"-DCMAKE_PREFIX_PATH={self.prefix}")
        run("cmake", "--build", f"{source}/build")
        for name in ("shared", "static"):
            self.assertEqual(run(f"{source}/build/{name}").strip(), self.version)

    def test_headers_stand_alone(self):
        """Each public header compiles by itself, as strict C11 and as C++."""
        for header in glob.glob(f"{self.prefix}/include/hmm/*.h"):
            for language, standard, compiler in (("c", "c11", "cc"), ("c++", "c++17", "c++")):
                with self.subTest(header=os.path.basename(header), language=language):
                    run(compiler, "-x", language, f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only",
                        "-include", header, "/dev/null", f"-I{self.prefix}/include")

    def test_symbols(self):
        """The library exports exactly what the headers declare."""
        lines = run("nm", "-D", "--defined-only", f"{self.library_folder}/libhmmclient.so").splitlines()
        exported = {line.split()[-1].split("@")[0] for line in lines if " T " in line}
        # What the preload module shares with the library, and what the library interposes in programs.
        exported = {name for name in exported if not name.startswith("hmm_internal_")} - {"mprotect", "mremap", "pkey_mprotect"}
        declared = set()
        for header in glob.glob(f"{self.prefix}/include/hmm/*.h"):
            text = re.sub(r"/\*.*?\*/", "", open(header).read(), flags=re.S)
            text = re.sub(r"static inline.*?\n}\n", "", text, flags=re.S)
            declared |= set(re.findall(r"^[a-z][\w \*]*?\b(hmm_\w+)\(", text, re.M))
        declared = {name for name in declared if not name.endswith("_fn")}
        self.assertEqual(exported - declared, set(), "exported, but no public header declares it")
        self.assertEqual(declared - exported, set(), "declared, but not exported")

    def test_programs(self):
        self.assertTrue(os.access(f"{self.prefix}/sbin/hmmd", os.X_OK))
        self.assertTrue(os.access(f"{self.prefix}/bin/hmmctl", os.X_OK))
        self.assertTrue(os.path.exists(f"{self.library_folder}/hmmd/libhmmpreload.so"))

    def test_service(self):
        """What systemd, sysusers and udev look for, where they do; the unit starts the hmmd that was configured."""
        def text(name):
            with open(os.path.join(self.prefix, name)) as file:
                return file.read()

        unit = text("lib/systemd/system/hmmd.service")
        self.assertRegex(unit, r"(?m)^ExecStart=/\S+/sbin/hmmd$")
        self.assertNotIn("@CMAKE", unit)
        self.assertIn("FileDescriptorName=programs", text("lib/systemd/system/hmmd.socket"))
        self.assertIn("FileDescriptorName=administration", text("lib/systemd/system/hmmd-admin.socket"))
        self.assertRegex(text("lib/sysusers.d/hmmd.conf"), r"(?m)^u hmmd -:hmm ")
        self.assertIn('OWNER="hmmd"', text("lib/udev/rules.d/60-hmmd.rules"))
        self.assertEqual(run(f"{self.prefix}/sbin/hmmd", "--config", f"{self.prefix}/etc/hmmd/hmmd.conf", "--check-config"),
                         f"{self.prefix}/etc/hmmd/hmmd.conf: good\n")
        self.assertTrue(os.path.isdir(f"{self.prefix}/etc/hmmd/hmmd.conf.d"))

    def test_manual(self):
        sources = {os.path.basename(page) for page in glob.glob(f"{harness.SOURCE}/docs/man/*.[1-8]")}
        installed = {os.path.basename(page) for page in glob.glob(f"{self.prefix}/share/man/man[1-8]/*")}
        self.assertEqual(installed, sources)
        self.assertLessEqual({"hmmd.8", "hmmctl.1"}, sources)


if __name__ == "__main__":
    harness.main()
