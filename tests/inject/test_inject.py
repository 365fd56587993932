# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel calls that fail, one after the other, under each scenario of client.c: test_inject.py [SCENARIO... | --all]

A scenario is first run as it is, to learn how often hmmd makes each call. Then the first of them fails, and
others chosen at random (with --all: each), with each error that the kernel may answer at any time, once and
ten times in a row. Whatever hmmd then refuses: the program's bytes are right, nothing hangs, hmmd lives, gives
back every descriptor and device page, and SIGTERM ends it in good order.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
import harness

harness.PLACES["hmmd"] = "tests/inject/hmmd_inject"
CLIENT = os.path.join(harness.BINARY, "tests", "inject", "inject-client")

SCENARIOS = ["travel", "share", "touch", "ranges", "upheaval", "family", "access", "window", "several",
             "advice", "events", "exclusive", "evict", "devmem", "farewell", "placed"]
# What the client does in a scenario that differs from another by hmmd's arguments alone.
SAME = {"placed": ("travel", "--pool", "memfd", "--pool-placement", "bind:0")}
ERRORS = {
    "uffd_copy": ["EAGAIN", "SHORT", "ENOMEM", "ENOENT"],
    "uffd_zero": ["EAGAIN", "SHORT", "ENOMEM"],
    "uffd_protect": ["EAGAIN", "ENOMEM"],
    "uffd_register": ["ENOMEM", "EBUSY"],
    "uffd_unregister": ["ENOMEM"],
    "uffd_poison": ["ENOMEM"],
    "uffd_continue": ["EAGAIN", "SHORT", "ENOMEM"],
    "pagemap_read": ["ENOMEM"],
    "page_kinds": ["ENOMEM"],
    "mem_read": ["EIO"],
    "mem_write": ["EIO"],
    "vma_at": ["ENOMEM", "EINTR"],
    "mapped": ["ENOMEM"],
    "told": ["ENOMEM"],
    "memfd_new": ["EMFILE", "ENOMEM"],
    "punch": ["EINTR"],
    "collapse": ["ENOMEM", "EAGAIN"],
    "merging": ["EAGAIN"],
    "place": ["ENOMEM", "EINVAL"],
    "node_free": ["ENOENT", "EMFILE"],
}
ARGUMENTS = sys.argv[1:]
ALL = "--all" in ARGUMENTS
CHOSEN = [argument for argument in ARGUMENTS if argument != "--all"] or SCENARIOS
# hmmd serves no one without these, and says so; the client then ends with this status.
REFUSED = 3


class Inject(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--workers", "1"]
    counts = {}

    def run_scenario(self, scenario, plan=""):
        """One hmmd, one client. Returns the counts of hmmd's calls."""
        client = None
        try:
            report = os.path.join(self.folder, "report")
            does, *arguments = SAME.get(scenario, (scenario,))
            self.start_daemon(*arguments, environment={"HMMD_INJECT": plan, "HMMD_INJECT_REPORT": report})
            client = self.spawn(CLIENT, does)
            if scenario == "farewell":
                client.expect("out", 120)
                self.daemon.stop()
                client.send("go")
            status = client.wait(60)
            self.assertIn(status, (0, REFUSED) if plan else (0,))
            if scenario != "farewell":
                self.assertTrue(self.daemon.running, "hmmd did not survive")
                self.daemon.expect_no_extra_descriptors()
                harness.wait_until(lambda: not [pool for pool in self.hmmctl_json("pools")["pools"] if pool["used"]],
                                   10, "that no device memory is in use")
                self.daemon.stop()
            with open(report) as file:
                return {name: int(count) for name, count in (line.split() for line in file)}
        except Exception as error:
            # For whoever reads this, and for the next plan.
            processes = [process for process in (client, self.daemon and self.daemon.process) if process]
            said = "".join(process.output + process.errors for process in processes)
            for process in processes:
                if process.running:
                    process.kill9()
            raise AssertionError(f"{scenario} {plan}: {error}\n{said}") from None

    def baseline(self, scenario):
        if scenario not in Inject.counts:
            Inject.counts[scenario] = self.run_scenario(scenario)
        return Inject.counts[scenario]

    def chosen(self, count):
        if ALL:
            return range(1, count + 1)
        # The first always, for it is made in any case; under a sanitizer that and a burst have to do.
        if harness.SANITIZE:
            return [1]
        return sorted({1, *(self.random.randint(1, count) for _ in range(2))})

    def check(self, scenario, call):
        count = self.baseline(scenario)[call]
        if not count:
            return
        injected = 0
        for error in ERRORS[call]:
            plans = [f"{call}:{error}:{n}" for n in self.chosen(count)]
            plans.append(f"{call}:{error}:{self.random.randint(1, count)}:10")
            for plan in plans:
                with self.subTest(plan=plan):
                    injected += 1  # a run that fails was made to
                    injected += self.run_scenario(scenario, plan)["injected"] - 1
        # What a scenario calls now and then only may not have been called, or not so often. If it is at all, the first of them is.
        for _ in range(10 if not injected else 0):
            counts = self.run_scenario(scenario, f"{call}:{ERRORS[call][0]}:1")
            if counts["injected"]:
                break
            if counts[call]:
                self.fail(f"{call} was never made to fail: the test tests nothing")


def add_test(scenario, call):
    setattr(Inject, f"test_{scenario}_{call}", lambda self: self.check(scenario, call))


for chosen_scenario in CHOSEN:
    for chosen_call in ERRORS:
        add_test(chosen_scenario, chosen_call)

if __name__ == "__main__":
    del sys.argv[1:]
    harness.main()
