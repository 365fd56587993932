#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol of one page, searched by spin (page.pml), and held against the code.

Safe     each part of the protocol, all that can happen within its bounds: no state in which a load sees anything but the last
         store, or somebody sleeps whom nobody has noted.
Table    the edges that those searches take are those of transit_rules[] as hmmd was built with it: none is missing there,
         and none of it is never taken, but for LEFT_OUT.
Broken   with one mistake on purpose spin must find what it does: what cannot fail proves nothing.
By hand: test_model.py --trace CONFIGURATION [MISTAKE] prints the shortest way to what is wrong.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "integration"))
import harness      # noqa: E402

MANY = 9    # any number of them, page.pml

# What runs together; how often hmmd does something of its own accord, and how often it is killed. What the program and the
# driver do has no bounds.
CONFIGURATIONS = {
    "move": (["DISCARDS"], MANY, 0),
    "move-killed": (["DISCARDS"], 1, 1),
    "callbacks": (["CALLBACKS", "SHARES"], MANY, 1),
}

# Which configuration finds it. Those of daemon/engine/breakage.h have its names.
MISTAKES = {
    "drop-wake": "move", "skip-wp": "callbacks", "skip-dead": "move", "skip-served": "move-killed", "skip-hold": "move",
    "skip-zapping": "move", "miss-commit": "move", "lose-served": "move-killed", "read-in-commit": "move-killed",
    "settle-home": "callbacks", "tell-late": "callbacks", "settle-sharing": "callbacks", "settle-unsharing": "callbacks",
}

STATES = {0: "I", 1: "R", 2: "S", 3: "D", 4: "C", 5: "E"}

# Of the table, what the model has not, and why.
OTHER_TRANSITS = {
    "rest": "no transit", "out-zap": "the base engine", "home-slot": "blocks that come home as one huge page",
    "cohering": "memory that both map", "store": "memory that only a driver reaches", "fetch": "the same",
}
LEFT_OUT = {
    ("from", "unsharing", "E"): "no page is lost in the model",
    ("to", "home-copy", "E"): "no page is lost in the model",
    ("from", "unsharing", "I"): "what was R: an entry and nothing else",
    ("from", "unsharing", "C"): "nothing is coherent in the model",
    ("to", "sharing", "I"): "nothing is discarded where copies are made",
    ("to", "sharing", "D"): "nothing changes the map where copies are made",
    ("has-not", "sharing", "I"): "nothing is discarded where copies are made",
    ("has-not", "unsharing", "I"): "nothing is discarded where copies are made",
    ("to", "unsharing", "S"): "copies on other devices, and changes that a driver refuses",
    ("to", "unsharing", "D"): "changes that a driver refuses",
}


def mistakes():
    """By name, as page.pml numbers them."""
    with open(os.path.join(HERE, "page.pml")) as file:
        text = file.read()
    text = text[text.index("#define none"):text.index("#define BROKEN")]
    return {name.replace("_", "-"): number for name, number in re.findall(r"^#define (\w+)\s+(\d+)$", text, re.M)}


