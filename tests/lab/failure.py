"""What the failure tests share: Redis under a counting client, a migration that runs beside the
test, injected faults, and a witness that there is never more than one running copy."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

from lab import testbed
from lab.case import TestbedCase
from lab.programs import DIRECTORY
from lab.redis import COUNTER, CountingClient, Redis
from lab.workload import RUNC_ROOT

FREEZER = Path("/sys/fs/cgroup/freezer") / testbed.NAME


def until(what, condition, timeout=10.0, pause=0.02):
    """Waits for `condition()` to hold and returns its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(pause)


def tasks(host, workload):
    """The workload's processes on `host`, by this machine's pids."""
    try:
        pids = (FREEZER / host / workload / "cgroup.procs").read_text()
    except OSError:
        return []
    return [int(pid) for pid in pids.split()]


def freezer_state(host, workload):
    """FROZEN, FREEZING, THAWED, or None if the workload is not on `host`."""
    try:
        return (FREEZER / host / workload / "freezer.state").read_text().strip()
    except OSError:
        return None


def may_run(pid):
    """False for a process that does not run its program's code: dead, being killed, or stopped."""
    try:
        fields = dict(line.split(":\t", 1) for line in
                      Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        flags = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[6])
    except OSError:
        return False
    pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    pf_exiting = 0x4
    return (fields["State"][0] not in "XZTt" and not pending >> (signal.SIGKILL - 1) & 1
            and not flags & pf_exiting)


def runs_on(host, workload):
    return (freezer_state(host, workload) == "THAWED"
            and any(may_run(pid) for pid in tasks(host, workload)))


class Witness(threading.Thread):
    """Looks all the time whether a workload runs on both hosts."""

    def __init__(self, workload):
        super().__init__(daemon=True)
        self.looks = 0
        self.twice_running = []
        self._workload = workload
        self._done = threading.Event()
        self.start()

    def run(self):
        before = False
        while not self._done.wait(0.002):
            self.looks += 1
            now = all(runs_on(host, self._workload) for host in testbed.HOSTS)
            # Not one look alone: a killed task is without the signs of it for an instant.
            if now and before:
                self.twice_running.append(time.time())
            before = now


    def stop(self):
        self._done.set()
        self.join()


class Migration:
    """`waft migrate` beside the test."""

    def __init__(self, workload, source="a", destination="b"):
        self._process = testbed.start(source, testbed.BIN / "waft", "migrate", workload, "--to",
                                      destination, "--json")

    def is_running(self):
        return self._process.poll() is None

    def wait(self, timeout=60):
        """(report, exit code); the report is None if waft had none to print."""
        out, err = self._process.communicate(timeout=timeout)
        report = json.loads(out) if out else None
        if report is None and not err:
            raise testbed.CommandFailed("waft migrate printed neither a report nor a message")
        return report, self._process.returncode

    def kill(self):
        """For clean-up after a failed test: ends the watching, not the migration."""
        if self.is_running():
            self._process.kill()
            self._process.communicate()


class HoldingRedis(Redis):
    """Redis beside which a task of the workload holds what tests/workloads/holder.cc is told to."""

    def __init__(self, *things, directories=()):
        super().__init__(memory_mib=4, wrapper=["/holder", *things, "--"], directories=directories)

    def _prepare(self, programs, files, directories, config):
        super()._prepare(programs[1:], files, directories, config)
        shutil.copy2(DIRECTORY / "holder", self.path_on("a", "/holder"))
        self.copy_to_other_host()


