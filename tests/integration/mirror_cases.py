# SPDX-License-Identifier: GPL-2.0-or-later
"""Each case of a program of mirror/ under an hmmd of its own: mirror_cases.py GROUP[:CASE] [without=CAPABILITY] [hmmd's arguments...]

GROUP is a program of that folder without its "mirror-". After each case nothing of it may be left:
no descriptor in hmmd (the harness sees to that), no owner, no page of the pool in use.
"""

import subprocess
import sys

import harness

GROUP, *DAEMON_ARGS = sys.argv[1:]
GROUP, _, CASE = GROUP.partition(":")
PROGRAM = f"mirror-{GROUP}"
LACKS = [DAEMON_ARGS.pop(0).removeprefix("without=")] if DAEMON_ARGS and DAEMON_ARGS[0].startswith("without=") else []


# What a program under AddressSanitizer does not do, or does elsewhere.
UNDER_SANITIZERS = {
    "locked": "AddressSanitizer makes mlock do nothing",
    "lock-later": "AddressSanitizer makes mlock do nothing",
    "locked-base": "AddressSanitizer makes mlock do nothing",
    "locked-later": "AddressSanitizer makes mlock do nothing",
    "locked-coherent": "AddressSanitizer makes mlock do nothing",
    "locked-copies": "AddressSanitizer makes mlock do nothing",
    "reused": "AddressSanitizer keeps freed memory from being used again",
    "stacks": "AddressSanitizer keeps a thread's locals in stacks of its own",
}


# What waits until a driver has had its time: long enough for one that answers on a busy machine, and no longer.
WAITS_FOR_DEADLINE = ["silent", "revoked", "cloned-late", "never-dispatched"]


class Mirror(harness.Test):
    daemon_args = DAEMON_ARGS or ["--pool", "memfd-huge"]
    daemon_lacks = LACKS

    def deadline(self, case):
        """A driver's thread may be off the CPU for longer than hmmd's own second."""
        if "--ack-timeout" in self.daemon_args:
            return []
        return ["--ack-timeout", "5s" if case in WAITS_FOR_DEADLINE else "10s"]

    def others(self):
        return [client for client in self.hmmctl_json("clients")["clients"] if client["role"] != "tool"]

    def used(self):
        return [pool["used"] for pool in self.hmmctl_json("pools")["pools"] if pool["used"]]

    def check_case(self, case):
        if harness.SANITIZE and case in UNDER_SANITIZERS:
            self.skipTest(UNDER_SANITIZERS[case])
        self.start_daemon(*self.deadline(case))
        ended = self.run_client(PROGRAM, case, status=None, seconds=max(45, 150 / harness.SCALE))
        if ended.returncode == 77:
            self.skipTest(ended.stdout.strip().splitlines()[-1])
        self.assertEqual(ended.returncode, 0, f"{PROGRAM} {case}:\n{ended.stdout}{ended.stderr}")
        self.assertTrue(self.daemon.running, "hmmd did not survive")
        harness.wait_until(lambda: not self.others(), 10, "that no client is left")
        harness.wait_until(lambda: not self.used(), 10, "that no device memory is in use")


def add_case(name):
    setattr(Mirror, "test_" + name.replace("-", "_"), lambda self: self.check_case(name))


def listed_cases():
    return subprocess.run([harness.binary(PROGRAM), "--list"], check=True, capture_output=True, text=True).stdout.split()


for case_name in [CASE] if CASE else listed_cases():
    add_case(case_name)

if __name__ == "__main__":
    del sys.argv[1:]
    harness.main()
