# SPDX-License-Identifier: GPL-2.0-or-later
"""Real processes for integration tests: a private hmmd, its clients, and the promise that nothing is left behind.

    import harness

    class Residency(harness.Test):
        daemon_args = ["--pool", "memfd", "--pool-size", "256M"]     # beside the socket

        def test_home_after_write(self):
            self.start_daemon()
            owner = self.spawn("owner", "--pages", 512)               # tests/integration/owner of the build
            owner.expect("migrated 512")
            owner.send("touch")
            owner.finish()                                            # asserts exit status 0
            self.assertIn("512", self.hmmctl("stats").stdout)

    if __name__ == "__main__":
        harness.main()

Each test has its own folder and socket, and every process that it starts is its child, dies with it, and
has its output in a file of that folder; the files are printed when the test fails. At the end of a test
the clients are ended, hmmd must have come back to the descriptors it had when it began to serve (what it
may keep is in `daemon_keeps`), and SIGTERM must make it leave with status 0. All deadlines are multiplied
by HMM_TEST_SCALE; they only end what hangs. HMM_TEST_SEED chooses the seed that self.random starts from.
"""

import contextlib
import ctypes
import fcntl
import glob
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import unittest

SCALE = float(os.environ.get("HMM_TEST_SCALE") or 1)
SANITIZE = os.environ.get("HMM_TEST_SANITIZE", "")
SOURCE = os.environ.get("HMM_TEST_SOURCE") or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BINARY = os.environ.get("HMM_TEST_BINARY") or os.path.join(SOURCE, "build", "dev")
SHOWN_LINES = 60

PLACES = {
    "hmmd": "daemon/hmmd",
    "hmmd_broken": "daemon/hmmd_broken",
    "hmmctl": "hmmctl/hmmctl",
    "demo": "examples/demo",
    "loop": "examples/loop",
    "libhmmclient.so": "libclient/libhmmclient.so",
    "libhmmpreload.so": "libclient/libhmmpreload.so",
}

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PIDFD_THREAD = os.O_EXCL
_SYS_PIDFD_GETFD = 438


def binary(name):
    """A program of the build: a known one, one of tests/integration (its target may be called test-NAME), or a path."""
    name = str(name)
    if "/" in name:
        return name
    for place in (PLACES.get(name), f"tests/integration/{name}", f"tests/integration/test-{name}", f"tests/coherence/{name}"):
        if place and os.path.exists(os.path.join(BINARY, place)):
            return os.path.join(BINARY, place)
    found = shutil.which(name)
    if not found:
        raise FileNotFoundError(f"{name} is neither in {BINARY} nor in PATH")
    return found


def scaled(seconds):
    return seconds * SCALE


def wait_until(condition, seconds=10, what="the condition"):
    """Polls until condition() is true and returns its value; fails after the (scaled) deadline."""
    deadline = time.monotonic() + scaled(seconds)
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what} did not come true in {scaled(seconds):.0f} s")
        time.sleep(0.01)


def _states(pid):
    """The state of each thread of a process: R, S, D, T, ..."""
    for status in glob.glob(f"/proc/{pid}/task/*/stat"):
        with contextlib.suppress(OSError), open(status) as file:
            yield file.read().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def stopped(pid):
    """
    A process that is really stopped. SIGSTOP wakes one thread, and the others run until that one has come out of the kernel,
    which it does not while its system call waits for a page.
    """
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: set(_states(pid)) == {"T"}, 20, f"that every thread of {pid} is stopped")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def sever(pid, path):
    """Ends the connections that a process's library has with the hmmd at @path, as hmmd would. False: the kernel can't name a thread."""
    for comm in glob.glob(f"/proc/{pid}/task/*/comm"):
        with open(comm) as file:
            if file.read() != "hmm-connection\n":
                continue
        thread = os.path.dirname(comm)
        try:
            pidfd = os.pidfd_open(int(os.path.basename(thread)), _PIDFD_THREAD)
        except OSError:
            return False
        for link in glob.glob(f"{thread}/fd/*"):
            if not os.readlink(link).startswith("socket:"):
                continue
            with socket.socket(fileno=_libc.syscall(_SYS_PIDFD_GETFD, pidfd, int(os.path.basename(link)), 0)) as copy:
                if copy.getpeername() == path:
                    copy.shutdown(socket.SHUT_RDWR)
        os.close(pidfd)
    return True


