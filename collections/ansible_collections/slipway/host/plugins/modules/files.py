#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: files
short_description: Write, create and remove the files of a role in one round trip
description:
  - Writes, creates and removes files and folders as a role's owned state declares them.
  - Compares each entry with the host in the same way as the survey. A loop over the builtin copy
    module does the same with a round trip for each file.
  - A file is replaced in one step. A missing folder of a file is created.
  - Does not follow links in a folder that others can write, and refuses entries of another type or
    owner there. All other entries are changed, then the module fails.
  - Gives the parent folders in C(/etc), C(/usr) and other system folders to root, and removes write
    permission of group and others from them.
options:
  files:
    description: The files, as the C(files) list of a role's owned state.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Path on the host.
        type: path
        required: true
      content:
        description: Content of a file. Without it, the file must exist and may have any content.
        type: str
      mode:
        description:
          - Mode, four octal digits. By default C(0644) for files and C(0755) for folders.
        type: str
      owner:
        description: Name of the owner.
        type: str
        default: root
      group:
        description: Name of the group.
        type: str
        default: root
      state:
        description: Type of the entry; C(absent) removes it.
        type: str
        choices: [file, directory, absent]
        default: file
      secret:
        description: Do not show the content in diffs.
        type: bool
        default: false
      default_acl:
        description:
          - Mode, four octal digits, of new files in a folder, independent of the umask of their
            creator. Entries of the default ACL for named users and groups are kept.
          - If the path exists and is not a folder, the module fails and does not replace it.
        type: str
      validate:
        description: Command that must succeed before the file is written, as a list of words.
        type: list
        elements: str
        default: []
  folders:
    description:
      - Folders that only declared names may be in, as the C(folders) list of a role's owned state.
        All other names are removed.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Path of the folder.
        type: path
        required: true
      entries:
        description: Names that may be in the folder.
        type: list
        elements: str
        required: true
attributes:
  check_mode:
    description: Reports which files would change.
    support: full
  diff_mode:
    description: Shows the content before and after, except for secret files.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Declare an apt repository
  slipway.host.files:
    files:
      - path: /etc/apt/sources.list.d/docker.sources
        content: |
          Types: deb
          URIs: https://download.docker.com/linux/ubuntu
          Suites: noble
          Components: stable
          Signed-By: /etc/apt/keyrings/docker.asc
"""

RETURN = r"""
paths:
  description: Paths that were changed.
  returned: always
  type: list
  elements: str
conflicts:
  description: What is in the way, a mapping with kind, name and reason for each conflict.
  returned: always
  type: list
  elements: dict
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.file_entries import FileEntries
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    files,
    model,
    paths,
)
from ansible_collections.slipway.host.plugins.module_utils.state.here import diff_of

ARGUMENT_SPEC: dict[str, Any] = {
    "files": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "no_log": False},
            "mode": {"type": "str"},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "state": {
                "type": "str",
                "choices": ["file", "directory", "absent"],
                "default": "file",
            },
            "secret": {"type": "bool", "default": False},
            "default_acl": {"type": "str"},
            "validate": {"type": "list", "elements": "str", "default": []},
        },
    },
    "folders": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "entries": {"type": "list", "elements": "str", "required": True},
        },
    },
}


def without_unset(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry without the keys that are not set, for the comparison."""
    return {key: value for key, value in entry.items() if value is not None}


def diff_entry(
    path: Path, entry: Mapping[str, Any], differences: list[model.Difference]
) -> dict[str, str]:
    """Return the diff of one entry."""
    if entry["secret"] or entry["content"] is None or entry["state"] != "file":
        return diff_of(differences)
    try:
        before = paths.read_file(str(path)).decode("utf-8", "replace")
    except (OSError, paths.UnsafePathError):
        before = ""
    header = str(path)
    return {
        "before_header": header,
        "after_header": header,
        "before": before,
        "after": entry["content"],
    }


def validate(module: HostModule, entry: Mapping[str, Any]) -> None:
    """Fail if the command that validates an entry fails on this host."""
    if entry["state"] == "file" and entry["validate"]:
        status, out, err = module.run_command(entry["validate"])
        if status != 0:
            command = " ".join(entry["validate"])
            module.fail_json(
                msg=f"{entry['path']}: '{command}' failed: {(err or out).strip()}; expected "
                "success. The file was not written."
            )


class Entries(FileEntries):
    """Changes files and folders as they are declared."""

    def change_file(self, entry: Mapping[str, Any]) -> dict[str, str] | None:
        """Change one entry of ``files``; return its diff, None if nothing differs."""
        path = entry["path"]
        owned = {"files": [without_unset(entry)]}
        # First, because a file counts as a user's while others can write its folder.
        differences = self.secure_parents(owned)
        answer = self.here.look(owned)
        of_entry = self.here.differences(owned, answer)
        differences += [other for other in of_entry if other not in differences]
        if not of_entry:
            return diff_of(differences) if differences else None
        validate(self.module, entry)
        diff = diff_entry(Path(path), entry, differences)
        act = apply_files.check if self.module.check_mode else apply_files.settle
        act(entry)
        return diff

    def clean_folder(self, entry: Mapping[str, Any]) -> dict[str, str] | None:
        """Remove undeclared names from a folder; return the diff, None if nothing differs."""
        owned = {"folders": [entry]}
        differences = self.here.differences(owned)
        if differences and not self.module.check_mode:
            self.secure_parents(owned)
            for name in set(files.ask_names(entry["path"]) or ()) - set(entry["entries"]):
                apply_files.settle({"path": f"{entry['path']}/{name}", "state": "absent"})
        return diff_of(differences) if differences else None


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    entries = Entries(module)
    for entry in module.params["files"]:
        entries.apply("files", entry["path"], partial(entries.change_file, entry))
    for entry in module.params["folders"]:
        entries.apply("folders", entry["path"], partial(entries.clean_folder, entry))
    entries.finish()


if __name__ == "__main__":
    main()
