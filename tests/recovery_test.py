"""waftd killed, stopped or failing at each state of a migration: there is one running copy in the
end, never two on the way, and the client notices nothing but a pause."""

import unittest

from lab import testbed
from lab.failure import FailureCase, freezer_state, runs_on, until


class DestinationKilledTest(FailureCase):
    def test_during_transfer(self):
        self.inject("b", "destination-receiving=kill")
        report, code = testbed.migrate("redis", "a", "b", check=False)
        self.assertTrue(self.has_fired("b"))
        self.assert_rolled_back(report, code, "image transfer to b")
        # The source may roll back alone, so it does not wait for b to be back.
        self.assertIsNone(testbed.waftd_pid("b"))
        self.assert_counting()
        self.heal("b")
        self.assert_only_at_source()
        self.assert_moves()

    def test_at_prepared(self):
        migration = self.kill_until_in_doubt("destination-prepared")
        self.heal("b")
        report, code = migration.wait()
        self.assert_rolled_back(report, code, "b: ", "restarted")
        self.assert_only_at_source()

    def test_while_criu_holds_the_restored_tasks(self):
        migration = self.kill_until_in_doubt("destination-restored")
        self.heal("b")
        report, code = migration.wait()
        self.assert_rolled_back(report, code, "b: ", "restarted")
        self.assert_only_at_source()

    def test_at_ready_and_not_back_for_long(self):
        migration = self.kill_until_in_doubt("destination-ready")
        report, code = migration.wait()
        self.assertEqual((report["outcome"], code), ("in-doubt", 3))
        self.assertIsNone(report["downtime_ms"])
        self.assert_says(report, ["lost b after PREPARED", "stays frozen"])
        self.assertEqual(self.redis.state("a"), "paused")
        self.heal("b")
        self.assert_only_at_source()
        self.assert_moves()

    def test_at_commit(self):
        migration = self.kill_until_in_doubt("destination-committed")
        self.heal("b")
        report, code = migration.wait()
        self.assertEqual((report["outcome"], code), ("completed", 0), report["error"])
        self.assertIsNotNone(report["downtime_ms"])
        self.assert_only_at_destination()

    def kill_until_in_doubt(self, point):
        """Runs a migration until b's waftd is killed at `point` and a does not know the outcome."""
        self.inject("b", f"{point}=kill")
        migration = self.start_migration()
        until("a is in doubt", lambda: self.state_on("a") == "in-doubt")
        self.assertTrue(self.has_fired("b"))
        self.assertEqual(freezer_state("a", "redis"), "FROZEN")
        until("nothing runs on b", lambda: not runs_on("b", "redis"))
        for _ in range(20):
            self.assertFalse(runs_on("b", "redis"))
        return migration


class SourceKilledTest(FailureCase):
    def test_while_frozen(self):
        self.kill_at("source-frozen")
        self.heal("a")
        self.assert_only_at_source()
        self.assert_moves()

    def test_while_sending(self):
        self.kill_at("source-sending")
        self.heal("a")
        self.assert_only_at_source()

    def test_at_prepared_before_the_handover(self):
        self.kill_at("source-prepared")
        self.heal("a")  # asks b, which has not decided for itself
        self.assert_only_at_source()
        self.assert_moves()

    def test_while_the_destination_decides(self):
        with self.stopped_at("b", "destination-ready") as migration:
            self.kill_waftd("a")
            self.assertEqual(migration.wait(), (None, 3))
        until("b has committed", lambda: freezer_state("b", "redis") == "THAWED")
        self.assertEqual(freezer_state("a", "redis"), "FROZEN")
        self.heal("a")
        self.assert_only_at_destination()

    def test_and_the_destination_too_at_commit(self):
        with self.stopped_at("b", "destination-committed") as migration:
            self.kill_waftd("a")
            self.assertEqual(migration.wait(), (None, 3))
            self.kill_waftd("b")
        self.assertEqual(freezer_state("a", "redis"), "FROZEN")
        self.assertEqual(freezer_state("b", "redis"), "FROZEN")
        testbed.up()
        self.assert_only_at_destination()

    def kill_at(self, point):
        self.inject("a", f"{point}=kill")
        migration = self.start_migration()
        self.assertEqual(migration.wait(), (None, 3))
        self.assertTrue(self.has_fired("a"))
        self.assertEqual(freezer_state("a", "redis"), "FROZEN")


class DestinationStoppedTest(FailureCase):
    def test_until_the_source_is_in_doubt(self):
        with self.stopped_at("b", "destination-prepared") as migration:
            until("a is in doubt", lambda: self.state_on("a") == "in-doubt", timeout=20)
            self.assertEqual(freezer_state("a", "redis"), "FROZEN")
        report, code = migration.wait()
        self.assertEqual((report["outcome"], code), ("completed", 0), report["error"])
        self.assert_only_at_destination()


class PoliteFailureTest(FailureCase):
    def test_at_each_point(self):
        for host, point in (("a", "source-frozen"), ("a", "source-sending"),
                            ("b", "destination-receiving"), ("b", "destination-prepared"),
                            ("b", "destination-ready")):
            self.inject(host, f"{point}=fail")
            report, code = testbed.migrate("redis", "a", "b", check=False)
            self.assertTrue(self.has_fired(host))
            self.assert_rolled_back(report, code, f"injected fault at {point}")
            self.assert_only_at_source()
            self.heal(host)
        self.assert_moves()


if __name__ == "__main__":
    unittest.main()
