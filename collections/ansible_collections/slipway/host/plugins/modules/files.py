#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: files
short_description: The files that a role owns, in one round trip
description:
  - Writes, creates and removes files and folders as a role's owned state declares them.
  - Whether one is as declared is decided by the same comparison as in the survey. A loop over the
    builtin copy module does the same with a round trip for each file.
  - A file is replaced whole or not at all; its folder is made where it is missing.
  - No link in a folder that others can write is followed. Something of another type there, or of
    another owner, is refused. All other entries are made as declared, then the module fails.
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
        description: Content of a file; without it the file may hold anything but must be there.
        type: str
      mode:
        description:
          - Mode, four octal digits; C(0644) for files and C(0755) for folders if not given.
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
        description: What is there.
        type: str
        choices: [file, directory, absent]
        default: file
      secret:
        description: Keep the content out of diffs.
        type: bool
        default: false
      default_acl:
        description:
          - Mode, four octal digits, of what is made in a folder, whatever the umask of who makes
            it. Entries of its default ACL that name somebody are kept.
          - Something else in the folder's place is an error, and is not replaced.
        type: str
      validate:
        description: Command that must succeed before the file is written, in words.
        type: list
        elements: str
        default: []
attributes:
  check_mode:
    description: Says which files would change.
    support: full
  diff_mode:
    description: Shows the content before and after, except of secret files.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Declare the repository
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
refused:
  description: A sentence for each entry that could not be made as declared.
  returned: always
  type: list
  elements: str
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    files,
    model,
    paths,
)
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here, diff_of

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
}


def stated(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry without the keys that were not given, as the comparison wants it."""
    return {key: value for key, value in entry.items() if value is not None}


def shown(path: Path, entry: Mapping[str, Any], found: list[model.Difference]) -> dict[str, str]:
    """Return the diff of one entry."""
    if entry["secret"] or entry["content"] is None or entry["state"] != "file":
        return diff_of(found)
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


def check(module: HostModule, entry: Mapping[str, Any]) -> None:
    """Fail where a host says beforehand that an entry would not do it good."""
    if entry["state"] == "file" and entry["validate"]:
        status, out, err = module.run_command(entry["validate"])
        if status != 0:
            tried = " ".join(entry["validate"])
            said = (err or out).strip()
            module.fail_json(
                msg=f"{entry['path']} was not written, since this host refuses: {said} ({tried})"
            )


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    changed: list[str] = []
    refused: list[str] = []
    diff: list[dict[str, str]] = []
    here = Here(files)
    for entry in module.params["files"]:
        path = entry["path"]
        try:
            owned = {"files": [stated(entry)]}
            answer = here.look(owned)
            if path in answer["unsafe"] and entry["state"] != "absent":
                raise paths.UnsafePathError(*answer["unsafe"][path])
            found = here.differences(owned, answer)
            if not found:
                continue
            check(module, entry)
            shown_before = shown(Path(path), entry, found)
            act = apply_files.check if module.check_mode else apply_files.settle
            act(entry)
        except model.ConflictError as error:
            refused.append(f"{error}.")
        except paths.UnsafePathError as error:
            refused.append(str(error))
        except (OSError, LookupError) as error:
            refused.append(f"{path} could not be made as declared: {error}")
        else:
            changed.append(path)
            diff.append(shown_before)
    result: dict[str, Any] = {"paths": changed, "refused": refused, "diff": diff}
    result["changed"] = bool(changed)
    if refused:
        module.fail_json(msg="\n".join(refused), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
