#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of slipway.host.image_fetch, whose action plugin runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_fetch
short_description: Bring images from the host that offers them
description:
  - Pulls images by their digest over SSH, through a port on loopback of the host, or from the
    registry in the variable C(ml_images_registry) if that is a mapping. Layers that the host has
    are not transferred.
  - An image gets its tag only after its smoke test passed on this host.
  - The pull runs detached on the host, and the controller follows it.
extends_documentation_fragment: [slipway.host.catalogue, slipway.host.catalogue.build]
options:
  names:
    description: Images of the catalogue. The images below them are brought too.
    type: list
    elements: str
    required: true
  builder:
    description: Name of the host that offers the images, for messages and records.
    type: str
    required: true
  offer:
    description: The result of slipway.host.image_offer.
    type: dict
    required: true
  may_build:
    description: Whether the host builds the images itself if they cannot be delivered.
    type: bool
    default: false
attributes:
  check_mode:
    description: Brings nothing.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Bring the offered images
  slipway.host.image_fetch:
    names: [iris-api]
    catalogue: images
    variant: cpu
    base: debian-13
    builder: build01
    offer: "{{ offer }}"
"""

RETURN = r"""
fetched:
  description: References of the images that this host has now.
  returned: always
  type: list
  elements: str
built:
  description: References of the images that this host built, because they were not delivered.
  returned: always
  type: list
  elements: str
received:
  description: Bytes of the layers that were transferred.
  returned: always
  type: int
"""
