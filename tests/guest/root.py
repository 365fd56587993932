# SPDX-License-Identifier: GPL-2.0-or-later
"""A root file system with Debian's systemd, for a guest that is booted by it: fetched as apt finds it, unpacked, never installed.

fetch(cache) returns a folder with `root`, an ext4 file system as a file, and `packages`, what is in it. No maintainer script
ran, and dpkg in there takes all for installed; what a booted system would have beside them is written here.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile

import kernel

# systemd and udev as on any machine; what hmmd and its tests want. apt adds what these depend on.
PACKAGES = """base-files base-passwd bash coreutils dash debianutils diffutils dpkg findutils grep gzip hostname init-system-helpers
	libc-bin login ncurses-base passwd perl-base procps python3-minimal libpython3-stdlib sed systemd systemd-sysv sysvinit-utils
	tar udev util-linux libjson-c5 libnuma1 liburing2 libuv1""".split()
SIZE_MB = 1024
# What takes long and is nobody's concern: consoles, logins, what is done when a system starts for the first time.
MASKED = """getty.target getty@tty1.service serial-getty@ttyS0.service systemd-logind.service systemd-hwdb-update.service
	systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-random-seed.service systemd-journal-flush.service
	systemd-firstboot.service systemd-binfmt.service systemd-pstore.service systemd-ask-password-wall.path
	systemd-ask-password-console.path dpkg-db-backup.timer systemd-tmpfiles-clean.timer sys-kernel-config.mount
	modprobe@.service systemd-modules-load.service dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount
	sys-kernel-tracing.mount systemd-udev-trigger.service""".split()
# The packages' own text, which a guest's reader does not read.
UNREAD = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/i18n")
MERGED = ("bin", "lib", "lib64", "sbin")
APT = ("-q", "-y", "--no-install-recommends", "-o", "Debug::NoLocking=1")
SERVICE = """[Unit]
Description=What the guest is here for
After=multi-user.target
SuccessAction=poweroff-immediate
FailureAction=poweroff-immediate

[Service]
Type=oneshot
ExecStart=/bin/sh /run/guest/command
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
TimeoutStartSec=infinity

[Install]
WantedBy=multi-user.target
"""


def _apt(room, *words):
    """apt as if nothing were installed, its archives in room."""
    os.makedirs(f"{room}/partial", exist_ok=True)
    with open(f"{room}/status", "w"):
        pass
    return kernel.output("apt-get", *APT, "-o", f"Dir::State::status={room}/status", "-o", f"Dir::Cache::archives={room}", *words)


def _meant(room):
    """The packages' files as apt would fetch them now, a line each, or None."""
    status, said = _apt(room, "--print-uris", "install", *PACKAGES)
    files = sorted(f"{name} {digest}" for name, digest in re.findall(r"^'\S+' (\S+\.deb) \d+ (\S*)$", said, re.M))
    return None if status or not files else "".join(line + "\n" for line in files)


def _unpack(package, root, dpkg):
    """One package's files, as dpkg would lay them down, and its place among those that are installed."""
    archive = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    # A folder does not take the place of a link: /bin is one.
    taken = subprocess.run(["tar", "-xvf", "-", "-C", root, "--keep-directory-symlink"], stdin=archive.stdout,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    archive.stdout.close()
    if archive.wait() or taken.returncode:
        raise kernel.Missing(f"{os.path.basename(package)} cannot be unpacked: {taken.stderr.strip()}")
    _, control = kernel.output("dpkg-deb", "-f", package)
    name = re.search(r"^Package: (\S+)", control, re.M).group(1)
    if re.search(r"^Multi-Arch: same", control, re.M):
        name += ":" + re.search(r"^Architecture: (\S+)", control, re.M).group(1)
    with open(f"{dpkg}/info/{name}.list", "w") as file:
        file.write("".join((line.rstrip("/").lstrip(".") or "/.") + "\n" for line in taken.stdout.splitlines()))
    first, _, rest = control.partition("\n")
    return f"{first}\nStatus: install ok installed\n{rest}\n"


def _write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, mode)


