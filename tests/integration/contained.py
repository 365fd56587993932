# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts a command as a container engine would: contained.py ENGINE [user] [device] [ptrace] [folder=PATH] COMMAND...

Namespaces of its own for processes, mounts, IPC, network and host name (with "user" also for users), a fresh /proc, a /dev with what engines put there
(with "device" /dev/userfaultfd, too), the capabilities that they leave (with "ptrace" CAP_SYS_PTRACE, too), and what their default seccomp
profile forbids to who has these. PATH is found at /run/hmmd. The command is the first process there.

Of the profiles only what they forbid is written down, in this file, from the published ones: ENGINE is "moby" (Docker, containerd) or
"containers" (Podman, CRI-O). "none" forbids nothing.
"""

import ctypes
import os
import signal
import sys
import tempfile

import confined

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_MS_BIND, _MS_MOVE, _MS_REC, _MS_PRIVATE = 0x1000, 0x2000, 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
EPERM, _ENOSYS = 1, 38

# Docker's: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
_CAPABILITIES = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31}
_DEVICES = ["null", "zero", "full", "random", "urandom", "tty"]

_PRIVILEGED = {name: EPERM for name in (
    "bpf", "fanotify_init", "perf_event_open", "quotactl", "sethostname", "setns", "kcmp", "process_madvise", "mbind", "get_mempolicy", "set_mempolicy",
    "migrate_pages", "move_pages", "open_by_handle_at", "init_module", "reboot", "settimeofday", "acct", "keyctl", "add_key", "request_key", "userfaultfd")}
FORBIDDEN = {
    "none": {},
    "moby": {**_PRIVILEGED, **{name: EPERM for name in (
        "io_uring_setup", "io_uring_enter", "io_uring_register", "pidfd_getfd", "unshare", "mount", "umount2", "pivot_root")},
        "clone3": _ENOSYS},
    "containers": {**_PRIVILEGED, **{name: EPERM for name in ("process_vm_readv", "process_vm_writev", "ptrace", "vmsplice", "membarrier")},
                   **{name: _ENOSYS for name in ("io_uring_setup", "io_uring_enter", "io_uring_register", "futex_waitv", "memfd_secret",
                                                 "process_mrelease")}},
}

# What both allow who has CAP_SYS_PTRACE.
_BY_PTRACE = {"kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace"}
_PTRACE = 19

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result, what):
    if result < 0:
        raise OSError(ctypes.get_errno(), what)


def _mount(source, target, kind=None, flags=0, data=None):
    _check(_libc.mount(source and source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), data and data.encode()),
           f"mount {target}")


def _make_devices(names):
    folder = tempfile.mkdtemp()
    _mount("tmpfs", folder, "tmpfs", 0, "mode=755")
    for name in names:
        if os.path.exists(f"/dev/{name}"):
            with open(f"{folder}/{name}", "w"):
                pass
            _mount(f"/dev/{name}", f"{folder}/{name}", None, _MS_BIND)
    os.mkdir(f"{folder}/shm")
    _mount("tmpfs", f"{folder}/shm", "tmpfs")
    _mount(folder, "/dev", None, _MS_BIND | _MS_REC)


def _furnish(words):
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    folder = next((word[len("folder="):] for word in words if word.startswith("folder=")), None)
    _make_devices(_DEVICES + (["userfaultfd"] if "device" in words else []))
    if folder:
        held = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        _mount("tmpfs", "/run", "tmpfs")
        os.mkdir("/run/hmmd")
        _mount(f"/proc/self/fd/{held}", "/run/hmmd", None, _MS_BIND)
        os.close(held)
    _mount("proc", "/proc", "proc")


def _lessen(capabilities):
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for number in range(last + 1):
        if number not in capabilities:
            confined.prctl(confined.PR_CAPBSET_DROP, number)
    confined.set_capabilities(capabilities)


def _forbid(engine, allowed):
    made = confined.Filter(confined.ALLOW)
    for name, error in FORBIDDEN[engine].items():
        if name not in allowed:
            made.add(confined.ERRNO | error, name)
    confined.prctl(confined.PR_SET_NO_NEW_PRIVS, 1)
    made.load()


def _become_root_there(parent, uid, gid):
    for path, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/{parent}/{path}", "w") as file:
            file.write(text)


def main():
    engine, *words = sys.argv[1:]
    settings = []
    while words[0] in ("user", "device", "ptrace") or words[0].startswith("folder="):
        settings.append(words.pop(0))
    flags = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(flags | (_NEWUSER if "user" in settings else 0)), "unshare")
    if "user" in settings:
        _become_root_there("self", uid, gid)
    child = os.fork()
    if not child:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _furnish(settings)
        _lessen(_CAPABILITIES | {_PTRACE} if "ptrace" in settings else _CAPABILITIES)
        _forbid(engine, _BY_PTRACE if "ptrace" in settings else ())
        os.execvp(words[0], words)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, frame: os.kill(child, got))
    status = os.waitpid(child, 0)[1]
    sys.exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


if __name__ == "__main__":
    main()
