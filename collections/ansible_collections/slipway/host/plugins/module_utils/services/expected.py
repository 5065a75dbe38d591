# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine must report of the container of a service, and the comparison with its report.

PRIVATE to the collection. Runs on the controller and on hosts. A container is compared setting by
setting: every label of it can be copied by whoever starts a container. Values of variables and
commands are compared by digest and never shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.state import containers
from ansible_collections.slipway.host.plugins.module_utils.state.container_description import (
    digest_of,
)

Change = tuple[str, str]
Found = Mapping[str, Any]
_SIZE = re.compile(r"([\d.]+)\s*([bkmgt]?)i?b?", re.IGNORECASE)
_UNITS = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4}
# Settings that the kernel of a host may not have; the engine then drops them.
_LIMITS = {"mem_limit": "memory", "pids_limit": "pids", "cpus": "cpu"}
# Variables that Docker's own settings add to all containers.
_PROXIES = frozenset(
    name
    for proxy in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for name in (proxy, proxy.upper())
)
# Settings and values that containers of every version of Slipway have.
_ORDINARY = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
_RIGHTS = (
    *("privileged", "cap_add", "cap_drop", "security_opt", "devices", "device_cgroup_rules"),
    *("pid", "ipc", "uts", "userns_mode", "group_add", "volumes_from", "systempaths"),
)
ROOT_USERS = ("", "0", "root")


def size_in_bytes(size: str | int) -> int:
    """Return a size such as ``8g`` in bytes, as Docker reads it."""
    match = _SIZE.fullmatch(str(size))
    if match is None:
        raise ValueError(f"{size!r} is not a size")
    return int(float(match[1]) * 1024 ** _UNITS[match[2].lower()])


def expected_container(
    project: str, service: Mapping[str, Any], secrets: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the engine must report of the container of a compose SERVICE.

    SECRETS maps the path of each secret in the container to its file on the host.
    """
    reserved = service.get("deploy", {}).get("resources", {}).get("reservations", {})
    settings = {
        "cap_drop": service["cap_drop"],
        "security_opt": service["security_opt"],
        "read_only": service["read_only"],
        "init": service["init"],
        "tmpfs": dict(_tmpfs(entry) for entry in service.get("tmpfs", ())),
        "mem_limit": size_in_bytes(service.get("mem_limit", 0)),
        "cpus": round(float(service.get("cpus", 0)) * 1e9),
        "pids_limit": int(service.get("pids_limit", 0)),
        "gpus": [
            [device["driver"], device["device_ids"]] for device in reserved.get("devices", ())
        ],
    }
    mounts = [
        [mount["type"], mount["source"], mount["target"], not mount.get("read_only", False)]
        for mount in service.get("volumes", ())
    ]
    mounts += [["bind", source, target, False] for target, source in secrets.items()]
    environment = service.get("environment", {})
    healthcheck = service.get("healthcheck")
    return {
        "user": service["user"],
        "restart": service["restart"],
        "networks": [f"{project}_default"],
        "ports": sorted(f"{_plain_address(port)}/tcp" for port in service.get("ports", ())),
        "mounts": sorted(mounts),
        "shm_size": size_in_bytes(service.get("shm_size", 0)),
        "settings": {name: value for name, value in settings.items() if value},
        "command": digest_of(service["command"]) if "command" in service else "",
        "healthcheck": digest_of(healthcheck["test"]) if healthcheck else "",
        "labels": dict(service["labels"]),
        "variables": sorted(environment),
        "environment": digest_of([[name, environment[name]] for name in sorted(environment)]),
    }


def _tmpfs(entry: str) -> tuple[str, str]:
    path, _separator, options = entry.partition(":")
    return path, options


def _plain_address(port: str) -> str:
    """Return ``address:port:port`` without the brackets of an IPv6 address."""
    return port.replace("[", "").replace("]", "")


def environment_question(project: str, service: Mapping[str, Any]) -> str:
    """Return what ``ask_environments`` is asked about a service."""
    container = service["container"]
    return json.dumps([project, container["variables"], container["environment"]])


def compare_container(
    project: str, service: Mapping[str, Any], found: Found, answer: Mapping[str, Any]
) -> Iterator[Change]:
    """Yield where a container differs from the declared SERVICE of a PROJECT."""
    name = service["name"]
    yield from _compare_image(service, found, answer)
    declared = service.get("container")
    if declared is None:
        return
    for key in ("user", "restart", "networks", "ports", "mounts"):
        if found[key] != declared[key]:
            yield f"{name}: {key} {_text(found[key])}", _text(declared[key])
    if declared["shm_size"] and found["shm_size"] != declared["shm_size"]:
        yield f"{name}: shm_size {found['shm_size']}", str(declared["shm_size"])
    limits = answer["projects"][project]["limits"]
    yield from _compare_settings(name, declared["settings"], found["settings"], limits)
    yield from _compare_hidden(name, declared, found)
    if found["id"] not in answer["environments"].get(project, ()):
        yield f"{name}: values of environment variables differ", "the declared ones"


def _compare_hidden(name: str, declared: Found, found: Found) -> Iterator[Change]:
    """Yield the names of settings that differ and may contain secrets."""
    for key, inherited in found["inherited"].items():
        if found["own"][key] != (declared.get(key) or inherited):
            yield f"{name}: {key} differs", "the declared one"
    for key, value in declared["labels"].items():
        if found["labels"].get(key) != value and key != labels.CONFIG:
            yield f"{name}: label {key} differs", "the declared one"
    extra = sorted({*found["variables"]} - {*declared["variables"]} - _PROXIES)
    if extra:
        yield f"{name}: undeclared environment variables {', '.join(extra)}", "none"


def _compare_image(
    service: Mapping[str, Any], found: Found, answer: Mapping[str, Any]
) -> Iterator[Change]:
    """Yield that a container runs another image than the recorded one of the declared context."""
    if not service.get("image"):
        return
    name, digest = service["name"], service["image"]
    _identity, record = (answer.get("images") or {}).get(service["reference"]) or ["", {}]
    if not record.get("id"):
        yield f"{name} runs an image that is not recorded on this host", digest[:12]
    elif record["digest"] != digest:
        yield f"{name} runs an older image", digest[:12]
    elif record["id"] != found["image"]:
        yield (
            f"{name} runs image {containers.short_id(found['image'])}",
            containers.short_id(record["id"]),
        )


def _compare_settings(
    name: str, declared: Mapping[str, Any], found: Mapping[str, Any], limits: Sequence[str]
) -> Iterator[Change]:
    for key in sorted({*declared, *found}):
        if declared.get(key) == found.get(key):
            continue
        if key in _LIMITS and key not in found and _LIMITS[key] not in limits:
            continue
        yield f"{name}: {key} {_text(found.get(key))}", _text(declared.get(key))


def _text(value: Any) -> str:
    """Return a setting for people."""
    if value is None or value in ([], {}):
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def has_ordinary_rights(found: Found) -> bool:
    """Whether a container has no right that Slipway never gives to a service."""
    settings = found["settings"]
    given = {key: settings[key] for key in _RIGHTS if key in settings}
    return given == _ORDINARY and found["user"].partition(":")[0] not in ROOT_USERS
