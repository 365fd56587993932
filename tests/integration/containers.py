# SPDX-License-Identifier: GPL-2.0-or-later
"""
Owners in containers: namespaces of their own, and what the default seccomp profiles of container engines forbid (contained.py). What can't work
is refused with words that say what stands in the way and what to do, by the library, in hmmd's log and by `hmmctl doctor`.
"""

import os
import stat
import sys
import unittest

import harness

CONTAINED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "contained.py")
PAGES = 512
SOCKET = "/run/hmmd/hmmd.sock"


@unittest.skipIf(harness.SANITIZE, "LeakSanitizer would trace what may not be traced there")
class Containers(harness.Test):
    daemon_args = ["--pool", "memfd"]

    def contained(self, name, engine, *command, settings=()):
        return self.spawn_command(name, [sys.executable, CONTAINED, engine, *settings, f"folder={self.folder}",
                                         "env", f"HMM_SOCKET={SOCKET}", *command])

    def run_contained(self, engine, *command, settings=(), status=0):
        process = self.contained("contained", engine, *command, settings=settings)
        process.close_input()
        got = process.wait(60)
        self.assertEqual(got, status, process.output + process.errors)
        return process.output + process.errors

    def contained_daemon(self, engine, *settings):
        """hmmd in a container of its own; its socket is in the same folder as ever."""
        hmmd = self.contained("hmmd", engine, harness.binary("hmmd"), "--no-config", "--socket", SOCKET, "--pool", "memfd", settings=settings)
        path = os.path.join(self.folder, "hmmd.sock")
        harness.wait_until(lambda: "serves" in hmmd.errors or not hmmd.running, 20, "that hmmd serves")
        self.assertTrue(hmmd.running, hmmd.errors)
        self.assertTrue(stat.S_ISSOCK(os.stat(path).st_mode))
        return hmmd

    # ---- hmmd outside, the owner inside

    def live(self, engine, *settings):
        """All that a program does with hmmd, a kill -9 of hmmd in the middle of it."""
        self.start_daemon()
        owner = self.contained("owner", engine, harness.binary("mirror-owner"), str(PAGES), settings=settings)
        owner.expect("^ready ")
        owner.ask("listen", "^listening$")
        owner.ask("out", f"^out {PAGES}$")
        owner.ask("device", "^checked$")
        owner.ask("check", "^checked$")
        owner.ask("out", f"^out {PAGES}$")
        self.daemon.restart()
        owner.ask("check", "^checked$")
        owner.ask("change", "^changed$")
        owner.ask("out", f"^out {PAGES}$")
        owner.ask("fork", "^forked$")
        owner.ask("range", f"^range {PAGES}$")
        owner.ask("prefetch", "^prefetching$")
        owner.ask("prefetched", "^prefetched ")
        owner.ask("home", f"^home {PAGES}$")
        owner.ask("check", "^checked$")
        owner.ask("close", "^closed$")
        owner.finish()
        # A driver in the same container: a key, a window.
        self.run_contained(engine, harness.binary("mirror-secrets"), "left-out", settings=settings)

    def test_docker(self):
        self.live("moby")

    def test_docker_as_a_user_of_its_own(self):
        self.live("moby", "user")

    def test_podman(self):
        self.live("containers", "user")

    def test_doctor_inside(self):
        """Nothing keeps programs there from being mirrored, and doctor says no such thing."""
        self.start_daemon()
        said = self.run_contained("moby", harness.binary("hmmctl"), "doctor")
        self.assertIn("pidfd_getfd", said)
        self.assertNotIn("error: ", said)

    # ---- both inside

    def both(self, commands, *settings):
        """hmmd and then some commands, in one container."""
        script = f"""{harness.binary("hmmd")} --no-config --socket {SOCKET} --pool memfd & until test -S {SOCKET}; do sleep 0.05; done
                     {commands}; kill %1; wait"""
        return self.run_contained("moby", "bash", "-c", script, settings=settings)

    def test_both_inside_without_the_device(self):
        """Nothing can be mirrored there. hmmd starts, and everybody is told why."""
        said = self.both(f'{harness.binary("hmmctl")} doctor; {harness.binary("mirror-owner")} {PAGES}', "ptrace")
        self.assertRegex(said, r"error: userfaultfd: /dev/userfaultfd does not exist here")
        self.assertIn("docker run --device /dev/userfaultfd", said)
        self.assertRegex(said, r"note: seccomp: the seccomp filter that hmmd is under forbids mbind\(\)")
        self.assertRegex(said, r"note: pid namespace: hmmd is in a pid namespace of its own")
        self.assertRegex(said, r"error: userfaultfd: programs here can't be mirrored: a seccomp filter")
        self.assertRegex(said, r"last error: .*no userfaultfd: Operation not permitted by a seccomp filter")

    def test_both_inside_without_the_capability(self):
        """A root with fewer capabilities than its programs may not look at them."""
        said = self.both(f'{harness.binary("hmmctl")} doctor; {harness.binary("mirror-owner")} {PAGES}', "device")
        self.assertRegex(said, r"error: refused: hmmd may not ask of the threads of pid \d+ \(get_robust_list: Operation not permitted\)")
        self.assertRegex(said, r"fix: run hmmd with CAP_SYS_PTRACE \(docker run --cap-add SYS_PTRACE\)")
        self.assertRegex(said, r"warning: .* is refused: hmmd may not ask")
        self.assertRegex(said, r"last error: hmmd may not ask of the threads")

    def test_both_inside(self):
        if not os.path.exists("/dev/userfaultfd"):
            self.skipTest("there is no /dev/userfaultfd")
        said = self.both(f"""(echo out; echo device; echo check; echo out; echo fork; echo home) | {harness.binary("mirror-owner")} {PAGES} &&
                             {harness.binary("mirror-secrets")} left-out && echo well""", "device", "ptrace")
        self.assertIn(f"home {PAGES}\n", said)
        self.assertIn("well\n", said)

    # ---- each in one that the other is not in

    def test_unseen(self):
        """hmmd in a container sees nobody outside of it, nor in another one: refused, and no memory moves."""
        hmmd = self.contained_daemon("none")
        refusal = r"hmmd can't see this process: it, or hmmd, is in a container with a pid namespace of its own"
        for where, said in (("outside", self.run_client("mirror-owner", PAGES, status=1)),
                            ("in another", self.run_contained("none", harness.binary("mirror-owner"), str(PAGES), status=1))):
            with self.subTest(where=where):
                said = said if isinstance(said, str) else said.stdout + said.stderr
                self.assertRegex(said, refusal)
                self.assertIn("--pid=host", said)
        self.assertRegex(hmmd.errors, rf"is refused: {refusal}")
        doctor = self.hmmctl("doctor", status=1).stdout
        self.assertRegex(doctor, rf"error: refused: {refusal}")
        self.assertRegex(doctor, r"fix: .*docker run --pid=host")
        hmmd.kill9()

    def test_unseen_threads(self):
        """hmmd may not ask where an owner's threads keep what the kernel writes when they end."""
        if os.geteuid():
            self.skipTest("only root can be another user")
        os.chmod(self.folder, 0o777)
        self.daemon = harness.Daemon(self, "--pool", "memfd", "--user")
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
        self.without_capabilities = lambda: command
        self.daemon.start()
        said = self.run_client("mirror-owner", PAGES, status=1)
        self.assertRegex(said.stderr, r"hmmd (can't read /proc/\d+/task|may not ask of the threads of pid \d+)")
        self.assertIn("CAP_SYS_PTRACE", said.stderr)
        self.assertRegex(self.daemon.log, r"is refused: hmmd (can't read|may not ask)")


