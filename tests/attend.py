#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Attends one test: runs it, ends it at its deadline, leaves no process of it behind, writes what came of it.

Started by ctest for every test. The test gets a temporary folder of its own (TMPDIR) and no standard input;
its output goes to RESULTS/NAME.log, its outcome to RESULTS/NAME.json, a list of {name, status, message} with
status passed, failed or skipped. A Criterion program and an integration script report each of their tests,
anything else is one test. A test whose processes outlive it has failed: the next test would meet them.
"""

import argparse
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SKIPPED = 77
SHOWN_BYTES = 256 * 1024

libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent():
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def read(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def descendants(pid):
    """Processes below pid, orphans of the test included: they were re-parented to this process."""
    found = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for task in tasks:
        for child in read(f"/proc/{pid}/task/{task}/children").split():
            found.append(int(child))
            found.extend(descendants(int(child)))
    return found


def is_zombie(pid):
    stat = read(f"/proc/{pid}/stat")
    return not stat or stat.rpartition(")")[2].split()[0] == "Z"


def command_of(pid):
    return read(f"/proc/{pid}/cmdline").replace("\0", " ").strip() or read(f"/proc/{pid}/comm").strip()


def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def end_all(patience):
    """Kills whatever is left after patience seconds; returns what it had to kill."""
    deadline = time.monotonic() + patience
    while True:
        reap()
        alive = [pid for pid in descendants(os.getpid()) if not is_zombie(pid)]
        if not alive or time.monotonic() >= deadline:
            break
        time.sleep(0.02)
    left = [f"{pid} ({command_of(pid)})" for pid in alive]
    deadline = time.monotonic() + 20
    while alive and time.monotonic() < deadline:
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
        reap()
        alive = [pid for pid in descendants(os.getpid()) if not is_zombie(pid)]
    return left


def end(process):
    """Asks first: tests/fixture/settings then puts back what it changed."""
    process.terminate()
    try:
        return process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def describe(pid, log):
    """What a process that hangs is doing: its threads, and their stacks when gdb is there."""
    log.write(f"--- {pid}: {command_of(pid)}\n")
    try:
        tasks = sorted(os.listdir(f"/proc/{pid}/task"), key=int)
    except OSError:
        return
    for task in tasks[:64]:
        root = f"/proc/{pid}/task/{task}"
        state = re.search(r"^State:\s*(.*)$", read(f"{root}/status"), re.M)
        log.write(f"    thread {task} {read(root + '/comm').strip()}: {state.group(1) if state else '?'}, "
                  f"in {read(root + '/wchan').strip() or '?'}, system call {read(root + '/syscall').strip()}\n")
    log.flush()
    if shutil.which("gdb"):
        try:
            subprocess.run(["gdb", "-nx", "-batch", "-p", str(pid), "-ex", "thread apply all bt 12"],
                           stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.DEVNULL, timeout=30)
        except subprocess.TimeoutExpired:
            log.write("    (gdb got no answer)\n")


def criterion_outcomes(report, log_text):
    """Criterion's JSON, corrected: a crash in a suite's .fini (a leak, see leakcheck.c) it calls a mere warning."""
    leaked = set(re.findall(r"Warning! The test `([^`]+)` crashed during its setup or teardown", log_text))
    outcomes = []
    for suite in report["test_suites"]:
        for test in suite["tests"]:
            name = f"{suite['name']}::{test['name']}"
            status = {"PASSED": "passed", "SKIPPED": "skipped"}.get(test["status"], "failed")
            message = "; ".join(test.get("messages", []))
            if name in leaked and status != "failed":
                status, message = "failed", "left something behind (leakcheck)"
            outcomes.append({"name": name, "status": status, "message": message})
    return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--deadline", type=float, required=True, help="seconds")
    parser.add_argument("--criterion", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command

    os.makedirs(options.results, exist_ok=True)
    outcome_path = os.path.join(options.results, options.name + ".json")
    log_path = os.path.join(options.results, options.name + ".log")
    report_path = os.path.join(options.results, options.name + ".report")
    for path in (outcome_path, report_path):
        if os.path.exists(path):
            os.unlink(path)
    if options.criterion:
        command += ["--jobs=1", "--verbose", "--color=never", f"--json={report_path}"]

    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = tempfile.mkdtemp(prefix="hmm-test-")
    # Some tests start programs as other users, in folders of their own below.
    os.chmod(folder, 0o711)
    environment = dict(os.environ, TMPDIR=folder, HMM_TEST_REPORT=report_path)
    trouble = []
    started = time.monotonic()
    try:
        with open(log_path, "w", errors="replace") as log:
            try:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                           preexec_fn=die_with_parent, start_new_session=True)
            except OSError as error:
                log.write(f"{command[0]}: {error}\n")
                trouble.append(f"cannot be started: {error}")
                status = 1
            else:
                try:
                    status = process.wait(options.deadline)
                except subprocess.TimeoutExpired:
                    log.seek(0, os.SEEK_END)
                    log.write(f"\n=== no end after {options.deadline:.0f} s; what each process is doing:\n")
                    for pid in descendants(os.getpid())[:12]:
                        if not is_zombie(pid):
                            describe(pid, log)
                    trouble.append(f"no end after {options.deadline:.0f} s")
                    status = end(process)
    finally:
        left = end_all(0 if trouble else 2 * float(os.environ.get("HMM_TEST_SCALE") or 1))
        shutil.rmtree(folder, ignore_errors=True)
    if left and not trouble:
        trouble.append("left processes running: " + ", ".join(left))

    log_text = read(log_path)
    outcomes = []
    report = read(report_path)
    if report:
        try:
            outcomes = criterion_outcomes(json.loads(report), log_text) if options.criterion else json.loads(report)
        except (ValueError, KeyError) as error:
            trouble.append(f"its report cannot be read: {error}")
    if not outcomes and not trouble:
        lines = log_text.strip().splitlines()
        message = lines[-1] if lines else ""
        if options.criterion:
            trouble.append(f"no test reported, exit status {status}")
        elif status == SKIPPED:
            outcomes.append({"name": options.name, "status": "skipped", "message": message})
        elif status == 0:
            outcomes.append({"name": options.name, "status": "passed", "message": ""})
    failed = any(outcome["status"] == "failed" for outcome in outcomes)
    if status not in (0, SKIPPED) and not failed and not trouble:
        trouble.append(f"ended by signal {-status}" if status < 0 else f"exit status {status}")
    if trouble:
        outcomes.append({"name": options.name, "status": "failed", "message": "; ".join(trouble)})
        failed = True
    with open(outcome_path, "w") as file:
        json.dump({"seconds": round(time.monotonic() - started, 2), "tests": outcomes}, file, indent=1)

    if len(log_text) > SHOWN_BYTES:
        half = SHOWN_BYTES // 2
        log_text = log_text[:half] + f"\n... (all of it is in {log_path})\n" + log_text[-half:]
    sys.stdout.write(log_text)
    for outcome in outcomes:
        if outcome["status"] != "passed":
            print(f"{outcome['status']}: {outcome['name']}: {outcome['message']}")
    if failed:
        return 1
    return SKIPPED if all(outcome["status"] == "skipped" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
