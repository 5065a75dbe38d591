# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The compose file of a project: its service, its labels, its text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.services.mounts import Mount
from ansible_collections.slipway.host.plugins.module_utils.services.project import Project
from ansible_collections.slipway.host.plugins.module_utils.services.published import PublishedPort
from ansible_collections.slipway.host.plugins.module_utils.services.secrets import (
    Secret,
    secret_path,
)

HEADER = "# Written by Slipway's role ml_services; changes are overwritten.\n"
# Where compose puts secrets in a container.
SECRETS_INSIDE = "/run/secrets"
LIMITS = (
    ("memory", "mem_limit"),
    ("cpus", "cpus"),
    ("pids", "pids_limit"),
    ("shm_size", "shm_size"),
)
TOKEN = "{token}"
# A number in YAML 1.2, such as 1e3 and 0o17, which are texts in YAML 1.1.
NUMBER = re.compile(r"[-+]?(0[xob][0-9a-fA-F_]+|([0-9_]+\.?[0-9_]*|\.[0-9_]+)([eE][-+]?[0-9]+)?)")


def compose_service(
    project: Project,
    published: Sequence[PublishedPort],
    mounts: Sequence[Mount],
    secrets: Sequence[Secret],
) -> dict[str, Any]:
    """Return the compose service, without GPUs and labels."""
    image_service, declared = project.service, project.declared
    service: dict[str, Any] = {
        "image": project.build.reference,
        # The image was built and tested here; a registry must not replace it.
        "pull_policy": "never",
        "user": ":".join(map(str, project.user)),
        "restart": image_service["restart"],
        "init": image_service["init"],
        "read_only": image_service["read_only"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    environment = {
        **image_service["environment"],
        **{secret.path_variable: f"{SECRETS_INSIDE}/{secret.name}" for secret in secrets},
        **(declared.get("environment") or {}),
    }
    optional: dict[str, Any] = {
        "command": image_service.get("command"),
        "tmpfs": image_service["tmpfs"],
        "ports": [port.binding for port in published],
        "volumes": [mount.compose for mount in mounts],
        "secrets": [secret.name for secret in secrets],
        "environment": {
            key: "" if value is None else str(value) for key, value in sorted(environment.items())
        },
        "healthcheck": _healthcheck(image_service.get("healthcheck")),
        **{key: declared.get(ours) or image_service.get(ours) for ours, key in LIMITS},
    }
    return {**service, **{key: value for key, value in optional.items() if value}}


def _healthcheck(declared: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not declared:
        return None
    times = ("interval", "timeout", "start_period", "start_interval")
    return {
        "test": ["CMD", *declared["command"]],
        **{key: f"{declared[key]}s" for key in times},
        "retries": declared["retries"],
    }


def service_labels(
    project: Project,
    gpus: Sequence[str],
    urls: Mapping[str, str],
    secrets: Sequence[Secret],
) -> dict[str, str]:
    """Return the labels that ``ml`` and the role host_verify read from the container."""
    values = _proof_label(project, secrets)
    if gpus:
        values[labels.GPUS] = ",".join(gpus)
    if urls:
        values[labels.URLS] = json.dumps(urls, sort_keys=True)
    if any(TOKEN in url for url in urls.values()):
        values[labels.TOKEN] = secret_path(endpoint_secret(project), secrets)
    return values


def _proof_label(project: Project, secrets: Sequence[Secret]) -> dict[str, str]:
    """Return the label with the endpoint that the role host_verify tests."""
    endpoint = project.service.get("endpoint")
    if not endpoint:
        return {}
    proof = {**endpoint, "port": project.build.image["ports"][endpoint["port"]]}
    if "secret" in endpoint:
        proof["secret"] = secret_path(endpoint["secret"], secrets)
    return {labels.PROOF: json.dumps(proof, sort_keys=True)}


def endpoint_secret(project: Project) -> str:
    """Return the name of the secret that a page asks for."""
    return str(project.service["endpoint"]["secret"])


def displayed_urls(
    project: Project, urls: Mapping[str, str], secrets: Sequence[Secret]
) -> dict[str, str]:
    """Return the addresses as a run shows them: with the path of the token, never with it."""
    displayed = {}
    for port, full_url in urls.items():
        url = full_url
        if TOKEN in url:
            token_file = secret_path(endpoint_secret(project), secrets)
            url = f"{re.split('[?#]', url)[0]} (token: {token_file})"
        displayed[project.name if len(urls) == 1 else f"{project.name} {port}"] = url
    return displayed


def compose_text(
    project: Project,
    service: Mapping[str, Any],
    volumes: Sequence[str],
    secrets: Sequence[Secret],
) -> str:
    """Return the text of the compose file."""
    document: dict[str, Any] = {"services": {project.name: service}}
    if volumes:
        # Created by the role: volumes outlive the project, and two projects may share one.
        document["volumes"] = {name: {"external": True} for name in volumes}
    if secrets:
        document["secrets"] = {secret.name: {"file": secret.path} for secret in secrets}
    # By way of JSON, because YAML refuses Ansible's own string types. Compose takes a single dollar
    # for the beginning of a variable.
    plain = json.loads(json.dumps(document).replace("$", "$$"))
    # Imported late, because the host may lack PyYAML; only the controller writes this file.
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes texts that compose takes for numbers, which PyYAML takes for texts."""

    def represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        style = "'" if NUMBER.fullmatch(value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, represent_text)
    return HEADER + yaml.dump(plain, Dumper=Dumper, sort_keys=False)
