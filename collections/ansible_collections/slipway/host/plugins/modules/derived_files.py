#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.derived_files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: derived_files
short_description: Regenerate files that are older than their sources
description:
  - Runs a command if a file is older than one of its sources. So the next run also regenerates a
    file if a run ended between the change of a source and the command.
  - Compares the times in the same way as the survey.
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

from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import files
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
        },
    },
    "commands": {"type": "list", "elements": "list", "required": True},
}


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    owned = {"derived": module.params["derived"]}

    here = Here(files)
    differences = here.differences(owned)
    if not differences:
        module.exit_json(changed=False)
    diff = diff_of(differences)
    commands = module.params["commands"]
    command = next((words for words in commands if module.get_bin_path(words[0])), commands[0])
    if not module.check_mode:
        status, out, err = module.run_command([str(word) for word in command])
        output = (err or out).strip() or "none"
        if status != 0:
            module.fail_json(msg=f"{' '.join(command)} failed: {output}")
        if left := here.differences(owned):
            module.fail_json(
                msg=f"{' '.join(command)} succeeded, but {left[0].name} is {left[0].found}. Output "
                f"of the command: {output}"
            )
    module.exit_json(changed=True, command=command, diff=diff)


if __name__ == "__main__":
    main()
