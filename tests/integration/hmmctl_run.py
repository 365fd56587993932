# SPDX-License-Identifier: GPL-2.0-or-later
"""Real, unmodified programs under `hmmctl run --churn`: what they print is what they print without it."""

import os
import re
import signal

import harness

MIB = 1 << 20

# Dictionaries, strings and big integers, for a few seconds, then one line.
PYTHON = """
import hashlib, random
r = random.Random(7)
table, digest = {}, hashlib.sha256()
for round in range(3):
    for i in range(30000):
        table[r.getrandbits(18)] = str(r.getrandbits(64)) * (i % 7)
    for key in sorted(table)[::3]:
        digest.update(table.pop(key).encode())
    digest.update(repr(sorted(table.items())[:5000]).encode())
print(digest.hexdigest(), len(table))
"""

SQL = """
create table t(a integer primary key, b text, c integer);
with recursive n(i) as (values(1) union all select i + 1 from n where i < 60000)
  insert into t select i, hex(i * 2654435761 % 4294967291), i * 48271 % 2147483647 from n;
create index tb on t(b);
create index tc on t(c);
update t set b = b || c where a % 3 = 0;
delete from t where c % 7 = 1;
select count(*), sum(c), min(b), max(b), sum(length(b)) from t;
select b, c from t order by c limit 2000;
select a % 100 as k, count(*), sum(c), group_concat(substr(b, 1, 2), '') from t group by k order by k;
"""

PERL = """
my (%h, $s); my $x = 12345;
for my $round (1 .. 3) {
    for (1 .. 30000) { $x = ($x * 1103515245 + 12345) % 2147483648; push @{$h{$x % 5003}}, "$x-$round"; }
    $s += length join ",", map { sort @$_ } @h{sort { $a <=> $b } keys %h};
    delete $h{$_} for grep { $_ % 4 == $round % 4 } keys %h;
}
print "$s ", scalar(keys %h), "\\n";
"""


class Run(harness.Test):
    def test_status_is_the_program_s(self):
        self.start_daemon()
        for words, status in ((["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], 128 + 9),
                              (["/nonexistent/program"], 127), (["/etc/passwd"], 126)):
            done = self.hmmctl("run", "--", *words, status=status)
            self.assertEqual(done.stdout, "")

    def test_streams_are_the_program_s(self):
        self.start_daemon()
        done = self.hmmctl("run", "--churn", self.seed, "--", "sh", "-c", "cat; echo problem >&2", input="given\n")
        self.assertEqual((done.stdout, done.stderr), ("given\n", "problem\n"))

    def test_signals_reach_the_program(self):
        self.start_daemon()
        process = self.spawn("hmmctl", "run", "--", "sh", "-c", "trap 'echo caught; exit 3' TERM; echo up; "
                             "while :; do sleep 0.05; done")
        process.expect("^up$")
        process.signal(signal.SIGTERM)
        process.expect("^caught$")
        process.finish(status=3)

    def test_a_device_too_large(self):
        self.start_daemon("--pool-size", "64M")
        done = self.hmmctl("run", "--device-memory", "1T", "--", "echo", "ran", status=1)
        self.assertEqual(done.stdout, "")
        self.assertIn("--device-memory", done.stderr)

    def test_private(self):
        done = self.hmmctl("run", "--private", "--device-memory", "128M", "--churn", self.seed, "--", "sh", "-c",
                           "echo $HMM_SOCKET")
        self.assertRegex(done.stdout, r"^/tmp/hmmctl-run\.\w+/hmmd\.sock\n$")
        self.assertFalse(os.path.exists(os.path.dirname(done.stdout.strip())))


class Churn(harness.Test):
    daemon_args = ["--pool", "memfd", "--pool-size", "2G"]

    def compare(self, *command, input=None, moves=True):
        """The same output with and without; returns it."""
        plain = self.run_client(command[0], *command[1:], input=input)
        moves = moves and "move" in self.hmmctl_json("status")["features"]
        # A short program's few moves may all be of what never was there: then with another seed.
        for seed in range(int(self.seed), int(self.seed) + 5):
            churned = self.hmmctl("run", "--churn", seed, "--interval", "20", "--verbose", "--", *command,
                                  input=input, seconds=300)
            self.assertEqual(churned.stdout, plain.stdout)
            summary = re.search(r"seed (\d+): (\d+) moves: (\d+) pages went to the device, (\d+) were fetched home",
                                churned.stderr)
            self.assertIsNotNone(summary, churned.stderr)
            print(f"{command[0]}: {summary.group(0)}", flush=True)
            if not moves or int(summary.group(3)):
                return plain.stdout
        self.fail("nothing was migrated, so nothing was tested")

    def test_python3(self):
        self.start_daemon()
        self.assertRegex(self.compare("/usr/bin/python3", "-c", PYTHON), r"^[0-9a-f]{64} \d+\n$")

    def test_sqlite3(self):
        self.start_daemon()
        self.assertGreater(self.compare("/usr/bin/sqlite3", ":memory:", input=SQL).count("\n"), 2000)

    def test_perl(self):
        self.start_daemon()
        self.compare("/usr/bin/perl", "-e", PERL)

    def test_xz(self):
        """Compressed under churn it is the same, byte for byte, and unpacks to the same; two threads."""
        self.start_daemon()
        original = os.path.join(self.folder, "original")
        with open(original, "wb") as file:
            words = [self.random.randbytes(self.random.randrange(2, 9)) for _ in range(2000)]
            while file.tell() < 3 * MIB:
                file.write(b" ".join(self.random.choices(words, k=1000)))
        pack = f"xz -T2 --block-size=1MiB -3 -c {original}"
        self.compare("sh", "-c", f"{pack} | sha256sum")
        for line in (f"{pack} >{original}.xz", f"xz -dc {original}.xz | cmp - {original}"):
            self.hmmctl("run", "--churn", self.seed, "--interval", "20", "--", "sh", "-c", line, seconds=300)

    def test_children_are_mirrored_too(self):
        """A shell's children fork and execute while blocks are out."""
        self.start_daemon()
        script = "x=; for i in $(seq 40); do x=$x$(printf '%s' $i | sha256sum | cut -c1-8); done; echo $x"
        self.compare("sh", "-c", script, moves=False)

    def test_kill_9_of_hmmd_meanwhile(self):
        self.start_daemon()
        plain = self.run_client("/usr/bin/python3", "-c", PYTHON)
        process = self.spawn("hmmctl", "run", "--churn", self.seed, "--interval", "10", "--",
                             "/usr/bin/python3", "-c", PYTHON)
        harness.wait_until(lambda: any(owner["to_device"] for owner in self.hmmctl_json("mirrors")["owners"]), 30,
                           "a first page on the device")
        for _ in range(2):
            self.daemon.restart()
            harness.wait_until(lambda: self.hmmctl_json("mirrors")["owners"] or not process.running, 30,
                               "the program at the new hmmd")
        process.finish(seconds=300)
        self.assertEqual(process.output, plain.stdout)


if __name__ == "__main__":
    harness.main()
