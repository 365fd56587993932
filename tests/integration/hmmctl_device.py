# SPDX-License-Identifier: GPL-2.0-or-later
"""`hmmctl device`: what it refuses, what it writes, and that everything is as it was when it fails or is taken back.

Over a tree that is made up: of sysfs the parts that it reads, with pipes where the kernel acts on what is written, and a
thread that does as the kernel does. Against real devices it is run by vfio_cards.py, in the emulated machine.
"""

import contextlib
import json
import os
import select
import threading
import unittest

import harness

OK, FAILED, USAGE, NO_DAEMON, NOT_PERMITTED, NOTHING, PARTIAL = range(7)
CARD, SOUND, OTHER, BRIDGE = "0000:03:00.0", "0000:03:00.1", "0000:04:00.0", "0000:00:1c.0"


class Machine(threading.Thread):
    """A root folder with devices, and what the kernel makes of writes to unbind and drivers_probe."""

    def __init__(self, root):
        super().__init__(daemon=True)
        self.root = root
        self.natural = {}       # address -> the driver that takes it by its ids
        self.refusing = set()   # (driver, address)
        self.pipes = {}         # descriptor -> driver, None for drivers_probe
        self.stopped = os.pipe()
        for folder in ("sys/bus/pci/devices", "sys/bus/pci/drivers", "sys/kernel/iommu_groups", "sys/class/iommu", "sys/class/net",
                       "sys/class/block", "sys/devices/pci0000:00", "sys/module/vfio_iommu_type1", "proc/self", "dev/vfio", "run"):
            os.makedirs(self.path(folder))
        os.mkdir(self.path("sys/class/iommu/dmar0"))
        self.write("proc/self/mountinfo", "22 1 253:1 / / rw - ext4 /dev/root rw\n")
        self.write("proc/swaps", "Filename\tType\n")
        self.pipe("sys/bus/pci/drivers_probe", None)
        self.add_driver("vfio-pci")

    def path(self, name):
        return os.path.join(self.root, name)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)

    def read(self, name):
        with open(self.path(name)) as file:
            return file.read()

    def pipe(self, name, driver):
        os.mkfifo(self.path(name), 0o200)
        self.pipes[os.open(self.path(name), os.O_RDWR | os.O_NONBLOCK)] = driver

    def add_driver(self, name):
        os.mkdir(self.path(f"sys/bus/pci/drivers/{name}"))
        self.pipe(f"sys/bus/pci/drivers/{name}/unbind", name)

    def add(self, address, group=None, driver=None, natural=None, kind=0x030000, ids=(0x1234, 0x11e8)):
        folder = f"sys/devices/pci0000:00/{address}"
        os.mkdir(self.path(folder))
        os.symlink(f"../../../devices/pci0000:00/{address}", self.path(f"sys/bus/pci/devices/{address}"))
        for name, value in (("vendor", f"0x{ids[0]:04x}\n"), ("device", f"0x{ids[1]:04x}\n"), ("class", f"0x{kind:06x}\n"),
                            ("driver_override", "(null)\n")):
            self.write(f"{folder}/{name}", value)
        if group is not None:
            os.makedirs(self.path(f"sys/kernel/iommu_groups/{group}/devices"), exist_ok=True)
            os.symlink(f"../../../kernel/iommu_groups/{group}", self.path(f"{folder}/iommu_group"))
            os.symlink(f"../../../../{folder[4:]}", self.path(f"sys/kernel/iommu_groups/{group}/devices/{address}"))
        for name in filter(None, (driver, natural)):
            if not os.path.exists(self.path(f"sys/bus/pci/drivers/{name}")):
                self.add_driver(name)
        if driver:
            self.bind(address, driver)
        self.natural[address] = natural or driver

    def add_part(self, address, kind, name, **files):
        """A disk or an interface of it."""
        folder = f"sys/devices/pci0000:00/{address}/{kind}/{name}"
        os.makedirs(self.path(folder))
        for file, value in files.items():
            if value is None:
                os.mkdir(self.path(f"{folder}/{file}"))
            else:
                self.write(f"{folder}/{file}", value)
        os.symlink(f"../../{folder[4:]}", self.path(f"sys/class/{kind}/{name}"))

    def link(self, address):
        return self.path(f"sys/bus/pci/devices/{address}/driver")

    def driver(self, address):
        with contextlib.suppress(FileNotFoundError):
            return os.path.basename(os.readlink(self.link(address)))
        return None

    def override(self, address):
        return self.read(f"sys/bus/pci/devices/{address}/driver_override").strip()

    def bind(self, address, driver):
        os.symlink(f"../../../bus/pci/drivers/{driver}", self.link(address))

    def probe(self, address):
        if self.driver(address):
            return
        chosen = self.override(address)
        driver = chosen if chosen and chosen != "(null)" else self.natural[address]
        if driver and (driver, address) not in self.refusing and os.path.exists(self.path(f"sys/bus/pci/drivers/{driver}")):
            self.bind(address, driver)

    def run(self):
        while True:
            ready, _, _ = select.select([*self.pipes, self.stopped[0]], [], [])
            if self.stopped[0] in ready:
                return
            # A release is written before the search for the next driver; both may be here by now.
            for fd, driver in sorted(self.pipes.items(), key=lambda pipe: pipe[1] is None):
                with contextlib.suppress(BlockingIOError):
                    text = os.read(fd, 4096).decode()
                    for address in (text[at:at + len(CARD)] for at in range(0, len(text), len(CARD))):
                        if driver is None:
                            self.probe(address)
                        elif self.driver(address) == driver:
                            os.unlink(self.link(address))

    def stop(self):
        os.write(self.stopped[1], b"x")
        self.join()
        for fd in (*self.pipes, *self.stopped):
            os.close(fd)

    def state(self):
        """Everything that a write can have changed."""
        found = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.islink(path):
                    found[path] = os.readlink(path)
                elif os.path.isfile(path):
                    found[path] = self.read(path)
        for address in self.natural:
            found[address] = self.driver(address)
        return found


