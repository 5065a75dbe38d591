#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.services."""

from __future__ import annotations

DOCUMENTATION = r"""
module: services
short_description: Compose projects that run, and only them
description:
  - Writes each project's compose file and secrets, makes its volumes and folders, starts what is
    not as declared, and waits until it is healthy. Containers that are as declared are left alone.
    A project that does not get healthy fails the task and leaves the others.
  - A project that leaves a port goes before the one that gets it. Where projects swap ports, one
    is stopped first.
  - A project whose folder is there but that is not declared is stopped and removed. Its volumes
    stay, and so do folders of the host that it used.
  - A secret that nobody gives is made on the host and never leaves it.
  - Whether something is as declared is decided by the same comparison as in the survey.
options:
  folder:
    description: Folder with a folder per project.
    type: path
    required: true
  projects:
    description: The projects, as C(slipway.host.services_plan) gives them.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the project.
        type: str
        required: true
      ports:
        description: Where the host has its ports, each as address and number with a colon between.
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
        description: What may be in its folders, as entries of owned folders.
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
            description: What is in it.
            type: str
          source:
            description: A file of the host that it is a copy of.
            type: path
      mounts:
        description: Folders of the host that it gets, as entries of owned mounts.
        type: list
        elements: dict
        required: true
      projects:
        description: Its containers, as an entry of owned projects.
        type: list
        elements: dict
        required: true
  timeout:
    description: Seconds to wait until a project is healthy.
    type: int
    default: 120
attributes:
  check_mode:
    description: Says what would be written, started and removed.
    support: full
  diff_mode:
    description: Shows the compose files and what differs in the rest; never a secret.
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
  description: Projects that were started, replaced or repaired.
  returned: always
  type: list
  elements: str
removed:
  description: Projects that were removed.
  returned: always
  type: list
  elements: str
"""

import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.services import ports
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    containers,
    files,
    model,
    paths,
    service_files,
)
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here

HERE = Here(files, service_files, containers)

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
# Other folders are nobody's project: compose would refuse the name.
PROJECT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
# As many hexadecimal digits as Jupyter itself takes.
SECRET_BYTES = 24

Project = Mapping[str, Any]


def owned(project: Project) -> dict[str, Any]:
    """Return the owned state of a project."""
    return {kind: project[kind] for kind in KINDS}


def read(path: str) -> str:
    """Return a file's text, empty where no file is there; a link there is not followed."""
    try:
        with paths.opened_parent(path) as (folder, name):
            return (folder.read(name) or b"").decode("utf-8")
    except (OSError, ValueError):
        return ""


def compose_file(project: Project) -> Path:
    """Return where a project's compose file is: the only one of its files with a content."""
    return next(Path(file["path"]) for file in project["files"] if file.get("content"))


class ProjectError(Exception):
    """A project cannot be as declared; the text says why, LOGS what its containers said."""

    def __init__(self, message: str, logs: str = "") -> None:
        super().__init__(message)
        self.logs = logs


def docker(module: HostModule, *words: str) -> None:
    """Run docker; raise ProjectError with its words where it fails."""
    status, out, err = module.run_command(["docker", *words], cwd="/")
    if status != 0:
        raise ProjectError(f"docker {' '.join(words[:2])} failed: {(err or out).strip()[-800:]}")


def up(module: HostModule, project: Project) -> None:
    """Make a project's containers anew; raise ProjectError with their own last words."""
    name = project["name"]
    command = ["docker", "compose", "--progress=plain", "--file", str(compose_file(project))]
    command += ["--project-name", name]
    wait = ("--wait", "--wait-timeout", str(module.params["timeout"]))
    # Compose itself sees neither a secret that changed nor a container that is unwell.
    words = ("up", "--detach", "--remove-orphans", "--force-recreate", *wait)
    status, out, err = module.run_command([*command, *words])
    if status != 0:
        # Most often an image that a project stands on and that nobody asked to be built.
        if missing := re.search(r"No such image: (\S+)", err):
            raise ProjectError(
                f"project {name}: the host has no image {missing[1]}; add it to ml_images_present, "
                "or take the project off ml_services_instances"
            )
        _status, logs, _err = module.run_command([*command, "logs", "--tail=20", "--no-color"])
        why = (err or out).strip()[-800:]
        raise ProjectError(f"project {name}: docker compose up failed: {why}", logs)


def remove(module: HostModule, folder: Path) -> None:
    """Stop and remove a project that nobody declares any more; its volumes stay."""
    if PROJECT_NAME.fullmatch(folder.name):
        # By its name alone: what became of the compose file does not matter.
        docker(module, "compose", "--project-name", folder.name, "down", "--remove-orphans")
    apply_files.settle({"path": str(folder), "state": "absent"})


