# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls and allocations that fail, in hmmd or in the library:
test_calls.py hmmd|library [SCENARIO...] [PLAN... | --all] [--plans] [-j N]

hmmd_inject and inject-client-failing have calls.c between them and libc. A scenario is first run as it is, to learn how often
each call is made. Then the Nth of them fails, with an error that the kernel may answer at any time, once or ten times in a row; and
in a storm EINTR, EAGAIN or short counts come again and again. Which, and under which scenarios, is chosen at random; with --all it is each call, each
error, and each N where there are no more than WHOLE, of more MANY that chance chooses. What has to hold then is in scenarios.py.
N runs at a time; --plans only counts them. What has failed is run again as it was called there: a PLAN.
"""

import functools
import os
import re
import struct
import subprocess
import sys
import time
import unittest

import scenarios
from scenarios import harness

WHERE = sys.argv[1]
scenarios.Test.jobs, OPTIONS, CHOSEN, GIVEN = scenarios.options(sys.argv[2:])
ALL, ONLY_COUNT = (f"--{word}" in OPTIONS for word in ("all", "plans"))
PROGRAM = {"hmmd": harness.binary("hmmd"), "library": scenarios.FAILING}[WHERE]
# What is called more often than that is not failed each time, but so often.
WHOLE, MANY = 500 if ALL else 60, 60
# By default: so many scenarios, and of each so many plans and a storm.
SCENARIOS, PLANS = (2, 4) if harness.SANITIZE else (4, 7)
# Where a failure once left somebody waiting for ever, or bytes lost: each N, or these, every time.
FOUND = {"hmmd": [("travel", "dup:EMFILE", None), ("drain", "uv_poll:ENOMEM", None), ("travel", "calloc:ENOMEM", range(10, 20)),
                  ("access", "malloc:ENOMEM", range(56, 64)), ("farfork", "send:ENOBUFS", range(30, 54, 3))],
         "library": [("travel", "thread:EAGAIN", None), ("travel", "mmap:ENOMEM", None), ("share", "recv:LOST", None),
                     ("crowded", "arena:ENOMEM", range(248, 263), ":10"),
                     ("access", "arena:ENOMEM", range(56, 66)), ("farfork", "arena:ENOMEM", range(156, 172)),
                     ("farfork", "send:ENOBUFS", range(26, 36, 2))]}[WHERE]

# What hmmd does by its table of kernel calls fails there, in test_inject.py.
BY_TABLE = {"uffd_register", "uffd_unregister", "uffd_copy", "uffd_zero", "uffd_move", "uffd_protect", "uffd_continue",
            "uffd_poison", "uffd_read", "pagemap_scan", "procmap_query", "process_madvise", "populate", "fallocate",
            "memfd", "ftruncate", "mempolicy"} if WHERE == "hmmd" else set()

# What the two import and is not made to fail, by why not.
NOT_FAILED = {
    "asks for nothing that there might not be":
        "clock_gettime getpid geteuid sched_yield getsockopt getsockname getrlimit64 sysconf fstat64 fstatfs64 lseek64 isatty umask"
        " access shutdown getrandom setsid flock pthread_self pthread_join pthread_detach pthread_timedjoin_np pthread_sigmask"
        " pthread_setname_np pthread_mutex_init pthread_mutex_destroy pthread_mutex_lock pthread_mutex_unlock pthread_attr_init"
        " pthread_cond_init pthread_cond_destroy pthread_cond_wait pthread_cond_timedwait pthread_cond_signal pthread_cond_broadcast"
        " pthread_mutex_trylock gettid sigaction siglongjmp __sigsetjmp sigtimedwait timer_settime timer_delete"
        " pthread_condattr_init pthread_condattr_destroy pthread_condattr_setclock"
        " pthread_attr_destroy pthread_attr_setstack pthread_attr_getstack pthread_setspecific sigprocmask sigaddset sigdelset"
        " sigemptyset sigfillset eventfd_read eventfd_write munlock prctl close free",
    "is done once for all, at the start, for a file that is there or not":
        "bind listen chmod chown mkdir unlink lstat64 stat64 fchmod signal dup dup2 fopen64 fdopen ferror fgets fclose fread rewind opendir"
        " readdir64 closedir scandir64 __getdelim getgrnam localtime_r pthread_key_create pthread_getattr_np __register_atfork"
        " pthread_atfork dl_iterate_phdr get_mempolicy",
    "is for the doctor and for cards, which have tests of their own": "usleep fork waitpid recv signalfd posix_spawn"
        " posix_spawn_file_actions_init posix_spawn_file_actions_adddup2 posix_spawn_file_actions_destroy close_range ptrace",
    "is of the table of kernel calls": "mbind set_mempolicy",
    "gives back": "io_uring_queue_exit io_uring_peek_batch_cqe _exit",
}
# Only bytes and words.
PURE = set("""memcpy memset memmove memcmp memchr strchr strcmp strcpy strcspn strerror strlen strncmp strnlen strrchr strsep strspn
    strstr strtol strtoul strtoull strftime snprintf vsnprintf fprintf vfprintf fputc fwrite qsort basename dirname getenv secure_getenv
    unsetenv environ stderr program_invocation_short_name __progname __errno_location __ctype_b_loc __isoc99_sscanf __isoc23_sscanf
    __isoc23_strtol __isoc23_strtoul __isoc23_strtoull __assert_fail __popcountdi2 __tls_get_addr _GLOBAL_OFFSET_TABLE_""".split())


@functools.cache
def calls():
    """name -> what it may answer."""
    told = subprocess.run([PROGRAM, "none"], env=dict(os.environ, HMM_CALLS="list"), stdout=subprocess.PIPE, text=True, check=True)
    return {name: errors for name, *errors in (line.split() for line in told.stdout.splitlines())}


def names(archive, *options):
    told = subprocess.run(["nm", *options, os.path.join(harness.BINARY, archive)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          check=True)
    return {line.split()[-1] for line in told.stdout.splitlines() if line.strip() and not line.endswith(":")}


@unittest.skipIf(harness.SANITIZE, "looked at in the plain build: a sanitizer brings names of its own")
class Imports(unittest.TestCase):
    def test_every_call_is_considered(self):
        """A function of libc that is newly called is wrapped, or has a reason not to be."""
        archive = {"hmmd": "daemon/libhmmd_core.a", "library": "libclient/libhmmclient.a"}[WHERE]
        imported = names(archive, "-u") - names(archive, "--defined-only")
        with open(os.path.join(harness.SOURCE, "tests", "inject", "CMakeLists.txt")) as file:
            wrapped = set(" ".join(re.findall(r"set\(wrapped\w* ([^)]*)\)", file.read())).split())
        known = wrapped | PURE | set(" ".join(NOT_FAILED.values()).split())
        # libuv: what may fail is uv_poll_init(); where it finds no memory itself, it aborts.
        unknown = {name for name in imported - known if not re.match(r"uv_|hmm_|__(.*)_chk$|__stack_chk_fail$|__gcov|__stack", name)}
        self.assertFalse(unknown)
        self.assertTrue({"ioctl", "syscall", "mmap64", "recvmsg"} <= imported)


class Calls(scenarios.Test):
    def run_plan(self, scenario, plan=""):
        report = os.path.join(self.folder, "report")
        if os.path.exists(report):
            os.unlink(report)
        environment = {"HMM_CALLS": plan, "HMM_CALLS_REPORT": report}
        try:
            if WHERE == "hmmd":
                self.run_scenario(scenario, of_hmmd=environment)
            else:
                self.run_scenario(scenario, of_library=environment)
        except AssertionError as error:
            raise AssertionError(f"{plan} {error}") from None
        with open(report, "rb") as file:
            return {name.rstrip(b"\0").decode(): count for name, count in struct.iter_unpack("<24sQ", file.read())}

    def chosen(self, count):
        if count <= WHOLE:
            return range(1, count + 1)
        return sorted({1, *(self.random.randint(1, count) for _ in range(MANY))})

    def plans(self, count, call, errors):
        for error in errors:
            for n in self.chosen(count):
                yield f"{call}:{error}:{n}"
            yield f"{call}:{error}:{self.random.randint(1, count)}:10"

    def run_all(self, scenario, plans):
        failures = in_vain = 0
        begun = time.monotonic()
        for _, counts in self.run_plans(scenario, plans):
            failures += counts["failed"]
            in_vain += not counts["failed"]
        print(f"{scenario}: {failures} failures in {len(plans)} runs of {WHERE}, of which {in_vain} never came to theirs, in "
              f"{time.monotonic() - begun:.0f} s; {dict(scenarios.Test.answers)}", flush=True)

    def check(self, scenario):
        if GIVEN:
            self.run_all(scenario, GIVEN)
            return
        counts = self.run_plan(scenario)
        plans = [plan for call, errors in calls().items() if counts[call] and call not in BY_TABLE
                 for plan in self.plans(counts[call], call, errors)]
        storms = [f"storm:{error}:{percent}:{self.random.getrandbits(31)}" for error in ("EINTR", "EAGAIN", "SHORT") for percent in (30, 3)]
        if not ALL:
            plans, storms = self.random.sample(plans, PLANS), self.random.sample(storms, 1)
        many = [call for call, errors in calls().items() if ALL and counts[call] > WHOLE and call not in BY_TABLE]
        print(f"{scenario}: {len(plans) + len(storms)} runs, {scenarios.Test.jobs} at a time"
              f"{'; only so many of each: ' * bool(many)}{', '.join(f'{MANY} of {counts[call]} {call}' for call in many)}", flush=True)
        if ONLY_COUNT:
            return
        self.run_all(scenario, plans + storms)

    def test_found(self):
        for scenario, found, chosen, *times in FOUND if not CHOSEN else ():
            count = self.run_plan(scenario)[found.split(":")[0]]
            numbers = [n for n in chosen or range(1, count + 1) if n <= count]
            self.assertTrue(numbers)
            self.run_all(scenario, [f"{found}:{n}{''.join(times)}" for n in ([numbers[0], numbers[-1]] if harness.SANITIZE else numbers)])

    def test_some(self):
        """Scenarios that chance chooses, or the command line."""
        for scenario in CHOSEN or (scenarios.SCENARIOS if ALL else self.random.sample(scenarios.SCENARIOS, SCENARIOS)):
            self.check(scenario)

if __name__ == "__main__":
    del sys.argv[1:]
    harness.main()
