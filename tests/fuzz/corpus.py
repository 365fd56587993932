#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""corpus.py FOLDER: writes what connection_fuzz.c begins with: conversations as clients have them, each of a few messages, in the
format that connection_fuzz.c describes. Message by message they are built from proto/protocol.hmm, so that after a change of the
schema this is run again. (What fuzzers found on top of them is kept in corpus/found.)"""

import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
from wire_schema import REQUESTS, body      # noqa: E402

PAGE, BLOCK = 4096, 2 << 20
HOME, SLOTS, ELSEWHERE = 0x500000000000, 0x500100000000, 0x500200000000
NULL, PIPE, SOCKET, EVENTFD, MEMFD, SEALED, SHORT, FOLDER = 0, 1, 3, 4, 5, 6, 7, 9
UFFD, UFFD_2, UFFD_3, MEM, PAGEMAP, MAPS, SMAPS = range(17, 24)
OTHERS_UFFD, OTHERS_MEM = 25, 28
GIVEN = 32
MIRROR, WINDOW = 1 << 8, 1 << 16 | 1


def say(name, /, fds=(), who=0, wait=True, tail=b"", **values):
    data = body(name, tail, **values)
    return (bytes([who << 2 | (0 if wait else 16)]) + struct.pack("<HB", REQUESTS[name].opcode, len(fds)) + bytes(fds) +
            struct.pack("<H", len(data)) + data)


def act(what, block=0, who=0):
    return bytes([2 | who << 2, block << 4 | what])


def meddle(fd, how, offset=0, value=0, who=0):
    return bytes([3 | who << 2, fd, how]) + struct.pack("<IQ", offset, value)


def raw(data, fds=(), who=0):
    return bytes([8 | who << 2]) + struct.pack("<HB", 0, len(fds)) + bytes(fds) + struct.pack("<H", len(data)) + data


PROC = (MEM, PAGEMAP, MAPS, SMAPS)
OPEN = say("open", (UFFD, *PROC), slots_addr=SLOTS, slots_count=4, agent_tid=1)
DEVICE = say("device_new", pool=1, node=-1, size=8 << 20, caps=1, name="d")
REGISTER = say("mirror_register", owner=1, device=1, flags=0)
CALLED = say("mirror_register", owner=1, device=1, flags=1)
MIRRORED = OPEN + DEVICE + REGISTER
OUT = say("migrate", mirror=MIRROR, target=1, addr=(HOME, BLOCK))
BACK = say("migrate", mirror=MIRROR, target=0, addr=(HOME, BLOCK))
KEY = say("export", (MEMFD,), owner=1) + say("open_peer", (MEMFD,), who=1)
DRIVEN = KEY + say("device_new", who=1, pool=1, node=-1, size=4 << 20, caps=1, name="driver")
WINDOWED = say("window_map", (UFFD_2,), who=1, mirror=MIRROR, addr=(HOME, 2 * BLOCK), at=HOME, flags=0)
HOLD = dict(hold=1, hold_start=HOME, hold_end=HOME + BLOCK)
TRACK = say("track_open", (UFFD_3,), owner=1)


def track(**values):
    """Asked for twice: at first hmmd asks the owner for its userfaultfd."""
    start = say("dirty_start", owner=1, addr=(HOME, BLOCK), **values)
    return start + TRACK + start


def conversations():
    lists = b"".join(say(name, who=1) for name in ("clients", "owners", "mirrors", "pools", "doctor"))
    yield "lists", MIRRORED + say("status") + lists + say("stats", owner=1) + say("feature", feature=1)
    yield "open-plain", say("open", (UFFD, *PROC), who=1, slots_addr=SLOTS, slots_count=4, agent_tid=1)
    yield "open-of-another", say("open", (OTHERS_UFFD, *PROC), slots_addr=SLOTS, slots_count=4)
    yield "open-others-mem", say("open", (UFFD, OTHERS_MEM, *PROC[1:]), slots_addr=SLOTS, slots_count=4)
    yield "open-twice", OPEN + say("open", (UFFD_2, *PROC), slots_addr=SLOTS, slots_count=4)
    for kind in (NULL, PIPE, SOCKET, EVENTFD, MEMFD, SEALED, SHORT, FOLDER, GIVEN):
        yield f"open-{kind}", OPEN + say("open", (kind, *PROC), slots_addr=SLOTS) + say("export", (kind,), owner=1)
    yield "migrate", MIRRORED + OUT + act(6) + BACK + say("drain", owner=1, device=1)
    yield "migrate-while-it-changes", MIRRORED + OUT + act(0) + act(1, 1) + act(2, 1) + act(5) + BACK
    yield "no-agent", act(15) + MIRRORED + OUT + act(6) + BACK
    yield "access", (MIRRORED + say("device_write", mirror=MIRROR, addr=HOME, tail=b"hostile!") +
                     say("device_read", mirror=MIRROR, addr=HOME, length=64) +
                     say("device_read", mirror=MIRROR, addr=HOME + 4 * BLOCK, length=64))
    yield "window-of-its-own", MIRRORED + say("window_map", (UFFD_2,), mirror=MIRROR, addr=(HOME, BLOCK), at=HOME)
    yield "windows", (OPEN + DRIVEN + say("mirror_register", who=1, owner=1, device=1, flags=0) + WINDOWED +
                      say("window_armed", who=1, window=WINDOW) + OUT + act(6, who=1) + act(6) + act(0, 1, who=1) +
                      say("window_unmap", who=1, window=WINDOW))
    yield "windows-of-a-driver-that-goes", (OPEN + DRIVEN + say("mirror_register", who=1, owner=1, device=1, flags=1) + OUT + WINDOWED +
                                            say("window_armed", who=1, window=WINDOW) + act(6, who=1) + meddle(0, 5, 0, 1, who=1) + BACK)
    yield "window-of-another", MIRRORED + KEY + say("window_map", (UFFD,), who=1, mirror=MIRROR, addr=(HOME, BLOCK), at=HOME)
    yield "alloc", (MIRRORED + say("alloc", mirror=MIRROR, addr=(ELSEWHERE, BLOCK)) + act(6) +
                    say("alloc", mirror=MIRROR, addr=(HOME, BLOCK)) + say("free", mirror=MIRROR, addr=(ELSEWHERE, BLOCK)))
    yield "share", (MIRRORED + say("share", mirror=MIRROR, addr=(HOME, BLOCK)) + act(6) +
                    say("unshare", mirror=MIRROR, addr=(HOME, BLOCK)))
    yield "driver", (OPEN + DRIVEN + say("mirror_register", who=1, owner=1, device=1, flags=1) +
                     say("migrate", who=1, mirror=MIRROR, target=1, addr=(HOME, 2 * BLOCK)) + act(6) +
                     say("ack", who=1, cookie=1) + say("mirror_ready", who=1, mirror=MIRROR) +
                     say("mirror_unregister", who=1, mirror=MIRROR))
    for number in (1, 2, 3, 4, 5, 16, 17, 18, 19, 20, 21, 22):
        yield f"advise-{number}", (MIRRORED + say("advise", owner=1, advice=number, addr=(HOME, BLOCK), mirror=MIRROR, value=1) +
                                   say("attribute", owner=1, addr=(HOME, BLOCK)) + say("attributes", owner=1))
    yield "restate", OPEN + say("restate", owner=1, tail=struct.pack("<QQQIIiiII", HOME, HOME + BLOCK, 1, 0, 0, 0, 0, 0, 0))
    yield "range", (MIRRORED + say("range_fault", mirror=MIRROR, addr=(HOME, 4 * PAGE), flags=0, page_shift=12, tail=b"\1\3\1\1", **HOLD) +
                    say("range_fault", mirror=MIRROR, addr=(HOME, 4 * PAGE), flags=1, page_shift=12, **HOLD) + act(4) +
                    say("range_release", mirror=MIRROR, hold=1))
    yield "no-faults", (OPEN + say("device_new", pool=1, node=-1, size=8 << 20, caps=0, name="d") + CALLED +
                        say("range_fault", mirror=MIRROR, addr=(HOME, 4 * PAGE), flags=2, page_shift=12, tail=b"\3\3\3\3", **HOLD) +
                        act(0) + say("ack", cookie=1) + say("range_release", mirror=MIRROR, hold=1))
    yield "dma", (OPEN + say("device_new", pool=1, node=-1, size=8 << 20, caps=4, name="d") + REGISTER +
                  say("dma_map", mirror=MIRROR, addr=(HOME, BLOCK), write=1, **HOLD) + say("dma_unmap", mirror=MIRROR, hold=1) +
                  say("device_fd", device=1))
    yield "notices", (MIRRORED + say("notices_open", owner=1, entries=64, mask=0) + OUT + act(6) + BACK + meddle(GIVEN + 7, 0, 0, 1 << 63) +
                      OUT + say("notices_close", owner=1, notices=1))
    yield "tracking", (MIRRORED + track() + act(6) +
                       say("dirty_read", owner=1, dirty=1, addr=(HOME, BLOCK), flags=1) +
                       say("dirty_mark", mirror=MIRROR, addr=(HOME, PAGE)) + say("dirty_stop", owner=1, dirty=1))
    yield "tracked", (OPEN + DEVICE + say("mirror_register", owner=1, device=1, flags=2) +
                      track(mirror=MIRROR) +
                      say("mirror_sync", owner=1, dirty=1, addr=(HOME, BLOCK)) + say("copy_open", owner=1, dirty=1, addr=HOME) +
                      meddle(GIVEN + 5, 2, 0, BLOCK) + say("dirty_stop", owner=1, dirty=1))
    yield "fork", MIRRORED + OUT + say("prepare_fork", owner=1, fork=1) + act(7) + say("forked", owner=1, fork=1) + act(7) + OUT
    yield "protect", MIRRORED + OUT + act(3) + say("protect", owner=1, addr=(HOME, BLOCK)) + act(4) + say("protect", owner=1, addr=(HOME, BLOCK))
    yield "exclude", MIRRORED + say("exclude", owner=1, addr=(HOME, BLOCK)) + OUT + say("exclude", owner=1, include=1, addr=(HOME, BLOCK)) + OUT
    yield "exclusive", (MIRRORED + say("migrate", mirror=MIRROR, target=1, addr=(HOME, BLOCK), flags=0x11) +
                        say("exclusive_end", mirror=MIRROR, addr=(HOME, BLOCK)))
    yield "look", (MIRRORED + say("layout", owner=1) + say("ranges", owner=1, end=1 << 47) +
                   say("cells", owner=1, cells=16, addr=(HOME, 4 * BLOCK)))
    far = (OPEN + KEY + say("device_new", who=1, pool=1, node=-1, size=2 << 20, caps=9, name="far") +
           say("devmem_add", who=1, device=1, token=7, pool=2 << 20, pages=512) + say("mirror_register", who=1, owner=1, device=1, flags=1) +
           say("devmem_ready", who=1, mirror=MIRROR, token=7) + say("migrate", mirror=MIRROR, target=1, addr=(HOME, BLOCK), wait=False) +
           say("status") + say("status", who=1))
    stored = say("devmem_stored", who=1, mirror=MIRROR, cookie=1, tail=struct.pack("<512I", *range(512)))
    yield "devmem-stored", (far + stored + act(6) + say("status", who=1) +
                            say("devmem_fetched", who=1, mirror=MIRROR, cookie=1, tail=bytes([0, 1, 2, 0])) +
                            say("devmem_remove", who=1, device=1, pool=2 << 20))
    yield "devmem-twice", far + stored + stored + say("devmem_stored", who=1, mirror=MIRROR, cookie=1, tail=struct.pack("<2I", 5, 5)) + BACK
    yield "devmem-unasked", OPEN + DRIVEN + say("devmem_ready", who=1, mirror=MIRROR, token=1) + stored
    yield "reopen", (MIRRORED + say("reopen", (UFFD, *PROC, GIVEN + 1, GIVEN + 2, GIVEN + 3, GIVEN + 4, GIVEN + 5), owner=1,
                                    incarnation=1, slots_addr=SLOTS, slots_count=4, mirrors=1) +
                     say("reopen_mirror", owner=1, mirror=0, device="d") +
                     say("reopen_region", (GIVEN + 6,), owner=1, mirror=0, base=HOME) +
                     say("reopen_done", owner=1, tail=struct.pack("<I", 1)))
    yield "reopen-forged", say("reopen", (UFFD, *PROC, 15, 15, 15, 15, EVENTFD), owner=1, slots_addr=SLOTS, slots_count=4)
    yield "orders", MIRRORED + say("migrate", mirror=MIRROR, target=1, addr=(HOME, BLOCK), wait=False) + b"".join(
        meddle(GIVEN + 3, 0, offset, value) for offset in range(0, 192, 8) for value in (0, 0x0000000100000001)) + meddle(GIVEN + 5, 0, 0, 1)
    yield "pulse", MIRRORED + meddle(GIVEN + 4, 0, 0, 1) + OUT
    yield "shrink", MIRRORED + OUT + b"".join(meddle(GIVEN + i, how, 0, 1 << 20) for i in range(7) for how in (1, 2, 3, 4))
    yield "hung-up", MIRRORED + say("migrate", mirror=MIRROR, target=1, addr=(HOME, BLOCK), wait=False) + meddle(0, 5, 0, 1)
    yield "slots-gone", MIRRORED + act(8) + OUT + act(6)
    yield "header", raw(struct.pack("<IHHII", 24, 28, 0, 1, 0) + bytes(8)) + raw(struct.pack("<IHHII", 16, 28, 3, 1, 0), (0, 1))
    yield "no-message", raw(b"") + raw(b"\1" * 15, who=1)
    for name, message in sorted(REQUESTS.items()):
        fds = (UFFD, *PROC, *range(GIVEN, GIVEN + 5))[:message.fds[0]]
        yield f"one-{name}", MIRRORED + say(name, fds)


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    for name, data in conversations():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)


if __name__ == "__main__":
    main()
