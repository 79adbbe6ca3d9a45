"""Migrations that fail without anyone's death: each ends with Redis running at the source, its
client connected, nothing left at the destination, and a message that says what happened."""

import os
import signal
import time
import unittest

from lab import testbed
from lab.failure import FailureCase, HoldingRedis, until
from lab.redis import Redis


class UnreachableTest(FailureCase):
    def test_no_host_of_that_name(self):
        report, code = testbed.migrate("redis", "a", "nowhere", check=False)
        self.assert_refused(report, code, "nowhere")
        self.assert_only_at_source()

    def test_waftd_not_running_there(self):
        testbed.stop_waftd("b")
        self.addCleanup(testbed.up)
        report, code = testbed.migrate("redis", "a", "b", check=False)
        self.assert_refused(report, code, "cannot reach waftd on b")
        testbed.up()
        self.assert_only_at_source()
        self.assert_moves()

    def test_no_link_to_it(self):
        self.cut_link()
        started = time.monotonic()
        report, code = testbed.migrate("redis", "a", "b", check=False)
        self.assertLess(time.monotonic() - started, 15)
        self.assert_refused(report, code, "cannot reach waftd on b")
        self.mend_link()
        self.assert_only_at_source()

    def test_link_lost_while_frozen(self):
        with self.stopped_at("a", "source-frozen") as migration:
            self.cut_link()
        resumed = time.monotonic()
        report, code = migration.wait()
        self.assertLess(time.monotonic() - resumed, 25)
        self.assert_rolled_back(report, code, "image transfer to b")
        self.mend_link()
        self.assert_only_at_source()

    def cut_link(self):
        self.addCleanup(self.mend_link)
        testbed.execute("b", "ip", "link", "set", "eth0", "down")

    @staticmethod
    def mend_link():
        testbed.execute("b", "ip", "link", "set", "eth0", "up")


class RoomTest(FailureCase):
    def test_preflight_counts_the_room_there(self):
        testbed.restart_waftd("b", arguments="--image-room-mib 4")
        self.addCleanup(testbed.restart_waftd, "b")
        report, code = testbed.migrate("redis", "a", "b", check=False)
        self.assert_refused(report, code, "this host gives 4 MiB", "--image-room-mib")
        self.assert_only_at_source()

    def test_no_room_for_the_images_that_arrive(self):
        with self.stopped_at("a", "source-frozen") as migration:
            self.shrink_images("b", "2m")
        report, code = migration.wait()
        self.assert_rolled_back(report, code, "no room at the destination")
        self.assert_only_at_source()
        self.heal("a")
        self.assert_moves()

    def test_no_room_for_the_images_that_are_dumped(self):
        with self.stopped_at("a", "source-frozen") as migration:
            self.shrink_images("a", "2m")
        report, code = migration.wait()
        self.assert_rolled_back(report, code, "CRIU cannot dump the workload",
                                "No space left on device")
        self.assert_only_at_source()
        self.heal("a")
        self.assert_moves()

    @staticmethod
    def shrink_images(host, size):
        testbed.execute(host, "sh", "-ec",
                        f"mount -o remount,size={size} /run/waft/migrations/*/images")


class FilesTest(FailureCase):
    """What the tasks have mapped must be the same there."""

    def test_preflight_names_the_file_that_differs(self):
        server = self.redis.path_on("b", "/usr/bin/redis-server")
        inside = "/srv/redis/rootfs/usr/bin/redis-server"
        with self.subTest("one byte"):
            with server.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read(1)[0]
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last ^ 1]))
            self.refused_for(f"{inside} differs in content")
        with self.subTest("mode"):
            self.redis.copy_to_other_host()
            server.chmod(0o700)
            self.refused_for(f"{inside} differs: mode 100700 here, 100755")
        with self.subTest("missing"):
            server.unlink()
            self.refused_for(f"{inside} is missing here")
        self.redis.copy_to_other_host()
        self.assert_moves()

    def refused_for(self, words):
        report, code = testbed.migrate("redis", "a", "b", check=False)
        self.assert_refused(report, code, words)
        self.assert_only_at_source()


class HeldThingsTest(FailureCase):
    """What CRIU is known to refuse is named before anything is frozen."""

    def make_redis(self):
        return HoldingRedis("io_uring", "mptcp", "userfaultfd", "vsock", "tracee")

    def test_preflight_names_what_is_held(self):
        report, code = testbed.migrate("redis", "a", "b", check=False)
        self.assert_refused(report, code, "(holder) has descriptor", "io_uring",
                            "an MPTCP socket", "multipathtcp=0", "userfaultfd",
                            "AF_VSOCK", "is being traced by pid")
        self.assert_only_at_source()
        for pid in self.pids_of("holder"):
            os.kill(pid, signal.SIGKILL)
        self.assert_moves()


class ExecSessionTest(FailureCase):
    def make_redis(self):
        return Redis(memory_mib=4, programs=["/usr/bin/sleep"])

    def test_preflight_names_an_open_exec_session(self):
        session = testbed.start("a", "runc", "exec", "redis", "/usr/bin/sleep", "1000")
        self.addCleanup(session.communicate)
        self.addCleanup(session.kill)
        until("the session has begun", lambda: self.pids_of("sleep"))
        report, code = testbed.migrate("redis", "a", "b", check=False)
        self.assert_refused(report, code, "(sleep) is no child of the workload's init",
                            "runc exec")
        session.terminate()
        session.wait()
        self.assert_only_at_source()
        self.assert_moves()


class DumpRefusedTest(FailureCase):
    """CRIU's own refusal, after the freeze."""

    def make_redis(self):
        return HoldingRedis("renamed=/data/file", directories=["data"])

    def test_its_words_are_in_the_message(self):
        report, code = testbed.migrate("redis", "a", "b", check=False)
        self.assert_rolled_back(report, code, "CRIU cannot dump the workload", "link-remap")
        self.assert_only_at_source()


class RestoreRefusedTest(FailureCase):
    """CRIU fails on the destination, which the source learns from it."""

    def make_redis(self):
        return HoldingRedis("unix=/data/socket", directories=["data"])

    def test_its_words_are_in_the_message(self):
        there = self.redis.path_on("b", "/data")
        there.rmdir()
        report, code = testbed.migrate("redis", "a", "b", check=False)
        self.assert_rolled_back(report, code, "b: CRIU cannot restore the workload",
                                "Can't bind", "/data/socket")
        self.assert_only_at_source()
        there.mkdir()
        self.assert_moves()


if __name__ == "__main__":
    unittest.main()
