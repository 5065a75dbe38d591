#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.derived_files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: derived_files
short_description: Generate files again whose sources changed
description:
  - Runs a command if a file is missing, empty, changed, open to others, or generated from other
    sources than the present ones. So the next run finishes an interrupted run.
  - Records digests of the file and its sources in C(/var/lib/slipway/derived.json). The survey
    compares by the same record. The time of modification decides nothing.
options:
  derived:
    description: The files, as the C(derived) list of a role's owned state.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Path of the file.
        type: path
        required: true
      since:
        description: Sources of the file.
        type: list
        elements: path
        required: true
      required:
        description: Whether a missing file is generated. By default it is not.
        type: bool
        default: false
      holds:
        description: Text that the file must contain.
        type: str
      alone_in:
        description: Folders in which other files that contain this text are removed.
        type: list
        elements: path
        default: []
  commands:
    description: Commands that generate the files. The first command that the host has is run.
    type: list
    elements: list
    required: true
attributes:
  check_mode:
    description: Reports whether a command would be run.
    support: full
  diff_mode:
    description: Shows which files are outdated or missing.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Rebuild an initramfs that is older than the module settings
  slipway.host.derived_files:
    derived:
      - path: /boot/initrd.img-6.8.0-149-generic
        since: [/etc/modprobe.d/slipway-nvidia-driver.conf]
    commands:
      - [update-initramfs, -u, -k, all]
      - [dracut, --regenerate-all, --force]
"""

RETURN = r"""
command:
  description: The command that was run.
  returned: when a command is run
  type: list
  elements: str
"""

import json
import stat
from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    derived,
    parents,
    paths,
)
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here, diff_of

ARGUMENT_SPEC: dict[str, Any] = {
    "derived": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "path": {"type": "path", "required": True},
            "since": {"type": "list", "elements": "path", "required": True},
            "required": {"type": "bool", "default": False},
            "holds": {"type": "str"},
            "alone_in": {"type": "list", "elements": "path", "default": []},
        },
    },
    "commands": {"type": "list", "elements": "list", "required": True},
}


def prepare(entry: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Remove rivals of a file and repair its type, owner and mode, which a command may keep."""
    for rival in derived.rivals(entry, answer):
        apply_files.settle({"path": rival, "state": "absent"})
    try:
        with paths.opened_parent(entry["path"]) as (folder, name):
            info = folder.lstat(name)
            if info is None:
                return
            if paths.type_of(info) != paths.FILE:
                folder.remove(name)
                return
            present = stat.S_IMODE(info.st_mode)
            mode = derived.ATTRIBUTES.repaired_mode(present)
            if (info.st_uid, present) != (0, mode):
                folder.set_file(name, mode, 0, info.st_gid)
    except FileNotFoundError:
        return


def write_record(entries: list[Mapping[str, Any]], answer: Mapping[str, Any]) -> None:
    """Record the present state of files and their sources; keep the records of other files."""
    records = {
        **derived.read_record(answer["texts"].get(derived.RECORD) or ""),
        **{
            entry["path"]: derived.record_of(entry, answer)
            for entry in entries
            if answer["made"][entry["path"]]
        },
    }
    content = json.dumps(records, indent=1, sort_keys=True) + "\n"
    with paths.opened_parent(derived.RECORD, make=True) as (folder, name):
        folder.replace(name, content.encode(), 0o600, 0, 0)


def run(module: HostModule, command: list[str]) -> str:
    """Run a command and return its output; fail if the command fails."""
    status, out, err = module.run_command(command)
    output = (err or out).strip() or "none"
    if status != 0:
        module.fail_json(msg=f"{' '.join(command)} failed: {output}")
    return output


def regenerate(module: HostModule, here: Here, command: list[str]) -> None:
    """Regenerate the differing files by the command, and record their state."""
    entries: list[Mapping[str, Any]] = module.params["derived"]
    owned = {"derived": entries}
    apply_files.secure_parents(*here.guarded(owned))
    answer = here.look(owned)
    differing = {difference.name for difference in here.differences(owned, answer)}
    for entry in entries:
        if entry["path"] in differing:
            prepare(entry, answer)
    before = here.look(owned)["made"]
    output = run(module, command) if differing else ""
    end = f"Output of the command: {output}"
    after = here.look(owned)
    for path in sorted(differing):
        if after["made"][path] == before[path]:
            problem = "was not generated" if before[path] else "is missing"
            module.fail_json(msg=f"{' '.join(command)} succeeded, but {path} {problem}. {end}")
    write_record(entries, after)
    if left := here.differences(owned):
        module.fail_json(
            msg=f"{' '.join(command)} succeeded, but {left[0].name} is {left[0].found}. {end}"
        )


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    here = Here(derived)
    comparison = here.compare({"derived": module.params["derived"]})
    if comparison.conflicts:
        module.finish(comparison.conflicts, changed=False)
    differences = comparison.differences
    if not differences:
        module.exit_json(changed=False)
    commands = module.params["commands"]
    available = (command for command in commands if module.get_bin_path(command[0]))
    command = [str(word) for word in next(available, commands[0])]
    if not module.check_mode:
        try:
            regenerate(module, here, command)
        except (OSError, paths.UnsafePathError) as error:
            module.fail_json(msg=str(error))
    needs_command = any(difference.kind != parents.KIND for difference in differences)
    result = {"command": command} if needs_command else {}
    module.exit_json(changed=True, diff=diff_of(differences), **result)


if __name__ == "__main__":
    main()
