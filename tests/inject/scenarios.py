# SPDX-License-Identifier: GPL-2.0-or-later
"""One scenario of client.c and its neighbours, under an hmmd that fails, by a library that fails, or both, and what has to hold
afterwards whatever was refused: the program's bytes are right, nothing hangs, hmmd lives, gives back every descriptor and
device page, and SIGTERM ends it in good order."""

import collections
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
import harness

harness.PLACES["hmmd"] = "tests/inject/hmmd_inject"
CLIENT = os.path.join(harness.BINARY, "tests", "inject", "inject-client")
FAILING = os.path.join(harness.BINARY, "tests", "inject", "inject-client-failing")

SCENARIOS = ["travel", "share", "touch", "ranges", "upheaval", "family", "access", "window", "several",
             "advice", "events", "exclusive", "evict", "devmem", "sync", "dirty", "farfork", "drain", "farewell",
             "placed", "base", "locked", "protected", "crowded"]
# What the client does in a scenario that differs from another by hmmd's arguments alone; CONFIGURATION is what is in the file.
SAME = {"placed": ("travel", "--pool", "memfd", "--pool-placement", "bind:0"),
        "base": ("base", "--config", "[engine]\nmove = no\nio_uring = no\n"),
        "protected": ("dirty", "--tracking", "uffd-wp"),
        "crowded": ("devmem", "--config", "[limits]\nmemory = 2M\nfds = 64\nrequests = 8\n")}
# How many runs there are beside each other, -j N. Most of one is waiting; where few are made, others' tests run beside.
BUSY = 4 * len(os.sched_getaffinity(0))
# So often it is said how far it is.
SECONDS = 30
# hmmd serves no one without these, and says so; the client then ends with this status.
REFUSED = 3


def options(arguments):
    """Of a command line: what -j says, the other options, scenarios, and plans (CALL:ERROR:N)."""
    arguments = list(arguments)
    jobs = BUSY if "--all" in arguments else 1
    if "-j" in arguments:
        at = arguments.index("-j")
        jobs = int(arguments[at + 1])
        del arguments[at:at + 2]
    words = [word for word in arguments if not word.startswith("--")]
    return (jobs, {word for word in arguments if word.startswith("--")}, [word for word in words if ":" not in word],
            [word for word in words if ":" in word])


# Whose plans the processes of run_plans() run: they are forked from it.
_whose = None


def _begin(parent):
    harness._libc.prctl(harness._PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(127)


def _run(job):
    return _whose.run_alone(*job)


class Test(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--workers", "1"]
    looks_at_charges = True
    counts = {}
    answers = collections.Counter()
    jobs = 1

    def run_alone(self, scenario, plan):
        """One plan, in a process that does nothing else, with a folder of its own. Returns counts, answers, and what failed."""
        counts, trouble = None, ""
        Test.answers.clear()
        self.setUp()
        try:
            counts = self.run_plan(scenario, plan)
        except Exception:
            trouble = traceback.format_exc()
        try:
            self.tearDown()
        except Exception:
            trouble += traceback.format_exc()
        shutil.rmtree(self.folder, ignore_errors=True)
        return counts, dict(Test.answers), trouble

    def run_plans(self, scenario, plans):
        """Runs each, Test.jobs of them beside each other; yields each that has not failed, and its counts, in the plans' order."""
        global _whose
        _whose, failed, told = self, 0, time.monotonic()
        with multiprocessing.get_context("fork").Pool(min(Test.jobs, len(plans) or 1), _begin, (os.getpid(),)) as pool:
            ended = pool.imap(_run, [(scenario, plan) for plan in plans])
            for done, (plan, (counts, answers, trouble)) in enumerate(zip(plans, ended), 1):
                Test.answers.update(answers)
                with self.subTest(scenario=scenario, plan=plan):
                    if trouble:
                        failed += 1
                        print(f"FAILED {scenario} {plan}\n{trouble}", flush=True)
                        self.fail(trouble)
                if not trouble:
                    yield plan, counts
                if time.monotonic() - told > SECONDS:
                    told = time.monotonic()
                    print(f"{scenario}: {done} of {len(plans)} runs, {failed} failed", flush=True)

    def arguments(self, scenario):
        does, *arguments = SAME.get(scenario, (scenario,))
        if "--config" in arguments:
            at = arguments.index("--config") + 1
            path = os.path.join(self.folder, "h.conf")
            with open(path, "w") as file:
                file.write(arguments[at])
            arguments[at] = path
        return does, arguments

    def begin(self, arguments, environment):
        """False: this hmmd does not begin to serve, and says why."""
        try:
            self.start_daemon(*arguments, environment=environment)
        except AssertionError:
            process = self.daemon.process
            if not environment or process.running or process.status <= 0 or not process.errors.strip():
                raise
            self.daemon = None
            return False
        return True

    def meanwhile(self, scenario, client):
        """What others do."""
        if scenario in ("drain", "farewell"):
            client.expect("out", 120)
            if scenario == "drain":
                self.run_client("hmmctl", "drain", status=None, seconds=60)
            else:
                self.daemon.stop()
            client.send("go")

    def told(self, what):
        """None: hmmctl is refused, too."""
        told = self.run_client("hmmctl", what, "-j", status=None)
        return json.loads(told.stdout)[what] if told.returncode == 0 else None

    def is_unused(self):
        pools, usage = self.told("pools"), self.told("usage") if self.looks_at_charges else []
        return (pools is not None and usage is not None and not [pool for pool in pools if pool["used"]] and
                not [one for one in usage if one["used"] and one["name"] not in ("connections", "fds", "requests")])

    def run_scenario(self, scenario, of_hmmd=None, of_library=None, outside=None):
        """
        One hmmd and one client, each with what its environment has beside; None: an hmmd like any other. @outside is called with the
        client again and again while it runs.
        """
        client, plan = None, of_hmmd or of_library or outside
        try:
            does, arguments = self.arguments(scenario)
            if not self.begin(arguments, of_hmmd):
                Test.answers["hmmd did not begin"] += 1
                return
            client = self.spawn(FAILING if of_library else CLIENT, does, environment=of_library)
            while outside and client.running:
                outside(client)
            self.meanwhile(scenario, client)
            status = client.wait(60)
            self.assertIn(status, (0, REFUSED) if plan else (0,))
            Test.answers["refused" if status else "done"] += 1
            if scenario != "farewell":
                self.assertTrue(self.daemon.running, "hmmd did not survive")
                self.daemon.expect_no_extra_descriptors()
                harness.wait_until(self.is_unused, 10, "that no device memory is in use, and nobody charged for any")
                self.daemon.stop()
        except Exception as error:
            # For whoever reads this, and for the next plan.
            processes = [process for process in (client, self.daemon and self.daemon.process) if process]
            said = "".join(process.output[-6000:] + process.errors[-6000:] for process in processes)
            for process in processes:
                if process.running:
                    process.kill9()
            raise AssertionError(f"{scenario}: {error}\n{said}") from None
