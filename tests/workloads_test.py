"""Real programs move from a to b and back under load while their clients stay connected."""

import time
import unittest

from lab import testbed
from lab.case import TestbedCase
from lab.line_client import LineClient
from lab.nginx import BODY, WORKERS, Nginx, Wrk
from lab.postgres import UID, PgBench, Postgres
from lab.programs import REFUSED, Confined, Threads, Tree

THERE_AND_BACK = (("a", "b"), ("b", "a"))
SIGSYS = 31
PGBENCH_S = 25  # it cannot be told to stop


class MovingCase(TestbedCase):
    def move(self, workload, source, destination):
        """Moves it, holds the source clean, and leaves a second for load at the destination. (Until
        the destination has repeated its announcement, 0.55 s, it refuses the next move.)"""
        report, _ = testbed.migrate(workload.name, source, destination)
        self.assert_nothing_left(source)
        self.assertIsNone(workload.state(source))
        self.assertEqual(workload.state(destination), "running")
        print(f"{workload.name} {source} -> {destination}: downtime {report['downtime_ms']:.0f} ms",
              flush=True)
        time.sleep(1)
        return report

    def finish(self, workload):
        """Without the workload both hosts are as they were."""
        workload.remove("a")
        for host in testbed.HOSTS:
            self.assert_nothing_left(host)


class PostgresTest(MovingCase):
    def test_postgres_under_pgbench(self):
        clients = 6
        postgres = self.track(Postgres())
        postgres.start("a")
        postgres.fill(scale=2)
        bench = self.track(PgBench(postgres.address, clients, PGBENCH_S))
        time.sleep(1)
        backends = postgres.backends()
        self.assertEqual(len(backends), clients)
        self.assertEqual(set(testbed.execute("a", "ps", "-o", "uid=", "--ppid", postgres.pid("a"))
                             .stdout.split()), {str(UID)})
        moments = [time.time()]
        for source, destination in THERE_AND_BACK:
            self.move(postgres, source, destination)
            moments.append(time.time())
        self.assertEqual(postgres.backends(), backends)

        result = bench.finish()
        self.assertEqual((result["code"], result["failed"]), (0, 0), result["output"])
        # Every connection worked at all three times: before, in between and afterwards.
        self.assertEqual(len(result["committed"]), clients)
        for times in result["committed"].values():
            self.assertTrue(any(when < moments[0] for when in times))
            self.assertTrue(any(moments[1] - 1 < when < moments[1] for when in times))
            self.assertTrue(any(when > moments[2] for when in times))
        # Every transaction happened in full and once.
        accounts, tellers, branches, history, count = postgres.sums()
        self.assertEqual({accounts, tellers, branches}, {history})
        self.assertEqual(count, result["processed"])
        self.finish(postgres)


class NginxTest(MovingCase):
    def test_nginx_with_workers_under_wrk(self):
        connections = 16
        nginx = self.track(Nginx())
        nginx.start("a")
        nginx.await_start()
        accepted, requests = nginx.counts()
        wrk = self.track(Wrk(nginx.address, connections))
        time.sleep(1)
        fetches = 0
        for source, destination in THERE_AND_BACK:
            self.assertEqual(nginx.worker_uids(source), ["65534"] * WORKERS)
            now = nginx.counts()[1]
            self.assertGreater(now, requests + 100)
            self.move(nginx, source, destination)
            requests = nginx.counts()[1]
            self.assertGreater(requests, now + 100)
            self.assertEqual(nginx.fetched_body(), BODY)
            fetches += 3
        self.assertEqual(nginx.worker_uids("a"), ["65534"] * WORKERS)

        verdict = wrk.stop()
        self.assertEqual((verdict["errors"], verdict["wrong"]), (0, 0))
        self.assertGreater(verdict["requests"], 1000)
        # No connection was opened anew. wrk opens one more at first, to see that there is a server.
        ours = fetches + 1
        self.assertEqual(nginx.counts()[0] - accepted - ours, connections + 1)
        self.finish(nginx)


class ProgramsTest(MovingCase):
    """The programs of tests/workloads, asked over one connection that is kept busy."""

    def connect(self, workload):
        workload.start("a")
        return self.track(LineClient(workload.address))

    def check(self, client):
        reply = client.ask("CHECK")
        self.assertTrue(reply.startswith("OK "), reply)
        return reply

    def end(self, workload, client):
        verdict = client.stop()
        self.assertIsNone(verdict["error"])
        self.assertEqual((verdict["lost"], verdict["duplicated"]), (0, 0))
        self.assertGreater(verdict["replies"], 20)
        self.finish(workload)

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
        self.end(threads, client)

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
        self.end(confined, client)

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
        self.end(tree, client)

    def test_stopped_task_is_refused(self):
        # CRIU would hang: PTRACE_SEIZE of a stopped task in a frozen cgroup waits for the thaw.
        threads = self.track(Threads())
        client = self.connect(threads)
        testbed.execute("a", "kill", "-STOP", threads.pid("a"))
        report, code = testbed.migrate("threads", "a", "b", check=False)
        testbed.execute("a", "kill", "-CONT", threads.pid("a"))
        self.assertNotEqual(code, 0)
        self.assertEqual(report["outcome"], "failed")
        self.assertIn("is stopped", report["error"])
        self.check(client)
        self.end(threads, client)


if __name__ == "__main__":
    unittest.main()
