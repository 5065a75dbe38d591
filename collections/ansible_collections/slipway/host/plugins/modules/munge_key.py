#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.munge_key."""

from __future__ import annotations

DOCUMENTATION = r"""
module: munge_key
short_description: Make, read and write the munge key of a cluster
description:
  - Makes a random munge key on a host that has none, reads a key, or writes the key of another
    host. The key is in no log and no diff. Set C(no_log) for a task that reads a key.
  - Gives the key mode C(0400) and the user C(munge). Before the package munge is installed, root
    owns the key; the package then gives it to its user.
options:
  entries:
    description: The key, as the C(munge_keys) list of a role's owned state.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Path of the key.
        type: path
        required: true
      digest:
        description: SHA-256 digest of the key of the controller.
        type: str
        required: true
      managed:
        description: Whether another key is replaced. Otherwise it is a conflict.
        type: bool
        required: true
      key_host:
        description: Name of the controller, for messages.
        type: str
        required: true
  content:
    description:
      - The key of the controller in base64. Without it, an existing key is kept.
    type: str
  make:
    description: Make a random key if the host has none and O(content) is empty.
    type: bool
    default: false
  read:
    description: Return the key of the host, and change nothing.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reports whether the key would change. Does not return the key.
    support: full
  diff_mode:
    description: Shows that the key differs, not the key.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Make the munge key
  slipway.host.munge_key:
    entries:
      - path: /etc/munge/munge.key
        digest: ""
        managed: true
        key_host: gpu01
    make: true
"""

RETURN = r"""
content:
  description: The key in base64, empty if there is none.
  returned: with O(read)
  type: str
conflicts:
  description: What is in the way, a mapping with kind, name and reason for each conflict.
  returned: without O(read)
  type: list
  elements: dict
"""

import base64
import grp
import pwd
import secrets
from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import files, paths, slurm
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here, diff_of

# As many as the program mungekey makes.
KEY_BYTES = 128
USER = "munge"
ARGUMENT_SPEC: dict[str, Any] = {
    "entries": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "path": {"type": "path", "required": True},
            "digest": {"type": "str", "required": True},
            # Not a secret, although its name sounds like one.
            "key_host": {"type": "str", "required": True, "no_log": False},
            "managed": {"type": "bool", "required": True},
        },
    },
    "content": {"type": "str", "no_log": True},
    "make": {"type": "bool", "default": False},
    "read": {"type": "bool", "default": False},
}


def read_key(path: str) -> bytes:
    """Return a key, empty if there is none."""
    try:
        return paths.read_file(path, slurm.MAX_KEY_BYTES)
    except OSError:
        return b""


def find_owner() -> tuple[int, int]:
    """Return the numbers of user and group munge; those of root before the package is installed."""
    try:
        return pwd.getpwnam(USER).pw_uid, grp.getgrnam(USER).gr_gid
    except KeyError:
        return 0, 0


def write_key(path: str, content: bytes) -> None:
    """Write a key in one step; raise UnsafePathError if something is in the way."""
    with paths.opened_parent(path, make=True) as (folder, name):
        folder.replace(name, content, 0o400, *find_owner())


def choose_key(module: HostModule, entry: Mapping[str, Any]) -> bytes:
    """Return the key that the host gets; fail if there is none."""
    key = base64.b64decode(module.params["content"] or "") or read_key(entry["path"])
    if not key and not module.params["make"]:
        module.fail_json(
            msg=f"{entry['path']}: the controller {entry['key_host']} has no munge key; expected "
            "one. Run ./slipway site without --limit."
        )
    return key or secrets.token_bytes(KEY_BYTES)


def change_key(module: HostModule, entry: Mapping[str, Any]) -> None:
    """Write the key of one entry, and end the module."""
    owned = {"munge_keys": [entry]}
    comparison = Here(slurm, files).compare(owned)
    differences = comparison.differences
    if differences and not module.check_mode:
        try:
            write_key(entry["path"], choose_key(module, entry))
        except (OSError, paths.UnsafePathError) as error:
            module.fail_json(msg=f"{entry['path']}: {error}")
    module.finish(comparison.conflicts, changed=bool(differences), diff=diff_of(differences))


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    entry = module.params["entries"][0]
    if module.params["read"]:
        key = b"" if module.check_mode else read_key(entry["path"])
        module.exit_json(changed=False, content=base64.b64encode(key).decode())
    change_key(module, entry)


if __name__ == "__main__":
    main()
