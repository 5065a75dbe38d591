#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.home_folders."""

from __future__ import annotations

DOCUMENTATION = r"""
module: home_folders
short_description: Check that root can safely create and move declared home folders
description:
  - Checks the declared home folder of each user. C(useradd) and C(usermod) create home folders as
    root and follow links, so only root may be able to change a name on the way to a home folder.
  - Refuses a home folder that is a link, or whose parent folder others can write.
  - Changes nothing and does not fail; the caller decides about the refused users.
options:
  homes:
    description: Declared home folder of each user, by name.
    type: dict
    required: true
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
- name: Check declared home folders
  slipway.host.home_folders:
    homes:
      alice: /data/homes/alice
"""

RETURN = r"""
users:
  description: Users whose home folder is refused.
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
from ansible_collections.slipway.host.plugins.module_utils.state import paths

ARGUMENT_SPEC: dict[str, Any] = {
    "homes": {"type": "dict", "required": True},
}


def check(path: str) -> None:
    """Raise UnsafePathError if root must not create or move a home folder at PATH."""
    try:
        with paths.opened_parent(path) as (folder, name):
            if not folder.trusted:
                raise paths.UnsafePathError(
                    path,
                    f"a parent folder that others can write ({folder.path}, owned by "
                    f"{paths.owner_name(folder.info())})",
                    "parent folders that only root can write",
                )
            info = folder.lstat(name)
            if info is not None and paths.type_of(info) != paths.FOLDER:
                raise folder.refuse(name, info, "a folder or nothing")
    except FileNotFoundError:
        check(path.rstrip("/").rpartition("/")[0])


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    users: list[str] = []
    conflicts: list[dict[str, str]] = []
    for user, path in module.params["homes"].items():
        try:
            check(path)
        except (paths.UnsafePathError, OSError) as error:
            users.append(user)
            reason = f"home folder of {user}: {error}"
            conflicts.append({"kind": "users", "name": user, "reason": reason})
    module.exit_json(changed=False, users=users, conflicts=conflicts)


if __name__ == "__main__":
    main()
