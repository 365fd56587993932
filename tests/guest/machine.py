# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated machine: QEMU's command line, and one run of it from power on to power off.

One processor, two NUMA nodes, a third one that is a dax device (half of it a file, half memory: init), an IOMMU with
48-bit addresses, QEMU's teaching card `edu`, a card whose memory can be mapped (`ivshmem-plain`), one more of each that
can be taken out of its slot, a disk, swap. Everything it writes is in `room`; nothing of it outlives run().

A test may have something done to the machine that it runs in: it puts a command of QEMU's machine protocol into the
file `ask` where the results go, whole at once (rename), and the answer comes in `answer`.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

QEMU = "qemu-system-x86_64"
PR_SET_PDEATHSIG = 1
TAIL_LINES = 40
# From power on to the first line of init, on a machine that is busy with other things.
START_SECONDS = 240
# What can be taken out of its slot, by device_del and its name; tests/integration/vfio_card.py puts it back.
PLUGGED = {
    "spare-edu": {"driver": "edu", "bus": "slot0", "dma_mask": "0xffffffffffffffff"},
    "spare-ivshmem": {"driver": "ivshmem-plain", "bus": "slot1", "memdev": "spare-bar"},
}

# An emulated machine that has to wait for a processor looks to the kernel as if its timers were broken.
KERNEL_WORDS = ["console=ttyS0", "panic=-1", "unknown_nmi_panic", "nokaslr", "mitigations=off", "tsc=reliable", "no_timer_check"]

libc = ctypes.CDLL(None, use_errno=True)


def _machine(memory_mb, processors=1):
    return [QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-machine", "q35", "-accel", "tcg", "-cpu", "max,la57=off", "-smp", str(processors), "-m", f"{memory_mb}M"]


def _shares_and_start(kernel, initrd, room, results, shell, kernel_words):
    """The machine's files and where the results go; what is booted; how one talks with it."""
    return ["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
            "-virtfs", f"local,path={results},mount_tag=results,security_model=none",
            "-kernel", f"{kernel}/vmlinuz", "-initrd", initrd, "-append", " ".join(kernel_words),
            "-qmp", f"unix:{room}/qmp,server=on,wait=off",
            *(["-serial", "mon:stdio"] if shell else ["-serial", f"file:{room}/console"])]


def systemd_command(kernel, initrd, room, results, shell, root, memory_mb=2048):
    """QEMU's words for a machine that Debian's systemd boots from root; what is written there goes with the run."""
    kernel_words = [*KERNEL_WORDS, "loglevel=4", "rdinit=/init", "rw", "systemd.show_status=no", "systemd.log_level=notice"]
    return [*_machine(memory_mb, 2), "-drive", f"if=none,id=root,file={root},format=raw,snapshot=on",
            "-device", "virtio-blk-pci,drive=root", "-device", "virtio-rng-pci",
            *_shares_and_start(kernel, initrd, room, results, shell, kernel_words)]


def command(kernel, initrd, room, results, shell, memory_mb=4096, dax_mb=512, hugepages=32, disk_mb=4096, swap_mb=512):
    """QEMU's words. The disks are sparse files in room, made here."""
    for name, size in (("disk", disk_mb), ("swap", swap_mb)):
        with open(f"{room}/{name}", "wb") as file:
            file.truncate(size << 20)
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1,nodiscard", f"{room}/disk"], check=True,
                   stdin=subprocess.DEVNULL)
    half = memory_mb // 2
    kernel_words = [*KERNEL_WORDS, "quiet" if shell else "loglevel=5", "intel_iommu=on", f"hugepages={hugepages}",
                    # All of the third node: what firmware calls set aside for a special purpose, here above 4 GiB and the
                    # second half.
                    f"memmap={dax_mb}M%{4096 + half}M-1+0xefffffff", "memhp_default_state=online_movable", "rdinit=/init"]
    words = _machine(memory_mb + dax_mb)
    for node, size in enumerate((half, half, dax_mb)):
        words += ["-object", f"memory-backend-ram,id=node{node},size={size}M",
                  "-numa", f"node,nodeid={node},memdev=node{node}" + (",cpus=0" if node == 0 else "")]
    words += ["-device", "intel-iommu,aw-bits=48",
              "-device", "edu,dma_mask=0xffffffffffffffff",
              "-object", "memory-backend-ram,id=bar,size=64M,share=on", "-device", "ivshmem-plain,memdev=bar",
              "-object", "memory-backend-ram,id=spare-bar,size=64M,share=on",
              "-device", "virtio-rng-pci"]
    for number, (name, device) in enumerate(PLUGGED.items()):
        words += ["-device", f"pcie-root-port,id={device['bus']},chassis={number},slot={number}",
                  "-device", ",".join([device["driver"], f"id={name}", *(f"{key}={value}" for key, value in device.items()
                                                                        if key != "driver")])]
    for name in ("disk", "swap"):
        words += ["-drive", f"if=none,id={name},file={room}/{name},format=raw,cache=unsafe",
                  "-device", f"virtio-blk-pci,drive={name}"]
    return words + _shares_and_start(kernel, initrd, room, results, shell, kernel_words)


