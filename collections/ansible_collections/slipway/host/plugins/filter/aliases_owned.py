# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter slipway.host.aliases_owned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.slipway.host.plugins.module_utils.images import declaration, index
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_aliases

DOCUMENTATION = r"""
name: aliases_owned
short_description: Owned state of the role ml_aliases
description:
  - Turns the aliases that images of the catalogue declare into commands of a host.
positional: _input
extends_documentation_fragment: [slipway.host.catalogue]
options:
  _input:
    description: Names of images.
    type: list
    elements: str
    required: true
  contact:
    description: Whom people are told to ask.
    type: str
    default: the administrator of this host
  mounts:
    description: Folders that every alias mounts, as C(ml_aliases_mounts) declares them.
    type: list
    elements: dict
    default: []
  disks:
    description: Folders that every alias mounts where they are, since links lead there.
    type: list
    elements: str
    default: []
  common:
    description: Settings of all aliases.
    type: dict
    default: {}
  settings:
    description: Settings by alias.
    type: dict
    default: {}
  state:
    description: C(absent) for a host without the commands.
    type: str
    default: present
"""

EXAMPLES = r"""
- name: The commands of PyTorch's image
  ansible.builtin.debug:
    msg: "{{ ['pytorch'] | slipway.host.aliases_owned('images', 'cpu', 'debian-13') }}"
"""

RETURN = r"""
_value:
  description: The lists packages, files, links and unhidden of owned state.
  type: dict
"""


def aliases_owned(
    names: Sequence[str],
    catalogue: str,
    variant: str,
    base: str,
    args: Mapping[str, Mapping[str, str]] | None = None,
    contact: str = "the administrator of this host",
    mounts: Sequence[Mapping[str, Any]] = (),
    disks: Sequence[str] = (),
    common: Mapping[str, Any] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    state: str = "present",
) -> dict[str, list[dict[str, Any]]]:
    """Return the owned state, see :func:`_aliases.owned`."""
    if state == "absent":
        return ml_aliases.removed()
    linked = [{"source": disk, "target": disk, "optional": True} for disk in disks]
    options = ml_aliases.Options(contact, [*linked, *mounts], common or {}, settings or {})
    try:
        images = index.planned(catalogue, names, variant, base, args or {})
        unknown = set(options.settings) - {alias.name for alias in ml_aliases.of_images(images)}
        if unknown:
            ml_aliases.check_known(sorted(map(str, unknown)), _all_aliases(catalogue))
        return ml_aliases.owned(images, options)
    except (declaration.DeclarationError, ml_aliases.AliasError) as error:
        raise AnsibleFilterError(str(error)) from error


def _all_aliases(catalogue: str) -> list[str]:
    """Return the aliases of the whole catalogue: settings may be shared by hosts that differ."""
    # Imported late: it is read only where settings name what this host does not have.
    from ansible_collections.slipway.host.plugins.module_utils.images import (
        catalogue as images_catalogue,
    )

    loaded = images_catalogue.load_catalogue(Path(catalogue).resolve())
    return [name for image in loaded.images.values() for name in image.settings["aliases"]]


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"aliases_owned": aliases_owned}
