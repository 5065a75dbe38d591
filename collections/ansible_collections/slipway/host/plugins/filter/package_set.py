# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter slipway.host.package_set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

DOCUMENTATION = r"""
name: package_set
short_description: Owned packages from their names
description:
  - Turns package names into the C(packages) list of a role's owned state.
positional: _input
options:
  _input:
    description: Names of packages; C(name=version) pins a version.
    type: list
    elements: str
    required: true
  state:
    description: Whether the packages are installed.
    type: str
    choices: [present, absent]
    default: present
  hold:
    description: Whether they are held.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Two packages, one at a version, both held
  ansible.builtin.debug:
    msg: "{{ ['docker.io', 'iptables=1.8.11-2'] | slipway.host.package_set(hold=true) }}"
"""

RETURN = r"""
_value:
  description: A mapping with name, state and, where present, hold and version, for each package.
  type: list
  elements: dict
"""


def package_set(
    names: Sequence[str], state: str = "present", hold: bool = False
) -> list[dict[str, Any]]:
    """Return the ``packages`` list of owned state for NAMES, each ``name`` or ``name=version``."""
    entries: list[dict[str, Any]] = []
    for spelled in names:
        name, _, version = spelled.partition("=")
        entry: dict[str, Any] = {"name": name, "state": state}
        if state == "present":
            entry["hold"] = hold
            if version:
                entry["version"] = version
        entries.append(entry)
    return entries


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"package_set": package_set}
