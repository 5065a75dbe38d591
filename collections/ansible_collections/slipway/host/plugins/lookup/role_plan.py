# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup slipway.host.role_plan."""

from __future__ import annotations

DOCUMENTATION = r"""
name: role_plan
short_description: The plan of a role for the current host
description:
  - Computes what a role does and owns on a host, from C(ansible_facts['slipway']) and the role's
    options.
  - The survey computes the same plan, so a role and the survey cannot disagree.
options:
  _terms:
    description: Names of roles.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show the packages that the role docker_engine installs
  ansible.builtin.debug:
    msg: "{{ lookup('slipway.host.role_plan', 'docker_engine').owned.packages }}"
"""

RETURN = r"""
_raw:
  description:
    - One mapping for each role. The key C(owned) holds the owned state, the others what only the
      role's tasks need.
  type: list
  elements: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible_collections.slipway.host.plugins.plugin_utils import role_plans


class LookupModule(LookupBase):
    """Ansible's entry point."""

    def run(
        self, terms: Sequence[str], variables: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Return the plan of each role."""
        known = variables or {}
        facts = known.get("ansible_facts", {}).get("slipway")
        templar: Any = self._templar
        return [role_plans.plan(str(name), known, templar.template, facts) for name in terms]