class NoIoUring(harness.Test):
    """io_uring is forbidden to hmmd and its clients: the engine runs on epoll, and doctor says so."""
    daemon_args = ["--pool", "memfd"]

    def test_forbidden(self):
        deny = [sys.executable, os.path.join(os.path.dirname(CONTAINED), "denied.py"), "io_uring_setup,io_uring_enter,io_uring_register"]
        self.without_capabilities = lambda: deny
        self.start_daemon()
        features = {feature["name"]: feature for feature in self.hmmctl_json("features")["features"]}
        self.assertFalse(features["io_uring"]["here"], features["io_uring"])
        said = self.hmmctl("doctor", status=None).stdout
        self.assertRegex(said, r"note: io_uring: .*the engine runs on epoll")
        self.assertRegex(said, r"fix: allow io_uring in hmmd's seccomp filter or container")
        owner = self.spawn_command("owner", [*deny, harness.binary("mirror-owner"), str(PAGES)])
        owner.expect("^ready ")
        for _ in range(3):
            owner.ask("out", f"^out {PAGES}$")
            owner.ask("device", "^checked$")
            owner.ask("check", "^checked$")
        owner.ask("out", f"^out {PAGES}$")
        self.daemon.restart()
        owner.ask("check", "^checked$")
        owner.finish()


if __name__ == "__main__":
    harness.main()
