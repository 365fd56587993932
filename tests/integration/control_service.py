# SPDX-License-Identifier: GPL-2.0-or-later
"""hmmd as a service: how it starts, whom it lets in, what it tells, how it reloads and how it ends."""

import errno
import os
import re
import resource
import signal
import socket
import stat
import struct
import subprocess
import threading
import unittest

import control_wire as wire
import harness


class Service(wire.Test):
    def run_hmmd(self, *args, environment=None):
        """hmmd to its end: for command lines that end at once."""
        process = self.spawn_command("hmmd-short", [harness.binary("hmmd"), *args], environment=environment,
                                     stdin=subprocess.DEVNULL)
        status = process.wait()
        return status, process.output, process.errors

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        return path


class CommandLine(Service):
    def test_help_and_version(self):
        status, output, errors = self.run_hmmd("--help")
        self.assertEqual((status, errors), (0, ""))
        for option in ("--socket", "--user", "--config", "--check-config", "--pool-size", "--ready-fd", "--no-move"):
            self.assertIn(option, output)
        status, output, errors = self.run_hmmd("--version")
        self.assertEqual((status, errors), (0, ""))
        self.assertRegex(output, r"^hmmd \d+\.\d+")

    def test_bad_usage(self):
        for args, text in ((["--nonsense"], "nonsense"), (["extra"], "what is 'extra'?"),
                           (["--workers", "0"], "--workers: 'workers' must be a number from 1 to 64, or auto, not '0'"),
                           (["--pool", "gold"], "--pool: 'kind' must be memfd, memfd-huge, hugetlb, dax or vfio, not 'gold'"),
                           (["--pool-size", "12X"], "--pool-size: 'size' must be a size from 2M to 64T"),
                           (["--grace", "5"], "--grace: 'grace' must be a time from 100ms to 3600s"),
                           (["--log", "loud"], "--log: 'log' must be error, warning, info or debug, not 'loud'"),
                           (["--ready-fd", "99"], "--ready-fd: '99' is no open descriptor"),
                           (["--ready-fd", "x"], "--ready-fd: 'x' is no open descriptor"),
                           (["--socket", "/" + "s" * 107], "must be a plain text of at most 107 bytes")):
            with self.subTest(args):
                status, _, errors = self.run_hmmd("--no-config", *args)
                self.assertEqual(status, 2)
                self.assertIn(text, errors)

    def test_the_holder_is_not_for_people(self):
        for words in ([], ["60000", os.path.join(self.folder, "none.holder")]):
            status, output, errors = self.run_hmmd("--holder", *words)
            self.assertEqual((status, output), (2, ""))
            self.assertIn("--holder is what hmmd starts by itself", errors)

    def test_check_config(self):
        good = self.write("good.conf", "[pool]\nsize = 1G\n")
        self.assertEqual(self.run_hmmd("--config", good, "--check-config"), (0, f"{good}: good\n", ""))
        bad = self.write("bad.conf", "[pool]\nsize = much\nkinds = memfd\n")
        status, output, errors = self.run_hmmd("--config", bad, "--check-config")
        self.assertEqual((status, output), (2, ""))
        self.assertEqual(errors.splitlines(), [
            f"{bad}:2: 'size' is 'much'; it must be a size from 2M to 64T in pages of 4K, such as 512M or 4G, or auto",
            f"{bad}:3: unknown key 'kinds' in [pool]; known are: kind, size, node, placement, card, bar, reserve, "
            "evict_high, evict_low"])
        status, _, errors = self.run_hmmd("--config", os.path.join(self.folder, "none.conf"))
        self.assertEqual(status, 2)
        self.assertIn("none.conf: cannot be read: No such file or directory", errors)

    def test_the_shipped_configuration_is_right(self):
        shipped = os.path.join(harness.SOURCE, "systemd", "hmmd.conf")
        self.assertEqual(self.run_hmmd("--config", shipped, "--check-config"), (0, f"{shipped}: good\n", ""))
        # Each commented line is the built-in value: uncommented, it is right as well.
        with open(shipped) as file:
            text = re.sub(r"^#(\w+ = )", r"\1", file.read(), flags=re.M)
        open_text = self.write("open.conf", text)
        self.assertEqual(self.run_hmmd("--config", open_text, "--check-config"), (0, f"{open_text}: good\n", ""))
        keys = re.findall(r"^(\w+) = ", text, re.M)
        self.assertEqual(len(keys), 29, "a key is missing in the shipped configuration")

    def test_user_mode_without_a_runtime_folder(self):
        status, _, errors = self.run_hmmd("--no-config", "--user", environment={"XDG_RUNTIME_DIR": ""})
        self.assertEqual(status, 2)
        self.assertIn("XDG_RUNTIME_DIR is not set; say where to listen with --socket PATH", errors)