class FailureCase(TestbedCase):
    """Each test starts with Redis on a, a client that counts on it, and a witness; whatever the
    test does to the hosts, in the end the client must not have lost or seen anything twice, and no
    look of the witness may have found two running copies."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # After a long freeze a client would wait for as long again before it repeats its request.
        cls._set_client_tcp(rto_max_ms=1000, retries2=100)
        cls.addClassCleanup(cls._set_client_tcp, rto_max_ms=120000, retries2=15)

    @staticmethod
    def _set_client_tcp(**settings):
        for name, value in settings.items():
            testbed.execute("client", "sysctl", "-qew", f"net.ipv4.tcp_{name}={value}")

    def setUp(self):
        self.addCleanup(self._leave_no_migration)
        super().setUp()
        self.without_workload = self.before
        self._injected = {}  # host -> (fault, length of the log before)
        self._unhealthy = set()  # hosts whose waftd has a fault
        self.addCleanup(self._heal_all)
        self.redis = self.track(self.make_redis())
        self.redis.start("a")
        self.redis.fill()
        self.before = {host: testbed.snapshot(host) for host in testbed.HOSTS}
        # runc marks a container that was ever dumped; the mark means nothing to a running one.
        self.before["a"].add(f"file {RUNC_ROOT}/{self.redis.name}/checkpoint")
        self.client = self.track(CountingClient(self.redis.address))
        self.witness = Witness(self.redis.name)
        self.addCleanup(self.witness.stop)

    def make_redis(self):
        return Redis(memory_mib=4)

    def tearDown(self):
        verdict = self.client.stop()
        self.assertIsNone(verdict["error"])
        self.assertEqual((verdict["lost"], verdict["duplicated"]), (0, 0))
        self.witness.stop()
        self.assertGreater(self.witness.looks, 20)
        self.assertEqual(self.witness.twice_running, [])

    def _leave_no_migration(self):
        """A test that failed in the middle of a migration must not decide the next one."""
        if any(self.unfinished(host) for host in testbed.HOSTS):
            testbed.down()
            testbed.up()

    # --- Provoking --------------------------------------------------------------------------------

    def inject(self, host, *faults):
        """Starts `host`'s waftd anew with faults, "POINT=ACTION"; a healthy one after the test."""
        self._injected[host] = (faults[0], len(testbed.waftd_log(host)))
        self._unhealthy.add(host)
        testbed.restart_waftd(host, f"WAFT_FAULT={','.join(faults)}")

    def has_fired(self, host):
        """Did the first fault injected into `host` happen?"""
        fault, offset = self._injected[host]
        return "injected fault at " + fault.replace("=", ": ") in testbed.waftd_log(host)[offset:]

    def heal(self, host):
        """A waftd without faults, started as after a crash if it is dead."""
        pid = testbed.waftd_pid(host)
        if pid is not None:
            os.kill(pid, signal.SIGCONT)
        testbed.restart_waftd(host)
        self._unhealthy.discard(host)

    def _heal_all(self):
        for host in list(self._unhealthy):
            self.heal(host)

    def kill_waftd(self, host):
        """SIGKILL."""
        pid = testbed.waftd_pid(host)
        os.kill(pid, signal.SIGKILL)
        testbed.await_exit(pid)

    def start_migration(self):
        return self.track(Migration(self.redis.name))

    @contextlib.contextmanager
    def stopped_at(self, host, point, *more_faults):
        """Runs a migration up to `point` of `host`'s waftd, which stands still there while the body
        runs and then goes on. Yields the migration."""
        self.inject(host, f"{point}=stop", *more_faults)
        pid = testbed.waftd_pid(host)
        migration = self.start_migration()
        until(f"waftd on {host} stops at {point}", lambda: self._is_stopped(pid))
        self.assertTrue(self.has_fired(host))
        yield migration
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    @staticmethod
    def _is_stopped(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
        except OSError:
            return False

    # --- Looking ----------------------------------------------------------------------------------

    def unfinished(self, host):
        """Migrations of `host` that have not come to their end, as `waft status` shows them."""
        done = testbed.waft(host, "status", "--json", check=False)
        if done.returncode != 0:
            return [f"waft status: {done.stderr}"]
        return [entry for entry in json.loads(done.stdout)["migrations"]
                if entry["state"] != "finished"]

    def state_on(self, host):
        """The state of the one migration that `host` has not finished, or None."""
        unfinished = self.unfinished(host)
        return unfinished[0]["state"] if unfinished else None

    def pids_of(self, program):
        """The workload's processes on a that run `program`."""
        return [pid for pid in tasks("a", self.redis.name)
                if Path(f"/proc/{pid}/comm").read_text() == program + "\n"]

    def counter(self):
        return int(self.redis.command("GET", COUNTER))

    # --- Asserting --------------------------------------------------------------------------------

    def assert_counting(self):
        """Redis answers, and its client goes on."""
        before = self.counter()
        until("the client counts on", lambda: self.counter() > before + 10)

    def assert_refused(self, report, code, *words):
        """Nothing was frozen, and the message holds all of `words`."""
        self.assertEqual((report["outcome"], code), ("failed", 1), report["error"])
        self.assertIsNone(report["preparation_ms"])
        self.assert_says(report, words)

    def assert_rolled_back(self, report, code, *words):
        """It was frozen, and thawed again."""
        self.assertEqual((report["outcome"], code), ("rolled-back", 1), report["error"])
        self.assertIsNotNone(report["preparation_ms"])
        self.assert_says(report, words)

    def assert_says(self, report, words):
        for word in words:
            self.assertIn(word, report["error"])

    def assert_only_at_source(self):
        """Redis runs on a, answers, and a and b are as they were before the migration."""
        for host in testbed.HOSTS:
            until(f"{host} has finished", lambda host=host: not self.unfinished(host))
        self.assertEqual((self.redis.state("a"), self.redis.state("b")), ("running", None))
        self.assertEqual(freezer_state("a", self.redis.name), "THAWED")
        self.assert_counting()
        self.assert_nothing_left("b")
        self.assert_nothing_left("a")

    def assert_only_at_destination(self):
        """Redis runs on b, answers, and nothing of it is left on a."""
        for host in testbed.HOSTS:
            until(f"{host} has finished", lambda host=host: not self.unfinished(host))
        self.assertEqual((self.redis.state("a"), self.redis.state("b")), (None, "running"))
        self.assertEqual(freezer_state("b", self.redis.name), "THAWED")
        self.assert_counting()
        self.before = self.without_workload
        self.assert_nothing_left("a")

    def assert_moves(self):
        """What kept it from moving is gone."""
        testbed.migrate(self.redis.name, "a", "b")
        self.assert_only_at_destination()
