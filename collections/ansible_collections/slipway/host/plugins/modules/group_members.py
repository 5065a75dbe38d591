#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.group_members."""

from __future__ import annotations

DOCUMENTATION = r"""
module: group_members
short_description: Add and remove members of a group
description:
  - Adds users to a group and, if I(exclusive), removes all other members.
  - The builtin user module can add a user to a group, but can remove a user from a group only if
    all other groups of the user are listed.
  - Warns if a user has running programs, because they keep their old groups.
options:
  group:
    description: Name of the group; a missing group is a conflict unless check mode is on.
    type: str
    required: true
  users:
    description: Names of the users; those that do not exist are left out.
    type: list
    elements: str
    required: true
  exclusive:
    description: Remove all other members from the group.
    type: bool
    default: false
  devices:
    description:
      - Prefixes of device paths. If set, users are added only while such a device belongs to the
        group and is not accessible to all users.
    type: list
    elements: str
attributes:
  check_mode:
    description: Reports which users would be added and removed.
    support: full
  diff_mode:
    description: Shows the members before and after.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Allow only alice to use Docker
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
conflicts:
  description: What is in the way, a mapping with kind, name and reason for each conflict.
  returned: always
  type: list
  elements: dict
"""

from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host import sessions
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import accounts, model

ARGUMENT_SPEC: dict[str, Any] = {
    "group": {"type": "str", "required": True},
    "users": {"type": "list", "elements": "str", "required": True},
    "exclusive": {"type": "bool", "default": False},
    "devices": {"type": "list", "elements": "str"},
}


def names_by_uid(names: list[str]) -> dict[int, str]:
    """Return the names of existing users by user ID."""
    return {user[0]: name for name, user in accounts.ask_users(names).items() if user}


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    group, devices = module.params["group"], module.params["devices"]
    answer = accounts.ask_groups([group])[group]
    applies = devices is None or any(group in accounts.ask_devices(path) for path in devices)
    declared = set(module.params["users"]) if applies else set()
    if answer is None and declared and not module.check_mode:
        reason = f"{accounts.missing_group(group, sorted(declared))}."
        module.finish([model.Conflict("members", group, reason)], added=[], removed=[])
    members = set(answer[1]) if answer else set()
    users = accounts.ask_users(sorted(declared))
    declared = {accounts.own_name(name, user) for name, user in users.items()}
    added = sorted(declared - members)
    if not module.check_mode:
        added = [name for name, user in accounts.ask_users(added).items() if user]
    removed = sorted(members - declared) if module.params["exclusive"] else []
    if accounts.is_directory_group(answer) and (added or removed):
        reason = f"{accounts.directory_group(group, added, removed)}."
        module.finish([model.Conflict("members", group, reason)], added=[], removed=[])
    if not module.check_mode and (added or removed):
        for option, names in (("--add", added), ("--delete", removed)):
            for name in names:
                module.run_command(["gpasswd", option, name, group], check_rc=True)
        changes = names_by_uid(added), names_by_uid(removed)
        for warning in sessions.find_outdated(group, answer[0], *changes, sessions.processes()):
            module.warn(warning)
    after = (members | declared) - set(removed)
    module.finish(
        [],
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
