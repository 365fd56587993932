# SPDX-License-Identifier: GPL-2.0-or-later
"""Real PCI devices behind an IOMMU, to vfio-pci and back: what hmmctl does to them, what doctor says, what the holder keeps.

Only devices that nobody needs: QEMU's teaching card `edu`, its `ivshmem`, its random numbers. The emulated machine of
tests/guest has them.
"""

import errno
import fcntl
import glob
import json
import os
import struct

import harness

OK, FAILED, USAGE, NO_DAEMON, NOT_PERMITTED, NOTHING, PARTIAL = range(7)
EDU, IVSHMEM, RNG, DISK = (0x1234, 0x11e8), (0x1af4, 0x1110), (0x1af4, 0x1005), (0x1af4, 0x1001)
VFIO_GROUP_GET_STATUS, VFIO_GROUP_FLAGS_VIABLE = 0x3b67, 1


def sysfs(address, name):
    return f"/sys/bus/pci/devices/{address}/{name}"


def read(path):
    with open(path) as file:
        return file.read().strip()


def link(address, name):
    try:
        return os.path.basename(os.readlink(sysfs(address, name)))
    except FileNotFoundError:
        return None


def find(ids):
    return sorted(os.path.basename(path) for path in glob.glob("/sys/bus/pci/devices/*")
                  if (int(read(f"{path}/vendor"), 16), int(read(f"{path}/device"), 16)) == ids)


class Cards(harness.Test):
    def setUp(self):
        super().setUp()
        if not os.path.isdir("/sys/class/iommu") or not os.listdir("/sys/class/iommu"):
            self.skipTest("this machine has no IOMMU")
        if not find(EDU) or not find(IVSHMEM):
            self.skipTest("this machine has no card that nobody needs")
        self.edu, self.ivshmem = find(EDU)[0], find(IVSHMEM)[0]
        # Another test may have left them there.
        self.put_back([self.edu, self.ivshmem, *find(RNG)])
        self.before = {address: (link(address, "driver"), read(sysfs(address, "driver_override")))
                       for address in (self.edu, self.ivshmem, *find(RNG))}
        self.assertNotIn("vfio-pci", [driver for driver, _ in self.before.values()])

    def expect_before(self, *addresses):
        for address in addresses:
            driver, override = self.before[address]
            self.assertEqual(link(address, "driver"), driver)
            self.assertEqual(read(sysfs(address, "driver_override")).replace("(null)", ""), override.replace("(null)", ""))

    def bind(self, *addresses):
        done = self.hmmctl("device", "bind", *addresses)
        self.addCleanup(self.put_back, addresses)
        return done

    def put_back(self, addresses):
        """What was left with vfio-pci."""
        for address in addresses:
            if link(address, "driver") == "vfio-pci":
                self.hmmctl("device", "unbind", address, status=None)

    def test_there_and_back(self):
        cards = (self.edu, self.ivshmem)
        writes = self.hmmctl("device", "bind", "--dry-run", *cards).stdout
        self.assertIn(f"{sysfs(self.edu, 'driver_override')} <- vfio-pci\n", writes)
        self.expect_before(*cards)
        done = self.bind(*cards)
        for address in cards:
            group = link(address, "iommu_group")
            self.assertIn(f"{address} (", done.stdout)
            self.assertIn(f"vfio-pci, /dev/vfio/{group}\n", done.stdout)
            self.assertEqual(link(address, "driver"), "vfio-pci")
            fd = os.open(f"/dev/vfio/{group}", os.O_RDWR)
            status = fcntl.ioctl(fd, VFIO_GROUP_GET_STATUS, struct.pack("II", 8, 0))
            self.assertTrue(struct.unpack("II", status)[1] & VFIO_GROUP_FLAGS_VIABLE, address)
            os.close(fd)
        told = json.loads(self.hmmctl("device", "unbind", "-j", *cards).stdout)
        self.assertEqual([(device["driver_before"], device["driver"]) for device in told["devices"]],
                         [("vfio-pci", self.before[address][0] or "") for address in cards])
        self.expect_before(*cards)
        self.assertFalse(os.path.exists(f"/dev/vfio/{link(self.edu, 'iommu_group')}"))

    def test_one_that_has_a_driver(self):
        if not find(RNG):
            self.skipTest("this machine has no card that nobody needs")
        address = find(RNG)[0]
        self.assertEqual(link(address, "driver"), "virtio-pci")
        self.bind(address)
        self.assertEqual(link(address, "driver"), "vfio-pci")
        self.assertIn("virtio-pci", self.hmmctl("device", "unbind", address).stdout)
        self.expect_before(address)

    def test_one_that_is_open(self):
        """The kernel would wait inside the write, for as long as it is open."""
        self.bind(self.edu)
        path = f"/dev/vfio/{link(self.edu, 'iommu_group')}"
        fd = os.open(path, os.O_RDWR)
        with self.assertRaises(OSError) as raised:
            os.open(path, os.O_RDWR)
        self.assertEqual(raised.exception.errno, errno.EBUSY)
        done = self.hmmctl("device", "unbind", self.edu, status=FAILED)
        self.assertIn(f"{path} is open in process {os.getpid()} (", done.stderr)
        os.close(fd)
        self.hmmctl("device", "unbind", self.edu)
        self.expect_before(self.edu)

    def test_disks_that_are_needed(self):
        with open("/proc/swaps") as file:
            swaps = file.read()
        said = []
        for address in find(DISK):
            # Refused or not, nothing is done: there is no machine without its disk. hmmctl-device has the same without --dry-run.
            self.addCleanup(self.put_back, [address])
            done = self.hmmctl("device", "bind", "--dry-run", address, status=FAILED)
            self.assertEqual(done.stdout, "")
            self.assertEqual(link(address, "driver"), "virtio-pci")
            said.append(done.stderr)
        self.assertTrue(any("which is mounted at /" in text for text in said), said)
        self.assertEqual(any("which is swap" in text for text in said), "/dev/vd" in swaps, said)

    def findings(self):
        return {finding["name"]: finding for finding in json.loads(self.hmmctl("doctor", "-j", status=None).stdout)["findings"]}

    def test_doctor(self):
        self.start_daemon()
        found = self.findings()
        for name in ("iommu", "vfio", "vfio_iommu_type1", f"card {self.edu}"):
            self.assertNotIn(name, found)
        self.bind(self.edu)
        # One finding: it is viable, hmmd may open it, and its addresses are wide enough.
        found = self.findings()[f"card {self.edu}"]
        self.assertEqual(found["severity"], "note", found)
        self.assertIn(f"IOMMU group {link(self.edu, 'iommu_group')} is viable", found["text"])
        self.hmmctl("device", "unbind", self.edu)
        self.assertNotIn(f"card {self.edu}", self.findings())

    def test_the_holder(self):
        self.bind(self.edu)
        done = self.run_client("holder_card", self.edu, link(self.edu, "iommu_group"))
        self.assertEqual(done.stdout, "the card was silenced, and found again\n")
        # All is closed: nothing waits for anybody.
        self.hmmctl("device", "unbind", self.edu)
        self.expect_before(self.edu)


if __name__ == "__main__":
    harness.main()
