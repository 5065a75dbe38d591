# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter slipway.host.nvidia_container_toolkit_plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.roles import nvidia_container_toolkit

DOCUMENTATION = r"""
name: nvidia_container_toolkit_plan
short_description: NVIDIA's container toolkit on a host, as owned state
description:
  - States what the role nvidia_container_toolkit owns, which is nothing on a host without GPUs.
positional: _input
options:
  _input:
    description: The host, C(ansible_facts['slipway']).
    type: dict
    required: true
  version:
    description: Version of the four packages.
    type: str
    required: true
  repository:
    description: The repository, as C(nvidia_container_toolkit_repository) declares it.
    type: dict
    required: true
  hold:
    description: Whether the packages are held.
    type: bool
    required: true
  state:
    description: C(present) or C(absent).
    type: str
    required: true
  upgrade:
    description: Whether an upgrade is asked for, which may also bring what was rolled back.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Does this host get the toolkit
  ansible.builtin.debug:
    msg: >-
      {{ (ansible_facts['slipway'] | slipway.host.nvidia_container_toolkit_plan(
            version='1.20.1', repository=nvidia_container_toolkit_repository, hold=true,
            state='present')).needed }}
"""

RETURN = r"""
_value:
  description: A mapping with needed, key_url and owned.
  type: dict
"""


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Return the filters by name."""
        return {"nvidia_container_toolkit_plan": nvidia_container_toolkit.plan}
