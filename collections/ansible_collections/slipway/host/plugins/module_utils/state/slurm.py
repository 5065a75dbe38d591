# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts of a Slurm cluster: their hardware, and the munge key.

Keys of an entry of munge_keys: path, digest: SHA-256 digest of the key of the controller, empty
while the controller has none, managed: whether the role wrote files on this host before, key_host:
the controller, for messages. The key of a host that the role did not manage is never replaced.
"""

from __future__ import annotations

import json
import os

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]

# The role writes this folder first and removes it last.
STATE_FOLDER = "/var/lib/slipway/slurm"
# Where slurmctld keeps jobs without a shared folder: the folder of the package.
LOCAL_STATE = "/var/lib/slurm/slurmctld"
NODES = f"{STATE_FOLDER}/nodes.json"
# Written after the controller and its nodes have read the configuration.
APPLIED = f"{STATE_FOLDER}/applied.conf"
MUNGE_KEY = "/etc/munge/munge.key"
# The second path is that of older packages.
CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf")
DAEMON_OPTIONS = "/etc/default/slurmd"
# Controllers without which Slurm cannot limit jobs by control groups.
CONTROLLERS = {"cpuset", "memory"}
MAX_KEY_BYTES = 4096
PARTITION = "PartitionName="
# What the controller records of each node, for runs that do not reach the node.
RECORDED = {
    *("hostname", "address", "cpus", "sockets", "cores", "threads", "memory", "gpus"),
    *("reserved", "cgroup"),
}


def ask_node(paths: list[str], _reply: Json) -> Json:
    """Return for each root folder, normally ``/``, the host as a node of a cluster.

    ``hostname``: without the domain. ``cpus``: number of CPUs; ``sockets``, ``cores`` per socket
    and ``threads`` per core, 0 each where the CPUs do not fill them evenly. ``memory``: MiB.
    ``gpus``: ``[minor number of the device file, model or empty]`` of each GPU in the order of the
    PCI addresses. ``cgroup``: whether control groups limit CPUs and memory. ``munge_key``: digest
    of the munge key, empty without one. ``managed``: whether the role wrote files before.
    ``foreign``: configuration of Slurm that the role did not write. ``nodes``: nodes as the role
    recorded them on the controller. ``cluster`` and ``partitions``: names of the running cluster
    and of its partitions, on its controller.
    ``jobs_folder``: where slurmctld keeps its jobs, or will at its next start. ``time``: seconds
    since 1970.
    """
    import time

    return {
        root: {
            "hostname": os.uname().nodename.split(".")[0],
            **read_cpus(f"{root}sys/devices/system/cpu"),
            "memory": read_memory(f"{root}proc/meminfo"),
            "gpus": read_gpus(root),
            "cgroup": has_controllers(f"{root}sys/fs/cgroup/cgroup.controllers"),
            "munge_key": read_key_digest(root + MUNGE_KEY[1:]),
            "managed": os.path.isdir(root + STATE_FOLDER[1:]),
            "foreign": find_foreign(root),
            "nodes": read_nodes(root + NODES[1:]),
            "cluster": read_setting(root + APPLIED[1:], "ClusterName"),
            "partitions": read_partitions(root + APPLIED[1:]),
            "jobs_folder": read_setting(root + CONFIGURATIONS[0][1:], "StateSaveLocation"),
            "time": time.time(),
        }
        for root in paths
    }


def read_cpus(folder: str) -> Json:
    """Return the number of online CPUs, and how sockets, cores and threads divide them."""
    pairs = []
    for name in reading.list_names(folder) or []:
        socket = reading.read_word(f"{folder}/{name}/topology/physical_package_id")
        core = reading.read_word(f"{folder}/{name}/topology/core_id")
        if name[:3] == "cpu" and name[3:].isdigit() and socket and core:
            pairs.append((socket, core))
    cpus = len(pairs) or os.cpu_count() or 1
    sockets, cores = len({socket for socket, _core in pairs}), len(set(pairs))
    even = pairs and cores % sockets == 0 and cpus % cores == 0
    counts = (sockets, cores // sockets, cpus // cores) if even else (0, 0, 0)
    return {"cpus": cpus, **dict(zip(("sockets", "cores", "threads"), counts))}


def has_controllers(path: str) -> bool:
    """Return whether control groups of version 2 can limit CPUs and memory."""
    return CONTROLLERS.issubset(reading.read_word(path).split())


def read_memory(path: str) -> int:
    """Return the memory of the host in MiB, 0 if it is unknown."""
    for line in reading.read_word(path).splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"]:
            return int(words[1]) // 1024
    return 0


def read_gpus(root: str) -> list[Any]:
    """Return ``[minor, model]`` of each GPU that the loaded driver has.

    Where the driver describes none, the device files count, without a model.
    """
    folder, gpus = f"{root}proc/driver/nvidia/gpus", []
    for address in sorted(reading.list_names(folder) or []):
        lines = reading.read_word(f"{folder}/{address}/information").splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        minor = fields.get("Device Minor", "").strip()
        if minor.isdigit():
            gpus.append([int(minor), fields.get("Model", "").strip()])
    if gpus:
        return gpus
    names = reading.list_names(f"{root}dev") or []
    minors = [name[6:] for name in names if name[:6] == "nvidia" and name[6:].isdigit()]
    return [[minor, ""] for minor in sorted(map(int, minors))]


def read_key_digest(path: str) -> str:
    """Return the SHA-256 digest of a munge key, empty if there is none."""
    import hashlib

    try:
        content = reading.read_untrusted(path, MAX_KEY_BYTES)
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(content).hexdigest()


def find_foreign(root: str) -> str:
    """Return the path of a configuration of Slurm that the role did not write, or an empty text.

    Options in the file of the package would replace those of the role.
    """
    options = reading.read_word(root + DAEMON_OPTIONS[1:]).splitlines()
    if any(line.strip().startswith("SLURMD_OPTIONS=") for line in options):
        return DAEMON_OPTIONS
    if os.path.isdir(root + STATE_FOLDER[1:]):
        return ""
    return next((path for path in CONFIGURATIONS if os.path.lexists(root + path[1:])), "")


def read_nodes(path: str) -> Json:
    """Return the recorded nodes by the names of their hosts; a broken record counts as none."""
    try:
        nodes = json.loads(reading.read_file(path) or b"{}")
    except ValueError:
        return {}
    if not isinstance(nodes, dict):
        return {}
    return {
        host: node
        for host, node in nodes.items()
        if isinstance(node, dict) and RECORDED.issubset(node)
    }


def read_setting(path: str, name: str) -> str:
    """Return a setting of a file with the syntax of slurm.conf, empty without one."""
    for line in reading.read_word(path).splitlines():
        key, _equals, value = line.partition("=")
        if key == name:
            return value
    return ""


def read_partitions(path: str) -> list[str]:
    """Return the partitions in the configuration that slurmctld has read."""
    words = [line.split() for line in reading.read_word(path).splitlines()]
    return [line[0][len(PARTITION) :] for line in words if line and line[0].startswith(PARTITION)]


def ask_folder(path: str) -> list[int] | None:
    """Return what two hosts see alike of a folder on a shared file system, None without one.

    The number and the change time of the folder, which nobody can set; an empty list if others
    than root can change it. The file system of the host itself, as of a folder where nothing is
    mounted, does not count.
    """
    try:
        # A client of NFS asks the server again for the attributes of a folder that it opens.
        if reading.list_names(path) is None:
            return None
        found, root = os.stat(path), os.stat("/")
    except OSError:
        return None
    if found.st_dev == root.st_dev:
        return None
    return [found.st_ino, found.st_ctime_ns] if reading.is_trusted_folder(path) else []


ASKS = {"slurm_nodes": ask_node, "slurm_folders": reading.each(ask_folder)}


# --- Nothing below is sent to hosts with the survey. ---
from ansible_collections.slipway.host.plugins.module_utils.state import attributes
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    ConflictError,
    Kind,
)

KEY_ATTRIBUTES = attributes.exact(attributes.FILE, "munge", "munge", "0400")
DIGEST = 4


def compare_key(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a munge key; raise ConflictError for the key of somebody else."""
    path, found = entry["path"], answer["files"][entry["path"]]
    if found is None:
        yield MISSING, "a key"
        return
    if found[DIGEST] != entry["digest"]:
        if not entry["managed"]:
            raise ConflictError(
                f"{path}: found a munge key that Slipway did not write; expected none, or the key "
                f"of the controller {entry['key_host']}. Copy the key of the controller there, or "
                "remove it if no program on this host uses munge, then run again"
            )
        yield "another key", f"the key of {entry['key_host']}"
    yield from attributes.compare(found, KEY_ATTRIBUTES)


KINDS = (Kind("munge_keys", "path", "files", compare_key),)
