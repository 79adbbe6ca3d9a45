"""Redis with 512 MiB under load: `waft migrate` against runc checkpoint, copy and runc restore.

What the two figures are is in README.md.
"""

import time

from lab import testbed
from lab.redis import CountingClient, Redis
from lab.workload import RUNC_ROOT

TARGET = 1.0  # mode stop has the same work to do, and adds TLS, checksums and the handover
MEMORY_MIB = 512
COPY_PORT = 9000
SETTLE_SECONDS = 0.5


def _measure(move):
    """One move of a fresh Redis under a counting client, which must not lose a reply."""
    redis = Redis(memory_mib=MEMORY_MIB)
    client = None
    try:
        redis.start("a")
        redis.fill()
        client = CountingClient(redis.address)
        time.sleep(SETTLE_SECONDS)
        downtime_ms = move(redis)
        time.sleep(SETTLE_SECONDS)
        verdict = client.stop()
        if verdict["error"] or verdict["lost"] or verdict["duplicated"]:
            raise testbed.CommandFailed(f"the client lost replies: {verdict}")
        return {"client_gap_ms": verdict["max_gap_ms"], "downtime_ms": downtime_ms}
    finally:
        if client:
            client.kill()
        redis.forget()


def ours():
    return _measure(lambda redis: testbed.migrate(redis.name, "a", "b")[0]["downtime_ms"])


def peer():
    return _measure(_move_by_hand)


def _move_by_hand(redis):
    """What an administrator with runc, tar and ip does, everything prepared that can be."""
    name = redis.name
    runc = f"PATH=/opt/waft/bin:$PATH runc --root {RUNC_ROOT}"
    options = "--image-path /tmp/images --work-path /tmp/work --tcp-established"
    redis.make_network("b", bridge=None)
    for host in testbed.HOSTS:
        testbed.execute(host, "mkdir", "-p", "/tmp/images", "/tmp/work")
    # One script a host, so that nothing of the testbed's own lies between the steps.
    receiver = testbed.start("b", "sh", "-ec", f"""
        socat -b 1048576 -u TCP-LISTEN:{COPY_PORT} - | tar -x -C /tmp/images
        {runc} restore {options} --detach --bundle {redis.bundle} {name} </dev/null >/dev/null 2>&1
        date +%s%N
        ip link set v{name} master waft0
        ip netns exec {name} arping -q -c 1 -U -I eth0 {redis.address}
        """)
    time.sleep(SETTLE_SECONDS)
    started = testbed.execute("a", "sh", "-ec", f"""
        date +%s%N
        {runc} checkpoint {options} {name}
        ip link set v{name} down
        tar -c -C /tmp/images . | socat -b 1048576 -u - TCP:{testbed.ADDRESS["b"]}:{COPY_PORT}
        """).stdout
    resumed, errors = receiver.communicate(timeout=60)
    if receiver.returncode != 0:
        raise testbed.CommandFailed(errors)
    for host in testbed.HOSTS:
        testbed.execute(host, "rm", "-rf", "/tmp/images", "/tmp/work")
    testbed.execute("a", "ip", "netns", "delete", name)
    return (int(resumed) - int(started)) / 1e6