class Search:
    """Parts of the model, built once: pan is told of bounds and mistake when it runs, and ends at the first thing that is wrong."""

    def __init__(self, folder, flags, shortest=False):
        self.flags = ["-D" + flag for flag in flags]
        self.folder = os.path.join(folder, "-".join(flags))
        os.mkdir(self.folder)
        for name in os.listdir(HERE):
            if name.endswith(".pml"):
                shutil.copy(os.path.join(HERE, name), self.folder)
        self.shortest = shortest
        self.run("spin", "-a", "-DAT_RUN_TIME", "-DEDGES", *self.flags, "page.pml")
        self.run("gcc", "-w", "-O0", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=4000", *(["-DBFS"] if shortest else []), "-o", "pan", "pan.c")

    def search(self, acts, crashes, mistake="none"):
        self.said = {"ACTS": str(acts), "CRASHES": str(crashes), "MISTAKE": mistakes()[mistake]}
        self.output = self.run("./pan", *([] if self.shortest else ["-m1000000"]))
        self.wrong = re.findall(r"^pan:\d+: (?:assertion violated|invalid end state).*", self.output, re.M)
        found = re.search(r"(\d+) states, stored", self.output)
        self.states = int(found[1]) if found else 0
        self.complete = "errors: 0" in self.output and self.states and \
            not re.search("max search depth too small|Search not completed|reached -DMEMLIM|block in d_step", self.output)
        return self

    def run(self, *command):
        done = subprocess.run(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors="replace", env=dict(os.environ, **getattr(self, "said", {})), check=False)
        if done.returncode and command[0] != "./pan":
            raise RuntimeError(f"{' '.join(command)}: {done.stdout[:2000]}")
        return done.stdout

    def edges(self):
        """(what, number of the transit, whether the owner has the page, letter)"""
        return {(what, int(transit), has == "1", STATES[int(state)])
                for what, transit, has, state in re.findall(r"^edge (\w+) (\d+) (\d) (\d)$", self.output, re.M)}

    def trace(self, mistake="none"):
        """Who changed what, step by step."""
        text = self.run("spin", "-t", "-p", "-g", "-l", "-DEDGES", "-DBREAK=" + mistake.replace("-", "_"),
                        *(f"-D{name}={self.said[name]}" for name in ("ACTS", "CRASHES")), *self.flags, "page.pml")
        last, steps, who, at = {}, [], None, None
        for line in text.splitlines():
            where = re.match(r"\s*\d+:\s+proc\s+\d+ \((\w+):\d+\) (\S+:\d+) ", line)
            value = re.match(r"\s+(?:\w+\(\d+\):)?([\w.\[\]]+) = (\d+)\s*$", line)
            queue = re.match(r"\s+queue \d+ \((\w+)\): *(.*)$", line)
            found = value or queue
            if where:
                who, at = where[1], where[2]
            elif "text of failed assertion" in line:
                steps.append([who, at, [line.strip()]])
            elif found and last.get(found[1], "0") != found[2]:
                last[found[1]] = found[2]
                if not steps or steps[-1][:2] != [who, at]:
                    steps.append([who, at, []])
                steps[-1][2].append(f"{found[1]}={found[2]}")
        return "\n".join(f"{who or '':9}{at or '':18} {' '.join(changes)}" for who, at, changes in steps)


class Base(unittest.TestCase):
    folder = None
    built, edges = {}, {}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not Base.folder:
            Base.folder = tempfile.mkdtemp(prefix="model-")
            unittest.addModuleCleanup(shutil.rmtree, Base.folder)

    def program(self, configuration):
        flags = CONFIGURATIONS[configuration][0]
        if tuple(flags) not in Base.built:
            Base.built[tuple(flags)] = Search(Base.folder, flags)
        return Base.built[tuple(flags)]

    def search(self, configuration):
        if configuration not in Base.edges:
            flags, *bounds = CONFIGURATIONS[configuration]
            search = self.program(configuration).search(*bounds)
            print(f"{configuration}: {search.states} states", flush=True)
            if search.wrong:
                with tempfile.TemporaryDirectory() as place:
                    print(Search(place, flags, shortest=True).search(*bounds).trace(), flush=True)
            self.assertFalse(search.wrong)
            self.assertTrue(search.complete, search.output[-2000:])
            Base.edges[configuration] = search.edges()
        return Base.edges[configuration]


class Safe(Base):
    pass


def add_search(configuration):
    setattr(Safe, "test_" + configuration.replace("-", "_"), lambda self: self.search(configuration))


class Table(Base):
    def table(self):
        text = subprocess.run([os.path.join(harness.BINARY, "tests", "model", "model-table")], stdout=subprocess.PIPE, text=True, check=True).stdout
        return [line.split("\t") for line in text.splitlines()]

    def test_edges(self):
        table = self.table()
        number = {int(row[2]): row[1] for row in table if row[0] == "transit"}
        rows = [row for row in table if row[0] != "transit" and row[1] not in OTHER_TRANSITS]
        said = {(what, name, rest) for what, name, rest in rows if what in ("from", "to")}
        for what, name, text in rows:
            if what in ("has", "has-not"):
                said |= {(what, name, state) for state in re.findall(r"\b[IRSDCE]\b", text)}
        taken = set()
        for configuration in CONFIGURATIONS:
            for what, transit, has, state in self.search(configuration):
                what = {"settled": "has" if has else "has-not"}.get(what, what)
                taken.add((what, number[transit], state))
        wrong = [f"the model goes {edge}, transit_rules[] does not" for edge in sorted(taken - said)]
        wrong += [f"transit_rules[] goes {edge}, the model never does" for edge in sorted(said - taken - set(LEFT_OUT))]
        wrong += [f"{edge} is no edge that is left out" for edge in sorted(set(LEFT_OUT) - said | set(LEFT_OUT) & taken)]
        wrong += [f"{name} is no transit of the table" for name in sorted(set(OTHER_TRANSITS) - set(number.values()))]
        self.assertFalse(wrong, "\n".join(wrong))


class Broken(Base):
    def find(self, mistake):
        configuration = MISTAKES[mistake]
        search = self.program(configuration).search(*CONFIGURATIONS[configuration][1:], mistake)
        print(f"{mistake}: {search.wrong[:1]} after {search.states} states", flush=True)
        self.assertTrue(search.wrong, f"{mistake} was not found")

    def test_all_are_tried(self):
        self.assertEqual(set(mistakes()) - {"none"}, set(MISTAKES))


def add_mistake(mistake):
    setattr(Broken, "test_" + mistake.replace("-", "_"), lambda self: self.find(mistake))


for each in CONFIGURATIONS:
    add_search(each)
for each in MISTAKES:
    add_mistake(each)

if __name__ == "__main__":
    if sys.argv[1:2] == ["--trace"]:
        chosen = sys.argv[3] if len(sys.argv) > 3 else "none"
        parts, *limits = CONFIGURATIONS[sys.argv[2]]
        with tempfile.TemporaryDirectory() as place:
            one = Search(place, parts, shortest=True).search(*limits, chosen)
            print("\n".join(one.wrong) or f"nothing is wrong in {one.states} states")
            if one.wrong:
                print(one.trace(chosen))
    else:
        harness.main()
