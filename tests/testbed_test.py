"""scripts/testbed itself: two hosts that share nothing but the link, and nothing left afterwards."""

import os
import random
import signal
import subprocess
import time
import unittest
from pathlib import Path

from lab import testbed

NAME = "waft-testbed-test"
ENVIRONMENT = {"WAFT_TESTBED_NAME": NAME}


def call(*arguments, check=True):
    return testbed.run(testbed.SCRIPT, *arguments, check=check, env=ENVIRONMENT)


def in_host(host, script):
    return call("exec", host, "--", "sh", "-c", script).stdout.strip()


def traces():
    """What of this testbed is on the machine: cgroups, mounts, processes in its cgroups, files."""
    found = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{NAME}*")]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if NAME in line]
    found += [str(path) for path in (Path("/run") / NAME, Path("/var/lib") / NAME)
              if path.exists()]
    for cgroup in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            found += [str(cgroup)] if f"/{NAME}/" in cgroup.read_text() else []
        except OSError:
            pass
    return found


class TestbedTest(unittest.TestCase):
    def setUp(self):
        self.addCleanup(call, "down")

    def test_hosts_share_nothing_but_the_link(self):
        call("up")
        for namespace in ("net", "mnt", "pid", "uts", "ipc", "cgroup", "time"):
            links = {in_host(host, f"readlink /proc/self/ns/{namespace}") for host in testbed.HOSTS}
            self.assertEqual(len(links), 2, namespace)
        for path in ("/run/x", "/srv/x", "/tmp/x", "/var/lib/waft/x", "/etc/waft/x", "/dev/shm/x"):
            in_host("a", f"echo from-a > {path}")
            self.assertEqual(in_host("b", f"cat {path} 2>&1 || true").count("from-a"), 0, path)
        in_host("a", "ping -c 1 -W 2 b && ping -c 1 -W 2 client")
        uptimes = [float(in_host(host, "cut -d' ' -f1 /proc/uptime")) for host in testbed.HOSTS]
        self.assertGreater(uptimes[1] - uptimes[0], 1000)

    def test_up_is_idempotent_and_brings_a_dead_waftd_back(self):
        call("up")
        before = call("status").stdout
        call("up")
        self.assertEqual(call("status").stdout, before)
        pid = int(before.splitlines()[1].split()[4])
        os.kill(pid, signal.SIGKILL)
        testbed.await_exit(pid)
        self.assertEqual(call("status", check=False).returncode, 1)
        call("up")
        self.assertEqual(call("status").returncode, 0)

    def test_a_link_has_its_rate(self):
        call("up")
        call("link", "b", "20mbit")
        self.assertIn("20mbit", call("status").stdout)
        receiver = subprocess.Popen(
            [str(testbed.SCRIPT), "exec", "b", "--", "sh", "-c",
             "socat -u TCP-LISTEN:9000 - | wc -c"], env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        started = time.monotonic()
        in_host("a", "head -c 4M /dev/zero | socat -u - TCP:b:9000")
        self.assertEqual(receiver.communicate(timeout=30)[0].strip(), str(4 << 20))
        self.assertGreater(time.monotonic() - started, 1.2)  # 1.7 s, less the bucket

    def test_down_leaves_nothing_also_after_an_up_that_was_killed(self):
        random.seed(1)
        for _ in range(6):
            process = subprocess.Popen([str(testbed.SCRIPT), "up"], start_new_session=True,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                       env={**os.environ, **ENVIRONMENT})
            time.sleep(random.uniform(0.02, 0.8))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            call("down")
            deadline = time.monotonic() + 5
            while traces() and time.monotonic() < deadline:
                time.sleep(0.1)
            self.assertEqual(traces(), [])


if __name__ == "__main__":
    unittest.main()