class Device(harness.Test):
    def setUp(self):
        super().setUp()
        self.root = os.path.join(self.folder, "root")
        self.addCleanup(os.umask, os.umask(0o022))
        self.machine = Machine(self.root)
        self.machine.add(CARD, group=7, driver="cardfb")
        self.machine.add(BRIDGE, group=7, driver="pcieport", kind=0x060400)
        self.machine.add(OTHER, group=9, natural="edu")
        self.machine.start()
        self.addCleanup(self.machine.stop)

    def device(self, *words, status=OK):
        return self.hmmctl("device", *words, status=status, environment={"HMMCTL_ROOT": self.root})

    def refused(self, *words, status=FAILED, said=()):
        """Nothing is changed, and stderr says each of these."""
        before = self.machine.state()
        done = self.device(*words, status=status)
        self.assertEqual(done.stdout, "")
        for word in said:
            self.assertIn(word, done.stderr)
        self.assertEqual(self.machine.state(), before)
        # What is only looked at says the same.
        if status != NOT_PERMITTED:
            self.assertEqual(self.device(*words, "--dry-run", status=status).stderr, done.stderr)

    # ---- there and back

    def test_there_and_back(self):
        before = self.machine.state()
        done = self.device("bind", CARD)
        self.assertEqual(done.stdout, f"{CARD} (1234:11e8): vfio-pci, /dev/vfio/7\n")
        self.assertEqual(self.machine.driver(CARD), "vfio-pci")
        self.assertEqual(self.device("bind", CARD).stdout, f"{CARD} (1234:11e8): vfio-pci as before, /dev/vfio/7\n")
        done = self.device("unbind", "3:0.0")
        self.assertEqual(done.stdout, f"{CARD} (1234:11e8): cardfb\n")
        self.assertEqual(self.machine.override(CARD), "")
        after = self.machine.state()
        del before[f"{self.root}/sys/devices/pci0000:00/{CARD}/driver_override"]
        del after[f"{self.root}/sys/devices/pci0000:00/{CARD}/driver_override"]
        self.assertEqual(after, before)

    def test_one_that_had_no_driver(self):
        """Although there is one that would take it."""
        self.device("bind", OTHER)
        self.assertEqual(self.machine.driver(OTHER), "vfio-pci")
        self.assertEqual(self.device("unbind", OTHER).stdout, f"{OTHER} (1234:11e8): no driver\n")
        self.assertIsNone(self.machine.driver(OTHER))

    def test_one_whose_driver_was_chosen(self):
        self.machine.add_driver("special")
        self.machine.write(f"sys/bus/pci/devices/{OTHER}/driver_override", "special\n")
        self.machine.bind(OTHER, "special")
        self.device("bind", OTHER)
        self.assertEqual(self.machine.override(OTHER), "vfio-pci")
        self.device("unbind", OTHER)
        self.assertEqual((self.machine.driver(OTHER), self.machine.override(OTHER)), ("special", "special"))

    def test_one_that_somebody_else_bound(self):
        """Nothing is remembered of it: the kernel chooses."""
        self.machine.write(f"sys/bus/pci/devices/{OTHER}/driver_override", "vfio-pci\n")
        self.machine.bind(OTHER, "vfio-pci")
        self.device("unbind", OTHER)
        harness.wait_until(lambda: self.machine.driver(OTHER) == "edu", 10, "edu to take it")
        self.assertEqual(self.machine.override(OTHER), "")

    def test_dry_run(self):
        before = self.machine.state()
        devices = f"{self.root}/sys/bus/pci"
        self.assertEqual(self.device("--dry-run", "bind", CARD).stdout.splitlines(), [
            f"{self.root}/run/hmmctl/{CARD} <- cardfb -",
            f"{devices}/devices/{CARD}/driver_override <- vfio-pci",
            f"{devices}/drivers/cardfb/unbind <- {CARD}",
            f"{devices}/drivers_probe <- {CARD}"])
        self.assertEqual(self.machine.state(), before)
        self.device("bind", CARD)
        before = self.machine.state()
        self.assertEqual(self.device("unbind", CARD, "--dry-run").stdout.splitlines(), [
            f"{devices}/drivers/vfio-pci/unbind <- {CARD}",
            f"{devices}/devices/{CARD}/driver_override <- ''",
            f"{devices}/drivers_probe <- {CARD}",
            f"{self.root}/run/hmmctl/{CARD} is removed"])
        self.assertEqual(self.machine.state(), before)
        self.assertEqual(self.device("bind", CARD, "--dry-run").stdout, "", "nothing is to be done")

    def test_json(self):
        told = json.loads(self.device("-j", "bind", CARD, OTHER).stdout)
        self.assertIs(told["dry_run"], False)
        self.assertEqual([(device["address"], device["driver_before"], device["driver"], device["group"], len(device["writes"]))
                          for device in told["devices"]],
                         [(CARD, "cardfb", "vfio-pci", "7", 4), (OTHER, "", "vfio-pci", "9", 3)])
        self.assertEqual((told["devices"][0]["vendor"], told["devices"][0]["device"]), ("1234", "11e8"))
        told = json.loads(self.device("-j", "unbind", CARD, "--dry-run").stdout)
        self.assertIs(told["dry_run"], True)
        self.assertEqual(told["devices"][0]["driver"], "vfio-pci")
        self.assertEqual(told["devices"][0]["writes"][1], {
            "path": f"{self.root}/sys/bus/pci/devices/{CARD}/driver_override", "value": ""})
        self.assertIsNone(told["devices"][0]["writes"][-1]["value"])

    def test_vfio_iommu_type1_is_missing(self):
        os.rmdir(self.machine.path("sys/module/vfio_iommu_type1"))
        self.assertIn("modprobe vfio_iommu_type1", self.device("bind", CARD).stderr)

    # ---- groups

    def test_a_group_of_several(self):
        self.machine.add(SOUND, group=7, driver="snd", ids=(0x1234, 0xaaaa))
        for one, other in ((CARD, SOUND), (SOUND, CARD)):
            driver = self.machine.driver(other)
            self.refused("bind", one, said=["group 7 would not be viable", other, driver, f"hmmctl device bind {CARD} {SOUND}"])
        self.device("bind", SOUND, CARD, SOUND)
        self.assertEqual((self.machine.driver(CARD), self.machine.driver(SOUND)), ("vfio-pci", "vfio-pci"))
        self.device("unbind", CARD, SOUND)
        self.assertEqual((self.machine.driver(CARD), self.machine.driver(SOUND)), ("cardfb", "snd"))

    def test_others_of_the_group_are_free(self):
        self.machine.add(SOUND, group=7)
        self.device("bind", CARD)
        self.device("bind", SOUND)
        self.assertEqual(self.machine.driver(SOUND), "vfio-pci")

    # ---- what is refused

    def test_no_such_device(self):
        self.refused("bind", "0000:05:00.0", status=NOTHING, said=["no PCI device 0000:05:00.0", "lspci -D"])
        self.refused("bind", CARD, "5:0.0", status=NOTHING)

    def test_no_address(self):
        for text in ("03:00", "0000:03:00.8", "0000:03:20.0", "x", "3:0.0.0", "00000:03:00.0", "0000:003:00.0", "", "../x:0.0", "3:0.0 "):
            self.refused("bind", text, status=USAGE, said=["is no PCI address"])
        for words in ((), ("bind",), ("unbind",), ("hold", CARD), ("bind", *[CARD] * 33)):
            self.refused(*words, status=USAGE)
        self.hmmctl("status", "--dry-run", status=USAGE)
        self.device("bind", CARD, "--pid", "1", status=USAGE)

    def test_no_iommu(self):
        os.rmdir(self.machine.path("sys/class/iommu/dmar0"))
        self.machine.add(SOUND, driver="snd")
        self.refused("bind", SOUND, said=["no IOMMU", "intel_iommu=on", "amd_iommu=on"])

    def test_behind_no_iommu(self):
        self.machine.add(SOUND, driver="snd")
        self.refused("bind", SOUND, "--force", said=["behind no IOMMU"])

    def test_a_bridge(self):
        self.refused("bind", BRIDGE, "--force", said=["it is a bridge"])

    def test_no_driver(self):
        os.unlink(self.machine.path("sys/bus/pci/drivers/vfio-pci/unbind"))
        os.rmdir(self.machine.path("sys/bus/pci/drivers/vfio-pci"))
        self.refused("bind", CARD, said=["modprobe vfio-pci"])

    def test_a_mounted_disk(self):
        self.machine.add_part(CARD, "block", "vda", dev="254:0\n", holders=None)
        self.machine.add_part(CARD, "block", "vda1", dev="254:1\n", holders=None)
        self.machine.write("proc/self/mountinfo", "22 1 253:1 / / rw - ext4 /dev/root rw\n"
                                                  "30 22 254:1 / /srv/my\\040data rw,noatime shared:1 - xfs /dev/vda1 rw\n")
        self.refused("bind", CARD, said=["/dev/vda1, which is mounted at /srv/my\\040data", "--force"])
        self.machine.write("proc/self/mountinfo", "30 22 0:44 /sub /home rw - btrfs /dev/vda rw\n")
        self.refused("bind", CARD, said=["/dev/vda, which is mounted at /home"])
        self.machine.write("proc/self/mountinfo", "30 22 254:11 / /srv rw - xfs /dev/vda11 rw\n")
        self.device("bind", CARD)

    def test_swap_and_parts_of_others(self):
        self.machine.add_part(CARD, "block", "nvme0n1", dev="259:0\n", holders=None)
        self.machine.write("proc/swaps", "Filename\tType\n/dev/nvme0n1p1 partition 1 0 -2\n")
        self.device("bind", CARD, "--dry-run")
        self.machine.write("proc/swaps", "Filename\tType\n/dev/nvme0n1 partition 1 0 -2\n")
        self.refused("bind", CARD, said=["/dev/nvme0n1, which is swap"])
        self.machine.write("proc/swaps", "Filename\tType\n")
        os.mkdir(self.machine.path(f"sys/devices/pci0000:00/{CARD}/block/nvme0n1/holders/dm-0"))
        self.refused("bind", CARD, said=["/dev/nvme0n1, which is a part of another block device"])
        self.device("bind", CARD, "--force")

    def test_an_interface_that_is_up(self):
        self.machine.add_part(CARD, "net", "eth0", flags="0x1003\n")
        self.machine.add_part(OTHER, "net", "eth1", flags="0x1002\n")
        self.refused("bind", CARD, said=["the network interface eth0, which is up"])
        self.device("bind", OTHER)
        self.device("bind", CARD, "--force")
        self.assertEqual(self.machine.driver(CARD), "vfio-pci")

    @unittest.skipUnless(os.getuid() == 0, "needs root, to become another user")
    def test_not_root(self):
        for folder in (self.folder, os.path.dirname(self.folder)):
            os.chmod(folder, os.stat(folder).st_mode | 0o055)
        before = self.machine.state()
        words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", harness.binary("hmmctl"), "device", "bind", CARD]
        done = self.run_client(*words, status=NOT_PERMITTED, environment={"HMMCTL_ROOT": self.root})
        self.assertIn("sudo", done.stderr)
        self.assertEqual(self.machine.state(), before)
        done = self.run_client(*words, "--dry-run", environment={"HMMCTL_ROOT": self.root})
        self.assertEqual(len(done.stdout.splitlines()), 4)

    def test_unbind_of_what_is_not_bound(self):
        self.refused("unbind", CARD, said=["not with vfio-pci: its driver is cardfb"])
        self.refused("unbind", OTHER, said=["it has no driver"])

    # ---- what fails

    def test_vfio_does_not_take_it(self):
        self.machine.refusing.add(("vfio-pci", CARD))
        done = self.device("bind", CARD, status=FAILED)
        self.assertIn("vfio-pci does not take", done.stderr)
        self.assertEqual((self.machine.driver(CARD), self.machine.override(CARD)), ("cardfb", ""))
        self.assertEqual(os.listdir(self.machine.path("run/hmmctl")), [])

    def test_all_or_none(self):
        self.machine.add(SOUND, group=7, driver="snd")
        self.machine.refusing.add(("vfio-pci", SOUND))
        self.device("bind", OTHER)
        done = self.device("bind", OTHER, CARD, SOUND, status=FAILED)
        self.assertEqual(done.stdout, "")
        self.assertEqual([self.machine.driver(address) for address in (OTHER, CARD, SOUND)], ["vfio-pci", "cardfb", "snd"])
        self.assertEqual(os.listdir(self.machine.path("run/hmmctl")), [OTHER])

    def test_a_driver_that_is_gone(self):
        self.device("bind", CARD)
        self.machine.refusing.add(("cardfb", CARD))
        done = self.device("unbind", CARD, status=FAILED)
        self.assertIn("cardfb does not take", done.stderr)
        self.assertIsNone(self.machine.driver(CARD))

    def test_a_write_that_fails(self):
        os.unlink(self.machine.path(f"sys/bus/pci/devices/{CARD}/driver_override"))
        os.mkdir(self.machine.path(f"sys/bus/pci/devices/{CARD}/driver_override"))
        done = self.device("bind", CARD, status=FAILED)
        self.assertIn("cannot be written", done.stderr)
        self.assertEqual(self.machine.driver(CARD), "cardfb")


if __name__ == "__main__":
    harness.main()
