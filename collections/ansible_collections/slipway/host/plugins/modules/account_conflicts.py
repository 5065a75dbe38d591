#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.account_conflicts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: account_conflicts
short_description: Find users and groups that cannot be created or changed as declared
description:
  - Finds accounts and groups of a directory service, which C(useradd), C(usermod) and C(groupadd)
    must not be called for, and missing names that these programs do not accept.
  - Finds a declared uid that another user has, a declared gid that another group has, and a
    declared home folder that root must not create or move. C(useradd) and C(usermod) work as root
    and follow links, so only root may be able to change a name on the way to a home folder.
  - Uses the same comparison as the survey.
  - Changes nothing and does not fail; the caller leaves out these users and groups.
options:
  users:
    description: The users, as the C(users) list of a role's owned state.
    type: list
    elements: dict
    default: []
  groups:
    description: The groups, as the C(groups) list of a role's owned state.
    type: list
    elements: dict
    default: []
attributes:
  check_mode:
    description: Changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Find conflicts of users and groups
  slipway.host.account_conflicts:
    groups:
      - {name: lab, gid: 2000}
    users:
      - {name: alice, uid: 2000, home: /data/homes/alice}
"""

RETURN = r"""
users:
  description: Names of the users with a conflict.
  returned: always
  type: list
  elements: str
groups:
  description: Names of the groups with a conflict.
  returned: always
  type: list
  elements: str
existing:
  description: Names of the users that exist.
  returned: always
  type: list
  elements: str
directory:
  description: Names of the users that exist and are of a directory service.
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

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import accounts
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here

KINDS = ("users", "groups")
ARGUMENT_SPEC: dict[str, Any] = {
    kind: {"type": "list", "elements": "dict", "default": []} for kind in KINDS
}


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    found = Here(accounts).compare(module.params).conflicts
    known = accounts.ask_users([user["name"] for user in module.params["users"]])
    module.exit_json(
        changed=False,
        existing=[name for name, user in known.items() if user],
        directory=[name for name, user in known.items() if accounts.directory_name(user)],
        conflicts=[
            {"kind": conflict.kind, "name": conflict.name, "reason": conflict.reason}
            for conflict in found
        ],
        **{kind: [conflict.name for conflict in found if conflict.kind == kind] for kind in KINDS},
    )


if __name__ == "__main__":
    main()
