#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.group_members."""

from __future__ import annotations

DOCUMENTATION = r"""
module: group_members
short_description: Members of one group, and optionally nobody else
description:
  - Adds users to a group and, where I(exclusive), removes all others from it.
  - The builtin user module can append a group to a user, but cannot take a user out of one group
    without listing all the others.
  - Warns of people with programs that were started before, since those keep the groups they have.
options:
  group:
    description: Name of the group; it must exist unless check mode is on.
    type: str
    required: true
  users:
    description: Names of the users.
    type: list
    elements: str
    required: true
  exclusive:
    description: Remove everybody else from the group.
    type: bool
    default: false
  devices:
    description:
      - Beginnings of paths of devices. Where it is given, users are added only while such a device
        belongs to the group and is not open to everybody.
    type: list
    elements: str
attributes:
  check_mode:
    description: Says who would be added and removed.
    support: full
  diff_mode:
    description: Shows the members before and after.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Let alice use Docker, and nobody else
  slipway.host.group_members:
    group: docker
    users: [alice]
    exclusive: true
"""

RETURN = r"""
added:
  description: Users that were added.
  returned: always
  type: list
  elements: str
removed:
  description: Users that were removed.
  returned: always
  type: list
  elements: str
"""

from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host import sessions
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import accounts

ARGUMENT_SPEC: dict[str, Any] = {
    "group": {"type": "str", "required": True},
    "users": {"type": "list", "elements": "str", "required": True},
    "exclusive": {"type": "bool", "default": False},
    "devices": {"type": "list", "elements": "str"},
}


def numbers(names: list[str]) -> dict[int, str]:
    """Return names by user number, of those users who are there."""
    return {found[0]: name for name, found in accounts.ask_users(names).items() if found}


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    group, devices = module.params["group"], module.params["devices"]
    found = accounts.ask_groups([group])[group]
    serves = devices is None or any(group in accounts.ask_devices(one) for one in devices)
    wanted = set(module.params["users"]) if serves else set()
    if found is None and wanted and not module.check_mode:
        module.fail_json(msg=f"there is no group {group} to add {', '.join(sorted(wanted))} to")
    members = set(found[1]) if found else set()
    added = sorted(wanted - members)
    removed = sorted(members - wanted) if module.params["exclusive"] else []
    if not module.check_mode and (added or removed):
        for option, names in (("--add", added), ("--delete", removed)):
            for name in names:
                module.run_command(["gpasswd", option, name, group], check_rc=True)
        changes = numbers(added), numbers(removed)
        for warning in sessions.find_outdated(group, found[0], *changes, sessions.processes()):
            module.warn(warning)
    after = (members | wanted) - set(removed)
    module.exit_json(
        changed=bool(added or removed),
        added=added,
        removed=removed,
        diff={
            "before_header": f"members of {group}",
            "after_header": f"members of {group}",
            "before": "".join(f"{name}\n" for name in sorted(members)),
            "after": "".join(f"{name}\n" for name in sorted(after)),
        },
    )


if __name__ == "__main__":
    main()
