# SPDX-License-Identifier: GPL-2.0-or-later
"""
hmmd is killed while S pages lie on two devices, and comes back or does not; or it lives, and a driver's connection does
not: neither window shows old bytes, and what is stored there is not lost.
"""

import os
import signal
import time

import control_wire as wire
import harness


class Several(harness.Test):
    daemon_args = ["--pool", "memfd-huge"]

    def begin(self, *args):
        self.start_daemon(*args)
        owner = self.spawn("mirror-several", "outage")
        owner.expect("^shared$")
        return owner

    def test_killed_then_written(self):
        owner = self.begin()
        for _ in range(4):
            self.daemon.restart()
            owner.ask("write")
            owner.ask("read")
            self.daemon.restart()
            owner.ask("read")
            owner.ask("share")
        owner.finish()

    def test_written_while_there_is_none(self):
        """The write waits for the new one, the windows go on meanwhile."""
        owner = self.begin()
        for _ in range(4):
            self.daemon.kill9()
            owner.send("write")
            time.sleep(self.random.uniform(0, 0.3))
            self.daemon.start()
            owner.expect("^done$", 60)
            owner.ask("read")
            owner.ask("share")
        owner.finish()

    def test_killed_at_any_moment(self):
        owner = self.begin()
        for _ in range(12):
            owner.send(self.random.choice(["share", "write", "read"]))
            time.sleep(self.random.uniform(0, 0.02))
            self.daemon.restart()
            owner.expect("^done$", 60)
            owner.ask("read")
        owner.finish()

    def test_windows_mapped_at_any_moment(self):
        """hmmd is replaced while drivers map windows, look through them and unmap them: each shows what there is."""
        owner = self.begin()
        for _ in range(12):
            owner.send("map")
            time.sleep(self.random.uniform(0, 0.03))
            self.daemon.restart()
            owner.expect("^done$", 60)
            owner.ask("read")
        owner.ask("map")
        owner.finish()

    def test_rescued(self):
        """Nobody comes back: the windows are closed before the owner may write."""
        owner = self.begin("--grace", f"{harness.scaled(2000):.0f}ms")
        self.daemon.kill9()
        owner.ask("write")
        owner.ask("closed")
        owner.kill9()

    def test_read_while_there_is_none(self):
        """What lies in a window is there without hmmd."""
        owner = self.begin()
        self.daemon.kill9()
        owner.ask("read")
        self.daemon.start()
        owner.ask("write")
        owner.ask("read")
        owner.finish()


