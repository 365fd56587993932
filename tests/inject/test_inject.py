# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel calls that fail, one after the other, under each scenario of client.c:
test_inject.py [SCENARIO...] [PLAN... | --all | --few] [--plans] [-j N]

A scenario is first run as it is, to learn how often hmmd makes each call of kernel.h. Then the first of them fails, and
others chosen at random (with --all: each), with each error that the kernel may answer at any time, once and
ten times in a row. With --few each scenario has a few calls that chance chooses. What has to hold then is in scenarios.py.
N runs at a time; --plans only counts them. What has failed is run again as it was called there: a PLAN.
"""

import collections
import os
import re
import sys
import time
import unittest

import scenarios
from scenarios import harness

ERRORS = {
    "uffd_copy": ["EAGAIN", "SHORT", "ENOMEM", "ENOENT", "EFAULT"],
    "uffd_zero": ["EAGAIN", "SHORT", "ENOMEM"],
    "uffd_protect": ["EAGAIN", "ENOMEM"],
    "uffd_register": ["ENOMEM", "EBUSY"],
    "uffd_unregister": ["ENOMEM"],
    "uffd_poison": ["ENOMEM"],
    "uffd_continue": ["EAGAIN", "SHORT", "ENOMEM"],
    "uffd_read": ["EMFILE", "ENOMEM"],
    "pagemap_read": ["ENOMEM"],
    "page_kinds": ["ENOMEM"],
    "pages_written": ["ENOMEM"],
    "soft_dirty_clear": ["EINTR", "ENOMEM"],
    "mem_read": ["EIO"],
    "mem_write": ["EIO"],
    "vma_at": ["ENOMEM", "EINTR"],
    "mapped": ["ENOMEM"],
    "told": ["ENOMEM"],
    "lock": ["ENOMEM", "EPERM"],
    "memfd_new": ["EMFILE", "ENOMEM"],
    "punch": ["EINTR"],
    "collapse": ["ENOMEM", "EAGAIN"],
    "merging": ["EAGAIN"],
    "place": ["ENOMEM", "EINVAL"],
    "policy": ["ENOMEM"],
    "populate": ["ENOMEM", "EFAULT"],
    "node_free": ["ENOENT", "EMFILE"],
}
# What of kernel.h is not failed here, and why. Any other call has to be above.
NOT_FAILED = {
    "uffd_wake": "it cannot fail",
    "room": "it has no error",
    "vfio_unmap_all": "test_card.py", "vfio_master": "test_card.py", "pci_link": "test_card.py", "vfio_open": "test_card.py",
    "vfio_call": "test_card.py", "bar_map": "test_card.py", "bar_store": "test_card.py", "bar_fetch": "test_card.py",
    "vfio_answers": "test_card.py",
}
scenarios.Test.jobs, OPTIONS, CHOSEN, GIVEN = scenarios.options(sys.argv[1:])
ALL, FEW, PLANS = (f"--{word}" in OPTIONS for word in ("all", "few", "plans"))
CHOSEN = CHOSEN or scenarios.SCENARIOS
# With --few; and calls that no other scenario makes, of these each time.
CALLS, RARE = 4, ("pages_written", "uffd_read")


class Table(unittest.TestCase):
    def test_every_call_is_considered(self):
        """A call that is new in kernel.h is failed, or has a reason not to be."""
        with open(os.path.join(harness.SOURCE, "daemon", "kernel", "kernel.h")) as file:
            table = re.search(r"struct kernel_ops \{(.*?)\n\};", file.read(), re.S).group(1)
        calls = re.findall(r"^\t(?:\w+ )+\(\*(\w+)\)", table, re.M)
        self.assertGreater(len(calls), 30)
        self.assertEqual(sorted(calls), sorted([*ERRORS, *NOT_FAILED]))

    def test_every_scenario_is_run(self):
        with open(os.path.join(harness.SOURCE, "tests", "inject", "CMakeLists.txt")) as file:
            listed = re.search(r"set\(scenarios ([^)]*)\)", file.read()).group(1).split()
        self.assertEqual(listed, scenarios.SCENARIOS)


class Inject(scenarios.Test):
    # So often that it takes its time.
    looks_at_charges = FEW or ALL

    def run_plan(self, scenario, plan=""):
        """Returns the counts of hmmd's calls."""
        report = os.path.join(self.folder, "report")
        try:
            self.run_scenario(scenario, {"HMMD_INJECT": plan, "HMMD_INJECT_REPORT": report})
        except AssertionError as error:
            raise AssertionError(f"{plan} {error}") from None
        with open(report) as file:
            return {name: int(count) for name, count in (line.split() for line in file)}

    def baseline(self, scenario):
        if scenario not in Inject.counts:
            Inject.counts[scenario] = self.run_plan(scenario)
        return Inject.counts[scenario]

    def chosen(self, count):
        if ALL:
            return range(1, count + 1)
        # The first always, for it is made in any case; under a sanitizer that and a burst have to do.
        if harness.SANITIZE:
            return [1]
        return sorted({1, *(self.random.randint(1, count) for _ in range(2))})

    def plans(self, scenario, call):
        count = self.baseline(scenario)[call]
        for error in ERRORS[call] if count else ():
            for n in self.chosen(count):
                yield f"{call}:{error}:{n}"
            yield f"{call}:{error}:{self.random.randint(1, count)}:10"

    def check(self, scenario, calls):
        made = [call for call in calls if self.baseline(scenario)[call]]
        plans = GIVEN or [plan for call in made for plan in self.plans(scenario, call)]
        injected, in_vain, begun = collections.Counter(), 0, time.monotonic()
        print(f"{scenario}: {len(plans)} runs, {scenarios.Test.jobs} at a time", flush=True)
        if PLANS:
            return
        failed = set(plans)
        for plan, counts in self.run_plans(scenario, plans):
            failed.discard(plan)
            injected[plan.split(":")[0]] += counts["injected"]
            in_vain += not counts["injected"]
        for call in made if not GIVEN else ():
            # What a scenario calls now and then only may not have been called, or not so often. If it is at all, the first of them is.
            for _ in range(10 if not injected[call] and not any(plan.split(":")[0] == call for plan in failed) else 0):
                counts = self.run_plan(scenario, f"{call}:{ERRORS[call][0]}:1")
                if counts["injected"]:
                    break
                if counts[call]:
                    self.fail(f"{call} was never made to fail: the test tests nothing")
        print(f"{scenario} {' '.join(made)}: {sum(injected.values())} failures in {len(plans)} runs, of which {in_vain} never came to theirs, "
              f"in {time.monotonic() - begun:.0f} s; {dict(scenarios.Test.answers)}", flush=True)

    def check_few(self, scenario):
        counts = self.baseline(scenario)
        made = [call for call in ERRORS if counts[call]]
        calls = {*self.random.sample(made, min(CALLS, len(made))), *(call for call in RARE if counts[call])}
        for call in sorted(calls):
            plan = f"{call}:{self.random.choice(ERRORS[call])}:{self.random.randint(1, counts[call])}:{self.random.choice((1, 10))}"
            with self.subTest(plan=plan):
                self.run_plan(scenario, plan)


def add_test(scenario, call):
    setattr(Inject, f"test_{scenario}_{call}", lambda self: self.check(scenario, [call]))


def add_all(scenario):
    setattr(Inject, f"test_{scenario}", lambda self: self.check(scenario, list(ERRORS)))


def add_few(scenario):
    setattr(Inject, f"test_{scenario}", lambda self: self.check_few(scenario))


for chosen_scenario in CHOSEN:
    if FEW:
        add_few(chosen_scenario)
    elif ALL or GIVEN:
        add_all(chosen_scenario)
    else:
        for chosen_call in ERRORS:
            add_test(chosen_scenario, chosen_call)

if __name__ == "__main__":
    del sys.argv[1:]
    harness.main()
