# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Document the options that all plugins for catalogue images have."""

from __future__ import annotations


class ModuleDocFragment:
    """Ansible's entry point."""

    DOCUMENTATION = r"""
options:
  catalogue:
    description: Folder of the catalogue on the controller.
    type: path
    required: true
  variant:
    description: Variant that the host can use.
    type: str
    choices: [cpu, gpu]
    required: true
  base:
    description: Name in C(bases.yml) of the base for images with the default base.
    type: str
    required: true
  args:
    description: Build arguments by name of image and name of argument.
    type: dict
    default: {}
"""

    # Of the plugins that build images, as slipway.host.catalogue.build.
    BUILD = r"""
options:
  build:
    description:
      - How images are built, as the role's C(ml_images_build) documents it. C(cache_bytes) is the
        maximum size of the build cache.
    type: dict
    default: {}
"""
