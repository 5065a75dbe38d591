# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the survey of a host shows to people: GPUs, versions, images, services, disks, packages.

Pure: made from the facts, the owned state and the answer that the survey has anyway. An overview
has only the keys that the survey asked for: a survey of some roles does not know the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import health as gpu_health
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu import tables
from ansible_collections.slipway.host.plugins.module_utils.gpu.needs import skip_reason
from ansible_collections.slipway.host.plugins.module_utils.host.declared import TOOLKIT_PACKAGE
from ansible_collections.slipway.host.plugins.module_utils.state import model

Entry = Mapping[str, Any]
Owned = Mapping[str, Sequence[Entry]]
_NO_IMAGE: tuple[str, Mapping[str, Any]] = ("", {})
# Health of a GPU, the worst first.
FAULT, MISSING, WARNING, UNKNOWN, HEALTHY = "fault", "missing", "warning", "unknown", "healthy"


def describe(
    facts: Entry,
    owned: Mapping[str, Owned],
    answer: Entry,
    findings: Sequence[gpu_health.Finding],
    urls: Mapping[str, str],
) -> dict[str, Any]:
    """Return the overview of a host.

    OWNED is owned state by role, FINDINGS are the faults of GPUs, URLS the addresses of the
    services that answer. Keys: roles, gpus, driver, engine, disks, boot, and if asked for: toolkit,
    packages, images, services. Sizes are in bytes, memory of GPUs in MiB, times in seconds since
    1970.
    """
    statements = list(owned.values())
    seen: dict[str, Any] = {
        "roles": list(owned),
        "gpus": _gpus(facts, statements, answer, findings),
        "driver": _driver(facts),
        "engine": f"{facts['docker_package']} {facts['docker_version']}".strip(),
        "disks": _disks(answer.get("disks") or {}),
        "boot": str(answer.get("boot") or ""),
    }
    if any("packages" in statement for statement in statements):
        seen["packages"] = list(_packages(statements, answer))
    toolkit = [one for one in seen.get("packages", ()) if one["name"] == TOOLKIT_PACKAGE]
    if toolkit:
        seen["toolkit"] = toolkit[0]["version"]
    if any("images" in statement for statement in statements):
        seen["images"] = list(_images(statements, answer.get("images") or {}))
    if any("projects" in statement for statement in statements):
        seen["services"] = list(_services(statements, answer.get("projects") or {}, urls))
    return seen


def _entries(statements: Iterable[Owned], kind: str) -> Iterator[Entry]:
    """Yield the entries of a kind that are declared to be present."""
    for statement in statements:
        for entry in statement.get(kind, ()):
            if entry.get("state", "present") == "present":
                yield entry


def _driver(facts: Entry) -> dict[str, str]:
    """Return version and flavour of the loaded NVIDIA module, empty values without one."""
    module = gpu_host.loaded(facts)
    return {
        "version": module.version if module else "",
        "flavour": (module.modules or "") if module else "",
    }


def _gpus(
    facts: Entry,
    statements: Sequence[Owned],
    answer: Entry,
    findings: Sequence[gpu_health.Finding],
) -> list[dict[str, Any]]:
    """Return the GPUs that the host uses, then those that are recorded and gone."""
    if not gpu_host.has_gpu(facts):
        return []
    smi = ((answer.get("health") or {}).get("smi")) or {}
    live = gpu_health.by_address(smi.get("gpus") or {})
    owners = gpu_health.by_address(smi.get("owners") or {})
    names = _user_names(answer)
    reserved = _reserved(statements)
    devices = [gpu for gpu in gpu_host.host_facts(facts).gpus if skip_reason(gpu) is None]
    gpus = [
        {
            "address": gpu.address,
            "name": live.get(gpu.address, {}).get("product_name") or tables.name_of(gpu.device),
            "memory": _mebibytes(live.get(gpu.address, {}).get("fb_memory_usage/total")),
            "used": _mebibytes(live.get(gpu.address, {}).get("fb_memory_usage/used")),
            "health": _health_of(gpu.address, gpu.address in live, findings),
            "users": [names.get(uid, f"uid {uid}") for uid in owners.get(gpu.address, ())],
            "reserved": reserved.get(str(number), []),
        }
        for number, gpu in enumerate(devices)
    ]
    gone = {"address": "", "name": "missing", "memory": 0, "used": 0, "health": MISSING}
    missing = gpu_host.recorded(facts) - len(gpus)
    return gpus + [{**gone, "users": [], "reserved": []} for _number in range(missing)]


