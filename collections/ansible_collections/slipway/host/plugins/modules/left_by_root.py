#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.left_by_root."""

from __future__ import annotations

DOCUMENTATION = r"""
module: left_by_root
short_description: Fix the ownership of files that root left in ~/.docker
description:
  - After C(sudo docker login), root owns C(~/.docker) or files in it, and the user's docker command
    fails or warns. The module makes the user the owner of root's files there.
  - Does not follow links. Skips files with more than one name, and home folders that the user does
    not own.
  - Changes a folder, with all subfolders, only if root owns the folder or an entry directly in it.
options:
  users:
    description: Names of the users.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    description: Reports the users whose files would change.
    support: full
  diff_mode:
    description: Shows the files that root owns.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Fix the files that sudo docker login left in the home folder of alice
  slipway.host.left_by_root:
    users: [alice]
"""

RETURN = r"""
users:
  description: Users whose files were changed.
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
    differences = Here(docker_folder).differences(owned)
    users = [difference.name for difference in differences]
    if not module.check_mode:
        for entry in map(pwd.getpwnam, users):
            docker_folder.give_back(entry.pw_dir, entry.pw_uid, entry.pw_gid)
    module.exit_json(
        changed=bool(users),
        users=users,
        diff=diff_of(differences),
    )


if __name__ == "__main__":
    main()