class Severed(harness.Test):
    """A driver lives, hmmd lives, and there is no connection between the two for a while."""

    daemon_args = ["--pool", "memfd-huge"]
    CONNECTIONS = 8
    strangers = ()

    def begin(self, *args):
        path = os.path.join(self.folder, "limits.conf")
        with open(path, "w") as file:
            file.write(f"[limits]\nconnections = {self.CONNECTIONS}\n")
        self.start_daemon("--config", path, *args)
        self.owner = self.spawn("mirror-several", "outage")
        self.owner.expect("^shared$")
        return self.owner

    def tearDown(self):
        self.admit()
        super().tearDown()

    def fill(self):
        """Nobody else of this user is let in."""
        while len(self.strangers) < self.CONNECTIONS:
            client = wire.Client(self.daemon.socket, hello=False)
            try:
                answer = client.hello()
            except OSError:
                answer = None
            if answer is None or answer.is_error:
                client.close()
                return
            answer.close()
            self.strangers += (client,)
        self.fail("there is no limit")

    def driver(self):
        """The second, which the owner has started last."""
        with open(f"/proc/{self.owner.pid}/task/{self.owner.pid}/children") as file:
            return int(file.read().split()[-1])

    def state_of_thread(self, name):
        folder = f"/proc/{self.driver()}/task"
        for thread in os.listdir(folder):
            with open(f"{folder}/{thread}/stat") as file:
                found, _, rest = file.read().partition("(")[2].rpartition(")")
            if found == name:
                return rest.split()[0]
        self.fail(f"no thread {name}")

    def cut(self):
        if not harness.sever(self.driver(), self.daemon.socket):
            self.skipTest("this kernel has no descriptors for single threads (Linux 6.9)")

    def sever(self):
        """Its driver goes on without a connection, and can't have another one."""
        before = len(self.strangers)
        with harness.stopped(self.driver()):
            self.cut()
            harness.wait_until(lambda: self.fill() or len(self.strangers) > before, 20, "that its place is free")

    def admit(self):
        for client in self.strangers:
            client.close()
        self.strangers = ()

    def await_return(self):
        def is_back():
            clients = self.hmmctl_json("clients")["clients"]
            return [client["windows"] for client in clients if client["pid"] == self.driver()] == [1]

        self.admit()
        harness.wait_until(is_back, 20, "that the driver is back")

    def test_window_goes_on(self):
        owner = self.begin()
        for _ in range(3):
            self.fill()
            self.sever()
            owner.ask("read")
            owner.ask("write")
            owner.ask("read")
            owner.ask("store")
            owner.ask("read")
            self.await_return()
            owner.ask("share")
            owner.ask("write")
            owner.ask("store")
            owner.ask("read")
        owner.finish()

    def test_stopped_for_longer_than_the_grace_time(self):
        """Its library has not seen a clock: what it has mapped is what it was, and for 3/4 of that time from then on."""
        owner = self.begin("--grace", "3s")
        with harness.stopped(self.driver()):
            self.cut()
            time.sleep(4)
            self.fill()
            owner.ask("write")
        owner.ask("read")
        self.await_return()
        owner.ask("store")
        owner.ask("read")
        owner.finish()

    def test_never_comes_back(self):
        """Its library closes the window before hmmd lets go of it."""
        owner = self.begin("--grace", f"{harness.scaled(3000):.0f}ms")
        self.fill()
        self.sever()
        harness.wait_until(lambda: "did not come back" in self.daemon.log, 20, "that hmmd lets go of the window")
        owner.ask("write")
        owner.ask("second-closed")
        self.admit()
        owner.kill9()

    def end_counting(self):
        """Its driver's thread counts without end, also where its owner is no more: that is a signal, of which a sanitizer speaks."""
        os.kill(self.driver(), signal.SIGKILL)

    def test_ended_in_good_order(self):
        """
        Its driver, which nobody can tell of it, stores on while everything comes home, and waits for the next hmmd, where
        its window shows other memory: nothing is lost, and no zeros are there.
        """
        owner = self.begin("--grace", f"{harness.scaled(60):.0f}s")
        owner.ask("count")
        for _ in range(4):
            owner.ask("count-on")
            self.fill()
            self.sever()
            owner.ask("count-on")
            self.daemon.stop()
            self.admit()
            # Whatever it touches next is not there any more.
            harness.wait_until(lambda: self.state_of_thread("counts") == "S", 20, "that it sleeps")
            owner.ask("counted")
            self.daemon.start()
            owner.ask("count-on")
            self.await_return()
        self.end_counting()
        owner.kill9()

    def test_good_bye(self):
        """Its driver touches its window all the time, while everything comes home and until the next hmmd has armed it."""
        owner = self.begin("--grace", f"{harness.scaled(60):.0f}s")
        owner.ask("count")
        for _ in range(6):
            owner.ask("count-on")
            self.daemon.stop()
            harness.wait_until(lambda: self.state_of_thread("counts") == "S", 20, "that it sleeps")
            owner.ask("counted")
            self.daemon.start()
        owner.ask("count-on")
        owner.ask("share")
        owner.ask("write")
        owner.ask("store")
        owner.ask("read")
        self.end_counting()
        owner.kill9()

    def test_killed_without_a_connection(self):
        owner = self.begin()
        self.fill()
        self.sever()
        os.kill(self.driver(), signal.SIGKILL)
        self.admit()
        harness.wait_until(lambda: sum(mirror["windows"] for mirror in self.hmmctl_json("mirrors")["mirrors"]) == 1, 20,
                           "that its window is gone")
        owner.ask("write")
        owner.kill9()


if __name__ == "__main__":
    harness.main()
