# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter slipway.host.user_access_owned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.slipway.host.plugins.module_utils import _user_access

DOCUMENTATION = r"""
name: user_access_owned
short_description: Owned state of the role user_access
description:
  - Turns the people and groups of the inventory into owned state.
positional: _input
options:
  _input:
    description: Users as C(user_access_users) declares them.
    type: list
    elements: dict
    required: true
  groups:
    description: Groups as C(user_access_groups) declares them.
    type: list
    elements: dict
    default: []
  docker_exclusive:
    description: Whether nobody else may be in the docker group.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: One user who may use Docker
  ansible.builtin.debug:
    msg: "{{ [{'name': 'alice', 'docker': true}] | slipway.host.user_access_owned }}"
"""

RETURN = r"""
_value:
  description: The lists groups, users, members and lines of owned state.
  type: dict
"""


def user_access_owned(
    users: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]] = (),
    docker_exclusive: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """Return the owned state, see :func:`_user_access.owned`."""
    try:
        return _user_access.owned(users, groups, docker_exclusive)
    except _user_access.UserAccessError as error:
        raise AnsibleFilterError(f"user_access: {error}") from error


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"user_access_owned": user_access_owned}
