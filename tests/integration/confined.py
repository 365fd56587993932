# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts a command as hmmd.service would: confined.py UNIT COMMAND...

As far as a process can do that to itself: another user, the unit's capabilities and limits, no new privileges, and a filter of system calls
made from the unit's own lines (systemd-analyze says what its groups hold). What takes mounts and control groups is not here:
the folders and devices that it may see.
"""

import ctypes
import errno
import os
import re
import resource
import subprocess
import sys

USER = 65534

PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 24, 38, 8, 47, 2
# What a filter does with a system call: lets it through, or has it fail with the number that is added.
ALLOW, ERRNO = 0x7fff0000, 0x00050000
_EQ, _MASKED_EQ = 4, 7
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
_CAPABILITIES = {"CAP_DAC_OVERRIDE": 1, "CAP_IPC_LOCK": 14, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_SYS_NICE": 23}
_PROT_WRITE, _PROT_EXEC = 2, 4

_libc = ctypes.CDLL(None, use_errno=True)


class _Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


class Unit:
    """The settings of a unit file, a list of values for each."""

    def __init__(self, path):
        self.values = {}
        with open(path) as file:
            for line in file:
                match = re.match(r"(\w+)=(.*)", line.strip())
                if match:
                    self.values.setdefault(match[1], []).append(match[2])

    def words(self, key):
        return [word for value in self.values.get(key, []) for word in value.split()]

    def capabilities(self, key):
        return {_CAPABILITIES[word] for word in self.words(key)}

    def system_calls(self):
        """What SystemCallFilter= allows: lines add, and take away with a tilde, in their order."""
        allowed = set()
        for value in self.values["SystemCallFilter"]:
            names = expand(value.lstrip("~").split())
            allowed = allowed - names if value.startswith("~") else allowed | names
        # systemd adds what a service can't be without.
        return allowed | expand(["@default", "execve", "execveat", "exit", "exit_group", "rt_sigreturn", "sigreturn"])


def expand(names):
    """Groups into the system calls that they hold."""
    calls, seen = set(), set()
    names = list(names)
    while names:
        name = names.pop()
        if not name.startswith("@"):
            calls.add(name)
        elif name not in seen:
            seen.add(name)
            told = subprocess.run(["systemd-analyze", "--no-pager", "syscall-filter", name], check=True, capture_output=True, text=True).stdout
            names += [line.split()[0] for line in told.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return calls


class Filter:
    def __init__(self, default=ERRNO | errno.EPERM):
        self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._library.seccomp_init.argtypes = [ctypes.c_uint32]
        self._library.seccomp_rule_add_array.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
        self._library.seccomp_load.argtypes = [ctypes.c_void_p]
        self._context = self._library.seccomp_init(default)

    def allow(self, name, *compares):
        self.add(ALLOW, name, *compares)

    def add(self, action, name, *compares):
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        # Of another architecture, or younger than the library.
        if number < 0:
            return
        rules = (_Compare * max(1, len(compares)))(*compares)
        r = self._library.seccomp_rule_add_array(self._context, action, number, len(compares), rules)
        assert r == 0, (name, r)

    def load(self):
        r = self._library.seccomp_load(self._context)
        assert r == 0, r


def filter_of(unit):
    made = Filter()
    for name in sorted(unit.system_calls()):
        if name == "socket":
            for family in unit.words("RestrictAddressFamilies"):
                made.allow(name, _Compare(0, _EQ, _FAMILIES[family]))
        elif name == "mmap" and "yes" in unit.words("MemoryDenyWriteExecute"):
            for protection in (0, _PROT_WRITE, _PROT_EXEC):
                made.allow(name, _Compare(2, _MASKED_EQ, _PROT_WRITE | _PROT_EXEC, protection))
        elif name in ("mprotect", "pkey_mprotect") and "yes" in unit.words("MemoryDenyWriteExecute"):
            made.allow(name, _Compare(2, _MASKED_EQ, _PROT_EXEC, 0))
        elif name in ("unshare", "setns") and "yes" in unit.words("RestrictNamespaces"):
            pass
        else:
            made.allow(name)
    return made


def prctl(*words):
    if _libc.prctl(*[ctypes.c_ulong(word) for word in words], *[ctypes.c_ulong(0)] * (5 - len(words))) < 0:
        raise OSError(ctypes.get_errno(), f"prctl {words}")


def set_capabilities(held):
    bits = sum(1 << number for number in held)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(bits, bits, bits, 0, 0, 0)
    if _libc.capset(header, data) < 0:
        raise OSError(ctypes.get_errno(), "capset")


def _limit(unit, key, which):
    """As far as the process may raise it."""
    value = unit.values[key][0]
    wanted = resource.RLIM_INFINITY if value == "infinity" else int(value)
    hard = resource.getrlimit(which)[1]
    try:
        resource.setrlimit(which, (wanted, wanted))
    except ValueError:
        resource.setrlimit(which, (hard, hard))


def confine(unit):
    _limit(unit, "LimitNOFILE", resource.RLIMIT_NOFILE)
    _limit(unit, "LimitMEMLOCK", resource.RLIMIT_MEMLOCK)
    made = filter_of(unit)
    ambient, bounding = unit.capabilities("AmbientCapabilities"), unit.capabilities("CapabilityBoundingSet")
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for number in range(last + 1):
        if number not in bounding:
            prctl(PR_CAPBSET_DROP, number)
    prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    set_capabilities(ambient)
    for number in ambient:
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)
    os.umask(int(unit.values["UMask"][0], 8))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    made.load()


def main():
    # By descriptor: the user may not be let into the folders that lead to the build.
    program = os.open(sys.argv[2], os.O_RDONLY | os.O_CLOEXEC)
    confine(Unit(sys.argv[1]))
    os.execve(program, sys.argv[2:], os.environ)


if __name__ == "__main__":
    main()
