# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command of hmmctl against a real hmmd and a real program: text, JSON, selectors, exit statuses."""

import json
import os
import re
import unittest

import harness

OK, FAILED, USAGE, NO_DAEMON, NOT_PERMITTED, NOTHING, PARTIAL = range(7)
COMMANDS = ["status", "features", "doctor", "clients", "mirrors", "map", "advice", "pools", "usage", "stats", "migrate", "drain",
            "watch", "run"]
WITHOUT_DAEMON = ["device"]
PAGE = 4096
MIB = 1 << 20

# A program that knows nothing of hmmd: private memory full of a pattern, and a check of it on request.
PROGRAM = """
import ctypes, hashlib, mmap, sys
size = int(sys.argv[1])
memory = mmap.mmap(-1, size + (4 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
first = -start % (2 << 20)
for at in range(first, first + size, 4096):
    memory[at:at + 8] = (at * 2654435761 % (1 << 64)).to_bytes(8, "little")
digest = hashlib.sha256(memory[first:first + size]).hexdigest()
libc = ctypes.CDLL(None, use_errno=True)
print("memory %x" % (start + first), flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "check":
        print("same" if hashlib.sha256(memory[first:first + size]).hexdigest() == digest else "different", flush=True)
    elif word == "readonly":
        print("mprotect", libc.mprotect(ctypes.c_void_p(start + first), ctypes.c_size_t(size), 1), flush=True)
"""


class WithoutDaemon(harness.Test):
    def test_every_command_says_what_to_start(self):
        for command in COMMANDS:
            words = {"migrate": ["--to", "device"], "run": ["--", "true"]}.get(command, [])
            done = self.hmmctl(command, *words, status=NO_DAEMON)
            self.assertEqual(done.stdout, "")
            self.assertIn("systemctl start hmmd", done.stderr)

    def test_usage(self):
        for words in ([], ["nonsense"], ["--nonsense"], ["status", "--pid", "1"], ["status", "7f0000000000+2M"],
                      ["migrate"], ["migrate", "--to", "moon"], ["mirrors", "--pid", "-3"], ["mirrors", "--pid", "3x"],
                      ["mirrors", "--pid", "4294967296"], ["map", "1234-2000"], ["map", "2000-1000"], ["map", "1000+0"],
                      ["map", "1000+"], ["map", "ffffffffffffe000+16K"], ["mirrors", "--device", "x" * 64], ["run"],
                      ["run", "--churn"], ["run", "--churn", "x", "--", "true"], ["run", "--interval", "-1", "--", "true"],
                      ["run", "--device-memory", "0", "--", "true"], ["help", "nonsense"]):
            with self.subTest(words=words):
                done = self.hmmctl(*words, status=USAGE)
                self.assertEqual(done.stdout, "")
                self.assertNotEqual(done.stderr, "")

    def test_help(self):
        text = self.hmmctl("help").stdout
        self.assertEqual(text, self.hmmctl("--help").stdout)
        for command in COMMANDS + WITHOUT_DAEMON:
            self.assertIn(f"  {command} ", text)
            self.assertRegex(self.hmmctl("help", command).stdout, rf"^Usage: hmmctl {command}( \S.*)?\n")
            self.assertEqual(self.hmmctl(command, "--help").stdout, self.hmmctl("help", command).stdout)
        self.assertRegex(self.hmmctl("--version").stdout, r"^hmmctl \d+\.\d+\.\d+\n$")

    def test_the_socket_option_wins(self):
        done = self.hmmctl("--socket", "/nonexistent/here", "status", status=NO_DAEMON)
        self.assertIn("/nonexistent/here", done.stderr)


