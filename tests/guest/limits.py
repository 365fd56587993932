# SPDX-License-Identifier: GPL-2.0-or-later
"""Owners, drivers and hmmd with limits that systemd set: memory, namespaces, system calls. Part of service.py, after whose setUpModule() they run."""

import contextlib
import os
import re
import signal
import sys
import time

from booted import LOCAL, configure, harness, journal, main_pid, patient, restart, run, show, wait_for_another

import contained  # noqa: E402

MIB = 1 << 20
PAGES = 4 << 8
BYTES = PAGES << 12
SOCKET = "/run/hmmd/hmmd.sock"
OWNER = f"{harness.BINARY}/tests/integration/mirror-owner"
COHERENCE = f"{harness.BINARY}/tests/coherence/coherence"
ALICE = ("setpriv", "--pdeathsig=KILL", "--reuid=alice", "--regid=alice", "--init-groups", "--")


class Unit:
    """What systemd and the kernel say of one unit's memory."""

    def __init__(self, name):
        self.name = name
        self.group = f"/sys/fs/cgroup/system.slice/{name}"

    def _read(self, file):
        with open(f"{self.group}/{file}") as opened:
            return opened.read()

    def usage(self):
        return int(self._read("memory.current"))

    def stat(self, name):
        return int(re.search(rf"^{name} (\d+)$", self._read("memory.stat"), re.M).group(1))

    def shared(self):
        return self.stat("shmem")

    def events(self, name):
        return int(re.search(rf"^{name} (\d+)$", self._read("memory.events"), re.M).group(1))

    def limit(self, **properties):
        """MemoryMax and the like, from now on; no swap that would make room."""
        run("systemctl", "set-property", "--runtime", self.name, "MemorySwapMax=0", *(f"{name}={value}" for name, value in properties.items()))

    def take_in(self, pid):
        with open(f"{self.group}/cgroup.procs", "w") as file:
            file.write(str(pid))


HMMD = Unit("hmmd.service")


class Service:
    """A program as a transient service, standard input a pipe of ours, what it says in a file."""

    def __init__(self, test, name, *command, **properties):
        pipe, self.path = f"{test.folder}/{name}.in", f"{test.folder}/{name}.out"
        os.mkfifo(pipe)
        self.name = name
        self.pipe = os.open(pipe, os.O_RDWR)
        self.seen = 0
        test.addCleanup(self.end)
        words = [f"--property={key}={value}" for key, value in properties.items()]
        run("systemd-run", "--quiet", f"--unit={name}", f"--property=StandardInput=file:{pipe}", f"--property=StandardOutput=append:{self.path}",
            "--property=StandardError=inherit", f"--setenv=HMM_SOCKET={SOCKET}", *words, *map(str, command))
        self.expect("^ready")

    def expect(self, answer):
        def said():
            if show(self.name, "ActiveState") != "active":
                raise AssertionError(f"{self.name} ended before it said '{answer}'")
            return re.compile(answer, re.M).search(self.output, self.seen)
        self.seen = harness.wait_until(patient(said), 60, f"'{answer}' of {self.name}").end()

    @property
    def output(self):
        with open(self.path, errors="replace") as file:
            return file.read()

    def ask(self, line, answer):
        os.write(self.pipe, f"{line}\n".encode())
        self.expect(answer)

    def finish(self):
        """End of input, and its end, which must be a good one."""
        os.close(self.pipe)
        self.pipe = None
        state = harness.wait_until(patient(lambda: show(self.name, "ActiveState") not in ("active", "deactivating") and show(self.name, "ActiveState")),
                                   60, f"that {self.name} ends")
        if state != "inactive":
            raise AssertionError(f"{self.name} is {state}: {self.output}")

    def end(self):
        if self.pipe is not None:
            os.close(self.pipe)
        run("systemctl", "kill", "--signal=SIGKILL", self.name, status=None)
        run("systemctl", "reset-failed", self.name, status=None)