class Process:
    """A child with standard input as a pipe and its output in files."""

    def __init__(self, folder, name, command, environment=None, pass_fds=(), cwd=None, stdout=None, stdin=subprocess.PIPE):
        self.name = name
        self.command = [str(word) for word in command]
        self.output_path = os.path.join(folder, f"{name}.out")
        self.error_path = os.path.join(folder, f"{name}.err")
        parent = os.getpid()

        def in_child():
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(127)

        # Before it starts: it may have printed by the time that it is looked at.
        self._read = os.path.getsize(self.output_path) if os.path.exists(self.output_path) and stdout is None else 0
        with contextlib.ExitStack() as stack:
            output = stdout if stdout is not None else stack.enter_context(open(self.output_path, "ab"))
            error = stack.enter_context(open(self.error_path, "ab"))
            self._child = subprocess.Popen(self.command, stdin=stdin, stdout=output, stderr=error, env=environment,
                                           pass_fds=pass_fds, cwd=cwd, preexec_fn=in_child, start_new_session=True)
        self.pid = self._child.pid

    @property
    def running(self):
        return self._child.poll() is None

    @property
    def status(self):
        """Exit status, negative for a signal, None while it runs."""
        return self._child.poll()

    @property
    def output(self):
        with open(self.output_path, errors="replace") as file:
            return file.read()

    @property
    def errors(self):
        with open(self.error_path, errors="replace") as file:
            return file.read()

    def expect(self, pattern, seconds=30):
        """Waits for a whole line of output that matches; returns the match. Lines before it are passed over."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + scaled(seconds)
        while True:
            ended = not self.running
            with open(self.output_path, "rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read += len(line)
                    match = expression.search(line.decode(errors="replace").rstrip("\n"))
                    if match:
                        return match
            if ended:
                raise AssertionError(f"{self.name} ended (status {self.status}) before it printed '{pattern}'")
            if time.monotonic() >= deadline:
                raise AssertionError(f"{self.name} did not print '{pattern}' in {scaled(seconds):.0f} s")
            time.sleep(0.005)

    def send(self, line):
        self._child.stdin.write(f"{line}\n".encode())
        self._child.stdin.flush()

    def ask(self, line, answer="^done$", seconds=60):
        """One line to it, and the line that it answers with."""
        self.send(line)
        return self.expect(answer, seconds)

    def close_input(self):
        if self._child.stdin and not self._child.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()

    def signal(self, number):
        self._child.send_signal(number)

    def wait(self, seconds=60):
        try:
            return self._child.wait(scaled(seconds))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} (pid {self.pid}) did not end in {scaled(seconds):.0f} s\n"
                                 f"{self.errors[-2000:]}") from None

    def finish(self, seconds=60, status=0):
        """End of input, then its end, which must have the given exit status."""
        self.close_input()
        got = self.wait(seconds)
        if got != status:
            raise AssertionError(f"{self.name} ended with status {got}, not {status}")
        return self

    def kill9(self):
        """SIGKILL; returns when nothing of the process is left. A child that is ptraced or in an uninterruptible fault takes its time."""
        if self.running:
            self._child.kill()
        self.close_input()
        self._child.wait(scaled(30))

    def descriptors(self):
        """What its descriptors lead to, sorted; numbers in names such as socket:[123] are left out."""
        targets = []
        folder = f"/proc/{self.pid}/fd"
        for number in os.listdir(folder):
            with contextlib.suppress(OSError):
                targets.append(re.sub(r"\d+", "N", os.readlink(f"{folder}/{number}")))
        return sorted(targets)

    def memory(self, field="VmRSS"):
        """A field of /proc/PID/status, in KiB."""
        with open(f"/proc/{self.pid}/status") as file:
            match = re.search(rf"^{field}:\s*(\d+)", file.read(), re.M)
        return int(match.group(1)) if match else 0

    def mappings(self):
        with open(f"/proc/{self.pid}/maps") as file:
            return file.read()


class Daemon:
    """
    A private hmmd. restart() keeps socket and arguments, so that clients find the new one.

    With a mistake it is hmmd_broken, which makes that one of daemon/engine/breakage.h ("": none). What is changed of it, or of
    the environment, is so from the next start on.
    """

    def __init__(self, test, *args, environment=None, manager=None, mistake=None):
        self.test = test
        self.args = [str(arg) for arg in args]
        self.environment = environment or {}
        self.mistake = mistake
        # One of manager.py: it starts hmmd, and hears of it.
        self.manager = manager
        self.socket = os.path.join(test.folder, "hmmd.sock")
        self.process = None
        self.baseline = []
        self.memory_at_start = 0
        self.starts = 0

    def start(self, wait=True):
        assert not (self.process and self.process.running), "hmmd runs already"
        ready, told = os.pipe()
        self.starts += 1
        name = "hmmd" if self.starts == 1 else f"hmmd-{self.starts}"
        inherited = []
        environment = dict(self.environment)
        program = "hmmd"
        if self.mistake is not None:
            program = "hmmd_broken"
            environment["HMMD_BREAK"] = self.mistake
        if self.manager:
            low, told = told, fcntl.fcntl(told, fcntl.F_DUPFD_CLOEXEC, 400)
            os.close(low)
            environment.update(self.manager.environment())
        command = [*self.test.daemon_prefix, *self.test.without_capabilities(), binary(program), "--no-config", "--socket", self.socket, "--ready-fd", str(told), *self.args]
        if self.manager:
            command, inherited = self.manager.wrap(command)
        try:
            self.process = self.test.spawn_command(name, command, environment=environment, pass_fds=(told, *inherited),
                                                   stdin=subprocess.DEVNULL)
            os.close(told)
            told = -1
            if wait:
                self._wait_ready(ready)
                self.baseline = self.process.descriptors()
                self.memory_at_start = self.process.memory()
        finally:
            os.close(ready)
            if told >= 0:
                os.close(told)
            for fd in inherited:
                os.close(fd)
        return self

    def _wait_ready(self, ready):
        """To the end of the pipe, not only to its line: what hmmd holds then is what it holds while it serves."""
        deadline = time.monotonic() + scaled(20)
        os.set_blocking(ready, False)
        said = b""
        while True:
            try:
                piece = os.read(ready, 64)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise AssertionError(f"hmmd was not ready in {scaled(20):.0f} s") from None
                time.sleep(0.005)
                continue
            if not piece:
                break
            said += piece
        if said != b"READY=1\n":
            self.process.wait(5)
            raise AssertionError(f"hmmd ended (status {self.process.status}) before it was ready:\n{self.process.errors}")

    @property
    def pid(self):
        return self.process.pid

    @property
    def running(self):
        return self.process is not None and self.process.running

    @property
    def log(self):
        return self.process.errors + self.process.output

    def extra_descriptors(self):
        """What hmmd has open now and had not when it began to serve."""
        extra = self.process.descriptors()
        for target in self.baseline:
            if target in extra:
                extra.remove(target)
        return [target for target in extra
                if not any(re.search(pattern, target) for pattern in self.test.daemon_keeps)]

    def expect_no_extra_descriptors(self, seconds=10):
        try:
            wait_until(lambda: not self.extra_descriptors(), seconds)
        except AssertionError:
            raise AssertionError(f"hmmd keeps descriptors after its clients are gone: {self.extra_descriptors()}") from None

    def stop(self, seconds=60):
        """SIGTERM brings every page home; status 0, with the sanitizers' verdict in it."""
        self.process.signal(signal.SIGTERM)
        status = self.process.wait(seconds)
        if status != 0:
            raise AssertionError(f"hmmd ended with status {status} after SIGTERM")

    def hand_over(self, seconds=20):
        """SIGUSR2 leaves every page where it is, for the next one; status 0."""
        self.process.signal(signal.SIGUSR2)
        status = self.process.wait(seconds)
        if status != 0:
            raise AssertionError(f"hmmd ended with status {status} after SIGUSR2")

    def kill9(self):
        self.process.kill9()

    def restart(self):
        """kill -9, then a new one on the same socket."""
        if self.running:
            self.kill9()
        return self.start()


