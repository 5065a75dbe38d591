# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container of a throwaway host: its name, its run options, and its state in the engine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.bases import base_named, content_key
from lab.errors import LabError
from lab.host_spec import HostSpec

SPEC_LABEL = "slipway.spec"

# The host's own engine needs a real disk under these folders: the container's file system is an
# overlay already.
ENGINE_FOLDERS = ("/var/lib/docker", "/var/lib/containerd")

# Options by which a container can run systemd and an engine, also on machines that refuse
# --privileged. Without systempaths=unconfined the inner engine cannot create its bridge network.
SECURITY_OPTIONS = (
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--security-opt=systempaths=unconfined",
)
RUN_OPTIONS = (
    *SECURITY_OPTIONS,
    "--tmpfs=/run",
    "--tmpfs=/run/lock",
    "--env=container=docker",
    "--stop-signal=SIGRTMIN+3",
    "--tty",
)

# By bit number, as in linux/capability.h. The newest three are left out: engines of 2020 do not
# support them, and SYS_ADMIN includes them.
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD"),
    *("LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG"),
    *("WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ"),
)


@dataclass(frozen=True)
class ContainerState:
    """The state of a host's container in the engine."""

    container: str
    running: bool
    address: str
    spec: str


def parse_inspect(text: str) -> ContainerState:
    """Read the output of `docker container inspect` for one container."""
    container: dict[str, Any] = json.loads(text)[0]
    networks = container["NetworkSettings"]["Networks"]
    return ContainerState(
        container=container["Id"],
        running=container["State"]["Running"],
        address=next((network["IPAddress"] for network in networks.values()), ""),
        spec=container["Config"]["Labels"].get(SPEC_LABEL, ""),
    )


def container_name(name: str, group: str, state_folder: Path) -> str:
    """Return the container's name, which is unique for each checkout of the project."""
    owner = hashlib.sha256(str(state_folder).encode()).hexdigest()[:6]
    return f"slipway-{group}-{name}-{owner}"


def spec_digest(spec: HostSpec) -> str:
    """Return a digest that changes with everything that the container is created from."""
    recipe = asdict(spec) | {
        "base_key": content_key(base_named(spec.base)),
        "options": [*RUN_OPTIONS, *CAPABILITIES, *ENGINE_FOLDERS],
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def capability_options(bounding_set: int) -> list[str]:
    """Return the run options that add the capabilities of this machine's bounding set.

    Each capability is added by name, because "all" fails where the engine itself lacks one: old
    engines request more than exist, new engines cannot drop a missing one. SYS_RESOURCE is missing
    on some machines, so hosts run without it on every machine.
    """
    return [
        f"--cap-add={name}"
        for bit, name in enumerate(CAPABILITIES)
        if bounding_set >> bit & 1 and name != "SYS_RESOURCE"
    ]


def bounding_set() -> int:
    """Return the capability bounding set of this process (proc_pid_status(5), CapBnd)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("CapBnd:")[2].split()[0], base=16)


def cgroup_options(root: Path = Path("/sys/fs/cgroup")) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the run options and the command by which systemd can write to a cgroup v2 tree.

    Raises LabError on a machine without cgroup v2.
    """
    if (root / "cgroup.controllers").exists():
        # The engine mounts the container's part of the tree read-only.
        remount = "mount -o remount,bind,rw /sys/fs/cgroup && exec /sbin/init"
        return ("--cgroupns=private",), ("/bin/sh", "-c", remount)
    if (root / "unified/cgroup.procs").exists():
        # Beside cgroup v1 the engine mounts no v2 tree. In the machine's whole tree, systemd finds
        # its own part by /proc/self/cgroup, which requires the machine's cgroup namespace.
        tree = f"--volume={root}/unified:/sys/fs/cgroup:rw"
        return ("--cgroupns=host", tree), ("/sbin/init",)
    raise LabError(
        f"systemd in a container requires cgroup v2, which is mounted neither at {root} nor at"
        f" {root}/unified. Run: mkdir {root}/unified && mount -t cgroup2 none {root}/unified"
    )