class Limits(harness.Test):
    def setUp(self):
        super().setUp()
        os.chmod(self.folder, 0o777)
        # Emulated, nobody is quick; and whatever hmmd was before, this is one that nobody has limited.
        configure("[engine]\ngrace = 600s\nack_timeout = 20s\n")
        run("systemctl", "restart", "hmmd.service")
        self.before = journal()

    def tearDown(self):
        super().tearDown()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(LOCAL)
        run("systemctl", "revert", "hmmd.service")
        run("systemctl", "reset-failed", "hmmd.service")
        run("systemctl", "restart", "hmmd.service")

    def environment(self, **extra):
        return {**super().environment(**extra), "HMM_SOCKET": SOCKET}

    def said(self):
        """hmmd's words since the test began."""
        return journal().removeprefix(self.before)

    def in_scope(self, name, *command, **properties):
        words = [f"--property={key}={value}" for key, value in properties.items()]
        process = self.spawn_command(name, ["systemd-run", "--quiet", "--scope", f"--unit={name}", "--collect", *words, *ALICE, *map(str, command)])
        return process, Unit(f"{name}.scope")

    def owner(self, name="owner", *args, **properties):
        owner, unit = self.in_scope(name, OWNER, PAGES, *args, **properties)
        owner.expect("^ready")
        return owner, unit

    def go_round(self, owner):
        """All to the device and home again, written anew, every byte looked at."""
        owner.ask("turn", f"^turned {PAGES}$")
        owner.ask("check", "^checked$")
        owner.ask("change", "^changed$")
        owner.ask("turn", f"^turned {PAGES}$")

    def hand_over(self):
        """As `systemctl restart` does it, by hand."""
        pid = main_pid()
        run("systemctl", "kill", "--kill-whom=main", "--signal=SIGUSR2", "hmmd.service")
        wait_for_another(pid)

    # ---- an owner's and a driver's limits -----------------------------------------

    def test_owner_at_its_limit(self):
        """What is on a device is the owner's charge, and not hmmd's; slowed down at every page that it gets it gets on, and every byte is right."""
        owner, unit = self.owner(MemoryMax="64M", MemorySwapMax=0)
        before, kept = unit.usage(), HMMD.usage()
        for disturb in (self.hand_over, restart):
            self.go_round(owner)
            self.assertGreaterEqual(unit.shared(), BYTES - 2 * MIB)
            self.assertLess(HMMD.usage(), kept + 6 * MIB)
            disturb()
        owner.ask("check", "^checked$")
        unit.limit(MemoryHigh=before)
        self.go_round(owner)
        restart()
        owner.ask("check", "^checked$")
        self.assertGreater(unit.events("high"), 0)
        self.assertEqual(unit.events("oom_kill"), 0)
        owner.ask("close", "^closed$")
        owner.finish()

    def test_driver_at_its_limit(self):
        """A driver that is slowed down at all that it allocates delays its owner, and nothing else; what its device holds is not its charge."""
        load, _ = self.in_scope("load", COHERENCE, "--attended", "--drivers", 1, "--threads", 1, "--mib", 8, "--windows", "--kill-daemon",
                                "--hang", 300, MemoryMax="256M")
        load.expect("coherence: running")
        child, = self.children_of(load.pid)
        room, unit = self.in_scope("driver", "sleep", "infinity", MemoryMax="64M", MemorySwapMax=0)
        harness.wait_until(patient(lambda: show("driver.scope", "ActiveState") == "active"), 20, "that the scope is there")
        unit.take_in(child)
        unit.limit(MemoryHigh=MIB)
        for disturb in (self.hand_over, restart):
            time.sleep(harness.scaled(0.2))
            disturb()
        load.close_input()
        self.assertEqual(load.wait(60), 0, load.output + load.errors)
        self.assertLess(unit.shared(), MIB)
        self.assertEqual(unit.events("oom_kill"), 0)
        room.kill9()

    def children_of(self, pid):
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]

    # ---- hmmd's limits --------------------------------------------------------------

    def test_hmmd_at_its_limit(self):
        """Killed for memory again and again: systemd starts the next one, which is let be; nobody loses a byte, and nothing comes home for it."""
        owner, _ = self.owner()
        owner.ask("turn", f"^turned {PAGES}$")
        more = []
        for _ in range(2):
            pid, kills = main_pid(), int(show("hmmd.service", "NRestarts"))
            HMMD.limit(MemoryMax=HMMD.usage())
            while main_pid() == pid and len(more) < 40:
                more.append(self.spawn_command("more", [*ALICE, OWNER, "2048"]))
                time.sleep(harness.scaled(0.1))
            harness.wait_until(patient(lambda: int(show("hmmd.service", "NRestarts")) > kills), 30, "that hmmd is killed for memory")
            run("systemctl", "set-property", "--runtime", "hmmd.service", "MemoryMax=infinity")
            wait_for_another(pid)
            owner.ask("device", "^checked$")
        for process in more:
            process.kill9()
        owner.ask("check", "^checked$")
        owner.finish()
        said = self.said()
        self.assertNotIn("every page comes home", said)
        self.assertRegex(run("journalctl", "--no-pager", "-o", "cat", "_PID=1", "-u", "hmmd.service"), "killed by the OOM killer")

    def test_another_of_its_unit_is_killed(self):
        """As the process that holds the cards may be: hmmd goes on, and systemd does not end it for that."""
        owner, _ = self.owner()
        owner.ask("turn", f"^turned {PAGES}$")
        pid = main_pid()
        greedy = self.spawn_command("greedy", ["python3", "-c", f"input(); x = bytearray({64 * MIB}); input()"])
        HMMD.take_in(greedy.pid)
        HMMD.limit(MemoryMax=HMMD.usage() + 8 * MIB)
        greedy.send("go")
        harness.wait_until(patient(lambda: not greedy.running), 30, "that it is killed for memory")
        run("systemctl", "set-property", "--runtime", "hmmd.service", "MemoryMax=infinity")
        owner.ask("device", "^checked$")
        self.assertEqual(main_pid(), pid)
        self.assertNotIn("every page comes home", self.said())
        owner.finish()

    def kill(self):
        pid = main_pid()
        os.kill(pid, signal.SIGKILL)
        wait_for_another(pid)

    # ---- an owner that sees little ---------------------------------------------------------

    def live(self, owner):
        """All that a program does with hmmd, which is handed over, restarted and killed meanwhile."""
        owner.ask("turn", f"^turned {PAGES}$")
        for disturb in (self.hand_over, restart, self.kill):
            disturb()
            owner.ask("device", "^checked$")
        owner.ask("check", "^checked$")
        owner.ask("change", "^changed$")
        owner.ask("fork", "^forked$")
        owner.ask("out", "^out ")
        owner.ask("home", f"^home {PAGES}$")
        owner.ask("check", "^checked$")
        owner.ask("close", "^closed$")
        owner.finish()

    def test_owner_in_a_sandbox(self):
        """Users, mounts, devices, /proc, network and IPC of its own, and without what Docker's profile forbids: as outside."""
        filters = " ".join(name if error == contained.EPERM else f"{name}:{error}" for name, error in contained.FORBIDDEN["moby"].items())
        self.live(Service(self, "sandboxed", OWNER, PAGES, User="alice", MemoryMax="64M", PrivateUsers="yes", PrivateTmp="yes",
                          PrivateMounts="yes", PrivateDevices="yes", PrivateNetwork="yes", PrivateIPC="yes", ProtectSystem="strict",
                          ProtectHome="yes", ProtectProc="invisible", ProcSubset="pid", ProtectControlGroups="yes", NoNewPrivileges="yes",
                          RestrictNamespaces="yes", LockPersonality="yes", MemoryDenyWriteExecute="yes", CapabilityBoundingSet="",
                          SystemCallArchitectures="native", SystemCallErrorNumber="EPERM", SystemCallFilter=f"~{filters}"))

    # ---- the end, and what comes in between ------------------------------------------------

    def test_killed_while_it_ends(self):
        """
        kill -9 in the middle of `systemctl stop`: what was home already is its owner's, what was not is found by the next one; and owners
        that hmmd has said good-bye to go on with that one like the others.
        """
        owners = [self.owner(f"owner{i}")[0] for i in range(3)]
        for owner in owners:
            owner.ask("turn", f"^turned {PAGES}$")
        before = left = self.on_devices()
        pid = main_pid()
        stopping = self.spawn_command("stopping", ["systemctl", "stop", "hmmd.service"])
        # In slices: it may be quicker than whoever looks.
        while left > before - BYTES // 2:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.01)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            left = self.on_devices()
        os.kill(pid, signal.SIGKILL)
        print(f"killed with {left >> 20} of {before >> 20} MiB on devices", flush=True)
        stopping.wait()
        # Whoever has lost it calls for another.
        run("systemctl", "start", "hmmd.service")
        owners[0].ask("device", "^checked$")
        for owner in owners:
            owner.ask("check", "^checked$")
            owner.ask("change", "^changed$")
            owner.ask("turn", f"^turned {PAGES}$")
            owner.ask("check", "^checked$")
            owner.finish()
        self.assertGreater(left, 0)

    def on_devices(self):
        """Bytes of shared memory that the owners are charged for."""
        return sum(Unit(f"owner{i}.scope").shared() for i in range(3))


if __name__ == "__main__":
    sys.exit("service.py runs these")
