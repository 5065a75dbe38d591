# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts and removes compose projects on a host, and records which containers it started."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.services.failures import (
    ServiceFailure,
    find_cause,
    last_line,
    plain_text,
)
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    containers,
    paths,
)

# Other folders are not projects: compose would refuse the name.
PROJECT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
RECORD_MODE = 0o600
LOG_OPTIONS = ("--tail=20", "--no-color", "--no-log-prefix")
Project = Mapping[str, Any]


def run_docker(module: HostModule, *words: str) -> str:
    """Run docker and return its output; raise ServiceFailure with its error."""
    status, out, err = module.run_command(["docker", *words], cwd="/")
    if status != 0:
        raise ServiceFailure(f"docker {' '.join(words[:2])} failed: {find_cause(err or out)}")
    return str(out)


def replace_containers(module: HostModule, project: Project, file: Path) -> None:
    """Replace the containers of a project; raise ServiceFailure with their last lines."""
    name = project["name"]
    command = ["docker", "compose", "--progress=plain", "--file", str(file)]
    command += ["--project-name", name]
    wait = ("--wait", "--wait-timeout", str(module.params["timeout"]))
    # Compose notices neither a changed secret nor an unhealthy container.
    words = ("up", "--detach", "--remove-orphans", "--force-recreate", *wait)
    record = containers.read_service_record(name)
    _write_record(name, record["containers"] if record else [], starting=True)
    module.status.show(f"{name}: starts, waits until healthy", force=True)
    status, out, err = module.run_command([*command, *words])
    _record_containers(module, name)
    if status != 0:
        # Most often an image that no role builds.
        if missing := re.search(r"No such image: (\S+)", err):
            raise ServiceFailure(
                f"service {name}: the host has no image {missing[1]}; expected a built or loaded "
                "image. Add it to ml_images_present, or remove the service from "
                "ml_services_instances."
            )
        _status, logs, _err = module.run_command([*command, "logs", *LOG_OPTIONS])
        logs = plain_text(logs)
        _remove_unstarted(module, name)
        printed = last_line(logs)
        raise ServiceFailure(
            f"service {name}: docker compose up failed: {find_cause(err or out)}"
            + (f"; last line of its log: {printed}" if printed else ""),
            logs,
        )


def _list_containers(module: HostModule, name: str, *filters: str) -> list[str] | None:
    """Return the IDs of the containers of a project, None if Docker does not answer."""
    command = ["docker", "ps", "--all", "--quiet", "--no-trunc"]
    command += ["--filter", f"label={containers.COMPOSE_PROJECT}={name}"]
    command += ["--filter", f"label={containers.ONE_OFF}=False"]
    status, listed, _err = module.run_command([*command, *filters])
    return listed.split() if status == 0 else None


def _record_containers(module: HostModule, name: str) -> None:
    """Record the containers of a project as started by Slipway.

    Until then the record says that they are being replaced. So the containers of an interrupted run
    are known to be Slipway's.
    """
    identities = _list_containers(module, name)
    if identities is not None:
        _write_record(name, identities, starting=False)


def _remove_unstarted(module: HostModule, name: str) -> None:
    """Remove the containers of a project that never ran, and its network if nothing else ran."""
    for identity in _list_containers(module, name, "--filter=status=created") or ():
        module.run_command(["docker", "rm", "--force", identity])
    if _list_containers(module, name) == []:
        module.run_command(["docker", "compose", "--project-name", name, "down"])
    _record_containers(module, name)


def _write_record(name: str, identities: Sequence[str], starting: bool) -> None:
    record = {"containers": list(identities), "starting": starting}
    path = containers.service_record_path(name)
    with paths.opened_parent(path, make=True) as (folder, file):
        folder.replace(file, json.dumps(record).encode(), RECORD_MODE, os.geteuid(), os.getegid())


def remove_project(module: HostModule, folder: Path) -> None:
    """Stop and remove a project that is no longer declared; its volumes stay."""
    if PROJECT_NAME.fullmatch(folder.name):
        # By its name alone: the compose file may be broken or missing.
        run_docker(module, "compose", "--project-name", folder.name, "down", "--remove-orphans")
        record = containers.service_record_path(folder.name)
        apply_files.settle({"path": record, "state": "absent"})
    apply_files.settle({"path": str(folder), "state": "absent"})


def published_ports(module: HostModule) -> dict[str, list[str]]:
    """Return the addresses and ports on the host that the containers of each project publish."""
    label = containers.COMPOSE_PROJECT
    listed = run_docker(module, "ps", "--all", "--quiet", "--filter", f"label={label}")
    template = f'{{{{index .Config.Labels "{label}"}}}} {{{{json .HostConfig.PortBindings}}}}'
    published: dict[str, list[str]] = {}
    # A container that was removed meanwhile publishes no port.
    _status, out, _err = module.run_command(
        ["docker", "inspect", "--format", template, *listed.split()]
    )
    for line in out.splitlines():
        name, _separator, bindings = line.partition(" ")
        published.setdefault(name, []).extend(
            f"{binding['HostIp']}:{binding['HostPort']}"
            for bound in (json.loads(bindings) or {}).values()
            for binding in bound or ()
        )
    return published
