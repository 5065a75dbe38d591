# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter slipway.host.services_plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.slipway.host.plugins.module_utils.images import declaration, index
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_services
from ansible_collections.slipway.host.plugins.module_utils.services import gpus as services_gpus

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
            build = index.planned(catalogue, [image], variant, base, args or {})[-1]
            wanted.append(ml_services.Project(project, build, given))
        reserves = any(project.get("gpus") for project in projects)
        gpus = _gpus(facts or {}, share_gpus) if reserves else services_gpus.Gpus()
        return ml_services.plan(wanted, ml_services.Host(host, publish, gpus))
    except (
        declaration.DeclarationError,
        services_gpus.GpuError,
        ml_services.ServiceError,
    ) as error:
        raise AnsibleFilterError(str(error)) from error


def _gpus(facts: Mapping[str, Any], shared: bool) -> services_gpus.Gpus:
    """Return what the host has of GPUs, and what its engine knows of them."""
    # Imported late: where no project reserves GPUs none of it is needed.
    from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
    from ansible_collections.slipway.host.plugins.module_utils.roles import nvidia_container_toolkit

    count = gpu_host.count(facts) if facts else 0
    return services_gpus.Gpus(count, shared, nvidia_container_toolkit.has_cdi(facts))


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """Return the filters by name."""
        return {"services_plan": services_plan}
