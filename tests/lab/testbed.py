"""The two hosts and the client of scripts/testbed, from Python."""

import json
import os
import subprocess
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "scripts" / "testbed"
BIN = Path(os.environ.get("WAFT_BIN_DIR", REPOSITORY / "build" / "bin"))
NAME = os.environ.get("WAFT_TESTBED_NAME", "waft-testbed")
DATA = Path(os.environ.get("WAFT_TESTBED_DIR", f"/var/lib/{NAME}"))
HOSTS = ("a", "b")
ADDRESS = {"a": "10.77.0.1", "b": "10.77.0.2", "client": "10.77.0.100"}


class CommandFailed(Exception):
    """A command ended otherwise than it should; the message holds what it printed."""


def run(*argv, check=True, timeout=300, env=None):
    """Runs a command on this machine and returns its CompletedProcess with text output."""
    done = subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=timeout, check=False,
                          env={**os.environ, **(env or {})})
    if check and done.returncode != 0:
        raise CommandFailed(f"{' '.join(map(str, argv))}: exit code {done.returncode}\n"
                            f"{done.stdout}{done.stderr}")
    return done


def up(**environment):
    """Starts what is not running; WAFTD_ENV_A="NAME=value" and the like reach scripts/testbed."""
    run(SCRIPT, "up", env=environment)


def down():
    run(SCRIPT, "down")


def execute(host, *argv, check=True, timeout=300):
    """Runs a command on a, b or client."""
    return run(SCRIPT, "exec", host, "--", *argv, check=check, timeout=timeout)


def start(host, *argv, **options):
    """Starts a command on a, b or client; a subprocess.Popen with text pipes."""
    return subprocess.Popen([str(word) for word in (SCRIPT, "exec", host, "--", *argv)],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, **options)


def status():
    """What scripts/testbed says of each host, as {host: [column, ...]}."""
    rows = run(SCRIPT, "status", check=False).stdout.splitlines()[1:]
    return {row.split()[0]: row.split() for row in rows}


def waftd_pid(host):
    """The pid of the host's waftd as this machine sees it, or None."""
    column = status()[host][4]
    return int(column) if column.isdigit() else None


def init_pid(host):
    """The pid of the host's first process as this machine sees it."""
    return int(status()[host][2])


def waftd_log(host):
    log = DATA / host / "waftd.log"
    return log.read_text() if log.exists() else ""


def stop_waftd(host):
    """Ends a host's waftd politely and waits for it."""
    pid = waftd_pid(host)
    if pid is None:
        return
    os.kill(pid, 15)
    await_exit(pid)


def await_exit(pid, timeout=20):
    deadline = time.monotonic() + timeout
    while Path(f"/proc/{pid}/ns/net").exists():  # gone for a zombie too
        if time.monotonic() > deadline:
            raise CommandFailed(f"pid {pid} does not end")
        time.sleep(0.01)


def restart_waftd(host, environment="", arguments=""):
    """A new waftd on `host`, with an environment ("WAFT_FAULT=...") or flags of its own."""
    stop_waftd(host)
    up(**{f"WAFTD_ENV_{host.upper()}": environment, f"WAFTD_ARGS_{host.upper()}": arguments})


def waft(host, *arguments, check=True, timeout=300):
    """Runs the command line on a host."""
    return execute(host, BIN / "waft", *arguments, check=check, timeout=timeout)


def migrate(workload, source, destination, *, mode="stop", check=True, timeout=300):
    """Moves a workload and returns (report, exit code)."""
    done = waft(source, "migrate", workload, "--to", destination, "--mode", mode, "--json",
                check=False, timeout=timeout)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise CommandFailed(f"waft migrate printed no report: {done.stdout}{done.stderr}") from error
    if check and (done.returncode != 0 or report["outcome"] != "completed"):
        raise CommandFailed(f"{workload} did not move from {source} to {destination}: "
                            f"exit code {done.returncode}, {report['error']}")
    return report, done.returncode


def snapshot(host):
    """All that a migration could leave behind on a host, as a set of words to compare. The mount
    on /run/netns is none of it: the first `ip netns add` on a host makes it for good."""
    script = r"""
      ps -e -o pid=,comm= | awk '$2 != "ps" && $2 != "sh" && $2 != "awk" {print "process", $1, $2}'
      awk '$2 != "/run/netns" {print "mount", $1, $2, $3}' /proc/mounts
      find /sys/fs/cgroup -mindepth 2 -type d -printf 'cgroup %p\n'
      ls /run/netns 2>/dev/null | sed 's/^/netns /'
      ip -o link | awk '{sub(/@.*/, "", $2); print "link", $2}'
      find /run/waft /run/runc /tmp -mindepth 1 -printf 'file %p\n' 2>/dev/null || true
    """
    return set(execute(host, "sh", "-c", script).stdout.splitlines())