class Socket(Service):
    def expect_refusal(self, *words, path=None):
        status, _, errors = self.run_hmmd("--no-config", "--socket", path or os.path.join(self.folder, "hmmd.sock"))
        self.assertEqual(status, 1)
        for word in words:
            self.assertIn(word, errors)

    def test_mode(self):
        self.start_daemon()
        mode = os.stat(self.daemon.socket)
        self.assertTrue(stat.S_ISSOCK(mode.st_mode))
        self.assertIn(stat.S_IMODE(mode.st_mode), (0o600, 0o660))

    def test_group(self):
        """The group gets in when it exists; here it is root's own, which always does."""
        config = self.write("h.conf", "[daemon]\ngroup = root\n")
        self.start_daemon("--config", config)
        info = os.stat(self.daemon.socket)
        self.assertEqual((stat.S_IMODE(info.st_mode), info.st_gid), (0o660, 0))

    def test_group_that_does_not_exist(self):
        config = self.write("h.conf", "[daemon]\ngroup = no-such-group\n")
        self.start_daemon("--config", config)
        self.assertEqual(stat.S_IMODE(os.stat(self.daemon.socket).st_mode), 0o600)
        self.expect_log("there is no group 'no-such-group'.*groupadd --system no-such-group")

    def test_second_hmmd_on_the_same_path(self):
        self.start_daemon()
        self.expect_refusal("another hmmd serves", "choose another path with --socket")
        self.expect_healthy()

    def test_cards_that_somebody_else_has(self):
        """What they reach may be the memory of whoever this hmmd would serve."""
        path = os.path.join(self.folder, "hmmd.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.bind(path + ".holder")
            other.listen()

            def answer():
                came, _ = other.accept()
                with came:
                    came.send(b"of another release")

            thread = threading.Thread(target=answer)
            thread.start()
            self.expect_refusal("cannot be had from the process at", "hmmd does not start beside cards")
            thread.join()
        self.assertFalse(os.path.exists(path), "its own socket is left")
        # Nobody is there any more.
        self.start_daemon("--socket", path)

    def test_socket_left_by_a_killed_hmmd(self):
        self.start_daemon()
        self.daemon.kill9()
        self.assertTrue(os.path.exists(self.daemon.socket))
        self.daemon.start()
        self.expect_log("removed the stale socket")
        self.expect_healthy()

    def test_somebody_else_listens(self):
        path = os.path.join(self.folder, "hmmd.sock")
        for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
            with socket.socket(socket.AF_UNIX, kind) as other:
                other.bind(path)
                other.listen(1)
                self.expect_refusal("somebody else answers")
                self.assertTrue(os.path.exists(path))
            os.unlink(path)

    def test_path_that_is_a_file(self):
        path = self.write("hmmd.sock", "precious")
        self.expect_refusal("exists and is no socket")
        with open(path) as file:
            self.assertEqual(file.read(), "precious")

    def test_folder_that_cannot_be_made(self):
        self.expect_refusal("cannot make the folder", path=os.path.join(self.folder, "a/b/hmmd.sock"))
        self.write("file", "")
        self.expect_refusal("cannot make", path=os.path.join(self.folder, "file/hmmd.sock"))

    def test_many_start_at_once(self):
        """One of them serves, the others say so and end; whichever way they interleave."""
        path = os.path.join(self.folder, "hmmd.sock")
        started = [self.spawn_command("racer", [harness.binary("hmmd"), "--no-config", "--socket", path])
                   for _ in range(6)]
        harness.wait_until(lambda: sum(process.running for process in started) == 1, 30, "that one is left")
        with wire.connect_soon(path) as client:
            winner = client.status()["pid"]
        for process in started:
            if process.running:
                self.assertEqual(process.pid, winner)
                process.signal(signal.SIGTERM)
                self.assertEqual(process.wait(), 0)
            else:
                self.assertEqual(process.status, 1)
                self.assertIn("choose another path", process.errors)
        self.assertEqual([name for name in os.listdir(self.folder) if name.startswith("hmmd.sock")], [])

    def test_user_mode(self):
        os.mkdir(os.path.join(self.folder, "run"), 0o700)
        ready, told = os.pipe()
        process = self.spawn_command("hmmd", [harness.binary("hmmd"), "--no-config", "--user", "--ready-fd", told],
                                     environment={"XDG_RUNTIME_DIR": os.path.join(self.folder, "run")}, pass_fds=(told,))
        os.close(told)
        self.assertEqual(os.read(ready, 16), b"READY=1\n")
        os.close(ready)
        path = os.path.join(self.folder, "run", "hmmd.sock")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        with wire.Client(path) as client:
            self.assertEqual(client.status()["socket"], path)
        # A thread of its own writes the log.
        for said in ("--user: works for processes of uid", "--user: does not: other users' processes"):
            harness.wait_until(lambda: said in process.errors, 10, f"'{said}' in the log")
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)


    @unittest.skipUnless(os.getuid() == 0, "only root can become somebody else")
    def test_user_mode_of_a_plain_user(self):
        """No privilege at all: it serves, says what it lacks, and ends in order."""
        path = os.path.join(self.folder, "run", "hmmd.sock")
        os.chmod(self.folder, 0o711)
        os.mkdir(os.path.dirname(path), 0o700)
        os.chown(os.path.dirname(path), 65534, 65534)
        # By descriptor and relative name: a plain user may not be let into the folders that lead to build and test.
        program = os.open(harness.binary("hmmd"), os.O_RDONLY)
        log = os.open(os.path.join(self.folder, "user.err"), os.O_WRONLY | os.O_CREAT, 0o600)
        child = os.fork()
        if child == 0:
            os.dup2(log, 2)
            os.chdir(self.folder)
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.execve(program, ["hmmd", "--no-config", "--user"],
                      dict(os.environ, XDG_RUNTIME_DIR="run"))
        os.close(program)
        os.close(log)
        try:
            with wire.connect_soon(path, role=wire.TOOL) as client:
                self.assertEqual((client.status()["uid"], client.status()["pid"]), (65534, child))
                self.assertTrue(client.features & 0x400)
                names = [wire.untext(record[2]) for record in client.list_findings()]
                self.assertIn("user mode", names)
                self.assertIn("fork", names)
        finally:
            os.kill(child, signal.SIGTERM)
            _, status = os.waitpid(child, 0)
        self.assertEqual(status, 0)
        self.assertFalse(os.path.exists(path))
        with open(os.path.join(self.folder, "user.err")) as file:
            self.assertRegex(file.read(), "--user: works for processes of uid 65534")


