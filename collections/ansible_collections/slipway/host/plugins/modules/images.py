#!/usr/bin/python
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of slipway.host.images; it runs on the controller, see the action plugin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: images
short_description: Build catalogue images on the host, with progress
description:
  - Asks the engine which images bear another context digest than the catalogue gives them, and
    builds those on the host, in order of dependency.
  - An image gets its tag only after its smoke test passed in a container without network. One that
    fails leaves the tag, and so the running services, where they were; the others are built all the
    same, and the task fails at the end.
  - The build runs detached on the host and is followed from here, so a lost connection does not end
    it, and two runs do not build twice.
extends_documentation_fragment: [slipway.host.catalogue]
options:
  names:
    description: Images of the catalogue; those they are based on come along.
    type: list
    elements: str
    required: true
  build:
    description: How images are built, as the role's C(ml_images_build) documents it.
    type: dict
    default: {}
attributes:
  check_mode:
    description: Says which images would be built.
    support: full
  diff_mode:
    description: Shows the context digests, as they are and as they should be.
    support: full
author:
  - Slipway contributors
"""

EXAMPLES = r"""
- name: Build the iris classifier's API
  slipway.host.images:
    names: [iris-api]
    catalogue: images
    variant: cpu
    base: debian-13
"""

RETURN = r"""
images:
  description: The images with the context digests that they should bear.
  returned: always
  type: list
  elements: dict
built:
  description: References that were built.
  returned: when something was built
  type: list
  elements: str
"""
