#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of slipway.host.images_info, which runs on the controller as an action."""

from __future__ import annotations

DOCUMENTATION = r"""
module: images_info
short_description: Compare the catalogue with the images on a host
description:
  - Returns for each image of the catalogue whether the host has its current build, its size, the
    duration of its build, and the lines of its smoke test.
  - Returns other images of Slipway on the host as well.
extends_documentation_fragment: [slipway.host.catalogue]
options:
  names:
    description: Images that the host should hold.
    type: list
    elements: str
    required: true
  show:
    description: What to print for people.
    type: str
    choices: [nothing, table, markdown]
    default: nothing
attributes:
  check_mode:
    description: Changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: List the images of the catalogue on the host
  slipway.host.images_info:
    names: [iris-api]
    catalogue: images
    variant: cpu
    base: debian-13
    show: table
"""

RETURN = r"""
images:
  description: The catalogue's images, and other images of Slipway on the host.
  returned: always
  type: list
  elements: dict
  contains:
    reference:
      description: Tag of the image.
      type: str
      sample: slipway/iris-api:cpu
    state:
      description:
        - V(current), V(outdated), V(missing), V(not recorded) or V(not in the catalogue).
        - V(not recorded) means that the host has no record of this content.
      type: str
    declared:
      description: Whether the host should hold the image.
      type: bool
    size:
      description: Size in bytes, null for an image that is not on the host.
      type: int
    added:
      description: Size without the image below it, in bytes.
      type: int
    build_seconds:
      description: Duration of its last build there.
      type: float
    smoke_seconds:
      description: Duration of its last smoke test there.
      type: float
    proven:
      description: Lines of that smoke test.
      type: list
      elements: str
    notes:
      description: Sentences for the owner of the host.
      type: list
      elements: str
unneeded:
  description: References of undeclared images on the host, in the order to remove them.
  returned: always
  type: list
  elements: str
"""
