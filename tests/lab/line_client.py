"""A client of the programs in tests/workloads: one connection that stays open and is kept busy."""

import json
import os
import select
import socket
import sys
import time
from pathlib import Path

from lab import testbed

PORT = 7000
PAUSE_S = 0.0003


class Connection:
    """Requests and replies of one line each."""

    def __init__(self, address):
        self._socket = socket.create_connection((address, PORT), 60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("r")

    def call(self, request):
        self._socket.sendall(f"{request}\n".encode())
        line = self._file.readline()
        if not line.endswith("\n"):
            raise ConnectionError("the server closed the connection")
        return line[:-1]


def talk(address):
    """Sends PING after PING and checks each reply; in between what comes on standard input, with
    the reply to that on standard output. "gap" tells and forgets the largest gap between pings in
    ms; "end" ends it with a verdict."""
    connection = Connection(address)
    verdict = {"replies": 0, "lost": 0, "duplicated": 0, "error": None}
    expected = int(connection.call("PING").split()[1])
    largest = 0.0
    before = time.monotonic()
    print(json.dumps({"ready": True}), flush=True)
    try:
        while True:
            if select.select([sys.stdin], [], [], 0)[0]:
                request = sys.stdin.readline().strip()
                if request in ("end", ""):
                    break
                if request == "gap":
                    reply, largest = largest, 0.0
                else:
                    reply = connection.call(request)
                    before = time.monotonic()
                print(json.dumps(reply), flush=True)
            value = int(connection.call("PING").split()[1])
            now = time.monotonic()
            largest = max(largest, (now - before) * 1000)
            before = now
            expected += 1
            verdict["replies"] += 1
            verdict["lost"] += max(0, expected - value)
            verdict["duplicated"] += max(0, value - expected)
            expected = value
            time.sleep(PAUSE_S)
    except OSError as error:
        verdict["error"] = str(error)
    print(json.dumps(verdict), flush=True)


class LineClient:
    """talk() on the testbed's client, with the one connection that the test asks through."""

    def __init__(self, address):
        deadline = time.monotonic() + 20
        while True:
            self._process = testbed.start("client", sys.executable, Path(__file__), address,
                                          env={**os.environ,
                                               "PYTHONPATH": str(Path(__file__).parents[1])})
            if self._process.stdout.readline():
                return
            error = self._process.communicate()[1]
            # Refused: the program has not got to listen() yet.
            if "Refused" not in error or time.monotonic() > deadline:
                raise testbed.CommandFailed(error)

    def ask(self, request):
        """The program's reply, or the largest gap for "gap"."""
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        reply = json.loads(line) if line else None
        if reply is None or isinstance(reply, dict):
            raise testbed.CommandFailed(f"the client ended: {line}")
        return reply

    def stop(self):
        """Ends the connection and returns the verdict."""
        out, error = self._process.communicate("end\n", timeout=60)
        if not out:
            raise testbed.CommandFailed(error)
        return json.loads(out)

    def kill(self):
        """For clean-up after a failed test."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


if __name__ == "__main__":
    talk(sys.argv[1])
