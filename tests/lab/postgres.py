"""Debian's PostgreSQL in a container under its own uid, and pgbench as its client."""

import re
import tempfile
import time
from pathlib import Path

from lab import testbed
from lab.workload import Workload

UID = 999
PREFIX = Path("/usr/lib/postgresql/15")
# The data directory is on a tmpfs, which CRIU carries: waft does not move files yet.
START = f"""
{PREFIX}/bin/initdb --pgdata /data/pg --username postgres --auth trust --no-locale --no-sync \
    --wal-segsize 1
echo host all all all trust >>/data/pg/pg_hba.conf
exec {PREFIX}/bin/postgres -D /data/pg -c listen_addresses=* -c unix_socket_directories=/data \
    -c shared_buffers=16MB -c min_wal_size=2MB -c max_wal_size=4MB -c jit=off
"""


class Postgres(Workload):
    def __init__(self):
        super().__init__(
            "postgres", "10.77.0.51", ["/bin/sh", "-c", START], user=UID, capabilities=(),
            programs=[PREFIX / "bin/initdb", PREFIX / "bin/postgres", PREFIX / "lib/plpgsql.so",
                      PREFIX / "lib/dict_snowball.so"],
            files=["/usr/share/postgresql/15"], directories=["data"],
            mounts=[{"destination": "/data", "type": "tmpfs", "source": "tmpfs",
                     "options": ["nosuid", "nodev"]}])
        # runc gives a tmpfs the mode of the directory that it covers.
        self.path_on("a", "/data").chmod(0o777)
        with self.path_on("a", "/etc/passwd").open("a") as passwd:
            passwd.write(f"postgres:x:{UID}:{UID}::/data:/bin/sh\n")
        self.copy_to_other_host()

    def client(self, program, *arguments, check=True):
        """Runs one of PostgreSQL's client programs on the testbed's client."""
        return testbed.execute("client", PREFIX / "bin" / program, "-h", self.address, "-U",
                               "postgres", *arguments, check=check)

    def fill(self, scale):
        """Waits for the server, then makes pgbench's tables."""
        deadline = time.monotonic() + 60
        # It listens on its address only when initdb has done and recovery is over.
        while self.client("pg_isready", "-q", check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise testbed.CommandFailed("postgres does not answer")
            time.sleep(0.05)
        self.client("pgbench", "--initialize", "--quiet", f"--scale={scale}", "postgres")

    def query(self, sql):
        """The first row, as a list of strings."""
        done = self.client("psql", "-d", "postgres", "-AtF", " ", "-v", "ON_ERROR_STOP=1", "-c",
                           sql)
        return done.stdout.split()

    def backends(self):
        """The pids of the backends that serve pgbench, as the container numbers them."""
        return self.query("SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity "
                          "WHERE application_name = 'pgbench'")

    def sums(self):
        """What must be the same sum four times, then the number of transactions."""
        return [int(word) for word in self.query(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts),"
            " (SELECT sum(tbalance) FROM pgbench_tellers),"
            " (SELECT sum(bbalance) FROM pgbench_branches),"
            " (SELECT sum(delta) FROM pgbench_history), (SELECT count(*) FROM pgbench_history)")]


class PgBench:
    """pgbench's TPC-B-like load for `seconds`, over connections that it opens once."""

    def __init__(self, address, clients, seconds):
        self._directory = tempfile.TemporaryDirectory(prefix="waft-pgbench-")
        self._process = testbed.start(
            "client", PREFIX / "bin/pgbench", "-h", address, "-U", "postgres",
            f"--client={clients}", "--jobs=2", f"--time={seconds}", "--no-vacuum", "--log",
            f"--log-prefix={self._directory.name}/log", "postgres")

    def finish(self):
        """Waits for the end; a dict with pgbench's exit code, its count of processed and failed
        transactions, and per client the times (as of time.time()) that one was committed at."""
        out, error = self._process.communicate(timeout=120)
        result = {"code": self._process.returncode, "output": out + error, "committed": {}}
        for key in ("processed", "failed"):
            found = re.search(rf"number of (?:transactions actually )?(?:failed transactions|{key})"
                              r": (\d+)", out)
            result[key] = int(found[1]) if found else None
        for log in Path(self._directory.name).glob("log.*"):
            # client, number, latency, script, seconds, microseconds
            for line in log.read_text().splitlines():
                word = line.split()
                times = result["committed"].setdefault(int(word[0]), [])
                times.append(int(word[4]) + int(word[5]) / 1e6)
        self._directory.cleanup()
        return result

    def kill(self):
        """For clean-up after a failed test."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._directory.cleanup()
