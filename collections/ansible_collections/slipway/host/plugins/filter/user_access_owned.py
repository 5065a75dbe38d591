# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter slipway.host.user_access_owned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.slipway.host.plugins.module_utils.roles import user_access

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
  shared:
    description: Folders as C(user_access_shared) declares them.
    type: list
    elements: dict
    default: []
  limits:
    description: Limits as C(user_access_limits) declares them.
    type: list
    elements: dict
    default: []
  rootless_settings:
    description: Keys of daemon.json for engines that people have of their own.
    type: dict
    default: {}
  facts:
    description:
      - What the host is, C(ansible_facts['slipway']); without it, no GPU and no engine is known.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: One user who may use Docker
  ansible.builtin.debug:
    msg: "{{ [{'name': 'alice', 'docker': true}] | slipway.host.user_access_owned }}"
"""

RETURN = r"""
_value:
  description: The lists of owned state.
  type: dict
"""


def user_access_owned(
    users: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]] = (),
    docker_exclusive: bool = True,
    shared: Sequence[Mapping[str, Any]] = (),
    limits: Sequence[Mapping[str, Any]] = (),
    rootless_settings: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Return the owned state, see :func:`_user_access.owned`."""
    try:
        return user_access.owned(
            users, groups, docker_exclusive, shared, limits, rootless_settings, facts
        )
    except user_access.UserAccessError as error:
        raise AnsibleFilterError(f"user_access: {error}") from error


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"user_access_owned": user_access_owned}
