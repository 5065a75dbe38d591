# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter slipway.host.services_plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.slipway.host.plugins.module_utils import (
    _declaration,
    _image_index,
    _services,
)

DOCUMENTATION = r"""
name: services_plan
short_description: Compose projects and owned state of the role ml_services
description:
  - Turns C(ml_services_projects) into compose files and what the role owns.
positional: _input
extends_documentation_fragment: [slipway.host.catalogue]
options:
  _input:
    description: Projects as C(ml_services_projects) declares them.
    type: list
    elements: dict
    required: true
  publish:
    description: Address that ports are bound to where a project does not say.
    type: str
    default: 127.0.0.1
  host:
    description: How others reach the host; only for showing addresses.
    type: str
    default: localhost
"""

EXAMPLES = r"""
- name: The compose file of iris-api
  ansible.builtin.debug:
    msg: >-
      {{ [{'name': 'iris-api'}] | slipway.host.services_plan('images', 'cpu', 'debian-13') }}
"""

RETURN = r"""
_value:
  description:
    - A mapping with projects, a list of mappings with name, file and project, and owned, the owned
      state of the role.
  type: dict
"""


def services_plan(
    projects: Sequence[Mapping[str, Any]],
    catalogue: str,
    variant: str,
    base: str,
    args: Mapping[str, Mapping[str, str]] | None = None,
    publish: str = "127.0.0.1",
    host: str = "localhost",
) -> dict[str, Any]:
    """Return the projects for the module ``services``, and the owned state for the survey."""
    found = []
    for project in projects:
        image = project.get("image") or project["name"]
        try:
            # The image itself comes last, behind those it is based on.
            build = _image_index.planned(catalogue, [image], variant, base, args or {})[-1]
            found.append(_services.project(project, build, publish, host))
        except (_declaration.DeclarationError, _services.ServiceError) as error:
            raise AnsibleFilterError(str(error)) from error
    return {"folder": _services.FOLDER, "projects": found, "owned": _services.owned(found)}


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """Return the filters by name."""
        return {"services_plan": services_plan}
