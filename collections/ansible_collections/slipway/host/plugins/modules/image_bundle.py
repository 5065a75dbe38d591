#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of slipway.host.image_bundle, whose action plugin runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_bundle
short_description: Copy images of a host to a folder on the controller
description:
  - Builds missing images on the host, then copies the images and the images below them over SSH to
    an OCI layout on the controller. Layers that the layout has are not transferred.
  - Run this on one host at a time.
extends_documentation_fragment: [slipway.host.catalogue, slipway.host.catalogue.build]
options:
  names:
    description: Images of the catalogue.
    type: list
    elements: str
    required: true
  architecture:
    description: Architecture of the host.
    type: str
    required: true
  folder:
    description: Folder on the controller with the layout. It is created.
    type: path
    required: true
attributes:
  check_mode:
    description: Copies nothing.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Copy the image iris-api to the controller
  slipway.host.image_bundle:
    names: [iris-api]
    catalogue: images
    variant: cpu
    base: debian-13
    architecture: x86_64
    folder: /srv/layout
"""

RETURN = r"""
received:
  description: Bytes that the controller received.
  returned: always
  type: int
"""