def new_content(secret: Mapping[str, Any]) -> str | None:
    """Return what a secret's file has to hold, None where it holds that already."""
    present = read(secret["path"])
    if secret.get("content"):
        wanted = str(secret["content"])
    elif secret.get("source"):
        wanted = paths.read_file(secret["source"]).decode("utf-8")
    else:
        wanted = present or secrets.token_hex(SECRET_BYTES)
    return None if wanted == present else wanted


def settle_secrets(module: HostModule, project: Project) -> None:
    """Make a project's secrets as declared; one that is right keeps its age."""
    for secret in project["secrets"]:
        place = {key: secret[key] for key in ("path", "owner", "group")}
        content = new_content(secret)
        apply_files.settle({**place, "mode": service_files.SECRET_MODE, "content": content})
        # Whatever a program says from now on, this is not shown.
        module.no_log_values.add(read(secret["path"]).strip())


def _is_link_into_system(path: str, info: os.stat_result) -> bool:
    """Return whether a link leads into a folder of the system, or nowhere."""
    target = files.ask_link_target(path) if paths.type_of(info) == paths.LINK else path
    return target is None or (target != path and service_files.is_system_path(target))


def make_mount(mount: Mapping[str, Any], check: bool = False) -> bool:
    """Make a folder that a project gets, where it is missing; return whether it was.

    A link of root's into a folder of the system counts as missing. CHECK only looks.
    Raise UnsafePathError where root cannot reach it without following somebody's link.
    """
    with suppress(FileNotFoundError), paths.opened_parent(mount["path"]) as (folder, name):
        info = folder.lstat(name)
        if info is not None:
            # Root's own links may stay.
            if not folder.trusted and paths.type_of(info) not in (paths.FOLDER, paths.FILE):
                raise folder.refuse(name, info, "a folder")
            if not _is_link_into_system(mount["path"], info):
                return False
            if mount.get("read_only"):
                raise folder.refuse(name, info, "a folder")
    if not check:
        place = {key: mount[key] for key in ("path", "owner", "group")}
        apply_files.settle({**place, "state": "directory", "mode": "0750"})
    return True


def settle_mounts(
    projects: Sequence[Project], failed: list[ProjectError], check: bool = False
) -> tuple[set[str], set[str]]:
    """Make the folders that projects get; return whose were missing, and whose are refused."""
    made: set[str] = set()
    refused: set[str] = set()
    for project in projects:
        name, before = project["name"], len(failed)
        for mount in project["mounts"]:
            with noted(failed, name):
                if make_mount(mount, check):
                    made.add(mount["path"])
        if len(failed) > before:
            refused.add(name)
    # Projects may share a folder, and each of their containers keeps the one that was taken away.
    missing = {one["name"] for one in projects if any(m["path"] in made for m in one["mounts"])}
    return missing, refused


def settle_folders(project: Project) -> None:
    """Remove what is in a project's folders and is not declared."""
    for folder in project["folders"]:
        for name in set(files.ask_names(folder["path"]) or ()) - set(folder["entries"]):
            apply_files.settle({"path": f"{folder['path']}/{name}", "state": "absent"})


def held_ports(module: HostModule) -> dict[str, list[str]]:
    """Return the places on the host that the containers of each compose project have."""
    label = "com.docker.compose.project"
    _status, out, _err = module.run_command(
        ["docker", "ps", "--all", "--quiet", "--filter", f"label={label}"], check_rc=True
    )
    words = f'{{{{index .Config.Labels "{label}"}}}} {{{{json .HostConfig.PortBindings}}}}'
    found: dict[str, list[str]] = {}
    # One that has gone meanwhile has no port either.
    _status, out, _err = module.run_command(["docker", "inspect", "--format", words, *out.split()])
    for line in out.splitlines():
        name, _, bindings = line.partition(" ")
        found.setdefault(name, []).extend(
            f"{one['HostIp']}:{one['HostPort']}"
            for bound in (json.loads(bindings) or {}).values()
            for one in bound or ()
        )
    return found


def settle(module: HostModule, project: Project, anew: bool) -> None:
    """Make a project as declared; ANEW says that its containers have to be others in any case."""
    for file in project["files"]:
        apply_files.settle(file)
    settle_secrets(module, project)
    settle_folders(project)
    for volume in project["volumes"]:
        docker(module, "volume", "create", volume)
    containers = {"projects": project["projects"]}
    # A secret that was written just now is newer than the container that has the old one.
    if anew or HERE.differences(containers):
        up(module, project)


