# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter slipway.host.image_digests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ansible.errors import AnsibleFilterError
from ansible_collections.slipway.host.plugins.module_utils.images import declaration, index

DOCUMENTATION = r"""
name: image_digests
short_description: Owned images from names of the catalogue
description:
  - Gives the reference and the context digest of each image, and of the images they are based on.
positional: _input
extends_documentation_fragment: [slipway.host.catalogue]
options:
  _input:
    description: Names of images.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: The digest that iris-api must bear
  ansible.builtin.debug:
    msg: "{{ ['iris-api'] | slipway.host.image_digests('images', 'cpu', 'debian-13') }}"
"""

RETURN = r"""
_value:
  description: A mapping with reference and digest for each image, in build order.
  type: list
  elements: dict
"""


def image_digests(
    names: Sequence[str],
    catalogue: str,
    variant: str,
    base: str,
    args: Mapping[str, Mapping[str, str]] | None = None,
) -> list[dict[str, str]]:
    """Return the ``images`` list of owned state."""
    try:
        planned = index.planned(catalogue, names, variant, base, args or {})
    except declaration.DeclarationError as error:
        raise AnsibleFilterError(str(error)) from error
    return [{"reference": build.reference, "digest": build.digest} for build in planned]


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """Return the filters by name."""
        return {"image_digests": image_digests}
