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
    "reused": "AddressSanitizer keeps freed memory from being used again",
    "stacks": "AddressSanitizer keeps a thread's locals in stacks of its own",
}


class Mirror(harness.Test):
    daemon_args = DAEMON_ARGS or ["--pool", "memfd-huge"]
    daemon_lacks = LACKS

    def others(self):
        return [client for client in self.hmmctl_json("clients")["clients"] if client["role"] != "tool"]

    def check_case(self, case):
        if harness.SANITIZE and case in UNDER_SANITIZERS:
            self.skipTest(UNDER_SANITIZERS[case])
        self.start_daemon()
        ended = self.run_client(PROGRAM, case, status=None, seconds=45)
        if ended.returncode == 77:
            self.skipTest(ended.stdout.strip().splitlines()[-1])
        self.assertEqual(ended.returncode, 0, f"{PROGRAM} {case}:\n{ended.stdout}{ended.stderr}")
        self.assertTrue(self.daemon.running, "hmmd did not survive")
        harness.wait_until(lambda: not self.others(), 10, "that no client is left")
        pools = self.hmmctl_json("pools")["pools"]
        self.assertEqual([pool["used"] for pool in pools if pool["used"]], [], "device memory is still in use")


def add_case(name):
    setattr(Mirror, "test_" + name.replace("-", "_"), lambda self: self.check_case(name))


def listed_cases():
    return subprocess.run([harness.binary(PROGRAM), "--list"], check=True, capture_output=True, text=True).stdout.split()


for case_name in [CASE] if CASE else listed_cases():
    add_case(case_name)

if __name__ == "__main__":
    del sys.argv[1:]
    harness.main()
