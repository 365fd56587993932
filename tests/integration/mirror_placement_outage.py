# SPDX-License-Identifier: GPL-2.0-or-later
"""Placement as hmmctl shows it, as hmmd is configured, and after hmmd was killed: it stays what it was."""

import json
import os
import re
import unittest

import harness

NODES = "/sys/devices/system/node"


def memory_nodes():
    """Those with memory, in order."""
    found = []
    for name in os.listdir(NODES) if os.path.isdir(NODES) else []:
        match = re.fullmatch(r"node(\d+)", name)
        if match:
            with open(f"{NODES}/{name}/meminfo") as file:
                if int(re.search(r"MemTotal:\s+(\d+)", file.read()).group(1)):
                    found.append(int(match.group(1)))
    return sorted(found)


class Placement(harness.Test):
    daemon_args = ["--pool", "memfd-huge", "--pool-size", "1G"]

    def setUp(self):
        super().setUp()
        self.nodes = memory_nodes()
        if len(self.nodes) < 2:
            self.skipTest("there is one memory node")

    def begin(self, node=None):
        environment = {} if node is None else {"TEST_NODE": str(node)}
        owner = self.spawn("mirror-placement", "served", environment=environment)
        owner.expect("^ready$", 60)
        return owner

    def shown(self):
        pool, = [pool for pool in self.hmmctl_json("pools")["pools"] if pool["devices"]]
        mirror = self.hmmctl_json("mirrors")["mirrors"][0]
        self.assertEqual((mirror["placement"], mirror["node"], mirror["nodes"]), (pool["placement"], pool["node"], pool["nodes"]))
        return pool["placement"], pool["node"], pool["nodes"], pool["name"]

    def test_killed(self):
        """The device's own: kept by its maker, and the journal."""
        node = self.nodes[1]
        self.start_daemon()
        owner = self.begin(node)
        shown = self.shown()
        self.assertEqual(shown, ("bind", node, str(node), f"memfd_huge:bind:{node}"))
        for _ in range(3):
            owner.ask(f"look {node}")
            self.daemon.restart()
            owner.ask(f"look {node}")
            owner.ask("turn")
            owner.ask(f"look {node}")
            self.assertEqual(self.shown(), shown)
        owner.finish()

    def test_configured(self):
        """Where a device says nothing; one that does has its own."""
        node, other = self.nodes[1], self.nodes[0]
        self.start_daemon("--pool-placement", f"bind:{node}")
        owner = self.begin()
        self.assertEqual(self.shown()[:3], ("bind", node, str(node)))
        owner.ask(f"look {node}")
        self.daemon.restart()
        owner.ask("turn")
        owner.ask(f"look {node}")
        owner.finish()
        owner = self.begin(other)
        owner.ask(f"look {other}")
        owner.finish()

    def test_short(self):
        """`node` is the short form; in words for people."""
        node = self.nodes[1]
        self.start_daemon("--pool-node", str(node))
        owner = self.begin()
        owner.ask(f"look {node}")
        self.assertRegex(self.hmmctl("pools").stdout, rf"PLACED +NODES[^\n]*\n[^\n]*bind +{node}\b")
        self.assertRegex(self.hmmctl("mirrors").stdout, rf"PLACED +NODES[^\n]*\n[^\n]*bind +{node}\b")
        owner.finish()

    def test_in_turn(self):
        first, second = self.nodes[:2]
        words = f"{first}-{second}" if second == first + 1 else f"{first},{second}"
        self.start_daemon("--pool-placement", f"interleave:{words}")
        owner = self.begin()
        self.assertEqual(self.shown(), ("interleave", -1, words, f"memfd_huge:interleave:{words}"))
        owner.finish()


def dax_nodes():
    found = set()
    folder = "/sys/bus/dax/drivers/kmem"
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if re.fullmatch(r"dax\d+\.\d+", name):
            with open(f"{folder}/{name}/target_node") as file:
                found.add(int(file.read()))
    return sorted(found)


class Dax(Placement):
    """What is configured is dax: whoever says nothing gets it, and keeps it."""
    daemon_args = ["--pool", "dax", "--pool-size", "1G"]
    test_killed = test_configured = test_short = test_in_turn = None

    def setUp(self):
        super().setUp()
        if not dax_nodes():
            self.skipTest("no dax device is memory with a node of its own")

    def test_dax(self):
        node = dax_nodes()[0]
        self.start_daemon()
        owner = self.spawn("mirror-placement", "served", environment={"TEST_POOL": "0"})
        owner.expect("^ready$", 60)
        self.assertEqual(self.shown(), ("bind", node, str(node), f"dax:bind:{node}"))
        owner.ask(f"look {node}")
        self.daemon.restart()
        owner.ask("turn")
        owner.ask(f"look {node}")
        self.assertEqual(self.shown(), ("bind", node, str(node), f"dax:bind:{node}"))
        owner.finish()


class Absent(harness.Test):
    """On any machine."""
    daemon_args = ["--pool", "memfd", "--pool-placement", "bind:1023"]

    def test_said(self):
        self.start_daemon()
        made = self.run_client("mirror-placement", "served", status=None)
        self.assertEqual(made.returncode, 1)
        self.assertIn("1023", made.stderr)
        findings = {finding["name"]: finding for finding in json.loads(self.hmmctl("doctor", "-j", status=None).stdout)["findings"]}
        self.assertIn("memory node 1023", findings["placement"]["text"])


if __name__ == "__main__":
    unittest.TestCase.maxDiff = None
    harness.main()
