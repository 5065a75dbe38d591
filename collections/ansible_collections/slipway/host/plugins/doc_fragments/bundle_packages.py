# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Document the option of the modules that let apt use the packages of a bundle."""

from __future__ import annotations


class ModuleDocFragment:
    """Ansible's entry point."""

    DOCUMENTATION = r"""
options:
  bundle:
    description:
      - The packages of a bundle, which apt then uses instead of its sources. Set by the action
        plugin if the variables of the host name a bundle with packages.
    type: dict
    suboptions:
      url:
        description: Address of the packages, on a forwarded port.
        type: str
        required: true
      sha256:
        description: SHA-256 of the index of these packages.
        type: str
        required: true
"""