class Lists(Service):
    def test_status(self):
        self.start_daemon("--pool-size", "64M", "--workers", "2")
        client = self.connect(role=wire.TOOL)
        status = client.status()
        self.assertEqual((status["pid"], status["uid"], status["clients"], status["owners"], status["windows"]),
                         (self.daemon.pid, os.getuid(), 1, 0, 0))
        self.assertEqual((status["workers"], status["pool_bytes"], status["pool_used"]), (2, 64 << 20, 0))
        self.assertEqual((status["socket"], status["incarnation"], status["features"]),
                         (self.daemon.socket, client.incarnation, client.features))
        self.assertIn(status["kernel_tier"], (1, 2))
        self.assertGreater(status["uptime_ns"], 0)
        self.assertLess(status["uptime_ns"], client.status()["uptime_ns"])

    def test_hello(self):
        self.start_daemon("--grace", "1234ms")
        client = self.connect(hello=False)
        answer = client.hello()
        self.assertEqual(answer.unpack("II"), (2, os.getuid()))
        self.assertEqual(answer.unpack("I", 32)[0], 1234)
        if os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
            self.assertEqual([os.readlink(f"/proc/self/fd/{fd}") for fd in answer.fds], ["/dev/userfaultfd"])
        answer.close()

    def test_why_features_are_off(self):
        self.start_daemon()
        client = self.connect(role=wire.DRIVER)
        known = 0
        for bit in range(64):
            answer = client.ask(wire.FEATURE, struct.pack("<Q", 1 << bit))
            if answer.is_error:
                continue
            known |= 1 << bit
            self.assertEqual(wire.untext(answer.unpack("240s")[0]) == "", bool(client.features >> bit & 1), bit)
        self.assertEqual(client.features & ~known, 0)
        for none in (0, 3, 1 << 63, (1 << 64) - 1):
            self.assertTrue(client.ask(wire.FEATURE, struct.pack("<Q", none)).is_error, none)
        self.assertFalse(client.ask(wire.FEATURE, struct.pack("<Q", 1)).is_error)

    def test_incarnations_differ(self):
        self.start_daemon()
        first = self.connect().incarnation
        self.daemon.restart()
        self.assertNotEqual(first, self.connect().incarnation)

    def test_clients(self):
        self.start_daemon()
        self.connect(role=wire.DRIVER, name="render")
        tool = self.connect(role=wire.TOOL, name="look")
        listed = tool.list_clients()
        self.assertEqual([(client[1], client[2], client[3], client[9]) for client in listed],
                         [(os.getpid(), os.getuid(), wire.DRIVER, "render"), (os.getpid(), os.getuid(), wire.TOOL, "look")])

    def test_a_list_longer_than_a_message(self):
        config = self.write("h.conf", "[limits]\nconnections = 1000\n")
        self.start_daemon("--config", config)
        clients = [self.connect(name=f"client {i}") for i in range(620)]
        names = [client[9] for client in clients[0].list_clients()]
        self.assertEqual(names, [f"client {i}" for i in range(620)])
        answer = clients[0].ask(wire.CLIENTS, struct.pack("<II", 0xFFFFFFFF, 0))
        self.assertEqual(answer.unpack("II"), (0, 0))

    def test_empty_lists_and_counters(self):
        self.start_daemon()
        client = self.connect(role=wire.TOOL)
        for opcode in (wire.OWNERS, wire.MIRRORS):
            self.assertEqual(client.ask(opcode, bytes(8)).unpack("II"), (0, 0))
        # A pool is made with its first device.
        self.assertEqual(client.listed(wire.POOLS, "IIiIQQQQQQ64s"), [])
        names = [wire.untext(record[1]) for record in client.list_stats()]
        self.assertEqual(len(names), len(set(names)))
        self.assertGreater(len(names), 0)

    def test_device_and_its_pool(self):
        self.start_daemon()
        client = self.connect(role=wire.DRIVER)
        new = wire.new_device("gpu")
        device, _, size = client.ask(wire.DEVICE_NEW, new).unpack("IIQ")
        self.assertEqual(size, 64 << 20)
        self.expect_error(client.ask(wire.DEVICE_NEW, new), errno.EBUSY)
        self.expect_error(client.ask(wire.DEVICE_OPEN, wire.text("no such", 64)), errno.ENODEV)
        tool = self.connect(role=wire.TOOL)
        pools = tool.listed(wire.POOLS, "IIiIQQQQQII64s64s")
        self.assertEqual([(pool[1], pool[3], pool[5]) for pool in pools], [(1, 1, 0)])
        self.assertEqual(tool.status()["devices"], 1)
        # Somebody else's put is manners and no more; it goes with its maker.
        other = self.connect(role=wire.DRIVER)
        self.assertEqual(other.ask(wire.DEVICE_OPEN, wire.text("gpu", 64)).unpack("II"), (device, 1))
        self.assertFalse(other.ask(wire.DEVICE_PUT, struct.pack("<II", device, 0)).is_error)
        self.assertEqual(tool.status()["devices"], 1)
        client.close()
        harness.wait_until(lambda: tool.status()["devices"] == 0, what="that the device goes with its maker")

    def test_memory_of_a_device(self):
        self.start_daemon("--pool-size", "256M")
        client = self.connect(role=wire.DRIVER)

        def new(name, caps):
            return client.ask(wire.DEVICE_NEW, wire.new_device(name, size=4 << 20, caps=caps)).unpack("IIQ")[0]

        def add(device, token, pool, pages):
            return client.ask(wire.DEVMEM_ADD, struct.pack("<IIQQ", device, token, pool, pages))

        plain, engine = new("plain", 1), new("engine", 9)
        self.expect_error(add(999, 0, 1 << 20, 0), errno.ENODEV)
        self.expect_error(add(plain, 7, 1 << 20, 100), errno.EINVAL, "without a copy engine")
        self.expect_error(add(engine, 0, 1 << 20, 0), errno.EINVAL, "with a copy engine")
        self.expect_error(add(engine, 0, 1 << 20, 100), errno.EINVAL)
        self.expect_error(add(engine, 7, 1 << 20, 0xffffffff), errno.ENOSPC)
        self.expect_error(add(plain, 0, 1 << 40, 0), errno.ENOSPC)
        self.assertEqual(add(plain, 0, 8 << 20, 0).unpack("Q"), (8 << 20,))
        # Said again after a restart: the same, and never less.
        self.assertEqual(add(plain, 0, 8 << 20, 0).unpack("Q"), (8 << 20,))
        self.assertEqual(add(plain, 0, 1 << 20, 0).unpack("Q"), (8 << 20,))
        self.assertEqual(add(engine, 7, 4 << 20, 100).unpack("Q"), (4 << 20,))
        self.assertFalse(add(engine, 7, 4 << 20, 100).is_error)
        self.expect_error(add(engine, 8, 4 << 20, 100), errno.EBUSY, "lives")
        self.expect_error(client.ask(wire.DEVMEM_REMOVE, struct.pack("<IIQ", 999, 0, 0)), errno.ENODEV)
        self.assertFalse(client.ask(wire.DEVMEM_REMOVE, struct.pack("<IIQ", engine, 0, 4 << 20)).is_error)
        self.assertFalse(add(engine, 8, 4 << 20, 100).is_error)
        self.assertFalse(client.ask(wire.DEVMEM_REMOVE, struct.pack("<IIQ", plain, 0, 0)).is_error)
        for opcode in (wire.DEVMEM_READY, wire.DEVMEM_STORED, wire.DEVMEM_FETCHED):
            self.expect_error(client.ask(opcode, struct.pack("<IIQ", 1 << 8, 0, 0)), errno.EPERM)

    def test_doctor(self):
        """Findings are of this machine: what is told must be true here, with a fix."""
        self.start_daemon("--no-io-uring", "--no-move")
        client = self.connect(role=wire.TOOL)
        found = {wire.untext(name): (severity, wire.untext(text), wire.untext(fix))
                 for severity, _, name, text, fix in client.list_findings()}
        for name, (severity, text, fix) in found.items():
            self.assertIn(severity, (1, 2, 3), name)
            self.assertTrue(text and fix, name)
        self.assertIn("--no-move", found["move"][2])
        self.assertIn("--no-io-uring", found["io_uring"][2])
        with open("/proc/sys/vm/max_map_count") as file:
            self.assertEqual("max_map_count" in found, int(file.read()) < 262144)
        cards = [name for name in found if name.startswith("card ")]
        self.assertEqual("iommu" in found, not os.path.isdir("/sys/class/iommu") or not os.listdir("/sys/class/iommu"))
        if "iommu" in found and not cards:
            self.assertEqual(found["iommu"][0], 1, "who has no card misses nothing")

    def test_forks_that_are_not_seen(self):
        """Without CAP_SYS_PTRACE a child may read zeros and never know: hmmd says so at once, and whenever it is asked."""
        self.daemon_lacks = ["sys_ptrace"]
        self.start_daemon()
        self.expect_log("warning.*lacks CAP_SYS_PTRACE.*reads zeros")
        client = self.connect(role=wire.TOOL)
        found = {wire.untext(name): (severity, wire.untext(text), wire.untext(fix))
                 for severity, _, name, text, fix in client.list_findings()}
        self.assertEqual(found["fork"][0], 2)
        self.assertRegex(found["fork"][1], "lacks CAP_SYS_PTRACE.*reads zeros")
        self.assertIn("CAP_SYS_PTRACE", found["fork"][2])

    def test_doctor_sees_limits(self):
        """A limit on file sizes makes every mirror fail; doctor says so before anybody tries. It looks when it is asked."""
        config = self.write("h.conf", "[daemon]\ngroup = no-such-group\n")
        self.start_daemon("--config", config)
        client = self.connect(role=wire.TOOL)
        resource.prlimit(self.daemon.pid, resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, (100, 4096))
        found = {wire.untext(name): (severity, wire.untext(text)) for severity, _, name, text, _ in client.list_findings()}
        self.assertEqual(found["fsize"][0], 3)
        self.assertIn("files may be 1024 MiB long", found["fsize"][1])
        self.assertIn("hmmd may have 100 descriptors", found["nofile"][1])
        self.assertIn("there was no group 'no-such-group'", found["group"][1])

    def test_wire_debugging(self):
        self.daemon = harness.Daemon(self, *self.daemon_args, environment={"HMMD_DEBUG": "wire"})
        self.daemon.start()
        self.connect(name="spoken").status()
        self.expect_log(r'hello .*name="spoken"')
        self.expect_log("status reply")

    def test_silence_without_debugging(self):
        self.start_daemon()
        self.connect(name="unspoken").status()
        self.assertNotIn("unspoken", self.daemon.log)


