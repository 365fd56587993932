# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian packages of this tree, built once for everybody who needs them.

build(binary) returns the folder below the build's own that has the .debs, the .changes file and `log`. Neither the source
nor what was built for the tests is touched: packages have flags of their own. What is there already is good as long as
nothing that goes into the packages has changed.
"""

import fcntl
import glob
import hashlib
import os
import shutil
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# What the packages are made of: neither tests, nor benchmarks, nor examples.
PARTS = ("CMakeLists.txt", "LICENSES", "NEWS.md", "README.md", "SECURITY.md", "cmake", "daemon", "debian", "docs", "hmmctl",
         "include", "libclient", "proto", "systemd")
PACKAGES = ("hmmd", "hmmctl", "libhmmclient0", "libhmmclient-dev")
NOT_SOURCE = ("__pycache__", "*.pyc", "*~")


class Failed(Exception):
    pass


def _copy(folder):
    os.makedirs(folder)
    for part in PARTS:
        source = os.path.join(ROOT, part)
        if os.path.isdir(source):
            shutil.copytree(source, os.path.join(folder, part), ignore=shutil.ignore_patterns(*NOT_SOURCE))
        else:
            shutil.copy2(source, folder)


def _digest(folder):
    found = hashlib.sha256()
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(where, name)
            with open(path, "rb") as file:
                data = file.read()
            found.update(f"{os.path.relpath(path, folder)} {os.stat(path).st_mode & 0o111} {len(data)}\n".encode() + data)
    return found.hexdigest()


def _make(source, digest):
    """dpkg-buildpackage in a copy of the source; what it makes lies beside that."""
    room = os.path.dirname(source)
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    # Tests run beside this, which takes one processor; and nobody looks for a bug with these.
    environment.update(LC_ALL="C.UTF-8", DEB_BUILD_OPTIONS="parallel=1 noautodbgsym")
    with open(f"{room}/log", "wb") as log:
        done = subprocess.run(["dpkg-buildpackage", "-us", "-uc", "-F"], cwd=source, env=environment, stdin=subprocess.DEVNULL,
                              stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        with open(f"{room}/log", errors="replace") as log:
            raise Failed(f"dpkg-buildpackage ended with status {done.returncode}:\n" + "".join(log.readlines()[-60:]))
    shutil.rmtree(source)
    with open(f"{room}/digest", "w") as file:
        file.write(digest)


def build(binary):
    folder = os.path.join(binary, "debian")
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        room = f"{folder}.new"
        shutil.rmtree(room, ignore_errors=True)
        source = os.path.join(room, "hmmd")
        _copy(source)
        digest = _digest(source)
        try:
            with open(f"{folder}/digest") as file:
                there = file.read() == digest
        except OSError:
            there = False
        if there:
            shutil.rmtree(room)
            return folder
        _make(source, digest)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(room, folder)
    return folder


def package(folder, name):
    """The path of one .deb."""
    found = glob.glob(f"{folder}/{name}_*.deb")
    if len(found) != 1:
        raise Failed(f"{folder} has {len(found)} packages {name}")
    return found[0]
