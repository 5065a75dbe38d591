# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compose projects from the catalogue: what an image says of its service, and what a host adds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from ansible_collections.slipway.host.plugins.module_utils import _owned
from ansible_collections.slipway.host.plugins.module_utils._image_index import Planned

FOLDER = "/etc/slipway/services"
HEADER = "# Written by Slipway's role ml_services; changes are overwritten.\n"
ANY_ADDRESS = ("0.0.0.0", "::", "[::]")


class ServiceError(ValueError):
    """A project asks for something that its image does not have."""


def _published(
    project: Mapping[str, Any], build: Planned, default_address: str
) -> dict[str, tuple[str, int, int]]:
    """Return port name to address, host port and container port."""
    declared = build.image["service"].get("publish", {})
    known = build.image["ports"]
    unknown = set(project.get("ports") or {}) - set(known)
    if unknown:
        raise ServiceError(
            f"project {project['name']}: image {build.name} has no port named "
            f"{', '.join(sorted(unknown))}; it has {', '.join(sorted(known)) or 'none'}"
        )
    wanted = {**declared, **(project.get("ports") or {})}
    address = project.get("publish") or default_address
    return {name: (address, int(port), known[name]) for name, port in sorted(wanted.items())}


def _service(
    project: Mapping[str, Any], build: Planned, published: Mapping[str, tuple[str, int, int]]
) -> dict[str, Any]:
    """Return the compose service, without the label that tells its configuration."""
    declared = build.image["service"]
    service: dict[str, Any] = {
        "image": build.reference,
        # The image was built and proven here; a registry must not replace it.
        "pull_policy": "never",
        "restart": declared.get("restart", "unless-stopped"),
        "init": declared.get("init", True),
        "read_only": declared.get("read_only", False),
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    if declared.get("tmpfs"):
        service["tmpfs"] = list(declared["tmpfs"])
    if published:
        service["ports"] = [f"{host}:{port}:{inner}" for host, port, inner in published.values()]
    if project.get("environment"):
        service["environment"] = {k: str(v) for k, v in sorted(project["environment"].items())}
    for ours, compose in (
        ("memory", "mem_limit"),
        ("cpus", "cpus"),
        ("pids", "pids_limit"),
        ("shm_size", "shm_size"),
    ):
        value = project.get(ours) or declared.get(ours)
        if value is not None:
            service[compose] = value
    return service


def _proof(build: Planned) -> dict[str, str]:
    """Return the label from which the role host_verify knows how to prove the service."""
    endpoint = build.image["service"].get("endpoint")
    if not endpoint:
        return {}
    proof = {**endpoint, "port": build.image["ports"][endpoint["port"]]}
    return {_owned.LABEL_PROOF: json.dumps(proof, sort_keys=True)}


def _url(build: Planned, published: Mapping[str, tuple[str, int, int]], host: str) -> str | None:
    """Return where a person finds the service, None where it publishes no endpoint."""
    endpoint = build.image["service"].get("endpoint")
    if not endpoint or endpoint["port"] not in published:
        return None
    address, port, _inner = published[endpoint["port"]]
    shown = host if address in ANY_ADDRESS else address
    return f"http://{shown}:{port}{endpoint.get('path', '/')}"


def project(
    declared: Mapping[str, Any], build: Planned, default_address: str, host: str
) -> dict[str, Any]:
    """Return one project for the module ``services`` and for the survey.

    DECLARED is an entry of ``ml_services_projects``, BUILD its image on this host,
    DEFAULT_ADDRESS what ports are bound to when it does not say, HOST how others reach the host.
    Raise ServiceError where it asks for what the image does not have.
    """
    name = declared["name"]
    if not build.image.get("service"):
        raise ServiceError(f"project {name}: image {build.name} declares no service")
    published = _published(declared, build, default_address)
    service = _service(declared, build, published)
    config = hashlib.sha256(json.dumps(service, sort_keys=True).encode()).hexdigest()[:16]
    service["labels"] = {_owned.LABEL_CONFIG: config, **_proof(build)}
    url = _url(build, published, host)
    # By way of JSON, since Ansible's strings are more than strings and YAML refuses them.
    plain = json.loads(json.dumps({"services": {name: service}}))
    content = yaml.safe_dump(plain, sort_keys=False)
    return {
        "name": name,
        "file": {"path": f"{FOLDER}/{name}/compose.yaml", "content": HEADER + content},
        "project": {
            "name": name,
            "services": [{"name": name, "config": config, "image": build.digest}],
            "url": url,
        },
    }


def owned(projects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the owned state of the role for PROJECTS as :func:`project` returns them."""
    return {
        "files": [entry["file"] for entry in projects],
        "folders": [{"path": FOLDER, "entries": [entry["name"] for entry in projects]}],
        "projects": [entry["project"] for entry in projects],
    }
