"""The base of every test on the testbed."""

import time
import unittest

from lab import testbed


class TestbedCase(unittest.TestCase):
    """Brings the testbed up with both waftd healthy, and knows what a host looked like before."""

    maxDiff = None
    before: dict = {}

    @classmethod
    def setUpClass(cls):
        testbed.up()
        # A waftd that an earlier test started with a fault injected is not ours to inherit.
        for host in testbed.HOSTS:
            testbed.restart_waftd(host)

    def setUp(self):
        self.before = {host: testbed.snapshot(host) for host in testbed.HOSTS}

    def assert_nothing_left(self, host, timeout=5):
        """`host` has what it had before the test and no more: processes, mounts, cgroups,
        namespaces, links, files. What is on its way out gets a moment."""
        deadline = time.monotonic() + timeout
        while True:
            left = {line for line in testbed.snapshot(host) - self.before[host]
                    if not line.endswith(" waftd")}  # it may have been restarted
            if not left:
                return
            if time.monotonic() > deadline:
                self.fail(f"left on {host}: {sorted(left)}")
            time.sleep(0.1)

    def track(self, thing):
        """Has `thing` forgotten or killed after the test, also after a failed one."""
        self.addCleanup(thing.forget if hasattr(thing, "forget") else thing.kill)
        return thing
