"""The main job: Redis under load moves from a to b and back, and its client notices a pause."""

import time
import unittest

from lab import testbed
from lab.case import TestbedCase
from lab.redis import CountingClient, Redis


class MoveTest(TestbedCase):
    def test_redis_moves_there_and_back_under_load(self):
        redis = self.track(Redis(memory_mib=64))
        redis.start("a")
        redis.fill()
        digest = redis.digest()
        client = self.track(CountingClient(redis.address))
        time.sleep(0.3)

        there, _ = testbed.migrate("redis", "a", "b")
        self.assert_nothing_left("a")
        self.assertEqual(redis.state("b"), "running")
        self.assertIsNone(redis.state("a"))
        back, _ = testbed.migrate("redis", "b", "a")
        self.assert_nothing_left("b")

        verdict = client.stop()
        self.assertIsNone(verdict["error"])
        self.assertEqual((verdict["lost"], verdict["duplicated"]), (0, 0))
        self.assertGreater(verdict["replies"], 1000)
        self.assertEqual(redis.digest(), digest)
        # The client cannot have waited less than the workload stood still.
        longest = max(there["downtime_ms"], back["downtime_ms"])
        self.assertGreaterEqual(verdict["max_gap_ms"], longest - 1)
        for report in (there, back):
            # The phases are measured one by one and leave nothing of the downtime out.
            self.assertAlmostEqual(sum(report["phases"].values()), report["downtime_ms"], delta=1)
            self.assertGreaterEqual(report["memory"]["pages_sent"] * 4096, 64 << 20)

    def test_runc_works_on_the_destination(self):
        redis = self.track(Redis())
        redis.start("a")
        redis.fill()
        testbed.migrate("redis", "a", "b")
        listed = redis.runc("b", "list", "--quiet").stdout.split()
        self.assertEqual(listed, ["redis"])
        self.assertEqual(redis.state("b"), "running")
        answer = redis.runc("b", "exec", "redis", "/usr/bin/redis-server", "--version").stdout
        self.assertIn("Redis server", answer)
        redis.runc("b", "kill", "redis", "TERM")
        deadline = time.monotonic() + 10
        while redis.state("b") != "stopped" and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(redis.state("b"), "stopped")
        redis.runc("b", "delete", "redis")
        self.assertIsNone(redis.state("b"))


if __name__ == "__main__":
    unittest.main()