def may_write(path: str, uid: int, gid: int) -> bool:
    """Whether a user may write to a folder, however that came about."""
    # The folder is entered before root's rights are given up: containers need no way to it.
    asked = subprocess.run(
        ["test", "-w", ".", "-a", "-x", "."],
        cwd=path,
        user=uid,
        group=gid,
        extra_groups=[],
        check=False,
    )
    return asked.returncode == 0


def hindrances(project: Project) -> Iterator[str]:
    """Yield in sentences what a project would trip over."""
    for mount in project["mounts"]:
        path, owner, group = mount["path"], mount["owner"], mount["group"]
        if mount.get("read_only") or not Path(path).is_dir():
            continue
        if not may_write(path, int(owner), int(group)):
            yield (
                f"project {project['name']}: {owner}:{group} may not write to {path}; run chown "
                f"{owner}:{group} {path}, give the project the uid and gid of its owner, or end "
                "it with :ro"
            )


def compared(
    module: HostModule, projects: Sequence[Project]
) -> tuple[dict[str, list[model.Difference]], list[str]]:
    """Return where each project differs, and the names of folders that nobody declares."""
    root = module.params["folder"]
    declared = {"folders": [{"path": root, "entries": [one["name"] for one in projects]}]}
    answer = HERE.look(declared, *map(owned, projects))
    strays = set(answer["folders"][root] or ()) - {project["name"] for project in projects}
    try:
        found = {one["name"]: HERE.differences(owned(one), answer) for one in projects}
    except model.ConflictError as error:
        module.fail_json(msg=f"{error}. Nothing was changed.")
    return {name: differences for name, differences in found.items() if differences}, sorted(strays)


def secure_root(module: HostModule) -> list[str]:
    """Give the folder of all projects to root; return the folders that differed."""
    guarded = f"{module.params['folder']}/*"
    try:
        return apply_files.secure_parents(guarded, check=module.check_mode)
    except paths.UnsafePathError as error:
        module.fail_json(msg=f"{error} Nothing was changed.")


def act(
    module: HostModule, strays: Sequence[str], differing: Sequence[Project]
) -> list[ProjectError]:
    """Make all as declared; return why some projects are not, which leaves the others."""
    failed: list[ProjectError] = []
    # First, since a port that they leave may be another one's now.
    for name in strays:
        with noted(failed, name):
            remove(module, Path(module.params["folder"], name))
    # One project may read what another one writes. And a container keeps a folder that was taken
    # away, though another one has its place.
    made, refused = settle_mounts(differing, failed)
    sound = [project for project in differing if project["name"] not in refused]
    held = held_ports(module) if len(sound) > 1 else {}
    for project, stopped in ports.order_replacements(sound, held):
        with noted(failed, project["name"]):
            for name in stopped:
                docker(module, "compose", "--project-name", name, "stop")
            settle(module, project, project["name"] in made)
    return failed


@contextmanager
def noted(failed: list[ProjectError], name: str) -> Iterator[None]:
    """Note why the project of a name failed, and go on."""
    try:
        yield
    except ProjectError as error:
        failed.append(error)
    except (OSError, LookupError, ValueError) as error:
        failed.append(ProjectError(f"project {name}: {error}"))


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    projects = module.params["projects"]
    found, strays = compared(module, projects)
    secured = secure_root(module)
    differing = [project for project in projects if project["name"] in found]
    wrong = [sentence for project in differing for sentence in hindrances(project)]
    if wrong:
        module.fail_json(msg=f"{'; '.join(wrong)}. Nothing was changed.")
    diffs = [
        {"prepared": f"project {name}: nobody declares it, to be removed\n"} for name in strays
    ]
    for project in differing:
        file = compose_file(project)
        after = next(one["content"] for one in project["files"] if one["path"] == str(file))
        diffs.append({"before_header": str(file), "before": read(str(file)), "after": after})
        diffs.append({"prepared": "".join(f"{one}\n" for one in found[project["name"]])})
    failed: list[ProjectError] = []
    if module.check_mode:
        settle_mounts(differing, failed, check=True)
    else:
        failed = act(module, strays, differing)
    if failed:
        module.fail_json(
            msg="\n".join(map(str, failed)), logs="".join(error.logs for error in failed)
        )
    module.exit_json(
        changed=bool(found or strays or secured),
        started=[project["name"] for project in differing],
        removed=strays,
        diff=diffs,
    )


if __name__ == "__main__":
    main()
