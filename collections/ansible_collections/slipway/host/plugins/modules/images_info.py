#!/usr/bin/python
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of slipway.host.images_info, which runs on the controller as an action."""

from __future__ import annotations

DOCUMENTATION = r"""
module: images_info
short_description: Compare the catalogue with the images that a host holds
description:
  - Tells for each image of the catalogue whether the host holds it as the catalogue makes it, how
    big it is, what its build took, and what its smoke test proved.
  - Tells as well what else of Slipway's the host holds.
extends_documentation_fragment: [slipway.host.catalogue]
options:
  names:
    description: Images that the host is to hold.
    type: list
    elements: str
    required: true
  show:
    description: What to print besides, for people.
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
  - Slipway contributors
"""

EXAMPLES = r"""
- name: See what the host holds of the catalogue
  slipway.host.images_info:
    names: [iris-api]
    catalogue: images
    variant: cpu
    base: debian-13
    show: table
"""

RETURN = r"""
images:
  description: The catalogue's images, and what else of Slipway's the host holds.
  returned: always
  type: list
  elements: dict
  contains:
    reference:
      description: Its tag.
      type: str
      sample: slipway/iris-api:cpu
    state:
      description: V(current), V(outdated), V(missing) or V(not in the catalogue).
      type: str
    declared:
      description: Whether the host is to hold it.
      type: bool
    size:
      description: Its size in bytes, null where the host does not hold it.
      type: int
    added:
      description: What it adds to the image it stands on, in bytes.
      type: int
    build_seconds:
      description: What its last build there took.
      type: float
    smoke_seconds:
      description: What its last smoke test there took.
      type: float
    proven:
      description: What that proved.
      type: list
      elements: str
    notes:
      description: What its owner should know, in sentences.
      type: list
      elements: str
unneeded:
  description: References that the host holds and is not to hold, in the order to remove them.
  returned: always
  type: list
  elements: str
"""
