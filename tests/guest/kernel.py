# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernels: fetched as apt finds them, unpacked, never installed.

fetch("6.1", cache) returns a folder with `vmlinuz`, `modules` (a name a line, in the order of loading), their files and
`package`, who it is. What is kept is small: the modules named here and what they depend on, not the package.
"""

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile

# What the guest's first program loads. A kernel that has one built in, or under another name, goes without its file.
MODULES = """virtio_pci virtio_blk 9p 9pnet_virtio crc32c_generic ext4 fuse
	irqbypass vfio vfio_iommu_type1 vfio-pci-core vfio-pci
	dax_hmem device_dax kmem""".split()
REQUIRED = {"virtio_blk", "9p", "9pnet_virtio", "ext4", "vfio-pci"}


class Missing(Exception):
    """Says what is missing, and what to do about it."""


def output(*command, cwd=None):
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", env=dict(os.environ, LC_ALL="C"))
    return done.returncode, done.stdout


def resolve(series):
    """The package that Debian's metapackages mean by a series now: (name, version), or None if apt knows none."""
    for metapackage in ("linux-image-amd64", f"linux-image-{series}-amd64"):
        _, text = output("apt-cache", "show", "--no-all-versions", metapackage)
        match = re.search(rf"^Depends:.*?\b(linux-image-{re.escape(series)}[.][^ ,]*) \(= ([^)]+)\)", text, re.M)
        if match:
            return match.group(1), match.group(2)
    return None


def _plain(path):
    """A module's bytes, uncompressed."""
    with open(path, "rb") as file:
        data = file.read()
    return lzma.decompress(data) if path.endswith(".xz") else data


def _name(path):
    return os.path.basename(path).split(".ko")[0].replace("-", "_")


def load_order(wanted, files, read=_plain):
    """[(name, bytes)], dependencies first; files maps names to paths. Names that have no file are passed over."""
    order, seen = [], set()

    def visit(name):
        name = name.replace("-", "_")
        if name in seen or name not in files:
            return
        seen.add(name)
        data = read(files[name])
        for needed in re.findall(rb"\0depends=([^\0]*)\0", data):
            for other in needed.decode().split(","):
                if other:
                    visit(other)
        order.append((name, data))

    for name in wanted:
        visit(name)
    return order


def _unpack(package, folder):
    """vmlinuz and the modules out of a .deb, into folder."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as everything:
        status, said = output("dpkg-deb", "-x", package, everything)
        if status:
            raise Missing(f"{os.path.basename(package)} cannot be unpacked: {said.strip()}")
        boot = os.path.join(everything, "boot")
        image = [name for name in os.listdir(boot) if name.startswith("vmlinuz-")]
        files = {}
        for where, _, names in os.walk(os.path.join(everything, "lib", "modules")):
            files.update({_name(name): os.path.join(where, name) for name in names if ".ko" in name})
        lacking = sorted(name for name in REQUIRED if name.replace("-", "_") not in files)
        if not image or lacking:
            raise Missing(f"{os.path.basename(package)} lacks {', '.join(lacking) or 'its kernel'}")
        os.makedirs(folder)
        shutil.copy(os.path.join(boot, image[0]), os.path.join(folder, "vmlinuz"))
        order = load_order(MODULES, files)
        for name, data in order:
            with open(os.path.join(folder, name + ".ko"), "wb") as file:
                file.write(data)
        with open(os.path.join(folder, "modules"), "w") as file:
            file.write("".join(name + "\n" for name, _ in order))


def cached(cache, start, key):
    """Folders so named that an earlier run unpacked, the newest first."""
    found = [os.path.join(cache, name) for name in os.listdir(cache) if name.startswith(start) and name.endswith(key)]
    return sorted(found, key=os.path.getmtime, reverse=True)


def fetch(series, cache, say=print):
    os.makedirs(cache, exist_ok=True)
    key = hashlib.sha256(" ".join(MODULES).encode()).hexdigest()[:8]
    meant = resolve(series)
    if meant is None and os.geteuid() == 0:
        say("apt knows no such kernel: fetching its lists")
        output("apt-get", "update", "-q")
        meant = resolve(series)
    if meant:
        folder = os.path.join(cache, f"{meant[0]}_{meant[1]}-{key}")
        if os.path.isdir(folder):
            return folder
    old = cached(cache, f"linux-image-{series}.", key)
    if meant is None:
        if old:
            say(f"apt knows no Linux {series}; taking {os.path.basename(old[0])} of an earlier run")
            return old[0]
        raise Missing(f"apt knows no kernel package for Linux {series}: it comes from Debian's own archive, with its security "
                      "suite (/etc/apt/sources.list.d; then apt-get update)")
    say(f"fetching {meant[0]} {meant[1]}")
    with tempfile.TemporaryDirectory(dir=cache) as room:
        fetched = ("apt-get", "download", "-q", f"{meant[0]}={meant[1]}")
        status, said = output(*fetched, cwd=room)
        if status and os.geteuid() == 0:
            # The lists may be older than what the archive keeps.
            output("apt-get", "update", "-q")
            meant = resolve(series) or meant
            folder = os.path.join(cache, f"{meant[0]}_{meant[1]}-{key}")
            status, said = output("apt-get", "download", "-q", f"{meant[0]}={meant[1]}", cwd=room)
        packages = [name for name in os.listdir(room) if name.endswith(".deb")]
        if status or not packages:
            if old:
                say(f"{meant[0]} cannot be fetched; taking {os.path.basename(old[0])} of an earlier run")
                return old[0]
            raise Missing(f"{meant[0]} cannot be fetched (is the network there? apt-get update may help):\n{said.strip()}")
        _unpack(os.path.join(room, packages[0]), os.path.join(room, "kernel"))
        with open(os.path.join(room, "kernel", "package"), "w") as file:
            file.write(f"{meant[0]} {meant[1]}\n")
        try:
            os.rename(os.path.join(room, "kernel"), folder)
        except OSError:
            # Another run was faster.
            if not os.path.isdir(folder):
                raise
    return folder
