# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup slipway.host.role_plan."""

from __future__ import annotations

DOCUMENTATION = r"""
name: role_plan
short_description: The plan of a role for the current host
description:
  - Computes the owned state of a role and the values for its tasks. They depend on the host facts
    C(ansible_facts['slipway']) and on the options of the role.
  - The survey computes the same plan, so that a role and the survey always agree.
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
    - One mapping for each role. The key C(owned) contains the owned state, the other keys the
      values for the tasks of the role.
  type: list
  elements: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import host_plans


class LookupModule(LookupBase):
    """Ansible's entry point."""

    def run(
        self, terms: Sequence[str], variables: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Return the plan of each role."""
        hostvars = variables or {}
        facts = hostvars.get("ansible_facts", {}).get("slipway")
        templar: Any = self._templar
        plans = [host_plans.plan(str(name), hostvars, templar.template, facts) for name in terms]
        return [{**plan, "owned": without_needs(plan["owned"])} for plan in plans]


def without_needs(owned: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Return owned state without the key ``needs``, which only the survey reads."""
    return {
        kind: [
            {key: value for key, value in entry.items() if key != "needs"}
            if isinstance(entry, Mapping)
            else entry
            for entry in entries
        ]
        for kind, entries in owned.items()
    }
