# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter slipway.host.catalogue_choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

DOCUMENTATION = r"""
name: catalogue_choice
short_description: Which catalogue, variant and base fit a host
description:
  - Settles what C(ml_catalogue_variant) and C(ml_catalogue_base) leave open, from what the host is.
positional: _input
options:
  _input:
    description: The host, C(ansible_facts['slipway']).
    type: dict
    required: true
  catalogue:
    description: Folder of the catalogue.
    type: path
    required: true
  variant:
    description: C(cpu), C(gpu), or C(auto) for gpu where the host has an NVIDIA GPU.
    type: str
    required: true
  base:
    description: Base of images that ask for the default one, or C(auto).
    type: str
    required: true
  args:
    description: Build arguments, by image and argument.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: What fits this host
  ansible.builtin.debug:
    msg: >-
      {{ ansible_facts['slipway']
         | slipway.host.catalogue_choice('images', 'auto', 'auto', {}) }}
"""

RETURN = r"""
_value:
  description: A mapping with catalogue, variant, base and args.
  type: dict
"""

# The base like the host's own distribution, by the first part of its name.
BASES = {"Ubuntu": "ubuntu-24.04"}
DEFAULT_BASE = "debian-13"


def catalogue_choice(
    facts: Mapping[str, Any], catalogue: str, variant: str, base: str, args: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the filters over the catalogue take, with nothing left open."""
    if variant == "auto":
        # Imported late: on hosts without NVIDIA's devices none of it is needed.
        devices = facts.get("gpu", {}).get("devices")
        variant = "cpu"
        if devices:
            from ansible_collections.slipway.host.plugins.module_utils.gpu import host

            variant = "gpu" if host.has_gpu(facts) else "cpu"
    if base == "auto":
        base = BASES.get(facts["distribution"], DEFAULT_BASE)
    return {"catalogue": catalogue, "variant": variant, "base": base, "args": args}


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Return the filters by name."""
        return {"catalogue_choice": catalogue_choice}
