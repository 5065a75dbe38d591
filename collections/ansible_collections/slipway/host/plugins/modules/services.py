#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.services."""

from __future__ import annotations

DOCUMENTATION = r"""
module: services
short_description: Run the declared services, remove undeclared ones
description:
  - Writes the compose file and the secrets of each service, creates its volumes and folders, starts
    the services that differ from their declaration, and waits until they are healthy. A container
    that is as declared keeps running. A service that does not get healthy fails the task and leaves
    the others.
  - A service with a conflict is left alone and named; the others are applied, then the module
    fails. A conflict is a missing source of a secret, a folder that the service cannot write, or a
    container that has the labels of the service but was not started by this module.
  - A service that leaves a port is replaced before the service that gets the port. If services swap
    ports, one of them is stopped first.
  - A service whose folder exists but that is not declared is stopped and removed. Its volumes stay,
    and so do folders of the host that it used.
  - A secret without content or source is generated on the host and never leaves it.
  - Uses the same comparison as the survey.
options:
  folder:
    description: Folder with a folder for each service.
    type: path
    required: true
  projects:
    description: The compose projects of the services, from the plan of the role ml_services.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the project.
        type: str
        required: true
      ports:
        description: Published addresses and ports of the host, such as C(127.0.0.1:8888).
        type: list
        elements: str
        required: true
      volumes:
        description: Names of its volumes.
        type: list
        elements: str
        required: true
      files:
        description: Its compose file and folders, as entries of owned files.
        type: list
        elements: dict
        required: true
      folders:
        description: Declared names in its folders, as entries of owned folders.
        type: list
        elements: dict
        required: true
      secrets:
        description: Its secrets, as entries of owned secrets.
        type: list
        elements: dict
        required: true
        suboptions:
          path:
            description: Path of the file.
            type: path
            required: true
          owner:
            description: The uid that the service runs as.
            type: str
            required: true
          group:
            description: The gid that the service runs as.
            type: str
            required: true
          content:
            description: Content of the file.
            type: str
          source:
            description: File of the host to copy.
            type: path
      mounts:
        description: Folders of the host that it mounts, as entries of owned mounts.
        type: list
        elements: dict
        required: true
      projects:
        description: Its containers, as an entry of owned projects.
        type: list
        elements: dict
        required: true
  timeout:
    description: Seconds to wait until a service is healthy.
    type: int
    default: 120
attributes:
  check_mode:
    description: Reports what would be written, started and removed.
    support: full
  diff_mode:
    description: Shows the compose files and other differences, never a secret.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Start declared services, remove undeclared ones
  slipway.host.services:
    folder: /etc/slipway/services
    projects: "{{ __ml_services_plan.projects }}"
"""

