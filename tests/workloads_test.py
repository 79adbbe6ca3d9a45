"""Real programs move from a to b and back while their clients stay connected."""

import unittest

from lab import testbed
from lab.case import TestbedCase
from lab.line_client import LineClient
from lab.programs import REFUSED, Confined, Threads, Tree

THERE_AND_BACK = (("a", "b"), ("b", "a"))
SIGSYS = 31


class ProgramsTest(TestbedCase):
    """The programs of tests/workloads, asked over one connection that is kept busy."""

    def move(self, workload, source, destination):
        report, _ = testbed.migrate(workload.name, source, destination)
        self.assert_nothing_left(source)
        self.assertIsNone(workload.state(source))
        self.assertEqual(workload.state(destination), "running")
        return report

    def connect(self, workload):
        workload.start("a")
        return self.track(LineClient(workload.address))

    def finish(self, workload, client):
        """The client lost nothing, and without the workload both hosts are as they were."""
        verdict = client.stop()
        self.assertIsNone(verdict["error"])
        self.assertEqual((verdict["lost"], verdict["duplicated"]), (0, 0))
        self.assertGreater(verdict["replies"], 100)
        workload.remove("a")
        for host in testbed.HOSTS:
            self.assert_nothing_left(host)

    def check(self, client):
        reply = client.ask("CHECK")
        self.assertTrue(reply.startswith("OK "), reply)
        return reply

    def test_threads_that_wait_in_different_ways(self):
        threads = self.track(Threads())
        client = self.connect(threads)
        steps = int(self.check(client).split()[1])
        # read, rt_sigtimedwait, recvfrom, epoll_wait, futex: they do wait where they shall.
        waiting = set(threads.system_calls("a"))
        self.assertLessEqual({"0", "128", "45", "232", "202"}, waiting)
        for source, destination in THERE_AND_BACK:
            self.move(threads, source, destination)
            before, steps = steps, int(self.check(client).split()[1])
            self.assertGreaterEqual(steps, before + 8)
        self.finish(threads, client)

    def test_confined_program_stays_confined(self):
        confined = self.track(Confined())
        client = self.connect(confined)
        before = self.check(client)
        facts = dict(word.split("=") for word in before.split()[1:])
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            self.assertEqual(int(facts[name], 16), 0, name)
        self.assertEqual((facts["Uid"], facts["Gid"]), ("65534", "65534"))
        self.assertEqual((facts["Seccomp"], facts["NoNewPrivs"]), ("2", "1"))
        self.assertEqual((int(facts["refused"]), int(facts["killed"])), (REFUSED, SIGSYS))
        for source, destination in THERE_AND_BACK:
            self.move(confined, source, destination)
            self.assertEqual(self.check(client), before)
        self.finish(confined, client)

    def test_process_tree_with_all_it_holds(self):
        tree = self.track(Tree())
        client = self.connect(tree)
        # Without a move in between: what fails later is the move's doing.
        self.assertEqual(client.ask("ARM"), "OK")
        self.check(client)
        for source, destination in THERE_AND_BACK:
            self.assertEqual(client.ask("ARM"), "OK")
            self.move(tree, source, destination)
            self.check(client)
        self.finish(tree, client)


if __name__ == "__main__":
    unittest.main()