def _health_of(address: str, answers: bool, findings: Sequence[gpu_health.Finding]) -> str:
    mine = [finding for finding in findings if finding.where == address]
    if any(not finding.warning for finding in mine):
        return FAULT
    if mine:
        return WARNING
    return HEALTHY if answers else UNKNOWN


def _mebibytes(text: str | None) -> int:
    number = (text or "").partition(" ")[0]
    return int(number) if number.isdigit() else 0


def _user_names(answer: Entry) -> dict[int, str]:
    """Return the names of root and of the declared users by their user ID."""
    users = (answer.get("users") or {}).items()
    return {0: "root", **{int(found[0]): name for name, found in users if found}}


def _reserved(statements: Sequence[Owned]) -> dict[str, list[str]]:
    """Return the services that reserve each GPU, by the number of the GPU."""
    found: dict[str, list[str]] = {}
    for project in _entries(statements, "projects"):
        for service in project["services"]:
            settings = service.get("container", {}).get("settings", {})
            for _driver_name, ids in settings.get("gpus") or ():
                for gpu in ids if isinstance(ids, list) else ():
                    number = str(gpu).rpartition("=")[2].partition(":")[0]
                    found.setdefault(number, []).append(project["name"])
    return {number: list(dict.fromkeys(names)) for number, names in found.items()}


def _disks(disks: Mapping[str, Sequence[int] | None]) -> list[dict[str, Any]]:
    """Return free and total bytes of each disk once, by the first folder on it."""
    sizes: dict[tuple[int, ...], str] = {}
    for path, size in disks.items():
        if size:
            sizes.setdefault(tuple(size), path)
    return [{"path": path, "free": size[0], "total": size[1]} for size, path in sizes.items()]


def _packages(statements: Sequence[Owned], answer: Entry) -> Iterator[dict[str, Any]]:
    installed = answer.get("packages") or {}
    for name in dict.fromkeys(entry["name"] for entry in _entries(statements, "packages")):
        want, state, version = installed.get(name) or ("", "", "")
        if state == "installed":
            yield {"name": name, "version": version, "held": want == "hold"}


def _images(statements: Sequence[Owned], images: Entry) -> Iterator[dict[str, Any]]:
    for entry in _entries(statements, "images"):
        identity, record = images.get(entry["reference"]) or _NO_IMAGE
        yield {
            "reference": entry["reference"],
            "bytes": int(record.get("bytes", 0)),
            "time": int(record.get("time", 0)),
            "present": bool(identity),
        }


def _services(
    statements: Sequence[Owned], projects: Entry, urls: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    for project in _entries(statements, "projects"):
        found = projects.get(project["name"]) or {}
        containers = {one["service"]: one for one in found.get("containers", ())}
        addresses = {name: urls[name] for name in project.get("urls", {}) if name in urls}
        for service in project["services"]:
            container = containers.get(service["name"])
            state = container["state"] if container else "missing"
            health = container["health"] if container and state == "running" else ""
            yield {
                "name": service["name"],
                "project": project["name"],
                "state": health or state,
                "urls": addresses,
            }
            addresses = {}


def service_urls(
    owned: Mapping[str, Owned], compared: Mapping[str, model.Comparison], answer: Mapping[str, Any]
) -> dict[str, str]:
    """Return the URL of each declared service that runs as declared and answers, by its name."""
    starting = {
        name
        # None on a host without Docker.
        for name, found in (answer.get("projects") or {}).items()
        if any(container["health"] == "starting" for container in found["containers"])
    }
    down = starting | {
        name
        for comparison in compared.values()
        for kind, name in (
            *((one.kind, one.name) for one in comparison.differences),
            *((one.kind, one.name) for one in comparison.conflicts),
            *(_kind_and_name(text) for one in comparison.conflicts for text in one.blocks),
        )
        if kind == "projects"
    }
    return {
        name: url
        for statement in owned.values()
        for project in statement.get("projects", ())
        if project["name"] not in down
        for name, url in project.get("urls", {}).items()
    } | _door_urls(owned, compared)


def _door_urls(
    owned: Mapping[str, Owned], compared: Mapping[str, model.Comparison]
) -> dict[str, str]:
    """Return the address of each site of a front door that is as declared."""
    return {
        f"{site['service']} (front door)": site["url"]
        for role, statement in owned.items()
        for entry in statement.get("door_ports", ())
        if not (compared[role].differences or compared[role].conflicts)
        for site in entry["sites"]
    }


def _kind_and_name(text: str) -> tuple[str, str]:
    kind, _, name = text.partition(" ")
    return kind, name