class Test(unittest.TestCase):
    daemon_args = ["--pool", "memfd"]
    # Descriptors that hmmd opens on first use and keeps.
    daemon_keeps = [r"/dev/userfaultfd"]
    # What to begin its command with, such as what puts it into a cgroup.
    daemon_prefix = []
    # Capabilities that hmmd is not to have, as setpriv spells them: "sys_ptrace".
    daemon_lacks = []

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.seed = int(os.environ.get("HMM_TEST_SEED") or random.SystemRandom().getrandbits(32))
        print(f"{cls.__name__}: HMM_TEST_SEED={cls.seed}", flush=True)

    def setUp(self):
        super().setUp()
        self.random = random.Random(self.seed)
        self.folder = tempfile.mkdtemp(prefix="t-")
        self.processes = []
        self.daemon = None
        self._names = {}
        self._failed = False

    def run(self, result=None):
        before = len(result.failures) + len(result.errors) if result is not None else 0
        outcome = super().run(result)
        folder = getattr(self, "folder", None)
        if folder and os.path.isdir(folder):
            if result is not None and len(result.failures) + len(result.errors) > before:
                self._print_logs()
            shutil.rmtree(folder, ignore_errors=True)
        return outcome

    def tearDown(self):
        trouble = []
        others = [process for process in self.processes if not self.daemon or process is not self.daemon.process]
        for process in others:
            with contextlib.suppress(Exception):
                process.kill9()
        if self.daemon and self.daemon.process:
            try:
                if self.daemon.running:
                    self.daemon.expect_no_extra_descriptors()
                    print(f"{self.id()}: hmmd VmRSS {self.daemon.memory_at_start} KiB at start, "
                          f"{self.daemon.process.memory()} KiB at end", flush=True)
                    self.daemon.stop()
                elif self.daemon.process.status not in (0, -signal.SIGKILL):
                    trouble.append(f"hmmd ended by itself, status {self.daemon.process.status}")
            except AssertionError as error:
                trouble.append(str(error))
            finally:
                with contextlib.suppress(Exception):
                    self.daemon.process.kill9()
        for process in self.processes:
            if re.search(r"ERROR: \w+Sanitizer|runtime error:", process.errors):
                trouble.append(f"a sanitizer spoke in {process.name}")
        super().tearDown()
        if trouble:
            self.fail("; ".join(trouble))

    def start_daemon(self, *args, **options):
        """Starts this test's hmmd, with daemon_args and args, and waits until it serves."""
        self.daemon = Daemon(self, *self.daemon_args, *args, **options)
        return self.daemon.start()

    def without_capabilities(self):
        """What to begin hmmd's command with."""
        return self._setpriv(",".join(f"-{name}" for name in self.daemon_lacks)) if self.daemon_lacks else []

    @staticmethod
    def _setpriv(drop):
        """An ordinary user's processes have none to begin with."""
        with open("/proc/self/status") as file:
            held = int(re.search(r"^CapEff:\s*([0-9a-f]+)", file.read(), re.M).group(1), 16)
        return [binary("setpriv"), f"--bounding-set={drop}", f"--inh-caps={drop}"] if held else []

    def environment(self, **extra):
        return dict(os.environ, HMM_SOCKET=os.path.join(self.folder, "hmmd.sock"), TMPDIR=self.folder,
                    **{name: str(value) for name, value in extra.items()})

    def spawn_command(self, name, command, environment=None, **options):
        count = self._names.get(name, 0) + 1
        self._names[name] = count
        unique = name if count == 1 else f"{name}-{count}"
        process = Process(self.folder, unique, command, environment=self.environment(**(environment or {})), **options)
        self.processes.append(process)
        return process

    def spawn(self, program, *args, environment=None, **options):
        """Starts a program of the build (or of the system) as a client of this test's hmmd."""
        path = binary(program)
        # An hmmd without CAP_SYS_PTRACE may not look at a program that has any capability which it has not.
        prefix = self._setpriv("-all") if "sys_ptrace" in self.daemon_lacks else []
        return self.spawn_command(os.path.basename(path), [*prefix, path, *args], environment=environment, **options)

    def run_client(self, program, *args, status=0, seconds=120, environment=None, input=None, cwd=None):
        """Runs it to its end; returns a CompletedProcess with text, after checking the status (None: any)."""
        stdin = subprocess.PIPE if input is not None else subprocess.DEVNULL
        process = self.spawn(program, *args, environment=environment, stdin=stdin, cwd=cwd)
        if input is not None:
            with contextlib.suppress(BrokenPipeError):
                process._child.stdin.write(input.encode())
        process.close_input()
        got = process.wait(seconds)
        if status is not None and got != status:
            self.fail(f"{' '.join(process.command)} ended with status {got}, not {status}:\n{process.output}{process.errors}")
        return subprocess.CompletedProcess(process.command, got, process.output, process.errors)

    def hmmctl(self, *args, status=0, **options):
        return self.run_client("hmmctl", *args, status=status, **options)

    def hmmctl_json(self, *args):
        return json.loads(self.hmmctl(*args, "-j").stdout)

    def _print_logs(self):
        for name in sorted(os.listdir(self.folder)):
            path = os.path.join(self.folder, name)
            if not name.endswith((".out", ".err")) or not os.path.isfile(path) or not os.path.getsize(path):
                continue
            with open(path, errors="replace") as file:
                lines = file.read().splitlines()
            print(f"--- {name}" + (f" (the last {SHOWN_LINES} of {len(lines)} lines)" if len(lines) > SHOWN_LINES else ""))
            for line in lines[-SHOWN_LINES:]:
                print(f"    {line}")
        sys.stdout.flush()


