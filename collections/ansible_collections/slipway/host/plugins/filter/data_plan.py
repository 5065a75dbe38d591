# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter slipway.host.data_plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_data as plan

DOCUMENTATION = r"""
name: data_plan
short_description: Trees and owned state of the role ml_data
description:
  - Turns C(ml_data_archives) and C(ml_data_repositories) into what the module datasets does and
    what the role owns.
positional: _input
options:
  _input:
    description: Data sets as C(ml_data_archives) declares them.
    type: list
    elements: dict
    required: true
  repositories:
    description: Repositories as C(ml_data_repositories) declares them.
    type: list
    elements: dict
    required: true
  folder:
    description: Where data sets are that do not say it.
    type: path
    required: true
  code_folder:
    description: Where repositories are that do not say it.
    type: path
    required: true
  disks:
    description: Folders on other disks.
    type: list
    elements: str
    default: []
  environment:
    description: What downloads are given, such as a proxy.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: What a data set takes
  ansible.builtin.debug:
    msg: >-
      {{ [{'name': 'pets', 'url': 'https://data.example.org/pets.tar.gz'}]
         | slipway.host.data_plan([], '/srv/data', '/srv/code') }}
"""

RETURN = r"""
_value:
  description:
    - A mapping with owned, the owned state of the role; trees, what the module datasets is told;
      and secrets, addresses and headers by the name of a tree.
  type: dict
"""


def data_plan(
    archives: Sequence[Mapping[str, Any]],
    repositories: Sequence[Mapping[str, Any]],
    folder: str,
    code_folder: str,
    disks: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what the role owns and does, see :func:`plan.plan`."""
    try:
        return plan.plan(archives, repositories, folder, code_folder, disks, environment or {})
    except plan.DataError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"data_plan": data_plan}