class Looking(harness.Test):
    def setUp(self):
        super().setUp()
        self.start_daemon()

    def test_status(self):
        status = self.hmmctl_json("status")
        self.assertEqual(status["pid"], self.daemon.pid)
        self.assertEqual(status["socket"], self.daemon.socket)
        self.assertEqual(status["owners"], 0)
        self.assertIn(status["engine"], ("full", "base"))
        text = self.hmmctl("status").stdout
        self.assertRegex(text, rf"(?m)^pid +{self.daemon.pid}$")
        self.assertRegex(text, rf"(?m)^engine +{status['engine']}$")

    def test_features_are_the_schema_s(self):
        with open(os.path.join(harness.SOURCE, "proto", "protocol.hmm")) as file:
            block = re.search(r"flags feature .*?\{(.*?)\}", file.read(), re.S).group(1)
        features = self.hmmctl_json("features")["features"]
        self.assertEqual([feature["name"] for feature in features], re.findall(r"(\w+) = 0x", block))
        here = {feature["name"] for feature in features if feature["here"]}
        self.assertEqual(here, set(self.hmmctl_json("status")["features"]))
        for feature in features:
            self.assertNotEqual(feature["here"], bool(feature["why"]), feature)
        self.assertIn("WHY NOT", self.hmmctl("features").stdout)

    def test_doctor_has_a_fix_for_each(self):
        done = self.hmmctl("doctor", "-j", status=None)
        findings = json.loads(done.stdout)["findings"]
        for finding in findings:
            self.assertIn(finding["severity"], ("note", "warning", "error"))
            self.assertTrue(finding["text"] and finding["fix"], finding)
        errors = any(finding["severity"] == "error" for finding in findings)
        self.assertEqual(done.returncode, FAILED if errors else OK)
        self.assertEqual(self.hmmctl("doctor", status=None).stdout.count("  fix: "), len(findings))

    def test_clients_show_hmmctl_itself(self):
        clients = self.hmmctl_json("clients")["clients"]
        self.assertEqual([client["role"] for client in clients], ["tool"])
        self.assertEqual(clients[0]["name"], "hmmctl")
        self.assertEqual(clients[0]["uid"], os.getuid())

    def test_pools_and_stats(self):
        self.assertIn("pools", self.hmmctl_json("pools"))
        owners = self.hmmctl_json("stats")["owners"]
        self.assertEqual(len(owners), 1)
        self.assertIn("pages_to_device", owners[0]["stats"])

    def test_nobody_is_mirrored(self):
        self.assertEqual(self.hmmctl_json("mirrors"), {"owners": [], "mirrors": []})
        self.assertEqual(self.hmmctl("map").stdout, "no process is mirrored\n")
        self.assertEqual(self.hmmctl_json("map"), {"owners": []})
        self.assertEqual(self.hmmctl("advice").stdout, "nothing was said\n")
        self.assertEqual(self.hmmctl_json("advice"), {"ranges": []})
        self.assertEqual(self.hmmctl("drain").stdout, "0 pages came home\n")
        self.hmmctl("migrate", "--to", "device", status=NOTHING)

    def test_a_selection_that_fits_nothing(self):
        for words in (["mirrors"], ["map"], ["advice"], ["stats"], ["drain"], ["migrate", "--to", "device"]):
            for selector in (["--pid", "1"], ["--owner", "60000"], ["--device", "none"], ["--mirror", "15000000"]):
                done = self.hmmctl(*words, *selector, status=NOTHING)
                self.assertIn("hmmctl mirrors", done.stderr)
        self.hmmctl("clients", "--pid", "1", status=NOTHING)


class WithoutMove(harness.Test):
    daemon_args = ["--pool", "memfd", "--no-move"]

    def test_features_say_why_not(self):
        self.start_daemon()
        move = next(feature for feature in self.hmmctl_json("features")["features"] if feature["name"] == "move")
        self.assertFalse(move["here"])
        self.assertNotEqual(move["why"], "")
        self.assertEqual(self.hmmctl_json("status")["engine"], "base")