RETURN = r"""
started:
  description: Services that were started, replaced or repaired.
  returned: always
  type: list
  elements: str
removed:
  description: Services that were removed.
  returned: always
  type: list
  elements: str
conflicts:
  description: What is in the way, a mapping with kind, name and reason for each conflict.
  returned: always
  type: list
  elements: dict
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.services import (
    compose_commands,
    mount_folders,
    ports,
    secret_files,
)
from ansible_collections.slipway.host.plugins.module_utils.services.failures import (
    ServiceFailure,
    collected,
)
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    containers,
    files,
    listeners,
    model,
    paths,
    projects,
    service_files,
)
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here

HERE = Here(files, service_files, containers, listeners, projects)

ARGUMENT_SPEC: dict[str, Any] = {
    "folder": {"type": "path", "required": True},
    "projects": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "ports": {"type": "list", "elements": "str", "required": True},
            "volumes": {"type": "list", "elements": "str", "required": True},
            "files": {"type": "list", "elements": "dict", "required": True},
            "folders": {"type": "list", "elements": "dict", "required": True},
            "secrets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "no_log": False,
                "options": {
                    "path": {"type": "path", "required": True},
                    "owner": {"type": "str", "required": True},
                    "group": {"type": "str", "required": True},
                    "content": {"type": "str", "no_log": True},
                    "source": {"type": "path"},
                },
            },
            "mounts": {"type": "list", "elements": "dict", "required": True},
            "projects": {"type": "list", "elements": "dict", "required": True},
        },
    },
    "timeout": {"type": "int", "default": 120},
}
KINDS = ("files", "folders", "secrets", "mounts", "projects")
Project = Mapping[str, Any]
Differences = Mapping[str, Sequence[model.Difference]]


def owned_state(project: Project) -> dict[str, Any]:
    """Return the owned state of a project."""
    return {kind: project[kind] for kind in KINDS}


def compose_file(project: Project) -> Path:
    """Return the path of the compose file: only this file of a project has content."""
    return next(Path(file["path"]) for file in project["files"] if file.get("content"))


def remove_undeclared_files(project: Project) -> None:
    """Remove undeclared names from the folders of a project."""
    for folder in project["folders"]:
        for name in set(files.ask_names(folder["path"]) or ()) - set(folder["entries"]):
            apply_files.settle({"path": f"{folder['path']}/{name}", "state": "absent"})


def apply_project(module: HostModule, project: Project, replace: bool) -> None:
    """Apply a project; REPLACE replaces its containers even if they are as declared."""
    for file in project["files"]:
        apply_files.settle(file)
    # No later output of a program shows these values.
    module.no_log_values.update(secret_files.write_secrets(project))
    remove_undeclared_files(project)
    for volume in project["volumes"]:
        compose_commands.run_docker(module, "volume", "create", volume)
    # A secret that was written just now is newer than the container with the old one.
    if replace or HERE.differences({"projects": project["projects"]}):
        compose_commands.replace_containers(module, project, compose_file(project))


def compare(
    module: HostModule, declared: Sequence[Project]
) -> tuple[dict[str, list[model.Difference]], list[str], list[model.Conflict]]:
    """Return the differences of each project, undeclared folders, and what is in the way.

    A project with a conflict is left alone.
    """
    root = module.params["folder"]
    folders = {"folders": [{"path": root, "entries": [project["name"] for project in declared]}]}
    answer = HERE.look(folders, *map(owned_state, declared))
    above = HERE.compare(folders, answer)
    names_there = () if above.conflicts else answer["folders"][root] or ()
    undeclared = set(names_there) - {project["name"] for project in declared}
    statements = {project["name"]: owned_state(project) for project in declared}
    # In check mode, the role ml_images has not built them yet.
    unbuilt = [] if module.check_mode else projects.without_image(list(statements.values()), answer)
    compared = HERE.compare_each(statements, answer, unbuilt)
    differing = {
        name: comparison.differences
        for name, comparison in compared.items()
        if comparison.differences and not comparison.conflicts
    }
    names = [name for name in undeclared if compose_commands.PROJECT_NAME.fullmatch(name)]
    strangers = HERE.compare({"projects": [{"name": name, "services": []} for name in names]})
    kept = {conflict.name for conflict in strangers.conflicts}
    # Several services may mount one folder.
    conflicts = {
        (conflict.kind, conflict.name): conflict
        for comparison in (above, strangers, *compared.values())
        for conflict in comparison.conflicts
    }
    return differing, sorted(undeclared - kept), list(conflicts.values())


def secure_root(module: HostModule) -> list[str]:
    """Give the folders of services and of their records to root; return those that differed."""
    secured = []
    for folder in (module.params["folder"], containers.SERVICE_RECORDS):
        # All services below a link of others are in conflict.
        with suppress(paths.UnsafePathError):
            secured += apply_files.secure_parents(f"{folder}/*", check=module.check_mode)
    return sorted(set(secured))


def act(
    module: HostModule,
    undeclared: Sequence[str],
    differing: Sequence[Project],
) -> list[ServiceFailure]:
    """Apply the differing projects; return the failures."""
    failures: list[ServiceFailure] = []
    # First, because a declared service may use a port of an undeclared one.
    for name in undeclared:
        with collected(failures, name):
            compose_commands.remove_project(module, Path(module.params["folder"], name))
    # One service may read the folder that another one writes.
    replaced, unsafe = mount_folders.create_mounts(differing, failures)
    accepted = [project for project in differing if project["name"] not in unsafe]
    published = compose_commands.published_ports(module) if len(accepted) > 1 else {}
    for project, to_stop in ports.order_replacements(accepted, published):
        with collected(failures, project["name"]):
            for name in to_stop:
                compose_commands.run_docker(module, "compose", "--project-name", name, "stop")
            apply_project(module, project, project["name"] in replaced)
    return failures


def describe_changes(
    undeclared: Sequence[str], differing: Sequence[Project], found: Differences
) -> list[dict[str, str]]:
    """Return the changes as Ansible's diff mode shows them."""
    diffs = [{"prepared": f"service {name}: undeclared, to be removed\n"} for name in undeclared]
    for project in differing:
        path = str(compose_file(project))
        after = next(file["content"] for file in project["files"] if file["path"] == path)
        before = secret_files.read_root_file(path)
        texts = {"before": before, "after": after}
        shown = {key: secret_files.hide_environment(text) for key, text in texts.items()}
        diffs.append({"before_header": path, **shown})
        diffs.append({"prepared": "".join(f"{one}\n" for one in found[project["name"]])})
    return diffs


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    declared = module.params["projects"]
    found, undeclared, conflicts = compare(module, declared)
    secured = secure_root(module)
    differing = [project for project in declared if project["name"] in found]
    diffs = describe_changes(undeclared, differing, found)
    if module.check_mode:
        failures: list[ServiceFailure] = []
        mount_folders.create_mounts(differing, failures, check=True)
    else:
        failures = act(module, undeclared, differing)
    if failures:
        messages = [*map(str, failures), *(conflict.reason for conflict in conflicts)]
        logs = "".join(failure.logs for failure in failures)
        module.fail_json(msg="\n".join(messages), logs=logs)
    module.finish(
        conflicts,
        changed=bool(differing or undeclared or secured),
        started=[project["name"] for project in differing],
        removed=undeclared,
        diff=diffs,
    )


if __name__ == "__main__":
    main()
