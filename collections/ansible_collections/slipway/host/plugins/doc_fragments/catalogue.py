# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of all plugins over the catalogue."""

from __future__ import annotations


class ModuleDocFragment:
    """Ansible's entry point."""

    DOCUMENTATION = r"""
options:
  catalogue:
    description: Folder of the catalogue, on the controller.
    type: path
    required: true
  variant:
    description: Variant the host can use.
    type: str
    choices: [cpu, gpu]
    required: true
  base:
    description: Base of images that ask for the default one, a name of C(bases.yml).
    type: str
    required: true
  args:
    description: Build arguments, by image and argument.
    type: dict
    default: {}
"""
