# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter slipway.host.docker_engine_plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.roles import docker_engine

DOCUMENTATION = r"""
name: docker_engine_plan
short_description: Where the Docker Engine comes from, and the owned state that follows
description:
  - Chooses between Docker's repository and the distribution's packages, and states what the role
    docker_engine owns.
positional: _input
options:
  _input:
    description: The host, C(ansible_facts['slipway']).
    type: dict
    required: true
  source:
    description: C(auto), C(docker) or C(distribution).
    type: str
    required: true
  repository:
    description: Docker's repository, as C(docker_engine_repository) declares it.
    type: dict
    required: true
  hold:
    description: Whether the packages are held.
    type: bool
    required: true
  settings:
    description: Keys of daemon.json.
    type: dict
    required: true
  nvidia:
    description: Whether a host with NVIDIA GPUs gets the keys that its containers need.
    type: bool
    required: true
  state:
    description: C(present) or C(absent).
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Where would the engine come from
  ansible.builtin.debug:
    msg: >-
      {{ (ansible_facts['slipway'] | slipway.host.docker_engine_plan(
            source='auto', repository=docker_engine_repository, hold=true, settings={},
            nvidia=true, state='present')).source }}
"""

RETURN = r"""
_value:
  description: A mapping with source, key_url and owned.
  type: dict
"""


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Return the filters by name."""
        return {"docker_engine_plan": docker_engine.plan}
