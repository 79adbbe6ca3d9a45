"""Containers on the testbed: an identical rootfs and bundle on both hosts, run by runc on one."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from lab import testbed

RUNC_ROOT = "/run/runc"
PREFIX_LENGTH = 24

# What a program finds in its container besides its rootfs. CRIU carries the tmpfs mounts.
MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
     "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
     "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
     "options": ["nosuid", "noexec", "nodev", "mode=1777"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs",
     "options": ["nosuid", "noexec", "nodev", "ro"]},
    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
     "options": ["nosuid", "nodev", "mode=1777"]},
    {"destination": "/run", "type": "tmpfs", "source": "tmpfs",
     "options": ["nosuid", "nodev", "mode=1777"]},
]
CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_NET_BIND_SERVICE",
                "CAP_SETGID", "CAP_SETUID"]


def libraries(program):
    """The shared libraries and the loader that a program is linked with."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return re.findall(r"(/\S+) \(0x", done.stdout)


def copy_into(rootfs, path):
    """Copies a file or tree of this machine to the same place in a rootfs, links resolved."""
    source = Path(path)
    target = rootfs / source.relative_to("/")
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=False)
    else:
        shutil.copy2(source, target)


class Workload:
    """A container NAME at `address`: its bundle is /srv/NAME on both hosts, its network namespace
    /run/netns/NAME on the host it is on, a veth into that host's bridge."""

    def __init__(self, name, address, argv, *, programs=(), files=(), env=(), user=0,
                 capabilities=CAPABILITIES, mounts=(), seccomp=None, directories=(), cwd="/"):
        self.name = name
        self.address = address
        self.bundle = Path("/srv") / name
        self._prepare([argv[0], *programs], files, directories,
                      self._config(argv, env, user, capabilities, mounts, seccomp, cwd))

    def _config(self, argv, env, user, capabilities, mounts, seccomp, cwd):
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": False, "user": {"uid": user, "gid": user}, "args": list(argv),
                "env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", *env], "cwd": cwd,
                "capabilities": {kind: list(capabilities)
                                 for kind in ("bounding", "effective", "permitted")},
                "noNewPrivileges": True,
            },
            "root": {"path": "rootfs"},
            "hostname": self.name,
            "mounts": MOUNTS + list(mounts),
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
                + [{"type": "network", "path": f"/run/netns/{self.name}"}],
                "resources": {"devices": [{"allow": True, "access": "rwm"}]},
            },
        }
        if seccomp:
            config["linux"]["seccomp"] = seccomp
        return config

    def _prepare(self, programs, files, directories, config):
        first, second = (testbed.DATA / host / "srv" / self.name for host in testbed.HOSTS)
        for place in (first, second):
            shutil.rmtree(place, ignore_errors=True)
        rootfs = first / "rootfs"
        for program in programs:
            copy_into(rootfs, program)
            for library in libraries(program):
                copy_into(rootfs, library)
        for path in files:
            copy_into(rootfs, path)
        for directory in ("proc", "dev", "sys", "tmp", "run", "etc", *directories):
            (rootfs / directory).mkdir(parents=True, exist_ok=True)
        # runc gives a tmpfs the mode of the directory that it covers.
        for directory in ("tmp", "run"):
            (rootfs / directory).chmod(0o1777)
        accounts = {"passwd": "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
                    "group": "root:x:0:\nnogroup:x:65534:\n"}
        for name, text in accounts.items():
            (rootfs / "etc" / name).write_text(text)
        (first / "config.json").write_text(json.dumps(config, indent=1))
        self.copy_to_other_host()

    def copy_to_other_host(self):
        """Makes b's bundle the same as a's, times included."""
        shutil.rmtree(testbed.DATA / "b" / "srv" / self.name, ignore_errors=True)
        testbed.run("cp", "-a", testbed.DATA / "a" / "srv" / self.name,
                    testbed.DATA / "b" / "srv" / self.name)

    def path_on(self, host, path):
        """A path of the container's rootfs, as this machine sees it."""
        return testbed.DATA / host / "srv" / self.name / "rootfs" / str(path).lstrip("/")

    def make_network(self, host, bridge="waft0"):
        """Makes the network namespace on `host`, its veth in `bridge` or in none."""
        last = int(self.address.rsplit(".", 1)[1])
        testbed.execute(host, "sh", "-ec", f"""
            ip netns add {self.name}
            ip link add v{self.name} type veth peer name eth0 netns {self.name}
            ip link set v{self.name} {f"master {bridge}" if bridge else ""} up
            ip -n {self.name} link set lo up
            ip -n {self.name} link set eth0 up address 02:77:00:00:01:{last:02x}
            ip -n {self.name} address add {self.address}/{PREFIX_LENGTH} dev eth0
            ip -n {self.name} address add fd77::{last}/64 dev eth0 nodad
            ip -n {self.name} route add default via 10.77.0.1
            """)

    def start(self, host):
        """Makes the network namespace on `host` and starts the container in it."""
        self.make_network(host)
        # Its standard output must not be a file or pipe of ours: CRIU cannot carry those.
        testbed.execute(host, "sh", "-c",
                        f"log=$(mktemp); runc --root {RUNC_ROOT} --log $log run --detach "
                        f"--bundle {self.bundle} {self.name} </dev/null >/dev/null 2>&1; code=$?; "
                        f"cat $log; rm $log; exit $code")

    def runc(self, host, *arguments, check=True):
        return testbed.execute(host, "runc", "--root", RUNC_ROOT, *arguments, check=check)

    def state(self, host):
        """runc's word for it ("running"), or None if it is not on `host`."""
        done = self.runc(host, "state", self.name, check=False)
        return json.loads(done.stdout)["status"] if done.returncode == 0 else None

    def pid(self, host):
        """Of its init, as `host` numbers it."""
        return json.loads(self.runc(host, "state", self.name).stdout)["pid"]

    def execute(self, host, *argv, check=True):
        """Runs a command on `host` in the container's root, pid and network namespace."""
        return testbed.execute(host, "nsenter", "-t", self.pid(host), "-m", "-p", "-n", "-r", "-w",
                               *argv, check=check)

    def remove(self, host):
        """Ends the container and its network namespace, whatever state they are in."""
        self.runc(host, "delete", "--force", self.name, check=False)
        testbed.execute(host, "ip", "netns", "delete", self.name, check=False)

    def forget(self):
        for host in testbed.HOSTS:
            self.remove(host)
            place = testbed.DATA / host / "srv" / self.name
            if place.exists() and not os.path.ismount(place):
                testbed.run("rm", "-rf", "--one-file-system", place)


