#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.links."""

from __future__ import annotations

DOCUMENTATION = r"""
module: links
short_description: The links to one target that a folder holds, and no others
description:
  - Makes the links that a role's owned state declares, and removes links to the same target that it
    does not. Whatever else is in the folder is left alone.
  - Where something else has the name of a link, or a command of the system would be hidden by one,
    nothing is changed and the module fails.
  - Whether all is as declared is decided by the same comparison as in the survey.
options:
  links:
    description: The links, as the C(links) list of a role's owned state.
    type: list
    elements: dict
    required: true
    suboptions:
      folder:
        description: Folder that holds the links.
        type: path
        required: true
      target:
        description: Where they lead.
        type: path
        required: true
      names:
        description: Their names.
        type: list
        elements: str
        required: true
  unhidden:
    description: Commands that must not be there, as the C(unhidden) list of a role's owned state.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Path of the command.
        type: path
        required: true
attributes:
  check_mode:
    description: Says which links would be made and removed.
    support: full
  diff_mode:
    description: Shows what differs.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Make the commands
  slipway.host.links:
    links:
      - folder: /usr/local/bin
        target: /usr/local/lib/slipway/ml
        names: [ml, pytorch]
    unhidden:
      - path: /usr/bin/pytorch
"""

RETURN = r"""
made:
  description: Links that were made.
  returned: always
  type: list
  elements: str
removed:
  description: Links that were removed.
  returned: always
  type: list
  elements: str
"""

import os
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import files, links, model, paths
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here, diff_of

ARGUMENT_SPEC: dict[str, Any] = {
    "links": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "folder": {"type": "path", "required": True},
            "target": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
        },
    },
    "unhidden": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"path": {"type": "path", "required": True}},
    },
}


def settle(folder: str, target: str, made: list[str], removed: list[str]) -> None:
    """Make and remove links in a folder; raise UnsafePathError where it must not be entered."""
    with paths.opened_folder(folder, make=True) as opened:
        for name in made:
            opened.make_link(name, target)
        for name in removed:
            # Somebody may have given the name to something else since it was read.
            if os.readlink(name, dir_fd=opened.descriptor) == target:
                opened.remove(name)


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    owned = {"unhidden": module.params["unhidden"], "links": module.params["links"]}
    here = Here(links, files)
    answer = here.look(owned)
    try:
        found = here.differences(owned, answer)
    except model.ConflictError as error:
        module.fail_json(msg=f"{error}. Nothing was changed.")
    made: list[str] = []
    removed: list[str] = []
    for entry in module.params["links"]:
        folder, target = Path(entry["folder"]), entry["target"]
        present = answer["links"][entry["folder"]] or {}
        missing = [name for name in entry["names"] if name not in present]
        stale = [
            name
            for name, leads in present.items()
            if leads == target and name not in entry["names"]
        ]
        made += [str(folder / name) for name in missing]
        removed += [str(folder / name) for name in stale]
        if not module.check_mode:
            try:
                settle(entry["folder"], target, missing, stale)
            except (OSError, paths.UnsafePathError) as error:
                module.fail_json(msg=f"links in {folder}: {error}", made=made, removed=removed)
    module.exit_json(
        changed=bool(found),
        made=made,
        removed=removed,
        diff=diff_of(found),
    )


if __name__ == "__main__":
    main()
