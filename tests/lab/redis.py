"""Debian's Redis in a container, and a client that counts on every reply."""

import json
import os
import socket
import sys
import time
from pathlib import Path

from lab import testbed
from lab.workload import Workload

PORT = 6379
COUNTER = "waft:counter"


class Connection:
    """One RESP connection: as little of a Redis client as is needed to check it byte for byte."""

    def __init__(self, address, timeout=60):
        self._socket = socket.create_connection((address, PORT), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def call(self, *words):
        """Sends a command and returns its reply, a string or an int."""
        parts = [str(word).encode() for word in words]
        self._socket.sendall(b"*%d\r\n" % len(parts)
                             + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b":":
            return int(rest)
        if kind == b"$":
            body = self._file.read(int(rest) + 2)
            return body[:-2].decode()
        if kind == b"-":
            raise ConnectionError(rest.decode())
        return rest.decode()


def count(address):
    """Runs INCR on one open connection until a line comes on standard input; prints one JSON line
    when the first reply is in, and one with the verdict."""
    import select  # pylint: disable=import-outside-toplevel
    connection = Connection(address)
    expected = int(connection.call("INCR", COUNTER))
    verdict = {"replies": 1, "lost": 0, "duplicated": 0, "max_gap_ms": 0.0, "error": None}
    print(json.dumps({"ready": True}), flush=True)
    before = time.monotonic()
    try:
        while not select.select([sys.stdin], [], [], 0)[0]:
            value = connection.call("INCR", COUNTER)
            now = time.monotonic()
            verdict["max_gap_ms"] = max(verdict["max_gap_ms"], (now - before) * 1000)
            before = now
            verdict["replies"] += 1
            expected += 1
            # Less than expected: increments that were acknowledged are gone. More: one ran twice.
            verdict["lost"] += max(0, expected - value)
            verdict["duplicated"] += max(0, value - expected)
            expected = value
    except OSError as error:
        verdict["error"] = str(error)
        verdict["lost"] += 1
    print(json.dumps(verdict), flush=True)


class CountingClient:
    """count() on the testbed's client."""

    def __init__(self, address):
        # testbed.start() leaves our file system as it is, so this very file can be run there.
        self._process = testbed.start("client", sys.executable, Path(__file__), address,
                                      env={**os.environ,
                                           "PYTHONPATH": str(Path(__file__).parents[1])})
        if not self._process.stdout.readline():
            raise testbed.CommandFailed(self._process.communicate()[1])

    def stop(self):
        out, err = self._process.communicate("stop\n", timeout=120)
        if not out:
            raise testbed.CommandFailed(err)
        return json.loads(out)

    def kill(self):
        """For clean-up after a failed test."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


class Redis(Workload):
    """redis-server with `memory_mib` of data that redis can take a digest of."""

    def __init__(self, name="redis", address="10.77.0.50", memory_mib=16, *, wrapper=(),
                 programs=(), directories=()):
        """`wrapper` is a command in front of redis-server; `programs` come into the rootfs too."""
        self.memory_mib = memory_mib
        super().__init__(name, address,
                         [*wrapper, "/usr/bin/redis-server", "--bind", "0.0.0.0",
                          "--protected-mode", "no", "--save", "", "--appendonly", "no",
                          "--dir", "/tmp", "--enable-debug-command", "yes"],
                         programs=["/usr/bin/redis-server", *programs], directories=directories)

    def command(self, *words):
        """One command over a connection of its own, from the testbed's client."""
        done = testbed.execute("client", "redis-cli", "-h", self.address, *words)
        return done.stdout.strip()

    def fill(self):
        """Waits for the server, then writes the data: 1 KiB values under numbered keys."""
        deadline = time.monotonic() + 20
        while testbed.execute("client", "redis-cli", "-h", self.address, "PING",
                              check=False).stdout != "PONG\n":
            if time.monotonic() > deadline:
                raise testbed.CommandFailed("redis does not answer")
            time.sleep(0.02)
        # About 1,136 bytes a key with redis's own structures around the value.
        self.command("DEBUG", "POPULATE", self.memory_mib * 945, "key", 1024)

    def digest(self):
        """A checksum over all keys but the client's counter."""
        counter = self.command("GETDEL", COUNTER)
        digest = self.command("DEBUG", "DIGEST")
        if counter:
            self.command("SET", COUNTER, counter)
        return digest


if __name__ == "__main__":
    count(sys.argv[1])
