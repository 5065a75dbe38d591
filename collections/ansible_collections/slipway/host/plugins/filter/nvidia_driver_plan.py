# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter slipway.host.nvidia_driver_plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.roles import nvidia_driver

DOCUMENTATION = r"""
name: nvidia_driver_plan
short_description: The NVIDIA driver of a host, and the owned state that follows
description:
  - Chooses the driver from the host's hardware and from what its owner wishes, and states what the
    role nvidia_driver owns.
positional: _input
options:
  _input:
    description: The host, C(ansible_facts['slipway']).
    type: dict
    required: true
  source:
    description: C(auto), C(distribution), C(cuda) or C(keep).
    type: str
    required: true
  branch:
    description: C(auto) or a driver branch.
    type: raw
    required: true
  modules:
    description: C(auto), C(open) or C(proprietary).
    type: str
    required: true
  version:
    description: Exact driver version, or empty.
    type: str
    required: true
  version_gone:
    description: C(newest) or C(fail), where the archive has lost that version.
    type: str
    required: true
  repository:
    description: Url, key_url and fingerprint of a mirror, each empty for the vendor's own.
    type: dict
    required: true
  video:
    description: Whether containers are to encode and decode video.
    type: bool
    required: true
  hold:
    description: Whether the set is held.
    type: bool
    required: true
  hold_kernel:
    description: Whether kernels wait for their ready-made modules.
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
- name: Which driver would this host get, and why
  ansible.builtin.debug:
    msg: >-
      {{ (ansible_facts['slipway'] | slipway.host.nvidia_driver_plan(
            source='auto', branch='auto', modules='auto', version='', version_gone='newest',
            repository={}, video=false, hold=true, hold_kernel=true, state='present')).reason }}
"""

RETURN = r"""
_value:
  description: A mapping with needed, managed, source, branch, modules, reason, notes, key_url,
    first, newest and owned.
  type: dict
"""


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Return the filters by name."""
        return {"nvidia_driver_plan": nvidia_driver.plan}
