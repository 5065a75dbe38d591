#!/usr/bin/python
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.services."""

from __future__ import annotations

DOCUMENTATION = r"""
module: services
short_description: Compose projects that run, and only them
description:
  - Writes each project's compose file, starts what is not as declared, and waits until it is
    healthy. Containers that are as declared are left alone.
  - A project whose folder is there but that is not declared is stopped and removed. Its volumes
    stay.
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
      file:
        description: Its compose file, as an entry of owned files.
        type: dict
        required: true
      project:
        description: Its containers, as an entry of owned projects.
        type: dict
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
    description: Shows the compose files and what differs in the containers.
    support: full
author:
  - Slipway contributors
"""

EXAMPLES = r"""
- name: Run the declared services, and only them
  slipway.host.services:
    folder: /etc/slipway/services
    projects: "{{ __ml_services_plan.projects }}"
"""

RETURN = r"""
started:
  description: Projects that were started or replaced.
  returned: always
  type: list
  elements: str
removed:
  description: Projects that were removed.
  returned: always
  type: list
  elements: str
"""

import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slipway.host.plugins.module_utils import _files, _owned, _probe

ARGUMENT_SPEC: dict[str, Any] = {
    "folder": {"type": "path", "required": True},
    "projects": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "file": {"type": "dict", "required": True},
            "project": {"type": "dict", "required": True},
        },
    },
    "timeout": {"type": "int", "default": 120},
}


def read(path: Path) -> str:
    """Return a file's text, empty where it is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def compose(module: AnsibleModule, file: Path, name: str, *words: str) -> None:
    """Run docker compose, or fail the module with the containers' own last words."""
    command = ["docker", "compose", "--progress=plain", "--file", str(file), "--project-name", name]
    status, out, err = module.run_command([*command, *words])
    if status != 0:
        _status, logs, _err = module.run_command([*command, "logs", "--tail=20", "--no-color"])
        module.fail_json(
            msg=f"project {name}: docker compose {words[0]} failed: {(err or out).strip()[-800:]}",
            logs=logs,
        )


def remove(module: AnsibleModule, folder: Path) -> None:
    """Stop and remove a project that nobody declares any more; its volumes stay."""
    file = folder / "compose.yaml"
    if file.exists():
        compose(module, file, folder.name, "down", "--remove-orphans")
    shutil.rmtree(folder)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    root = Path(module.params["folder"])
    projects = module.params["projects"]
    owned = {
        "files": [project["file"] for project in projects],
        "projects": [project["project"] for project in projects],
        "folders": [{"path": str(root), "entries": [project["name"] for project in projects]}],
    }
    answer = _probe.answer(_owned.question([owned]))
    removed = sorted(set(answer["folders"][str(root)] or ()) - {p["name"] for p in projects})
    started: list[str] = []
    diffs: list[dict[str, str]] = []
    for project in projects:
        file, content = Path(project["file"]["path"]), project["file"]["content"]
        mine = {"files": [project["file"]], "projects": [project["project"]]}
        found = _owned.differences(mine, answer)
        if not found:
            continue
        started.append(project["name"])
        diffs.append({"before_header": str(file), "before": read(file), "after": content})
        diffs.append({"prepared": "".join(f"{difference}\n" for difference in found)})
        if not module.check_mode:
            _files.settle(project["file"])
            wait = ("--wait", "--wait-timeout", str(module.params["timeout"]))
            compose(module, file, project["name"], "up", "--detach", "--remove-orphans", *wait)
    for name in removed:
        diffs.append({"prepared": f"project {name}: nobody declares it, to be removed\n"})
        if not module.check_mode:
            remove(module, root / name)
    module.exit_json(changed=bool(started or removed), started=started, removed=removed, diff=diffs)


if __name__ == "__main__":
    main()
