# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container as the survey describes it: what the engine reports, in the words of compose files.

This file travels to the host with the survey: Python 3.9, standard library, late imports.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

# Labels other than these may hold anything at all; they are neither needed nor sent.
LABELS = ("io.slipway.",)
COMPOSE_SERVICE = "com.docker.compose.service"
# Settings of a container that are empty unless somebody set them, by their name in compose files.
SETTINGS = {
    "privileged": "Privileged",
    "cap_add": "CapAdd",
    "cap_drop": "CapDrop",
    "security_opt": "SecurityOpt",
    "read_only": "ReadonlyRootfs",
    "init": "Init",
    "pid": "PidMode",
    "uts": "UTSMode",
    "userns_mode": "UsernsMode",
    "cgroup_parent": "CgroupParent",
    "devices": "Devices",
    "gpus": "DeviceRequests",
    "device_cgroup_rules": "DeviceCgroupRules",
    "group_add": "GroupAdd",
    "sysctls": "Sysctls",
    "volumes_from": "VolumesFrom",
    "links": "Links",
    "extra_hosts": "ExtraHosts",
    "dns": "Dns",
    "tmpfs": "Tmpfs",
    "mem_limit": "Memory",
    "cpus": "NanoCpus",
    "cpu_quota": "CpuQuota",
    "cpuset": "CpusetCpus",
    "pids_limit": "PidsLimit",
    "publish_all_ports": "PublishAllPorts",
}


def describe(listed: Json, inspected: Json, image: Json) -> Json:
    """Return a container as the engine reports it, in the words of compose files.

    IMAGE is the configuration of its image. Settings that compose files and images can hold
    secrets in, such as commands, are digests; of environment variables there are only the names
    that the image does not set.
    """
    config, host = inspected["Config"], inspected["HostConfig"]
    status = listed.get("Status", "")
    health = next(
        (word for word in ("unhealthy", "health: starting", "healthy") if word in status), ""
    )
    inherited = variables(image)
    return {
        "id": inspected["Id"],
        "name": inspected.get("Name", "").lstrip("/"),
        "service": (listed.get("Labels") or {}).get(COMPOSE_SERVICE, ""),
        "state": listed.get("State", ""),
        "health": health.replace("health: ", ""),
        "created": listed.get("Created", 0),
        "labels": _own_labels(config.get("Labels")),
        "image": inspected["Image"],
        "user": config.get("User") or "",
        "own": commands(config),
        "inherited": commands(image),
        "variables": sorted({n for n, v in variables(config) if (n, v) not in inherited}),
        "mounts": _mounts(inspected, image),
        "ports": _ports(host),
        "networks": sorted((inspected.get("NetworkSettings") or {}).get("Networks") or ()),
        "restart": _restart(host),
        "shm_size": host.get("ShmSize") or 0,
        "settings": _settings(host),
    }


def commands(config: Json) -> Json:
    """Return the digests of what a container or image runs."""
    return {
        "command": digest_of(config.get("Cmd")),
        "entrypoint": digest_of(config.get("Entrypoint")),
        "healthcheck": digest_of((config.get("Healthcheck") or {}).get("Test")),
        "working_dir": digest_of(config.get("WorkingDir")),
    }


def _mounts(inspected: Json, image: Json) -> list[list[Any]]:
    """Return ``[type, source, target, writable]`` of each mount.

    Without the volumes without a name that the image asks for.
    """
    unnamed = image.get("Volumes") or ()
    return sorted(
        [mount["Type"], mount.get("Name") or mount.get("Source", ""), mount["Destination"],
         bool(mount.get("RW"))]
        for mount in inspected.get("Mounts") or ()
        if not (mount["Destination"] in unnamed and len(mount.get("Name") or "") == 64)
    )  # fmt: skip


def _ports(host: Json) -> list[str]:
    """Return the published ports, such as ``127.0.0.1:8888:8888/tcp``."""
    return sorted(
        f"{bound.get('HostIp', '')}:{bound.get('HostPort', '')}:{inside}"
        for inside, bindings in (host.get("PortBindings") or {}).items()
        for bound in bindings or ()
    )


def _restart(host: Json) -> str:
    policy = host.get("RestartPolicy") or {}
    count = policy.get("MaximumRetryCount")
    return f"{policy.get('Name') or 'no'}{f':{count}' if count else ''}"


def _settings(host: Json) -> Json:
    """Return the settings that somebody set."""
    found = {name: host[key] for name, key in SETTINGS.items() if host.get(key)}
    for name in ("cap_add", "cap_drop"):
        if name in found:
            found[name] = sorted(capability.replace("CAP_", "") for capability in found[name])
    if "devices" in found:
        found["devices"] = sorted(str(device.get("PathOnHost")) for device in found["devices"])
    if "gpus" in found:
        found["gpus"] = [
            [request.get("Driver"), request.get("DeviceIDs") or request.get("Count")]
            for request in found["gpus"]
        ]
    if found.get("pids_limit", 0) < 0:
        del found["pids_limit"]
    if host.get("IpcMode", "") not in ("", "private", "shareable"):
        found["ipc"] = host["IpcMode"]
    # Null means the paths of the engine.
    if host.get("MaskedPaths") == []:
        found["systempaths"] = "unconfined"
    return found


def _own_labels(labels: Json | None) -> Json:
    """Return the labels that the survey compares."""
    return {key: value for key, value in (labels or {}).items() if key.startswith(LABELS)}


def digest_of(value: Any) -> str:
    """Return the digest of a JSON value; no value and an empty one are the same."""
    import hashlib

    return hashlib.sha256(json.dumps(value or [], sort_keys=True).encode()).hexdigest()


def variables(config: Json) -> list[tuple[str, str]]:
    """Return the environment variables of a container or image."""
    pairs = [text.partition("=") for text in config.get("Env") or ()]
    return [(name, value) for name, _value, value in pairs]
