# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests do inside a Debian that its systemd has booted: commands as another user, units, hmmd as one of them."""

import glob
import os
import pwd
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "integration"))
import harness  # noqa: E402

LOCAL = "/etc/hmmd/hmmd.conf.d/50-local.conf"


def run(*command, user=None, status=0, **options):
    """A command's output, both streams; fails unless it ends so."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          **as_user(user), **options)
    if status is not None and done.returncode != status:
        raise AssertionError(f"{' '.join(command)} ended with status {done.returncode}, not {status}:\n{done.stdout}")
    return done.stdout


def as_user(name):
    """What subprocess needs to know."""
    if not name:
        return {}
    entry = pwd.getpwnam(name)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(name, entry.pw_gid), "cwd": "/tmp"}


def install(*packages):
    return run("dpkg", "-i", *(glob.glob(f"{harness.BINARY}/debian/{name}_*.deb")[0] for name in packages),
               env=dict(os.environ, DEBIAN_FRONTEND="noninteractive"))


def show(unit, name):
    return run("systemctl", "show", "-P", name, unit).strip()


def main_pid():
    return int(show("hmmd.service", "MainPID"))


def journal():
    return run("journalctl", "--no-pager", "-o", "cat", "-u", "hmmd.service")


def patient(condition):
    """Asked now and then: whoever asks takes the processor from those whom he asks about."""
    def asked():
        time.sleep(0.3)
        return condition()
    return asked


def wait_for_another(old):
    """That another hmmd than the one with this pid serves."""
    harness.wait_until(patient(lambda: show("hmmd.service", "ActiveState") == "active" and main_pid() not in (0, old)), 30,
                       "that another hmmd serves")


def kill():
    pid = main_pid()
    os.kill(pid, signal.SIGKILL)
    wait_for_another(pid)


def restart():
    pid = main_pid()
    run("systemctl", "restart", "hmmd.service")
    wait_for_another(pid)


def upgrade():
    pid = main_pid()
    install("hmmd")
    wait_for_another(pid)


def reload():
    run("systemctl", "reload", "hmmd.service")


def configure(text):
    with open(LOCAL, "w") as file:
        file.write(text)
