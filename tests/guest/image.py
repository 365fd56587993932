# SPDX-License-Identifier: GPL-2.0-or-later
"""The first file system of the guest: busybox, the modules and ./init, as a cpio archive for the kernel to unpack.

The rest of the guest's files are the machine's own, shared read-only: see init.
"""

import os
import stat


def _entry(name, mode, data=b"", device=(0, 0)):
    """One record of the "newc" format."""
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def archive(files, folders=(), devices=()):
    """files: {path: (mode, bytes)}; devices: {path: (major, minor)} of character devices. Folders come first."""
    out = [_entry(path, stat.S_IFDIR | 0o755) for path in folders]
    out += [_entry(path, stat.S_IFCHR | 0o600, device=device) for path, device in dict(devices).items()]
    out += [_entry(path, stat.S_IFREG | mode, data) for path, (mode, data) in files.items()]
    return b"".join(out) + _entry("TRAILER!!!", 0)


def first_root(kernel, busybox, init):
    """kernel: a folder of kernel.fetch(); busybox and init: paths."""
    def read(path):
        with open(path, "rb") as file:
            return file.read()

    files = {"bin/busybox": (0o755, read(busybox)), "init": (0o755, read(init)), "modules": (0o644, read(f"{kernel}/modules"))}
    for name in files["modules"][1].decode().split():
        files[f"lib/{name}.ko"] = (0o644, read(os.path.join(kernel, name + ".ko")))
    folders = "bin lib dev proc sys host root results".split()
    return archive(files, folders, {"dev/console": (5, 1), "dev/null": (1, 3)})
