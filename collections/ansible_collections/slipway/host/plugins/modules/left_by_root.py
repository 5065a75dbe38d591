#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.left_by_root."""

from __future__ import annotations

DOCUMENTATION = r"""
module: left_by_root
short_description: Give people back what root left in their .docker folder
description:
  - After C(sudo docker login), C(~/.docker) or what is in it belongs to root, and the user's own
    docker command fails or warns. What root owns there becomes the user's.
  - Links are not followed, files with more than one name are left alone, and so is a home that is
    not its user's.
  - It acts where root owns the folder or something directly in it, and then to its depths.
options:
  users:
    description: Names of the users.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    description: Says whose files would be given back.
    support: full
  diff_mode:
    description: Names what is root's.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Undo what sudo docker login did to alice
  slipway.host.left_by_root:
    users: [alice]
"""

RETURN = r"""
users:
  description: Those whose files were given back.
  returned: always
  type: list
  elements: str
"""

import pwd
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import docker_folder
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here, diff_of

ARGUMENT_SPEC: dict[str, Any] = {
    "users": {"type": "list", "elements": "str", "required": True},
}


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    owned = {"left_by_root": [{"user": name} for name in module.params["users"]]}
    found = Here(docker_folder).differences(owned)
    users = [difference.name for difference in found]
    if not module.check_mode:
        for entry in map(pwd.getpwnam, users):
            docker_folder.give_back(entry.pw_dir, entry.pw_uid, entry.pw_gid)
    module.exit_json(
        changed=bool(users),
        users=users,
        diff=diff_of(found),
    )


if __name__ == "__main__":
    main()
