#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Adds up what tests/attend.py wrote: tally.py --skips FILE --expect LIST --results DIR [--expect ... --results ...] [--report FILE]

LIST is the output of `ctest --show-only=json-v1`: a test in it without a result did not run, which is a failure.
Prints every failure with the end of its output, every skip with its reason, the failures again with a line
each, and one last line "N passed, N failed, N skipped". A skip that no line of FILE allows fails the run, but is counted as a skip.
The report is a list of outcomes as attend.py takes it, for a run within a run; there such a skip is a failure.
"""

import argparse
import json
import os
import re
import sys

SHOWN_LINES = 60
LINE_LENGTH = 300


def allowed_skips(path):
    patterns = []
    with open(path) as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if line and not line.startswith("#"):
                try:
                    patterns.append(re.compile(line))
                except re.error as error:
                    sys.exit(f"{path}:{number}: {error}")
    return patterns


def tail(path):
    try:
        with open(path, errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ["(no output)"]
    kept = lines[-SHOWN_LINES:]
    if len(lines) > len(kept):
        kept.insert(0, f"... ({len(lines) - len(kept)} lines before, in {path})")
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skips", required=True)
    parser.add_argument("--expect", action="append", required=True)
    parser.add_argument("--results", action="append", required=True)
    parser.add_argument("--report")
    options = parser.parse_args()

    allowed = allowed_skips(options.skips)
    count = {"passed": 0, "failed": 0, "skipped": 0}
    skips, refused, failures, told = [], [], [], []
    for expect, results in zip(options.expect, options.results):
        build = os.path.basename(os.path.dirname(os.path.abspath(results)))
        try:
            with open(expect) as file:
                names = [test["name"] for test in json.load(file)["tests"]]
        except (OSError, ValueError, KeyError):
            names = []
            count["failed"] += 1
            failures.append((f"{build}: the list of tests", "cannot be read: did the build fail?", None))
            told.append({"name": "the list of tests", "status": "failed", "message": "cannot be read"})
        for name in names:
            log = os.path.join(results, name + ".log")
            try:
                with open(os.path.join(results, name + ".json")) as file:
                    outcomes = json.load(file)["tests"]
            except (OSError, ValueError):
                outcomes = [{"name": name, "status": "failed", "message": "did not run to its end"}]
            for outcome in outcomes:
                count[outcome["status"]] += 1
                title = name if outcome["name"] == name else f"{name}: {outcome['name']}"
                if outcome["status"] == "failed":
                    failures.append((f"{build}: {title}", outcome["message"], log))
                elif outcome["status"] == "skipped":
                    line = f"{title}: {outcome['message']}"
                    known = any(pattern.search(line) for pattern in allowed)
                    (skips if known else refused).append(f"{build}: {line}")
                    if not known:
                        outcome = dict(outcome, status="failed", message=f"skipped, which is not allowed: {outcome['message']}")
                told.append(dict(outcome, name=title))

    shown = set()
    for title, message, log in failures:
        print(f"FAILED {title}: {message}")
        if log and log not in shown:
            shown.add(log)
            for line in tail(log):
                print(f"    {line}")
    for line in skips:
        print(f"SKIPPED {line}")
    for line in refused:
        print(f"SKIPPED, and {options.skips} does not allow it: {line}")
    for title, message, _ in failures:
        print(f"FAILED {title}: {' '.join(message.split())[:LINE_LENGTH]}")
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    if options.report:
        with open(options.report, "w") as file:
            json.dump(told, file)
    return 1 if failures or refused or not count["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
