# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in the guest: each test of /run/guest/plan, one after another, as ctest would; tells the console of each.

The plan is a list of {name, command, environment, directory}. The results are what tests/attend.py writes. `ended` is
written last: without it the guest did not get to its end.
"""

import json
import os
import subprocess
import sys
import time

ROOM = "/run/guest"


def main():
    with open(f"{ROOM}/plan") as file:
        plan = json.load(file)
    for number, test in enumerate(plan, 1):
        with open(f"{ROOM}/current", "w") as file:
            file.write(test["name"])
        started = time.monotonic()
        environment = dict(os.environ, **test["environment"])
        try:
            status = subprocess.run(test["command"], cwd=test["directory"], env=environment, stdin=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
        except OSError as error:
            status = error
        outcome = {0: "passed", 77: "skipped"}.get(status, f"FAILED ({status})")
        print(f"guest: {number}/{len(plan)} {test['name']} {outcome} {time.monotonic() - started:.1f} s", flush=True)
    with open(f"{ROOM}/ended", "w") as file:
        file.write(f"{len(plan)}\n")


if __name__ == "__main__":
    sys.exit(main())
