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
    _service_gpus,
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
  facts:
    description: The host, C(ansible_facts['slipway']); its GPUs and its engine matter.
    type: dict
    default: {}
  share_gpus:
    description: Whether several projects may reserve one GPU.
    type: bool
    default: false
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
    - A mapping with folder and projects, which the module C(services) takes, and owned, the owned
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
    facts: Mapping[str, Any] | None = None,
    share_gpus: bool = False,
) -> dict[str, Any]:
    """Return the projects for the module ``services``, and the owned state for the survey."""
    given = frozenset(arg for values in (args or {}).values() for arg in values)
    wanted = []
    try:
        for project in projects:
            image = project.get("image") or project["name"]
            # The image itself comes last, behind those it is based on.
            build = _image_index.planned(catalogue, [image], variant, base, args or {})[-1]
            wanted.append(_services.Project(project, build, given))
        reserves = any(project.get("gpus") for project in projects)
        gpus = _gpus(facts or {}, share_gpus) if reserves else _service_gpus.Gpus()
        return _services.plan(wanted, _services.Host(host, publish, gpus))
    except (
        _declaration.DeclarationError,
        _service_gpus.GpuError,
        _services.ServiceError,
    ) as error:
        raise AnsibleFilterError(str(error)) from error


def _gpus(facts: Mapping[str, Any], shared: bool) -> _service_gpus.Gpus:
    """Return what the host has of GPUs, and what its engine knows of them."""
    # Imported late: where no project reserves GPUs none of it is needed.
    from ansible_collections.slipway.host.plugins.module_utils import (
        _gpu_host,
        _nvidia_container_toolkit,
    )

    count = _gpu_host.count(facts) if facts else 0
    return _service_gpus.Gpus(count, shared, _nvidia_container_toolkit.has_cdi(facts))


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """Return the filters by name."""
        return {"services_plan": services_plan}