@unittest.skipUnless(os.getuid() == 0, "only root has any")
class Privileges(Service):
    SERVE = 1 << 1 | 1 << 14 | 1 << 19 | 1 << 23    # DAC_OVERRIDE, IPC_LOCK, SYS_PTRACE, SYS_NICE

    def test_each_thread_has_what_it_needs(self):
        with open("/proc/self/status") as file:
            ours = int(re.search(r"^CapEff:\s*([0-9a-f]+)", file.read(), re.M)[1], 16)
        self.start_daemon("--workers", "2")
        seen = {}
        for task in os.listdir(f"/proc/{self.daemon.pid}/task"):
            with open(f"/proc/{self.daemon.pid}/task/{task}/status") as file:
                status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
            self.assertEqual(status["NoNewPrivs"], "1", status["Name"])
            self.assertEqual(status["CapEff"], status["CapPrm"])
            seen.setdefault(status["Name"], []).append(int(status["CapEff"], 16))
        self.assertEqual(seen.pop("hmmd-log"), [0])
        self.assertGreaterEqual(sum(len(each) for each in seen.values()), 3, seen)
        self.assertEqual({caps for each in seen.values() for caps in each}, {self.SERVE & ours})


class Reload(Service):
    def start_with(self, text):
        self.path = self.write("h.conf", text)
        self.start_daemon("--config", self.path)

    def reload(self, text, log):
        self.write("h.conf", text)
        self.daemon.process.signal(signal.SIGHUP)
        self.expect_log(log)

    def test_limits_change(self):
        self.start_with("[limits]\nconnections = 2\n")
        kept = [self.connect(), self.connect()]
        self.expect_error(self.connect(hello=False).receive(), errno.EDQUOT, "2 of 2 connections")
        self.reload("[limits]\nconnections = 3\n", "the configuration is reloaded")
        kept.append(self.connect())
        self.expect_error(self.connect(hello=False).receive(), errno.EDQUOT, "3 of 3 connections")
        kept[0].status()

    def test_wrong_file_changes_nothing(self):
        self.start_with("[limits]\nconnections = 2\n")
        kept = [self.connect()]
        self.reload("[limits]\nconnections = 1\nowners = many\n",
                    "the configuration is not reloaded; the old one stays in force")
        self.expect_log(re.escape(self.path) + ":3: 'owners' is 'many'; it must be a number from 1 to 65535")
        kept.append(self.connect())
        self.expect_error(self.connect(hello=False).receive(), errno.EDQUOT, "2 of 2 connections")

    def test_drop_in_appears(self):
        self.start_with("[limits]\nconnections = 1\n")
        self.write("h.conf.d/50-more.conf", "[limits]\nconnections = 2\n")
        self.reload("[limits]\nconnections = 1\n", "the configuration is reloaded")
        kept = [self.connect(), self.connect()]
        self.assertEqual(kept[1].status()["clients"], 2)

    def test_what_needs_a_restart_is_named(self):
        self.start_with("[pool]\nsize = 64M\n")
        self.reload("[pool]\nsize = 128M\n[engine]\ngrace = 1s\n",
                    "these take effect at the next start of hmmd: engine.grace, pool.size")
        self.assertEqual(self.connect().grace_ms, 10000)

    def test_command_line_stays_on_top(self):
        self.path = self.write("h.conf", "")
        self.start_daemon("--config", self.path, "--log", "error")
        self.reload("[daemon]\nlog = debug\n[limits]\nowners = x\n", "must be a number")
        self.write("h.conf", "[daemon]\nlog = debug\n")
        self.daemon.process.signal(signal.SIGHUP)
        self.connect().status()
        self.assertNotIn("is reloaded", self.daemon.log)

    def test_many_reloads_under_load(self):
        self.start_with("")
        client = self.connect()
        for _ in range(50):
            self.daemon.process.signal(signal.SIGHUP)
            client.status()
        client.close()
        self.expect_descriptors_back()


