"""Regression tests for two ways in which a cut-short migration could destroy what it was to move:
through a bind mount that a killed `runc restore` leaves, and by a death in the middle of a dump."""

import contextlib
import hashlib
import os
import signal
import time
import unittest
from pathlib import Path

from lab import testbed
from lab.failure import FREEZER, FailureCase, until
from lab.redis import Redis


def processes(host):
    """{pid: name} of what runs on a host beside its containers, by this machine's pids."""
    found = {}
    for pid in (FREEZER / host / "cgroup.procs").read_text().split():
        try:
            found[int(pid)] = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            pass
    return found


def kill_all(host, name):
    """SIGKILL to every process of that name on `host`."""
    for pid, its_name in processes(host).items():
        if its_name == name:
            os.kill(pid, signal.SIGKILL)


class KilledRestoreTest(FailureCase):
    """`runc restore` binds ROOT/ID/criu-root to the rootfs. Killed, it leaves that mount, through
    which `runc delete --force` and `rm -rf` empty the rootfs."""

    def setUp(self):
        super().setUp()
        self.bundle = testbed.DATA / "b" / "srv" / self.redis.name
        self.files = self.checksums()
        self.mounts = Path(f"/proc/{testbed.init_pid('b')}/mounts")

    def test_runc_killed_as_soon_as_the_mount_is_there(self):
        self.kill_in_restore(pause_s=0)
        self.assertIn("/run/runc/redis/criu-root", self.mounts.read_text())
        self.recover()
        self.assertIn("unmounting /run/runc/redis/criu-root", testbed.waftd_log("b"))

    def test_runc_killed_while_criu_restores(self):
        for pause_ms in (20, 60):
            self.kill_in_restore(pause_ms / 1000)
            self.recover()

    def test_waftd_killed_alone_while_criu_restores(self):
        for pause_ms in (0, 50):
            self.kill_in_restore(pause_ms / 1000, runc_too=False)
            self.recover()

    def test_mount_over_a_complete_container(self):
        with self.stopped_at("b", "destination-ready"):
            testbed.execute("b", "sh", "-ec", "mkdir /run/runc/redis/criu-root; "
                            "mount --bind /srv/redis/rootfs /run/runc/redis/criu-root")
            self.kill_waftd("b")
        self.recover()
        self.assertIn("unmounting /run/runc/redis/criu-root", testbed.waftd_log("b"))

    def kill_in_restore(self, pause_s, runc_too=True):
        """Kills b's waftd (and runc) that long after runc has bound the rootfs, at READY at the
        latest."""
        with self.stopped_at("b", "destination-prepared", "destination-ready=stop"):
            waftd = testbed.waftd_pid("b")
        until("runc binds the rootfs", lambda: "criu-root" in self.mounts.read_text(), pause=0)
        time.sleep(pause_s)
        os.kill(waftd, signal.SIGKILL)
        if runc_too:
            kill_all("b", "runc")
        testbed.await_exit(waftd)

    def recover(self):
        self.heal("b")
        self.assert_only_at_source()
        self.assertEqual(self.checksums(), self.files)

    def checksums(self):
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
                for path in sorted(self.bundle.rglob("*"))}


class KilledDumpTest(FailureCase):
    """A task that is killed or thawed inside CRIU's parasite dies. So whoever dies, CRIU is let end
    its work before anything is thawed."""

    def setUp(self):
        super().setUp()
        self.run_directory = Path(f"/proc/{testbed.init_pid('a')}/root/run/waft/migrations")

    def make_redis(self):
        return Redis(memory_mib=64)

    def test_waftd_killed_while_criu_dumps(self):
        at_work = 0
        for share in (0, 0.2, 0.4, 0.6, 0.8):
            with self.dumping(share) as (migration, waftd, criu):
                os.kill(waftd, signal.SIGKILL)
            at_work += bool(criu)
            self.assertEqual(migration.wait(), (None, 3))
            self.heal("a")
            self.assert_only_at_source()
        self.assertGreaterEqual(at_work, 3)
        self.assert_moves()

    def test_runc_killed_while_criu_dumps(self):
        with self.dumping(0.02) as (migration, _, criu):
            self.assertTrue(criu)
            os.kill(criu, signal.SIGSTOP)
            kill_all("a", "runc")
            time.sleep(0.5)
            self.assertTrue(migration.is_running())
            os.kill(criu, signal.SIGCONT)
        report, code = migration.wait()
        self.assert_rolled_back(report, code, "CRIU cannot dump the workload", "runc", "signal 9")
        self.assert_only_at_source()

    def test_waftd_and_runc_killed_while_criu_dumps(self):
        with self.dumping(0.02) as (migration, waftd, criu):
            self.assertTrue(criu)
            os.kill(criu, signal.SIGSTOP)
            os.kill(waftd, signal.SIGKILL)
            kill_all("a", "runc")
            self.assertEqual(migration.wait(), (None, 3))
            self.heal("a")
            time.sleep(0.5)
            self.assertTrue(self.unfinished("a"))
            os.kill(criu, signal.SIGCONT)
        self.assert_only_at_source()

    @contextlib.contextmanager
    def dumping(self, share):
        """A migration whose CRIU has written that share of the memory; yields it and the pids of
        waftd, which goes no further than half of the transfer, and of CRIU, 0 if that has ended."""
        with self.stopped_at("a", "source-frozen", "source-sending=stop") as migration:
            waftd = testbed.waftd_pid("a")
        enough = share * self.redis.memory_mib * (1 << 20)
        until("CRIU writes", pause=0, condition=lambda: enough < sum(
            path.stat().st_size for path in self.run_directory.glob("*/images/*.img")))
        criu = [pid for pid, name in processes("a").items() if name == "criu"]
        yield migration, waftd, criu[0] if criu else 0


if __name__ == "__main__":
    unittest.main()
