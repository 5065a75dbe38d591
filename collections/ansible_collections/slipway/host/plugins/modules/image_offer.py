#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of slipway.host.image_offer, whose action plugin runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_offer
short_description: Build images and offer them to another host
description:
  - Runs on the host that builds, by C(delegate_to). Builds what is missing there, pushes the images
    to a registry on that host, and serves them on loopback, read-only.
  - A socket on the controller leads to that registry over SSH.
  - If the variable C(ml_images_registry) of the host is a mapping, the images are pushed to that
    registry instead, and nothing is served.
  - The registry and the connection end with slipway.host.image_release, or by themselves an
    hour after the last connection.
extends_documentation_fragment: [slipway.host.catalogue, slipway.host.catalogue.build]
options:
  names:
    description: Images of the catalogue.
    type: list
    elements: str
    required: true
  references:
    description: References of the images to offer.
    type: list
    elements: str
    required: true
  host:
    description: Name of the host that the images are for.
    type: str
    required: true
  architecture:
    description: Architecture of that host. A builder with another one offers nothing.
    type: str
    required: true
attributes:
  check_mode:
    description: Offers nothing.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Offer the image iris-api to this host
  slipway.host.image_offer:
    names: [iris-api]
    catalogue: images
    variant: cpu
    base: debian-13
    references: ["slipway/iris-api:cpu"]
    architecture: x86_64
    host: "{{ inventory_hostname }}"
  delegate_to: build01
"""

RETURN = r"""
images:
  description: Digests and sizes of each image in the registry, by reference.
  returned: always
  type: dict
socket:
  description: The socket on the controller that leads to the registry, or empty.
  returned: always
  type: str
unavailable:
  description: Why the builder cannot offer the images that it has, or empty.
  returned: always
  type: str
failed_images:
  description: Why images were not built or not offered, by reference.
  returned: always
  type: dict
"""
