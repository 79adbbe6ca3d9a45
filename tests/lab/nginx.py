"""Debian's nginx in a container with workers of another uid, and wrk as its client."""

import json
import random
import re
import sys
import tempfile
import time
from pathlib import Path

from lab import testbed
from lab.workload import Workload

PORT = 8080
WORKERS = 2
BODY = random.Random(1).randbytes(64 << 10)
CONFIGURATION = f"""
user nobody nogroup;
worker_processes {WORKERS};
pid /run/nginx.pid;
error_log /dev/null;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path /tmp/body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  keepalive_requests 1000000000;
  sendfile on;
  server {{
    listen {PORT};
    root /srv/www;
    location = /status {{ stub_status; }}
  }}
}}
"""
# Compares every body byte for byte. Each of wrk's threads has a Lua state of its own.
WRK_SCRIPT = """
local file = io.open("%s", "rb")
expected = file:read("*a")
file:close()
wrong = 0
function response(status, headers, body)
  if status ~= 200 or body ~= expected then wrong = wrong + 1 end
end
local threads = {}
function setup(thread) table.insert(threads, thread) end
function done(summary, latency, requests)
  local sum = 0
  for _, thread in ipairs(threads) do sum = sum + thread:get("wrong") end
  local e = summary.errors
  print(string.format('{"requests": %%d, "wrong": %%d, "errors": %%d, "max_ms": %%.1f}',
    summary.requests, sum, e.connect + e.read + e.write + e.status + e.timeout, latency.max / 1000))
end
"""


class Nginx(Workload):
    def __init__(self):
        super().__init__("nginx", "10.77.0.52",
                         ["/usr/sbin/nginx", "-c", "/etc/nginx.conf", "-g", "daemon off;"],
                         directories=["srv/www", "var/log/nginx", "var/lib/nginx"])
        self.path_on("a", "/etc/nginx.conf").write_text(CONFIGURATION)
        self.path_on("a", "/srv/www/body").write_bytes(BODY)
        self.copy_to_other_host()

    def await_start(self):
        deadline = time.monotonic() + 20
        while self.fetch("status", check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise testbed.CommandFailed("nginx does not answer")
            time.sleep(0.05)

    def fetch(self, path, file="/dev/stdout", check=True):
        """Over a connection of its own, from the testbed's client."""
        return testbed.execute(
            "client", sys.executable, "-c",
            "import sys, urllib.request; urllib.request.urlretrieve(*sys.argv[1:])",
            f"http://{self.address}:{PORT}/{path}", file, check=check)

    def fetched_body(self):
        with tempfile.NamedTemporaryFile() as file:
            self.fetch("body", file.name)
            return Path(file.name).read_bytes()

    def counts(self):
        """nginx's own count of (connections accepted, requests), this one included."""
        numbers = re.search(r"\n *(\d+) +\d+ +(\d+)", self.fetch("status").stdout)
        return int(numbers[1]), int(numbers[2])

    def worker_uids(self, host):
        return testbed.execute(host, "ps", "-o", "uid=", "--ppid", self.pid(host)).stdout.split()


class Wrk:
    """wrk's load until stop(), over connections that it keeps alive."""

    def __init__(self, address, connections):
        self._directory = tempfile.TemporaryDirectory(prefix="waft-wrk-")
        body = Path(self._directory.name) / "body"
        body.write_bytes(BODY)
        script = Path(self._directory.name) / "check.lua"
        script.write_text(WRK_SCRIPT % body)
        # nsenter, between us and wrk, hands no signal on: wrk gets its SIGINT by nsenter's death.
        self._process = testbed.start(
            "client", "setpriv", "--pdeathsig", "INT", "wrk", "--threads", 1, "--connections",
            connections, "--duration", "10m", "--timeout", "20s", "--script", script,
            f"http://{address}:{PORT}/body")

    def stop(self):
        """{"requests", "wrong", "errors", "max_ms"}."""
        self._process.kill()
        out, error = self._process.communicate(timeout=60)
        self._directory.cleanup()
        try:
            return json.loads(out.splitlines()[-1])
        except (IndexError, json.JSONDecodeError) as failure:
            raise testbed.CommandFailed(out + error) from failure

    def kill(self):
        """For clean-up after a failed test."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._directory.cleanup()