class End(Service):
    def test_peers_are_told(self):
        self.start_daemon()
        clients = [self.connect(name=f"client {i}") for i in range(20)]
        self.daemon.process.signal(signal.SIGTERM)
        for client in clients:
            event = client.receive()
            self.assertEqual((event.opcode, event.serial), (wire.EVENT_SHUTDOWN, 0))
            self.assertTrue(client.at_end())
        self.assertEqual(self.daemon.process.wait(), 0)
        self.assertEqual([name for name in os.listdir(self.folder) if name.startswith("hmmd.sock")], [])

    def test_a_deaf_peer_does_not_keep_it(self):
        self.start_daemon()
        client = self.connect()
        client.socket.setblocking(False)
        try:
            while True:
                client.send(wire.DOCTOR, bytes(8))
        except BlockingIOError:
            pass
        self.daemon.process.signal(signal.SIGTERM)
        self.assertEqual(self.daemon.process.wait(), 0)

    def test_interrupt(self):
        self.start_daemon()
        self.daemon.process.signal(signal.SIGINT)
        self.assertEqual(self.daemon.process.wait(), 0)
        self.assertIn("SIGINT", self.daemon.log)

    def test_a_socket_that_was_replaced_stays(self):
        self.start_daemon()
        os.unlink(self.daemon.socket)
        self.write("hmmd.sock", "new")
        self.daemon.process.signal(signal.SIGTERM)
        self.assertEqual(self.daemon.process.wait(), 0)
        self.assertTrue(os.path.exists(self.daemon.socket))

    def test_stderr_that_nobody_reads(self):
        """The log is written by a thread of its own: a full pipe stops that thread and nothing else."""
        read, write = os.pipe()
        path = os.path.join(self.folder, "hmmd.sock")
        process = subprocess.Popen([harness.binary("hmmd"), "--no-config", "--socket", path, "--log", "debug"],
                                   stderr=write, stdin=subprocess.DEVNULL)
        os.close(write)
        try:
            wire.connect_soon(path).close()
            for _ in range(3000):
                with wire.Client(path, name="x" * 60):
                    pass
            with wire.Client(path) as client:
                self.assertEqual(client.status()["pid"], process.pid)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(harness.scaled(30)), 0)
        finally:
            process.kill()
            process.wait()
            os.close(read)


