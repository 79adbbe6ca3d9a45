"""scripts/demo, once everything is built: the migrations, the reports and the verdict."""

import argparse
import json
import sys
import time
from pathlib import Path

from lab import testbed
from lab.redis import CountingClient, Redis

LOAD_SECONDS = 1.0  # of counting before, between and after the migrations


def show(report):
    """The report as a person reads it."""
    memory, phases = report["memory"], report["phases"]
    print(f"  {report['source']} -> {report['destination']}: {report['outcome']}, "
          f"downtime {report['downtime_ms']:.0f} ms, in all {report['total_ms']:.0f} ms")
    print("    " + ", ".join(f"{name[:-3]} {value:.0f} ms" for name, value in phases.items())
          + f"; {memory['bytes_wire'] / (1 << 20):.0f} MiB sent")


def demonstrate(memory_mib, mode):
    """Runs the demo on a testbed that is up; returns what --json writes."""
    redis = Redis(memory_mib=memory_mib)
    client = None
    try:
        print(f"  redis on host a, with {memory_mib} MiB of data", flush=True)
        redis.start("a")
        redis.fill()
        digest = redis.digest()
        client = CountingClient(redis.address)
        reports = []
        for source, destination in (("a", "b"), ("b", "a")):
            time.sleep(LOAD_SECONDS)
            print(f"  waft migrate {redis.name} --to {destination} --mode {mode}", flush=True)
            reports.append(testbed.migrate(redis.name, source, destination, mode=mode)[0])
        time.sleep(LOAD_SECONDS)
        verdict = client.stop()
        if redis.digest() != digest:
            verdict["error"] = "the data is not what it was before the migrations"
            verdict["lost"] += 1
        return {"reports": reports, "client": verdict}
    finally:
        if client:
            client.kill()
        redis.forget()


def main():
    parser = argparse.ArgumentParser(prog="scripts/demo")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-mib", type=int, default=512)
    parser.add_argument("--mode", default="stop")
    options = parser.parse_args()

    try:
        testbed.up()
        result = demonstrate(options.memory_mib, options.mode)
    except testbed.CommandFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    finally:
        testbed.down()

    print()
    for report in result["reports"]:
        show(report)
    client = result["client"]
    print(f"  client: {client['replies']} replies on one connection, {client['lost']} lost, "
          f"{client['duplicated']} duplicated, longest gap {client['max_gap_ms']:.0f} ms")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if client["error"]:
        print(f"demo: {client['error']}", file=sys.stderr)
    return 1 if client["error"] or client["lost"] or client["duplicated"] else 0


if __name__ == "__main__":
    sys.exit(main())
