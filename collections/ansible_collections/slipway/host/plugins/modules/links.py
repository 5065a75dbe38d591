#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.links."""

from __future__ import annotations

DOCUMENTATION = r"""
module: links
short_description: Create and remove the links in a folder to one target
description:
  - Creates the links that a role's owned state declares, and removes undeclared links to the same
    target. Does not change other entries of the folder.
  - If another file has the name of a link, or if a link would hide a command of the system, that
    link is left alone. All other links are created and removed, then the module fails.
  - Compares the links with the host in the same way as the survey.
options:
  links:
    description: The links, as the C(links) list of a role's owned state.
    type: list
    elements: dict
    required: true
    suboptions:
      folder:
        description: Folder of the links.
        type: path
        required: true
      target:
        description: Target of the links.
        type: path
        required: true
      names:
        description: Names of the links.
        type: list
        elements: str
        required: true
      unhidden:
        description: Folders with commands of the system; a link must not hide one of these.
        type: list
        elements: path
        default: []
attributes:
  check_mode:
    description: Reports which links would be created and removed.
    support: full
  diff_mode:
    description: Shows the differences.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Install the commands of images
  slipway.host.links:
    links:
      - folder: /usr/local/bin
        target: /usr/local/lib/slipway/ml
        names: [ml, pytorch]
        unhidden: [/usr/bin]
"""

RETURN = r"""
made:
  description: Links that were created.
  returned: always
  type: list
  elements: str
removed:
  description: Links that were removed.
  returned: always
  type: list
  elements: str
conflicts:
  description: What is in the way, a mapping with kind, name and reason for each conflict.
  returned: always
  type: list
  elements: dict
"""

import os
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    files,
    links,
    paths,
)
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
            "unhidden": {"type": "list", "elements": "path", "default": []},
        },
    },
}


def change_links(folder: str, target: str, missing: list[str], stale: list[str]) -> None:
    """Create and remove links in a folder; raise UnsafePathError if the folder is not safe."""
    apply_files.secure_parents(f"{folder}/*")
    with paths.opened_folder(folder, make=True) as opened:
        for name in missing:
            opened.make_link(name, target)
        for name in stale:
            # The name may have another target now.
            if os.readlink(name, dir_fd=opened.descriptor) == target:
                opened.remove(name)


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    owned = {"links": module.params["links"]}
    here = Here(links, files)
    answer = here.look(owned)
    comparison = here.compare(owned, answer)
    in_conflict = {conflict.name for conflict in comparison.conflicts}
    created: list[str] = []
    removed: list[str] = []
    for entry in module.params["links"]:
        folder, target = Path(entry["folder"]), entry["target"]
        if entry["folder"] in in_conflict:
            continue
        present = answer["links"][entry["folder"]] or {}
        missing = [
            name
            for name in entry["names"]
            if name not in present and f"{entry['folder']}/{name}" not in in_conflict
        ]
        stale = [
            name
            for name, present_target in present.items()
            if present_target == target and name not in entry["names"]
        ]
        created += [str(folder / name) for name in missing]
        removed += [str(folder / name) for name in stale]
        if not module.check_mode:
            try:
                change_links(entry["folder"], target, missing, stale)
            except (OSError, paths.UnsafePathError) as error:
                module.fail_json(msg=f"links in {folder}: {error}", made=created, removed=removed)
    module.finish(
        comparison.conflicts,
        changed=bool(comparison.differences),
        made=created,
        removed=removed,
        diff=diff_of(comparison.differences),
    )


if __name__ == "__main__":
    main()