class Keys(Service):
    """Who may touch an owner: its key opens it, and the key is the inode, not the descriptor."""

    def setUp(self):
        super().setUp()
        self.start_daemon()
        self.client = self.connect()
        self.owner = self.client.open_owner()
        self.key = os.memfd_create("key")

    def tearDown(self):
        os.close(self.key)
        super().tearDown()

    def export(self, client=None, owner=None, key=None):
        return (client or self.client).ask(wire.EXPORT, struct.pack("<II", owner or self.owner, 0), [key or self.key])

    def open_peer(self, client, key=None):
        answer = client.ask(wire.OPEN_PEER, bytes(8), [key or self.key])
        answer.close()
        return answer

    def test_open_by_key(self):
        driver = self.connect(role=wire.DRIVER)
        self.expect_error(self.open_peer(driver), errno.ENOENT)
        self.assertFalse(self.export().is_error)
        answer = self.open_peer(driver)
        self.assertFalse(answer.is_error)
        self.assertEqual((answer.unpack("II"), answer.nfds), ((self.owner, os.getpid()), 2))
        layout = driver.ask(wire.LAYOUT, struct.pack("<IIQ", self.owner, 0, 0))
        self.assertFalse(layout.is_error)
        # The key opens, and no more than that.
        answer = driver.ask(wire.PREPARE_FORK, struct.pack("<II", self.owner, 0))
        self.expect_error(answer, errno.EPERM, f"only owner {self.owner} itself may ask for prepare_fork")
        self.expect_error(self.export(client=driver), errno.EPERM)

    def test_a_copy_of_the_file_is_no_key(self):
        self.assertFalse(self.export().is_error)
        os.write(self.key, b"contents do not matter")
        other = os.memfd_create("key")
        os.write(other, b"contents do not matter")
        self.expect_error(self.open_peer(self.connect(role=wire.DRIVER), other), errno.ENOENT)
        os.close(other)

    def test_twice_is_once(self):
        self.assertFalse(self.export().is_error)
        before = self.daemon.extra_descriptors()
        self.assertFalse(self.export().is_error)
        self.expect_nothing_kept_since(before)

    def test_a_key_that_opens_another(self):
        self.assertFalse(self.export().is_error)
        other = self.connect()
        owner = other.open_owner()
        self.expect_error(self.export(client=other, owner=owner), errno.EEXIST, "opens another owner")

    def test_wrong_kinds(self):
        before = self.daemon.extra_descriptors()
        null = os.open("/dev/null", os.O_RDWR)
        self.expect_error(self.export(key=null), errno.EINVAL, "no memfd of your own", "memfd_create()")
        os.close(null)
        self.expect_nothing_kept_since(before)

    def test_too_many_keys(self):
        for i in range(64):
            fd = os.memfd_create(f"key {i}")
            self.assertFalse(self.export(key=fd).is_error)
            os.close(fd)
        self.expect_error(self.export(), errno.EMFILE, f"owner {self.owner} has 64 keys")

    def test_rights_end_with_the_connection(self):
        self.assertFalse(self.export().is_error)
        driver = self.connect(role=wire.DRIVER)
        self.assertFalse(self.open_peer(driver).is_error)
        driver.close()
        again = self.connect(role=wire.DRIVER)
        answer = again.ask(wire.LAYOUT, struct.pack("<IIQ", self.owner, 0, 0))
        self.expect_error(answer, errno.EPERM)

    def test_owner_gone(self):
        """The owner is another process, which ends: whoever had opened it is told, its key opens nothing."""
        tell, told = os.pipe()
        hold, release = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(release)
            client = wire.Client(self.daemon.socket)
            owner = client.open_owner()
            key = os.memfd_create("key")
            answer = client.ask(wire.EXPORT, struct.pack("<II", owner, 0), [key])
            os.write(told, struct.pack("<II", owner if not answer.is_error else 0, key))
            os.read(hold, 1)
            os._exit(0)
        owner, number = struct.unpack("<II", os.read(tell, 8))
        key = os.open(f"/proc/{child}/fd/{number}", os.O_RDWR)
        driver = self.connect(role=wire.DRIVER)
        self.assertEqual(self.open_peer(driver, key).unpack("I")[0], owner)
        for fd in (tell, told, hold, release):
            os.close(fd)
        os.waitpid(child, 0)
        event = driver.receive()
        self.assertEqual((event.opcode, event.unpack("I")[0]), (wire.EVENT_OWNER_GONE, owner))
        self.expect_error(self.open_peer(driver, key), errno.ENOENT)
        self.expect_error(driver.ask(wire.LAYOUT, struct.pack("<IIQ", owner, 0, 0)), errno.EPERM)
        os.close(key)


if __name__ == "__main__":
    harness.main()