class Moving(harness.Test):
    SIZE = 32 * MIB

    def setUp(self):
        super().setUp()
        self.start_daemon()
        if "move" not in self.hmmctl_json("status")["features"]:
            self.skipTest("a program that declares nothing migrates by UFFDIO_MOVE only, which this kernel lacks")
        self.run_process = self.spawn("hmmctl", "run", "--device-memory", "256M", "--",
                                      "/usr/bin/python3", "-c", PROGRAM, self.SIZE)
        self.address = int(self.run_process.expect(r"^memory ([0-9a-f]+)$").group(1), 16)
        self.owner = self.hmmctl_json("mirrors")["owners"][0]
        self.mirror = self.hmmctl_json("mirrors")["mirrors"][0]
        self.assertEqual(self.mirror["flags"], [])
        self.range = f"{self.address:x}+{self.SIZE // MIB}M"

    def device_pages(self):
        """By the exact runs of `map -j`."""
        ranges = self.hmmctl_json("map", "--owner", self.owner["id"], self.range)["owners"][0]["ranges"]
        return sum(run["pages"] for part in ranges for run in part["runs"] if run["state"] == "device")

    def check(self):
        self.run_process.send("check")
        self.run_process.expect("^same$")

    def test_out_and_home(self):
        pages = self.SIZE // PAGE
        self.assertEqual(self.device_pages(), 0)
        report = self.hmmctl_json("migrate", "--to", "device", "--pid", self.owner["pid"], self.range)["mirrors"]
        self.assertEqual(len(report), 1)
        self.assertEqual((report[0]["pages"], report[0]["moved"], report[0]["left"]), (pages, pages, {}))
        self.assertEqual(self.device_pages(), pages)

        line = self.hmmctl("map", "--pid", self.owner["pid"], self.range).stdout.splitlines()[1]
        self.assertRegex(line, rf"^  0*{self.address:x}-.* \[D+\] device 32\.0 MiB$")

        again = self.hmmctl_json("migrate", "--to", "device", "--mirror", self.mirror["id"], self.range)["mirrors"][0]
        self.assertEqual((again["moved"], again["already"]), (0, pages))

        home = self.hmmctl_json("migrate", "--to", "system", "--device", self.mirror["device_name"], self.range)
        self.assertEqual(home["mirrors"][0]["moved"], pages)
        self.assertEqual(self.device_pages(), 0)
        self.check()

    def test_a_touch_brings_it_home(self):
        self.hmmctl("migrate", "--to", "device", self.range)
        self.check()
        self.assertEqual(self.device_pages(), 0)
        stats = self.hmmctl_json("stats", "--owner", self.owner["id"])["owners"][0]
        self.assertEqual(stats["pid"], self.owner["pid"])
        self.assertGreater(stats["stats"]["faults"], 0)

    def test_mprotect_is_followed(self):
        """Of a program that knows nothing of it: what it may not write, and no device reads, is at home when the call returns."""
        self.hmmctl("migrate", "--to", "device", self.range)
        self.assertEqual(self.device_pages(), self.SIZE // PAGE)
        self.run_process.send("readonly")
        self.run_process.expect("^mprotect 0$")
        self.assertEqual(self.hmmctl_json("mirrors", "--owner", self.owner["id"])["mirrors"][0]["device_bytes"], 0)
        self.check()

    def test_watch(self):
        watch = self.spawn("hmmctl", "watch", "--pid", self.owner["pid"])
        objects = self.spawn("hmmctl", "-j", "watch", "--owner", self.owner["id"])
        # A tool has a socket and a pidfd; and two descriptors for each ring.
        harness.wait_until(lambda: sum(client["fds"] == 4 for client in self.hmmctl_json("clients")["clients"]
                                       if client["role"] == "tool") == 2, 10, "both to listen")
        self.hmmctl("migrate", "--to", "device", self.range)
        first = rf"{self.address:#x}-{self.address + 2 * MIB:#x} "
        watch.expect(rf"^\d+\.\d{{6}}  {self.owner['pid']} +migrate_out  {first} +512 pages  mirror "
                     rf"{self.mirror['id']}  migrate$")
        self.check()
        watch.expect(r" (cpu_fault) .* cpu_fault$")
        watch.expect(r" (migrate_home) .* (cpu_fault|migrate)$")
        self.run_process.close_input()
        self.run_process.finish()
        watch.finish()
        objects.finish()
        seen = [json.loads(line) for line in objects.output.splitlines()]
        out = [event for event in seen if event["kind"] == "migrate_out"]
        self.assertEqual({event["pid"] for event in seen}, {self.owner["pid"]})
        self.assertEqual(sum(event["pages"] for event in out), self.SIZE // PAGE)
        self.assertEqual({(event["reason"], event["error"], event["mirror"]) for event in out},
                         {("migrate", 0, self.mirror["id"])})
        self.assertEqual([event["time"] for event in seen], sorted(event["time"] for event in seen))

    def test_watch_ends_with_hmmd(self):
        watch = self.spawn("hmmctl", "watch")
        harness.wait_until(lambda: any(client["fds"] == 4 for client in self.hmmctl_json("clients")["clients"]
                                       if client["role"] == "tool"), 10, "it to listen")
        self.daemon.kill9()
        watch.finish(status=NO_DAEMON)
        self.assertNotEqual(watch.errors, "")

    def test_drain(self):
        self.hmmctl("migrate", "--to", "device", self.range)
        self.assertGreaterEqual(self.hmmctl_json("drain", "--pid", self.owner["pid"])["pages"], self.SIZE // PAGE)
        self.assertEqual(self.device_pages(), 0)
        self.assertEqual(self.hmmctl_json("drain")["pages"], 0)
        self.check()

    def test_everything_of_a_program_moves_and_it_goes_on(self):
        self.hmmctl("migrate", "--to", "device", "--pid", self.owner["pid"], status=None)
        self.check()

    def test_what_stays_is_told(self):
        self.run_process.send("readonly")
        self.run_process.expect("^mprotect 0$")
        done = self.hmmctl("migrate", "--to", "device", self.range, status=PARTIAL)
        self.assertIn(f"{self.SIZE // PAGE} readonly", done.stdout)
        self.check()

    def test_selectors_join(self):
        other = ["--pid", "1"]
        self.hmmctl("map", *other, "--owner", self.owner["id"], status=NOTHING)
        both = self.hmmctl_json("mirrors", *other, "--pid", self.owner["pid"])
        self.assertEqual([owner["id"] for owner in both["owners"]], [self.owner["id"]])
        self.hmmctl("map", "--owner", self.owner["id"], "1000-2000", status=NOTHING)

    def tearDown(self):
        if hasattr(self, "run_process") and self.run_process.running:
            self.run_process.finish()
        super().tearDown()


@unittest.skipUnless(os.getuid() == 0, "needs root, to become another user")
class Permission(harness.Test):
    def test_another_user_may_not_drain_all(self):
        self.start_daemon()
        os.chmod(self.folder, 0o755)
        os.chmod(self.daemon.socket, 0o666)
        done = self.run_client("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", harness.binary("hmmctl"),
                               "drain", status=None)
        self.assertEqual(done.returncode, NOT_PERMITTED, done.stderr)


if __name__ == "__main__":
    harness.main()