class _Result(unittest.TextTestResult):
    """Also remembers every outcome, for tests/attend.py."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.outcomes = {}

    def _note(self, test, status, message=""):
        name = test.id().removeprefix("__main__.")
        # The worst counts: a test may fail in its body and again in tearDown.
        if self.outcomes.get(name, ("",))[0] != "failed":
            self.outcomes[name] = (status, message)

    def addSuccess(self, test):
        super().addSuccess(test)
        self._note(test, "passed")

    def addError(self, test, err):
        super().addError(test, err)
        self._note(test, "failed", "".join(traceback.format_exception_only(err[0], err[1])).strip())

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._note(test, "failed", str(err[1]))

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._note(test, "failed", f"{subtest._subDescription()}: {err[1]}")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._note(test, "skipped", reason)

    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err)
        self._note(test, "passed")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self._note(test, "failed", "passed against expectation")


def main():
    """Runs the tests of the calling script: all, or those named on the command line."""
    os.environ.setdefault("ASAN_OPTIONS", "detect_stack_use_after_return=1")
    program = unittest.main(exit=False, testRunner=unittest.TextTestRunner(
        stream=sys.stdout, verbosity=2, resultclass=_Result))
    result = program.result
    report = os.environ.get("HMM_TEST_REPORT")
    if report:
        with open(report, "w") as file:
            json.dump([{"name": name, "status": status, "message": message}
                       for name, (status, message) in result.outcomes.items()], file)
    sys.exit(0 if result.wasSuccessful() else 1)
