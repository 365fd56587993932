#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The harness of the emulated machine, without a machine: what it runs, what it unpacks, and that it believes nothing.

A stand-in for QEMU writes what a guest would have written. That a real guest tells the truth is shown by tests/guest/run
itself, whose tests report what they skip.
"""

import importlib.machinery
import importlib.util
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import types
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "integration"))
sys.path.insert(0, HERE)
import harness  # noqa: E402
import image  # noqa: E402
import kernel  # noqa: E402
import machine  # noqa: E402
import root  # noqa: E402

loader = importlib.machinery.SourceFileLoader("guest_run", os.path.join(HERE, "run"))
guest_run = importlib.util.module_from_spec(importlib.util.spec_from_loader("guest_run", loader))
loader.exec_module(guest_run)


def a_test(name, criterion=False):
    return {"name": name, "command": ["python3", "/t/attend.py", "--results", "/b/results", "--name", name, "--deadline", "120",
                                      *(["--criterion"] if criterion else []), "--", f"/b/test-{name}"],
            "properties": [{"name": "ENVIRONMENT", "value": ["A=b=c", "HMM_TEST_SCALE=1"]},
                           {"name": "WORKING_DIRECTORY", "value": "/b"}]}


class Report(unittest.TestCase):
    """A run over a guest that wrote these results, on 6.12."""

    def run_over(self, results, ended=True, console="guest: up after 5 s, Linux 6.12\n", expected=("x", "y")):
        with tempfile.TemporaryDirectory() as folder:
            options = types.SimpleNamespace(results=folder)
            guest = guest_run.Guest("6.12", options, lambda text: None)
            os.makedirs(guest.results)
            with open(guest.expected, "w") as file:
                json.dump({"tests": [a_test(name) for name in expected]}, file)
            for name, tests in results.items():
                with open(f"{guest.results}/{name}.json", "w") as file:
                    json.dump({"seconds": 1, "tests": [dict(zip(("name", "status", "message"), test)) for test in tests]}, file)
            with open(f"{guest.folder}/console", "w") as file:
                file.write(console)
            guest.trouble = machine.diagnose(f"{guest.folder}/console", ended, 30, False, 0)
            return {outcome["name"]: (outcome["status"], outcome["message"]) for outcome in guest.outcomes()}

    def test_all_passed(self):
        outcomes = self.run_over({"x": [("x", "passed", "")], "y": [("y::a", "passed", ""), ("y::b", "passed", "")]})
        self.assertEqual(outcomes, {"6.12: x": ("passed", ""), "6.12: y: y::a": ("passed", ""), "6.12: y: y::b": ("passed", "")})

    def test_one_failed(self):
        outcomes = self.run_over({"x": [("x", "failed", "broken")], "y": [("y", "passed", "")]})
        self.assertEqual(outcomes["6.12: x"], ("failed", "broken"))
        self.assertEqual(outcomes["6.12: y"], ("passed", ""))

    def test_no_result_is_a_failure(self):
        outcomes = self.run_over({"x": [("x", "passed", "")]})
        self.assertEqual(outcomes["6.12: y"], ("failed", "did not run to its end"))

    def test_a_skip_that_is_allowed(self):
        reason = "this kernel has no MADV_GUARD_INSTALL"
        outcomes = self.run_over({"contract-pagemap": [("pagemap::guard", "skipped", reason)]}, expected=["contract-pagemap"])
        self.assertEqual(outcomes, {"6.12: contract-pagemap: pagemap::guard": ("skipped", reason)})

    def test_a_skip_that_is_not(self):
        outcomes = self.run_over({"x": [("x", "skipped", "it rains")], "y": [("y", "passed", "")]})
        self.assertEqual(outcomes["6.12: x"], ("failed", "skipped, which is not allowed: it rains"))

    def test_a_machine_that_panics(self):
        outcomes = self.run_over({"x": [("x", "passed", "")], "y": [("y", "passed", "")]}, ended=False,
                                 console="guest: up\n[   9.0] Kernel panic - not syncing: Fatal\n")
        self.assertEqual(outcomes["6.12: the machine"], ("failed", "the kernel gave up: Kernel panic - not syncing: Fatal"))

    def test_a_list_that_cannot_be_read(self):
        with tempfile.TemporaryDirectory() as folder:
            guest = guest_run.Guest("6.1", types.SimpleNamespace(results=folder), lambda text: None)
            os.makedirs(guest.results)
            with open(guest.expected, "w") as file:
                file.write("no list")
            self.assertEqual([outcome["status"] for outcome in guest.outcomes()], ["failed"])


class Diagnosis(unittest.TestCase):
    def diagnose(self, console, gave_up=False, ended=False):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(console)
            file.flush()
            return machine.diagnose(file.name, ended, 240, gave_up, -9)

    def test_each(self):
        self.assertIsNone(self.diagnose("guest: up\n", ended=True))
        self.assertEqual(self.diagnose("guest: up\n", gave_up=True), "no end after 240 s")
        self.assertEqual(self.diagnose("guest: up\n Kernel panic - not syncing: NMI\n", gave_up=True), "no end after 240 s")
        self.assertEqual(self.diagnose("", gave_up=True), "it did not come up in 240 s")
        self.assertEqual(self.diagnose("guest: cannot start: no disk\n"), "guest: cannot start: no disk")
        self.assertEqual(self.diagnose("guest: up\n"), "the machine stopped after 240 s, QEMU's status -9")

    def test_the_tail_is_what_a_person_can_read(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("\x1bc\x1b[?7lfirst\r\n\n" + "".join(f"{number}\n" for number in range(100)))
            file.flush()
            self.assertEqual(machine.tail(file.name, 2), ["98", "99"])
            self.assertEqual(machine.tail(file.name, 1000)[0], "first")
        self.assertEqual(machine.tail("/nowhere"), [])


class Plan(unittest.TestCase):
    def test_deadlines_and_results(self):
        plan, = guest_run.plan_of([a_test("x", criterion=True)], "/run/guest", 20)
        words = plan["command"]
        self.assertEqual(words[words.index("--results") + 1], "/run/guest")
        self.assertEqual(float(words[words.index("--deadline") + 1]), 2400)
        self.assertEqual(words[-3:], ["--criterion", "--", "/b/test-x"])
        self.assertEqual(plan["environment"]["A"], "b=c")
        self.assertEqual(plan["environment"]["HMM_TEST_SCALE"], "20")
        self.assertEqual(plan["directory"], "/b")


class Machine(unittest.TestCase):
    """A shell in the place of QEMU."""

    def run_script(self, script, limit):
        lines = []
        with tempfile.TemporaryDirectory() as room:
            stand_in = machine.Machine(["sh", "-c", script.replace("ROOM", room)], room)
            seconds = stand_in.run(limit, lines.append)
            self.assertIsNotNone(stand_in.process.poll(), "it outlives the run")
        return stand_in.status, seconds, lines

    def test_its_lines_are_passed_on(self):
        status, _, lines = self.run_script("printf '[  1.0] x\\nguest: up\\nnoise guest: 1/2 x passed\\n' >ROOM/console; exit 3", 60)
        self.assertEqual(status, 3)
        self.assertEqual(lines, ["up", "1/2 x passed"])

    def test_one_that_hangs_is_ended(self):
        status, _, lines = self.run_script("echo 'guest: up' >ROOM/console; exec sleep 1000", 1)
        self.assertLess(status, 0)
        self.assertEqual(lines, ["up"])

    def test_one_that_will_not_end_is_killed(self):
        status, _, _ = self.run_script("trap '' TERM; echo 'guest: up' >ROOM/console; while :; do sleep 1; done", 1)
        self.assertLess(status, 0)


class Asked(unittest.TestCase):
    """By a test in the guest, of QEMU, which has a stand-in here."""

    def answer(self, text):
        def serve(listener):
            with listener.accept()[0] as link, link.makefile("rw") as file:
                for reply in ('{"QMP": {}}', '{"return": {}}', '{"event": "X"}\n{"return": "done"}'):
                    file.write(reply + "\n")
                    file.flush()
                    heard.append(file.readline())

        heard = []
        with tempfile.TemporaryDirectory() as room, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{room}/qmp")
            listener.listen()
            thread = threading.Thread(target=serve, args=(listener,), daemon=True)
            thread.start()
            with open(f"{room}/ask", "w") as file:
                file.write(text)
            machine.Machine([], room, room).attend()
            self.assertFalse(os.path.exists(f"{room}/ask"))
            with open(f"{room}/answer") as file:
                return json.load(file), heard[1:2]

    def test_it_is_passed_on(self):
        answer, heard = self.answer('{"execute": "device_del", "arguments": {"id": "x"}}')
        self.assertEqual(answer, {"return": "done"})
        self.assertEqual([json.loads(line) for line in heard], [{"execute": "device_del", "arguments": {"id": "x"}}])

    def test_what_is_no_command(self):
        for text in ("nonsense", "[]", "{}"):
            self.assertIn("error", self.answer(text)[0])

    def test_nobody_asks(self):
        with tempfile.TemporaryDirectory() as room:
            machine.Machine([], room, room).attend()
            self.assertEqual(os.listdir(room), [])


class Modules(unittest.TestCase):
    def test_dependencies_come_first(self):
        contents = {"a": b"\0depends=b-b,c\0", "b_b": b"\0depends=c\0", "c": b"\0depends=\0", "d": b"\0depends=built_in\0"}
        order = kernel.load_order(["a", "d", "missing", "c"], {name: name for name in contents}, contents.get)
        self.assertEqual([name for name, _ in order], ["c", "b_b", "a", "d"])


class Image(unittest.TestCase):
    def test_busybox_can_unpack_it(self):
        busybox = guest_run.find_busybox()
        if not busybox:
            self.fail("a static busybox is missing")
        data = image.archive({"bin/a": (0o755, b"four"), "b": (0o644, b"12345")}, ["bin", "empty"])
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([busybox, "cpio", "-i"], input=data, cwd=folder, check=True, stderr=subprocess.DEVNULL)
            found = {name: open(f"{folder}/{name}", "rb").read() for name in ("bin/a", "b")}
            self.assertEqual(found, {"bin/a": b"four", "b": b"12345"})
            self.assertEqual(stat.S_IMODE(os.stat(f"{folder}/bin/a").st_mode), 0o755)
            self.assertTrue(os.path.isdir(f"{folder}/empty"))


class Root(unittest.TestCase):
    """A package as root.py lays it down, and dpkg as it finds it there."""

    def package(self, folder, name, files, *fields):
        for path, text in files.items():
            root._write(f"{folder}/{name}/{path}", text)
        root._write(f"{folder}/{name}/DEBIAN/control", "\n".join([f"Package: {name}", "Version: 1", "Architecture: amd64",
                                                                 "Maintainer: a <a@b.example>", "Description: d", *fields, ""]))
        subprocess.run(["dpkg-deb", "-b", f"{folder}/{name}", f"{folder}/{name}.deb"], check=True, stdout=subprocess.DEVNULL,
                       stdin=subprocess.DEVNULL)
        return f"{folder}/{name}.deb"

    def test_dpkg_knows_it(self):
        with tempfile.TemporaryDirectory() as folder:
            archives = f"{folder}/archives"
            os.makedirs(archives)
            masters = {f"usr/share/base-passwd/{kind}.master": "root:\n" for kind in ("passwd", "group")}
            for package in (self.package(folder, "one", {"bin/one": "1", **masters}),
                            self.package(folder, "two", {"lib/two": "2", "usr/share/doc/two/text": "2"}, "Multi-Arch: same")):
                os.rename(package, f"{archives}/{os.path.basename(package)}")
            files = f"{folder}/files"
            root._lay_out(files, archives)
            # Folders do not take the place of links.
            self.assertEqual((os.readlink(f"{files}/bin"), open(f"{files}/usr/bin/one").read()), ("usr/bin", "1"))
            self.assertEqual(open(f"{files}/usr/lib/two").read(), "2")
            self.assertFalse(os.path.exists(f"{files}/usr/share/doc"))
            done = subprocess.run(["dpkg-query", f"--admindir={files}/var/lib/dpkg", "-W", "-f", "${Package} ${db:Status-Abbrev}\n"],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            self.assertEqual(done.stdout.split(), ["one", "ii", "two", "ii"])
            done = subprocess.run(["dpkg-query", f"--admindir={files}/var/lib/dpkg", "-L", "two"], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, text=True)
            self.assertIn("/lib/two\n", done.stdout)
            # systemd finds what it is here for, and its own units where they are masked.
            units = f"{files}/etc/systemd/system"
            self.assertEqual(os.readlink(f"{units}/multi-user.target.wants/guest.service"), "/etc/systemd/system/guest.service")
            self.assertEqual({os.readlink(f"{units}/{unit}") for unit in root.MASKED}, {"/dev/null"})

    def test_what_is_no_package(self):
        with tempfile.TemporaryDirectory() as folder:
            os.makedirs(f"{folder}/archives")
            root._write(f"{folder}/archives/broken.deb", "nonsense")
            with self.assertRaisesRegex(kernel.Missing, "broken.deb cannot be unpacked"):
                root._lay_out(f"{folder}/files", f"{folder}/archives")


class Service(unittest.TestCase):
    def test_its_files_are_elsewhere(self):
        with tempfile.TemporaryDirectory() as folder:
            options = types.SimpleNamespace(results=folder, scale=20.0, timeout=900, name="Served", shell=False)
            guest = guest_run.ServiceGuest("6.12", options, lambda text: None)
            os.makedirs(guest.results)
            plan, = guest.plan()
            self.assertEqual([word for word in plan["command"] if HERE in word],
                             [f"/run/host{HERE}/service.py"])
            self.assertEqual(plan["command"][-2:], ["-k", "Served"])
            self.assertEqual(plan["environment"]["HMM_TEST_SCALE"], "20")
            with open(guest.expected) as file:
                self.assertEqual([test["name"] for test in json.load(file)["tests"]], [plan["name"]])

    def test_its_disk_is_not_written(self):
        words = machine.systemd_command("/k", "/i", "/room", "/results", False, "/cache/root")
        self.assertIn("if=none,id=root,file=/cache/root,format=raw,snapshot=on", words)


class CommandLine(unittest.TestCase):
    def refused(self, *words, environment=None, status=2):
        done = subprocess.run([sys.executable, os.path.join(HERE, "run"), *words], stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
        self.assertEqual(done.returncode, status, done.stdout)
        return done.stdout

    def test_what_it_does_not_know(self):
        self.assertIn("'5.10' is no kernel known here", self.refused("5.10"))
        self.assertIn("each kernel once", self.refused("6.1", "6.1"))
        self.assertIn("--shell takes one kernel", self.refused("--shell", "6.1", "6.12"))

    def test_nothing_was_built(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertIn("holds no tests: build first", self.refused("--build", folder, "--results", folder))

    def test_two_runs_have_rooms_of_their_own(self):
        with tempfile.TemporaryDirectory() as folder:
            first, held = guest_run.own_room(f"{folder}/guest", None)
            second, also_held = guest_run.own_room(f"{folder}/guest", None)
            self.assertEqual(first, f"{folder}/guest")
            self.assertNotEqual(second, first)
            with self.assertRaises(kernel.Missing):
                guest_run.own_room(f"{folder}/guest", "named")
            held.close()
            also_held.close()
            again, held = guest_run.own_room(f"{folder}/guest", "named")
            self.assertEqual(again, first)
            held.close()

    def test_without_qemu(self):
        with tempfile.TemporaryDirectory() as folder:
            os.symlink("/usr/bin/env", f"{folder}/env")
            said = self.refused("--results", folder, environment={"PATH": folder})
        self.assertIn("qemu-system-x86_64 is missing", said)
        self.assertIn("apt-get install --no-install-recommends qemu-system-x86", said)

    def test_help(self):
        self.assertIn("--shell", self.refused("--help", status=0))


if __name__ == "__main__":
    harness.main()
