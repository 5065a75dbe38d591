# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the acceptance checks expect on a host, taken from the owned state of its roles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.host import slurm_check

Owned = Mapping[str, Sequence[Mapping[str, Any]]]

DOCKER_GROUP = "docker"
DRIVER_MODULE = "nvidia"
TOOLKIT_PACKAGE = "nvidia-container-toolkit"
ENGINE_UNIT = "docker.service"


def declare(statements: Iterable[Owned]) -> dict[str, Any]:
    """Return what the roles declare for a host, as the option ``declared`` of the module verify.

    A key is missing if no role declares anything about it: then the packages of the host decide.
    ``docker_users`` are the only users who may reach the engine. ``services`` maps the name of each
    service to the JSON text of the request that checks it, empty for a service without an endpoint.
    ``front_door`` has the sites of the front door that runs on the host, ``slurm`` the units of
    its part in a Slurm cluster.
    """
    lists: dict[str, list[Mapping[str, Any]]] = {}
    for owned in statements:
        for kind, entries in owned.items():
            lists.setdefault(kind, []).extend(entries)
    packages = [entry["name"] for entry in lists.get("packages", ()) if _is_present(entry)]
    declared: dict[str, Any] = {
        "packages": sorted(set(packages)),
        "datasets": [
            {key: entry[key] for key in ("path", "places", "owner", "mode")}
            for entry in lists.get("datasets", ())
            if _is_present(entry) and not entry.get("offer")
        ],
        "images": [entry["reference"] for entry in lists.get("images", ())],
        "services": {
            service["name"]: _request_of(service)
            for project in lists.get("projects", ())
            for service in project["services"]
        },
    }
    if "door_ports" in lists:
        declared["front_door"] = [site for one in lists["door_ports"] for site in one["sites"]]
    if "modules" in lists:
        modules = [entry["name"] for entry in lists["modules"] if _is_present(entry)]
        declared["driver"] = DRIVER_MODULE in modules
    active = {entry["name"] for entry in lists.get("units", ()) if entry.get("active")}
    if slurm := sorted(active.intersection(slurm_check.UNITS.values())):
        declared["slurm"] = slurm
    if TOOLKIT_PACKAGE in packages:
        declared["toolkit"] = True
    if any(entry["name"] == ENGINE_UNIT for entry in lists.get("units", ())):
        declared["engine"] = ENGINE_UNIT in active
    for entry in lists.get("members", ()):
        if entry["group"] == DOCKER_GROUP and entry.get("exclusive"):
            declared["docker_users"] = list(entry["users"])
    return declared


def _request_of(service: Mapping[str, Any]) -> str:
    return str(service.get("container", {}).get("labels", {}).get(labels.PROOF, ""))


def _is_present(entry: Mapping[str, Any]) -> bool:
    return entry.get("state", "present") == "present" and not entry.get("optional")