def tail(path, lines=TAIL_LINES):
    try:
        with open(path, errors="replace") as file:
            text = file.read()
    except OSError:
        return []
    # The firmware moves the cursor about.
    text = re.sub(r"\x1b[\[c][0-9;?=]*[A-Za-z]?|[\r\0]", "", text)
    return [line for line in text.splitlines() if line.strip()][-lines:]


def diagnose(console, ended, seconds, gave_up, status):
    """Why a guest did not get to its end, from what its console says; None if it did. gave_up: this side ended it."""
    if ended:
        return None
    text = "\n".join(tail(console, 400))
    panic = re.search(r"Kernel panic[^\n]*", text)
    failed = re.search(r"guest: cannot start: [^\n]*", text)
    if panic and not gave_up:
        return f"the kernel gave up: {panic.group(0)}"
    if failed:
        return failed.group(0)
    if gave_up:
        return f"no end after {seconds:.0f} s" if "guest: up" in text else f"it did not come up in {seconds:.0f} s"
    return f"the machine stopped after {seconds:.0f} s, QEMU's status {status}"


class Machine:
    def __init__(self, words, room, results=None):
        self.words = words
        self.room = room
        self.results = results
        self.console = f"{room}/console"
        self.status = None
        self.gave_up = False
        self.process = None
        self._shown = 0

    @staticmethod
    def _die_with_parent():
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def _progress(self, say):
        """New whole lines of the console that are meant for the reader."""
        try:
            with open(self.console, "rb") as file:
                file.seek(self._shown)
                text = file.read()
        except OSError:
            return
        whole = text[:text.rfind(b"\n") + 1]
        self._shown += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if "guest: " in line:
                say(line.partition("guest: ")[2].strip())

    def ask(self, command, **arguments):
        """One command of QEMU's machine protocol."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(10)
            link.connect(f"{self.room}/qmp")
            with link.makefile("rw") as file:
                file.readline()
                for words in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                    file.write(json.dumps(words) + "\n")
                    file.flush()
                    answer = json.loads(file.readline())
                    # Events come in between.
                    while "event" in answer:
                        answer = json.loads(file.readline())
        return answer

    def attend(self):
        """What a test in the guest has asked for, if anything."""
        asked, answered = f"{self.results}/ask", f"{self.results}/answer"
        if not self.results or not os.path.exists(asked):
            return
        try:
            with open(asked) as file:
                words = json.load(file)
            answer = self.ask(words["execute"], **words.get("arguments", {}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            answer = {"error": {"desc": f"{asked}: {error}"}}
        os.unlink(asked)
        with open(f"{answered}.new", "w") as file:
            json.dump(answer, file)
        os.rename(f"{answered}.new", answered)

    def make_it_tell(self):
        """A guest that hangs: an interrupt that cannot be masked makes the kernel print where it is, and give up."""
        try:
            self.ask("inject-nmi")
            self.process.wait(20)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            pass

    def run(self, limit, say):
        """From power on to power off, or to the limit. Returns the seconds it took."""
        started = time.monotonic()
        with open(f"{self.room}/qemu.log", "wb") as log:
            self.process = subprocess.Popen(self.words, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            preexec_fn=self._die_with_parent)
        try:
            while self.process.poll() is None and time.monotonic() - started < limit:
                time.sleep(0.25)
                self._progress(say)
                self.attend()
                if not self._shown and time.monotonic() - started > START_SECONDS:
                    break
            self.gave_up = self.process.poll() is None
            if self.gave_up:
                self.make_it_tell()
        finally:
            self.stop()
        self._progress(say)
        return time.monotonic() - started

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process:
            self.status = self.process.returncode


def available():
    return shutil.which(QEMU)