def _furnish(root):
    """What the packages' scripts would have done, as far as anybody here needs it."""
    for kind in ("passwd", "group"):
        with open(f"{root}/usr/share/base-passwd/{kind}.master") as file:
            _write(f"{root}/etc/{kind}", file.read())
    _write(f"{root}/etc/shadow", "root:*:19000:0:99999:7:::\n", 0o600)
    _write(f"{root}/etc/gshadow", "", 0o600)
    _write(f"{root}/etc/hostname", "guest\n")
    _write(f"{root}/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\ngshadow: files\nhosts: files\n")
    # It is none that starts for the first time, and nothing is newer than its caches.
    _write(f"{root}/etc/machine-id", hashlib.sha256(b"guest").hexdigest()[:32] + "\n")
    for folder in ("etc", "var"):
        _write(f"{root}/{folder}/.updated", "")
    _write(f"{root}/etc/systemd/system/guest.service", SERVICE)
    wanted = f"{root}/etc/systemd/system/multi-user.target.wants"
    os.makedirs(wanted, exist_ok=True)
    os.symlink("/etc/systemd/system/guest.service", f"{wanted}/guest.service")
    os.symlink("/lib/systemd/system/multi-user.target", f"{root}/etc/systemd/system/default.target")
    for unit in MASKED:
        os.symlink("/dev/null", f"{root}/etc/systemd/system/{unit}")
    for folder in UNREAD:
        shutil.rmtree(f"{root}/{folder}", ignore_errors=True)


def _lay_out(root, archives):
    dpkg = f"{root}/var/lib/dpkg"
    for folder in MERGED:
        os.makedirs(f"{root}/usr/{folder}")
        os.symlink(f"usr/{folder}", f"{root}/{folder}")
    for folder in ("info", "updates", "triggers", "alternatives"):
        os.makedirs(f"{dpkg}/{folder}")
    packages = sorted(name for name in os.listdir(archives) if name.endswith(".deb"))
    _write(f"{dpkg}/status", "".join(_unpack(os.path.join(archives, name), root, dpkg) for name in packages))
    _write(f"{dpkg}/info/format", "1\n")
    _write(f"{dpkg}/available", "")
    _furnish(root)


def _make(room, archives):
    root = f"{room}/files"
    _lay_out(root, archives)
    words = ["/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, f"{room}/root", f"{SIZE_MB}M"]
    if os.geteuid() != 0:
        # Whoever unpacks these owns them; in there that is root.
        words = ["unshare", "--map-root-user", *words]
    status, said = kernel.output(*words)
    if status:
        raise kernel.Missing(f"no file system can be made of Debian's packages: {said.strip()}")
    shutil.rmtree(root)


def fetch(cache, say=print):
    os.makedirs(cache, exist_ok=True)
    with open(__file__, "rb") as file:
        recipe = file.read()
    with tempfile.TemporaryDirectory(dir=cache) as room:
        archives = f"{room}/archives"
        meant = _meant(archives)
        if meant is None and os.geteuid() == 0:
            say("apt does not know all packages: fetching its lists")
            kernel.output("apt-get", "update", "-q")
            meant = _meant(archives)
        key = hashlib.sha256(recipe).hexdigest()[:8]
        old = kernel.cached(cache, "debian-root-", key)
        folder = os.path.join(cache, f"debian-root-{hashlib.sha256((meant or '').encode()).hexdigest()[:8]}-{key}")
        if meant and os.path.isdir(folder):
            return folder
        if meant:
            say(f"fetching Debian's systemd, {len(meant.splitlines())} packages")
            status, said = _apt(archives, "--download-only", "install", *PACKAGES)
            if status and os.geteuid() == 0:
                # The lists may be older than what the archive keeps.
                kernel.output("apt-get", "update", "-q")
                status, said = _apt(archives, "--download-only", "install", *PACKAGES)
        if not meant or status:
            if old:
                say(f"Debian's packages cannot be fetched; taking {os.path.basename(old[0])} of an earlier run")
                return old[0]
            raise kernel.Missing("Debian's packages for a guest cannot be fetched (is the network there? apt-get update may "
                                 f"help):\n{said.strip() if meant else 'apt does not know all of them'}")
        _make(room, archives)
        _write(f"{room}/root.new/packages", "".join(sorted(name + "\n" for name in os.listdir(archives) if name.endswith(".deb"))))
        os.rename(f"{room}/root", f"{room}/root.new/root")
        try:
            os.rename(f"{room}/root.new", folder)
        except OSError:
            # Another run was faster.
            if not os.path.isdir(folder):
                raise
    return folder
